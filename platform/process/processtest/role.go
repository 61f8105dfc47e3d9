//go:build linux

package processtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is what runs inside of an owner. It takes orders from standard
// input, a word a line, and reports on descriptor 3.

const (
	roleVariable = "WATCHER_PROCESSTEST_ROLE"
	sizeVariable = "WATCHER_PROCESSTEST_SIZE" // MiB of an owner, exits of a swarm
)

// prepared is set by Main, in the process that runs the tests.
var prepared atomic.Bool

// During init the main goroutine is on the main thread; locked here it stays
// there, and Main can later end exactly that thread.
func init() {
	if os.Getenv(roleVariable) != "" {
		runtime.LockOSThread()
	}
}

// Main plays the role that this process was started for and does not return, or
// does nothing if it was started for none.
func Main() {
	role := os.Getenv(roleVariable)
	if role == "" {
		prepared.Store(true)
		return
	}
	size, err := strconv.Atoi(os.Getenv(sizeVariable))
	if err != nil {
		fail(fmt.Errorf("size: %w", err))
	}
	// Of these an owner dies as a program in C does. Go's runtime would first
	// write its stacks and then exit with a code.
	for _, sig := range []syscall.Signal{unix.SIGABRT, unix.SIGQUIT, unix.SIGTERM} {
		setDefault(sig)
	}
	if role == "owner" && size > 0 {
		if _, err := unix.Mmap(-1, 0, size<<20, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE); err != nil {
			fail(fmt.Errorf("take %d MiB: %w", size, err))
		}
	}
	leave := make(chan struct{})
	go obey(size, leave)
	<-leave
	// Not RawSyscall: Go's scheduler must know that the thread is away, or it
	// waits for it at the next collection.
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

// obey carries out orders, on a thread of its own that is not the main one.
func obey(size int, leave chan<- struct{}) {
	runtime.LockOSThread()
	reports := os.NewFile(3, "reports")
	report := func(line string) {
		if _, err := reports.WriteString(line + "\n"); err != nil {
			exit(1) // the test is gone
		}
	}
	report("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		order, words, _ := strings.Cut(in.Text(), " ")
		switch order {
		case "exit":
			exit(0)
		case "abort":
			abort(false)
		case "dump":
			abort(true)
		case "leave":
			close(leave)
			awaitZombieLeader()
			report("left")
		case "exec":
			// /proc/self is the leader's: once that is gone, it has no executable.
			fail(reexec("/proc/thread-self/exe", "processtest-execed"))
		case "become":
			var argv []string
			if err := json.Unmarshal([]byte(words), &argv); err != nil {
				fail(err)
			}
			fail(reexec(argv[0], argv[1:]...))
		case "swarm":
			swarm(size)
			report("swarmed")
		default:
			fail(fmt.Errorf("unknown order %q", in.Text()))
		}
	}
	exit(0) // the test binary has closed its end, or died
}

// exit ends the process without Go's farewell, which in a race-enabled binary
// takes a second.
func exit(code int) {
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "processtest: owner %d: %v\n", os.Getpid(), err)
	exit(1)
}

// setDefault gives a signal its default action behind the back of Go's runtime,
// which offers no way to do so.
func setDefault(sig syscall.Signal) {
	var action struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0,
		unsafe.Sizeof(action.mask), 0, 0); errno != 0 {
		fail(fmt.Errorf("default action of %v: %w", sig, errno))
	}
}

func abort(core bool) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		fail(err)
	}
	limit.Cur = 0
	if core {
		limit.Cur = limit.Max
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		fail(err)
	}
	// To this thread: another one would take it, but perhaps only after fail.
	fail(errors.Join(errors.New("survived an abort"), unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGABRT)))
}

// awaitZombieLeader looks at the leader's state until it is Z. There is nobody
// to wait for it: the kernel announces a leader's end when all threads ended.
func awaitZombieLeader() {
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for {
		stat, err := os.ReadFile("/proc/self/stat")
		if err != nil {
			fail(err)
		}
		if bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" Z ")) {
			return
		}
		<-beat.C
	}
}

// reexec returns only if it failed.
func reexec(path string, argv ...string) error {
	// The signal is an attribute of the thread that was forked, the leader, and
	// ends with it. If the parent died before this, standard input has ended.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}

// swarm makes n children that end at once. The quickest way to have such in Go
// is to start what cannot be executed: the runtime forks without copying
// memory, and the child, after its failed exec, exits and is reaped.
func swarm(n int) {
	for range n {
		if _, err := syscall.ForkExec("/", nil, nil); !errors.Is(err, unix.EACCES) {
			fail(fmt.Errorf("fork a child that cannot exec: %w", err))
		}
	}
}
