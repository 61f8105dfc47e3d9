package watch_test

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

type labels = map[string]string

func program(name string) watch.Claim { return watch.Claim{Kind: watch.ProgramClaim, Program: name} }

func globs(texts ...string) (all []watch.Pattern) {
	for _, text := range texts {
		all = append(all, watch.NewPattern(text))
	}
	return all
}

// label is a match by labels, each of which must be a pattern.
func label(texts ...string) (m watch.Match) {
	for _, text := range texts {
		p, err := watch.NewLabelPattern(text)
		if err != nil {
			panic(err)
		}
		m.Labels = append(m.Labels, p)
	}
	return m
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		glob, text string
		want       bool
	}{
		{"", "", true},
		{"", "x", false},
		{"a", "a", true},
		{"a", "ab", false},
		{"a", "ba", false},
		{"a", "A", false},
		{"*", "", true},
		{"*", "any/thing at\nall", true},
		{"a*", "a", true},
		{"a*", "ab/c", true},
		{"a*", "ba", false},
		{"*a", "a", true},
		{"*a", "ba", true},
		{"*a", "ab", false},
		{"*agent*", "my-agent:1", true},
		{"a**b", "ab", true},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "a-c-b", false},
		{"?", "", false},
		{"?", "x", true},
		{"?", "xy", false},
		{"?", "\n", true},
		{"?", "é", true},
		{"a?c", "abc", true},
		{"a.c", "abc", false},
		{"a+", "aa", false},
		{"(a|b)", "a", false},
		{"[ab]", "a", false},
		{"[ab]", "[ab]", true},
		{"^a$", "a", false},
		{`a\*`, "a*", false},
		{`a\*`, `a\bc`, true},
		{`\d`, "1", false},
		{`\`, `\`, true},
		{"io.kubernetes.*", "io.kubernetes.pod.name", true},
		{"io.kubernetes.*", "ioxkubernetes.pod", false},
		{"io.kubernetes.*", "io.kubernetes", false},
		{"\xff*", "\xffab", true},
		{"\xff*", "ab", false},
		{"*", "\xff", true},
		{"?", "\xff", true},
	} {
		p := watch.NewPattern(test.glob)
		if got := p.Matches(test.text); got != test.want || !p.Given() || p.String() != test.glob {
			t.Errorf("%q on %q: %v, want %v; written as %q", test.glob, test.text, got, test.want, p)
		}
	}
	if p := (watch.Pattern{}); p.Given() || p.Matches("") || p.Matches("x") || p.String() != "" {
		t.Error("W1: the zero Pattern matches something")
	}
}

func TestLabelPatterns(t *testing.T) {
	for _, test := range []struct {
		text string
		on   labels
		want bool
	}{
		{"a", labels{"a": ""}, true},
		{"a", labels{"a": "x"}, true},
		{"a", labels{"b": "a"}, false},
		{"a", nil, false},
		{"a=", labels{"a": ""}, true},
		{"a=", labels{"a": "x"}, false},
		{"a=x", labels{"a": "x"}, true},
		{"a=x", labels{"a": "xy"}, false},
		{"a=*", labels{"a": ""}, true},
		{"a=x=y", labels{"a": "x=y"}, true},
		{"a*=x", labels{"ab": "y", "ac": "x"}, true},
		{"a*=x", labels{"ab": "y", "b": "x"}, false},
		{"*=true", labels{"a": "false", "b": "true"}, true},
		{"*", labels{"a": ""}, true},
		{"*", nil, false},
	} {
		rules := watch.Rules{List: []watch.Rule{{Name: "r", Kind: watch.Container, Match: label(test.text), Owner: watch.Evidence{None: true}}}}
		if _, got := rules.Terms(watch.Facts{Kind: watch.Container, Labels: test.on}); got != test.want {
			t.Errorf("%q on %v: %v, want %v", test.text, test.on, got, test.want)
		}
		if p, err := watch.NewLabelPattern(test.text); err != nil || p.String() != test.text {
			t.Errorf("%q is written as %q, %v", test.text, p, err)
		}
	}
	for _, text := range []string{"", "=", "=x"} {
		if p, err := watch.NewLabelPattern(text); err == nil {
			t.Errorf("%q is taken as %q", text, p)
		}
	}
}

// agents is a rule about containers whose program is agentd.
func agents(edits ...func(*watch.Rule)) watch.Rule {
	r := watch.Rule{Name: "agents", Kind: watch.Container, Match: label("agent=*"), Owner: watch.Evidence{Process: "agentd"}}
	for _, edit := range edits {
		edit(&r)
	}
	return r
}

func evidence(e watch.Evidence) func(*watch.Rule) { return func(r *watch.Rule) { r.Owner = e } }

func TestTerms(t *testing.T) {
	agentd := []watch.Claim{program("agentd")}
	expires := func(r *watch.Rule) { r.ExpiresLabel = "agent.until" }
	despite := func(globs ...watch.Pattern) func(*watch.Rule) { return func(r *watch.Rule) { r.Despite = globs } }
	for name, test := range map[string]struct {
		rules  []watch.Rule
		facts  watch.Facts // of a container, if it says nothing else
		want   watch.Terms
		not    bool // it is not watched at all
		faulty bool // want.Fault is whatever it is
	}{
		"no rules, no labels": {not: true},
		"no rules, others' labels": {
			facts: watch.Facts{Labels: labels{"agent": "1"}}, not: true,
		},
		"no rules, our labels": {
			facts: watch.Facts{Labels: labels{"watcher.ttl": "1h"}},
			want:  watch.Terms{Rule: watch.RuleLabels, TTL: time.Hour},
		},
		"a rule that matches": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"agent": "1"}},
			want: watch.Terms{Rule: "agents", Owners: agentd},
		},
		"a rule that does not": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"agents": "1"}}, not: true,
		},
		"a rule of another kind": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Kind: watch.Volume, Labels: labels{"agent": "1"}}, not: true,
		},
		"W1: a rule that gives nothing matches nothing": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Match = watch.Match{} })}, facts: watch.Facts{Name: "x", Image: "y", Labels: labels{"agent": "1"}}, not: true,
		},
		"by image": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Match = watch.Match{Image: watch.NewPattern("*agent*")} })},
			facts: watch.Facts{Image: "example/agent:1"},
			want:  watch.Terms{Rule: "agents", Owners: agentd},
		},
		"by name": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Match = watch.Match{Name: watch.NewPattern("agent-?")} })},
			facts: watch.Facts{Name: "agent-7"},
			want:  watch.Terms{Rule: "agents", Owners: agentd},
		},
		"all that is given must match: the image does not": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Match.Image = watch.NewPattern("agent:*") })},
			facts: watch.Facts{Image: "other:1", Labels: labels{"agent": "1"}}, not: true,
		},
		"all that is given must match: the name does not": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Match.Name = watch.NewPattern("agent-*") })},
			facts: watch.Facts{Name: "x", Labels: labels{"agent": "1"}}, not: true,
		},
		"all that is given must match: one of two labels does not": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Match = label("agent", "run=7") })},
			facts: watch.Facts{Labels: labels{"agent": "1", "run": "8"}}, not: true,
		},
		"all that is given must match, and does": {
			rules: []watch.Rule{agents(func(r *watch.Rule) {
				r.Match = label("agent", "run=*")
				r.Match.Image, r.Match.Name = watch.NewPattern("agent:*"), watch.NewPattern("a*")
			})},
			facts: watch.Facts{Name: "a", Image: "agent:1", Labels: labels{"agent": "1", "run": "8"}},
			want:  watch.Terms{Rule: "agents", Owners: agentd},
		},
		"the first rule wins": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Name = "first" }), agents()},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "first", Owners: agentd},
		},
		"the first rule that matches wins": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Name, r.Match = "first", label("x") }), agents()},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "agents", Owners: agentd},
		},

		"watcher.owner leaves no room for a rule": {
			rules: []watch.Rule{agents(func(r *watch.Rule) {
				r.States, r.MaxAge, r.StopTimeout = []watch.State{watch.Stopped}, time.Hour, time.Second
			})},
			facts: watch.Facts{Labels: labels{"agent": "1", "watcher.owner": "42"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Owners: []watch.Claim{process(42, 0, "")}},
		},
		"nor for another manager": {
			rules: []watch.Rule{agents()},
			facts: watch.Facts{Labels: labels{"agent": "1", "io.kubernetes.pod": "x", "watcher.owner": "container:boss"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Owners: []watch.Claim{container("boss")}},
		},
		"a malformed watcher.owner is a fault, whatever a rule says": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.owner": "-1"}},
			want: watch.Terms{Rule: "agents", Owners: agentd}, faulty: true,
		},
		"a misspelt label of ours is a fault, whatever a rule says": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.kep": "true"}},
			want: watch.Terms{Rule: "agents", Owners: agentd}, faulty: true,
		},
		"ttl is added to a rule": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.MaxAge = 2 * time.Hour })}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.ttl": "1h"}},
			want: watch.Terms{Rule: "agents", Owners: agentd, TTL: time.Hour, MaxAge: 2 * time.Hour},
		},
		"keep is added to a rule": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.keep": "true"}},
			want: watch.Terms{Rule: "agents", Owners: agentd, Keep: true},
		},
		"group is added to a rule": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.group": "g"}},
			want: watch.Terms{Rule: "agents", Owners: agentd, Group: "g"},
		},
		"a rule's stop-timeout": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.StopTimeout = 5 * time.Second })}, facts: watch.Facts{Labels: labels{"agent": "1"}},
			want: watch.Terms{Rule: "agents", Owners: agentd, StopTimeout: 5 * time.Second},
		},
		"stop-timeout stands above that of a rule": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.StopTimeout = 5 * time.Second })}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.stop-timeout": "1s"}},
			want: watch.Terms{Rule: "agents", Owners: agentd, StopTimeout: time.Second},
		},
		"stop-timeout stands above that of a rule, also if it is none": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.StopTimeout = 5 * time.Second })}, facts: watch.Facts{Labels: labels{"agent": "1", "watcher.stop-timeout": "0s"}},
			want: watch.Terms{Rule: "agents", Owners: agentd},
		},
		"states, age and program of a rule": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.States, r.MaxAge = []watch.State{watch.Stopped, watch.Created}, time.Hour })},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "agents", Owners: agentd, States: []watch.State{watch.Stopped, watch.Created}, MaxAge: time.Hour},
		},
		"nobody owns it": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{None: true}), func(r *watch.Rule) { r.States = []watch.State{watch.Stopped} })},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "agents", Ownerless: true, States: []watch.State{watch.Stopped}},
		},
		"all evidence at once, in one order": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{PIDLabel: "agent.pid", ContainerLabel: "agent.boss", Process: "agentd", Client: true, Socket: "/run/agent.sock"}))},
			facts: watch.Facts{Client: true, Labels: labels{"agent": "1", "agent.pid": "42:7", "agent.boss": "boss"}},
			want: watch.Terms{Rule: "agents", Owners: []watch.Claim{
				process(42, 7, ""), container("boss"), program("agentd"), {Kind: watch.ClientClaim}, {Kind: watch.SocketClaim, Socket: "/run/agent.sock"},
			}},
		},

		"protected": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.MaxAge, r.StopTimeout = time.Hour, time.Second })},
			facts: watch.Facts{Labels: labels{"agent": "1", "io.kubernetes.pod": "x"}},
			want:  watch.Terms{Rule: "agents", Protected: "io.kubernetes.pod"},
		},
		"protected by several: the same one is told each time": {
			rules: []watch.Rule{agents()},
			facts: watch.Facts{Labels: labels{"agent": "1", "io.kubernetes.pod": "x", "io.kubernetes.a": "x", "com.docker.compose.project": "y"}},
			want:  watch.Terms{Rule: "agents", Protected: "com.docker.compose.project"},
		},
		"protected means nothing where no rule matches": {
			rules: []watch.Rule{agents()}, facts: watch.Facts{Labels: labels{"io.kubernetes.pod": "x"}}, not: true,
		},
		"protected, and it has a label of ours: only that counts": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.MaxAge = time.Hour })},
			facts: watch.Facts{Labels: labels{"agent": "1", "io.kubernetes.pod": "x", "watcher.ttl": "1h"}},
			want:  watch.Terms{Rule: watch.RuleLabels, TTL: time.Hour},
		},
		"a rule despite another manager": {
			rules: []watch.Rule{agents(despite(globs("com.docker.compose.*")...))},
			facts: watch.Facts{Labels: labels{"agent": "1", "com.docker.compose.project": "y"}},
			want:  watch.Terms{Rule: "agents", Owners: agentd},
		},
		"a rule despite one manager, and there is another": {
			rules: []watch.Rule{agents(despite(globs("com.docker.compose.*")...))},
			facts: watch.Facts{Labels: labels{"agent": "1", "com.docker.compose.project": "y", "io.kubernetes.pod": "x"}},
			want:  watch.Terms{Rule: "agents", Protected: "io.kubernetes.pod"},
		},
		"protected from the first rule is protected from all": {
			rules: []watch.Rule{agents(), agents(despite(globs("io.*")...), func(r *watch.Rule) { r.Name = "second" })},
			facts: watch.Facts{Labels: labels{"agent": "1", "io.kubernetes.pod": "x"}},
			want:  watch.Terms{Rule: "agents", Protected: "io.kubernetes.pod"},
		},

		"a PID label": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{PIDLabel: "agent.pid"}))},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.pid": "42"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{process(42, 0, "")}},
		},
		"a PID label that is missing": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{PIDLabel: "agent.pid"}))},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{{}}}, faulty: true,
		},
		"a PID label that is missing, beside another proof": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{PIDLabel: "agent.pid", Process: "agentd"}))},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{{}, program("agentd")}}, faulty: true,
		},
		"a PID label of another host": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{PIDLabel: "agent.pid"}))},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.pid": `{"pid":42,"hostname":"there"}`}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{{}}}, faulty: true,
		},
		"a container label": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{ContainerLabel: "agent.boss"}))},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.boss": "boss"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{container("boss")}},
		},
		"a container label as the engine writes names": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{ContainerLabel: "agent.boss"}))},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.boss": "/boss"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{container("boss")}},
		},
		"a container label with the prefix of our own": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{ContainerLabel: "agent.boss"}))},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.boss": "container:boss"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{{}}}, faulty: true,
		},
		"a container label that is missing": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{ContainerLabel: "agent.boss"}))},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "agents", Owners: []watch.Claim{{}}}, faulty: true,
		},
		"an expires label": {
			rules: []watch.Rule{agents(expires)},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.until": "2026-01-02T03:04:05Z"}},
			want:  watch.Terms{Rule: "agents", Owners: agentd, Expires: at(0)},
		},
		"an expires label in another zone": {
			rules: []watch.Rule{agents(expires)},
			facts: watch.Facts{Labels: labels{"agent": "1", "agent.until": "2026-01-02T05:04:05.5+02:00"}},
			want:  watch.Terms{Rule: "agents", Owners: agentd, Expires: at(0.5)},
		},
		"an expires label that is missing means never": {
			rules: []watch.Rule{agents(expires)}, facts: watch.Facts{Labels: labels{"agent": "1"}},
			want: watch.Terms{Rule: "agents", Owners: agentd},
		},
		"an expires label that is empty": {
			rules: []watch.Rule{agents(expires)}, facts: watch.Facts{Labels: labels{"agent": "1", "agent.until": ""}},
			want: watch.Terms{Rule: "agents", Owners: agentd}, faulty: true,
		},
		"an expires label in other words": {
			rules: []watch.Rule{agents(expires)}, facts: watch.Facts{Labels: labels{"agent": "1", "agent.until": "1767323045"}},
			want: watch.Terms{Rule: "agents", Owners: agentd}, faulty: true,
		},

		"a client rule, and there is a client": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{Client: true}))}, facts: watch.Facts{Client: true, Labels: labels{"agent": "1"}},
			want: watch.Terms{Rule: "agents", Owners: []watch.Claim{{Kind: watch.ClientClaim}}},
		},
		"a client rule, and there is none": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{Client: true}))}, facts: watch.Facts{Labels: labels{"agent": "1"}}, not: true,
		},
		"a client rule leaves what has no client to the next": {
			rules: []watch.Rule{agents(evidence(watch.Evidence{Client: true})), agents(func(r *watch.Rule) { r.Name = "second" })},
			facts: watch.Facts{Labels: labels{"agent": "1"}},
			want:  watch.Terms{Rule: "second", Owners: agentd},
		},

		"the group of a volume owns it": {
			facts: watch.Facts{Kind: watch.Volume, Labels: labels{"watcher.group": "g"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Group: "g", Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: "g"}}},
		},
		"the group of a network owns it, whatever a rule says": {
			rules: []watch.Rule{agents(func(r *watch.Rule) { r.Kind = watch.Network })},
			facts: watch.Facts{Kind: watch.Network, Labels: labels{"agent": "1", "io.kubernetes.pod": "x", "watcher.group": "g"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Group: "g", Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: "g"}}},
		},
		"a volume with an owner of its own": {
			facts: watch.Facts{Kind: watch.Volume, Labels: labels{"watcher.group": "g", "watcher.owner": "42"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Group: "g", Owners: []watch.Claim{process(42, 0, "")}},
		},
		"a volume that is pinned": {
			facts: watch.Facts{Kind: watch.Volume, Labels: labels{"watcher.group": "g", "watcher.keep": "true"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Group: "g", Keep: true, Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: "g"}}},
		},
		"a group of no name is a fault": {
			facts: watch.Facts{Kind: watch.Volume, Labels: labels{"watcher.group": ""}},
			want:  watch.Terms{Rule: watch.RuleLabels}, faulty: true,
		},
		"the group of a container owns nobody": {
			facts: watch.Facts{Labels: labels{"watcher.group": "g"}},
			want:  watch.Terms{Rule: watch.RuleLabels, Group: "g"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rules := &watch.Rules{Host: "here", Protect: globs("io.kubernetes.*", "com.docker.compose.*"), List: test.rules}
			if test.facts.Kind == "" {
				test.facts.Kind = watch.Container
			}
			got, watched := rules.Terms(test.facts)
			if watched == test.not {
				t.Fatalf("watched: %v", watched)
			}
			if test.faulty {
				if got.Fault == "" {
					t.Error("there is no fault")
				}
				got.Fault = ""
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(time.Time.Equal)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// What a rule has in its label is told, and where. Of several faults the label of ours comes first.
func TestTermsTellTheFault(t *testing.T) {
	rule := agents(evidence(watch.Evidence{PIDLabel: "agent.pid", ContainerLabel: "agent.boss"}), func(r *watch.Rule) { r.ExpiresLabel = "agent.until" })
	rules := &watch.Rules{Host: "here", List: []watch.Rule{rule}}
	fine := labels{"agent": "1", "agent.pid": "42", "agent.boss": "boss"}
	for name, test := range map[string]struct {
		more labels
		want string // how it begins
	}{
		"the PID":                  {labels{"agent.pid": "x"}, "agent.pid: "},
		"the container":            {labels{"agent.boss": "a b"}, "agent.boss: "},
		"the time":                 {labels{"agent.until": "soon"}, "agent.until: "},
		"the PID before the rest":  {labels{"agent.pid": "x", "agent.boss": "a b", "agent.until": "soon"}, "agent.pid: "},
		"ours before all":          {labels{"agent.pid": "x", "watcher.ttl": "soon"}, "watcher.ttl: "},
		"flooded by a hostile one": {labels{"agent.pid": strings.Repeat("9", 10_000)}, "agent.pid: "},
		"by the name of a host":    {labels{"agent.pid": `{"pid":1,"host":"` + strings.Repeat("x", 10_000) + `"}`}, "agent.pid: "},
		"by a hostile time":        {labels{"agent.until": strings.Repeat("\x1b", 10_000)}, "agent.until: "},
		"by a hostile container":   {labels{"agent.boss": strings.Repeat("\n", 10_000)}, "agent.boss: "},
	} {
		t.Run(name, func(t *testing.T) {
			on := maps.Clone(fine)
			maps.Copy(on, test.more)
			got, _ := rules.Terms(watch.Facts{Kind: watch.Container, Labels: on})
			switch {
			case !strings.HasPrefix(got.Fault, test.want):
				t.Errorf("%q, want %q…", got.Fault, test.want)
			case len(got.Fault) > 500:
				t.Errorf("the fault has %d bytes", len(got.Fault))
			case strings.ContainsFunc(got.Fault, func(r rune) bool { return r < ' ' || r == 0x7f }):
				t.Errorf("the fault carries control characters to a terminal: %q", got.Fault)
			}
		})
	}
}

func TestParsePIDLabel(t *testing.T) {
	const here = "here"
	for name, test := range map[string]struct {
		value string
		want  watch.Claim
	}{
		"a PID":                           {"42", process(42, 0, "")},
		"with its start":                  {"42:7", process(42, 7, "")},
		"with its boot":                   {"42:7:" + thisBoot, process(42, 7, thisBoot)},
		"JSON":                            {`{"pid":42}`, process(42, 0, "")},
		"JSON of this host":               {`{"hostname":"here","pid":42,"startTimeMs":1767323045000,"version":1}`, process(42, 0, "")},
		"JSON of this host, in short":     {`{"host":"here","pid":42}`, process(42, 0, "")},
		"JSON that names this host twice": {`{"host":"here","hostname":"here","pid":42}`, process(42, 0, "")},
		"JSON without a name of a host":   {`{"host":"","hostname":null,"pid":42}`, process(42, 0, "")},
		"JSON with spaces":                {"{ \"pid\" :\t42 }\n", process(42, 0, "")},
		"the largest PID":                 {`{"pid":4194304}`, process(watch.MaxPID, 0, "")},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := watch.ParsePIDLabel(test.value, here)
			if err != nil || got != test.want {
				t.Errorf("%+v, %v; want %+v", got, err, test.want)
			}
		})
	}
	for name, value := range map[string]string{
		"empty":                        "",
		"a word":                       "me",
		"a container":                  "container:boss",
		"zero":                         "0",
		"of another host":              `{"pid":42,"hostname":"there"}`,
		"of another host, in short":    `{"pid":42,"host":"there"}`,
		"of two hosts":                 `{"pid":42,"host":"here","hostname":"there"}`,
		"of this host in upper case":   `{"pid":42,"hostname":"HERE"}`,
		"of this host in full":         `{"pid":42,"hostname":"here.example.com"}`,
		"JSON without a PID":           `{"hostname":"here"}`,
		"JSON with the PID zero":       `{"pid":0}`,
		"JSON with a negative PID":     `{"pid":-42}`,
		"JSON with a PID out of range": `{"pid":4194305}`,
		"JSON beyond an int":           `{"pid":18446744073709551617}`,
		"JSON with a fraction":         `{"pid":42.5}`,
		"JSON with a PID in words":     `{"pid":"42"}`,
		"JSON cut short":               `{"pid":42`,
		"JSON and more":                `{"pid":42}{"pid":43}`,
		"a list":                       `[42]`,
		"JSON behind a space":          ` {"pid":42}`,
		"nothing in it":                `{}`,
		"a host that is a number":      `{"pid":42,"host":7}`,
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := watch.ParsePIDLabel(value, here); err == nil || got != (watch.Claim{}) {
				t.Errorf("%q is taken as %+v, %v", value, got, err)
			}
		})
	}
	if got, err := watch.ParsePIDLabel(`{"pid":42,"hostname":"there"}`, ""); err == nil {
		t.Errorf("without a name of our own any host is ours: %+v", got)
	}
}

// Whoever has no rules at all may still be asked.
func TestW1NoRulesKnowNothing(t *testing.T) {
	for _, rules := range []*watch.Rules{nil, {}} {
		f := watch.Facts{Kind: watch.Container, Name: "x", Labels: labels{"a": "b"}, Client: true}
		if terms, watched := rules.Terms(f); watched {
			t.Errorf("watched on %+v", terms)
		}
		if rules.WantsClient(f) || rules.Clients() || len(rules.Programs()) > 0 {
			t.Error("wants to know something")
		}
	}
}

func TestRulesSayWhatTheyWantToKnow(t *testing.T) {
	rules := &watch.Rules{List: []watch.Rule{
		agents(), agents(func(r *watch.Rule) { r.Name, r.Match = "again", label("again") }),
		agents(evidence(watch.Evidence{PIDLabel: "x", Process: "node */server.js"}), func(r *watch.Rule) { r.Name = "node" }),
		agents(evidence(watch.Evidence{None: true})),
	}}
	if diff := cmp.Diff([]string{"agentd", "node */server.js"}, rules.Programs()); diff != "" {
		t.Errorf("programs (-want +got)\n%s", diff)
	}
	if rules.Clients() {
		t.Error("nobody asks for clients")
	}
	rules.List = append(rules.List, agents(evidence(watch.Evidence{Client: true}), func(r *watch.Rule) { r.Match = label("foreground") }))
	if !rules.Clients() {
		t.Error("a rule asks for clients")
	}
	for name, test := range map[string]struct {
		on   labels
		want bool
	}{
		"of the client rule":  {labels{"foreground": "1"}, true},
		"of a rule before it": {labels{"foreground": "1", "again": "1"}, false},
		"of no rule":          {labels{"x": "1"}, false},
	} {
		if got := rules.WantsClient(watch.Facts{Kind: watch.Container, Labels: test.on}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if rules.WantsClient(watch.Facts{Kind: watch.Volume, Labels: labels{"foreground": "1"}}) {
		t.Error("a volume has no client")
	}
}

func TestProgramMatches(t *testing.T) {
	for _, test := range []struct {
		program string
		exe     string
		argv    []string
		want    bool
	}{
		{"kojuto", "/usr/bin/kojuto", []string{"kojuto"}, true},
		{"kojuto", "/usr/bin/kojuto", nil, true},
		{"kojuto", "/usr/bin/kojuto (deleted)", nil, true},
		{"kojuto", "/usr/bin/kojuto-2", []string{"kojuto-2"}, false},
		{"kojuto", "", []string{"kojuto"}, true}, // its executable cannot be read
		{"kojuto", "", nil, false},
		{"kojuto", "/usr/bin/python3", []string{"/opt/kojuto"}, true},
		{"kojuto", "/usr/bin/python3", []string{"python3", "kojuto"}, false},
		{"kojuto", "/usr/bin/bash", []string{"/bin/bash", "-e", "./kojuto", "scan"}, true}, // a script
		{"bash", "/bin/bash", []string{"-bash"}, true},
		{"bash", "", []string{"-bash"}, true},
		{"bash", "", []string{"--bash"}, false},
		{"/opt/bin/agentd", "/opt/bin/agentd", []string{"agentd"}, true},
		{"/opt/bin/agentd", "/usr/bin/agentd", []string{"agentd"}, false},
		{"/opt/bin/agentd", "/usr/bin/agentd", []string{"/opt/bin/agentd"}, true},
		{"/opt/*/agentd", "/opt/a/b/agentd", nil, true},
		{"agent?", "/opt/agentd", nil, true},
		{"clawbox*", "/opt/clawbox-server", nil, true},
		{"python*", "/usr/bin/python3.12", []string{"python3"}, true},
		{"node */server.js", "/usr/bin/node", []string{"node", "/srv/server.js"}, true},
		{"node */server.js", "/usr/bin/node", []string{"node", "--inspect", "/srv/server.js", "x"}, true},
		{"node */server.js", "/usr/bin/node", []string{"node"}, false},
		{"node */server.js", "/usr/bin/node", nil, false},
		{"node */server.js", "/usr/bin/node", []string{"/srv/server.js"}, false}, // argv[0] is no argument
		{"node */server.js", "/usr/bin/python3", []string{"python3", "/srv/server.js"}, false},
		{"python* -m agent", "/usr/bin/python3", []string{"python3", "-m", "agent"}, true},
		{"python* -m agent", "/usr/bin/python3", []string{"python3", "-u", "-m", "agent", "--port", "1"}, true},
		{"python* -m agent", "/usr/bin/python3", []string{"python3", "-m", "agents"}, false},
		{"python* -m agent", "/usr/bin/python3", []string{"python3", "-m", "x", "agent"}, false},
		{"python* -m agent", "/usr/bin/python3", []string{"python3", "agent", "-m"}, false},
		{"python* -m agent", "/usr/bin/python3", []string{"python3", "x", "-m"}, false},
		{"  node   */server.js ", "/usr/bin/node", []string{"node", "/srv/server.js"}, true},
		{"*", "/usr/bin/x", nil, true},
		{"*", "", nil, false},
		{".", "", []string{""}, false}, // the base of nothing is a dot
		{"kojuto", "/usr/bin/kojuto (deleted) (deleted)", nil, false},
	} {
		p, err := watch.NewProgram(test.program)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Matches(test.exe, test.argv); got != test.want || p.String() != test.program {
			t.Errorf("%q on %q, %q: %v", p, test.exe, test.argv, got)
		}
	}
	for _, text := range []string{"", " ", "\t\n"} {
		if p, err := watch.NewProgram(text); err == nil {
			t.Errorf("%q is the program %q", text, p)
		}
	}
	if p := (watch.Program{}); p.Matches("/usr/bin/x", []string{"x"}) || p.Matches("", nil) {
		t.Error("W1: the zero Program matches somebody")
	}
}

// FuzzRules: whatever is written on a sandbox, its terms can be said; watcher.owner stands above all rules; what another
// manager protects has no owner by a rule; and if no client is wanted, it does not matter whether there is one.
func FuzzRules(f *testing.F) {
	rules := &watch.Rules{
		Host: "here", Protect: globs("io.kubernetes.*", "com.docker.compose.*"),
		List: []watch.Rule{
			agents(func(r *watch.Rule) { r.Match.Image = watch.NewPattern("*agent*") }),
			agents(evidence(watch.Evidence{PIDLabel: "pid", ContainerLabel: "boss"}), func(r *watch.Rule) { r.Name, r.Match, r.ExpiresLabel = "labelled", label("pid"), "until" }),
			agents(evidence(watch.Evidence{Client: true}), func(r *watch.Rule) {
				r.Name, r.Match, r.Despite = "client", watch.Match{Name: watch.NewPattern("run-*")}, globs("com.docker.compose.*")
			}),
			agents(evidence(watch.Evidence{None: true}), func(r *watch.Rule) {
				r.Name, r.Match, r.States = "stale", label("*=true"), []watch.State{watch.Stopped}
			}),
		},
	}
	f.Add("agent", "1", "watcher.owner", "42", "my-agent", "a", true)
	f.Add("pid", `{"pid":42,"hostname":"there"}`, "boss", "/boss", "", "", false)
	f.Add("pid", "42", "until", "2026-01-02T03:04:05Z", "", "run-1", true)
	f.Add("x", "true", "com.docker.compose.project", "y", "", "run-1", false)
	f.Add("watcher.group", "g", "io.kubernetes.pod", "x", "", "", false)
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, image, name string, client bool) {
		on := labels{key1: value1, key2: value2}
		for _, kind := range []watch.Kind{watch.Container, watch.Volume} {
			facts := watch.Facts{Kind: kind, Name: name, Image: image, Labels: on, Client: client}
			got, watched := rules.Terms(facts)
			if again, _ := rules.Terms(facts); !reflect.DeepEqual(again, got) {
				t.Fatalf("%+v, then %+v", got, again)
			}
			own, labelled := watch.ParseTerms(on)
			protected := false
			for key := range on {
				protected = protected || slices.ContainsFunc(rules.Protect, func(p watch.Pattern) bool { return p.Matches(key) })
			}
			switch {
			case labelled && !watched:
				t.Fatalf("%v does not exist for watcher", on)
			case !watched && !reflect.DeepEqual(got, watch.Terms{}):
				t.Fatalf("not watched, and yet %+v", got)
			case len(own.Owners) > 0 && !reflect.DeepEqual(got, own):
				t.Fatalf("watcher.owner says %+v, and it is watched on %+v", own, got)
			case own.Fault != "" && got.Fault != own.Fault:
				t.Fatalf("the fault %q becomes %q", own.Fault, got.Fault)
			case own.Keep && !got.Keep:
				t.Fatalf("the pin is lost: %+v", got)
			case own.TTL != got.TTL, own.Group != got.Group:
				t.Fatalf("%+v becomes %+v", own, got)
			case protected && got.Rule != "client" && len(own.Owners) == 0 && own.Group == "" && len(got.Owners) > 0:
				t.Fatalf("%v is another manager's, and %v may own it", on, got.Owners)
			case protected && got.Rule != "client" && (got.Ownerless || got.MaxAge != 0 || !got.Expires.IsZero()):
				t.Fatalf("%v is another manager's, and it is watched on %+v", on, got)
			}
			for _, c := range got.Owners {
				if c.Kind == watch.NoClaim && got.Fault == "" {
					t.Fatalf("nobody owns %v, and nothing is wrong: %+v", on, got)
				}
			}
			if !rules.WantsClient(facts) {
				facts.Client = !client
				if other, _ := rules.Terms(facts); !reflect.DeepEqual(other, got) {
					t.Fatalf("no client is wanted, and it matters: %+v, or %+v", got, other)
				}
			}
		}
	})
}

// FuzzProgramMatches: a program that takes arguments takes no more than the same one without; one that is named in full is
// recognised; and whoever's executable is replaced is the same as before.
func FuzzProgramMatches(f *testing.F) {
	f.Add("kojuto", "/usr/bin/kojuto", "kojuto", "")
	f.Add("node */server.js", "/usr/bin/node", "node", "/srv/server.js")
	f.Add("python* -m agent", "/usr/bin/python3 (deleted)", "-m", "agent")
	f.Add("* ?", "", "-", "\xff")
	f.Fuzz(func(t *testing.T, text, exe, first, second string) {
		p, err := watch.NewProgram(text)
		words := strings.Fields(text)
		if (err != nil) != (len(words) == 0) {
			t.Fatalf("%q as a program: %v", text, err)
		}
		if err != nil {
			return
		}
		file, _ := watch.NewProgram(words[0])
		for _, argv := range [][]string{nil, {first}, {first, second}, {first, first, second}} {
			is := p.Matches(exe, argv)
			if is && !file.Matches(exe, argv) {
				t.Fatalf("%q matches %q, %q, and without arguments it does not", text, exe, argv)
			}
			if is && !strings.HasSuffix(exe, " (deleted)") && exe != "" && !p.Matches(exe+" (deleted)", argv) {
				t.Fatalf("%q matches %q, %q, and not once that was replaced", text, exe, argv)
			}
		}
		if !strings.HasSuffix(words[0], " (deleted)") && !p.Matches(words[0], words) {
			t.Fatalf("%q is not the program of %q", text, words)
		}
	})
}

// FuzzParsePIDLabel: what is taken is a process of this host and nothing else, and reads the same again.
func FuzzParsePIDLabel(f *testing.F) {
	for _, value := range []string{"42", "42:7:" + thisBoot, `{"pid":42}`, `{"hostname":"there","pid":42}`, `{"host":"here","pid":1e3}`, "container:boss", "{"} {
		f.Add(value, "here")
	}
	f.Fuzz(func(t *testing.T, value, host string) {
		name, _ := json.Marshal(value)
		var written string
		_ = json.Unmarshal(name, &written)
		if _, err := watch.ParsePIDLabel(`{"pid":42,"hostname":`+string(name)+`}`, host); (err == nil) != (written == "" || written == host) {
			t.Fatalf("a process of %q, and we are %q: %v", written, host, err)
		}
		got, err := watch.ParsePIDLabel(value, host)
		if err != nil {
			if got != (watch.Claim{}) {
				t.Fatalf("%q fails and yet names %+v", value, got)
			}
			return
		}
		if got.Kind != watch.ProcessClaim || got.Process.PID < 1 || got.Process.PID > watch.MaxPID {
			t.Fatalf("%q names %+v", value, got)
		}
		if again, err := watch.ParsePIDLabel(got.String(), host); err != nil || again != got {
			t.Fatalf("%q reads as %+v, written as %q, which reads as %+v (%v)", value, got, got, again, err)
		}
	})
}
