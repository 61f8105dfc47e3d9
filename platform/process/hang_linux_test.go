package process_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
)

// TestAProcessThatHangs: whoever reads the arguments of a process whose memory does not answer hangs, and nobody else does. When it
// answers it is looked at again.
func TestAProcessThatHangs(t *testing.T) {
	needPidfds(t)
	m := newMock(t)
	o, other := processtest.StartOwner(t), processtest.StartOwner(t)
	m.real(other.PID())
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.PID()))
	if err != nil {
		t.Fatal(err)
	}
	m.add(o.PID(), file{name: "exe", content: "/bin/other", kind: link}, file{name: "stat", content: string(stat)},
		file{name: "cmdline", kind: fifo})
	fifo := filepath.Join(m.root, strconv.Itoa(o.PID()), "cmdline")
	nobody := func(string, []string) bool { return false }
	if _, err := m.host.Sight(o.PID()); !errors.Is(err, process.ErrUnreadable) {
		t.Errorf("Sight = %v, want %v", err, process.ErrUnreadable)
	}
	begun := time.Now()
	if _, err := m.host.Sight(o.PID()); !errors.Is(err, process.ErrUnreadable) || time.Since(begun) > time.Second {
		t.Errorf("Sight = %v after %v, want %v at once", err, time.Since(begun), process.ErrUnreadable)
	}
	if _, err := m.host.Find(t.Context(), nobody); !errors.Is(err, process.ErrUnreadable) {
		t.Errorf("Find = %v, want %v", err, process.ErrUnreadable)
	}
	s, err := m.host.Sight(other.PID())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()

	// It answers, and hangs again in a look at all.
	stuck := reader(t, fifo)
	if err := stuck.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	ended := make(chan error, 1)
	go func() {
		for {
			_, err := m.host.Find(ctx, nobody)
			if errors.Is(err, process.ErrUnreadable) && ctx.Err() == nil {
				continue // the look that hung is about to end
			}
			ended <- err
			return
		}
	}()
	stuck = reader(t, fifo)
	cancel(reason)
	if err := receive(t, ended); !errors.Is(err, reason) {
		t.Errorf("Find = %v, want %v", err, reason)
	}
	if err := errors.Join(os.Remove(fifo), stuck.Close()); err != nil {
		t.Fatal(err)
	}
}
