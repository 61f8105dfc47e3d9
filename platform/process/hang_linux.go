package process

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// The arguments of a process are in its memory. While that cannot be had, as with a file system that hangs, or that its user has
// hang, neither can they, and whoever reads them hangs as well. Nobody who waits for him may.
const hangTime = 2 * time.Second // how long a look at one process may take

// errHangs says that a process could not be looked at in time.
var errHangs = errors.New("its memory does not answer")

// bounded calls f, which notes at which process it is, and waits for it until ctx ends. Then late is given its result when it
// comes, and nobody else looks at that process until then.
func bounded[T any](ctx context.Context, h *Host, f func(at *atomic.Int64) (T, error), late func(T)) (T, error) {
	type answer struct {
		result T
		err    error
	}
	var none T
	select {
	case <-ctx.Done():
		return none, context.Cause(ctx)
	default:
	}
	select {
	case h.reading <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("%w: too many looks hang", ErrUnreadable)
	}
	at, answers, abandoned := new(atomic.Int64), make(chan answer), make(chan int, 1)
	go func() {
		result, err := f(at)
		<-h.reading
		select {
		case answers <- answer{result, err}:
		case pid := <-abandoned:
			h.hanging.Delete(pid)
			if err == nil {
				late(result)
			}
		}
	}()
	select {
	case a := <-answers:
		return a.result, a.err
	case <-ctx.Done():
		pid := int(at.Load())
		h.hanging.Store(pid, struct{}{})
		abandoned <- pid
		return none, fmt.Errorf("at process %d: %w: %w: %w", pid, ErrUnreadable, errHangs, context.Cause(ctx))
	}
}

// within bounds a look at one process.
func within[T any](h *Host, pid int, f func() (T, error), late func(T)) (T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), hangTime)
	defer cancel()
	return bounded(ctx, h, func(at *atomic.Int64) (T, error) {
		at.Store(int64(pid))
		if err := h.answers(pid); err != nil {
			var none T
			return none, err
		}
		return f()
	}, late)
}

// answers returns an error if a look hangs at a process.
func (h *Host) answers(pid int) error {
	if _, hangs := h.hanging.Load(pid); hangs {
		return unreadable(pid, errHangs)
	}
	return nil
}
