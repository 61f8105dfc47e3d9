// Package process knows processes: which one has a PID now, whether it lives, and when it dies.
//
// A [Handle] is a pidfd (pidfd_open(2), Linux 5.3) with the identity of the process behind it. [Owners] holds the
// processes that own sandboxes and tells of their deaths.
//
// Invariants:
//
//	P1  A signal goes through a pidfd or not at all: there is no function that takes a number.
//	P2  What was read from /proc about a handle's process was read while that process existed, so it is not about a
//	    later process with the same PID: the pidfd is asked after the read.
//	P3  Only four things count as a death: the pidfd says so; there is no process with the PID (ESRCH); the process is
//	    writing its core, with all its threads stopped for good; and, where there is no pidfd, that every thread is a
//	    zombie. Anything else that goes wrong is "unknown".
//	P4  What the process connector reports is never a death, whatever the status: it is a reason to ask. A leader may
//	    exit before its workers, exec from a worker ends the leader, seccomp(2) can kill one thread with SIGSYS
//	    (SECCOMP_RET_KILL_THREAD), and an exec may still win against a core dump that was announced.
package process
