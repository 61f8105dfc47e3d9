package docker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"watcher/platform/process"
	"watcher/watch"
)

// concerns says what an event is reason to look at again.
func (e *Engine) concerns(msg events.Message) (changed []change) {
	if msg.Type == events.VolumeEventType || msg.Type == events.NetworkEventType {
		return e.concernsBelonging(msg)
	}
	switch msg.Action {
	case events.ActionCreate, events.ActionDestroy, events.ActionRemove:
		if e.hasBelongings() {
			changed = append(changed, whoUses)
		}
	case events.ActionDetach:
		if e.clients != nil {
			e.clients.detached(msg.Actor.ID)
		}
	case events.ActionStart, events.ActionRestart, events.ActionDie, events.ActionPause, events.ActionUnPause, events.ActionRename:
	default:
		return nil
	}
	if e.concernsContainer(msg) {
		changed = append(changed, change{watch.Container, msg.Actor.ID})
	}
	return changed
}

// concernsContainer reports whether the container that an event is about is a sandbox, or may be, or an owner.
func (e *Engine) concernsContainer(msg events.Message) bool {
	rules := e.rules.Load()
	if rules.mayMatch(msg) {
		return true
	}
	id, name := msg.Actor.ID, msg.Actor.Attributes["name"]
	gone := msg.Action == events.ActionDestroy || msg.Action == events.ActionRemove
	e.mu.Lock()
	known := e.containers[id] != nil
	_, shown := e.told[id]
	e.mu.Unlock()
	// Those that the client finder has to see, or has seen.
	return known || shown && gone || !shown && !gone && rules.clients || len(e.claimed(id, name)) > 0
}

// concernsBelonging is about volumes and networks. Their events do not carry labels, so each that is made is looked at.
func (e *Engine) concernsBelonging(msg events.Message) []change {
	c := change{watch.Network, msg.Actor.ID}
	if msg.Type == events.VolumeEventType {
		c = change{watch.Volume, cmp.Or(msg.Actor.ID, msg.Actor.Attributes["name"])} // Podman's have no ID
	}
	if c.name == "" || msg.Action != events.ActionCreate && !e.adapter(c.kind).knows(c.name) {
		return nil
	}
	return []change{c}
}

func (e *Engine) hasBelongings() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.belongings[watch.Volume])+len(e.belongings[watch.Network]) > 0
}

// follow looks at what changed, until ctx ends.
func (e *Engine) follow(ctx context.Context, cli *client.Client, changed *changes) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed.ready:
		}
		var rest []change
		for _, c := range changed.take() {
			if c.kind != watch.Container {
				rest = append(rest, c)
				continue
			}
			found, err := e.look(ctx, cli, c.name)
			if err != nil {
				// It cannot be left out: the full scan that follows makes up for it.
				found = []watch.Event{watch.LookFailed{ID: watch.ID{Kind: watch.Container, Name: c.name}, At: time.Now(), Err: err}}
			}
			e.post(found...)
		}
		if news := e.clientNews(); len(news) > 0 {
			e.post(news...)
		}
		e.belongingsChanged(ctx, cli, rest)
	}
}

// look finds out all about one container, as a sandbox and as an owner.
func (e *Engine) look(ctx context.Context, cli *client.Client, id string) ([]watch.Event, error) {
	var found []watch.Event
	sandbox := watch.ID{Kind: watch.Container, Name: id}
	asked := time.Now()
	c, err := inspect(ctx, cli, id)
	g := e.glance()
	switch {
	case errdefs.IsNotFound(err):
		e.mu.Lock()
		e.forget(id)
		e.mu.Unlock()
		found = append(found, watch.SandboxGone{ID: sandbox, At: time.Now()})
	case err != nil:
		return nil, err
	default:
		seen, err := e.sandbox(c, g)
		switch {
		case err != nil:
			return nil, err
		case seen.watched:
			found = append(found, watch.SandboxSeen{Sandbox: seen.sandbox, Asked: asked})
			found = append(append(found, e.clientsOf(seen.sandbox)...), seen.more...)
			for _, ref := range references(seen.sandbox.Terms) {
				found = append(found, e.lookForOwner(ctx, cli, ref)...)
			}
		case seen.lost:
			// As after a rename. Only a list can say so: a reap of it may have begun, and that is to be finished.
			found = append(found, watch.LookFailed{ID: sandbox, At: time.Now(), Err: errUnwatched})
		}
	}
	for _, ref := range e.claimed(id, c.Name) {
		found = append(found, e.lookForOwner(ctx, cli, ref)...)
	}
	return found, nil
}

// A glance is what one look has in common for all containers that it finds.
type glance struct {
	rules     *ruleset
	existed   uint64                     // when the engine had answered, see [watch.Sandbox]
	clientele func() (*clientele, error) // who lived then; only looked for if it matters
}

// glance belongs right behind an answer of the engine's.
func (e *Engine) glance() *glance {
	return &glance{existed: e.ticks(), rules: e.rules.Load(), clientele: sync.OnceValues(e.clientele)}
}

// ticks is the time by the clock that processes are dated with, or 0 if the containers are not on this machine (D5).
func (e *Engine) ticks() uint64 {
	e.mu.Lock()
	shared := e.shared
	e.mu.Unlock()
	if !shared {
		return 0
	}
	now, err := e.proc.Ticks()
	if err != nil {
		return 0 // not known
	}
	return now
}

// claimed are the claimed container references that a container has stood for, or stands for now.
func (e *Engine) claimed(id, name string) []string {
	name = strings.TrimPrefix(name, "/")
	e.mu.Lock()
	defer e.mu.Unlock()
	var refs []string
	for ref, ids := range e.owners {
		if ids[id] || ref == name || strings.HasPrefix(id, ref) {
			refs = append(refs, ref)
		}
	}
	return refs
}

// lookForOwner finds out what became of every container that a reference in a claim has stood for, and which one it
// stands for now.
func (e *Engine) lookForOwner(ctx context.Context, cli *client.Client, ref string) []watch.Event {
	e.mu.Lock()
	var before []string
	for id := range e.owners[ref] {
		before = append(before, id)
	}
	e.mu.Unlock()

	named := seeOwner(ctx, cli, ref, ref)
	named.Named = true
	found := []watch.Event{}
	for _, id := range before {
		if id == named.Container {
			continue
		}
		seen := seeOwner(ctx, cli, ref, id)
		if seen.Container == "" && seen.Life == watch.Exited {
			// It stays among those that ref has stood for while a sandbox claims ref: a list that is still under way may
			// have a sandbox bound to it yet, which must be told too. prune forgets them all.
			seen.Container, seen.Gone = id, true
		}
		found = append(found, seen)
	}
	e.mu.Lock()
	if e.owners[ref] == nil {
		e.owners[ref] = map[string]bool{}
	}
	if named.Container != "" {
		e.owners[ref][named.Container] = true
	}
	e.mu.Unlock()
	return append(found, named)
}

func seeOwner(ctx context.Context, cli *client.Client, ref, id string) watch.ContainerSeen {
	seen := watch.ContainerSeen{Ref: ref, Asked: time.Now()}
	c, err := inspect(ctx, cli, id)
	switch {
	case errdefs.IsNotFound(err):
		switch short, err := shortForSome(ctx, cli, id); {
		case err != nil:
			seen.Detail = err.Error()
		case short:
			seen.Detail = fmt.Sprintf("%q is no container's name, and short for several IDs", id)
		default:
			seen.Life = watch.Exited
		}
		return seen
	case err != nil:
		seen.Detail = err.Error()
		return seen
	}
	if id == ref && !names(ref, c.ID, c.Name) {
		seen.Detail = fmt.Sprintf("%q is short for container %s, but too short to mean it for certain", ref, c.ID)
		return seen
	}
	seen.Container = c.ID
	if seen.Created, err = time.Parse(time.RFC3339Nano, c.Created); err != nil {
		seen.Detail = fmt.Sprintf("container %s: created %q: %v", c.ID, c.Created, err)
		return seen
	}
	if c.HostConfig != nil {
		policy := c.HostConfig.RestartPolicy
		seen.Restarts = policy.IsAlways() || policy.IsUnlessStopped() || policy.IsOnFailure()
	}
	switch state(c.State.Status) {
	case watch.Stopped, watch.Dead:
		seen.Life = watch.Exited
		// The engine leaves out or zeroes the time of what never ran; then the picture takes the time of the look.
		seen.Since, _ = time.Parse(time.RFC3339Nano, c.State.FinishedAt)
	default:
		// One that was created may yet be started, and one that is being removed may still run.
		seen.Life = watch.Alive
	}
	return seen
}

// names reports whether a claim's reference means a container. The engine also takes the first few digits of an ID, but
// a name that is free today could be the first digits of a stranger's ID tomorrow. Twelve are what its tools print.
func names(ref, id, name string) bool {
	return ref == strings.TrimPrefix(name, "/") || len(ref) >= 12 && strings.HasPrefix(id, ref)
}

// shortForSome reports whether a reference that is said to name no container is the beginning of an ID. It then is that of
// several: Docker calls that an error, but Podman calls it not found.
func shortForSome(ctx context.Context, cli *client.Client, ref string) (bool, error) {
	if len(ref) >= 64 || strings.Trim(ref, "0123456789abcdef") != "" {
		return false, nil // a whole ID, or no part of any
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	alike, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("id", ref))})
	// The filter also lets through what has the reference elsewhere in its ID.
	return slices.ContainsFunc(alike, func(c container.Summary) bool { return strings.HasPrefix(c.ID, ref) }), err
}

// state is the word of an engine for the state of a container. Podman has one of its own for a container that has ended
// and is not yet cleaned up after.
func state(word string) watch.State {
	if word == "stopped" {
		return watch.Stopped
	}
	return watch.State(word)
}

func inspect(ctx context.Context, cli *client.Client, id string) (container.InspectResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := cli.ContainerInspect(ctx, id)
	switch {
	case err != nil:
		return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{}}, err
	case c.ContainerJSONBase == nil || c.State == nil || c.Config == nil:
		return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{}}, fmt.Errorf("inspect container %s: the engine's answer lacks its state", id)
	}
	return c, nil
}

// A sighting is what was found out about one container.
type sighting struct {
	exists  bool
	watched bool
	lost    bool          // it was watched before, and is not any more
	sandbox watch.Sandbox // if watched
	more    []watch.Event // what was found out about its owners on the way
}

// sandbox makes a sandbox of what an inspect told, and holds its init.
func (e *Engine) sandbox(c container.InspectResponse, g *glance) (sighting, error) {
	e.ask(c, g)
	terms, watched := e.terms(c.ID, facts(c), g)
	if !watched {
		e.mu.Lock()
		if e.containers[c.ID] == nil {
			e.others[c.ID] = other{c.Config.Image, time.Now()}
		}
		e.mu.Unlock()
		return e.unwatched(c.ID), nil
	}
	created, err := time.Parse(time.RFC3339Nano, c.Created)
	if err != nil {
		return sighting{}, fmt.Errorf("container %s: created %q: %w", c.ID, c.Created, err)
	}
	s := watch.Sandbox{
		ID:      watch.ID{Kind: watch.Container, Name: c.ID},
		Name:    strings.TrimPrefix(c.Name, "/"),
		Image:   c.Config.Image,
		State:   state(c.State.Status),
		Created: created,
		Terms:   terms,
	}
	s.Init, s.Existed = e.remember(s, c, g)
	return sighting{exists: true, watched: true, sandbox: s, more: e.lookAtSockets(s)}, nil
}

// terms says on what terms a container is watched, if it is. What cannot be found out changes nothing: a rule further
// down may not decide because one above it could not (W5).
func (e *Engine) terms(id string, f watch.Facts, g *glance) (watch.Terms, bool) {
	if g.rules.wantsClient(f) {
		e.mu.Lock()
		t, ok := e.told[id]
		e.mu.Unlock()
		if !ok || t.doubt {
			return e.before(id, f.Labels, g)
		}
		f.Client = t.had
	}
	return g.rules.Terms(f)
}

// before are the terms on which a container has been watched by these rules until now, or else those of its own labels.
func (e *Engine) before(id string, labels map[string]string, g *glance) (watch.Terms, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[id]; c != nil && c.watched && c.by == g.rules {
		return c.terms, true
	}
	return watch.ParseTerms(labels)
}

// unwatched notes that a container is not watched. What was known of one that was stays known, with its init, until it is
// gone: a reap of it may have begun.
func (e *Engine) unwatched(id string) sighting {
	seen := sighting{exists: true}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[id]; c != nil {
		seen.lost = c.watched
		c.watched, c.seen = false, time.Now()
	}
	return seen
}

// remember notes a container that is watched and holds its init, if it has one and it can be proven (D4).
func (e *Engine) remember(s watch.Sandbox, full container.InspectResponse, g *glance) (init watch.Process, existed uint64) {
	id, pid := full.ID, full.State.Pid
	e.mu.Lock()
	c := e.containers[id]
	if c == nil {
		c = &known{created: s.Created, image: s.Image, mounts: full.Mounts}
		e.containers[id] = c
		delete(e.others, id)
	}
	c.seen = time.Now()
	existed = c.update(s.Terms, g)
	held, shared := c.init, e.shared
	e.mu.Unlock()
	if held != nil && held.Process().PID == pid {
		return held.Process(), existed
	}
	if pid <= 0 || !shared {
		return watch.Process{}, existed
	}
	held, err := e.openInit(id, pid)
	if err != nil {
		// It cannot be stopped at once. The engine will do it, and the log says how long it took.
		return watch.Process{}, existed
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.containers[id] != c {
		_ = held.Close()
		return watch.Process{}, existed
	}
	if c.init != nil {
		_ = c.init.Close()
	}
	c.init = held
	go e.await(id, c, held)
	return held.Process(), existed
}

// update takes in that the container was just seen to exist, and on what terms it is watched.
func (c *known) update(terms watch.Terms, g *glance) (existed uint64) {
	c.terms, c.by, c.watched = terms, g.rules, true
	if c.existed == 0 {
		c.existed = g.existed // later ones are only greater
	}
	return c.existed
}

// openInit holds the process that an engine says is a container's init. The engine's word may be old, and the number
// another's by now, so the cgroup decides.
func (e *Engine) openInit(id string, pid int) (*process.Handle, error) {
	init, err := e.proc.Open(pid)
	if err != nil {
		return nil, err
	}
	cgroups, err := init.ReadFile("cgroup")
	if err == nil && !inCgroupOf(string(cgroups), id) {
		err = fmt.Errorf("process %d is in no cgroup of container %s", pid, id)
	}
	if err != nil {
		_ = init.Close()
		return nil, err
	}
	return init, nil
}

// inCgroupOf reports whether the content of a /proc/PID/cgroup (cgroups(7)) names the container. Its cgroup is called
// ID by Docker and libpod-ID by Podman, and docker-ID.scope or libpod-ID.scope where systemd makes it. No other name
// will do: libpod-conmon-ID.scope, for one, has the process that looks after the container.
func inCgroupOf(content, id string) bool {
	if id == "" {
		return false
	}
	for line := range strings.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for part := range strings.SplitSeq(fields[2], "/") {
			switch part {
			case id, "libpod-" + id, "docker-" + id + ".scope", "libpod-" + id + ".scope":
				return true
			}
		}
	}
	return false
}

// await tells of the death of a container's init.
func (e *Engine) await(id string, c *known, init *process.Handle) {
	if err := init.Wait(); err != nil {
		return // let go of
	}
	e.post(watch.InitExited{ID: watch.ID{Kind: watch.Container, Name: id}, Process: init.Process(), At: time.Now()})
	e.mu.Lock()
	if c.init == init {
		c.init = nil
	}
	e.mu.Unlock()
	_ = init.Close()
}

// List lists all containers that are watched, and behind them looks at the containers that own some.
func (e *Engine) List(ctx context.Context) ([]watch.Event, error) {
	cli, err := e.client()
	if err != nil {
		return nil, err
	}
	var found []watch.Event
	e.mu.Lock()
	shared := e.shared
	e.mu.Unlock()
	if !shared {
		// Perhaps the engine could merely not say where it runs when the session began.
		found = append(found, e.namespaces(ctx, cli)...)
	}
	asked := time.Now()
	all, err := cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list the containers of the engine at %s: %w", e.host, err)
	}
	g := e.glance()
	sightings := make([]sighting, len(all))
	var looks errgroup.Group
	looks.SetLimit(2 * runtime.GOMAXPROCS(0))
	for i, line := range all {
		looks.Go(func() error {
			sightings[i] = e.listed(ctx, cli, line, g)
			return nil
		})
	}
	_ = looks.Wait() // none of them fails
	listed := watch.Listed{Kind: watch.Container, Asked: asked}
	var behind []watch.Event
	refs := map[string]bool{}
	for i, seen := range sightings {
		switch {
		case seen.watched:
			listed.Sandboxes = append(listed.Sandboxes, seen.sandbox)
			behind = append(behind, seen.more...)
			for _, ref := range references(seen.sandbox.Terms) {
				refs[ref] = true
			}
		case seen.exists:
			listed.Unwatched = append(listed.Unwatched, watch.ID{Kind: watch.Container, Name: all[i].ID})
		}
	}
	e.prune(all, asked)
	found = append(append(found, listed), behind...)
	found = append(append(found, e.clientNews()...), e.clientsOf(listed.Sandboxes...)...)
	for ref := range refs {
		found = append(found, e.lookForOwner(ctx, cli, ref)...)
	}
	return found, nil
}

// prune forgets containers that are not in a list and not younger than it, but for those that run, and the owners that
// none of the remaining ones claims.
func (e *Engine) prune(all []container.Summary, asked time.Time) {
	listed := make(map[string]bool, len(all))
	for _, c := range all {
		listed[c.ID] = true
	}
	e.memory.prune(listed, asked)
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, c := range e.containers {
		if !listed[id] && c.init == nil && c.seen.Before(asked) {
			e.forget(id)
		}
	}
	for id, c := range e.others {
		if !listed[id] && c.seen.Before(asked) {
			e.forget(id)
		}
	}
	for id, t := range e.told {
		// It may have gone while the finder was asked about it.
		if !listed[id] && e.containers[id] == nil && t.seen.At.Before(asked) {
			e.forget(id)
		}
	}
	e.pruneOwners()
}

// pruneOwners forgets the owners that nobody claims. The caller holds the lock.
func (e *Engine) pruneOwners() {
	claimed := map[string]bool{}
	for _, c := range e.containers {
		for _, ref := range references(c.terms) {
			claimed[ref] = true
		}
	}
	for _, kind := range e.belongings {
		for _, b := range kind {
			for _, ref := range references(b.terms) {
				claimed[ref] = true
			}
		}
	}
	maps.DeleteFunc(e.owners, func(ref string, _ map[string]bool) bool { return !claimed[ref] })
}

// listed finds out about a container from a line of a list. The list does not say everything, so a container that is new
// or whose init is not held is looked at, if it is watched or may be. One that cannot be looked at is as the list has it,
// so that one which the engine chokes on does not hide the others.
func (e *Engine) listed(ctx context.Context, cli *client.Client, line container.Summary, g *glance) sighting {
	now := state(line.State)
	f, sure := factsOf(line)
	e.mu.Lock()
	c := e.containers[line.ID]
	known := c != nil && (c.init != nil || !now.Runs() || !e.shared)
	if stranger, ok := e.others[line.ID]; c != nil {
		f.Image, sure = c.image, true
	} else if ok {
		f.Image, sure = stranger.image, true
	}
	e.mu.Unlock()
	sure = sure || !g.rules.images
	show := e.unasked(line.ID, g)
	if show {
		_, err := g.clientele()
		show = err == nil
	}
	terms, watched := e.terms(line.ID, f, g)
	if !sure || show || watched && !known {
		full, err := inspect(ctx, cli, line.ID)
		if errdefs.IsNotFound(err) {
			return sighting{} // it went meanwhile
		}
		if err == nil {
			if seen, err := e.sandbox(full, g); err == nil {
				return seen
			}
		}
		if !sure {
			terms, watched = e.before(line.ID, line.Labels, g)
		}
	}
	if !watched {
		return e.unwatched(line.ID)
	}
	s := watch.Sandbox{
		ID:   watch.ID{Kind: watch.Container, Name: line.ID},
		Name: f.Name, Image: f.Image, State: now, Terms: terms, Existed: g.existed,
		// The list has it cut to seconds. Cut the other way, it does not make an owner look too young.
		Created: time.Unix(line.Created+1, 0),
	}
	e.mu.Lock()
	if c := e.containers[line.ID]; c != nil {
		s.Created, s.Existed = c.created, c.update(terms, g)
		if c.init != nil {
			s.Init = c.init.Process()
		}
	}
	e.mu.Unlock()
	return sighting{exists: true, watched: true, sandbox: s, more: e.lookAtSockets(s)}
}

// remove asks the engine once. A conflict means that a removal is under way: look again until it is gone.
func remove(ctx context.Context, cli *client.Client, id string) error {
	err := cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return nil
	case errdefs.IsConflict(err):
		return err
	}
	// Podman answers 500 where Docker says that a removal is under way or that nothing is there, and where it fails to kill
	// what has just ended by itself: then it will do the next time.
	c, lookErr := inspect(ctx, cli, id)
	switch {
	case errdefs.IsNotFound(lookErr):
		return nil
	case errdefs.IsInternal(err) && lookErr == nil && state(c.State.Status) != watch.Dead:
		return err
	default:
		return backoff.Permanent(err)
	}
}
