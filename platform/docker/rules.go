package docker

import (
	"errors"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"

	"watcher/watch"
)

// A ruleset is the rules of a host, with what follows from them here.
type ruleset struct {
	*watch.Rules
	images  bool // some rule asks for an image
	clients bool // some rule asks for clients
	hidden  bool // some rule asks for a label that an event may not show
}

// hiding are the attributes of an event that stand in the place of labels with the same key. Docker's are the first two.
var hiding = []string{"name", "image", "containerExitCode", "podId"}

func newRuleset(rules *watch.Rules) *ruleset {
	r := &ruleset{Rules: rules, clients: rules.Clients()}
	for _, rule := range rules.List {
		r.images = r.images || rule.Match.Image.Given()
		for _, label := range rule.Match.Labels {
			r.hidden = r.hidden || slices.ContainsFunc(hiding, label.Key.Matches)
		}
	}
	return r
}

// SetRules sets the rules by which sandboxes are watched. What follows from them for those that are there already, the
// next list tells. It is safe for concurrent use.
func (e *Engine) SetRules(rules *watch.Rules) { e.rules.Store(newRuleset(rules)) }

// mayMatch reports whether the container that an event is about may be one that is watched, apart from its clients. An
// event has a container's labels among its attributes, and its name and image.
func (r *ruleset) mayMatch(msg events.Message) bool {
	attributes := msg.Actor.Attributes
	f := watch.Facts{Kind: watch.Container, Name: attributes["name"], Image: attributes["image"], Labels: attributes}
	_, watched := r.Terms(f)
	return watched || r.hidden
}

// wantsClient reports whether it matters to the terms of a container if a client that started it is known.
func (r *ruleset) wantsClient(f watch.Facts) bool {
	if t, ok := r.Terms(f); ok && t.Rule == watch.RuleLabels && len(t.Owners) > 0 {
		return false // a label that names the owner stands above all rules
	}
	return r.WantsClient(f)
}

// facts are what rules may look at. The name is the one that the container has now: what it was called at its creation
// nobody can say after a rename, so a rename may bring it under another rule, or under none.
func facts(c container.InspectResponse) watch.Facts {
	return watch.Facts{Kind: watch.Container, Name: strings.TrimPrefix(c.Name, "/"), Image: c.Config.Image, Labels: c.Config.Labels}
}

// factsOf are the facts as a list has them. The second result is false if the image is not the one that was given at the
// container's creation, or may not be: once its name means another image, Docker lists an ID instead.
func factsOf(line container.Summary) (watch.Facts, bool) {
	f := watch.Facts{Kind: watch.Container, Name: nameOf(line), Image: line.Image, Labels: line.Labels}
	digest := strings.TrimPrefix(line.ImageID, "sha256:")
	return f, line.Image != "" && !strings.HasPrefix(line.Image, "sha256:") && !strings.HasPrefix(digest, line.Image)
}

func nameOf(line container.Summary) string {
	for _, name := range line.Names {
		// Others that are linked to it have names for it as well: /other/alias.
		if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") {
			return name
		}
	}
	return ""
}

// references are the containers that terms claim as owners.
func references(t watch.Terms) (refs []string) {
	for _, claim := range t.Owners {
		if claim.Kind == watch.ContainerClaim {
			refs = append(refs, claim.Container)
		}
	}
	return refs
}

// errUnwatched says that a container is watched no more.
var errUnwatched = errors.New("no rule is about it any more")
