package reap_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// A lister answers with what it is told to.
type lister struct {
	kind watch.Kind
	list func(ctx context.Context) ([]watch.Event, error)
}

func (l *lister) Kind() watch.Kind { return l.kind }

func (l *lister) List(ctx context.Context) ([]watch.Event, error) { return l.list(ctx) }

func empty(kind watch.Kind) *lister {
	return &lister{kind, func(context.Context) ([]watch.Event, error) {
		return []watch.Event{watch.Listed{Kind: kind, Asked: time.Now()}}, nil
	}}
}

// words says what events are, in short.
func words(events []watch.Event) []string {
	var words []string
	for _, ev := range events {
		switch ev := ev.(type) {
		case watch.ScanBegun:
			words = append(words, "begun")
		case watch.Listed:
			words = append(words, "listed "+string(ev.Kind))
		case watch.ListFailed:
			words = append(words, fmt.Sprintf("failed %s: %v", ev.Kind, ev.Err))
		case watch.ScanEnded:
			words = append(words, fmt.Sprintf("ended, %d failed", ev.Failed))
		default:
			words = append(words, fmt.Sprintf("%T", ev))
		}
	}
	return words
}

func TestAScanListsEveryKindAndSaysWhatItCouldNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inbox := reap.NewInbox()
		broken := &lister{"b", func(context.Context) ([]watch.Event, error) {
			return []watch.Event{watch.Listed{Kind: "b"}}, errBusy // half a list is none
		}}
		hung := &lister{"c", func(ctx context.Context) ([]watch.Event, error) { return nil, hang(ctx) }}
		more := &lister{"d", func(context.Context) ([]watch.Event, error) {
			return []watch.Event{watch.Listed{Kind: "d"}, watch.ContainerSeen{}}, nil
		}}
		reap.NewScanner(inbox, time.Hour, empty("a"), broken, hung, more).Scan(t.Context())
		want := []string{
			"begun", "listed a", "failed b: device or resource busy", "failed c: context deadline exceeded",
			"listed d", "watch.ContainerSeen", "ended, 2 failed",
		}
		if diff := cmp.Diff(want, words(inbox.Take())); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestScansComeAtIntervalsAndWhenAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inbox := reap.NewInbox()
		var scans []time.Duration
		began := time.Now()
		slow := &lister{"a", func(context.Context) ([]watch.Event, error) {
			scans = append(scans, time.Since(began))
			<-time.After(5 * time.Second)
			return nil, nil
		}}
		scanner := reap.NewScanner(inbox, time.Minute, slow)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- scanner.Run(ctx) }()

		<-time.After(70 * time.Second) // one at 60s
		scanner.Poke()
		scanner.Poke()
		<-time.After(time.Second)
		scanner.Poke() // while that of 70s is under way: what it asks for may have been missed by that
		scanner.Poke()
		<-time.After(100 * time.Second) // the interval begins again behind the one of 75s
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended: %v", err)
		}
		want := []time.Duration{60 * time.Second, 70 * time.Second, 75 * time.Second, 140 * time.Second}
		if diff := cmp.Diff(want, scans); diff != "" {
			t.Errorf("scans (-want +got)\n%s", diff)
		}
	})
}
