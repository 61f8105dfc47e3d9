package reap_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

var errBusy = errors.New("device or resource busy")

// hang is a removal that ends only when its time is over.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestOwnerDiesAndItsSandboxesGo(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		s.owners.live(200)
		s.run(born("a", labels{"owner": "100"}), born("b", labels{"owner": "200"}))
		s.pass(time.Hour)
		s.did()
		s.owners.die(100)
		s.pass(time.Hour)
		s.did("1h0m0s kill a", "1h0m0.042s remove a")
		if got := s.engine.names(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("left are %v", got)
		}
		if diff := cmp.Diff(reap.Status{Sandboxes: 1, Reaped: 1}, s.told().status); diff != "" {
			t.Errorf("status (-want +got)\n%s", diff)
		}
	})
}

func TestTimeToLiveEndsWhenItEndsAndNotAtTheNextScan(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.run(born("a", labels{"ttl": "10m"}), born("b", labels{"ttl": "1h"}))
		s.pass(10*time.Minute - 1)
		s.did()
		s.pass(1)
		s.did("10m0s kill a")
		s.pass(time.Hour)
		s.did("10m0s kill a", "10m0.042s remove a", "1h0m0s kill b", "1h0m0.042s remove b")
	})
}

func TestStopTimeoutIsGranted(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.run(born("a", labels{"ttl": "1m", "stop-timeout": "5s"}))
		s.pass(time.Hour)
		s.did("1m0s terminate a", "1m5s kill a", "1m5.042s remove a")
	})
}

func TestAStopThatFailsIsFollowedByTheRemovalAtOnce(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.engine.refuse = func(watch.Step) error { return errors.New("its init is not held") }
		s.run(born("a", labels{"ttl": "1m"}), born("b", labels{"ttl": "1m", "stop-timeout": "1h"}))
		s.pass(time.Minute)
		got := s.engine.did()
		slices.Sort(got)
		if want := []string{"1m0s kill a", "1m0s remove a", "1m0s remove b", "1m0s terminate b"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// What an engine never says does not keep a sandbox for ever.
func TestAMissingWordOfTheDeathDelaysTheRemovalALittle(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.engine.refuse = func(watch.Step) error { return nil } // and nothing follows from it
		s.run(born("a", labels{"ttl": "1m"}))
		s.pass(time.Hour)
		s.did("1m0s kill a", "1m2s remove a")
	})
}

func TestR3AllAreStoppedBeforeTheFirstIsRemoved(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		for i := range 20 {
			sandbox := born(fmt.Sprintf("%02d", i), labels{"owner": "100"})
			if i%2 == 0 {
				stopped(&sandbox) // those could be removed at once
			}
			s.run(sandbox)
		}
		s.owners.die(100)
		s.pass(time.Hour)
		did := s.engine.did()
		for i, what := range did[:10] {
			if !strings.Contains(what, " kill ") {
				t.Errorf("step %d is %q, and not all are stopped yet", i, what)
			}
		}
		if len(did) != 30 || len(s.engine.names()) != 0 {
			t.Errorf("%d steps, left are %v", len(did), s.engine.names())
		}
	})
}

func TestR5FailedRemovalsAreRetriedSlowerAndSlowerForEver(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		var works atomic.Bool
		s.engine.remove = func(context.Context, string) error {
			if works.Load() {
				return nil
			}
			return errBusy
		}
		s.run(born("a", labels{"ttl": "1m"}, stopped))
		s.pass(2 * time.Hour)
		tries := s.engine.tries()
		if len(tries) < 20 {
			t.Fatalf("%d attempts in two hours", len(tries))
		}
		full := time.Second
		for i, try := range tries[1:] {
			if i+1 >= 8 {
				full = 5 * time.Minute // a dead letter
			}
			if gap := try.Sub(tries[i]); gap > full || gap < full*4/5 {
				t.Errorf("attempt %d came %s after the one before, want %s less a fifth at most", i+2, gap, full)
			}
			full = min(2*full, 5*time.Minute)
		}

		if got := s.log.told(watch.EventReapFailed, slog.LevelWarn); len(got) != 7 {
			t.Errorf("%d failures are told before it is given up on, want 7", len(got))
		}
		gaveUp := s.log.told(watch.EventGaveUp, slog.LevelError)
		if len(gaveUp) != 1 || gaveUp[0].attrs[watch.KeyAttempt] != int64(8) || !errors.Is(gaveUp[0].attrs[watch.KeyError].(error), errBusy) {
			t.Errorf("gave up: %+v", gaveUp)
		}
		if got := s.log.told(watch.EventOwnerExited, slog.LevelDebug); len(got) != 0 {
			t.Errorf("attempts are told as deaths: %+v", got)
		}
		failed := len(tries)
		works.Store(true)
		s.pass(5 * time.Minute)
		reaped := s.log.told(watch.EventReaped, slog.LevelInfo)
		if len(reaped) != 1 || reaped[0].attrs[watch.KeyAttempt] != int64(failed+1) || reaped[0].attrs[watch.KeyReason] != "expired" {
			t.Errorf("reaped: %+v", reaped)
		}
		if want := (reap.Status{Reaped: 1, Failed: failed}); s.told().status != want {
			t.Errorf("status %+v, want %+v", s.told().status, want)
		}
		if len(s.told().reports) != failed+1 || s.told().reports[0].Err == nil || s.told().reports[failed].Err != nil || s.told().reports[failed].Reason != reap.Expired {
			t.Errorf("%d reports", len(s.told().reports))
		}
	})
}

func TestOneThatCannotBeRemovedDelaysNoOther(t *testing.T) {
	for name, stuck := range map[string]func(context.Context) error{
		"it fails": func(context.Context) error { return errBusy },
		"it hangs": hang,
	} {
		t.Run(name, func(t *testing.T) {
			onStand(t, func(c *reap.Config) { c.Workers = 2 }, func(s *stand) {
				s.engine.remove = func(ctx context.Context, name string) error {
					if name == "a" {
						return stuck(ctx)
					}
					return nil
				}
				for _, name := range []string{"a", "b", "c", "d"} {
					s.run(born(name, labels{"ttl": "1m"}))
				}
				s.pass(time.Minute + engineSees)
				if got := s.engine.names(); !slices.Equal(got, []string{"a"}) {
					t.Errorf("left are %v", got)
				}
			})
		})
	}
}

// A removal that hangs is given up after its time, and tried again.
func TestARemovalHasItsTimeAndNoMore(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Timeout = 7 * time.Second }, func(s *stand) {
		s.engine.remove = func(ctx context.Context, _ string) error { return hang(ctx) }
		s.run(born("a", labels{"ttl": "1m"}, stopped))
		s.pass(time.Minute + 7*time.Second)
		failed := s.log.told(watch.EventReapFailed, slog.LevelWarn)
		if len(failed) != 1 || !errors.Is(failed[0].attrs[watch.KeyError].(error), context.DeadlineExceeded) {
			t.Errorf("told: %+v", failed)
		}
		s.pass(time.Second)
		if got := s.engine.did(); len(got) != 2 {
			t.Errorf("asked: %q", got)
		}
	})
}

func TestNoMoreRemovalsAtOnceThanWorkers(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Workers = 3 }, func(s *stand) {
		for i := range 10 {
			s.run(born(fmt.Sprintf("%02d", i), labels{"ttl": "1m"}))
		}
		s.pass(time.Hour)
		if s.engine.most != 3 {
			t.Errorf("%d removals at once, want 3", s.engine.most)
		}
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
	})
}

// The engine of the stand fails the test itself when it is asked twice at once.
func TestR4NothingThatIsHeardWhileASandboxIsRemovedBeginsAnotherStep(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		s.engine.remove = func(context.Context, string) error {
			<-time.After(10 * time.Second)
			return nil
		}
		a := born("a", labels{"owner": "100", "ttl": "1h"})
		s.run(a)
		s.owners.die(100)
		for range 20 {
			s.pass(100 * time.Millisecond)
			s.list()
			s.inbox.Post(
				watch.SandboxSeen{Sandbox: a, Asked: time.Now()},
				bossGone, bossDead,
				ours,
				watch.StepEnded{ID: a.ID, Step: watch.Kill, At: time.Now()},
				watch.InitExited{ID: a.ID, Process: a.Init, At: time.Now()},
				away, here,
				watch.StepEnded{ID: a.ID, Step: watch.Record, At: time.Now()},
			)
			s.settle()
		}
		s.did("0s kill a", "42ms remove a")
		s.pass(10 * time.Second)
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
	})
}

// Queued removals wait for a worker; what goes by itself meanwhile is not asked for.
func TestWhatWentByItselfIsNotRemovedAgain(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Workers = 1 }, func(s *stand) {
		s.engine.remove = func(context.Context, string) error {
			<-time.After(time.Second)
			return nil
		}
		s.run(born("a", labels{"ttl": "1m"}, stopped), born("b", labels{"ttl": "1m"}, stopped))
		s.pass(time.Minute)
		s.inbox.Post(watch.SandboxGone{ID: id("b"), At: time.Now()})
		s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()})
		s.pass(time.Minute)
		s.did("1m0s remove a")
		if got := s.log.told(watch.EventReaped, slog.LevelInfo); len(got) != 2 {
			t.Errorf("%d are told as reaped, want each once", len(got))
		}
		if s.told().status.Open != 0 || s.told().status.Reaped != 2 {
			t.Errorf("status %+v", s.told().status)
		}
	})
}

func TestWhatGoesWithoutUsIsNotOurs(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		s.run(born("a", labels{"owner": "100"}))
		s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()})
		s.settle()
		if got := s.log.told(watch.EventReaped, slog.LevelDebug); len(got) > 0 || s.told().status.Reaped > 0 || len(s.told().reports) > 0 {
			t.Errorf("told: %+v, status %+v", got, s.told().status)
		}
	})
}

func TestOwnersAreHeldAsLongAsAnybodyClaimsThem(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		s.owners.live(200)
		s.run(born("a", labels{"owner": "100"}), born("b", labels{"owner": "100"}), born("c", labels{"owner": "200"}))
		want := func(pids ...int) {
			t.Helper()
			if got := s.owners.holds(); !slices.Equal(got, pids) {
				t.Fatalf("held are %v, want %v", got, pids)
			}
		}
		want(100, 200)
		s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()}, watch.SandboxGone{ID: id("c"), At: time.Now()})
		s.settle()
		want(100)
		s.inbox.Post(watch.SandboxGone{ID: id("b"), At: time.Now()})
		s.settle()
		want()
		// One that came and went before anybody looked.
		s.pass(time.Second)
		s.inbox.Post(watch.SandboxSeen{Sandbox: born("d", labels{"owner": "100"}), Asked: time.Now()}, watch.SandboxGone{ID: id("d"), At: time.Now()})
		s.settle()
		want()
		// One that went as another came.
		s.run(born("e", labels{"owner": "200"}))
		s.inbox.Post(watch.SandboxGone{ID: id("e"), At: time.Now()}, watch.SandboxSeen{Sandbox: born("f", labels{"owner": "200"}), Asked: time.Now()})
		s.settle()
		want(200)
	})
}

func TestADeathThatNobodyToldIsFound(t *testing.T) {
	for name, event := range map[string]watch.Event{
		"by a scan":                 watch.ScanBegun{},
		"when a source lost events": watch.SourceLost{Source: "connector", Err: errBusy},
	} {
		t.Run(name, func(t *testing.T) {
			onStand(t, nil, func(s *stand) {
				s.owners.live(100)
				s.run(born("a", labels{"owner": "100"}))
				s.owners.vanish(100)
				s.pass(time.Hour)
				s.did()
				s.inbox.Post(event)
				s.pass(time.Minute)
				s.did("1h0m0s kill a", "1h0m0.042s remove a")
			})
		})
	}
}

func TestDrain(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Workers = 1 }, func(s *stand) {
		s.owners.live(100)
		s.engine.remove = func(context.Context, string) error {
			<-time.After(time.Second)
			return nil
		}
		// One is being removed, one waits for a worker, one was only just killed.
		s.run(born("a", labels{"ttl": "1m"}, stopped), born("b", labels{"ttl": "1m"}, stopped), born("c", labels{"ttl": "1m"}), born("d", labels{"owner": "100"}))
		s.pass(time.Minute)
		s.cancel()
		// The end of an owner comes too late.
		s.owners.die(100)
		s.settle()
		if err, ended := s.result(); ended {
			t.Fatalf("ended with reaps under way: %v", err)
		}
		s.pass(4 * time.Second)
		if err, ended := s.result(); !ended || !errors.Is(err, context.Canceled) || errors.Is(err, reap.ErrUnfinished) {
			t.Errorf("ended %v: %v", ended, err)
		}
		if got := s.engine.names(); !slices.Equal(got, []string{"d"}) {
			t.Errorf("left are %v: what was begun is to be finished, and nothing new begun", got)
		}
	})
}

func TestDrainIsBounded(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		cancelled := false
		s.engine.remove = func(ctx context.Context, _ string) error {
			err := hang(ctx)
			cancelled = errors.Is(err, context.Canceled)
			return err
		}
		s.run(born("a", labels{"ttl": "1m"}, stopped))
		s.pass(time.Minute)
		s.cancel()
		s.pass(reap.DrainFor - 1)
		if err, ended := s.result(); ended {
			t.Fatalf("ended before its time: %v", err)
		}
		s.pass(1)
		err, ended := s.result()
		if !ended || !errors.Is(err, reap.ErrUnfinished) {
			t.Fatalf("ended %v: %v", ended, err)
		}
		if !cancelled {
			t.Error("the removal goes on without anybody to hear of its end")
		}
		if told := s.log.told(watch.EventReapFailed, slog.LevelError); len(told) != 1 || told[0].attrs[watch.KeyID] != "a" {
			t.Errorf("told: %+v", told)
		}
	})
}

// A retry may be minutes away.
func TestDrainDoesNotWaitForRetries(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.engine.remove = func(context.Context, string) error { return errBusy }
		s.run(born("a", labels{"ttl": "1m"}, stopped))
		s.pass(10 * time.Minute)
		s.cancel()
		s.settle()
		if err, ended := s.result(); !ended || !errors.Is(err, context.Canceled) || errors.Is(err, reap.ErrUnfinished) {
			t.Errorf("ended %v: %v", ended, err)
		}
	})
}

func TestAnInterruptWithNothingBegunIsTheEnd(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		s.run(born("a", labels{"owner": "100"}))
		s.cancel()
		s.owners.die(100)
		s.settle()
		if err, ended := s.result(); !ended || !errors.Is(err, context.Canceled) {
			t.Errorf("ended %v: %v", ended, err)
		}
		s.did()
	})
}

func once(c *reap.Config) { c.Once = true }

func TestOnceCarriesAScanThroughAndReturns(t *testing.T) {
	onStand(t, once, func(s *stand) {
		s.owners.live(200)
		s.engine.start(born("a", labels{"owner": "100"}))
		s.engine.start(born("b", labels{"owner": "200"}))
		s.pass(time.Hour)
		if err, ended := s.result(); ended {
			t.Fatalf("ended before a scan: %v", err)
		}
		s.list()
		if err, ended := s.result(); ended {
			t.Fatalf("ended with a reap under way: %v", err)
		}
		s.pass(time.Minute)
		if err, ended := s.result(); !ended || err != nil {
			t.Errorf("ended %v: %v", ended, err)
		}
		if got := s.engine.names(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("left are %v", got)
		}
		if want := (reap.Status{Scanned: true, Sandboxes: 1, Reaped: 1}); s.loop.Status() != want {
			t.Errorf("status %+v, want %+v", s.loop.Status(), want)
		}
		if err := s.loop.ScanError(); err != nil {
			t.Errorf("the scan failed: %v", err)
		}
	})
}

func TestOnceReturnsAlsoWithFailures(t *testing.T) {
	onStand(t, once, func(s *stand) {
		s.engine.remove = func(context.Context, string) error { return errBusy }
		s.engine.start(born("a", labels{"owner": "100"}))
		s.list()
		s.pass(time.Minute)
		if err, ended := s.result(); !ended || err != nil {
			t.Errorf("ended %v: %v", ended, err)
		}
		if len(s.told().reports) != 1 || !errors.Is(s.told().reports[0].Err, errBusy) || s.told().reports[0].Entry.Name != "a" {
			t.Errorf("reports %+v", s.told().reports)
		}
	})
}

func TestOnceSaysWhatItCouldNotSee(t *testing.T) {
	onStand(t, once, func(s *stand) {
		s.inbox.Post(
			watch.ScanBegun{At: time.Now()},
			watch.ListFailed{Kind: watch.Container, At: time.Now(), Err: errBusy},
			watch.ScanEnded{At: time.Now(), Failed: 1},
		)
		s.settle()
		if err, ended := s.result(); !ended || err != nil {
			t.Errorf("ended %v: %v", ended, err)
		}
		if !errors.Is(s.loop.ScanError(), errBusy) || s.loop.Status().Scanned {
			t.Errorf("the scan failed: %v, status %+v", s.loop.ScanError(), s.loop.Status())
		}
	})
}

// Several things may ask for a scan at the start. That another one has begun does not undo what the first could not see.
func TestOnceSaysWhatItCouldNotSeeAlsoAtTheBeginningOfAnotherScan(t *testing.T) {
	onStand(t, once, func(s *stand) {
		s.inbox.Post(
			watch.ScanBegun{At: time.Now()},
			watch.ListFailed{Kind: watch.Processes, At: time.Now(), Err: errBusy},
			watch.ScanEnded{At: time.Now(), Failed: 1},
			watch.ScanBegun{At: time.Now()},
		)
		s.settle()
		if err, ended := s.result(); !ended || err != nil {
			t.Errorf("ended %v: %v", ended, err)
		}
		if !errors.Is(s.loop.ScanError(), errBusy) {
			t.Errorf("the scan failed: %v, want %v", s.loop.ScanError(), errBusy)
		}
	})
}

func TestDryRunOnlySaysWhatItWouldDo(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.DryRun = true }, func(s *stand) {
		s.owners.live(100)
		s.run(
			born("a", labels{"owner": "100"}), born("b", labels{"ttl": "1m"}, stopped),
			born("c", labels{"ttl": "1m", "stop-timeout": "5s"}), born("d", labels{"keep": "true"}),
		)
		s.owners.die(100)
		for range 10 {
			s.pass(time.Hour)
			s.list()
		}
		s.did()
		var got []string
		for _, rec := range s.log.told(watch.EventWouldReap, slog.LevelInfo) {
			got = append(got, fmt.Sprint(rec.attrs[watch.KeyID], " ", rec.attrs[watch.KeyReason]))
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"a owner-exited", "b expired", "c expired"}, got); diff != "" {
			t.Errorf("told (-want +got)\n%s", diff)
		}
		if s.told().status.Open+s.told().status.Reaped > 0 {
			t.Errorf("status %+v", s.told().status)
		}
	})
}

func TestALostSourceIsSaidOnceAndAsksForAScan(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		lost := watch.SourceLost{Source: "docker", Kind: watch.Container, Err: errBusy, At: time.Now()}
		back := watch.SourceBack{Source: "docker", Kind: watch.Container, At: time.Now()}
		said := func(wantLost, wantBack, wantRescans int) {
			t.Helper()
			s.settle()
			gotLost, gotBack := s.log.told(watch.EventSourceLost, slog.LevelWarn), s.log.told(watch.EventSourceBack, slog.LevelInfo)
			if len(gotLost) != wantLost || len(gotBack) != wantBack || s.told().rescans != wantRescans {
				t.Fatalf("said to be lost %d times, back %d times, scans asked for %d; want %d, %d, %d",
					len(gotLost), len(gotBack), s.told().rescans, wantLost, wantBack, wantRescans)
			}
		}
		// That a source is there at all is no news, but what it did not tell before has to be found out.
		said(0, 0, 1)
		s.inbox.Post(back)
		said(0, 0, 2)
		s.inbox.Post(lost)
		said(1, 0, 3)
		s.inbox.Post(lost, lost)
		said(1, 0, 5)
		s.inbox.Post(watch.SourceLost{Source: "connector", Err: errBusy, At: time.Now()})
		said(2, 0, 6)
		s.inbox.Post(back)
		said(2, 1, 7)
		s.inbox.Post(back)
		said(2, 1, 8)
		s.inbox.Post(lost)
		said(3, 1, 9)
		rec := s.log.told(watch.EventSourceLost, slog.LevelWarn)[0]
		if rec.attrs[watch.KeySource] != "docker" || !errors.Is(rec.attrs[watch.KeyError].(error), errBusy) {
			t.Errorf("said: %+v", rec.attrs)
		}
	})
}

func TestAListThatFailsIsSaidOnceAndKeepsAll(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		s.run(born("a", labels{"owner": "100"}))
		failed := watch.ListFailed{Kind: watch.Container, At: time.Now(), Err: errBusy}
		for range 3 {
			s.inbox.Post(watch.ScanBegun{At: time.Now()}, failed, watch.ScanEnded{At: time.Now(), Failed: 1})
			s.settle()
		}
		if s.told().status.Sandboxes != 1 || s.told().status.Scanned {
			t.Errorf("status %+v", s.told().status)
		}
		s.pass(time.Second)
		s.list()
		if lost, back := s.log.told(watch.EventSourceLost, slog.LevelWarn), s.log.told(watch.EventSourceBack, slog.LevelInfo); len(lost) != 1 || len(back) != 1 {
			t.Errorf("said to be lost %d times and back %d times, want once each", len(lost), len(back))
		}
		if !s.told().status.Scanned {
			t.Errorf("status %+v", s.told().status)
		}
		s.did()
	})
}

// A list fails because its engine is away: that has been said.
func TestALostSourceExplainsAFailedList(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.inbox.Post(
			watch.SourceLost{Source: "docker", Kind: watch.Container, Err: errBusy, At: time.Now()},
			watch.ListFailed{Kind: watch.Container, At: time.Now(), Err: errBusy},
		)
		s.settle()
		if lost := s.log.told(watch.EventSourceLost, slog.LevelWarn); len(lost) != 1 {
			t.Errorf("said: %+v", lost)
		}
	})
}

// A connector that is lost explains no list.
func TestAnotherLostSourceExplainsNoFailedList(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.inbox.Post(
			watch.SourceLost{Source: "connector", Err: errBusy, At: time.Now()},
			watch.ListFailed{Kind: watch.Container, At: time.Now(), Err: errBusy},
		)
		s.settle()
		if lost := s.log.told(watch.EventSourceLost, slog.LevelWarn); len(lost) != 2 {
			t.Errorf("said: %+v", lost)
		}
	})
}

func TestWhatIsSaidOfAReap(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		a := born("a", labels{"owner": "100"}, func(s *watch.Sandbox) { s.Image = "busybox"; s.Name = "agent-1" })
		s.run(a)
		s.pass(time.Minute)
		s.owners.die(100)
		s.settle()
		// The kernel's own stamp comes second and is the better one.
		s.inbox.Post(watch.ProcessSeen{
			PID: 100, Process: watch.Process{PID: 100, Start: 70, Boot: thisBoot}, Life: watch.Exited, At: time.Now().Add(-200 * time.Microsecond),
		})
		s.pass(time.Minute)
		who := map[string]any{
			"kind": "container", "id": "a", "name": "agent-1", "image": "busybox", "rule": "labels", "owner": "100", "reason": "owner-exited",
		}
		with := func(more map[string]any) map[string]any {
			for key, value := range who {
				more[key] = value
			}
			return more
		}
		for event, want := range map[string]map[string]any{
			"owner-exited": with(map[string]any{"event": "owner-exited"}),
			"reaped": with(map[string]any{
				"event": "reaped", "attempt": int64(1),
				"stop_us": (initDies + 200*time.Microsecond).Microseconds(),
				"gone_us": (engineSees + removalTime + 200*time.Microsecond).Microseconds(),
			}),
		} {
			got := s.log.told(event, slog.LevelInfo)
			if len(got) != 1 {
				t.Errorf("%s is told %d times", event, len(got))
				continue
			}
			if diff := cmp.Diff(want, got[0].attrs); diff != "" {
				t.Errorf("%s (-want +got)\n%s", event, diff)
			}
		}
	})
}

// Of an owner that was dead when we came nobody knows since when, so no duration is made up.
func TestNoDurationIsMadeUp(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.run(born("a", labels{"owner": "100"}), born("b", labels{"ttl": "1s"}))
		s.pass(time.Minute)
		told := s.log.told(watch.EventReaped, slog.LevelInfo)
		if len(told) != 2 {
			t.Fatalf("%d are told as reaped", len(told))
		}
		for _, rec := range told {
			for _, key := range []string{watch.KeyStopUS, watch.KeyGoneUS} {
				if value, ok := rec.attrs[key]; ok {
					t.Errorf("%s of %s is %v", key, rec.attrs[watch.KeyID], value)
				}
			}
		}
	})
}

func TestAVerdictIsSaidWhenItChanges(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.run(born("a", labels{"owner": "-1"}), born("b", labels{"owner": "container:boss"}))
		again := func() {
			for range 5 {
				s.pass(time.Minute)
				s.list()
			}
		}
		held := func(want ...string) {
			t.Helper()
			var got []string
			for _, rec := range s.log.told(watch.EventHeld, slog.LevelWarn) {
				if rec.attrs["detail"] == "" {
					t.Errorf("no word why: %+v", rec.attrs)
				}
				got = append(got, fmt.Sprint(rec.attrs[watch.KeyID], " ", rec.attrs[watch.KeyReason]))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("held (-want +got)\n%s", diff)
			}
		}
		again()
		held("a bad-label", "b owner-unknown")
		s.inbox.Post(watch.ContainerSeen{Ref: "boss", Named: true, Container: "B", Life: watch.Alive, Asked: time.Now()})
		again()
		held("a bad-label", "b owner-unknown")
		s.did()
	})
}

func TestForeignPIDsAreSaidOnceForAll(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		foreign := watch.NamespaceSeen{Kind: watch.Container, Detail: "remote"}
		s.inbox.Post(foreign)
		for i := range 5 {
			s.run(born(fmt.Sprint(i), labels{"owner": "100"}))
		}
		s.inbox.Post(foreign, foreign)
		s.list()
		told := s.log.told(watch.EventHeld, slog.LevelWarn)
		if len(told) != 1 || told[0].attrs[watch.KeyReason] != "owner-unknown" || told[0].attrs["detail"] != "remote" {
			t.Errorf("told: %+v", told)
		}
		s.did()
		s.inbox.Post(ours)
		s.pass(time.Minute)
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
	})
}

func TestOnlyTheFirstWholeScanIsNews(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.inbox.Post(watch.ScanBegun{At: time.Now()}, watch.ScanEnded{At: time.Now(), Failed: 1})
		s.settle()
		if got := s.log.told(watch.EventScan, slog.LevelInfo); len(got) != 0 {
			t.Errorf("a scan that failed is told as done: %+v", got)
		}
		for range 3 {
			s.list()
		}
		if got := s.log.told(watch.EventScan, slog.LevelInfo); len(got) != 1 {
			t.Errorf("told %d times", len(got))
		}
		if got := s.log.told(watch.EventScan, slog.LevelDebug); len(got) != 4 {
			t.Errorf("%d of 4 scans are told to who wants to know", len(got))
		}
	})
}

func TestAPulseMakesPasses(t *testing.T) {
	onStand(t, func(c *reap.Config) { c.Pulse = 10 * time.Second }, func(s *stand) {
		before := s.told().passes
		s.pass(time.Minute)
		if got := s.told().passes - before; got != 6 {
			t.Errorf("%d passes in a minute, want 6", got)
		}
	})
}

func TestAnIdleLoopSleeps(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.owners.live(100)
		for i := range 10 {
			s.run(born(fmt.Sprint(i), labels{"owner": "100", "ttl": "1000h"}))
		}
		before := s.told().passes
		s.pass(23 * time.Hour)
		if got := s.told().passes - before; got > 0 {
			t.Errorf("%d passes, and nothing to do", got)
		}
	})
}

// The result of a removal that outlives the sandbox, or comes for one that nobody knows, harms nobody.
func TestResultsForStrangers(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.inbox.Post(
			watch.StepEnded{ID: id("x"), Step: watch.Kill, Err: errBusy, At: time.Now()},
			watch.InitExited{ID: id("x"), At: time.Now()},
			watch.SandboxGone{ID: id("x"), At: time.Now()},
		)
		s.settle()
		if s.told().status != (reap.Status{}) {
			t.Errorf("status %+v", s.told().status)
		}
	})
}
