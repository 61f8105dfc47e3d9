package reap_test

import (
	"sync"
	"testing"

	"watcher/reap"
	"watcher/watch"
)

// Many senders, one reader: nothing is lost, and what one sender posts keeps its order.
func TestInboxLosesNothing(t *testing.T) {
	const senders, each = 8, 500
	inbox := reap.NewInbox()
	var sending sync.WaitGroup
	for sender := range senders {
		sending.Go(func() {
			for n := range each {
				inbox.Post(watch.ScanEnded{Failed: sender*each + n}, watch.ScanBegun{})
			}
		})
	}
	next := make([]int, senders)
	for got := 0; got < 2*senders*each; {
		<-inbox.Ready()
		events := inbox.Take()
		got += len(events)
		for i, ev := range events {
			ended, ok := ev.(watch.ScanEnded)
			if !ok {
				continue
			}
			if i+1 == len(events) || events[i+1] != (watch.ScanBegun{}) {
				t.Fatal("what was posted together is not read together")
			}
			sender, n := ended.Failed/each, ended.Failed%each
			if n != next[sender] {
				t.Fatalf("sender %d: event %d comes where %d should", sender, n, next[sender])
			}
			next[sender]++
		}
	}
	sending.Wait()
	if left := inbox.Take(); len(left) > 0 {
		t.Errorf("%d events too many", len(left))
	}
}

func TestInboxWakesItsReader(t *testing.T) {
	inbox := reap.NewInbox()
	ready := func() bool {
		select {
		case <-inbox.Ready():
			return true
		default:
			return false
		}
	}
	if ready() {
		t.Error("ready, with nothing in it")
	}
	inbox.Post(watch.ScanBegun{})
	inbox.Post(watch.ScanBegun{}) // does not block, though nobody reads
	if !ready() || ready() {
		t.Error("two posts wake other than once")
	}
	if got := len(inbox.Take()); got != 2 {
		t.Errorf("%d events", got)
	}
	inbox.Post(watch.ScanBegun{})
	if !ready() {
		t.Error("a post after a take does not wake")
	}
}
