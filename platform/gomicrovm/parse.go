package gomicrovm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"watcher/watch"
)

// What a file may hold at most. Those that go-microvm and bbox write have some hundred bytes.
const (
	stateMost    = 64 << 10
	sentinelMost = 4 << 10
	argvMost     = 256 << 10 // an argument has at most 128 KiB (execve(2))
)

// A state is what go-microvm saves of a microVM.
type state struct {
	Active  bool
	Image   string
	PID     int       // of the runner; 0: not known
	Created time.Time // zero: not known
}

// parseState reads a state file. Fields that we do not know are for others: go-microvm adds to its version 1. A field of a name
// that appears twice is nothing that it writes, and readers disagree about which one counts.
func parseState(data []byte) (state, error) {
	fault := func(err error) (state, error) { return state{}, fmt.Errorf("state: %w", err) }
	if !utf8.Valid(data) {
		return fault(errors.New("not UTF-8"))
	}
	fields, err := object(data)
	if err != nil {
		return fault(err)
	}
	var s state
	var version int
	for _, field := range []struct {
		name     string
		into     any
		required bool
	}{
		{"version", &version, true},
		{"active", &s.Active, true},
		{"image", &s.Image, false},
		{"pid", &s.PID, false},
		{"created_at", &s.Created, false},
	} {
		value, given := fields[field.name]
		switch {
		case !given && !field.required:
			continue
		case !given, string(value) == "null":
			return fault(fmt.Errorf("no %s", field.name))
		}
		if err := json.Unmarshal(value, field.into); err != nil {
			return fault(fmt.Errorf("%s: %w", field.name, err))
		}
	}
	if version != 1 {
		return fault(fmt.Errorf("version %d, want 1", version))
	}
	if _, given := fields["pid"]; given && s.PID != 0 {
		if err := checkPID(s.PID); err != nil {
			return fault(err)
		}
	}
	return s, nil
}

// object reads a JSON object and nothing behind it. As in package encoding/json, names differ by more than case.
func object(data []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.Join(errors.New("not a JSON object"), err)
	}
	fields := map[string]json.RawMessage{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		name := strings.ToLower(token.(string))
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("%q twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		fields[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something behind the object")
	}
	return fields, nil
}

// checkPID refuses numbers that no program gets. PID 1 is the init of its namespace: as a record it was written in a container.
func checkPID(pid int) error {
	if pid < 2 || pid > watch.MaxPID {
		return fmt.Errorf("PID %d: want 2 to %d", pid, watch.MaxPID)
	}
	return nil
}

// A sentinel is what bbox writes of itself.
type sentinel struct {
	PID  int
	File string // its executable; "": an older bbox wrote it, which did not say
}

// parseSentinel reads a sentinel: a PID, and in newer ones a second line with a path. bbox writes no newline behind it.
func parseSentinel(data []byte) (sentinel, error) {
	first, second, two := strings.Cut(strings.TrimSuffix(string(data), "\n"), "\n")
	digits := strings.Trim(first, "0123456789") == ""
	pid, err := strconv.Atoi(first)
	if err != nil || !digits || first[0] == '0' {
		return sentinel{}, errors.New("sentinel: the first line is no PID")
	}
	if err := checkPID(pid); err != nil {
		return sentinel{}, fmt.Errorf("sentinel: %w", err)
	}
	if two && (!path.IsAbs(second) || strings.ContainsAny(second, "\x00\n")) {
		return sentinel{}, errors.New("sentinel: the second line is no absolute path")
	}
	return sentinel{pid, second}, nil
}

// parseRunner reads the arguments of a runner and returns the files of its microVM among them: what it writes and what it
// connects to. The root file system may be one that several have in common, and the folders that it shows to the guest are the
// user's.
func parseRunner(cmdline []byte) (files []string, err error) {
	argv := strings.Split(string(bytes.TrimSuffix(cmdline, []byte{0})), "\x00")
	if len(argv) != 2 {
		return nil, fmt.Errorf("runner: %d arguments, want a program and what it is to run", len(argv))
	}
	var config struct {
		Root    string `json:"root_path"`
		Socket  string `json:"net_sock_path"`
		Console string `json:"console_log_path"`
	}
	if err := json.Unmarshal([]byte(argv[1]), &config); err != nil {
		return nil, fmt.Errorf("runner: %w", err)
	}
	for _, file := range []string{config.Console, config.Socket, config.Root} {
		if path.IsAbs(file) {
			files = append(files, path.Clean(file))
		}
	}
	return files, nil
}

// within reports whether a path is below a folder.
func within(file, folder string) bool {
	return strings.HasPrefix(file, strings.TrimSuffix(folder, "/")+"/")
}

const deletedSuffix = " (deleted)" // behind an executable that was removed or replaced (proc_pid_exe(5))

// sameFile reports whether an executable, as the kernel tells it, is the one at a path.
func sameFile(exe, file string) bool {
	return path.Clean(strings.TrimSuffix(exe, deletedSuffix)) == path.Clean(file)
}

// numbers reads the PIDs of a process in all namespaces that it is in, ours first, and its user, from /proc/PID/status
// (proc_pid_status(5)).
func numbers(status []byte) (pids []int, uid uint32, err error) {
	hasUser := false
	for line := range strings.Lines(string(status)) {
		key, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		switch key {
		case "NSpid":
			for _, field := range fields {
				pid, err := strconv.Atoi(field)
				if err != nil {
					return nil, 0, fmt.Errorf("status: NSpid: %w", err)
				}
				pids = append(pids, pid)
			}
		case "Uid":
			if len(fields) != 4 {
				return nil, 0, errors.New("status: Uid has not four fields")
			}
			user, err := strconv.ParseUint(fields[0], 10, 32)
			if err != nil {
				return nil, 0, fmt.Errorf("status: Uid: %w", err)
			}
			uid, hasUser = uint32(user), true
		}
	}
	if len(pids) == 0 || !hasUser {
		return nil, 0, errors.New("status: no NSpid or Uid")
	}
	return pids, uid, nil
}

// isThread reports whether a number is that of a thread and not of a process, from /proc/PID/status.
func isThread(status []byte, pid int) bool {
	for line := range strings.Lines(string(status)) {
		if group, ok := strings.CutPrefix(line, "Tgid:"); ok {
			leader, err := strconv.Atoi(strings.TrimSpace(group))
			return err == nil && leader != pid
		}
	}
	return false
}
