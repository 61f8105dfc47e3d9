package process

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// cmdlines are contents of /proc/PID/cmdline and the arguments in them.
var cmdlines = []struct {
	content string
	argv    []string
}{
	{"", nil}, // a kernel thread, a zombie, a process in the midst of its exec
	{"\x00", []string{""}},
	{"agent\x00", []string{"agent"}},
	{"-bash\x00", []string{"-bash"}},
	{"node\x00/srv/server.js\x00--port\x0080\x00", []string{"node", "/srv/server.js", "--port", "80"}},
	{"agent\x00\x00\x00x\x00", []string{"agent", "", "", "x"}},
	{"agent\x00x\x00\x00", []string{"agent", "x", ""}},
	{"nginx: master process /usr/sbin/nginx", []string{"nginx: master process /usr/sbin/nginx"}}, // a title
	{"postgres: writer \x00\x00\x00", []string{"postgres: writer ", "", ""}},
	{"sh\x00-c\x00a b\nc\x00", []string{"sh", "-c", "a b\nc"}},
	{"\xff\xfe\x00\xc3\x28\x00", []string{"\xff\xfe", "\xc3\x28"}},
	{"agent\x00cut in the mid", []string{"agent", "cut in the mid"}},
}

func TestArgv(t *testing.T) {
	for _, tt := range cmdlines {
		if got := parseArgv([]byte(tt.content)); !slices.Equal(got, tt.argv) {
			t.Errorf("%q: %q, want %q", tt.content, got, tt.argv)
		}
	}
}

func FuzzArgv(f *testing.F) {
	for _, tt := range cmdlines {
		f.Add([]byte(tt.content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		argv := parseArgv(content)
		if (argv == nil) != (len(content) == 0) {
			t.Fatalf("%q: %q", content, argv)
		}
		for _, arg := range argv {
			if strings.Contains(arg, "\x00") {
				t.Errorf("%q: %q holds a NUL", content, arg)
			}
		}
		// Nothing is lost and nothing made up, but for the NUL at the end.
		if again := strings.Join(argv, "\x00"); again != string(content) && again+"\x00" != string(content) {
			t.Errorf("%q: %q", content, argv)
		}
	})
}

const (
	statOfShell  = "4242 (bash) S 4241 4242 4242 34816 4250 4194304 2345 6789 0 0 12 3 4 5 20 0 1 0 918273 8974336 1301 18446744073709551615 94 95 140 0 0 0 65536 3670020 1266777851 1 0 0 17 1 0 0 0 0 0 96 97 98 141 142 143 144 0\n"
	statOfKernel = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 6 0 0 20 0 1 0 1 0 0 18446744073709551615 0 0 0 0 0 0 0 2147483647 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
	statOfLeader = "77 (a) Z (b) S ) Z 1 77 77 0 -1 4228108 0 0 0 0 0 0 0 0 20 0 3 0 5000 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 1 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
	statOfReaped = "78 (x) X 1 78 78 0 -1 4228172 0 0 0 0 0 0 0 0 20 0 0 0 5001 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 1 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 9\n"
	statOfZombie = "78 (x) Z 1 78 78 0 -1 4228172 0 0 0 0 0 0 0 0 20 0 1 0 5001 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 1 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 9\n"
)

func TestStat(t *testing.T) {
	for _, tt := range []struct {
		content              string
		want                 stat
		kernel, dead, forked bool
	}{
		{content: statOfShell, want: stat{state: 'S', parent: 4241, group: 4242, session: 4242, flags: 4194304, threads: 1, start: 918273, envEnd: 144}},
		{content: statOfKernel, want: stat{state: 'S', flags: 2129984, threads: 1, start: 1}, kernel: true, forked: true},
		{content: statOfLeader, want: stat{state: 'Z', parent: 1, group: 77, session: 77, flags: 4228108, threads: 3, start: 5000}},
		{content: statOfReaped, want: stat{state: 'X', parent: 1, group: 78, session: 78, flags: 4228172, threads: 0, start: 5001}, forked: true},
		{content: statOfZombie, want: stat{state: 'Z', parent: 1, group: 78, session: 78, flags: 4228172, threads: 1, start: 5001}, dead: true, forked: true},
	} {
		got, err := parseStat([]byte(tt.content))
		if err != nil || got != tt.want || got.kernel() != tt.kernel || got.dead() != tt.dead || got.forked() != tt.forked {
			t.Errorf("%q: %+v (%v), kernel %t, dead %t, forked %t", tt.content, got, err, got.kernel(), got.dead(), got.forked())
		}
	}
}

func TestStatRefuses(t *testing.T) {
	for _, content := range []string{
		"",
		")",
		"4242 (bash) S",
		strings.Replace(statOfShell, " S ", " SS ", 1),
		strings.Replace(statOfShell, " 4241 ", " x ", 1),
		strings.Replace(statOfShell, " 4242 34816 ", " 0x4242 34816 ", 1),
		strings.Replace(statOfShell, "918273", "-1", 1),
		strings.Replace(statOfShell, "918273", "x", 1),
		strings.Replace(statOfShell, " 20 0 1 ", " 20 0 -1 ", 1),
		strings.Replace(statOfShell, " 20 0 1 ", " 20 0 18446744073709551615 ", 1),
		statOfShell[:strings.LastIndex(statOfShell, " 144")],
	} {
		if got, err := parseStat([]byte(content)); !errors.Is(err, errStat) || got != (stat{}) {
			t.Errorf("%q: %+v, %v", content, got, err)
		}
	}
}

func FuzzStat(f *testing.F) {
	for _, content := range []string{statOfShell, statOfKernel, statOfLeader, statOfZombie, "", "1 ()))"} {
		f.Add([]byte(content), []byte("name"))
	}
	f.Fuzz(func(t *testing.T, content, name []byte) {
		got, err := parseStat(content)
		if err != nil && got != (stat{}) || got.threads < 0 {
			t.Errorf("%q: %+v, %v", content, got, err)
		}
		// A process names itself, and must not be able to say more by that.
		rest := content[bytes.LastIndexByte(content, ')')+1:]
		named := slices.Concat([]byte("1 ("), name, []byte(")"), rest)
		if again, err2 := parseStat(named); again != got || (err == nil) != (err2 == nil) {
			t.Errorf("%q: %+v (%v), and with the name %q %+v (%v)", content, got, err, name, again, err2)
		}
	})
}

const (
	cgroupsOfHybrid = "12:cpu,cpuacct:/vm0/a\n1:name=systemd:/user.slice\n0::/vm0/a:b (deleted)\n"
	cgroupsOfV2     = "0::/system.slice/runner.service/vm\n"
)

func TestCgroups(t *testing.T) {
	for content, want := range map[string][]Cgroup{
		"":              nil,
		"0::/\n":        {{0, "", "/"}},
		cgroupsOfV2:     {{0, "", "/system.slice/runner.service/vm"}},
		cgroupsOfHybrid: {{12, "cpu,cpuacct", "/vm0/a"}, {1, "name=systemd", "/user.slice"}, {0, "", "/vm0/a:b (deleted)"}},
	} {
		if got, err := parseCgroups([]byte(content)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %+v (%v), want %+v", content, got, err, want)
		}
	}
	for _, content := range []string{"0::/", "\n", "0:/\n", "x::/\n", "-1::/\n", "0::x\n", "0::\n"} {
		if got, err := parseCgroups([]byte(content)); err == nil {
			t.Errorf("%q: %+v", content, got)
		}
	}
}

func FuzzCgroups(f *testing.F) {
	for _, content := range []string{cgroupsOfHybrid, cgroupsOfV2, "", "0::/"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := parseCgroups(content)
		if err != nil && got != nil {
			t.Errorf("%q: %+v, %v", content, got, err)
		}
		for _, c := range got {
			if c.Hierarchy < 0 || !strings.HasPrefix(c.Path, "/") || strings.Contains(c.Path, "\n") {
				t.Errorf("%q: %+v", content, c)
			}
		}
	})
}

func TestParseUser(t *testing.T) {
	for name, test := range map[string]struct {
		status string
		user   uint32
		fails  bool
	}{
		"root":                            {"Name:\tsh\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n", 0, false},
		"a user":                          {"Name:\tsh\nUid:\t1000\t1000\t1000\t1000\n", 1000, false},
		"a user of a set-user-ID program": {"Uid:\t1000\t0\t0\t0\n", 1000, false},
		"nobody's":                        {"Uid:\t4294967295\t4294967295\t4294967295\t4294967295\n", 4294967295, false},
		"a name that looks like it":       {"Name:\tUid:\t0\nUid:\t7\t7\t7\t7\n", 7, false},
		"none":                            {"Name:\tsh\n", 0, true},
		"too few":                         {"Uid:\t0\t0\n", 0, true},
		"no number":                       {"Uid:\tx\t0\t0\t0\n", 0, true},
		"too large":                       {"Uid:\t4294967296\t0\t0\t0\n", 0, true},
		"cut off":                         {"Uid:", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			user, err := parseUser([]byte(test.status))
			if user != test.user || (err != nil) != test.fails {
				t.Errorf("user %d, %v", user, err)
			}
		})
	}
}
