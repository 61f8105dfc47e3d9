// Package process knows processes: which one has a PID now, whether it lives, and when it dies.
//
// A [Handle] is a pidfd (pidfd_open(2), Linux 5.3) with the identity of the process behind it. [Owners] holds the
// processes that own sandboxes and tells of their deaths. A [Census] finds the processes of programs, holds them as well,
// and tells who they are and when one dies.
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
//	P5  A process is of a program by an executable and arguments that are of one process and of one moment: read through
//	    its open folder in /proc, and read again until no exec came in between.
//	P6  A process that was found to be of a program is held from then on, and stays of it until it dies, whatever it
//	    execs: it keeps its PID and start time. The exception is a child that had not execed when it was found. It ran
//	    what its parent ran, and if it execs another program it was on its way there.
//	P7  A complete look is complete or an error. Whoever existed when it was asked for, and lives, is in it: alive if it
//	    is of the program, unknown if what it runs cannot be read. Only the init of the host is not unknown.
//	    [Host.Find] alone takes one by the name of its executable whose arguments do not come, since its exec does not end, and
//	    reads no more than 2 MiB of them: whoever brings that about would otherwise keep everybody else from being found.
//	P8  No event and no look can hide a process from a complete look. An exec is a reason to look earlier, and no more.
//	P9  What a [Sight] shows was so at one moment: the stat before and behind it says the same, and the process lived.
//	P10 The ancestors of a process are all, or an error. They were above one another at one moment, and the first of them that
//	    cannot be read, or is out of sight, ends what is known. Who lost its parent has its next one above it.
//	P11 A process group is signalled through a pidfd as well: its leader's, while a member that is held keeps the number of
//	    the group from being given to another, or one by one through those of its members. Somebody else's group is spared.
package process
