package watch

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Life is what is known about whether something lives.
type Life uint8

// The three answers. Unknown is never grounds to reap.
const (
	Unknown Life = iota
	Alive
	Exited
)

func (l Life) String() string {
	switch l {
	case Alive:
		return "alive"
	case Exited:
		return "exited"
	default:
		return "unknown"
	}
}

// MaxPID is the largest PID that Linux can give out on 64-bit machines, PID_MAX_LIMIT in include/linux/threads.h.
const MaxPID = 4194304

// A Process names one incarnation of a PID: PIDs are reused within a boot, and start times across boots.
// The zero Process names nobody.
type Process struct {
	PID   int
	Start uint64 // clock ticks after boot, field 22 of /proc/PID/stat (proc_pid_stat(5))
	Boot  string // /proc/sys/kernel/random/boot_id
}

// Label writes p in the form PID:START:BOOT of the label watcher.owner.
func (p Process) Label() string {
	return fmt.Sprintf("%d:%d:%s", p.PID, p.Start, p.Boot)
}

// ClaimKind says what sort of owner a claim names.
type ClaimKind uint8

// The sorts of owners. A NoClaim names nobody.
const (
	NoClaim        ClaimKind = iota
	ProcessClaim             // one process
	ContainerClaim           // one container
	ProgramClaim             // any process of a program that is older than the sandbox
	ClientClaim              // the client that started a container in the foreground
	SocketClaim              // who listens on a socket
	GroupClaim               // the containers of a group, of what belongs to them
	AncestorClaim            // an ancestor that runs a program
	LockClaim                // who holds a lock on a file
	RecordClaim              // the process that a file names, or one of the files that match a glob
)

func (k ClaimKind) String() string {
	switch k {
	case ProcessClaim:
		return "process"
	case ContainerClaim:
		return "container"
	case ProgramClaim:
		return "program"
	case ClientClaim:
		return "client"
	case SocketClaim:
		return "socket"
	case GroupClaim:
		return "group"
	case AncestorClaim:
		return "ancestor"
	case LockClaim:
		return "lock"
	case RecordClaim:
		return "record"
	default:
		return ""
	}
}

// A Claim is what a sandbox says of its owner. A process claim may lack Start and Boot; then only the PID is claimed.
type Claim struct {
	Kind      ClaimKind
	Process   Process
	Container string // ID or name, as written
	Program   string // as a rule has it, see [NewProgram]
	Socket    string // as the sandbox sees it
	Group     string
	File      string // that is locked, or that names the owner; of a record also a glob, see [Claim.Registry]
}

// Registry reports whether owners record themselves in files of which c has the glob. That none of them names the owner is no
// record of its death: it may not have recorded itself yet, or not any more.
func (c Claim) Registry() bool { return c.Kind == RecordClaim && strings.ContainsAny(c.File, "*?") }

// Sought reports whether only the adapter that looks for the owner can say what became of it, with an [OwnerSeen].
func (k ClaimKind) Sought() bool {
	switch k {
	case SocketClaim, AncestorClaim, LockClaim, RecordClaim:
		return true
	default:
		return false
	}
}

// String is the claim in the form of the label, or for one that no label can make the kind of owner and its name.
func (c Claim) String() string {
	switch {
	case c.Kind == ContainerClaim:
		return containerPrefix + c.Container
	case c.Kind == ProgramClaim:
		return "program:" + c.Program
	case c.Kind == ClientClaim:
		return "client"
	case c.Kind == SocketClaim:
		return "socket:" + c.Socket
	case c.Kind == GroupClaim:
		return "group:" + c.Group
	case c.Kind == AncestorClaim:
		return "ancestor:" + c.Program
	case c.Kind == LockClaim:
		return "lock:" + c.File
	case c.Kind == RecordClaim:
		return "record:" + c.File
	case c.Kind == NoClaim:
		return ""
	case c.Process.Boot != "":
		return c.Process.Label()
	case c.Process.Start != 0:
		return fmt.Sprintf("%d:%d", c.Process.PID, c.Process.Start)
	default:
		return strconv.Itoa(c.Process.PID)
	}
}

const containerPrefix = "container:"

// ParseClaim reads a value of the label watcher.owner: PID, PID:START, PID:START:BOOT or container:ID-or-name.
// It accepts exactly what this package writes and nothing near it: a value that needs guessing is an error, since the
// guess could name a process that never owned the sandbox.
func ParseClaim(value string) (Claim, error) {
	if ref, ok := strings.CutPrefix(value, containerPrefix); ok {
		if !validContainerRef(ref) {
			return Claim{}, fmt.Errorf("owner %q: not a container ID or name", clip(value))
		}
		return Claim{Kind: ContainerClaim, Container: ref}, nil
	}
	parts := strings.Split(value, ":")
	if len(parts) > 3 {
		return Claim{}, fmt.Errorf("owner %q: want PID, PID:START, PID:START:BOOT or container:ID", clip(value))
	}
	pid, err := parseDecimal(parts[0])
	if err != nil || pid == 0 || pid > MaxPID {
		return Claim{}, fmt.Errorf("owner %q: PID must be a decimal number from 1 to %d", clip(value), MaxPID)
	}
	c := Claim{Kind: ProcessClaim, Process: Process{PID: int(pid)}}
	if len(parts) > 1 {
		// PID 1 may have started in tick 0 of its boot, but a claim of 0 would read as "no start time given".
		if c.Process.Start, err = parseDecimal(parts[1]); err != nil || c.Process.Start == 0 && pid != 1 {
			return Claim{}, fmt.Errorf("owner %q: START must be field 22 of /proc/PID/stat", clip(value))
		}
	}
	if len(parts) > 2 {
		if c.Process.Boot = parts[2]; !validBootID(c.Process.Boot) {
			return Claim{}, fmt.Errorf("owner %q: BOOT must be /proc/sys/kernel/random/boot_id", clip(value))
		}
	}
	return c, nil
}

var errDecimal = errors.New("not a plain decimal number")

// parseDecimal is strconv.ParseUint without its liberties: no sign, no leading zero, no underscore.
func parseDecimal(s string) (uint64, error) {
	if s == "" || s[0] == '0' && len(s) > 1 || strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, errDecimal
	}
	return strconv.ParseUint(s, 10, 64)
}

// validBootID reports whether s is a UUID as the kernel prints it: lower case, 8-4-4-4-12 (random(4)).
func validBootID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if r != '-' {
				return false
			}
		} else if !strings.ContainsRune("0123456789abcdef", r) {
			return false
		}
	}
	return true
}

// validContainerRef reports whether s can name a container: the engine takes [a-zA-Z0-9][a-zA-Z0-9_.-]+ as a name, and
// an ID is a subset of that.
func validContainerRef(s string) bool {
	if s == "" || len(s) > 255 || strings.ContainsRune("_.-", rune(s[0])) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_.-", r)
	})
}

// clip keeps a hostile value from flooding the log.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// clockSlack is how far two readings of the wall clock may disagree about the order of two events: the clock is
// stepped by NTP, and a process's birth is rounded to a tick.
const clockSlack = 2 * time.Second
