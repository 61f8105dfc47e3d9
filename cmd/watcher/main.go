// Command watcher reaps sandboxes whose owners have died. This package is the only one that knows all the others: it
// reads flags and configuration, wires the parts together, and prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes that scripts rely on.
const (
	exitDone   = 0
	exitFailed = 1   // something failed or was left undone
	exitUsage  = 2   // wrong usage or configuration
	exitSignal = 128 // and the number of a second signal
)

func main() { os.Exit(execute()) }

func execute() int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		// The first signal ends us in order, the second one at once, with the code that a shell gives such an end.
		<-signals
		stop()
		second := (<-signals).(syscall.Signal)
		os.Exit(exitSignal + int(second))
	}()
	err := newRootCommand().ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "watcher:", err)
		return exitUsage
	case errors.Is(err, errSaid):
		return exitFailed
	default:
		fmt.Fprintln(os.Stderr, "watcher:", err)
		return exitFailed
	}
}

// A usageError is a fault of the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errSaid ends a command with exitFailed after it has said itself what went wrong.
var errSaid = errors.New("failed")
