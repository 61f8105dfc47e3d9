package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// A holder watches processes for their end and posts what that means to whoever has them held.
type holder struct {
	host *Host
	post func(...watch.Event) // must neither block nor call back
	tell func(h *held, life watch.Life, at time.Time) []watch.Event

	mu  sync.Mutex // also orders what is posted: of one process, nothing after its end
	all map[int]*held
}

// A held process is the one that was found at a PID. It stays after its death until it is released or another process
// is found there, so that a later witness can still say when exactly it died.
type held struct {
	process watch.Process
	born    time.Time
	since   time.Time // an exit stamped before then was of an earlier process with the PID
	handle  *Handle   // nil where there are no pidfds
	exited  bool

	// In a census:
	programs []string // of which it is
	forked   bool     // it had not execed when it was found
	counted  bool     // it was dead at the latest complete look
}

func newHolder(host *Host, post func(...watch.Event), tell func(*held, watch.Life, time.Time) []watch.Event) holder {
	return holder{host: host, post: post, tell: tell, all: map[int]*held{}}
}

// keep watches p from now on. The caller has the lock.
func (h *holder) keep(p *held) {
	h.drop(p.process.PID)
	h.all[p.process.PID] = p
	if p.handle != nil {
		go h.wait(p)
	}
}

// wait runs for as long as the process lives, or until it is released.
func (h *holder) wait(p *held) {
	err := p.handle.Wait()
	at := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.bury(p, at)
	case errors.Is(err, os.ErrClosed):
	default:
		// The scan that this asks for finds out what the goroutine could not.
		h.post(watch.LookFailed{At: at, Err: fmt.Errorf("wait for the end of process %d: %w", p.process.PID, err)})
	}
}

// bury notes that p is dead and posts it. A second witness posts it again, with its own time. The caller has the lock.
func (h *holder) bury(p *held, at time.Time) {
	p.exited = true
	h.say(p, watch.Exited, at)
}

// say posts what is known of p. The caller has the lock.
func (h *holder) say(p *held, life watch.Life, at time.Time) {
	if events := h.tell(p, life, at); len(events) > 0 {
		h.post(events...)
	}
}

// drop lets go of the process that was found at a PID. The caller has the lock.
func (h *holder) drop(pid int) {
	if p := h.all[pid]; p != nil {
		p.close()
	}
	delete(h.all, pid)
}

func (p *held) close() {
	if p.handle != nil {
		// Closing a pidfd has no error that anybody could act on.
		_ = p.handle.Close()
	}
}

// Close lets go of every process.
func (h *holder) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for pid := range h.all {
		h.drop(pid)
	}
}

// Check looks at every held process again and posts those that have died.
func (h *holder) Check() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.all {
		if p.exited {
			continue
		}
		if exited, err := h.host.exited(p); err == nil && exited {
			h.bury(p, time.Now())
		}
	}
}

// Witness takes in that the kernel reported an exit in the process with that PID, or the beginning of a core dump,
// stamped at. The report only makes us ask (P4).
func (h *holder) Witness(pid int, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.all[pid]
	if p == nil || at.Before(p.since) {
		return
	}
	exited, err := h.host.exited(p)
	if err == nil && (exited || p.handle != nil && p.handle.dumping()) {
		h.bury(p, at)
	}
}

// hold finds the process that has the PID now, and holds it where that can be done.
func (h *Host) hold(pid int) (*held, error) {
	handle, err := h.Open(pid)
	if err == nil {
		return &held{process: handle.process, born: handle.born, since: handle.opened, handle: handle}, nil
	}
	if !errors.Is(err, ErrNoPidfd) {
		return nil, err
	}
	since := time.Now()
	start, err := h.alive(pid)
	if err != nil {
		return nil, err
	}
	// The files of /proc exist for a thread's number too, but its end would not be the process's (P4).
	if leader, err := h.leader(pid); err != nil || leader != pid {
		return nil, errors.Join(fmt.Errorf("%d is not known to be a process", pid), err)
	}
	born, err := bornAt(start)
	if err != nil {
		return nil, err
	}
	return &held{process: h.identity(pid, start), born: born, since: since}, nil
}

// exited reports whether a process that was found before is dead.
func (h *Host) exited(p *held) (bool, error) {
	if p.handle != nil {
		return p.handle.Exited()
	}
	start, err := h.alive(p.process.PID)
	if errors.Is(err, ErrGone) {
		return true, nil
	}
	return err == nil && start != p.process.Start, err
}

// leader returns the PID of the process that a thread belongs to.
func (h *Host) leader(tid int) (pid int, err error) {
	proc, err := h.proc.Proc(tid)
	if err != nil {
		return 0, fmt.Errorf("look up thread %d: %w", tid, err)
	}
	status, err := proc.NewStatus()
	if err != nil {
		return 0, fmt.Errorf("read the status of thread %d: %w", tid, err)
	}
	return status.TGID, nil
}

// alive returns the start time of the living process with a PID, for kernels without pidfds.
func (h *Host) alive(pid int) (start uint64, err error) {
	stat, statErr := h.stat(pid)
	// Signal 0 is not a test of life, zombies take it, but ESRCH is proof that nobody has the PID (kill(2)). It is asked
	// last: a zombie may have been reaped before its stat could be read.
	if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
		return 0, ErrGone
	}
	if statErr != nil {
		return 0, statErr
	}
	if stat.dead() {
		return 0, ErrGone
	}
	return stat.start, nil
}
