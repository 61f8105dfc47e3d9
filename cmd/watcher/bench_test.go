package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// BenchmarkReap measures, for one owner after the other, the time from the owner's death to its container's code stopped
// and to the container gone; and in turn with that, on the same engine, what docker rm -f takes for the same container.
func BenchmarkReap(b *testing.B) {
	e := dockertest.Shared(b)
	d := startDaemon(b, e)
	var stopped, gone, bare []time.Duration
	for b.Loop() {
		owner := processtest.StartOwner(b)
		id := e.Run(b, dockertest.ContainerOptions{Labels: ownedBy(owner.Label())})
		d.knows(id)
		// The daemon follows events in order, so when it knows a later container it holds the init of this one.
		marker := e.Run(b, dockertest.ContainerOptions{Labels: ownedBy("1"), NotStarted: true})
		d.knows(marker)
		owner.Kill()
		r := d.event(watch.EventReaped, id)
		stop, ok := r.micros(watch.KeyStopUS)
		if !ok {
			b.Fatalf("the stop was not measured: %v", r)
		}
		all, _ := r.micros(watch.KeyGoneUS)
		stopped, gone = append(stopped, stop), append(gone, all)

		id = e.Run(b, dockertest.ContainerOptions{})
		rm := exec.Command("docker", "rm", "-f", id)
		rm.Env = append(os.Environ(), "DOCKER_HOST="+e.Host())
		begin := time.Now()
		if out, err := rm.CombinedOutput(); err != nil {
			b.Fatalf("docker rm -f: %v: %s", err, out)
		}
		bare = append(bare, time.Since(begin))
		if err := e.Client().ContainerRemove(b.Context(), marker, forced); err != nil {
			b.Fatal(err)
		}
	}
	floor := percentile(bare, 50)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n%d reaps\tp50\tp99\tp50 / docker rm -f\t\n", len(stopped))
	for _, line := range []struct {
		name  string
		times []time.Duration
	}{{"owner dead → code stopped (stop_us)", stopped}, {"owner dead → all gone (gone_us)", gone}, {"docker rm -f", bare}} {
		p50 := percentile(line.times, 50)
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t\n", line.name, p50.Round(10*time.Microsecond), percentile(line.times, 99).Round(10*time.Microsecond), float64(p50)/float64(floor))
	}
	w.Flush()
}

func percentile(times []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}
