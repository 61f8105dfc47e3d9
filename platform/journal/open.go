package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"github.com/lmittmann/tint"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Formats that [Open] takes.
const (
	Auto    = "auto" // Journal under systemd, else Text on a terminal, else JSON
	Text    = "text"
	JSON    = "json"
	Journal = "journal"
)

// A Log is an open log. Its Logger may be handed to anyone and outlives Close, after which records go nowhere.
type Log struct {
	*slog.Logger

	format string
	queue  *queue
}

// Open opens the log in the given format for records of at least the given level (nil means info). stderr is the
// process's standard error; it is not closed by [Log.Close].
func Open(format string, level slog.Leveler, stderr *os.File) (*Log, error) {
	if level == nil {
		level = slog.LevelInfo
	}
	out, err := inspect(stderr)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}

	var (
		handler slog.Handler
		sink    io.Closer
	)
	chosen := format
	switch format {
	case Auto:
		// JOURNAL_STREAM is inherited by children whose standard error goes elsewhere: only a match of device and inode
		// says that this one is journald's. A malformed value is no match.
		if match, err := sdjournal.StderrIsJournalStream(); match && err == nil && out.isStderr {
			// A container may have the stream and not the socket. Then the stream it is.
			if s, err := dial(socketPath); err == nil {
				chosen, handler, sink = Journal, newHandler(level, s.send), s
				break
			}
		}
		chosen = JSON
		if out.terminal {
			chosen = Text
		}
	case Text, JSON:
	case Journal:
		s, err := dial(socketPath)
		if err != nil {
			return nil, fmt.Errorf("open log: format %q needs systemd-journald on this host: %w", format, err)
		}
		handler, sink = newHandler(level, s.send), s
	default:
		return nil, fmt.Errorf("open log: unknown format %q: it is one of %s",
			format, strings.Join([]string{Auto, Text, JSON, Journal}, ", "))
	}

	if handler == nil {
		w, err := out.dup()
		if err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
		sink = w
		if chosen == Text {
			handler = textHandler(w, level, out.terminal)
		} else {
			handler = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
		}
	}
	q := newQueue(handler, capacity, sink)
	return &Log{Logger: slog.New(q.handler()), format: chosen, queue: q}, nil
}

// Format is the format in use: the one asked for, or what [Auto] came to.
func (l *Log) Format() string { return l.format }

// Dropped is how many records were not written, since the start.
func (l *Log) Dropped() uint64 { return l.queue.droppedTotal() }

// Close writes what is queued, for as long as ctx allows. The error is an [UnwrittenError] if records were left.
func (l *Log) Close(ctx context.Context) error { return l.queue.close(ctx) }

// stream is what Open needs to know of a file, asked for without Fd, which would make the file blocking for everyone
// who shares it.
type stream struct {
	conn     syscall.RawConn
	isStderr bool
	terminal bool
}

func inspect(f *os.File) (stream, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return stream{}, fmt.Errorf("standard error: %w", err)
	}
	s := stream{conn: conn}
	err = conn.Control(func(fd uintptr) {
		s.isStderr = fd == uintptr(syscall.Stderr)
		s.terminal = term.IsTerminal(int(fd))
	})
	return s, err
}

// dup returns a descriptor of our own. Go ends the program when a write to descriptor 1 or 2 finds the reader gone; on
// any other descriptor it is an error like the rest (J6).
func (s stream) dup() (*os.File, error) {
	var (
		dup    int
		dupErr error
	)
	err := s.conn.Control(func(fd uintptr) {
		dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("duplicate standard error: %w", err)
	}
	return os.NewFile(uintptr(dup), "stderr"), nil
}

func textHandler(w io.Writer, level slog.Leveler, terminal bool) slog.Handler {
	return tint.NewTextHandler(w, &tint.Options{
		Level:       level,
		TimeFormat:  "15:04:05.000",
		NoColor:     !terminal || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb",
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { return printable(a) },
	})
}

// printable takes the control characters out of a text, which on a terminal could recolour, overwrite or retitle: tint
// lets ESC through when it colours, and much of what we log was named by a sandbox's owner.
func printable(a slog.Attr) slog.Attr {
	var text string
	switch a.Value.Kind() {
	case slog.KindString:
		text = a.Value.String()
	case slog.KindAny:
		text = anyText(a.Value.Any())
	}
	if !strings.ContainsFunc(text, isControl) {
		return a
	}
	return slog.String(a.Key, strings.Map(func(r rune) rune {
		if isControl(r) {
			return '\uFFFD'
		}
		return r
	}, text))
}

// isControl reports C0, DEL and C1, but for tab and newline, which tint quotes.
func isControl(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' || r >= 0x7f && r < 0xa0
}
