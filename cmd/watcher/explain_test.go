package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/google/go-cmp/cmp"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// goldenExplain is what explain prints of every sort of owner. With WATCHER_GOLDEN=write the test writes it anew; read it
// before you keep it.
const goldenExplain = "testdata/explain.txt"

// The rules of TestExplain: %[1]s is a program that runs, and %[2]s one that does not.
const explainRules = `
[scan]
grace = "1ms"

[[rule]]
name = "by-pid-label"
match = { labels = ["case=pid-label"] }
owner = { pid-label = "boss" }

[[rule]]
name = "by-container-label"
match = { labels = ["case=container-label"] }
owner = { container-label = "boss" }

[[rule]]
name = "by-program"
match = { labels = ["case=program"], image = "watchertest*" }
owner = { process = "%[1]s serve" }

[[rule]]
name = "by-dead-program"
match = { name = "program-*" }
owner = { process = "%[2]s" }

[[rule]]
name = "by-both"
match = { labels = ["case=both"] }
owner = { process = "%[1]s", pid-label = "boss" }

[[rule]]
name = "by-socket"
match = { labels = ["case=socket"] }
owner = { socket = "/run/agent/sock" }

[[rule]]
name = "nobodys"
match = { labels = ["case=none"] }
owner = { none = true }
states = ["exited", "dead"]
max-age = "1h"

[[rule]]
name = "stale"
match = { labels = ["case=stale"] }
owner = { none = true }
states = ["created"]

[[rule]]
name = "dated"
match = { labels = ["case=dated"] }
owner = { none = true }
expires-label = "until"

[[rule]]
name = "run"
match = { name = "*" }
owner = { client = true }
`

func TestExplain(t *testing.T) {
	e := dockertest.Shared(t)
	agentd := processtest.Program(t, "agentd")
	alive, dead := processtest.StartOwner(t), processtest.StartOwner(t)
	serving := processtest.StartProgram(t, agentd, "agentd", "serve")
	x := &explaining{t: t, e: e, config: configFile(t, fmt.Sprintf(explainRules, agentd, "/opt/scanner")), known: map[string]string{agentd: "/bin/agentd"}}
	x.process("ALIVE", alive.Label())
	x.process("DEAD", dead.Label())
	x.process("SERVING", serving.Label())
	dead.Kill()
	dead.Wait()
	boss := e.Run(t, dockertest.ContainerOptions{Name: "boss"})
	past := e.Run(t, dockertest.ContainerOptions{Name: "past", Args: []string{"exit", "0"}})
	e.WaitStopped(t, past)
	x.id("BOSS", boss)
	x.id("PAST", past)

	// Labels of watcher's own.
	x.created("process", ownedBy(alive.Label()))
	x.created("process-dead", ownedBy(dead.Label()))
	x.created("process-only-pid", ownedBy(strconv.Itoa(alive.PID())))
	x.created("process-of-another-boot", ownedBy("4242:1:00000000-0000-4000-8000-000000000000"))
	x.created("process-with-ttl", map[string]string{watch.LabelOwner: alive.Label(), watch.LabelTTL: "90m"})
	x.created("process-whose-time-is-over", map[string]string{watch.LabelOwner: alive.Label(), watch.LabelTTL: "1ms"})
	x.created("container", ownedBy("container:boss"))
	x.created("container-exited", ownedBy("container:past"))
	x.created("container-gone", ownedBy("container:nowhere-to-be-seen"))
	x.created("pinned", map[string]string{watch.LabelOwner: dead.Label(), watch.LabelKeep: "true"})
	x.created("malformed", map[string]string{watch.LabelOwner: alive.Label(), watch.LabelTTL: "soon"})
	x.created("nothing-but-a-group", map[string]string{watch.LabelGroup: "builders"})
	// Rules.
	x.created("rule-pid-label", map[string]string{"case": "pid-label", "boss": alive.Label()})
	x.created("rule-pid-label-malformed", map[string]string{"case": "pid-label", "boss": "somebody"})
	x.created("rule-container-label", map[string]string{"case": "container-label", "boss": boss})
	x.created("rule-program", map[string]string{"case": "program"})
	x.created("program-dead", nil)
	x.created("rule-of-both", map[string]string{"case": "both", "boss": dead.Label()})
	x.socket("rule-socket", true)
	x.socket("rule-socket-dead", false)
	x.created("rule-none", map[string]string{"case": "none"})
	x.created("rule-none-in-its-state", map[string]string{"case": "stale"})
	x.created("rule-none-with-date", map[string]string{"case": "dated", "until": "2099-01-02T03:04:05Z"})
	x.created("protected", map[string]string{"case": "stale", "io.kubernetes.pod": "web-1"})
	x.client("client")
	// What belongs to a group.
	f, lonely, owned := newFamily(t, e, nil), newFamily(t, e, nil), newFamily(t, e, ownedBy(dead.Label()))
	f.user(f.with(nil), false)
	owned.user(nil, false)
	for _, f := range []*family{f, lonely, owned} {
		x.known[f.group] = "GROUP"
	}
	x.id("NETWORK", f.network)
	x.explain("group-volume", f.volume)
	x.explain("group-network", f.network)
	x.explain("group-without-containers", lonely.volume)
	x.explain("volume-in-use", owned.volume)

	var text strings.Builder
	for i, name := range x.names {
		fmt.Fprintf(&text, "== %s\n%s\n", name, x.said[i])
	}
	if os.Getenv("WATCHER_GOLDEN") == "write" {
		writeFile(t, goldenExplain, text.String())
	}
	golden, err := os.ReadFile(goldenExplain)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(golden), "\n"), strings.Split(text.String(), "\n")); diff != "" {
		t.Errorf("explain says something else than %s (-golden +now):\n%s", goldenExplain, diff)
	}
}

// explaining is all that explain says in one test.
type explaining struct {
	t      *testing.T
	e      *dockertest.Engine
	config string
	known  map[string]string // what stands for what is another in each run
	names  []string
	said   []string
}

// process has a process appear under a name.
func (x *explaining) process(name, label string) {
	parts := strings.SplitN(label, ":", 3)
	x.known[parts[0]], x.known[parts[1]], x.known[parts[2]] = name, name+"-START", "BOOT"
}

func (x *explaining) id(name, id string) { x.known[id], x.known[id[:12]] = name, name }

// created explains a container that never ran.
func (x *explaining) created(name string, labels map[string]string) {
	x.t.Helper()
	x.id("ID", x.e.Run(x.t, dockertest.ContainerOptions{Name: name, Labels: labels, NotStarted: true}))
	x.explain(name, name)
}

// socket explains a container into which the folder of a socket is mounted, on which we listen.
func (x *explaining) socket(name string, listened bool) {
	x.t.Helper()
	dir := x.t.TempDir()
	if listened {
		l, err := net.Listen("unix", filepath.Join(dir, "sock"))
		if err != nil {
			x.t.Fatal(err)
		}
		defer l.Close()
		stat, err := os.ReadFile("/proc/self/stat")
		if err != nil {
			x.t.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		x.known[strconv.Itoa(os.Getpid())], x.known[fields[22-3]] = "LISTENER", "LISTENER-START"
	}
	made, err := x.e.Client().ContainerCreate(x.t.Context(),
		&container.Config{Image: x.e.Image(x.t), Labels: map[string]string{"case": "socket"}},
		&container.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{{Type: mount.TypeBind, Source: dir, Target: "/run/agent"}}}, nil, nil, name)
	if err != nil {
		x.t.Fatal(err)
	}
	defer func() {
		if err := x.e.Client().ContainerRemove(x.t.Context(), made.ID, forced); err != nil {
			x.t.Error(err)
		}
	}()
	x.id("ID", made.ID)
	x.explain(name, name)
}

// client explains a container that we started through a client of the engine, to which we speak.
func (x *explaining) client(name string) {
	x.t.Helper()
	needTool(x.t, "docker", "docker.io")
	cmd := exec.Command("docker", "run", "--rm", "-i", "--network", "none", "--name", name, x.e.Image(x.t))
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+x.e.Host(), "DOCKER_CONFIG="+x.t.TempDir(), "DOCKER_CONTEXT=")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		x.t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	defer func() {
		_ = x.e.Client().ContainerRemove(x.t.Context(), name, forced)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	x.e.WaitRunning(x.t, name)
	full, _ := x.e.Inspect(x.t, name)
	x.id("ID", full.ID)
	x.known[strconv.Itoa(os.Getpid())], x.known[strconv.Itoa(cmd.Process.Pid)] = "SPEAKER", "CLIENT"
	x.explain(name, name)
}

// Times that are others in each run: what is left of a time, how old something is, and moments.
var (
	explainMoment = regexp.MustCompile(`\b20[2-8]\d-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)`)
	explainAge    = regexp.MustCompile(`\b\d+s ago`)
	explainLeft   = regexp.MustCompile(`\bin (\d+h)?(\d+m)?\d+s,`)
	explainNumber = regexp.MustCompile(`[0-9a-z/][0-9a-zA-Z/_.-]*`)
)

// explain has watcher explain what has that name, in words and as JSON, and keeps the words.
func (x *explaining) explain(name, arg string) {
	x.t.Helper()
	words := x.run(arg)
	said := explainMoment.ReplaceAllString(words, "TIME")
	said = explainAge.ReplaceAllString(said, "AGE ago")
	said = explainLeft.ReplaceAllString(said, "in TIME,")
	said = explainNumber.ReplaceAllStringFunc(said, func(word string) string {
		if stands, ok := x.known[word]; ok {
			return stands
		}
		return word
	})
	for known, stands := range x.known {
		if stands == "GROUP" {
			said = strings.ReplaceAll(said, known+"-", "GROUP-")
		}
	}
	x.names, x.said = append(x.names, name), append(x.said, said)

	var j explained
	strict := json.NewDecoder(strings.NewReader(x.run(arg, "-o", "json")))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&j); err != nil {
		x.t.Errorf("explain %s -o json: %v", arg, err)
		return
	}
	if j.Rule == "" || j.Why == "" || len(j.Evidence) == 0 || j.Change == "" || j.Verdict == "" || j.Reason == "" {
		x.t.Errorf("explain %s -o json lacks its rule, why, evidence, change, verdict or reason: %+v", arg, j)
	}
	// Both say the same.
	for _, piece := range append([]string{j.Why, j.Change, j.Verdict + ", because " + string(j.Reason)}, j.Evidence...) {
		if !strings.Contains(words, piece) {
			x.t.Errorf("explain %s says %q only in its JSON; in words:\n%s", arg, piece, words)
		}
	}
}

// run has this process explain what has that name, which costs less than another one.
func (x *explaining) run(arg string, more ...string) string {
	x.t.Helper()
	var out bytes.Buffer
	cmd := newRootCommand()
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"explain", arg, "--config", x.config, "--docker-host", x.e.Host(), "--state-dir", stateOf(x.t)}, more...))
	if err := cmd.ExecuteContext(x.t.Context()); err != nil {
		x.t.Errorf("explain %s: %v", arg, err)
	}
	return out.String()
}

// A container that is not watched is not unknown: a person wants to know why no rule is about it.
func TestExplainWhatIsNotWatched(t *testing.T) {
	e := dockertest.Shared(t)
	e.Run(t, dockertest.ContainerOptions{Name: "stray", Labels: map[string]string{"team": "red"}, NotStarted: true})
	config := configFile(t, `
[[rule]]
name = "blue"
match = { labels = ["team=blue"] }
owner = { none = true }
max-age = "1h"
[[rule]]
name = "agents"
match = { name = "agent-*" }
owner = { none = true }
max-age = "1h"
[[rule]]
name = "clients"
match = { labels = ["team"] }
owner = { client = true }
`)
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, `no sandbox is called "stray"; watcher list shows those that are watched
container ID exists, and has no label of watcher's; there is no rule
`},
		{[]string{"--config", config}, `no sandbox is called "stray"; watcher list shows those that are watched
container ID exists, and has no label of watcher's; rule blue: it has no label team=blue; rule agents: its name is stray, and not agent-*; rule clients: no client is known that started it in the foreground
`},
	} {
		got := on(t, e, append([]string{"explain", "stray"}, test.args...)...)
		said := regexp.MustCompile(`\b[0-9a-f]{12}\b`).ReplaceAllString(got.stderr, "ID")
		if got.code != exitFailed || strings.TrimPrefix(said, "watcher: ") != test.want {
			t.Errorf("explain %v: exit code %d\n%s\nwant\n%s", test.args, got.code, said, test.want)
		}
	}
	d := startDaemon(t, e, "--config", config)
	hint := fmt.Sprintf("a daemon runs, process %d: if it was started with --config or --preset, give the same here\n", d.cmd.Process.Pid)
	for _, args := range [][]string{{"explain", "nobody"}, {"kill", "nobody", "--force"}} {
		if got := on(t, e, args...); got.code != exitFailed || !strings.HasSuffix(got.stderr, hint) {
			t.Errorf("%v beside a daemon: exit code %d\n%s\nwant at its end\n%s", args, got.code, got.stderr, hint)
		}
	}
	d.stop()
	if got := on(t, e, "explain", "nobody"); got.stderr != "watcher: no sandbox is called \"nobody\"; watcher list shows those that are watched\n" {
		t.Errorf("explain nobody: %s", got.stderr)
	}
}
