package watch_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

func TestWhatAFactIsAboutIsDueUntilItIsSettled(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("b"), sandbox("a")))
	wantDue(t, p, "a", "b")
	p.Settle(id("a"), time.Time{})
	wantDue(t, p, "b")
	p.Settle(id("b"), time.Time{})
	wantDue(t, p)
	if next := p.Next(); !next.IsZero() {
		t.Errorf("nothing has a date, and yet something falls due at %s", next)
	}
	p.Apply(seen(2, sandbox("a")))
	wantDue(t, p, "a")
}

// A death costs what its own sandboxes cost, however many others there are.
func TestAFactMakesOnlyItsOwnSandboxesDue(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a", owner("100")), sandbox("b", owner("200")), sandbox("c", owner("100:5")), sandbox("d", owner("container:boss"))))
	settleAll(p)
	p.Apply(exited(100, ticks(-5), 2))
	wantDue(t, p, "a", "c")
	settleAll(p)
	p.Apply(watch.ContainerSeen{Ref: "boss", Named: true, Container: "B", Life: watch.Alive, Asked: at(2)})
	wantDue(t, p, "d")
}

func TestASettledDateFallsDueWhenItComesAndNotBefore(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a"), sandbox("b"), sandbox("c")))
	p.Settle(id("a"), at(30))
	p.Settle(id("b"), at(20))
	p.Settle(id("c"), time.Time{})
	if got := p.Next(); !got.Equal(at(20)) {
		t.Fatalf("next at %s, want %s", got, at(20))
	}
	p.Apply(watch.TimePassed{At: at(20).Add(-1)})
	wantDue(t, p)
	p.Apply(watch.TimePassed{At: at(20)})
	wantDue(t, p, "b")
	if got := p.Next(); !got.Equal(at(30)) {
		t.Fatalf("next at %s, want %s", got, at(30))
	}
	p.Apply(watch.TimePassed{At: at(1000)})
	wantDue(t, p, "a", "b")
	if got := p.Next(); !got.IsZero() {
		t.Errorf("next at %s, but everything is due", got)
	}
}

func TestOnlyTheLatestDateOfASandboxCounts(t *testing.T) {
	for name, test := range map[string]struct {
		dates []time.Time
		next  time.Time
	}{
		"later":            {[]time.Time{at(10), at(20)}, at(20)},
		"earlier":          {[]time.Time{at(20), at(10)}, at(10)},
		"never":            {[]time.Time{at(10), {}}, time.Time{}},
		"never and again":  {[]time.Time{at(10), {}, at(10)}, at(10)},
		"the same":         {[]time.Time{at(10), at(10)}, at(10)},
		"there and back":   {[]time.Time{at(10), at(20), at(10)}, at(10)},
		"in another place": {[]time.Time{at(10), at(10).In(time.FixedZone("", 3600))}, at(10)},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(seen(1, sandbox("a")))
			for _, date := range test.dates {
				p.Settle(id("a"), date)
			}
			if got := p.Next(); !got.Equal(test.next) {
				t.Fatalf("next at %s, want %s", got, test.next)
			}
			if test.next.IsZero() {
				p.Apply(watch.TimePassed{At: at(1000)})
				wantDue(t, p)
				return
			}
			p.Apply(watch.TimePassed{At: test.next.Add(-1)})
			wantDue(t, p)
			p.Apply(watch.TimePassed{At: test.next})
			wantDue(t, p, "a")
			settleAll(p)
			p.Apply(watch.TimePassed{At: at(1000)})
			wantDue(t, p)
		})
	}
}

func TestWhatIsForgottenIsNeverDue(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a"), sandbox("b")))
	p.Settle(id("a"), at(10))
	p.Apply(gone(2, "a"))
	p.Apply(gone(2, "b"))
	wantDue(t, p)
	p.Apply(watch.TimePassed{At: at(1000)})
	wantDue(t, p)
	if got := p.Next(); !got.IsZero() {
		t.Errorf("next at %s", got)
	}
}

func wantDue(t *testing.T, p *watch.Picture, names ...string) {
	t.Helper()
	var got []string
	for _, id := range p.Due() {
		got = append(got, id.Name)
	}
	if diff := cmp.Diff(names, got); diff != "" {
		t.Fatalf("due (-want +got)\n%s", diff)
	}
}

func settleAll(p *watch.Picture) {
	for _, id := range p.Due() {
		p.Settle(id, time.Time{})
	}
}
