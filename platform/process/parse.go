package process

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A stat is what /proc/PID/stat says of a process, as far as it matters here (proc_pid_stat(5)).
type stat struct {
	state   byte
	parent  int // 0: it has none, or that is in a PID namespace above ours
	group   int // of processes, and session: 0 if that is in a namespace above ours, -1 if it was reaped while we read
	session int
	flags   uint64
	threads int    // those that have not been reaped, the leader among them; 0: it was reaped while we read
	start   uint64 // in ticks since boot
	envEnd  uint64 // where its environment ends; 0 in the midst of an exec, or if that is not for us to see
}

// Flags of a task, in include/linux/sched.h, the same since Linux 2.6.
const (
	flagForked = 0x00000040 // PF_FORKNOEXEC
	flagKernel = 0x00200000 // PF_KTHREAD
)

// kernel reports whether it is a thread of the kernel's own.
func (s stat) kernel() bool { return s.flags&flagKernel != 0 }

// forked reports whether the process has not execed since it was forked: it runs what its parent ran.
func (s stat) forked() bool { return s.flags&flagForked != 0 }

// dead reports whether all of the process is a zombie. If only its leader is, the workers count as threads. A leader that was
// reaped while we read proves nothing: when a worker execs, it is given the leader's place, and the process lives.
func (s stat) dead() bool { return (s.state == 'Z' || s.state == 'X') && s.threads == 1 }

var errStat = errors.New("not the stat of a process")

// parseStat reads the content of /proc/PID/stat.
func parseStat(b []byte) (stat, error) {
	// The name in parentheses may itself hold blanks and parentheses.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const first, last = 3, 51 // of the fields behind it; the last one came with Linux 3.5
	if len(fields) <= last-first || len(fields[0]) != 1 {
		return stat{}, errStat
	}
	s := stat{state: fields[0][0]}
	var errs [7]error
	var threads uint64
	for i, field := range []struct {
		number int
		value  *uint64
	}{{9, &s.flags}, {20, &threads}, {22, &s.start}, {51, &s.envEnd}} {
		*field.value, errs[i] = strconv.ParseUint(string(fields[field.number-first]), 10, 64)
	}
	for i, number := range []*int{&s.parent, &s.group, &s.session} {
		*number, errs[4+i] = strconv.Atoi(string(fields[i+1]))
	}
	if s.threads = int(threads); s.threads < 0 || errors.Join(errs[:]...) != nil {
		return stat{}, errStat
	}
	return s, nil
}

// parseArgv splits the content of /proc/PID/cmdline into arguments. Each ends with a NUL byte, but for the last one of a
// process that has written over its arguments, as for a title (proc_pid_cmdline(5)). An argument may be empty.
func parseArgv(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// A Cgroup is the group of a process in one hierarchy (cgroups(7)).
type Cgroup struct {
	Hierarchy   int    // 0: version 2
	Controllers string // those of version 1, or name=NAME
	Path        string // from the root of the hierarchy, as our cgroup namespace shows it; " (deleted)" may follow it
}

var errCgroups = errors.New("not the control groups of a process")

// parseCgroups reads the content of /proc/PID/cgroup. The kernel lets no name of a group hold a newline.
func parseCgroups(b []byte) (all []Cgroup, err error) {
	for line := range strings.Lines(string(b)) {
		line, ended := strings.CutSuffix(line, "\n")
		fields := strings.SplitN(line, ":", 3)
		if !ended || len(fields) != 3 || !strings.HasPrefix(fields[2], "/") {
			return nil, errCgroups
		}
		id, err := strconv.Atoi(fields[0])
		if err != nil || id < 0 {
			return nil, errCgroups
		}
		all = append(all, Cgroup{id, fields[1], fields[2]})
	}
	return all, nil
}

// parseUser reads the real user ID from the status of a process (proc_pid_status(5)).
func parseUser(status []byte) (uint32, error) {
	for line := range strings.Lines(string(status)) {
		ids, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		fields := strings.Fields(ids)
		if len(fields) != 4 {
			break
		}
		user, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("status: Uid: %w", err)
		}
		return uint32(user), nil
	}
	return 0, errors.New("status: no Uid of four fields")
}
