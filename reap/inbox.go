package reap

import (
	"sync"

	"watcher/watch"
)

// A mailbox takes values from any number of goroutines and hands them to one. It never blocks a sender and never drops
// a value.
type mailbox[T any] struct {
	mu     sync.Mutex
	values []T
	ready  chan struct{}
}

func newMailbox[T any]() *mailbox[T] { return &mailbox[T]{ready: make(chan struct{}, 1)} }

// Post adds values, which will be read together. It is safe for concurrent use.
func (b *mailbox[T]) Post(values ...T) {
	b.mu.Lock()
	b.values = append(b.values, values...)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// Ready yields a value when there may be something to take.
func (b *mailbox[T]) Ready() <-chan struct{} { return b.ready }

// Take returns all values posted since the last call, in order.
func (b *mailbox[T]) Take() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	values := b.values
	b.values = nil
	return values
}

// An Inbox is the mailbox of the goroutine that owns the picture. What it can hold is bounded by what happens to the
// sandboxes that are watched: sources leave out everything else. Create it with [NewInbox].
type Inbox struct{ *mailbox[watch.Event] }

// NewInbox returns an empty inbox.
func NewInbox() *Inbox { return &Inbox{newMailbox[watch.Event]()} }
