package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// Source is the name of the engine among the sources of events.
const Source = "docker"

const (
	// callTimeout is the deadline of a call that an engine answers from memory, in a millisecond or less.
	callTimeout = 10 * time.Second
	// replay is how far back a subscription reaches. The engine answers before it has subscribed us, and what happens
	// in between would be lost. It keeps 256 events.
	replay = 5 * time.Second
	// settled is how long a session lasts that was no failure in disguise. After a shorter one the pauses go on growing.
	settled = 5 * time.Second
	// failures is how often an engine may fail at one removal until that is an error. A removal that crosses a death fails
	// once; one that crosses the restarts of a container that crashes may do so again.
	failures = 4
)

// An Engine is one engine, through all its restarts. It is safe for concurrent use.
type Engine struct {
	host  string
	proc  *process.Host
	post  func(...watch.Event)
	rules atomic.Pointer[ruleset]

	clients *clientFinder // nil where processes cannot be seen
	answers sync.Mutex    // held from an answer of the finder's until it is noted
	memory  *memory

	mu         sync.Mutex
	cli        *client.Client // nil while there is no connection
	shared     bool           // the engine's PIDs are ours
	containers map[string]*known
	others     map[string]other
	told       map[string]told                      // of containers that the client finder was shown
	blind      bool                                 // it cannot see
	belongings map[watch.Kind]map[string]*belonging // volumes by name, networks by ID
	owners     map[string]map[string]bool           // for each claimed container reference, the IDs it has stood for
	looking    map[string]chan struct{}             // sockets that are being looked at, closed when that has ended
}

// A known is what is remembered of a container that is watched, or once was, between looks.
type known struct {
	created time.Time
	image   string // as it was given at its creation
	mounts  []container.MountPoint
	existed uint64          // see [watch.Sandbox]
	terms   watch.Terms     // on which it is watched, or was
	by      *ruleset        // which made them
	watched bool            // and not only once was: then its end may have begun
	seen    time.Time       // when it was last looked at
	init    *process.Handle // nil: not held
	asked   bool            // to end by itself, for which it has what its terms promise, once
}

// An other is what is remembered of a container that was never watched.
type other struct {
	image string // as it was given at its creation
	seen  time.Time
}

// New returns the engine at a URL such as unix:///var/run/docker.sock; "" means the usual one. proc may be nil where
// processes cannot be seen at all. post must not block. It has no rules yet: only watcher's own labels count.
func New(host string, proc *process.Host, post func(...watch.Event)) *Engine {
	if host == "" {
		host = client.DefaultDockerHost
	}
	e := &Engine{
		host: host, proc: proc, post: post,
		containers: map[string]*known{},
		others:     map[string]other{},
		told:       map[string]told{},
		belongings: map[watch.Kind]map[string]*belonging{watch.Volume: {}, watch.Network: {}},
		owners:     map[string]map[string]bool{},
		looking:    map[string]chan struct{}{},
	}
	if proc != nil {
		e.clients = newClientFinder(proc, host)
	}
	e.SetRules(&watch.Rules{})
	return e
}

// CheckHost returns an error if host cannot be the URL of an engine. "" stands for the usual one.
func CheckHost(host string) error {
	if host == "" {
		return nil
	}
	if _, err := client.ParseHostURL(host); err != nil {
		return fmt.Errorf("engine at %q: want a URL such as %s", host, client.DefaultDockerHost)
	}
	return nil
}

// Kind is the kind of sandbox that an engine has.
func (e *Engine) Kind() watch.Kind { return watch.Container }

// Host is the URL of the engine.
func (e *Engine) Host() string { return e.host }

// Run keeps a session with the engine until ctx ends, through all absences of the engine.
func (e *Engine) Run(ctx context.Context) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 100 * time.Millisecond
	wait.MaxInterval = 10 * time.Second
	for {
		began := time.Now()
		err := e.Session(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > settled {
			wait.Reset()
		}
		now := time.Now()
		e.postEach(func(kind watch.Kind) watch.Event {
			return watch.SourceLost{Source: Source, Kind: kind, Err: err, At: now}
		})
		e.pause(ctx, wait.NextBackOff())
	}
}

// pause waits for d, or less if the engine's socket appears.
func (e *Engine) pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	if path, ok := e.socket(); ok {
		// Without a watch on the folder the wait is merely not cut short.
		if err := statedir.Await(ctx, path); err == nil {
			return
		}
	}
	<-ctx.Done()
}

// Session connects, subscribes, says so, and tells what happens until the engine or ctx ends. It returns an error in
// every case.
func (e *Engine) Session(ctx context.Context) error {
	// Negotiation happens once per client, and the engine may have been upgraded: so each session has a new one.
	cli, err := e.dial(ctx)
	if err != nil {
		return e.hint(err)
	}
	defer e.hangUp(cli)

	namespaces := e.namespaces(ctx, cli)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, errs := cli.Events(ctx, events.ListOptions{
		Since: fmt.Sprintf("%.9f", float64(time.Now().Add(-replay).UnixNano())/1e9),
		Filters: filters.NewArgs(
			filters.Arg("type", string(events.ContainerEventType)),
			filters.Arg("type", string(events.VolumeEventType)),
			filters.Arg("type", string(events.NetworkEventType)),
		),
	})
	changed := newChanges()
	go e.follow(ctx, cli, changed)

	// Another engine may serve the socket now: this comes before any list of its containers (D5).
	e.post(namespaces...)
	e.mu.Lock()
	e.cli = cli
	e.mu.Unlock()
	// What is wrong with the stream, as a proxy that forbids it, shows after one more call.
	if err := ping(ctx, cli); err != nil {
		return e.hint(err)
	}
	select {
	case err := <-errs:
		return fmt.Errorf("events of the engine at %s: %w", e.host, err)
	default:
	}
	back := time.Now()
	e.postEach(func(kind watch.Kind) watch.Event { return watch.SourceBack{Source: Source, Kind: kind, At: back} })
	for {
		select {
		case msg := <-messages:
			for _, change := range e.concerns(msg) {
				changed.add(change)
			}
		case err := <-errs:
			return fmt.Errorf("events of the engine at %s: %w", e.host, err)
		}
	}
}

func (e *Engine) dial(ctx context.Context) (*client.Client, error) {
	// DOCKER_API_VERSION is left alone on purpose: it would switch the negotiation off.
	options := []client.Opt{client.WithTLSClientConfigFromEnv(), client.WithHost(e.host), client.WithAPIVersionNegotiation()}
	if path, ok := e.socket(); ok {
		options = append(options, client.WithDialContext(samePeer(path)))
	}
	cli, err := client.NewClientWithOpts(options...)
	if err != nil {
		return nil, fmt.Errorf("engine at %q: %w", e.host, err)
	}
	if err := ping(ctx, cli); err != nil {
		return nil, errors.Join(err, cli.Close())
	}
	return cli, nil
}

func ping(ctx context.Context, cli *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := cli.Ping(ctx)
	return err
}

func (e *Engine) hangUp(cli *client.Client) {
	e.mu.Lock()
	if e.cli == cli {
		e.cli = nil
	}
	e.mu.Unlock()
	// Only idle connections are closed, which cannot fail in a way that matters.
	_ = cli.Close()
}

// ErrNotConnected says that there is no session with the engine at the moment.
var ErrNotConnected = errors.New("not connected to the engine")

func (e *Engine) client() (*client.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cli == nil {
		return nil, ErrNotConnected
	}
	return e.cli, nil
}

// hint adds to an error what its reader can do about it.
func (e *Engine) hint(err error) error {
	why := "is the engine running there? --docker-host or DOCKER_HOST name another"
	if errors.Is(err, fs.ErrPermission) || errdefs.IsPermissionDenied(err) {
		why = "may this user use the socket? root and the group docker may"
	}
	return fmt.Errorf("cannot reach the engine at %s (%s): %w", e.host, why, err)
}

func (e *Engine) socket() (path string, ok bool) {
	u, err := url.Parse(e.host)
	if err != nil || u.Scheme != "unix" {
		return "", false
	}
	return u.Path, true
}

// postEach posts an event about each kind of sandbox that the engine has.
func (e *Engine) postEach(about func(watch.Kind) watch.Event) {
	var all []watch.Event
	for _, kind := range kinds {
		all = append(all, about(kind))
	}
	e.post(all...)
}

// namespaces finds out whether PIDs mean the same to the engine and to us (D5), and remembers it.
func (e *Engine) namespaces(ctx context.Context, cli *client.Client) (found []watch.Event) {
	err := e.sameHost(ctx, cli)
	e.mu.Lock()
	e.shared = err == nil
	e.mu.Unlock()
	for _, kind := range kinds {
		seen := watch.NamespaceSeen{Kind: kind, Shared: err == nil}
		if err != nil {
			seen.Detail = err.Error()
		}
		found = append(found, seen)
	}
	return found
}

// sameHost returns nil only if the process that serves the socket is in our PID namespace, and the engine behind it runs
// on this machine: the socket may be a tunnel's. An engine of this machine reports our name and kernel, and if containers
// run there, the first process of one of them is seen here in that container's cgroup.
func (e *Engine) sameHost(ctx context.Context, cli *client.Client) error {
	path, ok := e.socket()
	switch {
	case e.proc == nil:
		return errors.New("/proc cannot be read here")
	case !ok:
		return fmt.Errorf("the engine at %s may be on another machine", e.host)
	}
	if shifted, err := e.proc.ShiftedClock(); err != nil || shifted {
		return errors.Join(err, errors.New("we are in a time namespace, where start times read differently"))
	}
	pid, err := listener(path)
	if err != nil {
		return fmt.Errorf("find out who serves %s: %w", path, err)
	}
	if pid == 0 {
		return fmt.Errorf("the process that serves %s is not in our PID namespace", path)
	}
	nested, err := e.proc.Nested(pid)
	if err != nil {
		return fmt.Errorf("find out in which PID namespace the engine is: %w", err)
	}
	if nested {
		return fmt.Errorf("the process %d, which serves %s, is in a PID namespace of its own", pid, path)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := cli.Info(ctx)
	if err != nil {
		return fmt.Errorf("ask the engine where it runs: %w", err)
	}
	name, kernel, err := uname()
	if err != nil {
		return err
	}
	if info.Name != name || info.KernelVersion != kernel {
		return fmt.Errorf("the engine says that it runs on %s with kernel %s, and this is %s with kernel %s", info.Name, info.KernelVersion, name, kernel)
	}
	return e.seesContainers(ctx, cli)
}

// seesContainers returns nil if no container runs, or if the first process of one is where the engine says.
func (e *Engine) seesContainers(ctx context.Context, cli *client.Client) error {
	running, err := cli.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return fmt.Errorf("ask the engine what runs: %w", err)
	}
	missed := 0
	for _, line := range running {
		c, err := inspect(ctx, cli, line.ID)
		if errdefs.IsNotFound(err) || err == nil && c.State.Pid == 0 {
			continue // it has ended meanwhile
		}
		if err != nil {
			return fmt.Errorf("ask the engine what runs: %w", err)
		}
		init, err := e.openInit(c.ID, c.State.Pid)
		if err == nil {
			return init.Close()
		}
		if missed++; missed == enoughMissed {
			break
		}
	}
	if missed > 0 {
		return errors.New("containers run there, and none of their processes is seen here")
	}
	return nil
}

// enoughMissed is how many containers may have ended between two calls until it counts as proof that they are elsewhere.
const enoughMissed = 8

// SharesProcesses returns nil only if PIDs mean the same to the engine and to us.
func (e *Engine) SharesProcesses(ctx context.Context) error {
	cli, err := e.dial(ctx)
	if err != nil {
		return e.hint(err)
	}
	return errors.Join(e.sameHost(ctx, cli), cli.Close())
}

// samePeer returns a dialer for the connections of one client. The first one settles who serves the socket; if that
// changes, as when another engine's socket is put in its place, the others fail: an answer of a second engine about a
// container of the first would be "not found".
func samePeer(path string) func(ctx context.Context, _, _ string) (net.Conn, error) {
	var first struct {
		sync.Mutex
		known bool
		pid   int
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		pid, err := listenerOf(conn)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		first.Lock()
		defer first.Unlock()
		if first.known && pid != first.pid {
			return nil, errors.Join(fmt.Errorf("%s is served by process %d now, and was by %d", path, pid, first.pid), conn.Close())
		}
		first.known, first.pid = true, pid
		return conn, nil
	}
}

// listener returns the PID of the process that called listen on a socket, as our PID namespace numbers it; 0 if it is
// not in it (SO_PEERCRED, unix(7)).
func listener(path string) (pid int, err error) {
	conn, err := net.DialTimeout("unix", path, callTimeout)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return listenerOf(conn)
}

func listenerOf(conn net.Conn) (pid int, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var credErr error
	err = raw.Control(func(fd uintptr) { pid, credErr = peer(fd) })
	return pid, errors.Join(err, credErr)
}

// Absent reports whether there is no socket where the engine's would be, on this host: then it has no engine.
func (e *Engine) Absent() bool {
	path, ok := e.socket()
	if !ok {
		return false
	}
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// RemoveOnce removes a container, volume or network, as [Engine.Remove] and [Belongings.Remove] do, on a connection of its
// own, for those who have no session.
func (e *Engine) RemoveOnce(ctx context.Context, id watch.ID) error {
	switch id.Kind {
	case watch.Container:
	case watch.Volume, watch.Network:
		return e.adapter(id.Kind).RemoveOnce(ctx, id)
	default:
		return fmt.Errorf("remove %s: it is not an engine's", id)
	}
	cli, err := e.dial(ctx)
	if err != nil {
		return e.hint(err)
	}
	return errors.Join(removeWith(ctx, cli, id), cli.Close())
}

// Describe returns what rules may look at of a container, and its full ID, for those who have no session. The error is, or
// wraps, [ErrNoContainer] if there is none that name, an ID or a prefix of one, names.
func (e *Engine) Describe(ctx context.Context, name string) (f watch.Facts, id string, err error) {
	cli, err := e.dial(ctx)
	if err != nil {
		return watch.Facts{}, "", e.hint(err)
	}
	defer func() { err = errors.Join(err, cli.Close()) }()
	c, err := cli.ContainerInspect(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return watch.Facts{}, "", ErrNoContainer
	case err != nil:
		return watch.Facts{}, "", err
	case c.ContainerJSONBase == nil || c.Config == nil:
		return watch.Facts{}, "", errors.New("the engine's answer lacks how the container was made")
	}
	return facts(c), c.ID, nil
}

// ErrNoContainer says that the engine has no such container.
var ErrNoContainer = errors.New("no such container")

// Close lets go of everything that is held.
func (e *Engine) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.containers {
		e.forget(id)
	}
}

// forget drops what is remembered of a container. The caller holds the lock.
func (e *Engine) forget(id string) {
	if c := e.containers[id]; c != nil && c.init != nil {
		// Closing a pidfd has no error that anybody could act on.
		_ = c.init.Close()
	}
	delete(e.containers, id)
	delete(e.others, id)
	if _, shown := e.told[id]; shown {
		delete(e.told, id)
		e.clients.forget(id)
	}
}

// Stop signals the container's init. It does so at once, while anything asked of the engine takes 15 ms or more.
func (e *Engine) Stop(id watch.ID, step watch.Step) error {
	e.mu.Lock()
	var init *process.Handle
	if c := e.containers[id.Name]; c != nil {
		init = c.init
	}
	e.mu.Unlock()
	if init == nil {
		return fmt.Errorf("%s: its init is not held", id)
	}
	sig := syscall.SIGKILL
	if step == watch.Terminate {
		sig = syscall.SIGTERM
	}
	// That it is gone already is what was wanted.
	if err := init.Signal(sig); err != nil && !errors.Is(err, process.ErrGone) {
		return fmt.Errorf("%s: %w", id, err)
	}
	e.takeGrace(id.Name)
	return nil
}

// takeGrace returns how long a container is still to be given to end by itself, which it is given once.
func (e *Engine) takeGrace(id string) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	if c == nil || c.asked {
		return 0
	}
	c.asked = true
	return c.terms.StopTimeout
}

// Remove has the engine kill the container if it runs, and remove it with its anonymous volumes. One that was promised
// time to finish, and could not be asked by [Engine.Stop], is asked through the engine first.
func (e *Engine) Remove(ctx context.Context, id watch.ID) error {
	cli, err := e.client()
	if err != nil {
		return err
	}
	if grace := e.takeGrace(id.Name); grace > 0 {
		seconds := int((grace + time.Second - 1) / time.Second)
		// Whether it ended, or could not be asked: the removal comes next, and tells what went wrong.
		_ = cli.ContainerStop(ctx, id.Name, container.StopOptions{Signal: "SIGTERM", Timeout: &seconds})
	}
	return removeWith(ctx, cli, id)
}

func removeWith(ctx context.Context, cli *client.Client, id watch.ID) error {
	again := backoff.NewExponentialBackOff()
	again.InitialInterval = 50 * time.Millisecond
	again.MaxInterval = time.Second
	var last error
	failed := 0
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = remove(ctx, cli, id.Name)
		if errdefs.IsInternal(last) {
			if failed++; failed == failures {
				last = backoff.Permanent(last)
			}
		}
		return struct{}{}, last
	}, backoff.WithBackOff(again), backoff.WithMaxElapsedTime(0))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && !errors.Is(last, ctx.Err()):
		return fmt.Errorf("remove %s: %w; the engine's last answer: %w", id, err, last)
	default:
		return fmt.Errorf("remove %s: %w", id, err)
	}
}
