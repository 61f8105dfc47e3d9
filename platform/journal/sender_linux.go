package journal

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// socketPath is where journald takes entries in its native protocol.
const socketPath = "/run/systemd/journal/socket"

// sendLimit bounds one wait for journald, after which the socket is dialled anew. Nothing is known to need it: it turns
// a wake-up that was lost, or a path that now leads to another journald, into ten seconds instead of a dead log.
const sendLimit = 10 * time.Second

// A sender hands entries to journald.
//
// The socket is connected, unlike that of go-systemd's journal.Send. On an unconnected datagram socket the kernel says
// "writable" whatever the receiver's queue is like, so with journald stopped Go's poller tries, fails and is woken by its
// own failure, in a circle: measured, one whole core for as long as journald is stopped. On a connected socket poll
// looks at the receiver's queue and the writer sleeps. The price is that a journald which made a new socket has to be
// dialled again.
type sender struct {
	path string

	mu     sync.Mutex // for the fields below; not held during a write
	conn   *net.UnixConn
	closed bool
}

// dial connects to journald.
func dial(path string) (*sender, error) {
	s := &sender{path: path}
	if _, err := s.connect(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *sender) connect() (*net.UnixConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	if s.conn == nil {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	return s.conn, nil
}

func (s *sender) disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// Close ends a send that waits.
func (s *sender) Close() error {
	s.disconnect()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// send waits until journald has taken the entry. The error is errUnavailable if it may be tried again.
func (s *sender) send(entry []byte) error {
	var last error
	// The first failure may only mean that journald was restarted since the previous entry.
	for range 2 {
		conn, err := s.connect()
		if err != nil {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
		err = transmit(conn, entry)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed),
			errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ENOTCONN):
			s.disconnect()
			last = err
		default:
			return err // this entry's fault
		}
	}
	return fmt.Errorf("%w: %w", errUnavailable, last)
}

func transmit(conn *net.UnixConn, entry []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(sendLimit)); err != nil {
		return err
	}
	_, err := conn.Write(entry)
	if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	// Too large for a datagram: by the protocol, an empty one with a sealed memfd that holds the entry.
	file, err := sealed(entry)
	if err != nil {
		return err
	}
	defer file.Close()
	return sendFile(conn, file)
}

// sendFile sends an empty datagram with a file. WriteMsgUnix refuses connected datagram sockets.
func sendFile(conn *net.UnixConn, file *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(file.Fd()))
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), nil, rights, nil, 0)
		return !errors.Is(sendErr, unix.EAGAIN) // false waits, up to the deadline
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", sendErr)
}

func sealed(entry []byte) (file *os.File, err error) {
	fd, err := unix.MemfdCreate("watcher-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file = os.NewFile(uintptr(fd), "memfd")
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	if _, err := file.Write(entry); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return file, nil
}

var _ io.Closer = (*sender)(nil)
