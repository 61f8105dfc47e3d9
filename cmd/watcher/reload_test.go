package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// A settable is a daemon with a configuration that its test changes.
type settable struct {
	*daemon
	t    *testing.T
	e    *dockertest.Engine
	file string
}

func startSettable(t *testing.T, e *dockertest.Engine, text string) *settable {
	t.Helper()
	s := &settable{t: t, e: e, file: configFile(t, text)}
	s.daemon = startDaemon(t, e, "--config", s.file)
	return s
}

// write replaces the configuration, as an editor does.
func (s *settable) write(text string) {
	s.t.Helper()
	aside := s.file + ".new"
	writeFile(s.t, aside, text)
	if err := os.Rename(aside, s.file); err != nil {
		s.t.Fatal(err)
	}
}

// reload has the daemon read another configuration, and returns the record that tells of it.
func (s *settable) reload(event, text string) record {
	s.t.Helper()
	before := len(s.records(telling(event)))
	s.write(text)
	s.signal(syscall.SIGHUP)
	s.waitForMore(event, before)
	return s.records(telling(event))[before]
}

// waitForMore waits until an event has been told more often than that.
func (s *settable) waitForMore(event string, than int) {
	s.t.Helper()
	await(s.t, fmt.Sprintf("%s is told for the %dth time", event, than+1), func() bool { return len(s.records(telling(event))) > than })
}

// lists reports whether watcher list shows a container by the configuration of now.
func (s *settable) lists(id string) bool {
	s.t.Helper()
	_, ok := rowsOf(s.t, s.e, "list", "--config", s.file)[id]
	return ok
}

// told are the events about a container so far.
func (s *settable) told(id string) (events []string) {
	for _, r := range s.records(func(r record) bool { return r.text(watch.KeyID) == id && r.text(watch.KeyEvent) != "" }) {
		events = append(events, r.text(watch.KeyEvent))
	}
	return events
}

// ruleAbout is a rule for containers with the label about=NAME, whose owner is in the label boss.
func ruleAbout(name string, more ...string) string {
	return fmt.Sprintf("[[rule]]\nname = %q\nmatch = { labels = [\"about=%s\"] }\nowner = { pid-label = \"boss\" }\n%s\n", name, name, strings.Join(more, "\n"))
}

func bossed(name string, o *processtest.Owner) map[string]string {
	return map[string]string{"about": name, "boss": o.Label()}
}

// slow is for tests that want nothing to come from a scan at an interval.
const slow = "[scan]\ninterval = \"1h\"\n"

func TestAReloadBringsARule(t *testing.T) {
	e := dockertest.Shared(t)
	s := startSettable(t, e, slow)
	dead, doomed, own := processtest.StartOwner(t), processtest.StartOwner(t), processtest.StartOwner(t)
	orphan := e.Run(t, dockertest.ContainerOptions{Labels: bossed("fresh", dead)})
	id := e.Run(t, dockertest.ContainerOptions{Labels: bossed("fresh", doomed)})
	labelled := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(own.Label())})
	s.knows(labelled)
	dead.Kill()
	dead.Wait()
	if s.lists(orphan) || !e.Running(t, orphan) {
		t.Fatal("a container is watched that no rule is about")
	}
	r := s.reload(watch.EventReloaded, slow+ruleAbout("fresh"))
	if r["rules"] != 1.0 || r.text("config") != s.file {
		t.Errorf("told %v, want that there is one rule in %s", r, s.file)
	}
	r = s.event(watch.EventReaped, orphan)
	if got := r.text(watch.KeyRule); got != "fresh" {
		t.Errorf("it was reaped by rule %q", got)
	}
	s.knows(id)
	if !s.lists(id) {
		t.Error("list does not show what the new rule is about")
	}
	doomed.Kill()
	s.event(watch.EventReaped, id)
	// Watcher's own labels count as before.
	own.Kill()
	s.event(watch.EventReaped, labelled)
}

func TestAReloadTakesARule(t *testing.T) {
	e := dockertest.Shared(t)
	s := startSettable(t, e, slow+ruleAbout("stays")+ruleAbout("goes"))
	let, both, during := processtest.StartOwner(t), processtest.StartOwner(t), processtest.StartOwner(t)
	alone := e.Run(t, dockertest.ContainerOptions{Labels: bossed("goes", let)})
	stays := e.Run(t, dockertest.ContainerOptions{Labels: bossed("stays", both)})
	goes := e.Run(t, dockertest.ContainerOptions{Labels: bossed("goes", both)})
	dying := e.Run(t, dockertest.ContainerOptions{Labels: bossed("stays", during)})
	for _, id := range []string{alone, stays, goes, dying} {
		s.knows(id)
	}
	// A death in the midst of the change is not lost.
	s.write(slow + ruleAbout("stays"))
	s.signal(syscall.SIGHUP)
	during.Kill()
	s.waitForMore(watch.EventReloaded, 0)
	// From here on the rule counts no more.
	both.Kill()
	let.Kill()
	s.event(watch.EventReaped, stays)
	s.event(watch.EventReaped, dying)
	for _, id := range []string{alone, goes} {
		if s.lists(id) {
			t.Error("list shows what no rule is about any more")
		}
		if !e.Running(t, id) {
			t.Errorf("a container was reaped that no rule is about any more; told: %v", s.told(id))
		}
	}
	// It comes back, and what happened in between counts.
	s.reload(watch.EventReloaded, slow+ruleAbout("stays")+ruleAbout("goes"))
	s.event(watch.EventReaped, alone)
	s.event(watch.EventReaped, goes)
}

func TestAReloadOfAFaultyFile(t *testing.T) {
	e := dockertest.Shared(t)
	good := slow + ruleAbout("good")
	s := startSettable(t, e, good)
	for i, tt := range []struct{ name, text, place string }{
		{"not TOML", good + "[[rule", ":8:6: "},
		{"a misspelt key", good + "ower = { none = true }\n", ":8:1: "},
		{"a value of the wrong kind", strings.Replace(good, `"1h"`, "30", 1), ":2:12: "},
		{"an unknown preset", "presets = [\"docker-runs\"]\n" + good, ":1:12: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			owner := processtest.StartOwner(t)
			id := e.Run(t, dockertest.ContainerOptions{Labels: bossed("good", owner)})
			s.knows(id)
			r := s.reload(watch.EventReloadFailed, tt.text)
			if got := r.text(watch.KeyError); !strings.Contains(got, s.file+tt.place) {
				t.Errorf("told %q, want a fault at %s", got, s.file+tt.place)
			}
			check := command(t, "check", "--config", s.file)
			if check.code != exitUsage || !strings.Contains(check.stderr, s.file+tt.place) {
				t.Errorf("check exits %d and says %q, want %d and the place %s", check.code, check.stderr, exitUsage, tt.place)
			}
			owner.Kill()
			s.event(watch.EventReaped, id)
			if got := len(s.records(telling(watch.EventReloaded))); got != i {
				t.Errorf("told %d times that it was reloaded, want %d", got, i)
			}
			s.reload(watch.EventReloaded, good)
			if check := command(t, "check", "--config", s.file); check.code != exitDone {
				t.Errorf("check exits %d of a good file: %s", check.code, check.stderr)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		if err := os.Remove(s.file); err != nil {
			t.Fatal(err)
		}
		s.signal(syscall.SIGHUP)
		s.waitForMore(watch.EventReloadFailed, 4)
		owner := processtest.StartOwner(t)
		id := e.Run(t, dockertest.ContainerOptions{Labels: bossed("good", owner)})
		s.knows(id)
		owner.Kill()
		s.event(watch.EventReaped, id)
	})
}

func TestAReloadChangesTheInterval(t *testing.T) {
	e := dockertest.Shared(t)
	s := startSettable(t, e, slow)
	s.reload(watch.EventReloaded, "[scan]\ninterval = \"100ms\"\n")
	before := len(s.records(telling(watch.EventScan)))
	s.waitForMore(watch.EventScan, before+5)
	s.reload(watch.EventReloaded, slow)
	// One may be under way, and one is asked for by the reload.
	await(t, "no scan for five times as long as before", func() bool {
		scans := s.records(telling(watch.EventScan))
		last, err := time.Parse(time.RFC3339Nano, scans[len(scans)-1].text("time"))
		return err == nil && time.Since(last) > 500*time.Millisecond
	})
}

func TestAReloadChangesTheAlarm(t *testing.T) {
	e := dockertest.Shared(t)
	s := startSettable(t, e, slow+ruleAbout("some"))
	owner := processtest.StartOwner(t)
	for range 3 {
		s.knows(e.Run(t, dockertest.ContainerOptions{Labels: bossed("some", owner)}))
	}
	alarms := func(level string) (found []record) {
		return s.records(func(r record) bool {
			return r.text(watch.KeyEvent) == watch.EventAlarm && r.text(watch.KeyRule) == "some" && r.text("level") == level
		})
	}
	for i, tt := range []struct {
		text  string
		level string
		most  float64
	}{
		{ruleAbout("some") + "[alarm]\nsandboxes = 2\n", "WARN", 2},
		{ruleAbout("some", "alarm = 3"), "INFO", 3},
		{ruleAbout("some", "alarm = 1") + "[alarm]\nsandboxes = 99\n", "WARN", 1},
	} {
		n := len(alarms(tt.level))
		s.reload(watch.EventReloaded, slow+tt.text)
		await(t, fmt.Sprintf("alarm %d is told", i), func() bool { return len(alarms(tt.level)) > n })
		r := alarms(tt.level)[n]
		if r[watch.KeySandboxes] != 3.0 || r[watch.KeyThreshold] != tt.most {
			t.Errorf("told %v, want 3 of %v", r, tt.most)
		}
	}
}

// A reap that has begun is finished, with what was promised, whatever becomes of its rule.
func TestAReloadInTheMiddleOfAReap(t *testing.T) {
	e := dockertest.Shared(t)
	s := startSettable(t, e, slow+ruleAbout("patient", `stop-timeout = "3s"`))
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: bossed("patient", owner), Args: []string{"deaf"}})
	s.knows(id)
	// The daemon follows events in order, so when it knows a later container it holds the init of this one.
	s.knows(e.Run(t, dockertest.ContainerOptions{Labels: ownedBy("1"), NotStarted: true}))
	owner.Kill()
	s.event(watch.EventOwnerExited, id)
	s.reload(watch.EventReloaded, slow)
	r := s.event(watch.EventReaped, id)
	if stop, ok := r.micros(watch.KeyStopUS); !ok || stop < 3*time.Second {
		t.Errorf("it was stopped after %s (%t), and had 3s", stop, ok)
	}
	e.WaitGone(t, id)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
}

// The connector tells of execs only while a rule names a program.
func TestAReloadBringsAProgram(t *testing.T) {
	e := dockertest.Shared(t)
	// An interval that is too long to be the one who sees it, and short enough to make up for what others on this host may
	// do just then: a process that cannot be looked at keeps the container until the next scan.
	quick := "[scan]\ninterval = \"10s\"\ngrace = \"3s\"\n"
	program := processtest.Program(t, "agentd-of-reload")
	rule := fmt.Sprintf("[[rule]]\nname = \"agents\"\nmatch = { labels = [\"agent=%s\"] }\nowner = { process = %q }\n", t.Name(), program)
	s := startSettable(t, e, quick)
	execs := func(times int) bool {
		found := s.records(func(r record) bool { return r.text("msg") == "listening" })
		if len(found) < times {
			return false
		}
		level, _ := found[times-1]["level"].(map[string]any)
		return level["execs"] == true
	}
	s.waitFor("the process connector", func(r record) bool { return r.text("msg") == "listening" })
	if execs(1) {
		t.Error("it listens for execs that nobody asked for")
	}
	s.reload(watch.EventReloaded, quick+rule)
	await(t, "it listens for execs", func() bool { return execs(2) })

	owner, stranger := processtest.StartOwner(t), processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: map[string]string{"agent": t.Name()}})
	s.waitFor("that nobody may own it", func(r record) bool {
		return r.text(watch.KeyID) == id && r.text(watch.KeyReason) == string(reap.TooYoung)
	})
	// The process is older than the container, and now becomes one that may own it.
	scans := len(s.records(telling(watch.EventScan)))
	owner.Become(program, "agentd", "serve")
	s.knows(id)
	if n := len(s.records(telling(watch.EventScan))) - scans; n > 0 {
		t.Logf("NOT PROVEN: %d scan(s) came in between, one of which may have seen the exec", n)
	}
	stranger.Become(processtest.Program(t, "other"), "other")
	owner.Kill()
	r := s.event(watch.EventReaped, id)
	if got := r.text(watch.KeyReason); got != string(reap.NoPossibleOwner) {
		t.Errorf("reason %q, want %q", got, reap.NoPossibleOwner)
	}
	s.reload(watch.EventReloaded, quick)
	await(t, "it listens once more", func() bool {
		return len(s.records(func(r record) bool { return r.text("msg") == "listening" })) == 3
	})
	if execs(3) {
		t.Error("it listens for execs that nobody asks for any more")
	}
	if lost := s.records(telling(watch.EventSourceLost)); len(lost) > 0 {
		t.Errorf("told as lost: %v", lost)
	}
}

// However many hangups come, the last configuration is the one in force, and nobody who dies meanwhile is overlooked.
func TestManyReloads(t *testing.T) {
	e := dockertest.Shared(t)
	with, without := slow+ruleAbout("now"), slow+ruleAbout("then")
	s := startSettable(t, e, with)
	var owners []*processtest.Owner
	var ids []string
	for range 6 {
		o := processtest.StartOwner(t)
		owners = append(owners, o)
		ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: bossed("now", o)}))
	}
	other, alive := processtest.StartOwner(t), processtest.StartOwner(t)
	then := e.Run(t, dockertest.ContainerOptions{Labels: bossed("then", other)})
	kept := e.Run(t, dockertest.ContainerOptions{Labels: bossed("now", alive)})
	labelled := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(other.Label())})
	for i := range 300 {
		s.write([]string{with, without}[i%2])
		s.signal(syscall.SIGHUP)
		if i%50 == 0 {
			owners[i/50].Kill()
		}
	}
	s.write(with)
	s.signal(syscall.SIGHUP)
	for _, id := range ids {
		s.event(watch.EventReaped, id)
	}
	s.knows(kept)
	if !e.Running(t, then) || !e.Running(t, kept) {
		t.Error("the container of a living owner does not run any more")
	}
	// It hears as before.
	other.Kill()
	s.event(watch.EventReaped, labelled)
	reloaded := s.reload(watch.EventReloaded, without)
	if reloaded["rules"] != 1.0 {
		t.Errorf("told %v", reloaded)
	}
	s.event(watch.EventReaped, then)
	if code := s.stop(); code != exitDone {
		t.Errorf("exit code %d, want %d", code, exitDone)
	}
}

// A hangup that comes before the first scan is done is heard as well.
func TestAReloadBeforeTheFirstScan(t *testing.T) {
	e := dockertest.Start(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: bossed("late", owner)})
	owner.Kill()
	owner.Wait()
	e.Pause(t)
	s := &settable{t: t, e: e, file: configFile(t, slow)}
	s.daemon = launchDaemon(t, program(t, "--docker-host", e.Host(), "--config", s.file))
	s.waitFor("the start", telling(watch.EventStarted))
	s.write(slow + ruleAbout("late"))
	s.signal(syscall.SIGHUP)
	e.Resume(t)
	s.event(watch.EventReaped, id)
}

const messageReloaded = "f39491088ff24984b27d04ba35d0d9ac"

// The unit's reload, with systemd. The configuration is a pipe for once, so that it is read for as long as we like.
func TestUnitReloads(t *testing.T) {
	engine := dockertest.Start(t)
	m := startManager(t)
	config := filepath.Join(m.dir, "watcher.toml")
	writeFile(t, config, slow)
	m.install(t, daemonUnit, append(inNoNamespace, "Environment=DOCKER_HOST="+engine.Host(),
		"ExecStart=", "ExecStart="+m.binary+" --config "+config)...)
	owner := processtest.StartOwner(t)
	id := engine.Run(t, dockertest.ContainerOptions{Labels: bossed("unit", owner)})
	active := func(want string) {
		t.Helper()
		m.waitShow(t, want, func(p map[string]string) bool { return p["ActiveState"] == want })
	}

	// Before the first scan READY is nobody's to say, not for a reload either.
	engine.Pause(t)
	m.systemctl(t, "start", "--no-block", daemonUnit)
	m.waitEntry(t, "MESSAGE_ID="+messageStart)
	pid := m.show(t, "MainPID")["MainPID"]
	m.signal(t, pid, unix.SIGHUP)
	m.waitEntry(t, "MESSAGE_ID="+messageReloaded)
	if state := m.show(t, "ActiveState")["ActiveState"]; state != "activating" {
		t.Errorf("before the first full scan the unit is %s", state)
	}
	engine.Resume(t)
	active("active")

	if err := os.Remove(config); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(config, 0o600); err != nil {
		t.Fatal(err)
	}
	m.systemctl(t, "reload", "--no-block", daemonUnit)
	active("reloading")
	if !engine.Running(t, id) {
		t.Fatal("a container was reaped that no rule is about yet")
	}
	writeFile(t, config, slow+ruleAbout("unit"))
	active("active")
	m.waitShow(t, "watching it", func(p map[string]string) bool { return strings.HasPrefix(p["StatusText"], "watching 1 sandbox(es)") })
	owner.Kill()
	engine.WaitGone(t, id)

	// A file with a fault: the reload ends, the unit lives, the journal has the place.
	go func() { _ = os.WriteFile(config, []byte("[scan]\ninterval = 30\n"), 0o600) }()
	m.systemctl(t, "reload", daemonUnit)
	entry := m.waitEntry(t, "WATCHER_EVENT="+watch.EventReloadFailed)
	if got, _ := entry["WATCHER_ERROR"].(string); !strings.Contains(got, config+":2:12: ") {
		t.Errorf("the journal says %q, want the place of the fault", got)
	}
	active("active")
	if now := m.show(t, "MainPID", "NRestarts"); now["MainPID"] != pid || now["NRestarts"] != strconv.Itoa(0) {
		t.Errorf("the daemon was %s and is %v", pid, now)
	}
	m.systemctl(t, "stop", daemonUnit)
	if got, want := m.ends(t), []string{"success exited 0"}; !slices.Equal(got, want) {
		t.Errorf("the daemon ended with %q, want %q", got, want)
	}
}
