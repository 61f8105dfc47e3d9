package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

func TestOwnersThatDieWhileWatcherIsDown(t *testing.T) {
	e := dockertest.Shared(t)
	first, second, alive := processtest.StartOwner(t), processtest.StartOwner(t), processtest.StartOwner(t)
	d := startDaemon(t, e)
	one := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(first.Label())})
	two := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(second.Label())})
	kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(alive.Label())})
	d.kill()
	first.Kill()
	first.Wait()
	if r := on(t, e, "--once"); r.code != exitDone {
		t.Errorf("--once exits %d: %s", r.code, r.stderr)
	}
	e.WaitGone(t, one)
	second.Kill()
	second.Wait()
	startDaemon(t, e)
	e.WaitGone(t, two)
	if !e.Running(t, kept) {
		t.Error("the container of a living owner does not run any more")
	}
}

func TestAnOwnerThatDiesBetweenCreateAndStart(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	owner.Kill()
	owner.Wait()
	// The owner is dead before the engine hears of the container, as when a runner is killed in the middle of docker run.
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label()), NotStarted: true})
	e.WaitGone(t, id)
	d.event(watch.EventReaped, id)
}

func TestOwnersThatDieWhileTheEngineIsDown(t *testing.T) {
	e := dockertest.Start(t, dockertest.LiveRestore())
	d := startDaemon(t, e)
	doomed, alive := processtest.StartOwner(t), processtest.StartOwner(t)
	gone := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(doomed.Label())})
	kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(alive.Label())})
	pids := e.PIDs(t, gone)
	if len(pids) == 0 {
		t.Fatal("the container has no process")
	}
	e.Kill(t)
	d.waitFor("the loss of the engine", func(r record) bool {
		return r.text(watch.KeyEvent) == watch.EventSourceLost && r.text(watch.KeySource) == "docker"
	})
	doomed.Kill()
	// Without an engine the code is stopped all the same.
	d.event(watch.EventOwnerExited, gone)
	e.Restart(t)
	d.waitFor("the return of the engine", func(r record) bool {
		return r.text(watch.KeyEvent) == watch.EventSourceBack && r.text(watch.KeySource) == "docker"
	})
	e.WaitGone(t, gone)
	if !e.Running(t, kept) {
		t.Error("the container of a living owner does not run any more")
	}
	if n := len(d.records(func(r record) bool {
		return r.text(watch.KeyEvent) == watch.EventSourceLost && r.text(watch.KeySource) == "docker"
	})); n != 1 {
		t.Errorf("the loss of the engine was told %d times, want once", n)
	}
}

func TestAnEngineRestartsUnderARunningWatcher(t *testing.T) {
	e := dockertest.Start(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	e.Stop(t)
	e.Restart(t)
	d.waitFor("the return of the engine", func(r record) bool {
		return r.text(watch.KeyEvent) == watch.EventSourceBack && r.text(watch.KeySource) == "docker"
	})
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	d.knows(id)
	owner.Kill()
	if _, ok := d.event(watch.EventReaped, id).micros(watch.KeyStopUS); !ok {
		t.Error("the stop was not measured")
	}
	e.WaitGone(t, id)
}

func TestADaemonStartedWithoutAnEngine(t *testing.T) {
	e := dockertest.Start(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label()), Restart: "always"})
	e.Kill(t)
	owner.Kill()
	owner.Wait()
	if r := on(t, e, "--once"); r.code != exitFailed || !strings.Contains(r.stderr, e.Host()) {
		t.Errorf("--once without an engine exits %d and says %q, want %d and where it looked", r.code, r.stderr, exitFailed)
	}
	d := launchDaemon(t, program(t, "--docker-host", e.Host()))
	d.waitFor("the absence of the engine", func(r record) bool { return r.text(watch.KeyEvent) == watch.EventSourceLost })
	e.Restart(t)
	d.event(watch.EventReaped, id)
	e.WaitGone(t, id)
}

// The four owners that betray whoever believes an exit event, a PID or the state in /proc.
func TestTreacherousOwners(t *testing.T) {
	e := dockertest.Shared(t)
	whole := t
	d := startDaemon(t, e)
	run := func(o *processtest.Owner) string {
		return e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(o.Label())})
	}
	// What comes after a treachery is an honest death, seen by the same daemon: when that is reaped, the daemon has had
	// all it needs to make the mistake.
	honest := func() {
		t.Helper()
		o := processtest.StartOwner(t)
		id := run(o)
		o.Kill()
		d.event(watch.EventReaped, id)
	}
	alive := func(id string) {
		t.Helper()
		if !e.Running(t, id) {
			t.Fatal("the container of a living owner does not run any more")
		}
	}
	t.Run("its main thread ends while a worker lives on", func(t *testing.T) {
		o := processtest.StartOwner(t)
		id := run(o)
		o.LeaderGone()
		honest()
		alive(id)
		o.Exit()
		e.WaitGone(t, id)
	})
	t.Run("it execs from a worker thread", func(t *testing.T) {
		o := processtest.StartOwner(t)
		id := run(o)
		o.ExecFromWorker()
		honest()
		alive(id)
		o.Exit()
		e.WaitGone(t, id)
	})
	t.Run("its PID is given to another", func(t *testing.T) {
		o := processtest.StartOwner(t)
		ids := []string{run(o), e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(strconv.Itoa(o.PID()))})}
		d.kill()
		o.Kill()
		o.Wait()
		other := processtest.ReusePID(t, o.PID())
		d = startDaemon(whole, e)
		e.WaitGoneAll(t, ids...)
		for _, id := range ids {
			if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.OwnerReplaced) {
				t.Errorf("reason %q, want %q", got, reap.OwnerReplaced)
			}
		}
		// The one that has the PID now may own sandboxes too.
		id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(strconv.Itoa(other.PID()))})
		honest()
		alive(id)
	})
	t.Run("nobody waits for it", func(t *testing.T) {
		o := processtest.StartOwner(t)
		id := run(o)
		o.Zombie()
		e.WaitGone(t, id)
		// It is found dead as well, by a look that comes after its death.
		late := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(o.Label()), NotStarted: true})
		e.WaitGone(t, late)
	})
}

// The daemon is stopped while owners die among so many exits that the connector's buffer cannot hold them.
func TestDeathsInAFloodThatOverflowsTheConnector(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	var owners []*processtest.Owner
	var ids []string
	for range 8 {
		o := processtest.StartOwner(t)
		owners = append(owners, o)
		ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(o.Label())}))
	}
	alive := processtest.StartOwner(t)
	kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(alive.Label())})
	d.signal(syscall.SIGSTOP)
	for _, o := range owners {
		o.Kill()
	}
	processtest.SwarmExits(t, 30_000) // the buffer holds some 20,000
	d.signal(syscall.SIGCONT)
	e.WaitGoneAll(t, ids...)
	d.waitFor("lost events", func(r record) bool {
		return r.text(watch.KeyEvent) == watch.EventSourceLost && r.text(watch.KeySource) == "process connector"
	})
	if !e.Running(t, kept) {
		t.Error("the container of a living owner does not run any more")
	}
	// It hears again.
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(alive.Label())})
	alive.Kill()
	d.event(watch.EventReaped, id)
}

func TestARemoteEngineKeepsEverything(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	expired := e.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelOwner: owner.Label(), watch.LabelTTL: "1ms"}})
	owner.Kill()
	owner.Wait()
	host := forward(t, strings.TrimPrefix(e.Host(), "unix://"))
	r := command(t, "--once", "--docker-host", host)
	if r.code != exitDone {
		t.Errorf("--once exits %d: %s", r.code, r.stderr)
	}
	e.WaitGone(t, expired) // its time is over wherever it runs
	if !e.Running(t, id) {
		t.Error("a PID of another machine was judged here")
	}
}

// forward makes an engine reachable over TCP, as a remote one is.
func forward(tb testing.TB, socket string) (host string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", socket)
			if err != nil {
				in.Close()
				continue
			}
			go func() {
				io.Copy(out, in)
				out.Close()
			}()
			go func() {
				io.Copy(in, out)
				in.Close()
			}()
		}
	}()
	return "tcp://" + l.Addr().String()
}

// On a host that gives watcher less than it could use, the rest carries on.
func TestHostsThatGiveLess(t *testing.T) {
	e := dockertest.Shared(t)
	for _, host := range []struct {
		name string
		less func(*exec.Cmd)
		lost string // the source that is told as lost
	}{
		{name: "no process connector", lost: "process connector", less: func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		}},
		{name: "no pidfds", less: func(cmd *exec.Cmd) {
			cmd.Env = append(cmd.Env, noPidfds+"=1")
		}},
	} {
		t.Run(host.name, func(t *testing.T) {
			cmd := program(t, "--docker-host", e.Host(), "--config", configFile(t, "[scan]\ninterval = \"1s\""))
			host.less(cmd)
			d := launchDaemon(t, cmd)
			owner, alive, leaderless := processtest.StartOwner(t), processtest.StartOwner(t), processtest.StartOwner(t)
			id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
			kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(alive.Label())})
			tricky := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(leaderless.Label())})
			d.knows(id)
			d.knows(kept)
			d.knows(tricky)
			leaderless.LeaderGone()
			owner.Kill()
			d.event(watch.EventReaped, id)
			if !e.Running(t, kept) || !e.Running(t, tricky) {
				t.Error("the container of a living owner does not run any more")
			}
			leaderless.Exit()
			d.event(watch.EventReaped, tricky)
			lost := d.records(func(r record) bool { return r.text(watch.KeyEvent) == watch.EventSourceLost })
			want := 0
			if host.lost != "" {
				want = 1
			}
			if len(lost) != want || want == 1 && lost[0].text(watch.KeySource) != host.lost {
				t.Errorf("sources told as lost: %v, want %d: %s", lost, want, host.lost)
			}
		})
	}
}

func TestASignalInTheMiddleOfRemovals(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	var ids []string
	for range 12 {
		ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())}))
	}
	for _, id := range ids {
		d.knows(id)
	}
	owner.Kill()
	d.event(watch.EventReaped, d.waitFor("a first reap", func(r record) bool { return r.text(watch.KeyEvent) == watch.EventReaped }).text(watch.KeyID))
	if code := d.stop(); code != exitDone {
		t.Errorf("exit code %d, want %d", code, exitDone)
	}
	// All were begun when the signal came, so all are finished.
	for _, id := range ids {
		if e.Exists(t, id) {
			t.Errorf("%s was begun and not finished", id)
		}
	}
	d.waitFor("the end", func(r record) bool { return r.text(watch.KeyEvent) == watch.EventStopped })
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	e := dockertest.Start(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	d.knows(id)
	// A hung engine never answers, so the removal is under way until its deadline.
	e.Pause(t)
	owner.Kill()
	d.event(watch.EventOwnerExited, id)
	d.signal(syscall.SIGTERM)
	d.waitFor("that it is ending", func(r record) bool { return r.text("msg") == "ending" })
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != exitSignal+int(syscall.SIGTERM) {
		t.Errorf("exit code %d, want that of an end by the second SIGTERM", code)
	}
	e.Resume(t)
	// What was begun is on record.
	if r := on(t, e, "--once"); r.code != exitDone {
		t.Errorf("--once exits %d: %s", r.code, r.stderr)
	}
	e.WaitGone(t, id)
}

// A number that was an owner's PID may become a thread's. A claim that says when its owner started tells the two apart.
func TestAnOwnersNumberIsAThreads(t *testing.T) {
	e := dockertest.Shared(t)
	tid, start := aThread(t)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	label := func(start uint64) map[string]string {
		return ownedBy(fmt.Sprintf("%d:%d:%s", tid, start, strings.TrimSpace(string(boot))))
	}
	orphan := e.Run(t, dockertest.ContainerOptions{Labels: label(start - 1)})
	kept := e.Run(t, dockertest.ContainerOptions{Labels: label(start)}) // by a mistake that must not kill
	d := startDaemon(t, e)
	if got := d.event(watch.EventReaped, orphan).text(watch.KeyReason); got != string(reap.OwnerReplaced) {
		t.Errorf("reason %q, want %q", got, reap.OwnerReplaced)
	}
	if !e.Running(t, kept) {
		t.Error("the container of what may live does not run any more")
	}
}

// aThread is a thread of ours that lives as long as the test and is not the leader, and its start time.
func aThread(t *testing.T) (tid int, start uint64) {
	t.Helper()
	ids, end := make(chan int), make(chan struct{})
	t.Cleanup(func() { close(end) })
	for {
		go func() {
			runtime.LockOSThread()
			ids <- unix.Gettid()
			<-end
		}()
		if tid = <-ids; tid != os.Getpid() {
			break
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if start, err = strconv.ParseUint(fields[22-3], 10, 64); err != nil {
		t.Fatal(err)
	}
	return tid, start
}
