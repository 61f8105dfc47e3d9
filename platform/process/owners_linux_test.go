package process_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// A world is an Owners under test, with or without pidfds, and what it posted.
type world struct {
	*process.Owners
	*mail
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{mail: newMail(t)}
	w.Owners = process.NewOwners(newHost(t), w.post)
	t.Cleanup(w.Close)
	return w
}

// next waits for a death to be posted.
func (w *world) next() watch.ProcessSeen {
	w.t.Helper()
	ev := w.mail.next()
	seen, ok := ev.(watch.ProcessSeen)
	if !ok {
		w.t.Fatalf("posted %#v", ev)
	}
	return seen
}

// notice has deaths found that no pidfd tells of. Where there are pidfds, none of these is called for.
func (w *world) notice(o *processtest.Owner) {
	w.t.Helper()
	receive(w.t, o.Dead())
	if withoutPidfds() {
		w.Check()
	}
}

// hold demands that the process with a PID is found alive and is the one of that label.
func (w *world) hold(o *processtest.Owner) watch.ProcessSeen {
	w.t.Helper()
	seen := w.Hold(o.PID())
	if seen.Life != watch.Alive || seen.Process.Label() != o.Label() || seen.PID != o.PID() || seen.Detail != "" {
		w.t.Fatalf("Hold = %+v, want %s alive", seen, o.Label())
	}
	return seen
}

// dead demands that a death is posted, of the process that was found, and returns when it is said to have happened.
func (w *world) dead(found watch.ProcessSeen) time.Time {
	w.t.Helper()
	seen := w.next()
	if at := seen.At; seen.Life != watch.Exited || seen.PID != found.PID || seen.Process != found.Process ||
		!seen.Born.Equal(found.Born) || at.After(time.Now()) {
		w.t.Errorf("posted %+v, want the death of %+v", seen, found)
	}
	return seen.At
}

// alive demands that whatever is asked and told, the process is not taken for dead.
func (w *world) alive(o *processtest.Owner, when string) {
	w.t.Helper()
	w.Witness(o.PID(), time.Now())
	w.Check()
	w.hold(o)
	w.none(when)
}

// TestOwners is one suite for two worlds: see TestOwnersWithoutPidfds.
func TestOwners(t *testing.T) {
	for _, story := range []struct {
		name string
		tell func(t *testing.T, w *world)
	}{
		{"an owner is killed", func(t *testing.T, w *world) { dies(t, w, (*processtest.Owner).Kill) }},
		{"an owner is asked to end", func(t *testing.T, w *world) { dies(t, w, (*processtest.Owner).Term) }},
		{"an owner ends by itself", func(t *testing.T, w *world) { dies(t, w, (*processtest.Owner).Exit) }},
		{"an owner aborts", func(t *testing.T, w *world) { dies(t, w, (*processtest.Owner).Abort) }},
		{"an owner becomes a zombie", func(t *testing.T, w *world) { dies(t, w, (*processtest.Owner).Zombie) }},
		{"a zombie is found", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			o.Zombie()
			nobody(t, w.Hold(o.PID()))
		}},
		{"nobody is found", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			o.Kill()
			o.Wait()
			nobody(t, w.Hold(o.PID()))
			w.Witness(o.PID(), time.Now())
			w.Check()
			w.none("of nobody")
		}},
		{"the PID is that of a thread (P3)", func(t *testing.T, w *world) {
			if seen := w.Hold(aThread(t)); seen.Life != watch.Unknown || seen.Detail == "" {
				t.Errorf("Hold = %+v, want unknown, and why", seen)
			}
		}},
		{"no descriptor is left (P3)", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			restore := exhaust(t)
			seen := w.Hold(o.PID())
			restore()
			if seen.Life != watch.Unknown || seen.Detail == "" {
				t.Errorf("Hold = %+v, want unknown, and why", seen)
			}
			found := w.hold(o)
			restore = exhaust(t)
			w.Check()
			w.Witness(o.PID(), time.Now())
			w.none("without descriptors")
			seen = w.Hold(o.PID())
			restore()
			if seen.Life == watch.Exited {
				t.Errorf("Hold = %+v without descriptors", seen)
			}
			o.Kill()
			w.notice(o)
			w.dead(found)
		}},
		{"PID 1 and ourselves", func(t *testing.T, w *world) {
			for _, pid := range []int{1, os.Getpid()} {
				if seen := w.Hold(pid); seen.Life != watch.Alive || seen.Process.PID != pid || seen.Born.After(time.Now()) {
					t.Errorf("Hold = %+v, want %d alive", seen, pid)
				}
			}
			w.Check()
			w.none("while we run")
		}},
		{"born when it was", func(t *testing.T, w *world) {
			before := time.Now()
			o := processtest.StartOwner(t)
			after := time.Now()
			if born := w.hold(o).Born; born.Before(before.Add(-time.Second)) || born.After(after.Add(time.Second)) {
				t.Errorf("born %v, want between %v and %v", born, before, after)
			}
		}},
		{"the leader is gone and workers live (P4)", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			found := w.hold(o)
			o.LeaderGone()
			w.alive(o, "without its leader")
			o.Exit()
			w.notice(o)
			w.dead(found)
		}},
		{"found without its leader (P4)", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			o.LeaderGone()
			found := w.hold(o)
			w.alive(o, "without its leader")
			o.Kill()
			w.notice(o)
			w.dead(found)
		}},
		{"a worker execs (P4)", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			found := w.hold(o)
			o.ExecFromWorker()
			w.alive(o, "after an exec")
			o.LeaderGone()
			o.ExecFromWorker()
			w.alive(o, "after an exec without its leader")
			o.Exit()
			w.notice(o)
			w.dead(found)
		}},
		{"seccomp kills a thread (P4)", func(t *testing.T, w *world) {
			c := startRole(t, "thread killed", 0)
			found := w.Hold(c.pid)
			w.Witness(c.pid, time.Now())
			w.Check()
			if again := w.Hold(c.pid); found.Life != watch.Alive || again.Life != watch.Alive || again.Process != found.Process {
				t.Errorf("Hold = %+v and then %+v, want alive", found, again)
			}
			w.none("with a thread killed")
			c.end()
			if withoutPidfds() {
				w.Check()
			}
			w.dead(found)
		}},
		{"the kernel says when", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			found := w.hold(o)
			at := time.Now()
			o.Kill()
			receive(t, o.Dead())
			w.Witness(o.PID(), at)
			for !w.dead(found).Equal(at) { // the pidfd's own word may come first
			}
		}},
		{"the kernel says when, after all is over", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			found := w.hold(o)
			at := time.Now()
			o.Kill()
			w.notice(o)
			o.Wait()
			w.dead(found)
			w.Witness(o.PID(), at)
			if got := w.dead(found); !got.Equal(at) {
				t.Errorf("died %v, want %v", got, at)
			}
		}},
		{"a core dump is announced and not begun (P4)", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			w.hold(o)
			w.alive(o, "with a dump announced")
		}},
		{"a core is being written (P3)", func(t *testing.T, w *world) {
			o := processtest.StartBig(t, 128)
			found := w.hold(o)
			at := time.Now()
			o.Dump()
			if writing(t, o) {
				w.Witness(o.PID(), at)
			} else {
				t.Log("the core was written before we looked")
			}
			w.notice(o)
			w.Witness(o.PID(), at)
			for !w.dead(found).Equal(at) { // the pidfd's own word may come first
			}
		}},
		{"the kernel speaks of an earlier process (P4)", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			before := time.Now()
			found := w.hold(o)
			w.Witness(o.PID(), before)
			w.alive(o, "with an old stamp")
			o.Kill()
			w.notice(o)
			w.dead(found)
			w.Witness(o.PID(), before)
			w.none("with an old stamp, after the death")
		}},
		{"an owner is let go of", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			w.hold(o)
			w.Release(o.PID())
			w.Release(o.PID())
			o.Kill()
			o.Wait()
			w.Witness(o.PID(), time.Now())
			w.Check()
			w.none("of who is not held")
		}},
		{"let go of and held again", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			w.hold(o)
			w.Release(o.PID())
			found := w.hold(o)
			o.Kill()
			w.notice(o)
			w.dead(found)
			w.none("twice")
		}},
		{"the PID is reused, and the death was seen", func(t *testing.T, w *world) { reused(t, w, true) }},
		{"the PID is reused, and nobody looked between", func(t *testing.T, w *world) { reused(t, w, false) }},
		{"a check finds the dead", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			other := w.hold(processtest.StartOwner(t))
			found := w.hold(o)
			o.Kill()
			receive(t, o.Dead())
			w.Check()
			w.dead(found)
			if exited := w.Hold(other.PID); exited.Process != other.Process || exited.Life != watch.Alive {
				t.Errorf("Hold = %+v, want %+v", exited, other)
			}
		}},
		{"many at once", func(t *testing.T, w *world) {
			found := map[int]watch.ProcessSeen{}
			var owners []*processtest.Owner
			for range 24 {
				o := processtest.StartOwner(t)
				owners = append(owners, o)
				found[o.PID()] = w.hold(o)
			}
			var told sync.WaitGroup
			for i, o := range owners {
				if i%3 == 0 {
					delete(found, o.PID())
					continue
				}
				told.Go(func() {
					o.Kill()
					<-o.Dead()
					w.Witness(o.PID()+1, time.Now()) // of somebody else
				})
			}
			told.Wait()
			if withoutPidfds() {
				w.Check()
			}
			for len(found) > 0 {
				seen := w.next()
				if want := found[seen.PID]; seen.Life != watch.Exited || seen.Process != want.Process && want.PID != 0 {
					t.Errorf("posted %+v, want the death of %+v", seen, want)
				}
				delete(found, seen.PID)
			}
			for i, o := range owners {
				if i%3 == 0 {
					w.hold(o)
				}
			}
		}},
		{"all are let go of", func(t *testing.T, w *world) {
			o := processtest.StartOwner(t)
			w.hold(o)
			w.Close()
			o.Kill()
			o.Wait()
			w.Check()
			w.none("after Close")
		}},
	} {
		t.Run(story.name, func(t *testing.T) {
			before := descriptors(t)
			// Cleanups run last first: by then the owners have been reaped and all is let go of.
			t.Cleanup(func() {
				if after := descriptors(t); after > before {
					t.Errorf("%d descriptors, were %d", after, before)
				}
			})
			story.tell(t, newWorld(t))
		})
	}
}

// writing waits until the process writes its core, or has died.
func writing(t *testing.T, o *processtest.Owner) bool {
	t.Helper()
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	timeout := time.After(patience)
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.PID()))
		if err == nil && strings.Contains(string(status), "CoreDumping:\t1") {
			return true
		}
		select {
		case <-o.Dead():
			return false
		case <-timeout:
			t.Fatal("no core is being written")
		case <-beat.C:
		}
	}
}

func nobody(t *testing.T, seen watch.ProcessSeen) {
	t.Helper()
	if seen.Life != watch.Exited || seen.Process != (watch.Process{}) {
		t.Errorf("Hold = %+v, want nobody", seen)
	}
}

func dies(t *testing.T, w *world, how func(*processtest.Owner)) {
	t.Helper()
	o := processtest.StartOwner(t)
	found := w.hold(o)
	if again := w.hold(o); again.Process != found.Process || !again.Born.Equal(found.Born) {
		t.Errorf("Hold = %+v and then %+v", found, again)
	}
	w.none("before its death")
	before := time.Now()
	how(o)
	w.notice(o)
	if at := w.dead(found); at.Before(before) {
		t.Errorf("died %v, and lived until %v", at, before)
	}
	nobody(t, w.Hold(o.PID()))
	w.Check()
	w.none("a second time")
}

func reused(t *testing.T, w *world, noticed bool) {
	t.Helper()
	needRoot(t)
	first := processtest.StartOwner(t)
	found := w.hold(first)
	first.Kill()
	receive(t, first.Dead())
	if noticed {
		w.notice(first)
	}
	first.Wait()
	if noticed || !withoutPidfds() {
		w.dead(found)
	}
	second := processtest.ReusePID(t, first.PID())
	if withoutPidfds() && !noticed {
		w.Check()
		w.dead(found)
	}
	w.none("of the second")
	later := w.hold(second)
	w.alive(second, "with the PID of a dead one")
	second.Kill()
	w.notice(second)
	w.dead(later)
}

// TestOwnersWithoutPidfds tells the same stories under a seccomp filter that makes pidfd_open answer ENOSYS, as an old
// kernel does.
func TestOwnersWithoutPidfds(t *testing.T) {
	if withoutPidfds() {
		t.Skip("we are its inside")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v="+map[bool]string{true: "true", false: "false"}[testing.Verbose()],
		"-test.run=^(TestOwners|TestCensus|TestCensusOfTheRestless|TestOpenWithoutPidfds)$")
	cmd.Env = append(os.Environ(), noPidfdVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
}
