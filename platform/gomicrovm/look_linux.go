package gomicrovm

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// A vm is a microVM as it was last looked at.
type vm struct {
	sandbox watch.Sandbox
	seen    []watch.Event // what was found of its owners
	asked   time.Time
	owner   writer        // of the sentinel
	maker   finding       // of one without a sentinel: a bbox that may own it
	runner  watch.Process // zero: none is known
	begins  bool          // it is not complete yet, or never will be
}

// A writer is the process that a record names, once that is known. It is about this record and not a later one.
type writer struct {
	text    string
	at      time.Time
	process watch.Process
	exited  bool
	died    time.Time // when, if that was seen
}

// A finding is what was found of a process that a record names.
type finding struct {
	life   watch.Life
	owner  watch.Process
	exited time.Time
	detail string
}

func alive(p watch.Process) finding { return finding{life: watch.Alive, owner: p} }

func dead() finding { return finding{life: watch.Exited} }

func unknown(format string, args ...any) finding {
	return finding{detail: fmt.Sprintf(format, args...)}
}

// slack is how much later than a record its writer may seem to be born: the wall clock is stepped by NTP.
const slack = 2 * time.Second

// records are what a folder has to say. The error of each says why it says nothing, and wraps [fs.ErrNotExist] if it is not there.
type records struct {
	sentinel    sentinel
	sentinelErr error
	text        string
	written     time.Time

	state    state
	stateErr error
	saved    time.Time

	data string    // the incarnation of the data folder; "": there is none
	made time.Time // when the latest of all that was made: who was there by then may have made it
}

// read reads the records in a folder.
func read(f *statedir.Folder) (r records, err error) {
	r.made = f.Born()
	defer func() {
		if r.saved.After(r.made) {
			r.made = r.saved
		}
	}()
	file, err := f.ReadFile(sentinelName, sentinelMost)
	if err == nil {
		err = belongs(file, f)
	}
	if err == nil {
		r.text, r.written = string(file.Data), file.Modified
		r.sentinel, err = parseSentinel(file.Data)
		if err == nil && r.sentinel.PID == os.Getpid() {
			err = errors.New("sentinel: it names us")
		}
	}
	r.sentinelErr = err
	data, err := f.Open(dataName)
	if err != nil {
		r.stateErr = err
		if errors.Is(err, fs.ErrNotExist) {
			if _, lookErr := f.ReadFile(dataName, 0); !errors.Is(lookErr, fs.ErrNotExist) {
				r.stateErr = fmt.Errorf("%s is no folder", dataName)
			}
		}
		return r, nil
	}
	defer data.Close()
	r.data = data.Incarnation()
	if data.Born().After(r.made) {
		r.made = data.Born()
	}
	if data.Owner() != f.Owner() {
		r.stateErr = fmt.Errorf("%s belongs to user %d and its folder to %d", dataName, data.Owner(), f.Owner())
		return r, nil
	}
	file, err = data.ReadFile(stateName, stateMost)
	if err == nil {
		err = belongs(file, f)
	}
	if err == nil {
		r.saved = file.Modified
		r.state, err = parseState(file.Data)
		if err == nil && r.state.PID == os.Getpid() {
			err = errors.New("state: it names us")
		}
	}
	r.stateErr = err
	return r, nil
}

func belongs(file statedir.File, f *statedir.Folder) error {
	if file.Owner != f.Owner() {
		return fmt.Errorf("it belongs to user %d and its folder to %d", file.Owner, f.Owner())
	}
	return nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// look looks at a folder in one that a rule names, and remembers it. It returns nil if there is no microVM. The error wraps
// [fs.ErrNotExist] if there is nothing. The caller has the lock.
func (v *VMs) look(rule *watch.Rule, dir *statedir.Folder, name string, mounts statedir.Mounts, asked time.Time) (*vm, error) {
	file := dir.Path() + "/" + name
	if !speakable(name) || !rule.Named(name) {
		return nil, nil // what cannot be written down cannot be removed after a crash; bbox makes no such name
	}
	before := v.vms[file]
	if before != nil {
		if _, leaving := v.leaving[before.sandbox.ID]; leaving {
			before.asked = asked // what is left of it while it is being removed says nothing about it
			return before, nil
		}
	}
	mounted := mounts.At(file)
	if mounted != "" && before != nil {
		// A file system that hangs would hold us up.
		m := *before
		m.asked, m.sandbox.Terms, m.seen = asked, rule.Terms(), nil
		m.claim(file, sentinelName, unknown("%s", mounted))
		v.vms[file] = &m
		return &m, nil
	}
	if mounted != "" {
		return nil, nil
	}
	f, err := dir.Open(name)
	if err != nil {
		v.forget(file)
		if absent(err) {
			return nil, nil
		}
		return nil, err
	}
	defer f.Close()
	r, err := read(f)
	if err != nil {
		return nil, err
	}
	if absent(r.sentinelErr) && r.data == "" {
		v.forget(file)
		v.bare[file] = struct{}{}
		return nil, nil
	}
	delete(v.bare, file)
	m := &vm{asked: asked, begins: r.sentinelErr != nil || r.stateErr != nil || !r.state.Active, sandbox: watch.Sandbox{
		ID: watch.ID{Kind: watch.GoMicroVM, Name: f.Incarnation()}, Name: readable(name), State: watch.Stopped, Created: f.Born(),
		Image: readable(r.state.Image),
	}}
	if before != nil && before.sandbox.ID == m.sandbox.ID {
		m.owner = before.owner
	}
	v.judge(m, rule, file, dir, f, r)
	v.vms[file] = m
	return m, nil
}

// judge finds out who owns a microVM, who runs it, and what it leaves.
func (v *VMs) judge(m *vm, rule *watch.Rule, file string, dir, f *statedir.Folder, r records) {
	m.sandbox.Terms = rule.Terms()
	whole := rule.Owner.Sentinel && !absent(r.sentinelErr)
	if f.Owner() != dir.Owner() {
		m.claim(file, sentinelName, unknown("it belongs to user %d and the folder that it is in to %d", f.Owner(), dir.Owner()))
		return
	}
	m.leaves(file, whole, r)
	running := v.running(file, f.Owner(), r)
	if running.life == watch.Alive {
		m.sandbox.State, m.runner, m.sandbox.Init = watch.Running, running.owner, running.owner
	}
	var owner finding
	switch {
	case whole && r.sentinelErr != nil:
		owner = unknown("%v", r.sentinelErr)
	case whole:
		owner = v.wrote(m, r, v.runners[m.runner])
	}
	if whole {
		m.claim(file, sentinelName, owner)
	} else if rule.Owner.Sentinel {
		m.maker = v.made(f.Owner(), r.made)
		m.claims(watch.Claim{Kind: watch.AncestorClaim, Program: ownerFile}, m.maker)
	}
	switch {
	case running.life == watch.Exited && (r.stopped() || !whole && (r.stateErr != nil || r.state.PID == 0)):
		m.disown() // G5
		return
	case rule.StopRunner && whole && running.life != watch.Unknown:
		// The runner is stopped when the owner is dead, and so owns nothing itself. Dead, it does not either: the claims stay
		// those that there were while it lived.
	default:
		m.claim(file, dataName+"/"+stateName, running)
	}
	if m.orphan() && r.data != "" {
		locked, err := isLocked(f)
		m.sandbox.InUse = locked
		if err != nil {
			m.claim(file, dataName+"/"+lockName, unknown("%v", err))
		}
	}
}

// isLocked reports whether somebody has the lock of a microVM's own system. Who wants it tries again for a while, so it may be
// tried by us.
func isLocked(f *statedir.Folder) (bool, error) {
	data, err := f.Open(dataName)
	if err == nil {
		defer data.Close()
		var locked bool
		if locked, err = data.Locked(lockName); err == nil {
			return locked, nil
		}
	}
	if absent(err) {
		return false, nil
	}
	return false, err
}

// stopped reports whether a microVM was stopped properly, as far as its records know.
func (r records) stopped() bool { return r.stateErr == nil && !r.state.Active }

// claim adds what was found of a process that a record names.
func (m *vm) claim(file, record string, found finding) {
	m.claims(watch.Claim{Kind: watch.RecordClaim, File: readable(file + "/" + record)}, found)
}

func (m *vm) claims(c watch.Claim, found finding) {
	m.sandbox.Terms.Owners = append(m.sandbox.Terms.Owners, c)
	m.seen = append(m.seen, watch.OwnerSeen{
		ID: m.sandbox.ID, Claim: c, Owner: found.owner, Life: found.life, Exited: found.exited, Asked: m.asked, Detail: found.detail,
	})
}

// disown takes back all claims: nobody owns it, and it is kept.
func (m *vm) disown() { m.sandbox.Terms.Owners, m.seen = nil, nil }

// orphan reports whether all that was found of its owners is that they are dead.
func (m *vm) orphan() bool {
	for _, ev := range m.seen {
		if ev.(watch.OwnerSeen).Life != watch.Exited {
			return false
		}
	}
	return len(m.seen) > 0
}

// Kinds of leaves.
const (
	leafFolder = "folder"       // the folder of the microVM
	leafData   = "data"         // the data folder in it
	leafEmpty  = "empty-folder" // the folder of the microVM, if nothing else is in it
)

// leaves says what is to be removed: all of it where a sentinel says whose it is, and without one what go-microvm made.
func (m *vm) leaves(file string, whole bool, r records) {
	id := m.sandbox.ID.Name
	if whole {
		m.sandbox.Leaves = []watch.Leaf{{Kind: leafFolder, Name: file, Incarnation: id}}
		return
	}
	m.sandbox.Leaves = []watch.Leaf{
		{Kind: leafData, Name: file + "/" + dataName, Incarnation: r.data},
		{Kind: leafEmpty, Name: file, Incarnation: id},
	}
}

// wrote finds out about the process that wrote a sentinel (G3). The runner, if it is known, is younger than it.
func (v *VMs) wrote(m *vm, r records, run *runner) finding {
	if m.owner.text != r.text || !m.owner.at.Equal(r.written) {
		m.owner = writer{text: r.text, at: r.written}
	}
	w := &m.owner
	if h := v.held[w.process]; w.process.PID != 0 && !w.exited && (h == nil || h.exited) {
		w.exited = true
		if h != nil {
			w.died = h.at
		}
	} else if h != nil && h.exited {
		w.died = h.at // the kernel's stamp may come later than the pidfd
	}
	if w.exited {
		return finding{life: watch.Exited, owner: w.process, exited: w.died}
	}
	s, err := v.sight(r.sentinel.PID)
	switch {
	case errors.Is(err, process.ErrGone):
		return v.absence(r.sentinel.PID)
	case err != nil:
		return unknown("%v", err)
	}
	who, young := s.Process(), s.Born().After(r.written.Add(slack))
	same := r.sentinel.File == "" || sameFile(s.Exe, r.sentinel.File)
	if who == w.process {
		_ = s.Close()
		return alive(who)
	}
	switch {
	case run != nil && who.Start > run.process.Start, young && (!same || run == nil):
		_ = s.Close()
		return v.absence(r.sentinel.PID)
	case young:
		_ = s.Close()
		return unknown("the wall clock says that process %d is younger than the sentinel, and the kernel's that it is older than the runner", who.PID)
	}
	// It is held whatever it runs, so that its end is seen.
	w.process = who
	exe := s.Exe
	v.hold(s.Handle)
	if !same {
		return finding{owner: who, detail: fmt.Sprintf("process %d had the PID when the sentinel was written, and runs %s", who.PID, readable(exe))}
	}
	return alive(who)
}

// sight looks at the process that has a PID now. The error wraps [process.ErrGone] also if the number is a thread's by now.
func (v *VMs) sight(pid int) (*process.Sight, error) {
	s, err := v.host.Sight(pid)
	if err == nil || errors.Is(err, process.ErrGone) {
		return s, err
	}
	status, statusErr := os.ReadFile(filepath.Join(procRoot, strconv.Itoa(pid), "status"))
	if statusErr == nil && isThread(status, pid) {
		return nil, process.ErrGone
	}
	return nil, err
}

// absence is what follows from it that no process has a PID which could be meant (G8).
func (v *VMs) absence(pid int) finding {
	if !v.complete {
		return unknown("the processes of this host have not been looked at yet")
	}
	for who, run := range v.runners {
		if v.lives(who) && means(run.pids, run.fault, pid) {
			return elsewhere(who, pid)
		}
	}
	for who, m := range v.makers {
		if v.lives(who) && means(m.pids, m.fault, pid) {
			return elsewhere(who, pid)
		}
	}
	return dead()
}

// means reports whether a process has, or may have, a PID in another PID namespace.
func means(pids []int, fault error, pid int) bool {
	return len(pids) == 0 && fault != nil || len(pids) > 1 && slices.Contains(pids[1:], pid)
}

func elsewhere(who watch.Process, pid int) finding {
	return unknown("process %d is or may be in another PID namespace, have the PID %d there, and be the one that is meant", who.PID, pid)
}

// made finds out whether a bbox of a user lives that may have made a folder, or what is in it: one that was there before that.
func (v *VMs) made(user uint32, born time.Time) finding {
	if !v.complete {
		return unknown("the processes of this host have not been looked at yet")
	}
	for p, who := range v.makers {
		if v.lives(p) && (who.user == user || who.fault != nil) && !who.born.After(born.Add(slack)) {
			return alive(p)
		}
	}
	return dead()
}

// running finds out about the process that runs a microVM: Alive with a process if it is the one that names its files.
func (v *VMs) running(file string, user uint32, r records) finding {
	var mine []*runner
	for _, run := range v.runners {
		if !v.lives(run.process) {
			continue
		}
		switch {
		case run.names(file) && run.user == user && !run.nested() && run.fault == nil:
			mine = append(mine, run)
		case run.names(file) && (run.user == user || run.user == 0 || run.nested()):
			return unknown("process %d may run it: %v", run.process.PID, cmp.Or(run.fault, errElsewhere))
		case run.fault != nil && run.user == user && (r.stateErr != nil || r.state.PID == run.process.PID):
			return unknown("process %d may run it: %v", run.process.PID, run.fault)
		case run.user == user && r.stateErr != nil && !v.placed(run):
			return unknown("nothing is recorded of what runs it, and process %d runs a microVM that is not known", run.process.PID)
		}
	}
	if len(mine) > 1 {
		// One that another has forked is part of that.
		mine = slices.DeleteFunc(slices.Clone(mine), func(run *runner) bool {
			return slices.ContainsFunc(mine, func(other *runner) bool { return other != run && run.group == other.process.PID })
		})
	}
	switch {
	case len(mine) > 1:
		return unknown("processes %d and %d both name files in it", mine[0].process.PID, mine[1].process.PID)
	case len(mine) == 1:
		return alive(mine[0].process)
	case !absent(r.stateErr) && r.stateErr != nil:
		return unknown("%v", r.stateErr)
	case r.stateErr != nil, !r.state.Active, r.state.PID == 0:
		if !v.complete {
			return unknown("the processes of this host have not been looked at yet")
		}
		return dead()
	}
	s, err := v.sight(r.state.PID)
	switch {
	case errors.Is(err, process.ErrGone):
		return v.absence(r.state.PID)
	case err != nil:
		return unknown("%v", err)
	}
	if isOf(runnerFile, s.Exe, s.Argv) && v.runners[s.Process()] == nil {
		v.meet(s) // it has begun since the last complete look
		return v.running(file, user, r)
	}
	defer func() { _ = s.Close() }()
	if s.Born().After(r.saved.Add(slack)) {
		return v.absence(r.state.PID) // G3
	}
	return finding{owner: s.Process(), detail: fmt.Sprintf("process %d had the PID when the state was saved, and runs %s", s.Process().PID, readable(s.Exe))}
}

var errElsewhere = errors.New("it is another user's, or in another PID namespace")

// placed reports whether it is known which microVM a runner runs.
func (v *VMs) placed(run *runner) bool {
	for dir := range v.dirs {
		if run.names(dir) {
			return true
		}
	}
	return false
}
