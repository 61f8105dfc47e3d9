//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

const (
	sandboxes = 20
	doomed    = 10 // of these
	atOnce    = 5  // of these, the last ones, in the same moment

	// startsAtOnce is how many containers are started in parallel. More do not make an engine on two cores faster.
	startsAtOnce = 4
)

// A sandbox is a container and the process that owns it.
type sandbox struct {
	name  string
	id    string
	owner *owner
}

// show is the whole demonstration. Everything that it starts is ended, in reverse order, when it returns; left says what
// went wrong with that.
func show(ctx context.Context, out io.Writer, program string) (left, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("starting a Docker engine needs root: sudo make demo")
	}
	if program, err = exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("find watcher: %w (make builds it)", err)
	}

	begun := time.Now()
	said := func(what, format string, args ...any) {
		fmt.Fprintf(out, "%4.1f s  %-9s "+format+"\n", append([]any{time.Since(begun).Seconds(), what}, args...)...)
	}
	said("engine", "starting one that nobody else uses")
	var log strings.Builder
	engine, err := dockertest.Launch(ctx, "", &log)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, log.String())
	}
	defer func() { left = errors.Join(left, engine.Close()) }()
	// The image is compiled; a compiler that is interrupted leaves its files where this points to, and they go with
	// the engine.
	if err := os.Setenv("TMPDIR", engine.Dir()); err != nil {
		return nil, err
	}
	said("image", "making one of a static program, which is compiled once for this machine")
	if _, err := engine.Import(ctx); err != nil {
		return nil, err
	}

	owners := newOwners()
	defer func() { left = errors.Join(left, owners.end()) }()
	all := make([]*sandbox, sandboxes)
	for i := range all {
		o, err := owners.start()
		if err != nil {
			return nil, err
		}
		all[i] = &sandbox{name: fmt.Sprintf("agent-%02d", i+1), owner: o}
	}
	said("owners", "%d processes, each of which will own a container", len(all))

	w, err := startWatcher(program, engine)
	if err != nil {
		return nil, err
	}
	defer func() { left = errors.Join(left, w.stop()) }()
	if _, err := w.await(ctx, func(r record) bool { return r.Event == watch.EventScan }); err != nil {
		return nil, err
	}
	said("watcher", "runs, and has looked at everything once")

	if err := start(ctx, engine, program, all); err != nil {
		return nil, err
	}
	// Watcher is as fast as this shows only with containers that it knows already.
	if err := w.awaitEach(ctx, all, func(r record) bool { return r.Reason == "owner-alive" }, func(*sandbox, record) {}); err != nil {
		return nil, err
	}
	said("sandboxes", "%d containers run, labelled watcher.owner=PID:START:BOOT", len(all))

	// The ones that were started first: what the engine has to tell about them has been told.
	var times timing
	fmt.Fprintf(out, "\n%d owners are killed with SIGKILL, one after the other:\n\n", doomed-atOnce)
	for _, s := range all[:doomed-atOnce] {
		if err := times.kill(ctx, out, w, engine, s); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(out, "\n%d more in the same moment:\n\n", atOnce)
	if err := times.kill(ctx, out, w, engine, all[doomed-atOnce:doomed]...); err != nil {
		return nil, err
	}

	fmt.Fprintf(out, "\nThe other %d owners live:\n\n", sandboxes-doomed)
	for _, s := range all[doomed:] {
		c, err := engine.Client().ContainerInspect(ctx, s.id)
		if err != nil {
			return nil, fmt.Errorf("%s, whose owner lives: %w", s.name, err)
		}
		if !c.State.Running {
			return nil, fmt.Errorf("%s, whose owner lives, does not run: it is %s", s.name, c.State.Status)
		}
		fmt.Fprintf(out, "  owner %7d  →  %s runs\n", s.owner.pid(), s.name)
	}
	fmt.Fprintf(out, "\n%d reaped: code stopped after %s, gone after %s; %d kept. Took %.1f s.\n",
		doomed, summary(times.stopped), summary(times.gone), sandboxes-doomed, time.Since(begun).Seconds())
	return nil, nil
}

// start labels and runs a container for each sandbox.
func start(ctx context.Context, engine *dockertest.Engine, program string, all []*sandbox) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(startsAtOnce)
	for _, s := range all {
		g.Go(func() error {
			owner, err := ownerLabel(ctx, program, engine, s.owner.pid())
			if err != nil {
				return err
			}
			s.id, err = engine.Create(ctx, dockertest.ContainerOptions{Name: s.name, Labels: map[string]string{watch.LabelOwner: owner}})
			return err
		})
	}
	return g.Wait()
}

// timing is how long the containers outlived their owners, as watcher measured it.
type timing struct{ stopped, gone []time.Duration }

// kill ends the owners of some sandboxes at once and prints what becomes of each.
func (t *timing) kill(ctx context.Context, out io.Writer, w *watcher, engine *dockertest.Engine, some ...*sandbox) error {
	for _, s := range some {
		if err := s.owner.kill(); err != nil {
			return err
		}
	}
	reaped := func(r record) bool { return r.Event == watch.EventReaped }
	err := w.awaitEach(ctx, some, reaped, func(s *sandbox, r record) {
		fmt.Fprintf(out, "  owner %7d  →  %s  owner killed → code stopped after %8s → gone after %8s\n",
			s.owner.pid(), s.name, r.StopUS, r.GoneUS)
		t.stopped, t.gone = append(t.stopped, r.StopUS.duration()), append(t.gone, r.GoneUS.duration())
	})
	if err != nil {
		return err
	}
	for _, s := range some {
		_, err := engine.Client().ContainerInspect(ctx, s.id)
		switch {
		case err == nil:
			return fmt.Errorf("watcher says that %s is gone, and the engine still has it", s.name)
		case !errdefs.IsNotFound(err):
			return fmt.Errorf("ask the engine about %s: %w", s.name, err)
		}
	}
	return nil
}

func summary(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("%s (median; at most %s)", inMS(d[len(d)/2]), inMS(d[len(d)-1]))
}

func inMS(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	s := fmt.Sprintf("%.1f", ms)
	if ms >= 10 {
		s, _, _ = strings.Cut(s, ".")
	}
	return s + " ms"
}
