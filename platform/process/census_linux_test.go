package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// A town is a Census under test, with or without pidfds, and what it posted.
type town struct {
	*process.Census
	*mail
	boot     string
	programs []string
	marker   string // one more program, see settle
}

func newTown(t *testing.T, programs ...string) *town {
	t.Helper()
	return newTownOf(t, newHost(t), programs...)
}

func newTownOf(t *testing.T, host *process.Host, programs ...string) *town {
	t.Helper()
	w := &town{mail: newMail(t), boot: host.Boot(), marker: unique("marker")}
	w.Census = process.NewCensus(host, w.post)
	w.follow(programs...)
	t.Cleanup(w.Close)
	return w
}

func (w *town) follow(programs ...string) {
	w.t.Helper()
	if len(programs) > 0 {
		programs = append(programs, w.marker)
	}
	w.programs = programs
	w.Follow(parsed(w.t, programs...))
}

func parsed(t testing.TB, programs ...string) (all []watch.Program) {
	t.Helper()
	for _, text := range programs {
		p, err := watch.NewProgram(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// unique makes a name that no process has which is not ours.
func unique(name string) string { return fmt.Sprintf("%s-%d", name, os.Getpid()) }

// run has the census carry out what it is asked for, until the test ends.
func (w *town) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := receive(w.t, ended); !errors.Is(err, context.Canceled) {
			w.t.Errorf("Run = %v, want %v", err, context.Canceled)
		}
	})
}

// A list is the members of each program.
type list map[string][]watch.Member

// list takes a complete look.
func (w *town) list() list {
	w.t.Helper()
	before := time.Now()
	events, err := w.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.read(events, before, time.Now())
}

// read takes the events of a complete look that was asked for between two moments.
func (w *town) read(events []watch.Event, after, before time.Time) list {
	w.t.Helper()
	l := list{}
	for i, ev := range events {
		listed, ok := ev.(watch.ProgramListed)
		if !ok || i >= len(w.programs) || listed.Program != w.programs[i] {
			w.t.Fatalf("event %d of a list is %+v, of the programs %q", i, ev, w.programs)
		}
		if listed.Asked.Before(after) || listed.Asked.After(before) {
			w.t.Errorf("asked %s, want between %s and %s", listed.Asked, after, before)
		}
		last := 0
		for _, m := range listed.Members {
			if m.Process.PID <= last || m.Process.Boot != w.boot || m.Life == watch.Exited || !m.At.IsZero() {
				w.t.Errorf("a member is %+v, behind %d", m, last)
			}
			last = m.Process.PID
		}
		l[listed.Program] = listed.Members
	}
	if len(l) != len(w.programs) {
		w.t.Fatalf("%d lists, of the programs %q", len(l), w.programs)
	}
	return l
}

func (l list) of(program string, pid int) (watch.Member, bool) {
	i := slices.IndexFunc(l[program], func(m watch.Member) bool { return m.Process.PID == pid })
	if i < 0 {
		return watch.Member{}, false
	}
	return l[program][i], true
}

// member demands that an owner is listed alive.
func (w *town) member(l list, program string, o *processtest.Owner) watch.Member {
	w.t.Helper()
	m, ok := l.of(program, o.PID())
	if !ok || m.Life != watch.Alive || m.Process.Label() != o.Label() || m.Born.After(time.Now()) {
		w.t.Fatalf("program %q lists %+v, want %s alive", program, l[program], o.Label())
	}
	return m
}

// stranger demands that a PID is not listed at all.
func (w *town) stranger(l list, program string, pid int) {
	w.t.Helper()
	if m, ok := l.of(program, pid); ok {
		w.t.Errorf("program %q lists %+v", program, m)
	}
}

// appears demands that an owner is posted as a member, and nothing else.
func (w *town) appears(program string, o *processtest.Owner) watch.Member {
	w.t.Helper()
	ev := w.next()
	seen, ok := ev.(watch.ProgramSeen)
	if !ok || seen.Program != program || seen.Member.Life != watch.Alive || seen.Member.Process.Label() != o.Label() ||
		!seen.Member.At.IsZero() || seen.At.After(time.Now()) {
		w.t.Fatalf("posted %+v, want %s of %q", ev, o.Label(), program)
	}
	return seen.Member
}

// dies demands that the death of a member is posted, and returns when it is said to have happened.
func (w *town) dies(program string, m watch.Member) time.Time {
	w.t.Helper()
	ev := w.next()
	seen, ok := ev.(watch.ProgramSeen)
	if !ok || seen.Program != program || seen.Member.Life != watch.Exited || seen.Member.Process != m.Process ||
		!seen.Member.Born.Equal(m.Born) || !seen.At.Equal(seen.Member.At) || seen.At.After(time.Now()) {
		w.t.Fatalf("posted %+v, want the death of %+v of %q", ev, m, program)
	}
	return seen.At
}

// notice has deaths found that no pidfd tells of.
func (w *town) notice(o *processtest.Owner) {
	w.t.Helper()
	receive(w.t, o.Dead())
	if withoutPidfds() {
		w.Check()
	}
}

// TestCensus is one suite for two worlds: see TestOwnersWithoutPidfds.
func TestCensus(t *testing.T) {
	for _, story := range []struct {
		name string
		tell func(t *testing.T)
	}{
		{"a program is recognised", recognised},
		{"a binary is replaced", func(t *testing.T) {
			name := unique("agent")
			path := processtest.Program(t, name)
			removed, replaced := processtest.StartProgram(t, path, "x"), processtest.StartProgram(t, path, "x")
			w := newTown(t, name, path)
			check := func() {
				t.Helper()
				for _, program := range []string{name, path} {
					w.member(w.list(), program, removed)
					w.member(w.list(), program, replaced)
				}
			}
			if err := os.Rename(processtest.Program(t, "new"), path); err != nil {
				t.Fatal(err)
			}
			check()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			check()
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", removed.PID())); err != nil || exe != path+" (deleted)" {
				t.Errorf("the executable is %q (%v)", exe, err)
			}
		}},
		{"the dead are of no program", func(t *testing.T) {
			name := unique("agent")
			path := processtest.Program(t, name)
			reaped, zombie := processtest.StartProgram(t, path, "x"), processtest.StartProgram(t, path, "x")
			w := newTown(t, name)
			reaped.Kill()
			reaped.Wait()
			zombie.Zombie()
			l := w.list()
			w.stranger(l, name, reaped.PID())
			w.stranger(l, name, zombie.PID())
			w.none("of the dead")
		}},
		{"who lives without its leader is of its program", func(t *testing.T) {
			name, other := unique("agent"), unique("other")
			headless := processtest.StartProgram(t, processtest.Program(t, name), "x")
			before := processtest.StartProgram(t, processtest.Program(t, name), "x")
			stranger := processtest.StartProgram(t, processtest.Program(t, other), "x")
			w := newTown(t, name)
			w.member(w.list(), name, before)
			for _, o := range []*processtest.Owner{headless, before, stranger} {
				o.LeaderGone()
			}
			l := w.list()
			w.member(l, name, headless)
			m := w.member(l, name, before)
			w.stranger(l, name, stranger.PID())
			before.Exit()
			w.notice(before)
			w.dies(name, m)
		}},
		{"who execs a program becomes its process", func(t *testing.T) {
			name := unique("agent")
			path := processtest.Program(t, name)
			o := processtest.StartOwner(t)
			w := newTown(t, name)
			w.run()
			w.stranger(w.list(), name, o.PID())
			o.Become(path, "x")
			w.Exec(o.PID(), time.Now())
			m := w.appears(name, o)
			if listed := w.member(w.list(), name, o); listed.Process != m.Process || !listed.Born.Equal(m.Born) {
				t.Errorf("listed as %+v and posted as %+v", listed, m)
			}
			w.Exec(o.PID(), time.Now())
			w.settle()
			w.none("when told again")
			o.Kill()
			w.notice(o)
			w.dies(name, m)
		}},
		{"who execs another program stays (P6)", func(t *testing.T) {
			name, second := unique("agent"), unique("second")
			path, other := processtest.Program(t, name), processtest.Program(t, "other")
			o := processtest.StartProgram(t, path, "x")
			w := newTown(t, name, second)
			w.run()
			found := w.member(w.list(), name, o)
			o.Become(other, "x")
			w.Exec(o.PID(), time.Now())
			w.settle()
			w.none("after it execed another program")
			l := w.list()
			w.member(l, name, o)
			w.stranger(l, second, o.PID())
			// And a third time, into what is followed as well: it is of both then.
			o.Become(processtest.Program(t, second), "x")
			w.Exec(o.PID(), time.Now())
			w.appears(second, o)
			l = w.list()
			w.member(l, name, o)
			w.member(l, second, o)
			o.Kill()
			w.notice(o)
			w.dies(name, found)
			w.dies(second, found)
			l = w.list()
			w.stranger(l, name, o.PID())
			w.stranger(l, second, o.PID())
		}},
		{"a child that has not execed (P6)", unexeced},
		{"an exec of nobody", func(t *testing.T) {
			name := unique("agent")
			w := newTown(t, name)
			w.run()
			reaped := processtest.StartProgram(t, processtest.Program(t, name), "x")
			reaped.Kill()
			reaped.Wait()
			zombie := processtest.StartProgram(t, processtest.Program(t, name), "x")
			zombie.Zombie()
			for _, pid := range []int{reaped.PID(), zombie.PID(), 0, -1, watch.MaxPID + 1} {
				w.Exec(pid, time.Now())
			}
			w.settle()
			w.none("of nobody")
		}},
		{"a death is told once, and by the kernel's clock if that tells", func(t *testing.T) {
			name := unique("agent")
			o := processtest.StartProgram(t, processtest.Program(t, name), "x")
			w := newTown(t, name)
			m := w.member(w.list(), name, o)
			w.Check()
			w.Witness(o.PID(), time.Now())
			w.none("of who lives")
			before := time.Now()
			o.Kill()
			w.notice(o)
			if at := w.dies(name, m); at.Before(before) {
				t.Errorf("died %s, and lived until %s", at, before)
			}
			w.stranger(w.list(), name, o.PID())
			w.Check()
			w.none("a second time")
			w.Witness(o.PID(), before)
			if at := w.dies(name, m); !at.Equal(before) {
				t.Errorf("died %s, want %s", at, before)
			}
			w.Witness(o.PID(), m.Born.Add(-time.Hour))
			w.none("of an earlier process with the PID")
			w.stranger(w.list(), name, o.PID())
			w.Witness(o.PID(), before)
			w.none("after two complete looks")
		}},
		{"the PID of a member is reused", func(t *testing.T) {
			needRoot(t)
			name := unique("agent")
			path := processtest.Program(t, name)
			first := processtest.StartProgram(t, path, "x")
			w := newTown(t, name)
			w.run()
			found := w.member(w.list(), name, first)
			first.Kill()
			first.Wait()
			// The next one is no process of the program before it execs.
			second := processtest.ReusePID(t, first.PID())
			if withoutPidfds() {
				w.Check()
			}
			w.dies(name, found)
			w.stranger(w.list(), name, first.PID())
			second.Become(path, "x")
			w.Exec(second.PID(), time.Now())
			w.appears(name, second)
			w.member(w.list(), name, second)
			w.none("of the second")
		}},
		{"the PID of a member is reused by the next one, and nobody looked", func(t *testing.T) {
			needRoot(t)
			name := unique("agent")
			path := processtest.Program(t, name)
			first := processtest.StartProgram(t, path, "x")
			w := newTown(t, name)
			w.run()
			found := w.member(w.list(), name, first)
			first.Kill()
			first.Wait()
			second := processtest.ReusePID(t, first.PID())
			second.Become(path, "x")
			w.Exec(second.PID(), time.Now())
			w.dies(name, found)
			w.appears(name, second)
			w.none("of the second")
		}},
		{"a member in another PID namespace", func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			c := startRole(t, "wait", unix.CLONE_NEWPID)
			w := newTown(t, self)
			m, ok := w.list().of(self, c.pid)
			if !ok || m.Life != watch.Alive {
				t.Errorf("got %+v, want %d alive", m, c.pid)
			}
		}},
		{"other programs are followed", func(t *testing.T) {
			one, two, three := unique("one"), unique("two"), unique("three")
			first := processtest.StartProgram(t, processtest.Program(t, one), two) // of two programs
			second := processtest.StartProgram(t, processtest.Program(t, two), "x")
			third := processtest.StartProgram(t, processtest.Program(t, three), "x")
			w := newTown(t, one, two)
			l := w.list()
			w.member(l, one, first)
			w.member(l, two, first)
			kept := w.member(l, two, second)
			held := descriptors(t)
			w.follow(one, three)
			if now := descriptors(t); now != held-1 && !withoutPidfds() {
				t.Errorf("%d descriptors, were %d", now, held)
			}
			second.Kill()
			second.Wait()
			w.Witness(second.PID(), time.Now())
			w.Check()
			w.none("of a program that is followed no more")
			l = w.list()
			found := w.member(l, one, first)
			w.member(l, three, third)
			first.Kill()
			w.notice(first)
			w.dies(one, found)
			w.none("of a program that is followed no more")
			w.follow(two)
			w.stranger(w.list(), two, kept.Process.PID)
			w.none("of a program that is followed again")
		}},
		{"nothing is followed", func(t *testing.T) {
			// Of the view of /proc nothing is left that could be looked at.
			w := newTownOf(t, emptied(t))
			w.run()
			w.Count()
			w.Exec(os.Getpid(), time.Now())
			w.Check()
			if events, err := w.List(t.Context()); len(events) > 0 || err != nil {
				t.Errorf("List = %v, %v", events, err)
			}
			w.none("with nothing followed")
			w.follow(unique("agent"))
			w.Count()
			failed, ok := w.next().(watch.ListFailed)
			if !ok || failed.Kind != watch.Processes || failed.Kind != w.Kind() || failed.Err == nil {
				t.Errorf("posted %+v, want that there is nothing to see", failed)
			}
			w.Exec(os.Getpid(), time.Now())
			ev := w.next()
			if _, ok := ev.(watch.ListFailed); ok { // of the count before, if that came to be carried out now
				ev = w.next()
			}
			if failed, ok := ev.(watch.LookFailed); !ok || failed.Err == nil {
				t.Errorf("posted %+v, want that there is nothing to see", ev)
			}
		}},
		{"no descriptor is left (P7)", func(t *testing.T) {
			name := unique("agent")
			o := processtest.StartProgram(t, processtest.Program(t, name), "x")
			w := newTown(t, name)
			restore := exhaust(t)
			events, err := w.List(t.Context())
			restore()
			if err == nil {
				t.Errorf("List = %v without descriptors", events)
			}
			w.member(w.list(), name, o)
			restore = exhaust(t)
			_, err = w.List(t.Context())
			restore()
			if err == nil {
				t.Errorf("List = %v without descriptors", events)
			}
			w.none("without descriptors")
			w.member(w.list(), name, o)
		}},
		{"a context that has ended", func(t *testing.T) {
			w := newTown(t, unique("agent"))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if events, err := w.List(ctx); !errors.Is(err, context.Canceled) || len(events) > 0 {
				t.Errorf("List = %v, %v", events, err)
			}
			if err := w.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v", err)
			}
		}},
		{"all are let go of", func(t *testing.T) {
			name := unique("agent")
			path := processtest.Program(t, name)
			o := processtest.StartProgram(t, path, "x")
			before := descriptors(t)
			w := newTown(t, name)
			w.member(w.list(), name, o)
			w.Close()
			if now := descriptors(t); now != before {
				t.Errorf("%d descriptors, were %d", now, before)
			}
			w.Exec(o.PID(), time.Now())
			o.Kill()
			o.Wait()
			w.Check()
			// An empty list would say that nobody lives.
			if events, err := w.List(t.Context()); !errors.Is(err, os.ErrClosed) || len(events) > 0 {
				t.Errorf("List = %v, %v", events, err)
			}
			w.none("after Close")
		}},
	} {
		t.Run(story.name, func(t *testing.T) {
			before := descriptors(t)
			// Cleanups run last first: by then the owners have been reaped and all is let go of.
			t.Cleanup(func() {
				if after := descriptors(t); after > before {
					t.Errorf("%d descriptors, were %d", after, before)
				}
			})
			story.tell(t)
		})
	}
}

// settle waits until the census has looked at all execs that it was told of.
func (w *town) settle() {
	w.t.Helper()
	path := processtest.Program(w.t, w.marker)
	for range 2 { // those told together are looked at in any order
		o := processtest.StartProgram(w.t, path, "x")
		w.Exec(o.PID(), time.Now())
		w.appears(w.marker, o)
		o.Kill()
		w.notice(o)
		w.next()
	}
}

// recognised holds the forms in which a program can be named against those in which it can run.
func recognised(t *testing.T) {
	name := unique("agent")
	path := processtest.Program(t, name)
	other := processtest.Program(t, "other")
	interpreter := processtest.Program(t, unique("node"))
	script := filepath.Join(t.TempDir(), "server.js")
	if err := os.WriteFile(script, []byte("#!"+interpreter+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		program string
		path    string
		argv    []string
		want    bool
	}{
		{name, path, []string{"x"}, true},
		{path, path, []string{"x"}, true},
		{name[:len(name)-1] + "?", path, []string{"x"}, true},
		{filepath.Dir(path) + "/*", path, nil, true},
		{name, other, []string{name}, true},
		{name, other, []string{"-" + name, "-i"}, true},
		{name, other, []string{"/somewhere/" + name}, true},
		{"/somewhere/" + name, other, []string{"/somewhere/" + name}, true},
		{name, other, []string{"x", name}, false},
		{name, other, []string{name + "2"}, false},
		{name, other, nil, false},
		{"/somewhere/" + name, path, []string{name}, false},
		{unique("node") + " */server.js", interpreter, []string{"node", script}, true},
		{unique("node") + " */server.js", script, []string{"x"}, true},
		{"server.js", script, []string{"x"}, true}, // the interpreter runs, and was handed the script
		{unique("node") + " */server.js --port", interpreter, []string{"node", "--flag", script, "--port", "80"}, true},
		{unique("node") + " */server.js 80", interpreter, []string{"node", script, "--port", "80"}, false},
		{unique("node") + " */server.js", interpreter, []string{"node", "/srv/client.js"}, false},
		{unique("node") + " a", interpreter, []string{"node", "a b"}, false},
		{name + " tail", path, []string{"x", strings.Repeat("y", 100_000), "tail"}, true},
	} {
		o := processtest.StartProgram(t, tt.path, tt.argv...)
		w := newTown(t, tt.program)
		l := w.list()
		if m, ok := l.of(tt.program, o.PID()); ok != tt.want || ok && m.Life != watch.Alive {
			t.Errorf("program %q, %s as %.80q: got %+v, want a member: %t", tt.program, tt.path, tt.argv, m, tt.want)
		}
		w.Close()
		o.Kill()
		o.Wait()
	}
}

// TestCensusOfInterpreters: the real ones put more on a command line than what one sees in a shell.
func TestCensusOfInterpreters(t *testing.T) {
	folder := t.TempDir()
	for name, content := range map[string]string{
		"agentmodule.py": "import sys\nprint('ready', flush=True)\nsys.stdin.read()\n",
		"server.js":      "console.log('ready'); process.stdin.resume();\n",
		"agent.sh":       "echo ready; read line\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		program string
		argv    []string
	}{
		{"python* -m agentmodule", []string{"python3", "-m", "agentmodule"}},
		{"python* */agentmodule.py", []string{"python3", "-u", folder + "/agentmodule.py"}},
		{"node */server.js", []string{"node", "--no-warnings", folder + "/server.js"}},
		{"sh */agent.sh", []string{"sh", folder + "/agent.sh"}},
	} {
		t.Run(tt.program, func(t *testing.T) {
			if _, err := exec.LookPath(tt.argv[0]); err != nil {
				t.Skip(err)
			}
			cmd := exec.Command(tt.argv[0], tt.argv[1:]...)
			cmd.Dir, cmd.Stderr = folder, os.Stderr
			pid := startReady(t, cmd)
			w := newTown(t, tt.program)
			if m, ok := w.list().of(tt.program, pid); !ok || m.Life != watch.Alive {
				t.Errorf("got %+v, want %d alive", m, pid)
			}
		})
	}
}

// startReady starts what prints a line when it is ready and ends with its input, and returns its PID.
func startReady(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	pid, _ := startSaying(t, cmd)
	return pid
}

func startSaying(t *testing.T, cmd *exec.Cmd) (pid int, line string) {
	t.Helper()
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
	line, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return cmd.Process.Pid, strings.TrimSpace(line)
}

// unexeced is the story of a shell script that starts a command. Between fork and exec the child runs what its parent runs,
// and in that it may stay. If it execs, it was on its way to another program: the client of a container would otherwise
// pass for its owner.
func unexeced(t *testing.T) {
	script := filepath.Join(t.TempDir(), unique("agent")+".sh")
	command := unique("command")
	path := processtest.Program(t, command)
	// The child waits between fork and exec, and then until we close its input.
	child := "(read go; " + roleVariable + "=wait exec '" + path + "') <&3 >/dev/null &\n"
	if err := os.WriteFile(script, []byte(child+"echo $!\nexec 3<&-\nread line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = in.Close(), out.Close() })
	cmd := exec.Command("sh", script)
	cmd.ExtraFiles = []*os.File{in}
	pid, line := startSaying(t, cmd)
	forked, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	program := "sh */" + filepath.Base(script)
	w := newTown(t, program, command)
	w.run()
	l := w.list()
	for _, pid := range []int{pid, forked} {
		if m, ok := l.of(program, pid); !ok || m.Life != watch.Alive {
			t.Errorf("got %+v, want %d alive", m, pid)
		}
	}
	w.stranger(l, command, forked)
	held, begun := descriptors(t), time.Now()
	if _, err := out.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	awaitExec(t, forked, path)
	w.Exec(forked, time.Now())
	if seen, ok := w.next().(watch.ProgramSeen); !ok || seen.Program != command || seen.Member.Process.PID != forked {
		t.Errorf("posted %+v, want %d of the program %q", seen, forked, command)
	}
	// That it is of the first program no more is for a complete look to say, which it asked for.
	l = w.posts(begun)
	w.stranger(l, program, forked)
	if _, ok := l.of(program, pid); !ok {
		t.Error("the parent is not of its program")
	}
	if _, ok := l.of(command, forked); !ok {
		t.Error("the child is not of the program that it execed")
	}
	w.follow(program)
	if now := descriptors(t); now != held-1 && !withoutPidfds() {
		t.Errorf("%d descriptors, were %d", now, held)
	}
}

// awaitExec waits until a process has execed a path.
func awaitExec(t *testing.T, pid int, path string) {
	t.Helper()
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	timeout := time.After(patience)
	for {
		// Its arguments come after its executable.
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && string(line) == path+"\x00" {
			return
		}
		select {
		case <-timeout:
			t.Fatalf("%d runs %q (%v)", pid, line, err)
		case <-beat.C:
		}
	}
}

// TestKernelThreads: they have neither an executable nor arguments, and are nobody's.
func TestKernelThreads(t *testing.T) {
	w := newTown(t, "*")
	l := w.list()
	if _, ok := l.of("*", os.Getpid()); !ok {
		t.Error("we are not among all programs")
	}
	threads := 0
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(status), "\nKthread:\t1\n") {
			continue // gone, or of a kernel before 6.8, which does not say
		}
		threads++
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		w.stranger(l, "*", pid)
	}
	t.Logf("%d threads of the kernel's own", threads)
}

// statLine is a stat with what matters of it. It started in tick 100.
func statLine(state string, flags, threads, envEnd int) string {
	fields := slices.Repeat([]string{"0"}, 50)
	for number, value := range map[int]any{3: state, 9: flags, 20: threads, 22: 100, 51: envEnd} {
		fields[number-3] = fmt.Sprint(value)
	}
	return "5 (x) " + strings.Join(fields, " ") + "\n"
}

var (
	statAlive = statLine("S", 0x400000, 1, 9)
	statGone  = statLine("Z", 0x40000c, 1, 0)
	statHeads = statLine("Z", 0x40000c, 2, 0) // without its leader
	statEarly = statLine("R", 0x400000, 1, 0) // in the midst of its exec
	statOwn   = statLine("S", 0x208040, 1, 0) // of the kernel
)

// P7: what cannot be read is listed as unknown, or there is no list. It is not as if it were not there.
func TestCensusOfOddities(t *testing.T) {
	needRoot(t)
	const (
		absent = iota
		unknown
		failed
	)
	stat := func(content string) file { return file{name: "stat", content: content} }
	exe := file{name: "exe", content: "/bin/other", kind: link}
	cmdline := func(content string) file { return file{name: "cmdline", content: content} }
	program := "agent x"
	for _, tt := range []struct {
		name  string
		files []file
		want  int
	}{
		{"another program", []file{exe, cmdline("other\x00x\x00"), stat(statAlive)}, absent},
		{"another program, and no stat that we need", []file{exe, cmdline("other\x00x\x00")}, absent},
		{"nothing is left", nil, absent},
		{"the program, and dead by now", []file{exe, cmdline("agent\x00x\x00"), stat(statGone)}, absent},
		{"the program, and gone by now", []file{exe, cmdline("agent\x00x\x00")}, absent},
		{"the program, and nobody has the PID", []file{exe, cmdline("agent\x00x\x00"), stat(statAlive)}, absent},
		{"a zombie", []file{cmdline(""), stat(statGone)}, absent},
		{"a thread of the kernel's", []file{cmdline(""), stat(statOwn)}, absent},
		{"no arguments", []file{exe, cmdline(""), stat(statAlive)}, absent},
		{"in the midst of its exec", []file{exe, cmdline(""), stat(statEarly)}, unknown},
		{"leaving for ever", []file{cmdline(""), stat(statAlive), {name: "task/5000000/comm", content: "x\n"}}, unknown},
		{"without its leader, and the workers cannot be listed", []file{cmdline(""), stat(statHeads), {name: "task"}}, failed},
		{"without its leader, and a worker runs another program", []file{
			cmdline(""), stat(statHeads),
			{name: "task/5000001/exe", content: "/bin/other", kind: link},
			{name: "task/5000001/cmdline", content: "y"},
		}, absent},
		{"without its leader, and a worker is in the midst of its exec", []file{
			cmdline(""), stat(statHeads),
			{name: "task/5000001/exe", content: "/bin/other", kind: link},
			{name: "task/5000001/cmdline"},
			{name: "task/5000001/stat", content: statEarly},
		}, unknown},
		{"arguments without an end", []file{exe, cmdline("other\x00" + strings.Repeat("y", 2<<20)), stat(statAlive)}, unknown},
		{"arguments nearly without an end", []file{exe, cmdline("other\x00" + strings.Repeat("y", 2<<20-10)), stat(statAlive)}, absent},
		{"an executable that is no link", []file{{name: "exe"}, cmdline("other\x00x\x00"), stat(statAlive)}, unknown},
		{"arguments that cannot be read", []file{exe, {name: "cmdline", kind: folder}, stat(statAlive)}, failed},
		{"nonsense for a stat", []file{{name: "exe"}, cmdline("other\x00x\x00"), stat("nonsense")}, failed},
		{"a stat that cannot be read", []file{{name: "exe"}, cmdline("other\x00x\x00"), {name: "stat", kind: folder}}, failed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMock(t)
			m.add(inMock, tt.files...)
			w := newTownOf(t, m.host, program)
			events, err := w.List(t.Context())
			if tt.want == failed {
				if err == nil {
					t.Errorf("List = %+v, want an error", events)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			members := events[0].(watch.ProgramListed).Members
			want := watch.Process{PID: inMock, Start: 100, Boot: m.host.Boot()}
			if tt.want == absent && len(members) > 0 || tt.want == unknown && (len(members) != 1 ||
				members[0].Process != want || members[0].Life != watch.Unknown || members[0].Born.IsZero()) {
				t.Errorf("listed %+v", members)
			}
			// To an exec, what may be of a program is nothing: a complete look tells of it.
			w.run()
			w.Exec(inMock, time.Now())
			w.none("of what may be of a program")
		})
	}
}

// P6 and P7: who is known to be of a program, and cannot be read any more, may be of the others.
func TestCensusOfTheVeiled(t *testing.T) {
	m := newMock(t)
	name, other := unique("agent"), unique("other")
	o := processtest.StartProgram(t, processtest.Program(t, name), "x")
	m.real(o.PID())
	w := newTownOf(t, m.host, name, other)
	l := w.list()
	found := w.member(l, name, o)
	w.stranger(l, other, o.PID())
	if err := os.Remove(filepath.Join(m.root, strconv.Itoa(o.PID()))); err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.PID()))
	if err != nil {
		t.Fatal(err)
	}
	m.add(o.PID(), file{name: "exe"}, file{name: "cmdline", content: "x"}, file{name: "stat", content: string(stat)})
	l = w.list()
	w.member(l, name, o)
	if maybe, ok := l.of(other, o.PID()); !ok || maybe.Life != watch.Unknown || maybe.Process != found.Process {
		t.Errorf("listed %+v, want %+v unknown", l[other], found.Process)
	}
}

// A process whose memory hangs, as one that has it in a file of a server that is away, holds up who reads its arguments.
func TestCensusHangs(t *testing.T) {
	m := newMock(t)
	name := unique("agent")
	o := processtest.StartProgram(t, processtest.Program(t, name), "x")
	m.real(o.PID())
	m.add(inMock, file{name: "exe", content: "/bin/other", kind: link}, file{name: "cmdline", kind: fifo})
	fifo := filepath.Join(m.root, strconv.Itoa(inMock), "cmdline")
	w := newTownOf(t, m.host, name)
	w.run()
	var stuck *os.File
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := w.List(ctx)
			ended <- err
		}()
		if stuck == nil {
			stuck = reader(t, fifo)
		}
		cancel()
		if err := receive(t, ended); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), strconv.Itoa(inMock)) {
			t.Errorf("List = %v, want %v, and where it was", err, context.Canceled)
		}
	}
	// An exec does not wait for the look that hangs. The process may be held already.
	another := processtest.StartProgram(t, processtest.Program(t, name), "x")
	m.real(another.PID())
	w.Exec(another.PID(), time.Now())
	w.appears(name, another)
	// It returns, and other programs have been followed meanwhile: nothing of it is told.
	w.follow()
	w.follow(name)
	begun := time.Now()
	w.Count()
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	if err := stuck.Close(); err != nil {
		t.Fatal(err)
	}
	l := w.posts(begun)
	w.member(l, name, o)
	w.member(l, name, another)
}

// TestDuringALook: whoever was let go of in between would be lacking in the list that this look makes.
func TestDuringALook(t *testing.T) {
	name := unique("agent")
	for _, tt := range []struct {
		name  string
		do    func(w *town)
		again bool // the look begins again
		want  error
	}{
		{"nothing happens", func(*town) {}, false, nil},
		{"other programs are followed", func(w *town) {
			w.follow()
			w.follow(name)
		}, true, nil},
		{"all are let go of", func(w *town) { w.Close() }, false, os.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMock(t)
			o := processtest.StartProgram(t, processtest.Program(t, name), "x")
			m.real(o.PID())
			m.add(inMock, file{name: "exe", content: "/bin/other", kind: link}, file{name: "cmdline", kind: fifo})
			fifo := filepath.Join(m.root, strconv.Itoa(inMock), "cmdline")
			w := newTownOf(t, m.host, name)
			type result struct {
				events []watch.Event
				err    error
			}
			ended := make(chan result, 1)
			begun := time.Now()
			go func() {
				events, err := w.List(t.Context())
				ended <- result{events, err}
			}()
			f := reader(t, fifo)
			under := time.Now()
			tt.do(w)
			if err := os.Remove(fifo); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			r := receive(t, ended)
			if !errors.Is(r.err, tt.want) {
				t.Fatalf("List = %v, %v; want %v", r.events, r.err, tt.want)
			}
			if tt.want != nil {
				return
			}
			l := w.read(r.events, begun, time.Now())
			w.member(l, name, o)
			if asked := r.events[0].(watch.ProgramListed).Asked; asked.After(under) != tt.again {
				t.Errorf("asked %s, under way %s, begins again: %t", asked, under, tt.again)
			}
		})
	}
}

// Counts that come while one is carried out are one.
func TestCount(t *testing.T) {
	w := &town{mail: newMail(t), boot: newHost(t).Boot(), marker: unique("marker")}
	counted, proceed := make(chan struct{}, 1), make(chan struct{})
	hold := sync.OnceFunc(func() {
		counted <- struct{}{}
		<-proceed
	})
	w.Census = process.NewCensus(newHost(t), func(events ...watch.Event) {
		w.post(events...)
		if _, ok := events[0].(watch.ProgramListed); ok {
			hold()
		}
	})
	t.Cleanup(w.Close)
	w.follow(unique("agent"))
	w.run()
	w.Count()
	receive(t, counted)
	before := time.Now()
	for range 1000 {
		w.Count()
	}
	close(proceed)
	first, second := w.posts(before.Add(-patience)), w.posts(before)
	if len(first) != len(w.programs) || len(second) != len(w.programs) {
		t.Errorf("counted %v and %v", first, second)
	}
	w.settle() // and nothing else is posted
}

// posts waits for a list that was asked for after a moment.
func (w *town) posts(after time.Time) list {
	w.t.Helper()
	var events []watch.Event
	for range w.programs {
		events = append(events, w.next())
	}
	return w.read(events, after, time.Now())
}

// P7: who leaves is waited for a moment, instead of being taken for somebody who may be of any program.
func TestCensusOfTheLeaving(t *testing.T) {
	o := processtest.StartBig(t, 512)
	name := unique("agent")
	w := newTown(t, name)
	o.Zombie()
	l := w.list()
	w.stranger(l, name, o.PID())

	o = processtest.StartBig(t, 512)
	o.Kill()
	exe := fmt.Sprintf("/proc/%d/exe", o.PID())
	for { // for some microseconds: a process that was killed is running
		if _, err := os.Readlink(exe); err != nil {
			break
		}
	}
	begun := time.Now()
	l = w.list()
	took := time.Since(begun)
	if m, ok := l.of(name, o.PID()); ok && (took < 100*time.Millisecond || m.Life != watch.Unknown) {
		t.Errorf("listed %+v after %s", m, took)
	}
}

// P5: a process that is of the program at every moment, now by its executable and now by its argv[0], is never seen with
// the executable of one moment and the arguments of another.
func TestCensusOfTheRestless(t *testing.T) {
	name := unique("agent")
	c := startRole(t, "restless", 0, processtest.Program(t, name), "x", processtest.Program(t, "other"), name)
	m := newMock(t)
	m.real(c.pid)
	found := map[watch.Life]int{}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		w := newTownOf(t, m.host, name)
		l := w.list()
		w.Close()
		member, ok := l.of(name, c.pid)
		if !ok {
			t.Fatalf("after %v: listed %v", found, l)
		}
		found[member.Life]++
	}
	t.Logf("%v", found)
}

// What we may not read may be of any program, and what a process says of itself is believed.
func TestCensusWithoutPrivileges(t *testing.T) {
	needRoot(t)
	name, other := unique("agent"), unique("other")
	path := processtest.Program(t, name)
	byFile := processtest.StartProgram(t, path, "x")
	byName := processtest.StartProgram(t, processtest.Program(t, other), name)
	headless := processtest.StartProgram(t, path, "x")
	headless.LeaderGone()
	zombie := processtest.StartProgram(t, path, "x")
	zombie.Zombie()
	c := startRole(t, "stranger", 0, name, "sh")
	listed := strings.Fields(c.say)
	has := func(program string, pid int, life watch.Life) bool {
		return slices.Contains(listed, fmt.Sprintf("%s=%d=%s", program, pid, life))
	}
	if listed[0] != "found" || !has(name, byFile.PID(), watch.Unknown) || !has("sh", byFile.PID(), watch.Unknown) ||
		!has(name, byName.PID(), watch.Alive) || !has("sh", byName.PID(), watch.Unknown) ||
		!has(name, headless.PID(), watch.Unknown) {
		t.Errorf("of %d, %d and %d: %s", byFile.PID(), byName.PID(), headless.PID(), c.say)
	}
	initial, err := newHost(t).InitialNamespace()
	if err != nil {
		t.Fatal(err)
	}
	for what, pid := range map[string]int{"itself": c.pid, "a zombie": zombie.PID(), "a thread of the kernel's": 2, "init": 1} {
		if (has(name, pid, watch.Unknown) || has(name, pid, watch.Alive)) && (initial || pid > 2) {
			t.Errorf("%s, %d, may be of the program: %s", what, pid, c.say)
		}
	}
}

// P7: a list of whom we are shown is not a list of all.
func TestHidepid(t *testing.T) {
	c := startRole(t, "behind hidepid", unix.CLONE_NEWNS)
	asRoot, asNobody, _ := strings.Cut(c.say, "\t")
	if !strings.HasPrefix(asNobody, "failed: ") || !strings.Contains(asNobody, "hidepid") {
		t.Errorf("as nobody: %s", asNobody)
	}
	// Where even root may not look into init, it cannot be told from one that is shown a part.
	_, err := os.Readlink("/proc/1/exe")
	if failed := strings.HasPrefix(asRoot, "failed: "); failed != (err != nil) {
		t.Errorf("as root, who may look into init: %t: %s", err == nil, asRoot)
	}
}
