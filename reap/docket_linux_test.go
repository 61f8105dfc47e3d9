package reap_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// smallDisk is a state directory on a file system of a few pages.
func smallDisk(t *testing.T) state {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		if errors.Is(err, syscall.EPERM) {
			t.Skipf("root here may not mount: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := state{t, reap.NewDocket(dir), dir}
	if err := s.Make(); err != nil {
		t.Fatal(err)
	}
	return s
}

// fill leaves no room on the disk.
func (s state) fill() {
	s.Helper()
	f, err := os.Create(filepath.Join(s.dir, "ballast"))
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		s.Fatal(err)
	}
}

func (s state) clear() {
	s.Helper()
	if err := os.Remove(filepath.Join(s.dir, "ballast")); err != nil {
		s.Fatal(err)
	}
}

func TestR8AFullDiskSpoilsNoRecord(t *testing.T) {
	s := smallDisk(t)
	s.write(aCase("a"), aCase("b"))
	s.fill()
	for _, c := range []reap.Case{failed("a", 1), aCase("c")} {
		if err := s.Write(c); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s is written: %v", c.ID, err)
		}
	}
	if err := s.Drop(id("b")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("dropped: %v", err)
	}
	got, damaged := s.loaded()
	if damaged > 0 || len(got) != 2 || got["a"].Attempts != 0 {
		t.Errorf("%d damaged, cases %+v", damaged, got)
	}
	if len(s.files()) != 6 {
		t.Errorf("left behind: %q", s.files())
	}
	if err := s.Close(id("b")); err != nil { // that needs no room
		t.Error(err)
	}
	s.clear()
	s.write(failed("a", 1), aCase("c"))
	s.holds("a", "c")
}

// L before D: a full disk must not keep an orphan alive.
func TestR8TheLoopGoesOnWithAFullDiskAndSaysSoOnce(t *testing.T) {
	disk := smallDisk(t)
	onStand(t, func(c *reap.Config) { c.Docket = disk.Docket }, func(s *stand) {
		s.engine.remove = func(_ context.Context, name string) error {
			if name == "stuck" && disk.isFull() {
				return errBusy
			}
			return nil
		}
		said := func(failed, back int) {
			s.Helper()
			if got := s.log.told(watch.EventDocketFailed, slog.LevelError); len(got) != failed {
				s.Fatalf("said to fail %d times, want %d: %+v", len(got), failed, got)
			}
			if got := s.log.told(watch.EventDocketFailed, slog.LevelInfo); len(got) != failed+back {
				s.Fatalf("said to work again %d times, want %d", len(got)-failed, back)
			}
		}
		s.run(born("a", labels{"ttl": "1m"}))
		s.pass(2 * time.Minute)
		said(0, 0)
		disk.fill()
		s.run(born("b", labels{"ttl": "1m"}), born("stuck", labels{"ttl": "1m"}), born("c", labels{"ttl": "2m"}))
		s.pass(10 * time.Minute)
		s.run(born("d", labels{"ttl": "1m"}))
		s.pass(2 * time.Minute)
		said(1, 0)
		if got := s.engine.names(); len(got) != 1 {
			s.Errorf("left are %v", got)
		}
		if failed := s.log.told(watch.EventDocketFailed, slog.LevelError); !errors.Is(failed[0].attrs[watch.KeyError].(error), syscall.ENOSPC) {
			s.Errorf("said: %v", failed[0].attrs)
		}
		disk.clear()
		s.pass(10 * time.Minute)
		s.run(born("e", labels{"ttl": "1m"}))
		s.pass(2 * time.Minute)
		said(1, 1)
		if got := s.engine.names(); len(got) > 0 {
			s.Errorf("left are %v", got)
		}
		disk.holds()
	})
}

func (s state) isFull() bool {
	_, err := os.Lstat(filepath.Join(s.dir, "ballast"))
	return err == nil
}
