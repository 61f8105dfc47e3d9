//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// child is how every process here is started that is not ended by waiting for it. Its process group is its own, so that
// Ctrl-C at the terminal ends the demonstration, which then ends it; and it does not outlive us.
func child(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	return cmd
}

// owners are the processes that own containers.
type owners struct{ started []*owner }

type owner struct {
	cmd  *exec.Cmd
	dead bool
}

func newOwners() *owners { return &owners{} }

// start starts a process that does nothing but live.
func (os *owners) start() (*owner, error) {
	cmd := child(exec.Command("sleep", "infinity"))
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start an owner: %w", err)
	}
	o := &owner{cmd: cmd}
	os.started = append(os.started, o)
	return o, nil
}

// end ends those that still live.
func (os *owners) end() error {
	var errs []error
	for _, o := range os.started {
		if !o.dead {
			errs = append(errs, o.kill())
		}
	}
	for _, o := range os.started {
		// That it was killed is what was wanted, and the only error there can be.
		_ = o.cmd.Wait()
	}
	return errors.Join(errs...)
}

func (o *owner) pid() int { return o.cmd.Process.Pid }

func (o *owner) kill() error {
	o.dead = true
	if err := o.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill owner %d: %w", o.pid(), err)
	}
	return nil
}

// ownerLabel asks watcher how to name a process as owner, as anybody would: docker run $(watcher labels --pid PID) IMAGE
func ownerLabel(ctx context.Context, program string, engine *dockertest.Engine, pid int) (string, error) {
	cmd := exec.CommandContext(ctx, program, "labels", "--pid", strconv.Itoa(pid), "--docker-host", engine.Host())
	answer, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return "", fmt.Errorf("watcher labels: %w: %s", err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("watcher labels: %w", err)
	}
	value, ok := strings.CutPrefix(strings.TrimSpace(string(answer)), "--label "+watch.LabelOwner+"=")
	if !ok {
		return "", fmt.Errorf("watcher labels printed %q", answer)
	}
	return value, nil
}

// A record is what matters here of a line of watcher's log.
type record struct {
	Event, ID, Reason string
	StopUS            micros `json:"stop_us"`
	GoneUS            micros `json:"gone_us"`
}

// micros is a duration in a record.
type micros int64

func (m micros) duration() time.Duration { return time.Duration(m) * time.Microsecond }
func (m micros) String() string          { return inMS(m.duration()) }

// watcher is watcher as a process of its own.
type watcher struct {
	cmd     *exec.Cmd
	records chan record
	quit    chan struct{} // closed when nobody reads records any more
	drained chan struct{} // closed when its log has ended
	last    []string      // the end of its log; read after drained
}

// watcherEnds is how long watcher may take to end when asked to. What it was removing goes with the engine anyway.
const watcherEnds = 5 * time.Second

func startWatcher(program string, engine *dockertest.Engine) (*watcher, error) {
	cmd := child(exec.Command(program,
		"--docker-host", engine.Host(), "--state-dir", engine.Dir()+"/state",
		"--config", "/dev/null", // the defaults, whatever this machine has configured
		"--log-format", "json", "--log-level", "debug"))
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start watcher: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start watcher: %w", err)
	}
	w := &watcher{cmd: cmd, records: make(chan record), quit: make(chan struct{}), drained: make(chan struct{})}
	go w.follow(log)
	return w, nil
}

// follow reads the log to its end.
func (w *watcher) follow(log io.Reader) {
	const keep, longest = 10, 1 << 20
	defer close(w.drained)
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, longest)
	for lines.Scan() {
		w.last = append(w.last[max(0, len(w.last)-keep+1):], lines.Text())
		var r record
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue // its last words, should it end with an error
		}
		select {
		case w.records <- r:
		case <-w.quit:
		}
	}
}

// await returns the next record that matches.
func (w *watcher) await(ctx context.Context, match func(record) bool) (record, error) {
	for {
		select {
		case r := <-w.records:
			if match(r) {
				return r, nil
			}
		case <-w.drained:
			return record{}, fmt.Errorf("watcher has ended; its last words:\n%s", strings.Join(w.last, "\n"))
		case <-ctx.Done():
			return record{}, fmt.Errorf("wait for watcher: %w", context.Cause(ctx))
		}
	}
}

// awaitEach waits for a matching record about each of some sandboxes, and calls then with it.
func (w *watcher) awaitEach(ctx context.Context, some []*sandbox, match func(record) bool, then func(*sandbox, record)) error {
	missing := map[string]*sandbox{}
	for _, s := range some {
		missing[s.id] = s
	}
	for len(missing) > 0 {
		r, err := w.await(ctx, func(r record) bool { return missing[r.ID] != nil && match(r) })
		if err != nil {
			return err
		}
		then(missing[r.ID], r)
		delete(missing, r.ID)
	}
	return nil
}

// stop ends watcher as systemd would: SIGTERM, and SIGKILL if that is not heard.
func (w *watcher) stop() error {
	close(w.quit)
	overdue := time.AfterFunc(watcherEnds, func() { _ = w.cmd.Process.Kill() })
	defer overdue.Stop()
	// If it has ended already, Wait tells how.
	_ = w.cmd.Process.Signal(unix.SIGTERM)
	<-w.drained
	err := w.cmd.Wait()
	if status := w.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == unix.SIGTERM {
		return nil // it had not got to the point of catching it
	}
	if err != nil {
		return fmt.Errorf("end watcher: %w", err)
	}
	return nil
}
