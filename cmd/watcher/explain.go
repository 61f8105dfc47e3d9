package main

import (
	"fmt"
	"io"
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
		Long:  "Explain the verdict on one sandbox, named by its full ID, a unique prefix of it, or its exact name.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seen, err := o.survey(cmd.Context())
			if err != nil {
				return err
			}
			e, err := find(seen.picture, args[0])
			if err != nil {
				return err
			}
			j := seen.policy.Judge(seen.picture, e, seen.now)
			if o.output == asJSON {
				return writeJSON(cmd.OutOrStdout(), explained{newRow(e, j), evidence(e, j)})
			}
			return explain(cmd.OutOrStdout(), e, j, seen.now)
		},
	}
	addOutput(cmd, o)
	return cmd
}

// explained is a sandbox in the JSON of explain.
type explained struct {
	row
	Evidence []string `json:"evidence"`
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

// explain writes the verdict on a sandbox and what led to it.
func explain(w io.Writer, e *watch.Entry, j reap.Judgement, now time.Time) error {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s"+format+"\n", append([]any{key + ":"}, args...)...)
	}
	line(string(e.ID.Kind), "%s (%s)", e.ID.Name, e.Name)
	line("image", "%s", e.Image)
	line("state", "%s, created %s ago at %s", e.State, age(now.Sub(e.Created)), e.Created.Local().Format(time.RFC3339))
	line("rule", "%s: it carries labels of watcher's own", reap.RuleLabels)
	for _, said := range evidence(e, j) {
		line("evidence", "%s", said)
	}
	line("verdict", "%s, because %s", j.Verdict, j.Reason)
	if j.Detail != "" {
		line("that is", "%s", printable(j.Detail))
	}
	if since := e.Owner.ExitedAt; j.Verdict == reap.Reap && !since.IsZero() {
		line("since", "%s", since.Local().Format(time.RFC3339))
	}
	if !j.Next.IsZero() {
		line("again", "judged again in %s, if nothing happens before", j.Next.Sub(now).Round(time.Second))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// evidence lists the pieces that were weighed, each with where it came from.
func evidence(e *watch.Entry, j reap.Judgement) []string {
	var said []string
	o := &e.Owner
	switch o.Claim.Kind {
	case watch.ProcessClaim:
		said = append(said, fmt.Sprintf("label %s says process %s", watch.LabelOwner, o.Claim))
		switch {
		case j.Reason == reap.Rebooted:
			said = append(said, "boot ID: another boot's")
		case o.Life == watch.Alive:
			said = append(said, fmt.Sprintf("pidfd of %d: the process lives; it started at tick %d after boot", o.Process.PID, o.Process.Start))
		case o.Replaced:
			said = append(said, fmt.Sprintf("process %d is a later one that was given the same PID", o.Claim.Process.PID))
		case o.Life == watch.Exited:
			said = append(said, fmt.Sprintf("no process %d exists, or it is a zombie", o.Claim.Process.PID))
		default:
			said = append(said, "could not tell whether it lives")
		}
	case watch.ContainerClaim:
		said = append(said, fmt.Sprintf("label %s says container %s", watch.LabelOwner, o.Claim.Container))
		switch {
		case o.Gone:
			said = append(said, "the engine has no such container any more")
		case o.Life == watch.Exited:
			said = append(said, fmt.Sprintf("the engine says that container %s exited at %s", shortID(o.Container), o.ExitedAt.Local().Format(time.RFC3339)))
		case o.Life == watch.Alive:
			said = append(said, fmt.Sprintf("the engine has container %s, and it has not exited", shortID(o.Container)))
		default:
			said = append(said, "could not tell whether it lives")
		}
	default:
		if e.Terms.Fault == "" {
			said = append(said, "no label names an owner")
		}
	}
	if ttl := e.Terms.TTL; ttl > 0 {
		said = append(said, fmt.Sprintf("label %s gives it %s, until %s", watch.LabelTTL, ttl, e.Created.Add(ttl).Local().Format(time.RFC3339)))
	}
	if e.Terms.Keep {
		said = append(said, fmt.Sprintf("label %s pins it", watch.LabelKeep))
	}
	return said
}
