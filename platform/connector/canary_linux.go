package connector

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// canary ends a thread of ours and returns its TID: an exit that the kernel must tell. It needs no child, no executable
// and no privilege. The runtime ends the thread of a goroutine that returns locked to it ([runtime.LockOSThread]).
func canary() (tid int) {
	born := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread alone is parked instead. As long as we are locked to it, another goroutine gets another.
			defer runtime.UnlockOSThread()
			born <- canary()
			return
		}
		born <- unix.Gettid()
	}()
	return <-born
}
