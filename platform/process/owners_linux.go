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

// Owners holds the processes that own sandboxes and posts a [watch.ProcessSeen] when one dies. It is safe for
// concurrent use.
type Owners struct {
	host *Host
	post func(...watch.Event)

	mu   sync.Mutex
	held map[int]*owner
}

// An owner is the process that was found at a PID. It stays after its death until it is released or another process
// is found there, so that a later witness can still say when exactly it died.
type owner struct {
	process watch.Process
	born    time.Time
	since   time.Time // an exit stamped before then was of an earlier process with the PID
	handle  *Handle   // nil where there are no pidfds
	exited  bool
}

// NewOwners returns an Owners that holds nobody. post must not block.
func NewOwners(host *Host, post func(...watch.Event)) *Owners {
	return &Owners{host: host, post: post, held: map[int]*owner{}}
}

// Hold looks at a PID and goes on watching the process that has it.
func (o *Owners) Hold(pid int) watch.ProcessSeen {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.held[pid]; w != nil && !w.exited {
		exited, err := o.exited(w)
		switch {
		case err != nil:
			return watch.ProcessSeen{PID: pid, Life: watch.Unknown, At: time.Now(), Detail: err.Error()}
		case !exited:
			return w.seen(watch.Alive, time.Now())
		}
	}
	w, err := o.open(pid)
	switch {
	case errors.Is(err, ErrGone):
		return watch.ProcessSeen{PID: pid, Life: watch.Exited, At: time.Now()}
	case err != nil:
		seen := watch.ProcessSeen{PID: pid, Life: watch.Unknown, At: time.Now(), Detail: err.Error()}
		if leader, err := o.host.leader(pid); err == nil && leader != pid {
			seen.Thread = true
			if stat, err := o.host.stat(pid); err == nil {
				seen.Process = watch.Process{PID: pid, Start: stat.Starttime, Boot: o.host.boot}
			}
		}
		return seen
	}
	o.drop(pid)
	o.held[pid] = w
	if w.handle != nil {
		go o.wait(w)
	}
	return w.seen(watch.Alive, time.Now())
}

func (w *owner) seen(life watch.Life, at time.Time) watch.ProcessSeen {
	return watch.ProcessSeen{PID: w.process.PID, Process: w.process, Born: w.born, Life: life, At: at}
}

// wait runs for as long as the process lives, or until it is released.
func (o *Owners) wait(w *owner) {
	switch err := w.handle.Wait(); {
	case err == nil:
		o.bury(w, time.Now())
	case errors.Is(err, os.ErrClosed):
	default:
		// The scan that this asks for finds out what the goroutine could not.
		o.post(watch.LookFailed{At: time.Now(), Err: fmt.Errorf("wait for the end of process %d: %w", w.process.PID, err)})
	}
}

// bury notes that w is dead and posts it. A second witness posts it again, with its own time.
func (o *Owners) bury(w *owner, at time.Time) {
	o.mu.Lock()
	w.exited = true
	o.mu.Unlock()
	o.post(w.seen(watch.Exited, at))
}

// Release lets go of the process that was found at a PID.
func (o *Owners) Release(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(pid)
}

func (o *Owners) drop(pid int) {
	if w := o.held[pid]; w != nil && w.handle != nil {
		// Closing a pidfd has no error that anybody could act on.
		_ = w.handle.Close()
	}
	delete(o.held, pid)
}

// Close lets go of every process.
func (o *Owners) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for pid := range o.held {
		o.drop(pid)
	}
}

// Check looks at every held process again and posts those that have died.
func (o *Owners) Check() {
	o.mu.Lock()
	var dead []*owner
	for _, w := range o.held {
		if exited, err := o.exited(w); err == nil && exited && !w.exited {
			dead = append(dead, w)
		}
	}
	o.mu.Unlock()
	for _, w := range dead {
		o.bury(w, time.Now())
	}
}

// Witness takes in that the kernel reported an exit in the process with that PID, or the beginning of a core dump,
// stamped at. The report only makes us ask (P4).
func (o *Owners) Witness(pid int, at time.Time) {
	o.mu.Lock()
	w := o.held[pid]
	if w == nil || at.Before(w.since) {
		o.mu.Unlock()
		return
	}
	exited, err := o.exited(w)
	o.mu.Unlock()
	if err == nil && (exited || w.handle != nil && w.handle.dumping()) {
		o.bury(w, at)
	}
}

func (o *Owners) open(pid int) (*owner, error) {
	handle, err := o.host.Open(pid)
	if err == nil {
		return &owner{process: handle.process, born: handle.born, since: handle.opened, handle: handle}, nil
	}
	if !errors.Is(err, ErrNoPidfd) {
		return nil, err
	}
	since := time.Now()
	start, err := o.host.alive(pid)
	if err != nil {
		return nil, err
	}
	// The files of /proc exist for a thread's number too, but its end would not be the process's (P4).
	if leader, err := o.host.leader(pid); err != nil || leader != pid {
		return nil, errors.Join(fmt.Errorf("%d is not known to be a process", pid), err)
	}
	born, err := bornAt(start)
	if err != nil {
		return nil, err
	}
	return &owner{process: watch.Process{PID: pid, Start: start, Boot: o.host.boot}, born: born, since: since}, nil
}

func (o *Owners) exited(w *owner) (bool, error) {
	if w.handle != nil {
		return w.handle.Exited()
	}
	start, err := o.host.alive(w.process.PID)
	if errors.Is(err, ErrGone) {
		return true, nil
	}
	return err == nil && start != w.process.Start, err
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
	// A leader that is a zombie may still have living workers; each counts in num_threads until it is dead.
	if (stat.State == "Z" || stat.State == "X") && stat.NumThreads <= 1 {
		return 0, ErrGone
	}
	return stat.Starttime, nil
}
