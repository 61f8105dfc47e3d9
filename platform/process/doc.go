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
//	P3  Only three things count as a death: the pidfd says so; there is no process with the PID (ESRCH); the kernel
//	    began to dump the process's core. Where there is no pidfd, that every thread is a zombie counts too. Anything
//	    else that goes wrong is "unknown".
//	P4  The exit of one thread is never a death, whatever its status. A leader may exit before its workers, exec from a
//	    worker ends the leader, and seccomp(2) can kill one thread with SIGSYS (SECCOMP_RET_KILL_THREAD).
package process
