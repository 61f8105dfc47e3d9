package connector

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"
)

func TestMoment(t *testing.T) {
	now := moment{time: time.Now(), mono: 5_000_000_000}
	for stamp, want := range map[uint64]time.Time{
		5_000_000_000:  now.time,
		4_999_999_999:  now.time.Add(-1),
		0:              now.time.Add(-5 * time.Second),
		5_000_000_001:  now.time, // C4
		math.MaxUint64: now.time,
	} {
		if got := now.of(stamp); got != want {
			t.Errorf("stamp %d: got %s, want %s", stamp, got, want)
		}
	}
}

func TestHint(t *testing.T) {
	for _, h := range hints {
		if got := Hint(fmt.Errorf("listen: %w", errors.Join(h.err, errors.New("beside")))); got != h.hint {
			t.Errorf("%v: got %q", h.err, got)
		}
	}
	if got := Hint(errors.New("something else")); got != "" {
		t.Errorf("got %q for an error that is not ours", got)
	}
}
