package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"watcher/watch"
)

// A Census knows the processes of programs: it holds those that it has found, posts a [watch.ProgramSeen] when one appears
// or dies, and tells of all in a complete look. It is safe for concurrent use.
type Census struct {
	holder
	programs []watch.Program  // never changed in place
	follow   int              // how often they were replaced
	execed   map[int]struct{} // who execed and has not been looked at
	closed   bool

	count   chan struct{} // a complete look is wanted
	exec    chan struct{} // somebody execed
	walking chan struct{} // full while somebody takes a complete look
	at      atomic.Int64  // the process that the complete look is at
}

// NewCensus returns a Census that follows nothing. post must neither block nor call back.
func NewCensus(host *Host, post func(...watch.Event)) *Census {
	return &Census{
		holder: newHolder(host, post, func(p *held, life watch.Life, at time.Time) []watch.Event {
			return p.seenAs(p.programs, life, at)
		}),
		execed:  map[int]struct{}{},
		count:   make(chan struct{}, 1),
		exec:    make(chan struct{}, 1),
		walking: make(chan struct{}, 1),
	}
}

func (p *held) member(life watch.Life) watch.Member {
	return watch.Member{Process: p.process, Born: p.born, Life: life}
}

// seenAs says of each of these programs that p is its process, or was until at.
func (p *held) seenAs(programs []string, life watch.Life, at time.Time) (events []watch.Event) {
	m := p.member(life)
	if life == watch.Exited {
		m.At = at
	}
	for _, name := range programs {
		events = append(events, watch.ProgramSeen{Program: name, Member: m, At: at})
	}
	return events
}

// Follow replaces the programs that are followed. Who is of the new ones is told by the next complete look.
func (c *Census) Follow(programs []watch.Program) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.programs = slices.Clone(programs)
	c.follow++
	for pid, p := range c.all {
		p.programs = slices.DeleteFunc(p.programs, func(name string) bool { return !c.follows(name) })
		if len(p.programs) == 0 {
			c.drop(pid)
		}
	}
}

// follows reports whether a program is followed. The caller has the lock.
func (c *Census) follows(name string) bool {
	return slices.ContainsFunc(c.programs, func(p watch.Program) bool { return p.String() == name })
}

// Close lets go of every process, for good: there are no complete looks any more.
func (c *Census) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.holder.Close()
}

// Kind is what a list that failed was of.
func (c *Census) Kind() watch.Kind { return watch.Processes }

// Count asks [Census.Run] for a complete look that begins after this call. Its events are posted, and if it fails a
// [watch.ListFailed]. Calls that come before it has begun are one.
func (c *Census) Count() { poke(c.count) }

// Exec takes in that the kernel reported an exec of the process with that PID: Run looks at it within milliseconds.
func (c *Census) Exec(pid int, _ time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.programs) > 0 {
		c.execed[pid] = struct{}{}
		poke(c.exec)
	}
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run carries out what Count and Exec ask for, until ctx ends.
func (c *Census) Run(ctx context.Context) error {
	// Apart, so that an exec need not wait for a complete look. It is not waited for at the end either: see List.
	go c.followExecs(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.count:
		}
		events, err := c.List(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.post(watch.ListFailed{Kind: watch.Processes, At: time.Now(), Err: err})
		case len(events) > 0:
			c.post(events...)
		}
	}
}

// List takes a complete look. It returns a [watch.ProgramListed] for each program that is followed, or an error if it could
// not be complete (P6).
func (c *Census) List(ctx context.Context) ([]watch.Event, error) {
	select {
	case <-ctx.Done():
		return nil, c.abandoned(ctx)
	case c.walking <- struct{}{}:
	}
	if ctx.Err() != nil {
		<-c.walking
		return nil, c.abandoned(ctx)
	}
	type result struct {
		events []watch.Event
		err    error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-c.walking }()
		events, err := c.walk(ctx)
		for errors.Is(err, errReplaced) {
			events, err = c.walk(ctx)
		}
		done <- result{events, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("look at all processes: %w", r.err)
		}
		return r.events, nil
	case <-ctx.Done():
		// The arguments of a process are in its memory. While that cannot be had, as with a file system that hangs, neither can
		// they, and the reader hangs with it.
		return nil, c.abandoned(ctx)
	}
}

func (c *Census) abandoned(ctx context.Context) error {
	if pid := c.at.Load(); pid != 0 {
		return fmt.Errorf("look at all processes: at process %d: %w", pid, ctx.Err())
	}
	return fmt.Errorf("look at all processes: %w", ctx.Err())
}

// errReplaced says that the programs were replaced during a look. Whoever was let go of then may be lacking.
var errReplaced = errors.New("other programs are followed by now")

// walk takes a complete look.
func (c *Census) walk(ctx context.Context) ([]watch.Event, error) {
	asked := time.Now()
	v, err := c.visit()
	if v == nil || err != nil {
		return nil, err
	}
	defer v.close()
	c.Check()
	if err := c.host.whole(); err != nil {
		return nil, err
	}
	pids, err := v.pids()
	if err != nil {
		return nil, err
	}
	defer c.at.Store(0)
	leaving, err := v.examine(ctx, pids)
	if err == nil && len(leaving) > 0 {
		c.host.awaitEnds(leaving, leaveTime)
		leaving, err = v.examine(ctx, leaving)
	}
	for _, pid := range leaving {
		err = errors.Join(err, v.suspect(pid))
	}
	if err != nil {
		return nil, err
	}
	return c.listed(v, asked)
}

// leaveTime is how long a complete look waits for those that it found leaving. To tear down a gigabyte takes 60 ms.
const leaveTime = 100 * time.Millisecond

// awaitEnds returns when all processes are dead, or when its time is over.
func (h *Host) awaitEnds(pids []int, patience time.Duration) {
	var handles []*Handle
	var waits sync.WaitGroup
	for _, pid := range pids {
		if handle, err := h.Open(pid); err == nil {
			handles = append(handles, handle)
			waits.Go(func() { _ = handle.Wait() })
		}
	}
	release := sync.OnceFunc(func() {
		for _, handle := range handles {
			_ = handle.Close()
		}
	})
	timer := time.AfterFunc(patience, release)
	waits.Wait()
	timer.Stop()
	release()
}

// listed makes the events of a complete look. Who was found to be of a program before and lives is so still (P6), whatever
// the look itself saw.
func (c *Census) listed(v *visit, asked time.Time) (events []watch.Event, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, os.ErrClosed
	case c.follow != v.follow:
		return nil, errReplaced
	}
	for _, program := range v.programs {
		name := program.String()
		listed := watch.ProgramListed{Program: name, Asked: asked}
		for _, p := range c.all {
			if !p.exited && slices.Contains(p.programs, name) {
				listed.Members = append(listed.Members, p.member(watch.Alive))
			}
		}
		for _, m := range v.suspects[name] {
			if p := c.all[m.Process.PID]; p == nil || p.process != m.Process || !slices.Contains(p.programs, name) {
				listed.Members = append(listed.Members, m)
			}
		}
		slices.SortFunc(listed.Members, func(a, b watch.Member) int { return cmp.Compare(a.Process.PID, b.Process.PID) })
		events = append(events, listed)
	}
	for pid, p := range c.all {
		// Not at once: whoever knows when exactly it died may be just about to say so.
		if p.exited && p.counted {
			c.drop(pid)
		}
		p.counted = p.exited
	}
	return events, nil
}

// execDelay is how long an exec waits for others, so that they are looked at together. By then most of what is execed in a
// storm of short commands is gone, and costs no more than one system call.
const execDelay = 5 * time.Millisecond

// followExecs looks at those that execed, until ctx ends.
func (c *Census) followExecs(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.exec:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(execDelay):
		}
		if err := c.visitExeced(ctx); err != nil && ctx.Err() == nil {
			c.post(watch.LookFailed{At: time.Now(), Err: fmt.Errorf("look at a process that execed: %w", err)})
		}
	}
}

func (c *Census) visitExeced(ctx context.Context) error {
	c.mu.Lock()
	pids := slices.Collect(maps.Keys(c.execed))
	clear(c.execed)
	c.mu.Unlock()
	v, err := c.visit()
	if v == nil || err != nil {
		return err
	}
	defer v.close()
	v.tell = true
	// Those that may be of a program are left to the next complete look, as are those that leave.
	_, err = v.examine(ctx, pids)
	return err
}

// A visit is a look at processes for the programs that were followed when it began.
type visit struct {
	*look
	census   *Census
	programs []watch.Program
	follow   int
	tell     bool                      // post who is found
	suspects map[string][]watch.Member // by program: who may be of it
}

// visit begins a look, unless nothing is followed: then it returns nil.
func (c *Census) visit() (*visit, error) {
	c.mu.Lock()
	v := visit{census: c, programs: c.programs, follow: c.follow, suspects: map[string][]watch.Member{}}
	c.mu.Unlock()
	if len(v.programs) == 0 {
		return nil, nil
	}
	var err error
	v.look, err = c.host.look()
	return &v, err
}

// examine looks at processes and holds those that are of a program. It returns those that run nothing any more and are not
// dead yet.
func (v *visit) examine(ctx context.Context, pids []int) (leaving []int, err error) {
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !v.tell {
			v.census.at.Store(int64(pid))
		}
		s, err := v.open(pid)
		if err == nil {
			err = v.judge(s)
			s.close()
		}
		switch {
		case errors.Is(err, ErrGone):
		case errors.Is(err, errLeaving):
			leaving = append(leaving, pid)
		case err != nil:
			return nil, err
		}
	}
	return leaving, nil
}

var errLeaving = errors.New("the process runs nothing")

// judge finds out of which programs a process is.
func (v *visit) judge(s *subject) error {
	im, err := s.image("")
	if err != nil {
		return err
	}
	is, maybe := v.sort(im)
	if !im.none && len(is)+len(maybe) == 0 && !v.census.tentative(s.pid) {
		return nil // as nearly all
	}
	// The image once more, and it is this one that counts: a child that the first look met between its fork and its exec
	// would otherwise pass for one that execed its parent's program.
	st, err := s.stat("")
	switch {
	case err != nil:
		return err
	case st.kernel(), st.dead():
		return nil
	}
	if im, err = s.image(""); err == nil && im.none {
		_, im, err = s.worker()
	}
	switch {
	case err != nil:
		return err
	case im.none:
		return errLeaving
	}
	is, maybe = v.sort(im)
	if s.pid == 1 && len(maybe) > 0 && v.census.host.isInit() {
		maybe = nil
	}
	if err := v.census.enlist(s, st, is, maybe, v.tell); err != nil {
		return err
	}
	return v.note(s.pid, st, maybe)
}

// isInit reports whether PID 1 is the init of the host. There are hosts that let nobody look into it, root included. It lives
// for as long as they run: a rule that means it would never find an orphan, and every other would find none on its account.
// In a container, the first process may be anything.
func (h *Host) isInit() bool {
	initial, err := h.InitialNamespace()
	return err == nil && initial
}

// sort returns the programs that a process with this image is of, and those that it may be of.
func (v *visit) sort(im image) (is, maybe []string) {
	for _, p := range v.programs {
		switch life, ok := im.life(p); {
		case !ok:
		case life == watch.Alive:
			is = append(is, p.String())
		default:
			maybe = append(maybe, p.String())
		}
	}
	return is, maybe
}

// suspect notes that a process may be of any program.
func (v *visit) suspect(pid int) error {
	s, err := v.open(pid)
	if err == nil {
		defer s.close()
		var st stat
		if st, err = s.stat(""); err == nil && !st.dead() {
			_, maybe := v.sort(image{})
			err = v.note(pid, st, maybe)
		}
	}
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

func (v *visit) note(pid int, st stat, programs []string) error {
	if len(programs) == 0 {
		return nil
	}
	born, err := bornAt(st.start)
	if err != nil {
		return err
	}
	for _, name := range programs {
		m := watch.Member{Process: v.census.host.identity(pid, st.start), Born: born, Life: watch.Unknown}
		v.suspects[name] = append(v.suspects[name], m)
	}
	return nil
}

// tentative reports whether the process that is held at a PID had not execed when it was found.
func (c *Census) tentative(pid int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.all[pid]
	return p != nil && p.forked
}

// enlist holds a process that is of some programs, and may be of others. It stays of them (P6).
func (c *Census) enlist(s *subject, st stat, is, maybe []string, tell bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	is = slices.DeleteFunc(is, func(name string) bool { return !c.follows(name) })
	p := c.all[s.pid]
	if len(is) == 0 && (p == nil || !p.forked) {
		return nil
	}
	if p != nil && !p.exited {
		exited, err := c.host.exited(p)
		if err != nil {
			return err
		}
		if exited {
			c.bury(p, time.Now())
		}
	}
	fresh := p == nil || p.exited
	if fresh {
		if c.closed || len(is) == 0 {
			return nil
		}
		var err error
		if p, err = c.host.hold(s.pid); err != nil {
			return err
		}
		p.forked = st.forked()
	}
	// It has the PID still, so it is the one that we hold by that PID.
	if now, err := s.stat(""); err != nil || now.start != p.process.Start {
		if fresh {
			p.close()
		}
		return err
	}
	if p.forked && !st.forked() && len(maybe) == 0 {
		// It has execed. What it is now counts, and not what it was as a child.
		p.forked = false
		p.programs = slices.DeleteFunc(p.programs, func(name string) bool { return !slices.Contains(is, name) })
		if tell {
			// Only a complete look tells that somebody is of a program no more.
			c.Count()
		}
		if len(is) == 0 {
			c.drop(s.pid)
			return nil
		}
	}
	is = slices.DeleteFunc(is, func(name string) bool { return slices.Contains(p.programs, name) })
	p.programs = append(p.programs, is...)
	if events := p.seenAs(is, watch.Alive, time.Now()); tell && len(events) > 0 {
		// At this time, and not that of the look: a list may have been made in between, without it.
		c.post(events...)
	}
	if fresh {
		c.keep(p)
	}
	return nil
}
