package reap

import (
	"encoding/json"
	"errors"
	"io/fs"
	"reflect"
	"testing"
	"time"
)

// FuzzParseCase reads records that anybody may have had a hand in: they are refused, or can be written and read again
// and taken up.
func FuzzParseCase(f *testing.F) {
	begun := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, c := range []Case{
		{Kind: "container", ID: "0123", Reason: OwnerExited, Begun: begun},
		{
			Kind: "container", ID: "0123", Name: "agent-1", Image: "busybox", Created: begun, Rule: "labels", Reason: Expired,
			Owner: "container:boss", Steps: []CaseStep{{"kill", true}, {"remove", false}},
			Begun: begun, Attempts: 9, Error: "busy", First: begun, Last: begun, Next: begun, GaveUp: true,
		},
	} {
		text, err := json.MarshalIndent(c, "", "  ")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(text[:len(text)/2])
		f.Add(append(text, text...))
	}
	f.Add([]byte(nil))
	f.Add(make([]byte, 4096))
	f.Add([]byte("null"))
	f.Add([]byte(`{"kind":"container","id":"../x","reason":"x","begun":"0001-01-01T00:00:01+23:59","attempts":9223372036854775807,"owner":"1:2:3:4"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseCase(text)
		if err != nil {
			if !reflect.DeepEqual(c, Case{}) {
				t.Fatalf("%q is refused, and yet it is %+v", text, c)
			}
			return
		}
		if ev := c.resumed(); ev.Begun.IsZero() || ev.Reason == "" || ev.Sandbox.ID != c.Sandbox() || (ev.Err == nil) != (c.Error == "") {
			t.Fatalf("%+v is taken up as %+v", c, ev)
		}
		d := NewDocket(t.TempDir())
		if err := d.Make(); err != nil {
			t.Fatal(err)
		}
		if err := d.Write(c); err != nil {
			if _, badName := fileName(c.Sandbox()); badName == nil {
				t.Fatalf("%+v cannot be written: %v", c, err)
			}
			return
		}
		cases, damaged, err := d.Load()
		var toolong error
		if len(c.Owner)+len(c.Reason)+len(c.Rule) > 1000 || len(c.Steps) > 10 {
			toolong = errors.New("no case of ours is like that")
		}
		if err != nil || (len(damaged) > 0 || len(cases) != 1 || cases[0].Attempts != c.Attempts || !cases[0].Begun.Equal(c.Begun)) && toolong == nil {
			t.Fatalf("%+v is read as %+v, %v, %v", c, cases, damaged, err)
		}
		if err := d.Close(c.Sandbox()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	})
}
