package docker

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"watcher/watch"
)

// match makes a match of KEY=VALUE, image:GLOB and name:GLOB.
func match(t *testing.T, what ...string) (m watch.Match) {
	t.Helper()
	for _, text := range what {
		switch kind, glob, _ := strings.Cut(text, ":"); kind {
		case "image":
			m.Image = watch.NewPattern(glob)
		case "name":
			m.Name = watch.NewPattern(glob)
		default:
			p, err := watch.NewLabelPattern(text)
			if err != nil {
				t.Fatal(err)
			}
			m.Labels = append(m.Labels, p)
		}
	}
	return m
}

func rule(t *testing.T, name string, owner watch.Evidence, what ...string) watch.Rule {
	t.Helper()
	return watch.Rule{Name: name, Kind: watch.Container, Match: match(t, what...), Owner: owner}
}

// TestMayMatch: no event of a container that a rule is about is passed over.
func TestMayMatch(t *testing.T) {
	event := func(attributes ...string) map[string]string {
		all := map[string]string{"image": "agents/python:3", "name": "agent-7"}
		for i := 0; i < len(attributes); i += 2 {
			all[attributes[i]] = attributes[i+1]
		}
		return all
	}
	nobody := watch.Evidence{None: true}
	for _, tt := range []struct {
		name       string
		rules      []watch.Rule
		attributes map[string]string
		want       bool
	}{
		{"no rules", nil, event(), false},
		{"our labels", nil, event("watcher.ttl", "1h"), true},
		{"by label", []watch.Rule{rule(t, "r", nobody, "agent.run=*")}, event("agent.run", "1"), true},
		{"by another label", []watch.Rule{rule(t, "r", nobody, "agent.run=*")}, event("agent.walk", "1"), false},
		{"by image", []watch.Rule{rule(t, "r", nobody, "image:agents/*")}, event(), true},
		{"by another image", []watch.Rule{rule(t, "r", nobody, "image:servers/*")}, event(), false},
		{"by name", []watch.Rule{rule(t, "r", nobody, "name:agent-*")}, event(), true},
		{"by one of two", []watch.Rule{rule(t, "r", nobody, "name:server-*", "image:agents/*")}, event(), false},
		{"by the second rule", []watch.Rule{rule(t, "r", nobody, "name:server-*"), rule(t, "s", nobody, "name:agent-*")}, event(), true},
		{"by its client alone", []watch.Rule{rule(t, "r", watch.Evidence{Client: true}, "name:*")}, event(), false}, // see patrons.go
		{"protected", []watch.Rule{rule(t, "r", nobody, "name:*")}, event("other.manager", "1"), true},
		{"a rule about volumes", []watch.Rule{{Name: "r", Kind: watch.Volume, Match: match(t, "name:*")}}, event(), false},
		// A label called name would not be seen behind the container's name.
		{"by a label that events hide", []watch.Rule{rule(t, "r", nobody, "name=worker")}, event(), true},
		{"by one that Podman's hide", []watch.Rule{rule(t, "r", nobody, "pod*=x")}, event(), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRuleset(&watch.Rules{List: tt.rules, Protect: []watch.Pattern{watch.NewPattern("other.*")}})
			if got := r.mayMatch(events.Message{Actor: events.Actor{Attributes: tt.attributes}}); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestFactsOfALine(t *testing.T) {
	const digest = "sha256:dd20a46b5aeed3b14dfe3c1f646ae8094236544d0c155fee9e10a44447e3e28d"
	for _, tt := range []struct {
		image string
		sure  bool
	}{
		{"agents/python:3", true},
		{"dd20", false}, // or a name, for which an inspect makes sure
		{"dd20a46b5aee", false},
		{digest, false},
		{"sha256:0123", false},
		{"docker.io/library/agents@" + digest, true},
		{"", false},
	} {
		f, sure := factsOf(container.Summary{Image: tt.image, ImageID: digest})
		if sure != tt.sure || f.Image != tt.image {
			t.Errorf("%q: %+v, %t, want %t", tt.image, f, sure, tt.sure)
		}
	}
}

// TestWantsClient: nobody's client is asked for if the answer changes nothing.
func TestWantsClient(t *testing.T) {
	r := newRuleset(&watch.Rules{List: []watch.Rule{
		rule(t, "first", watch.Evidence{None: true}, "name:first-*"),
		rule(t, "client", watch.Evidence{Client: true}, "name:*"),
	}})
	for _, tt := range []struct {
		name   string
		labels map[string]string
		want   bool
	}{
		{"first-1", nil, false},
		{"second-1", nil, true},
		{"second-1", map[string]string{watch.LabelTTL: "1h"}, true},
		{"second-1", map[string]string{watch.LabelOwner: "1"}, false},
	} {
		if got := r.wantsClient(watch.Facts{Kind: watch.Container, Name: tt.name, Labels: tt.labels}); got != tt.want {
			t.Errorf("%s %v: %t, want %t", tt.name, tt.labels, got, tt.want)
		}
	}
}
