package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"watcher/platform/docker"
	"watcher/reap"
	"watcher/watch"
)

// A deadLetter is one reap that was given up, in the output of failed.
type deadLetter struct {
	Kind     watch.Kind  `json:"kind"`
	ID       string      `json:"id"`
	Name     string      `json:"name"`
	Rule     string      `json:"rule"`
	Reason   reap.Reason `json:"reason"`
	Attempts int         `json:"attempts"`
	Error    string      `json:"error"`
	First    time.Time   `json:"first"`
	Last     time.Time   `json:"last"`
	Next     time.Time   `json:"next"`
}

func newFailedCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "failed",
		Short: "Show the dead letters: reaps that kept failing",
		Long: "Show the dead letters: sandboxes whose removal failed so often that it is only tried now and then.\n" +
			"One whose sandbox is gone goes by itself.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			letters, err := deadLetters(o.docket(c), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return o.writeLetters(cmd.OutOrStdout(), letters, time.Now())
		},
	}
	addOutput(cmd, o)
	retry := &cobra.Command{
		Use:   "retry ID",
		Short: "Try once more now to remove a sandbox",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.retryFailed(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
		},
	}
	drop := &cobra.Command{
		Use:   "drop ID",
		Short: "Give a sandbox up: keep it from now on, whatever its owner does",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			docket := o.docket(c)
			letter, err := findLetter(docket, cmd.ErrOrStderr(), args[0])
			if err != nil {
				return err
			}
			if err := docket.Drop(letter.Sandbox()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "dropped %s %s (%s); it is kept from now on\n", letter.Kind, shortID(letter.ID), letter.Name)
			return err
		},
	}
	cmd.AddCommand(retry, drop)
	usageOf(retry)
	usageOf(drop)
	return cmd
}

// docket is the docket of the state directory that the flags name, as far as it is about the configured engine.
func (o *options) docket(c *config) *reap.Docket {
	return reap.NewDocket(o.stateDirectory()).For(docker.New(c.Docker.Host, nil, nil).Host())
}

func (o *options) stateDirectory() string {
	// A unit may have several, with colons between them (systemd.exec(5)); ours has one.
	ofUnit, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	return cmp.Or(o.stateDir, ofUnit, defaultStateDir)
}

// deadLetters reads the dead letters. Damaged records are told and left out.
func deadLetters(docket *reap.Docket, stderr io.Writer) ([]reap.Case, error) {
	cases, damaged, err := docket.Load()
	if err != nil {
		return nil, err
	}
	for _, err := range damaged {
		fmt.Fprintln(stderr, "watcher: a damaged record was left out:", err)
	}
	return slices.DeleteFunc(cases, func(c reap.Case) bool { return !c.GaveUp }), nil
}

func findLetter(docket *reap.Docket, stderr io.Writer, name string) (reap.Case, error) {
	letters, err := deadLetters(docket, stderr)
	if err != nil {
		return reap.Case{}, err
	}
	if name == "" {
		return reap.Case{}, usageError{errors.New("an empty ID names nothing")}
	}
	var found []reap.Case
	for _, c := range letters {
		if c.ID == name || c.Name == name {
			return c, nil
		}
		if strings.HasPrefix(c.ID, name) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return reap.Case{}, fmt.Errorf("no dead letter is called %q; watcher failed lists them", name)
	case 1:
		return found[0], nil
	default:
		var names []string
		for _, c := range found {
			names = append(names, fmt.Sprintf("%s (%s)", c.ID, c.Name))
		}
		return reap.Case{}, fmt.Errorf("%q is ambiguous: %s", name, strings.Join(names, ", "))
	}
}

// retryFailed tries one dead letter once more. A daemon beside us sees the sandbox go and closes its case; if the
// attempt fails the daemon's own next attempt is as it was.
func (o *options) retryFailed(ctx context.Context, stdout, stderr io.Writer, name string) error {
	c, err := o.load()
	if err != nil {
		return err
	}
	docket := o.docket(c)
	letter, err := findLetter(docket, stderr, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	said := func(step string, err error) {
		if err != nil {
			fmt.Fprintf(stdout, "FAIL  %s: %v\n", step, err)
		} else {
			fmt.Fprintf(stdout, "ok    %s\n", step)
		}
	}
	err = removeOnce(ctx, c, letter, said)
	step := fmt.Sprintf("remove %s %s (%s)", letter.Kind, shortID(letter.ID), letter.Name)
	if err != nil {
		fmt.Fprintf(stdout, "FAIL  %s: %v\n", step, err)
		return errSaid
	}
	fmt.Fprintf(stdout, "ok    %s\n", step)
	return docket.Close(letter.Sandbox())
}

// removeOnce makes one attempt at a removal, by what is on record.
func removeOnce(ctx context.Context, c *config, letter reap.Case, tell reap.Tell) error {
	if !letter.Kind.OfHost() {
		return docker.New(c.Docker.Host, nil, nil).RemoveOnce(ctx, letter.Sandbox())
	}
	p, err := assemble(c)
	if err != nil {
		return err
	}
	defer p.close()
	for _, s := range p.systems() {
		if s.Kind() == letter.Kind {
			return s.Remove(ctx, letter.Known(), tell)
		}
	}
	return fmt.Errorf("remove %s: of a kind that is not served", letter.Sandbox())
}

func (o *options) writeLetters(w io.Writer, letters []reap.Case, now time.Time) error {
	slices.SortFunc(letters, func(a, b reap.Case) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	if o.output == asJSON {
		rows := []deadLetter{} // an empty array and not null
		for _, c := range letters {
			rows = append(rows, deadLetter{
				Kind: c.Kind, ID: c.ID, Name: c.Name, Rule: c.Rule, Reason: c.Reason,
				Attempts: c.Attempts, Error: c.Error, First: c.First, Last: c.Last, Next: c.Next,
			})
		}
		return writeJSON(w, rows)
	}
	if len(letters) == 0 {
		_, err := fmt.Fprintln(w, "no dead letters")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tID\tNAME\tREASON\tATTEMPTS\tLAST\tERROR")
	for _, c := range letters {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s ago\t%s\n", c.Kind, shortID(c.ID), cmp.Or(c.Name, "-"), c.Reason, c.Attempts, age(now.Sub(c.Last)), printable(c.Error))
	}
	return t.Flush()
}
