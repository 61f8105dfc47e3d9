package docker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/system"

	"watcher/platform/docker/dockertest"
	"watcher/watch"
)

// A proxy stands in front of an engine's socket, counts the requests and may answer them itself.
type proxy struct {
	url    string
	answer func(w http.ResponseWriter, r *http.Request) bool // false: pass it on

	mu   sync.Mutex
	seen map[string]int // requests by "METHOD path", without the version
}

func (p *proxy) count(request string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[request]
}

func path(r *http.Request) string {
	if _, rest, ok := strings.Cut(r.URL.Path[1:], "/"); ok && strings.HasPrefix(r.URL.Path, "/v1.") {
		return "/" + rest
	}
	return r.URL.Path
}

// newProxy listens until the test ends. change, if not nil, is given each answer of the engine.
func newProxy(t *testing.T, engine string, answer func(http.ResponseWriter, *http.Request) bool, change func(*http.Response) error) *proxy {
	t.Helper()
	p := &proxy{answer: answer, seen: map[string]int{}}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(engine, "unix://"))
	}}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker"
		},
		Transport: transport, FlushInterval: -1, ModifyResponse: change, ErrorLog: log.New(io.Discard, "", 0),
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.seen[r.Method+" "+path(r)]++
		p.mu.Unlock()
		if p.answer == nil || !p.answer(w, r) {
			forward.ServeHTTP(w, r)
		}
	}), ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-served
		transport.CloseIdleConnections()
	})
	p.url = "unix://" + socket
	return p
}

func socketOf(e *dockertest.Engine) string { return strings.TrimPrefix(e.Host(), "unix://") }

// within gives a call so little time that a hung engine is found out soon.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestEngineEnds takes an engine through all its absences.
func TestEngineEnds(t *testing.T) {
	private := dockertest.Start(t)
	e, r := connect(t, private.Host())
	id := private.Run(t, dockertest.ContainerOptions{Labels: owned()})
	second := private.Run(t, dockertest.ContainerOptions{Labels: owned()})
	init := await(t, r, 0, "started", seenAs(id, watch.Running)).Sandbox.Init
	await(t, r, 0, "started", seenAs(second, watch.Running))

	// Hung: calls end by their deadline (D6), and a stop needs no engine.
	private.Pause(t)
	const short = 200 * time.Millisecond
	if events, err := e.List(within(t, short)); !errors.Is(err, context.DeadlineExceeded) || len(events) > 0 {
		t.Errorf("hung: List = %+v, %v (D2)", events, err)
	}
	if err := e.Remove(within(t, short), containerID(strings.Repeat("a", 64))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hung: Remove = %v", err)
	}
	other := New(private.Host(), newProc(t), r.post)
	if err := other.Session(within(t, short)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hung: Session = %v", err)
	}
	mark := r.mark()
	if err := e.Stop(containerID(id), watch.Kill); err != nil {
		t.Errorf("hung: Stop = %v", err)
	}
	if died := await(t, r, mark, "init exited", anyOf[watch.InitExited]); died.Process != init || died.ID != containerID(id) {
		t.Errorf("hung: exited %+v, want %+v", died, init)
	}
	private.Resume(t)
	await(t, r, mark, "stopped", seenAs(id, watch.Stopped))

	// Killed: nothing is said about any sandbox.
	mark = r.mark()
	private.Kill(t)
	if lost := await(t, r, mark, "lost", anyOf[watch.SourceLost]); lost.Source != Source || lost.Err == nil {
		t.Errorf("killed: %+v", lost)
	}
	if events, err := e.List(t.Context()); err == nil || len(events) > 0 {
		t.Errorf("killed: List = %+v, %v (D2)", events, err)
	}
	if err := e.Remove(t.Context(), containerID(second)); err == nil {
		t.Error("killed: Remove = nil")
	}
	for _, ev := range r.since(mark) {
		if lost, ok := ev.(watch.SourceLost); !ok || lost.Source != Source {
			t.Errorf("killed: posted %#v", ev)
		}
	}

	// Back: the container that it found dead is told by the list alone.
	mark = r.mark()
	private.Restart(t)
	await(t, r, mark, "back", anyOf[watch.SourceBack])
	if ns := await(t, r, mark, "same namespace", anyOf[watch.NamespaceSeen]); !ns.Shared {
		t.Errorf("back: %+v", ns)
	}
	states := map[string]watch.State{}
	for _, s := range listed(t, e).Sandboxes {
		states[s.ID.Name] = s.State
	}
	if states[id] != watch.Stopped || states[second] != watch.Stopped || len(states) != 2 {
		t.Errorf("back: %v, want %s and %s exited", states, id, second)
	}
	for _, id := range []string{id, second} {
		if err := e.Remove(t.Context(), containerID(id)); err != nil {
			t.Errorf("back: Remove = %v", err)
		}
		await(t, r, mark, "gone", goneIs(id))
	}
}

func TestWithoutSession(t *testing.T) {
	e := New("unix://"+filepath.Join(t.TempDir(), "none"), newProc(t), nil)
	if events, err := e.List(t.Context()); !errors.Is(err, ErrNotConnected) || len(events) > 0 {
		t.Errorf("List = %+v, %v", events, err)
	}
	if err := e.Remove(t.Context(), containerID(strings.Repeat("a", 64))); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Remove = %v", err)
	}
	if err := e.Session(t.Context()); err == nil {
		t.Error("Session = nil")
	}
	if err := e.SharesProcesses(t.Context()); err == nil {
		t.Error("SharesProcesses = nil")
	}
	if err := New("nonsense", newProc(t), nil).Session(t.Context()); err == nil {
		t.Error("Session with nonsense = nil")
	}
	e.Close()
}

// TestPauseEndsWithSocket: an engine that comes back is not waited for longer than that.
func TestPauseEndsWithSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	e := New("unix://"+socket, nil, nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.pause(t.Context(), time.Hour)
	}()
	// The watch may stand only after the first of them.
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for timeout := time.After(patience); ; {
		l, err := net.Listen("unix", socket)
		must(t, err)
		must(t, l.Close())
		select {
		case <-ended:
			return
		case <-beat.C:
		case <-timeout:
			t.Fatal("the pause goes on")
		}
	}
}

// TestNamespace: PIDs count only if engine and watcher mean the same by them (D5).
func TestNamespace(t *testing.T) {
	private := dockertest.Shared(t)
	altered := func(change func(*system.Info)) func(*testing.T) string {
		return func(t *testing.T) string {
			return newProxy(t, private.Host(), nil, func(resp *http.Response) error {
				if path(resp.Request) != "/info" {
					return nil
				}
				var info system.Info
				if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
					return err
				}
				_ = resp.Body.Close()
				change(&info)
				b, err := json.Marshal(info)
				resp.Body, resp.ContentLength = io.NopCloser(strings.NewReader(string(b))), int64(len(b))
				resp.Header.Del("Content-Length")
				return err
			}).url
		}
	}
	for _, tt := range []struct {
		name   string
		url    func(t *testing.T) string
		blind  bool // without /proc
		shared bool
	}{
		{name: "the engine's own socket", url: func(*testing.T) string { return private.Host() }, shared: true},
		{name: "a proxy beside us", url: altered(func(*system.Info) {}), shared: true},
		{name: "another machine", url: altered(func(i *system.Info) { i.Name += "2" })},
		{name: "another kernel", url: altered(func(i *system.Info) { i.KernelVersion = "6.1.0" })},
		{name: "a silent one", url: altered(func(i *system.Info) { i.Name, i.KernelVersion = "", "" })},
		{name: "without /proc", url: func(*testing.T) string { return private.Host() }, blind: true},
		{name: "TCP", url: func(t *testing.T) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			t.Cleanup(func() { _ = l.Close() })
			go forward(l, "unix", socketOf(private))
			return "tcp://" + l.Addr().String()
		}},
		{name: "a PID namespace of its own", url: func(t *testing.T) string {
			return "unix://" + forwardNested(t, socketOf(private))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := tt.url(t)
			id := private.Run(t, dockertest.ContainerOptions{Labels: owned()})
			r := newRecord()
			e := New(url, newProc(t), r.post)
			if tt.blind {
				e = New(url, nil, r.post)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- e.Session(ctx) }()
			t.Cleanup(func() {
				cancel()
				receive(t, ended)
				e.Close()
			})
			await(t, r, 0, "connected", anyOf[watch.SourceBack])
			ns := await(t, r, 0, "namespace", anyOf[watch.NamespaceSeen])
			if ns.Kind != watch.Container || ns.Shared != tt.shared || ns.Shared == (ns.Detail != "") {
				t.Errorf("%+v, want shared: %t", ns, tt.shared)
			}
			if err := e.SharesProcesses(t.Context()); (err == nil) != tt.shared {
				t.Errorf("SharesProcesses = %v, want nil: %t", err, tt.shared)
			}
			for _, s := range listed(t, e).Sandboxes {
				if held := s.Init.PID != 0; held != tt.shared {
					t.Errorf("%+v: its init is held: %t, want %t", s, held, tt.shared)
				}
			}
			if err := e.Stop(containerID(id), watch.Kill); (err == nil) != tt.shared {
				t.Errorf("Stop = %v, want nil: %t", err, tt.shared)
			}
		})
	}
}

// TestNamespaceComesFirst: what the last session found out about its engine is not believed of this one's (D5).
func TestNamespaceComesFirst(t *testing.T) {
	private := dockertest.Shared(t)
	asked, release := make(chan struct{}, 1), make(chan struct{})
	p := newProxy(t, private.Host(), func(_ http.ResponseWriter, r *http.Request) bool {
		if path(r) == "/info" {
			asked <- struct{}{}
			<-release
		}
		return false
	}, nil)
	r := newRecord()
	e := New(p.url, newProc(t), r.post)
	e.shared = true // as an earlier session found
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- e.Session(ctx)
	}()
	receive(t, asked)
	if events, err := e.List(t.Context()); !errors.Is(err, ErrNotConnected) {
		t.Errorf("List = %+v, %v before it is known where the engine runs", events, err)
	}
	close(release)
	await(t, r, 0, "connected", anyOf[watch.SourceBack])
	if _, ok := r.since(0)[0].(watch.NamespaceSeen); !ok {
		t.Errorf("posted %+v, want the namespace first", r.since(0))
	}
	cancel()
	receive(t, ended)
	e.Close()
}

// TestNamespaceAskedAgain: an engine that could not answer once is not distrusted for the rest of the session.
func TestNamespaceAskedAgain(t *testing.T) {
	private := dockertest.Shared(t)
	var mu sync.Mutex
	ill := true
	p := newProxy(t, private.Host(), func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if ill && path(r) == "/info" {
			http.Error(w, `{"message":"not now"}`, http.StatusServiceUnavailable)
			return true
		}
		return false
	}, nil)
	e, r := connect(t, p.url)
	id := private.Run(t, dockertest.ContainerOptions{Labels: owned()})
	if ns := await(t, r, 0, "namespace", anyOf[watch.NamespaceSeen]); ns.Shared {
		t.Errorf("%+v of an engine that does not say where it runs", ns)
	}
	mu.Lock()
	ill = false
	mu.Unlock()
	events, err := e.List(t.Context())
	must(t, err)
	r = newRecord()
	r.post(events...)
	if ns := await(t, r, 0, "namespace", anyOf[watch.NamespaceSeen]); !ns.Shared {
		t.Errorf("%+v, and the engine says that it runs here", ns)
	}
	for _, s := range await(t, r, 0, "list", anyOf[watch.Listed]).Sandboxes {
		if s.ID.Name == id && s.Init.PID == 0 {
			t.Errorf("%+v: its init is not held", s)
		}
	}
}

// TestStrangersCostNothing: an event that concerns nobody we watch makes no request.
func TestStrangersCostNothing(t *testing.T) {
	private := dockertest.Shared(t)
	p := newProxy(t, private.Host(), nil, nil)
	_, r := connect(t, p.url)
	api := private.Client()
	ctx := t.Context()
	stranger := private.Run(t, dockertest.ContainerOptions{Name: "stranger", Labels: map[string]string{"owner": "1"}})
	must(t, api.ContainerPause(ctx, stranger))
	must(t, api.ContainerUnpause(ctx, stranger))
	must(t, api.ContainerRename(ctx, stranger, "strange"))
	must(t, api.ContainerKill(ctx, stranger, "KILL"))
	must(t, api.ContainerRemove(ctx, stranger, container.RemoveOptions{Force: true}))
	// Events come in order, so when this one has been looked at, the stranger's have been passed over.
	id := private.Run(t, dockertest.ContainerOptions{Labels: owned(), NotStarted: true})
	await(t, r, 0, "created", seenAs(id, watch.Created))
	if n := p.count("GET /containers/" + stranger + "/json"); n != 0 {
		t.Errorf("%d looks at a container that concerns nobody", n)
	}
	if n := p.count("GET /containers/" + id + "/json"); n == 0 || n > 2 {
		t.Errorf("%d looks at a container that was created, want 1", n)
	}
	for _, ev := range r.since(0) {
		if gone, ok := ev.(watch.SandboxGone); ok && goneIs(stranger)(gone) {
			t.Errorf("posted %+v", gone)
		}
	}
}

// TestFailedLooks: what the engine does not say is not known (D2).
func TestFailedLooks(t *testing.T) {
	private := dockertest.Shared(t)
	id := private.Run(t, dockertest.ContainerOptions{Labels: owned()})
	private.Run(t, dockertest.ContainerOptions{Labels: owned()})
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter)
	}{
		{"an error", func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"ill"}`)
		}},
		{"an empty answer", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{}`)
		}},
		{"half an answer", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"Id":"`+id+`","State":{"Sta`)
		}},
		{"no time", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"Id":"`+id+`","Created":"","State":{"Status":"exited"},"Config":{"Labels":{"watcher.owner":"1"}}}`)
		}},
		{"a cut connection", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProxy(t, private.Host(), func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet || path(r) != "/containers/"+id+"/json" {
					return false
				}
				tt.answer(w)
				return true
			}, nil)
			e, r := connect(t, p.url)
			// The one that cannot be looked at is as the list has it, and does not hide the other.
			all := listed(t, e).Sandboxes
			if len(all) != 2 {
				t.Errorf("%d listed, want both: %+v", len(all), all)
			}
			for _, s := range all {
				if s.State != watch.Running || s.Created.IsZero() || len(s.Terms.Owners) != 1 || s.Terms.Owners[0].Kind != watch.ProcessClaim {
					t.Errorf("listed as %+v", s)
				}
			}
			// A look that an event called for is made up for by a scan.
			mark := r.mark()
			must(t, private.Client().ContainerPause(t.Context(), id))
			defer func() { must(t, private.Client().ContainerUnpause(context.WithoutCancel(t.Context()), id)) }()
			await(t, r, mark, "a look failed", func(ev watch.LookFailed) bool { return ev.ID == containerID(id) && ev.Err != nil })
			for _, ev := range r.since(0) {
				switch ev := ev.(type) {
				case watch.SandboxGone:
					if ev.ID.Name == id {
						t.Errorf("posted %+v", ev)
					}
				case watch.SandboxSeen:
					if ev.Sandbox.ID.Name == id {
						t.Errorf("posted %+v", ev)
					}
				}
			}
		})
	}
}

// TestOwnersAreForgotten: what is remembered of claims is bounded by the sandboxes that make them.
func TestOwnersAreForgotten(t *testing.T) {
	private := dockertest.Shared(t)
	e, r := connect(t, private.Host())
	owner := private.Run(t, dockertest.ContainerOptions{Name: "soon-forgotten", NotStarted: true})
	label := map[string]string{watch.LabelOwner: "container:soon-forgotten"}
	first := private.Run(t, dockertest.ContainerOptions{Labels: label, NotStarted: true})
	second := private.Run(t, dockertest.ContainerOptions{Labels: label, NotStarted: true})
	await(t, r, 0, "owner seen", func(ev watch.ContainerSeen) bool { return ev.Container == owner })
	await(t, r, 0, "created", seenAs(second, watch.Created))
	remembered := func() map[string]bool {
		listed(t, e)
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.owners["soon-forgotten"]
	}
	must(t, e.Remove(t.Context(), containerID(first)))
	await(t, r, 0, "gone", goneIs(first))
	if got := remembered(); !got[owner] {
		t.Errorf("remembered %v, want %s: a sandbox still claims it", got, owner)
	}
	must(t, e.Remove(t.Context(), containerID(second)))
	await(t, r, 0, "gone", goneIs(second))
	if got := remembered(); got != nil {
		t.Errorf("remembered %v, and nobody claims it any more", got)
	}
}

// TestOpenInit: a signal goes only to what the kernel says is in the container (D4).
func TestOpenInit(t *testing.T) {
	private := dockertest.Shared(t)
	e := New(private.Host(), newProc(t), nil)
	id := private.Run(t, dockertest.ContainerOptions{})
	other := private.Run(t, dockertest.ContainerOptions{})
	init := inspectOf(t, private, id).State.Pid
	held, err := e.openInit(id, init)
	must(t, err)
	if held.Process().PID != init {
		t.Errorf("opened %+v, want %d", held.Process(), init)
	}
	must(t, held.Close())
	for name, pid := range map[string]int{
		"the init of another container": inspectOf(t, private, other).State.Pid,
		"ourselves":                     os.Getpid(),
		"PID 1":                         1,
		"the engine":                    private.PID(),
		"nobody":                        watch.MaxPID + 1,
	} {
		if held, err := e.openInit(id, pid); err == nil {
			t.Errorf("%s: opened %+v as the init of %s", name, held.Process(), id)
			_ = held.Close()
		}
	}
}

// TestRemoveAnswers is about engines that answer otherwise than Docker does.
func TestRemoveAnswers(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tt := range []struct {
		name    string
		deletes []int  // answers to DELETE, the last one for ever
		state   string // what an inspect says then; "": not found
		asked   int
		ok      func(error) bool
	}{
		{"removed", []int{204}, "", 1, func(err error) bool { return err == nil }},
		{"gone before", []int{404}, "", 1, func(err error) bool { return err == nil }},
		{"under way", []int{409, 409, 404}, "removing", 3, func(err error) bool { return err == nil }},
		{"Podman, gone", []int{500}, "", 1, func(err error) bool { return err == nil }},
		{"Podman, ended meanwhile", []int{500, 500, 204}, "stopped", 3, func(err error) bool { return err == nil }},
		{"an error again and again", []int{500}, "exited", failures, errdefs.IsInternal},
		{"an error", []int{500}, "dead", 1, errdefs.IsInternal},
		{"forbidden", []int{403}, "running", 1, errdefs.IsPermissionDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			asked := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				w.Header().Set("Api-Version", "1.41")
				w.Header().Set("Content-Type", "application/json")
				switch {
				case path(r) == "/_ping":
				case r.Method == http.MethodDelete:
					if r.FormValue("force") != "1" || r.FormValue("v") != "1" || path(r) != "/containers/"+id {
						t.Errorf("asked for %s", r.URL)
					}
					w.WriteHeader(tt.deletes[min(asked, len(tt.deletes)-1)])
					asked++
					_, _ = io.WriteString(w, `{"message":"no"}`)
				case tt.state != "":
					_, _ = io.WriteString(w, `{"Id":"`+id+`","State":{"Status":"`+tt.state+`"},"Config":{}}`)
				default:
					w.WriteHeader(http.StatusNotFound)
					_, _ = io.WriteString(w, `{"message":"no such container"}`)
				}
			}))
			defer srv.Close()
			e := New("tcp://"+strings.TrimPrefix(srv.URL, "http://"), nil, nil)
			cli, err := e.dial(t.Context())
			must(t, err)
			e.cli = cli
			defer e.hangUp(cli)
			if err := e.Remove(t.Context(), containerID(id)); !tt.ok(err) {
				t.Errorf("Remove = %v", err)
			}
			if asked != tt.asked {
				t.Errorf("asked %d times, want %d", asked, tt.asked)
			}
		})
	}
}

// TestRemoveKeepsAPromise: a container that was promised time to finish, and cannot be asked directly, is asked through
// the engine.
func TestRemoveKeepsAPromise(t *testing.T) {
	private := dockertest.Shared(t)
	id := private.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelStopTimeout: "1m"}})
	awaitHandler(t, private.PIDs(t, id)[0])
	since := time.Now()
	// Without a view of processes nothing is held.
	r := newRecord()
	e := New(private.Host(), nil, r.post)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Session(ctx) }()
	defer func() {
		stop()
		receive(t, ended)
	}()
	await(t, r, 0, "connected", anyOf[watch.SourceBack])
	listed(t, e)
	must(t, e.Remove(t.Context(), containerID(id)))
	private.WaitGone(t, id)

	messages, errs := private.Client().Events(t.Context(), events.ListOptions{
		Since: since.Format(time.RFC3339Nano), Until: time.Now().Format(time.RFC3339Nano),
		Filters: filters.NewArgs(filters.Arg("container", id), filters.Arg("event", string(events.ActionDie))),
	})
	select {
	case die := <-messages:
		if code := die.Actor.Attributes["exitCode"]; code != "0" {
			t.Errorf("it ended with %s, want 0, as on SIGTERM", code)
		}
	case err := <-errs:
		t.Errorf("no die event: %v", err)
	}
}
