//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/connector"
	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// unitCapabilities are those that the daemon's unit leaves it.
var unitCapabilities = []uint{unix.CAP_KILL, unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER}

// What the units and `make install` agree on.
const (
	unitDir       = "../../systemd"
	unitBinary    = "/usr/local/bin/watcher"
	daemonUnit    = "watcher.service"
	scanUnit      = "watcher-scan.service"
	scanTimer     = "watcher-scan.timer"
	microVMsPart  = "microvms.conf"                    // what `make install-microvms` adds to both services
	messageStart  = "e996fa2a62f64afb8a18f32e2c20ee2e" // the MESSAGE_ID of started
	messageReaped = "acb7cd0dc4454347a0829f53e96983ae"
	messageFailed = "9119892fa8dc43ab9e3d406fd560d996" // a step in reaping
	messageLost   = "9224a55cda7444a2a7a275f1a74fb063"
)

// systemd-analyze verify exits with 0 even for nonsense: what counts is that it has nothing to say.
func TestUnitsAreValid(t *testing.T) {
	needTool(t, "systemd-analyze", "systemd")
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{"verify"}
	for _, name := range unitNames(t) {
		args = append(args, installUnit(t, dir, name, binary))
	}
	verify := func() {
		t.Helper()
		cmd := exec.Command("systemd-analyze", args...)
		// Ours and the distribution's: what else is on this host is not ours to judge.
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":/usr/lib/systemd/system:/lib/systemd/system")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
	verify()
	installMicroVMs(t, dir, daemonUnit)
	installMicroVMs(t, dir, scanUnit)
	verify()
}

func TestUnitsAreHardened(t *testing.T) {
	needTool(t, "systemd-analyze", "systemd")
	check := func(unit, threshold string) (exposure string) {
		t.Helper()
		cmd := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+threshold, unit)
		out, err := cmd.CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err != nil {
			t.Errorf("%s: systemd-analyze security: %v\n%s", unit, err, out)
		}
		return lines[len(lines)-1]
	}
	dir := t.TempDir()
	for _, name := range []string{daemonUnit, scanUnit} {
		without := check(filepath.Join(unitDir, name), "35")
		unit := installUnit(t, dir, name, unitBinary)
		installMicroVMs(t, dir, name)
		with := check(unit, "40")
		t.Logf("%s; with %s: %s", without, microVMsPart, with)
		if with == without {
			t.Errorf("%s was not looked at", microVMsPart)
		}
	}
}

func TestUnitsOutliveTheDrain(t *testing.T) {
	for _, name := range []string{daemonUnit, scanUnit} {
		said := readUnit(t, name).value(t, "TimeoutStopSec")
		timeout, err := time.ParseDuration(said)
		if err != nil {
			t.Errorf("%s: TimeoutStopSec: %v", name, err)
			continue
		}
		if timeout <= reap.DrainFor+flushFor {
			t.Errorf("%s: TimeoutStopSec=%s: systemd would kill the daemon while it finishes its reaps, which takes up to %s, and its log, %s",
				name, said, reap.DrainFor, flushFor)
		}
	}
}

func TestUnitsShareTheDefaultStateDirectory(t *testing.T) {
	for _, name := range []string{daemonUnit, scanUnit} {
		if got := "/var/lib/" + readUnit(t, name).value(t, "StateDirectory"); got != defaultStateDir {
			t.Errorf("%s: the state is in %s, and in %s outside of a unit", name, got, defaultStateDir)
		}
	}
}

// Each line that takes something from the program has its reason above it. A scan may refer to the daemon's unit, if it
// says the same.
func TestUnitsGiveReasons(t *testing.T) {
	daemon := readUnit(t, daemonUnit)
	for _, name := range []string{daemonUnit, scanUnit} {
		for _, l := range readUnit(t, name) {
			shared := name != daemonUnit && slices.ContainsFunc(daemon, func(d unitLine) bool { return d.key == l.key && d.value == l.value })
			if l.hardens() && !l.reasoned && !shared {
				t.Errorf("%s:%d: %s=%s has no comment directly above it", name, l.number, l.key, l.value)
			}
		}
	}
	for _, l := range readUnit(t, microVMsPart) {
		if !l.reasoned {
			t.Errorf("%s:%d: %s=%s has no comment directly above it", microVMsPart, l.number, l.key, l.value)
		}
	}
	for _, d := range daemon {
		if d.hardens() && !slices.ContainsFunc(readUnit(t, scanUnit), func(l unitLine) bool { return l.key == d.key }) {
			t.Errorf("%s: has no line %s=, which %s has", scanUnit, d.key, daemonUnit)
		}
	}
}

// The daemon's unit in a manager of its own, from the start to the stop. Promise L: what happens while the daemon hangs,
// or is not there, is made good.
func TestUnitRuns(t *testing.T) {
	engine := dockertest.Start(t)
	m := startManager(t)
	m.install(t, daemonUnit, append(inNoNamespace, "Environment=DOCKER_HOST="+engine.Host(), "WatchdogSec=3s", "RestartSec=100ms")...)

	owner, earlier := processtest.StartOwner(t), processtest.StartOwner(t)
	own := func(o *processtest.Owner, name string) string {
		return engine.Run(t, dockertest.ContainerOptions{Name: name, Labels: ownedBy(o.Label())})
	}
	box, orphan := own(owner, "box"), own(earlier, "orphan")
	earlier.Kill()
	earlier.Wait()

	// An engine that accepts connections and answers nothing: no scan can end before Resume.
	engine.Pause(t)
	m.systemctl(t, "start", "--no-block", daemonUnit)
	m.waitEntry(t, "MESSAGE_ID="+messageStart)
	if state := m.show(t, "ActiveState")["ActiveState"]; state != "activating" {
		t.Errorf("before the first full scan the unit is %s", state)
	}
	resumed := monotonic(t)
	engine.Resume(t)
	active := m.waitShow(t, "ready", func(p map[string]string) bool { return p["ActiveState"] == "active" })
	if at, err := strconv.ParseInt(active["ActiveEnterTimestampMonotonic"], 10, 64); err != nil || time.Duration(at)*time.Microsecond < resumed {
		t.Errorf("the unit was ready at %s µs, and no scan can have ended before %s (%v)", active["ActiveEnterTimestampMonotonic"], resumed, err)
	}
	engine.WaitGone(t, orphan)
	m.waitShow(t, "done with the orphan", func(p map[string]string) bool {
		return strings.HasPrefix(p["StatusText"], "watching 1 sandbox(es), 0 being reaped, 1 reaped")
	})
	if !engine.Running(t, box) {
		t.Fatal("a container whose owner lives was stopped")
	}
	m.checkConfinement(t)

	owner.Kill()
	engine.WaitGone(t, box)
	entry := m.waitEntry(t, "MESSAGE_ID="+messageReaped, "CONTAINER_ID_FULL="+box)
	for key, want := range map[string]string{
		"CONTAINER_NAME": "box", "CONTAINER_ID": box[:12], "IMAGE_NAME": dockertest.ImageName,
		"WATCHER_EVENT": watch.EventReaped, "WATCHER_REASON": string(reap.OwnerExited), "WATCHER_OWNER": owner.Label(),
		"_EXE": m.binary, // so it came by journald's own protocol, from the daemon
	} {
		if got := entry[key]; got != want {
			t.Errorf("the journal says %s=%v, want %s", key, got, want)
		}
	}
	for _, key := range []string{"WATCHER_STOP_US", "WATCHER_GONE_US"} {
		if n, err := strconv.ParseInt(fmt.Sprint(entry[key]), 10, 64); err != nil || n < 0 || n > time.Minute.Microseconds() {
			t.Errorf("the journal says %s=%v: want a number of microseconds", key, entry[key])
		}
	}
	// Where we can listen ourselves, so can the unit: nothing that it takes away is needed for that.
	if l, err := connector.Listen(t.Context(), connector.Options{}); err != nil {
		t.Logf("the process connector is not to be had here: %v", err)
	} else {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if lost := m.entries(t, "MESSAGE_ID="+messageLost, "WATCHER_SOURCE=process connector"); len(lost) > 0 {
			t.Errorf("the unit has no process connector, and we have: %v", lost[0]["WATCHER_ERROR"])
		}
	}

	// A daemon that hangs is replaced, and what it missed is seen.
	late := processtest.StartOwner(t)
	missed := own(late, "missed")
	before := m.waitShow(t, "watching again", func(p map[string]string) bool {
		return strings.HasPrefix(p["StatusText"], "watching 1 sandbox(es)")
	})
	m.signal(t, before["MainPID"], unix.SIGSTOP)
	late.Kill()
	m.waitShow(t, "replaced by the watchdog", func(p map[string]string) bool {
		return p["ActiveState"] == "active" && p["NRestarts"] == "1" && p["MainPID"] != before["MainPID"]
	})
	engine.WaitGone(t, missed)

	begun := time.Now()
	m.systemctl(t, "stop", daemonUnit)
	if took := time.Since(begun); took > reap.DrainFor {
		t.Errorf("the stop took %s with nothing to finish", took)
	}
	// After the watchdog Go ends with 2, or is killed if it needs too long to write its stacks.
	if got := m.ends(t); len(got) != 2 || !strings.HasPrefix(got[0], "watchdog ") || got[1] != "success exited 0" {
		t.Errorf("the daemon ended with %q, want one end by the watchdog and then one with code 0", got)
	}
}

// The lines that TestUnitRuns switches off leave the daemon what it needs as well.
func TestUnitRunsInItsNamespaces(t *testing.T) {
	engine := dockertest.Start(t)
	m := startManager(t)
	// The socket and the binary are in /tmp here.
	m.install(t, daemonUnit, "Environment=DOCKER_HOST="+engine.Host(), "PrivateTmp=no")
	owner := processtest.StartOwner(t)
	box := engine.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	m.systemctl(t, "start", daemonUnit)
	p := m.waitShow(t, "watching", func(p map[string]string) bool {
		return strings.HasPrefix(p["StatusText"], "watching 1 sandbox(es)")
	})
	mounts, err := os.ReadFile("/proc/" + p["MainPID"] + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for point, want := range map[string]string{"/": "ro", "/proc/sys": "ro", m.stateDir(): "rw"} {
		if got := mountOption(string(mounts), point); got != want {
			t.Errorf("in the unit %s is mounted %q, want %s", point, got, want)
		}
	}
	owner.Kill()
	engine.WaitGone(t, box)
	m.waitEntry(t, "MESSAGE_ID="+messageReaped, "CONTAINER_ID_FULL="+box)
	m.systemctl(t, "stop", daemonUnit)
	if got, want := m.ends(t), []string{"success exited 0"}; !slices.Equal(got, want) {
		t.Errorf("the daemon ended with %q, want %q", got, want)
	}
}

// mountOption is the first option of the latest mount at a point, ro or rw.
func mountOption(mountinfo, point string) (option string) {
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); f[4] == point {
			option, _, _ = strings.Cut(f[5], ",")
		}
	}
	return option
}

// Without a daemon the timer's scans do it.
func TestUnitTimerScans(t *testing.T) {
	engine := dockertest.Start(t)
	m := startManager(t)
	m.install(t, scanUnit, append(inNoNamespace, "Environment=DOCKER_HOST="+engine.Host())...)
	m.install(t, scanTimer, "OnCalendar=", "OnCalendar=*:*:*", "RandomizedDelaySec=0", "AccuracySec=1us")

	owner, living := processtest.StartOwner(t), processtest.StartOwner(t)
	orphan := engine.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	kept := engine.Run(t, dockertest.ContainerOptions{Labels: ownedBy(living.Label())})
	owner.Kill()
	owner.Wait()

	m.systemctl(t, "start", scanTimer)
	engine.WaitGone(t, orphan)
	m.waitEntry(t, "MESSAGE_ID="+messageReaped, "CONTAINER_ID_FULL="+orphan)
	m.systemctl(t, "stop", scanTimer)
	// The scan under way, or the latest, ends by itself.
	m.waitFor(t, scanUnit, "done", func(p map[string]string) bool { return p["ActiveState"] == "inactive" })
	for _, end := range m.ends(t) {
		if end != "success exited 0" {
			t.Errorf("a scan ended with %q", end)
		}
	}
	if !engine.Running(t, kept) {
		t.Error("a container whose owner lives was stopped")
	}
}

// confined makes sure that a process of a unit is in the sandbox that the unit describes.
func (m *manager) confined(t *testing.T, pid string) {
	t.Helper()
	for _, kind := range []string{"user", "pid", "net"} {
		its, err := os.Readlink("/proc/" + pid + "/ns/" + kind)
		ours, ourErr := os.Readlink("/proc/self/ns/" + kind)
		if err := errors.Join(err, ourErr); err != nil || its != ours {
			t.Fatalf("the unit is in %s, and we are in %s (%v): nothing of the host is in its reach there", its, ours, err)
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for point, want := range map[string]string{"/": "ro", "/proc/sys": "ro", "/run": "rw", "/var/lib": "rw"} {
		if got := mountOption(string(mounts), point); got != want {
			t.Errorf("in the unit %s is mounted %q, want %s", point, got, want)
		}
	}
	m.checkStatus(t, pid, append([]uint{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_NET_RAW}, unitCapabilities...)...)
}

// inNoNamespace switches off what needs a mount or UTS namespace. A user manager makes a user namespace first, in which
// the process connector is not to be had. TestUnitRunsInItsNamespaces does without these, and without that.
var inNoNamespace = []string{
	"PrivateDevices=no", "PrivateTmp=no", "ProtectClock=no", "ProtectHome=no", "ProtectKernelLogs=no", "ProtectKernelModules=no",
	"ProtectKernelTunables=no", "ProtectSystem=no", "ReadWritePaths=",
}

// A manager is systemd with a journal of its own: a user manager that runs as root, in a mount namespace where /run is
// our folder. It shares the host's PID and network namespaces, and so do the units: owners and the process connector are
// those of the host. All of its processes are in one cgroup of its own.
type manager struct {
	dir    string
	binary string
	env    []string
}

// managerScript runs in the manager's mount namespace. Its argument is our folder.
const managerScript = `
dir=$1
mount --make-rslave / # with which the host's later mounts come here, as to any service manager, and ours do not go there
mount --bind "$dir/machine-id" /etc/machine-id
# Network namespaces of the host have their names here. A unit sees them twice then, as it does on hosts where /run is shared.
if [ -d /run/netns ]; then
	mkdir "$dir/run/netns"
	mount --rbind /run/netns "$dir/run/netns"
fi
mount --rbind "$dir/run" /run
# The manager mounts these over what a unit may not see, and believes PID 1 to have made them.
cd /run/systemd/inaccessible
touch reg
mkdir dir
mkfifo fifo
cd /
/lib/systemd/systemd-journald &
until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do
	kill -0 $!
	sleep 0.02
done
exec env -i PATH="$PATH" HOME="$dir" XDG_RUNTIME_DIR="$dir/user" SYSTEMD_LOG_TARGET=journal /lib/systemd/systemd --user --unit=basic.target
`

// guardScript ends what is in the cgroups that are its arguments, the first of which is one of version 2, and removes
// them and the folder that is its argument before. It waits for the end of its standard input, which comes with the end
// of the test, however that ends.
const guardScript = `
trap '' HUP INT TERM
cat
dir=$1
shift
echo 1 >"$1/cgroup.kill"
for try in $(seq 1000); do
	left=
	for group in "$@"; do
		[ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=$group
	done
	[ "$left" ] || exec rm -rf "$dir" # where nothing is mounted any more: the namespace of the mounts has ended
	sleep 0.03
done
echo "cannot remove $left" >&2
exit 1
`

// startManager starts a manager. Its watcher is built with these flags, if any.
func startManager(t *testing.T, build ...string) *manager {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: needs root, to start a service manager in namespaces of its own")
	}
	needTool(t, "/lib/systemd/systemd", "systemd")
	needTool(t, "/lib/systemd/systemd-journald", "systemd")
	needTool(t, "systemctl", "systemd")
	needTool(t, "journalctl", "systemd")
	needTool(t, "mount", "mount")
	needTool(t, "find", "findutils")
	if _, err := os.Stat("/etc/machine-id"); err != nil {
		t.Fatalf("%v: package systemd makes it (systemd-machine-id-setup)", err)
	}

	// Not t.TempDir: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "watcherunit-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	m := &manager{dir: dir, binary: filepath.Join(dir, "watcher")}
	m.env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "DBUS_") || strings.HasPrefix(kv, "SYSTEMD_") || strings.HasPrefix(kv, "XDG_") || strings.HasPrefix(kv, "NOTIFY_")
	}), "XDG_RUNTIME_DIR="+filepath.Join(dir, "user"), "SYSTEMD_PAGER=", "LC_ALL=C")
	for _, sub := range []string{"run/systemd/system", "run/systemd/inaccessible", "run/systemd/journald.conf.d", "user/systemd/user"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "machine-id"), "57a7c4e1a1c54d6f8f0d3a5b9c0e7f21\n")
	writeFile(t, filepath.Join(dir, "run/systemd/journald.conf.d/test.conf"),
		"[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitBurst=0\nSeal=no\n")
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build"}, build...), "-o", m.binary, ".")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	m.start(t)
	return m
}

func (m *manager) start(t *testing.T) {
	t.Helper()
	groups := cgroupsFor(t, filepath.Base(m.dir))
	if err := os.Mkdir(groups[0], 0o755); err != nil {
		t.Fatal(err)
	}
	guard := exec.Command("/bin/sh", append([]string{"-c", guardScript, "guard", m.dir}, groups...)...)
	guard.SysProcAttr = &unix.SysProcAttr{Setsid: true} // whoever ends the test's process group does not mean the guard
	var complaint bytes.Buffer
	guard.Stderr = &complaint
	release, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(errors.Join(err, os.Remove(groups[0])))
	}
	ended, started := make(chan struct{}), false
	t.Cleanup(func() {
		if t.Failed() {
			m.logJournal(t)
		}
		_ = release.Close()
		if err := guard.Wait(); err != nil {
			t.Errorf("clean up after the manager: %v %s", err, &complaint)
		}
		if started {
			<-ended
		}
	})

	group, err := os.Open(groups[0])
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	log, err := os.Create(filepath.Join(m.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", "-euc", managerScript, "manager", m.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{
		Setsid:      true,
		Cloneflags:  unix.CLONE_NEWNS,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the manager: %v", err)
	}
	go func() {
		_ = cmd.Wait() // it is killed in the end
		close(ended)
	}()
	started = true
	eventually(t, "the manager runs", func() (bool, string) {
		select {
		case <-ended:
			t.Fatalf("the manager ended: %v", cmd.ProcessState)
		default:
		}
		// Not is-system-running: that looks at the host's /run, where there need not be any systemd.
		out, err := m.command("systemctl", "--user", "show", "--property=SystemState").CombinedOutput()
		return err == nil && (string(out) == "SystemState=running\n" || string(out) == "SystemState=degraded\n"), fmt.Sprintf("%v %s", err, out)
	})
}

// cgroupsFor are the folders that the manager's processes are in, if the first of them is made: systemd keeps a copy in
// its hierarchy of version 1 where there is one.
func cgroupsFor(t *testing.T, name string) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var unified, named []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		switch {
		case f[2] == "cgroup2":
			unified = append(unified, filepath.Join(f[1], name))
		case f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "name=systemd"):
			named = append(named, filepath.Join(f[1], name))
		}
	}
	if len(unified) == 0 {
		t.Fatal("the cgroup v2 hierarchy is not mounted (mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified)")
	}
	return append(unified[:1], named...)
}

// install makes a unit known to the manager, with more lines for its main section.
func (m *manager) install(t *testing.T, name string, more ...string) {
	t.Helper()
	dir := filepath.Join(m.dir, "user/systemd/user")
	installUnit(t, dir, name, m.binary)
	section := "[Timer]"
	if strings.HasSuffix(name, ".service") {
		section = "[Service]"
		// systemd forgets how a unit ended that nobody needs any more.
		more = append(more, "ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >>$STATE_DIRECTORY/ends'")
	}
	if err := os.MkdirAll(filepath.Join(dir, name+".d"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+".d/test.conf"), section+"\n"+strings.Join(more, "\n")+"\n")
	m.systemctl(t, "daemon-reload")
}

// stateDir is what StateDirectory= means to a user manager.
func (m *manager) stateDir() string { return filepath.Join(m.dir, ".config/watcher") }

// ends tells how the services ended so far.
func (m *manager) ends(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.stateDir(), "ends"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func (m *manager) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = m.env
	return cmd
}

func (m *manager) systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.command("systemctl", append([]string{"--user"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// show asks for properties of the daemon's unit.
func (m *manager) show(t *testing.T, properties ...string) map[string]string {
	t.Helper()
	return m.showUnit(t, daemonUnit, properties...)
}

func (m *manager) showUnit(t *testing.T, unit string, properties ...string) map[string]string {
	t.Helper()
	p := map[string]string{}
	for line := range strings.Lines(m.systemctl(t, "show", "--property="+strings.Join(properties, ","), unit)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		p[key] = value
	}
	return p
}

func (m *manager) waitShow(t *testing.T, what string, reached func(map[string]string) bool) map[string]string {
	t.Helper()
	return m.waitFor(t, daemonUnit, what, reached)
}

func (m *manager) waitFor(t *testing.T, unit, what string, reached func(map[string]string) bool) (p map[string]string) {
	t.Helper()
	eventually(t, unit+" is "+what, func() (bool, string) {
		p = m.showUnit(t, unit, "ActiveState", "SubState", "Result", "StatusText", "MainPID", "NRestarts", "ActiveEnterTimestampMonotonic")
		return reached(p), fmt.Sprint(p)
	})
	return p
}

// entries are those of the journal that match.
func (m *manager) entries(t *testing.T, match ...string) []map[string]any {
	t.Helper()
	out, err := m.command("journalctl", append([]string{"-D", filepath.Join(m.dir, "run/log/journal"), "-q", "--all", "-o", "json"}, match...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		errors.As(err, &exit)
		t.Fatalf("journalctl %v: %v %s", match, err, exit.Stderr)
	}
	var entries []map[string]any
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		entry := map[string]any{}
		switch err := dec.Decode(&entry); {
		case errors.Is(err, io.EOF):
			return entries
		case err != nil:
			t.Fatalf("journalctl %v: %v\n%s", match, err, out)
		}
		entries = append(entries, entry)
	}
}

// waitEntry waits for the first entry of the journal that matches.
func (m *manager) waitEntry(t *testing.T, match ...string) (entry map[string]any) {
	t.Helper()
	eventually(t, fmt.Sprintf("the journal has an entry with %v", match), func() (bool, string) {
		found := m.entries(t, match...)
		if len(found) > 0 {
			entry = found[0]
		}
		return entry != nil, "none has"
	})
	return entry
}

func (m *manager) logJournal(t *testing.T) {
	out, err := m.command("journalctl", "-D", filepath.Join(m.dir, "run/log/journal"), "-q", "-n", "60", "--no-hostname", "-o", "short-precise").CombinedOutput()
	t.Logf("the journal ends (%v):\n%s", err, out)
	if log, err := os.ReadFile(filepath.Join(m.dir, "log")); err == nil && len(log) > 0 {
		t.Logf("the manager says:\n%s", log)
	}
}

// signal goes through the pidfd that os.Process holds.
func (m *manager) signal(t *testing.T, pid string, sig unix.Signal) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(n)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	// Whoever it is now, it stays so: only if it is ours is it signalled.
	if now := m.show(t, "MainPID")["MainPID"]; now != pid {
		t.Fatalf("the daemon is process %s by now, and not %s", now, pid)
	}
	if err := p.Signal(sig); err != nil {
		t.Fatalf("%v to %d: %v", sig, n, err)
	}
}

// checkConfinement makes sure that the daemon has been doing its work so far without what the unit takes away.
func (m *manager) checkConfinement(t *testing.T) {
	t.Helper()
	pid := m.show(t, "MainPID")["MainPID"]
	m.checkStatus(t, pid, unitCapabilities...)
	// Without pidfd_open, which a filter of system calls could take away, watcher works too, but not as well.
	pidfds := 0
	links, err := filepath.Glob("/proc/" + pid + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && (strings.Contains(to, "[pidfd]") || strings.HasPrefix(to, "pidfd:")) {
			pidfds++
		}
	}
	if pidfds < 2 {
		t.Errorf("the daemon holds %d pidfds, want one of the owner and one of the container's init", pidfds)
	}
}

// checkStatus makes sure that a process has these capabilities and no other, a filter of system calls, and no way to gain
// anything by what it executes.
func (m *manager) checkStatus(t *testing.T, pid string, capabilities ...uint) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	var held uint64
	for _, c := range capabilities {
		held |= 1 << c
	}
	for key, want := range map[string]string{"CapEff": fmt.Sprintf("%016x", held), "CapBnd": fmt.Sprintf("%016x", held), "NoNewPrivs": "1", "Seccomp": "2"} {
		if !strings.Contains(string(status), "\n"+key+":\t"+want+"\n") {
			t.Errorf("the daemon's status has no line %s: %s\n%s", key, want, status)
		}
	}
}

// A unitLine is an assignment in a unit file.
type unitLine struct {
	number              int
	section, key, value string
	reasoned            bool // there is a comment directly above it
}

// hardens reports whether the line takes something away from the program.
func (l unitLine) hardens() bool {
	return l.section == "Service" && !slices.Contains([]string{
		"Type", "NotifyAccess", "ExecStart", "ExecReload", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec", "TimeoutAbortSec", "Restart", "RestartSec",
		"StateDirectory", "StateDirectoryMode", "LimitNOFILE", "OOMScoreAdjust", "Nice",
	}, l.key)
}

type unitFile []unitLine

func readUnit(t *testing.T, name string) unitFile {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(unitDir, name))
	if err != nil {
		t.Fatal(err)
	}
	var (
		unit             unitFile
		section, earlier string
	)
	for i, line := range strings.Split(string(text), "\n") {
		key, value, assigns := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		case assigns:
			unit = append(unit, unitLine{number: i + 1, section: section, key: key, value: value, reasoned: strings.HasPrefix(earlier, "# ")})
		}
		earlier = line
	}
	return unit
}

// value is that of the only line with the key.
func (u unitFile) value(t *testing.T, key string) string {
	t.Helper()
	var values []string
	for _, l := range u {
		if l.key == key {
			values = append(values, l.value)
		}
	}
	if len(values) != 1 {
		t.Fatalf("%s has the values %q, want one", key, values)
	}
	return values[0]
}

func unitNames(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, kind := range []string{"service", "timer", "socket", "path", "slice", "target"} {
		files, err := filepath.Glob(filepath.Join(unitDir, "*."+kind))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			names = append(names, filepath.Base(file))
		}
	}
	if len(names) < 3 {
		t.Fatalf("only %q in %s", names, unitDir)
	}
	return names
}

// installUnit does what `make install` does: it puts the binary's path into the unit.
func installUnit(t *testing.T, dir, name, binary string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(unitDir, name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	writeFile(t, path, strings.ReplaceAll(string(text), unitBinary, binary))
	return path
}

// installMicroVMs does for a service what `make install-microvms` does.
func installMicroVMs(t *testing.T, dir, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(unitDir, microVMsPart))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, name+".d"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+".d", microVMsPart), string(text))
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// needTool fails the test where a program is missing: one that was skipped would look as if it had passed.
func needTool(t *testing.T, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%v (apt-get install %s)", err, debianPackage)
	}
}

func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// eventually polls, for systemctl and journalctl tell only who asks.
func eventually(t *testing.T, what string, reached func() (ok bool, seen string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	beat := time.NewTicker(30 * time.Millisecond)
	defer beat.Stop()
	for {
		ok, seen := reached()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not so after %s: %s; seen: %s", patience, what, seen)
		}
		<-beat.C
	}
}
