package firecracker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/firecracker"
	"watcher/platform/firecracker/firecrackertest"
	"watcher/platform/process"
	"watcher/watch"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

// A scene is a site with the adapter looking at it.
type scene struct {
	*firecrackertest.Site
	*firecracker.MicroVMs
	t    *testing.T
	host *process.Host
	rule watch.Rule

	mu     sync.Mutex
	posted []watch.Event
	more   chan struct{}
}

func newScene(t *testing.T, change ...func(*watch.Rule)) *scene {
	t.Helper()
	site := firecrackertest.NewSite(t)
	return sceneAt(t, site, change...)
}

func sceneAt(t *testing.T, site *firecrackertest.Site, change ...func(*watch.Rule)) *scene {
	t.Helper()
	host, err := process.NewHost("/proc")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{Site: site, t: t, host: host, more: make(chan struct{}, 1)}
	s.MicroVMs = firecracker.New(host, s.post)
	t.Cleanup(s.Close)
	s.rule = watch.Rule{
		Name: "fc", Kind: watch.Firecracker, BaseDirs: []string{s.Base}, JailDirs: []string{s.Jails}, SocketDir: s.Sockets,
		Owner: watch.Evidence{Ancestor: "runner"},
	}
	for _, c := range change {
		c(&s.rule)
	}
	s.SetRules(&watch.Rules{List: []watch.Rule{s.rule}})
	return s
}

func (s *scene) post(events ...watch.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posted = append(s.posted, events...)
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// await waits for a posted event that is wanted, and forgets it and what came before.
func await[E watch.Event](s *scene, wanted func(E) bool) E {
	s.t.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		for i, ev := range s.posted {
			if e, ok := ev.(E); ok && wanted(e) {
				s.posted = slices.Delete(s.posted, i, i+1)
				s.mu.Unlock()
				return e
			}
		}
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-timeout:
			s.t.Fatalf("not within %v; posted: %+v", patience, s.posted)
		}
	}
}

// listed is what a look found.
type listed struct {
	sandboxes map[string]watch.Sandbox // by name
	owners    map[string][]watch.OwnerSeen
}

func (s *scene) list() listed {
	s.t.Helper()
	events, err := s.List(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	l := listed{map[string]watch.Sandbox{}, map[string][]watch.OwnerSeen{}}
	for _, ev := range events {
		switch ev := ev.(type) {
		case watch.Listed:
			for _, sandbox := range ev.Sandboxes {
				if _, ok := l.sandboxes[sandbox.Name]; ok {
					s.t.Errorf("%s is listed twice", sandbox.Name)
				}
				l.sandboxes[sandbox.Name] = sandbox
			}
		case watch.OwnerSeen:
			name, _, _ := strings.Cut(ev.ID.Name, ".")
			l.owners[name] = append(l.owners[name], ev)
		}
	}
	return l
}

// owner is the only owner of a microVM that was looked for.
func (l listed) owner(t *testing.T, vm *firecrackertest.VM) watch.OwnerSeen {
	t.Helper()
	if len(l.owners[vm.ID]) != 1 {
		t.Fatalf("owners of %s: %+v", vm.ID, l.owners[vm.ID])
	}
	return l.owners[vm.ID][0]
}

func leaf(s watch.Sandbox, kind string) string {
	for _, l := range s.Leaves {
		if l.Kind == kind {
			return l.Name
		}
	}
	return ""
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	return err == nil
}

func alive(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// remove has a microVM removed, and returns what was told.
func (s *scene) remove(sandbox watch.Sandbox) (told map[string]error, err error) {
	told = map[string]error{}
	err = s.Remove(s.t.Context(), sandbox, func(part string, err error) { told[part] = err })
	return told, err
}

// needsNetns says which chains lead through a network namespace.
func needsNetns(chain firecrackertest.Chain) bool {
	return chain == firecrackertest.Fresh || chain == firecrackertest.Restore
}

func (s *scene) start(r *firecrackertest.Runner, chain firecrackertest.Chain) *firecrackertest.VM {
	s.t.Helper()
	spawn := firecrackertest.Spawn{Chain: chain}
	if needsNetns(chain) {
		spawn.Netns = s.Netns()
	}
	return r.Start(spawn)
}

var chains = []firecrackertest.Chain{
	firecrackertest.Direct, firecrackertest.Shared, firecrackertest.Fresh, firecrackertest.Restore, firecrackertest.Older,
	firecrackertest.Jailed,
}

// TestEachChain: from the start of a microVM to the end of its last leaf, in each way in which runners start them.
func TestEachChain(t *testing.T) {
	for _, chain := range chains {
		t.Run(string(chain), func(t *testing.T) {
			s := newScene(t)
			r := s.StartRunner()
			vm := s.start(r, chain)
			l := s.list()
			sandbox, ok := l.sandboxes[vm.ID]
			if !ok || len(l.sandboxes) != 1 || sandbox.State != watch.Running || sandbox.Init.PID != vm.PID {
				t.Fatalf("%+v, want process %d", l.sandboxes, vm.PID)
			}
			if got := leaf(sandbox, firecracker.Workspace); got != vm.Workspace {
				t.Errorf("workspace %q, want %q", got, vm.Workspace)
			}
			if got := leaf(sandbox, firecracker.Sockets); got != vm.Sockets {
				t.Errorf("sockets %q, want %q", got, vm.Sockets)
			}
			if got := leaf(sandbox, firecracker.Netns); got != vm.Netns {
				t.Errorf("network namespace %q, want %q", got, vm.Netns)
			}
			if seen := l.owner(t, vm); seen.Life != watch.Alive || seen.Owner.PID != r.PID || seen.Claim.Kind != watch.AncestorClaim {
				t.Errorf("%+v, want runner %d alive", seen, r.PID)
			}
			sight, err := s.host.Sight(vm.PID)
			if err != nil {
				t.Fatal(err)
			}
			defer sight.Close()
			above, err := sight.Ancestors(func(a process.Ancestor) bool { return a.Process.PID == r.PID })
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("group %d, session %d of process %d; above it %d wrappers", sight.Group, sight.Session, vm.PID, len(above)-1)

			killed := time.Now()
			r.Kill()
			seen := await(s, func(ev watch.OwnerSeen) bool { return ev.ID == sandbox.ID })
			if seen.Life != watch.Exited || seen.Owner.PID != r.PID || seen.Exited.Before(killed) {
				t.Errorf("%+v, want the runner dead", seen)
			}
			if err := s.Stop(sandbox, watch.Kill); err != nil {
				t.Fatal(err)
			}
			if gone := await(s, func(watch.InitExited) bool { return true }); gone.ID != sandbox.ID || gone.Process != sandbox.Init {
				t.Errorf("%+v", gone)
			}
			told, err := s.remove(sandbox)
			if err != nil {
				t.Fatalf("%v; told %v", err, told)
			}
			for _, a := range above[:len(above)-1] {
				if err := s.host.AwaitEnd(t.Context(), a.Process); err != nil {
					t.Error(err)
				}
			}
			for _, path := range []string{vm.Workspace, vm.Sockets, "/run/netns/" + vm.Netns} {
				if path != "" && path != "/run/netns/" && exists(t, path) {
					t.Errorf("%s is still there", path)
				}
			}
			if !exists(t, filepath.Dir(vm.Workspace)) || !exists(t, s.Sockets) {
				t.Error("a folder of the rule is gone")
			}
			// Again, and by another that only has the record.
			other := sceneAt(t, s.Site)
			for _, m := range []*scene{s, other} {
				if told, err := m.remove(sandbox); err != nil {
					t.Errorf("again: %v; told %v", err, told)
				}
			}
			if l := s.list(); len(l.sandboxes) != 0 {
				t.Errorf("listed: %+v", l.sandboxes)
			}
		})
	}
}

// TestEachDeathOfARunner: whichever way it dies, its microVMs have lost it at once; and while it lives, whatever it becomes, they
// have not.
func TestEachDeathOfARunner(t *testing.T) {
	for name, die := range map[string]func(*firecrackertest.Runner){
		"killed":     (*firecrackertest.Runner).Kill,
		"ended":      (*firecrackertest.Runner).Exit,
		"zombie":     (*firecrackertest.Runner).Zombie,
		"terminated": func(r *firecrackertest.Runner) { r.Signal(unix.SIGTERM) },
		"hung up":    func(r *firecrackertest.Runner) { r.Signal(unix.SIGHUP) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			r := s.StartRunner()
			vm := s.start(r, firecrackertest.Direct)
			if seen := s.list().owner(t, vm); seen.Life != watch.Alive {
				t.Fatalf("%+v", seen)
			}
			die(r)
			if seen := await(s, func(watch.OwnerSeen) bool { return true }); seen.Life != watch.Exited || seen.Owner.PID != r.PID || seen.Exited.IsZero() {
				t.Errorf("%+v", seen)
			}
			// What was seen of its end is not forgotten.
			if seen := s.list().owner(t, vm); seen.Life != watch.Exited || seen.Owner.PID != r.PID || seen.Exited.IsZero() {
				t.Errorf("listed: %+v", seen)
			}
		})
	}
}

// TestF3ARunnerThatBecomesAnother: it keeps its PID and start time, and what it owned.
func TestF3ARunnerThatBecomesAnother(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Direct)
	s.list()
	if err := os.Remove(filepath.Join(s.Bin, "runner")); err != nil {
		t.Fatal(err)
	}
	if seen := s.list().owner(t, vm); seen.Life != watch.Alive {
		t.Errorf("its executable was removed: %+v", seen)
	}
	// One that never saw it before knows it by its name still.
	if seen := sceneAt(t, s.Site).list().owner(t, vm); seen.Life != watch.Alive {
		t.Errorf("and to another: %+v", seen)
	}
	r.Become(firecrackertest.Program(t, filepath.Join(s.Bin, "other")), "other", "run")
	if seen := s.list().owner(t, vm); seen.Life != watch.Alive || seen.Owner.PID != r.PID {
		t.Errorf("it runs another program: %+v", seen)
	}
	r.Kill()
	if seen := await(s, func(watch.OwnerSeen) bool { return true }); seen.Life != watch.Exited {
		t.Errorf("%+v", seen)
	}
}

// TestF3AWrapperThatDies: the chain is broken, and the runner that is above it no more lives.
func TestF3AWrapperThatDies(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Fresh)
	s.list()
	sight, err := s.host.Sight(vm.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer sight.Close()
	above, err := sight.Ancestors(func(a process.Ancestor) bool { return a.Process.PID == r.PID })
	if err != nil || len(above) < 3 {
		t.Fatalf("%+v (%v)", above, err)
	}
	// From the top: one that is left without the one below ends by itself.
	for _, wrapper := range slices.Backward(above[:len(above)-1]) {
		handle, err := s.host.Open(wrapper.Process.PID)
		if err != nil {
			t.Fatal(err)
		}
		if err := handle.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := handle.Wait(); err != nil {
			t.Fatal(err)
		}
		_ = handle.Close()
	}
	if !alive(t, vm.PID) {
		t.Fatal("the microVM went with its wrappers")
	}
	if seen := s.list().owner(t, vm); seen.Life != watch.Alive || seen.Owner.PID != r.PID {
		t.Errorf("%+v, want the runner, which lives", seen)
	}
}

// TestOrphansOfBefore: nobody saw who owned them.
func TestOrphansOfBefore(t *testing.T) {
	s := newScene(t)
	r, other := s.StartRunner(), s.StartRunner()
	vm, kept := s.start(r, firecrackertest.Fresh), s.start(other, firecrackertest.Direct)
	r.Kill()
	l := s.list()
	if seen := l.owner(t, vm); seen.Life != watch.Exited || seen.Owner.PID != 0 || !seen.Exited.IsZero() {
		t.Errorf("%+v, want no owner and no time", seen)
	}
	if seen := l.owner(t, kept); seen.Life != watch.Alive || seen.Owner.PID != other.PID {
		t.Errorf("%+v, want the other runner", seen)
	}
}

// TestFiftyAtOnce: all microVMs of a runner have lost it when it is killed, without a list in between.
func TestFiftyAtOnce(t *testing.T) {
	const n = 50
	s := newScene(t)
	r := s.StartRunner()
	names := map[string]bool{}
	var waits []func()
	for range n {
		vm, wait := r.StartOnly(firecrackertest.Spawn{Chain: firecrackertest.Direct})
		names[vm.ID] = true
		waits = append(waits, wait)
	}
	for _, wait := range waits {
		wait()
	}
	l := s.list()
	if len(l.sandboxes) != n {
		t.Fatalf("%d microVMs", len(l.sandboxes))
	}
	killed := time.Now()
	r.Signal(unix.SIGKILL)
	for range n {
		seen := await(s, func(watch.OwnerSeen) bool { return true })
		name, _, _ := strings.Cut(seen.ID.Name, ".")
		if seen.Life != watch.Exited || seen.Owner.PID != r.PID || !names[name] {
			t.Fatalf("%+v", seen)
		}
		delete(names, name)
	}
	t.Logf("%d microVMs without a runner, known %v after it was killed", n, time.Since(killed))
	for _, sandbox := range l.sandboxes {
		if err := s.Stop(sandbox, watch.Kill); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		await(s, func(watch.InitExited) bool { return true })
	}
	t.Logf("dead after %v", time.Since(killed))
	for _, sandbox := range l.sandboxes {
		if told, err := s.remove(sandbox); err != nil {
			t.Fatalf("%v: %v", told, err)
		}
	}
	t.Logf("removed after %v", time.Since(killed))
}

// TestF3TooDeep: sixteen ancestors are looked at.
func TestF3TooDeep(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	sh := func(n int) (below []string) {
		for range n {
			below = append(below, "sh", "-c", `"$@"; exit $?`, "sh")
		}
		return below
	}
	last := r.Start(firecrackertest.Spawn{Below: sh(process.Generations - 1)})
	deep := r.Start(firecrackertest.Spawn{Below: sh(process.Generations)})
	l := s.list()
	if seen := l.owner(t, last); seen.Life != watch.Alive || seen.Owner.PID != r.PID {
		t.Errorf("the sixteenth is the runner: %+v", seen)
	}
	if seen := l.owner(t, deep); seen.Life != watch.Unknown || !strings.Contains(seen.Detail, "more than 16") {
		t.Errorf("the seventeenth is: %+v", seen)
	}
}

// TestSubreapers: below one, an orphan's parent is not process 1, and its runner is gone all the same.
func TestSubreapers(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	}()
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Direct)
	s.list()
	r.Kill()
	if seen := await(s, func(watch.OwnerSeen) bool { return true }); seen.Life != watch.Exited || seen.Owner.PID != r.PID {
		t.Errorf("%+v", seen)
	}
	sight, err := s.host.Sight(vm.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer sight.Close()
	if sight.Parent != os.Getpid() {
		t.Errorf("the parent of the orphan is %d, and not us", sight.Parent)
	}
	if seen := sceneAt(t, s.Site).list().owner(t, vm); seen.Life != watch.Exited {
		t.Errorf("to one who never saw the runner: %+v", seen)
	}
	// If the subreaper is a runner, then a runner is above it.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := sceneAt(t, s.Site, func(rule *watch.Rule) { rule.Owner.Ancestor = filepath.Base(self) })
	if seen := other.list().owner(t, vm); seen.Life != watch.Alive || seen.Owner.PID != os.Getpid() {
		t.Errorf("below us: %+v", seen)
	}
	if err := s.Stop(s.list().sandboxes[vm.ID], watch.Kill); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(vm.PID, &status, 0, nil); err != nil {
		t.Error(err) // it is our child now
	}
}

// TestRemnants: workspaces and sockets of which nobody is left, and those that somebody may be about to use.
func TestRemnants(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	lives := s.start(r, firecrackertest.Fresh)
	left, jail, older := s.Lay(firecrackertest.Direct, ""), s.Lay(firecrackertest.Jailed, ""), s.Lay(firecrackertest.Older, "")
	onlySockets := s.Lay(firecrackertest.Direct, "")
	if err := os.RemoveAll(onlySockets.Workspace); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"workspaces/cache", "workspaces/.hidden", "elsewhere/" + left.ID} {
		if err := os.MkdirAll(filepath.Join(s.Base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(left.Workspace, filepath.Join(s.Base, "workspaces", "vm0-00000000")); err != nil {
		t.Fatal(err)
	}
	l := s.list()
	if len(l.sandboxes) != 5 {
		t.Errorf("%d are listed: %+v", len(l.sandboxes), l.sandboxes)
	}
	if l.sandboxes[lives.ID].State != watch.Running {
		t.Errorf("%+v", l.sandboxes[lives.ID])
	}
	for _, vm := range []*firecrackertest.VM{left, jail, older, onlySockets} {
		sandbox := l.sandboxes[vm.ID]
		if sandbox.State != watch.Stopped || sandbox.Init.PID != 0 || sandbox.Created.IsZero() || len(l.owners[vm.ID]) != 0 ||
			!slices.Equal(sandbox.Terms.Owners, []watch.Claim{{Kind: watch.ProgramClaim, Program: "runner"}}) {
			t.Errorf("%+v, owners %+v", sandbox, l.owners[vm.ID])
		}
		want := vm.Workspace
		if vm == onlySockets {
			want = ""
		}
		if leaf(sandbox, firecracker.Workspace) != want || leaf(sandbox, firecracker.Sockets) != vm.Sockets {
			t.Errorf("leaves %+v", sandbox.Leaves)
		}
		if told, err := s.remove(sandbox); err != nil {
			t.Errorf("%v: %v", told, err)
		}
		if exists(t, vm.Workspace) || vm.Sockets != "" && exists(t, vm.Sockets) {
			t.Errorf("%s is not removed", vm.ID)
		}
	}
	for _, dir := range []string{lives.Workspace, lives.Sockets, filepath.Join(s.Base, "workspaces/cache"), filepath.Join(s.Base, "elsewhere", left.ID)} {
		if !exists(t, dir) {
			t.Errorf("%s is gone", dir)
		}
	}
}

// TestWhatEndsByItself: the runner is still the owner of what is left, and cleans up.
func TestWhatEndsByItself(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Direct)
	sandbox := s.list().sandboxes[vm.ID]
	sight, err := s.host.Sight(vm.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer sight.Close()
	if err := sight.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if gone := await(s, func(watch.InitExited) bool { return true }); gone.Process != sandbox.Init {
		t.Errorf("%+v", gone)
	}
	if seen := await(s, func(watch.SandboxSeen) bool { return true }).Sandbox; seen.State != watch.Stopped || seen.Init.PID != 0 {
		t.Errorf("%+v", seen)
	}
	l := s.list()
	if seen := l.owner(t, vm); seen.Life != watch.Alive || seen.Owner.PID != r.PID || l.sandboxes[vm.ID].State != watch.Stopped {
		t.Errorf("%+v of %+v", seen, l.sandboxes[vm.ID])
	}
	r.Kill()
	if seen := await(s, func(watch.OwnerSeen) bool { return true }); seen.Life != watch.Exited || seen.Owner.PID != r.PID {
		t.Errorf("%+v", seen)
	}
	if err := s.Remove(t.Context(), s.list().sandboxes[vm.ID], nil); err != nil { // nobody wants to hear of the parts
		t.Error(err)
	}
	if exists(t, vm.Workspace) || len(s.list().sandboxes) != 0 {
		t.Errorf("listed: %+v", s.list().sandboxes)
	}
}

// TestExecs: a microVM is known when it begins to run, with its owner.
func TestExecs(t *testing.T) {
	s := newScene(t)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	defer func() { stop(); <-ran }()
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Fresh)
	for _, pid := range []int{os.Getpid(), r.PID, vm.PID, vm.PID} {
		s.Exec(pid, time.Now())
	}
	if seen := await(s, func(watch.SandboxSeen) bool { return true }).Sandbox; seen.Name != vm.ID || seen.Init.PID != vm.PID {
		t.Errorf("%+v", seen)
	}
	if seen := await(s, func(watch.OwnerSeen) bool { return true }); seen.Life != watch.Alive || seen.Owner.PID != r.PID {
		t.Errorf("%+v", seen)
	}
	r.Kill()
	if seen := await(s, func(watch.OwnerSeen) bool { return true }); seen.Life != watch.Exited {
		t.Errorf("%+v", seen)
	}
}

// TestF4OnlyThatMicroVM: nothing is signalled that is not what was meant.
func TestF4OnlyThatMicroVM(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm, other := s.start(r, firecrackertest.Direct), s.start(r, firecrackertest.Direct)
	l := s.list()
	sandbox := l.sandboxes[vm.ID]
	for name, change := range map[string]func(*watch.Sandbox){
		"another microVM's process": func(b *watch.Sandbox) { b.Init = l.sandboxes[other.ID].Init },
		"another base folder":       func(b *watch.Sandbox) { b.ID.Name = vm.ID + ".00000000" },
		"another rule":              func(b *watch.Sandbox) { b.Terms.Rule = "other" },
		"no process":                func(b *watch.Sandbox) { b.Init = watch.Process{} },
	} {
		wrong := sandbox
		change(&wrong)
		if err := s.Stop(wrong, watch.Kill); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// Whoever has the number since, or in another boot, is somebody else, and the one that was meant is gone.
	for _, process := range []watch.Process{
		{PID: vm.PID, Start: sandbox.Init.Start - 1, Boot: sandbox.Init.Boot},
		{PID: vm.PID, Start: sandbox.Init.Start, Boot: "another"},
	} {
		gone := sandbox
		gone.Init = process
		if err := s.Stop(gone, watch.Kill); err != nil {
			t.Error(err)
		}
		if ev := await(s, func(watch.InitExited) bool { return true }); ev.Process != process {
			t.Errorf("%+v", ev)
		}
	}
	if !alive(t, vm.PID) || !alive(t, other.PID) {
		t.Fatal("a microVM is dead")
	}
	// Nor is anything removed of one that cannot be ended.
	wrong := l.sandboxes[other.ID]
	wrong.ID.Name = other.ID + ".00000000"
	if told, err := s.remove(wrong); err == nil || len(told) != 0 || !alive(t, other.PID) || !exists(t, other.Workspace) {
		t.Errorf("%v; told %v", err, told)
	}
	// Whoever began with it, and was killed, may not have come as far as to kill it.
	if told, err := s.remove(l.sandboxes[other.ID]); err != nil || alive(t, other.PID) || exists(t, other.Workspace) {
		t.Errorf("%v; told %v", err, told)
	}
}

// TestF4TheGroupOfOthers: a microVM without a group of its own takes neither the runner nor another along.
func TestF4TheGroupOfOthers(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm, other := s.start(r, firecrackertest.Shared), s.start(r, firecrackertest.Shared)
	if err := s.Stop(s.list().sandboxes[vm.ID], watch.Terminate); err != nil {
		t.Fatal(err)
	}
	await(s, func(watch.InitExited) bool { return true })
	if !alive(t, r.PID) || !alive(t, other.PID) || alive(t, vm.PID) {
		t.Error("somebody else is dead, or the microVM is not")
	}
}

// TestF5: nothing is removed while somebody else is at home there.
func TestF5SomebodyElseAtHome(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Direct)
	sandbox := s.list().sandboxes[vm.ID]
	second := r.StartAgain(vm)
	l := s.list()
	if got := l.sandboxes[vm.ID]; got.Terms.Fault == "" || got.Init.PID != 0 {
		t.Errorf("F8: %+v, want a fault", got)
	}
	if err := s.Stop(sandbox, watch.Kill); err != nil {
		t.Fatal(err)
	}
	if err := s.host.AwaitEnd(t.Context(), sandbox.Init); err != nil {
		t.Fatal(err)
	}
	told, err := s.remove(sandbox)
	if !errors.Is(err, watch.ErrInUse) || !exists(t, vm.Workspace) || !alive(t, second) {
		t.Errorf("%v; told %v", err, told)
	}
	if got := s.list().sandboxes[vm.ID]; got.Terms.Fault != "" || got.Init.PID != second {
		t.Errorf("%+v, want the other process", got)
	}
}
