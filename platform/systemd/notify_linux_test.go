package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// manager is the receiving end of the protocol: a real socket, as systemd's.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestMessages(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, socket := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@watcher-test-%d", os.Getpid()),
	} {
		t.Run(name, func(t *testing.T) {
			conn := manager(t, socket)
			n := FromEnvironment()
			for _, tt := range []struct {
				send func() error
				want string
			}{
				{n.Ready, "READY=1"},
				{n.Watchdog, "WATCHDOG=1"},
				{n.Stopping, "STOPPING=1"},
				{func() error { return n.Status("12 sandboxes") }, "STATUS=12 sandboxes"},
				{func() error { return n.Status("a\nMAINPID=1\r\n") }, "STATUS=a MAINPID=1"},
			} {
				if err := tt.send(); err != nil {
					t.Fatal(err)
				}
				if got := receive(t, conn); got != tt.want {
					t.Errorf("the manager got %q, want %q", got, tt.want)
				}
			}
			if os.Getenv("NOTIFY_SOCKET") != socket {
				t.Error("the environment was changed")
			}
		})
	}
}

func TestReloading(t *testing.T) {
	conn := manager(t, filepath.Join(t.TempDir(), "notify"))
	before := clock(t)
	if err := FromEnvironment().Reloading(); err != nil {
		t.Fatal(err)
	}
	after := clock(t)
	usec, ok := strings.CutPrefix(receive(t, conn), "RELOADING=1\nMONOTONIC_USEC=")
	if at, err := strconv.ParseInt(usec, 10, 64); !ok || err != nil || at < before || at > after {
		t.Errorf("MONOTONIC_USEC is %s, sent between %d and %d", usec, before, after)
	}
}

func clock(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

func TestWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for _, n := range []Notifier{{}, FromEnvironment()} {
		if err := errors.Join(n.Ready(), n.Status("x"), n.Watchdog(), n.Reloading(), n.Stopping()); err != nil {
			t.Error(err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	if err := FromEnvironment().Ready(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a socket that is not there: %v", err)
	}
}

// A manager that does not read must not hold up the loop, and the shutdown only for its bound.
func TestManagerDoesNotRead(t *testing.T) {
	defer goleak.VerifyNone(t)
	conn := manager(t, filepath.Join(t.TempDir(), "notify"))
	n := FromEnvironment()
	sent := 0
	for ; ; sent++ {
		// With a bound of any length this loop would take it each time round; the test's own time limit ends it.
		err := n.Watchdog()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil || sent > 10_000 {
			t.Fatalf("ping %d: %v", sent, err)
		}
	}
	began := time.Now()
	if err := n.Status("x"); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Status says %v", err)
	}
	if err := n.Stopping(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Stopping says %v", err)
	}
	if d := time.Since(began); d < stateLimit || d > stateLimit+2*time.Second {
		t.Errorf("Status and Stopping took %v, the bound is %v", d, stateLimit)
	}
	// As soon as there is room, Ready goes through although it had to wait for it.
	done := make(chan error, 1)
	go func() { done <- n.Ready() }()
	for range sent {
		receive(t, conn)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := receive(t, conn); got != "READY=1" {
		t.Errorf("the manager got %q", got)
	}
}

func TestWatchdogInterval(t *testing.T) {
	for _, tt := range []struct {
		usec, pid string
		want      time.Duration
		fails     bool
	}{
		{"", "", 0, false},
		{"30000000", "", 15 * time.Second, false},
		{"30000000", strconv.Itoa(os.Getpid()), 15 * time.Second, false},
		{"30000000", "1", 0, false}, // another's watchdog
		{"soon", "", 0, true},
		{"0", "", 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		got, err := WatchdogInterval()
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %v, %v", tt.usec, tt.pid, got, err)
		}
		if os.Getenv("WATCHDOG_USEC") != tt.usec {
			t.Error("the environment was changed")
		}
	}
}
