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

// A Plan is what is to be done now. It is a value: to carry it out or only to print it is the caller's choice.
type Plan struct {
	Judged []Judged // a verdict for each sandbox that was due, in order
	Steps  []Step   // in the order in which to take them: all stops before the first removal (R3)
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
	var removals []Step
	for _, id := range p.Due() {
		e := p.Entry(id)
		j := pol.Judge(p, e, now)
		if j.Verdict == Reap || j.Reason == Retrying {
			do, at := pol.nextStep(e)
			switch {
			case do == watch.NoStep:
			case now.Before(at):
				j.Next = earlier(j.Next, at)
			case do == watch.Remove:
				removals = append(removals, Step{id, do, j.Reason})
			default:
				plan.Steps = append(plan.Steps, Step{id, do, j.Reason})
			}
		}
		plan.Judged = append(plan.Judged, Judged{id, j})
	}
	plan.Steps = append(plan.Steps, removals...)
	return plan
}

// nextStep says which step of a reap comes next and when. NoStep means that the next move is not ours.
func (pol Policy) nextStep(e *watch.Entry) (do watch.Step, at time.Time) {
	pr := &e.Progress
	if pr.InFlight {
		return watch.NoStep, time.Time{}
	}
	// A frozen process does not act on a signal until it is thawed (cgroup v1 freezer, cgroups(7)), and one that is
	// not held cannot be signalled without naming it by its number: both are for the system to end.
	stoppable := e.State.Runs() && e.State != watch.Paused && e.Init.PID != 0
	switch pr.Step {
	case watch.NoStep:
		switch {
		case !stoppable:
			return watch.Remove, time.Time{}
		case e.Terms.StopTimeout > 0:
			return watch.Terminate, time.Time{}
		default:
			return watch.Kill, time.Time{}
		}
	case watch.Terminate:
		switch {
		case pr.Err != nil || !e.State.Runs():
			return watch.Remove, time.Time{}
		case !pr.Stopped.IsZero():
			return watch.Remove, pr.Stopped.Add(dieWait)
		case !stoppable:
			return watch.Remove, pr.StepAt.Add(e.Terms.StopTimeout) // it was promised this long
		default:
			return watch.Kill, pr.StepAt.Add(e.Terms.StopTimeout)
		}
	case watch.Kill:
		if pr.Err != nil || !e.State.Runs() {
			return watch.Remove, time.Time{}
		}
		return watch.Remove, pr.StepAt.Add(dieWait)
	default:
		return watch.Remove, pr.StepAt.Add(pol.delay(e.ID, pr.Attempts))
	}
}

// delay is how long to wait after a sandbox's n-th failed removal: doubling from Base to Cap, less up to a fifth so
// that many that failed together do not all come back together. The jitter is a hash and not a random number, so that
// deciding stays a function of what is known.
func (pol Policy) delay(id watch.ID, n int) time.Duration {
	if n < 1 {
		return 0
	}
	d := pol.Base
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
