package main

import (
	"fmt"
	"syscall"
	"testing"

	"watcher/platform/firecracker/firecrackertest"
	"watcher/reap"
	"watcher/watch"
)

// kill runs watcher kill on the host, without a question.
func (h *vmHost) kill(args ...string) result {
	h.Helper()
	return on(h, h.e, append([]string{"kill", "--force", "--config", h.config}, args...)...)
}

// A live runner cleans up after its microVM; after one that nobody looks after, each part is removed and told.
func TestKillOfMicroVMs(t *testing.T) {
	h := newVMHost(t)
	h.neighbour()
	managed := h.runner().start(firecrackertest.Direct)
	wantKilled(t, h.kill(managed.ID), "ok    kill firecracker ", "("+managed.ID+")", "left to its runner")
	await(t, "the microVM of a live runner is stopped", func() bool { return !managed.lives() })
	if left := managed.traces(); len(left) == 0 {
		t.Error("what a live runner's microVM leaves was removed")
	}

	for _, chain := range everyChain {
		r := h.runner()
		g := r.start(chain)
		r.Kill()
		said := h.kill(g.ID)
		wantKilled(t, said, "ok    kill firecracker ", "ok    remove workspace", "ok    remove firecracker ", "("+g.ID+")")
		h.gone(g)
	}
	r := h.runner()
	first, second := r.start(firecrackertest.Direct), r.start(firecrackertest.Older)
	r.Kill()
	wantRefused(t, h.kill("--rule", "nobody"), exitFailed, "nobody")
	h.untouched()
	wantKilled(t, h.kill(first.ID), "ok    remove workspace")
	h.gone(first)
	if !second.lives() {
		t.Error("another of the same runner was killed, too")
	}
	wantKilled(t, h.kill(second.ID))
	h.gone(second)
	h.untouched()
}

// A kill is killed at each boundary. The process is the evidence: when it is gone, the record alone tells what is left to do.
func TestVMKillIsKilled(t *testing.T) {
	for _, at := range []reap.Boundary{reap.BoundaryRecorded, reap.BoundaryStopped, reap.BoundaryRemoved} {
		for _, finisher := range []string{"--once", "daemon"} {
			t.Run(fmt.Sprintf("%s/%s", at, finisher), func(t *testing.T) { // short names: the path of a socket is in it
				h := newVMHost(t)
				h.neighbour()
				r := h.runner()
				g := r.start(firecrackertest.Fresh)
				r.Kill()
				cmd := program(t, "kill", g.ID, "--force", "--config", h.config, "--docker-host", h.e.Host())
				cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s/1", crashAt, at))
				_ = cmd.Run()
				if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
					t.Fatalf("kill ended with %v, want a SIGKILL", cmd.ProcessState)
				}
				cases := casesOf(t)
				if len(cases) != 1 {
					t.Errorf("on record: %v", cases)
				}
				for _, c := range cases {
					if c.Reason != reap.Operator || c.Name != g.ID || len(c.Leaves) == 0 {
						t.Errorf("on record: %+v", c)
					}
				}
				if finisher == "--once" {
					if rows, said := h.say("--once"); said.code != exitDone || rows[g.ID].Reason != reap.Operator || rows[g.ID].Result != resultReaped {
						t.Errorf("--once exits %d and says %+v: %s", said.code, rows[g.ID], said.stderr)
					}
				} else {
					h.watch()
					if got := h.told(watch.EventReaped, g).text(watch.KeyReason); got != string(reap.Operator) {
						t.Errorf("reason %q, want %q", got, reap.Operator)
					}
					await(t, "the docket is empty", func() bool { return len(casesOf(t)) == 0 })
				}
				h.gone(g)
				h.untouched()
				if cases := casesOf(t); len(cases) > 0 {
					t.Errorf("left on record: %v", cases)
				}
			})
		}
	}
}
