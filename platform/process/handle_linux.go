package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// userHZ is the unit of start times in /proc/PID/stat. It is part of the kernel's interface and 100 on every
// architecture that Go runs on (include/asm-generic/param.h).
const userHZ = 100

// A Handle is one incarnation of a PID, held. It is safe for concurrent use.
type Handle struct {
	host    *Host
	process watch.Process
	born    time.Time
	opened  time.Time
	fd      *os.File        // the pidfd, on the runtime's poller
	conn    syscall.RawConn // of fd
	closed  atomic.Bool
}

var (
	// ErrGone says that there is no process with a PID, or that it is dead already.
	ErrGone = errors.New("no such process")
	// ErrNoPidfd says that this kernel, or a seccomp filter around us, has no pidfd_open.
	ErrNoPidfd = fmt.Errorf("pidfd_open: %w", errors.ErrUnsupported)
)

// Open holds the process that has the PID now. The error is, or wraps, [ErrGone] if there is none, [ErrNoPidfd] where
// processes cannot be held, and the errno otherwise: EINVAL or ENOENT if the number is that of a thread, EMFILE if we
// are out of descriptors.
func (h *Host) Open(pid int) (*Handle, error) {
	opened := time.Now()
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) {
		// PIDFD_NONBLOCK came with Linux 5.10.
		if fd, err = unix.PidfdOpen(pid, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, ErrGone
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return nil, ErrNoPidfd
	case err != nil:
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	handle := &Handle{host: h, opened: opened, fd: os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))}
	if err := handle.identify(pid); err != nil {
		return nil, errors.Join(err, handle.Close())
	}
	return handle, nil
}

// CanHold reports whether processes can be held at all. Where they cannot, [Owners] looks at /proc instead.
func (h *Host) CanHold() bool {
	self, err := h.Open(os.Getpid())
	if err != nil {
		return !errors.Is(err, ErrNoPidfd)
	}
	// Closing a pidfd has no error that anybody could act on.
	_ = self.Close()
	return true
}

func (h *Handle) identify(pid int) (err error) {
	if h.conn, err = h.fd.SyscallConn(); err != nil {
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	stat, statErr := h.host.stat(pid)
	exited, err := h.Exited()
	switch {
	case err != nil:
		return err
	case exited:
		return ErrGone
	case statErr != nil:
		return statErr
	}
	h.process = h.host.identity(pid, stat.start)
	h.born, err = bornAt(stat.start)
	return err
}

// stat reads the stat of whatever has the PID.
func (h *Host) stat(pid int) (stat, error) {
	data, err := os.ReadFile(filepath.Join(h.dir(pid), "stat"))
	if err != nil {
		return stat{}, fmt.Errorf("read the stat of process %d: %w", pid, err)
	}
	s, err := parseStat(data)
	if err != nil {
		return stat{}, fmt.Errorf("read the stat of process %d: %w", pid, err)
	}
	return s, nil
}

// identity is the process that has, or had, a PID and started then.
func (h *Host) identity(pid int, start uint64) watch.Process {
	return watch.Process{PID: pid, Start: start, Boot: h.boot}
}

// bornAt is the wall-clock time of a start time. It moves when the wall clock is stepped.
func bornAt(start uint64) (time.Time, error) {
	up, err := uptime()
	if err != nil {
		return time.Time{}, err
	}
	age := up - time.Duration(start)*(time.Second/userHZ)
	return time.Now().Round(0).Add(-age), nil
}

// Ticks is the time since boot in whole units of start times. A process whose start time is greater was born later than
// this was asked, whatever became of the wall clock.
func (h *Host) Ticks() (uint64, error) {
	up, err := uptime()
	return uint64(up / (time.Second / userHZ)), err
}

// uptime is the time since boot, by the clock that start times are read from.
func uptime() (time.Duration, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return 0, fmt.Errorf("clock_gettime CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(up.Nano()), nil
}

// Process is the identity of the process.
func (h *Handle) Process() watch.Process { return h.process }

// Born is when the process started, by the wall clock as it stood when the handle was opened.
func (h *Handle) Born() time.Time { return h.born }

// Exited reports whether the process is dead: a zombie is. A process whose leader thread alone has exited is not.
func (h *Handle) Exited() (exited bool, err error) {
	ctlErr := h.conn.Control(func(fd uintptr) { exited, err = readable(fd) })
	if err = errors.Join(ctlErr, err); err != nil {
		return false, fmt.Errorf("poll the pidfd of %d: %w", h.process.PID, err)
	}
	return exited, nil
}

// readable asks a pidfd: it is readable from the death of the last thread on (pidfd_open(2)).
func readable(fd uintptr) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == nil {
			return n > 0 && fds[0].Revents&unix.POLLIN != 0, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return false, err
		}
	}
}

// Wait returns nil when the process is dead, and [os.ErrClosed] when the handle is closed. It parks on the runtime's
// poller and costs no thread.
func (h *Handle) Wait() error {
	var pollErr error
	err := h.conn.Read(func(fd uintptr) (done bool) {
		done, pollErr = readable(fd)
		return done || pollErr != nil
	})
	if h.closed.Load() {
		// The poller's own word for that cannot be tested for.
		return os.ErrClosed
	}
	return errors.Join(err, pollErr)
}

// Signal sends a signal to the process, whatever has its PID by now. [ErrGone] says that it was reaped before.
func (h *Handle) Signal(sig unix.Signal) error { return h.signal(sig, 0) }

func (h *Handle) signal(sig unix.Signal, flags int) (err error) {
	ctlErr := h.conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, flags) })
	switch err = errors.Join(ctlErr, err); {
	case errors.Is(err, unix.ESRCH):
		return ErrGone
	case err != nil:
		return fmt.Errorf("pidfd_send_signal %s to %d: %w", unix.SignalName(sig), h.process.PID, err)
	}
	return nil
}

// ReadFile reads a file from the process's folder in /proc. If the process is dead by then the error is [ErrGone]: what
// was read may have been about another (P2).
func (h *Handle) ReadFile(name string) ([]byte, error) {
	data, readErr := os.ReadFile(filepath.Join(h.host.dir(h.process.PID), name))
	exited, err := h.Exited()
	switch {
	case err != nil:
		return nil, err
	case exited:
		return nil, ErrGone
	case readErr != nil:
		return nil, readErr
	}
	return data, nil
}

// dumping reports whether the process is writing its core: its threads have been stopped for good, and it dies when the
// core is written, seconds later if that is large (CoreDumping in proc_pid_status(5), Linux 4.15).
func (h *Handle) dumping() bool {
	status, err := h.ReadFile("status")
	return err == nil && bytes.Contains(status, []byte("\nCoreDumping:\t1\n"))
}

// Close lets go of the process. A [Handle.Wait] under way returns.
func (h *Handle) Close() error {
	h.closed.Store(true)
	return h.fd.Close()
}
