//go:build linux

package dockertest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// site is where an engine lives, and all that must be known to clean up after
// it: the process that does so may not be the one that started it.
type site struct {
	dir     string // all files
	group   string // name of its cgroup in every hierarchy
	unified string // where the cgroup v2 hierarchy is mounted
}

func (s site) socket() string   { return filepath.Join(s.dir, "docker.sock") }
func (s site) pidfile() string  { return filepath.Join(s.dir, "docker.pid") }
func (s site) config() string   { return filepath.Join(s.dir, "daemon.json") }
func (s site) log() string      { return filepath.Join(s.dir, "dockerd.log") }
func (s site) dataRoot() string { return filepath.Join(s.dir, "data") }
func (s site) execRoot() string { return filepath.Join(s.dir, "run") }

// cgroup is a folder of ours in the v2 hierarchy. That has every process of
// ours even where the controllers are still those of v1: the engine is cloned
// into it, and runc gives each container a folder there as well.
func (s site) cgroup(sub string) string { return filepath.Join(s.unified, s.group, sub) }

// newSite makes the folder and the cgroup.
func newSite(parent string, m maker) (site, error) {
	parent, err := filepath.Abs(orTemp(parent))
	if err != nil {
		return site{}, err
	}
	if !m.fits(filepath.Join(parent, prefix+"4294967295")) {
		parent = "/tmp"
	}
	var s site
	mounts, err := readMounts()
	if err != nil {
		return site{}, err
	}
	for _, m := range mounts {
		if m.fstype == "cgroup2" && m.root == "/" {
			s.unified = m.point
		}
	}
	if s.unified == "" {
		return site{}, errors.New("find the cgroup v2 hierarchy: not mounted (mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified)")
	}
	if s.dir, err = os.MkdirTemp(parent, prefix); err != nil {
		return site{}, fmt.Errorf("make the engine's folder: %w", err)
	}
	s.group = filepath.Base(s.dir)
	// The engine sits in a leaf, for v2 wants no processes between the root
	// and the containers.
	if err := os.MkdirAll(s.cgroup("engine"), 0o755); err != nil {
		return site{}, errors.Join(fmt.Errorf("make the engine's cgroup: %w", err), s.sweep())
	}
	return s, nil
}

func orTemp(dir string) string {
	if dir == "" {
		return os.TempDir()
	}
	return dir
}

// sweep removes every trace of the engine. It may be repeated, and it goes on
// after a failed step, for the others still help.
func (s site) sweep() error {
	if !filepath.IsAbs(s.dir) || !strings.HasPrefix(filepath.Base(s.dir), prefix) || s.group != filepath.Base(s.dir) {
		return fmt.Errorf("sweep: %q is not an engine's folder", s.dir)
	}
	errs := []error{s.killAll()}
	errs = append(errs, s.removeShimSockets())
	errs = append(errs, s.unmount())
	errs = append(errs, s.removeCgroups())
	errs = append(errs, s.removeDir())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep %s: %w", s.dir, err)
	}
	return nil
}

// killAll has the kernel kill our cgroup, whatever forks meanwhile, and waits
// until nothing in it runs any more.
func (s site) killAll() error {
	return retry("kill the engine's processes", func() error {
		err := os.WriteFile(s.cgroup("cgroup.kill"), []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		// On v1 a frozen process takes the signal only once it is thawed; it
		// then dies without running another instruction of its own.
		s.thaw()
		events, err := os.ReadFile(s.cgroup("cgroup.events"))
		if err != nil {
			return err
		}
		if strings.Contains(string(events), "populated 1") {
			return errors.New("some are still alive")
		}
		return nil
	})
}

func (s site) thaw() {
	folders, _ := s.cgroups()
	for _, dir := range folders {
		// Exists in the v1 freezer's hierarchy only. A folder may vanish
		// meanwhile; who is still frozen shows in killAll.
		if f, err := os.OpenFile(filepath.Join(dir, "freezer.state"), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString("THAWED")
			_ = f.Close()
		}
	}
}

// cgroups are our folders in all hierarchies, parents before children.
func (s site) cgroups() ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range mounts {
		if (m.fstype != "cgroup" && m.fstype != "cgroup2") || m.root != "/" {
			continue
		}
		err := filepath.WalkDir(filepath.Join(m.point, s.group), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			if err == nil && d.IsDir() {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

func (s site) removeCgroups() error {
	return retry("remove the engine's cgroups", func() error {
		folders, err := s.cgroups()
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(folders) {
			if e := unix.Rmdir(dir); e != nil && e != unix.ENOENT {
				err = fmt.Errorf("%s: %w", dir, e)
			}
		}
		return err
	})
}

var shimSocket = regexp.MustCompile(`/run/containerd/s/[0-9a-f]{64}`)

// removeShimSockets deletes the only files that lie outside of our folder:
// containerd has the shims' sockets in one place for the whole host. Each
// container's bundle names its own.
func (s site) removeShimSockets() error {
	var errs []error
	for _, name := range []string{"address", "bootstrap.json"} { // containerd 1 and 2
		files, err := filepath.Glob(filepath.Join(s.execRoot(), "containerd/daemon/io.containerd.runtime.v2.task/*/*", name))
		if err != nil {
			return err
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if path := shimSocket.Find(b); path != nil {
				if err := os.Remove(string(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// unmount takes down what is mounted below our folder, the latest first.
func (s site) unmount() error {
	return retry("unmount what is below the engine's folder", func() error {
		left, err := s.mounts()
		if err != nil || len(left) == 0 {
			return err
		}
		for _, point := range slices.Backward(left) {
			if e := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && e != unix.EINVAL {
				err = errors.Join(err, fmt.Errorf("%s: %w", point, e))
			}
		}
		return errors.Join(err, errors.New("not yet all"))
	})
}

// mounts are the mount points below our folder.
func (s site) mounts() ([]string, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var below []string
	for _, m := range all {
		if m.point == s.dir || strings.HasPrefix(m.point, s.dir+"/") {
			below = append(below, m.point)
		}
	}
	return below, nil
}

func (s site) removeDir() error {
	return retry("remove the engine's folder", func() error {
		left, err := s.mounts()
		if err != nil {
			return err
		}
		if len(left) > 0 { // deleting would reach through it
			return fmt.Errorf("%s is still mounted", left[0])
		}
		return os.RemoveAll(s.dir)
	})
}

// retry repeats a step until it succeeds: the kernel takes some milliseconds to
// tear processes, cgroups and overlays down after it has said yes.
func retry(what string, step func() error) error {
	deadline := time.Now().Add(patience / 4)
	beat := time.NewTicker(tick)
	defer beat.Stop()
	for {
		err := step()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", what, err)
		}
		<-beat.C
	}
}

type mount struct{ root, point, fstype string }

func readMounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(b)), nil
}

// parseMounts reads the format of proc_pid_mountinfo(5): six fields, optional
// ones, a dash, the type.
func parseMounts(info string) []mount {
	var mounts []mount
	for line := range strings.Lines(info) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 1 {
			continue
		}
		mounts = append(mounts, mount{root: unescape(l[3]), point: unescape(l[4]), fstype: r[0]})
	}
	return mounts
}

var octal = regexp.MustCompile(`\\[0-7]{3}`)

// unescape undoes what the kernel does to blanks and backslashes in paths.
func unescape(path string) string {
	return octal.ReplaceAllStringFunc(path, func(esc string) string {
		n, err := strconv.ParseUint(esc[1:], 8, 8)
		if err != nil {
			return esc
		}
		return string([]byte{byte(n)})
	})
}
