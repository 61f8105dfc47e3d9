package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"watcher/reap"
	"watcher/watch"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A pass is one full scan, carried through.
type pass struct {
	policy  reap.Policy
	rules   *watch.Rules
	picture *watch.Picture
	ends    map[watch.ID]reap.Reported
	failed  error // not everything could be seen
	now     time.Time
}

// runPass scans once, and reaps what is to be reaped unless dry. Edits are for who wants something else of the loop. The
// error is for what kept it from looking at all, or for an interrupt.
func (o *options) runPass(ctx context.Context, c *config, log *slog.Logger, dry bool, edits ...func(*reap.Config)) (*pass, error) {
	parts, err := assemble(c)
	if err != nil {
		return nil, err
	}
	defer parts.close()
	parts.remember(o.stateDirectory(), !dry, log)
	docket := o.docket(c)
	settings := parts.loop(c, log, docket)
	p := &pass{policy: settings.Policy, rules: c.rules(), picture: settings.Picture, ends: map[watch.ID]reap.Reported{}}
	settings.DryRun, settings.Once = dry, true
	settings.Reported = func(r reap.Reported) { p.ends[r.Entry.ID] = r }
	for _, edit := range edits {
		edit(&settings)
	}
	loop := reap.NewLoop(settings)
	// Without the engine that there must be, there is nothing to look at: a session that cannot be had is the end.
	err = runGroup(ctx, loop, parts.session, parts.scanner.Run, parts.census.Run)
	p.now = time.Now()
	p.failed = loop.ScanError()
	return p, err
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
	return end.Entry.Owner().Life
}

func (o *options) runOnce(ctx context.Context, stdout, stderr io.Writer) error {
	c, err := o.load()
	if err != nil {
		return err
	}
	docket := o.docket(c)
	if !o.dryRun {
		if err := docket.Make(); err != nil {
			return err
		}
	}
	log, closeLog, err := o.openLog()
	if err != nil {
		return err
	}
	// A terminal that goes away ends a pass in order; a daemon is told by this signal to read its configuration again.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer stop()
	p, passErr := o.runPass(ctx, c, log, o.dryRun)
	closeLog()
	if p == nil {
		return passErr
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
	switch {
	case errors.Is(passErr, context.Canceled):
		fmt.Fprintln(stderr, "watcher: interrupted; what was begun is on record, and the next one goes on")
	case passErr != nil:
		fmt.Fprintln(stderr, "watcher:", passErr)
	case p.failed != nil:
		fmt.Fprintf(stderr, "watcher: not everything could be seen, and nothing was judged by what is missing: %v\n", p.failed)
	}
	fmt.Fprintf(stderr, "%s %d orphan(s), kept %d, failed %d\n", did, reaped, kept, failed)
	if failed > 0 || p.failed != nil || passErr != nil {
		return errSaid
	}
	return nil
}
