package statedir_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"watcher/platform/statedir"
)

func readNotes(t *testing.T, n *statedir.Notes) (map[string]int, error) {
	t.Helper()
	found := map[string]int{}
	err := n.Each(func(key string, data []byte) error {
		var number int
		if err := json.Unmarshal(data, &number); err != nil {
			return err
		}
		found[key] = number
		return nil
	})
	return found, err
}

func TestNotesAreAMap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	n := statedir.NewNotes(dir)
	if found, err := readNotes(t, n); err != nil || len(found) != 0 {
		t.Fatalf("before the first one: %v, %v", found, err)
	}
	for _, err := range []error{n.Put("a", 1), n.Put("b", 2), n.Put("a", 3), n.Delete("b"), n.Delete("never")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	found, err := readNotes(t, statedir.NewNotes(dir)) // as after a restart
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"a": 3}, found); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestANoteThatCannotBeReadCostsOnlyItself(t *testing.T) {
	dir := t.TempDir()
	n := statedir.NewNotes(dir)
	if err := n.Put("good", 1); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for file, mk := range map[string]func(string) error{
		"half.json":   func(f string) error { return os.WriteFile(f, []byte("{"), 0o600) },
		"large.json":  func(f string) error { return os.WriteFile(f, make([]byte, 1<<20), 0o600) },
		"link.json":   func(f string) error { return os.Symlink(secret, f) },
		"folder.json": func(f string) error { return os.Mkdir(f, 0o700) },
		"other.txt":   func(f string) error { return os.WriteFile(f, []byte("x"), 0o600) },
	} {
		if err := mk(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	found, err := readNotes(t, n)
	if diff := cmp.Diff(map[string]int{"good": 1}, found); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, name := range []string{"half", "large", "link", "folder"} {
		if err == nil || !strings.Contains(err.Error(), "note of "+name) {
			t.Errorf("%s is not told: %v", name, err)
		}
	}
}

func TestANoteNeverLeavesItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	n := statedir.NewNotes(dir)
	for _, key := range []string{"", ".", "..", "../x", "a/b", "/etc/x", ".hidden"} {
		if n.Put(key, 1) == nil || n.Delete(key) == nil {
			t.Errorf("%q is taken", key)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir) + "/x.json"); err == nil {
		t.Error("written outside")
	}
}
