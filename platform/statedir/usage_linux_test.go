package statedir_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"watcher/platform/statedir"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, "vm/data/console.log")
	const size = 4 << 20
	must(t, os.WriteFile(filepath.Join(dir, "vm/data/rootfs"), make([]byte, size), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "elsewhere"), make([]byte, size), 0o600))
	must(t, os.Symlink(dir+"/elsewhere", filepath.Join(dir, "vm/link")))
	must(t, os.Symlink(dir, filepath.Join(dir, "vm/above")))
	sparse, err := os.Create(filepath.Join(dir, "vm/sparse"))
	must(t, err)
	must(t, sparse.Truncate(1<<30))
	must(t, sparse.Close())
	for _, test := range []struct {
		file        string
		least, most int64
	}{
		{"vm", size, size + 1<<20},
		{"elsewhere", size, size + 1<<20},
		{"vm/link", 0, 1 << 20},
		{"vm/above", 0, 1 << 20},
		{"nothing", 0, 0},
		{"nothing/at/all", 0, 0},
	} {
		got, err := statedir.Usage(t.Context(), filepath.Join(dir, test.file))
		if err != nil || got < test.least || got > test.most {
			t.Errorf("%s takes %d bytes, %v; want %d to %d", test.file, got, err, test.least, test.most)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := statedir.Usage(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
