package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

func TestAnOwnerIsKilledAndItsContainerIsGone(t *testing.T) {
	e := dockertest.Shared(t)
	owner, neighbour := processtest.StartOwner(t), processtest.StartOwner(t)
	d := startDaemon(t, e)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label()), Volumes: []string{"/data"}})
	other := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(neighbour.Label())})
	stranger := e.Run(t, dockertest.ContainerOptions{})

	d.knows(id)
	owner.Kill()
	r := d.event(watch.EventReaped, id)
	e.WaitGone(t, id)

	if got := r.text(watch.KeyReason); got != string(reap.OwnerExited) {
		t.Errorf("reason %q, want %q", got, reap.OwnerExited)
	}
	stop, stopped := r.micros(watch.KeyStopUS)
	gone, known := r.micros(watch.KeyGoneUS)
	if !stopped || !known || stop <= 0 || gone < stop {
		t.Errorf("stop_us %v (%v), gone_us %v (%v): want both, in order", stop, stopped, gone, known)
	}
	t.Logf("stopped after %s, gone after %s", stop, gone)
	for _, id := range []string{other, stranger} {
		if !e.Running(t, id) {
			t.Errorf("container %s, whose owner lives or which names none, does not run any more", id)
		}
	}
}

func TestEveryFormOfTheOwnerLabel(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	boss := e.Run(t, dockertest.ContainerOptions{Name: "boss"})
	var process watch.Process
	claim, err := watch.ParseClaim(owner.Label())
	if err != nil {
		t.Fatal(err)
	}
	process = claim.Process
	byProcess := []string{
		e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(strconv.Itoa(process.PID))}),
		e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(fmt.Sprintf("%d:%d", process.PID, process.Start))}),
		e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())}),
	}
	byContainer := []string{
		e.Run(t, dockertest.ContainerOptions{Labels: ownedBy("container:boss")}),
		e.Run(t, dockertest.ContainerOptions{Labels: ownedBy("container:" + boss)}),
	}
	wantRow := func(id, verdict string, reason reap.Reason) {
		t.Helper()
		if r := rowsOf(t, e, "list")[id]; r.Verdict != verdict || r.Reason != reason {
			t.Errorf("list says %q because %q of %s, want %q because %q", r.Verdict, r.Reason, id, verdict, reason)
		}
	}
	for _, id := range slices.Concat(byProcess, byContainer) {
		wantRow(id, "keep", reap.OwnerAlive)
	}
	owner.Kill()
	e.WaitGoneAll(t, byProcess...)
	for _, id := range byContainer {
		wantRow(id, "keep", reap.OwnerAlive)
	}
	if err := e.Client().ContainerRemove(t.Context(), boss, forced); err != nil {
		t.Fatal(err)
	}
	e.WaitGoneAll(t, byContainer...)
	for _, id := range byContainer {
		if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.OwnerContainerGone) {
			t.Errorf("reason %q, want %q", got, reap.OwnerContainerGone)
		}
	}
}

func TestARebootIsTheDeathOfEveryOwnerBefore(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	// PID 1 lives, but it is not the PID 1 of another boot.
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy("1:1:00000000-0000-4000-8000-000000000000")})
	if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.Rebooted) {
		t.Errorf("reason %q, want %q", got, reap.Rebooted)
	}
}

func TestATimeToLiveEndsWhenItEnds(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e, "--config", configFile(t, "[scan]\ninterval = \"1h\""))
	owner := processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelOwner: owner.Label(), watch.LabelTTL: "3s"}})
	pinned := e.Run(t, dockertest.ContainerOptions{Labels: map[string]string{watch.LabelKeep: "true", watch.LabelTTL: "1s"}})
	if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.Expired) {
		t.Errorf("reason %q, want %q", got, reap.Expired)
	}
	if !e.Running(t, pinned) {
		t.Error("a pinned container was reaped")
	}
}

func TestAStopTimeoutLetsASandboxFinish(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	owner := processtest.StartOwner(t)
	labels := map[string]string{watch.LabelOwner: owner.Label(), watch.LabelStopTimeout: "2s"}
	polite := e.Run(t, dockertest.ContainerOptions{Labels: labels})
	deaf := e.Run(t, dockertest.ContainerOptions{Labels: labels, Args: []string{"deaf"}})
	// The first process of a container ignores signals that it does not handle, so wait until it does.
	e.WaitPIDs(t, polite, 1)
	d.knows(polite)
	d.knows(deaf) // or the owner would be dead when it is first looked for, and nobody would know since when
	owner.Kill()
	e.WaitGoneAll(t, polite, deaf)
	politeStop, _ := d.event(watch.EventReaped, polite).micros(watch.KeyStopUS)
	deafStop, _ := d.event(watch.EventReaped, deaf).micros(watch.KeyStopUS)
	if deafStop < 2*time.Second {
		t.Errorf("the container that ignores SIGTERM was stopped after %s, before its timeout of 2s", deafStop)
	}
	t.Logf("polite stopped after %s, deaf after %s", politeStop, deafStop)
}

func TestContainersInEveryState(t *testing.T) {
	e := dockertest.Shared(t)
	owner := processtest.StartOwner(t)
	labels := ownedBy(owner.Label())
	ids := []string{
		e.Run(t, dockertest.ContainerOptions{Labels: labels, NotStarted: true}),
		e.Run(t, dockertest.ContainerOptions{Labels: labels, Paused: true}),
		e.Run(t, dockertest.ContainerOptions{Labels: labels, AutoRemove: true}),
		e.Run(t, dockertest.ContainerOptions{Labels: labels, Restart: "always"}),
		e.Run(t, dockertest.ContainerOptions{Labels: labels, Args: []string{"spawn", "3"}}),
		e.Run(t, dockertest.ContainerOptions{Labels: labels, PIDMode: "host", Args: []string{"spawn", "2"}}),
	}
	exited := e.Run(t, dockertest.ContainerOptions{Labels: labels, Args: []string{"exit", "3"}})
	e.WaitStopped(t, exited)
	ids = append(ids, exited)
	d := startDaemon(t, e)
	owner.Kill()
	e.WaitGoneAll(t, ids...)
	for _, id := range ids {
		d.event(watch.EventReaped, id)
	}
	if failed := d.records(func(r record) bool { return r.text(watch.KeyEvent) == watch.EventReapFailed }); len(failed) > 0 {
		t.Errorf("%d attempts failed, the first: %v", len(failed), failed[0])
	}
}

func TestMalformedLabelsAreKeptAndShown(t *testing.T) {
	e := dockertest.Shared(t)
	startDaemon(t, e)
	var ids []string
	for _, labels := range []map[string]string{
		ownedBy("-1"), ownedBy("0"), ownedBy("99999999999999999999"), ownedBy(" 1"), ownedBy("$(reboot)"), ownedBy("1:2:3:4"), ownedBy("container:"),
		ownedBy(""),
		{watch.LabelTTL: "soon"},
		{watch.LabelTTL: "-1s"},
		{watch.LabelKeep: "yes"},
		{watch.LabelStopTimeout: "5"},
		{"watcher.ownr": "1"},
	} {
		ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: labels}))
	}
	rows := rowsOf(t, e, "list")
	for _, id := range ids {
		if r := rows[id]; r.Verdict != "keep" || r.Reason != reap.BadLabel || r.Detail == "" {
			t.Errorf("list says %+v, want it kept as %s with a detail", r, reap.BadLabel)
		}
		if !e.Running(t, id) {
			t.Errorf("%s does not run any more", id)
		}
	}
}

func TestPIDOneIsAnOwnerThatNeverDies(t *testing.T) {
	e := dockertest.Shared(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy("1")})
	if r := rowsOf(t, e, "list")[id]; r.Reason != reap.OwnerAlive {
		t.Errorf("list says %+v, want %s", r, reap.OwnerAlive)
	}
}

// A hundred owners with a container each; half of the owners die at random moments and in random ways.
func TestExactlyTheContainersOfDeadOwnersGo(t *testing.T) {
	e := dockertest.Shared(t)
	d := startDaemon(t, e)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const n = 100
	owners, ids := make([]*processtest.Owner, n), make([]string, n)
	for i := range n {
		owners[i] = processtest.StartOwner(t)
	}
	doomed := rnd.Perm(n)[:n/2]
	for i := range n {
		ids[i] = e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owners[i].Label())})
		// Some die as soon as they have a container, some when all have theirs.
		if slices.Contains(doomed[:n/4], i) {
			die(rnd, owners[i])
		}
	}
	for _, i := range doomed[n/4:] {
		die(rnd, owners[i])
	}
	var dead []string
	for _, i := range doomed {
		dead = append(dead, ids[i])
	}
	e.WaitGoneAll(t, dead...)
	for i, id := range ids {
		if !slices.Contains(doomed, i) && !e.Running(t, id) {
			t.Errorf("the container of the living owner %d does not run any more", owners[i].PID())
		}
	}
	for _, id := range dead {
		d.event(watch.EventReaped, id)
	}
	if code := d.stop(); code != exitDone {
		t.Errorf("exit code %d after SIGTERM, want %d", code, exitDone)
	}
}

func die(rnd *rand.Rand, o *processtest.Owner) {
	[]func(){o.Kill, o.Term, o.Exit, o.Abort}[rnd.IntN(4)]()
}
