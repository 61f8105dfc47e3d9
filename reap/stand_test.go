package reap_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// A stand is a loop with fakes around it, inside a bubble of testing/synctest: time stands still while anything moves.
type stand struct {
	*testing.T
	inbox  *reap.Inbox
	owners *owners
	engine *engine
	log    *recorder
	loop   *reap.Loop
	cancel context.CancelFunc
	ended  chan error

	mu   sync.Mutex
	seen seen
}

// seen is what the loop has told so far.
type seen struct {
	rescans int
	counts  int
	reports []reap.Reported
	passes  int
	status  reap.Status
}

func (s *stand) note(edit func(*seen)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(&s.seen)
}

// told is what the loop has told so far.
func (s *stand) told() (told seen) {
	s.note(func(s *seen) { told = *s })
	return told
}

// onStand runs a test with a running loop.
func onStand(t *testing.T, edit func(*reap.Config), test func(s *stand)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stand{T: t, inbox: reap.NewInbox(), log: &recorder{}, ended: make(chan error, 1)}
		s.owners = &owners{inbox: s.inbox, living: map[int]watch.Process{}, held: map[int]watch.Process{}}
		s.engine = &engine{t: t, inbox: s.inbox, sandboxes: map[watch.ID]watch.Sandbox{}, under: map[watch.ID]bool{}}
		c := reap.Config{
			Policy: reap.DefaultPolicy(), Picture: watch.NewPicture(thisBoot), Inbox: s.inbox, Owners: s.owners,
			Platforms: map[watch.Kind]reap.Platform{watch.Container: s.engine},
			Log:       slog.New(s.log), Workers: 4, Timeout: time.Minute,
			Rescan:   func() { s.note(func(s *seen) { s.rescans++ }) },
			Count:    func() { s.note(func(s *seen) { s.counts++ }) },
			Reported: func(r reap.Reported) { s.note(func(s *seen) { s.reports = append(s.reports, r) }) },
			Each:     func(status reap.Status) { s.note(func(s *seen) { s.passes++; s.status = status }) },
		}
		if edit != nil {
			edit(&c)
		}
		s.loop = reap.NewLoop(c)
		ctx, cancel := context.WithCancel(t.Context())
		s.cancel = cancel
		running := make(chan struct{})
		go func() {
			defer close(running)
			s.ended <- s.loop.Run(ctx)
		}()
		defer func() { // also when the test gives up
			cancel()
			<-running
		}()
		s.inbox.Post(ours, here)
		s.settle()
		test(s)
	})
}

// settle waits until nobody has anything to do but wait for the clock.
func (s *stand) settle() { synctest.Wait() }

// pass lets time pass.
func (s *stand) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// run starts sandboxes and tells of them.
func (s *stand) run(sandboxes ...watch.Sandbox) {
	for _, sandbox := range sandboxes {
		s.engine.start(sandbox)
		s.inbox.Post(watch.SandboxSeen{Sandbox: sandbox, Asked: time.Now()})
	}
	s.settle()
}

// list tells of all sandboxes that there are, as a scan does.
func (s *stand) list() {
	s.inbox.Post(watch.ScanBegun{At: time.Now()}, s.engine.list(), watch.ScanEnded{At: time.Now()})
	s.settle()
}

// result is what Run returned, and whether it did.
func (s *stand) result() (error, bool) {
	select {
	case err := <-s.ended:
		return err, true
	default:
		return nil, false
	}
}

// did checks what was asked of the engine, and when: "0s kill a".
func (s *stand) did(want ...string) {
	s.Helper()
	got := s.engine.did()
	if !slices.Equal(got, want) {
		s.Fatalf("the engine was asked to\n%q\nwant\n%q", got, want)
	}
}

// born is a sandbox that was created just now.
func born(name string, terms labels, edits ...func(*watch.Sandbox)) watch.Sandbox {
	s := labelled(name, terms)
	s.Created = time.Now()
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

// stopped is a sandbox without code that runs.
func stopped(s *watch.Sandbox) { s.State, s.Init = watch.Stopped, watch.Process{} }

// owners is what watches processes, without processes.
type owners struct {
	inbox *reap.Inbox

	mu     sync.Mutex
	living map[int]watch.Process
	held   map[int]watch.Process
	checks int
}

func (o *owners) Hold(pid int) watch.ProcessSeen {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, ok := o.living[pid]
	if !ok {
		return watch.ProcessSeen{PID: pid, Life: watch.Exited, At: time.Now()}
	}
	o.held[pid] = p
	return watch.ProcessSeen{PID: pid, Process: p, Born: time.Now().Add(-time.Hour), Life: watch.Alive, At: time.Now()}
}

func (o *owners) Release(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.held, pid)
}

func (o *owners) Check() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.checks++
	for pid, p := range o.held {
		if o.living[pid] != p {
			o.inbox.Post(watch.ProcessSeen{PID: pid, Process: p, Life: watch.Exited, At: time.Now()})
		}
	}
}

// live starts an owner.
func (o *owners) live(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.living[pid] = watch.Process{PID: pid, Start: 70, Boot: thisBoot}
}

// vanish ends an owner, and nobody is told.
func (o *owners) vanish(pid int) watch.Process {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.living[pid]
	delete(o.living, pid)
	return p
}

// die ends an owner, and its pidfd tells.
func (o *owners) die(pid int) {
	o.inbox.Post(watch.ProcessSeen{PID: pid, Process: o.vanish(pid), Life: watch.Exited, At: time.Now()})
}

func (o *owners) holds() []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	var pids []int
	for pid := range o.held {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// How long things take with the engine of these tests.
const (
	initDies    = time.Millisecond
	engineSees  = 42 * time.Millisecond
	removalTime = 30 * time.Millisecond
)

// An engine is a platform without containers.
type engine struct {
	t     *testing.T
	inbox *reap.Inbox

	// Hooks, set before the first sandbox is run; nil: it goes as it should.
	refuse func(step watch.Step) error
	remove func(ctx context.Context, name string) error
	parts  func(s watch.Sandbox) // told what a removal is told
	freed  []watch.Sandbox       // not in use any more, as is told when a container is removed

	mu        sync.Mutex
	sandboxes map[watch.ID]watch.Sandbox
	asked     []string
	removals  []time.Time
	under     map[watch.ID]bool // being removed
	most      int               // removals at once
	began     time.Time
}

func (e *engine) start(s watch.Sandbox) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sandboxes[s.ID] = s
	if e.began.IsZero() {
		e.began = time.Now()
	}
}

func (e *engine) list() watch.Listed { return e.listOf(watch.Container) }

func (e *engine) listOf(kind watch.Kind) watch.Listed {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := watch.Listed{Kind: kind, Asked: time.Now()}
	for id, s := range e.sandboxes {
		if id.Kind == kind {
			list.Sandboxes = append(list.Sandboxes, s)
		}
	}
	return list
}

func (e *engine) names() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	names := []string{}
	for id := range e.sandboxes {
		names = append(names, id.Name)
	}
	slices.Sort(names)
	return names
}

// did is what was asked so far, each with the time since the first sandbox was started.
func (e *engine) did() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.asked)
}

// tries is when removals began.
func (e *engine) tries() []time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.removals)
}

// note writes down what is asked. The caller holds the lock.
func (e *engine) note(what string, id watch.ID) {
	e.asked = append(e.asked, fmt.Sprintf("%s %s %s", time.Since(e.began), what, id.Name))
	if e.under[id] {
		e.t.Errorf("R4: %s %s while it is being removed", what, id.Name)
	}
}

// Stop does as platforms do: the init dies a moment later, and the engine notices after a while.
func (e *engine) Stop(known watch.Sandbox, step watch.Step) error {
	id := known.ID
	e.mu.Lock()
	defer e.mu.Unlock()
	e.note(step.String(), id)
	if e.refuse != nil {
		return e.refuse(step)
	}
	s, ok := e.sandboxes[id]
	if !ok || step != watch.Kill {
		return nil
	}
	init := s.Init
	stopped(&s)
	e.sandboxes[id] = s
	time.AfterFunc(initDies, func() { e.inbox.Post(watch.InitExited{ID: id, Process: init, At: time.Now()}) })
	time.AfterFunc(engineSees, func() { e.inbox.Post(watch.SandboxSeen{Sandbox: s, Asked: time.Now()}) })
	return nil
}

func (e *engine) Remove(ctx context.Context, known watch.Sandbox, _ reap.Tell) error {
	id := known.ID
	e.mu.Lock()
	e.note("remove", id)
	e.removals = append(e.removals, time.Now())
	e.under[id] = true
	e.most = max(e.most, len(e.under))
	remove := e.remove
	if e.parts != nil {
		e.parts(known)
	}
	e.mu.Unlock()

	var err error
	if remove != nil {
		err = remove(ctx, id.Name)
	} else {
		<-time.After(removalTime)
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.under, id)
	if err == nil {
		delete(e.sandboxes, id)
	}
	if err == nil && id.Kind == watch.Container {
		for _, s := range e.freed {
			s.InUse = false
			e.inbox.Post(watch.SandboxSeen{Sandbox: s, Asked: time.Now()})
		}
	}
	return err
}

// A recorder is a slog.Handler that keeps what it is given.
type recorder struct {
	mu      sync.Mutex
	records []record
}

// A record is a log record without its words.
type record struct {
	level slog.Level
	attrs map[string]any
}

func (r record) event() string {
	event, _ := r.attrs[watch.KeyEvent].(string)
	return event
}

func (r *recorder) Enabled(context.Context, slog.Level) bool { return true }

func (r *recorder) Handle(_ context.Context, rec slog.Record) error {
	got := record{rec.Level, map[string]any{}}
	rec.Attrs(func(a slog.Attr) bool {
		got.attrs[a.Key] = a.Value.Resolve().Any()
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, got)
	return nil
}

func (r *recorder) WithAttrs([]slog.Attr) slog.Handler { panic("the loop has no use for this") }
func (r *recorder) WithGroup(string) slog.Handler      { panic("the loop has no use for this") }

// told returns the records of an event so far, of at least this level.
func (r *recorder) told(event string, level slog.Level) []record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []record
	for _, rec := range r.records {
		if rec.event() == event && rec.level >= level {
			found = append(found, rec)
		}
	}
	return found
}
