package watch

import (
	"errors"
	"maps"
	"slices"
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
	lost       map[Kind]time.Time         // when it was last found to be away
	returned   map[Kind]time.Time         // when it came back, if it was away
	claimants  map[string]map[ID]struct{} // sandboxes by what their claims name: see claimKey
	programs   map[string]*program
	groups     map[string]*group
	rules      map[string]int // how many sandboxes of each rule there are
	agenda     agenda

	hold, release []int
	count         bool
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
		lost:       map[Kind]time.Time{},
		returned:   map[Kind]time.Time{},
		listed:     map[Kind]time.Time{},
		claimants:  map[string]map[ID]struct{}{},
		programs:   map[string]*program{},
		groups:     map[string]*group{},
		rules:      map[string]int{},
		agenda:     newAgenda(),
	}
}

// An Entry is what the picture knows of one sandbox. Entries are the picture's own: read them, do not keep them.
type Entry struct {
	Sandbox
	Asked    time.Time // how fresh Sandbox is
	First    time.Time // how fresh it was when it was first seen
	Owners   []Owner   // one for each of Terms.Owners, in that order
	Progress Progress
	Braked   time.Time // when it was set back for a second look; zero: it was not
	Ordered  time.Time // when an operator ordered its end; zero: nobody did

	isFiled bool
	filed   []string // what it is filed under among the claimants
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

// lostSlack is how much later than a client of a system, which hears of it on its own connection, we may hear that the
// system went away.
const lostSlack = 5 * time.Second

// Away reports whether the system of a kind was away at a time, or went away at that time.
func (p *Picture) Away(kind Kind, at time.Time) bool {
	lost := p.lost[kind]
	return !lost.IsZero() && !at.Before(lost.Add(-lostSlack)) && (!p.present[kind] || at.Before(p.returned[kind]))
}

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

// Rules returns how many sandboxes of each rule there are.
func (p *Picture) Rules() map[string]int { return maps.Clone(p.rules) }

// Belonging returns what belongs to a group and is no container of it.
func (p *Picture) Belonging(group string) []ID {
	return slices.Collect(maps.Keys(p.claimants[groupKey(group)]))
}

// Counted is when the latest complete look for the processes of a program was asked for.
func (p *Picture) Counted(name string) time.Time {
	if known := p.programs[name]; known != nil {
		return known.listed
	}
	return time.Time{}
}

// TakeCount reports whether, since the last call, a sandbox was seen for the first time whose owner may be any process of
// a program: then nothing is known of that owner before all processes have been looked at once more.
func (p *Picture) TakeCount() bool {
	count := p.count
	p.count = false
	return count
}

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
		if e := p.sandboxes[ev.ID]; e != nil {
			p.endOfGroup(e, ev.At)
		}
		if e := p.forget(ev.ID); e != nil {
			return []*Entry{e}
		}
	case InitExited:
		p.applyInitExited(ev)
	case ProcessSeen:
		p.learn(pidKey(ev.PID), func(e *Entry, o *Owner) { o.seeProcess(e.Sandbox, ev) })
	case ContainerSeen:
		p.learn(claimKey(Claim{Kind: ContainerClaim, Container: ev.Ref}), func(e *Entry, o *Owner) { o.seeContainer(e.Sandbox, ev) })
	case ProgramSeen:
		p.program(ev.Program).see(ev)
		p.learnProgram(ev.Program)
	case ProgramListed:
		p.program(ev.Program).list(ev)
		p.learnProgram(ev.Program)
	case ClientsSeen:
		p.applyClientsSeen(ev)
	case OwnerSeen:
		p.applyOwnerSeen(ev)
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
		if p.present[ev.Kind] {
			p.lost[ev.Kind] = ev.At
		}
		p.present[ev.Kind] = false
	case CaseResumed:
		p.applyCaseResumed(ev)
	case CaseDropped:
		p.dropped[ev.ID] = struct{}{}
		p.endCase(ev.ID)
	case Ordered:
		p.applyOrdered(ev)
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
	for _, id := range ev.Unwatched {
		// It is watched no more, as after a change of the rules, but a reap of it that was begun is finished.
		if e := p.sandboxes[id]; e != nil && !e.Progress.Begun.IsZero() {
			listed[id] = true
		}
	}
	for id, e := range p.sandboxes {
		if id.Kind != ev.Kind {
			continue
		}
		if !listed[id] && e.Asked.Before(ev.Asked) && !e.leaves() {
			p.endOfGroup(e, ev.Asked)
			forgotten = append(forgotten, p.forget(id))
			continue
		}
		for i := range e.Owners {
			p.hold = append(p.hold, e.Owners[i].open()...)
		}
		p.agenda.touch(id)
	}
	if p.listed[ev.Kind].Before(ev.Asked) {
		p.listed[ev.Kind] = ev.Asked
	}
	maps.DeleteFunc(p.groups, func(name string, g *group) bool {
		// What belongs to the group may not have been seen before the lists that were asked for after its end.
		unseen := !g.reaped.IsZero() && (!p.listed[Volume].After(g.reaped) || !p.listed[Network].After(g.reaped))
		return len(g.containers) == 0 && len(p.claimants[groupKey(name)]) == 0 && !unseen
	})
	maps.DeleteFunc(p.dropped, func(id ID, _ struct{}) bool {
		return id.Kind == ev.Kind && !listed[id] && p.sandboxes[id] == nil && !slices.Contains(ev.Unwatched, id)
	})
	maps.DeleteFunc(p.gone, func(id ID, at time.Time) bool { return id.Kind == ev.Kind && at.Before(ev.Asked) })
	return forgotten
}

// leaves reports whether something of e is still to be removed although nobody sees e any more.
func (e *Entry) leaves() bool { return !e.Progress.Begun.IsZero() && len(e.Leaves) > 0 }

func (p *Picture) see(s Sandbox, asked time.Time) {
	if at, ok := p.gone[s.ID]; ok && !asked.After(at) {
		return
	}
	e, known := p.sandboxes[s.ID]
	switch {
	case !known && asked.Before(p.listed[s.ID.Kind]):
		return
	case !known:
		e = &Entry{First: asked}
		p.sandboxes[s.ID] = e
	case asked.Before(e.Asked):
		return
	}
	if known && len(e.Owners) > 0 && e.Terms.ownLabels() {
		s.Terms.Owners = e.Terms.Owners // labels do not change; rules may (W2)
	}
	s.Leaves = AddLeaves(s.Leaves, e.Leaves)
	p.file(e, s, asked)
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
	p.unfile(e)
	if id.Kind == Container && !e.Terms.ownLabels() && p.rules[e.Terms.Rule] > 0 {
		for other, f := range p.sandboxes {
			if other.Kind == File && f.Terms.Rule == e.Terms.Rule {
				p.agenda.touch(other)
			}
		}
	}
	return e
}

// Unheard returns, in order, the containers of a rule whose owner may be known by a socket, and of which no living owner is.
func (p *Picture) Unheard(rule string) (ids []ID) {
	for id, e := range p.sandboxes {
		asks := slices.ContainsFunc(e.Owners, func(o Owner) bool { return o.Claim.Kind == SocketClaim })
		if id.Kind == Container && e.Terms.Rule == rule && asks && e.Owner().Life != Alive {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, ID.Compare)
	return ids
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
	case errors.Is(ev.Err, ErrInUse):
		e.InUse = true // until it is seen again
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
		e = &Entry{}
		p.sandboxes[ev.Sandbox.ID] = e
		p.file(e, ev.Sandbox, time.Time{})
		e.Sandbox = ev.Sandbox
	}
	e.Progress = Progress{Begun: ev.Begun, Reason: ev.Reason, Step: Record, Attempts: ev.Attempts, Err: ev.Err}
	if ev.Attempts > 0 {
		e.Progress.Step = Remove
	}
	p.agenda.touch(e.ID)
}

// applyOrdered begins anew with a reap that was begun: its record has to say what it rests on now.
func (p *Picture) applyOrdered(ev Ordered) {
	e := p.sandboxes[ev.ID]
	if e == nil {
		return
	}
	delete(p.dropped, ev.ID)
	e.Ordered = ev.At
	if pr := &e.Progress; !pr.Begun.IsZero() && !pr.InFlight {
		pr.Step, pr.Reason = NoStep, ev.Reason
	}
	p.agenda.touch(ev.ID)
}

// endCase ends a reap without its end.
func (p *Picture) endCase(id ID) {
	if e := p.sandboxes[id]; e != nil {
		e.Progress, e.Ordered = Progress{}, time.Time{}
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
