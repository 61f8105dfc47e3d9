package connector

import (
	"errors"
)

// Why there are no events. Each is final for as long as the process runs where it runs; the pidfds and the scan go on
// without.
var (
	ErrPermission    = errors.New("not permitted to listen to process events")
	ErrPIDNamespace  = errors.New("not in the host's PID namespace")
	ErrUserNamespace = errors.New("not in the host's user namespace")
	ErrNetNamespace  = errors.New("not in the host's network namespace")
	ErrNoEvents      = errors.New("the kernel does not answer a subscription to process events")
	// ErrSilent says that the kernel took the subscription and then did not tell of an exit of our own.
	ErrSilent = errors.New("the kernel stopped telling of process exits")
)

var hints = []struct {
	err  error
	hint string
}{
	{ErrPermission, "give watcher CAP_NET_ADMIN, which kernels before 6.6 demand"},
	{ErrPIDNamespace, "run watcher in the host's PID namespace (docker run --pid=host)"},
	{ErrUserNamespace, "run watcher in the host's user namespace (docker run --userns=host; PrivateUsers=no)"},
	{ErrNetNamespace, "run watcher in the host's network namespace (docker run --network=host; PrivateNetwork=no)"},
	{ErrNoEvents, "is the kernel built with CONFIG_CONNECTOR=y and CONFIG_PROC_EVENTS=y, and may watcher use AF_NETLINK?"},
	{ErrSilent, "kernels 6.6.13 to 6.6.17 and 6.7.1 to 6.7.5 have a bug that does this: update the kernel"},
}

// Hint says what an operator can do about an error of this package, or "".
func Hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}
