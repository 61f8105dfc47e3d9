//go:build !linux

package statedir

import (
	"context"
	"errors"
	"fmt"

	"watcher/watch"
)

// Leftovers are files and folders that owners of sandboxes leave in the file system, which this system is not asked for.
type Leftovers struct{}

var errUnsupported = fmt.Errorf("look for leftovers: %w", errors.ErrUnsupported)

// NewLeftovers returns leftovers that cannot be looked for.
func NewLeftovers() *Leftovers { return &Leftovers{} }

// SetRules does nothing.
func (*Leftovers) SetRules(*watch.Rules) {}

// Kind is [watch.File].
func (*Leftovers) Kind() watch.Kind { return watch.File }

// List fails.
func (*Leftovers) List(context.Context) ([]watch.Event, error) { return nil, errUnsupported }

// Stop fails.
func (*Leftovers) Stop(watch.ID, watch.Step) error { return errUnsupported }

// Remove fails.
func (*Leftovers) Remove(context.Context, watch.ID) error { return errUnsupported }

// RemoveKnown fails.
func (*Leftovers) RemoveKnown(context.Context, watch.Sandbox) error { return errUnsupported }

// Incarnation fails.
func Incarnation(string) (string, error) { return "", errUnsupported }

// Remove fails.
func Remove(context.Context, string, string) error { return errUnsupported }

// Locked fails.
func Locked(string) (watch.Life, int, error) { return watch.Unknown, 0, errUnsupported }

// Expand fails.
func Expand(context.Context, []string) ([]string, error) { return nil, errUnsupported }

// RemoveOwned fails.
func RemoveOwned(context.Context, uint32, string, string) error { return errUnsupported }

// Nearest fails.
func Nearest(context.Context, []string) ([]string, error) { return nil, errUnsupported }
