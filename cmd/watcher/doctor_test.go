//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"watcher/platform/connector"
	"watcher/platform/docker/dockertest"
	"watcher/platform/journal"
	"watcher/watch"
)

func TestWhatIsKnownOfAKernel(t *testing.T) {
	for _, tt := range []struct {
		release string
		works   outcome
		says    string // besides the release
	}{
		{"6.18.44", yes, ""},
		{"6.18-rc1", yes, ""},
		{"6.6.12", yes, ""},
		{"6.6.13", yes, "fall silent"},
		{"6.6.17-custom", yes, "fall silent"},
		{"6.6.18", yes, ""},
		{"6.7.0", yes, ""},
		{"6.7.5", yes, "fall silent"},
		{"6.7.6", yes, ""},
		{"6.1.0-13-amd64", yes, "from 6.6 on"},
		{"5.2.21", yes, "without pidfds"},
		{"4.19", yes, "without pidfds"},
		{"", unknown, "nothing is known"},
		{"6", unknown, "nothing is known"},
		{"x.y.z", unknown, "nothing is known"},
		{"99999999999999999999.1.1", unknown, "nothing is known"},
	} {
		a := judgeKernel(tt.release)
		if a.works != tt.works || !strings.Contains(a.detail, tt.says) || !strings.Contains(a.detail, tt.release) {
			t.Errorf("of Linux %q: %v %q, want %v and %q", tt.release, a.works, a.detail, tt.works, tt.says)
		}
		if tt.says == "" && a.detail != "Linux "+tt.release {
			t.Errorf("of Linux %q there is nothing to say, and it says %q", tt.release, a.detail)
		}
	}
}

func TestHowExitsAreFiltered(t *testing.T) {
	for _, tt := range []struct {
		level  connector.Level
		says   []string
		remedy bool
	}{
		{connector.Level{Mask: true, Filter: true, ReceiveBuffer: 16 << 20}, []string{"asked for", "socket filter", "8 MiB"}, false},
		{connector.Level{Filter: true, ReceiveBuffer: 16 << 20}, []string{"socket filter"}, false},
		{connector.Level{ReceiveBuffer: 16 << 20}, []string{"unfiltered"}, false},
		{connector.Level{Mask: true, ReceiveBuffer: 425984}, []string{"208 KiB", "too few"}, true},
	} {
		a := judgeLevel(tt.level)
		for _, want := range tt.says {
			if !strings.Contains(a.detail, want) {
				t.Errorf("%v: %q lacks %q", tt.level, a.detail, want)
			}
		}
		if a.works != yes || (a.remedy != "") != tt.remedy {
			t.Errorf("%v: %v, remedy %q", tt.level, a.works, a.remedy)
		}
	}
}

// Only what failed is looked at again, and not once more than need be.
func TestOnlyWhatFailedIsLookedAtAgain(t *testing.T) {
	looks := map[string]int{}
	script := func(name string, needed bool, outcomes ...outcome) check {
		return check{name, needed, func(context.Context) sign {
			n := looks[name]
			looks[name]++
			return sign{works: outcomes[min(n, len(outcomes)-1)], detail: fmt.Sprintf("look %d", n+1)}
		}}
	}
	checks := []check{
		script("works", true, yes), script("cannot tell", true, unknown), script("fails", true, no),
		script("comes back", true, no, no, yes), script("becomes unclear", true, no, unknown), script("fails, but who cares", false, no),
	}
	found, err := examine(t.Context(), checks, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		works outcome
		looks int
		fails bool
	}{
		{yes, 1, false},
		{unknown, 1, false},
		{no, 1 + rechecks, true},
		{yes, 3, false},
		{unknown, 2, false},
		{no, 1, false},
	} {
		d := found[i]
		if d.Works != want.works || d.Looks != want.looks || d.fails() != want.fails || d.Detail != fmt.Sprintf("look %d", want.looks) {
			t.Errorf("%s: %+v, want %+v", checks[i].name, d, want)
		}
	}
	clear(looks)
	if _, err := examine(t.Context(), checks[:2], time.Hour); err != nil || looks["works"] != 1 {
		t.Errorf("where nothing fails it pauses, or looks again: %v %v", err, looks)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := examine(ctx, checks, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestWhatDoctorPrints(t *testing.T) {
	found := []diagnosis{
		{Check: "kernel", Works: yes, Needed: true, Detail: "Linux 6.18.44", Looks: 1},
		{Check: "engine", Works: no, Needed: true, Detail: "no\x1b[2Janswer", Remedy: "start it", Looks: 4},
		{Check: "process connector", Works: no, Detail: "silent", Remedy: "update the kernel", Looks: 4},
		{Check: "clock", Works: unknown, Needed: true, Detail: "not permitted", Looks: 1},
	}
	const table = `ok    kernel             Linux 6.18.44
FAIL  engine             no [2Janswer; start it
warn  process connector  silent; update the kernel
?     clock              not permitted
`
	var b bytes.Buffer
	if err := writeDiagnoses(&b, found); err != nil || b.String() != table {
		t.Errorf("%v\n%s, want\n%s", err, b.String(), table)
	}
	const asJSON = `[
  {
    "check": "kernel",
    "works": "yes",
    "needed": true,
    "detail": "Linux 6.18.44",
    "remedy": "",
    "looks": 1
  },
  {
    "check": "clock",
    "works": "unknown",
    "needed": true,
    "detail": "not permitted",
    "remedy": "",
    "looks": 1
  }
]
`
	b.Reset()
	if err := writeJSON(&b, []diagnosis{found[0], found[3]}); err != nil || b.String() != asJSON {
		t.Errorf("%v\n%s, want\n%s", err, b.String(), asJSON)
	}
}

// examined runs doctor here, without its pauses.
func examined(t *testing.T, o *options) (found map[string]diagnosis, err error) {
	t.Helper()
	o.output = asJSON
	if o.stateDir == "" {
		o.stateDir = t.TempDir()
	}
	if o.logFormat == "" {
		o.logFormat = journal.JSON
	}
	var b bytes.Buffer
	err = o.runDoctor(t.Context(), &b, 0)
	return diagnosesOf(t, b.String()), err
}

func diagnosesOf(t *testing.T, text string) map[string]diagnosis {
	t.Helper()
	var rows []struct {
		Check, Works, Detail, Remedy string
		Needed                       bool
		Looks                        int
	}
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	found := map[string]diagnosis{}
	for _, r := range rows {
		d := diagnosis{Check: r.Check, Needed: r.Needed, Detail: r.Detail, Remedy: r.Remedy, Looks: r.Looks}
		d.Works = map[string]outcome{"yes": yes, "no": no}[r.Works]
		found[r.Check] = d
	}
	return found
}

// wantDiagnosis checks one line of doctor.
func wantDiagnosis(t *testing.T, found map[string]diagnosis, check string, works outcome, says ...string) {
	t.Helper()
	d, ok := found[check]
	if !ok || d.Works != works {
		t.Errorf("%s: %s, want %s: %+v", check, d.Works, works, d)
	}
	for _, want := range says {
		if !strings.Contains(d.Detail+"; "+d.Remedy, want) {
			t.Errorf("%s says %q; %q, which lacks %q", check, d.Detail, d.Remedy, want)
		}
	}
}

func TestDoctorOnAHostThatIsWell(t *testing.T) {
	e := dockertest.Shared(t)
	r := on(t, e, "doctor", "-o", "json")
	if r.code != exitDone {
		t.Errorf("doctor exits %d: %s%s", r.code, r.stdout, r.stderr)
	}
	found := diagnosesOf(t, r.stdout)
	for _, check := range []string{"configuration", "kernel", "processes", "clock", "pidfd", "process connector", "log"} {
		wantDiagnosis(t, found, check, yes)
	}
	version, err := e.Client().ServerVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantDiagnosis(t, found, "engine", yes, e.Host(), version.Version, "API 1.")
	wantDiagnosis(t, found, "shared PID namespace", yes)
	wantDiagnosis(t, found, "sandboxes", yes, "full scan", "watched")
	wantDiagnosis(t, found, "state directory", yes, stateOf(t), "no daemon runs")
	for _, name := range presetNames() {
		wantDiagnosis(t, found, "preset "+name, yes, "not in use")
	}
	if left, err := filepath.Glob(filepath.Join(stateOf(t), ".doctor*")); err != nil || len(left) > 0 {
		t.Errorf("it leaves behind %q, %v", left, err)
	}

	d := startDaemon(t, e)
	r = on(t, e, "doctor")
	if want := fmt.Sprintf("a daemon runs, process %d", d.cmd.Process.Pid); r.code != exitDone || !strings.Contains(r.stdout, want) {
		t.Errorf("beside a daemon doctor exits %d and lacks %q:\n%s%s", r.code, want, r.stdout, r.stderr)
	}
}

func TestDoctorSaysWhatDoesNotWork(t *testing.T) {
	missing := "unix://" + filepath.Join(t.TempDir(), "no-engine.sock")
	found, err := examined(t, &options{dockerHost: missing})
	if !errors.Is(err, errSaid) {
		t.Errorf("without an engine: %v, want exit code 1", err)
	}
	wantDiagnosis(t, found, "engine", no, missing, "is the engine running there?")
	wantDiagnosis(t, found, "shared PID namespace", unknown)
	wantDiagnosis(t, found, "sandboxes", unknown)
	if n := found["engine"].Looks; n != 1+rechecks {
		t.Errorf("the engine was looked at %d times, want %d", n, 1+rechecks)
	}
	if n := found["kernel"].Looks; n != 1 {
		t.Errorf("the kernel was looked at %d times, want once", n)
	}

	faulty := configFile(t, "[scan]\ninterval = 30\n")
	found, err = examined(t, &options{dockerHost: missing, config: faulty})
	if !errors.Is(err, errSaid) {
		t.Errorf("with a fault in the configuration: %v, want exit code 1", err)
	}
	wantDiagnosis(t, found, "configuration", no, faulty+":2:12")

	found, _ = examined(t, &options{dockerHost: missing, presets: []string{"nobody"}})
	wantDiagnosis(t, found, "configuration", no, "nobody")

	found, _ = examined(t, &options{dockerHost: "tcp://127.0.0.1:1"})
	wantDiagnosis(t, found, "engine", no, "127.0.0.1:1")

	found, _ = examined(t, &options{dockerHost: missing, logFormat: "sonnets"})
	wantDiagnosis(t, found, "log", no, "sonnets")
}

func TestDoctorOnTheStateDirectory(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	open := filepath.Join(base, "open")
	for _, err := range []error{os.WriteFile(file, nil, 0o600), os.Mkdir(open, 0o700), os.Chmod(open, 0o777)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func(dir string, root bool) sign {
		d := &doctor{stateDir: dir, root: root, logLevel: slog.LevelInfo}
		return d.checkStateDir(t.Context())
	}
	for _, tt := range []struct {
		dir  string
		want outcome
		says string
	}{
		{base, yes, "no daemon runs"},
		{filepath.Join(base, "some", "day"), yes, "can be made"},
		{file, no, "no folder"},
		{filepath.Join(file, "below"), no, "not a directory"},
		{open, no, "mode 0777"},
		{"/proc/sys", no, "/proc/sys"},
	} {
		if got := look(tt.dir, true); got.works != tt.want || !strings.Contains(got.detail, tt.says) {
			t.Errorf("%s: %s %q, want %s and %q", tt.dir, got.works, got.detail, tt.want, tt.says)
		}
	}
	if got := look(open, false); got.works != unknown || !strings.Contains(got.remedy, "root") {
		t.Errorf("to somebody who is not root: %+v, want that it could not be found out", got)
	}
}

// Whatever the configuration does not need is a warning.
func TestWhatAConfigurationNeeds(t *testing.T) {
	const container = "[[rule]]\nname = \"c\"\nmatch = { name = \"c-*\" }\nowner = { pid-label = \"p\" }\n"
	const program = "[[rule]]\nname = \"p\"\nmatch = { name = \"p-*\" }\nowner = { process = \"p\" }\nfiles = [\"/tmp/p-*\"]\n"
	for _, tt := range []struct {
		config string
		needed []string
	}{
		{"", nil},
		{container, nil},
		{program, []string{"CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_FOWNER"}},
	} {
		c, err := parseConfig("test", []byte(tt.config))
		if err != nil {
			t.Fatal(err)
		}
		d := &doctor{config: c}
		always := []string{"configuration", "kernel", "processes", "clock", "engine", "shared PID namespace", "sandboxes", "state directory", "log"}
		var needed []string
		for _, c := range d.checks() {
			if c.needed && !slices.Contains(always, c.name) {
				needed = append(needed, c.name)
			}
		}
		wantSame(t, "needed by "+tt.config, needed, tt.needed)
	}
}

func TestDoctorFindsWhatAPresetIsFor(t *testing.T) {
	proc := t.TempDir()
	process := func(pid, exe, cmdline string) {
		dir := filepath.Join(proc, pid)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "cmdline"), []byte(cmdline), 0o600)); err != nil {
			t.Fatal(err)
		}
		if exe != "" {
			if err := os.Symlink(exe, filepath.Join(dir, "exe")); err != nil {
				t.Fatal(err)
			}
		}
	}
	process("1", "/sbin/init", "init\x00")
	process("2", "", "")
	process("30", "/opt/kojuto", "kojuto\x00scan\x00")
	process("31", "/opt/kojuto (deleted)", "kojuto\x00scan\x00")
	process("32", "", "/usr/bin/kojuto\x00")
	if err := os.Mkdir(filepath.Join(proc, "sys"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := &doctor{proc: proc, config: defaults(), root: true}
	if a := d.checkPreset("kojuto"); a.works != yes || !strings.Contains(a.detail, "found program kojuto (3)") || !strings.Contains(a.remedy, "--preset kojuto") {
		t.Errorf("kojuto runs, and doctor says %+v", a)
	}
	if a := d.checkPreset("clawbox"); a.works != yes || !strings.Contains(a.detail, "not found: program clawbox*") || a.remedy != "" {
		t.Errorf("clawbox does not run, and doctor says %+v", a)
	}
	if err := d.config.usePreset("kojuto"); err != nil {
		t.Fatal(err)
	}
	if a := d.checkPreset("kojuto"); !strings.Contains(a.detail, "in use; found") || a.remedy != "" {
		t.Errorf("kojuto's preset is in use, and doctor says %+v", a)
	}
}

// A folder of a rule that is misspelt is nowhere to be found, and the rule would look after nothing without a word.
func TestDoctorOnRules(t *testing.T) {
	dir := t.TempDir()
	d := &doctor{proc: t.TempDir(), config: defaults(), root: true}
	rule := watch.Rule{Name: "vms", Kind: watch.Firecracker, BaseDirs: []string{dir}, Owner: watch.Evidence{Ancestor: "runner"}}
	if a := d.checkRule(rule); a.works != yes || !strings.Contains(a.detail, "found "+dir) || !strings.Contains(a.detail, "not found: program runner") {
		t.Errorf("the folder is there, and doctor says %+v", a)
	}
	rule.BaseDirs = []string{dir + "/bsae"}
	if a := d.checkRule(rule); a.works != no || !strings.Contains(a.detail, "not found: program runner, "+dir+"/bsae") || a.remedy == "" {
		t.Errorf("the folder is misspelt, and doctor says %+v", a)
	}
	d.config.Rules = []watch.Rule{rule, {Name: "labelled", Kind: watch.Container, Owner: watch.Evidence{None: true}}}
	var names []string
	for _, c := range d.checks() {
		if name, ok := strings.CutPrefix(c.name, "rule "); ok {
			names = append(names, name)
		}
	}
	if !slices.Equal(names, []string{"vms"}) {
		t.Errorf("it looks at the rules %q", names)
	}
}

// What a unit takes from the daemon is missing, whatever root has who asks.
func TestDoctorOnADaemonThatMayLess(t *testing.T) {
	needTool(t, "setpriv", "util-linux")
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: only root can drop a capability")
	}
	self, err := os.Executable() // setpriv's own would be its own
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	cmd := program(t, "--docker-host", "unix:///no-engine.sock", "--state-dir", state)
	cmd.Args = append([]string{"setpriv", "--bounding-set=-sys_chroot", self}, cmd.Args[1:]...)
	cmd.Path = "/usr/bin/setpriv"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	o := func() *options { return &options{dockerHost: "unix:///no-engine.sock", stateDir: state} }
	eventually(t, "the daemon runs", func() (bool, string) {
		found, _ := examined(t, o())
		return strings.Contains(found["state directory"].Detail, "a daemon runs"), found["state directory"].Detail
	})
	found, _ := examined(t, o())
	wantDiagnosis(t, found, "CAP_SYS_CHROOT", no, fmt.Sprintf("not held by the daemon, process %d", cmd.Process.Pid), "make install-microvms")
	wantDiagnosis(t, found, "CAP_KILL", yes)
}

// Who is not root is told what could not be found out, and nothing of it is a failure.
func TestDoctorAsSomebodyElse(t *testing.T) {
	e := dockertest.Shared(t)
	cmd := program(t, "doctor", "-o", "json", "--docker-host", e.Host())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	found := diagnosesOf(t, stdout.String())
	for _, check := range []string{"engine", "state directory", "CAP_KILL"} {
		wantDiagnosis(t, found, check, unknown, "root")
	}
	for _, check := range []string{"kernel", "clock", "pidfd", "configuration"} {
		wantDiagnosis(t, found, check, yes)
	}
}

// In a PID namespace of its own nothing that names a PID can be judged, and without a capability files stay.
func TestDoctorInANamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: only root can make a PID namespace and drop a capability")
	}
	needTool(t, "setpriv", "util-linux")
	config := configFile(t, "[[rule]]\nname = \"p\"\nmatch = { name = \"p-*\" }\nowner = { process = \"p\" }\nfiles = [\"/tmp/p-*\"]\n")
	cmd := program(t, "doctor", "-o", "json", "--docker-host", "unix:///no-engine.sock", "--config", config)
	self, err := os.Executable() // setpriv's own would be its own
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append([]string{"setpriv", "--bounding-set=-dac_override", self}, cmd.Args[1:]...)
	cmd.Path = "/usr/bin/setpriv"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("doctor exits %d, want %d: %s%s", code, exitFailed, stdout.String(), stderr.String())
	}
	found := diagnosesOf(t, stdout.String())
	wantDiagnosis(t, found, "processes", no, "namespace")
	wantDiagnosis(t, found, "process connector", no, "--pid=host")
	wantDiagnosis(t, found, "CAP_DAC_OVERRIDE", no, "not held")
	wantDiagnosis(t, found, "CAP_FOWNER", yes)
}
