package gomicrovm_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/gomicrovm/gomicrovmtest"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

// deadPID is the PID of a process that was and is not.
func deadPID(t testing.TB) int {
	t.Helper()
	o := processtest.StartOwner(t)
	o.Kill()
	o.Wait()
	return o.PID()
}

func TestWhatTheRecordsSay(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	dead := deadPID(t)
	bystander := processtest.StartOwner(t) // older than every record
	record := func(folder, file string, content []byte) {
		path := filepath.Join(folder, file)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, content, 0o600))
	}
	sentinel := func(pid int) func(string) {
		return func(folder string) {
			record(folder, gomicrovmtest.Sentinel, fmt.Appendf(nil, "%d\n/home/ann/bin/bbox", pid))
		}
	}
	raw := func(text string) func(string) {
		return func(folder string) { record(folder, gomicrovmtest.Sentinel, []byte(text)) }
	}
	saved := func(active bool, pid int) func(string) {
		return func(folder string) { must(t, gomicrovmtest.WriteState(folder, active, pid)) }
	}
	text := func(state string) func(string) {
		return func(folder string) { record(folder, gomicrovmtest.State, []byte(state)) }
	}
	instead := func(file string, make func(path string) error) func(string) {
		return func(folder string) {
			path := filepath.Join(folder, file)
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, make(path))
		}
	}
	giant := func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<30)) }
	shadow := func(path string) error { return os.Symlink("/etc/shadow", path) }
	fifo := func(path string) error { return unix.Mkfifo(path, 0o600) }
	bound := func(path string) error {
		// Its path would be too long.
		back, err := os.Getwd()
		must(t, err)
		must(t, os.Chdir(filepath.Dir(path)))
		l, err := net.Listen("unix", filepath.Base(path))
		must(t, os.Chdir(back))
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	}
	folder := func(path string) error { return os.Mkdir(path, 0o755) }
	const (
		nobody  = "not there"
		unowned = ""
	)
	for i, tt := range []struct {
		name  string
		make  []func(folder string)
		lives string // with the rule of the preset, but that runners are left alone
		seed  string // with a rule that names only folders
	}{
		{"nothing", nil, nobody, nobody},
		{"a log alone", []func(string){func(f string) { tree(t, f, "broodbox.log") }}, nobody, nobody},
		{"a data folder alone", []func(string){func(f string) { tree(t, f, "data/") }}, "", unowned},
		{"both dead", []func(string){sentinel(dead), saved(true, dead)}, "sentinel exited, state exited", "state exited"},
		{"the maker dead, nothing saved", []func(string){sentinel(dead)}, "sentinel exited, state exited", unowned},
		{"the maker dead, no PID saved", []func(string){sentinel(dead), saved(true, 0)}, "sentinel exited, state exited", unowned},
		{"no sentinel", []func(string){saved(true, dead)}, "maker exited, state exited", "state exited"},
		{"stopped (G5)", []func(string){sentinel(dead), saved(false, 0)}, unowned, unowned},
		{"stopped, without a sentinel (G5)", []func(string){saved(false, dead)}, unowned, unowned},
		{"the maker had another program's PID (G3)", []func(string){sentinel(bystander.PID()), saved(true, dead)}, "sentinel unknown, state exited", "state exited"},
		{"the runner likewise (G3)", []func(string){sentinel(dead), saved(true, bystander.PID())}, "sentinel exited, state unknown", "state unknown"},
		{"an old sentinel of one who lives", []func(string){raw(fmt.Sprint(bystander.PID())), saved(true, dead)}, "sentinel alive, state exited", "state exited"},
		{"an old sentinel of one who died", []func(string){raw(fmt.Sprint(dead)), saved(true, dead)}, "sentinel exited, state exited", "state exited"},
		// G2
		{"half a sentinel", []func(string){raw(""), saved(true, dead)}, "sentinel unknown, state exited", "state exited"},
		{"half a state", []func(string){sentinel(dead), text(`{"version":1,"acti`)}, "sentinel exited, state unknown", "state unknown"},
		{"a later state", []func(string){sentinel(dead), text(`{"version":2,"active":true,"pid":2}`)}, "sentinel exited, state unknown", "state unknown"},
		{"PID 0", []func(string){raw("0"), text(`{"version":1,"active":true,"pid":0}`)}, "sentinel unknown, state exited", unowned},
		{"PID 1", []func(string){raw("1"), saved(true, 1)}, "sentinel unknown, state unknown", "state unknown"},
		{"PID -1", []func(string){raw("-1"), saved(true, -1)}, "sentinel unknown, state unknown", "state unknown"},
		{"PID 2^31", []func(string){raw("2147483648"), saved(true, 1<<31)}, "sentinel unknown, state unknown", "state unknown"},
		{"our own PID", []func(string){raw(fmt.Sprint(os.Getpid())), saved(true, os.Getpid())}, "sentinel unknown, state unknown", "state unknown"},
		{"a sentinel of 1 GiB", []func(string){instead(gomicrovmtest.Sentinel, giant), saved(true, dead)}, "sentinel unknown, state exited", "state exited"},
		{"a state of 1 GiB", []func(string){sentinel(dead), instead(gomicrovmtest.State, giant)}, "sentinel exited, state unknown", "state unknown"},
		{"a sentinel that leads to /etc/shadow", []func(string){instead(gomicrovmtest.Sentinel, shadow), saved(true, dead)}, "sentinel unknown, state exited", "state exited"},
		{"a state that leads to /etc/shadow", []func(string){sentinel(dead), instead(gomicrovmtest.State, shadow)}, "sentinel exited, state unknown", "state unknown"},
		{"a pipe as a sentinel", []func(string){instead(gomicrovmtest.Sentinel, fifo), saved(true, dead)}, "sentinel unknown, state exited", "state exited"},
		{"a pipe as a state", []func(string){sentinel(dead), instead(gomicrovmtest.State, fifo)}, "sentinel exited, state unknown", "state unknown"},
		{"a socket as a state", []func(string){sentinel(dead), instead(gomicrovmtest.State, bound)}, "sentinel exited, state unknown", "state unknown"},
		{"folders as records", []func(string){instead(gomicrovmtest.Sentinel, folder), instead(gomicrovmtest.State, folder)}, "sentinel unknown, state unknown", "state unknown"},
		{"a link as a data folder", []func(string){sentinel(dead), instead("data", func(p string) error { return os.Symlink("/etc", p) })}, "sentinel exited, state unknown", "state unknown"},
		{"a file as a data folder", []func(string){sentinel(dead), instead("data", func(p string) error { return os.WriteFile(p, nil, 0o600) })}, "sentinel exited, state unknown", "state unknown"},
		{"a pipe as a lock", []func(string){sentinel(dead), saved(true, dead), instead(gomicrovmtest.Lock, fifo)}, "sentinel exited, state exited, lock unknown", "state exited, lock unknown"},
	} {
		name := fmt.Sprintf("vm-%d", i)
		t.Run(tt.name, func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Join(home.VMs(), name), 0o755))
			for _, make := range tt.make {
				make(filepath.Join(home.VMs(), name))
			}
			preset := broodbox(home)
			preset.StopRunner = false
			seed := watch.Rule{Name: "seed", Kind: watch.GoMicroVM, Dirs: []string{home.VMs()}}
			for _, r := range []struct {
				rule watch.Rule
				want string
			}{{preset, tt.lives}, {seed, tt.seed}} {
				s := newStand(t, home, r.rule)
				s.list()
				sandbox, got, there := s.of(name)
				got = strings.NewReplacer(".bbox-sentinel", "sentinel", "go-microvm-state.json", "state", "go-microvm-state.lock", "lock", "bbox exited", "maker exited", "bbox alive", "maker exited").Replace(got) // others may test with one
				if !there {
					got = nobody
				}
				if got != r.want {
					t.Errorf("rule %s: %q, want %q\n%s", r.rule.Name, got, r.want, s.detail(name))
				}
				if sandbox.State.Runs() && there {
					t.Errorf("rule %s: it is %s", r.rule.Name, sandbox.State)
				}
			}
		})
	}
}

func TestOnlyFoldersOfTheRuleAreMicroVMs(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	dead := deadPID(t)
	sentinel := func(folder string) {
		must(t, os.MkdirAll(folder, 0o755))
		must(t, gomicrovmtest.WriteSentinel(folder, dead, "/bin/bbox"))
	}
	sentinel(home.VMs())                // a root is none (G1)
	sentinel(home.VMs() + "/a")         // this one is
	sentinel(home.VMs() + "/a/b")       // too deep
	sentinel(home.Dir + "/elsewhere/c") // not below the root
	must(t, os.Symlink(home.Dir+"/elsewhere/c", home.VMs()+"/link"))
	must(t, os.WriteFile(home.VMs()+"/file", nil, 0o600))
	sentinel(home.VMs() + "/bad\xffname")
	sentinel(home.VMs() + "/other")
	rule := broodbox(home)
	rule.Match.Name = watch.NewPattern("?")
	s := newStand(t, home, rule)
	s.list()
	if n := s.picture.Len(); n != 1 {
		t.Errorf("%d microVMs, want a alone: %v", n, s.events)
	}
	if _, _, there := s.of("a"); !there {
		t.Error("a is not there")
	}
	// Where the rule leads over a link there is nothing.
	must(t, os.Rename(home.VMs(), home.Dir+"/moved"))
	must(t, os.Symlink(home.Dir+"/moved", home.VMs()))
	s.list()
	if n := s.picture.Len(); n != 0 {
		t.Errorf("%d microVMs behind a link (G1)", n)
	}
	s.vms.SetRules(nil)
	s.list()
}

// The whole story: bbox dies, its runner is stopped, and all is removed.
func TestABBoxThatDies(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts gomicrovmtest.Options
		die  func(*gomicrovmtest.VM)
	}{
		{"killed", gomicrovmtest.Options{}, func(vm *gomicrovmtest.VM) { vm.Kill(syscall.SIGKILL) }},
		{"terminated", gomicrovmtest.Options{OldBBox: true, UserNS: true}, func(vm *gomicrovmtest.VM) { vm.Kill(syscall.SIGTERM) }},
		{"hung up", gomicrovmtest.Options{Cached: true}, func(vm *gomicrovmtest.VM) { vm.Kill(syscall.SIGHUP) }},
		{"exited", gomicrovmtest.Options{NoState: true, Child: true}, (*gomicrovmtest.VM).Exit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home := gomicrovmtest.NewHome(t)
			s := newStand(t, home, broodbox(home))
			s.run()
			other := home.Start("other", gomicrovmtest.Options{})
			vm := home.Start("vm", tt.opts)
			s.list()
			alive, dead := ".bbox-sentinel alive", ".bbox-sentinel exited"
			s.awaitLives("vm", alive)
			sandbox, _, _ := s.of("vm")
			if sandbox.State != watch.Running || sandbox.Init.PID != vm.Runner {
				t.Fatalf("%s, run by %d, want %d", sandbox.State, sandbox.Init.PID, vm.Runner)
			}
			died := time.Now()
			tt.die(vm)
			s.awaitLives("vm", dead)
			t.Logf("known after %v", time.Since(died))
			seen, _ := told(s, func(ev watch.OwnerSeen) bool { return ev.ID == sandbox.ID })
			if seen.Owner.PID != vm.BBox || seen.Exited.Before(died) || seen.Exited.After(time.Now()) {
				t.Errorf("seen %+v", seen)
			}
			if gomicrovmtest.Dead(vm.Runner) {
				t.Error("the runner died of it")
			}
			must(t, s.vms.Stop(sandbox, watch.Kill))
			s.await("the end of the runner", func() bool {
				_, ok := told(s, func(ev watch.InitExited) bool { return ev.ID == sandbox.ID && ev.Process == sandbox.Init })
				return ok
			})
			gomicrovmtest.AwaitDead(t, vm.Runner)
			if vm.Child != 0 {
				gomicrovmtest.AwaitDead(t, vm.Child)
			}
			must(t, s.remove("vm"))
			if exists(vm.Folder) {
				t.Error("the folder is there")
			}
			if gomicrovmtest.Dead(other.BBox) || gomicrovmtest.Dead(other.Runner) || !exists(other.Folder+"/"+gomicrovmtest.State) {
				t.Error("another microVM was harmed")
			}
			s.list()
			if _, _, there := s.of("vm"); there {
				t.Error("it is listed still")
			}
			s.awaitLives("other", ".bbox-sentinel alive")
		})
	}
}

// Of a microVM without a sentinel nobody knows which bbox it is of: any of its user's that is older keeps it, and so does its
// runner.
func TestABBoxThatLogsElsewhere(t *testing.T) {
	needRoot(t)
	const ann = 4003
	home := gomicrovmtest.NewHomeOf(t, ann)
	s := newStand(t, home, broodbox(home))
	s.run()
	older := home.Start("older", gomicrovmtest.Options{})
	vm := home.Start("vm", gomicrovmtest.Options{LogFile: true, UserNS: true})
	next := home.Start("next", gomicrovmtest.Options{}) // so soon after it that clocks do not tell which was first
	s.list()
	s.awaitLives("vm", "bbox alive, go-microvm-state.json alive")
	sandbox, _, _ := s.of("vm")
	vm.Kill(syscall.SIGKILL)
	vm.KillRunner()
	s.awaitLives("vm", "bbox alive, go-microvm-state.json exited")
	if err := s.vms.Remove(t.Context(), sandbox, nil); !errors.Is(err, watch.ErrInUse) || !exists(vm.Folder+"/"+gomicrovmtest.State) {
		t.Errorf("Remove = %v, and its maker may live", err)
	}
	older.Kill(syscall.SIGKILL)
	s.awaitLives("vm", "bbox alive, go-microvm-state.json exited")
	next.Kill(syscall.SIGKILL)
	s.awaitLives("vm", "bbox exited, go-microvm-state.json exited")
	must(t, s.remove("vm"))
	if exists(vm.Folder) {
		t.Error("the folder is there")
	}
}

// TestABBoxInAnOldFolder: a bbox that uses the folder of an earlier microVM again is younger than that, and owns what it put there.
func TestABBoxInAnOldFolder(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	must(t, os.MkdirAll(filepath.Join(home.VMs(), "vm"), 0o755))
	made := time.Now()
	gomicrovmtest.Await(t, "the folder is older than clocks may differ", func() bool { return time.Since(made) > 3*time.Second })
	vm := home.Start("vm", gomicrovmtest.Options{LogFile: true})
	s := newStand(t, home, broodbox(home))
	s.list()
	vm.KillRunner()
	s.list()
	s.awaitLives("vm", "bbox alive, go-microvm-state.json exited")
	if err := s.remove("vm"); err == nil || !exists(vm.Folder+"/"+gomicrovmtest.State) {
		t.Errorf("Remove = %v while its bbox lives", err)
	}
	vm.Kill(syscall.SIGKILL)
	s.list()
	s.awaitLives("vm", "bbox exited, go-microvm-state.json exited")
	must(t, s.remove("vm"))
}
