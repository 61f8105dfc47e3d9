package journal

import "watcher/watch"

// EventDropped is the event of the record that tells how many others are missing from the log. It is the log's own;
// the rest are in package watch.
const EventDropped = "log-dropped"

const (
	keyEvent = watch.KeyEvent
	keyError = watch.KeyError

	// keyUnit is the attribute that becomes OBJECT_SYSTEMD_UNIT: the systemd unit that a record is about. journald shows
	// the record in the log of that unit, if the writer is root.
	keyUnit = "object_systemd_unit"
)

// messageIDs holds the MESSAGE_ID of each event: random, made once, and never changed, because scripts and the catalog
// (systemd/watcher.catalog) know them.
var messageIDs = map[string]string{
	watch.EventStarted:      "e996fa2a62f64afb8a18f32e2c20ee2e",
	watch.EventOwnerExited:  "dda436b91597430abefcf870031c91db",
	watch.EventReaped:       "acb7cd0dc4454347a0829f53e96983ae",
	watch.EventReapFailed:   "9119892fa8dc43ab9e3d406fd560d996",
	watch.EventGaveUp:       "ed4e10b34c9b4eca999fb8db49773f45",
	watch.EventSourceLost:   "9224a55cda7444a2a7a275f1a74fb063",
	watch.EventSourceBack:   "16e127f7d78f4192a00395a16aea759d",
	watch.EventScan:         "154cbb271b8740858d3eb93c86e99982",
	watch.EventHeld:         "d1de1520c9ad4a1d82549a9e6035c8c7",
	watch.EventWouldReap:    "b4ddef404ae349d5bf986eb771da3fb4",
	watch.EventAlarm:        "089a110a1a454c65a881d88ca0e202dd",
	watch.EventDocketFailed: "ce0153d9a3164a1b89bc66df408f1410",
	watch.EventReloaded:     "f39491088ff24984b27d04ba35d0d9ac",
	watch.EventReloadFailed: "4e7e42b631fa4f359f0b99739f065242",
	watch.EventStopped:      "69a1692d181c46ceadcfd098bbad523a",
	EventDropped:            "6ef258f47bdf442198d254c2c08ccbf9",
}
