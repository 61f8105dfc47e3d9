//go:build linux

// Package processtest gives tests real processes as owners: some that behave,
// and some that do what real ones do to those who watch them.
//
// An owner is the test binary itself, started anew; a package that uses this
// one begins its TestMain with Main:
//
//	func TestMain(m *testing.M) {
//		processtest.Main()
//		os.Exit(m.Run())
//	}
//
// No owner outlives its test, nor the test binary, be that killed: its death
// reaches the owner as a parent-death signal and as the end of its standard
// input. Each is signalled through the pidfd that os.Process holds and waited
// for by one goroutine only.
package processtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

// Owner is a living process until one of its methods ends it. They may be
// called from any goroutine, but only one at a time may order it about.
type Owner struct {
	tb    testing.TB
	pid   int
	label string
	cmd   *exec.Cmd

	orders  *os.File // its standard input
	reports *os.File
	lines   *bufio.Reader

	unreaped atomic.Bool   // leave the zombie until cleanup
	release  chan struct{} // closed by cleanup
	dead     chan struct{} // closed when it has died, perhaps not yet been reaped
	gone     chan struct{} // closed when it has been reaped
	state    *os.ProcessState
}

// StartOwner starts a process that lives until it is told otherwise.
func StartOwner(tb testing.TB) *Owner {
	tb.Helper()
	return start(tb, "owner", 0)
}

// StartBig is StartOwner with so much memory resident. The kernel needs about
// 60 ms to tear a gigabyte down, and longer to dump it.
func StartBig(tb testing.TB, mib int) *Owner {
	tb.Helper()
	return start(tb, "owner", mib)
}

// Program makes the test binary known under another path, and returns that: in a
// folder of the test's own if it is only a name. What is started from there has
// this path as its executable.
func Program(tb testing.TB, path string) string {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatalf("processtest: %v", err)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(tb.TempDir(), path)
	}
	// A second name costs nothing, a copy some 10 MB.
	if os.Link(self, path) == nil {
		return path
	}
	binary, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(path, binary, 0o755)
	}
	if err != nil {
		tb.Fatalf("processtest: make %s: %v", path, err)
	}
	return path
}

// StartProgram is StartOwner from a path of [Program], or from a script that
// names one as its interpreter, with the arguments argv, argv[0] included.
func StartProgram(tb testing.TB, path string, argv ...string) *Owner {
	tb.Helper()
	o := newOwner(tb, "owner", 0)
	o.cmd.Path, o.cmd.Args = path, argv
	if err := o.launch(func() error { return nil }); err != nil {
		tb.Fatalf("processtest: %v", err)
	}
	o.settle()
	return o
}

// ReusePID starts an owner with exactly this PID, which nobody must have any
// more, not even a zombie. Its start time is later than that of anyone who had
// the PID before the call, also when read in the kernel's ticks of 10 ms.
func ReusePID(tb testing.TB, pid int) *Owner {
	tb.Helper()
	<-time.After(11 * time.Millisecond) // the tick in which the last one may have started
	last := []byte(strconv.Itoa(pid - 1))
	deadline := time.Now().Add(patience)
	for tries := 1; ; tries++ {
		o := newOwner(tb, "owner", 0)
		// The kernel gives out the next free number. Whoever on this machine
		// forks between the write and our fork gets it instead of us, then we
		// try again.
		err := o.launch(func() error { return os.WriteFile("/proc/sys/kernel/ns_last_pid", last, 0) })
		if err != nil {
			tb.Fatalf("processtest: reuse PID %d: %v", pid, err)
		}
		if o.pid == pid {
			o.settle()
			return o
		}
		o.end()
		if time.Now().After(deadline) {
			holder, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			tb.Fatalf("processtest: PID %d not got in %d tries; it is of: %s", pid, tries, holder)
		}
	}
}

// SwarmExits floods the host with n processes that end as soon as they are
// forked, by one helper per core, and returns how long that took. All of them
// have been reaped by then.
func SwarmExits(tb testing.TB, n int) time.Duration {
	tb.Helper()
	helpers := runtime.NumCPU()
	owners := make([]*Owner, helpers)
	for i := range owners {
		share := n / helpers
		if i < n%helpers {
			share++
		}
		owners[i] = start(tb, "swarm", share)
	}
	begin := time.Now()
	for _, o := range owners {
		o.order("swarm")
	}
	for _, o := range owners {
		o.report("swarmed")
	}
	took := time.Since(begin)
	for _, o := range owners {
		o.Exit()
		o.Wait()
	}
	return took
}

// PID is the owner's process ID.
func (o *Owner) PID() int { return o.pid }

// Label is the owner as the label watcher.owner names it: PID:START:BOOT.
func (o *Owner) Label() string { return o.label }

// Kill sends SIGKILL, and like Term and Exit it does not wait.
func (o *Owner) Kill() { o.signal(unix.SIGKILL) }

// Term sends SIGTERM, of which the owner dies.
func (o *Owner) Term() { o.signal(unix.SIGTERM) }

// Exit tells the owner to end by itself, with code 0. If its leader is gone, a
// worker ends it.
func (o *Owner) Exit() { o.order("exit") }

// Abort has the owner die of SIGABRT. The kernel announces a core dump and,
// since its limit is 0, writes none.
func (o *Owner) Abort() { o.order("abort") }

// Dump is Abort with the core written into the test's temporary folder, if the
// host's core_pattern allows; it takes seconds for a big owner.
func (o *Owner) Dump() { o.order("dump") }

// Zombie kills the owner and leaves it unreaped until the test has ended: dead,
// but still in /proc, and with its PID taken.
func (o *Owner) Zombie() {
	o.unreaped.Store(true)
	o.Kill()
	o.await(o.dead, "die")
}

// Become has the owner exec a path of [Program] with the arguments argv, argv[0]
// included, and returns when that runs. It is a worker thread that execs: see
// ExecFromWorker.
func (o *Owner) Become(path string, argv ...string) {
	o.tb.Helper()
	words, err := json.Marshal(append([]string{path}, argv...))
	if err != nil {
		o.tb.Fatalf("processtest: %v", err)
	}
	o.order("become " + string(words))
	o.report("ready")
}

// LeaderGone ends the owner's main thread alone. The process lives on in its
// workers although /proc/PID/stat says Z; so it does when LeaderGone returns.
func (o *Owner) LeaderGone() {
	o.tb.Helper()
	o.order("leave")
	o.report("left")
}

// ExecFromWorker has a worker thread exec. The kernel ends all others, the
// leader first, and gives the worker the leader's PID and start time.
func (o *Owner) ExecFromWorker() {
	o.tb.Helper()
	o.order("exec")
	o.report("ready")
}

// Dead is closed when the owner has died, all threads of it. It may not have
// been reaped yet.
func (o *Owner) Dead() <-chan struct{} { return o.dead }

// Wait waits until the owner has died and been reaped, and returns how it died.
// After Zombie there is nothing to wait for.
func (o *Owner) Wait() *os.ProcessState {
	o.tb.Helper()
	if o.unreaped.Load() {
		o.tb.Errorf("processtest: wait for owner %d: it stays a zombie until the test has ended", o.pid)
		return nil
	}
	if !o.await(o.gone, "die and be reaped") {
		return nil
	}
	return o.state
}

func start(tb testing.TB, role string, size int) *Owner {
	tb.Helper()
	o := newOwner(tb, role, size)
	if err := o.launch(func() error { return nil }); err != nil {
		tb.Fatalf("processtest: %v", err)
	}
	o.settle()
	return o
}

func newOwner(tb testing.TB, role string, size int) *Owner {
	tb.Helper()
	if !prepared.Load() {
		tb.Fatal("processtest: TestMain does not call processtest.Main: an owner would run all tests again")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"processtest-" + role}
	cmd.Dir = tb.TempDir() // where a core goes
	cmd.Env = append(os.Environ(), roleVariable+"="+role, sizeVariable+"="+strconv.Itoa(size))
	cmd.Stderr = os.Stderr
	return &Owner{
		tb:      tb,
		cmd:     cmd,
		release: make(chan struct{}),
		dead:    make(chan struct{}),
		gone:    make(chan struct{}),
	}
}

// launch starts the process, directly after a call of before.
func (o *Owner) launch(before func() error) error {
	stdin, orders, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	reports, fd3, err := os.Pipe()
	if err != nil {
		return errors.Join(err, orders.Close())
	}
	defer fd3.Close()
	o.orders, o.reports, o.lines = orders, reports, bufio.NewReader(reports)
	o.cmd.Stdin = stdin
	o.cmd.ExtraFiles = []*os.File{fd3}
	pidfd := -1
	o.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, PidFD: &pidfd}

	started := make(chan error, 1)
	go func() {
		// The kernel sends the parent-death signal when the thread that forked
		// ends. Go ends a thread together with a goroutine locked to it, whoever
		// that was: so this one is ours until the owner has died.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := before()
		if err == nil {
			err = o.cmd.Start()
		}
		started <- err
		if err != nil {
			return
		}
		// Wait for the death alone; reaping is Cmd's.
		for unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		_ = unix.Close(pidfd)
		close(o.dead)
		if o.unreaped.Load() {
			<-o.release
		}
		_ = o.cmd.Wait() // an owner's death is no error
		o.state = o.cmd.ProcessState
		close(o.gone)
	}()
	if err := <-started; err != nil {
		return errors.Join(fmt.Errorf("start an owner: %w", err), orders.Close(), reports.Close())
	}
	o.pid = o.cmd.Process.Pid
	return nil
}

// settle waits until a launched owner is ready, and has it end with the test.
func (o *Owner) settle() {
	o.tb.Helper()
	o.tb.Cleanup(o.end)
	o.report("ready")
	label, err := readLabel(o.pid)
	if err != nil {
		o.tb.Fatalf("processtest: %v", err)
	}
	o.label = label
}

func (o *Owner) end() {
	o.Kill()
	close(o.release)
	o.await(o.gone, "die and be reaped")
	_ = o.orders.Close()
	_ = o.reports.Close()
}

func (o *Owner) signal(sig unix.Signal) {
	o.tb.Helper()
	if err := o.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		o.tb.Errorf("processtest: %v to owner %d: %v", sig, o.pid, err)
	}
}

func (o *Owner) order(what string) {
	o.tb.Helper()
	if _, err := o.orders.WriteString(what + "\n"); err != nil {
		o.tb.Errorf("processtest: tell owner %d to %s: %v", o.pid, what, err)
	}
}

// report waits for the owner's next line.
func (o *Owner) report(want string) {
	o.tb.Helper()
	if err := o.reports.SetReadDeadline(time.Now().Add(patience)); err != nil {
		o.tb.Fatalf("processtest: %v", err)
	}
	line, err := o.lines.ReadString('\n')
	if err != nil || line != want+"\n" {
		o.tb.Fatalf("processtest: owner %d reports %q (%v), want %q", o.pid, line, err, want)
	}
}

func (o *Owner) await(c <-chan struct{}, what string) bool {
	o.tb.Helper()
	select {
	case <-c:
		return true
	case <-time.After(patience):
		o.tb.Errorf("processtest: owner %d did not %s within %v", o.pid, what, patience)
		return false
	}
}

// readLabel reads its own way and not through the product's parser, which it
// shall test.
func readLabel(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	// The name in brackets may itself hold blanks and brackets.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("parse /proc/%d/stat: %q", pid, stat)
	}
	return fmt.Sprintf("%d:%s:%s", pid, fields[22-3], bytes.TrimSpace(boot)), nil
}
