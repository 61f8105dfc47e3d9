package firecracker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A group is a control group of a test, in every hierarchy.
type group struct {
	t    *testing.T
	path string
	dirs map[string]string // by mount point
}

func newGroup(t *testing.T, path string) *group {
	t.Helper()
	needRoot(t)
	roots, err := cgroupRoots()
	ok(t, err)
	g := &group{t, path, map[string]string{}}
	for _, root := range roots {
		below, is := root.below(path)
		if !is {
			continue
		}
		dir := root.point + below
		switch err := os.Mkdir(dir, 0o755); {
		case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES):
			t.Logf("%v", err)
			continue
		default:
			ok(t, err)
		}
		g.dirs[root.point] = dir
		t.Cleanup(func() { _ = unix.Rmdir(dir) })
	}
	if len(g.dirs) == 0 {
		t.Fatal("no control group can be made here")
	}
	return g
}

func (g *group) left() (dirs []string) {
	for _, dir := range g.dirs {
		if _, err := os.Lstat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// top is a control group for a test, and a name in it.
func top(t *testing.T) string {
	t.Helper()
	name := "/watcher-test-" + itoa(os.Getpid())
	newGroup(t, name)
	return name
}

func TestRemoveCgroup(t *testing.T) {
	g := newGroup(t, top(t)+"/guest of mine")
	t.Logf("in %d hierarchies", len(g.dirs))
	for range 2 {
		ok(t, removeCgroup(t.Context(), g.path))
		if left := g.left(); len(left) > 0 {
			t.Errorf("these are left: %q", left)
		}
	}
}

// eachHierarchy runs a test in a group in each hierarchy that can have processes of ours.
func eachHierarchy(t *testing.T, f func(t *testing.T, g *group, dir string)) {
	parent := top(t)
	for point := range newGroup(t, parent+"/probe").dirs {
		if strings.HasSuffix(point, "/cpuset") {
			continue // it takes no process before it has processors
		}
		t.Run(filepath.Base(point), func(t *testing.T) {
			g := newGroup(t, parent+"/leaf")
			f(t, g, g.dirs[point])
		})
	}
}

// TestCgroupWithInhabitant: it is waited for, and if it stays the group stays.
func TestCgroupWithInhabitant(t *testing.T) {
	eachHierarchy(t, func(t *testing.T, g *group, dir string) {
		p, end := begin(t, nil)
		ok(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(itoa(p.PID)), 0))
		cause := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, cause)
		defer cancel()
		if err := removeCgroup(ctx, g.path); !errors.Is(err, cause) || !strings.Contains(err.Error(), itoa(p.PID)) {
			t.Errorf("removeCgroup = %v, want %v and who is in it", err, cause)
		}
		if left := g.left(); len(left) != 1 || left[0] != dir {
			t.Errorf("left are %q, want %q", left, dir)
		}
		ended := make(chan error)
		go func() { ended <- removeCgroup(t.Context(), g.path) }()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if left := g.left(); len(left) > 0 {
			t.Errorf("left are %q", left)
		}
	})
}

func TestCgroupWithGroupBelow(t *testing.T) {
	parent := top(t)
	g := newGroup(t, parent+"/leaf")
	below := newGroup(t, parent+"/leaf/below")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := removeCgroup(ctx, g.path); err == nil {
		t.Error("a group with others below it can be removed")
	}
	if left := below.left(); len(left) != len(below.dirs) {
		t.Errorf("left are %q, want all of %q", left, below.dirs)
	}
}

// TestCgroupPatience: one that does not become empty is given up after some time.
func TestCgroupPatience(t *testing.T) {
	g := newGroup(t, top(t)+"/leaf")
	for _, dir := range g.dirs {
		below := filepath.Join(dir, "below")
		ok(t, os.Mkdir(below, 0o755))
		t.Cleanup(func() { _ = unix.Rmdir(below) })
		g.dirs = map[string]string{"": dir}
		break
	}
	if err := removeCgroup(t.Context(), g.path); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removeCgroup = %v, want %v", err, unix.EBUSY)
	}
}

func TestNamesOfCgroups(t *testing.T) {
	for _, name := range []string{
		"", "/", "//", "x", "./x", "/.", "/..", "/../x", "/x/..", "/x/../y", "/x/", "//x", "/x//y", "/x\x00", "..", "/x/./y",
	} {
		if err := checkCgroup(name); err == nil {
			t.Errorf("%q is taken for a group", name)
		}
		if err := removeCgroup(t.Context(), name); err == nil {
			t.Errorf("%q is removed", name)
		}
	}
	ok(t, removeCgroup(t.Context(), "/watcher-test-none/"+itoa(os.Getpid())))
	ok(t, removeCgroup(t.Context(), "/..x"))
}

func TestPartsOfHierarchies(t *testing.T) {
	for _, tt := range []struct{ root, leaf, want string }{
		{"/", "/a/b", "/a/b"},
		{"/a", "/a/b", "/b"},
		{"/a", "/a", ""},
		{"/a", "/ab", ""},
		{"/a", "/b/a", ""},
		{"/a", "/a/", ""},
	} {
		if below, ok := (cgroupRoot{root: tt.root}).below(tt.leaf); ok != (tt.want != "") || ok && below != tt.want {
			t.Errorf("%s of %s is %q, %t, want %q", tt.leaf, tt.root, below, ok, tt.want)
		}
	}
}

// TestCgroupThroughLinks: the folders of a hierarchy have no links, but a mount point may have been replaced.
func TestCgroupThroughLinks(t *testing.T) {
	dir := realDir(t)
	ok(t, os.MkdirAll(filepath.Join(dir, "real/leaf"), 0o755))
	ok(t, os.Symlink("real", filepath.Join(dir, "link")))
	ok(t, os.Symlink("leaf", filepath.Join(dir, "real/leaf2")))
	r := cgroupRoot{point: dir, root: "/"}
	for _, below := range []string{"/link/leaf", "/real/leaf2", "/real/leaf"} {
		if err := r.remove(t.Context(), below); err == nil {
			t.Errorf("%s is removed", below)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "real/leaf")); err != nil {
		t.Error(err)
	}
}
