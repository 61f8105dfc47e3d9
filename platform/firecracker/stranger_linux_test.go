package firecracker_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"watcher/platform/firecracker/firecrackertest"
	"watcher/watch"
)

// stranger starts a process of an unprivileged user that calls itself firecracker.
func stranger(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh")
	cmd.Args = append([]string{"firecracker", "-c", "read line", "firecracker"}, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// open lets everybody into a folder of a test.
func open(dir string) {
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
}

// condemned reports whether all owners of a microVM are told dead.
func condemned(l listed, id string) bool {
	for _, o := range l.owners[id] {
		if o.Life != watch.Exited {
			return false
		}
	}
	return len(l.owners[id]) > 0
}

// F10: a workspace of a runner that lives, without a process just now. A stranger enters it, and calls himself firecracker.
func TestF10AStrangerInAWorkspace(t *testing.T) {
	for _, chain := range []firecrackertest.Chain{firecrackertest.Direct, firecrackertest.Older} {
		t.Run(string(chain), func(t *testing.T) {
			s := newScene(t)
			s.StartRunner()
			vm := s.Lay(chain, "")
			open(vm.Workspace)
			if condemned(s.list(), vm.ID) {
				t.Fatal("condemned already")
			}
			var forged *exec.Cmd
			if chain == firecrackertest.Older {
				forged = stranger(t, "/", "--config-file", vm.Workspace+"/config.json")
			} else {
				forged = stranger(t, vm.Workspace)
			}
			l := s.list()
			sb := l.sandboxes[vm.ID]
			if sb.Terms.Fault == "" {
				t.Errorf("nothing is said of it: %+v", sb)
			}
			if !condemned(l, vm.ID) {
				return
			}
			t.Errorf("a stranger's process has the workspace of a runner that lives condemned: owners %+v", l.owners[vm.ID])
			if err := s.Stop(sb, watch.Kill); err != nil {
				t.Fatal(err)
			}
			_ = forged.Wait()
			told, err := s.remove(sb)
			if !exists(t, vm.Workspace) {
				t.Errorf("and removed: told %v, %v", told, err)
			}
		})
	}
}

// F10: the sockets of a microVM that runs: somebody with another base folder has one of the same ID.
func TestF10TheSocketsOfAnother(t *testing.T) {
	site := firecrackertest.NewSite(t)
	theirs := filepath.Join(filepath.Dir(site.Base), "mallory")
	s := sceneAt(t, site, func(r *watch.Rule) { r.BaseDirs = []string{filepath.Dir(site.Base) + "/*"} })
	r := s.StartRunner()
	vm := r.Start(firecrackertest.Spawn{Argv: []string{"--config-file", "{workspace}/config.json", "--no-api"}})
	dir := filepath.Join(theirs, "workspaces", vm.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Chown(dir, 65534, 65534)
	open(dir)
	stranger(t, dir)
	events, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range events {
		l, ok := ev.(watch.Listed)
		if !ok {
			continue
		}
		for _, sb := range l.Sandboxes {
			if sb.Init.PID == vm.PID || leaf(sb, "sockets") == "" {
				continue
			}
			t.Errorf("the sockets of the other are a leaf of the stranger's")
			if err := s.Stop(sb, watch.Kill); err != nil {
				t.Fatal(err)
			}
			told, err := s.remove(sb)
			if !exists(t, vm.Sockets) || !alive(t, vm.PID) {
				t.Errorf("and are removed beneath a microVM that runs (%v): told %v, %v", alive(t, vm.PID), told, err)
			}
		}
	}
}

// F10: an orphan is kept for ever by a stranger who may not even enter its workspace: in a mount namespace of his own he has one of that
// path.
func TestF10AStrangerWithMountsOfHisOwn(t *testing.T) {
	s := newScene(t)
	r := s.StartRunner()
	vm := s.start(r, firecrackertest.Direct)
	r.Kill()
	open(filepath.Dir(s.Base))
	if err := os.Chmod(vm.Workspace, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-Urm", "bash", "-c", `mount -t tmpfs t "$1" && mkdir -p "$2" && cd "$2" && exec -a firecracker sleep 600`, "bash", s.Base, vm.Workspace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	beat, timeout := time.NewTicker(time.Millisecond), time.After(patience)
	defer beat.Stop()
	for called := false; !called; {
		argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		called = err == nil && strings.HasPrefix(string(argv), "firecracker\x00")
		select {
		case <-beat.C:
		case <-timeout:
			t.Fatal("the stranger does not call himself firecracker")
		}
	}
	if got := s.list().sandboxes[vm.ID]; got.Terms.Fault != "" || got.Init.PID != vm.PID {
		t.Errorf("%+v", got)
	}
}
