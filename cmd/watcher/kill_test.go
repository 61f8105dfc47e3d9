package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"watcher/reap"
	"watcher/watch"
)

// pictured is a picture of sandboxes whose owner lives, or who have none.
func pictured(sandboxes ...watch.Sandbox) *watch.Picture {
	p := watch.NewPicture("boot")
	byKind := map[watch.Kind][]watch.Sandbox{}
	for _, s := range sandboxes {
		byKind[s.ID.Kind] = append(byKind[s.ID.Kind], s)
	}
	for _, kind := range []watch.Kind{watch.Container, watch.Volume, watch.Network, watch.File, watch.Firecracker} {
		p.Apply(watch.NamespaceSeen{Kind: kind, Shared: true})
		p.Apply(watch.Listed{Kind: kind, Asked: time.Now(), Sandboxes: byKind[kind]})
	}
	return p
}

func someSandbox(kind watch.Kind, id, name string, edits ...func(*watch.Sandbox)) watch.Sandbox {
	s := watch.Sandbox{ID: watch.ID{Kind: kind, Name: id}, Name: name, State: watch.Running, Created: time.Now().Add(-time.Hour), Terms: watch.Terms{Rule: watch.RuleLabels}}
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

// looked has the runner of a microVM live.
func looked(p *watch.Picture, id watch.ID, claim watch.Claim) {
	p.Apply(watch.OwnerSeen{ID: id, Claim: claim, Owner: watch.Process{PID: 7, Start: 8, Boot: "boot"}, Life: watch.Alive, Asked: time.Now()})
}

func fullID(prefix string) string { return prefix + strings.Repeat("0", 64-len(prefix)) }

func TestWhomAKillMeans(t *testing.T) {
	p := pictured(
		someSandbox(watch.Container, fullID("aaa1"), "agent"),
		someSandbox(watch.Container, fullID("aaa2"), "agent-2"),
		someSandbox(watch.Container, fullID("bbb1"), "twin"),
		someSandbox(watch.Volume, "twin@2026", "twin"),
		someSandbox(watch.Volume, "data@2026", "data"),
		someSandbox(watch.Volume, "data2@2026", "data2"),
		someSandbox(watch.Container, fullID("ccc1"), "bbb1"), // the name is a prefix of another's ID
		someSandbox(watch.File, "0123abcd", "/tmp/left"),
	)
	for _, tt := range []struct {
		name, id string
		says     []string
	}{
		{fullID("aaa1"), fullID("aaa1"), nil},
		{"aaa1", fullID("aaa1"), nil},
		{"agent", fullID("aaa1"), nil},
		{"data", "data@2026", nil},
		{"data@", "data@2026", nil},
		{"bbb1", fullID("ccc1"), nil},
		{fullID("bbb1"), fullID("bbb1"), nil},
		{"/tmp/left", "0123abcd", nil},
		{"aaa", "", []string{"ambiguous", fullID("aaa1"), fullID("aaa2"), "agent-2"}},
		{"twin", "", []string{"ambiguous", fullID("bbb1"), "twin@2026", "container", "volume"}},
		{"agen", "", []string{"no sandbox is called", "agen"}},
		{"zzz", "", []string{"no sandbox is called", "watcher list"}},
		{"../etc", "", []string{"no sandbox is called"}},
		{"*", "", []string{"no sandbox is called"}},
	} {
		e, err := (&kill{name: tt.name}).find(p)
		if (err == nil) != (tt.id != "") || err == nil && e.ID.Name != tt.id {
			t.Errorf("%q means %v, %v, want %q", tt.name, e, err, tt.id)
		}
		for _, want := range tt.says {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("of %q it says %q, which lacks %q", tt.name, err, want)
			}
		}
	}
}

func TestWhatAKillMayBeAskedFor(t *testing.T) {
	for _, tt := range []struct {
		k    *kill
		args []string
		ok   bool
	}{
		{&kill{}, []string{"a"}, true},
		{&kill{rule: "r"}, nil, true},
		{&kill{all: true}, nil, true},
		{&kill{}, nil, false},
		{&kill{}, []string{""}, false},
		{&kill{}, []string{"a", "b"}, false},
		{&kill{all: true}, []string{"a"}, false},
		{&kill{rule: "r"}, []string{"a"}, false},
		{&kill{rule: "r", all: true}, nil, false},
		{&kill{all: true}, []string{""}, false},
	} {
		err := tt.k.arguments(tt.args)
		var usage usageError
		if (err == nil) != tt.ok || err != nil && !errors.As(err, &usage) {
			t.Errorf("%+v with %q: %v", tt.k, tt.args, err)
		}
	}
}

func TestWhatIsAskedBeforeAKill(t *testing.T) {
	claim := watch.Claim{Kind: watch.AncestorClaim, Program: "runner"}
	vm := someSandbox(watch.Firecracker, "vm.0123", "vm", func(s *watch.Sandbox) { s.Terms.Rule, s.Terms.Owners = "vm0", []watch.Claim{claim} })
	p := pictured(
		someSandbox(watch.Container, fullID("aaa1"), "agent"),
		someSandbox(watch.Container, fullID("bbb1"), "pinned", func(s *watch.Sandbox) { s.Terms.Keep = true }),
		someSandbox(watch.Container, fullID("ccc1"), "pod\x1b[2J", func(s *watch.Sandbox) { s.Terms.Rule, s.Terms.Protected = "r", "io.kubernetes.pod" }),
		someSandbox(watch.Container, fullID("ddd1"), "dropped"),
		someSandbox(watch.Container, fullID("eee1"), "misspelt", func(s *watch.Sandbox) { s.Terms.Fault = `"watcher.kep": no such label` }),
		vm,
	)
	p.Apply(watch.CaseDropped{ID: watch.ID{Kind: watch.Container, Name: fullID("ddd1")}})
	looked(p, vm.ID, claim)
	for _, tt := range []struct {
		k       *kill
		asks    string
		says    []string
		targets int
	}{
		{&kill{name: "agent"}, "Stop and remove it? [y/N] ", []string{"container aaa100000000 (agent)", "60m old", "not-owned"}, 1},
		{&kill{name: "pinned"}, "It is pinned, and watcher would never reap it. Stop and remove it? [y/N] ", nil, 1},
		{&kill{name: "dropped"}, "It is pinned, and watcher would never reap it. Stop and remove it? [y/N] ", nil, 1},
		{&kill{name: "ccc1"}, "It is another manager's. Stop and remove it? [y/N] ", []string{"io.kubernetes.pod", "(pod [2J)"}, 1},
		{&kill{name: "vm"}, "A live runner looks after it, and cleans up when it is stopped. Stop it? [y/N] ", []string{"managed"}, 1},
		{&kill{all: true}, "1 of them will only be stopped, since live runners look after them and clean up.\nStop and remove 2 sandboxes? [y/N] ", []string{"2 sandboxes:\n", "(agent)", "(vm)"}, 2},
		{&kill{rule: "vm0"}, "Stop and remove 1 sandbox? [y/N] ", []string{"1 sandbox of rule vm0:\n"}, 1},
		{&kill{rule: watch.RuleLabels}, "Stop and remove 1 sandbox? [y/N] ", []string{"(agent)"}, 1},
	} {
		chosen, spared, err := tt.k.choose(p, reap.DefaultPolicy(), time.Now())
		if err != nil || len(chosen) != tt.targets {
			t.Errorf("%+v: %v, %v", tt.k, chosen, err)
			continue
		}
		if tt.k.all && len(spared) != 4 {
			t.Errorf("spared are %q", spared)
		}
		asked := tt.k.question(chosen)
		if !strings.HasSuffix(asked, "\n"+tt.asks) {
			t.Errorf("%+v asks\n%s\nwant at its end\n%s", tt.k, asked, tt.asks)
		}
		for _, want := range tt.says {
			if !strings.Contains(asked, want) {
				t.Errorf("%+v asks\n%s\nwhich lacks %q", tt.k, asked, want)
			}
		}
		if strings.ContainsRune(asked, '\x1b') {
			t.Errorf("a name moves the cursor: %q", asked)
		}
	}
	if _, _, err := (&kill{rule: "nobody"}).choose(p, reap.DefaultPolicy(), time.Now()); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("of a rule without sandboxes: %v", err)
	}
	if _, _, err := (&kill{all: true}).choose(pictured(), reap.DefaultPolicy(), time.Now()); err == nil {
		t.Error("of no sandbox at all there is nothing to kill, and that is no error")
	}
}

// What changed while it was asked is not what somebody said yes to.
func TestWhatChangedSinceItWasAsked(t *testing.T) {
	claim := watch.Claim{Kind: watch.AncestorClaim, Program: "runner"}
	owned := func(s *watch.Sandbox) { s.Terms.Owners = []watch.Claim{claim} }
	agent, vm := someSandbox(watch.Container, fullID("aaa1"), "agent"), someSandbox(watch.Firecracker, "vm.0123", "vm", owned)
	before := pictured(agent, vm)
	looked(before, vm.ID, claim)
	again := agent
	again.ID.Name = fullID("eee1")
	for _, tt := range []struct {
		name  string
		k     *kill
		now   *watch.Picture
		still int
		says  string // on standard output, standard error, or as an error
	}{
		{"nothing", &kill{name: "agent"}, pictured(agent, vm), 1, ""},
		{"it is gone", &kill{name: "agent"}, pictured(vm), 0, "gone already"},
		{"another has its name", &kill{name: "agent"}, pictured(again, vm), 0, "has that name now"},
		{"another came", &kill{name: "agent"}, pictured(agent, again, vm), 0, "has changed"},
		{"made anew", &kill{name: "agent"}, pictured(func() watch.Sandbox { s := agent; s.Created = s.Created.Add(time.Second); return s }()), 0, "has changed"},
		{"its runner died", &kill{name: "vm"}, pictured(agent, vm), 0, "has changed"},
		{"pinned since", &kill{all: true}, pictured(func() watch.Sandbox { s := agent; s.Terms.Keep = true; return s }()), 0, "has changed"},
		{"one more came", &kill{all: true}, func() *watch.Picture {
			p := pictured(agent, vm, someSandbox(watch.Container, fullID("fff1"), "late"))
			looked(p, vm.ID, claim)
			return p
		}(), 2, "nobody was asked about it: container fff100000000 (late)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := tt.k
			var said strings.Builder
			k.stdout, k.stderr = &said, &said
			k.called, k.failed = map[watch.ID]string{}, map[watch.ID]bool{}
			shown, _, err := k.choose(before, reap.DefaultPolicy(), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			chosen, _, _ := k.choose(tt.now, reap.DefaultPolicy(), time.Now())
			still, err := k.confirmed(tt.now, reap.DefaultPolicy(), chosen, shown)
			if len(still) != tt.still || !strings.Contains(fmt.Sprint(said.String(), err), tt.says) {
				t.Errorf("still %v, %v, said %q; want %d and %q", still, err, said.String(), tt.still, tt.says)
			}
		})
	}
}
