// Package connector tells of processes that exit, and if asked of those that exec, of every process on the host, within a
// fraction of a millisecond. It reads the kernel's process connector: netlink(7), NETLINK_CONNECTOR, and linux/cn_proc.h,
// which has no man page.
//
// A [Listener] is one subscription, proven to deliver when [Listen] returns and watched for silence by [Listener.Run].
//
// Invariants:
//
//	C1  An event is told only if we are in the init PID namespace. Elsewhere the numbers in it are those of strangers.
//	C2  An event is told only if the kernel sent it. Any process with CAP_NET_ADMIN can send to the group.
//	C3  What is told wakes and proves nothing: neither an exit, whatever its status, nor a core dump is the certain death
//	    of a process (see [Exit]). The pidfd is asked. Nor is an exec what the process runs by now: /proc is.
//	C4  An event is never stamped later than it happened, so it cannot be taken for one of the PID's next holder.
//	C5  A known loss is told, once, after the receive buffer has been drained: the kernel drops everything until then,
//	    and a scan before that would be blind to what is dropped after it.
//	C6  A subscription that went silent ends Run with an error.
//	C7  A subscription is given back by Close. Until 6.6 the kernel does not notice that a listener is gone.
//
// Not told are exits of threads other than the leader, unless [Options] ask for them: a thread storm then costs next to
// nothing, because a socket filter drops them in the kernel. The consequence: a process whose leader exited before its
// workers tells nothing at its end, and one killed with a signal may still have a dying worker when its leader's exit is
// told. Both are the business of a pidfd, which is exact. Ask for the threads where processes cannot be held by pidfds.
package connector
