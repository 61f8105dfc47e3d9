package docker

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process"
	"watcher/watch"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

// forwardVariable has this binary forward connections instead of running tests: FROM and TO, both sockets.
const forwardVariable = "WATCHER_DOCKER_FORWARD"

// heirVariable has this binary listen on a socket, and leave it to a child that outlives it.
const heirVariable = "WATCHER_DOCKER_HEIR"

func TestMain(m *testing.M) {
	if socket := os.Getenv(heirVariable); socket != "" {
		leaveListener(socket)
	}
	if from, to, ok := strings.Cut(os.Getenv(forwardVariable), " "); ok {
		l, err := net.Listen("unix", from)
		if err != nil {
			panic(err)
		}
		go forward(l, "unix", to)
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		// Without Go's farewell, which in a race-enabled binary takes a second.
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	code := dockertest.Main(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// forward passes bytes on between those who connect to l and an address, until l is closed.
func forward(l net.Listener, network, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial(network, to)
		if err != nil {
			_ = in.Close()
			continue
		}
		both := func() { _, _ = in.Close(), out.Close() }
		go func() { defer both(); _, _ = io.Copy(out, in) }()
		go func() { defer both(); _, _ = io.Copy(in, out) }()
	}
}

// leaveListener never returns. The child ends when its standard input, which was ours, does.
func leaveListener(socket string) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		panic(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("cat")
	cmd.Stdin, cmd.ExtraFiles = os.Stdin, []*os.File{f}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	// Without closing, which would remove the socket.
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
}

// forwardNested forwards from a socket, whose path it returns, in a process in a PID namespace of its own.
func forwardNested(t *testing.T, to string) string {
	t.Helper()
	from := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), forwardVariable+"="+from+" "+to)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	return from
}

// A record is all that an engine has posted.
type record struct {
	mu     sync.Mutex
	events []watch.Event
	more   chan struct{}
}

func newRecord() *record { return &record{more: make(chan struct{}, 1)} }

func (r *record) post(events ...watch.Event) {
	r.mu.Lock()
	r.events = append(r.events, events...)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// mark is the place in the record after all that is in it.
func (r *record) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func (r *record) since(mark int) []watch.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events[mark:])
}

// await waits until an event that is ok stands in the record after mark, and returns it.
func await[E watch.Event](t *testing.T, r *record, mark int, what string, ok func(E) bool) E {
	t.Helper()
	timeout := time.After(patience)
	for {
		for _, ev := range r.since(mark) {
			if e, is := ev.(E); is && ok(e) {
				return e
			}
		}
		select {
		case <-r.more:
		case <-timeout:
			t.Fatalf("no event says %q; there are %+v", what, r.since(mark))
		}
	}
}

func anyOf[E watch.Event](E) bool { return true }

func containerID(id string) watch.ID { return watch.ID{Kind: watch.Container, Name: id} }

func seenAs(id string, state watch.State) func(watch.SandboxSeen) bool {
	return func(ev watch.SandboxSeen) bool { return ev.Sandbox.ID == containerID(id) && ev.Sandbox.State == state }
}

func goneIs(id string) func(watch.SandboxGone) bool {
	return func(ev watch.SandboxGone) bool { return ev.ID == containerID(id) }
}

func newProc(t *testing.T) *process.Host {
	t.Helper()
	h, err := process.NewHost("/proc")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// connect returns an engine with a session, and what it posts. Both end with the test.
func connect(t *testing.T, url string) (*Engine, *record) {
	t.Helper()
	r := newRecord()
	e := New(url, newProc(t), r.post)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		receive(t, ended)
		e.Close()
	})
	await(t, r, 0, "connected", anyOf[watch.SourceBack])
	return e, r
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing within %v", patience)
		panic("unreachable")
	}
}

func listed(t *testing.T, e *Engine) watch.Listed {
	t.Helper()
	events, err := e.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range events {
		if l, ok := ev.(watch.Listed); ok {
			return l
		}
	}
	t.Fatalf("no list in %+v", events)
	panic("unreachable")
}

// owned is the least that makes a container a sandbox.
func owned(more ...string) map[string]string {
	labels := map[string]string{watch.LabelOwner: "1"}
	for i := 0; i < len(more); i += 2 {
		labels[more[i]] = more[i+1]
	}
	return labels
}
