package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// capacity is how many records wait for a sink. One thousand owners that die at once, the most sandboxes a host is
// built for, make up to three records each (owner-exited, reaped or reap-failed, a retry); they must fit while journald
// is busy rotating. At about 1.5 KiB each a full queue is 6 MiB; idle it takes nothing. Much less and one crash of a
// large host loses the very records that explain it; more only delays the word that some were lost.
const capacity = 4096

// A sink that is away is tried again after retryBase, doubled up to retryCap: a restarting journald is gone for tens of
// milliseconds, and one that is gone for good must not keep the host awake.
const (
	retryBase = 20 * time.Millisecond
	retryCap  = 2 * time.Second
)

// errUnavailable marks the error of a sink that did not take a record and may take it later.
var errUnavailable = errors.New("log sink is not available")

// errClosed is what Handle answers after close.
var errClosed = errors.New("log is closed")

// An UnwrittenError is the error of [Log.Close] when records were left.
type UnwrittenError struct {
	Records uint64 // how many, with those dropped earlier that no record could tell of
	Err     error  // why
}

func (e *UnwrittenError) Error() string {
	return fmt.Sprintf("close log: %d record(s) not written: %v", e.Records, e.Err)
}

func (e *UnwrittenError) Unwrap() error { return e.Err }

// A queue stands between loggers and the one goroutine that writes.
//
// Once full it drops until half of it is written. So the gaps in the log are few, and each is followed by a record that
// says how many are missing there, standing exactly where they would have stood.
type queue struct {
	root     slog.Handler // writes the records about dropped ones
	capacity int
	sink     io.Closer

	wake  chan struct{} // there is something in pending, or closed was set; at most one poke
	abort chan struct{} // closed when waiting is over
	done  chan struct{} // closed when the writer has ended

	shut    sync.Once // for abort and sink
	shutErr error

	mu      sync.Mutex
	pending []entry // handed to the writer as a whole
	queued  int     // records accepted and not yet written, wherever they are
	full    bool    // dropping
	closed  bool
	gap     gap    // dropped, and no notice queued yet
	unsaid  uint64 // dropped, and no notice written yet
	dropped uint64
}

type entry struct {
	handler slog.Handler
	record  slog.Record
	gap     *gap // set in a notice: what it tells of
}

// gap is a number of records that are missing from the log.
type gap struct {
	count  uint64
	levels map[slog.Level]uint64
	since  time.Time
	err    error // why the sink refused the latest, if it did
}

func (g *gap) add(level slog.Level, at time.Time, n uint64) {
	if g.levels == nil {
		g.levels = make(map[slog.Level]uint64)
	}
	if g.count == 0 || at.Before(g.since) {
		g.since = at
	}
	g.count += n
	g.levels[level] += n
}

func (g *gap) merge(other *gap) {
	for level, n := range other.levels {
		g.add(level, other.since, n)
	}
	if g.err == nil {
		g.err = other.err
	}
}

// notice is the record that tells of g. It is never below warn: losing debug records is still a finding.
func (g *gap) notice() slog.Record {
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log records dropped", 0)
	r.AddAttrs(slog.String(keyEvent, EventDropped), slog.Uint64("count", g.count), slog.Time("since", g.since))
	var levels []slog.Attr
	for _, level := range slices.Sorted(maps.Keys(g.levels)) {
		levels = append(levels, slog.Uint64(level.String(), g.levels[level]))
	}
	r.AddAttrs(slog.GroupAttrs("levels", levels...))
	if g.err != nil {
		r.AddAttrs(slog.Any(keyError, g.err))
	}
	return r
}

// newQueue starts the writer. close ends it and closes sink, which must make a write in progress return if that is
// possible at all.
func newQueue(root slog.Handler, capacity int, sink io.Closer) *queue {
	q := &queue{
		root:     root,
		capacity: capacity,
		sink:     sink,
		wake:     make(chan struct{}, 1),
		abort:    make(chan struct{}),
		done:     make(chan struct{}),
	}
	go q.write()
	return q
}

func (q *queue) handler() slog.Handler { return queueHandler{q, q.root} }

func (q *queue) droppedTotal() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// queueHandler is the slog end of a queue. What WithAttrs and WithGroup add is kept by the handler behind.
type queueHandler struct {
	queue *queue
	next  slog.Handler
}

func (h queueHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h queueHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return queueHandler{h.queue, h.next.WithAttrs(resolveAll(attrs))}
}

func (h queueHandler) WithGroup(name string) slog.Handler {
	return queueHandler{h.queue, h.next.WithGroup(name)}
}

// Handle queues the record, or drops and counts it (J1, J2). An error is only possible after close.
func (h queueHandler) Handle(_ context.Context, r slog.Record) error {
	// A record of its own, with nothing shared and nothing left to ask (J3).
	own := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, resolve(a))
		return true
	})
	own.AddAttrs(attrs...)
	return h.queue.put(entry{handler: h.next, record: own})
}

func resolveAll(attrs []slog.Attr) []slog.Attr {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		out[i] = resolve(a)
	}
	return out
}

func resolve(a slog.Attr) slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		a.Value = slog.GroupValue(resolveAll(a.Value.Group())...)
	}
	return a
}

func (q *queue) put(e entry) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosed
	}
	if q.queued >= q.capacity {
		q.full = true
	}
	if q.full {
		q.lose(e, nil)
		return nil
	}
	q.push(e)
	q.queued++
	return nil
}

func (q *queue) push(e entry) {
	q.pending = append(q.pending, e)
	q.poke()
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default: // one poke is as good as two
	}
}

// lose counts a record that will not be written. q.mu is held.
func (q *queue) lose(e entry, cause error) {
	if e.gap != nil {
		q.gap.merge(e.gap) // still unsaid
	} else {
		q.gap.add(e.record.Level, e.record.Time, 1)
		q.unsaid++
		q.dropped++
	}
	if cause != nil {
		q.gap.err = cause
	}
}

// write is the writer.
func (q *queue) write() {
	defer close(q.done)
	for {
		batch, ok := q.take()
		if !ok {
			return
		}
		for i := range batch {
			if !q.deliver(batch[i]) {
				return
			}
			batch[i] = entry{} // let go of it before the rest is written
		}
	}
}

// take waits for records. It says false when there will be none.
func (q *queue) take() ([]entry, bool) {
	for {
		q.mu.Lock()
		batch, closed := q.pending, q.closed
		q.pending = nil
		q.mu.Unlock()
		if len(batch) > 0 {
			return batch, true
		}
		if closed {
			return nil, false
		}
		select {
		case <-q.wake:
		case <-q.abort:
			return nil, false
		}
	}
}

// deliver writes one record, for as long as it takes. It says false when waiting is over.
func (q *queue) deliver(e entry) bool {
	for delay := retryBase; ; delay = min(2*delay, retryCap) {
		select {
		case <-q.abort:
			return false
		default:
		}
		err := handle(e)
		if !errors.Is(err, errUnavailable) {
			q.settle(e, err)
			return true
		}
		retry := time.NewTimer(delay)
		select {
		case <-retry.C:
		case <-q.abort:
			retry.Stop()
			return false
		}
	}
}

func handle(e entry) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("log handler panicked: %v", p) // J6
		}
	}()
	return e.handler.Handle(context.Background(), e.record)
}

// settle does the books for a record that was written (err is nil) or refused for good.
func (q *queue) settle(e entry, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e.gap == nil {
		q.queued--
	}
	if q.queued <= q.capacity/2 {
		q.full = false
	}
	if err != nil {
		q.lose(e, err)
		return
	}
	if e.gap != nil {
		q.unsaid -= e.gap.count
	}
	// Only a success is followed by a notice: a sink that refuses everything would refuse the notice too, forever.
	if q.gap.count > 0 && !q.full {
		told := q.gap
		q.gap = gap{}
		q.push(entry{handler: q.root, record: told.notice(), gap: &told})
	}
}

// close writes what is queued, for as long as ctx allows (J5).
func (q *queue) close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.poke()
	q.mu.Unlock()

	var cause error
	select {
	case <-q.done:
	case <-ctx.Done():
		cause = fmt.Errorf("the sink does not take them: %w", context.Cause(ctx))
	}
	// The writer may be in a system call that nothing ends; then it stays there and the process exits around it.
	q.shut.Do(func() {
		close(q.abort)
		q.shutErr = q.sink.Close()
	})

	q.mu.Lock()
	defer q.mu.Unlock()
	if left := uint64(q.queued) + q.unsaid; left > 0 {
		if cause == nil {
			cause = q.gap.err
		}
		return &UnwrittenError{Records: left, Err: cause}
	}
	if q.shutErr != nil {
		return fmt.Errorf("close log: %w", q.shutErr)
	}
	return nil
}
