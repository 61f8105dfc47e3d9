package reap_test

import (
	"testing"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// What the walk found: the smallest history of each.

func containerOwned(events ...watch.Event) *watch.Picture {
	return picture(labelled("a", labels{"owner": "container:boss"}), append([]watch.Event{here}, events...)...)
}

// R2: an owner container stopped, and that it runs again is not told in time.
func TestAnOldLookAtAnOwnerContainerCondemnsNobody(t *testing.T) {
	pol := reap.DefaultPolicy()
	p := containerOwned(cLives, cDown)
	now := cDown.Since.Add(pol.Grace)
	plan := pol.Decide(p, now)
	if len(plan.Steps) > 0 || !plan.SecondLook {
		t.Fatalf("by a look from before the end of the grace: %+v", plan)
	}
	again := cDown
	again.Asked = now
	p.Apply(again)
	if plan := pol.Decide(p, now.Add(time.Second)); len(plan.Steps) == 0 {
		t.Fatalf("by a look from after it: %+v", plan)
	}
}

// R2: an owner container stopped, ran again unseen, and has just stopped for the second time.
func TestTheGraceCountsFromTheLatestExit(t *testing.T) {
	pol := reap.DefaultPolicy()
	again := cDown
	again.Since = cDown.Since.Add(time.Minute)
	again.Asked = again.Since.Add(time.Second)
	p := containerOwned(cLives, cDown, again)
	if plan := pol.Decide(p, again.Asked); len(plan.Steps) > 0 {
		t.Fatalf("a second after its latest exit: %+v", plan.Steps)
	}
}

// R1: a case is taken up whose owner is a container, which may run again by now.
func TestACaseOnRecordWaitsForALookAtItsOwnerContainer(t *testing.T) {
	pol := reap.DefaultPolicy()
	s := labelled("a", labels{"owner": "container:boss"})
	p := watch.NewPicture(thisBoot)
	p.Apply(watch.CaseResumed{Sandbox: s, Reason: string(reap.OwnerContainerGone), Begun: at(0)})
	p.Apply(here)
	if plan := pol.Decide(p, at(time.Hour)); len(plan.Steps) > 0 {
		t.Fatalf("before any look at its owner: %+v", plan.Steps)
	}
	gone := cGone
	gone.Named, gone.Container = true, ""
	p.Apply(gone)
	if plan := pol.Decide(p, at(time.Hour)); len(plan.Steps) != 1 || plan.Steps[0].Do != watch.Remove {
		t.Fatalf("after it: %+v", plan.Steps)
	}
}
