package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// quickScans has a daemon scan often.
const quickScans = "[scan]\ninterval = \"200ms\"\n"

// wantKilled checks what a kill said and did.
func wantKilled(t *testing.T, r result, says ...string) {
	t.Helper()
	if r.code != exitDone {
		t.Errorf("kill exits %d: %s%s", r.code, r.stdout, r.stderr)
	}
	for _, want := range says {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("kill lacks %q: %s%s", want, r.stdout, r.stderr)
		}
	}
	if strings.Contains(r.stdout, "FAIL") {
		t.Errorf("a step failed: %s", r.stdout)
	}
	if cases := casesOf(t); len(cases) > 0 {
		t.Errorf("still on record: %v", cases)
	}
}

// wantRefused checks that a kill refused.
func wantRefused(t *testing.T, r result, code int, says ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("kill exits %d, want %d: %s%s", r.code, code, r.stdout, r.stderr)
	}
	for _, want := range says {
		if !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("kill lacks %q: %s%s", want, r.stdout, r.stderr)
		}
	}
}

func TestKillEndsEachKindBesideADaemon(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	left := filepath.Join(t.TempDir(), "left-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The owner of what is left is this very program, which lives.
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	config := configFile(t, fmt.Sprintf("[[rule]]\nname = \"left\"\nmatch = { name = \"nobody-*\" }\nowner = { process = %q }\nfiles = [%q]\n", self, filepath.Dir(left)+"/left-*"))
	d := startDaemon(t, e, "--config", config)
	killed := e.Run(t, dockertest.ContainerOptions{Name: "kill-me", Labels: ownedBy(owner.Label())})
	paused := e.Run(t, dockertest.ContainerOptions{Name: "kill-paused", Labels: ownedBy(owner.Label()), Paused: true})
	always := e.Run(t, dockertest.ContainerOptions{Name: "kill-always", Labels: ownedBy(owner.Label()), Restart: "always"})
	kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	for _, id := range []string{killed, paused, always, kept} {
		d.knows(id)
	}
	before := lifeOf(t, e, kept)

	r := on(t, e, "kill", killed[:20], "--force", "--log-format", "json")
	wantKilled(t, r, "ok    kill container "+killed[:12]+" (kill-me)\n", "ok    remove container "+killed[:12]+" (kill-me)\n")
	if !strings.Contains(r.stderr, `"event":"reaped"`) || !strings.Contains(r.stderr, `"reason":"operator"`) {
		t.Errorf("the log has no reap by an operator: %s", r.stderr)
	}
	wantKilled(t, on(t, e, "kill", "kill-paused", "--force"), "ok    remove container")
	wantKilled(t, on(t, e, "kill", always, "--force"), "ok    remove container")
	e.WaitGoneAll(t, killed, paused, always)

	labels := ownedBy(owner.Label())
	if _, err := e.Client().VolumeCreate(t.Context(), volume.CreateOptions{Name: "kill-volume", Labels: labels}); err != nil {
		t.Fatal(err)
	}
	wantKilled(t, on(t, e, "kill", "kill-volume", "--force"), "ok    remove volume", "(kill-volume)")
	made, err := e.Client().NetworkCreate(t.Context(), "kill-network", network.CreateOptions{Labels: labels, Driver: "bridge"})
	if err != nil {
		t.Fatal(err)
	}
	wantKilled(t, on(t, e, "kill", made.ID, "--force"), "ok    remove network", "(kill-network)")
	wantKilled(t, on(t, e, "kill", left, "--force", "--config", config), "ok    remove file")
	if _, err := os.Lstat(left); err == nil {
		t.Errorf("%s is still there", left)
	}

	if after := lifeOf(t, e, kept); after != before {
		t.Errorf("a container that nobody spoke of was touched: %+v, was %+v", after, before)
	}
	honest(t, e, d)
	if failed := d.records(telling(watch.EventReapFailed)); len(failed) > 0 {
		t.Errorf("the daemon failed at what was killed: %v", failed)
	}
}

func TestKillTakesWhatIsNamedAndNoMore(t *testing.T) {
	e := dockertest.Start(t) // --all means all
	owner := processtest.StartOwner(t)
	run := func(name string, labels map[string]string) string {
		t.Helper()
		return e.Run(t, dockertest.ContainerOptions{Name: name, Labels: labels})
	}
	config := configFile(t, "[[rule]]\nname = \"agents\"\nmatch = { name = \"agent-*\" }\nowner = { pid-label = \"pid\" }\n")
	byRule := map[string]string{"pid": owner.Label()}
	ruled := []string{run("agent-1", byRule), run("agent-2", byRule)}
	guarded := run("agent-3", map[string]string{"pid": owner.Label(), "com.docker.compose.project": "p"})
	labelled := run("labelled", ownedBy(owner.Label()))
	pinned := run("pinned", map[string]string{watch.LabelKeep: "true"})
	stranger := run("stranger", nil)

	wantRefused(t, on(t, e, "kill", "agent-1", "--force"), exitFailed, "no sandbox is called") // no rule, no sandbox
	for _, args := range [][]string{{"kill"}, {"kill", ""}, {"kill", "a", "b"}, {"kill", "a", "--all"}, {"kill", "--all", "--rule", "agents"}} {
		wantRefused(t, on(t, e, append(args, "--force")...), exitUsage)
	}
	wantRefused(t, on(t, e, "kill", "stranger", "--force", "--config", config), exitFailed, "no sandbox is called")
	wantRefused(t, on(t, e, "kill", "--rule", "nobody", "--force", "--config", config), exitFailed, "nobody")
	wantRefused(t, on(t, e, "kill", "agent-1", "--config", config), exitFailed, "no terminal", "--force")
	for _, id := range append(ruled, guarded, labelled, pinned, stranger) {
		if !e.Running(t, id) {
			t.Errorf("%.12s does not run any more", id)
		}
	}

	r := on(t, e, "kill", "--rule", "agents", "--force", "--config", config)
	wantKilled(t, r, "(agent-1)", "(agent-2)")
	for _, want := range []string{"2 sandboxes: ", "left alone", "(agent-3), which is another manager's"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("kill --rule lacks %q on standard error: %s", want, r.stderr)
		}
	}
	e.WaitGoneAll(t, ruled...)
	wantKilled(t, on(t, e, "kill", guarded, "--force", "--config", config), "(agent-3)")

	r = on(t, e, "kill", "--all", "--force", "--config", config)
	wantKilled(t, r, "(labelled)")
	if !strings.Contains(r.stderr, "(pinned), which is pinned") {
		t.Errorf("kill --all does not say that it spares one: %s", r.stderr)
	}
	e.WaitGone(t, labelled)
	for _, id := range []string{pinned, stranger} {
		if !e.Running(t, id) {
			t.Errorf("%.12s does not run any more", id)
		}
	}
	wantRefused(t, on(t, e, "kill", "--all", "--force"), exitFailed, "no sandbox to kill")
	wantKilled(t, on(t, e, "kill", "pinned", "--force"), "(pinned)")
	e.WaitGone(t, pinned)
}

// What a container uses is not taken from it; what belongs to its group goes with it.
func TestKillTakesWhatBelongsToIt(t *testing.T) {
	e := dockertest.Start(t) // --all means all
	owner := processtest.StartOwner(t)
	for _, args := range [][]string{nil, {"--all"}} {
		f := newFamily(t, e, nil)
		id := f.user(f.with(ownedBy(owner.Label())), true)
		wantRefused(t, on(t, e, "kill", f.volume, "--force"), exitFailed, "FAIL", "a container refers to it")
		wantRefused(t, on(t, e, "kill", f.network, "--force"), exitFailed, "FAIL", "a container refers to it")
		if cases := casesOf(t); len(cases) > 0 || !e.Running(t, id) {
			t.Errorf("what is in use was refused, and on record is %v; its container runs: %t", cases, e.Running(t, id))
		}
		if args == nil {
			args = []string{id}
		}
		wantKilled(t, on(t, e, append([]string{"kill", "--force"}, args...)...), "remove container", "remove volume", "remove network")
		e.WaitGone(t, id)
		if rows := rowsOf(t, e, "list"); len(rows) > 0 {
			t.Errorf("after kill %q there are left %v", args, rows)
		}
	}
}

// A terminal with watcher on it.
type terminal struct {
	t      *testing.T
	master *os.File

	mu   sync.Mutex
	said bytes.Buffer
	came chan struct{}
	code chan int
}

// onTerminal starts watcher with a terminal as its standard input, output and error.
func onTerminal(t *testing.T, e *dockertest.Engine, args ...string) *terminal {
	t.Helper()
	// Nonblocking, so that a read ends when it is closed (pts(4)).
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, append(args, "--docker-host", e.Host())...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	term := &terminal{t: t, master: os.NewFile(uintptr(fd), "ptmx"), came: make(chan struct{}, 1), code: make(chan int, 1)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for b := make([]byte, 4096); ; {
			n, err := term.master.Read(b)
			term.mu.Lock()
			term.said.Write(b[:n])
			term.mu.Unlock()
			select {
			case term.came <- struct{}{}:
			default:
			}
			if err != nil {
				return // EIO when the last one has closed the other end
			}
		}
	}()
	go func() {
		_ = cmd.Wait()
		term.code <- cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = term.master.Close()
		<-read
	})
	return term
}

func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.ReplaceAll(term.said.String(), "\r\n", "\n")
}

// asked waits for a question.
func (term *terminal) asked() {
	term.t.Helper()
	deadline := time.After(patience)
	for !strings.Contains(term.text(), "[y/N] ") {
		select {
		case <-term.came:
		case <-deadline:
			term.t.Fatalf("not asked within %s: %s", patience, term.text())
		}
	}
}

func (term *terminal) types(text string) {
	term.t.Helper()
	if _, err := term.master.WriteString(text); err != nil {
		term.t.Fatal(err)
	}
}

// ends waits for the end and returns what stood on the terminal.
func (term *terminal) ends() result {
	term.t.Helper()
	select {
	case code := <-term.code:
		// What was written last may not have been read yet.
		for term.text() == "" {
			<-term.came
		}
		return result{stdout: term.text(), code: code}
	case <-time.After(patience):
		term.t.Fatalf("did not end within %s: %s", patience, term.text())
		return result{}
	}
}

func TestKillAsksOnATerminal(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Name: "ask-me", Labels: map[string]string{watch.LabelOwner: owner.Label(), watch.LabelKeep: "true"}})
	before := lifeOf(t, e, id)
	// The last is the end of the input.
	for _, answer := range []string{"n\n", "\n", "yessir\n", "\x04"} {
		term := onTerminal(t, e, "kill", "ask-me")
		term.asked()
		term.types(answer)
		if r := term.ends(); r.code != exitFailed {
			t.Errorf("after %q kill exits %d, want %d: %s", answer, r.code, exitFailed, r.stdout)
		}
		if after := lifeOf(t, e, id); after != before {
			t.Fatalf("after %q the container was touched: %+v, was %+v", answer, after, before)
		}
	}
	term := onTerminal(t, e, "kill", "ask-me")
	term.asked()
	for _, want := range []string{"container " + id[:12] + " (ask-me)", fmt.Sprint(owner.PID()), "pinned"} {
		if !strings.Contains(term.text(), want) {
			t.Errorf("the question lacks %q: %s", want, term.text())
		}
	}
	term.types("y\n")
	wantKilled(t, term.ends())
	e.WaitGone(t, id)
}

func TestKillLetsAloneWhatChangedWhileItAsked(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	labels := ownedBy(owner.Label())
	options := dockertest.ContainerOptions{Name: "changing", Labels: labels}
	first := e.Run(t, options)
	term := onTerminal(t, e, "kill", "changing")
	term.asked()
	if err := e.Client().ContainerRemove(t.Context(), first, forced); err != nil {
		t.Fatal(err)
	}
	e.WaitGone(t, first)
	second := e.Run(t, options)
	before := lifeOf(t, e, second)
	term.types("y\n")
	wantRefused(t, term.ends(), exitFailed)
	if after := lifeOf(t, e, second); after != before {
		t.Errorf("the container that has the name now was touched: %+v, was %+v", after, before)
	}

	// What went by itself is what was wanted.
	term = onTerminal(t, e, "kill", second)
	term.asked()
	if err := e.Client().ContainerRemove(t.Context(), second, forced); err != nil {
		t.Fatal(err)
	}
	e.WaitGone(t, second)
	term.types("y\n")
	wantKilled(t, term.ends())
}

// Invariants R5 and R8: wherever a kill is killed, whoever comes next finishes it, although the owner lives, and so does a
// daemon that was there all the time.
func TestAKillIsKilledAtEachBoundary(t *testing.T) {
	e := dockertest.Shared(t)
	for _, at := range []reap.Boundary{reap.BoundaryRecorded, reap.BoundaryStopped, reap.BoundaryRemoved, reap.BoundaryClosed} {
		for _, finisher := range []string{"--once", "the next daemon", "the daemon that runs", "kill"} {
			t.Run(fmt.Sprintf("%s/%s", at, finisher), func(t *testing.T) {
				owner := processtest.StartOwner(t)
				config := configFile(t, quickScans)
				id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
				kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
				before := lifeOf(t, e, kept)
				var d *daemon
				if finisher == "the daemon that runs" {
					d = startDaemon(t, e, "--config", config)
					d.knows(id)
					d.signal(syscall.SIGSTOP) // it would be quicker than we can look
				}
				cmd := program(t, "kill", id, "--force", "--docker-host", e.Host())
				cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s/1", crashAt, at))
				_ = cmd.Run()
				if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
					t.Fatalf("kill ended with %v, want a SIGKILL", cmd.ProcessState)
				}
				c, recorded := casesOf(t)[id]
				// The engine may tell that it is gone before the removal has returned, and then the record goes as well.
				told := at == reap.BoundaryRemoved && !recorded
				if recorded != (at != reap.BoundaryClosed) && !told || recorded && c.Reason != reap.Operator {
					t.Errorf("killed at %q, and on record is %+v", at, c)
				}
				if running := e.Running(t, id); at == reap.BoundaryRecorded && !running {
					t.Error("its code was stopped before it was on record")
				}
				switch finisher {
				case "--once":
					if r := on(t, e, "--once"); r.code != exitDone {
						t.Errorf("--once exits %d: %s", r.code, r.stderr)
					}
				case "the next daemon":
					d = startDaemon(t, e, "--config", config)
				case "the daemon that runs":
					d.signal(syscall.SIGCONT)
				case "kill":
					if r := on(t, e, "kill", id, "--force"); r.code != exitDone && e.Exists(t, id) {
						t.Errorf("a second kill exits %d: %s%s", r.code, r.stdout, r.stderr)
					}
					if at == reap.BoundaryRemoved {
						// It is gone, so that the second one finds nobody; the record is for whoever comes next.
						on(t, e, "--once")
					}
				}
				e.WaitGone(t, id)
				await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
				if d != nil && recorded {
					if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.Operator) {
						t.Errorf("reason %q, want %q", got, reap.Operator)
					}
				}
				if after := lifeOf(t, e, kept); after != before {
					t.Errorf("a container that nobody spoke of was touched: %+v, was %+v", after, before)
				}
			})
		}
	}
}

func TestAKillThatFailsIsFinishedLater(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Name: "sticky", Labels: ownedBy(owner.Label())})
	d := startDaemon(t, e, "--config", configFile(t, quickScans+impatient))
	d.knows(id)
	release := stick(t, e, id)
	r := on(t, e, "kill", "sticky", "--force")
	wantRefused(t, r, exitFailed, "ok    kill", "FAIL  remove container "+id[:12]+" (sticky)", "operation not permitted", "on record")
	d.event(watch.EventGaveUp, id)
	if c := casesOf(t)[id]; c.Reason != reap.Operator {
		t.Errorf("on record: %+v", c)
	}
	if r := on(t, e, "failed"); !strings.Contains(r.stdout, string(reap.Operator)) {
		t.Errorf("failed says %s", r.stdout)
	}
	release()
	if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.Operator) {
		t.Errorf("reason %q, want %q", got, reap.Operator)
	}
	e.WaitGone(t, id)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
}

func TestKillEndsWhatWasDropped(t *testing.T) {
	e := dockertest.Shared(t)
	config := configFile(t, impatient)
	d := startDaemon(t, e, "--config", config)
	id, release := stuckLetter(t, e, d, "dropped")
	if r := on(t, e, "failed", "drop", id); r.code != exitDone {
		t.Fatal(r.stderr)
	}
	release()
	wantKilled(t, on(t, e, "kill", "dropped", "--force"))
	e.WaitGone(t, id)
	if marks, err := reap.NewDocket(stateOf(t)).For(e.Host()).Dropped(); err != nil || len(marks) > 0 {
		t.Errorf("the mark of the drop is left: %v, %v", marks, err)
	}
}

// On a host whose rules are about others there need not be an engine, and nothing waits for one.
func TestKillWithoutAnEngine(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	config := configFile(t, fmt.Sprintf("[scan]\ninterval = \"1h\"\n[[rule]]\nname = \"left\"\nkind = \"file\"\nowner = { process = %q }\nfiles = [%q]\n", self, dir+"/left-*"))
	r := command(t, "kill", left, "--force", "--config", config)
	wantKilled(t, r, "ok    remove file", "("+left+")")
	if _, err := os.Lstat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
}

// A shell is offered what can be killed.
func TestKillCompletes(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Name: "complete-me", Labels: ownedBy(owner.Label())})
	r := command(t, "__complete", "kill", "--docker-host", e.Host(), "")
	lines := strings.Split(r.stdout, "\n")
	offered := func(word string) bool {
		return slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, word+"\t") })
	}
	if !offered("complete-me") || !offered(id) {
		t.Errorf("offered are %s%s", r.stdout, r.stderr)
	}
}
