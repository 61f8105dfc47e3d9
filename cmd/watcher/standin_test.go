//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// A stand-in is a program of the field as watcher meets it: an executable of that name, which makes its containers itself,
// through the engine's API, and knows nothing of watcher. It is the test binary under another name. It takes orders from
// standard input and answers each on standard output, both in JSON, and ends when its input does, so it never outlives the
// tests.

// asStandin makes the test binary a stand-in, and inPrivateHost gives the program folders of its own, see [privateHost].
const (
	asStandin     = "WATCHER_TEST_STANDIN"
	inPrivateHost = "WATCHER_TEST_PRIVATE_HOST"
)

func init() {
	if paths := os.Getenv(inPrivateHost); paths != "" {
		if err := enterPrivateHost(filepath.SplitList(paths)); err != nil {
			fmt.Fprintln(os.Stderr, "private host:", err)
			os.Exit(1)
		}
	}
	if os.Getenv(asStandin) != "" {
		if err := standIn(); err != nil {
			fmt.Fprintf(os.Stderr, "stand-in %s: %v\n", os.Args[0], err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// An order is one thing that a stand-in is to do.
type order struct {
	Make    []making // containers, all at a time
	Scratch string   // a folder with a file in it: a pattern for os.MkdirTemp
	Listen  string   // on a socket, from now on
	Sweep   string   // as kojuto does when a scan begins: remove what has this label and runs no more
	Exec    []string // another program: path and argv
	Hide    bool     // the name in argv[0], as a program may that sets a title
}

// An answer is what came of an order.
type answer struct {
	PID   int // as the stand-in calls itself
	IDs   []string
	Path  string
	Error string
}

// A making says what a container is like.
type making struct {
	Name, Image      string
	Labels           map[string]string // {pid}, {start} and {boot} stand for the stand-in's own
	Args, Env, Binds []string
	AutoRemove       bool
	State            watch.State
}

func standIn() error {
	cli, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	if err := answers.Encode(answer{PID: os.Getpid()}); err != nil {
		return err
	}
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			return nil // the tests are gone, or have enough of us
		}
		a, err := obey(cli, o)
		a.PID = os.Getpid()
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// listening keeps the sockets of a stand-in from being closed.
var listening []int

func obey(cli *client.Client, o order) (a answer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch {
	case len(o.Make) > 0:
		a.IDs = make([]string, len(o.Make))
		var all errgroup.Group
		for i, m := range o.Make {
			all.Go(func() error { return m.make(ctx, cli, &a.IDs[i]) })
		}
		return a, all.Wait()
	case o.Scratch != "":
		if a.Path, err = os.MkdirTemp("", o.Scratch); err != nil {
			return a, err
		}
		return a, os.WriteFile(filepath.Join(a.Path, "seccomp.json"), []byte("{}"), 0o600)
	case o.Listen != "":
		return a, listenAt(o.Listen)
	case o.Sweep != "":
		return a, sweep(ctx, cli, o.Sweep)
	case o.Hide:
		return a, setTitle("title")
	case len(o.Exec) > 0:
		return a, syscall.Exec(o.Exec[0], o.Exec[1:], os.Environ())
	}
	return a, nil
}

// listenAt is not net.Listen: the path may be longer than an address (unix(7)), and no net.Listener shall remove it.
func listenAt(file string) error {
	dir, err := unix.Open(filepath.Dir(file), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	listening = append(listening, fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(file))}); err != nil {
		return err
	}
	return unix.Listen(fd, 16)
}

// setTitle overwrites our argv in our memory, where /proc/PID/cmdline is read from (proc_pid_cmdline(5)).
func setTitle(title string) error {
	argv0 := unsafe.Slice(unsafe.StringData(os.Args[0]), len(os.Args[0]))
	clear(argv0)
	copy(argv0, title)
	return nil
}

func sweep(ctx context.Context, cli *client.Client, label string) error {
	old, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(
		filters.Arg("label", label), filters.Arg("status", "exited"), filters.Arg("status", "created"), filters.Arg("status", "dead"))})
	if err != nil {
		return err
	}
	for _, c := range old {
		// kojuto says nothing of errors here.
		_ = cli.ContainerRemove(ctx, c.ID, forced)
	}
	return nil
}

func (m making) make(ctx context.Context, cli *client.Client, id *string) error {
	labels, err := m.labels()
	if err != nil {
		return err
	}
	config := &container.Config{Image: m.Image, Cmd: m.Args, Env: m.Env, Labels: labels}
	host := &container.HostConfig{NetworkMode: "none", Binds: m.Binds, AutoRemove: m.AutoRemove}
	if config.Image == "" {
		config.Image = dockertest.ImageName
	}
	switch m.State {
	case watch.Stopped:
		config.Cmd = []string{"exit", "0"}
	case watch.Restarting:
		config.Cmd = []string{"exit", "1"}
		host.RestartPolicy.Name = container.RestartPolicyAlways
	}
	made, err := cli.ContainerCreate(ctx, config, host, nil, nil, m.Name)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	*id = made.ID
	if m.State == watch.Created {
		return nil
	}
	if err := cli.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if m.State == watch.Paused {
		return cli.ContainerPause(ctx, made.ID)
	}
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for m.State == watch.Stopped || m.State == watch.Restarting {
		c, err := cli.ContainerInspect(ctx, made.ID)
		if err != nil {
			return fmt.Errorf("inspect: %w", err)
		}
		if c.State.Status == string(m.State) {
			break
		}
		<-beat.C
	}
	return nil
}

func (m making) labels() (map[string]string, error) {
	me, err := identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	fill := strings.NewReplacer("{pid}", strconv.Itoa(me.PID), "{start}", strconv.FormatUint(me.Start, 10), "{boot}", me.Boot)
	labels := map[string]string{}
	for key, value := range m.Labels {
		labels[key] = fill.Replace(value)
	}
	return labels, nil
}

// identify reads who has a PID now, in its own way and not in the product's.
func identify(pid int) (watch.Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return watch.Process{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return watch.Process{}, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	start, err := strconv.ParseUint(fields[22-3], 10, 64)
	return watch.Process{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, err
}

// A standin is a stand-in as a test has it. Its methods want one goroutine at a time.
type standin struct {
	tb      testing.TB
	e       *dockertest.Engine
	pid     int // as the host numbers it
	own     int // as it numbers itself
	pidfd   int
	cmd     *exec.Cmd
	orders  *os.File
	reports *os.File
	answers *json.Decoder
}

// startStandin starts the program at a path, one of [processtest.Program], or what change makes of it.
func startStandin(tb testing.TB, e *dockertest.Engine, program string, change ...func(*exec.Cmd)) *standin {
	tb.Helper()
	s, err := launchStandin(tb, e, program, change...)
	if err != nil {
		tb.Fatalf("start %s: %v", program, err)
	}
	return s
}

func launchStandin(tb testing.TB, e *dockertest.Engine, program string, change ...func(*exec.Cmd)) (_ *standin, err error) {
	tb.Helper()
	in, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	reports, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, orders.Close())
	}
	defer out.Close()
	s := &standin{tb: tb, e: e, pidfd: -1, orders: orders, reports: reports, answers: json.NewDecoder(reports)}
	s.cmd = exec.Command(program)
	s.cmd.Env = append(os.Environ(), asStandin+"=1", "DOCKER_HOST="+e.Host(), "GORACE=atexit_sleep_ms=0")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = in, out, os.Stderr
	for _, change := range change {
		change(s.cmd)
	}
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(err, orders.Close(), reports.Close())
	}
	tb.Cleanup(s.end)
	s.own = s.read().PID
	s.pid = s.own
	if attr := s.cmd.SysProcAttr; attr != nil && attr.Cloneflags&unix.CLONE_NEWPID != 0 {
		s.pid = s.cmd.Process.Pid // with it goes all of its namespace
	}
	if s.pidfd, err = unix.PidfdOpen(s.pid, 0); err != nil {
		return nil, err
	}
	s.do(order{}) // it lives, so it is the one that we hold
	return s, nil
}

// end ends the stand-in, and whoever started it in its place.
func (s *standin) end() {
	s.kill()
	_ = s.orders.Close()
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
	_ = s.reports.Close()
	if s.pidfd >= 0 {
		_ = unix.Close(s.pidfd)
	}
	s.pidfd = -1
}

// kill is SIGKILL, and waits until the stand-in is dead and, if it is our child, reaped.
func (s *standin) kill() {
	s.tb.Helper()
	s.zombie()
	if s.pid == s.cmd.Process.Pid && s.cmd.ProcessState == nil {
		_ = s.cmd.Wait()
	}
}

// zombie is kill without a parent that waits.
func (s *standin) zombie() {
	s.tb.Helper()
	if s.pidfd < 0 {
		return
	}
	if err := unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		s.tb.Errorf("kill %s: %v", s.cmd.Path, err)
	}
	fds := []unix.PollFd{{Fd: int32(s.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			s.tb.Errorf("%s does not die: %v", s.cmd.Path, err)
		}
		return
	}
}

func (s *standin) do(o order) answer {
	s.tb.Helper()
	if err := json.NewEncoder(s.orders).Encode(o); err != nil {
		s.tb.Fatalf("tell %s: %v", s.cmd.Path, err)
	}
	return s.read()
}

func (s *standin) read() answer {
	s.tb.Helper()
	if err := s.reports.SetReadDeadline(time.Now().Add(patience)); err != nil {
		s.tb.Fatal(err)
	}
	var a answer
	if err := s.answers.Decode(&a); err != nil {
		s.tb.Fatalf("%s does not answer: %v", s.cmd.Path, err)
	}
	if a.Error != "" {
		for _, id := range a.IDs {
			s.forget(id)
		}
		s.tb.Fatalf("%s says: %s", s.cmd.Path, a.Error)
	}
	return a
}

// make has the stand-in make containers, and returns their IDs.
func (s *standin) make(all ...making) []string {
	s.tb.Helper()
	ids := s.do(order{Make: all}).IDs
	for _, id := range ids {
		s.forget(id)
	}
	return ids
}

// forget has a container removed when the test has ended, as those of [dockertest.Engine.Run] are.
func (s *standin) forget(id string) {
	if id == "" {
		return
	}
	s.tb.Cleanup(func() {
		var last error
		await(s.tb, "the container is removed", func() bool {
			last = s.e.Client().ContainerRemove(context.WithoutCancel(s.tb.Context()), id, container.RemoveOptions{Force: true, RemoveVolumes: true})
			return last == nil || errdefs.IsNotFound(last)
		})
	})
}

// become has the stand-in exec another path of [processtest.Program]. It answers as before.
func (s *standin) become(program string) {
	s.tb.Helper()
	s.do(order{Exec: []string{program, program}}) // the answer is the greeting of what it is then
}

// under sets folders for what a stand-in leaves behind.
func under(tmp, home string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "TMPDIR="+tmp, "HOME="+home) }
}

// A privateHost is what presets are tried on as they are, although their files are in places that belong to the whole
// machine: watcher runs in a mount namespace in which /tmp, /root and /home are folders of the test. What the test needs
// there besides is where it was.
type privateHost struct{ dir, keep string }

func newPrivateHost(t *testing.T) *privateHost {
	t.Helper()
	dir := t.TempDir()
	h := &privateHost{dir, filepath.Dir(dir)}
	for _, name := range []string{"tmp", "root", "home/agent"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *privateHost) tmp() string         { return filepath.Join(h.dir, "tmp") }
func (h *privateHost) root() string        { return filepath.Join(h.dir, "root") }
func (h *privateHost) home() string        { return filepath.Join(h.dir, "home/agent") }
func (h *privateHost) asRoot(c *exec.Cmd)  { under(h.tmp(), h.root())(c) }
func (h *privateHost) asAgent(c *exec.Cmd) { under(h.tmp(), h.home())(c) }

// program is watcher on that host.
func (h *privateHost) program(tb testing.TB, e *dockertest.Engine, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := program(tb, append([]string{"--docker-host", e.Host()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Env = append(cmd.Env, inPrivateHost+"="+strings.Join([]string{h.dir, h.keep, e.Dir()}, ":"))
	return cmd
}

// enterPrivateHost makes the mounts: the folder that has tmp, root and home comes first, and then what stays in its place.
func enterPrivateHost(paths []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	names := []string{"tmp", "root", "home"}
	for _, keep := range paths[1:] {
		for _, name := range names {
			rest, inside := strings.CutPrefix(keep, "/"+name+"/")
			if !inside {
				continue
			}
			at := filepath.Join(paths[0], name, rest)
			if err := os.MkdirAll(at, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(keep, at, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("keep %s: %w", keep, err)
			}
		}
	}
	for _, name := range names {
		if err := unix.Mount(filepath.Join(paths[0], name), "/"+name, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount /%s: %w", name, err)
		}
	}
	return nil
}

// alone waits until no process of a program lives that is not ours: it might own anything that is younger.
func alone(t *testing.T, glob string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	for {
		found := running(t, glob)
		if found == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Skipf("NOT RUN: %s runs on this host, and may own whatever is made from now on", found)
		}
		<-beat.C
	}
}

// running returns a process whose executable or argv[0] has a name that matches, or "".
func running(t *testing.T, glob string) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range files {
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		argv, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		arg, _, _ := strings.Cut(string(argv), "\x00")
		for _, file := range []string{strings.TrimSuffix(exe, " (deleted)"), arg} {
			if ok, err := path.Match(glob, path.Base(file)); err == nil && ok {
				return filepath.Base(dir) + " " + file
			}
		}
	}
	return ""
}

// output runs a command of watcher to its end.
func output(tb testing.TB, cmd *exec.Cmd) result {
	tb.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// rowsIn are the rows of -o json, by ID and, of files, by name.
func rowsIn(tb testing.TB, r result) map[string]row {
	tb.Helper()
	var rows []row
	if err := json.Unmarshal([]byte(r.stdout), &rows); err != nil {
		tb.Fatalf("%v in\n%s%s", err, r.stdout, r.stderr)
	}
	found := map[string]row{}
	for _, row := range rows {
		key := row.ID
		if row.Kind == watch.File {
			key = row.Name
		}
		found[key] = row
	}
	return found
}

// slug is the name of a test as a label and a rule may have it.
func slug(tb testing.TB) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '-'
		}
		return r
	}, tb.Name())
}

// barrierRule is the rule that [barrier] needs.
func barrierRule(tb testing.TB) string {
	return fmt.Sprintf("\n[[rule]]\nname = \"barrier\"\nmatch = { labels = [\"barrier=%s\"] }\nowner = { pid-label = \"barrier.pid\" }\n", slug(tb))
}

// barrier has the daemon reap another container. When that is done, it has had the time to do to others what it should not.
func barrier(tb testing.TB, e *dockertest.Engine, d *daemon) {
	tb.Helper()
	owner := processtest.StartOwner(tb)
	id := e.Run(tb, dockertest.ContainerOptions{NotStarted: true, Labels: map[string]string{
		"barrier": slug(tb), "barrier.pid": strconv.Itoa(owner.PID()),
	}})
	d.knows(id)
	owner.Kill()
	d.event(watch.EventReaped, id)
}
