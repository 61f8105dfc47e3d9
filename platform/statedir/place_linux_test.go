package statedir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnter guards T4 where a mount comes between the look at a folder and its opening: the kernel's EBUSY comes too early
// then.
func TestEnter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	for _, sub := range []string{"top/folder", "top/bound", "top/tmpfs", "outside"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../outside", dir+"/top/link"); err != nil {
		t.Fatal(err)
	}
	for at, from := range map[string]string{"/top/bound": dir + "/outside", "/top/tmpfs": ""} {
		var kind string
		var flags uintptr = unix.MS_BIND
		if from == "" {
			kind, flags = "tmpfs", 0
		}
		if err := unix.Mount(from, dir+at, kind, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir+at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	top, err := os.Open(dir + "/top")
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	place, err := placeOf(int(top.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	r := &removal{top: int(top.Fd()), place: place}
	for name, want := range map[string]error{
		"folder": nil, "bound": unix.EXDEV, "tmpfs": unix.EXDEV, "link": unix.ENOTDIR, "nothing": unix.ENOENT,
	} {
		sub, err := r.enter(int(top.Fd()), name)
		if !errors.Is(err, want) {
			t.Errorf("enter %s: %v, want %v", name, err, want)
		}
		if err == nil {
			_ = sub.Close()
		}
	}
}

// TestMountOf compares the two ways to learn the ID of a mount.
func TestMountOf(t *testing.T) {
	for _, path := range []string{"/", "/proc", "/dev", t.TempDir()} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var s unix.Statx_t
		if err := statx(int(f.Fd()), &s); err != nil {
			t.Fatal(err)
		}
		if s.Mask&unix.STATX_MNT_ID == 0 {
			t.Skip("Linux before 5.8")
		}
		if got, err := mountOf(int(f.Fd())); err != nil || got != s.Mnt_id {
			t.Errorf("%s: mount %d, %v; statx says %d", path, got, err, s.Mnt_id)
		}
	}
}

// TestBorn shows what counts where the time of birth is not known, or nonsense.
func TestBorn(t *testing.T) {
	at := func(sec int64) unix.StatxTimestamp { return unix.StatxTimestamp{Sec: sec} }
	for _, tt := range []struct {
		name                 string
		mask                 uint32
		birth, change, mtime int64
		want                 int64
		known                bool
	}{
		{"known", unix.STATX_BTIME, 10, 20, 30, 10, true},
		{"not known", 0, 10, 20, 15, 20, false},
		{"not known, modified in the future", 0, 10, 20, 30, 30, false},
		{"older than the noting of births", unix.STATX_BTIME, 0, 20, 15, 20, false},
	} {
		e := &entry{stat: unix.Statx_t{Mask: tt.mask, Btime: at(tt.birth), Ctime: at(tt.change), Mtime: at(tt.mtime)}}
		if born, known := e.born(); born.Unix() != tt.want || known != tt.known {
			t.Errorf("%s: born at %d, %t; want %d, %t", tt.name, born.Unix(), known, tt.want, tt.known)
		}
	}
}
