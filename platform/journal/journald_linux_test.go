package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"watcher/watch"
)

// The stories in this file are played on a real journald, each on its own. The test starts itself again in new mount
// and PID namespaces: there /run is empty and private, and the test is PID 1, with whose end the kernel ends journald
// and takes the mounts away, however the test ends.

const insideEnv = "WATCHER_TEST_INSIDE"

// inside says whether this process is the one in the namespaces. If not, it plays the story there and reports.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a mount namespace")
	}
	needSystemd(t, "systemd-journald")
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID,
		Unshareflags: unix.CLONE_NEWNS, // with it Go makes every mount private
		Pdeathsig:    unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	// A pattern that matches nothing passes too.
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("inside: %v\n%s", err, out)
	}
	return false
}

// journald is a running systemd-journald.
type journald struct {
	cmd *exec.Cmd
}

// prepare makes the place for a journald; there is none yet.
func prepare(t *testing.T) {
	t.Helper()
	if os.Getpid() != 1 {
		t.Fatal("not in a PID namespace of our own")
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatalf("mount /proc: %v", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatalf("mount /run: %v", err)
	}
	const conf = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitBurst=0\nSeal=no\n"
	const dir = "/run/systemd/journald.conf.d"
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "test.conf"), []byte(conf), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func startJournald(t *testing.T) *journald {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), needSystemd(t, "systemd-journald"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // also ends a stopped one
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("unixgram", socketPath)
		if err == nil {
			conn.Close()
			return &journald{cmd}
		}
		if time.Now().After(deadline) {
			t.Fatalf("journald does not open its socket: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (j *journald) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := j.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("send %v to journald: %v", sig, err)
	}
}

// pause stops journald and returns when it has stopped.
func (j *journald) pause(t *testing.T) {
	t.Helper()
	j.signal(t, unix.SIGSTOP)
	var status unix.WaitStatus
	if _, err := unix.Wait4(j.cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("journald has not stopped: %v, status %#x", err, status)
	}
}

// end ends journald as a restart of its unit would.
func (j *journald) end(t *testing.T) {
	t.Helper()
	j.signal(t, unix.SIGTERM)
	_ = j.cmd.Wait()
}

// entries returns what the journal has from us, in order. A field that occurs twice has a []any.
func entries(t *testing.T, match ...string) []map[string]any {
	t.Helper()
	journalctl := needSystemd(t, "journalctl")
	if out, err := exec.Command(journalctl, "--sync").CombinedOutput(); err != nil {
		t.Fatalf("journalctl --sync: %v\n%s", err, out)
	}
	args := append([]string{"--directory=/run/log/journal", "--output=json", "--all", "--quiet", "SYSLOG_IDENTIFIER=watcher"}, match...)
	out, err := exec.Command(journalctl, args...).Output()
	if err != nil {
		t.Fatalf("journalctl: %v", err)
	}
	var list []map[string]any
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var e map[string]any
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("journalctl's output: %v", err)
		}
		list = append(list, e)
	}
	return list
}

func openJournal(t *testing.T) *Log {
	t.Helper()
	l, err := Open(Journal, slog.LevelInfo, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestJournalFields(t *testing.T) {
	if !inside(t) {
		return
	}
	prepare(t)
	if l, err := Open(Journal, nil, os.Stderr); err == nil || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "journald") {
		t.Fatalf("without a journald Open says %v, %v", l, err)
	}
	startJournald(t)
	l := openJournal(t)

	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	large := strings.Repeat("0123456789\n", 100_000) // more than a datagram takes
	l.Debug("below the level")
	l.Warn("two\nlines", watch.KeyEvent, watch.EventReapFailed, watch.KeyKind, watch.Container, watch.KeyID, id,
		watch.KeyName, "agent-1", watch.KeyImage, "img:1", watch.KeyAttempt, 3, watch.KeyError, fmt.Errorf("remove: %w", unix.EBUSY),
		keyUnit, "owner.service", "odd key!", "x", "same", 1, "same", 2)
	l.WithGroup("g").Info("large", "value", large)
	closeLog(t, l)

	got := entries(t)
	if len(got) != 2 {
		t.Fatalf("%d entries, want 2: %v", len(got), got)
	}
	want := map[string]any{
		"MESSAGE":             "two\nlines",
		"PRIORITY":            "4",
		"SYSLOG_IDENTIFIER":   "watcher",
		"MESSAGE_ID":          messageIDs[watch.EventReapFailed],
		"ERRNO":               "16",
		"OBJECT_SYSTEMD_UNIT": "owner.service",
		"CONTAINER_ID":        id[:12],
		"CONTAINER_ID_FULL":   id,
		"CONTAINER_NAME":      "agent-1",
		"IMAGE_NAME":          "img:1",
		"WATCHER_EVENT":       "reap-failed",
		"WATCHER_KIND":        "container",
		"WATCHER_ID":          id,
		"WATCHER_NAME":        "agent-1",
		"WATCHER_IMAGE":       "img:1",
		"WATCHER_ATTEMPT":     "3",
		"WATCHER_ERROR":       "remove: device or resource busy",
		"WATCHER_ODD_KEY_":    "x",
		"WATCHER_SAME":        []any{"1", "2"},
		"_TRANSPORT":          "journal",
		"_PID":                "1",
	}
	have := make(map[string]any)
	for k, v := range got[0] {
		if _, ok := want[k]; ok || !strings.HasPrefix(k, "_") && k != "WATCHER_TIME" {
			have[k] = v
		}
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
	if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(got[0]["WATCHER_TIME"])); err != nil {
		t.Error(err)
	}
	if got[1]["WATCHER_G_VALUE"] != large {
		t.Errorf("the large value arrived with %d bytes, want %d", len(fmt.Sprint(got[1]["WATCHER_G_VALUE"])), len(large))
	}
	if n := len(entries(t, "MESSAGE_ID="+messageIDs[watch.EventReapFailed])); n != 1 {
		t.Errorf("%d entries by MESSAGE_ID", n)
	}
	if n := len(entries(t, "--unit=owner.service")); n != 1 {
		t.Errorf("%d entries in the log of the owner's unit", n)
	}
}

// J1, J2, J5
func TestJournalStopped(t *testing.T) {
	if !inside(t) {
		return
	}
	prepare(t)
	j := startJournald(t)
	l := openJournal(t)
	j.pause(t)

	const calls = 5000
	var slowest time.Duration
	for i := range calls {
		began := time.Now()
		l.Info("record", "i", i)
		slowest = max(slowest, time.Since(began))
	}
	// What a garbage collection on a busy machine may take; a wait for journald would have no end.
	if slowest > time.Second {
		t.Errorf("the slowest of %d calls with journald stopped took %v", calls, slowest)
	}
	if l.Dropped() == 0 {
		t.Error("nothing was dropped, so the queue was never full")
	}

	// Waiting for journald is idle waiting. go-systemd's Send uses a whole core here.
	before, began := cpuTime(t), time.Now()
	<-time.After(500 * time.Millisecond)
	if used, of := cpuTime(t)-before, time.Since(began); used > of/4 {
		t.Errorf("waiting for journald took %v of CPU time in %v", used, of)
	}

	j.signal(t, unix.SIGCONT)
	closeLog(t, l)
	var written, dropped uint64
	for _, e := range entries(t) {
		switch {
		case e["WATCHER_EVENT"] == EventDropped:
			var n uint64
			if _, err := fmt.Sscan(fmt.Sprint(e["WATCHER_COUNT"]), &n); err != nil {
				t.Error(err)
			}
			if e["MESSAGE_ID"] != messageIDs[EventDropped] || e["WATCHER_LEVELS_INFO"] != e["WATCHER_COUNT"] {
				t.Errorf("the entry about dropped records is %v", e)
			}
			dropped += n
		default:
			if e["WATCHER_I"] != fmt.Sprint(written) {
				t.Fatalf("record %v is in place %d", e["WATCHER_I"], written)
			}
			written++
		}
	}
	if dropped != l.Dropped() || written+dropped != calls {
		t.Errorf("%d records written and %d told dropped of %d", written, dropped, calls)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The log goes on through a restart of journald, and what is logged while there is none arrives later.
func TestJournalRestarted(t *testing.T) {
	if !inside(t) {
		return
	}
	prepare(t)
	j := startJournald(t)
	l := openJournal(t)
	l.Info("before")
	if n := len(entries(t)); n != 1 {
		t.Fatalf("%d entries before the restart", n)
	}
	j.end(t)
	j = startJournald(t)
	l.Info("after a restart")

	for deadline := time.Now().Add(20 * time.Second); len(entries(t)) < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the first record after the restart does not arrive")
		}
	}
	j.end(t)
	// Above, the path led to a socket that nobody holds; here it leads nowhere.
	if err := os.Remove(socketPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l.Info("while there is none")
	startJournald(t)
	l.Info("after that")
	closeLog(t, l)

	var got []string
	for _, e := range entries(t) {
		got = append(got, fmt.Sprint(e["MESSAGE"]))
	}
	if want := []string{"before", "after a restart", "while there is none", "after that"}; !slices.Equal(got, want) {
		t.Errorf("the journal has %q, want %q", got, want)
	}
}

// A journald that dies while a record waits for it must wake the writer.
func TestJournalKilledWhileStopped(t *testing.T) {
	if !inside(t) {
		return
	}
	prepare(t)
	j := startJournald(t)
	l := openJournal(t)
	j.pause(t)
	const calls = 1000
	for i := range calls {
		l.Info("record", "i", i)
	}
	j.signal(t, unix.SIGKILL)
	_ = j.cmd.Wait()
	startJournald(t)
	closeLog(t, l)
	// What the kernel held for the dead journald is lost with its socket. The rest arrives in order, up to the last.
	got := entries(t)
	held := calls - len(got)
	if qlen := dgramQueue(t); held < 0 || held > qlen+1 {
		t.Errorf("%d of %d records are missing; the dead journald's queue held at most %d", held, calls, qlen+1)
	}
	for n, e := range got {
		if want := fmt.Sprint(held + n); e["WATCHER_I"] != want {
			t.Fatalf("entry %d is record %v, want %s", n, e["WATCHER_I"], want)
		}
	}
}

func dgramQueue(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/unix/max_dgram_qlen")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(text), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// J5
func TestCloseWithJournalStopped(t *testing.T) {
	if !inside(t) {
		return
	}
	prepare(t)
	j := startJournald(t)
	l := openJournal(t)
	j.pause(t)
	const calls = 100
	for i := range calls {
		l.Info("record", "i", i)
	}
	const bound = 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	began := time.Now()
	err := l.Close(ctx)
	if d := time.Since(began); d > bound+2*time.Second { // the slack is for a busy machine
		t.Errorf("Close took %v, its bound is %v", d, bound)
	}
	var unwritten *UnwrittenError
	if !errors.As(err, &unwritten) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Close says %v", err)
	}
	select {
	case <-l.queue.done: // closing the socket wakes the writer, so nothing is left behind
	case <-time.After(sendLimit / 2): // after sendLimit it would wake by itself
		t.Error("the writer is still there")
	}
	j.signal(t, unix.SIGCONT)
	if n := uint64(len(entries(t))); n+unwritten.Records != calls {
		t.Errorf("%d records in the journal and %d left of %d", n, unwritten.Records, calls)
	}
}

// J4: under systemd standard error leads to the journal already; a record goes there by one way only.
func TestAutoUnderSystemd(t *testing.T) {
	if !inside(t) {
		return
	}
	prepare(t)
	startJournald(t)

	conn, err := net.Dial("unix", "/run/systemd/journal/stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// What systemd sends when it opens the stream for a unit: identifier, unit, priority, level prefix, forwards.
	if _, err := conn.Write([]byte("watcher\nwatcher.service\n6\n1\n0\n0\n0\n")); err != nil {
		t.Fatal(err)
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	saved, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(int(file.Fd()), 2, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Dup3(saved, 2, 0) })

	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	l, err := Open(Auto, nil, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if l.Format() != Journal {
		t.Errorf("the format is %s", l.Format())
	}
	l.Info("started", watch.KeyEvent, watch.EventStarted)
	closeLog(t, l)

	// A child's JOURNAL_STREAM is inherited while its standard error goes elsewhere.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if other, err := Open(Auto, nil, w); err != nil || other.Format() != JSON {
		t.Errorf("standard error elsewhere: %v, %v", other.Format(), err)
	} else {
		closeLog(t, other)
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1))
	if other, err := Open(Auto, nil, os.Stderr); err != nil || other.Format() != JSON {
		t.Errorf("another stream: %v, %v", other.Format(), err)
	} else {
		closeLog(t, other)
	}
	t.Setenv("JOURNAL_STREAM", "nonsense")
	if other, err := Open(Auto, nil, os.Stderr); err != nil || other.Format() != JSON {
		t.Errorf("a malformed stream: %v, %v", other.Format(), err)
	} else {
		closeLog(t, other)
	}

	got := entries(t)
	if len(got) != 1 || got[0]["_TRANSPORT"] != "journal" || got[0]["MESSAGE_ID"] != messageIDs[watch.EventStarted] {
		t.Errorf("the journal has %v", got)
	}
}
