package docker

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/watch"
)

// procRoot is where the processes are that a [process.Host] has: those of our PID namespace.
const procRoot = "/proc"

// A clientFinder finds the clients that started the containers of one engine in the foreground (see clients.go). It is
// safe for concurrent use. What it knows of a container it remembers until that is forgotten: the client may be dead by
// then, and a client that was not there when the container was first shown did not start it.
//
// All containers of the engine should be shown to it, also those that nobody asks about: one that is not shown cannot
// cast doubt on the others.
type clientFinder struct {
	proc *process.Host
	path string // of the engine's socket; "" if it has none

	walking chan struct{} // full while somebody walks
	at      atomic.Int64  // the process that the walk is at
	hangs   atomic.Bool   // and has not come back in time

	mu      sync.Mutex
	book    *book
	callers map[watch.Process]*caller // those of the latest walk
}

// newClientFinder returns the finder for the engine at a URL.
func newClientFinder(proc *process.Host, host string) *clientFinder {
	f := &clientFinder{proc: proc, walking: make(chan struct{}, 1), book: newBook(), callers: map[watch.Process]*caller{}}
	if u, err := url.Parse(host); err == nil && u.Scheme == "unix" {
		f.path = u.Path
	}
	return f
}

// A clientele is the clients that lived at one time. It is safe for concurrent use.
type clientele struct {
	*clientFinder
	began time.Time
	all   []*caller
}

// walkPatience bounds a look, which takes some ten milliseconds.
const walkPatience = 5 * time.Second

// look finds the clients that live. The containers that it is for must exist by now. If it cannot see every process it
// returns an error: the one that it does not see may be the client.
func (f *clientFinder) look() (*clientele, error) {
	if f.hangs.Load() && len(f.walking) > 0 {
		return nil, f.hang()
	}
	timeout := time.NewTimer(walkPatience)
	defer timeout.Stop()
	select {
	case f.walking <- struct{}{}:
		f.hangs.Store(false)
	case <-timeout.C:
		return nil, f.hang()
	}
	type result struct {
		c   *clientele
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := f.walk()
		if err == nil {
			f.publish(c)
		}
		<-f.walking
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("look for clients: %w", r.err)
		}
		return r.c, nil
	case <-timeout.C:
		// The arguments of a process are in its memory. While that cannot be had, as with a file system that hangs, neither
		// can they.
		f.hangs.Store(true)
		return nil, f.hang()
	}
}

func (f *clientFinder) hang() error {
	return fmt.Errorf("look for clients: at process %d: %w", f.at.Load(), os.ErrDeadlineExceeded)
}

// publish makes the clients of a walk those that are known.
func (f *clientFinder) publish(c *clientele) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.callers = make(map[watch.Process]*caller, len(c.all))
	for _, k := range c.all {
		f.callers[k.process] = k
		if k.file != "" && k.named == "" {
			f.book.name(k, k.file)
		}
	}
	f.book.sweep(func(k *caller) bool { return f.callers[k.process] == k })
}

func (f *clientFinder) walk() (*clientele, error) {
	if !mayTrace() {
		return nil, errors.New("other processes may be hidden from us (give watcher CAP_SYS_PTRACE)")
	}
	door, err := openDoor(f.path)
	if err != nil {
		return nil, err
	}
	c := &clientele{clientFinder: f, began: time.Now()}
	// The kernel lists processes by number, so that none is missed which is there all the time.
	entries, err := os.ReadDir(procRoot)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		f.at.Store(int64(pid))
		k, err := f.examine(pid, door)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if k != nil {
			c.all = append(c.all, k)
		}
	}
	return c, nil
}

// initialUserNamespace is the inode of the first user namespace, PROC_USER_INIT_INO in include/linux/proc_ns.h.
const initialUserNamespace = "user:[4026531837]"

// mayTrace reports whether we may look at every process, whatever hides them from others (hidepid in proc(5)).
func mayTrace() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_SYS_PTRACE) == 0 {
		return false
	}
	namespace, err := os.Readlink(filepath.Join(procRoot, "self/ns/user"))
	return err == nil && namespace == initialUserNamespace
}

// of returns the clients one of which started a container, or says why nothing is known of them.
func (c *clientele) of(full container.InspectResponse) (clients []watch.Client, why string) {
	if full.ContainerJSONBase == nil || full.HostConfig == nil || full.Config == nil {
		return nil, "the engine's answer lacks how it was made"
	}
	if why := foreground(full); why != "" {
		return nil, why
	}
	created, err := time.Parse(time.RFC3339Nano, full.Created)
	if err != nil {
		return nil, fmt.Sprintf("created %q: %v", full.Created, err)
	}
	// That of a later run is a bound as well, if a weaker one.
	first := c.startOf(full.State)

	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.book.containers[full.ID]
	if s == nil {
		if !created.Before(c.began) {
			return nil, "it was created after we had looked for clients"
		}
		var may []*caller
		for _, k := range c.all {
			if k.older(created, first) && slices.ContainsFunc(k.requests, func(r request) bool { return r.fits(full) }) {
				may = append(may, k)
			}
		}
		s = c.book.enter(full.ID, full.Config.OpenStdin, may)
	}
	c.book.draw()
	s.told, s.asked = s.answer(), true
	return s.told.clients, s.told.why
}

// startOf returns when the first process of a container started, in clock ticks after boot; 0 if it has none.
func (f *clientFinder) startOf(state *container.State) uint64 {
	if state == nil || state.Pid <= 0 {
		return 0
	}
	h, err := f.proc.Open(state.Pid)
	if err != nil {
		return 0
	}
	defer h.Close()
	return h.Process().Start
}

// changed says of each container of which something else has been found out since it was asked about.
func (f *clientFinder) changed() (events []watch.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.book.changed {
		return nil
	}
	f.book.changed = false
	f.book.draw()
	for _, s := range f.book.containers {
		if now := s.answer(); s.asked && !s.gone && !now.equal(s.told) {
			s.told = now
			events = append(events, watch.ClientsSeen{
				ID:      watch.ID{Kind: watch.Container, Name: s.id},
				Clients: now.clients, Detail: now.why, At: time.Now(),
			})
		}
	}
	return events
}

// detached takes in that somebody detached from a container by the keys for that, and left it to itself.
func (f *clientFinder) detached(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.book.leave(id)
}

// forget drops what is known of a container that is gone.
func (f *clientFinder) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.book.forget(id)
}

// examine returns the client that has the PID, if it is one of our engine. A process that is gone is none.
func (f *clientFinder) examine(pid int, d *door) (*caller, error) {
	dir := filepath.Join(procRoot, strconv.Itoa(pid))
	_, argv, err := image(dir)
	if err != nil || len(argv) == 0 {
		return nil, err
	}
	h, err := f.proc.Open(pid)
	switch {
	case errors.Is(err, process.ErrGone):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer h.Close()
	k, err := f.identify(h, dir, d)
	// Whatever was read is about this process only if that lives (P2).
	if exited, exitErr := h.Exited(); exitErr != nil || exited {
		return nil, exitErr
	}
	return k, err
}

// image returns what a process runs, if that may be a client: argv is empty if not. An executable that we may not know
// is "".
func image(dir string) (exe string, argv []string, err error) {
	exe, _ = os.Readlink(filepath.Join(dir, "exe"))
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return "", nil, nil
	case err != nil:
		return "", nil, err
	}
	argv0, _, _ := bytes.Cut(line, []byte{0})
	if programOf(exe, string(argv0)) == "" {
		return "", nil, nil
	}
	// In the midst of an exec it could be one program's executable and another one's arguments. But who is about to become
	// a client has no container yet.
	if again, _ := os.Readlink(filepath.Join(dir, "exe")); again != exe {
		return "", nil, nil
	}
	return exe, strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00"), nil
}

func (f *clientFinder) identify(h *process.Handle, dir string, d *door) (*caller, error) {
	exe, argv, err := image(dir)
	if err != nil || len(argv) == 0 {
		return nil, err
	}
	asked, all := requests(exe, argv)
	if len(asked) == 0 && all {
		return nil, nil
	}
	f.mu.Lock()
	k := f.callers[h.Process()]
	f.mu.Unlock()
	if k == nil {
		k = &caller{process: h.Process(), born: h.Born(), vague: !all, requests: asked}
		if err := d.admit(k, h, dir); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(k.requests, request.reads) {
			k.speakers = f.speakers(h, dir)
		}
	}
	if len(k.requests) == 0 {
		return nil, nil
	}
	k.readIDFile(dir)
	return k, nil
}

// A door is the socket of an engine.
type door struct {
	path string
	file unix.Stat_t
	open bool // who may use it cannot be told from its mode
}

func openDoor(path string) (*door, error) {
	if path == "" {
		return nil, errors.New("the engine may be on another machine")
	}
	d := &door{path: path}
	if err := unix.Stat(path, &d.file); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	// An access list (acl(5)) may admit anybody.
	_, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	d.open = err == nil
	if sees, err := d.seenBy(filepath.Join(procRoot, "self"), path); err != nil || !sees {
		return nil, errors.Join(fmt.Errorf("find %s as other processes see it", path), err)
	}
	return d, nil
}

// admit leaves to a caller those requests that may have gone through the door. Whoever cannot have come through it is no
// client, whatever it calls itself: any user, and what runs in any container, can run something that is called docker.
func (d *door) admit(k *caller, h *process.Handle, dir string) error {
	status, err := h.ReadFile("status")
	if err != nil {
		return unlessGone(err)
	}
	uid, groups := credentials(status)
	if !d.admits(uid, groups) {
		k.requests = nil
		return nil
	}
	// Without it the engine cannot be told.
	environ, _ := h.ReadFile("environ")
	// One that asked an engine elsewhere may see our socket too. It keeps what it may have started, and no more.
	k.vague = k.vague || slices.ContainsFunc(k.requests, func(r request) bool { return r.elsewhere(environ) })
	kept, ok := bounded(func() []request {
		seen := map[string]bool{}
		sees := func(path string) bool {
			is, known := seen[path]
			if !known {
				is, _ = d.seenBy(dir, path)
				seen[path] = is
			}
			return is
		}
		return slices.DeleteFunc(slices.Clone(k.requests), func(r request) bool {
			path, told := r.engine(environ)
			switch {
			case told:
				return !sees(path)
			case r.alone(environ) && uid != d.file.Uid:
				return true // it works in its own user's storage
			default:
				return !sees(d.path) && !sees(defaultSocket)
			}
		})
	})
	if !ok {
		k.vague = true
		return nil
	}
	k.requests = kept
	return nil
}

func unlessGone(err error) error {
	if errors.Is(err, process.ErrGone) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// defaultSocket is where docker finds its engine if it is not told otherwise.
const defaultSocket = "/var/run/docker.sock"

// credentials reads the IDs that count for files from a /proc/PID/status (proc_pid_status(5)).
func credentials(status []byte) (uid uint32, groups []uint32) {
	number := func(field string) uint32 {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return ^uint32(0) // nobody's
		}
		return uint32(n)
	}
	uid = ^uint32(0)
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 5 && fields[0] == "Uid:":
			uid = number(fields[4])
		case len(fields) == 5 && fields[0] == "Gid:":
			groups = append(groups, number(fields[4]))
		case len(fields) > 0 && fields[0] == "Groups:":
			for _, field := range fields[1:] {
				groups = append(groups, number(field))
			}
		}
	}
	return uid, groups
}

// admits reports whether a user may connect: for that it must be allowed to write (unix(7)).
func (d *door) admits(uid uint32, groups []uint32) bool {
	switch {
	case d.open, uid == 0, d.file.Mode&unix.S_IWOTH != 0:
		return true
	case uid == d.file.Uid:
		return d.file.Mode&unix.S_IWUSR != 0
	default:
		return d.file.Mode&unix.S_IWGRP != 0 && slices.Contains(groups, d.file.Gid)
	}
}

// seenBy reports whether a process finds the door at a path. Links on the way lead where they lead for that process, for
// which the kernel has a call since Linux 5.6.
func (d *door) seenBy(dir, path string) (bool, error) {
	root, err := unix.Open(filepath.Join(dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open its root: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false, fmt.Errorf("openat2: %w", err)
	}
	defer unix.Close(fd)
	var file unix.Stat_t
	if err := unix.Fstat(fd, &file); err != nil {
		return false, fmt.Errorf("stat it: %w", err)
	}
	return file.Dev == d.file.Dev && file.Ino == d.file.Ino, nil
}

// engine returns the path of the socket of the engine that was asked, and whether that can be told. If it was asked by a
// name, or is docker's own choice, it cannot: the configuration decides.
func (r request) engine(environ []byte) (path string, told bool) {
	host, name, variable := "host", "context", client.EnvOverrideHost
	if r.program == podmanProgram {
		host, name, variable = "url", "connection", "CONTAINER_HOST"
	}
	given := r.global.text(host)
	if given == "" && r.global.text(name) == "" {
		given = lookUp(environ, variable)
	}
	// As podman understands it. For docker two slashes begin a relative path, which nobody uses.
	path, ok := strings.CutPrefix(given, "unix:")
	return filepath.Clean(path), ok && strings.HasPrefix(path, "/")
}

// elsewhere reports whether an engine was asked that is named otherwise than by the path of a socket.
func (r request) elsewhere(environ []byte) bool {
	host, name, variables := "host", "context", []string{client.EnvOverrideHost, "DOCKER_CONTEXT"}
	if r.program == podmanProgram {
		host, name, variables = "url", "connection", []string{"CONTAINER_HOST", "CONTAINER_CONNECTION"}
	}
	given := []string{r.global.text(host), r.global.text(name)}
	for _, variable := range variables {
		given = append(given, lookUp(environ, variable))
	}
	return slices.ContainsFunc(given, func(s string) bool { return s != "" && s != "default" && !strings.HasPrefix(s, "unix:") })
}

// alone reports whether it is podman that asks no engine and is one itself.
func (r request) alone(environ []byte) bool {
	return r.program == podmanProgram && !r.global.on("remote") &&
		r.global.text("url") == "" && r.global.text("connection") == "" &&
		lookUp(environ, "CONTAINER_HOST") == "" && lookUp(environ, "CONTAINER_CONNECTION") == ""
}

// lookUp finds a variable in the content of a /proc/PID/environ.
func lookUp(environ []byte, name string) string {
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if value, ok := bytes.CutPrefix(entry, []byte(name+"=")); ok {
			return string(value)
		}
	}
	return ""
}

// reads reports whether a client passes its standard input on.
func (r request) reads() bool { return r.program == composeProgram || r.run.on("interactive") }

// readIDFile reads the file into which the client writes the ID of its container, once it has one.
func (k *caller) readIDFile(dir string) {
	if k.file != "" || k.reading.Load() {
		return
	}
	for _, r := range k.requests {
		path := r.run.text("cidfile")
		if path == "" {
			continue
		}
		// On a file system that hangs each look would cost a thread: until one comes back there is no other.
		k.reading.Store(true)
		id, ok := bounded(func() string {
			defer k.reading.Store(false)
			return readID(dir, path)
		})
		if ok && id != "" {
			k.file = id
			return
		}
	}
}

// readID returns the ID in a file that a process has at a path, or "".
func readID(dir, path string) string {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	from := "cwd"
	if filepath.IsAbs(path) {
		from, how.Resolve = "root", how.Resolve|unix.RESOLVE_IN_ROOT
	}
	base, err := unix.Open(filepath.Join(dir, from), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(base)
	// Without opening it yet (O_PATH): to open a device may do something.
	fd, err := unix.Openat2(base, path, &how)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	file, err := os.OpenFile(filepath.Join(procRoot, "self/fd", strconv.Itoa(fd)), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer file.Close()
	content := make([]byte, idDigits+2)
	n, _ := file.ReadAt(content, 0)
	return parseID(content[:n])
}

// idDigits is how many hexadecimal digits an ID has.
const idDigits = 64

// parseID returns the ID that is all the content of a file, perhaps with the end of a line, or "".
func parseID(content []byte) string {
	id := string(bytes.TrimSuffix(content, []byte("\n")))
	if len(id) != idDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}

// outsidePatience bounds a look at what a file system has that may hang.
const outsidePatience = time.Second

// bounded returns what f returns, or false if that takes too long.
func bounded[T any](f func() T) (result T, ok bool) {
	done := make(chan T, 1)
	go func() { done <- f() }()
	timeout := time.NewTimer(outsidePatience)
	defer timeout.Stop()
	select {
	case result = <-done:
		return result, true
	case <-timeout.C:
		return result, false
	}
}
