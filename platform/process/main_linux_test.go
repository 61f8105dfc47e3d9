package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
	"watcher/watch"
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
	case "restless":
		restless()
	case "stranger":
		drop()
		ready = lookAround(os.Args[1:]...)
	case "behind hidepid":
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Mount("proc", "/proc", "proc", 0, "hidepid=2"))
		ready = lookAround("*")
		drop()
		ready += "\t" + lookAround("*")
	case "jailed":
		must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(unix.Chroot(os.Args[1]))
		must(unix.Chdir("/"))
	case "stranger sights":
		host, err := process.NewHost("/proc")
		must(err)
		drop()
		_, err = host.Sight(os.Getppid())
		_, findErr := host.Find(context.Background(), func(string, []string) bool { return false })
		ready = fmt.Sprintf("unreadable %t, complete %t", errors.Is(err, process.ErrUnreadable), findErr == nil)
	case "stranger climbs":
		host, err := process.NewHost("/proc")
		must(err)
		drop()
		ready = climb(host, os.Getpid())
	case "climb":
		host, err := process.NewHost("/proc")
		must(err)
		ready = climb(host, os.Getpid())
	case "subreaper":
		must(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		ready = family("echo $$; sh -c 'echo $$; read line'; true", 2)
	case "headless parent":
		ready = family("echo $$; read line", 1)
		go func() {
			beat := time.NewTicker(time.Millisecond)
			for range beat.C {
				stat, err := os.ReadFile("/proc/self/stat")
				must(err)
				if strings.Contains(string(stat), ") Z ") {
					break
				}
			}
			fmt.Println(ready)
			_, err := io.Copy(io.Discard, os.Stdin)
			must(err)
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}()
		_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // the leader, see init
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

func init() {
	if os.Getenv(roleVariable) == "headless parent" {
		runtime.LockOSThread() // the leader runs main, and nothing else does
	}
}

// climb says what came of a look for all ancestors of a process.
func climb(host *process.Host, pid int) string {
	h, err := host.Open(pid)
	must(err)
	chain, err := h.Ancestors(func(process.Ancestor) bool { return false })
	return fmt.Sprintf("unreadable %t, chain %d", errors.Is(err, process.ErrUnreadable), len(chain))
}

// family starts a shell below us, that ends with our input, and returns what it says.
func family(script string, lines int) (said string) {
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdin = os.Stdin
	out, err := cmd.StdoutPipe()
	must(err)
	must(cmd.Start())
	in := bufio.NewReader(out)
	for range lines {
		line, err := in.ReadString('\n')
		must(err)
		said += strings.TrimSpace(line) + " "
	}
	return strings.TrimSpace(said)
}

// drop makes us nobody in particular.
func drop() {
	const nobody = 65534
	must(unix.Setgroups(nil))
	must(unix.Setgid(nobody))
	must(unix.Setuid(nobody))
}

// lookAround takes a complete look and says what it found: PROGRAM=PID=LIFE and so on.
func lookAround(programs ...string) string {
	host, err := process.NewHost("/proc")
	must(err)
	c := process.NewCensus(host, func(...watch.Event) {})
	defer c.Close()
	var all []watch.Program
	for _, text := range programs {
		p, err := watch.NewProgram(text)
		must(err)
		all = append(all, p)
	}
	c.Follow(all)
	events, err := c.List(context.Background())
	if err != nil {
		return "failed: " + err.Error()
	}
	found := "found"
	for _, ev := range events {
		listed := ev.(watch.ProgramListed)
		for _, m := range listed.Members {
			found += fmt.Sprintf(" %s=%d=%s", listed.Program, m.Process.PID, m.Life)
		}
	}
	return found
}

// restless execs for ever: the first path with its second argument as its only one, and the other way round.
func restless() {
	const variable = "WATCHER_PROCESS_WAYS"
	ways, given := os.Args[1:], os.Getenv(variable)
	if given != "" {
		ways = strings.Split(given, "\n")
	}
	if given != "" && os.Getenv(variable+"_SAID") == "" {
		fmt.Println("ready")
		must(os.Setenv(variable+"_SAID", "yes"))
	}
	must(os.Setenv(variable, strings.Join([]string{ways[2], ways[3], ways[0], ways[1]}, "\n")))
	must(unix.Exec(ways[0], ways[1:2], os.Environ()))
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
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: namespaces, Pdeathsig: unix.SIGKILL}
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
		if role == "restless" {
			_ = cmd.Process.Kill()
		}
		_ = stdin.Close()
		_ = cmd.Wait()
	}}
	t.Cleanup(c.end)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("role %q: %v", role, err)
	}
	c.say = strings.TrimSpace(line)
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

// mail is what was posted.
type mail struct {
	t      testing.TB
	mu     sync.Mutex
	posted []watch.Event
	more   chan struct{}
}

func newMail(t testing.TB) *mail { return &mail{t: t, more: make(chan struct{}, 1)} }

func (m *mail) post(events ...watch.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.posted = append(m.posted, events...)
	select {
	case m.more <- struct{}{}:
	default:
	}
}

// next waits for an event to be posted.
func (m *mail) next() watch.Event {
	m.t.Helper()
	timeout := time.After(patience)
	for {
		if ev := m.take(); ev != nil {
			return ev
		}
		select {
		case <-m.more:
		case <-timeout:
			m.t.Fatalf("nothing was posted within %v", patience)
		}
	}
}

// take returns the next event, or nil if there is none yet.
func (m *mail) take() watch.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.posted) == 0 {
		return nil
	}
	ev := m.posted[0]
	m.posted = m.posted[1:]
	return ev
}

// none demands that nothing is posted which has not been looked at.
func (m *mail) none(when string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.posted) > 0 {
		m.t.Errorf("%s: posted %+v", when, m.posted)
		m.posted = nil
	}
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing within %v", patience)
		panic("unreachable")
	}
}
