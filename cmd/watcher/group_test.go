package main

import (
	"context"
	"fmt"
	"maps"
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

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// A family is a volume and a network that belong to a group, on an engine that others use as well.
type family struct {
	*dockertest.Engine
	t       *testing.T
	group   string
	volume  string // its name
	network string // its ID
	made    time.Time
}

var families atomic.Int64

// newFamily makes both with these labels besides that of the group.
func newFamily(t *testing.T, e *dockertest.Engine, more map[string]string) *family {
	t.Helper()
	f := &family{Engine: e, t: t, group: fmt.Sprintf("family-%d", families.Add(1))}
	ctx := t.Context()
	labels := f.with(more)
	v, err := e.Client().VolumeCreate(ctx, volume.CreateOptions{Name: f.group + "-data", Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	f.volume = v.Name
	t.Cleanup(func() { _ = e.Client().VolumeRemove(context.WithoutCancel(ctx), f.volume, true) })
	n, err := e.Client().NetworkCreate(ctx, f.group+"-net", network.CreateOptions{Driver: "bridge", Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	f.network, f.made = n.ID, time.Now()
	// The engine dates volumes to the second. One that is younger than the end of its group is not touched.
	<-time.After(time.Until(f.made.Truncate(time.Second).Add(time.Second)))
	t.Cleanup(func() { _ = e.Client().NetworkRemove(context.WithoutCancel(ctx), f.network) })
	return f
}

// with is the label of the group, and others.
func (f *family) with(more map[string]string) map[string]string {
	labels := map[string]string{watch.LabelGroup: f.group}
	maps.Copy(labels, more)
	return labels
}

// user makes a container that refers to the volume and the network.
func (f *family) user(labels map[string]string, running bool, edit ...func(*container.HostConfig)) string {
	f.t.Helper()
	ctx := f.t.Context()
	host := &container.HostConfig{
		Mounts:      []mount.Mount{{Type: mount.TypeVolume, Source: f.volume, Target: "/data"}},
		NetworkMode: container.NetworkMode(f.network),
	}
	for _, e := range edit {
		e(host)
	}
	made, err := f.Client().ContainerCreate(ctx, &container.Config{Image: f.Image(f.t), Labels: labels}, host, nil, nil, "")
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = f.Client().ContainerRemove(context.WithoutCancel(ctx), made.ID, forced) })
	if running {
		if err := f.Client().ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
			f.t.Fatal(err)
		}
	}
	return made.ID
}

// member is a running container of the group with that owner.
func (f *family) member(o *processtest.Owner) string {
	f.t.Helper()
	return f.user(f.with(ownedBy(o.Label())), true)
}

// left are those of the volume and the network that exist.
func (f *family) left() (kinds []watch.Kind) {
	f.t.Helper()
	ctx := context.WithoutCancel(f.t.Context())
	_, volumeErr := f.Client().VolumeInspect(ctx, f.volume)
	_, networkErr := f.Client().NetworkInspect(ctx, f.network, network.InspectOptions{})
	for kind, err := range map[watch.Kind]error{watch.Volume: volumeErr, watch.Network: networkErr} {
		switch {
		case err == nil:
			kinds = append(kinds, kind)
		case !errdefs.IsNotFound(err):
			f.t.Fatal(err)
		}
	}
	slices.Sort(kinds)
	return kinds
}

func (f *family) stays(why string) {
	f.t.Helper()
	if got, want := f.left(), []watch.Kind{watch.Network, watch.Volume}; !slices.Equal(got, want) {
		f.t.Fatalf("of network and volume there is %v, %s", got, why)
	}
}

func (f *family) waitGone() {
	f.t.Helper()
	await(f.t, "the volume and the network are gone", func() bool { return len(f.left()) == 0 })
}

// rows are what a command says of the volume and the network.
func (f *family) rows(args ...string) (v, n row) {
	f.t.Helper()
	rows := rowsOf(f.t, f.Engine, args...)
	for _, r := range rows {
		if r.Kind == watch.Volume && r.Name == f.volume {
			v = r
		}
	}
	return v, rows[f.network]
}

// wantRows checks what a command says of both.
func (f *family) wantRows(verdict string, reason reap.Reason, result string, args ...string) {
	f.t.Helper()
	v, n := f.rows(args...)
	for kind, r := range map[watch.Kind]row{watch.Volume: v, watch.Network: n} {
		if r.Kind != kind || r.Verdict != verdict || r.Reason != reason || r.Result != result {
			f.t.Errorf("watcher %s says of the %s %+v, want verdict %q, reason %q, result %q", strings.Join(args, " "), kind, r, verdict, reason, result)
		}
	}
}

// told waits until a daemon has told that both were reaped.
func (f *family) told(d *daemon, reason reap.Reason) {
	f.t.Helper()
	for _, kind := range []watch.Kind{watch.Volume, watch.Network} {
		r := d.waitFor("the reap of the "+string(kind), func(r record) bool {
			return r.text(watch.KeyEvent) == watch.EventReaped && r.text(watch.KeyKind) == string(kind) && strings.HasPrefix(r.text(watch.KeyName), f.group+"-")
		})
		if got := r.text(watch.KeyReason); got != string(reason) {
			f.t.Errorf("%s: reason %q, want %q", kind, got, reason)
		}
	}
}

// judged waits until a daemon has judged both so.
func (f *family) judged(d *daemon, reason reap.Reason) {
	f.t.Helper()
	for _, kind := range []watch.Kind{watch.Volume, watch.Network} {
		d.waitFor(fmt.Sprintf("%s of the %s", reason, kind), func(r record) bool {
			return r.text(watch.KeyKind) == string(kind) && strings.HasPrefix(r.text(watch.KeyName), f.group+"-") && r.text(watch.KeyReason) == string(reason)
		})
	}
}

func TestAGroupGoesWithItsLastContainer(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	first, second := processtest.StartOwner(t), processtest.StartOwner(t)
	f := newFamily(t, e, nil)
	one, two := f.member(first), f.member(second)
	d.knows(one)
	d.knows(two)
	f.wantRows("keep", reap.OwnerAlive, "", "list")
	v, n := f.rows("list")
	for _, r := range []row{v, n} {
		if r.Owner == nil || r.Owner.Kind != "group" || r.Owner.Name != f.group || r.Owner.State != "alive" || r.Rule != watch.RuleLabels {
			t.Errorf("list says %+v, owner %+v, want one that is the group %s", r, r.Owner, f.group)
		}
	}
	first.Kill()
	d.event(watch.EventReaped, one)
	f.wantRows("keep", reap.OwnerAlive, "", "list")
	f.stays("and a container of the group lives")
	second.Kill()
	d.event(watch.EventReaped, two)
	f.waitGone()
	f.told(d, reap.OwnerExited)
}

// What a container refers to is not touched, be it of the group or not, running or not.
func TestWhatSomebodyRefersToStays(t *testing.T) {
	e := dockertest.Shared(t)
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) {
			d := startDaemon(t, e)
			owner := processtest.StartOwner(t)
			f := newFamily(t, e, nil)
			member, stranger := f.member(owner), f.user(nil, false)
			d.knows(member)
			owner.Kill()
			d.event(watch.EventReaped, member)
			f.judged(d, reap.InUse)
			f.wantRows("keep", reap.InUse, "", "list")
			f.stays("and a container refers to both")
			if restarted {
				d.kill()
				d = startDaemon(t, e)
				f.judged(d, reap.InUse)
			}
			if err := e.Client().ContainerRemove(t.Context(), stranger, forced); err != nil {
				t.Fatal(err)
			}
			f.waitGone()
			f.told(d, reap.OwnerExited)
		})
	}
}

// A volume or network may have an owner of its own.
func TestAVolumeHasAnOwner(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	doomed, alive := processtest.StartOwner(t), processtest.StartOwner(t)
	gone, kept := newFamily(t, e, ownedBy(doomed.Label())), newFamily(t, e, ownedBy(alive.Label()))
	user := gone.user(nil, false)
	gone.judged(d, reap.OwnerAlive)
	kept.judged(d, reap.OwnerAlive)
	doomed.Kill()
	gone.judged(d, reap.InUse)
	gone.stays("and a container refers to both")
	if err := e.Client().ContainerRemove(t.Context(), user, forced); err != nil {
		t.Fatal(err)
	}
	gone.waitGone()
	gone.told(d, reap.OwnerExited)
	kept.wantRows("keep", reap.OwnerAlive, "", "list")
	kept.stays("and their owner lives")
}

// Only a group of which watcher has reaped a container goes: what its user cleans up, he may use again.
func TestAGroupThatItsUserTookDownKeepsItsVolume(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner, honest := processtest.StartOwner(t), processtest.StartOwner(t)
	f, other := newFamily(t, e, nil), newFamily(t, e, nil)
	removed, reaped := f.member(owner), other.member(honest)
	d.knows(removed)
	d.knows(reaped)
	f.judged(d, reap.OwnerAlive)
	lived := time.Now()
	if err := e.Client().ContainerRemove(t.Context(), removed, forced); err != nil {
		t.Fatal(err)
	}
	d.waitFor("what the container's end means for the volume", func(r record) bool {
		at, err := time.Parse(time.RFC3339Nano, r.text("time"))
		return err == nil && at.After(lived) && r.text(watch.KeyName) == f.volume && r.text(watch.KeyReason) == string(reap.NotOwned)
	})
	owner.Kill()
	// When another group is gone, the daemon has had all it needs to make the mistake.
	honest.Kill()
	other.waitGone()
	f.wantRows("keep", reap.NotOwned, "", "list")
	f.stays("and no container of the group was reaped")
}

// A container that removes itself at its end is reaped all the same, if it was watcher who ended it.
func TestAGroupOfContainersThatRemoveThemselves(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	f := newFamily(t, e, nil)
	id := f.user(f.with(ownedBy(owner.Label())), true, func(h *container.HostConfig) { h.AutoRemove = true })
	d.knows(id)
	owner.Kill()
	f.waitGone()
	f.told(d, reap.OwnerExited)
}

func TestOnceTakesTheWholeGroup(t *testing.T) {
	e := dockertest.Shared(t)
	doomed, alive := processtest.StartOwner(t), processtest.StartOwner(t)
	gone, kept, used := newFamily(t, e, nil), newFamily(t, e, nil), newFamily(t, e, nil)
	ids := []string{gone.member(doomed), gone.member(doomed), used.member(doomed)}
	neighbour, stranger := kept.member(alive), used.user(nil, false)
	doomed.Kill()
	doomed.Wait()
	rows := rowsOf(t, e, "--once", "--dry-run")
	for _, id := range ids {
		if got := rows[id].Result; got != resultWouldReap {
			t.Errorf("--once --dry-run says %q of a container whose owner is dead", got)
		}
	}
	gone.wantRows("reap", reap.OwnerExited, resultReaped, "--once")
	if got := gone.left(); len(got) > 0 {
		t.Errorf("--once leaves %v", got)
	}
	for _, id := range ids {
		if e.Exists(t, id) {
			t.Errorf("--once leaves container %.12s", id)
		}
	}
	rows = rowsOf(t, e, "--once")
	for _, id := range ids {
		if r, ok := rows[id]; ok {
			t.Errorf("a second --once says of a container that the first has reaped: %+v", r)
		}
	}
	kept.wantRows("keep", reap.OwnerAlive, "", "--once")
	kept.stays("and the owner of their group lives")
	used.wantRows("keep", reap.InUse, "", "--once")
	used.stays("and a container refers to both")
	if err := e.Client().ContainerRemove(t.Context(), stranger, forced); err != nil {
		t.Fatal(err)
	}
	used.wantRows("reap", reap.OwnerExited, resultReaped, "--once")
	if cases := casesOf(t); len(cases) > 0 {
		t.Errorf("--once leaves on record: %v", cases)
	}
	if !e.Running(t, neighbour) {
		t.Error("the container of a living owner does not run any more")
	}
}

// Invariant R8: wherever a daemon is killed, what belongs to a group whose last container it reaped goes.
func TestAGroupAcrossACrash(t *testing.T) {
	e := dockertest.Shared(t)
	neighbour, other := processtest.StartOwner(t), newFamily(t, e, nil)
	kept := other.member(neighbour)
	before := lifeOf(t, e, kept)
	for _, tt := range []struct {
		at       reap.Boundary
		nth      int
		finisher string
	}{
		{reap.BoundaryRecorded, 1, "daemon"},
		{reap.BoundaryRemoved, 1, "daemon"}, // the container is gone, and nothing else has begun
		{reap.BoundaryRemoved, 1, "--once"},
		{reap.BoundaryRecorded, 2, "daemon"},
		{reap.BoundaryRemoved, 2, "--once"},
		{reap.BoundaryRemoved, 3, "daemon"},
		{reap.BoundaryClosed, 1, "--once"},
		{reap.BoundaryClosed, 2, "daemon"},
	} {
		t.Run(fmt.Sprintf("%s/%d/%s", tt.at, tt.nth, tt.finisher), func(t *testing.T) {
			owner, f := processtest.StartOwner(t), newFamily(t, e, nil)
			other := *other
			other.t = t
			first := startCrashingLater(t, e, tt.at, tt.nth)
			member := f.member(owner)
			first.knows(member)
			first.knows(kept)
			owner.Kill()
			first.crashed()
			t.Logf("killed with container %t, %v, %d on record", e.Exists(t, member), f.left(), len(casesOf(t)))
			if tt.finisher == "daemon" {
				// The record of the container waits for the next scan.
				second := startDaemon(t, e, "--config", configFile(t, "[scan]\ninterval = \"1s\"\n"))
				f.waitGone()
				await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
				if code := second.stop(); code != exitDone {
					t.Errorf("exit code %d, want %d", code, exitDone)
				}
			} else {
				if r := on(t, e, "--once"); r.code != exitDone {
					t.Errorf("--once exits %d: %s", r.code, r.stderr)
				}
				if got := f.left(); len(got) > 0 {
					t.Errorf("--once leaves %v", got)
				}
				if cases := casesOf(t); len(cases) > 0 {
					t.Errorf("--once leaves on record: %v", cases)
				}
			}
			if e.Exists(t, member) {
				t.Error("the container was begun and not finished")
			}
			other.stays("and the owner of their group lives")
			if after := lifeOf(t, e, kept); after != before {
				t.Errorf("the container of a living owner was touched: %+v, was %+v", after, before)
			}
		})
	}
}
