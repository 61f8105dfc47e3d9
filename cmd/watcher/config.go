package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// defaultConfig is read where it exists; a file that was named must exist.
const defaultConfig = "/etc/watcher/watcher.toml"

// A config is the effective configuration: what the file and the command line say, and the defaults for the rest.
type config struct {
	file string // "": none was read

	Docker struct{ Host string }
	Scan   struct{ Interval, Grace time.Duration }
	Retry  struct {
		Attempts  int
		Base, Cap time.Duration
	}
	Alarm struct{ Sandboxes int }
	Brake struct{ Burst int }

	Protect []watch.Pattern
	Rules   []watch.Rule // the file's own
	presets []preset     // in the order in which they are tried, behind the file's own rules
}

// protected are the labels by which other managers of containers mark what is theirs.
var protected = []string{
	"io.kubernetes.*", "com.hashicorp.nomad.*", "com.docker.swarm.*", "com.docker.compose.*",
	"com.gitlab.gitlab-runner.managed", "devcontainer.*",
}

func defaults() *config {
	c := &config{}
	pol := reap.DefaultPolicy()
	c.Scan.Interval = 30 * time.Second
	c.Scan.Grace = pol.Grace
	c.Retry.Attempts = pol.Attempts
	c.Retry.Base = pol.Base
	c.Retry.Cap = pol.Cap
	c.Alarm.Sandboxes = pol.Alarm
	c.Brake.Burst = pol.Burst
	for _, key := range protected {
		c.Protect = append(c.Protect, watch.NewPattern(key))
	}
	return c
}

func (c *config) policy() reap.Policy {
	alarms := map[string]int{}
	for _, rule := range c.effective() {
		if rule.Alarm > 0 {
			alarms[rule.Name] = rule.Alarm
		}
	}
	return reap.Policy{
		Grace:    c.Scan.Grace,
		Attempts: c.Retry.Attempts,
		Base:     c.Retry.Base,
		Cap:      c.Retry.Cap,
		Alarm:    c.Alarm.Sandboxes,
		Alarms:   alarms,
		Burst:    c.Brake.Burst,
	}
}

func (c *config) rules() *watch.Rules {
	// Without a name of our own, a label that names a host names another one, and keeps its container.
	host, _ := os.Hostname()
	return &watch.Rules{Host: host, Protect: c.Protect, List: c.effective()}
}

// effective are the rules in the order in which they are tried. A rule of the file stands for one of the same name in a
// preset.
func (c *config) effective() []watch.Rule {
	all := slices.Clone(c.Rules)
	for _, p := range c.presets {
		for _, rule := range p.rules {
			if !c.replaces(rule) {
				all = append(all, rule)
			}
		}
	}
	return all
}

// replaces reports whether the file has a rule instead of a preset's.
func (c *config) replaces(rule watch.Rule) bool {
	return slices.ContainsFunc(c.Rules, func(own watch.Rule) bool { return own.Name == rule.Name })
}

// loadConfig reads the configuration and adds presets to it. named is the file that the user named, or "".
func loadConfig(named string, presets []string) (*config, error) {
	c, err := readConfig(named)
	if err != nil {
		return nil, usageError{err}
	}
	for _, name := range presets {
		if err := c.usePreset(name); err != nil {
			return nil, usageError{fmt.Errorf("--preset %s: %w", name, err)}
		}
	}
	return c, nil
}

func readConfig(named string) (*config, error) {
	file := named
	if file == "" {
		file = defaultConfig
	}
	text, err := os.ReadFile(file)
	switch {
	case named == "" && errors.Is(err, fs.ErrNotExist):
		return defaults(), nil
	case err != nil:
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := parseConfig(file, text)
	if err != nil {
		return nil, fmt.Errorf("the configuration is not valid:\n%w", err)
	}
	return c, nil
}

// parseConfig reads text. All its faults are told, each in a line that begins with file:line:column.
func parseConfig(file string, text []byte) (*config, error) {
	c := defaults()
	c.file = file
	d := parseDocument(file, text)
	d.config(c)
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}
