package firecracker

// Proposals for what calls removeNetns:
//   - A claimed pool (watch.ErrInUse) means that a runner that lives has taken the pool over, and with it what was left there,
//     which it removes itself when it starts. The other leaves of the sandbox are not concerned: remove them all the same,
//     and take this part for done. removeRules says nil then.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/watch"
)

// A netHost is where the network namespaces of microVMs, and what belongs to them, are found.
type netHost struct {
	names string // the folder in which ip-netns(8) gives namespaces their names
	locks string // the folder with the locks of pools
	init  string // the folder in /proc of a process that has the mounts of the host
}

var theNetHost = netHost{names: "/run/netns", locks: "/var/lock", init: hostInit}

// hostInit is a process with the mounts of the host. A test of the whole program links another in, where nobody may look into
// the first one.
var hostInit = "/proc/1"

// view returns the folder of names as the host has it, which may have mounts there that we do not see. The error says that
// it cannot be told whether our mounts are the host's; the folder is then as we have it.
func (h netHost) view() (folder string, err error) {
	switch same, err := sameFile("/proc/thread-self/ns/mnt", h.init+"/ns/mnt"); {
	case err != nil:
		return h.names, fmt.Errorf("whether we have the mounts of the host: %w", err)
	case same:
		return h.names, nil
	}
	return h.init + "/root" + h.names, nil
}

// atHome makes sure that we are in the network of the host, where rules and veths are: in a unit with PrivateNetwork= there
// would seem to be none. Where the host does not let that be compared it is taken for granted.
func (h netHost) atHome() error {
	if same, err := sameFile("/proc/thread-self/ns/net", h.init+"/ns/net"); err == nil && !same {
		return errors.New("we are not in the network namespace of the host")
	}
	return nil
}

// removeNetns removes the network namespace of a microVM that has ended, and the veth that leads to it. If neither is there
// that is success. The error wraps [watch.ErrInUse] if the pool that the namespace is of belongs to a runner that lives: then
// it is for that runner to remove, or the name means a new one by now.
//
// The lock of the pool is held while the namespace is removed, as a runner does that cleans up after another: no runner can
// begin to use it then. A runner that comes just then takes another pool.
func removeNetns(ctx context.Context, name string) error {
	if err := theNetHost.remove(ctx, name); err != nil {
		return fmt.Errorf("remove network namespace %q: %w", name, err)
	}
	return nil
}

func (h netHost) remove(ctx context.Context, name string) error {
	n, err := parseNetns(name)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := h.atHome(); err != nil {
		return err
	}
	view, unsure := h.view()
	switch there, err := n.exists(view); {
	case err != nil:
		return err
	case !there:
		return nil
	}
	release, err := claimPool(filepath.Join(h.locks, n.lock()))
	if err != nil {
		return err
	}
	defer release()
	ns, err := n.open(view)
	switch {
	case err != nil:
		return err
	case ns == nil && unsure != nil:
		return unsure // a namespace that we do not see may be mounted there
	case ns != nil:
		defer ns.Close()
		if err := empty(ctx, ns); err != nil {
			return err
		}
	}
	// The kernel removes the veth with the namespace, but some time later.
	if err := removeVeth(n.veth(), ns); err != nil {
		return err
	}
	return h.removeName(n.name, view, ns)
}

// A netns is a name of a network namespace: the number of its pool, and its own.
type netns struct {
	name          string
	pool, ordinal string // hexadecimal
	index         uint64 // of the pool
}

// netnsFormat is how a runner names namespaces. The pattern allows nothing that means anything in a path.
var netnsFormat = regexp.MustCompile(`^vm0-ns-([0-9a-f]{2})-([0-9a-f]{2})$`)

func parseNetns(name string) (netns, error) {
	match := netnsFormat.FindStringSubmatch(name)
	if match == nil {
		return netns{}, errors.New("that is not what a runner calls one")
	}
	index, err := strconv.ParseUint(match[1], 16, 8)
	return netns{name, match[1], match[2], index}, err
}

// veth is the name of the host's end of the wire to the namespace.
func (n netns) veth() string { return "vm0-ve-" + n.pool + "-" + n.ordinal }

// lock is the name of the file that a runner has locked for as long as it uses the pool. In it the number is decimal.
func (n netns) lock() string { return "vm0-netns-pool-" + strconv.FormatUint(n.index, 10) + ".lock" }

// exists reports whether the name, or the veth, is there.
func (n netns) exists(view string) (bool, error) {
	switch _, err := os.Lstat(filepath.Join(view, n.name)); {
	case err == nil:
		return true, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	switch _, err := netlink.LinkByName(n.veth()); {
	case err == nil:
		return true, nil
	case !isNoLink(err):
		return false, fmt.Errorf("look for %s: %w", n.veth(), err)
	}
	return false, nil
}

// claims are the locks of pools that we have, by file, with how many removals want each: two of one pool would otherwise take
// each other for its owner.
var claims = struct {
	sync.Mutex
	held map[string]*claim
}{held: map[string]*claim{}}

type claim struct {
	file  *os.File
	users int
}

// claimPool takes the lock of a pool. If there is no such file then nobody has it, and none is made: a runner of another user
// would refuse one that is not its own.
func claimPool(file string) (release func(), err error) {
	claims.Lock()
	defer claims.Unlock()
	c := claims.held[file]
	if c == nil {
		f, err := lockPool(file)
		if f == nil {
			return func() {}, err
		}
		c = &claim{file: f}
		claims.held[file] = c
	}
	c.users++
	return func() {
		claims.Lock()
		defer claims.Unlock()
		if c.users--; c.users > 0 {
			return
		}
		delete(claims.held, file)
		// Unlocked, and not only closed: a child that is just being started may have the file open as well.
		_ = unix.Flock(int(c.file.Fd()), unix.LOCK_UN)
		_ = c.file.Close()
	}, nil
}

// lockPool locks the file of a pool. It is nil if there is none.
func lockPool(file string) (*os.File, error) {
	const tries = 3 // whoever removes the file while we take its lock has no use for it any more
	for range tries {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: file, Err: err}
		}
		f := os.NewFile(uintptr(fd), file)
		current, err := lockCurrent(f)
		if err == nil && current {
			return f, nil
		}
		_ = f.Close()
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, claimed(file)
		case err != nil:
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
	}
	return nil, fmt.Errorf("lock %s: it became another file each time", file)
}

// lockCurrent takes the lock of a file, and reports whether the file still has its name.
func lockCurrent(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, errors.New("it is no regular file")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, err
	}
	now, err := os.Lstat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(info, now), err
}

// claimed is the error for a pool that somebody has. Another watcher has it for a moment only.
func claimed(file string) error {
	who := "somebody"
	if real, err := filepath.EvalSymlinks(file); err == nil {
		if _, pid, err := statedir.Locked(real); err == nil && pid != 0 {
			who = fmt.Sprintf("process %d", pid)
			own, ownErr := os.Readlink("/proc/self/exe")
			its, itsErr := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if ownErr == nil && itsErr == nil && own == its {
				return fmt.Errorf("%s is just being cleaned up by another watcher, %s", file, who)
			}
		}
	}
	return fmt.Errorf("%w: %s has %s locked", watch.ErrInUse, who, file)
}

// open opens the namespace that has a name; nil if the name is there, or was, without a namespace behind it: ip-netns(8)
// makes a file and then mounts the namespace on it, and removes them the other way round.
func (n netns) open(view string) (*os.File, error) {
	file := filepath.Join(view, n.name)
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	is, err := isNetns(f)
	if err != nil || !is {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// isNetns reports whether a file is a network namespace. It is an error if it is one that nobody may remove, or neither a
// namespace nor what is left of one.
func isNetns(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, fmt.Errorf("fstatfs: %w", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return false, err
	case st.Type != unix.NSFS_MAGIC && info.Mode().IsRegular() && info.Size() == 0:
		return false, nil
	case st.Type != unix.NSFS_MAGIC:
		return false, fmt.Errorf("%s is no namespace", f.Name())
	}
	switch kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); {
	case err != nil:
		return false, fmt.Errorf("ioctl NS_GET_NSTYPE: %w", err)
	case kind != unix.CLONE_NEWNET:
		return false, fmt.Errorf("%s is a namespace of another kind", f.Name())
	}
	return true, nil
}

// empty says who lives in a namespace: a process of which a thread is in it. Whoever has it open only is not.
//
// A view of the processes that may not be complete is an error. It is complete if it is that of the first PID namespace, and
// every process in it can be looked at, but for the init of the host: there are hosts that let nobody look into that.
func empty(ctx context.Context, ns *os.File) error {
	host, err := process.NewHost("/proc")
	if err != nil {
		return err
	}
	switch initial, err := host.InitialNamespace(); {
	case err != nil:
		return err
	case !initial:
		return errors.New("not every process can be seen from our PID namespace")
	}
	info, err := ns.Stat()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	complete := false
	for _, entry := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		complete = complete || pid == 1 // hidepid=2 hides those that we may not look into (proc(5))
		switch lives, err := livesIn(pid, info); {
		case err != nil && pid == 1 && errors.Is(err, fs.ErrPermission):
		case err != nil:
			return fmt.Errorf("the view of the processes is not complete: %w", err)
		case lives:
			return fmt.Errorf("process %d lives in it", pid)
		}
	}
	if !complete {
		return errors.New("the view of the processes is not complete: there is no process 1")
	}
	return nil
}

// livesIn reports whether a thread of a process is in a namespace: each may be in one of its own (setns(2)).
func livesIn(pid int, ns fs.FileInfo) (bool, error) {
	tasks := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return false, unlessEnded(err)
	}
	for _, thread := range threads {
		// The namespaces of a zombie are gone already: ENOENT.
		switch info, err := os.Stat(filepath.Join(tasks, thread.Name(), "ns/net")); {
		case err != nil:
			if err := unlessEnded(err); err != nil {
				return false, err
			}
		case os.SameFile(info, ns):
			return true, nil
		}
	}
	return false, nil
}

// unlessEnded forgives what says that a process or thread is gone.
func unlessEnded(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// removeVeth removes the host's end of a veth pair, and with it the other. If the namespace at the other end is given it must
// be that one.
func removeVeth(name string, ns *os.File) error {
	link, err := netlink.LinkByName(name)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	attrs := link.Attrs()
	if attrs.Name != name || link.Type() != "veth" {
		return fmt.Errorf("%s is a %s, and not the veth of a namespace", name, link.Type())
	}
	if ns != nil && attrs.NetNsID >= 0 {
		switch id, err := netlink.GetNetNsIdByFd(int(ns.Fd())); {
		case err != nil:
			return fmt.Errorf("where %s leads: %w", name, err)
		case id != attrs.NetNsID: // a namespace has a number here from when a link to it was looked at on
			return fmt.Errorf("%s leads to another namespace", name)
		}
	}
	// By its number: the name could have gone to another since.
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func isNoLink(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV)
}

// removeName takes the name of a namespace away. The kernel removes the namespace when nobody has it any more.
//
// In a mount namespace of our own, as a unit has with any mount sandboxing, the folder of names may be mounted more than
// once, and one of the mounts of the namespace may not be for us to reach. Then the name cannot be removed here (EBUSY;
// EROFS where the folder is mounted read-only), but in the mount namespace of the host it can.
func (h netHost) removeName(name, view string, ns *os.File) error {
	err := unname(h.names, name, ns)
	switch {
	case view == h.names:
		return err
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
	case err != nil:
		return err
	default:
		if _, err := os.Lstat(filepath.Join(view, name)); err != nil {
			return unlessEnded(err)
		}
		err = errors.New("the host still has it")
	}
	hostErr := elsewhere(func() error {
		if err := enterMounts(h.init + "/ns/mnt"); err != nil {
			return err
		}
		return unname(h.names, name, ns)
	})
	if hostErr != nil {
		return fmt.Errorf("%w; in the mount namespace of the host: %w "+
			"(that needs CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE, and of a unit that RestrictNamespaces= has mnt)", err, hostErr)
	}
	return nil
}

// elsewhere calls f on a thread of its own, which it may move into other namespaces: nothing else ever runs on it, and it ends
// with f. The main thread could not end, and it is what /proc/self shows of us.
func elsewhere(f func() error) error {
	ended := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			ended <- f()
			return
		}
		// While we have the main thread another goroutine has not.
		err := elsewhere(f)
		runtime.UnlockOSThread()
		ended <- err
	}()
	return <-ended
}

// enterMounts moves the thread into another mount namespace. It must not share its root and working folder with other
// threads any more (setns(2)).
func enterMounts(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// unname unmounts the namespace ns from its name, and removes the name. If something else is mounted there by now that is
// an error. A nil ns stands for a name without a namespace.
func unname(folder, name string, ns *os.File) error {
	dir, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessEnded(&fs.PathError{Op: "open", Path: folder, Err: err})
	}
	defer unix.Close(dir)
	const layers = 16 // what is mounted there twice must be unmounted twice
	for range layers {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return unlessEnded(fmt.Errorf("open: %w", err))
		}
		f := os.NewFile(uintptr(fd), filepath.Join(folder, name))
		mounted, err := unmount(f, ns)
		_ = f.Close()
		switch {
		case err != nil:
			return err
		case !mounted:
			if err := unix.Unlinkat(dir, name, 0); err != nil {
				return unlessEnded(fmt.Errorf("unlink: %w", err))
			}
			return nil
		}
	}
	return errors.New("it is mounted too often")
}

// unmount unmounts a namespace from where it was opened, if that is one.
func unmount(f, ns *os.File) (mounted bool, err error) {
	if is, err := isNetns(f); err != nil || !is {
		return false, err
	}
	if ns == nil {
		return false, fmt.Errorf("%s became a namespace meanwhile", f.Name())
	}
	is, err := f.Stat()
	if err != nil {
		return false, err
	}
	was, err := ns.Stat()
	if err != nil {
		return false, err
	}
	if !os.SameFile(is, was) {
		return false, fmt.Errorf("%s became another namespace meanwhile", f.Name())
	}
	// By what was looked at and not by its name, which may mean something else by now. MNT_DETACH, as somebody may have it
	// open (umount(2)).
	if err := unix.Unmount("/proc/thread-self/fd/"+strconv.Itoa(int(f.Fd())), unix.MNT_DETACH); err != nil {
		return false, fmt.Errorf("umount: %w", err)
	}
	return true, nil
}

func sameFile(a, b string) (bool, error) {
	aInfo, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	bInfo, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(aInfo, bInfo), nil
}
