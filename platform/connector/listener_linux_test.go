package connector

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// soon is how long what must happen may take on a machine that is busy with other tests.
const soon = 30 * time.Second

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: SO_RCVBUFFORCE, namespaces, and on kernels before 6.6 the subscription itself")
	}
}

func listen(tb testing.TB, opts Options) *Listener {
	tb.Helper()
	needRoot(tb)
	l, err := Listen(tb.Context(), opts)
	if err != nil {
		tb.Fatalf("%v (%s)", err, Hint(err))
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// A record is what a listener told, in order; a loss is an Exit of nobody.
type record struct {
	mu    sync.Mutex
	told  []Exit
	execs []Exec
	lost  []error
	more  chan struct{}
	ended chan error // what Run returned
	stop  func()
}

// follow runs l until the test ends.
func follow(t *testing.T, l *Listener) *record {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &record{more: make(chan struct{}, 1), ended: make(chan error, 1), stop: cancel}
	add := func(e Exit, loss error, execs ...Exec) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(execs) == 0 {
			r.told = append(r.told, e)
		}
		r.execs = append(r.execs, execs...)
		if loss != nil {
			r.lost = append(r.lost, loss)
		}
		select {
		case r.more <- struct{}{}:
		default:
		}
	}
	go func() {
		r.ended <- l.Run(ctx, Handlers{
			Exit: func(e Exit) { add(e, nil) },
			Exec: func(e Exec) { add(Exit{}, nil, e) },
			Lost: func(err error) { add(Exit{}, err) },
		})
		close(r.ended)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(soon):
			t.Errorf("still running %s after its context ended", soon)
		}
	})
	return r
}

func (r *record) all() ([]Exit, []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Exit(nil), r.told...), append([]error(nil), r.lost...)
}

// execsOf returns the execs of a process that have been told.
func (r *record) execsOf(pid int) (execs []Exec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.execs {
		if e.TGID == pid {
			execs = append(execs, e)
		}
	}
	return execs
}

// await waits for an event.
func (r *record) await(t *testing.T, what string, is func(Exit) bool) Exit {
	t.Helper()
	timeout := time.After(soon)
	for {
		told, _ := r.all()
		for _, e := range told {
			if is(e) {
				return e
			}
		}
		select {
		case <-r.more:
		case <-timeout:
			t.Fatalf("not told within %s: %s", soon, what)
		}
	}
}

// helper is the test binary in one of its other lives, not started yet.
func helper(t *testing.T, life string, args ...string) *exec.Cmd {
	t.Helper()
	// Not os.Executable: the folder in which it lies is closed to others than root.
	cmd := exec.Command("/proc/self/exe", args...)
	// With -race a process sleeps for a second before it exits.
	cmd.Env = append(os.Environ(), helperVariable+"="+life, "GORACE=atexit_sleep_ms=0")
	cmd.Dir = t.TempDir()
	cmd.Stderr = os.Stderr
	return cmd
}

// start starts a helper that lives until the function that it returns is called.
func start(t *testing.T, cmd *exec.Cmd, ready bool) (end func()) {
	t.Helper()
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
	end = sync.OnceFunc(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	if ready {
		if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return end
}

// exits runs a helper that ends at once and returns its PID.
func exits(t *testing.T, code string) int {
	t.Helper()
	cmd := helper(t, "exit", code)
	var status *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &status) {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func leaderOf(pid int) func(Exit) bool {
	return func(e Exit) bool { return e.TGID == pid && e.TID == pid && !e.Core }
}

func TestLevel(t *testing.T) {
	l := listen(t, Options{})
	want := Level{Mask: kernelAtLeast(t, 6, 6), Filter: true, ReceiveBuffer: 2 * defaultReceiveBuffer}
	if got := l.Level(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var number [2]int
	part := 0
	for _, c := range name.Release {
		if c == '.' {
			if part++; part == len(number) {
				break
			}
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		number[part] = number[part]*10 + int(c-'0')
	}
	return number[0] > major || number[0] == major && number[1] >= minor
}

func TestExitOfAChild(t *testing.T) {
	l := listen(t, Options{})
	r := follow(t, l)
	before := time.Now()
	pid := exits(t, "7")
	after := time.Now()
	got := r.await(t, "the exit of a child", leaderOf(pid))
	if got.Status != 7<<8 {
		t.Errorf("got %+v, want status 0x700", got)
	}
	// C4. The kernel told before it woke us from the wait.
	if got.At.Before(before) || got.At.After(after) {
		t.Errorf("stamped %s; it ran from %s to %s", got.At, before, after)
	}
}

func TestKilled(t *testing.T) {
	r := follow(t, listen(t, Options{}))
	cmd := helper(t, "wait")
	end := start(t, cmd, true)
	before := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	end()
	after := time.Now()
	got := r.await(t, "the exit of a killed child", leaderOf(cmd.Process.Pid))
	if got.Status != uint32(unix.SIGKILL) {
		t.Errorf("got %+v, want status 9", got)
	}
	if got.At.Before(before) || got.At.After(after) {
		t.Errorf("stamped %s; killed at %s, reaped at %s", got.At, before, after)
	}
}

func TestCoreDump(t *testing.T) {
	r := follow(t, listen(t, Options{}))
	cmd := helper(t, "dump core")
	before := time.Now()
	start(t, cmd, false)()
	dump := r.await(t, "the core dump", func(e Exit) bool { return e.TGID == cmd.Process.Pid && e.Core })
	if dump.Status != 0 || dump.At.Before(before) {
		t.Errorf("got %+v, want status 0, after %s", dump, before)
	}
	exit := r.await(t, "the exit after it", leaderOf(cmd.Process.Pid))
	if exit.Status&0x7f != uint32(unix.SIGABRT) || exit.At.Before(dump.At) {
		t.Errorf("got %+v, want SIGABRT after %s", exit, dump.At)
	}
}

// A child that execs is told of by its PID, whichever of its threads does it, to who asked.
func TestExec(t *testing.T) {
	execs, exits := follow(t, listen(t, Options{Execs: true})), follow(t, listen(t, Options{}))
	cmd := helper(t, "exec")
	before := time.Now()
	end := start(t, cmd, true) // it is what was execed that says so
	after := time.Now()
	end()
	pid := cmd.Process.Pid
	// What is told of one process is told in order: also to a listener that asks for less.
	for _, r := range []*record{execs, exits} {
		r.await(t, "the exit of a child", leaderOf(pid))
	}
	told := execs.execsOf(pid)
	if len(told) != 3 {
		t.Errorf("told %+v, want the exec that began it and two of its own", told)
	}
	for _, e := range told {
		if e.At.Before(before) || e.At.After(after) { // C4
			t.Errorf("stamped %s; it ran from %s to %s", e.At, before, after)
		}
	}
	if told := exits.execsOf(pid); len(told) > 0 {
		t.Errorf("told %+v to who did not ask", told)
	}
}

// alive asks the pidfd.
func alive(t *testing.T, pidfd int) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n == 0
}

func pidfdOf(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// C3, and that two listeners at a time see the same, each what it asked for.
func TestLeaderExitsFirst(t *testing.T) {
	threads, leaders := follow(t, listen(t, Options{Threads: true})), follow(t, listen(t, Options{}))
	cmd := helper(t, "leader exits first")
	end := start(t, cmd, false)
	pid := cmd.Process.Pid
	pidfd := pidfdOf(t, cmd)
	for _, r := range []*record{threads, leaders} {
		r.await(t, "the exit of the leader", leaderOf(pid))
	}
	if !alive(t, pidfd) {
		t.Fatal("the process died with its leader")
	}
	end()
	if got := cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("the helper exited with %d, want 5", got)
	}
	threads.await(t, "the exit of the worker that ended it", func(e Exit) bool {
		return e.TGID == pid && e.TID != pid && e.Status == 5<<8
	})
	// What is told of a process that exits later comes after whatever was told of this one.
	marker := exits(t, "0")
	leaders.await(t, "the exit of the next child", leaderOf(marker))
	told, _ := leaders.all()
	for _, e := range told {
		if e.TGID == pid && e.TID != pid {
			t.Errorf("told of a worker that nobody asked for: %+v", e)
		}
	}
}

// C3: a fatal signal in a thread's status does not mean that the process is dead.
func TestThreadKilledBySeccomp(t *testing.T) {
	r := follow(t, listen(t, Options{Threads: true}))
	cmd := helper(t, "seccomp")
	start(t, cmd, true)
	pidfd := pidfdOf(t, cmd)
	r.await(t, "the exit of the thread", func(e Exit) bool {
		return e.TGID == cmd.Process.Pid && e.Status == uint32(unix.SIGSYS)
	})
	if !alive(t, pidfd) {
		t.Error("the process died with its thread")
	}
}

// Where there is no filter and no mask, what is told is the same.
func TestTell(t *testing.T) {
	const self, other = 10, 20
	for _, c := range []struct {
		m     message
		asked Level
		exits int
		execs int
	}{
		{message{what: eventExit, tgid: other, tid: other}, Level{}, 1, 0},
		{message{what: eventExit, tgid: other, tid: other + 1}, Level{}, 0, 0},
		{message{what: eventExit, tgid: other, tid: other + 1}, Level{Threads: true}, 1, 0},
		{message{what: eventCoredump, tgid: other, tid: other + 1}, Level{}, 1, 0},
		{message{what: eventExit, tgid: self, tid: self + 1}, Level{Threads: true}, 0, 0},
		{message{what: eventExec, tgid: other, tid: other}, Level{Threads: true}, 0, 0},
		{message{what: eventExec, tgid: other, tid: other}, Level{Execs: true}, 0, 1},
		{message{what: eventExec, tgid: self, tid: self}, Level{Execs: true}, 0, 0},
		{message{what: eventReply}, Level{Threads: true, Execs: true}, 0, 0},
		{message{what: 0x1}, Level{Threads: true, Execs: true}, 0, 0},
	} {
		exits, execs := 0, 0
		l := &Listener{self: self, level: c.asked}
		l.tell(c.m, moment{}, Handlers{Exit: func(Exit) { exits++ }, Exec: func(Exec) { execs++ }})
		if exits != c.exits || execs != c.execs {
			t.Errorf("%+v, asked for %s: told %d exits and %d execs, want %d and %d", c.m, c.asked, exits, execs, c.exits, c.execs)
		}
		l.tell(c.m, moment{}, Handlers{})
	}
}

// C5.
func TestOverflow(t *testing.T) {
	l := listen(t, Options{ReceiveBuffer: 64 << 10, Threads: true})
	flood := helper(t, "flood", "3000")
	if err := flood.Run(); err != nil {
		t.Fatal(err)
	}
	r := follow(t, l)
	isLoss := func(e Exit) bool { return e == Exit{} }
	r.await(t, "the loss", isLoss)
	marker := exits(t, "3")
	r.await(t, "an exit after the loss", leaderOf(marker))
	told, lost := r.all()
	if len(lost) != 1 || !errors.Is(lost[0], unix.ENOBUFS) {
		t.Errorf("lost %v, want ENOBUFS, once", lost)
	}
	before, after := 0, 0
	seen := false
	for _, e := range told {
		seen = seen || isLoss(e)
		switch {
		case e.TGID == flood.Process.Pid && seen:
			after++
		case e.TGID == flood.Process.Pid:
			before++
		}
	}
	if before == 0 || before >= 3000 || after > 0 {
		t.Errorf("told of %d threads of the flood before the loss and of %d after it", before, after)
	}
}

// C2.
func TestForgedEvents(t *testing.T) {
	l := listen(t, Options{})
	witness, sender := netlinkSocket(t), netlinkSocket(t)
	if err := unix.SetsockoptInt(witness, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, idxProc); err != nil {
		t.Fatal(err)
	}
	forged := captured(t)["exit-sigkill"]
	const nobody = 1 << 30 // above every pid_max
	binary.NativeEndian.PutUint32(forged[offPID:], nobody)
	binary.NativeEndian.PutUint32(forged[offTGID:], nobody)
	if err := unix.Sendto(sender, forged, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		t.Fatal(err)
	}
	// Without a witness this test would pass if the kernel had not let it through at all.
	for b := make([]byte, datagramSize); ; {
		_, from, err := unix.Recvfrom(witness, b, 0)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatalf("the forged event did not arrive: %v", err)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); ok && nl.Pid != 0 {
			break
		}
	}
	r := follow(t, l)
	marker := exits(t, "0")
	r.await(t, "the exit of the next child", leaderOf(marker))
	told, _ := r.all()
	for _, e := range told {
		if e.TGID == nobody {
			t.Errorf("told a forged event: %+v", e)
		}
	}
}

func netlinkSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	timeout := unix.NsecToTimeval(soon.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestCancel(t *testing.T) {
	r := follow(t, listen(t, Options{}))
	marker := exits(t, "0")
	r.await(t, "an exit", leaderOf(marker))
	r.stop()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Errorf("got %v, want nil", err)
		}
	case <-time.After(soon):
		t.Fatalf("still running %s after its context ended", soon)
	}
}

func TestCancelledBefore(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l := listen(t, Options{})
	if err := l.Run(ctx, Handlers{}); err != nil {
		t.Errorf("Run: got %v, want nil", err)
	}
	if _, err := Listen(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen: got %v, want %v", err, context.Canceled)
	}
}

// C6: as long as canaries are told, Run goes on.
func TestCanaries(t *testing.T) {
	witness, l := listen(t, Options{}), listen(t, Options{})
	l.every = time.Millisecond
	r := follow(t, l)
	told := 0
	found, err := witness.await(t.Context(), soon, func(m message) bool {
		if m.tgid == witness.self {
			told++
		}
		return told == 20
	})
	if err != nil || !found {
		t.Fatalf("saw %d canaries: %v", told, err)
	}
	select {
	case err := <-r.ended:
		t.Fatalf("Run ended: %v", err)
	default:
	}
}

// C6.
func TestSilence(t *testing.T) {
	l := listen(t, Options{})
	mute, err := bpf.Assemble([]bpf.Instruction{drop})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.conn.SetBPF(mute); err != nil {
		t.Fatal(err)
	}
	l.every, l.patience = 10*time.Millisecond, 10*time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := l.Run(ctx, Handlers{}); !errors.Is(err, ErrSilent) {
		t.Errorf("got %v, want %v", err, ErrSilent)
	}
}

// C7. The kernel's reply goes to all who listen.
func TestCloseGivesBack(t *testing.T) {
	witness := listen(t, Options{})
	l, err := Listen(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	// Without a mask, which would drop the reply.
	if err := witness.send(opListen); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := witness.await(t.Context(), soon, func(m message) bool {
		return m.what == eventReply && m.ack == l.ack+1
	})
	if err != nil || !found {
		t.Errorf("no reply to PROC_CN_MCAST_IGNORE: %v", err)
	}
}

// C1, and that each refusal can be told from the others.
func TestNamespaces(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		flags uintptr
		want  error
	}{
		"pid":  {unix.CLONE_NEWPID, ErrPIDNamespace},
		"net":  {unix.CLONE_NEWNET, ErrNetNamespace},
		"user": {unix.CLONE_NEWUSER, ErrUserNamespace},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := helper(t, "listen")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.flags}
			out, err := cmd.Output()
			var status *exec.ExitError
			if !errors.As(err, &status) {
				t.Fatalf("got %v, %s", err, out)
			}
			i := status.ExitCode() - 10
			if i < 0 || i >= len(hints) || !errors.Is(hints[i].err, c.want) {
				t.Errorf("got %s, want %v", out, c.want)
			}
			t.Logf("%s", out)
		})
	}
}

func TestWithoutPrivileges(t *testing.T) {
	needRoot(t)
	cmd := helper(t, "listen")
	// A folder that it may enter.
	cmd.Dir = "/"
	const nobody = 65534
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.Output()
	t.Logf("%s", out)
	if kernelAtLeast(t, 6, 6) {
		if err != nil {
			t.Errorf("got %v, want none: the kernel asks for no privilege", err)
		}
		return
	}
	var status *exec.ExitError
	if !errors.As(err, &status) || !errors.Is(hints[status.ExitCode()-10].err, ErrPermission) {
		t.Errorf("got %v, want %v", err, ErrPermission)
	}
}

// A read without the wait: the datagrams are our own, sent to this one socket, and next refuses those (C2).
func BenchmarkRead(b *testing.B) {
	l, sender := listen(b, Options{}), netlinkSocket(b)
	datagram := captured(b)["exit-sigkill"]
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: l.conn.PID()}
	if err := l.wakeIn(b.Context(), time.Hour); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for done := 0; done < b.N; {
		b.StopTimer()
		for range batchSize {
			if err := unix.Sendto(sender, datagram, 0, address); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		for rest := batchSize; rest > 0; {
			n, err := l.batch.read(l.raw, false)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := clock(); err != nil {
				b.Fatal(err)
			}
			for i := range n {
				size := l.batch.headers[i].n
				if _, err := l.batch.datagram(i); err != nil {
					b.Fatal(err)
				}
				if _, err := parse(l.batch.buffers[i][:size]); err != nil {
					b.Fatal(err)
				}
			}
			rest -= n
			done += n
		}
	}
}
