package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/procfs"

	"watcher/watch"
)

// A Host is a view of the processes of this machine. It is safe for concurrent use.
type Host struct {
	proc procfs.FS
	root string
	boot string

	reading chan struct{} // full while as many look at processes as may hang
	hanging sync.Map      // processes at which a look hangs, by PID
}

// hangMost is how many looks at processes there may be at a time: each that hangs has a thread.
const hangMost = 256

// NewHost returns the view through the proc file system mounted at root, usually /proc. It must be the one of our own
// PID namespace, or numbers in it would not be the numbers that system calls take.
func NewHost(root string) (*Host, error) {
	proc, err := procfs.NewFS(root)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	self, err := os.Readlink(filepath.Join(root, "self"))
	if err != nil {
		return nil, fmt.Errorf("find ourselves in %s: %w", root, err)
	}
	if self != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("%s shows another PID namespace: we are %d here and %s there", root, os.Getpid(), self)
	}
	boot, err := os.ReadFile(filepath.Join(root, "sys/kernel/random/boot_id"))
	if err != nil {
		return nil, fmt.Errorf("read the boot ID: %w", err)
	}
	return &Host{proc: proc, root: root, boot: strings.TrimSpace(string(boot)), reading: make(chan struct{}, hangMost)}, nil
}

// Boot is the ID of this boot.
func (h *Host) Boot() string { return h.boot }

// Nested reports whether the process with that PID is in another PID namespace than we are, below ours: then the PIDs
// that it speaks of are not ours. The answer comes from the field NSpid of /proc/PID/status (Linux 4.1), which anybody
// may read, unlike /proc/PID/ns.
func (h *Host) Nested(pid int) (bool, error) {
	proc, err := h.proc.Proc(pid)
	if err != nil {
		return false, fmt.Errorf("look up process %d: %w", pid, err)
	}
	status, err := proc.NewStatus()
	if err != nil {
		return false, fmt.Errorf("read the status of process %d: %w", pid, err)
	}
	if len(status.NSpids) == 0 {
		return false, fmt.Errorf("read the status of process %d: no field NSpid", pid)
	}
	return len(status.NSpids) > 1, nil
}

// initialPIDNamespace is the inode of the first PID namespace, PROC_PID_INIT_INO in include/linux/proc_ns.h.
const initialPIDNamespace = "pid:[4026531836]"

// InitialNamespace reports whether we are in the first PID namespace of this machine.
func (h *Host) InitialNamespace() (bool, error) {
	ns, err := os.Readlink(filepath.Join(h.root, "self/ns/pid"))
	if err != nil {
		return false, fmt.Errorf("find out in which PID namespace we are: %w", err)
	}
	return ns == initialPIDNamespace, nil
}

// ShiftedClock reports whether we are in a time namespace whose clocks differ from the host's (time_namespaces(7),
// Linux 5.6). There /proc shows start times that differ from those which others read. A namespace of our own alone says
// nothing: engines give one to each container, with offsets of zero.
func (h *Host) ShiftedClock() (bool, error) {
	offsets, err := os.ReadFile(filepath.Join(h.root, "self/timens_offsets"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // a kernel without time namespaces
	case err != nil:
		return false, fmt.Errorf("find out whether our clocks are the host's: %w", err)
	}
	for line := range strings.Lines(string(offsets)) {
		// The name of a clock, seconds, nanoseconds.
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return false, fmt.Errorf("find out whether our clocks are the host's: %q in timens_offsets", line)
		}
		if fields[1] != "0" || fields[2] != "0" {
			return true, nil
		}
	}
	return false, nil
}

// Namespace says whether the owners of sandboxes of a kind, which are of the host and not of a system with processes of its own,
// can be judged here: whether what we see of processes is what the host sees, with the same numbers and start times.
func (h *Host) Namespace(kind watch.Kind) watch.NamespaceSeen {
	seen := watch.NamespaceSeen{Kind: kind}
	initial, err := h.InitialNamespace()
	shifted, shiftErr := h.ShiftedClock()
	switch err := errors.Join(err, shiftErr); {
	case err != nil:
		seen.Detail = err.Error()
	case !initial || shifted:
		seen.Detail = "we are in a PID or time namespace of our own, and do not see all processes of this host"
	default:
		seen.Shared = true
	}
	return seen
}

// dir is the folder of a process in this host's proc file system.
func (h *Host) dir(pid int) string { return filepath.Join(h.root, strconv.Itoa(pid)) }
