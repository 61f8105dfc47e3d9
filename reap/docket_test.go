package reap_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"watcher/reap"
	"watcher/watch"
)

// A state is a state directory with a docket in it.
type state struct {
	*testing.T
	*reap.Docket
	dir string
}

func newState(t *testing.T) state {
	t.Helper()
	dir := t.TempDir()
	d := reap.NewDocket(dir)
	if err := d.Make(); err != nil {
		t.Fatal(err)
	}
	return state{t, d, dir}
}

// record is the file of a container's case.
func (s state) record(name string) string {
	return filepath.Join(s.dir, "cases", "container-"+name+".json")
}

// files are all files below the state directory, with their content.
func (s state) files() map[string]string {
	s.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(s.dir, path)
		files[rel] = entry.Type().String()
		if entry.Type().IsRegular() {
			text, err := os.ReadFile(path)
			files[rel] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	return files
}

func (s state) write(cases ...reap.Case) {
	s.Helper()
	for _, c := range cases {
		if err := s.Write(c); err != nil {
			s.Fatal(err)
		}
	}
}

// loaded are the cases that can be read, by ID, and how many records cannot.
func (s state) loaded() (map[string]reap.Case, int) {
	s.Helper()
	cases, damaged, err := s.Load()
	if err != nil {
		s.Fatal(err)
	}
	found := map[string]reap.Case{}
	for _, c := range cases {
		if _, twice := found[c.ID]; twice {
			s.Fatalf("%s is loaded twice", c.ID)
		}
		found[c.ID] = c
	}
	return found, len(damaged)
}

// holds checks which cases can be read.
func (s state) holds(names ...string) {
	s.Helper()
	cases, _ := s.loaded()
	var got []string
	for name := range cases {
		got = append(got, name)
	}
	slices.Sort(got)
	if diff := cmp.Diff(names, got, cmpopts.EquateEmpty()); diff != "" {
		s.Fatalf("cases (-want +got)\n%s", diff)
	}
}

// aCase is a case of a container.
func aCase(name string) reap.Case {
	return reap.Case{
		Kind: watch.Container, ID: name, Name: "agent-" + name, Image: "busybox", Created: at(0),
		Rule: watch.RuleLabels, Reason: reap.OwnerExited, Owner: "100",
		Steps: []reap.CaseStep{{Step: "kill", Done: true}, {Step: "remove"}}, Begun: at(time.Minute),
	}
}

// failed is a case whose removal has failed n times.
func failed(name string, n int) reap.Case {
	c := aCase(name)
	c.Attempts, c.Error = n, "device or resource busy"
	c.First, c.Last, c.Next = at(2*time.Minute), at(3*time.Minute), at(4*time.Minute)
	c.GaveUp = n >= reap.DefaultPolicy().Attempts
	return c
}

func TestR8WhatIsRecordedIsReadAgainUntilItIsClosed(t *testing.T) {
	s := newState(t)
	s.holds()
	bare := reap.Case{Kind: "vm", ID: "c", Reason: "stale-state", Begun: at(0)}
	s.write(aCase("a"), failed("b", 9), bare)
	want := map[string]reap.Case{"a": aCase("a"), "b": failed("b", 9), "c": bare}
	got, damaged := s.loaded()
	if diff := cmp.Diff(want, got); diff != "" || damaged > 0 {
		t.Errorf("%d damaged, cases (-want +got)\n%s", damaged, diff)
	}
	s.write(failed("a", 1)) // written again, it replaces what was there
	if got, _ := s.loaded(); got["a"].Attempts != 1 || len(got) != 3 {
		t.Errorf("cases %+v", got)
	}
	for range 2 { // that there is none is success
		if err := s.Close(id("a")); err != nil {
			t.Fatal(err)
		}
		s.holds("b", "c")
	}
	if err := s.Close(watch.ID{Kind: "vm", Name: "b"}); err != nil { // another kind's
		t.Fatal(err)
	}
	s.holds("b", "c")
	info, err := os.Stat(s.record("b"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("record: %v, %v; want 0600, as it names what others run", info.Mode(), err)
	}
	if left := s.files(); len(left) != 5 { // the folder, its two and their records
		t.Errorf("files left: %q", left)
	}
}

func TestADocketThatIsNotThereIsEmptyAndReadingDoesNotMakeIt(t *testing.T) {
	s := state{t, nil, t.TempDir()}
	s.Docket = reap.NewDocket(filepath.Join(s.dir, "state"))
	s.holds()
	if ids, err := s.Dropped(); err != nil || len(ids) > 0 {
		t.Errorf("dropped: %v, %v", ids, err)
	}
	if dropped, err := s.IsDropped(id("a")); err != nil || dropped {
		t.Errorf("dropped: %v, %v", dropped, err)
	}
	for name, err := range map[string]error{"Close": s.Close(id("a")), "PickUp": s.PickUp(id("a"))} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.SetAside(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if got := s.files(); len(got) != 1 {
		t.Errorf("made: %q", got)
	}
	s.write(aCase("a")) // that makes it
	s.holds("a")
}

// unreadable are ways in which a record can be no record.
var unreadable = map[string]func(s state, file string) error{
	"damaged": func(_ state, file string) error { return os.WriteFile(file, []byte(`{"kind":"container",%`), 0o600) },
	"cut off": func(_ state, file string) error {
		text, err := os.ReadFile(file)
		return errors.Join(err, os.WriteFile(file, text[:len(text)/2], 0o600))
	},
	"empty":       func(_ state, file string) error { return os.Truncate(file, 0) },
	"zero-filled": func(_ state, file string) error { return os.WriteFile(file, make([]byte, 4096), 0o600) },
	"too long": func(_ state, file string) error {
		text, err := os.ReadFile(file)
		return errors.Join(err, os.WriteFile(file, append(text, strings.Repeat(" ", 64<<10)...), 0o600))
	},
	"endless":            func(_ state, file string) error { return errors.Join(os.Remove(file), os.Symlink("/dev/zero", file)) },
	"followed by more":   func(_ state, file string) error { return appendTo(file, "{}") },
	"of another sandbox": func(s state, file string) error { return os.WriteFile(file, s.text("good"), 0o600) },
	"a number":           func(_ state, file string) error { return os.WriteFile(file, []byte("7\n"), 0o600) },
	"null":               func(_ state, file string) error { return os.WriteFile(file, []byte("null\n"), 0o600) },
	"without what matters": func(_ state, file string) error {
		return os.WriteFile(file, []byte(`{"kind":"container","id":"bad"}`), 0o600)
	},
	"of less than no tries": func(s state, file string) error { return replace(file, `"attempts": 0`, `"attempts": -1`) },
	"a folder": func(_ state, file string) error {
		return errors.Join(os.Remove(file), os.Mkdir(file, 0o700))
	},
	"a link to a good record elsewhere": func(s state, file string) error {
		elsewhere := filepath.Join(s.dir, "elsewhere")
		return errors.Join(os.Rename(file, elsewhere), os.Symlink(elsewhere, file))
	},
	"a link to a good record beside": func(s state, file string) error {
		return errors.Join(os.Remove(file), os.Symlink(filepath.Base(s.record("good")), file))
	},
	"a link to itself": func(_ state, file string) error {
		return errors.Join(os.Remove(file), os.Symlink(filepath.Base(file), file))
	},
	"a link to nowhere": func(_ state, file string) error { return errors.Join(os.Remove(file), os.Symlink("nowhere", file)) },
	"a pipe": func(_ state, file string) error {
		return errors.Join(os.Remove(file), exec.Command("mkfifo", file).Run())
	},
	"a device": func(_ state, file string) error { return errors.Join(os.Remove(file), os.Symlink("/dev/null", file)) },
}

func (s state) text(name string) []byte {
	text, err := os.ReadFile(s.record(name))
	if err != nil {
		s.Fatal(err)
	}
	return text
}

func appendTo(file, more string) error {
	text, err := os.ReadFile(file)
	return errors.Join(err, os.WriteFile(file, append(text, more...), 0o600))
}

func replace(file, old, by string) error {
	text, err := os.ReadFile(file)
	changed := strings.Replace(string(text), old, by, 1)
	if changed == string(text) {
		return errors.New("nothing to replace")
	}
	return errors.Join(err, os.WriteFile(file, []byte(changed), 0o600))
}

func TestR8ARecordThatCannotBeReadCostsOnlyItself(t *testing.T) {
	for name, spoil := range unreadable {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			s.write(aCase("bad"), aCase("good"), failed("other", 3))
			if err := spoil(s, s.record("bad")); err != nil {
				t.Fatal(err)
			}
			for range 2 { // to read does not change it
				got, damaged := s.loaded()
				if damaged != 1 || len(got) != 2 || got["good"].ID != "good" || got["other"].Attempts != 3 {
					t.Fatalf("%d damaged, cases %v", damaged, got)
				}
			}
			before, err := os.Lstat(s.record("bad"))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.SetAside(); err != nil {
				t.Fatal(err)
			}
			if _, damaged := s.loaded(); damaged != 0 {
				t.Errorf("%d are damaged still", damaged)
			}
			s.holds("good", "other")
			after, err := os.Lstat(s.record("bad") + ".damaged")
			if err != nil || !os.SameFile(before, after) {
				t.Errorf("it is not there for people to look at: %v", err)
			}
			s.write(aCase("bad")) // and its name is free for a good one
			s.holds("bad", "good", "other")
		})
	}
}

// A second damaged record of a sandbox takes the place of the first, which has been told.
func TestARecordIsSetAsideAgain(t *testing.T) {
	s := newState(t)
	for _, text := range []string{"first", "second"} {
		if err := os.WriteFile(s.record("a"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.SetAside(); err != nil {
			t.Fatal(err)
		}
		if got := s.files()["cases/container-a.json.damaged"]; got != text {
			t.Errorf("set aside: %q, want %q", got, text)
		}
	}
	s.holds()
}

// What a crash leaves of a write is a file of another name, whatever the moment.
func TestWhatIsLeftOfAnInterruptedWriteIsNoRecord(t *testing.T) {
	s := newState(t)
	s.write(aCase("a"))
	text := s.text("a")
	for i := range 3 {
		left := filepath.Join(s.dir, "cases", fmt.Sprintf(".container-a.json%d", 1000+i))
		if err := os.WriteFile(left, text[:i*len(text)/2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mark := filepath.Join(s.dir, "dropped", ".container-a.json1000")
	if err := os.WriteFile(mark, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, damaged := s.loaded()
	if len(got) != 1 || damaged > 0 {
		t.Errorf("%d damaged, cases %v", damaged, got)
	}
	if ids, err := s.Dropped(); err != nil || len(ids) > 0 {
		t.Errorf("dropped: %v, %v", ids, err)
	}
	if err := s.SetAside(); err != nil {
		t.Fatal(err)
	}
	s.holds("a")
}

func TestWhatCannotBeAFileNameIsRefused(t *testing.T) {
	s := newState(t)
	s.write(aCase("a"))
	before := s.files()
	for _, bad := range []watch.ID{
		{Kind: watch.Container, Name: ""},
		{Kind: watch.Container, Name: "."},
		{Kind: watch.Container, Name: ".."},
		{Kind: watch.Container, Name: "../cases/container-a"},
		{Kind: watch.Container, Name: "x/y"},
		{Kind: watch.Container, Name: "/etc/passwd"},
		{Kind: watch.Container, Name: "x\x00"},
		{Kind: watch.Container, Name: "x\n"},
		{Kind: watch.Container, Name: "-x"},
		{Kind: watch.Container, Name: ".x"},
		{Kind: watch.Container, Name: "é"},
		{Kind: watch.Container, Name: strings.Repeat("x", 260)},
		{Kind: "", Name: "a"},
		{Kind: "..", Name: "a"},
		{Kind: "../dropped/container", Name: "a"},
		{Kind: "con/tainer", Name: "a"},
		{Kind: "container-a", Name: "b"}, // would be the file of container, a-b
		{Kind: watch.Kind(strings.Repeat("x", 129)), Name: "a"},
	} {
		c := aCase(bad.Name)
		c.Kind = bad.Kind
		_, err := s.IsDropped(bad)
		for what, err := range map[string]error{
			"Write": s.Write(c), "Close": s.Close(bad), "Drop": s.Drop(bad), "PickUp": s.PickUp(bad), "IsDropped": err,
		} {
			if err == nil {
				t.Errorf("%s takes %q", what, bad)
			}
		}
	}
	if diff := cmp.Diff(before, s.files()); diff != "" {
		t.Errorf("files (-before +after)\n%s", diff)
	}
	long := aCase(strings.Repeat("f", 128))
	s.write(long, aCase("A.b_c-1"))
	s.holds("A.b_c-1", "a", long.ID)
}

// An engine may say as much as it likes about a failure.
func TestR8NoRecordIsWrittenThatCannotBeReadAgain(t *testing.T) {
	for name, part := range map[string]string{
		"long":             strings.Repeat("busy ", 64<<10),
		"long and escaped": strings.Repeat("\x01", 64<<10),
		"long and wide":    strings.Repeat("€", 64<<10),
		"not UTF-8":        "\xff\xfe",
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			c := failed("a", 3)
			c.Name, c.Image, c.Error = part, part, part
			s.write(c)
			got, damaged := s.loaded()
			if damaged > 0 || got["a"].Attempts != 3 {
				t.Fatalf("%d damaged, cases %v", damaged, got)
			}
			if n := len(got["a"].Error); n < min(len(part), 1000) {
				t.Errorf("of an error of %d bytes %d are kept", len(part), n)
			}
		})
	}
}

func TestDroppedSandboxesAreMarkedUntilTheyArePickedUp(t *testing.T) {
	s := newState(t)
	s.write(aCase("a"), aCase("b"))
	dropped := func(want ...watch.ID) {
		t.Helper()
		got, err := s.Dropped()
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, watch.ID.Compare)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("dropped (-want +got)\n%s", diff)
		}
		for _, some := range []watch.ID{id("a"), id("a-1"), id("b"), {Kind: "vm", Name: "a"}} {
			is, err := s.IsDropped(some)
			if err != nil || is != slices.Contains(want, some) {
				t.Fatalf("%s is dropped: %v, %v", some, is, err)
			}
		}
	}
	dropped()
	for range 2 {
		if err := s.Drop(id("a")); err != nil {
			t.Fatal(err)
		}
		dropped(id("a"))
		s.holds("b")
	}
	for _, other := range []watch.ID{id("a-1"), {Kind: "vm", Name: "a"}} { // whether it has a record or not
		if err := s.Drop(other); err != nil {
			t.Fatal(err)
		}
	}
	dropped(id("a"), id("a-1"), watch.ID{Kind: "vm", Name: "a"})
	for range 2 {
		if err := s.PickUp(id("a")); err != nil {
			t.Fatal(err)
		}
		dropped(id("a-1"), watch.ID{Kind: "vm", Name: "a"})
	}
	s.write(aCase("a"))
	s.holds("a", "b")
}

// Strange names among the marks are nobody's marks.
func TestOnlyMarksAreMarks(t *testing.T) {
	s := newState(t)
	for _, name := range []string{"x", "x.json", "-x.json", "container-.json", "container-a.json.damaged", "..json", "container--a.json", "con tainer-a.json"} {
		if err := os.WriteFile(filepath.Join(s.dir, "dropped", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := s.Dropped(); err != nil || len(ids) > 0 {
		t.Errorf("dropped: %q, %v", ids, err)
	}
}

// TestADocketIsAMap does many things in random order, and compares with what a map would hold.
func TestADocketIsAMap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newState(t)
	names := []string{"a", "b", "a-b", "b.json", strings.Repeat("0123456789abcdef", 4)}
	kinds := []watch.Kind{watch.Container, "vm"}
	cases, dropped, damaged := map[watch.ID]reap.Case{}, map[watch.ID]bool{}, map[watch.ID]bool{}
	ruin := slices.Sorted(func(yield func(string) bool) {
		for name := range unreadable {
			if !yield(name) {
				return
			}
		}
	})
	s.write(aCase("good")) // to damage others with
	for n := range 600 {
		some := watch.ID{Kind: kinds[random.IntN(len(kinds))], Name: names[random.IntN(len(names))]}
		var err error
		switch op := random.IntN(10); op {
		case 0, 1, 2, 3:
			c := failed(some.Name, random.IntN(12))
			c.Kind, c.Error = some.Kind, strings.Repeat("x", random.IntN(100))
			c.Last = at(time.Duration(random.Int64N(int64(time.Hour)))).In(time.FixedZone("", 3600*random.IntN(12)))
			if info, statErr := os.Lstat(s.fileOf(some)); statErr == nil && info.IsDir() {
				continue // nothing can take its place before it is set aside
			}
			err = s.Write(c)
			cases[some], damaged[some] = c, false
		case 4, 5:
			if damaged[some] {
				continue
			}
			err = s.Close(some)
			delete(cases, some)
		case 6:
			if damaged[some] {
				continue
			}
			err = s.Drop(some)
			delete(cases, some)
			dropped[some] = true
		case 7:
			err = s.PickUp(some)
			delete(dropped, some)
		case 8:
			how := ruin[random.IntN(len(ruin))]
			if _, recorded := cases[some]; recorded && !strings.HasPrefix(how, "of ") {
				err = unreadable[how](s, s.fileOf(some))
				delete(cases, some)
				damaged[some] = true
			}
		case 9:
			err = s.SetAside()
			for some := range damaged {
				err = errors.Join(err, os.RemoveAll(s.fileOf(some)+".damaged"))
			}
			damaged = map[watch.ID]bool{}
		}
		if err != nil {
			t.Fatalf("step %d, %s: %v", n, some, err)
		}
		compare(s, n, cases, dropped)
	}
}

func (s state) fileOf(id watch.ID) string {
	return filepath.Join(s.dir, "cases", string(id.Kind)+"-"+id.Name+".json")
}

func compare(s state, n int, cases map[watch.ID]reap.Case, dropped map[watch.ID]bool) {
	s.Helper()
	loaded, _, err := s.Load()
	if err != nil {
		s.Fatal(err)
	}
	got := map[watch.ID]reap.Case{}
	for _, c := range loaded {
		if c.ID != "good" {
			got[c.Sandbox()] = c
		}
	}
	if diff := cmp.Diff(cases, got); diff != "" {
		s.Fatalf("step %d: cases (-want +got)\n%s", n, diff)
	}
	marks, err := s.Dropped()
	if err != nil {
		s.Fatal(err)
	}
	if len(marks) != len(dropped) {
		s.Fatalf("step %d: dropped are %v, want %v", n, marks, dropped)
	}
	for _, some := range marks {
		if !dropped[some] {
			s.Fatalf("step %d: dropped are %v, want %v", n, marks, dropped)
		}
	}
}

// writes names the docket to hammer on, to a copy of this program.
const writes = "WATCHER_TEST_DOCKET"

// hammer is what two processes do to one docket: none ever sees a record that is not whole.
func hammer(dir string) error {
	d := reap.NewDocket(dir)
	for i := range 150 {
		c := failed(fmt.Sprintf("x%d", i%5), i)
		c.Error = strings.Repeat("x", i*10)
		var errs []error
		switch i % 7 {
		case 3:
			errs = append(errs, d.Close(c.Sandbox()))
		case 5:
			errs = append(errs, d.Drop(c.Sandbox()))
		case 6:
			errs = append(errs, d.PickUp(c.Sandbox()))
		default:
			errs = append(errs, d.Write(c))
		}
		cases, damaged, err := d.Load()
		for _, c := range cases {
			if len(c.Error) != c.Attempts*10 {
				errs = append(errs, fmt.Errorf("two records are mixed: %d failures and an error of %d bytes", c.Attempts, len(c.Error)))
			}
		}
		_, droppedErr := d.Dropped()
		if err := errors.Join(append(append(errs, damaged...), err, droppedErr, d.SetAside())...); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
	}
	return nil
}

func TestTwoProcessesShareADocket(t *testing.T) {
	if dir := os.Getenv(writes); dir != "" {
		if err := hammer(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	s := newState(t)
	var working sync.WaitGroup
	for range 2 {
		working.Go(func() {
			other := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
			other.Env = append(os.Environ(), writes+"="+s.dir)
			if out, err := other.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	for range 2 { // and goroutines of one
		working.Go(func() {
			if err := hammer(s.dir); err != nil {
				t.Error(err)
			}
		})
	}
	working.Wait()
	for file := range s.files() {
		if strings.Contains(filepath.Base(file), ".json") && !strings.HasSuffix(file, ".json") {
			t.Errorf("left behind: %s", file)
		}
	}
}
