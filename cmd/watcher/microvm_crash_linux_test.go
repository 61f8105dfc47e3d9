package main

import (
	"testing"

	"watcher/platform/firecracker/firecrackertest"
	"watcher/reap"
	"watcher/watch"
)

// Invariants R5 and R8, where the process that was killed was the only evidence: wherever a daemon is killed, whoever comes next
// finishes what it began, the network and the rules of what is dead included, and harms nobody.
func TestMicroVMsThroughACrash(t *testing.T) {
	for _, at := range []reap.Boundary{reap.BoundaryJotted, reap.BoundaryStopped, reap.BoundaryRecorded, reap.BoundaryRemoved, reap.BoundaryClosed} {
		for _, finisher := range []string{"daemon", "once"} {
			t.Run(string(at)+"/"+finisher, func(t *testing.T) {
				h := newVMHost(t)
				h.keep(h.runner().start(firecrackertest.Direct))
				r := h.runner()
				left := []*guest{r.start(firecrackertest.Fresh), r.start(firecrackertest.Direct)}
				h.d = startCrashing(t, h.e, at, "--config", h.config)
				h.judged(reap.Managed, append(left, h.kept...)...)
				r.Kill()
				h.d.crashed()

				cases, living := casesOf(t), 0
				for _, g := range left {
					if g.lives() {
						living++
					}
				}
				ok := map[reap.Boundary]bool{
					reap.BoundaryJotted:   len(cases) > 0 && living == 2,
					reap.BoundaryStopped:  len(cases) > 0, // the other's note may be under way
					reap.BoundaryRecorded: len(cases) == 2,
					reap.BoundaryRemoved:  len(cases) > 0,
					reap.BoundaryClosed:   len(cases) < 2,
				}
				if !ok[at] {
					t.Errorf("killed when %d were on record and %d lived: that is not at %q", len(cases), living, at)
				}
				if finisher == "once" {
					if _, r := h.say("--once"); r.code != exitDone {
						t.Errorf("--once exits %d: %s", r.code, r.stderr)
					}
				} else {
					h.watch()
					for id := range cases {
						h.d.event(watch.EventReaped, id)
					}
					await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
					h.barrier()
					noFailures(t, h.d)
				}
				h.gone(left...)
				h.untouched()
				if cases := casesOf(t); len(cases) > 0 {
					t.Errorf("left on record: %v", cases)
				}
			})
		}
	}
}
