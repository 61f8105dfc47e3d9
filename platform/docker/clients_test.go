package docker

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

// asked is what a command line asks for.
func asked(t *testing.T, line string) request {
	t.Helper()
	argv := strings.Fields(line)
	found, all := requests("", argv)
	if len(found) != 1 || !all {
		t.Fatalf("%q has %d readings", line, len(found))
	}
	return found[0]
}

// made is a container as docker run --rm -i img makes it, and changed.
func made(change func(c *container.InspectResponse)) container.InspectResponse {
	c := container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: id1, Name: "/calm_heron", Image: "sha256:" + id2,
			HostConfig: &container.HostConfig{AutoRemove: true, Runtime: "runc", RestartPolicy: container.RestartPolicy{Name: "no"}},
		},
		Config: &container.Config{
			Image: "img", AttachStdin: true, AttachStdout: true, AttachStderr: true, OpenStdin: true, StdinOnce: true,
			Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "A=1", "A=2"}, Labels: map[string]string{"a": "b", "of.the": "image"},
		},
	}
	if change != nil {
		change(&c)
	}
	return c
}

func TestFits(t *testing.T) {
	podmans := func(image string) func(*container.InspectResponse) {
		return func(c *container.InspectResponse) { c.HostConfig.Runtime, c.Config.Image = "oci", image }
	}
	composed := func(c *container.InspectResponse) {
		c.Config.Labels = map[string]string{composeOneOff: "True", composeService: "web", composeProject: "proj", "a": "b"}
	}
	for _, tt := range []struct {
		line   string
		change func(*container.InspectResponse)
		want   bool
	}{
		{"docker run --rm -i img", nil, true},
		{"docker run --rm -i img serve", nil, true},
		{"docker run --rm -i img serve --fast", nil, false},
		{"docker run --rm -i img help", nil, false},
		{"docker run --rm -i img:latest", nil, false},
		{"docker run --rm -i other", nil, false},
		{"docker run -i img", nil, false},
		{"docker run --rm img", nil, false},
		{"docker run --rm -it img", nil, false},
		{"docker run --rm -it img", func(c *container.InspectResponse) { c.Config.Tty = true }, true},
		{"docker run --rm -i --name calm_heron img", nil, true},
		{"docker run --rm -i --name other img", nil, false},
		{"docker run --rm -i -l a=b img", nil, true},
		{"docker run --rm -i -l a=c -l a=b img", nil, true},
		{"docker run --rm -i -l a=c img", nil, false},
		{"docker run --rm -i --label none img", nil, false},
		{"docker run --rm -i --label a img", nil, false},
		{"docker run --rm -i -e A=1 -e A=2 -e B img", nil, true},
		{"docker run --rm -i -e A=3 img", nil, false},
		{"docker run --rm -i -e A=3 -e A img", nil, true},
		{"docker run --rm -i --cidfile f img", nil, false},
		{"docker run --rm -i --cidfile f img", func(c *container.InspectResponse) { c.HostConfig.ContainerIDFile = "f" }, true},
		{"docker run --rm -i img", func(c *container.InspectResponse) { c.HostConfig.ContainerIDFile = "f" }, false},
		{"docker run --rm -i --memory 1g --network none --env-file x img", nil, true},
		{"docker run --rm -i img", composed, false},

		{"podman run --rm -i img", nil, false},
		{"podman run --rm -i img", podmans("localhost/img:latest"), true},
		{"podman run --rm -i img", podmans("docker.io/library/img:latest"), true},
		{"podman run --rm -i img", podmans("registry.example/team/img:latest"), true},
		{"podman run --rm -i team/img", podmans("registry.example/team/img:latest"), true},
		{"podman run --rm -i team/img", podmans("registry.example/other/img:latest"), false},
		{"podman run --rm -i img:2", podmans("localhost/img:latest"), false},
		{"podman run --rm -i img", podmans("localhost/other-img:latest"), false},
		{"podman run --rm -i docker.io/img", podmans("docker.io/library/img:latest"), true},
		{"podman run --rm -i registry.example/img", podmans("docker.io/library/img:latest"), false},
		{"podman run --rm -i registry.example/img@sha256:" + id1, podmans("registry.example/img@sha256:" + id1), true},
		{"podman run --rm -i " + id2[:6], podmans("localhost/img:latest"), true},
		{"podman run --rm -i sha256:" + id2, podmans("localhost/img:latest"), true},
		{"podman run --rm -i " + id1[:6], podmans("localhost/img:latest"), false},
		{"podman run --rm -i docker://img", podmans("docker.io/library/img:latest"), true},
		{"podman run --rm -i oci-archive:/a", podmans("localhost/whatever:latest"), true},
		{"podman run --rm -i --rootfs /r", podmans(""), true},
		{"podman run --rm -i --rootfs /r", podmans("localhost/r:latest"), false},
		{"podman run --rm -i --cidfile f img", podmans("localhost/img:latest"), true},
		{"docker run --rm -i img", podmans("localhost/img:latest"), true},

		{"docker-compose run --rm web", composed, true},
		{"docker-compose run --rm web serve", composed, true},
		{"docker-compose run --rm web other", composed, false},
		{"docker-compose run web", composed, false},
		{"docker-compose run --rm db", composed, false},
		{"docker-compose -p proj run --rm web", composed, true},
		{"docker-compose -p other run --rm web", composed, false},
		{"docker-compose run --rm -l a=b -T web", composed, true},
		{"docker-compose run --rm -l a=c web", composed, false},
		{"docker-compose run --rm -T web", func(c *container.InspectResponse) { composed(c); c.Config.Tty = true }, false},
		{"docker-compose run --rm web", func(c *container.InspectResponse) { composed(c); c.Config.Labels[composeOneOff] = "False" }, false},
		{"docker-compose run --rm web", nil, false},
	} {
		c := made(tt.change)
		if got := asked(t, tt.line).fits(c); got != tt.want {
			t.Errorf("%q fits image %q, labels %v: %t, want %t", tt.line, c.Config.Image, c.Config.Labels, got, tt.want)
		}
	}
}

func TestForeground(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*container.InspectResponse)
		want   string
	}{
		{"attached", nil, ""},
		{"to its output alone", func(c *container.InspectResponse) { c.Config.AttachStdin, c.Config.AttachStderr = false, false }, ""},
		{"to its input alone", func(c *container.InspectResponse) { c.Config.AttachStdout, c.Config.AttachStderr = false, false }, whyDetached},
		{"detached", func(c *container.InspectResponse) { c.Config = &container.Config{} }, whyDetached},
		{"Podman's", func(c *container.InspectResponse) { c.Config, c.HostConfig.Runtime = &container.Config{}, "oci" }, ""},
		{"restarted", func(c *container.InspectResponse) { c.HostConfig.RestartPolicy.Name = "unless-stopped" }, whyRestarts},
		{"no word on restarts", func(c *container.InspectResponse) { c.HostConfig.RestartPolicy.Name = "" }, ""},
	} {
		if got := foreground(made(tt.change)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A ledger is a book with callers that have names.
type ledger struct {
	*book
	callers map[string]*caller
}

func newLedger() ledger { return ledger{newBook(), map[string]*caller{}} }

func (l ledger) caller(name string) *caller {
	if l.callers[name] == nil {
		pid := len(l.callers) + 1
		l.callers[name] = &caller{process: watch.Process{PID: pid, Start: uint64(pid)}}
	}
	return l.callers[name]
}

func (l ledger) show(id, callers string) {
	var may []*caller
	for name := range strings.FieldsSeq(callers) {
		may = append(may, l.caller(name))
	}
	l.enter(id, false, may)
}

// says is what is known of each container: names, or why there are none.
func (l ledger) says() map[string]string {
	l.draw()
	says := map[string]string{}
	for id, s := range l.containers {
		if s.gone {
			continue
		}
		a := s.answer()
		var names []string
		for _, c := range a.clients {
			for name, k := range l.callers {
				if k.process == c.Process {
					names = append(names, name)
				}
			}
		}
		slices.Sort(names)
		if says[id] = strings.Join(names, " "); a.why != "" {
			says[id] = a.why
		}
	}
	return says
}

// TestBook tells stories, a step a line: a container and who may have started it, "x gone", "x left", "k dead", or
// "k is x" for an ID file.
func TestBook(t *testing.T) {
	for _, tt := range []struct {
		name  string
		story []string
		want  map[string]string
	}{
		{"one", []string{"a: k"}, map[string]string{"a": "k"}},
		{"nobody", []string{"a:"}, map[string]string{"a": whyNobody}},
		{"two at once", []string{"a: k l", "b: k l"}, map[string]string{"a": "k l", "b": "k l"}},
		{"two at once, and one has no container yet", []string{"a: k l m", "b: k l m"}, map[string]string{"a": "k l m", "b": "k l m"}},
		{"one after the other", []string{"a: k", "b: k l"}, map[string]string{"a": "k", "b": "l"}},
		{"found in the other order", []string{"b: k l", "a: k"}, map[string]string{"a": "k", "b": "l"}},
		{"a chain", []string{"c: k l m", "b: k l", "a: k"}, map[string]string{"a": "k", "b": "l", "c": "m"}},
		{"two pairs", []string{"a: k l", "b: k l", "c: k l m n", "d: m n"}, map[string]string{"a": "k l", "b": "k l", "c": "m n", "d": "m n"}},

		{"another of the same kind", []string{"a: k", "b: k"}, map[string]string{"a": whyTooMany, "b": whyTooMany}},
		{"three for two", []string{"a: k l", "b: k", "c: l"}, map[string]string{"a": whyTooMany, "b": whyTooMany, "c": whyTooMany}},
		{"a doubt takes back what followed", []string{"a: k", "b: k l", "c: k"}, map[string]string{"a": whyTooMany, "b": "k l", "c": whyTooMany}},
		{"a doubt is of those alone whom it concerns", []string{"a: k", "b: k", "c: l"}, map[string]string{"a": whyTooMany, "b": whyTooMany, "c": "l"}},
		{"a doubt stays", []string{"a: k", "b: k", "b gone"}, map[string]string{"a": whyTooMany}},
		{"who is in doubt is nobody's only client", []string{"a: k", "b: k", "c: k"}, map[string]string{"a": whyTooMany, "b": whyTooMany, "c": whyVague}},
		{"who is in doubt still keeps", []string{"a: k", "b: k", "c: k l"}, map[string]string{"a": whyTooMany, "b": whyTooMany, "c": "k l"}},

		{"a client is not used twice", []string{"a: k", "a gone", "b: k"}, map[string]string{"b": whyTooMany}},
		{"a client of one that is gone is nobody else's", []string{"a: k", "a gone", "b: k l"}, map[string]string{"b": "l"}},
		{"one of two is gone", []string{"a: k l", "b: k l", "a gone"}, map[string]string{"b": "k l"}},
		{"one of two is gone, and there is a third", []string{"a: k l", "b: k l", "a gone", "c: k l"}, map[string]string{"b": whyTooMany, "c": whyTooMany}},
		{"gone, and so is its client", []string{"a: k", "b: k l", "a gone", "k dead"}, map[string]string{"b": "k l"}},
		{"what was excluded comes back, and nothing rests on it", []string{"a: k", "b: k l", "a gone", "k dead", "c: l"}, map[string]string{"b": whyTooMany, "c": whyTooMany}},
		{"one whose client is another's is gone", []string{"a: k", "b: k l", "b gone", "l dead", "c: k"}, map[string]string{"a": whyTooMany, "c": whyTooMany}},
		{"gone in doubt", []string{"a: k", "b: k", "a gone", "b gone", "c: k"}, map[string]string{"c": whyVague}},
		{"gone, and then in doubt", []string{"a: k", "a gone", "b: k", "c: k l"}, map[string]string{"b": whyTooMany, "c": "k l"}},
		{"gone twice, and left", []string{"a: k", "a gone", "a gone", "a left", "b: k l"}, map[string]string{"b": "l"}},
		{"gone and never shown", []string{"a gone", "a left"}, map[string]string{}},

		{"an ID file", []string{"a: k l", "b: k l", "k is a"}, map[string]string{"a": "k", "b": "l"}},
		{"an ID file known before", []string{"k is a", "b: k l", "a: k l"}, map[string]string{"a": "k", "b": "l"}},
		{"an ID file of a stranger's", []string{"a: k l", "k is x"}, map[string]string{"a": "l"}},
		{"an ID file that excludes all", []string{"a: k", "k is x"}, map[string]string{"a": whyOtherFile}},
		{"two ID files name one", []string{"k is a", "l is a", "a: k l m"}, map[string]string{"a": "k l"}},
		{"two ID files name one, one after the other", []string{"a: k l m", "k is a", "l is a"}, map[string]string{"a": "k"}},
		{"an ID file makes sure who is in doubt", []string{"a: k", "b: k", "k is c", "c: k l"}, map[string]string{"a": whyTooMany, "b": whyTooMany, "c": "k"}},
		{"an ID file starts a doubt", []string{"a: k l", "b: k l", "k is x"}, map[string]string{"a": whyTooMany, "b": whyTooMany}},

		{"detached", []string{"a: k", "a left"}, map[string]string{"a": whyLeft}},
		{"detached, and its client is nobody else's", []string{"a: k", "a left", "b: k"}, map[string]string{"a": whyLeft, "b": whyVague}},
		{"in doubt and then detached", []string{"a: k", "b: k", "a left"}, map[string]string{"a": whyTooMany, "b": whyTooMany}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLedger()
			for _, step := range tt.story {
				id, callers, shown := strings.Cut(step, ":")
				subject, object, named := strings.Cut(step, " is ")
				switch id := strings.Fields(id)[0]; {
				case shown:
					l.show(id, callers)
				case named:
					l.name(l.caller(subject), object)
				case strings.HasSuffix(step, "gone"):
					l.forget(id)
				case strings.HasSuffix(step, "dead"):
					l.sweep(func(k *caller) bool { return k != l.caller(id) })
				case strings.HasSuffix(step, "left"):
					l.leave(id)
				}
			}
			if diff := cmp.Diff(tt.want, l.says()); diff != "" {
				t.Errorf("%q: want -, got +\n%s", tt.story, diff)
			}
		})
	}
}

// TestVague: what cannot be told of a caller's own command line.
func TestVague(t *testing.T) {
	l := newLedger()
	l.caller("k").vague = true
	l.show("a", "k")
	l.show("b", "k l")
	want := map[string]string{"a": whyVague, "b": "k l"}
	if diff := cmp.Diff(want, l.says()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

// TestSpeakers: of several that could speak to a client, one alone keeps.
func TestSpeakers(t *testing.T) {
	process := func(pid int) watch.Process { return watch.Process{PID: pid, Start: uint64(pid)} }
	k := &caller{process: process(3), speakers: []watch.Process{process(2), process(1)}}
	for stdin, want := range map[bool][]watch.Client{
		false: {{Process: process(3)}},
		true:  {{Process: process(3), Speakers: []watch.Process{process(2)}}, {Process: process(3), Speakers: []watch.Process{process(1)}}},
	} {
		b := newBook()
		s := b.enter(id1, stdin, []*caller{k})
		b.draw()
		if diff := cmp.Diff(want, s.answer().clients); diff != "" {
			t.Errorf("standard input open: %t; want -, got +\n%s", stdin, diff)
		}
		k.of = nil
	}
}

// ways are all ways to give each container a caller of its own, by trying.
func ways(may map[string][]string, ids []string, taken map[string]bool, found func(map[string]string), way map[string]string) {
	if len(ids) == 0 {
		found(way)
		return
	}
	for _, k := range may[ids[0]] {
		if !taken[k] {
			taken[k], way[ids[0]] = true, k
			ways(may, ids[1:], taken, found, way)
			delete(way, ids[0])
			delete(taken, k)
		}
	}
}

// naive is what a book should say: of the containers that can be left out of the largest set which can have a caller
// each, nothing; of the others, whom they have in any way.
func naive(may map[string][]string) map[string]string {
	all := slices.Sorted(maps.Keys(may))
	var largest [][]string // of the sets that can have a caller each
	for bits := range 1 << len(all) {
		var set []string
		for i, id := range all {
			if bits&(1<<i) != 0 {
				set = append(set, id)
			}
		}
		possible := false
		ways(may, set, map[string]bool{}, func(map[string]string) { possible = true }, map[string]string{})
		switch {
		case !possible || len(largest) > 0 && len(set) < len(largest[0]):
		case len(largest) > 0 && len(set) == len(largest[0]):
			largest = append(largest, set)
		default:
			largest = [][]string{set}
		}
	}
	says := map[string]string{}
	var sound []string
	for _, id := range all {
		if slices.ContainsFunc(largest, func(set []string) bool { return !slices.Contains(set, id) }) {
			says[id] = "doubt"
		} else {
			sound = append(sound, id)
		}
	}
	has := map[string]map[string]bool{}
	ways(may, sound, map[string]bool{}, func(way map[string]string) {
		for id, k := range way {
			if has[id] == nil {
				has[id] = map[string]bool{}
			}
			has[id][k] = true
		}
	}, map[string]string{})
	for _, id := range sound {
		says[id] = strings.Join(slices.Sorted(maps.Keys(has[id])), " ")
	}
	return says
}

// TestBookAgainstNaive: whatever the order in which containers are shown.
func TestBookAgainstNaive(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	doubts := 0
	for round := range 5000 {
		may := map[string][]string{}
		callers := 1 + random.IntN(5)
		for i := range 1 + random.IntN(5) {
			id := fmt.Sprintf("c%d", i)
			may[id] = nil
			for k := range callers {
				if random.IntN(2) == 0 {
					may[id] = append(may[id], fmt.Sprintf("k%d", k))
				}
			}
		}
		want := naive(may)
		l := newLedger()
		ids := slices.Sorted(maps.Keys(may))
		random.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		for _, id := range ids {
			l.show(id, strings.Join(may[id], " "))
		}
		got := l.says()
		for id, says := range got {
			if l.containers[id].doubt != "" {
				got[id] = "doubt"
				doubts++
			} else if says == "" {
				t.Fatalf("round %d: nothing is said of %s", round, id)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("round %d: %v shown as %v: want -, got +\n%s", round, may, ids, diff)
		}
	}
	if doubts == 0 {
		t.Error("nothing was ever in doubt")
	}
}

// TestBookKeepsTheTrueClient runs random worlds in which each container has a client that lives when it is first shown:
// whatever becomes of others, it stays among those that may have started it, or nobody is named.
func TestBookKeepsTheTrueClient(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	named := 0
	for round := range 1000 {
		l := newLedger()
		var waiting []string         // clients without a container
		living := map[string]bool{}  // clients
		truth := map[string]string{} // the client of each container
		var did []string
		for step := range 40 {
			switch what := random.IntN(10); {
			case what < 4:
				k := fmt.Sprintf("k%d", step)
				waiting, living[k] = append(waiting, k), true
				did = append(did, k)
			case what < 7 && len(waiting) > 0:
				i := random.IntN(len(waiting))
				id := fmt.Sprintf("c%d", step)
				truth[id] = waiting[i]
				waiting = slices.Delete(waiting, i, i+1)
				may := []string{truth[id]}
				for _, k := range slices.Sorted(maps.Keys(living)) {
					if k != truth[id] && random.IntN(3) > 0 {
						may = append(may, k)
					}
				}
				did = append(did, id+" of "+strings.Join(may, " "))
				l.show(id, strings.Join(may, " "))
			case what == 7 && len(truth) > 0: // a container ends, and mostly its client with it
				id := pick(random, truth)
				did = append(did, id+" gone")
				if random.IntN(4) > 0 {
					delete(living, truth[id])
				}
				l.forget(id)
				delete(truth, id)
			case what == 8 && len(truth) > 0: // a client is killed
				delete(living, truth[pick(random, truth)])
			case what == 9 && len(truth) > 0: // an ID file is written
				id := pick(random, truth)
				did = append(did, truth[id]+" is "+id)
				l.name(l.caller(truth[id]), id)
			}
			if random.IntN(3) == 0 {
				l.sweep(func(k *caller) bool { return living[nameOfCaller(l, k)] })
			}
			says := l.says()
			for id, k := range truth {
				if l.containers[id].doubt != "" {
					continue
				}
				named++
				if !slices.Contains(strings.Fields(says[id]), k) {
					t.Fatalf("round %d: %s has client %s, and is said to have %q after %q", round, id, k, says[id], did)
				}
			}
		}
	}
	if named < 5000 {
		t.Errorf("clients were named %d times only", named)
	}
}

func nameOfCaller(l ledger, k *caller) string {
	for name, other := range l.callers {
		if other == k {
			return name
		}
	}
	return ""
}

// TestBookForgets: beside a container that stays, thousands come and go, and leave nothing.
func TestBookForgets(t *testing.T) {
	for _, story := range [][]string{{"a: k"}, {"a: k l", "b: k l"}, {"a: k", "b: k"}, {"a: k l", "b: k l", "b gone"}} {
		l := newLedger()
		for _, step := range story {
			if id, callers, shown := strings.Cut(step, ":"); shown {
				l.show(id, callers)
			} else {
				l.forget(strings.Fields(step)[0])
			}
		}
		before := len(l.containers)
		for i := range 1000 {
			id, k := fmt.Sprintf("c%d", i), fmt.Sprintf("k%d", i)
			l.show(id, "k "+k)
			if why := l.containers[id].doubt; why != "" {
				t.Fatalf("%q: %s is in doubt: %s", story, id, why)
			}
			l.forget(id)
			dead := l.caller(k)
			l.sweep(func(k *caller) bool { return k != dead })
		}
		if after := len(l.containers); after != before {
			t.Errorf("%q: %d containers are kept, were %d", story, after, before)
		}
	}
}

// TestOlder: by both clocks.
func TestOlder(t *testing.T) {
	created := time.Unix(1000, 0)
	for _, tt := range []struct {
		born  time.Time
		start uint64
		first uint64
		want  bool
	}{
		{created.Add(-time.Hour), 5, 0, true},
		{created.Add(-time.Hour), 5, 5, true},
		{created.Add(-time.Hour), 5, 4, false},
		{created.Add(clockSlack), 5, 6, true},
		{created.Add(clockSlack + 1), 5, 6, false},
		{created.Add(clockSlack + 1), 5, 0, false},
	} {
		k := &caller{process: watch.Process{PID: 1, Start: tt.start}, born: tt.born}
		if got := k.older(created, tt.first); got != tt.want {
			t.Errorf("born %v, started %d, before %d: %t, want %t", tt.born, tt.start, tt.first, got, tt.want)
		}
	}
}

func pick(random *rand.Rand, from map[string]string) string {
	return slices.Sorted(maps.Keys(from))[random.IntN(len(from))]
}
