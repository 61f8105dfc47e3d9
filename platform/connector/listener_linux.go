package connector

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// replyPatience is long for an answer that takes 0.15 ms: a host under a fork storm is slow.
	replyPatience  = time.Second
	canaryPatience = 5 * time.Second
	// tries is how often we ask before silence means no. A message can vanish under memory pressure, without any sign.
	tries = 2
	// canaryEvery bounds how long a dead subscription goes unnoticed.
	canaryEvery = time.Minute
)

// past is a deadline that wakes a blocked read.
var past = time.Unix(1, 0)

// A Listener is a subscription to the exits, and if asked the execs, of all processes of the host.
type Listener struct {
	conn  *netlink.Conn
	raw   syscall.RawConn // of conn; Receive is never used beside it
	batch *batch
	self  int
	ack   uint32 // of the last request
	loss  error  // what was lost since the buffer was last empty
	level Level

	every, patience time.Duration // canaryEvery and canaryPatience
}

// Listen subscribes, and returns when an exit of our own has been told. Exits before it returns may go untold: list
// processes afterwards. For why it fails see [Hint].
func Listen(ctx context.Context, opts Options) (*Listener, error) {
	if err := inInitNamespaces(); err != nil {
		return nil, fmt.Errorf("listen to process events: %w", err)
	}
	l := &Listener{
		batch:    newBatch(),
		self:     os.Getpid(),
		ack:      rand.Uint32(),
		every:    canaryEvery,
		patience: canaryPatience,
	}
	var err error
	// No group yet: the first event could arrive before the filter does.
	if l.conn, err = netlink.Dial(unix.NETLINK_CONNECTOR, nil); err != nil {
		return nil, fmt.Errorf("listen to process events: %w", why("socket", err))
	}
	if err := l.subscribe(ctx, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to process events: %w", err), l.Close())
	}
	return l, nil
}

// Inodes of the first namespaces, the same on every kernel (linux/proc_ns.h: PROC_PID_INIT_INO, PROC_USER_INIT_INO).
const (
	initPIDNamespace  = "pid:[4026531836]"
	initUserNamespace = "user:[4026531837]"
)

// inInitNamespaces guards C1. The kernel ignores a subscription from other namespaces without an error, and yet its
// events arrive there, with the host's PIDs, while somebody on the host listens.
func inInitNamespaces() error {
	for _, ns := range []struct {
		file, init string
		err        error
	}{
		{"/proc/self/ns/pid", initPIDNamespace, ErrPIDNamespace},
		{"/proc/self/ns/user", initUserNamespace, ErrUserNamespace},
	} {
		switch got, err := os.Readlink(ns.file); {
		case errors.Is(err, os.ErrNotExist):
			// Built without CONFIG_PID_NS or CONFIG_USER_NS there is one namespace, but that is not to be told from a
			// /proc that is not ours.
			return fmt.Errorf("cannot tell where we are: %w", errors.Join(ns.err, err))
		case err != nil:
			return err
		case got != ns.init:
			return fmt.Errorf("%w: %s is %s", ns.err, ns.file, got)
		}
	}
	return nil
}

// why says what an errno means here, where that is known.
func why(operation string, err error) error {
	var known error
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		known = ErrPermission
	case errors.Is(err, unix.ECONNREFUSED):
		// The kernel's end of the connector exists in the init network namespace only.
		known = ErrNetNamespace
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		// No CONFIG_CONNECTOR, or RestrictAddressFamilies= without AF_NETLINK (systemd.exec(5)).
		known = ErrNoEvents
	default:
		return fmt.Errorf("%s: %w", operation, err)
	}
	return fmt.Errorf("%w: %s: %w", known, operation, err)
}

// subscribe does what has to be done, in the one order that works on every kernel.
func (l *Listener) subscribe(ctx context.Context, opts Options) error {
	stop := context.AfterFunc(ctx, l.wake)
	defer stop()
	var err error
	if l.raw, err = l.conn.SyscallConn(); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	// Before the subscription: a storm can drop even the reply to it.
	if err := l.prepare(opts); err != nil {
		return err
	}
	if err := l.conn.JoinGroup(idxProc); err != nil {
		return why("join the group of process events", err)
	}
	if err := l.handshake(ctx); err != nil {
		return err
	}
	// Kernels before 6.6 ignore this. It is not answered either: the mask drops the reply.
	mask := uint32(eventExit | eventCoredump)
	if opts.Execs {
		mask |= eventExec
	}
	if err := l.send(opListen, mask); err != nil {
		return err
	}
	return l.prove(ctx)
}

// prepare sets the receive buffer and the filter. Without either the stream is dearer, but it is the same: what is told
// is decided by [Listener.tell].
func (l *Listener) prepare(opts Options) error {
	l.level.Threads, l.level.Execs = opts.Threads, opts.Execs
	size := opts.ReceiveBuffer
	if size == 0 {
		size = defaultReceiveBuffer
	}
	// It tries SO_RCVBUFFORCE, which needs CAP_NET_ADMIN, and then SO_RCVBUF, which net.core.rmem_max caps.
	if err := l.conn.SetReadBuffer(size); err != nil {
		return fmt.Errorf("set the receive buffer: %w", err)
	}
	var err error
	if l.level.ReceiveBuffer, err = l.conn.ReadBuffer(); err != nil {
		return fmt.Errorf("get the receive buffer: %w", err)
	}
	program, err := bpf.Assemble(filter(l.self, opts.Threads, opts.Execs))
	if err != nil {
		return fmt.Errorf("assemble the socket filter: %w", err)
	}
	l.level.Filter = l.conn.SetBPF(program) == nil
	return nil
}

// handshake sends the subscription and waits for the reply. Other listeners' replies look like ours but for the ack.
//
// The long form with all events goes first, only to learn whether the kernel knows it: it answers in the order of the
// requests, and always answers the short form.
func (l *Listener) handshake(ctx context.Context) error {
	for range tries {
		if err := l.send(opListen, eventAll); err != nil {
			return err
		}
		long := l.ack + 1
		if err := l.send(opListen); err != nil {
			return err
		}
		var errno syscall.Errno
		replied, err := l.await(ctx, replyPatience, func(m message) bool {
			if m.what != eventReply {
				return false
			}
			l.level.Mask = l.level.Mask || m.ack == long
			errno = syscall.Errno(m.errno)
			return m.ack == l.ack+1
		})
		switch {
		case err != nil:
			return err
		case replied && errno != 0:
			// How kernels before 6.6 say that CAP_NET_ADMIN is missing.
			return why("PROC_CN_MCAST_LISTEN", errno)
		case replied:
			return nil
		}
	}
	return fmt.Errorf("%w: no reply to PROC_CN_MCAST_LISTEN within %s", ErrNoEvents, tries*replyPatience)
}

// prove waits for the exit of a canary.
func (l *Listener) prove(ctx context.Context) error {
	for range tries {
		tid := canary()
		told, err := l.await(ctx, l.patience, func(m message) bool {
			return m.what == eventExit && m.tgid == l.self && m.tid == tid
		})
		if err != nil {
			return err
		}
		if told {
			return nil
		}
	}
	return fmt.Errorf("%w: no exit of a thread of our own within %s", ErrSilent, tries*l.patience)
}

// await reads until a message is the one, and reports false if that takes too long.
func (l *Listener) await(ctx context.Context, patience time.Duration, is func(message) bool) (bool, error) {
	if err := l.wakeIn(ctx, patience); err != nil {
		return false, err
	}
	found := false
	for !found {
		_, err := l.next(func(m message, _ moment) { found = found || is(m) })
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, ctx.Err()
		case err != nil:
			return false, err
		}
	}
	return true, nil
}

// Run tells of what happens until ctx is done, and then returns nil. After a minute without events a canary is sent; if it
// is not told either, Run returns [ErrSilent].
func (l *Listener) Run(ctx context.Context, to Handlers) error {
	stop := context.AfterFunc(ctx, l.wake)
	defer stop()
	if l.wakeIn(ctx, l.every) != nil {
		return nil
	}
	heard, sent := false, 0 // messages since the last look; canaries since the last message
	each := func(m message, now moment) {
		heard = true
		l.tell(m, now, to)
	}
	for {
		loss, err := l.next(each)
		timedOut := errors.Is(err, os.ErrDeadlineExceeded)
		wait := time.Duration(0)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil && !timedOut:
			return fmt.Errorf("listen to process events: %w", err)
		case loss != nil:
			if to.Lost != nil {
				to.Lost(loss)
			}
		case heard && (timedOut || sent > 0):
			heard, sent, wait = false, 0, l.every
		case timedOut && sent == tries:
			return fmt.Errorf("listen to process events: %w: no exit of a thread of our own within %s", ErrSilent, tries*l.patience)
		case timedOut:
			canary()
			sent++
			wait = l.patience
		}
		if wait > 0 && l.wakeIn(ctx, wait) != nil {
			return nil
		}
	}
}

// tell hands on what was asked for. The filter and the mask only spare us the rest. Our own threads are canaries, or of
// interest to nobody.
func (l *Listener) tell(m message, now moment, to Handlers) {
	if m.tgid == l.self {
		return
	}
	switch m.what {
	case eventExec:
		if l.level.Execs && to.Exec != nil {
			to.Exec(Exec{TGID: m.tgid, At: now.of(m.stamp)})
		}
	case eventExit, eventCoredump:
		worker := m.what == eventExit && m.tid != m.tgid
		if to.Exit != nil && (!worker || l.level.Threads) {
			to.Exit(Exit{TGID: m.tgid, TID: m.tid, Core: m.what == eventCoredump, Status: m.status, At: now.of(m.stamp)})
		}
	}
}

// next reads what is queued, waiting for it until the read deadline. loss is set once the buffer has been drained after
// a loss.
func (l *Listener) next(each func(message, moment)) (loss, err error) {
	n, err := l.batch.read(l.raw, l.loss != nil)
	switch {
	case errors.Is(err, unix.EAGAIN):
		loss, l.loss = l.loss, nil
		return loss, nil
	case errors.Is(err, unix.ENOBUFS):
		// What is queued comes after this error (netlink(7)).
		l.loss = fmt.Errorf("the receive buffer overflowed: recvmmsg: %w", err)
		return nil, nil
	case err != nil:
		return nil, err
	}
	now, err := clock()
	if err != nil {
		return nil, err
	}
	for i := range n {
		datagram, err := l.batch.datagram(i)
		if datagram == nil && err == nil {
			continue
		}
		var m message
		if err == nil {
			m, err = parse(datagram)
		}
		if err != nil {
			// The kernel told something, and we do not know what.
			l.loss = err
			continue
		}
		each(m, now)
	}
	return nil, nil
}

// clock reads both clocks, Go's first: if we are held up in between, events seem older than they are (C4).
func clock() (moment, error) {
	now := time.Now()
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return moment{}, fmt.Errorf("clock_gettime CLOCK_MONOTONIC: %w", err)
	}
	return moment{time: now, mono: mono.Nano()}, nil
}

// wakeIn bounds the reads to come. The context is asked after the deadline was set, because its end sets one too: of
// the two orders in which that can happen, this sees the one in which ours would undo it.
func (l *Listener) wakeIn(ctx context.Context, d time.Duration) error {
	if err := l.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return fmt.Errorf("set the read deadline: %w", err)
	}
	return ctx.Err()
}

// wake ends a read under way, and all that follow until the next deadline is set.
func (l *Listener) wake() {
	// It fails only if the socket is closed, and then nobody reads.
	_ = l.conn.SetReadDeadline(past)
}

// send makes a request. The kernel has carried it out when it returns.
func (l *Listener) send(op uint32, mask ...uint32) error {
	l.ack++
	_, err := l.conn.Send(netlink.Message{Header: netlink.Header{Type: typeDone}, Data: request(op, l.ack, mask...)})
	if err != nil {
		return why("send to the process connector", err)
	}
	return nil
}

// Level says what is in force.
func (l *Listener) Level() Level { return l.level }

// Close gives the subscription back. Call it when Run has returned.
func (l *Listener) Close() error {
	// If we are refused there is no subscription to give back.
	err := l.send(opIgnore)
	if errors.Is(err, ErrNetNamespace) {
		err = nil
	}
	return errors.Join(err, l.conn.Close())
}
