//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/firecracker/firecrackertest"
)

// What a Firecracker microVM leaves is removed under all that the unit takes away, with what microvms.conf gives back: mounts
// of its own, its filter of system calls, its capabilities. Also by a daemon that comes after the one that began it, and by
// a scan.
func TestUnitRemovesMicroVMs(t *testing.T) {
	for program, debianPackage := range map[string]string{"ip": "iproute2", "iptables": "iptables", "sudo": "sudo"} {
		needTool(t, program, debianPackage)
	}
	temporaryIn(t, "/var/lib")
	site := firecrackertest.NewSite(t)
	netns := []string{site.Netns(), site.Netns(), site.Netns()} // and thereby the folder of names, which the manager is to see
	m := startManager(t, hostOf(t)...)
	site.Sockets = filepath.Join(m.dir, "run/vm0/sock")
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	var (
		top    = filepath.Dir(site.Base)
		locks  = filepath.Join(top, "locks")
		config = filepath.Join(top, "watcher.toml")
	)
	writeFile(t, config, fmt.Sprintf(`[scan]
grace = "1ms"

[[rule]]
name = "vm"
kind = "firecracker"
base-dirs = [%q]
socket-dir = "/run/vm0/sock" # which the unit has in another place than we
owner = { ancestor = "runner", lock-dir = %q }
`, filepath.Join(top, "b*"), locks))
	if err := os.Mkdir(locks, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{daemonUnit, scanUnit} {
		installMicroVMs(t, filepath.Join(m.dir, "user/systemd/user"), name)
		start := strings.Replace(readUnit(t, name).value(t, "ExecStart"), unitBinary, m.binary, 1) + " --config " + config
		m.install(t, name, "ExecStart=", "ExecStart="+start, "RestartSec=100ms")
	}
	m.systemctl(t, "start", daemonUnit)

	// After the start of the unit: what is made then must be as writable as what was there.
	group := filepath.Join(cgroupsFor(t, filepath.Base(m.dir))[0], "guests") // which the manager's guard removes
	chains := rulesOf(t, filepath.Base(m.dir))
	start := func(netns string) (*firecrackertest.Runner, *unitVM) {
		r := site.StartRunner()
		r.Lock(locks)
		id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
		if err != nil {
			t.Fatal(err)
		}
		vm := &unitVM{leaf: filepath.Join(group, strings.TrimSpace(string(id)))}
		if err := os.MkdirAll(vm.leaf, 0o755); err != nil {
			t.Fatal(err)
		}
		vm.VM = r.Start(firecrackertest.Spawn{
			Chain: firecrackertest.Restore, ID: filepath.Base(vm.leaf), Netns: netns,
			Below: []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, vm.leaf},
		})
		for _, c := range chains {
			c.add(t, netns)
		}
		return r, vm
	}
	watching := func() map[string]string {
		return m.waitShow(t, "watching", func(p map[string]string) bool {
			return strings.HasPrefix(p["StatusText"], "watching 1 sandbox(es), 0 being reaped")
		})
	}
	gone := func(vm *unitVM) {
		t.Helper()
		m.waitEntry(t, "MESSAGE_ID="+messageReaped, "WATCHER_NAME="+vm.ID)
		for _, left := range vm.leaves(t, chains) {
			t.Errorf("%s is reaped, and left %s", vm.ID, left)
		}
	}

	runner, vm := start(netns[0])
	m.confined(t, watching()["MainPID"])
	if left := vm.leaves(t, chains); len(left) != 6+len(chains) {
		t.Fatalf("of the microVM there is to begin with: %q", left)
	}
	runner.Kill()
	gone(vm)

	// Who lives in the namespace keeps it, and with it the reap from its end.
	runner, vm = start(netns[1])
	inhabitant := exec.Command("ip", "netns", "exec", vm.Netns, "cat")
	leash, err := inhabitant.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := inhabitant.Start(); err != nil {
		t.Fatal(err)
	}
	ended := sync.OnceFunc(func() {
		_ = leash.Close()
		_ = inhabitant.Wait()
	})
	t.Cleanup(ended)
	eventually(t, "somebody lives in "+vm.Netns, func() (bool, string) {
		out, err := exec.Command("ip", "netns", "pids", vm.Netns).CombinedOutput()
		return slices.Contains(strings.Fields(string(out)), strconv.Itoa(inhabitant.Process.Pid)), fmt.Sprintf("%v %s", err, out)
	})
	before := watching()
	runner.Kill()
	m.waitEntry(t, "MESSAGE_ID="+messageFailed, "WATCHER_NAME="+vm.ID)
	if _, err := os.Lstat(vm.Workspace); err == nil {
		t.Error("the workspace was not removed, although it could be")
	}
	m.signal(t, before["MainPID"], unix.SIGSTOP)
	ended()
	m.signal(t, before["MainPID"], unix.SIGKILL)
	gone(vm)
	m.waitShow(t, "done", func(p map[string]string) bool {
		return p["NRestarts"] == "1" && strings.HasPrefix(p["StatusText"], "watching 0 sandbox(es), 0 being reaped, 1 reaped")
	})

	// Without a daemon a scan does it.
	m.systemctl(t, "stop", daemonUnit)
	runner, vm = start(netns[2])
	runner.Kill()
	m.systemctl(t, "start", "--no-block", scanUnit)
	gone(vm)
	m.waitFor(t, scanUnit, "done", func(p map[string]string) bool { return p["ActiveState"] == "inactive" })
	if got := m.ends(t); got[len(got)-1] != "success exited 0" {
		t.Errorf("the daemons and the scan ended with %q", got)
	}
	for _, c := range chains {
		if got := c.rules(t); len(got) != 1 {
			t.Errorf("of %s there are the rules %q, want that of somebody else", c.program, got)
		}
	}
}

// hostOf has a watcher built that knows where the mounts of the host are. Some hosts let nobody look into their first process;
// then that is us.
func hostOf(t *testing.T) (build []string) {
	t.Helper()
	first, err := os.Stat("/proc/1/ns/mnt")
	if errors.Is(err, fs.ErrPermission) {
		return []string{fmt.Sprintf("-ldflags=-X watcher/platform/firecracker.hostInit=/proc/%d", os.Getpid())}
	}
	if err != nil {
		t.Fatal(err)
	}
	if ours, err := os.Stat("/proc/self/ns/mnt"); err != nil || !os.SameFile(first, ours) {
		t.Skipf("NOT RUN: needs the mounts of the host (%v)", err)
	}
	return nil
}

// temporaryIn has the test's own folders made in another than the usual one.
func temporaryIn(t *testing.T, parent string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: needs root")
	}
	dir, err := os.MkdirTemp(parent, "watcherunit-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
}

// A unitVM is a microVM with all that it is to leave.
type unitVM struct {
	*firecrackertest.VM
	leaf string // its control group
}

// leaves tells what of it is there.
func (vm *unitVM) leaves(t *testing.T, chains []*ruleChain) (there []string) {
	t.Helper()
	// One that has not been reaped yet is dead.
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", vm.PID)); err == nil && !strings.Contains(string(stat), ") Z ") {
		there = append(there, "its process")
	}
	for _, file := range []string{vm.Workspace, vm.Sockets, "/run/netns/" + vm.Netns, vm.leaf, "/sys/class/net/" + strings.Replace(vm.Netns, "-ns-", "-ve-", 1)} {
		if _, err := os.Lstat(file); err == nil {
			there = append(there, file)
		}
	}
	for _, c := range chains {
		if slices.ContainsFunc(c.rules(t), func(rule string) bool { return strings.Contains(rule, vm.Netns) }) {
			there = append(there, "a rule of "+c.program)
		}
	}
	return there
}

// A ruleChain is a chain of rules of ours, in one back end of iptables.
type ruleChain struct{ program, name string }

// rulesOf makes a chain in each back end that this host has.
func rulesOf(t *testing.T, name string) (chains []*ruleChain) {
	t.Helper()
	for _, program := range []string{"iptables-legacy", "iptables-nft"} {
		c := &ruleChain{program, name}
		if out, err := exec.Command(program, "-w", "-N", name).CombinedOutput(); err != nil {
			t.Logf("%s is not to be had here: %v %s", program, err, out)
			continue
		}
		t.Cleanup(func() {
			c.run(t, "-F", c.name)
			c.run(t, "-X", c.name)
		})
		c.add(t, "of somebody else")
		chains = append(chains, c)
	}
	if len(chains) == 0 {
		t.Fatal("no back end of iptables works")
	}
	return chains
}

func (c *ruleChain) add(t *testing.T, comment string) {
	t.Helper()
	c.run(t, "-A", c.name, "-m", "comment", "--comment", comment, "-j", "RETURN")
}

func (c *ruleChain) rules(t *testing.T) (rules []string) {
	t.Helper()
	for line := range strings.Lines(c.run(t, "-S", c.name)) {
		if strings.HasPrefix(line, "-A ") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}

func (c *ruleChain) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(c.program, append([]string{"-w"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", c.program, args, err, out)
	}
	return string(out)
}
