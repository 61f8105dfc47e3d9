package firecracker

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// probing lets one look at locks happen at a time: to ask for a lock can mean to have it for a moment, and two of our own
// looks would take each other for an owner.
var probing sync.Mutex

// lockLife says whether somebody has a base folder locked, as a runner has for all its life: an exclusive flock(2) on the
// file in lockDir that is named after the SHA-256 of the base folder's path, and has that path for its content. Alive comes
// with who took the lock, if that process still has it. It never waits and keeps no lock.
//
// The name of the file says whose lock it is. The content, which the owner writes when it has the lock, may still be empty;
// if it is another path then something is wrong with the file, and nobody knows. A file that is not there is nobody's lock:
// an owner makes it before anything else, and it is only removed by who has it locked. A folder that is not there is a slip
// of the pen, or an owner of another make.
func lockLife(lockDir, base string) (life watch.Life, owner watch.Process, detail string) {
	unknown := func(err error) (watch.Life, watch.Process, string) {
		return watch.Unknown, watch.Process{}, err.Error()
	}
	if err := canonical(base); err != nil {
		return unknown(fmt.Errorf("the lock of %s: %w", base, err))
	}
	// It may well be on another disk, with a link to it.
	lockDir, err := filepath.EvalSymlinks(lockDir)
	if err == nil {
		err = isFolder(lockDir)
	}
	if err != nil {
		return unknown(fmt.Errorf("the folder of locks: %w", err))
	}
	sum := sha256.Sum256([]byte(base))
	file := filepath.Join(lockDir, "base-dir-"+hex.EncodeToString(sum[:])+".lock")

	probing.Lock()
	defer probing.Unlock()
	// Who has no use for a lock file any more may remove it while we look.
	const tries = 3
	for range tries {
		before, content, err := readSmall(file, unix.PathMax)
		if errors.Is(err, fs.ErrNotExist) {
			return watch.Exited, watch.Process{}, "nobody has locked " + base
		}
		if err != nil {
			return unknown(err)
		}
		life, pid, err := statedir.Locked(file)
		if err != nil {
			return unknown(err)
		}
		after, err := os.Lstat(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return unknown(err)
		}
		if err != nil || !os.SameFile(before, after) {
			continue
		}
		if said := strings.TrimSuffix(string(content), "\n"); said != "" && said != base {
			return unknown(fmt.Errorf("%s is about %q and not about %s", file, said, base))
		}
		switch {
		case life == watch.Exited:
			return watch.Exited, watch.Process{}, "nobody has locked " + base
		case pid == 0:
			return life, watch.Process{}, "somebody has locked " + base
		}
		owner, err := flockOwner(pid, before)
		if err != nil {
			return life, watch.Process{}, fmt.Sprintf("somebody has locked %s: %v", base, err)
		}
		return life, owner, ""
	}
	return unknown(fmt.Errorf("%s became another file each time it was looked at", file))
}

// flockOwner identifies the process that took a flock, and makes sure that it has it: a lock belongs to an open file, which
// may have been left to a child (flock(2)). What locks an open file has is in its fdinfo (proc_pid_fdinfo(5), Linux 4.1).
func flockOwner(pid int, file fs.FileInfo) (watch.Process, error) {
	host, err := process.NewHost("/proc")
	if err != nil {
		return watch.Process{}, err
	}
	handle, err := host.Open(pid)
	if err != nil {
		return watch.Process{}, fmt.Errorf("process %d took the lock: %w", pid, err)
	}
	defer handle.Close()
	st := file.Sys().(*syscall.Stat_t)
	mark := fmt.Appendf(nil, " %02x:%02x:%d ", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	infos, err := os.ReadDir(dir)
	if err != nil {
		return watch.Process{}, fmt.Errorf("process %d took the lock: %w", pid, err)
	}
	for _, info := range infos {
		text, err := handle.ReadFile(filepath.Join("fdinfo", info.Name()))
		if errors.Is(err, process.ErrGone) {
			return watch.Process{}, fmt.Errorf("process %d took the lock: %w", pid, err)
		}
		for line := range bytes.Lines(text) {
			if bytes.HasPrefix(line, []byte("lock:")) && bytes.Contains(line, []byte(" FLOCK ")) && bytes.Contains(line, mark) {
				return handle.Process(), nil
			}
		}
	}
	return watch.Process{}, fmt.Errorf("process %d took the lock and has it no more", pid)
}

// canonical says what keeps a path from being the one that the kernel has for it: by any other name it would be another
// lock.
func canonical(base string) error {
	if !filepath.IsAbs(base) {
		return errors.New("it has no absolute path")
	}
	switch real, err := filepath.EvalSymlinks(base); {
	case err != nil:
		return err
	case real != base:
		return fmt.Errorf("its path is %s", real)
	}
	return nil
}

func isFolder(dir string) error {
	switch info, err := os.Stat(dir); {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is none", dir)
	}
	return nil
}

// readSmall reads a regular file of at most limit bytes, without following a link in place of it and without waiting for
// anybody (open(2): a FIFO would, and to open a device can do something).
func readSmall(file string, limit int64) (fs.FileInfo, []byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no regular file", file)
	}
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(content)) > limit {
		return nil, nil, fmt.Errorf("%s has more than %d bytes", file, limit)
	}
	return info, content, nil
}
