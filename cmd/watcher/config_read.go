package main

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"watcher/platform/docker"
	"watcher/watch"
)

// longest bounds every duration. Beyond a hundred years one is a mistake, and a time that it is added to could overflow.
const longest = 100 * 365 * 24 * time.Hour

// fields says how the keys of a table are read.
type fields map[string]func(*value)

// table reads a table. Every key has to be one of the fields.
func (d *document) table(v *value, f fields) {
	if !v.isTable() {
		d.fault(v.place, "want a table")
		return
	}
	for _, m := range v.members {
		read, ok := f[m.key]
		if !ok {
			d.fault(m.place, "unknown key, want %s", oneOfWords(slices.Sorted(maps.Keys(f))))
			continue
		}
		read(m.value)
	}
}

// oneOfWords writes a, b or c.
func oneOfWords[W ~string](words []W) string {
	var b strings.Builder
	for i, word := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(word))
	}
	return b.String()
}

// config reads the whole file.
func (d *document) config(c *config) {
	d.table(d.root, fields{
		"presets": func(v *value) { d.presets(v, c) },
		"protect": func(v *value) { c.Protect = d.patterns(v) },
		"docker": func(v *value) {
			d.table(v, fields{"host": func(v *value) { d.host(v, &c.Docker.Host) }})
		},
		"scan": func(v *value) {
			d.table(v, fields{
				"interval": func(v *value) { d.duration(v, 1, &c.Scan.Interval) },
				"grace":    func(v *value) { d.duration(v, 1, &c.Scan.Grace) },
			})
		},
		"retry": func(v *value) { d.retry(v, c) },
		"alarm": func(v *value) {
			d.table(v, fields{"sandboxes": func(v *value) { d.number(v, 1, &c.Alarm.Sandboxes) }})
		},
		"brake": func(v *value) {
			d.table(v, fields{"burst": func(v *value) { d.number(v, 0, &c.Brake.Burst) }})
		},
		"rule": func(v *value) { c.Rules = d.rules(v) },
	})
}

func (d *document) retry(v *value, c *config) {
	before := len(d.faults)
	d.table(v, fields{
		"attempts": func(v *value) { d.number(v, 1, &c.Retry.Attempts) },
		"base":     func(v *value) { d.duration(v, 1, &c.Retry.Base) },
		"cap":      func(v *value) { d.duration(v, 1, &c.Retry.Cap) },
	})
	if len(d.faults) > before || c.Retry.Cap >= c.Retry.Base {
		return
	}
	if limit := v.get("cap"); limit != nil {
		d.fault(limit.place, "want no less than base, which is %s", c.Retry.Base)
	} else {
		d.fault(v.get("base").place, "want no more than cap, which is %s", c.Retry.Cap)
	}
}

func (d *document) presets(v *value, c *config) {
	for _, item := range d.strings(v) {
		if c.hasPreset(item.content) {
			d.fault(item.place, "named twice")
		} else if err := c.usePreset(item.content); err != nil {
			d.fault(item.place, "%v", err)
		}
	}
}

// someText reads a string that is not empty.
func (d *document) someText(v *value, want string) (s string, ok bool) {
	if v.kind != unstable.String || strings.TrimSpace(v.content) == "" {
		d.fault(v.place, "want %s", want)
		return "", false
	}
	return v.content, true
}

// strings reads an array of strings.
func (d *document) strings(v *value) (all []*value) {
	if v.kind != unstable.Array {
		d.fault(v.place, "want a list of strings")
		return nil
	}
	for _, item := range v.items {
		if _, ok := d.someText(item, "a string that says something"); ok {
			all = append(all, item)
		}
	}
	return all
}

// someStrings reads an array of strings that is not empty: for a list that would be left out to mean all, an empty one
// says nothing that we could be sure of.
func (d *document) someStrings(v *value) []*value {
	if v.kind == unstable.Array && len(v.items) == 0 {
		d.fault(v.place, "want at least one")
	}
	return d.strings(v)
}

func (d *document) patterns(v *value) (all []watch.Pattern) {
	for _, item := range d.strings(v) {
		all = append(all, watch.NewPattern(item.content))
	}
	return all
}

func (d *document) duration(v *value, least time.Duration, into *time.Duration) {
	got, err := time.ParseDuration(v.content)
	switch {
	case v.kind != unstable.String || err != nil:
		d.fault(v.place, `want a duration such as "30s"`)
	case got < least && least > 0:
		d.fault(v.place, "want a duration above zero")
	case got < least:
		d.fault(v.place, "want a duration, not a negative one")
	case got > longest:
		d.fault(v.place, "want a duration below a hundred years")
	default:
		*into = got
	}
}

func (d *document) number(v *value, least int, into *int) {
	got, err := strconv.ParseInt(strings.TrimPrefix(v.text, "+"), 0, 64)
	if v.kind != unstable.Integer || err != nil || got < int64(least) || got > math.MaxInt32 {
		d.fault(v.place, "want a whole number from %d to %d", least, math.MaxInt32)
		return
	}
	*into = int(got)
}

// yes reads what can only be true: false is said by leaving the key out.
func (d *document) yes(v *value) bool {
	if v.kind != unstable.Bool || v.text != "true" {
		d.fault(v.place, "want true, or leave it out")
		return false
	}
	return true
}

func (d *document) host(v *value, into *string) {
	const want = "the URL of an engine, such as unix:///var/run/docker.sock"
	host, ok := d.someText(v, want)
	if ok && docker.CheckHost(host) != nil {
		d.fault(v.place, "want "+want)
		return
	}
	*into = host
}
