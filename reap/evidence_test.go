package reap_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"watcher/reap"
	"watcher/watch"
)

// This file is about what rules say: several pieces of evidence for one owner, inference, states, and times that others set.

var (
	aPID     = watch.Claim{Kind: watch.ProcessClaim, Process: watch.Process{PID: 100}}
	aBoss    = watch.Claim{Kind: watch.ContainerClaim, Container: "boss"}
	aProgram = watch.Claim{Kind: watch.ProgramClaim, Program: "agentd"}
	aClient  = watch.Claim{Kind: watch.ClientClaim}
	aSocket  = watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}
)

// ruled is a sandbox on the terms of a rule.
func ruled(edits ...func(*watch.Sandbox)) watch.Sandbox {
	s := labelled("a", nil)
	s.Terms.Rule = "rule"
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

func ownedBy(claims ...watch.Claim) func(*watch.Sandbox) {
	return func(s *watch.Sandbox) { s.Terms.Owners = claims }
}

func on(states ...watch.State) func(*watch.Sandbox) {
	return func(s *watch.Sandbox) { s.Terms.States = states }
}

func inState(state watch.State) func(*watch.Sandbox) {
	return func(s *watch.Sandbox) { s.State = state }
}

// agentd is the only process of the program, as old as the PID's.
var agentd = watch.Member{Process: watch.Process{PID: 200, Start: 60, Boot: thisBoot}, Born: at(-time.Hour), Life: watch.Alive}

func vagueAgentd() watch.Member {
	m := agentd
	m.Life = watch.Unknown
	return m
}

func countAt(when time.Duration, members ...watch.Member) watch.Event {
	return watch.ProgramListed{Program: "agentd", Asked: at(when), Members: members}
}

func agentdDies(when time.Duration) watch.Event {
	m := agentd
	m.Life, m.At = watch.Exited, at(when)
	return watch.ProgramSeen{Program: "agentd", Member: m, At: at(when)}
}

func bossDies(when time.Duration) watch.Event {
	dead := bossDead
	dead.At = at(when)
	return dead
}

// Two pieces of evidence, each of which may live, be unknown, be dead or be waited for, in either order. One that lives
// keeps, then one that is unknown; then one that is waited for is waited for.
func TestR1AllEvidenceMustBeDead(t *testing.T) {
	const now = 11500 * time.Millisecond // what is down since 10 s has its grace until 12 s
	bosses := []struct {
		verdict reap.Verdict
		events  []watch.Event
	}{
		{reap.Keep, []watch.Event{cLives}},
		{reap.Verdict(99), []watch.Event{cVague}},
		{reap.Wait, []watch.Event{cLives, cDown}},
		{reap.Reap, []watch.Event{cLives, cGone}},
	}
	programs := []struct {
		verdict reap.Verdict
		events  []watch.Event
	}{
		{reap.Keep, []watch.Event{countAt(time.Second, agentd)}},
		{reap.Verdict(99), []watch.Event{countAt(time.Second, vagueAgentd())}},
		{reap.Wait, []watch.Event{countAt(-time.Second)}},
		{reap.Reap, []watch.Event{countAt(time.Second)}},
	}
	const vague = reap.Verdict(99)
	for _, boss := range bosses {
		for _, prog := range programs {
			want := reap.Judgement{}
			switch both := []reap.Verdict{boss.verdict, prog.verdict}; {
			case slices.Contains(both, reap.Keep):
				want = reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}
			case slices.Contains(both, vague):
				want = reap.Judgement{Reason: reap.OwnerUnknown}
			case boss.verdict == reap.Wait && prog.verdict == reap.Reap:
				want = reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited}
			case slices.Contains(both, reap.Wait):
				want = reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung}
			default:
				want = reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited} // seen to go; the program was not
			}
			if boss.verdict == reap.Wait && want.Verdict != reap.Reap {
				want.Next = at(12 * time.Second)
			}
			for _, claims := range [][]watch.Claim{{aBoss, aProgram}, {aProgram, aBoss}} {
				events := slices.Concat([]watch.Event{ours, here}, boss.events, prog.events)
				p := picture(ruled(ownedBy(claims...)), events...)
				got := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(now))
				if got.Verdict == reap.Wait && got.Detail == "" {
					t.Errorf("%v: waits, and not a word why", events)
				}
				if boss.verdict == reap.Wait && prog.verdict == reap.Wait {
					got.Owner = want.Owner // whichever comes last
				}
				if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(reap.Judgement{}, "Detail")); diff != "" {
					t.Errorf("%v, %v (-want +got)\n%s", claims, events[2:], diff)
				}
			}
		}
	}
}

// Of several that are dead the one that died last says why, and whether that is inferred.
func TestTheLastDeathSaysWhy(t *testing.T) {
	exited := reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited}
	none := reap.Judgement{Verdict: reap.Reap, Reason: reap.NoPossibleOwner, Owner: watch.Exited, Inferred: true}
	for name, test := range map[string]struct {
		events []watch.Event
		want   reap.Judgement
	}{
		"the process":                           {[]watch.Event{bossLives, countAt(1, agentd), agentdDies(3 * time.Second), bossDies(4 * time.Second)}, exited},
		"the program":                           {[]watch.Event{bossLives, countAt(1, agentd), agentdDies(4 * time.Second), bossDies(3 * time.Second)}, none},
		"the process, and nobody saw the other": {[]watch.Event{bossLives, countAt(1), bossDies(3 * time.Second)}, exited},
		"the program, and nobody saw the other": {[]watch.Event{bossGone, countAt(1, agentd), agentdDies(3 * time.Second)}, none},
		"nobody saw either: the first":          {[]watch.Event{bossGone, countAt(1)}, exited},
	} {
		t.Run(name, func(t *testing.T) {
			p := picture(ruled(ownedBy(aPID, aProgram)), append([]watch.Event{ours}, test.events...)...)
			got := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(time.Minute))
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(reap.Judgement{}, "Detail")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// A look that one piece asks for, and the time at which it is judged again, are not lost to the other.
func TestWhatOnePieceWaitsForIsNotLostToTheOther(t *testing.T) {
	for name, events := range map[string][]watch.Event{
		"the other lives":         {countAt(1, agentd)},
		"the other is unknown":    {countAt(1, vagueAgentd())},
		"the other is dead":       {countAt(1)},
		"the other is waited for": nil,
	} {
		t.Run(name, func(t *testing.T) {
			for _, claims := range [][]watch.Claim{{aBoss, aProgram}, {aProgram, aBoss}} {
				p := picture(ruled(ownedBy(claims...)), slices.Concat([]watch.Event{ours, here, cLives, cDown}, events)...)
				pol := reap.DefaultPolicy()
				if got := pol.Judge(p, p.Entry(id("a")), at(11*time.Second)); !got.Next.Equal(at(12*time.Second)) || got.Look {
					t.Errorf("%v: before the grace is over: %+v", claims, got)
				}
				if got := pol.Judge(p, p.Entry(id("a")), at(12*time.Second)); !got.Look {
					t.Errorf("%v: after it: %+v", claims, got)
				}
			}
		})
	}
}

func TestJudgeRules(t *testing.T) {
	dead := []watch.Event{ours, bossGone}
	none := []watch.Event{ours, countAt(1)}
	heard := func(life watch.Life) watch.Event {
		return watch.OwnerSeen{ID: id("a"), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}, Owner: bossLives.Process, Life: life, Asked: at(1), Detail: "why"}
	}
	startedBy := watch.ClientsSeen{ID: id("a"), Clients: []watch.Client{{Process: bossLives.Process}}, At: at(1)}
	over := func(s *watch.Sandbox) { s.Terms.Expires = at(time.Minute) }
	old := func(s *watch.Sandbox) { s.Terms.MaxAge = time.Minute }
	ownerless := func(s *watch.Sandbox) { s.Terms.Ownerless = true }
	ageless := func(s *watch.Sandbox) { s.Created = time.Time{} }
	used := func(s *watch.Sandbox) { s.InUse = true }
	protected := func(s *watch.Sandbox) { s.Terms.Protected = "io.kubernetes.pod" }
	keeps := func(reason reap.Reason) reap.Judgement { return reap.Judgement{Reason: reason} }
	reaps := func(reason reap.Reason) reap.Judgement {
		return reap.Judgement{Verdict: reap.Reap, Reason: reason, Owner: watch.Exited}
	}
	inferred := func(j reap.Judgement) reap.Judgement {
		j.Inferred = true
		return j
	}
	young := func(owner watch.Life) reap.Judgement {
		return reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: owner, Next: at(2 * time.Second)}
	}
	const soon, late = 2*time.Second - 1, time.Hour
	for name, test := range map[string]struct {
		sandbox watch.Sandbox
		events  []watch.Event
		now     time.Duration
		want    reap.Judgement
	}{
		"owner-alive: a program":                          {ruled(ownedBy(aProgram)), []watch.Event{ours, countAt(1, agentd)}, late, reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}},
		"no-possible-owner":                               {ruled(ownedBy(aProgram)), none, late, inferred(reaps(reap.NoPossibleOwner))},
		"no-possible-owner, as soon as the grace is over": {ruled(ownedBy(aProgram)), none, 2 * time.Second, inferred(reaps(reap.NoPossibleOwner))},
		"too-young: what is inferred waits for the grace": {ruled(ownedBy(aProgram)), none, soon, young(watch.Exited)},
		"too-young: the program has not been counted":     {ruled(ownedBy(aProgram)), []watch.Event{ours}, late, reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung}},
		"R1 owner-unknown: a program that cannot be read": {ruled(ownedBy(aProgram)), []watch.Event{ours, countAt(1, vagueAgentd())}, late, keeps(reap.OwnerUnknown)},
		"R1 owner-unknown: programs of another namespace": {ruled(ownedBy(aProgram)), []watch.Event{countAt(1)}, late, keeps(reap.OwnerUnknown)},
		"R1 what is of unknown age is not judged by inference": {
			ruled(ownedBy(aProgram), ageless), none, late,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited},
		},

		"owner-unknown: nobody said who started it": {ruled(ownedBy(aClient)), []watch.Event{ours}, late, keeps(reap.OwnerUnknown)},
		"owner-unknown: a client nobody looked at":  {ruled(ownedBy(aClient)), []watch.Event{ours, startedBy}, late, keeps(reap.OwnerUnknown)},
		"owner-alive: a client":                     {ruled(ownedBy(aClient)), []watch.Event{ours, startedBy, bossLives}, late, reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}},
		"owner-exited: a client, which is no inference": {
			ruled(ownedBy(aClient)),
			[]watch.Event{ours, startedBy, bossDead, watch.SandboxSeen{Sandbox: ruled(ownedBy(aClient)), Asked: at(3)}},
			3,
			reaps(reap.OwnerExited),
		},
		"R1 too-young: a client that was not seen to end may have ended because its container did": {
			ruled(ownedBy(aClient)),
			[]watch.Event{ours, here, startedBy, bossGone},
			late,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Look: true},
		},
		"R1 too-young: so may one whose PID is another's": {
			ruled(ownedBy(aClient)),
			[]watch.Event{ours, here, startedBy, bossLater},
			late,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Look: true},
		},
		"R1 too-young: a client may have ended because its container did": {
			ruled(ownedBy(aClient)),
			[]watch.Event{ours, here, startedBy, bossDead},
			3,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Look: true},
		},
		"R1 owner-unknown: a client may have ended because its engine went away": {
			ruled(ownedBy(aClient)),
			[]watch.Event{
				ours, here, startedBy, bossDead,
				watch.SourceLost{Kind: watch.Container, At: at(3)},
				watch.SourceBack{Kind: watch.Container, At: at(time.Minute)},
				watch.SandboxSeen{Sandbox: ruled(ownedBy(aClient)), Asked: at(time.Minute)},
			},
			late,
			keeps(reap.OwnerUnknown),
		},
		"R1 owner-unknown: a client elsewhere": {ruled(ownedBy(aClient)), []watch.Event{startedBy, bossDead}, late, keeps(reap.OwnerUnknown)},

		"owner-unknown: a socket nobody looked at":   {ruled(ownedBy(aSocket)), []watch.Event{ours}, late, keeps(reap.OwnerUnknown)},
		"owner-unknown: a socket that cannot be had": {ruled(ownedBy(aSocket)), []watch.Event{ours, heard(watch.Unknown)}, late, keeps(reap.OwnerUnknown)},
		"owner-alive: somebody listens":              {ruled(ownedBy(aSocket)), []watch.Event{ours, heard(watch.Alive)}, late, reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}},
		"no-possible-owner: nobody listens":          {ruled(ownedBy(aSocket)), []watch.Event{ours, heard(watch.Exited)}, late, inferred(reaps(reap.NoPossibleOwner))},
		"too-young: nobody listens yet":              {ruled(ownedBy(aSocket)), []watch.Event{ours, heard(watch.Exited)}, soon, young(watch.Exited)},
		"R1 owner-unknown: a socket elsewhere":       {ruled(ownedBy(aSocket)), []watch.Event{heard(watch.Exited)}, late, keeps(reap.OwnerUnknown)},
		"R1 who listened is dead: another look": {
			ruled(ownedBy(aSocket)),
			[]watch.Event{ours, heard(watch.Alive), bossDead},
			late,
			reap.Judgement{Reason: reap.OwnerUnknown, Look: true},
		},

		"not-owned: its rule is about others' states":        {ruled(ownedBy(aPID), on(watch.Stopped)), dead, late, reap.Judgement{Reason: reap.NotOwned, Owner: watch.Exited}},
		"owner-exited, in a state that its rule is about":    {ruled(ownedBy(aPID), on(watch.Stopped, watch.Running)), dead, late, reaps(reap.OwnerExited)},
		"not-owned, though its time is over":                 {ruled(on(watch.Stopped), over), nil, late, keeps(reap.NotOwned)},
		"expired, in a state that its rule is about":         {ruled(on(watch.Stopped), over, inState(watch.Stopped)), nil, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"owner-alive, in a state that its rule is not about": {ruled(ownedBy(aPID), on(watch.Stopped)), []watch.Event{ours, bossLives}, late, reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}},

		"in-use":                            {ruled(ownedBy(aPID), used), dead, late, reap.Judgement{Reason: reap.InUse, Owner: watch.Exited}},
		"in-use, though its time is over":   {ruled(used, over), nil, late, keeps(reap.InUse)},
		"owner-alive, in use":               {ruled(ownedBy(aPID), used), []watch.Event{ours, bossLives}, late, reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}},
		"in-use before it is told by state": {ruled(ownedBy(aPID), used, on(watch.Stopped)), dead, late, reap.Judgement{Reason: reap.InUse, Owner: watch.Exited}},

		"protected":                                 {ruled(protected), nil, late, keeps(reap.Protected)},
		"protected, though its owner is dead":       {ruled(ownedBy(aPID), protected), dead, late, keeps(reap.Protected)},
		"protected, though its time is over":        {ruled(protected, over, old), nil, late, keeps(reap.Protected)},
		"bad-label before protected":                {ruled(protected, func(s *watch.Sandbox) { s.Terms.Fault = "x" }), nil, late, keeps(reap.BadLabel)},
		"R5 protected since its reap was begun":     {ruled(protected), []watch.Event{begun(watch.Kill, reap.Expired, 1)}, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"R5 in use since its reap was begun":        {ruled(used), []watch.Event{begun(watch.Kill, reap.Expired, 1)}, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"R5 in another state since it was begun":    {ruled(on(watch.Stopped)), []watch.Event{begun(watch.Kill, reap.StaleState, 1)}, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.StaleState}},
		"R5 with an owner since its reap was begun": {ruled(ownedBy(aProgram)), []watch.Event{ours, begun(watch.Kill, reap.Expired, 1), countAt(2, agentd)}, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Owner: watch.Alive}},

		"stale-state": {ruled(ownerless, on(watch.Running)), nil, late, inferred(reap.Judgement{Verdict: reap.Reap, Reason: reap.StaleState})},
		"stale-state, as soon as the grace is over":      {ruled(ownerless, on(watch.Running)), nil, 2 * time.Second, inferred(reap.Judgement{Verdict: reap.Reap, Reason: reap.StaleState})},
		"too-young: a state that it may only pass":       {ruled(ownerless, on(watch.Running)), nil, soon, young(watch.Unknown)},
		"not-owned: in another state":                    {ruled(ownerless, on(watch.Stopped, watch.Dead)), nil, late, keeps(reap.NotOwned)},
		"not-owned: nobody owns it, and that is not all": {ruled(ownerless), nil, late, keeps(reap.NotOwned)},
		"not-owned: in that state, and somebody may own it": {
			ruled(on(watch.Running)), nil, late, keeps(reap.NotOwned),
		},
		"nobody owns it, in that state, and it must be old": {
			ruled(ownerless, on(watch.Running), old), nil, time.Minute - 1,
			reap.Judgement{Reason: reap.NotOwned, Next: at(time.Minute)},
		},
		"nobody owns it, in that state, and it is old": {
			ruled(ownerless, on(watch.Running), old), nil, time.Minute,
			inferred(reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}),
		},
		"in-use, in a stale state": {ruled(ownerless, on(watch.Running), used), nil, late, keeps(reap.InUse)},
		"R1 of unknown age, in a stale state": {
			ruled(ownerless, on(watch.Running), ageless), nil, late,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung},
		},

		"expired by a label, to the nanosecond":       {ruled(over), nil, time.Minute, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"not yet expired by a label":                  {ruled(over), nil, time.Minute - 1, reap.Judgement{Reason: reap.NotOwned, Next: at(time.Minute)}},
		"expired by a label, of unknown age":          {ruled(over, ageless), nil, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"expired by a label, whatever its owner does": {ruled(over, ownedBy(aPID)), []watch.Event{ours, bossLives}, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Owner: watch.Alive}},
		"expired by a label before it is too old":     {ruled(over, old), nil, late, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"the first of three times comes next": {
			ruled(over, old, func(s *watch.Sandbox) { s.Terms.MaxAge, s.Terms.TTL = 30*time.Second, 45*time.Second }), nil, 1,
			reap.Judgement{Reason: reap.NotOwned, Next: at(30 * time.Second)},
		},
		"pinned, though its time is over": {ruled(over, func(s *watch.Sandbox) { s.Terms.Keep = true }), nil, late, keeps(reap.Pinned)},
	} {
		t.Run(name, func(t *testing.T) {
			p := picture(test.sandbox, test.events...)
			got := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(test.now))
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(reap.Judgement{}, "Detail")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if got.Detail == "" && slices.Contains([]reap.Reason{reap.InUse, reap.Protected, reap.TooYoung}, got.Reason) {
				t.Error("and not a word why")
			}
			if (got.Reason == reap.InUse || got.Reason == reap.NotOwned && len(test.sandbox.Terms.States) > 0 && got.Detail != "") && !strings.Contains(got.Detail, "else it would go") {
				t.Errorf("does not say that it would go: %q", got.Detail)
			}
		})
	}
}

// The last container of a group condemns what belongs to it for its own reason.
func TestJudgeGroups(t *testing.T) {
	v := watch.Sandbox{ID: watch.ID{Kind: watch.Volume, Name: "v"}, Created: at(0), Terms: watch.Terms{
		Rule: watch.RuleLabels, Group: "g", Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: "g"}},
	}}
	c := labelled("a", labels{"group": "g"})
	seen := watch.SandboxSeen{Sandbox: c, Asked: at(0)}
	gone := watch.SandboxGone{ID: c.ID, At: at(3)}
	used := v
	used.InUse = true
	for name, test := range map[string]struct {
		volume watch.Sandbox
		events []watch.Event
		want   reap.Judgement
	}{
		"a container is there":               {v, []watch.Event{seen}, reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive}},
		"there never was one":                {v, nil, reap.Judgement{Reason: reap.NotOwned}},
		"it went by itself":                  {v, []watch.Event{seen, gone}, reap.Judgement{Reason: reap.NotOwned}},
		"it was reaped":                      {v, []watch.Event{seen, begun(watch.Remove, reap.Expired, 2), gone}, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Owner: watch.Exited}},
		"it was reaped, and is in use":       {used, []watch.Event{seen, begun(watch.Remove, reap.Expired, 2), gone}, reap.Judgement{Reason: reap.InUse, Owner: watch.Exited}},
		"it was reaped in another namespace": {v, []watch.Event{watch.NamespaceSeen{Kind: watch.Volume}, seen, begun(watch.Remove, reap.OwnerContainerGone, 2), gone}, reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited}},
	} {
		t.Run(name, func(t *testing.T) {
			p := picture(test.volume, test.events...)
			got := reap.DefaultPolicy().Judge(p, p.Entry(v.ID), at(time.Hour))
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(reap.Judgement{}, "Detail")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// agents is a picture of n sandboxes of a program that is dead, and what followed.
func agents(n int, events ...watch.Event) *watch.Picture {
	p := watch.NewPicture(thisBoot)
	p.Apply(ours)
	for i := range n {
		s := ruled(ownedBy(aProgram))
		s.ID = id(fmt.Sprint(i))
		p.Apply(watch.SandboxSeen{Sandbox: s, Asked: at(0)})
	}
	p.Apply(countAt(time.Second))
	for _, ev := range events {
		p.Apply(ev)
	}
	return p
}

// What a program condemns is looked at twice, and its processes are counted twice.
func TestR7TheBrakeOnPrograms(t *testing.T) {
	const now = 10 * time.Minute
	pol := reap.Policy{Grace: 2 * time.Second, Burst: 3}
	var all []watch.Event
	list := watch.Listed{Kind: watch.Container, Asked: at(now + pol.Grace)}
	for i := range 4 {
		s := ruled(ownedBy(aProgram))
		s.ID = id(fmt.Sprint(i))
		list.Sandboxes = append(list.Sandboxes, s)
		all = append(all, watch.Braked{ID: s.ID, At: at(now)})
	}
	all = slices.Clip(all)
	for name, test := range map[string]struct {
		n      int
		events []watch.Event
		want   [3]int // steps, set back, released
		second bool
	}{
		"as many as may be": {3, nil, [3]int{3, 0, 0}, false},
		"one more":          {4, nil, [3]int{0, 4, 0}, false},
		"the grace is over": {4, all, [3]int{}, true},
		"listed, and not counted: the next scan will do": {4, append(all, list), [3]int{}, false},
		"counted, and not listed":                        {4, append(all, countAt(now+pol.Grace)), [3]int{}, true},
		"listed, and counted too early":                  {4, append(all, list, countAt(now+pol.Grace-1)), [3]int{}, false},
		"listed and counted":                             {4, append(all, list, countAt(now+pol.Grace)), [3]int{4, 0, 0}, false},
		"listed, and another program was counted":        {4, append(all, list, watch.ProgramListed{Program: "other", Asked: at(now + pol.Grace)}), [3]int{}, false},
		"counted, and one lives after all":               {4, append(all, list, countAt(now+pol.Grace, agentd)), [3]int{0, 0, 4}, false},
	} {
		t.Run(name, func(t *testing.T) {
			when := now
			if len(test.events) > 0 {
				when += time.Minute
			}
			plan := pol.Decide(agents(test.n, test.events...), at(when))
			if got := [3]int{len(plan.Steps), len(plan.Braked), len(plan.Released)}; got != test.want || plan.SecondLook != test.second {
				t.Errorf("steps, set back, released: %v, second look: %v; want %v, %v", got, plan.SecondLook, test.want, test.second)
			}
		})
	}
}

// So is the socket on which nobody listens.
func TestR7TheBrakeOnSockets(t *testing.T) {
	const now = 10 * time.Minute
	pol := reap.Policy{Grace: 2 * time.Second, Burst: 1}
	again := now + pol.Grace
	heard := func(life watch.Life, when time.Duration) (events []watch.Event) {
		for _, name := range []string{"0", "1"} {
			events = append(events, watch.OwnerSeen{ID: id(name), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}, Life: life, Asked: at(when)})
		}
		return events
	}
	for name, test := range map[string]struct {
		events []watch.Event
		want   [3]int // steps, set back, released
	}{
		"listed, and not looked at":         {nil, [3]int{}},
		"listed, and looked at too early":   {heard(watch.Exited, again-1), [3]int{}},
		"listed, and looked at":             {heard(watch.Exited, again), [3]int{2, 0, 0}},
		"listed, and somebody listens":      {heard(watch.Alive, again), [3]int{0, 0, 2}},
		"listed, and nobody can tell":       {heard(watch.Unknown, again), [3]int{0, 0, 2}},
		"listed, and only one is looked at": {heard(watch.Exited, again)[:1], [3]int{1, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(ours)
			list := watch.Listed{Kind: watch.Container, Asked: at(again)}
			for _, name := range []string{"0", "1"} {
				s := ruled(ownedBy(aSocket))
				s.ID = id(name)
				p.Apply(watch.SandboxSeen{Sandbox: s, Asked: at(0)})
				list.Sandboxes = append(list.Sandboxes, s)
			}
			for _, ev := range heard(watch.Exited, time.Second) {
				p.Apply(ev)
			}
			for _, name := range []string{"0", "1"} {
				p.Apply(watch.Braked{ID: id(name), At: at(now)})
			}
			for _, ev := range append([]watch.Event{list}, test.events...) {
				p.Apply(ev)
			}
			plan := pol.Decide(p, at(now+time.Minute))
			if got := [3]int{len(plan.Steps), len(plan.Braked), len(plan.Released)}; got != test.want {
				t.Errorf("steps, set back, released: %v, want %v", got, test.want)
			}
		})
	}
}

// An owner container may run again whatever else died with it, and whoever died last.
func TestR1AnOwnerContainerThatRunsAgainKeepsWhateverElseIsDead(t *testing.T) {
	s := ruled(ownedBy(aBoss, aProgram))
	pol := reap.DefaultPolicy()
	p := picture(s, ours, here, cLives, countAt(1, agentd), down(12*time.Second), agentdDies(20*time.Second))
	plan := pol.Decide(p, at(21*time.Second))
	if len(plan.Steps) != 1 || plan.Steps[0].Reason != reap.NoPossibleOwner {
		t.Fatalf("steps %+v", plan.Steps)
	}
	p.Apply(begun(watch.Kill, reap.NoPossibleOwner, 21*time.Second))
	p.Apply(ended(watch.Kill, 21*time.Second, nil))
	p.Apply(up(22 * time.Second))
	plan = pol.Decide(p, at(23*time.Second))
	if len(plan.Steps) > 0 || !slices.Equal(plan.Abandoned, []watch.ID{id("a")}) {
		t.Errorf("it runs again: %+v", plan)
	}
}

func TestR1ACaseOnRecordWaitsForItsOwnerContainerWhateverElseIsDead(t *testing.T) {
	pol := reap.DefaultPolicy()
	p := watch.NewPicture(thisBoot)
	p.Apply(watch.CaseResumed{Sandbox: labelled("a", labels{"owner": "container:boss"}), Reason: string(reap.NoPossibleOwner), Begun: at(0)})
	p.Apply(here)
	if plan := pol.Decide(p, at(time.Hour)); len(plan.Steps) > 0 {
		t.Fatalf("before any look at its owner: %+v", plan.Steps)
	}
	gone := cGone
	gone.Named, gone.Container = true, ""
	p.Apply(gone)
	if plan := pol.Decide(p, at(time.Hour)); len(plan.Steps) != 1 || plan.Steps[0].Do != watch.Remove {
		t.Fatalf("after it: %+v", plan.Steps)
	}
}

// Of several owners the record has the one that may come back.
func TestR8TheRecordHasTheOwnerContainer(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(removing(busy)), func(s *stand) {
		s.run(born("a", nil, stopped, ownedBy(aPID, aBoss), func(s *watch.Sandbox) { s.Terms.Rule = "rule" }))
		s.owners.live(100)
		s.inbox.Post(watch.ContainerSeen{Ref: "boss", Named: true, Life: watch.Exited, Asked: time.Now()})
		s.pass(time.Minute)
		s.owners.die(100)
		s.list()
		s.pass(time.Minute)
		if got, _ := docket.loaded(); got["a"].Owner != "container:boss" || got["a"].Rule != "rule" {
			t.Errorf("on record: %+v", got["a"])
		}
	})
}
