//go:build linux

// Command demo shows what watcher does, on this machine and in about ten seconds.
//
// It starts a Docker engine of its own, twenty processes that own a container each, and watcher as anybody would run
// it. Then it kills ten of the owners with SIGKILL, prints how long their containers outlived them, as watcher's own
// log tells it, and asks the engine about all twenty.
//
// Nothing of it stays behind, however it ends. What it starts is ended in order when it is done, when a step fails, and
// at the first SIGINT, SIGTERM or SIGHUP. A second signal, or SIGKILL, ends it at once: then the kernel kills the owners
// and watcher ([unix.SysProcAttr].Pdeathsig), and the engine's guard clears the rest (see package dockertest).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// limit is how long all of it may take. Ten seconds are usual; the first run on a machine also compiles what its
// containers run, and the standard library with it.
const limit = 2 * time.Minute

func init() {
	// A parent-death signal is sent when the thread that started the child ends (prctl(2)). The main thread ends with
	// the program, so whoever starts children stays on it.
	runtime.LockOSThread()
}

func main() {
	program := flag.String("watcher", "bin/watcher", "`FILE` of the watcher to show")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unknown argument %q\n", flag.Arg(0))
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// From the first signal on, the next one has its usual effect.
	context.AfterFunc(ctx, stop)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s", limit))
	defer cancel()

	left, err := show(ctx, os.Stdout, *program)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // What failed did so because of this.
	}
	if err = errors.Join(err, left); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}
