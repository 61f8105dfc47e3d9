package watch

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// A Picture is everything that watcher knows, folded from events. It is not safe for concurrent use.
type Picture struct {
	boot       string
	sandboxes  map[ID]*Entry
	gone       map[ID]time.Time   // what went since the latest list was asked for, so that it is not brought back (W4)
	listed     map[Kind]time.Time // when the latest list was asked for: what it lacks is not brought back by older facts
	dropped    map[ID]struct{}
	namespaces map[Kind]NamespaceSeen
	present    map[Kind]bool              // the kind's system can be reached
	returned   map[Kind]time.Time         // when it came back, if it was away
	claimants  map[string]map[ID]struct{} // sandboxes by what their claims name: a PID or a container reference
	agenda     agenda

	hold, release []int
}

// NewPicture returns an empty picture of a host whose boot ID is boot.
func NewPicture(boot string) *Picture {
	return &Picture{
		boot:       boot,
		sandboxes:  map[ID]*Entry{},
		gone:       map[ID]time.Time{},
		dropped:    map[ID]struct{}{},
		namespaces: map[Kind]NamespaceSeen{},
		present:    map[Kind]bool{},
		returned:   map[Kind]time.Time{},
		listed:     map[Kind]time.Time{},
		claimants:  map[string]map[ID]struct{}{},
		agenda:     newAgenda(),
	}
}

// An Entry is what the picture knows of one sandbox. Entries are the picture's own: read them, do not keep them.
type Entry struct {
	Sandbox
	Asked    time.Time // how fresh Sandbox is
	Owner    Owner
	Progress Progress
	Braked   time.Time // when it was set back for a second look; zero: it was not
}

// An Owner is a claim and what became known of it.
type Owner struct {
	Claim     Claim
	Life      Life
	Process   Process   // the incarnation that a process claim is bound to
	Container string    // the full ID that a container claim is bound to
	Asked     time.Time // of a container: what was asked before then is stale
	Replaced  bool      // exited, because its PID belongs to a later process
	Gone      bool      // of a container: not only exited but removed
	Restarts  bool      // of a container: its engine restarts it
	Thread    bool      // the claim's number was seen to be a thread's, whose end is no process's
	ExitedAt  time.Time // when it exited, if that was observed
	Detail    string    // why Life is Unknown
}

// Progress is how far the reap of a sandbox has come.
type Progress struct {
	Begun    time.Time // zero: not begun
	Reason   string
	Step     Step // the latest step begun
	StepAt   time.Time
	SignalAt time.Time // when its init was last signalled
	InFlight bool      // its result is outstanding
	Stopped  time.Time // when the sandbox's init was seen dead
	Attempts int       // removals that failed
	Err      error     // of the latest step that ended
}

// Boot is the boot ID of the host that the picture shows.
func (p *Picture) Boot() string { return p.boot }

// Entry returns what is known of a sandbox, or nil.
func (p *Picture) Entry(id ID) *Entry { return p.sandboxes[id] }

// IDs returns all sandboxes in order.
func (p *Picture) IDs() []ID { return slices.SortedFunc(maps.Keys(p.sandboxes), ID.Compare) }

// Len is the number of sandboxes.
func (p *Picture) Len() int { return len(p.sandboxes) }

// Present reports whether the system of a kind of sandbox can be reached. Until a [SourceBack] says so it cannot.
func (p *Picture) Present(kind Kind) bool { return p.present[kind] }

// Returned is when the system of a kind came back after it had been lost; the zero time if it never was.
func (p *Picture) Returned(kind Kind) time.Time { return p.returned[kind] }

// Listed is when the latest list of a kind was asked for.
func (p *Picture) Listed(kind Kind) time.Time { return p.listed[kind] }

// Dropped reports whether an operator gave the sandbox up.
func (p *Picture) Dropped(id ID) bool {
	_, ok := p.dropped[id]
	return ok
}

// Namespace says whether PIDs in claims of this kind's sandboxes can be judged here.
func (p *Picture) Namespace(kind Kind) NamespaceSeen { return p.namespaces[kind] }

// Due returns, in order, the sandboxes to judge: those about which a fact has arrived since they were last settled, and
// those whose time had come at the last [TimePassed].
func (p *Picture) Due() []ID { return slices.SortedFunc(maps.Keys(p.agenda.touched), ID.Compare) }

// Next is when the first sandbox that no fact has touched falls due; the zero time if none does.
func (p *Picture) Next() time.Time { return p.agenda.next() }

// Settle says that a sandbox has been judged and need not be looked at before next, unless a fact arrives. The zero
// time means never.
func (p *Picture) Settle(id ID, next time.Time) { p.agenda.settle(id, next) }

// TakeClaims returns the PIDs that have become interesting since the last call, and those that no sandbox claims any
// more. A PID is named again when another sandbox claims it and when a scan finds its claim still open.
func (p *Picture) TakeClaims() (hold, release []int) {
	// A sandbox may have come and gone since, or gone and another come.
	claimed := func(pid int) bool { return len(p.claimants[pidKey(pid)]) > 0 }
	hold = slices.DeleteFunc(p.hold, func(pid int) bool { return !claimed(pid) })
	release = slices.DeleteFunc(p.release, claimed)
	p.hold, p.release = nil, nil
	return hold, release
}

// Apply folds one event into the picture. It returns what the picture knew of the sandboxes that the event made it
// forget.
//
// A process that is younger than a sandbox cannot be its owner (W3). Where the sandbox's init is known, the kernel's own
// clock tells: the process is younger than that. The wall clock, by which the sandbox's system dates it, may have been
// stepped since: it decides only where there is no init, and where the two clocks disagree the owner is unknown.
func (p *Picture) Apply(ev Event) (forgotten []*Entry) {
	switch ev := ev.(type) {
	case TimePassed:
		p.agenda.advance(ev.At)
	case Listed:
		return p.applyListed(ev)
	case SandboxSeen:
		p.see(ev.Sandbox, ev.Asked)
	case SandboxGone:
		p.gone[ev.ID] = ev.At
		delete(p.dropped, ev.ID)
		if e := p.forget(ev.ID); e != nil {
			return []*Entry{e}
		}
	case InitExited:
		p.applyInitExited(ev)
	case ProcessSeen:
		for id := range p.claimants[pidKey(ev.PID)] {
			e := p.sandboxes[id]
			e.Owner.learnProcess(e.Sandbox, ev)
			p.agenda.touch(id)
		}
	case ContainerSeen:
		for id := range p.claimants[ev.Ref] {
			e := p.sandboxes[id]
			e.Owner.learnContainer(e.Sandbox, ev)
			p.agenda.touch(id)
		}
	case NamespaceSeen:
		p.namespaces[ev.Kind] = ev
		p.touchAll(ev.Kind)
	case StepBegun:
		p.applyStepBegun(ev)
	case StepEnded:
		p.applyStepEnded(ev)
	case SourceBack:
		if was, known := p.present[ev.Kind]; known && !was {
			p.returned[ev.Kind] = ev.At
		}
		p.present[ev.Kind] = true
		p.retry(ev.Kind)
	case SourceLost:
		p.present[ev.Kind] = false
	case CaseResumed:
		p.applyCaseResumed(ev)
	case CaseDropped:
		p.dropped[ev.ID] = struct{}{}
		p.endCase(ev.ID)
	case CaseAbandoned:
		p.endCase(ev.ID)
	case Braked:
		if e := p.sandboxes[ev.ID]; e != nil && (e.Braked.IsZero() || ev.At.IsZero()) {
			e.Braked = ev.At
		}
	case ListFailed, LookFailed, ScanBegun, ScanEnded, RecordKept:
		// These say something about the watching, not about the watched (W5).
	}
	return nil
}

func (p *Picture) applyListed(ev Listed) (forgotten []*Entry) {
	listed := make(map[ID]bool, len(ev.Sandboxes))
	for _, s := range ev.Sandboxes {
		listed[s.ID] = true
		p.see(s, ev.Asked)
	}
	for id, e := range p.sandboxes {
		if id.Kind != ev.Kind {
			continue
		}
		if !listed[id] && e.Asked.Before(ev.Asked) {
			forgotten = append(forgotten, p.forget(id))
			continue
		}
		if e.Owner.Claim.Kind == ProcessClaim && e.Owner.Process.PID == 0 && e.Owner.Life != Exited {
			p.hold = append(p.hold, e.Owner.Claim.Process.PID)
		}
		p.agenda.touch(id)
	}
	if p.listed[ev.Kind].Before(ev.Asked) {
		p.listed[ev.Kind] = ev.Asked
	}
	maps.DeleteFunc(p.dropped, func(id ID, _ struct{}) bool { return id.Kind == ev.Kind && !listed[id] && p.sandboxes[id] == nil })
	maps.DeleteFunc(p.gone, func(id ID, at time.Time) bool { return id.Kind == ev.Kind && at.Before(ev.Asked) })
	return forgotten
}

func (p *Picture) see(s Sandbox, asked time.Time) {
	if at, ok := p.gone[s.ID]; ok && !asked.After(at) {
		return
	}
	e, known := p.sandboxes[s.ID]
	switch {
	case !known && asked.Before(p.listed[s.ID.Kind]):
		return
	case !known:
		e = &Entry{Owner: Owner{Claim: s.Terms.Owner, Asked: asked}}
		p.sandboxes[s.ID] = e
		p.claim(s.ID, s.Terms.Owner)
	case asked.Before(e.Asked):
		return
	}
	e.Sandbox, e.Asked = s, asked
	if !s.State.Runs() && !e.Progress.Begun.IsZero() && e.Progress.Stopped.IsZero() {
		e.Progress.Stopped = asked
	}
	p.agenda.touch(s.ID)
}

func (p *Picture) forget(id ID) *Entry {
	e, ok := p.sandboxes[id]
	if !ok {
		return nil
	}
	delete(p.sandboxes, id)
	p.agenda.forget(id)
	p.unclaim(id, e.Owner.Claim)
	return e
}

func (p *Picture) claim(id ID, c Claim) {
	key := claimKey(c)
	if key == "" {
		return
	}
	if p.claimants[key] == nil {
		p.claimants[key] = map[ID]struct{}{}
	}
	p.claimants[key][id] = struct{}{}
	if c.Kind == ProcessClaim {
		p.hold = append(p.hold, c.Process.PID)
	}
}

func (p *Picture) unclaim(id ID, c Claim) {
	key := claimKey(c)
	if key == "" {
		return
	}
	delete(p.claimants[key], id)
	if len(p.claimants[key]) > 0 {
		return
	}
	delete(p.claimants, key)
	if c.Kind == ProcessClaim {
		p.release = append(p.release, c.Process.PID)
	}
}

func (p *Picture) applyInitExited(ev InitExited) {
	e := p.sandboxes[ev.ID]
	if e == nil || e.Init != ev.Process {
		return
	}
	e.Init = Process{}
	if e.Progress.Stopped.IsZero() && !e.Progress.Begun.IsZero() {
		e.Progress.Stopped = ev.At
	}
	p.agenda.touch(ev.ID)
}

func (p *Picture) applyStepBegun(ev StepBegun) {
	e := p.sandboxes[ev.ID]
	if e == nil {
		return
	}
	pr := &e.Progress
	if pr.Begun.IsZero() {
		pr.Begun, pr.Reason = ev.At, ev.Reason
	}
	if ev.Step == Terminate || ev.Step == Kill {
		pr.SignalAt = ev.At
	}
	pr.Step, pr.StepAt, pr.InFlight, pr.Err = ev.Step, ev.At, true, nil
}

func (p *Picture) applyStepEnded(ev StepEnded) {
	e := p.sandboxes[ev.ID]
	if e == nil || e.Progress.Step != ev.Step || !e.Progress.InFlight {
		return
	}
	pr := &e.Progress
	pr.InFlight, pr.StepAt, pr.Err = false, ev.At, ev.Err
	switch {
	case ev.Err == nil:
	case ev.Step == Remove:
		pr.Attempts++
	case ev.Step == Terminate, ev.Step == Kill:
		pr.SignalAt = time.Time{}
	}
	p.agenda.touch(ev.ID)
}

// retry makes every reap of a kind due that waited for its system, or for its next attempt.
func (p *Picture) retry(kind Kind) {
	for id, e := range p.sandboxes {
		if id.Kind != kind || e.Progress.Begun.IsZero() {
			continue
		}
		if e.Progress.Attempts > 0 && !e.Progress.InFlight {
			e.Progress.StepAt = time.Time{}
		}
		p.agenda.touch(id)
	}
}

// applyCaseResumed takes up a reap where the docket has it: recorded, and nothing after that known to be done.
func (p *Picture) applyCaseResumed(ev CaseResumed) {
	e := p.sandboxes[ev.Sandbox.ID]
	if e == nil {
		e = &Entry{Sandbox: ev.Sandbox, Owner: Owner{Claim: ev.Sandbox.Terms.Owner}}
		p.sandboxes[e.ID] = e
		p.claim(e.ID, e.Owner.Claim)
	}
	e.Progress = Progress{Begun: ev.Begun, Reason: ev.Reason, Step: Record, Attempts: ev.Attempts, Err: ev.Err}
	if ev.Attempts > 0 {
		e.Progress.Step = Remove
	}
	p.agenda.touch(e.ID)
}

// endCase ends a reap without its end.
func (p *Picture) endCase(id ID) {
	if e := p.sandboxes[id]; e != nil {
		e.Progress = Progress{}
		p.agenda.touch(id)
	}
}

func (p *Picture) touchAll(kind Kind) {
	for id := range p.sandboxes {
		if id.Kind == kind {
			p.agenda.touch(id)
		}
	}
}

// learnProcess takes in what was seen of the PID that o claims.
func (o *Owner) learnProcess(s Sandbox, seen ProcessSeen) {
	if o.Life == Exited {
		// Of two witnesses to one death, the earlier one is nearer the truth: the kernel's stamp may come second.
		if seen.Life == Exited && seen.Process == o.Process && seen.At.Before(o.ExitedAt) {
			o.ExitedAt = seen.At
		}
		return
	}
	nobody := seen.Process.PID == 0
	switch {
	case seen.Thread && !o.Thread && !nobody && o.Process.PID == 0 && o.Claim.Process.Start != 0 && seen.Process.Start != o.Claim.Process.Start:
		// The number went to a thread that started at another time than the owner did, so the owner has it no more.
		o.Replaced = true
		o.exit(time.Time{})
	case seen.Life == Unknown:
		o.Thread = o.Thread || seen.Thread
		if o.Process.PID == 0 {
			o.Detail = seen.Detail
		}
	case o.Thread && nobody:
		o.Detail = "the number was a thread's, and the thread has ended; its process may live"
	case o.Process.PID == 0 && !nobody && seen.Life == Exited && seen.Process.Start != o.Claim.Process.Start:
		// Somebody died who was held for another sandbox. The PID may have gone to this one's owner since, so only the
		// look that a new claim asks for binds it (W2).
	case o.Process.PID != 0: // bound
		switch {
		case seen.Process == o.Process && seen.Life == Alive:
		case seen.Process == o.Process, nobody:
			o.exit(seen.At)
		case seen.Process.Start > o.Process.Start:
			o.Replaced = true
			o.exit(seen.At)
		}
	case nobody:
		o.exit(time.Time{})
	case o.Claim.Process.Start != 0:
		if seen.Process.Start != o.Claim.Process.Start {
			if s.Init.PID != 0 && o.Claim.Process.Start > s.Init.Start {
				// A process that starts after its sandbox cannot have made it: the label is of another boot or host.
				o.Detail = "by its label the owner started after the sandbox, which cannot be"
				return
			}
			o.Replaced = true
			o.exit(time.Time{})
			return
		}
		o.bind(seen)
	case s.Init.PID != 0 && seen.Process.Start > s.Init.Start:
		o.Replaced = true
		o.exit(time.Time{})
	case s.Created.IsZero():
		o.Detail = "it is not known when the sandbox was created"
	case seen.Born.After(s.Created.Add(clockSlack)):
		if s.Init.PID != 0 {
			o.Detail = "the wall clock says that the process was born after the sandbox, the kernel's clock that it was not"
			return
		}
		o.Replaced = true
		o.exit(time.Time{})
	default:
		o.bind(seen)
	}
}

func (o *Owner) bind(seen ProcessSeen) {
	o.Process, o.Detail = seen.Process, ""
	if o.Life = seen.Life; o.Life == Exited {
		// It was dead when first looked at, so nobody saw when it died.
		o.ExitedAt = time.Time{}
	}
}

func (o *Owner) exit(at time.Time) {
	o.Life, o.ExitedAt, o.Detail = Exited, at, ""
}

// learnContainer takes in what was seen of a container that o's claim names. Unlike a process, a container that exited
// may run again, but one that is gone does not come back: a later one of that name is another.
func (o *Owner) learnContainer(s Sandbox, seen ContainerSeen) {
	bound := o.Container != ""
	switch {
	case o.Gone, bound && seen.Container != o.Container, !bound && !seen.Named:
		return
	case seen.Asked.Before(o.Asked):
		// The container may have been restarted since, or the name have gone to another (W4).
		return
	case seen.Life == Unknown:
		if !bound {
			o.Detail = seen.Detail
		}
		return
	case seen.Container == "", !bound && seen.younger(s):
		// The name is free, or belongs to a container younger than the sandbox.
		o.exit(time.Time{})
		o.Gone = true
		return
	}
	o.Container, o.Asked, o.Detail, o.Restarts = seen.Container, seen.Asked, "", seen.Restarts
	if seen.Life == Alive {
		o.Life, o.ExitedAt = Alive, time.Time{}
		return
	}
	at := seen.Since
	if at.IsZero() {
		at = seen.Asked
	}
	if o.Life != Exited || seen.Since.After(o.ExitedAt) {
		o.exit(at)
	}
	o.Gone = seen.Gone
}

// younger reports whether the container is younger than a sandbox that names it by name. One that is named by its ID is
// not, whatever the clocks say: nobody knows an ID before the container exists.
func (c ContainerSeen) younger(s Sandbox) bool {
	return !strings.HasPrefix(c.Container, c.Ref) && !s.Created.IsZero() && c.Created.After(s.Created.Add(clockSlack))
}
