package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/firecracker/firecrackertest"
	"watcher/platform/process"
	"watcher/reap"
	"watcher/watch"
)

// parentOf is the parent of a process.
func parentOf(t testing.TB, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	parent, err := strconv.Atoi(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// killAndWait kills a process that is held, and waits until it is dead.
func killAndWait(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, fd)
}

// awaitEnd waits until the process of a pidfd is dead.
func awaitEnd(t testing.TB, pidfd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(fds, int(patience.Milliseconds())); {
		case err == unix.EINTR:
		case n != 1:
			t.Fatalf("not dead within %s: %v", patience, err)
		default:
			return
		}
	}
}

// shells are programs below which another one runs.
func shells(n int) (below []string) {
	for range n {
		below = append(below, "sh", "-c", `"$@"; exit $?`, "sh")
	}
	return below
}

// Whatever happens to a runner that lives, or instead of it, its microVMs are kept, by a daemon and by --once, which sees them for
// the first time. When it dies they go.
func TestMicroVMsThatAreKept(t *testing.T) {
	h := newVMHost(t)
	type kept struct {
		name   string
		g      *guest
		reason reap.Reason // to one who sees it for the first time
		end    func()      // of who keeps it
	}
	var rows []kept
	row := func(name string, g *guest, reason reap.Reason, end func()) {
		rows = append(rows, kept{name, g, reason, end})
	}

	wrapped := h.runner()
	row("its wrappers were killed", wrapped.start(firecrackertest.Fresh), reap.Managed, wrapped.Kill)
	other := h.runner()
	row("its runner has become another program", other.start(firecrackertest.Direct), reap.OwnerAlive, other.Kill) // its lock ended with the exec
	upgraded := h.mute()
	row("its runner's executable was replaced", upgraded.start(firecrackertest.Direct), reap.Managed, upgraded.Kill)
	last := h.mute()
	row("its runner is its sixteenth ancestor", last.start(firecrackertest.Direct, shells(process.Generations-1)...), reap.Managed, nil)
	deep := h.mute()
	row("its runner is further up", deep.start(firecrackertest.Direct, shells(process.Generations)...), reap.OwnerUnknown, nil)

	for name, say := range map[string]func(r *firecrackertest.Runner){
		"another runner has the lock of the base folder": func(r *firecrackertest.Runner) { r.Lock(h.locks) },
		"another runner has a record of the base folder": func(r *firecrackertest.Runner) { r.Record(filepath.Join(h.records, "successor.json")) },
	} {
		first := h.mute()
		g := first.start(firecrackertest.Direct)
		second := first.StartRunnerAs(filepath.Join(first.Bin, h.program))
		say(second)
		first.Kill()
		reason := reap.OwnerAlive
		if strings.Contains(name, "lock") {
			reason = reap.Managed
		}
		row(name, g, reason, second.Kill)
	}

	h.watch()
	for _, k := range rows {
		h.d.waitFor("a verdict on one of which "+k.name, func(r record) bool { return r.text(watch.KeyName) == k.g.ID && r.text(watch.KeyReason) != "" })
	}
	// From the top: one that is left without the one below ends by itself.
	var wrappers []int
	for pid := parentOf(t, rows[0].g.PID); pid != wrapped.PID; pid = parentOf(t, pid) {
		wrappers = append(wrappers, pid)
	}
	if len(wrappers) < 2 {
		t.Fatalf("above the microVM are only %v", wrappers)
	}
	for _, pid := range slices.Backward(wrappers) {
		killAndWait(t, pid)
	}
	other.Become(firecrackertest.Program(t, filepath.Join(other.Bin, "other")), "other", "run")
	program := filepath.Join(upgraded.Bin, h.program)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	firecrackertest.Program(t, program)

	for _, k := range rows {
		h.keep(k.g)
	}
	h.barrier()
	h.once()
	said, _ := h.say("list")
	for _, k := range rows {
		if r := said[k.g.ID]; r.Verdict != reap.Keep.String() || r.Reason != k.reason {
			t.Errorf("%s: list says %+v, want it kept because %s", k.name, r, k.reason)
		}
	}
	for _, k := range rows {
		if k.end != nil {
			h.kept = slices.DeleteFunc(h.kept, func(g *guest) bool { return g == k.g })
			k.end()
			h.reaped(k.g)
			h.untouched()
		}
	}
	noFailures(t, h.d)
}

// Who cannot see every process reaps no microVM, and says so.
func TestMicroVMsWithoutTheRightToSee(t *testing.T) {
	h := newVMHost(t)
	r := h.runner()
	left := r.start(firecrackertest.Fresh)
	h.keep(left)
	r.Kill()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "--once", "-o", "json", "--docker-host", h.e.Host(), "--config", h.config)
	cmd.Path, cmd.Args = setpriv, append([]string{setpriv, "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", self}, cmd.Args[1:]...)
	if got := output(t, cmd); got.code != exitFailed || !strings.Contains(got.stderr, "not everything could be seen") {
		t.Errorf("exit code %d, want %d: %s", got.code, exitFailed, got.stderr)
	}
	h.untouched()
	h.kept = nil
	h.once(left)
}

// Below a subreaper, as in a session of systemd, the parent of an orphan is not process 1.
func TestMicroVMsBelowASubreaper(t *testing.T) {
	h := newVMHost(t)
	r := h.runner()
	left := r.start(firecrackertest.Direct)
	set := func(on uintptr) {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, on, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	set(1)
	defer set(0)
	r.Kill()
	if parent := parentOf(t, left.PID); parent != os.Getpid() {
		t.Errorf("the parent of the orphan is %d, and not we", parent)
	}
	h.once(left)
	var status unix.WaitStatus
	if _, err := unix.Wait4(left.PID, &status, 0, nil); err != nil || status.Signal() != unix.SIGKILL {
		t.Errorf("it ended by %v: %v", status.Signal(), err)
	}
}

// Nothing depends on the stand-in: a real VMM, without a guest, under a rule of its own.
func TestMicroVMsOfQEMU(t *testing.T) {
	needTool(t, "qemu-system-x86_64", "qemu-system-x86")
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	h := newVMHost(t, with("socket-dir =", "program = \"qemu-system-*\"\nsocket-dir ="))
	h.keep(h.guest(h.runner().Lay(firecrackertest.Direct, ""))) // of another, which lives
	start := func(r *vmRunner) *guest {
		vm, _ := r.StartOnly(firecrackertest.Spawn{
			Program: qemu,
			Argv:    []string{"-M", "microvm", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:{workspace}/qmp.sock,server=on,wait=off"},
			Below:   []string{"timeout", "300"}, // so that it ends if we cannot end it
		})
		await(t, "QEMU runs", func() bool { return len(existing(h, filepath.Join(vm.Workspace, "qmp.sock"))) > 0 })
		vm.PID = processNaming(t, "qemu-system-", vm.Workspace)
		return h.guest(vm)
	}
	r := h.runner()
	left := start(r)
	r.Kill()
	h.once(left)

	h.watch()
	r = h.runner()
	left = start(r)
	h.judged(reap.Managed, left)
	r.Kill()
	reaped := h.told(watch.EventReaped, left)
	h.gone(left)
	h.untouched()
	stop, _ := reaped.micros(watch.KeyStopUS)
	gone, _ := reaped.micros(watch.KeyGoneUS)
	t.Logf("QEMU was dead %s after its runner, and all was gone after %s", stop, gone)
}

// processNaming is the process of a program, by the beginning of its name, that has a text in its arguments.
func processNaming(t testing.TB, program, text string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		argv, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if strings.HasPrefix(filepath.Base(exe), program) && strings.Contains(string(argv), text) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	t.Fatalf("no %s names %s", program, text)
	return 0
}
