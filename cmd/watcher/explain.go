package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"watcher/reap"
	"watcher/watch"
)

func newExplainCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain ID",
		Short: "Explain the verdict on one sandbox",
		Long: "Explain the verdict on one sandbox, named by its full ID, a unique prefix of it, or its exact name: the rule that\n" +
			"matches, each piece of evidence with its source, and what would change the verdict.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seen, err := o.survey(cmd.Context())
			if err != nil {
				return err
			}
			e, err := find(seen.picture, args[0])
			if err != nil {
				return err
			}
			x := explanation{e, seen.policy.Judge(seen.picture, e, seen.now), seen.rules, seen.policy, seen.now}
			if o.output == asJSON {
				return writeJSON(cmd.OutOrStdout(), explained{newRow(e, x.verdict), x.rule(), x.evidence(), x.change()})
			}
			return x.write(cmd.OutOrStdout())
		},
	}
	addOutput(cmd, o)
	return cmd
}

// explained is a sandbox in the JSON of explain.
type explained struct {
	row
	Why      string   `json:"why"` // it is watched
	Evidence []string `json:"evidence"`
	Change   string   `json:"change"` // what would change the verdict
}

// find returns the sandbox that a user means. What is not unique is an error that names the candidates.
func find(p *watch.Picture, name string) (*watch.Entry, error) {
	if name == "" {
		return nil, usageError{fmt.Errorf("an empty ID names nothing")}
	}
	var found []*watch.Entry
	for _, id := range p.IDs() {
		e := p.Entry(id)
		if id.Name == name || e.Name == name {
			return e, nil
		}
		if strings.HasPrefix(id.Name, name) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no sandbox is called %q; watcher list shows those that are watched", name)
	case 1:
		return found[0], nil
	default:
		var names []string
		for _, e := range found {
			names = append(names, fmt.Sprintf("%s (%s)", e.ID.Name, e.Name))
		}
		return nil, fmt.Errorf("%q is ambiguous: %s", name, strings.Join(names, ", "))
	}
}

// An explanation is a verdict and what led to it, in the words of a person.
type explanation struct {
	entry   *watch.Entry
	verdict reap.Judgement
	rules   *watch.Rules
	policy  reap.Policy
	now     time.Time
}

func (x explanation) write(w io.Writer) error {
	e, j := x.entry, x.verdict
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s"+format+"\n", append([]any{key + ":"}, args...)...)
	}
	if e.Name == e.ID.Name || e.Name == "" {
		line(string(e.ID.Kind), "%s", printable(e.ID.Name))
	} else {
		line(string(e.ID.Kind), "%s (%s)", printable(e.ID.Name), printable(e.Name))
	}
	if e.Image != "" {
		line("image", "%s", printable(e.Image))
	}
	line("state", "%s, created %s ago at %s", e.State, age(x.now.Sub(e.Created)), e.Created.Local().Format(time.RFC3339))
	line("rule", "%s", x.rule())
	for _, said := range x.evidence() {
		line("evidence", "%s", printable(said))
	}
	line("verdict", "%s, because %s", j.Verdict, j.Reason)
	if j.Detail != "" {
		line("that is", "%s", printable(j.Detail))
	}
	line("since", "%s", x.since())
	line("change", "%s", printable(x.change()))
	if !j.Next.IsZero() {
		line("again", "judged again in %s, if nothing happens before", j.Next.Sub(x.now).Round(time.Second))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// rule says by which rule the sandbox is watched, and why that is the one.
func (x explanation) rule() string {
	name := cmp.Or(x.entry.Terms.Rule, watch.RuleLabels)
	i := slices.IndexFunc(x.rules.List, func(r watch.Rule) bool { return r.Name == name })
	if i < 0 {
		return name + ": it carries labels of watcher's own"
	}
	rule := x.rules.List[i]
	if x.entry.ID.Kind == watch.File {
		return name + ": it matches files " + strings.Join(rule.Files, " or ")
	}
	var because []string
	for _, label := range rule.Match.Labels {
		because = append(because, "label "+label.String())
	}
	if rule.Match.Image.Given() {
		because = append(because, "image "+rule.Match.Image.String())
	}
	if rule.Match.Name.Given() {
		because = append(because, "name "+rule.Match.Name.String())
	}
	if rule.Owner.Client {
		because = append(because, "a client in the foreground was seen to start it")
	}
	return fmt.Sprintf("%s, the first that matches: %s", name, strings.Join(because, ", "))
}

// evidence lists the pieces that were weighed, each with where it came from.
func (x explanation) evidence() []string {
	e := x.entry
	var said []string
	for i := range e.Owners {
		said = append(said, x.weigh(&e.Owners[i])...)
	}
	if len(e.Owners) == 0 && e.Terms.Fault == "" {
		switch {
		case e.Terms.Ownerless:
			said = append(said, "by its rule nobody owns it")
		default:
			said = append(said, "nothing names an owner")
		}
	}
	if ttl := e.Terms.TTL; ttl > 0 {
		said = append(said, fmt.Sprintf("label %s gives it %s, until %s", watch.LabelTTL, ttl, e.Created.Add(ttl).Local().Format(time.RFC3339)))
	}
	if most := e.Terms.MaxAge; most > 0 {
		said = append(said, fmt.Sprintf("its rule gives it %s, until %s", most, e.Created.Add(most).Local().Format(time.RFC3339)))
	}
	if end := e.Terms.Expires; !end.IsZero() {
		said = append(said, "a label says that its time is over at "+end.Local().Format(time.RFC3339))
	}
	if e.InUse {
		said = append(said, "it is in use")
	}
	if e.Terms.Keep {
		said = append(said, fmt.Sprintf("label %s pins it", watch.LabelKeep))
	}
	return said
}

// weigh says what one piece of evidence is, and what it says.
func (x explanation) weigh(o *watch.Owner) []string {
	unknown := "could not tell whether it lives"
	if o.Detail != "" {
		unknown += ": " + o.Detail
	}
	switch o.Claim.Kind {
	case watch.ProcessClaim:
		from := "label " + watch.LabelOwner
		if x.entry.Terms.Rule != "" && x.entry.Terms.Rule != watch.RuleLabels {
			from = "the label that its rule names"
		}
		said := []string{fmt.Sprintf("%s says process %s", from, o.Claim)}
		switch {
		case x.verdict.Reason == reap.Rebooted:
			return append(said, "boot ID: another boot's")
		case o.Life == watch.Alive:
			return append(said, fmt.Sprintf("pidfd of %d: the process lives; it started at tick %d after boot", o.Process.PID, o.Process.Start))
		case o.Replaced:
			return append(said, fmt.Sprintf("process %d is a later one that was given the same PID", o.Claim.Process.PID))
		case o.Life == watch.Exited:
			return append(said, fmt.Sprintf("no process %d exists, or it is a zombie", o.Claim.Process.PID))
		}
		return append(said, unknown)
	case watch.ContainerClaim:
		said := []string{fmt.Sprintf("a label says container %s", o.Claim.Container)}
		switch {
		case o.Gone:
			return append(said, "the engine has no such container any more")
		case o.Life == watch.Exited:
			return append(said, fmt.Sprintf("the engine says that container %s exited at %s", shortID(o.Container), o.ExitedAt.Local().Format(time.RFC3339)))
		case o.Life == watch.Alive:
			return append(said, fmt.Sprintf("the engine has container %s, and it has not exited", shortID(o.Container)))
		}
		return append(said, unknown)
	case watch.ProgramClaim:
		said := []string{fmt.Sprintf("any process of %q that is older than the %s may own it", o.Claim.Program, x.entry.ID.Kind)}
		switch o.Life {
		case watch.Alive:
			return append(said, fmt.Sprintf("/proc and a pidfd: process %d is one, and lives; it started at tick %d after boot", o.Process.PID, o.Process.Start))
		case watch.Exited:
			return append(said, "/proc: there is none; newer ones, if any, do not count")
		}
		return append(said, unknown)
	case watch.ClientClaim:
		var said []string
		for _, c := range o.Clients {
			text := fmt.Sprintf("command line and start time: the client %d may have started it", c.Process.PID)
			for _, s := range c.Speakers {
				text += fmt.Sprintf("; process %d speaks to it over standard input", s.PID)
			}
			said = append(said, text)
		}
		switch o.Life {
		case watch.Alive:
			return append(said, fmt.Sprintf("pidfds: the client %d lives, and whoever speaks to it", o.Process.PID))
		case watch.Exited:
			return append(said, fmt.Sprintf("pidfd: process %d has exited", o.Process.PID))
		}
		return append(said, unknown)
	case watch.SocketClaim:
		said := []string{fmt.Sprintf("who listens on %s, as it sees it, may own it", o.Claim.Socket)}
		switch o.Life {
		case watch.Alive:
			return append(said, fmt.Sprintf("connect: process %d listens", o.Process.PID))
		case watch.Exited:
			return append(said, "connect: nobody listens")
		}
		return append(said, unknown)
	case watch.GroupClaim:
		said := []string{fmt.Sprintf("label %s says that it belongs to %q", watch.LabelGroup, o.Claim.Group)}
		switch o.Life {
		case watch.Alive:
			return append(said, "containers of the group exist")
		case watch.Exited:
			return append(said, "the last container of the group was reaped")
		}
		return append(said, o.Detail)
	default:
		return nil
	}
}

// since says from when on the verdict has held, as far as that is known.
func (x explanation) since() string {
	e, j := x.entry, x.verdict
	died := e.Owner().ExitedAt
	switch {
	case j.Reason == reap.Expired && e.Terms.TTL > 0 && !x.now.Before(e.Created.Add(e.Terms.TTL)):
		return e.Created.Add(e.Terms.TTL).Local().Format(time.RFC3339)
	case j.Reason == reap.Expired && !e.Terms.Expires.IsZero():
		return e.Terms.Expires.Local().Format(time.RFC3339)
	case j.Reason == reap.Expired:
		return e.Created.Add(e.Terms.MaxAge).Local().Format(time.RFC3339)
	case j.Owner == watch.Exited && !died.IsZero():
		return died.Local().Format(time.RFC3339)
	case j.Owner == watch.Exited:
		return "before this look; nobody saw the owner die"
	default:
		return e.Created.Local().Format(time.RFC3339) + ", when it was created"
	}
}

// change says what would change the verdict.
func (x explanation) change() string {
	o := x.entry.Owner()
	switch x.verdict.Reason {
	case reap.OwnerAlive:
		if n := len(x.entry.Owners); n > 1 {
			return fmt.Sprintf("it is reaped when all %d of its owners are dead", n)
		}
		switch o.Claim.Kind {
		case watch.ProgramClaim:
			return fmt.Sprintf("it is reaped when process %d and every other of %q that is older have exited", o.Process.PID, o.Claim.Program)
		case watch.ClientClaim:
			return fmt.Sprintf("it is reaped when the client %d, or who speaks to it, has exited", o.Process.PID)
		case watch.ContainerClaim:
			return fmt.Sprintf("it is reaped when container %s has exited for longer than %s, or is removed", shortID(o.Container), x.policy.Grace)
		case watch.GroupClaim:
			return "it is reaped when the last container of its group has been reaped"
		case watch.SocketClaim:
			return fmt.Sprintf("it is reaped when nobody listens on %s any more", o.Claim.Socket)
		default:
			return fmt.Sprintf("it is reaped when process %d has exited", o.Process.PID)
		}
	case reap.OwnerUnknown:
		return "it is kept until what could not be told can be told"
	case reap.BadLabel:
		return "nothing but you: labels cannot be changed, so remove it yourself or make it anew"
	case reap.Pinned:
		return "nothing but you: remove it yourself"
	case reap.Protected:
		return "a rule that serves this label, with the key serves"
	case reap.NotOwned:
		if len(x.entry.Terms.States) > 0 {
			return "another state, of those that its rule is about; or time, if its rule gives it one"
		}
		return "nothing happens to it before its time is over, if it has one"
	case reap.InUse:
		return "it is reaped when nobody uses it any more"
	case reap.TooYoung:
		return "time, and what the next look finds"
	case reap.Retrying:
		return "the next attempt; watcher failed tells more"
	default:
		return "nothing: a running watcher reaps it at once, watcher --once when it is called"
	}
}
