package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"watcher/platform/docker/dockertest"
	"watcher/platform/firecracker/firecrackertest"
	"watcher/reap"
	"watcher/watch"
)

// A vmHost is a host with runners of microVMs, and watcher on it with the rule of preset vm0, for folders of the test's own. Nothing
// is judged by a scan but the first, and nothing is too young.
type vmHost struct {
	*testing.T
	e       *dockertest.Engine
	sockets string
	locks   string
	records string
	chain   string // of iptables, for the rules of this host
	program string // what runners are called: another host may have others, and each might own what is here
	config  string
	d       *daemon
	kept    []*guest // that nobody may touch
}

// calm is a configuration in which events alone have things judged, and nothing is too young.
const calm = "[scan]\ninterval = \"1h\"\ngrace = \"1ms\"\n"

// newVMHost makes a host. Edits are for who wants another rule.
func newVMHost(t *testing.T, edits ...func(rule string) string) *vmHost {
	t.Helper()
	h := &vmHost{T: t, e: dockertest.Shared(t), program: fmt.Sprintf("runner-%d", os.Getpid())}
	// All folders of a test are next to each other.
	root := filepath.Dir(t.TempDir())
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		t.Fatal(err)
	}
	h.locks, h.records = filepath.Join(real, "locks"), filepath.Join(real, "live")
	for _, dir := range []string{h.locks, h.records} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The address of a socket is short (unix(7)), and the name of a test is not.
	if h.sockets, err = os.MkdirTemp("", "sock-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(h.sockets) })
	p, err := loadPreset("vm0")
	if err != nil {
		t.Fatal(err)
	}
	rule := strings.NewReplacer(
		"/var/lib/vm0-runner/runners/*", filepath.Join(real, "*", "base"), "/run/vm0/sock", h.sockets,
		"/var/lib/vm0-runner/locks", h.locks, "/var/lib/vm0-runner/live-runner-instances", h.records,
		`ancestor = "runner"`, fmt.Sprintf("ancestor = %q", h.program), "socket-dir =", fmt.Sprintf("jail-dirs = [%q]\nsocket-dir =", filepath.Join(real, "*", "jails")),
	).Replace(p.text[strings.Index(p.text, "[[rule]]"):])
	if strings.Contains(rule, "/var/lib") || strings.Contains(rule, `"/run/`) {
		t.Fatalf("the preset names folders that the test does not know of:\n%s", rule)
	}
	for _, edit := range edits {
		rule = edit(rule)
	}
	h.config = configFile(t, calm+rule)
	return h
}

// with replaces a part of the rule.
func with(old, instead string) func(string) string {
	return func(rule string) string { return strings.Replace(rule, old, instead, 1) }
}

// watch starts a daemon on the host.
func (h *vmHost) watch(args ...string) {
	h.Helper()
	h.d = startDaemon(h, h.e, append(args, "--config", h.config)...)
}

// A vmRunner is a runner with a base folder of its own.
type vmRunner struct {
	*firecrackertest.Site
	*firecrackertest.Runner
	h *vmHost
}

// runner starts a runner that says all that runners say of themselves.
func (h *vmHost) runner() *vmRunner {
	h.Helper()
	r := h.mute()
	r.Lock(h.locks)
	r.Record(filepath.Join(h.records, strconv.Itoa(r.PID)+".json"))
	return r
}

// mute starts a runner that neither locks nor records anything, below other programs if there are any.
func (h *vmHost) mute(below ...string) *vmRunner {
	h.Helper()
	site := firecrackertest.NewSite(h)
	site.Sockets = h.sockets
	program := firecrackertest.Program(h, filepath.Join(site.Bin, h.program))
	return &vmRunner{site, site.StartRunnerAs(append(below, program)...), h}
}

// A guest is a microVM with all that it leaves behind.
type guest struct {
	*firecrackertest.VM
	h      *vmHost
	life   watch.Process // of its process
	cgroup string
	before []string
}

// start has the runner start a microVM of that chain, and gives it what runners give one.
func (r *vmRunner) start(chain firecrackertest.Chain, below ...string) *guest {
	r.h.Helper()
	spawn := firecrackertest.Spawn{Chain: chain, Below: below}
	if chain == firecrackertest.Fresh || chain == firecrackertest.Restore {
		spawn.Netns = r.Netns()
		r.h.iptables("-A", r.h.rules(), "-m", "comment", "--comment", spawn.Netns, "-j", "RETURN")
	}
	g := r.h.guest(r.Start(spawn))
	if mount := cgroupMount(); mount != "" && chain != firecrackertest.Older {
		g.cgroup = filepath.Join(mount, "watcher-test-"+g.ID[:8], g.ID)
		if err := os.MkdirAll(g.cgroup, 0o755); err != nil {
			r.h.Fatal(err)
		}
		r.h.Cleanup(func() {
			g.Release() // it ends, and a group is removed when nobody is in it
			await(r.h, "the control group is removed", func() bool {
				err := os.Remove(g.cgroup)
				return err == nil || errors.Is(err, fs.ErrNotExist)
			})
			_ = os.Remove(filepath.Dir(g.cgroup))
		})
		if err := os.WriteFile(filepath.Join(g.cgroup, "cgroup.procs"), []byte(strconv.Itoa(g.PID)), 0); err != nil {
			r.h.Fatal(err)
		}
	}
	return g
}

// guest is what a runner has started, or only laid out.
func (h *vmHost) guest(vm *firecrackertest.VM) *guest {
	h.Helper()
	g := &guest{VM: vm, h: h}
	if vm.PID != 0 {
		var err error
		if g.life, err = identify(vm.PID); err != nil {
			h.Fatal(err)
		}
	}
	return g
}

// keep notes that nobody may touch these.
func (h *vmHost) keep(guests ...*guest) {
	h.Helper()
	for _, g := range guests {
		g.before = g.traces()
		h.kept = append(h.kept, g)
	}
}

// untouched checks that nobody did.
func (h *vmHost) untouched() {
	h.Helper()
	for _, g := range h.kept {
		if now := g.traces(); !slices.Equal(g.before, now) {
			h.Errorf("%s, which nobody may touch, has %v, and had %v", g.ID, now, g.before)
		}
	}
}

// traces is what there is of a microVM, each file of it included.
func (g *guest) traces() (found []string) {
	g.h.Helper()
	if g.lives() {
		found = append(found, "process")
	}
	for _, dir := range []string{g.Workspace, g.Sockets} {
		if dir == "" {
			continue
		}
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				found = append(found, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			g.h.Error(err)
		}
	}
	if g.Netns != "" {
		veth := strings.Replace(g.Netns, "-ns-", "-ve-", 1)
		found = append(found, existing(g.h, "/run/netns/"+g.Netns, "/sys/class/net/"+veth)...)
		if strings.Contains(g.h.iptables("-S", g.h.rules()), g.Netns+" ") {
			found = append(found, "rules")
		}
	}
	if g.cgroup != "" {
		found = append(found, existing(g.h, g.cgroup)...)
	}
	return found
}

func existing(t *vmHost, paths ...string) []string {
	t.Helper()
	return slices.DeleteFunc(paths, func(path string) bool {
		_, err := os.Lstat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		return err != nil
	})
}

// lives reports whether the process of a microVM lives: it is there, and no zombie.
func (g *guest) lives() bool {
	if g.life.PID == 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.life.PID))
	now, again := identify(g.life.PID)
	return err == nil && again == nil && now == g.life && !strings.Contains(string(stat), ") Z ")
}

// gone checks that nothing is left of microVMs.
func (h *vmHost) gone(guests ...*guest) {
	h.Helper()
	for _, g := range guests {
		if left := g.traces(); len(left) > 0 {
			h.Errorf("of %s there is left: %v", g.ID, left)
		}
	}
}

// rules is the chain of iptables in which the host has its rules.
func (h *vmHost) rules() string {
	h.Helper()
	if h.chain == "" {
		h.chain = fmt.Sprintf("watcher-%d", os.Getpid())
		h.iptables("-N", h.chain)
		h.Cleanup(func() {
			h.iptables("-F", h.chain)
			h.iptables("-X", h.chain)
		})
		h.iptables("-A", h.chain, "-m", "comment", "--comment", "of somebody else", "-j", "RETURN")
	}
	return h.chain
}

func (h *vmHost) iptables(args ...string) string {
	h.Helper()
	out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput()
	if err != nil {
		h.Fatalf("iptables %v: %v: %s", args, err, out)
	}
	return string(out)
}

// cgroupMount is where control groups of the second version are, or "".
func cgroupMount() string {
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Lstat(filepath.Join(dir, "cgroup.procs")); err == nil {
			return dir
		}
	}
	return ""
}

// told waits until the daemon has told an event about a microVM.
func (h *vmHost) told(event string, g *guest) record {
	h.Helper()
	return h.d.waitFor(event+" of "+g.ID, func(r record) bool {
		return r.text(watch.KeyEvent) == event && r.text(watch.KeyName) == g.ID
	})
}

// reaped waits until the daemon has reaped microVMs, and checks that nothing is left of them.
func (h *vmHost) reaped(guests ...*guest) {
	h.Helper()
	for _, g := range guests {
		h.told(watch.EventReaped, g)
	}
	h.gone(guests...)
}

// barrier has the daemon reap another microVM. When that is done, it has had the time to do to others what it should not.
func (h *vmHost) barrier() {
	h.Helper()
	r := h.runner()
	g := r.start(firecrackertest.Direct)
	h.judged(reap.Managed, g)
	r.Kill()
	h.reaped(g)
}

// judged waits until the daemon has judged microVMs so.
func (h *vmHost) judged(reason reap.Reason, guests ...*guest) {
	h.Helper()
	for _, g := range guests {
		h.d.waitFor(fmt.Sprintf("%s of %s", reason, g.ID), func(r record) bool {
			return r.text(watch.KeyName) == g.ID && r.text(watch.KeyReason) == string(reason)
		})
	}
}

// say runs watcher to its end, and returns its rows about microVMs by name.
func (h *vmHost) say(args ...string) (map[string]row, result) {
	h.Helper()
	r := on(h, h.e, append(args, "--config", h.config, "-o", "json")...)
	rows := rowsIn(h, r)
	byName := map[string]row{}
	for _, row := range rows {
		if row.Kind == watch.Firecracker || row.Kind == watch.GoMicroVM {
			byName[row.Name] = row
		}
	}
	if len(byName) != len(slices.Collect(maps.Values(rows))) {
		h.Errorf("watcher %s tells of others: %+v", strings.Join(args, " "), rows)
	}
	return byName, r
}

// once has --once reap exactly these, after a dry run has said so and done nothing.
func (h *vmHost) once(guests ...*guest) {
	h.Helper()
	for _, dry := range []bool{true, false} {
		args, want, did := []string{"--once"}, resultReaped, "reaped"
		if dry {
			args, want, did = append(args, "--dry-run"), resultWouldReap, "would reap"
		}
		before := map[*guest][]string{}
		for _, g := range guests {
			before[g] = g.traces()
		}
		rows, r := h.say(args...)
		if line := fmt.Sprintf("%s %d orphan(s), kept %d, failed 0\n", did, len(guests), len(rows)-len(guests)); r.code != exitDone || !strings.HasSuffix(r.stderr, line) {
			h.Errorf("%v exits %d, and says %swant %s", args, r.code, r.stderr, line)
		}
		for _, g := range guests {
			if row := rows[g.ID]; row.Result != want || row.Verdict != reap.Reap.String() {
				h.Errorf("%v says %+v, want it %s", args, row, want)
			}
			if dry && !slices.Equal(before[g], g.traces()) {
				h.Errorf("%v has touched %s: it has %v, and had %v", args, g.ID, g.traces(), before[g])
			}
			if !dry {
				h.gone(g)
			}
		}
		h.untouched()
	}
	if cases := casesOf(h); len(cases) > 0 {
		h.Errorf("left on record: %v", cases)
	}
}

var everyChain = []firecrackertest.Chain{
	firecrackertest.Direct, firecrackertest.Fresh, firecrackertest.Restore, firecrackertest.Older, firecrackertest.Jailed,
}

// neighbour starts a runner that lives, with a microVM that works, one that is only warm, one that is idle and has been stopped,
// and folders in which it is about to start one. Nobody may touch them.
func (h *vmHost) neighbour() *vmRunner {
	h.Helper()
	r := h.runner()
	idle := r.start(firecrackertest.Older)
	h.keep(r.start(firecrackertest.Direct), r.start(firecrackertest.Restore), idle, h.guest(r.Lay(firecrackertest.Direct, "")))
	return r
}

// The whole story of each way in which runners start microVMs, told by a daemon.
func TestMicroVMsOfARunnerThatIsKilled(t *testing.T) {
	h := newVMHost(t)
	other := h.neighbour()
	h.watch()
	h.judged(reap.Managed, h.kept...)
	for _, chain := range everyChain {
		r := h.runner()
		g := r.start(chain)
		h.judged(reap.Managed, g)
		rows, _ := h.say("list")
		row := rows[g.ID]
		if row.Kind != watch.Firecracker || row.State != watch.Running || row.Rule != "vm0" || row.Owner == nil ||
			row.Owner.PID != r.PID || row.Owner.State != "alive" || row.Reason != reap.Managed {
			t.Errorf("%s: list says %+v, want it managed by %d", chain, row, r.PID)
		}
		said := on(t, h.e, "explain", g.ID, "--config", h.config)
		for _, want := range []string{"firecracker: " + g.ID, "\nrule:      vm0, the first that matches: it is at home in /", fmt.Sprintf("process %d", r.PID), "because managed"} {
			if !strings.Contains(said.stdout, want) {
				t.Errorf("%s: explain lacks %q:\n%s%s", chain, want, said.stdout, said.stderr)
			}
		}
		r.Kill()
		exited, reaped := h.told(watch.EventOwnerExited, g), h.told(watch.EventReaped, g)
		h.gone(g)
		stop, _ := reaped.micros(watch.KeyStopUS)
		gone, _ := reaped.micros(watch.KeyGoneUS)
		for _, said := range []record{exited, reaped} {
			if reason := said.text(watch.KeyReason); reason != string(reap.OwnerExited) || said.text(watch.KeyOwner) == "" {
				t.Errorf("%s: told %v, want it because %s", chain, said, reap.OwnerExited)
			}
		}
		if stop <= 0 || gone < stop {
			t.Errorf("%s: told that it stopped after %s and was gone after %s", chain, stop, gone)
		}
		t.Logf("%s: stopped after %s, gone after %s", chain, stop, gone)
	}
	rows, _ := h.say("list")
	for _, g := range h.kept {
		// Of a folder without a process nobody can tell which runner it is of, so that any which lives keeps it.
		if row := rows[g.ID]; row.Reason != reap.Managed && (g.PID != 0 || row.Reason != reap.OwnerAlive) || row.Owner == nil || row.Owner.PID != other.PID {
			t.Errorf("list says %+v of %+v, want it managed by %d", row, row.Owner, other.PID)
		}
	}
	if len(rows) != len(h.kept) {
		t.Errorf("listed are %d, want %d: %+v", len(rows), len(h.kept), rows)
	}
	h.untouched()
	noFailures(t, h.d)
}

// The same without a daemon: --once finds them when their runners are dead already, and a dry run only says so.
func TestOnceReapsMicroVMs(t *testing.T) {
	h := newVMHost(t)
	h.neighbour()
	var left []*guest
	for _, chain := range everyChain {
		r := h.runner()
		left = append(left, r.start(chain))
		r.Kill()
	}
	h.once(left...)
	h.once() // and there is nothing left to do
}

// Nobody watched when the runner died. More at once than a burst are looked at twice first, as nobody saw whose they were.
func TestMicroVMsThatWereOrphanedBefore(t *testing.T) {
	for _, by := range []string{"daemon", "once"} {
		t.Run(by, func(t *testing.T) {
			h := newVMHost(t, func(rule string) string { return rule + "\n[brake]\nburst = 2\n" })
			r := h.runner()
			left := []*guest{r.start(firecrackertest.Fresh), r.start(firecrackertest.Direct), r.start(firecrackertest.Older), h.guest(r.Lay(firecrackertest.Direct, ""))}
			r.Kill()
			if by == "once" {
				h.once(left...)
				return
			}
			h.watch()
			h.d.waitFor("a second look", func(r record) bool { return r.text(watch.KeyEvent) == watch.EventHeld && r["burst"] != nil })
			h.reaped(left...)
			h.untouched()
			noFailures(t, h.d)
		})
	}
}
