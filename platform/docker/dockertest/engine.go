//go:build linux

package dockertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

const (
	// patience bounds every wait. An engine under load may need a second for
	// what takes 80 ms when alone; a minute is only ever spent on a failure.
	patience = time.Minute

	// tick is the pace of what can only be polled.
	tick = 10 * time.Millisecond

	// prefix marks folders and cgroups as ours. The sweep refuses any other.
	prefix = "watchertest-"
)

// Engine is a private Docker engine. Its methods may be called from several
// goroutines, but those that start and end the daemon contradict each other.
type Engine struct {
	sort   Sort
	maker  maker
	site   site
	live   bool
	log    io.Writer
	client *client.Client
	guard  *guard
	reused bool

	image struct {
		sync.Mutex
		done bool
	}

	mu     sync.Mutex
	daemon *daemon // nil before the first start; dead after Kill and Stop
	closed bool
}

// Option changes how an engine is started.
type Option func(*Engine)

// LiveRestore lets containers live on when the daemon ends. Those of Podman do
// so in any case.
func LiveRestore() Option { return func(e *Engine) { e.live = true } }

// Reused is for an engine that several tests use in turn: what one of them has
// run is removed when it ends.
func Reused() Option { return func(e *Engine) { e.reused = true } }

// with is an engine with its options and nothing else.
func with(opts []Option) *Engine {
	e := &Engine{sort: Docker}
	for _, opt := range opts {
		opt(e)
	}
	return e
}

// Start runs an engine until the test has ended. A test is skipped without
// root, and without an engine of the sort that it wants, unless that is the
// first sort.
func Start(tb testing.TB, opts ...Option) *Engine {
	tb.Helper()
	with(opts).sort.need(tb)
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	e, err := Launch(ctx, "", testWriter{tb}, opts...)
	if err != nil {
		tb.Fatalf("dockertest: %v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("dockertest: the engine's log ends:\n%s", e.Log())
		}
		if err := e.Close(); err != nil {
			tb.Errorf("dockertest: %v", err)
		}
	})
	return e
}

// Launch runs an engine below dir (a temporary folder when empty) until Close.
// The context bounds the start only. Notes, and the end of the engine's log if
// it does not start, go to log, which may be nil.
func Launch(ctx context.Context, dir string, log io.Writer, opts ...Option) (*Engine, error) {
	if log == nil {
		log = io.Discard
	}
	e := with(opts)
	e.log = log
	var err error
	if e.maker, err = e.sort.find(); err != nil {
		return nil, err
	}
	if e.site, err = newSite(dir, e.maker); err != nil {
		return nil, err
	}
	// From here on something exists, and Close knows how to end it.
	if err := e.launch(ctx); err != nil {
		fmt.Fprintf(log, "dockertest: the engine's log ends:\n%s\n", e.Log())
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Engine) launch(ctx context.Context) (err error) {
	if e.guard, err = startGuard(e.site); err != nil {
		return err
	}
	if e.client, err = client.NewClientWithOpts(client.WithHost(e.Host()), client.WithAPIVersionNegotiation()); err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	if err := e.maker.configure(ctx, e.site); err != nil {
		return err
	}
	return e.start(ctx)
}

// Host is the engine's address, in the form of DOCKER_HOST.
func (e *Engine) Host() string { return "unix://" + e.site.socket() }

// Sort is the engine's sort.
func (e *Engine) Sort() Sort { return e.sort }

// Version is what the engine says that it is, which API it offers, and which of
// its versions our client speaks with it.
func (e *Engine) Version(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	v, err := e.client.ServerVersion(ctx)
	if err != nil || len(v.Components) == 0 {
		tb.Fatalf("dockertest: ask the engine for its version: %+v, %v", v, err)
	}
	engine := v.Components[0]
	// One that was built as a module knows its version by that alone.
	version := cmp.Or(engine.Details["ModuleVersion"], engine.Version)
	return fmt.Sprintf("%s: %s %s, API %s (spoken: %s)", e.sort, engine.Name, version, v.APIVersion, e.client.ClientVersion())
}

// Client is a client of the engine, good across restarts, closed by Close.
func (e *Engine) Client() *client.Client { return e.client }

// Dir is the folder below which all of the engine's files lie.
func (e *Engine) Dir() string { return e.site.dir }

// PID is the daemon's, 0 when it is not running.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.daemon.running() {
		return 0
	}
	return e.daemon.cmd.Process.Pid
}

// Log is the end of the engine's log, without the chatter of its gRPC.
func (e *Engine) Log() string {
	const lines, window = 40, 256 << 10
	f, err := os.Open(e.site.log())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-window), io.SeekStart)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	var kept []string
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "module=grpc") && !strings.Contains(line, "loading plugin") {
			kept = append(kept, strings.TrimSpace(line))
		}
	}
	return strings.Join(kept[max(0, len(kept)-lines):], "\n")
}

// Kill ends the daemon with SIGKILL; it has ended when Kill returns. Its
// containers live on until the next Restart.
func (e *Engine) Kill(tb testing.TB) {
	tb.Helper()
	e.end(tb, unix.SIGKILL)
}

// Stop ends the daemon with SIGTERM and waits for its end. Without LiveRestore
// it stops the containers first, which takes 10 s if one of them is deaf.
func (e *Engine) Stop(tb testing.TB) {
	tb.Helper()
	e.end(tb, unix.SIGTERM)
}

// Restart starts the daemon again, after it stopped it if it was running.
func (e *Engine) Restart(tb testing.TB) {
	tb.Helper()
	if e.PID() != 0 {
		e.end(tb, unix.SIGTERM)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	if err := e.start(ctx); err != nil {
		tb.Fatalf("dockertest: %v", err)
	}
}

// Pause stops the daemon with SIGSTOP: it still accepts connections (the kernel
// does) and answers none. Every thread has halted when Pause returns.
func (e *Engine) Pause(tb testing.TB) {
	tb.Helper()
	if err := e.running().halt(); err != nil {
		tb.Fatalf("dockertest: pause the engine: %v", err)
	}
}

// Resume ends a Pause.
func (e *Engine) Resume(tb testing.TB) {
	tb.Helper()
	if err := e.running().resume(); err != nil {
		tb.Fatalf("dockertest: resume the engine: %v", err)
	}
}

// Close ends the engine and whatever it left: processes, mounts, cgroups,
// files. It does not ask the engine for help, so that it works the same when
// that is paused, stuck or dead. Calling it again does nothing.
func (e *Engine) Close() error {
	e.mu.Lock()
	closed, d := e.closed, e.daemon
	e.closed = true
	e.mu.Unlock()
	if closed {
		return nil
	}
	if e.client != nil {
		_ = e.client.Close()
	}
	var errs []error
	if d.running() {
		if err := d.signal(unix.SIGKILL); err != nil {
			errs = append(errs, fmt.Errorf("kill the engine: %w", err))
		}
	}
	errs = append(errs, e.site.sweep())
	if e.guard != nil {
		errs = append(errs, e.guard.release())
	}
	if d != nil {
		<-d.done // dead, or the sweep has failed and said so
	}
	return errors.Join(errs...)
}

// running is the daemon, or one that has ended if there is none.
func (e *Engine) running() *daemon {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.daemon
}

func (e *Engine) end(tb testing.TB, sig unix.Signal) {
	tb.Helper()
	d := e.running()
	if err := d.signal(sig); err != nil {
		tb.Fatalf("dockertest: %v to the engine: %v", sig, err)
	}
	select {
	case <-d.done:
	case <-time.After(patience):
		tb.Fatalf("dockertest: the engine did not end of %v within %v", sig, patience)
	}
}

// start runs the daemon and waits until it answers.
func (e *Engine) start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return errors.New("start the engine: the engine was closed")
	case e.daemon.running():
		return errors.New("start the engine: it is running")
	}
	// After a SIGKILL these name processes that are dead, but perhaps not yet
	// reaped by PID 1, or whose number somebody else has by now. dockerd takes
	// either for a living one, and would refuse to start, or wait for it.
	for _, stale := range []string{e.site.pidfile(), filepath.Join(e.site.execRoot(), "containerd", "containerd.pid")} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a stale pidfile: %w", err)
		}
	}
	d, err := startDaemon(e.site, e.maker.command(e.site, e.live))
	if err != nil {
		return err
	}
	e.daemon = d

	beat := time.NewTicker(tick)
	defer beat.Stop()
	for {
		_, err := e.client.Ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("start the engine: %w", cmp.Or(d.err, errors.New("it ended at once")))
		case <-ctx.Done():
			return fmt.Errorf("wait for the engine: %w (last answer: %w)", ctx.Err(), err)
		case <-beat.C:
		}
	}
}

// daemon is one run of an engine. Only its own goroutine waits for it.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; read after done
}

func startDaemon(s site, cmd *exec.Cmd) (*daemon, error) {
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the engine's log: %w", err)
	}
	defer log.Close()
	group, err := os.Open(s.cgroup("engine"))
	if err != nil {
		return nil, fmt.Errorf("open the engine's cgroup: %w", err)
	}
	defer group.Close()

	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = log, log // a file, no pipe: Wait must not wait for containerd
	cmd.SysProcAttr = &unix.SysProcAttr{
		Setsid:      true, // Ctrl-C at the terminal is for the program, which then closes us
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
		// Bridges that a test makes vanish with the namespace. An engine that
		// was restarted makes them anew.
		Cloneflags: unix.CLONE_NEWNET,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	d := &daemon{cmd: cmd, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

func (d *daemon) running() bool {
	if d == nil {
		return false
	}
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// signal goes through the pidfd that os.Process holds.
func (d *daemon) signal(sig unix.Signal) error {
	if d == nil {
		return os.ErrProcessDone
	}
	return d.cmd.Process.Signal(sig)
}

func (d *daemon) halt() error   { return d.change(unix.SIGSTOP, unix.WSTOPPED) }
func (d *daemon) resume() error { return d.change(unix.SIGCONT, unix.WCONTINUED) }

// change signals and waits until the whole process has followed. The wait
// asks for this change only and takes nothing away from the goroutine that
// waits for the end; should that come first, there is no child any more.
func (d *daemon) change(sig unix.Signal, what int) error {
	if err := d.signal(sig); err != nil {
		return err
	}
	for {
		err := unix.Waitid(unix.P_PID, d.cmd.Process.Pid, nil, what, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("NOT RUN: needs a real Docker engine, and starting one needs root")
	}
}

// testWriter lets Launch speak through a test's log.
type testWriter struct{ tb testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.tb.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
