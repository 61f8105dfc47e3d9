package main

import (
	"fmt"
	"strings"

	"watcher/watch"
)

// print writes the configuration as it is in effect, in the form in which it is read.
func (c *config) print() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	if len(c.presets) == 0 {
		line("presets = []")
	} else {
		var names []string
		for _, p := range c.presets {
			names = append(names, p.name)
		}
		line("presets = []   # the rules of %s are below", strings.Join(names, ", "))
	}
	line("protect = %s", quoteAll(c.Protect))
	line("\n[docker]")
	if c.Docker.Host == "" {
		line("# host = %s", quote("unix:///var/run/docker.sock"))
	} else {
		line("host = %s", quote(c.Docker.Host))
	}
	line("\n[scan]\ninterval = %s\ngrace = %s", quote(c.Scan.Interval), quote(c.Scan.Grace))
	line("\n[retry]\nattempts = %d\nbase = %s\ncap = %s", c.Retry.Attempts, quote(c.Retry.Base), quote(c.Retry.Cap))
	line("\n[alarm]\nsandboxes = %d", c.Alarm.Sandboxes)
	line("\n[brake]\nburst = %d", c.Brake.Burst)
	for _, rule := range c.Rules {
		line("\n%s", printRule(rule))
	}
	for _, p := range c.presets {
		line("\n# preset %s\n%s", p.name, strings.TrimSpace(c.printPreset(p)))
	}
	return b.String()
}

// printPreset is the text of a preset. What the file replaces is commented out.
func (c *config) printPreset(p preset) string {
	var b strings.Builder
	rule := -1
	for line := range strings.Lines(p.text) {
		if strings.HasPrefix(line, "[[rule]]") {
			rule++
		}
		if rule >= 0 && c.replaces(p.rules[rule]) && strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			line = "# " + line
		}
		b.WriteString(line)
	}
	return b.String()
}

func printRule(rule watch.Rule) string {
	lines := []string{"[[rule]]", "name = " + quote(rule.Name), "kind = " + quote(rule.Kind)}
	add := func(given bool, key, value string) {
		if given {
			lines = append(lines, key+" = "+value)
		}
	}
	match, owner := printMatch(rule.Match), printOwner(rule.Owner)
	add(match != none, "match", match)
	add(len(rule.BaseDirs) > 0, "base-dirs", quoteAll(rule.BaseDirs))
	add(len(rule.JailDirs) > 0, "jail-dirs", quoteAll(rule.JailDirs))
	add(rule.SocketDir != "", "socket-dir", quote(rule.SocketDir))
	add(rule.Program != "", "program", quote(rule.Program))
	add(len(rule.Dirs) > 0, "dirs", quoteAll(rule.Dirs))
	add(owner != none, "owner", owner)
	add(rule.StopRunner, "stop-runner", "true")
	add(len(rule.Remove) > 0, "remove", quoteAll(rule.Remove))
	add(len(rule.States) > 0, "states", quoteAll(rule.States))
	add(rule.MaxAge > 0, "max-age", quote(rule.MaxAge))
	add(rule.StopTimeout > 0, "stop-timeout", quote(rule.StopTimeout))
	add(rule.Alarm > 0, "alarm", fmt.Sprint(rule.Alarm))
	add(rule.ExpiresLabel != "", "expires-label", quote(rule.ExpiresLabel))
	add(len(rule.Despite) > 0, "serves", quoteAll(rule.Despite))
	add(len(rule.Files) > 0, "files", quoteAll(rule.Files))
	return strings.Join(lines, "\n")
}

func printMatch(m watch.Match) string {
	var t inlineTable
	t.add(len(m.Labels) > 0, "labels", quoteAll(m.Labels))
	t.add(m.Image.Given(), "image", quote(m.Image))
	t.add(m.Name.Given(), "name", quote(m.Name))
	return t.String()
}

func printOwner(e watch.Evidence) string {
	var t inlineTable
	t.add(e.PIDLabel != "", "pid-label", quote(e.PIDLabel))
	t.add(e.ContainerLabel != "", "container-label", quote(e.ContainerLabel))
	t.add(e.Process != "", "process", quote(e.Process))
	t.add(e.Client, "client", "true")
	t.add(e.Socket != "", "socket", quote(e.Socket))
	t.add(e.Ancestor != "", "ancestor", quote(e.Ancestor))
	t.add(e.Locks != "", "lock-dir", quote(e.Locks))
	t.add(e.Records != "", "records", quote(e.Records))
	t.add(e.Sentinel, "sentinel", "true")
	t.add(e.None, "none", "true")
	return t.String()
}

// An inlineTable is { key = value, … } while it is written.
type inlineTable []string

func (t *inlineTable) add(given bool, key, value string) {
	if given {
		*t = append(*t, key+" = "+value)
	}
}

// none is a table in which nothing is given.
const none = "{  }"

func (t inlineTable) String() string { return "{ " + strings.Join(t, ", ") + " }" }

func quoteAll[T any](all []T) string {
	quoted := make([]string, len(all))
	for i, one := range all {
		quoted[i] = quote(one)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote writes something as a TOML string. Go's own quotes would do but for the rare characters that TOML escapes in
// another way.
func quote(v any) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range fmt.Sprint(v) {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
