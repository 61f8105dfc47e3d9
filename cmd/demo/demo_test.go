//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asProgram makes the test binary behave as the demo. Children inherit it, which is how a test finds them.
const asProgram = "WATCHER_DEMO_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = 2 * time.Minute

func TestItShowsWhatItPromisesAndLeavesNothing(t *testing.T) {
	d := launch(t)
	out := d.readUntil("nothing, to the end")
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("the demo: %v", err)
	}
	for what, want := range map[string]int{
		`owner +\d+  →  agent-\d\d  owner killed → code stopped after +[\d.]+ ms → gone after +[\d.]+ ms`: doomed,
		`owner +\d+  →  agent-\d\d runs`: sandboxes - doomed,
		`10 reaped: `:                    1,
	} {
		if got := len(regexp.MustCompile(what).FindAllString(out, -1)); got != want {
			t.Errorf("%d lines match %q, want %d:\n%s", got, what, want, out)
		}
	}
	d.wantNothingLeft()
}

func TestItCleansUpWhenInterrupted(t *testing.T) {
	for _, at := range []string{"engine ", "owners ", "same moment"} {
		t.Run(strings.TrimSpace(at), func(t *testing.T) {
			d := launch(t)
			d.readUntil(at)
			if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			d.readUntil("nothing, to the end")
			_ = d.cmd.Wait()
			if got := d.cmd.ProcessState.ExitCode(); got != 1 {
				t.Errorf("the demo exits %d, want 1", got)
			}
			d.wantNothingLeft()
		})
	}
}

// A demo is one that runs, in a temporary folder of its own.
type demo struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *bufio.Reader
	temp string
	mark string
}

func launch(t *testing.T) *demo {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: the demo starts a Docker engine, and that needs root")
	}
	program := filepath.Join(t.TempDir(), "watcher")
	if out, err := exec.Command("go", "build", "-o", program, "../watcher").CombinedOutput(); err != nil {
		t.Fatalf("build watcher: %v\n%s", err, out)
	}
	temp, err := os.MkdirTemp("", "demo") // not t.TempDir: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	d := &demo{t: t, temp: temp, mark: asProgram + "=" + temp}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	d.cmd = exec.CommandContext(ctx, "/proc/self/exe", "--watcher", program)
	d.cmd.Env = append(os.Environ(), d.mark, "TMPDIR="+temp)
	d.cmd.Stderr = os.Stderr
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.out = bufio.NewReader(stdout)
	return d
}

// readUntil returns what the demo says up to the line with that text.
func (d *demo) readUntil(text string) string {
	d.t.Helper()
	var said strings.Builder
	for {
		line, err := d.out.ReadString('\n')
		said.WriteString(line)
		switch {
		case err == io.EOF || strings.Contains(line, text):
			return said.String()
		case err != nil:
			d.t.Fatalf("read what the demo says: %v", err)
		}
	}
}

// wantNothingLeft looks for processes, mounts and files of the demo.
func (d *demo) wantNothingLeft() {
	d.t.Helper()
	var left []string
	files, err := os.ReadDir(d.temp)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range files {
		left = append(left, "the file "+f.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.t.Fatal(err)
	}
	if strings.Contains(string(mounts), d.temp) {
		left = append(left, "a mount")
	}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, file := range environs {
		// A process that has ended by now, or is the kernel's own, is none of ours.
		if env, err := os.ReadFile(file); err == nil && strings.Contains(string(env), d.mark+"\x00") {
			left = append(left, fmt.Sprintf("the process %s", file))
		}
	}
	if len(left) > 0 {
		d.t.Errorf("the demo left %s", strings.Join(left, ", "))
	}
}
