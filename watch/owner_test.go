package watch_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"watcher/watch"
)

// owned says who may own a sandbox, as a rule does.
func owned(claims ...watch.Claim) func(*watch.Sandbox) {
	return func(s *watch.Sandbox) { s.Terms.Rule, s.Terms.Owners = "rule", claims }
}

func existed(seconds float64) func(*watch.Sandbox) {
	return func(s *watch.Sandbox) { s.Existed = ticks(seconds) }
}

var (
	agentd = program("agentd")
	client = watch.Claim{Kind: watch.ClientClaim}
	socket = watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}
)

// agent is a process of the program, by its PID and birth.
func agent(pid int, born float64) watch.Member {
	return watch.Member{Process: watch.Process{PID: pid, Start: ticks(born), Boot: thisBoot}, Born: at(born), Life: watch.Alive}
}

// vague is a process that may be of the program.
func vague(pid int, born float64) watch.Member {
	m := agent(pid, born)
	m.Life = watch.Unknown
	return m
}

// stepped is the same process after the wall clock was stepped.
func stepped(m watch.Member, by float64) watch.Member {
	m.Born = m.Born.Add(time.Duration(by * float64(time.Second)))
	return m
}

func appeared(when float64, m watch.Member) watch.ProgramSeen {
	return watch.ProgramSeen{Program: "agentd", Member: m, At: at(when)}
}

func died(when float64, m watch.Member) watch.ProgramSeen {
	m.Life, m.At = watch.Exited, at(when)
	return watch.ProgramSeen{Program: "agentd", Member: m, At: at(when)}
}

func counted(asked float64, members ...watch.Member) watch.ProgramListed {
	return watch.ProgramListed{Program: "agentd", Asked: at(asked), Members: members}
}

// The sandbox is created at 0, its init at 0.3, and it is seen first at 1.
func TestProgramsAsOwners(t *testing.T) {
	s := sandbox("a", owned(agentd))
	older, oldest, younger := agent(100, -60), agent(101, -90), agent(102, 60)
	lives, unclear, unlooked := fate{Life: watch.Alive, Start: ticks(-60)}, fate{Detail: true}, fate{Detail: true, Look: true}
	tell(t, []story{
		{"nobody has looked", s, nil, unlooked},
		{"an older one is seen", s, []watch.Event{appeared(2, older)}, lives},
		{"an older one is counted", s, []watch.Event{counted(2, older)}, lives},
		{"an older one was counted before the sandbox was seen", s, []watch.Event{counted(0.5, older)}, lives},
		{"R1: of two older ones the oldest speaks", s, []watch.Event{counted(2, older, oldest)}, fate{Life: watch.Alive, Start: ticks(-90)}},
		{"a younger one never counts", s, []watch.Event{counted(61, younger)}, fate{Life: watch.Exited}},
		{"a younger one does not speak for an older one", s, []watch.Event{counted(61, younger, older)}, lives},
		{"there is none", s, []watch.Event{counted(2)}, fate{Life: watch.Exited}},
		{"its own first process is called so", s, []watch.Event{counted(2, agent(900, 0.3))}, fate{Life: watch.Exited}},
		{"another of the tick in which its first process was born", s, []watch.Event{counted(2, agent(901, 0.3))}, fate{Life: watch.Alive, Start: ticks(0.3)}},

		{"R1: none was counted before the sandbox was seen", s, []watch.Event{counted(0.9)}, unlooked},
		{"R1: none was counted at the moment in which the sandbox was seen", s, []watch.Event{counted(1)}, unlooked},
		{
			"R1: none was counted, by a look that began before the sandbox was made", sandbox("a", owned(agentd), createdAt(at(1.1))),
			[]watch.Event{counted(1.05)},
			unlooked,
		},
		{
			"none was counted, by a look that began after the sandbox was made", sandbox("a", owned(agentd), createdAt(at(1.1))),
			[]watch.Event{counted(1.2)},
			fate{Life: watch.Exited},
		},
		{
			"R1: it is seen, and counts of before come late, of which the second lacks it", s,
			[]watch.Event{appeared(5, older), counted(3, older), counted(4)},
			lives,
		},
		{"R1: a younger one is seen, and nobody has counted", s, []watch.Event{appeared(61, younger)}, unlooked},
		{"R1: an older one died, and nobody has counted", s, []watch.Event{appeared(2, older), died(3, older)}, fate{Start: ticks(-60), Detail: true, Look: true}},
		{"R1: an older one died, and was counted only before", s, []watch.Event{counted(0.5, older), died(3, older)}, fate{Start: ticks(-60), Detail: true, Look: true}},
		{"another program's are another's", s, []watch.Event{watch.ProgramListed{Program: "agent", Asked: at(2)}}, unlooked},

		{"it dies", s, []watch.Event{counted(2, older), died(3, older)}, fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(3)}},
		{
			"one dies, and another lives", s,
			[]watch.Event{counted(2, older, oldest), died(3, oldest)},
			lives,
		},
		{
			"both die: the last says when", s,
			[]watch.Event{counted(2, older, oldest), died(4, older), died(3, oldest)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(4)},
		},
		{
			"a younger one's death says nothing", s,
			[]watch.Event{counted(2, older, younger), died(3, older), died(70, younger)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(3)},
		},
		{
			"it dies, and a younger one lives", s,
			[]watch.Event{counted(2, older), appeared(61, younger), died(62, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(62)},
		},
		{
			"W4: its death is told twice: the first counts", s,
			[]watch.Event{counted(2, older), died(5, older), died(6, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(5)},
		},
		{
			"W4: its death is told twice, the earlier one last", s,
			[]watch.Event{counted(2, older), died(5, older), died(4.9, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(4.9)},
		},
		{
			"its death was missed, and it is not counted any more", s,
			[]watch.Event{counted(2, older), counted(9)},
			fate{Life: watch.Exited, Start: ticks(-60)},
		},
		{
			"its death was seen, and it is not counted any more", s,
			[]watch.Event{counted(2, older), died(5, older), counted(9)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(5)},
		},
		{
			"its PID goes to a younger one", s,
			[]watch.Event{counted(2, older), counted(61, agent(100, 60))},
			fate{Life: watch.Exited, Start: ticks(-60)},
		},

		{
			"W4: it is in a list from before its death", s,
			[]watch.Event{counted(2, older), died(5, older), counted(4, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(5)},
		},
		{
			"W4: its death is told before it is counted, and late", s,
			[]watch.Event{died(5, older), counted(4, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(5)},
		},
		{
			"W4: it was seen after a list was asked for that lacks it", s,
			[]watch.Event{appeared(5, older), counted(4)},
			lives,
		},
		{
			"W4: it was seen when a list was asked for that lacks it", s,
			[]watch.Event{appeared(5, older), counted(5)},
			lives,
		},
		{
			"W4: an older list that has it comes after a newer one that lacks it", s,
			[]watch.Event{counted(6), counted(5, older)},
			fate{Life: watch.Exited},
		},
		{
			"W4: an older list that lacks it comes after a newer one that has it", s,
			[]watch.Event{counted(6, older), counted(5)},
			lives,
		},
		{
			"W4: a list comes twice", s,
			[]watch.Event{counted(6, older), counted(6, older)},
			lives,
		},
		{
			"W4: a list comes twice, with a death between", s,
			[]watch.Event{counted(6, older), died(7, older), counted(6, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(7)},
		},
		{
			"W4: it is not counted any more, and then an older look at it is told", s,
			[]watch.Event{counted(2, older), counted(9), appeared(8, older)},
			fate{Life: watch.Exited, Start: ticks(-60)},
		},
		{
			"W4: its death was counted, and then an older look at it is told", s,
			[]watch.Event{counted(2, older), died(5, older), counted(9), appeared(4, older)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(5)},
		},

		{"R1: what an older one runs cannot be read", s, []watch.Event{counted(2, vague(100, -60))}, unclear},
		{"R1: what an older one runs cannot be read, and another is dead", s, []watch.Event{counted(2, older, vague(103, -70)), died(3, older)}, fate{Start: ticks(-60), Detail: true}},
		{"what an older one runs cannot be read, and another lives", s, []watch.Event{counted(2, vague(103, -70), older)}, lives},
		{"what a younger one runs cannot be read", s, []watch.Event{counted(61, vague(102, 60))}, fate{Life: watch.Exited}},
		{"it can be read now, and is of the program", s, []watch.Event{counted(2, vague(100, -60)), counted(3, older)}, lives},
		{"it can be read now, and is not of the program", s, []watch.Event{counted(2, vague(100, -60)), counted(3)}, fate{Life: watch.Exited}},
		{
			"it cannot be read any more", s,
			[]watch.Event{counted(2, older), counted(3, vague(100, -60))},
			fate{Start: ticks(-60), Detail: true},
		},
		{
			"what could not be read is dead", s,
			[]watch.Event{counted(2, vague(100, -60)), died(3, vague(100, -60))},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(3)},
		},
	})
}

func TestW3OnlyWhoIsOlderThanASandboxMayOwnItByItsProgram(t *testing.T) {
	unclear := fate{Detail: true}
	tell(t, []story{
		{
			"within the slack of the clocks, and no init tells", sandbox("a", owned(agentd), noInit),
			[]watch.Event{counted(3, agent(100, 2))},
			fate{Life: watch.Alive, Start: ticks(2)},
		},
		{
			"behind the slack of the clocks", sandbox("a", owned(agentd), noInit),
			[]watch.Event{counted(3, agent(100, 2.01))},
			fate{Life: watch.Exited},
		},
		{
			"within the slack, but younger than init", sandbox("a", owned(agentd)),
			[]watch.Event{counted(3, agent(100, 0.31))},
			fate{Life: watch.Exited},
		},
		{
			"within the slack, but younger than something by which the sandbox existed", sandbox("a", owned(agentd), noInit, existed(1)),
			[]watch.Event{counted(3, agent(100, 1.01))},
			fate{Life: watch.Exited},
		},
		{
			"of the tick by which the sandbox existed", sandbox("a", owned(agentd), noInit, existed(1)),
			[]watch.Event{counted(3, agent(100, 1))},
			fate{Life: watch.Alive, Start: ticks(1)},
		},
		{
			"the sandbox existed before its init, as after a restart", sandbox("a", owned(agentd), existed(0.1)),
			[]watch.Event{counted(3, agent(100, 0.2))},
			fate{Life: watch.Exited},
		},
		{
			"it was seen to exist long after its init was born", sandbox("a", owned(agentd), existed(1000)),
			[]watch.Event{counted(3, agent(100, 60))},
			fate{Life: watch.Exited},
		},
		{
			"it was seen to exist long after it was created: the wall clock decides", sandbox("a", owned(agentd), noInit, existed(1000)),
			[]watch.Event{counted(61, agent(100, 60))},
			fate{Life: watch.Exited},
		},
		{
			"the wall clock was set back, and the kernel's tells by the init", sandbox("a", owned(agentd)),
			[]watch.Event{counted(61, stepped(agent(100, 60), -3600))},
			fate{Life: watch.Exited},
		},
		{
			"the wall clock was set back, and the kernel's tells by when it existed", sandbox("a", owned(agentd), noInit, existed(1)),
			[]watch.Event{counted(61, stepped(agent(100, 60), -3600))},
			fate{Life: watch.Exited},
		},
		{
			"the wall clock was set back, and no other tells: kept", sandbox("a", owned(agentd), noInit),
			[]watch.Event{counted(61, stepped(agent(100, 60), -3600))},
			fate{Life: watch.Alive, Start: ticks(60)},
		},
		{
			"R1: the wall clock was set forward: older than init by the kernel's", sandbox("a", owned(agentd)),
			[]watch.Event{counted(2, stepped(agent(100, -60), 3600))},
			unclear,
		},
		{
			"R1: the clocks disagree about one, and another is dead", sandbox("a", owned(agentd)),
			[]watch.Event{counted(2, stepped(agent(100, -60), 3600), agent(101, -90)), died(3, agent(101, -90))},
			fate{Start: ticks(-90), Detail: true},
		},
		{
			"the clocks disagree about one, and that is dead", sandbox("a", owned(agentd)),
			[]watch.Event{counted(2, stepped(agent(100, -60), 3600)), died(3, agent(100, -60))},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(3)},
		},
		{
			"R1: the wall clock was set forward after a look: nobody's birth moves", sandbox("a", owned(agentd), noInit),
			[]watch.Event{counted(2, agent(100, -60)), counted(3, stepped(agent(100, -60), 3600))},
			fate{Life: watch.Alive, Start: ticks(-60)},
		},
		{
			"R1: the wall clock was set forward between two looks that cannot read it: nobody's birth moves", sandbox("a", owned(agentd), noInit),
			[]watch.Event{counted(2, vague(100, -60)), counted(3, stepped(vague(100, -60), 3600))},
			unclear,
		},
		{
			"W1: for a sandbox of unknown age nobody is too young", sandbox("a", owned(agentd), noInit, createdAt(time.Time{})),
			[]watch.Event{counted(2, agent(100, 1))},
			unclear,
		},
		{
			"W1: a sandbox of unknown age, and the kernel's clock tells", sandbox("a", owned(agentd), noInit, createdAt(time.Time{}), existed(0)),
			[]watch.Event{counted(2, agent(100, 1))},
			fate{Life: watch.Exited},
		},
	})
}

// What is known of a program is for all its sandboxes, and each makes of it what its own age allows.
func TestOneCountIsForAllSandboxesOfAProgram(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	late := sandbox("late", owned(agentd), createdAt(at(100)), func(s *watch.Sandbox) { s.Init.Start = ticks(100) })
	p.Apply(counted(0, agent(100, -60)))
	p.Apply(listed(101, sandbox("early", owned(agentd)), late, sandbox("other", owned(program("other")))))
	settleAll(p)
	p.Apply(counted(102, agent(100, -60), agent(101, 60)))
	wantDue(t, p, "early", "late")
	settleAll(p)
	p.Apply(died(103, agent(100, -60)))
	wantDue(t, p, "early", "late")
	for name, want := range map[string]watch.Life{"early": watch.Exited, "late": watch.Alive, "other": watch.Unknown} {
		if got := p.Entry(id(name)).Owner().Life; got != want {
			t.Errorf("the owner of %s is %s, want %s", name, got, want)
		}
	}
}

func TestACountIsWantedOncePerNewClaim(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	for _, step := range []struct {
		why   string
		event watch.Event
		want  bool
	}{
		{"nobody claims a program", seen(1, sandbox("a", owner("100"))), false},
		{"a program is claimed", seen(1, sandbox("b", owned(agentd))), true},
		{"the same sandbox again", seen(2, sandbox("b", owned(agentd))), false},
		{"a list of the same", listed(3, sandbox("a", owner("100")), sandbox("b", owned(agentd))), false},
		{"another sandbox of the program", seen(4, sandbox("c", owned(agentd))), true},
		{"a count", counted(5), false},
		{"the rules say another program", seen(6, sandbox("c", owned(program("other")))), true},
		{"the rules say one more", seen(7, sandbox("c", owned(program("other"), agentd))), true},
		{"it went", gone(8, "c"), false},
	} {
		p.Apply(step.event)
		if got := p.TakeCount(); got != step.want || p.TakeCount() {
			t.Errorf("%s: a count is wanted: %v, want %v", step.why, got, step.want)
		}
	}
}

func TestWhenAProgramWasCounted(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	for _, ev := range []watch.Event{counted(5), counted(3), appeared(9, agent(100, -60)), counted(7), counted(6), watch.ListFailed{Kind: watch.Processes, At: at(100)}} {
		p.Apply(ev)
	}
	if got := p.Counted("agentd"); !got.Equal(at(7)) {
		t.Errorf("counted at %s", got)
	}
	if got := p.Counted("other"); !got.IsZero() {
		t.Errorf("another program was counted at %s", got)
	}
}

// Clients.

func proc(pid int, born float64) watch.Process {
	return watch.Process{PID: pid, Start: ticks(born), Boot: thisBoot}
}

func started(when float64, clients ...watch.Client) watch.ClientsSeen {
	return watch.ClientsSeen{ID: id("a"), Clients: clients, At: at(when)}
}

func TestClientsAsOwners(t *testing.T) {
	s := sandbox("a", owned(client))
	docker, shell, other := proc(100, -1), proc(90, -60), proc(200, -2)
	alone := watch.Client{Process: docker}
	spoken := watch.Client{Process: docker, Speakers: []watch.Process{shell}}
	second := watch.Client{Process: other}
	none := watch.ClientsSeen{ID: id("a"), At: at(3), Detail: "nobody was looking when it was started"}
	dockerLives, dockerDies := alive(100, ticks(-1), 4), exited(100, ticks(-1), 5)
	shellLives, shellDies := alive(90, ticks(-60), 4), exited(90, ticks(-60), 6)
	otherLives, otherDies := alive(200, ticks(-2), 4), exited(200, ticks(-2), 7)
	lives := fate{Life: watch.Alive, Start: ticks(-1)}
	tell(t, []story{
		{"nobody told", s, nil, fate{}},
		{"nobody can tell", s, []watch.Event{none}, fate{Detail: true}},
		{"it is said who, and nobody has looked", s, []watch.Event{started(3, alone)}, fate{Detail: true}},
		{"lives", s, []watch.Event{started(3, alone), dockerLives}, lives},
		{"dies", s, []watch.Event{started(3, alone), dockerLives, dockerDies}, fate{Life: watch.Exited, Start: ticks(-1), ExitedAt: at(5)}},
		{"was dead before anybody looked", s, []watch.Event{started(3, alone), nobody(100, 4)}, fate{Life: watch.Exited, Start: ticks(-1), ExitedAt: at(4)}},
		{"its PID went to another", s, []watch.Event{started(3, alone), alive(100, ticks(60), 61)}, fate{Life: watch.Exited, Start: ticks(-1), ExitedAt: at(61)}},
		{"an earlier holder of its PID is told of late", s, []watch.Event{started(3, alone), dockerLives, exited(100, ticks(-60), 5), alive(100, ticks(-60), 5)}, lives},
		{"another of its PID dies", s, []watch.Event{started(3, alone), dockerLives, nobody(101, 5)}, lives},
		{"a look fails", s, []watch.Event{started(3, alone), unreadable(100, 4)}, fate{Detail: true}},
		{"a failed look takes nothing back", s, []watch.Event{started(3, alone), dockerLives, unreadable(100, 5)}, lives},
		{
			"W4: a look from before its death comes after it", s,
			[]watch.Event{started(3, alone), dockerDies, dockerLives},
			fate{Life: watch.Exited, Start: ticks(-1), ExitedAt: at(5)},
		},

		{"R1: it lives, and nobody has looked who speaks to it", s, []watch.Event{started(3, spoken), dockerLives}, fate{Detail: true}},
		{"it lives, and who speaks to it too", s, []watch.Event{started(3, spoken), dockerLives, shellLives}, lives},
		{
			"who speaks to it is dead", s,
			[]watch.Event{started(3, spoken), dockerLives, shellLives, shellDies},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(6)},
		},
		{
			"who speaks to it is dead, and nobody knows of itself", s,
			[]watch.Event{started(3, spoken), shellDies},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(6)},
		},
		{
			"both are dead: the first says when", s,
			[]watch.Event{started(3, spoken), dockerDies, shellDies},
			fate{Life: watch.Exited, Start: ticks(-1), ExitedAt: at(5)},
		},

		{"one of two lives", s, []watch.Event{started(3, alone, second), dockerLives, otherLives, otherDies}, lives},
		{"R1: one of two is dead, and nobody knows of the other", s, []watch.Event{started(3, alone, second), dockerDies}, fate{Detail: true}},
		{
			"both are dead: the last says when", s,
			[]watch.Event{started(3, alone, second), otherDies, dockerDies},
			fate{Life: watch.Exited, Start: ticks(-2), ExitedAt: at(7)},
		},
		{
			"R1: who speaks to one is dead, and the other lives", s,
			[]watch.Event{started(3, spoken, second), dockerLives, shellDies, otherLives},
			fate{Life: watch.Alive, Start: ticks(-2)},
		},
		{
			"one speaks to both, and is dead", s,
			[]watch.Event{started(3, spoken, watch.Client{Process: other, Speakers: []watch.Process{shell}}), dockerLives, otherLives, shellDies},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(6)},
		},

		{"the same is said again", s, []watch.Event{started(3, alone), dockerLives, started(5, alone)}, lives},
		{
			"one that was dead is taken back, and the other lives", s,
			[]watch.Event{started(3, alone), dockerDies, started(6, second), alive(200, ticks(-2), 7)},
			fate{Life: watch.Alive, Start: ticks(-2)},
		},
		{
			"one that lives is taken back, and the other is dead", s,
			[]watch.Event{started(3, alone, second), dockerLives, otherDies, started(8, second)},
			fate{Life: watch.Exited, Start: ticks(-2), ExitedAt: at(7)},
		},
		{
			"one more is named: what is known of the first stays so", s,
			[]watch.Event{started(3, alone), dockerDies, started(6, alone, second), otherDies},
			fate{Life: watch.Exited, Start: ticks(-2), ExitedAt: at(7)},
		},
		{
			"R1: one more is named, of whom nothing is known", s,
			[]watch.Event{started(3, alone), dockerDies, started(6, alone, second)},
			fate{Start: ticks(-1), ExitedAt: at(5), Detail: true},
		},
		{"later nobody can tell any more: it lives", s, []watch.Event{started(2, alone), dockerLives, none}, fate{Start: ticks(-1), Detail: true}},
		{
			"later nobody can tell any more: it is dead", s,
			[]watch.Event{started(2, alone), dockerDies, none},
			fate{Start: ticks(-1), ExitedAt: at(5), Detail: true},
		},
		{
			"W4: what was said before comes after what is said now", s,
			[]watch.Event{started(5, alone, second), otherLives, dockerDies, started(3, alone)},
			fate{Life: watch.Alive, Start: ticks(-2)},
		},
		{"another's clients are another's", s, []watch.Event{watch.ClientsSeen{ID: id("b"), Clients: []watch.Client{alone}, At: at(3)}, dockerDies}, fate{}},
	})
}

func TestW2WhoMayHaveStartedASandboxIsHeld(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	take := func() (hold, release []int) {
		hold, release = p.TakeClaims()
		slices.Sort(hold)
		return slices.Compact(hold), release
	}
	spoken := watch.Client{Process: proc(100, -1), Speakers: []watch.Process{proc(90, -60)}}
	for _, step := range []struct {
		why           string
		events        []watch.Event
		hold, release []int
	}{
		{"nobody is named yet", []watch.Event{seen(1, sandbox("a", owned(client)))}, nil, nil},
		{"a client, and who speaks to it", []watch.Event{started(2, spoken)}, []int{90, 100}, nil},
		{"a list finds both still open", []watch.Event{listed(3, sandbox("a", owned(client)))}, []int{90, 100}, nil},
		{"one is looked at", []watch.Event{alive(90, ticks(-60), 4), listed(5, sandbox("a", owned(client)))}, []int{100}, nil},
		{"both are", []watch.Event{alive(100, ticks(-1), 6), listed(7, sandbox("a", owned(client)))}, nil, nil},
		{"one more is named", []watch.Event{started(8, spoken, watch.Client{Process: proc(200, -2)})}, []int{200}, nil},
		{"it is gone", []watch.Event{gone(9, "a")}, nil, []int{100, 90, 200}},
	} {
		for _, ev := range step.events {
			p.Apply(ev)
		}
		hold, release := take()
		less := cmpopts.SortSlices(func(a, b int) bool { return a < b })
		if diff := cmp.Diff(step.hold, hold, cmpopts.EquateEmpty()) + cmp.Diff(step.release, release, cmpopts.EquateEmpty(), less); diff != "" {
			t.Fatalf("%s (-want +got)\n%s", step.why, diff)
		}
	}
}

// Sockets.

func heard(asked float64, owner watch.Process, life watch.Life) watch.OwnerSeen {
	ev := watch.OwnerSeen{ID: id("a"), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}, Owner: owner, Life: life, Asked: at(asked)}
	if life == watch.Unknown {
		ev.Detail = "its file cannot be reached"
	}
	return ev
}

func TestSocketsOfOwners(t *testing.T) {
	s := sandbox("a", owned(socket))
	server, child := proc(100, -60), proc(101, -50)
	listens := heard(2, server, watch.Alive)
	lives := fate{Life: watch.Alive, Start: ticks(-60)}
	tell(t, []story{
		{"nobody has looked", s, nil, fate{}},
		{"somebody listens", s, []watch.Event{listens}, lives},
		{"somebody listens, and nobody knows who", s, []watch.Event{heard(2, watch.Process{}, watch.Alive)}, fate{Life: watch.Alive}},
		{"nobody listens", s, []watch.Event{heard(2, watch.Process{}, watch.Exited)}, fate{Life: watch.Exited}},
		{"it cannot be told", s, []watch.Event{heard(2, watch.Process{}, watch.Unknown)}, fate{Detail: true}},
		{"R1: it cannot be told any more", s, []watch.Event{listens, heard(3, watch.Process{}, watch.Unknown)}, fate{Detail: true}},
		{"nobody listens any more", s, []watch.Event{listens, heard(3, watch.Process{}, watch.Exited)}, fate{Life: watch.Exited}},
		{"somebody listens again", s, []watch.Event{heard(2, watch.Process{}, watch.Exited), heard(3, server, watch.Alive)}, lives},
		{"W4: nobody listened before", s, []watch.Event{heard(3, server, watch.Alive), heard(2, watch.Process{}, watch.Exited)}, lives},
		{"W4: nobody listened before the sandbox was seen", s, []watch.Event{heard(0.9, watch.Process{}, watch.Exited)}, fate{}},
		{"another socket's are another's", s, []watch.Event{watch.OwnerSeen{ID: id("a"), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: "/run/x.sock"}, Life: watch.Exited, Asked: at(2)}}, fate{}},
		{"another sandbox's are another's", s, []watch.Event{watch.OwnerSeen{ID: id("b"), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}, Life: watch.Exited, Asked: at(2)}}, fate{}},
		{
			"R1: who listened is dead, and a child may listen still", s,
			[]watch.Event{listens, exited(100, ticks(-60), 3)},
			fate{Start: ticks(-60), Look: true, Detail: true, ExitedAt: at(3)},
		},
		{
			"who listened is dead, and a child listens", s,
			[]watch.Event{listens, exited(100, ticks(-60), 3), heard(4, child, watch.Alive)},
			fate{Life: watch.Alive, Start: ticks(-50)},
		},
		{
			"who listened is dead, and nobody listens", s,
			[]watch.Event{listens, exited(100, ticks(-60), 3), heard(4, watch.Process{}, watch.Exited)},
			fate{Life: watch.Exited, Start: ticks(-60), ExitedAt: at(3)},
		},
		{"another incarnation of its PID is dead", s, []watch.Event{listens, exited(100, ticks(-90), 3)}, lives},
		{"another process is dead", s, []watch.Event{listens, exited(101, ticks(-60), 3), nobody(102, 3)}, lives},
	})
}

func TestWhoListensIsHeldAlsoUnderAnotherRule(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a", owned(socket))))
	p.Apply(heard(2, proc(100, -60), watch.Alive))
	if hold, _ := p.TakeClaims(); !slices.Contains(hold, 100) {
		t.Errorf("asks to hold %v", hold)
	}
	p.Apply(seen(3, sandbox("a", owned(socket), func(s *watch.Sandbox) { s.Terms.Rule = "renamed" })))
	if _, release := p.TakeClaims(); len(release) > 0 {
		t.Errorf("asks to release %v", release)
	}
	p.Apply(exited(100, ticks(-60), 4))
	if got := p.Entry(id("a")).Owner(); got.Life != watch.Unknown || !got.Look {
		t.Errorf("who listened is dead, and the owner is %+v", got)
	}
	p.Apply(gone(5, "a"))
	if _, release := p.TakeClaims(); !slices.Equal(release, []int{100}) {
		t.Errorf("asks to release %v", release)
	}
}

// Groups.

func volume(name, group string) watch.Sandbox {
	return watch.Sandbox{
		ID: watch.ID{Kind: watch.Volume, Name: name}, Name: name, Created: at(0),
		Terms: watch.Terms{Rule: watch.RuleLabels, Group: group, Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: group}}},
	}
}

func grouped(name string) watch.Sandbox {
	return sandbox(name, func(s *watch.Sandbox) { s.Terms.Rule, s.Terms.Group = watch.RuleLabels, "g" })
}

func TestGroupsAsOwners(t *testing.T) {
	v := volume("v", "g")
	reaping := func(name string, when float64) watch.Event {
		return watch.StepBegun{ID: id(name), Step: watch.Remove, Reason: "because of " + name, At: at(when)}
	}
	a, b := seen(1, grouped("a")), seen(1, grouped("b"))
	noneOf := func(kind watch.Kind, asked float64) watch.Event { return watch.Listed{Kind: kind, Asked: at(asked)} }
	lives, unclear := fate{Life: watch.Alive}, fate{Detail: true}
	dead := func(when float64, name string) fate {
		return fate{Life: watch.Exited, ExitedAt: at(when), Reason: "because of " + name}
	}
	for _, test := range []struct {
		name   string
		events []watch.Event // before the volume is seen, and after
		then   []watch.Event
		want   fate
	}{
		{"no container of it was ever seen", nil, nil, unclear},
		{"a container of it is there", []watch.Event{a}, nil, lives},
		{"a container of it comes later", nil, []watch.Event{a}, lives},
		{"a container of it that has stopped is there", nil, []watch.Event{seen(1, sandbox("a", state(watch.Stopped), noInit, func(s *watch.Sandbox) { s.Terms.Group = "g" }))}, lives},
		{"its only container is being reaped", []watch.Event{a, reaping("a", 2)}, nil, lives},
		{"its only container was reaped", []watch.Event{a}, []watch.Event{reaping("a", 2), gone(3, "a")}, dead(3, "a")},
		{"its only container was reaped, and a list says so", []watch.Event{a}, []watch.Event{reaping("a", 2), listed(3)}, dead(3, "a")},
		{"its only container went by itself", []watch.Event{a}, []watch.Event{gone(3, "a")}, unclear},
		{"its only container went by itself, and a list says so", []watch.Event{a}, []watch.Event{listed(3)}, unclear},
		{
			"its only container was given up while it was reaped, and went",
			[]watch.Event{a},
			[]watch.Event{reaping("a", 2), watch.CaseDropped{ID: id("a")}, gone(3, "a")},
			unclear,
		},
		{
			"the reap of its only container was abandoned, and it went",
			[]watch.Event{a},
			[]watch.Event{reaping("a", 2), watch.CaseAbandoned{ID: id("a")}, gone(3, "a")},
			unclear,
		},
		{"one of two was reaped", []watch.Event{a, b}, []watch.Event{reaping("a", 2), gone(3, "a")}, lives},
		{
			"two were reaped: the last says why",
			[]watch.Event{a, b},
			[]watch.Event{reaping("a", 2), reaping("b", 2), gone(3, "b"), gone(4, "a")},
			dead(4, "a"),
		},
		{"one was reaped, and then the other went by itself", []watch.Event{a, b}, []watch.Event{reaping("a", 2), gone(3, "a"), gone(4, "b")}, dead(3, "a")},
		{"one went by itself, and then the other was reaped", []watch.Event{a, b}, []watch.Event{gone(3, "b"), reaping("a", 2), gone(4, "a")}, dead(4, "a")},
		{
			"a container of it appears again",
			[]watch.Event{a},
			[]watch.Event{reaping("a", 2), gone(3, "a"), seen(4, grouped("b"))},
			fate{Life: watch.Alive, Reason: "because of a"},
		},
		{"it was reaped before the volume was seen", []watch.Event{a, reaping("a", 2), gone(3, "a")}, nil, dead(3, "a")},
		{
			"it was reaped before the volume was seen, and lists from before came meanwhile",
			[]watch.Event{a, reaping("a", 2), gone(3, "a"), noneOf(watch.Volume, 2.5), noneOf(watch.Network, 2.5), listed(2.5)},
			nil, dead(3, "a"),
		},
		{
			"it was reaped before the volume was seen, and there was no list of networks since",
			[]watch.Event{a, reaping("a", 2), gone(3, "a"), noneOf(watch.Volume, 4), listed(4)},
			nil, dead(3, "a"),
		},
		{
			"it was reaped before the volume was seen, and there was no list of volumes since",
			[]watch.Event{a, reaping("a", 2), gone(3, "a"), noneOf(watch.Network, 4), listed(4)},
			nil, dead(3, "a"),
		},
		{
			"it was reaped, and lists without the volume came since: this one is another's, made later",
			[]watch.Event{a, reaping("a", 2), gone(3, "a"), noneOf(watch.Volume, 4), noneOf(watch.Network, 4)},
			nil, unclear,
		},
		{"another group's was reaped", []watch.Event{seen(1, sandbox("a", func(s *watch.Sandbox) { s.Terms.Group = "h" })), reaping("a", 2), gone(3, "a")}, nil, unclear},
		{"what is no container does not hold it", []watch.Event{watch.SandboxSeen{Sandbox: volume("w", "g"), Asked: at(1)}}, nil, unclear},
		{
			"R8: its container is on record, and gone",
			[]watch.Event{watch.CaseResumed{Sandbox: grouped("a"), Reason: "because of a", Begun: at(-60)}, listed(3)},
			nil, dead(3, "a"),
		},
		{
			"R8: its container is on record, and there", nil,
			[]watch.Event{watch.CaseResumed{Sandbox: grouped("a"), Reason: "because of a", Begun: at(-60)}, listed(3, grouped("a"))},
			lives,
		},
		{
			"its container is not watched any more while it is reaped",
			[]watch.Event{a, reaping("a", 2)},
			[]watch.Event{watch.Listed{Kind: watch.Container, Asked: at(3), Unwatched: []watch.ID{id("a")}}},
			lives,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			for _, ev := range test.events {
				p.Apply(ev)
			}
			p.Apply(watch.SandboxSeen{Sandbox: v, Asked: at(5)})
			settleAll(p)
			var before, after fate
			for _, ev := range test.then {
				before = fateOf(p.Entry(v.ID))
				p.Apply(ev)
				after = fateOf(p.Entry(v.ID))
				if due := slices.Contains(p.Due(), v.ID); before != after && !due {
					t.Errorf("%T changes the owner of the volume, and it is not due", ev)
				}
				p.Settle(v.ID, time.Time{})
			}
			if diff := cmp.Diff(test.want, fateOf(p.Entry(v.ID))); diff != "" {
				t.Errorf("owner (-want +got)\n%s", diff)
			}
		})
	}
}

// Of several owners one decides: whoever lives, else whoever cannot be judged, else whoever died last.
func TestWhichOfSeveralOwnersDecides(t *testing.T) {
	claims := owned(process(100, 0, ""), container("boss"), agentd)
	for name, test := range map[string]struct {
		events []watch.Event
		want   watch.ClaimKind
	}{
		"nothing is known: the first":           {nil, watch.ProcessClaim},
		"one lives":                             {[]watch.Event{boss("B", -60, 2, watch.Alive)}, watch.ContainerClaim},
		"one lives, and one is dead":            {[]watch.Event{nobody(100, 2), counted(2, agent(7, -60))}, watch.ProgramClaim},
		"two live: the first":                   {[]watch.Event{boss("B", -60, 2, watch.Alive), counted(2, agent(7, -60))}, watch.ContainerClaim},
		"one is dead, and of two nothing known": {[]watch.Event{nobody(100, 2)}, watch.ContainerClaim},
		"two are dead":                          {[]watch.Event{nobody(100, 2), counted(2)}, watch.ContainerClaim},
		"all are dead: the last": {
			[]watch.Event{alive(100, ticks(-60), 2), exited(100, ticks(-60), 4), since(boss("B", -60, 9, watch.Exited), 5), counted(2, agent(7, -60)), died(3, agent(7, -60))},
			watch.ContainerClaim,
		},
		"all are dead, and nobody saw it: the first": {[]watch.Event{nobody(100, 2), noBoss(2), counted(2)}, watch.ProcessClaim},
		"all are dead, and one was seen to die": {
			[]watch.Event{nobody(100, 2), noBoss(2), counted(2, agent(7, -60)), died(3, agent(7, -60))}, watch.ProgramClaim,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(seen(1, sandbox("a", claims)))
			for _, ev := range test.events {
				p.Apply(ev)
			}
			if got := p.Entry(id("a")).Owner().Claim.Kind; got != test.want {
				t.Errorf("the %s decides, want the %s", got, test.want)
			}
		})
	}
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a")))
	if got := p.Entry(id("a")).Owner(); got.Claim != (watch.Claim{}) || got.Life != watch.Unknown {
		t.Errorf("W1: without any owner %+v decides", got)
	}
}

// The rules may change at any time, and labels cannot.

func renamed(s watch.Sandbox, rule string) watch.Sandbox {
	s.Terms.Rule = rule
	return s
}

func TestNewRulesForWhatIsKnown(t *testing.T) {
	lives := alive(100, ticks(-60), 2)
	byLabel := sandbox("a", owner("100"))
	byLabel.Terms.Rule = watch.RuleLabels
	for name, test := range map[string]struct {
		sandbox watch.Sandbox
		events  []watch.Event
		want    []watch.Owner // claim, life and process of each
	}{
		"another program": {
			sandbox("a", owned(agentd)),
			[]watch.Event{counted(2, agent(7, -60)), seen(3, sandbox("a", owned(program("other"))))},
			[]watch.Owner{{Claim: program("other")}},
		},
		"another program, which was counted": {
			sandbox("a", owned(program("other"))),
			[]watch.Event{counted(2, agent(7, -60)), seen(3, sandbox("a", owned(agentd)))},
			[]watch.Owner{{Claim: agentd, Life: watch.Alive, Process: proc(7, -60)}},
		},
		"one owner more: what is known of the other stays": {
			sandbox("a", owned(process(100, 0, ""))),
			[]watch.Event{lives, seen(3, sandbox("a", owned(agentd, process(100, 0, ""))))},
			[]watch.Owner{{Claim: agentd}, {Claim: process(100, 0, ""), Life: watch.Alive, Process: proc(100, -60)}},
		},
		"one owner less: what is known of the other stays": {
			sandbox("a", owned(agentd, process(100, 0, ""))),
			[]watch.Event{lives, counted(2), seen(3, sandbox("a", owned(process(100, 0, ""))))},
			[]watch.Owner{{Claim: process(100, 0, ""), Life: watch.Alive, Process: proc(100, -60)}},
		},
		"the rule has another name": {
			sandbox("a", owned(process(100, 0, ""))),
			[]watch.Event{lives, seen(3, renamed(sandbox("a", owned(process(100, 0, ""))), "other"))},
			[]watch.Owner{{Claim: process(100, 0, ""), Life: watch.Alive, Process: proc(100, -60)}},
		},
		"W4: an older look is under older rules": {
			sandbox("a", owned(agentd)),
			[]watch.Event{seen(0.5, sandbox("a", owned(program("other"))))},
			[]watch.Owner{{Claim: agentd}},
		},
		"nobody owns it any more": {
			sandbox("a", owned(agentd)),
			[]watch.Event{counted(2, agent(7, -60)), seen(3, sandbox("a", owned()))},
			nil,
		},
		"somebody owns what only had a time to live": {
			sandbox("a", func(s *watch.Sandbox) { s.Terms.Rule, s.Terms.TTL = watch.RuleLabels, time.Hour }),
			[]watch.Event{seen(3, sandbox("a", owned(agentd)))},
			[]watch.Owner{{Claim: agentd}},
		},
		"W2: the label of a sandbox says once and for all": {
			byLabel,
			[]watch.Event{lives, seen(3, sandbox("a", owner("200"))), nobody(200, 4)},
			[]watch.Owner{{Claim: process(100, 0, ""), Life: watch.Alive, Process: proc(100, -60)}},
		},
		"W2: whatever a rule says": {
			byLabel,
			[]watch.Event{lives, seen(3, sandbox("a", owned(agentd))), counted(4)},
			[]watch.Owner{{Claim: process(100, 0, ""), Life: watch.Alive, Process: proc(100, -60)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(seen(1, test.sandbox))
			for _, ev := range test.events {
				p.Apply(ev)
			}
			var got []watch.Owner
			for _, o := range p.Entry(id("a")).Owners {
				got = append(got, watch.Owner{Claim: o.Claim, Life: o.Life, Process: o.Process})
			}
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreUnexported(watch.Owner{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestNewRulesHoldAndReleaseOwners(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(listed(1, sandbox("a", owned(process(100, 0, ""))), sandbox("b", owned(process(101, 0, "")))))
	p.TakeClaims()
	p.Apply(listed(2, sandbox("a", owned(process(200, 0, ""))), sandbox("b", owned(process(101, 0, ""), agentd))))
	hold, release := p.TakeClaims()
	slices.Sort(hold)
	if hold = slices.Compact(hold); !slices.Equal(hold, []int{101, 200}) || !slices.Equal(release, []int{100}) {
		t.Errorf("asks to hold %v and to release %v", hold, release)
	}
	if diff := cmp.Diff(map[string]int{"rule": 2}, p.Rules()); diff != "" {
		t.Errorf("sandboxes by rule (-want +got)\n%s", diff)
	}
	p.Apply(listed(3, renamed(sandbox("a", owned(agentd)), "other"), sandbox("b", owned(agentd))))
	if diff := cmp.Diff(map[string]int{"rule": 1, "other": 1}, p.Rules()); diff != "" {
		t.Errorf("sandboxes by rule (-want +got)\n%s", diff)
	}
	p.Apply(listed(4))
	if diff := cmp.Diff(map[string]int{}, p.Rules()); diff != "" {
		t.Errorf("sandboxes by rule (-want +got)\n%s", diff)
	}
}

func unwatched(asked float64, names ...string) watch.Listed {
	ev := watch.Listed{Kind: watch.Container, Asked: at(asked)}
	for _, name := range names {
		ev.Unwatched = append(ev.Unwatched, id(name))
	}
	return ev
}

func TestWhatIsNotWatchedAnyMore(t *testing.T) {
	begun := watch.StepBegun{ID: id("a"), Step: watch.Kill, Reason: "owner-exited", At: at(2)}
	for name, test := range map[string]struct {
		events []watch.Event
		left   bool
		told   int // entries that were forgotten, by the last event
	}{
		"is forgotten, and that is told":                {[]watch.Event{unwatched(3, "a")}, false, 1},
		"W4: is not forgotten by a list from before":    {[]watch.Event{unwatched(0.5, "a")}, true, 0},
		"R5: stays while it is reaped":                  {[]watch.Event{begun, unwatched(3, "a")}, true, 0},
		"R5: stays while it is reaped, list after list": {[]watch.Event{begun, unwatched(3, "a"), unwatched(4, "a")}, true, 0},
		"is gone when it does not exist any more":       {[]watch.Event{begun, unwatched(3, "a"), unwatched(4)}, false, 1},
		"is gone when it is removed":                    {[]watch.Event{begun, unwatched(3, "a"), gone(4, "a")}, false, 1},
		"is forgotten when its reap is abandoned":       {[]watch.Event{begun, unwatched(3, "a"), watch.CaseAbandoned{ID: id("a")}, unwatched(4, "a")}, false, 1},
		"stays while it is on record": {
			[]watch.Event{watch.CaseResumed{Sandbox: sandbox("a"), Reason: "owner-exited", Begun: at(-60)}, unwatched(3, "a")}, true, 0,
		},
		"is not known, and stays so": {[]watch.Event{gone(2, "a"), unwatched(3, "a", "b")}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := watch.NewPicture(thisBoot)
			p.Apply(seen(1, sandbox("a", owner("100"))))
			var told []*watch.Entry
			for _, ev := range test.events {
				told = p.Apply(ev)
			}
			if left := p.Entry(id("a")) != nil; left != test.left || len(told) != test.told || p.Entry(id("b")) != nil {
				t.Errorf("left: %v, want %v; told: %v", left, test.left, told)
			}
		})
	}
}

func TestW7ADropLastsThoughNobodyWatches(t *testing.T) {
	p := watch.NewPicture(thisBoot)
	p.Apply(seen(1, sandbox("a", owner("100"))))
	p.Apply(watch.CaseDropped{ID: id("a")})
	for _, step := range []struct {
		event watch.Event
		want  bool
	}{
		{unwatched(2, "a"), true},
		{unwatched(3, "a", "b"), true},
		{listed(4, sandbox("a", owner("100"))), true},
		{unwatched(5, "a"), true},
		{unwatched(6, "b"), false},
	} {
		p.Apply(step.event)
		if got := p.Dropped(id("a")); got != step.want {
			t.Fatalf("%+v: dropped: %v", step.event, got)
		}
	}
}
