//go:build !race

package reap_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

// A mutant is the core with one mistake in it. Its search string stands exactly once in its file.
type mutant struct {
	story   string
	file    string
	search  string
	replace string
}

var mutants = []mutant{
	{
		"an order is carried out before it is on record", "reap/decide.go",
		"	case pr.Step == watch.NoStep:\n		return watch.Record, time.Time{}\n", "	case pr.Step == watch.NoStep && stoppable(e):\n		return watch.Kill, time.Time{}\n",
	},
	{
		"an order is about everybody", "reap/order.go",
		"	if l.Order == nil {\n		return plan\n", "	if true {\n		return plan\n",
	},
	{
		"a drop outlives an order", "watch/picture.go",
		"	delete(p.dropped, ev.ID)\n	e.Ordered =", "	e.Ordered =",
	},
	{
		"an order takes what is in use", "reap/judge.go",
		"	case e.InUse:\n", "	case e.InUse && !ordered:\n",
	},
	{
		"a daemon takes up whatever it finds on record", "reap/order.go",
		"if c.Reason == Operator && open", "if open",
	},
	{
		"a look that failed counts as a death", "watch/owner.go",
		"	case seen.Life == Unknown:\n		o.Thread =", "	case seen.Life == Unknown:\n		o.exit(seen.At)\n		o.Thread =",
	},
	{
		"a stale list forgets what was seen after it", "watch/picture.go",
		"if !listed[id] && e.Asked.Before(ev.Asked) && !e.leaves() {", "if !listed[id] && !e.leaves() {",
	},
	{
		"what is gone is not remembered", "watch/picture.go",
		"		p.gone[ev.ID] = ev.At\n", "",
	},
	{
		"the slack of the clocks has the wrong sign", "watch/owner.go",
		"!born.After(s.Created.Add(clockSlack))", "!born.After(s.Created.Add(-clockSlack))",
	},
	{
		"the clock of the init is ignored", "watch/owner.go",
		"	case existed != 0 && p.Start > existed:\n		return younger, \"\"\n", "",
	},
	{
		"a claim is bound again, to whoever has the PID now", "watch/owner.go",
		"		case seen.Process.Start > o.Process.Start:\n			o.Replaced = true\n			o.exit(seen.At)\n",
		"		case seen.Process.Start > o.Process.Start:\n			o.bind(seen)\n",
	},
	{
		"the start in the label is ignored", "watch/owner.go",
		"		if seen.Process.Start != o.Claim.Process.Start {\n", "		if false {\n",
	},
	{
		"any process with the PID dies, and the owner with it", "watch/owner.go",
		"case seen.Process == o.Process, nobody:", "case seen.Life == Exited:",
	},
	{
		"an older list brings back what the latest lacks", "watch/picture.go",
		"case !known && asked.Before(p.listed[s.ID.Kind]):\n		return\n	case", "case",
	},
	{
		"an older look at a sandbox undoes a newer one", "watch/picture.go",
		"	case asked.Before(e.Asked):\n		return\n", "",
	},
	{
		"an older look at an owner container undoes a newer one", "watch/owner.go",
		"case seen.Asked.Before(o.Asked):", "case false:",
	},
	{
		"the restart of an owner container goes unnoticed", "watch/owner.go",
		"		o.Life, o.ExitedAt = Alive, time.Time{}\n		return\n", "		return\n",
	},
	{
		"a later exit of an owner container counts from the earlier one", "watch/owner.go",
		"if o.Life != Exited || seen.Since.After(o.ExitedAt) {", "if o.Life != Exited {",
	},
	{
		"a scan does not ask again about open claims", "watch/picture.go",
		"			p.hold = append(p.hold, e.Owners[i].open()...)\n", "			_ = i\n",
	},
	{
		"an operator's drop is forgotten", "watch/picture.go",
		"		p.dropped[ev.ID] = struct{}{}\n", "",
	},
	{
		"the engine's return makes nothing due", "watch/picture.go",
		"		p.retry(ev.Kind)\n", "",
	},
	{
		"the engine is never away", "watch/picture.go",
		"p.present[ev.Kind] = false", "p.present[ev.Kind] = true",
	},
	{
		"a case on record is not taken up", "watch/picture.go",
		"		p.applyCaseResumed(ev)\n", "",
	},
	{
		"a failed removal is not counted", "watch/picture.go",
		"		pr.Attempts++\n", "",
	},
	{
		"the end of a step makes nothing due", "watch/picture.go",
		"		pr.SignalAt = time.Time{}\n	}\n	p.agenda.touch(ev.ID)\n", "		pr.SignalAt = time.Time{}\n	}\n",
	},
	{
		"a list that failed is an empty list", "watch/picture.go",
		"case ListFailed, LookFailed, ScanBegun,", "case ListFailed:\n		return p.applyListed(Listed{Kind: ev.Kind, Asked: ev.At})\n	case LookFailed, ScanBegun,",
	},
	{
		"a death concerns only the first of an owner's sandboxes", "watch/claims.go",
		"			take(e, &e.Owners[i])\n		}\n		p.agenda.touch(id)\n", "			take(e, &e.Owners[i])\n		}\n		p.agenda.touch(id)\n		break\n",
	},
	{
		"what falls due is looked at too late: never", "watch/agenda.go",
		"			a.touch(d.id)\n", "",
	},
	{
		"a date replaces no earlier one", "watch/agenda.go",
		"	if a.at[id].Equal(next) {\n", "	if !a.at[id].IsZero() {\n",
	},
	{
		"a dropped sandbox is judged like any other", "reap/judge.go",
		"case p.Dropped(e.ID):", "case false:",
	},
	{
		"a pin is ignored once the owner is dead", "reap/judge.go",
		"case t.Keep:", "case t.Keep && e.Owner().Life != watch.Exited:",
	},
	{
		"a malformed label is guessed at", "reap/judge.go",
		"case t.Fault != \"\":", "case false:",
	},
	{
		"a PID of another namespace is judged", "reap/judge.go",
		"case !ns.Shared:", "case false:",
	},
	{
		"the time to live is over a beat too early", "reap/judge.go",
		"after(e.Created, t.TTL)", "after(e.Created, max(t.TTL-4*time.Second, 0))",
	},
	{
		"the end of a time to live is not waited for", "reap/judge.go",
		"		j.Next = earlier(j.Next, end.at)\n", "",
	},
	{
		"an owner container has no grace", "reap/judge.go",
		"case !o.Gone && now.Before(back):", "case false:",
	},
	{
		"an owner container is not looked at again after its grace", "reap/judge.go",
		"case !o.Gone && o.Asked.Before(back):", "case false:",
	},
	{
		"the brake is off", "reap/decide.go",
		"	pol.brake(p, &plan, now)\n", "",
	},
	{
		"the brake holds for ever", "reap/decide.go",
		"			plan.SecondLook = true\n", "",
	},
	{
		"one look is enough for the brake", "reap/decide.go",
		"return !p.Listed(e.ID.Kind).Before(again)", "return true",
	},
	{
		"a step is begun while another is under way", "reap/decide.go",
		"	case pr.InFlight:\n		return watch.NoStep, time.Time{}\n", "",
	},
	{
		"the next attempt is not waited for", "reap/decide.go",
		"				j.Next = earlier(j.Next, at)\n", "",
	},
	{
		"a removal is tried while the engine is away", "reap/decide.go",
		"do == watch.Remove && !p.Present(e.ID.Kind)", "false",
	},
	{
		"what is killed is removed without a record", "reap/decide.go",
		"	case watch.Kill:\n		return watch.Record, time.Time{}\n", "	case watch.Kill:\n		return watch.Remove, time.Time{}\n",
	},
	{
		"stops and removals are mixed", "reap/decide.go",
		"				removals = append(removals, Step{id, do, j.Reason})\n", "				plan.Steps = append(plan.Steps, Step{id, do, j.Reason})\n",
	},
	{
		"a process that is younger than a sandbox may own it, and an older one not", "watch/owner.go",
		"case is == younger, m.Process == s.Init:", "case is == older, m.Process == s.Init:",
	},
	{
		"a newer process of a program counts as well", "watch/owner.go",
		"case is == younger, m.Process == s.Init:", "case m.Process == s.Init:",
	},
	{
		"a process that cannot be read does not count", "watch/owner.go",
		"		case m.Life == Unknown:\n			unknown = ", "		case m.Life == Unknown:\n			_ = ",
	},
	{
		"a process of which the clocks disagree does not count", "watch/owner.go",
		"			unknown = why\n", "			_ = why\n",
	},
	{
		"the sandbox's own first process may own it", "watch/owner.go",
		"case is == younger, m.Process == s.Init:", "case is == younger:",
	},
	{
		"a program need not be counted", "watch/owner.go",
		"case !p.listed.After(first):", "case false:",
	},
	{
		"a program that was counted before its sandbox was seen need not be counted again", "watch/owner.go",
		"case !p.listed.After(first):", "case p.listed.IsZero():",
	},
	{
		"a count may be older than its sandbox, if that was asked for before it was made", "watch/owner.go",
		"		first = s.Created\n", "		_ = first\n",
	},
	{
		"a count is not asked for", "watch/claims.go",
		"			p.count = true\n", "",
	},
	{
		"an older count undoes a newer one", "watch/owner.go",
		"	if ev.Asked.Before(p.listed) {\n		return\n	}\n", "",
	},
	{
		"an older count forgets who was seen since", "watch/owner.go",
		"if !found[process] && p.seen[process].Before(ev.Asked) {", "if !found[process] {",
	},
	{
		"a count forgets nobody", "watch/owner.go",
		"if !found[process] && p.seen[process].Before(ev.Asked) {", "if false && !found[process] {",
	},
	{
		"a dead process of a program lives again", "watch/owner.go",
		"if ok && known.Life == Exited {", "if false {",
	},
	{
		"an old look at a process brings it back into its program", "watch/owner.go",
		"if !ok && ev.Member.Life != Exited && ev.At.Before(p.listed) {", "if false {",
	},
	{
		"a birth moves with the wall clock", "watch/owner.go",
		"	if ok {\n		ev.Member.Born", "	if false {\n		ev.Member.Born",
	},
	{
		"when a sandbox existed is ignored", "watch/owner.go",
		"existed := s.Existed\n", "existed := uint64(0)\n",
	},
	{
		"who speaks to a client is ignored", "watch/owner.go",
		"range append([]Process{c.Process}, c.Speakers...) {", "range []Process{c.Process} {",
	},
	{
		"of several clients the first that is dead condemns", "watch/owner.go",
		"		case Unknown:\n			unknown = true\n		case Exited:\n", "		case Unknown:\n		case Exited:\n",
	},
	{
		"a dead client lives again", "watch/owner.go",
		"if process.PID != seen.PID || o.lives[process].life == Exited {", "if process.PID != seen.PID {",
	},
	{
		"an older word of the clients replaces a newer one", "watch/claims.go",
		" || len(o.Clients) > 0 && ev.At.Before(o.Asked) {", " {",
	},
	{
		"a client's end condemns what ended before it", "reap/judge.go",
		"case !e.Asked.After(o.ExitedAt):", "case false:",
	},
	{
		"an engine that goes away ends no client", "reap/judge.go",
		"case p.Away(e.ID.Kind, o.ExitedAt) &&", "case false &&",
	},
	{
		"an older look for an owner undoes a newer one", "watch/claims.go",
		" || o.Claim != ev.Claim || ev.Asked.Before(o.Asked) {", " || o.Claim != ev.Claim {",
	},
	{
		"who was found to be the owner is dead, and no other is looked for", "watch/owner.go",
		"o.Life, o.Look, o.ExitedAt, o.Detail = Unknown, true,", "o.Life, o.Look, o.ExitedAt, o.Detail = Exited, true,",
	},
	{
		"a group goes though none of its containers was reaped", "watch/claims.go",
		"e.Terms.Group != \"\" && !e.Progress.Begun.IsZero() {", "e.Terms.Group != \"\" {",
	},
	{
		"a group goes though a container of it is there", "watch/owner.go",
		"case len(g.containers) > 0:", "case false:",
	},
	{
		"a group's end is forgotten before all that belongs to it was listed", "watch/picture.go",
		"unseen := !g.reaped.IsZero() &&", "unseen := false &&",
	},
	{
		"the rules end a reap that was begun", "watch/picture.go",
		"e != nil && !e.Progress.Begun.IsZero() {\n			listed[id] = true\n", "e != nil && false {\n			listed[id] = true\n",
	},
	{
		"a drop ends with the rule", "watch/picture.go",
		" && !slices.Contains(ev.Unwatched, id)\n", "\n",
	},
	{
		"the rules change what a label says", "watch/picture.go",
		"if known && len(e.Owners) > 0 && e.Terms.ownLabels() {", "if false {",
	},
	{
		"what is known of an owner does not outlive a change of the rules", "watch/claims.go",
		"i >= 0 {\n			o = before[i]\n", "i >= 0 {\n			_ = before[i]\n",
	},
	{
		"a rule stands above watcher.owner", "watch/rule.go",
		"	case len(t.Owners) > 0:\n		return t, true\n", "",
	},
	{
		"what another manager protects is not", "watch/rule.go",
		"if isProtected && !isServed {", "if isProtected && !isServed && false {",
	},
	{
		"a PID of another host is one of ours", "watch/rule.go",
		"if name != \"\" && name != host {", "if false {",
	},
	{
		"one piece of evidence is enough", "reap/judge.go",
		"	case kept != nil:\n", "	case kept != nil && ends == nil:\n",
	},
	{
		"evidence that is waited for is not needed", "reap/judge.go",
		"	case waits != nil:\n", "	case waits != nil && ends == nil:\n",
	},
	{
		"of several dead owners the first says why", "reap/judge.go",
		"if ends == nil || o.ExitedAt.After(died) {", "if ends == nil || o.ExitedAt.Before(died) {",
	},
	{
		"another manager's mark protects nothing", "reap/judge.go",
		"case t.Protected != \"\":", "case false:",
	},
	{
		"what is in use goes", "reap/judge.go",
		"	case e.InUse:\n", "	case false:\n",
	},
	{
		"a rule is about all states", "reap/judge.go",
		"case len(t.States) > 0 && !slices.Contains(t.States, e.State):\n		return Judgement{Reason: NotOwned, Owner", "case false:\n		return Judgement{Reason: NotOwned, Owner",
	},
	{
		"what is inferred needs no grace", "reap/judge.go",
		"old.IsZero() || now.Before(old) {", "false && now.Before(old) {",
	},
	{
		"an owner container that runs again does not count where another died last", "reap/judge.go",
		"case OwnerExited, OwnerReplaced, Rebooted, OwnerContainerGone, NoPossibleOwner:", "case OwnerContainerGone:",
	},
	{
		"the brake on a program needs no count", "reap/decide.go",
		"case o.Claim.Kind == watch.ProgramClaim && p.Counted(o.Claim.Program).Before(again),", "case false,",
	},
	{
		"the brake on an owner that was looked for needs no look at it", "reap/decide.go",
		"o.Claim.Kind.Sought() && o.Asked.Before(again):", "false:",
	},
	{
		"an older count makes what is known of a process older", "watch/owner.go",
		"	if p.seen[process].Before(ev.At) {\n", "	if true {\n",
	},
	{
		"an owner that nobody found is known to be dead", "reap/judge.go",
		"case kind == watch.RecordClaim && (o.Process.PID != 0 || !o.Claim.Registry()), kind != watch.SocketClaim && !o.ExitedAt.IsZero():", "case true:",
	},
	{
		"what is left of a microVM is forgotten with its process", "watch/sandbox.go",
		"			leaves = append(slices.Clip(leaves), old)\n", "",
	},
	{
		"a reap ends when nobody sees any more what is left", "watch/picture.go",
		" && !e.leaves() {", " {",
	},
	{
		"a microVM is killed before anything is on record", "reap/decide.go",
		"case e.ID.Kind.VanishesWithInit():", "case false:",
	},
	{
		"a kill waits for a hung disk", "reap/decide.go",
		"j.Next = earlier(j.Next, now.Add(jotWait))", "_ = jotWait",
	},
	{
		"each scan of what is braked asks for another", "reap/decide.go",
		"		} else if p.Listed(e.ID.Kind).Before(again) {\n", "		} else {\n",
	},
	{
		"a client that was not seen to end died before all that is known", "watch/owner.go",
		"may be older than its end.\n			o.lives[process] = ending{Exited, seen.At}\n", "may be older than its end.\n			o.lives[process] = ending{life: Exited}\n",
	},
	{
		"a container's record goes before what belongs to its group has one", "reap/loop.go",
		"		if l.owes(end) {\n", "		if false && l.owes(end) {\n",
	},
	{
		"a rule's own alarm is ignored", "reap/tell.go",
		"		if !own {\n			most = l.Policy.Alarm", "		if true || own {\n			most = l.Policy.Alarm",
	},
}

// TestEveryMutantApplies demands that the text which each mutant changes is there: code that has moved since proves nothing.
func TestEveryMutantApplies(t *testing.T) {
	if proof() == "short" {
		t.Skip("this may be a mutant itself")
	}
	for _, m := range mutants {
		text, err := os.ReadFile(filepath.Join("..", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), m.search); n != 1 {
			t.Errorf("%s: %q stands %d times in %s", m.story, m.search, n, m.file)
		}
	}
}

// TestMutants demands that each mutant fails the tests (make mutants). Those are the short walk and the property tests
// first, and only if they let it live the rest.
func TestMutants(t *testing.T) {
	which := os.Getenv("WATCHER_MUTANTS") // "all", or parts of stories with | between them
	if which == "" {
		t.Skip("takes minutes: make mutants")
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		copyFile(t, filepath.Join(root, name), filepath.Join(dir, name))
	}
	for _, name := range []string{"watch", "reap"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	// The core as it is must pass, or its mutants prove nothing.
	if failed, output := trial(t, dir, proofTests); len(failed) > 0 {
		t.Fatalf("without any mutant these fail: %s\n%s", failed, output)
	}
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tMUTANT\tFILE\tCAUGHT BY")
	for i, m := range mutants {
		if which != "all" && !slices.ContainsFunc(strings.Split(which, "|"), func(part string) bool { return strings.Contains(m.story, part) }) {
			continue
		}
		file := filepath.Join(dir, m.file)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), m.search); n != 1 {
			t.Errorf("%s: %q stands %d times in %s", m.story, m.search, n, m.file)
			fmt.Fprintf(w, "%d\t%s\t%s\tdoes not apply\n", i+1, m.story, m.file)
			continue
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), m.search, m.replace, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		failed, output := trial(t, dir, proofTests)
		if len(failed) == 0 {
			failed, output = trial(t, dir, "-skip="+strings.TrimPrefix(proofTests, "-run="))
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		switch {
		case len(failed) == 0:
			failed = []string{"NOBODY"}
			t.Errorf("%s: nobody notices", m.story)
		case slices.Equal(failed, []string{"build"}):
			t.Errorf("%s: does not build\n%s", m.story, output)
		}
		t.Logf("%d of %d, %s: %s", i+1, len(mutants), m.story, strings.Join(failed, ", "))
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", i+1, m.story, m.file, strings.Join(failed, ", "))
	}
	w.Flush()
	t.Logf("%d mutants\n%s", len(mutants), &table)
}

const proofTests = "-run=^(TestWalk|TestHistories)$"

var failedTest = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)

// trial runs tests of the module in dir and returns the names of those that fail.
func trial(t *testing.T, dir, which string) (failed []string, output []byte) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-short", "-timeout=5m", which, "./watch", "./reap", "-rapid.shrinktime=100ms", "-rapid.nofailfile")
	if strings.HasPrefix(which, "-skip") {
		cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool { return strings.HasPrefix(arg, "-rapid") })
	} else {
		cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool { return arg == "./watch" }) // it knows no rapid
	}
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHER_MUTANTS=") }), proofEnv+"=short")
	output, err := cmd.CombinedOutput()
	if err == nil {
		return nil, output
	}
	for _, match := range failedTest.FindAllSubmatch(output, -1) {
		failed = append(failed, string(match[1]))
	}
	slices.Sort(failed)
	switch {
	case bytes.Contains(output, []byte("[build failed]")):
		return []string{"build"}, output
	case len(failed) == 0: // a panic, or no end
		return []string{"crash"}, output
	}
	return slices.Compact(failed), output
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
