// Package firecracker knows microVMs that are processes of this host: Firecracker, and whatever else a rule calls so. It finds
// them, tells whether those who started them live, ends them, and removes what they leave behind.
//
// No daemon keeps a list of such microVMs. The process is the sandbox, its working folder or its jail says which one it is, and
// its ancestors say whose. When it is dead all that is gone, so what it leaves behind, its leaves, is noted while it lives.
//
// Invariants:
//
//	F1  A process is a microVM by what it runs, the name of its executable or its argv[0], and by where it is at home: its
//	    folder among the workspaces of a rule, a file there that its arguments name, or its jail, seen by device and inode.
//	    Whoever only has the program among his arguments, as sudo(8), ip-netns(8) and a shell do, is a wrapper.
//	F2  A partial view judges nothing: a process that cannot be read may be a microVM, and the list fails.
//	F3  The owner by ancestry is an ancestor that runs the rule's program. Once found, it owns the microVM until it is dead,
//	    whoever dies in between. That there is none is known only from all ancestors: too many, one that cannot be read, and
//	    one in another PID namespace are Unknown.
//	F4  A signal goes through a pidfd held since the process was found, to a process that is the same microVM still: it is
//	    looked at again just before. Its process group goes with it if nobody else is in that.
//	F5  Nothing is removed before the process is dead, the wrappers have ended, and no other process is at home there.
//	F6  What is removed is what a rule names now, whatever a record says: each leaf is checked against the rule's folders once
//	    more, and, where it could be another by now, against its incarnation.
//	F7  What is gone is success. A removal can be repeated, after a restart from what was recorded.
//	F8  Two processes that seem to be the same microVM are a fault, and both are kept.
//	F9  A workspace without a process is a microVM that has ended. Its owner is whom it was seen to have, else those who hold a
//	    lock or have a record, and every process of the runner's program that is older than the folder.
//	F10 A process says which microVM it is only if it is run by root or by somebody who has something in that folder: anybody may
//	    call his program firecracker, and enter a workspace or name it. What is otherwise found there alone is a fault, and kept.
//	    Sockets, which are found by the ID alone, are a microVM's only while no other folder bears that ID.
package firecracker
