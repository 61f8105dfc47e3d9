package docker

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"watcher/platform/statedir"
	"watcher/watch"
)

// A memory keeps, through restarts of ours, which clients were found for a container: one that died while we were away
// cannot be found any more, and is the owner all the same. A nil memory remembers nothing.
type memory struct {
	host  string
	notes *statedir.Notes
	write bool        // else what is there is only read
	fault func(error) // told of a note that cannot be kept

	mu    sync.Mutex
	noted map[string]noted
}

// A noted is what is remembered of one container.
type noted struct {
	clients []watch.Client
	at      time.Time
}

// A note is what is written of one container.
type note struct {
	Engine  string // an ID means nothing to another engine
	Clients []watch.Client
}

// Remember has the engine remember clients through restarts, in notes. If write is false it only reads what is there, as a
// look beside a daemon does. fault is told of notes that cannot be kept, from any goroutine. The error is for notes that
// could not be read; the others are remembered. It must be called before the first session.
func (e *Engine) Remember(notes *statedir.Notes, write bool, fault func(error)) error {
	m := &memory{host: e.host, notes: notes, write: write, fault: fault, noted: map[string]noted{}}
	err := notes.Each(func(id string, data []byte) error {
		var n note
		if err := json.Unmarshal(data, &n); err != nil {
			return fmt.Errorf("%q: %w", data, err)
		}
		if n.Engine == m.host && len(n.Clients) > 0 {
			m.noted[id] = noted{clients: n.Clients}
		}
		return nil
	})
	e.memory = m
	return err
}

// recall returns the clients that were found for a container, if any were.
func (m *memory) recall(id string) []watch.Client {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.noted[id].clients
}

// keep remembers the clients of a container; that there are none any more, too.
func (m *memory) keep(id string, clients []watch.Client) {
	if m == nil {
		return
	}
	if len(clients) == 0 {
		m.drop(id)
		return
	}
	m.mu.Lock()
	m.noted[id] = noted{clients, time.Now()}
	m.mu.Unlock()
	if m.write {
		m.tell(m.notes.Put(id, note{m.host, clients}))
	}
}

func (m *memory) drop(id string) {
	m.mu.Lock()
	delete(m.noted, id)
	m.mu.Unlock()
	if m.write {
		m.tell(m.notes.Delete(id))
	}
}

// prune forgets containers that are not in a list and not younger than it.
func (m *memory) prune(listed map[string]bool, asked time.Time) {
	if m == nil {
		return
	}
	m.mu.Lock()
	known := maps.Clone(m.noted)
	m.mu.Unlock()
	for id, n := range known {
		if !listed[id] && n.at.Before(asked) {
			m.drop(id)
		}
	}
}

func (m *memory) tell(err error) {
	if err != nil {
		m.fault(err)
	}
}
