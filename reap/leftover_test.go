package reap_test

import (
	"testing"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// This file is about what the owners of a rule leave in the file system. It may be what tells of a container of the rule
// whether its owner lives, as a folder with a socket does: once it is gone, nobody can tell any more.

func withFiles(c *reap.Config) {
	c.Platforms[watch.File] = c.Platforms[watch.Container]
	c.Inbox.Post(watch.SourceBack{Source: "files", Kind: watch.File, At: time.Now()}, watch.NamespaceSeen{Kind: watch.File, Shared: true})
}

// leftover is a folder that an agentd made.
func leftover(name string) watch.Sandbox {
	s := born(name, nil, stopped, ownedBy(aProgram))
	s.ID.Kind, s.Terms.Rule = watch.File, "rule"
	return s
}

// agent is a container of an agentd, which listens on a socket for it.
func agent(name string, edits ...func(*watch.Sandbox)) watch.Sandbox {
	s := born(name, nil, ownedBy(aProgram, aSocket))
	s.Terms.Rule = "rule"
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

// heard is a look at the socket of a container.
func heard(name string, life watch.Life) watch.Event {
	return watch.OwnerSeen{ID: id(name), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: "/run/agent.sock"}, Life: life, Asked: time.Now()}
}

// counted is a complete look at processes, which finds these of the program.
func counted(members ...watch.Member) watch.Event {
	return watch.ProgramListed{Program: "agentd", Asked: time.Now(), Members: members}
}

func TestALeftoverGoesAfterTheContainersThatItMayTellOf(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(withFiles), func(s *stand) {
		polite := agent("a", func(s *watch.Sandbox) { s.Terms.StopTimeout = 5 * time.Second })
		s.run(polite, leftover("f"))
		s.pass(time.Minute)
		old := agentd
		old.Born = time.Now().Add(-time.Hour)
		s.inbox.Post(heard("a", watch.Alive), counted(old))
		s.pass(time.Minute)
		s.did()
		s.inbox.Post(heard("a", watch.Exited), counted())
		s.pass(4 * time.Second)
		s.did("2m0s terminate a")
		docket.holds() // a crash here must leave what it takes to judge a
		s.pass(time.Minute)
		s.did("2m0s terminate a", "2m5s kill a", "2m5.042s remove a", "2m5.072s remove f")
		docket.holds()
	})
}

// What nobody can tell of is kept, and so is what may tell of it one day.
func TestALeftoverIsKeptWithAContainerOfWhichNobodyCanTell(t *testing.T) {
	onStand(t, withFiles, func(s *stand) {
		s.run(agent("a"), leftover("f"))
		s.pass(time.Minute)
		s.inbox.Post(heard("a", watch.Unknown), counted())
		s.pass(time.Hour)
		s.did()
		s.inbox.Post(heard("a", watch.Exited))
		s.pass(time.Hour)
		s.did("1h1m0s kill a", "1h1m0.042s remove a", "1h1m0.072s remove f")
	})
}

// The containers of the living, those of other rules, and those that no socket is asked for, have nothing to do with it.
func TestALeftoverGoesBesideOtherContainers(t *testing.T) {
	onStand(t, withFiles, func(s *stand) {
		s.run(leftover("f"), agent("other", ownedBy(aSocket), func(s *watch.Sandbox) { s.Terms.Rule = "another" }),
			agent("kept", ownedBy(aProgram, aPID), func(s *watch.Sandbox) { s.Terms.Keep = true }))
		s.pass(time.Minute)
		s.run(agent("a"))
		s.inbox.Post(heard("a", watch.Alive), counted())
		s.pass(time.Minute)
		s.did("1m0s remove f")
	})
}
