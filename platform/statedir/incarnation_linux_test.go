package statedir_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"watcher/platform/statedir"
	"watcher/watch"
)

func incarnation(t *testing.T, path string) string {
	t.Helper()
	name, err := statedir.Incarnation(path)
	must(t, err)
	return name
}

func TestIncarnation(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "vm/f", "file")
	must(t, os.Symlink("vm", dir+"/link"))
	for path, there := range map[string]bool{
		"/vm": true, "/vm/f": true, "/file": true, "/link": true, // the link itself
		"/nothing": false, "/nothing/f": false, "/file/f": false,
		"/link/f": false, // T3
	} {
		if got := incarnation(t, dir+path); (got != "") != there {
			t.Errorf("%s is %q, there: %t", path, got, there)
		}
	}
	first := incarnation(t, dir+"/vm")
	if leftover := one(t, leftovers(dir+"/vm"), dir+"/vm").ID.Name; leftover != first {
		t.Errorf("%s, and as a leftover %s", first, leftover)
	}
	tree(t, dir, "vm/g")
	if again := incarnation(t, dir+"/vm"); again != first {
		t.Error("it is another because something was put in it")
	}
	must(t, os.Rename(dir+"/vm", dir+"/old"))
	tree(t, dir, "vm/f")
	if again := incarnation(t, dir+"/vm"); again == first {
		t.Error("another has the same incarnation (T2)")
	}
	for _, path := range []string{"", "vm", "/", dir + "/", dir + "/../x", dir + "/./vm", dir + "//vm", dir + "/v\x00m"} {
		if got, err := statedir.Incarnation(path); err == nil {
			t.Errorf("%q is %q", path, got)
		}
	}
}

func TestRemoveIncarnation(t *testing.T) {
	b := newBystander(t, t.TempDir()+"/outside")
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string) // what is removed
		turn func(t *testing.T, path string) // what becomes of it before that
		left string
		fail error
	}{
		{"a folder", func(t *testing.T, path string) {
			tree(t, path, "f", "a/b/f", "empty/")
			must(t, os.Symlink(b.dir, path+"/link"))
			must(t, unix.Mkfifo(path+"/fifo", 0o600))
			deadSocket(t, path+"/socket")
		}, nil, "", nil},
		{"a file", func(t *testing.T, path string) { tree(t, filepath.Dir(path), "vm") }, nil, "", nil},
		{"a link (T3)", func(t *testing.T, path string) { must(t, os.Symlink(b.dir, path)) }, nil, "", nil},
		{"with a lock and a bound socket in it", func(t *testing.T, path string) {
			tree(t, path, "lock")
			must(t, unix.Flock(open(t, path+"/lock"), unix.LOCK_EX))
			socket(t, path+"/socket", unix.SOCK_STREAM)
		}, nil, "", nil},
		{
			"gone", func(t *testing.T, path string) { tree(t, path, "f") },
			func(t *testing.T, path string) { must(t, os.RemoveAll(path)) }, "", nil,
		},
		{
			"another by now (T2)", func(t *testing.T, path string) { tree(t, path, "f") },
			func(t *testing.T, path string) {
				must(t, os.Rename(path, path+"-old"))
				tree(t, path, "f")
			}, "vm vm-old", nil,
		},
		{
			"a link to it by now (T3)", func(t *testing.T, path string) { tree(t, path, "f") },
			func(t *testing.T, path string) {
				must(t, os.Rename(path, path+"-old"))
				must(t, os.Symlink("vm-old", path))
			}, "vm vm-old", nil,
		},
		{
			"with a mount in it (T4)", func(t *testing.T, path string) { tree(t, path, "f", "m/") },
			func(t *testing.T, path string) { mount(t, b.dir, path+"/m", "", unix.MS_BIND, "") }, "vm", statedir.ErrInUse,
		},
		{
			"mounted elsewhere (T4)", func(t *testing.T, path string) { tree(t, path, "f", "m/f") },
			func(t *testing.T, path string) { mount(t, path+"/m", t.TempDir(), "", unix.MS_BIND, "") }, "vm", statedir.ErrInUse,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir() + "/vms"
			tree(t, dir, "./")
			path := dir + "/vm"
			tt.make(t, path)
			what := incarnation(t, path)
			if tt.turn != nil {
				tt.turn(t, path)
			}
			if err := statedir.Remove(t.Context(), path, what); !errors.Is(err, tt.fail) {
				t.Errorf("Remove = %v, want %v", err, tt.fail)
			}
			var left []string
			entries, err := os.ReadDir(dir)
			must(t, err)
			for _, entry := range entries {
				left = append(left, entry.Name())
			}
			if got := strings.Join(left, " "); got != tt.left {
				t.Errorf("%q is left, want %q", got, tt.left)
			}
			b.unharmed(t)
		})
	}
	if err := statedir.Remove(t.Context(), b.dir, ""); err != nil {
		t.Error(err)
	}
	if err := statedir.Remove(t.Context(), filepath.Dir(b.dir)+"/x/../outside", incarnation(t, b.dir)); err == nil {
		t.Error("a path with .. in it is taken")
	}
	b.unharmed(t)
}

// taker is a process that does not exist any more: who has the first PID namespace is told of it, and nobody else.
const taker = -1

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "free", "held", "shared", "posix", "folder/", "inherited", "linked")
	must(t, os.Symlink("linked", dir+"/link"))
	must(t, os.Symlink("folder", dir+"/way"))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	must(t, unix.Flock(open(t, dir+"/held"), unix.LOCK_EX))
	must(t, unix.Flock(open(t, dir+"/linked"), unix.LOCK_EX))
	must(t, unix.Flock(open(t, dir+"/shared"), unix.LOCK_SH))
	must(t, unix.Flock(open(t, dir+"/folder"), unix.LOCK_EX))
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	must(t, unix.FcntlFlock(uintptr(open(t, dir+"/posix")), unix.F_OFD_SETLK, &lock))

	// Its taker has exited, and the child that inherited it lives.
	file, err := os.OpenFile(dir+"/inherited", os.O_RDWR, 0)
	must(t, err)
	child := exec.Command("sh", "-c", "flock -n 3 || exit; (read x <&4) &")
	hold, release, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { _ = release.Close() })
	child.ExtraFiles = []*os.File{file, hold}
	must(t, child.Run())
	must(t, hold.Close())
	must(t, file.Close())

	for _, tt := range []struct {
		path   string
		life   watch.Life
		holder int
	}{
		{"/free", watch.Exited, 0},
		{"/nothing", watch.Exited, 0},
		{"/nothing/at/all", watch.Exited, 0},
		{"/held", watch.Alive, os.Getpid()},
		{"/shared", watch.Alive, os.Getpid()},
		{"/folder", watch.Alive, os.Getpid()},
		{"/posix", watch.Alive, 0},
		{"/inherited", watch.Alive, taker},
		{"/link", watch.Unknown, 0},
		{"/way/lock", watch.Unknown, 0},
		{"/free/lock", watch.Unknown, 0},
		{"/fifo", watch.Unknown, 0},
		{"/../x", watch.Unknown, 0},
	} {
		life, holder, err := statedir.Locked(dir + tt.path)
		if life != tt.life || holder != tt.holder && tt.holder != taker || (err != nil) != (life == watch.Unknown) {
			t.Errorf("%s: %v by %d (%v), want %v by %d", tt.path, life, holder, err, tt.life, tt.holder)
		}
	}
	if life, _, err := statedir.Locked("/dev/null"); life != watch.Unknown {
		t.Errorf("a device: %v (%v)", life, err)
	}
	// It keeps none.
	for range 2 {
		must(t, unix.Flock(open(t, dir+"/free"), unix.LOCK_SH|unix.LOCK_NB))
	}
}

func TestExpand(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "home/ann/.vms/a/", "home/bob/.vms/", "home/cid/.vms", "home/.dan/.vms/", "real/", "home/eve/", "home/gus/vms/")
	must(t, os.Symlink(dir+"/real", dir+"/home/eve/.vms"))
	must(t, os.Symlink("ann", dir+"/home/fay"))
	for _, tt := range []struct {
		globs []string
		want  []string
	}{
		{nil, nil},
		{[]string{"/home/*/.vms"}, []string{"/home/ann/.vms", "/home/bob/.vms"}}, // neither a file nor a link nor a link's (T3)
		{[]string{"/home/gus/vms", "/home/*/.vms", "/home/a*/.vms"}, []string{"/home/ann/.vms", "/home/bob/.vms", "/home/gus/vms"}},
		{[]string{"/nothing/*", "/home/x", "/home/eve/.vms", "/home/fay/.vms/*"}, nil},
		{[]string{"/home/*/.vms/*"}, []string{"/home/ann/.vms/a"}},
	} {
		var globs, want []string
		for _, glob := range tt.globs {
			globs = append(globs, dir+glob)
		}
		for _, path := range tt.want {
			want = append(want, dir+path)
		}
		got, err := statedir.Expand(t.Context(), globs)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", tt.globs, diff)
		}
	}
	for _, glob := range []string{"", "x", "/", "/x/", "/x/../y", "/x//y", "/**", "/x/\x00"} {
		if _, err := statedir.Expand(t.Context(), []string{glob}); err == nil || statedir.CheckFolders(glob) == nil {
			t.Errorf("%q is taken", glob)
		}
	}
	if err := statedir.CheckFolders("/srv/*/*"); err != nil {
		t.Error(err) // nothing that it matches is removed, but what is in it
	}
	restore := limitDescriptors(t, 1)
	_, err := statedir.Expand(t.Context(), []string{dir + "/home/*/.vms"})
	restore()
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("what cannot be read is no error (T7): %v", err)
	}
}
