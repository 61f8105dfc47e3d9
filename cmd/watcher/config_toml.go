package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// This file makes TOML into a tree in which everything knows its place. The library's decoder stops at the first fault,
// and what it has decoded does not know where it stood. Its parser is used, and its decoder has the last word.

// A place is where something stands in a file, and what stands there.
type place struct {
	offset int
	text   string
}

// A value is a value with its place. Its kind is Table if its keys stand below a header or are dotted, and ArrayTable if
// it is made of tables with headers.
type value struct {
	place
	kind    unstable.Kind
	content string   // of a string
	items   []*value // of an array
	members []member // of a table, in the order of the file
	headed  bool     // of a table: it has had its header
}

// A member is a key of a table with its value. The place is the key's.
type member struct {
	place
	key   string
	value *value
}

func (v *value) isTable() bool { return v.kind == unstable.Table || v.kind == unstable.InlineTable }

func (v *value) isArray() bool { return v.kind == unstable.Array || v.kind == unstable.ArrayTable }

// get returns the value of a key, or nil.
func (v *value) get(key string) *value {
	if m := v.member(key); m != nil {
		return m.value
	}
	return nil
}

func (v *value) member(key string) *member {
	i := slices.IndexFunc(v.members, func(m member) bool { return m.key == key })
	if i < 0 {
		return nil
	}
	return &v.members[i]
}

func (v *value) add(m member, content *value) {
	m.value = content
	v.members = append(v.members, m)
}

// A finding is something wrong at a place.
type finding struct {
	place
	what string
}

// A document is a file while it is read.
type document struct {
	file   string
	text   string
	root   *value
	faults []finding
}

func (d *document) fault(at place, format string, args ...any) {
	d.faults = append(d.faults, finding{at, fmt.Sprintf(format, args...)})
}

// parseDocument reads text as far as it is TOML.
func parseDocument(file string, text []byte) *document {
	d := &document{file: file, text: string(text), root: &value{kind: unstable.Table}}
	var p unstable.Parser
	p.Reset(text)
	table := d.root
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table:
			table = d.header(n)
		case unstable.ArrayTable:
			table = d.element(n)
		case unstable.KeyValue:
			d.keyValue(table, n)
		}
	}
	var syntax *unstable.ParserError
	if errors.As(p.Error(), &syntax) {
		// The place alone is often a single character, which says little. The line says more.
		offset := int(p.Range(syntax.Highlight).Offset)
		d.fault(place{offset, d.lineAt(offset)}, "%s", syntax.Message)
	}
	return d
}

// header opens the table of a [header].
func (d *document) header(n *unstable.Node) *value {
	keys := d.keys(n)
	last := keys[len(keys)-1]
	parent := d.descend(d.root, keys[:len(keys)-1])
	table := &value{place: d.around(keys, "[", "]"), kind: unstable.Table, headed: true}
	there := parent.member(last.key)
	switch {
	case there == nil:
		parent.add(last, table)
		return table
	case there.value.kind != unstable.Table:
		d.twice(table.place, there)
		return table
	case there.value.headed:
		d.twice(table.place, there)
	default:
		// So far only a table in it had a header.
		there.value.place, there.value.headed = table.place, true
	}
	return there.value
}

// element opens a table of a [[header]].
func (d *document) element(n *unstable.Node) *value {
	keys := d.keys(n)
	last := keys[len(keys)-1]
	parent := d.descend(d.root, keys[:len(keys)-1])
	table := &value{place: d.around(keys, "[[", "]]"), kind: unstable.Table, headed: true}
	there := parent.member(last.key)
	switch {
	case there == nil:
		parent.add(last, &value{place: table.place, kind: unstable.ArrayTable, items: []*value{table}})
	case there.value.kind == unstable.ArrayTable:
		there.value.items = append(there.value.items, table)
	default:
		d.twice(table.place, there)
	}
	return table
}

func (d *document) keyValue(table *value, n *unstable.Node) {
	keys := d.keys(n)
	last := keys[len(keys)-1]
	// Only strings, numbers and the like know their place. Those of arrays and tables follow from what is around them.
	from := last.offset + len(last.text)
	from += len(d.text[from:]) - len(strings.TrimLeft(d.text[from:], " \t="))
	to := int(n.Raw.Offset + n.Raw.Length)
	v := d.value(n.Value(), d.place(from, to))
	table = d.descend(table, keys[:len(keys)-1])
	if there := table.member(last.key); there != nil {
		d.twice(last.place, there)
		return
	}
	table.add(last, v)
}

func (d *document) value(n *unstable.Node, at place) *value {
	v := &value{place: at, kind: n.Kind}
	for it := n.Children(); it.Next(); {
		switch child := it.Node(); child.Kind {
		case unstable.KeyValue:
			d.keyValue(v, child)
		case unstable.Array:
			v.items = append(v.items, d.value(child, at))
		case unstable.InlineTable:
			item := d.value(child, d.placeOf(child.Raw))
			// Only its start is known. It ends behind what is in it.
			to := item.offset + len(item.text)
			for _, m := range item.members {
				to = max(to, m.value.offset+len(m.value.text))
			}
			to += strings.IndexByte(d.text[to:], '}') + 1
			item.place = d.place(item.offset, to)
			v.items = append(v.items, item)
		default:
			v.items = append(v.items, d.value(child, d.placeOf(child.Raw)))
		}
	}
	if n.Kind == unstable.String {
		v.content = string(n.Data)
	}
	return v
}

// keys are the parts of a key. They have no values yet.
func (d *document) keys(n *unstable.Node) (keys []member) {
	for it := n.Key(); it.Next(); {
		keys = append(keys, member{place: d.placeOf(it.Node().Raw), key: string(it.Node().Data)})
	}
	return keys
}

// descend returns the table that keys lead to, and makes what is not there.
func (d *document) descend(table *value, keys []member) *value {
	for _, key := range keys {
		there := table.get(key.key)
		switch {
		case there == nil:
			there = &value{place: key.place, kind: unstable.Table}
			table.add(key, there)
		case there.kind == unstable.ArrayTable:
			there = there.items[len(there.items)-1]
		case there.kind != unstable.Table:
			d.fault(key.place, "not a table that can be added to")
			there = &value{kind: unstable.Table}
		}
		table = there
	}
	return table
}

func (d *document) twice(at place, before *member) {
	line, _ := d.position(before.offset)
	d.fault(at, "given already in line %d", line)
}

func (d *document) place(from, to int) place { return place{from, d.text[from:to]} }

func (d *document) placeOf(r unstable.Range) place {
	return d.place(int(r.Offset), int(r.Offset+r.Length))
}

// around is the place of a header.
func (d *document) around(keys []member, open, end string) place {
	first, last := keys[0], keys[len(keys)-1]
	from := strings.LastIndex(d.text[:first.offset], open)
	to := last.offset + len(last.text)
	to += strings.Index(d.text[to:], end) + len(end)
	return d.place(from, to)
}

// err is what is wrong with the document, or nil.
func (d *document) err() error {
	if len(d.faults) == 0 {
		// What the tree above is too simple to see.
		var fault *toml.DecodeError
		if err := toml.Unmarshal([]byte(d.text), &map[string]any{}); errors.As(err, &fault) {
			row, column := fault.Position()
			return faults{told(d.file, row, column, strings.TrimPrefix(fault.Error(), "toml: "), d.line(row))}
		} else if err != nil {
			return faults{fmt.Sprintf("%s: %v", d.file, err)}
		}
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b finding) int { return a.offset - b.offset })
	var all faults
	for _, f := range d.faults {
		line, column := d.position(f.offset)
		all = append(all, told(d.file, line, column, f.what, f.text))
	}
	return all
}

// faults are all that is wrong with a file, each in one line, in the order of the file.
type faults []string

func (f faults) Error() string { return strings.Join(f, "\n") }

func told(file string, line, column int, what, text string) string {
	return fmt.Sprintf("%s:%d:%d: %s: %s", file, line, column, what, excerpt(text))
}

// position counts lines and columns from one, and columns in bytes, as compilers do.
func (d *document) position(offset int) (line, column int) {
	before := d.text[:offset]
	return strings.Count(before, "\n") + 1, offset - strings.LastIndexByte(before, '\n')
}

// lineAt is the line that an offset is in.
func (d *document) lineAt(offset int) string {
	line, _ := d.position(offset)
	return d.line(line)
}

func (d *document) line(n int) string { return strings.Split(d.text, "\n")[n-1] }

// excerpt is enough of a text to be recognised, in one line and without what a terminal would obey.
func excerpt(text string) string {
	const enough = 60
	short, _, cut := strings.Cut(text, "\n")
	short = strings.TrimSpace(short)
	if runes := []rune(short); len(runes) > enough {
		short, cut = string(runes[:enough]), true
	}
	if !utf8.ValidString(short) || strings.ContainsFunc(short, func(r rune) bool { return !unicode.IsPrint(r) }) {
		short = strconv.Quote(short)
	}
	if cut {
		short += "…"
	}
	return short
}
