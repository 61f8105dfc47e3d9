package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

// decode reads the native protocol, written from systemd's description of it and not from encode.
func decode(b []byte) ([]field, error) {
	var fields []field
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, errors.New("the last line has no end")
		}
		if name, value, ok := bytes.Cut(line, []byte("=")); ok {
			fields = append(fields, field{string(name), string(value)})
			b = rest
			continue
		}
		if len(rest) < 8 {
			return nil, errors.New("no length")
		}
		size := binary.LittleEndian.Uint64(rest)
		rest = rest[8:]
		if size >= uint64(len(rest)) || rest[size] != '\n' {
			return nil, errors.New("the value is not as long as it says")
		}
		fields = append(fields, field{string(line), string(rest[:size])})
		b = rest[size+1:]
	}
	return fields, nil
}

// logged returns the fields that one record comes to, but for its time.
func logged(t *testing.T, log func(*slog.Logger)) []field {
	t.Helper()
	var got []field
	log(slog.New(newHandler(slog.LevelDebug, func(b []byte) error {
		fields, err := decode(b)
		if err != nil {
			t.Errorf("decode %q: %v", b, err)
		}
		got = slices.DeleteFunc(fields, func(f field) bool { return f.name == "WATCHER_TIME" })
		return nil
	})))
	return got
}

func TestEntry(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	info := []field{{"MESSAGE", "m"}, {"PRIORITY", "6"}, {"SYSLOG_IDENTIFIER", "watcher"}}
	type valued struct{ A, B int }
	for _, tt := range []struct {
		name string
		log  func(*slog.Logger)
		want []field
	}{
		{"nothing", func(l *slog.Logger) { l.Info("m") }, nil},
		{
			"a reap of a container",
			func(l *slog.Logger) {
				l.Info("m", watch.KeyEvent, watch.EventReaped, watch.KeyKind, watch.Container, watch.KeyID, id, watch.KeyName, "agent-1",
					watch.KeyImage, "img:1", watch.KeyStopUS, 2100, keyUnit, "owner.service")
			},
			[]field{
				{"WATCHER_EVENT", "reaped"},
				{"WATCHER_KIND", "container"},
				{"WATCHER_ID", id},
				{"WATCHER_NAME", "agent-1"},
				{"WATCHER_IMAGE", "img:1"},
				{"WATCHER_STOP_US", "2100"},
				{"MESSAGE_ID", messageIDs[watch.EventReaped]},
				{"OBJECT_SYSTEMD_UNIT", "owner.service"},
				{"CONTAINER_ID", id[:12]},
				{"CONTAINER_ID_FULL", id},
				{"CONTAINER_NAME", "agent-1"},
				{"IMAGE_NAME", "img:1"},
			},
		},
		{
			"the same in parts, with little known",
			func(l *slog.Logger) {
				l.With("event", "held", "kind", "container").With("id", "short").Info("m", "name", "/agent-1")
			},
			[]field{
				{"WATCHER_EVENT", "held"},
				{"WATCHER_KIND", "container"},
				{"WATCHER_ID", "short"},
				{"WATCHER_NAME", "/agent-1"},
				{"MESSAGE_ID", messageIDs[watch.EventHeld]},
				{"CONTAINER_ID", "short"},
				{"CONTAINER_ID_FULL", "short"},
				{"CONTAINER_NAME", "agent-1"},
			},
		},
		{
			"another kind has no container fields",
			func(l *slog.Logger) { l.Info("m", "kind", "firecracker", "id", "vm-1") },
			[]field{{"WATCHER_KIND", "firecracker"}, {"WATCHER_ID", "vm-1"}},
		},
		{
			"an event that is none of ours has no id, and in a group it is not the event",
			func(l *slog.Logger) { l.WithGroup("g").With("event", "reaped").Info("m", "kind", "container") },
			[]field{{"WATCHER_G_EVENT", "reaped"}, {"WATCHER_G_KIND", "container"}},
		},
		{
			"groups",
			func(l *slog.Logger) {
				l.With("a", 1).WithGroup("g").With("b", 2).WithGroup("h").Info("m", "c", 3,
					slog.Group("i", "d", 4), slog.Group("", "e", 5), slog.Group("empty"), slog.Attr{})
			},
			[]field{
				{"WATCHER_A", "1"},
				{"WATCHER_G_B", "2"},
				{"WATCHER_G_H_C", "3"},
				{"WATCHER_G_H_I_D", "4"},
				{"WATCHER_G_H_E", "5"},
			},
		},
		{
			"names that journald refuses",
			func(l *slog.Logger) {
				l.Info("m", "a.b-c é=\n", 1, "_x", 2, strings.Repeat("n", 100), 3)
			},
			[]field{
				{"WATCHER_A_B_C____", "1"},
				{"WATCHER__X", "2"},
				{"WATCHER_" + strings.Repeat("N", 56), "3"},
			},
		},
		{
			"values",
			func(l *slog.Logger) {
				l.Info("m", "lines", "one\ntwo=2\n", "empty", "", "after", 1500*time.Microsecond, "left_usec", time.Second,
					"at", time.Unix(1, 5).UTC(), "ok", true, "f", 0.5, "bytes", []byte("b\n"), "s", valued{1, 2}, "nil", nil,
					"v", valuer(func() slog.Value { return slog.StringValue("resolved") }), "ip", syscall.SIGKILL)
			},
			[]field{
				{"WATCHER_LINES", "one\ntwo=2\n"},
				{"WATCHER_EMPTY", ""},
				{"WATCHER_AFTER_USEC", "1500"},
				{"WATCHER_LEFT_USEC", "1000000"},
				{"WATCHER_AT", "1970-01-01T00:00:01.000000005Z"},
				{"WATCHER_OK", "true"},
				{"WATCHER_F", "0.5"},
				{"WATCHER_BYTES", "b\n"},
				{"WATCHER_S", "{A:1 B:2}"},
				{"WATCHER_V", "resolved"},
				{"WATCHER_IP", "killed"},
			},
		},
		{
			"an error with a number",
			func(l *slog.Logger) {
				l.Info("m", watch.KeyError, fmt.Errorf("remove: %w", &fs.PathError{Op: "unlinkat", Path: "/x", Err: syscall.EBUSY}))
			},
			[]field{{"WATCHER_ERROR", "remove: unlinkat /x: device or resource busy"}, {"ERRNO", "16"}},
		},
		{
			"an error without one",
			func(l *slog.Logger) { l.Info("m", "error", errors.New("no such container")) },
			[]field{{"WATCHER_ERROR", "no such container"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := append(slices.Clone(info), tt.want...)
			if diff := cmp.Diff(want, logged(t, tt.log), cmp.AllowUnexported(field{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Loggers made from one must not write into each other's fields.
func TestLoggersDoNotShare(t *testing.T) {
	var got [][]field
	base := slog.New(newHandler(slog.LevelInfo, func(b []byte) error {
		fields, err := decode(b)
		got = append(got, fields)
		return err
	})).With("a", 1, "b", 2, "c", 3)
	x, y := base.With("x", 1), base.With("y", 1)
	x.Info("m")
	y.Info("m")
	base.Info("m")
	for i, want := range []string{"WATCHER_X", "WATCHER_Y", "WATCHER_C"} {
		if last := got[i][len(got[i])-1].name; last != want {
			t.Errorf("logger %d: the last field is %s, want %s", i, last, want)
		}
	}
}

func TestPriorityAndLevel(t *testing.T) {
	for level, want := range map[slog.Level]string{
		slog.LevelDebug: "7", slog.LevelInfo - 1: "7", slog.LevelInfo: "6", slog.LevelInfo + 2: "5",
		slog.LevelWarn: "4", slog.LevelError: "3", slog.LevelError + 4: "2",
	} {
		got := logged(t, func(l *slog.Logger) { l.Log(t.Context(), level, "m") })
		if !slices.Contains(got, field{"PRIORITY", want}) {
			t.Errorf("level %v: %v, want priority %s", level, got, want)
		}
	}
	var level slog.LevelVar
	h := newHandler(&level, nil)
	if h.Enabled(t.Context(), slog.LevelDebug) || !h.Enabled(t.Context(), slog.LevelInfo) {
		t.Error("the level is not info")
	}
	level.Set(slog.LevelDebug)
	if !h.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("the level does not follow its variable")
	}
}

// However a key and a value look, the entry has exactly one field for them: nobody can add a field by naming a
// container.
func FuzzEntry(f *testing.F) {
	f.Add("key", "value")
	f.Add("a\nMESSAGE_ID=1", "b\nPRIORITY=0\n")
	f.Add("=", "\x00\xff\n")
	f.Fuzz(func(t *testing.T, key, value string) {
		if key == "" || key == keyUnit {
			return
		}
		got := logged(t, func(l *slog.Logger) { l.WithGroup("g").Info("m", key, value) })
		if len(got) != 4 {
			t.Fatalf("fields %q", got)
		}
		last := got[3]
		if last.value != value {
			t.Errorf("value %q became %q", value, last.value)
		}
		if len(last.name) > maxFieldName || !strings.HasPrefix(last.name, "WATCHER_G_") ||
			strings.Trim(last.name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			t.Errorf("field name %q", last.name)
		}
	})
}
