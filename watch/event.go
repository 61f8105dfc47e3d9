package watch

import (
	"errors"
	"time"
)

// An Event is one fact about the world, with the time at which it was true. Events wake the reaper; what they say is
// folded into the [Picture], and the picture decides.
type Event interface{ isEvent() }

type (
	// TimePassed says that it is now At: what was to be looked at again by then falls due.
	TimePassed struct{ At time.Time }

	// Listed is a complete list of one kind of sandbox.
	Listed struct {
		Kind      Kind
		Asked     time.Time // when the list was asked for: what is newer than that, it does not contradict
		Sandboxes []Sandbox
		Unwatched []ID // others that exist and are not watched. A reap of one that was begun before is finished.
	}

	// ListFailed says that a list could not be had, or not whole. Nothing follows from it about any sandbox.
	ListFailed struct {
		Kind Kind
		At   time.Time
		Err  error
	}

	// LookFailed says that a sandbox changed and could not be looked at. Nothing follows from it, but a full scan must.
	LookFailed struct {
		ID  ID
		At  time.Time
		Err error
	}

	// SandboxSeen is one sandbox looked at by itself.
	SandboxSeen struct {
		Sandbox Sandbox
		Asked   time.Time
	}

	// SandboxGone says that the sandbox and all that its system keeps for it exist no more.
	SandboxGone struct {
		ID ID
		At time.Time
	}

	// InitExited says that the first process of a sandbox is dead, before its system may have noticed.
	InitExited struct {
		ID      ID
		Process Process
		At      time.Time
	}

	// ProcessSeen is what a look at a PID found, or what its pidfd told.
	ProcessSeen struct {
		PID     int
		Process Process   // who holds the PID, or held it until At; the zero Process if the look found nobody
		Born    time.Time // the process's start by the wall clock
		Life    Life      // Unknown: the look failed, and Detail says how
		Thread  bool      // the number is that of a thread and not of a process
		At      time.Time // when it was seen so; of an exit, when it happened if the kernel told
		Detail  string
	}

	// ProgramSeen is one process that is, or may be, of a program.
	ProgramSeen struct {
		Program string
		Member  Member
		At      time.Time
	}

	// ProgramListed is a complete look for the processes of a program. Those that are known and not in it are dead.
	ProgramListed struct {
		Program string
		Asked   time.Time
		Members []Member
	}

	// ClientsSeen says which clients may have started a container: one of them did. A later one replaces an earlier one: if
	// it has none, there is doubt about those too, and the container is kept.
	ClientsSeen struct {
		ID      ID
		Clients []Client
		At      time.Time
		Detail  string // why it cannot be told, if there are none
	}

	// OwnerSeen is what a look at an owner found that only the adapter of the sandbox's kind can find: see
	// [ClaimKind.Sought].
	OwnerSeen struct {
		ID     ID
		Claim  Claim
		Owner  Process   // who it is; zero if that is not known
		Life   Life      // Exited: there is none, or none any more
		Exited time.Time // when it died, if that was observed
		Asked  time.Time // when the look began
		Detail string    // why Life is Unknown
	}

	// ContainerSeen is what a look at a container that owns sandboxes found. It is about the sandboxes whose claim was
	// bound to that container before, and if Named also about those whose claim is not bound yet.
	ContainerSeen struct {
		Ref       string    // as the claim names it
		Named     bool      // Ref itself was looked up, and not an ID that it once stood for
		Container string    // the full ID; "" if nothing has that name
		Created   time.Time // by the engine's clock
		Life      Life
		Gone      bool      // exited, and removed as well
		Restarts  bool      // its engine restarts it after an exit or after its own restart
		Since     time.Time // of an exit, when it happened
		Asked     time.Time
		Detail    string
	}

	// NamespaceSeen says whether PIDs mean the same to a kind's system and to us. Until one arrives they do not.
	NamespaceSeen struct {
		Kind   Kind
		Shared bool
		Detail string // why not
	}

	// ScanBegun and ScanEnded stand around the lists of one full scan.
	ScanBegun struct{ At time.Time }
	// ScanEnded carries how many of the scan's lists failed.
	ScanEnded struct {
		At     time.Time
		Failed int
	}

	// SourceLost says that a source of events lost some, or stopped. A full scan must follow.
	SourceLost struct {
		Source string
		Kind   Kind // "" if the source is not the system of a kind of sandbox
		Err    error
		At     time.Time
	}

	// SourceBack says that a source tells events, again or from now on. What could not be done while the system behind it
	// was away is due at once.
	SourceBack struct {
		Source string
		Kind   Kind // "" if the source is not the system of a kind of sandbox
		At     time.Time
	}

	// CaseResumed is a reap that was begun before we were, as the docket has it. The sandbox need not have been seen yet.
	CaseResumed struct {
		Sandbox  Sandbox // as far as it was recorded
		Reason   string
		Begun    time.Time
		Attempts int
		Err      error
	}

	// CaseDropped says that an operator gave a sandbox up: it is kept from now on.
	CaseDropped struct{ ID ID }

	// Ordered says that an operator ordered that a sandbox be reaped, whatever else is known of it.
	Ordered struct {
		ID     ID
		Reason string
		At     time.Time
	}

	// CaseAbandoned says that a reap was begun and will not be finished, because its ground is gone.
	CaseAbandoned struct{ ID ID }

	// Braked says that a sandbox is not reaped before it has been looked at again, or that this is over.
	Braked struct {
		ID ID
		At time.Time // zero: it is over
	}

	// RecordKept is the result of a change to the docket other than a Record step.
	RecordKept struct {
		ID      ID
		Written bool // and not removed
		Err     error
	}

	// StepBegun says that a step of a reap has been handed to whoever carries it out.
	StepBegun struct {
		ID     ID
		Step   Step
		Reason string // of the first step: why the sandbox is reaped
		At     time.Time
	}

	// StepEnded is the result of a step. An error that wraps [ErrInUse] says that it must not be taken any more.
	StepEnded struct {
		ID   ID
		Step Step
		Err  error
		At   time.Time
	}
)

// ErrInUse says that something was not removed because it is in use, or may be.
var ErrInUse = errors.New("in use")

func (TimePassed) isEvent()    {}
func (Listed) isEvent()        {}
func (ListFailed) isEvent()    {}
func (LookFailed) isEvent()    {}
func (SandboxSeen) isEvent()   {}
func (SandboxGone) isEvent()   {}
func (InitExited) isEvent()    {}
func (ProcessSeen) isEvent()   {}
func (ProgramSeen) isEvent()   {}
func (ProgramListed) isEvent() {}
func (ClientsSeen) isEvent()   {}
func (OwnerSeen) isEvent()     {}
func (ContainerSeen) isEvent() {}
func (NamespaceSeen) isEvent() {}
func (ScanBegun) isEvent()     {}
func (ScanEnded) isEvent()     {}
func (SourceLost) isEvent()    {}
func (SourceBack) isEvent()    {}
func (CaseResumed) isEvent()   {}
func (CaseDropped) isEvent()   {}
func (Ordered) isEvent()       {}
func (CaseAbandoned) isEvent() {}
func (Braked) isEvent()        {}
func (RecordKept) isEvent()    {}
func (StepBegun) isEvent()     {}
func (StepEnded) isEvent()     {}

// A Member is one process that is, or may be, of a program.
type Member struct {
	Process Process
	Born    time.Time // by the wall clock
	Life    Life      // Unknown: it lives, and what it runs cannot be read
	At      time.Time // of an exit, when it happened
}

// A Client is a process that may have started a container in the foreground, and those that speak to it: the container
// has lost its owner when one of them is dead.
type Client struct {
	Process  Process
	Speakers []Process // ancestors that hold the other end of its standard input
}

// A Step is one thing done to a sandbox on the way from its verdict to its end.
type Step uint8

// The steps, in the order in which they are taken. Not every reap takes all.
const (
	NoStep    Step = iota
	Jot            // note in the docket, for a crash of ours alone, that it is being reaped
	Terminate      // ask its first process to end
	Kill           // end its first process
	Record         // note in the docket, durably, that it is being reaped
	Remove         // remove it and what it leaves
)

func (s Step) String() string {
	switch s {
	case Jot:
		return "jot"
	case Terminate:
		return "terminate"
	case Kill:
		return "kill"
	case Record:
		return "record"
	case Remove:
		return "remove"
	default:
		return "none"
	}
}
