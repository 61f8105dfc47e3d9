package statedir_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/statedir"
	"watcher/watch"
)

// This file has what the tests of leftovers build file systems with.

const program = "agentd"

// leftovers are those of one program, as globs have them.
func leftovers(globs ...string) *statedir.Leftovers {
	l := statedir.NewLeftovers()
	l.SetRules(&watch.Rules{List: []watch.Rule{{Name: "agents", Owner: watch.Evidence{Process: program}, Files: globs}}})
	return l
}

func list(t *testing.T, l *statedir.Leftovers) []watch.Sandbox {
	t.Helper()
	events, err := l.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 1 {
		t.Fatalf("%d events, want a list alone", len(events))
	}
	return events[0].(watch.Listed).Sandboxes
}

func paths(sandboxes []watch.Sandbox) []string {
	found := []string{}
	for _, s := range sandboxes {
		found = append(found, s.Name)
	}
	return found
}

// one is the leftover at a path.
func one(t *testing.T, l *statedir.Leftovers, path string) watch.Sandbox {
	t.Helper()
	all := list(t, l)
	i := slices.IndexFunc(all, func(s watch.Sandbox) bool { return s.Name == path })
	if i < 0 {
		t.Fatalf("%s is not among %q", path, paths(all))
	}
	return all[i]
}

// tree makes files with their own names in them, and with a slash at the end folders.
func tree(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		must(t, plant(dir, name))
	}
}

func plant(dir, name string) error {
	path := filepath.Join(dir, name)
	if name[len(name)-1] == '/' {
		return os.MkdirAll(path, 0o755)
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// A bystander is a tree that nobody may touch.
type bystander struct {
	dir    string
	before map[string]string
}

func newBystander(t *testing.T, dir string) bystander {
	t.Helper()
	tree(t, dir, "f", "sub/f", "sub/empty/", "a/b/c/d", "d0/f0", "d0/d1/f1", "m/f")
	return bystander{dir, snapshot(t, dir)}
}

func (b bystander) unharmed(t *testing.T) {
	t.Helper()
	after := snapshot(t, b.dir)
	for path, what := range b.before {
		if after[path] != what {
			t.Fatalf("%s is %q, was %q", path, after[path], what)
		}
	}
}

// snapshot is all that is below a folder, with the identity and content of each.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		all[path] = strconv.FormatUint(st.Ino, 10) + d.Type().String()
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			all[path] += string(b)
			return err
		}
		return nil
	})
	must(t, err)
	return all
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// fastDir is a folder of the test's own, in memory if we may mount that.
func fastDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		mount(t, "none", dir, "tmpfs", 0, "")
	}
	return dir
}

// mount mounts something for as long as the test runs.
func mount(t *testing.T, source, dir, kind string, flags uintptr, data string) {
	t.Helper()
	needRoot(t)
	dir = filepath.Clean(dir) // so that it can be unmounted even if a folder that it goes through is gone
	if !exists(t, dir) {
		must(t, os.MkdirAll(dir, 0o755))
	}
	if err := unix.Mount(source, dir, kind, flags, data); err != nil {
		t.Fatalf("mount %s at %s: %v", kind, dir, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// mountImage mounts an ext2 or ext4 file system in a file of its own.
func mountImage(t *testing.T, dir string, mkfs ...string) {
	t.Helper()
	needRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
	must(t, os.MkdirAll(dir, 0o755))
	run(t, append(mkfs, "-q", "-F", image)...)
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unmount(t, dir) })
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", command, err, out)
	}
}

// socket binds a socket for as long as the test runs.
func socket(t *testing.T, path string, kind int) {
	t.Helper()
	fd := bind(t, path, kind)
	t.Cleanup(func() { _ = unix.Close(fd) })
}

func bind(t *testing.T, path string, kind int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	// A path of a test may be longer than a socket's may be.
	dir, err := os.Open(filepath.Dir(path))
	must(t, err)
	defer dir.Close()
	name := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: name}))
	return fd
}

// deadSocket leaves a socket that nobody has any more.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	must(t, unix.Close(bind(t, path, unix.SOCK_STREAM)))
}

// open opens a file or folder for as long as the test runs.
func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
