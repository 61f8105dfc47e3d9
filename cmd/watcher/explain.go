package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"watcher/platform/docker"
	"watcher/platform/process"
	"watcher/platform/statedir"
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
			if errors.Is(err, errUnwatched) {
				return errors.Join(err, o.whyUnwatched(cmd.Context(), seen.rules, args[0]), o.otherRules())
			}
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

// errUnwatched says that something is not among what is watched.
var errUnwatched = errors.New("watcher list shows those that are watched")

// otherRules says that a daemon runs, whose rules may be others than those of the command line; nil if none does.
func (o *options) otherRules() error {
	dir, err := filepath.Abs(o.stateDirectory())
	if err != nil {
		return nil
	}
	life, pid, err := statedir.Locked(dir)
	if err != nil || life != watch.Alive {
		return nil // whoever cannot be found has no rules to tell of
	}
	who := "a daemon runs"
	if pid != 0 {
		who = fmt.Sprintf("a daemon runs, process %d", pid)
	}
	return fmt.Errorf("%s: if it was started with --config or --preset, give the same here", who)
}

// whyUnwatched says why a container that exists is not watched; nil if there is none, or nobody can tell.
func (o *options) whyUnwatched(ctx context.Context, rules *watch.Rules, name string) error {
	c, err := o.load()
	if err != nil {
		return nil // it was loaded before
	}
	host, err := process.NewHost(procRoot)
	if err != nil {
		return nil
	}
	engine := docker.New(c.Docker.Host, host, func(...watch.Event) {})
	defer engine.Close()
	facts, id, err := engine.Describe(ctx, name)
	if err != nil {
		return nil // what it is was asked of whoever knows sandboxes; this is only a word more
	}
	why, unwatched := rules.Unwatched(facts)
	switch {
	case !unwatched:
		return nil
	case len(why) == 0:
		return fmt.Errorf("container %s exists, and has no label of watcher's; there is no rule", shortID(id))
	default:
		return fmt.Errorf("container %s exists, and has no label of watcher's; %s", shortID(id), strings.Join(why, "; "))
	}
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
		return nil, fmt.Errorf("no sandbox is called %q; %w", name, errUnwatched)
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
		fmt.Fprintf(&b, "%-10s "+format+"\n", append([]any{key + ":"}, args...)...)
	}
	if e.Name == e.ID.Name || e.Name == "" {
		line(string(e.ID.Kind), "%s", printable(e.ID.Name))
	} else {
		line(string(e.ID.Kind), "%s (%s)", printable(e.ID.Name), printable(e.Name))
	}
	if e.Image != "" {
		line("image", "%s", printable(e.Image))
	}
	line("state", "%s, created %s ago at %s", e.State, age(x.now.Sub(e.Created)), moment(e.Created))
	line("rule", "%s", x.rule())
	said := x.evidence()
	for _, piece := range said {
		line("evidence", "%s", printable(piece))
	}
	line("verdict", "%s, because %s", j.Verdict, j.Reason)
	if j.Detail != "" && !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, j.Detail) }) {
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
	rule, ok := x.byRule()
	if !ok {
		return watch.RuleLabels + ": it carries labels of watcher's own"
	}
	name := rule.Name
	if x.entry.ID.Kind == watch.File {
		return name + ": it matches files " + strings.Join(rule.Files, " or ")
	}
	var because []string
	switch x.entry.ID.Kind {
	case watch.Firecracker:
		because = append(because, "it is at home in "+strings.Join(slices.Concat(rule.BaseDirs, rule.JailDirs), " or "))
	case watch.GoMicroVM:
		because = append(because, "it is in "+strings.Join(rule.Dirs, " or "))
	}
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

// byRule is the rule by which the sandbox is watched; false if that are watcher's own labels.
func (x explanation) byRule() (watch.Rule, bool) {
	i := slices.IndexFunc(x.rules.List, func(r watch.Rule) bool { return r.Name == x.entry.Terms.Rule })
	if i < 0 {
		return watch.Rule{}, false
	}
	return x.rules.List[i], true
}

// label is the label that names an owner: watcher's own, or the one that the rule has for that.
func (x explanation) label(of func(watch.Evidence) string) string {
	if rule, ok := x.byRule(); ok && of(rule.Owner) != "" {
		return fmt.Sprintf("label %s, which rule %s reads,", of(rule.Owner), rule.Name)
	}
	return "label " + watch.LabelOwner
}

func moment(t time.Time) string { return t.Local().Format(time.RFC3339) }

// evidence lists the pieces that were weighed, each with where it came from.
func (x explanation) evidence() []string {
	e := x.entry
	var said []string
	for i := range e.Owners {
		said = append(said, x.weigh(&e.Owners[i])...)
	}
	switch {
	case e.Terms.Fault != "":
		said = append(said, "a label is malformed: "+e.Terms.Fault)
	case e.Terms.Protected != "":
		said = append(said, "label "+e.Terms.Protected+" is that of another manager")
	case e.Terms.Ownerless:
		said = append(said, "its rule says that nobody owns it")
	case len(e.Owners) == 0:
		said = append(said, "nothing says who owns it")
	}
	if ttl := e.Terms.TTL; ttl > 0 {
		said = append(said, fmt.Sprintf("label %s gives it %s, until %s", watch.LabelTTL, ttl, moment(e.Created.Add(ttl))))
	}
	if most := e.Terms.MaxAge; most > 0 {
		said = append(said, fmt.Sprintf("its rule gives it %s, until %s", most, moment(e.Created.Add(most))))
	}
	if end := e.Terms.Expires; !end.IsZero() {
		said = append(said, fmt.Sprintf("%s says that its time is over at %s", x.expiry(), moment(end)))
	}
	if e.InUse {
		who := "a container refers to it"
		if e.ID.Kind == watch.File {
			who = "somebody has it open"
		}
		said = append(said, "it is in use: "+who)
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
		from := x.label(func(e watch.Evidence) string { return e.PIDLabel })
		said := []string{fmt.Sprintf("%s says process %s", from, o.Claim)}
		switch {
		case x.verdict.Reason == reap.Rebooted:
			return append(said, "boot ID: that is of an earlier boot, and no process outlives its boot")
		case o.Life == watch.Alive:
			return append(said, fmt.Sprintf("pidfd: process %d lives; it started at tick %d after boot", o.Process.PID, o.Process.Start))
		case o.Replaced:
			return append(said, fmt.Sprintf("process %d is another one, which was given the same PID later", o.Claim.Process.PID))
		case o.Life == watch.Exited:
			return append(said, fmt.Sprintf("/proc: process %d is dead; it is gone, or a zombie", o.Claim.Process.PID))
		}
		return append(said, unknown)
	case watch.ContainerClaim:
		from := x.label(func(e watch.Evidence) string { return e.ContainerLabel })
		said := []string{fmt.Sprintf("%s says container %s", from, o.Claim.Container)}
		switch {
		case o.Gone:
			return append(said, "the engine has no such container: it is gone, or the label is misspelt")
		case o.Life == watch.Exited:
			return append(said, fmt.Sprintf("the engine says that container %s exited at %s", shortID(o.Container), moment(o.ExitedAt)))
		case o.Life == watch.Alive:
			return append(said, fmt.Sprintf("the engine has container %s, and it has not exited", shortID(o.Container)))
		}
		return append(said, unknown)
	case watch.ProgramClaim:
		said := []string{fmt.Sprintf("any process of %q may own it, if it is older than the %s", o.Claim.Program, x.entry.ID.Kind)}
		switch o.Life {
		case watch.Alive:
			return append(said, lives(o.Process, "is one"))
		case watch.Exited:
			return append(said, "/proc: there is none; a newer one, if there is any, cannot have made it")
		}
		return append(said, unknown)
	case watch.ClientClaim:
		var said []string
		for _, c := range o.Clients {
			said = append(said, fmt.Sprintf("command line and start time: client %d may have started it", c.Process.PID))
			for _, s := range c.Speakers {
				said = append(said, fmt.Sprintf("/proc: process %d speaks to client %d over its standard input", s.PID, c.Process.PID))
			}
		}
		switch o.Life {
		case watch.Alive:
			return append(said, fmt.Sprintf("pidfd: client %d lives, and so does who speaks to it, if anybody does", o.Process.PID))
		case watch.Exited:
			return append(said, fmt.Sprintf("pidfd: process %d has exited", o.Process.PID))
		}
		return append(said, unknown)
	case watch.SocketClaim:
		said := []string{fmt.Sprintf("whoever listens on %s may own it; that is a path in the container", o.Claim.Socket)}
		switch o.Life {
		case watch.Alive:
			return append(said, fmt.Sprintf("connect: process %d listens there", o.Process.PID))
		case watch.Exited:
			return append(said, "connect: nobody listens there")
		}
		return append(said, unknown)
	case watch.AncestorClaim:
		said := []string{fmt.Sprintf("a process of %q among its ancestors owns it", o.Claim.Program)}
		switch o.Life {
		case watch.Alive:
			return append(said, lives(o.Process, "is one"))
		case watch.Exited:
			return append(said, "/proc: there is none up to the first process")
		}
		return append(said, unknown)
	case watch.LockClaim:
		said := []string{fmt.Sprintf("whoever holds the lock on %s owns it", o.Claim.File)}
		switch {
		case o.Life == watch.Alive && o.Process.PID != 0:
			return append(said, fmt.Sprintf("flock: process %d holds it", o.Process.PID))
		case o.Life == watch.Alive:
			return append(said, "flock: somebody holds it")
		case o.Life == watch.Exited:
			return append(said, "flock: nobody holds it")
		}
		return append(said, unknown)
	case watch.RecordClaim:
		said := []string{fmt.Sprintf("the process that %s names owns it", o.Claim.File)}
		switch o.Life {
		case watch.Alive:
			return append(said, lives(o.Process, "is that"))
		case watch.Exited:
			return append(said, "/proc: that process has exited")
		}
		return append(said, unknown)
	case watch.GroupClaim:
		said := []string{fmt.Sprintf("label %s says that it belongs to group %q", watch.LabelGroup, o.Claim.Group)}
		switch o.Life {
		case watch.Alive:
			return append(said, "the engine has containers of the group")
		case watch.Exited:
			return append(said, "watcher has reaped the last container of the group")
		}
		return append(said, o.Detail)
	default:
		return nil
	}
}

// lives says of a process what it is, and that it lives.
func lives(p watch.Process, is string) string {
	return fmt.Sprintf("/proc: process %d %s, and lives; it started at tick %d after boot", p.PID, is, p.Start)
}

// since says from when on the verdict has held, as far as that is known.
func (x explanation) since() string {
	e, j := x.entry, x.verdict
	died := e.Owner().ExitedAt
	switch {
	case j.Reason == reap.Expired && e.Terms.TTL > 0 && !x.now.Before(e.Created.Add(e.Terms.TTL)):
		return moment(e.Created.Add(e.Terms.TTL))
	case j.Reason == reap.Expired && !e.Terms.Expires.IsZero():
		return moment(e.Terms.Expires)
	case j.Reason == reap.Expired:
		return moment(e.Created.Add(e.Terms.MaxAge))
	case j.Owner == watch.Exited && !died.IsZero():
		return moment(died)
	case j.Owner == watch.Exited:
		return "not known; the owner was dead before this look"
	default:
		return moment(e.Created) + ", its creation"
	}
}

// change says what would change the verdict.
func (x explanation) change() string {
	switch x.verdict.Reason {
	case reap.OwnerAlive, reap.Managed:
		text := x.death()
		if end := x.end(); !end.IsZero() {
			text += ", or at " + moment(end)
		}
		return text
	case reap.OwnerUnknown:
		return "it is kept until it can be told whether the owner lives"
	case reap.BadLabel:
		return "nothing but you: a label cannot be changed, so remove it, or make it anew with another"
	case reap.Pinned:
		return "nothing but you: it is kept until you remove it"
	case reap.Protected:
		return fmt.Sprintf("a rule with serves = [%q], or a list protect without it", x.entry.Terms.Protected)
	case reap.NotOwned:
		return x.ground()
	case reap.InUse:
		return "it is reaped when nobody uses it"
	case reap.TooYoung:
		return "time, and what the next look finds"
	case reap.Retrying:
		return "the next attempt; see watcher failed"
	default:
		return "nothing: a running watcher reaps it at once, and watcher --once when it is called"
	}
}

// death says which death it waits for.
func (x explanation) death() string {
	o := x.entry.Owner()
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
	case watch.LockClaim:
		return fmt.Sprintf("it is reaped when nobody holds the lock on %s any more", o.Claim.File)
	default:
		return fmt.Sprintf("it is reaped when process %d has exited", o.Process.PID)
	}
}

// end is when its time is over; zero if it has all the time.
func (x explanation) end() (end time.Time) {
	e := x.entry
	for _, at := range []time.Time{e.Created.Add(e.Terms.TTL), e.Terms.Expires, e.Created.Add(e.Terms.MaxAge)} {
		if at.After(e.Created) && (end.IsZero() || at.Before(end)) {
			end = at
		}
	}
	return end
}

// expiry is the label that says when its time is over.
func (x explanation) expiry() string {
	rule, _ := x.byRule()
	return "label " + rule.ExpiresLabel
}

// ground says what has to happen to something that nobody owns.
func (x explanation) ground() string {
	end := x.end()
	states := x.entry.Terms.States
	switch {
	case x.entry.Owner().Claim.Kind == watch.GroupClaim:
		return "it is reaped when watcher has reaped a container of its group, and the group has none left"
	case len(states) > 0 && !end.After(x.now):
		return "it is reaped when it is " + orOf(states)
	case len(states) > 0:
		return fmt.Sprintf("it is reaped when it is %s, but not before %s", orOf(states), moment(end))
	case !end.IsZero():
		return "it is reaped at " + moment(end)
	default:
		return "nothing: nobody owns it, and it has all the time"
	}
}

func orOf(states []watch.State) string {
	words := make([]string, len(states))
	for i, state := range states {
		words[i] = string(state)
	}
	return strings.Join(words, " or ")
}
