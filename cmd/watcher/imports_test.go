package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// An importRule says what the product code of some folders may not import. Folders are named from the module's root;
// what is ours is imported as module/folder.
type importRule struct {
	name   string
	files  func(file string) bool
	forbid func(file, imported string) bool
	reason string
}

const module = "watcher"

// within reports whether a path is at or below one of some others.
func within(p string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return p == root || strings.HasPrefix(p, root+"/") })
}

// in reports whether a file lies at or below one of some folders.
func in(folders ...string) func(string) bool {
	return func(file string) bool { return within(path.Dir(file), folders...) }
}

// pure reports whether a file decides and does nothing: all of watch, and two of reap.
func pure(file string) bool {
	return in("watch")(file) || file == "reap/judge.go" || file == "reap/decide.go"
}

// ours returns the folder of a package of this module.
func ours(imported string) (folder string, ok bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

// platform is the name of the platform that a folder belongs to, or "".
func platform(folder string) string {
	rest, ok := strings.CutPrefix(folder, "platform/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// testSupport reports whether a folder helps tests: dockertest, processtest.
func testSupport(folder string) bool {
	return slices.ContainsFunc(strings.Split(folder, "/"), func(part string) bool {
		return strings.HasSuffix(part, "test") && part != "test"
	})
}

// home is the rule that a module is imported in one folder alone.
func home(folder, reason string, modules ...string) importRule {
	return importRule{
		name:   "home of " + modules[0],
		files:  func(file string) bool { return !in(folder)(file) },
		forbid: func(_, imported string) bool { return within(imported, modules...) },
		reason: "only " + folder + " may import it: " + reason,
	}
}

var importRules = []importRule{
	{
		name:  "watch stands alone",
		files: in("watch"),
		forbid: func(_, imported string) bool {
			_, is := ours(imported)
			return is
		},
		reason: "everything else stands on watch, so watch can stand on nothing of ours",
	},
	{
		name:  "reap knows no platform",
		files: in("reap"),
		forbid: func(_, imported string) bool {
			folder, is := ours(imported)
			return is && folder != "watch"
		},
		reason: "what is decided must not depend on how the world is touched: reap names an interface, and cmd/watcher brings the platform",
	},
	{
		name:  "platforms know only watch",
		files: in("platform"),
		forbid: func(_, imported string) bool {
			folder, is := ours(imported)
			return is && folder != "watch" && platform(folder) == ""
		},
		reason: "a platform tells what it sees and does what it is told; it does not know who decides",
	},
	{
		name:  "platforms do not know each other",
		files: in("platform"),
		forbid: func(file, imported string) bool {
			folder, _ := ours(imported)
			other := platform(folder)
			return other != "" && other != platform(path.Dir(file)) && other != "process" && other != "statedir"
		},
		reason: "a kind of sandbox is one folder, that can be added and taken away alone; only the host's primitives, process and statedir, are common",
	},
	{
		name:  "test support stays out of the product",
		files: func(file string) bool { return !in("cmd/demo")(file) && !testSupport(path.Dir(file)) },
		forbid: func(_, imported string) bool {
			folder, is := ours(imported)
			return is && testSupport(folder)
		},
		reason: "what starts engines and kills processes for tests must not be reachable from what runs as root",
	},
	{
		name:  "programs are nobody's library",
		files: func(string) bool { return true },
		forbid: func(_, imported string) bool {
			folder, _ := ours(imported)
			return within(folder, "cmd")
		},
		reason: "cmd/watcher is the only place that knows every package, and no package knows it",
	},
	home("platform/docker", "its client is being replaced by another module, and the move is to be one folder",
		"github.com/docker/docker", "github.com/docker/go-connections", "github.com/moby/moby"),
	home("platform/connector", "netlink is how the kernel tells of exits, and of nothing else here",
		"github.com/mdlayher/netlink", "github.com/mdlayher/socket", "github.com/cilium/ebpf"),
	home("platform/statedir", "files are waited for in one way",
		"github.com/fsnotify/fsnotify"),
	home("platform/firecracker", "what changes the host's network is what microVMs leave in it",
		"github.com/vishvananda/netlink", "github.com/vishvananda/netns"),
	home("cmd/watcher", "lifetimes are wired in one place",
		"github.com/oklog/run"),
	{
		name:  "deciding touches nothing",
		files: pure,
		forbid: func(_, imported string) bool {
			return within(imported, "os", "io", "net", "syscall", "unsafe", "runtime", "context", "sync", "log", "math/rand", "crypto/rand",
				"plugin", "embed", "testing", "golang.org/x/sys", "golang.org/x/sync", "github.com/prometheus/procfs")
		},
		reason: "a verdict is a function of the picture and the time it is given: no file, socket, log, lock or chance",
	},
}

// clockCalls are what of package time reads the clock or waits for it.
var clockCalls = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

const (
	clockReason     = "time is an argument of what decides, so that every moment can be tested"
	goroutineReason = "the picture belongs to one goroutine, and what decides starts no other"
)

// breaches returns how a file of product code breaks the rules.
func breaches(file string, source []byte) ([]string, error) {
	mode := parser.ImportsOnly
	if pure(file) {
		mode = parser.SkipObjectResolution
	}
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, file, source, mode)
	if err != nil {
		return nil, err
	}
	var found []string
	clock := "" // what package time is called in this file
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		if imported == "time" {
			clock = "time"
			if spec.Name != nil {
				clock = spec.Name.Name
			}
		}
		for _, rule := range importRules {
			if rule.files(file) && rule.forbid(file, imported) {
				found = append(found, fmt.Sprintf("%s imports %s (%s): %s", fset.Position(spec.Pos()), imported, rule.name, rule.reason))
			}
		}
	}
	if !pure(file) {
		return found, nil
	}
	if clock == "." {
		found = append(found, fmt.Sprintf("%s imports the names of time (clock): %s", file, clockReason))
	}
	ast.Inspect(parsed, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.GoStmt:
			found = append(found, fmt.Sprintf("%s starts a goroutine (goroutine): %s", fset.Position(node.Pos()), goroutineReason))
		case *ast.SelectorExpr:
			if from, ok := node.X.(*ast.Ident); ok && clock != "" && from.Name == clock && slices.Contains(clockCalls, node.Sel.Name) {
				found = append(found, fmt.Sprintf("%s uses time.%s (clock): %s", fset.Position(node.Pos()), node.Sel.Name, clockReason))
			}
		}
		return true
	})
	return found, nil
}

func TestImportsPointOneWay(t *testing.T) {
	root := os.DirFS("../..")
	seen := map[string]bool{}
	err := fs.WalkDir(root, ".", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			// What the go tool leaves out, too.
			if name := entry.Name(); name == "testdata" || name != "." && strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(file, ".go"), strings.HasSuffix(file, "_test.go"):
			return nil
		}
		source, err := fs.ReadFile(root, file)
		if err != nil {
			return err
		}
		seen[path.Dir(file)] = true
		if pure(file) {
			seen[file] = true
		}
		found, err := breaches(file, source)
		for _, breach := range found {
			t.Error(breach)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A file or folder that was moved would otherwise be watched no more, without a word.
	for _, there := range []string{"watch", "reap", "reap/judge.go", "reap/decide.go", "platform/docker", "platform/connector", "platform/statedir", "platform/process", "cmd/watcher"} {
		if !seen[there] {
			t.Errorf("%s is not there: do the rules still say what they mean?", there)
		}
	}
}

func TestEveryImportRuleCanFail(t *testing.T) {
	broken := map[string]bool{"": true}
	for name, test := range map[string]struct {
		file, source string
		want         string // the rule that is broken; "" if none
	}{
		"watch imports reap":                     {"watch/x.go", `import "watcher/reap"`, "watch stands alone"},
		"watch imports a platform":               {"watch/x.go", `import _ "watcher/platform/process"`, "watch stands alone"},
		"reap imports watch":                     {"reap/loop.go", `import "watcher/watch"`, ""},
		"reap imports a platform":                {"reap/loop.go", `import "watcher/platform/docker"`, "reap knows no platform"},
		"a folder of reap imports a platform":    {"reap/docket/x.go", `import "watcher/platform/statedir"`, "reap knows no platform"},
		"a platform imports watch":               {"platform/docker/x.go", `import "watcher/watch"`, ""},
		"a platform imports reap":                {"platform/docker/x.go", `import "watcher/reap"`, "platforms know only watch"},
		"a platform imports itself":              {"platform/docker/dockertest/x.go", `import "watcher/platform/docker"`, ""},
		"a platform imports a primitive":         {"platform/docker/x.go", `import "watcher/platform/process"`, ""},
		"a platform imports the other primitive": {"platform/gomicrovm/x.go", `import "watcher/platform/statedir"`, ""},
		"a platform imports another":             {"platform/firecracker/x.go", `import "watcher/platform/docker"`, "platforms do not know each other"},
		"a primitive imports a platform":         {"platform/process/x.go", `import "watcher/platform/connector"`, "platforms do not know each other"},
		"the program imports all":                {"cmd/watcher/x.go", "import (\n\"watcher/reap\"\n\"watcher/platform/docker\"\n\"watcher/watch\"\n\"github.com/oklog/run\"\n)", ""},
		"the program imports test support":       {"cmd/watcher/x.go", `import "watcher/platform/docker/dockertest"`, "test support stays out of the product"},
		"a platform imports its test support":    {"platform/process/x.go", `import "watcher/platform/process/processtest"`, "test support stays out of the product"},
		"the demo imports test support":          {"cmd/demo/main.go", `import "watcher/platform/process/processtest"`, ""},
		"somebody imports a program":             {"cmd/demo/main.go", `import "watcher/cmd/watcher"`, "programs are nobody's library"},
		"docker's client at home":                {"platform/docker/x.go", `import "github.com/docker/docker/client"`, ""},
		"docker's client in its test support":    {"platform/docker/dockertest/x.go", `import "github.com/docker/docker/client"`, ""},
		"docker's client elsewhere":              {"cmd/watcher/x.go", `import "github.com/docker/docker/api/types/container"`, "home of github.com/docker/docker"},
		"docker's successor elsewhere":           {"cmd/watcher/x.go", `import "github.com/moby/moby/client"`, "home of github.com/docker/docker"},
		"netlink elsewhere":                      {"platform/process/x.go", `import "github.com/mdlayher/netlink"`, "home of github.com/mdlayher/netlink"},
		"fsnotify elsewhere":                     {"platform/docker/x.go", `import "github.com/fsnotify/fsnotify"`, "home of github.com/fsnotify/fsnotify"},
		"links of networks elsewhere":            {"platform/process/x.go", `import "github.com/vishvananda/netlink"`, "home of github.com/vishvananda/netlink"},
		"run groups elsewhere":                   {"reap/loop.go", `import "github.com/oklog/run"`, "home of github.com/oklog/run"},
		"a module whose name begins alike":       {"reap/loop.go", `import "github.com/oklog/runner"`, ""},
		"watch reads files":                      {"watch/x.go", `import "os"`, "deciding touches nothing"},
		"watch makes system calls":               {"watch/x.go", `import "golang.org/x/sys/unix"`, "deciding touches nothing"},
		"a verdict logs":                         {"reap/judge.go", `import "log/slog"`, "deciding touches nothing"},
		"a plan dials":                           {"reap/decide.go", `import "net/http"`, "deciding touches nothing"},
		"a plan throws dice":                     {"reap/decide.go", `import "math/rand/v2"`, "deciding touches nothing"},
		"the loop logs":                          {"reap/loop.go", `import "log/slog"`, ""},
		"a verdict reads the clock":              {"reap/judge.go", "import \"time\"\nfunc f() time.Time { return time.Now() }", "clock"},
		"a verdict reads the clock by another name": {
			"reap/judge.go", "import t \"time\"\nvar now = t.Now", "clock",
		},
		"a verdict reads the clock without a name": {"reap/judge.go", "import . \"time\"\nvar now = Now", "clock"},
		"the picture waits":                        {"watch/picture.go", "import \"time\"\nfunc f() { <-time.After(time.Second) }", "clock"},
		"the picture asks for a duration":          {"watch/picture.go", "import \"time\"\nfunc f(t time.Time) time.Duration { return time.Since(t) }", "clock"},
		"the picture compares times":               {"watch/picture.go", "import \"time\"\nfunc f(a, b time.Time) bool { return a.After(b.Add(time.Second)) }", ""},
		"the picture starts a goroutine":           {"watch/picture.go", "func f() { func() { go f() }() }", "goroutine"},
		"the loop reads the clock":                 {"reap/loop.go", "import \"time\"\nfunc f() { go f(); time.Now() }", ""},
	} {
		broken[test.want] = true
		t.Run(name, func(t *testing.T) {
			found, err := breaches(test.file, []byte("package x\n"+test.source))
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case test.want == "" && len(found) > 0:
				t.Errorf("found %q", found)
			case test.want != "" && !slices.ContainsFunc(found, func(breach string) bool { return strings.Contains(breach, "("+test.want+"): ") }):
				t.Errorf("found %q, want a breach of %q", found, test.want)
			}
		})
	}
	for _, rule := range importRules {
		if !broken[rule.name] {
			t.Errorf("nothing shows that %q can fail", rule.name)
		}
	}
}
