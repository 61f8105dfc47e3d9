package statedir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Folder is an open folder of another program, for a look at what is in it: all that is learnt through it is about the same
// folder, whatever becomes of its path. Nothing that it opens is behind a link (T3).
type Folder struct {
	e *entry
}

// OpenFolder opens the folder that has an absolute path. The error wraps [fs.ErrNotExist] if there is none, or if a link or
// something else that is no folder is there or on the way.
func OpenFolder(file string) (*Folder, error) {
	in, name, err := openParent(file)
	if err != nil {
		return nil, notExist(file, err)
	}
	defer in.close()
	return in.opened(name)
}

// Open opens a folder in f.
func (f *Folder) Open(name string) (*Folder, error) { return f.in().opened(name) }

func (f folder) opened(name string) (*Folder, error) {
	e, err := f.look(name)
	if err != nil {
		return nil, notExist(f.join(name), err)
	}
	if !e.is(unix.S_IFDIR) {
		e.close()
		return nil, notExist(f.join(name), errElsewhere)
	}
	return &Folder{e}, nil
}

func notExist(file string, err error) error {
	switch {
	case errors.Is(err, errElsewhere):
		return fmt.Errorf("open %s: it is no folder, or not reached without a link: %w", readable(file), fs.ErrNotExist)
	case errors.Is(err, errAbsent):
		return &fs.PathError{Op: "open", Path: readable(file), Err: fs.ErrNotExist}
	}
	return err
}

func (f *Folder) in() folder { return folder{f.e.fd, f.e.path} }

// Close closes f.
func (f *Folder) Close() { f.e.close() }

// Path is where f was when it was opened.
func (f *Folder) Path() string { return f.e.path }

// Owner is the user whom f belongs to.
func (f *Folder) Owner() uint32 { return f.e.stat.Uid }

// Incarnation names f, as [Incarnation] does.
func (f *Folder) Incarnation() string { return f.e.id().Name }

// Born is when f was created. Where nobody knows, it is the latest time that f bears.
func (f *Folder) Born() time.Time {
	at, _ := f.e.born()
	return at
}

// Names calls each with what is in f, in no order, until an error.
func (f *Folder) Names(ctx context.Context, each func(name string) error) error {
	err := f.in().names(ctx, each)
	if errors.Is(err, errAbsent) {
		return notExist(f.e.path, err)
	}
	return err
}

// A File is what was read of a file, and of whose it is.
type File struct {
	Data     []byte
	Owner    uint32
	Modified time.Time
}

// ErrNoFile says that there is something other than a file, or more than was asked for.
var ErrNoFile = errors.New("not a file of that sort")

// ReadFile reads a regular file in f of at most so many bytes. It waits for nobody, and opens nothing that is not a regular
// file: not a link, pipe, socket or device. The error wraps [fs.ErrNotExist] if there is nothing of that name.
func (f *Folder) ReadFile(name string, most int) (File, error) {
	e, err := f.file(name)
	if err != nil {
		return File{}, err
	}
	defer e.close()
	tooLarge := fmt.Errorf("%s: %w: more than %d bytes", readable(e.path), ErrNoFile, most)
	if e.stat.Size > uint64(most) {
		return File{}, tooLarge
	}
	fd, err := e.reopen()
	if err != nil {
		return File{}, &fs.PathError{Op: "open", Path: readable(e.path), Err: err}
	}
	file := os.NewFile(uintptr(fd), e.path)
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	if err != nil {
		return File{}, &fs.PathError{Op: "read", Path: readable(e.path), Err: errnoOf(err)}
	}
	if len(data) > most {
		return File{}, tooLarge // it grew
	}
	modified := e.stat.Mtime
	return File{Data: data, Owner: e.stat.Uid, Modified: time.Unix(modified.Sec, int64(modified.Nsec))}, nil
}

// file looks at a regular file in f.
func (f *Folder) file(name string) (*entry, error) {
	e, err := f.in().look(name)
	switch {
	case errors.Is(err, errElsewhere):
		return nil, fmt.Errorf("%s: %w", readable(f.in().join(name)), ErrNoFile)
	case err != nil:
		return nil, notExist(f.in().join(name), err)
	case !e.is(unix.S_IFREG):
		e.close()
		return nil, fmt.Errorf("%s: %w", readable(e.path), ErrNoFile)
	}
	return e, nil
}

// lockBeat is how often a lock is tried. There is no way to wait for one and for something else as well.
const lockBeat = 20 * time.Millisecond

// Lock takes the lock (flock(2)) of a regular file in f, and waits for it until ctx ends: then the error wraps [ErrInUse].
// It wraps [fs.ErrNotExist] if there is no such file.
func (f *Folder) Lock(ctx context.Context, name string) (unlock func(), err error) {
	e, err := f.file(name)
	if err != nil {
		return nil, err
	}
	defer e.close()
	fd, err := e.reopen()
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: readable(e.path), Err: err}
	}
	beat := time.NewTicker(lockBeat)
	defer beat.Stop()
	for {
		switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return func() { _ = unix.Close(fd) }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			_ = unix.Close(fd)
			return nil, &fs.PathError{Op: "flock", Path: readable(e.path), Err: err}
		}
		select {
		case <-ctx.Done():
			_ = unix.Close(fd)
			return nil, fmt.Errorf("it %w: %s is locked", ErrInUse, readable(e.path))
		case <-beat.C:
		}
	}
}

// Locked reports whether a process has locked a regular file in f. To find out it takes the lock for microseconds: whoever wants
// it just then, and does not try again, is refused. The error wraps [fs.ErrNotExist] if there is no such file.
func (f *Folder) Locked(name string) (bool, error) {
	e, err := f.file(name)
	if err != nil {
		return false, err
	}
	defer e.close()
	used, err := e.locked()
	if err != nil {
		return false, fmt.Errorf("%s: %w", readable(e.path), err)
	}
	return used != "", nil
}

// Mounts are the mounts of our namespace as they were when they were read.
type Mounts struct{ all mounts }

// ReadMounts reads the mounts.
func ReadMounts() (Mounts, error) {
	all, err := readMounts()
	return Mounts{all}, err
}

// At says in words which mount has something to do with what is at a path, or "": one is there or below, or has it or
// something in it mounted elsewhere (T4). What is at the path is not touched, so it cannot hold us up.
func (m Mounts) At(file string) string { return m.all.at(file) }
