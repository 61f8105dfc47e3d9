package gomicrovm_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"watcher/platform/gomicrovm"
	"watcher/platform/gomicrovm/gomicrovmtest"
	"watcher/platform/process"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

func TestMain(m *testing.M) {
	gomicrovmtest.Main()
	processtest.Main()
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// tree makes files with their own names in them, and with a slash at the end folders.
func tree(t testing.TB, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(path, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(name), 0o644))
	}
}

// A stand is the microVMs of a home, and what is known of them.
type stand struct {
	testing.TB
	home *gomicrovmtest.Home
	vms  *gomicrovm.VMs

	mu      sync.Mutex
	events  []watch.Event
	picture *watch.Picture
	news    chan struct{}
}

// broodbox is the rule of the preset, for one home.
func broodbox(home *gomicrovmtest.Home) watch.Rule {
	return watch.Rule{
		Name: "broodbox", Kind: watch.GoMicroVM, Dirs: []string{home.VMs()},
		Owner: watch.Evidence{Sentinel: true}, StopRunner: true,
	}
}

func newStand(t testing.TB, home *gomicrovmtest.Home, rules ...watch.Rule) *stand {
	t.Helper()
	host, err := process.NewHost("/proc")
	must(t, err)
	s := &stand{TB: t, home: home, picture: watch.NewPicture(host.Boot()), news: make(chan struct{}, 1)}
	s.vms = gomicrovm.New(host, s.post)
	t.Cleanup(s.vms.Close)
	s.vms.SetRules(&watch.Rules{List: rules})
	return s
}

func (s *stand) post(events ...watch.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range events {
		s.events = append(s.events, ev)
		s.picture.Apply(ev)
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

func (s *stand) run() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.vms.Run(ctx)
	}()
	s.Cleanup(func() {
		stop()
		<-done
	})
}

func (s *stand) list() {
	s.Helper()
	events, err := s.vms.List(context.Background())
	must(s, err)
	s.post(events...)
}

// of returns what is known of the microVM with a name, and what each record says of its process.
func (s *stand) of(name string) (sandbox watch.Sandbox, lives string, there bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.picture.IDs() {
		e := s.picture.Entry(id)
		if e.Name != name {
			continue
		}
		var all []string
		for _, o := range e.Owners {
			what := filepath.Base(o.Claim.File)
			if o.Claim.Kind == watch.AncestorClaim {
				what = o.Claim.Program
			}
			all = append(all, what+" "+o.Life.String())
		}
		return e.Sandbox, strings.Join(all, ", "), true
	}
	return watch.Sandbox{}, "", false
}

func (s *stand) detail(name string) (all string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.picture.IDs() {
		if e := s.picture.Entry(id); e.Name == name {
			for _, o := range e.Owners {
				all += o.Detail + "\n"
			}
		}
	}
	return all
}

// await waits until something is so.
func (s *stand) await(what string, so func() bool) {
	s.Helper()
	late := time.After(patience)
	for !so() {
		select {
		case <-s.news:
		case <-late:
			s.Fatalf("never came: %s; events: %+v", what, s.events)
		}
	}
}

func (s *stand) awaitLives(name, want string) {
	s.Helper()
	s.await(name+" with "+want, func() bool {
		_, lives, there := s.of(name)
		return there && lives == want
	})
}

// told returns the latest event of a type that is told.
func told[E watch.Event](s *stand, is func(E) bool) (last E, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range slices.Backward(s.events) {
		if e, of := ev.(E); of && is(e) {
			return e, true
		}
	}
	return last, false
}

func (s *stand) remove(name string) error {
	sandbox, _, there := s.of(name)
	if !there {
		s.Fatalf("%s is not known", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.vms.Remove(ctx, sandbox, nil)
}
