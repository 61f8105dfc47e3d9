package statedir_test

import (
	"testing"

	"watcher/platform/statedir"
)

func TestCheckFiles(t *testing.T) {
	for _, tt := range []struct {
		glob string
		ok   bool
	}{
		{"/tmp/kojuto-seccomp-*", true},
		{"/home/*/.clawbox/proxies/*", true},
		{"/root/.clawbox/proxies/*", true},
		{"/var/lib/agent/state", true},
		{"/tmp/[a-z]", true}, // a bracket is itself
		{"/tmp/?x", true},
		{"", false},
		{"tmp/x-*", false},
		{"~/x-*", false},
		{"/", false},
		{"/x", false},
		{"/*", false},
		{"/tmp/*", false},
		{"/home/*/*", false},
		{"/srv/a/?*/**", false},
		{"/srv/*/?", false},
		{"/tmp/x/", false},
		{"/tmp//x", false},
		{"/tmp/./x", false},
		{"/tmp/../etc/x", false},
		{"/tmp/x/..", false},
		{"/tmp/**/x", false},
		{"/tmp/x**", false},
		{"/tmp/x\x00y", false},
	} {
		if err := statedir.CheckFiles(tt.glob); (err == nil) != tt.ok {
			t.Errorf("CheckFiles(%q) = %v, want ok: %t", tt.glob, err, tt.ok)
		}
	}
}
