package statedir_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/statedir"
	"watcher/watch"
)

// TestRemove removes one leftover of each sort, with two neighbours and a bystander outside that must not be harmed.
func TestRemove(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path, outside string)
		fail error // what the error wraps; nil: it is removed
		left string
	}{
		{"a file", func(t *testing.T, path, _ string) { tree(t, path, "../agent") }, nil, ""},
		{"a file that nobody may read", func(t *testing.T, path, _ string) {
			needRoot(t)
			tree(t, path, "../agent")
			must(t, os.Chmod(path, 0))
		}, nil, ""},
		{"another name of a file", func(t *testing.T, path, outside string) { must(t, os.Link(outside+"/f", path)) }, nil, ""},
		{"an empty folder", func(t *testing.T, path, _ string) { tree(t, path, "./") }, nil, ""},
		{"a folder", func(t *testing.T, path, _ string) {
			tree(t, path, "f", "a/b/c/f", "a/g", "empty/", "a/b/empty/", ".hidden/.f", "...", " ", "-rf", "*", "a/\n\x1b[2J\xff\xfe/\\")
			tree(t, path, strings.Repeat("n", 255)+"/"+strings.Repeat("m", 255))
		}, nil, ""},
		{"folders that nobody may enter", func(t *testing.T, path, _ string) {
			needRoot(t)
			tree(t, path, "a/b/f", "c/")
			for _, dir := range []string{"/a/b", "/a", "/c", ""} {
				must(t, os.Chmod(path+dir, 0))
			}
		}, nil, ""},
		{"a link to a folder (T3)", func(t *testing.T, path, outside string) { must(t, os.Symlink(outside, path)) }, nil, ""},
		{"a link to a file", func(t *testing.T, path, outside string) { must(t, os.Symlink(outside+"/f", path)) }, nil, ""},
		{"a link to nothing", func(t *testing.T, path, _ string) { must(t, os.Symlink("nowhere", path)) }, nil, ""},
		{"a link to itself", func(t *testing.T, path, _ string) { must(t, os.Symlink("agent", path)) }, nil, ""},
		{"links everywhere in it (T3)", func(t *testing.T, path, outside string) {
			for _, dir := range []string{"/", "/a/", "/a/b/", "/a/b/c/"} {
				tree(t, path, "."+dir)
				up, err := filepath.Rel(path+dir, outside)
				must(t, err)
				for i, to := range []string{outside, outside + "/", up, up + "/sub/..", outside + "/f", "/", ".", "..", "../../../../../../../..", "loop"} {
					must(t, os.Symlink(to, path+dir+fmt.Sprint("link", i)))
				}
				must(t, os.Symlink("loop", path+dir+"loop"))
			}
		}, nil, ""},
		{"other names of files outside", func(t *testing.T, path, outside string) {
			tree(t, path, "sub/")
			must(t, os.Link(outside+"/f", path+"/f"))
			must(t, os.Link(outside+"/sub/f", path+"/sub/f"))
		}, nil, ""},
		{"pipes, sockets and devices", func(t *testing.T, path, _ string) {
			tree(t, path, "sub/")
			for _, dir := range []string{path, path + "/sub"} {
				must(t, unix.Mkfifo(dir+"/pipe", 0o600))
				deadSocket(t, dir+"/socket")
				if os.Geteuid() == 0 {
					must(t, unix.Mknod(dir+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
					must(t, unix.Mknod(dir+"/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 99))))
				}
			}
		}, nil, ""},
		{"a pipe", func(t *testing.T, path, _ string) { must(t, unix.Mkfifo(path, 0o600)) }, nil, ""},
		{"a dead socket", func(t *testing.T, path, _ string) { deadSocket(t, path) }, nil, ""},
		{"an open file, in a folder that is somebody's", func(t *testing.T, path, _ string) {
			tree(t, path, "a/f")
			open(t, path+"/a/f")
			open(t, path+"/a")
		}, nil, ""},
		{"a file that cannot be changed", func(t *testing.T, path, _ string) {
			tree(t, path, "a/before", "a/b/immutable", "a/zz", "other/f")
			freeze(t, path+"/a/b/immutable")
		}, unix.EPERM, "/a/b/immutable"},
		{"files that cannot be changed", func(t *testing.T, path, _ string) {
			for i := range 5 {
				tree(t, path, fmt.Sprintf("a/immutable%d", i))
				freeze(t, path+fmt.Sprintf("/a/immutable%d", i))
			}
			tree(t, path, "b/f")
		}, unix.EPERM, "/a/immutable"},
		{"a folder that cannot be changed", func(t *testing.T, path, _ string) {
			tree(t, path, "a/in\nto/immutable/f", "b/f")
			freeze(t, path+"/a/in\nto/immutable")
		}, unix.EPERM, `/a/in\nto/immutable`},
		{"itself cannot be changed", func(t *testing.T, path, _ string) {
			tree(t, path, "f")
			freeze(t, path)
		}, unix.EPERM, "/f"},
		{"a tmpfs in it (T4)", func(t *testing.T, path, outside string) {
			mount(t, "none", path+"/a/m", "tmpfs", 0, "")
			tree(t, path, "a/m/precious")
		}, statedir.ErrInUse, "/a/m"},
		{"the bystander mounted in it (T4)", func(t *testing.T, path, outside string) {
			mount(t, outside, path+"/a/m", "", unix.MS_BIND, "")
		}, statedir.ErrInUse, "/a/m"},
		{"the bystander mounted at it (T4)", func(t *testing.T, path, outside string) {
			mount(t, outside, path, "", unix.MS_BIND, "")
		}, statedir.ErrInUse, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "left")
			must(t, err)
			t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
			outside := newBystander(t, dir+"/outside")
			tree(t, dir, "root/agent2/f", "root/agen", "root/.agent/f")
			path := dir + "/root/agent"
			tt.make(t, path, outside.dir)
			l := leftovers(path)
			id := one(t, l, path).ID
			err = l.Remove(t.Context(), id)
			outside.unharmed(t)
			if tt.fail == nil {
				if err != nil || exists(t, path) {
					t.Errorf("Remove = %v; still there: %t", err, exists(t, path))
				}
				if err := l.Remove(t.Context(), id); err != nil {
					t.Errorf("Remove = %v once more", err)
				}
			} else {
				if !errors.Is(err, tt.fail) || !strings.Contains(err.Error(), path+tt.left) {
					t.Errorf("Remove = %v, want %v about %s", err, tt.fail, path+tt.left)
				}
				if again := one(t, l, path).ID; again != id {
					t.Error("what is left is another leftover (T6)")
				}
				// What does not stand in the way is gone.
				for _, other := range []string{"/other", "/b", "/a/zz", "/a/before"} {
					if exists(t, path+other) {
						t.Errorf("%s is still there", other)
					}
				}
			}
			for _, neighbour := range []string{"agent2/f", "agen", ".agent/f"} {
				if !exists(t, dir+"/root/"+neighbour) {
					t.Errorf("its neighbour %s is gone", neighbour)
				}
			}
		})
	}
}

// freeze makes a file immutable for as long as the test runs. The flag has the same number in ioctl_iflags(2) as in statx(2).
func freeze(t *testing.T, path string) {
	t.Helper()
	needRoot(t)
	fd := open(t, path)
	set := func(change func(uint32) uint32) error {
		flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(change(flags)))
	}
	if err := set(func(flags uint32) uint32 { return flags | unix.STATX_ATTR_IMMUTABLE }); err != nil {
		t.Skipf("no immutable files here: %v", err)
	}
	t.Cleanup(func() { must(t, set(func(flags uint32) uint32 { return flags &^ unix.STATX_ATTR_IMMUTABLE })) })
}

// TestRemoveWhatIsNotNamed guards T1.
func TestRemoveWhatIsNotNamed(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "agent-1/f", "agent-2/boxes/f", "other/f")
	l := leftovers(dir + "/agent-*")
	id := one(t, l, dir+"/agent-1").ID
	wider := leftovers(dir + "/*e*")
	other := one(t, wider, dir+"/other").ID
	before := snapshot(t, dir)

	for _, tt := range []struct {
		name string
		id   watch.ID
	}{
		{"a path", watch.ID{Kind: watch.File, Name: dir + "/agent-1"}},
		{"nothing", watch.ID{Kind: watch.File}},
		{"of another kind", watch.ID{Kind: watch.Container, Name: id.Name}},
		{"a prefix", watch.ID{Kind: watch.File, Name: id.Name[:12]}},
		{"what only others name", other},
	} {
		if err := l.Remove(t.Context(), tt.id); err != nil {
			t.Errorf("%s: Remove = %v; there is no such leftover", tt.name, err)
		}
	}
	if err := leftovers("/tmp/*").Remove(t.Context(), other); err == nil {
		t.Error("what could not be looked for is said to be gone (T7)")
	}
	l.SetRules(&watch.Rules{List: []watch.Rule{{Name: "x", Owner: watch.Evidence{Process: program}, Files: []string{dir + "/other"}}}})
	if err := l.Remove(t.Context(), id); err == nil {
		t.Error("removed, and the rule that named it is gone")
	}
	l.SetRules(&watch.Rules{List: []watch.Rule{{Name: "x", Owner: watch.Evidence{Process: program}, Files: []string{dir + "/agent-*", dir + "/agent-1/f"}}}})
	if err := l.Remove(t.Context(), id); err == nil {
		t.Error("removed, and it is the root of a rule by now")
	}
	// Whoever did not list, as after a restart, would not find it. By what was recorded it is known to be there.
	late := leftovers(dir + "/other")
	known := watch.Sandbox{ID: id, Leaves: []watch.Leaf{{Kind: "file", Name: dir + "/agent-1"}}}
	if err := late.RemoveKnown(t.Context(), known); err == nil {
		t.Error("said to be gone, and the rule that named it is gone")
	}
	known.ID.Name = strings.Repeat("a", 64)
	if err := late.RemoveKnown(t.Context(), known); err != nil {
		t.Errorf("RemoveKnown = %v of what is gone, with another in its place", err)
	}
	if after := snapshot(t, dir); len(after) != len(before) {
		t.Errorf("%q is left of %q", after, before)
	}
	// Whoever did not list knows it as well.
	if err := leftovers(dir+"/agent-*").Remove(t.Context(), id); err != nil || exists(t, dir+"/agent-1") {
		t.Errorf("Remove = %v without a list before", err)
	}
}

// TestRemoveAnotherIncarnation guards T2.
func TestRemoveAnotherIncarnation(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after func(t *testing.T, dir, path string)
	}{
		{"made anew", func(t *testing.T, dir, path string) {
			must(t, os.RemoveAll(path))
			tick(t, dir)
			tree(t, path, "precious")
		}},
		{"another moved there", func(t *testing.T, dir, path string) {
			must(t, os.Rename(path, dir+"/old"))
			tree(t, path, "precious")
		}},
		{"a link in its place", func(t *testing.T, dir, path string) {
			must(t, os.Rename(path, dir+"/old"))
			tree(t, dir, "new/precious")
			must(t, os.Symlink("new", path))
		}},
		{"a link on the way", func(t *testing.T, dir, path string) {
			must(t, os.Rename(filepath.Dir(path), dir+"/old"))
			tree(t, dir, "new/agent/precious")
			must(t, os.Symlink("new", filepath.Dir(path)))
		}},
		// The very same one, and yet the path of a rule does not lead there.
		{"a link to itself on the way", func(t *testing.T, dir, path string) {
			tree(t, path, "precious")
			must(t, os.Rename(filepath.Dir(path), dir+"/old"))
			must(t, os.Symlink("old", filepath.Dir(path)))
		}},
		{"its folder moved away", func(t *testing.T, dir, path string) {
			tree(t, path, "precious")
			must(t, os.Rename(filepath.Dir(path), dir+"/old"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := dir + "/root/agent"
			tree(t, path, "f")
			l := leftovers(path)
			id := one(t, l, path).ID
			tt.after(t, dir, path)
			before := snapshot(t, dir)
			if err := l.Remove(t.Context(), id); err != nil {
				t.Errorf("Remove = %v: what was meant is gone", err)
			}
			if after := snapshot(t, dir); len(after) != len(before) {
				t.Errorf("%q is left of %q", after, before)
			}
		})
	}
}

// An interrupt is a context that ends when it has been asked some times.
type interrupt struct {
	context.Context
	left atomic.Int64
}

var errInterrupt = errors.New("interrupted")

func newInterrupt(after int64) context.Context {
	i := &interrupt{Context: context.Background()}
	i.left.Store(after)
	return i
}

func (i *interrupt) Err() error {
	if i.left.Add(-1) < 0 {
		return errInterrupt
	}
	return nil
}

// TestRemoveIsRepeatable guards T6: interrupted at any place, what is left is the same leftover.
func TestRemoveIsRepeatable(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/agent"
	fill := func() { tree(t, path, "a/b/c/f", "a/b/g", "a/h", "i", "j/k/l", "m/") }
	l := leftovers(path)
	var interrupted, done int
	for after := int64(0); done == 0; after++ {
		fill()
		id := one(t, l, path).ID
		err := l.Remove(newInterrupt(after), id)
		switch {
		case err == nil:
			done++
			if exists(t, path) {
				t.Error("done, and still there")
			}
		case !exists(t, path):
			t.Fatalf("after %d: Remove = %v, and it is gone", after, err)
		default:
			interrupted++
			if now := one(t, l, path).ID; now != id {
				t.Fatalf("after %d: what is left is %v, was %v", after, now, id)
			}
		}
	}
	if interrupted < 10 {
		t.Errorf("interrupted only %d times", interrupted)
	}
	fill()
	id := one(t, l, path).ID
	for after := int64(0); exists(t, path); after++ {
		_ = l.Remove(newInterrupt(after), id)
	}
}

// A hook is a context that does something when it is asked.
type hook struct {
	context.Context
	asked int
	do    func(asked int)
}

func (h *hook) Err() error {
	h.asked++
	h.do(h.asked)
	return nil
}

// TestRemoveWhatIsSwappedMeanwhile has the swap at one place after the other.
func TestRemoveWhatIsSwappedMeanwhile(t *testing.T) {
	for at, places := 1, 1; at <= places; at++ {
		dir := t.TempDir()
		path := dir + "/root/agent"
		tree(t, path, "a/f", "g")
		l := leftovers(path)
		id := one(t, l, path).ID
		h := &hook{Context: t.Context()}
		h.do = func(asked int) {
			places = asked
			if asked == at {
				must(t, os.Rename(path, dir+"/old"))
				must(t, os.Mkdir(path, 0o755)) // empty, so that rmdir would not mind
			}
		}
		if err := l.Remove(h, id); err != nil {
			t.Errorf("swapped at %d: Remove = %v: what was meant is gone", at, err)
		}
		if !exists(t, path) {
			t.Errorf("swapped at %d: another folder was removed (T2)", at)
		}
		if at == 1 && places < 3 {
			t.Errorf("only %d places", places)
		}
	}
}

// TestRemoveWideAndDeep guards T8.
func TestRemoveWideAndDeep(t *testing.T) {
	t.Run("deep", func(t *testing.T) {
		dir := t.TempDir()
		outside := newBystander(t, dir+"/outside")
		path := dir + "/agent"
		const levels = 5000 // a path of 10,000 bytes and more: no system call would take it
		deepen(t, path, levels)
		l := leftovers(path)
		id := one(t, l, path).ID
		restore := limitDescriptors(t, 80)
		err := l.Remove(t.Context(), id)
		restore()
		if err != nil || exists(t, path) {
			t.Errorf("Remove = %v; still there: %t", err, exists(t, path))
		}
		outside.unharmed(t)
	})
	t.Run("deep, with something that stays at the end", func(t *testing.T) {
		dir := t.TempDir()
		path := dir + "/agent"
		freeze(t, deepen(t, path, 300))
		l := leftovers(path)
		id := one(t, l, path).ID
		for range 2 {
			if err := l.Remove(t.Context(), id); !errors.Is(err, unix.EPERM) {
				t.Errorf("Remove = %v, want %v", err, unix.EPERM)
			}
			if one(t, l, path).ID != id {
				t.Error("what is left is another leftover")
			}
		}
	})
	t.Run("wide", func(t *testing.T) {
		dir := fastDir(t)
		path := dir + "/agent"
		const files = 50_000
		must(t, os.MkdirAll(path+"/sub", 0o755))
		sub, err := os.OpenRoot(path + "/sub")
		must(t, err)
		defer sub.Close()
		for i := range files {
			f, err := sub.Create(fmt.Sprintf("%0200d", i))
			must(t, err)
			must(t, f.Close())
		}
		l := leftovers(path)
		id := one(t, l, path).ID
		heap := &heapProbe{Context: t.Context()}
		heap.base = heap.used()
		must(t, l.Remove(heap, id))
		if exists(t, path) {
			t.Error("still there")
		}
		// The names alone are 10 MB.
		const most = 1 << 20
		if heap.probes < 5 || heap.most > most {
			t.Errorf("%d bytes more in use than before, found by %d probes; want at most %d", heap.most, heap.probes, most)
		}
	})
}

// deepen makes a chain of folders and a file at its end, whose short name for this test it returns.
func deepen(t *testing.T, path string, levels int) string {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	end := fmt.Sprintf("/proc/self/fd/%d/f", fd)
	must(t, os.WriteFile(end, nil, 0o600))
	return end
}

// A heapProbe is a context that looks at the heap now and then while it is asked.
type heapProbe struct {
	context.Context
	asked, probes int
	base, most    uint64
}

func (p *heapProbe) used() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func (p *heapProbe) Err() error {
	if p.asked++; p.asked%10_000 == 0 {
		p.probes++
		if used := p.used(); used > p.base {
			p.most = max(p.most, used-p.base)
		}
	}
	return p.Context.Err()
}

// An attacker owns a leftover, and does things to it while it is removed.
type attacker struct {
	dir     string // his own
	path    string // of the leftover in it
	outside string // what he would have removed
	random  *rand.Rand
}

// folder is one in the leftover, with something in it.
func (a *attacker) folder() string {
	name := fmt.Sprintf("d%d/", a.random.IntN(4))
	if a.random.IntN(2) == 0 {
		name += "d1/"
	}
	_ = plant(a.path, name+"f")
	return filepath.Join(a.path, name)
}

// flash has a link in the place of something for a moment.
func (a *attacker) flash(path string) {
	evil := a.dir + "/evil"
	_ = os.Symlink(a.outside, evil)
	exchange(path, evil)
	exchange(path, evil)
	// If the link was removed, what it stood for is still away.
	if info, err := os.Lstat(evil); err == nil && info.IsDir() && os.Rename(evil, path) != nil {
		_ = os.RemoveAll(evil)
	}
}

func exchange(a, b string) {
	_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// TestRemoveUnderAttack has leftovers removed while somebody who owns them does his worst. What is outside stays, and when he
// gives up they go.
func TestRemoveUnderAttack(t *testing.T) {
	const rounds, moves = 30, 500
	for _, tt := range []struct {
		name   string
		attack func(a *attacker)
		once   bool // what comes into its place is not looked for
		root   bool
	}{
		{name: "folders become links (T3)", attack: func(a *attacker) { a.flash(a.folder()) }},
		{name: "it becomes a link (T3)", attack: func(a *attacker) {
			a.folder()
			a.flash(a.path)
		}},
		{name: "a folder on the way becomes a link (T3)", attack: func(a *attacker) {
			a.folder()
			a.flash(filepath.Dir(a.path))
		}},
		{name: "it becomes another folder (T2)", once: true, attack: func(a *attacker) {
			a.folder()
			exchange(a.path, a.outside)
			exchange(a.path, a.outside)
		}},
		{name: "files become folders", attack: func(a *attacker) {
			folder, evil := a.folder(), a.dir+"/evil"
			_ = plant(evil, "x")
			exchange(folder+"/f", evil)
			exchange(folder+"/f", evil)
		}},
		{name: "folders move out, beside what must stay", attack: func(a *attacker) {
			folder, away := a.folder(), a.outside+"/sub/away"
			_ = os.Rename(folder, away)
			if os.Rename(away, folder) != nil {
				_ = os.RemoveAll(away)
			}
		}},
		{name: "it is filled again", attack: func(a *attacker) { a.folder() }},
		{name: "mounts come and go (T4)", root: true, attack: func(a *attacker) {
			if folder := a.folder(); unix.Mount(a.outside, folder, "", unix.MS_BIND, "") == nil {
				_ = unix.Unmount(folder, unix.MNT_DETACH)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				needRoot(t)
			}
			dir := fastDir(t)
			outside := newBystander(t, dir+"/outside")
			// The bystander has folders with the same names.
			a := &attacker{dir, dir + "/root/d0", outside.dir, rand.New(rand.NewPCG(1, 2))}
			l := leftovers(a.path)
			removed, attempts := 0, 0
			for range rounds {
				for range 20 {
					a.folder()
				}
				id := one(t, l, a.path).ID
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for range moves {
						tt.attack(a)
					}
				}()
				for attacked := true; attacked; attempts++ {
					select {
					case <-ended:
						attacked = false
					default:
					}
					all := []watch.Sandbox{{ID: id}}
					if !tt.once {
						all = list(t, l)
					}
					for _, s := range all {
						if l.Remove(t.Context(), s.ID) == nil { // it may well fail
							removed++
						}
					}
				}
				outside.unharmed(t)
				for _, s := range list(t, l) {
					if err := l.Remove(t.Context(), s.ID); err != nil {
						t.Errorf("Remove = %v of what is left alone", err)
					}
				}
				if exists(t, a.path) {
					t.Error("it is still there")
				}
				outside.unharmed(t)
			}
			t.Logf("%d of %d attempts came to an end", removed, attempts)
		})
	}
}
