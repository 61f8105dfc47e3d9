package journal

import (
	"context"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"

	"watcher/watch"
)

// fieldPrefix keeps our fields apart from everybody else's.
const fieldPrefix = "WATCHER_"

// maxFieldName is journald's limit; a field with a longer name is thrown away without a word.
const maxFieldName = 64

// shortID is how many characters of a container's ID the engine's journald driver puts into CONTAINER_ID.
const shortID = 12

// A field of a journal entry. A name may occur more than once.
type field struct{ name, value string }

// handler is a slog.Handler that makes a journal entry of each record.
type handler struct {
	level slog.Leveler
	send  func([]byte) error

	prefix string // WATCHER_, and the groups that are open
	state  entryState
}

// entryState is an entry in the making: what attributes have added so far.
type entryState struct {
	fields []field

	// Attributes outside any group that mean more than their own field.
	event, kind, id, name, image, unit string

	errno syscall.Errno // of the first error that has one
}

func newHandler(level slog.Leveler, send func([]byte) error) *handler {
	return &handler{level: level, send: send, prefix: fieldPrefix}
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h2 := *h
	h2.state.fields = slices.Clip(h.state.fields)
	for _, a := range attrs {
		h2.state.add(h.prefix, a)
	}
	return &h2
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	h2 := *h
	h2.prefix += name + "_"
	return &h2
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	return h.send(encode(h.entry(r)))
}

// entry lists the fields of a record.
func (h *handler) entry(r slog.Record) []field {
	e := h.state
	e.fields = []field{
		{"MESSAGE", r.Message},
		{"PRIORITY", strconv.Itoa(int(priority(r.Level)))},
		{"SYSLOG_IDENTIFIER", "watcher"},
	}
	if !r.Time.IsZero() {
		// journald stamps an entry when it arrives, which after a jam is not when it was written.
		e.fields = append(e.fields, field{fieldPrefix + "TIME", r.Time.Format(time.RFC3339Nano)})
	}
	e.fields = append(e.fields, h.state.fields...)
	r.Attrs(func(a slog.Attr) bool {
		e.add(h.prefix, a)
		return true
	})

	if id, ok := messageIDs[e.event]; ok {
		e.fields = append(e.fields, field{"MESSAGE_ID", id})
	}
	if e.errno != 0 {
		e.fields = append(e.fields, field{"ERRNO", strconv.Itoa(int(e.errno))})
	}
	if e.unit != "" {
		e.fields = append(e.fields, field{"OBJECT_SYSTEMD_UNIT", e.unit})
	}
	if e.kind == string(watch.Container) {
		e.addContainer()
	}
	return e.fields
}

// addContainer adds the fields by which the engine's own journald driver names a container, so that one filter finds
// what the container said and what became of it.
func (e *entryState) addContainer() {
	for _, f := range []field{
		{"CONTAINER_ID", e.id[:min(len(e.id), shortID)]},
		{"CONTAINER_ID_FULL", e.id},
		{"CONTAINER_NAME", strings.TrimPrefix(e.name, "/")},
		{"IMAGE_NAME", e.image},
	} {
		if f.value != "" {
			e.fields = append(e.fields, f)
		}
	}
}

func (e *entryState) add(prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if a.Key == "" && v.Kind() != slog.KindGroup {
		return // slog's rule: no key, no attribute
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" { // a group without a name is inlined
			prefix += a.Key + "_"
		}
		for _, b := range v.Group() {
			e.add(prefix, b)
		}
		return
	}

	name := prefix + a.Key
	var text string
	switch v.Kind() {
	case slog.KindDuration:
		// systemd's convention for a duration: microseconds, and the name says so.
		if !strings.HasSuffix(strings.ToUpper(name), "_USEC") {
			name += "_USEC"
		}
		text = strconv.FormatInt(v.Duration().Microseconds(), 10)
	case slog.KindTime:
		text = v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		if v.Any() == nil {
			return
		}
		text = anyText(v.Any())
		if err, ok := v.Any().(error); ok && e.errno == 0 {
			errors.As(err, &e.errno)
		}
	default:
		text = v.String()
	}

	if prefix == fieldPrefix && e.note(a.Key, text) {
		return
	}
	e.fields = append(e.fields, field{fieldName(name), text})
}

// note keeps an attribute that means more than its own field. It says true if that replaces the field.
func (e *entryState) note(key, text string) bool {
	switch key {
	case keyEvent:
		e.event = text
	case watch.KeyKind:
		e.kind = text
	case watch.KeyID:
		e.id = text
	case watch.KeyName:
		e.name = text
	case watch.KeyImage:
		e.image = text
	case keyUnit:
		e.unit = text
		return true
	}
	return false
}

// anyText is what slog's text handler would print.
func anyText(v any) string {
	switch v := v.(type) {
	case error:
		return v.Error()
	case encoding.TextMarshaler:
		if text, err := v.MarshalText(); err == nil {
			return string(text)
		}
	case []byte:
		return string(v)
	}
	return fmt.Sprintf("%+v", v)
}

// fieldName maps a name to what journald takes: A to Z, digits and underscores. Anything else becomes an underscore.
func fieldName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		default:
			return '_'
		}
	}, name)
	return name[:min(len(name), maxFieldName)]
}

// priority maps a level to syslog's scale. slog leaves room between its levels, and notice and crit lie there.
func priority(level slog.Level) sdjournal.Priority {
	switch {
	case level > slog.LevelError:
		return sdjournal.PriCrit
	case level == slog.LevelError:
		return sdjournal.PriErr
	case level >= slog.LevelWarn:
		return sdjournal.PriWarning
	case level > slog.LevelInfo:
		return sdjournal.PriNotice
	case level == slog.LevelInfo:
		return sdjournal.PriInfo
	default:
		return sdjournal.PriDebug
	}
}

// encode writes fields in journald's native protocol: NAME=value and a newline, or, for a value with a newline in it,
// the name, a newline, the length as 64 bits, little-endian, the value, a newline.
func encode(fields []field) []byte {
	var b []byte
	for _, f := range fields {
		b = append(b, f.name...)
		if strings.Contains(f.value, "\n") {
			b = append(b, '\n')
			b = binary.LittleEndian.AppendUint64(b, uint64(len(f.value)))
		} else {
			b = append(b, '=')
		}
		b = append(b, f.value...)
		b = append(b, '\n')
	}
	return b
}
