package main

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"watcher/watch"
)

//go:embed presets/*.toml
var presetFiles embed.FS

// A preset is a file of rules that is part of the program.
type preset struct {
	name  string
	text  string
	rules []watch.Rule
}

// presetNames are the names of all presets, in order.
func presetNames() (names []string) {
	files, err := presetFiles.ReadDir("presets")
	if err != nil {
		panic(err) // it is part of the program
	}
	for _, file := range files {
		names = append(names, strings.TrimSuffix(file.Name(), ".toml"))
	}
	return names
}

func loadPreset(name string) (preset, error) {
	if !slices.Contains(presetNames(), name) {
		return preset{}, fmt.Errorf("unknown preset, want %s", oneOfWords(presetNames()))
	}
	text, err := presetFiles.ReadFile("presets/" + name + ".toml")
	if err != nil {
		return preset{}, err
	}
	p := preset{name: name, text: string(text)}
	d := parseDocument("preset "+name, text)
	d.table(d.root, fields{"rule": func(v *value) { p.rules = d.rules(v) }})
	return p, d.err()
}

func (c *config) hasPreset(name string) bool {
	return slices.ContainsFunc(c.presets, func(p preset) bool { return p.name == name })
}

// usePreset puts the rules of a preset behind all that are there.
func (c *config) usePreset(name string) error {
	if c.hasPreset(name) {
		return nil
	}
	p, err := loadPreset(name)
	if err != nil {
		return err
	}
	c.presets = append(c.presets, p)
	return nil
}
