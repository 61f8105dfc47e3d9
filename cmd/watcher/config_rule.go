package main

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"watcher/platform/statedir"
	"watcher/watch"
)

// kinds are what a rule may be about.
var kinds = []watch.Kind{watch.Container, watch.Firecracker, watch.GoMicroVM, watch.File}

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
	if kind := v.get("kind"); kind != nil {
		d.kind(kind, &rule.Kind) // on it depends which other keys there are
	}
	f := fields{
		"name":  func(v *value) { d.ruleName(v, &rule.Name) },
		"kind":  func(*value) {},
		"owner": func(v *value) { d.owner(v, rule.Kind, &rule.Owner) },
		"alarm": func(v *value) { d.number(v, 1, &rule.Alarm) },
	}
	maps.Copy(f, d.fieldsOf(&rule))
	d.table(v, f)
	for _, needed := range needs(rule.Kind) {
		if v.get(needed.key) == nil {
			d.fault(v.place, "%s", needed.what)
		}
	}
	if rule.Kind == watch.Firecracker && v.get("base-dirs") == nil && v.get("jail-dirs") == nil {
		d.fault(v.place, "a rule of this kind needs base-dirs or jail-dirs, or it is about nothing")
	}
	if owner := v.get("owner"); owner != nil {
		if rule.Owner.None && v.get("states") == nil && v.get("max-age") == nil && v.get("expires-label") == nil {
			d.fault(owner.place, "if nobody is the owner, states, max-age or expires-label must say when it goes")
		}
	}
	if files := v.member("files"); files != nil && len(rule.Files) > 0 && rule.Owner.Process == "" {
		d.fault(files.place, "files need an owner that is a process, or nobody could say when they are left behind")
	}
	return rule
}

// fieldsOf says how the keys are read that a rule of that kind has and not every rule.
func (d *document) fieldsOf(rule *watch.Rule) fields {
	files := func(v *value) { rule.Files = d.files(v) }
	if rule.Kind == watch.File {
		return fields{"files": files}
	}
	f := fields{
		"match":        func(v *value) { d.match(v, rule.Kind, &rule.Match) },
		"states":       func(v *value) { rule.States = d.states(v) },
		"max-age":      func(v *value) { d.duration(v, 1, &rule.MaxAge) },
		"stop-timeout": func(v *value) { d.duration(v, 0, &rule.StopTimeout) },
	}
	switch rule.Kind {
	case watch.Firecracker:
		maps.Copy(f, fields{
			"base-dirs":  func(v *value) { rule.BaseDirs = d.folders(v) },
			"jail-dirs":  func(v *value) { rule.JailDirs = d.folders(v) },
			"socket-dir": func(v *value) { d.folder(v, &rule.SocketDir) },
			"program":    func(v *value) { rule.Program, _ = d.someText(v, "the name of a program") },
			"remove":     func(v *value) { rule.Remove = d.leaves(v) },
		})
	case watch.GoMicroVM:
		maps.Copy(f, fields{
			"dirs":        func(v *value) { rule.Dirs = d.folders(v) },
			"stop-runner": func(v *value) { rule.StopRunner = d.yes(v) },
		})
	default:
		maps.Copy(f, fields{
			"expires-label": func(v *value) { d.labelKey(v, &rule.ExpiresLabel) },
			"serves":        func(v *value) { rule.Despite = d.patterns(v) },
			"files":         files,
		})
	}
	return f
}

// A need is a key that a rule must have.
type need struct{ key, what string }

func needs(kind watch.Kind) []need {
	name := need{"name", "a rule needs a name"}
	owner := need{"owner", "a rule needs an owner, { none = true } if nobody owns what it is about"}
	switch kind {
	case watch.Firecracker:
		return []need{name, owner}
	case watch.GoMicroVM:
		// Its owners are those that its files name.
		return []need{name, {"dirs", "a rule of this kind needs dirs, or it is about nothing"}}
	case watch.File:
		return []need{name, owner, {"files", "a rule of this kind needs files, or it is about nothing"}}
	default:
		return []need{name, {"match", "a rule needs a match, or it is about nothing"}, owner}
	}
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
	if !slices.Contains(kinds, kind) {
		d.fault(v.place, "unknown kind, want %s", oneOfWords(kinds))
		return
	}
	*into = kind
}

func (d *document) match(v *value, kind watch.Kind, into *watch.Match) {
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
	if kind != watch.Container {
		d.table(v, fields{"name": glob(&into.Name)})
		return
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

func (d *document) owner(v *value, kind watch.Kind, into *watch.Evidence) {
	if v.isTable() && len(v.members) == 0 {
		d.fault(v.place, "want an owner, { none = true } if there is none")
	}
	f := fields{"none": func(v *value) { into.None = d.yes(v) }}
	switch kind {
	case watch.Firecracker:
		maps.Copy(f, fields{
			"ancestor": func(v *value) { d.program(v, &into.Ancestor) },
			"lock-dir": func(v *value) { d.folder(v, &into.Locks) },
			"records":  func(v *value) { d.folder(v, &into.Records) },
		})
	case watch.GoMicroVM:
		f = fields{"sentinel": func(v *value) { into.Sentinel = d.yes(v) }}
	case watch.File:
		f = fields{"process": func(v *value) { d.program(v, &into.Process) }}
	default:
		maps.Copy(f, fields{
			"pid-label":       func(v *value) { d.labelKey(v, &into.PIDLabel) },
			"container-label": func(v *value) { d.labelKey(v, &into.ContainerLabel) },
			"process":         func(v *value) { d.program(v, &into.Process) },
			"client":          func(v *value) { into.Client = d.yes(v) },
			"socket": func(v *value) {
				const want = "the absolute path of a socket, as the container sees it"
				if socket, ok := d.someText(v, want); ok && (!path.IsAbs(socket) || path.Clean(socket) != socket) {
					d.fault(v.place, "want "+want)
				} else {
					into.Socket = socket
				}
			},
		})
	}
	d.table(v, f)
	if none := v.member("none"); none != nil && len(v.members) > 1 {
		d.fault(none.place, "somebody is the owner or nobody, not both")
	}
}

// program reads the program that an owner runs.
func (d *document) program(v *value, into *string) {
	const want = "the name or path of a program, and arguments if need be"
	if text, ok := d.someText(v, want); ok {
		if _, err := watch.NewProgram(text); err != nil {
			d.fault(v.place, "want "+want)
		}
		*into = text
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

// files reads what owners leave behind.
func (d *document) files(v *value) (all []string) {
	for _, item := range d.strings(v) {
		all = append(all, d.globs(item, "files", statedir.CheckFiles)...)
	}
	return all
}

// folders reads where microVMs have their folders.
func (d *document) folders(v *value) (all []string) {
	for _, item := range d.someStrings(v) {
		all = append(all, d.globs(item, "folder", statedir.CheckFolders)...)
	}
	return all
}

// folder reads one path. What may be below every home is no such path.
func (d *document) folder(v *value, into *string) {
	text, ok := d.someText(v, "an absolute path")
	if !ok {
		return
	}
	if globs := d.globs(v, "folder", statedir.CheckFolders); len(globs) == 1 {
		*into = text
	} else if len(globs) > 1 {
		d.fault(v.place, "want an absolute path")
	}
}

// globs reads a glob of a path. What is below every home is told one by one: the homes of root and of users.
func (d *document) globs(v *value, what string, check func(string) error) (all []string) {
	all = []string{v.content}
	if below, ok := strings.CutPrefix(v.content, "~/"); ok {
		all = []string{"/root/" + below, "/home/*/" + below}
	}
	for _, glob := range all {
		if err := check(glob); err != nil {
			d.fault(v.place, "%s", strings.TrimPrefix(err.Error(), fmt.Sprintf("%s %q: ", what, glob)))
			return nil
		}
	}
	return all
}

// leafKinds are what a microVM that is a process may leave behind.
var leafKinds = []string{"workspace", "sockets", "netns", "cgroup"}

func (d *document) leaves(v *value) (all []string) {
	for _, item := range d.someStrings(v) {
		if !slices.Contains(leafKinds, item.content) {
			d.fault(item.place, "want %s", oneOfWords(leafKinds))
			continue
		}
		all = append(all, item.content)
	}
	return all
}
