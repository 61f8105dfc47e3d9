package process_test

import (
	"os/exec"
	"testing"
	"time"
)

// TestTicks: who is born after the ticks were read has a greater start time, unless it was in the same tick.
func TestTicks(t *testing.T) {
	needPidfds(t)
	h := newHost(t)
	ticks := func() uint64 {
		now, err := h.Ticks()
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	before := ticks()
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for ticks() == before {
		<-beat.C
	}
	cmd := exec.Command("cat") // which waits for its standard input to end
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	}()
	child := open(t, cmd.Process.Pid)
	defer child.Close()
	if start, after := child.Process().Start, ticks(); start <= before || start > after {
		t.Errorf("a process that was born between ticks %d and %d started at %d", before, after, start)
	}
}
