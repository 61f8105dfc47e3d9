//go:build linux

package gomicrovmtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file is what runs inside of a bbox and of a runner. Descriptor 3 ends when the test does; a bbox takes orders from 4, a
// word a line, and reports on 5.

const (
	roleVariable = "WATCHER_GOMICROVMTEST_ROLE"
	planVariable = "WATCHER_GOMICROVMTEST_PLAN"
)

// leash is never closed, and must not be collected: that would close it.
var leash *os.File

// Main plays the role that this process was started for and does not return, or does nothing if it was started for none.
func Main() {
	role := os.Getenv(roleVariable)
	if role == "" {
		return
	}
	leash = os.NewFile(3, "leash")
	go func() {
		_, _ = io.Copy(io.Discard, leash)
		os.Exit(0)
	}()
	var p plan
	err := json.Unmarshal([]byte(os.Getenv(planVariable)), &p)
	if err == nil {
		switch role {
		case "bbox":
			err = bbox(p)
		case "runner":
			err = run(p)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "gomicrovmtest: %s %d: %v\n", role, os.Getpid(), err)
		os.Exit(1)
	}
	os.Exit(0)
}

func bbox(p plan) error {
	if err := os.MkdirAll(p.Folder, 0o700); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if !p.LogFile {
		if p.OldBBox {
			exe = ""
		}
		err = errors.Join(WriteSentinel(p.Folder, os.Getpid(), exe), os.WriteFile(filepath.Join(p.Folder, "broodbox.log"), []byte("log\n"), 0o600))
		if err != nil {
			return err
		}
	}
	data := filepath.Join(p.Folder, Data)
	root := filepath.Join(data, "rootfs-work")
	if p.Cached {
		root = filepath.Join(filepath.Dir(p.Folder), "..", "images", "sha256")
	}
	for i := range max(p.Files, 3) {
		dir := filepath.Join(root, "usr", fmt.Sprint("d", i%16))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), make([]byte, 64<<10), 0o644); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	runner, out, err := spawn(p, data, root)
	if err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(p.Folder, Lock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if !p.NoState {
		if err := WriteState(p.Folder, true, runner.Process.Pid); err != nil {
			return err
		}
	}
	if !p.HoldsLock {
		_ = lock.Close()
	}
	said, err := json.Marshal(report{runner.Process.Pid, out})
	if err != nil {
		return err
	}
	reports := os.NewFile(5, "reports")
	if _, err := reports.Write(append(said, '\n')); err != nil {
		return err
	}
	_ = reports.Close()
	reaped := make(chan struct{})
	pidfd, err := unix.PidfdOpen(runner.Process.Pid, 0)
	if err != nil {
		return err
	}
	go func() {
		_ = runner.Wait() // as the real one, which leaves no zombie
		close(reaped)
	}()
	orders := bufio.NewScanner(os.NewFile(4, "orders"))
	for orders.Scan() {
		switch order, argument, _ := strings.Cut(orders.Text(), " "); order {
		case "exit":
			return nil
		case "stop":
			return stop(p, pidfd, reaped)
		case "become":
			// Only the leash is kept: the program reads it and ends with it.
			if err := unix.Dup2(3, 0); err != nil {
				return err
			}
			return syscall.Exec(argument, []string{filepath.Base(argument)}, []string{})
		default:
			return fmt.Errorf("unknown order %q", orders.Text())
		}
	}
	select {} // until the leash ends
}

// stop is what bbox does when its agent has ended.
//
// The real one sends the signal to the group by its number; this one to whom it holds, for a test must hit nobody else.
func stop(p plan, runner int, reaped <-chan struct{}) error {
	if err := unix.PidfdSendSignal(runner, unix.SIGTERM, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP); err != nil {
		return err
	}
	<-reaped
	return errors.Join(WriteState(p.Folder, false, 0), os.RemoveAll(filepath.Join(p.Folder, Data)))
}

// spawn starts a runner with the argument that go-microvm gives it.
func spawn(p plan, data, root string) (runner *exec.Cmd, child int, err error) {
	config, err := json.Marshal(struct {
		Root    string           `json:"root_path"`
		CPUs    uint32           `json:"num_vcpus"`
		RAM     uint32           `json:"ram_mib"`
		Socket  string           `json:"net_sock_path,omitempty"`
		Mounts  []map[string]any `json:"virtiofs_mounts,omitempty"`
		Console string           `json:"console_log_path,omitempty"`
	}{
		root, 2, 4096, filepath.Join(data, "hosted-net.sock"),
		[]map[string]any{{"tag": "workspace", "path": "/home/ann/src"}},
		filepath.Join(data, "console.log"),
	})
	if err != nil {
		return nil, 0, err
	}
	log, err := os.OpenFile(filepath.Join(data, "vm.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, 0, err
	}
	defer log.Close()
	ready, said, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer ready.Close()
	runner = exec.Command(p.Runner, string(config))
	runner.Env = append(os.Environ(), roleVariable+"=runner")
	runner.Stdout, runner.Stderr = log, log
	runner.ExtraFiles = []*os.File{leash, said}
	runner.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.UserNS {
		one := []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}}
		runner.SysProcAttr.Cloneflags, runner.SysProcAttr.UidMappings, runner.SysProcAttr.GidMappings = syscall.CLONE_NEWUSER, one, one
	}
	if err := runner.Start(); err != nil {
		return nil, 0, err
	}
	_ = said.Close()
	_, err = fmt.Fscan(ready, &child)
	return runner, child, err
}

// run is what a runner does: nothing, until it is told to end.
func run(p plan) error {
	if p.Stubborn {
		signal.Ignore(unix.SIGTERM)
	}
	pid := 0
	if p.Child {
		child := exec.Command("sh", "-c", "read x <&3")
		child.ExtraFiles = []*os.File{leash}
		if err := child.Start(); err != nil {
			return err
		}
		pid = child.Process.Pid
		go func() { _ = child.Wait() }()
	}
	said := os.NewFile(4, "ready")
	if _, err := fmt.Fprintln(said, pid); err != nil {
		return err
	}
	_ = said.Close()
	select {}
}
