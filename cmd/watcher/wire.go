package main

import (
	"context"
	"log/slog"
	"runtime"
	"time"

	"github.com/oklog/run"

	"watcher/platform/docker"
	"watcher/platform/process"
	"watcher/reap"
	"watcher/watch"
)

const (
	// procRoot is where the proc file system of our own PID namespace is.
	procRoot = "/proc"
	// removeTimeout is how long one removal may take. A quiet engine needs 0.1 s; one that removes hundreds at a time
	// was seen to need 20 s for the last.
	removeTimeout = time.Minute
)

// removalsAtOnce is how many removals run in parallel: more than about two a core only make each slower.
func removalsAtOnce() int { return 2 * runtime.GOMAXPROCS(0) }

// boundary is nil but in tests, which have the program killed at one of them.
var boundary func(reap.Boundary)

// parts are what watches and what acts, not running yet. A new kind of sandbox is a line in each of assemble and loop.
type parts struct {
	host    *process.Host
	inbox   *reap.Inbox
	owners  *process.Owners
	engine  *docker.Engine
	scanner *reap.Scanner
}

func assemble(c *config) (*parts, error) {
	host, err := process.NewHost(procRoot)
	if err != nil {
		return nil, err
	}
	p := &parts{host: host, inbox: reap.NewInbox()}
	p.owners = process.NewOwners(host, p.inbox.Post)
	p.engine = docker.New(c.Docker.Host, host, p.inbox.Post)
	p.scanner = reap.NewScanner(p.inbox, c.Scan.Interval.Duration, p.engine)
	return p, nil
}

func (p *parts) close() {
	p.engine.Close()
	p.owners.Close()
}

// loop is what every loop of ours has in common.
func (p *parts) loop(c *config, log *slog.Logger, docket *reap.Docket) reap.Config {
	return reap.Config{
		Policy: c.policy(), Picture: watch.NewPicture(p.host.Boot()), Inbox: p.inbox, Owners: p.owners,
		Platforms: map[watch.Kind]reap.Platform{p.engine.Kind(): p.engine},
		Log:       log, Workers: removalsAtOnce(), Timeout: removeTimeout,
		Rescan: p.scanner.Poke, Docket: docket, Boundary: boundary,
	}
}

// runGroup runs a loop and the others until one of them returns or ctx ends. The loop is the first actor: it is
// interrupted before the others, and they go on until it has finished what it began.
func runGroup(ctx context.Context, loop *reap.Loop, others ...func(context.Context) error) error {
	var g run.Group
	ended := make(chan struct{})
	{ // The loop, which ends at a signal.
		ctx, stop := context.WithCancel(ctx)
		g.Add(func() error {
			defer close(ended)
			return loop.Run(ctx)
		}, func(error) { stop() })
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for _, actor := range others {
		g.Add(func() error { return actor(work) }, func(error) {
			<-ended
			stop()
		})
	}
	return g.Run()
}
