package reap_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"watcher/reap"
	"watcher/watch"
)

const (
	thisBoot  = "4f2cf1a1-2f7b-4a59-8c1e-0d3a5b7c9e11"
	otherBoot = "00000000-1111-2222-3333-444444444444"
)

// at(0) is when the sandboxes of these tests are created.
func at(after time.Duration) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(after)
}

func id(name string) watch.ID { return watch.ID{Kind: watch.Container, Name: name} }

// labelled is a running sandbox with these labels, "key=value" without the prefix.
func labelled(name string, labels map[string]string) watch.Sandbox {
	full := map[string]string{}
	for key, value := range labels {
		full[watch.LabelPrefix+key] = value
	}
	terms, _ := watch.ParseTerms(full)
	terms.Rule = watch.RuleLabels
	return watch.Sandbox{
		ID: id(name), Name: name, State: watch.Running, Created: at(0), Terms: terms,
		Init: watch.Process{PID: 900, Start: 5000, Boot: thisBoot},
	}
}

type labels = map[string]string

var (
	// ours says that PIDs mean the same to the sandboxes' system and to us.
	ours = watch.NamespaceSeen{Kind: watch.Container, Shared: true}

	// here and away say whether the sandboxes' system can be reached.
	here = watch.SourceBack{Source: "docker", Kind: watch.Container}
	away = watch.SourceLost{Source: "docker", Kind: watch.Container, Err: errors.New("EOF")}

	bossLives = watch.ProcessSeen{PID: 100, Process: watch.Process{PID: 100, Start: 70, Boot: thisBoot}, Born: at(-time.Hour), Life: watch.Alive, At: at(1)}
	bossDead  = watch.ProcessSeen{PID: 100, Process: watch.Process{PID: 100, Start: 70, Boot: thisBoot}, Born: at(-time.Hour), Life: watch.Exited, At: at(2)}
	bossLater = watch.ProcessSeen{PID: 100, Process: watch.Process{PID: 100, Start: 9000, Boot: thisBoot}, Born: at(time.Minute), Life: watch.Alive, At: at(time.Minute)}
	bossGone  = watch.ProcessSeen{PID: 100, Life: watch.Exited, At: at(2)}
	bossVague = watch.ProcessSeen{PID: 100, Life: watch.Unknown, At: at(1), Detail: "too many open files"}

	cLives = watch.ContainerSeen{Ref: "boss", Named: true, Container: "B", Created: at(-time.Hour), Life: watch.Alive, Asked: at(1)}
	cDown  = watch.ContainerSeen{Ref: "boss", Named: true, Container: "B", Created: at(-time.Hour), Life: watch.Exited, Since: at(10 * time.Second), Asked: at(11 * time.Second)}
	cGone  = watch.ContainerSeen{Ref: "boss", Container: "B", Life: watch.Exited, Gone: true, Asked: at(10 * time.Second)}
	cVague = watch.ContainerSeen{Ref: "boss", Named: true, Asked: at(1), Detail: "i/o timeout"}
)

// up and down are later looks at it.
func up(when time.Duration) watch.Event {
	c := cLives
	c.Asked = at(when)
	return c
}

func down(when time.Duration) watch.Event {
	c := cDown
	c.Asked = at(when)
	return c
}

func restarts(ev watch.Event) watch.Event {
	c := ev.(watch.ContainerSeen)
	c.Restarts = true
	return c
}

func backAt(when time.Duration) watch.Event {
	return watch.SourceBack{Source: "docker", Kind: watch.Container, At: at(when)}
}

// listA is a list in which the sandbox of these tests is as it was.
func listA(asked time.Duration) watch.Event {
	return watch.Listed{Kind: watch.Container, Asked: at(asked), Sandboxes: []watch.Sandbox{labelled("a", nil)}}
}

func begun(step watch.Step, reason reap.Reason, when time.Duration) watch.Event {
	return watch.StepBegun{ID: id("a"), Step: step, Reason: string(reason), At: at(when)}
}

func ended(step watch.Step, when time.Duration, err error) watch.Event {
	return watch.StepEnded{ID: id("a"), Step: step, At: at(when), Err: err}
}

// picture is what was seen of a sandbox called a, and what followed.
func picture(s watch.Sandbox, events ...watch.Event) *watch.Picture {
	p := watch.NewPicture(thisBoot)
	p.Apply(watch.SandboxSeen{Sandbox: s, Asked: at(0)})
	for _, ev := range events {
		p.Apply(ev)
	}
	return p
}

func TestJudge(t *testing.T) {
	byPID := labels{"owner": "100"}
	byContainer := labels{"owner": "container:boss"}
	broken := errors.New("device or resource busy")
	for name, test := range map[string]struct {
		labels labels
		events []watch.Event
		now    time.Duration
		want   reap.Judgement // its Detail is compared only with TestDetails
	}{
		"owner-alive": {
			byPID,
			[]watch.Event{ours, bossLives},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive},
		},
		"owner-unknown: nobody has looked": {
			byPID,
			[]watch.Event{ours},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"owner-unknown: the look failed": {
			byPID,
			[]watch.Event{ours, bossVague},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"R1 owner-unknown: nobody told whose PIDs these are": {
			byPID,
			[]watch.Event{bossGone},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"R1 owner-unknown: the PIDs are of another namespace": {
			byPID,
			[]watch.Event{watch.NamespaceSeen{Kind: watch.Container, Detail: "remote"}, bossDead},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"R1 owner-unknown: the namespace was ours and is no more": {
			byPID,
			[]watch.Event{ours, bossLives, watch.NamespaceSeen{Kind: watch.Container}, bossDead},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"R1 owner-unknown: a look that never bound, in a foreign namespace, of another boot": {
			labels{"owner": "100:70:" + otherBoot},
			nil, time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"owner-exited": {
			byPID,
			[]watch.Event{ours, bossLives, bossDead},
			3,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited},
		},
		"owner-exited: it was gone when we came": {
			byPID,
			[]watch.Event{ours, bossGone},
			3,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited},
		},
		"owner-replaced": {
			byPID,
			[]watch.Event{ours, bossLater},
			time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerReplaced, Owner: watch.Exited},
		},
		"rebooted": {
			labels{"owner": "100:70:" + otherBoot},
			[]watch.Event{ours},
			time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Rebooted, Owner: watch.Exited},
		},
		"rebooted: whoever has the PID and start time now": {
			labels{"owner": "100:70:" + otherBoot},
			[]watch.Event{ours, bossLives},
			time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Rebooted, Owner: watch.Exited},
		},
		"of this boot": {
			labels{"owner": "100:70:" + thisBoot},
			[]watch.Event{ours, bossLives},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive},
		},
		"bad-label": {
			labels{"owner": "-1"},
			[]watch.Event{ours},
			time.Hour,
			reap.Judgement{Reason: reap.BadLabel},
		},
		"bad-label: though the time is over and the owner dead": {
			labels{"owner": "100", "ttl": "1s", "kep": "true"},
			[]watch.Event{ours, bossGone},
			time.Hour,
			reap.Judgement{Reason: reap.BadLabel},
		},
		"pinned: though the time is over and the owner dead": {
			labels{"owner": "100", "ttl": "1s", "keep": "true"},
			[]watch.Event{ours, bossGone},
			time.Hour,
			reap.Judgement{Reason: reap.Pinned},
		},
		"bad-label: though it is pinned": {
			labels{"owner": "0", "keep": "true"},
			[]watch.Event{ours},
			time.Hour,
			reap.Judgement{Reason: reap.BadLabel},
		},
		"not-owned": {
			labels{"group": "g"},
			[]watch.Event{ours},
			1000 * time.Hour,
			reap.Judgement{Reason: reap.NotOwned},
		},
		"not-owned, with some time left": {
			labels{"ttl": "1h"},
			[]watch.Event{ours},
			time.Hour - 1,
			reap.Judgement{Reason: reap.NotOwned, Next: at(time.Hour)},
		},
		"expired to the nanosecond": {
			labels{"ttl": "1h"},
			[]watch.Event{ours},
			time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired},
		},
		"expired, whatever its owner does": {
			labels{"owner": "100", "ttl": "1h"},
			[]watch.Event{ours, bossLives},
			2 * time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Owner: watch.Alive},
		},
		"expired, whoever its owner is": {
			labels{"owner": "100", "ttl": "1h"},
			nil, 2 * time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired},
		},
		"the owner explains more than the age": {
			labels{"owner": "100", "ttl": "1h"},
			[]watch.Event{ours, bossGone},
			2 * time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited},
		},
		"an owner that lives does not hide the end": {
			labels{"owner": "100", "ttl": "1h"},
			[]watch.Event{ours, bossLives},
			time.Minute,
			reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive, Next: at(time.Hour)},
		},
		"owner-alive: a container": {
			byContainer,
			[]watch.Event{cLives},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive},
		},
		"owner-unknown: a container that nobody looked at": {
			byContainer, nil, time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"owner-unknown: a container that could not be looked at": {
			byContainer,
			[]watch.Event{cVague},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"too-young: a container that may be restarting": {
			byContainer,
			[]watch.Event{here, cLives, cDown},
			12*time.Second - 1,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Next: at(12 * time.Second)},
		},
		"too-young, and then the time is over": {
			labels{"owner": "container:boss", "ttl": "11s"},
			[]watch.Event{here, cLives, cDown},
			11*time.Second - 1,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Next: at(11 * time.Second)},
		},
		"too-young, and some time left": {
			labels{"owner": "container:boss", "ttl": "1h"},
			[]watch.Event{here, cLives, cDown},
			11 * time.Second,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Next: at(12 * time.Second)},
		},
		"R2 too-young: it may have been restarted since it was looked at": {
			byContainer,
			[]watch.Event{here, cLives, cDown},
			time.Hour,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Look: true},
		},
		"R2 too-young: one scan is asked for, and not one more": {
			byContainer,
			[]watch.Event{here, cLives, cDown, listA(12 * time.Second)},
			time.Hour,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited},
		},
		"owner-container-gone: it stays down": {
			byContainer,
			[]watch.Event{here, cLives, cDown, down(12 * time.Second)},
			12 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited},
		},
		"too-young: a container that its engine restarts": {
			byContainer,
			[]watch.Event{here, cLives, restarts(down(12 * time.Second))},
			70*time.Second - 1,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Next: at(70 * time.Second)},
		},
		"owner-container-gone: its engine should have restarted it": {
			byContainer,
			[]watch.Event{here, cLives, restarts(down(70 * time.Second))},
			70 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited},
		},
		"R1 owner-unknown: its engine is away and may start it again": {
			byContainer,
			[]watch.Event{here, cLives, down(12 * time.Second), away},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"R1 owner-unknown: its engine has never been there": {
			byContainer,
			[]watch.Event{cLives, down(12 * time.Second)},
			time.Hour,
			reap.Judgement{Reason: reap.OwnerUnknown},
		},
		"too-young: its engine came back a moment ago": {
			byContainer,
			[]watch.Event{here, cLives, down(12 * time.Second), away, backAt(time.Minute)},
			62*time.Second - 1,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.TooYoung, Owner: watch.Exited, Next: at(62 * time.Second)},
		},
		"owner-container-gone: its engine is back, and it stays down": {
			byContainer,
			[]watch.Event{here, cLives, down(12 * time.Second), away, backAt(time.Minute), down(62 * time.Second)},
			62 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited},
		},
		"owner-container-gone: removed, so no grace": {
			byContainer,
			[]watch.Event{cLives, cGone},
			10 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited},
		},
		"container owners do not need the namespace": {
			byContainer,
			[]watch.Event{watch.NamespaceSeen{Kind: watch.Container}, cLives, cGone},
			10 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Exited},
		},
		"R5 a step is under way": {
			byPID,
			[]watch.Event{ours, bossGone, begun(watch.Kill, reap.OwnerExited, 3)},
			4,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited},
		},
		"R1 the owner container is back: it may start its sandbox again": {
			byContainer,
			[]watch.Event{
				here, cLives, cDown, begun(watch.Kill, reap.OwnerContainerGone, 12*time.Second), ended(watch.Kill, 12*time.Second, nil),
				up(13 * time.Second),
			},
			14 * time.Second,
			reap.Judgement{Reason: reap.OwnerAlive, Owner: watch.Alive},
		},
		"R5 the owner container is back, and the time is over": {
			labels{"owner": "container:boss", "ttl": "5s"},
			[]watch.Event{
				here, cLives, begun(watch.Kill, reap.Expired, 12*time.Second), ended(watch.Kill, 12*time.Second, nil),
				up(13 * time.Second),
			},
			14 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Owner: watch.Alive},
		},
		"R5 the owner container is back while the removal is under way": {
			byContainer,
			[]watch.Event{here, cLives, cDown, begun(watch.Remove, reap.OwnerContainerGone, 12*time.Second), up(13 * time.Second)},
			14 * time.Second,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerContainerGone, Owner: watch.Alive},
		},
		"retrying": {
			labels{"owner": "100", "ttl": "1h"},
			[]watch.Event{ours, bossGone, begun(watch.Remove, reap.OwnerExited, 3), ended(watch.Remove, 4, broken)},
			5,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.Retrying, Owner: watch.Exited},
		},
		"retrying: the next attempt is under way": {
			byPID,
			[]watch.Event{
				ours, bossGone, begun(watch.Remove, reap.OwnerExited, 3), ended(watch.Remove, 4, broken),
				begun(watch.Remove, reap.Retrying, 5),
			},
			6,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited},
		},
		"pinned: dropped by an operator, though its owner is dead": {
			byPID,
			[]watch.Event{ours, bossGone, watch.CaseDropped{ID: id("a")}},
			time.Hour,
			reap.Judgement{Reason: reap.Pinned},
		},
		"pinned: dropped while a reap of it is under way": {
			byPID,
			[]watch.Event{ours, bossGone, watch.CaseDropped{ID: id("a")}, begun(watch.Remove, reap.OwnerExited, 3)},
			4,
			reap.Judgement{Reason: reap.Pinned},
		},
		"R8 on record, and not tried": {
			labels{"group": "g"},
			[]watch.Event{watch.CaseResumed{Sandbox: labelled("a", nil), Reason: string(reap.OwnerExited), Begun: at(1)}},
			time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited},
		},
		"R8 on record, and tried": {
			labels{"group": "g"},
			[]watch.Event{watch.CaseResumed{Sandbox: labelled("a", nil), Reason: string(reap.OwnerExited), Begun: at(1), Attempts: 2, Err: broken}},
			time.Hour,
			reap.Judgement{Verdict: reap.Wait, Reason: reap.Retrying},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := picture(labelled("a", test.labels), test.events...)
			got := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(test.now))
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(reap.Judgement{}, "Detail")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Age by a rule is a ground of its own, but an inferred one, and any that is not comes before it.
func TestAgeByARuleIsInferred(t *testing.T) {
	for name, test := range map[string]struct {
		labels labels
		events []watch.Event
		now    time.Duration
		want   reap.Judgement
	}{
		"young":               {labels{"group": "g"}, nil, time.Minute - 1, reap.Judgement{Reason: reap.NotOwned, Next: at(time.Minute)}},
		"old":                 {labels{"group": "g"}, nil, time.Minute, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Inferred: true}},
		"owner alive":         {labels{"owner": "100"}, []watch.Event{ours, bossLives}, time.Minute, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired, Inferred: true, Owner: watch.Alive}},
		"owner dead":          {labels{"owner": "100"}, []watch.Event{ours, bossGone}, time.Minute, reap.Judgement{Verdict: reap.Reap, Reason: reap.OwnerExited, Owner: watch.Exited}},
		"its time is over":    {labels{"ttl": "30s"}, nil, time.Minute, reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired}},
		"its time comes next": {labels{"ttl": "30s"}, nil, time.Second, reap.Judgement{Reason: reap.NotOwned, Next: at(30 * time.Second)}},
		"its time comes last": {labels{"ttl": "1h"}, nil, time.Second, reap.Judgement{Reason: reap.NotOwned, Next: at(time.Minute)}},
		"pinned":              {labels{"keep": "true"}, nil, time.Hour, reap.Judgement{Reason: reap.Pinned}},
		"malformed":           {labels{"owner": "x"}, nil, time.Hour, reap.Judgement{Reason: reap.BadLabel}},
		"R5 begun: inferred no more": {
			labels{"group": "g"},
			[]watch.Event{begun(watch.Kill, reap.Expired, time.Minute)},
			time.Hour,
			reap.Judgement{Verdict: reap.Reap, Reason: reap.Expired},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := labelled("a", test.labels)
			s.Terms.MaxAge = time.Minute
			p := picture(s, test.events...)
			got := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(test.now))
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(reap.Judgement{}, "Detail")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Whoever is kept for want of knowledge, or waits, wants to know why.
func TestEveryVerdictThatIsNotPlainHasADetail(t *testing.T) {
	for name, p := range map[string]*watch.Picture{
		"namespace": picture(labelled("a", labels{"owner": "100"}), watch.NamespaceSeen{Kind: watch.Container, Detail: "remote"}),
		"look":      picture(labelled("a", labels{"owner": "100"}), ours, bossVague),
		"engine":    picture(labelled("a", labels{"owner": "container:boss"}), cVague),
		"label":     picture(labelled("a", labels{"owner": "-1"})),
		"restart":   picture(labelled("a", labels{"owner": "container:boss"}), here, cLives, cDown),
		"away":      picture(labelled("a", labels{"owner": "container:boss"}), cLives, cDown),
		"ttl":       picture(labelled("a", labels{"ttl": "1s"})),
		"retry":     picture(labelled("a", labels{"ttl": "1s"}), begun(watch.Remove, reap.Expired, 3), ended(watch.Remove, 4, errors.New("busy"))),
	} {
		if j := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(11*time.Second)); j.Detail == "" {
			t.Errorf("%s: %s, %s, and not a word why", name, j.Verdict, j.Reason)
		}
	}
}

func TestR1WithoutABootIDNobodyIsOfAnotherBoot(t *testing.T) {
	p := watch.NewPicture("")
	p.Apply(watch.SandboxSeen{Sandbox: labelled("a", labels{"owner": "100:70:" + otherBoot}), Asked: at(0)})
	p.Apply(ours)
	p.Apply(bossGone)
	if j := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(time.Hour)); j.Verdict != reap.Keep || j.Reason != reap.OwnerUnknown {
		t.Errorf("%s, %s", j.Verdict, j.Reason)
	}
}

func TestR1ASandboxOfUnknownAgeDoesNotExpire(t *testing.T) {
	s := labelled("a", labels{"ttl": "1s"})
	s.Created = time.Time{}
	p := picture(s)
	if j := reap.DefaultPolicy().Judge(p, p.Entry(id("a")), at(time.Hour)); j.Verdict != reap.Keep {
		t.Errorf("%s, %s: %s", j.Verdict, j.Reason, j.Detail)
	}
}

func TestR1ZeroValuesKeep(t *testing.T) {
	var j reap.Judgement
	if j.Verdict != reap.Keep || reap.Verdict(99).String() != "keep" {
		t.Error("what nobody decided is not kept")
	}
	p := picture(watch.Sandbox{ID: id("a")})
	if j := (reap.Policy{}).Judge(p, p.Entry(id("a")), at(1000*time.Hour)); j.Verdict != reap.Keep {
		t.Errorf("a sandbox of which nothing is known: %s, %s", j.Verdict, j.Reason)
	}
	if plan := (reap.Policy{}).Decide(p, at(1000*time.Hour)); len(plan.Steps) > 0 {
		t.Errorf("a sandbox of which nothing is known: %v", plan.Steps)
	}
}

func TestWordsOfTheVerdicts(t *testing.T) {
	for got, want := range map[string]string{reap.Keep.String(): "keep", reap.Wait.String(): "wait", reap.Reap.String(): "reap"} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
