package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"watcher/watch"
)

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Error(err)
	}
}

// written returns what log writes to a pipe in the given format.
func written(t *testing.T, format string, level slog.Leveler, log func(*Log)) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := Open(format, level, w)
	if err != nil {
		t.Fatal(err)
	}
	log(l)
	closeLog(t, l)
	w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestJSON(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, format := range []string{JSON, Auto} { // a pipe is no terminal
		out := written(t, format, nil, func(l *Log) {
			if l.Format() != JSON {
				t.Errorf("format %s came to %s", format, l.Format())
			}
			l.Debug("below the level")
			l.Info("sandbox reaped", watch.KeyEvent, watch.EventReaped, watch.KeyError, unix.EBUSY, watch.KeyStopUS, 2100)
		})
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if got["event"] != "reaped" || got["stop_us"] != 2100.0 || got["error"] != "device or resource busy" || got["level"] != "INFO" {
			t.Errorf("the record is %v", got)
		}
	}
}

func TestTextInAPipeIsPlain(t *testing.T) {
	out := written(t, Text, slog.LevelError, func(l *Log) {
		l.Info("below the level")
		l.Error("one", "name", "a b", "error", errors.New("x\x1b[31m"))
	})
	if strings.Count(out, "\n") != 1 || strings.Contains(out, "\x1b") || !strings.Contains(out, `name="a b"`) {
		t.Errorf("text in a pipe is %q", out)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open("jsno", nil, os.Stderr); err == nil || !strings.Contains(err.Error(), `"jsno"`) {
		t.Errorf("an unknown format: %v", err)
	}
}

// openTerminal returns both ends of a new pseudo-terminal.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if cerr := conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); errors.Join(cerr, err) != nil {
		t.Fatal(errors.Join(cerr, err))
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return master, terminal
}

func TestTerminal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	for _, tt := range []struct {
		name, noColor, term string
		colour              bool
	}{
		{"colour", "", "xterm", true},
		{"NO_COLOR", "1", "xterm", false},
		{"dumb", "", "dumb", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", tt.noColor)
			t.Setenv("TERM", tt.term)
			master, terminal := openTerminal(t)
			l, err := Open(Auto, nil, terminal)
			if err != nil {
				t.Fatal(err)
			}
			if l.Format() != Text {
				t.Errorf("the format on a terminal is %s", l.Format())
			}
			l.Warn("\x1b[2Jmessage", "name", "\x1b]0;owned\a", "any", struct{ S string }{"\x1b[5m"}, "level", slog.LevelInfo)
			closeLog(t, l)
			if err := master.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(master).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(line, "\x1b["); got != tt.colour {
				t.Errorf("coloured: %v, want %v: %q", got, tt.colour, line)
			}
			for _, evil := range []string{"\x1b[2J", "\x1b]0", "\x1b[5m", "\a"} {
				if strings.Contains(line, evil) {
					t.Errorf("%q got through to the terminal: %q", evil, line)
				}
			}
		})
	}
}

// J1, J5 on a real pipe that nobody reads, as of a log collector that hangs.
func TestFullPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	l, err := Open(JSON, nil, w)
	if err != nil {
		t.Fatal(err)
	}
	const calls = 3 * capacity
	for i := range calls {
		l.Info("record", "i", i)
	}
	if l.Dropped() == 0 {
		t.Error("nothing was dropped, so the pipe was never full")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	var unwritten *UnwrittenError
	if err := l.Close(ctx); !errors.As(err, &unwritten) || unwritten.Records < l.Dropped() {
		t.Errorf("Close says %v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("Close took %v", d)
	}
	w.Close()
	out, err := io.ReadAll(r) // ends because Close closed our own descriptor too
	if err != nil {
		t.Fatal(err)
	}
	lines := uint64(bytes.Count(out, []byte("\n")))
	if lines+unwritten.Records != calls {
		t.Errorf("%d records in the pipe and %d left of %d", lines, unwritten.Records, calls)
	}
}

// descriptor2 is standard error itself: os.Stderr is another descriptor in a test whose output is to be JSON. It lives as
// long as the process, because its end would close the descriptor.
var descriptor2 = os.NewFile(2, "stderr")

// J6: the reader of standard error goes away. On descriptor 2 itself Go would end the program.
func TestReaderGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	saved, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Control(func(fd uintptr) { err = unix.Dup3(int(fd), 2, 0) }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Dup3(saved, 2, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
		unix.Close(saved)
	}()
	w.Close()
	l, err := Open(JSON, nil, descriptor2)
	if err != nil {
		t.Fatal(err)
	}
	// A process that another test is just forking would have the reading end, too, until its exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	r.Close()
	l.Info("nobody reads this")
	var unwritten *UnwrittenError
	if err := l.Close(t.Context()); !errors.As(err, &unwritten) || !errors.Is(err, unix.EPIPE) {
		t.Errorf("Close says %v", err)
	}
}
