package statedir

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// A folder is an open folder below which names are looked up. Its path is for people.
type folder struct {
	fd   int
	path string
}

var (
	// errAbsent says that a path leads nowhere, or through a link, or into what belongs to one user alone.
	errAbsent = errors.New("there is nothing that is ours")
	// errElsewhere is an errAbsent by which it is not said that there is nothing.
	errElsewhere = fmt.Errorf("%w: a link or no folder is on the way, or a file system of one user", errAbsent)
)

func openRoot() (folder, error) {
	fd, err := openat(unix.AT_FDCWD, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return folder{}, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	return folder{fd, ""}, nil
}

func (f folder) close() { _ = unix.Close(f.fd) }

func (f folder) join(name string) string { return f.path + "/" + name }

// enter opens a folder in f. The error is errAbsent if there is none: a link leads somewhere else (T3).
func (f folder) enter(name string) (folder, error) {
	fd, err := openat(f.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return folder{}, f.fault("open", f.join(name), err)
	}
	return folder{fd, f.join(name)}, nil
}

// fault is the error of a system call about what f leads to.
func (f folder) fault(op, file string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return errAbsent
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), f.private(err):
		return errElsewhere
	}
	return &fs.PathError{Op: op, Path: readable(file), Err: err}
}

// private reports whether an error comes from a FUSE file system that keeps out even root. Nothing there is ever ours to
// remove, and any user may mount one where a rule looks: it must not make a list fail.
func (f folder) private(err error) bool {
	var st unix.Statfs_t
	return (errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTCONN)) &&
		unix.Fstatfs(f.fd, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC
}

// batch is how many names are read at a time. Memory that a folder may need does not depend on what is in it (T8).
const batch = 128

// names calls each with the names in f, in no order, until an error.
func (f folder) names(ctx context.Context, each func(name string) error) error {
	dir, err := f.open()
	if err != nil {
		return f.fault("open", cmp.Or(f.path, "/"), err)
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := each(name); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, unix.ENOENT): // ENOENT: f itself was removed
			return nil
		case err != nil:
			return &fs.PathError{Op: "getdents", Path: readable(cmp.Or(f.path, "/")), Err: errnoOf(err)}
		}
	}
}

// open opens f itself, so that it can be read.
func (f folder) open() (*os.File, error) {
	fd, err := openat(f.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.path), nil
}

// An entry is one thing in a folder, held so that all that is learnt of it is about the same thing.
type entry struct {
	fd   int // with O_PATH
	path string
	stat unix.Statx_t
}

// look opens what has a name in f. The error is errAbsent if nothing has.
func (f folder) look(name string) (*entry, error) {
	fd, err := openat(f.fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, f.fault("open", f.join(name), err)
	}
	e := &entry{fd: fd, path: f.join(name)}
	if err := statx(fd, &e.stat); err != nil {
		// It may be where another file system begins.
		err = folder{fd, f.path}.fault("statx", f.join(name), err)
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *entry) close() { _ = unix.Close(e.fd) }

func (e *entry) is(format uint16) bool { return e.stat.Mode&unix.S_IFMT == format }

// born is when e was created. Where nobody knows it is the latest time that e bears: if a leftover seemed older than it
// is, its living owner would seem to be younger than that, and so not to be its owner.
func (e *entry) born() (at time.Time, known bool) {
	stamp := func(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }
	// Zero is what a file has that was there before its file system began to note such times.
	if birth := e.stat.Btime; e.stat.Mask&unix.STATX_BTIME != 0 && birth.Sec > 0 {
		return stamp(birth), true
	}
	at = stamp(e.stat.Ctime)
	if modified := stamp(e.stat.Mtime); modified.After(at) {
		at = modified
	}
	return at, false
}

// id names the incarnation that e is (T2): the hash of what tells it from all others. That has the form of an engine's
// IDs, so it can be part of a file's name whatever is in the path, and a path can only come from a rule (T1).
func (e *entry) id() watch.ID {
	at, known := e.born()
	clock := "changed"
	if known {
		clock = "born"
	}
	s := &e.stat
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d:%d\x00%d\x00%s\x00%d.%09d",
		e.path, s.Dev_major, s.Dev_minor, s.Ino, clock, at.Unix(), at.Nanosecond()))
	return watch.ID{Kind: watch.File, Name: hex.EncodeToString(sum[:])}
}

// same reports whether what another descriptor is about is the same file.
func (e *entry) same(s *unix.Statx_t) bool {
	return e.stat.Dev_major == s.Dev_major && e.stat.Dev_minor == s.Dev_minor && e.stat.Ino == s.Ino
}

// reopen opens e itself for reading. It must be a file or folder: to open a device can do something.
func (e *entry) reopen() (int, error) {
	return openat(unix.AT_FDCWD, e.proc(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
}

// proc is a name of e by which system calls that want a path find it, whatever happens to its own.
func (e *entry) proc() string { return "/proc/self/fd/" + strconv.Itoa(e.fd) }

// A place is where a folder is: T4 demands that all of a leftover is in one.
type place struct {
	major, minor uint32
	mount        uint64
}

// placeOf says where the folder behind a descriptor is.
func placeOf(fd int) (place, error) {
	var s unix.Statx_t
	if err := statx(fd, &s); err != nil {
		return place{}, fmt.Errorf("statx: %w", err)
	}
	mount := s.Mnt_id
	if s.Mask&unix.STATX_MNT_ID == 0 {
		var err error
		if mount, err = mountOf(fd); err != nil {
			return place{}, err
		}
	}
	return place{s.Dev_major, s.Dev_minor, mount}, nil
}

// mountOf reads the ID of a descriptor's mount where statx does not know it (proc_pid_fdinfo(5)).
func mountOf(fd int) (uint64, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.ParseUint(strings.TrimSpace(id), 10, 64)
		}
	}
	return 0, errors.New("fdinfo: no mnt_id")
}

// errnoOf is the errno in an error that names a path as it was when that was opened, and with whatever is in it.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func openat(dir int, name string, flags int) (fd int, err error) {
	for {
		// EINTR may come from network file systems and FUSE.
		if fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func statx(fd int, s *unix.Statx_t) error {
	const flags = unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT
	const want = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID
	for {
		err := unix.Statx(fd, "", flags, want, s)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
