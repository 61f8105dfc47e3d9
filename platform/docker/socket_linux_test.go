package docker

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// withMounts makes a container with mounts on a shared engine, and starts it if asked.
func withMounts(t *testing.T, h *dockertest.Engine, labels map[string]string, start bool, mounts ...mount.Mount) string {
	t.Helper()
	api, ctx := h.Client(), t.Context()
	c, err := api.ContainerCreate(ctx, &container.Config{Image: h.Image(t), Labels: labels}, &container.HostConfig{NetworkMode: "none", Mounts: mounts}, nil, nil, "")
	must(t, err)
	t.Cleanup(func() {
		_ = api.ContainerRemove(context.WithoutCancel(ctx), c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	})
	if start {
		must(t, api.ContainerStart(ctx, c.ID, container.StartOptions{}))
	}
	return c.ID
}

func bind(source, target string) mount.Mount {
	return mount.Mount{Type: mount.TypeBind, Source: source, Target: target}
}

func TestPlaceOf(t *testing.T) {
	mounts := []container.MountPoint{
		{Source: "/srv/run", Destination: "/run"},
		{Source: "/home/u/.clawbox/proxies/1", Destination: "/run/clawbox/"},
		{Type: mount.TypeTmpfs, Destination: "/run/lock"},
		{Source: "/srv/one.sock", Destination: "/one.sock"},
	}
	for seen, want := range map[string]string{
		"/run/clawbox/proxy.sock":      "/home/u/.clawbox/proxies/1 proxy.sock",
		"/run/clawbox//a/../b/p.sock":  "/home/u/.clawbox/proxies/1 b/p.sock",
		"/run/clawbox2/proxy.sock":     "/srv/run clawbox2/proxy.sock",
		"/run/clawbox/../../etc/p":     "",
		"/one.sock":                    "/srv/one.sock ",
		"/one.sock2":                   "",
		"/run/lock/x":                  "", // which is the container's own
		"/elsewhere/proxy.sock":        "",
		"run/clawbox/proxy.sock":       "",
		"":                             "",
		"/run/clawbox/../../../run/ab": "/srv/run ab",
	} {
		p, err := placeOf(mounts, seen)
		got := ""
		if err == nil {
			got = p.source + " " + strings.Join(p.below, "/")
		}
		if got != want {
			t.Errorf("%q: %q (%v), want %q", seen, got, err, want)
		}
	}
	if p, err := placeOf([]container.MountPoint{{Source: "/srv", Destination: "/"}}, "/run/p.sock"); err != nil || p.String() != "/srv/run/p.sock" {
		t.Errorf("below the root: %v, %v", p, err)
	}
}

// TestSockets asks who listens on the socket of a container, in all the ways in which that can be told or not.
func TestSockets(t *testing.T) {
	private := dockertest.Shared(t)
	const socket = "/run/clawbox/proxy.sock"
	clawbox := rule(t, "clawbox", watch.Evidence{Socket: socket}, "clawbox.container_id=*")
	self := func(e *Engine) watch.Process {
		held, err := e.proc.Open(os.Getpid())
		must(t, err)
		defer held.Close()
		return held.Process()
	}
	listen := func(t *testing.T, at string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
		must(t, err)
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	for _, tt := range []struct {
		name   string
		dir    func(t *testing.T, dir string) // what is done to the folder that is mounted
		mount  string                         // where it is mounted, if not at /run/clawbox
		file   bool                           // what is mounted is the socket itself
		want   watch.Life
		us     bool // who listens is this process
		detail string
	}{
		{name: "none", dir: func(*testing.T, string) {}, want: watch.Exited},
		{name: "a listener", dir: func(t *testing.T, dir string) { listen(t, dir+"/proxy.sock") }, want: watch.Alive, us: true},
		{name: "a listener that has closed", dir: func(t *testing.T, dir string) { must(t, listen(t, dir+"/proxy.sock").Close()) }, want: watch.Exited},
		{name: "a listener that is overrun", dir: func(t *testing.T, dir string) { overrun(t, dir+"/proxy.sock") }, want: watch.Alive},
		{name: "an heir of the listener", dir: func(t *testing.T, dir string) { inherit(t, dir+"/proxy.sock") }, want: watch.Alive},
		{name: "in a mount further out", mount: "/run", dir: func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/clawbox", 0o700))
			listen(t, dir+"/clawbox/proxy.sock")
		}, want: watch.Alive, us: true},
		{name: "no folder in a mount further out", mount: "/run", dir: func(*testing.T, string) {}, want: watch.Exited},
		{name: "the socket itself is mounted", file: true, dir: func(t *testing.T, dir string) { listen(t, dir+"/proxy.sock") }, want: watch.Alive, us: true},
		{name: "the socket itself is mounted and closed", file: true, dir: func(t *testing.T, dir string) { must(t, listen(t, dir+"/proxy.sock").Close()) }, want: watch.Exited},
		{name: "a link to a listener", dir: func(t *testing.T, dir string) {
			listen(t, dir+"/other.sock")
			must(t, os.Symlink(dir+"/other.sock", dir+"/proxy.sock"))
		}, detail: "is no socket"},
		{name: "a link on the way", mount: "/run", dir: func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/other", 0o700))
			listen(t, dir+"/other/proxy.sock")
			must(t, os.Symlink("other", dir+"/clawbox"))
		}, detail: "not a directory"},
		{name: "a file", dir: func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/proxy.sock", nil, 0o600)) }, detail: "is no socket"},
		{name: "a pipe", dir: func(t *testing.T, dir string) { must(t, unix.Mkfifo(dir+"/proxy.sock", 0o600)) }, detail: "is no socket"},
		{name: "for datagrams", dir: func(t *testing.T, dir string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/proxy.sock", Net: "unixgram"})
			must(t, err)
			t.Cleanup(func() { _ = c.Close() })
		}, detail: "connect to "},
		{name: "no such mount", mount: "/elsewhere", dir: func(t *testing.T, dir string) { listen(t, dir+"/proxy.sock") }, detail: "nothing of the host is mounted"},
		// We may be the ones who do not see it.
		{name: "what was mounted is not here", dir: func(t *testing.T, dir string) {
			t.Cleanup(func() { must(t, os.Mkdir(dir, 0o700)) })
			must(t, os.Remove(dir))
		}, detail: "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "w") // shorter than a test's own, which may be too long for an address
			must(t, err)
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			target := tt.mount
			if target == "" {
				target = "/run/clawbox"
			}
			source := dir
			if tt.file {
				source, target = filepath.Join(dir, "proxy.sock"), socket
				tt.dir(t, dir)
			}
			id := withMounts(t, private, map[string]string{"clawbox.container_id": "x"}, false, bind(source, target))
			if !tt.file {
				tt.dir(t, dir)
			}
			e, r := connect(t, private.Host())
			set(e, clawbox)
			want := watch.OwnerSeen{ID: containerID(id), Claim: watch.Claim{Kind: watch.SocketClaim, Socket: socket}, Life: tt.want}
			if tt.us {
				want.Owner = self(e)
			}
			for range 2 { // from an inspect, and from memory
				events, err := e.List(t.Context())
				must(t, err)
				list := newRecord()
				list.post(events...)
				got := await(t, list, 0, "socket seen", anyOf[watch.OwnerSeen])
				if !strings.Contains(got.Detail, tt.detail) || got.Asked.IsZero() || (got.Detail == "") != (tt.detail == "") {
					t.Errorf("%+v, want %q", got, tt.detail)
				}
				want.Asked, want.Detail = got.Asked, got.Detail
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			}
			// And at an event.
			mark := r.mark()
			must(t, private.Client().ContainerRename(t.Context(), id, "renamed-"+id[:12]))
			if got := await(t, r, mark, "socket seen", anyOf[watch.OwnerSeen]); got.Life != tt.want {
				t.Errorf("at an event: %+v", got)
			}
		})
	}
}

// overrun listens on a socket and fills its queue.
func overrun(t *testing.T, at string) {
	t.Helper()
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(l) })
	must(t, unix.Bind(l, &unix.SockaddrUnix{Name: at}))
	must(t, unix.Listen(l, 0))
	for {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(c) })
		if err := unix.Connect(c, &unix.SockaddrUnix{Name: at}); err == unix.EAGAIN {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// inherit has a process listen on a socket and die, while a child of it still has the socket.
func inherit(t *testing.T, at string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), heirVariable+"="+at)
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	must(t, err)
	cmd.Stdin = r
	t.Cleanup(func() { _ = w.Close() }) // which ends the child
	must(t, cmd.Start())
	_ = r.Close()
	must(t, cmd.Wait())
}

// TestSocketsElsewhere: a path of the engine's machine is not looked up on ours (D5).
func TestSocketsElsewhere(t *testing.T) {
	e := New("tcp://192.0.2.1:2375", newProc(t), nil)
	e.containers[id1] = &known{mounts: []container.MountPoint{{Source: "/run", Destination: "/run"}}}
	if seen := e.lookAtSocket(containerID(id1), watch.Claim{Kind: watch.SocketClaim, Socket: "/run/x.sock"}); seen.Life != watch.Unknown || seen.Detail == "" {
		t.Errorf("%+v", seen)
	}
	e.shared = true
	if seen := e.lookAtSocket(containerID(id2), watch.Claim{Kind: watch.SocketClaim, Socket: "/run/x.sock"}); seen.Life != watch.Unknown || seen.Detail == "" {
		t.Errorf("of a container that has not been looked at: %+v", seen)
	}
}

// TestSocketThatHangs: a file system that hangs holds up nobody, and costs one thread.
func TestSocketThatHangs(t *testing.T) {
	e := New("", nil, nil)
	p := place{source: "/mnt", below: []string{"x.sock"}}
	release := make(chan struct{})
	claim := watch.Claim{Kind: watch.SocketClaim, Socket: "/x.sock"}
	var looks atomic.Int32
	look := func(seen watch.OwnerSeen) watch.OwnerSeen {
		looks.Add(1)
		<-release
		return seen
	}
	for range 3 {
		if seen := e.bounded(p, watch.OwnerSeen{Claim: claim}, look); seen.Life != watch.Unknown || seen.Detail == "" || seen.Claim != claim {
			t.Errorf("%+v", seen)
		}
	}
	close(release)
	if n := looks.Load(); n != 1 {
		t.Errorf("%d looks, want 1", n)
	}
}
