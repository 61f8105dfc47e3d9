package firecracker

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/watch"
)

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	ok(t, err)
	return n
}

// begin starts a process that waits to be ended.
func begin(t *testing.T, attr *syscall.SysProcAttr) (p watch.Process, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	ok(t, err)
	ok(t, cmd.Start())
	end = func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	return identity(t, cmd.Process.Pid), end
}

// recordOf is a record as a runner writes it.
func recordOf(p watch.Process, base string) map[string]any {
	return map[string]any{
		"boot_id": p.Boot, "pid": p.PID, "starttime": p.Start, "euid": os.Geteuid(), "base_dir": base,
		"config_path": "/etc/runner.yaml", "runner_name": "r", "runner_group": "vm0/test", "subcommand": "start",
		"started_at": "2026-01-01T00:00:00.000Z",
	}
}

func writeRecord(t *testing.T, dir string, fields map[string]any) string {
	t.Helper()
	b, err := json.MarshalIndent(fields, "", "  ")
	ok(t, err)
	file := filepath.Join(dir, fmt.Sprintf("%v-%v.json", fields["pid"], fields["starttime"]))
	ok(t, os.WriteFile(file, b, 0o600))
	return file
}

const otherBoot = "11111111-2222-3333-4444-555555555555"

func TestRecordLife(t *testing.T) {
	host := theHost(t)
	for name, tt := range map[string]struct {
		change func(t *testing.T, r map[string]any, p watch.Process, end func())
		want   watch.Life
		nobody bool // no owner comes with it
	}{
		"it lives": {func(*testing.T, map[string]any, watch.Process, func()) {}, watch.Alive, false},
		"it is dead": {
			func(_ *testing.T, _ map[string]any, _ watch.Process, end func()) { end() }, watch.Exited, false,
		},
		"it lived before the latest boot": {
			func(_ *testing.T, r map[string]any, _ watch.Process, _ func()) { r["boot_id"] = otherBoot }, watch.Exited, false,
		},
		"its PID is another's": {
			func(_ *testing.T, r map[string]any, p watch.Process, _ func()) { r["starttime"] = p.Start + 1 }, watch.Exited, false,
		},
		"it is another user's": {
			func(t *testing.T, r map[string]any, _ watch.Process, _ func()) { r["euid"] = 12345 }, watch.Unknown, false,
		},
		"it is of another base folder": {
			func(_ *testing.T, r map[string]any, _ watch.Process, _ func()) { r["base_dir"] = "/elsewhere" }, watch.Exited, true,
		},
		"it has the base folder by another name": {
			func(t *testing.T, r map[string]any, _ watch.Process, _ func()) {
				link := filepath.Join(realDir(t), "link")
				ok(t, os.Symlink(r["base_dir"].(string), link))
				r["base_dir"] = link + "/./"
			}, watch.Alive, false,
		},
		"it has a base folder that cannot be looked at": {
			func(t *testing.T, r map[string]any, _ watch.Process, _ func()) {
				loop := filepath.Join(realDir(t), "loop")
				ok(t, os.Symlink(loop, loop))
				r["base_dir"] = loop
			}, watch.Unknown, false,
		},
		"it has fields of a later version": {
			func(_ *testing.T, r map[string]any, _ watch.Process, _ func()) { r["later"] = map[string]any{"x": 1} }, watch.Alive, false,
		},
		"it is of an older version": {
			func(_ *testing.T, r map[string]any, _ watch.Process, _ func()) { delete(r, "subcommand") }, watch.Alive, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, base := realDir(t), realDir(t)
			p, end := begin(t, nil)
			r := recordOf(p, base)
			tt.change(t, r, p, end)
			writeRecord(t, dir, r)
			var want watch.Process
			if !tt.nobody {
				want = watch.Process{PID: p.PID, Start: uint64(r["starttime"].(uint64)), Boot: r["boot_id"].(string)}
			}
			life, owner, detail := recordLife(filepath.Join(dir, "*.json"), base, host)
			if life != tt.want || owner != want || life == watch.Unknown && detail == "" {
				t.Errorf("recordLife = %v, %v, %q; want %v, %v", life, owner, detail, tt.want, want)
			}
		})
	}
}

// TestZombieRecord: an owner that nobody has waited for yet is dead.
func TestZombieRecord(t *testing.T) {
	dir, base := realDir(t), realDir(t)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	ok(t, err)
	ok(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() })
	p := identity(t, cmd.Process.Pid)
	writeRecord(t, dir, recordOf(p, base))
	handle, err := theHost(t).Open(p.PID)
	ok(t, err)
	defer handle.Close()
	ok(t, in.Close())
	ok(t, handle.Wait())
	if life, owner, detail := recordLife(dir+"/*.json", base, theHost(t)); life != watch.Exited || owner != p {
		t.Errorf("recordLife = %v, %v, %q, want that %v is dead", life, owner, detail, p)
	}
}

// TestSeveralRecords: one that lives decides, then one that nobody knows about.
func TestSeveralRecords(t *testing.T) {
	host, dir, base := theHost(t), realDir(t), realDir(t)
	glob := filepath.Join(dir, "*.json")
	check := func(want watch.Life, who watch.Process) {
		t.Helper()
		if life, owner, detail := recordLife(glob, base, host); life != want || owner != who {
			t.Errorf("recordLife = %v, %v, %q, want %v, %v", life, owner, detail, want, who)
		}
	}
	check(watch.Exited, watch.Process{})
	first, end := begin(t, nil)
	end()
	writeRecord(t, dir, recordOf(first, base))
	check(watch.Exited, first)
	later := first
	later.Start++
	second := writeRecord(t, dir, recordOf(later, base))
	check(watch.Exited, later)
	ok(t, os.WriteFile(filepath.Join(dir, "half.json"), []byte("{"), 0o600))
	check(watch.Unknown, watch.Process{})
	lives, _ := begin(t, nil)
	writeRecord(t, dir, recordOf(lives, base))
	check(watch.Alive, lives)
	ok(t, os.Remove(second))
	check(watch.Alive, lives)
}

func TestRecordsThatCannotBeRead(t *testing.T) {
	host, base := theHost(t), realDir(t)
	p, _ := begin(t, nil)
	good, err := json.Marshal(recordOf(p, base))
	ok(t, err)
	for name, prepare := range map[string]func(t *testing.T, dir string) (glob string){
		"a link": func(t *testing.T, dir string) string {
			target := filepath.Join(t.TempDir(), "target")
			ok(t, os.WriteFile(target, good, 0o600))
			ok(t, os.Symlink(target, dir+"/1-1.json"))
			return dir + "/*.json"
		},
		"a FIFO": func(t *testing.T, dir string) string {
			ok(t, unix.Mkfifo(dir+"/1-1.json", 0o600))
			return dir + "/*.json"
		},
		"a folder": func(t *testing.T, dir string) string {
			ok(t, os.Mkdir(dir+"/1-1.json", 0o700))
			return dir + "/*.json"
		},
		"one that is too large": func(t *testing.T, dir string) string {
			ok(t, os.WriteFile(dir+"/1-1.json", append(good, make([]byte, maxRecord)...), 0o600))
			return dir + "/*.json"
		},
		"one of 1 GiB": func(t *testing.T, dir string) string {
			ok(t, os.WriteFile(dir+"/1-1.json", good, 0o600))
			ok(t, os.Truncate(dir+"/1-1.json", 1<<30))
			return dir + "/*.json"
		},
		"one of a user who cannot speak for it": func(t *testing.T, dir string) string {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			ok(t, os.WriteFile(dir+"/1-1.json", good, 0o600))
			ok(t, os.Chown(dir+"/1-1.json", 12345, 12345))
			return dir + "/*.json"
		},
		"no folder": func(_ *testing.T, dir string) string { return dir + "/none/*.json" },
		"a file for a folder": func(t *testing.T, dir string) string {
			ok(t, os.WriteFile(dir+"/f", nil, 0o600))
			return dir + "/f/*.json"
		},
		"a path that is not whole": func(*testing.T, string) string { return "*.json" },
		"one that is empty": func(t *testing.T, dir string) string {
			ok(t, os.WriteFile(dir+"/1-1.json", nil, 0o600))
			return dir + "/*.json"
		},
		"a half of one": func(t *testing.T, dir string) string {
			ok(t, os.WriteFile(dir+"/1-1.json", good[:len(good)/2], 0o600))
			return dir + "/*.json"
		},
		"one in a folder of a glob": func(t *testing.T, dir string) string {
			ok(t, os.WriteFile(dir+"/1-1.json", []byte("{}"), 0o600))
			return filepath.Dir(dir) + "/*/*.json"
		},
	} {
		t.Run(name, func(t *testing.T) {
			if life, owner, detail := recordLife(prepare(t, realDir(t)), base, host); life != watch.Unknown || owner != (watch.Process{}) || detail == "" {
				t.Errorf("recordLife = %v, %v, %q, want %v and why", life, owner, detail, watch.Unknown)
			}
		})
	}
}

func TestRecordFiles(t *testing.T) {
	dir := realDir(t)
	for _, file := range []string{"a/1.json", "a/.2.json.tmp", "a/.3.json", "b/4.json", "b/5.txt", "c"} {
		ok(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o700))
		ok(t, os.WriteFile(filepath.Join(dir, file), nil, 0o600))
	}
	for glob, want := range map[string]string{
		"a/*.json":  "a/1.json",
		"a/.*":      "a/.2.json.tmp a/.3.json",
		"*/*.json":  "a/1.json b/4.json",
		"?/4.json":  "a/4.json b/4.json c/4.json",
		"b/5.txt":   "b/5.txt",
		"b/none":    "b/none",
		"x*/*.json": "",
	} {
		files, err := recordFiles(filepath.Join(dir, glob))
		ok(t, err)
		for i := range files {
			files[i] = strings.TrimPrefix(files[i], dir+"/")
		}
		if got := strings.Join(files, " "); got != want {
			t.Errorf("%s names %q, want %q", glob, got, want)
		}
	}
}

func TestParseRecord(t *testing.T) {
	good := recordOf(watch.Process{PID: 4242, Start: 918273, Boot: otherBoot}, "/base")
	b, err := json.Marshal(good)
	ok(t, err)
	if r, err := parseRecord(b); err != nil || r != (record{otherBoot, 4242, 918273, uint32(os.Geteuid()), "/base"}) {
		t.Errorf("parseRecord = %+v, %v", r, err)
	}
	for _, bad := range []string{
		"", "null", "[]", "{}", "1", string(b) + "{}", string(b) + "x", string(b[:len(b)-1]), "[" + string(b) + "]",
		`{"pid": 1, ` + string(b[1:]), // twice
	} {
		if r, err := parseRecord([]byte(bad)); err == nil {
			t.Errorf("%s is %+v", bad, r)
		}
	}
	for field, values := range map[string][]any{
		"boot_id":   {nil, 1, "", "x", strings.ToUpper(otherBoot[:8]) + "G" + otherBoot[9:], otherBoot + "\n"},
		"pid":       {nil, 0, -1, 1.5, "4242", 1 << 31, 1<<22 + 1, true},
		"starttime": {nil, 0, -1, "1", 1.5},
		"euid":      {nil, -1, "0", 1 << 32, 1<<32 - 1},
		"base_dir":  {nil, 1, "", "base", "./base", "/b\x00"},
	} {
		for _, value := range values {
			r := maps.Clone(good)
			r[field] = value
			b, err := json.Marshal(r)
			ok(t, err)
			if parsed, err := parseRecord(b); err == nil {
				t.Errorf("with %s %v it is %+v", field, value, parsed)
			}
		}
		r := maps.Clone(good)
		r[strings.ToUpper(field)] = r[field]
		delete(r, field)
		b, err := json.Marshal(r)
		ok(t, err)
		if parsed, err := parseRecord(b); err == nil {
			t.Errorf("without %s it is %+v", field, parsed)
		}
	}
}

func FuzzRecord(f *testing.F) {
	b, err := json.Marshal(recordOf(watch.Process{PID: 4242, Start: 918273, Boot: otherBoot}, "/base"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte(`{"pid":1e3}`))
	f.Add([]byte(`{"pid":1,"pid":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if r.PID < 1 || r.PID > 1<<22 || r.Start == 0 || len(r.Boot) != len(otherBoot) || !filepath.IsAbs(r.Base) {
			t.Errorf("%q is %+v", b, r)
		}
		var again struct {
			PID  int    `json:"pid"`
			Base string `json:"base_dir"`
		}
		if json.Unmarshal(b, &again) != nil {
			t.Errorf("%q is %+v here, and nothing to another reader", b, r)
		}
	})
}
