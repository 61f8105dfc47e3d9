package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/watch"
)

// lockFile is the lock of a base folder, as a runner makes it.
func lockFile(dir, base string) string {
	sum := sha256.Sum256([]byte(base))
	return filepath.Join(dir, "base-dir-"+hex.EncodeToString(sum[:])+".lock")
}

// A locker is a process that has a file locked.
type locker struct {
	t   *testing.T
	cmd *exec.Cmd
	end func()
}

// lockBy starts a process that takes the flock of a file, and keeps it until it ends.
func lockBy(t *testing.T, file string, args ...string) *locker {
	t.Helper()
	args = append(append([]string{"--exclusive", "--nonblock"}, args...), file, "sh", "-c", "echo locked; exec cat")
	cmd := exec.Command("flock", args...)
	read, in, err := os.Pipe() // Wait would close a pipe of cmd's own, and end who inherited the lock
	ok(t, err)
	defer read.Close()
	cmd.Stdin = read
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	l := &locker{t: t, cmd: cmd}
	l.end = func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(func() { l.end() })
	said := make([]byte, len("locked\n"))
	if _, err := out.Read(said); err != nil {
		t.Fatalf("nobody locked %s: %v", file, err)
	}
	return l
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// realDir is a folder by the name that the kernel has for it.
func realDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	ok(t, err)
	return dir
}

func theHost(t *testing.T) *process.Host {
	t.Helper()
	host, err := process.NewHost("/proc")
	ok(t, err)
	return host
}

// identity is who has a PID now.
func identity(t *testing.T, pid int) watch.Process {
	t.Helper()
	handle, err := theHost(t).Open(pid)
	ok(t, err)
	defer handle.Close()
	return handle.Process()
}

func TestLockLife(t *testing.T) {
	for _, tt := range []struct {
		name    string
		content string // %: the base folder; -: there is no file
		locked  bool
		want    watch.Life
	}{
		{"locked", "%", true, watch.Alive},
		{"locked, with a line end", "%\n", true, watch.Alive},
		{"locked, and not written yet", "", true, watch.Alive},
		{"locked, and about another", "/elsewhere", true, watch.Unknown},
		{"locked, and about one whose name begins alike", "%/x", true, watch.Unknown},
		{"free", "%", false, watch.Exited},
		{"free, of an old runner", "", false, watch.Exited},
		{"free, and about another", "/elsewhere", false, watch.Unknown},
		{"free, and too large", strings.Repeat("/x", unix.PathMax), false, watch.Unknown},
		{"none", "-", false, watch.Exited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			locks, base := realDir(t), realDir(t)
			file := lockFile(locks, base)
			if tt.content != "-" {
				ok(t, os.WriteFile(file, []byte(strings.ReplaceAll(tt.content, "%", base)), 0o600))
			}
			var want watch.Process
			if tt.locked {
				l := lockBy(t, file, "--no-fork")
				if tt.want == watch.Alive {
					want = identity(t, l.cmd.Process.Pid)
				}
			}
			life, owner, detail := lockLife(locks, base)
			if life != tt.want || owner != want {
				t.Errorf("lockLife = %v, %v, %q; want %v, %v", life, owner, detail, tt.want, want)
			}
			if life == watch.Unknown && detail == "" {
				t.Error("nobody says why that is unknown")
			}
		})
	}
}

// TestLockLifeKeepsNothing shows that a look neither keeps the lock nor writes.
func TestLockLifeKeepsNothing(t *testing.T) {
	locks, base := realDir(t), realDir(t)
	file := lockFile(locks, base)
	ok(t, os.WriteFile(file, []byte(base), 0o600))
	for range 100 {
		if life, _, detail := lockLife(locks, base); life != watch.Exited {
			t.Fatalf("lockLife = %v, %q", life, detail)
		}
	}
	l := lockBy(t, file, "--no-fork")
	link := filepath.Join(realDir(t), "link")
	ok(t, os.Symlink(locks, link))
	for range 100 {
		if life, _, detail := lockLife(link, base); life != watch.Alive {
			t.Fatalf("lockLife = %v, %q", life, detail)
		}
	}
	l.end()
	if life, _, detail := lockLife(locks, base); life != watch.Exited {
		t.Errorf("after its owner's death lockLife = %v, %q", life, detail)
	}
	content, err := os.ReadFile(file)
	ok(t, err)
	if string(content) != base {
		t.Errorf("the lock file has become %q", content)
	}
}

// TestLockLifeWhenManyLook shows that our own looks do not take each other for owners.
func TestLockLifeWhenManyLook(t *testing.T) {
	locks, base := realDir(t), realDir(t)
	ok(t, os.WriteFile(lockFile(locks, base), []byte(base), 0o600))
	ended := make(chan watch.Life)
	const looks = 50
	for range looks {
		go func() {
			life, _, _ := lockLife(locks, base)
			ended <- life
		}()
	}
	for range looks {
		if life := <-ended; life != watch.Exited {
			t.Errorf("lockLife = %v", life)
		}
	}
}

// TestLockLifeOfAnHeir: a lock lives on in a child after its taker's death.
func TestLockLifeOfAnHeir(t *testing.T) {
	locks, base := realDir(t), realDir(t)
	file := lockFile(locks, base)
	ok(t, os.WriteFile(file, []byte(base), 0o600))
	l := lockBy(t, file) // flock(1) waits for its child, which has the lock as well
	children, err := os.ReadFile(filepath.Join("/proc", itoa(l.cmd.Process.Pid), "task", itoa(l.cmd.Process.Pid), "children"))
	ok(t, err)
	child := identity(t, atoi(t, strings.TrimSpace(string(children))))
	handle, err := theHost(t).Open(child.PID)
	ok(t, err)
	defer handle.Close()
	t.Cleanup(func() { _ = handle.Signal(unix.SIGKILL) })
	ok(t, l.cmd.Process.Kill())
	_ = l.cmd.Wait()
	life, owner, detail := lockLife(locks, base)
	if life != watch.Alive || owner != (watch.Process{}) || detail == "" {
		t.Errorf("lockLife = %v, %v, %q, want %v of nobody that is known", life, owner, detail, watch.Alive)
	}
}

// TestLockLifeOfAnHeirWithAParent: nor is it the taker's when that lives and has closed the file.
func TestLockLifeOfAnHeirWithAParent(t *testing.T) {
	locks, base := realDir(t), realDir(t)
	file := lockFile(locks, base)
	ok(t, os.WriteFile(file, []byte(base), 0o600))
	cmd := exec.Command("python3", "-c", `import fcntl, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(f, fcntl.LOCK_EX)
child = os.fork()
if child:
    os.close(f)
    print("locked", flush=True)
sys.stdin.read()
if child:
    os.waitpid(child, 0)`, file)
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (apt-get install python3)", err)
	}
	t.Cleanup(func() {
		_ = in.Close() // both end
		_ = cmd.Wait()
	})
	_, err = out.Read(make([]byte, len("locked\n")))
	ok(t, err)
	life, owner, detail := lockLife(locks, base)
	if life != watch.Alive || owner != (watch.Process{}) || detail == "" {
		t.Errorf("lockLife = %v, %v, %q, want %v of nobody that is known", life, owner, detail, watch.Alive)
	}
}

func TestLockLifeOfStrangeThings(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, locks, base string) (string, string){
		"no folder of locks": func(t *testing.T, locks, base string) (string, string) {
			return filepath.Join(locks, "none"), base
		},
		"a folder of locks that is a file": func(t *testing.T, locks, base string) (string, string) {
			file := filepath.Join(locks, "file")
			ok(t, os.WriteFile(file, nil, 0o600))
			return file, base
		},
		"a link": func(t *testing.T, locks, base string) (string, string) {
			target := filepath.Join(locks, "target")
			ok(t, os.WriteFile(target, []byte(base), 0o600))
			ok(t, os.Symlink(target, lockFile(locks, base)))
			return locks, base
		},
		"a FIFO": func(t *testing.T, locks, base string) (string, string) {
			ok(t, unix.Mkfifo(lockFile(locks, base), 0o600))
			return locks, base
		},
		"a folder": func(t *testing.T, locks, base string) (string, string) {
			ok(t, os.Mkdir(lockFile(locks, base), 0o700))
			return locks, base
		},
		"a base folder by another name": func(t *testing.T, locks, base string) (string, string) {
			link := filepath.Join(locks, "link")
			ok(t, os.Symlink(base, link))
			return locks, link
		},
		"a base folder that is not cleaned": func(t *testing.T, locks, base string) (string, string) {
			return locks, base + "/."
		},
		"a base folder that is gone": func(t *testing.T, locks, base string) (string, string) {
			return locks, filepath.Join(base, "none")
		},
		"a relative base folder": func(t *testing.T, locks, _ string) (string, string) {
			return locks, "."
		},
	} {
		t.Run(name, func(t *testing.T) {
			locks, base := prepare(t, realDir(t), realDir(t))
			if life, owner, detail := lockLife(locks, base); life != watch.Unknown || owner != (watch.Process{}) || detail == "" {
				t.Errorf("lockLife = %v, %v, %q, want %v and why", life, owner, detail, watch.Unknown)
			}
		})
	}
}
