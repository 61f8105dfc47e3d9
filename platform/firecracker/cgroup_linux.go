package firecracker

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// How long a control group may take to notice that its last process is gone. A process leaves it on its way out, before its
// parent can know of its end; what takes longer is the memory that it leaves.
const (
	cgroupPatience = 3 * time.Second
	cgroupBeat     = 10 * time.Millisecond
)

// removeCgroup removes a control group that has neither processes nor groups below it, in every hierarchy that has it. The
// path is as in /proc/PID/cgroup (cgroups(7)), from the root of the hierarchy. What is not there is success. The kernel
// itself refuses to remove a group that anything is in, so nothing can be lost by a path that came to mean another one.
func removeCgroup(ctx context.Context, leaf string) error {
	if err := checkCgroup(leaf); err != nil {
		return fmt.Errorf("remove control group %q: %w", leaf, err)
	}
	roots, err := cgroupRoots()
	if err != nil {
		return fmt.Errorf("remove control group %s: %w", leaf, err)
	}
	var errs []error
	for _, root := range roots {
		if below, ok := root.below(leaf); ok {
			if err := root.remove(ctx, below); err != nil {
				errs = append(errs, fmt.Errorf("remove control group %s%s: %w", root.point, below, err))
			}
		}
	}
	return errors.Join(errs...)
}

// checkCgroup says what is wrong with the path of a group. The kernel shows /.. to those who are in a namespace of control
// groups below it (cgroup_namespaces(7)).
func checkCgroup(leaf string) error {
	switch {
	case !strings.HasPrefix(leaf, "/"), strings.ContainsRune(leaf, 0):
		return errors.New("want an absolute path")
	case leaf != path.Clean(leaf), leaf == "/..", strings.HasPrefix(leaf, "/../"):
		return errors.New("want a path that goes straight down")
	case leaf == "/":
		return errors.New("it is the root of all")
	}
	return nil
}

// A cgroupRoot is where a hierarchy, or a part of one, is mounted.
type cgroupRoot struct {
	point   string // the mount point
	root    string // what of the hierarchy is there
	unified bool
}

// cgroupRoots returns where the hierarchies are mounted, each once.
func cgroupRoots() ([]cgroupRoot, error) {
	mounts, err := procfs.GetMounts()
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	var roots []cgroupRoot
	seen := map[string]bool{}
	for _, m := range mounts {
		if m.FSType != "cgroup" && m.FSType != "cgroup2" || seen[m.MajorMinorVer+m.Root] {
			continue
		}
		seen[m.MajorMinorVer+m.Root] = true
		roots = append(roots, cgroupRoot{unescape.Replace(m.MountPoint), unescape.Replace(m.Root), m.FSType == "cgroup2"})
	}
	if len(roots) == 0 {
		return nil, errors.New("no hierarchy of control groups is mounted")
	}
	return roots, nil
}

// unescape undoes how mountinfo writes what would otherwise end a field (proc_pid_mountinfo(5)).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// below is the path of a group from the mount point on; ok is false if it is not in the part that is mounted there.
func (r cgroupRoot) below(leaf string) (below string, ok bool) {
	below, ok = strings.CutPrefix(leaf, strings.TrimSuffix(r.root, "/"))
	return below, ok && len(below) > 1 && below[0] == '/'
}

func (r cgroupRoot) remove(ctx context.Context, below string) error {
	parent, err := r.enter(path.Dir(below))
	if err != nil {
		return unlessGone(err)
	}
	defer unix.Close(parent)
	name := path.Base(below)
	leaf, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessGone(err)
	}
	defer unix.Close(leaf)
	if err := isCgroup(leaf); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cgroupPatience, unix.EBUSY)
	defer cancel()
	for {
		// One that has processes, or groups below it, is EBUSY.
		if err = unlessGone(unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)); !errors.Is(err, unix.EBUSY) {
			return err
		}
		if err := r.await(ctx, leaf); err != nil {
			return fmt.Errorf("%s: %w", inhabitants(leaf), err)
		}
	}
}

// enter opens a folder of the hierarchy, element by element and no link followed.
func (r cgroupRoot) enter(below string) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if fd, err = unix.Open(r.point, flags, 0); err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(strings.Trim(below, "/"), "/") {
		if name == "" {
			break
		}
		next, err := unix.Openat(fd, name, flags, 0)
		_ = unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

func isCgroup(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return unlessGone(fmt.Errorf("fstatfs: %w", err))
	}
	if st.Type != unix.CGROUP_SUPER_MAGIC && st.Type != unix.CGROUP2_SUPER_MAGIC {
		return errors.New("it is no control group")
	}
	return nil
}

// await waits until a group may have become empty. In the unified hierarchy the kernel tells: its file cgroup.events changes
// when its last process goes (cgroups(7)). The old ones tell nobody but their release agent, so they are asked again.
func (r cgroupRoot) await(ctx context.Context, leaf int) error {
	wait := cgroupBeat
	if r.unified {
		// poll(2) cannot be interrupted by ctx: a short one can do without.
		if events, err := unix.Openat(leaf, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			defer unix.Close(events)
			var text [256]byte // what has been read is what a change is counted from
			n, _ := unix.Read(events, text[:])
			if strings.Contains(string(text[:max(n, 0)]), "populated 1") {
				fds := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}}
				_, _ = unix.Poll(fds, int((20 * cgroupBeat).Milliseconds()))
				wait = 0
			}
		}
	}
	beat := time.NewTimer(wait)
	defer beat.Stop()
	select {
	case <-ctx.Done():
	case <-beat.C:
	}
	return context.Cause(ctx)
}

// inhabitants says in words what is in a group.
func inhabitants(leaf int) string {
	fd, err := unix.Openat(leaf, "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "who is in it cannot be read"
	}
	defer unix.Close(fd)
	var text [256]byte
	n, _ := unix.Read(fd, text[:])
	if pids := strings.Fields(string(text[:max(n, 0)])); len(pids) > 0 {
		return "process " + pids[0] + " is in it"
	}
	return "it is not empty"
}

// unlessGone forgives what says that a group is not there. ENODEV is what its files say when it was removed.
func unlessGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
