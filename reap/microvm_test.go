package reap_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// This file is about microVMs that are processes: their owner is what their adapter finds, and when they are dead nothing
// tells any more what they were and what they have left.

var (
	aRunner = watch.Claim{Kind: watch.AncestorClaim, Program: "runner"}
	aLock   = watch.Claim{Kind: watch.LockClaim, File: "/var/lib/runner.lock"}
	aRecord = watch.Claim{Kind: watch.RecordClaim, File: "/run/runner.json"}
	records = watch.Claim{Kind: watch.RecordClaim, File: "/run/runners/*.json"}

	runner = watch.Process{PID: 300, Start: 50, Boot: thisBoot}
)

func withMicroVMs(c *reap.Config) {
	c.Platforms[watch.Firecracker] = c.Platforms[watch.Container]
	c.Inbox.Post(watch.SourceBack{Source: "processes", Kind: watch.Firecracker, At: time.Now()}, watch.NamespaceSeen{Kind: watch.Firecracker, Shared: true})
}

func microVM(name string, claims ...watch.Claim) watch.Sandbox {
	s := born(name, nil, ownedBy(claims...))
	s.ID.Kind, s.Terms.Rule = watch.Firecracker, "vms"
	s.Leaves = []watch.Leaf{{Kind: "workspace", Name: "/var/lib/runner/workspaces/" + name, Incarnation: "1"}, {Kind: "netns", Name: "ns-" + name}}
	return s
}

// sought is what an adapter found of an owner just now.
func sought(s watch.Sandbox, claim watch.Claim, life watch.Life) watch.OwnerSeen {
	ev := watch.OwnerSeen{ID: s.ID, Claim: claim, Life: life, Asked: time.Now()}
	if life == watch.Alive {
		ev.Owner = runner
	}
	return ev
}

// R8: what a crash between the kill and the removal would lose is on record before the kill.
func TestAMicroVMIsOnRecordBeforeItIsKilled(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(withMicroVMs), func(s *stand) {
		var atStop map[string]reap.Case
		s.engine.refuse = func(watch.Step) error {
			atStop, _ = docket.loaded()
			return nil
		}
		vm := microVM("a", aRunner)
		s.run(vm)
		s.inbox.Post(sought(vm, aRunner, watch.Alive))
		s.pass(time.Minute)
		if len(s.engine.did()) > 0 {
			t.Fatalf("with a live runner: %v", s.engine.did())
		}
		died := time.Now()
		gone := sought(vm, aRunner, watch.Exited)
		gone.Exited = died
		s.inbox.Post(gone)
		s.pass(time.Minute)
		want := map[string]reap.Case{"a": {
			Kind: watch.Firecracker, ID: "a", Name: vm.Name, Image: vm.Image, Created: vm.Created, Rule: "vms", Reason: reap.OwnerExited, Owner: "ancestor:runner",
			Steps: []reap.CaseStep{{Step: "kill"}, {Step: "remove"}}, Begun: died, Init: vm.Init, Leaves: vm.Leaves,
		}}
		if diff := cmp.Diff(want, atStop); diff != "" {
			t.Errorf("on record before the kill (-want +got)\n%s", diff)
		}
		docket.holds()
	})
}

// A disk that hangs must not keep an orphan alive.
func TestAKillWaitsForNoDisk(t *testing.T) {
	docket := newState(t)
	var gate chan struct{}
	hang := func(c *reap.Config) {
		gate = make(chan struct{})
		c.Boundary = func(b reap.Boundary) {
			if b == reap.BoundaryJotted {
				<-gate
			}
		}
	}
	onStand(t, docket.with(withMicroVMs, hang), func(s *stand) {
		defer close(gate)
		vm := microVM("a", aRecord)
		s.run(vm)
		s.inbox.Post(sought(vm, aRecord, watch.Exited))
		s.pass(time.Second)
		s.did("200ms kill a")
	})
}

// What a later look does not find any more is still to be removed, and by its name as it was found.
func TestWhatAMicroVMLeavesIsNotForgotten(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(withMicroVMs), func(s *stand) {
		var mended atomic.Bool
		removed := map[string][]watch.Leaf{}
		s.engine.parts = func(s watch.Sandbox) { removed[s.ID.Name] = s.Leaves }
		s.engine.remove = func(context.Context, string) error {
			if mended.Load() {
				return nil
			}
			return errBusy
		}
		vm := microVM("a", aRecord)
		s.run(vm)
		s.inbox.Post(sought(vm, aRecord, watch.Exited))
		s.pass(time.Second)
		folder := vm // all that is left to see
		folder.State, folder.Init, folder.Leaves = watch.Stopped, watch.Process{}, vm.Leaves[:1]
		s.inbox.Post(watch.SandboxSeen{Sandbox: folder, Asked: time.Now()})
		s.pass(time.Second)
		s.inbox.Post(watch.Listed{Kind: watch.Firecracker, Asked: time.Now()})
		s.pass(time.Second)
		if s.told().status.Open != 1 {
			t.Fatalf("status %+v", s.told().status)
		}
		mended.Store(true)
		s.pass(time.Hour)
		if diff := cmp.Diff(vm.Leaves, removed["a"]); diff != "" {
			t.Errorf("removed (-want +got)\n%s", diff)
		}
		if got := s.told().status; got.Open != 0 || got.Reaped != 1 || got.Sandboxes != 0 {
			t.Errorf("status %+v", got)
		}
		docket.holds()
	})
}

// A crash after the note: the removal is told all that was noted.
func TestACaseOfAMicroVMGoesOnWithWhatWasNoted(t *testing.T) {
	docket := newState(t)
	vm := microVM("a", aRunner)
	docket.write(reap.Case{
		Kind: watch.Firecracker, ID: "a", Name: "a", Rule: "vms", Reason: reap.OwnerExited, Owner: "ancestor:runner",
		Steps: []reap.CaseStep{{Step: "kill"}, {Step: "remove"}}, Begun: at(0), Init: vm.Init, Leaves: vm.Leaves,
	})
	var removed watch.Sandbox
	listen := func(c *reap.Config) {
		c.Platforms[watch.Container].(*engine).parts = func(s watch.Sandbox) { removed = s }
	}
	onStand(t, docket.with(withMicroVMs, listen), func(s *stand) {
		s.pass(time.Minute)
		if diff := cmp.Diff(vm.Leaves, removed.Leaves); diff != "" || removed.Init != vm.Init {
			t.Errorf("removed: init %v, leaves (-want +got)\n%s", removed.Init, diff)
		}
		docket.holds()
	})
}

// A microVM has no labels that could be malformed.
func TestAFaultOfAMicroVM(t *testing.T) {
	vm := labelled("a", nil)
	vm.ID.Kind, vm.Terms.Fault = watch.Firecracker, "two processes seem to be this microVM"
	p := watch.NewPicture(thisBoot)
	p.Apply(watch.SandboxSeen{Sandbox: vm, Asked: at(1)})
	got := reap.DefaultPolicy().Judge(p, p.Entry(vm.ID), at(time.Hour))
	if want := (reap.Judgement{Reason: reap.OwnerUnknown, Detail: vm.Terms.Fault}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestJudgeWhatAnAdapterLooksFor(t *testing.T) {
	shared := watch.NamespaceSeen{Kind: watch.Firecracker, Shared: true}
	const late = time.Hour
	died := func(claim watch.Claim) watch.OwnerSeen {
		return watch.OwnerSeen{Claim: claim, Life: watch.Exited, Asked: at(3), Exited: at(2)}
	}
	seen := func(claim watch.Claim, life watch.Life) watch.OwnerSeen {
		return watch.OwnerSeen{Claim: claim, Life: life, Asked: at(2), Owner: runner}
	}
	unseen := func(claim watch.Claim) watch.OwnerSeen {
		return watch.OwnerSeen{Claim: claim, Life: watch.Exited, Asked: at(2)}
	}
	named := func(claim watch.Claim) watch.OwnerSeen {
		ev := unseen(claim)
		ev.Owner = runner
		return ev
	}
	runnerDies := watch.ProcessSeen{PID: runner.PID, Process: runner, Life: watch.Exited, At: at(3)}
	again := func(ev watch.OwnerSeen, asked time.Duration) watch.OwnerSeen {
		ev.Asked = at(asked)
		return ev
	}
	for name, test := range map[string]struct {
		claims []watch.Claim
		events []watch.Event
		now    time.Duration
		want   reap.Reason
	}{
		"nobody has looked":                              {[]watch.Claim{aRunner}, nil, late, reap.OwnerUnknown},
		"the look failed":                                {[]watch.Claim{aRunner}, []watch.Event{seen(aRunner, watch.Unknown)}, late, reap.OwnerUnknown},
		"a runner":                                       {[]watch.Claim{aRunner}, []watch.Event{seen(aRunner, watch.Alive)}, late, reap.Managed},
		"a lock is held":                                 {[]watch.Claim{aLock}, []watch.Event{seen(aLock, watch.Alive)}, late, reap.Managed},
		"the recorded process lives":                     {[]watch.Claim{aRecord}, []watch.Event{seen(aRecord, watch.Alive)}, late, reap.OwnerAlive},
		"no ancestor, a moment old":                      {[]watch.Claim{aRunner}, []watch.Event{unseen(aRunner)}, time.Second, reap.TooYoung},
		"no ancestor":                                    {[]watch.Claim{aRunner}, []watch.Event{unseen(aRunner)}, late, reap.NoPossibleOwner},
		"no lock is held":                                {[]watch.Claim{aLock}, []watch.Event{unseen(aLock)}, late, reap.NoPossibleOwner},
		"the recorded process is dead":                   {[]watch.Claim{aRecord}, []watch.Event{unseen(aRecord)}, time.Second, reap.OwnerExited},
		"no record names it":                             {[]watch.Claim{records}, []watch.Event{unseen(records)}, late, reap.NoPossibleOwner},
		"one of the records names it, and it is dead":    {[]watch.Claim{records}, []watch.Event{named(records)}, time.Second, reap.OwnerExited},
		"a runner that was seen to die":                  {[]watch.Claim{aRunner}, []watch.Event{died(aRunner)}, time.Second, reap.OwnerExited},
		"a runner dies, and no other was looked for":     {[]watch.Claim{aRunner}, []watch.Event{seen(aRunner, watch.Alive), runnerDies}, late, reap.TooYoung},
		"a runner dies, and no other was looked for yet": {[]watch.Claim{aRunner}, []watch.Event{seen(aRunner, watch.Alive), runnerDies}, time.Second, reap.TooYoung},
		"who was recorded dies":                          {[]watch.Claim{aRecord}, []watch.Event{seen(aRecord, watch.Alive), runnerDies}, time.Second, reap.OwnerExited},
		"one who recorded himself dies":                  {[]watch.Claim{records}, []watch.Event{seen(records, watch.Alive), runnerDies}, late, reap.TooYoung},
		"a runner dies, and there is no other":           {[]watch.Claim{aRunner}, []watch.Event{seen(aRunner, watch.Alive), runnerDies, again(unseen(aRunner), 4)}, time.Second, reap.OwnerExited},
		"a runner dies, and there is another":            {[]watch.Claim{aRunner}, []watch.Event{seen(aRunner, watch.Alive), runnerDies, again(seen(aRunner, watch.Alive), 4)}, late, reap.Managed},
		"an old look comes late":                         {[]watch.Claim{aRunner}, []watch.Event{again(seen(aRunner, watch.Alive), 4), unseen(aRunner)}, late, reap.Managed},
		"a look for another's owner":                     {[]watch.Claim{aRunner}, []watch.Event{unseen(watch.Claim{Kind: watch.AncestorClaim, Program: "other"})}, late, reap.OwnerUnknown},
		"all are dead but the lock":                      {[]watch.Claim{aRunner, aRecord, aLock}, []watch.Event{died(aRunner), unseen(aRecord), seen(aLock, watch.Alive)}, late, reap.Managed},
		"all are dead but a record":                      {[]watch.Claim{aRunner, aRecord, aLock}, []watch.Event{died(aRunner), seen(aRecord, watch.Unknown), unseen(aLock)}, late, reap.OwnerUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			vm := labelled("a", nil)
			vm.ID.Kind, vm.Terms.Rule, vm.Terms.Owners = watch.Firecracker, "vms", test.claims
			p := watch.NewPicture(thisBoot)
			p.Apply(shared)
			p.Apply(watch.SandboxSeen{Sandbox: vm, Asked: at(1)})
			for _, ev := range test.events {
				if seen, ok := ev.(watch.OwnerSeen); ok {
					seen.ID = vm.ID
					ev = seen
				}
				p.Apply(ev)
			}
			got := reap.DefaultPolicy().Judge(p, p.Entry(vm.ID), at(test.now))
			if got.Reason != test.want {
				t.Errorf("%+v, want %s", got, test.want)
			}
			if inferred := test.want == reap.NoPossibleOwner; got.Inferred != inferred {
				t.Errorf("inferred %v, want %v", got.Inferred, inferred)
			}
		})
	}
}

// What is of the host is on record whichever engine that has.
func TestCasesOfTheHostAreThoseOfEveryEngine(t *testing.T) {
	docket := newState(t)
	vm := watch.ID{Kind: watch.Firecracker, Name: "a"}
	first, second := docket.For("one"), docket.For("another")
	if err := first.Write(reap.Case{Kind: vm.Kind, ID: vm.Name, Reason: reap.OwnerExited, Begun: at(0)}); err != nil {
		t.Fatal(err)
	}
	if err := first.Write(reap.Case{Kind: watch.Container, ID: "a", Reason: reap.OwnerExited, Begun: at(0)}); err != nil {
		t.Fatal(err)
	}
	cases, damaged, err := second.Load()
	if err != nil || len(damaged) > 0 || len(cases) != 1 || cases[0].Sandbox() != vm {
		t.Errorf("another engine's are %+v, damaged %v, %v", cases, damaged, err)
	}
	if err := first.Drop(vm); err != nil {
		t.Fatal(err)
	}
	if dropped, err := second.IsDropped(vm); !dropped || err != nil {
		t.Errorf("dropped %v, %v", dropped, err)
	}
}
