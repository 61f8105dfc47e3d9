package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// A Sight is a process as it was at one moment, and held from then on.
type Sight struct {
	*Handle
	User    uint32 // who runs it, by the real user ID: a program that is set-user-ID does not change that
	Parent  int    // 0: none that we could see
	Group   int
	Session int
	Exe     string   // as the kernel writes it: " (deleted)" may follow it, and in a chroot it begins there
	Argv    []string // none yet in the midst of an exec; of more than 2 MiB the first
	Cwd     string   // likewise; see CwdFile for what it is
	CwdFile File
	Root    File // of its mount namespace or chroot
	Net     File // its network namespace
	Cgroups []Cgroup
}

// A File names a file, folder or namespace among those that exist.
type File struct {
	Device uint64
	Inode  uint64
}

// ErrUnreadable says that a process is there, and could not be looked at. It may be anything.
var ErrUnreadable = errors.New("the process cannot be read")

// errStirs says that a process did not hold still for long enough to be looked at.
var errStirs = errors.New("it changes all the time")

// Sight looks at the process that has the PID now. The error is, or wraps, [ErrGone] if there is none, or if it is past its
// end and runs nothing any more; [ErrUnreadable] if it could not be looked at, in part or at all; [ErrNoPidfd] where
// processes cannot be held.
func (h *Host) Sight(pid int) (*Sight, error) {
	return within(h, pid, func() (*Sight, error) {
		l, err := h.look()
		if err != nil {
			return nil, unreadable(pid, err)
		}
		defer l.close()
		return h.sight(l, pid)
	}, dismiss)
}

// dismiss lets go of what came too late.
func dismiss(s *Sight) {
	if s != nil {
		_ = s.Close()
	}
}

func unreadable(pid int, err error) error {
	if err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrNoPidfd) || errors.Is(err, ErrUnreadable) {
		return err
	}
	return fmt.Errorf("look at process %d: %w: %w", pid, ErrUnreadable, err)
}

func (h *Host) sight(l *look, pid int) (*Sight, error) {
	handle, err := h.Open(pid)
	if err != nil {
		return nil, unreadable(pid, err)
	}
	s := &Sight{Handle: handle}
	if err := s.behold(l); err != nil {
		_ = handle.Close()
		return nil, unreadable(pid, err)
	}
	return s, nil
}

// Again looks once more at the process, whatever has become of it. The result shares the handle of s.
func (s *Sight) Again() (*Sight, error) {
	return within(s.host, s.process.PID, func() (*Sight, error) {
		l, err := s.host.look()
		if err != nil {
			return nil, unreadable(s.process.PID, err)
		}
		defer l.close()
		again := &Sight{Handle: s.Handle}
		if err := again.behold(l); err != nil {
			return nil, unreadable(s.process.PID, err)
		}
		return again, nil
	}, func(*Sight) {}) // the handle is that of s
}

// behold reads all there is to see. It is of one moment if the stat before and behind it says the same; and it is about the
// process that is held if that lives behind it (P2).
func (s *Sight) behold(l *look) error {
	for range looks {
		at, err := l.open(s.process.PID)
		if err != nil {
			return err
		}
		still, err := s.read(at)
		at.close()
		exited, pollErr := s.Exited()
		switch {
		case pollErr != nil:
			return pollErr
		case exited:
			return ErrGone
		case err != nil:
			return err
		case still:
			return nil
		}
	}
	return errStirs
}

func (s *Sight) read(at *subject) (still bool, err error) {
	before, err := at.stat("")
	if err != nil {
		return false, err
	}
	in, im, err := at.settled()
	switch {
	case err != nil:
		return false, err
	case im.none:
		return false, ErrGone
	case !im.named():
		return false, errors.New("it cannot be told what it runs")
	}
	s.Exe, s.Argv = im.exe, im.argv
	if s.Cwd, err = at.link(in + "cwd"); err != nil {
		return false, at.leaving(in, err)
	}
	for _, f := range []struct {
		name string
		file *File
	}{{"cwd", &s.CwdFile}, {"root", &s.Root}, {"ns/net", &s.Net}} {
		if *f.file, err = at.file(in + f.name); err != nil {
			return false, at.leaving(in, err)
		}
	}
	const most = 1 << 20
	status, _, err := at.read(in+"status", most)
	if err != nil {
		return false, at.leaving(in, err)
	}
	if s.User, err = parseUser(status); err != nil {
		return false, err
	}
	groups, whole, err := at.read(in+"cgroup", most)
	switch {
	case err != nil:
		return false, at.leaving(in, err)
	case !whole:
		return false, errCgroups
	}
	if s.Cgroups, err = parseCgroups(groups); err != nil {
		return false, err
	}
	again, err := at.image(in)
	if err != nil {
		return false, err
	}
	after, err := at.stat("")
	if err != nil {
		return false, err
	}
	s.Parent, s.Group, s.Session = after.parent, after.group, after.session
	return after.start == s.process.Start && after.parent == before.parent && after.group == before.group &&
		after.session == before.session && again.equal(im), nil
}

// link reads a symbolic link in the folder of the process.
func (s *subject) link(name string) (string, error) {
	n, err := unix.Readlinkat(s.dir, name, s.exe)
	if err != nil {
		return "", fmt.Errorf("readlink %s: %w", name, err)
	}
	return string(s.exe[:n]), nil
}

// file says what a link in the folder of the process leads to. The file system that it is on is not asked: it may hang.
func (s *subject) file(name string) (File, error) {
	var st unix.Statx_t
	err := unix.Statx(s.dir, name, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st)
	if err != nil {
		return File{}, fmt.Errorf("statx %s: %w", name, err)
	}
	return File{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}, nil
}

// leaving is ErrGone if an error comes from a process that has let go of all it had, on its way out.
func (s *subject) leaving(in string, err error) error {
	if gone(err) {
		if _, exeErr := s.executable(in); gone(exeErr) {
			return ErrGone
		}
	}
	return err
}

func (im image) equal(other image) bool {
	return im.exe == other.exe && im.none == other.none && slices.Equal(im.argv, other.argv)
}

// Find looks at every process and returns those that are wanted by what they run, each held. It is complete or an error: who
// was there before the call and lives is among them (P7). Who is past its end, and runs nothing any more, is not.
func (h *Host) Find(ctx context.Context, wanted func(exe string, argv []string) bool) ([]*Sight, error) {
	found, err := bounded(ctx, h, func(at *atomic.Int64) ([]*Sight, error) {
		found, err := h.find(ctx, at, wanted)
		if err != nil {
			dismissAll(found)
			found = nil
		}
		return found, err
	}, dismissAll)
	if err != nil {
		return nil, fmt.Errorf("look at all processes: %w", err)
	}
	return found, nil
}

func dismissAll(all []*Sight) {
	for _, s := range all {
		dismiss(s)
	}
}

// find is Find, which notes at which process it is. If there is an error then what is returned with it is held all the same.
func (h *Host) find(ctx context.Context, at *atomic.Int64, wanted func(exe string, argv []string) bool) (found []*Sight, err error) {
	if err := h.whole(); err != nil {
		return nil, err
	}
	l, err := h.look()
	if err != nil {
		return nil, err
	}
	defer l.close()
	pids, err := l.pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if ctx.Err() != nil {
			return found, context.Cause(ctx)
		}
		at.Store(int64(pid))
		is, err := false, h.answers(pid)
		if err == nil {
			is, err = h.runs(l, pid, wanted)
		}
		var s *Sight
		if err == nil && is {
			s, err = h.sight(l, pid)
		}
		switch {
		case errors.Is(err, ErrGone):
		case err != nil:
			return found, unreadable(pid, err)
		case s != nil && wanted(s.Exe, s.Argv):
			found = append(found, s)
		case s != nil:
			_ = s.Close()
		}
	}
	return found, nil
}

// FindOne looks at the process that has the PID now, and returns it held if it is wanted by what it runs, else nil. The error is
// as that of [Host.Sight].
func (h *Host) FindOne(pid int, wanted func(exe string, argv []string) bool) (*Sight, error) {
	return within(h, pid, func() (*Sight, error) {
		l, err := h.look()
		if err != nil {
			return nil, unreadable(pid, err)
		}
		defer l.close()
		if is, err := h.runs(l, pid, wanted); err != nil || !is {
			return nil, unreadable(pid, err)
		}
		s, err := h.sight(l, pid)
		if err == nil && !wanted(s.Exe, s.Argv) {
			return nil, s.Close()
		}
		return s, err
	}, dismiss)
}

// runs reports whether the process with a PID runs something that is wanted.
func (h *Host) runs(l *look, pid int, wanted func(exe string, argv []string) bool) (bool, error) {
	s, err := l.open(pid)
	if err != nil {
		return false, err
	}
	defer s.close()
	im, err := s.image("")
	if err == nil && (im.none || !im.whole && !im.cut) {
		st, statErr := s.stat("")
		if statErr != nil || st.kernel() || st.dead() {
			return false, statErr
		}
		_, im, err = s.settled()
	}
	switch {
	case err != nil:
		return false, err
	case im.none:
		return false, nil
	case !im.whole && pid == 1 && h.isInit():
		return false, nil // whatever it calls itself
	case wanted(im.exe, im.argv):
		return true, nil
	case im.named():
		return false, nil
	}
	if st, err := s.stat(""); err != nil || st.dead() {
		return false, err
	}
	return false, errors.New("it cannot be told what it runs")
}

// AwaitEnd returns nil when a process is dead, and the error of ctx if that ends before.
func (h *Host) AwaitEnd(ctx context.Context, p watch.Process) error {
	if p.Boot != h.boot {
		return nil
	}
	handle, err := h.Open(p.PID)
	switch {
	case errors.Is(err, ErrGone):
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil // the number is a thread's by now
	case err != nil:
		return err
	}
	defer func() { _ = handle.Close() }()
	if handle.process != p {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = handle.Close() })
	defer stop()
	err = handle.Wait()
	if errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("wait for the end of process %d: %w", p.PID, context.Cause(ctx))
	}
	return err
}

// Ending reports whether the process is dead, or is writing its core and will be.
func (h *Handle) Ending() (bool, error) {
	exited, err := h.Exited()
	return exited || err == nil && h.dumping(), err
}
