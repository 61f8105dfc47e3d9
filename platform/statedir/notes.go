package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Notes are small facts that must outlive us but not the machine, a JSON file each in one folder. They are not synced:
// what they are about ends with the machine. It is safe for concurrent use on different keys, also by several processes.
type Notes struct{ dir string }

// NewNotes returns the notes in a folder, which is made with the first note.
func NewNotes(dir string) *Notes { return &Notes{dir} }

const (
	noteSuffix = ".json"
	noteMost   = 64 << 10 // bytes; nobody but us writes notes, and ours are far smaller
)

// Put writes the note of a key, which must be a plain file name.
func (n *Notes) Put(key string, note any) error {
	file, err := n.file(key)
	if err != nil {
		return err
	}
	data, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("note of %s: %w", key, err)
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return fmt.Errorf("note of %s: %w", key, err)
	}
	aside := file + ".new"
	err = os.WriteFile(aside, data, 0o600)
	if err == nil {
		err = os.Rename(aside, file) // a reader sees the old note or the new one
	}
	if err != nil {
		return fmt.Errorf("note of %s: %w", key, errors.Join(err, os.Remove(aside)))
	}
	return nil
}

// Delete removes the note of a key. That there is none is success.
func (n *Notes) Delete(key string) error {
	file, err := n.file(key)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note of %s: %w", key, err)
	}
	return nil
}

// Each reads all notes. One that cannot be read costs only itself: the error tells of it, and the others are read.
func (n *Notes) Each(read func(key string, data []byte) error) error {
	entries, err := os.ReadDir(n.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("notes: %w", err)
	}
	var faults []error
	for _, entry := range entries {
		key, isNote := strings.CutSuffix(entry.Name(), noteSuffix)
		if !isNote {
			continue
		}
		err := n.read(key, entry, read)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have been deleted meanwhile
			faults = append(faults, fmt.Errorf("note of %s: %w", key, err))
		}
	}
	return errors.Join(faults...)
}

func (n *Notes) read(key string, entry fs.DirEntry, read func(key string, data []byte) error) error {
	info, err := entry.Info()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() > noteMost:
		return fmt.Errorf("%s of %d bytes is no note of ours", info.Mode().Type(), info.Size())
	}
	data, err := os.ReadFile(filepath.Join(n.dir, entry.Name()))
	if err != nil {
		return err
	}
	return read(key, data)
}

func (n *Notes) file(key string) (string, error) {
	if key == "" || key != filepath.Base(key) || strings.HasPrefix(key, ".") {
		return "", fmt.Errorf("note of %q: not a plain name", key)
	}
	return filepath.Join(n.dir, key+noteSuffix), nil
}
