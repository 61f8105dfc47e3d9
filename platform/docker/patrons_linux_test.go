package docker

import (
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// A terminalClient is docker, run in the foreground.
type terminalClient struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// runClient has docker run a container with a name, which is removed when the test ends.
func runClient(t *testing.T, h *dockertest.Engine, name string, options ...string) *terminalClient {
	t.Helper()
	program, err := exec.LookPath("docker")
	if err != nil {
		t.Fatalf("find docker: %v (apt-get install docker.io)", err)
	}
	args := append([]string{"run", "--network", "none", "--name", name}, options...)
	cmd := exec.Command(program, append(args, h.Image(t))...)
	cmd.Env = []string{"DOCKER_HOST=" + h.Host(), "DOCKER_CONFIG=" + t.TempDir(), "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &terminalClient{cmd, stdin}
	ctx, api := context.WithoutCancel(t.Context()), h.Client()
	t.Cleanup(func() {
		c.kill()
		_ = api.ContainerRemove(ctx, name, container.RemoveOptions{Force: true})
	})
	return c
}

func (c *terminalClient) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	_ = c.stdin.Close()
}

func ofClient(pid int) func(watch.ClientsSeen) bool {
	return func(ev watch.ClientsSeen) bool {
		return slices.ContainsFunc(ev.Clients, func(c watch.Client) bool { return c.Process.PID == pid })
	}
}

func runningAs(name string) func(watch.SandboxSeen) bool {
	return func(ev watch.SandboxSeen) bool { return ev.Sandbox.Name == name && ev.Sandbox.State == watch.Running }
}

// fresh lists what is there, as a record.
func fresh(t *testing.T, e *Engine) *record {
	t.Helper()
	events, err := e.List(t.Context())
	must(t, err)
	r := newRecord()
	r.post(events...)
	return r
}

func docksRun(t *testing.T) []watch.Rule {
	return []watch.Rule{
		rule(t, "docker-run", watch.Evidence{Client: true}, "name:*"),
		rule(t, "behind", watch.Evidence{None: true}, "name:behind-*"),
	}
}

// TestClients: a container is watched with the client that started it in the foreground as its owner, as long as it
// exists; one without is left to the rules behind.
func TestClients(t *testing.T) {
	for _, sort := range []dockertest.Sort{dockertest.Docker, dockertest.Newest} {
		t.Run(string(sort), func(t *testing.T) {
			h := dockertest.Start(t, dockertest.Of(sort), dockertest.Reused())
			t.Run("in the foreground", func(t *testing.T) {
				e, r := connect(t, h.Host())
				set(e, docksRun(t)...)
				c := runClient(t, h, "clients-foreground", "-i")
				s := await(t, r, 0, "running", runningAs("clients-foreground")).Sandbox
				if s.Terms.Rule != "docker-run" || len(s.Terms.Owners) != 1 || s.Terms.Owners[0].Kind != watch.ClientClaim {
					t.Errorf("%+v", s)
				}
				seen := await(t, r, 0, "client", ofClient(c.cmd.Process.Pid))
				if seen.ID != s.ID || seen.Detail != "" || seen.At.IsZero() || seen.Clients[0].Process.Start == 0 {
					t.Errorf("%+v", seen)
				}
				late, _ := connect(t, h.Host())
				set(late, docksRun(t)...)
				await(t, fresh(t, late), 0, "client, listed", ofClient(c.cmd.Process.Pid))

				// Its death changes nothing about what it was.
				c.kill()
				for _, e := range []*Engine{e, late} {
					list := fresh(t, e)
					if s := among(t, await(t, list, 0, "list", anyOf[watch.Listed]), s.ID.Name); s.Terms.Rule != "docker-run" {
						t.Errorf("%+v", s)
					}
					await(t, list, 0, "client, listed", ofClient(c.cmd.Process.Pid))
				}
				mark := r.mark()
				must(t, h.Client().ContainerRename(t.Context(), s.ID.Name, "behind-1"))
				s = await(t, r, mark, "renamed", runningAs("behind-1")).Sandbox
				if s.Terms.Rule != "docker-run" {
					t.Errorf("%+v", s)
				}
				await(t, r, mark, "client", ofClient(c.cmd.Process.Pid))
				must(t, e.Remove(t.Context(), s.ID))
				await(t, r, mark, "gone", goneIs(s.ID.Name))
				listed(t, e)
				e.mu.Lock()
				defer e.mu.Unlock()
				if _, ok := e.told[s.ID.Name]; ok {
					t.Error("what was said of its clients is still remembered")
				}
			})
			t.Run("detached", func(t *testing.T) {
				p := newProxy(t, h.Host(), nil, nil)
				e, r := connect(t, p.url)
				e.clients = newClientFinder(e.proc, h.Host())
				set(e, docksRun(t)...)
				must(t, runClient(t, h, "clients-detached", "-d").cmd.Wait())
				must(t, runClient(t, h, "behind-2", "-d").cmd.Wait())
				behind := await(t, r, 0, "running", runningAs("behind-2")).Sandbox
				if behind.Terms.Rule != "behind" {
					t.Errorf("%+v", behind)
				}
				id := inspectOf(t, h, "clients-detached").ID
				looks := p.count("GET /containers/" + id + "/json")
				for range 3 {
					if l := listed(t, e); !isOther(l, id) {
						t.Errorf("%+v", l)
					}
				}
				must(t, h.Client().ContainerPause(t.Context(), id))
				must(t, h.Client().ContainerUnpause(t.Context(), id))
				must(t, h.Client().ContainerPause(t.Context(), behind.ID.Name))
				await(t, r, 0, "paused", seenAs(behind.ID.Name, watch.Paused))
				if n := p.count("GET /containers/"+id+"/json") - looks; n != 0 || looks > 2 {
					t.Errorf("%d looks at one that was decided, after %d", n, looks)
				}
			})
			t.Run("in doubt", func(t *testing.T) {
				e, r := connect(t, h.Host())
				set(e, docksRun(t)...)
				c := runClient(t, h, "clients-doubt")
				await(t, r, 0, "running", runningAs("clients-doubt"))
				id := await(t, r, 0, "client", ofClient(c.cmd.Process.Pid)).ID
				// The name frees itself, and something else makes what the client may as well have made.
				mark := r.mark()
				must(t, h.Client().ContainerRename(t.Context(), id.Name, "clients-renamed"))
				await(t, r, mark, "renamed", runningAs("clients-renamed"))
				config := &container.Config{Image: h.Image(t), AttachStdout: true, AttachStderr: true}
				other, err := h.Client().ContainerCreate(t.Context(), config, &container.HostConfig{NetworkMode: "none"}, nil, nil, "clients-doubt")
				must(t, err)
				t.Cleanup(func() {
					_ = h.Client().ContainerRemove(context.WithoutCancel(t.Context()), other.ID, container.RemoveOptions{Force: true})
				})
				doubt := await(t, r, mark, "doubt", func(ev watch.ClientsSeen) bool { return ev.ID == id && len(ev.Clients) == 0 })
				if doubt.Detail == "" {
					t.Errorf("%+v", doubt)
				}
				list := fresh(t, e)
				if s := among(t, await(t, list, 0, "list", anyOf[watch.Listed]), id.Name); s.Terms.Rule != "docker-run" {
					t.Errorf("%+v", s)
				}
				await(t, list, 0, "doubt, listed", func(ev watch.ClientsSeen) bool { return ev.ID == id && len(ev.Clients) == 0 && ev.Detail != "" })
				pic := watch.NewPicture("")
				for _, ev := range append(r.since(0), list.since(0)...) {
					pic.Apply(ev)
				}
				if o := pic.Entry(id).Owner(); o.Life != watch.Unknown {
					t.Errorf("its owner is %+v", o)
				}
			})
		})
	}
}

// TestClientsUnseen: as long as nobody can say whether a client started a container, no rule behind decides (D7), and it
// is told once that this is so.
func TestClientsUnseen(t *testing.T) {
	private := dockertest.Shared(t)
	e, r := connect(t, private.Host())
	path := e.clients.path
	e.clients.path = "" // as if the engine had no socket
	set(e, docksRun(t)...)
	id := private.Run(t, dockertest.ContainerOptions{Name: "behind-3"})
	labelled := private.Run(t, dockertest.ContainerOptions{Name: "behind-4", Labels: map[string]string{watch.LabelTTL: "1h"}})
	owned := private.Run(t, dockertest.ContainerOptions{Name: "behind-5", Labels: owned()})
	for range 3 {
		l := listed(t, e)
		if isWatched(l, id) || !isOther(l, id) {
			t.Errorf("%+v", l)
		}
		for _, id := range []string{labelled, owned} {
			if s := among(t, l, id); s.Terms.Rule != watch.RuleLabels || s.Terms.Ownerless {
				t.Errorf("%+v", s)
			}
		}
	}
	lost := await(t, r, 0, "lost", func(ev watch.SourceLost) bool { return ev.Source == ClientSource })
	if lost.Err == nil || !strings.Contains(lost.Err.Error(), "client") {
		t.Errorf("%+v", lost)
	}
	n := 0
	for _, ev := range r.since(0) {
		if _, ok := ev.(watch.SourceLost); ok {
			n++
		}
	}
	if n != 1 {
		t.Errorf("told %d times that it cannot see", n)
	}
	e.clients.path = path
	l := listed(t, e)
	for id, rule := range map[string]string{id: "behind", labelled: "behind", owned: watch.RuleLabels} {
		if s := among(t, l, id); s.Terms.Rule != rule {
			t.Errorf("%+v, want %s", s, rule)
		}
	}
	await(t, r, 0, "back", func(ev watch.SourceBack) bool { return ev.Source == ClientSource })

	// What was found out by other rules does not count.
	again, _ := connect(t, private.Host())
	set(again, docksRun(t)[1])
	if s := among(t, listed(t, again), id); s.Terms.Rule != "behind" {
		t.Errorf("%+v", s)
	}
	again.clients.path = ""
	set(again, docksRun(t)...)
	if l := listed(t, again); isWatched(l, id) {
		t.Errorf("watched by a rule that is not tried before another: %+v", l)
	}

	// Where the engine's processes are not ours there is nothing to look for.
	blind := New(private.Host(), nil, nil)
	cli, err := blind.dial(t.Context())
	must(t, err)
	blind.cli = cli
	defer blind.hangUp(cli)
	set(blind, docksRun(t)...)
	if l := listed(t, blind); isWatched(l, id) || among(t, l, owned).Terms.Rule != watch.RuleLabels {
		t.Errorf("%+v", l)
	}
}
