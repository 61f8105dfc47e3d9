//go:build linux

// Package firecrackertest gives tests microVMs to find: a runner that starts them as the ones in the field do, through sudo,
// ip-netns, unshare and a shell, and processes called firecracker that have open what a microVM has.
//
// No Firecracker can be had on a test machine. The stand-ins are one static program, built once for each test binary. None
// outlives its test, nor the test binary: each has a pipe as its leash, whose other end only the test holds.
package firecrackertest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait; all of it is only ever spent on a failure.
const patience = time.Minute

//go:embed standin/main.go
var source []byte

// build makes the stand-in.
var build = sync.OnceValues(func() ([]byte, error) {
	tmp, err := os.MkdirTemp("", "firecrackertest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "main.go"), source, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", "standin", "main.go")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=off", "PWD="+tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the stand-in: %w\n%s", err, out)
	}
	return os.ReadFile(filepath.Join(tmp, "standin"))
})

// Program makes the stand-in known under another path, and returns that: what is called jailer is one, what is run with run as its
// first argument is a runner, and anything else is a microVM.
func Program(tb testing.TB, path string) string {
	tb.Helper()
	binary, err := build()
	if err == nil {
		err = os.WriteFile(path, binary, 0o755)
	}
	if err != nil {
		tb.Fatalf("firecrackertest: %v", err)
	}
	return path
}

// A Site is the folders of runners on a host.
type Site struct {
	Base    string // the base folder
	Sockets string
	Jails   string
	Bin     string // the programs

	tb testing.TB
}

// NewSite makes the folders of a site in a folder of the test's own.
func NewSite(tb testing.TB) *Site {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("NOT RUN: sudo, namespaces and jails need root")
	}
	// Without links on the way, as the kernel has it.
	root, err := filepath.EvalSymlinks(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	s := &Site{
		Base: filepath.Join(root, "base"), Sockets: filepath.Join(root, "sock"), Jails: filepath.Join(root, "jails"),
		Bin: filepath.Join(root, "bin"), tb: tb,
	}
	for _, dir := range []string{filepath.Join(s.Base, "workspaces"), s.Sockets, s.Jails, s.Bin} {
		s.must(os.MkdirAll(dir, 0o755))
	}
	for _, name := range []string{"firecracker", "runner", "jailer"} {
		Program(tb, filepath.Join(s.Bin, name))
	}
	return s
}

func (s *Site) must(err error) {
	s.tb.Helper()
	if err != nil {
		s.tb.Fatalf("firecrackertest: %v", err)
	}
}

// A Runner is a process that starts microVMs.
type Runner struct {
	PID int

	site    *Site
	cmd     *exec.Cmd
	orders  *json.Encoder
	answers *bufio.Reader
	end     func()
}

// StartRunner starts a runner, in a process group of its own.
func (s *Site) StartRunner() *Runner {
	s.tb.Helper()
	return s.StartRunnerAs(filepath.Join(s.Bin, "runner"))
}

// StartRunnerAs starts one below other programs: the last element of argv is the path of the runner.
func (s *Site) StartRunnerAs(argv ...string) *Runner {
	s.tb.Helper()
	cmd := exec.Command(argv[0], append(argv[1:], "run")...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	s.must(err)
	out, err := cmd.StdoutPipe()
	s.must(err)
	s.must(cmd.Start())
	r := &Runner{PID: cmd.Process.Pid, site: s, cmd: cmd, orders: json.NewEncoder(in), answers: bufio.NewReader(out)}
	r.end = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		_ = out.Close()
	})
	s.tb.Cleanup(r.end)
	r.answer()
	return r
}

type order struct {
	Argv  []string
	Dir   string
	Group bool
	Exec  []string
	Lock  string
	Text  string
	Exit  bool
}

func (r *Runner) answer() {
	r.site.tb.Helper()
	line, err := r.answers.ReadString('\n')
	r.site.must(err)
	if line != "ok\n" {
		r.site.tb.Fatalf("firecrackertest: the runner says %s", line)
	}
}

func (r *Runner) order(o order) {
	r.site.tb.Helper()
	r.site.must(r.orders.Encode(o))
	r.answer()
}

// Signal sends a signal to the runner, and no more. It does not wait.
func (r *Runner) Signal(sig unix.Signal) {
	r.site.tb.Helper()
	r.site.must(r.cmd.Process.Signal(sig))
}

// Kill has the runner die of SIGKILL, and waits until it has been reaped.
func (r *Runner) Kill() { r.end() }

// Exit has the runner end by itself, and waits until it has been reaped.
func (r *Runner) Exit() {
	r.site.must(r.orders.Encode(order{Exit: true}))
	_, err := r.cmd.Process.Wait()
	r.site.must(err)
}

// Zombie kills the runner and leaves it unreaped until the test has ended.
func (r *Runner) Zombie() { r.Signal(unix.SIGKILL) }

// Become has the runner exec another program, which answers to nothing any more unless that is a runner too.
func (r *Runner) Become(path string, argv ...string) {
	r.site.tb.Helper()
	r.order(order{Exec: append([]string{path}, argv...)})
}

// Lock has the runner lock its base folder, by a file in a folder of locks.
func (r *Runner) Lock(locks string) {
	r.site.tb.Helper()
	sum := sha256.Sum256([]byte(r.site.Base))
	r.order(order{Lock: filepath.Join(locks, "base-dir-"+hex.EncodeToString(sum[:])+".lock"), Text: r.site.Base})
}

// Record writes the record of a live instance for the runner, as it does itself when it starts.
func (r *Runner) Record(file string) {
	r.site.tb.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	r.site.must(err)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID))
	r.site.must(err)
	start, err := strconv.ParseUint(strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[22-3], 10, 64)
	r.site.must(err)
	text, err := json.Marshal(map[string]any{
		"boot_id": strings.TrimSpace(string(boot)), "pid": r.PID, "starttime": start, "euid": os.Geteuid(), "base_dir": r.site.Base,
	})
	r.site.must(err)
	r.site.must(os.WriteFile(file, text, 0o600))
}

// A Chain is a way in which a runner starts a microVM.
type Chain string

// The chains of programs between a runner and its microVM.
const (
	Direct  Chain = "direct"  // in a process group of its own, as later runners do
	Shared  Chain = "shared"  // in the runner's process group
	Fresh   Chain = "fresh"   // sudo, ip netns exec, sudo
	Restore Chain = "restore" // sudo, unshare, bash, ip netns exec, sudo
	Older   Chain = "older"   // as Direct, and only the path of its socket says who it is
	Jailed  Chain = "jailed"  // by the jailer, in a jail
)

// A VM is a microVM that a runner has started.
type VM struct {
	ID        string
	Workspace string // or the folder of the jail
	Sockets   string // "" without
	Netns     string // "" if it has none of its own
	PID       int

	leash *os.File
}

// Spawn is what a microVM is to be like.
type Spawn struct {
	Chain   Chain
	ID      string   // "": one is made up
	Netns   string   // as made by [Site.Netns]; Fresh and Restore need one
	Program string   // instead of the stand-in for firecracker
	Argv    []string // instead of its arguments; {workspace} stands for the folder
	Below   []string // a command that is put before all
	Wait    bool     // do not wait until it is ready, which only the stand-in can say
}

// Start has a runner start a microVM, and waits until that is ready.
func (r *Runner) Start(spawn Spawn) *VM {
	r.site.tb.Helper()
	vm, wait := r.StartOnly(spawn)
	wait()
	return vm
}

// StartOnly has a runner start a microVM. The result waits until that is ready and knows its PID.
func (r *Runner) StartOnly(spawn Spawn) (vm *VM, wait func()) {
	s := r.site
	s.tb.Helper()
	vm = s.Lay(spawn.Chain, spawn.ID)
	vm.Netns = spawn.Netns
	program := spawn.Program
	if program == "" {
		program = filepath.Join(s.Bin, "firecracker")
	}
	o := order{Dir: vm.Workspace, Group: spawn.Chain != Shared}
	config, socket := filepath.Join(vm.Workspace, "config.json"), filepath.Join(vm.Sockets, "api.sock")
	switch spawn.Chain {
	case Fresh:
		o.Argv = []string{"sudo", "ip", "netns", "exec", vm.Netns, "sudo", "-u", "root", program, "--config-file", config, "--no-api"}
	case Restore:
		overlay := filepath.Join(vm.Workspace, "overlay.ext4")
		script := fmt.Sprintf("mount --bind %[1]s %[1]s && exec ip netns exec %s sudo -u root %s --api-sock %s", overlay, vm.Netns, program, socket)
		o.Argv = []string{"sudo", "unshare", "--mount", "bash", "-c", script}
	case Older:
		o.Argv, o.Dir = []string{program, "--api-sock", filepath.Join(vm.Workspace, "api.sock")}, "/"
	case Jailed:
		root := filepath.Join(vm.Workspace, "root")
		Program(s.tb, filepath.Join(root, filepath.Base(program)))
		o.Argv, o.Dir = []string{filepath.Join(s.Bin, "jailer"), "--id", vm.ID, "--root", root, "--exec-file", program}, "/"
	default:
		o.Argv = []string{program, "--api-sock", socket}
	}
	if spawn.Argv != nil {
		o.Argv = []string{program}
		for _, arg := range spawn.Argv {
			o.Argv = append(o.Argv, strings.ReplaceAll(arg, "{workspace}", vm.Workspace))
		}
	}
	o.Argv = append(append([]string{}, spawn.Below...), o.Argv...)
	r.order(o)
	return vm, func() {
		s.tb.Helper()
		if !spawn.Wait {
			vm.PID = s.ready(vm)
		}
	}
}

// Lay makes the folders of a microVM with what a runner puts there, and no process.
func (s *Site) Lay(chain Chain, id string) *VM {
	s.tb.Helper()
	if id == "" {
		raw, err := os.ReadFile("/proc/sys/kernel/random/uuid")
		s.must(err)
		id = strings.TrimSpace(string(raw))
		if chain == Older {
			id = "vm0-" + id[:8]
		}
	}
	vm := &VM{ID: id, Workspace: filepath.Join(s.Base, "workspaces", id), Sockets: filepath.Join(s.Sockets, id)}
	home := vm.Workspace
	switch chain {
	case Jailed:
		vm.Workspace, vm.Sockets = filepath.Join(s.Jails, "firecracker", id), ""
		home = filepath.Join(vm.Workspace, "root")
	case Older:
		vm.Sockets = ""
	}
	s.must(os.MkdirAll(home, 0o755))
	if vm.Sockets != "" {
		s.must(os.MkdirAll(filepath.Join(vm.Sockets, "vsock"), 0o755))
	}
	s.must(os.WriteFile(filepath.Join(home, "config.json"), []byte("{}"), 0o644))
	s.must(os.WriteFile(filepath.Join(home, "overlay.ext4"), make([]byte, 1<<16), 0o644))
	for _, name := range []string{"leash", "ready"} {
		s.must(unix.Mkfifo(filepath.Join(home, name), 0o600))
	}
	// Both ends are ours, so that neither waits for the other.
	leash, err := os.OpenFile(filepath.Join(home, "leash"), os.O_RDWR, 0)
	s.must(err)
	vm.leash = leash
	s.tb.Cleanup(func() { s.release(vm) })
	return vm
}

// Release lets go of the leash of a microVM: it ends by itself.
func (vm *VM) Release() { _ = vm.leash.Close() }

// release ends the process of a microVM, and waits until it is dead.
func (s *Site) release(vm *VM) {
	pidfd, err := -1, error(unix.ESRCH)
	if vm.PID != 0 {
		pidfd, err = unix.PidfdOpen(vm.PID, 0)
	}
	_ = vm.leash.Close()
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	// One that was stopped, or is no stand-in, has to be killed. If it was reaped the number may be another's: that one holds
	// no pipe of ours.
	if argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID)); err == nil && strings.Contains(string(argv), vm.ID) {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		_, _ = unix.Poll(fds, int(patience.Milliseconds()))
	}
}

// ready waits until a microVM has told its PID.
func (s *Site) ready(vm *VM) int {
	s.tb.Helper()
	home := vm.Workspace
	if filepath.Dir(filepath.Dir(home)) == s.Jails {
		home = filepath.Join(home, "root")
	}
	pipe, err := os.OpenFile(filepath.Join(home, "ready"), os.O_RDWR, 0)
	s.must(err)
	defer pipe.Close()
	s.must(pipe.SetReadDeadline(time.Now().Add(patience)))
	line, err := bufio.NewReader(pipe).ReadString('\n')
	s.must(err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	s.must(err)
	return pid
}

// Netns makes a network namespace with a name as runners give, and the host's end of a wire to it. It is removed with the test if
// it is still there.
func (s *Site) Netns() string {
	s.tb.Helper()
	for range 1000 {
		// A name that was just removed is not given again: another test must not be taken for what is left.
		name := fmt.Sprintf("vm0-ns-%02x-%02x", 0xd0+rand.IntN(0x30), rand.IntN(0x100))
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			if _, err := os.Lstat("/run/netns/" + name); err == nil {
				continue
			}
			s.tb.Fatalf("firecrackertest: ip netns add: %v: %s", err, out)
		}
		veth := strings.Replace(name, "-ns-", "-ve-", 1)
		s.tb.Cleanup(func() {
			_ = exec.Command("ip", "netns", "del", name).Run()
			_ = exec.Command("ip", "link", "del", veth).Run()
		})
		out, err := exec.Command("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name).CombinedOutput()
		if err != nil {
			s.tb.Fatalf("firecrackertest: ip link add: %v: %s", err, out)
		}
		return name
	}
	s.must(errors.New("every name of a network namespace is taken"))
	return ""
}

// StartAgain starts a second process in the folder of a microVM, as nobody should, and returns its PID.
func (r *Runner) StartAgain(vm *VM) int {
	r.site.tb.Helper()
	second := *vm
	r.site.tb.Cleanup(func() { r.site.release(&second) })
	r.order(order{Argv: []string{filepath.Join(r.site.Bin, "firecracker"), "--api-sock", filepath.Join(vm.Sockets, "second.sock")}, Dir: vm.Workspace, Group: true})
	second.PID = r.site.ready(vm)
	return second.PID
}

// StartIn starts a process in another folder than that of a microVM, on the leash of that, and returns its PID. The folder needs
// what is in the workspace.
func (r *Runner) StartIn(dir string, vm *VM, args ...string) int {
	r.site.tb.Helper()
	other := *vm
	r.site.tb.Cleanup(func() { r.site.release(&other) })
	r.order(order{Argv: append([]string{filepath.Join(r.site.Bin, "firecracker")}, args...), Dir: dir, Group: true})
	other.PID = r.site.ready(vm)
	return other.PID
}
