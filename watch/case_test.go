package watch_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

var (
	here = watch.SourceBack{Source: "docker", Kind: watch.Container}
	away = watch.SourceLost{Source: "docker", Kind: watch.Container, Err: errors.New("EOF")}
)

func TestASystemIsThereWhenItSaysSoAndUntilItIsLost(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	for _, step := range []struct {
		event watch.Event
		want  bool
	}{
		{listed(1), false}, // W1: that it once answered does not say that it will
		{watch.SourceBack{Source: "connector"}, false},
		{watch.SourceBack{Source: "vms", Kind: "vm"}, false},
		{here, true},
		{watch.SourceLost{Source: "connector"}, true},
		{watch.SourceLost{Source: "vms", Kind: "vm"}, true},
		{watch.ListFailed{Kind: watch.Container, At: at(2), Err: errors.New("i/o timeout")}, true},
		{away, false},
		{away, false},
		{here, true},
	} {
		p.Apply(step.event)
		if got := p.Present(watch.Container); got != step.want {
			t.Fatalf("%T: there %v, want %v", step.event, got, step.want)
		}
	}
}

func TestTheReturnOfASystemMakesItsReapsDue(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	failed := errors.New("busy")
	for _, name := range []string{"failed", "flying", "recorded", "idle"} {
		p.Apply(seen(1, sandbox(name)))
	}
	p.Apply(seen(1, sandbox("vm", func(s *watch.Sandbox) { s.ID.Kind = "vm" })))
	begin := func(id watch.ID, step watch.Step, when float64) {
		p.Apply(watch.StepBegun{ID: id, Step: step, Reason: "expired", At: at(when)})
	}
	end := func(id watch.ID, step watch.Step, when float64, err error) {
		p.Apply(watch.StepEnded{ID: id, Step: step, At: at(when), Err: err})
	}
	vm := watch.ID{Kind: "vm", Name: "vm"}
	for _, some := range []watch.ID{id("failed"), id("flying"), vm} {
		begin(some, watch.Remove, 2)
		end(some, watch.Remove, 3, failed)
	}
	begin(id("flying"), watch.Remove, 4)
	begin(id("recorded"), watch.Record, 2)
	end(id("recorded"), watch.Record, 2, nil)
	settleAll(p)
	p.Apply(away)
	wantDue(t, p)
	p.Apply(here)
	wantDue(t, p, "failed", "flying", "recorded")
	for some, want := range map[watch.ID]time.Time{id("failed"): {}, id("flying"): at(4), id("recorded"): at(2), vm: at(3)} {
		if got := p.Entry(some).Progress; !got.StepAt.Equal(want) {
			t.Errorf("%s: %+v, want its step at %s", some, got, want)
		}
	}
	if got := p.Entry(id("failed")).Progress; got.Attempts != 1 || !errors.Is(got.Err, failed) {
		t.Errorf("what was tried is forgotten: %+v", got)
	}
}

func resumed(name string, attempts int, err error) watch.CaseResumed {
	return watch.CaseResumed{Sandbox: sandbox(name, owner("100"), noInit), Reason: "owner-exited", Begun: at(-60), Attempts: attempts, Err: err}
}

func TestACaseIsTakenUpWhereItsRecordHasIt(t *testing.T) {
	failed := errors.New("busy")
	for name, test := range map[string]struct {
		event watch.CaseResumed
		want  watch.Progress
	}{
		"never tried":  {resumed("a", 0, nil), watch.Progress{Begun: at(-60), Reason: "owner-exited", Step: watch.Record}},
		"tried before": {resumed("a", 9, failed), watch.Progress{Begun: at(-60), Reason: "owner-exited", Step: watch.Remove, Attempts: 9, Err: failed}},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(test.event)
			check := func() {
				t.Helper()
				sameError := cmp.Comparer(func(a, b error) bool { return errors.Is(a, b) || errors.Is(b, a) })
				if diff := cmp.Diff(test.want, p.Entry(id("a")).Progress, sameError); diff != "" {
					t.Fatalf("(-want +got)\n%s", diff)
				}
			}
			check()
			wantDue(t, p, "a")
			if hold, _ := p.TakeClaims(); len(hold) != 1 || hold[0] != 100 {
				t.Errorf("asks to hold %v", hold)
			}
			p.Apply(watch.ListFailed{Kind: watch.Container, At: at(2), Err: failed}) // W5
			check()
			p.Apply(listed(3, sandbox("a", owner("100"), state(watch.Paused))))
			check()
			if got := p.Entry(id("a")); got.State != watch.Paused || got.Init.PID == 0 {
				t.Errorf("what is seen does not count: %+v", got.Sandbox)
			}
		})
	}
}

func TestW6ACaseWhoseSandboxAListLacksIsForgotten(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(resumed("a", 3, errors.New("busy")))
	forgotten := p.Apply(listed(1))
	if len(forgotten) != 1 || forgotten[0].Progress.Attempts != 3 || p.Len() != 0 {
		t.Errorf("forgotten: %v, left are %d", forgotten, p.Len())
	}
}

func TestWhatWasDroppedStaysSoUntilItIsGone(t *testing.T) {
	for name, test := range map[string]struct {
		events []watch.Event
		want   bool
	}{
		"there":                             {[]watch.Event{seen(1, sandbox("a")), watch.CaseDropped{ID: id("a")}}, true},
		"dropped before it was seen":        {[]watch.Event{watch.CaseDropped{ID: id("a")}, seen(1, sandbox("a"))}, true},
		"dropped before it was listed":      {[]watch.Event{watch.CaseDropped{ID: id("a")}, listed(1, sandbox("a"))}, true},
		"listed again":                      {[]watch.Event{seen(1, sandbox("a")), watch.CaseDropped{ID: id("a")}, listed(2, sandbox("a"))}, true},
		"W5 a list that failed":             {[]watch.Event{watch.CaseDropped{ID: id("a")}, watch.ListFailed{Kind: watch.Container, At: at(2), Err: errors.New("EOF")}}, true},
		"another kind's list":               {[]watch.Event{watch.CaseDropped{ID: id("a")}, watch.Listed{Kind: "vm", Asked: at(2)}}, true},
		"W4 an older list":                  {[]watch.Event{seen(3, sandbox("a")), watch.CaseDropped{ID: id("a")}, listed(2)}, true},
		"gone":                              {[]watch.Event{seen(1, sandbox("a")), watch.CaseDropped{ID: id("a")}, gone(2, "a")}, false},
		"gone before it was seen":           {[]watch.Event{watch.CaseDropped{ID: id("a")}, gone(2, "a")}, false},
		"another one gone":                  {[]watch.Event{watch.CaseDropped{ID: id("a")}, gone(2, "b")}, true},
		"not in a list":                     {[]watch.Event{seen(1, sandbox("a")), watch.CaseDropped{ID: id("a")}, listed(2)}, false},
		"not in a list, and never was seen": {[]watch.Event{watch.CaseDropped{ID: id("a")}, listed(2)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			for _, ev := range test.events {
				p.Apply(ev)
			}
			if got := p.Dropped(id("a")); got != test.want {
				t.Errorf("dropped: %v", got)
			}
		})
	}
}

func TestADropEndsTheReap(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(resumed("a", 3, errors.New("busy")))
	settleAll(p)
	p.Apply(watch.CaseDropped{ID: id("a")})
	if got := p.Entry(id("a")).Progress; got != (watch.Progress{}) {
		t.Errorf("progress %+v", got)
	}
	wantDue(t, p, "a")
}

func TestASandboxIsBrakedUntilThatIsOver(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a")))
	for _, step := range []struct {
		at, want time.Time
	}{{at(2), at(2)}, {at(3), at(2)}, {time.Time{}, time.Time{}}, {at(4), at(4)}} {
		p.Apply(watch.Braked{ID: id("a"), At: step.at})
		if got := p.Entry(id("a")).Braked; !got.Equal(step.want) {
			t.Errorf("braked at %s: since %s, want %s", step.at, got, step.want)
		}
	}
	p.Apply(watch.Braked{ID: id("b"), At: at(2)}) // a stranger
	if p.Len() != 1 {
		t.Error("a stranger is in the picture")
	}
}

func TestTheLatestListIsTheOneThatWasAskedForLast(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	for _, asked := range []float64{5, 3, 7, 6} {
		p.Apply(listed(asked))
		p.Apply(watch.ListFailed{Kind: watch.Container, At: at(100)})
	}
	if got := p.Listed(watch.Container); !got.Equal(at(7)) {
		t.Errorf("listed at %s", got)
	}
	if got := p.Listed("vm"); !got.IsZero() {
		t.Errorf("another kind is listed at %s", got)
	}
}

// What says something about the watching says nothing about the watched.
func TestW5FactsAboutTheWatchingChangeNothing(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a", owner("100"))))
	settleAll(p)
	for _, ev := range []watch.Event{
		watch.LookFailed{ID: id("a"), At: at(2), Err: errors.New("EOF")},
		watch.RecordKept{ID: id("a"), Err: errors.New("no space left on device")},
		watch.RecordKept{ID: id("b")},
	} {
		if forgotten := p.Apply(ev); len(forgotten) > 0 {
			t.Errorf("%T: %v are forgotten", ev, forgotten)
		}
	}
	wantDue(t, p)
}
