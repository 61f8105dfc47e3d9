package docker

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

const (
	id1 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	id2 = "f123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// TestInCgroupOf guards D4: whoever is not in the container's cgroup is never signalled.
func TestInCgroupOf(t *testing.T) {
	for _, tt := range []struct {
		name    string
		content string
		want    bool
	}{
		{"v1", "12:pids:/docker/" + id1 + "\n11:memory:/docker/" + id1 + "\n1:name=systemd:/docker/" + id1 + "\n0::/\n", true},
		{"v1, one controller", "2:cpu:/\n1:pids:/docker/" + id1 + "\n", true},
		{"v2", "0::/docker/" + id1 + "\n", true},
		{"v2 without its end", "0::/docker/" + id1, true},
		{"v2, a cgroup below", "0::/docker/" + id1 + "/init.scope\n", true},
		{"systemd", "0::/system.slice/docker-" + id1 + ".scope\n", true},
		{"systemd, a cgroup below", "0::/system.slice/docker-" + id1 + ".scope/child\n", true},
		{"systemd, rootless", "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id1 + ".scope\n", true},
		{"Podman with systemd", "0::/machine.slice/libpod-" + id1 + ".scope/container\n", true},
		{"Podman with cgroupfs", "0::/libpod_parent/libpod-" + id1 + "\n", true},
		{"another namespace's root", "0::/../../docker/" + id1 + "\n", true},
		{"a parent of our own", "0::/watchertest-1/" + id1 + "\n", true},
		{"a colon in a name", "1:name=a:/x:y/docker/" + id1 + "\n", true},

		{"empty", "", false},
		{"the root", "0::/\n", false},
		{"another container", "0::/docker/" + id2 + "\n", false},
		{"Podman's conmon", "0::/machine.slice/libpod-conmon-" + id1 + ".scope\n", false},
		{"Podman's conmon with cgroupfs", "0::/libpod_parent/libpod-conmon-" + id1 + "\n", false},
		{"a service called like it", "0::/system.slice/backup-of-" + id1 + ".service\n", false},
		{"a scope called like it", "0::/system.slice/backup-of-" + id1 + ".scope\n", false},
		{"longer", "0::/docker/" + id1 + "0\n", false},
		{"longer in front", "0::/docker/0" + id1 + "\n", false},
		{"a scope that is longer", "0::/docker-" + id1 + "0.scope\n", false},
		{"a prefix", "0::/docker/" + id1[:12] + "\n", false},
		{"a controller called like it", "1:" + id1 + ":/\n", false},
		{"too few fields", "0:/docker/" + id1 + "\n", false},
		{"garbage", id1 + "\n\x00:::\n::", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := inCgroupOf(tt.content, id1); got != tt.want {
				t.Errorf("inCgroupOf(%q) = %t, want %t", tt.content, got, tt.want)
			}
		})
	}
}

func FuzzInCgroupOf(f *testing.F) {
	f.Add("0::/docker/"+id1+"\n", id1)
	f.Add("0::/system.slice/docker-"+id1+".scope\n", id1)
	f.Add("0::/machine.slice/libpod-conmon-"+id1+".scope\n", id1)
	f.Add("1:pids:/\n0::/docker/"+id2, id1)
	f.Add(":::\n", "")
	f.Fuzz(func(t *testing.T, content, id string) {
		if !inCgroupOf(content, id) {
			return
		}
		if id == "" || strings.ContainsAny(id, "/:\n") {
			t.Fatalf("a process in %q is taken for one of %q", content, id)
		}
		// The ID stands whole between separators, on a line with three fields.
		for line := range strings.SplitSeq(content, "\n") {
			before, after, ok := strings.Cut(line, id)
			if ok && strings.Count(line, ":") >= 2 && strings.Count(before, ":") <= strings.Count(line, ":") && len(before)+len(after)+len(id) == len(line) {
				return
			}
		}
		t.Fatalf("a process in %q is taken for one of %q", content, id)
	})
}

func TestChanges(t *testing.T) {
	a, b, d := change{watch.Container, "a"}, change{watch.Volume, "a"}, change{watch.Container, "d"}
	c := newChanges()
	if got := c.take(); len(got) != 0 {
		t.Errorf("took %v of nothing", got)
	}
	for _, what := range []change{b, a, b, d, whoUses, a, whoUses} {
		c.add(what) // never blocks
	}
	<-c.ready
	if got := c.take(); !slices.Equal(got, []change{b, a, d, whoUses}) {
		t.Errorf("took %v", got)
	}
	c.add(b) // it has changed since it was taken
	<-c.ready
	if got := c.take(); !slices.Equal(got, []change{b}) {
		t.Errorf("took %v", got)
	}
	select {
	case <-c.ready:
		t.Error("ready with nothing to take")
	default:
	}
}

// TestListedName: the engine lists a linked container under the names that others have for it, too.
func TestListedName(t *testing.T) {
	for _, tt := range []struct {
		names []string
		want  string
	}{
		{nil, ""},
		{[]string{"/db"}, "db"},
		{[]string{"/web/db", "/db"}, "db"},
		{[]string{"/db", "/web/db"}, "db"},
		{[]string{"db"}, "db"}, // Podman
	} {
		e := New("", nil, nil)
		created := time.Unix(1, 0)
		e.containers[id1] = &known{created: created, image: "i"}
		labels := map[string]string{watch.LabelKeep: "true"}
		got := e.listed(t.Context(), nil, container.Summary{ID: id1, Names: tt.names, Image: "i", Labels: labels, State: "exited"}, e.glance())
		want := sighting{exists: true, watched: true, sandbox: watch.Sandbox{
			ID: watch.ID{Kind: watch.Container, Name: id1}, Name: tt.want, Image: "i", State: watch.Stopped, Created: created,
			Terms: watch.Terms{Rule: watch.RuleLabels, Keep: true},
		}}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(sighting{})); diff != "" {
			t.Errorf("%q: %s", tt.names, diff)
		}
	}
}
