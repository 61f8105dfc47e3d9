//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/volume"

	"watcher/platform/docker/dockertest"
	"watcher/platform/process/processtest"
	"watcher/reap"
	"watcher/watch"
)

// eventsAlone has no scan but the first: what is reaped then is reaped because of events.
const eventsAlone = "[scan]\ninterval = \"1h\"\n"

// aFile is what a ledger calls what owners leave in the file system.
const aFile = "what such an owner left in the file system"

// slack is how much younger than a sandbox a process must be to be certain not to own it where only the wall clock tells,
// and longer than the grace in which nothing is judged by inference.
const slack = 2200 * time.Millisecond

// Each preset is used as it is, with owners that do as the programs in the field do.
func TestPresets(t *testing.T) {
	e := dockertest.Shared(t)
	e.Image(t)
	for _, name := range []string{"kojuto-sandbox:latest", "clawbox/agent:latest", "node:20-alpine", "python:3.12-slim", "assistant/mcp-sandbox:1"} {
		if err := e.Client().ImageTag(t.Context(), dockertest.ImageName, name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := e.Client().ImageRemove(context.WithoutCancel(t.Context()), name, image.RemoveOptions{}); err != nil {
				t.Errorf("untag %s: %v", name, err)
			}
		})
	}
	l := &ledger{}
	t.Run("all", func(t *testing.T) {
		for name, play := range map[string]func(*scene){
			"kojuto": playKojuto, "clawbox": playClawbox, "mcp-sandbox": playMCPSandbox, "owner-labels": playOwnerLabels,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				play(newScene(t, e, name, l))
			})
		}
	})
	t.Log("\n" + l.table())
}

// A ledger is what was reaped and what was kept.
type ledger struct {
	mu    sync.Mutex
	lines []*entry
}

type entry struct {
	preset, by, verdict, what string
	reason                    reap.Reason
	states                    []string // one for each thing
	gone                      []time.Duration
}

// add notes one thing. What follows a colon in its description is its state.
func (l *ledger) add(preset, by, verdict string, reason reap.Reason, what string, gone ...time.Duration) {
	what, state, _ := strings.Cut(what, ": ")
	e := &entry{preset: preset, by: by, verdict: verdict, what: what, reason: reason}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.lines, func(o *entry) bool {
		return o.preset == preset && o.by == by && o.verdict == verdict && o.what == what && o.reason == reason
	})
	if i >= 0 {
		e = l.lines[i]
	} else {
		l.lines = append(l.lines, e)
	}
	e.states, e.gone = append(e.states, state), append(e.gone, gone...)
}

func (l *ledger) table() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortStableFunc(l.lines, func(a, b *entry) int { return cmp.Compare(a.preset, b.preset) })
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PRESET\tBY\tVERDICT\tREASON\tNUMBER\tWHAT")
	for _, e := range l.lines {
		states := slices.Compact(slices.Sorted(slices.Values(e.states)))
		what := strings.TrimSuffix(e.what+": "+strings.Join(slices.DeleteFunc(states, func(s string) bool { return s == "" }), ", "), ": ")
		if len(e.gone) > 0 {
			what += fmt.Sprintf(" (gone after %s at most)", slices.Max(e.gone).Round(time.Millisecond))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", e.preset, e.by, e.verdict, e.reason, len(e.states), what)
	}
	_ = w.Flush()
	return b.String()
}

// A scene is a preset on a private host, and what happens there.
type scene struct {
	*testing.T
	e      *dockertest.Engine
	host   *privateHost
	preset string
	ledger *ledger

	d         *daemon
	told      map[string]string // what a container is, for people
	strangers []string          // that nobody may touch
}

func newScene(t *testing.T, e *dockertest.Engine, preset string, l *ledger) *scene {
	t.Helper()
	return &scene{T: t, e: e, host: newPrivateHost(t), preset: preset, ledger: l, told: map[string]string{}}
}

// args are the arguments that every watcher of the scene has.
func (s *scene) args(config string, args ...string) []string {
	return append(args, "--preset", s.preset, "--config", configFile(s, config+barrierRule(s)))
}

// watch starts a daemon, after the one before was killed.
func (s *scene) watch(config string) {
	s.Helper()
	if s.d != nil {
		s.d.kill()
	}
	s.d = launchDaemon(s, s.host.program(s, s.e, s.args(config)...))
	s.d.waitFor("a first full scan", telling(watch.EventScan))
}

// strange makes containers that are none of the preset's business.
func (s *scene) strange(labels ...map[string]string) {
	s.Helper()
	for _, labels := range append(labels, nil) {
		s.strangers = append(s.strangers, s.e.Run(s, dockertest.ContainerOptions{Labels: labels}))
	}
}

// note says what containers are, and waits until the daemon has seen that they have an owner who lives.
func (s *scene) note(what string, states []watch.State, ids ...string) []string {
	s.Helper()
	for i, id := range ids {
		s.told[id] = what
		if len(states) > i {
			s.told[id] += ": " + string(states[i])
		}
		if s.d != nil {
			s.d.knows(id)
		}
	}
	return ids
}

// age waits until what exists now is so old that nobody who is born from then on may own it.
func (s *scene) age() { <-time.After(slack) }

// reaped waits until the daemon has reaped containers for that reason.
func (s *scene) reaped(reason reap.Reason, ids ...string) {
	s.Helper()
	for _, id := range ids {
		r := s.d.event(watch.EventReaped, id)
		if got := reap.Reason(r.text(watch.KeyReason)); got != reason {
			s.Errorf("%s: reaped because %q, want %q", s.told[id], got, reason)
		}
		var gone []time.Duration
		if d, ok := r.micros(watch.KeyGoneUS); ok {
			gone = append(gone, d)
		}
		s.ledger.add(s.preset, "daemon", "reaped", reason, s.told[id], gone...)
	}
	s.e.WaitGoneAll(s, ids...)
}

// lists checks that `watcher list` keeps exactly these of all that the preset is about, each for its reason.
func (s *scene) lists(config string, want map[string]reap.Reason) {
	s.Helper()
	rows := rowsIn(s, output(s, s.host.program(s, s.e, s.args(config, "list", "-o", "json")...)))
	maps.DeleteFunc(rows, func(_ string, r row) bool { return r.Kind != watch.Container })
	for id, reason := range want {
		r, ok := rows[id]
		if !ok || r.Verdict != reap.Keep.String() || r.Reason != reason {
			s.Errorf("%s: list says %+v, want it kept because %s", s.told[id], r, reason)
		}
		if !s.e.Exists(s, id) {
			s.Errorf("%s: does not exist", s.told[id])
		}
		s.ledger.add(s.preset, "list", "kept", r.Reason, s.told[id])
		delete(rows, id)
	}
	for _, r := range rows {
		s.Errorf("list says %+v of what is not watched", r)
	}
}

// once checks that --once reaps exactly these containers and files, each for one of its reasons, after --dry-run has said so
// without doing it. What else the preset is about is kept.
func (s *scene) once(config string, reaps map[string]reap.Reason, keeps ...string) {
	s.Helper()
	for _, dry := range []bool{true, false} {
		args, want := []string{"--once", "-o", "json"}, resultReaped
		if dry {
			args, want = append(args, "--dry-run"), resultWouldReap
		}
		r := output(s, s.host.program(s, s.e, s.args(config, args...)...))
		if r.code != exitDone {
			s.Errorf("%v exits %d: %s", args, r.code, r.stderr)
		}
		rows := rowsIn(s, r)
		for key, reason := range reaps {
			if r := rows[key]; r.Result != want || r.Reason != reason {
				s.Errorf("%s: %v says %+v, want it %s because %s", cmp.Or(s.told[key], key), args, r, want, reason)
			}
			if exists := s.exists(key); exists != dry {
				s.Errorf("%s: after %v it exists: %t", cmp.Or(s.told[key], key), args, exists)
			}
			if !dry {
				s.ledger.add(s.preset, "--once", "reaped", reason, cmp.Or(s.told[key], aFile))
			}
		}
		for _, key := range keeps {
			if r, ok := rows[key]; !ok || r.Result != "" || !s.exists(key) {
				s.Errorf("%s: %v says %+v and it exists: %t, want it kept", cmp.Or(s.told[key], key), args, r, s.exists(key))
			} else if !dry {
				s.ledger.add(s.preset, "--once", "kept", r.Reason, cmp.Or(s.told[key], aFile))
			}
		}
		for key, r := range rows {
			if r.Result != "" && reaps[key] == "" {
				s.Errorf("%v says %+v of what it should not touch", args, r)
			}
		}
	}
}

// exists reports whether there is a container of that ID, or on the private host a file of that path.
func (s *scene) exists(key string) bool {
	s.Helper()
	if !filepath.IsAbs(key) {
		return s.e.Exists(s, key)
	}
	_, err := os.Lstat(filepath.Join(s.host.dir, key))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Fatal(err)
	}
	return err == nil
}

// seen is a path as watcher sees it on the private host.
func (s *scene) seen(file string) string { return strings.TrimPrefix(file, s.host.dir) }

// close checks that nothing else was touched and that nothing failed.
func (s *scene) close() {
	s.Helper()
	for _, id := range s.strangers {
		if !s.e.Exists(s, id) {
			s.Errorf("%.12s, which the preset is not about, does not exist any more", id)
		}
	}
	for range s.strangers {
		s.ledger.add(s.preset, "all", "kept", "", "what the preset is not about")
	}
	noFailures(s.T, s.d)
	if code := s.d.stop(); code != exitDone {
		s.Errorf("exit code %d, want %d", code, exitDone)
	}
}

func noFailures(t *testing.T, d *daemon) {
	t.Helper()
	if failed := d.records(telling(watch.EventReapFailed)); len(failed) > 0 {
		t.Errorf("%d attempts failed, the first: %v", len(failed), failed[0])
	}
}

// kojuto scans packages: a container without a name for each, which is paused as soon as it runs, and a seccomp profile in
// a folder of its own.
func playKojuto(s *scene) {
	alone(s.T, "kojuto")
	kojuto := processtest.Program(s, "kojuto")
	start := func() *standin { return startStandin(s, s.e, kojuto, s.host.asRoot) }
	scan := func(o *standin, states ...watch.State) (ids []string, profile string) {
		var all []making
		for _, state := range states {
			all = append(all, making{Image: "kojuto-sandbox:latest", Labels: map[string]string{"kojuto.scan": "true"}, State: state})
		}
		profile = o.do(order{Scratch: "kojuto-seccomp-*"}).Path
		return o.make(all...), s.seen(profile)
	}
	every := []watch.State{watch.Paused, watch.Running, watch.Created, watch.Stopped}
	s.strange(map[string]string{"kojuto.scan": "false"}, map[string]string{"kojuto.scanner": "true"})
	s.watch(eventsAlone)

	early, first := start(), start()
	firsts, firstProfile := scan(first, every...)
	s.note("of a kojuto that was killed", every, firsts...)
	s.age()
	second := start() // at the same time, and born later than what the first one made
	seconds, secondProfile := scan(second, watch.Paused, watch.Created)
	s.note("of a second kojuto, which lives", []watch.State{watch.Paused, watch.Created}, seconds...)

	first.kill()
	barrier(s, s.e, s.d)
	mayOwn := map[string]reap.Reason{}
	for _, id := range append(firsts, seconds...) {
		mayOwn[id] = reap.OwnerAlive
	}
	s.lists(eventsAlone, mayOwn) // a kojuto that is older than all lives
	early.kill()
	s.reaped(reap.NoPossibleOwner, firsts...)
	for _, id := range firsts {
		delete(mayOwn, id)
	}
	s.lists(eventsAlone, mayOwn)

	// watcher is down, kojuto is killed, and somebody starts it again.
	s.d.kill()
	second.kill()
	s.age()
	third := start()
	thirds, thirdProfile := scan(third, watch.Paused, watch.Created)
	s.d = nil
	s.note("of a kojuto that was started again", []watch.State{watch.Paused, watch.Created}, thirds...)
	reaps := map[string]reap.Reason{secondProfile: reap.NoPossibleOwner}
	if s.exists(firstProfile) { // the daemon knew of it only if it had reason to look at everything
		reaps[firstProfile] = reap.NoPossibleOwner
	}
	for _, id := range seconds {
		s.told[id] = strings.Replace(s.told[id], "which lives", "which was killed while watcher was down", 1)
		reaps[id] = reap.NoPossibleOwner
	}
	s.age() // what is younger than the grace is not judged
	s.once(eventsAlone, reaps, append(thirds, thirdProfile)...)

	// It is killed once more. The next scan of its successor removes what it finds, at the same time as watcher does.
	s.watch("[scan]\ninterval = \"1s\"\n")
	s.note("", nil, thirds...)
	for _, id := range thirds {
		s.told[id] = "of a kojuto whose successor sweeps, too"
	}
	fourth := start()
	third.zombie()
	fourth.do(order{Sweep: "kojuto.scan"})
	s.e.WaitGoneAll(s, thirds...)
	s.reaped(reap.NoPossibleOwner, thirds...)
	await(s, "the profile is gone", func() bool { return !s.exists(thirdProfile) })
	s.ledger.add(s.preset, "daemon", "reaped", reap.NoPossibleOwner, aFile)
	s.close()
}

// A server of clawbox gives each container a name that is also its label, and listens on a socket in a folder that the
// container has at /run/clawbox.
func playClawbox(s *scene) {
	alone(s.T, "clawbox*")
	server := processtest.Program(s, "clawbox-server")
	number := 0
	agent := func(o *standin, home string, making making, listens bool) (id, folder string) {
		number++
		name := fmt.Sprintf("clawbox-6f1c9a52-0000-4000-8000-%012d", number)
		folder = filepath.Join(home, ".clawbox/proxies", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(folder), 0o755), os.Mkdir(folder, 0o770)); err != nil {
			s.Fatal(err)
		}
		if listens {
			o.do(order{Listen: filepath.Join(folder, "proxy.sock")})
		}
		making.Name, making.Image, making.Binds = name, "clawbox/agent:latest", []string{folder + ":/run/clawbox:ro"}
		making.Labels = map[string]string{"clawbox.container_id": name, "clawbox.task": "t-1", "clawbox.policy": "default"}
		making.Env = []string{"CLAWBOX_PROXY_SOCKET=/run/clawbox/proxy.sock"}
		return o.make(making)[0], s.seen(folder)
	}
	s.strange(map[string]string{"clawbox.task": "t-1"}, map[string]string{"clawbox.container": "x"})
	s.watch(eventsAlone)

	// Two servers of two users, and the program under its other name.
	early := startStandin(s, s.e, processtest.Program(s, "clawbox"), s.host.asRoot)
	first := startStandin(s, s.e, server, s.host.asRoot)
	var firsts, folders []string
	every := []watch.State{watch.Running, watch.Paused, watch.Created, watch.Stopped}
	for _, state := range every {
		id, folder := agent(first, s.host.root(), making{State: state}, true)
		firsts, folders = append(firsts, id), append(folders, folder)
	}
	s.note("of a server that was killed", every, firsts...)
	deaf, deafFolder := agent(first, s.host.root(), making{Args: []string{"deaf"}}, true)
	s.note("of a server that was killed: deaf to SIGTERM", nil, deaf)
	tended, tendedFolder := agent(first, s.host.root(), making{}, false)
	listener := listenIn(s, filepath.Join(s.host.dir, tendedFolder))
	s.note("of a server that was killed; somebody else listens on its socket", nil, tended)
	s.age()
	second := startStandin(s, s.e, server, s.host.asAgent)
	other, otherFolder := agent(second, s.host.home(), making{}, true)
	s.note("of a second server, which lives", nil, other)

	first.kill()
	barrier(s, s.e, s.d)
	kept := map[string]reap.Reason{deaf: reap.OwnerAlive, tended: reap.OwnerAlive, other: reap.OwnerAlive}
	for _, id := range firsts {
		kept[id] = reap.OwnerAlive
	}
	s.lists(eventsAlone, kept) // a clawbox that is older than all lives
	killed := time.Now()
	early.kill()
	s.reaped(reap.NoPossibleOwner, firsts...)
	if gone := !s.exists(deafFolder); gone && s.e.Exists(s, deaf) {
		// After a crash now, nobody could tell any more whether somebody listens on the socket that was in it.
		s.Error("a container's folder went before it")
	}
	s.reaped(reap.NoPossibleOwner, deaf)
	if patient := time.Since(killed); patient < 5*time.Second {
		s.Errorf("what ignores SIGTERM was gone after %s, before the 5s of the preset", patient)
	}
	// The end of a listener makes watcher look at everything, so it knows their folders.
	for _, folder := range append(folders, deafFolder) {
		await(s, "the folder is gone", func() bool { return !s.exists(folder) })
		s.ledger.add(s.preset, "daemon", "reaped", reap.NoPossibleOwner, aFile)
	}
	s.lists(eventsAlone, map[string]reap.Reason{tended: reap.OwnerAlive, other: reap.OwnerAlive})

	s.d.kill()
	s.d = nil
	if err := listener.Close(); err != nil {
		s.Fatal(err)
	}
	second.kill()
	s.age()
	third := startStandin(s, s.e, server, s.host.asRoot)
	fresh, freshFolder := agent(third, s.host.root(), making{}, true)
	s.note("of a server that was started again", nil, fresh)
	s.told[tended] = "of a server that was killed; nobody listens on its socket any more"
	s.told[other] = "of a second server, which was killed while watcher was down"
	reaps := map[string]reap.Reason{tended: reap.NoPossibleOwner, other: reap.NoPossibleOwner}
	reaps[tendedFolder], reaps[otherFolder] = reap.NoPossibleOwner, reap.NoPossibleOwner
	s.once(eventsAlone, reaps, fresh, freshFolder)

	s.watch("[scan]\ninterval = \"1s\"\n")
	s.note("of a server that was started again and killed", nil, fresh)
	s.age()
	third.kill()
	s.reaped(reap.NoPossibleOwner, fresh)
	await(s, "its folder is gone", func() bool { return !s.exists(freshFolder) })
	s.ledger.add(s.preset, "daemon", "reaped", reap.NoPossibleOwner, aFile)
	if _, err := os.Stat(filepath.Join(s.host.home(), ".clawbox/proxies")); err != nil {
		s.Errorf("the folder that the folders are in: %v", err)
	}
	s.close()
}

// listenIn has this process listen on the socket in a clawbox folder.
func listenIn(s *scene, dir string) *os.File {
	s.Helper()
	if err := listenAt(filepath.Join(dir, "proxy.sock")); err != nil {
		s.Fatal(err)
	}
	fd := listening[len(listening)-1]
	listening = nil
	return os.NewFile(uintptr(fd), "proxy.sock")
}

// mcp-sandbox is run by node, and nothing says by which. What it leaves is old.
func playMCPSandbox(s *scene) {
	alone(s.T, "node")
	node := processtest.Program(s, "node")
	start := func() *standin { return startStandin(s, s.e, node, s.host.asRoot) }
	code := func(language, image string, state watch.State) making {
		return making{Image: image, State: state, Labels: map[string]string{
			"mcp.sandbox": "true", "mcp.sandbox.language": language, "mcp.sandbox.created": time.Now().UTC().Format(time.RFC3339Nano),
		}}
	}
	every := []watch.State{watch.Running, watch.Paused, watch.Created, watch.Stopped}
	s.strange(map[string]string{"mcp.sandbox": "false"}, map[string]string{"mcp.sandbox.language": "python"})
	s.watch(eventsAlone)

	early, first := start(), start()
	firsts := first.make(
		code("typescript", "node:20-alpine", every[0]), code("python", "python:3.12-slim", every[1]),
		code("typescript", "node:20-alpine", every[2]), code("python", "python:3.12-slim", every[3]))
	s.note("of a node that was killed", every, firsts...)
	byImage := first.make(making{Image: "assistant/mcp-sandbox:1"})
	s.note("of a node that was killed: known by its image", nil, byImage...)
	firsts = append(firsts, byImage...)
	s.age()
	second := start()
	var few []making
	for range 7 { // with the four above, which have the label, more than ten
		few = append(few, code("typescript", "node:20-alpine", watch.Created))
	}
	scratch := s.seen(second.do(order{Scratch: "mcp-sandbox-*"}).Path)
	seconds := second.make(few...)
	s.note("of a second node, which lives", nil, seconds...)
	alarm := s.d.waitFor("an alarm", telling(watch.EventAlarm))
	if alarm.text(watch.KeyRule) != "mcp-sandbox" || alarm[watch.KeySandboxes] != 11.0 || alarm[watch.KeyThreshold] != 10.0 {
		s.Errorf("alarm: %v, want it at 11 of mcp-sandbox", alarm)
	}
	s.ledger.add(s.preset, "daemon", "alarm", "", "11 containers")

	first.kill()
	barrier(s, s.e, s.d)
	kept := map[string]reap.Reason{}
	for _, id := range append(firsts, seconds...) {
		kept[id] = reap.OwnerAlive
	}
	s.lists(eventsAlone, kept) // a node that is older than all lives
	early.kill()
	s.reaped(reap.NoPossibleOwner, firsts...)
	s.d.waitFor("the end of the alarm", func(r record) bool {
		return telling(watch.EventAlarm)(r) && r[watch.KeySandboxes].(float64) <= 10
	})

	s.d.kill()
	s.d = nil
	second.kill()
	s.age()
	third := start()
	thirdScratch := s.seen(third.do(order{Scratch: "mcp-sandbox-*"}).Path)
	old := third.make(code("python", "python:3.12-slim", watch.Running), making{Image: "assistant/mcp-sandbox:1", State: watch.Created})
	s.note("of a node that was started again", nil, old...)
	reaps := map[string]reap.Reason{scratch: reap.NoPossibleOwner}
	for _, id := range seconds {
		s.told[id] = "of a second node, which was killed while watcher was down"
		reaps[id] = reap.NoPossibleOwner
	}
	s.once(eventsAlone, reaps, append(old, thirdScratch)...)

	// In the preset the time is an hour. Here rules of the same names replace its own, with seconds: no test waits an hour.
	const seconds5 = eventsAlone + `
[[rule]]
name = "mcp-sandbox"
match = { labels = ["mcp.sandbox=true"] }
owner = { process = "node" }
max-age = "5s"
[[rule]]
name = "mcp-sandbox-image"
match = { image = "*mcp-sandbox*" }
owner = { process = "node" }
max-age = "5s"
`
	s.watch(seconds5)
	for _, id := range old {
		s.told[id] = "of a node that lives, older than max-age"
	}
	s.reaped(reap.Expired, old...)
	young := s.note("of a node that lives, younger than max-age", nil, third.make(code("python", "python:3.12-slim", watch.Running))...)
	c, _ := s.e.Inspect(s, young[0])
	s.ledger.add(s.preset, "daemon", "kept", reap.OwnerAlive, s.told[young[0]])
	s.told[young[0]] = "of a node that lives, older than max-age"
	s.reaped(reap.Expired, young...)
	created, err := time.Parse(time.RFC3339Nano, c.Created)
	gone, err2 := time.Parse(time.RFC3339Nano, s.d.event(watch.EventReaped, young[0]).text("time"))
	if age := gone.Sub(created); err != nil || err2 != nil || age < 5*time.Second {
		s.Errorf("it was gone at the age of %s, and its greatest is 5s: %v, %v", age, err, err2)
	}
	s.close()
}

// The programs of owner-labels write their PID into a label of their own.
func playOwnerLabels(s *scene) {
	program := func(name string) func() *standin {
		path := processtest.Program(s, name)
		return func() *standin { return startStandin(s, s.e, path, s.host.asRoot) }
	}
	hostname, err := os.Hostname()
	if err != nil {
		s.Fatal(err)
	}
	agentCI := program("agent-ci")
	one := func(labels ...string) making {
		m := making{Labels: map[string]string{}}
		for _, label := range labels {
			key, value, _ := strings.Cut(label, "=")
			m.Labels[key] = value
		}
		return m
	}
	in := func(m making, state watch.State) making {
		m.State = state
		return m
	}
	llxprtLabel := func(hostname string) string {
		return fmt.Sprintf(`com.vybestack.llxprt.sandbox-owner={"version":1,"hostname":%q,"pid":{pid},"startTimeMs":%d,"startTimeSource":"proc"}`,
			hostname, time.Now().UnixMilli())
	}
	const llxprtManaged = "com.vybestack.llxprt.sandbox-managed=true"
	owners := []struct {
		name    string
		program func() *standin
		makes   []making
		states  []watch.State
	}{
		{"agent-ci", agentCI, []making{one("agent-ci.pid={pid}"), in(one("agent-ci.pid={pid}"), watch.Restarting)}, []watch.State{watch.Running, watch.Restarting}},
		{
			"klangk", program("klangk"),
			[]making{one("klangk.managed=true", "klangk.pid={pid}"), in(one("klangk.managed=true", "klangk.pid={pid}", "klangk.role=network"), watch.Paused)},
			[]watch.State{watch.Running, watch.Paused},
		},
		{"openmake", program("openmake"), []making{in(one("openmake.role=mcp-sandbox", "openmake.pid={pid}"), watch.Created)}, []watch.State{watch.Created}},
		{"llxprt", program("llxprt"), []making{in(one(llxprtManaged, llxprtLabel(hostname)), watch.Stopped)}, []watch.State{watch.Stopped}},
	}
	workspace, err := s.e.Client().VolumeCreate(s.Context(), volume.CreateOptions{Labels: map[string]string{"klangk.managed": "true"}})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = s.e.Client().VolumeRemove(context.WithoutCancel(s.Context()), workspace.Name, true) })
	s.watch(eventsAlone)

	killed := make([]*standin, len(owners))
	doomed := make([][]string, len(owners))
	kept := map[string]reap.Reason{}
	for i, o := range owners {
		killed[i] = o.program()
		doomed[i] = s.note("of "+o.name+", which was killed", o.states, killed[i].make(o.makes...)...)
	}
	second := agentCI()
	seconds := second.make(one("agent-ci.pid={pid}"), one("agent-ci.pid={pid}:{start}:{boot}"))
	for _, id := range s.note("of a second agent-ci, which lives", nil, seconds...) {
		kept[id] = reap.OwnerAlive
	}
	// What cannot be read, and what is of another host.
	ill := []making{
		in(one("agent-ci.pid=none"), watch.Created), in(one("agent-ci.pid=-1"), watch.Created), in(one("agent-ci.pid="), watch.Created),
		in(one("openmake.role=mcp-sandbox", "openmake.pid={pid} "), watch.Created),
		in(one(llxprtManaged, "com.vybestack.llxprt.sandbox-owner={"), watch.Created),
		in(one(llxprtManaged, llxprtLabel("elsewhere")), watch.Created),
	}
	for i, id := range killed[0].make(ill...) {
		s.told[id] = "with a label that cannot be read, or is of another host: " + strconv.Itoa(i+1)
		kept[id] = reap.BadLabel
	}
	protected := killed[0].make(in(one("agent-ci.pid={pid}", "com.docker.compose.project=web"), watch.Created))[0]
	s.told[protected], kept[protected] = "of an agent-ci that was killed, with a label of compose", reap.Protected
	s.strangers = append(s.strangers, killed[0].make(
		in(one("agent-ci.run=1"), watch.Created), in(one("openmake.role=store", "openmake.pid={pid}"), watch.Created),
		in(one("klangk.managed=true"), watch.Created), in(one("klangk.pid={pid}"), watch.Created),
		in(one("owner_pid={pid}"), watch.Created), in(one("org.testcontainers=true"), watch.Created),
		in(one("opensandbox.io/expires-at=2020-01-02T03:04:05Z"), watch.Created))...)
	s.strange()
	for _, o := range killed {
		o.kill()
	}
	for _, ids := range doomed {
		s.reaped(reap.OwnerExited, ids...)
	}
	barrier(s, s.e, s.d)
	s.lists(eventsAlone, kept)

	// watcher is down, agent-ci is killed, and somebody else has its PID when it is started again.
	s.d.kill()
	s.d = nil
	dead := second.pid
	second.kill()
	stranger := processtest.ReusePID(s, dead)
	third := agentCI()
	thirds := s.note("of an agent-ci that was started again", nil, third.make(one("agent-ci.pid={pid}"))...)
	reaps := map[string]reap.Reason{seconds[0]: reap.OwnerReplaced, seconds[1]: reap.OwnerReplaced}
	for id := range reaps {
		s.told[id] = "of a second agent-ci, whose PID is another's"
		delete(kept, id)
	}
	s.once(eventsAlone, reaps, slices.AppendSeq(thirds, maps.Keys(kept))...)
	s.watch(eventsAlone)
	own := third.make(one("agent-ci.pid=" + strconv.Itoa(stranger.PID())))
	s.note("of the one who has the PID now", nil, own...)
	third.zombie()
	s.told[thirds[0]] = "of an agent-ci for which nobody waits"
	s.reaped(reap.OwnerExited, thirds...)
	kept[own[0]] = reap.OwnerAlive
	s.lists(eventsAlone, kept)
	if _, err := s.e.Client().VolumeInspect(s.Context(), workspace.Name); err != nil {
		s.Errorf("the volume of klangk, which has no PID: %v", err)
	}
	s.close()
}
