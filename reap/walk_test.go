//go:build !race

package reap_test

import (
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"watcher/watch"
)

// proofEnv makes the walk and the property tests larger (make proof), or smaller (make mutants).
const proofEnv = "WATCHER_PROOF"

func proof() string { return os.Getenv(proofEnv) }

// shortWalk is the number of states after which a short walk ends, at the end of its level.
const shortWalk = 5000

// A stage is one cast whose every history is walked.
type stage struct {
	name string
	cast cast
	size string // "full": too large for every day
}

const always = -1

// quiet leaves out what merely multiplies: a sandbox's own end, and what fails besides removals.
var quiet = []verb{wedge, unshare, ends, vanishes, initDied, scanFails, dropped}

// stages are small casts in which anything may go wrong at any time, as often as it likes, and larger ones in which it
// may only so often. Together they have two owners that are processes, one of them with a number that goes to another,
// an owner that is a container, and sandboxes of every sort.
var stages = []stage{
	{"a PID", cast{pids: 1, lives: 2, faults: 1, late: 1, boxes: []part{{kind: byPID}}, without: []verb{wedge, unshare, vanishes}}, ""},
	{"a PID, everything", cast{pids: 1, lives: 2, faults: always, late: 1, boxes: []part{{kind: byPID}}}, "full"},
	{"a PID with its start", cast{pids: 1, lives: 2, faults: 1, boxes: []part{{kind: byStart}}, without: []verb{wedge, unshare, initDied}}, ""},
	{"a PID, no init held, the engine's clock behind", cast{pids: 1, lives: 2, faults: 1, late: 1, boxes: []part{{kind: byPID, unheld: true, created: -time.Second}}, without: []verb{wedge}}, ""},
	{"a PID, asked to end first", cast{pids: 1, lives: 1, faults: 1, late: 1, boxes: []part{{kind: byPID, asks: true}}}, ""},
	{"a container", cast{bosses: 1, lives: 2, faults: 1, boxes: []part{{kind: byContainer}}, without: append(quiet, engineGoes, unshare)}, ""},
	{"a container, news late", cast{bosses: 1, lives: 2, faults: 1, late: 1, boxes: []part{{kind: byContainer}}, without: append(quiet, restart, engineGoes, bossNew, bossGoes, lose, repeat, create), whole: true}, ""},
	{"a container, everything", cast{bosses: 1, lives: 2, faults: 2, late: 1, boxes: []part{{kind: byContainer}}}, "full"},
	{"a time to live", cast{pids: 1, lives: 1, faults: 1, late: 1, boxes: []part{{kind: byPID, ttl: true}}, without: []verb{wedge, unshare, initDied}}, ""},
	{"two of great age", cast{faults: 1, boxes: []part{{maxAge: true}, {maxAge: true}}, without: []verb{wedge, unshare, ends, vanishes, initDied, dropped, scanFails}}, ""},
	{"foreign PIDs", cast{pids: 1, lives: 2, faults: 1, foreign: true, boxes: []part{{kind: byPID}, {kind: byOtherBoot}}, without: quiet}, ""},
	{"kept", cast{pids: 1, lives: 2, faults: 1, boxes: []part{{kind: byPID, keep: true, ttl: true}, {kind: byStart, fault: true, maxAge: true}}, without: quiet}, ""},
	{"two of one PID", cast{pids: 1, lives: 2, boxes: []part{{kind: byPID}, {kind: byPID}}, without: quiet}, ""},
	{"a program", cast{pids: 1, lives: 2, runs: []int{1}, faults: 1, boxes: []part{{program: 1}}, without: append(quiet, engineGoes)}, ""},
	{"a program, everything", cast{pids: 1, lives: 2, runs: []int{1}, faults: always, late: 1, boxes: []part{{program: 1}}}, "full"},
	{"a program, counts late", cast{pids: 1, lives: 1, runs: []int{1}, faults: 2, late: 1, boxes: []part{{program: 1}}, without: append(quiet, engineGoes, restart, look), whole: true}, ""},
	{"a program of two", cast{pids: 2, lives: 1, runs: []int{1, 1}, faults: 1, boxes: []part{{program: 1}}, without: append(quiet, engineGoes, restart)}, ""},
	{"a program, no init held", cast{pids: 1, lives: 2, runs: []int{1}, faults: 1, boxes: []part{{program: 1, unheld: true, created: -time.Second}}, without: append(quiet, engineGoes, restart)}, ""},
	{"a program, no init held, and it existed", cast{pids: 1, lives: 2, runs: []int{1}, faults: 1, boxes: []part{{program: 1, unheld: true, existed: true}}, without: append(quiet, engineGoes, restart)}, ""},
	{"a program, in a burst", cast{pids: 1, lives: 1, runs: []int{1}, boxes: []part{{program: 1}, {program: 1}}, without: append(quiet, engineGoes, restart, blur)}, ""},
	{"a PID and a program", cast{pids: 2, lives: 1, runs: []int{0, 1}, faults: 1, boxes: []part{{kind: byPID, program: 1}}, without: append(quiet, engineGoes)}, ""},
	{"a PID of a program", cast{pids: 1, lives: 2, runs: []int{1}, boxes: []part{{kind: byPID, program: 1}}, without: append(quiet, look)}, ""},
	{"a container and a program", cast{pids: 1, lives: 1, runs: []int{1}, bosses: 1, faults: 1, boxes: []part{{kind: byContainer, program: 1}}, without: append(quiet, engineGoes, bossNew)}, "full"},
	{"a container and a program, seen", cast{pids: 1, lives: 1, runs: []int{1}, bosses: 1, boxes: []part{{kind: byContainer, program: 1}}, without: append(quiet, bossNew, bossGoes, look), whole: true}, ""},
	{"a client", cast{pids: 2, lives: 2, boxes: []part{{kind: byClient, speaker: 2}}, without: append(quiet, engineGoes)}, ""},
	{"one of two clients", cast{pids: 2, lives: 1, faults: 1, late: 1, boxes: []part{{kind: byClient, decoy: 2}}, without: append(quiet, engineGoes, restart)}, ""},
	{"all, seen", cast{
		pids: 2, lives: 2, bosses: 1, whole: true, without: append(quiet, bossNew, engineGoes, look, lookBoss),
		boxes: []part{{kind: byPID}, {kind: byBoot, who: 1}, {kind: byContainer}, {ttl: true}},
	}, "full"},
	{"all, seen, in one beat", cast{
		pids: 2, lives: 2, bosses: 1, whole: true, without: append(quiet, tick, look, lookBoss),
		boxes: []part{{kind: byPID}, {kind: byBoot, who: 1}, {kind: byContainer}, {ttl: true}},
	}, ""},
	{"all, seen, in one beat, with a fault", cast{
		pids: 2, lives: 2, bosses: 1, faults: 1, whole: true, without: append(quiet, tick, look, lookBoss),
		boxes: []part{{kind: byPID}, {kind: byBoot, who: 1}, {kind: byContainer}, {ttl: true}},
	}, "full"},
	{"all", cast{
		pids: 2, lives: 2, bosses: 1, faults: 1, late: 1,
		boxes: []part{{kind: byPID}, {kind: byStart, who: 1}, {kind: byContainer}, {maxAge: true}},
	}, "full"},
}

// TestWalk makes every move in every state that can be reached, and holds the core against S, L and D in each.
func TestWalk(t *testing.T) {
	if err := knowPicture(); err != nil {
		t.Fatal(err)
	}
	if proof() != "full" {
		// Nearly all that is made is garbage at once. A full proof needs the memory.
		defer debug.SetGCPercent(debug.SetGCPercent(400))
	}
	states, moves := 0, 0
	for _, st := range stages {
		if st.size == "full" && proof() != "full" {
			continue
		}
		t.Run(st.name, func(t *testing.T) {
			start := time.Now()
			w := walk{cast: &st.cast, seen: map[sum]int{}, good: map[sum]bool{}}
			w.run(t)
			states, moves = states+len(w.seen), moves+w.moves
			t.Logf("%d states, %d moves, %d fair ends, %.1f s", len(w.seen), w.moves, len(w.good), time.Since(start).Seconds())
		})
	}
	t.Logf("in all %d states, %d moves", states, moves)
}

// A walk is the breadth-first search of one stage.
type walk struct {
	cast  *cast
	moves int

	mu    sync.Mutex
	seen  map[sum]int // the index of each state's step
	steps []stride
	good  map[sum]bool // states whose fair end is known to be good
	bad   *stride      // the last step of the shortest history that breaks a promise
}

// A stride is how a state was first reached.
type stride struct {
	from int
	move move
}

type sum [2]uint64

func (w *walk) run(t *testing.T) {
	t.Helper()
	first := newHost(w.cast)
	w.seen[first.sum()] = 0
	w.steps = []stride{{from: -1}}
	type node struct {
		host  *host
		index int
	}
	frontier := []node{{first, 0}}
	for len(frontier) > 0 && w.bad == nil && (proof() != "short" || len(w.seen) < shortWalk) {
		next := make([][]node, runtime.GOMAXPROCS(0))
		var workers sync.WaitGroup
		for i := range next {
			workers.Go(func() {
				for at := i; at < len(frontier); at += len(next) {
					from := frontier[at]
					frontier[at].host = nil
					for _, m := range from.host.moves() {
						h := from.host.clone()
						h.do(m)
						key := h.sum()
						w.mu.Lock()
						_, known := w.seen[key]
						if !known {
							w.seen[key] = len(w.steps)
							w.steps = append(w.steps, stride{from.index, m})
						}
						index := len(w.steps) - 1
						w.moves++
						if h.wrong != "" && w.bad == nil {
							w.bad = &stride{from.index, m}
						}
						w.mu.Unlock()
						if known || h.wrong != "" {
							continue
						}
						if !w.endsWell(h.clone()) {
							w.mu.Lock()
							w.bad = &stride{from.index, m}
							w.mu.Unlock()
						}
						next[i] = append(next[i], node{h, index})
					}
				}
			})
		}
		workers.Wait()
		frontier = slices.Concat(next...)
	}
	if w.bad != nil {
		t.Error(w.tell(*w.bad))
	}
}

// moves are all that can happen now.
func (h *host) moves() []move {
	var all []move
	for v := range verbs {
		who, how := h.span(v)
		for i := range who {
			for j := range how {
				if m := (move{v, i, j}); h.can(m) {
					all = append(all, m)
				}
			}
		}
	}
	return all
}

// endsWell plays the fair end of a history.
func (w *walk) endsWell(h *host) bool {
	var on []sum
	h.settle(func() bool {
		key := h.sum()
		on = append(on, key)
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.good[key]
	})
	if h.wrong != "" {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range on {
		w.good[key] = true
	}
	return true
}

// tell is the story of a history that breaks a promise.
func (w *walk) tell(last stride) string {
	moves := []move{last.move}
	for at := last.from; w.steps[at].from >= 0; at = w.steps[at].from {
		moves = append(moves, w.steps[at].move)
	}
	slices.Reverse(moves)
	h := newHost(w.cast)
	h.story = &strings.Builder{}
	for _, m := range moves {
		h.do(m)
	}
	if h.wrong == "" {
		h.settle(func() bool { return false })
	}
	return h.story.String()
}

// clone is another host in the same state.
func (h *host) clone() *host {
	c := *h
	c.pids, c.bosses, c.boxes = slices.Clone(h.pids), slices.Clone(h.bosses), slices.Clone(h.boxes)
	c.letters, c.counted = slices.Clone(h.letters), slices.Clone(h.counted)
	c.pic = watch.NewPicture(thisBoot)
	from, to := inside(h.pic), inside(c.pic)
	for id, e := range *from.sandboxes {
		copied := *e
		copied.Owners = slices.Clone(e.Owners)
		for i := range copied.Owners {
			if lives := livesOf(&copied.Owners[i]); *lives != nil {
				*lives = maps.Clone(*lives)
			}
		}
		(*to.sandboxes)[id] = &copied
	}
	for name, known := range *from.programs {
		(*to.programs)[name] = &program{maps.Clone(known.members), maps.Clone(known.seen), known.listed}
	}
	if len(*from.groups) > 0 {
		panic("the model has no groups")
	}
	*to.count = *from.count
	maps.Copy(*to.gone, *from.gone)
	maps.Copy(*to.listed, *from.listed)
	maps.Copy(*to.dropped, *from.dropped)
	maps.Copy(*to.namespaces, *from.namespaces)
	maps.Copy(*to.present, *from.present)
	maps.Copy(*to.lost, *from.lost)
	maps.Copy(*to.returned, *from.returned)
	for key, ids := range *from.claimants {
		(*to.claimants)[key] = maps.Clone(ids)
	}
	maps.Copy(*to.rules, *from.rules)
	for id, at := range *from.at {
		c.pic.Settle(id, at) // and with it the queue
	}
	maps.Copy(*to.touched, *from.touched)
	*to.hold, *to.release = slices.Clone(*from.hold), slices.Clone(*from.release)
	return &c
}

// innards are what a picture does not show. The product has no use for a copy of a picture, so the walk makes its own.
type innards struct {
	sandboxes     *map[watch.ID]*watch.Entry
	gone          *map[watch.ID]time.Time
	listed        *map[watch.Kind]time.Time
	dropped       *map[watch.ID]struct{}
	namespaces    *map[watch.Kind]watch.NamespaceSeen
	present       *map[watch.Kind]bool
	lost          *map[watch.Kind]time.Time
	returned      *map[watch.Kind]time.Time
	claimants     *map[string]map[watch.ID]struct{}
	programs      *map[string]*program
	groups        *map[string]*group
	rules         *map[string]int
	count         *bool
	touched       *map[watch.ID]struct{}
	at            *map[watch.ID]time.Time
	hold, release *[]int
}

// These look like the types of the same names in the product, which nobody else can name.
type (
	program struct {
		members map[watch.Process]watch.Member
		seen    map[watch.Process]time.Time
		listed  time.Time
	}
	group struct {
		containers map[watch.ID]struct{}
		reaped     time.Time
		reason     string
	}
	ending struct {
		life watch.Life
		at   time.Time
	}
)

// That nothing reads the fields of a group is no reason to leave them out.
var _ = group{containers: nil, reaped: time.Time{}, reason: ""}

// looksLike reports whether two types are laid out alike: where they differ, only their names do.
func looksLike(a, b reflect.Type) bool {
	switch {
	case a == b:
		return true
	case a.Kind() != b.Kind():
		return false
	case a.Kind() == reflect.Map:
		return looksLike(a.Key(), b.Key()) && looksLike(a.Elem(), b.Elem())
	case a.Kind() == reflect.Pointer:
		return looksLike(a.Elem(), b.Elem())
	case a.Kind() != reflect.Struct || a.NumField() != b.NumField():
		return false
	}
	for i := range a.NumField() {
		if f, g := a.Field(i), b.Field(i); f.Name != g.Name || f.Offset != g.Offset || !looksLike(f.Type, g.Type) {
			return false
		}
	}
	return true
}

var offsets = map[string]uintptr{}

// livesOf is what an owner does not show: what is known of each process of a client.
func livesOf(o *watch.Owner) *map[watch.Process]ending {
	return (*map[watch.Process]ending)(unsafe.Add(unsafe.Pointer(o), offsets["owner.lives"]))
}

func field[T any](p *watch.Picture, name string) *T {
	return (*T)(unsafe.Add(unsafe.Pointer(p), offsets[name]))
}

func inside(p *watch.Picture) innards {
	return innards{
		sandboxes:  field[map[watch.ID]*watch.Entry](p, "sandboxes"),
		gone:       field[map[watch.ID]time.Time](p, "gone"),
		listed:     field[map[watch.Kind]time.Time](p, "listed"),
		dropped:    field[map[watch.ID]struct{}](p, "dropped"),
		namespaces: field[map[watch.Kind]watch.NamespaceSeen](p, "namespaces"),
		present:    field[map[watch.Kind]bool](p, "present"),
		lost:       field[map[watch.Kind]time.Time](p, "lost"),
		returned:   field[map[watch.Kind]time.Time](p, "returned"),
		claimants:  field[map[string]map[watch.ID]struct{}](p, "claimants"),
		programs:   field[map[string]*program](p, "programs"),
		groups:     field[map[string]*group](p, "groups"),
		rules:      field[map[string]int](p, "rules"),
		count:      field[bool](p, "count"),
		touched:    field[map[watch.ID]struct{}](p, "agenda.touched"),
		at:         field[map[watch.ID]time.Time](p, "agenda.at"),
		hold:       field[[]int](p, "hold"),
		release:    field[[]int](p, "release"),
	}
}

// knowPicture finds the innards. It fails if what the picture remembers is not what sum knows: a state that is left out
// there would not be walked.
func knowPicture() error {
	for _, known := range []struct {
		of    reflect.Type
		names string
	}{
		{reflect.TypeFor[watch.Picture](), "boot sandboxes gone listed dropped namespaces present lost returned claimants programs groups rules agenda hold release count"},
		{reflect.TypeFor[watch.Entry](), "Sandbox Asked First Owners Progress Braked Ordered isFiled filed"}, // Ordered by nobody here
		{reflect.TypeFor[watch.Owner](), "Claim Life Process Container Clients Asked Replaced Gone Restarts Thread Look ExitedAt Reason Detail lives"},
		{reflect.TypeFor[watch.Progress](), "Begun Reason Step StepAt SignalAt InFlight Stopped Attempts Err"},
		{reflect.TypeFor[watch.Sandbox](), "ID Name Image State Created Terms InUse Existed Leaves Init"},
		{reflect.TypeFor[watch.Client](), "Process Speakers"},
		{reflect.TypeFor[watch.Member](), "Process Born Life At"},
	} {
		var names []string
		for f := range known.of.Fields() {
			names = append(names, f.Name)
			if known.of == reflect.TypeFor[watch.Picture]() {
				offsets[f.Name] = f.Offset
			}
		}
		if got := strings.Join(names, " "); got != known.names {
			return fmt.Errorf("%v has the fields %q, the walk knows %q: teach it", known.of, got, known.names)
		}
	}
	lives, ok := reflect.TypeFor[watch.Owner]().FieldByName("lives")
	if !ok || !looksLike(lives.Type, reflect.TypeFor[map[watch.Process]ending]()) {
		return fmt.Errorf("an owner's lives are %v: teach the walk", lives.Type)
	}
	offsets["owner.lives"] = lives.Offset
	agenda, _ := reflect.TypeFor[watch.Picture]().FieldByName("agenda")
	for f := range agenda.Type.Fields() {
		offsets["agenda."+f.Name] = agenda.Offset + f.Offset
	}
	shown := reflect.TypeFor[innards]()
	for f := range shown.Fields() {
		name := f.Name
		if name == "touched" || name == "at" {
			inner, ok := agenda.Type.FieldByName(name)
			if !ok || inner.Type != f.Type.Elem() {
				return fmt.Errorf("the picture's agenda has no %s of type %v", name, f.Type.Elem())
			}
			continue
		}
		inner, ok := reflect.TypeFor[watch.Picture]().FieldByName(name)
		if !ok || !looksLike(inner.Type, f.Type.Elem()) {
			return fmt.Errorf("the picture has no %s of type %v", name, f.Type.Elem())
		}
	}
	return nil
}

var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

// sum identifies a state. Of every time only that goes in which can still matter: how many beats ago it was, up to the
// longest that anything waits for, or whether it is before or after what is under way. So two states with one sum have
// the same future, and the walk ends.
func (h *host) sum() sum {
	b := &bits{buf: make([]byte, 0, 512), now: h.now}
	b.put(h.up, h.connected, h.shared, h.rescan, h.counting, h.faults)
	for p := range h.pids {
		t := &h.pids[p]
		b.put(len(t.births), t.alive, t.blurred, t.held, t.buried)
	}
	for i := range h.bosses {
		t := &h.bosses[i]
		b.put(t.n, t.exists, t.runs, t.known)
		if t.exists && !t.runs {
			b.beats(t.down, 1)
		}
	}
	in := inside(h.pic)
	late := len(h.letters) > 0
	for i := range h.boxes {
		t, part, id := &h.boxes[i], &h.cast.boxes[i], boxID(i)
		b.put(t.made, t.exists, t.runs, t.dead, t.wedged, t.owner, t.dropped, t.condemned, t.told, t.open, t.recording, t.removing, t.recorded)
		b.put(t.docket != nil, t.closed != nil)
		if t.recording {
			b.beats(t.recordAt, 2)
		}
		b.put(!t.lapsed.IsZero())
		for _, l := range h.letters {
			b.put(t.lapsed.Compare(l.asked))
		}
		if t.docket != nil {
			b.put(min(t.docket.Attempts, 3))
		}
		if part.ruled() {
			h.sumRuled(b, i)
		}
		if part.ttl || part.maxAge {
			b.beats(t.created, 3)
		}
		switch part.kind {
		case byPID:
			if births := h.pids[part.who].births; t.made && len(births) > t.owner {
				b.put(births[len(births)-1].After(t.created.Add(modelSlack)))
			}
		case byContainer:
			if boss := &h.bosses[part.who]; t.made && boss.n > t.owner {
				b.put(boss.created.After(t.created.Add(modelSlack)))
			}
		}
		e := (*in.sandboxes)[id]
		b.put(e != nil)
		gone, wasGone := (*in.gone)[id]
		if late {
			b.put(wasGone)
			for _, l := range h.letters {
				b.put(gone.Compare(l.asked))
			}
		}
		_, isDropped := (*in.dropped)[id]
		_, touched := (*in.touched)[id]
		b.put(isDropped, touched)
		b.due((*in.at)[id])
		if e == nil {
			continue
		}
		b.put(e.State.Runs(), e.Init.PID != 0, len(e.Owners))
		for _, l := range h.letters {
			b.put(e.Asked.Compare(l.asked))
		}
		for j := range e.Owners {
			o := &e.Owners[j]
			b.put(int(o.Claim.Kind), int(o.Life), o.Replaced, o.Gone, o.Look, o.ExitedAt.Compare(e.Owners[0].ExitedAt))
			if p := o.Process; p.PID != 0 && o.Claim.Kind == watch.ProcessClaim {
				b.put(1 + slices.IndexFunc(h.pids[part.who].births, func(t time.Time) bool { return startAt(t) == p.Start }))
			}
			b.text(o.Container)
			for _, l := range h.letters {
				b.put(o.Asked.Compare(l.asked))
			}
			if o.Claim.Kind == watch.ContainerClaim && o.Life == watch.Exited && !o.Gone {
				down := o.ExitedAt
				if back := (*in.returned)[watch.Container]; back.After(down) {
					down = back
				}
				b.beats(down, 1)
				down = down.Add(modelPolicy.Grace)
				b.put(o.Asked.Before(down), (*in.listed)[watch.Container].Before(down))
				for _, l := range h.letters {
					b.put(l.asked.Before(down), l.since.After(o.ExitedAt))
				}
			}
			b.put(len(o.Clients))
			for _, process := range slices.Concat(clientsOf(o.Clients)...) {
				end := (*livesOf(o))[process]
				if b.put(int(end.life)); end.life == watch.Exited {
					b.put(e.Asked.After(end.at))
					for _, l := range h.letters {
						b.put(end.at.Compare(l.asked))
					}
				}
				if end.life == watch.Exited && !slices.Contains(h.cast.without, engineGoes) {
					// The engine may have gone away at that time, or go now.
					b.put(h.pic.Away(watch.Container, end.at))
					b.beats(end.at, 2)
				}
			}
		}
		pr := &e.Progress
		b.put(!pr.Begun.IsZero(), int(pr.Step), pr.InFlight, min(pr.Attempts, 3), pr.Err != nil)
		b.text(pr.Reason)
		b.beats(pr.Stopped, 1)
		b.beats(pr.SignalAt, 1)
		if pr.Step == watch.Terminate || pr.Step == watch.Remove || pr.Step == watch.Record && pr.InFlight {
			b.beats(pr.StepAt, 2)
		}
		if (part.maxAge || part.program > 0) && !e.Braked.IsZero() {
			again := e.Braked.Add(modelPolicy.Grace)
			b.beats(e.Braked, 1)
			b.put((*in.listed)[watch.Container].Before(again))
			for _, l := range h.letters {
				b.put(l.asked.Before(again))
			}
		}
		if part.maxAge {
			b.put(h.listed.Before(t.created.Add(modelAge + modelPolicy.Grace)))
		}
		if part.program > 0 {
			h.sumProgram(b, e, part.program)
		}
	}
	for i := range h.boxes {
		for p := range h.pids {
			_, ok := (*in.claimants)[fmt.Sprintf("pid/%d", pidOf(p))][boxID(i)]
			b.put(ok)
		}
		for p := range h.bosses {
			_, ok := (*in.claimants)["container/"+bossName(p)][boxID(i)]
			b.put(ok)
		}
	}
	b.put((*in.namespaces)[watch.Container].Shared, (*in.present)[watch.Container], len(*in.hold), len(*in.release), *in.count)
	for n := range h.cast.programs() {
		known := (*in.programs)[programName(n+1)]
		if b.put(known != nil); known == nil {
			continue
		}
		for _, l := range h.letters {
			b.put(known.listed.Compare(l.asked))
		}
		for p := range h.pids {
			for life := range h.pids[p].births {
				process := h.process(p, life+1)
				m, ok := known.members[process]
				b.put(ok, int(m.Life))
				for _, l := range h.letters {
					b.put(known.seen[process].Compare(l.asked), m.At.Compare(l.asked))
				}
			}
		}
	}
	for _, l := range h.letters {
		b.text(l.text)
		b.put((*in.listed)[watch.Container].Compare(l.asked))
		b.beats(l.since, 1)
		b.beats(l.asked, 2)
	}
	return sum{maphash.Bytes(seeds[0], b.buf), maphash.Bytes(seeds[1], b.buf)}
}

// clientsOf are the processes of clients.
func clientsOf(clients []watch.Client) (all [][]watch.Process) {
	for _, c := range clients {
		all = append(all, []watch.Process{c.Process}, c.Speakers)
	}
	return all
}

// sumRuled puts what the truth has of a sandbox whose owner is what a rule says.
func (h *host) sumRuled(b *bits, i int) {
	t, part := &h.boxes[i], &h.cast.boxes[i]
	b.put(t.named, t.unclear, h.parted, !t.bereft.IsZero())
	b.text(t.owned)
	if t.docket != nil {
		b.text(t.docket.Owner + " " + string(t.docket.Reason))
	}
	if !t.made {
		return
	}
	b.beats(t.created, 1)
	for p := range h.pids {
		for life, birth := range h.pids[p].births {
			b.put(h.precedes(p, life+1, i), birth.After(t.created.Add(modelSlack)))
		}
	}
	for _, process := range slices.Concat(clientsOf(t.clients)...) {
		b.put(slices.IndexFunc(h.pids[process.PID-pidOf(0)].births, func(t time.Time) bool { return startAt(t) == process.Start }))
	}
	if !t.bereft.IsZero() {
		again := t.bereft.Add(modelPolicy.Grace)
		b.beats(t.bereft, 1)
		b.put(h.listed.Before(again), h.counted[part.program-1].Before(again))
		for _, l := range h.letters {
			b.put(l.asked.Before(again))
		}
	}
}

// sumProgram puts what matters of a program to one sandbox.
func (h *host) sumProgram(b *bits, e *watch.Entry, n int) {
	known := (*inside(h.pic).programs)[programName(n)]
	since := e.First // a look at all processes counts that was asked for later
	if e.Created.After(since) {
		since = e.Created
	}
	b.put(e.First.IsZero(), e.Existed != 0, known != nil)
	for _, l := range h.letters {
		b.put(since.Compare(l.asked))
	}
	if known == nil {
		return
	}
	b.put(known.listed.After(since), !e.Braked.IsZero() && known.listed.Before(e.Braked.Add(modelPolicy.Grace)))
	if len(e.Owners) < 2 {
		return
	}
	// Who died last decides.
	for p := range h.pids {
		for life := range h.pids[p].births {
			at := known.members[h.process(p, life+1)].At
			for i := range e.Owners {
				b.put(at.Compare(e.Owners[i].ExitedAt))
			}
		}
	}
}

// bits are what identifies a state.
type bits struct {
	buf []byte
	now time.Time
}

func (b *bits) put(values ...any) {
	for _, v := range values {
		switch v := v.(type) {
		case bool:
			if v {
				b.buf = append(b.buf, 1)
			} else {
				b.buf = append(b.buf, 0)
			}
		case int:
			b.buf = append(b.buf, byte(v))
		default:
			panic(fmt.Sprintf("%T", v))
		}
	}
}

func (b *bits) text(s string) {
	b.buf = append(append(b.buf, s...), 0)
}

// beats puts how many beats ago t was, at most most.
func (b *bits) beats(t time.Time, most int) {
	if t.IsZero() {
		b.put(255)
		return
	}
	b.put(min(int(b.now.Truncate(beat).Sub(t.Truncate(beat))/beat), most))
}

// due puts at how many beats from now t has come.
func (b *bits) due(t time.Time) {
	if t.IsZero() {
		b.put(255)
		return
	}
	b.put(int(t.Add(beat-1).Truncate(beat).Sub(b.now.Truncate(beat)) / beat))
}
