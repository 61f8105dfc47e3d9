package gomicrovm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

const (
	procRoot   = "/proc"
	runnerFile = "go-microvm-runner" // the program that runs a microVM
	ownerFile  = "bbox"              // the program that makes one

	sentinelName = ".bbox-sentinel"
	dataName     = "data"
	stateName    = "go-microvm-state.json"
	lockName     = "go-microvm-state.lock"
)

// sourceFolders is the source that tells of changes in the folders.
const sourceFolders = "microvm folders"

// VMs are the microVMs of this host. They are safe for concurrent use.
type VMs struct {
	host     *process.Host
	post     func(...watch.Event)
	follower *statedir.Follower

	rules   atomic.Pointer[[]watch.Rule]
	poke    chan struct{}
	refresh chan struct{} // the rules may name other folders by now

	mu       sync.Mutex // also orders what is posted
	closed   bool
	complete bool                      // there was a complete look at all processes
	dirs     map[string]*watch.Rule    // those that hold the folders of microVMs
	near     []string                  // where others may appear
	vms      map[string]*vm            // by path
	bare     map[string]struct{}       // folders in which there is nothing yet
	runners  map[watch.Process]*runner // that live
	makers   map[watch.Process]*maker  // likewise
	held     map[watch.Process]*held   // processes whose end matters
	changed  map[string]struct{}       // paths to look at
	leaving  map[watch.ID]struct{}     // being removed

	// Apart, so that whoever reads the kernel's reports waits for no look.
	byPID  sync.Map // those that are held, by PID
	execMu sync.Mutex
	execed map[int]struct{} // processes to look at
}

// A held process is watched for its end, and remembered for as long as a record names it.
type held struct {
	handle  *process.Handle
	process watch.Process
	exited  bool
	at      time.Time
}

// A runner is a process that runs a microVM.
type runner struct {
	seen    time.Time
	process watch.Process
	user    uint32
	group   int      // of processes
	pids    []int    // that it has: ours, and those in the PID namespaces below that it is in
	files   []string // of its microVM
	fault   error    // why it is not known which these are
}

// nested reports whether it is in another PID namespace than we are: its files may be in another tree, too.
func (r *runner) nested() bool { return len(r.pids) > 1 }

// A maker is a process that makes microVMs.
type maker struct {
	seen  time.Time
	born  time.Time
	user  uint32
	pids  []int
	fault error // why it is not known whose it is, and which PIDs it has
}

// New returns microVMs of which no rule speaks yet. post must neither block nor call back.
func New(host *process.Host, post func(...watch.Event)) *VMs {
	v := &VMs{
		host: host, post: post, poke: make(chan struct{}, 1), refresh: make(chan struct{}, 1),
		dirs: map[string]*watch.Rule{}, vms: map[string]*vm{}, bare: map[string]struct{}{},
		runners: map[watch.Process]*runner{}, makers: map[watch.Process]*maker{}, held: map[watch.Process]*held{},
		changed: map[string]struct{}{}, execed: map[int]struct{}{}, leaving: map[watch.ID]struct{}{},
	}
	v.rules.Store(&[]watch.Rule{})
	v.follower = statedir.NewFollower(v.notice, v.missed)
	return v
}

// Kind is [watch.GoMicroVM].
func (v *VMs) Kind() watch.Kind { return watch.GoMicroVM }

// SetRules says where microVMs are, and who owns them. Where several rules name a folder, the first counts. It takes effect with
// the next list.
func (v *VMs) SetRules(rules *watch.Rules) {
	var ours []watch.Rule
	if rules != nil {
		for _, rule := range rules.List {
			if rule.Kind == watch.GoMicroVM {
				ours = append(ours, rule)
			}
		}
	}
	v.rules.Store(&ours)
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.dirs)
	poke(v.refresh)
}

// Close lets go of every process.
func (v *VMs) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for p := range v.held {
		v.release(p)
	}
}

// Exec takes in that the kernel reported an exec of the process with that PID: Run looks whether it is a runner by now.
func (v *VMs) Exec(pid int, _ time.Time) {
	if len(*v.rules.Load()) == 0 {
		return
	}
	v.execMu.Lock()
	v.execed[pid] = struct{}{}
	v.execMu.Unlock()
	poke(v.poke)
}

// Witness takes in that the kernel reported the exit of a thread of the process with that PID, stamped at. The report only makes
// us ask.
func (v *VMs) Witness(pid int, at time.Time) {
	known, ok := v.byPID.Load(pid)
	if !ok {
		return // as nearly all
	}
	h := known.(*held)
	if exited, err := h.handle.Exited(); err != nil || !exited {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.bury(h, at) // of two witnesses to one death the earlier one is nearer the truth
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// notice takes in that something changed in a folder that is followed.
func (v *VMs) notice(c statedir.Change) {
	if c.Written && path.Base(c.Path) != sentinelName {
		return // states are renamed into their place, and logs are written all the time
	}
	v.mu.Lock()
	v.changed[c.Path] = struct{}{}
	v.mu.Unlock()
	poke(v.poke)
}

// missed takes in that changes may have been missed, or that none are missed any more.
func (v *VMs) missed(err error) {
	if err != nil {
		v.post(watch.SourceLost{Source: sourceFolders, Err: err, At: time.Now()})
		return
	}
	v.post(watch.SourceBack{Source: sourceFolders, At: time.Now()})
}

// lookDelay is how long a change waits for others: who makes a folder puts something into it at once.
const lookDelay = 5 * time.Millisecond

// findDelay is how long a change waits in a folder where others may appear, such as somebody's home.
const findDelay = 100 * time.Millisecond

// pause reports whether ctx goes on for so long.
func pause(ctx context.Context, long time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(long):
		return true
	}
}

// Run looks at what changes, until ctx ends.
func (v *VMs) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var follow sync.WaitGroup
	follow.Go(func() { _ = v.follower.Run(ctx) }) // it only ends with ctx
	defer follow.Wait()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-v.refresh:
			if !pause(ctx, findDelay) {
				return context.Cause(ctx)
			}
			v.find(ctx)
			continue
		case <-v.poke:
		}
		if !pause(ctx, lookDelay) {
			return context.Cause(ctx)
		}
		v.lookAtExeced()
		v.lookAtChanged()
	}
}

// lookAtExeced looks whether somebody who execed is a runner, and at the folders that it names.
func (v *VMs) lookAtExeced() {
	v.execMu.Lock()
	execed := slices.Collect(maps.Keys(v.execed))
	clear(v.execed)
	v.execMu.Unlock()
	for _, pid := range execed {
		// Nearly all are not. What they run may change between here and there: then there will be another report.
		exe, err := os.Readlink(filepath.Join(procRoot, strconv.Itoa(pid), "exe"))
		if err != nil || !runsOne(exe, nil) {
			continue
		}
		s, err := v.host.Sight(pid) // not under the lock: it may take as long as its user likes
		if err != nil {
			continue // the next complete look finds it, if it is still there
		}
		v.lookAtRunner(s)
	}
}

func (v *VMs) lookAtRunner(s *process.Sight) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.meet(s)
	if r := v.runners[s.Process()]; r != nil {
		for file := range v.vms {
			if r.names(file) {
				v.changed[file] = struct{}{}
			}
		}
	}
}

// lookAtChanged looks at the folders of microVMs in which something changed, and posts what it finds.
func (v *VMs) lookAtChanged() {
	v.mu.Lock()
	defer v.mu.Unlock()
	folders := map[string]struct{}{}
	for file := range v.changed {
		if folder, ok := v.folderOf(file); ok {
			folders[folder] = struct{}{}
		} else {
			poke(v.refresh)
		}
	}
	clear(v.changed)
	for folder := range folders {
		v.lookAgain(folder)
	}
	v.rewatch()
}

// folderOf returns the folder of a microVM that a path is in, or is. A path that is in none is where rules may begin to name
// others.
func (v *VMs) folderOf(file string) (string, bool) {
	for dir := range v.dirs {
		if within(file, dir) {
			name, _, _ := strings.Cut(strings.TrimPrefix(file, dir+"/"), "/")
			return dir + "/" + name, true
		}
	}
	return "", false
}

// lookAgain looks at one folder and posts what it finds. The caller has the lock.
func (v *VMs) lookAgain(folder string) {
	rule := v.dirs[path.Dir(folder)]
	if rule == nil || v.closed {
		return
	}
	asked := time.Now()
	mounts, err := statedir.ReadMounts()
	var dir *statedir.Folder
	if err == nil {
		dir, err = statedir.OpenFolder(path.Dir(folder))
	}
	before := v.vms[folder]
	if err == nil {
		defer dir.Close()
		var now *vm
		if now, err = v.look(rule, dir, path.Base(folder), mounts, asked); err == nil {
			if before != nil && (now == nil || now.sandbox.ID != before.sandbox.ID) {
				v.post(watch.SandboxGone{ID: before.sandbox.ID, At: asked})
			}
			if now != nil {
				v.post(append([]watch.Event{watch.SandboxSeen{Sandbox: now.sandbox, Asked: asked}}, now.seen...)...)
			}
			return
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		v.post(watch.LookFailed{At: asked, Err: fmt.Errorf("look at %s: %w", readable(folder), err)})
		return
	}
	if before != nil {
		v.forget(folder)
		v.post(watch.SandboxGone{ID: before.sandbox.ID, At: asked})
	}
}

// find looks for folders that the rules name by now, and at those in them that are not known.
func (v *VMs) find(ctx context.Context) {
	dirs, near, err := v.expand(ctx)
	if err != nil {
		if ctx.Err() == nil {
			v.post(watch.LookFailed{At: time.Now(), Err: err})
		}
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var differ []string // what is new, and what went
	for dir := range dirs {
		f, err := statedir.OpenFolder(dir)
		if err != nil {
			continue // the next list tells
		}
		there := map[string]bool{}
		err = f.Names(ctx, func(name string) error {
			file := dir + "/" + name
			if there[file] = true; v.vms[file] == nil {
				differ = append(differ, file)
			}
			return nil
		})
		f.Close()
		if err != nil {
			v.post(watch.LookFailed{At: time.Now(), Err: err})
			continue
		}
		for file := range v.vms {
			if path.Dir(file) == dir && !there[file] {
				differ = append(differ, file)
			}
		}
	}
	v.dirs, v.near = dirs, near
	clear(v.changed)
	for _, file := range differ {
		v.lookAgain(file)
	}
	v.rewatch()
}

// expand finds the folders that the rules name now, and those in which others may appear.
func (v *VMs) expand(ctx context.Context) (dirs map[string]*watch.Rule, near []string, err error) {
	rules := *v.rules.Load()
	dirs = map[string]*watch.Rule{}
	for i := range rules {
		found, err := statedir.Expand(ctx, rules[i].Dirs)
		if err != nil {
			return nil, nil, err
		}
		for _, dir := range found {
			if dirs[dir] == nil {
				dirs[dir] = &rules[i]
			}
		}
		more, err := statedir.Nearest(ctx, rules[i].Dirs)
		if err != nil {
			return nil, nil, err
		}
		near = append(near, more...)
	}
	return dirs, near, nil
}

// bareMost is how many folders in which there is nothing yet are followed.
const bareMost = 1000

// rewatch follows the folders in which something can begin or end. Those of a microVM that runs are not among them: its logs
// change all the time, and that it ends shows in the processes. The caller has the lock.
func (v *VMs) rewatch() {
	want := slices.Clone(v.near)
	for dir := range v.dirs {
		want = append(want, dir)
	}
	for file, m := range v.vms {
		if m.begins {
			want = append(want, file, file+"/"+dataName)
		}
	}
	for file := range v.bare {
		if len(want) < len(v.dirs)+len(v.near)+bareMost {
			want = append(want, file)
		}
	}
	slices.Sort(want)
	v.follower.Follow(slices.Compact(want))
}

// List finds all microVMs: a [watch.Listed], and a [watch.OwnerSeen] for each of their claims.
func (v *VMs) List(ctx context.Context) ([]watch.Event, error) {
	asked := time.Now()
	fault := func(err error) ([]watch.Event, error) { return nil, fmt.Errorf("look for microVMs: %w", err) }
	if len(*v.rules.Load()) == 0 {
		v.mu.Lock()
		defer v.mu.Unlock()
		clear(v.vms)
		clear(v.bare)
		clear(v.runners)
		clear(v.makers)
		v.near, v.complete = nil, false
		v.sweep()
		v.rewatch()
		return []watch.Event{v.host.Namespace(watch.GoMicroVM), watch.Listed{Kind: watch.GoMicroVM, Asked: asked}}, nil
	}
	dirs, near, err := v.expand(ctx)
	if err != nil {
		return fault(err)
	}
	if err := v.meetAll(ctx); err != nil {
		return fault(err)
	}
	mounts, err := statedir.ReadMounts()
	if err != nil {
		return fault(err)
	}
	listed := watch.Listed{Kind: watch.GoMicroVM, Asked: asked, Sandboxes: []watch.Sandbox{}}
	var seen []watch.Event
	there := map[string]bool{}
	v.mu.Lock()
	v.dirs, v.near = dirs, near
	v.mu.Unlock()
	for dir, rule := range dirs {
		f, err := statedir.OpenFolder(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just gone
		}
		if err != nil {
			return fault(err)
		}
		err = f.Names(ctx, func(name string) error {
			// Not for all of them at once: whoever reports a death must not wait for so long.
			v.mu.Lock()
			defer v.mu.Unlock()
			m, err := v.look(rule, f, name, mounts, asked)
			if m != nil {
				listed.Sandboxes = append(listed.Sandboxes, m.sandbox)
				seen = append(seen, m.seen...)
			}
			there[dir+"/"+name] = true
			return err
		})
		f.Close()
		if err != nil {
			return fault(err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for file, m := range v.vms {
		if !there[file] && m.asked.Before(asked) {
			v.forget(file)
		}
	}
	for file := range v.bare {
		if !there[file] {
			delete(v.bare, file)
		}
	}
	v.sweep()
	v.rewatch()
	slices.SortFunc(listed.Sandboxes, func(a, b watch.Sandbox) int { return a.ID.Compare(b.ID) })
	return append([]watch.Event{v.host.Namespace(watch.GoMicroVM), listed}, seen...), nil
}

// runsOne reports whether an executable is of the programs that matter.
func runsOne(exe string, argv []string) bool {
	return isOf(runnerFile, exe, argv) || isOf(ownerFile, exe, argv)
}

func isOf(program, exe string, argv []string) bool {
	return path.Base(strings.TrimSuffix(exe, deletedSuffix)) == program || len(argv) > 0 && path.Base(argv[0]) == program
}

// meetAll takes a complete look at all processes. Who runs something else by now is of no program any more: a child that had not
// execed ran what its parent ran.
func (v *VMs) meetAll(ctx context.Context) error {
	asked := time.Now()
	found, err := v.host.Find(ctx, runsOne)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range found {
		v.meet(s)
	}
	maps.DeleteFunc(v.runners, func(_ watch.Process, r *runner) bool { return r.seen.Before(asked) })
	maps.DeleteFunc(v.makers, func(_ watch.Process, m *maker) bool { return m.seen.Before(asked) })
	v.complete = true
	return nil
}

// meet takes in a process of one of the programs, and its handle. The caller has the lock.
func (v *VMs) meet(s *process.Sight) {
	who, now, runs := s.Process(), time.Now(), isOf(runnerFile, s.Exe, s.Argv)
	// One of whom it is not known what he runs may have been in the midst of his exec.
	if r := v.runners[who]; r != nil && runs && r.fault == nil && v.lives(who) {
		r.seen = now
		_ = s.Close()
		return
	}
	if m := v.makers[who]; m != nil && !runs && v.lives(who) {
		m.seen = now
		_ = s.Close()
		return
	}
	delete(v.runners, who)
	delete(v.makers, who)
	pids, user, err := v.numbersOf(s.Handle)
	if errors.Is(err, process.ErrGone) {
		v.hold(s.Handle) // so that whoever knew it is told
		return
	}
	if !runs {
		v.makers[who] = &maker{seen: now, born: s.Born(), user: user, pids: pids, fault: err}
		v.hold(s.Handle)
		return
	}
	r := &runner{seen: now, process: who, user: user, group: s.Group, pids: pids, fault: err}
	if r.fault == nil {
		r.files, r.fault = parseRunner([]byte(strings.Join(s.Argv, "\x00") + "\x00"))
	}
	if r.fault == nil && !isOf(runnerFile, s.Exe, nil) {
		r.fault = errors.New("it only calls itself a runner")
	}
	v.runners[who] = r
	v.hold(s.Handle)
}

// lives reports whether a process is held that was not seen dead. The caller has the lock.
func (v *VMs) lives(p watch.Process) bool {
	h := v.held[p]
	return h != nil && !h.exited
}

func (v *VMs) numbersOf(h *process.Handle) ([]int, uint32, error) {
	status, err := h.ReadFile("status")
	if err != nil {
		return nil, 0, err
	}
	return numbers(status)
}

// names reports whether a runner names files in a folder.
func (r *runner) names(folder string) bool {
	return slices.ContainsFunc(r.files, func(file string) bool { return within(file, folder) })
}

// hold watches a process for its end. It takes over the handle. The caller has the lock.
func (v *VMs) hold(handle *process.Handle) *held {
	who := handle.Process()
	if h := v.held[who]; h != nil || v.closed {
		_ = handle.Close()
		return h
	}
	h := &held{handle: handle, process: who}
	v.held[who] = h
	v.byPID.Store(who.PID, h)
	go func() {
		err := handle.Wait()
		at := time.Now()
		v.mu.Lock()
		defer v.mu.Unlock()
		switch {
		case err == nil:
			v.bury(h, at)
		case !errors.Is(err, os.ErrClosed):
			v.post(watch.LookFailed{At: at, Err: fmt.Errorf("wait for the end of process %d: %w", who.PID, err)})
		}
	}()
	return h
}

// bury takes in that a held process is dead, and looks at the microVMs that it matters to. The caller has the lock.
func (v *VMs) bury(h *held, at time.Time) {
	again := h.exited
	if again && !at.Before(h.at) || v.held[h.process] != h {
		return
	}
	h.exited, h.at = true, at
	delete(v.runners, h.process)
	delete(v.makers, h.process)
	for file, m := range v.vms {
		if m.owner.process != h.process && m.runner != h.process && m.maker.owner != h.process {
			continue
		}
		if m.sandbox.Init == h.process && !again {
			v.post(watch.InitExited{ID: m.sandbox.ID, Process: h.process, At: at})
		}
		v.lookAgain(file)
	}
}

// release lets go of a process. The caller has the lock.
func (v *VMs) release(p watch.Process) {
	if h := v.held[p]; h != nil {
		_ = h.handle.Close() // nobody can act on an error of that
		delete(v.held, p)
		v.byPID.CompareAndDelete(p.PID, h)
	}
}

// sweep lets go of processes that matter no more. The caller has the lock.
func (v *VMs) sweep() {
	needed := map[watch.Process]bool{}
	for _, m := range v.vms {
		needed[m.owner.process], needed[m.runner] = true, true
	}
	for p := range v.runners {
		needed[p] = true
	}
	for p := range v.makers {
		needed[p] = true
	}
	for p := range v.held {
		if !needed[p] {
			v.release(p)
		}
	}
}

func (v *VMs) forget(file string) {
	delete(v.vms, file)
	delete(v.bare, file)
}

// readable is a path or name as people may see it: it may hold anything, also what a terminal obeys.
func readable(text string) string {
	const most = 4096
	if len(text) > most {
		text = text[:most]
	}
	quoted := strconv.Quote(text)
	return quoted[1 : len(quoted)-1]
}

func speakable(name string) bool { return utf8.ValidString(name) }
