package gomicrovm_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/gomicrovm/gomicrovmtest"
	"watcher/platform/process/processtest"
	"watcher/platform/statedir"
	"watcher/watch"
)

// orphan makes a microVM of which all are dead.
func orphan(t testing.TB, home *gomicrovmtest.Home, name string, pid int) string {
	t.Helper()
	folder := filepath.Join(home.VMs(), name)
	tree(t, folder, "broodbox.log", "data/console.log", "data/rootfs-work/usr/bin/sh", "data/rootfs-work/etc/empty/", gomicrovmtest.Lock)
	must(t, gomicrovmtest.WriteSentinel(folder, pid, "/home/ann/bin/bbox"))
	must(t, gomicrovmtest.WriteState(folder, true, pid))
	return folder
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: needs root")
	}
}

func TestRemoveTheSeedsWay(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	dead := deadPID(t)
	full, bare := orphan(t, home, "full", dead), orphan(t, home, "bare", dead)
	must(t, os.Remove(bare+"/broodbox.log"))
	must(t, os.Remove(bare+"/"+gomicrovmtest.Sentinel))
	s := newStand(t, home, watch.Rule{Name: "seed", Kind: watch.GoMicroVM, Dirs: []string{home.VMs()}})
	s.list()
	for _, name := range []string{"full", "bare"} {
		var parts []string
		sandbox, lives, _ := s.of(name)
		if lives != "go-microvm-state.json exited" {
			t.Fatalf("%s: %s", name, lives)
		}
		must(t, s.vms.Remove(t.Context(), sandbox, func(part string, err error) { parts = append(parts, fmt.Sprint(part, err)) }))
		t.Log(name, parts)
	}
	if exists(full+"/data") || !exists(full+"/broodbox.log") || !exists(full+"/"+gomicrovmtest.Sentinel) {
		t.Error("of a folder in which there is more, data alone goes")
	}
	if exists(bare) || !exists(home.VMs()) {
		t.Error("the folder goes when it is empty, and the root stays")
	}
}

// TestRemoveAfterARestart shows that what was recorded of a microVM is enough.
func TestRemoveAfterARestart(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	folder := orphan(t, home, "vm", deadPID(t))
	s := newStand(t, home, broodbox(home))
	s.list()
	sandbox, _, _ := s.of("vm")
	// It was interrupted, and again.
	for n := range int64(20) {
		ctx := &interrupt{Context: t.Context()}
		ctx.left.Store(n)
		fresh := newStand(t, home, broodbox(home))
		err := fresh.vms.Remove(ctx, sandbox, nil)
		if err == nil {
			break
		}
		fresh.list()
		if _, lives, there := fresh.of("vm"); exists(folder+"/"+gomicrovmtest.Sentinel) && (!there || lives != ".bbox-sentinel exited") {
			t.Fatalf("after an interrupt it is %q, there: %v", lives, there)
		}
	}
	must(t, newStand(t, home, broodbox(home)).vms.Remove(t.Context(), sandbox, nil))
	if exists(folder) {
		t.Error("the folder is there")
	}
	must(t, newStand(t, home, broodbox(home)).vms.Remove(t.Context(), sandbox, nil)) // gone is success
}

// TestRemoveEndsWhatStillRuns: who recorded the removal may have come no further, and the runner is ended now, by what was
// recorded. A runner that is not known to be the microVM's is not, and nothing goes beneath it (G6).
func TestRemoveEndsWhatStillRuns(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	s := newStand(t, home, broodbox(home))
	vm := home.Start("vm", gomicrovmtest.Options{})
	s.list()
	sandbox, _, _ := s.of("vm")
	vm.Kill(syscall.SIGKILL)
	late := newStand(t, home, broodbox(home))
	unknown := sandbox
	unknown.Init = watch.Process{}
	if err := late.vms.Remove(t.Context(), unknown, nil); err == nil || gomicrovmtest.Dead(vm.Runner) || !exists(vm.Folder+"/"+gomicrovmtest.State) {
		t.Fatalf("removed under a runner that is not known: %v", err)
	}
	must(t, late.vms.Remove(t.Context(), sandbox, nil))
	if !gomicrovmtest.Dead(vm.Runner) || exists(vm.Folder) {
		t.Errorf("the runner is dead: %v, the folder is there: %v", gomicrovmtest.Dead(vm.Runner), exists(vm.Folder))
	}
}

// An interrupt is a context that ends when it has been asked some times.
type interrupt struct {
	context.Context
	left atomic.Int64
}

func (i *interrupt) Err() error {
	if i.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

func TestWhatIsNotRemoved(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name  string
		turn  func(t *testing.T, s *stand, folder string, sandbox *watch.Sandbox)
		inUse bool // the error wraps ErrInUse
		gone  bool // success: what was meant is not there
	}{
		{"its lock is held", func(t *testing.T, _ *stand, folder string, _ *watch.Sandbox) {
			f, err := os.Open(folder + "/" + gomicrovmtest.Lock)
			must(t, err)
			t.Cleanup(func() { _ = f.Close() })
			must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		}, true, false},
		{"a bbox has taken it over", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			must(t, gomicrovmtest.WriteSentinel(folder, processtest.StartOwner(t).PID(), ""))
		}, true, false},
		{"a runner has begun", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			runner := processtest.Program(t, "go-microvm-runner")
			processtest.StartProgram(t, runner, runner, `{"root_path":"/cache/x","console_log_path":"`+folder+`/data/console.log"}`)
		}, true, false},
		{"its state cannot be read any more", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			must(t, os.WriteFile(folder+"/"+gomicrovmtest.State, []byte("{"), 0o600))
		}, false, false},
		{"no rule names it any more", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			s.vms.SetRules(&watch.Rules{List: []watch.Rule{{Name: "x", Kind: watch.GoMicroVM, Dirs: []string{s.home.Dir + "/vms"}}}})
		}, false, false},
		{"it is another by now", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			must(t, os.Rename(folder, folder+"-old"))
			must(t, os.Mkdir(folder, 0o755))
			tree(t, folder, "data/precious", "precious")
		}, false, true},
		{"a link to it by now", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			must(t, os.Rename(folder, folder+"-old"))
			must(t, os.Symlink(folder+"-old", folder))
		}, false, true},
		{"a link on the way", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			must(t, os.Rename(s.home.VMs(), s.home.Dir+"/moved"))
			must(t, os.Symlink(s.home.Dir+"/moved", s.home.VMs()))
		}, false, false},
		{"a leaf with dots in it", func(t *testing.T, s *stand, folder string, sandbox *watch.Sandbox) {
			sandbox.Leaves[0].Name = s.home.VMs() + "/x/../vm"
		}, false, false},
		{"a leaf elsewhere", func(t *testing.T, s *stand, folder string, sandbox *watch.Sandbox) {
			sandbox.Leaves[0].Name = s.home.Dir + "/bin"
		}, false, false},
		{"the root itself as a leaf", func(t *testing.T, s *stand, folder string, sandbox *watch.Sandbox) {
			sandbox.Leaves[0].Name = s.home.VMs()
		}, false, false},
		{"no leaves", func(t *testing.T, s *stand, folder string, sandbox *watch.Sandbox) { sandbox.Leaves = nil }, false, false},
		{"it was given to another user (G7)", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			must(t, os.Lchown(folder, 4002, 4002))
		}, false, false},
		{"a file system is mounted in it", func(t *testing.T, s *stand, folder string, _ *watch.Sandbox) {
			at := folder + "/data/rootfs-work"
			must(t, unix.Mount(t.TempDir(), at, "", unix.MS_BIND, ""))
			t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
		}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home := gomicrovmtest.NewHome(t)
			folder := orphan(t, home, "vm", deadPID(t))
			s := newStand(t, home, broodbox(home))
			s.list()
			sandbox, lives, _ := s.of("vm")
			if lives != ".bbox-sentinel exited" {
				t.Fatal(lives)
			}
			tt.turn(t, s, folder, &sandbox)
			before := count(t, home.Dir)
			err := s.vms.Remove(t.Context(), sandbox, nil)
			if (err == nil) != tt.gone || errors.Is(err, watch.ErrInUse) != tt.inUse {
				t.Errorf("Remove = %v", err)
			}
			if tt.name != "a file system is mounted in it" && count(t, home.Dir) != before {
				t.Errorf("of %d files %d are left", before, count(t, home.Dir))
			}
		})
	}
}

func count(t *testing.T, dir string) (n int) {
	must(t, filepath.WalkDir(dir, func(string, fs.DirEntry, error) error {
		n++
		return nil
	}))
	return n
}

// TestG7AUserHarmsNobodyElse: what is planted in a folder costs its owner alone.
func TestG7AUserHarmsNobodyElse(t *testing.T) {
	needRoot(t)
	const ann, bob = 4001, 4002
	home := gomicrovmtest.NewHome(t)
	dead := deadPID(t)
	folder := orphan(t, home, "vm", dead)
	tree(t, folder, "data/rootfs-work/his/secret/thesis")
	other := orphan(t, home, "bobs", dead)
	outside := filepath.Join(t.TempDir(), "outside")
	tree(t, outside, "a", "b/c")
	for i, to := range []string{outside, outside + "/a", "/etc/shadow", "..", "/"} {
		must(t, os.Symlink(to, fmt.Sprintf("%s/data/link%d", folder, i)))
		must(t, os.Symlink(to, fmt.Sprintf("%s/link%d", folder, i)))
	}
	must(t, unix.Mkfifo(folder+"/data/fifo", 0o600))
	for dir, uid := range map[string]int{home.VMs(): ann} {
		must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, uid, uid))
		}))
	}
	must(t, os.Lchown(folder+"/data/rootfs-work/his", bob, bob))
	must(t, os.Lchown(folder+"/data/rootfs-work/his/secret", bob, bob))
	must(t, os.Lchown(other, bob, bob))
	forged := orphan(t, home, "forged", dead)
	must(t, os.Lchown(forged, ann, ann))
	must(t, os.Lchown(forged+"/data", ann, ann)) // the records are root's

	s := newStand(t, home, broodbox(home))
	s.list()
	if _, lives, _ := s.of("vm"); lives != ".bbox-sentinel exited" {
		t.Fatal(lives)
	}
	for _, name := range []string{"bobs", "forged"} {
		if _, lives, _ := s.of(name); !strings.Contains(lives, "unknown") {
			t.Errorf("%s: %s, %s (G2)", name, lives, s.detail(name))
		}
	}
	if err := s.remove("vm"); !errors.Is(err, unix.EPERM) {
		t.Errorf("Remove = %v", err)
	}
	if !exists(folder+"/data/rootfs-work/his/secret/thesis") || !exists(outside+"/b/c") || !exists(outside+"/a") || !exists("/etc/shadow") {
		t.Error("it cost somebody else something")
	}
	if exists(folder+"/data/rootfs-work/usr") || exists(folder+"/data/link0") {
		t.Error("and yet what is hers goes")
	}
	if !exists(folder + "/" + gomicrovmtest.Sentinel) {
		t.Error("what is left does not say any more whose it is")
	}
}

// TestRemoveUnderAttack: the user whose it is moves everything about meanwhile.
func TestRemoveUnderAttack(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	dead := deadPID(t)
	outside := filepath.Join(t.TempDir(), "outside")
	tree(t, outside, "data/f", "f", "a/b/c")
	before := count(t, outside)
	for range 30 {
		folder := orphan(t, home, "vm", dead)
		for i := range 20 {
			tree(t, folder, fmt.Sprintf("data/rootfs-work/d%d/e/f", i))
		}
		s := newStand(t, home, broodbox(home))
		s.list()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for i := 0; ctx.Err() == nil; i++ {
				at := []string{folder, folder + "/data", folder + "/data/rootfs-work", fmt.Sprintf("%s/data/rootfs-work/d%d", folder, i%20)}[i%4]
				aside := home.Dir + "/aside"
				if os.Rename(at, aside) == nil {
					_ = os.Symlink(outside, at)
					_ = os.Remove(at)
					_ = os.Rename(aside, at)
					_ = os.RemoveAll(aside)
				}
			}
		}()
		err := s.remove("vm")
		stop()
		<-ended
		if n := count(t, outside); n != before {
			t.Fatalf("%d of %d files are left outside (Remove = %v)", n, before, err)
		}
		must(t, os.RemoveAll(folder))
		must(t, os.RemoveAll(home.Dir+"/aside"))
	}
}

func TestALargeRemoval(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	folder := orphan(t, home, "vm", deadPID(t))
	for i := range 2000 {
		dir := fmt.Sprintf("%s/data/rootfs-work/usr/lib/d%d", folder, i%50)
		must(t, os.MkdirAll(dir, 0o755))
		f, err := os.Create(fmt.Sprintf("%s/f%d", dir, i))
		must(t, err)
		must(t, f.Truncate(1<<20))
		_, err = f.Write(make([]byte, 4096)) // that it takes up room on any file system
		must(t, err)
		must(t, f.Close())
	}
	s := newStand(t, home, broodbox(home))
	s.run()
	s.list()
	sandbox, _, _ := s.of("vm")
	other := home.Start("other", gomicrovmtest.Options{})
	s.awaitLives("other", ".bbox-sentinel alive")
	whole, err := statedir.Usage(t.Context(), folder)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.vms.Remove(context.Background(), sandbox, nil) }()
	other.Kill(syscall.SIGKILL)
	s.awaitLives("other", ".bbox-sentinel exited") // a removal holds up nobody
	for shrinking := false; ; {
		left, err := statedir.Usage(t.Context(), folder) // as list shows it
		must(t, err)
		shrinking = shrinking || left > 0 && left < whole
		select {
		case err := <-done:
			must(t, err)
			if exists(folder) || !shrinking {
				t.Errorf("the folder is there: %v; it was seen to shrink: %v", exists(folder), shrinking)
			}
			return
		default:
		}
	}
}

func TestStopRefuses(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	s := newStand(t, home, broodbox(home))
	vm := home.Start("vm", gomicrovmtest.Options{Stubborn: true})
	s.list()
	sandbox, _, _ := s.of("vm")
	stranger := processtest.StartOwner(t)
	for name, turn := range map[string]func(*watch.Sandbox){
		"nobody":                  func(s *watch.Sandbox) { s.Init = watch.Process{} },
		"one of another boot":     func(s *watch.Sandbox) { s.Init.Boot = "x" },
		"an earlier one":          func(s *watch.Sandbox) { s.Init.Start-- },
		"somebody else (G4)":      func(s *watch.Sandbox) { s.Init = processOf(t, stranger) },
		"who runs another (G4)":   func(s *watch.Sandbox) { s.Leaves = []watch.Leaf{{Kind: "folder", Name: "/elsewhere"}} },
		"the one that tests this": func(s *watch.Sandbox) { s.Init.PID = os.Getpid() },
	} {
		other := sandbox
		turn(&other)
		if err := s.vms.Stop(other, watch.Kill); err == nil {
			t.Errorf("%s is signalled", name)
		}
	}
	if err := s.vms.Stop(sandbox, watch.Remove); err == nil {
		t.Error("a removal is no signal")
	}
	select {
	case <-stranger.Dead():
		t.Error("a stranger is dead")
	default:
	}
	// Another instance, as after a restart, does the same from what was recorded.
	again := newStand(t, home, broodbox(home))
	must(t, again.vms.Stop(sandbox, watch.Terminate))
	must(t, again.vms.Stop(sandbox, watch.Kill))
	gomicrovmtest.AwaitDead(t, vm.Runner)
	if gomicrovmtest.Dead(vm.BBox) {
		t.Error("its bbox is dead, too")
	}
	if err := again.vms.Stop(sandbox, watch.Kill); err == nil {
		t.Error("the dead are signalled")
	}
}

// TestStopOfAnothersProcess: a runner that is not of the user whom the folder belongs to is not signalled, however it was found (G4).
func TestStopOfAnothersProcess(t *testing.T) {
	needRoot(t)
	home := gomicrovmtest.NewHome(t)
	vm := home.Start("vm", gomicrovmtest.Options{})
	s := newStand(t, home, broodbox(home))
	s.list()
	sandbox, _, _ := s.of("vm")
	const nobody = 65534
	must(t, os.Chown(vm.Folder, nobody, nobody))
	if err := s.vms.Stop(sandbox, watch.Kill); err == nil {
		t.Error("root's process is signalled for a user's folder")
	}
	must(t, os.Chown(vm.Folder, 0, 0))
	must(t, s.vms.Stop(sandbox, watch.Kill))
	gomicrovmtest.AwaitDead(t, vm.Runner)
}

func processOf(t testing.TB, o *processtest.Owner) watch.Process {
	t.Helper()
	claim, err := watch.ParseClaim(o.Label())
	must(t, err)
	return claim.Process
}

func TestPIDsThatWereReused(t *testing.T) {
	needRoot(t)
	home := gomicrovmtest.NewHome(t)
	owner := processtest.StartOwner(t)
	folder := orphan(t, home, "vm", owner.PID())
	old := orphan(t, home, "old", owner.PID())
	must(t, gomicrovmtest.WriteSentinel(old, owner.PID(), "")) // as an older bbox
	owner.Kill()
	owner.Wait()
	// Longer ago than clocks differ.
	past := time.Now().Add(-time.Minute)
	for _, file := range []string{folder + "/" + gomicrovmtest.Sentinel, folder + "/" + gomicrovmtest.State, old + "/" + gomicrovmtest.Sentinel, old + "/" + gomicrovmtest.State} {
		must(t, os.Chtimes(file, past, past))
	}
	next := processtest.ReusePID(t, owner.PID())
	rule := broodbox(home)
	rule.StopRunner = false
	s := newStand(t, home, rule)
	s.list()
	for _, name := range []string{"vm", "old"} {
		if _, lives, _ := s.of(name); lives != ".bbox-sentinel exited, go-microvm-state.json exited" {
			t.Errorf("%s: %s, %s (G3)", name, lives, s.detail(name))
		}
		must(t, s.remove(name))
	}
	select {
	case <-next.Dead():
		t.Error("who has the PID now is dead")
	default:
	}
	if exists(folder) || exists(old) {
		t.Error("the folders are there")
	}
}

// TestAnOwnerThatExecs: it had the PID when the sentinel was written, and lives.
func TestAnOwnerThatExecs(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	vm := home.Start("vm", gomicrovmtest.Options{})
	s := newStand(t, home, broodbox(home))
	cat := "/bin/cat"
	if resolved, err := filepath.EvalSymlinks(cat); err == nil {
		cat = resolved
	}
	vm.Become(cat)
	s.list()
	s.awaitLives("vm", ".bbox-sentinel unknown")
	if err := s.remove("vm"); err == nil || !exists(vm.Folder+"/"+gomicrovmtest.State) {
		t.Errorf("Remove = %v", err)
	}
	// An upgrade while it runs.
	up := home.Start("up", gomicrovmtest.Options{})
	must(t, os.Remove(home.BBox()))
	s.list()
	s.awaitLives("up", ".bbox-sentinel alive")
	up.Kill(syscall.SIGKILL)
	s.awaitLives("up", ".bbox-sentinel exited")
}

func TestRunnersOfOthers(t *testing.T) {
	needRoot(t)
	home := gomicrovmtest.NewHome(t)
	dead := deadPID(t)
	runner := processtest.Program(t, "go-microvm-runner")
	names := func(folder string) string {
		return `{"root_path":"/cache/x","console_log_path":"` + folder + `/data/console.log"}`
	}
	for _, name := range []string{"two", "calls-itself", "plain", "stateless", "moved"} {
		orphan(t, home, name, dead)
	}
	at := func(name string) string { return filepath.Join(home.VMs(), name) }
	processtest.StartProgram(t, runner, runner, names(at("two")))
	processtest.StartProgram(t, runner, runner, names(at("two")))
	liar := processtest.StartProgram(t, processtest.Program(t, "liar"), "go-microvm-runner", names(at("calls-itself")))
	// One of go-microvm itself, which is none of ours.
	processtest.StartProgram(t, runner, runner, `{"root_path":"/root/.config/go-microvm/rootfs","console_log_path":"/root/.config/go-microvm/console.log"}`)
	must(t, os.Remove(at("stateless")+"/"+gomicrovmtest.State))

	rule := broodbox(home)
	s := newStand(t, home, rule)
	s.list()
	for name, want := range map[string]string{
		"two":          ".bbox-sentinel exited, go-microvm-state.json unknown", // never guess
		"calls-itself": ".bbox-sentinel exited, go-microvm-state.json unknown",
		"plain":        ".bbox-sentinel exited",
		"stateless":    ".bbox-sentinel exited, go-microvm-state.json unknown", // it might run this one
	} {
		sandbox, lives, _ := s.of(name)
		if lives != want || sandbox.Init.PID != 0 {
			t.Errorf("%s: %s by %d, want %s", name, lives, sandbox.Init.PID, want)
		}
	}
	for _, name := range []string{"two", "calls-itself", "stateless"} {
		if err := s.remove(name); err == nil || !exists(at(name)+"/data") {
			t.Errorf("%s: Remove = %v", name, err)
		}
	}
	must(t, s.remove("plain"))
	sandbox, _, _ := s.of("calls-itself")
	sandbox.Init = processOf(t, liar)
	if err := s.vms.Stop(sandbox, watch.Kill); err == nil {
		t.Error("who only calls itself a runner is signalled (G4)")
	}
}

// TestAnotherPIDNamespace guards G8.
func TestAnotherPIDNamespace(t *testing.T) {
	needRoot(t)
	home := gomicrovmtest.NewHome(t)
	inner := 0
	// The PID that a bbox in a container writes is one that here nobody has, or a stranger.
	vm := home.Start("vm", gomicrovmtest.Options{PIDNS: true})
	text, err := os.ReadFile(vm.Folder + "/" + gomicrovmtest.Sentinel)
	must(t, err)
	_, err = fmt.Sscan(string(text), &inner)
	must(t, err)
	if inner == vm.BBox {
		t.Fatalf("bbox %d wrote %q", vm.BBox, text)
	}
	s := newStand(t, home, broodbox(home))
	s.list()
	if _, lives, _ := s.of("vm"); strings.Contains(lives, "exited") || !strings.Contains(lives, "unknown") {
		t.Errorf("%s\n%s", lives, s.detail("vm"))
	}
	// As PID 1 it would be refused anyway. With another number:
	must(t, gomicrovmtest.WriteSentinel(vm.Folder, innerOf(t, vm.Runner), home.BBox()))
	must(t, os.Chtimes(vm.Folder+"/"+gomicrovmtest.Sentinel, time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)))
	s.list()
	if _, lives, _ := s.of("vm"); strings.Contains(lives, "exited") {
		t.Errorf("%s\n%s", lives, s.detail("vm"))
	}
}

// innerOf is the PID that a process has in its own namespace.
func innerOf(t *testing.T, pid int) (inner int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(rest)
			_, err := fmt.Sscan(fields[len(fields)-1], &inner)
			must(t, err)
		}
	}
	return inner
}

func TestALockThatIsHeldShows(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	folder := orphan(t, home, "vm", deadPID(t))
	f, err := os.Open(folder + "/" + gomicrovmtest.Lock)
	must(t, err)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	s := newStand(t, home, broodbox(home))
	s.list()
	if sandbox, _, _ := s.of("vm"); !sandbox.InUse {
		t.Error("it does not show that it is in use")
	}
	must(t, f.Close())
	s.list()
	if sandbox, _, _ := s.of("vm"); sandbox.InUse {
		t.Error("it is in use still")
	}
}

// TestAnUnreadableSetIsNoEmptySet: a folder of the rule that cannot be read fails the list.
func TestAnUnreadableSetIsNoEmptySet(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	orphan(t, home, "vm", deadPID(t))
	s := newStand(t, home, broodbox(home))
	s.list()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if events, err := s.vms.List(ctx); err == nil {
		t.Errorf("a list that was interrupted: %v", events)
	}
	s.vms.SetRules(&watch.Rules{List: []watch.Rule{{Name: "x", Kind: watch.GoMicroVM, Dirs: []string{"not/absolute"}}}})
	if events, err := s.vms.List(t.Context()); err == nil {
		t.Errorf("of a rule that cannot be read: %v", events)
	}
}
