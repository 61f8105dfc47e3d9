package main

import (
	"fmt"
	"testing"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// boundaries are the points of a reap at which something has just become durable or irrevocable.
var boundaries = []reap.Boundary{reap.BoundaryStopped, reap.BoundaryRecorded, reap.BoundaryRemoved, reap.BoundaryClosed}

// Invariants R5 and R8: wherever a daemon is killed, whoever comes next finishes what it began, and harms nobody.
func TestKilledAtEachBoundary(t *testing.T) {
	e := dockertest.Shared(t)
	for _, at := range boundaries {
		for _, finisher := range []string{"daemon", "--once"} {
			for _, n := range []int{1, 10} {
				t.Run(fmt.Sprintf("%s/%s/%d", at, finisher, n), func(t *testing.T) {
					owner, neighbour := processtest.StartOwner(t), processtest.StartOwner(t)
					first := startCrashing(t, e, at)
					var ids []string
					for range n {
						ids = append(ids, e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())}))
					}
					kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(neighbour.Label())})
					before := lifeOf(t, e, kept)
					for _, id := range append(ids, kept) {
						first.knows(id)
					}
					owner.Kill()
					first.crashed()

					left := atBoundary(t, e, at, ids)
					if finisher == "daemon" {
						second := startDaemon(t, e)
						for id := range left {
							second.event(watch.EventReaped, id)
						}
						e.WaitGoneAll(t, ids...)
						await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
						if failed := second.records(telling(watch.EventReapFailed)); len(failed) > 0 {
							t.Errorf("%d attempts failed, the first: %v", len(failed), failed[0])
						}
						if code := second.stop(); code != exitDone {
							t.Errorf("exit code %d, want %d", code, exitDone)
						}
					} else {
						rows := rowsOf(t, e, "--once")
						for id := range left {
							if got := rows[id].Result; got != resultReaped {
								t.Errorf("--once says %q of %.12s, want %q", got, id, resultReaped)
							}
						}
						if cases := casesOf(t); len(cases) > 0 {
							t.Errorf("--once leaves on record: %v", cases)
						}
					}
					for _, id := range ids {
						if e.Exists(t, id) {
							t.Errorf("%.12s was begun and not finished", id)
						}
					}
					if after := lifeOf(t, e, kept); after != before {
						t.Errorf("the container of a living owner was touched: %+v, was %+v", after, before)
					}
				})
			}
		}
	}
}

// atBoundary checks that a crash came where it should, and returns what is left to do: containers that exist or that
// are on record.
func atBoundary(t *testing.T, e *dockertest.Engine, at reap.Boundary, ids []string) map[string]bool {
	t.Helper()
	cases := casesOf(t)
	left := map[string]bool{}
	running, there := 0, 0
	for _, id := range ids {
		c, exists := e.Inspect(t, id)
		_, recorded := cases[id]
		if exists || recorded {
			left[id] = true
		}
		if exists {
			there++
		}
		if exists && c.State.Running {
			running++
		}
	}
	var ok bool
	switch at {
	case reap.BoundaryStopped:
		// One was signalled, of which the engine may not have heard yet; nothing was written and nothing removed.
		ok = len(cases) == 0 && there == len(ids) && running >= len(ids)-1
	case reap.BoundaryRecorded:
		ok = len(cases) == 1 && there == len(ids)
	case reap.BoundaryRemoved:
		// The engine's event may have come before its answer to us, and closed the case.
		ok = there < len(ids)
	case reap.BoundaryClosed:
		ok = there < len(ids) && len(left) < len(ids)
	}
	if !ok {
		t.Errorf("killed when %d of %d containers existed, %d ran, %d were on record: that is not at %q", there, len(ids), running, len(cases), at)
	}
	return left
}

// A daemon that is killed again and again comes as far as it can each time.
func TestKilledAtOneBoundaryAfterTheOther(t *testing.T) {
	e := dockertest.Shared(t)
	owner, neighbour := processtest.StartOwner(t), processtest.StartOwner(t)
	id := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
	kept := e.Run(t, dockertest.ContainerOptions{Labels: ownedBy(neighbour.Label())})
	before := lifeOf(t, e, kept)
	owner.Kill()
	owner.Wait()
	for _, at := range []reap.Boundary{reap.BoundaryStopped, reap.BoundaryRecorded, reap.BoundaryRemoved} {
		startCrashing(t, e, at).crashed()
	}
	e.WaitGone(t, id)
	startDaemon(t, e).stop()
	if cases := casesOf(t); len(cases) > 0 {
		t.Errorf("still on record: %v", cases)
	}
	if after := lifeOf(t, e, kept); after != before {
		t.Errorf("the container of a living owner was touched: %+v, was %+v", after, before)
	}
}

// A record names the container by its full ID. Who has its name by now is somebody else.
func TestANameIsTakenAgainAfterACrash(t *testing.T) {
	e := dockertest.Shared(t)
	owner, neighbour := processtest.StartOwner(t), processtest.StartOwner(t)
	first := startCrashing(t, e, reap.BoundaryRemoved)
	id := e.Run(t, dockertest.ContainerOptions{Name: "worker-1", Labels: ownedBy(owner.Label())})
	first.knows(id)
	owner.Kill()
	first.crashed()
	again := e.Run(t, dockertest.ContainerOptions{Name: "worker-1", Labels: ownedBy(neighbour.Label())})
	before := lifeOf(t, e, again)
	second := startDaemon(t, e)
	second.knows(again)
	await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
	if after := lifeOf(t, e, again); after != before {
		t.Errorf("the container that has the name now was touched: %+v, was %+v", after, before)
	}
}
