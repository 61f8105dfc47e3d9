//go:build !race

package reap_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// This file is a model of everything around the pure core: the world with its truth, the ways in which news of it
// arrive or do not, and what [reap.Loop] does with a plan. Its second opinion is naive on purpose: it looks at the truth
// and never at the picture. The walk tries every history of a small cast, the property tests long ones of a large cast.

// Time passes in beats. All that the core waits for lies well between two beats, and all moves of one beat happen within
// half a second, so that nothing depends on where in a beat something happened but its order.
const (
	beat        = 4 * time.Second
	blink       = time.Millisecond
	modelSlack  = 2 * time.Second // what the picture allows for clocks that disagree
	modelRecord = 5 * time.Second // how long a removal waits for its record
	modelAge    = 6 * time.Second // a time to live or a greatest age: over at the second beat
)

// modelPolicy has its first retry at the next beat and later ones at the beat after that.
var modelPolicy = reap.Policy{Grace: 2 * time.Second, Attempts: 2, Base: 3 * time.Second, Cap: 6 * time.Second, Alarm: 3, Burst: 1}

// A cast is who plays.
type cast struct {
	pids    int // numbers that processes may have; they begin with one alive each
	lives   int // processes that each number may have had in the end
	bosses  int // names that containers which own sandboxes may have
	boxes   []part
	runs    []int // which program each of the pids runs, from 1; none: no program
	faults  int   // how often in one history something may go wrong; -1: always
	late    int   // messages that may be under way at a time
	foreign bool
	without []verb // moves that nobody makes, where the size of the walk demands it
	whole   bool   // the sandboxes are there and seen when the walk begins
}

// A part is what a sandbox says of itself, and how.
type part struct {
	kind    claimed
	who     int  // the index of its PID or boss
	keep    bool // pinned
	fault   bool // with a malformed label
	ttl     bool
	maxAge  bool
	asks    bool          // it is asked to end before it is killed
	unheld  bool          // its init cannot be held
	created time.Duration // how far the engine's clock is off

	program int  // by its rule, any older process of this program may own it, besides what kind says; 0: none
	existed bool // it is known by the kernel's clock when it existed
	speaker int  // of a client: whoever speaks to it, as an index from 1; 0: nobody
	decoy   int  // who may have been the client as well, as an index from 1; 0: nobody
}

type claimed uint8

const (
	nobody      claimed = iota
	byPID               // watcher.owner=PID
	byStart             // watcher.owner=PID:START
	byBoot              // watcher.owner=PID:START:BOOT
	byOtherBoot         // of an earlier boot
	byContainer         // watcher.owner=container:NAME
	byClient            // a rule says that its client owns it
)

// A host is the state of the model.
type host struct {
	cast *cast
	now  time.Time

	// The truth.
	pids   []pidTruth
	bosses []bossTruth
	boxes  []boxTruth
	up     bool // the engine
	faults int  // that may still happen

	// What the adapters and the daemon around the core hold.
	connected bool
	parted    bool // the engine has gone away once
	shared    bool // the daemon was told so
	letters   []letter
	pic       *watch.Picture
	rescan    bool
	counting  bool        // a look at all processes was asked for
	listed    time.Time   // when the latest list that arrived was asked for
	counted   []time.Time // the same of each program

	wrong string // the first promise that was broken
	story *strings.Builder
}

type pidTruth struct {
	births  []time.Time // of each process that had the number
	alive   bool        // the last one
	blurred bool        // looks fail

	held   int // of the process watch: which life, from 1; 0: none
	buried bool
}

type bossTruth struct {
	n       int // containers that had the name
	exists  bool
	runs    bool
	created time.Time
	down    time.Time // since when it does not run
	known   int       // which of them the adapter has looked at, a bit each
}

type boxTruth struct {
	made, exists bool
	runs         bool // as the engine has it
	dead         bool // its init is
	wedged       bool // signals fail
	created      time.Time
	init         watch.Process
	owner        int // which life of its PID or boss; 0: none
	dropped      bool
	lapsed       time.Time // when its owner, a container, had been down for the grace; zero: not, or it runs again and that is known
	bereft       time.Time // since when no process of its program lives that is older; zero: one does
	clients      []watch.Client
	named        bool // the adapter knows them
	unclear      bool // the engine went away, and may have ended them

	condemned bool   // a step was ordered, rightly
	told      bool   // the daemon knows that it was dropped
	open      bool   // the daemon has a case
	owned     string // the owner that the case names
	recording bool   // a Record step is under way
	recordAt  time.Time
	removing  bool // a Remove step is under way
	recorded  bool // a Record step has ended in this life of the daemon, or the case was taken up
	docket    *reap.Case
	closed    *reap.Case // a record whose removal was not synced
}

// A letter is news under way.
type letter struct {
	text   string
	about  verb
	who    int
	asked  time.Time
	since  time.Time // a date in it that matters
	life   int
	events []watch.Event
}

// epoch is a beat.
var epoch = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

func newHost(c *cast) *host {
	h := &host{
		cast: c, now: epoch, faults: c.faults, up: true,
		pids: make([]pidTruth, c.pids), bosses: make([]bossTruth, c.bosses), boxes: make([]boxTruth, len(c.boxes)), counted: make([]time.Time, c.programs()),
	}
	h.pic = watch.NewPicture(thisBoot)
	for p := range h.pids {
		h.pids[p] = pidTruth{births: []time.Time{h.now.Add(blink)}, alive: true}
	}
	for b := range h.bosses {
		h.bosses[b] = bossTruth{n: 1, exists: true, runs: true, created: h.now}
	}
	h.now = h.now.Add(2 * blink)
	if c.whole {
		h.do(move{connect, 0, 0})
		for b := range h.boxes {
			h.do(move{create, b, 0})
		}
		h.do(move{scan, 0, 0})
	}
	return h
}

func (h *host) say(format string, args ...any) {
	if h.story != nil {
		fmt.Fprintf(h.story, format, args...)
	}
}

func (h *host) accuse(format string, args ...any) {
	if h.wrong == "" {
		h.wrong = fmt.Sprintf(format, args...)
		h.say("  WRONG: %s\n", h.wrong)
	}
}

func boxName(b int) string  { return "box" + string(rune('A'+b)) }
func boxID(b int) watch.ID  { return watch.ID{Kind: watch.Container, Name: boxName(b)} }
func boxOf(id watch.ID) int { return int(id.Name[3] - 'A') }
func pidOf(p int) int       { return 100 + p }
func bossName(b int) string { return "boss" + string(rune('a'+b)) }
func bossID(b, n int) string {
	return "id-" + string(rune('a'+b)) + string(rune('0'+n%10)) + string(rune('0'+n/10))
}

// programs is how many there are.
func (c *cast) programs() int { return slices.Max(append([]int{0}, c.runs...)) }

// runsOf is which program a process runs.
func (c *cast) runsOf(p int) int {
	if p >= len(c.runs) {
		return 0
	}
	return c.runs[p]
}

func programName(n int) string { return fmt.Sprintf("program%d", n) }

// process is one life of a number. Its start counts milliseconds, the unit does not matter to the core.
func (h *host) process(p, life int) watch.Process {
	return watch.Process{PID: pidOf(p), Start: startAt(h.pids[p].births[life-1]), Boot: thisBoot}
}

func startAt(t time.Time) uint64 { return 1_000_000 + uint64(t.Sub(epoch)/blink) }

// terms are what the labels of a sandbox say.
func (h *host) terms(b int) watch.Terms {
	part, box := h.cast.boxes[b], &h.boxes[b]
	t := watch.Terms{Keep: part.keep}
	if part.fault {
		t.Fault = "watcher.ttl: soon"
	}
	if part.ttl {
		t.TTL = modelAge
	}
	if part.maxAge {
		t.MaxAge = modelAge
	}
	if part.asks {
		t.StopTimeout = 2 * time.Second
	}
	switch part.kind {
	case byPID:
		t.Owners = []watch.Claim{{Kind: watch.ProcessClaim, Process: watch.Process{PID: pidOf(part.who)}}}
	case byStart, byBoot, byOtherBoot:
		t.Owners = []watch.Claim{{Kind: watch.ProcessClaim, Process: h.process(part.who, box.owner)}}
		switch part.kind {
		case byStart:
			t.Owners[0].Process.Boot = ""
		case byOtherBoot:
			t.Owners[0].Process.Boot = otherBoot
		}
	case byContainer:
		t.Owners = []watch.Claim{{Kind: watch.ContainerClaim, Container: bossName(part.who)}}
	case byClient:
		t.Owners = []watch.Claim{{Kind: watch.ClientClaim}}
	}
	if part.program > 0 {
		t.Owners = append(t.Owners, watch.Claim{Kind: watch.ProgramClaim, Program: programName(part.program)})
	}
	if part.ruled() {
		t.Rule = ruleName
	}
	return t
}

// ruled reports whether the owner of a sandbox is what a rule says.
func (p part) ruled() bool { return p.program > 0 || p.kind == byClient }

const ruleName = "rule"

// What can happen.

type verb uint8

const (
	nothing verb = iota
	tick
	create // a sandbox, by its owner or in the name of one just dead
	dies
	reborn // the number goes to another process
	bossStops
	bossStarts
	bossGoes
	bossNew  // another container has the name
	ends     // a sandbox's code, by itself, or as the engine learns
	vanishes // a sandbox, by itself
	blur     // looks at a PID fail, or no longer
	wedge    // signals to a sandbox fail, or no longer
	engineGoes
	connect // the engine is there, perhaps again
	unshare // PIDs are said not to mean the same any more
	look    // at a sandbox
	lookBoss
	scan
	scanFails
	witness // the death of an owner
	notice  // a process of a program appears or dies
	count   // all processes are looked at
	initDied
	deliver // a message that was under way
	repeat  // the same, and it will come again
	lose
	flood // all that is under way at once
	recorded
	removed
	dropped // by an operator
	restart
	verbs
)

var verbNames = [verbs]string{
	"nothing", "tick", "create", "die", "reborn", "boss stops", "boss starts", "boss goes", "boss anew", "ends", "vanishes", "blur", "wedge",
	"engine goes", "connect", "unshare", "look", "look at boss", "scan", "scan fails", "witness", "notice", "count", "init died", "deliver", "repeat", "lose", "flood",
	"recorded", "removed", "drop", "restart",
}

// A move is one thing that happens. Its how is 0 where all goes well: at once, with success.
type move struct {
	verb verb
	who  int
	how  int
}

func (m move) String() string { return fmt.Sprintf("%s %d/%d", verbNames[m.verb], m.who, m.how) }

// span says how many values who and how can have.
func (h *host) span(v verb) (who, how int) {
	switch v {
	case nothing, tick, engineGoes, connect, unshare, scanFails, flood:
		return 1, 1
	case dies, reborn, blur:
		return len(h.pids), 1
	case witness, notice:
		return len(h.pids), 2
	case count:
		return 1, 3
	case bossStops, bossStarts, bossGoes, bossNew:
		return len(h.bosses), 1
	case lookBoss:
		return len(h.bosses), 2
	case create, ends, vanishes, wedge:
		return len(h.boxes), 1
	case look, initDied, recorded, removed, dropped:
		return len(h.boxes), 2
	case scan, restart:
		return 1, 2
	case deliver, repeat, lose:
		return h.cast.late, 1
	}
	return 0, 0
}

// faulty reports whether m is one of the things that go wrong.
func (m move) faulty() bool {
	switch m.verb {
	case blur, wedge, engineGoes, unshare, scanFails, repeat, dropped, restart:
		return true
	default:
		return m.how > 0
	}
}

// can reports whether m could happen now.
func (h *host) can(m move) bool {
	if m.faulty() && h.faults == 0 || slices.Contains(h.cast.without, m.verb) {
		return false
	}
	talks := h.connected && h.up
	lateOK := m.how == 0 || len(h.letters) < h.cast.late
	switch m.verb {
	case nothing:
		return false
	case tick:
		return true
	case dies:
		return h.pids[m.who].alive
	case reborn:
		return !h.pids[m.who].alive && len(h.pids[m.who].births) < h.cast.lives
	case blur:
		return true
	case bossStops:
		return h.bosses[m.who].runs
	case bossStarts:
		return h.bosses[m.who].exists && !h.bosses[m.who].runs
	case bossGoes:
		return h.bosses[m.who].exists
	case bossNew:
		return !h.bosses[m.who].exists && h.bosses[m.who].n < h.cast.lives
	case create:
		return !h.boxes[m.who].made
	case ends:
		return h.boxes[m.who].exists && h.boxes[m.who].runs
	case vanishes:
		return h.boxes[m.who].exists
	case wedge:
		return h.boxes[m.who].exists && h.boxes[m.who].runs
	case engineGoes:
		return talks
	case connect:
		return !h.connected
	case unshare:
		return talks && h.shared
	case look:
		return talks && h.boxes[m.who].made && lateOK
	case lookBoss:
		return talks && lateOK
	case scan:
		return talks && lateOK
	case scanFails:
		return true
	case witness:
		p := &h.pids[m.who]
		return p.held > 0 && !p.buried && !(p.alive && p.held == len(p.births)) && lateOK
	case notice:
		// Of one that cannot be read nothing is told before a look at all.
		return h.cast.runsOf(m.who) > 0 && !(h.pids[m.who].alive && h.pids[m.who].blurred) && lateOK
	case count:
		return h.counting && (m.how != 1 || lateOK)
	case initDied:
		b := &h.boxes[m.who]
		return b.exists && b.dead && !h.cast.boxes[m.who].unheld && lateOK
	case deliver, repeat, lose:
		return m.who < len(h.letters)
	case flood:
		return len(h.letters) > 1
	case recorded:
		return h.boxes[m.who].recording
	case removed:
		return h.boxes[m.who].removing && (m.how == 1 || talks)
	case dropped:
		// What an operator can drop is on record and has failed.
		b := &h.boxes[m.who]
		return b.docket != nil && b.docket.Attempts > 0 && !b.dropped
	case restart:
		return m.how == 0 || slices.ContainsFunc(h.boxes, func(b boxTruth) bool { return b.closed != nil })
	}
	return false
}

var errModel = errors.New("device or resource busy")

// do makes a move.
func (h *host) do(m move) {
	if m.faulty() && h.faults > 0 {
		h.faults--
	}
	h.now = h.now.Add(blink)
	h.say("%s  %s\n", h.now.Sub(epoch), h.describe(m))
	switch m.verb {
	case tick:
		h.tick()
	case dies:
		h.pids[m.who].alive = false
		h.bereave()
	case reborn:
		p := &h.pids[m.who]
		p.births, p.alive = append(slices.Clip(p.births), h.now), true
	case blur:
		h.pids[m.who].blurred = !h.pids[m.who].blurred
	case bossStops:
		h.bosses[m.who].runs, h.bosses[m.who].down = false, h.now
	case bossStarts:
		h.bosses[m.who].runs = true
	case bossGoes:
		h.bosses[m.who].exists, h.bosses[m.who].runs = false, false
	case bossNew:
		old := h.bosses[m.who]
		h.bosses[m.who] = bossTruth{n: old.n + 1, exists: true, runs: true, created: h.now, known: old.known}
	case create:
		h.create(m.who)
	case ends:
		h.boxes[m.who].runs, h.boxes[m.who].dead = false, true
	case vanishes:
		h.boxes[m.who].exists, h.boxes[m.who].runs, h.boxes[m.who].dead = false, false, true
	case wedge:
		h.boxes[m.who].wedged = !h.boxes[m.who].wedged
	case engineGoes:
		h.up, h.connected, h.parted = false, false, true
		h.suspect()
		h.apply(watch.SourceLost{Source: "docker", Kind: watch.Container, Err: errModel, At: h.now})
		h.check()
		h.run()
	case connect:
		if h.parted {
			h.suspect()
		}
		h.up, h.connected = true, true
		h.tellShared(!h.cast.foreign)
		h.apply(watch.SourceBack{Source: "docker", Kind: watch.Container, At: h.now})
		h.run()
		h.expectTried()
	case unshare:
		h.tellShared(false)
		h.run()
	case look:
		h.send(m, h.lookAt(m.who))
	case lookBoss:
		h.send(m, h.lookAtBoss(m.who))
	case scan:
		h.check()
		h.run()
		h.send(m, h.list())
		h.counting = h.counting || h.cast.programs() > 0 // behind the sandboxes: whoever owns one existed before it
	case scanFails:
		h.check()
		h.apply(watch.ListFailed{Kind: watch.Container, At: h.now, Err: errModel})
		h.run()
	case witness:
		h.send(m, h.bury(m.who))
	case notice:
		h.send(m, h.noticeOf(m.who))
	case count:
		h.counting = false
		if m.how == 2 {
			h.apply(watch.ListFailed{Kind: watch.Processes, At: h.now, Err: errModel})
			h.run()
			break
		}
		h.send(m, h.countAll())
	case initDied:
		h.send(m, letter{
			text: "init of " + boxName(m.who), about: initDied, who: m.who, asked: h.now,
			events: []watch.Event{watch.InitExited{ID: boxID(m.who), Process: h.boxes[m.who].init, At: h.now}},
		})
	case deliver:
		l := h.letters[m.who]
		h.letters = slices.Delete(slices.Clone(h.letters), m.who, m.who+1)
		h.read(l)
		h.run()
	case repeat:
		h.read(h.letters[m.who])
		h.run()
	case lose:
		// Nothing that an adapter has posted is lost, but for what it has not noticed.
		if l := h.letters[m.who]; l.about == witness && h.pids[l.who].held == l.life {
			h.pids[l.who].buried = false
		}
		h.letters = slices.Delete(slices.Clone(h.letters), m.who, m.who+1)
	case flood:
		all := h.letters
		h.letters = nil
		for _, l := range all {
			h.read(l)
		}
		h.run()
	case recorded:
		h.recorded(m.who, m.how == 0)
		h.run()
	case removed:
		h.removed(m.who, m.how == 0)
		h.run()
	case dropped:
		b := &h.boxes[m.who]
		b.dropped = true
		if m.how == 0 { // else the operator's command died between the two
			b.docket = nil
		}
	case restart:
		h.restart(m.how == 1)
	}
	h.checkCases()
}

func (h *host) tick() {
	h.now = h.now.Truncate(beat).Add(beat)
	for b, part := range h.cast.boxes {
		if part.kind == byContainer && h.lapsed(part.who) {
			h.boxes[b].lapsed = h.now
		}
	}
	// The loop sleeps until the picture's next date, and no longer.
	if next := h.pic.Next(); !next.IsZero() && !next.After(h.now) {
		h.run()
	}
}

// lapsed reports whether a container has been down for too long to be merely restarting.
func (h *host) lapsed(b int) bool {
	boss := &h.bosses[b]
	return boss.exists && !boss.runs && !h.now.Before(boss.down.Add(modelPolicy.Grace))
}

func (h *host) create(b int) {
	part, box := h.cast.boxes[b], &h.boxes[b]
	box.made, box.exists, box.runs = true, true, true
	box.created = h.now.Add(part.created)
	box.init = watch.Process{PID: 9000 + b, Start: startAt(h.now), Boot: thisBoot}
	switch part.kind {
	case byPID, byStart, byBoot, byOtherBoot:
		box.owner = len(h.pids[part.who].births)
	case byContainer:
		if box.owner = h.bosses[part.who].n; !h.bosses[part.who].exists {
			box.owner = 0
		}
		if h.lapsed(part.who) {
			box.lapsed = h.now
		}
	case byClient:
		client := watch.Client{Process: h.latest(part.who)}
		if part.speaker > 0 {
			client.Speakers = []watch.Process{h.latest(part.speaker - 1)}
		}
		box.clients = []watch.Client{client}
		if part.decoy > 0 {
			box.clients = append(box.clients, watch.Client{Process: h.latest(part.decoy - 1)})
		}
		h.identify(b)
	}
	h.bereave()
}

// latest is the last process that had a number.
func (h *host) latest(p int) watch.Process { return h.process(p, len(h.pids[p].births)) }

// suspect notes of which sandboxes the engine may have ended the client: it has just gone away, or comes back.
func (h *host) suspect() {
	for b := range h.boxes {
		box := &h.boxes[b]
		box.unclear = box.unclear || slices.ContainsFunc(box.clients, func(c watch.Client) bool { return !h.serves(c) })
	}
}

// lives reports whether a process does.
func (h *host) lives(process watch.Process) bool {
	p := process.PID - pidOf(0)
	return h.pids[p].alive && process == h.latest(p)
}

// serves reports whether a client lives and can be spoken to.
func (h *host) serves(c watch.Client) bool {
	return h.lives(c.Process) && !slices.ContainsFunc(c.Speakers, func(p watch.Process) bool { return !h.lives(p) })
}

// precedes reports whether a life of a number began before a sandbox was made.
func (h *host) precedes(p, life, b int) bool {
	return startAt(h.pids[p].births[life-1]) <= h.boxes[b].init.Start
}

// peopled reports whether a process of a sandbox's program lives that is older than the sandbox.
func (h *host) peopled(b int) bool {
	for p := range h.pids {
		if h.pids[p].alive && h.cast.runsOf(p) == h.cast.boxes[b].program && h.precedes(p, len(h.pids[p].births), b) {
			return true
		}
	}
	return false
}

// bereave notes which sandboxes have no possible owner any more. None is born again.
func (h *host) bereave() {
	for b := range h.boxes {
		box := &h.boxes[b]
		if box.made && box.bereft.IsZero() && h.cast.boxes[b].program > 0 && !h.peopled(b) {
			box.bereft = h.now
		}
	}
}

func (h *host) tellShared(shared bool) {
	h.shared = shared
	h.apply(watch.NamespaceSeen{Kind: watch.Container, Shared: shared, Detail: "another machine"})
}

// News.

// send lets a message arrive at once, or be late.
func (h *host) send(m move, l letter) {
	if m.how > 0 {
		h.letters = append(slices.Clip(h.letters), l)
		return
	}
	h.read(l)
	h.run()
	h.expectCondemned(l)
}

// read is a message's arrival.
func (h *host) read(l letter) {
	for _, ev := range l.events {
		h.apply(ev)
		switch ev := ev.(type) {
		case watch.Listed:
			if ev.Asked.After(h.listed) {
				h.listed = ev.Asked
			}
		case watch.ProgramListed:
			for n := range h.counted {
				if ev.Program == programName(n+1) && ev.Asked.After(h.counted[n]) {
					h.counted[n] = ev.Asked
				}
			}
		case watch.ContainerSeen:
			// That it runs again is known now.
			for b, part := range h.cast.boxes {
				box := &h.boxes[b]
				if part.kind == byContainer && bossName(part.who) == ev.Ref && ev.Life == watch.Alive && box.lapsed.Before(ev.Asked) && h.pic.Entry(boxID(b)) != nil {
					box.lapsed = time.Time{}
				}
			}
		}
	}
}

func (h *host) snapshot(b int) watch.Sandbox {
	box := &h.boxes[b]
	s := watch.Sandbox{ID: boxID(b), Name: boxName(b), State: watch.Stopped, Created: box.created, Terms: h.terms(b)}
	if h.cast.boxes[b].existed && h.shared {
		s.Existed = box.init.Start
	}
	if box.runs {
		s.State = watch.Running
		if !box.dead && !h.cast.boxes[b].unheld && h.shared {
			s.Init = box.init
		}
	}
	return s
}

func (h *host) lookAt(b int) letter {
	l := letter{about: look, who: b, asked: h.now}
	if !h.boxes[b].exists {
		l.text = boxName(b) + " is gone"
		l.events = []watch.Event{watch.SandboxGone{ID: boxID(b), At: h.now}}
		return l
	}
	s := h.snapshot(b)
	l.text = fmt.Sprintf("%s is %s, init %d", boxName(b), s.State, s.Init.PID)
	l.events = []watch.Event{watch.SandboxSeen{Sandbox: s, Asked: h.now}}
	if part := h.cast.boxes[b]; part.kind == byContainer {
		boss := h.lookAtBoss(part.who)
		l.text += "; " + boss.text
		l.since = boss.since
		l.events = append(l.events, boss.events...)
	}
	h.nameClients(&l, b)
	return l
}

// identify has the adapter find out who may have started a sandbox: it can while all of them live, and remembers it.
func (h *host) identify(b int) {
	if h.connected && !slices.ContainsFunc(h.boxes[b].clients, func(c watch.Client) bool { return !h.serves(c) }) {
		h.boxes[b].named = true
	}
}

// nameClients adds who may have started a sandbox.
func (h *host) nameClients(l *letter, b int) {
	if h.cast.boxes[b].kind != byClient {
		return
	}
	h.identify(b)
	box := &h.boxes[b]
	ev := watch.ClientsSeen{ID: boxID(b), At: h.now, Detail: "nobody was looking"}
	if box.named {
		ev.Clients, ev.Detail = box.clients, ""
	}
	l.text += fmt.Sprintf("; %d clients of %s", len(ev.Clients), boxName(b))
	l.events = append(l.events, ev)
}

// noticeOf is the news that a process of a program has appeared, or is dead.
func (h *host) noticeOf(p int) letter {
	life := len(h.pids[p].births)
	l := letter{about: notice, who: p, asked: h.now, life: life}
	m := h.member(p)
	if m.Life = watch.Alive; !h.pids[p].alive {
		m.Life, m.At = watch.Exited, h.now
	}
	l.text = fmt.Sprintf("%d/%d of %s is %s", pidOf(p), life, programName(h.cast.runsOf(p)), m.Life)
	l.events = []watch.Event{watch.ProgramSeen{Program: programName(h.cast.runsOf(p)), Member: m, At: h.now}}
	return l
}

func (h *host) member(p int) watch.Member {
	births := h.pids[p].births
	m := watch.Member{Process: h.latest(p), Born: births[len(births)-1], Life: watch.Alive}
	if h.pids[p].blurred {
		m.Life = watch.Unknown
	}
	return m
}

// countAll is a look at all processes. One that cannot be read may be of any program.
func (h *host) countAll() letter {
	l := letter{about: count, asked: h.now}
	for n := range h.cast.programs() {
		listed := watch.ProgramListed{Program: programName(n + 1), Asked: h.now}
		l.text += listed.Program + ":"
		for p := range h.pids {
			if m := h.member(p); h.pids[p].alive && (h.cast.runsOf(p) == n+1 || m.Life == watch.Unknown) {
				listed.Members = append(listed.Members, m)
				l.text += fmt.Sprintf(" %d/%d %s,", pidOf(p), len(h.pids[p].births), m.Life)
			}
		}
		l.events = append(l.events, listed)
	}
	return l
}

// lookAtBoss is what the adapter of the engine finds out about a container that owns sandboxes.
func (h *host) lookAtBoss(b int) letter {
	boss := &h.bosses[b]
	l := letter{about: lookBoss, who: b, asked: h.now, since: boss.down}
	for n := 1; n <= boss.n; n++ {
		if boss.known&(1<<n) != 0 && (n != boss.n || !boss.exists) {
			l.text += fmt.Sprintf("%s is gone, ", bossID(b, n))
			l.events = append(l.events, watch.ContainerSeen{Ref: bossName(b), Container: bossID(b, n), Life: watch.Exited, Gone: true, Asked: h.now})
		}
	}
	seen := watch.ContainerSeen{Ref: bossName(b), Named: true, Life: watch.Exited, Asked: h.now}
	if boss.exists {
		boss.known |= 1 << boss.n
		seen.Container, seen.Created = bossID(b, boss.n), boss.created
		if boss.runs {
			seen.Life = watch.Alive
		} else {
			if b == 0 { // of another the engine does not say when it ended
				seen.Since = boss.down
			}
		}
	}
	l.text += fmt.Sprintf("%s is %q %s", bossName(b), seen.Container, seen.Life)
	l.events = append(l.events, seen)
	return l
}

func (h *host) list() letter {
	l := letter{text: "list of", about: scan, asked: h.now}
	listed := watch.Listed{Kind: watch.Container, Asked: h.now}
	for b := range h.boxes {
		if h.boxes[b].exists {
			s := h.snapshot(b)
			listed.Sandboxes = append(listed.Sandboxes, s)
			l.text += fmt.Sprintf(" %s %s %d,", boxName(b), s.State, s.Init.PID)
		}
	}
	l.events = []watch.Event{listed}
	for b := range h.bosses {
		boss := h.lookAtBoss(b)
		l.text += "; " + boss.text
		l.since = boss.since
		l.events = append(l.events, boss.events...)
	}
	for b := range h.boxes {
		if h.boxes[b].exists {
			h.nameClients(&l, b)
		}
	}
	return l
}

// bury is the word of the process watch that a held owner is dead.
func (h *host) bury(p int) letter {
	held := &h.pids[p]
	held.buried = true
	process := h.process(p, held.held)
	return letter{
		text: fmt.Sprintf("%d/%d is dead", pidOf(p), held.held), about: witness, who: p, asked: h.now, life: held.held,
		events: []watch.Event{watch.ProcessSeen{PID: pidOf(p), Process: process, Born: held.births[held.held-1], Life: watch.Exited, At: h.now}},
	}
}

// hold is a look at a PID.
func (h *host) hold(pid int) watch.ProcessSeen {
	p := pid - pidOf(0)
	held := &h.pids[p]
	life := len(held.births)
	switch {
	case held.blurred:
		return watch.ProcessSeen{PID: pid, At: h.now, Detail: "too many open files"}
	case !held.alive:
		return watch.ProcessSeen{PID: pid, Life: watch.Exited, At: h.now}
	case held.held != life:
		held.held, held.buried = life, false
	}
	return watch.ProcessSeen{PID: pid, Process: h.process(p, life), Born: held.births[life-1], Life: watch.Alive, At: h.now}
}

// check looks at every held process again.
func (h *host) check() {
	for p := range h.pids {
		held := &h.pids[p]
		if held.held > 0 && !held.buried && !held.blurred && !(held.alive && held.held == len(held.births)) {
			h.read(h.bury(p))
		}
	}
}

// What the loop does, without its goroutines.

// apply folds one event, and closes the cases of what it made the picture forget.
func (h *host) apply(ev watch.Event) {
	for _, e := range h.pic.Apply(ev) {
		b := boxOf(e.ID)
		if h.boxes[b].exists {
			h.accuse("W6: %s is forgotten, and it exists", boxName(b))
		}
		if h.boxes[b].open {
			h.close(b)
		}
	}
	for b := range h.boxes {
		if box := &h.boxes[b]; box.told && !h.pic.Dropped(boxID(b)) {
			if box.exists {
				h.accuse("D: %s was dropped, which is forgotten", boxName(b))
			}
			box.told, box.dropped = false, false
		}
	}
}

func (h *host) close(b int) {
	box := &h.boxes[b]
	box.open = false
	if box.docket != nil {
		box.closed, box.docket = box.docket, nil
	}
}

// run makes passes until nothing is due.
func (h *host) run() {
	for range 20 {
		hold, release := h.pic.TakeClaims()
		slices.Sort(hold)
		for _, pid := range slices.Compact(hold) {
			h.apply(h.hold(pid))
		}
		for _, pid := range release {
			if !slices.Contains(hold, pid) {
				h.pids[pid-pidOf(0)].held = 0
			}
		}
		h.counting = h.pic.TakeCount() || h.counting
		h.apply(watch.TimePassed{At: h.now})
		h.carryOut(modelPolicy.Decide(h.pic, h.now))
		next := h.pic.Next()
		if h.wrong != "" || len(h.pic.Due()) == 0 && (next.IsZero() || next.After(h.now)) {
			return
		}
	}
	h.accuse("L: the loop turns and turns")
}

func (h *host) carryOut(plan reap.Plan) {
	h.judgePlan(plan)
	var ended []watch.Event
	for _, step := range plan.Steps {
		b := boxOf(step.ID)
		box := &h.boxes[b]
		h.say("    %s %s (%s)\n", step.Do, boxName(b), step.Reason)
		if !box.open {
			box.open, box.owned = true, ownerOf(h.pic.Entry(step.ID)).String()
		}
		h.apply(watch.StepBegun{ID: step.ID, Step: step.Do, Reason: string(step.Reason), At: h.now})
		switch step.Do {
		case watch.Record:
			box.recording, box.recordAt = true, h.now
		case watch.Remove:
			box.removing = true
		default:
			end := watch.StepEnded{ID: step.ID, Step: step.Do, At: h.now}
			if box.wedged || h.cast.boxes[b].unheld {
				end.Err = errModel
			} else if step.Do == watch.Kill {
				box.dead = true
			}
			ended = append(ended, end)
		}
	}
	for _, id := range plan.Abandoned {
		b := boxOf(id)
		h.say("    abandon %s\n", boxName(b))
		if h.cast.boxes[b].kind != byContainer {
			h.accuse("D: the reap of %s is abandoned, and its owner cannot come back", boxName(b))
		}
		h.apply(watch.CaseAbandoned{ID: id})
		h.close(b)
		h.boxes[b].condemned, h.boxes[b].recording = false, false
		h.boxes[b].closed = nil // this one must be synced: it could harm
	}
	for _, id := range plan.Released {
		h.apply(watch.Braked{ID: id})
	}
	for _, id := range plan.Braked {
		h.say("    brake %s\n", id.Name)
		h.apply(watch.Braked{ID: id, At: h.now})
	}
	h.rescan = h.rescan || plan.SecondLook
	for _, j := range plan.Judged {
		h.pic.Settle(j.ID, j.Next)
	}
	for _, ev := range ended {
		h.apply(ev)
	}
}

// recorded is the clerk's result.
func (h *host) recorded(b int, ok bool) {
	box := &h.boxes[b]
	box.recording, box.recorded = false, true
	end := watch.StepEnded{ID: boxID(b), Step: watch.Record, At: h.now}
	if !ok {
		end.Err = errModel
	} else if e := h.pic.Entry(boxID(b)); e != nil && box.open {
		box.docket = &reap.Case{Created: box.created, Reason: reap.Reason(e.Progress.Reason), Owner: box.owned, Begun: e.Progress.Begun}
	}
	h.apply(end)
}

// removed is the engine's result.
func (h *host) removed(b int, ok bool) {
	box := &h.boxes[b]
	box.removing = false
	end := watch.StepEnded{ID: boxID(b), Step: watch.Remove, At: h.now}
	if box.dropped {
		box.open, box.told, box.docket = false, true, nil
		h.apply(watch.CaseDropped{ID: boxID(b)})
		return
	}
	e := h.pic.Entry(boxID(b))
	ours := e != nil && e.Progress.InFlight && e.Progress.Step == watch.Remove
	if !ok {
		end.Err = errModel
		h.apply(end)
		if ours {
			c := reap.Case{Created: box.created, Reason: reap.Reason(e.Progress.Reason), Owner: box.owned, Begun: e.Progress.Begun}
			c.Attempts, c.Error = e.Progress.Attempts, errModel.Error()
			box.docket = &c
		}
		return
	}
	box.exists, box.runs, box.dead = false, false, true
	h.apply(end)
	if ours {
		h.apply(watch.SandboxGone{ID: boxID(b), At: h.now})
	}
}

// restart is a crash, and what the next daemon does first. A record whose removal was not synced may be back.
func (h *host) restart(unsynced bool) {
	h.pic, h.letters, h.connected, h.shared, h.rescan, h.counting, h.listed = watch.NewPicture(thisBoot), nil, false, false, false, false, time.Time{}
	h.parted, h.counted = false, make([]time.Time, len(h.counted))
	for p := range h.pids {
		h.pids[p].held, h.pids[p].buried = 0, false
	}
	for b := range h.bosses {
		h.bosses[b].known = 0
	}
	for b := range h.boxes {
		box := &h.boxes[b]
		box.recording, box.removing, box.open, box.told, box.recorded = false, false, false, false, false
		box.named, box.unclear = false, false
		if unsynced && box.docket == nil && !box.dropped {
			box.docket = box.closed
		}
		box.closed = nil
		// What is not on record must be found guilty again.
		box.condemned = box.condemned && box.docket != nil
	}
	for b := range h.boxes {
		if box := &h.boxes[b]; box.dropped {
			h.apply(watch.CaseDropped{ID: boxID(b)})
			box.docket, box.told = nil, true
		}
	}
	for b := range h.boxes {
		box := &h.boxes[b]
		c := box.docket
		if c == nil {
			continue
		}
		box.open, box.recorded, box.owned = true, true, c.Owner
		var terms watch.Terms
		if h.cast.boxes[b].ruled() {
			terms.Rule = ruleName
		}
		if claim, err := watch.ParseClaim(c.Owner); err == nil {
			terms.Owners = []watch.Claim{claim}
		}
		ev := watch.CaseResumed{
			Sandbox: watch.Sandbox{ID: boxID(b), Name: boxName(b), Created: c.Created, Terms: terms},
			Reason:  string(c.Reason), Begun: c.Begun, Attempts: c.Attempts,
		}
		if c.Error != "" {
			ev.Err = errors.New(c.Error)
		}
		h.apply(ev)
	}
	h.run()
}

// The second opinion.

// justified reports whether the truth allows that a sandbox is reaped.
func (h *host) justified(b int) bool {
	part, box := h.cast.boxes[b], &h.boxes[b]
	over := !h.now.Before(box.created.Add(modelAge))
	switch {
	case part.keep, part.fault, box.told:
		return false
	case box.condemned, (part.ttl || part.maxAge) && over:
		return true
	}
	// All owners must be dead; and what is inferred from a program must not be of this very moment.
	if part.program > 0 && (!h.shared || box.bereft.IsZero() || h.now.Before(box.created.Add(modelPolicy.Grace))) {
		return false
	}
	switch part.kind {
	case nobody:
		return part.program > 0
	case byPID, byStart, byBoot:
		p := &h.pids[part.who]
		return h.shared && !(p.alive && len(p.births) == box.owner)
	case byOtherBoot:
		return h.shared
	case byContainer:
		boss := &h.bosses[part.who]
		return box.owner != boss.n || !boss.exists || !box.lapsed.IsZero()
	case byClient:
		return h.shared && !slices.ContainsFunc(box.clients, h.serves)
	}
	return false
}

// orphan reports whether the truth demands that a sandbox is reaped. Of a bare PID or name that went to another within
// the slack of the clocks, nobody can tell whose it was when the sandbox was created.
func (h *host) orphan(b int) bool {
	part, box := h.cast.boxes[b], &h.boxes[b]
	if !box.exists || part.keep || part.fault || box.dropped {
		return false
	}
	if (part.ttl || part.maxAge) && !h.now.Before(box.created.Add(modelAge)) {
		return true
	}
	within := box.created.Add(modelSlack)
	for p := range h.pids {
		births := h.pids[p].births
		younger := births[len(births)-1].After(within) || part.existed && !h.precedes(p, len(births), b)
		if part.program > 0 && (!h.shared || h.pids[p].alive && h.cast.runsOf(p) == part.program && !younger) {
			return false
		}
	}
	switch part.kind {
	case nobody:
		return part.program > 0
	case byPID:
		p := &h.pids[part.who]
		return h.shared && (!p.alive || len(p.births) != box.owner && p.births[len(p.births)-1].After(within))
	case byStart, byBoot:
		p := &h.pids[part.who]
		return h.shared && (!p.alive || len(p.births) != box.owner)
	case byOtherBoot:
		return h.shared
	case byContainer:
		boss := &h.bosses[part.who]
		if box.owner != boss.n || !boss.exists {
			return !boss.exists || boss.created.After(within)
		}
		return !boss.runs && !h.now.Before(boss.down.Add(modelPolicy.Grace))
	case byClient:
		return h.shared && box.named && !box.unclear && !slices.ContainsFunc(box.clients, h.serves)
	}
	return false
}

// judgePlan holds a plan against the truth.
func (h *host) judgePlan(plan reap.Plan) {
	removes := false
	inferred := 0
	for _, step := range plan.Steps {
		b := boxOf(step.ID)
		box := &h.boxes[b]
		removes = removes || step.Do >= watch.Record
		switch {
		case !h.justified(b):
			h.accuse("S: %s %s (%s), and it must be kept", step.Do, boxName(b), step.Reason)
		case removes && step.Do < watch.Record:
			h.accuse("R3: %s %s comes after a removal", step.Do, boxName(b))
		case box.removing:
			h.accuse("R4: %s %s, and its removal is under way", step.Do, boxName(b))
		case box.recording && (step.Do != watch.Remove || h.now.Before(box.recordAt.Add(modelRecord))):
			h.accuse("R4: %s %s, and its record is under way", step.Do, boxName(b))
		case step.Do == watch.Remove && !box.recorded && !box.recording:
			h.accuse("R8: remove %s, and it was not recorded", boxName(b))
		case step.Do == watch.Remove && !h.connected:
			h.accuse("D: remove %s, and the engine is away: the attempt is wasted", boxName(b))
		}
		if !box.condemned && h.unconfirmed(b) {
			inferred++
		}
		box.condemned = true
	}
	if inferred > modelPolicy.Burst {
		h.accuse("R7: %d are reaped by inference at once and were not looked at again", inferred)
	}
}

// unconfirmed reports whether a sandbox is reaped by inference alone and cannot have been looked at twice: a second look is
// made when the grace is over at the earliest.
func (h *host) unconfirmed(b int) bool {
	part, box := h.cast.boxes[b], &h.boxes[b]
	switch {
	case part.maxAge:
		return h.listed.Before(box.created.Add(modelAge + modelPolicy.Grace))
	case part.program > 0 && part.kind == nobody && !part.ttl:
		again := box.bereft.Add(modelPolicy.Grace)
		return h.listed.Before(again) || h.counted[part.program-1].Before(again)
	}
	return false
}

// checkCases looks whether anything begun is forgotten.
func (h *host) checkCases() {
	for b := range h.boxes {
		box := &h.boxes[b]
		e := h.pic.Entry(boxID(b))
		if box.open && (e == nil || e.Progress.Begun.IsZero() && !box.dropped) {
			h.accuse("D: the reap of %s was begun, and the picture does not know", boxName(b))
		}
		if box.docket != nil && !box.open && !box.dropped {
			h.accuse("D: %s is on record, and nobody works at it", boxName(b))
		}
		if !box.open && e != nil && !e.Progress.Begun.IsZero() && !box.dropped {
			h.accuse("D: the reap of %s was begun, and there is no case", boxName(b))
		}
		if e == nil || !h.shared || !box.made {
			continue
		}
		// What a picture believes must be true.
		for i := range e.Owners {
			if o := &e.Owners[i]; o.Life == watch.Exited && h.wronged(b, o.Claim.Kind) {
				h.accuse("S: the owner of %s, a %s, lives, and is believed dead", boxName(b), o.Claim.Kind)
			}
		}
	}
}

// wronged reports whether the owner of a sandbox by a kind of claim lives.
func (h *host) wronged(b int, kind watch.ClaimKind) bool {
	part, box := h.cast.boxes[b], &h.boxes[b]
	switch kind {
	case watch.ProcessClaim:
		p := &h.pids[part.who]
		return p.alive && len(p.births) == box.owner && part.kind != byOtherBoot
	case watch.ProgramClaim:
		return h.peopled(b)
	case watch.ClientClaim:
		return slices.ContainsFunc(box.clients, h.serves)
	default:
		return false
	}
}

// expectTried says that the return of the engine makes every removal due that failed before.
func (h *host) expectTried() {
	for b := range h.boxes {
		box, e := &h.boxes[b], h.pic.Entry(boxID(b))
		if e != nil && ownerOf(e).Kind == watch.ContainerClaim && slices.ContainsFunc(e.Owners, func(o watch.Owner) bool { return o.Claim.Kind == watch.ContainerClaim && o.Life == watch.Unknown }) {
			continue // taken up from the docket: the owner must be looked at again
		}
		if box.open && !box.told && box.docket != nil && box.docket.Attempts > 0 && !box.removing {
			h.accuse("L: the engine is back, and the removal of %s is not tried", boxName(b))
		}
	}
}

// expectCondemned says that what just arrived, if it is the death of an owner, condemns at once all that it is known to
// own.
func (h *host) expectCondemned(l letter) {
	if l.about != witness || !h.shared {
		return
	}
	for b := range h.boxes {
		part, box := h.cast.boxes[b], &h.boxes[b]
		e := h.pic.Entry(boxID(b))
		if e == nil || part.keep || part.fault || box.dropped || box.open || part.program > 0 || e.Owner().Claim.Kind != watch.ProcessClaim || part.who != l.who {
			continue
		}
		if e.Owner().Process == h.process(l.who, l.life) {
			h.accuse("L: the owner of %s is known to be dead, and nothing is done", boxName(b))
		}
	}
}

// settle is the fair end of every history: the world stands still, everything works, one full scan is made, and then
// only time passes. It reports whether the state is one that known says to end well.
func (h *host) settle(known func() bool) {
	if h.story != nil {
		h.say("from now on the world stands still\n")
	}
	h.faults = 0
	for p := range h.pids {
		h.pids[p].blurred = false
	}
	for b := range h.boxes {
		h.boxes[b].wedged = false
	}
	for len(h.letters) > 0 && h.wrong == "" {
		h.do(move{deliver, 0, 0})
	}
	if !h.connected {
		h.do(move{connect, 0, 0})
	} else if !h.shared && !h.cast.foreign {
		h.tellShared(true)
		h.run()
	}
	h.rescan = true
	for range 12 {
		if known() || h.wrong != "" {
			return
		}
		for turns := 0; ; turns++ {
			if turns > 50 {
				h.accuse("L: in a world that stands still it never comes to rest")
				return
			}
			busy := false
			for b := range h.boxes {
				for _, v := range []verb{recorded, removed} {
					if m := (move{v, b, 0}); h.wrong == "" && h.can(m) {
						h.do(m)
						busy = true
					}
				}
			}
			if h.rescan {
				h.rescan, busy = false, true
				h.do(move{scan, 0, 0})
			}
			if h.counting {
				busy = true
				h.do(move{count, 0, 0})
			}
			if !busy {
				break
			}
		}
		h.do(move{tick, 0, 0})
	}
	for b := range h.boxes {
		box := &h.boxes[b]
		switch e := h.pic.Entry(boxID(b)); {
		case h.orphan(b):
			h.accuse("L: %s is an orphan, and it is still there", boxName(b))
		case box.open && !box.dropped:
			h.accuse("D: the reap of %s is not finished", boxName(b))
		case box.docket != nil && !box.dropped:
			h.accuse("D: the record of %s is not closed", boxName(b))
		case (e != nil) != box.exists:
			h.accuse("W: %s exists: %v, and the picture has it: %v", boxName(b), box.exists, e != nil)
		}
	}
}

func (h *host) describe(m move) string {
	var subject string
	switch m.verb {
	case create, ends, vanishes, wedge, look, initDied, recorded, removed, dropped:
		subject = boxName(m.who)
	case dies, reborn, blur, witness, notice:
		subject = fmt.Sprintf("%d/%d", pidOf(m.who), len(h.pids[m.who].births))
	case bossStops, bossStarts, bossGoes, bossNew, lookBoss:
		subject = bossName(m.who)
	case deliver, repeat, lose:
		subject = h.letters[m.who].text
	}
	how := ""
	if m.how > 0 {
		switch m.verb {
		case recorded, removed:
			how = ": fails"
		case count:
			how = []string{"", ", arrives late", ": fails"}[m.how]
		case dropped:
			how = " by half"
		case restart:
			how = " with a record come back"
		default:
			how = ", arrives late"
		}
	}
	return strings.TrimSpace(verbNames[m.verb]+" "+subject) + how
}

// ownerOf is the owner that the record of a case names.
func ownerOf(e *watch.Entry) watch.Claim {
	for i := range e.Owners {
		if e.Owners[i].Claim.Kind == watch.ContainerClaim {
			return e.Owners[i].Claim
		}
	}
	return e.Owner().Claim
}
