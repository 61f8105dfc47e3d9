package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"watcher/watch"
)

var toldFault = regexp.MustCompile(`^watcher\.toml:([0-9]+):([0-9]+): .+: .*$`)

// FuzzParseConfig: what is taken makes sense and means the same when it is printed and read again, and what is not is told
// with the places of all faults, in order. What the library takes for TOML, so do we.
func FuzzParseConfig(f *testing.F) {
	for _, text := range []string{
		"",
		"[docker]\nhost = \"unix:///run/docker.sock\"\n",
		"[scan]\ninterval = \"30s\"\ngrace = \"2s\"\n",
		"[retry]\nattempts = 8\nbase = \"1s\"\ncap = \"5m\"\n",
		"[alarm]\nsandboxes = 10\n[brake]\nburst = 20\n",
		"[retry]\nattempts = 0\n",
		"[retry]\nbase = \"1h\"\n",
		"[scan]\ninterval = \"-1s\"\n",
		"[scan]\nintervall = \"1s\"\n",
		"[scan]\ninterval = 30\n",
		"[brake]\nburst = -1\n",
		"[alarm]\nsandboxes = 99999999999999999999\n",
		"a = [",
		"\xff",
		"[docker]\n[docker]\n",
		"retry.attempts = 3\n",
		"scan = 3\n",
		"rule = [{name = \"a\", match = {image = \"x\"}, owner = {none = true}, max-age = \"1h\"}, [[], {}]]\n",
		"[[rule.match]]\n[rule.match.x]\n[[rule]]\n",
		everything,
	} {
		f.Add([]byte(text))
	}
	for _, c := range configCases(f, "testdata/config/faults.txt") {
		f.Add([]byte(c.text))
	}
	for _, name := range presetNames() {
		p, err := loadPreset(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(p.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig("watcher.toml", text)
		isTOML := toml.Unmarshal(text, &map[string]any{}) == nil
		if err != nil {
			if c != nil {
				t.Fatalf("%q is refused, and yet it is %+v", text, c)
			}
			checkFaults(t, text, err.Error(), isTOML)
			return
		}
		if !isTOML {
			t.Fatalf("%q is taken, and is no TOML", text)
		}
		pol := c.policy()
		switch {
		case c.Scan.Interval <= 0:
			t.Fatalf("%q is taken as a scan every %s", text, c.Scan.Interval)
		case pol.Attempts < 1, pol.Alarm < 1, pol.Burst < 0, pol.Base <= 0, pol.Cap < pol.Base, pol.Grace <= 0:
			t.Fatalf("%q is taken as %+v", text, c)
		}
		names := map[string]bool{}
		for _, rule := range c.effective() {
			o := rule.Owner
			switch {
			case rule.Name == "", rule.Name == watch.RuleLabels, names[rule.Name], !aboutSomething(rule),
				o == watch.Evidence{} && rule.Kind != watch.GoMicroVM, o.None && o != watch.Evidence{None: true},
				o.None && len(rule.States) == 0 && rule.MaxAge == 0 && rule.ExpiresLabel == "",
				rule.MaxAge < 0, rule.StopTimeout < 0, rule.Alarm < 0:
				t.Fatalf("%q is taken as the rule %+v", text, rule)
			}
			names[rule.Name] = true
		}
		again, err := parseConfig("watcher.toml", []byte(c.print()))
		if err != nil {
			t.Fatalf("%q is taken, printed as\n%s\nand refused: %v", text, c.print(), err)
		}
		if diff := cmp.Diff(meaning(c), meaning(again), samePattern); diff != "" {
			t.Fatalf("%q is taken, printed as\n%s\nand taken as something else (-first +then):\n%s", text, c.print(), diff)
		}
	})
}

// aboutSomething reports whether a rule says what it is about, in the way of its kind and in no other.
func aboutSomething(rule watch.Rule) bool {
	m := rule.Match
	named := len(m.Labels) > 0 || m.Image.Given() || m.Name.Given()
	below, folders := len(rule.BaseDirs)+len(rule.JailDirs) > 0, len(rule.Dirs) > 0
	switch rule.Kind {
	case watch.Container:
		return named && !below && !folders
	case watch.Firecracker:
		return below && !folders
	case watch.GoMicroVM:
		return folders && !below
	case watch.File:
		return len(rule.Files) > 0 && !below && !folders && !named
	default:
		return false
	}
}

func checkFaults(t *testing.T, text []byte, told string, isTOML bool) {
	t.Helper()
	lines := strings.Split(string(text), "\n")
	lastRow, lastColumn := 0, 0
	for line := range strings.SplitSeq(told, "\n") {
		m := toldFault.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q: a fault without a place: %s", text, line)
		}
		row, _ := strconv.Atoi(m[1])
		column, _ := strconv.Atoi(m[2])
		if row < 1 || row > len(lines) || column < 1 || column > len(lines[row-1])+1 {
			t.Fatalf("%q: a fault at a place that is none: %s", text, line)
		}
		if row < lastRow || row == lastRow && column < lastColumn {
			t.Fatalf("%q: faults out of order:\n%s", text, told)
		}
		lastRow, lastColumn = row, column
		for _, structural := range []string{": given already in line ", ": not a table that can be added to: "} {
			if isTOML && strings.Contains(line, structural) {
				t.Fatalf("%q is TOML, and it is told: %s", text, line)
			}
		}
	}
}
