package docker

import (
	"strings"
	"testing"
	"testing/synctest"

	"watcher/watch"
)

// Two looks at one socket at a time, as when a container changes during a list: both find out.
func TestALookWaitsForAnEarlierOne(t *testing.T) {
	for name, comesBack := range map[string]bool{"that comes back": true, "that does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := New("unix:///nowhere", nil, func(...watch.Event) {})
				defer e.Close()
				begun, release := make(chan struct{}), make(chan struct{})
				socket := place{source: "/run/owner.sock"}
				earlier := make(chan watch.OwnerSeen)
				go func() {
					earlier <- e.bounded(socket, watch.OwnerSeen{}, func(seen watch.OwnerSeen) watch.OwnerSeen {
						close(begun)
						<-release
						seen.Life = watch.Exited
						return seen
					})
				}()
				<-begun
				later := make(chan watch.OwnerSeen)
				go func() {
					later <- e.bounded(socket, watch.OwnerSeen{}, func(seen watch.OwnerSeen) watch.OwnerSeen {
						seen.Life = watch.Alive
						return seen
					})
				}()
				synctest.Wait() // both wait
				if !comesBack {
					if got := <-later; got.Life != watch.Unknown || !strings.Contains(got.Detail, "has not come back") {
						t.Errorf("the later look: %+v", got)
					}
					<-earlier
					close(release)
					return
				}
				close(release)
				if got := <-earlier; got.Life != watch.Exited {
					t.Errorf("the earlier look: %+v", got)
				}
				if got := <-later; got.Life != watch.Alive {
					t.Errorf("the later look: %+v", got)
				}
			})
		})
	}
}
