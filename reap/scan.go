package reap

import (
	"context"
	"sync/atomic"
	"time"

	"watcher/watch"
)

// A Lister lists all sandboxes of its kind. A list that is not whole is an error (W5).
type Lister interface {
	Kind() watch.Kind
	// List returns a complete list as a [watch.Listed], and behind it whatever else it learnt on the way.
	List(ctx context.Context) ([]watch.Event, error)
}

// listTimeout is how long one list may take before it counts as failed. An engine with 1,000 containers answers in
// 0.15 s; one that needs two hundred times that is hung.
const listTimeout = 30 * time.Second

// A Scanner asks for full lists: at intervals, behind everything that events may have missed, and whenever it is poked.
type Scanner struct {
	Listers []Lister // asked in this order
	Inbox   *Inbox

	interval atomic.Int64
	poke     chan struct{}
}

// NewScanner returns a scanner that has not scanned yet.
func NewScanner(inbox *Inbox, interval time.Duration, listers ...Lister) *Scanner {
	s := &Scanner{Listers: listers, Inbox: inbox, poke: make(chan struct{}, 1)}
	s.interval.Store(int64(interval))
	return s
}

// SetInterval changes the interval and asks for a scan now. It is safe for concurrent use.
func (s *Scanner) SetInterval(d time.Duration) {
	s.interval.Store(int64(d))
	s.Poke()
}

// Poke asks for a scan now. Pokes that come while one is pending are the same poke. It is safe for concurrent use.
func (s *Scanner) Poke() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Run scans at intervals and at pokes until ctx ends.
func (s *Scanner) Run(ctx context.Context) error {
	ticker := time.NewTicker(time.Duration(s.interval.Load()))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		case <-s.poke:
		}
		s.Scan(ctx)
		ticker.Reset(time.Duration(s.interval.Load()))
	}
}

// Scan asks every lister once and posts what they say.
func (s *Scanner) Scan(ctx context.Context) {
	s.Inbox.Post(watch.ScanBegun{At: time.Now()})
	failed := 0
	for _, l := range s.Listers {
		ctx, cancel := context.WithTimeout(ctx, listTimeout)
		events, err := l.List(ctx)
		cancel()
		if err != nil {
			failed++
			events = []watch.Event{watch.ListFailed{Kind: l.Kind(), At: time.Now(), Err: err}}
		}
		s.Inbox.Post(events...)
	}
	s.Inbox.Post(watch.ScanEnded{At: time.Now(), Failed: failed})
}
