package connector

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize    = 128 // datagrams a read: the system call's cost is gone by then (0.7 µs an event)
	datagramSize = 128 // more than an event has, so that a longer one is seen as such
)

// A batch is room for many datagrams, read with one recvmmsg(2) and no allocation. golang.org/x/sys/unix has no
// recvmmsg, and its recvfrom and recvmsg allocate the sender's address, once an event.
type batch struct {
	headers [batchSize]mmsghdr
	senders [batchSize]unix.RawSockaddrNetlink
	iovecs  [batchSize]unix.Iovec
	buffers [batchSize][datagramSize]byte

	n     int
	errno syscall.Errno
	drain bool
	once  func(fd uintptr) bool // the method, bound once: binding it allocates
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
}

func newBatch() *batch {
	b := &batch{}
	b.once = b.receive
	for i := range b.headers {
		b.iovecs[i].Base = &b.buffers[i][0]
		b.iovecs[i].SetLen(datagramSize)
		b.headers[i].Name = (*byte)(unsafe.Pointer(&b.senders[i]))
		b.headers[i].Namelen = unix.SizeofSockaddrNetlink
		b.headers[i].Iov = &b.iovecs[i]
		b.headers[i].SetIovlen(1)
	}
	return b
}

// read waits for datagrams and takes what is queued. With drain it does not wait: EAGAIN says that nothing is queued.
func (b *batch) read(conn syscall.RawConn, drain bool) (n int, err error) {
	b.drain = drain
	if err := conn.Read(b.once); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, b.errno
	}
	return b.n, nil
}

// receive is what the runtime's poller calls when the socket may be readable; false parks us until it is.
func (b *batch) receive(fd uintptr) (done bool) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG,
			fd, uintptr(unsafe.Pointer(&b.headers)), batchSize, unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		b.n, b.errno = int(n), errno
		// The kernel writes through the pointers inside the headers, which the compiler does not see.
		runtime.KeepAlive(b)
		return errno != unix.EAGAIN || b.drain
	}
}

var errTruncated = errors.New("a process event is longer than any that we know")

// datagram returns the i-th datagram of the last read. It is nil if somebody else than the kernel sent it (C2).
func (b *batch) datagram(i int) ([]byte, error) {
	header, sender := &b.headers[i], &b.senders[i]
	size := header.Namelen
	// The kernel wrote the length of the address over the length of its room.
	header.Namelen = unix.SizeofSockaddrNetlink
	if size != unix.SizeofSockaddrNetlink || sender.Family != unix.AF_NETLINK || sender.Pid != 0 {
		return nil, nil
	}
	if header.Flags&unix.MSG_TRUNC != 0 {
		return nil, errTruncated
	}
	return b.buffers[i][:header.n], nil
}
