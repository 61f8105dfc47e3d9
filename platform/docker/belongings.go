package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"watcher/watch"
)

// kinds are the kinds of sandboxes that an engine has: containers, and what belongs to them.
var kinds = []watch.Kind{watch.Container, watch.Volume, watch.Network}

// Belongings are the volumes of an engine, or its networks: what containers refer to, and leave behind. They come from
// [Engine.Volumes] and [Engine.Networks], share the session and the rules of their engine, and are safe for concurrent
// use.
type Belongings struct {
	engine *Engine
	kind   watch.Kind

	all    func(context.Context, *client.Client) ([]item, error)
	one    func(ctx context.Context, cli *client.Client, slot string) (item, error)
	remove func(ctx context.Context, cli *client.Client, slot string) error
	slot   func(id string) string
}

// An item is a volume or network as the engine tells of it.
type item struct {
	slot    string // by which the engine is asked about it
	id      string // what we call it
	name    string
	created time.Time
	labels  map[string]string
	foreign bool // not ours to judge, whatever its labels say
}

// A belonging is what is remembered of an item that is watched, or once was, between looks.
type belonging struct {
	item             // as it was when it was first seen
	latest time.Time // when it was created, by the engine's latest word
	users  []string  // the containers that referred to it
	seen   time.Time // when it was last looked at

	existed uint64 // see [watch.Sandbox]
	terms   watch.Terms
	watched bool
}

// is reports whether the item that is in the slot of b now is the same. A volume's time of creation may move, see
// [volumeID]; but one that a container refers to cannot be removed, so if one that did still does it is the same.
func (b *belonging) is(it item, users []string) bool {
	if it.id == b.id && it.slot == it.id {
		return true // the engine itself names it for good
	}
	both := slices.ContainsFunc(users, func(id string) bool { return slices.Contains(b.users, id) })
	return maps.Equal(it.labels, b.labels) && (it.created.Equal(b.latest) || both)
}

// Kind is the kind of sandbox that they are.
func (b *Belongings) Kind() watch.Kind { return b.kind }

// List lists all that are watched, and behind them looks at the containers that own some.
func (b *Belongings) List(ctx context.Context) ([]watch.Event, error) {
	e := b.engine
	cli, err := e.client()
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	items, err := b.all(ctx, cli)
	if err != nil {
		return nil, fmt.Errorf("list the %ss of the engine at %s: %w", b.kind, e.host, err)
	}
	used := sync.OnceValues(func() (*usage, error) { return usageOf(ctx, cli) })
	g := e.glance()
	listed := watch.Listed{Kind: b.kind, Asked: asked}
	slots, refs := map[string]bool{}, map[string]bool{}
	for _, it := range items {
		slots[it.slot] = true
		users, err := b.users(it, g, used)
		if err != nil {
			return nil, fmt.Errorf("list who uses the %ss of the engine at %s: %w", b.kind, e.host, err)
		}
		seen := b.see(it, users, g)
		switch {
		case seen.watched:
			listed.Sandboxes = append(listed.Sandboxes, seen.sandbox)
			for _, ref := range references(seen.sandbox.Terms) {
				refs[ref] = true
			}
		case !it.foreign:
			listed.Unwatched = append(listed.Unwatched, seen.sandbox.ID)
		}
	}
	b.prune(slots, asked)
	found := []watch.Event{listed}
	for ref := range refs {
		found = append(found, e.lookForOwner(ctx, cli, ref)...)
	}
	return found, nil
}

// users returns the containers that refer to an item, if that matters.
func (b *Belongings) users(it item, g *glance, used func() (*usage, error)) ([]string, error) {
	if _, watched := g.rules.Terms(b.facts(it)); !watched && !b.knows(it.slot) || it.foreign {
		return nil, nil
	}
	now, err := used()
	if err != nil {
		return nil, err
	}
	return now.by(b.kind, it), nil
}

func (b *Belongings) facts(it item) watch.Facts {
	return watch.Facts{Kind: b.kind, Name: it.name, Labels: it.labels}
}

// see takes in an item and the containers that refer to it. Of one that is not watched the sighting has only the ID.
func (b *Belongings) see(it item, users []string, g *glance) (seen sighting) {
	seen.exists = true
	terms, watched := g.rules.Terms(b.facts(it))
	e := b.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	known := e.belongings[b.kind][it.slot]
	if known != nil && !known.is(it, users) {
		seen.more = append(seen.more, watch.SandboxGone{ID: watch.ID{Kind: b.kind, Name: known.id}, At: time.Now()})
		delete(e.belongings[b.kind], it.slot)
		known = nil
	}
	seen.watched = watched && !it.foreign
	switch {
	case known != nil:
	case !seen.watched:
		seen.sandbox.ID = watch.ID{Kind: b.kind, Name: it.id}
		return seen
	default:
		known = &belonging{item: it}
		e.belongings[b.kind][it.slot] = known
	}
	seen.lost = known.watched && !seen.watched
	if known.watched = seen.watched; seen.watched {
		known.terms = terms
	}
	known.latest, known.users, known.seen = it.created, users, time.Now()
	if known.existed == 0 {
		known.existed = g.existed // later ones are only greater
	}
	seen.sandbox = watch.Sandbox{
		ID:   watch.ID{Kind: b.kind, Name: known.id},
		Name: it.name, State: watch.Created, Created: known.created,
		Terms: known.terms, InUse: len(users) > 0, Existed: known.existed,
	}
	return seen
}

// prune forgets those that are not in a list and not younger than it.
func (b *Belongings) prune(slots map[string]bool, asked time.Time) {
	e := b.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.belongings[b.kind], func(slot string, known *belonging) bool {
		return !slots[slot] && known.seen.Before(asked)
	})
	e.pruneOwners()
}

// Stop returns an error: nothing runs in a volume or network.
func (b *Belongings) Stop(id watch.ID, _ watch.Step) error {
	return fmt.Errorf("%s: nothing runs in it", id)
}

// Remove has the engine remove it. One that a container refers to, running or not, is left with an error; one that is not
// what was meant any more is left with success, since what was meant is gone.
func (b *Belongings) Remove(ctx context.Context, id watch.ID) error {
	cli, err := b.engine.client()
	if err != nil {
		return err
	}
	return b.removeWith(ctx, cli, id)
}

// RemoveOnce is [Belongings.Remove] on a connection of its own, for those who have no session.
func (b *Belongings) RemoveOnce(ctx context.Context, id watch.ID) error {
	cli, err := b.engine.dial(ctx)
	if err != nil {
		return b.engine.hint(err)
	}
	return errors.Join(b.removeWith(ctx, cli, id), cli.Close())
}

func (b *Belongings) removeWith(ctx context.Context, cli *client.Client, id watch.ID) error {
	slot := b.slot(id.Name)
	// The engine lets a network go that stopped containers refer to, which could then not be started any more.
	used, err := usageOf(ctx, cli)
	if err != nil {
		return fmt.Errorf("remove %s: find out who uses it: %w", id, err)
	}
	it, err := b.one(ctx, cli, slot)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("remove %s: look at it again: %w", id, err)
	}
	users := used.by(b.kind, it)
	switch {
	case !b.meant(id, it, users):
		return nil
	case len(users) > 0:
		return fmt.Errorf("remove %s: %w: container %.12s refers to it", id, watch.ErrInUse, users[0])
	}
	err = b.remove(ctx, cli, slot)
	if errdefs.IsPermissionDenied(err) {
		// Docker's word for a network that somebody has come to use meanwhile, and anybody's for what we may not do.
		if used, usedErr := usageOf(ctx, cli); usedErr == nil && len(used.by(b.kind, it)) > 0 {
			err = fmt.Errorf("%w: %w", watch.ErrInUse, err)
		}
	}
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return nil
	case errdefs.IsConflict(err):
		return fmt.Errorf("remove %s: %w: %w", id, watch.ErrInUse, err)
	default:
		return fmt.Errorf("remove %s: %w", id, err)
	}
}

// meant reports whether an item is the one that an ID names. Where that was not seen yet, its name and time of creation
// must be the same, and it must be watched.
func (b *Belongings) meant(id watch.ID, it item, users []string) bool {
	e := b.engine
	_, watched := e.rules.Load().Terms(b.facts(it))
	e.mu.Lock()
	defer e.mu.Unlock()
	if known := e.belongings[b.kind][it.slot]; known != nil && known.id == id.Name {
		return known.is(it, users)
	}
	return it.id == id.Name && watched && !it.foreign
}

// A usage says which containers refer to what.
type usage struct {
	volumes  map[string][]string // by name
	networks map[string][]string // by name or ID, as the engine has it
}

func (u *usage) by(kind watch.Kind, it item) []string {
	if kind == watch.Volume {
		return u.volumes[it.slot]
	}
	// Two networks may have one name (until version 24). Then both count as used.
	return slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(u.networks[it.slot]), u.networks[it.name]...))))
}

// usageOf asks which containers refer to which volumes and networks, whether they run or not.
func usageOf(ctx context.Context, cli *client.Client) (*usage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	all, err := cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	used := &usage{volumes: map[string][]string{}, networks: map[string][]string{}}
	var mu sync.Mutex
	note := func(id string, mounts []container.MountPoint, networks []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range mounts {
			if m.Name != "" {
				used.volumes[m.Name] = append(used.volumes[m.Name], id)
			}
		}
		for _, name := range networks {
			used.networks[name] = append(used.networks[name], id)
		}
	}
	var looks errgroup.Group
	looks.SetLimit(2 * runtime.GOMAXPROCS(0))
	for _, line := range all {
		if line.Mounts != nil && line.NetworkSettings != nil {
			note(line.ID, line.Mounts, networksOf(line.HostConfig.NetworkMode, line.NetworkSettings.Networks))
			continue
		}
		looks.Go(func() error { // an engine whose list does not tell
			c, err := inspect(ctx, cli, line.ID)
			switch {
			case errdefs.IsNotFound(err):
				return nil
			case err != nil:
				return err
			case c.HostConfig == nil || c.NetworkSettings == nil:
				return fmt.Errorf("inspect container %s: the engine's answer lacks its networks", line.ID)
			}
			note(c.ID, c.Mounts, networksOf(string(c.HostConfig.NetworkMode), c.NetworkSettings.Networks))
			return nil
		})
	}
	if err := looks.Wait(); err != nil {
		return nil, err
	}
	return used, nil
}

// belongingsChanged looks at volumes and networks that changed, and at those that are in use no more, or newly, if the
// containers did.
func (e *Engine) belongingsChanged(ctx context.Context, cli *client.Client, changed []change) {
	if len(changed) == 0 {
		return
	}
	asked := time.Now()
	used := sync.OnceValues(func() (*usage, error) { return usageOf(ctx, cli) })
	for _, c := range changed {
		if c != whoUses {
			e.post(e.adapter(c.kind).look(ctx, cli, c.name, used, asked)...)
		}
	}
	if !slices.Contains(changed, whoUses) {
		return
	}
	now, err := used()
	if err != nil {
		e.post(watch.LookFailed{ID: watch.ID{Kind: watch.Volume}, At: time.Now(), Err: fmt.Errorf("find out who uses volumes and networks: %w", err)})
		return
	}
	for _, b := range []*Belongings{e.Volumes(), e.Networks()} {
		for _, slot := range b.moved(now) {
			e.post(b.look(ctx, cli, slot, used, asked)...)
		}
	}
}

// moved returns those that are watched and came into use, or went out of it, since they were last looked at.
func (b *Belongings) moved(now *usage) (slots []string) {
	e := b.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	for slot, known := range e.belongings[b.kind] {
		if (len(known.users) > 0) != (len(now.by(b.kind, known.item)) > 0) {
			slots = append(slots, slot)
		}
	}
	return slots
}

// look finds out all about what is in a slot.
func (b *Belongings) look(ctx context.Context, cli *client.Client, slot string, used func() (*usage, error), asked time.Time) []watch.Event {
	failed := func(id string, err error) []watch.Event {
		return []watch.Event{watch.LookFailed{ID: watch.ID{Kind: b.kind, Name: id}, At: time.Now(), Err: err}}
	}
	it, err := b.one(ctx, cli, slot)
	if errdefs.IsNotFound(err) {
		e := b.engine
		e.mu.Lock()
		defer e.mu.Unlock()
		known := e.belongings[b.kind][slot]
		if known == nil {
			return nil
		}
		delete(e.belongings[b.kind], slot)
		return []watch.Event{watch.SandboxGone{ID: watch.ID{Kind: b.kind, Name: known.id}, At: time.Now()}}
	}
	if err != nil {
		return failed(slot, err)
	}
	g := b.engine.glance()
	users, err := b.users(it, g, used)
	if err != nil {
		return failed(it.id, fmt.Errorf("find out who uses it: %w", err))
	}
	seen := b.see(it, users, g)
	found := seen.more
	switch {
	case seen.watched:
		found = append(found, watch.SandboxSeen{Sandbox: seen.sandbox, Asked: asked})
		for _, ref := range references(seen.sandbox.Terms) {
			found = append(found, b.engine.lookForOwner(ctx, cli, ref)...)
		}
	case seen.lost:
		found = append(found, failed(seen.sandbox.ID.Name, errUnwatched)...)
	}
	return found
}

// knows reports whether what is in a slot is watched, or once was.
func (b *Belongings) knows(slot string) bool {
	e := b.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.belongings[b.kind][slot] != nil
}

func (e *Engine) adapter(kind watch.Kind) *Belongings {
	if kind == watch.Volume {
		return e.Volumes()
	}
	return e.Networks()
}
