package docker

import (
	"slices"
	"time"

	"github.com/docker/docker/api/types/container"

	"watcher/watch"
)

// ClientSource is the name of the look for clients among the sources of events.
const ClientSource = Source + " clients"

// A told is what the client finder said of a container. It is for good: what it says later is only less.
type told struct {
	had   bool // clients were found: it is watched on such terms for as long as it exists
	doubt bool // nothing is known of its client, not even that it has none
	seen  watch.ClientsSeen
}

// clientele looks for clients, and says so if that begins to fail or fails no more.
func (e *Engine) clientele() (*clientele, error) {
	found, err := e.clients.look()
	e.mu.Lock()
	was := e.blind
	e.blind = err != nil
	e.mu.Unlock()
	switch {
	case err != nil && !was:
		e.post(watch.SourceLost{Source: ClientSource, Err: err, At: time.Now()})
	case err == nil && was:
		e.post(watch.SourceBack{Source: ClientSource, At: time.Now()})
	}
	return found, err
}

// unasked reports whether the finder is still to be shown a container. It wants to see all of them, since one that it has
// not seen may be what another's client has started.
func (e *Engine) unasked(id string, g *glance) bool {
	e.mu.Lock()
	_, known := e.told[id]
	shared := e.shared
	e.mu.Unlock()
	return g.rules.clients && shared && e.clients != nil && !known
}

// ask shows a container to the finder, if it is to be shown.
func (e *Engine) ask(c container.InspectResponse, g *glance) {
	if !e.unasked(c.ID, g) {
		return
	}
	found, err := g.clientele()
	if err != nil {
		return
	}
	e.answers.Lock()
	defer e.answers.Unlock()
	clients, why := found.of(c)
	if before := e.memory.recall(c.ID); len(before) > 0 && (len(clients) > 0 || why == whyNobody) {
		// They, or who spoke to them, may have died while we were away.
		clients, why = before, ""
	}
	t := told{had: len(clients) > 0, seen: watch.ClientsSeen{
		ID: watch.ID{Kind: watch.Container, Name: c.ID}, Clients: clients, At: time.Now(), Detail: why,
	}}
	switch {
	case t.had, slices.Contains([]string{whyDetached, whyTerminal, whyRestarts, whyNobody}, why):
	case slices.Contains([]string{whyVague, whyTooMany, whyOtherFile, whyLeft}, why):
		t.doubt = true
	default:
		return // the next look may tell
	}
	e.mu.Lock()
	e.told[c.ID] = t
	e.mu.Unlock()
	if t.had {
		e.memory.keep(c.ID, clients)
	}
}

// clientsOf are what is known of the clients of containers that are watched, as events.
func (e *Engine) clientsOf(all ...watch.Sandbox) (found []watch.Event) {
	e.answers.Lock()
	defer e.answers.Unlock()
	for _, s := range all {
		claims := slices.ContainsFunc(s.Terms.Owners, func(c watch.Claim) bool { return c.Kind == watch.ClientClaim })
		e.mu.Lock()
		t, ok := e.told[s.ID.Name]
		e.mu.Unlock()
		if ok && claims {
			found = append(found, e.withHeirs(t))
		}
	}
	return found
}

// withHeirs is what is known of a container's clients, with those who speak to them now if all who did are dead: a program
// that puts itself into the background leaves what it had open to a child. The caller holds answers.
func (e *Engine) withHeirs(t told) watch.ClientsSeen {
	clients, err := e.clients.heirs(t.seen.Clients)
	switch {
	case err != nil:
		seen := t.seen
		seen.Clients, seen.At, seen.Detail = nil, time.Now(), "who spoke to its client is dead, and whether another does cannot be told: "+err.Error()
		return seen
	case len(clients) > 0:
		t.seen.Clients, t.seen.At = clients, time.Now()
		e.mu.Lock()
		if _, ok := e.told[t.seen.ID.Name]; ok {
			e.told[t.seen.ID.Name] = t
		}
		e.mu.Unlock()
	}
	return t.seen
}

// clientNews are what the finder says otherwise than before.
func (e *Engine) clientNews() (found []watch.Event) {
	if e.clients == nil {
		return nil
	}
	e.answers.Lock()
	defer e.answers.Unlock()
	for _, ev := range e.clients.changed() {
		seen := ev.(watch.ClientsSeen)
		e.mu.Lock()
		t, ok := e.told[seen.ID.Name]
		if ok && t.had {
			t.seen = seen
			e.told[seen.ID.Name] = t
			found = append(found, seen)
		}
		e.mu.Unlock()
		if ok && t.had {
			e.memory.keep(seen.ID.Name, seen.Clients)
		}
	}
	return found
}
