package watch_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"watcher/watch"
)

// The stories below share one clock: at(0) is when a sandbox is created, and ticks(n) is the kernel's word for at(n).
func at(seconds float64) time.Time {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return created.Add(time.Duration(seconds * float64(time.Second)))
}

func ticks(seconds float64) uint64 { return uint64(1_000_000 + 100*seconds) }

func id(name string) watch.ID { return watch.ID{Kind: watch.Container, Name: name} }

func sandbox(name string, edits ...func(*watch.Sandbox)) watch.Sandbox {
	s := watch.Sandbox{
		ID: id(name), Name: name, State: watch.Running, Created: at(0),
		Init: watch.Process{PID: 900, Start: ticks(0.3), Boot: thisBoot},
	}
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

func owner(label string) func(*watch.Sandbox) {
	claim, err := watch.ParseClaim(label)
	if err != nil {
		panic(err)
	}
	return func(s *watch.Sandbox) { s.Terms.Owners = []watch.Claim{claim} }
}

func state(state watch.State) func(*watch.Sandbox) {
	return func(s *watch.Sandbox) { s.State = state }
}

func createdAt(t time.Time) func(*watch.Sandbox) { return func(s *watch.Sandbox) { s.Created = t } }

// noInit is a sandbox whose first process is not held: it was not started, or cannot be seen.
func noInit(s *watch.Sandbox) { s.Init = watch.Process{} }

func seen(asked float64, s watch.Sandbox) watch.SandboxSeen {
	return watch.SandboxSeen{Sandbox: s, Asked: at(asked)}
}

func listed(asked float64, sandboxes ...watch.Sandbox) watch.Listed {
	return watch.Listed{Kind: watch.Container, Asked: at(asked), Sandboxes: sandboxes}
}

func gone(when float64, name string) watch.SandboxGone {
	return watch.SandboxGone{ID: id(name), At: at(when)}
}

// A look at a PID, or what its pidfd told.
func looked(pid int, start uint64, born, when float64, life watch.Life) watch.ProcessSeen {
	return watch.ProcessSeen{PID: pid, Process: watch.Process{PID: pid, Start: start, Boot: thisBoot}, Born: at(born), Life: life, At: at(when)}
}

func alive(pid int, start uint64, when float64) watch.ProcessSeen {
	return looked(pid, start, (float64(start)-float64(ticks(0)))/100, when, watch.Alive)
}

func exited(pid int, start uint64, when float64) watch.ProcessSeen {
	return looked(pid, start, (float64(start)-float64(ticks(0)))/100, when, watch.Exited)
}

func nobody(pid int, when float64) watch.ProcessSeen {
	return watch.ProcessSeen{PID: pid, Life: watch.Exited, At: at(when)}
}

func unreadable(pid int, when float64) watch.ProcessSeen {
	return watch.ProcessSeen{PID: pid, Life: watch.Unknown, At: at(when), Detail: "too many open files"}
}

// fate is what a story ends in.
type fate struct {
	Life      watch.Life
	Start     uint64 // of the process that the claim is bound to
	Container string
	Replaced  bool
	Gone      bool
	ExitedAt  time.Time
	Detail    bool // whether there is one
	Look      bool
	Reason    string
}

func fateOf(e *watch.Entry) fate {
	o := e.Owner()
	return fate{o.Life, o.Process.Start, o.Container, o.Replaced, o.Gone, o.ExitedAt, o.Detail != "", o.Look, o.Reason}
}

type story struct {
	name    string
	sandbox watch.Sandbox // seen at 1
	events  []watch.Event
	want    fate
}

func tell(t *testing.T, stories []story) {
	t.Helper()
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(seen(1, s.sandbox))
			for _, ev := range s.events {
				p.Apply(ev)
			}
			e := p.Entry(s.sandbox.ID)
			if e == nil {
				t.Fatal("the sandbox was forgotten")
			}
			if diff := cmp.Diff(s.want, fateOf(e)); diff != "" {
				t.Errorf("owner (-want +got)\n%s", diff)
			}
		})
	}
}

func TestW2ProcessOwners(t *testing.T) {
	before, after := ticks(-60), ticks(60)
	tell(t, []story{
		{
			"nobody has looked", sandbox("a", owner("100")), nil,
			fate{},
		},
		{
			"lives", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2)},
			fate{Life: watch.Alive, Start: before},
		},
		{
			"lives and dies", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before, 5)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(5)},
		},
		{
			"W4: dies twice, told in order: the first death counts", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before, 5), exited(100, before, 6)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(5)},
		},
		{
			"W4: the kernel's stamp comes after the pidfd", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before, 5), exited(100, before, 4.9)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(4.9)},
		},
		{
			"another process's stamp is not the owner's", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before, 5), exited(100, after, 4.9), exited(100, before-1, 4.8)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(5)},
		},
		{
			"W4: a look from before the death comes after it", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before, 5), alive(100, before, 4)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(5)},
		},
		{
			"a later process with the PID does not bring it back", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before, 5), alive(100, after, 61), exited(100, after, 62)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(5)},
		},
		{
			"its death was missed, and then nobody has the PID", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), nobody(100, 7)},
			fate{Life: watch.Exited, Start: before, ExitedAt: at(7)},
		},
		{
			"its death was missed, and then another has the PID", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), alive(100, after, 61)},
			fate{Life: watch.Exited, Start: before, Replaced: true, ExitedAt: at(61)},
		},
		{
			"an earlier holder of the PID is told of late", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), exited(100, before-1, 3), alive(100, before-1, 3)},
			fate{Life: watch.Alive, Start: before},
		},
		{
			"a failed look takes nothing back", sandbox("a", owner("100")),
			[]watch.Event{alive(100, before, 2), unreadable(100, 3)},
			fate{Life: watch.Alive, Start: before},
		},
		{
			"a failed look is unknown", sandbox("a", owner("100")),
			[]watch.Event{unreadable(100, 3)},
			fate{Detail: true},
		},
		{
			"a failed look, and then it lives", sandbox("a", owner("100")),
			[]watch.Event{unreadable(100, 3), alive(100, before, 4)},
			fate{Life: watch.Alive, Start: before},
		},
		{
			"a failed look, and then nobody has the PID", sandbox("a", owner("100")),
			[]watch.Event{unreadable(100, 3), nobody(100, 4)},
			fate{Life: watch.Exited},
		},
		{
			"was dead before anybody looked", sandbox("a", owner("100")),
			[]watch.Event{nobody(100, 2)},
			fate{Life: watch.Exited},
		},
		{
			"was dead, and the PID is taken later", sandbox("a", owner("100")),
			[]watch.Event{nobody(100, 2), alive(100, before, 3)},
			fate{Life: watch.Exited},
		},
		{
			"another PID's facts are another's", sandbox("a", owner("100")),
			[]watch.Event{nobody(200, 2), exited(1000, before, 3), exited(10, before, 3)},
			fate{},
		},
		{
			"with the start time named: lives", sandbox("a", owner("100:994000")),
			[]watch.Event{alive(100, 994000, 2)},
			fate{Life: watch.Alive, Start: 994000},
		},
		{
			"with the start time named: born after the sandbox, if that is what the label says", sandbox("a", owner("100:1006000")),
			[]watch.Event{alive(100, 1006000, 61)},
			fate{Life: watch.Alive, Start: 1006000},
		},
		{
			"with the start time named: a later one has the PID", sandbox("a", owner("100:994000")),
			[]watch.Event{alive(100, 994001, 2)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"with the start time named: an earlier one has the PID", sandbox("a", owner("100:994000")),
			[]watch.Event{alive(100, 993999, 2)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"with the start time named: its death is told before the look", sandbox("a", owner("100:994000")),
			[]watch.Event{exited(100, 994000, 2)},
			fate{Life: watch.Exited, Start: 994000},
		},
		{
			"nobody is claimed", sandbox("a"),
			[]watch.Event{nobody(0, 2), exited(100, before, 3)},
			fate{},
		},
	})
}

// A PID was held for an old sandbox; its process died and the PID went to a new process, which made a new sandbox. The
// old death, told late, is none of the new sandbox's business: only a look can bind a claim that is not bound.
func TestR2TheDeathOfAnEarlierHolderIsNotTheOwnersDeath(t *testing.T) {
	older, owner2 := ticks(-60), ticks(-1)
	tell(t, []story{
		{
			"W3: a bare PID", sandbox("new", owner("100")),
			[]watch.Event{exited(100, older, -2)},
			fate{},
		},
		{
			"W3: a bare PID, and then the look", sandbox("new", owner("100")),
			[]watch.Event{exited(100, older, -2), alive(100, owner2, 2)},
			fate{Life: watch.Alive, Start: owner2},
		},
		{
			"W3: a bare PID, and then nobody", sandbox("new", owner("100")),
			[]watch.Event{exited(100, older, -2), nobody(100, 2)},
			fate{Life: watch.Exited},
		},
		{
			"W2: with the start time named", sandbox("new", owner("100:999900")),
			[]watch.Event{exited(100, older, -2)},
			fate{},
		},
		{
			"W2: with the start time named, and then the look", sandbox("new", owner("100:999900")),
			[]watch.Event{exited(100, older, -2), alive(100, owner2, 2)},
			fate{Life: watch.Alive, Start: owner2},
		},
	})
}

func TestW3APIDAloneBindsOnlyWhoWasBornBeforeTheSandbox(t *testing.T) {
	tell(t, []story{
		{
			"born long before", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(-1000), -1000, 2, watch.Alive)},
			fate{Life: watch.Alive, Start: ticks(-1000)},
		},
		{
			"born within the slack of the clocks", sandbox("a", owner("100"), noInit),
			[]watch.Event{looked(100, ticks(2), 2, 3, watch.Alive)},
			fate{Life: watch.Alive, Start: ticks(2)},
		},
		{
			"born within the slack of the clocks, but after init: the kernel's clock needs none", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(0.31), 0.31, 3, watch.Alive)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"born after the sandbox and before its init", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(0.2), 0.2, 3, watch.Alive)},
			fate{Life: watch.Alive, Start: ticks(0.2)},
		},
		{
			"born after the slack: the PID was reused", sandbox("a", owner("100"), noInit),
			[]watch.Event{looked(100, ticks(2.01), 2.01, 3, watch.Alive)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"born after, and dead too", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(60), 60, 61, watch.Alive), exited(100, ticks(60), 62)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"the wall clock was set forward: older than init by the kernel's clock", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(-60), 3540, 2, watch.Alive)},
			fate{Detail: true},
		},
		{
			"the wall clock was set forward: of the same tick as init", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(0.3), 3600, 2, watch.Alive)},
			fate{Detail: true},
		},
		{
			"the wall clock was set forward: a death settles it", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(-60), 3540, 2, watch.Alive), nobody(100, 3)},
			fate{Life: watch.Exited},
		},
		{
			"younger than init by both clocks", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(3), 3, 4, watch.Alive)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"the wall clock was set back: younger than init by the kernel's clock", sandbox("a", owner("100")),
			[]watch.Event{looked(100, ticks(60), -3540, 61, watch.Alive)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"the wall clock was set back and no init tells: kept", sandbox("a", owner("100"), noInit),
			[]watch.Event{looked(100, ticks(60), -3540, 61, watch.Alive)},
			fate{Life: watch.Alive, Start: ticks(60)},
		},
		{
			"without an init the wall clock decides alone", sandbox("a", owner("100"), noInit, state(watch.Stopped)),
			[]watch.Event{looked(100, ticks(60), 60, 61, watch.Alive)},
			fate{Life: watch.Exited, Replaced: true},
		},
		{
			"W1: a sandbox of unknown age proves nobody younger", sandbox("a", owner("100"), noInit, createdAt(time.Time{})),
			[]watch.Event{looked(100, ticks(-60), -60, 2, watch.Alive)},
			fate{Detail: true},
		},
		{
			"W1: a sandbox of unknown age has no owner when nobody has the PID", sandbox("a", owner("100"), noInit, createdAt(time.Time{})),
			[]watch.Event{nobody(100, 2)},
			fate{Life: watch.Exited},
		},
	})
}

// boss is a look at a container by the name that claims use.
func boss(id string, created, asked float64, life watch.Life) watch.ContainerSeen {
	return watch.ContainerSeen{Ref: "boss", Named: true, Container: id, Created: at(created), Life: life, Asked: at(asked)}
}

// byID is a look at a container that once had the name.
func byID(id string, asked float64, life watch.Life, gone bool) watch.ContainerSeen {
	return watch.ContainerSeen{Ref: "boss", Container: id, Created: at(-60), Life: life, Gone: gone, Asked: at(asked)}
}

// noBoss says that nothing has the name.
func noBoss(asked float64) watch.ContainerSeen {
	return watch.ContainerSeen{Ref: "boss", Named: true, Life: watch.Exited, Asked: at(asked)}
}

func since(c watch.ContainerSeen, when float64) watch.ContainerSeen {
	c.Since = at(when)
	return c
}

func TestW2ContainerOwners(t *testing.T) {
	s := sandbox("a", owner("container:boss"))
	tell(t, []story{
		{"nobody has looked", s, nil, fate{}},
		{
			"lives", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"stops: the engine says when", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), since(boss("B", -60, 9, watch.Exited), 8)},
			fate{Life: watch.Exited, Container: "B", ExitedAt: at(8)},
		},
		{
			"stops: the engine does not say when", s,
			[]watch.Event{boss("B", -60, 9, watch.Exited)},
			fate{Life: watch.Exited, Container: "B", ExitedAt: at(9)},
		},
		{
			"W4: its stop is told twice", s,
			[]watch.Event{boss("B", -60, 9, watch.Exited), boss("B", -60, 10, watch.Exited)},
			fate{Life: watch.Exited, Container: "B", ExitedAt: at(9)},
		},
		{
			"restarts", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), boss("B", -60, 9, watch.Exited), boss("B", -60, 10, watch.Alive)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"restarts and stops again: the second stop counts", s,
			[]watch.Event{boss("B", -60, 9, watch.Exited), boss("B", -60, 10, watch.Alive), boss("B", -60, 20, watch.Exited)},
			fate{Life: watch.Exited, Container: "B", ExitedAt: at(20)},
		},
		{
			"W4: a look from before the restart comes after it", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), boss("B", -60, 10, watch.Alive), since(boss("B", -60, 9, watch.Exited), 8)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"W4: a look from before the stop comes after it", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), boss("B", -60, 10, watch.Exited), boss("B", -60, 9, watch.Alive)},
			fate{Life: watch.Exited, Container: "B", ExitedAt: at(10)},
		},
		{
			"is renamed: its ID lives under another name", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), byID("B", 9, watch.Alive, false), noBoss(9)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"is renamed, and another takes the name", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), byID("B", 9, watch.Alive, false), boss("C", 8, 9, watch.Alive), boss("C", 8, 10, watch.Exited)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"is renamed, and stops", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), noBoss(9), byID("B", 10, watch.Exited, false)},
			fate{Life: watch.Exited, Container: "B", ExitedAt: at(10)},
		},
		{
			"is removed", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), byID("B", 9, watch.Exited, true), noBoss(9)},
			fate{Life: watch.Exited, Container: "B", Gone: true, ExitedAt: at(9)},
		},
		{
			"is removed after it stopped: it died when it stopped", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), boss("B", -60, 5, watch.Exited), byID("B", 9, watch.Exited, true)},
			fate{Life: watch.Exited, Container: "B", Gone: true, ExitedAt: at(5)},
		},
		{
			"is removed, and made again under its name", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), byID("B", 9, watch.Exited, true), boss("C", 10, 11, watch.Alive)},
			fate{Life: watch.Exited, Container: "B", Gone: true, ExitedAt: at(9)},
		},
		{
			"is removed, and a look from before is told late", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), byID("B", 9, watch.Exited, true), boss("B", -60, 8, watch.Alive)},
			fate{Life: watch.Exited, Container: "B", Gone: true, ExitedAt: at(9)},
		},
		{
			"was removed before anybody looked", s,
			[]watch.Event{noBoss(2)},
			fate{Life: watch.Exited, Gone: true},
		},
		{
			"was removed before anybody looked, and the name went to a younger container", s,
			[]watch.Event{boss("C", 2.01, 3, watch.Alive)},
			fate{Life: watch.Exited, Gone: true},
		},
		{
			"was created within the slack of the clocks", s,
			[]watch.Event{boss("B", 2, 3, watch.Alive)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"a failed look is unknown", s,
			[]watch.Event{watch.ContainerSeen{Ref: "boss", Named: true, Asked: at(2), Detail: "i/o timeout"}},
			fate{Detail: true},
		},
		{
			"a failed look takes nothing back", s,
			[]watch.Event{boss("B", -60, 2, watch.Alive), watch.ContainerSeen{Ref: "boss", Named: true, Container: "B", Asked: at(3), Detail: "i/o timeout"}},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"a failed look, and then it lives", s,
			[]watch.Event{watch.ContainerSeen{Ref: "boss", Named: true, Asked: at(2), Detail: "i/o timeout"}, boss("B", -60, 3, watch.Alive)},
			fate{Life: watch.Alive, Container: "B"},
		},
		{
			"a look by another's ID binds nobody", s,
			[]watch.Event{byID("X", 2, watch.Exited, true), byID("Y", 2, watch.Alive, false)},
			fate{},
		},
		{
			"another reference's facts are another's", s,
			[]watch.Event{watch.ContainerSeen{Ref: "bos", Named: true, Life: watch.Exited, Asked: at(2)}},
			fate{},
		},
		{
			"W1: for a sandbox of unknown age nobody is too young", sandbox("a", owner("container:boss"), createdAt(time.Time{})),
			[]watch.Event{boss("B", -60, 2, watch.Alive)},
			fate{Life: watch.Alive, Container: "B"},
		},
	})
}

// The looks were for an old sandbox with the same claim, before the owner of the new one had the name.
func TestW4ALookFromBeforeTheSandboxWasSeenDoesNotBindItsClaim(t *testing.T) {
	s := sandbox("new", owner("container:boss"))
	tell(t, []story{
		{"the name was free then", s, []watch.Event{noBoss(0.9)}, fate{}},
		{"another had the name then", s, []watch.Event{boss("A", -90, 0.9, watch.Alive), byID("A", 0.95, watch.Exited, true)}, fate{}},
		{
			"and then it is looked at", s,
			[]watch.Event{noBoss(0.9), boss("B", -1, 1, watch.Alive)},
			fate{Life: watch.Alive, Container: "B"},
		},
	})
}

func TestW2AClaimIsBoundWhenItIsFirstSeenAndStaysSo(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a", owner("100"))))
	p.Apply(alive(100, ticks(-60), 2))
	p.Apply(seen(3, sandbox("a", owner("200")))) // labels do not change; if they did, it would be a trick
	p.Apply(nobody(200, 4))
	if got := p.Entry(id("a")).Owner(); got.Life != watch.Alive || got.Process.PID != 100 {
		t.Errorf("owner is %+v", got)
	}
}

func TestOneFactIsForAllSandboxesOfAnOwner(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a", owner("100")), sandbox("b", owner("100:994000")), sandbox("c", owner("101"))))
	p.Apply(alive(100, 994000, 2))
	p.Apply(exited(100, 994000, 3))
	for name, want := range map[string]watch.Life{"a": watch.Exited, "b": watch.Exited, "c": watch.Unknown} {
		if got := p.Entry(id(name)).Owner().Life; got != want {
			t.Errorf("the owner of %s is %s, want %s", name, got, want)
		}
	}
}

func TestW4StaleFactsDoNotUndoFreshOnes(t *testing.T) {
	a := sandbox("a")
	stopped := sandbox("a", state(watch.Stopped), noInit)
	for name, test := range map[string]struct {
		events []watch.Event
		want   []string // what is left
		state  watch.State
	}{
		"a list from before the sandbox was seen":               {[]watch.Event{seen(5, a), listed(4)}, []string{"a"}, watch.Running},
		"a list of the moment in which it was seen":             {[]watch.Event{seen(5, a), listed(5)}, []string{"a"}, watch.Running},
		"a list from after":                                     {[]watch.Event{seen(5, a), listed(6)}, nil, ""},
		"a list from after, of another kind":                    {[]watch.Event{seen(5, a), watch.Listed{Kind: "other", Asked: at(6)}}, []string{"a"}, watch.Running},
		"gone, then listed by an older list":                    {[]watch.Event{seen(3, a), gone(5, "a"), listed(4, a)}, nil, ""},
		"gone, then listed by a list of that moment":            {[]watch.Event{seen(3, a), gone(5, "a"), listed(5, a)}, nil, ""},
		"gone, then seen by an older look":                      {[]watch.Event{seen(3, a), gone(5, "a"), seen(4, a)}, nil, ""},
		"gone before it was ever seen":                          {[]watch.Event{gone(5, "a"), seen(4, a), listed(4, a)}, nil, ""},
		"gone, a newer list, then an older look":                {[]watch.Event{seen(3, a), gone(5, "a"), listed(6), seen(4, a)}, nil, ""},
		"gone, a newer list, then an older list":                {[]watch.Event{seen(3, a), gone(5, "a"), listed(6), listed(4, a)}, nil, ""},
		"not in a list any more, then seen by an older look":    {[]watch.Event{seen(3, a), listed(6), seen(5, a)}, nil, ""},
		"never seen before a list that lacks it was asked for":  {[]watch.Event{listed(6), seen(5, a)}, nil, ""},
		"not in a list any more, then in an older list":         {[]watch.Event{seen(3, a), listed(6), listed(5, a)}, nil, ""},
		"two lists in the wrong order":                          {[]watch.Event{listed(6, a), listed(5)}, []string{"a"}, watch.Running},
		"an older list does not make the picture forget newer":  {[]watch.Event{listed(6), listed(5), seen(5.5, a)}, nil, ""},
		"created after the latest list":                         {[]watch.Event{listed(6), seen(7, a)}, []string{"a"}, watch.Running},
		"a stop, and an older look":                             {[]watch.Event{seen(5, stopped), seen(4, a)}, []string{"a"}, watch.Stopped},
		"a stop, and an older list":                             {[]watch.Event{seen(5, stopped), listed(4, a)}, []string{"a"}, watch.Stopped},
		"a stop, and a newer list":                              {[]watch.Event{seen(5, stopped), listed(6, a)}, []string{"a"}, watch.Running},
		"a stop, told twice":                                    {[]watch.Event{seen(4, a), seen(5, stopped), seen(5, stopped)}, []string{"a"}, watch.Stopped},
		"gone, told twice, for a sandbox that nobody has heard": {[]watch.Event{gone(5, "b"), gone(5, "b"), seen(6, a)}, []string{"a"}, watch.Running},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			for _, ev := range test.events {
				p.Apply(ev)
			}
			var got []string
			for _, id := range p.IDs() {
				got = append(got, id.Name)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Fatalf("sandboxes (-want +got)\n%s", diff)
			}
			if p.Len() != len(got) {
				t.Errorf("Len() = %d with %d sandboxes", p.Len(), len(got))
			}
			if len(got) > 0 && p.Entry(id(got[0])).State != test.state {
				t.Errorf("state %q, want %q", p.Entry(id(got[0])).State, test.state)
			}
		})
	}
}

func TestW5AFailedListChangesNothing(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a", owner("100")), sandbox("b", owner("container:boss"))))
	p.Apply(alive(100, ticks(-60), 2))
	p.TakeClaims()
	settleAll(p)
	for _, ev := range []watch.Event{
		watch.ScanBegun{At: at(9)},
		watch.ListFailed{Kind: watch.Container, At: at(10), Err: errors.New("i/o timeout")},
		watch.ScanEnded{At: at(11), Failed: 1},
		watch.SourceLost{Source: "docker", Err: errors.New("EOF"), At: at(12)},
		watch.SourceBack{Source: "docker", At: at(13)},
	} {
		if forgotten := p.Apply(ev); len(forgotten) > 0 {
			t.Errorf("%T makes the picture forget %d sandboxes", ev, len(forgotten))
		}
	}
	if p.Len() != 2 || p.Entry(id("a")).Owner().Life != watch.Alive {
		t.Errorf("the picture has changed: %+v", p.Entry(id("a")))
	}
	wantDue(t, p)
	if hold, release := p.TakeClaims(); len(hold)+len(release) > 0 {
		t.Errorf("asks to hold %v and to release %v", hold, release)
	}
}

func TestW6WhatIsForgottenIsToldOnceWithAllThatWasKnown(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a", owner("100")), sandbox("b"), sandbox("c")))
	p.Apply(alive(100, ticks(-60), 2))
	names := func(forgotten []*watch.Entry) (names []string) {
		for _, e := range forgotten {
			names = append(names, e.ID.Name)
		}
		slices.Sort(names)
		return names
	}
	forgotten := p.Apply(listed(3, sandbox("c")))
	if diff := cmp.Diff([]string{"a", "b"}, names(forgotten)); diff != "" {
		t.Fatalf("forgotten by a list (-want +got)\n%s", diff)
	}
	for _, e := range forgotten {
		if e.ID.Name == "a" && e.Owner().Life != watch.Alive {
			t.Errorf("what was known is lost: %+v", e.Owner())
		}
	}
	if diff := cmp.Diff([]string{"c"}, names(p.Apply(gone(4, "c")))); diff != "" {
		t.Fatalf("forgotten when it went (-want +got)\n%s", diff)
	}
	if again := p.Apply(gone(5, "c")); len(again) > 0 {
		t.Errorf("forgotten twice: %v", names(again))
	}
	if p.Len() != 0 {
		t.Errorf("%d sandboxes are left", p.Len())
	}
}

func TestWhichPIDsAreInteresting(t *testing.T) {
	type claims struct{ Hold, Release []int }
	take := func(p *watch.Picture) claims {
		hold, release := p.TakeClaims()
		slices.Sort(hold)
		return claims{slices.Compact(hold), release}
	}
	steps := []struct {
		why    string
		events []watch.Event
		want   claims
	}{
		{"claims are new", []watch.Event{listed(1, sandbox("a", owner("100")), sandbox("b", owner("100")), sandbox("c", owner("200:5")), sandbox("d", owner("container:boss")))}, claims{Hold: []int{100, 200}}},
		{"nothing is new", nil, claims{}},
		{"a scan finds claims still open", []watch.Event{listed(2, sandbox("a"), sandbox("b"), sandbox("c"), sandbox("d"))}, claims{Hold: []int{100, 200}}},
		{"one is bound, so a scan names the other alone", []watch.Event{alive(100, ticks(-60), 3), listed(3, sandbox("a"), sandbox("b"), sandbox("c"), sandbox("d"))}, claims{Hold: []int{200}}},
		{"one is dead before it was bound", []watch.Event{nobody(200, 4), listed(4, sandbox("a"), sandbox("b"), sandbox("c"), sandbox("d"))}, claims{}},
		{"another sandbox of a held owner", []watch.Event{seen(5, sandbox("e", owner("100")))}, claims{Hold: []int{100}}},
		{"two of three sandboxes went", []watch.Event{gone(6, "a"), gone(6, "e")}, claims{}},
		{"the last went", []watch.Event{gone(7, "b")}, claims{Release: []int{100}}},
		{"came and went between two looks", []watch.Event{seen(8, sandbox("f", owner("300"))), gone(8.5, "f")}, claims{Release: []int{300}}},
		{"went and another came between two looks", []watch.Event{gone(9, "c"), seen(9, sandbox("g", owner("200")))}, claims{Hold: []int{200}}},
	}
	p := watch.NewPicture(thisBoot)
	for _, step := range steps {
		for _, ev := range step.events {
			p.Apply(ev)
		}
		if diff := cmp.Diff(step.want, take(p), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s (-want +got)\n%s", step.why, diff)
		}
	}
}

func TestProgressOfAReap(t *testing.T) {
	init := sandbox("a").Init
	begun := func(step watch.Step, when float64) watch.Event {
		return watch.StepBegun{ID: id("a"), Step: step, Reason: "owner-exited", At: at(when)}
	}
	ended := func(step watch.Step, when float64, err error) watch.Event {
		return watch.StepEnded{ID: id("a"), Step: step, Err: err, At: at(when)}
	}
	died := func(p watch.Process, when float64) watch.Event {
		return watch.InitExited{ID: id("a"), Process: p, At: at(when)}
	}
	failed := errors.New("device or resource busy")
	stopped := sandbox("a", state(watch.Stopped), noInit)
	for name, test := range map[string]struct {
		events []watch.Event
		want   watch.Progress
	}{
		"not begun": {nil, watch.Progress{}},
		"a step is under way": {
			[]watch.Event{begun(watch.Kill, 2)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Kill, StepAt: at(2), SignalAt: at(2), InFlight: true},
		},
		"a step has ended": {
			[]watch.Event{begun(watch.Kill, 2), ended(watch.Kill, 2.1, nil)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Kill, StepAt: at(2.1), SignalAt: at(2)},
		},
		"init died, and was seen to": {
			[]watch.Event{begun(watch.Kill, 2), ended(watch.Kill, 2, nil), died(init, 2.1), seen(3, stopped)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Kill, StepAt: at(2), SignalAt: at(2), Stopped: at(2.1)},
		},
		"the engine saw the death first": {
			[]watch.Event{begun(watch.Kill, 2), ended(watch.Kill, 2, nil), seen(3, stopped), died(init, 3.1)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Kill, StepAt: at(2), SignalAt: at(2), Stopped: at(3)},
		},
		"another init's death": {
			[]watch.Event{begun(watch.Kill, 2), died(watch.Process{PID: 900, Start: 1, Boot: thisBoot}, 2.1)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Kill, StepAt: at(2), SignalAt: at(2), InFlight: true},
		},
		"init died of itself, before anything was begun": {
			[]watch.Event{died(init, 2)},
			watch.Progress{},
		},
		"the reason of a reap is that of its first step": {
			[]watch.Event{begun(watch.Kill, 2), ended(watch.Kill, 2, nil), watch.StepBegun{ID: id("a"), Step: watch.Remove, Reason: "retrying", At: at(3)}},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Remove, StepAt: at(3), SignalAt: at(2), InFlight: true},
		},
		"a removal fails, and fails again": {
			[]watch.Event{begun(watch.Remove, 2), ended(watch.Remove, 3, failed), begun(watch.Remove, 4), ended(watch.Remove, 5, failed)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Remove, StepAt: at(5), Attempts: 2, Err: failed},
		},
		"W4: a failure told twice is one": {
			[]watch.Event{begun(watch.Remove, 2), ended(watch.Remove, 3, failed), ended(watch.Remove, 3, failed)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Remove, StepAt: at(3), Attempts: 1, Err: failed},
		},
		"W4: the end of a step that is over already": {
			[]watch.Event{begun(watch.Kill, 2), begun(watch.Remove, 3), ended(watch.Kill, 4, failed)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Remove, StepAt: at(3), SignalAt: at(2), InFlight: true},
		},
		"the end of a step that was never begun": {
			[]watch.Event{ended(watch.Remove, 3, failed)},
			watch.Progress{},
		},
		"a failed kill is no failed removal": {
			[]watch.Event{begun(watch.Kill, 2), ended(watch.Kill, 2, failed)},
			watch.Progress{Begun: at(2), Reason: "owner-exited", Step: watch.Kill, StepAt: at(2), Err: failed},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(seen(1, sandbox("a")))
			for _, ev := range test.events {
				p.Apply(ev)
			}
			sameError := cmp.Comparer(func(a, b error) bool { return errors.Is(a, b) || errors.Is(b, a) })
			if diff := cmp.Diff(test.want, p.Entry(id("a")).Progress, sameError); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestStepsOfWhatIsForgottenAreIgnored(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a")))
	p.Apply(gone(2, "a"))
	p.Apply(watch.StepBegun{ID: id("a"), Step: watch.Kill, At: at(3)})
	p.Apply(watch.StepEnded{ID: id("a"), Step: watch.Kill, At: at(3)})
	p.Apply(watch.InitExited{ID: id("a"), Process: sandbox("a").Init, At: at(3)})
	if p.Len() != 0 {
		t.Error("the sandbox is back")
	}
	wantDue(t, p)
}

func TestTheNamespaceIsOneKindsAndTheLatestWordCounts(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a")))
	p.Apply(seen(1, sandbox("other", func(s *watch.Sandbox) { s.ID.Kind = "other" })))
	settleAll(p)
	p.Apply(watch.NamespaceSeen{Kind: watch.Container, Shared: true})
	wantDue(t, p, "a")
	if p.Namespace("other").Shared {
		t.Error("one kind's namespace is taken for another's")
	}
	p.Apply(watch.NamespaceSeen{Kind: watch.Container, Detail: "remote"})
	if ns := p.Namespace(watch.Container); ns.Shared || ns.Detail != "remote" {
		t.Errorf("the namespace is %+v", ns)
	}
}
