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
		"a look that failed counts as a death", "watch/picture.go",
		"	nobody := seen.Process.PID == 0\n", "	nobody := seen.Process.PID == 0\n	if seen.Life == Unknown {\n		o.exit(seen.At)\n	}\n",
	},
	{
		"a stale list forgets what was seen after it", "watch/picture.go",
		"if !listed[id] && e.Asked.Before(ev.Asked) {", "if !listed[id] {",
	},
	{
		"what is gone is not remembered", "watch/picture.go",
		"		p.gone[ev.ID] = ev.At\n", "",
	},
	{
		"the slack of the clocks has the wrong sign", "watch/picture.go",
		"seen.Born.After(s.Created.Add(clockSlack))", "seen.Born.After(s.Created.Add(-clockSlack))",
	},
	{
		"the clock of the init is ignored", "watch/picture.go",
		"	case s.Init.PID != 0 && seen.Process.Start > s.Init.Start:\n		o.Replaced = true\n		o.exit(time.Time{})\n", "",
	},
	{
		"a claim is bound again, to whoever has the PID now", "watch/picture.go",
		"		case seen.Process.Start > o.Process.Start:\n			o.Replaced = true\n			o.exit(seen.At)\n",
		"		case seen.Process.Start > o.Process.Start:\n			o.bind(seen)\n",
	},
	{
		"the start in the label is ignored", "watch/picture.go",
		"		if seen.Process.Start != o.Claim.Process.Start {\n", "		if false {\n",
	},
	{
		"any process with the PID dies, and the owner with it", "watch/picture.go",
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
		"an older look at an owner container undoes a newer one", "watch/picture.go",
		"case seen.Asked.Before(o.Asked):", "case false:",
	},
	{
		"the restart of an owner container goes unnoticed", "watch/picture.go",
		"		o.Life, o.ExitedAt = Alive, time.Time{}\n		return\n", "		return\n",
	},
	{
		"a later exit of an owner container counts from the earlier one", "watch/picture.go",
		"if o.Life != Exited || seen.Since.After(o.ExitedAt) {", "if o.Life != Exited {",
	},
	{
		"a scan does not ask again about open claims", "watch/picture.go",
		"			p.hold = append(p.hold, e.Owner().Claim.Process.PID)\n		}\n		p.agenda", "		}\n		p.agenda",
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
		"a death concerns only the first of an owner's sandboxes", "watch/picture.go",
		"			e.Owner.learnProcess(e.Sandbox, ev)\n			p.agenda.touch(id)\n", "			e.Owner.learnProcess(e.Sandbox, ev)\n			p.agenda.touch(id)\n			break\n",
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
		"case e.Terms.Keep:", "case e.Terms.Keep && e.Owner().Life != watch.Exited:",
	},
	{
		"a malformed label is guessed at", "reap/judge.go",
		"case e.Terms.Fault != \"\":", "case false:",
	},
	{
		"a PID of another namespace is judged", "reap/judge.go",
		"case !ns.Shared:", "case false:",
	},
	{
		"the time to live is over a beat too early", "reap/judge.go",
		"end := e.Created.Add(age.most)", "end := e.Created.Add(age.most - 4*time.Second)",
	},
	{
		"the end of a time to live is not waited for", "reap/judge.go",
		"		j.Next = earlier(j.Next, end)\n", "",
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
		"return !e.Braked.IsZero() && !p.Listed(e.ID.Kind).Before(e.Braked.Add(pol.Grace))", "return !e.Braked.IsZero()",
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
}

// TestMutants demands that each mutant fails the tests (make mutants). Those are the short walk and the property tests
// first, and only if they let it live the rest.
func TestMutants(t *testing.T) {
	which := os.Getenv("WATCHER_MUTANTS") // "all", or a part of a story
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
		if which != "all" && !strings.Contains(m.story, which) {
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
	cmd := exec.CommandContext(t.Context(), "go", "test", "-short", "-timeout=2m", which, "./watch", "./reap", "-rapid.shrinktime=100ms", "-rapid.nofailfile")
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
