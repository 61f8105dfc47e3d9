package main

import (
	"context"
	"fmt"
	"io"
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

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A pass is one full scan, carried through.
type pass struct {
	policy  reap.Policy
	picture *watch.Picture
	ends    map[watch.ID]reap.Reported
	failed  error // not everything could be seen
	now     time.Time
}

// runPass scans once, and reaps what is to be reaped unless dry. The error is for what kept it from looking at all, or
// for an interrupt.
func runPass(ctx context.Context, c *config, log *slog.Logger, docket *reap.Docket, dry bool) (*pass, error) {
	host, err := process.NewHost(procRoot)
	if err != nil {
		return nil, err
	}
	inbox := reap.NewInbox()
	engine := docker.New(c.Docker.Host, host, inbox.Post)
	defer engine.Close()
	owners := process.NewOwners(host, inbox.Post)
	defer owners.Close()
	scanner := reap.NewScanner(inbox, time.Duration(c.Scan.Interval), engine)
	p := &pass{policy: c.policy(), picture: watch.NewPicture(host.Boot()), ends: map[watch.ID]reap.Reported{}}
	loop := reap.NewLoop(reap.Config{
		Policy: p.policy, Picture: p.picture, Inbox: inbox, Owners: owners,
		Platforms: map[watch.Kind]reap.Platform{engine.Kind(): engine},
		Log:       log, Workers: removalsAtOnce(), Timeout: removeTimeout,
		Rescan: scanner.Poke, Docket: docket, DryRun: dry, Once: true, Boundary: boundary,
		Reported: func(r reap.Reported) { p.ends[r.Entry.ID] = r },
	})

	// The group's actors, the loop first: it is interrupted before the others, and they go on until it has finished what
	// it began.
	var g run.Group
	ended := make(chan struct{})
	{ // The loop.
		ctx, stop := context.WithCancel(ctx)
		g.Add(func() error {
			defer close(ended)
			return loop.Run(ctx)
		}, func(error) { stop() })
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	interrupt := func(error) {
		<-ended
		stop()
	}
	{ // The engine: without it there is nothing to look at.
		g.Add(func() error { return engine.Session(work, func() {}) }, interrupt)
	}
	{ // Full scans.
		g.Add(func() error { return scanner.Run(work) }, interrupt)
	}
	if err := g.Run(); err != nil {
		return nil, err
	}
	p.now = time.Now()
	p.failed = loop.ScanError()
	return p, nil
}

// rows are the sandboxes of the pass: what is left, and what was reaped.
func (p *pass) rows() []row {
	var rows []row
	for id, end := range p.ends {
		if p.picture.Entry(id) != nil {
			continue
		}
		r := newRow(&end.Entry, reap.Judgement{Verdict: reap.Reap, Reason: end.Reason, Owner: ownerAtEnd(end)})
		r.Result = resultReaped
		rows = append(rows, r)
	}
	for _, id := range p.picture.IDs() {
		e := p.picture.Entry(id)
		r := newRow(e, p.policy.Judge(p.picture, e, p.now))
		if end, ok := p.ends[id]; ok {
			r.Result, r.Error = resultFailed, end.Err.Error()
		}
		rows = append(rows, r)
	}
	return rows
}

// ownerAtEnd is what was known of the owner of what was reaped.
func ownerAtEnd(end reap.Reported) watch.Life {
	if end.Reason == reap.Rebooted {
		return watch.Exited
	}
	return end.Entry.Owner.Life
}

func (o *options) runOnce(ctx context.Context, stdout, stderr io.Writer) error {
	c, err := o.load()
	if err != nil {
		return err
	}
	docket := o.docket()
	if !o.dryRun {
		if err := docket.Make(); err != nil {
			return err
		}
	}
	log, closeLog, err := o.openLog()
	if err != nil {
		return err
	}
	p, err := runPass(ctx, c, log, docket, o.dryRun)
	closeLog()
	if err != nil {
		return err
	}
	rows := p.rows()
	reaped, kept, failed := 0, 0, 0
	var acted []row
	for i := range rows {
		r := &rows[i]
		if o.dryRun && r.Verdict == reap.Reap.String() {
			r.Result = resultWouldReap
		}
		switch r.Result {
		case resultReaped, resultWouldReap:
			reaped++
		case resultFailed:
			failed++
		default:
			kept++
			continue
		}
		acted = append(acted, *r)
	}
	switch {
	case o.output == asJSON:
		err = o.write(stdout, rows, true)
	case len(acted) > 0:
		err = o.write(stdout, acted, true)
	}
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	did := "reaped"
	if o.dryRun {
		did = "would reap"
	}
	if p.failed != nil {
		fmt.Fprintf(stderr, "watcher: not everything could be seen, and nothing was judged by what is missing: %v\n", p.failed)
	}
	fmt.Fprintf(stderr, "%s %d orphan(s), kept %d, failed %d\n", did, reaped, kept, failed)
	if failed > 0 || p.failed != nil {
		return errSaid
	}
	return nil
}
