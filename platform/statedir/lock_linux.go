package statedir

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"watcher/watch"
)

// ErrLocked says that another process holds the lock of a state directory.
var ErrLocked = errors.New("is in use")

// Lock takes the lock of a state directory, which must exist, until unlock is called or the process ends. The folder
// itself is locked (flock(2)), so that the lock needs no space on a disk that may be full. If another process has it
// the error wraps [ErrLocked] and says which.
func Lock(dir string) (unlock func() error, err error) {
	l := flock.New(dir, flock.SetFlag(os.O_RDONLY))
	ok, err := l.TryLock()
	switch {
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	case !ok:
		return nil, fmt.Errorf("state directory %s %w by %s", dir, ErrLocked, holder(dir))
	}
	return l.Close, nil
}

// holder says who holds the lock of a folder; it is for people, and may not know.
func holder(dir string) string {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err == nil {
		if pid, err := flockedBy(unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino); err == nil && pid != 0 {
			return "process " + strconv.Itoa(pid)
		}
	}
	return "another process"
}

// flockedBy returns a process that took the flock(2) of a file, as /proc/locks has it; 0 if it has none. That proves nothing:
// below the first PID namespace it leaves out whoever is not of ours, or has exited and left the lock to a child, and on some
// file systems (Btrfs, overlay) stat(2) tells of another device than it does.
//
// It is dear: whoever reads /proc/locks has all file locks of the host wait for a grace period of RCU, some 10 ms.
func flockedBy(major, minor uint32, inode uint64) (pid int, err error) {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	want := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 1: FLOCK  ADVISORY  WRITE 4242 fd:01:1234 0 EOF; of one who waits the second field is an arrow (proc_locks(5)).
		if fields := strings.Fields(lines.Text()); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == want {
			return strconv.Atoi(fields[4])
		}
	}
	return 0, lines.Err()
}

// Locked says whether a process has locked a file or folder, and if that can be told which process took the lock; it may have
// left it to a child and be gone. Exited stands for nobody, as if there is no such file. The path is absolute; if a link is on the way, or what has it is neither file nor folder, nobody knows.
//
// It does not wait. Whom /proc/locks does not know it can only find by trying the lock, and then has it for microseconds:
// whoever wants it just then, and does not wait either, is refused.
func Locked(file string) (life watch.Life, holder int, err error) {
	fault := func(err error) (watch.Life, int, error) {
		return watch.Unknown, 0, fmt.Errorf("who has locked %s: %w", readable(file), err)
	}
	in, name, err := openParent(file)
	switch {
	case errors.Is(err, errElsewhere):
		return fault(err)
	case errors.Is(err, errAbsent):
		return watch.Exited, 0, nil
	case err != nil:
		return fault(err)
	}
	defer in.close()
	e, err := in.look(name)
	switch {
	case errors.Is(err, errElsewhere):
		return fault(err)
	case errors.Is(err, errAbsent):
		return watch.Exited, 0, nil
	case err != nil:
		return fault(err)
	}
	defer e.close()
	if !e.is(unix.S_IFREG) && !e.is(unix.S_IFDIR) {
		return fault(errors.New("it is neither a file nor a folder")) // to open a device can do something
	}
	if pid, err := flockedBy(e.stat.Dev_major, e.stat.Dev_minor, e.stat.Ino); err == nil && pid != 0 {
		return watch.Alive, pid, nil
	}
	switch used, err := e.locked(); {
	case err != nil:
		return fault(err)
	case used != "":
		return watch.Alive, 0, nil
	}
	return watch.Exited, 0, nil
}
