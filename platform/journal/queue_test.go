package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// sinkHandler is a handler whose Handle does what the test says, and keeps the records it took.
type sinkHandler struct {
	slog.Handler // for what is not overridden: nil, so a call of it fails the test loudly
	take         func(slog.Record) error

	mu   sync.Mutex
	took []slog.Record
}

func (h *sinkHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *sinkHandler) Handle(_ context.Context, r slog.Record) error {
	if err := h.take(r); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.took = append(h.took, r)
	return nil
}

func (h *sinkHandler) records() []slog.Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.took
}

func nopCloser() io.Closer { return io.NopCloser(nil) }

// attrs returns the attributes of r by key.
func attrs(r slog.Record) map[string]slog.Value {
	m := make(map[string]slog.Value)
	r.Attrs(func(a slog.Attr) bool {
		m[a.Key] = a.Value
		return true
	})
	return m
}

// tally counts what records tell: how many are there, and how many they say are missing.
func tally(records []slog.Record) (written, dropped uint64) {
	for _, r := range records {
		if a := attrs(r); a[keyEvent].String() == EventDropped {
			dropped += a["count"].Uint64()
		} else {
			written++
		}
	}
	return written, dropped
}

func flush(t *testing.T, q *queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := q.close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

// J1, J2: with the sink blocked no time passes in Handle, and afterwards the numbers add up.
func TestBlockedSinkCostsRecordsNotTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sink := &sinkHandler{take: func(slog.Record) error { <-release; return nil }}
		const size = 10
		q := newQueue(sink, size, nopCloser())
		log := slog.New(q.handler())

		began := time.Now()
		for i := range 25 {
			level := slog.LevelInfo
			if i >= 20 {
				level = slog.LevelError
			}
			log.Log(t.Context(), level, "record", "i", i)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("25 calls with a blocked sink took %v", d)
		}
		if got := q.droppedTotal(); got != 15 {
			t.Errorf("dropped %d, want 15", got)
		}

		close(release)
		synctest.Wait()
		records := sink.records()
		if len(records) != size+1 {
			t.Fatalf("the sink took %d records, want %d and one notice", len(records), size)
		}
		for i, r := range records[:size] {
			if got := attrs(r)["i"].Int64(); got != int64(i) {
				t.Errorf("record %d has i = %d", i, got)
			}
		}
		notice := records[size]
		a := attrs(notice)
		if a[keyEvent].String() != EventDropped || a["count"].Uint64() != 15 || notice.Level != slog.LevelWarn {
			t.Errorf("the notice is %v %v", notice.Level, a)
		}
		levels := fmt.Sprint(a["levels"])
		if levels != "[INFO=10 ERROR=5]" {
			t.Errorf("the notice says of levels: %s", levels)
		}

		log.Info("after")
		flush(t, q)
		if written, dropped := tally(sink.records()); written != size+1 || dropped != 15 {
			t.Errorf("in the end %d written and %d told dropped", written, dropped)
		}
	})
}

// A sink that takes one record now and then is not drowned in notices, and the notice stands where the gap is.
func TestNoticesAreFewAndInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		step := make(chan struct{})
		sink := &sinkHandler{take: func(slog.Record) error { <-step; return nil }}
		const size = 100
		q := newQueue(sink, size, nopCloser())
		log := slog.New(q.handler())

		const calls = 1000
		for i := range calls {
			log.Info("record", "i", i)
			if i%2 == 1 {
				step <- struct{}{} // half as fast as the records come
			}
		}
		go func() {
			for {
				select {
				case step <- struct{}{}:
				case <-q.done:
					return
				}
			}
		}()
		flush(t, q)

		written, dropped := tally(sink.records())
		if written+dropped != calls {
			t.Errorf("%d written and %d told dropped of %d", written, dropped, calls)
		}
		if notices := uint64(len(sink.records())) - written; notices == 0 || notices > written/(size/2)+1 {
			t.Errorf("%d notices among %d records", notices, written)
		}
		next := int64(0)
		for n, r := range sink.records() {
			a := attrs(r)
			if a[keyEvent].String() == EventDropped {
				next += int64(a["count"].Uint64())
				continue
			}
			if i := a["i"].Int64(); i != next {
				t.Fatalf("entry %d is record %d, but with the gaps told so far %d is due", n, i, next)
			}
			next++
		}
	})
}

// J5, J2: close gives up when its context ends and says how many were left.
func TestCloseGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sink := &sinkHandler{take: func(slog.Record) error { <-release; return nil }}
		q := newQueue(sink, 4, nopCloser())
		log := slog.New(q.handler())
		for range 10 {
			log.Info("record")
		}

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		err := q.close(ctx)
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("close took %v, its bound is 3s", d)
		}
		var unwritten *UnwrittenError
		if !errors.As(err, &unwritten) || unwritten.Records != 10 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close says %v", err)
		}

		close(release)
		synctest.Wait()
		// The writer finishes what it was in, and no more.
		if n := len(sink.records()); n != 1 {
			t.Errorf("%d records were written, want the one in progress", n)
		}
		if err := log.Handler().Handle(t.Context(), slog.Record{}); !errors.Is(err, errClosed) {
			t.Errorf("Handle after close says %v", err)
		}
	})
}

func TestUnavailableSinkIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		tries := 0
		sink := &sinkHandler{take: func(slog.Record) error {
			if tries++; time.Since(began) < time.Minute {
				return fmt.Errorf("%w: gone", errUnavailable)
			}
			return nil
		}}
		q := newQueue(sink, 10, nopCloser())
		slog.New(q.handler()).Info("record")
		time.Sleep(2 * time.Minute) // of the bubble's clock
		synctest.Wait()
		if tries > 60 {
			t.Errorf("%d tries in a minute", tries)
		}
		if written, dropped := tally(sink.records()); written != 1 || dropped != 0 {
			t.Errorf("%d written, %d dropped", written, dropped)
		}
		flush(t, q)
	})
}

func TestCloseEndsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &sinkHandler{take: func(slog.Record) error { return errUnavailable }}
		q := newQueue(sink, 10, nopCloser())
		slog.New(q.handler()).Info("record")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var unwritten *UnwrittenError
		if err := q.close(ctx); !errors.As(err, &unwritten) || unwritten.Records != 1 {
			t.Errorf("close says %v", err)
		}
	})
}

// J2, J6: a record that the sink refuses, or that makes the handler panic, is told of when a later one is taken. A sink
// that refuses everything is not asked in a circle.
func TestRefusedRecordsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := true
		calls := 0
		sink := &sinkHandler{take: func(r slog.Record) error {
			calls++
			switch {
			case r.Message == "panic":
				panic("from a handler")
			case broken:
				return io.ErrClosedPipe
			}
			return nil
		}}
		q := newQueue(sink, 10, nopCloser())
		log := slog.New(q.handler())
		log.Info("lost")
		log.Info("panic")
		synctest.Wait()
		if calls != 2 {
			t.Errorf("the sink was asked %d times for 2 records", calls)
		}
		broken = false
		log.Info("written")
		synctest.Wait()
		records := sink.records()
		if written, dropped := tally(records); written != 1 || dropped != 2 {
			t.Errorf("%d written, %d told dropped", written, dropped)
		}
		if err, _ := attrs(records[len(records)-1])[keyError].Any().(error); err == nil {
			t.Error("the notice gives no error")
		}
		broken = true
		log.Info("lost")
		synctest.Wait()
		var unwritten *UnwrittenError
		if err := q.close(t.Context()); !errors.As(err, &unwritten) || unwritten.Records != 1 || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("close says %v", err)
		}
	})
}

// J2: a notice that is refused is told of by the next.
func TestRefusedNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := map[string]bool{"lost": true, "log records dropped": true}
		sink := &sinkHandler{take: func(r slog.Record) error {
			if refuse[r.Message] {
				return io.ErrShortWrite
			}
			return nil
		}}
		q := newQueue(sink, 10, nopCloser())
		log := slog.New(q.handler())
		log.Info("lost")
		log.Info("written") // and a notice follows, in vain
		synctest.Wait()
		if written, dropped := tally(sink.records()); written != 1 || dropped != 0 {
			t.Errorf("%d written, %d told dropped", written, dropped)
		}
		refuse["log records dropped"] = false
		log.Info("written")
		flush(t, q)
		if written, dropped := tally(sink.records()); written != 2 || dropped != 1 {
			t.Errorf("%d written, %d told dropped", written, dropped)
		}
	})
}

// counter is a LogValuer whose value changes.
type counter struct{ n int }

func (c *counter) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("n", c.n), slog.Any("inner", valuer(func() slog.Value { return slog.IntValue(c.n) })))
}

type valuer func() slog.Value

func (v valuer) LogValue() slog.Value { return v() }

// J3
func TestValuesAreThoseOfTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sink := &sinkHandler{take: func(slog.Record) error { <-release; return nil }}
		q := newQueue(sink, 10, nopCloser())
		c := &counter{n: 1}
		slog.New(q.handler()).Info("record", "c", c)
		c.n = 2
		close(release)
		flush(t, q)
		if got := fmt.Sprint(attrs(sink.records()[0])["c"]); got != "[n=1 inner=1]" {
			t.Errorf("the record says %s", got)
		}
	})
}

// A record that its maker goes on changing must not change in the queue.
func TestRecordsAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sink := &sinkHandler{take: func(slog.Record) error { <-release; return nil }}
		q := newQueue(sink, 10, nopCloser())
		r := slog.NewRecord(time.Now(), slog.LevelInfo, "record", 0)
		for i := range 8 { // more than a record holds in itself
			r.AddAttrs(slog.Int(fmt.Sprint(i), i))
		}
		if err := q.handler().Handle(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		r.AddAttrs(slog.Bool("late", true))
		close(release)
		flush(t, q)
		if n := sink.records()[0].NumAttrs(); n != 8 {
			t.Errorf("the record has %d attributes, want 8", n)
		}
	})
}

func TestQueueKeepsSlogsRules(t *testing.T) {
	defer goleak.VerifyNone(t)
	var buf bytes.Buffer
	var q *queue
	slogtest.Run(t, func(*testing.T) slog.Handler {
		buf.Reset()
		q = newQueue(slog.NewJSONHandler(&buf, nil), 10, nopCloser())
		return q.handler()
	}, func(t *testing.T) map[string]any {
		flush(t, q)
		m := make(map[string]any)
		if err := json.Unmarshal(buf.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		return m
	})
}

func BenchmarkHandle(b *testing.B) {
	q := newQueue(slog.DiscardHandler, capacity, nopCloser())
	log := slog.New(&enabled{q.handler()})
	b.ReportAllocs()
	for b.Loop() {
		log.Info("sandbox reaped", "event", "reaped", "kind", "container", "id", "0123456789ab", "stop_us", 2100, "gone_us", 70000)
	}
	_ = q.close(b.Context())
}

// enabled makes a handler take every level.
type enabled struct{ slog.Handler }

func (*enabled) Enabled(context.Context, slog.Level) bool { return true }
