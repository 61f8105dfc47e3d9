package reap_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// with is a loop with a docket, and with an engine that removes as it is told.
func (s state) with(edits ...func(*reap.Config)) func(*reap.Config) {
	return func(c *reap.Config) {
		c.Docket = s.Docket
		for _, edit := range edits {
			edit(c)
		}
	}
}

// removing says how removals go, from the first on.
func removing(remove func(ctx context.Context, name string) error) func(*reap.Config) {
	return func(c *reap.Config) { c.Platforms[watch.Container].(*engine).remove = remove }
}

func busy(context.Context, string) error { return errBusy }

// unowned is a sandbox that no evidence applies to: nothing but a record has it reaped.
func unowned(name string) watch.Sandbox { return born(name, labels{"group": "g"}, stopped) }

// aged is a sandbox that is to be reaped by inference, a minute after now.
func aged(name string) watch.Sandbox {
	return born(name, labels{"group": "g"}, func(s *watch.Sandbox) { s.Terms.MaxAge = time.Minute })
}

func TestR8TheRecordComesBetweenTheStopAndTheRemoval(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(), func(s *stand) {
		var atStop, atRemoval map[string]reap.Case
		s.engine.remove = func(context.Context, string) error {
			atRemoval, _ = docket.loaded()
			return nil
		}
		s.owners.live(100)
		a := born("a", labels{"owner": "100"}, func(s *watch.Sandbox) { s.Name, s.Image = "agent-1", "busybox" })
		s.run(a)
		s.pass(time.Minute)
		s.engine.refuse = func(watch.Step) error {
			atStop, _ = docket.loaded()
			return nil
		}
		died := time.Now()
		s.owners.die(100)
		s.pass(time.Minute)
		if atStop == nil || len(atStop) > 0 {
			s.Errorf("on record before the stop: %v", atStop)
		}
		want := map[string]reap.Case{"a": {
			Kind: watch.Container, ID: "a", Name: "agent-1", Image: "busybox", Created: a.Created, Rule: watch.RuleLabels,
			Reason: reap.OwnerExited, Owner: "100", Steps: []reap.CaseStep{{Step: "kill", Done: true}, {Step: "remove"}}, Begun: died,
		}}
		if diff := cmp.Diff(want, atRemoval); diff != "" {
			s.Errorf("on record before the removal (-want +got)\n%s", diff)
		}
		docket.holds()
		if s.told().status.Open != 0 {
			s.Errorf("status %+v", s.told().status)
		}
	})
}

// What fails is on record with all that dead letters tell.
func TestR8AFailureIsOnRecord(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(removing(busy)), func(s *stand) {
		began := time.Now()
		s.run(born("a", labels{"ttl": "1m"}, stopped))
		s.pass(time.Minute + 2*time.Second)
		got, _ := docket.loaded()
		a := got["a"]
		tries := s.engine.tries()
		if len(tries) != 2 || a.Attempts != 2 || a.Error != errBusy.Error() || a.GaveUp {
			t.Fatalf("after %d attempts on record: %+v", len(tries), a)
		}
		if !a.Begun.Equal(began.Add(time.Minute)) || !a.First.Equal(tries[0]) || !a.Last.Equal(tries[1]) {
			t.Errorf("begun %s, first failed %s, last %s", a.Begun, a.First, a.Last)
		}
		s.pass(time.Until(a.Next) - 1)
		if len(s.engine.tries()) != 2 {
			t.Error("tried before its time")
		}
		s.pass(1)
		if len(s.engine.tries()) != 3 {
			t.Error("not tried when the record says")
		}
	})
}

func TestR3NoStopWaitsForTheDocket(t *testing.T) {
	docket := newState(t)
	var gate chan struct{}
	slow := func(c *reap.Config) {
		gate = make(chan struct{})
		c.Boundary = func(b reap.Boundary) {
			if b == reap.BoundaryRecorded {
				<-gate // the disk hangs
			}
		}
	}
	onStand(t, docket.with(slow), func(s *stand) {
		var all []watch.Sandbox
		for i := range 4 {
			s.owners.live(100 + i)
			all = append(all, born(fmt.Sprint(i), labels{"owner": fmt.Sprint(100 + i)}))
		}
		s.run(all...)
		var want []string
		for i := range 4 {
			s.owners.die(100 + i)
			s.settle()
			want = append(want, fmt.Sprintf("%ds kill %d", i, i))
			s.pass(time.Second)
		}
		s.did(want...) // R8: nothing is removed before it is on record,
		for i := range 4 {
			s.pass(time.Second)
			want = append(want, fmt.Sprintf("%ds remove %d", i+5, i)) // unless the disk is hung
		}
		s.did(want...)
		passes := s.told().passes
		s.list()
		if s.told().passes == passes {
			t.Error("R6: the loop waits")
		}
		close(gate)
		s.pass(time.Minute)
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
		docket.holds()
	})
}

func TestADocketThatHangsDoesNotKeepUsFromEnding(t *testing.T) {
	docket := newState(t)
	var gate chan struct{}
	hangs := func(c *reap.Config) {
		gate = make(chan struct{})
		c.Boundary = func(b reap.Boundary) {
			if b == reap.BoundaryRecorded {
				<-gate
			}
		}
	}
	onStand(t, docket.with(hangs), func(s *stand) {
		defer close(gate)
		s.run(born("a", labels{"ttl": "1m"}))
		s.pass(time.Minute)
		s.cancel()
		s.pass(reap.DrainFor - 1)
		if err, ended := s.result(); ended {
			t.Fatalf("ended before its time: %v", err)
		}
		s.pass(1)
		if err, ended := s.result(); !ended || !errors.Is(err, reap.ErrUnfinished) {
			t.Errorf("ended %v: %v", ended, err)
		}
	})
}

// Whatever becomes of the folder, orphans go.
func TestR8ADocketThatCannotBeWrittenKeepsNoOrphanAlive(t *testing.T) {
	docket := newState(t)
	cases := filepath.Join(docket.dir, "cases")
	onStand(t, docket.with(), func(s *stand) {
		if err := errors.Join(os.Remove(cases), os.WriteFile(cases, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		s.run(born("a", labels{"ttl": "1m"}), born("b", labels{"ttl": "2m"}))
		s.pass(time.Hour)
		s.did("1m0s kill a", "1m0.042s remove a", "2m0s kill b", "2m0.042s remove b")
		if got := s.log.told(watch.EventDocketFailed, slog.LevelError); len(got) != 1 {
			t.Errorf("said %d times: %v", len(got), got)
		}
		if s.told().status.Open != 0 {
			t.Errorf("status %+v", s.told().status)
		}
	})
}

func TestR8WhatIsOnRecordIsTakenUpAtTheStart(t *testing.T) {
	docket := newState(t)
	docket.write(aCase("a"), failed("b", 3), failed("c", 9))
	onStand(t, docket.with(), func(s *stand) {
		// They are removed by what the record says: nobody has listed them.
		s.pass(time.Second)
		got := s.engine.did()
		slices.Sort(got)
		if len(got) != 3 || !strings.HasSuffix(got[0], "remove a") || !strings.HasSuffix(got[1], "remove b") || !strings.HasSuffix(got[2], "remove c") {
			t.Fatalf("asked: %q", got)
		}
		docket.holds()
		attempts := map[any]any{}
		for _, rec := range s.log.told(watch.EventReaped, slog.LevelInfo) {
			attempts[rec.attrs[watch.KeyID]] = rec.attrs[watch.KeyAttempt]
			if rec.attrs[watch.KeyReason] != "owner-exited" || rec.attrs[watch.KeyOwner] != "100" || rec.attrs[watch.KeyImage] != "busybox" {
				t.Errorf("told: %v", rec.attrs)
			}
		}
		if diff := cmp.Diff(map[any]any{"a": int64(1), "b": int64(4), "c": int64(10)}, attempts); diff != "" {
			t.Errorf("attempts (-want +got)\n%s", diff)
		}
	})
}

// Before its system is there, nothing can be tried, and then what was tried before is tried at once.
func TestR8WhatIsOnRecordWaitsForItsSystem(t *testing.T) {
	docket := newState(t)
	docket.write(aCase("a"), failed("b", 12))
	onStand(t, docket.with(func(c *reap.Config) { c.Inbox.Post(away) }, removing(busy)), func(s *stand) {
		// The stand's own word that the engine is there came behind.
		before := len(s.engine.tries())
		if before != 2 {
			t.Fatalf("%d attempts", before)
		}
		s.inbox.Post(away)
		s.pass(24 * time.Hour)
		if got := len(s.engine.tries()); got != before {
			t.Errorf("%d attempts while the engine was away", got-before)
		}
		if got, _ := docket.loaded(); got["a"].Attempts != 1 || got["b"].Attempts != 13 {
			t.Errorf("on record: %+v", got)
		}
		s.inbox.Post(here)
		s.settle()
		if got := len(s.engine.tries()); got != before+2 {
			t.Errorf("%d attempts at once when the engine is back, want 2", got-before)
		}
		if got, _ := docket.loaded(); got["a"].Attempts != 2 || got["b"].Attempts != 14 {
			t.Errorf("on record: %+v", got)
		}
	})
}

func TestStopsGoOnWhileTheEngineIsAway(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(), func(s *stand) {
		s.run(born("a", labels{"ttl": "1m"}), born("b", labels{"ttl": "2m", "stop-timeout": "5s"}))
		s.inbox.Post(away)
		s.pass(time.Hour)
		s.did("1m0s kill a", "2m0s terminate b", "2m5s kill b")
		docket.holds("a", "b")
		if s.told().status.Failed > 0 {
			t.Errorf("status %+v", s.told().status)
		}
		s.inbox.Post(here)
		s.pass(time.Second)
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
		docket.holds()
	})
}

// An interrupt does not wait for an engine that may never come back: what is left is on record.
func TestDrainDoesNotWaitForASystemThatIsAway(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(), func(s *stand) {
		s.inbox.Post(away)
		s.run(born("a", labels{"ttl": "1m"}))
		s.pass(2 * time.Minute)
		s.cancel()
		s.settle()
		if err, ended := s.result(); !ended || errors.Is(err, reap.ErrUnfinished) {
			t.Errorf("ended %v: %v", ended, err)
		}
		docket.holds("a")
	})
}

func TestR8ACaseWhoseSandboxIsGoneIsClosed(t *testing.T) {
	docket := newState(t)
	docket.write(aCase("a"), failed("b", 9))
	onStand(t, docket.with(removing(busy)), func(s *stand) {
		s.engine.start(unowned("b"))
		s.pass(time.Minute)
		s.list() // without a
		docket.holds("b")
		s.inbox.Post(watch.SandboxGone{ID: id("b"), At: time.Now()})
		s.settle()
		docket.holds()
		if got := s.told().status; got.Open != 0 || got.GaveUp != 0 {
			t.Errorf("status %+v", got)
		}
		tries := len(s.engine.tries())
		s.pass(time.Hour)
		if got := len(s.engine.tries()); got != tries {
			t.Errorf("%d attempts at what is gone", got-tries)
		}
	})
}

// A kind that this daemon does not serve may be served by the next.
func TestR8ARecordOfAnotherKindIsLeftAlone(t *testing.T) {
	docket := newState(t)
	other := aCase("a")
	other.Kind = "vm"
	docket.write(other)
	before := docket.files()
	onStand(t, docket.with(), func(s *stand) {
		s.list()
		s.pass(time.Hour)
		s.did()
		if s.told().status != (reap.Status{Scanned: true}) {
			t.Errorf("status %+v", s.told().status)
		}
	})
	if diff := cmp.Diff(before, docket.files()); diff != "" {
		t.Errorf("files (-before +after)\n%s", diff)
	}
}

func TestR8DamagedRecordsAreToldAndSetAside(t *testing.T) {
	docket := newState(t)
	docket.write(aCase("good"))
	for name := range unreadable {
		name = strings.ReplaceAll(name, " ", "-")
		docket.write(aCase(name))
		if err := os.Truncate(docket.record(name), 7); err != nil {
			t.Fatal(err)
		}
	}
	for _, told := range []int{len(unreadable), 0} { // by the first loop, and by the one after it
		onStand(t, docket.with(), func(s *stand) {
			if got := s.log.told(watch.EventDocketFailed, slog.LevelError); len(got) != told {
				t.Errorf("%d are told, want %d", len(got), told)
			}
			s.pass(time.Second)
			docket.holds()
		})
	}
}

func TestDeadLetters(t *testing.T) {
	docket := newState(t)
	docket.write(failed("old", 7))
	for _, restart := range []bool{false, true} {
		onStand(t, docket.with(removing(busy)), func(s *stand) {
			gaveUp := func(want int) {
				t.Helper()
				got := s.log.told(watch.EventGaveUp, slog.LevelError)
				if len(got) != want {
					t.Fatalf("gave up %d times, want %d", len(got), want)
				}
				if want > 0 && (got[0].attrs[watch.KeyAttempt] != int64(8) || !errors.Is(got[0].attrs[watch.KeyError].(error), errBusy)) {
					t.Errorf("told: %v", got[0].attrs)
				}
			}
			once := 1
			if restart {
				once = 0 // it was told before
			}
			gaveUp(once)
			if got, _ := docket.loaded(); !got["old"].GaveUp {
				t.Errorf("on record: %+v", got["old"])
			}
			if got := s.told().status; got.GaveUp != 1 || got.Open != 1 {
				t.Errorf("status %+v", got)
			}
			s.pass(24 * time.Hour)
			gaveUp(once)
			tries := s.engine.tries()
			if n := len(tries); n < 24*12 || n > 24*16+10 {
				t.Errorf("%d attempts in a day, want one in four to five minutes", n)
			}
			got, _ := docket.loaded()
			if got["old"].First != failed("old", 7).First || !got["old"].Last.Equal(tries[len(tries)-1]) {
				t.Errorf("on record: %+v", got["old"])
			}
			if restart {
				s.list()
				docket.holds()
				if got := s.told().status; got.GaveUp != 0 || got.Open != 0 {
					t.Errorf("status %+v", got)
				}
			}
		})
	}
}

// Between two runs the number may have been lowered past what was counted.
func TestGivingUpIsToldWhateverTheNumberWas(t *testing.T) {
	docket := newState(t)
	docket.write(failed("a", 5))
	fewer := func(c *reap.Config) { c.Policy.Attempts = 3 }
	onStand(t, docket.with(removing(busy), fewer), func(s *stand) {
		s.pass(time.Hour)
		if got := s.log.told(watch.EventGaveUp, slog.LevelError); len(got) != 1 {
			t.Errorf("told %d times", len(got))
		}
		if s.told().status.GaveUp != 1 {
			t.Errorf("status %+v", s.told().status)
		}
	})
}

func TestADroppedSandboxIsKept(t *testing.T) {
	for name, meanwhile := range map[string]func(state){
		"": func(state) {},
		// The clerk was about to write it when the operator came.
		"and its record came back": func(s state) { s.write(failed("a", 2)) },
	} {
		t.Run(name, func(t *testing.T) {
			docket := newState(t)
			onStand(t, docket.with(removing(busy)), func(s *stand) {
				s.owners.live(100)
				s.run(born("a", labels{"owner": "100"}, stopped), born("b", labels{"ttl": "1m"}, stopped))
				s.owners.die(100)
				s.pass(2 * time.Second)
				tries := len(s.engine.tries())
				if err := docket.Drop(id("a")); err != nil {
					t.Fatal(err)
				}
				meanwhile(docket)
				s.pass(24 * time.Hour)
				for _, what := range s.engine.did()[tries:] {
					if strings.HasSuffix(what, " a") {
						t.Fatalf("asked: %s", what)
					}
				}
				docket.holds("b")
				s.list()
				docket.holds("b")
				if got := s.told().status; got.Open != 1 || got.Sandboxes != 2 {
					t.Errorf("status %+v", got)
				}
				if ids, err := docket.Dropped(); err != nil || len(ids) != 1 {
					t.Errorf("dropped: %v, %v", ids, err)
				}
				s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()})
				s.settle()
				if ids, err := docket.Dropped(); err != nil || len(ids) != 0 {
					t.Errorf("dropped: %v, %v", ids, err)
				}
				if got := s.log.told(watch.EventReaped, slog.LevelInfo); len(got) > 0 {
					t.Errorf("told as reaped: %v", got)
				}
			})
		})
	}
}

// Whoever was dropped stays dropped for the next daemon, as long as it is there.
func TestADropOutlivesUs(t *testing.T) {
	docket := newState(t)
	for _, name := range []string{"a", "gone"} {
		if err := docket.Drop(id(name)); err != nil {
			t.Fatal(err)
		}
		docket.write(aCase(name)) // a crash or a race left it
	}
	for range 2 {
		onStand(t, docket.with(), func(s *stand) {
			s.run(born("a", labels{"owner": "100"}), born("b", labels{"owner": "100"}))
			s.pass(time.Second)
			s.list()
			if got := s.engine.names(); !slices.Equal(got, []string{"a"}) {
				t.Errorf("left are %v", got)
			}
			e := s.loop.Picture.Entry(id("a"))
			if j := reap.DefaultPolicy().Judge(s.loop.Picture, e, time.Now()); j.Verdict != reap.Keep || j.Reason != reap.Pinned || j.Detail == "" {
				t.Errorf("judged: %+v", j)
			}
			docket.holds()
			s.cancel()
			s.settle()
			if err, ended := s.result(); !ended || errors.Is(err, reap.ErrUnfinished) {
				t.Errorf("ended %v: %v", ended, err)
			}
		})
	}
	ids, err := docket.Dropped()
	if diff := cmp.Diff([]watch.ID{id("a")}, ids); diff != "" || err != nil {
		t.Errorf("%v, dropped (-want +got)\n%s", err, diff)
	}
}

func TestOnceFinishesWhatIsOnRecord(t *testing.T) {
	docket := newState(t)
	docket.write(aCase("a"), failed("b", 9), aCase("gone"), failed("stuck", 2))
	if err := docket.Drop(id("kept")); err != nil {
		t.Fatal(err)
	}
	docket.write(aCase("kept"))
	remove := removing(func(_ context.Context, name string) error {
		if name == "stuck" {
			return errBusy
		}
		<-time.After(removalTime)
		return nil
	})
	onStand(t, docket.with(once, remove), func(s *stand) {
		for _, name := range []string{"a", "b", "kept", "stuck"} {
			s.engine.start(unowned(name))
		}
		s.list()
		s.pass(time.Minute)
		if err, ended := s.result(); !ended || err != nil {
			t.Fatalf("ended %v: %v", ended, err)
		}
		if got := s.engine.names(); !slices.Equal(got, []string{"kept", "stuck"}) {
			t.Errorf("left are %v", got)
		}
	})
	docket.holds("stuck")
	if got, _ := docket.loaded(); got["stuck"].Attempts != 3 {
		t.Errorf("on record: %+v", got["stuck"])
	}
}

func dryRun(c *reap.Config) { c.DryRun = true }

func TestADryRunWritesNothing(t *testing.T) {
	for name, edit := range map[string]func(*reap.Config){"as a daemon": func(*reap.Config) {}, "once": once} {
		t.Run(name, func(t *testing.T) {
			docket := newState(t)
			docket.write(aCase("a"), failed("b", 9), aCase("gone"), aCase("damaged"), aCase("kept"))
			if err := errors.Join(os.Truncate(docket.record("damaged"), 3), docket.Drop(id("left")), docket.Drop(id("kept"))); err != nil {
				t.Fatal(err)
			}
			docket.write(aCase("kept"))
			before := docket.files()
			onStand(t, docket.with(dryRun, edit), func(s *stand) {
				for _, sandbox := range []watch.Sandbox{unowned("a"), unowned("b"), unowned("kept"), born("orphan", labels{"owner": "100"})} {
					s.engine.start(sandbox)
				}
				s.list()
				s.pass(time.Hour)
				verdict := map[string]string{}
				for _, some := range s.loop.Picture.IDs() {
					j := reap.DefaultPolicy().Judge(s.loop.Picture, s.loop.Picture.Entry(some), time.Now())
					verdict[some.Name] = j.Verdict.String() + " " + string(j.Reason)
				}
				want := map[string]string{"a": "reap owner-exited", "b": "wait retrying", "kept": "keep pinned", "orphan": "reap owner-exited"}
				if diff := cmp.Diff(want, verdict); diff != "" {
					t.Errorf("verdicts (-want +got)\n%s", diff)
				}
				s.did()
				if got := s.loop.Status(); got.Reaped > 0 || got.Open != 2 {
					t.Errorf("status %+v: what is on record and there is open", got)
				}
			})
			if diff := cmp.Diff(before, docket.files()); diff != "" {
				t.Errorf("files (-before +after)\n%s", diff)
			}
		})
	}
}

func TestADryRunMakesNoStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	onStand(t, func(c *reap.Config) { c.Docket, c.DryRun = reap.NewDocket(dir), true }, func(s *stand) {
		s.run(born("a", labels{"owner": "100"}))
		s.list()
		s.pass(time.Hour)
		if got := s.log.told(watch.EventDocketFailed, slog.LevelDebug); len(got) > 0 {
			t.Errorf("told: %v", got)
		}
	})
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made: %v", err)
	}
}

// A list that was wrong made us forget what was being removed, and the next one brings it back. The result of the
// removal that was under way is not that of the reap which begins then.
func TestAResultOutlivesItsReap(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.engine.remove = func(context.Context, string) error {
			<-time.After(10 * time.Second)
			return errBusy
		}
		a := born("a", labels{"ttl": "1m"}, stopped)
		s.run(a)
		s.pass(time.Minute)
		s.inbox.Post(watch.SandboxGone{ID: a.ID, At: time.Now()})
		s.settle()
		s.pass(time.Second)
		a.Terms.TTL = time.Hour
		s.inbox.Post(watch.SandboxSeen{Sandbox: a, Asked: time.Now()})
		s.pass(time.Minute)
		if got := s.told().status; got.Failed != 0 || got.Open != 0 || got.Sandboxes != 1 {
			t.Errorf("status %+v", got)
		}
	})
}

// It was condemned, waited for a worker, went, and is back with an owner that lives.
func TestR1WhatIsQueuedIsNotRemovedOnAnOldVerdict(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Workers = 1 }, func(s *stand) {
		s.engine.remove = func(context.Context, string) error {
			<-time.After(10 * time.Second)
			return nil
		}
		b := born("b", labels{"ttl": "1m"}, stopped)
		s.run(born("a", labels{"ttl": "1m"}, stopped), b)
		s.pass(time.Minute)
		s.inbox.Post(watch.SandboxGone{ID: b.ID, At: time.Now()})
		s.settle()
		s.pass(time.Second)
		b.Terms.TTL = time.Hour
		s.inbox.Post(watch.SandboxSeen{Sandbox: b, Asked: time.Now()})
		s.pass(time.Minute)
		s.did("1m0s remove a")
	})
}

func TestTheAlarmIsToldOncePerCrossing(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Policy.Alarm = 2 }, func(s *stand) {
		told := func(up, down int, alarm bool) {
			t.Helper()
			s.settle()
			ups, all := s.log.told(watch.EventAlarm, slog.LevelWarn), s.log.told(watch.EventAlarm, slog.LevelInfo)
			if len(ups) != up || len(all)-len(ups) != down || s.told().status.Alarm != alarm {
				t.Fatalf("told up %d and down %d times, status %v; want %d, %d, %v", len(ups), len(all)-len(ups), s.told().status.Alarm, up, down, alarm)
			}
		}
		gone := func(name string) {
			s.pass(time.Second)
			s.inbox.Post(watch.SandboxGone{ID: id(name), At: time.Now()})
		}
		told(0, 0, false)
		s.run(born("a", nil), born("b", nil))
		told(0, 0, false)
		s.run(born("c", nil))
		told(1, 0, true)
		s.run(born("d", nil), born("e", nil))
		told(1, 0, true)
		gone("e")
		gone("d")
		told(1, 0, true)
		gone("c")
		told(1, 1, false)
		gone("b")
		told(1, 1, false)
		s.run(born("f", nil), born("g", nil))
		told(2, 1, true)
		want := map[string]any{"event": "alarm", "rule": "labels", "sandboxes": int64(3), "threshold": int64(2)}
		if diff := cmp.Diff(want, s.log.told(watch.EventAlarm, slog.LevelWarn)[0].attrs); diff != "" {
			t.Errorf("told (-want +got)\n%s", diff)
		}
	})
}

func burst(n int) func(*reap.Config) { return func(c *reap.Config) { c.Policy.Burst = n } }

// kills are the sandboxes that were stopped so far.
func (s *stand) kills() []string {
	kills := []string{}
	for _, what := range s.engine.did() {
		if _, name, ok := strings.Cut(what, " kill "); ok {
			kills = append(kills, name)
		}
	}
	slices.Sort(kills)
	return kills
}

func (s *stand) killed(want ...string) {
	s.Helper()
	s.settle()
	if diff := cmp.Diff(append([]string{}, want...), s.kills()); diff != "" {
		s.Fatalf("killed (-want +got)\n%s", diff)
	}
}

func TestR7ABurstIsLookedAtTwice(t *testing.T) {
	onStand(t, burst(3), func(s *stand) {
		grace := reap.DefaultPolicy().Grace
		s.owners.live(100)
		s.run(
			aged("a"), aged("b"), aged("c"), aged("d"),
			born("owned", labels{"owner": "100"}), born("timed", labels{"ttl": "1m"}),
		)
		s.owners.die(100)
		s.pass(time.Minute)
		s.killed("owned", "timed") // what an owner's own evidence condemns is never braked
		rescans := s.told().rescans
		if got := s.log.told(watch.EventHeld, slog.LevelWarn); len(got) != 1 || got[0].attrs[watch.KeySandboxes] != int64(4) {
			t.Errorf("told: %v", got)
		}
		s.list() // this one was begun before the grace was over
		s.killed("owned", "timed")
		s.pass(grace - 1)
		s.list()
		s.killed("owned", "timed")
		if got := s.told().rescans; got != rescans {
			t.Errorf("%d scans are asked for before the grace is over", got-rescans)
		}
		s.pass(1)
		if got := s.told().rescans; got != rescans+1 {
			t.Errorf("%d scans are asked for, want 1", got-rescans)
		}
		s.pass(time.Minute)
		s.killed("owned", "timed") // none has come yet
		// A scan that fails says nothing.
		s.inbox.Post(watch.ScanBegun{At: time.Now()}, watch.ListFailed{Kind: watch.Container, At: time.Now(), Err: errBusy}, watch.ScanEnded{Failed: 1})
		s.killed("owned", "timed")
		// By the second look one is pinned.
		b := aged("b")
		b.Terms.Keep = true
		s.engine.start(b)
		s.list()
		s.killed("a", "c", "d", "owned", "timed")
		if got := s.log.told(watch.EventHeld, slog.LevelWarn); len(got) != 1 {
			t.Errorf("told: %v", got)
		}
		s.pass(time.Minute)
		if got := s.engine.names(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("left are %v", got)
		}
	})
}

func TestR7ABurstAtMostPassesAtOnce(t *testing.T) {
	onStand(t, burst(3), func(s *stand) {
		s.run(aged("a"), aged("b"), aged("c"))
		s.pass(time.Minute)
		s.killed("a", "b", "c")
		s.run(aged("d"))
		s.pass(time.Minute)
		s.killed("a", "b", "c", "d")
	})
}

// Without a burst to allow, each is looked at twice.
func TestR7ABurstOfNone(t *testing.T) {
	onStand(t, burst(0), func(s *stand) {
		s.run(aged("a"))
		s.pass(time.Minute)
		s.killed()
		s.pass(time.Minute)
		s.list()
		s.killed("a")
	})
}

// The first mistake was found out by the second look. That look is no licence for the next mistake.
func TestR7ASecondLookIsGoodForOneBurst(t *testing.T) {
	onStand(t, burst(1), func(s *stand) {
		all := []watch.Sandbox{aged("a"), aged("b")}
		look := func(edit func(*watch.Sandbox)) {
			s.pass(time.Minute)
			for _, sandbox := range all {
				edit(&sandbox)
				s.engine.start(sandbox)
			}
			s.list()
		}
		s.run(all...)
		s.pass(time.Minute)
		s.killed()
		look(func(s *watch.Sandbox) { s.Terms.MaxAge = 1000 * time.Hour })
		s.killed()
		look(func(*watch.Sandbox) {})
		s.killed()
		look(func(*watch.Sandbox) {})
		s.killed("a", "b")
	})
}

func TestR7OnceLooksTwiceToo(t *testing.T) {
	onStand(t, func(c *reap.Config) { once(c); burst(1)(c) }, func(s *stand) {
		s.engine.start(aged("a"))
		s.engine.start(aged("b"))
		s.pass(time.Hour)
		rescans := s.told().rescans
		s.list()
		s.killed()
		s.pass(reap.DefaultPolicy().Grace)
		if err, ended := s.result(); ended {
			t.Fatalf("ended before the second look: %v", err)
		}
		if got := s.told().rescans; got != rescans+1 {
			t.Fatalf("%d scans are asked for, want 1", got-rescans)
		}
		s.list()
		s.pass(time.Minute)
		if err, ended := s.result(); !ended || err != nil {
			t.Fatalf("ended %v: %v", ended, err)
		}
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
	})
}

// What a client's death asks for is a list that is newer than it. A single pass makes that list too, and ends when it has
// asked often enough.
func TestOnceLooksAgainWhenAClientHasDied(t *testing.T) {
	for name, test := range map[string]struct {
		fresh bool // the further scans show the sandbox as it is
		scans int
		left  []string
	}{
		"and reaps":               {true, 2, nil},
		"but not again and again": {false, 5, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			onStand(t, once, func(s *stand) {
				client := watch.Process{PID: 100, Start: 7, Boot: thisBoot}
				s.engine.start(born("a", nil, ownedBy(aClient)))
				first := s.engine.list()
				s.pass(time.Hour)
				scans := 0
				for {
					if err, ended := s.result(); ended {
						if err != nil || scans != test.scans {
							t.Errorf("ended %v after %d scans", err, scans)
						}
						break
					}
					if scans++; scans > 10 {
						t.Fatal("it does not end")
					}
					list := watch.Event(first)
					if test.fresh {
						list = s.engine.list()
					}
					s.inbox.Post(
						watch.ScanBegun{At: time.Now()}, list,
						watch.ClientsSeen{ID: id("a"), Clients: []watch.Client{{Process: client}}, At: time.Now()},
						watch.ProcessSeen{PID: 100, Process: client, Life: watch.Exited, At: time.Now().Add(time.Millisecond)},
						watch.ScanEnded{At: time.Now()},
					)
					s.pass(time.Minute)
				}
				if got := s.engine.names(); !slices.Equal(got, test.left) {
					t.Errorf("left are %v, want %v", got, test.left)
				}
			})
		})
	}
}

// A second look that fails is the end of it, and is said.
func TestR7OnceDoesNotLookForEver(t *testing.T) {
	onStand(t, func(c *reap.Config) { once(c); burst(0)(c) }, func(s *stand) {
		s.engine.start(aged("a"))
		s.pass(time.Hour)
		s.list()
		s.pass(time.Minute)
		s.inbox.Post(watch.ScanBegun{At: time.Now()}, watch.ListFailed{Kind: watch.Container, At: time.Now(), Err: errBusy}, watch.ScanEnded{Failed: 1})
		s.settle()
		if err, ended := s.result(); !ended || err != nil {
			t.Fatalf("ended %v: %v", ended, err)
		}
		if s.loop.ScanError() == nil {
			t.Error("not said")
		}
		s.killed()
	})
}

// R1: what was begun for want of an owner ends when the owner is back, and leaves nothing on record.
func TestAnOwnerThatIsBackEndsTheReap(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(removing(busy)), func(s *stand) {
		look := func(life watch.Life) {
			s.inbox.Post(watch.ContainerSeen{Ref: "boss", Named: true, Container: "B", Life: life, Asked: time.Now()})
			s.settle()
		}
		s.run(born("a", labels{"owner": "container:boss"}))
		look(watch.Alive)
		look(watch.Exited)
		s.pass(reap.DefaultPolicy().Grace)
		look(watch.Exited)
		s.pass(time.Second)
		docket.holds("a")
		tries := len(s.engine.tries())
		if tries == 0 {
			t.Fatal("not tried")
		}
		look(watch.Alive)
		s.pass(time.Hour)
		if got := len(s.engine.tries()); got != tries {
			t.Errorf("%d attempts at what has an owner", got-tries)
		}
		docket.holds()
		if got := s.told().status; got.Open != 0 || got.Sandboxes != 1 {
			t.Errorf("status %+v", got)
		}
	})
}
