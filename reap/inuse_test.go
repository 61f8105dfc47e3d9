package reap_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"watcher/watch"
)

// Somebody began to use it between the verdict and the removal. That is no failure, and it is not tried again before a
// look says that nobody uses it any more.
func TestWhatIsInUseIsLetAloneUntilItIsSeenAgain(t *testing.T) {
	used := true
	onStand(t, nil, func(s *stand) {
		s.engine.remove = func(context.Context, string) error {
			if used {
				return fmt.Errorf("remove a: %w", watch.ErrInUse)
			}
			return nil
		}
		a := born("a", labels{"ttl": "1m"}, stopped)
		s.run(a)
		s.pass(time.Minute)
		s.pass(time.Hour)
		if got := s.told().status; got.Failed != 0 || got.Open != 0 || got.Reaped != 0 || got.Sandboxes != 1 {
			t.Fatalf("status %+v", got)
		}
		used = false
		s.inbox.Post(watch.SandboxSeen{Sandbox: a, Asked: time.Now()})
		s.pass(time.Second)
		if got := s.told().status; got.Reaped != 1 || got.Open != 0 || got.Sandboxes != 0 {
			t.Errorf("status %+v", got)
		}
		s.did("1m0s remove a", "1h1m0s remove a")
	})
}
