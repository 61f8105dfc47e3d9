package statedir_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"watcher/platform/statedir"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

// await starts an Await and returns once its watch stands.
func await(t *testing.T, ctx context.Context, path string) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	before := watches(t)
	go func() { ended <- statedir.Await(ctx, path) }()
	deadline := time.Now().Add(patience)
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for watches(t) <= before {
		if time.Now().After(deadline) {
			t.Fatal("no watch was set up")
		}
		<-beat.C
	}
	return ended
}

// watches counts the inotify watches of this process, as the kernel lists them (proc_pid_fdinfo(5)).
func watches(t *testing.T) (n int) {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		b, _ := os.ReadFile(info) // descriptors come and go
		n += strings.Count(string(b), "inotify wd:")
	}
	return n
}

func result(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatal("Await does not return")
		return nil
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAwaitAppearance(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, path string)
		appear func(t *testing.T, path string)
	}{
		{"created", nil, write},
		{"renamed into place", nil, func(t *testing.T, path string) {
			write(t, path+".new")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}},
		{"renamed over the old one", write, func(t *testing.T, path string) {
			write(t, path+".new")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}},
		{"created anew", write, func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			write(t, path)
		}},
		{"a link", nil, func(t *testing.T, path string) {
			if err := os.Symlink("/nowhere", path); err != nil {
				t.Fatal(err)
			}
		}},
		{"a folder", nil, func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "docker.sock")
			if tt.before != nil {
				tt.before(t, path)
			}
			ended := await(t, t.Context(), path)
			tt.appear(t, path)
			if err := result(t, ended); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAwaitOfAnother(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "docker.sock")
	write(t, path) // there already: that alone is not its appearance
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	ended := await(t, ctx, path)
	neighbour := await(t, t.Context(), filepath.Join(dir, "docker.sock.2"))

	write(t, filepath.Join(dir, "docker.soc"))
	write(t, path) // written to, not created
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "docker.sock.2"))
	if err := result(t, neighbour); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		t.Errorf("Await = %v, and its file was not created", err)
	default:
	}
	cancel(cause)
	if err := result(t, ended); !errors.Is(err, cause) {
		t.Errorf("Await = %v, want the cause of its context's end", err)
	}
}

func TestAwaitEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := statedir.Await(ctx, filepath.Join(t.TempDir(), "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Await = %v, want %v", err, context.Canceled)
	}
}

func TestAwaitWithoutFolder(t *testing.T) {
	if err := statedir.Await(t.Context(), filepath.Join(t.TempDir(), "missing", "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Await = %v, want %v", err, fs.ErrNotExist)
	}
}
