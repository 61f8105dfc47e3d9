package watch

import (
	"container/heap"
	"time"
)

// An agenda says which sandboxes to judge next, so that a death costs what its own sandboxes cost and not a walk over
// all of them. Entries of the heap that no longer agree with at are left in it and skipped when they come up.
type agenda struct {
	touched map[ID]struct{}
	at      map[ID]time.Time
	queue   dateQueue
}

func newAgenda() agenda {
	return agenda{touched: map[ID]struct{}{}, at: map[ID]time.Time{}}
}

func (a *agenda) touch(id ID) { a.touched[id] = struct{}{} }

func (a *agenda) forget(id ID) {
	delete(a.touched, id)
	delete(a.at, id)
}

func (a *agenda) settle(id ID, next time.Time) {
	delete(a.touched, id)
	if next.IsZero() {
		delete(a.at, id)
		return
	}
	if a.at[id].Equal(next) {
		return
	}
	a.at[id] = next
	heap.Push(&a.queue, date{next, id})
}

// advance touches everything whose date has come.
func (a *agenda) advance(now time.Time) {
	for len(a.queue) > 0 && !a.queue[0].at.After(now) {
		d := heap.Pop(&a.queue).(date)
		if a.at[d.id].Equal(d.at) {
			delete(a.at, d.id)
			a.touch(d.id)
		}
	}
}

func (a *agenda) next() time.Time {
	for len(a.queue) > 0 {
		d := a.queue[0]
		if a.at[d.id].Equal(d.at) {
			return d.at
		}
		heap.Pop(&a.queue)
	}
	return time.Time{}
}

type date struct {
	at time.Time
	id ID
}

// dateQueue is a heap.Interface with the earliest date first.
type dateQueue []date

func (q dateQueue) Len() int           { return len(q) }
func (q dateQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q dateQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *dateQueue) Push(x any)        { *q = append(*q, x.(date)) }
func (q *dateQueue) Pop() any {
	last := len(*q) - 1
	d := (*q)[last]
	*q = (*q)[:last]
	return d
}
