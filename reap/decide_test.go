package reap_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// diesBy is when the engine says that a killed sandbox died, at the latest.
const diesBy = 2 * time.Second

func TestNextStep(t *testing.T) {
	broken := errors.New("its init is not held")
	full := errors.New("no space left on device")
	stopped := func(s *watch.Sandbox) { s.State, s.Init = watch.Stopped, watch.Process{} }
	paused := func(s *watch.Sandbox) { s.State = watch.Paused }
	later := func(edit func(*watch.Sandbox), when time.Duration) watch.Event {
		s := labelled("a", labels{"ttl": "1s", "stop-timeout": "5s"})
		edit(&s)
		return watch.SandboxSeen{Sandbox: s, Asked: at(when)}
	}
	initDied := func(when time.Duration) watch.Event {
		return watch.InitExited{ID: id("a"), Process: labelled("a", nil).Init, At: at(when)}
	}
	// did is a step that has ended at once.
	did := func(step watch.Step, when time.Duration, err error) []watch.Event {
		return []watch.Event{begun(step, reap.Expired, when), ended(step, when, err)}
	}
	story := func(parts ...any) (events []watch.Event) {
		for _, part := range parts {
			switch part := part.(type) {
			case watch.Event:
				events = append(events, part)
			case []watch.Event:
				events = append(events, part...)
			}
		}
		return events
	}
	killed := did(watch.Kill, 10*time.Second, nil)
	asked := did(watch.Terminate, 10*time.Second, nil)
	recorded := func(when time.Duration) []watch.Event { return did(watch.Record, when, nil) }
	for name, test := range map[string]struct {
		timeout string // stop-timeout
		edit    func(*watch.Sandbox)
		events  []watch.Event
		now     time.Duration
		want    watch.Step
		next    time.Duration // when it is decided again; 0: when something happens
	}{
		"runs: killed":                           {want: watch.Kill, now: 10 * time.Second},
		"runs, with a stop-timeout: asked":       {timeout: "5s", want: watch.Terminate, now: 10 * time.Second},
		"restarting: killed":                     {edit: func(s *watch.Sandbox) { s.State = watch.Restarting }, want: watch.Kill, now: 10 * time.Second},
		"in a state that nobody knows":           {edit: func(s *watch.Sandbox) { s.State = "stopping" }, want: watch.Kill, now: 10 * time.Second},
		"R3 a stop does not need the engine":     {events: story(away), want: watch.Kill, now: 10 * time.Second},
		"paused: a signal would not be acted on": {edit: paused, want: watch.Record, now: 10 * time.Second},
		"paused, with a stop-timeout":            {timeout: "5s", edit: paused, want: watch.Record, now: 10 * time.Second},
		"its init is not held":                   {edit: func(s *watch.Sandbox) { s.Init = watch.Process{} }, want: watch.Record, now: 10 * time.Second},
		"stopped already":                        {edit: stopped, want: watch.Record, now: 10 * time.Second},
		"stopped already, with stop-timeout":     {timeout: "5s", edit: stopped, want: watch.Record, now: 10 * time.Second},
		"created and never started":              {edit: func(s *watch.Sandbox) { s.State, s.Init = watch.Created, watch.Process{} }, want: watch.Record, now: 10 * time.Second},
		"dead":                                   {edit: func(s *watch.Sandbox) { s.State, s.Init = watch.Dead, watch.Process{} }, want: watch.Record, now: 10 * time.Second},
		"being removed by others":                {edit: func(s *watch.Sandbox) { s.State, s.Init = watch.Removing, watch.Process{} }, want: watch.Record, now: 10 * time.Second},
		"R8 a record does not need the engine":   {edit: stopped, events: story(away), want: watch.Record, now: 10 * time.Second},

		"R4 the kill is under way": {events: story(begun(watch.Kill, reap.Expired, 10*time.Second)), now: time.Minute},
		"R4 the record is under way": {
			events: story(killed, begun(watch.Record, reap.Expired, 10*time.Second)),
			now:    15*time.Second - 1, next: 15 * time.Second,
		},
		"R8 the disk hangs: that keeps no orphan alive": {
			events: story(killed, begun(watch.Record, reap.Expired, 10*time.Second)),
			now:    15 * time.Second, want: watch.Remove,
		},
		"R8 the disk hangs, and the engine is away": {
			events: story(killed, begun(watch.Record, reap.Expired, 10*time.Second), away),
			now:    time.Hour,
		},
		"R4 the removal is under way": {events: story(begun(watch.Remove, reap.Expired, 10*time.Second)), now: time.Hour},

		"R8 killed: recorded before anything else":                 {events: killed, now: 10 * time.Second, want: watch.Record},
		"R8 killed, and the engine says so: recorded all the same": {events: story(killed, later(stopped, 11*time.Second)), now: 11 * time.Second, want: watch.Record},
		"R8 killed long ago: recorded all the same":                {events: killed, now: time.Hour, want: watch.Record},
		"R8 could not be killed: recorded":                         {events: did(watch.Kill, 10*time.Second, broken), now: 10 * time.Second, want: watch.Record},

		"killed: the engine has yet to see": {
			events: story(killed, recorded(10*time.Second)),
			now:    10 * time.Second, next: 10*time.Second + diesBy,
		},
		"killed: a slow record does not make it later": {
			events: story(killed, recorded(11*time.Second)),
			now:    11 * time.Second, next: 10*time.Second + diesBy,
		},
		"killed: init is dead, the engine has yet to see": {
			events: story(killed, recorded(10*time.Second), initDied(10*time.Second+1)),
			now:    11 * time.Second, next: 10*time.Second + 1 + diesBy,
		},
		"killed: the engine never says so": {
			events: story(killed, recorded(10*time.Second)),
			now:    10*time.Second + diesBy, want: watch.Remove,
		},
		"killed: the engine says so": {
			events: story(killed, recorded(10*time.Second), later(stopped, 11*time.Second)),
			now:    11 * time.Second, want: watch.Remove,
		},
		"killed: the engine says so while it is recorded": {
			events: story(killed, begun(watch.Record, reap.Expired, 10*time.Second), later(stopped, 11*time.Second), ended(watch.Record, 12*time.Second, nil)),
			now:    12 * time.Second, want: watch.Remove,
		},
		"R8 could not be recorded: a full disk keeps no orphan alive": {
			events: story(killed, did(watch.Record, 10*time.Second, full), later(stopped, 11*time.Second)),
			now:    11 * time.Second, want: watch.Remove,
		},
		"could not be killed": {
			events: story(did(watch.Kill, 10*time.Second, broken), recorded(10*time.Second)),
			now:    10 * time.Second, want: watch.Remove,
		},
		"was stopped already, and is recorded": {
			edit: stopped, events: recorded(10 * time.Second),
			now: 10 * time.Second, want: watch.Remove,
		},
		"is paused, and recorded": {
			edit: paused, events: recorded(10 * time.Second),
			now: 10 * time.Second, want: watch.Remove,
		},
		"R5 the engine is away: no attempt": {
			events: story(killed, recorded(10*time.Second), later(stopped, 11*time.Second), away),
			now:    time.Hour,
		},
		"R5 the engine is away, and it never said so: no attempt": {
			events: story(killed, recorded(10*time.Second), away),
			now:    time.Hour,
		},
		"R5 the engine is back": {
			events: story(killed, recorded(10*time.Second), later(stopped, 11*time.Second), away, here),
			now:    12 * time.Second, want: watch.Remove,
		},
		"R5 another kind's engine is away": {
			events: story(killed, recorded(10*time.Second), later(stopped, 11*time.Second), watch.SourceLost{Source: "vms", Kind: "vm"}),
			now:    12 * time.Second, want: watch.Remove,
		},
		"R5 another source is away": {
			events: story(killed, recorded(10*time.Second), later(stopped, 11*time.Second), watch.SourceLost{Source: "process connector"}),
			now:    12 * time.Second, want: watch.Remove,
		},
		"R5 failed while the engine went away: no attempt": {
			events: story(recorded(10*time.Second), did(watch.Remove, 10*time.Second, broken), away),
			now:    time.Hour,
		},
		"R5 failed, and the engine is back: at once": {
			events: story(recorded(10*time.Second), did(watch.Remove, 10*time.Second, broken), away, here),
			now:    10 * time.Second, want: watch.Remove,
		},
		"R4 the engine is back while the removal is under way": {
			events: story(recorded(10*time.Second), did(watch.Remove, 10*time.Second, broken), begun(watch.Remove, reap.Expired, 12*time.Second), away, here),
			now:    time.Hour,
		},

		"asked: it has its time": {
			timeout: "5s", events: asked,
			now: 15*time.Second - 1, next: 15 * time.Second,
		},
		"asked: its time is over": {
			timeout: "5s", events: asked,
			now: 15 * time.Second, want: watch.Kill,
		},
		"R8 asked: it has ended, and is recorded": {
			timeout: "5s", events: story(asked, initDied(14*time.Second)),
			now: 14 * time.Second, want: watch.Record,
		},
		"asked: it has ended, and the engine has yet to see": {
			timeout: "5s", events: story(asked, initDied(14*time.Second), recorded(14*time.Second)),
			now: 14 * time.Second, next: 14*time.Second + diesBy,
		},
		"asked: it has ended, and the engine never says so": {
			timeout: "5s", events: story(asked, initDied(14*time.Second), recorded(14*time.Second)),
			now: 14*time.Second + diesBy, want: watch.Remove,
		},
		"R8 asked: it has ended, the engine says so, and it is recorded": {
			timeout: "5s", events: story(asked, later(stopped, 11*time.Second)),
			now: 11 * time.Second, want: watch.Record,
		},
		"asked: it has ended, and the engine says so": {
			timeout: "5s", events: story(asked, later(stopped, 11*time.Second), recorded(11*time.Second)),
			now: 11 * time.Second, want: watch.Remove,
		},
		"asked, and then paused: it still has its time": {
			timeout: "5s", events: story(asked, later(paused, 12*time.Second)),
			now: 13 * time.Second, next: 15 * time.Second,
		},
		"asked, and then paused: its time is over": {
			timeout: "5s", events: story(asked, later(paused, 12*time.Second)),
			now: 15 * time.Second, want: watch.Record,
		},
		"asked, and then paused: its time is over, and it is recorded": {
			timeout: "5s", events: story(asked, later(paused, 12*time.Second), recorded(15*time.Second)),
			now: 15 * time.Second, want: watch.Remove,
		},
		"could not be asked": {
			timeout: "5s", events: did(watch.Terminate, 10*time.Second, broken),
			now: 10 * time.Second, want: watch.Record,
		},
		"could not be asked, and is recorded": {
			timeout: "5s", events: story(did(watch.Terminate, 10*time.Second, broken), recorded(10*time.Second)),
			now: 10 * time.Second, want: watch.Remove,
		},
		"asked in vain and killed": {
			timeout: "5s", events: story(asked, did(watch.Kill, 15*time.Second, nil), recorded(15*time.Second)),
			now: 16 * time.Second, next: 15*time.Second + diesBy,
		},
		"asked in vain, and could not be killed": {
			timeout: "5s", events: story(asked, did(watch.Kill, 15*time.Second, broken), recorded(15*time.Second)),
			now: 15 * time.Second, want: watch.Remove,
		},
	} {
		t.Run(name, func(t *testing.T) {
			terms := labels{"ttl": "1s"}
			if test.timeout != "" {
				terms["stop-timeout"] = test.timeout
			}
			s := labelled("a", terms)
			if test.edit != nil {
				test.edit(&s)
			}
			p := picture(s, append([]watch.Event{here}, test.events...)...)
			plan := reap.DefaultPolicy().Decide(p, at(test.now))
			var got watch.Step
			if len(plan.Steps) > 0 {
				got = plan.Steps[0].Do
			}
			if got != test.want || len(plan.Steps) > 1 {
				t.Errorf("steps %v, want %s", plan.Steps, test.want)
			}
			want := time.Time{}
			if test.next > 0 {
				want = at(test.next)
			}
			if got := plan.Judged[0].Next; !got.Equal(want) {
				t.Errorf("decided again at %s, want %s", got, want)
			}
		})
	}
}

// Whoever wires a platform and forgets to say that its system is there sees nothing removed, and nothing harmed.
func TestNothingIsRemovedBeforeItsSystemIsSaidToBeThere(t *testing.T) {
	s := labelled("a", labels{"ttl": "1s"})
	s.State = watch.Stopped
	p := picture(s, begun(watch.Record, reap.Expired, 10*time.Second), ended(watch.Record, 10*time.Second, nil))
	if plan := reap.DefaultPolicy().Decide(p, at(time.Hour)); len(plan.Steps) > 0 {
		t.Errorf("steps %v", plan.Steps)
	}
}

// Whatever the order in which things are named, stops come first, and then records and removals, each in the order of the IDs.
func TestR3StopsComeBeforeRemovals(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(here)
	list := watch.Listed{Kind: watch.Container, Asked: at(0)}
	for i, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		s := labelled(name, labels{"ttl": "1s"})
		switch i % 4 {
		case 0, 3: // stopped already
			s.State = watch.Stopped
		case 1:
			s.Terms.StopTimeout = time.Second
		}
		list.Sandboxes = append(list.Sandboxes, s)
	}
	p.Apply(list)
	for _, name := range []string{"d", "h"} { // and recorded
		p.Apply(watch.StepBegun{ID: id(name), Step: watch.Record, Reason: "expired", At: at(2 * time.Second)})
		p.Apply(watch.StepEnded{ID: id(name), Step: watch.Record, At: at(2 * time.Second)})
	}
	var got []string
	for _, step := range reap.DefaultPolicy().Decide(p, at(time.Minute)).Steps {
		got = append(got, fmt.Sprintf("%s %s %s", step.Do, step.ID.Name, step.Reason))
	}
	want := []string{
		"terminate b expired", "kill c expired", "terminate f expired", "kill g expired",
		"record a expired", "remove d expired", "record e expired", "remove h expired",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// many is a picture of n sandboxes that are a minute old at most by their rule, and what followed.
func many(n int, events ...watch.Event) *watch.Picture {
	p := watch.NewPicture(thisBoot)
	for i := range n {
		s := labelled(fmt.Sprint(i), nil)
		s.Terms.MaxAge = time.Minute
		p.Apply(watch.SandboxSeen{Sandbox: s, Asked: at(0)})
	}
	for _, ev := range events {
		p.Apply(ev)
	}
	return p
}

func TestR7TheBrake(t *testing.T) {
	const now = 10 * time.Minute
	all := func(n int, when time.Duration) (events []watch.Event) {
		for i := range n {
			events = append(events, watch.Braked{ID: id(fmt.Sprint(i)), At: at(when)})
		}
		return events
	}
	list := func(n int, asked time.Duration) watch.Event {
		l := watch.Listed{Kind: watch.Container, Asked: at(asked)}
		for i := range n {
			s := labelled(fmt.Sprint(i), nil)
			s.Terms.MaxAge = time.Minute
			l.Sandboxes = append(l.Sandboxes, s)
		}
		return l
	}
	pol := reap.Policy{Grace: 2 * time.Second, Burst: 3}
	for name, test := range map[string]struct {
		n      int
		events []watch.Event
		now    time.Duration
		want   [3]int // steps, set back, released
		second bool
		next   time.Duration
	}{
		"as many as may be": {n: 3, now: now, want: [3]int{3, 0, 0}},
		"one more":          {n: 4, now: now, want: [3]int{0, 4, 0}, next: now + pol.Grace},
		"set back before":   {n: 4, events: all(4, now), now: now + 1, want: [3]int{0, 0, 0}, next: now + pol.Grace},
		"one was set back before, and the rest are few": {n: 2, events: all(1, now), now: now + 1, want: [3]int{1, 0, 0}, next: now + pol.Grace},
		"the grace is over":                             {n: 4, events: all(4, now), now: now + pol.Grace, want: [3]int{0, 0, 0}, second: true},
		"a scan from before the grace's end":            {n: 4, events: append(all(4, now), list(4, now+pol.Grace-1)), now: now + time.Minute, want: [3]int{0, 0, 0}, second: true},
		"a scan from its end":                           {n: 4, events: append(all(4, now), list(4, now+pol.Grace)), now: now + time.Minute, want: [3]int{4, 0, 0}},
		"W5 a scan that failed":                         {n: 4, events: append(all(4, now), watch.ListFailed{Kind: watch.Container, At: at(now + pol.Grace)}), now: now + time.Minute, want: [3]int{0, 0, 0}, second: true},
		"a scan of another kind":                        {n: 4, events: append(all(4, now), watch.Listed{Kind: "vm", Asked: at(now + pol.Grace)}), now: now + time.Minute, want: [3]int{0, 0, 0}, second: true},
		"not condemned any more":                        {n: 4, events: all(4, now), now: time.Minute - 1, want: [3]int{0, 0, 4}, next: time.Minute},
		"more, with those that were looked at":          {n: 8, events: append(all(4, now), list(8, now+pol.Grace)), now: now + time.Minute, want: [3]int{4, 4, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			plan := pol.Decide(many(test.n, test.events...), at(test.now))
			if got := [3]int{len(plan.Steps), len(plan.Braked), len(plan.Released)}; got != test.want || plan.SecondLook != test.second {
				t.Errorf("steps, set back, released: %v, second look: %v; want %v, %v", got, plan.SecondLook, test.want, test.second)
			}
			for _, step := range plan.Steps {
				if slices.Contains(plan.Braked, step.ID) {
					t.Errorf("%s is set back, and %s", step.ID, step.Do)
				}
			}
			if test.next > 0 && !plan.Judged[0].Next.Equal(at(test.next)) {
				t.Errorf("judged again at %s, want %s", plan.Judged[0].Next, at(test.next))
			}
			for _, j := range plan.Judged {
				if slices.Contains(plan.Braked, j.ID) && (j.Verdict != reap.Wait || j.Reason != reap.TooYoung || j.Detail == "") {
					t.Errorf("%s: %+v", j.ID, j.Judgement)
				}
			}
		})
	}
}

// Decide only looks: asked twice, it says the same twice, and what was due stays due.
func TestDecideChangesNothing(t *testing.T) {
	p := picture(labelled("a", labels{"owner": "100"}), ours, bossGone)
	first := reap.DefaultPolicy().Decide(p, at(time.Minute))
	second := reap.DefaultPolicy().Decide(p, at(time.Minute))
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("(-first +second)\n%s", diff)
	}
	if len(first.Steps) != 1 || !p.Entry(id("a")).Progress.Begun.IsZero() {
		t.Errorf("steps %v, progress %+v", first.Steps, p.Entry(id("a")).Progress)
	}
}

func TestOnlyWhatIsDueIsDecided(t *testing.T) {
	p := picture(labelled("a", labels{"ttl": "1h"}))
	pol := reap.DefaultPolicy()
	plan := pol.Decide(p, at(0))
	p.Settle(id("a"), plan.Judged[0].Next)
	p.Apply(watch.TimePassed{At: at(time.Hour - 1)})
	if plan := pol.Decide(p, at(time.Hour-1)); len(plan.Judged)+len(plan.Steps) > 0 {
		t.Errorf("not due, and yet %+v", plan)
	}
	p.Apply(watch.TimePassed{At: at(time.Hour)})
	if plan := pol.Decide(p, at(time.Hour)); len(plan.Steps) != 1 || plan.Steps[0].Do != watch.Kill {
		t.Errorf("due, and yet %+v", plan)
	}
}

// wait is how long after its n-th failed removal a sandbox is tried again.
func wait(t *testing.T, pol reap.Policy, name string, n int) time.Duration {
	t.Helper()
	s := labelled(name, labels{"ttl": "1s"})
	p := watch.NewPicture(thisBoot)
	p.Apply(here)
	p.Apply(watch.SandboxSeen{Sandbox: s, Asked: at(0)})
	for range n {
		p.Apply(watch.StepBegun{ID: s.ID, Step: watch.Remove, Reason: "expired", At: at(0)})
		p.Apply(watch.StepEnded{ID: s.ID, Step: watch.Remove, Err: errors.New("busy"), At: at(0)})
	}
	plan := pol.Decide(p, at(0))
	if len(plan.Steps) > 0 {
		t.Fatalf("after %d failures it is tried again at once", n)
	}
	next := plan.Judged[0].Next
	p.Settle(s.ID, next)
	p.Apply(watch.TimePassed{At: next})
	if plan := pol.Decide(p, next); len(plan.Steps) != 1 || plan.Steps[0].Do != watch.Remove {
		t.Fatalf("after %d failures and %s: %+v", n, next.Sub(at(0)), plan)
	}
	return next.Sub(at(0))
}

func TestR5RetriesComeEverSlowerAndNeverStop(t *testing.T) {
	for name, pol := range map[string]reap.Policy{
		"default":          reap.DefaultPolicy(),
		"base is the cap":  {Attempts: 100, Base: time.Second, Cap: time.Second},
		"cap is no double": {Attempts: 100, Base: time.Second, Cap: 7 * time.Second},
		"an hour":          {Attempts: 100, Base: 100 * time.Millisecond, Cap: time.Hour},
		"tiny":             {Attempts: 100, Base: 1, Cap: 4},
		"centuries":        {Attempts: 100, Base: math.MaxInt64 / 4, Cap: math.MaxInt64},
		"soon given up":    {Attempts: 3, Base: time.Second, Cap: time.Hour},
		"given up at once": {Attempts: 1, Base: time.Second, Cap: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			full := pol.Base // what the n-th delay is without jitter
			var last time.Duration
			for n := 1; n <= 60; n++ {
				if n >= pol.Attempts {
					full = pol.Cap // a dead letter
				}
				got := wait(t, pol, "a", n)
				if got > full || got < full-full/5 || got <= 0 {
					t.Fatalf("after %d failures %s, want at most %s and a fifth less at least", n, got, full)
				}
				if full > pol.Base && full < pol.Cap && got < last {
					t.Fatalf("after %d failures %s, after one less %s", n, got, last)
				}
				last = got
				if full > pol.Cap/2 {
					full = pol.Cap
				} else {
					full *= 2
				}
			}
		})
	}
}

// The cap is the cap, also where the configuration makes no sense.
func TestNoRetryWaitsLongerThanTheCap(t *testing.T) {
	pol := reap.Policy{Base: time.Hour, Cap: time.Second}
	for n := 1; n < 5; n++ {
		if got := wait(t, pol, "a", n); got > pol.Cap || got <= 0 {
			t.Errorf("after %d failures %s", n, got)
		}
	}
}

func TestJitterIsAFunctionOfWhatIsKnown(t *testing.T) {
	pol := reap.DefaultPolicy()
	distinct := map[time.Duration]bool{}
	for i := range 100 {
		name := fmt.Sprintf("sandbox-%d", i)
		first, second := wait(t, pol, name, 3), wait(t, pol, name, 3)
		if first != second {
			t.Fatalf("%s: %s, then %s", name, first, second)
		}
		distinct[first] = true
	}
	if len(distinct) < 50 {
		t.Errorf("a hundred sandboxes that failed together come back at %d moments", len(distinct))
	}
}
