//go:build !linux

package journal

import (
	"errors"
	"fmt"
)

const socketPath = ""

// A sender cannot exist here: journald is a thing of Linux.
type sender struct{}

func dial(string) (*sender, error) { return nil, fmt.Errorf("journald: %w", errors.ErrUnsupported) }

func (*sender) send([]byte) error { return errors.ErrUnsupported }

// Close does nothing.
func (*sender) Close() error { return nil }
