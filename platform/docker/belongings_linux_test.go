package docker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/google/go-cmp/cmp"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// A bench makes volumes, networks and containers that use them, and removes them at the end of the test.
type bench struct {
	*dockertest.Engine
	t *testing.T
}

// named counts names: one that an earlier test has used may still be told of.
var named atomic.Int64

func (b *bench) name(kind watch.Kind) string {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, strings.ToLower(b.t.Name()))
	return fmt.Sprintf("x%s-%s-%d", plain, kind, named.Add(1))
}

// made waits until one that was made is seen. Podman does not tell of networks.
func (b *bench) made(e *Engine, r *record, mark int, kind watch.Kind, name string) watch.Sandbox {
	b.t.Helper()
	if kind == watch.Volume || b.Sort() != dockertest.Podman {
		return await(b.t, r, mark, "made", inUse(kind, name, false)).Sandbox
	}
	events, err := e.adapter(kind).List(b.t.Context())
	must(b.t, err)
	r.post(events...)
	s, ok := called(events[0].(watch.Listed), name)
	if !ok {
		b.t.Fatalf("not listed: %+v", events)
	}
	return s
}

// thing makes a volume or network and returns its slot.
func (b *bench) thing(kind watch.Kind, name string, labels map[string]string) string {
	b.t.Helper()
	ctx, api := b.t.Context(), b.Client()
	if kind == watch.Volume {
		v, err := api.VolumeCreate(ctx, volume.CreateOptions{Name: name, Labels: labels})
		must(b.t, err)
		b.t.Cleanup(func() { _ = api.VolumeRemove(context.WithoutCancel(ctx), name, true) })
		return v.Name
	}
	n, err := api.NetworkCreate(ctx, name, network.CreateOptions{Driver: "bridge", Labels: labels})
	must(b.t, err)
	b.t.Cleanup(func() { _ = api.NetworkRemove(context.WithoutCancel(ctx), n.ID) })
	return n.ID
}

func (b *bench) exists(kind watch.Kind, slot string) bool {
	b.t.Helper()
	var err error
	if kind == watch.Volume {
		_, err = b.Client().VolumeInspect(b.t.Context(), slot)
	} else {
		_, err = b.Client().NetworkInspect(b.t.Context(), slot, network.InspectOptions{})
	}
	if err != nil && !errdefs.IsNotFound(err) {
		b.t.Fatal(err)
	}
	return err == nil
}

func (b *bench) take(kind watch.Kind, slot string) {
	b.t.Helper()
	if kind == watch.Volume {
		must(b.t, b.Client().VolumeRemove(b.t.Context(), slot, false))
	} else {
		must(b.t, b.Client().NetworkRemove(b.t.Context(), slot))
	}
}

// user makes a container that refers to a volume or network.
func (b *bench) user(kind watch.Kind, slot string, labels map[string]string) string {
	b.t.Helper()
	ctx, api := b.t.Context(), b.Client()
	host := &container.HostConfig{NetworkMode: "none"}
	if kind == watch.Volume {
		host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: slot, Target: "/data"}}
	} else {
		host.NetworkMode = container.NetworkMode(slot)
	}
	c, err := api.ContainerCreate(ctx, &container.Config{Image: b.Image(b.t), Labels: labels}, host, nil, nil, "")
	must(b.t, err)
	b.t.Cleanup(func() {
		_ = api.ContainerRemove(context.WithoutCancel(ctx), c.ID, container.RemoveOptions{Force: true})
	})
	return c.ID
}

func belongingsOf(e *Engine, kind watch.Kind) *Belongings { return e.adapter(kind) }

// listedOf lists what there is of a kind.
func listedOf(t *testing.T, b *Belongings) watch.Listed {
	t.Helper()
	events, err := b.List(t.Context())
	must(t, err)
	l, ok := events[0].(watch.Listed)
	if !ok || l.Kind != b.Kind() || l.Asked.IsZero() {
		t.Fatalf("%+v, want a list of %ss", events, b.Kind())
	}
	return l
}

// called finds a sandbox by its name.
func called(l watch.Listed, name string) (watch.Sandbox, bool) {
	i := slices.IndexFunc(l.Sandboxes, func(s watch.Sandbox) bool { return s.Name == name })
	if i < 0 {
		return watch.Sandbox{}, false
	}
	return l.Sandboxes[i], true
}

func inUse(kind watch.Kind, name string, used bool) func(watch.SandboxSeen) bool {
	return func(ev watch.SandboxSeen) bool {
		s := ev.Sandbox
		return s.ID.Kind == kind && s.Name == name && s.InUse == used && s.State == watch.Created
	}
}

func gone1(id watch.ID) func(watch.SandboxGone) bool {
	return func(ev watch.SandboxGone) bool { return ev.ID == id }
}

// TestBelongings demands the same of every sort of engine that is there.
func TestBelongings(t *testing.T) {
	both := []watch.Kind{watch.Volume, watch.Network}
	for _, sort := range dockertest.Sorts {
		t.Run(string(sort), func(t *testing.T) {
			h := dockertest.Start(t, dockertest.Of(sort), dockertest.Reused())
			for _, tt := range []struct {
				name  string
				kinds []watch.Kind
				test  func(t *testing.T, kind watch.Kind, b *bench)
			}{
				{"a life", both, lifeOfABelonging},
				{"a removal", both, removeBelonging},
				{"an owner", both, ownerOfABelonging},
				{"failures", both, failToSeeABelonging},
				{"made again", []watch.Kind{watch.Volume}, madeAgain},
				{"written to", []watch.Kind{watch.Volume}, writtenTo},
			} {
				for _, kind := range tt.kinds {
					t.Run(tt.name+"/"+string(kind), func(t *testing.T) { tt.test(t, kind, &bench{Engine: h, t: t}) })
				}
			}
			t.Run("a group", func(t *testing.T) { groupOfThree(t, &bench{Engine: h, t: t}) })
		})
	}
}

// lifeOfABelonging takes a volume or network through its life: what lists say of it, and what events.
func lifeOfABelonging(t *testing.T, kind watch.Kind, b *bench) {
	e, r := connect(t, b.Host())
	all := belongingsOf(e, kind)
	before := time.Now().Truncate(time.Second)
	name, stranger := b.name(kind), b.name(kind)
	slot := b.thing(kind, name, map[string]string{watch.LabelTTL: "1h", watch.LabelGroup: "g"})
	b.thing(kind, stranger, map[string]string{"watche": "r"})
	seen := b.made(e, r, 0, kind, name)
	check := func(how string, s watch.Sandbox, used bool) {
		t.Helper()
		want := watch.Sandbox{
			ID: seen.ID, Name: name, State: watch.Created, Created: seen.Created, InUse: used, Existed: seen.Existed,
			Terms: watch.Terms{Rule: watch.RuleLabels, TTL: time.Hour, Group: "g", Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: "g"}}},
		}
		if diff := cmp.Diff(want, s); diff != "" {
			t.Errorf("%s: %s", how, diff)
		}
	}
	check("made", seen, false)
	if seen.Existed == 0 || seen.Created.Before(before) || seen.Created.After(time.Now()) {
		t.Errorf("made: %+v", seen)
	}
	if want := slot; kind == watch.Network && seen.ID.Name != want || kind == watch.Volume && seen.ID.Name != want+"@"+seen.Created.Format(time.RFC3339) {
		t.Errorf("it is %s", seen.ID)
	}
	list := func(how string, used bool) {
		t.Helper()
		l := listedOf(t, all)
		if s, ok := called(l, name); !ok {
			t.Errorf("%s: not listed: %+v", how, l)
		} else {
			check(how, s, used)
		}
		if _, ok := called(l, stranger); ok {
			t.Errorf("%s: the stranger is listed", how)
		}
		others := 0
		for _, id := range l.Unwatched {
			if id.Kind != kind {
				t.Errorf("%s: %s among the others", how, id)
			}
			if kind == watch.Network && id.Name == slot || strings.HasPrefix(id.Name, stranger+"@") {
				others++
			}
		}
		if kind == watch.Volume && others != 1 {
			t.Errorf("%s: the others are %v", how, l.Unwatched)
		}
	}
	list("listed", false)

	// Created and never started, stopped, running: a container that refers to it uses it.
	mark := r.mark()
	id := b.user(kind, slot, nil)
	check("used by one that never ran", await(t, r, mark, "used", inUse(kind, name, true)).Sandbox, true)
	list("used by one that never ran", true)
	must(t, b.Client().ContainerStart(t.Context(), id, container.StartOptions{}))
	list("used by one that runs", true)
	must(t, b.Client().ContainerKill(t.Context(), id, "KILL"))
	b.WaitStopped(t, id)
	list("used by one that ran", true)
	mark = r.mark()
	must(t, b.Client().ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}))
	check("free", await(t, r, mark, "free", inUse(kind, name, false)).Sandbox, false)
	list("free", false)

	mark = r.mark()
	b.take(kind, slot)
	if kind == watch.Volume || b.Sort() != dockertest.Podman {
		await(t, r, mark, "gone", gone1(seen.ID))
	}
	if _, ok := called(listedOf(t, all), name); ok {
		t.Error("listed after its end")
	}
	if all.engine.adapter(kind).knows(slot) {
		t.Error("it is still remembered")
	}
}

// TestPredefined: what an engine has by itself is not listed, not even among the others, and not removed.
func TestPredefined(t *testing.T) {
	private := dockertest.Shared(t)
	e, _ := connect(t, private.Host())
	l := listedOf(t, e.Networks())
	for _, name := range []string{"host", "none"} {
		n, err := private.Client().NetworkInspect(t.Context(), name, network.InspectOptions{})
		must(t, err)
		id := watch.ID{Kind: watch.Network, Name: n.ID}
		if _, ok := called(l, name); ok || slices.Contains(l.Unwatched, id) {
			t.Errorf("%s is listed: %+v", name, l)
		}
		if err := e.Networks().Remove(t.Context(), id); err != nil {
			t.Errorf("Remove of %s = %v", name, err)
		}
		if _, err := private.Client().NetworkInspect(t.Context(), n.ID, network.InspectOptions{}); err != nil {
			t.Error(err)
		}
	}
}

// removeBelonging: what a container refers to, in whatever state, is left; that it is gone is success.
func removeBelonging(t *testing.T, kind watch.Kind, b *bench) {
	e, r := connect(t, b.Host())
	all := belongingsOf(e, kind)
	name := b.name(kind)
	slot := b.thing(kind, name, map[string]string{watch.LabelTTL: "1h"})
	id := b.made(e, r, 0, kind, name).ID
	if err := all.Stop(id, watch.Kill); err == nil {
		t.Error("Stop = nil, and nothing runs in it")
	}
	refused := func(how, user string) {
		t.Helper()
		for _, remove := range []func(context.Context, watch.ID) error{all.Remove, all.RemoveOnce} {
			if err := remove(t.Context(), id); !errors.Is(err, watch.ErrInUse) || !strings.Contains(err.Error(), user[:12]) {
				t.Errorf("%s: Remove = %v, want in use, by %s", how, err, user)
			}
		}
		if !b.exists(kind, slot) {
			t.Fatalf("%s: it is gone", how)
		}
	}
	user := b.user(kind, slot, nil)
	refused("used by one that never ran", user)
	must(t, b.Client().ContainerStart(t.Context(), user, container.StartOptions{}))
	refused("used by one that runs", user)
	must(t, b.Client().ContainerPause(t.Context(), user))
	refused("used by one that is paused", user)
	must(t, b.Client().ContainerUnpause(t.Context(), user))
	must(t, b.Client().ContainerKill(t.Context(), user, "KILL"))
	b.WaitStopped(t, user)
	refused("used by one that ran", user)
	must(t, b.Client().ContainerRemove(t.Context(), user, container.RemoveOptions{}))
	must(t, all.Remove(t.Context(), id))
	if b.exists(kind, slot) {
		t.Error("still there")
	}
	must(t, all.Remove(t.Context(), id))

	// By somebody who has not seen it.
	second := b.name(kind)
	slot = b.thing(kind, second, map[string]string{watch.LabelTTL: "1h"})
	id = b.made(e, r, 0, kind, second).ID
	must(t, New(b.Host(), nil, nil).RemoveOnce(t.Context(), id))
	if b.exists(kind, slot) {
		t.Error("still there")
	}
}

// TestRemovalRefused: a container may come between the last look and the removal. What the engine says then is told from
// that it does not let us.
func TestRemovalRefused(t *testing.T) {
	private := dockertest.Shared(t)
	for _, tt := range []struct {
		name  string
		kind  watch.Kind
		code  int
		used  bool // somebody has come
		inUse bool
	}{
		{"a volume in use", watch.Volume, http.StatusConflict, true, true},
		{"a network in use", watch.Network, http.StatusForbidden, true, true},
		{"a volume that we may not remove", watch.Volume, http.StatusForbidden, false, false},
		{"a network that we may not remove", watch.Network, http.StatusForbidden, false, false},
		{"ill", watch.Network, http.StatusInternalServerError, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &bench{Engine: private, t: t}
			name := b.name(tt.kind)
			slot := b.thing(tt.kind, name, map[string]string{watch.LabelTTL: "1h"})
			p := newProxy(t, b.Host(), func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodDelete {
					return false
				}
				if tt.used {
					b.user(tt.kind, slot, nil)
				}
				http.Error(w, `{"message":"no"}`, tt.code)
				return true
			}, nil)
			e, r := connect(t, p.url)
			id := b.made(e, r, 0, tt.kind, name).ID
			if err := e.adapter(tt.kind).Remove(t.Context(), id); err == nil || errors.Is(err, watch.ErrInUse) != tt.inUse {
				t.Errorf("Remove = %v, want in use: %t", err, tt.inUse)
			}
		})
	}
}

// nextSecond waits until what is made now is dated later than at, in whole seconds. Files are dated by a clock that is
// behind by up to a tick of the kernel's, 10 ms at most.
func nextSecond(t *testing.T, at time.Time) {
	t.Helper()
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for !time.Now().Add(-20 * time.Millisecond).Truncate(time.Second).After(at) {
		<-beat.C
	}
}

// madeAgain: a volume that has the name of another, and was made later or otherwise, is not removed in its place.
func madeAgain(t *testing.T, _ watch.Kind, b *bench) {
	labels := map[string]string{watch.LabelTTL: "1h"}
	t.Run("between a look and the removal", func(t *testing.T) {
		for _, tt := range []struct {
			name   string
			later  bool
			labels map[string]string
		}{
			{"a second later", true, labels},
			{"at once, with other labels", false, map[string]string{watch.LabelTTL: "2h"}},
			{"at once, without labels", false, nil},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b.t = t
				name := b.name(watch.Volume)
				b.thing(watch.Volume, name, labels)
				// Without events: nothing is seen but by the list.
				e := New(b.Host(), newProc(t), nil)
				cli, err := e.dial(t.Context())
				must(t, err)
				e.cli, e.shared = cli, true
				defer e.hangUp(cli)
				first, _ := called(listedOf(t, e.Volumes()), name)
				b.take(watch.Volume, name)
				if tt.later {
					nextSecond(t, first.Created)
				}
				b.thing(watch.Volume, name, tt.labels)
				must(t, e.Volumes().Remove(t.Context(), first.ID))
				if !b.exists(watch.Volume, name) {
					t.Error("the other one was removed")
				}
				if !tt.later {
					return
				}
				second, ok := called(listedOf(t, e.Volumes()), name)
				if !ok || second.ID == first.ID || first.Existed == 0 || second.Existed <= first.Existed {
					t.Errorf("first %+v, then %+v", first, second)
				}
				for _, all := range []*Belongings{e.Volumes(), New(b.Host(), nil, nil).Volumes()} {
					must(t, all.RemoveOnce(t.Context(), first.ID))
					if !b.exists(watch.Volume, name) {
						t.Error("the other one was removed")
					}
				}
				must(t, e.Volumes().Remove(t.Context(), second.ID))
				if b.exists(watch.Volume, name) {
					t.Error("still there")
				}
			})
		}
	})
	t.Run("told by events", func(t *testing.T) {
		b.t = t
		_, r := connect(t, b.Host())
		name := b.name(watch.Volume)
		b.thing(watch.Volume, name, labels)
		first := await(t, r, 0, "made", inUse(watch.Volume, name, false)).Sandbox
		mark := r.mark()
		b.take(watch.Volume, name)
		nextSecond(t, first.Created)
		b.thing(watch.Volume, name, labels)
		await(t, r, mark, "gone", gone1(first.ID))
		second := await(t, r, mark, "made again", inUse(watch.Volume, name, false)).Sandbox
		if second.ID == first.ID || !second.Created.After(first.Created) {
			t.Errorf("first %+v, then %+v", first, second)
		}
	})
}

// writtenTo: old engines take the time of the last change in a volume's folder for that of its creation.
// As long as a container uses it, it is the same nonetheless.
func writtenTo(t *testing.T, _ watch.Kind, b *bench) {
	e, r := connect(t, b.Host())
	name := b.name(watch.Volume)
	b.thing(watch.Volume, name, map[string]string{watch.LabelTTL: "1h"})
	first := await(t, r, 0, "made", inUse(watch.Volume, name, false)).Sandbox
	user := b.user(watch.Volume, name, nil)
	await(t, r, 0, "used", inUse(watch.Volume, name, true))
	nextSecond(t, first.Created)
	v, err := b.Client().VolumeInspect(t.Context(), name)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(v.Mountpoint, "file"), nil, 0o600))
	after, err := b.Client().VolumeInspect(t.Context(), name)
	must(t, err)
	t.Logf("made at %s, and after it was written to at %s", v.CreatedAt, after.CreatedAt)
	for range 2 {
		if s, ok := called(listedOf(t, e.Volumes()), name); !ok || s.ID != first.ID || !s.Created.Equal(first.Created) {
			t.Errorf("%+v, and was %+v", s, first)
		}
	}
	mark := r.mark()
	must(t, b.Client().ContainerRemove(t.Context(), user, container.RemoveOptions{Force: true}))
	if s := await(t, r, mark, "free", inUse(watch.Volume, name, false)).Sandbox; s.ID != first.ID {
		t.Errorf("%+v, and was %+v", s, first)
	}
	must(t, e.Volumes().Remove(t.Context(), first.ID))
	if b.exists(watch.Volume, name) {
		t.Error("still there")
	}
}

// ownerOfABelonging: a volume or network is owned like a container.
func ownerOfABelonging(t *testing.T, kind watch.Kind, b *bench) {
	e, r := connect(t, b.Host())
	pic := watch.NewPicture("")
	at := 0
	fold := func(more []watch.Event) {
		for _, ev := range append(r.since(at), more...) {
			pic.Apply(ev)
		}
		at = r.mark()
	}
	owner := b.Run(t, dockertest.ContainerOptions{Name: "owner-of-a-" + string(kind)})
	name := b.name(kind)
	b.thing(kind, name, map[string]string{watch.LabelOwner: "container:owner-of-a-" + string(kind)})
	id := b.made(e, r, 0, kind, name).ID
	await(t, r, 0, "owner seen", func(ev watch.ContainerSeen) bool { return ev.Container == owner && ev.Life == watch.Alive })
	fold(nil)
	if ns := pic.Namespace(kind); !ns.Shared || !pic.Present(kind) {
		t.Errorf("%+v, present: %t", ns, pic.Present(kind))
	}
	if o := pic.Entry(id).Owner(); !alive(owner)(*o) {
		t.Errorf("its owner is %+v", o)
	}
	// A list of containers does not make the owner of a volume forgotten.
	listed(t, e)
	mark := r.mark()
	must(t, b.Client().ContainerRemove(t.Context(), owner, container.RemoveOptions{Force: true}))
	await(t, r, mark, "owner gone", func(ev watch.ContainerSeen) bool { return ev.Container == owner && ev.Gone })
	fold(nil)
	if o := pic.Entry(id).Owner(); !gone(*o) {
		t.Errorf("its owner is %+v", o)
	}
	events, err := belongingsOf(e, kind).List(t.Context())
	must(t, err)
	if !slices.ContainsFunc(events, func(ev watch.Event) bool { _, ok := ev.(watch.ContainerSeen); return ok }) {
		t.Errorf("listed without a look at its owner: %+v", events)
	}
	must(t, belongingsOf(e, kind).Remove(t.Context(), id))
	listedOf(t, belongingsOf(e, kind))
	if refs := e.claimed(owner, "owner-of-a-"+string(kind)); len(refs) != 0 {
		t.Errorf("%q are still looked at, and nobody claims them", refs)
	}
}

// groupOfThree: what belongs to the group of a container that is reaped is condemned with it, and free when that is gone.
func groupOfThree(t *testing.T, b *bench) {
	e, r := connect(t, b.Host())
	group := map[string]string{watch.LabelGroup: "a-group"}
	vol, net := b.name(watch.Volume), b.name(watch.Network)
	b.thing(watch.Volume, vol, group)
	netID := b.thing(watch.Network, net, group)
	b.made(e, r, 0, watch.Network, net)
	api := b.Client()
	c, err := api.ContainerCreate(t.Context(), &container.Config{Image: b.Image(b.t), Labels: map[string]string{watch.LabelGroup: "a-group", watch.LabelOwner: "1"}},
		&container.HostConfig{NetworkMode: container.NetworkMode(net), Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: vol, Target: "/data"}}}, nil, nil, "")
	must(t, err)
	t.Cleanup(func() {
		_ = api.ContainerRemove(context.WithoutCancel(t.Context()), c.ID, container.RemoveOptions{Force: true})
	})
	must(t, api.ContainerStart(t.Context(), c.ID, container.StartOptions{}))

	await(t, r, 0, "started", seenAs(c.ID, watch.Running))
	volumeID := await(t, r, 0, "used", inUse(watch.Volume, vol, true)).Sandbox.ID
	networkID := await(t, r, 0, "used", inUse(watch.Network, net, true)).Sandbox.ID
	pic := watch.NewPicture("")
	at := 0
	fold := func() {
		for _, ev := range r.since(at) {
			pic.Apply(ev)
			at++
		}
	}
	fold()
	for _, id := range []watch.ID{volumeID, networkID} {
		if o := pic.Entry(id).Owner(); o.Life != watch.Alive || !pic.Entry(id).InUse {
			t.Errorf("%s: %+v", id, o)
		}
	}
	pic.Apply(watch.StepBegun{ID: containerID(c.ID), Step: watch.Kill, Reason: "owner-exited", At: time.Now()})
	mark := r.mark()
	must(t, e.Stop(containerID(c.ID), watch.Kill))
	must(t, e.Remove(t.Context(), containerID(c.ID)))
	await(t, r, mark, "gone", goneIs(c.ID))
	await(t, r, mark, "free", inUse(watch.Volume, vol, false))
	await(t, r, mark, "free", inUse(watch.Network, net, false))
	fold()
	for _, id := range []watch.ID{volumeID, networkID} {
		entry := pic.Entry(id)
		if o := entry.Owner(); o.Life != watch.Exited || o.Reason != "owner-exited" || entry.InUse {
			t.Errorf("%s: %+v of %+v", id, o, entry)
		}
		must(t, e.adapter(id.Kind).Remove(t.Context(), id))
	}
	if b.exists(watch.Volume, vol) || b.exists(watch.Network, netID) {
		t.Error("still there")
	}
}

// failToSeeABelonging: what the engine does not say is not known (D2).
func failToSeeABelonging(t *testing.T, kind watch.Kind, b *bench) {
	name := b.name(kind)
	slot := b.thing(kind, name, map[string]string{watch.LabelTTL: "1h"})
	plural := map[watch.Kind]string{watch.Volume: "/volumes", watch.Network: "/networks"}[kind]
	var ill atomic.Pointer[string]
	p := newProxy(t, b.Host(), func(w http.ResponseWriter, r *http.Request) bool {
		if at := ill.Load(); at != nil && strings.HasPrefix(path(r), *at) && (r.Method == http.MethodGet) {
			http.Error(w, `{"message":"ill"}`, http.StatusInternalServerError)
			return true
		}
		return false
	}, nil)
	e, r := connect(t, p.url)
	all := belongingsOf(e, kind)
	s, ok := called(listedOf(t, all), name)
	if !ok {
		t.Fatal("not listed")
	}
	for _, at := range []string{plural, "/containers/json"} {
		ill.Store(&at)
		if events, err := all.List(t.Context()); err == nil || len(events) > 0 {
			t.Errorf("%s: List = %+v, %v", at, events, err)
		}
		if err := all.Remove(t.Context(), s.ID); err == nil {
			t.Errorf("%s: Remove = nil", at)
		}
		// A container that comes to use it makes for a look, which fails.
		mark := r.mark()
		b.user(kind, slot, nil)
		await(t, r, mark, "a look failed", anyOf[watch.LookFailed])
		for _, ev := range r.since(0) {
			if _, ok := ev.(watch.SandboxGone); ok {
				t.Errorf("%s: posted %+v", at, ev)
			}
		}
		ill.Store(nil)
	}
	if !b.exists(kind, slot) {
		t.Error("it is gone")
	}
}

// TestBelongingsUnseen is about lists that cannot be had.
func TestBelongingsUnseen(t *testing.T) {
	t.Run("half a list", func(t *testing.T) {
		private := dockertest.Shared(t)
		p := newProxy(t, private.Host(), func(w http.ResponseWriter, r *http.Request) bool {
			if path(r) != "/volumes" {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"Volumes":[],"Warnings":["a plugin does not answer"]}`))
			return true
		}, nil)
		e, _ := connect(t, p.url)
		if events, err := e.Volumes().List(t.Context()); err == nil || len(events) > 0 {
			t.Errorf("List = %+v, %v", events, err)
		}
	})
	t.Run("another kind", func(t *testing.T) {
		if err := New("", nil, nil).RemoveOnce(t.Context(), watch.ID{Kind: watch.File, Name: "/tmp/x"}); err == nil {
			t.Error("RemoveOnce of a file = nil")
		}
	})
	t.Run("without a session", func(t *testing.T) {
		e := New("unix://"+filepath.Join(t.TempDir(), "none"), nil, nil)
		for _, kind := range []watch.Kind{watch.Volume, watch.Network} {
			if _, err := e.adapter(kind).List(t.Context()); err != ErrNotConnected {
				t.Errorf("List = %v", err)
			}
			if err := e.adapter(kind).Remove(t.Context(), watch.ID{Kind: kind, Name: id1}); err != ErrNotConnected {
				t.Errorf("Remove = %v", err)
			}
			if err := e.adapter(kind).RemoveOnce(t.Context(), watch.ID{Kind: kind, Name: id1}); err == nil {
				t.Error("RemoveOnce = nil")
			}
		}
	})
}

// TestBelongingsOfStrangers: volumes and networks that concern nobody cost a look when they are made, and nothing when
// they are used.
func TestBelongingsOfStrangers(t *testing.T) {
	b := &bench{Engine: dockertest.Shared(t), t: t}
	p := newProxy(t, b.Host(), nil, nil)
	_, r := connect(t, p.url)
	lists := p.count("GET /containers/json")
	looks := 0
	for _, kind := range []watch.Kind{watch.Volume, watch.Network} {
		slot := b.thing(kind, b.name(kind), nil)
		id := b.user(kind, slot, nil)
		must(t, b.Client().ContainerStart(t.Context(), id, container.StartOptions{}))
		must(t, b.Client().ContainerRemove(t.Context(), id, container.RemoveOptions{Force: true}))
		b.take(kind, slot)
		// Events come in order, so when this one has been looked at, the others have been passed over.
		mark := r.mark()
		id = b.Run(t, dockertest.ContainerOptions{Labels: owned(), NotStarted: true})
		await(t, r, mark, "created", seenAs(id, watch.Created))
		looks += p.count("GET /"+string(kind)+"s/"+slot) + p.count("GET /"+string(kind)+"s/"+slot+"/json")
	}
	if n := p.count("GET /containers/json") - lists; n != 0 {
		t.Errorf("%d lists of containers for what concerns nobody", n)
	}
	// The engine also says that it makes a volume when a container is made that refers to it.
	if looks < 2 || looks > 3 {
		t.Errorf("%d looks, want 2 or 3", looks)
	}
}

// TestSourceOfAllKinds: the engine's absence and return, and where it runs, are told of each kind.
func TestSourceOfAllKinds(t *testing.T) {
	private := dockertest.Start(t)
	_, r := connect(t, private.Host())
	private.Kill(t)
	for _, kind := range kinds {
		await(t, r, 0, "back", func(ev watch.SourceBack) bool { return ev.Kind == kind && ev.Source == Source })
		await(t, r, 0, "shared", func(ev watch.NamespaceSeen) bool { return ev.Kind == kind && ev.Shared })
		await(t, r, 0, "lost", func(ev watch.SourceLost) bool { return ev.Kind == kind && ev.Source == Source && ev.Err != nil })
	}
}
