package docker

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func inodeOf(t *testing.T, fd int) uint32 {
	t.Helper()
	var stat unix.Stat_t
	must(t, unix.Fstat(fd, &stat))
	return uint32(stat.Ino)
}

func TestPeerInode(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fds[0]) }()
	mine, other := inodeOf(t, fds[0]), inodeOf(t, fds[1])
	if peer, err := peerInode(mine); peer != other || err != nil {
		t.Errorf("peer %d, %v, want %d", peer, err, other)
	}
	if name, writes, ok := otherEnd(fmt.Sprintf("socket:[%d]", mine)); name != fmt.Sprintf("socket:[%d]", other) || writes || !ok {
		t.Errorf("other end %q, %t, %t", name, writes, ok)
	}
	must(t, unix.Close(fds[1]))
	if peer, err := peerInode(mine); err == nil {
		t.Errorf("peer %d after its end", peer)
	}
	must(t, unix.Close(fds[0]))
	fds[0] = -1
	if peer, err := peerInode(mine); !errors.Is(err, unix.ENOENT) {
		t.Errorf("peer %d, %v of no socket, want %v", peer, err, unix.ENOENT)
	}
	for _, end := range []string{"/dev/null", "/dev/pts/0", "socket:[x]", "socket:[0]", "anon_inode:[eventfd]", ""} {
		if name, _, ok := otherEnd(end); ok {
			t.Errorf("%q has the other end %q", end, name)
		}
	}
}

// TestHolds: the other end of a pipe is that which is open for writing.
func TestHolds(t *testing.T) {
	h, err := newProc(t).Open(os.Getpid())
	must(t, err)
	defer h.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	must(t, err)
	if !holds(h, name, true) || !holds(h, name, false) || holds(h, name+"x", true) {
		t.Error("both ends are held")
	}
	must(t, w.Close())
	if holds(h, name, true) || !holds(h, name, false) {
		t.Error("the end for reading is held alone")
	}
}

func FuzzReadPeer(f *testing.F) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	f.Add(askForPeer(7), uint32(7))
	f.Add([]byte{48, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 2, 0, 8, 0, 0, 0, 5, 0, 6, 0, 0, 0, 0, 0}, uint32(7))
	f.Add([]byte{36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255}, uint32(7))
	f.Fuzz(func(t *testing.T, b []byte, inode uint32) {
		if peer, err := readPeer(b, inode); err == nil && len(b) < unix.SizeofNlMsghdr+unixDiag+8 {
			t.Errorf("peer %d in %d bytes", peer, len(b))
		}
	})
}
