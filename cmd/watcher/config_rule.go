package main

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"watcher/platform/statedir"
	"watcher/watch"
)

// The kinds of sandboxes that a rule may be about, and those that a later version serves.
var (
	kinds      = []watch.Kind{watch.Container}
	laterKinds = []watch.Kind{"firecracker", "gomicrovm"}
)

var states = []watch.State{
	watch.Created, watch.Running, watch.Paused, watch.Restarting, watch.Removing, watch.Stopped, watch.Dead,
}

// ruleName is what log fields, tables and shells take as one plain word.
var ruleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (d *document) rules(v *value) (rules []watch.Rule) {
	if !v.isArray() || slices.ContainsFunc(v.items, func(item *value) bool { return !item.isTable() }) {
		d.fault(v.place, "want [[rule]]")
		return nil
	}
	lines := map[string]int{}
	for _, item := range v.items {
		rule := d.rule(item)
		if rule.Name != "" {
			if line, ok := lines[rule.Name]; ok {
				d.fault(item.get("name").place, "a rule in line %d has this name", line)
			} else {
				lines[rule.Name], _ = d.position(item.offset)
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

func (d *document) rule(v *value) watch.Rule {
	rule := watch.Rule{Kind: watch.Container}
	d.table(v, fields{
		"name":          func(v *value) { d.ruleName(v, &rule.Name) },
		"kind":          func(v *value) { d.kind(v, &rule.Kind) },
		"match":         func(v *value) { d.match(v, &rule.Match) },
		"owner":         func(v *value) { d.owner(v, &rule.Owner) },
		"states":        func(v *value) { rule.States = d.states(v) },
		"max-age":       func(v *value) { d.duration(v, 1, &rule.MaxAge) },
		"stop-timeout":  func(v *value) { d.duration(v, 0, &rule.StopTimeout) },
		"alarm":         func(v *value) { d.number(v, 1, &rule.Alarm) },
		"expires-label": func(v *value) { d.labelKey(v, &rule.ExpiresLabel) },
		"serves":        func(v *value) { rule.Despite = d.patterns(v) },
		"files":         func(v *value) { rule.Files = d.files(v) },
	})
	for _, needed := range []struct{ key, what string }{
		{"name", "a rule needs a name"},
		{"match", "a rule needs a match, or it is about nothing"},
		{"owner", "a rule needs an owner, { none = true } if nobody owns what it is about"},
	} {
		if v.get(needed.key) == nil {
			d.fault(v.place, "%s", needed.what)
		}
	}
	if owner := v.get("owner"); owner != nil {
		if rule.Owner.None && v.get("states") == nil && v.get("max-age") == nil && v.get("expires-label") == nil {
			d.fault(owner.place, "if nobody is the owner, states, max-age or expires-label must say when it goes")
		}
		if rule.Owner.Client && rule.Kind != watch.Container {
			d.fault(owner.member("client").place, "only a container has a client")
		}
	}
	if files := v.member("files"); files != nil && rule.Owner.Process == "" {
		d.fault(files.place, "files need an owner that is a process, or nobody could say when they are left behind")
	}
	return rule
}

func (d *document) ruleName(v *value, into *string) {
	name, ok := d.someText(v, "a name")
	switch {
	case !ok:
	case name == watch.RuleLabels:
		d.fault(v.place, "a name that is taken by watcher's own labels")
	case !ruleName.MatchString(name):
		d.fault(v.place, "want a name of letters, digits, dots, dashes and underscores")
	default:
		*into = name
	}
}

func (d *document) kind(v *value, into *watch.Kind) {
	kind := watch.Kind(v.content)
	switch {
	case slices.Contains(kinds, kind):
	case slices.Contains(laterKinds, kind):
		d.fault(v.place, "a kind that this version does not serve yet")
	default:
		d.fault(v.place, "unknown kind, want %s", oneOfWords(kinds))
		return
	}
	*into = kind
}

func (d *document) match(v *value, into *watch.Match) {
	if v.isTable() && len(v.members) == 0 {
		d.fault(v.place, "a rule needs a match, or it is about nothing")
	}
	glob := func(into *watch.Pattern) func(*value) {
		return func(v *value) {
			if text, ok := d.someText(v, "a glob"); ok {
				*into = watch.NewPattern(text)
			}
		}
	}
	d.table(v, fields{
		"image": glob(&into.Image),
		"name":  glob(&into.Name),
		"labels": func(v *value) {
			for _, item := range d.someStrings(v) {
				label, err := watch.NewLabelPattern(item.content)
				if err != nil {
					d.fault(item.place, "want KEY or KEY=VALUE")
					continue
				}
				into.Labels = append(into.Labels, label)
			}
		},
	})
}

func (d *document) owner(v *value, into *watch.Evidence) {
	if v.isTable() && len(v.members) == 0 {
		d.fault(v.place, "want an owner, { none = true } if there is none")
	}
	d.table(v, fields{
		"pid-label":       func(v *value) { d.labelKey(v, &into.PIDLabel) },
		"container-label": func(v *value) { d.labelKey(v, &into.ContainerLabel) },
		"process": func(v *value) {
			const want = "the name or path of a program, and arguments if need be"
			if text, ok := d.someText(v, want); ok {
				if _, err := watch.NewProgram(text); err != nil {
					d.fault(v.place, "want "+want)
				}
				into.Process = text
			}
		},
		"client": func(v *value) { into.Client = d.yes(v) },
		"socket": func(v *value) {
			const want = "the absolute path of a socket, as the container sees it"
			if socket, ok := d.someText(v, want); ok && (!path.IsAbs(socket) || path.Clean(socket) != socket) {
				d.fault(v.place, "want "+want)
			} else {
				into.Socket = socket
			}
		},
		"none": func(v *value) { into.None = d.yes(v) },
	})
	if none := v.member("none"); none != nil && len(v.members) > 1 {
		d.fault(none.place, "somebody is the owner or nobody, not both")
	}
}

// labelKey reads the key of a label, which is to be read and not matched.
func (d *document) labelKey(v *value, into *string) {
	const want = "the key of one label, without a value or a glob"
	key, ok := d.someText(v, want)
	if ok && strings.ContainsAny(key, "=*?") {
		d.fault(v.place, "want "+want)
		return
	}
	*into = key
}

func (d *document) states(v *value) (all []watch.State) {
	for _, item := range d.someStrings(v) {
		state := watch.State(item.content)
		if !slices.Contains(states, state) {
			d.fault(item.place, "unknown state, want %s", oneOfWords(states))
			continue
		}
		all = append(all, state)
	}
	return all
}

// files reads what owners leave behind. What is below every home is told one by one: the homes of root and of users.
func (d *document) files(v *value) (all []string) {
	for _, item := range d.strings(v) {
		globs := []string{item.content}
		if below, ok := strings.CutPrefix(item.content, "~/"); ok {
			globs = []string{"/root/" + below, "/home/*/" + below}
		}
		for _, glob := range globs {
			if err := statedir.CheckFiles(glob); err != nil {
				d.fault(item.place, "%s", strings.TrimPrefix(err.Error(), fmt.Sprintf("files %q: ", glob)))
				break
			}
			all = append(all, glob)
		}
	}
	return all
}
