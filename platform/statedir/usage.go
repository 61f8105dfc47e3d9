package statedir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Usage is how many bytes a folder or file takes on its disk, as far as that can be seen: what goes while it is counted counts
// or not. No link is followed. What is not there takes nothing. The error is that of ctx, or says why nothing could be seen.
func Usage(ctx context.Context, file string) (bytes int64, err error) {
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, err
	case !info.IsDir():
		return onDisk(info), nil
	}
	root, err := os.OpenRoot(file)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return nil // it went, or is not for us to see
		}
		if info, err := entry.Info(); err == nil {
			bytes += onDisk(info)
		}
		return nil
	})
	return bytes, err
}

// onDisk is what a file takes: the kernel counts in units of 512 bytes whatever its file system does (stat(2)).
func onDisk(info fs.FileInfo) int64 {
	const block = 512
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * block
	}
	return info.Size()
}
