package docker

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"watcher/watch"
)

// socketPatience bounds a look at a socket. It is a matter of microseconds, unless a file system on the way hangs.
const socketPatience = time.Second

// lookAtSockets finds out who listens on the sockets that the owners of a sandbox listen on.
func (e *Engine) lookAtSockets(s watch.Sandbox) (found []watch.Event) {
	for _, claim := range s.Terms.Owners {
		if claim.Kind == watch.SocketClaim {
			found = append(found, e.lookAtSocket(s.ID, claim))
		}
	}
	return found
}

func (e *Engine) lookAtSocket(id watch.ID, claim watch.Claim) watch.OwnerSeen {
	seen := watch.OwnerSeen{ID: id, Claim: claim, Asked: time.Now()}
	e.mu.Lock()
	c, shared := e.containers[id.Name], e.shared
	e.mu.Unlock()
	switch {
	case !shared:
		seen.Detail = "the socket is on the engine's machine, which may be another"
		return seen
	case c == nil:
		seen.Detail = "what is mounted into the container could not be found out"
		return seen
	}
	p, err := placeOf(c.mounts, claim.Socket)
	if err != nil {
		seen.Detail = err.Error()
		return seen
	}
	return e.bounded(p, seen, func(seen watch.OwnerSeen) watch.OwnerSeen {
		var err error
		if seen.Life, seen.Owner, err = e.whoListens(p); err != nil {
			seen.Detail = err.Error()
		}
		return seen
	})
}

// bounded gives a look some time to come back. While one does not, there is no other at the same place: on a file system
// that hangs each would cost a thread. One that comes back is waited for, since it was asked for earlier.
func (e *Engine) bounded(p place, seen watch.OwnerSeen, look func(watch.OwnerSeen) watch.OwnerSeen) watch.OwnerSeen {
	at := p.String()
	timeout := time.NewTimer(socketPatience)
	defer timeout.Stop()
	ended, earlier := e.takeTurn(at)
	for earlier != nil {
		select {
		case <-earlier:
			ended, earlier = e.takeTurn(at)
		case <-timeout.C:
			seen.Detail = "an earlier look at " + at + " has not come back"
			return seen
		}
	}
	result := make(chan watch.OwnerSeen, 1)
	go func(seen watch.OwnerSeen) {
		defer ended()
		result <- look(seen)
	}(seen)
	select {
	case found := <-result:
		return found
	case <-timeout.C:
		seen.Detail = "a look at " + at + " takes too long"
		return seen
	}
}

// takeTurn begins a look at a place, and returns what ends it. While there is another one, the second result tells when
// that has come back.
func (e *Engine) takeTurn(at string) (ended func(), earlier <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if looking := e.looking[at]; looking != nil {
		return nil, looking
	}
	looking := make(chan struct{})
	e.looking[at] = looking
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.looking, at)
		close(looking)
	}, nil
}

// A place is where something that is mounted into a container is on this host.
type place struct {
	source string   // what is mounted
	below  []string // the way from there, which the container may have made; none: it is what is mounted
}

func (p place) String() string { return filepath.Join(append([]string{p.source}, p.below...)...) }

// placeOf finds on the host what a container sees at a path: below the innermost of its mounts.
func placeOf(mounts []container.MountPoint, seen string) (place, error) {
	if !filepath.IsAbs(seen) {
		return place{}, fmt.Errorf("%q is no absolute path", seen)
	}
	seen = filepath.Clean(seen)
	var inner container.MountPoint
	for _, m := range mounts {
		if at := filepath.Clean(m.Destination); len(at) > len(inner.Destination) && (at == "/" || seen == at || strings.HasPrefix(seen, at+"/")) {
			inner = m
			inner.Destination = at
		}
	}
	if inner.Source == "" {
		return place{}, fmt.Errorf("nothing of the host is mounted where the container has %s", seen)
	}
	below := strings.FieldsFunc(strings.TrimPrefix(seen, inner.Destination), func(r rune) bool { return r == '/' })
	return place{inner.Source, below}, nil
}

// whoListens connects to a socket, without waiting, and hangs up.
func (e *Engine) whoListens(p place) (watch.Life, watch.Process, error) {
	fd, err := p.open()
	if errors.Is(err, errNothing) {
		return watch.Exited, watch.Process{}, nil
	}
	if err != nil {
		return watch.Unknown, watch.Process{}, err
	}
	defer unix.Close(fd)
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return watch.Unknown, watch.Process{}, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(conn)
	// The file itself and not its name: that may be another's by now, or too long for an address (unix(7)).
	switch err := unix.Connect(conn, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", fd)}); {
	case errors.Is(err, unix.ECONNREFUSED):
		return watch.Exited, watch.Process{}, nil
	case errors.Is(err, unix.EAGAIN): // somebody listens, and more wait to be accepted than may
		return watch.Alive, watch.Process{}, nil
	case err != nil:
		return watch.Unknown, watch.Process{}, fmt.Errorf("connect to %s: %w", p, err)
	}
	return watch.Alive, e.peerOf(conn), nil
}

// peerOf returns who called listen on the other end. It is nobody if that process is not in our PID namespace, or is
// dead, as when a child listens in its place.
func (e *Engine) peerOf(conn int) watch.Process {
	pid, err := peer(uintptr(conn))
	if err != nil || pid == 0 {
		return watch.Process{}
	}
	held, err := e.proc.Open(pid)
	if err != nil {
		return watch.Process{}
	}
	defer held.Close()
	return held.Process()
}

// errNothing says that there is no such file in what is mounted.
var errNothing = errors.New("no such file below what is mounted")

// open opens the socket at p without touching it (O_PATH, open(2)). On the way below what is mounted no symbolic link is
// followed: it may be the container's, and means something else to it than to us. That what is mounted is not here says
// nothing about who listens: we may merely not see it, as with systemd's PrivateTmp=.
func (p place) open() (fd int, err error) {
	last := len(p.below) - 1
	flags := unix.O_PATH | unix.O_CLOEXEC
	if last >= 0 {
		flags |= unix.O_DIRECTORY
	}
	if fd, err = unix.Open(p.source, flags, 0); err != nil {
		return -1, fmt.Errorf("open %s, which is mounted: %w", p.source, err)
	}
	for i, name := range p.below {
		flags := unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW
		if i < last {
			flags |= unix.O_DIRECTORY
		}
		next, err := unix.Openat(fd, name, flags, 0)
		_ = unix.Close(fd)
		switch {
		case errors.Is(err, unix.ENOENT):
			return -1, errNothing
		case err != nil:
			return -1, fmt.Errorf("open %s: %w", filepath.Join(append([]string{p.source}, p.below[:i+1]...)...), err)
		}
		fd = next
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("stat %s: %w", p, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s is no socket", p)
	}
	return fd, nil
}
