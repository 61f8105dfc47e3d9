package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"watcher/reap"
	"watcher/watch"
)

// A row is one sandbox in the output of list and --once.
type row struct {
	Kind    watch.Kind  `json:"kind"`
	ID      string      `json:"id"`
	Name    string      `json:"name"`
	State   watch.State `json:"state"`
	Created time.Time   `json:"created"`
	Rule    string      `json:"rule"`
	Owner   *owner      `json:"owner"`
	Verdict string      `json:"verdict"`
	Reason  reap.Reason `json:"reason"`
	Detail  string      `json:"detail,omitempty"`
	Result  string      `json:"result"`
	Error   string      `json:"error"`

	// Of one that is being reaped:
	Begun time.Time `json:"begun,omitzero"`
	Left  int64     `json:"left_bytes,omitempty"` // on disk, as far as list could count in a moment
}

type owner struct {
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"` // of a program, socket or group
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
	Boot  string `json:"boot,omitempty"`
	ID    string `json:"id,omitempty"`
	State string `json:"state"`
}

// The results that --once can have for a sandbox; none for one that is kept.
const (
	resultReaped    = "reaped"
	resultFailed    = "failed"
	resultWouldReap = "would-reap"
)

func newRow(e *watch.Entry, j reap.Judgement) row {
	return row{
		Kind: e.ID.Kind, ID: e.ID.Name, Name: e.Name, State: e.State, Created: e.Created.UTC(),
		Rule: cmp.Or(e.Terms.Rule, watch.RuleLabels), Owner: newOwner(e, j),
		Verdict: j.Verdict.String(), Reason: j.Reason, Detail: j.Detail, Begun: e.Progress.Begun.UTC(),
	}
}

// newOwner is the owner that decides, where several pieces of evidence name more than one.
func newOwner(e *watch.Entry, j reap.Judgement) *owner {
	of := e.Owner()
	claim := of.Claim
	o := &owner{Kind: claim.Kind.String(), State: j.Owner.String()}
	switch claim.Kind {
	case watch.NoClaim:
		return nil
	case watch.ContainerClaim:
		o.ID = cmp.Or(of.Container, claim.Container)
		return o
	case watch.GroupClaim:
		o.Name = claim.Group
		return o
	case watch.ProgramClaim:
		o.Name = claim.Program
	case watch.SocketClaim:
		o.Name = claim.Socket
	case watch.AncestorClaim:
		o.Name = claim.Program
	case watch.LockClaim, watch.RecordClaim:
		o.Name = claim.File
	}
	// What a label leaves out is known once the process has been seen.
	o.PID = cmp.Or(claim.Process.PID, of.Process.PID)
	o.Start = cmp.Or(claim.Process.Start, of.Process.Start)
	o.Boot = cmp.Or(claim.Process.Boot, of.Process.Boot)
	return o
}

// state is the state as a table shows it. Only what can run has one worth a look.
func (r row) state() string {
	if r.State == "" || r.Kind == watch.Volume || r.Kind == watch.Network || r.Kind == watch.File {
		return "-"
	}
	return string(r.State)
}

// short is the owner as a table shows it.
func (o *owner) short() string {
	if o == nil {
		return "-"
	}
	who := o.Name
	switch {
	case o.ID != "":
		who = "container " + shortID(o.ID)
	case o.Name == "" && o.PID != 0:
		who = strconv.Itoa(o.PID)
	case o.PID != 0:
		who += " " + strconv.Itoa(o.PID)
	case o.Name == "":
		who = o.Kind
	}
	return fmt.Sprintf("%s (%s)", who, o.State)
}

func shortID(id string) string {
	const enough = 12 // as the engine's own tools shorten it
	if len(id) == 64 {
		return id[:enough]
	}
	return printable(id)
}

// age writes a duration in its largest unit: 45s, 3m, 5h, 12d.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// byKindAndName is the order of rows in output.
func byKindAndName(a, b row) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

// Colours of verdicts. The codes have one length, so that a tab writer that counts them still aligns the columns.
const (
	plain  = "\x1b[39m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
)

// useColor reports whether w is a terminal whose user does not mind colour (no-color.org).
func useColor(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// painter returns what colours a text, or leaves it alone.
func painter(w io.Writer) func(color, s string) string {
	if useColor(w) {
		return func(color, s string) string { return color + s + reset }
	}
	return func(_, s string) string { return s }
}

func writeTable(w io.Writer, rows []row, now time.Time, withResult bool) error {
	paint := painter(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "KIND\tID\tNAME\tAGE\tSTATE\tOWNER\t" + paint(plain, "VERDICT") + "\tREASON"
	if withResult {
		head += "\tRESULT"
	}
	fmt.Fprintln(t, head)
	for _, r := range rows {
		color := map[string]string{"reap": red, "wait": yellow}[r.Verdict]
		line := fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", r.Kind, shortID(r.ID), cmp.Or(r.Name, "-"), age(now.Sub(r.Created)),
			r.state(), r.Owner.short(), paint(cmp.Or(color, green), r.Verdict), r.Reason)
		if r.Left > 0 {
			line += fmt.Sprintf(" (%s left)", units.BytesSize(float64(r.Left)))
		}
		if withResult {
			line += "\t" + r.Result
			if r.Error != "" {
				line += ": " + printable(r.Error)
			}
		}
		fmt.Fprintln(t, line)
	}
	return t.Flush()
}

// printable replaces what could move the cursor of a terminal, or end a table's line: errors hold the words of others.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
