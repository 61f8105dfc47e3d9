package firecracker

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
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// A listing is one look for microVMs.
type listing struct {
	m     *MicroVMs
	rules *ruleSet
	asked time.Time
	jails map[process.File][]jail // by the root in it
	found []*microVM
}

// A jail is a folder of a jailed microVM.
type jail struct {
	home home
	of   string // the program that it was made for
}

func (l *listing) close() {
	for _, vm := range l.found {
		l.release(vm)
	}
	l.found = nil
}

func (l *listing) release(vm *microVM) {
	if vm.sight != nil {
		_ = vm.sight.Close()
	}
}

// roots finds the jails.
func (l *listing) roots(ctx context.Context) error {
	l.jails = map[process.File][]jail{}
	seen := map[string]bool{}
	for _, rule := range l.rules.list {
		for _, glob := range rule.JailDirs {
			dirs, err := statedir.Expand(ctx, []string{path.Join(glob, "*", "*", "root")})
			if err != nil {
				return err
			}
			for _, dir := range dirs {
				h, of, ok := jailAt(dir)
				if !ok || seen[dir] {
					continue
				}
				seen[dir] = true
				file, err := fileAt(dir)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return err
				}
				l.jails[file] = append(l.jails[file], jail{h, of})
			}
		}
	}
	return nil
}

// rootsFor finds the jails if a process may be in one.
func (l *listing) rootsFor(ctx context.Context, s *process.Sight) error {
	if root, err := fileAt("/"); err == nil && root == s.Root {
		return nil
	}
	return l.roots(ctx)
}

// fileAt says what has a path, without asking the file system that it is on.
func fileAt(file string) (process.File, error) {
	var st unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(unix.AT_FDCWD, file, flags, unix.STATX_INO, &st); err != nil {
		return process.File{}, &fs.PathError{Op: "statx", Path: file, Err: err}
	}
	return process.File{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino}, nil
}

// look finds all microVMs. The folders come first: whoever makes one and is about to start a process in it lives by then, and a
// process that was started in it since is not missed by mistake, but for one whose owner lives (F9).
func (l *listing) look(ctx context.Context) error {
	if len(l.rules.list) == 0 {
		return nil
	}
	if err := l.roots(ctx); err != nil {
		return err
	}
	left, err := l.folders(ctx)
	if err != nil {
		return err
	}
	processes, err := l.m.host.Find(ctx, l.rules.concerns)
	if err != nil {
		return err
	}
	taken := map[*process.Sight]bool{}
	defer func() {
		for _, s := range processes {
			if !taken[s] {
				_ = s.Close()
			}
		}
	}()
	byID := map[watch.ID][]*microVM{}
	for _, s := range processes {
		if !l.rules.runs(s.Exe, s.Argv) {
			continue
		}
		if rule, h, ok := l.identify(s); ok {
			vm, err := l.microVM(ctx, rule, h, s)
			if err != nil {
				return err
			}
			byID[vm.sandbox.ID] = append(byID[vm.sandbox.ID], vm)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(byID), watch.ID.Compare) {
		vm := one(byID[id])
		if vm.sight != nil {
			taken[vm.sight] = true
		}
		l.found = append(l.found, vm)
	}
	l.found = append(l.found, l.remnants(left, processes)...)
	return nil
}

// one is the microVM that several processes are: the one that all others descend from. If there is none it is a fault, and which
// of them to end is not for us to guess (F8). Strangers do not count where somebody else is (F10).
func one(same []*microVM) *microVM {
	if known := slices.DeleteFunc(slices.Clone(same), func(vm *microVM) bool { return vm.stranger }); len(known) > 0 {
		same = known
	} else {
		return same[0].faulty(fmt.Sprintf("process %d seems to be this microVM, and is run by user %d, who has nothing in its folder",
			same[0].sight.Process().PID, same[0].sight.User))
	}
	for _, vm := range same {
		if !slices.ContainsFunc(same, func(other *microVM) bool { return other != vm && !descends(other.sight, vm.sight) }) {
			return vm
		}
	}
	return same[0].faulty(fmt.Sprintf("%d processes seem to be this microVM, %d and %d among them",
		len(same), same[0].sight.Process().PID, same[1].sight.Process().PID))
}

// faulty is a microVM of which it is not known which process it is.
func (vm *microVM) faulty(why string) *microVM {
	faulty := *vm
	faulty.sight, faulty.sandbox.Init, faulty.sandbox.Terms.Fault = nil, watch.Process{}, why
	return &faulty
}

func descends(s, from *process.Sight) bool {
	chain, err := s.Ancestors(func(a process.Ancestor) bool { return a.Process == from.Process() })
	return err == nil && len(chain) > 0 && chain[len(chain)-1].Process == from.Process()
}

// identify says which microVM a process is, if it is one that a rule names (F1).
func (l *listing) identify(s *process.Sight) (rule *watch.Rule, h home, ok bool) {
	at := homes(s.Cwd, s.Argv)
	id := option(s.Argv, "--id")
	for _, rule := range l.rules.list {
		p := programOf(rule)
		if !p.runs(s.Exe, s.Argv) {
			continue
		}
		for _, h := range at {
			if knows(rule, h) && h.isOf(s) {
				return rule, h, true
			}
		}
		for _, j := range l.jails[s.Root] {
			if j.home.id == id && p.name.Matches(j.of) && knows(rule, j.home) {
				return rule, j.home, true
			}
		}
	}
	return nil, home{}, false
}

// isOf reports whether the folder of a process, if its path is that of the workspace, is the workspace: in a mount namespace of
// his own anybody may have one of that path.
func (h home) isOf(s *process.Sight) bool {
	if s.Cwd != h.dir {
		return true // by an argument, or by the path of what was removed: see F10
	}
	file, err := fileAt(h.dir)
	return err == nil && file == s.CwdFile
}

// usersOf are those who may run a microVM that is at home in one of these folders: root, and whoever a folder belongs to, or what
// is directly in it, or one of the two that it is in.
func usersOf(dirs ...string) map[uint32]bool {
	users := map[uint32]bool{0: true}
	add := func(file string) {
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); err == nil {
			users[st.Uid] = true
		}
	}
	for _, dir := range dirs {
		add(dir)
		add(path.Dir(dir))
		add(path.Dir(path.Dir(dir)))
		// Who may make something here is at home here. If nobody can say, nobody has.
		entries, _ := os.ReadDir(dir)
		for _, entry := range entries {
			add(filepath.Join(dir, entry.Name()))
		}
	}
	return users
}

// claims are those of the owners that a rule names. Of a microVM that has ended, and was not seen before, no ancestors can be found.
func (h home) claims(rule *watch.Rule, seen bool) (all []watch.Claim) {
	e := rule.Owner
	switch {
	case e.Ancestor == "":
	case seen:
		all = append(all, watch.Claim{Kind: watch.AncestorClaim, Program: e.Ancestor})
	default:
		all = append(all, watch.Claim{Kind: watch.ProgramClaim, Program: e.Ancestor})
	}
	if e.Locks != "" {
		all = append(all, watch.Claim{Kind: watch.LockClaim, File: e.Locks})
	}
	if e.Records != "" {
		all = append(all, watch.Claim{Kind: watch.RecordClaim, File: e.Records})
	}
	if e.Process != "" {
		all = append(all, watch.Claim{Kind: watch.ProgramClaim, Program: e.Process})
	}
	return all
}

func (l *listing) microVM(ctx context.Context, rule *watch.Rule, h home, s *process.Sight) (*microVM, error) {
	vm := &microVM{sight: s, rule: rule, home: h, began: l.asked, stranger: !usersOf(h.dir)[s.User]}
	others, err := l.rules.homesOf(ctx, h.id, h.dir)
	if err != nil {
		return nil, err
	}
	vm.sandbox = watch.Sandbox{
		ID: h.watchID(), Name: h.id, State: watch.Running, Created: s.Born(), Init: s.Process(),
		Terms: rule.Terms(h.claims(rule, true)...),
	}
	vm.sandbox.Leaves = leavesOfProcess(rule, h, s, len(others) == 0)
	return vm, nil
}

// homesOf are the workspaces and jails of an ID in the folders of all rules, but for one. Sockets are in a folder of the ID alone,
// and where several are at home by that, nobody knows whose they are.
func (r *ruleSet) homesOf(ctx context.Context, id, but string) (others []string, err error) {
	if !idFormat.MatchString(id) {
		return nil, fmt.Errorf("%q is no ID", id)
	}
	var globs []string
	for _, rule := range r.list {
		for _, glob := range rule.BaseDirs {
			globs = append(globs, path.Join(glob, workspaces, id))
		}
		for _, glob := range rule.JailDirs {
			globs = append(globs, path.Join(glob, "*", id))
		}
	}
	dirs, err := statedir.Expand(ctx, globs)
	return slices.DeleteFunc(dirs, func(dir string) bool { return dir == but }), err
}

// leavesOfProcess are what a microVM will leave behind that can be seen while it lives.
func leavesOfProcess(rule *watch.Rule, h home, s *process.Sight, only bool) (leaves []watch.Leaf) {
	if leaf, ok := h.workspace(rule, s); ok {
		leaves = append(leaves, leaf)
	}
	if dir := socketsOf(rule, h.id); removes(rule, Sockets) && (only || refersTo(s.Argv, dir)) {
		if leaf, ok := folderLeaf(Sockets, dir); ok {
			leaves = append(leaves, leaf)
		}
	}
	if name := netnsName(s.Net); name != "" && removes(rule, Netns) {
		leaves = append(leaves, watch.Leaf{Kind: Netns, Name: name})
	}
	for _, group := range s.Cgroups {
		leaf := watch.Leaf{Kind: Cgroup, Name: group.Path}
		if removes(rule, Cgroup) && cgroupOf(group.Path, h.id) && !slices.Contains(leaves, leaf) {
			leaves = append(leaves, leaf)
		}
	}
	return leaves
}

// workspace is the leaf that the folder of a microVM is. A process that lives is there: a folder that was made in its place since
// is another's.
func (h home) workspace(rule *watch.Rule, s *process.Sight) (watch.Leaf, bool) {
	if h.dir == "" || !removes(rule, Workspace) {
		return watch.Leaf{}, false
	}
	if s != nil {
		at, is := h.dir, s.CwdFile
		if h.jail {
			at, is = path.Join(h.dir, "root"), s.Root
		}
		file, err := fileAt(at)
		if err != nil || file != is && (h.jail || !olderFormat.MatchString(h.id)) {
			return watch.Leaf{}, false
		}
	}
	return folderLeaf(Workspace, h.dir)
}

func folderLeaf(kind, dir string) (watch.Leaf, bool) {
	if dir == "" {
		return watch.Leaf{}, false
	}
	incarnation, err := statedir.Incarnation(dir)
	if err != nil || incarnation == "" {
		return watch.Leaf{}, false
	}
	return watch.Leaf{Kind: kind, Name: dir, Incarnation: incarnation}, true
}

// netnsExists reports whether a namespace, or something else, has a name.
func netnsExists(name string) bool {
	view, _ := theNetHost.view()
	_, err := os.Lstat(filepath.Join(view, name))
	return err == nil
}

// netnsName is the name of a network namespace that a runner made, or "".
func netnsName(ns process.File) string {
	// Where it cannot be told whether our mounts are the host's, ours are better than none: a name is only taken if the very
	// namespace is mounted there.
	view, _ := theNetHost.view()
	entries, err := os.ReadDir(view)
	if err != nil {
		return ""
	}
	for _, entry := range entries {
		if !netnsFormat.MatchString(entry.Name()) {
			continue
		}
		if file, err := fileAt(filepath.Join(view, entry.Name())); err == nil && file == ns {
			return entry.Name()
		}
	}
	return ""
}

// folders finds the workspaces, jails and socket folders that are there, each as a microVM without a process.
func (l *listing) folders(ctx context.Context) (left []*microVM, err error) {
	homeOf := map[string]bool{}
	byID := map[string][]*microVM{}
	add := func(rule *watch.Rule, h home) {
		if h.dir != "" && homeOf[h.dir] {
			return
		}
		homeOf[h.dir] = true
		vm := &microVM{rule: rule, home: h, began: l.asked}
		left, byID[h.id] = append(left, vm), append(byID[h.id], vm)
	}
	for _, rule := range l.rules.list {
		for _, glob := range rule.BaseDirs {
			dirs, err := statedir.Expand(ctx, []string{path.Join(glob, workspaces, "*")})
			if err != nil {
				return nil, err
			}
			for _, dir := range dirs {
				// Other folders may be there that are no microVM's.
				if h, ok := workspaceAt(dir, false); ok && madeFormat.MatchString(h.id) && knows(rule, h) {
					add(rule, h)
				}
			}
		}
		for _, jails := range l.jails {
			for _, j := range jails {
				if programOf(rule).name.Matches(j.of) && knows(rule, j.home) {
					add(rule, j.home)
				}
			}
		}
	}
	for _, rule := range l.rules.list {
		if rule.SocketDir == "" || !removes(rule, Sockets) {
			continue
		}
		dirs, err := statedir.Expand(ctx, []string{path.Join(rule.SocketDir, "*")})
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			if id := path.Base(dir); madeFormat.MatchString(id) && rule.Named(id) && len(byID[id]) == 0 {
				add(rule, home{id: id, base: rule.SocketDir})
			}
		}
	}
	for _, vm := range left {
		vm.describe(len(byID[vm.home.id]) == 1)
	}
	return slices.DeleteFunc(left, func(vm *microVM) bool { return len(vm.sandbox.Leaves) == 0 }), nil
}

// describe fills in what a microVM without a process is like. If it is not the only one of its ID then nobody knows whose the
// sockets are.
func (vm *microVM) describe(only bool) {
	h, rule := vm.home, vm.rule
	vm.sandbox = watch.Sandbox{
		ID: h.watchID(), Name: h.id, State: watch.Stopped, Terms: rule.Terms(h.claims(rule, false)...),
	}
	if leaf, ok := h.workspace(rule, nil); ok {
		vm.sandbox.Leaves = append(vm.sandbox.Leaves, leaf)
	}
	if leaf, ok := folderLeaf(Sockets, socketsOf(rule, h.id)); ok && only && removes(rule, Sockets) {
		vm.sandbox.Leaves = append(vm.sandbox.Leaves, leaf)
	}
	for _, leaf := range vm.sandbox.Leaves {
		f, err := statedir.OpenFolder(leaf.Name)
		if err != nil {
			continue // it went, and is no leaf at the next look
		}
		// A folder that seems younger than it is has more processes that are older, and may own it.
		if f.Born().After(vm.sandbox.Created) {
			vm.sandbox.Created = f.Born()
		}
		f.Close()
	}
}

// remnants are those of what was left that no process has to do with.
func (l *listing) remnants(left []*microVM, processes []*process.Sight) (all []*microVM) {
	ids, taken := map[string]bool{}, map[watch.ID]bool{}
	for _, vm := range l.found {
		ids[vm.home.id], taken[vm.sandbox.ID] = true, true
	}
	for _, s := range processes {
		if !l.rules.runs(s.Exe, s.Argv) {
			continue
		}
		// Sockets have no base folder in their path. They may be those of a process that no rule names.
		for _, h := range homes(s.Cwd, s.Argv) {
			ids[h.id] = true
		}
		ids[option(s.Argv, "--id")] = true
	}
	for _, vm := range left {
		if ids[vm.home.id] {
			vm.sandbox.Leaves = slices.DeleteFunc(vm.sandbox.Leaves, func(leaf watch.Leaf) bool { return leaf.Kind == Sockets })
		}
		if len(vm.sandbox.Leaves) > 0 && !taken[vm.sandbox.ID] && !slices.ContainsFunc(processes, placesOf(vm.sandbox.Leaves).has) {
			all = append(all, vm)
		}
	}
	return all
}

// places are folders that somebody may be at home in.
type places struct {
	dirs  []string
	files []process.File
	users map[uint32]bool // who may be (F10)
}

func placesOf(leaves []watch.Leaf) (p places) {
	for _, leaf := range leaves {
		if leaf.Kind != Workspace && leaf.Kind != Sockets {
			continue
		}
		p.dirs = append(p.dirs, leaf.Name)
		for _, dir := range []string{leaf.Name, path.Join(leaf.Name, "root")} {
			if file, err := fileAt(dir); err == nil {
				p.files = append(p.files, file)
			}
		}
	}
	p.users = usersOf(p.dirs...)
	return p
}

// has reports whether a process is at home in one of the folders: it works there, has its root there, or names it. What strangers
// do there is their business.
func (p places) has(s *process.Sight) bool {
	return p.users[s.User] && p.touches(s)
}

func (p places) touches(s *process.Sight) bool {
	return slices.Contains(p.files, s.CwdFile) || slices.Contains(p.files, s.Root) ||
		slices.ContainsFunc(p.dirs, func(dir string) bool { return within(s.Cwd, dir) || refersTo(s.Argv, dir) })
}
