package reap

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"watcher/watch"
)

// A Verdict is what is to happen to a sandbox.
type Verdict uint8

// The verdicts. Keep is zero, so that a forgotten case keeps.
const (
	Keep Verdict = iota
	Wait
	Reap
)

func (v Verdict) String() string {
	switch v {
	case Wait:
		return "wait"
	case Reap:
		return "reap"
	default:
		return "keep"
	}
}

// A Reason is why a verdict is what it is: one of a fixed set of tokens, the same in the log, in JSON and in metrics.
type Reason string

// The reasons, by verdict: first of those to keep, then of those to wait, then of those to reap.
const (
	OwnerAlive   Reason = "owner-alive"
	OwnerUnknown Reason = "owner-unknown"
	BadLabel     Reason = "bad-label"
	Pinned       Reason = "pinned"
	Protected    Reason = "protected"
	NotOwned     Reason = "not-owned"
	Managed      Reason = "managed"
	InUse        Reason = "in-use"

	TooYoung Reason = "too-young"
	Retrying Reason = "retrying"

	OwnerExited        Reason = "owner-exited"
	OwnerReplaced      Reason = "owner-replaced"
	Rebooted           Reason = "rebooted"
	OwnerContainerGone Reason = "owner-container-gone"
	NoPossibleOwner    Reason = "no-possible-owner"
	Expired            Reason = "expired"
	StaleState         Reason = "stale-state"
	Operator           Reason = "operator"
)

// A Judgement is the verdict on one sandbox at one moment.
type Judgement struct {
	Verdict  Verdict
	Reason   Reason
	Inferred bool       // nobody said it of this very sandbox: the brake applies
	Look     bool       // what it rests on is old: a full scan is due
	Owner    watch.Life // as far as it counts: a PID of another namespace is Unknown whoever holds it here
	Detail   string     // what a person would want to know besides
	Next     time.Time  // when to judge again although nothing happened; zero: never
}

// A Policy holds the numbers that verdicts and plans depend on.
type Policy struct {
	Grace    time.Duration  // how long an owner container may be down and still be restarting, and what is younger is not judged by inference
	Attempts int            // removals that may fail before it is said that the sandbox was given up on
	Base     time.Duration  // delay after the first failed removal; doubles with each further one
	Cap      time.Duration  // the longest delay
	Alarm    int            // more sandboxes of one rule than this are told,
	Alarms   map[string]int // unless the rule has a number of its own
	Burst    int            // more inferred reaps at a time than this are looked at twice
}

// DefaultPolicy is the policy of a host without a configuration.
func DefaultPolicy() Policy {
	return Policy{Grace: 2 * time.Second, Attempts: 8, Base: time.Second, Cap: 5 * time.Minute, Alarm: 10, Burst: 20}
}

// Judge says what is to happen to the sandbox of e. Evidence about the owner comes before age, since it explains more.
func (pol Policy) Judge(p *watch.Picture, e *watch.Entry, now time.Time) Judgement {
	j := pol.judgeTerms(p, e, now)
	switch {
	case p.Dropped(e.ID):
		return Judgement{Reason: Pinned, Detail: "an operator dropped it from the dead letters"}
	case e.Progress.Begun.IsZero(), revived(e):
		return j
	case e.Progress.Attempts > 0 && !e.Progress.InFlight:
		j.Verdict, j.Reason = Wait, Retrying
		j.Detail = fmt.Sprintf("%s: attempt %d failed: %v", e.Progress.Reason, e.Progress.Attempts, e.Progress.Err)
	default:
		// What was begun is carried on (R5).
		j.Verdict, j.Reason, j.Inferred = Reap, Reason(e.Progress.Reason), false
	}
	j.Next = time.Time{}
	return j
}

// revived reports whether an owner whose exit condemned a sandbox, alone or with others, runs again. Only a container can.
// The sandbox's code was stopped, but its owner may start it again and must then not lose it (R1).
func revived(e *watch.Entry) bool {
	o := ownerContainer(e)
	return o != nil && o.Life == watch.Alive && restsOnOwner(e) && !e.Progress.InFlight
}

// restsOnOwner reports whether a reap that was begun rests on the death of the sandbox's owners. The reason is that of the
// last to die.
func restsOnOwner(e *watch.Entry) bool {
	switch Reason(e.Progress.Reason) {
	case OwnerExited, OwnerReplaced, Rebooted, OwnerContainerGone, NoPossibleOwner:
		return true
	default:
		return false
	}
}

// ownerContainer returns the owner of e that is a container, if any is.
func ownerContainer(e *watch.Entry) *watch.Owner {
	i := slices.IndexFunc(e.Owners, func(o watch.Owner) bool { return o.Claim.Kind == watch.ContainerClaim })
	if i < 0 {
		return nil
	}
	return &e.Owners[i]
}

func (pol Policy) judgeTerms(p *watch.Picture, e *watch.Entry, now time.Time) Judgement {
	t := &e.Terms
	ordered := !e.Ordered.IsZero()
	switch {
	case ordered:
	case t.Fault != "" && e.ID.Kind.OfHost():
		return Judgement{Reason: OwnerUnknown, Detail: t.Fault} // it has no labels: it is not clear what it is
	case t.Fault != "":
		return Judgement{Reason: BadLabel, Detail: t.Fault}
	case t.Keep:
		return Judgement{Reason: Pinned}
	case t.Protected != "":
		return Judgement{Reason: Protected, Detail: "its label " + t.Protected + " says that another manager looks after it"}
	}
	j := pol.judgeOwners(p, e, now)
	if j.Verdict != Reap {
		j = pol.judgeAge(e, j, now)
	}
	if ordered {
		j = Judgement{Verdict: Reap, Reason: Operator, Owner: j.Owner, Detail: "an operator ordered it"}
	}
	if j.Verdict != Reap {
		return j
	}
	switch {
	case e.InUse:
		why := "a container refers to it"
		if e.ID.Kind.OfHost() {
			why = "somebody uses it, or may"
		}
		return Judgement{Reason: InUse, Owner: j.Owner, Detail: why + "; else it would go, because " + string(j.Reason)}
	case e.ID.Kind == watch.File && pol.mayTell(p, e, now):
		return Judgement{Reason: InUse, Owner: j.Owner, Detail: "it may tell who owns a container of its rule that is kept; else it would go, because " + string(j.Reason)}
	case ordered:
	case len(t.States) > 0 && !slices.Contains(t.States, e.State):
		return Judgement{Reason: NotOwned, Owner: j.Owner, Detail: fmt.Sprintf("its rule is only about those that are %s, and it is %s; else it would go, because %s", words(t.States), e.State, j.Reason)}
	}
	return j
}

// mayTell reports whether a file may be needed to judge a container: it may hold the socket that an owner is known by, so it
// stays as long as a container of its rule does of which nobody can tell (R8).
func (pol Policy) mayTell(p *watch.Picture, e *watch.Entry, now time.Time) bool {
	return slices.ContainsFunc(p.Unheard(e.Terms.Rule), func(id watch.ID) bool { return pol.Judge(p, p.Entry(id), now).Verdict == Keep })
}

func words(states []watch.State) string {
	var all []string
	for _, s := range states {
		all = append(all, string(s))
	}
	return strings.Join(all, " or ")
}

// judgeAge says whether a sandbox's time is over, and otherwise lets j stand. What is of unknown age is not old.
func (pol Policy) judgeAge(e *watch.Entry, j Judgement, now time.Time) Judgement {
	t := &e.Terms
	for _, end := range []struct {
		at       time.Time
		what     string
		inferred bool
	}{
		{after(e.Created, t.TTL), "time to live of " + t.TTL.String() + " is over", false},
		{t.Expires, "its label said that its time would be over then", false},
		{after(e.Created, t.MaxAge), "greatest age by its rule of " + t.MaxAge.String() + " is over", true},
	} {
		if end.at.IsZero() {
			continue
		}
		if !now.Before(end.at) {
			return Judgement{Verdict: Reap, Reason: Expired, Owner: j.Owner, Inferred: end.inferred, Detail: end.what}
		}
		j.Next = earlier(j.Next, end.at)
	}
	return j
}

// after is the end of a time that began at start; the zero time if there is no such end.
func after(start time.Time, d time.Duration) time.Time {
	if start.IsZero() || d == 0 {
		return time.Time{}
	}
	return start.Add(d)
}

// judgeOwners weighs all evidence about the owner. One piece that lives, or cannot be judged, keeps the sandbox; of
// several that are dead the one that died last says why (R1).
func (pol Policy) judgeOwners(p *watch.Picture, e *watch.Entry, now time.Time) Judgement {
	if len(e.Owners) == 0 {
		return pol.judgeOwnerless(e, now)
	}
	var kept, waits, ends *Judgement
	var died time.Time
	next, look := time.Time{}, false
	for i := range e.Owners {
		o := &e.Owners[i]
		j := pol.judgeOwner(p, e, o, now)
		next, look = earlier(next, j.Next), look || j.Look
		switch j.Verdict {
		case Keep:
			if kept == nil || j.Owner == watch.Alive && kept.Owner != watch.Alive {
				kept = &j
			}
		case Wait:
			waits = &j
		case Reap:
			if ends == nil || o.ExitedAt.After(died) {
				ends, died = &j, o.ExitedAt
			}
		}
	}
	var j Judgement
	switch {
	case kept != nil:
		j = *kept
	case waits != nil:
		j = *waits
	default:
		return *ends
	}
	j.Next, j.Look = next, look
	return j
}

// judgeOwnerless is for a sandbox that nobody is known to own.
func (pol Policy) judgeOwnerless(e *watch.Entry, now time.Time) Judgement {
	if !e.Terms.Ownerless || len(e.Terms.States) == 0 || !slices.Contains(e.Terms.States, e.State) || e.Terms.MaxAge != 0 {
		return Judgement{Reason: NotOwned}
	}
	return pol.inferred(e, Judgement{
		Verdict: Reap, Reason: StaleState, Inferred: true, Detail: "by its rule nobody owns it, and being " + string(e.State) + " is enough",
	}, now)
}

// inferred lets a sandbox that is younger than the grace wait for a verdict that rests on inference.
func (pol Policy) inferred(e *watch.Entry, j Judgement, now time.Time) Judgement {
	if old := after(e.Created, pol.Grace); old.IsZero() || now.Before(old) {
		return Judgement{Verdict: Wait, Reason: TooYoung, Owner: j.Owner, Next: old, Detail: "it was made a moment ago"}
	}
	return j
}

func (pol Policy) judgeOwner(p *watch.Picture, e *watch.Entry, o *watch.Owner, now time.Time) Judgement {
	switch o.Claim.Kind {
	case watch.ProcessClaim:
		return judgeProcess(p, e, o)
	case watch.ContainerClaim:
		return pol.judgeContainer(p, e, o, now)
	case watch.ProgramClaim:
		return pol.judgeProgram(p, e, o, now)
	case watch.ClientClaim:
		return judgeClient(p, e, o)
	case watch.SocketClaim, watch.AncestorClaim, watch.LockClaim, watch.RecordClaim:
		return pol.judgeSought(p, e, o, now)
	case watch.GroupClaim:
		return judgeGroup(o)
	default:
		return Judgement{Reason: NotOwned}
	}
}

// here returns a judgement that keeps if processes of this host have nothing to do with the sandbox's system.
func here(p *watch.Picture, e *watch.Entry) (Judgement, bool) {
	ns := p.Namespace(e.ID.Kind)
	return Judgement{Reason: OwnerUnknown, Detail: ns.Detail}, ns.Shared
}

func (pol Policy) judgeProgram(p *watch.Picture, e *watch.Entry, o *watch.Owner, now time.Time) Judgement {
	away, shared := here(p, e)
	switch {
	case !shared:
		return away
	case o.Life == watch.Alive:
		return Judgement{Reason: OwnerAlive, Owner: watch.Alive}
	case o.Life != watch.Exited && o.Look:
		// The look at them is under way; a scan makes up for it if it failed.
		return Judgement{Verdict: Wait, Reason: TooYoung, Detail: o.Detail}
	case o.Life != watch.Exited:
		return Judgement{Reason: OwnerUnknown, Detail: o.Detail}
	default:
		return pol.inferred(e, Judgement{Verdict: Reap, Reason: NoPossibleOwner, Owner: watch.Exited, Inferred: true}, now)
	}
}

func judgeClient(p *watch.Picture, e *watch.Entry, o *watch.Owner) Judgement {
	away, shared := here(p, e)
	switch {
	case !shared:
		return away
	case len(o.Clients) == 0:
		return Judgement{Reason: OwnerUnknown, Detail: o.Detail}
	case o.Life == watch.Alive:
		return Judgement{Reason: OwnerAlive, Owner: watch.Alive}
	case o.Life != watch.Exited:
		return Judgement{Reason: OwnerUnknown, Detail: o.Detail}
	case p.Away(e.ID.Kind, o.ExitedAt) && slices.ContainsFunc(o.Clients, func(c watch.Client) bool { return c.Process == o.Process }):
		// The container may go on, as with live-restore, and its client would not know how to come back to it.
		return Judgement{Reason: OwnerUnknown, Detail: "its engine went away at that time, and may have ended the client"}
	case !e.Asked.After(o.ExitedAt):
		// A client also ends when its container has, and what is known of that may be older.
		return Judgement{
			Verdict: Wait, Reason: TooYoung, Owner: watch.Exited, Look: p.Present(e.ID.Kind),
			Detail: "its client has ended, and it has not been looked at since",
		}
	default:
		return Judgement{Verdict: Reap, Reason: OwnerExited, Owner: watch.Exited}
	}
}

// soughtWait is how long an adapter may take to look for another owner when one has died. It takes milliseconds, and a scan at
// that moment would only be in its way.
const soughtWait = time.Second

// judgeSought judges an owner that the adapter of the sandbox's kind looks for. Who was seen to die, or is named by a record
// and is dead, has exited. That nobody is found is an inference.
func (pol Policy) judgeSought(p *watch.Picture, e *watch.Entry, o *watch.Owner, now time.Time) Judgement {
	away, shared := here(p, e)
	kind := o.Claim.Kind
	switch {
	case !shared:
		return away
	case o.Life == watch.Alive && (kind == watch.AncestorClaim || kind == watch.LockClaim):
		return Judgement{Reason: Managed, Owner: watch.Alive}
	case o.Life == watch.Alive:
		return Judgement{Reason: OwnerAlive, Owner: watch.Alive}
	case o.Life != watch.Exited && o.Look && kind != watch.SocketClaim:
		// The look for another is under way. One scan makes up for it if it failed; after that the next one will do.
		late := o.ExitedAt.Add(soughtWait)
		j := Judgement{Verdict: Wait, Reason: TooYoung, Detail: o.Detail}
		if now.Before(late) {
			j.Next = late
		} else {
			j.Look = p.Listed(e.ID.Kind).Before(late)
		}
		return j
	case o.Life != watch.Exited:
		return Judgement{Reason: OwnerUnknown, Detail: o.Detail, Look: o.Look}
	case kind == watch.RecordClaim && (o.Process.PID != 0 || !o.Claim.Registry()), kind != watch.SocketClaim && !o.ExitedAt.IsZero():
		return Judgement{Verdict: Reap, Reason: OwnerExited, Owner: watch.Exited}
	default:
		return pol.inferred(e, Judgement{Verdict: Reap, Reason: NoPossibleOwner, Owner: watch.Exited, Inferred: true}, now)
	}
}

func judgeGroup(o *watch.Owner) Judgement {
	switch o.Life {
	case watch.Alive:
		return Judgement{Reason: OwnerAlive, Owner: watch.Alive}
	case watch.Exited:
		return Judgement{Verdict: Reap, Reason: Reason(o.Reason), Owner: watch.Exited, Detail: "the last container of its group has been reaped"}
	default:
		return Judgement{Reason: NotOwned, Detail: o.Detail}
	}
}

func judgeProcess(p *watch.Picture, e *watch.Entry, o *watch.Owner) Judgement {
	boot := o.Claim.Process.Boot
	switch ns := p.Namespace(e.ID.Kind); {
	case !ns.Shared:
		return Judgement{Reason: OwnerUnknown, Detail: ns.Detail}
	case boot != "" && p.Boot() == "":
		return Judgement{Reason: OwnerUnknown, Detail: "the boot ID of this host could not be read"}
	case boot != "" && boot != p.Boot():
		return Judgement{Verdict: Reap, Reason: Rebooted, Owner: watch.Exited, Detail: "the owner ran before the host was booted"}
	case o.Life == watch.Alive:
		return Judgement{Reason: OwnerAlive, Owner: watch.Alive}
	case o.Life != watch.Exited:
		return Judgement{Reason: OwnerUnknown, Detail: o.Detail}
	case o.Replaced:
		return Judgement{Verdict: Reap, Reason: OwnerReplaced, Owner: watch.Exited, Detail: "another process has the PID now"}
	default:
		return Judgement{Verdict: Reap, Reason: OwnerExited, Owner: watch.Exited}
	}
}

// restartGrace is the grace of an owner that its engine restarts. An engine that is shut down stops it first, goes on
// answering for up to its shutdown timeout (15 s by default, seen: 10 s), and starts it again when it is back.
const restartGrace = time.Minute

func (pol Policy) judgeContainer(p *watch.Picture, e *watch.Entry, o *watch.Owner, now time.Time) Judgement {
	grace := pol.Grace
	if o.Restarts {
		grace = max(grace, restartGrace)
	}
	down := o.ExitedAt
	if back := p.Returned(e.ID.Kind); back.After(down) {
		down = back // while its engine was away it could not be restarted
	}
	back := down.Add(grace) // by then it has been restarted, if it is
	switch {
	case o.Life == watch.Alive:
		return Judgement{Reason: OwnerAlive, Owner: watch.Alive}
	case o.Life != watch.Exited:
		return Judgement{Reason: OwnerUnknown, Detail: o.Detail}
	case !o.Gone && !p.Present(e.ID.Kind):
		return Judgement{Reason: OwnerUnknown, Detail: "its engine is away, and may have stopped the owner to start it again"}
	case !o.Gone && now.Before(back):
		return Judgement{
			Verdict: Wait, Reason: TooYoung, Owner: watch.Exited, Next: back,
			Detail: "the owner container stopped a moment ago and may be restarting",
		}
	case !o.Gone && o.Asked.Before(back):
		// The news of its restart may be late or lost (R2). One scan is asked for; after that the next one will do.
		return Judgement{
			Verdict: Wait, Reason: TooYoung, Owner: watch.Exited, Look: p.Listed(e.ID.Kind).Before(back),
			Detail: "the owner container stopped and has not been looked at since",
		}
	default:
		return Judgement{Verdict: Reap, Reason: OwnerContainerGone, Owner: watch.Exited}
	}
}

// earlier returns the earlier of two times, of which the zero time is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
