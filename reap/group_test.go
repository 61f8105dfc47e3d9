package reap_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

// This file is the story of a group: when the last of its containers is reaped, its volume and its network go too.

// belonging is what belongs to a group. It is in use while a container of the group is there.
func belonging(kind watch.Kind, name string) watch.Sandbox {
	return watch.Sandbox{
		ID: watch.ID{Kind: kind, Name: name}, Name: name, Created: time.Now(), InUse: true,
		Terms: watch.Terms{Rule: watch.RuleLabels, Group: "g", Owners: []watch.Claim{{Kind: watch.GroupClaim, Group: "g"}}},
	}
}

// withGroups is a loop that serves volumes and networks as well, of an engine of which all is there.
func withGroups(c *reap.Config) {
	for _, kind := range []watch.Kind{watch.Volume, watch.Network} {
		c.Platforms[kind] = c.Platforms[watch.Container]
		c.Inbox.Post(watch.SourceBack{Source: "docker", Kind: kind, At: time.Now()})
	}
}

// scan tells of all kinds, in order, as they are.
func (s *stand) scan() {
	s.inbox.Post(watch.ScanBegun{At: time.Now()})
	for _, kind := range []watch.Kind{watch.Container, watch.Volume, watch.Network} {
		list := s.engine.listOf(kind)
		for i := range list.Sandboxes {
			list.Sandboxes[i].InUse = kind != watch.Container && len(s.engine.listOf(watch.Container).Sandboxes) > 0
		}
		s.inbox.Post(list)
	}
	s.inbox.Post(watch.ScanEnded{At: time.Now()})
	s.settle()
}

func TestAGroupGoesWithItsLastContainer(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(withGroups), func(s *stand) {
		s.owners.live(100)
		s.owners.live(200)
		s.run(born("a", labels{"owner": "100", "group": "g"}), born("b", labels{"owner": "200", "group": "g"}), belonging(watch.Volume, "v"), belonging(watch.Network, "n"))
		s.owners.die(100)
		s.pass(time.Minute)
		s.scan()
		if got := s.engine.names(); !slices.Equal(got, []string{"b", "n", "v"}) {
			t.Fatalf("left are %v", got)
		}
		docket.holds()
		s.owners.die(200)
		s.pass(time.Second)
		if got := s.engine.names(); !slices.Equal(got, []string{"n", "v"}) {
			t.Fatalf("left are %v", got)
		}
		s.scan() // by now they are not in use any more
		s.pass(time.Second)
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
		docket.holds()
		reasons := map[string]reap.Reason{}
		for _, r := range s.told().reports {
			reasons[r.Entry.Name] = r.Reason
		}
		want := map[string]reap.Reason{"a": reap.OwnerExited, "b": reap.OwnerExited, "v": reap.OwnerExited, "n": reap.OwnerExited}
		if diff := cmp.Diff(want, reasons); diff != "" {
			t.Errorf("reported (-want +got)\n%s", diff)
		}
		if got := s.told().status; got != (reap.Status{Scanned: true, Reaped: 4}) {
			t.Errorf("status %+v", got)
		}
	})
}

func TestAGroupStaysWhereNoContainerOfItWasReaped(t *testing.T) {
	onStand(t, withGroups, func(s *stand) {
		s.owners.live(100)
		s.run(born("a", labels{"owner": "100", "group": "g"}), belonging(watch.Volume, "v"))
		s.inbox.Post(watch.SandboxGone{ID: id("a"), At: time.Now()})
		delete(s.engine.sandboxes, id("a"))
		s.owners.die(100)
		s.scan()
		s.pass(time.Hour)
		s.did()
	})
}

// A volume is told of only after its group has ended.
func TestAGroupGoesAlsoWhereItIsListedLate(t *testing.T) {
	docket := newState(t)
	onStand(t, docket.with(withGroups), func(s *stand) {
		v := belonging(watch.Volume, "v")
		v.Created = v.Created.Add(-time.Minute)
		s.run(born("a", labels{"owner": "100", "group": "g"}))
		s.pass(time.Minute)
		if got := s.engine.names(); len(got) > 0 {
			t.Fatalf("left are %v", got)
		}
		s.engine.start(v)
		s.scan()
		s.pass(time.Second)
		if got := s.engine.names(); len(got) > 0 {
			t.Errorf("left are %v", got)
		}
		docket.holds()
	})
}

// A crash at any moment costs nothing of it. What is on the disk and in the engine at each boundary is what the next daemon
// finds.
func TestR8AGroupOutlivesACrash(t *testing.T) {
	type crash struct {
		at    string
		cases map[string]string // the records, by their files' names
		left  []watch.Sandbox
	}
	for name, test := range map[string]struct {
		freed bool // that the volume and the network are not in use any more is told before the removal ends
		late  bool // and of the network nothing is known before the second scan
	}{
		"told at once": {freed: true},
		"told later":   {},
		"listed later": {late: true},
	} {
		t.Run(name, func(t *testing.T) {
			docket := newState(t)
			var crashes []crash
			var mu sync.Mutex
			watched := func(c *reap.Config) {
				e := c.Platforms[watch.Container].(*engine)
				c.Boundary = func(b reap.Boundary) {
					mu.Lock()
					defer mu.Unlock()
					now := crash{at: fmt.Sprintf("%d, %s", len(crashes), b), cases: docket.records()}
					e.mu.Lock()
					defer e.mu.Unlock()
					now.left = slices.Collect(maps.Values(e.sandboxes))
					crashes = append(crashes, now)
				}
			}
			onStand(t, docket.with(withGroups, watched), func(s *stand) {
				v, n := belonging(watch.Volume, "v"), belonging(watch.Network, "n")
				n.Created = n.Created.Add(-time.Minute)
				if test.freed {
					s.engine.freed = []watch.Sandbox{v, n}
				}
				s.owners.live(100)
				s.run(born("a", labels{"owner": "100", "group": "g"}), v)
				if test.late {
					s.engine.start(n)
				} else {
					s.run(n)
				}
				s.owners.die(100)
				s.pass(time.Minute)
				s.scan()
				s.pass(time.Minute)
				if got := s.engine.names(); len(got) > 0 {
					t.Fatalf("left are %v", got)
				}
				docket.holds()
			})
			if len(crashes) < 10 {
				t.Fatalf("%d boundaries", len(crashes))
			}
			for _, c := range crashes {
				t.Run(c.at, func(t *testing.T) {
					next := newState(t)
					for name, text := range c.cases {
						if err := os.WriteFile(filepath.Join(next.dir, "cases", name), []byte(text), 0o600); err != nil {
							t.Fatal(err)
						}
					}
					onStand(t, next.with(withGroups), func(s *stand) {
						for _, sandbox := range c.left {
							s.engine.start(sandbox)
						}
						s.scan()
						s.pass(time.Minute)
						s.scan()
						s.pass(time.Minute)
						if got := s.engine.names(); len(got) > 0 {
							t.Errorf("left are %v", got)
						}
						next.holds()
					})
				})
			}
		})
	}
}

// records are what a crash leaves of the docket, by file. Somebody may be at work in it.
func (s state) records() map[string]string {
	records := map[string]string{}
	files, err := filepath.Glob(filepath.Join(s.dir, "cases", "*.json"))
	for _, file := range files {
		text, readErr := os.ReadFile(file)
		if errors.Is(readErr, fs.ErrNotExist) {
			continue
		}
		err = errors.Join(err, readErr)
		records[filepath.Base(file)] = string(text)
	}
	if err != nil {
		s.Error(err)
	}
	return records
}
