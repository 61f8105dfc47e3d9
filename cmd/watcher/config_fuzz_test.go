package main

import (
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// FuzzParseConfig: what is taken makes sense, and what is not is told with a word why.
func FuzzParseConfig(f *testing.F) {
	for _, text := range []string{
		"",
		"[docker]\nhost = \"unix:///run/docker.sock\"\n",
		"[scan]\ninterval = \"30s\"\ngrace = \"2s\"\n",
		"[retry]\nattempts = 8\nbase = \"1s\"\ncap = \"5m\"\n",
		"[alarm]\nsandboxes = 10\n[brake]\nburst = 20\n",
		"[retry]\nattempts = 0\n",
		"[retry]\nbase = \"1h\"\n",
		"[scan]\ninterval = \"-1s\"\n",
		"[scan]\nintervall = \"1s\"\n",
		"[scan]\ninterval = 30\n",
		"[brake]\nburst = -1\n",
		"[alarm]\nsandboxes = 99999999999999999999\n",
		"a = [",
		"\xff",
		"[docker]\n[docker]\n",
		"retry.attempts = 3\n",
		"scan = 3\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig("watcher.toml", text)
		if err != nil {
			if c != nil {
				t.Fatalf("%q is refused, and yet it is %+v", text, c)
			}
			if !strings.HasPrefix(err.Error(), "watcher.toml:") {
				t.Fatalf("%q is refused without its name: %v", text, err)
			}
			return
		}
		pol := c.policy()
		interval, err := c.Scan.Interval.MarshalText()
		if every, parseErr := time.ParseDuration(string(interval)); err != nil || parseErr != nil || every <= 0 {
			t.Fatalf("%q is taken as a scan every %s", text, interval)
		}
		switch {
		case pol.Attempts < 1, pol.Alarm < 1, pol.Burst < 0, pol.Base <= 0, pol.Cap < pol.Base, pol.Grace <= 0:
			t.Fatalf("%q is taken as %+v", text, c)
		}
		written, err := toml.Marshal(c)
		if err != nil {
			t.Fatalf("%q is taken, and cannot be written: %v", text, err)
		}
		again, err := parseConfig("watcher.toml", written)
		if err != nil || *again != *c {
			t.Fatalf("%q is taken as %+v, written as %q and taken as %+v (%v)", text, c, written, again, err)
		}
	})
}
