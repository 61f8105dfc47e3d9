package connector

import (
	"testing"

	"golang.org/x/net/bpf"
)

func TestFilter(t *testing.T) {
	datagrams := captured(t)
	thread, err := parse(datagrams["exit-thread"])
	if err != nil {
		t.Fatal(err)
	}
	const stranger = 1
	for _, c := range []struct {
		name    string
		self    int
		threads bool
		passes  bool
	}{
		{"reply", stranger, false, true},
		{"exit-7", stranger, false, true},
		{"exit-sigkill", stranger, false, true},
		{"coredump", stranger, false, true},
		{"exit-sigabrt-dumped", stranger, false, true},
		{"exit-thread", stranger, false, false},
		{"exit-thread", stranger, true, true},
		{"exit-thread", thread.tgid, false, true}, // the canary
		{"fork-thread", stranger, true, false},
		{"exec", stranger, true, false},
	} {
		vm, err := bpf.NewVM(filter(c.self, c.threads))
		if err != nil {
			t.Fatal(err)
		}
		kept, err := vm.Run(datagrams[c.name])
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if passes := kept >= sizeEvent; passes != c.passes {
			t.Errorf("%s, self %d, threads %t: passes %t, want %t", c.name, c.self, c.threads, passes, c.passes)
		}
	}
}
