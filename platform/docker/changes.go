package docker

import (
	"sync"

	"watcher/watch"
)

// A change is something to look at again: a container by its ID, a volume by its name, a network by its ID.
type change struct {
	kind watch.Kind
	name string
}

// whoUses stands for who uses which volumes and networks.
var whoUses = change{}

// changes are what is to be looked at again. The engine forgets events that a subscriber does not take within 100 ms, so
// they are taken at once and kept here; many about one thing are one.
type changes struct {
	ready chan struct{}

	mu  sync.Mutex
	all []change
	in  map[change]bool
}

func newChanges() *changes {
	return &changes{ready: make(chan struct{}, 1), in: map[change]bool{}}
}

func (c *changes) add(what change) {
	c.mu.Lock()
	if !c.in[what] {
		c.in[what] = true
		c.all = append(c.all, what)
	}
	c.mu.Unlock()
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// take returns them in the order in which they first changed.
func (c *changes) take() []change {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all, c.in = nil, map[change]bool{}
	return all
}
