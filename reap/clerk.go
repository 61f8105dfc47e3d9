package reap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"watcher/watch"
)

// This file is the loop's dealings with the docket. A disk may be slow or hang, and the loop must not: what is to be
// written goes to a clerk, one goroutine that does it in order and posts the result as an event.

// runClerk does what is in l.desk until ctx ends.
func (l *Loop) runClerk(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.desk.Ready():
		}
		for _, do := range l.desk.Take() {
			l.Inbox.Post(do())
		}
	}
}

// file has the clerk change the docket. The event that do returns must be one that filed expects.
func (l *Loop) file(do func() watch.Event) {
	l.filing++
	l.desk.Post(do)
}

// filed notes that the clerk has done something. Only what was written proves that there is room again.
func (l *Loop) filed(err error, written bool) {
	l.filing--
	if written || err != nil {
		l.tellDocket(err)
	}
}

// copy is the case as it is now, for the clerk: the loop goes on with the case itself.
func (c *Case) copy() Case {
	copied := *c
	copied.Steps = slices.Clone(c.Steps)
	return copied
}

// record has the clerk write the case of a sandbox, as the Jot or Record step of its reap.
func (l *Loop) record(id watch.ID, step watch.Step) {
	if l.Docket == nil {
		l.Inbox.Post(watch.StepEnded{ID: id, Step: step, At: time.Now()})
		l.filing++
		return
	}
	c := l.open[id].copy()
	write, boundary := l.Docket.Write, BoundaryRecorded
	if step == watch.Jot {
		write, boundary = l.Docket.Jot, BoundaryJotted
	}
	l.file(func() watch.Event {
		err := write(c)
		l.boundary(boundary)
		return watch.StepEnded{ID: id, Step: step, Err: err, At: time.Now()}
	})
}

// update has the clerk write what became of a removal that failed.
func (l *Loop) update(e *watch.Entry) {
	c := l.open[e.ID]
	c.Attempts, c.Error, c.Last = e.Progress.Attempts, e.Progress.Err.Error(), e.Progress.StepAt
	if c.First.IsZero() {
		c.First = c.Last
	}
	c.Next = c.Last.Add(l.Policy.delay(e.ID, c.Attempts))
	c.GaveUp = c.Attempts >= l.Policy.Attempts
	if l.Docket == nil {
		return
	}
	copied := c.copy()
	l.file(func() watch.Event {
		return watch.RecordKept{ID: copied.Sandbox(), Written: true, Err: l.Docket.Write(copied)}
	})
}

// finish has the clerk remove the record of a case that is over.
func (l *Loop) finish(id watch.ID) {
	delete(l.open, id)
	if l.Docket == nil {
		return
	}
	l.file(func() watch.Event {
		err := l.Docket.Close(id)
		l.boundary(BoundaryClosed)
		return watch.RecordKept{ID: id, Err: err}
	})
}

// An ending is a reap that has ended, with a record that is to go.
type ending struct {
	id    watch.ID
	group string // of a container: what belongs to it goes too
	since time.Time
	kept  *Case // the record, as long as it does not say that its sandbox is gone
}

func newEnding(e *watch.Entry, c *Case, since time.Time) ending {
	end := ending{id: e.ID, since: since}
	if !c.Removed {
		end.kept = c
	}
	if e.ID.Kind == watch.Container {
		end.group = e.Terms.Group
	}
	return end
}

// owes reports whether something that belongs to the group of what has ended may have to go too and has no record of its
// own: until then that of the container is all that a crash would leave of its ground.
func (l *Loop) owes(end ending) bool {
	if end.group == "" {
		return false
	}
	return l.unlisted(end) || slices.ContainsFunc(l.Picture.Belonging(end.group), func(id watch.ID) bool {
		j := l.verdicts[id]
		return l.open[id] == nil && (j.Verdict != Keep || j.Reason == InUse)
	})
}

// unlisted reports whether what belongs to the group of what has ended may not have been seen yet, or not since.
func (l *Loop) unlisted(end ending) bool {
	return end.group != "" && slices.ContainsFunc([]watch.Kind{watch.Volume, watch.Network}, func(kind watch.Kind) bool {
		return l.Platforms[kind] != nil && !l.Picture.Listed(kind).After(end.since)
	})
}

// keep has the clerk note that a sandbox is gone whose record stays, so that its end is not told again.
func (l *Loop) keep(end *ending) {
	if end.kept == nil || l.Docket == nil {
		return
	}
	c := end.kept.copy()
	c.Removed = true
	end.kept = nil
	l.file(func() watch.Event {
		return watch.RecordKept{ID: c.Sandbox(), Written: true, Err: l.Docket.Write(c)}
	})
}

// pickUp has the clerk remove the marks of dropped sandboxes that are gone.
func (l *Loop) pickUp() {
	for id := range l.dropped {
		if l.DryRun || l.Picture.Dropped(id) {
			continue
		}
		delete(l.dropped, id)
		l.file(func() watch.Event { return watch.RecordKept{ID: id, Err: l.Docket.PickUp(id)} })
	}
}

// drop ends a reap because an operator gave it up. Its record goes once more: the clerk may have written it meanwhile.
func (l *Loop) drop(id watch.ID) {
	l.dropped[id] = struct{}{}
	l.finish(id)
	l.apply(watch.CaseDropped{ID: id})
}

// errHungDisk is told when a removal does not wait for its record any longer.
var errHungDisk = fmt.Errorf("no answer within %s", recordWait)

// errDropped is the result of a removal that was not tried, because an operator dropped the sandbox meanwhile.
var errDropped = errors.New("dropped by an operator")

// remove carries out a Remove step, in a goroutine of its own.
func (l *Loop) remove(ctx context.Context, s watch.Sandbox) error {
	if l.Docket != nil {
		switch dropped, err := l.Docket.IsDropped(s.ID); {
		case err != nil:
			return err
		case dropped:
			return errDropped
		}
	}
	err := l.Platforms[s.ID.Kind].Remove(ctx, s, l.teller(s.ID))
	l.boundary(BoundaryRemoved)
	return err
}

// resume takes up the reaps that the docket holds, before anything else happens. The error is for a docket that cannot
// be read: who does not know what was dropped must not reap.
func (l *Loop) resume() error {
	if l.Docket == nil {
		return nil
	}
	dropped, err := l.Docket.Dropped()
	if err != nil {
		return err
	}
	for _, id := range dropped {
		l.dropped[id] = struct{}{}
		l.Picture.Apply(watch.CaseDropped{ID: id})
	}
	cases, damaged, err := l.Docket.Load()
	if err != nil {
		return err
	}
	for _, err := range damaged {
		l.Log.Error("a record is damaged and was set aside", watch.KeyEvent, watch.EventDocketFailed, watch.KeyError, err)
	}
	if len(damaged) > 0 && !l.DryRun {
		if err := l.Docket.SetAside(); err != nil {
			l.Log.Error("cannot set damaged records aside", watch.KeyEvent, watch.EventDocketFailed, watch.KeyError, err)
		}
	}
	for _, c := range cases {
		if l.Order != nil {
			l.stow(c)
			continue
		}
		switch _, dropped := l.dropped[c.Sandbox()]; {
		case l.Platforms[c.Kind] == nil:
			continue // of a kind that is not served now; it waits for one who serves it
		case dropped && l.DryRun:
			continue
		case dropped: // between the mark and the end of its record there was a crash
			l.finish(c.Sandbox())
			continue
		}
		l.takeUp(c)
	}
	return nil
}

// takeUp goes on with a reap that is on record.
func (l *Loop) takeUp(c Case) {
	l.open[c.Sandbox()] = &c
	l.Picture.Apply(c.resumed())
	if e := l.Picture.Entry(c.Sandbox()); e != nil {
		l.Log.Info("takes up what was begun", l.about(e, watch.KeyReason, string(c.Reason), watch.KeyAttempt, c.Attempts+1)...)
	}
}

// Known is the sandbox of a case, as far as it is on record.
func (c Case) Known() watch.Sandbox {
	// An owner that no label can name was judged when the reap began, and the case goes on without.
	terms := watch.Terms{Rule: c.Rule, Group: c.Group}
	if claim, err := watch.ParseClaim(c.Owner); err == nil {
		terms.Owners = []watch.Claim{claim}
	}
	return watch.Sandbox{
		ID: c.Sandbox(), Name: c.Name, Image: c.Image, Created: c.Created, Terms: terms, Init: c.Init, Leaves: c.Leaves,
	}
}

// resumed is the event that brings a recorded case back into the picture.
func (c Case) resumed() watch.CaseResumed {
	ev := watch.CaseResumed{Sandbox: c.Known(), Reason: string(c.Reason), Begun: c.Begun, Attempts: c.Attempts}
	if c.Error != "" {
		ev.Err = errors.New(c.Error)
	}
	return ev
}

// newCase is the case of a reap that begins with the given step.
func newCase(e *watch.Entry, step Step, now time.Time) *Case {
	owner := e.Owner()
	if o := ownerContainer(e); o != nil {
		owner = o // only this one can come back
	}
	c := &Case{
		Kind: e.ID.Kind, ID: e.ID.Name, Name: e.Name, Image: e.Image, Created: e.Created,
		Rule: e.Terms.Rule, Group: e.Terms.Group, Reason: step.Reason, Owner: owner.Claim.String(), Begun: now,
		Leaves: e.Leaves,
	}
	if e.ID.Kind.OfHost() {
		c.Init = e.Init // an engine knows which process a container's is, and nobody knows that of these
	}
	if step.Do < watch.Record || step.Reason == Operator && stoppable(e) {
		c.Steps = append(c.Steps, CaseStep{Step: watch.Kill.String()})
	}
	c.Steps = append(c.Steps, CaseStep{Step: watch.Remove.String()})
	return c
}

// A Boundary is a point in a reap at which something has just become durable or irrevocable. A test may have the
// process killed there.
type Boundary string

// The boundaries of a reap.
const (
	BoundaryJotted   Boundary = "jotted"
	BoundaryStopped  Boundary = "stopped"
	BoundaryRecorded Boundary = "recorded"
	BoundaryRemoved  Boundary = "removed"
	BoundaryClosed   Boundary = "closed"
)

func (l *Loop) boundary(b Boundary) {
	if l.Boundary != nil {
		l.Boundary(b)
	}
}
