package connector

import (
	"encoding/binary"
	"fmt"
)

// What goes over the wire, all of it in the host's byte order: a netlink header of 16 bytes, struct cn_msg of 20
// (linux/connector.h), and in events struct proc_event (linux/cn_proc.h). One datagram is one event.
const (
	offType     = 4  // nlmsghdr.nlmsg_type
	offIdx      = 16 // cn_msg.id.idx
	offVal      = 20 // cn_msg.id.val
	offAck      = 28 // cn_msg.ack
	offLen      = 32 // cn_msg.len, of what follows cn_msg
	offWhat     = 36 // proc_event.what
	offStamp    = 44 // proc_event.timestamp_ns; not aligned
	offPID      = 52 // of EXIT, COREDUMP and EXEC; of a reply it is the error
	offTGID     = 56
	offStatus   = 60
	sizeNetlink = 16
	sizeHeaders = 36
	sizeEvent   = 76 // of every event and reply of every kernel until 6.18

	typeDone = 3 // NLMSG_DONE
	idxProc  = 1 // CN_IDX_PROC, which is also the multicast group
	valProc  = 1 // CN_VAL_PROC
)

// Requests.
const (
	opListen = 1 // PROC_CN_MCAST_LISTEN
	opIgnore = 2 // PROC_CN_MCAST_IGNORE
)

// Kinds of event, and bits of the mask in a request.
const (
	eventReply    = 0          // PROC_EVENT_NONE
	eventExec     = 0x2        // PROC_EVENT_EXEC
	eventCoredump = 0x40000000 // PROC_EVENT_COREDUMP
	eventExit     = 0x80000000 // PROC_EVENT_EXIT
	eventAll      = 0xffffffff
)

// A message is one datagram from the kernel. Of events that we do not want only what is set.
type message struct {
	what   uint32
	ack    uint32 // of a reply: that of the request, plus one
	errno  uint32 // of a reply
	stamp  uint64 // CLOCK_MONOTONIC in nanoseconds
	tgid   int
	tid    int
	status uint32 // of EXIT
}

// parse reads a datagram. It takes longer ones than today's, as a newer kernel may append fields, and nothing shorter.
func parse(b []byte) (message, error) {
	if len(b) < sizeEvent {
		return message{}, fmt.Errorf("parse a process event: %d bytes, want %d", len(b), sizeEvent)
	}
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(b[off:]) }
	if n := u32(0); uint64(n) != uint64(len(b)) {
		return message{}, fmt.Errorf("parse a process event: netlink says %d bytes of %d", n, len(b))
	}
	if t := binary.NativeEndian.Uint16(b[offType:]); t != typeDone {
		return message{}, fmt.Errorf("parse a process event: netlink type %d", t)
	}
	if idx, val := u32(offIdx), u32(offVal); idx != idxProc || val != valProc {
		return message{}, fmt.Errorf("parse a process event: from connector %d.%d", idx, val)
	}
	if n := binary.NativeEndian.Uint16(b[offLen:]); int(n) != len(b)-sizeHeaders {
		return message{}, fmt.Errorf("parse a process event: connector says %d bytes of %d", n, len(b)-sizeHeaders)
	}
	m := message{what: u32(offWhat), stamp: binary.NativeEndian.Uint64(b[offStamp:])}
	switch m.what {
	case eventReply:
		m.ack, m.errno = u32(offAck), u32(offPID)
	case eventExit, eventCoredump, eventExec:
		tid, tgid := int32(u32(offPID)), int32(u32(offTGID))
		if tid <= 0 || tgid <= 0 {
			return message{}, fmt.Errorf("parse a process event: thread %d of process %d", tid, tgid)
		}
		m.tid, m.tgid = int(tid), int(tgid)
		if m.what == eventExit {
			m.status = u32(offStatus)
		}
	}
	return m, nil
}

// request makes what follows the netlink header of a request, in the short form or, with a mask, in the one that
// kernels know from 6.6 on and older ones ignore.
func request(op, ack uint32, mask ...uint32) []byte {
	b := make([]byte, sizeHeaders-sizeNetlink, sizeHeaders)
	put := func(off int, v uint32) { binary.NativeEndian.PutUint32(b[off-sizeNetlink:], v) }
	put(offIdx, idxProc)
	put(offVal, valProc)
	put(offAck, ack)
	binary.NativeEndian.PutUint16(b[offLen-sizeNetlink:], uint16(4+4*len(mask)))
	b = binary.NativeEndian.AppendUint32(b, op)
	for _, m := range mask {
		b = binary.NativeEndian.AppendUint32(b, m)
	}
	return b
}
