package firecracker

import "runtime"

// elsewhere calls f on a thread of its own, that ends with it: f may change what belongs to the thread alone. f must not end
// the test.
func elsewhere(f func() error) error {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		ended <- f()
	}()
	return <-ended
}
