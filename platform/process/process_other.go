//go:build !linux

package process

import (
	"errors"
	"fmt"
)

// ErrNoPidfd says that this system cannot hold processes.
var ErrNoPidfd = fmt.Errorf("pidfd_open: %w", errors.ErrUnsupported)
