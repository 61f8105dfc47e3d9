package connector

import (
	"fmt"
	"log/slog"
	"math"
	"time"
)

// An Exit is what the kernel said about the end of one thread, or about a process that begins to dump its core.
//
// None is proof that the process is dead (C3); each is a reason to ask its pidfd. A leader may exit before its workers,
// and an exec from a worker ends the leader. A status with a signal in it may be of one thread that
// SECCOMP_RET_KILL_THREAD (SIGSYS) or strict seccomp (SIGKILL) ended, see seccomp(2), or an oops of the kernel.
//
// Nor is Core: the kernel tells it before it stops the other threads, and an exec from one of them still wins in between
// (Linux 6.18: 122 of 3,640 processes tuned to try lived on). The dump is under way, and the end certain, from
// "CoreDumping: 1" in /proc/PID/status on (proc_pid_status(5), Linux 4.15); that is mostly there when Core is told.
type Exit struct {
	TGID   int       // the process
	TID    int       // the thread; the leader's is the TGID
	Core   bool      // PROC_EVENT_COREDUMP; the exit follows when the core is written
	Status uint32    // of the thread, as wait(2) has it; 0 with Core
	At     time.Time // when it happened, with Go's monotonic reading
}

// An Exec is a process that runs another program from now on, with the same PID and start time as before. Whichever thread
// called execve(2), it is the leader now, and the only one.
type Exec struct {
	TGID int       // the process
	At   time.Time // when it happened, with Go's monotonic reading
}

// Handlers take what is told. They are called from one goroutine, and must not block, or the receive buffer overflows. One
// that is nil is not called.
type Handlers struct {
	Exit func(Exit)
	Exec func(Exec)  // if [Options] ask for it
	Lost func(error) // some were dropped, so that processes must be looked at: C5
}

// Options are what a subscription may be asked for. The zero value is right for a host with pidfds.
type Options struct {
	// ReceiveBuffer is how many bytes of events the kernel keeps for us; 0 is 8 MiB. An event takes 832 (Linux 6.18).
	ReceiveBuffer int
	// Threads asks for the exits of all threads.
	Threads bool
	// Execs asks for execs.
	Execs bool
}

// defaultReceiveBuffer holds some 20,000 events: a quarter of a second of a fork storm on two cores. The default of the
// system, 212,992 bytes, holds 256.
const defaultReceiveBuffer = 8 << 20

// A Level says how much the kernel does for a subscription.
type Level struct {
	Mask          bool // it makes no other events than ours (Linux 6.6)
	Filter        bool // a socket filter drops what we would not tell
	Threads       bool // the exits of all threads are told
	Execs         bool // execs are told
	ReceiveBuffer int  // as SO_RCVBUF has it, which is twice what was asked for (socket(7))
}

func (l Level) String() string {
	return fmt.Sprintf("mask=%t filter=%t threads=%t execs=%t receive_buffer=%d", l.Mask, l.Filter, l.Threads, l.Execs, l.ReceiveBuffer)
}

// LogValue implements [slog.LogValuer].
func (l Level) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Bool("mask", l.Mask),
		slog.Bool("filter", l.Filter),
		slog.Bool("threads", l.Threads),
		slog.Bool("execs", l.Execs),
		slog.Int("receive_buffer", l.ReceiveBuffer),
	)
}

// A moment is one instant as Go and as the kernel have it.
type moment struct {
	time time.Time
	mono int64 // CLOCK_MONOTONIC, in nanoseconds
}

// of returns the time of an event that the kernel stamped with CLOCK_MONOTONIC. In a time namespace
// (time_namespaces(7)) the two clocks differ; a stamp from the future is then taken for now.
func (m moment) of(stamp uint64) time.Time {
	if stamp > math.MaxInt64 || int64(stamp) > m.mono {
		return m.time
	}
	return m.time.Add(-time.Duration(m.mono - int64(stamp)))
}
