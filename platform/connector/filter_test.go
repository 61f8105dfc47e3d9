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
		execs   bool
		passes  bool
	}{
		{"reply", stranger, false, false, true},
		{"reply", stranger, false, true, true},
		{"exit-7", stranger, false, false, true},
		{"exit-7", stranger, false, true, true},
		{"exit-sigkill", stranger, false, false, true},
		{"coredump", stranger, false, false, true},
		{"coredump", stranger, false, true, true},
		{"exit-sigabrt-dumped", stranger, false, false, true},
		{"exit-thread", stranger, false, false, false},
		{"exit-thread", stranger, false, true, false},
		{"exit-thread", stranger, true, false, true},
		{"exit-thread", thread.tgid, false, false, true}, // the canary
		{"fork-thread", stranger, true, true, false},
		{"exec", stranger, true, false, false},
		{"exec", stranger, false, true, true},
		{"exec", stranger, true, true, true},
	} {
		vm, err := bpf.NewVM(filter(c.self, c.threads, c.execs))
		if err != nil {
			t.Fatal(err)
		}
		kept, err := vm.Run(datagrams[c.name])
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if passes := kept >= sizeEvent; passes != c.passes {
			t.Errorf("%s, self %d, threads %t, execs %t: passes %t, want %t", c.name, c.self, c.threads, c.execs, passes, c.passes)
		}
	}
}
