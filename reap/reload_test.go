package reap_test

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// This file is about the loop and rules: who asks for a count, which policy is in force, and what a change of the rules does
// to a reap that was begun.

// byRule is a sandbox of a rule, made now.
func byRule(name, rule string, claims ...watch.Claim) watch.Sandbox {
	return born(name, nil, ownedBy(claims...), func(s *watch.Sandbox) { s.Terms.Rule = rule })
}

// counted is a complete look for the processes of the program, now: later than whatever was seen.
func (s *stand) counted(members ...watch.Member) {
	s.pass(1)
	s.inbox.Post(watch.ProgramListed{Program: "agentd", Asked: time.Now(), Members: members})
	s.settle()
}

// agentdNow is the process of the program, as old as a stand's owners.
func agentdNow(life watch.Life) watch.Member {
	m := agentd
	m.Born, m.Life, m.At = time.Now().Add(-time.Hour), life, time.Now()
	return m
}

func TestAProgramDiesAndItsSandboxesGo(t *testing.T) {
	onStand(t, nil, func(s *stand) {
		s.run(byRule("a", "rule", aProgram))
		if got := s.told().counts; got != 1 {
			t.Errorf("%d counts are asked for", got)
		}
		s.pass(time.Minute)
		s.did() // nobody has counted
		s.counted(agentdNow(watch.Alive))
		s.pass(time.Minute)
		s.run(byRule("b", "rule", aProgram))
		s.counted(agentdNow(watch.Alive))
		if got := s.told().counts; got != 2 {
			t.Errorf("%d counts are asked for, of two sandboxes", got)
		}
		s.list()
		if got := s.told().counts; got != 2 {
			t.Errorf("%d counts are asked for, and nothing was new", got)
		}
		s.pass(time.Second - 1)
		s.did()
		s.inbox.Post(watch.ProgramSeen{Program: "agentd", Member: agentdNow(watch.Exited), At: time.Now()})
		s.settle()
		s.killed("a") // b was made a moment ago
		s.pass(time.Second)
		s.killed("a", "b")
		s.pass(time.Second)
		for _, r := range s.told().reports {
			if r.Reason != reap.NoPossibleOwner {
				t.Errorf("%s: %s", r.Entry.Name, r.Reason)
			}
		}
	})
}

// More of them than a burst are looked at twice, and the second look is at both: the sandboxes and the processes.
func TestR7ABurstOfAProgramIsCountedTwice(t *testing.T) {
	onStand(t, burst(1), func(s *stand) {
		s.run(byRule("a", "rule", aProgram), byRule("b", "rule", aProgram))
		s.counted()
		s.pass(reap.DefaultPolicy().Grace)
		s.killed()
		s.pass(reap.DefaultPolicy().Grace)
		s.list()
		s.pass(time.Minute)
		s.killed()
		s.counted()
		s.list()
		s.killed("a", "b")
	})
}

// While the processes cannot be counted, scan after scan finds nothing new. They are made when they are due, and not one upon
// the other.
func TestR7ACountThatFailsDoesNotMakeScansTurn(t *testing.T) {
	onStand(t, burst(1), func(s *stand) {
		s.run(byRule("a", "rule", aProgram), byRule("b", "rule", aProgram))
		s.counted()
		s.pass(time.Minute)
		rescans := s.told().rescans
		for range 10 {
			s.inbox.Post(watch.ScanBegun{At: time.Now()}, s.engine.list(), watch.ListFailed{Kind: watch.Processes, At: time.Now(), Err: errBusy}, watch.ScanEnded{At: time.Now(), Failed: 1})
			s.pass(time.Second)
		}
		if got := s.told().rescans; got != rescans {
			t.Errorf("%d scans are asked for by scans", got-rescans)
		}
		s.killed()
		s.counted()
		s.killed("a", "b")
	})
}

func TestEachRuleHasItsAlarm(t *testing.T) {
	var policies chan reap.Policy
	edit := func(c *reap.Config) {
		policies = make(chan reap.Policy)
		c.Policies = policies
		c.Policy.Alarm, c.Policy.Alarms = 1, map[string]int{"many": 3, "none": 0}
	}
	onStand(t, edit, func(s *stand) {
		told := func(level slog.Level) (rules []string) {
			s.settle()
			for _, rec := range s.log.told(watch.EventAlarm, slog.LevelInfo) {
				if rec.level == level {
					rules = append(rules, rec.attrs[watch.KeyRule].(string))
				}
			}
			slices.Sort(rules)
			return rules
		}
		check := func(up, down []string, alarm bool) {
			t.Helper()
			if diff := cmp.Diff(up, told(slog.LevelWarn)) + cmp.Diff(down, told(slog.LevelInfo)); diff != "" || s.told().status.Alarm != alarm {
				t.Fatalf("alarm: %v, told (-want +got)\n%s", s.told().status.Alarm, diff)
			}
		}
		s.run(byRule("a", "many"), byRule("b", "many"), byRule("c", "many"), byRule("d", "other"))
		check(nil, nil, false)
		s.run(byRule("e", "other"))
		check([]string{"other"}, nil, true)
		s.run(byRule("f", "many"))
		check([]string{"many", "other"}, nil, true)
		s.run(byRule("g", "none"))
		check([]string{"many", "none", "other"}, nil, true)
		threshold := map[any]any{}
		for _, rec := range s.log.told(watch.EventAlarm, slog.LevelWarn) {
			threshold[rec.attrs[watch.KeyRule]] = rec.attrs[watch.KeyThreshold]
		}
		if diff := cmp.Diff(map[any]any{"many": int64(3), "other": int64(1), "none": int64(0)}, threshold); diff != "" {
			t.Errorf("thresholds (-want +got)\n%s", diff)
		}
		// Other numbers are in force at once, without any news of a sandbox.
		pol := reap.DefaultPolicy()
		pol.Alarm, pol.Alarms = 5, map[string]int{"other": 1}
		policies <- pol
		check([]string{"many", "none", "other"}, []string{"many", "none"}, true)
		pol.Alarms = nil
		policies <- pol
		check([]string{"many", "none", "other"}, []string{"many", "none", "other"}, false)
		pol.Alarm = 3
		policies <- pol
		check([]string{"many", "many", "none", "other"}, []string{"many", "none", "other"}, true)
		// A rule of which none is left has no alarm.
		s.inbox.Post(watch.Listed{Kind: watch.Container, Asked: time.Now().Add(time.Second)})
		check([]string{"many", "many", "none", "other"}, []string{"many", "many", "none", "other"}, false)
	})
}

// A policy that comes while the loop runs is the one by which it judges from then on.
func TestAPolicyMayChange(t *testing.T) {
	var policies chan reap.Policy
	edit := func(c *reap.Config) {
		policies = make(chan reap.Policy)
		c.Policies = policies
	}
	onStand(t, edit, func(s *stand) {
		pol := reap.DefaultPolicy()
		pol.Grace = time.Minute
		policies <- pol
		s.run(byRule("a", "rule", aProgram))
		s.counted()
		s.pass(time.Minute - 2)
		s.killed()
		s.pass(1)
		s.killed("a")
		s.pass(time.Second)

		s.engine.remove = busy
		s.run(born("b", labels{"ttl": "1m"}, stopped))
		pol.Base, pol.Cap = 10*time.Second, 10*time.Second
		policies <- pol
		s.pass(time.Minute)
		tries := len(s.engine.tries())
		s.pass(7 * time.Second)
		if got := len(s.engine.tries()); got != tries {
			t.Errorf("%d attempts by the old policy", got-tries)
		}
		s.pass(3 * time.Second)
		if got := len(s.engine.tries()); got <= tries {
			t.Error("no attempt by the new one")
		}
	})
}

// The rules change while a removal fails: what was begun is finished, though nobody watches it any more, also after a
// restart.
func TestR5ANewRuleDoesNotEndAReap(t *testing.T) {
	docket := newState(t)
	unwatchedList := func() watch.Event {
		return watch.Listed{Kind: watch.Container, Asked: time.Now(), Unwatched: []watch.ID{id("a"), id("b")}}
	}
	onStand(t, docket.with(removing(busy)), func(s *stand) {
		s.run(byRule("a", "rule", aPID), byRule("b", "rule", aBoss)) // of a the owner is dead
		s.pass(time.Minute)
		s.killed("a")
		s.inbox.Post(unwatchedList())
		s.pass(time.Minute)
		if got := s.told().status; got.Open != 1 || got.Sandboxes != 1 {
			t.Errorf("status %+v", got)
		}
		docket.holds("a")
		tries := len(s.engine.tries())
		s.pass(10 * time.Minute)
		if len(s.engine.tries()) == tries {
			t.Error("it is not tried any more")
		}
	})
	onStand(t, docket.with(), func(s *stand) {
		s.inbox.Post(unwatchedList())
		s.pass(time.Minute)
		if got := s.told().status; got.Reaped != 1 || got.Open != 0 {
			t.Errorf("status %+v", got)
		}
		docket.holds()
	})
}

// A rule is gone and comes back. What an operator dropped meanwhile stays dropped.
func TestADropOutlivesARule(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(removing(busy)), func(s *stand) {
		s.run(byRule("a", "rule", aPID))
		s.pass(time.Minute)
		if err := docket.Drop(id("a")); err != nil {
			t.Fatal(err)
		}
		s.pass(10 * time.Minute)
		s.inbox.Post(watch.Listed{Kind: watch.Container, Asked: time.Now(), Unwatched: []watch.ID{id("a")}})
		s.pass(time.Second)
		tries := len(s.engine.tries())
		s.list()
		s.pass(time.Hour)
		if got := len(s.engine.tries()); got != tries {
			t.Errorf("%d attempts at what was dropped", got-tries)
		}
		if dropped, err := docket.IsDropped(id("a")); err != nil || !dropped {
			t.Errorf("dropped: %v, %v", dropped, err)
		}
	})
}
