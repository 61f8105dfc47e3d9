package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"watcher/platform/docker/dockertest"
	"watcher/platform/gomicrovm/gomicrovmtest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// asProgram makes the test binary behave as the program, so that what is tested is built like the tests: with the race
// detector where they are.
const asProgram = "WATCHER_TEST_MAIN"

// crashAt names the boundary at which the program ends as by SIGKILL, and how often it must be reached for that: stopped/1.
const crashAt = "WATCHER_TEST_CRASH_AT"

// lifelineAt names the descriptor that the program reads until the tests end, however they do: then it ends too.
const lifelineAt = "WATCHER_TEST_LIFELINE"

// noPidfds has the program run as on a kernel before Linux 5.3.
const noPidfds = "WATCHER_TEST_NO_PIDFDS"

// stateVariable has the commands of a test share a state directory of its own.
const stateVariable = "STATE_DIRECTORY"

func TestMain(m *testing.M) {
	processtest.Main()
	gomicrovmtest.Main()
	if os.Getenv(asProgram) != "" {
		if os.Getenv(lifelineAt) != "" {
			go func() {
				_, _ = os.NewFile(3, "lifeline").Read(make([]byte, 1))
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}()
		}
		if at, times, ok := strings.Cut(os.Getenv(crashAt), "/"); ok {
			n, err := strconv.ParseInt(times, 10, 64)
			if err != nil {
				panic(err)
			}
			var reached atomic.Int64
			boundary = func(b reap.Boundary) {
				if string(b) == at && reached.Add(1) == n {
					// As hard as the kernel's own: nothing is flushed, nobody is told.
					_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
					select {}
				}
			}
		}
		if os.Getenv(noPidfds) != "" {
			if err := processtest.WithoutPidfds(); err != nil {
				panic(err)
			}
		}
		main()
	}
	os.Exit(dockertest.Main(m))
}

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

// program is watcher as a process, not started yet. It dies with the tests.
func program(tb testing.TB, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "NO_COLOR=1", "DOCKER_HOST=", "JOURNAL_STREAM=", "NOTIFY_SOCKET=",
		"GORACE=atexit_sleep_ms=50", // not a second at the end of each command
		stateVariable+"="+stateOf(tb), lifelineAt+"=3")
	cmd.ExtraFiles = []*os.File{lifeline()}
	return cmd
}

// lifeline is the end to read of a pipe whose other end is ours alone.
var lifeline = sync.OnceValue(func() *os.File {
	read, write, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	lifelineHeld = write
	return read
})

// lifelineHeld is kept from being collected, and closed with us.
var lifelineHeld *os.File

// stateOf is the state directory that all programs of a test share.
func stateOf(tb testing.TB) string {
	stateDirs.Lock()
	defer stateDirs.Unlock()
	if stateDirs.of == nil {
		stateDirs.of = map[string]string{}
	}
	dir, ok := stateDirs.of[tb.Name()]
	if !ok {
		dir = tb.TempDir()
		stateDirs.of[tb.Name()] = dir
		tb.Cleanup(func() {
			stateDirs.Lock()
			defer stateDirs.Unlock()
			delete(stateDirs.of, tb.Name())
		})
	}
	return dir
}

var stateDirs struct {
	sync.Mutex
	of map[string]string // by test
}

// result is what a finished command left.
type result struct {
	stdout, stderr string
	code           int
}

// command runs watcher to its end.
func command(tb testing.TB, args ...string) result {
	tb.Helper()
	cmd := program(tb, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatalf("watcher %s: %v", strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// on runs a command against an engine.
func on(tb testing.TB, e *dockertest.Engine, args ...string) result {
	tb.Helper()
	return command(tb, append(args, "--docker-host", e.Host())...)
}

// rowsOf runs a command against an engine with -o json, and returns its rows by container ID.
func rowsOf(tb testing.TB, e *dockertest.Engine, args ...string) map[string]row {
	tb.Helper()
	r := on(tb, e, append(args, "-o", "json")...)
	var rows []row
	if err := json.Unmarshal([]byte(r.stdout), &rows); err != nil {
		tb.Fatalf("watcher %s: %v\n%s%s", strings.Join(args, " "), err, r.stdout, r.stderr)
	}
	byID := map[string]row{}
	for _, row := range rows {
		byID[row.ID] = row
	}
	return byID
}

// A record is one line of the daemon's log.
type record map[string]any

func (r record) text(key string) string {
	s, _ := r[key].(string)
	return s
}

// micros is a duration that the daemon measured; false if the record has none.
func (r record) micros(key string) (time.Duration, bool) {
	us, ok := r[key].(float64)
	return time.Duration(us) * time.Microsecond, ok
}

// A daemon is watcher as it runs until it is told to stop, and its log so far.
type daemon struct {
	tb  testing.TB
	cmd *exec.Cmd

	mu      sync.Mutex
	log     []record
	raw     strings.Builder
	changed chan struct{} // closed and made anew with every record
	ended   chan struct{}
}

// startDaemon starts watcher on an engine and waits until its first full scan is done.
func startDaemon(tb testing.TB, e *dockertest.Engine, args ...string) *daemon {
	tb.Helper()
	d := launchDaemon(tb, program(tb, append([]string{"--docker-host", e.Host()}, args...)...))
	d.waitFor("a first full scan", telling(watch.EventScan))
	return d
}

// startCrashing is startDaemon for a daemon that is killed as soon as it reaches a boundary.
func startCrashing(tb testing.TB, e *dockertest.Engine, at reap.Boundary, args ...string) *daemon {
	tb.Helper()
	return startCrashingLater(tb, e, at, 1, args...)
}

// startCrashingLater is startCrashing for a daemon that is killed when it reaches a boundary for the nth time.
func startCrashingLater(tb testing.TB, e *dockertest.Engine, at reap.Boundary, n int, args ...string) *daemon {
	tb.Helper()
	cmd := program(tb, append([]string{"--docker-host", e.Host()}, args...)...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s/%d", crashAt, at, n))
	return launchDaemon(tb, cmd)
}

func launchDaemon(tb testing.TB, cmd *exec.Cmd) *daemon {
	tb.Helper()
	cmd.Args = append(cmd.Args, "--log-format", "json", "--log-level", "debug")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	d := &daemon{tb: tb, cmd: cmd, changed: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(d.ended)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			d.take(lines.Bytes())
		}
	}()
	tb.Cleanup(func() {
		// The process is our child and not waited for yet, so its PID is still its own.
		_ = cmd.Process.Kill()
		<-d.ended
		_ = cmd.Wait()
		if tb.Failed() {
			tb.Logf("the log of watcher:\n%s", d.raw.String())
		}
		if strings.Contains(d.raw.String(), "DATA RACE") {
			tb.Errorf("a race in watcher:\n%s", d.raw.String())
		}
	})
	return d
}

func (d *daemon) take(line []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.raw.Write(line)
	d.raw.WriteByte('\n')
	var r record
	if json.Unmarshal(line, &r) == nil {
		d.log = append(d.log, r)
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// records returns the records so far that match.
func (d *daemon) records(match func(record) bool) []record {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []record
	for _, r := range d.log {
		if match(r) {
			found = append(found, r)
		}
	}
	return found
}

// waitFor waits until a record matches and returns the first.
func (d *daemon) waitFor(what string, match func(record) bool) record {
	d.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		d.mu.Lock()
		changed := d.changed
		d.mu.Unlock()
		if found := d.records(match); len(found) > 0 {
			return found[0]
		}
		select {
		case <-changed:
		case <-d.ended:
			if found := d.records(match); len(found) > 0 {
				return found[0]
			}
			d.tb.Fatalf("watcher ended without %s", what)
		case <-ctx.Done():
			d.tb.Fatalf("watcher did not tell of %s within %s", what, patience)
		}
	}
}

// telling matches the records of an event.
func telling(event string) func(record) bool {
	return func(r record) bool { return r.text(watch.KeyEvent) == event }
}

// event waits for a record of that event about that container.
func (d *daemon) event(event, id string) record {
	d.tb.Helper()
	return d.waitFor(fmt.Sprintf("%s of %.12s", event, id), about(event, id))
}

func about(event, id string) func(record) bool {
	return func(r record) bool { return r.text(watch.KeyEvent) == event && r.text(watch.KeyID) == id }
}

// knows waits until the daemon has judged that a container's owner lives.
func (d *daemon) knows(id string) {
	d.tb.Helper()
	d.waitFor(fmt.Sprintf("the living owner of %.12s", id), func(r record) bool {
		return r.text(watch.KeyID) == id && r.text(watch.KeyReason) == string(reap.OwnerAlive)
	})
}

// crashed waits until the daemon has been ended by SIGKILL.
func (d *daemon) crashed() {
	d.tb.Helper()
	d.wait()
	if ws := d.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		d.tb.Fatalf("watcher ended with %v, want a SIGKILL", d.cmd.ProcessState)
	}
}

// stop ends the daemon in order and returns its exit code.
func (d *daemon) stop() int {
	d.tb.Helper()
	d.signal(syscall.SIGTERM)
	return d.wait()
}

func (d *daemon) signal(sig syscall.Signal) {
	d.tb.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.tb.Fatalf("send %s to watcher: %v", sig, err)
	}
}

// kill ends the daemon as a crash would.
func (d *daemon) kill() {
	d.tb.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.tb.Fatalf("kill watcher: %v", err)
	}
	d.wait()
}

func (d *daemon) wait() int {
	d.tb.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.tb.Fatalf("watcher did not end within %s", patience)
	}
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

// ownedBy is the label that names an owner.
func ownedBy(owner string) map[string]string { return map[string]string{watch.LabelOwner: owner} }

// forced is how a test removes a container at once.
var forced = container.RemoveOptions{Force: true}

// casesOf are the reaps that the docket of a test holds, by container ID.
func casesOf(tb testing.TB) map[string]reap.Case {
	tb.Helper()
	return casesIn(tb, stateOf(tb))
}

// casesIn reads the files and not through the docket, which shows only what is of its own engine.
func casesIn(tb testing.TB, stateDir string) map[string]reap.Case {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(stateDir, "cases", "*.json"))
	if err != nil {
		tb.Fatal(err)
	}
	byID := map[string]reap.Case{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		var c reap.Case
		if err := errors.Join(err, json.Unmarshal(text, &c)); err != nil {
			tb.Errorf("a record on disk: %v", err)
		}
		byID[c.ID] = c
	}
	return byID
}

// await waits until a condition holds that nothing tells of.
func await(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			tb.Fatalf("not within %s: %s", patience, what)
		}
		<-beat.C
	}
}

// A life is one run of a container.
type life struct {
	pid, restarts int
	started       string
}

// lifeOf returns the run of a container; the zero life if it does not run.
func lifeOf(tb testing.TB, e *dockertest.Engine, id string) life {
	tb.Helper()
	c, ok := e.Inspect(tb, id)
	if !ok || !c.State.Running {
		return life{}
	}
	return life{c.State.Pid, c.RestartCount, c.State.StartedAt}
}

// configFile writes a configuration.
func configFile(tb testing.TB, text string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "watcher.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}
