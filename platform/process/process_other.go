//go:build !linux

package process

import (
	"context"
	"errors"
	"fmt"
	"time"

	"watcher/watch"
)

// ErrNoPidfd says that this system cannot hold processes.
var ErrNoPidfd = fmt.Errorf("pidfd_open: %w", errors.ErrUnsupported)

// A Census knows the processes of programs, which this system does not show.
type Census struct{}

var errUnsupported = fmt.Errorf("look at all processes: %w", errors.ErrUnsupported)

// NewCensus returns a Census that finds nobody.
func NewCensus(*Host, func(...watch.Event)) *Census { return &Census{} }

// Follow does nothing.
func (*Census) Follow([]watch.Program) {}

// Count does nothing.
func (*Census) Count() {}

// Run fails: there is no /proc.
func (*Census) Run(context.Context) error { return errUnsupported }

// Kind is what a list that failed was of.
func (*Census) Kind() watch.Kind { return watch.Processes }

// List fails: there is no /proc.
func (*Census) List(context.Context) ([]watch.Event, error) { return nil, errUnsupported }

// Exec does nothing.
func (*Census) Exec(int, time.Time) {}

// Witness does nothing.
func (*Census) Witness(int, time.Time) {}

// Check does nothing.
func (*Census) Check() {}

// Close does nothing.
func (*Census) Close() {}
