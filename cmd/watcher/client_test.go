package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// A street is an engine with a watcher that serves docker run, and programs that use the engine through its own client.
type street struct {
	*daemon
	t     *testing.T
	e     *dockertest.Engine
	scene string   // the label of the containers that are this test's
	env   []string // of all that use the client
}

var scenes atomic.Int64

func newStreet(t *testing.T, d *daemon, e *dockertest.Engine) *street {
	t.Helper()
	needTool(t, "docker", "docker.io")
	s := &street{daemon: d, t: t, e: e, scene: fmt.Sprintf("scene=%d", scenes.Add(1))}
	s.env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "DOCKER_CONFIG="+t.TempDir(), "DOCKER_CONTEXT=", "TERM=dumb")
	e.Image(t)
	t.Cleanup(func() {
		// The clients end with their containers.
		for _, id := range s.all() {
			_ = e.Client().ContainerRemove(context.WithoutCancel(t.Context()), id, forced)
		}
	})
	return s
}

// line is a call of the client. What is behind -- goes to the program in the container.
func (s *street) line(args ...string) []string {
	options, rest := args, []string(nil)
	if i := slices.Index(args, "--"); i >= 0 {
		options, rest = args[:i], args[i+1:]
	}
	line := append([]string{"docker", "run", "--network", "none", "--label", s.scene}, options...)
	return append(append(line, dockertest.ImageName), rest...)
}

// all are the containers of this test.
func (s *street) all() (ids []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), patience)
	defer cancel()
	list, err := s.e.Client().ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", s.scene))})
	if err != nil {
		s.t.Errorf("list the containers of %s: %v", s.scene, err)
	}
	for _, line := range list {
		ids = append(ids, line.ID)
	}
	return ids
}

// started waits until one more container of this test runs than those that are known, and returns it.
func (s *street) started(known ...string) (id string) {
	s.t.Helper()
	await(s.t, "a container has been started", func() bool {
		fresh := slices.DeleteFunc(s.all(), func(id string) bool { return slices.Contains(known, id) })
		if len(fresh) > 0 {
			id = fresh[0]
		}
		return id != "" && s.e.Running(s.t, id)
	})
	return id
}

// ready waits until the program in a container handles signals, which it says by its name.
func (s *street) ready(id string) {
	s.t.Helper()
	await(s.t, "the program in the container is ready", func() bool {
		c, _ := s.e.Inspect(s.t, id)
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.State.Pid))
		return err == nil && string(name) == "ready\n"
	})
}

// honest has the daemon reap something else: by then it has had all it needs to make a mistake.
func (s *street) honest() {
	s.t.Helper()
	o := processtest.StartOwner(s.t)
	id := s.e.Run(s.t, dockertest.ContainerOptions{Labels: ownedBy(o.Label()), NotStarted: true})
	s.knows(id)
	o.Kill()
	s.event(watch.EventReaped, id)
}

func (s *street) stays(id, why string) {
	s.t.Helper()
	s.honest()
	if !s.e.Running(s.t, id) {
		s.t.Errorf("the container does not run any more, %s", why)
	}
}

// goes waits until a container is reaped, since who owned it is dead.
func (s *street) goes(id string) {
	s.t.Helper()
	r := s.event(watch.EventReaped, id)
	s.e.WaitGone(s.t, id)
	if got := r.text(watch.KeyReason); got != string(reap.OwnerExited) || r.text(watch.KeyOwner) != "client" {
		s.t.Errorf("it was reaped because %s of %s, want %s of its client", got, r.text(watch.KeyOwner), reap.OwnerExited)
	}
	stop, _ := r.micros(watch.KeyStopUS)
	gone, _ := r.micros(watch.KeyGoneUS)
	s.t.Logf("stopped after %s, gone after %s", stop, gone)
}

// An actor is a program that uses the client, or the client itself.
type actor struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{}
}

// start starts a program, to whose standard input we hold the other end.
func (s *street) start(line ...string) *actor {
	s.t.Helper()
	a := &actor{t: s.t, cmd: exec.Command(line[0], line[1:]...), ended: make(chan struct{})}
	a.cmd.Env, a.cmd.Dir = s.env, s.t.TempDir()
	stdin, err := a.cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	a.stdin = stdin
	// A file and no pipe, which those who survive the program would hold open.
	log, err := os.Create(filepath.Join(a.cmd.Dir, "out"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(a.ended)
		_ = a.cmd.Wait() // how it ends is its test's business
	}()
	s.t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		<-a.ended
		if text, err := os.ReadFile(filepath.Join(a.cmd.Dir, "out")); err == nil && s.t.Failed() && len(text) > 0 {
			s.t.Logf("%s says:\n%s", line[0], text)
		}
	})
	return a
}

func (a *actor) kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	<-a.ended
}

// wait waits until it ends by itself.
func (a *actor) wait() int {
	a.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(patience):
		a.t.Fatalf("%s did not end within %s", a.cmd.Path, patience)
	}
	return a.cmd.ProcessState.ExitCode()
}

// client holds the engine's client that the actor started, or a program in between.
func (a *actor) client() *held {
	a.t.Helper()
	var found *held
	await(a.t, "the client runs", func() bool {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			a.t.Fatal(err)
		}
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil || !isClient(pid) || !descends(pid, a.cmd.Process.Pid) {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			// Whoever it is now, it stays so.
			if isClient(pid) && descends(pid, a.cmd.Process.Pid) {
				found = &held{a.t, pid, fd}
				return true
			}
			_ = unix.Close(fd)
		}
		return false
	})
	a.t.Cleanup(func() {
		_ = unix.PidfdSendSignal(found.fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(found.fd)
	})
	return found
}

func isClient(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && filepath.Base(exe) == "docker"
}

func descends(pid, from int) bool {
	for range 16 {
		if pid == from {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if pid, err = strconv.Atoi(fields[4-3]); err != nil || pid <= 1 {
			return false
		}
	}
	return false
}

// A held is a process that is nobody's child of ours, held by a pidfd.
type held struct {
	t   *testing.T
	pid int
	fd  int
}

func (h *held) signal(sig unix.Signal) {
	h.t.Helper()
	if err := unix.PidfdSendSignal(h.fd, sig, nil, 0); err != nil {
		h.t.Fatalf("%v to %d: %v", sig, h.pid, err)
	}
}

func (h *held) alive() bool { return !exited(h.fd) }

// Agents that start their MCP server as such programs do: it is spoken to over its standard input, until ours ends.
var agents = []struct{ name, program, option, script string }{
	{"python3, over a pipe", "python3", "-c", `
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
sys.stdin.read()`},
	{"node, over a socket", "node", "-e", `
const server = require("node:child_process").spawn(process.argv[1], process.argv.slice(2), {stdio: ["pipe", "ignore", "inherit"]});
process.stdin.resume();
process.stdin.on("end", () => process.exit());`},
	{"bash, as a coprocess", "bash", "-c", `
coproc "$0" "$@"
read line`},
}

func (s *street) agent(i int, line ...string) *actor {
	s.t.Helper()
	needTool(s.t, agents[i].program, "python3 nodejs bash")
	return s.start(append([]string{agents[i].program, agents[i].option, agents[i].script}, line...)...)
}

const python, node = 0, 1

// An agent whose child inherits what it has open, as one that puts itself into the background does. It says its PID.
const forker = `
import os, subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
os.set_inheritable(server.stdin.fileno(), True)
print(subprocess.Popen(["sleep", "1000"], close_fds=False, start_new_session=True).pid, flush=True)
sys.stdin.read()`

func TestDockerRun(t *testing.T) {
	e := dockertest.Shared(t)
	whole := t
	d := startDaemon(t, e, "--preset", "docker-run")
	scene := func(name string, play func(t *testing.T, s *street)) {
		t.Run(name, func(t *testing.T) { play(t, newStreet(t, d, e)) })
	}
	scene("an agent is killed, and a child of it still speaks to the client", func(t *testing.T, s *street) {
		needTool(t, "python3", "python3")
		a := s.start(append([]string{"python3", "-c", forker}, s.line("--rm", "-i")...)...)
		id := s.started()
		heir := &held{t: t}
		await(t, "the agent says which child it has", func() bool {
			said, err := os.ReadFile(filepath.Join(a.cmd.Dir, "out"))
			if err != nil {
				return false
			}
			_, err = fmt.Sscanf(string(said), "%d\n", &heir.pid)
			return err == nil
		})
		fd, err := unix.PidfdOpen(heir.pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		heir.fd = fd
		t.Cleanup(func() {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			_ = unix.Close(fd)
		})
		s.knows(id)
		a.kill()
		s.stays(id, "and somebody speaks to its client")
		heir.signal(unix.SIGKILL)
		s.goes(id)
	})
	for i, kind := range agents {
		scene("an agent is killed: "+kind.name, func(t *testing.T, s *street) {
			a := s.agent(i, s.line("--rm", "-i")...)
			id, client := s.started(), a.client()
			s.knows(id)
			s.stays(id, "and its agent lives")
			// The client hears nothing of it: it is alive when the container goes.
			client.signal(unix.SIGSTOP)
			a.kill()
			s.goes(id)
			if !client.alive() {
				t.Error("the client did not survive its agent, so it was not the agent's death that counted")
			}
			client.signal(unix.SIGCONT)
		})
		scene("a client is killed: "+kind.name, func(t *testing.T, s *street) {
			a := s.agent(i, s.line("--rm", "-i")...)
			id, client := s.started(), a.client()
			s.knows(id)
			client.signal(unix.SIGKILL)
			s.goes(id)
		})
	}
	scene("an agent ends", func(t *testing.T, s *street) {
		a := s.agent(python, s.line("--rm", "-i")...)
		id := s.started()
		s.knows(id)
		if err := a.stdin.Close(); err != nil {
			t.Fatal(err)
		}
		a.wait()
		s.goes(id)
	})
	scene("a shell in between", func(t *testing.T, s *street) {
		a := s.agent(python, "sh", "-c", strings.Join(s.line("--rm", "-i"), " ")+"; true") // or else it would exec
		id := s.started()
		s.knows(id)
		s.stays(id, "and its agent lives")
		a.kill()
		s.goes(id)
	})
	scene("no agent", func(t *testing.T, s *street) {
		a := s.start(s.line("--rm")...)
		id := s.started()
		s.knows(id)
		s.stays(id, "and its client lives")
		a.kill()
		s.goes(id)
	})
	scene("the container ends", func(t *testing.T, s *street) {
		reaped := func() int {
			return len(s.records(func(r record) bool {
				return r.text(watch.KeyEvent) == watch.EventReaped && r.text(watch.KeyOwner) == "client"
			}))
		}
		before := reaped()
		if code := s.start(s.line("--rm", "-i", "--", "exit", "3")...).wait(); code != 3 {
			t.Errorf("the client ends with %d, want 3", code)
		}
		await(t, "the engine has removed it", func() bool { return len(s.all()) == 0 })
		s.honest()
		if after := reaped(); after != before {
			t.Errorf("%d reaps were told of a container that ended by itself", after-before)
		}
	})
	scene("a container that has ended is left to be looked at", func(t *testing.T, s *street) {
		a := s.agent(python, s.line("-i", "--", "exit", "3")...)
		var id string
		await(t, "it has ended", func() bool {
			ids := s.all()
			if len(ids) == 0 {
				return false
			}
			id = ids[0]
			c, ok := e.Inspect(t, id)
			return ok && c.State.Status == "exited"
		})
		a.kill()
		s.honest()
		if c, ok := e.Inspect(t, id); !ok || c.State.ExitCode != 3 {
			t.Errorf("the container that ended with 3 is there: %t", ok)
		}
	})
	scene("detached", func(t *testing.T, s *street) {
		a := s.agent(python, s.line("--rm", "-d")...)
		id := s.started()
		a.kill()
		s.stays(id, "and it was started with -d")
		if _, listed := rowsOf(t, e, "list", "--preset", "docker-run")[id]; listed {
			t.Error("list shows what was started with -d")
		}
	})
	// The client passes the hangup on, of which most programs end. Of one that does not nothing is known: who sat at the
	// terminal may also have left it by the detach keys.
	scene("a terminal that closes", func(t *testing.T, s *street) {
		needTool(t, "script", "bsdutils")
		a := s.start("script", "-qfec", strings.Join(s.line("--rm", "-it"), " "), "/dev/null")
		s.ready(s.started())
		a.kill()
		await(t, "it has ended by the hangup", func() bool { return len(s.all()) == 0 })
	})
	scene("a terminal that closes, and a program that does not care", func(t *testing.T, s *street) {
		a := s.start("script", "-qfec", strings.Join(s.line("--rm", "-it", "--", "deaf"), " "), "/dev/null")
		id, client := s.started(), a.client()
		s.ready(id)
		a.kill()
		s.stays(id, "and it has a terminal")
		client.signal(unix.SIGKILL)
		s.stays(id, "and it has a terminal")
		if _, listed := rowsOf(t, e, "list", "--preset", "docker-run")[id]; listed {
			t.Error("list shows what has a terminal")
		}
	})
	scene("a pipe that ends", func(t *testing.T, s *street) {
		a := s.start("sh", "-c", "echo x | "+strings.Join(s.line("--rm", "-i"), " ")+"; true")
		id, client := s.started(), a.client()
		s.knows(id)
		s.stays(id, "and its client lives, although nobody speaks to it any more")
		client.signal(unix.SIGKILL)
		s.goes(id)
	})
	scene("two servers of two agents", func(t *testing.T, s *street) {
		first := s.agent(python, s.line("--rm", "-i")...)
		one := s.started()
		s.knows(one)
		second := s.agent(node, s.line("--rm", "-i")...)
		two := s.started(one)
		s.knows(two)
		first.kill()
		s.goes(one)
		s.stays(two, "and its agent lives")
		second.kill()
		s.goes(two)
	})
	scene("two servers of two agents at once", func(t *testing.T, s *street) {
		first, second := s.agent(python, s.line("--rm", "-i")...), s.agent(node, s.line("--rm", "-i")...)
		one := s.started()
		two := s.started(one)
		s.knows(one)
		s.knows(two)
		first.kill()
		s.honest()
		left := s.all()
		t.Logf("of two containers that were made at once, %d are left when one agent is dead", len(left))
		if len(left) == 0 {
			t.Error("the container of the agent that lives is gone")
		}
		second.kill()
		for _, id := range []string{one, two} {
			s.goes(id)
		}
	})
	scene("another's container, made through the API", func(t *testing.T, s *street) {
		a := s.agent(python, s.line("--rm", "-i")...)
		id := s.started()
		s.knows(id)
		api := e.Run(t, dockertest.ContainerOptions{Labels: map[string]string{"made": "by an API"}})
		a.kill()
		s.goes(id)
		s.stays(api, "and it has no client")
	})
	scene("protected", func(t *testing.T, s *street) {
		a := s.agent(python, s.line("--rm", "-i", "--label", "com.docker.compose.project=web")...)
		id := s.started()
		a.kill()
		s.stays(id, "and it is another manager's")
	})
	for _, finisher := range []string{"daemon", "--once"} {
		scene("watcher is away: "+finisher, func(t *testing.T, s *street) {
			a, b := s.agent(python, s.line("--rm", "-i")...), s.agent(node, s.line("--rm", "-i", "--label", "kept=1")...)
			one := s.started()
			two := s.started(one)
			s.knows(one)
			s.knows(two)
			gone, kept := one, two
			if c, _ := e.Inspect(t, one); c.Config.Labels["kept"] != "" {
				gone, kept = two, one
			}
			d.kill()
			a.kill()
			if finisher == "--once" {
				r := on(whole, e, "--once", "--preset", "docker-run", "--state-dir", stateOf(whole))
				if r.code != exitDone || e.Exists(t, gone) {
					x := on(whole, e, "explain", gone, "--preset", "docker-run", "--state-dir", stateOf(whole))
					t.Errorf("--once exits %d, the container is there: %t: %s%s", r.code, e.Exists(t, gone), r.stderr, x.stdout)
				}
			}
			d = startDaemon(whole, e, "--preset", "docker-run")
			s.daemon = d
			if finisher == "daemon" {
				s.goes(gone)
			}
			s.knows(kept)
			s.stays(kept, "and its agent lives")
			b.kill()
			s.goes(kept)
			notes, err := os.ReadDir(filepath.Join(stateOf(whole), clientsDir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			t.Logf("%d note(s) left", len(notes))
		})
	}
}

// What the preset costs on a host where much else runs: one look at all containers, with it and without.
func TestDockerRunCosts(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	s := newStreet(t, d, e)
	for range 200 {
		s.start("sleep", "600")
	}
	s.start(s.line("--rm", "-i")...)
	s.started()
	look := func(args ...string) time.Duration {
		var times []time.Duration
		for range 9 {
			begin := time.Now()
			if r := on(t, e, append([]string{"list"}, args...)...); r.code != exitDone {
				t.Fatalf("list exits %d: %s", r.code, r.stderr)
			}
			times = append(times, time.Since(begin))
		}
		return percentile(times, 50)
	}
	without, with := look(), look("--preset", "docker-run")
	t.Logf("watcher list on a host with 200 other processes and one container: %s without the preset, %s with it",
		without.Round(100*time.Microsecond), with.Round(100*time.Microsecond))
}
