package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sync/errgroup"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// TestConformance demands the same of every sort of engine that is there. `make test-engines` sees to it that all are.
func TestConformance(t *testing.T) {
	for _, sort := range dockertest.Sorts {
		t.Run(string(sort), func(t *testing.T) {
			h := dockertest.Start(t, dockertest.Of(sort), dockertest.Reused())
			t.Log(h.Version(t))
			for _, tt := range []struct {
				name string
				test func(t *testing.T, h *dockertest.Engine)
			}{
				{"its PIDs are ours", pidsAreOurs},
				{"a list is whole", listIsWhole},
				{"changes are told", changesAreTold},
				{"what was just before is told", justBefore},
				{"events carry the labels", eventsCarryLabels},
				{"only an init is held", onlyInit},
				{"a stop is a signal to the init", stopSignals},
				{"a removal removes", removeRemoves},
				{"a removal keeps a promise", removeKeepsPromise},
				{"six removals at once", sixRemovals},
				{"a removal against an auto-removal", autoRemovals},
				{"an owner by name", ownerByName},
				{"an owner by ID", ownerByID},
				{"an owner that is many", ownerAmbiguous},
				{"an engine that was killed", engineKilled},
			} {
				t.Run(tt.name, func(t *testing.T) { tt.test(t, h) })
			}
		})
	}
}

// traits are what sorts of engines differ in, as far as it shows.
type traits struct {
	// restarting are the states, beside running and exited, that a container which crashes and restarts may be in.
	restarting []watch.State
	// liveOn says that containers survive their engine's death and return.
	liveOn bool
	// gone is the event that ends a container's story.
	gone events.Action
	// underWay reports whether an error of a removal means that another one is under way, or was.
	underWay func(error) bool
}

var (
	likeDocker = traits{
		restarting: []watch.State{watch.Restarting},
		gone:       events.ActionDestroy,
		underWay:   func(err error) bool { return errdefs.IsConflict(err) || errdefs.IsNotFound(err) },
	}
	traitsOf = map[dockertest.Sort]traits{
		dockertest.Docker: likeDocker,
		dockertest.Newest: likeDocker,
		dockertest.Podman: {
			// It restarts a container at once and has no word for the time between; its word for a container that the
			// runtime has made ready and not started is seen instead.
			restarting: []watch.State{watch.Created, "initialized"},
			// Each container has a process that looks after it. The engine may come and go.
			liveOn: true,
			gone:   events.ActionRemove,
			// It does not see other removals coming: it fails in the middle of its own.
			underWay: func(err error) bool { return errdefs.IsInternal(err) || errdefs.IsNotFound(err) },
		},
	}
)

func inspectOf(t *testing.T, h *dockertest.Engine, id string) container.InspectResponse {
	t.Helper()
	c, err := h.Client().ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func listIsWhole(t *testing.T, h *dockertest.Engine) {
	h.Run(t, dockertest.ContainerOptions{Labels: map[string]string{"watche": "r", "x.watcher.owner": "1"}}) // a stranger
	exited := h.Run(t, dockertest.ContainerOptions{Labels: owned(), Args: []string{"exit", "3"}})
	h.WaitStopped(t, exited)
	terms := watch.Terms{Rule: watch.RuleLabels, Owners: []watch.Claim{{Kind: watch.ProcessClaim, Process: watch.Process{PID: 1}}}}
	long := terms
	long.TTL, long.StopTimeout, long.Keep = time.Hour, time.Second, true
	want := map[string]struct {
		states []watch.State
		terms  watch.Terms
	}{
		exited: {[]watch.State{watch.Stopped}, terms},
		h.Run(t, dockertest.ContainerOptions{Labels: owned(), NotStarted: true}): {[]watch.State{watch.Created}, terms},
		h.Run(t, dockertest.ContainerOptions{Labels: owned(), Paused: true}):     {[]watch.State{watch.Paused}, terms},
		h.Run(t, dockertest.ContainerOptions{Labels: owned(), Args: []string{"exit", "1"}, Restart: "always"}): {
			append(traitsOf[h.Sort()].restarting, watch.Running, watch.Stopped), terms,
		},
		h.Run(t, dockertest.ContainerOptions{Name: "a-name", Labels: owned(watch.LabelTTL, "1h", watch.LabelStopTimeout, "1s", watch.LabelKeep, "true")}): {
			[]watch.State{watch.Running}, long,
		},
	}
	e, _ := connect(t, h.Host())
	for _, pass := range []string{"first", "from memory"} {
		before := time.Now()
		got := listed(t, e)
		if got.Kind != watch.Container || got.Asked.Before(before) || got.Asked.After(time.Now()) {
			t.Errorf("%s: list of %s, asked %v", pass, got.Kind, got.Asked)
		}
		if len(got.Sandboxes) != len(want) {
			t.Errorf("%s: %d sandboxes, want %d: %+v", pass, len(got.Sandboxes), len(want), got.Sandboxes)
		}
		for _, s := range got.Sandboxes {
			w, ok := want[s.ID.Name]
			if !ok {
				t.Errorf("%s: %+v should not be listed", pass, s)
				continue
			}
			c := inspectOf(t, h, s.ID.Name)
			created, err := time.Parse(time.RFC3339Nano, c.Created)
			must(t, err)
			if !slices.Contains(w.states, s.State) || s.Name != strings.TrimPrefix(c.Name, "/") || s.Image != c.Config.Image ||
				!s.Created.Equal(created) || !reflect.DeepEqual(s.Terms, w.terms) {
				t.Errorf("%s: %+v, want %+v of %+v", pass, s, w, c.ContainerJSONBase)
			}
			if len(w.states) > 1 {
				continue // its init comes and goes
			}
			if s.Init.PID != c.State.Pid || s.Init.PID != 0 && (s.Init.Start == 0 || s.Init.Boot == "") {
				t.Errorf("%s: %s has init %+v, want %d", pass, s.State, s.Init, c.State.Pid)
			}
		}
	}
}

func changesAreTold(t *testing.T, h *dockertest.Engine) {
	e, r := connect(t, h.Host())
	api := h.Client()
	ctx := t.Context()

	id := h.Run(t, dockertest.ContainerOptions{Name: "first-name", Labels: owned(), NotStarted: true})
	s := await(t, r, 0, "created", seenAs(id, watch.Created)).Sandbox
	if s.Name != "first-name" || s.Init != (watch.Process{}) || s.Terms.Owners[0].Process.PID != 1 || s.Image != inspectOf(t, h, id).Config.Image {
		t.Errorf("created: %+v", s)
	}
	mark := r.mark()
	before := time.Now()
	must(t, api.ContainerStart(ctx, id, container.StartOptions{}))
	seen := await(t, r, mark, "started", seenAs(id, watch.Running))
	first := seen.Sandbox.Init
	if first.PID != inspectOf(t, h, id).State.Pid || seen.Asked.Before(before) || seen.Asked.After(time.Now()) {
		t.Errorf("started: %+v", seen)
	}
	mark = r.mark()
	must(t, api.ContainerPause(ctx, id))
	if s := await(t, r, mark, "paused", seenAs(id, watch.Paused)).Sandbox; s.Init != first {
		t.Errorf("paused: %+v", s)
	}
	mark = r.mark()
	must(t, api.ContainerUnpause(ctx, id))
	if s := await(t, r, mark, "unpaused", seenAs(id, watch.Running)).Sandbox; s.Init != first {
		t.Errorf("unpaused: %+v", s)
	}
	mark = r.mark()
	must(t, api.ContainerRename(ctx, id, "second-name"))
	await(t, r, mark, "renamed", func(ev watch.SandboxSeen) bool {
		return ev.Sandbox.ID.Name == id && ev.Sandbox.Name == "second-name"
	})
	for _, s := range listed(t, e).Sandboxes {
		if s.ID.Name == id && (s.Name != "second-name" || s.Init != first) {
			t.Errorf("listed: %+v", s)
		}
	}

	mark = r.mark()
	must(t, api.ContainerKill(ctx, id, "KILL"))
	await(t, r, mark, "died", seenAs(id, watch.Stopped))
	died := await(t, r, mark, "init exited", func(ev watch.InitExited) bool { return ev.ID == containerID(id) })
	if died.Process != first {
		t.Errorf("exited: %+v, want %+v", died, first)
	}
	mark = r.mark()
	must(t, api.ContainerStart(ctx, id, container.StartOptions{}))
	if s := await(t, r, mark, "started again", seenAs(id, watch.Running)).Sandbox; s.Init == first || s.Init.PID == 0 {
		t.Errorf("started again: %+v, was %+v", s, first)
	}
	mark = r.mark()
	before = time.Now()
	must(t, api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true}))
	if gone := await(t, r, mark, "gone", goneIs(id)); gone.At.Before(before) || gone.At.After(time.Now()) {
		t.Errorf("gone at %v", gone.At)
	}
	for _, s := range listed(t, e).Sandboxes {
		if s.ID.Name == id {
			t.Errorf("listed after its end: %+v", s)
		}
	}
}

// justBefore: a subscription reaches back, for the time between two sessions and for the moment that it takes to begin.
func justBefore(t *testing.T, h *dockertest.Engine) {
	id := h.Run(t, dockertest.ContainerOptions{Labels: owned()})
	must(t, h.Client().ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}))
	_, r := connect(t, h.Host())
	await(t, r, 0, "gone", goneIs(id))
}

// eventsCarryLabels: they tell from the first to the last that a container concerns us, and the last one must, since
// the container cannot be asked any more.
func eventsCarryLabels(t *testing.T, h *dockertest.Engine) {
	api := h.Client()
	ctx := t.Context()
	since := time.Now()
	id := h.Run(t, dockertest.ContainerOptions{Labels: owned(), Paused: true})
	must(t, api.ContainerUnpause(ctx, id))
	must(t, api.ContainerRename(ctx, id, "another-name"))
	must(t, api.ContainerKill(ctx, id, "KILL"))
	h.WaitStopped(t, id)
	must(t, api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true}))
	want := []events.Action{
		events.ActionCreate, events.ActionStart, events.ActionPause, events.ActionUnPause, events.ActionRename, events.ActionDie,
		traitsOf[h.Sort()].gone,
	}
	for _, msg := range story(t, h, id, since) {
		if len(want) > 0 && msg.Action == want[0] {
			want = want[1:]
		}
		if msg.Type != events.ContainerEventType || msg.Actor.ID != id || msg.Actor.Attributes[watch.LabelOwner] != "1" {
			t.Errorf("%+v, want the label", msg)
		}
	}
	if len(want) > 0 {
		t.Errorf("no event says %q, or too late", want)
	}
}

// story is all that an engine tells of a container that is gone.
func story(t *testing.T, h *dockertest.Engine, id string, since time.Time) (story []events.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	messages, errs := h.Client().Events(ctx, events.ListOptions{
		Since:   since.Format(time.RFC3339Nano),
		Filters: filters.NewArgs(filters.Arg("container", id)),
	})
	for {
		select {
		case msg := <-messages:
			story = append(story, msg)
			if msg.Action == traitsOf[h.Sort()].gone {
				return story
			}
		case err := <-errs:
			t.Fatalf("%v; the events so far: %+v", err, story)
		}
	}
}

func pidsAreOurs(t *testing.T, h *dockertest.Engine) {
	for _, containers := range []int{0, 1} {
		for range containers {
			h.Run(t, dockertest.ContainerOptions{})
		}
		_, r := connect(t, h.Host())
		if ns := await(t, r, 0, "namespace", anyOf[watch.NamespaceSeen]); !ns.Shared || ns.Detail != "" {
			t.Errorf("%d containers: %+v", containers, ns)
		}
	}
}

// onlyInit: a signal goes only to what the kernel says is in the container (D4).
func onlyInit(t *testing.T, h *dockertest.Engine) {
	e := New(h.Host(), newProc(t), nil)
	id := h.Run(t, dockertest.ContainerOptions{})
	init := inspectOf(t, h, id).State.Pid
	held, err := e.openInit(id, init)
	must(t, err)
	defer held.Close()
	stat, err := held.ReadFile("stat")
	must(t, err)
	var keeper int
	if _, err := fmt.Sscanf(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " %c %d", new(rune), &keeper); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{
		"who looks after it":            keeper,
		"the init of another container": inspectOf(t, h, h.Run(t, dockertest.ContainerOptions{})).State.Pid,
		"the engine":                    h.PID(),
	} {
		if held, err := e.openInit(id, pid); err == nil {
			t.Errorf("%s: opened %+v as the init of %s", name, held.Process(), id)
			_ = held.Close()
		}
	}
}

func stopSignals(t *testing.T, h *dockertest.Engine) {
	e, r := connect(t, h.Host())
	for _, tt := range []struct {
		step watch.Step
		args []string
		code int
	}{
		{watch.Terminate, nil, 0},
		{watch.Kill, nil, 137},
		{watch.Kill, []string{"deaf"}, 137},
	} {
		mark := r.mark()
		id := h.Run(t, dockertest.ContainerOptions{Labels: owned(), Args: tt.args})
		init := await(t, r, mark, "started", seenAs(id, watch.Running)).Sandbox.Init
		if tt.step == watch.Terminate {
			awaitHandler(t, init.PID)
		}
		if err := e.Stop(containerID(id), tt.step); err != nil {
			t.Fatal(err)
		}
		died := await(t, r, mark, "init exited", func(ev watch.InitExited) bool { return ev.ID == containerID(id) })
		await(t, r, mark, "stopped", seenAs(id, watch.Stopped))
		if c := inspectOf(t, h, id); died.Process != init || c.State.ExitCode != tt.code {
			t.Errorf("%s: %+v, exit code %d, want %+v, %d", tt.step, died, c.State.ExitCode, init, tt.code)
		}
	}
	created := h.Run(t, dockertest.ContainerOptions{Labels: owned(), NotStarted: true})
	await(t, r, 0, "created", seenAs(created, watch.Created))
	stranger := h.Run(t, dockertest.ContainerOptions{})
	for _, id := range []string{created, stranger, strings.Repeat("0", 64)} {
		if err := e.Stop(containerID(id), watch.Kill); err == nil {
			t.Errorf("Stop of %s = nil, and its init is not held", id)
		}
	}
	if c := inspectOf(t, h, stranger); !c.State.Running {
		t.Error("the stranger was hit")
	}
}

func removeRemoves(t *testing.T, h *dockertest.Engine) {
	e, _ := connect(t, h.Host())
	for _, tt := range []struct {
		name string
		opts dockertest.ContainerOptions
		then func(id string)
	}{
		{name: "running", opts: dockertest.ContainerOptions{Args: []string{"deaf"}}},
		{name: "paused", opts: dockertest.ContainerOptions{Paused: true}},
		{name: "killed while paused", opts: dockertest.ContainerOptions{Paused: true}, then: func(id string) {
			listed(t, e) // holds its init
			must(t, e.Stop(containerID(id), watch.Kill))
		}},
		{name: "created", opts: dockertest.ContainerOptions{NotStarted: true}},
		{name: "exited", opts: dockertest.ContainerOptions{Args: []string{"exit", "0"}}, then: func(id string) { h.WaitStopped(t, id) }},
		{name: "restarts always", opts: dockertest.ContainerOptions{Restart: "always"}},
		{name: "crashes and restarts", opts: dockertest.ContainerOptions{Args: []string{"exit", "1"}, Restart: "always"}},
		{name: "auto-remove", opts: dockertest.ContainerOptions{AutoRemove: true}},
	} {
		tt.opts.Labels, tt.opts.Volumes = owned(), []string{"/data"}
		id := h.Run(t, tt.opts)
		if tt.then != nil {
			tt.then(id)
		}
		mounts := inspectOf(t, h, id).Mounts
		if len(mounts) != 1 || mounts[0].Name == "" {
			t.Fatalf("%s: mounts %+v, want an anonymous volume", tt.name, mounts)
		}
		if err := e.Remove(t.Context(), containerID(id)); err != nil {
			t.Errorf("%s: Remove = %v", tt.name, err)
		}
		if h.Exists(t, id) {
			t.Errorf("%s: still there", tt.name)
		}
		if _, err := h.Client().VolumeInspect(t.Context(), mounts[0].Name); !errdefs.IsNotFound(err) {
			t.Errorf("%s: the volume is still there (%v)", tt.name, err)
		}
		if err := e.Remove(t.Context(), containerID(id)); err != nil {
			t.Errorf("%s: Remove of what is gone = %v", tt.name, err)
		}
	}
}

// removeKeepsPromise: a container that was promised time to finish, and cannot be asked directly, is asked through the
// engine.
func removeKeepsPromise(t *testing.T, h *dockertest.Engine) {
	since := time.Now()
	id := h.Run(t, dockertest.ContainerOptions{Labels: owned(watch.LabelStopTimeout, "1m")})
	awaitHandler(t, inspectOf(t, h, id).State.Pid)
	r := newRecord()
	e := New(h.Host(), nil, r.post) // without a view of processes, nothing is held
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Session(ctx) }()
	defer func() {
		cancel()
		receive(t, ended)
	}()
	await(t, r, 0, "connected", anyOf[watch.SourceBack])
	listed(t, e)
	must(t, e.Remove(t.Context(), containerID(id)))
	for _, msg := range story(t, h, id, since) {
		if code := msg.Actor.Attributes["exitCode"]; msg.Action == events.ActionDie && code != "0" {
			t.Errorf("it ended with %s, want 0, as on SIGTERM", code)
		}
	}
}

func sixRemovals(t *testing.T, h *dockertest.Engine) {
	e, _ := connect(t, h.Host())
	for name, remove := range map[string]func(id string) error{
		"ours": func(id string) error { return e.Remove(t.Context(), containerID(id)) },
		"the engine's": func(id string) error {
			err := h.Client().ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true})
			if traitsOf[h.Sort()].underWay(err) {
				return nil
			}
			return err
		},
	} {
		id := h.Run(t, dockertest.ContainerOptions{Labels: owned(), Args: []string{"spawn", "3"}})
		var all errgroup.Group
		for range 6 {
			all.Go(func() error { return remove(id) })
		}
		if err := all.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if h.Exists(t, id) {
			t.Errorf("%s: still there", name)
		}
	}
}

func autoRemovals(t *testing.T, h *dockertest.Engine) {
	e, r := connect(t, h.Host())
	var all errgroup.Group
	var ids []string
	for range 4 {
		id := h.Run(t, dockertest.ContainerOptions{Labels: owned(), AutoRemove: true, Volumes: []string{"/data"}})
		await(t, r, 0, "started", seenAs(id, watch.Running))
		ids = append(ids, id)
	}
	for _, id := range ids {
		all.Go(func() error {
			if err := e.Stop(containerID(id), watch.Kill); err != nil {
				return err
			}
			return e.Remove(t.Context(), containerID(id))
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		await(t, r, 0, "gone", goneIs(id))
		if h.Exists(t, id) {
			t.Errorf("%s is still there", id)
		}
	}
}

// A view is what the picture makes of a record.
type view struct {
	pic *watch.Picture
	at  int
}

// awaitOwner waits until the picture's opinion of a sandbox's owner is ok.
func (v *view) awaitOwner(t *testing.T, r *record, id, what string, ok func(watch.Owner) bool) watch.Owner {
	t.Helper()
	var owner watch.Owner
	timeout := time.After(patience)
	for {
		for _, ev := range r.since(v.at) {
			v.pic.Apply(ev)
			v.at++
			if entry := v.pic.Entry(containerID(id)); entry != nil {
				if owner = *entry.Owner(); ok(owner) {
					return owner
				}
			}
		}
		select {
		case <-r.more:
		case <-timeout:
			t.Fatalf("the owner is not %s: %+v", what, owner)
		}
	}
}

func alive(of string) func(watch.Owner) bool {
	return func(o watch.Owner) bool { return o.Life == watch.Alive && o.Container == of }
}

func exited(o watch.Owner) bool { return o.Life == watch.Exited && !o.Gone && !o.ExitedAt.IsZero() }
func gone(o watch.Owner) bool   { return o.Life == watch.Exited && o.Gone }

// ownerByName: a claim by name is bound to the container that has the name at first, and follows that one (W2).
func ownerByName(t *testing.T, h *dockertest.Engine) {
	e, r := connect(t, h.Host())
	api := h.Client()
	ctx := t.Context()
	sandbox := func(ref string) string {
		return h.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelOwner: "container:" + ref}, NotStarted: true})
	}
	v := &view{pic: watch.NewPicture("")}
	first := h.Run(t, dockertest.ContainerOptions{Name: "an-owner"})
	id := sandbox("an-owner")
	v.awaitOwner(t, r, id, "alive", alive(first))

	must(t, api.ContainerPause(ctx, first))
	must(t, api.ContainerUnpause(ctx, first))
	before := time.Now()
	must(t, api.ContainerKill(ctx, first, "KILL"))
	if o := v.awaitOwner(t, r, id, "exited", exited); o.ExitedAt.Before(before.Add(-time.Second)) || o.ExitedAt.After(time.Now()) {
		t.Errorf("exited at %v, was killed after %v", o.ExitedAt, before)
	}
	must(t, api.ContainerStart(ctx, first, container.StartOptions{}))
	v.awaitOwner(t, r, id, "alive again", alive(first))

	must(t, api.ContainerRename(ctx, first, "once-an-owner"))
	second := h.Run(t, dockertest.ContainerOptions{Name: "an-owner"})
	latecomer := sandbox("an-owner")
	v.awaitOwner(t, r, latecomer, "alive", alive(second))
	if o := v.pic.Entry(containerID(id)).Owner(); !alive(first)(*o) {
		t.Errorf("renamed: %+v, want %s alive", o, first)
	}
	must(t, api.ContainerRemove(ctx, first, container.RemoveOptions{Force: true}))
	v.awaitOwner(t, r, id, "gone", gone)
	if o := v.pic.Entry(containerID(latecomer)).Owner(); !alive(second)(*o) {
		t.Errorf("after the first one's end: %+v, want %s alive", o, second)
	}

	// A list says the same, also to somebody who has seen nothing of it.
	fresh, _ := connect(t, h.Host())
	for _, e := range []*Engine{e, fresh} {
		events, err := e.List(ctx)
		must(t, err)
		pic := watch.NewPicture("")
		for _, ev := range events {
			pic.Apply(ev)
		}
		// The second owner is younger than the first sandbox, which is thereby known not to be its.
		if o := pic.Entry(containerID(latecomer)).Owner(); !alive(second)(*o) {
			t.Errorf("listed: %+v, want %s alive", o, second)
		}
	}

	nobody := sandbox("no-such-container")
	v.awaitOwner(t, r, nobody, "gone", gone)
}

func ownerByID(t *testing.T, h *dockertest.Engine) {
	_, r := connect(t, h.Host())
	for _, length := range []int{64, 12} {
		v := &view{pic: watch.NewPicture("")}
		owner := h.Run(t, dockertest.ContainerOptions{})
		id := h.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelOwner: "container:" + owner[:length]}, NotStarted: true})
		v.awaitOwner(t, r, id, "alive", alive(owner))
		must(t, h.Client().ContainerKill(t.Context(), owner, "KILL"))
		v.awaitOwner(t, r, id, "exited", exited)
		must(t, h.Client().ContainerRemove(t.Context(), owner, container.RemoveOptions{}))
		v.awaitOwner(t, r, id, "gone", gone)
	}
}

// ownerAmbiguous: a prefix that several containers have names none of them, and is no proof that there is none.
func ownerAmbiguous(t *testing.T, h *dockertest.Engine) {
	_, r := connect(t, h.Host())
	byDigit := map[string]bool{}
	for i := 0; ; i++ {
		id := h.Run(t, dockertest.ContainerOptions{NotStarted: true})
		digit := id[:1]
		if !byDigit[digit] {
			byDigit[digit] = true
			continue
		}
		id = h.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelOwner: "container:" + digit}, NotStarted: true})
		seen := await(t, r, 0, "owner looked up", func(ev watch.ContainerSeen) bool { return ev.Ref == digit })
		if seen.Life != watch.Unknown || seen.Detail == "" {
			t.Errorf("%s: %+v, want unknown, and why", id, seen)
		}
		return
	}
}

// engineKilled: what becomes of the containers of an engine that is killed and comes back is told by a list, for a death
// without an engine has no event.
func engineKilled(t *testing.T, h *dockertest.Engine) {
	private := dockertest.Start(t, dockertest.Of(h.Sort()))
	e, r := connect(t, private.Host())
	stopped, left := private.Run(t, dockertest.ContainerOptions{Labels: owned()}), private.Run(t, dockertest.ContainerOptions{Labels: owned()})
	init := await(t, r, 0, "started", seenAs(stopped, watch.Running)).Sandbox.Init
	await(t, r, 0, "started", seenAs(left, watch.Running))

	mark := r.mark()
	private.Kill(t)
	await(t, r, mark, "lost", anyOf[watch.SourceLost])
	if err := e.Stop(containerID(stopped), watch.Kill); err != nil {
		t.Errorf("Stop = %v", err)
	}
	if died := await(t, r, mark, "init exited", anyOf[watch.InitExited]); died.Process != init || died.ID != containerID(stopped) {
		t.Errorf("exited %+v, want %+v", died, init)
	}

	mark = r.mark()
	private.Restart(t)
	await(t, r, mark, "back", anyOf[watch.SourceBack])
	if ns := await(t, r, mark, "namespace", anyOf[watch.NamespaceSeen]); !ns.Shared {
		t.Errorf("back: %+v", ns)
	}
	want := map[string]watch.State{stopped: watch.Stopped, left: watch.Stopped}
	if traitsOf[h.Sort()].liveOn {
		want[left] = watch.Running
	}
	got := map[string]watch.State{}
	for _, s := range listed(t, e).Sandboxes {
		got[s.ID.Name] = s.State
	}
	if !maps.Equal(got, want) {
		t.Errorf("back: %v, want %v", got, want)
	}
	for id := range want {
		must(t, e.Remove(t.Context(), containerID(id)))
		await(t, r, mark, "gone", goneIs(id))
	}
}

// TestNotFound: what an engine calls not found, as Podman does where a reference is short for several IDs, is gone only
// if no ID begins so.
func TestNotFound(t *testing.T) {
	for ref, want := range map[string]watch.Life{
		"0":                  watch.Unknown, // short for id1
		"1":                  watch.Exited,  // is in id1, and not where it begins
		"f12":                watch.Unknown, // short for id2
		"e":                  watch.Exited,
		"no-id":              watch.Exited,
		id1[:63] + "0":       watch.Exited,
		"bad":                watch.Unknown,
		strings.ToUpper(id2): watch.Exited,
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Api-Version", "1.41")
			w.Header().Set("Content-Type", "application/json")
			switch {
			case path(r) == "/_ping":
			case path(r) != "/containers/json":
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, `{"message":"no"}`)
			case r.FormValue("all") != "1" || r.FormValue("filters") != `{"id":{"`+ref+`":true}}` || ref == "bad":
				w.WriteHeader(http.StatusInternalServerError)
			default:
				_, _ = io.WriteString(w, `[{"Id":"`+id1+`"},{"Id":"`+id2+`"}]`)
			}
		}))
		e := New("tcp://"+strings.TrimPrefix(srv.URL, "http://"), nil, nil)
		cli, err := e.dial(t.Context())
		must(t, err)
		seen := seeOwner(t.Context(), cli, ref, ref)
		if seen.Life != want || (seen.Detail != "") != (want == watch.Unknown) {
			t.Errorf("%q: %+v, want %v", ref, seen, want)
		}
		e.hangUp(cli)
		srv.Close()
	}
}

// awaitHandler waits until the program of a container handles SIGTERM: a namespace's PID 1 is not hit by what it does not
// handle. That some program handles it is not enough, since that of runc has the same PID before.
func awaitHandler(t *testing.T, pid int) {
	t.Helper()
	proc := newProc(t)
	init, err := proc.Open(pid)
	must(t, err)
	defer init.Close()
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for deadline := time.Now().Add(patience); ; <-beat.C {
		comm, err := init.ReadFile("comm")
		must(t, err)
		if string(comm) == "ready\n" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the init does not say that it is ready; it is called %q", comm)
		}
	}
}
