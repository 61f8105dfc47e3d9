package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/firecracker/firecrackertest"
	"watcher/reap"
	"watcher/watch"
)

// microVMRounds is how often TestFiftyMicroVMs does it, and that a table is wanted of each chain.
const microVMRounds = "WATCHER_MICROVM_ROUNDS"

// A runner with 50 microVMs is killed: how long until the last of them is dead, and until nothing is left of any? The floor is what
// it takes to kill as many by pidfds that are held, in the same run.
func TestFiftyMicroVMs(t *testing.T) {
	const n = 50
	rounds, chains := 1, []firecrackertest.Chain{firecrackertest.Direct}
	if text := os.Getenv(microVMRounds); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
		chains = append(chains, firecrackertest.Fresh)
	}
	h := newVMHost(t)
	h.keep(h.runner().start(firecrackertest.Direct))
	h.watch()
	h.judged(reap.Managed, h.kept...)

	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d microVMs, %d times\tp50\tp99\tmax\tlast of %d, median\tmax\n", n, rounds, n)
	line := func(what string, each []time.Duration) {
		var last []time.Duration
		for round := range slices.Chunk(each, n) {
			last = append(last, slices.Max(round))
		}
		slices.Sort(each)
		slices.Sort(last)
		at := func(all []time.Duration, part float64) time.Duration {
			return all[min(int(part*float64(len(all))), len(all)-1)].Round(10 * time.Microsecond)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", what, at(each, .5), at(each, .99), at(each, 1), at(last, .5), at(last, 1))
	}
	var floor []time.Duration
	for range rounds {
		r := h.mute() // that nobody owns it does not matter: it lives, and its microVMs are killed by us
		many := fifty(h, r, n, firecrackertest.Direct)
		floor = append(floor, many.deaths(t, func() {
			for _, fd := range many.pidfds {
				if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
					t.Fatal(err)
				}
			}
		})...)
		r.Kill()
		h.reaped(many.guests...)
	}
	for _, chain := range chains {
		var stopped, gone []time.Duration
		for range rounds {
			r := h.runner()
			many := fifty(h, r, n, chain)
			stopped = append(stopped, many.deaths(t, func() { r.Signal(unix.SIGKILL) })...)
			h.reaped(many.guests...)
			for _, g := range many.guests {
				d, _ := h.told(watch.EventReaped, g).micros(watch.KeyGoneUS)
				gone = append(gone, d)
			}
			h.untouched()
		}
		line(string(chain)+": its runner was killed, until it is dead", stopped)
		line(string(chain)+": until all of it is removed", gone)
	}
	line("floor: killed by a held pidfd, until it is dead", floor)
	_ = w.Flush()
	t.Log("\n" + b.String())
	noFailures(t, h.d)
}

// many are microVMs of one runner, held.
type many struct {
	guests []*guest
	pidfds []int
}

// fifty has a runner start n microVMs.
func fifty(h *vmHost, r *vmRunner, n int, chain firecrackertest.Chain) *many {
	h.Helper()
	var vms []*firecrackertest.VM
	var waits []func()
	for range n {
		spawn := firecrackertest.Spawn{Chain: chain}
		if chain == firecrackertest.Fresh {
			spawn.Netns = r.Netns()
			h.iptables("-A", h.rules(), "-m", "comment", "--comment", spawn.Netns, "-j", "RETURN")
		}
		vm, wait := r.StartOnly(spawn)
		vms, waits = append(vms, vm), append(waits, wait)
	}
	m := &many{}
	for i, vm := range vms {
		waits[i]()
		fd, err := unix.PidfdOpen(vm.PID, 0)
		if err != nil {
			h.Fatal(err)
		}
		h.Cleanup(func() { _ = unix.Close(fd) })
		m.guests, m.pidfds = append(m.guests, h.guest(vm)), append(m.pidfds, fd)
	}
	h.judged(reap.Managed, m.guests...)
	return m
}

// deaths is how long after the kill each of them was dead.
func (m *many) deaths(t *testing.T, kill func()) []time.Duration {
	t.Helper()
	ends := make([]time.Time, len(m.pidfds))
	var all sync.WaitGroup
	for i, fd := range m.pidfds {
		all.Go(func() {
			// A thread each, as it is the moment that counts.
			for fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}; ; {
				if n, err := unix.Poll(fds, int(patience.Milliseconds())); n == 1 || err != unix.EINTR {
					break
				}
			}
			ends[i] = time.Now()
		})
	}
	at := time.Now()
	kill()
	all.Wait()
	took := make([]time.Duration, len(ends))
	for i, end := range ends {
		took[i] = end.Sub(at)
	}
	return took
}
