package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// While something large is removed, list says how much of it is left.
func TestListTellsHowMuchIsLeft(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "agent-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "agent-1", "rootfs"), strings.Repeat("x", 3<<20))
	config := configFile(t, `
[[rule]]
name = "agents"
kind = "file"
owner = { process = "/opt/nobody-runs-this" }
files = ["`+dir+`/agent-*"]
`)
	list := func(args ...string) string {
		t.Helper()
		cmd := hideEngines(t, program(t, append([]string{"list", "--config", config}, args...)...))
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("list: %v\n%s", err, &stderr)
		}
		return stdout.String()
	}
	one := func() (r row) {
		t.Helper()
		var rows []row
		if err := json.Unmarshal([]byte(list("-o", "json")), &rows); err != nil || len(rows) != 1 {
			t.Fatalf("listed %+v, %v", rows, err)
		}
		return rows[0]
	}
	before := one()
	if before.Kind != watch.File || before.Left != 0 || !before.Begun.IsZero() {
		t.Errorf("before its removal: %+v", before)
	}
	begun := time.Now().UTC().Truncate(time.Second)
	record := reap.Case{
		Kind: before.Kind, ID: before.ID, Name: before.Name, Rule: before.Rule, Reason: reap.NoPossibleOwner, Begun: begun,
		Steps: []reap.CaseStep{{Step: watch.Remove.String()}}, Leaves: []watch.Leaf{{Kind: "file", Name: filepath.Join(dir, "agent-1")}},
	}
	if err := reap.NewDocket(stateOf(t)).Write(record); err != nil {
		t.Fatal(err)
	}
	if r := one(); !r.Begun.Equal(begun) || r.Left < 3<<20 || r.Left > 4<<20 {
		t.Errorf("during its removal: begun %s, %d bytes left, want %s and 3 MiB", r.Begun, r.Left, begun)
	}
	if table := list(); !strings.Contains(table, "no-possible-owner (3") || !strings.Contains(table, "MiB left)") {
		t.Errorf("during its removal:\n%s", table)
	}
}
