package statedir

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
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

// holder finds out who holds the lock of a folder (proc_locks(5)); it is for people, and may not know.
func holder(dir string) string {
	const nobodyKnown = "another process"
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nobodyKnown
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nobodyKnown
	}
	defer f.Close()
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4242 fd:01:1234 0 EOF
		if fields := strings.Fields(lines.Text()); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == want {
			return "process " + fields[4]
		}
	}
	return nobodyKnown
}
