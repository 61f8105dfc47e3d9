package reap

import (
	"fmt"
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
	NotOwned     Reason = "not-owned"

	TooYoung Reason = "too-young"
	Retrying Reason = "retrying"

	OwnerExited        Reason = "owner-exited"
	OwnerReplaced      Reason = "owner-replaced"
	Rebooted           Reason = "rebooted"
	OwnerContainerGone Reason = "owner-container-gone"
	Expired            Reason = "expired"
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
	Grace    time.Duration // how long an owner container may be down and still be restarting
	Attempts int           // removals that may fail before it is said that the sandbox was given up on
	Base     time.Duration // delay after the first failed removal; doubles with each further one
	Cap      time.Duration // the longest delay
	Alarm    int           // more sandboxes of one rule than this are told
	Burst    int           // more inferred reaps at a time than this are looked at twice
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

// revived reports whether the owner whose exit condemned a sandbox runs again. Only a container can. The sandbox's code
// was stopped, but its owner may start it again and must then not lose it (R1).
func revived(e *watch.Entry) bool {
	return Reason(e.Progress.Reason) == OwnerContainerGone && e.Owner.Life == watch.Alive && !e.Progress.InFlight
}

func (pol Policy) judgeTerms(p *watch.Picture, e *watch.Entry, now time.Time) Judgement {
	switch {
	case e.Terms.Fault != "":
		return Judgement{Reason: BadLabel, Detail: e.Terms.Fault}
	case e.Terms.Keep:
		return Judgement{Reason: Pinned}
	}
	j := pol.judgeOwner(p, e, now)
	if j.Verdict == Reap || e.Created.IsZero() { // of unknown age is not old
		return j
	}
	for _, age := range []struct {
		most     time.Duration
		name     string
		inferred bool
	}{{e.Terms.TTL, "time to live", false}, {e.Terms.MaxAge, "greatest age by its rule", true}} {
		if age.most == 0 {
			continue
		}
		end := e.Created.Add(age.most)
		if !now.Before(end) {
			return Judgement{
				Verdict: Reap, Reason: Expired, Owner: j.Owner, Inferred: age.inferred,
				Detail: age.name + " of " + age.most.String() + " is over",
			}
		}
		j.Next = earlier(j.Next, end)
	}
	return j
}

func (pol Policy) judgeOwner(p *watch.Picture, e *watch.Entry, now time.Time) Judgement {
	switch e.Owner.Claim.Kind {
	case watch.ProcessClaim:
		return judgeProcess(p, e)
	case watch.ContainerClaim:
		return pol.judgeContainer(p, e, now)
	default:
		return Judgement{Reason: NotOwned}
	}
}

func judgeProcess(p *watch.Picture, e *watch.Entry) Judgement {
	o := &e.Owner
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

func (pol Policy) judgeContainer(p *watch.Picture, e *watch.Entry, now time.Time) Judgement {
	o := &e.Owner
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
