package process_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

const (
	// roleVariable has this binary play a role instead of running tests.
	roleVariable = "WATCHER_PROCESS_ROLE"
	// noPidfdVariable has it run them in a world without pidfds.
	noPidfdVariable = "WATCHER_PROCESS_NO_PIDFD"
)

func TestMain(m *testing.M) {
	processtest.Main()
	if role := os.Getenv(roleVariable); role != "" {
		play(role)
		return
	}
	if withoutPidfds() {
		must(processtest.WithoutPidfds())
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withoutPidfds() bool { return os.Getenv(noPidfdVariable) != "" }

// play is what runs inside of a process that startRole has started: it gets ready, says so, and ends with its input.
func play(role string) {
	ready := "ready"
	switch role {
	case "wait":
	case "thread killed":
		killThread()
	case "new host":
		// We are PID 1 of a namespace, with the /proc of the one above and, in the folder named by our argument, our own.
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("proc", os.Args[1], "proc", 0, ""))
		_, foreign := process.NewHost("/proc")
		own, err := process.NewHost(os.Args[1])
		must(err)
		initial, err := own.InitialNamespace()
		must(err)
		ready = fmt.Sprintf("refused %t, initial %t", foreign != nil, initial)
	default:
		panic("unknown role " + role)
	}
	fmt.Println(ready)
	_, err := io.Copy(io.Discard, os.Stdin)
	must(err)
	// Without Go's farewell, which in a race-enabled binary takes a second.
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// killThread has the kernel end one thread of this process with SIGSYS, and returns when it has.
func killThread() {
	started := make(chan int)
	go func() {
		runtime.LockOSThread()
		must(processtest.Filter(unix.SYS_GETPGID, unix.SECCOMP_RET_KILL_THREAD, 0))
		started <- unix.Gettid()
		// Not a raw system call: the runtime must know that this thread is busy, or it waits for it for ever.
		_, _, _ = unix.Syscall(unix.SYS_GETPGID, 0, 0, 0)
	}()
	tid := <-started
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for {
		// Of a leader that has exited the zombie stays until the process has ended.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		<-beat.C
	}
}

// A child is a process of ours that plays a role.
type child struct {
	pid int
	say string // what it reported when it was ready
	end func() // tells it to end, and waits until it has been reaped
}

// startRole starts a child that lives until end is called, or the test binary dies.
func startRole(t *testing.T, role string, namespaces uintptr, args ...string) *child {
	t.Helper()
	if namespaces != 0 {
		needRoot(t)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: namespaces}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	c := &child{pid: cmd.Process.Pid, end: func() {
		if ended {
			return
		}
		ended = true
		_ = stdin.Close()
		_ = cmd.Wait()
	}}
	t.Cleanup(c.end)
	line := make([]byte, 128)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatalf("role %q: %v", role, err)
	}
	c.say = strings.TrimSpace(string(line[:n]))
	return c
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: namespaces and the choice of a PID need root")
	}
}

func newHost(t *testing.T) *process.Host {
	t.Helper()
	h, err := process.NewHost("/proc")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// aThread is the ID of a living thread of ours that is not the leader.
func aThread(t *testing.T) int {
	t.Helper()
	tids, done := make(chan int), make(chan struct{})
	t.Cleanup(func() { close(done) })
	for range 2 { // of two threads at most one is the leader
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			tids <- unix.Gettid()
			<-done
		}()
	}
	tid := 0
	for range 2 {
		if id := <-tids; id != os.Getpid() {
			tid = id
		}
	}
	return tid
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// exhaust leaves us without free descriptors until the result is called.
func exhaust(t *testing.T) (restore func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	// Descriptor 0 is taken; with a limit of 0 poll(2) would fail as well.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing within %v", patience)
		panic("unreachable")
	}
}
