package connector

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// captured returns real datagrams by name.
func captured(tb testing.TB) map[string][]byte {
	tb.Helper()
	text, err := os.ReadFile("testdata/datagrams.txt")
	if err != nil {
		tb.Fatal(err)
	}
	datagrams := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		if datagrams[name], err = hex.DecodeString(digits); err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		tb.Skip("the captured datagrams are little-endian")
	}
	return datagrams
}

func TestParse(t *testing.T) {
	datagrams := captured(t)
	for name, want := range map[string]message{
		"reply":               {what: eventReply, ack: 0x01020305},
		"exit-7":              {what: eventExit, status: 0x700},
		"exit-sigkill":        {what: eventExit, status: 9},
		"coredump":            {what: eventCoredump},
		"exit-sigabrt-dumped": {what: eventExit, status: 0x86},
		"exit-thread":         {what: eventExit},
		"fork-thread":         {what: 0x1},
		"exec":                {what: eventExec},
	} {
		got, err := parse(datagrams[name])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		named := want.what == eventExit || want.what == eventCoredump || want.what == eventExec
		if leader := got.tgid == got.tid; leader == (name == "exit-thread") || named != (got.tgid > 0) {
			t.Errorf("%s: thread %d of process %d", name, got.tid, got.tgid)
		}
		if got.stamp == 0 {
			t.Errorf("%s: no stamp", name)
		}
		want.stamp, want.tgid, want.tid = got.stamp, got.tgid, got.tid
		if got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good, exec := captured(t)["exit-7"], captured(t)["exec"]
	change := func(off int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.NativeEndian.PutUint32(b[off:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":                   nil,
		"one byte too few":          good[:len(good)-1],
		"a byte that nobody counts": append(bytes.Clone(good), 0),
		"netlink length":            change(0, sizeEvent-4),
		"netlink type":              change(offType, 2),
		"connector index":           change(offIdx, 2),
		"connector value":           change(offVal, 2),
		"connector length":          change(offLen, 36),
		"thread 0":                  change(offPID, 0),
		"process 0":                 change(offTGID, 0),
		"negative process":          change(offTGID, 1<<31),
		"an exec of nobody":         append(bytes.Clone(exec[:offPID]), make([]byte, len(exec)-offPID)...),
	} {
		if m, err := parse(b); err == nil {
			t.Errorf("%s: got %+v, want an error", name, m)
		}
	}
}

func TestParseTakesLongerEvents(t *testing.T) {
	b := append(captured(t)["exit-7"], 1, 2, 3, 4)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[offLen:], uint16(len(b)-sizeHeaders))
	if m, err := parse(b); err != nil || m.status != 0x700 {
		t.Errorf("got %+v, %v", m, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range captured(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		switch {
		case err != nil && m != message{}:
			t.Errorf("got %+v beside an error", m)
		case err == nil && (m.what == eventExit || m.what == eventCoredump || m.what == eventExec) && (m.tgid <= 0 || m.tid <= 0):
			t.Errorf("thread %d of process %d", m.tid, m.tgid)
		}
	})
}

func TestRequest(t *testing.T) {
	for _, c := range []struct {
		got, want []byte
	}{
		{request(opIgnore, 7), words(1, 1, 0, 7, 4, opIgnore)},
		{request(opListen, 7, eventExit|eventCoredump), words(1, 1, 0, 7, 8, opListen, 0xc0000000)},
		{request(opListen, 7, eventExit|eventCoredump|eventExec), words(1, 1, 0, 7, 8, opListen, 0xc0000002)},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("got %x, want %x", c.got, c.want)
		}
	}
}

// words makes a request. The fifth is two numbers of 16 bits, length and flags.
func words(numbers ...uint32) []byte {
	var b []byte
	for i, n := range numbers {
		if i == 4 {
			b = binary.NativeEndian.AppendUint16(b, uint16(n))
			b = binary.NativeEndian.AppendUint16(b, 0)
			continue
		}
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}

func BenchmarkParse(b *testing.B) {
	datagram := captured(b)["exit-7"]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parse(datagram); err != nil {
			b.Fatal(err)
		}
	}
}
