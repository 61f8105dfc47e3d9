//go:build !linux

package connector

import (
	"context"
	"errors"
	"fmt"
)

// A Listener is a subscription to the exits and execs of all processes of the host, which this system does not offer.
type Listener struct{}

var errUnsupported = fmt.Errorf("listen to process events: %w", errors.ErrUnsupported)

// Listen fails: there is no process connector.
func Listen(context.Context, Options) (*Listener, error) { return nil, errUnsupported }

// Run fails: there is no process connector.
func (*Listener) Run(context.Context, Handlers) error { return errUnsupported }

// Level says that nothing is in force.
func (*Listener) Level() Level { return Level{} }

// Close does nothing.
func (*Listener) Close() error { return nil }
