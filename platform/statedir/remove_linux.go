package statedir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// remove removes what has a path if it is still the incarnation that id names.
func remove(ctx context.Context, file string, id watch.ID) error {
	in, err := openFolder(path.Dir(file))
	if err != nil {
		return unlessAbsent(err)
	}
	defer in.close()
	name := path.Base(file)
	e, err := in.look(name)
	if err != nil {
		return unlessAbsent(err)
	}
	defer e.close()
	if e.id() != id {
		return nil
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	switch why, err := mounts.use(ctx, e, everything); {
	case err != nil:
		return err
	case why != "":
		return fmt.Errorf("it %w: %s", ErrInUse, why)
	}
	return (&removal{}).entry(ctx, in, name, e)
}

// entry removes e, which had a name in a folder, with all in it.
func (r *removal) entry(ctx context.Context, in folder, name string, e *entry) error {
	if e.is(unix.S_IFDIR) {
		return r.folder(ctx, in, name, e)
	}
	switch err := unix.Unlinkat(in.fd, name, 0); {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.EISDIR): // EISDIR: something else has its name by now
		return nil
	default:
		return &fs.PathError{Op: "unlink", Path: readable(e.path), Err: err}
	}
}

func (r *removal) folder(ctx context.Context, in folder, name string, e *entry) error {
	top, err := folder{e.fd, e.path}.open()
	if err != nil {
		return &fs.PathError{Op: "open", Path: readable(e.path), Err: err}
	}
	defer top.Close()
	above, err := placeOf(in.fd)
	if err != nil {
		return fmt.Errorf("%s: %w", readable(in.path), err)
	}
	place, err := placeOf(int(top.Fd()))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", readable(e.path), err)
	case place.mount != above.mount:
		return fmt.Errorf("it %w: a file system is mounted there", ErrInUse)
	}
	r.top, r.place = int(top.Fd()), place
	if r.owner != nil {
		if err := ownedBy(r.top, *r.owner); err != nil {
			if unix.Unlinkat(in.fd, name, unix.AT_REMOVEDIR) == nil {
				return nil // it is empty
			}
			return err
		}
	}
	if err := r.empty(ctx, top, e.path, 1); err != nil {
		return err
	}
	if err := r.fault(); err != nil {
		return err
	}
	// Something else may have its name by now, if only an empty folder.
	switch now, err := in.look(name); {
	case errors.Is(err, errAbsent):
		return nil
	case err != nil:
		return err
	default:
		defer now.close()
		if !e.same(&now.stat) {
			return nil
		}
	}
	switch err := unix.Unlinkat(in.fd, name, unix.AT_REMOVEDIR); {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil
	default:
		return &fs.PathError{Op: "rmdir", Path: readable(e.path), Err: err}
	}
}

// maxDepth is how many folders of a leftover are open at a time, at most. What lies deeper is moved up to the top of the
// leftover first (T8). With 64 that costs one rename for as many folders, and hardly any leftover is that deep.
const maxDepth = 64

// A removal is one attempt at removing something.
type removal struct {
	owner *uint32 // whose folders alone are emptied; nil: everybody's

	top    int // the leftover
	place  place
	lifted int // folders moved to the top
	first  error
	failed int
}

// fail notes that something could not be removed.
func (r *removal) fail(op, file string, err error) {
	if r.failed++; r.failed == 1 {
		r.first = &fs.PathError{Op: op, Path: readable(file), Err: err}
	}
}

func (r *removal) fault() error {
	if r.failed > 1 {
		return fmt.Errorf("%w (and %d more like that)", r.first, r.failed-1)
	}
	return r.first
}

// empty removes what is in a folder. The error is that of ctx; what else goes wrong is noted.
//
// A second pass finds what was added meanwhile or lifted, and what some file systems leave out when a folder shrinks
// while it is read. What cannot be removed is not visited for that.
func (r *removal) empty(ctx context.Context, dir *os.File, file string, depth int) error {
	for {
		failed, lifted, removed := r.failed, r.lifted, 0
		for {
			names, err := dir.Readdirnames(batch)
			for _, name := range names {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				gone, err := r.remove(ctx, int(dir.Fd()), name, file, depth)
				if err != nil {
					return err
				}
				if gone {
					removed++
				}
			}
			if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				r.fail("getdents", file, errnoOf(err))
				return nil
			}
		}
		more := r.failed == failed && removed > 0 || depth == 1 && r.lifted != lifted
		if !more {
			return nil
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			r.fail("lseek", file, errnoOf(err))
			return nil
		}
	}
}

// remove removes one name in a folder and reports whether it did.
func (r *removal) remove(ctx context.Context, dir int, name, in string, depth int) (gone bool, err error) {
	op, err := unlink(dir, name)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil // it went, or is something else by now: the next pass will see
	case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST):
		r.fail(op, in+"/"+name, err)
		return false, nil
	}
	if depth == maxDepth {
		r.lift(dir, name, in)
		return false, nil
	}
	sub, err := r.enter(dir, name)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return false, nil
	case err != nil:
		r.fail("open", in+"/"+name, err)
		return false, nil
	}
	defer sub.Close()
	failed, lifted := r.failed, r.lifted
	if err := r.empty(ctx, sub, in+"/"+name, depth+1); err != nil {
		return false, err
	}
	if r.failed != failed {
		return false, nil // and that is why this one stays
	}
	op, err = unlink(dir, name)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
	case errors.Is(err, unix.ENOTEMPTY) && r.lifted != lifted:
	default:
		r.fail(op, in+"/"+name, err)
	}
	return false, nil
}

// unlink removes a name that is no folder, or an empty one.
func unlink(dir int, name string) (op string, err error) {
	if err := unix.Unlinkat(dir, name, 0); !errors.Is(err, unix.EISDIR) {
		return "unlink", err
	}
	return "rmdir", unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// enter opens a folder of the leftover, if it is on the same mount and device (T4). What is opened was in the folder when
// it was opened, and nobody can put another in the place of what a descriptor is about.
func (r *removal) enter(dir int, name string) (*os.File, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	place, err := placeOf(fd)
	switch {
	case err != nil:
	case place != r.place:
		err = fmt.Errorf("another file system: %w", unix.EXDEV)
	case r.owner != nil:
		err = ownedBy(fd, *r.owner)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ownedBy returns nil if a file belongs to a user (T9).
func ownedBy(fd int, uid uint32) error {
	var s unix.Statx_t
	if err := statx(fd, &s); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	if s.Uid != uid {
		return fmt.Errorf("it belongs to user %d and not to %d: %w", s.Uid, uid, unix.EPERM)
	}
	return nil
}

// lift moves a folder that lies too deep to the top of the leftover, where the next pass finds it.
func (r *removal) lift(dir int, name, in string) {
	up := ".watcher-" + strconv.FormatUint(rand.Uint64(), 36)
	switch err := unix.Renameat(dir, name, r.top, up); {
	case err == nil:
		r.lifted++
	case errors.Is(err, unix.ENOENT):
	default:
		r.fail("rename", in+"/"+name, err)
	}
}
