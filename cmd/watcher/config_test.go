package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// A configCase is a configuration and what is wrong with it.
type configCase struct{ title, text, faults string }

// configCases reads a file of them: behind each title a configuration, and behind each > a fault.
func configCases(tb testing.TB, file string) (cases []configCase) {
	tb.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	_, blocks, _ := strings.Cut(string(text), "\n--- ")
	for block := range strings.SplitSeq(blocks, "\n--- ") {
		title, body, _ := strings.Cut(block, "\n")
		c := configCase{title: title}
		for line := range strings.Lines(strings.TrimSpace(body) + "\n") {
			if fault, ok := strings.CutPrefix(line, "> "); ok {
				c.faults += fault
			} else {
				c.text += line
			}
		}
		cases = append(cases, c)
	}
	return cases
}

// Every fault is told with its place and its text, all of a file at once and in its order.
func TestConfigFaults(t *testing.T) {
	cases := configCases(t, "testdata/config/faults.txt")
	cases = append(cases,
		configCase{"not UTF-8", "[scan]\n\xff", "2:1: invalid character at start of key: U+00FF 'ÿ': \"\\xff\"\n"},
		configCase{
			"a control character", "a = \"\x01\"\n",
			"1:6: basic strings cannot have control characters: \"a = \\\"\\x01\\\"\"\n",
		},
		configCase{
			"lines as Windows ends them", "[scan]\r\ninterval = 1\r\nx",
			"2:12: want a duration such as \"30s\": 1\n3:1: expected '=' after key: x\n",
		},
		configCase{
			"a mark of the byte order", "\ufeff[scan]\n",
			"1:1: invalid character at start of key: U+00EF 'ï': \"\\ufeff[scan]\"\n",
		},
	)
	for _, c := range cases {
		t.Run(c.title, func(t *testing.T) {
			got, err := parseConfig("F", []byte(c.text))
			if err == nil || got != nil {
				t.Fatalf("taken as %+v, and %v is wrong with it", got, err)
			}
			var told strings.Builder
			for line := range strings.SplitSeq(err.Error(), "\n") {
				told.WriteString(strings.TrimPrefix(line, "F:") + "\n")
			}
			if diff := cmp.Diff(c.faults, told.String()); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// everything is a configuration in which every key has a value that is not the default.
const everything = `
presets = ["clawbox", "kojuto"]
protect = ["com.example.*", "mine"]

[docker]
host = "unix:///run/docker.sock"

[scan]
interval = "1m"
grace = "3s"

[retry]
attempts = 3
base = "2s"
cap = "10s"

[alarm]
sandboxes = 7

[brake]
burst = 0

[[rule]]
name = "agents"
kind = "container"
match = { labels = ["agent.run=*", "agent", "empty="], image = "*agent*", name = "agent-?" }
owner = { pid-label = "agent.pid", container-label = "agent.parent", process = "python* -m agent", client = true, socket = "/run/agent.sock" }
states = ["exited", "created", "dead"]
max-age = "1h30m"
stop-timeout = "5s"
alarm = 4
expires-label = "agent.until"
serves = ["com.docker.compose.*"]
files = ["/tmp/agent-*", "~/.agent/*"]

[[rule]]
name = "leftovers"
owner = { none = true }
states = ["dead"]

[rule.match]
name = "odd \" \\ \u0001 \n \t ' ü 🐋"
`

func parsed(t *testing.T, text string) *config {
	t.Helper()
	c, err := parseConfig("watcher.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// inForce is all that a configuration means.
type inForce struct {
	Host     string
	Interval time.Duration
	Policy   reap.Policy
	Rules    *watch.Rules
}

func meaning(c *config) inForce {
	return inForce{c.Docker.Host, c.Scan.Interval, c.policy(), c.rules()}
}

// samePattern compares what patterns say. They cannot be compared otherwise.
var samePattern = cmp.Comparer(func(a, b watch.Pattern) bool { return a.Given() == b.Given() && a.String() == b.String() })

func globs(all ...string) (patterns []watch.Pattern) {
	for _, glob := range all {
		patterns = append(patterns, watch.NewPattern(glob))
	}
	return patterns
}

func label(t *testing.T, text string) watch.LabelPattern {
	t.Helper()
	p, err := watch.NewLabelPattern(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConfigSaysEverything(t *testing.T) {
	c := parsed(t, everything)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := inForce{
		Host: "unix:///run/docker.sock", Interval: time.Minute,
		Policy: reap.Policy{
			Grace: 3 * time.Second, Attempts: 3, Base: 2 * time.Second, Cap: 10 * time.Second,
			Alarm: 7, Alarms: map[string]int{"agents": 4}, Burst: 0,
		},
		Rules: &watch.Rules{Host: host, Protect: globs("com.example.*", "mine"), List: []watch.Rule{{
			Name: "agents", Kind: watch.Container,
			Match: watch.Match{
				Labels: []watch.LabelPattern{label(t, "agent.run=*"), label(t, "agent"), label(t, "empty=")},
				Image:  watch.NewPattern("*agent*"), Name: watch.NewPattern("agent-?"),
			},
			Owner: watch.Evidence{
				PIDLabel: "agent.pid", ContainerLabel: "agent.parent", Process: "python* -m agent", Client: true, Socket: "/run/agent.sock",
			},
			States: []watch.State{watch.Stopped, watch.Created, watch.Dead}, MaxAge: 90 * time.Minute, StopTimeout: 5 * time.Second,
			Alarm: 4, ExpiresLabel: "agent.until", Despite: globs("com.docker.compose.*"),
			Files: []string{"/tmp/agent-*", "/root/.agent/*", "/home/*/.agent/*"},
		}, {
			Name: "leftovers", Kind: watch.Container, Match: watch.Match{Name: watch.NewPattern("odd \" \\ \u0001 \n \t ' ü 🐋")},
			Owner: watch.Evidence{None: true}, States: []watch.State{watch.Dead},
		}, {
			Name: "clawbox", Kind: watch.Container, Match: watch.Match{Labels: []watch.LabelPattern{label(t, "clawbox.container_id")}},
			Owner: watch.Evidence{Process: "clawbox*", Socket: "/run/clawbox/proxy.sock"}, StopTimeout: 5 * time.Second,
			Files: []string{"/root/.clawbox/proxies/*", "/home/*/.clawbox/proxies/*"},
		}, {
			Name: "kojuto", Kind: watch.Container, Match: watch.Match{Labels: []watch.LabelPattern{label(t, "kojuto.scan=true")}},
			Owner: watch.Evidence{Process: "kojuto"}, Files: []string{"/tmp/kojuto-seccomp-*"},
		}}},
	}
	if diff := cmp.Diff(want, meaning(c), samePattern); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Without a file only watcher's own labels count, and other managers' containers are protected if there should be rules.
func TestConfigDefaults(t *testing.T) {
	c := parsed(t, "")
	if diff := cmp.Diff(meaning(defaults()), meaning(c), samePattern); diff != "" {
		t.Errorf("an empty file does not mean the defaults (-want +got):\n%s", diff)
	}
	if len(c.effective()) > 0 {
		t.Errorf("rules by default: %+v", c.effective())
	}
	for _, key := range []string{
		"io.kubernetes.pod.name", "com.hashicorp.nomad.alloc_id", "com.docker.swarm.service.id", "com.docker.compose.project",
		"com.gitlab.gitlab-runner.managed", "devcontainer.*",
	} {
		if !slices.ContainsFunc(c.Protect, func(p watch.Pattern) bool { return p.Matches(key) }) {
			t.Errorf("%s is not protected", key)
		}
	}
	if c := parsed(t, "protect = []"); len(c.Protect) > 0 {
		t.Errorf("protected in spite of all: %v", c.Protect)
	}
}

// What check --print writes means what was read, and stays as it is when it is written again.
func TestPrintedConfigIsRead(t *testing.T) {
	all := "presets = [\"" + strings.Join(presetNames(), `", "`) + "\"]\n"
	for name, text := range map[string]string{
		"nothing":    "",
		"everything": everything,
		"presets":    all,
		"a replaced rule": all + `
[[rule]]
name = "klangk"
match = { labels = ["klangk.managed=true"] }
owner = { process = "klangkd" }
[[rule]]
name = "docker-run"
match = { labels = ["mine"] }
owner = { client = true }
`,
		"nobody and nothing": "presets = []\nprotect = []\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := parsed(t, text)
			again := parsed(t, c.print())
			if diff := cmp.Diff(meaning(c), meaning(again), samePattern); diff != "" {
				t.Errorf("%s\n(-read +read again):\n%s", c.print(), diff)
			}
			if len(again.presets) > 0 {
				t.Error("presets are used and printed, too")
			}
			if third := parsed(t, again.print()); third.print() != again.print() {
				t.Errorf("printed\n%s and then\n%s", again.print(), third.print())
			}
		})
	}
}

// Presets are printed with their comments. What the file replaces is commented out.
func TestPresetsArePrinted(t *testing.T) {
	printed := parsed(t, `
presets = ["kojuto", "mcp-sandbox"]
[[rule]]
name = "mcp-sandbox-image"
match = { image = "*mcp-sandbox:*" }
owner = { process = "node" }
`).print()
	text, err := presetFiles.ReadFile("presets/kojuto.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"presets = []   # the rules of kojuto, mcp-sandbox are below\n",
		"\n# preset kojuto\n" + string(text),
		"\n# preset mcp-sandbox\n",
		"\n[[rule]]\nname = \"mcp-sandbox\"\n",
		"\n# [[rule]]\n# name = \"mcp-sandbox-image\"\n# match = ",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("no %q in\n%s", want, printed)
		}
	}
}

// Rules are tried in order: those of the file, then those of the presets as they are named, on the command line last.
func TestRulesAreTriedInOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "watcher.toml")
	text := `
presets = ["mcp-sandbox", "kojuto"]
[[rule]]
name = "b"
match = { name = "*" }
owner = { client = true }
[[rule]]
name = "kojuto"
match = { labels = ["kojuto.scan"] }
owner = { none = true }
max-age = "1h"
[[rule]]
name = "a"
match = { name = "*" }
owner = { process = "p" }
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(file, []string{"docker-run", "kojuto", "clawbox", "docker-run"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, rule := range c.effective() {
		names = append(names, rule.Name)
	}
	want := []string{"b", "kojuto", "a", "mcp-sandbox", "mcp-sandbox-image", "compose-run", "docker-run", "clawbox"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if rule := c.effective()[1]; !rule.Owner.None {
		t.Errorf("the preset's rule stands where the file's should: %+v", rule)
	}

	terms := func(labels ...string) watch.Terms {
		terms, _ := c.rules().Terms(watch.Facts{Kind: watch.Container, Name: "x", Labels: labelMap(labels...)})
		return terms
	}
	if got := terms("kojuto.scan=true"); got.Rule != "kojuto" || !got.Ownerless || got.MaxAge != time.Hour {
		t.Errorf("a kojuto is watched on the terms %+v", got)
	}
	if got := terms(); got.Rule != "a" {
		t.Errorf("any container is watched on the terms %+v", got)
	}
	if got := terms("kojuto.scan=true", "watcher.owner=7"); got.Rule != watch.RuleLabels || len(got.Owners) != 1 || got.Owners[0].Process.PID != 7 {
		t.Errorf("a kojuto that names its owner is watched on the terms %+v", got)
	}
}

func TestUnknownPresetsOfTheCommandLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "watcher.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for preset, want := range map[string]string{
		"nope": "--preset nope: unknown preset, want broodbox, clawbox, docker-run, kojuto, mcp-sandbox, owner-labels or vm0",
		"":     "--preset : unknown preset, want broodbox, clawbox, docker-run, kojuto, mcp-sandbox, owner-labels or vm0",
	} {
		if _, err := loadConfig(file, []string{preset}); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", preset, err, want)
		}
	}
}

// A fault in a preset would be ours.
func TestPresetsAreSound(t *testing.T) {
	names := map[string]string{}
	for _, name := range presetNames() {
		p, err := loadPreset(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if headers := strings.Count("\n"+p.text, "\n[[rule]]\n"); len(p.rules) == 0 || headers != len(p.rules) {
			t.Errorf("%s has %d rules and %d headers, by which they are told apart when they are printed", name, len(p.rules), headers)
		}
		comment, _, _ := strings.Cut(p.text, "\n[[rule]]")
		if !strings.HasPrefix(comment, "# ") || !regexp.MustCompile(`\n# (Never touched|Left alone): `).MatchString(comment) {
			t.Errorf("%s does not say what it never touches", name)
		}
		if !strings.Contains(comment, "github.com/") {
			t.Errorf("%s does not say where its facts come from", name)
		}
		for _, rule := range p.rules {
			if other, ok := names[rule.Name]; ok {
				t.Errorf("%s and %s have a rule %s", name, other, rule.Name)
			}
			names[rule.Name] = name
		}
	}
	for _, name := range []string{"broodbox", "clawbox", "docker-run", "kojuto", "mcp-sandbox", "owner-labels", "vm0"} {
		if !slices.Contains(presetNames(), name) {
			t.Errorf("no preset %s", name)
		}
	}
}

// What the presets say of containers as they are in the field.
func TestPresetsInTheField(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	const managed, payload = "com.vybestack.llxprt.sandbox-managed=true", "com.vybestack.llxprt.sandbox-owner=" +
		`{"version":1,"hostname":"%s","pid":4242,"startTimeMs":1767225600000,"startTimeSource":"observed"}`
	for _, test := range []struct {
		preset string
		name   string
		labels []string
		image  string
		client bool
		want   string // the rule and the owners; "": it does not exist for watcher
	}{
		{preset: "kojuto", name: "scan", labels: []string{"kojuto.scan=true"}, want: "kojuto: program kojuto"},
		{preset: "kojuto", name: "of another sort", labels: []string{"kojuto.scan=false"}},

		{
			preset: "clawbox", name: "clawbox-1", labels: []string{"clawbox.container_id=clawbox-1"},
			want: "clawbox: program clawbox*, socket /run/clawbox/proxy.sock",
		},
		{
			preset: "clawbox", name: "in a swarm", labels: []string{"clawbox.container_id=clawbox-1", "com.docker.swarm.task="},
			want: "clawbox: protected by com.docker.swarm.task",
		},

		{
			preset: "mcp-sandbox", name: "by its label", image: "node:18-alpine", labels: []string{"mcp.sandbox=true"},
			want: "mcp-sandbox: program node",
		},
		{preset: "mcp-sandbox", name: "by its image", image: "registry.example/x/mcp-sandbox:1", want: "mcp-sandbox-image: program node"},
		{preset: "mcp-sandbox", name: "node", image: "node:18-alpine"},

		{preset: "docker-run", name: "run", client: true, want: "docker-run: client"},
		{preset: "docker-run", name: "run -d"},
		{
			preset: "docker-run", name: "compose run", client: true,
			labels: []string{"com.docker.compose.oneoff=True", "com.docker.compose.project=p"}, want: "compose-run: client",
		},
		{
			preset: "docker-run", name: "compose run in nomad", client: true,
			labels: []string{"com.docker.compose.oneoff=True", "com.hashicorp.nomad.alloc_id=x"},
			want:   "compose-run: protected by com.hashicorp.nomad.alloc_id",
		},
		{preset: "docker-run", name: "compose run -d", labels: []string{"com.docker.compose.oneoff=True"}},
		{
			preset: "docker-run", name: "compose up", client: true, labels: []string{"com.docker.compose.oneoff=False"},
			want: "docker-run: protected by com.docker.compose.oneoff",
		},

		{preset: "owner-labels", name: "agent-ci", labels: []string{"agent-ci.pid=4242"}, want: "agent-ci: process 4242"},
		{preset: "owner-labels", name: "agent-ci-of-nobody"},
		{preset: "owner-labels", name: "agent-ci that cannot be read", labels: []string{"agent-ci.pid=0x10"}, want: "agent-ci: a fault"},
		{preset: "owner-labels", name: "klangk", labels: []string{"klangk.managed=true", "klangk.pid=4242"}, want: "klangk: process 4242"},
		{preset: "owner-labels", name: "klangk of nobody", labels: []string{"klangk.managed=true"}},
		{
			preset: "owner-labels", name: "openmake", labels: []string{"openmake.role=mcp-sandbox", "openmake.pid=4242"},
			want: "openmake: process 4242",
		},
		{preset: "owner-labels", name: "openmake that lasts", labels: []string{"openmake.role=task-sandbox", "openmake.pid=4242"}},
		{preset: "owner-labels", name: "llxprt", labels: []string{managed, fmt.Sprintf(payload, host)}, want: "llxprt: process 4242"},
		{preset: "owner-labels", name: "llxprt of another host", labels: []string{managed, fmt.Sprintf(payload, host+"x")}, want: "llxprt: a fault"},
		{preset: "owner-labels", name: "opensandbox", labels: []string{"opensandbox.io/expires-at=2020-01-02T03:04:05Z"}},
		{preset: "owner-labels", name: "testcontainers", labels: []string{"org.testcontainers=true"}},
	} {
		t.Run(test.preset+"/"+test.name, func(t *testing.T) {
			f := watch.Facts{Kind: watch.Container, Name: test.name, Image: test.image, Labels: labelMap(test.labels...), Client: test.client}
			terms, watched := parsed(t, "presets = [\""+test.preset+"\"]").rules().Terms(f)
			if got := termsText(terms); got != test.want || watched != (test.want != "") {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func labelMap(labels ...string) map[string]string {
	m := map[string]string{}
	for _, text := range labels {
		key, value, _ := strings.Cut(text, "=")
		m[key] = value
	}
	return m
}

// termsText is what a rule says of a container.
func termsText(t watch.Terms) string {
	var owners []string
	for _, claim := range t.Owners {
		switch claim.Kind {
		case watch.ProcessClaim:
			owners = append(owners, fmt.Sprint("process ", claim.Process.PID))
		case watch.ProgramClaim:
			owners = append(owners, "program "+claim.Program)
		case watch.SocketClaim:
			owners = append(owners, "socket "+claim.Socket)
		case watch.ClientClaim:
			owners = append(owners, "client")
		default:
			owners = append(owners, fmt.Sprintf("%+v", claim))
		}
	}
	switch {
	case t.Rule == "":
		return ""
	case t.Fault != "":
		return t.Rule + ": a fault"
	case t.Protected != "":
		return t.Rule + ": protected by " + t.Protected
	default:
		return t.Rule + ": " + strings.Join(owners, ", ")
	}
}

// The rule that owner-labels has in its comment, for who wants it, is one.
func TestExampleInAPreset(t *testing.T) {
	p, err := loadPreset("owner-labels")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(p.text, "#   [[rule]]\n")
	example, _, _ = strings.Cut(example, "\n\n")
	rule := parsed(t, "[[rule]]\n"+strings.ReplaceAll("\n"+example, "\n#   ", "\n")).Rules[0]
	if rule.ExpiresLabel != "opensandbox.io/expires-at" || !rule.Owner.None {
		t.Errorf("the example is %+v", rule)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	t.Setenv("DOCKER_HOST", "")
	empty, good := write("empty.toml", ""), write("good.toml", "presets = [\"mcp-sandbox\"]\n")
	one := write("one.toml", "[[rule]]\nname = \"a\"\nmatch = { image = \"a\" }\nowner = { process = \"a\" }\n")
	bad := write("bad.toml", "colour = 1\n[scan]\ninterval = 1\n")
	for _, test := range []struct {
		name      string
		args      []string
		out, fail string
	}{
		{"empty", []string{"--config", empty}, empty + ": ok, no rules\n", ""},
		{"one rule", []string{"--config", one}, one + ": ok, 1 rule\n", ""},
		{"preset in the file", []string{"--config", good}, good + ": ok, 2 rules\n", ""},
		{"presets in both", []string{"--config", good, "--preset", "kojuto", "--preset=mcp-sandbox"}, good + ": ok, 3 rules\n", ""},
		{"faults", []string{"--config", bad}, "", "the configuration is not valid:\n" +
			bad + ":1:1: unknown key, want alarm, brake, docker, presets, protect, retry, rule or scan: colour\n" +
			bad + ":3:12: want a duration such as \"30s\": 1"},
		{"no such preset", []string{"--config", empty, "--preset", "broodbock"}, "", "--preset broodbock: unknown preset, want broodbox, clawbox, docker-run, kojuto, mcp-sandbox, owner-labels or vm0"},
		{"no such file", []string{"--config", dir + "/none"}, "", "read the configuration: open " + dir + "/none: no such file or directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, err := runCheck(test.args...)
			if out != test.out {
				t.Errorf("printed %q, want %q", out, test.out)
			}
			if got := errorText(err); got != test.fail {
				t.Errorf("failed with %q, want %q", got, test.fail)
			}
			if usage := new(usageError); err != nil && !errors.As(err, usage) {
				t.Errorf("%v does not end with exit code 2", err)
			}
		})
	}

	out, err := runCheck("--config", good, "--preset", "kojuto", "--docker-host", "tcp://127.0.0.1:2375", "--print")
	if err != nil {
		t.Fatal(err)
	}
	want, err := loadConfig(good, []string{"kojuto"})
	if err != nil {
		t.Fatal(err)
	}
	want.Docker.Host = "tcp://127.0.0.1:2375"
	if diff := cmp.Diff(meaning(want), meaning(parsed(t, out)), samePattern); diff != "" {
		t.Errorf("printed\n%s\n(-want +got):\n%s", out, diff)
	}
}

func runCheck(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := newRootCommand()
	cmd.SetArgs(append([]string{"check"}, args...))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.Execute()
	return out.String(), err
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
