//go:build linux

// Package gomicrovmtest gives tests microVMs as brood-box makes them, without a VM: a bbox that makes the folder, writes its
// sentinel, forks a runner into a session of its own with the arguments that the real one gets, and saves the state under the
// lock, by renaming it into its place.
//
// Both are the test binary itself under their names; a package that uses this one begins its TestMain with Main. None outlives
// its test, nor the test binary: both end when a pipe does that only the test binary has.
package gomicrovmtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

// Names in the folder of a microVM.
const (
	Sentinel = ".bbox-sentinel"
	Data     = "data"
	State    = "data/go-microvm-state.json"
	Lock     = "data/go-microvm-state.lock"
)

// A Home is the home of a user of brood-box.
type Home struct {
	tb  testing.TB
	Dir string
	bin string
	uid int
}

// NewHome makes a home of our own in a folder that is removed with the test.
func NewHome(tb testing.TB) *Home {
	tb.Helper()
	return NewHomeOf(tb, os.Geteuid())
}

// NewHomeOf makes a home of a user, whom its bboxes run as. For another user it needs root.
func NewHomeOf(tb testing.TB, uid int) *Home {
	tb.Helper()
	top := tb.TempDir()
	h := &Home{tb: tb, Dir: filepath.Join(top, "home", "ann"), uid: uid}
	if uid != os.Geteuid() {
		if err := os.Chmod(filepath.Dir(top), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	h.bin = filepath.Join(h.Dir, "bin")
	for _, dir := range []string{h.VMs(), h.bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	for dir := h.VMs(); dir != h.Dir; dir = filepath.Dir(dir) {
		if err := os.Lchown(dir, uid, uid); err != nil {
			tb.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"bbox", "go-microvm-runner"} {
		if err := os.Link(self, filepath.Join(h.bin, name)); err != nil {
			if err := copyFile(self, filepath.Join(h.bin, name)); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return h
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// VMs is the folder that holds the folders of microVMs.
func (h *Home) VMs() string { return filepath.Join(h.Dir, ".config", "broodbox", "vms") }

// BBox is the path of the program bbox.
func (h *Home) BBox() string { return filepath.Join(h.bin, "bbox") }

// Runner is the path of the program go-microvm-runner.
func (h *Home) Runner() string { return filepath.Join(h.bin, "go-microvm-runner") }

// Options are what is not as usual with a microVM.
type Options struct {
	LogFile   bool // bbox was told to log elsewhere, and writes no sentinel
	OldBBox   bool // the sentinel has the PID alone
	NoState   bool // the state is not saved
	Cached    bool // the root file system is in a cache, and not in the folder
	UserNS    bool // the runner is in a user namespace of its own, as with the real bbox
	Stubborn  bool // the runner does not end when it is asked to
	Child     bool // the runner has a child in its process group
	HoldsLock bool // bbox keeps the lock of the state
	Files     int  // how many files of 64 KiB the root file system has
	PIDNS     bool // bbox lives in a PID namespace of its own
}

// A VM is a microVM, its bbox and its runner. Its methods may be called from one goroutine at a time.
type VM struct {
	tb     testing.TB
	Folder string
	BBox   int // the PID of the bbox
	Runner int // the PID of the runner
	Child  int // the PID of the runner's child, if it was to have one

	cmd    *exec.Cmd
	orders *os.File
	gone   chan struct{}
	runner int // a pidfd of the runner, which is no child of ours: its PID may be another's once its bbox has reaped it
}

// A plan is what a bbox is told to do.
type plan struct {
	Options
	Folder string
	Runner string
}

// report is what a bbox says when its microVM runs.
type report struct{ Runner, Child int }

// Start has a bbox make a microVM, and returns when it runs.
func (h *Home) Start(name string, o Options) *VM {
	tb := h.tb
	tb.Helper()
	vm := &VM{tb: tb, Folder: filepath.Join(h.VMs(), name), gone: make(chan struct{})}
	leash, hold := pipe(tb)
	orders, toBBox := pipe(tb)
	reports, fromBBox := pipe(tb)
	text, err := json.Marshal(plan{o, vm.Folder, h.Runner()})
	if err != nil {
		tb.Fatal(err)
	}
	vm.orders = toBBox
	vm.cmd = exec.Command(h.BBox(), "claude-code")
	vm.cmd.Env = append(os.Environ(), roleVariable+"=bbox", planVariable+"="+string(text), "GOTRACEBACK=none")
	vm.cmd.Stderr = os.Stderr
	vm.cmd.ExtraFiles = []*os.File{leash, orders, fromBBox}
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if o.PIDNS {
		vm.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	if h.uid != os.Geteuid() {
		vm.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)}
	}
	if err := vm.cmd.Start(); err != nil {
		tb.Fatalf("gomicrovmtest: %v", err)
	}
	vm.BBox = vm.cmd.Process.Pid
	for _, f := range []*os.File{leash, orders, fromBBox} {
		_ = f.Close()
	}
	go func() {
		_ = vm.cmd.Wait() // its death is no error
		close(vm.gone)
	}()
	tb.Cleanup(func() {
		_ = hold.Close() // which ends both
		_ = toBBox.Close()
		<-vm.gone
		if vm.runner != 0 {
			Await(tb, "the end of the runner", func() bool { return ended(vm.runner) })
			_ = unix.Close(vm.runner)
		}
	})
	line, err := bufio.NewReader(reports).ReadBytes('\n')
	_ = reports.Close()
	var r report
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		tb.Fatalf("gomicrovmtest: bbox said %q: %v", line, err)
	}
	vm.Runner, vm.Child = r.Runner, r.Child
	if o.PIDNS {
		vm.Runner = outer(tb, vm.BBox)
	}
	if vm.runner, err = unix.PidfdOpen(vm.Runner, 0); err != nil {
		tb.Fatalf("gomicrovmtest: hold the runner: %v", err)
	}
	return vm
}

// outer returns the child of a process that is in another PID namespace.
func outer(tb testing.TB, parent int) int {
	tb.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	tasks, globErr := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	for _, task := range tasks {
		if more, err := os.ReadFile(task); err == nil && len(more) > 0 {
			data = more
		}
	}
	if err := errors.Join(err, globErr); err != nil {
		tb.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		tb.Fatalf("children of %d: %q: %v", parent, data, err)
	}
	return pid
}

func pipe(tb testing.TB) (r, w *os.File) {
	tb.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	return r, w
}

func (vm *VM) order(what string) {
	if _, err := vm.orders.WriteString(what + "\n"); err != nil {
		vm.tb.Fatalf("gomicrovmtest: %v", err)
	}
}

// Kill kills the bbox with a signal. Its runner goes on.
func (vm *VM) Kill(sig syscall.Signal) {
	vm.tb.Helper()
	if err := vm.cmd.Process.Signal(sig); err != nil {
		vm.tb.Fatal(err)
	}
	<-vm.gone
}

// Exit has the bbox end without doing anything for its microVM.
func (vm *VM) Exit() {
	vm.order("exit")
	<-vm.gone
}

// Stop has the bbox stop its microVM and end, properly: the data folder goes, the log stays.
func (vm *VM) Stop() {
	vm.order("stop")
	<-vm.gone
}

// Become has the bbox exec another program, which waits; it keeps its PID. What is done by then shows in its executable.
func (vm *VM) Become(program string) {
	vm.tb.Helper()
	vm.order("become " + program)
	Await(vm.tb, "exec of "+program, func() bool {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", vm.BBox))
		return err == nil && exe == program
	})
}

// KillRunner kills the runner.
func (vm *VM) KillRunner() {
	vm.tb.Helper()
	if err := unix.PidfdSendSignal(vm.runner, unix.SIGKILL, nil, 0); err != nil {
		vm.tb.Fatal(err)
	}
	Await(vm.tb, "the end of the runner", func() bool { return ended(vm.runner) })
}

// Await waits until something is so.
func Await(tb testing.TB, what string, so func() bool) {
	tb.Helper()
	late := time.After(patience)
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for !so() {
		select {
		case <-beat.C:
		case <-late:
			tb.Fatalf("gomicrovmtest: never came: %s", what)
		}
	}
}

// AwaitDead waits until a process is dead. Its zombie may stay, if its parent has ended and whoever took it over does not care.
func AwaitDead(tb testing.TB, pid int) {
	tb.Helper()
	Await(tb, fmt.Sprintf("the end of process %d", pid), func() bool { return Dead(pid) })
}

// Dead reports whether a process is dead: no process has the PID, or a zombie has.
func Dead(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL): // nobody has it, or a thread of another process
		return true
	case err != nil:
		panic(fmt.Sprintf("gomicrovmtest: hold process %d: %v", pid, err))
	}
	defer unix.Close(fd)
	return ended(fd)
}

// ended reports whether the process of a pidfd is dead.
func ended(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// WriteState saves a state as go-microvm does, without its lock: active, and with a PID unless that is 0.
func WriteState(folder string, active bool, pid int) error {
	dir := filepath.Join(folder, Data)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	state := struct {
		Version  int       `json:"version"`
		Active   bool      `json:"active"`
		Name     string    `json:"name"`
		Image    string    `json:"image"`
		CPUs     uint32    `json:"cpus"`
		MemoryMB uint32    `json:"memory_mb"`
		PID      int       `json:"pid,omitempty"`
		Created  time.Time `json:"created_at"`
	}{1, active, filepath.Base(folder), "brood-box/claude-code:latest", 2, 4096, pid, time.Now()}
	text, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "state-*.json.tmp")
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	return errors.Join(err, tmp.Close(), os.Rename(tmp.Name(), filepath.Join(folder, State)))
}

// WriteSentinel writes a sentinel as bbox does; without a path as an older one did.
func WriteSentinel(folder string, pid int, file string) error {
	text := strconv.Itoa(pid)
	if file != "" {
		text += "\n" + file
	}
	return os.WriteFile(filepath.Join(folder, Sentinel), []byte(text), 0o600)
}
