package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// How many sandboxes the chaos has, and the seed of an earlier one that is to be replayed. The seed decides who does
// what; how the parts then interleave is the machine's.
const (
	chaosSize = "WATCHER_CHAOS_N"
	chaosSeed = "WATCHER_CHAOS_SEED"
)

const (
	smallChaos = 100 // sandboxes, where nobody asks for more
	// slots bounds how many sandboxes exist at once; beyond some 60 the engine only gets slower.
	slots = 60
	// survivors is how many of them, or a few more, may belong to owners that live to the end.
	survivors = 12
)

// TestChaos is the three promises at once. Many owners of sandboxes die at random, while watcher, its engine, its disk
// and its view of the host fail at random. In the end no orphan exists (L), no sandbox was touched whose owner lived
// (S), and every failure is accounted for (D).
func TestChaos(t *testing.T) {
	if os.Getenv(chaosSize) == "" {
		t.Skipf("NOT RUN: minutes of faults of every kind; make chaos runs it, %s says with how many sandboxes", chaosSize)
	}
	n, seed := chaosNumber(t, chaosSize, smallChaos), chaosNumber(t, chaosSeed, uint64(time.Now().UnixNano()))
	t.Logf("%d sandboxes, seed %d; again: %s=%d %s=%d", n, seed, chaosSize, n, chaosSeed, seed)
	// Its time is bounded. On two quiet cores it needs half of this or less.
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+time.Duration(n)*1200*time.Millisecond)
	defer cancel()
	c := newChaos(t, n, seed, cancel)
	defer c.halt()
	c.spawn(func() error { return c.observe(ctx) })

	// Owners and faults come until all sandboxes have been made and every fault has happened.
	var dealt, begotten errgroup.Group
	made := make(chan struct{})
	for line, faults := range [][]fault{
		{{"restart of the engine", c.restartEngine}, {"SIGKILL of the engine", c.killEngine}, {"SIGSTOP of the engine", c.pauseEngine}},
		{{"SIGKILL of watcher", c.killWatcher}, {"full state disk", c.fillDisk}, {"flood of exits", c.flood}},
	} {
		rnd := rand.New(rand.NewPCG(seed, 1<<32+uint64(line)))
		dealt.Go(c.guarded(func() error { return c.deal(ctx, rnd, faults, made) }))
	}
	for range 4 { // as many as keep the engine busy
		begotten.Go(c.guarded(func() error { return c.beget(ctx) }))
	}
	err := begotten.Wait()
	close(made)
	if err := errors.Join(err, dealt.Wait(), c.deaths.Wait()); err != nil {
		t.Errorf("chaos: %v", err)
	}
	if !t.Failed() {
		c.settle(t.Context())
		c.verify(t.Context())
	}
	c.halt()
	t.Log("\n" + c.table())
}

func chaosNumber(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

type chaos struct {
	t      *testing.T
	e      *dockertest.Engine
	seed   uint64
	long   bool // the full run
	state  string
	config string

	observers errgroup.Group
	deaths    errgroup.Group
	cancel    context.CancelFunc
	slots     *semaphore.Weighted
	owners    atomic.Uint64

	mu        sync.Mutex
	left      int       // sandboxes to make
	daemons   []*daemon // one after the other
	sandboxes map[string]*chaosSandbox
	heads     map[string]*chaosOwner // by label
	kept      int                    // sandboxes of owners that live to the end
	windows   []window
	counts    map[string]int
	harm      map[string][]happening // what was done to a container
	born      map[string]time.Time
	gone      map[string]time.Time
	begin     time.Time
}

type happening struct {
	what events.Action
	at   time.Time
}

// A window is the time of a fault.
type window struct {
	what     string
	from, to time.Time
}

type chaosOwner struct {
	*processtest.Owner
	end  string    // how it dies; "" lives to the end
	died time.Time // at the latest moment when it surely lived
}

type chaosSandbox struct {
	id      string
	owner   *chaosOwner
	ttl     time.Duration
	created time.Time // by the engine's clock; zero if that never told
	exits   bool      // ends by itself
	life    life
	init    int // a pidfd; -1: none
	free    func()
}

func newChaos(t *testing.T, n, seed uint64, cancel context.CancelFunc) *chaos {
	c := &chaos{
		t: t, e: dockertest.Start(t, dockertest.LiveRestore()), left: int(n), seed: seed, long: n > smallChaos, cancel: cancel,
		config:    configFile(t, "[scan]\ninterval = \"5s\"\n[retry]\nbase = \"200ms\"\ncap = \"2s\"\n"),
		slots:     semaphore.NewWeighted(slots),
		sandboxes: map[string]*chaosSandbox{}, heads: map[string]*chaosOwner{}, counts: map[string]int{},
		harm: map[string][]happening{}, born: map[string]time.Time{}, gone: map[string]time.Time{},
		begin: time.Now(),
	}
	c.e.Image(t)
	// A small disk of our own. It lies in the engine's folder, whose guard unmounts it if we are killed.
	c.state = filepath.Join(c.e.Dir(), "watcher-state")
	if err := os.Mkdir(c.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", c.state, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=256k,mode=0700"); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(c.state, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			t.Errorf("unmount the small disk: %v", err)
		}
	})
	c.launch()
	return c
}

// guarded makes f end everything if it fails, be it by an error or by failing the test.
func (c *chaos) guarded(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if err != nil || c.t.Failed() {
				c.cancel()
			}
		}()
		return f()
	}
}

func (c *chaos) spawn(f func() error) { c.observers.Go(c.guarded(f)) }

// halt ends what runs beside the test, which may not outlive the engine. Calling it again does nothing.
func (c *chaos) halt() {
	c.cancel()
	_ = c.deaths.Wait()
	_ = c.observers.Wait()
	for _, s := range c.sandboxes {
		if s.init >= 0 {
			_ = unix.Close(s.init)
			s.init = -1
		}
	}
}

func (c *chaos) launch() {
	d := launchDaemon(c.t, program(c.t, "--docker-host", c.e.Host(), "--state-dir", c.state, "--config", c.config))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.daemons = append(c.daemons, d)
}

func (c *chaos) daemon() *daemon {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.daemons[len(c.daemons)-1]
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// pause lets some time pass; false if the chaos ends before that.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func upTo(rnd *rand.Rand, d time.Duration) time.Duration { return time.Duration(rnd.Int64N(int64(d))) }

// A fault is begun and ended by one call.
type fault struct {
	what string
	do   func(ctx context.Context, rnd *rand.Rand)
}

// deal lets faults happen in turn, each of them once in every round, until all sandboxes are made.
func (c *chaos) deal(ctx context.Context, rnd *rand.Rand, faults []fault, made <-chan struct{}) error {
	for round := 0; ; round++ {
		for _, i := range rnd.Perm(len(faults)) {
			select {
			case <-made:
				if round > 0 {
					return nil
				}
			default:
			}
			most := 3 * time.Second
			if c.long { // its faults are longer too, and most of the time the engine shall work
				most = 30 * time.Second
			}
			if !pause(ctx, 300*time.Millisecond+upTo(rnd, most)) {
				return ctx.Err()
			}
			w := window{what: faults[i].what, from: time.Now()}
			c.count(w.what)
			faults[i].do(ctx, rnd)
			w.to = time.Now()
			c.mu.Lock()
			c.windows = append(c.windows, w)
			c.mu.Unlock()
		}
	}
}

func (c *chaos) restartEngine(context.Context, *rand.Rand) { c.e.Restart(c.t) }

func (c *chaos) killEngine(ctx context.Context, rnd *rand.Rand) {
	c.e.Kill(c.t)
	pause(ctx, upTo(rnd, time.Second))
	c.e.Restart(c.t)
}

func (c *chaos) pauseEngine(ctx context.Context, _ *rand.Rand) {
	c.e.Pause(c.t)
	d := 2 * time.Second
	if c.long {
		d = 20 * time.Second
	}
	pause(ctx, d)
	c.e.Resume(c.t)
}

func (c *chaos) killWatcher(ctx context.Context, rnd *rand.Rand) {
	c.daemon().kill()
	pause(ctx, upTo(rnd, time.Second))
	c.launch()
}

// fillDisk leaves no byte of watcher's disk, as a neighbour of it may.
func (c *chaos) fillDisk(ctx context.Context, rnd *rand.Rand) {
	ballast := filepath.Join(c.state, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		c.t.Errorf("fill the disk: %v", err)
		return
	}
	for err == nil {
		_, err = f.Write(make([]byte, os.Getpagesize()))
	}
	if !errors.Is(err, unix.ENOSPC) {
		c.t.Errorf("fill the disk: %v", err)
	}
	pause(ctx, time.Second+upTo(rnd, 3*time.Second))
	if err := errors.Join(f.Close(), os.Remove(ballast)); err != nil {
		c.t.Errorf("empty the disk: %v", err)
	}
}

// flood has more processes exit than the connector's buffer holds, while watcher does not come to read it.
func (c *chaos) flood(context.Context, *rand.Rand) {
	d := c.daemon()
	d.signal(syscall.SIGSTOP)
	processtest.SwarmExits(c.t, 30_000)
	d.signal(syscall.SIGCONT)
}

// beget makes owners with one to four sandboxes each, until there have been enough sandboxes.
func (c *chaos) beget(ctx context.Context) error {
	for {
		number := c.owners.Add(1)
		rnd := rand.New(rand.NewPCG(c.seed, number))
		c.mu.Lock()
		many := min(1+rnd.IntN(4), c.left)
		c.left -= many
		c.mu.Unlock()
		if many == 0 {
			return nil
		}
		o := &chaosOwner{Owner: processtest.StartOwner(c.t)}
		ends := []string{"success", "error", "SIGKILL"}
		o.end = ends[rnd.IntN(len(ends))]
		c.mu.Lock()
		if rnd.IntN(12) == 0 && c.kept < survivors {
			o.end = ""
			c.kept += many
		}
		c.heads[o.Label()] = o
		c.mu.Unlock()
		early := o.end != "" && rnd.IntN(6) == 0
		delay := upTo(rnd, 3*time.Second)
		if early { // while its sandboxes are made
			c.deaths.Go(c.guarded(func() error { return c.die(ctx, o, delay/6) }))
		}
		for i := range many {
			if err := c.make(ctx, rnd, o, fmt.Sprintf("chaos-%d-%d", number, i)); err != nil {
				return err
			}
		}
		if o.end != "" && !early {
			c.deaths.Go(c.guarded(func() error { return c.die(ctx, o, delay) }))
		}
	}
}

// make makes one sandbox. With an owner that has died meanwhile it may come to nothing; then another has to do.
func (c *chaos) make(ctx context.Context, rnd *rand.Rand, o *chaosOwner, name string) error {
	labels := ownedBy(o.Label())
	s := &chaosSandbox{owner: o, init: -1}
	if rnd.IntN(5) == 0 {
		s.ttl = time.Second + upTo(rnd, 5*time.Second)
		labels[watch.LabelTTL] = s.ttl.String()
	}
	if rnd.IntN(8) == 0 {
		labels[watch.LabelStopTimeout] = "500ms"
	}
	args := [][]string{{"sleep"}, {"sleep"}, {"sleep"}, {"sleep"}, {"deaf"}, {"spawn", "3"}, {"exit", "0"}, {"exit", "7"}}[rnd.IntN(8)]
	s.exits = args[0] == "exit"
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	s.free = sync.OnceFunc(func() { c.slots.Release(1) })
	for try := 0; ; try++ {
		// A new name each time: the engine may have made the last one before it was killed.
		id, err := c.e.Create(ctx, dockertest.ContainerOptions{Name: fmt.Sprintf("%s-%d", name, try), Labels: labels, Args: args})
		if id != "" {
			s.id = id
			c.mu.Lock()
			c.sandboxes[id] = s
			c.mu.Unlock()
			c.hold(ctx, s)
			return ctx.Err()
		}
		if c.dead(o) || err == nil {
			c.mu.Lock()
			c.counts["owner died before its sandbox was made"]++
			c.left++
			c.mu.Unlock()
			s.free()
			return nil
		}
		c.count("sandbox made in a further try")
		if !pause(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
}

func (c *chaos) dead(o *chaosOwner) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !o.died.IsZero()
}

// hold finds out how a sandbox runs, and keeps a pidfd of its init, which tells of its death without an engine's help.
func (c *chaos) hold(ctx context.Context, s *chaosSandbox) {
	for {
		r, err := c.e.Client().ContainerInspect(ctx, s.id)
		if err == nil {
			c.mu.Lock()
			s.created, _ = time.Parse(time.RFC3339Nano, r.Created)
			s.life = life{r.State.Pid, r.RestartCount, r.State.StartedAt}
			if r.State.Pid != 0 {
				if s.init, err = unix.PidfdOpen(r.State.Pid, unix.PIDFD_NONBLOCK); err != nil {
					s.init = -1
				}
			}
			c.mu.Unlock()
			return
		}
		if errdefs.IsNotFound(err) || !pause(ctx, 100*time.Millisecond) {
			return
		}
	}
}

// die ends an owner after some time. Until then its sandboxes were none of watcher's business.
func (c *chaos) die(ctx context.Context, o *chaosOwner, after time.Duration) error {
	if !pause(ctx, after) {
		return ctx.Err()
	}
	c.mu.Lock()
	now := time.Now()
	for _, s := range c.sandboxes {
		if s.owner == o && s.init >= 0 && !s.exits && now.Before(s.end()) && exited(s.init) {
			c.t.Errorf("S: the init of %.12s was dead while its owner %d lived", s.id, o.PID())
		}
	}
	o.died = time.Now()
	c.counts["owner died: "+o.end]++
	c.mu.Unlock()
	switch o.end {
	case "success":
		o.Exit()
	case "error":
		o.Abort()
	default:
		o.Kill()
	}
	return nil
}

func exited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// end is when the time of a sandbox is over; far in the future if it has all the time. The caller holds the lock.
func (s *chaosSandbox) end() time.Time {
	if s.ttl == 0 || s.created.IsZero() {
		return time.Now().Add(time.Hour)
	}
	return s.created.Add(s.ttl)
}

// doomed is the moment from which on watcher may touch a sandbox; zero if it may not. The caller holds the lock.
func (c *chaos) doomed(s *chaosSandbox) time.Time {
	at := s.owner.died
	if s.ttl != 0 {
		created := cmp.Or(s.created, c.born[s.id])
		if end := created.Add(s.ttl); !created.IsZero() && (at.IsZero() || end.Before(at)) {
			at = end
		}
	}
	// An owner may die before its sandbox is there.
	if born := c.born[s.id]; !at.IsZero() && born.After(at) {
		at = born
	}
	return at
}

// observe sees what happens to containers, through all restarts of the engine: by its events, and by lists for what
// those leave out.
func (c *chaos) observe(ctx context.Context) error {
	since := time.Now()
	for ctx.Err() == nil {
		session, end := context.WithCancel(ctx)
		messages, errs := c.e.Client().Events(session, events.ListOptions{
			Since:   fmt.Sprintf("%.9f", float64(since.UnixNano())/1e9),
			Filters: filters.NewArgs(filters.Arg("type", string(events.ContainerEventType))),
		})
		beat := time.NewTicker(time.Second)
		for open := true; open; {
			select {
			case m := <-messages:
				since = time.Unix(0, m.TimeNano)
				c.saw(m)
			case <-beat.C:
				c.miss(session)
			case <-errs:
				open = false
			}
		}
		beat.Stop()
		end()
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

func (c *chaos) saw(m events.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, at := m.Actor.ID, time.Unix(0, m.TimeNano)
	switch m.Action {
	case events.ActionCreate:
		c.born[id] = at
	case events.ActionDie, events.ActionKill, events.ActionStop, events.ActionPause, events.ActionRestart, events.ActionDestroy:
		c.harm[id] = append(c.harm[id], happening{m.Action, at})
		if m.Action == events.ActionDestroy {
			c.wentAt(id, at)
		}
	}
}

// wentAt notes that a container is gone. The caller holds the lock.
func (c *chaos) wentAt(id string, at time.Time) {
	if before, known := c.gone[id]; !known || at.Before(before) {
		c.gone[id] = at
	}
	if s := c.sandboxes[id]; s != nil {
		s.free()
	}
}

// miss notes which containers are gone although no event said so.
func (c *chaos) miss(ctx context.Context) {
	c.mu.Lock()
	asked := slices.Collect(maps.Keys(c.sandboxes))
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	list, err := c.e.Client().ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return
	}
	there := map[string]bool{}
	for _, s := range list {
		there[s.ID] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range asked {
		if !there[id] {
			c.wentAt(id, time.Now())
		}
	}
}

// settle waits until nothing is left but the sandboxes of the living.
func (c *chaos) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		orphans, err := c.orphans(ctx)
		if err == nil && len(orphans) == 0 && len(casesIn(c.t, c.state)) == 0 {
			return
		}
		if !pause(ctx, 100*time.Millisecond) {
			c.t.Errorf("L: orphans exist: %v %v; on record: %v", orphans, err, casesIn(c.t, c.state))
			return
		}
	}
}

// orphans asks the engine alone, and knows owners by their labels: also what we were never told the ID of is one.
func (c *chaos) orphans(ctx context.Context) ([]string, error) {
	list, err := c.e.Client().ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []string
	for _, s := range list {
		o := c.heads[s.Labels[watch.LabelOwner]]
		if o == nil || !o.died.IsZero() || s.Labels[watch.LabelTTL] != "" {
			found = append(found, fmt.Sprintf("%.12s %v %s", s.ID, s.Names, s.Status))
		}
	}
	return found, nil
}

// verify holds what happened against the promises.
func (c *chaos) verify(ctx context.Context) {
	t := c.t
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d := c.daemon()
	d.waitFor("a first full scan", telling(watch.EventScan))
	if code := d.stop(); code != exitDone {
		t.Errorf("exit code %d, want %d", code, exitDone)
	}
	if r := on(t, c.e, "failed", "-o", "json", "--state-dir", c.state); strings.TrimSpace(r.stdout) != "[]" || r.code != exitDone {
		t.Errorf("D: dead letters are left: %s%s", r.stdout, r.stderr)
	}
	c.miss(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.sandboxes {
		at := c.doomed(s)
		for _, harm := range c.harm[id] {
			if byItself := s.exits && harm.what == events.ActionDie; !byItself && (at.IsZero() || harm.at.Before(at)) {
				t.Errorf("S: %.12s saw %q at %s, and its owner %d lived until %s", id, harm.what, harm.at, s.owner.PID(), at)
			}
		}
		if !at.IsZero() {
			continue
		}
		r, err := c.e.Client().ContainerInspect(ctx, id)
		if err != nil {
			t.Errorf("S: %.12s of the living owner %d: %v", id, s.owner.PID(), err)
			continue
		}
		now := life{r.State.Pid, r.RestartCount, r.State.StartedAt}
		if s.exits {
			now.pid, s.life.pid = 0, 0
		}
		// One that was being started when its engine was killed has never run.
		if runs := s.life.pid != 0; now != s.life || r.State.Running != runs {
			t.Errorf("S: %.12s of the living owner %d was touched: %+v, was %+v", id, s.owner.PID(), now, s.life)
		}
	}
	c.account()
}

// account finds for every failure that was told what came of it.
func (c *chaos) account() {
	t := c.t
	reaped := map[string]bool{}
	open := map[string]string{} // failures that nothing good has followed yet
	for _, d := range c.daemons {
		for _, r := range d.records(func(record) bool { return true }) {
			event, id := r.text(watch.KeyEvent), r.text(watch.KeyID)
			if event != "" {
				c.counts["told: "+event]++
			}
			at, _ := time.Parse(time.RFC3339Nano, r.text("time"))
			switch event {
			case watch.EventReaped:
				reaped[id] = true
				delete(open, id)
				c.counts["reaped: "+r.text(watch.KeyReason)]++
			case watch.EventReapFailed, watch.EventGaveUp:
				open[id] = r.text(watch.KeyError)
				c.counts["failed: "+kindOf(r.text(watch.KeyError))]++
			case watch.EventDocketFailed:
				if r.text(watch.KeyError) == "" {
					c.counts["docket: can be written again"]++
					continue
				}
				c.counts["docket: "+kindOf(r.text(watch.KeyError))]++
				if !c.within("full state disk", at, at) {
					t.Errorf("D: the docket failed while its disk was not full: %v", r)
				}
			case watch.EventSourceLost:
				c.counts["lost: "+r.text(watch.KeySource)]++
			}
		}
	}
	for id, why := range open {
		t.Errorf("D: %.12s failed, and nothing was told of it later: %s", id, why)
	}
	for id, s := range c.sandboxes {
		if at := c.doomed(s); !at.IsZero() && !c.gone[id].IsZero() && !reaped[id] {
			// The log of a daemon that is killed may lack its last words.
			c.counts["reaped, and not told because watcher was killed"]++
			if !c.within("SIGKILL of watcher", at, c.gone[id]) {
				t.Errorf("D: nobody told that %.12s was reaped", id)
			}
		}
	}
	left, err := os.ReadDir(filepath.Join(c.state, "cases"))
	if err != nil {
		t.Error(err)
	}
	c.counts["file that a SIGKILL left in the docket"] = len(left)
}

// within reports whether a fault went on between two moments, or within a second of them. The caller holds the lock.
func (c *chaos) within(what string, from, to time.Time) bool {
	return slices.ContainsFunc(c.windows, func(w window) bool {
		return w.what == what && w.from.Before(to.Add(time.Second)) && w.to.After(from.Add(-time.Second))
	})
}

// kindOf shortens an error to what it has in common with others of its kind.
func kindOf(text string) string {
	for _, kind := range []string{
		"not connected", "Cannot connect", "error during connect", "connection refused", "no such file", "connection reset", "broken pipe", "EOF", "deadline exceeded",
		"no space left", "driver failed", "busy", "canceled", "in progress",
	} {
		if strings.Contains(text, kind) {
			return kind
		}
	}
	return text[:min(len(text), 120)]
}

// table is what happened, in numbers. It is for after halt, so it needs no lock.
func (c *chaos) table() string {
	var lived []time.Duration
	var longest *chaosSandbox
	var most time.Duration
	for id, s := range c.sandboxes {
		at, gone := c.doomed(s), c.gone[id]
		if at.IsZero() || gone.IsZero() {
			continue
		}
		d := gone.Sub(at)
		lived = append(lived, d)
		if d > most {
			most, longest = d, s
		}
	}
	slices.Sort(lived)
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(key string, value any) { fmt.Fprintf(w, "%s\t%v\n", key, value) }
	row("seed", c.seed)
	row("took", time.Since(c.begin).Round(time.Second))
	row("sandboxes", len(c.sandboxes))
	row("owners", len(c.heads))
	row("orphans reaped", len(lived))
	row("kept, with a living owner", len(c.sandboxes)-len(lived))
	for _, key := range slices.Sorted(maps.Keys(c.counts)) {
		row(key, c.counts[key])
	}
	if len(lived) > 0 {
		at := func(p int) time.Duration { return lived[(len(lived)-1)*p/100].Round(time.Millisecond) }
		row("an orphan lived, p50", at(50))
		row("an orphan lived, p99", at(99))
		row("an orphan lived, max", at(100))
	}
	if longest != nil {
		from, to := c.doomed(longest), c.gone[longest.id]
		var then []string
		for _, f := range c.windows {
			if f.from.Before(to) && f.to.After(from) {
				then = append(then, fmt.Sprintf("%s (%s)", f.what, f.to.Sub(f.from).Round(10*time.Millisecond)))
			}
		}
		row("in that time", cmp.Or(strings.Join(then, ", "), "nothing"))
	}
	_ = w.Flush()
	return b.String()
}
