package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"watcher/platform/docker"
	"watcher/platform/journal"
	"watcher/platform/process"
	"watcher/watch"
)

const (
	// rechecks is how often doctor looks again at what did not work, before it says so: an engine that is being restarted,
	// or a canary that a busy host was late to tell of, is no fault.
	rechecks = 3
	// recheckPause is the time between.
	recheckPause = 3 * time.Second
)

func newDoctorCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what works on this host and what does not, with the remedy",
		Long: "Say what works on this host and what does not, one line each with the remedy. What is needed and fails is looked at again " +
			fmt.Sprintf("%d times,\n%s apart, before it is told. The exit code is 1 if something does not work that the configuration needs.", rechecks, recheckPause),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.runDoctor(cmd.Context(), cmd.OutOrStdout(), recheckPause)
		},
	}
	addOutput(cmd, o)
	return cmd
}

func (o *options) runDoctor(ctx context.Context, w io.Writer, pause time.Duration) error {
	d := newDoctor(o, procRoot, os.Geteuid() == 0)
	diagnoses, err := examine(ctx, d.checks(), pause)
	if err != nil {
		return err
	}
	if o.output == asJSON {
		err = writeJSON(w, diagnoses)
	} else {
		err = writeDiagnoses(w, diagnoses)
	}
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if slices.ContainsFunc(diagnoses, diagnosis.fails) {
		return errSaid
	}
	return nil
}

// An outcome is what a check came to. Unknown is zero: what was not found out does not work, and is not broken either.
type outcome uint8

const (
	unknown outcome = iota
	yes
	no
)

func (o outcome) String() string {
	switch o {
	case yes:
		return "yes"
	case no:
		return "no"
	default:
		return "unknown"
	}
}

// MarshalText is how JSON has it.
func (o outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// A check looks whether one thing works.
type check struct {
	name   string
	needed bool // by the effective configuration
	look   func(context.Context) sign
}

// A sign is what one look at one thing found.
type sign struct {
	works  outcome
	detail string
	remedy string // what to do about it; "" if nothing needs to be done
}

func works(format string, args ...any) sign {
	return sign{works: yes, detail: fmt.Sprintf(format, args...)}
}

func fails(remedy, format string, args ...any) sign {
	return sign{no, fmt.Sprintf(format, args...), remedy}
}

func cannotTell(remedy, format string, args ...any) sign {
	return sign{unknown, fmt.Sprintf(format, args...), remedy}
}

// A diagnosis is what doctor says of one thing.
type diagnosis struct {
	Check  string  `json:"check"`
	Works  outcome `json:"works"`
	Needed bool    `json:"needed"`
	Detail string  `json:"detail"`
	Remedy string  `json:"remedy"`
	Looks  int     `json:"looks"`
}

// fails reports whether something needed does not work. What nobody could find out is told, and is no failure.
func (d diagnosis) fails() bool { return d.Needed && d.Works == no }

// examine makes all checks, and those again that are needed and failed.
func examine(ctx context.Context, checks []check, pause time.Duration) ([]diagnosis, error) {
	diagnoses := make([]diagnosis, len(checks))
	look := func(i int) {
		c, d := checks[i], &diagnoses[i]
		found := c.look(ctx)
		*d = diagnosis{c.name, found.works, c.needed, found.detail, found.remedy, d.Looks + 1}
	}
	for i := range checks {
		look(i)
	}
	for range rechecks {
		if !slices.ContainsFunc(diagnoses, diagnosis.fails) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		for i := range diagnoses {
			if diagnoses[i].fails() && ctx.Err() == nil {
				look(i)
			}
		}
	}
	// What an interrupt spoilt was not found out.
	return diagnoses, ctx.Err()
}

// mark is the first word of a line.
func (d diagnosis) mark() (word, color string) {
	switch {
	case d.Works == yes:
		return "ok", green
	case d.Works == unknown:
		return "?", yellow
	case d.Needed:
		return "FAIL", red
	default:
		return "warn", yellow
	}
}

func writeDiagnoses(w io.Writer, diagnoses []diagnosis) error {
	paint := painter(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, d := range diagnoses {
		word, color := d.mark()
		line := fmt.Sprintf("%s\t%s\t%s", paint(color, word), d.Check, printable(d.Detail))
		if d.Remedy != "" {
			line += "; " + printable(d.Remedy)
		}
		fmt.Fprintln(t, line)
	}
	return t.Flush()
}

// A doctor knows what the checks look at. One of its fields may be missing where what it stands for does not work: the
// check that is about it says so, and the others could not find out.
type doctor struct {
	proc    string // where the proc file system is
	root    bool   // we are root, so that what is forbidden to us is forbidden to watcher
	config  *config
	fault   error // of the configuration; then config has the defaults
	host    *process.Host
	hostErr error
	engine  *docker.Engine

	stateDir  string
	logFormat string
	logLevel  slog.Level
	survey    func(context.Context) (*pass, error)
}

func newDoctor(o *options, proc string, root bool) *doctor {
	d := &doctor{proc: proc, root: root, stateDir: o.stateDirectory(), logFormat: o.logFormat, logLevel: o.logLevel, survey: o.survey}
	if d.config, d.fault = o.load(); d.fault != nil {
		d.config = defaults()
		d.config.Docker.Host = cmp.Or(o.dockerHost, os.Getenv("DOCKER_HOST"))
		if docker.CheckHost(d.config.Docker.Host) != nil {
			d.config.Docker.Host = ""
		}
	}
	d.host, d.hostErr = process.NewHost(proc)
	d.engine = docker.New(d.config.Docker.Host, d.host, nil)
	return d
}

// any reports whether any rule in force has something about it.
func (d *doctor) any(has func(watch.Rule) bool) bool {
	return slices.ContainsFunc(d.config.effective(), has)
}

// wantsEngine reports whether containers are watched: on a host whose rules are all about others, an engine need not be
// there.
func (d *doctor) wantsEngine() bool { return wantsEngine(d.config.effective(), d.config.Docker.Host) }

// microVM reports whether a rule is about virtual machines, which no engine stops for us.
func microVM(r watch.Rule) bool { return r.Kind == watch.Firecracker || r.Kind == watch.GoMicroVM }

// usesFiles reports whether something in the file system is removed for a rule.
func usesFiles(r watch.Rule) bool { return len(r.Files) > 0 || microVM(r) }

// looksAtProcesses reports whether a rule wants to know what programs run, or who has a socket.
func looksAtProcesses(r watch.Rule) bool {
	return r.Owner.Process != "" || r.Owner.Client || r.Owner.Socket != "" || microVM(r)
}

// forbidden is what a refusal means: to root that it does not work, to others that root has to look.
func (d *doctor) forbidden(remedy, format string, args ...any) sign {
	if d.root {
		return fails(remedy, format, args...)
	}
	return cannotTell("ask as root, as whom watcher runs", format, args...)
}

// checks are all that doctor looks at, in the order in which it tells.
func (d *doctor) checks() []check {
	engine := d.wantsEngine()
	all := []check{
		{"configuration", true, d.checkConfiguration},
		{"kernel", true, d.checkKernel},
		{"processes", true, d.checkProcesses},
		{"clock", true, d.checkClock},
		{"pidfd", d.any(microVM), d.checkPidfd},
		{"process connector", false, d.checkConnector},
		{"engine", engine, d.checkEngine},
		{"shared PID namespace", engine, d.checkShared},
		{"sandboxes", true, d.checkSandboxes},
		{"state directory", true, d.checkStateDir},
		{"log", true, d.checkLog},
		{"journal", d.logFormat == journal.Journal, d.checkJournal},
		{"inotify", d.any(func(r watch.Rule) bool { return r.Kind == watch.GoMicroVM }), d.checkInotify},
	}
	for _, c := range capabilities {
		all = append(all, check{strings.ToUpper(c.name), c.needed != nil && d.any(c.needed), func(context.Context) sign { return d.checkCapability(c) }})
	}
	for _, rule := range d.config.Rules {
		if programs, globs := traces([]watch.Rule{rule}); len(programs)+len(globs) > 0 {
			all = append(all, check{"rule " + rule.Name, false, func(context.Context) sign { return d.checkRule(rule) }})
		}
	}
	for _, name := range presetNames() {
		all = append(all, check{"preset " + name, false, func(context.Context) sign { return d.checkPreset(name) }})
	}
	return all
}
