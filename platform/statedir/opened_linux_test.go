package statedir_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/statedir"
)

func openFolder(t *testing.T, path string) *statedir.Folder {
	t.Helper()
	f, err := statedir.OpenFolder(path)
	must(t, err)
	t.Cleanup(f.Close)
	return f
}

func TestReadFile(t *testing.T) {
	const most = 64
	dir := t.TempDir()
	tree(t, dir, "vm/fits", "vm/folder/", "vm/empty")
	must(t, os.WriteFile(dir+"/vm/empty", nil, 0o600))
	must(t, os.WriteFile(dir+"/vm/full", []byte(strings.Repeat("x", most)), 0o600))
	must(t, os.WriteFile(dir+"/vm/over", []byte(strings.Repeat("x", most+1)), 0o600))
	must(t, os.WriteFile(dir+"/vm/giant", nil, 0o600))
	must(t, os.Truncate(dir+"/vm/giant", 1<<30))
	must(t, os.Symlink("fits", dir+"/vm/link"))
	must(t, os.Symlink("/etc/shadow", dir+"/vm/shadow"))
	must(t, os.Symlink("/dev/zero", dir+"/vm/zero"))
	must(t, unix.Mkfifo(dir+"/vm/fifo", 0o600))
	deadSocket(t, dir+"/vm/socket")
	f := openFolder(t, dir+"/vm")
	for _, tt := range []struct {
		name string
		data string
		want error
	}{
		{"fits", "vm/fits", nil},
		{"empty", "", nil},
		{"full", strings.Repeat("x", most), nil},
		{"over", "", statedir.ErrNoFile},
		{"giant", "", statedir.ErrNoFile},
		{"folder", "", statedir.ErrNoFile},
		{"link", "", statedir.ErrNoFile},
		{"shadow", "", statedir.ErrNoFile},
		{"zero", "", statedir.ErrNoFile},
		{"fifo", "", statedir.ErrNoFile},
		{"socket", "", statedir.ErrNoFile},
		{"nothing", "", fs.ErrNotExist},
		{"fits/x", "", statedir.ErrNoFile},
	} {
		file, err := f.ReadFile(tt.name, most)
		if string(file.Data) != tt.data || !errors.Is(err, tt.want) || err == nil && (file.Owner != uint32(os.Geteuid()) || time.Since(file.Modified) > time.Minute) {
			t.Errorf("%s: %q of %d at %v (%v), want %q (%v)", tt.name, file.Data, file.Owner, file.Modified, err, tt.data, tt.want)
		}
	}
	// What is read is in the folder that was opened, whatever has its path by now.
	must(t, os.Rename(dir+"/vm", dir+"/old"))
	tree(t, dir, "vm/other")
	if _, err := f.ReadFile("fits", most); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadFile("other", most); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it reads in another folder: %v", err)
	}
}

func TestOpenFolder(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "vm/data/", "vm/file")
	must(t, os.Symlink("data", dir+"/vm/link"))
	must(t, os.Symlink("vm", dir+"/way"))
	for _, name := range []string{"/nothing", "/vm/file", "/vm/link", "/way/data", "/way"} {
		if f, err := statedir.OpenFolder(dir + name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
	f := openFolder(t, dir+"/vm")
	var names []string
	must(t, f.Names(t.Context(), func(name string) error {
		names = append(names, name)
		return nil
	}))
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "data file link" {
		t.Error(got)
	}
	if f.Incarnation() != incarnation(t, dir+"/vm") || f.Owner() != uint32(os.Geteuid()) || time.Since(f.Born()) > time.Minute || f.Path() != dir+"/vm" {
		t.Errorf("%+v", f)
	}
	for _, name := range []string{"link", "file", "nothing"} {
		if sub, err := f.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v", name, sub, err)
		}
	}
	sub, err := f.Open("data")
	must(t, err)
	sub.Close()
}

func TestLockOfAFile(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "vm/lock", "vm/held", "vm/folder/")
	must(t, os.Symlink("lock", dir+"/vm/link"))
	must(t, unix.Mkfifo(dir+"/vm/fifo", 0o600))
	f := openFolder(t, dir+"/vm")
	unlock, err := f.Lock(t.Context(), "lock")
	must(t, err)
	soon, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
	defer cancel()
	if _, err := f.Lock(soon, "lock"); !errors.Is(err, statedir.ErrInUse) {
		t.Errorf("a lock is taken twice: %v", err)
	}
	unlock()
	for name, want := range map[string]bool{"lock": false, "held": true} {
		fd := open(t, dir+"/vm/"+name)
		if want {
			must(t, unix.Flock(fd, unix.LOCK_SH))
		}
		if got, err := f.Locked(name); err != nil || got != want {
			t.Errorf("%s is locked: %v (%v)", name, got, err)
		}
		must(t, unix.Flock(fd, unix.LOCK_UN))
	}
	// It is waited for.
	held := open(t, dir+"/vm/held")
	must(t, unix.Flock(held, unix.LOCK_EX))
	go func() {
		<-soon.Done()
		_ = unix.Flock(held, unix.LOCK_UN)
	}()
	unlock, err = f.Lock(t.Context(), "held")
	must(t, err)
	unlock()
	for name, want := range map[string]error{"nothing": fs.ErrNotExist, "link": statedir.ErrNoFile, "fifo": statedir.ErrNoFile, "folder": statedir.ErrNoFile} {
		if _, err := f.Lock(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if _, err := f.Locked(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// TestRemoveOwned guards T9: what one user planted costs no other user anything.
func TestRemoveOwned(t *testing.T) {
	needRoot(t)
	const ann, bob = 4001, 4002
	chown := func(t *testing.T, path string, uid int) {
		t.Helper()
		must(t, filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, uid, uid))
		}))
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, vm string)
		uid  uint32
		left string // what must be left below the folder
	}{
		{"her own", func(t *testing.T, vm string) {
			tree(t, vm, "data/a/f", "log")
			chown(t, vm, ann)
		}, ann, ""},
		{"files of others in her folders", func(t *testing.T, vm string) {
			tree(t, vm, "data/f", "data/empty/")
			chown(t, vm, ann)
			chown(t, vm+"/data/f", bob)
			chown(t, vm+"/data/empty", bob)
		}, ann, ""},
		{"a folder of another, moved there with what is in it", func(t *testing.T, vm string) {
			tree(t, vm, "data/his/secret/thesis", "log")
			chown(t, vm, ann)
			chown(t, vm+"/data/his", bob)
		}, ann, "/data/his/secret/thesis"},
		{"hers in his in hers", func(t *testing.T, vm string) {
			tree(t, vm, "data/his/hers/f")
			chown(t, vm, ann)
			must(t, os.Lchown(vm+"/data/his", bob, bob))
		}, ann, "/data/his/hers/f"},
		{"root's, moved there", func(t *testing.T, vm string) {
			tree(t, vm, "shared/f")
			chown(t, vm, ann)
			chown(t, vm+"/shared", 0)
		}, ann, "/shared/f"},
		{"not hers", func(t *testing.T, vm string) {
			tree(t, vm, "f")
			chown(t, vm, bob)
		}, ann, "/f"},
		{"root's own, of which users have parts", func(t *testing.T, vm string) {
			tree(t, vm, "data/home/f")
			chown(t, vm+"/data/home", ann)
		}, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vm := t.TempDir() + "/vms/vm"
			tree(t, vm, "./")
			tt.make(t, vm)
			err := statedir.RemoveOwned(t.Context(), tt.uid, vm, incarnation(t, vm))
			if (err == nil) != (tt.left == "") || tt.left == "" && exists(t, vm) || tt.left != "" && (!exists(t, vm+tt.left) || !errors.Is(err, unix.EPERM)) {
				t.Errorf("RemoveOwned = %v, %s is to be left", err, tt.left)
			}
		})
	}
}
