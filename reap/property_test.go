//go:build !race

package reap_test

import (
	"flag"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// crowd is the cast of the property tests: many owners, sandboxes of every sort, and messages that overtake each other.
var crowd = func() cast {
	c := cast{pids: 6, lives: 4, bosses: 2, faults: always, late: 8, runs: []int{0, 0, 1, 1, 2, 0}}
	for p := range c.pids {
		c.boxes = append(
			c.boxes, part{kind: byPID, who: p}, part{kind: byPID, who: p, unheld: true, created: -time.Second},
			part{kind: byStart, who: p, ttl: p == 0}, part{kind: byBoot, who: p, asks: true},
		)
	}
	for b := range c.bosses {
		c.boxes = append(c.boxes, part{kind: byContainer, who: b}, part{kind: byContainer, who: b, asks: true}, part{kind: byContainer, who: b, ttl: true})
	}
	c.boxes = append(
		c.boxes, part{program: 1}, part{program: 1, unheld: true}, part{program: 1, unheld: true, existed: true, created: -time.Second},
		part{program: 2}, part{program: 2, asks: true}, part{program: 2, ttl: true}, part{program: 1, keep: true},
		part{kind: byPID, who: 0, program: 1}, part{kind: byStart, who: 2, program: 1}, part{kind: byContainer, who: 0, program: 2},
		part{kind: byClient, who: 0, speaker: 6}, part{kind: byClient, who: 1, decoy: 6}, part{kind: byClient, who: 5, speaker: 1, decoy: 2, program: 2},
	)
	return cast{
		pids: c.pids, lives: c.lives, bosses: c.bosses, faults: c.faults, late: c.late, runs: c.runs,
		boxes: append(
			c.boxes, part{ttl: true}, part{ttl: true, keep: true}, part{maxAge: true}, part{maxAge: true}, part{maxAge: true},
			part{kind: byPID, keep: true}, part{kind: byPID, fault: true}, part{kind: byOtherBoot}, part{},
		),
	}
}()

// often says how much likelier each move is than the rarest. What goes wrong is rarer than what goes on.
var often = [verbs]int{
	nothing: 1, tick: 6, create: 16, dies: 3, reborn: 3, bossStops: 2, bossStarts: 2, bossGoes: 1, bossNew: 1, ends: 2, vanishes: 1,
	blur: 1, wedge: 1, engineGoes: 1, connect: 8, unshare: 1, look: 24, lookBoss: 4, scan: 6, scanFails: 1, witness: 6, notice: 8, count: 8, initDied: 4,
	deliver: 12, repeat: 3, lose: 3, flood: 1, recorded: 24, removed: 24, dropped: 2, restart: 1,
}

var likely = func() (all []verb) {
	for v, n := range often {
		for range n {
			all = append(all, verb(v))
		}
	}
	return all
}()

// histories is how many are tried; each has some 300 events.
func histories() string {
	switch proof() {
	case "full":
		return "40000"
	case "short":
		return "400"
	default:
		return "6000"
	}
}

// TestHistories plays long random histories of a crowd, and after each its fair end.
func TestHistories(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	if before := checks.Value.String(); before == checks.DefValue {
		if err := checks.Value.Set(histories()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = checks.Value.Set(before) })
	}
	start := time.Now()
	var events, played atomic.Int64
	drawn := rapid.Custom(func(t *rapid.T) move {
		return move{
			verb: likely[rapid.IntRange(0, len(likely)-1).Draw(t, "verb")],
			who:  rapid.IntRange(0, len(crowd.boxes)-1).Draw(t, "who"),
			how:  max(rapid.IntRange(0, 4).Draw(t, "how")-3, 0),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		h := newHost(&crowd)
		h.story = &strings.Builder{}
		for _, m := range rapid.SliceOfN(drawn, 300, 600).Draw(t, "moves") {
			who, how := h.span(m.verb)
			if m.who, m.how = m.who%max(who, 1), m.how%max(how, 1); !h.can(m) {
				continue
			}
			h.do(m)
			events.Add(1)
			if h.wrong != "" {
				t.Fatal(h.story)
			}
			// All moves of one beat happen within half a second.
			if h.now.Sub(h.now.Truncate(beat)) > 400*time.Millisecond {
				h.do(move{tick, 0, 0})
			}
		}
		h.settle(func() bool { return false })
		if h.wrong != "" {
			t.Fatal(h.story)
		}
		played.Add(1)
	})
	t.Logf("%d events in %d histories, %.1f s", events.Load(), played.Load(), time.Since(start).Seconds())
}
