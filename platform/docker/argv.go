package docker

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// This file reads the command lines of clients: docker run, docker compose run and podman run. It knows the flags up to
// Docker 29, Compose 5 and Podman 5. Of a flag that it does not know it cannot tell whether the next word is its value, so
// a command line can have more than one reading.

// A flagSet is the flags of one command, as pflag reads them.
type flagSet struct {
	takes map[string]bool // by long name: whether it takes a value; the others are switches
	short map[byte]string // the long name
}

// newFlagSet reads lists of names, each with its letter if it has one: "detach/d".
func newFlagSet(switches, values string) flagSet {
	fs := flagSet{map[string]bool{}, map[byte]string{}}
	for takes, list := range map[bool]string{false: switches, true: values} {
		for flag := range strings.FieldsSeq(list) {
			name, letter, _ := strings.Cut(flag, "/")
			fs.takes[name] = takes
			if letter != "" {
				fs.short[letter[0]] = name
			}
		}
	}
	return fs
}

var (
	// These stand before the command.
	dockerFlags = newFlagSet(
		`debug/D help/h tls tlsverify version/v`,
		`config context/c host/H log-level/l tlscacert tlscert tlskey`)
	podmanFlags = newFlagSet(
		`help/h noout remote/r syslog trace transient-store version/v`,
		`cdi-spec-dir cgroup-manager config conmon connection/c db-backend default-mounts-file events-backend hooks-dir identity
		imagestore log-level max-workers module namespace network-cmd-path network-config-dir out pull-option registries-conf
		root runroot runtime runtime-flag ssh storage-driver storage-opt tls-ca tls-cert tls-key tmpdir url volumepath`)

	// runFlags are those of docker, and behind them those that podman has besides. No name is a switch of one and takes a
	// value of the other.
	runFlags = newFlagSet(
		`detach/d disable-content-trust help init interactive/i no-healthcheck oom-kill-disable privileged publish-all/P quiet/q
		read-only rm sig-proxy tty/t use-api-socket
		env-host http-proxy no-hostname no-hosts passwd read-only-tmpfs replace rmi rootfs tls-verify unsetenv-all`,
		`add-host annotation attach/a blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile cpu-count
		cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares/c cpus cpuset-cpus cpuset-mems detach-keys
		device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops dns dns-opt dns-option
		dns-search domainname entrypoint env/e env-file expose gpus group-add health-cmd health-interval health-retries
		health-start-interval health-start-period health-timeout hostname/h io-maxbandwidth io-maxiops ip ip6 ipc isolation
		kernel-memory label/l label-file link link-local-ip log-driver log-opt mac-address memory/m memory-reservation
		memory-swap memory-swappiness mount name net net-alias network network-alias oom-score-adj pid pids-limit platform
		publish/p pull restart runtime security-opt shm-size stop-signal stop-timeout storage-opt sysctl tmpfs ulimit user/u
		userns uts volume/v volume-driver volumes-from workdir/w
		arch authfile cert-dir cgroup-conf cgroups chrootdirs conmon-pidfile creds decryption-key env-merge gidmap group-entry
		health-log-destination health-max-log-count health-max-log-size health-on-failure health-startup-cmd
		health-startup-interval health-startup-retries health-startup-success health-startup-timeout hosts-file hostuser
		image-volume init-path intel-rdt-closid os passwd-entry personality pidfile pod pod-id-file preserve-fd preserve-fds
		rdt-class requires retry retry-delay sdnotify seccomp-policy secret shm-size-systemd subgidname subuidname systemd
		timeout tz uidmap umask unsetenv variant`)

	composeFlags = newFlagSet(
		`all-resources compatibility dry-run help/h no-ansi verbose version/v`,
		`ansi env-file file/f parallel profile progress project-directory project-name/p workdir`)

	composeRunFlags = newFlagSet(
		`build detach/d dry-run help/h interactive/i no-TTY/T no-build no-deps quiet/q quiet-build quiet-pull remove-orphans rm
		service-ports/P tty/t use-aliases`,
		`cap-add cap-drop entrypoint env/e env-from-file label/l labels name publish/p pull user/u volume/v volumes workdir/w`)
)

// A setting is a flag that was given, with its value.
type setting struct{ name, value string }

type settings []setting

// all are the values given to a flag, in their order.
func (s settings) all(name string) (values []string) {
	for _, given := range s {
		if given.name == name {
			values = append(values, given.value)
		}
	}
	return values
}

// last is the value that counts where only one can.
func (s settings) last(name string) (value string, given bool) {
	values := s.all(name)
	if len(values) == 0 {
		return "", false
	}
	return values[len(values)-1], true
}

func (s settings) text(name string) string {
	value, _ := s.last(name)
	return value
}

// on reports whether a switch was given and not switched off again.
func (s settings) on(name string) bool {
	value, given := s.last(name)
	on, err := strconv.ParseBool(value)
	return given && err == nil && on
}

// A reading is one way to read a command line: what was given to flags, and the words from the first one on that is
// neither a flag nor a value.
type reading struct {
	settings settings
	rest     []string
}

// Each unknown flag may double the readings, so both are bounded: how many there are, and the work of looking for them.
const (
	maxReadings = 32
	maxSteps    = 2048
)

// A reader reads one command line.
type reader struct {
	steps int  // words and letters read
	whole bool // no reading was left out
}

// read returns the ways to read words, as far as a command with these flags reads them. There is none if it would refuse
// them.
func (r *reader) read(fs flagSet, args []string) []reading {
	p := part{reader: r, fs: fs}
	p.words(args, nil)
	return p.found
}

// A part is what one command reads.
type part struct {
	*reader
	fs    flagSet
	found []reading
}

// goesOn reports whether another word or letter is to be read.
func (p *part) goesOn() bool {
	if p.steps++; p.steps > maxSteps || len(p.found) == maxReadings {
		p.whole = false
	}
	return p.whole
}

// with returns s with one more setting, and leaves s as it is for other readings.
func with(s settings, name, value string) settings {
	return append(s[:len(s):len(s)], setting{name, value})
}

func (p *part) words(args []string, s settings) {
	switch {
	case !p.goesOn():
	case len(args) == 0:
		p.found = append(p.found, reading{s, nil})
	case args[0] == "--":
		p.found = append(p.found, reading{s, args[1:]})
	case len(args[0]) < 2 || args[0][0] != '-':
		p.found = append(p.found, reading{s, args})
	case strings.HasPrefix(args[0], "--"):
		p.long(args[0][2:], args[1:], s)
	default:
		p.letters(args[0][1:], args[1:], s)
	}
}

func (p *part) long(flag string, args []string, s settings) {
	name, value, valued := strings.Cut(flag, "=")
	takes, known := p.fs.takes[name]
	switch {
	case name == "" || name[0] == '-':
	case valued:
		if !known || takes || isBool(value) {
			p.words(args, with(s, name, value))
		}
	default:
		if !known || !takes {
			p.words(args, with(s, name, "true"))
		}
		if (!known || takes) && len(args) > 0 {
			p.words(args[1:], with(s, name, args[0]))
		}
	}
}

// letters reads what stands behind one dash: switches in a row, of which the last one may take a value instead.
func (p *part) letters(flags string, args []string, s settings) {
	if flags == "" {
		p.words(args, s)
		return
	}
	if !p.goesOn() {
		return
	}
	name, known := p.fs.short[flags[0]]
	if !known {
		name = flags[:1]
	}
	takes := p.fs.takes[name] && known
	if len(flags) > 2 && flags[1] == '=' {
		if value := flags[2:]; !known || takes || isBool(value) {
			p.words(args, with(s, name, value))
		}
		return
	}
	if !known || !takes {
		p.letters(flags[1:], args, with(s, name, "true"))
	}
	switch {
	case known && !takes:
	case len(flags) > 1:
		p.words(args, with(s, name, flags[1:]))
	case len(args) > 0:
		p.words(args[1:], with(s, name, args[0]))
	}
}

func isBool(value string) bool {
	_, err := strconv.ParseBool(value)
	return err == nil
}

// The programs that are clients. nerdctl is none: it makes its containers without an engine of the kind that we talk to.
const (
	dockerProgram  = "docker"
	composeProgram = "docker-compose"
	podmanProgram  = "podman"
)

// A request is one way to read what a client was asked for: to run a container and to stay until it ends.
type request struct {
	program string
	global  settings // before the command
	project settings // of compose: behind compose
	run     settings // behind run
	what    string   // the image; of compose, the service
	args    []string // behind it
}

// requests returns what a process was asked for, if it is a client that stays with a container, and whether that is all
// that it may have been asked for. exe is the path of its executable, "" if that is not known.
func requests(exe string, argv []string) (found []request, all bool) {
	if len(argv) == 0 {
		return nil, true
	}
	program := programOf(exe, argv[0])
	if program == "" {
		return nil, true
	}
	reader := &reader{whole: true}
	run := func(r request, fs flagSet, args []string) {
		for _, behind := range reader.read(fs, args) {
			if len(behind.rest) > 0 && behind.rest[0] != "" && stays(r.program, behind.settings) {
				r.run, r.what, r.args = behind.settings, behind.rest[0], behind.rest[1:]
				found = append(found, r)
			}
		}
	}
	compose := func(r request, args []string) {
		for _, behind := range reader.read(composeFlags, args) {
			if len(behind.rest) > 0 && behind.rest[0] == "run" {
				r.project = behind.settings
				run(r, composeRunFlags, behind.rest[1:])
			}
		}
	}
	global := dockerFlags
	if program == podmanProgram {
		global = podmanFlags
	}
	for _, first := range reader.read(global, argv[1:]) {
		r := request{program: program, global: first.settings}
		switch rest := first.rest; {
		case program == composeProgram:
			// As a plugin of docker it is given all that docker was given.
			if len(rest) > 0 && rest[0] == "compose" {
				compose(r, rest[1:])
			}
		case len(rest) > 0 && rest[0] == "run":
			run(r, runFlags, rest[1:])
		case len(rest) > 1 && rest[0] == "container" && rest[1] == "run":
			run(r, runFlags, rest[2:])
		}
	}
	if program == composeProgram {
		compose(request{program: program}, argv[1:])
	}
	return found, reader.whole
}

// programOf returns which client a process is, or "".
func programOf(exe, argv0 string) string {
	const deleted = " (deleted)" // what the kernel says of one that was replaced (proc_pid_exe(5))
	for _, file := range []string{strings.TrimSuffix(exe, deleted), argv0} {
		switch name := filepath.Base(file); name {
		case dockerProgram, composeProgram, podmanProgram:
			return name
		}
	}
	return ""
}

// stays reports whether a client that was given these flags stays until its container ends. One that only feeds it with
// input leaves when the input has ended.
func stays(program string, s settings) bool {
	if s.on("detach") || s.on("help") {
		return false
	}
	if _, given := s.last("sig-proxy"); given && !s.on("sig-proxy") {
		return false // it is meant to be ended without its container
	}
	var attached []string
	if program != composeProgram {
		for _, streams := range s.all("attach") {
			attached = append(attached, strings.Split(strings.ToLower(streams), ",")...)
		}
	}
	return len(attached) == 0 || slices.Contains(attached, "stdout") || slices.Contains(attached, "stderr")
}
