//go:build linux

package processtest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func stat(t *testing.T, pid int) (state, startTime string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return fields[0], fields[19]
}

func openPidfd(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// readable asks a pidfd whether its process has died, and waits at most so long
// for it.
func readable(t *testing.T, pidfd int, wait time.Duration) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(wait.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	}
}

func TestDeaths(t *testing.T) {
	for _, tt := range []struct {
		name   string
		die    func(*Owner)
		signal syscall.Signal
	}{
		{"kill", (*Owner).Kill, unix.SIGKILL},
		{"term", (*Owner).Term, unix.SIGTERM},
		{"abort", (*Owner).Abort, unix.SIGABRT},
		{"dump", (*Owner).Dump, unix.SIGABRT},
		{"exit", (*Owner).Exit, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := StartOwner(t)
			_, startTime := stat(t, o.PID())
			if !strings.HasPrefix(o.Label(), fmt.Sprintf("%d:%s:", o.PID(), startTime)) || len(o.Label()) < 36 {
				t.Errorf("label %q of process %d, started %s", o.Label(), o.PID(), startTime)
			}
			select {
			case <-o.Dead():
				t.Error("dead before its time")
			default:
			}
			tt.die(o)
			ws := o.Wait().Sys().(syscall.WaitStatus)
			if tt.signal != 0 && ws.Signal() != tt.signal || tt.signal == 0 && (!ws.Exited() || ws.ExitStatus() != 0) {
				t.Errorf("wait status %#x, want signal %v", ws, tt.signal)
			}
			if core := ws.CoreDump(); core != (tt.name == "dump") {
				pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
				t.Errorf("core dumped: %t (core_pattern %s)", core, pattern)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", o.PID())); err == nil {
				t.Error("not reaped")
			}
			o.Kill() // harmless
		})
	}
}

func TestZombie(t *testing.T) {
	o := StartOwner(t)
	pidfd := openPidfd(t, o.PID())
	o.Zombie()
	if state, _ := stat(t, o.PID()); state != "Z" || !readable(t, pidfd, 0) {
		t.Errorf("state %s, pidfd readable %t", state, readable(t, pidfd, 0))
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		t.Errorf("a zombie takes signal 0, got %v", err)
	}
}

func TestLeaderGone(t *testing.T) {
	o := StartOwner(t)
	pidfd := openPidfd(t, o.PID())
	label := o.Label()
	o.LeaderGone()
	if state, _ := stat(t, o.PID()); state != "Z" {
		t.Errorf("state %s, want Z", state)
	}
	if readable(t, pidfd, 0) {
		t.Error("the pidfd says dead while a worker lives")
	}
	if again, err := readLabel(o.PID()); again != label {
		t.Errorf("label %q (%v), was %q", again, err, label)
	}
	o.Exit()
	if !readable(t, pidfd, patience) {
		t.Error("the pidfd does not say dead after the worker's end")
	}
	if ws := o.Wait().Sys().(syscall.WaitStatus); !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("wait status %#x", ws)
	}
}

func TestExecFromWorker(t *testing.T) {
	for _, leaderGone := range []bool{false, true} {
		o := StartOwner(t)
		pidfd := openPidfd(t, o.PID())
		if leaderGone {
			o.LeaderGone()
		}
		for range 2 { // what was execed can do it again
			o.ExecFromWorker()
		}
		if again, err := readLabel(o.PID()); again != o.Label() {
			t.Errorf("label %q (%v), was %q", again, err, o.Label())
		}
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", o.PID())); string(line) != "processtest-execed\x00" {
			t.Errorf("command line %q %v", line, err)
		}
		if state, _ := stat(t, o.PID()); state == "Z" || readable(t, pidfd, 0) {
			t.Errorf("state %s, pidfd readable %t", state, readable(t, pidfd, 0))
		}
		o.Exit()
		if !readable(t, pidfd, patience) {
			t.Error("the pidfd does not say dead")
		}
		o.Wait()
	}
}

func TestProgram(t *testing.T) {
	program, other := Program(t, "agent"), Program(t, "other")
	script := filepath.Join(t.TempDir(), "job.sh")
	if err := os.WriteFile(script, []byte("#!"+program+" -x\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	runs := func(o *Owner, exe, argv string) {
		t.Helper()
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", o.PID()))
		if err != nil || got != exe {
			t.Errorf("executable %q (%v), want %q", got, err, exe)
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", o.PID()))
		if got := strings.ReplaceAll(string(line), "\x00", ";"); err != nil || got != argv {
			t.Errorf("command line %q (%v), want %q", got, err, argv)
		}
	}
	o := StartProgram(t, program, "-agent", "--all", "")
	runs(o, program, "-agent;--all;;")
	o.Become(other, "a b")
	runs(o, other, "a b;")
	if again, err := readLabel(o.PID()); again != o.Label() {
		t.Errorf("label %q (%v), was %q", again, err, o.Label())
	}
	runs(StartProgram(t, script, "ignored", "y"), program, program+";-x;"+script+";y;")
	absolute := filepath.Join(t.TempDir(), "here")
	if got := Program(t, absolute); got != absolute {
		t.Errorf("Program = %q, want %q", got, absolute)
	}
}

func TestReusePID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: choosing a PID needs root")
	}
	first := StartOwner(t)
	pidfd := openPidfd(t, first.PID())
	first.Kill()
	first.Wait()
	second := ReusePID(t, first.PID())
	if second.PID() != first.PID() || second.Label() == first.Label() {
		t.Errorf("%s after %s", second.Label(), first.Label())
	}
	if !readable(t, pidfd, 0) || readable(t, openPidfd(t, second.PID()), 0) {
		t.Error("the old pidfd must say dead, a new one alive")
	}
	second.Term()
	second.Wait()
}

func TestBig(t *testing.T) {
	const mib = 64
	o := StartBig(t, mib)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil || kib < mib<<10 {
		t.Errorf("%d KiB resident (%v), want %d MiB", kib, err, mib)
	}
}

func TestSwarmExits(t *testing.T) {
	forks := func() int {
		b, err := os.ReadFile("/proc/stat")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "\nprocesses ")
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const n = 2001
	before := forks()
	took := SwarmExits(t, n)
	if made := forks() - before; made < n {
		t.Errorf("%d forks on the host, want at least %d", made, n)
	}
	t.Logf("%d exits in %v, %.0f a second", n, took, n/took.Seconds())
}

// TestParentKilled shows that no owner outlives a test binary that was killed.
func TestParentKilled(t *testing.T) {
	const child = "WATCHER_PROCESSTEST_CHILD"
	if os.Getenv(child) != "" {
		plain, headless, execed := StartOwner(t), StartOwner(t), StartOwner(t)
		headless.LeaderGone()
		execed.ExecFromWorker()
		fmt.Println(plain.Label(), headless.Label(), execed.Label())
		select {}
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestParentKilled$")
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+t.TempDir()) // it cannot remove its own
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pidfds []int
	for label := range strings.FieldsSeq(line) {
		id, _, _ := strings.Cut(label, ":")
		pid, err := strconv.Atoi(id)
		if err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		pidfds = append(pidfds, openPidfd(t, pid))
		if now, err := readLabel(pid); now != label {
			t.Fatalf("owner %q is %q (%v)", label, now, err)
		}
	}
	if len(pidfds) != 3 {
		t.Fatalf("three owners in %q", line)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for i, fd := range pidfds {
		if !readable(t, fd, patience) {
			t.Errorf("owner %d outlived its test binary", i)
		}
	}
}
