//go:build linux

package dockertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// ContainerOptions say what Run makes. The zero value is a container that runs
// and sleeps, and ends at once on SIGTERM.
type ContainerOptions struct {
	Name       string
	Labels     map[string]string
	Args       []string // see the command in folder sandbox
	AutoRemove bool
	Restart    container.RestartPolicyMode
	PIDMode    container.PidMode // "host", "container:…"
	Volumes    []string          // where an anonymous volume each is mounted
	NotStarted bool              // only created
	Paused     bool
}

// Run makes a container without a network and returns its full ID. On a shared
// or reused engine it is removed when the test has ended.
func (e *Engine) Run(tb testing.TB, opts ContainerOptions) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	id, err := e.Create(ctx, opts)
	if id != "" && e.reused {
		tb.Cleanup(func() { e.remove(tb, id) })
	}
	if err != nil {
		tb.Fatalf("dockertest: %v", err)
	}
	return id
}

// Create is Run for those without a test. An ID beside an error is that of a
// container which was made and did not start.
func (e *Engine) Create(ctx context.Context, opts ContainerOptions) (id string, err error) {
	image, err := e.Import(ctx)
	if err != nil {
		return "", err
	}
	config := &container.Config{Image: image, Cmd: opts.Args, Labels: opts.Labels, Volumes: map[string]struct{}{}}
	for _, path := range opts.Volumes {
		config.Volumes[path] = struct{}{}
	}
	made, err := e.client.ContainerCreate(ctx, config, &container.HostConfig{
		AutoRemove:    opts.AutoRemove,
		NetworkMode:   "none",
		PidMode:       opts.PIDMode,
		RestartPolicy: container.RestartPolicy{Name: opts.Restart},
		Resources:     container.Resources{CgroupParent: e.maker.parent(e.site)},
	}, nil, nil, opts.Name)
	if err != nil {
		return "", fmt.Errorf("create a container: %w", err)
	}
	if opts.NotStarted {
		return made.ID, nil
	}
	if err := e.client.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		return made.ID, fmt.Errorf("start container %.12s: %w", made.ID, err)
	}
	if opts.Paused {
		if err := e.client.ContainerPause(ctx, made.ID); err != nil {
			return made.ID, fmt.Errorf("pause container %.12s: %w", made.ID, err)
		}
	}
	return made.ID, nil
}

// Inspect is what the engine says of a container; false if it knows none such.
func (e *Engine) Inspect(tb testing.TB, id string) (container.InspectResponse, bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
	defer cancel()
	c, err := e.client.ContainerInspect(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		tb.Fatalf("dockertest: inspect %.12s: %v", id, err)
	}
	return c, err == nil
}

// Exists reports whether the engine knows the container, in whatever state.
func (e *Engine) Exists(tb testing.TB, id string) bool {
	tb.Helper()
	_, ok := e.Inspect(tb, id)
	return ok
}

// Running reports whether the engine says that the container runs; a paused one
// does.
func (e *Engine) Running(tb testing.TB, id string) bool {
	tb.Helper()
	c, ok := e.Inspect(tb, id)
	return ok && c.State.Running
}

// PIDs are the container's processes as the host numbers them, read from its
// cgroup, whether or not there is an engine to ask. A zombie is none of them.
func (e *Engine) PIDs(tb testing.TB, id string) []int {
	tb.Helper()
	b, err := os.ReadFile(e.site.cgroup(e.maker.cgroup(id) + "/cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		tb.Fatalf("dockertest: read the processes of %.12s: %v", id, err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			tb.Fatalf("dockertest: read the processes of %.12s: %v", id, err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// WaitGone waits until the engine knows nothing of the container any more.
func (e *Engine) WaitGone(tb testing.TB, id string) {
	tb.Helper()
	e.WaitGoneAll(tb, id)
}

// WaitGoneAll is WaitGone for several.
func (e *Engine) WaitGoneAll(tb testing.TB, ids ...string) {
	tb.Helper()
	for _, id := range ids {
		e.wait(tb, id, "gone", func(_ container.InspectResponse, exists bool) bool { return !exists })
	}
}

// WaitRunning waits until the container runs.
func (e *Engine) WaitRunning(tb testing.TB, id string) {
	tb.Helper()
	e.wait(tb, id, "running", func(c container.InspectResponse, exists bool) bool { return exists && c.State.Running })
}

// WaitStopped waits until the container does not run, be it there or gone.
func (e *Engine) WaitStopped(tb testing.TB, id string) {
	tb.Helper()
	e.wait(tb, id, "stopped", func(c container.InspectResponse, exists bool) bool { return !exists || !c.State.Running })
}

// WaitPIDs waits until the container has n processes.
func (e *Engine) WaitPIDs(tb testing.TB, id string, n int) []int {
	tb.Helper()
	var pids []int
	poll(tb, func() bool {
		pids = e.PIDs(tb, id)
		return len(pids) == n
	}, func() string { return fmt.Sprintf("container %.12s has processes %v, want %d", id, pids, n) })
	return pids
}

// wait polls, since an engine that is killed meanwhile loses its events. An
// engine that does not answer has said nothing: the wait goes on.
func (e *Engine) wait(tb testing.TB, id, what string, reached func(container.InspectResponse, bool) bool) {
	tb.Helper()
	last := "never answered"
	poll(tb, func() bool {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience/4)
		defer cancel()
		c, err := e.client.ContainerInspect(ctx, id)
		switch {
		case errdefs.IsNotFound(err):
			last = "not found"
		case err != nil:
			last = err.Error()
			return false
		default:
			last = c.State.Status
		}
		return reached(c, err == nil)
	}, func() string { return fmt.Sprintf("container %.12s is not %s; it is: %s", id, what, last) })
}

// remove ends a container with its anonymous volumes; it may be gone, and
// somebody else may be removing it, which every sort of engine says otherwise.
func (e *Engine) remove(tb testing.TB, id string) {
	tb.Helper()
	var last error
	poll(tb, func() bool {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
		defer cancel()
		last = e.client.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		return last == nil || errdefs.IsNotFound(last)
	}, func() string { return fmt.Sprintf("container %.12s is not removed: %v", id, last) })
}

func poll(tb testing.TB, reached func() bool, state func() string) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	beat := time.NewTicker(tick)
	defer beat.Stop()
	for !reached() {
		if time.Now().After(deadline) {
			tb.Fatalf("dockertest: after %v %s", patience, state())
		}
		<-beat.C
	}
}
