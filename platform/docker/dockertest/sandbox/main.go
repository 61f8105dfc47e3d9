//go:build linux

// Command sandbox is all that a test's container runs: PID 1 of an image with
// nothing else in it. Its arguments choose how it behaves.
//
//	sandbox [sleep]      sleeps for ever, ends at once on SIGTERM
//	sandbox deaf         sleeps for ever, ignores whatever can be ignored
//	sandbox exit CODE    ends at once
//	sandbox spawn N      sleeps with N sleeping children, the last of them in
//	                     a session of its own and deaf, as under nohup
//
// Once it handles the signals that end it, its name (comm) is "ready".
//
// It lives by the standard library alone: dockertest embeds this file and
// builds it outside of any module.
package main

import (
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
)

// The name of a process is that of its first thread, which can name only itself.
func init() { runtime.LockOSThread() }

func main() {
	mode, arg := "sleep", 0
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	if len(os.Args) > 2 {
		n, err := strconv.Atoi(os.Args[2])
		if err != nil {
			usage()
		}
		arg = n
	}
	switch mode {
	case "sleep":
	case "deaf":
		// PID 1 of a namespace ignores by itself what it does not handle, but
		// Go's runtime handles everything: it has to be told.
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
		sleep(syscall.SIGUSR1)
	case "exit":
		os.Exit(arg)
	case "spawn":
		for i := range arg {
			spawn(i == arg-1)
		}
	default:
		usage()
	}
	sleep(syscall.SIGTERM, syscall.SIGINT)
}

// sleep ends when one of the signals arrives. A channel of signals, unlike an
// empty select, does not make Go's runtime call it a deadlock.
func sleep(until ...os.Signal) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, until...)
	if err := os.WriteFile("/proc/self/comm", []byte("ready"), 0); err != nil {
		os.Stderr.WriteString("sandbox: name ourselves: " + err.Error() + "\n")
	}
	<-c
	os.Exit(0)
}

func spawn(aloof bool) {
	args := []string{os.Args[0], "sleep"}
	attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}
	if aloof {
		args[1] = "deaf"
		attr.Sys = &syscall.SysProcAttr{Setsid: true}
	}
	if _, err := syscall.ForkExec(os.Args[0], args, attr); err != nil {
		os.Stderr.WriteString("sandbox: spawn: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func usage() {
	os.Stderr.WriteString("usage: sandbox [sleep | deaf | exit CODE | spawn N]\n")
	os.Exit(2)
}
