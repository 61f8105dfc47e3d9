//go:build linux

package dockertest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"
)

// doomed makes this program start an engine with containers, name its folder
// and wait to be killed.
const doomed = "WATCHER_DOCKERTEST_DOOMED"

func TestMain(m *testing.M) {
	if os.Getenv(doomed) != "" {
		doom()
	}
	os.Exit(Main(m))
}

// leftovers is all on this host that still tells of an engine.
func leftovers(t *testing.T, s site, shims []string) []string {
	t.Helper()
	var found []string
	if _, err := os.Lstat(s.dir); err == nil {
		found = append(found, "folder "+s.dir)
	}
	mounts, err := s.mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		found = append(found, "mount "+m)
	}
	groups, err := s.cgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		found = append(found, "cgroup "+g)
	}
	for _, path := range shims {
		if _, err := os.Lstat(path); err == nil {
			found = append(found, "socket "+path)
		}
	}
	for _, what := range []string{"cmdline", "cgroup"} {
		files, err := filepath.Glob("/proc/[0-9]*/" + what)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, _ := os.ReadFile(file) // the process may be gone by now
			if strings.HasPrefix(file, fmt.Sprintf("/proc/%d/", os.Getpid())) || !bytes.Contains(b, []byte(s.group)) {
				continue
			}
			// A zombie's cgroup is listed until PID 1 has waited for it.
			if stat, _ := os.ReadFile(filepath.Dir(file) + "/stat"); bytes.Contains(stat, []byte(") Z ")) || len(stat) == 0 {
				continue
			}
			found = append(found, fmt.Sprintf("process %s: %q", file, bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func shimSockets(t *testing.T, s site) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.execRoot(), "containerd/daemon/io.containerd.runtime.v2.task/*/*/address"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		path := string(shimSocket.Find(b))
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("shim socket: %v", err)
		}
		found = append(found, path)
	}
	return found
}

func TestModes(t *testing.T) {
	e := Shared(t)

	stop := func(id string, seconds int) time.Duration {
		start := time.Now()
		stopContainer(t, e, id, seconds)
		return time.Since(start)
	}
	sleeper := e.Run(t, ContainerOptions{Labels: map[string]string{"who": "me"}})
	e.WaitRunning(t, sleeper)
	if c, _ := e.Inspect(t, sleeper); c.Config.Labels["who"] != "me" || e.PIDs(t, sleeper)[0] != c.State.Pid {
		t.Errorf("labels %v, init %d, processes %v", c.Config.Labels, c.State.Pid, e.PIDs(t, sleeper))
	}
	if took := stop(sleeper, 20); took > 10*time.Second {
		t.Errorf("sleep took %v to end on SIGTERM", took)
	}

	deaf := e.Run(t, ContainerOptions{Args: []string{"deaf"}})
	if took := stop(deaf, 1); took < time.Second {
		t.Errorf("deaf ended %v after SIGTERM", took)
	}

	exits := e.Run(t, ContainerOptions{Args: []string{"exit", "7"}})
	e.WaitStopped(t, exits)
	if c, _ := e.Inspect(t, exits); c.State.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", c.State.ExitCode)
	}

	family := e.Run(t, ContainerOptions{Args: []string{"spawn", "3"}, PIDMode: "host"})
	var alone int
	pids := e.WaitPIDs(t, family, 4)
	for _, pid := range pids {
		if sid, err := unix.Getsid(pid); err == nil && sid == pid {
			alone++
		}
	}
	if alone != 2 { // init and the aloof child
		t.Errorf("%d of the processes %v lead a session, want 2", alone, pids)
	}

	vanishes := e.Run(t, ContainerOptions{Args: []string{"exit", "0"}, AutoRemove: true})
	e.WaitGone(t, vanishes)

	created := e.Run(t, ContainerOptions{Name: "not-started", NotStarted: true, Volumes: []string{"/data"}})
	if !e.Exists(t, "not-started") || e.Running(t, created) {
		t.Error("a container that was not started should exist and not run")
	}
	if c, _ := e.Inspect(t, created); len(c.Mounts) != 1 || c.Mounts[0].Name == "" {
		t.Errorf("mounts %v, want one anonymous volume", c.Mounts)
	}

	paused := e.Run(t, ContainerOptions{Paused: true})
	if c, _ := e.Inspect(t, paused); !c.State.Paused || !e.Running(t, paused) {
		t.Errorf("state %+v, want paused and running", c.State)
	}

	restarts := e.Run(t, ContainerOptions{Restart: "always"})
	before, _ := e.Inspect(t, restarts)
	kill(t, before.State.Pid, restarts)
	poll(t, func() bool {
		c, _ := e.Inspect(t, restarts)
		return c.RestartCount == 1 && c.State.Running
	}, func() string { return "the container did not come back" })
}

// kill ends a container's init from outside the engine, if it is still that.
func kill(t *testing.T, pid int, id string) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup"); err != nil || !strings.Contains(string(b), id) {
		t.Fatalf("%d is not of container %.12s: %s %v", pid, id, b, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
}

// TestAfterwards is promise E2, for an engine in each of its states.
func TestAfterwards(t *testing.T) {
	for _, tt := range []struct {
		sort Sort
		name string
		end  func(*testing.T, *Engine)
	}{
		{Docker, "running", func(*testing.T, *Engine) {}},
		{Docker, "killed", func(t *testing.T, e *Engine) { e.Kill(t) }},
		{Docker, "paused", func(t *testing.T, e *Engine) { e.Pause(t) }},
		{Docker, "stopped", func(t *testing.T, e *Engine) { e.Stop(t) }},
		{Newest, "running", func(*testing.T, *Engine) {}},
		{Newest, "killed", func(t *testing.T, e *Engine) { e.Kill(t) }},
		{Podman, "running", func(*testing.T, *Engine) {}},
		{Podman, "killed", func(t *testing.T, e *Engine) { e.Kill(t) }},
	} {
		t.Run(fmt.Sprintf("%s %s", tt.sort, tt.name), func(t *testing.T) {
			t.Parallel()
			tt.sort.need(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begin := time.Now()
			e, err := Launch(ctx, t.TempDir(), os.Stderr, Of(tt.sort))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = e.Close() })
			up := time.Since(begin)
			e.Image(t)
			imported := time.Since(begin) - up
			e.Run(t, ContainerOptions{Args: []string{"spawn", "2"}, PIDMode: "host"})
			e.Run(t, ContainerOptions{})
			if tt.name != "stopped" { // that would only cost ten seconds
				e.Run(t, ContainerOptions{Args: []string{"deaf"}, Restart: "always"})
				e.Run(t, ContainerOptions{Args: []string{"deaf"}, Paused: true})
			}
			shims := shimSockets(t, e.site)
			if before := leftovers(t, e.site, shims); len(shims) < 2 && tt.sort != Podman || len(before) < 20 {
				t.Errorf("found too little of a living engine: %q, sockets %q", before, shims)
			}
			begin = time.Now()
			tt.end(t, e)
			end := time.Since(begin)
			begin = time.Now()
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			t.Logf("start %v, image %v, %s %v, close %v", up, imported, tt.name, end, time.Since(begin))
			if left := leftovers(t, e.site, shims); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
			if err := e.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
		})
	}
}

// TestDoomed is promise E3: a SIGKILL to the program leaves nothing either.
func TestDoomed(t *testing.T) {
	needRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), doomed+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dir = strings.TrimSpace(dir)
	s := site{dir: dir, group: filepath.Base(dir)}
	shims := shimSockets(t, s)
	if before := leftovers(t, s, shims); len(before) < 10 {
		t.Errorf("found too little of a living engine: %q", before)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	var left []string
	poll(t, func() bool {
		left = leftovers(t, s, shims)
		return len(left) == 0
	}, func() string { return fmt.Sprintf("there is still %q", left) })
}

func doom() {
	ctx := context.Background()
	e, err := Launch(ctx, os.Getenv(doomed), os.Stderr)
	if err == nil {
		_, err = e.Create(ctx, ContainerOptions{Args: []string{"spawn", "2"}})
	}
	if err == nil {
		_, err = e.Create(ctx, ContainerOptions{Paused: true})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(e.Dir())
	<-ctx.Done() // never
}

// TestRestart holds what the package comment says of an engine's containers.
func TestRestart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		opts  []Option
		end   func(*Engine, testing.TB)
		alive bool // between the end and the start
		after bool // and then
	}{
		{"kill", nil, (*Engine).Kill, true, false},
		{"kill newest", []Option{Of(Newest)}, (*Engine).Kill, true, false},
		{"kill podman", []Option{Of(Podman)}, (*Engine).Kill, true, true},
		{"kill live", []Option{LiveRestore()}, (*Engine).Kill, true, true},
		{"stop", nil, (*Engine).Stop, false, false},
		{"stop live", []Option{LiveRestore()}, (*Engine).Stop, true, true},
		{"stop podman", []Option{Of(Podman)}, (*Engine).Stop, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := Start(t, tt.opts...)
			id := e.Run(t, ContainerOptions{})
			first := e.PID()
			begin := time.Now()
			tt.end(e, t)
			ended := time.Since(begin)
			if e.PID() != 0 {
				t.Errorf("PID %d of an engine that has ended", e.PID())
			}
			pids := e.PIDs(t, id)
			if alive := len(pids) > 0; alive != tt.alive {
				t.Errorf("after the engine's end the container has processes %v, want some: %t", pids, tt.alive)
			}
			begin = time.Now()
			e.Restart(t)
			t.Logf("end %v, start again %v", ended, time.Since(begin))
			if again := e.PID(); again == first || again == 0 {
				t.Errorf("PID %d after %d", again, first)
			}
			if e.Running(t, id) != tt.after {
				t.Errorf("after the restart running is %t, want %t", !tt.after, tt.after)
			}
			if now := e.PIDs(t, id); tt.after && !slices.Equal(now, pids) || !tt.after && len(now) > 0 {
				t.Errorf("processes %v, were %v", now, pids)
			}
			e.WaitRunning(t, e.Run(t, ContainerOptions{})) // it works as before
		})
	}
}

func TestPauseAndResume(t *testing.T) {
	e := Start(t)
	id := e.Run(t, ContainerOptions{})
	e.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := e.Client().ContainerInspect(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused engine answered: %v", err)
	}
	if len(e.PIDs(t, id)) != 1 {
		t.Error("the container should live on")
	}
	e.Resume(t)
	e.WaitRunning(t, id)
}

func TestLaunchFails(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := Launch(ctx, dir, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("Launch = %v, want context.Canceled", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestSweepRefusesStrangers(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []site{{}, {dir: dir, group: filepath.Base(dir)}, {dir: dir + "/" + prefix + "1", group: ""}} {
		if err := s.sweep(); err == nil {
			t.Errorf("swept %+v", s)
		}
	}
}

func TestParseMounts(t *testing.T) {
	got := parseMounts(`42 27 254:0 /tmp/a /tmp/with\040blank rw,relatime shared:1 - ext4 /dev/vda rw
92 27 0:4 net:[4026532250] /run/netns/c8 rw - nsfs nsfs rw
garbage
`)
	want := []mount{{"/tmp/a", "/tmp/with blank", "ext4"}, {"net:[4026532250]", "/run/netns/c8", "nsfs"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func stopContainer(t *testing.T, e *Engine, id string, seconds int) {
	t.Helper()
	if err := e.Client().ContainerStop(t.Context(), id, container.StopOptions{Timeout: &seconds}); err != nil {
		t.Fatal(err)
	}
}
