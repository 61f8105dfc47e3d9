//go:build linux

// Command standin stands in for the programs around a microVM, by the name that it is started with: firecracker, runner and
// jailer. It is built of the standard library alone, static, so that it runs in an empty jail.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); {
	case name == "jailer":
		err = jailer(os.Args[1:])
	case len(os.Args) > 1 && os.Args[1] == "run":
		err = runner()
	default:
		err = firecracker(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "stand-in %s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
}

// option returns the value of an option in either of its forms.
func option(args []string, name string) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			return value
		}
		if arg == name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// firecracker opens what a microVM has open, and lives until whoever holds the other end of its leash is gone. Both are in its
// folder: a pipe called leash, and one called ready, through which it tells its PID.
func firecracker(args []string) error {
	home := "."
	for _, name := range []string{"--config-file", "--api-sock"} {
		if dir := filepath.Dir(option(args, name)); filepath.Base(filepath.Dir(filepath.Dir(dir))) != "" {
			if _, err := os.Stat(filepath.Join(dir, "leash")); err == nil {
				home = dir
			}
		}
	}
	if file := option(args, "--config-file"); file != "" {
		if _, err := os.ReadFile(file); err != nil {
			return err
		}
	}
	overlay, err := os.OpenFile(filepath.Join(home, "overlay.ext4"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer overlay.Close()
	if file := option(args, "--api-sock"); file != "" {
		socket, err := net.Listen("unix", file)
		if err != nil {
			return err
		}
		defer socket.Close()
	}
	leash, err := os.Open(filepath.Join(home, "leash"))
	if err != nil {
		return err
	}
	ready, err := os.OpenFile(filepath.Join(home, "ready"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(ready, os.Getpid()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, leash)
	return err
}

// An order is what a runner is told, a line of JSON each.
type order struct {
	Argv  []string // start this
	Dir   string   // in this folder
	Group bool     // in a process group of its own
	Exec  []string // become this: a path and its argv
	Lock  string   // lock this file, for as long as the runner lives
	Text  string   // and write this into it
	Exit  bool
}

// locks keeps the files that a runner has locked from being closed.
var locks []*os.File

func lock(o order) error {
	file, err := os.OpenFile(o.Lock, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	locks = append(locks, file)
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	_, err = file.WriteString(o.Text)
	return err
}

// runner starts what it is told to, and ends with its input. It waits for its children, as runners do.
func runner() error {
	orders, answers := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	answer := func(err error) error {
		text := "ok"
		if err != nil {
			text = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		_, _ = answers.WriteString(text + "\n")
		return answers.Flush()
	}
	if err := answer(nil); err != nil {
		return err
	}
	for {
		line, err := orders.ReadBytes('\n')
		if err != nil {
			return nil // the tests are gone
		}
		var o order
		if err := json.Unmarshal(line, &o); err != nil {
			return err
		}
		switch {
		case o.Exit:
			return nil
		case len(o.Exec) > 0:
			err = syscall.Exec(o.Exec[0], o.Exec[1:], os.Environ())
		case len(o.Argv) > 0:
			err = start(o)
		case o.Lock != "":
			err = lock(o)
		}
		if err := answer(err); err != nil {
			return err
		}
	}
}

func start(o order) error {
	cmd := exec.Command(o.Argv[0], o.Argv[1:]...)
	cmd.Dir, cmd.Stderr = o.Dir, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: o.Group}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// jailer does what Firecracker's own does: it changes the root of a mount namespace of its own to the jail, and becomes what is
// in it, with the arguments that it gives.
func jailer(args []string) error {
	id, root, program := option(args, "--id"), option(args, "--root"), option(args, "--exec-file")
	if id == "" || root == "" {
		return errors.New("want --id and --root")
	}
	runtime.LockOSThread() // the namespace is that of the thread
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount /: %w", err)
	}
	// The new root must be a mount point (pivot_root(2)).
	if err := syscall.Mount(root, root, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := syscall.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if option(args, "--daemonize") != "" {
		if _, err := syscall.Setsid(); err != nil {
			return fmt.Errorf("setsid: %w", err)
		}
	}
	argv := []string{"/" + filepath.Base(program), "--id=" + id, fmt.Sprintf("--start-time-us=%d", time.Now().UnixMicro())}
	return fmt.Errorf("exec: %w", syscall.Exec("/"+filepath.Base(program), argv, []string{}))
}
