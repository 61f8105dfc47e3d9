package journal

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"watcher/watch"
)

const catalogFile = "../../systemd/watcher.catalog"

// fieldsInCatalog are the fields that a catalog entry may refer to: those a record can have.
func fieldsInCatalog() []string {
	names := []string{"WATCHER_COUNT", "WATCHER_SINCE"} // of the record about dropped ones
	for _, key := range []string{
		watch.KeyEvent, watch.KeyKind, watch.KeyID, watch.KeyName, watch.KeyImage, watch.KeyRule, watch.KeyOwner,
		watch.KeyReason, watch.KeyAttempt, watch.KeyError, watch.KeySource, watch.KeySandboxes, watch.KeyThreshold,
		watch.KeyStopUS, watch.KeyGoneUS,
	} {
		names = append(names, fieldName(fieldPrefix+key))
	}
	return names
}

func TestCatalogMatchesEvents(t *testing.T) {
	text, err := os.ReadFile(catalogFile)
	if err != nil {
		t.Fatal(err)
	}
	inFile := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^-- (.*)$`).FindAllStringSubmatch(string(text), -1) {
		if inFile[m[1]] {
			t.Errorf("the catalog has two entries for %s", m[1])
		}
		inFile[m[1]] = true
	}
	byID := make(map[string]string)
	for event, id := range messageIDs {
		if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`).MatchString(id) {
			t.Errorf("the id of %s is not a random 128-bit id: %s", event, id)
		}
		if other, ok := byID[id]; ok {
			t.Errorf("%s and %s have the same id", event, other)
		}
		byID[id] = event
		if !inFile[id] {
			t.Errorf("the catalog has no entry for %s (%s)", event, id)
		}
	}
	for id := range inFile {
		if byID[id] == "" {
			t.Errorf("the catalog has an entry for %s, which is no event's", id)
		}
	}
	known := fieldsInCatalog()
	for _, m := range regexp.MustCompile(`@([^@\s]*)@`).FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(known, m[1]) {
			t.Errorf("the catalog refers to %s, which no record has", m[1])
		}
	}
}

// The real compiler of catalogs takes ours, with every entry.
func TestCatalogCompiles(t *testing.T) {
	journalctl := needSystemd(t, "journalctl")
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/catalog")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(catalogFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "watcher.catalog"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	// It says what it does not like on standard error and succeeds all the same.
	if out, err := exec.Command(journalctl, "--root="+root, "--update-catalog").CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("journalctl --update-catalog: %v\n%s", err, out)
	}
	list, err := exec.Command(journalctl, "--root="+root, "--list-catalog").CombinedOutput()
	if err != nil {
		t.Fatalf("journalctl --list-catalog: %v\n%s", err, list)
	}
	for event, id := range messageIDs {
		if !strings.Contains(string(list), id+" watcher: ") {
			t.Errorf("the compiled catalog lacks %s (%s):\n%s", event, id, list)
		}
	}
}

// needSystemd finds a program of Debian's systemd package.
func needSystemd(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/lib/systemd", name)
		if _, err = os.Stat(path); err != nil {
			t.Fatalf("%s is missing: install the package systemd (%v)", name, err)
		}
	}
	return path
}
