package firecracker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/firecracker"
	"watcher/platform/firecracker/firecrackertest"
	"watcher/platform/process"
	"watcher/watch"
)

// TestLocksAndRecords: all that a rule names must be found dead, and each says so at once.
func TestLocksAndRecords(t *testing.T) {
	dir := t.TempDir()
	s := newScene(t, func(rule *watch.Rule) {
		rule.Owner.Locks, rule.Owner.Records = dir, filepath.Join(dir, "*.json")
	})
	r := s.StartRunner()
	r.Lock(dir)
	r.Record(filepath.Join(dir, "runner.json"))
	vm := s.start(r, firecrackertest.Direct)
	left := s.Lay(firecrackertest.Direct, "")
	onlySockets := s.Lay(firecrackertest.Direct, "")
	if err := os.RemoveAll(onlySockets.Workspace); err != nil {
		t.Fatal(err)
	}
	demand := func(when string, life watch.Life, pid int) {
		t.Helper()
		l := s.list()
		for id, kinds := range map[string][]watch.ClaimKind{
			vm.ID:          {watch.AncestorClaim, watch.LockClaim, watch.RecordClaim},
			left.ID:        {watch.LockClaim, watch.RecordClaim},
			onlySockets.ID: {watch.LockClaim, watch.RecordClaim},
		} {
			if len(l.owners[id]) != len(kinds) {
				t.Fatalf("%s: %+v", when, l.owners[id])
			}
			for i, seen := range l.owners[id] {
				if seen.Claim.Kind != kinds[i] || seen.Life != life || seen.Owner.PID != pid {
					t.Errorf("%s: %+v, want %s, process %d", when, seen, life, pid)
				}
			}
		}
	}
	demand("while it lives", watch.Alive, r.PID)
	r.Kill()
	said := map[watch.ID]int{}
	for range 3 + 2 + 2 {
		seen := await(s, func(watch.OwnerSeen) bool { return true })
		if seen.Life != watch.Exited || seen.Owner.PID != r.PID || seen.Exited.IsZero() {
			t.Errorf("%+v", seen)
		}
		said[seen.ID]++
	}
	if len(said) != 3 {
		t.Errorf("said of %v", said)
	}
	demand("when it is dead", watch.Exited, r.PID)

	// Another runner of that folder looks after what the first one left.
	next := s.StartRunner()
	next.Lock(dir)
	next.Record(filepath.Join(dir, "runner.json"))
	l := s.list()
	for _, seen := range l.owners[vm.ID] {
		if want := seen.Claim.Kind != watch.AncestorClaim; (seen.Life == watch.Alive) != want {
			t.Errorf("with a later runner: %+v", seen)
		}
	}
}

const (
	// lookAs has this binary look for microVMs as a stranger, and say what came of it.
	lookAs = "WATCHER_FIRECRACKER_LOOK"
	nobody = 65534
)

func init() {
	base := os.Getenv(lookAs)
	if base == "" {
		return
	}
	host, err := process.NewHost("/proc")
	if err == nil {
		m := firecracker.New(host, func(...watch.Event) {})
		m.SetRules(&watch.Rules{List: []watch.Rule{{Name: "fc", Kind: watch.Firecracker, BaseDirs: []string{base}}}})
		_, err = m.List(context.Background())
	}
	fmt.Println(err)
	os.Exit(0)
}

// TestF2APartialView: who may not see every process finds no microVM to be gone, nor any at all.
func TestF2APartialView(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	s.start(r, firecrackertest.Direct)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*exec.Cmd){
		"as root": func(*exec.Cmd) {},
		"as nobody": func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		},
		"without CAP_SYS_PTRACE": func(cmd *exec.Cmd) {
			cmd.Args = append([]string{"setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"}, cmd.Args...)
			cmd.Path, _ = exec.LookPath("setpriv")
		},
	} {
		cmd := exec.Command("/proc/self/fd/3")
		program, err := os.Open(self)
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		cmd.ExtraFiles = []*os.File{program} // which others may not be able to reach
		cmd.Env = append(os.Environ(), lookAs+"="+s.Base)
		cmd.Stderr = os.Stderr
		change(cmd)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.TrimSpace(string(out))
		if want := name == "as root"; (got == "<nil>") != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestAWrapperThatStays: nothing is removed before it has ended, and it is said who it is.
func TestAWrapperThatStays(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	// A shell that has the program among its arguments, and stays when that has ended.
	vm := r.Start(firecrackertest.Spawn{Below: []string{"sh", "-c", `"$@"; read line <leash`, "sh"}})
	sandbox := s.list().sandboxes[vm.ID]
	r.Kill()
	// The group is that of the shell, which is a wrapper: without it, as when there is a group of the microVM's own.
	sight, err := s.host.Sight(vm.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer sight.Close()
	if err := sight.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("enough"))
	defer cancel()
	told := map[string]error{}
	err = s.Remove(ctx, sandbox, func(part string, err error) { told[part] = err })
	if err == nil || !strings.Contains(err.Error(), "wrapper") || len(told) != 1 || !exists(t, vm.Workspace) {
		t.Errorf("%v; told %v", err, told)
	}
	vm.Release() // the shell ends
	if told, err := s.remove(sandbox); err != nil || exists(t, vm.Workspace) {
		t.Errorf("%v; told %v", err, told)
	}
}

// TestARealVMM: nothing depends on the stand-in.
func TestARealVMM(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatalf("%v (apt-get install qemu-system-x86)", err)
	}
	s := newScene(t, func(rule *watch.Rule) { rule.Program = "qemu-system-*" })
	r := s.StartRunner()
	vm, _ := r.StartOnly(firecrackertest.Spawn{
		Program: qemu,
		Argv:    []string{"-M", "microvm", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:{workspace}/qmp.sock,server=on,wait=off"},
		Below:   []string{"timeout", "300"}, // so that it ends if we cannot end it
	})
	var sandbox watch.Sandbox
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for deadline := time.Now().Add(patience); sandbox.Init.PID == 0 || !exists(t, filepath.Join(vm.Workspace, "qmp.sock")); <-beat.C {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s.list())
		}
		sandbox = s.list().sandboxes[vm.ID]
	}
	vm.PID = sandbox.Init.PID
	if seen := s.list().owner(t, vm); seen.Life != watch.Alive || seen.Owner.PID != r.PID {
		t.Errorf("%+v", seen)
	}
	killed := time.Now()
	r.Kill()
	await(s, func(ev watch.OwnerSeen) bool { return ev.Life == watch.Exited })
	if err := s.Stop(sandbox, watch.Kill); err != nil {
		t.Fatal(err)
	}
	await(s, func(watch.InitExited) bool { return true })
	t.Logf("dead %v after its runner", time.Since(killed))
	if told, err := s.remove(sandbox); err != nil || exists(t, vm.Workspace) {
		t.Errorf("%v; told %v", err, told)
	}
}

// TestTwoRunners: what one leaves is not the other's, and a name that is in two folders is two microVMs.
func TestTwoRunners(t *testing.T) {
	one := firecrackertest.NewSite(t)
	two := firecrackertest.NewSite(t)
	s := sceneAt(t, one, func(rule *watch.Rule) { rule.BaseDirs = append(rule.BaseDirs, two.Base) })
	a, b := one.StartRunner(), two.StartRunner()
	first := a.Start(firecrackertest.Spawn{})
	second := b.Start(firecrackertest.Spawn{ID: first.ID})
	events, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[watch.ID]int{}
	for _, ev := range events {
		if l, ok := ev.(watch.Listed); ok {
			for _, sandbox := range l.Sandboxes {
				seen[sandbox.ID] = sandbox.Init.PID
				if sandbox.Name != first.ID || sandbox.Terms.Fault != "" {
					t.Errorf("%+v", sandbox)
				}
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("%v, want processes %d and %d", seen, first.PID, second.PID)
	}
	a.Kill()
	if ev := await(s, func(watch.OwnerSeen) bool { return true }); seen[ev.ID] != first.PID {
		t.Errorf("%+v", ev)
	}
	if !alive(t, second.PID) {
		t.Error("the other is dead")
	}
}

// TestEveryLeaf: the network namespace with its wire and its rules, and the control group, are removed as well, by one who only
// has the record of a microVM that is dead.
func TestEveryLeaf(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("NOT RUN: iptables is not installed")
	}
	s := newScene(t)
	r := s.StartRunner()
	netns := s.Netns()
	vm, wait := r.StartOnly(firecrackertest.Spawn{Chain: firecrackertest.Fresh, Netns: netns})
	wait()
	group := filepath.Join(cgroupMount(t), "watcher-test-"+vm.ID[:8], vm.ID)
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(group)
		_ = os.Remove(filepath.Dir(group))
	})
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(vm.PID)), 0); err != nil {
		t.Fatal(err)
	}
	filter := func(args ...string) string {
		out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("iptables %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	chain := "watcher-" + vm.ID[:8]
	filter("-N", chain)
	t.Cleanup(func() {
		filter("-F", chain)
		filter("-X", chain)
	})
	filter("-A", chain, "-m", "comment", "--comment", netns, "-j", "RETURN")
	filter("-A", chain, "-m", "comment", "--comment", netns+"0", "-j", "RETURN")

	sandbox := s.list().sandboxes[vm.ID]
	if len(sandbox.Leaves) != 4 {
		t.Fatalf("%+v, want four leaves", sandbox.Leaves)
	}
	r.Kill()
	if err := s.Stop(sandbox, watch.Kill); err != nil {
		t.Fatal(err)
	}
	s.Close()
	other := sceneAt(t, s.Site)
	var parts []string
	err := other.Remove(t.Context(), sandbox, func(part string, err error) {
		if err != nil {
			t.Errorf("%s: %v", part, err)
		}
		parts = append(parts, strings.Fields(part)[0])
	})
	if err != nil {
		t.Error(err)
	}
	if want := "workspace sockets netns cgroup"; strings.Join(parts, " ") != want {
		t.Errorf("told %v, want %s", parts, want)
	}
	veth := strings.Replace(netns, "-ns-", "-ve-", 1)
	for _, gone := range []string{vm.Workspace, vm.Sockets, "/run/netns/" + netns, "/sys/class/net/" + veth, group} {
		if exists(t, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	if rules := filter("-S", chain); strings.Contains(rules, netns+" ") || !strings.Contains(rules, netns+"0") {
		t.Errorf("rules:\n%s", rules)
	}
	if !exists(t, filepath.Dir(group)) {
		t.Error("the group above is gone")
	}
}

// cgroupMount is where a hierarchy is mounted in which groups can be made.
func cgroupMount(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if exists(t, filepath.Join(dir, "cgroup.procs")) {
			return dir
		}
	}
	t.Skip("NOT RUN: no unified hierarchy of control groups is mounted")
	return ""
}

// TestANamespaceThatIsLeft: what is left when only the network namespace is, is remembered until that is gone too.
func TestANamespaceThatIsLeft(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Fresh)
	sandbox := s.list().sandboxes[vm.ID]
	r.Kill()
	await(s, func(ev watch.OwnerSeen) bool { return ev.Life == watch.Exited })
	if err := s.Stop(sandbox, watch.Kill); err != nil {
		t.Fatal(err)
	}
	await(s, func(watch.InitExited) bool { return true })
	for _, dir := range []string{vm.Workspace, vm.Sockets} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if got := s.list().sandboxes[vm.ID]; got.State != watch.Stopped || leaf(got, firecracker.Netns) != vm.Netns {
			t.Fatalf("%+v", got)
		}
	}
	if told, err := s.remove(sandbox); err != nil {
		t.Errorf("%v: %v", told, err)
	}
	if l := s.list(); len(l.sandboxes) != 0 || exists(t, "/run/netns/"+vm.Netns) {
		t.Errorf("%+v", l.sandboxes)
	}
}

// TestF6ARecordOfAnotherPlace: whatever a record says, nothing is removed that is not where the rule has such things.
func TestF6ARecordOfAnotherPlace(t *testing.T) {
	s := newScene(t)
	vm, other := s.Lay(firecrackertest.Direct, ""), s.Lay(firecrackertest.Direct, "")
	sandbox := s.list().sandboxes[vm.ID]
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.Mkdir(precious, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{precious, s.Base, other.Workspace, filepath.Join(s.Base, "workspaces"), vm.Workspace + "/../" + other.ID} {
		wrong := sandbox
		wrong.Leaves = []watch.Leaf{{Kind: firecracker.Workspace, Name: name, Incarnation: sandbox.Leaves[0].Incarnation}}
		if told, err := s.remove(wrong); err == nil || len(told) != 0 {
			t.Errorf("%s: told %v", name, told)
		}
	}
	// A workspace that was made anew is another's, and the sockets with the old incarnation are gone.
	if err := os.Rename(vm.Workspace, vm.Workspace+"-old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(vm.Workspace, 0o700); err != nil {
		t.Fatal(err)
	}
	if told, err := s.remove(sandbox); err != nil || !exists(t, vm.Workspace) || exists(t, vm.Sockets) {
		t.Errorf("%v; told %v", err, told)
	}
	s.SetRules(&watch.Rules{})
	if told, err := s.remove(sandbox); err == nil {
		t.Errorf("without a rule: told %v", told)
	}
	for _, dir := range []string{precious, other.Workspace, vm.Workspace + "-old"} {
		if !exists(t, dir) {
			t.Errorf("%s is gone", dir)
		}
	}
}

// TestJailsOfOthers: who only claims an ID is not in the jail of that.
func TestJailsOfOthers(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Jailed)
	// Another process, outside of any jail, that says it is the one in it.
	out := s.Lay(firecrackertest.Direct, "")
	elsewhere := t.TempDir()
	for _, name := range []string{"overlay.ext4", "leash", "ready"} {
		if err := os.Link(filepath.Join(out.Workspace, name), filepath.Join(elsewhere, name)); err != nil {
			t.Fatal(err)
		}
	}
	impostor := r.StartIn(elsewhere, out, "--id", vm.ID)
	l := s.list()
	if got := l.sandboxes[vm.ID]; got.Init.PID != vm.PID || got.Terms.Fault != "" || leaf(got, firecracker.Workspace) != vm.Workspace {
		t.Errorf("%+v, want process %d", got, vm.PID)
	}
	for _, sandbox := range l.sandboxes {
		if sandbox.Init.PID == impostor {
			t.Errorf("%+v", sandbox)
		}
	}
}

// TestALeafThatCameLater: a runner puts a microVM that runs into its control group, and dies. What nobody could tell when the
// microVM is dead is told before.
func TestALeafThatCameLater(t *testing.T) {
	s := newScene(t)
	mount := cgroupMount(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Direct)
	before := s.list().sandboxes[vm.ID]
	group := filepath.Join(mount, "watcher-test-"+vm.ID)
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vm.Release() // it may live, if the test has failed
		_ = os.Remove(group)
	})
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(fmt.Sprint(vm.PID)), 0); err != nil {
		t.Fatal(err)
	}
	r.Kill()
	seen := await(s, func(watch.SandboxSeen) bool { return true }).Sandbox
	if len(seen.Leaves) != len(before.Leaves)+1 || leaf(seen, firecracker.Cgroup) == "" {
		t.Errorf("leaves %+v, had %+v", seen.Leaves, before.Leaves)
	}
	await(s, func(ev watch.OwnerSeen) bool { return ev.ID == seen.ID && ev.Life == watch.Exited })
	if err := s.Stop(seen, watch.Kill); err != nil {
		t.Fatal(err)
	}
	if told, err := s.remove(seen); err != nil || exists(t, group) {
		t.Errorf("%v; told %v", err, told)
	}
}
