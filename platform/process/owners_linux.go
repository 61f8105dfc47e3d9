package process

import (
	"errors"
	"time"

	"watcher/watch"
)

// Owners holds the processes that own sandboxes and posts a [watch.ProcessSeen] when one dies. It is safe for
// concurrent use.
type Owners struct{ holder }

// NewOwners returns an Owners that holds nobody. post must neither block nor call back.
func NewOwners(host *Host, post func(...watch.Event)) *Owners {
	return &Owners{newHolder(host, post, func(p *held, life watch.Life, at time.Time) []watch.Event {
		return []watch.Event{p.seen(life, at)}
	})}
}

func (p *held) seen(life watch.Life, at time.Time) watch.ProcessSeen {
	return watch.ProcessSeen{PID: p.process.PID, Process: p.process, Born: p.born, Life: life, At: at}
}

// Hold looks at a PID and goes on watching the process that has it.
func (o *Owners) Hold(pid int) watch.ProcessSeen {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.all[pid]; p != nil && !p.exited {
		exited, err := o.host.exited(p)
		switch {
		case err != nil:
			return watch.ProcessSeen{PID: pid, Life: watch.Unknown, At: time.Now(), Detail: err.Error()}
		case !exited:
			return p.seen(watch.Alive, time.Now())
		}
	}
	p, err := o.host.hold(pid)
	switch {
	case errors.Is(err, ErrGone):
		return watch.ProcessSeen{PID: pid, Life: watch.Exited, At: time.Now()}
	case err != nil:
		seen := watch.ProcessSeen{PID: pid, Life: watch.Unknown, At: time.Now(), Detail: err.Error()}
		if leader, err := o.host.leader(pid); err == nil && leader != pid {
			seen.Thread = true
			if stat, err := o.host.stat(pid); err == nil {
				seen.Process = o.host.identity(pid, stat.start)
			}
		}
		return seen
	}
	o.keep(p)
	return p.seen(watch.Alive, time.Now())
}

// Release lets go of the process that was found at a PID.
func (o *Owners) Release(pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(pid)
}
