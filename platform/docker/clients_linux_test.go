package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process"
	"watcher/watch"
)

// agentVariable has this binary play an agent instead of running tests: it holds an agentRole.
const agentVariable = "WATCHER_DOCKER_AGENT"

// An agentRole is what an agent does: it starts a command and lives until its own standard input ends.
type agentRole struct {
	How     string   // what the command's standard input is: "pipe", "leak" (the command inherits the other end as well), "socketpair" or "null"
	Line    []string // the command
	Env     []string
	Pretend bool   // nothing is started: the agent itself is what is called so, with no command
	Hide    string // a folder over which the agent mounts an empty one, in a mount namespace of its own
}

// Before the tests' flags are looked at, since a pretender has other arguments.
func init() {
	if text := os.Getenv(agentVariable); text != "" {
		var role agentRole
		if err := json.Unmarshal([]byte(text), &role); err != nil {
			panic(err)
		}
		role.play()
		// Without Go's farewell, which in a race-enabled binary takes a second.
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

func (role agentRole) play() {
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	if role.Hide != "" {
		check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		check(unix.Mount("tmpfs", role.Hide, "tmpfs", 0, ""))
	}
	if !role.Pretend {
		cmd := exec.Command(role.Line[0], role.Line[1:]...)
		cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
			return strings.HasPrefix(kv, "DOCKER_") || strings.HasPrefix(kv, "CONTAINER") || strings.HasPrefix(kv, agentVariable)
		})
		cmd.Env = append(cmd.Env, role.Env...)
		cmd.Stderr = os.Stderr
		var fds [2]int
		switch role.How {
		case "pipe":
			check(unix.Pipe2(fds[:], unix.O_CLOEXEC))
			cmd.Stdin = os.NewFile(uintptr(fds[0]), "stdin")
		case "leak":
			check(unix.Pipe2(fds[:], 0))
			cmd.Stdin = os.NewFile(uintptr(fds[0]), "stdin")
		case "socketpair":
			var err error
			fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			check(err)
			cmd.Stdin = os.NewFile(uintptr(fds[0]), "stdin")
		}
		check(cmd.Start())
		if cmd.Stdin != nil {
			check(cmd.Stdin.(*os.File).Close())
		}
		go func() { _ = cmd.Wait() }()
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// An agent is a process that starts clients.
type agent struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Closer
}

// startAgent runs an agent until the test ends.
func startAgent(t *testing.T, role agentRole, change func(*exec.Cmd)) *agent {
	t.Helper()
	text, err := json.Marshal(role)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"agent"}
	if role.Pretend {
		cmd.Args = role.Line
	}
	cmd.Env = append(os.Environ(), agentVariable+"="+string(text))
	said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	must(t, err)
	cmd.Stderr = said
	t.Cleanup(func() {
		if text, err := os.ReadFile(said.Name()); t.Failed() && err == nil {
			t.Logf("%q says: %s", role.Line, text)
		}
		_ = said.Close()
	})
	cmd.SysProcAttr = &unix.SysProcAttr{}
	if role.Hide != "" {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	if change != nil {
		change(cmd)
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	a := &agent{t, cmd, in}
	t.Cleanup(a.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the agent says %q: %v", line, err)
	}
	return a
}

func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	_ = a.in.Close()
}

func (a *agent) process() watch.Process { return processOf(a.t, a.cmd.Process.Pid) }

func processOf(t *testing.T, pid int) watch.Process {
	t.Helper()
	h, err := newProc(t).Open(pid)
	must(t, err)
	defer h.Close()
	return h.Process()
}

// A scene is an engine with clients, and a finder that looks at them. Nothing of it outlives its test.
type scene struct {
	*clientFinder
	t      *testing.T
	engine *dockertest.Engine
	image  string
	label  string
}

func newScene(t *testing.T, e *dockertest.Engine) *scene {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Fatalf("%v (apt-get install docker.io)", err)
	}
	s := &scene{newClientFinder(newProc(t), e.Host()), t, e, e.Image(t), "scene=" + strings.ReplaceAll(t.Name(), "/", "-")}
	t.Cleanup(s.clear)
	return s
}

// clear removes the containers, kills the clients that are left, and waits for their end. No other process on this
// machine has the engine's name, which is random, in what it was asked for.
func (s *scene) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range s.list(ctx) {
		if err := s.engine.Client().ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
			s.t.Logf("remove %s: %v", c.ID, err)
		}
	}
	clients, err := s.look()
	if err != nil {
		s.t.Errorf("clear: %v", err)
		return
	}
	for _, k := range clients.all {
		if !slices.ContainsFunc(k.requests, func(r request) bool { return slices.Contains(r.run.all("label"), s.label) }) {
			continue
		}
		if h, err := s.proc.Open(k.process.PID); err == nil {
			if h.Process() == k.process {
				_ = h.Signal(unix.SIGKILL)
				_ = h.Wait()
			}
			_ = h.Close()
		}
	}
}

func (s *scene) list(ctx context.Context) []container.Summary {
	found, err := s.engine.Client().ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", s.label))})
	if err != nil {
		s.t.Errorf("list: %v", err)
	}
	return found
}

// run is the command line of a client.
func (s *scene) run(options ...string) []string {
	line := append([]string{"docker", "-H", s.engine.Host(), "run", "--network", "none", "-l", s.label}, options...)
	return append(line, s.image)
}

// await waits until n containers run, and returns their IDs, oldest first.
func (s *scene) await(n int) (ids []string) {
	s.t.Helper()
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for deadline := time.Now().Add(patience); ; <-beat.C {
		created := map[string]string{}
		for _, line := range s.list(s.t.Context()) {
			if c, ok := s.engine.Inspect(s.t, line.ID); ok && c.State.Running {
				created[c.ID] = c.Created
			}
		}
		ids = slices.SortedFunc(maps.Keys(created), func(a, b string) int { return strings.Compare(created[a], created[b]) })
		if len(ids) == n {
			return ids
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d containers run, want %d", len(ids), n)
		}
	}
}

// ask is what is known of a container now.
func (s *scene) ask(id string) ([]watch.Client, string) {
	s.t.Helper()
	return s.askFresh(s.clientFinder, id)
}

func (s *scene) askFresh(f *clientFinder, id string) ([]watch.Client, string) {
	s.t.Helper()
	c, ok := s.engine.Inspect(s.t, id)
	if !ok {
		s.t.Fatalf("%s is gone", id)
	}
	clients, err := f.look()
	must(s.t, err)
	return clients.of(c)
}

// only demands that a container has one client, and returns the process.
func (s *scene) only(id string) watch.Process {
	s.t.Helper()
	clients, why := s.ask(id)
	if len(clients) == 0 {
		s.t.Fatalf("%s: no client: %s", id, why)
	}
	for _, c := range clients {
		if c.Process != clients[0].Process {
			s.t.Fatalf("%s: clients %+v, want one", id, clients)
		}
	}
	return clients[0].Process
}

func (s *scene) nobody(id, want string) {
	s.t.Helper()
	if clients, why := s.ask(id); len(clients) > 0 || why != want {
		s.t.Errorf("clients %+v, %q; want none, %q", clients, why, want)
	}
}

// orphaned judges as a picture does: every client is dead, or one of those who speak to it is.
func orphaned(t *testing.T, clients []watch.Client) bool {
	t.Helper()
	return !slices.ContainsFunc(clients, func(c watch.Client) bool {
		return !slices.ContainsFunc(append([]watch.Process{c.Process}, c.Speakers...), func(p watch.Process) bool { return dead(t, p) })
	})
}

func dead(t *testing.T, p watch.Process) bool {
	t.Helper()
	h, err := newProc(t).Open(p.PID)
	if err != nil {
		return true
	}
	defer h.Close()
	return h.Process() != p
}

// kill ends a client that a scene has found.
func (s *scene) kill(p watch.Process) {
	s.t.Helper()
	h, err := s.proc.Open(p.PID)
	must(s.t, err)
	defer h.Close()
	if h.Process() != p {
		s.t.Fatalf("%v is gone", p)
	}
	must(s.t, h.Signal(unix.SIGKILL))
	must(s.t, h.Wait())
}

func speakersOf(clients []watch.Client) (all []watch.Process) {
	for _, c := range clients {
		all = append(all, c.Speakers...)
	}
	return all
}

// TestClientOfAnAgent: what an agent started is an orphan when the agent is dead, although its client lives.
func TestClientOfAnAgent(t *testing.T) {
	for _, how := range []string{"pipe", "socketpair"} {
		for _, shell := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, shell %t", how, shell), func(t *testing.T) {
				s := newScene(t, dockertest.Shared(t))
				line := s.run("--rm", "-i")
				if shell {
					line = []string{"sh", "-c", strings.Join(line, " ") + "; true"} // or else it would exec
				}
				a := startAgent(t, agentRole{How: how, Line: line}, nil)
				agent := a.process()
				id := s.await(1)[0]
				docker := s.only(id)
				clients, _ := s.ask(id)
				if got := speakersOf(clients); !slices.Equal(got, []watch.Process{agent}) || len(clients) != 1 {
					t.Errorf("clients %+v, want one to whom %v speaks", clients, agent)
				}
				if docker == agent || orphaned(t, clients) {
					t.Errorf("an orphan at once: %+v", clients)
				}
				a.kill()
				if !orphaned(t, clients) || dead(t, docker) {
					t.Errorf("no orphan after the agent's end: %+v", clients)
				}
				// What was decided stays.
				if again, why := s.ask(id); !slices.EqualFunc(again, clients, equalClients) {
					t.Errorf("clients %+v (%s), were %+v", again, why, clients)
				}
				s.kill(docker)
				if again, why := s.ask(id); !slices.EqualFunc(again, clients, equalClients) {
					t.Errorf("clients %+v (%s) after the client's end, were %+v", again, why, clients)
				}
			})
		}
	}
}

// TestClientOfRealAgents: Node gives its children a socket for their standard input, and Python a pipe.
func TestClientOfRealAgents(t *testing.T) {
	for _, tt := range []struct{ program, option, text string }{
		{"node", "-e", "require('child_process').spawn(%s[0], %[1]s.slice(1), {stdio: ['pipe', 'ignore', 'inherit']})"},
		{"python3", "-c", "import subprocess; a = %s; subprocess.Popen(a, stdin=subprocess.PIPE).wait()"},
	} {
		t.Run(tt.program, func(t *testing.T) {
			if _, err := exec.LookPath(tt.program); err != nil {
				t.Fatalf("%v (apt-get install nodejs python3)", err)
			}
			s := newScene(t, dockertest.Shared(t))
			line, err := json.Marshal(s.run("--rm", "-i"))
			must(t, err)
			s.start("null", tt.program, tt.option, fmt.Sprintf(tt.text, line))
			id := s.await(1)[0]
			docker := s.only(id)
			clients, _ := s.ask(id)
			speakers := speakersOf(clients)
			if len(clients) != 1 || len(speakers) != 1 {
				t.Fatalf("clients %+v, want one with one speaker", clients)
			}
			s.kill(speakers[0])
			if !orphaned(t, clients) || dead(t, docker) {
				t.Errorf("no orphan after the end of %s: %+v", tt.program, clients)
			}
		})
	}
}

func equalClients(a, b watch.Client) bool {
	return a.Process == b.Process && slices.Equal(a.Speakers, b.Speakers)
}

// TestClientOfSeveral: a shell that inherited the other end could speak to the client as well. Either of them keeps: the
// agent may have forked the shell to be the owner, and may be about to exit.
func TestClientOfSeveral(t *testing.T) {
	for _, agentFirst := range []bool{true, false} {
		s := newScene(t, dockertest.Shared(t))
		a := startAgent(t, agentRole{How: "leak", Line: []string{"sh", "-c", strings.Join(s.run("--rm", "-i"), " ") + "; true"}}, nil)
		agent := a.process()
		id := s.await(1)[0]
		docker := s.only(id)
		clients, _ := s.ask(id)
		speakers := speakersOf(clients)
		i := slices.Index(speakers, agent)
		if len(clients) != 2 || len(speakers) != 2 || i < 0 {
			t.Fatalf("clients %+v, want two to whom %v and its shell speak", clients, agent)
		}
		shell := speakers[1-i]
		end := []func(){a.kill, func() { s.kill(shell) }}
		if !agentFirst {
			slices.Reverse(end)
		}
		end[0]()
		if orphaned(t, clients) {
			t.Errorf("agent first: %t: an orphan with one left: %+v", agentFirst, clients)
		}
		end[1]()
		if !orphaned(t, clients) || dead(t, docker) {
			t.Errorf("agent first: %t: no orphan with none left: %+v", agentFirst, clients)
		}
		s.clear()
	}
}

// TestClientWithoutSpeakers: who writes and is no ancestor has no part in it, nor has a parent that only waits.
func TestClientWithoutSpeakers(t *testing.T) {
	for _, tt := range []struct {
		name string
		role func(s *scene) agentRole
	}{
		{"a pipeline", func(s *scene) agentRole {
			return agentRole{How: "pipe", Line: []string{"sh", "-c", "echo x | " + strings.Join(s.run("--rm", "-i"), " ")}}
		}},
		{"nothing to read", func(s *scene) agentRole { return agentRole{How: "null", Line: s.run("--rm", "-i")} }},
		{"not read", func(s *scene) agentRole { return agentRole{How: "pipe", Line: s.run("--rm")} }},
		{"a file", func(s *scene) agentRole {
			return agentRole{How: "null", Line: []string{"sh", "-c", strings.Join(s.run("-i"), " ") + " < /proc/version"}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, dockertest.Shared(t))
			a := startAgent(t, tt.role(s), nil)
			id := s.await(1)[0]
			docker := s.only(id)
			clients, _ := s.ask(id)
			if len(clients) != 1 || len(clients[0].Speakers) > 0 {
				t.Errorf("clients %+v, want one without speakers", clients)
			}
			a.kill()
			if orphaned(t, clients) {
				t.Errorf("an orphan without the agent: %+v", clients)
			}
			s.kill(docker)
			if !orphaned(t, clients) {
				t.Errorf("no orphan without the client: %+v", clients)
			}
		})
	}
}

// TestAdoptedClient: whoever took the place of a dead agent is none.
func TestAdoptedClient(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	a := startAgent(t, agentRole{How: "pipe", Line: s.run("--rm", "-i")}, nil)
	id := s.await(1)[0]
	a.kill()
	if clients, why := s.ask(id); len(clients) != 1 || len(clients[0].Speakers) > 0 {
		t.Errorf("clients %+v (%s), want one without speakers", clients, why)
	}
	h, err := s.proc.Open(s.only(id).PID)
	must(t, err)
	defer h.Close()
	if pid, err := parentOf(h); err != nil || pid == a.cmd.Process.Pid {
		t.Errorf("the parent is %d, %v", pid, err)
	} else if parent, err := s.parent(h); pid == 1 && err == nil {
		t.Errorf("PID 1 is a parent like any: %v", parent.Process())
	} else if err == nil {
		_ = parent.Close()
	}
}

func TestNoClient(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(s *scene)
		want string
	}{
		{"detached", func(s *scene) { s.start("null", s.run("-d", "-i")...) }, whyDetached},
		{"fed and left", func(s *scene) { s.start("null", s.run("-i", "-a", "stdin")...) }, whyDetached},
		{"restarted", func(s *scene) { s.start("pipe", s.run("-i", "--restart", "always")...) }, whyRestarts},
		{"created and started", func(s *scene) {
			create := strings.Replace(strings.Join(s.run("-i"), " "), " run ", " create ", 1)
			s.start("pipe", "sh", "-c", "exec docker -H "+s.engine.Host()+" start -ai $("+create+")")
		}, whyNobody},
		{"by the API", func(s *scene) { s.create() }, whyNobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, dockertest.Shared(t))
			tt.make(s)
			s.nobody(s.await(1)[0], tt.want)
		})
	}
}

// start runs a command by an agent of its own.
func (s *scene) start(how string, line ...string) *agent {
	s.t.Helper()
	return startAgent(s.t, agentRole{How: how, Line: line}, nil)
}

// create makes a container through the API that looks like one of docker run --rm -i.
func (s *scene) create() string {
	s.t.Helper()
	key, value, _ := strings.Cut(s.label, "=")
	api := s.engine.Client()
	made, err := api.ContainerCreate(s.t.Context(), &container.Config{
		Image: s.image, AttachStdin: true, AttachStdout: true, AttachStderr: true, OpenStdin: true, StdinOnce: true, Labels: map[string]string{key: value},
	}, &container.HostConfig{AutoRemove: true, NetworkMode: "none"}, nil, nil, "")
	must(s.t, err)
	must(s.t, api.ContainerStart(s.t.Context(), made.ID, container.StartOptions{}))
	return made.ID
}

// TestDeadClient: who is dead when a container is first shown is not found, and nobody else is either.
func TestDeadClient(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	s.start("pipe", s.run("--rm", "-i")...)
	id := s.await(1)[0]
	docker := (&scene{newClientFinder(s.proc, s.engine.Host()), t, s.engine, s.image, s.label}).only(id)
	s.kill(docker)
	s.start("pipe", s.run("--rm", "-i")...)
	s.await(2)
	s.nobody(id, whyNobody)
}

// TestTwoAtOnce: of two that cannot be told apart, both keep both.
func TestTwoAtOnce(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	line := s.run("--rm", "-i")
	s.start("pipe", "sh", "-c", strings.Join(line, " ")+" & "+strings.Join(line, " ")+" <&0; wait")
	ids := s.await(2)
	var all [][]watch.Client
	for _, id := range append(ids, ids...) { // the answer to the first is another once the second is known
		clients, why := s.ask(id)
		if len(clients) == 0 {
			t.Fatalf("no clients: %s", why)
		}
		all = append(all, clients)
	}
	first, second := all[2], all[3]
	switch {
	case len(first) == 1 && len(second) == 1 && first[0].Process != second[0].Process: // they could be told apart
	case len(first) == 2 && slices.EqualFunc(first, second, func(a, b watch.Client) bool { return a.Process == b.Process }):
	default:
		t.Errorf("clients %+v and %+v", first, second)
	}
	for _, id := range ids {
		s.kill(s.all(id)[0])
	}
	if !orphaned(t, first) || !orphaned(t, second) {
		t.Errorf("no orphans: %+v, %+v", first, second)
	}
}

// all are the living clients that a container may have.
func (s *scene) all(id string) (living []watch.Process) {
	s.t.Helper()
	clients, _ := s.ask(id)
	for _, c := range clients {
		if !dead(s.t, c.Process) {
			living = append(living, c.Process)
		}
	}
	return living
}

// TestOneAfterTheOther: a client is that of one container, also for somebody who comes when all is there.
func TestOneAfterTheOther(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	fresh := newClientFinder(s.proc, s.engine.Host())
	var want []watch.Process
	var ids []string
	for n := range 3 {
		s.start("pipe", s.run("--rm", "-i")...)
		for _, id := range s.await(n + 1) {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
				want = append(want, s.only(id))
			}
		}
	}
	slices.SortFunc(want, func(a, b watch.Process) int { return a.PID - b.PID })
	if len(slices.Compact(want)) != 3 {
		t.Errorf("clients %v, want three", want)
	}
	var all errgroup.Group
	for range 3 {
		for _, id := range ids {
			c, _ := s.engine.Inspect(t, id)
			all.Go(func() error {
				clients, err := fresh.look()
				if err == nil {
					clients.of(c)
					fresh.changed()
				}
				return err
			})
		}
	}
	must(t, all.Wait())
	for _, id := range ids {
		clients, why := s.askFresh(fresh, id)
		if len(clients) != 1 || clients[0].Process != s.only(id) {
			t.Errorf("clients %+v (%s) from afar, want %v", clients, why, s.only(id))
		}
	}
}

// TestByName: what is given on the command line tells clients apart.
func TestByName(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	for n, options := range [][]string{{"--name", "scene-a"}, {"--name", "scene-b"}, {"-l", "x=1"}, {"-l", "x=2"}, {"-e", "X=1"}, {"-e", "X=2"}} {
		s.start("pipe", s.run(append([]string{"--rm", "-i"}, options...)...)...)
		s.await(n + 1)
	}
	seen := map[watch.Process]bool{}
	for _, id := range slices.Backward(s.await(6)) {
		c, _ := s.engine.Inspect(t, id)
		clients, why := s.ask(id)
		// X=1 and x=1 could also be those that were asked for nothing.
		if len(clients) != 1 || seen[clients[0].Process] {
			t.Errorf("%s: clients %+v (%s), want one of its own", c.Name, clients, why)
			continue
		}
		seen[clients[0].Process] = true
	}
}

// TestIDFile: a file that names the container makes sure.
func TestIDFile(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	// The same file by its name, in two folders: nothing else tells them apart.
	line := s.run("--rm", "-i", "--cidfile", "id")
	var dirs []string
	for range 2 {
		dir := t.TempDir()
		dirs = append(dirs, dir)
		startAgent(t, agentRole{How: "pipe", Line: line}, func(cmd *exec.Cmd) { cmd.Dir = dir })
	}
	for _, id := range s.await(2) {
		docker := s.only(id)
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", docker.PID))
		must(t, err)
		file, err := os.ReadFile(filepath.Join(dir, "id"))
		if err != nil || string(file) != id || !slices.Contains(dirs, dir) {
			t.Errorf("the client of %s works in %s, where the file says %q (%v)", id, dir, file, err)
		}
	}
}

// TestDoubt: a container that was made through the API looks like that of a client. Of neither is anything known, also
// not of the one that had been asked about before.
func TestDoubt(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	s.start("pipe", s.run("--rm", "-i")...)
	first := s.await(1)[0]
	docker := s.only(first)
	if events := s.changed(); len(events) > 0 {
		t.Errorf("changed: %+v", events)
	}
	second := s.create()
	s.nobody(second, whyTooMany)
	events := s.changed()
	if len(events) != 1 {
		t.Fatalf("changed: %+v, want what was said of the first", events)
	}
	if seen := events[0].(watch.ClientsSeen); seen.ID != containerID(first) || len(seen.Clients) > 0 || seen.Detail != whyTooMany || seen.At.IsZero() {
		t.Errorf("changed: %+v", seen)
	}
	s.nobody(first, whyTooMany)
	if events := s.changed(); len(events) > 0 {
		t.Errorf("changed: %+v", events)
	}
	// A third one that has a client of its own is not concerned, but it could also be the first one's.
	s.start("pipe", s.run("--rm", "-i")...)
	ids := s.await(3)
	clients, why := s.ask(ids[2])
	if len(clients) != 2 || !slices.ContainsFunc(clients, func(c watch.Client) bool { return c.Process == docker }) {
		t.Errorf("clients %+v (%s), want two", clients, why)
	}
	s.forget(second)
	s.nobody(first, whyTooMany)
}

// TestDetached: who detached left the container to itself.
func TestDetached(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	s.start("pipe", s.run("--rm", "-i")...)
	id := s.await(1)[0]
	s.only(id)
	s.detached(id)
	s.nobody(id, whyLeft)
	if events := s.changed(); len(events) > 0 { // it was asked about since
		t.Errorf("changed: %+v", events)
	}
}

// TestTooEarly: clients that were looked for before a container existed say nothing about it.
func TestTooEarly(t *testing.T) {
	s := newScene(t, dockertest.Shared(t))
	before, err := s.look()
	must(t, err)
	s.start("pipe", s.run("--rm", "-i")...)
	id := s.await(1)[0]
	c, _ := s.engine.Inspect(t, id)
	if clients, why := before.of(c); len(clients) > 0 || why == "" {
		t.Errorf("clients %+v, %q", clients, why)
	}
	s.only(id)
}

// TestOtherEngines: a client is found if it may be one of our engine.
func TestOtherEngines(t *testing.T) {
	// elsewhere runs a client of an engine that never answers, and returns once it has come there.
	elsewhere := func(s *scene, role func(host string) agentRole) {
		path := filepath.Join(s.t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		must(s.t, err)
		s.t.Cleanup(func() { _ = l.Close() })
		startAgent(s.t, role("unix://"+path), nil)
		conn, err := l.Accept()
		must(s.t, err)
		s.t.Cleanup(func() { _ = conn.Close() })
	}
	for _, tt := range []struct {
		name string
		make func(s *scene)
		want bool
	}{
		{"by a flag", func(s *scene) {
			elsewhere(s, func(host string) agentRole {
				line := s.run("--rm", "-i")
				line[2] = host
				return agentRole{How: "pipe", Line: line}
			})
		}, false},
		{"by a variable", func(s *scene) {
			elsewhere(s, func(host string) agentRole {
				return agentRole{How: "pipe", Line: slices.Delete(s.run("--rm", "-i"), 1, 3), Env: []string{"DOCKER_HOST=" + host}}
			})
		}, false},
		{"ours by a variable", func(s *scene) {
			line := slices.Delete(s.run("--rm", "-i"), 1, 3)
			startAgent(s.t, agentRole{How: "pipe", Line: line, Env: []string{"DOCKER_HOST=" + s.engine.Host()}}, nil)
		}, true},
		{"ours by another name", func(s *scene) {
			path := filepath.Join(s.t.TempDir(), "s")
			must(s.t, os.Symlink(strings.TrimPrefix(s.engine.Host(), "unix://"), path))
			line := s.run("--rm", "-i")
			line[2] = "unix://" + path
			s.start("pipe", line...)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, dockertest.Shared(t))
			tt.make(s)
			if tt.want {
				s.only(s.await(1)[0])
				return
			}
			s.create()
			s.nobody(s.await(1)[0], whyNobody)
		})
	}
}

// TestPretenders: any user can run something that is called docker, and so can what runs in a container. Nobody's
// container hangs on it.
func TestPretenders(t *testing.T) {
	for _, tt := range []struct {
		name   string
		hide   bool
		change func(*exec.Cmd)
		want   bool
	}{
		{"root", false, nil, true},
		{"another user", false, func(cmd *exec.Cmd) { cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534} }, false},
		{"another user with another group", false, func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{65533}}
		}, false},
		{"who does not see the socket", true, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, dockertest.Shared(t))
			socket := strings.TrimPrefix(s.engine.Host(), "unix://")
			must(t, os.Chmod(socket, 0o660))
			role := agentRole{Pretend: true, Line: []string{"docker", "run", "--rm", "-i", s.image}}
			if tt.hide {
				role.Hide = filepath.Dir(socket)
			}
			if tt.change != nil && os.Geteuid() != 0 {
				t.Skip("NOT RUN: needs root")
			}
			a := startAgent(t, role, tt.change)
			id := s.create()
			clients, why := s.ask(id)
			found := len(clients) == 1 && clients[0].Process == a.process()
			if found != tt.want || !found && why != whyNobody {
				t.Errorf("clients %+v (%s); found: %t, want %t", clients, why, found, tt.want)
			}
		})
	}
}

// TestDoor: who may use a socket.
func TestDoor(t *testing.T) {
	d := &door{}
	d.file.Uid, d.file.Gid = 7, 8
	for _, tt := range []struct {
		mode   uint32
		uid    uint32
		groups []uint32
		want   bool
	}{
		{0o660, 0, nil, true},
		{0o660, 7, []uint32{7}, true},
		{0o460, 7, []uint32{8}, false},
		{0o660, 9, []uint32{9, 8}, true},
		{0o640, 9, []uint32{9, 8}, false},
		{0o660, 9, []uint32{9}, false},
		{0o666, 9, nil, true},
		{0o600, 9, []uint32{8}, false},
	} {
		d.file.Mode = unix.S_IFSOCK | tt.mode
		if got := d.admits(tt.uid, tt.groups); got != tt.want {
			t.Errorf("%o admits %d of %v: %t, want %t", tt.mode, tt.uid, tt.groups, got, tt.want)
		}
	}
	d.open = true
	if !d.admits(9, nil) {
		t.Error("with an access list nobody is known to be shut out")
	}
	uid, groups := credentials([]byte("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nPid:\t1\n"))
	if uid != 4 || !slices.Equal(groups, []uint32{8, 9, 10}) {
		t.Errorf("credentials %d, %v", uid, groups)
	}
	if uid, groups := credentials([]byte("Uid:\t0\n")); uid == 0 || groups != nil {
		t.Errorf("credentials %d, %v of nothing", uid, groups)
	}
}

// TestEngineOf: which engine is asked.
func TestEngineOf(t *testing.T) {
	for _, tt := range []struct {
		line, environ string
		path          string
		told, alone   bool
	}{
		{"docker run img", "", "", false, false},
		{"docker -H unix:///a run img", "DOCKER_HOST=unix:///b", "/a", true, false},
		{"docker run img", "A=1\x00DOCKER_HOST=unix:///b", "/b", true, false},
		{"docker -c x run img", "DOCKER_HOST=unix:///b", "", false, false},
		{"docker run img", "DOCKER_HOST=tcp://h:1", "", false, false},
		{"docker run img", "NOT_DOCKER_HOST=unix:///b", "", false, false},
		{"podman run img", "DOCKER_HOST=unix:///b", "", false, true},
		{"podman run img", "CONTAINER_HOST=unix:/b", "/b", true, false},
		{"podman --url unix:///a run img", "CONTAINER_HOST=unix:/b", "/a", true, false},
		{"podman -c x run img", "", "", false, false},
		{"podman -r run img", "", "", false, false},
		{"podman run img", "CONTAINER_CONNECTION=x", "", false, false},
	} {
		r := asked(t, tt.line)
		path, told := r.engine([]byte(tt.environ))
		if told != tt.told || told && path != tt.path || r.alone([]byte(tt.environ)) != tt.alone {
			t.Errorf("%q with %q asks %q, told %t, alone %t", tt.line, tt.environ, path, told, r.alone([]byte(tt.environ)))
		}
	}
}

func TestReadID(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	write("good", id1)
	write("line", id1+"\n")
	write("short", id1[1:])
	write("long", id1+"0")
	write("lines", id1+"\n\n")
	write("capitals", strings.ToUpper(id1))
	write("empty", "")
	must(t, os.Symlink("good", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	t.Chdir(dir)
	for name, want := range map[string]string{
		"good": id1, "line": id1, "./good": id1, "folder/../good": id1, filepath.Join(dir, "good"): id1,
		"short": "", "long": "", "lines": "", "capitals": "", "empty": "", "link": "", "fifo": "", "folder": "", "none": "",
		"/dev/zero": "", "/proc/self/cwd/good": "", "": "",
	} {
		if got := readID("/proc/self", name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// TestClientsOfOtherSorts: what is compared is there on every sort of engine. That a container of Podman's was started in
// the foreground does not show, but by whom.
func TestClientsOfOtherSorts(t *testing.T) {
	for _, tt := range []struct {
		sort    dockertest.Sort
		program string
	}{{dockertest.Newest, "docker"}, {dockertest.Podman, "docker"}, {dockertest.Podman, "podman"}} {
		t.Run(fmt.Sprintf("%s by %s", tt.sort, tt.program), func(t *testing.T) {
			e := dockertest.Start(t, dockertest.Of(tt.sort), dockertest.Reused())
			s := newScene(t, e)
			options := []string{"--rm", "-i", "-e", "A=1", "--cidfile", "id"}
			if tt.sort == dockertest.Podman {
				options = append(options, "--cgroup-parent", "/"+filepath.Base(e.Dir()))
			}
			role := agentRole{How: "pipe", Line: s.run(options...)}
			if tt.program == "podman" {
				// As the engine itself is run: see dockertest.
				service, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", e.PID()))
				must(t, err)
				argv := strings.Split(string(service), "\x00")
				role.Line = append(argv[:slices.Index(argv, "system")], role.Line[3:]...)
				environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", e.PID()))
				must(t, err)
				for entry := range strings.SplitSeq(string(environ), "\x00") {
					if strings.HasPrefix(entry, "CONTAINERS_") {
						role.Env = append(role.Env, entry)
					}
				}
			}
			dir := t.TempDir()
			a := startAgent(t, role, func(cmd *exec.Cmd) { cmd.Dir = dir })
			id := s.await(1)[0]
			clients, why := s.ask(id)
			if len(clients) != 1 || !slices.Equal(clients[0].Speakers, []watch.Process{a.process()}) {
				t.Fatalf("clients %+v (%s), want one with a speaker", clients, why)
			}
			s.mu.Lock()
			named := s.callers[clients[0].Process].named
			s.mu.Unlock()
			if named != id {
				t.Errorf("the ID file names %q, want %s", named, id)
			}
			a.kill()
			if !orphaned(t, clients) {
				t.Errorf("no orphan: %+v", clients)
			}
		})
	}
}

// TestWalkHangs: a look that does not come back costs one goroutine and not the looks behind it.
func TestWalkHangs(t *testing.T) {
	f := newClientFinder(newProc(t), "unix:///none")
	f.walking <- struct{}{}
	f.hangs.Store(true)
	if _, err := f.look(); err == nil {
		t.Error("look = nil while another hangs")
	}
	<-f.walking
	if _, err := f.look(); err == nil || f.hangs.Load() {
		t.Errorf("look = %v without a socket", err)
	}
	if _, err := newClientFinder(newProc(t), "tcp://h:1").look(); err == nil {
		t.Error("look = nil with an engine elsewhere")
	}
}

func BenchmarkLook(b *testing.B) {
	h, err := process.NewHost("/proc")
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	f := newClientFinder(h, "unix://"+l.Addr().String())
	for b.Loop() {
		if _, err := f.look(); err != nil {
			b.Fatal(err)
		}
	}
}
