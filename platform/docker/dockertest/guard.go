//go:build linux

package dockertest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

// A guard cleans up when its parent cannot: after a SIGKILL, a panic, a test's
// timeout. A parent-death signal for dockerd would not do. It is sent when the
// starting thread ends, not the process, and it would leave shims, containers,
// mounts and cgroups behind.
//
// The guard is this same program, started anew. It holds the reading end of a
// pipe whose only writing end is its parent's; the kernel closes that in every
// case.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

const guardVariable = "WATCHER_DOCKERTEST_GUARD"

// orders is what a guard is told, in one line of JSON.
type orders struct{ Dir, Group, Unified string }

// The guard must work in any program that imports the package, a test without
// a TestMain as well. So this, before anything else runs, is where it begins.
func init() {
	if os.Getenv(guardVariable) != "" {
		os.Exit(standGuard())
	}
}

func startGuard(s site) (*guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"dockertest-guard", s.group}
	// A race-enabled binary would linger for a second before it exits.
	cmd.Env = append(os.Environ(), guardVariable+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	// Whoever kills the parent's process group does not mean the guard.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g := &guard{cmd: cmd, pipe: pipe}
	if err := json.NewEncoder(pipe).Encode(orders{s.dir, s.group, s.unified}); err != nil {
		return nil, errors.Join(fmt.Errorf("instruct the guard: %w", err), g.release())
	}
	return g, nil
}

// release lets the guard make its round, with nothing left to find, and go.
func (g *guard) release() error {
	_ = g.pipe.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("the guard: %w", err)
	}
	return nil
}

func standGuard() int {
	// A broken pipe at standard error would end us in the middle of the work.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return 0 // the parent died before there was anything to guard
	}
	var o orders
	if err := json.Unmarshal(line, &o); err != nil {
		fmt.Fprintf(os.Stderr, "dockertest guard: read orders: %v\n", err)
		return 1
	}
	_, _ = io.Copy(io.Discard, in)
	if err := (site{dir: o.Dir, group: o.Group, unified: o.Unified}).sweep(); err != nil {
		fmt.Fprintf(os.Stderr, "dockertest guard: %v\n", err)
		return 1
	}
	return 0
}
