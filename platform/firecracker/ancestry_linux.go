package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// A look is one look for owners, of many microVMs. What it finds out about a base folder it finds out once.
type look struct {
	asked time.Time
	bases map[baseQuestion]baseAnswer
}

type baseQuestion struct {
	claim watch.Claim
	base  string
}

type baseAnswer struct {
	life   watch.Life
	owner  watch.Process
	detail string
}

func newLook() *look { return &look{time.Now(), map[baseQuestion]baseAnswer{}} }

// ask says what became of the owner of a base folder.
func (l *look) ask(host *process.Host, claim watch.Claim, base string) (watch.Life, watch.Process, string) {
	q := baseQuestion{claim, base}
	a, ok := l.bases[q]
	if !ok {
		if claim.Kind == watch.LockClaim {
			a.life, a.owner, a.detail = lockLife(claim.File, base)
		} else {
			a.life, a.owner, a.detail = recordLife(claim.File, base, host)
		}
		l.bases[q] = a
	}
	return a.life, a.owner, a.detail
}

// lookForOwners looks for the owners of a microVM, each as its claim demands, and says what became of them.
func (m *MicroVMs) lookForOwners(l *look, vm *microVM) (events []watch.Event) {
	for _, claim := range vm.sandbox.Terms.Owners {
		if !claim.Kind.Sought() {
			continue
		}
		if seen, ok := m.lookForOwner(l, vm, claim); ok {
			events = append(events, seen)
		}
	}
	return events
}

// lookForOwner looks for one. There is nothing to say if the microVM itself has died meanwhile.
func (m *MicroVMs) lookForOwner(l *look, vm *microVM, claim watch.Claim) (watch.OwnerSeen, bool) {
	seen, ok := m.lookOnceForOwner(l, vm, claim)
	if ok && seen.Life == watch.Alive && !m.deathOf(seen.Owner).IsZero() {
		// He died while he was looked for, and whoever was told of that did not know that he owns this one by this claim.
		return m.lookOnceForOwner(newLook(), vm, claim)
	}
	return seen, ok
}

func (m *MicroVMs) lookOnceForOwner(l *look, vm *microVM, claim watch.Claim) (watch.OwnerSeen, bool) {
	seen := watch.OwnerSeen{ID: vm.sandbox.ID, Claim: claim, Asked: l.asked}
	m.mu.Lock()
	before := vm.known[claim]
	m.mu.Unlock()
	switch claim.Kind {
	case watch.AncestorClaim:
		if !m.ancestor(vm, before, &seen) {
			return seen, false
		}
	default:
		m.inEachBase(l, vm, &seen)
	}
	if seen.Life == watch.Exited && before.Owner.PID != 0 {
		// Whoever was seen to own it is the one that is missed now.
		if seen.Owner.PID == 0 {
			seen.Owner = before.Owner
		}
		if died := m.deathOf(seen.Owner); !died.IsZero() {
			seen.Exited = died
		} else if before.Owner == seen.Owner {
			seen.Exited = before.Exited
		}
	}
	if seen.Life == watch.Alive && seen.Owner.PID != 0 {
		m.holdOwner(seen.Owner)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !vm.known[claim].Asked.After(seen.Asked) {
		vm.known[claim] = seen
	}
	return seen, true
}

// ancestor looks for the owner among the ancestors (F3).
func (m *MicroVMs) ancestor(vm *microVM, before watch.OwnerSeen, seen *watch.OwnerSeen) bool {
	if before.Owner.PID != 0 && before.Life != watch.Exited {
		lives, err := m.lives(before.Owner)
		if err != nil {
			seen.Owner, seen.Detail = before.Owner, err.Error()
			return true
		}
		if lives {
			seen.Life, seen.Owner = watch.Alive, before.Owner
			return true
		}
	}
	m.mu.Lock()
	dead := vm.dead || vm.sight == nil
	m.mu.Unlock()
	if dead {
		return endedWith(before, seen)
	}
	program, err := watch.NewProgram(seen.Claim.Program)
	if err != nil {
		seen.Detail = err.Error()
		return true
	}
	runs := func(a process.Ancestor) bool { return program.Matches(a.Exe, a.Argv) && m.deathOf(a.Process).IsZero() }
	chain, err := vm.sight.Ancestors(runs)
	found := len(chain) > 0 && runs(chain[len(chain)-1])
	switch {
	case errors.Is(err, process.ErrGone), errors.Is(err, os.ErrClosed):
		return endedWith(before, seen)
	case found:
		seen.Life, seen.Owner = watch.Alive, chain[len(chain)-1].Process
	case err != nil:
		seen.Detail = err.Error()
	default:
		seen.Life = watch.Exited
	}
	return true
}

// endedWith says of a microVM without a process what was known of its owner when it had one. If that was alive, it has died since:
// a process without ancestors has no others to find.
func endedWith(before watch.OwnerSeen, seen *watch.OwnerSeen) bool {
	switch {
	case before.Life == watch.Alive && before.Owner.PID != 0, before.Life == watch.Exited:
		seen.Life, seen.Owner, seen.Exited = watch.Exited, before.Owner, before.Exited
	default:
		seen.Detail = "its process ended before its ancestors could be read"
	}
	return true
}

// inEachBase asks for the owner by a base folder; of sockets without a workspace it is not known which one it is, and the owner
// of any keeps them.
func (m *MicroVMs) inEachBase(l *look, vm *microVM, seen *watch.OwnerSeen) {
	bases := []string{vm.home.base}
	if vm.home.dir == "" {
		var globs []string
		for _, glob := range vm.rule.BaseDirs {
			globs = append(globs, path.Clean(glob))
		}
		var err error
		if bases, err = statedir.Expand(context.Background(), globs); err != nil {
			seen.Detail = err.Error()
			return
		}
		if len(bases) == 0 {
			seen.Detail = "none of the base folders is there"
			return
		}
	}
	seen.Life = watch.Exited
	for _, base := range bases {
		life, owner, detail := l.ask(m.host, seen.Claim, base)
		seen.Life, seen.Owner, seen.Detail = worse(seen.Life, seen.Owner, seen.Detail, life, owner, detail)
	}
	if seen.Life != watch.Unknown {
		seen.Detail = ""
	}
}

// lives reports whether an owner that was found lives.
func (m *MicroVMs) lives(p watch.Process) (bool, error) {
	m.mu.Lock()
	o := m.owners[p]
	m.mu.Unlock()
	if o != nil {
		exited, err := o.handle.Exited()
		return !exited && m.deathOf(p).IsZero(), err
	}
	handle, err := m.host.Open(p.PID)
	switch {
	case errors.Is(err, process.ErrGone):
		return false, nil
	case err != nil:
		return false, err
	}
	defer func() { _ = handle.Close() }()
	return handle.Process() == p, nil
}

// deathOf is when an owner died that was held, or zero.
func (m *MicroVMs) deathOf(p watch.Process) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.owners[p]; o != nil {
		return o.died
	}
	return time.Time{}
}

// holdOwner holds an owner from now on, and looks again at what it owns when it dies.
func (m *MicroVMs) holdOwner(p watch.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.owners[p] != nil || p.Boot != m.host.Boot() {
		return
	}
	handle, err := m.host.Open(p.PID)
	if err != nil || handle.Process() != p {
		// It has died just now, or cannot be held. The next look will tell.
		if err == nil {
			_ = handle.Close()
		}
		return
	}
	m.owners[p] = &owner{handle: handle}
	go func() {
		switch err := handle.Wait(); {
		case err == nil:
			m.ownerDied(p, time.Now(), true)
		case !errors.Is(err, os.ErrClosed):
			m.post(watch.LookFailed{At: time.Now(), Err: fmt.Errorf("wait for the end of process %d: %w", p.PID, err)})
		}
	}()
}

// ownerDied takes in that an owner is dead, or is certain to be, and looks at once at all that it owned. Of two witnesses the earlier
// one is nearer the truth. One that is about to die may hold a lock still, so the look is repeated when it has ended.
func (m *MicroVMs) ownerDied(p watch.Process, at time.Time, ended bool) {
	m.mu.Lock()
	o := m.owners[p]
	earlier := o != nil && (o.died.IsZero() || at.Before(o.died))
	if o == nil || !earlier && !ended {
		m.mu.Unlock()
		return
	}
	if earlier {
		o.died = at
	}
	orphans := map[*microVM][]watch.Claim{}
	for _, vm := range m.all {
		for claim, seen := range vm.known {
			if seen.Owner == p {
				orphans[vm] = append(orphans[vm], claim)
			}
		}
	}
	m.mu.Unlock()
	l := newLook()
	for vm, claims := range orphans {
		m.renewLeaves(vm)
		var events []watch.Event
		for _, claim := range claims {
			if seen, ok := m.lookForOwner(l, vm, claim); ok {
				events = append(events, seen)
			}
		}
		// Each as soon as it is known: it need not wait for the others to be ended.
		if len(events) > 0 {
			m.post(events...)
		}
	}
}

// renewLeaves adds what a microVM will leave behind by now to what was found before: a runner may move it into its control group
// when it runs already. When it is dead nobody can tell any more.
func (m *MicroVMs) renewLeaves(vm *microVM) {
	m.mu.Lock()
	running := vm.sight != nil && !vm.dead
	m.mu.Unlock()
	if !running || !vm.moved() {
		return
	}
	now, err := vm.sight.Again()
	if err != nil {
		return // what was found before is all there is to know
	}
	found := leavesOfProcess(vm.rule, vm.home, now, false) // whose the sockets are was found before
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[vm.sandbox.ID] != vm || vm.dead {
		return
	}
	if leaves := watch.AddLeaves(vm.sandbox.Leaves, found); len(leaves) > len(vm.sandbox.Leaves) {
		vm.sandbox.Leaves = leaves
		m.post(watch.SandboxSeen{Sandbox: vm.sandbox, Asked: time.Now()})
	}
}

// moved reports whether a microVM is in a control group of its own by now that it was not in when it was found.
func (vm *microVM) moved() bool {
	if !removes(vm.rule, Cgroup) {
		return false
	}
	text, err := vm.sight.ReadFile("cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3) // cgroups(7)
		if len(fields) == 3 && cgroupOf(fields[2], vm.home.id) {
			if !slices.ContainsFunc(vm.sight.Cgroups, func(c process.Cgroup) bool { return c.Path == fields[2] }) {
				return true
			}
		}
	}
	return false
}

// sweep lets go of the owners that nothing known has. The caller has the lock.
func (m *MicroVMs) sweep() {
	needed := map[watch.Process]bool{}
	for _, vm := range m.all {
		for _, seen := range vm.known {
			needed[seen.Owner] = true
		}
	}
	for p, o := range m.owners {
		if !needed[p] {
			_ = o.handle.Close()
			delete(m.owners, p)
		}
	}
}
