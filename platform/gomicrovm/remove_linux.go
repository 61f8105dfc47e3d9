package gomicrovm

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

const (
	endWait  = 5 * time.Second // how long a removal waits for the runner's end
	lockWait = 2 * time.Second // and for the lock, as brood-box itself does
)

// Stop signals the runner of a microVM, with its process group: it is the leader of a session of its own. It returns at once; the
// runner's end is told by a [watch.InitExited].
func (v *VMs) Stop(s watch.Sandbox, step watch.Step) error {
	if err := v.signal(s, step); err != nil {
		return fmt.Errorf("%s the runner of %s: %w", step, s.Name, err)
	}
	return nil
}

func (v *VMs) signal(s watch.Sandbox, step watch.Step) error {
	sig := unix.SIGKILL
	switch step {
	case watch.Kill:
	case watch.Terminate:
		sig = unix.SIGTERM
	default:
		return errors.New("that is nothing that a process is told")
	}
	if s.Init.PID == 0 || s.Init.Boot != v.host.Boot() {
		return process.ErrGone
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	// What was seen of it may be of before a restart. It is looked at again, and only a runner is signalled (G4).
	now, err := v.host.Sight(s.Init.PID)
	if err != nil {
		return err
	}
	if now.Process() != s.Init {
		_ = now.Close()
		return process.ErrGone
	}
	if err := errors.Join(runs(now, s.Leaves), v.owns(now, s.Leaves)); err != nil {
		_ = now.Close()
		return err
	}
	defer v.meet(now) // it is held from here on, so that its end is told
	return now.SignalGroup(sig, func(other *process.Sight) bool { return isOf(runnerFile, other.Exe, nil) })
}

// runs returns nil if a process is the runner of what has these leaves.
func runs(p *process.Sight, leaves []watch.Leaf) error {
	files, err := parseRunner([]byte(strings.Join(p.Argv, "\x00") + "\x00"))
	switch {
	case !isOf(runnerFile, p.Exe, nil):
		return fmt.Errorf("process %d runs %s", p.Process().PID, readable(p.Exe))
	case err != nil:
		return fmt.Errorf("process %d: %w", p.Process().PID, err)
	}
	for _, leaf := range leaves {
		if slices.ContainsFunc(files, func(file string) bool { return within(file, leaf.Name) }) {
			return nil
		}
	}
	return fmt.Errorf("process %d runs another microVM", p.Process().PID)
}

// owns returns nil if a process is of the user whom the folder with these leaves belongs to. What it is by now may be more than what
// its user may do: it may have been found before it became another's.
func (v *VMs) owns(p *process.Sight, leaves []watch.Leaf) error {
	_, user, err := v.numbersOf(p.Handle)
	if err != nil {
		return err
	}
	for _, leaf := range leaves {
		f, err := statedir.OpenFolder(leaf.Name)
		if absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		owner := f.Owner()
		f.Close()
		if owner != user {
			return fmt.Errorf("process %d is user %d's, and %s is user %d's", p.Process().PID, user, readable(leaf.Name), owner)
		}
	}
	return nil
}

// Remove removes what a microVM left, as its leaves say, once its runner is dead. That there is nothing left is success. The error
// wraps [watch.ErrInUse] if somebody lives who may use it, or has its lock.
func (v *VMs) Remove(ctx context.Context, s watch.Sandbox, tell func(part string, err error)) error {
	if tell == nil {
		tell = func(string, error) {}
	}
	if err := v.remove(ctx, s, tell); err != nil {
		return fmt.Errorf("remove microVM %s: %w", s.Name, err)
	}
	return nil
}

func (v *VMs) remove(ctx context.Context, s watch.Sandbox, tell func(part string, err error)) error {
	file, whole := "", false
	for _, leaf := range s.Leaves {
		switch leaf.Kind {
		case leafFolder:
			file, whole = leaf.Name, true
		case leafEmpty:
			if file == "" {
				file = leaf.Name
			}
		}
	}
	if file == "" || path.Clean(file) != file {
		return errors.New("it is not known what it leaves")
	}
	rule, err := v.ruleOf(ctx, file)
	if err != nil {
		return err
	}
	dir, err := statedir.OpenFolder(path.Dir(file))
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := dir.Open(path.Base(file))
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Incarnation() != s.ID.Name {
		return nil
	}
	if f.Owner() != dir.Owner() {
		return fmt.Errorf("it belongs to user %d and the folder that it is in to %d", f.Owner(), dir.Owner())
	}
	if s.Init.PID != 0 {
		// Whoever began with it may not have come as far as to stop it.
		if err := v.signal(s, watch.Kill); err != nil && !errors.Is(err, process.ErrGone) {
			return err
		}
	}
	if err := v.awaitEnd(ctx, s); err != nil {
		return err
	}
	unlock, err := v.lock(ctx, f)
	if err != nil {
		return err
	}
	defer unlock()
	if err := v.confirm(ctx, rule, whole, f); err != nil {
		return err
	}
	err = v.removeFiles(ctx, s.ID, f, whole, tell)
	if errors.Is(err, watch.ErrInUse) {
		// It is dead, and what is mounted there does not end by itself: a failure that is told, and tried again.
		return errors.New(err.Error())
	}
	return err
}

// ruleOf returns the rule that names the folder that a path is in (G1).
func (v *VMs) ruleOf(ctx context.Context, file string) (*watch.Rule, error) {
	dirs, _, err := v.expand(ctx)
	if err != nil {
		return nil, err
	}
	if rule := dirs[path.Dir(file)]; rule != nil {
		return rule, nil
	}
	return nil, fmt.Errorf("no rule names %s any more", readable(path.Dir(file)))
}

// awaitEnd waits for the end of the runner.
func (v *VMs) awaitEnd(ctx context.Context, s watch.Sandbox) error {
	if s.Init.PID == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	return v.host.AwaitEnd(ctx, s.Init)
}

// lock takes the lock of the microVM's own system, if there is one: whoever has it is about to save or to remove something.
func (v *VMs) lock(ctx context.Context, f *statedir.Folder) (unlock func(), err error) {
	none := func() {}
	data, err := f.Open(dataName)
	if absent(err) {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	defer data.Close()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	unlock, err = data.Lock(ctx, lockName)
	if absent(err) {
		return none, nil
	}
	return unlock, err
}

// confirm looks once more, now that nobody else can begin anything, whether somebody lives (G6). A record that is not there any
// more says nothing: a removal may have been interrupted.
func (v *VMs) confirm(ctx context.Context, rule *watch.Rule, whole bool, f *statedir.Folder) error {
	if err := v.meetAll(ctx); err != nil {
		return err
	}
	r, err := read(f)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	m := &vm{sandbox: watch.Sandbox{ID: watch.ID{Kind: watch.GoMicroVM, Name: f.Incarnation()}}}
	if before := v.vms[f.Path()]; before != nil && before.sandbox.ID == m.sandbox.ID {
		m.owner = before.owner
	}
	running := v.running(f.Path(), f.Owner(), r)
	if err := running.check("runs it"); err != nil {
		return err
	}
	switch {
	case !rule.Owner.Sentinel, absent(r.sentinelErr) && whole:
		return nil
	case absent(r.sentinelErr):
		return v.made(f.Owner(), r.made).check("may have made it")
	}
	if r.sentinelErr != nil {
		return r.sentinelErr
	}
	owner := v.wrote(m, r, nil)
	return owner.check("made it")
}

func (f finding) check(does string) error {
	switch f.life {
	case watch.Exited:
		return nil
	case watch.Alive:
		return fmt.Errorf("it is %w: process %d %s and lives", watch.ErrInUse, f.owner.PID, does)
	default:
		return fmt.Errorf("it is not known who %s: %s", does, f.detail)
	}
}

// removing notes that a microVM is being removed, until the result is called.
func (v *VMs) removing(id watch.ID) (end func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.leaving[id] = struct{}{}
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.leaving, id)
	}
}

// removeFiles removes what may be large first, then the records that tell whose it is: what is left of an interrupted removal
// still says what it is.
func (v *VMs) removeFiles(ctx context.Context, id watch.ID, f *statedir.Folder, whole bool, tell func(part string, err error)) error {
	defer v.removing(id)()
	err := removeData(ctx, f)
	tell(leafData, err)
	if err != nil {
		return err
	}
	if whole {
		if err = removeBut(ctx, f, f.Owner(), sentinelName); err == nil {
			err = statedir.RemoveOwned(ctx, f.Owner(), f.Path(), id.Name)
		}
		tell(leafFolder, err)
		return err
	}
	gone, err := statedir.RemoveEmpty(f.Path(), id.Name)
	if gone || err != nil {
		tell(leafEmpty, err)
	}
	return err
}

func removeData(ctx context.Context, f *statedir.Folder) error {
	data, err := f.Open(dataName)
	if absent(err) {
		return nil // or it is no folder, which goes with all the rest
	}
	if err != nil {
		return err
	}
	defer data.Close()
	if err := removeBut(ctx, data, f.Owner(), stateName, lockName); err != nil {
		return err
	}
	return removePath(ctx, data.Path(), f.Owner())
}

// removeBut removes all that is in a folder but some. It goes on behind what cannot be removed.
func removeBut(ctx context.Context, f *statedir.Folder, user uint32, but ...string) error {
	var first error
	err := f.Names(ctx, func(name string) error {
		if slices.Contains(but, name) {
			return nil
		}
		if err := removePath(ctx, f.Path()+"/"+name, user); err != nil && first == nil {
			first = err
		}
		return nil
	})
	return errors.Join(err, first)
}

func removePath(ctx context.Context, file string, user uint32) error {
	incarnation, err := statedir.Incarnation(file)
	if err != nil || incarnation == "" {
		return err
	}
	return statedir.RemoveOwned(ctx, user, file, incarnation)
}
