package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"watcher/platform/connector"
	"watcher/platform/journal"
	"watcher/platform/statedir"
	"watcher/platform/systemd"
	"watcher/reap"
	"watcher/watch"
)

// flushFor is how long the end waits for the log: a journal that is stopped must not keep us from ending.
const flushFor = time.Second

// openLog opens the log that the flags ask for. The second result ends it.
func (o *options) openLog() (*slog.Logger, func(), error) {
	log, err := journal.Open(o.logFormat, o.logLevel, os.Stderr)
	if err != nil {
		return nil, nil, usageError{err}
	}
	return log.Logger, func() {
		ctx, cancel := context.WithTimeout(context.Background(), flushFor)
		defer cancel()
		// That the end of the log is lost could only be written where the log is not read.
		_ = log.Close(ctx)
	}, nil
}

// runDaemon watches and reaps until ctx ends.
func (o *options) runDaemon(ctx context.Context) error {
	// From the first moment on: unheard, a hangup would end us.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	c, err := o.load()
	if err != nil {
		return err
	}
	docket := o.docket(c)
	if err := docket.Make(); err != nil {
		return err
	}
	unlock, err := statedir.Lock(o.stateDirectory())
	if err != nil {
		return err
	}
	defer unlock()
	log, closeLog, err := o.openLog()
	if err != nil {
		return err
	}
	defer closeLog()
	parts, err := assemble(c)
	if err != nil {
		return err
	}
	defer parts.close()
	parts.remember(o.stateDirectory(), !o.dryRun, log)
	unit, err := newUnit(log)
	if err != nil {
		return err
	}
	settings := parts.loop(c, log, docket)
	settings.DryRun, settings.Each, settings.Pulse = o.dryRun, unit.tell, unit.interval
	log.Info("started", watch.KeyEvent, watch.EventStarted, "version", version, "engine", parts.engine.Host(), "config", c.file, "dry_run", o.dryRun)
	listening := func(ctx context.Context) error { return listen(ctx, log, parts) }
	reloading := func(ctx context.Context) error { return o.reload(ctx, hangups, log, c, parts, unit) }
	err = runGroup(ctx, reap.NewLoop(settings), parts.runEngine, listening, parts.census.Run, parts.firecracker.Run, parts.gomicrovm.Run, reloading, parts.scanner.Run)
	if err := unit.manager.Stopping(); err != nil {
		log.Debug("could not tell systemd", watch.KeyError, err)
	}
	log.Info("stopped", watch.KeyEvent, watch.EventStopped)
	if errors.Is(err, context.Canceled) {
		return nil // as asked
	}
	return err
}

// reload reads the configuration again at each SIGHUP, until ctx ends. One with a fault changes nothing.
func (o *options) reload(ctx context.Context, hangups <-chan os.Signal, log *slog.Logger, c *config, p *parts, u *unit) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hangups:
		}
		ended := u.reloading()
		fresh, err := o.load()
		if err == nil {
			err = p.follow(fresh.rules())
		}
		if err != nil {
			log.Error("the configuration has a fault; the old one stays in force", watch.KeyEvent, watch.EventReloadFailed, watch.KeyError, err)
		} else {
			if err := p.adopt(ctx, fresh); err != nil {
				return err
			}
			log.Info("read the configuration again", watch.KeyEvent, watch.EventReloaded, "config", fresh.file, "rules", len(fresh.rules().List))
			if fresh.Docker.Host != c.Docker.Host {
				log.Warn("another engine needs a restart; the old one stays", "engine", c.Docker.Host, "wanted", fresh.Docker.Host)
			}
		}
		ended()
	}
}

// adopt has the loop go on with a configuration whose rules are followed. When it returns without an error they are in
// force: what was known by others was looked at again.
func (p *parts) adopt(ctx context.Context, fresh *config) error {
	policy := fresh.policy()
	tell := func() error {
		select {
		case p.policies <- policy:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := tell(); err != nil {
		return err
	}
	p.scanner.SetInterval(fresh.Scan.Interval)
	p.scanner.Scan(ctx)
	// The loop takes in what the scan has found together with this, and so before any death that comes now.
	return tell()
}

// listen keeps listening to the process connector, where that can be had. Owners are held by pidfd as well, so without
// it deaths are only dated a little later, and the processes of a program are seen by the next scan.
func listen(ctx context.Context, log *slog.Logger, p *parts) error {
	const source = "process connector"
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = time.Second, 5*time.Minute
	for lost, changed := false, false; ; {
		err := listenOnce(ctx, log, p, func() {
			wait.Reset()
			switch {
			case lost:
				p.inbox.Post(watch.SourceBack{Source: source, At: time.Now()})
			case changed:
				p.scanner.Poke() // for what happened in between
			}
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errOtherRules):
			changed = true
			continue
		}
		lost, changed = true, false
		if hint := connector.Hint(err); hint != "" {
			err = fmt.Errorf("%w (%s; until then deaths are seen through pidfds alone)", err, hint)
		}
		p.inbox.Post(watch.SourceLost{Source: source, Err: err, At: time.Now()})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.NextBackOff()):
		}
	}
}

// errOtherRules ends a subscription because the rules of now need more or less than it has.
var errOtherRules = errors.New("the rules have changed")

// listenOnce listens until the subscription fails or another one is needed.
func listenOnce(parent context.Context, log *slog.Logger, p *parts, heard func()) error {
	const source = "process connector"
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	go func() {
		select {
		case <-ctx.Done():
		case <-p.relisten:
			cancel(errOtherRules)
		}
	}()
	// Without pidfds, the exit of a last thread that is not the leader is told by nobody else. Execs cost something on a
	// host that starts many programs, and matter only where a rule names one.
	l, err := connector.Listen(ctx, connector.Options{Threads: !p.host.CanHold(), Execs: p.execs.Load()})
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	log.Debug("listening", watch.KeySource, source, "level", l.Level())
	heard()
	err = l.Run(ctx, connector.Handlers{
		Exit: func(e connector.Exit) {
			p.owners.Witness(e.TGID, e.At)
			p.census.Witness(e.TGID, e.At)
			p.firecracker.Witness(e.TGID, e.At)
			p.gomicrovm.Witness(e.TGID, e.At)
		},
		Exec: func(e connector.Exec) {
			p.census.Exec(e.TGID, e.At)
			p.firecracker.Exec(e.TGID, e.At)
			p.gomicrovm.Exec(e.TGID, e.At)
		},
		Lost: func(err error) {
			p.inbox.Post(watch.SourceLost{Source: source, Err: err, At: time.Now()}, watch.SourceBack{Source: source, At: time.Now()})
		},
	})
	return cmp.Or(context.Cause(ctx), errors.Join(err, l.Close()))
}

// A unit tells systemd how things stand. The loop itself calls it, so a watchdog hears nothing from a loop that hangs.
type unit struct {
	log      *slog.Logger
	manager  systemd.Notifier
	interval time.Duration // how often the watchdog wants to hear from us; 0: never
	ready    atomic.Bool
	said     string
	pinged   time.Time
}

func newUnit(log *slog.Logger) (*unit, error) {
	interval, err := systemd.WatchdogInterval()
	if err != nil {
		return nil, err
	}
	return &unit{log: log, manager: systemd.FromEnvironment(), interval: interval}, nil
}

func (u *unit) tell(s reap.Status) {
	var errs []error
	if now := time.Now(); u.interval > 0 && now.Sub(u.pinged) >= u.interval/2 {
		u.pinged = now
		errs = append(errs, u.manager.Watchdog())
	}
	if s.Scanned && !u.ready.Load() {
		err := u.manager.Ready()
		u.ready.Store(err == nil)
		errs = append(errs, err)
	}
	if line := statusLine(s); line != u.said {
		err := u.manager.Status(line)
		if err == nil {
			u.said = line
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		u.log.Debug("could not tell systemd", watch.KeyError, err)
	}
}

// reloading says that a reload begins; what it returns says that it has ended. Before the start is complete neither says
// anything, since the end of a reload means the same as that of the start.
func (u *unit) reloading() (ended func()) {
	if !u.ready.Load() {
		return func() {}
	}
	begun := u.manager.Reloading()
	return func() {
		if err := errors.Join(begun, u.manager.Ready()); err != nil {
			u.log.Debug("could not tell systemd", watch.KeyError, err)
		}
	}
}

func statusLine(s reap.Status) string {
	if !s.Scanned {
		return "waiting for the first full scan"
	}
	line := fmt.Sprintf("watching %d sandbox(es), %d being reaped, %d reaped, %d attempt(s) failed", s.Sandboxes, s.Open, s.Reaped, s.Failed)
	if s.GaveUp > 0 {
		line += fmt.Sprintf(", %d given up (watcher failed)", s.GaveUp)
	}
	if s.Alarm {
		line += "; ALARM: more sandboxes than there should be"
	}
	return line
}
