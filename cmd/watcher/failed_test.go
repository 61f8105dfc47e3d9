package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// impatient has a reap given up within half a second.
const impatient = "[retry]\nattempts = 3\nbase = \"50ms\"\ncap = \"200ms\"\n"

// stick makes a container that the engine cannot remove, as a broken disk or a stuck mount would, until release: a file
// in its folder is immutable (chattr(1)). A mount there would not do, for the engine takes it down. The attribute is
// held by a process of its own that takes it away when we have died, so that the engine's guard can clean up.
func stick(t *testing.T, e *dockertest.Engine, id string) (release func()) {
	t.Helper()
	file := filepath.Join(e.Dir(), "data", "containers", id, "stuck")
	holder := exec.Command("sh", "-c", `: > "$1" && chattr +i "$1" && echo held && read x; chattr -i "$1"`, "sh", file)
	holder.Stderr = os.Stderr
	holder.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	hold, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		_ = hold.Close()
		if err := holder.Wait(); err != nil {
			t.Errorf("let go of %s: %v", file, err)
		}
	})
	t.Cleanup(release)
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		t.Fatalf("hold %s: %q %v", file, line, err)
	}
	return release
}

// stuckLetter makes a dead letter: a container whose owner has died and which the engine cannot remove.
func stuckLetter(t *testing.T, e *dockertest.Engine, d *daemon, name string) (id string, release func()) {
	t.Helper()
	owner := processtest.StartOwner(t)
	id = e.Run(t, dockertest.ContainerOptions{Name: name, Labels: ownedBy(owner.Label())})
	d.knows(id)
	release = stick(t, e, id)
	owner.Kill()
	d.event(watch.EventGaveUp, id)
	await(t, "the dead letter is on record", func() bool { return casesOf(t)[id].GaveUp })
	return id, release
}

// honest has the daemon reap another container. When that is done, it has had the time to do to others what it should
// not.
func honest(t *testing.T, e *dockertest.Engine, d *daemon) {
	t.Helper()
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	d.knows(id)
	owner.Kill()
	if r := d.event(watch.EventReaped, id); r[watch.KeyAttempt] != 1.0 {
		t.Errorf("%.12s was reaped in attempt %v, want the first", id, r[watch.KeyAttempt])
	}
}

func attempts(d *daemon, id string) int {
	return len(d.records(func(r record) bool {
		return about(watch.EventReapFailed, id)(r) || about(watch.EventGaveUp, id)(r)
	}))
}

func TestADeadLetterIsToldListedAndRetried(t *testing.T) {
	e := dockertest.Shared(t)
	config := configFile(t, impatient)
	d := startDaemon(t, e, "--config", config)
	id, release := stuckLetter(t, e, d, "stuck")
	// It holds nobody up.
	honest(t, e, d)
	// It is tried again, slowly, for ever, and not told again.
	d.waitFor("a sixth attempt", func(r record) bool { return about(watch.EventReapFailed, id)(r) && r[watch.KeyAttempt] == 6.0 })
	gaveUp := d.records(about(watch.EventGaveUp, id))
	if len(gaveUp) != 1 || gaveUp[0][watch.KeyAttempt] != 3.0 || !strings.Contains(gaveUp[0].text(watch.KeyError), "operation not permitted") {
		t.Errorf("told that it was given up: %v, want it once, at attempt 3, with the engine's error", gaveUp)
	}
	loud := d.records(func(r record) bool { return about(watch.EventReapFailed, id)(r) && r.text("level") != "DEBUG" })
	if len(loud) != 2 {
		t.Errorf("%d failed attempts were told aloud before, want 2: %v", len(loud), loud)
	}

	r := on(t, e, "failed")
	for _, want := range []string{"container", id[:12], "stuck", string(reap.OwnerExited), "operation not permitted"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("failed lacks %q:\n%s", want, r.stdout)
		}
	}
	r = on(t, e, "failed", "-o", "json")
	var letters []map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &letters); err != nil || len(letters) != 1 {
		t.Fatalf("failed -o json: %v\n%s", err, r.stdout)
	}
	for key, want := range map[string]any{"kind": "container", "id": id, "name": "stuck", "rule": "labels", "reason": string(reap.OwnerExited)} {
		if letters[0][key] != want {
			t.Errorf("failed -o json says %s = %v, want %v", key, letters[0][key], want)
		}
	}
	if n, ok := letters[0]["attempts"].(float64); !ok || n < 3 {
		t.Errorf("failed -o json says attempts = %v, want 3 or more", letters[0]["attempts"])
	}
	if text, _ := letters[0]["error"].(string); !strings.Contains(text, "operation not permitted") {
		t.Errorf("failed -o json says error = %q", text)
	}
	var times [3]time.Time
	for i, key := range []string{"first", "last", "next"} {
		text, _ := letters[0][key].(string)
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Errorf("failed -o json says %s = %v, want a time", key, letters[0][key])
		}
		times[i] = at
	}
	if !times[0].Before(times[1]) || !times[1].Before(times[2]) {
		t.Errorf("first, last, next: %v, want them in order", times)
	}
	if r := on(t, e, "--once", "--config", config); r.code != exitFailed || !strings.Contains(r.stderr, "failed 1") {
		t.Errorf("--once beside a dead letter exits %d and says %q, want %d", r.code, r.stderr, exitFailed)
	}

	if r := on(t, e, "failed", "retry", "stuck"); r.code != exitFailed || !strings.HasPrefix(r.stdout, "FAIL") || !strings.Contains(r.stdout, "operation not permitted") {
		t.Errorf("failed retry while the cause is there exits %d and says %q", r.code, r.stdout)
	}
	// The daemon would be quicker with the next attempt, so it waits.
	d.signal(syscall.SIGSTOP)
	release()
	if r := on(t, e, "failed", "retry", id[:10]); r.code != exitDone || !strings.HasPrefix(r.stdout, "ok") {
		t.Errorf("failed retry exits %d and says %q%q", r.code, r.stdout, r.stderr)
	}
	if cases := casesOf(t); len(cases) > 0 {
		t.Errorf("still on record: %v", cases)
	}
	d.signal(syscall.SIGCONT)
	d.event(watch.EventReaped, id)
	if r := on(t, e, "failed"); r.stdout != "no dead letters\n" {
		t.Errorf("failed says %q afterwards", r.stdout)
	}
	honest(t, e, d)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
}

func TestADeadLetterIsReapedWhenItsCauseIsGone(t *testing.T) {
	e := dockertest.Shared(t)
	config := configFile(t, impatient)
	d := startDaemon(t, e, "--config", config)
	id, release := stuckLetter(t, e, d, "")
	d.kill()
	// It is still one for the next daemon, to which it is no news.
	d = startDaemon(t, e, "--config", config)
	d.waitFor("a further attempt", func(r record) bool {
		return r.text(watch.KeyID) == id && r[watch.KeyAttempt] != nil && r[watch.KeyAttempt].(float64) > 3
	})
	if again := d.records(about(watch.EventGaveUp, id)); len(again) > 0 {
		t.Errorf("given up once more after a restart: %v", again)
	}
	release()
	d.event(watch.EventReaped, id)
	e.WaitGone(t, id)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
}

func TestADeadLetterGoesWithItsSandbox(t *testing.T) {
	e := dockertest.Shared(t)
	config := configFile(t, impatient)
	d := startDaemon(t, e, "--config", config)
	for _, finisher := range []string{"the same daemon", "another daemon", "--once"} {
		id, release := stuckLetter(t, e, d, "")
		if finisher == "the same daemon" {
			d.signal(syscall.SIGSTOP)
		} else {
			d.kill()
		}
		release()
		if err := e.Client().ContainerRemove(t.Context(), id, forced); err != nil {
			t.Fatal(err)
		}
		switch finisher {
		case "the same daemon":
			d.signal(syscall.SIGCONT)
			d.event(watch.EventReaped, id)
		case "another daemon":
			d = startDaemon(t, e, "--config", config)
			d.event(watch.EventReaped, id)
		default:
			if r := on(t, e, "--once"); r.code != exitDone || !strings.Contains(r.stderr, "failed 0") {
				t.Errorf("--once exits %d and says %q", r.code, r.stderr)
			}
		}
		await(t, "the docket is empty after "+finisher, func() bool { return len(casesOf(t)) == 0 })
	}
}

func TestADroppedLetterIsKept(t *testing.T) {
	e := dockertest.Shared(t)
	config := configFile(t, impatient)
	d := startDaemon(t, e, "--config", config)
	first, releaseFirst := stuckLetter(t, e, d, "first")
	second, releaseSecond := stuckLetter(t, e, d, "second")
	marks := func() []watch.ID {
		marks, err := reap.NewDocket(stateOf(t)).For(e.Host()).Dropped()
		if err != nil {
			t.Fatal(err)
		}
		return marks
	}
	for _, id := range []string{first, second} {
		if r := on(t, e, "failed", "drop", id); r.code != exitDone || !strings.HasPrefix(r.stdout, "dropped") {
			t.Errorf("failed drop exits %d and says %q%q", r.code, r.stdout, r.stderr)
		}
		d.waitFor("that it is pinned", func(r record) bool {
			return r.text(watch.KeyID) == id && r.text(watch.KeyReason) == string(reap.Pinned)
		})
	}
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
	releaseFirst()
	releaseSecond()
	kept := func(d *daemon, tried int) {
		t.Helper()
		honest(t, e, d)
		rows := rowsOf(t, e, "list")
		for _, id := range []string{first, second} {
			if r := rows[id]; r.Verdict != reap.Keep.String() || r.Reason != reap.Pinned {
				t.Errorf("list says %+v of a dropped one, want it kept as %s", r, reap.Pinned)
			}
			if n := attempts(d, id); n > tried || !e.Exists(t, id) {
				t.Errorf("%.12s was tried %d times after it had been dropped; it exists: %t", id, n-tried, e.Exists(t, id))
			}
		}
	}
	kept(d, max(attempts(d, first), attempts(d, second)))
	d.kill()
	if r := on(t, e, "--once"); r.code != exitDone || !strings.Contains(r.stderr, "reaped 0") {
		t.Errorf("--once exits %d and says %q", r.code, r.stderr)
	}
	d = startDaemon(t, e, "--config", config)
	kept(d, 0)

	// The mark goes with the container: seen by a daemon that runs, and by one that comes later.
	if err := e.Client().ContainerRemove(t.Context(), first, forced); err != nil {
		t.Fatal(err)
	}
	await(t, "one mark is gone", func() bool { return len(marks()) == 1 && marks()[0].Name == second })
	d.stop()
	if err := e.Client().ContainerRemove(t.Context(), second, forced); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, e)
	await(t, "both marks are gone", func() bool { return len(marks()) == 0 })
}

func TestHowADeadLetterIsNamed(t *testing.T) {
	const engine = "unix:///no-engine.sock" // to name a letter needs none
	docket := reap.NewDocket(stateOf(t)).For(engine)
	if err := docket.Make(); err != nil {
		t.Fatal(err)
	}
	id := func(prefix string) string { return prefix + strings.Repeat("0", 64-len(prefix)) }
	now := time.Now()
	for i, prefix := range []string{"aaa1", "aaa2", "bbb1", "ccc1", "ddd1"} {
		if err := docket.Write(reap.Case{
			Kind: watch.Container, ID: id(prefix), Name: "letter-" + prefix, Created: now, Rule: watch.RuleLabels, Reason: reap.OwnerExited,
			Begun: now, Attempts: 3, Error: "device or resource busy", First: now, Last: now, Next: now.Add(time.Hour),
			GaveUp: i < 4, // the last one is tried yet
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		code int
		says []string
	}{
		{"aaa", exitFailed, []string{"ambiguous", id("aaa1"), id("aaa2"), "letter-aaa1", "letter-aaa2"}},
		{"nobody", exitFailed, []string{"no dead letter", "nobody", "watcher failed"}},
		{id("ddd1"), exitFailed, []string{"no dead letter"}},
		{"letter-", exitFailed, []string{"no dead letter"}}, // a name has no prefixes
		{"", exitUsage, []string{"empty"}},
		{"../../etc/passwd", exitFailed, []string{"no dead letter"}},
		{"aaa1", exitDone, []string{"dropped", "letter-aaa1"}},
		{"letter-bbb1", exitDone, []string{"dropped", "letter-bbb1"}},
		{id("ccc1"), exitDone, []string{"dropped", "letter-ccc1"}},
		{"letter-bbb1", exitFailed, []string{"no dead letter"}}, // it was dropped
	} {
		r := command(t, "failed", "drop", tt.name, "--docker-host", engine)
		if r.code != tt.code {
			t.Errorf("failed drop %q exits %d, want %d: %s%s", tt.name, r.code, tt.code, r.stdout, r.stderr)
		}
		for _, want := range tt.says {
			if !strings.Contains(r.stdout+r.stderr, want) {
				t.Errorf("failed drop %q lacks %q: %s%s", tt.name, want, r.stdout, r.stderr)
			}
		}
	}
	left := casesOf(t)
	if len(left) != 2 || left[id("aaa2")].ID == "" || left[id("ddd1")].ID == "" {
		t.Errorf("on record: %v, want those that were not dropped", left)
	}
	for _, args := range [][]string{{"failed", "drop"}, {"failed", "retry"}, {"failed", "drop", "a", "b"}, {"failed", "aaa2"}, {"failed", "retry", ""}} {
		if r := command(t, append(args, "--docker-host", engine)...); r.code != exitUsage {
			t.Errorf("%q exits %d, want %d", args, r.code, exitUsage)
		}
	}
}

func TestADamagedRecordCostsOnlyItself(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	first := startCrashing(t, e, reap.BoundaryRecorded)
	first.knows(id)
	owner.Kill()
	first.crashed()
	cases := filepath.Join(stateOf(t), "cases")
	damaged := filepath.Join(cases, "container-"+strings.Repeat("f", 64)+".json")
	if err := os.WriteFile(damaged, []byte(`{"kind": "container", "id": "fff`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := on(t, e, "failed"); r.code != exitDone || !strings.Contains(r.stderr, "damaged") {
		t.Errorf("failed exits %d and says %q, want it to tell of the damaged record", r.code, r.stderr)
	}
	d := startDaemon(t, e)
	told := d.records(telling(watch.EventDocketFailed))
	if len(told) != 1 || !strings.Contains(told[0].text(watch.KeyError), damaged) {
		t.Errorf("told of the damaged record: %v, want it once", told)
	}
	d.event(watch.EventReaped, id)
	honest(t, e, d)
	await(t, "only the damaged record is left, set aside", func() bool {
		left, err := filepath.Glob(cases + "/*")
		return err == nil && slices.Equal(left, []string{damaged + ".damaged"})
	})
	d.stop()
	if told := startDaemon(t, e).records(telling(watch.EventDocketFailed)); len(told) > 0 {
		t.Errorf("told once more after a restart: %v", told)
	}
}

func TestOneDaemonPerStateDirectory(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	d.knows(id)
	r := on(t, e)
	if r.code != exitFailed || !strings.Contains(r.stderr, fmt.Sprintf("process %d", d.cmd.Process.Pid)) || !strings.Contains(r.stderr, stateOf(t)) {
		t.Errorf("a second daemon exits %d and says %q, want %d and process %d", r.code, r.stderr, exitFailed, d.cmd.Process.Pid)
	}
	for _, args := range [][]string{{"--once"}, {"--once", "--dry-run"}, {"list"}, {"explain", id}, {"failed"}} {
		if r := on(t, e, args...); r.code != exitDone {
			t.Errorf("%q beside a daemon exits %d: %s", args, r.code, r.stderr)
		}
	}
	if !e.Running(t, id) {
		t.Error("the container of a living owner does not run any more")
	}
	d.kill()
	d = startDaemon(t, e) // the lock has died with its holder
	d.knows(id)
	owner.Kill()
	d.event(watch.EventReaped, id)
}

// --once and a daemon reap the same containers at the same time, and neither trips over the other.
func TestOnceBesideADaemonThatReaps(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	var ids []string
	for range 12 {
		ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())}))
	}
	for _, id := range ids {
		d.knows(id)
	}
	d.signal(syscall.SIGSTOP)
	owner.Kill()
	once := make(chan result)
	go func() { once <- on(t, e, "--once") }()
	d.signal(syscall.SIGCONT)
	if r := <-once; r.code != exitDone {
		t.Errorf("--once exits %d: %s", r.code, r.stderr)
	}
	for _, id := range ids {
		if r := d.event(watch.EventReaped, id); r[watch.KeyAttempt] != 1.0 {
			t.Errorf("reaped in attempt %v: %v", r[watch.KeyAttempt], r)
		}
	}
	e.WaitGoneAll(t, ids...)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
}

// An attempt that cannot but fail is none: the absence of the engine gives no sandbox up.
func TestTheEngineIsKilledWhileRemovalsWait(t *testing.T) {
	e := dockertest.Start(t, dockertest.LiveRestore())
	d := startDaemon(t, e, "--config", configFile(t, impatient))
	owner := processtest.StartOwner(t)
	var ids []string
	for range 12 {
		ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())}))
	}
	for _, id := range ids {
		d.knows(id)
	}
	lost := func(r record) bool {
		return telling(watch.EventSourceLost)(r) && r.text(watch.KeySource) == "docker"
	}
	// Removals are under way when it hangs, and most wait for a worker.
	e.Pause(t)
	owner.Kill()
	await(t, "all are on record", func() bool { return len(casesOf(t)) == len(ids) })
	e.Kill(t)
	d.waitFor("the loss of the engine", lost)
	// Ten times the longest delay between attempts passes before the engine is back.
	<-time.After(2 * time.Second)
	e.Restart(t)
	for _, id := range ids {
		r := d.event(watch.EventReaped, id)
		if n := attempts(d, id); n > 1 {
			t.Errorf("%.12s was tried %d times without an engine: %v", id, n, r)
		}
	}
	if gaveUp := d.records(telling(watch.EventGaveUp)); len(gaveUp) > 0 {
		t.Errorf("given up: %v", gaveUp)
	}
	e.WaitGoneAll(t, ids...)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
}

func TestAnAlarmIsToldOncePerCrossing(t *testing.T) {
	e := dockertest.Start(t) // others' containers count as well
	d := startDaemon(t, e, "--config", configFile(t, "[alarm]\nsandboxes = 2\n"))
	owner := processtest.StartOwner(t)
	run := func() string {
		t.Helper()
		id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
		d.knows(id)
		return id
	}
	alarms := func(want ...float64) {
		t.Helper()
		await(t, fmt.Sprintf("alarms at %v sandboxes", want), func() bool {
			var got []float64
			for _, r := range d.records(telling(watch.EventAlarm)) {
				got = append(got, r[watch.KeySandboxes].(float64))
			}
			return slices.Equal(got, want)
		})
	}
	run()
	second := run()
	e.Run(t, dockertest.ContainerOptions{}) // no sandbox
	honest(t, e, d)                         // a third for a moment
	alarms(3, 2)
	third := run()
	alarms(3, 2, 3)
	run()
	alarms(3, 2, 3) // still above
	for _, id := range []string{second, third} {
		if err := e.Client().ContainerRemove(t.Context(), id, forced); err != nil {
			t.Fatal(err)
		}
	}
	alarms(3, 2, 3, 2)
}
