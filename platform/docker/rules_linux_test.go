package docker

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// set gives an engine rules and waits for nothing: what follows from them, the next look tells.
func set(e *Engine, rules ...watch.Rule) {
	e.SetRules(&watch.Rules{List: rules, Protect: []watch.Pattern{watch.NewPattern("other.*")}})
}

// among returns the sandbox of a container in a list.
func among(t *testing.T, l watch.Listed, id string) watch.Sandbox {
	t.Helper()
	i := slices.IndexFunc(l.Sandboxes, func(s watch.Sandbox) bool { return s.ID == containerID(id) })
	if i < 0 {
		t.Fatalf("%s is not listed: %+v", id, l)
	}
	return l.Sandboxes[i]
}

func isWatched(l watch.Listed, id string) bool {
	return slices.ContainsFunc(l.Sandboxes, func(s watch.Sandbox) bool { return s.ID == containerID(id) })
}

func isOther(l watch.Listed, id string) bool { return slices.Contains(l.Unwatched, containerID(id)) }

// TestRules demands the same of every sort of engine that is there.
func TestRules(t *testing.T) {
	for _, sort := range dockertest.Sorts {
		t.Run(string(sort), func(t *testing.T) {
			h := dockertest.Start(t, dockertest.Of(sort), dockertest.Reused())
			for _, tt := range []struct {
				name string
				test func(t *testing.T, h *dockertest.Engine)
			}{
				{"what rules match", rulesMatch},
				{"a rename", renamed},
				{"a reload", reloaded},
				{"a tag that moves", tagMoved},
				{"since when", existed},
			} {
				t.Run(tt.name, func(t *testing.T) { tt.test(t, h) })
			}
		})
	}
}

// rulesMatch: what a rule is about is watched in whatever state, by lists and by events alike, and the first rule that is
// about it decides.
func rulesMatch(t *testing.T, private *dockertest.Engine) {
	e, r := connect(t, private.Host())
	nobody := watch.Evidence{None: true}
	set(e,
		rule(t, "first", nobody, "agent.run=*", "name:first-*"),
		rule(t, "second", nobody, "agent.run=*"),
		rule(t, "by image", nobody, "image:moved:*"),
		rule(t, "by name", nobody, "name:named-*"),
	)
	agent := func(more ...string) map[string]string {
		labels := map[string]string{"agent.run": "7"}
		for i := 0; i < len(more); i += 2 {
			labels[more[i]] = more[i+1]
		}
		return labels
	}
	for _, tt := range []struct {
		name  string
		opts  dockertest.ContainerOptions
		state watch.State
		terms watch.Terms
		other bool
	}{
		{name: "created", opts: dockertest.ContainerOptions{Labels: agent(), NotStarted: true}, state: watch.Created, terms: watch.Terms{Rule: "second", Ownerless: true}},
		{name: "running", opts: dockertest.ContainerOptions{Labels: agent()}, state: watch.Running, terms: watch.Terms{Rule: "second", Ownerless: true}},
		{name: "paused", opts: dockertest.ContainerOptions{Labels: agent(), Paused: true}, state: watch.Paused, terms: watch.Terms{Rule: "second", Ownerless: true}},
		{name: "first wins", opts: dockertest.ContainerOptions{Name: "first-1", Labels: agent()}, state: watch.Running, terms: watch.Terms{Rule: "first", Ownerless: true}},
		{name: "by name", opts: dockertest.ContainerOptions{Name: "named-1"}, state: watch.Running, terms: watch.Terms{Rule: "by name", Ownerless: true}},
		{name: "protected", opts: dockertest.ContainerOptions{Labels: agent("other.manager", "1")}, state: watch.Running, terms: watch.Terms{Rule: "second", Protected: "other.manager"}},
		{name: "a label and a rule", opts: dockertest.ContainerOptions{Labels: agent(watch.LabelTTL, "1h")}, state: watch.Running, terms: watch.Terms{Rule: "second", Ownerless: true, TTL: time.Hour}},
		{name: "an owner and a rule", opts: dockertest.ContainerOptions{Labels: agent(watch.LabelOwner, "1")}, state: watch.Running, terms: watch.Terms{
			Rule: watch.RuleLabels, Owners: []watch.Claim{{Kind: watch.ProcessClaim, Process: watch.Process{PID: 1}}},
		}},
		{name: "a stranger", opts: dockertest.ContainerOptions{Labels: map[string]string{"agent.walk": "1"}}, other: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := private.Run(t, tt.opts)
			if tt.other {
				if l := listed(t, e); isWatched(l, id) || !isOther(l, id) {
					t.Errorf("listed as %+v", l)
				}
				return
			}
			seen := await(t, r, 0, "seen", seenAs(id, tt.state)).Sandbox
			for how, s := range map[string]watch.Sandbox{"event": seen, "list": among(t, listed(t, e), id)} {
				if diff := cmp.Diff(tt.terms, s.Terms); diff != "" || s.State != tt.state {
					t.Errorf("by %s: %s, %s", how, s.State, diff)
				}
			}
		})
	}
	restarting := private.Run(t, dockertest.ContainerOptions{Labels: agent(), Args: []string{"exit", "1"}, Restart: "always"})
	if s := among(t, listed(t, e), restarting); s.Terms.Rule != "second" {
		t.Errorf("restarting: %+v", s)
	}
}

// renamed: the name that a container has decides, since nobody can say what another was. One that a rename takes out
// of all rules is told by a list, which is called for.
func renamed(t *testing.T, private *dockertest.Engine) {
	e, r := connect(t, private.Host())
	set(e, rule(t, "one", watch.Evidence{None: true}, "name:one-*"), rule(t, "two", watch.Evidence{None: true}, "name:two-*"))
	id := private.Run(t, dockertest.ContainerOptions{Name: "none-x"})
	named := func(name, rule string) func(watch.SandboxSeen) bool {
		return func(ev watch.SandboxSeen) bool {
			return ev.Sandbox.ID == containerID(id) && ev.Sandbox.Name == name && ev.Sandbox.Terms.Rule == rule
		}
	}
	rename := func(name string) int {
		mark := r.mark()
		must(t, private.Client().ContainerRename(t.Context(), id, name))
		return mark
	}
	first := await(t, r, rename("one-x"), "under a rule", named("one-x", "one")).Sandbox
	second := await(t, r, rename("two-x"), "under another", named("two-x", "two")).Sandbox
	if second.Init != first.Init || first.Init.PID == 0 || second.Existed != first.Existed || first.Existed == 0 {
		t.Errorf("first %+v, then %+v", first, second)
	}
	mark := rename("none-y")
	await(t, r, mark, "a list is called for", func(ev watch.LookFailed) bool { return ev.ID == containerID(id) })
	if l := listed(t, e); isWatched(l, id) || !isOther(l, id) {
		t.Errorf("listed as %+v", l)
	}
	// Once is enough.
	must(t, private.Client().ContainerPause(t.Context(), id))
	must(t, private.Client().ContainerUnpause(t.Context(), id))
	again := await(t, r, rename("two-y"), "under a rule again", named("two-y", "two")).Sandbox
	if again.Init != first.Init {
		t.Errorf("then %+v", again)
	}
	n := 0
	for _, ev := range r.since(mark) {
		if _, ok := ev.(watch.LookFailed); ok {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d lists called for, want 1", n)
	}
}

// reloaded: rules that change under a container do not take it out of a reap that was begun, nor its init out of our
// hands.
func reloaded(t *testing.T, private *dockertest.Engine) {
	e, r := connect(t, private.Host())
	rules := []watch.Rule{
		{Name: "old", Kind: watch.Container, Match: match(t, "agent.run=*"), Owner: watch.Evidence{ContainerLabel: "agent.of"}, StopTimeout: time.Second},
		{Name: "new", Kind: watch.Container, Match: match(t, "agent.run=*"), Owner: watch.Evidence{PIDLabel: "agent.pid"}},
	}
	set(e, rules[0])
	labels := map[string]string{"agent.run": "1", "agent.of": "reload-owner", "agent.pid": "1"}
	owner := private.Run(t, dockertest.ContainerOptions{Name: "reload-owner"})
	reaped := private.Run(t, dockertest.ContainerOptions{Labels: labels})
	spared := private.Run(t, dockertest.ContainerOptions{Labels: labels})
	pic := watch.NewPicture("")
	v := &view{pic: pic}
	v.awaitOwner(t, r, reaped, "alive", alive(owner))
	v.awaitOwner(t, r, spared, "alive", alive(owner))
	init := pic.Entry(containerID(reaped)).Init
	if init.PID == 0 {
		t.Fatal("its init is not held")
	}
	relist := func() watch.Listed {
		t.Helper()
		events, err := e.List(t.Context())
		must(t, err)
		var l watch.Listed
		for _, ev := range events {
			pic.Apply(ev)
			if list, ok := ev.(watch.Listed); ok {
				l = list
			}
		}
		return l
	}

	// Other terms: the same init, another owner.
	set(e, rules[1])
	l := relist()
	for _, id := range []string{reaped, spared} {
		s := among(t, l, id)
		if s.Terms.Rule != "new" || s.Terms.Owners[0].Kind != watch.ProcessClaim {
			t.Errorf("after a change: %+v", s)
		}
	}
	if s := among(t, l, reaped); s.Init != init {
		t.Errorf("its init is %+v, and was %+v", s.Init, init)
	}
	if refs := e.claimed(owner, "reload-owner"); len(refs) != 0 {
		t.Errorf("%q are still looked at, and nobody claims them", refs)
	}
	set(e, rules[0])
	relist()
	if refs := e.claimed(owner, "reload-owner"); len(refs) != 1 {
		t.Errorf("%q are looked at, want the owner that is claimed again", refs)
	}

	// None: the one whose reap has begun stays until it is gone.
	pic.Apply(watch.StepBegun{ID: containerID(reaped), Step: watch.Terminate, Reason: "test", At: time.Now()})
	set(e)
	l = relist()
	if len(l.Sandboxes) != 0 || !isOther(l, reaped) || !isOther(l, spared) || !isOther(l, owner) {
		t.Errorf("after all rules went: %+v", l)
	}
	if pic.Entry(containerID(reaped)) == nil || pic.Entry(containerID(spared)) != nil {
		t.Error("the picture lost the one that is reaped, or kept the other")
	}
	mark := r.mark()
	awaitHandler(t, init.PID)
	must(t, e.Stop(containerID(reaped), watch.Terminate))
	await(t, r, mark, "init exited", func(ev watch.InitExited) bool { return ev.Process == init })
	must(t, e.Remove(t.Context(), containerID(reaped)))
	await(t, r, mark, "gone", goneIs(reaped))
	if c := inspectOf(t, private, spared); !c.State.Running {
		t.Error("the other was hit")
	}
}

// tagMoved: Docker lists a container under its image's ID once the image's name means another. What it was made from
// is asked for then, once.
func tagMoved(t *testing.T, private *dockertest.Engine) {
	if private.Sort() == dockertest.Podman {
		return // which lists the name that was given, and fails to commit
	}
	api := private.Client()
	ctx := t.Context()
	must(t, api.ImageTag(ctx, private.Image(t), "moved:1"))
	make1 := func(labels map[string]string) string {
		c, err := api.ContainerCreate(ctx, &container.Config{Image: "moved:1", Labels: labels}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
		must(t, err)
		t.Cleanup(func() {
			_ = api.ContainerRemove(context.WithoutCancel(ctx), c.ID, container.RemoveOptions{Force: true})
		})
		return c.ID
	}
	id, plain := make1(map[string]string{"agent.run": "1"}), make1(nil)
	_, err := api.ContainerCommit(ctx, id, container.CommitOptions{Reference: "moved:1"})
	must(t, err)

	var mu sync.Mutex
	ill := true
	p := newProxy(t, private.Host(), func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if ill && strings.HasSuffix(path(r), "/json") && path(r) != "/containers/json" {
			http.Error(w, `{"message":"not now"}`, http.StatusServiceUnavailable)
			return true
		}
		return false
	}, nil)
	e, _ := connect(t, p.url)
	set(e, rule(t, "image", watch.Evidence{PIDLabel: "agent.run"}, "image:moved:*"), rule(t, "label", watch.Evidence{None: true}, "agent.run=*"))

	// As long as that cannot be asked, no rule behind decides in the first one's place.
	if l := listed(t, e); isWatched(l, id) || !isOther(l, id) || !isOther(l, plain) {
		t.Errorf("without its image: %+v", l)
	}
	mu.Lock()
	ill = false
	mu.Unlock()
	for range 3 {
		l := listed(t, e)
		for _, id := range []string{id, plain} {
			if s := among(t, l, id); s.Terms.Rule != "image" || s.Image != "moved:1" {
				t.Errorf("%+v", s)
			}
		}
	}
	set(e, rule(t, "nothing", watch.Evidence{None: true}, "image:servers/*"))
	stranger := make1(nil)
	_, err = api.ContainerCommit(ctx, id, container.CommitOptions{Reference: "moved:1"})
	must(t, err)
	for range 3 {
		if l := listed(t, e); !isOther(l, stranger) || !isOther(l, id) {
			t.Errorf("%+v", l)
		}
	}
	if n := p.count("GET /containers/" + stranger + "/json"); n != 1 {
		t.Errorf("asked %d times what a stranger was made from, want 1", n)
	}
	// And an event tells what it was made from.
	set(e)
	if l := listed(t, e); !isOther(l, stranger) {
		t.Errorf("%+v", l)
	}
}

// existed: a sandbox is dated by the clock of processes from its first look on, and only where that clock is its own.
func existed(t *testing.T, private *dockertest.Engine) {
	e, r := connect(t, private.Host())
	ticks := func() uint64 {
		now, err := e.proc.Ticks()
		must(t, err)
		return now
	}
	before := ticks()
	id := private.Run(t, dockertest.ContainerOptions{Labels: owned(), NotStarted: true})
	first := await(t, r, 0, "created", seenAs(id, watch.Created)).Sandbox.Existed
	if after := ticks(); first < before || first > after {
		t.Errorf("existed at tick %d, and was made between %d and %d", first, before, after)
	}
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for ticks() <= first {
		<-beat.C
	}
	must(t, private.Client().ContainerStart(t.Context(), id, container.StartOptions{}))
	s := await(t, r, 0, "started", seenAs(id, watch.Running)).Sandbox
	if s.Existed != first || s.Init.Start <= first {
		t.Errorf("started: %+v, was seen at tick %d", s, first)
	}
	for range 2 {
		if s := among(t, listed(t, e), id); s.Existed != first {
			t.Errorf("listed: %+v, was seen at tick %d", s, first)
		}
	}
	late, _ := connect(t, private.Host())
	if s := among(t, listed(t, late), id); s.Existed < s.Init.Start || s.Existed > ticks() {
		t.Errorf("seen late: %+v", s)
	}
	blind := New(private.Host(), nil, nil)
	cli, err := blind.dial(t.Context())
	must(t, err)
	blind.cli = cli
	defer blind.hangUp(cli)
	if s := among(t, listed(t, blind), id); s.Existed != 0 {
		t.Errorf("without /proc: %+v", s)
	}
}

// TestDead: a container that the engine cannot remove is left dead, or as if it were being removed, and is still watched
// and removed later.
func TestDead(t *testing.T) {
	private := dockertest.Start(t)
	e, _ := connect(t, private.Host())
	set(e, watch.Rule{Name: "dead", Kind: watch.Container, Match: match(t, "agent.run=*"), Owner: watch.Evidence{None: true}, States: []watch.State{watch.Dead, watch.Removing}})
	id := private.Run(t, dockertest.ContainerOptions{Labels: map[string]string{"agent.run": "1"}, NotStarted: true})
	stuck := filepath.Join(private.Dir(), "data", "containers", id, "stuck")
	must(t, os.WriteFile(stuck, nil, 0o600))
	if err := immutable(stuck, true); err != nil {
		t.Skipf("NOT RUN: needs a file system with immutable files: %v", err)
	}
	free := sync.OnceValue(func() error { return immutable(stuck, false) })
	t.Cleanup(func() { _ = free() })
	if err := e.Remove(t.Context(), containerID(id)); err == nil {
		t.Error("Remove = nil, and its folder cannot be removed")
	}
	if s := among(t, listed(t, e), id); s.State != watch.Dead && s.State != watch.Removing || s.Terms.Rule != "dead" {
		t.Errorf("%+v, want it dead or removing for ever", s)
	}
	must(t, free())
	must(t, e.Remove(t.Context(), containerID(id)))
	if private.Exists(t, id) {
		t.Error("still there")
	}
}

// immutable sets or clears the attribute i of chattr(1).
func immutable(path string, on bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	const immutableFlag = 0x10 // FS_IMMUTABLE_FL in include/uapi/linux/fs.h
	if flags &^= immutableFlag; on {
		flags |= immutableFlag
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// TestMany: a list of 500 containers costs one request, and one more for each that is watched, once.
func TestMany(t *testing.T) {
	const all, watched = 500, 20
	private := dockertest.Start(t)
	var making errgroup.Group
	making.SetLimit(4)
	for i := range all {
		making.Go(func() error {
			_, err := private.Create(t.Context(), dockertest.ContainerOptions{
				Name: fmt.Sprintf("many-%d", i), Labels: map[string]string{"nr": fmt.Sprint(i)}, NotStarted: true,
			})
			return err
		})
	}
	must(t, making.Wait())
	p := newProxy(t, private.Host(), nil, nil)
	e, _ := connect(t, p.url)
	rules := []watch.Rule{rule(t, "watched", watch.Evidence{None: true}, "name:many-1?")}
	for i := range 50 {
		rules = append(rules, rule(t, fmt.Sprintf("rule %d", i), watch.Evidence{None: true}, "image:nothing/*", fmt.Sprintf("agent-%d=*", i)))
	}
	rules = append(rules, rule(t, "last", watch.Evidence{None: true}, "name:many-2?"))
	set(e, rules...)
	for _, pass := range []string{"first", "from memory"} {
		began := time.Now()
		l := listed(t, e)
		t.Logf("%s: %d of %d containers by %d rules in %v", pass, len(l.Sandboxes), all, len(rules), time.Since(began))
		if len(l.Sandboxes) != watched || len(l.Unwatched) != all-watched {
			t.Errorf("%s: %d watched, %d others", pass, len(l.Sandboxes), len(l.Unwatched))
		}
	}
	looks := 0
	p.mu.Lock()
	defer p.mu.Unlock()
	for request, n := range p.seen {
		if strings.HasPrefix(request, "GET /containers/") && request != "GET /containers/json" {
			looks += n
		}
	}
	if looks != watched {
		t.Errorf("%d looks at single containers, want %d", looks, watched)
	}
}
