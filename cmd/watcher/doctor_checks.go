package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/connector"
	"watcher/platform/journal"
	"watcher/platform/statedir"
	"watcher/reap"
	"watcher/watch"
)

func (d *doctor) checkConfiguration(context.Context) sign {
	if d.fault != nil {
		return fails("correct it; until then a reload changes nothing and a start fails", "%s", strings.Join(strings.Fields(d.fault.Error()), " "))
	}
	if d.config.file == "" {
		return works("no file, the defaults; %s", counted(len(d.config.effective()), "rule"))
	}
	return works("%s; %s", d.config.file, counted(len(d.config.effective()), "rule"))
}

func (d *doctor) checkKernel(context.Context) sign {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return cannotTell("", "uname: %v", err)
	}
	return judgeKernel(unix.ByteSliceToString(name.Release[:]))
}

// judgeKernel says what is known of a kernel by its release.
func judgeKernel(release string) sign {
	v, ok := parseRelease(release)
	switch {
	case !ok:
		return cannotTell("", "Linux %s, of which nothing is known", release)
	case before(v, [3]int{5, 3, 0}):
		return works("Linux %s, without pidfds: deaths are seen at exit events and scans, and the engine does the stopping", release)
	case !before(v, [3]int{6, 6, 13}) && before(v, [3]int{6, 6, 18}), !before(v, [3]int{6, 7, 1}) && before(v, [3]int{6, 7, 6}):
		return works("Linux %s, whose process connector may fall silent: pidfds and scans do without, a newer kernel has it mended", release)
	case before(v, [3]int{6, 6, 0}):
		return works("Linux %s; from 6.6 on the kernel itself filters exit events", release)
	default:
		return works("Linux %s", release)
	}
}

// parseRelease reads the first three numbers of a release such as 6.1.0-13-amd64 or 6.18-rc1.
func parseRelease(release string) (v [3]int, ok bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	for i, part := range parts {
		digits := part
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			digits = part[:end]
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

func before(a, b [3]int) bool { return slices.Compare(a[:], b[:]) < 0 }

// checkProcesses says whether owners can be seen: by the host's numbers, and whoever they belong to.
func (d *doctor) checkProcesses(context.Context) sign {
	const remedy = "run watcher in the host's PID namespace (docker run --pid=host; PrivatePIDs=no)"
	if d.host == nil {
		return fails("mount the proc file system of our own PID namespace there", "%v", d.hostErr)
	}
	initial, err := d.host.InitialNamespace()
	switch {
	case err != nil:
		return cannotTell("", "%v", err)
	case !initial:
		return fails(remedy, "this is a PID namespace of its own, where the numbers of owners mean something else")
	}
	// With hidepid= others' processes are not to be seen (proc(5)); the first one is always somebody else's, or ours as root.
	if _, err := os.ReadFile(filepath.Join(d.proc, "1/stat")); err != nil {
		return d.forbidden("give watcher CAP_SYS_PTRACE, or mount /proc without hidepid=", "%s hides the processes of others: %v", d.proc, err)
	}
	return works("%s shows the processes of the host, boot %s", d.proc, d.host.Boot())
}

func (d *doctor) checkClock(context.Context) sign {
	if d.host == nil {
		return cannotTell("", "%s cannot be read", d.proc)
	}
	switch shifted, err := d.host.ShiftedClock(); {
	case err != nil:
		return cannotTell("", "%v", err)
	case shifted:
		return fails("run watcher in the host's time namespace", "this is a time namespace with other clocks than the host's, where start times read differently")
	}
	return works("start times are the host's; by the wall clock it is %s", moment(time.Now()))
}

func (d *doctor) checkPidfd(context.Context) sign {
	switch {
	case d.host == nil:
		return cannotTell("", "%s cannot be read", d.proc)
	case !d.host.CanHold():
		return fails("a kernel from 5.3 on has them; does a seccomp filter forbid pidfd_open?",
			"processes cannot be held: deaths are seen later, and code is stopped by the engine alone")
	}
	return works("processes can be held, and are known dead at once")
}

func (d *doctor) checkConnector(ctx context.Context) sign {
	l, err := connector.Listen(ctx, connector.Options{Execs: d.any(looksAtProcesses)})
	if err != nil {
		remedy := connector.Hint(err)
		if errors.Is(err, connector.ErrPermission) {
			return d.forbidden(remedy, "%v; deaths are seen through pidfds alone", err)
		}
		return fails(remedy, "%v; deaths are seen through pidfds alone", err)
	}
	level := l.Level()
	// That the subscription could not be given back costs one reply more for each event.
	_ = l.Close()
	return judgeLevel(level)
}

// judgeLevel says how an exit of our own was told.
func judgeLevel(level connector.Level) sign {
	var by []string
	if level.Mask {
		by = append(by, "the kernel makes only the events that are asked for")
	}
	if level.Filter {
		by = append(by, "a socket filter drops the others")
	}
	if len(by) == 0 {
		by = append(by, "unfiltered")
	}
	// 8 MiB were asked for, of which the kernel shows the double (socket(7)).
	if kept := level.ReceiveBuffer / 2; kept < 4<<20 {
		return sign{
			yes, fmt.Sprintf("a canary's exit was told; %s; %d KiB of events are kept, too few for a flood of exits", strings.Join(by, ", "), kept>>10),
			"CAP_NET_ADMIN, or net.core.rmem_max of 8388608, gives room for more",
		}
	}
	return works("a canary's exit was told; %s; %d MiB of events are kept", strings.Join(by, ", "), level.ReceiveBuffer/2>>20)
}

func (d *doctor) checkEngine(ctx context.Context) sign {
	about, err := d.engine.About(ctx)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return d.forbidden("", "%v", err)
	case err != nil:
		return fails("until then owners are watched, and containers are removed when it is back", "%v", err)
	}
	name := strings.TrimSpace(about.Name + " " + about.Version)
	return works("%s at %s, API %s", name, d.engine.Host(), about.API)
}

func (d *doctor) checkShared(ctx context.Context) sign {
	if _, err := d.engine.About(ctx); err != nil {
		return cannotTell("", "the engine cannot be reached")
	}
	if err := d.engine.SharesProcesses(ctx); err != nil {
		return d.forbidden("run watcher on the engine's host, in its PID namespace; until then every container with a process as owner is kept", "%v", err)
	}
	return works("a PID means the same here and to the engine")
}

// checkSandboxes makes a scan that touches nothing.
func (d *doctor) checkSandboxes(ctx context.Context) sign {
	if d.fault != nil {
		return cannotTell("", "the configuration has a fault")
	}
	began := time.Now()
	p, err := d.survey(ctx)
	if err != nil {
		if _, away := d.engine.About(ctx); away != nil {
			return cannotTell("", "the engine cannot be reached")
		}
		return d.forbidden("what cannot be listed is not judged, and nothing of its kind is reaped", "%v", err)
	}
	unjudged, orphans := 0, 0
	for _, id := range p.picture.IDs() {
		switch j := p.policy.Judge(p.picture, p.picture.Entry(id), p.now); {
		case j.Reason == reap.OwnerUnknown || j.Reason == reap.BadLabel:
			unjudged++
		case j.Verdict == reap.Reap:
			orphans++
		}
	}
	r := works("a full scan took %s: %d watched, %d to be reaped, %d that cannot be judged", time.Since(began).Round(time.Millisecond), p.picture.Len(), orphans, unjudged)
	if unjudged > 0 {
		r.remedy = "watcher list shows them, and watcher explain ID says why"
	}
	return r
}

// checkStateDir says whether the docket can be written, and who uses it.
func (d *doctor) checkStateDir(context.Context) sign {
	const remedy = "make room, or name another with --state-dir; until then reaps would not be remembered in a crash"
	switch info, err := os.Stat(d.stateDir); {
	case errors.Is(err, fs.ErrNotExist):
		return d.checkNoStateDir()
	case errors.Is(err, fs.ErrPermission):
		return d.forbidden(remedy, "%v", err)
	case err != nil:
		return fails(remedy, "%v", err)
	case !info.IsDir():
		return fails(remedy, "%s is no folder", d.stateDir)
	}
	if foreign := foreignFolder(d.stateDir); foreign != "" {
		return d.forbidden("what is on record there is a reason to remove a sandbox: chown and chmod it so that only watcher's user may write it", "%s", foreign)
	}
	if err := probe(d.stateDir); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return d.forbidden(remedy, "%v", err)
		}
		return fails(remedy, "%v", err)
	}
	life, pid, err := watch.Unknown, 0, error(nil)
	if dir, absErr := filepath.Abs(d.stateDir); absErr == nil {
		life, pid, err = statedir.Locked(dir)
	}
	switch {
	case err != nil || life == watch.Unknown:
		return works("%s can be written; whether a daemon uses it cannot be told: %v", d.stateDir, err)
	case life == watch.Alive && pid != 0:
		return works("%s can be written; a daemon runs, process %d", d.stateDir, pid)
	case life == watch.Alive:
		return works("%s can be written; a daemon runs", d.stateDir)
	}
	return works("%s can be written; no daemon runs", d.stateDir)
}

// foreignFolder says why watcher will not use a folder for its records, as [reap.Docket.Make] has it; "" if it will.
func foreignFolder(dir string) string {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Sprintf("stat %s: %v", dir, err)
	}
	switch {
	case int(st.Uid) != os.Geteuid():
		return fmt.Sprintf("%s belongs to user %d, and this is user %d", dir, st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return fmt.Sprintf("others may write in %s, which has mode %04o", dir, st.Mode&0o7777)
	}
	return ""
}

// checkNoStateDir is for a state directory that watcher has yet to make.
func (d *doctor) checkNoStateDir() sign {
	parent := d.stateDir
	for {
		parent = filepath.Dir(parent)
		if _, err := os.Stat(parent); err == nil || parent == filepath.Dir(parent) {
			break
		}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, parent, unix.W_OK, unix.AT_EACCESS); err != nil {
		return d.forbidden("make it, or name another with --state-dir", "%s is not there, and cannot be made in %s: %v", d.stateDir, parent, err)
	}
	return works("%s is not there yet, and can be made", d.stateDir)
}

// probe writes a file in a folder as the docket does, and takes it away.
func probe(dir string) (err error) {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return err
	}
	return f.Sync()
}

// checkLog says where the log of a watcher that is started here, with these flags, goes.
func (d *doctor) checkLog(context.Context) sign {
	log, err := journal.Open(d.logFormat, d.logLevel, os.Stderr)
	if err != nil {
		return fails("choose another --log-format", "%v", err)
	}
	defer func() { _ = log.Close(context.Background()) }() // nothing was written
	switch format := log.Format(); format {
	case journal.Journal:
		return works("to the journal")
	default:
		return works("to standard error, as %s; under systemd to the journal", format)
	}
}

func (d *doctor) checkJournal(context.Context) sign {
	log, err := journal.Open(journal.Journal, d.logLevel, os.Stderr)
	if err != nil {
		return fails("the log goes to standard error", "it cannot be reached: %v", err)
	}
	_ = log.Close(context.Background()) // nothing was written
	return works("it can be reached")
}

// inotify's limits are for each user, and go around among all programs of root (inotify(7)).
func (d *doctor) checkInotify(context.Context) sign {
	limits := map[string]int{}
	for _, name := range []string{"max_user_instances", "max_user_watches"} {
		text, err := os.ReadFile(filepath.Join(d.proc, "sys/fs/inotify", name))
		if err != nil {
			return cannotTell("", "%v", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return cannotTell("", "%s: %v", name, err)
		}
		limits[name] = n
	}
	const remedy = "sysctl fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288; until then folders are looked at by scans"
	if err := watchOnce("/"); err != nil {
		return fails(remedy, "%v (of %d instances and %d watches)", err, limits["max_user_instances"], limits["max_user_watches"])
	}
	return judgeInotify(limits["max_user_instances"], limits["max_user_watches"], remedy)
}

// judgeInotify is content with what would be enough for each VM folder of a busy host.
func judgeInotify(instances, watches int, remedy string) sign {
	const enough = 4096
	if watches < enough {
		return fails(remedy, "only %d folders can be watched by all programs of a user", watches)
	}
	return works("folders can be watched: at most %d instances and %d watches for each user", instances, watches)
}

// watchOnce watches a folder, and no more.
func watchOnce(dir string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify_init1: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("inotify_add_watch: %w", err)
	}
	return nil
}

// A capability is a right of watcher's, with what it is for (capabilities(7)).
type capability struct {
	name   string
	number int
	why    string
	needed func(watch.Rule) bool // which rules cannot do without; nil: none
}

var capabilities = []capability{
	{"cap_kill", unix.CAP_KILL, "to stop sandboxes that run as other users, at once", microVM},
	{"cap_net_admin", unix.CAP_NET_ADMIN, "for the process connector before Linux 6.6, room for a flood of exits, and the networks of microVMs", removesNetworks},
	{"cap_sys_ptrace", unix.CAP_SYS_PTRACE, "to see which programs others run, and who speaks to whom", looksAtProcesses},
	{"cap_dac_override", unix.CAP_DAC_OVERRIDE, "to remove what dead owners left in folders of other users", usesFiles},
	{"cap_fowner", unix.CAP_FOWNER, "to remove the same in folders such as /tmp", usesFiles},
	{"cap_sys_admin", unix.CAP_SYS_ADMIN, "to remove network namespaces of microVMs", removesNetworks},
	{"cap_sys_chroot", unix.CAP_SYS_CHROOT, "for the same", removesNetworks},
}

// removesNetworks reports whether network namespaces are removed for a rule.
func removesNetworks(r watch.Rule) bool {
	return r.Kind == watch.Firecracker && (len(r.Remove) == 0 || slices.Contains(r.Remove, "netns"))
}

func (d *doctor) checkCapability(c capability) sign {
	held, whose, err := d.capabilities()
	if err != nil {
		return cannotTell("", "%v", err)
	}
	if held&(1<<c.number) == 0 {
		remedy := "give it to watcher: CapabilityBoundingSet= in the unit, docker run --cap-add"
		if c.number == unix.CAP_SYS_ADMIN || c.number == unix.CAP_SYS_CHROOT {
			remedy = "give it to watcher: microvms.conf for the unit, which make install-microvms installs; docker run --cap-add"
		}
		return d.forbidden(remedy, "not held%s; it is %s", whose, c.why)
	}
	return works("held, %s", c.why)
}

// capabilities are those of the daemon, if one runs: root in a shell has more than a unit leaves it. Otherwise they are ours.
func (d *doctor) capabilities() (held uint64, whose string, err error) {
	if life, pid, err := statedir.Locked(d.stateDir); err == nil && life == watch.Alive && pid != 0 {
		if held, err := capabilitiesOf(filepath.Join(d.proc, strconv.Itoa(pid), "status")); err == nil {
			return held, fmt.Sprintf(" by the daemon, process %d", pid), nil
		}
	}
	held, err = effectiveCapabilities()
	return held, "", err
}

// capabilitiesOf reads the effective ones of a process (proc_pid_status(5)).
func capabilitiesOf(status string) (uint64, error) {
	text, err := os.ReadFile(status)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, fmt.Errorf("%s has no line CapEff", status)
}

// effectiveCapabilities are those that the kernel asks for (capget(2)), a bit each.
func effectiveCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 32 each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

// checkPreset says whether there is anything on this host that a preset is for.
func (d *doctor) checkPreset(name string) sign {
	p, err := loadPreset(name)
	if err != nil {
		return fails("", "%v", err)
	}
	used := d.config.hasPreset(name)
	head := "in use"
	if !used {
		head = "not in use"
	}
	r, found := d.lookFor(p.rules, head)
	if found > 0 && !used {
		r.remedy = "--preset " + name + ", or presets in the configuration, watches over it"
	}
	return r
}

// checkRule says whether there is anything on this host that a rule of the file is for. A folder that is misspelt is nowhere.
func (d *doctor) checkRule(rule watch.Rule) sign {
	r, _ := d.lookFor([]watch.Rule{rule}, "of kind "+string(rule.Kind))
	below := slices.Concat(rule.BaseDirs, rule.JailDirs, rule.Dirs)
	missing := slices.DeleteFunc(slices.Clone(below), func(glob string) bool {
		at, err := filepath.Glob(glob)
		return err != nil || len(at) > 0
	})
	if r.works == yes && len(below) > 0 && len(missing) == len(below) {
		return fails("is it spelt so? until it is there the rule is about nothing", "%s", r.detail)
	}
	return r
}

// lookFor says which of the things that rules name are on this host, behind some words, and how many.
func (d *doctor) lookFor(rules []watch.Rule, head string) (r sign, n int) {
	var found, missing []string
	note := func(what string, n int) {
		if n > 0 {
			found = append(found, fmt.Sprintf("%s (%d)", what, n))
		} else {
			missing = append(missing, what)
		}
	}
	programs, globs := traces(rules)
	running, unreadable, err := d.running(programs)
	if err != nil {
		return cannotTell("", "%v", err), 0
	}
	for _, program := range programs {
		note("program "+program, running[program])
	}
	for _, glob := range globs {
		// Only to tell people: what is removed is found by statedir, which follows no link.
		at, err := filepath.Glob(glob)
		if err != nil {
			return cannotTell("", "%s: %v", glob, err), 0
		}
		note(glob, len(at))
	}
	r = works("%s", head)
	if len(found) > 0 {
		r.detail += "; found " + strings.Join(found, ", ")
	}
	if len(missing) > 0 {
		r.detail += "; not found: " + strings.Join(missing, ", ")
	}
	if len(missing) > 0 && unreadable > 0 && !d.root {
		r.works = unknown
		r.detail += fmt.Sprintf("; what %d processes run cannot be read", unreadable)
	}
	return r, len(found)
}

// traces are what rules say of a host: programs that run on it, and files and folders, each once.
func traces(rules []watch.Rule) (programs, globs []string) {
	add := func(all []string, more ...string) []string {
		for _, s := range more {
			if s != "" && !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		return all
	}
	for _, r := range rules {
		programs = add(programs, r.Program, r.Owner.Process, r.Owner.Ancestor)
		globs = add(globs, r.Files...)
		globs = add(globs, slices.Concat(r.BaseDirs, r.JailDirs, r.Dirs)...)
		globs = add(globs, r.SocketDir, r.Owner.Locks)
	}
	return programs, globs
}

// running counts the processes of programs, and those of which it cannot be read what they run.
func (d *doctor) running(names []string) (count map[string]int, unreadable int, err error) {
	count = map[string]int{}
	if len(names) == 0 {
		return count, 0, nil
	}
	var programs []watch.Program
	for _, name := range names {
		program, err := watch.NewProgram(name)
		if err != nil {
			return nil, 0, err
		}
		programs = append(programs, program)
	}
	entries, err := os.ReadDir(d.proc)
	if err != nil {
		return nil, 0, err
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		dir := filepath.Join(d.proc, entry.Name())
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue // it has ended, or is a thread of the kernel
		}
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if errors.Is(err, fs.ErrPermission) {
			unreadable++
		}
		argv := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		for i, program := range programs {
			if program.Matches(exe, argv) {
				count[names[i]]++
			}
		}
	}
	return count, unreadable, nil
}
