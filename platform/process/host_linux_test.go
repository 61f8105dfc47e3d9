package process_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
)

func TestNewHost(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if got := newHost(t).Boot(); got != strings.TrimSpace(string(boot)) {
		t.Errorf("boot %q, want %q", got, boot)
	}
}

func TestNewHostRefuses(t *testing.T) {
	link := func(target string) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			if err := os.Symlink(target, filepath.Join(root, "self")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		root string // below a temporary folder
		fill func(t *testing.T, root string)
	}{
		{name: "no such folder", root: "missing"},
		{name: "no proc file system"},
		{name: "a proc file system that does not show us", fill: link("1000000000")},
		{name: "nonsense", fill: link("self")},
		{name: "no boot ID", fill: link(strconv.Itoa(os.Getpid()))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), tt.root)
			if tt.fill != nil {
				tt.fill(t, root)
			}
			if h, err := process.NewHost(root); err == nil {
				t.Errorf("NewHost = %v, want an error", h)
			}
		})
	}
}

// TestNewHostOfAnotherNamespace: numbers that mean other processes there than here must not be taken.
func TestNewHostOfAnotherNamespace(t *testing.T) {
	c := startRole(t, "new host", unix.CLONE_NEWPID|unix.CLONE_NEWNS, t.TempDir())
	if want := "refused true, initial false"; c.say != want {
		t.Errorf("in a PID namespace of its own: %s, want %s", c.say, want)
	}
}

func TestInitialNamespace(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		t.Fatal(err)
	}
	const initial = 0xEFFFFFFC // PROC_PID_INIT_INO
	if got, err := newHost(t).InitialNamespace(); err != nil || got != (st.Ino == initial) {
		t.Errorf("InitialNamespace = %t, %v; our namespace is %#x", got, err, st.Ino)
	}
}

func TestNested(t *testing.T) {
	h := newHost(t)
	inside := startRole(t, "wait", unix.CLONE_NEWPID)
	beside := processtest.StartOwner(t)
	for _, tt := range []struct {
		name string
		pid  int
		want bool
	}{
		{"ourselves", os.Getpid(), false},
		{"PID 1", 1, false},
		{"a process of our namespace", beside.PID(), false},
		{"a process of one below", inside.pid, true},
	} {
		if got, err := h.Nested(tt.pid); err != nil || got != tt.want {
			t.Errorf("%s: Nested = %t, %v; want %t", tt.name, got, err, tt.want)
		}
	}
	inside.end()
	if got, err := h.Nested(inside.pid); err == nil {
		t.Errorf("nobody: Nested = %t, want an error", got)
	}
}
