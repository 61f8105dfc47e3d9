// Package reap decides which sandboxes have outlived their owners and carries the decision through.
//
// [Policy.Judge] and [Policy.Decide] are pure: they look at a [watch.Picture] and at the time they are given, and
// return values. [Loop] is the one goroutine that owns the picture; everybody else sends it events. A [Scanner] asks
// for full lists, at intervals and when a source of events lost some.
//
// Invariants:
//
//	R1  A sandbox is reaped only if its owner is known to have exited, its time is over, or an operator said so. The
//	    zero [Judgement] keeps.
//	R2  Events wake, the picture decides: a lost, doubled or reordered event may delay a reap, never cause one.
//	R3  All sandboxes of one plan are stopped before the first of them is removed, and nothing slower than a signal
//	    stands between the verdict and the stop, but for a note where R8 demands it.
//	R4  At most one step of one sandbox is under way at a time, but for a record that a hung disk does not finish.
//	R5  A reap that was begun is carried on until the sandbox is gone, unless the owner container whose exit was its
//	    ground runs again: failures are retried, first with growing delays and then slowly for ever. After an interrupt
//	    nothing new is begun, and what was begun has [DrainFor] to finish.
//	R6  The loop never waits: not for an engine, not for the log, not for a reader of its results. Only before its first
//	    pass does it read the docket.
//	R7  What is to be reaped by inference, more than a burst at a time, is looked at twice, by a fresh scan, first. What
//	    an owner's own evidence condemns is never set back.
//	R8  Before the first step that destroys evidence, the reap is recorded durably, unless the disk refuses; its record
//	    goes when the sandbox is gone. The process of a microVM is such evidence: its end is noted before it is killed, which
//	    need not outlive the machine since the process does not either. So is the word of an operator: his order is on record
//	    before its first step. What is on record is taken up at the start, before anything else. What owners left in the
//	    file system may be evidence, too: where a rule asks for a socket, it goes after the containers of the rule of which
//	    no living owner is known.
package reap
