package process

import (
	"errors"
	"fmt"

	"watcher/watch"
)

// An Ancestor is a process above another.
type Ancestor struct {
	Process watch.Process
	Exe     string
	Argv    []string
}

// Generations is how many ancestors are looked at.
const Generations = 16

// ErrTooDeep says that a process has more ancestors than are looked at.
var ErrTooDeep = fmt.Errorf("it has more than %d ancestors", Generations)

// errOutside says that the parent of a process is in a PID namespace above ours.
var errOutside = errors.New("its parent is in another PID namespace")

// Ancestors returns the processes above this one, its parent first, up to the first that until accepts, or to the one that
// has no parent. All of them were alive and above one another at one moment. A parent that has died is none: the kernel has
// given its children to PID 1, or to the nearest ancestor that took it upon itself (PR_SET_CHILD_SUBREAPER in prctl(2)).
//
// If there is an error then what is returned with it is not all. It is, or wraps, [ErrGone] if the process itself is dead,
// [ErrTooDeep], or [ErrUnreadable].
func (h *Handle) Ancestors(until func(Ancestor) bool) ([]Ancestor, error) {
	type result struct {
		chain []Ancestor
		err   error // with a chain that is not all
	}
	r, err := within(h.host, h.process.PID, func() (result, error) {
		chain, err := h.ancestors(until)
		return result{chain, err}, nil
	}, func(result) {})
	if err == nil {
		err = r.err
	}
	return r.chain, err
}

func (h *Handle) ancestors(until func(Ancestor) bool) ([]Ancestor, error) {
	l, err := h.host.look()
	if err != nil {
		return nil, unreadable(h.process.PID, err)
	}
	defer l.close()
	for range looks {
		chain, err := h.climb(l, until)
		exited, pollErr := h.Exited()
		switch {
		case pollErr != nil:
			return nil, pollErr
		case exited:
			return nil, ErrGone
		case errors.Is(err, errMoved):
			continue
		case err != nil:
			return chain, fmt.Errorf("ancestors of process %d: %w", h.process.PID, err)
		}
		return chain, nil
	}
	return nil, fmt.Errorf("ancestors of process %d: %w: %w", h.process.PID, ErrUnreadable, errStirs)
}

// errMoved says that a process was given to another parent while we looked.
var errMoved = errors.New("an ancestor died")

// A link is a process whose parent was read.
type link struct {
	pid, parent int
	start       uint64
}

// climb goes up once. Who was read in which order does not matter if nothing has changed when all were read: a process is
// given away only when its parent dies, and never to its former parent.
func (h *Handle) climb(l *look, until func(Ancestor) bool) (chain []Ancestor, err error) {
	var links []link
	for pid := h.process.PID; ; {
		at, err := linkOf(l, pid)
		if err != nil {
			if pid != h.process.PID && errors.Is(err, ErrGone) {
				err = errMoved
			}
			return chain, err
		}
		links = append(links, at)
		if len(links) > 1 && at.start > links[len(links)-2].start {
			// The number has gone to a younger process since.
			return chain, errMoved
		}
		if len(links) > 1 {
			a, err := h.host.ancestor(l, at)
			if err != nil {
				return chain, err
			}
			chain = append(chain, a)
			if until(a) {
				break
			}
		}
		if at.parent == 0 {
			if pid != 1 {
				return chain, fmt.Errorf("process %d: %w: %w", pid, ErrUnreadable, errOutside)
			}
			break
		}
		if len(chain) == Generations {
			return chain, ErrTooDeep
		}
		pid = at.parent
	}
	for _, was := range links {
		if is, err := linkOf(l, was.pid); err != nil || is != was {
			return chain, errMoved
		}
	}
	return chain, nil
}

func linkOf(l *look, pid int) (link, error) {
	s, err := l.open(pid)
	if err == nil {
		defer s.close()
		var st stat
		if st, err = s.stat(""); err == nil && st.dead() {
			err = ErrGone
		}
		if err == nil {
			return link{pid, st.parent, st.start}, nil
		}
	}
	return link{}, unreadable(pid, err)
}

// ancestor reads what a parent runs.
func (h *Host) ancestor(l *look, at link) (Ancestor, error) {
	a := Ancestor{Process: h.identity(at.pid, at.start)}
	s, err := l.open(at.pid)
	if errors.Is(err, ErrGone) {
		return a, errMoved
	}
	if err != nil {
		return a, unreadable(at.pid, err)
	}
	defer s.close()
	_, im, err := s.settled()
	switch {
	case err != nil:
		return a, unreadable(at.pid, err)
	case im.none:
		return a, errMoved // it is on its way out
	case !im.whole && (at.pid != 1 || !h.isInit()):
		return a, unreadable(at.pid, errors.New("it cannot be told what it runs"))
	}
	a.Exe, a.Argv = im.exe, im.argv
	return a, nil
}
