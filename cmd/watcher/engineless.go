package main

import (
	"context"
	"slices"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// This file is about hosts that have no engine, and need none.

// wantsEngine reports whether an engine must be there: on a host whose rules are all about others it need not be.
func wantsEngine(rules []watch.Rule, host string) bool {
	return len(rules) == 0 || host != "" || slices.ContainsFunc(rules, func(r watch.Rule) bool { return r.Kind == watch.Container })
}

// engineless reports whether there is no engine, and need not be.
func (p *parts) engineless() bool { return p.anyEngine.Load() && p.engine.Absent() }

// ofEngine is a system of the engine, whose list is empty where there need not be one.
func (p *parts) ofEngine(s lister) system {
	whole := byID(s)
	return system{optional{s, p.engineless}, whole.Platform}
}

// An optional lister finds nothing while it is absent.
type optional struct {
	reap.Lister
	absent func() bool
}

// List lists what there is.
func (l optional) List(ctx context.Context) ([]watch.Event, error) {
	if l.absent() {
		return nil, nil
	}
	return l.Lister.List(ctx)
}

// session is one session with the engine, if there is one.
func (p *parts) session(ctx context.Context) error {
	if !p.engineless() {
		return p.engine.Session(ctx)
	}
	p.scanner.Poke() // which a session does by saying that the engine is there
	<-ctx.Done()
	return ctx.Err()
}

// runEngine keeps a session with the engine. Where there need not be one, it looks now and then whether there is one by now.
func (p *parts) runEngine(ctx context.Context) error {
	again := time.NewTicker(p.interval)
	defer again.Stop()
	for p.engineless() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
	again.Stop()
	return p.engine.Run(ctx)
}
