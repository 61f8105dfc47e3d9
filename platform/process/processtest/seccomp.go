//go:build linux

package processtest

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Filter has seccomp(2) answer one system call with a verdict from now on: in this thread, or with the flag
// SECCOMP_FILTER_FLAG_TSYNC in all of this process. It cannot be undone.
func Filter(call, verdict uint32, flags uintptr) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_NO_NEW_PRIVS: %w", err)
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: verdict},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// WithoutPidfds makes this process one on a kernel before Linux 5.3, as far as pidfds go.
func WithoutPidfds() error {
	return Filter(unix.SYS_PIDFD_OPEN, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS), unix.SECCOMP_FILTER_FLAG_TSYNC)
}
