package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetwork calls f in a network namespace of its own, where a test can have any rules. f must not end the test.
func inNetwork(t *testing.T, f func() error) {
	t.Helper()
	needRoot(t)
	ok(t, elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	}))
}

// iptables runs a program for rules, in the network of the thread.
func iptables(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		err = errors.Join(err, errors.New(program+" "+strings.Join(args, " ")+": "+string(out)))
	}
	return string(out), err
}

// elsewhereNet takes the network of the thread for the host's.
func elsewhereNet(t *testing.T) netHost {
	t.Helper()
	return netHost{locks: realDir(t), init: "/proc/thread-self"}
}

// ofRunner are the rules that a runner makes for a namespace, as it gives them to iptables; % is the comment.
var ofRunner = []string{
	"-t raw -I PREROUTING 1 -i vm0-ve-0c-20 ! -s 10.200.48.130/32 -m comment --comment % -j DROP",
	"-t nat -A POSTROUTING -s 10.200.48.130/32 -o eth0 -j MASQUERADE -m comment --comment %",
	"-t filter -A FORWARD -i vm0-ve-0c-20 -s 10.200.48.130/32 -o eth0 -j ACCEPT -m comment --comment %",
	"-t filter -A FORWARD -i eth0 -o vm0-ve-0c-20 -d 10.200.48.130/32 -m state --state RELATED,ESTABLISHED -j ACCEPT -m comment --comment %",
	"-t nat -A PREROUTING -i vm0-ve-0c-20 -s 10.200.48.130/32 -p tcp -m multiport ! --dports 53,853 -j REDIRECT --to-port 8080 -m comment --comment %",
	"-t filter -I FORWARD 1 -i vm0-ve-0c-20 -s 10.200.48.130/32 ! -p tcp -m limit --limit 10/sec --limit-burst 50 -j LOG --log-prefix VM0:10.200.48.130: --log-level 4 -m comment --comment %",
	"-t filter -I FORWARD 1 -i vm0-ve-0c-20 -s 10.200.48.130/32 -p udp --dport 53 -j DROP -m comment --comment %",
	"-t mangle -A PREROUTING -i vm0-ve-0c-20 -m comment --comment % -j ACCEPT",
	"-t raw -I PREROUTING 1 -i vm0-ve-0c-20 -d 8.8.8.8/32 -p tcp --dport 53 -m comment --comment % -j TRACE",
}

var ofRunner6 = []string{
	"-t filter -I INPUT 1 ! -i vm0-ve-0c-+ -p udp --dport 5353 -m comment --comment % -j REJECT",
	"-t filter -A FORWARD -i vm0-ve-0c-20 -m comment --comment % -j DROP",
}

// others are rules that have nothing to do with it, though some look like it.
var others = [][]string{
	{"-A", "FORWARD", "-m", "comment", "--comment", "vm0-ns-0c-2", "-j", "ACCEPT"},
	{"-A", "FORWARD", "-m", "comment", "--comment", "vm0-ns-0c-200", "-j", "ACCEPT"},
	{"-A", "FORWARD", "-m", "comment", "--comment", "vm0-ns-0c-dns", "-j", "ACCEPT"},
	{"-A", "FORWARD", "-m", "comment", "--comment", "not vm0-ns-0c-20", "-j", "ACCEPT"},
	{"-A", "FORWARD", "-m", "comment", "--comment", "vm0-ns-0c-20 ", "-j", "ACCEPT"},
	{"-A", "FORWARD", "-m", "comment", "--comment", `"vm0-ns-0c-20"`, "-j", "ACCEPT"},
	{"-A", "FORWARD", "-m", "comment", "--comment", `it's a \ "quoted" one -m comment --comment vm0-ns-0c-20 -j ACCEPT`, "-j", "ACCEPT"},
	{"-A", "FORWARD", "-j", "LOG", "--log-prefix", "vm0-ns-0c-20"},
	{"-A", "FORWARD", "-s", "10.200.48.130/32", "-j", "ACCEPT"},
	{"-N", "vm0-ns-0c-20"},
	{"-A", "FORWARD", "-j", "vm0-ns-0c-20"},
}

const comment = "vm0-ns-0c-20"

// backEnds are those that work on this kernel: Linux may be built without either.
func backEnds(t *testing.T) (found []string) {
	t.Helper()
	inNetwork(t, func() error {
		for _, backEnd := range []string{"-nft", "-legacy"} {
			if out, err := iptables("iptables"+backEnd, "-t", "filter", "-S"); err != nil {
				t.Logf("without iptables%s: %v", backEnd, out)
				continue
			}
			found = append(found, backEnd)
		}
		return nil
	})
	if len(found) == 0 {
		t.Fatal("iptables works with no back end")
	}
	return found
}

// addRule makes a rule, and reports whether that can be done: kernels differ in what they can match.
func addRule(t *testing.T, program, rule, comment string) (added bool) {
	t.Helper()
	args := strings.Fields(rule)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "%", comment)
	}
	if _, err := iptables(program, args...); err != nil {
		t.Logf("this kernel has not: %v", err)
		return false
	}
	return true
}

func TestRemoveRules(t *testing.T) {
	for _, backEnd := range backEnds(t) {
		t.Run(strings.TrimPrefix(backEnd, "-"), func(t *testing.T) {
			host := elsewhereNet(t)
			inNetwork(t, func() error {
				v4, v6 := "iptables"+backEnd, "ip6tables"+backEnd
				bystanders := 0
				for _, rule := range others {
					for _, program := range []string{v4, v6} {
						if strings.HasPrefix(program, "ip6") && slices.Contains(rule, "-s") {
							continue
						}
						if _, err := iptables(program, rule...); err == nil {
							bystanders++
						} else {
							t.Logf("this kernel has not: %v", err)
						}
					}
				}
				before, err := allRules(v4, v6)
				if err != nil {
					return err
				}
				added := 0
				for range 2 { // two that are the same are two
					for _, rule := range ofRunner {
						if addRule(t, v4, rule, comment) {
							added++
						}
					}
					for _, rule := range ofRunner6 {
						if addRule(t, v6, rule, comment) {
							added++
						}
					}
				}
				t.Logf("%d rules and %d others", added, bystanders)
				if added < 8 || bystanders < 8 {
					t.Error("that shows little")
				}
				for range 2 { // it can be repeated
					if err := host.removeRules(t.Context(), comment); err != nil {
						t.Error(err)
					}
					after, err := allRules(v4, v6)
					if err != nil {
						return err
					}
					// A table that was not there before may be there and be empty.
					if missing := subtract(before, after); len(missing) > 0 {
						t.Errorf("these are gone, too: %q", missing)
					}
					if left := subtract(after, before); len(left) > 0 {
						t.Errorf("these are left: %q", left)
					}
				}
				return nil
			})
		})
	}
}

// allRules are the rules that there are.
func allRules(programs ...string) (all []string, err error) {
	for _, program := range programs {
		saved, err := iptables(program + "-save")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(saved) {
			if strings.HasPrefix(line, "-A") {
				all = append(all, program+" "+strings.TrimSpace(line))
			}
		}
	}
	return all, nil
}

// subtract is a without b.
func subtract(a, b []string) (rest []string) {
	b = slices.Clone(b)
	for _, line := range a {
		if i := slices.Index(b, line); i >= 0 {
			b = slices.Delete(b, i, i+1)
		} else {
			rest = append(rest, line)
		}
	}
	return rest
}

// TestRulesOfAnotherNetwork: in a network of our own the rules of the host are not seen, and are there all the same.
func TestRulesOfAnotherNetwork(t *testing.T) {
	p, _ := begin(t, nil)
	host := netHost{names: "/run/netns", locks: realDir(t), init: "/proc/" + itoa(p.PID)}
	inNetwork(t, func() error {
		if err := host.removeRules(t.Context(), comment); err == nil {
			t.Error("no rules in another network are taken for no rules")
		}
		if err := host.remove(t.Context(), comment); err == nil {
			t.Error("no veth in another network is taken for no veth")
		}
		return nil
	})
}

func TestRemoveRulesWhereThereAreNone(t *testing.T) {
	host := elsewhereNet(t)
	inNetwork(t, func() error { return host.removeRules(t.Context(), comment) })
}

// TestRulesOfARunnerThatLives: the rules of a pool belong to who has taken it over, whoever made them.
func TestRulesOfARunnerThatLives(t *testing.T) {
	host := elsewhereNet(t)
	n, err := parseNetns(comment)
	ok(t, err)
	file := filepath.Join(host.locks, n.lock())
	ok(t, os.WriteFile(file, nil, 0o600))
	l := lockBy(t, file, "--no-fork")
	inNetwork(t, func() error {
		if _, err := iptables("iptables", "-A", "FORWARD", "-m", "comment", "--comment", comment, "-j", "ACCEPT"); err != nil {
			return err
		}
		err := host.removeRules(t.Context(), comment)
		there, allErr := allRules("iptables")
		if len(there) != 1 {
			t.Errorf("there are %q, want the rule", there)
		}
		l.end()
		err = errors.Join(err, allErr, host.removeRules(t.Context(), comment))
		if there, allErr = allRules("iptables"); len(there) != 0 {
			t.Errorf("there are %q", there)
		}
		return errors.Join(err, allErr)
	})
}

// TestRemoveRulesOfTheHost is about the tables that this machine has, with a comment of the test's own.
func TestRemoveRulesOfTheHost(t *testing.T) {
	needRoot(t)
	own := "watcher-test-" + itoa(os.Getpid())
	const rule = "-A FORWARD -s 192.0.2.1/32 -d 192.0.2.2/32 -m comment --comment"
	args := strings.Fields(rule)
	t.Cleanup(func() {
		args := append(append([]string{"-D"}, args[1:]...), own)
		for exec.Command("iptables", args...).Run() == nil { // each that there is by now
		}
	})
	before, err := allRules("iptables", "ip6tables")
	ok(t, err)
	_, err = iptables("iptables", append(args, own)...)
	ok(t, err)
	ok(t, removeRules(t.Context(), own))
	after, err := allRules("iptables", "ip6tables")
	ok(t, err)
	if !slices.Equal(before, after) {
		t.Errorf("before %q, after %q", before, after)
	}
}

// TestRulesThatChangeMeanwhile: all of a table go or none. One that another removes first must not keep the rest.
func TestRulesThatChangeMeanwhile(t *testing.T) {
	const n = 40
	host := elsewhereNet(t)
	inNetwork(t, func() error {
		for i := range n {
			if _, err := iptables("iptables", "-A", "FORWARD", "-s", "192.0.2."+itoa(i+1), "-m", "comment", "--comment", comment, "-j", "ACCEPT"); err != nil {
				return err
			}
		}
		return errors.Join(elsewhereToo(
			func() error { return host.removeRules(t.Context(), comment) },
			func() error { return host.removeRules(t.Context(), comment) },
		), func() error {
			left, err := allRules("iptables")
			if len(left) > 0 {
				t.Errorf("these are left: %q", left)
			}
			return err
		}())
	})
}

// TestSweepOfMany: the rules of several microVMs go at once, and no other's.
func TestSweepOfMany(t *testing.T) {
	const n = 12
	host := elsewhereNet(t)
	name := func(i int) string { return "vm0-ns-0d-" + fmt.Sprintf("%02x", i) }
	inNetwork(t, func() error {
		var all []func() error
		for i := range n + 1 {
			if _, err := iptables("iptables", "-A", "FORWARD", "-m", "comment", "--comment", name(i), "-j", "ACCEPT"); err != nil {
				return err
			}
			if i < n {
				all = append(all, func() error { return host.removeRules(t.Context(), name(i)) })
			}
		}
		err := elsewhereToo(all...)
		there, allErr := allRules("iptables")
		if len(there) != 1 || !strings.Contains(there[0], name(n)) {
			t.Errorf("there are %q, want the rule of %s alone", there, name(n))
		}
		return errors.Join(err, allErr)
	})
}

// TestSweepWithOneThatFails: the rule of one that cannot be removed does not keep the others'.
func TestSweepWithOneThatFails(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"iptables-save":     "cat " + dir + "/rules",
		"iptables-restore":  `case "$(cat)" in *"comment stays"*) echo no >&2; exit 1;; esac; grep -v 'comment goes' ` + dir + "/rules >" + dir + "/new; mv " + dir + "/new " + dir + "/rules",
		"ip6tables-save":    "",
		"ip6tables-restore": "",
	} {
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755))
	}
	ok(t, os.WriteFile(filepath.Join(dir, "rules"), []byte("*filter\n-A F -m comment --comment goes\n-A F -m comment --comment stays\nCOMMIT\n"), 0o600))
	before := sbin
	sbin = []string{dir, "/usr/bin", "/bin"}
	defer func() { sbin = before }()

	host := elsewhereNet(t)
	type end struct {
		comment string
		err     error
	}
	ended := make(chan end)
	oneSweep.Lock() // so that they meet
	for _, comment := range []string{"goes", "stays"} {
		go func() { ended <- end{comment, host.removeRules(t.Context(), comment)} }()
	}
	deadline := time.Now().Add(patience)
	beat := time.NewTicker(time.Millisecond)
	defer beat.Stop()
	for met := false; !met; <-beat.C {
		sweepsMu.Lock()
		met = nextSweep != nil && len(nextSweep.comments) == 2
		sweepsMu.Unlock()
		if time.Now().After(deadline) {
			t.Error("they do not meet")
			break
		}
	}
	oneSweep.Unlock()
	for range 2 {
		if e := <-ended; (e.err == nil) != (e.comment == "goes") {
			t.Errorf("of %s: %v", e.comment, e.err)
		}
	}
}

// elsewhereToo calls functions at once, each on a thread in the network of the caller's.
func elsewhereToo(all ...func() error) error {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	ended := make(chan error)
	for _, f := range all {
		go func() {
			ended <- elsewhere(func() error {
				if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
					return err
				}
				return f()
			})
		}()
	}
	for range all {
		err = errors.Join(err, <-ended)
	}
	return err
}

func TestProgramsForRules(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string, mode os.FileMode) {
		file := filepath.Join(dir, name)
		ok(t, os.WriteFile(file, []byte("#!/bin/sh\n"+text), mode))
		ok(t, os.Chmod(file, mode))
	}
	found, err := filtersIn([]string{dir})
	if !errors.Is(err, exec.ErrNotFound) || len(found) > 0 || !strings.Contains(err.Error(), "iptables-save") {
		t.Errorf("without programs there are %v, %v", found, err)
	}
	script("iptables-save", "", 0o755)
	if found, err = filtersIn([]string{dir}); err == nil || len(found) > 0 {
		t.Errorf("without iptables-restore there are %v, %v", found, err)
	}
	script("iptables-restore", "", 0o755)
	script("iptables-nft-save", "", 0o644) // not a program
	script("iptables-nft-restore", "", 0o755)
	found, err = filtersIn([]string{"/nowhere", dir})
	if want := []filter{{"iptables", "", dir}}; !slices.Equal(found, want) || hasIPv6() == (err == nil) {
		t.Errorf("there are %v, %v; want %v", found, err, want)
	}
	script("iptables-nft-save", "", 0o755)
	script("ip6tables-save", "", 0o755)
	script("ip6tables-restore", "", 0o755)
	found, err = filtersIn([]string{dir})
	if want := (filter{"iptables", "-nft", dir}); err != nil || found[0] != want {
		t.Errorf("there are %v, %v; want %v first, by the name that says what it is", found, err, want)
	}

	f := filter{"iptables", "", dir}
	for name, tt := range map[string]struct{ save, restore, want string }{
		"saves nothing":       {"", "", ""},
		"fails":               {"echo no such device >&2; exit 3", "", "no such device"},
		"has no back end":     {"echo 'iptables-nft-save/1.8.9 Failed to initialize nft: Protocol not supported' >&2; exit 1", "", ""},
		"has no right":        {"echo 'iptables-nft-save/1.8.9 Failed to initialize nft: Operation not permitted' >&2; exit 1", "", "not permitted"},
		"breaks off":          {"echo '*filter'; echo '-A x -m comment --comment c'", "", "not complete"},
		"does not remove":     {"echo '*filter'; echo '-A x -m comment --comment c'; echo COMMIT", "", "come back"},
		"fails at removing":   {"echo '*filter'; echo '-A x -m comment --comment c'; echo COMMIT", "echo held by another >&2; exit 4", "held by another"},
		"says what it is not": {"echo Usage: x", "", "not saved rules"},
	} {
		t.Run(name, func(t *testing.T) {
			script("iptables-save", tt.save, 0o755)
			script("iptables-restore", tt.restore, 0o755)
			err := f.remove(t.Context(), "c")
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("remove = %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		script("iptables-save", "exec sleep 1000", 0o755)
		cause := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, cause)
		defer cancel()
		if err := f.remove(ctx, "c"); !errors.Is(err, cause) {
			t.Errorf("remove = %v, want %v", err, cause)
		}
	})
}

func TestCommentsOfRules(t *testing.T) {
	for _, bad := range []string{"", "a\nb", "a\x00", strings.Repeat("x", 256)} {
		if err := removeRules(t.Context(), bad); err == nil {
			t.Errorf("%q is taken for a comment", bad)
		}
	}
}

func TestDeletions(t *testing.T) {
	for _, tt := range []struct{ name, saved, want string }{
		{"nothing", "", ""},
		{"a table without rules", "# x\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", ""},
		{
			"two tables",
			"# Generated by \"somebody\n*nat\n-A P -m comment --comment c -j X\nCOMMIT\n*filter\n:F - [0:0]\n-A F -m comment --comment c\n-A F\n-A F -m comment --comment \"c\"\nCOMMIT\n# Completed\n",
			"*nat\n-D P -m comment --comment c -j X\nCOMMIT\n*filter\n-D F -m comment --comment c\n-D F -m comment --comment \"c\"\nCOMMIT\n",
		},
		{"others in between", "*f\n-A F -m comment --comment cc\n-A F -m comment --comment \"c \\\"\"\nCOMMIT", ""},
		{
			"quotes in it",
			"*f\n-A F -m x --y \"a \\\" b \\\\\" -m comment --comment c\nCOMMIT\n",
			"*f\n-D F -m x --y \"a \\\" b \\\\\" -m comment --comment c\nCOMMIT\n",
		},
		{"a rule in a comment", "*f\n-A F -m comment --comment \"x\n-A F -m comment --comment c\n\" -j Y\nCOMMIT\n", ""},
		{"another option of that name", "*f\n-A F -m x --comment c\nCOMMIT\n", ""},
		{"not complete", "*f\n-A F -m comment --comment c\n", "error"},
		{"a quote without an end", "*f\n-A F -m comment --comment \"c\nCOMMIT\n", "error"},
		{"no table", "-A F -m comment --comment c\nCOMMIT\n", "error"},
		{"something else", "*f\n-P F ACCEPT\nCOMMIT\n", "error"},
		{"a table in a table", "*f\n*g\nCOMMIT\n", "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := deletions([]byte(tt.saved), "c")
			if tt.want == "error" != (err != nil) || err == nil && string(got) != tt.want {
				t.Errorf("deletions = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// FuzzRules: whatever was saved, only rules that bear the comment are removed, as they are.
func FuzzRules(f *testing.F) {
	f.Add("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment c -j DROP\nCOMMIT\n")
	f.Add("*nat\n-A X -m comment --comment \"a \\\" b\" -m comment --comment c\nCOMMIT\n")
	f.Add("*f\n-A F -m comment --comment \"x\n-A F -m comment --comment c\n\"\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, saved string) {
		changes, err := deletions([]byte(saved), "c")
		if err != nil {
			return
		}
		open := false
		for len(changes) > 0 {
			line, words, rest, err := nextLine(changes)
			if err != nil {
				t.Fatalf("%q becomes %q: %v", saved, changes, err)
			}
			changes = rest
			switch {
			case line[0] == '*' && !open:
				open = true
			case string(line) == "COMMIT" && open:
				open = false
			case open && words[0] == "-D" && bears(words, []string{"c"}) && strings.Contains(saved, "-A"+string(line[2:])):
			default:
				t.Fatalf("%q becomes %q, with %q", saved, changes, line)
			}
		}
		if open {
			t.Errorf("%q becomes %q", saved, changes)
		}
	})
}
