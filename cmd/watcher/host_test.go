package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// How many containers each of the two owners of the crowd has. make crowd asks for 500.
const crowdSize = "WATCHER_CROWD_N"

const smallCrowd = 25

// TestCrowd is a host full of sandboxes: those of an owner that dies all go, and of those of one that lives none. Half of
// them name their owner, of the others a rule says of which program it is.
func TestCrowd(t *testing.T) {
	n := int(chaosNumber(t, crowdSize, smallCrowd))
	c := &crowd{
		t: t, e: dockertest.Start(t), byID: map[string]*inhabitant{},
		deadline: time.Now().Add(3*time.Minute + time.Duration(4*n)*time.Second),
	}
	// So that the brake has something to do in a small crowd, too.
	burst := min(defaults().Brake.Burst, n/4)
	fmt.Fprintf(&c.rules, "[brake]\nburst = %d\n", burst)
	dies, lives := c.owner("crowd-dies"), c.owner("crowd-lives")
	d := startDaemon(t, c.e, "--config", configFile(t, c.rules.String()))
	begin := time.Now()
	c.populate(n, dies, lives)
	c.table("%d containers made in %s", len(c.all), time.Since(begin).Round(time.Second))
	c.await("the daemon knows the owner of each", func() bool {
		known := map[string]bool{}
		for _, r := range d.records(func(r record) bool { return r.text(watch.KeyReason) == string(reap.OwnerAlive) }) {
			known[r.text(watch.KeyID)] = true
		}
		return len(known) >= len(c.all)
	})
	// The daemon follows events in order, so when it knows a later container it holds the init of each.
	d.knows(c.e.Run(t, dockertest.ContainerOptions{Labels: ownedBy("1"), NotStarted: true}))
	c.table("watcher's CPU time so far: %s", c.cpu(d))
	c.list()

	stop := c.observe()
	defer stop()
	before := c.cpu(d)
	died := time.Now()
	dies.Kill()
	c.await("all code of the dead owner is stopped", func() bool { return c.count(dies, func(i *inhabitant) bool { return i.stopped.IsZero() }) == 0 })
	c.await("all containers of the dead owner are gone", func() bool { return c.count(dies, func(i *inhabitant) bool { return i.gone.IsZero() }) == 0 })
	c.await("the daemon has told so", func() bool { return len(d.records(telling(watch.EventReaped))) >= n })
	used := c.cpu(d) - before

	// Whoever lives was not touched.
	running, err := c.e.Client().ContainerList(t.Context(), container.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	kept := map[string]bool{}
	for _, line := range running {
		kept[line.ID] = true
	}
	for id, i := range c.byID {
		if i.owner == lives && (!kept[id] || !i.stopped.IsZero() || !i.gone.IsZero()) {
			t.Errorf("a container of the living owner was touched: %.12s %+v", id, i)
		}
	}
	c.mu.Unlock()
	if failed := d.records(telling(watch.EventReapFailed)); len(failed) > 0 {
		t.Errorf("%d attempts failed, the first: %v", len(failed), failed[0])
	}
	braked := 0
	for _, r := range d.records(func(r record) bool { return r.text(watch.KeyEvent) == watch.EventHeld && r["burst"] != nil }) {
		told, _ := r[watch.KeySandboxes].(float64)
		braked += int(told)
	}
	// Not all of those that are inferred: the youngest may be within the grace anyway.
	if braked <= burst {
		t.Errorf("%d were looked at a second time, want more than the burst of %d", braked, burst)
	}
	c.table("looked at a second time by the brake, whose burst is %d: %d", burst, braked)
	c.table("watcher's CPU time from the death to the last removal: %s", used)
	if code := d.stop(); code != exitDone {
		t.Errorf("exit code %d, want %d", code, exitDone)
	}
	c.print(dies, died, n)
}

// A crowd is the containers of two owners.
type crowd struct {
	t        *testing.T
	e        *dockertest.Engine
	deadline time.Time
	rules    strings.Builder
	notes    []string

	mu   sync.Mutex
	all  []*inhabitant
	byID map[string]*inhabitant
}

type inhabitant struct {
	owner    *processtest.Owner
	labelled bool // by its own label and not by a rule
	init     int  // a pidfd
	stopped  time.Time
	gone     time.Time
}

// owner starts a process of a program of its own, and makes a rule for what it may own.
func (c *crowd) owner(name string) *processtest.Owner {
	c.t.Helper()
	path := processtest.Program(c.t, name)
	fmt.Fprintf(&c.rules, "[[rule]]\nname = %q\nmatch = { labels = [\"crowd=%s\"] }\nowner = { process = %q }\n", name, name, path)
	return processtest.StartProgram(c.t, path, name)
}

// populate makes n running containers of each owner.
func (c *crowd) populate(n int, owners ...*processtest.Owner) {
	c.t.Helper()
	c.e.Image(c.t)
	ctx, cancel := context.WithDeadline(c.t.Context(), c.deadline)
	defer cancel()
	names := []string{"crowd-dies", "crowd-lives"}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(4) // as many as keep the engine busy
	for k := range 2 * n {
		i := &inhabitant{owner: owners[k%2], labelled: k/2%2 == 0}
		labels := map[string]string{"crowd": names[k%2]}
		if i.labelled {
			labels = ownedBy(i.owner.Label())
		}
		work.Go(func() error {
			id, err := c.e.Create(ctx, dockertest.ContainerOptions{Labels: labels})
			if err != nil {
				return err
			}
			full, err := c.e.Client().ContainerInspect(ctx, id)
			if err != nil {
				return err
			}
			if i.init, err = unix.PidfdOpen(full.State.Pid, unix.PIDFD_NONBLOCK); err != nil {
				return fmt.Errorf("container %.12s: %w", id, err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.all, c.byID[id] = append(c.all, i), i
			return nil
		})
	}
	err := work.Wait()
	c.t.Cleanup(func() {
		for _, i := range c.all {
			_ = unix.Close(i.init)
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// observe notes when the first process of each container dies, and when the engine has removed it.
func (c *crowd) observe() (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	messages, errs := c.e.Client().Events(ctx, events.ListOptions{
		Filters: filters.NewArgs(filters.Arg("event", string(events.ActionDestroy))),
	})
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		c.t.Fatal(err)
	}
	for k, i := range c.all {
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, i.init, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(k)}); err != nil {
			c.t.Fatal(err)
		}
	}
	var both sync.WaitGroup
	both.Go(func() {
		dead := make([]unix.EpollEvent, 64)
		for ctx.Err() == nil {
			n, err := unix.EpollWait(poll, dead, 100)
			now := time.Now()
			if err != nil && !errors.Is(err, unix.EINTR) {
				c.t.Errorf("wait for deaths: %v", err)
				return
			}
			c.mu.Lock()
			for _, ev := range dead[:max(n, 0)] {
				i := c.all[ev.Fd]
				i.stopped = now
				_ = unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, i.init, nil)
			}
			c.mu.Unlock()
		}
	})
	both.Go(func() {
		for {
			select {
			case m := <-messages:
				c.mu.Lock()
				if i := c.byID[m.Actor.ID]; i != nil {
					i.gone = time.Unix(0, m.TimeNano)
				}
				c.mu.Unlock()
			case err := <-errs:
				if ctx.Err() == nil {
					c.t.Errorf("events of the engine: %v", err)
				}
				return
			}
		}
	})
	return func() {
		cancel()
		both.Wait()
		_ = unix.Close(poll)
	}
}

func (c *crowd) count(owner *processtest.Owner, matches func(*inhabitant) bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.all {
		if i.owner == owner && matches(i) {
			n++
		}
	}
	return n
}

func (c *crowd) await(what string, holds func() bool) {
	c.t.Helper()
	beat := time.NewTicker(50 * time.Millisecond)
	defer beat.Stop()
	for !holds() {
		if time.Now().After(c.deadline) {
			c.t.Fatalf("not in time: %s", what)
		}
		<-beat.C
	}
}

// cpu is what the daemon has used so far.
func (c *crowd) cpu(d *daemon) time.Duration {
	c.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ticks := 0
	for _, field := range fields[14-3 : 16-3] { // utime and stime (proc_pid_stat(5))
		n, err := strconv.Atoi(field)
		if err != nil {
			c.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// list measures watcher list, which looks at everything once.
func (c *crowd) list() {
	c.t.Helper()
	var times []time.Duration
	for range 5 {
		begin := time.Now()
		rows := rowsOf(c.t, c.e, "list", "--config", configFile(c.t, c.rules.String()))
		times = append(times, time.Since(begin))
		if len(rows) < len(c.all) {
			c.t.Errorf("list shows %d of %d containers", len(rows), len(c.all))
		}
		for id, r := range rows {
			if c.byID[id] != nil && r.Reason != reap.OwnerAlive {
				c.t.Errorf("list says %+v of a container whose owner lives", r)
			}
		}
	}
	c.table("watcher list of them: %s (median of %d)", percentile(times, 50).Round(time.Millisecond), len(times))
}

func (c *crowd) table(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

func (c *crowd) print(dead *processtest.Owner, died time.Time, n int) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d containers of a dead owner, and %d of a living one\tnumber\tp50\tp99\tmax\t\n", n, n)
	for _, line := range []struct {
		what string
		of   func(*inhabitant) (time.Time, bool)
	}{
		{"owner dead → code stopped, named by a label", func(i *inhabitant) (time.Time, bool) { return i.stopped, i.labelled }},
		{"owner dead → code stopped, inferred by a rule", func(i *inhabitant) (time.Time, bool) { return i.stopped, !i.labelled }},
		{"owner dead → removed, named by a label", func(i *inhabitant) (time.Time, bool) { return i.gone, i.labelled }},
		{"owner dead → removed, inferred by a rule", func(i *inhabitant) (time.Time, bool) { return i.gone, !i.labelled }},
	} {
		var times []time.Duration
		c.mu.Lock()
		for _, i := range c.all {
			if at, is := line.of(i); is && i.owner == dead {
				times = append(times, at.Sub(died))
			}
		}
		c.mu.Unlock()
		if len(times) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%d", line.what, len(times))
		for _, d := range []time.Duration{percentile(times, 50), percentile(times, 99), slices.Max(times)} {
			fmt.Fprintf(w, "\t%s", d.Round(100*time.Microsecond))
		}
		fmt.Fprint(w, "\t\n")
	}
	_ = w.Flush()
	for _, note := range c.notes {
		fmt.Fprintln(&b, note)
	}
	c.t.Logf("\n%s", b.String())
}
