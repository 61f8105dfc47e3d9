package process_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

func sight(t *testing.T, pid int) *process.Sight {
	t.Helper()
	s, err := newHost(t).Sight(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func fileOf(t *testing.T, path string) process.File {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return process.File{Device: st.Dev, Inode: st.Ino}
}

func TestSight(t *testing.T) {
	needPidfds(t)
	program := processtest.Program(t, "agent")
	o := processtest.StartProgram(t, program, "agent", "--id", "", "x y")
	s := sight(t, o.PID())
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", o.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if s.Process().Label() != o.Label() || s.Parent != os.Getpid() || s.Group != unix.Getpgrp() || s.Exe != program ||
		!slices.Equal(s.Argv, []string{"agent", "--id", "", "x y"}) || s.Cwd != cwd {
		t.Errorf("%+v", s)
	}
	if sid, _ := unix.Getsid(o.PID()); s.Session != sid {
		t.Errorf("session %d, want %d", s.Session, sid)
	}
	if s.CwdFile != fileOf(t, cwd) || s.Root != fileOf(t, "/") || s.Net != fileOf(t, "/proc/self/ns/net") {
		t.Errorf("cwd %v, root %v, network %v", s.CwdFile, s.Root, s.Net)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", o.PID()))
	if err != nil || len(s.Cgroups) != bytes.Count(groups, []byte("\n")) {
		t.Errorf("control groups %+v (%v), want those of %q", s.Cgroups, err, groups)
	}

	// What execs is still the same process, and looks otherwise.
	o.Become(processtest.Program(t, "other"), "other")
	again, err := s.Again()
	if err != nil || again.Process() != s.Process() || filepath.Base(again.Exe) != "other" || len(again.Argv) != 1 {
		t.Errorf("%+v (%v)", again, err)
	}
	o.LeaderGone()
	if again, err = s.Again(); err != nil || filepath.Base(again.Exe) != "other" || again.Cwd != cwd {
		t.Errorf("after the end of its leader: %+v (%v)", again, err)
	}
	o.Kill()
	o.Wait()
	if _, err := s.Again(); !errors.Is(err, process.ErrGone) {
		t.Errorf("after its end: %v, want ErrGone", err)
	}
	if _, err := newHost(t).Sight(o.PID()); !errors.Is(err, process.ErrGone) {
		t.Errorf("a new look after its end: %v, want ErrGone", err)
	}
}

// TestSightOfAZombie: it is dead, and what is left of it says nothing.
func TestSightOfAZombie(t *testing.T) {
	needPidfds(t)
	o := processtest.StartOwner(t)
	o.Zombie()
	if s, err := newHost(t).Sight(o.PID()); !errors.Is(err, process.ErrGone) {
		t.Errorf("%+v, %v, want ErrGone", s, err)
	}
}

func TestSightOfAThread(t *testing.T) {
	needPidfds(t)
	if s, err := newHost(t).Sight(aThread(t)); !errors.Is(err, process.ErrUnreadable) {
		t.Errorf("%+v, %v, want ErrUnreadable", s, err)
	}
}

// TestSightInAJail: where a process has its root tells which jail it is in, whatever paths it shows.
func TestSightInAJail(t *testing.T) {
	needPidfds(t)
	needRoot(t)
	jail := t.TempDir()
	c := startRole(t, "jailed", unix.CLONE_NEWNS|unix.CLONE_NEWNET, jail)
	s := sight(t, c.pid)
	if s.Root != fileOf(t, jail) || s.CwdFile != s.Root {
		t.Errorf("cwd %q %v, root %v; the jail is %v", s.Cwd, s.CwdFile, s.Root, fileOf(t, jail))
	}
	if net := fileOf(t, fmt.Sprintf("/proc/%d/ns/net", c.pid)); s.Net != net || net == fileOf(t, "/proc/self/ns/net") {
		t.Errorf("network %v, want %v", s.Net, net)
	}
}

// TestSightDenied: what may not be read is unreadable, and makes a complete look fail.
func TestSightDenied(t *testing.T) {
	needPidfds(t)
	needRoot(t)
	c := startRole(t, "stranger sights", 0)
	if c.say != "unreadable true, complete false" {
		t.Error(c.say)
	}
}

func TestSightOfADeletedFolder(t *testing.T) {
	needPidfds(t)
	dir := t.TempDir()
	cmd := exec.Command("sleep", "infinity")
	cmd.Dir = filepath.Join(dir, "workspace")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := os.Mkdir(cmd.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	was := sight(t, cmd.Process.Pid)
	if err := os.Remove(cmd.Dir); err != nil {
		t.Fatal(err)
	}
	s, err := was.Again()
	if err != nil || s.Cwd != cmd.Dir+" (deleted)" || s.CwdFile != was.CwdFile {
		t.Errorf("%+v (%v)", s, err)
	}
}

// start starts a command, and ends it with the test.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func TestFind(t *testing.T) {
	needPidfds(t)
	program := processtest.Program(t, "vmm")
	wanted := func(exe string, argv []string) bool {
		return strings.TrimSuffix(exe, " (deleted)") == program
	}
	find := func() (pids []int) {
		t.Helper()
		found, err := newHost(t).Find(t.Context(), wanted)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			pids = append(pids, s.Process().PID)
			_ = s.Close()
		}
		slices.Sort(pids)
		return pids
	}
	plain, headless, dead := processtest.StartProgram(t, program, "a"), processtest.StartProgram(t, program, "b"), processtest.StartProgram(t, program, "c")
	headless.LeaderGone()
	dead.Zombie()
	want := []int{plain.PID(), headless.PID()}
	slices.Sort(want)
	if got := find(); !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if got := find(); !slices.Equal(got, want) {
		t.Errorf("found %v when the program was deleted, want %v", got, want)
	}
	before := descriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := newHost(t).Find(ctx, wanted); !errors.Is(err, context.Canceled) || found != nil {
		t.Errorf("%v, %v when it was not wanted any more", found, err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, and %d before", after, before)
	}
}

// TestFindBesideOneWhoHides: nobody can make a look at all processes fail by what he runs: with more arguments than are read, or by
// an exec that does not end, as one of a file in a file system that does not answer.
func TestFindBesideOneWhoHides(t *testing.T) {
	needPidfds(t)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_STACK, &was); err != nil {
		t.Fatal(err)
	}
	raised := unix.Rlimit{Cur: min(64<<20, was.Max), Max: was.Max} // a quarter of that may be arguments (execve(2))
	if err := unix.Setrlimit(unix.RLIMIT_STACK, &raised); err != nil {
		t.Fatal(err)
	}
	crowd := startRole(t, "wait", 0, slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 40)...)
	if err := unix.Setrlimit(unix.RLIMIT_STACK, &was); err != nil {
		t.Fatal(err)
	}
	program := processtest.Program(t, "vmm")
	o := processtest.StartProgram(t, program, "a")
	m := newMock(t)
	m.real(o.PID())
	m.real(crowd.pid)
	for i := range 40 {
		// Of a process in an exec the arguments and the environment have no end yet.
		fields := strings.Repeat(" 0", 49)
		m.add(inMock+i, file{name: "exe", content: "/mnt/other", kind: link}, file{name: "cmdline"},
			file{name: "stat", content: fmt.Sprintf("%d (other) S%s", inMock+i, fields)})
	}
	begun := time.Now()
	found, err := m.host.Find(t.Context(), func(exe string, argv []string) bool { return exe == program })
	if err != nil || len(found) != 1 || found[0].Process().PID != o.PID() {
		t.Errorf("found %v, %v", found, err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, s := range found {
		_ = s.Close()
	}
	s := sight(t, crowd.pid)
	if len(s.Argv) < 2 || s.Argv[1] != strings.Repeat("x", 100<<10) || s.Exe == "" {
		t.Errorf("it runs %q with %d arguments", s.Exe, len(s.Argv))
	}
}

func TestAwaitEnd(t *testing.T) {
	needPidfds(t)
	h := newHost(t)
	o := processtest.StartOwner(t)
	p := sight(t, o.PID()).Process()
	for name, other := range map[string]watch.Process{
		"a later process has the number": {PID: p.PID, Start: p.Start - 1, Boot: p.Boot},
		"of another boot":                {PID: p.PID, Start: p.Start, Boot: "another"},
		"a thread has the number":        {PID: aThread(t), Start: 1, Boot: p.Boot},
	} {
		if err := h.AwaitEnd(t.Context(), other); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	if err := h.AwaitEnd(ctx, p); !errors.Is(err, reason) {
		t.Errorf("while it lives: %v", err)
	}
	ended := make(chan error)
	go func() { ended <- h.AwaitEnd(t.Context(), p) }()
	o.Kill()
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
	o.Wait()
	if err := h.AwaitEnd(t.Context(), p); err != nil {
		t.Errorf("when it had been reaped: %v", err)
	}
}
