package statedir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Incarnation names what has an absolute path now (T2); "" if nothing has, or if a link is on the way (T3).
//
// Where nobody knows when a file was born, what is there becomes another with every change of it.
func Incarnation(file string) (string, error) {
	in, name, err := openParent(file)
	if err != nil {
		return "", unlessAbsent(err)
	}
	defer in.close()
	e, err := in.look(name)
	if err != nil {
		return "", unlessAbsent(err)
	}
	defer e.close()
	return e.id().Name, nil
}

// Remove removes what has an absolute path, with all in it, if it is still that incarnation. That it is gone, or that
// something else has its path, is success. The error wraps [ErrInUse] if a mount is there or below, or has it elsewhere (T4).
//
// Who has files in it open or locked does not matter: that its sandbox has ended is for the caller to know, and that the
// path is one that a rule names (T1).
func Remove(ctx context.Context, file, incarnation string) error {
	return (&removal{}).incarnation(ctx, file, incarnation)
}

// RemoveOwned is [Remove] of what belongs to one user, in a folder that others may write in or not: folders of other users in
// it are not emptied (T9). What belongs to root is root's own to remove, with everybody's folders in it.
func RemoveOwned(ctx context.Context, uid uint32, file, incarnation string) error {
	r := &removal{}
	if uid != 0 {
		r.owner = &uid
	}
	return r.incarnation(ctx, file, incarnation)
}

func (r *removal) incarnation(ctx context.Context, file, incarnation string) error {
	if err := r.named(ctx, file, incarnation); err != nil {
		return fmt.Errorf("remove %s: %w", readable(file), err)
	}
	return nil
}

func (r *removal) named(ctx context.Context, file, incarnation string) error {
	in, name, err := openParent(file)
	if err != nil {
		return unlessAbsent(err)
	}
	defer in.close()
	e, err := in.look(name)
	if err != nil {
		return unlessAbsent(err)
	}
	defer e.close()
	if e.id().Name != incarnation {
		return nil
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	if why := mounts.at(e.path); why != "" {
		return fmt.Errorf("it %w: %s", ErrInUse, why)
	}
	return r.entry(ctx, in, name, e)
}

// openParent opens the folder that a path is in. The path must be absolute and in its shortest form: one that is not was put
// together of parts that somebody else chose.
func openParent(file string) (in folder, name string, err error) {
	if !path.IsAbs(file) || path.Clean(file) != file || file == "/" || strings.ContainsRune(file, 0) {
		return folder{}, "", errors.New("want an absolute path with neither . nor .. in it")
	}
	in, err = openFolder(path.Dir(file))
	return in, path.Base(file), err
}

// Expand finds the folders that globs name now, in order and each once. No link is followed (T3), and one that cannot be read
// is an error and not empty (T7).
func Expand(ctx context.Context, globs []string) ([]string, error) {
	return foldersOf(globs, func(g glob, root folder, found *[]string) error {
		return g.walk(ctx, root, func(in folder, name string) error {
			sub, err := in.enter(name)
			if err != nil {
				return unlessAbsent(err)
			}
			*found = append(*found, sub.path)
			sub.close()
			return nil
		})
	})
}

// foldersOf returns the folders that find adds for each of the globs, in order and each once.
func foldersOf(globs []string, find func(g glob, root folder, found *[]string) error) ([]string, error) {
	root, err := openRoot()
	if err != nil {
		return nil, err
	}
	defer root.close()
	var found []string
	for _, text := range globs {
		g, err := newFolders(text)
		if err != nil {
			return nil, err
		}
		if err := find(g, root, &found); err != nil {
			return nil, err
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// Nearest finds the folders in which a change can make globs name other folders than they do: those that a pattern is looked for
// in, and where a glob leads no further the last ones on the way.
func Nearest(ctx context.Context, globs []string) ([]string, error) {
	return foldersOf(globs, func(g glob, root folder, found *[]string) error { return g.nearest(ctx, root, found) })
}

func (g glob) nearest(ctx context.Context, in folder, found *[]string) error {
	if len(g) == 0 {
		return nil
	}
	into := func(name string) error {
		sub, err := in.enter(name)
		if err != nil {
			return err
		}
		defer sub.close()
		return g[1:].nearest(ctx, sub, found)
	}
	here := cmp.Or(in.path, "/")
	if g[0].literal() {
		err := into(g[0].text)
		if errors.Is(err, errAbsent) {
			*found = append(*found, here)
		}
		return unlessAbsent(err)
	}
	*found = append(*found, here)
	return unlessAbsent(in.names(ctx, func(name string) error {
		if !g[0].matches(name) {
			return nil
		}
		return unlessAbsent(into(name))
	}))
}

// RemoveEmpty removes the folder that has an absolute path, if it is still that incarnation and nothing is in it. It reports
// whether there is nothing any more that has the path and is that incarnation.
func RemoveEmpty(file, incarnation string) (gone bool, err error) {
	in, name, err := openParent(file)
	if err != nil {
		return errors.Is(err, errAbsent), unlessAbsent(err)
	}
	defer in.close()
	e, err := in.look(name)
	if err != nil {
		return errors.Is(err, errAbsent), unlessAbsent(err)
	}
	defer e.close()
	if e.id().Name != incarnation {
		return true, nil
	}
	switch err := unix.Unlinkat(in.fd, name, unix.AT_REMOVEDIR); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return false, nil
	default:
		return false, &fs.PathError{Op: "rmdir", Path: readable(file), Err: err}
	}
}
