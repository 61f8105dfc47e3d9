package docker

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

func TestConformance(t *testing.T) {
	e := dockertest.Shared(t)
	conformance(t, e.Host(), e)
}

// conformance is what is demanded of every engine that runs on this host.
func conformance(t *testing.T, url string, h helper) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, url string, h helper)
	}{
		{"a list is whole", listIsWhole},
		{"changes are told", changesAreTold},
		{"a stop is a signal to the init", stopSignals},
		{"a removal removes", removeRemoves},
		{"six removals at once", sixRemovals},
		{"a removal against an auto-removal", autoRemovals},
		{"an owner by name", ownerByName},
		{"an owner by ID", ownerByID},
		{"an owner that is many", ownerAmbiguous},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, url, h) })
	}
}

func inspectOf(t *testing.T, h helper, id string) container.InspectResponse {
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

func listIsWhole(t *testing.T, url string, h helper) {
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
			[]watch.State{watch.Restarting, watch.Running, watch.Stopped}, terms,
		},
		h.Run(t, dockertest.ContainerOptions{Name: "a-name", Labels: owned(watch.LabelTTL, "1h", watch.LabelStopTimeout, "1s", watch.LabelKeep, "true")}): {
			[]watch.State{watch.Running}, long,
		},
	}
	e, _ := connect(t, url)
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
			if slices.Contains(w.states, watch.Restarting) {
				continue // its init comes and goes
			}
			if s.Init.PID != c.State.Pid || s.Init.PID != 0 && (s.Init.Start == 0 || s.Init.Boot == "") {
				t.Errorf("%s: %s has init %+v, want %d", pass, s.State, s.Init, c.State.Pid)
			}
		}
	}
}

func changesAreTold(t *testing.T, url string, h helper) {
	e, r := connect(t, url)
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

func stopSignals(t *testing.T, url string, h helper) {
	e, r := connect(t, url)
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

func removeRemoves(t *testing.T, url string, h helper) {
	e, _ := connect(t, url)
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

func sixRemovals(t *testing.T, url string, h helper) {
	e, _ := connect(t, url)
	id := h.Run(t, dockertest.ContainerOptions{Labels: owned(), Args: []string{"spawn", "3"}})
	var all errgroup.Group
	for range 6 {
		all.Go(func() error { return e.Remove(t.Context(), containerID(id)) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	if h.Exists(t, id) {
		t.Error("still there")
	}
}

func autoRemovals(t *testing.T, url string, h helper) {
	e, r := connect(t, url)
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
func ownerByName(t *testing.T, url string, h helper) {
	e, r := connect(t, url)
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
	fresh, _ := connect(t, url)
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

func ownerByID(t *testing.T, url string, h helper) {
	_, r := connect(t, url)
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
func ownerAmbiguous(t *testing.T, url string, h helper) {
	_, r := connect(t, url)
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
