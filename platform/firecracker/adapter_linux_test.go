package firecracker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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
