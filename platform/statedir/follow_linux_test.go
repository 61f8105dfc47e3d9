package statedir_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/platform/statedir"
)

// A journal has what a follower told.
type journal struct {
	mu      sync.Mutex
	changes []statedir.Change
	lost    []error
	news    chan struct{}
}

func startFollower(t *testing.T) (*statedir.Follower, *journal) {
	t.Helper()
	l := &journal{news: make(chan struct{}, 1)}
	note := func(add func()) {
		l.mu.Lock()
		add()
		l.mu.Unlock()
		select {
		case l.news <- struct{}{}:
		default:
		}
	}
	f := statedir.NewFollower(
		func(c statedir.Change) { note(func() { l.changes = append(l.changes, c) }) },
		func(err error) { note(func() { l.lost = append(l.lost, err) }) },
	)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return f, l
}

// await waits until something was told, and forgets what was told before.
func (l *journal) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		l.mu.Lock()
		ok := is()
		if ok {
			l.changes, l.lost = nil, nil
		}
		l.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-l.news:
		case <-late:
			t.Fatalf("not told: %s; but %v, %v", what, l.changes, l.lost)
		}
	}
}

func (l *journal) awaitChange(t *testing.T, c statedir.Change) {
	t.Helper()
	l.await(t, c.Path, func() bool { return slices.Contains(l.changes, c) })
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "vms/a/", "other/")
	f, told := startFollower(t)
	f.Follow([]string{dir + "/vms", dir + "/nothing", dir + "/vms/a"})
	// What happened before it was followed shows now.
	told.await(t, "both folders", func() bool {
		return slices.Contains(told.changes, statedir.Change{Path: dir + "/vms"}) && slices.Contains(told.changes, statedir.Change{Path: dir + "/vms/a"})
	})
	tree(t, dir, "vms/b/")
	told.awaitChange(t, statedir.Change{Path: dir + "/vms/b"})
	must(t, os.WriteFile(dir+"/vms/a/sentinel", []byte("1"), 0o600))
	told.awaitChange(t, statedir.Change{Path: dir + "/vms/a/sentinel", Written: true})
	must(t, os.WriteFile(dir+"/vms/a/new", []byte("1"), 0o600))
	must(t, os.Rename(dir+"/vms/a/new", dir+"/vms/a/state"))
	told.awaitChange(t, statedir.Change{Path: dir + "/vms/a/state"})
	must(t, os.RemoveAll(dir+"/vms/a"))
	told.awaitChange(t, statedir.Change{Path: dir + "/vms/a"})
	// The same path again is another folder, and is followed when that is asked for again.
	tree(t, dir, "vms/a/", "nothing/")
	f.Follow([]string{dir + "/vms/a", dir + "/nothing"})
	told.await(t, "both folders", func() bool {
		return slices.Contains(told.changes, statedir.Change{Path: dir + "/vms/a"}) && slices.Contains(told.changes, statedir.Change{Path: dir + "/nothing"})
	})
	// What is not followed any more is not told.
	tree(t, dir, "vms/c/")
	tree(t, dir, "nothing/last")
	told.await(t, "last", func() bool {
		if slices.Contains(told.changes, statedir.Change{Path: dir + "/vms/c"}) {
			t.Error("told of a folder that is not followed")
		}
		return slices.Contains(told.changes, statedir.Change{Path: dir + "/nothing/last"})
	})
}

func TestFollowTellsOfAnOverflow(t *testing.T) {
	dir := t.TempDir()
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	if got := strings.TrimSpace(string(limit)); len(got) > 5 {
		t.Skipf("NOT RUN: the queue has room for %s events", got)
	}
	hold := make(chan struct{})
	var once sync.Once
	lost := make(chan error, 10)
	f := statedir.NewFollower(func(statedir.Change) { <-hold }, func(err error) { lost <- err })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	defer func() {
		once.Do(func() { close(hold) })
		stop()
		<-done
	}()
	f.Follow([]string{dir})
	// Whoever is told is busy; the first change is that the folder is followed, so it is by now once files appear.
	for i := range 40000 {
		path := filepath.Join(dir, string(rune('a'+i%2)))
		must(t, os.WriteFile(path, nil, 0o600))
		must(t, os.Remove(path))
	}
	once.Do(func() { close(hold) })
	for _, want := range []bool{true, false} {
		select {
		case err := <-lost:
			if (err != nil) != want {
				t.Fatalf("lost: %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("an overflow is not told")
		}
	}
}

func TestFollowTellsOfTheLimit(t *testing.T) {
	needRoot(t)
	// In a user namespace the limit is ours alone.
	const sysctl, inside = "/proc/sys/user/max_inotify_watches", "WATCHER_FOLLOW_LIMIT"
	if os.Getenv(inside) == "" {
		child := exec.Command("/proc/self/exe", "-test.run=^TestFollowTellsOfTheLimit$", "-test.v")
		child.Env = append(os.Environ(), inside+"=1")
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: all, GidMappings: all}
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	before, err := os.ReadFile(sysctl)
	must(t, err)
	dir := t.TempDir()
	tree(t, dir, "a/", "b/")
	f, told := startFollower(t)
	f.Follow([]string{dir + "/a"})
	told.awaitChange(t, statedir.Change{Path: dir + "/a"})
	must(t, os.WriteFile(sysctl, []byte("1"), 0))
	restore := sync.OnceFunc(func() { must(t, os.WriteFile(sysctl, before, 0)) })
	defer restore()
	f.Follow([]string{dir + "/a", dir + "/b"})
	told.await(t, "the limit", func() bool {
		return slices.ContainsFunc(told.lost, func(err error) bool {
			return err != nil && strings.Contains(err.Error(), "fs.inotify.max_user_watches")
		})
	})
	restore()
	// What was followed is followed still, and the rest when it is tried again.
	tree(t, dir, "a/x")
	told.awaitChange(t, statedir.Change{Path: dir + "/a/x"})
	f.Follow([]string{dir + "/a", dir + "/b"})
	told.await(t, "that nothing is missed", func() bool { return slices.Contains(told.lost, nil) })
}

func TestNearest(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "home/ann/.config/broodbox/vms/vm/", "home/bob/.config/", "home/cid/", "home/file", "root/")
	must(t, os.Symlink("ann", dir+"/home/link"))
	got, err := statedir.Nearest(t.Context(), []string{dir + "/home/*/.config/broodbox/vms", dir + "/root/.config/broodbox/vms", dir + "/nothing/vms"})
	must(t, err)
	var want []string
	for _, path := range []string{"", "/home", "/home/bob/.config", "/home/cid", "/root"} {
		want = append(want, dir+path)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := statedir.Nearest(t.Context(), []string{dir + "/home/ann/.config/broodbox/vms"}); err != nil || got != nil {
		t.Errorf("%q, %v: nothing can change what it names but that it goes, which is told by itself", got, err)
	}
}
