// Package journal is the daemon's log: text for a terminal, JSON for whoever collects it, or journald's own protocol
// with one field per attribute.
//
// Whatever the format, a record takes the same way: Handle puts it into a bounded queue and returns; one goroutine
// writes. A sink that has stopped (journald in SIGSTOP, a pipe that nobody reads) therefore costs records, never a
// reap.
//
// Invariants:
//
//	J1  Handle never waits for the sink. It takes one short lock and no system call.
//	J2  Nothing is lost silently: every record is written, or counted in a later record with the event "log-dropped",
//	    or counted in the error of [Log.Close].
//	J3  A record says what was true when it was logged: its values are resolved in Handle. Values that are no
//	    [slog.LogValuer] must not change afterwards; errors, strings, numbers and times do not.
//	J4  Each record is written once, in one format.
//	J5  [Log.Close] returns when its context ends, at the latest, whatever the sink does.
//	J6  No record can end the program: a handler that panics, or a reader of standard error that went away, is a lost
//	    record.
package journal
