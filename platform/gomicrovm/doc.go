// Package gomicrovm finds the microVMs of go-microvm, which are folders: what each consists of is in its folder, and the process
// that runs it, the runner, names files there in its argument. brood-box is the program that is served: its bbox makes such a
// folder for each microVM and says in a sentinel who it is, go-microvm saves in a state file who runs it.
//
// A look at a folder reads both, and asks the processes. What it finds is told as a [watch.OwnerSeen] for each of them. The owner
// and the runner are held from then on, so that the folder is looked at again as soon as one dies; changes in the folders, and
// programs that are executed, are further reasons to look. A complete look at everything makes up for all that was missed.
//
// Whose the folders are we do not know, and whoever they belong to may put anything into them. Invariants:
//
//	G1  A folder is a microVM only directly below a folder that a rule names. That folder itself is none, and neither is a link.
//	    Everything is opened from folder to folder; no path is taken from a record but to be compared.
//	G2  What is not understood is unknown and keeps: a record that is half written, too long, of another form, no file, or of
//	    another user than the folder; a folder of another user than the folder it is in; a file system mounted anywhere there.
//	G3  The process that a record names is the one that has the PID and was born before the record was written. One that was born
//	    later has the PID by chance, and the one that was meant is dead. The wall clock says so; where that is in doubt, so is
//	    the owner. Once dead, the writer of a record stays dead.
//	    Of a microVM without a sentinel, every bbox of its user that is not younger, or not than what is in it, may be the owner.
//	G4  A signal goes to a process that is a runner by its executable, belongs to the owner of the folder, names files in it, and
//	    is held. A record alone moves nobody to signal anybody.
//	G5  A microVM that was stopped properly is kept, as is one of which nothing tells that it was ever started.
//	G6  A folder is removed when its runner is seen dead, and, with the lock of its system held, nobody who lives is found behind
//	    its records and no process at all names files in it. This is looked at again then, by a complete look or not at all.
//	G7  Of the folders of one user nothing is removed that belongs to another and that he could not have removed himself (T9).
//	G8  PIDs in records are ours only if they were written in our PID namespace. Where a process of such a program lives in another
//	    one, and has the PID there, it is unknown whom a record means.
package gomicrovm
