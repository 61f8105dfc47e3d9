package connector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test binary is its own helper: what it then does is named in the environment.
const helperVariable = "WATCHER_CONNECTOR_HELPER"

// The leader is the thread that runs init, so what a leader does must be done here.
func init() {
	if os.Getenv(helperVariable) != "leader exits first" {
		return
	}
	runtime.LockOSThread()
	go func() {
		awaitEOF()
		os.Exit(5)
	}()
	// Not a raw system call: the runtime must know that this thread is busy, or it waits for it for ever.
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

func TestMain(m *testing.M) {
	helper := os.Getenv(helperVariable)
	var argument string
	if len(os.Args) > 1 {
		argument = os.Args[1]
	}
	switch helper {
	case "":
		os.Exit(m.Run())
	case "exit":
		code, err := strconv.Atoi(argument)
		must(err)
		os.Exit(code)
	case "wait":
		fmt.Println("ready")
		awaitEOF()
	case "exec":
		must(os.Setenv(helperVariable, "exec from a worker"))
		must(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "exec from a worker":
		must(os.Setenv(helperVariable, "wait"))
		execFromWorker()
	case "dump core":
		dumpCore()
	case "seccomp":
		killThread()
		fmt.Println("ready")
		awaitEOF()
	case "flood":
		n, err := strconv.Atoi(argument)
		must(err)
		for range n {
			canary()
		}
	case "listen":
		l, err := Listen(context.Background(), Options{})
		if err == nil {
			fmt.Println(l.Level())
			must(l.Close())
			return
		}
		fmt.Println(err)
		for i, h := range hints {
			if errors.Is(err, h.err) {
				os.Exit(10 + i)
			}
		}
		os.Exit(1)
	default:
		panic("unknown helper " + helper)
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// execFromWorker execs from a thread that is not the leader.
func execFromWorker() {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		must(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	// We hold the leader.
	go execFromWorker()
	select {}
}

func awaitEOF() {
	_, err := io.Copy(io.Discard, os.Stdin)
	must(err)
}

// dumpCore aborts as a C program would, past Go's own handler, with a core of at most 64 KiB.
func dumpCore() {
	var limit unix.Rlimit
	must(unix.Getrlimit(unix.RLIMIT_CORE, &limit))
	limit.Cur = min(limit.Max, 64<<10)
	must(unix.Setrlimit(unix.RLIMIT_CORE, &limit))
	var byDefault [64]byte // struct sigaction of zeros: SIG_DFL
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGABRT), uintptr(unsafe.Pointer(&byDefault)), 0, maskSize, 0, 0)
	if errno != 0 {
		panic(errno)
	}
	must(unix.Kill(os.Getpid(), unix.SIGABRT))
	awaitEOF()
}

// killThread ends one thread of this process with SIGSYS, as seccomp(2) does with SECCOMP_RET_KILL_THREAD.
func killThread() {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		// If this is the leader, it is a leader that exits first: all the better.
		must(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		program := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPGID, Jf: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_THREAD},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}
		fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
		must(unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0))
		close(started)
		_, _, _ = unix.Syscall(unix.SYS_GETPGID, 0, 0, 0)
	}()
	<-started
}
