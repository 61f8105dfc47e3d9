package statedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// A Change is something that happened in a folder that is followed. It is a reason to look, and no more: what a name stands for
// by now only a look can tell.
type Change struct {
	Path    string
	Written bool // and not that something got that name, or lost it
}

// A Follower tells of changes in folders. It is safe for concurrent use.
//
// It may miss changes: when the kernel's queue overflowed, when a watch could not be had, and in a folder before it was
// followed. Of the first two it tells, and a folder that it begins to follow is told of as a change: whoever looks at it then
// has missed nothing.
type Follower struct {
	changed func(Change)
	lost    func(error) // nil: nothing is missed any more

	mu   sync.Mutex
	want []string
	poke chan struct{}
}

// NewFollower returns a follower of nothing. Both functions are called by [Follower.Run] alone. lost is called with an error when
// changes may have been missed, and with nil when all that is wanted is followed again.
func NewFollower(changed func(Change), lost func(error)) *Follower {
	return &Follower{changed: changed, lost: lost, poke: make(chan struct{}, 1)}
}

// Follow replaces the folders that are followed. Those that are not there are left out; a call with the same ones tries again
// what could not be followed before.
func (f *Follower) Follow(folders []string) {
	f.mu.Lock()
	f.want = slices.Clone(folders)
	f.mu.Unlock()
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	var w *fsnotify.Watcher
	defer func() {
		if w != nil {
			_ = w.Close() // nobody can act on an error of that
		}
	}()
	var events <-chan fsnotify.Event
	var faults <-chan error
	failing := false
	report := func(err error) {
		if err != nil || failing {
			f.lost(err)
		}
		failing = err != nil
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.poke:
			if w == nil {
				var err error
				if w, err = fsnotify.NewWatcher(); err != nil {
					report(watchFault(err))
					continue
				}
				events, faults = w.Events, w.Errors
			}
			report(f.update(w))
		case ev := <-events:
			if ev.Op != fsnotify.Chmod {
				f.changed(Change{Path: ev.Name, Written: !ev.Has(fsnotify.Create) && !ev.Has(fsnotify.Remove) && !ev.Has(fsnotify.Rename)})
			}
		case err := <-faults:
			if failing {
				f.lost(err)
				continue
			}
			// Once, as an overflow: from here on nothing is missed.
			report(err)
			report(nil)
		}
	}
}

// update makes w watch what is wanted.
func (f *Follower) update(w *fsnotify.Watcher) error {
	f.mu.Lock()
	want := f.want
	f.mu.Unlock()
	have := w.WatchList()
	for _, path := range have {
		if !slices.Contains(want, path) {
			_ = w.Remove(path) // it may have gone by itself
		}
	}
	var fault error
	for _, path := range want {
		if slices.Contains(have, path) {
			continue
		}
		switch err := w.Add(path); {
		case err == nil:
			f.changed(Change{Path: path})
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		case fault == nil:
			fault = fmt.Errorf("follow %s: %w", readable(path), watchFault(err))
		}
	}
	return fault
}

// watchFault adds to an error what can be done about it (inotify(7)).
func watchFault(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: the user's inotify watches are used up, raise the sysctl fs.inotify.max_user_watches", err)
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("%w: the user's inotify instances are used up, raise the sysctl fs.inotify.max_user_instances", err)
	}
	return err
}
