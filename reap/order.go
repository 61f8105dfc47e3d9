package reap

import (
	"maps"
	"slices"
	"time"

	"watcher/watch"
)

// This file is what a loop does for an operator who orders the end of sandboxes. A loop that is there for that does
// nothing else; one that watches goes on with what another process left on record when it died.

// stow keeps what is known of a reap that somebody else has begun, in case that it is ordered.
func (l *Loop) stow(c Case) {
	if l.Platforms[c.Kind] != nil {
		l.stowed[c.Sandbox()] = c
		l.Picture.Apply(c.resumed())
	}
}

// takeOrders asks what is ordered, once everything has been seen.
func (l *Loop) takeOrders() {
	if l.Order == nil || !l.ended || l.ordered != nil {
		return
	}
	l.ordered = map[watch.ID]bool{}
	for _, id := range l.Order(l.Picture, l.unseen) {
		now := time.Now()
		l.apply(watch.Ordered{ID: id, Reason: string(Operator), At: now})
		e := l.Picture.Entry(id)
		if e == nil {
			continue
		}
		l.ordered[id] = true
		if before, begun := l.stowed[id]; begun {
			c := newCase(e, Step{ID: id, Do: watch.Record, Reason: Operator}, now)
			c.Attempts, c.Error, c.First, c.Last, c.Next, c.GaveUp = before.Attempts, before.Error, before.First, before.Last, before.Next, before.GaveUp
			l.open[id] = c
		}
	}
}

// lookOnceMore asks for one more scan when all is done but what somebody uses: what used it may have been reaped, and the news
// of that be late.
func (l *Loop) lookOnceMore() {
	if len(l.ordered) > 0 && l.ended && !l.again && l.scans == 1 && !l.busy() {
		l.again = true
		l.Rescan()
	}
}

// ours reports whether a sandbox is one that this loop does anything about.
func (l *Loop) ours(id watch.ID) bool {
	e := l.Picture.Entry(id)
	return l.Order == nil || l.open[id] != nil || e != nil && !e.Ordered.IsZero()
}

// restricted leaves of a plan what an operator ordered, and what goes with it as the member of its group.
func (l *Loop) restricted(plan Plan) Plan {
	if l.Order == nil {
		return plan
	}
	plan.Braked, plan.Released, plan.Abandoned, plan.SecondLook = nil, nil, nil, false
	plan.Steps = slices.DeleteFunc(plan.Steps, func(s Step) bool {
		return !l.ours(s.ID) && (s.Reason != Operator || !l.Picture.Entry(s.ID).Progress.Begun.IsZero())
	})
	return plan
}

// teller is who is told of the parts of a removal.
func (l *Loop) teller(id watch.ID) Tell {
	if l.Told == nil {
		return nil
	}
	return func(part string, err error) { l.Told(id, part, err) }
}

// seekOrders has the clerk look for what an operator ordered, and whoever was at it did not finish: so that it need not wait
// for our next start.
func (l *Loop) seekOrders() {
	if l.Docket == nil || l.Once || l.DryRun {
		return
	}
	open := maps.Clone(l.open) // what is ours now may be finished when the answer comes
	l.file(func() watch.Event {
		cases, _, err := l.Docket.Load()
		if err != nil {
			return watch.RecordKept{} // the next scan asks again, and whoever writes tells
		}
		for _, c := range cases {
			if c.Reason == Operator && open[c.Sandbox()] == nil {
				l.orders.Post(c)
			}
		}
		return watch.RecordKept{}
	})
}

// takeFound goes on with what the clerk has found.
func (l *Loop) takeFound() {
	for _, c := range l.orders.Take() {
		_, dropped := l.dropped[c.Sandbox()]
		if l.open[c.Sandbox()] == nil && l.Platforms[c.Kind] != nil && !dropped {
			l.takeUp(c)
		}
	}
}
