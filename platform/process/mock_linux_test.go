package process_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
)

// A mock is a folder that stands for /proc. At first it has us, as we are, and an init.
type mock struct {
	t    *testing.T
	root string
	host *process.Host
}

// inMock is the first of the PIDs that a mock may give out: nobody can have one.
const inMock = 5_000_000

func newMock(t *testing.T) *mock {
	t.Helper()
	m := &mock{t: t, root: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(m.root, "sys/kernel/random"), 0o700); err != nil {
		t.Fatal(err)
	}
	m.link("/proc/sys/kernel/random/boot_id", "sys/kernel/random/boot_id")
	m.link(strconv.Itoa(os.Getpid()), "self")
	m.real(os.Getpid())
	m.add(1, file{name: "exe", content: "/sbin/init", kind: link}, file{name: "cmdline", content: "init\x00"})
	var err error
	if m.host, err = process.NewHost(m.root); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *mock) link(target string, name ...string) {
	m.t.Helper()
	if err := os.Symlink(target, filepath.Join(append([]string{m.root}, name...)...)); err != nil {
		m.t.Fatal(err)
	}
}

// real shows a process as it is.
func (m *mock) real(pid int) {
	m.t.Helper()
	m.link("/proc/"+strconv.Itoa(pid), strconv.Itoa(pid))
}

// A file of a mock.
type file struct {
	name    string // below the process's folder
	content string
	kind    fileKind
}

type fileKind uint8

const (
	plain fileKind = iota
	link
	folder
	fifo
)

// add shows a process that does not exist.
func (m *mock) add(pid int, files ...file) {
	m.t.Helper()
	dir := strconv.Itoa(pid)
	if err := os.Mkdir(filepath.Join(m.root, dir), 0o700); err != nil {
		m.t.Fatal(err)
	}
	for _, f := range files {
		path := filepath.Join(m.root, dir, f.name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		switch {
		case err != nil:
		case f.kind == link:
			err = os.Symlink(f.content, path)
		case f.kind == folder:
			err = os.Mkdir(path, 0o700)
		case f.kind == fifo:
			err = unix.Mkfifo(path, 0o600)
		default:
			err = os.WriteFile(path, []byte(f.content), 0o600)
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
}

// reader waits until somebody opens a fifo to read, and lets them wait for what we write.
func reader(t *testing.T, fifo string) *os.File {
	t.Helper()
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	timeout := time.After(patience)
	for {
		f, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
		switch {
		case err == nil:
			return f
		case !errors.Is(err, unix.ENXIO):
			t.Fatal(err)
		}
		select {
		case <-timeout:
			t.Fatalf("nobody reads %s", fifo)
		case <-beat.C:
		}
	}
}

// emptied is a view of a /proc that is no more.
func emptied(t *testing.T) *process.Host {
	t.Helper()
	m := newMock(t)
	if err := os.RemoveAll(m.root); err != nil {
		t.Fatal(err)
	}
	return m.host
}
