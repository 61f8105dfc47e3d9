package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"watcher/watch"
)

// hideEngines has a program run where nothing is in /run, and so no engine at the usual place.
func hideEngines(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	hidden := exec.Command(unshare, append([]string{"--mount", "sh", "-c", `mount -t tmpfs tmpfs /run && exec "$0" "$@"`, self}, cmd.Args[1:]...)...)
	hidden.Env, hidden.ExtraFiles = cmd.Env, cmd.ExtraFiles
	return hidden
}

// On a host that has no engine, watcher looks after microVMs, and nothing is amiss. Where an engine is wanted, that it is
// missing is said.
func TestAHostWithoutAnEngine(t *testing.T) {
	microVMs := configFile(t, `
[scan]
interval = "100ms"
[[rule]]
name = "vms"
kind = "firecracker"
base-dirs = ["`+t.TempDir()+`"]
owner = { ancestor = "runner" }
`)
	t.Run("a daemon", func(t *testing.T) {
		d := launchDaemon(t, hideEngines(t, program(t, "--config", microVMs)))
		d.waitFor("a full scan without a fault", func(r record) bool {
			failed, ok := r["lists_failed"].(float64)
			return telling(watch.EventScan)(r) && ok && failed == 0
		})
		if lost := d.records(telling(watch.EventSourceLost)); len(lost) > 0 {
			t.Errorf("it misses %v", lost)
		}
	})
	for _, test := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a single scan", []string{"--once", "--config", microVMs}, exitDone, "reaped 0 orphan(s), kept 0, failed 0"},
		{"a list", []string{"list", "--config", microVMs}, exitDone, ""},
		{"a single scan with rules about containers", []string{"--once", "--config", microVMs, "--preset", "kojuto"}, exitFailed, "cannot reach the engine"},
		{"a single scan without rules", []string{"--once", "--config", configFile(t, "")}, exitFailed, "cannot reach the engine"},
		{"a single scan of an engine that is named", []string{"--once", "--config", microVMs, "--docker-host", "unix:///run/docker.sock"}, exitFailed, "cannot reach the engine"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := hideEngines(t, program(t, test.args...))
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			_ = cmd.Run() // its exit code says it all
			if got := cmd.ProcessState.ExitCode(); got != test.code || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("exit code %d, want %d, and of %q:\n%s", got, test.code, test.want, &stderr)
			}
		})
	}
}
