package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"watcher/watch"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: needs root")
	}
}

func needInit(t *testing.T) {
	t.Helper()
	needRoot(t)
	if initial, err := theHost(t).InitialNamespace(); err != nil || !initial {
		t.Skip("NOT RUN: needs the first PID namespace")
	}
}

// do runs a program to its end.
func do(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", command, err, out)
	}
	return string(out)
}

// A testNet is a network namespace as a runner makes one, with a veth to it and a tap in it. The pool is one that no runner
// uses: they begin with the first.
type testNet struct {
	t    *testing.T
	host netHost
	netns
}

func newTestNet(t *testing.T) *testNet {
	t.Helper()
	needInit(t)
	n := bareNet(t)
	do(t, "ip", "netns", "add", n.name)
	do(t, "ip", "link", "add", n.veth(), "type", "veth", "peer", "name", "veth0", "netns", n.name)
	do(t, "ip", "-n", n.name, "tuntap", "add", "vm0-tap", "mode", "tap")
	do(t, "ip", "link", "set", n.veth(), "up")
	do(t, "ip", "-n", n.name, "link", "set", "veth0", "up")
	return n
}

// bareNet is a name that nothing has yet.
func bareNet(t *testing.T) *testNet {
	t.Helper()
	for i := range 0xff {
		name := fmt.Sprintf("vm0-ns-e%x-%02x", os.Getpid()%16, 0xff-i)
		parsed, err := parseNetns(name)
		ok(t, err)
		host := netHost{names: "/run/netns", locks: realDir(t), init: "/proc/self"}
		if there, err := parsed.exists(host.names); err == nil && !there {
			n := &testNet{t, host, parsed}
			t.Cleanup(func() {
				for unix.Unmount(n.file(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
				}
				_ = os.Remove(n.file())
				_ = exec.Command("ip", "link", "delete", n.veth()).Run()
			})
			return n
		}
	}
	t.Fatal("every name is taken")
	return nil
}

func (n *testNet) file() string     { return filepath.Join(n.host.names, n.name) }
func (n *testNet) lockFile() string { return filepath.Join(n.host.locks, n.lock()) }

func (n *testNet) remove() error { return n.host.remove(n.t.Context(), n.name) }

func (n *testNet) there() (name, link bool) {
	n.t.Helper()
	_, err := os.Lstat(n.file())
	_, linkErr := netlink.LinkByName(n.veth())
	return err == nil, linkErr == nil
}

func (n *testNet) isGone() {
	n.t.Helper()
	if name, link := n.there(); name || link {
		n.t.Errorf("the namespace's name is there: %t, and the veth: %t", name, link)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), n.name) {
		n.t.Errorf("the namespace is still mounted, or %v", err)
	}
}

func (n *testNet) isWhole() {
	n.t.Helper()
	if name, link := n.there(); !name || !link {
		n.t.Errorf("the namespace's name is there: %t, and the veth: %t; want both", name, link)
	}
	if strings.Contains(do(n.t, "ip", "-n", n.name, "link", "show", "veth0"), "DOWN") {
		n.t.Error("the wire to the namespace is cut")
	}
}

func TestRemoveNetns(t *testing.T) {
	n := newTestNet(t)
	n.isWhole()
	ok(t, n.remove())
	n.isGone()
	ok(t, n.remove()) // once more is success
}

// TestRemoveNetnsAsInstalled is about the paths that are built in.
func TestRemoveNetnsAsInstalled(t *testing.T) {
	n := newTestNet(t)
	ok(t, removeNetns(t.Context(), n.name))
	n.isGone()
}

func TestRemoveWhatIsLeftOfANetns(t *testing.T) {
	for name, spoil := range map[string]func(n *testNet){
		"no veth":                    func(n *testNet) { do(n.t, "ip", "link", "delete", n.veth()) },
		"no namespace, but the name": func(n *testNet) { ok(n.t, unix.Unmount(n.file(), unix.MNT_DETACH)) },
		"mounted twice":              func(n *testNet) { do(n.t, "mount", "--bind", n.file(), n.file()) },
		"with a neighbour": func(n *testNet) {
			neighbour := bareNet(n.t)
			do(n.t, "ip", "netns", "add", neighbour.name)
			n.t.Cleanup(func() {
				if _, err := os.Lstat(neighbour.file()); err != nil {
					n.t.Error("the neighbour is gone, too")
				}
			})
		},
		"held open": func(n *testNet) {
			f, err := os.Open(n.file())
			ok(n.t, err)
			n.t.Cleanup(func() { _ = f.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNet(t)
			spoil(n)
			ok(t, n.remove())
			n.isGone()
		})
	}
	t.Run("only a veth", func(t *testing.T) {
		needInit(t)
		n := bareNet(t)
		do(t, "ip", "link", "add", n.veth(), "type", "veth", "peer", "name", "wt-"+n.ordinal)
		ok(t, n.remove())
		n.isGone()
	})
	t.Run("only a name", func(t *testing.T) {
		needInit(t)
		n := bareNet(t)
		ok(t, os.MkdirAll(n.host.names, 0o755))
		ok(t, os.WriteFile(n.file(), nil, 0o400))
		ok(t, n.remove())
		n.isGone()
	})
	t.Run("nothing, and no folder of names", func(t *testing.T) {
		needInit(t)
		n := bareNet(t)
		n.host.names = filepath.Join(t.TempDir(), "none")
		ok(t, n.remove())
	})
}

// TestNetnsOfARunnerThatLives: the lock of a pool says that its namespaces are in use, whoever is in them.
func TestNetnsOfARunnerThatLives(t *testing.T) {
	n := newTestNet(t)
	ok(t, os.WriteFile(n.lockFile(), nil, 0o600))
	l := lockBy(t, n.lockFile(), "--no-fork")
	err := n.remove()
	if !errors.Is(err, watch.ErrInUse) || !strings.Contains(err.Error(), itoa(l.cmd.Process.Pid)) {
		t.Errorf("remove = %v, want %v and who", err, watch.ErrInUse)
	}
	n.isWhole()
	l.end()
	ok(t, n.remove())
	n.isGone()
	lockBy(t, n.lockFile(), "--no-fork") // it was given back
}

func TestLockOfAPoolIsDecimal(t *testing.T) {
	n, err := parseNetns("vm0-ns-2a-0b")
	ok(t, err)
	if n.lock() != "vm0-netns-pool-42.lock" || n.veth() != "vm0-ve-2a-0b" {
		t.Errorf("lock %s, veth %s", n.lock(), n.veth())
	}
}

// TestAnotherWatcher: one that removes something of the same pool just now is not a runner.
func TestAnotherWatcher(t *testing.T) {
	n := newTestNet(t)
	ok(t, os.WriteFile(n.lockFile(), nil, 0o600))
	f, err := os.Open(n.lockFile())
	ok(t, err)
	defer f.Close()
	ok(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	if err := n.remove(); err == nil || errors.Is(err, watch.ErrInUse) {
		t.Errorf("remove = %v, want an error that lets it be tried again", err)
	}
	n.isWhole()
}

func TestManyOfAPoolAtOnce(t *testing.T) {
	needInit(t)
	locks := realDir(t)
	ended := make(chan error)
	var nets []*testNet
	for range 8 {
		n := newTestNet(t)
		n.host.locks = locks
		ok(t, os.WriteFile(n.lockFile(), nil, 0o600))
		nets = append(nets, n)
	}
	for _, n := range nets {
		go func() { ended <- n.remove() }()
	}
	for range nets {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for _, n := range nets {
		n.isGone()
	}
}

// TestNetnsWithInhabitants: a process, and a thread of one, that lives in it keeps it.
func TestNetnsWithInhabitants(t *testing.T) {
	for name, command := range map[string][]string{
		"a process": {"ip", "netns", "exec", "%", "cat"},
		"a thread": {"python3", "-c", `import ctypes, os, sys, threading
def move():
    fd = os.open("/run/netns/%", os.O_RDONLY)
    assert ctypes.CDLL(None).setns(fd, 0x40000000) == 0
    done.set()
    threading.Event().wait()
done = threading.Event()
threading.Thread(target=move, daemon=True).start()
done.wait()
print("there", flush=True)
sys.stdin.read()
os._exit(0)`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Fatalf("%v (apt-get install python3 iproute2)", err)
			}
			n := newTestNet(t)
			args := make([]string, len(command))
			for i, arg := range command {
				args[i] = strings.ReplaceAll(arg, "%", n.name)
			}
			cmd := exec.Command(args[0], args[1:]...)
			in, err := cmd.StdinPipe()
			ok(t, err)
			out, err := cmd.StdoutPipe()
			ok(t, err)
			ok(t, cmd.Start())
			t.Cleanup(func() {
				_ = in.Close()
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			if command[0] == "ip" {
				_, err = io.WriteString(in, "there\n") // which cat says again
				ok(t, err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "there\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if err := n.remove(); err == nil || !strings.Contains(err.Error(), itoa(cmd.Process.Pid)) {
				t.Errorf("remove = %v, want that process %d lives there", err, cmd.Process.Pid)
			}
			n.isWhole()
			ok(t, in.Close())
			_ = cmd.Wait()
			ok(t, n.remove())
			n.isGone()
		})
	}
}

func TestNotANetns(t *testing.T) {
	for name, prepare := range map[string]func(n *testNet){
		"the network namespace of the host": func(n *testNet) {
			ok(n.t, os.WriteFile(n.file(), nil, 0o600))
			do(n.t, "mount", "--bind", "/proc/self/ns/net", n.file())
		},
		"a namespace of another kind": func(n *testNet) {
			ok(n.t, os.WriteFile(n.file(), nil, 0o600))
			do(n.t, "mount", "--bind", "/proc/self/ns/uts", n.file())
		},
		"a file with something in it": func(n *testNet) { ok(n.t, os.WriteFile(n.file(), []byte("x"), 0o600)) },
		"a folder":                    func(n *testNet) { ok(n.t, os.Mkdir(n.file(), 0o700)) },
		"a link":                      func(n *testNet) { ok(n.t, os.Symlink("/proc/self/ns/net", n.file())) },
		"a FIFO":                      func(n *testNet) { ok(n.t, unix.Mkfifo(n.file(), 0o600)) },
		"a link of another kind": func(n *testNet) {
			do(n.t, "ip", "tuntap", "add", n.veth(), "mode", "tap")
		},
		"a veth to another namespace": func(n *testNet) {
			do(n.t, "ip", "netns", "add", n.name)
			other := bareNet(n.t)
			do(n.t, "ip", "netns", "add", other.name)
			do(n.t, "ip", "link", "add", "wt-"+n.ordinal, "netns", n.name, "type", "veth", "peer", "name", "wt0", "netns", "1")
			do(n.t, "ip", "link", "add", n.veth(), "type", "veth", "peer", "name", "veth0", "netns", other.name)
			n.t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", "wt0").Run() })
		},
		"a lock that is a FIFO": func(n *testNet) {
			ok(n.t, os.WriteFile(n.file(), nil, 0o600))
			ok(n.t, unix.Mkfifo(n.lockFile(), 0o600))
		},
		"a lock that is a link": func(n *testNet) {
			ok(n.t, os.WriteFile(n.file(), nil, 0o600))
			ok(n.t, os.Symlink("/dev/null", n.lockFile()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			needInit(t)
			n := bareNet(t)
			ok(t, os.MkdirAll(n.host.names, 0o755))
			prepare(n)
			file, link := n.there()
			if err := n.remove(); err == nil || errors.Is(err, watch.ErrInUse) {
				t.Errorf("remove = %v, want an error", err)
			} else {
				t.Log(err)
			}
			if nowFile, nowLink := n.there(); nowFile != file || nowLink != link {
				t.Errorf("there are the name %t and the veth %t; there were %t and %t", nowFile, nowLink, file, link)
			}
		})
	}
}

func TestNamesOfNamespaces(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "/", "vm0-ns-", "vm0-ns-00", "vm0-ns-00-0", "vm0-ns-00-000", "vm0-ns-0A-00", "vm0-ns-0g-00", "vm0-ns-00-00/",
		"../vm0-ns-00-00", "vm0-ns-00-00\n", "vm0-ns-00-00\x00", " vm0-ns-00-00", "vm0-ns-00-dns", "docker", "vm0-ns-00-00-00",
	} {
		if err := removeNetns(t.Context(), name); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

// TestElsewhere: what a thread of its own does to itself never happens to us.
func TestElsewhere(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	ok(t, err)
	for range 100 {
		var there string
		ok(t, elsewhere(func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			there, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		}))
		for _, self := range []string{"self", "thread-self"} {
			after, err := os.Readlink("/proc/" + self + "/ns/net")
			ok(t, err)
			if after != before || after == there {
				t.Fatalf("we were in %s and are in %s of %s; elsewhere is %s", before, after, self, there)
			}
		}
	}
}

// TestNetnsFromBehindMounts removes namespaces from a mount namespace such as a unit with mount sandboxing has. What plays the
// host is a process with the mounts of the test.
func TestNetnsFromBehindMounts(t *testing.T) {
	for name, hide := range map[string]func(n *testNet) error{
		"as it was": func(*testNet) error { return nil },
		// Then the first mount of the namespace cannot be reached any more: EBUSY.
		"mounted over": func(*testNet) error { return unix.Mount("/run", "/run", "", unix.MS_BIND|unix.MS_REC, "") },
		"read-only": func(n *testNet) error {
			return errors.Join(
				unix.Mount(n.host.names, n.host.names, "", unix.MS_BIND|unix.MS_REC, ""),
				unix.Mount("", n.host.names, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		},
		"unmounted here":  func(n *testNet) error { return unix.Unmount(n.file(), unix.MNT_DETACH) },
		"hidden entirely": func(*testNet) error { return unix.Mount("none", "/run", "tmpfs", 0, "") },
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNet(t)
			p, _ := begin(t, nil)
			n.host.init = "/proc/" + itoa(p.PID)
			ok(t, elsewhere(func() error {
				if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")); err != nil {
					return err
				}
				if err := hide(n); err != nil {
					return err
				}
				return n.remove()
			}))
			n.isGone()
		})
	}
	t.Run("with an inhabitant that is not to be seen", func(t *testing.T) {
		n := newTestNet(t)
		p, _ := begin(t, nil)
		n.host.init = "/proc/" + itoa(p.PID)
		cmd := exec.Command("ip", "netns", "exec", n.name, "cat")
		in, err := cmd.StdinPipe()
		ok(t, err)
		out, err := cmd.StdoutPipe()
		ok(t, err)
		ok(t, cmd.Start())
		t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
		_, err = io.WriteString(in, "x\n")
		ok(t, err)
		_, err = out.Read(make([]byte, 2))
		ok(t, err)
		err = elsewhere(func() error {
			err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""), unix.Unmount(n.file(), unix.MNT_DETACH))
			if err != nil {
				return err
			}
			return n.remove()
		})
		if err == nil || !strings.Contains(err.Error(), "lives in it") {
			t.Errorf("remove = %v, want that somebody lives in it", err)
		}
		n.isWhole()
	})
	t.Run("of a host that cannot be asked", func(t *testing.T) {
		n := newTestNet(t)
		n.host.init = "/proc/0"
		err := elsewhere(func() error {
			err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""), unix.Unmount(n.file(), unix.MNT_DETACH))
			if err != nil {
				return err
			}
			return n.remove()
		})
		if err == nil || errors.Is(err, watch.ErrInUse) {
			t.Errorf("remove = %v, want an error: a namespace that is not to be seen may be mounted there", err)
		}
		n.isWhole()
	})
}
