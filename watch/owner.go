package watch

import (
	"slices"
	"strings"
	"time"
)

// An Owner is a claim and what became known of it.
type Owner struct {
	Claim     Claim
	Life      Life
	Process   Process   // the incarnation that it is bound to; of a program or client, the one that speaks for all
	Container string    // the full ID that a container claim is bound to
	Clients   []Client  // of a client claim: one of them started the sandbox
	Asked     time.Time // of a container, a client, or what an adapter looks for: what was asked before then is stale
	Replaced  bool      // exited, because its PID belongs to a later process
	Gone      bool      // of a container: not only exited but removed
	Restarts  bool      // of a container: its engine restarts it
	Thread    bool      // the claim's number was seen to be a thread's, whose end is no process's
	Look      bool      // what is known of it is old, and another look at everything will tell
	ExitedAt  time.Time // when it exited, if that was observed
	Reason    string    // of a group: why its last container was reaped
	Detail    string    // why Life is Unknown

	lives map[Process]ending // of a client claim: what is known of each process in Clients
}

// An ending says whether a process lives, and if not since when; zero if nobody saw it die.
type ending struct {
	life Life
	at   time.Time
}

// Owner is the one of e's owners that decides: one that lives, else one that cannot be judged, else the one that died
// last. The zero Owner stands for a sandbox without any.
func (e *Entry) Owner() *Owner {
	if len(e.Owners) == 0 {
		return &Owner{}
	}
	decides := &e.Owners[0]
	for i := range e.Owners[1:] {
		if o := &e.Owners[1+i]; o.weight() > decides.weight() || o.weight() == decides.weight() && o.ExitedAt.After(decides.ExitedAt) {
			decides = o
		}
	}
	return decides
}

func (o *Owner) weight() int {
	switch o.Life {
	case Alive:
		return 2
	case Exited:
		return 0
	default:
		return 1
	}
}

// open returns the PIDs to look at once more because what became of them is not known.
func (o *Owner) open() (pids []int) {
	switch {
	case o.Claim.Kind == ProcessClaim && o.Process.PID == 0 && o.Life != Exited:
		return []int{o.Claim.Process.PID}
	case o.Claim.Kind == ClientClaim:
		for _, process := range o.processes() {
			if o.lives[process].life == Unknown {
				pids = append(pids, process.PID)
			}
		}
	}
	return pids
}

func (o *Owner) exit(at time.Time) {
	o.Life, o.ExitedAt, o.Detail = Exited, at, ""
}

// seeProcess takes in what was seen of a PID that o has to do with.
func (o *Owner) seeProcess(s Sandbox, seen ProcessSeen) {
	switch o.Claim.Kind {
	case ProcessClaim:
		if o.Claim.Process.PID == seen.PID {
			o.learnProcess(s, seen)
		}
	case ClientClaim:
		o.learnClient(seen)
	default:
		switch {
		case !o.Claim.Kind.Sought() || o.Life != Alive || seen.Process != o.Process || seen.Life != Exited:
		case o.Claim.Kind == RecordClaim && !o.Claim.Registry():
			o.exit(seen.At) // nobody else was recorded
		default:
			// There may be another: a child that inherited the socket or the lock, an ancestor further up.
			o.Life, o.Look, o.ExitedAt, o.Detail = Unknown, true, seen.At, "the owner that was found has exited, and another one is looked for"
		}
	}
}

// learnSought takes in what the look of an adapter found.
func (o *Owner) learnSought(seen OwnerSeen) {
	last, died := o.Process, o.ExitedAt // as it was seen
	o.Life, o.Process, o.Asked, o.Look, o.Detail = seen.Life, seen.Owner, seen.Asked, false, seen.Detail
	switch {
	case seen.Life == Alive:
		o.ExitedAt = time.Time{}
	case seen.Life == Exited:
		// Of two witnesses to one death, the earlier one is nearer the truth.
		if died.IsZero() || !seen.Exited.IsZero() && seen.Exited.Before(died) {
			died = seen.Exited
		}
		if seen.Owner.PID == 0 && !died.IsZero() {
			o.Process = last
		}
		o.exit(died)
	}
}

func (o *Owner) seeContainer(s Sandbox, seen ContainerSeen) {
	if o.Claim.Kind == ContainerClaim && o.Claim.Container == seen.Ref {
		o.learnContainer(s, seen)
	}
}

// order says which was first, a process or a sandbox.
type order uint8

const (
	unclear order = iota
	older         // the process
	younger
)

// order compares the birth of a process with the sandbox's. The kernel's own clock decides that a process is younger than
// something which is known to have existed (W3). The wall clock, by which the sandbox's system dates it, may have been
// stepped since: where the two disagree, nothing is clear.
func (s *Sandbox) order(p Process, born time.Time) (is order, why string) {
	existed := s.Existed
	if s.Init.PID != 0 && (existed == 0 || s.Init.Start < existed) {
		existed = s.Init.Start
	}
	switch {
	case existed != 0 && p.Start > existed:
		return younger, ""
	case s.Created.IsZero():
		return unclear, "it is not known when the sandbox was created"
	case !born.After(s.Created.Add(clockSlack)):
		return older, ""
	case s.Init.PID != 0:
		return unclear, "the wall clock says that the process was born after the sandbox, the kernel's clock that it was not"
	default:
		return younger, ""
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
	default:
		switch is, why := s.order(seen.Process, seen.Born); is {
		case older:
			o.bind(seen)
		case younger:
			o.Replaced = true
			o.exit(time.Time{})
		default:
			o.Detail = why
		}
	}
}

func (o *Owner) bind(seen ProcessSeen) {
	o.Process, o.Detail = seen.Process, ""
	if o.Life = seen.Life; o.Life == Exited {
		// It was dead when first looked at, so nobody saw when it died.
		o.ExitedAt = time.Time{}
	}
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

// processes are all that have to do with any of o's clients.
func (o *Owner) processes() (all []Process) {
	for _, c := range o.Clients {
		all = append(append(all, c.Process), c.Speakers...)
	}
	return all
}

// learnClient takes in what was seen of a PID that one of o's clients, or of those who speak to it, has.
func (o *Owner) learnClient(seen ProcessSeen) {
	for _, process := range o.processes() {
		if process.PID != seen.PID || o.lives[process].life == Exited {
			continue
		}
		nobody := seen.Process.PID == 0
		switch {
		case seen.Life == Unknown:
		case seen.Process == process && seen.Life == Alive:
			o.lives[process] = ending{life: Alive}
		case seen.Process == process:
			o.lives[process] = ending{Exited, seen.At}
		case nobody, seen.Process.Start > process.Start, seen.Process.Boot != process.Boot:
			// Who was remembered from an earlier boot is dead whatever the numbers say. It died at some time before it was
			// looked for, and whatever is not newer than that may be older than its end.
			o.lives[process] = ending{Exited, seen.At}
		}
	}
	o.weighClients()
}

// weighClients decides by what is known of each: a client that lives, and to whom all who spoke to it still can, is an
// owner that lives.
func (o *Owner) weighClients() {
	if len(o.Clients) == 0 {
		o.Life = Unknown
		return
	}
	var last Process
	var at time.Time
	unknown := false
	for _, c := range o.Clients {
		who, end := o.weighClient(c)
		switch end.life {
		case Alive:
			o.Life, o.Process, o.ExitedAt, o.Detail = Alive, c.Process, time.Time{}, ""
			return
		case Unknown:
			unknown = true
		case Exited:
			if last.PID == 0 || end.at.After(at) {
				last, at = who, end.at
			}
		}
	}
	if unknown {
		o.Life, o.Detail = Unknown, "it could not be told whether the client lives"
		return
	}
	o.Process = last
	o.exit(at)
}

// weighClient returns the first of a client's processes that died, or the client itself.
func (o *Owner) weighClient(c Client) (who Process, end ending) {
	who, end.life = c.Process, Alive
	for _, process := range append([]Process{c.Process}, c.Speakers...) {
		switch is := o.lives[process]; {
		case is.life == Exited && (end.life != Exited || !is.at.IsZero() && is.at.Before(end.at)):
			who, end = process, is
		case is.life == Unknown && end.life == Alive:
			end.life = Unknown
		}
	}
	return who, end
}

// A program is what is known of the processes of a program.
type program struct {
	members map[Process]Member
	seen    map[Process]time.Time
	listed  time.Time // when the latest complete look was asked for
}

func (p *program) see(ev ProgramSeen) {
	process := ev.Member.Process
	known, ok := p.members[process]
	if !ok && ev.Member.Life != Exited && ev.At.Before(p.listed) {
		return // a later look has not found it (W4)
	}
	if ok && known.Life == Exited {
		if ev.Member.Life == Exited && ev.Member.At.Before(known.At) {
			p.members[process] = ev.Member // the earlier witness of a death is nearer the truth
		}
		return
	}
	if ok {
		ev.Member.Born = known.Born // that moves with the wall clock, and nobody is born again
	}
	p.members[process] = ev.Member
	if p.seen[process].Before(ev.At) {
		p.seen[process] = ev.At
	}
}

// list takes in a complete look. Who is not in it, and was not seen since, is not of the program.
func (p *program) list(ev ProgramListed) {
	if ev.Asked.Before(p.listed) {
		return
	}
	p.listed = ev.Asked
	found := map[Process]bool{}
	for _, m := range ev.Members {
		found[m.Process] = true
		p.see(ProgramSeen{Program: ev.Program, Member: m, At: ev.Asked})
	}
	for process := range p.members {
		if !found[process] && p.seen[process].Before(ev.Asked) {
			delete(p.members, process)
			delete(p.seen, process)
		}
	}
}

// learnProgram decides by what is known of all processes of a program. Of those that are older than the sandbox, or may
// be, one that lives may be its owner.
func (o *Owner) learnProgram(s Sandbox, first time.Time, p *program) {
	var unknown string
	var oldest, last Member // of those that live, and of those that died
	for _, m := range p.members {
		is, why := s.order(m.Process, m.Born)
		switch {
		case is == younger, m.Process == s.Init: // its own first process, whatever that calls itself, does not own it
		case m.Life == Exited:
			if last.Process.PID == 0 || m.At.After(last.At) {
				last = m
			}
		case is == unclear:
			unknown = why
		case m.Life == Unknown:
			unknown = "what a process runs that is older than the sandbox cannot be read"
		case oldest.Process.PID == 0 || m.Process.Start < oldest.Process.Start:
			oldest = m
		}
	}
	if s.Created.After(first) {
		// The list that it was first in was asked for before it was made, and so may a look have been that lacks its owner.
		first = s.Created
	}
	o.Look = false
	switch {
	case oldest.Process.PID != 0:
		o.Life, o.Process, o.ExitedAt, o.Detail = Alive, oldest.Process, time.Time{}, ""
	case unknown != "":
		o.Life, o.Detail = Unknown, unknown
	case !p.listed.After(first):
		o.Look = true
		o.Life, o.Detail = Unknown, "the processes of this host have not been looked at since the sandbox was seen"
	case last.Process.PID != 0:
		o.Process = last.Process
		o.exit(last.At)
	case o.Life != Exited:
		o.exit(time.Time{})
	}
}

// coarse is how much later than it says something may have been created: the times of volumes have whole seconds.
func coarse(created time.Time) time.Duration {
	if created.Nanosecond() == 0 {
		return time.Second
	}
	return 0
}

// A group is what belongs together.
type group struct {
	containers map[ID]struct{}
	reaped     time.Time // when the latest of its containers was reaped
	reason     string
}

func (o *Owner) learnGroup(s Sandbox, first time.Time, g *group) {
	switch {
	case len(g.containers) > 0:
		o.Life, o.ExitedAt, o.Detail = Alive, time.Time{}, ""
	case g.reaped.IsZero():
		o.Life, o.Detail = Unknown, "no container of its group has been reaped"
	case first.After(g.reaped) && s.Created.Add(coarse(s.Created)).After(g.reaped):
		o.Life, o.Detail = Unknown, "it is younger than the container of its group that was reaped"
	default:
		o.Reason = g.reason
		o.exit(g.reaped)
	}
}

func sameClients(a, b []Client) bool {
	return slices.EqualFunc(a, b, func(a, b Client) bool {
		return a.Process == b.Process && slices.Equal(a.Speakers, b.Speakers)
	})
}
