package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// A look is one look around in /proc, by one goroutine.
type look struct {
	proc *os.File
	real bool   // it is a proc file system, in which nothing leads elsewhere
	exe  []byte // room for the name of an executable
	data []byte // room for the content of a file

	waited time.Duration // for processes that were in the midst of an exec
}

func (h *Host) look() (*look, error) {
	proc, err := os.Open(h.root)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(proc.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("statfs %s: %w", h.root, err), proc.Close())
	}
	real := st.Type == unix.PROC_SUPER_MAGIC
	return &look{proc: proc, real: real, exe: make([]byte, unix.PathMax), data: make([]byte, 4096)}, nil
}

// Nobody can act on an error of closing what was only read.
func (l *look) close() { _ = l.proc.Close() }

// pids returns all processes. The kernel walks them by number: who was there before and stays is not missed.
func (l *look) pids() ([]int, error) {
	names, err := l.proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// A subject is a process that is looked at, through its open folder in /proc. What is read there is about that process and
// never about a later one with its PID: when it has been reaped, nothing is there.
type subject struct {
	*look
	pid int
	dir int
}

// open opens the folder of the process that has the PID now. The error is [ErrGone] if there is none.
func (l *look) open(pid int) (*subject, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	how := &unix.OpenHow{Flags: flags}
	if l.real {
		// What is mounted over it would hide the process, which would seem to be gone (openat2(2), Linux 5.6).
		how.Resolve = unix.RESOLVE_NO_XDEV
	}
	dir, err := unix.Openat2(int(l.proc.Fd()), strconv.Itoa(pid), how)
	if errors.Is(err, unix.ENOSYS) {
		dir, err = unix.Openat(int(l.proc.Fd()), strconv.Itoa(pid), flags, 0)
	}
	switch {
	case gone(err):
		return nil, ErrGone
	case err != nil:
		return nil, fmt.Errorf("open the folder of process %d: %w", pid, err)
	}
	return &subject{look: l, pid: pid, dir: dir}, nil
}

func (s *subject) close() { _ = unix.Close(s.dir) }

// gone reports whether an error says that what was to be read is not there: it may never have been.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// denied reports whether an error says that we may not read.
func denied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// read reads a file with one system call, so that all of it is of one moment, and says whether that was all of it. The
// result is good until the next read.
func (s *subject) read(name string, most int) (data []byte, whole bool, err error) {
	for {
		n, err := s.readOnce(name)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, false, err
		case n < len(s.data):
			return s.data[:n], true, nil
		case n >= most:
			return s.data[:n], false, nil
		default:
			s.data = make([]byte, min(most, 8*len(s.data)))
		}
	}
}

func (s *subject) readOnce(name string) (int, error) {
	fd, err := unix.Openat(s.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Read(fd, s.data)
}

// stat reads the stat of the process, or of one of its threads: in is "" or "task/TID/". The error is [ErrGone] if that is
// none any more.
func (s *subject) stat(in string) (st stat, err error) {
	const most = 4096 // four times what it can be
	data, _, err := s.read(in+"stat", most)
	if gone(err) {
		return stat{}, ErrGone
	}
	if err == nil {
		st, err = parseStat(data)
	}
	if err != nil {
		return stat{}, fmt.Errorf("read the stat of process %d: %w", s.pid, err)
	}
	return st, nil
}

// An image is what a process runs. The zero image is that of one which cannot be read: it may be anything.
type image struct {
	exe   string // "" if that cannot be read
	argv  []string
	whole bool // there is no more to it
	none  bool // there was nothing to read: the process is leaving, or that thread has

	// What anybody can bring about and must not cost more than a look at himself:
	cut    bool // there are more arguments than are read
	begins bool // it is in the midst of an exec: it has its executable already, and no arguments yet
}

// named reports whether it is known by what name the process runs what it runs.
func (im image) named() bool { return im.whole || im.cut || im.begins }

// life says whether the process runs a program: Alive if so, Unknown if it may. The second result is false if it does not.
func (im image) life(p watch.Program) (watch.Life, bool) {
	if im.begins {
		return watch.Unknown, true
	}
	if p.Matches(im.exe, im.argv) {
		return watch.Alive, true
	}
	return watch.Unknown, !im.whole
}

// looks is how often an image is read until it holds still. Each time an exec must have come in between.
const looks = 10

// glanceTime is how long it may take to read an image. In more time, if we were held up, a process could exec twice, and be
// what it was at the end but not all the while. One exec takes more than this.
const glanceTime = 100 * time.Microsecond

// image reads what the process runs, or one of its threads.
func (s *subject) image(in string) (im image, err error) {
	for range looks {
		begun := time.Now()
		now, still, err := s.glance(in)
		if err != nil {
			return image{}, fmt.Errorf("read the arguments of process %d: %w", s.pid, err)
		}
		switch {
		case still:
			im = now
			if im.cut || time.Since(begun) < glanceTime {
				return im, nil
			}
		case now.begins && !im.named():
			im = now
		}
	}
	return im, nil
}

// An exec takes some time, most of it for reading the file. Until it is over there is an executable without arguments.
const (
	settleTime = 50 * time.Millisecond
	settleBeat = time.Millisecond
	settleMost = time.Second // in one look, for all: an exec can be made to last, by a file system that does not answer
)

// settled reads what the process runs, and waits some time if that cannot be told yet. It says in which folder it was read: when
// the leader has exited its own shows nothing any more, and the workers go on.
func (s *subject) settled() (in string, im image, err error) {
	for deadline := time.Now().Add(min(settleTime, settleMost-s.waited)); ; s.beat() {
		if im, err = s.image(""); err == nil && im.none {
			in, im, err = s.worker()
		}
		// With arguments and without an executable it is one that we may not know.
		if err != nil || im.whole || len(im.argv) > 0 || time.Now().After(deadline) {
			return in, im, err
		}
		if st, err := s.stat(in); err != nil || st.dead() {
			return "", image{whole: true, none: true}, nil
		}
	}
}

func (l *look) beat() {
	time.Sleep(settleBeat)
	l.waited += settleBeat
}

// glance reads an image once. It is not still if an exec may have come in between: then the executable could be that of
// one program and the arguments those of another.
func (s *subject) glance(in string) (im image, still bool, err error) {
	exe, exeErr := s.executable(in)
	argv, whole, err := s.argv(in)
	if err == nil && exeErr == nil && len(argv) == 0 {
		// There are none, or none yet.
		if s.starting(in) {
			return image{exe: exe, begins: true}, false, nil
		}
		argv, whole, err = s.argv(in)
	}
	if err != nil {
		return image{}, false, err
	}
	again, againErr := s.executable(in)
	switch {
	case again != exe || againErr != exeErr:
		return image{}, false, nil
	case gone(exeErr):
		return image{whole: true, none: true}, true, nil
	case exeErr != nil:
		return image{argv: argv}, true, nil
	}
	return image{exe: exe, argv: argv, whole: whole, cut: !whole && len(argv) > 0}, true, nil
}

// executable returns the path of what is run. The error is an errno: ENOENT or ESRCH if nothing is, and mostly EACCES if we
// may not know (CAP_SYS_PTRACE).
func (s *subject) executable(in string) (string, error) {
	n, err := unix.Readlinkat(s.dir, in+"exe", s.exe)
	if err != nil {
		return "", err
	}
	return string(s.exe[:n]), nil
}

// argvMost is how much of the arguments we read: what all arguments and variables together may take (ARG_MAX in
// execve(2)), unless somebody raised the limit on the stack.
const argvMost = 2 << 20

// argv returns the arguments, and whether these are all.
func (s *subject) argv(in string) (argv []string, whole bool, err error) {
	data, whole, err := s.read(in+"cmdline", argvMost)
	switch {
	case denied(err):
		return nil, false, nil
	case gone(err):
		return nil, true, nil
	case err != nil:
		return nil, false, err
	}
	return parseArgv(data), whole, nil
}

// starting reports whether a process is in the midst of an exec: it has its executable already, and no arguments yet.
func (s *subject) starting(in string) bool {
	st, err := s.stat(in)
	return err != nil || st.envEnd == 0
}

// worker reads what is run by a process whose leader has exited: /proc/PID then shows nothing, and its workers go on. It says
// in which folder that was found.
func (s *subject) worker() (in string, im image, err error) {
	fd, err := unix.Openat(s.dir, "task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	var tids []string
	if err == nil {
		task := os.NewFile(uintptr(fd), "task")
		tids, err = task.Readdirnames(-1)
		_ = task.Close()
	}
	if err != nil && !gone(err) {
		return "", image{}, fmt.Errorf("list the threads of process %d: %w", s.pid, err)
	}
	for _, tid := range tids {
		in := "task/" + tid + "/"
		if im, err := s.image(in); err != nil || !im.none {
			return in, im, err
		}
	}
	return "", image{whole: true, none: true}, nil
}

// whole returns nil if this /proc shows us every process of our PID namespace. With the option hidepid it shows others only
// to who may trace them (proc(5)): what we then see is a part, and may lack anybody.
func (h *Host) whole() error {
	if mayTrace() {
		// In a user namespace of our own that would not be worth anything: PID 1 tells.
		if _, err := os.Readlink(filepath.Join(h.root, "1/exe")); err == nil {
			return nil
		}
	}
	self, err := h.proc.Self()
	if err != nil {
		return fmt.Errorf("find out how %s is mounted: %w", h.root, err)
	}
	mounts, err := self.MountInfo()
	if err != nil {
		return fmt.Errorf("find out how %s is mounted: %w", h.root, err)
	}
	found := false
	for _, m := range mounts {
		if m.MountPoint != filepath.Clean(h.root) || m.FSType != "proc" || m.Root != "/" {
			continue
		}
		found = true
		for _, options := range []map[string]string{m.Options, m.SuperOptions} {
			if value := options["hidepid"]; value != "" && value != "0" && value != "off" {
				return fmt.Errorf("%s is mounted with hidepid=%s: %w", h.root, value, errHidden)
			}
		}
	}
	if !found {
		return fmt.Errorf("%s is not known to be a mounted proc file system: %w", h.root, errHidden)
	}
	return nil
}

var errHidden = errors.New("processes of others may be hidden from us (give watcher CAP_SYS_PTRACE)")

// mayTrace reports whether we have CAP_SYS_PTRACE.
func mayTrace() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_PTRACE/32].Effective&(1<<(unix.CAP_SYS_PTRACE%32)) != 0
}
