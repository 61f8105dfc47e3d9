package process

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/process/processtest"
)

// TestMountedOver: a process with something mounted over its folder in /proc is not gone (P3).
func TestMountedOver(t *testing.T) {
	o := processtest.StartOwner(t)
	result := make(chan error, 1)
	go func() {
		// The thread's own mounts go with it: it stays locked, and so ends with the goroutine.
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make the mounts private: %w", err)
			}
			if err := unix.Mount("tmpfs", fmt.Sprintf("/proc/%d", o.PID()), "tmpfs", 0, ""); err != nil {
				return fmt.Errorf("mount: %w", err)
			}
			h, err := NewHost("/proc")
			if err != nil {
				return err
			}
			l, err := h.look()
			if err != nil {
				return err
			}
			defer l.close()
			s, err := l.open(os.Getpid())
			if err != nil {
				return fmt.Errorf("another process: %w", err)
			}
			s.close()
			if s, err := l.open(o.PID()); !errors.Is(err, unix.EXDEV) {
				if err == nil {
					_, err = s.stat("")
					s.close()
				}
				return fmt.Errorf("the process under the mount: %w, want %w", err, unix.EXDEV)
			}
			return nil
		}()
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}
