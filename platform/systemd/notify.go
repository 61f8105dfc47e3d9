// Package systemd tells the service manager how the daemon is doing, by the sd_notify protocol.
//
// Without a manager that listens (NOTIFY_SOCKET unset) everything here does nothing and succeeds. The environment is
// only read: what the daemon starts sees the same variables, and the unit's NotifyAccess=main is what keeps children
// from speaking for it.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// stateLimit bounds the wait of a message that must not be lost. A manager that has not read for a second has other
// troubles than ours, and the shutdown must not wait for it.
const stateLimit = time.Second

// A Notifier sends to the service manager. The zero Notifier is silent.
//
// daemon.SdNotify is not used to send: it waits without a bound while the manager's queue is full, which with a stopped
// manager is after some ten messages.
type Notifier struct {
	socket string
}

// FromEnvironment returns the Notifier for the manager that started us, a silent one if none did.
func FromEnvironment() Notifier { return Notifier{socket: os.Getenv("NOTIFY_SOCKET")} }

// Ready says that the start, or the reload announced by [Notifier.Reloading], is complete. It waits at most one second.
func (n Notifier) Ready() error { return n.send(daemon.SdNotifyReady, stateLimit) }

// Stopping says that the daemon is shutting down. It waits at most one second.
func (n Notifier) Stopping() error { return n.send(daemon.SdNotifyStopping, stateLimit) }

// Reloading says that a reload has begun; [Notifier.Ready] must follow. It waits at most one second.
func (n Notifier) Reloading() error {
	if n.socket == "" {
		return nil
	}
	// The time tells the manager which of several reloads a READY=1 answers.
	now, err := monotonic()
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Microseconds()), stateLimit)
}

// Status shows one line of text in the unit's status. It never waits: with a full queue the text is not shown and the
// error says so, which a loop may ignore.
func (n Notifier) Status(text string) error {
	// A newline would begin another assignment.
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
	return n.send("STATUS="+text, 0)
}

// Watchdog says that the daemon is alive. It never waits: a ping that found no room is made up for by the next.
func (n Notifier) Watchdog() error { return n.send(daemon.SdNotifyWatchdog, 0) }

// send sends one message; it waits for room for at most limit, and not at all if that is 0.
func (n Notifier) send(state string, limit time.Duration) error {
	if n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer conn.Close()
	if limit == 0 {
		err = writeOnce(conn, state)
	} else if err = conn.SetWriteDeadline(time.Now().Add(limit)); err == nil {
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		name, _, _ := strings.Cut(state, "=")
		return fmt.Errorf("notify service manager: %s: %w", name, err)
	}
	return nil
}

// writeOnce tries one write. A deadline in the past would not do: Go then does not try at all.
func writeOnce(conn *net.UnixConn, state string) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var writeErr error
	err = raw.Write(func(fd uintptr) bool {
		_, writeErr = syscall.Write(int(fd), []byte(state))
		return true // whatever came of it, do not wait
	})
	return errors.Join(err, writeErr)
}

// WatchdogInterval is how often [Notifier.Watchdog] is due: half of what the unit's WatchdogSec= allows, as
// sd_watchdog_enabled(3) advises. 0 means that no watchdog waits for us.
func WatchdogInterval() (time.Duration, error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("read the watchdog's interval: %w", err)
	}
	return limit / 2, nil
}
