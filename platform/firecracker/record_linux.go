package firecracker

// Proposal for what calls recordLife: Exited without an owner says that no record speaks of the base folder. That is an
// inference, not a death that somebody recorded: a runner publishes its record only when it has begun, and takes it away
// when it ends well. Brake and creation grace should apply to it (no-possible-owner).

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/watch"
)

// A record is what an owner says of itself in a file of its own, as far as it matters here.
type record struct {
	Boot  string // boot_id
	PID   int    // pid
	Start uint64 // starttime, field 22 of its stat
	EUID  uint32 // euid
	Base  string // base_dir, as its configuration has it: links may be on the way
}

// maxRecord is the size that runners themselves allow.
const maxRecord = 64 << 10

var (
	errRecord  = errors.New("not a record of an owner")
	bootFormat = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// parseRecord reads a record. Fields that it does not know are for others, but what it knows must be there, once and as it
// should be: a record that was half written, or is another program's, says nothing about anybody's death.
func parseRecord(b []byte) (r record, err error) {
	fields, err := object(b)
	if err != nil {
		return record{}, err
	}
	var pid uint64
	for name, into := range map[string]any{"boot_id": &r.Boot, "pid": &pid, "starttime": &r.Start, "euid": &r.EUID, "base_dir": &r.Base} {
		raw, ok := fields[name]
		if !ok || string(raw) == "null" {
			return record{}, fmt.Errorf("%w: no %s", errRecord, name)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return record{}, fmt.Errorf("%w: %s: %w", errRecord, name, err)
		}
	}
	const maxPID = 1 << 22 // PID_MAX_LIMIT of include/linux/threads.h
	switch {
	case !bootFormat.MatchString(r.Boot):
		return record{}, fmt.Errorf("%w: boot_id %q", errRecord, r.Boot)
	case pid < 1 || pid > maxPID:
		return record{}, fmt.Errorf("%w: pid %d", errRecord, pid)
	case r.Start == 0:
		return record{}, fmt.Errorf("%w: starttime 0", errRecord)
	case r.EUID == ^uint32(0):
		return record{}, fmt.Errorf("%w: euid %d", errRecord, r.EUID)
	case !filepath.IsAbs(r.Base), strings.ContainsRune(r.Base, 0):
		return record{}, fmt.Errorf("%w: base_dir %q", errRecord, r.Base)
	}
	r.PID = int(pid)
	return r, nil
}

// object reads a JSON object, alone and with each name once. Names are compared as they are: the decoder of structs would
// take PID for pid.
func object(b []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.Join(errRecord, err)
	}
	fields := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errRecord, err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("%w: %w", errRecord, err)
		}
		text, ok := name.(string)
		if _, twice := fields[text]; twice || !ok {
			return nil, fmt.Errorf("%w: %q twice", errRecord, text)
		}
		fields[text] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", errRecord, err)
	}
	if len(bytes.TrimSpace(b[d.InputOffset():])) > 0 {
		return nil, fmt.Errorf("%w: more than one", errRecord)
	}
	return fields, nil
}

// recordLife says whether an owner lives that has recorded itself, and the base folder, in a file that a glob names. Alive
// and Exited come with the process, Exited without one if no record is about the base folder. Whatever keeps it from reading
// every record makes it unknown, unless one of the others is of an owner that lives.
//
// A PID in a record is one of our namespace, or means nothing to us. What is found under it proves life by its start time;
// that nothing is found proves death only in the first PID namespace, where every process can be seen, and to clocks that
// are the host's. A record cannot say that its owner is in another namespace: where that may be, a lock is the evidence.
func recordLife(glob, base string, host *process.Host) (life watch.Life, owner watch.Process, detail string) {
	files, err := recordFiles(glob)
	if err != nil {
		return watch.Unknown, watch.Process{}, err.Error()
	}
	life, detail = watch.Exited, "no record is about "+base
	for _, file := range files {
		r, err := readRecord(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // whoever ends well takes its record away
		}
		if err != nil {
			life, owner, detail = worse(life, owner, detail, watch.Unknown, watch.Process{}, err.Error())
			continue
		}
		ours, err := sameFolder(r.Base, base)
		if err == nil && !ours {
			continue
		}
		is, why := r.life(host)
		if err != nil && is == watch.Alive {
			is, why = watch.Unknown, fmt.Sprintf("%s is about a folder that cannot be compared: %v", file, err)
		}
		life, owner, detail = worse(life, owner, detail, is, r.process(), why)
	}
	return life, owner, detail
}

// worse returns the one of two findings that keeps more: a life before the unknown, and that before a death. Of two deaths
// it is that of the process that was born last.
func worse(life watch.Life, owner watch.Process, detail string, is watch.Life, who watch.Process, why string) (watch.Life, watch.Process, string) {
	weight := map[watch.Life]int{watch.Alive: 2, watch.Unknown: 1, watch.Exited: 0}
	if weight[is] > weight[life] || is == watch.Exited && life == watch.Exited && who.Start > owner.Start {
		return is, who, why
	}
	return life, owner, detail
}

func (r record) process() watch.Process {
	return watch.Process{PID: r.PID, Start: r.Start, Boot: r.Boot}
}

// life says whether the process that a record is about lives. It is held while it is asked, so that every answer is about
// one process.
func (r record) life(host *process.Host) (life watch.Life, why string) {
	if r.Boot != host.Boot() {
		return watch.Exited, "its owner lived before the latest boot"
	}
	dead := func(why string) (watch.Life, string) {
		initial, err := host.InitialNamespace()
		shifted, clockErr := host.ShiftedClock()
		switch err := errors.Join(err, clockErr); {
		case err != nil:
			return watch.Unknown, err.Error()
		case !initial:
			return watch.Unknown, fmt.Sprintf("process %d is not in our PID namespace", r.PID)
		case shifted:
			return watch.Unknown, "our clocks are not the host's, and start times say nothing"
		}
		return watch.Exited, why
	}
	handle, err := host.Open(r.PID)
	switch {
	case errors.Is(err, process.ErrGone):
		return dead(fmt.Sprintf("process %d is gone", r.PID))
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		// The number is a thread's, so the process that had it is gone (pidfd_open(2)).
		return dead(fmt.Sprintf("%d is no process any more", r.PID))
	case err != nil:
		return watch.Unknown, err.Error()
	}
	defer handle.Close()
	if handle.Process().Start != r.Start {
		return dead(fmt.Sprintf("process %d is another one now", r.PID))
	}
	status, err := handle.ReadFile("status")
	switch {
	case errors.Is(err, process.ErrGone):
		return dead(fmt.Sprintf("process %d is gone", r.PID))
	case err != nil:
		return watch.Unknown, err.Error()
	}
	euid, err := effectiveUser(status)
	if err != nil || euid != r.EUID {
		// It is the process, by PID and start time. If it is another user's now it is hard to say what it still owns.
		return watch.Unknown, fmt.Sprintf("process %d is not user %d's, as its record says", r.PID, r.EUID)
	}
	return watch.Alive, ""
}

// effectiveUser reads the second number of the line Uid in a process's status (proc_pid_status(5)).
func effectiveUser(status []byte) (uint32, error) {
	for line := range bytes.Lines(status) {
		if fields := bytes.Fields(line); len(fields) == 5 && string(fields[0]) == "Uid:" {
			id, err := strconv.ParseUint(string(fields[2]), 10, 32)
			return uint32(id), err
		}
	}
	return 0, errors.New("read the status of a process: no field Uid")
}

// readRecord reads a record. It must belong to root or to who it says its owner runs as: nobody else can speak for that.
func readRecord(file string) (record, error) {
	info, content, err := readSmall(file, maxRecord)
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(content)
	if err != nil {
		return record{}, fmt.Errorf("%s is %w", file, err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 && uid != r.EUID {
		return record{}, fmt.Errorf("%s is about a process of user %d and belongs to user %d", file, r.EUID, uid)
	}
	return r, nil
}

// sameFolder reports whether a folder in a record is a base folder, which has its path from the kernel. Links are followed,
// for this question alone. A folder that is not there is none.
func sameFolder(said, base string) (bool, error) {
	if said = filepath.Clean(said); said == base {
		return true, nil
	}
	real, err := filepath.EvalSymlinks(said)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return real == base, err
}

// recordFiles returns the files that a glob names now. As in all rules a * stays within one element and does not begin a
// name with a dot, which is what a record bears until it is complete. A folder that cannot be read is not an empty one, and
// the one before the first * must be there: a slip of the pen in it would otherwise read as nobody's record.
func recordFiles(glob string) ([]string, error) {
	if !filepath.IsAbs(glob) {
		return nil, fmt.Errorf("records %s: want an absolute path", glob)
	}
	found, sure := []string{"/"}, true
	for element := range strings.SplitSeq(strings.Trim(glob, "/"), "/") {
		if !strings.ContainsAny(element, "*?") {
			for i := range found {
				found[i] = filepath.Join(found[i], element)
			}
			continue
		}
		pattern := watch.NewPattern(element)
		var next []string
		for _, dir := range found {
			entries, err := os.ReadDir(dir)
			switch {
			case !sure && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)):
				continue
			case err != nil:
				return nil, fmt.Errorf("records: %w", err)
			}
			for _, entry := range entries {
				if name := entry.Name(); pattern.Matches(name) && (name[0] != '.' || element[0] == '.') {
					next = append(next, filepath.Join(dir, name))
				}
			}
		}
		found, sure = next, false
	}
	return found, nil
}
