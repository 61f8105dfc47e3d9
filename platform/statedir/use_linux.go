package statedir

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// How many names in a leftover are looked at to see if it is in use. A list only glances, so that nobody can hold it up
// with a folder full of files; before a removal everything is looked at.
const (
	glance     = 1000
	everything = 0
)

// mounts are all mounts of our namespace.
type mounts []*procfs.MountInfo

func readMounts() (mounts, error) {
	all, err := procfs.GetMounts()
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return all, nil
}

// use says in words why a leftover may be in use, or "": a mount is at or below it, or has it or something in it mounted
// elsewhere; a process is bound to it, or to a socket directly in it; or a process has locked it, or a file directly in it.
// What cannot be looked at may be in use (T5). The error is that of ctx.
func (m mounts) use(ctx context.Context, e *entry, limit int) (why string, err error) {
	if why := m.at(e.path); why != "" {
		return why, nil
	}
	if why := e.use(); why != "" || !e.is(unix.S_IFDIR) {
		return why, nil
	}
	in, looked := folder{e.fd, e.path}, 0
	errEnough := errors.New("enough")
	err = in.names(ctx, func(name string) error {
		if looked++; limit != everything && looked > limit {
			return errEnough
		}
		child, err := in.look(name)
		if err != nil {
			return unlessAbsent(err)
		}
		defer child.close()
		if !child.is(unix.S_IFDIR) {
			why = child.use()
		}
		if why != "" {
			return errEnough
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil && !errors.Is(err, errEnough):
		return err.Error(), nil
	}
	return why, nil
}

// at says in words which mount a path is part of the tree of.
func (m mounts) at(file string) string {
	file = mountEscapes.Replace(file)
	var base *procfs.MountInfo
	for _, mount := range m {
		if within(mount.MountPoint, file) {
			return "a file system is mounted at " + mount.MountPoint
		}
		// Of several at one point the last hides the others.
		if within(file, mount.MountPoint) && (base == nil || len(mount.MountPoint) >= len(base.MountPoint)) {
			base = mount
		}
	}
	if base == nil {
		return "no mount is known that it is part of"
	}
	root := strings.TrimSuffix(base.Root, "/") + strings.TrimPrefix(file, strings.TrimSuffix(base.MountPoint, "/"))
	for _, mount := range m {
		if mount.MajorMinorVer == base.MajorMinorVer && within(mount.Root, root) {
			return "it is mounted at " + mount.MountPoint
		}
	}
	return ""
}

// mountEscapes are how /proc/self/mountinfo writes what would otherwise end a field.
var mountEscapes = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// within reports whether a path is at or below another.
func within(file, above string) bool {
	return file == above || strings.HasPrefix(file, strings.TrimSuffix(above, "/")+"/")
}

// use says in words why e itself may be in use, or "".
func (e *entry) use() string {
	var used string
	var err error
	switch {
	case e.is(unix.S_IFSOCK):
		used, err = e.bound()
	case e.is(unix.S_IFREG), e.is(unix.S_IFDIR):
		used, err = e.locked()
	}
	switch {
	case err != nil:
		return fmt.Sprintf("%s cannot be looked at: %v", readable(e.path), err)
	case used != "":
		return readable(e.path) + " " + used
	}
	return ""
}

// bound says if a process has the socket. It asks with a type that hardly any socket has, which the kernel answers in that
// process's place: a listener is not woken by it.
func (e *entry) bound() (used string, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: e.proc()}); {
	case err == nil, errors.Is(err, unix.EPROTOTYPE):
		return "is a socket that a process has", nil
	case errors.Is(err, unix.ECONNREFUSED):
		return "", nil
	default:
		return "", fmt.Errorf("connect: %w", err)
	}
}

// locked says if a process has locked the file or folder. The lock that is taken to find out is held for microseconds: no
// smaller one would tell of a shared lock.
func (e *entry) locked() (used string, err error) {
	fd, err := e.reopen()
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return "is leased", nil // fcntl(2), F_SETLEASE
	case err != nil:
		return "", fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd)
	if e.is(unix.S_IFREG) {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock); err != nil {
			return "", fmt.Errorf("fcntl F_OFD_GETLK: %w", err)
		}
		if lock.Type != unix.F_UNLCK {
			return "is locked", nil
		}
	}
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EBADF) {
		// NFS wants a descriptor for writing, even from those who may not write.
		err = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return "is locked", nil
	case err != nil:
		return "", fmt.Errorf("flock: %w", err)
	}
	return "", nil
}
