package reap

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"watcher/watch"
)

// DrainFor is how long the loop goes on after an interrupt, to finish reaps that were begun. The unit's TimeoutStopSec
// must exceed it.
const DrainFor = 20 * time.Second

// Owners watches processes that own sandboxes. Its methods must return at once. What happens to a held process later
// arrives as events.
type Owners interface {
	// Hold looks at a PID, and goes on watching the process that has it.
	Hold(pid int) watch.ProcessSeen
	// Release ends that.
	Release(pid int)
	// Check looks at every held process again and posts those that have died.
	Check()
}

// A Platform stops and removes sandboxes of one kind, by what is known of them. After a crash that is what was recorded.
type Platform interface {
	// Stop sends the signal of a Terminate or Kill step to the sandbox's first process. It must return at once.
	Stop(s watch.Sandbox, step watch.Step) error
	// Remove ends the sandbox if it still runs, and removes it and what it leaves. That there is nothing left to remove
	// is success. It calls tell, which may be nil, with each part of it that is gone or why it is not.
	Remove(ctx context.Context, s watch.Sandbox, tell Tell) error
}

// Tell is told what became of one part of a sandbox.
type Tell = func(part string, err error)

// ByID is the [Platform] of a system that knows its sandboxes by their IDs, and removes each as a whole.
type ByID struct {
	System interface {
		Stop(id watch.ID, step watch.Step) error
		Remove(ctx context.Context, id watch.ID) error
	}
}

// Stop stops the sandbox.
func (p ByID) Stop(s watch.Sandbox, step watch.Step) error { return p.System.Stop(s.ID, step) }

// Remove removes the sandbox.
func (p ByID) Remove(ctx context.Context, s watch.Sandbox, _ Tell) error {
	return p.System.Remove(ctx, s.ID)
}

// Config is what a [Loop] works with. All fields but the noted ones are required.
type Config struct {
	Policy    Policy
	Picture   *watch.Picture
	Inbox     *Inbox
	Owners    Owners
	Platforms map[watch.Kind]Platform
	Log       *slog.Logger
	Workers   int           // how many removals may run at once
	Timeout   time.Duration // how long one removal may take
	Rescan    func()        // asks for a full scan
	Count     func()        // optional: asks for a look at all processes, for owners that are any process of a program
	Policies  <-chan Policy // optional: a policy to go on with, as after a change of the configuration
	Docket    *Docket       // optional: without one, what is begun is forgotten at the end

	DryRun   bool             // only say what would be done
	Once     bool             // return when a scan has been carried through
	Each     func(Status)     // optional: told the state of things after every pass of the loop
	Pulse    time.Duration    // if not 0: make a pass at least this often, for a watchdog that Each feeds
	Reported func(e Reported) // optional: told the end of every reap
	Boundary func(Boundary)   // optional: called at each boundary, from any goroutine

	// Order is asked, once a full scan has been carried through, which sandboxes an operator wants to have reaped. It is told
	// what the scan could not see. With it nothing else is begun.
	Order func(p *watch.Picture, unseen error) []watch.ID
	// Told is told the result of each step, and of each part of a removal, from any goroutine. Optional.
	Told func(id watch.ID, what string, err error)
}

// Status counts what the loop has before it.
type Status struct {
	Scanned   bool // a full scan has been carried through without a failure
	Sandboxes int
	Open      int // reaps begun and not finished
	Reaped    int // since the start
	Failed    int // removals that failed, since the start
	GaveUp    int // reaps among the open ones that are only tried now and then
	Alarm     bool
}

// Reported is the end of a reap, or of one attempt at it.
type Reported struct {
	Entry  watch.Entry
	Reason Reason
	Err    error // nil: reaped
}

// A Loop is the one goroutine that owns the picture. Create it with [NewLoop].
type Loop struct {
	Config
	verdicts  map[watch.ID]Judgement // the latest, so that only a change is told
	open      map[watch.ID]*Case     // reaps begun
	dropped   map[watch.ID]struct{}  // given up by an operator
	desk      *mailbox[func() watch.Event]
	filing    int      // changes to the docket under way
	ending    []ending // reaps that have ended, with a record that is to go
	queue     []Step   // removals that wait for a worker
	running   int      // removals under way
	status    Status
	lost      map[string]bool // sources that have lost events and not come back
	unshared  map[watch.Kind]bool
	ended     bool              // a scan has ended since the start, and no further one is due
	again     bool              // a further one is due: something must be looked at a second time
	scans     int               // that have ended
	stowed    map[watch.ID]Case // on record, of which nothing is to be done unless an operator orders it
	ordered   map[watch.ID]bool // orders that are outstanding; nil: none were given yet
	orders    *mailbox[Case]    // found on record, which another process left there
	alarmed   map[string]bool   // rules of which there are more sandboxes than there should be
	undurable bool              // the docket could not be written
	scanning  bool              // a scan is under way,
	missed    error             // and could not list this
	unseen    error             // what the latest scan that has ended could not list
}

// NewLoop returns a loop that has not run yet.
func NewLoop(c Config) *Loop {
	return &Loop{
		Config:   c,
		verdicts: map[watch.ID]Judgement{},
		open:     map[watch.ID]*Case{},
		dropped:  map[watch.ID]struct{}{},
		desk:     newMailbox[func() watch.Event](),
		lost:     map[string]bool{},
		unshared: map[watch.Kind]bool{},
		alarmed:  map[string]bool{},
		stowed:   map[watch.ID]Case{},
		orders:   newMailbox[Case](),
	}
}

// Run folds, decides and acts until ctx ends and the reaps that were begun are finished, or [DrainFor] has passed. With
// Once set it returns nil as soon as a scan has ended and nothing is left to do, which may take a further scan or a few.
func (l *Loop) Run(ctx context.Context) error {
	// Removals outlive an interrupt by as much as the loop does.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	go l.runClerk(work)
	if err := l.resume(); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	interrupted := ctx.Done()
	var closing <-chan time.Time
	for {
		select {
		case <-l.Inbox.Ready():
		case <-timer.C:
		case l.Policy = <-l.Policies:
		case <-interrupted:
			interrupted = nil
			closing = time.After(DrainFor)
			l.Log.Info("ending", "open", len(l.open), "within", DrainFor)
		case <-closing:
			return l.abandon()
		}
		now := time.Now()
		for _, ev := range l.Inbox.Take() {
			l.fold(ev)
		}
		l.resolve()
		l.takeOrders()
		l.Picture.Apply(watch.TimePassed{At: now})
		l.carryOut(work, l.Policy.Decide(l.Picture, now), closing != nil)
		l.lookOnceMore()
		if l.Each != nil {
			l.Each(l.Status())
		}
		switch {
		case closing != nil && !l.busy():
			return ctx.Err()
		case l.Once && l.ended && !l.busy() && (!l.again || l.unseen != nil || l.scans >= onceScans):
			return nil
		}
		timer.Reset(l.pause(now))
	}
}

// onceScans is how many scans a loop with Once set makes at most. A second look, and one more for what happened during
// that one, leave something to spare; on a host where each look asks for another, the next run goes on.
const onceScans = 5

// Status says how things stand. Only the goroutine of [Loop.Run] may call it while that runs.
func (l *Loop) Status() Status {
	l.status.Sandboxes = l.Picture.Len()
	l.status.Open = len(l.open)
	l.status.GaveUp = 0
	for _, c := range l.open {
		if c.GaveUp {
			l.status.GaveUp++
		}
	}
	return l.status
}

// ScanError is what the latest full scan could not see, or nil. The rule of [Loop.Status] holds.
func (l *Loop) ScanError() error { return l.unseen }

// pause is how long the loop may sleep if nothing happens.
func (l *Loop) pause(now time.Time) time.Duration {
	if len(l.Picture.Due()) > 0 {
		return 0
	}
	d := 24 * time.Hour
	if l.Pulse > 0 {
		d = l.Pulse
	}
	if next := l.Picture.Next(); !next.IsZero() {
		d = min(d, max(next.Sub(now), 0))
	}
	return d
}

// busy reports whether a reap is between its first step and the result of a removal. One whose removal failed waits for
// its next attempt, and one whose system is away for its return; both can be long, and both are on record.
func (l *Loop) busy() bool {
	if l.DryRun {
		return false
	}
	for id := range l.open {
		e := l.Picture.Entry(id)
		if e == nil {
			continue
		}
		first := e.Progress.Attempts == 0 || l.ordered[id]
		if do, _ := l.Policy.nextStep(l.Picture, e); e.Progress.InFlight || first && do != watch.NoStep {
			return true
		}
	}
	return l.running > 0 || l.filing > 0 || l.Once && l.unseen == nil && (l.braked() || slices.ContainsFunc(l.ending, l.unlisted))
}

// braked reports whether a sandbox waits for its second look.
func (l *Loop) braked() bool {
	for _, id := range l.Picture.IDs() {
		if e := l.Picture.Entry(id); !e.Braked.IsZero() && e.Progress.Begun.IsZero() {
			return true
		}
	}
	return false
}

// fold takes one event into the picture and tells what is worth telling about it.
func (l *Loop) fold(ev watch.Event) {
	switch ev := ev.(type) {
	case watch.ScanBegun:
		if l.again {
			l.again, l.ended = false, false
		}
		l.Owners.Check()
		l.seekOrders()
		l.scanning, l.missed = true, nil
	case watch.ScanEnded:
		l.tellScan(ev)
		l.ended, l.scanning, l.unseen = true, false, l.missed
		l.scans++
		l.status.Scanned = l.status.Scanned || ev.Failed == 0
	case watch.ListFailed:
		if l.scanning {
			l.missed = errors.Join(l.missed, ev.Err)
		} else {
			l.unseen = errors.Join(l.unseen, ev.Err)
		}
		l.listFailed(ev)
	case watch.Listed:
		l.sourceBack(listOf(ev.Kind))
	case watch.ProgramListed:
		l.sourceBack(listOf(watch.Processes))
	case watch.LookFailed:
		l.Log.Debug("could not look at a sandbox", watch.KeyKind, string(ev.ID.Kind), watch.KeyID, ev.ID.Name, watch.KeyError, ev.Err)
		l.Rescan()
	case watch.SourceLost:
		l.sourceLost(ev.Source, ev.Err)
		l.Owners.Check()
		l.Rescan()
	case watch.SourceBack:
		l.sourceBack(ev.Source)
		l.Rescan()
	case watch.NamespaceSeen:
		l.namespace(ev)
	case watch.RecordKept:
		l.filed(ev.Err, ev.Written)
		l.takeFound()
	case watch.StepEnded:
		l.stepEnded(ev)
		return
	}
	l.apply(ev)
}

// apply folds ev and closes the reaps of what it made the picture forget.
func (l *Loop) apply(ev watch.Event) {
	at := time.Now()
	since := at
	switch ev := ev.(type) {
	case watch.SandboxGone:
		at, since = ev.At, ev.At
	case watch.Listed:
		since = ev.Asked
	}
	for _, e := range l.Picture.Apply(ev) {
		delete(l.verdicts, e.ID)
		delete(l.ordered, e.ID)
		if l.DryRun {
			delete(l.open, e.ID)
		}
		c := l.open[e.ID]
		if c == nil {
			continue
		}
		if l.Told != nil && (e.Progress.InFlight || e.Progress.Step != watch.Remove) {
			l.Told(e.ID, watch.Remove.String(), nil) // its system was quicker with the news, or with the removal
		}
		delete(l.open, e.ID)
		end := newEnding(e, c, since)
		l.ending = append(l.ending, end)
		if l.Once && l.unlisted(end) {
			l.Rescan()
		}
		if c.Removed {
			continue // told when it was
		}
		l.status.Reaped++
		l.tellReaped(e, at)
		l.report(e, nil)
	}
	l.pickUp()
}

func (l *Loop) stepEnded(ev watch.StepEnded) {
	switch ev.Step {
	case watch.Remove:
		l.running--
	case watch.Jot, watch.Record:
		l.filed(ev.Err, true)
	}
	if errors.Is(ev.Err, errDropped) {
		l.drop(ev.ID)
		return
	}
	e := l.Picture.Entry(ev.ID)
	ours := e != nil && e.Progress.InFlight && e.Progress.Step == ev.Step
	if ours && l.Told != nil {
		l.Told(ev.ID, ev.Step.String(), ev.Err)
	}
	if ours && ev.Step == watch.Remove {
		delete(l.ordered, ev.ID)
	}
	l.apply(ev)
	switch {
	case ours && errors.Is(ev.Err, watch.ErrInUse):
		// No failure: its ground is gone until nobody uses it any more.
		l.apply(watch.CaseAbandoned{ID: ev.ID})
		l.finish(ev.ID)
	case !ours: // of a reap that has ended before; its sandbox may have been seen again
	case ev.Err == nil && ev.Step == watch.Remove:
		l.apply(watch.SandboxGone{ID: ev.ID, At: ev.At})
	case ev.Err != nil && ev.Step == watch.Remove:
		l.status.Failed++
		before := l.open[ev.ID].GaveUp
		l.update(e)
		l.tellFailed(e, ev.Err, before)
		l.report(e, ev.Err)
	case ev.Err != nil && ev.Step != watch.Record && ev.Step != watch.Jot:
		l.Log.Debug("could not signal the sandbox's init, its system will end it", l.about(e, watch.KeyError, ev.Err)...)
	}
}

// resolve asks about the owners that have become interesting.
func (l *Loop) resolve() {
	hold, release := l.Picture.TakeClaims()
	slices.Sort(hold)
	for _, pid := range slices.Compact(hold) {
		l.apply(l.Owners.Hold(pid))
	}
	if l.Picture.TakeCount() && l.Count != nil {
		l.Count()
	}
	for _, pid := range release {
		if !slices.Contains(hold, pid) {
			l.Owners.Release(pid)
		}
	}
}

// carryOut takes the steps of a plan. All signals are sent before anything is told or written (R3).
func (l *Loop) carryOut(ctx context.Context, plan Plan, closing bool) {
	plan = l.restricted(plan)
	var ended []watch.Event
	for _, step := range plan.Steps {
		begun := l.open[step.ID] != nil
		if l.DryRun || closing && !begun {
			continue
		}
		now := time.Now()
		if !begun {
			l.open[step.ID] = newCase(l.Picture.Entry(step.ID), step, now)
		}
		if pr := l.Picture.Entry(step.ID).Progress; pr.InFlight && pr.Step == watch.Record {
			l.tellDocket(errHungDisk)
		}
		l.apply(watch.StepBegun{ID: step.ID, Step: step.Do, Reason: string(step.Reason), At: now})
		switch step.Do {
		case watch.Remove:
			l.queue = append(l.queue, step)
		case watch.Jot, watch.Record:
			l.record(step.ID, step.Do)
		default:
			err := l.Platforms[step.ID.Kind].Stop(l.Picture.Entry(step.ID).Sandbox, step.Do)
			l.open[step.ID].Steps[0] = CaseStep{Step: step.Do.String(), Done: err == nil}
			ended = append(ended, watch.StepEnded{ID: step.ID, Step: step.Do, Err: err, At: time.Now()})
			l.boundary(BoundaryStopped)
		}
	}
	for _, id := range plan.Abandoned {
		l.tellAbandoned(id)
		l.apply(watch.CaseAbandoned{ID: id})
		l.finish(id)
	}
	for _, id := range plan.Braked {
		l.apply(watch.Braked{ID: id, At: time.Now()})
	}
	for _, id := range plan.Released {
		l.apply(watch.Braked{ID: id})
	}
	if len(plan.Braked) > 0 {
		l.tellBrake(len(plan.Braked))
	}
	if plan.SecondLook {
		l.again = true
		l.Rescan()
	}
	for _, j := range plan.Judged {
		if l.ours(j.ID) {
			l.tellVerdict(j)
		}
		l.Picture.Settle(j.ID, j.Next)
	}
	if l.Order == nil {
		l.tellAlarm()
	}
	for _, ev := range ended {
		l.fold(ev)
	}
	ending := l.ending
	l.ending = nil
	for _, end := range ending {
		if l.owes(end) {
			l.keep(&end)
			l.ending = append(l.ending, end)
			continue
		}
		l.finish(end.id)
	}
	l.dispatch(ctx)
}

// dispatch hands queued removals to workers, as many as may run at once.
func (l *Loop) dispatch(ctx context.Context) {
	for l.running < l.Workers && len(l.queue) > 0 {
		id := l.queue[0].ID
		l.queue = l.queue[1:]
		e := l.Picture.Entry(id)
		if e == nil || !e.Progress.InFlight {
			continue // it went by itself, and may have been seen again
		}
		l.running++
		// A system that has to ask the sandbox to end may need as long as that was promised.
		timeout := l.Timeout + e.Terms.StopTimeout
		s := e.Sandbox
		go func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			err := l.remove(ctx, s)
			l.Inbox.Post(watch.StepEnded{ID: id, Step: watch.Remove, Err: err, At: time.Now()})
		}()
	}
}

// abandon says what an interrupt leaves unfinished.
func (l *Loop) abandon() error {
	for id := range l.open {
		if e := l.Picture.Entry(id); e != nil {
			l.Log.Error("not finished before the end", l.about(e, watch.KeyEvent, watch.EventReapFailed, watch.KeyReason, e.Progress.Reason)...)
		}
	}
	return ErrUnfinished
}

// ErrUnfinished says that the loop ended with removals under way.
var ErrUnfinished = errors.New("removals were still under way")

func (l *Loop) report(e *watch.Entry, err error) {
	if l.Reported != nil {
		l.Reported(Reported{Entry: *e, Reason: Reason(e.Progress.Reason), Err: err})
	}
}
