package docker

import "sync"

// changes are the containers to look at again. The engine forgets events that a subscriber does not take within 100 ms,
// so they are taken at once and kept here; many about one container are one.
type changes struct {
	ready chan struct{}

	mu  sync.Mutex
	ids []string
	in  map[string]bool
}

func newChanges() *changes {
	return &changes{ready: make(chan struct{}, 1), in: map[string]bool{}}
}

func (c *changes) add(id string) {
	c.mu.Lock()
	if !c.in[id] {
		c.in[id] = true
		c.ids = append(c.ids, id)
	}
	c.mu.Unlock()
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// take returns them in the order in which they first changed.
func (c *changes) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.ids
	c.ids, c.in = nil, map[string]bool{}
	return ids
}
