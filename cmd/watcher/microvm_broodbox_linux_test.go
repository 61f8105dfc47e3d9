package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/firecracker/firecrackertest"
	"watcher/platform/gomicrovm/gomicrovmtest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// A boxHost is a host with a user of brood-box, and watcher on it with the rule of preset broodbox, for that user's folders.
type boxHost struct {
	*vmHost
	*gomicrovmtest.Home
}

func newBoxHost(t *testing.T) *boxHost {
	t.Helper()
	h := &boxHost{&vmHost{T: t, e: dockertest.Shared(t)}, gomicrovmtest.NewHome(t)}
	p, err := loadPreset("broodbox")
	if err != nil {
		t.Fatal(err)
	}
	rules := strings.Split(p.text, "[[rule]]")
	i := slices.IndexFunc(rules, func(rule string) bool { return strings.Contains(rule, `kind = "gomicrovm"`) })
	rule, _, _ := strings.Cut(rules[i], "\n#") // that of the files is about all of /tmp
	if !strings.Contains(rule, `"~/.config/broodbox/vms"`) {
		t.Fatalf("the preset names folders that the test does not know of:\n%s", rule)
	}
	h.config = configFile(t, calm+"[[rule]]"+strings.Replace(rule, "~/.config/broodbox/vms", h.VMs(), 1))
	return h
}

// A box is a microVM of brood-box.
type box struct {
	*gomicrovmtest.VM
	*guest
}

// box starts one.
func (h *boxHost) box(name string, o gomicrovmtest.Options) *box {
	h.vmHost.Helper()
	vm := h.Home.Start(name, o)
	return &box{vm, h.guest(&firecrackertest.VM{ID: name, Workspace: vm.Folder, PID: vm.Runner})}
}

// record changes what a record of a box says, and dates it.
func (h *boxHost) record(b *box, file string, write func() error, at time.Time) {
	h.vmHost.Helper()
	file = filepath.Join(b.Folder, file)
	if err := errors.Join(write(), os.Chtimes(file, at, at)); err != nil {
		h.Fatal(err)
	}
}

// bbox dies, and its runner, which outlives it, is stopped at once and all is removed.
func TestBroodBoxesOfABBoxThatDies(t *testing.T) {
	h := newBoxHost(t)
	h.watch()
	other := h.box("other", gomicrovmtest.Options{})
	h.judged(reap.OwnerAlive, other.guest)
	h.keep(other.guest)
	for _, tt := range []struct {
		name string
		o    gomicrovmtest.Options
		die  func(*box)
	}{
		{"killed", gomicrovmtest.Options{}, func(b *box) { b.VM.Kill(syscall.SIGKILL) }},
		{"exited", gomicrovmtest.Options{Child: true, UserNS: true}, func(b *box) { b.Exit() }},
		{"terminated", gomicrovmtest.Options{Stubborn: true, OldBBox: true}, func(b *box) { b.VM.Kill(syscall.SIGTERM) }},
		{"after-its-runner", gomicrovmtest.Options{}, func(b *box) { b.KillRunner(); b.VM.Kill(syscall.SIGKILL) }},
	} {
		b := h.box(tt.name, tt.o)
		h.judged(reap.OwnerAlive, b.guest)
		rows, _ := h.say("list")
		if row := rows[tt.name]; row.Kind != watch.GoMicroVM || row.State != watch.Running || row.Rule != "broodbox" || row.Owner == nil || row.Owner.PID != b.BBox {
			t.Errorf("%s: list says %+v of %+v, want it owned by %d", tt.name, row, row.Owner, b.BBox)
		}
		tt.die(b)
		reaped := h.told(watch.EventReaped, b.guest)
		h.gone(b.guest)
		if b.Child != 0 {
			gomicrovmtest.AwaitDead(t, b.Child)
		}
		stop, _ := reaped.micros(watch.KeyStopUS)
		gone, _ := reaped.micros(watch.KeyGoneUS)
		if reason := reaped.text(watch.KeyReason); reason != string(reap.OwnerExited) || gone <= 0 {
			t.Errorf("%s: told %v", tt.name, reaped)
		}
		t.Logf("%s: stopped after %s, gone after %s", tt.name, stop, gone)
	}
	h.untouched()
	noFailures(t, h.d)
}

// The same without a daemon; and what is kept, for as long as it has to be.
func TestOnceReapsBroodBoxes(t *testing.T) {
	h := newBoxHost(t)
	past := time.Now().Add(-time.Hour)
	bystander := processtest.StartOwner(t)

	running := h.box("bbox-killed", gomicrovmtest.Options{})
	running.VM.Kill(syscall.SIGKILL)
	dead := h.box("both-killed", gomicrovmtest.Options{})
	dead.KillRunner()
	dead.VM.Kill(syscall.SIGKILL)
	recycled := h.box("pid-of-bbox-recycled", gomicrovmtest.Options{})
	recycled.VM.Kill(syscall.SIGKILL)
	h.record(recycled, gomicrovmtest.Sentinel, func() error { return gomicrovmtest.WriteSentinel(recycled.Folder, bystander.PID(), h.BBox()) }, past)
	both := h.box("pids-recycled", gomicrovmtest.Options{})
	both.KillRunner()
	both.VM.Kill(syscall.SIGKILL)
	h.record(both, gomicrovmtest.Sentinel, func() error { return gomicrovmtest.WriteSentinel(both.Folder, bystander.PID(), h.BBox()) }, past)
	h.record(both, gomicrovmtest.State, func() error { return gomicrovmtest.WriteState(both.Folder, true, bystander.PID()) }, past)

	lives, runnerDead := h.box("lives", gomicrovmtest.Options{}), h.box("runner-killed", gomicrovmtest.Options{})
	runnerDead.KillRunner()
	stopped := h.box("stopped", gomicrovmtest.Options{})
	stopped.Stop()
	if err := gomicrovmtest.WriteState(stopped.Folder, false, 0); err != nil { // as with BBOX_KEEP_VM_DATA
		t.Fatal(err)
	}
	locked := h.box("locked", gomicrovmtest.Options{})
	locked.VM.Kill(syscall.SIGKILL)
	lock, err := os.Open(filepath.Join(locked.Folder, gomicrovmtest.Lock))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	unsure := h.box("older-process-has-the-pid", gomicrovmtest.Options{})
	unsure.VM.Kill(syscall.SIGKILL)
	h.record(unsure, gomicrovmtest.Sentinel, func() error { return gomicrovmtest.WriteSentinel(unsure.Folder, bystander.PID(), h.BBox()) }, time.Now())
	// Of a home that no rule names; nobody else cleans up there either.
	plain := &boxHost{h.vmHost, gomicrovmtest.NewHome(t)}
	unknown := plain.box("plain", gomicrovmtest.Options{LogFile: true})
	unknown.VM.Kill(syscall.SIGKILL)

	kept := map[*box]reap.Reason{
		lives: reap.OwnerAlive, runnerDead: reap.OwnerAlive, stopped: reap.NotOwned, locked: reap.InUse, unsure: reap.OwnerUnknown,
	}
	for b := range kept {
		h.keep(b.guest)
	}
	h.keep(unknown.guest)
	h.once(running.guest, dead.guest, recycled.guest, both.guest)
	rows, _ := h.say("list")
	for b, reason := range kept {
		if row := rows[b.ID]; row.Verdict != reap.Keep.String() || row.Reason != reason {
			t.Errorf("%s: list says %+v, want it kept because %s", b.ID, row, reason)
		}
	}
	if len(rows) != len(kept) {
		t.Errorf("listed are %d, want %d: %+v", len(rows), len(kept), rows)
	}

	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	h.kept = slices.DeleteFunc(h.kept, func(g *guest) bool { return g == locked.guest })
	h.once(locked.guest)
}

// What was begun when watcher was killed is finished by whoever comes next. The folder is the evidence until it is gone.
func TestBroodBoxesThroughACrash(t *testing.T) {
	for _, at := range []reap.Boundary{reap.BoundaryStopped, reap.BoundaryRecorded, reap.BoundaryRemoved, reap.BoundaryClosed} {
		t.Run(string(at), func(t *testing.T) {
			h := newBoxHost(t)
			other, b := h.box("other", gomicrovmtest.Options{}), h.box("box", gomicrovmtest.Options{})
			h.keep(other.guest)
			h.d = startCrashing(t, h.e, at, "--config", h.config)
			h.judged(reap.OwnerAlive, other.guest, b.guest)
			b.VM.Kill(syscall.SIGKILL)
			h.d.crashed()
			if cases := casesOf(t); len(cases) > 0 != (at == reap.BoundaryRecorded || at == reap.BoundaryRemoved) {
				t.Errorf("on record: %v", cases)
			}
			if at == reap.BoundaryRemoved {
				h.watch()
				await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
				noFailures(t, h.d)
			} else if _, r := h.say("--once"); r.code != exitDone {
				t.Errorf("--once exits %d: %s", r.code, r.stderr)
			}
			h.gone(b.guest)
			h.untouched()
			if cases := casesOf(t); len(cases) > 0 {
				t.Errorf("left on record: %v", cases)
			}
		})
	}
}
