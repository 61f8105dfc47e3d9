package watch

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// Kind says what sort of sandbox something is. Its values are those of the JSON and log field "kind".
type Kind string

// The kinds of sandboxes, and of what belongs to them and is watched like them.
const (
	Container Kind = "container" // of a Docker-compatible engine
	Volume    Kind = "volume"    // a named volume of such an engine
	Network   Kind = "network"   // of such an engine
	File      Kind = "file"      // a file or folder that an owner left behind

	Firecracker Kind = "firecracker" // a microVM, which is a process of its host
	GoMicroVM   Kind = "gomicrovm"   // a microVM of go-microvm, which is a folder and the process that runs it
)

// VanishesWithInit reports whether sandboxes of a kind are known by their first process alone: when that is dead, nothing
// tells any more what they were, so their end must be on record before it is.
func (k Kind) VanishesWithInit() bool { return k == Firecracker }

// OfHost reports whether sandboxes of a kind are of the host itself, and not of an engine, of which there may be another.
func (k Kind) OfHost() bool { return k == File || k == Firecracker || k == GoMicroVM }

// Processes is not a kind of sandbox: it stands for the look at all processes of the host, which can fail like a list.
const Processes Kind = "process"

// An ID names one sandbox for good: the full ID that its system gave it, never a name or a prefix.
type ID struct {
	Kind Kind
	Name string // the system's full identifier
}

// Compare orders IDs by kind and then by name.
func (id ID) Compare(other ID) int {
	return cmp.Or(strings.Compare(string(id.Kind), string(other.Kind)), strings.Compare(id.Name, other.Name))
}

func (id ID) String() string { return string(id.Kind) + " " + id.Name }

// State is the state of a sandbox in the words of the Docker Engine API.
type State string

// States of a container. Others may occur and count as running: a state we do not know may run code.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting"
	Removing   State = "removing"
	Stopped    State = "exited"
	Dead       State = "dead"
)

// Runs reports whether code of the sandbox may be running, or may run again by itself.
func (s State) Runs() bool {
	switch s {
	case Created, Stopped, Dead, Removing:
		return false
	default:
		return true
	}
}

// A Sandbox is one container or microVM as it was last seen.
type Sandbox struct {
	ID      ID
	Name    string
	Image   string
	State   State
	Created time.Time
	Terms   Terms

	// InUse says of a volume or network that a container refers to it, which need not run, and of a file that somebody may
	// have it open.
	InUse bool

	// Existed is a time at which the sandbox is known to have existed, in clock ticks after boot: a process that started
	// later cannot have made it, whatever the wall clock says. Zero: not known.
	Existed uint64

	// Leaves are what it leaves behind that no system keeps for it, as found while it could still be seen. Those that were
	// found once are kept when a later look does not find them, since the process that told of them may be gone.
	Leaves []Leaf

	// Init is the first process of the sandbox, held so that it can be stopped at once; zero if it is not held. Its
	// start time is also a clock that the wall clock cannot lie to (W3).
	Init Process
}

// A Leaf is one thing that a sandbox leaves behind.
type Leaf struct {
	Kind        string `json:"kind"`                  // in the word of the adapter that found it, such as workspace
	Name        string `json:"name"`                  // a path, or a name in the kernel
	Incarnation string `json:"incarnation,omitempty"` // what tells it from a later one of that name, if anything does
}

// AddLeaves returns leaves with those that were found before and are not among them. It changes neither.
func AddLeaves(leaves, before []Leaf) []Leaf {
	for _, old := range before {
		if !slices.ContainsFunc(leaves, func(l Leaf) bool { return l.Kind == old.Kind && l.Name == old.Name }) {
			leaves = append(slices.Clip(leaves), old)
		}
	}
	return leaves
}

// Labels that a sandbox may carry.
const (
	LabelPrefix      = "watcher."
	LabelOwner       = LabelPrefix + "owner"
	LabelTTL         = LabelPrefix + "ttl"
	LabelStopTimeout = LabelPrefix + "stop-timeout"
	LabelKeep        = LabelPrefix + "keep"
	LabelGroup       = LabelPrefix + "group"
)

// Terms are what a sandbox's labels, and the rule that matches it, ask of watcher. The zero Terms ask nothing.
type Terms struct {
	Rule        string        // by which it is watched
	Owners      []Claim       // who may own it: all must be dead; none: nobody is known to
	TTL         time.Duration // 0: none
	StopTimeout time.Duration // 0: killed at once
	Keep        bool
	Group       string
	Fault       string // the first malformed label, in words; such a sandbox is kept

	// What only a rule can say. Nobody said it of this very sandbox, so what follows from it is inferred.
	States    []State       // it is reaped only in these; none: in all
	MaxAge    time.Duration // 0: none
	Ownerless bool          // nobody owns it: being in one of States is ground enough
	Expires   time.Time     // when its time is over; zero: never. A label says that.
	Protected string        // the label by which another manager marks it as its own
}

// ownLabels reports whether a sandbox's own labels, and not a rule, say who owns it.
func (t Terms) ownLabels() bool { return t.Rule == "" || t.Rule == RuleLabels }

// maxDuration bounds the durations in labels. Beyond a hundred years a number is a mistake, and adding it to a time
// could overflow and turn "never" into "long ago".
const maxDuration = 100 * 365 * 24 * time.Hour

// ParseTerms reads the watcher labels among labels. The second result is false if there are none: such a sandbox does
// not exist for watcher. An unknown label with our prefix is a fault, because a misspelt watcher.keep must not kill.
func ParseTerms(labels map[string]string) (Terms, bool) {
	var keys []string
	for key := range labels {
		if strings.HasPrefix(key, LabelPrefix) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return Terms{}, false
	}
	sort.Strings(keys) // so that of several faults the same one is told each time
	t := Terms{Rule: RuleLabels}
	for _, key := range keys {
		if err := t.read(key, labels[key]); err != nil && t.Fault == "" {
			t.Fault = err.Error()
		}
	}
	return t, true
}

func (t *Terms) read(key, value string) (err error) {
	switch key {
	case LabelOwner:
		var owner Claim
		if owner, err = ParseClaim(value); err == nil {
			t.Owners = []Claim{owner}
		}
	case LabelTTL:
		if t.TTL, err = parseDuration(value); err == nil && t.TTL == 0 {
			err = fmt.Errorf("%q: a sandbox needs some time to live", clip(value))
		}
	case LabelStopTimeout:
		t.StopTimeout, err = parseDuration(value)
	case LabelKeep:
		if t.Keep = value == "true"; !t.Keep {
			err = fmt.Errorf("%q: want true", clip(value))
		}
	case LabelGroup:
		if t.Group = value; value == "" {
			err = fmt.Errorf("%q: want a name", value)
		}
	default:
		return fmt.Errorf("%q: no such label", clip(key)) // quoted: it may be anything
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func parseDuration(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, fmt.Errorf("%q: want a duration such as 90m", clip(value))
	}
	if d < 0 || d > maxDuration {
		return 0, fmt.Errorf("%q: out of range, want 0s to %s", clip(value), maxDuration)
	}
	return d, nil
}
