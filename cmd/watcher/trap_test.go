//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// The traps that peers of watcher fell into. The numbers are those of the list that the project began with; what is about
// microVMs and their folders is not here.

// A trap is three rules about containers that are the test's alone: for one the owner is a program, for one it is a PID in a
// label, and for one another container. Traps are set at the same time, so nothing here has a label of watcher's own, which
// every watcher sees.
type trap struct {
	*testing.T
	e       *dockertest.Engine
	program string
	name    string
	owner   string // of the first rule
	config  string
	made    time.Time // when the latest container was made
}

// setTrap sets one.
func setTrap(t *testing.T, e *dockertest.Engine) *trap {
	t.Helper()
	e.Image(t)
	tr := &trap{T: t, e: e, program: processtest.Program(t, "scanner"), name: slug(t)}
	tr.owner = fmt.Sprintf("{ process = %q }", tr.program)
	tr.config = configFile(t, tr.rules(eventsAlone, tr.owner))
	return tr
}

// rules writes a configuration. more is part of the first rule, which has that owner.
func (tr *trap) rules(scan, owner string, more ...string) string {
	text := fmt.Sprintf("%s[[rule]]\nname = \"trap\"\nmatch = { labels = [\"trap=%s\"] }\nowner = %s\n%s", scan, tr.name, owner, strings.Join(more, "\n"))
	for _, by := range []string{"pid", "container"} {
		text += fmt.Sprintf("\n[[rule]]\nname = \"trap-%[1]s\"\nmatch = { labels = [\"trap-%[1]s=%[2]s\"] }\nowner = { %[1]s-label = \"trap.%[1]s\" }\n", by, tr.name)
	}
	return text + barrierRule(tr)
}

func (tr *trap) start(change ...func(*exec.Cmd)) *standin {
	tr.Helper()
	return startStandin(tr, tr.e, tr.program, change...)
}

func (tr *trap) daemon() *daemon {
	tr.Helper()
	return startDaemon(tr, tr.e, "--config", tr.config)
}

// of is a container that belongs to the program.
func (tr *trap) of(state watch.State, labels ...string) making {
	m := making{Labels: map[string]string{"trap": tr.name}, State: state}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		m.Labels[key] = value
	}
	return m
}

// ofPID is a container whose label has a PID, and ofContainer one whose label names a container.
func (tr *trap) ofPID(pid string) making {
	return making{Labels: map[string]string{"trap-pid": tr.name, "trap.pid": pid}}
}

func (tr *trap) ofContainer(id string) making {
	return making{Labels: map[string]string{"trap-container": tr.name, "trap.container": id}}
}

func (tr *trap) make(s *standin, all ...making) []string {
	tr.Helper()
	defer func() { tr.made = time.Now() }()
	return s.make(all...)
}

// age waits until all containers are so old that they can be judged by inference.
func (tr *trap) age() { <-time.After(time.Until(tr.made.Add(slack))) }

// keeps checks that a daemon which had the time to do otherwise, and a pass by itself, keep containers for that reason.
func (tr *trap) keeps(d *daemon, reason reap.Reason, ids ...string) {
	tr.Helper()
	tr.age()
	barrier(tr.T, tr.e, d)
	tr.exist(ids...)
	rows := rowsOf(tr, tr.e, "--once", "--config", tr.config)
	for _, id := range ids {
		if r := rows[id]; r.Verdict != reap.Keep.String() || r.Reason != reason {
			tr.Errorf("--once says %+v of %.12s, want it kept because %s", r, id, reason)
		}
	}
	tr.exist(ids...)
}

func (tr *trap) exist(ids ...string) {
	tr.Helper()
	for _, id := range ids {
		if !tr.e.Exists(tr, id) {
			tr.Errorf("%.12s was reaped", id)
		}
	}
}

// reaps waits until the daemon has reaped containers for that reason.
func (tr *trap) reaps(d *daemon, reason reap.Reason, ids ...string) {
	tr.Helper()
	for _, id := range ids {
		if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reason) {
			tr.Errorf("%.12s was reaped because %q, want %q", id, got, reason)
		}
	}
	tr.e.WaitGoneAll(tr, ids...)
}

// judged waits until the daemon has a verdict on containers, whichever it is.
func judged(d *daemon, ids ...string) {
	d.tb.Helper()
	for _, id := range ids {
		d.waitFor(fmt.Sprintf("a verdict on %.12s", id), func(r record) bool { return r.text(watch.KeyID) == id && r.text(watch.KeyReason) != "" })
	}
}

func knowsAll(d *daemon, ids ...string) {
	d.tb.Helper()
	for _, id := range ids {
		d.knows(id)
	}
}

func TestTraps(t *testing.T) {
	e := dockertest.Shared(t)
	for _, trap := range []struct {
		name string
		test func(*testing.T, *dockertest.Engine)
	}{
		{"2 an owner that execs", trapExec},
		{"3 a PID that is reused", trapReuse},
		{"4 an owner in a PID namespace", trapNamespace},
		{"5 a wrapper that forks the owner and exits", trapWrapper},
		{"7 every state of a container", trapStates},
		{"8 an engine that restarts sends no die", trapEngineRestarts},
		{"12 two watchers at once", trapTwoWatchers},
		{"13 processes that cannot be seen", trapHiddenProcesses},
		{"13 containers that cannot be listed", trapUnlistedContainers},
		{"14 one that cannot be removed", trapFailingItem},
		{"14 sidecars", trapSidecars},
		{"15 evidence that arrives late", trapLateEvidence},
	} {
		t.Run(trap.name, func(t *testing.T) {
			t.Parallel()
			trap.test(t, e)
		})
	}
}

// An owner keeps its PID and its start time when it execs. Its executable is another then, or has been replaced.
func trapExec(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	next := processtest.Program(t, "updater")
	d := tr.daemon()
	byLabel, byName := startStandin(t, e, next), tr.start()
	labelled := tr.make(byLabel, tr.ofPID("{pid}:{start}:{boot}"), tr.ofPID("{pid}"))
	named := tr.make(byName, tr.of(watch.Running))
	ids := slices.Concat(labelled, named)
	knowsAll(d, ids...)
	// It is PID and start time that a label names.
	byLabel.become(tr.program)
	// An upgrade puts another file into the place of the one that runs.
	if err := os.Remove(tr.program); err != nil {
		t.Fatal(err)
	}
	processtest.Program(t, tr.program)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", byName.pid)); err != nil || !strings.HasSuffix(exe, " (deleted)") {
		t.Errorf("the executable of an upgraded program reads %q, %v", exe, err)
	}
	byName.do(order{Hide: true}) // in its argv[0] it is no scanner
	tr.keeps(d, reap.OwnerAlive, ids...)
	// Whoever was seen to be of a program may be the owner to the end, whatever it execs.
	byName.become(next)
	tr.made = time.Now()
	tr.age()
	barrier(t, e, d)
	tr.exist(ids...)
	byLabel.kill()
	byName.kill()
	tr.reaps(d, reap.OwnerExited, labelled...)
	tr.reaps(d, reap.NoPossibleOwner, named...)
}

// The PID of a dead owner may be another's, also one of the same program; its boot may be over; and it may be a zombie.
func trapReuse(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	d := tr.daemon()
	first, undead := tr.start(), startStandin(t, e, processtest.Program(t, "undead"))
	firsts := tr.make(first, tr.of(watch.Paused), tr.of(watch.Created), tr.ofPID("{pid}"))
	undeads := tr.make(undead, tr.ofPID("{pid}:{start}"))
	knowsAll(d, slices.Concat(firsts, undeads)...)
	// Between what watcher has seen and what it does.
	d.signal(syscall.SIGSTOP)
	first.kill()
	undead.zombie()
	second := withPID(tr, first.pid)
	seconds := tr.make(second, tr.of(watch.Paused), tr.ofPID("{pid}"))
	boot := tr.make(second, tr.ofPID("{pid}:{start}:00000000-0000-4000-8000-000000000000"))
	d.signal(syscall.SIGCONT)
	tr.reaps(d, reap.NoPossibleOwner, firsts[:2]...)
	tr.reaps(d, reap.Rebooted, boot...)
	e.WaitGone(t, firsts[2])
	// Who has the PID may be seen before the death is, or after it.
	if got := reap.Reason(d.event(watch.EventReaped, firsts[2]).text(watch.KeyReason)); got != reap.OwnerExited && got != reap.OwnerReplaced {
		t.Errorf("reason %q", got)
	}
	tr.reaps(d, reap.OwnerExited, undeads...)
	tr.keeps(d, reap.OwnerAlive, seconds...)
	second.zombie()
	tr.reaps(d, reap.NoPossibleOwner, seconds[0])
	tr.reaps(d, reap.OwnerExited, seconds[1])
}

// withPID starts the program with exactly this PID, which nobody must have any more.
func withPID(tr *trap, pid int) *standin {
	tr.Helper()
	<-time.After(11 * time.Millisecond) // the tick in which the last one with it may have started
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		s := tr.start(func(*exec.Cmd) {
			if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
				tr.Fatal(err)
			}
		})
		if s.pid == pid {
			return s
		}
		s.kill() // somebody else was given the number first
	}
	tr.Fatalf("PID %d not got", pid)
	return nil
}

// Of an owner in a PID namespace of its own the host knows the PID, and the owner does not: what it writes into a label
// names somebody else here, or nobody. Evidence by name keeps its containers all the same.
func trapNamespace(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	byLabel := configFile(t, tr.rules(eventsAlone, `{ pid-label = "pid" }`))
	tr.config = configFile(t, tr.rules(eventsAlone, fmt.Sprintf(`{ process = %q, pid-label = "pid" }`, tr.program)))
	// A number that nobody lives under here, and that nobody is given: a zombie has it.
	nobody := startStandin(t, e, processtest.Program(t, "nobody"))
	nobody.zombie()
	// The first process of the namespace is a shell, so that the owner gets the number that we want.
	owner := tr.start(func(cmd *exec.Cmd) {
		const script = `echo "$1" > /proc/sys/kernel/ns_last_pid && exec 3<&0 && { "$0" <&3 & wait; }`
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", script, tr.program, strconv.Itoa(nobody.pid - 1)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	})
	if owner.own != nobody.pid {
		t.Fatalf("the owner calls itself %d, want %d", owner.own, nobody.pid)
	}
	d := tr.daemon()
	ids := tr.make(owner, tr.of(watch.Running, "pid={pid}"), tr.of(watch.Created, "pid={pid}"))
	knowsAll(d, ids...)
	tr.keeps(d, reap.OwnerAlive, ids...)
	// By the label alone they look like orphans: that is why the preset owner-labels is not for such programs.
	rows := rowsOf(t, e, "list", "--config", byLabel)
	for _, id := range ids {
		if r := rows[id]; r.Verdict != reap.Reap.String() {
			t.Errorf("by its label alone list says %+v", r)
		}
	}
	owner.kill()
	tr.reaps(d, reap.NoPossibleOwner, ids...)
}

// The shell that an owner was started by may exit long before it.
func trapWrapper(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	d := tr.daemon()
	owner := tr.start(func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `exec 3<&0; "$0" <&3 & exit 0`, tr.program}
	})
	if err := owner.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	ids := tr.make(owner, tr.of(watch.Paused), tr.ofPID("{pid}:{start}:{boot}"))
	knowsAll(d, ids...)
	tr.keeps(d, reap.OwnerAlive, ids...)
	owner.kill()
	tr.reaps(d, reap.NoPossibleOwner, ids[0])
	tr.reaps(d, reap.OwnerExited, ids[1])
}

// Containers are left behind in every state, some that no other sweep finds, and the engine or others may be removing one.
func trapStates(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	d := tr.daemon()
	owner := tr.start()
	auto := tr.of(watch.Running)
	auto.AutoRemove = true
	ids := tr.make(owner, auto, tr.of(watch.Running), tr.of(watch.Running), tr.of(watch.Stopped),
		tr.of(watch.Created), tr.of(watch.Running), tr.of(watch.Paused), tr.of(watch.Restarting), tr.of(watch.Stopped))
	knowsAll(d, ids...)
	renamed, contested, dead := ids[1], ids[2], ids[3]
	if err := e.Client().ContainerRename(t.Context(), renamed, "renamed-"+renamed[:12]); err != nil {
		t.Fatal(err)
	}
	// A removal that failed leaves the state "dead".
	release := stick(t, e, dead)
	if err := e.Client().ContainerRemove(t.Context(), dead, forced); err == nil {
		t.Error("a removal did not fail that should have")
	}
	if c, _ := e.Inspect(t, dead); c.ContainerJSONBase == nil || c.State.Status != string(watch.Dead) {
		t.Errorf("after a failed removal: %+v, want the state dead", c.ContainerJSONBase)
	}
	release()
	tr.age()
	barrier(t, e, d)
	tr.exist(ids...)
	var others sync.WaitGroup
	owner.kill()
	for range 3 {
		others.Go(func() { _ = e.Client().ContainerRemove(t.Context(), contested, forced) })
	}
	tr.reaps(d, reap.NoPossibleOwner, ids...)
	others.Wait()
	noFailures(t, d)
}

// What ran when the engine was killed is dead when it is back, and no event says so.
func trapEngineRestarts(t *testing.T, _ *dockertest.Engine) {
	e := dockertest.Start(t)
	tr := setTrap(t, e)
	d := tr.daemon()
	doomed, alive := tr.start(), startStandin(t, e, processtest.Program(t, "alive"))
	ids := tr.make(doomed, tr.of(watch.Paused), tr.of(watch.Running), tr.of(watch.Created))
	kept := tr.make(alive, tr.ofPID("{pid}:{start}:{boot}"))
	knowsAll(d, slices.Concat(ids, kept)...)
	e.Kill(t)
	doomed.kill()
	e.Restart(t)
	tr.reaps(d, reap.NoPossibleOwner, ids...)
	if c, exists := e.Inspect(t, kept[0]); !exists || c.State.Running {
		t.Errorf("the container of the living owner exists: %t, and its state is %+v; want it there, and ended by the engine", exists, c.ContainerJSONBase)
	}
	alive.kill()
	tr.reaps(d, reap.OwnerExited, kept...)
}

// A daemon and two passes beside it take the same orphans at the same moment.
func trapTwoWatchers(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	d := tr.daemon()
	if r := on(t, e, "--config", tr.config); r.code != exitFailed || !strings.Contains(r.stderr, strconv.Itoa(d.cmd.Process.Pid)) {
		t.Errorf("a second daemon exits %d and says %q, want %d and who was first", r.code, r.stderr, exitFailed)
	}
	doomed, other := tr.start(), startStandin(t, e, processtest.Program(t, "other"))
	ids := tr.make(doomed, tr.of(watch.Running), tr.of(watch.Running), tr.of(watch.Paused), tr.of(watch.Created), tr.of(watch.Stopped))
	kept := tr.make(other, tr.ofPID("{pid}"))
	knowsAll(d, slices.Concat(ids, kept)...)
	tr.age()
	d.signal(syscall.SIGSTOP)
	doomed.kill()
	var passes sync.WaitGroup
	results := make([]result, 2)
	for i := range results {
		cmd := program(t, "--once", "--docker-host", e.Host(), "--config", tr.config)
		passes.Go(func() { results[i] = output(t, cmd) })
	}
	d.signal(syscall.SIGCONT)
	passes.Wait()
	for _, r := range results {
		if r.code != exitDone || !strings.Contains(r.stderr, "failed 0") {
			t.Errorf("--once beside a daemon exits %d and says %s", r.code, r.stderr)
		}
	}
	e.WaitGoneAll(t, ids...)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
	noFailures(t, d)
	tr.keeps(d, reap.OwnerAlive, kept...)
}

// Where /proc shows a part only, whoever owns a container may be in the other one.
func trapHiddenProcesses(t *testing.T, e *dockertest.Engine) {
	needTool(t, "setpriv", "util-linux")
	tr := setTrap(t, e)
	folder := t.TempDir()
	leftover := filepath.Join(folder, "scanner-1")
	if err := os.Mkdir(leftover, 0o700); err != nil {
		t.Fatal(err)
	}
	tr.config = configFile(t, tr.rules(eventsAlone, tr.owner, fmt.Sprintf("files = [%q]", folder+"/scanner-*")))
	owner := tr.start()
	owner.do(order{Hide: true}) // in its argv[0], which everybody may read, it is no scanner
	ids := tr.make(owner, tr.of(watch.Paused), tr.of(watch.Created))
	tr.age()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Without CAP_SYS_PTRACE one may not read the executables of those who have more. With hidepid they are not even there.
	blind := func(before string) result {
		cmd := program(t)
		cmd.Path, cmd.Args = "/bin/sh", []string{
			"sh", "-c", before + ` exec setpriv --bounding-set -sys_ptrace -- "$0" "$@"`, self,
			"--once", "-o", "json", "--docker-host", e.Host(), "--config", tr.config,
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		return output(t, cmd)
	}
	for _, alive := range []bool{true, false} {
		if !alive {
			owner.kill()
		}
		r := blind("mount --make-rprivate / && mount -t proc -o hidepid=4 proc /proc &&")
		if r.code != exitFailed || !strings.Contains(r.stderr, "hidepid") {
			t.Errorf("--once that cannot see all processes exits %d and says %s, want %d and why", r.code, r.stderr, exitFailed)
		}
		rows := rowsIn(t, blind(""))
		for _, key := range append(ids, leftover) {
			if r := rows[key]; r.Verdict != reap.Keep.String() || r.Reason != reap.OwnerUnknown {
				t.Errorf("--once that cannot read executables says %+v, want it kept because %s", r, reap.OwnerUnknown)
			}
		}
		tr.exist(ids...)
		if _, err := os.Stat(leftover); err != nil {
			t.Errorf("a leftover was removed by who cannot see: %v", err)
		}
	}
	// Who sees, reaps.
	if r := on(t, e, "--once", "--config", tr.config); r.code != exitDone {
		t.Errorf("--once exits %d: %s", r.code, r.stderr)
	}
	e.WaitGoneAll(t, ids...)
	if _, err := os.Stat(leftover); err == nil {
		t.Error("the leftover is there yet")
	}
}

// An engine that cannot list is not one without containers, and an owner that it cannot find out about is not gone.
func trapUnlistedContainers(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	var broken atomic.Value
	broken.Store("")
	host := frontend(t, e, &broken)
	boss := e.Run(t, dockertest.ContainerOptions{})
	owner := tr.start()
	ids := tr.make(owner, tr.of(watch.Paused), tr.of(watch.Created), tr.ofContainer(boss))
	orphan := tr.make(owner, tr.ofPID("1:1:00000000-0000-4000-8000-000000000000"))[0]
	for _, how := range []string{"error", "cut"} {
		broken.Store(how)
		if r := command(t, "--once", "--docker-host", host, "--config", tr.config); r.code != exitFailed || !strings.Contains(r.stderr, "not everything could be seen") {
			t.Errorf("%s: --once exits %d and says %s, want %d", how, r.code, r.stderr, exitFailed)
		}
		tr.exist(append(ids, orphan)...)
	}
	// A daemon goes on, and learns when it can.
	d := launchDaemon(t, program(t, "--docker-host", host, "--config", configFile(t, tr.rules("[scan]\ninterval = \"200ms\"\n", tr.owner))))
	lost := func(r record) bool {
		return telling(watch.EventSourceLost)(r) && strings.Contains(r.text(watch.KeySource), string(watch.Container))
	}
	d.waitFor("that it cannot list", lost)
	tr.exist(append(ids, orphan)...)
	broken.Store("owner " + boss)
	tr.reaps(d, reap.Rebooted, orphan)
	knowsAll(d, ids[:2]...)
	judged(d, ids[2])
	// What it knows stays known while lists fail again.
	broken.Store("cut")
	await(t, "it cannot list once more", func() bool { return len(d.records(lost)) > 1 })
	tr.age()
	tr.exist(ids...)
	broken.Store("")
	d.knows(ids[2])
	barrier(t, e, d)
	tr.exist(ids...)
	owner.kill()
	tr.reaps(d, reap.NoPossibleOwner, ids[:2]...)
	if err := e.Client().ContainerRemove(t.Context(), boss, forced); err != nil {
		t.Fatal(err)
	}
	tr.reaps(d, reap.OwnerContainerGone, ids[2])
}

// frontend is an engine's socket that we listen on ourselves, and that breaks as broken says: "error" answers lists of
// containers with one, "cut" ends them in the middle, "owner ID" answers with an error what is asked about that container.
func frontend(t *testing.T, e *dockertest.Engine, broken *atomic.Value) (host string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "front") // short, as the path of a socket must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	socket := strings.TrimPrefix(e.Host(), "unix://")
	engine := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "engine" },
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
		},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		how, owner, _ := strings.Cut(broken.Load().(string), " ")
		list := strings.HasSuffix(r.URL.Path, "/containers/json")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case list && how == "error", how == "owner" && strings.HasSuffix(r.URL.Path, "/containers/"+owner+"/json"):
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"database is locked"}`)
		case list && how == "cut":
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, `[{"Id":"`)
			panic(http.ErrAbortHandler)
		default:
			engine.ServeHTTP(w, r)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return "unix://" + filepath.Join(dir, "s")
}

// One container that cannot be removed keeps no other one alive.
func trapFailingItem(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	d := tr.daemon()
	owner := tr.start()
	ids := tr.make(owner, tr.of(watch.Running), tr.of(watch.Created), tr.of(watch.Running), tr.of(watch.Paused), tr.of(watch.Created))
	knowsAll(d, ids...)
	stuck := ids[0]
	release := stick(t, e, stuck)
	tr.age()
	owner.kill()
	tr.reaps(d, reap.NoPossibleOwner, ids[1:]...)
	d.event(watch.EventReapFailed, stuck)
	if e.Running(t, stuck) {
		t.Error("the code of what cannot be removed runs")
	}
	barrier(t, e, d)
	release()
	tr.reaps(d, reap.NoPossibleOwner, stuck)
}

// The helpers of a sandbox are no orphans while it has an owner, and go with it.
func trapSidecars(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	d := tr.daemon()
	owner := tr.start()
	sandbox := tr.make(owner, tr.of(watch.Running))[0]
	paused := tr.ofContainer(sandbox)
	paused.State = watch.Paused
	sidecars := tr.make(owner, tr.ofContainer(sandbox), paused)
	sidecars = append(sidecars, tr.make(owner, tr.ofContainer(sidecars[0]))...)
	ids := append(sidecars, sandbox)
	knowsAll(d, ids...)
	tr.keeps(d, reap.OwnerAlive, ids...)
	owner.kill()
	tr.reaps(d, reap.NoPossibleOwner, sandbox)
	tr.reaps(d, reap.OwnerContainerGone, sidecars...)
}

// Who owns a container may be seen after it.
func trapLateEvidence(t *testing.T, e *dockertest.Engine) {
	tr := setTrap(t, e)
	// It makes the container before it is the program: watcher sees the container, finds nobody, and then an exec.
	d := tr.daemon()
	late := startStandin(t, e, processtest.Program(t, "launcher"))
	ids := tr.make(late, tr.of(watch.Created))
	judged(d, ids...)
	late.become(tr.program)
	knowsAll(d, ids...)
	tr.keeps(d, reap.OwnerAlive, ids...)
	// Everything at once, after a while in which watcher saw nothing: a death, an owner that is new, and their containers.
	d.signal(syscall.SIGSTOP)
	dead := startStandin(t, e, processtest.Program(t, "dead"))
	orphan := tr.make(dead, tr.ofPID("{pid}"))
	dead.kill()
	ids = append(ids, tr.make(late, tr.of(watch.Running))...)
	second := tr.start()
	ids = append(ids, tr.make(second, tr.of(watch.Paused))...)
	d.signal(syscall.SIGCONT)
	tr.reaps(d, reap.OwnerExited, orphan...)
	knowsAll(d, ids...)
	tr.keeps(d, reap.OwnerAlive, ids...)
	// Containers that are there before anybody has looked at processes.
	d.kill()
	d = tr.daemon()
	tr.keeps(d, reap.OwnerAlive, ids...)
	late.kill()
	tr.reaps(d, reap.NoPossibleOwner, ids[:2]...)
	tr.keeps(d, reap.OwnerAlive, ids[2])
	second.kill()
	tr.reaps(d, reap.NoPossibleOwner, ids[2])
}
