package process

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

// signalGroup is PIDFD_SIGNAL_PROCESS_GROUP of pidfd_send_signal(2), Linux 6.9.
const signalGroup = 1 << 2

// SignalGroup signals the process group that the process is in. If its leader is another process, and somebody is in it for
// whom mine says no, or who cannot be read, then only the process itself is signalled: it was given no group of its own.
// [ErrGone] says that the process is dead.
//
// Whoever has a number can lose it, but not the number of a group while somebody is in it: no process is given that. So it
// is the process held here, seen to be in the group behind the moment that the pidfd of its leader was opened, which makes
// that pidfd mean this group.
func (h *Handle) SignalGroup(sig unix.Signal, mine func(*Sight) bool) error {
	group, err := h.group()
	if err != nil {
		return err
	}
	if group <= 0 {
		return h.Signal(sig) // made in a namespace above ours
	}
	leader := h
	if group == h.process.PID {
		mine = func(*Sight) bool { return true }
	} else {
		switch leader, err = h.host.Open(group); {
		case err == nil:
			defer func() { _ = leader.Close() }()
		case errors.Is(err, ErrNoPidfd):
			return err
		default:
			leader = nil // dead, and the group goes on without it
		}
		all, err := h.members(group, mine)
		if err != nil {
			return err
		}
		if !all {
			return h.Signal(sig)
		}
		if now, err := h.group(); err != nil || now != group {
			return errors.Join(err, h.Signal(sig))
		}
	}
	if leader != nil {
		if err := leader.signal(sig, signalGroup); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return h.signalMembers(sig, group, mine)
}

// group is the process group that the process is in.
func (h *Handle) group() (int, error) {
	st, statErr := h.host.stat(h.process.PID)
	exited, err := h.Exited()
	switch {
	case err != nil:
		return 0, err
	case exited:
		return 0, ErrGone
	case statErr != nil:
		return 0, unreadable(h.process.PID, statErr)
	}
	return st.group, nil
}

// members reports whether all in a group are mine.
func (h *Handle) members(group int, mine func(*Sight) bool) (all bool, err error) {
	all = true
	err = h.host.eachInGroup(group, func(pid int) error {
		if pid == h.process.PID {
			return nil
		}
		s, err := h.host.Sight(pid)
		switch {
		case errors.Is(err, ErrGone):
			return nil
		case errors.Is(err, ErrNoPidfd):
			return err
		case err != nil:
			all = false
			return nil
		}
		defer func() { _ = s.Close() }()
		all = all && (s.Group != group || mine(s))
		return nil
	})
	return all, err
}

// eachInGroup calls each with the processes of a group.
func (h *Host) eachInGroup(group int, each func(pid int) error) error {
	l, err := h.look()
	if err != nil {
		return err
	}
	defer l.close()
	pids, err := l.pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		s, err := l.open(pid)
		if err != nil {
			continue // it is gone, or hidden
		}
		st, err := s.stat("")
		s.close()
		if err != nil || st.group != group || st.dead() {
			continue
		}
		if err := each(pid); err != nil {
			return err
		}
	}
	return nil
}

// rounds is how often the members of a group are gone through: one that forked may have a child which was not there yet.
const rounds = 10

// signalMembers signals the members of a group one by one. The process that is held comes last: while it lives the number
// cannot become that of another group.
func (h *Handle) signalMembers(sig unix.Signal, group int, mine func(*Sight) bool) (result error) {
	done := map[watch.Process]bool{h.process: true}
	for range rounds {
		fresh := false
		err := h.host.eachInGroup(group, func(pid int) error {
			s, err := h.host.Sight(pid)
			if err != nil {
				if !errors.Is(err, ErrGone) {
					result = errors.Join(result, err)
				}
				return nil
			}
			defer func() { _ = s.Close() }()
			if done[s.process] || s.Group != group || !mine(s) {
				return nil
			}
			fresh, done[s.process] = true, true
			if err := s.Signal(sig); err != nil && !errors.Is(err, ErrGone) {
				result = errors.Join(result, err)
			}
			return nil
		})
		if err != nil || !fresh {
			return errors.Join(result, err, h.Signal(sig))
		}
	}
	return errors.Join(result, fmt.Errorf("signal group %d: it grows all the time", group), h.Signal(sig))
}
