package process_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/watch"
)

// crowd is how many processes the host has beside its own.
const crowd = 1000

// gather starts a crowd that ends with the benchmark.
func gather(b *testing.B) {
	b.Helper()
	// One shell with that many children: all of them end when it closes the pipe that they read from.
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt "+strconv.Itoa(crowd)+" ]; do sleep 1000000 & i=$((i+1)); done; echo; read line; kill $(jobs -p)")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // its group, for as long as we have not waited for it
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCensus compares complete looks with the least that one could do: list /proc and read the stat of each.
func BenchmarkCensus(b *testing.B) {
	gather(b)
	host, err := process.NewHost("/proc")
	if err != nil {
		b.Fatal(err)
	}
	var floor time.Duration
	b.Run("floor", func(b *testing.B) {
		for b.Loop() {
			statAll(b)
		}
		floor = b.Elapsed() / time.Duration(b.N)
	})
	for _, n := range []int{0, 1, 2, 10} {
		b.Run(fmt.Sprintf("programs=%d", n), func(b *testing.B) {
			var texts []string
			for i := range n {
				texts = append(texts, fmt.Sprintf("agent-%d", i))
			}
			c := process.NewCensus(host, func(...watch.Event) {})
			defer c.Close()
			c.Follow(parsed(b, texts...))
			for b.Loop() {
				if _, err := c.List(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(floor), "of-floor")
		})
	}
}

func statAll(b *testing.B) {
	b.Helper()
	proc, err := os.Open("/proc")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = proc.Close() }()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		b.Fatal(err)
	}
	buffer := make([]byte, 4096)
	for _, name := range names {
		if strings.Trim(name, "0123456789") != "" {
			continue
		}
		fd, err := unix.Openat(int(proc.Fd()), name+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		_, _ = unix.Read(fd, buffer)
		_ = unix.Close(fd)
	}
}
