package watch

// Keys of the attributes that log records carry. In the native journal each becomes a field: upper case, with the
// prefix WATCHER_.
const (
	KeyEvent     = "event"
	KeyKind      = "kind"
	KeyID        = "id"
	KeyName      = "name"
	KeyImage     = "image"
	KeyRule      = "rule"
	KeyOwner     = "owner"
	KeyReason    = "reason"
	KeyAttempt   = "attempt"
	KeyError     = "error"
	KeySource    = "source"
	KeySandboxes = "sandboxes" // how many
	KeyThreshold = "threshold" // more than which are told
	KeyStopUS    = "stop_us"   // microseconds from the owner's death to the sandbox's init confirmed dead
	KeyGoneUS    = "gone_us"   // microseconds from the owner's death to everything removed
)

// Values of [KeyEvent]: what a record tells. Scripts and the message catalog rely on them.
const (
	EventStarted      = "started"
	EventOwnerExited  = "owner-exited"
	EventReaped       = "reaped"
	EventReapFailed   = "reap-failed"
	EventGaveUp       = "gave-up"
	EventSourceLost   = "source-lost"
	EventSourceBack   = "source-back"
	EventScan         = "scan"
	EventHeld         = "held"
	EventWouldReap    = "would-reap"
	EventAlarm        = "alarm"
	EventDocketFailed = "docket-failed"
	EventReloaded     = "reloaded"
	EventReloadFailed = "reload-failed"
	EventStopped      = "stopped"
)
