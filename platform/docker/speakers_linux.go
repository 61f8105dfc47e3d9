package docker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/watch"
)

// maxAncestors is how far up those who speak to a client are looked for. PID 1 is none of them.
const maxAncestors = 16

// speakers returns the ancestors of a client that hold the other end of its standard input, and so could speak to it.
// A shell in between is an ancestor, and may have inherited that end. Which of several means to use it does not show: the
// shell may be all that is left of the owner, or the owner a shell that forked it and is about to exit. All are returned.
//
// Nobody, if this cannot be found out, and if the other end is held by others alone, as in a pipeline.
func (f *clientFinder) speakers(h *process.Handle, dir string) (speakers []watch.Process) {
	stdin, err := os.Readlink(filepath.Join(dir, "fd/0"))
	if err != nil {
		return nil
	}
	end, writes, ok := otherEnd(stdin)
	if !ok {
		return nil
	}
	child := h
	for range maxAncestors {
		parent, err := f.parent(child)
		if child != h {
			_ = child.Close()
		}
		if err != nil {
			return speakers
		}
		if holds(parent, end, writes) {
			speakers = append(speakers, parent.Process())
		}
		child = parent
	}
	_ = child.Close()
	return speakers
}

// heirs returns clients that live with those who hold the other end of their standard input, if all who spoke to any of
// them are dead. Nobody, if it is not so, or nobody does.
func (f *clientFinder) heirs(clients []watch.Client) (heirs []watch.Client, err error) {
	var living []*process.Handle
	defer func() {
		for _, h := range living {
			_ = h.Close()
		}
	}()
	for _, c := range clients {
		if len(c.Speakers) == 0 || slices.ContainsFunc(c.Speakers, f.lives) {
			return nil, nil
		}
		if slices.ContainsFunc(living, func(h *process.Handle) bool { return h.Process() == c.Process }) {
			continue
		}
		switch h, err := f.proc.Open(c.Process.PID); {
		case errors.Is(err, process.ErrGone):
		case err != nil:
			return nil, err
		case h.Process() != c.Process:
			_ = h.Close()
		default:
			living = append(living, h)
		}
	}
	for _, h := range living {
		speakers, err := f.allWhoSpeak(h)
		if err != nil {
			return nil, err
		}
		for _, speaker := range speakers {
			heirs = append(heirs, watch.Client{Process: h.Process(), Speakers: []watch.Process{speaker}})
		}
	}
	return heirs, nil
}

// lives reports whether a process lives, or may.
func (f *clientFinder) lives(process watch.Process) bool {
	h, err := f.proc.Open(process.PID)
	if err != nil {
		return !isGone(err)
	}
	defer h.Close()
	exited, err := h.Exited()
	return h.Process() == process && (err != nil || !exited)
}

// allWhoSpeak returns all processes but a client itself that hold the other end of its standard input.
func (f *clientFinder) allWhoSpeak(client *process.Handle) (speakers []watch.Process, err error) {
	stdin, err := os.Readlink(filepath.Join(procRoot, strconv.Itoa(client.Process().PID), "fd/0"))
	switch {
	case errors.Is(err, os.ErrNotExist): // closed, or its process is dead
		return nil, nil
	case err != nil:
		return nil, err
	}
	end, writes, ok := otherEnd(stdin)
	if !ok {
		return nil, nil
	}
	entries, err := os.ReadDir(procRoot)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == client.Process().PID {
			continue
		}
		dir := filepath.Join(procRoot, entry.Name(), "fd")
		if fds, err := os.ReadDir(dir); err != nil {
			if isGone(err) {
				continue
			}
			return nil, err
		} else if len(fds) == 0 {
			continue
		}
		h, err := f.proc.Open(pid)
		switch {
		case isGone(err):
			continue
		case err != nil:
			return nil, err
		}
		if holds(h, end, writes) {
			speakers = append(speakers, h.Process())
		}
		_ = h.Close()
	}
	return speakers, nil
}

// isGone reports whether an error says that there is no such process any more.
func isGone(err error) bool {
	return errors.Is(err, process.ErrGone) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

var errNoParent = errors.New("it has no parent that counts")

// parent holds the parent of a process.
func (f *clientFinder) parent(child *process.Handle) (*process.Handle, error) {
	pid, err := parentOf(child)
	if err != nil {
		return nil, err
	}
	if pid <= 1 { // 0: it is outside of our PID namespace
		return nil, errNoParent
	}
	parent, err := f.proc.Open(pid)
	if err != nil {
		return nil, err
	}
	// If the parent died before we held it, the child has another one by now, and the PID may be anybody's.
	if again, err := parentOf(child); err != nil || again != pid {
		return nil, errors.Join(errNoParent, err, parent.Close())
	}
	return parent, nil
}

func parentOf(h *process.Handle) (pid int, err error) {
	status, err := h.ReadFile("status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if number, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(number))
		}
	}
	return 0, errors.New("status without PPid")
}

// otherEnd returns what a descriptor is called, in a /proc/PID/fd, that is the other end of one: of a pipe the same, if it
// is open for writing; of a pair of sockets the peer.
func otherEnd(end string) (other string, writes, ok bool) {
	if strings.HasPrefix(end, "pipe:[") {
		return end, true, true
	}
	number, ok := strings.CutPrefix(strings.TrimSuffix(end, "]"), "socket:[")
	if !ok {
		return "", false, false // a terminal or a file: nobody speaks there who has a part in it
	}
	inode, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return "", false, false
	}
	peer, err := peerInode(uint32(inode))
	if err != nil {
		return "", false, false
	}
	return fmt.Sprintf("socket:[%d]", peer), false, true
}

// holds reports whether a process has a descriptor of that name, for writing if it must be.
func holds(h *process.Handle, name string, writes bool) bool {
	dir := filepath.Join(procRoot, strconv.Itoa(h.Process().PID), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if link, err := os.Readlink(filepath.Join(dir, fd.Name())); err != nil || link != name {
			continue
		}
		if writes && !isWritable(h, fd.Name()) {
			continue
		}
		exited, err := h.Exited()
		return err == nil && !exited
	}
	return false
}

func isWritable(h *process.Handle, fd string) bool {
	info, err := h.ReadFile(filepath.Join("fdinfo", fd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		if flags, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(flags), 8, 64)
			return err == nil && n&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// peerInode asks the kernel for the peer of a UNIX socket of our network namespace (sock_diag(7)).
func peerInode(inode uint32) (peer uint32, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, fmt.Errorf("socket NETLINK_SOCK_DIAG: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, askForPeer(inode), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask for the peer of socket %d: %w", inode, err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the peer of socket %d: %w", inode, err)
	}
	if peer, err = readPeer(answer[:n], inode); err != nil {
		return 0, fmt.Errorf("ask for the peer of socket %d: %w", inode, err)
	}
	return peer, nil
}

const (
	showPeer = 0x4 // UDIAG_SHOW_PEER in include/uapi/linux/unix_diag.h
	peerType = 2   // UNIX_DIAG_PEER
	unixDiag = 16  // the length of struct unix_diag_msg
)

// askForPeer makes a message of a struct unix_diag_req.
func askForPeer(inode uint32) []byte {
	var b bytes.Buffer
	for _, field := range []any{
		unix.NlMsghdr{Len: unix.SizeofNlMsghdr + 24, Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_REQUEST, Seq: 1},
		[4]uint8{unix.AF_UNIX}, // and the protocol
		^uint32(0),             // in any state
		inode, uint32(showPeer),
		^uint64(0), // whatever its cookie
	} {
		// A buffer takes whatever is of a fixed size.
		_ = binary.Write(&b, binary.NativeEndian, field)
	}
	return b.Bytes()
}

var errDiag = errors.New("not an answer")

// readPeer reads the answer: a struct unix_diag_msg and attributes, or an error.
func readPeer(b []byte, inode uint32) (peer uint32, err error) {
	native := binary.NativeEndian
	if len(b) < unix.SizeofNlMsghdr+4 {
		return 0, errDiag
	}
	length, kind := int(native.Uint32(b)), native.Uint16(b[4:])
	if length < unix.SizeofNlMsghdr || length > len(b) {
		return 0, errDiag
	}
	body := b[unix.SizeofNlMsghdr:length]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4:
		return 0, unix.Errno(-int32(native.Uint32(body)))
	case kind != unix.SOCK_DIAG_BY_FAMILY, len(body) < unixDiag, native.Uint32(body[4:]) != inode:
		return 0, errDiag
	}
	for rest := body[unixDiag:]; len(rest) >= unix.SizeofRtAttr; {
		size, kind := int(native.Uint16(rest)), native.Uint16(rest[2:])
		if size < unix.SizeofRtAttr || size > len(rest) {
			break
		}
		if kind == peerType && size == unix.SizeofRtAttr+4 {
			if peer = native.Uint32(rest[unix.SizeofRtAttr:]); peer != 0 {
				return peer, nil
			}
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return 0, errors.New("nobody has it")
}
