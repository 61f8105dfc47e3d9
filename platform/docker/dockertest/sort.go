//go:build linux

package dockertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A Sort is a sort of engine.
type Sort string

const (
	Docker Sort = "docker" // the dockerd on PATH: on Debian, that of docker.io
	Newest Sort = "newest" // the dockerd and the runc in .engines/bin
	Podman Sort = "podman" // the podman on PATH
)

// Sorts are all that can be run. Of those behind the first, a host may have none.
var Sorts = []Sort{Docker, Newest, Podman}

// Of chooses the sort of engine; without it, it is Docker.
func Of(sort Sort) Option { return func(e *Engine) { e.sort = sort } }

// allVariable set to "all" says that this host must have engines of every sort.
const allVariable = "WATCHER_ENGINES"

// need skips a test whose sort of engine this host lacks. For want of the first
// sort no test is skipped: Launch fails, for a run without any engine would
// otherwise look as if it had passed.
func (s Sort) need(tb testing.TB) {
	tb.Helper()
	needRoot(tb)
	if s == Docker || os.Getenv(allVariable) == "all" {
		return
	}
	if _, err := s.find(); err != nil {
		tb.Skipf("NOT RUN: %v", err)
	}
}

// A maker knows what is peculiar to a sort of engine.
type maker interface {
	// fits reports whether the path of a site is short enough.
	fits(dir string) bool
	// configure writes the files that the daemon reads.
	configure(ctx context.Context, s site) error
	// command is the daemon.
	command(s site, live bool) *exec.Cmd
	// parent is the parent cgroup that a container must ask for, "" if it has
	// the right one anyway.
	parent(s site) string
	// cgroup is the name of a container's cgroup.
	cgroup(id string) string
}

// find returns the maker of a sort of engine, or an error that says how to
// have one.
func (s Sort) find() (maker, error) {
	switch s {
	case Docker:
		program, err := exec.LookPath("dockerd")
		if err != nil {
			return nil, fmt.Errorf("find dockerd: %w (apt-get install docker.io)", err)
		}
		return dockerd{program: program}, nil
	case Newest:
		tools, err := builtEngines()
		if err != nil {
			return nil, fmt.Errorf("find the newest dockerd: %w (make test-engines)", err)
		}
		return dockerd{program: filepath.Join(tools, "dockerd"), tools: tools}, nil
	case Podman:
		program, err := exec.LookPath("podman")
		if err != nil {
			return nil, fmt.Errorf("find podman: %w (make test-engines)", err)
		}
		runc, err := exec.LookPath("runc")
		if err != nil {
			return nil, fmt.Errorf("find a runtime for podman: %w (apt-get install runc)", err)
		}
		return podman{program: program, runc: runc}, nil
	default:
		return nil, fmt.Errorf("there are no engines of the sort %q", s)
	}
}

// builtEngines is .engines/bin of the module that we are in.
func builtEngines() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			break
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || up == dir {
			return "", err
		}
		dir = up
	}
	tools := filepath.Join(dir, ".engines", "bin")
	for _, program := range []string{"dockerd", "runc"} {
		if _, err := os.Stat(filepath.Join(tools, program)); err != nil {
			return "", err
		}
	}
	return tools, nil
}

// environment is a daemon's. It is not ours: a proxy or a DOCKER_… variable of
// the developer must not decide how a test ends.
func environment(s site, more ...string) []string {
	ours := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		return name == "NOTIFY_SOCKET" || strings.HasSuffix(name, "_PROXY") ||
			slices.ContainsFunc([]string{"DOCKER_", "CONTAINER", "PODMAN_", "LISTEN_"}, func(prefix string) bool {
				return strings.HasPrefix(name, prefix)
			})
	})
	return append(append(ours, "TMPDIR="+s.dir), more...)
}

type dockerd struct {
	program string
	tools   string // a folder that is searched before PATH
}

// fits is about the longest path of a socket, for which containerd allows 104
// bytes. The kernel allows 107.
func (dockerd) fits(dir string) bool { return len(dir+"/run/containerd/containerd-debug.sock") <= 104 }

// configure makes the engine's own daemon.json, lest it reads the host's. Up
// to version 24 engines put a key into /etc/docker unless they are told where
// else; later ones know neither the key nor the word, and take none unknown.
func (d dockerd) configure(ctx context.Context, s site) error {
	config := map[string]string{}
	out, err := exec.CommandContext(ctx, d.program, "--version").Output()
	if err != nil {
		return fmt.Errorf("ask dockerd for its version: %w", err)
	}
	var major int
	if _, err := fmt.Sscanf(string(out), "Docker version %d.", &major); err == nil && major < 25 {
		config["deprecated-key-path"] = filepath.Join(s.dir, "key.json")
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(s.config(), b, 0o600)
}

func (d dockerd) command(s site, live bool) *exec.Cmd {
	args := []string{
		"--config-file", s.config(),
		"--data-root", s.dataRoot(),
		"--exec-root", s.execRoot(),
		"--host", "unix://" + s.socket(),
		"--pidfile", s.pidfile(),
		"--bridge", "none",
		"--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
		"--userland-proxy=false",
		// systemd's driver would put containers where systemd wants them; a
		// host without systemd has no other than this one anyway.
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/" + s.group,
	}
	if live {
		args = append(args, "--live-restore")
	}
	cmd := exec.Command(d.program, args...)
	cmd.Env = environment(s)
	if d.tools != "" {
		cmd.Env = append(cmd.Env, "PATH="+d.tools+":"+os.Getenv("PATH"))
	}
	return cmd
}

func (dockerd) parent(site) string      { return "" }
func (dockerd) cgroup(id string) string { return id }

type podman struct{ program, runc string }

// fits is about the folder that Podman puts its sockets into, and allows 50
// bytes.
func (podman) fits(dir string) bool { return len(dir+"/run") <= 50 }

// configure makes files in place of the host's /etc/containers/*.conf.
func (p podman) configure(_ context.Context, s site) error {
	return errors.Join(
		// The limits that it gives containers by default are more than root may
		// give without CAP_SYS_RESOURCE. Its locks are in the shared memory of
		// the whole host unless they are files.
		os.WriteFile(s.config(), []byte(`[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
lock_type = "file"
`), 0o600),
		os.WriteFile(filepath.Join(s.dir, "storage.conf"), fmt.Appendf(nil, "[storage]\ndriver = %q\ngraphroot = %q\nrunroot = %q\n",
			"vfs", s.dataRoot(), s.execRoot()), 0o600),
		os.WriteFile(filepath.Join(s.dir, "registries.conf"), nil, 0o600),
		// The option that hands runc a folder of ours is forgotten by podman
		// when it cleans up after a container (4.3). A script cannot be.
		os.WriteFile(p.runtime(s), []byte("#!/bin/sh\nexec '"+p.runc+"' --root '"+filepath.Join(s.dir, "runc-root")+"' \"$@\"\n"), 0o700),
	)
}

func (podman) runtime(s site) string { return filepath.Join(s.dir, "runc") }

func (p podman) command(s site, _ bool) *exec.Cmd {
	cmd := exec.Command(p.program,
		"--root", s.dataRoot(),
		"--runroot", s.execRoot(),
		"--tmpdir", filepath.Join(s.dir, "tmp"),
		"--volumepath", filepath.Join(s.dir, "volumes"),
		"--network-config-dir", filepath.Join(s.dir, "networks"),
		"--runtime", p.runtime(s),
		"--cgroup-manager", "cgroupfs",
		"--storage-driver", "vfs",
		"--events-backend", "file",
		"system", "service", "--time", "0", "unix://"+s.socket(),
	)
	cmd.Env = environment(s,
		"CONTAINERS_CONF="+s.config(),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(s.dir, "storage.conf"),
		"CONTAINERS_REGISTRIES_CONF="+filepath.Join(s.dir, "registries.conf"))
	return cmd
}

func (podman) parent(s site) string    { return "/" + s.group }
func (podman) cgroup(id string) string { return "libpod-" + id }
