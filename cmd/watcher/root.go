package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"watcher/platform/docker"
	"watcher/platform/journal"
)

// options are the flags that every command has.
type options struct {
	config     string
	presets    []string
	dockerHost string
	stateDir   string
	logFormat  string
	logLevel   slog.Level
	once       bool
	dryRun     bool
	output     string
}

func newRootCommand() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "watcher",
		Short: "Reap sandboxes whose owners have died",
		Long: "watcher keeps a host free of orphaned sandboxes: when the process that owns a container dies, the container is\n" +
			"stopped at once and removed. A sandbox whose owner lives, or may live, is never touched.",
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.once {
				return o.runOnce(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			if cmd.Flags().Changed("output") {
				return usageError{fmt.Errorf("--output goes with --once")}
			}
			return o.runDaemon(cmd.Context())
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2

	flags := root.PersistentFlags()
	flags.StringVar(&o.config, "config", "", "configuration `FILE` (default "+defaultConfig+" where it exists)")
	flags.StringArrayVar(&o.presets, "preset", nil, "rules of a preset, by its `NAME`; may be given several times")
	flags.StringVar(&o.dockerHost, "docker-host", "", "`URL` of the engine (default DOCKER_HOST, then the usual socket)")
	flags.StringVar(&o.stateDir, "state-dir", "", "`DIR` for what must survive a restart (default STATE_DIRECTORY, then "+defaultStateDir+")")
	flags.StringVar(&o.logFormat, "log-format", journal.Auto, "`FORMAT`: auto, text, json or journal")
	flags.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")

	root.Flags().BoolVar(&o.once, "once", false, "one full scan: reap every orphan, then exit")
	root.Flags().BoolVar(&o.dryRun, "dry-run", false, "only say what would be done")
	addOutput(root, o)

	root.AddCommand(newListCommand(o), newExplainCommand(o), newKillCommand(o), newFailedCommand(o), newLabelsCommand(o),
		newCheckCommand(o), newDoctorCommand(o), newVersionCommand())
	for _, cmd := range root.Commands() {
		usageOf(cmd)
	}
	return root
}

// usageOf makes what cobra says about a command's arguments a fault of usage.
func usageOf(cmd *cobra.Command) {
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return usageError{err}
		}
		return nil
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return usageError{err}
}

// The values of --output.
const (
	asTable = "table"
	asJSON  = "json"
)

func addOutput(cmd *cobra.Command, o *options) {
	o.output = asTable
	cmd.Flags().VarP(&oneOf{value: &o.output, allowed: []string{asTable, asJSON}}, "output", "o", "table or json")
}

// oneOf is a flag that takes one of a few words.
type oneOf struct {
	value   *string
	allowed []string
}

func (f *oneOf) String() string {
	if f.value == nil {
		return ""
	}
	return *f.value
}

func (f *oneOf) Type() string { return "FORMAT" }

func (f *oneOf) Set(s string) error {
	for _, word := range f.allowed {
		if s == word {
			*f.value = s
			return nil
		}
	}
	return fmt.Errorf("want %s", strings.Join(f.allowed, " or "))
}

// load reads the configuration and puts what the command line says above it.
func (o *options) load() (*config, error) {
	c, err := loadConfig(o.config, o.presets)
	if err != nil {
		return nil, err
	}
	c.Docker.Host = cmp.Or(o.dockerHost, c.Docker.Host, os.Getenv("DOCKER_HOST"))
	if err := docker.CheckHost(c.Docker.Host); err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// defaultStateDir is where state is kept outside a unit.
const defaultStateDir = "/var/lib/watcher"
