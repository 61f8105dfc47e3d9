package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"regexp"
	"slices"
	"strings"

	"watcher/watch"
)

// defaultProgram is what a rule means that names none.
const defaultProgram = "firecracker"

// The kinds of leaves, as rules name them.
const (
	Workspace = "workspace" // the working folder, or the folder of a jail
	Sockets   = "sockets"   // the folder of its sockets
	Netns     = "netns"     // its network namespace, with the veth that leads there and the rules that name it
	Cgroup    = "cgroup"    // its control group
)

// order has the kinds of leaves in the order in which they are removed.
var order = []string{Workspace, Sockets, Netns, Cgroup}

// workspaces is the folder in a base folder that holds a folder for each microVM.
const workspaces = "workspaces"

// deletedSuffix is what the kernel puts behind the path of what was removed (proc_pid_cwd(5)).
const deletedSuffix = " (deleted)"

var (
	// idFormat is what may be the ID of a microVM. It means nothing in a path.
	idFormat = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$`)
	// madeFormat is an ID as runners make them: a UUID, or eight hexadecimal digits in older ones.
	madeFormat  = regexp.MustCompile(`^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|vm0-[0-9a-f]{8})$`)
	olderFormat = regexp.MustCompile(`^vm0-[0-9a-f]{8}$`)
)

// A program is the name that a rule has for what a microVM runs, a glob of its basename.
type program struct {
	name    watch.Pattern
	mention watch.Pattern
}

func programOf(rule *watch.Rule) program {
	name := rule.Program
	if name == "" {
		name = defaultProgram
	}
	return program{watch.NewPattern(name), watch.NewPattern("*" + name + "*")}
}

// runs reports whether a process with that executable and those arguments runs the program.
func (p program) runs(exe string, argv []string) bool {
	return exe != "" && p.name.Matches(path.Base(strings.TrimSuffix(exe, deletedSuffix))) ||
		len(argv) > 0 && argv[0] != "" && p.name.Matches(path.Base(argv[0]))
}

// mentions reports whether a process has the program among its arguments, as one has that is to start it.
func (p program) mentions(argv []string) bool {
	return len(argv) > 1 && slices.ContainsFunc(argv[1:], p.mention.Matches)
}

// option returns the value of an option, given as --name value or --name=value. What follows -- is no option. Of several with
// different values there is none.
func option(argv []string, name string) string {
	value := ""
	take := func(v string) bool {
		if value != "" && value != v {
			value = ""
			return false
		}
		value = v
		return true
	}
	for i := 1; i < len(argv) && argv[i] != "--"; i++ {
		v, given := strings.CutPrefix(argv[i], name+"=")
		if argv[i] == name && i+1 < len(argv) && !strings.HasPrefix(argv[i+1], "--") {
			i++
			v, given = argv[i], true
		}
		if given && !take(v) {
			return ""
		}
	}
	return value
}

// A home is where a microVM is at home.
type home struct {
	id   string
	base string // the base folder, or the folder of jails; of sockets without a workspace, the folder they are in
	dir  string // the workspace, or the jail with its root; "": none is known
	jail bool
}

func (h home) watchID() watch.ID {
	sum := sha256.Sum256([]byte(h.base))
	return watch.ID{Kind: watch.Firecracker, Name: h.id + "." + hex.EncodeToString(sum[:4])}
}

// workspaceAt reads the path of a workspace, or of something in one if deep.
func workspaceAt(dir string, deep bool) (h home, ok bool) {
	if path.Clean(dir) != dir || !path.IsAbs(dir) {
		return home{}, false
	}
	if deep {
		dir = path.Dir(dir)
	}
	above, id := path.Split(dir)
	base, ok := strings.CutSuffix(above, "/"+workspaces+"/")
	if !ok || base == "" || !idFormat.MatchString(id) {
		return home{}, false
	}
	return home{id: id, base: base, dir: dir}, true
}

// homes returns where a process may be at home by what it shows: its folder, or a file that it was told to use. The first that
// a rule knows is it.
func homes(cwd string, argv []string) (all []home) {
	if h, ok := workspaceAt(strings.TrimSuffix(cwd, deletedSuffix), false); ok {
		all = append(all, h)
	}
	for _, name := range []string{"--api-sock", "--config-file"} {
		if h, ok := workspaceAt(option(argv, name), true); ok && olderFormat.MatchString(h.id) {
			all = append(all, h)
		}
	}
	return all
}

// jailAt reads the path of the root of a jail below a folder of jails: JAILS/PROGRAM/ID/root.
func jailAt(root string) (h home, of string, ok bool) {
	dir, last := path.Split(root)
	dir = strings.TrimSuffix(dir, "/")
	id, of := path.Base(dir), path.Base(path.Dir(dir))
	base := path.Dir(path.Dir(dir))
	if last != "root" || !path.IsAbs(root) || path.Clean(root) != root || base == "/" || !idFormat.MatchString(id) {
		return home{}, "", false
	}
	return home{id: id, base: base, dir: dir, jail: true}, of, true
}

// A folders glob is a path in which the elements are patterns, as they are for statedir.Expand.
func matchesFolder(glob, dir string) bool {
	patterns, names := strings.Split(glob, "/"), strings.Split(dir, "/")
	if len(patterns) != len(names) {
		return false
	}
	for i, p := range patterns {
		hidden := strings.HasPrefix(names[i], ".") && (strings.HasPrefix(p, "*") || strings.HasPrefix(p, "?"))
		if hidden || !watch.NewPattern(p).Matches(names[i]) {
			return false
		}
	}
	return true
}

// knows reports whether a home is in one of a rule's folders, and a microVM of that name is meant.
func knows(rule *watch.Rule, h home) bool {
	globs := rule.BaseDirs
	if h.jail {
		globs = rule.JailDirs
	}
	return rule.Named(h.id) && slices.ContainsFunc(globs, func(glob string) bool {
		return matchesFolder(strings.TrimSuffix(glob, "/"), h.base)
	})
}

// socketsOf is the folder of a microVM's sockets, or "".
func socketsOf(rule *watch.Rule, id string) string {
	if rule.SocketDir == "" {
		return ""
	}
	return path.Join(rule.SocketDir, id)
}

// removes reports whether a rule has leaves of a kind removed.
func removes(rule *watch.Rule, kind string) bool {
	return len(rule.Remove) == 0 || slices.Contains(rule.Remove, kind)
}

// refersTo reports whether an argument names a path, or something below it, anywhere in it: a shell is given a whole script.
func refersTo(argv []string, dir string) bool {
	return slices.ContainsFunc(argv, func(arg string) bool {
		for at := strings.Index(arg, dir); at >= 0; {
			rest := arg[at+len(dir):]
			if rest == "" || !idFormat.MatchString("0"+rest[:1]) {
				return true
			}
			next := strings.Index(rest, dir)
			if next < 0 {
				break
			}
			at += len(dir) + next
		}
		return false
	})
}

// within reports whether a path is at or below another.
func within(file, above string) bool { return file == above || strings.HasPrefix(file, above+"/") }

// checkLeaf says whether a rule has a leaf of a microVM of that ID removed: it must be where the rule has such leaves (F6).
func checkLeaf(rule *watch.Rule, id string, leaf watch.Leaf) bool {
	if !idFormat.MatchString(id) || !removes(rule, leaf.Kind) {
		return false
	}
	switch leaf.Kind {
	case Workspace:
		if h, ok := workspaceAt(leaf.Name, false); ok && h.id == id && knows(rule, h) {
			return true
		}
		h, of, ok := jailAt(leaf.Name + "/root")
		return ok && h.id == id && programOf(rule).name.Matches(of) && knows(rule, h)
	case Sockets:
		return leaf.Name == socketsOf(rule, id)
	case Netns:
		return netnsFormat.MatchString(leaf.Name)
	case Cgroup:
		return cgroupOf(leaf.Name, id)
	default:
		return false
	}
}

// cgroupOf reports whether a control group is a microVM's own: it bears its name. With an ID that is no more than a word others
// may have that in theirs.
func cgroupOf(group, id string) bool {
	last := path.Base(group)
	for _, unit := range []string{".scope", ".service", ".slice"} {
		last = strings.TrimSuffix(last, unit)
	}
	return last == id || madeFormat.MatchString(id) && (strings.HasSuffix(last, "-"+id) || strings.HasSuffix(last, "@"+id))
}
