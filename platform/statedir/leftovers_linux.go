package statedir

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"watcher/watch"
)

// Leftovers are files and folders that owners of sandboxes leave in the file system. Each thing that a glob of a rule
// matches is one; the folder that it is in is the rule's own and stays. It is safe for concurrent use.
//
// A leftover may be anything: a file, a folder with all that is in it, a socket, a pipe, a link. Nothing runs in it, so
// it is always [watch.Stopped]. Whether its owner lives is not asked here; but see [watch.Sandbox.InUse].
type Leftovers struct {
	plan atomic.Pointer[plan]
	// seen has the paths of the latest list.
	seen atomic.Pointer[map[watch.ID]string]
}

// NewLeftovers returns leftovers of which no rule speaks yet.
func NewLeftovers() *Leftovers {
	l := &Leftovers{}
	l.plan.Store(newPlan(nil))
	l.seen.Store(&map[watch.ID]string{})
	return l
}

// SetRules says whose leftovers to look for: those of the rules that have Files and name the program of their owner. Where
// several match, the first counts.
func (l *Leftovers) SetRules(rules *watch.Rules) { l.plan.Store(newPlan(rules)) }

// Kind is [watch.File].
func (l *Leftovers) Kind() watch.Kind { return watch.File }

// List finds all leftovers, as one [watch.Listed].
func (l *Leftovers) List(ctx context.Context) ([]watch.Event, error) {
	asked := time.Now()
	found, seen := []watch.Sandbox{}, map[watch.ID]string{}
	err := l.search(ctx, func(e *entry, terms watch.Terms, mounts mounts) error {
		why, err := mounts.use(ctx, e, glance)
		if err != nil {
			return err
		}
		born, _ := e.born()
		seen[e.id()] = e.path
		found = append(found, watch.Sandbox{
			ID: e.id(), Name: readable(e.path), State: watch.Stopped, Created: born, Terms: terms, InUse: why != "",
			Leaves: []watch.Leaf{{Kind: string(watch.File), Name: e.path}},
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for what owners left: %w", err)
	}
	l.seen.Store(&seen)
	slices.SortFunc(found, func(a, b watch.Sandbox) int { return strings.Compare(a.Name, b.Name) })
	return []watch.Event{watch.Listed{Kind: watch.File, Asked: asked, Sandboxes: found}}, nil
}

// search calls found once for each leftover.
func (l *Leftovers) search(ctx context.Context, found func(*entry, watch.Terms, mounts) error) error {
	plan := l.plan.Load()
	if plan.err != nil {
		return plan.err
	}
	if len(plan.targets) == 0 {
		return nil
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	root, err := openRoot()
	if err != nil {
		return err
	}
	defer root.close()
	done := map[string]bool{}
	for _, t := range plan.targets {
		err := t.glob.walk(ctx, root, func(in folder, name string) error {
			file := in.join(name)
			terms, ok := plan.terms(file)
			if !ok || done[file] {
				return nil
			}
			e, err := in.look(name)
			if err != nil {
				return unlessAbsent(err)
			}
			defer e.close()
			done[file] = true
			terms.Owners = slices.Clone(terms.Owners)
			return found(e, terms, mounts)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// walk calls found with the names that g matches below a folder.
func (g glob) walk(ctx context.Context, in folder, found func(in folder, name string) error) error {
	first, rest := g[0], g[1:]
	each := func(name string) error {
		if len(rest) == 0 {
			return found(in, name)
		}
		sub, err := in.enter(name)
		if err != nil {
			return unlessAbsent(err)
		}
		defer sub.close()
		return rest.walk(ctx, sub, found)
	}
	if first.literal() {
		return each(first.text)
	}
	return unlessAbsent(in.names(ctx, func(name string) error {
		if !first.matches(name) {
			return nil
		}
		return each(name)
	}))
}

func unlessAbsent(err error) error {
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}

// Stop fails: there is nothing that could be stopped.
func (l *Leftovers) Stop(id watch.ID, step watch.Step) error {
	return fmt.Errorf("%s %s: no process runs in it", step, id)
}

// Remove removes the leftover that id names, with all that is in it. That it is gone, or that something else has its path,
// is success. The error wraps [ErrInUse] if it may be in use.
//
// What can be removed goes even if other things in it cannot; the error is that of the first that could not. When ctx
// ends, or we do, what is left is still the same leftover.
func (l *Leftovers) Remove(ctx context.Context, id watch.ID) error {
	file, err := l.find(ctx, id)
	if err != nil {
		return fmt.Errorf("remove %s: %w", id, err)
	}
	if file == "" {
		return nil
	}
	if _, ok := l.plan.Load().terms(file); !ok {
		return fmt.Errorf("remove %s: no rule names it any more", readable(file))
	}
	if err := remove(ctx, file, id); err != nil {
		return fmt.Errorf("remove %s: %w", readable(file), err)
	}
	return nil
}

// RemoveKnown is [Leftovers.Remove] of a leftover as it was listed, perhaps before a restart. That it is still there and no rule
// names it any more is an error, where Remove alone would find nothing and call that success.
func (l *Leftovers) RemoveKnown(ctx context.Context, s watch.Sandbox) error {
	for _, leaf := range s.Leaves {
		if _, ok := l.plan.Load().terms(leaf.Name); ok {
			continue
		}
		switch is, err := Incarnation(leaf.Name); {
		case err != nil:
			return fmt.Errorf("remove %s: %w", s.ID, err)
		case is == s.ID.Name:
			return fmt.Errorf("remove %s: no rule names it any more", readable(leaf.Name))
		}
	}
	return l.Remove(ctx, s.ID)
}

// find returns the path of a leftover, or "" if there is no such leftover. Commands and restarts ask for what was not
// listed before.
func (l *Leftovers) find(ctx context.Context, id watch.ID) (file string, err error) {
	if file, ok := (*l.seen.Load())[id]; ok {
		return file, nil
	}
	err = l.search(ctx, func(e *entry, _ watch.Terms, _ mounts) error {
		if e.id() == id {
			file = e.path
		}
		return nil
	})
	if file != "" {
		return file, nil
	}
	return "", err
}

// openFolder opens the folder at an absolute path without following any link (T3).
func openFolder(file string) (folder, error) {
	in, err := openRoot()
	if err != nil {
		return folder{}, err
	}
	for name := range strings.SplitSeq(strings.Trim(path.Clean(file), "/"), "/") {
		if name == "" {
			break
		}
		sub, err := in.enter(name)
		in.close()
		if err != nil {
			return folder{}, err
		}
		in = sub
	}
	return in, nil
}
