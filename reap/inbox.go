package reap

import (
	"sync"

	"watcher/watch"
)

// An Inbox takes events from any number of goroutines and hands them to the one that owns the picture. It never blocks
// a sender and never drops a fact. What it can hold is bounded by what happens to the sandboxes that are watched:
// sources leave out everything else. The zero Inbox is not usable; see [NewInbox].
type Inbox struct {
	mu     sync.Mutex
	events []watch.Event
	ready  chan struct{}
}

// NewInbox returns an empty inbox.
func NewInbox() *Inbox { return &Inbox{ready: make(chan struct{}, 1)} }

// Post adds events, which will be read together. It is safe for concurrent use.
func (b *Inbox) Post(events ...watch.Event) {
	b.mu.Lock()
	b.events = append(b.events, events...)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// Ready yields a value when there may be something to take.
func (b *Inbox) Ready() <-chan struct{} { return b.ready }

// Take returns all events posted since the last call, in order.
func (b *Inbox) Take() []watch.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events = nil
	return events
}
