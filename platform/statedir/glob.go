package statedir

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"watcher/watch"
)

// ErrInUse says that a leftover was not removed because somebody may still use it.
var ErrInUse = fmt.Errorf("may be %w", watch.ErrInUse)

// CheckFiles says what is wrong with a glob of a rule's Files.
func CheckFiles(text string) error {
	_, err := newGlob(text)
	return err
}

// CheckFolders says what is wrong with a glob that names folders in which a program keeps its work, see [Expand].
func CheckFolders(text string) error {
	_, err := newFolders(text)
	return err
}

func newFolders(text string) (glob, error) {
	g, err := parseGlob(text)
	if err != nil {
		return nil, fmt.Errorf("folder %q: %w", text, err)
	}
	return g, nil
}

// A glob is an absolute path of which each element is a pattern as in all rules. As in a shell, one that begins with a *
// or a ? does not match a name that begins with a dot.
type glob []element

type element struct {
	text    string
	pattern watch.Pattern
}

const wildcards = "*?"

// newGlob reads the glob of a rule's Files: what it matches may be removed.
func newGlob(text string) (glob, error) {
	g, err := parseGlob(text)
	if err != nil {
		return nil, fmt.Errorf("files %q: %w", text, err)
	}
	fault := func(what string) error { return fmt.Errorf("files %q: %s", text, what) }
	last := g[len(g)-1]
	switch {
	case len(g) < 2:
		return nil, fault("want a folder and what is in it")
	case last.literal() || strings.Trim(last.text, wildcards) != "":
	case len(g) < 3, strings.Trim(g[len(g)-2].text, wildcards) == "":
		// A slip of the pen here would be /home/*, or everything in every home.
		return nil, fault("everything in such a folder is more than a program leaves behind")
	}
	return g, nil
}

func parseGlob(text string) (glob, error) {
	rest, absolute := strings.CutPrefix(text, "/")
	if !absolute {
		return nil, errors.New("want an absolute path")
	}
	if strings.ContainsRune(text, 0) {
		return nil, errors.New("no path has a NUL in it")
	}
	var g glob
	for name := range strings.SplitSeq(rest, "/") {
		switch {
		case name == "":
			return nil, errors.New("an element is empty")
		case name == ".", name == "..":
			return nil, errors.New("want a path with neither . nor .. in it")
		case strings.Contains(name, "**"):
			return nil, errors.New("** has no meaning here: a * stays within one element")
		}
		g = append(g, element{name, watch.NewPattern(name)})
	}
	return g, nil
}

func (e element) literal() bool { return !strings.ContainsAny(e.text, wildcards) }

func (e element) matches(name string) bool {
	if strings.HasPrefix(name, ".") && !strings.HasPrefix(e.text, ".") {
		return false
	}
	return e.pattern.Matches(name)
}

// leads reports whether the path that names are the elements of lies on the way to what g matches, or is such a match.
func (g glob) leads(names []string) bool {
	if len(names) > len(g) {
		return false
	}
	for i, name := range names {
		if !g[i].matches(name) {
			return false
		}
	}
	return true
}

// A target is a glob of a rule.
type target struct {
	rule string
	glob glob
	from watch.Terms
}

// A plan is what the rules say. It is not changed.
type plan struct {
	targets []target
	err     error // what is wrong with globs that are not among the targets
}

func newPlan(rules *watch.Rules) *plan {
	p := &plan{}
	if rules == nil {
		return p
	}
	for _, rule := range rules.List {
		if rule.Owner.Process == "" {
			continue // what could belong to nobody in particular is nobody's leftover
		}
		for _, text := range rule.Files {
			g, err := newGlob(text)
			if err != nil {
				p.err = errors.Join(p.err, fmt.Errorf("rule %s: %w", rule.Name, err))
				continue
			}
			p.targets = append(p.targets, target{rule.Name, g, watch.Terms{
				Rule:   rule.Name,
				Owners: []watch.Claim{{Kind: watch.ProgramClaim, Program: rule.Owner.Process}},
			}})
		}
	}
	return p
}

// terms says on what terms a path is watched: those of the first rule that matches it. The second result is false if none
// does, or if a glob leads through it (T1).
func (p *plan) terms(file string) (terms watch.Terms, ok bool) {
	names := strings.Split(strings.TrimPrefix(path.Clean(file), "/"), "/")
	for _, t := range p.targets {
		switch {
		case !t.glob.leads(names):
		case len(names) < len(t.glob):
			return watch.Terms{}, false
		case !ok:
			terms, ok = t.from, true
		}
	}
	return terms, ok
}

// readable is a path as people may see it: names may hold anything, also what a terminal obeys.
func readable(file string) string {
	quoted := strconv.Quote(file)
	return quoted[1 : len(quoted)-1]
}
