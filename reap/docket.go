package reap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"watcher/watch"
)

// A Case is the durable record of one reap that was begun: all that is needed to finish it when nothing else remembers.
type Case struct {
	Kind    watch.Kind `json:"kind"`
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Image   string     `json:"image,omitempty"`
	Created time.Time  `json:"created"`
	System  string     `json:"system,omitempty"` // where the sandbox is: see [Docket.For]
	Rule    string     `json:"rule"`
	Group   string     `json:"group,omitempty"`
	Reason  Reason     `json:"reason"`
	Owner   string     `json:"owner,omitempty"` // as its label has it
	Steps   []CaseStep `json:"steps"`

	Init   watch.Process `json:"init,omitzero"`    // its first process
	Leaves []watch.Leaf  `json:"leaves,omitempty"` // what it leaves behind, in the words of its adapter

	Begun    time.Time `json:"begun"`
	Attempts int       `json:"attempts"` // removals that failed
	Error    string    `json:"error,omitempty"`
	First    time.Time `json:"first,omitzero"`    // when the first one failed
	Last     time.Time `json:"last,omitzero"`     // when the latest one failed
	Next     time.Time `json:"next,omitzero"`     // when the next one is due
	GaveUp   bool      `json:"gave_up"`           // a dead letter: only tried now and then
	Removed  bool      `json:"removed,omitempty"` // it is gone; the record stays for what belongs to its group
}

// A CaseStep is one step of a reap.
type CaseStep struct {
	Step string `json:"step"`
	Done bool   `json:"done"`
}

// Sandbox names the sandbox of the case.
func (c Case) Sandbox() watch.ID { return watch.ID{Kind: c.Kind, Name: c.ID} }

// A Docket keeps the cases of reaps begun and not finished, a file each, below one folder. A file is written aside,
// synced and renamed, so that a crash leaves the old record or the new one; and a record that cannot be read costs only
// itself. It is safe for concurrent use, also by several processes: each file has one meaning and is replaced whole.
type Docket struct {
	cases   string
	dropped string
	system  string
}

// NewDocket returns the docket in a state directory. Nothing is made until [Docket.Make] or a write.
func NewDocket(stateDir string) *Docket {
	return &Docket{cases: filepath.Join(stateDir, "cases"), dropped: filepath.Join(stateDir, "dropped")}
}

// For returns the part of the docket that belongs to one system, such as an engine: the same ID may be unknown to
// another, and what that one does not know must not close a case here, nor take a mark away.
func (d *Docket) For(system string) *Docket {
	part := *d
	part.system = system
	return &part
}

// systemOf is the system of sandboxes of a kind. What is of this host is so whichever engine that has.
func (d *Docket) systemOf(kind watch.Kind) string {
	if kind.OfHost() {
		return ""
	}
	return d.system
}

// Make makes the docket's folders, and refuses a state directory in which others could forge a record: a record is a
// reason to remove a sandbox. On a full disk what cannot be made is left out, and each write says so.
func (d *Docket) Make() error {
	for _, dir := range []string{d.cases, d.dropped} {
		err := os.MkdirAll(dir, 0o700)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS) {
			continue
		}
		if err != nil {
			return fmt.Errorf("docket: %w", err)
		}
		for _, dir := range []string{filepath.Dir(dir), dir} {
			if err := private(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// private returns an error if others than we may write in a folder.
func private(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("docket: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("docket: %s belongs to user %d and not to us, user %d", dir, st.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("docket: %s has mode %s: others may write in it", dir, info.Mode().Perm())
	}
	return nil
}

const (
	recordSuffix = ".json"
	// damagedSuffix marks a record that could not be read. It stays for people to look at.
	damagedSuffix = ".damaged"
	// maxRecord bounds what is read of a record; more is not ours.
	maxRecord = 64 << 10
	// maxWords bounds each part of a record that others word: a name, an image, an error. JSON may need six bytes for
	// one, and all must stay within maxRecord.
	maxWords = 2 << 10
)

// fileID and fileKind are what an ID must look like to be part of a file's name. Containers' are 64 hex digits, a volume's
// has up to 255 characters of its name and the time of its creation. A kind has no dash, or the names of two sandboxes' records could be the same.
var (
	fileID   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.@:+-]{0,299}$`)
	fileKind = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
)

// maxFileName is NAME_MAX of Linux's file systems.
const maxFileName = 255

func fileName(id watch.ID) (string, error) {
	if !fileID.MatchString(id.Name) || !fileKind.MatchString(string(id.Kind)) {
		return "", fmt.Errorf("docket: %q cannot be the name of a record", id)
	}
	name := string(id.Kind) + "-" + id.Name + recordSuffix
	if len(name) > maxFileName {
		return "", fmt.Errorf("docket: %q is too long for the name of a record", id)
	}
	return name, nil
}

// Write records a case. It returns when the record would survive a crash of the machine.
func (d *Docket) Write(c Case) error { return d.keep(c, write) }

// Jot records a case so that the record survives a crash of ours, and not one of the machine: it is not synced.
func (d *Docket) Jot(c Case) error { return d.keep(c, jot) }

func (d *Docket) keep(c Case, write func(file string, text []byte) error) error {
	name, err := fileName(c.Sandbox())
	if err != nil {
		return err
	}
	c.System = d.systemOf(c.Kind)
	for _, words := range []*string{&c.Name, &c.Image, &c.Error} {
		*words = (*words)[:min(len(*words), maxWords)]
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("docket: %s: %w", c.Sandbox(), err)
	}
	if err := write(filepath.Join(d.cases, name), append(text, '\n')); err != nil {
		return fmt.Errorf("docket: record %s: %w", c.Sandbox(), err)
	}
	return nil
}

// write replaces a file and syncs it, and the folder whose entry was changed.
func write(file string, text []byte) error {
	// The folder may not have been made yet, on a disk that was full.
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	// The temporary file belongs beside the file: in another folder it could be on another file system.
	if err := renameio.WriteFile(file, text, 0o600, renameio.WithTempDir(filepath.Dir(file))); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(file))
}

// jot replaces a file whole and leaves it to the kernel when it reaches the disk.
func jot(file string, text []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)) // as renameio names them
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temp.Name()))
		}
	}()
	_, err = temp.Write(text)
	if err := errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), file)
}

// syncFolder makes the names in a folder survive a crash (fsync(2)).
func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close removes the record of a case that is finished or abandoned. That there is none is success. It returns when the
// record would not come back after a crash of the machine: that of an abandoned case would cost a living owner its
// sandbox.
func (d *Docket) Close(id watch.ID) error { return discard(d.cases, id) }

func discard(dir string, id watch.ID) error {
	name, err := fileName(id)
	if err != nil {
		return err
	}
	switch err := os.Remove(filepath.Join(dir, name)); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("docket: close %s: %w", id, err)
	}
	if err := syncFolder(dir); err != nil {
		return fmt.Errorf("docket: close %s: %w", id, err)
	}
	return nil
}

// Load reads all cases. A record that cannot be read is left out, named in damaged, and does not keep the others from
// being read; err says that the docket itself could not be read. A docket that does not exist is empty.
func (d *Docket) Load() (cases []Case, damaged []error, err error) {
	entries, err := os.ReadDir(d.cases)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("docket: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), recordSuffix) {
			continue // what a crash left of a write, or a damaged record from before
		}
		c, err := readCase(filepath.Join(d.cases, entry.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // closed meanwhile
		case err != nil:
			damaged = append(damaged, err)
		case c.System == d.systemOf(c.Kind):
			cases = append(cases, c)
		}
	}
	return cases, damaged, nil
}

func readCase(file string) (Case, error) {
	// What is there may be anything by now: a link is not followed, and a pipe must not block us.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Case{}, fmt.Errorf("docket: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Case{}, fmt.Errorf("docket: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Case{}, fmt.Errorf("docket: %s is no regular file", file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return Case{}, fmt.Errorf("docket: read %s: %w", file, err)
	}
	c, err := parseCase(text)
	if err != nil {
		return Case{}, fmt.Errorf("docket: %s: %w", file, err)
	}
	if want, err := fileName(c.Sandbox()); err != nil || want != filepath.Base(file) {
		return Case{}, fmt.Errorf("docket: %s is the record of %s", file, c.Sandbox())
	}
	return c, nil
}

func parseCase(text []byte) (Case, error) {
	if len(text) > maxRecord {
		return Case{}, fmt.Errorf("longer than %d bytes", maxRecord)
	}
	var c Case
	if err := json.Unmarshal(text, &c); err != nil {
		return Case{}, err
	}
	if c.Kind == "" || c.ID == "" || c.Reason == "" || c.Begun.IsZero() || c.Attempts < 0 {
		return Case{}, errors.New("lacks its kind, id, reason or begin")
	}
	return c, nil
}

// SetAside moves damaged records out of the way, so that they are told once.
func (d *Docket) SetAside() error {
	entries, err := os.ReadDir(d.cases)
	if err != nil {
		return fmt.Errorf("docket: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		file := filepath.Join(d.cases, entry.Name())
		if !strings.HasSuffix(file, recordSuffix) {
			continue
		}
		if _, err := readCase(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, os.Rename(file, file+damagedSuffix))
		}
	}
	return errors.Join(errs...)
}

// Drop gives a sandbox up for good: its record goes, and it is kept from then on, whatever its owner does.
func (d *Docket) Drop(id watch.ID) error {
	name, err := fileName(id)
	if err != nil {
		return err
	}
	if err := d.Make(); err != nil {
		return err
	}
	// The mark comes first: between the two the sandbox is kept, and not an orphan that nobody knows to have been tried.
	text, err := json.Marshal(mark{System: d.systemOf(id.Kind)})
	if err != nil {
		return fmt.Errorf("docket: drop %s: %w", id, err)
	}
	if err := write(filepath.Join(d.dropped, name), append(text, '\n')); err != nil {
		return fmt.Errorf("docket: drop %s: %w", id, err)
	}
	return d.Close(id)
}

// PickUp undoes a drop. That there was none is success.
func (d *Docket) PickUp(id watch.ID) error { return discard(d.dropped, id) }

// IsDropped reports whether a sandbox was dropped.
func (d *Docket) IsDropped(id watch.ID) (bool, error) {
	name, err := fileName(id)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(d.dropped, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("docket: %w", err)
	}
	var m mark
	if err := json.Unmarshal(text, &m); err != nil {
		// That somebody made a mark is what counts.
		return true, nil
	}
	return m.System == d.systemOf(id.Kind), nil
}

// A mark is what a drop leaves.
type mark struct {
	System string `json:"system,omitempty"`
}

// Dropped lists the sandboxes that were dropped.
func (d *Docket) Dropped() ([]watch.ID, error) {
	entries, err := os.ReadDir(d.dropped)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("docket: %w", err)
	}
	var ids []watch.ID
	for _, entry := range entries {
		kind, name, _ := strings.Cut(strings.TrimSuffix(entry.Name(), recordSuffix), "-")
		id := watch.ID{Kind: watch.Kind(kind), Name: name}
		if name, err := fileName(id); err != nil || name != entry.Name() {
			continue
		}
		ours, err := d.IsDropped(id)
		if err != nil {
			return nil, err
		}
		if ours {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
