package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"watcher/reap"
	"watcher/watch"
)

func newKillCommand(o *options) *cobra.Command {
	k := &kill{o: o}
	cmd := &cobra.Command{
		Use:   "kill {ID | --rule NAME | --all}",
		Short: "Stop and remove sandboxes now, whatever their owners do",
		Long: "Stop and remove one sandbox now, named by its full ID, a unique prefix of it, or its exact name; or every sandbox of\n" +
			"a rule, or every one, but for those that are pinned, malformed or another manager's. One that a live runner looks after is only\n" +
			"stopped, since the runner cleans up. It is asked first, unless --force.\n\n" +
			"What was begun is on record: if it is interrupted, the daemon or the next watcher --once finishes it.",
		Args: func(_ *cobra.Command, args []string) error { return k.arguments(args) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			k.stdin, k.stdout, k.stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
			err := k.run(cmd.Context())
			if errors.Is(err, errUnwatched) {
				err = errors.Join(err, o.otherRules())
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return o.completeIDs(cmd.Context(), args), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&k.rule, "rule", "", "every sandbox of the rule with this `NAME`")
	cmd.Flags().BoolVar(&k.all, "all", false, "every sandbox")
	cmd.Flags().BoolVar(&k.force, "force", false, "do not ask")
	return cmd
}

// completeIDs are the names and IDs that a shell may offer.
func (o *options) completeIDs(ctx context.Context, args []string) (words []string) {
	if len(args) > 0 {
		return nil
	}
	seen, err := o.survey(ctx)
	if err != nil {
		return nil // a shell has nowhere to say so
	}
	for _, id := range seen.picture.IDs() {
		if name := seen.picture.Entry(id).Name; name != "" {
			words = append(words, name+"\t"+id.String())
		}
		words = append(words, id.Name+"\t"+string(id.Kind))
	}
	return words
}

// A kill is one call of the command.
type kill struct {
	o     *options
	name  string // of one sandbox
	rule  string
	all   bool
	force bool

	stdin          *os.File
	stdout, stderr io.Writer

	mu     sync.Mutex // for what removals tell, from goroutines of their own
	called map[watch.ID]string
	failed map[watch.ID]bool
	err    error // why nothing was ordered
}

// arguments takes what the command line names: one thing and no more, or a slip could cost everything.
func (k *kill) arguments(args []string) error {
	given := len(args)
	if k.all {
		given++
	}
	if k.rule != "" {
		given++
	}
	switch {
	case given != 1:
		return usageError{errors.New("want one ID, or --rule NAME, or --all")}
	case len(args) == 1 && args[0] == "":
		return usageError{errors.New("an empty ID names nothing")}
	case len(args) == 1:
		k.name = args[0]
	}
	return nil
}

// A target is a sandbox that is to be killed, as the operator was shown it.
type target struct {
	id      watch.ID
	created time.Time
	managed bool // it is only stopped
	row     row
}

func (t target) String() string { return called(t.id, t.row.Name) }

// called is how a person is told of a sandbox.
func called(id watch.ID, name string) string {
	if name == "" || name == id.Name {
		return string(id.Kind) + " " + shortID(id.Name)
	}
	return fmt.Sprintf("%s %s (%s)", id.Kind, shortID(id.Name), printable(name))
}

func (k *kill) run(ctx context.Context) error {
	c, err := k.o.load()
	if err != nil {
		return err
	}
	if err := k.o.docket(c).Make(); err != nil {
		return err
	}
	if k.force {
		return k.carryOut(ctx, c, nil)
	}
	seen, err := k.o.runPass(ctx, c, quiet(), true)
	if err != nil {
		return err
	}
	chosen, spared, err := k.choose(seen.picture, seen.policy, seen.now)
	k.tellSpared(spared)
	if err != nil {
		return err
	}
	if !term.IsTerminal(int(k.stdin.Fd())) {
		return errors.New("nobody can be asked, since standard input is no terminal; --force kills without asking")
	}
	if err := k.ask(ctx, chosen); err != nil {
		return err
	}
	return k.carryOut(ctx, c, chosen)
}

// choose finds what the command line names. What is pinned, or may be meant to be, or another manager's must be named itself.
func (k *kill) choose(p *watch.Picture, policy reap.Policy, now time.Time) (chosen []target, spared []string, err error) {
	if k.name != "" {
		e, err := k.find(p)
		if err != nil {
			return nil, nil, err
		}
		return []target{newTarget(p, e, policy, now)}, nil, nil
	}
	for _, id := range p.IDs() {
		e := p.Entry(id)
		switch {
		case !k.all && cmp.Or(e.Terms.Rule, watch.RuleLabels) != k.rule:
		case e.Terms.Keep || p.Dropped(id):
			spared = append(spared, called(id, e.Name)+", which is pinned")
		case e.Terms.Fault != "":
			spared = append(spared, called(id, e.Name)+", of which it is not clear what it says: "+printable(e.Terms.Fault))
		case e.Terms.Protected != "":
			spared = append(spared, called(id, e.Name)+", which is another manager's by its label "+printable(e.Terms.Protected))
		default:
			chosen = append(chosen, newTarget(p, e, policy, now))
		}
	}
	switch {
	case len(chosen) > 0:
	case k.all:
		err = errors.New("there is no sandbox to kill")
	default:
		err = fmt.Errorf("there is no sandbox of rule %q to kill", k.rule)
	}
	return chosen, spared, err
}

func (k *kill) tellSpared(spared []string) {
	if len(spared) > 0 {
		fmt.Fprintf(k.stderr, "watcher: left alone, unless named by its ID: %s\n", strings.Join(spared, "; "))
	}
}

// sandboxes is a number of them.
func sandboxes(n int) string {
	if n == 1 {
		return "1 sandbox"
	}
	return fmt.Sprintf("%d sandboxes", n)
}

func newTarget(p *watch.Picture, e *watch.Entry, policy reap.Policy, now time.Time) target {
	j := policy.Judge(p, e, now)
	return target{e.ID, e.Created, j.Reason == reap.Managed, newRow(e, j)}
}

// find returns the one sandbox that has the name: a full ID, else an exact name, else a unique prefix of an ID.
func (k *kill) find(p *watch.Picture) (*watch.Entry, error) {
	var byID, byName, byPrefix []*watch.Entry
	for _, id := range p.IDs() {
		e := p.Entry(id)
		if id.Name == k.name {
			byID = append(byID, e)
		}
		if e.Name == k.name {
			byName = append(byName, e)
		}
		if strings.HasPrefix(id.Name, k.name) {
			byPrefix = append(byPrefix, e)
		}
	}
	found := byPrefix
	switch {
	case len(byID) > 0:
		found = byID
	case len(byName) > 0:
		found = byName
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no sandbox is called %q; %w", k.name, errUnwatched)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, e := range found {
		names = append(names, fmt.Sprintf("%s (%s)", e.ID, printable(e.Name)))
	}
	return nil, fmt.Errorf("%q is ambiguous: %s", k.name, strings.Join(names, ", "))
}

// ask shows what is to be killed, and returns nil if somebody at the terminal says yes.
func (k *kill) ask(ctx context.Context, chosen []target) error {
	fmt.Fprint(k.stderr, k.question(chosen))
	answers := make(chan string, 1)
	go func() {
		// Nobody can end a read of a terminal; the process does.
		line, _ := bufio.NewReader(k.stdin).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(k.stderr)
	}
	return errors.New("nothing was done")
}

// question is what is asked before anything is done.
func (k *kill) question(chosen []target) string {
	var b strings.Builder
	stopped := 0
	for _, t := range chosen {
		if t.managed {
			stopped++
		}
	}
	if k.name == "" {
		of := ""
		if k.rule != "" {
			of = " of rule " + k.rule
		}
		fmt.Fprintf(&b, "%s%s:\n", sandboxes(len(chosen)), of)
	}
	for _, t := range chosen {
		r := t.row
		fmt.Fprintf(&b, "%s, %s old, rule %s, owner %s: %s, because %s\n", t, age(time.Since(r.Created)), r.Rule, r.Owner.short(), r.Verdict, r.Reason)
		if r.Detail != "" && k.name != "" {
			fmt.Fprintf(&b, "%s\n", printable(r.Detail))
		}
	}
	if k.name != "" {
		switch t := chosen[0]; {
		case t.managed:
			b.WriteString("A live runner looks after it, and cleans up when it is stopped. Stop it? [y/N] ")
		case t.row.Reason == reap.Pinned:
			b.WriteString("It is pinned, and watcher would never reap it. Stop and remove it? [y/N] ")
		case t.row.Reason == reap.Protected:
			b.WriteString("It is another manager's. Stop and remove it? [y/N] ")
		default:
			b.WriteString("Stop and remove it? [y/N] ")
		}
		return b.String()
	}
	if stopped > 0 {
		fmt.Fprintf(&b, "%d of them will only be stopped, since live runners look after them and clean up.\n", stopped)
	}
	fmt.Fprintf(&b, "Stop and remove %s? [y/N] ", sandboxes(len(chosen)))
	return b.String()
}

// carryOut looks again, and kills what is still what the operator was shown; without a question, what is named.
func (k *kill) carryOut(ctx context.Context, c *config, shown []target) error {
	log, closeLog, err := k.o.openLog()
	if err != nil {
		return err
	}
	k.called, k.failed = map[watch.ID]string{}, map[watch.ID]bool{}
	var ordered []target
	p, passErr := k.o.runPass(ctx, c, log, false, func(settings *reap.Config) {
		settings.Told = k.tell
		settings.Order = func(p *watch.Picture, unseen error) (ids []watch.ID) {
			if ctx.Err() != nil {
				return nil
			}
			ordered = k.order(p, unseen, settings, shown)
			for _, t := range ordered {
				ids = append(ids, t.id)
			}
			return ids
		}
	})
	closeLog()
	switch {
	case p == nil:
		return passErr
	case k.err != nil:
		return k.err
	}
	for _, t := range ordered {
		if e := p.picture.Entry(t.id); e != nil && !k.hasFailed(t.id) {
			why := cmp.Or(p.policy.Judge(p.picture, e, p.now).Detail, "it was not begun")
			k.say(t.id, "", errors.New(why))
		}
	}
	failed := k.hasFailed()
	switch {
	case errors.Is(passErr, context.Canceled):
		fmt.Fprintln(k.stderr, "watcher: interrupted; what was begun is on record, and the daemon or the next watcher --once goes on")
	case passErr != nil:
		fmt.Fprintln(k.stderr, "watcher:", passErr)
	case p.failed != nil && k.name == "":
		fmt.Fprintf(k.stderr, "watcher: not everything could be seen, and there may be more: %v\n", p.failed)
	case failed:
		fmt.Fprintln(k.stderr, "watcher: what was begun and failed is on record, and the daemon or the next watcher --once goes on")
	}
	if failed || passErr != nil || p.failed != nil && k.name == "" {
		return errSaid
	}
	return nil
}

// order says what is to be reaped, and stops at once what is only to be stopped. The loop calls it when it has seen
// everything.
func (k *kill) order(p *watch.Picture, unseen error, settings *reap.Config, shown []target) (ordered []target) {
	now := time.Now()
	chosen, spared, err := k.choose(p, settings.Policy, now)
	if shown != nil {
		chosen, err = k.confirmed(p, settings.Policy, chosen, shown)
	} else {
		k.tellSpared(spared)
		if err == nil && k.name == "" {
			fmt.Fprintf(k.stderr, "%s: %s\n", sandboxes(len(chosen)), names(chosen))
		}
	}
	if err == nil && unseen != nil && len(chosen) == 1 && k.name != "" && chosen[0].id.Name != k.name {
		err = fmt.Errorf("whether nothing else is called %q cannot be told, so name the full ID: %w", k.name, unseen)
	}
	if err != nil {
		k.err = err
		return nil
	}
	for _, t := range chosen {
		k.called[t.id] = t.String()
		if !t.managed {
			ordered = append(ordered, t)
			continue
		}
		// It is not begun as a reap: what it leaves is its runner's.
		k.tell(t.id, watch.Kill.String(), settings.Platforms[t.id.Kind].Stop(p.Entry(t.id).Sandbox, watch.Kill))
		fmt.Fprintf(k.stdout, "      %s is left to its runner, which lives and cleans up\n", t)
	}
	return ordered
}

func names(all []target) string {
	var words []string
	for _, t := range all {
		words = append(words, t.String())
	}
	return strings.Join(words, ", ")
}

// confirmed returns what is still what the operator was shown. What is gone is as it was to be. What came since, nobody
// was asked about.
func (k *kill) confirmed(p *watch.Picture, policy reap.Policy, chosen, shown []target) (still []target, err error) {
	for _, was := range shown {
		e := p.Entry(was.id)
		if e == nil {
			if k.name != "" && len(chosen) > 0 {
				return nil, fmt.Errorf("%s is gone, and %s has that name now: nothing was done", was, chosen[0])
			}
			fmt.Fprintf(k.stdout, "ok    %s is gone already\n", was)
			continue
		}
		is := newTarget(p, e, policy, time.Now())
		named := slices.ContainsFunc(chosen, func(t target) bool { return t.id == was.id })
		if !named || !is.created.Equal(was.created) || is.managed != was.managed {
			k.called[was.id] = was.String()
			k.say(was.id, "", errors.New("it has changed since it was asked about, and was left alone"))
			continue
		}
		still = append(still, is)
	}
	if more := len(chosen) - len(still); k.name == "" && more > 0 {
		k.more(chosen, shown)
	}
	return still, nil
}

// more tells of sandboxes that came after the question.
func (k *kill) more(chosen, shown []target) {
	var came []target
	for _, t := range chosen {
		if !slices.ContainsFunc(shown, func(was target) bool { return was.id == t.id }) {
			came = append(came, t)
		}
	}
	if len(came) > 0 {
		fmt.Fprintf(k.stderr, "watcher: left alone, since nobody was asked about it: %s\n", names(came))
	}
}

// tell is told of each step and of each part of a removal.
func (k *kill) tell(id watch.ID, what string, err error) {
	switch what {
	case watch.Record.String():
		if err != nil {
			k.say(id, "record", err)
		}
	case watch.Kill.String(), watch.Terminate.String(), watch.Remove.String():
		k.say(id, what, err)
	default:
		k.say(id, "remove "+printable(what)+" of", err)
	}
}

// hasFailed reports whether a step failed of one of these, or of any.
func (k *kill) hasFailed(ids ...watch.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(ids) == 0 && len(k.failed) > 0 || slices.ContainsFunc(ids, func(id watch.ID) bool { return k.failed[id] })
}

// say prints the result of one step.
func (k *kill) say(id watch.ID, what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	who := cmp.Or(k.called[id], called(id, "")) // one that goes with its group was not named
	if what != "" {
		who = what + " " + who
	}
	if err != nil {
		k.failed[id] = true
		fmt.Fprintf(k.stdout, "FAIL  %s: %s\n", who, printable(err.Error()))
		return
	}
	fmt.Fprintf(k.stdout, "ok    %s\n", who)
}
