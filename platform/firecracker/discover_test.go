package firecracker

import (
	"path"
	"slices"
	"strings"
	"testing"

	"watcher/watch"
)

const (
	uuid  = "3f2b8c1e-5a77-4b0e-9c37-0d6f0b1a2c3d"
	older = "vm0-0123abcd"
)

// TestF1WhatIsAMicroVM: not who talks of the program, but who runs it.
func TestF1WhatIsAMicroVM(t *testing.T) {
	for _, tt := range []struct {
		program, exe, argv string // argv with | between
		runs, mentions     bool
	}{
		{"", "/usr/bin/firecracker", "/usr/bin/firecracker|--no-api", true, false},
		{"", "/usr/bin/firecracker (deleted)", "anything", true, false},
		{"", "/opt/firecracker-v1.7.0-x86_64", "firecracker|--no-api", true, false},
		{"", "/opt/firecracker-v1.7.0-x86_64", "/opt/firecracker-v1.7.0-x86_64", false, false},
		{"firecracker*", "/opt/firecracker-v1.7.0-x86_64", "/opt/firecracker-v1.7.0-x86_64", true, false},
		{"", "/firecracker", "/firecracker|--id=x", true, false},
		{"", "", "firecracker", true, false},
		{"", "/usr/bin/sudo", "sudo|ip|netns|exec|n|sudo|-u|vm|/usr/bin/firecracker|--no-api", false, true},
		{"", "/usr/sbin/ip", "ip|netns|exec|n|firecracker", false, true},
		{"", "/usr/bin/bash", "bash|-c|mount x && exec ip netns exec n sudo -u vm /usr/bin/firecracker --api-sock s", false, true},
		{"", "/usr/bin/vim", "vim|firecracker.md", false, true},
		{"", "/usr/bin/jailer", "jailer|--exec-file|/usr/bin/firecracker", false, true},
		{"", "/usr/bin/my-firecracker", "my-firecracker", false, false},
		{"", "", "", false, false},
		{"qemu-system-*", "/usr/bin/qemu-system-x86_64", "qemu-system-x86_64|-M|microvm", true, false},
		{"qemu-system-*", "/usr/bin/timeout", "timeout|9|qemu-system-x86_64|-M|microvm", false, true},
	} {
		var argv []string
		if tt.argv != "" {
			argv = strings.Split(tt.argv, "|")
		}
		p := programOf(&watch.Rule{Program: tt.program})
		if runs, mentions := p.runs(tt.exe, argv), p.mentions(argv); runs != tt.runs || mentions != tt.mentions {
			t.Errorf("program %q, %s %q: runs %t, mentions %t", tt.program, tt.exe, argv, runs, mentions)
		}
	}
}

var commandLines = []struct {
	argv              string
	id, socket, confg string
}{
	{"firecracker|--id|x|--api-sock|/a/api.sock", "x", "/a/api.sock", ""},
	{"firecracker|--id=x|--api-sock=/a/api.sock", "x", "/a/api.sock", ""},
	{"firecracker|--id=|--config-file|c", "", "", "c"},
	{"firecracker|--id", "", "", ""},
	{"firecracker|--identity=x|--no-api", "", "", ""},
	{"firecracker|--|--id|x", "", "", ""},
	{"firecracker|--id|a|--id|a", "a", "", ""},
	{"firecracker|--id|a|--id|b", "", "", ""},
	{"firecracker|--config-file|--id|--id|x", "x", "", ""},
	{"--id|x", "", "", ""},
	{"", "", "", ""},
}

func TestOption(t *testing.T) {
	for _, tt := range commandLines {
		argv := strings.Split(tt.argv, "|")
		if id, socket, config := option(argv, "--id"), option(argv, "--api-sock"), option(argv, "--config-file"); id != tt.id || socket != tt.socket || config != tt.confg {
			t.Errorf("%q: id %q, socket %q, config %q", argv, id, socket, config)
		}
	}
}

func FuzzHomes(f *testing.F) {
	for _, tt := range commandLines {
		f.Add("/var/lib/runner/workspaces/"+uuid+" (deleted)", tt.argv)
	}
	f.Add("/", "firecracker|--api-sock|/b/workspaces/"+older+"/api.sock")
	f.Add("/b/workspaces/../x", "firecracker|--config-file|/b/workspaces/"+older+"/../../x/config.json")
	f.Fuzz(func(t *testing.T, cwd, line string) {
		for _, h := range homes(cwd, strings.Split(line, "|")) {
			if !idFormat.MatchString(h.id) || h.dir != path.Join(h.base, workspaces, h.id) || path.Clean(h.dir) != h.dir || !path.IsAbs(h.base) || h.base == "/" {
				t.Errorf("%q, %q: %+v", cwd, line, h)
			}
			if got, ok := workspaceAt(h.dir, false); !ok || got != h {
				t.Errorf("%+v and %+v", h, got)
			}
		}
		if h, of, ok := jailAt(cwd); ok && (path.Join(h.base, of, h.id, "root") != cwd || !idFormat.MatchString(h.id)) {
			t.Errorf("%q: %+v, %q", cwd, h, of)
		}
		_ = netnsFormat.MatchString(cwd)
	})
}

func TestHomes(t *testing.T) {
	for _, tt := range []struct {
		cwd, argv string
		want      []string // of workspaces
	}{
		{"/b/workspaces/" + uuid, "", []string{"/b/workspaces/" + uuid}},
		{"/b/workspaces/" + uuid + " (deleted)", "", []string{"/b/workspaces/" + uuid}},
		{"/b/c/workspaces/my-vm", "", []string{"/b/c/workspaces/my-vm"}},
		{"/b/workspaces/" + uuid + "/deeper", "", nil},
		{"/workspaces/" + uuid, "", nil}, // that is in no base folder
		{"/b/workspaces", "", nil},
		{"/b/workspaces/.hidden", "", nil},
		{"/b/workspaces/a b", "", nil},
		{"workspaces/x", "", nil},
		{"/", "firecracker|--api-sock|/b/workspaces/" + older + "/api.sock", []string{"/b/workspaces/" + older}},
		{"/", "firecracker|--config-file=/b/workspaces/" + older + "/config.json", []string{"/b/workspaces/" + older}},
		// A later one is known by its folder alone: these files may be anywhere.
		{"/", "firecracker|--api-sock|/b/workspaces/" + uuid + "/api.sock", nil},
		{"/", "firecracker|--api-sock|/b/workspaces/x/../" + older + "/api.sock", nil},
		{"/", "firecracker|--api-sock|workspaces/" + older + "/api.sock", nil},
	} {
		var got []string
		for _, h := range homes(tt.cwd, strings.Split(tt.argv, "|")) {
			got = append(got, h.dir)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q %q: %q, want %q", tt.cwd, tt.argv, got, tt.want)
		}
	}
}

func TestJails(t *testing.T) {
	h, of, ok := jailAt("/srv/jailer/firecracker/my-vm/root")
	if want := (home{id: "my-vm", base: "/srv/jailer", dir: "/srv/jailer/firecracker/my-vm", jail: true}); !ok || h != want || of != "firecracker" {
		t.Errorf("%+v, %q, %t", h, of, ok)
	}
	for _, root := range []string{
		"/srv/jailer/firecracker/my-vm", "/srv/jailer/firecracker/../root", "/firecracker/my-vm/root", "srv/jailer/firecracker/my-vm/root",
		"/srv/jailer/firecracker/a b/root", "/root", "/", "",
	} {
		if h, of, ok := jailAt(root); ok {
			t.Errorf("%q: %+v, %q", root, h, of)
		}
	}
}

// TestIDs: the same ID in two folders is two microVMs.
func TestIDs(t *testing.T) {
	a, _ := workspaceAt("/a/workspaces/"+uuid, false)
	b, _ := workspaceAt("/b/workspaces/"+uuid, false)
	if a.watchID() == b.watchID() {
		t.Errorf("both are %s", a.watchID())
	}
	name, sum, _ := strings.Cut(a.watchID().Name, ".")
	if name != uuid || len(sum) != 8 || a.watchID().Kind != watch.Firecracker {
		t.Errorf("ID %s", a.watchID())
	}
}

// TestF6OnlyWhatARuleNames: a record may say anything.
func TestF6OnlyWhatARuleNames(t *testing.T) {
	rule := watch.Rule{BaseDirs: []string{"/b", "/home/*/vms/"}, JailDirs: []string{"/srv/jailer"}, SocketDir: "/run/vm0/sock"}
	for _, tt := range []struct {
		kind, name string
		want       bool
	}{
		{Workspace, "/b/workspaces/" + uuid, true},
		{Workspace, "/home/u/vms/workspaces/" + uuid, true},
		{Workspace, "/home/u/v/vms/workspaces/" + uuid, false},
		{Workspace, "/home/.u/vms/workspaces/" + uuid, false},
		{Workspace, "/c/workspaces/" + uuid, false},
		{Workspace, "/b/workspaces/" + older, false}, // another's
		{Workspace, "/b/workspaces", false},
		{Workspace, "/b/workspaces/" + uuid + "/..", false},
		{Workspace, "/b/workspaces/../workspaces/" + uuid, false},
		{Workspace, "/b", false},
		{Workspace, "/", false},
		{Workspace, "", false},
		{Workspace, "/srv/jailer/firecracker/" + uuid, true},
		{Workspace, "/srv/jailer/other/" + uuid, false},
		{Workspace, "/srv/jailer/firecracker/" + uuid + "/root", false},
		{Sockets, "/run/vm0/sock/" + uuid, true},
		{Sockets, "/run/vm0/sock", false},
		{Sockets, "/run/vm0/sock/" + older, false},
		{Sockets, "/run/vm0/sock/" + uuid + "/vsock", false},
		{Netns, "vm0-ns-00-1f", true},
		{Netns, "vm0-ns-00-1f/../x", false},
		{Netns, "default", false},
		{Netns, "", false},
		{Cgroup, "/vm0/" + uuid, true},
		{Cgroup, "/system.slice/vm0-" + uuid + ".scope", true},
		{Cgroup, "/system.slice/firecracker@" + uuid + ".service", true},
		{Cgroup, "/system.slice/runner.service", false},
		{Cgroup, "/", false},
		{"volume", "/b/workspaces/" + uuid, false},
		{"", "", false},
	} {
		if got := checkLeaf(&rule, uuid, watch.Leaf{Kind: tt.kind, Name: tt.name}); got != tt.want {
			t.Errorf("%s %q: %t", tt.kind, tt.name, got)
		}
	}
	if checkLeaf(&rule, "1", watch.Leaf{Kind: Cgroup, Name: "/user.slice/session-1.scope"}) {
		t.Error("a login session passes for a microVM")
	}
	rule.Remove = []string{Netns}
	if checkLeaf(&rule, uuid, watch.Leaf{Kind: Workspace, Name: "/b/workspaces/" + uuid}) {
		t.Error("a leaf passes that the rule does not have removed")
	}
	rule.Remove, rule.Match.Name = nil, watch.NewPattern("vm0-*")
	if checkLeaf(&rule, uuid, watch.Leaf{Kind: Workspace, Name: "/b/workspaces/" + uuid}) {
		t.Error("a microVM passes that the rule does not mean")
	}
}

func TestRefersTo(t *testing.T) {
	const dir = "/run/sock/vm0-0123abcd"
	for arg, want := range map[string]bool{
		dir:                               true,
		"--api-sock=" + dir + "/api.sock": true,
		"mount " + dir + " x":             true,
		dir + "ef":                        false,
		dir + "-2/api.sock":               false,
		dir + "ef " + dir:                 true,
		"/run/sock":                       false,
		"":                                false,
	} {
		if got := refersTo([]string{"bash", arg}, dir); got != want {
			t.Errorf("%q: %t", arg, got)
		}
	}
}
