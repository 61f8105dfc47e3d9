package reap_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// ordering is a loop that is there for an operator who orders the end of these.
func ordering(names ...string) func(*reap.Config) {
	return func(c *reap.Config) {
		c.Once = true
		c.Order = func(p *watch.Picture, _ error) (ids []watch.ID) {
			for _, id := range p.IDs() {
				if slices.Contains(names, id.Name) {
					ids = append(ids, id)
				}
			}
			return ids
		}
	}
}

// carriedOut waits for the end of a loop that was there for an order.
func (s *stand) carriedOut() {
	s.Helper()
	s.pass(time.Minute)
	if err, ended := s.result(); !ended || err != nil {
		s.Fatalf("ended %v: %v", ended, err)
	}
}

func TestAnOrderEndsWhateverElseIsKnown(t *testing.T) {
	docket := newState(t)
	var mu sync.Mutex
	var told []string
	tell := func(c *reap.Config) {
		c.Told = func(id watch.ID, what string, err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(id.Name, " ", what, " ", err))
		}
	}
	names := []string{"lives", "pinned", "faulty", "protected", "paused", "exited", "unowned"}
	onStand(t, docket.with(ordering(names...), tell), func(s *stand) {
		s.owners.live(100)
		for _, sandbox := range []watch.Sandbox{
			born("lives", labels{"owner": "100"}),
			born("pinned", labels{"keep": "true"}),
			born("faulty", labels{"ttl": "soon"}),
			born("protected", labels{"owner": "100"}, func(s *watch.Sandbox) { s.Terms.Protected = "com.docker.compose.project" }),
			born("paused", labels{"owner": "100"}, func(s *watch.Sandbox) { s.State = watch.Paused }),
			born("exited", labels{"owner": "100"}, stopped),
			born("unowned", labels{"group": "h"}, stopped),
			born("another", labels{"owner": "100"}),
			born("orphan", labels{"owner": "200"}),
			born("old", labels{"ttl": "1ns"}),
		} {
			s.engine.start(sandbox)
		}
		s.list()
		s.carriedOut()
		if got, want := s.engine.names(), []string{"another", "old", "orphan"}; !slices.Equal(got, want) {
			t.Errorf("left are %q, want %q", got, want)
		}
		for _, what := range s.engine.did() {
			for _, name := range []string{" another", " old", " orphan", "kill paused", "kill exited"} {
				if strings.HasSuffix(what, name) {
					t.Errorf("the engine was asked: %s", what)
				}
			}
		}
		reaped := s.log.told(watch.EventReaped, slog.LevelInfo)
		for _, rec := range reaped {
			if rec.attrs[watch.KeyReason] != string(reap.Operator) || rec.attrs[watch.KeyStopUS] != nil {
				t.Errorf("told as reaped: %v, want the reason %s and no owner's death", rec.attrs, reap.Operator)
			}
		}
		if len(reaped) != len(names) || len(s.told().reports) != len(names) {
			t.Errorf("%d told and %d reported, want %d", len(reaped), len(s.told().reports), len(names))
		}
		for _, event := range []string{watch.EventOwnerExited, watch.EventHeld, watch.EventAlarm, watch.EventScan} {
			if got := s.log.told(event, slog.LevelInfo); len(got) > 0 {
				t.Errorf("told of %s: %v", event, got)
			}
		}
	})
	docket.holds()
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"lives record <nil>", "lives kill <nil>", "lives remove <nil>", "paused record <nil>", "paused remove <nil>"} {
		if !slices.Contains(told, want) {
			t.Errorf("the operator was told %q, which lacks %q", told, want)
		}
	}
	if slices.Contains(told, "paused kill <nil>") {
		t.Errorf("a paused one was signalled: %q", told)
	}
}

// The operator's word is nowhere else.
func TestR8AnOrderIsOnRecordBeforeTheStop(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(ordering("a")), func(s *stand) {
		var atStop map[string]reap.Case
		s.engine.refuse = func(watch.Step) error {
			atStop, _ = docket.loaded()
			return nil
		}
		s.owners.live(100)
		s.engine.start(born("a", labels{"owner": "100"}))
		s.list()
		s.carriedOut()
		if c := atStop["a"]; c.Reason != reap.Operator || c.Owner != "100" || len(c.Steps) != 2 {
			t.Errorf("on record before the stop: %+v", atStop)
		}
	})
	docket.holds()
}

func TestAnOrderGrantsAStopTimeout(t *testing.T) {
	onStand(t, ordering("a"), func(s *stand) {
		s.owners.live(100)
		s.engine.start(born("a", labels{"owner": "100", "stop-timeout": "5s"}))
		s.list()
		s.carriedOut()
		s.did("0s terminate a", "5s kill a", "5.042s remove a")
	})
}

// The operator is told once that it is gone, whoever tells it first.
func TestAnOrderIsToldToItsEndOnce(t *testing.T) {
	for name, edit := range map[string]func(*stand){
		"the removal": func(*stand) {},
		"the system, of the removal": func(s *stand) {
			s.engine.remove = func(context.Context, string) error {
				s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()})
				<-time.After(time.Millisecond)
				return nil
			}
		},
		"the system, by itself": func(s *stand) {
			s.engine.refuse = func(watch.Step) error {
				s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()})
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			removed := 0
			tell := func(c *reap.Config) {
				c.Told = func(_ watch.ID, what string, err error) {
					mu.Lock()
					defer mu.Unlock()
					if what == "remove" && err == nil {
						removed++
					}
				}
			}
			onStand(t, newState(t).with(ordering("a"), tell), func(s *stand) {
				edit(s)
				s.engine.start(born("a", labels{"owner": "100"}))
				s.list()
				s.carriedOut()
			})
			mu.Lock()
			defer mu.Unlock()
			if removed != 1 {
				t.Errorf("told %d times, want once", removed)
			}
		})
	}
}

// What was begun before, by whomever, is the operator's from then on; what he does not speak of is left to others.
func TestAnOrderTakesOverWhatWasBegun(t *testing.T) {
	for name, remove := range map[string]func(context.Context, string) error{"goes": nil, "fails": busy} {
		t.Run(name, func(t *testing.T) {
			docket := newState(t)
			docket.write(failed("a", 9), failed("b", 9), aCase("c"), aCase("gone"))
			onStand(t, docket.with(ordering("a"), removing(remove)), func(s *stand) {
				for _, name := range []string{"a", "b", "c"} {
					s.engine.start(unowned(name))
				}
				s.list()
				s.carriedOut()
				s.did("0s remove a")
			})
			cases, _ := docket.loaded()
			if remove == nil {
				docket.holds("b", "c", "gone")
				return
			}
			docket.holds("a", "b", "c", "gone")
			if a := cases["a"]; a.Reason != reap.Operator || a.Attempts != 10 || a.Error != errBusy.Error() || a.First.IsZero() {
				t.Errorf("on record: %+v", a)
			}
			if b := cases["b"]; b.Reason == reap.Operator || b.Attempts != 9 {
				t.Errorf("on record: %+v", b)
			}
		})
	}
}

func TestAnOrderThatFailsIsLeftOnRecord(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(ordering("a"), removing(busy)), func(s *stand) {
		s.owners.live(100)
		s.engine.start(born("a", labels{"owner": "100"}))
		s.list()
		s.carriedOut()
		s.did("0s kill a", "42ms remove a")
		if got := s.told().reports; len(got) != 1 || got[0].Reason != reap.Operator || got[0].Err == nil {
			t.Errorf("reported %+v", got)
		}
	})
	cases, _ := docket.loaded()
	if a := cases["a"]; a.Reason != reap.Operator || a.Attempts != 1 {
		t.Errorf("on record: %+v", a)
	}
	// Whoever comes next finishes it, although its owner lives and it would be kept.
	onStand(t, docket.with(once), func(s *stand) {
		s.owners.live(100)
		s.engine.start(born("a", labels{"owner": "100"}, stopped))
		s.list()
		s.carriedOut()
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %q", got)
		}
	})
	docket.holds()
}

func TestW7AnOrderEndsADrop(t *testing.T) {
	docket := newState(t)
	if err := docket.Drop(id("a")); err != nil {
		t.Fatal(err)
	}
	onStand(t, docket.with(ordering("a")), func(s *stand) {
		s.engine.start(unowned("a"))
		s.list()
		s.carriedOut()
		s.did("0s remove a")
	})
	if ids, err := docket.Dropped(); err != nil || len(ids) > 0 {
		t.Errorf("dropped: %v, %v", ids, err)
	}
}

// What a container uses goes after it, if both are ordered, and else stays.
func TestAnOrderWaitsForWhoUsesIt(t *testing.T) {
	for name, names := range map[string][]string{"both": {"a", "v"}, "one": {"v"}} {
		t.Run(name, func(t *testing.T) {
			docket := newState(t)
			onStand(t, docket.with(ordering(names...), withGroups), func(s *stand) {
				s.owners.live(100)
				s.engine.start(born("a", labels{"owner": "100"}))
				s.engine.start(belonging(watch.Volume, "v"))
				s.scan()
				s.pass(time.Second)
				if n := s.told().rescans; n == 0 {
					t.Fatal("no further scan was asked for")
				}
				s.scan()
				s.carriedOut()
				want := []string{"a", "v"}
				if len(names) == 2 {
					want = []string{}
				}
				if got := s.engine.names(); !slices.Equal(got, want) {
					t.Errorf("left are %q, want %q", got, want)
				}
			})
			docket.holds()
		})
	}
}

// Somebody began to use it in the last moment: it is not tried for ever.
func TestAnOrderEndsWhenItIsInUse(t *testing.T) {
	onStand(t, ordering("a"), func(s *stand) {
		s.engine.remove = func(context.Context, string) error { return fmt.Errorf("remove a: %w", watch.ErrInUse) }
		s.engine.start(unowned("a"))
		s.list()
		s.carriedOut()
		s.did("0s remove a")
	})
}

func TestAnOrderOfNothing(t *testing.T) {
	onStand(t, ordering(), func(s *stand) {
		s.engine.start(born("a", labels{"owner": "100"}))
		s.list()
		s.carriedOut()
		s.did()
	})
}

// The operator's process died, and a daemon was there all the time.
func TestADaemonGoesOnWithAnOrder(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(), func(s *stand) {
		s.owners.live(100)
		s.run(born("a", labels{"owner": "100"}), born("b", labels{"owner": "100"}))
		s.list()
		a := aCase("a")
		a.Reason = reap.Operator
		docket.write(a, aCase("b")) // that of another --once, which is at it or comes back
		s.pass(time.Hour)
		s.did()
		s.list()
		s.pass(time.Minute)
		if got := s.engine.names(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("left are %q", got)
		}
		if got := s.log.told(watch.EventReaped, slog.LevelInfo); len(got) != 1 || got[0].attrs[watch.KeyReason] != string(reap.Operator) {
			t.Errorf("told as reaped: %v", got)
		}
		docket.holds("b")
		s.list()
		s.pass(time.Minute)
		if got := s.log.told(watch.EventReaped, slog.LevelInfo); len(got) != 1 {
			t.Errorf("told as reaped once more: %v", got)
		}
	})
}
