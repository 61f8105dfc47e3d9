package firecracker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// MicroVMs are those of this host that rules name. It is safe for concurrent use.
type MicroVMs struct {
	host  *process.Host
	post  func(...watch.Event)
	rules atomic.Pointer[ruleSet]

	mu     sync.Mutex
	all    map[watch.ID]*microVM
	owners map[watch.Process]*owner
	execed map[int]struct{}
	closed bool

	exec    chan struct{} // somebody execed
	listing chan struct{} // full while somebody lists
}

// A microVM is one that was found. Its fields are never changed in place, but for those under the lock of all.
type microVM struct {
	sight   *process.Sight // nil: it has no process, or none that it would be clear of
	sandbox watch.Sandbox  // the leaves: under the lock
	rule    *watch.Rule
	home    home
	began   time.Time // of the look that found it

	stranger bool // its process is run by somebody who has nothing in its folder (F10)

	// Under the lock:
	dead  bool                            // its process
	known map[watch.Claim]watch.OwnerSeen // what was found of each owner, the latest
}

// An owner is a process that was found to own microVMs, held.
type owner struct {
	handle *process.Handle
	died   time.Time // zero: it lives
}

// A ruleSet is the rules about microVMs of this kind.
type ruleSet struct{ list []*watch.Rule }

// New returns the microVMs of a host of which no rule speaks yet. post must neither block nor call back.
func New(host *process.Host, post func(...watch.Event)) *MicroVMs {
	m := &MicroVMs{
		host: host, post: post,
		all: map[watch.ID]*microVM{}, owners: map[watch.Process]*owner{}, execed: map[int]struct{}{},
		exec: make(chan struct{}, 1), listing: make(chan struct{}, 1),
	}
	m.rules.Store(&ruleSet{})
	return m
}

// Kind is [watch.Firecracker].
func (m *MicroVMs) Kind() watch.Kind { return watch.Firecracker }

// SetRules says which microVMs there are: those at home in the folders of a rule. Of several rules the first counts.
func (m *MicroVMs) SetRules(all *watch.Rules) {
	r := &ruleSet{}
	if all != nil {
		for i := range all.List {
			if rule := &all.List[i]; rule.Kind == watch.Firecracker {
				r.list = append(r.list, rule)
			}
		}
	}
	m.rules.Store(r)
}

// Close lets go of every process.
func (m *MicroVMs) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for id := range m.all {
		m.drop(id)
	}
	m.sweep()
}

// runs reports whether a process runs the program of any rule.
func (r *ruleSet) runs(exe string, argv []string) bool {
	return slices.ContainsFunc(r.list, func(rule *watch.Rule) bool { return programOf(rule).runs(exe, argv) })
}

// concerns reports whether a process runs the program of any rule or has it among its arguments.
func (r *ruleSet) concerns(exe string, argv []string) bool {
	return r.runs(exe, argv) || slices.ContainsFunc(r.list, func(rule *watch.Rule) bool { return programOf(rule).mentions(argv) })
}

// has reports whether a rule is among them, as it was or changed.
func (r *ruleSet) has(rule *watch.Rule) bool { return r.named(rule.Name) != nil }

// named returns the rule of a name.
func (r *ruleSet) named(name string) *watch.Rule {
	if i := slices.IndexFunc(r.list, func(rule *watch.Rule) bool { return rule.Name == name }); i >= 0 {
		return r.list[i]
	}
	return nil
}

// List finds all microVMs, as one [watch.Listed], with what became of their owners.
func (m *MicroVMs) List(ctx context.Context) ([]watch.Event, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case m.listing <- struct{}{}:
		defer func() { <-m.listing }()
	}
	l := &listing{m: m, rules: m.rules.Load(), asked: time.Now()}
	if err := l.look(ctx); err != nil {
		l.close()
		return nil, fmt.Errorf("look for microVMs: %w", err)
	}
	return l.publish(), nil
}

// publish makes what a look found what is known, and returns its events.
func (l *listing) publish() []watch.Event {
	m := l.m
	listed := watch.Listed{Kind: watch.Firecracker, Asked: l.asked}
	m.mu.Lock()
	found := l.merge()
	m.mu.Unlock()
	var owners []watch.Event
	look := newLook()
	for _, vm := range found {
		owners = append(owners, m.lookForOwners(look, vm)...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, vm := range found {
		// Of one that has died meanwhile it was said already.
		if s := vm.sandbox; !vm.dead || vm.sight == nil {
			listed.Sandboxes = append(listed.Sandboxes, s)
		} else {
			listed.Sandboxes = append(listed.Sandboxes, ended(s))
		}
	}
	slices.SortFunc(listed.Sandboxes, func(a, b watch.Sandbox) int { return a.ID.Compare(b.ID) })
	m.sweep()
	return append([]watch.Event{m.host.Namespace(watch.Firecracker), listed}, owners...)
}

// ended is what a microVM is when its process is dead.
func ended(s watch.Sandbox) watch.Sandbox {
	s.State, s.Init = watch.Stopped, watch.Process{}
	return s
}

// merge takes in what was found. Who was found by an exec since the look began is younger than that, and stays. The caller has the
// lock.
func (l *listing) merge() (found []*microVM) {
	m := l.m
	if m.closed {
		l.close()
		return nil
	}
	for _, vm := range l.found {
		id := vm.sandbox.ID
		before := m.all[id]
		switch {
		case before == nil:
		case before.began.After(l.asked):
			l.release(vm)
			found = append(found, before)
			continue
		case before.sight != nil && vm.sight != nil && before.sight.Process() == vm.sight.Process():
			// The handle that is waited on stays.
			_ = vm.sight.Close()
			vm.sight.Handle = before.sight.Handle
			vm.known, vm.dead = before.known, before.dead
			m.all[id] = vm
			found = append(found, vm)
			continue
		case vm.sight == nil && vm.sandbox.Terms.Fault == "":
			vm.inherit(before)
		}
		m.put(vm)
		found = append(found, vm)
	}
	kept := map[watch.ID]bool{}
	for _, vm := range found {
		kept[vm.sandbox.ID] = true
	}
	for id, vm := range m.all {
		switch {
		case kept[id]:
		case vm.began.After(l.asked), l.rules.has(vm.rule) && vm.lingers():
			found = append(found, vm)
		default:
			m.drop(id)
		}
	}
	return found
}

// inherit makes a microVM without a process the one that had one: whom that had for owners is still known (F9), and so are its
// leaves.
func (vm *microVM) inherit(before *microVM) {
	if before.sandbox.Terms.Fault != "" || before.rule.Name != vm.rule.Name {
		return
	}
	for claim, seen := range before.known {
		if claim.Kind == watch.AncestorClaim && claim.Program == vm.rule.Owner.Ancestor && seen.Life != watch.Unknown {
			vm.sandbox.Terms = vm.rule.Terms(vm.home.claims(vm.rule, true)...)
		}
	}
	vm.known = map[watch.Claim]watch.OwnerSeen{}
	for _, claim := range vm.sandbox.Terms.Owners {
		if seen, ok := before.known[claim]; ok {
			vm.known[claim] = seen
		}
	}
	vm.sandbox.Leaves = watch.AddLeaves(vm.sandbox.Leaves, before.sandbox.Leaves)
	vm.sandbox.Created = before.sandbox.Created
}

// lingers reports whether a microVM without a process or a folder is to be remembered, for the sake of a namespace that nobody else
// knows of. One whose owner lived when it ended is that owner's to use again. The caller has the lock.
func (vm *microVM) lingers() bool {
	if !vm.dead && vm.sight != nil || len(vm.known) == 0 {
		return false
	}
	for _, seen := range vm.known {
		if seen.Life != watch.Exited {
			return false
		}
	}
	return slices.ContainsFunc(vm.sandbox.Leaves, func(leaf watch.Leaf) bool {
		return leaf.Kind == Netns && netnsExists(leaf.Name)
	})
}

// put makes vm what is known by its ID, and waits for its end. The caller has the lock.
func (m *MicroVMs) put(vm *microVM) {
	id := vm.sandbox.ID
	m.drop(id)
	if vm.known == nil {
		vm.known = map[watch.Claim]watch.OwnerSeen{}
	}
	m.all[id] = vm
	if vm.sight != nil {
		go m.wait(vm.sight.Handle, id)
	}
}

// drop forgets what is known by an ID. The caller has the lock.
func (m *MicroVMs) drop(id watch.ID) {
	if vm := m.all[id]; vm != nil && vm.sight != nil {
		// Its waiter is told that the handle was closed, even if it was about to say something else.
		if exited, err := vm.sight.Exited(); err == nil && exited && !vm.dead {
			vm.dead = true
			m.post(watch.InitExited{ID: id, Process: vm.sight.Process(), At: time.Now()})
		}
		_ = vm.sight.Close()
	}
	delete(m.all, id)
}

// wait runs for as long as the process of a microVM lives, or until it is let go of.
func (m *MicroVMs) wait(handle *process.Handle, id watch.ID) {
	err := handle.Wait()
	switch {
	case err == nil:
		m.died(id, handle.Process(), time.Now())
	case !errors.Is(err, os.ErrClosed):
		m.post(watch.LookFailed{ID: id, At: time.Now(), Err: fmt.Errorf("wait for the end of process %d: %w", handle.Process().PID, err)})
	}
}

// died takes in that the process of a microVM is dead.
func (m *MicroVMs) died(id watch.ID, p watch.Process, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vm := m.all[id]
	if vm == nil || vm.sight == nil || vm.sight.Process() != p {
		return
	}
	vm.dead = true
	m.post(watch.InitExited{ID: id, Process: p, At: at}, watch.SandboxSeen{Sandbox: ended(vm.sandbox), Asked: at})
}

// Exec takes in that the kernel reported an exec of the process with that PID: Run looks at it within milliseconds.
func (m *MicroVMs) Exec(pid int, _ time.Time) {
	if len(m.rules.Load().list) == 0 {
		return
	}
	m.mu.Lock()
	m.execed[pid] = struct{}{}
	m.mu.Unlock()
	select {
	case m.exec <- struct{}{}:
	default:
	}
}

// Witness takes in that the kernel reported an exit in the process with that PID, or the beginning of a core dump, stamped at. The
// report only makes us ask.
func (m *MicroVMs) Witness(pid int, at time.Time) {
	m.mu.Lock()
	var owners []*process.Handle
	for p, o := range m.owners {
		if p.PID == pid {
			owners = append(owners, o.handle)
		}
	}
	m.mu.Unlock()
	for _, handle := range owners {
		if ending, err := handle.Ending(); err == nil && ending {
			m.ownerDied(handle.Process(), at, false)
		}
	}
}

// execDelay is how long an exec waits for others, so that they are looked at together. By then most of what is execed in a storm
// of short commands is gone, and costs no more than one system call.
const execDelay = 5 * time.Millisecond

// Run looks at those that execed, until ctx ends.
func (m *MicroVMs) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.exec:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(execDelay):
		}
		m.mu.Lock()
		pids := m.execed
		m.execed = map[int]struct{}{}
		m.mu.Unlock()
		for pid := range pids {
			if err := m.meet(ctx, pid); err != nil && ctx.Err() == nil {
				m.post(watch.LookFailed{At: time.Now(), Err: fmt.Errorf("look at a process that execed: %w", err)})
			}
		}
	}
}

// meet looks at one process that execed.
func (m *MicroVMs) meet(ctx context.Context, pid int) error {
	l := &listing{m: m, rules: m.rules.Load(), asked: time.Now()}
	s, err := m.host.FindOne(pid, l.rules.runs)
	switch {
	case errors.Is(err, process.ErrGone), errors.Is(err, process.ErrUnreadable):
		return nil // a complete look will tell
	case err != nil || s == nil:
		return err
	}
	if err := l.rootsFor(ctx, s); err != nil {
		return errors.Join(err, s.Close())
	}
	rule, h, ok := l.identify(s)
	if !ok {
		return s.Close()
	}
	vm, err := l.microVM(ctx, rule, h, s)
	if err != nil || vm.stranger {
		return errors.Join(err, s.Close()) // a complete look will tell
	}
	m.mu.Lock()
	before := m.all[vm.sandbox.ID]
	living := before != nil && before.sight != nil && !before.dead
	if m.closed || living {
		m.mu.Unlock()
		err := s.Close()
		if living && before.sight.Process() != s.Process() {
			// A second one, or a child: only a complete look can tell.
			err = errors.Join(err, fmt.Errorf("process %d seems to be %s as well", pid, vm.sandbox.ID))
		}
		return err
	}
	m.put(vm)
	m.mu.Unlock()
	seen := m.lookForOwners(newLook(), vm)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !vm.dead {
		m.post(append([]watch.Event{m.host.Namespace(watch.Firecracker), watch.SandboxSeen{Sandbox: vm.sandbox, Asked: l.asked}}, seen...)...)
	}
	return nil
}

// Stop ends a microVM: the process that was found, if it is that microVM still, and its process group (F4).
func (m *MicroVMs) Stop(s watch.Sandbox, step watch.Step) error {
	sig := unix.SIGKILL
	if step == watch.Terminate {
		sig = unix.SIGTERM
	}
	switch err := m.stop(s, sig); {
	case errors.Is(err, process.ErrGone):
		m.post(watch.InitExited{ID: s.ID, Process: s.Init, At: time.Now()})
	case err != nil:
		return fmt.Errorf("%s %s: %w", step, s.ID, err)
	}
	return nil
}

func (m *MicroVMs) stop(s watch.Sandbox, sig unix.Signal) error {
	if s.Init.PID == 0 {
		return errors.New("no process of it is known")
	}
	sight, ours, err := m.hold(s)
	if err != nil {
		return err
	}
	now, err := sight.Again()
	if err == nil {
		err = m.signal(s, now, sig)
	}
	if !ours {
		// Nobody else waits for it.
		go func() {
			defer func() { _ = sight.Close() }()
			ctx, cancel := context.WithTimeout(context.Background(), endTime)
			defer cancel()
			if m.host.AwaitEnd(ctx, s.Init) == nil {
				m.post(watch.InitExited{ID: s.ID, Process: s.Init, At: time.Now()})
			}
		}()
	}
	return err
}

// signal signals a process that was looked at just now.
func (m *MicroVMs) signal(s watch.Sandbox, now *process.Sight, sig unix.Signal) error {
	l := &listing{m: m, rules: m.rules.Load()}
	if err := l.rootsFor(context.Background(), now); err != nil {
		return err
	}
	switch rule, h, ok := l.identify(now); {
	case !ok, h.watchID() != s.ID:
		return fmt.Errorf("process %d is this microVM no more", s.Init.PID)
	case rule.Name != s.Terms.Rule:
		return fmt.Errorf("rule %q names it now, and not %q", rule.Name, s.Terms.Rule)
	}
	above := sync.OnceValue(func() []process.Ancestor {
		all, _ := now.Ancestors(func(process.Ancestor) bool { return false })
		return all
	})
	return now.SignalGroup(sig, func(member *process.Sight) bool {
		if slices.ContainsFunc(above(), func(a process.Ancestor) bool { return a.Process == member.Process() }) {
			return !l.rules.runs(member.Exe, member.Argv) && l.rules.concerns(member.Exe, member.Argv)
		}
		return descends(member, now)
	})
}

// hold returns the process of a sandbox, held, and whether it is one that we wait for.
func (m *MicroVMs) hold(s watch.Sandbox) (sight *process.Sight, ours bool, err error) {
	m.mu.Lock()
	if vm := m.all[s.ID]; vm != nil && vm.sight != nil && vm.sight.Process() == s.Init {
		sight = vm.sight
	}
	m.mu.Unlock()
	if sight != nil {
		return sight, true, nil
	}
	if s.Init.Boot != m.host.Boot() {
		return nil, false, process.ErrGone
	}
	if sight, err = m.host.Sight(s.Init.PID); err != nil {
		return nil, false, err
	}
	if sight.Process() != s.Init {
		return nil, false, errors.Join(process.ErrGone, sight.Close())
	}
	return sight, false, nil
}

// endTime is how long the process of a microVM that was killed, and its wrappers, may take to end. To tear a gigabyte down takes
// 60 ms.
const endTime = 5 * time.Second

// Remove ends a microVM that still runs, and removes what it left behind once its process is dead, its wrappers have ended, and
// nobody else is at home there (F5). It tells of each part that is gone, and of each that is not why; tell may be nil.
func (m *MicroVMs) Remove(ctx context.Context, s watch.Sandbox, tell func(part string, err error)) error {
	if tell == nil {
		tell = func(string, error) {}
	}
	if err := m.remove(ctx, s, tell); err != nil {
		return fmt.Errorf("remove %s: %w", s.ID, err)
	}
	return nil
}

func (m *MicroVMs) remove(ctx context.Context, s watch.Sandbox, tell func(part string, err error)) error {
	all := m.rules.Load()
	rule := all.named(s.Terms.Rule)
	if rule == nil {
		return fmt.Errorf("no rule is called %q any more", s.Terms.Rule)
	}
	leaves, err := leavesOf(rule, s)
	if err != nil {
		return err
	}
	// Who began with it may not have come as far as to kill it.
	if err := m.stop(s, unix.SIGKILL); s.Init.PID != 0 && err != nil && !errors.Is(err, process.ErrGone) {
		return err
	}
	if err := m.awaitEnd(ctx, s, leaves, tell); err != nil {
		return err
	}
	own := ""
	if i := slices.IndexFunc(leaves, func(leaf watch.Leaf) bool { return leaf.Kind == Workspace }); i >= 0 {
		own = leaves[i].Name
	}
	others, err := all.homesOf(ctx, s.Name, own)
	if err != nil {
		return err
	}
	var errs []error
	for _, leaf := range leaves {
		part := leaf.Kind + " " + leaf.Name
		var err error
		if leaf.Kind == Sockets && len(others) > 0 {
			err = fmt.Errorf("%s has the same ID, and they may be of that one", others[0])
		} else {
			err = removeLeaf(ctx, leaf)
		}
		tell(part, err)
		if err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		m.forget(s.ID)
	}
	return errors.Join(errs...)
}

// forget forgets a microVM of which nothing is left.
func (m *MicroVMs) forget(id watch.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if vm := m.all[id]; vm != nil && (vm.sight == nil || vm.dead) {
		m.drop(id)
	}
}

// leavesOf returns what is to be removed of a microVM, in order. A leaf that the rule does not have removed any more stays; one
// that is nowhere that the rule names is an error (F6).
func leavesOf(rule *watch.Rule, s watch.Sandbox) (leaves []watch.Leaf, err error) {
	for _, leaf := range s.Leaves {
		switch {
		case !removes(rule, leaf.Kind):
		case !checkLeaf(rule, s.Name, leaf):
			return nil, fmt.Errorf("%s %q is not what rule %q names", leaf.Kind, leaf.Name, rule.Name)
		default:
			leaves = append(leaves, leaf)
		}
	}
	slices.SortStableFunc(leaves, func(a, b watch.Leaf) int {
		return cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind))
	})
	return leaves, nil
}

// awaitEnd returns when nobody is left who has to do with a microVM.
func (m *MicroVMs) awaitEnd(ctx context.Context, s watch.Sandbox, leaves []watch.Leaf, tell func(part string, err error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, endTime, errors.New("it has not ended in time"))
	defer cancel()
	if s.Init.PID != 0 {
		if err := m.host.AwaitEnd(ctx, s.Init); err != nil {
			return err
		}
	}
	for {
		wrappers, err := m.atHome(ctx, s, leaves)
		if err != nil || len(wrappers) == 0 {
			return err
		}
		for _, w := range wrappers {
			if err := m.host.AwaitEnd(ctx, w.Process); err != nil {
				part := fmt.Sprintf("wrapper %d (%s)", w.Process.PID, path.Base(w.Exe))
				tell(part, err)
				return fmt.Errorf("%s: %w", part, err)
			}
		}
	}
}

// atHome returns the wrappers that have to do with a microVM. It is an error if another process is at home there that may be a
// microVM.
func (m *MicroVMs) atHome(ctx context.Context, s watch.Sandbox, leaves []watch.Leaf) (wrappers []process.Ancestor, err error) {
	l := &listing{m: m, rules: m.rules.Load()}
	if err := l.roots(ctx); err != nil {
		return nil, err
	}
	found, err := m.host.Find(ctx, l.rules.concerns)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, other := range found {
			_ = other.Close()
		}
	}()
	places := placesOf(leaves)
	for _, other := range found {
		runs, at := l.rules.runs(other.Exe, other.Argv), places.has(other)
		if _, h, ok := l.identify(other); ok && h.watchID() == s.ID && usersOf(h.dir)[other.User] {
			at = true
		}
		switch {
		case !at:
		case runs:
			return nil, fmt.Errorf("process %d is at home there: %w", other.Process().PID, watch.ErrInUse)
		default:
			wrappers = append(wrappers, process.Ancestor{Process: other.Process(), Exe: other.Exe})
		}
	}
	return wrappers, nil
}

func removeLeaf(ctx context.Context, leaf watch.Leaf) error {
	switch leaf.Kind {
	case Netns:
		err := removeNetns(ctx, leaf.Name)
		if errors.Is(err, watch.ErrInUse) {
			return nil // a runner that lives has it now, with the rules that bear its name
		}
		if err != nil {
			return err
		}
		return removeRules(ctx, leaf.Name)
	case Cgroup:
		return removeCgroup(ctx, leaf.Name)
	default:
		err := statedir.Remove(ctx, leaf.Name, leaf.Incarnation)
		if errors.Is(err, watch.ErrInUse) {
			// The microVM is dead, and what is mounted there does not end by itself: a failure that is told, and tried again.
			return errors.New(err.Error())
		}
		return err
	}
}
