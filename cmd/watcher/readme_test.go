//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"watcher/platform/docker/dockertest"
	"watcher/platform/journal"
	"watcher/reap"
	"watcher/watch"
)

// What the README names exists, and what exists is in it.
func TestReadmeNamesWhatThereIs(t *testing.T) {
	doc := readReadme(t)

	wantSame(t, "labels", doc.column(t, "label", 0),
		slices.DeleteFunc(constants(t, "../../watch/sandbox.go", "Label"), func(s string) bool { return s == watch.LabelPrefix }))
	wantSame(t, "reasons", doc.column(t, "verdict", 1), constants(t, "../../reap/judge.go", "Reason"))
	wantSame(t, "events", doc.column(t, "event", 0), append(constants(t, "../../watch/log.go", "Event"), journal.EventDropped))
	wantSame(t, "fields", doc.column(t, "field", 0), constants(t, "../../watch/log.go", "Key"))
	wantSame(t, "exit codes", doc.column(t, "exit code", 0),
		[]string{strconv.Itoa(exitDone), strconv.Itoa(exitFailed), strconv.Itoa(exitUsage)})

	root := newRootCommand()
	commands, flags := []string{""}, flagsOf(root)
	for _, cmd := range root.Commands() {
		commands = append(commands, cmd.Name())
		flags = append(flags, flagsOf(cmd)...)
	}
	var named, flagged []string
	for _, code := range append(doc.column(t, "command", 0), doc.column(t, "flag", 0)...) {
		if rest, ok := strings.CutPrefix(code, "watcher"); ok {
			named = append(named, regexp.MustCompile(`^ ?([a-z]*)`).FindStringSubmatch(rest)[1])
		}
	}
	for _, cell := range append(doc.cells(t, "command"), doc.cells(t, "flag")...) {
		flagged = append(flagged, regexp.MustCompile(`--[a-z-]+`).FindAllString(cell, -1)...)
	}
	wantSame(t, "commands", named, commands)
	wantSame(t, "flags", flagged, flags)

	catalog, err := os.ReadFile("../../systemd/watcher.catalog")
	if err != nil {
		t.Fatal(err)
	}
	messageID := regexp.MustCompile(`\b[0-9a-f]{32}\b`)
	wantSame(t, "message IDs", messageID.FindAllString(doc.text, -1), messageID.FindAllString(string(catalog), -1))

	folders, err := os.ReadDir("../../platform")
	if err != nil {
		t.Fatal(err)
	}
	_, tree, _ := strings.Cut(doc.text, "a folder each:")
	tree, _, _ = strings.Cut(tree, "\n")
	var platforms []string
	for _, f := range folders {
		platforms = append(platforms, f.Name())
	}
	wantSame(t, "platforms", strings.FieldsFunc(tree, func(r rune) bool { return r == ' ' || r == ',' }), platforms)

	if bound := fmt.Sprintf("has %d s to finish", reap.DrainFor/time.Second); !strings.Contains(doc.text, bound) {
		t.Errorf("the README does not say that what was begun %s", bound)
	}
}

// The configuration in the README is the default one. It has every key that there is, together with the table of those of
// a rule, and the examples of rules are without fault.
func TestReadmeConfiguration(t *testing.T) {
	doc := readReadme(t)
	text := doc.block(t, "toml")
	c, err := parseConfig("README.md", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(meaning(defaults()), meaning(c), samePattern); diff != "" {
		t.Errorf("the README has not the defaults (-defaults +README):\n%s", diff)
	}
	// What has no default of its own is commented out.
	keys := append(keysOf(t, regexp.MustCompile(`(?m)^# `).ReplaceAllString(text, "")), "rule")
	for _, key := range doc.column(t, "key of a rule", 0) {
		keys = append(keys, strings.Split(key, ".")...)
	}
	wantSame(t, "keys", keys, append(fieldsIn(t, "config_read.go"), fieldsIn(t, "config_rule.go")...))
	wantSame(t, "presets", doc.column(t, "preset", 0), presetNames())
	examples := 0
	for _, b := range doc.blocks {
		if b.info != "toml rule" {
			continue
		}
		examples++
		if _, err := parseConfig("README.md", []byte(b.text)); err != nil {
			t.Errorf("the example\n%s\n%v", b.text, err)
		}
	}
	if examples == 0 {
		t.Error("no example of a rule")
	}
}

// The JSON in the README is, to the letter, what the program makes of what it says.
func TestReadmeJSON(t *testing.T) {
	text := readReadme(t).block(t, "json")
	var rows []row
	strict := json.NewDecoder(strings.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&rows); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := writeJSON(&again, rows); err != nil {
		t.Fatal(err)
	}
	if again.String() != text {
		t.Errorf("the README has\n%s, and the program would write\n%s", text, again.String())
	}
}

// No compose is at hand to run it, so only its form is tested.
func TestReadmeCompose(t *testing.T) {
	text := readReadme(t).block(t, "yaml")
	line := regexp.MustCompile(`^(  )*[a-z.]+:( [A-Z]+| "[^"]*")?$`)
	for l := range strings.Lines(text) {
		if !line.MatchString(strings.TrimSuffix(l, "\n")) {
			t.Errorf("not the YAML that is expected here: %q", l)
		}
	}
	if !strings.Contains(text, "labels:\n      "+watch.LabelOwner+": ") {
		t.Errorf("no label %s in\n%s", watch.LabelOwner, text)
	}
}

// Every snippet is run as it stands, but for the name of the image: the process that runs it must own the container.
func TestReadmeSnippets(t *testing.T) {
	e := dockertest.Shared(t)
	image := e.Image(t)
	d := startDaemon(t, e)
	needTool(t, "docker", "docker.io")
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "watcher")); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), asProgram+"=1", "PATH="+bin+":"+os.Getenv("PATH"), "DOCKER_HOST="+e.Host(),
		"DOCKER_CONFIG="+t.TempDir(), "DOCKER_CONTEXT=")

	var ran []string
	for _, b := range readReadme(t).blocks {
		language, isRun := strings.CutSuffix(b.info, " run")
		if !isRun {
			continue
		}
		ran = append(ran, language)
		t.Run(language, func(t *testing.T) {
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd := interpret(t, language, strings.ReplaceAll(b.text, "IMAGE", image))
			cmd.Env = env
			// A file, no pipe: the engine's client outlives the owner for a moment, and Wait would wait for it too.
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			killed := false
			kill := func() {
				if !killed {
					killed = true
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
				}
			}
			defer func() {
				kill()
				if said, _ := os.ReadFile(out.Name()); t.Failed() || d.tb.Failed() {
					t.Logf("the snippet said: %s", said)
				}
			}()

			owner := strconv.Itoa(cmd.Process.Pid) + ":"
			judged := d.waitFor("a container of the snippet", func(r record) bool {
				return r.text(watch.KeyReason) != "" && strings.HasPrefix(r.text(watch.KeyOwner), owner)
			})
			if got := judged.text(watch.KeyReason); got != string(reap.OwnerAlive) {
				t.Fatalf("its container is judged %q, want %q", got, reap.OwnerAlive)
			}
			id := judged.text(watch.KeyID)
			e.WaitRunning(t, id)
			kill()
			e.WaitGone(t, id)
			if got := d.event(watch.EventReaped, id).text(watch.KeyReason); got != string(reap.OwnerExited) {
				t.Errorf("reason %q, want %q", got, reap.OwnerExited)
			}
		})
	}
	wantSame(t, "languages", ran, []string{"sh", "python", "ts", "go"})
}

// interpret is a snippet as a process that has the PID it starts with for good.
func interpret(t *testing.T, language, text string) *exec.Cmd {
	t.Helper()
	file := filepath.Join(t.TempDir(), map[string]string{"sh": "s.sh", "python": "s.py", "ts": "s.mjs", "go": "s.go"}[language])
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	switch language {
	case "sh":
		cmd = exec.Command("sh", "-eu", file)
	case "python":
		needTool(t, "python3", "python3")
		// A version manager's python3 may be a script, which replaces itself by what it finds.
		cmd = exec.Command("python3", file)
	case "ts":
		// It has no types to strip, so it is JavaScript too.
		needTool(t, "node", "nodejs")
		cmd = exec.Command("node", file)
	case "go":
		// "go run" would start it as a child.
		needTool(t, "go", "golang")
		program := strings.TrimSuffix(file, ".go")
		for _, args := range [][]string{{"vet", file}, {"build", "-o", program, file}} {
			build := exec.Command("go", args...)
			build.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
			if said, err := build.CombinedOutput(); err != nil {
				t.Fatalf("go %s: %v\n%s", args[0], err, said)
			}
		}
		cmd = exec.Command(program)
	default:
		t.Fatalf("do not know how to run %s", language)
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd
}

// A readme is the README, taken apart.
type readme struct {
	text   string
	blocks []block
}

// A block is a fenced one: what stands behind its fence, and in it.
type block struct{ info, text string }

func readReadme(t *testing.T) readme {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := readme{text: string(b)}
	for _, m := range regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$").FindAllStringSubmatch(doc.text, -1) {
		doc.blocks = append(doc.blocks, block{m[1], m[2]})
	}
	return doc
}

// block returns the only block with that info.
func (doc readme) block(t *testing.T, info string) string {
	t.Helper()
	var found []string
	for _, b := range doc.blocks {
		if b.info == info {
			found = append(found, b.text)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d blocks of %s, want one", len(found), info)
	}
	return found[0]
}

// rows returns the rows of the table whose head begins with that word.
func (doc readme) rows(t *testing.T, head string) [][]string {
	t.Helper()
	_, table, ok := strings.Cut(doc.text, "\n| "+head)
	if !ok {
		t.Fatalf("no table of %s", head)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var rows [][]string
	for i, line := range strings.Split(table, "\n") {
		if i >= 2 { // behind the head and the ruler
			rows = append(rows, strings.Split(strings.Trim(line, "|"), "|"))
		}
	}
	return rows
}

// column returns what is marked as code in a column.
func (doc readme) column(t *testing.T, head string, n int) []string {
	t.Helper()
	var codes []string
	for _, row := range doc.rows(t, head) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[n], -1) {
			codes = append(codes, m[1])
		}
	}
	return codes
}

func (doc readme) cells(t *testing.T, head string) []string {
	t.Helper()
	return slices.Concat(doc.rows(t, head)...)
}

// constants returns the values of a file's string constants whose name or type begins with that word.
func constants(t *testing.T, file, prefix string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	var found []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		name, typ := spec.Names[0].Name, ""
		if id, ok := spec.Type.(*ast.Ident); ok {
			typ = id.Name
		}
		value, ok := evaluate(spec.Values[0], values)
		values[name] = value
		if ok && (strings.HasPrefix(name, prefix) || typ == prefix) {
			found = append(found, value)
		}
		return true
	})
	if len(found) == 0 {
		t.Fatalf("no constants %s… in %s", prefix, file)
	}
	return found
}

// evaluate knows literals, names seen before, and sums of these.
func evaluate(e ast.Expr, known map[string]string) (value string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		value, err := strconv.Unquote(e.Value)
		return value, err == nil
	case *ast.Ident:
		value, ok = known[e.Name]
		return value, ok
	case *ast.BinaryExpr:
		x, okX := evaluate(e.X, known)
		y, okY := evaluate(e.Y, known)
		return x + y, okX && okY && e.Op == token.ADD
	}
	return "", false
}

func flagsOf(cmd *cobra.Command) []string {
	var names []string
	add := func(f *pflag.Flag) { names = append(names, "--"+f.Name) }
	cmd.PersistentFlags().VisitAll(add)
	cmd.LocalNonPersistentFlags().VisitAll(add)
	return names
}

// keysOf returns the keys of a configuration, those of its sections as well.
func keysOf(t *testing.T, text string) []string {
	t.Helper()
	var all map[string]any
	if err := toml.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for key, value := range all {
		keys = append(keys, key)
		if section, ok := value.(map[string]any); ok {
			keys = slices.AppendSeq(keys, maps.Keys(section))
		}
	}
	return keys
}

// fieldsIn returns the keys that the code of a file takes, at whatever depth.
func fieldsIn(t *testing.T, file string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		literal, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if id, ok := literal.Type.(*ast.Ident); ok && id.Name == "fields" {
			for _, element := range literal.Elts {
				if key, ok := evaluate(element.(*ast.KeyValueExpr).Key, nil); ok {
					keys = append(keys, key)
				}
			}
		}
		return true
	})
	return keys
}

// wantSame compares two sets.
func wantSame(t *testing.T, what string, inReadme, inCode []string) {
	t.Helper()
	set := func(names []string) []string {
		m := map[string]bool{}
		for _, name := range names {
			m[name] = true
		}
		return slices.Sorted(maps.Keys(m))
	}
	if got, want := set(inReadme), set(inCode); !slices.Equal(got, want) {
		t.Errorf("%s: the README has\n%q, and the program\n%q", what, got, want)
	}
}
