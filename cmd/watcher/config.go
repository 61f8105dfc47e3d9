package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"watcher/reap"
)

// defaultConfig is read where it exists; a file that was named must exist.
const defaultConfig = "/etc/watcher/watcher.toml"

// A config is the effective configuration: what the file says, and the defaults for the rest.
type config struct {
	file string // "": none was read

	Docker struct {
		Host string `toml:"host"`
	} `toml:"docker"`
	Scan struct {
		Interval duration `toml:"interval"`
		Grace    duration `toml:"grace"`
	} `toml:"scan"`
	Retry struct {
		Attempts int      `toml:"attempts"`
		Base     duration `toml:"base"`
		Cap      duration `toml:"cap"`
	} `toml:"retry"`
	Alarm struct {
		Sandboxes int `toml:"sandboxes"`
	} `toml:"alarm"`
	Brake struct {
		Burst int `toml:"burst"`
	} `toml:"brake"`
}

func defaults() *config {
	c := &config{}
	pol := reap.DefaultPolicy()
	c.Scan.Interval = duration{30 * time.Second}
	c.Scan.Grace = duration{pol.Grace}
	c.Retry.Attempts = pol.Attempts
	c.Retry.Base = duration{pol.Base}
	c.Retry.Cap = duration{pol.Cap}
	c.Alarm.Sandboxes = pol.Alarm
	c.Brake.Burst = pol.Burst
	return c
}

func (c *config) policy() reap.Policy {
	return reap.Policy{
		Grace:    c.Scan.Grace.Duration,
		Attempts: c.Retry.Attempts,
		Base:     c.Retry.Base.Duration,
		Cap:      c.Retry.Cap.Duration,
		Alarm:    c.Alarm.Sandboxes,
		Burst:    c.Brake.Burst,
	}
}

// loadConfig reads the configuration. named is the file that the user named, or "".
func loadConfig(named string) (*config, error) {
	file := named
	if file == "" {
		file = defaultConfig
	}
	text, err := os.ReadFile(file)
	switch {
	case named == "" && errors.Is(err, fs.ErrNotExist):
		return defaults(), nil
	case err != nil:
		return nil, usageError{fmt.Errorf("read the configuration: %w", err)}
	}
	c, err := parseConfig(file, text)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// parseConfig reads text, whose faults are told as file:line:column.
func parseConfig(file string, text []byte) (*config, error) {
	c := defaults()
	c.file = file
	err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var fault *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var faults []error
		for _, key := range unknown.Errors {
			row, col := key.Position()
			faults = append(faults, fmt.Errorf("%s:%d:%d: unknown key %q", file, row, col, strings.Join(key.Key(), ".")))
		}
		return nil, errors.Join(faults...)
	case errors.As(err, &fault):
		row, col := fault.Position()
		return nil, fmt.Errorf("%s:%d:%d: %s\n%s", file, row, col, strings.TrimPrefix(fault.Error(), "toml: "), fault.String())
	case err != nil:
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	switch {
	case c.Retry.Attempts < 1:
		return nil, fmt.Errorf("%s: [retry] attempts = %d: want a number above zero", file, c.Retry.Attempts)
	case c.Alarm.Sandboxes < 1:
		return nil, fmt.Errorf("%s: [alarm] sandboxes = %d: want a number above zero", file, c.Alarm.Sandboxes)
	case c.Brake.Burst < 0:
		return nil, fmt.Errorf("%s: [brake] burst = %d: want a number, 0 for a second look at every one", file, c.Brake.Burst)
	case c.Retry.Cap.Duration < c.Retry.Base.Duration:
		return nil, fmt.Errorf("%s: [retry] cap %s is less than base %s", file, c.Retry.Cap, c.Retry.Base)
	}
	return c, nil
}

// A duration is a positive time.Duration in the form 30s. It is no number, or the decoder would take a bare 30 as 30 ns.
type duration struct{ time.Duration }

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q: want a duration such as 30s", text)
	}
	if v <= 0 {
		return fmt.Errorf("%q: want a duration above zero", text)
	}
	d.Duration = v
	return nil
}

func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
