package gomicrovm

import (
	"slices"
	"strings"
	"testing"
	"time"

	"watcher/watch"
)

const (
	stateOfGoMicroVM = `{
  "version": 1,
  "active": true,
  "name": "bbox-claude-code-src-1a2b3c4d",
  "image": "registry.example/stacklok/brood-box/claude-code:latest",
  "cpus": 2,
  "memory_mb": 4096,
  "pid": 4242,
  "created_at": "2026-01-02T03:04:05.678901234Z"
}`
	stateOfStopped = `{"version":1,"active":false,"name":"x","image":"","cpus":2,"memory_mb":4096,"created_at":"0001-01-01T00:00:00Z"}`
)

func TestState(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	for _, tt := range []struct {
		text string
		want state
	}{
		{stateOfGoMicroVM, state{true, "registry.example/stacklok/brood-box/claude-code:latest", 4242, created}},
		{stateOfStopped, state{}},
		{`{"version":1,"active":true}`, state{Active: true}},
		{`{"version":1,"active":true,"pid":0}`, state{Active: true}},
		{`{"version":1,"active":true,"pid":4194304,"pid_start_time":"x","more":{"version":[2,{"pid":1}]}}`, state{Active: true, PID: watch.MaxPID}},
		{" \n{\"version\":1,\"active\":true,\"pid\":2}\n", state{Active: true, PID: 2}},
	} {
		if got, err := parseState([]byte(tt.text)); err != nil || got != tt.want {
			t.Errorf("%s: %+v (%v), want %+v", tt.text, got, err, tt.want)
		}
	}
}

// TestStateRefuses guards G2.
func TestStateRefuses(t *testing.T) {
	for _, text := range []string{
		"", " ", "{", "null", "[]", "1", `"x"`, stateOfGoMicroVM[:len(stateOfGoMicroVM)-1], stateOfGoMicroVM[:40], stateOfGoMicroVM + "x", stateOfGoMicroVM + "{}",
		"\xef\xbb\xbf" + stateOfStopped, `{"version":1,"active":true,"image":"` + "\xff" + `"}`,
		`{}`, `{"version":1}`, `{"active":true}`, `{"version":2,"active":true}`, `{"version":"1","active":true}`, `{"version":1.5,"active":true}`,
		`{"version":1,"active":1}`, `{"version":1,"active":"true"}`, `{"version":1,"active":null}`, `{"version":null,"active":true}`,
		`{"version":1,"active":true,"pid":1}`, `{"version":1,"active":true,"pid":-1}`, `{"version":1,"active":true,"pid":4194305}`,
		`{"version":1,"active":true,"pid":2147483648}`, `{"version":1,"active":true,"pid":4294967298}`, `{"version":1,"active":true,"pid":18446744073709551618}`,
		`{"version":1,"active":true,"pid":"4242"}`, `{"version":1,"active":true,"pid":null}`, `{"version":1,"active":true,"pid":42.5}`, `{"version":1,"active":true,"pid":[2]}`,
		`{"version":1,"active":true,"pid":4242,"pid":4343}`, `{"version":1,"active":true,"pid":4242,"PID":4343}`, `{"version":1,"active":false,"Active":true}`,
		`{"version":1,"active":true,"x":1,"x":2}`, `{"version":1,"active":true,"created_at":"yesterday"}`,
		strings.Repeat(`{"version":`, 20000),
	} {
		if got, err := parseState([]byte(text)); err == nil {
			t.Errorf("%.80q: %+v", text, got)
		}
	}
}

func FuzzState(f *testing.F) {
	for _, text := range []string{stateOfGoMicroVM, stateOfStopped, `{"version":1,"active":true,"pid":1}`, "{", ""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseState(text)
		if err != nil && s != (state{}) {
			t.Errorf("%+v beside %v", s, err)
		}
		if s.PID != 0 && checkPID(s.PID) != nil {
			t.Errorf("PID %d", s.PID)
		}
	})
}

func TestSentinel(t *testing.T) {
	for text, want := range map[string]sentinel{
		"4242\n/home/ann/bin/bbox":     {4242, "/home/ann/bin/bbox"},
		"4242\n/home/ann/bin/bbox\n":   {4242, "/home/ann/bin/bbox"},
		"4242\n/home/an n/b in/bbox":   {4242, "/home/an n/b in/bbox"},
		"4242":                         {4242, ""},
		"4242\n":                       {4242, ""},
		"2\n/bbox":                     {2, "/bbox"},
		"4194304\n/usr/bin/bbox":       {watch.MaxPID, "/usr/bin/bbox"},
		"4242\n/bin/bbox (deleted)":    {4242, "/bin/bbox (deleted)"},
		"4242\n/h\u00f6me/\xff/bin/bb": {4242, "/h\u00f6me/\xff/bin/bb"},
	} {
		if got, err := parseSentinel([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v (%v), want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "\n", "0", "1", "-1", "+4242", "04242", " 4242", "4242 ", "4242\r\n/bin/bbox", "4194305", "2147483648", "18446744073709551618", "0x10", "4_2", "42.0", "x", "٤٢",
		"4242\nbbox", "4242\n\n", "4242\n/bin/bbox\n/bin/x", "4242\n/bin\x00/bbox", "4242\n ", "\n4242", "/bin/bbox\n4242",
	} {
		if got, err := parseSentinel([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzSentinel(f *testing.F) {
	for _, text := range []string{"4242\n/home/ann/bin/bbox", "4242", "1", "4242\nx"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseSentinel(text)
		if (err == nil) != (checkPID(s.PID) == nil) || s.File != "" && s.File[0] != '/' {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

func TestRunnerArguments(t *testing.T) {
	const vm = "/home/ann/.config/broodbox/vms/x"
	for _, tt := range []struct {
		cmdline string
		want    []string
		fails   bool
	}{
		{
			"/bin/go-microvm-runner\x00{\"root_path\":\"" + vm + "/data/rootfs-work\",\"net_sock_path\":\"" + vm + "/data/hosted-net.sock\",\"console_log_path\":\"" + vm + "/data/console.log\"}\x00",
			[]string{vm + "/data/console.log", vm + "/data/hosted-net.sock", vm + "/data/rootfs-work"},
			false,
		},
		// What it shows to its guest is the user's, and not where it lives.
		{"go-microvm-runner\x00{\"root_path\":\"/cache/x\",\"virtiofs_mounts\":[{\"tag\":\"workspace\",\"path\":\"" + vm + "\"}]}\x00", []string{"/cache/x"}, false},
		{"go-microvm-runner\x00{\"root_path\":\"" + vm + "/../y/data\",\"console_log_path\":\"console.log\"}\x00", []string{"/home/ann/.config/broodbox/vms/y/data"}, false},
		{"go-microvm-runner\x00{}\x00", nil, false},
		{"go-microvm-runner\x00", nil, true},
		{"", nil, true},
		{"go-microvm-runner\x00{\x00", nil, true},
		{"go-microvm-runner\x00[]\x00", nil, true},
		{"go-microvm-runner\x00{\"root_path\":1}\x00", nil, true},
		{"go-microvm-runner\x00{}\x00more\x00", nil, true},
		{"go-microvm-runner --config {}\x00", nil, true},
	} {
		got, err := parseRunner([]byte(tt.cmdline))
		if !slices.Equal(got, tt.want) || (err != nil) != tt.fails {
			t.Errorf("%q: %q (%v)", tt.cmdline, got, err)
		}
	}
}

func FuzzRunner(f *testing.F) {
	f.Add([]byte("go-microvm-runner\x00{\"root_path\":\"/x/../y\"}\x00"))
	f.Fuzz(func(t *testing.T, cmdline []byte) {
		files, _ := parseRunner(cmdline)
		for _, file := range files {
			if file[0] != '/' || strings.Contains(file+"/", "/../") {
				t.Errorf("%q", file)
			}
		}
	})
}

func TestNumbers(t *testing.T) {
	const status = "Name:\tbbox\nTgid:\t4242\nPid:\t4242\nUid:\t1000\t1001\t1000\t1000\nNSpid:\t4242\t7\n"
	pids, uid, err := numbers([]byte(status))
	if err != nil || !slices.Equal(pids, []int{4242, 7}) || uid != 1000 {
		t.Errorf("%v of %d (%v)", pids, uid, err)
	}
	for _, text := range []string{"", "NSpid:\t1\n", "Uid:\t1\t1\t1\t1\n", "NSpid:\tx\nUid:\t1\t1\t1\t1\n", "NSpid:\t1\nUid:\t1\n", "NSpid:\t1\nUid:\t-1\t1\t1\t1\n"} {
		if _, _, err := numbers([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if !isThread([]byte(status), 4243) || isThread([]byte(status), 4242) || isThread(nil, 4242) {
		t.Error("a thread is not told from a process")
	}
}

func TestWithin(t *testing.T) {
	for _, tt := range []struct {
		file, folder string
		want         bool
	}{
		{"/vms/a/data", "/vms/a", true}, {"/vms/a", "/vms/a", false}, {"/vms/ab/data", "/vms/a", false}, {"/x", "/", true}, {"/vms", "/vms/a", false},
	} {
		if got := within(tt.file, tt.folder); got != tt.want {
			t.Errorf("%s in %s: %v", tt.file, tt.folder, got)
		}
	}
	if !sameFile("/bin/bbox (deleted)", "/bin/bbox") || !sameFile("/bin//bbox", "/bin/bbox") || sameFile("/bin/bbox2", "/bin/bbox") || sameFile("/x/bbox", "/bin/bbox") {
		t.Error("an executable is not recognised")
	}
}
