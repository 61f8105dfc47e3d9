package statedir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// Await returns nil as soon as the file at path is created, anew if it is there already. The folder of path must exist.
// It returns the cause when ctx ends.
func Await(ctx context.Context, path string) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch for %s: %w", path, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch for %s: %w", path, err)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case ev := <-w.Events:
			if ev.Has(fsnotify.Create) && filepath.Base(ev.Name) == filepath.Base(path) {
				return nil
			}
		case err := <-w.Errors:
			// An overflow may have swallowed the one event that matters.
			if _, statErr := os.Stat(path); statErr == nil {
				return nil
			}
			return fmt.Errorf("watch for %s: %w", path, err)
		}
	}
}
