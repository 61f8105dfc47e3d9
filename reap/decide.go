package reap

import (
	"hash/fnv"
	"strconv"
	"time"

	"watcher/watch"
)

// dieWait is how long a killed sandbox may take until its system says that it died. Removing it before costs some
// 15 ms more (measured with Debian's engine, whose word comes after some 42 ms); never removing it would be worse.
const dieWait = 2 * time.Second

// recordWait is how long a removal waits for its record. A disk that does not answer for that long is hung, and must not
// keep an orphan alive.
const recordWait = 5 * time.Second

// jotWait is how long a kill waits for a note that need not be synced, which is a matter of microseconds. A disk that does
// not take even that must not keep an orphan alive.
const jotWait = 200 * time.Millisecond

// A Plan is what is to be done now. It is a value: to carry it out or only to print it is the caller's choice.
type Plan struct {
	Judged     []Judged   // a verdict for each sandbox that was due, in order
	Steps      []Step     // in the order in which to take them: all stops before the first removal (R3)
	SecondLook bool       // a full scan is due, for those that must be looked at again
	Braked     []watch.ID // to be looked at a second time before anything is done to them (R7)
	Released   []watch.ID // were braked, and are not to be reaped any more: the next time, the brake applies anew
	Abandoned  []watch.ID // reaps begun whose ground is gone: the owner runs again
}

// Judged is one sandbox with its judgement.
type Judged struct {
	ID watch.ID
	Judgement
}

// A Step is one thing to do to one sandbox.
type Step struct {
	ID     watch.ID
	Do     watch.Step
	Reason Reason
}

// Decide judges every sandbox of p that is due and says what to do about it. It changes nothing: the caller folds the
// steps that it takes back into p, and settles what was judged.
func (pol Policy) Decide(p *watch.Picture, now time.Time) Plan {
	var plan Plan
	for _, id := range p.Due() {
		plan.Judged = append(plan.Judged, Judged{id, pol.Judge(p, p.Entry(id), now)})
	}
	pol.brake(p, &plan, now)
	var removals []Step
	for i := range plan.Judged {
		id, j := plan.Judged[i].ID, &plan.Judged[i].Judgement
		e := p.Entry(id)
		plan.SecondLook = plan.SecondLook || j.Look
		if revived(e) && !e.Progress.Begun.IsZero() && !p.Dropped(id) {
			plan.Abandoned = append(plan.Abandoned, id)
			j.Next = now // without its case it may have another end, such as its age
			continue
		}
		if j.Verdict == Reap || j.Reason == Retrying {
			do, at := pol.nextStep(p, e)
			switch {
			case do == watch.NoStep:
			case now.Before(at):
				j.Next = earlier(j.Next, at)
			case do >= watch.Record:
				removals = append(removals, Step{id, do, j.Reason})
			default:
				plan.Steps = append(plan.Steps, Step{id, do, j.Reason})
				if do == watch.Jot {
					j.Next = earlier(j.Next, now.Add(jotWait))
				}
			}
		}
	}
	plan.Steps = append(plan.Steps, removals...)
	return plan
}

// brake sets back what is to be reaped by inference, if it is more than a burst: so many at once are more likely our
// mistake than their orphanhood. They are reaped when a full scan that was begun after the grace still says so. What an
// owner's own evidence condemns is never braked.
func (pol Policy) brake(p *watch.Picture, plan *Plan, now time.Time) {
	var inferred []*Judged
	for i := range plan.Judged {
		j := &plan.Judged[i]
		e := p.Entry(j.ID)
		switch condemned := j.Verdict == Reap && j.Inferred; {
		case condemned && !pol.confirmed(p, e):
			inferred = append(inferred, j)
		case !condemned && !e.Braked.IsZero() && e.Progress.Begun.IsZero():
			plan.Released = append(plan.Released, j.ID)
		}
	}
	for _, j := range inferred {
		e := p.Entry(j.ID)
		if len(inferred) <= pol.Burst && e.Braked.IsZero() {
			continue
		}
		since := e.Braked
		if since.IsZero() {
			since = now
			plan.Braked = append(plan.Braked, j.ID)
		}
		j.Verdict, j.Reason = Wait, TooYoung
		j.Detail = "so many would be reaped by inference at once that all are looked at again first"
		j.Next = time.Time{}
		if again := since.Add(pol.Grace); now.Before(again) {
			j.Next = again
		} else if p.Listed(e.ID.Kind).Before(again) {
			// One scan is asked for. If it could not see everything, the next one will do: each would ask for another.
			plan.SecondLook = true
		}
	}
}

// confirmed reports whether a full scan has been made since a sandbox was set back and the grace was over: of sandboxes,
// and of processes and sockets where they tell of its owner.
func (pol Policy) confirmed(p *watch.Picture, e *watch.Entry) bool {
	if e.Braked.IsZero() {
		return false
	}
	again := e.Braked.Add(pol.Grace)
	for i := range e.Owners {
		switch o := &e.Owners[i]; {
		case o.Claim.Kind == watch.ProgramClaim && p.Counted(o.Claim.Program).Before(again),
			o.Claim.Kind.Sought() && o.Asked.Before(again):
			return false
		}
	}
	return !p.Listed(e.ID.Kind).Before(again)
}

// nextStep says which step of a reap comes next and when. NoStep means that the next move is not ours.
func (pol Policy) nextStep(p *watch.Picture, e *watch.Entry) (do watch.Step, at time.Time) {
	do, at = pol.stepAfter(e)
	if e.ID.Kind == watch.File && e.Progress.Begun.IsZero() && len(p.Unheard(e.Terms.Rule)) > 0 {
		// It may be evidence of one of them (R8). The end of the last makes it due.
		return watch.NoStep, time.Time{}
	}
	if do == watch.Remove && !p.Present(e.ID.Kind) {
		// An attempt that is sure to fail is no attempt. The return of the system makes the removal due.
		return watch.NoStep, time.Time{}
	}
	if o := ownerContainer(e); do == watch.Remove && restsOnOwner(e) && o != nil && o.Life == watch.Unknown {
		// It was taken up from the docket, and the owner may run again since (R1). The look at it makes the removal due.
		return watch.NoStep, time.Time{}
	}
	return do, at
}

func (pol Policy) stepAfter(e *watch.Entry) (do watch.Step, at time.Time) {
	pr := &e.Progress
	switch {
	case pr.InFlight && pr.Step == watch.Record:
		return watch.Remove, pr.StepAt.Add(recordWait)
	case pr.InFlight && pr.Step == watch.Jot:
		return firstSignal(e), pr.StepAt.Add(jotWait)
	case pr.InFlight:
		return watch.NoStep, time.Time{}
	}
	if pr.Step != watch.Remove && (!e.Ordered.IsZero() || Reason(pr.Reason) == Operator) {
		return orderedStep(e)
	}
	stoppable := stoppable(e)
	switch pr.Step {
	case watch.NoStep:
		switch {
		case !stoppable:
			return watch.Record, time.Time{}
		case e.ID.Kind.VanishesWithInit():
			return watch.Jot, time.Time{}
		default:
			return firstSignal(e), time.Time{}
		}
	case watch.Jot:
		if !stoppable {
			return watch.Record, time.Time{}
		}
		// Whether it could be noted or not: a full disk must not keep an orphan alive.
		return firstSignal(e), time.Time{}
	case watch.Terminate:
		switch {
		case pr.Err != nil || !e.State.Runs() || !pr.Stopped.IsZero():
			return watch.Record, time.Time{}
		case !stoppable:
			return watch.Record, pr.StepAt.Add(e.Terms.StopTimeout) // it was promised this long
		default:
			return watch.Kill, pr.StepAt.Add(e.Terms.StopTimeout)
		}
	case watch.Kill:
		return watch.Record, time.Time{}
	case watch.Record:
		return removal(e)
	default:
		return watch.Remove, pr.StepAt.Add(pol.delay(e.ID, pr.Attempts))
	}
}

// orderedStep is the next step of a reap that an operator ordered. His word is nowhere but in the record, so that comes first.
func orderedStep(e *watch.Entry) (do watch.Step, at time.Time) {
	pr := &e.Progress
	switch {
	case pr.Step == watch.NoStep:
		return watch.Record, time.Time{}
	case pr.Step == watch.Record && stoppable(e) && pr.SignalAt.IsZero() && pr.Stopped.IsZero():
		return firstSignal(e), time.Time{}
	case pr.Step == watch.Terminate && pr.Err == nil && e.State.Runs() && pr.Stopped.IsZero():
		if !stoppable(e) {
			return watch.Remove, pr.StepAt.Add(e.Terms.StopTimeout)
		}
		return watch.Kill, pr.StepAt.Add(e.Terms.StopTimeout)
	default:
		return removal(e)
	}
}

// removal says when what was signalled and recorded is removed. Whether it could be recorded or not: a full disk must not
// keep an orphan alive.
func removal(e *watch.Entry) (do watch.Step, at time.Time) {
	pr := &e.Progress
	restarted := !pr.Stopped.IsZero() && (e.State == watch.Restarting || e.Init.PID != 0)
	if !e.State.Runs() || pr.SignalAt.IsZero() || restarted {
		return watch.Remove, time.Time{}
	}
	stopped := pr.SignalAt
	if pr.Stopped.After(stopped) {
		stopped = pr.Stopped
	}
	return watch.Remove, stopped.Add(dieWait)
}

// stoppable reports whether the first process of a sandbox can be signalled. A frozen one does not act on a signal until it is
// thawed (cgroup v1 freezer, cgroups(7)), and one that is not held cannot be signalled without naming it by its number: both
// are for the system to end.
func stoppable(e *watch.Entry) bool {
	return e.State.Runs() && e.State != watch.Paused && e.Init.PID != 0
}

// firstSignal is the step that ends a sandbox's code, or begins to.
func firstSignal(e *watch.Entry) watch.Step {
	if e.Terms.StopTimeout > 0 {
		return watch.Terminate
	}
	return watch.Kill
}

// delay is how long to wait after a sandbox's n-th failed removal: doubling from Base to Cap, less up to a fifth so
// that many that failed together do not all come back together. The jitter is a hash and not a random number, so that
// deciding stays a function of what is known.
func (pol Policy) delay(id watch.ID, n int) time.Duration {
	if n < 1 {
		return 0
	}
	d := pol.Base
	if n >= pol.Attempts {
		d = pol.Cap // a dead letter
	}
	for range n - 1 {
		if d >= pol.Cap/2 {
			d = pol.Cap
			break
		}
		d *= 2
	}
	d = min(d, pol.Cap)
	h := fnv.New32a()
	h.Write([]byte(id.Name + "/" + strconv.Itoa(n)))
	return d - d/5/1024*time.Duration(h.Sum32()%1024) // divided first, since a long cap would overflow
}
