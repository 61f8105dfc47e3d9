package statedir_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"watcher/platform/statedir"
	"watcher/watch"
)

func TestList(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir,
		"tmp/agent-1/f", "tmp/agent-2", "tmp/agent-3/", "tmp/other", "tmp/.agent-4", "tmp/x-agent-5", "tmp/deep/agent-6",
		"home/ann/.agent/boxes/1/f", "home/ann/.agent/boxes/2/", "home/ann/.agent/boxes/.hidden/", "home/ann/.agent/other/3/",
		"home/bob/.agent/boxes/", "home/cid/.agent", "home/dot/x", "home/.eve/.agent/boxes/4/",
		"real/boxes/5/", "home/fay/", "home/file",
	)
	must(t, os.Symlink(dir+"/real", dir+"/home/fay/.agent"))
	must(t, os.Symlink("ann", dir+"/home/gus"))
	must(t, os.Symlink("/etc/passwd", dir+"/tmp/agent-link"))
	must(t, os.Symlink("nowhere", dir+"/tmp/agent-dangling"))
	must(t, unix.Mkfifo(dir+"/tmp/agent-fifo", 0o600))
	must(t, unix.Mkdir(dir+"/tmp/agent-shut", 0))
	tree(t, dir, "tmp/agent-\nnew\x1b[31m\xff")

	for _, tt := range []struct {
		name  string
		globs []string
		want  []string
	}{
		{"by its name", []string{dir + "/tmp/agent-*"}, []string{
			"/tmp/agent-1", "/tmp/agent-2", "/tmp/agent-3", `/tmp/agent-\nnew\x1b[31m\xff`, "/tmp/agent-dangling", "/tmp/agent-fifo",
			"/tmp/agent-link", "/tmp/agent-shut",
		}},
		{"one letter", []string{dir + "/tmp/agent-?"}, []string{"/tmp/agent-1", "/tmp/agent-2", "/tmp/agent-3"}},
		{"a dot must be said", []string{dir + "/tmp/.*-4"}, []string{"/tmp/.agent-4"}},
		{"no pattern at all", []string{dir + "/tmp/other"}, []string{"/tmp/other"}},
		// Not below .agent of fay, which is a link; nor of gus, who is one; nor of .eve, whom * does not match.
		{"below folders of which none is a link (T3)", []string{dir + "/home/*/.agent/boxes/*"}, []string{
			"/home/ann/.agent/boxes/1", "/home/ann/.agent/boxes/2",
		}},
		{"nothing there", []string{dir + "/tmp/nothing-*", dir + "/no/such/folder/x*", dir + "/tmp/agent-2/x*"}, nil},
		{"twice", []string{dir + "/tmp/agent-1", dir + "/tmp/agent-?", dir + "/t*/agent-1"}, []string{
			"/tmp/agent-1", "/tmp/agent-2", "/tmp/agent-3",
		}},
		// boxes itself would be a leftover by the first, but the second leads through it; ann by the third.
		{"a root of another glob stays (T1)", []string{dir + "/home/*/.agent/*", dir + "/home/*/.agent/boxes/1", dir + "/home/[a]nn", dir + "/home/a*"}, []string{
			"/home/ann/.agent/boxes/1", "/home/ann/.agent/other",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var want []string
			for _, path := range tt.want {
				want = append(want, dir+path)
			}
			got := paths(list(t, leftovers(tt.globs...)))
			slices.Sort(got)
			slices.Sort(want)
			if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestListTellsOfEach(t *testing.T) {
	dir := t.TempDir()
	before := time.Now()
	tree(t, dir, "agent-1/f")
	after := time.Now()
	l := leftovers(dir + "/agent-*")
	asked := time.Now()
	events, err := l.List(t.Context())
	must(t, err)
	listed := events[0].(watch.Listed)
	if listed.Kind != watch.File || l.Kind() != watch.File || listed.Asked.Before(asked) || listed.Asked.After(time.Now()) {
		t.Errorf("listed %v, asked at %v", listed.Kind, listed.Asked)
	}
	got := one(t, l, dir+"/agent-1")
	if got.ID.Kind != watch.File || !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(got.ID.Name) {
		t.Errorf("ID %v", got.ID)
	}
	// The kernel stamps with the time of its last tick.
	const tick = 20 * time.Millisecond
	if got.Created.Before(before.Add(-tick)) || got.Created.After(after) {
		t.Errorf("created %v, want between %v and %v", got.Created, before, after)
	}
	want := watch.Sandbox{
		ID: got.ID, Name: dir + "/agent-1", State: watch.Stopped, Created: got.Created,
		Terms:  watch.Terms{Rule: "agents", Owners: []watch.Claim{{Kind: watch.ProgramClaim, Program: program}}},
		Leaves: []watch.Leaf{{Kind: "file", Name: dir + "/agent-1"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := l.Stop(got.ID, watch.Kill); err == nil {
		t.Error("Stop says that it did something")
	}
}

func TestRules(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "agent-1", "agent-2")
	rule := func(name, process string, files ...string) watch.Rule {
		return watch.Rule{Name: name, Owner: watch.Evidence{Process: process}, Files: files}
	}
	for _, tt := range []struct {
		name  string
		rules *watch.Rules
		want  []string
	}{
		{"none", nil, nil},
		{"no files", &watch.Rules{List: []watch.Rule{rule("a", "x")}}, nil},
		{"no owner", &watch.Rules{List: []watch.Rule{rule("a", "", dir+"/agent-*")}}, nil},
		{"the first that matches", &watch.Rules{List: []watch.Rule{
			rule("a", "", dir+"/agent-*"), rule("b", "x", dir+"/agent-1"), rule("c", "y", dir+"/agent-*"),
		}}, []string{"b x agent-1", "c y agent-2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := statedir.NewLeftovers()
			if n := len(list(t, l)); n != 0 {
				t.Errorf("%d leftovers before there are rules", n)
			}
			l.SetRules(tt.rules)
			got := []string{}
			for _, s := range list(t, l) {
				got = append(got, s.Terms.Rule+" "+s.Terms.Owners[0].Program+" "+filepath.Base(s.Name))
			}
			if diff := cmp.Diff(append([]string{}, tt.want...), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestSetRulesMeanwhile is for the race detector.
func TestSetRulesMeanwhile(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "agent-1/f", "agent-2/f")
	l := leftovers(dir + "/agent-*")
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 50 {
				l.SetRules(&watch.Rules{List: []watch.Rule{{Name: "x", Owner: watch.Evidence{Process: program}, Files: []string{dir + "/agent-*"}}}})
			}
		})
		all.Go(func() {
			for range 50 {
				events, err := l.List(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				_ = l.Remove(context.Background(), events[0].(watch.Listed).Sandboxes[0].ID)
				_ = plant(dir, "agent-1/f")
				_ = plant(dir, "agent-2/f")
			}
		})
	}
	all.Wait()
}

// TestAnUnreadableSetIsNoEmptySet guards T7.
func TestAnUnreadableSetIsNoEmptySet(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/tmp", 0o755))
	tree(t, dir, "home/ann/.agent/1", "home/bob/.agent/2", "tmp/agent-1")
	fails := func(t *testing.T, l *statedir.Leftovers, want error) {
		t.Helper()
		if events, err := l.List(t.Context()); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("List = %v, %v; want %v", events, err, want)
		}
	}
	all := leftovers(dir+"/home/*/.agent/*", dir+"/tmp/agent-*")

	t.Run("a bad glob", func(t *testing.T) { fails(t, leftovers(dir+"/tmp/agent-*", "/tmp/*"), nil) })
	t.Run("an ended context", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		cancel(cause)
		if _, err := all.List(ctx); !errors.Is(err, cause) {
			t.Errorf("List = %v, want the cause of its context's end", err)
		}
	})
	t.Run("no descriptors", func(t *testing.T) {
		whole := len(list(t, all))
		for some := 0; ; some++ {
			restore := limitDescriptors(t, some)
			events, err := all.List(t.Context())
			restore()
			if err == nil {
				if got := len(events[0].(watch.Listed).Sandboxes); got != whole {
					t.Errorf("with %d descriptors: %d leftovers, want %d or an error", some, got, whole)
				}
				break
			}
			if !errors.Is(err, unix.EMFILE) {
				t.Errorf("with %d descriptors: List = %v, want %v", some, err, unix.EMFILE)
			}
		}
	})
	t.Run("no right to read", func(t *testing.T) {
		needRoot(t)
		must(t, os.Chmod(dir, 0o755))
		must(t, os.Chmod(filepath.Dir(dir), 0o755))
		must(t, os.Chmod(dir+"/home/bob/.agent", 0o700))
		// This thread alone becomes somebody else, who has no rights over files.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer func() { _, _ = unix.SetfsuidRetUid(0) }()
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Fatal(err)
		}
		fails(t, all, unix.EACCES)
	})
}

// limitDescriptors leaves this process only some descriptors that it has not opened yet.
func limitDescriptors(t *testing.T, some int) (restore func()) {
	t.Helper()
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	limit := before
	limit.Cur = 1000
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	var filled []int
	for {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		must(t, err)
		filled = append(filled, fd)
	}
	free := func(fds []int) {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
	free(filled[:some])
	var once sync.Once
	restore = func() {
		once.Do(func() {
			free(filled[some:])
			must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
		})
	}
	t.Cleanup(restore)
	return restore
}

// TestAFileSystemOfOneUser shows that nobody can make the list fail by what he mounts in his own folder.
func TestAFileSystemOfOneUser(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "home/ann/.agent/boxes/1", "home/bob/.agent/boxes/2", "home/cid/.agent/boxes/", "home/dan/")
	for _, at := range []string{"/home/bob/.agent/boxes", "/home/cid/.agent/boxes/3", "/home/dan"} {
		device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EACCES) {
			t.Skipf("no FUSE here: %v", err)
		}
		must(t, err)
		defer unix.Close(device)
		mount(t, "fuse", dir+at, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=65534,group_id=65534", device))
	}
	l := leftovers(dir + "/home/*/.agent/boxes/*")
	if got, want := paths(list(t, l)), []string{dir + "/home/ann/.agent/boxes/1"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

func TestIDNamesOneIncarnation(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/agent-1"
	l := leftovers(dir + "/agent-*")
	tree(t, dir, "agent-1/f")
	first := one(t, l, path)

	tree(t, dir, "agent-1/g", "agent-1/sub/")
	must(t, os.Chmod(path, 0o700))
	must(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	if again := one(t, leftovers(dir+"/agent-*"), path); again.ID != first.ID || !again.Created.Equal(first.Created) {
		t.Errorf("changed, it is %v of %v; was %v of %v", again.ID, again.Created, first.ID, first.Created)
	}

	must(t, os.Rename(path, dir+"/agent-2"))
	if renamed := one(t, l, dir+"/agent-2"); renamed.ID == first.ID {
		t.Error("another path, and the same ID")
	}
	must(t, os.Rename(dir+"/agent-2", path))
	seen := map[watch.ID]bool{first.ID: true}
	for range 3 {
		must(t, os.RemoveAll(path))
		tick(t, dir)
		tree(t, dir, "agent-1/f") // ext4 gives it the same inode
		id := one(t, l, path).ID
		if seen[id] {
			t.Fatal("another folder, and the same ID (T2)")
		}
		seen[id] = true
	}
}

// tick returns when the clock by which files are stamped has gone on.
func tick(t *testing.T, dir string) {
	t.Helper()
	stamp := func() time.Time {
		f, err := os.CreateTemp(dir, "tick")
		must(t, err)
		defer os.Remove(f.Name())
		defer f.Close()
		info, err := f.Stat()
		must(t, err)
		return info.ModTime()
	}
	for first := stamp(); !stamp().After(first); {
	}
}

// TestCreated shows what file systems know of a birth, and that nothing ever seems older than it is.
func TestCreated(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	for _, tt := range []struct {
		name  string
		since string // the Linux that first knew it there
		mount func(t *testing.T, dir string)
		birth bool
	}{
		{"tmpfs", "5.18", func(t *testing.T, dir string) { mount(t, "none", dir, "tmpfs", 0, "") }, true},
		{"ext4", "", func(t *testing.T, dir string) { mountImage(t, dir, "mkfs.ext4") }, true},
		{"ext2 with small inodes", "", func(t *testing.T, dir string) { mountImage(t, dir, "mkfs.ext2", "-I", "128") }, false},
		{"overlay", "", func(t *testing.T, dir string) {
			under := t.TempDir()
			mount(t, "none", under, "tmpfs", 0, "")
			tree(t, under, "lower/", "upper/", "work/")
			mount(t, "none", dir, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", under))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "m")
			tt.mount(t, dir)
			// ext2 has seconds, the kernel's own stamps are a tick late.
			before := time.Now().Add(-20 * time.Millisecond).Truncate(time.Second)
			tree(t, dir, "agent-1/")
			path, l := dir+"/agent-1", leftovers(dir+"/agent-*")
			first := one(t, l, path)
			if first.Created.Before(before) || first.Created.After(time.Now()) {
				t.Errorf("created %v, want later than %v and not in the future", first.Created, before)
			}
			if first.InUse {
				t.Error("in use")
			}
			later := time.Now().Add(time.Hour).Truncate(time.Second)
			must(t, os.Chtimes(path, later, later))
			second := one(t, l, path)
			switch knows := second.Created.Equal(first.Created) && second.ID == first.ID; {
			case !tt.birth && !second.Created.Equal(later):
				t.Errorf("created %v, want %v: nothing else is known, and it must not seem older than it is", second.Created, later)
			case tt.birth && !knows && tt.since != "" && kernelBefore(t, tt.since):
				t.Skipf("Linux before %s", tt.since)
			case tt.birth && !knows:
				t.Errorf("created %v, and after a change %v", first.Created, second.Created)
			}
			long := time.Unix(1, 0)
			must(t, os.Chtimes(path, long, long))
			if third := one(t, l, path); third.Created.Before(before) {
				t.Errorf("created %v, because somebody says so; want later than %v", third.Created, before)
			}
			must(t, l.Remove(t.Context(), one(t, l, path).ID))
			if exists(t, path) {
				t.Error("still there")
			}
		})
	}
}

func kernelBefore(t *testing.T, version string) bool {
	t.Helper()
	var name unix.Utsname
	must(t, unix.Uname(&name))
	number := func(s string) (n int) {
		var major, minor int
		_, err := fmt.Sscanf(s, "%d.%d", &major, &minor)
		must(t, err)
		return major*1000 + minor
	}
	return number(unix.ByteSliceToString(name.Release[:])) < number(version)
}

// TestInUse also shows that nothing in use is removed (T5).
func TestInUse(t *testing.T) {
	flock := func(how int) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			must(t, unix.Flock(open(t, path), how))
		}
	}
	const inUse = true
	for _, tt := range []struct {
		name  string
		make  func(t *testing.T, path string)
		inUse bool
	}{
		{"a file", func(t *testing.T, path string) { tree(t, path, "../agent") }, false},
		{"an empty folder", func(t *testing.T, path string) { tree(t, path, "./") }, false},
		{"a folder", func(t *testing.T, path string) { tree(t, path, "f", "sub/f") }, false},
		{"a dangling link", func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }, false},
		{"a pipe", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }, false},
		{"a pipe in it", func(t *testing.T, path string) {
			tree(t, path, "./")
			must(t, unix.Mkfifo(path+"/p", 0o600))
		}, false},
		{"a dead socket", deadSocket, false},
		{"a dead socket in it", func(t *testing.T, path string) {
			tree(t, path, "f")
			deadSocket(t, path+"/s")
		}, false},
		{"a listener", func(t *testing.T, path string) { listener(t, path) }, inUse},
		{"a listener in it", func(t *testing.T, path string) {
			tree(t, path, "f")
			listener(t, path+"/proxy.sock")
		}, inUse},
		{"a listener with a long name", func(t *testing.T, path string) {
			tree(t, path, "f")
			name := strings.Repeat("s", 60)
			socket(t, path+"/"+name, unix.SOCK_DGRAM)
			must(t, os.Rename(path+"/"+name, path+"/"+strings.Repeat(name, 4)))
		}, inUse},
		{"a socket for datagrams", func(t *testing.T, path string) { socket(t, path, unix.SOCK_DGRAM) }, inUse},
		{"a socket for packets", func(t *testing.T, path string) { socket(t, path, unix.SOCK_SEQPACKET) }, inUse},
		{"a socket on which nobody listens yet", func(t *testing.T, path string) { socket(t, path, unix.SOCK_STREAM) }, inUse},
		{"a listener deep in it", func(t *testing.T, path string) {
			tree(t, path, "sub/")
			listener(t, path+"/sub/s")
		}, false},
		{"a link to a listener", func(t *testing.T, path string) {
			tree(t, path, "./")
			listener(t, path+"/../s")
			must(t, os.Symlink("../s", path+"/s"))
		}, false},
		{"a lock", func(t *testing.T, path string) {
			tree(t, path, "../agent")
			flock(unix.LOCK_EX)(t, path)
		}, inUse},
		{"a shared lock", func(t *testing.T, path string) {
			tree(t, path, "../agent")
			flock(unix.LOCK_SH)(t, path)
		}, inUse},
		{"a lock that was given back", func(t *testing.T, path string) {
			tree(t, path, "../agent")
			fd := open(t, path)
			must(t, unix.Flock(fd, unix.LOCK_EX))
			must(t, unix.Flock(fd, unix.LOCK_UN))
		}, false},
		{"a lock on a file in it", func(t *testing.T, path string) {
			tree(t, path, "a", "lock", "z")
			flock(unix.LOCK_EX)(t, path+"/lock")
		}, inUse},
		{"a shared lock on a file in it", func(t *testing.T, path string) {
			tree(t, path, "a", "lock", "z")
			flock(unix.LOCK_SH)(t, path+"/lock")
		}, inUse},
		{"a lock on the folder", func(t *testing.T, path string) {
			tree(t, path, "f")
			unlock, err := statedir.Lock(path)
			must(t, err)
			t.Cleanup(func() { _ = unlock() })
		}, inUse},
		{"a lock of fcntl", func(t *testing.T, path string) {
			tree(t, path, "lock")
			f, err := os.OpenFile(path+"/lock", os.O_RDWR, 0)
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
			// One byte far behind the end, and only against writers: as SQLite does it.
			must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 1 << 30, Len: 1}))
		}, inUse},
		{"a mount", func(t *testing.T, path string) { mount(t, "none", path, "tmpfs", 0, "") }, inUse},
		{"a mount deep in it", func(t *testing.T, path string) {
			tree(t, path, "a/b/c/")
			mount(t, "none", path+"/a/b/c", "tmpfs", 0, "")
		}, inUse},
		{"a mount at a name with spaces", func(t *testing.T, path string) {
			mount(t, "none", path+"/a b\t\\\nc", "tmpfs", 0, "")
		}, inUse},
		{"a file mounted over one in it", func(t *testing.T, path string) {
			tree(t, path, "f", "../g")
			mount(t, path+"/../g", path+"/f", "", unix.MS_BIND, "")
		}, inUse},
		{"it is mounted elsewhere", func(t *testing.T, path string) {
			tree(t, path, "f")
			mount(t, path, path+"/../elsewhere", "", unix.MS_BIND, "")
		}, inUse},
		{"a part of it is mounted elsewhere", func(t *testing.T, path string) {
			tree(t, path, "a b/c/f")
			mount(t, path+"/a b/c", path+"/../elsewhere", "", unix.MS_BIND, "")
		}, inUse},
		{"the folder it is in is mounted elsewhere", func(t *testing.T, path string) {
			tree(t, path, "f")
			mount(t, filepath.Dir(path), t.TempDir(), "", unix.MS_BIND, "")
		}, false},
		{"a neighbour with a longer name is mounted", func(t *testing.T, path string) {
			tree(t, path, "f")
			mount(t, "none", path+"2", "tmpfs", 0, "")
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// A socket's path is short.
			dir, err := os.MkdirTemp("", "left")
			must(t, err)
			t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
			path := dir + "/agent"
			tt.make(t, path)
			before := snapshot(t, dir)
			l := leftovers(dir + "/agent")
			s := one(t, l, path)
			if s.InUse != tt.inUse {
				t.Errorf("InUse = %t, want %t", s.InUse, tt.inUse)
			}
			err = l.Remove(t.Context(), s.ID)
			if errors.Is(err, statedir.ErrInUse) != tt.inUse || (err == nil) == tt.inUse {
				t.Errorf("Remove = %v", err)
			}
			if tt.inUse {
				if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
					t.Error(diff)
				}
			} else if exists(t, path) {
				t.Error("still there")
			}
		})
	}
}

func TestALease(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "agent/f")
	f, err := os.OpenFile(dir+"/agent/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	signal.Ignore(unix.SIGIO) // which says that somebody wants to read
	defer signal.Reset(unix.SIGIO)
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	must(t, err)
	if !one(t, leftovers(dir+"/agent"), dir+"/agent").InUse {
		t.Error("not in use")
	}
}

// listener listens and makes sure that it is not disturbed.
func listener(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	t.Cleanup(func() {
		must(t, l.SetDeadline(time.Now().Add(-time.Second)))
		if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Accept = %v: a look at a socket is not to be noticed", err)
		}
		_ = l.Close()
	})
}

// TestALookIsShort shows that a folder full of files does not hold up a list, and that nothing goes before all of it was
// looked at.
func TestALookIsShort(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/agent"
	for i := range 1200 {
		tree(t, path, fmt.Sprintf("f%d", i))
	}
	d, err := os.Open(path)
	must(t, err)
	defer d.Close()
	names, err := d.Readdirnames(0)
	must(t, err)
	last := path + "/" + names[len(names)-1]
	must(t, unix.Flock(open(t, last), unix.LOCK_SH))
	l := leftovers(path)
	s := one(t, l, path)
	if s.InUse {
		t.Error("a list looked at all of it")
	}
	if err := l.Remove(t.Context(), s.ID); !errors.Is(err, statedir.ErrInUse) {
		t.Errorf("Remove = %v, want %v", err, statedir.ErrInUse)
	}
	if got := len(snapshot(t, path)); got != 1201 {
		t.Errorf("%d things are left, want all", got)
	}
}

// TestWhatCannotBeLookedAtMayBeInUse guards T5.
func TestWhatCannotBeLookedAtMayBeInUse(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	tree(t, dir, "agent-folder/f", "agent-file", "agent-file-in-folder/f")
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	for _, path := range []string{"/agent-folder", "/agent-file", "/agent-file-in-folder/f"} {
		must(t, os.Chmod(dir+path, 0o700))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() { _, _ = unix.SetfsuidRetUid(0) }()
	if _, err := unix.SetfsuidRetUid(65534); err != nil {
		t.Fatal(err)
	}
	l := leftovers(dir + "/agent-*")
	for _, s := range list(t, l) {
		if !s.InUse {
			t.Errorf("%s is not in use, and nobody could look", s.Name)
		}
		if err := l.Remove(t.Context(), s.ID); !errors.Is(err, statedir.ErrInUse) {
			t.Errorf("Remove = %v, want %v", err, statedir.ErrInUse)
		}
	}
}

// TestMountsBelowStrangeNames shows that mounts are found whatever mountinfo makes of a name.
func TestMountsBelowStrangeNames(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/a b\t\\040\n#c"
	l := leftovers(dir + "/a*")
	tree(t, path, "m/")
	if s := list(t, l)[0]; s.InUse {
		t.Error("in use without a mount")
	}
	t.Run("in it", func(t *testing.T) {
		mount(t, "none", path+"/m", "tmpfs", 0, "")
		if s := list(t, l)[0]; !s.InUse {
			t.Error("not in use")
		}
	})
	t.Run("elsewhere", func(t *testing.T) {
		mount(t, path+"/m", t.TempDir(), "", unix.MS_BIND, "")
		if s := list(t, l)[0]; !s.InUse {
			t.Error("not in use")
		}
	})
}
