package watch_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

const (
	thisBoot  = "4f2cf1a1-2f7b-4a59-8c1e-0d3a5b7c9e11"
	otherBoot = "00000000-1111-2222-3333-444444444444"
)

func process(pid int, start uint64, boot string) watch.Claim {
	return watch.Claim{Kind: watch.ProcessClaim, Process: watch.Process{PID: pid, Start: start, Boot: boot}}
}

func container(ref string) watch.Claim {
	return watch.Claim{Kind: watch.ContainerClaim, Container: ref}
}

func TestParseClaimTakesWhatTheContractSays(t *testing.T) {
	for value, want := range map[string]watch.Claim{
		"1":                                    process(1, 0, ""),
		"4242":                                 process(4242, 0, ""),
		"4194304":                              process(watch.MaxPID, 0, ""),
		"4242:918273":                          process(4242, 918273, ""),
		"4242:1":                               process(4242, 1, ""),
		"1:0:" + thisBoot:                      process(1, 0, thisBoot), // init starts in tick 0 of its boot
		"4242:7:" + thisBoot:                   process(4242, 7, thisBoot),
		"2:18446744073709551615":               process(2, 1<<64-1, ""),
		"container:boss":                       container("boss"),
		"container:Boss_1.x-y":                 container("Boss_1.x-y"),
		"container:4242":                       container("4242"),
		"container:" + strings.Repeat("a", 64): container(strings.Repeat("a", 64)),
	} {
		t.Run(value, func(t *testing.T) {
			got, err := watch.ParseClaim(value)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseClaimNeverGuesses(t *testing.T) {
	for name, value := range map[string]string{
		"empty":                         "",
		"negative":                      "-1",
		"zero":                          "0",
		"above PID_MAX_LIMIT":           "4194305",
		"more than an int":              "99999999999999999999999999",
		"wraps to 1 in 64 bits":         "18446744073709551617",
		"wraps to 1 in 32 bits":         "4294967297",
		"plus":                          "+1",
		"leading zero":                  "0123",
		"only zeros":                    "00",
		"leading space":                 " 42",
		"trailing space":                "42 ",
		"trailing newline":              "42\n",
		"NUL":                           "42\x00",
		"hexadecimal":                   "0x2a",
		"underscore":                    "4_2",
		"float":                         "42.0",
		"exponent":                      "4e2",
		"digits of another script":      "٤٢",
		"full-width digits":             "４２",
		"shell variable":                "$PPID",
		"shell substitution":            "$(id -u)",
		"shell command":                 "42; rm -rf /",
		"word":                          "init",
		"path":                          "/proc/42",
		"trailing colon":                "42:",
		"leading colon":                 ":42",
		"start negative":                "42:-7",
		"start zero":                    "42:0",
		"start with a leading zero":     "42:07",
		"start beyond 64 bits":          "42:18446744073709551616",
		"start a word":                  "42:now",
		"boot empty":                    "42:7:",
		"boot without start":            "42::" + thisBoot,
		"boot upper case":               "42:7:" + strings.ToUpper(thisBoot),
		"boot too short":                "42:7:" + thisBoot[1:],
		"boot too long":                 "42:7:" + thisBoot + "0",
		"boot without dashes":           "42:7:" + strings.ReplaceAll(thisBoot, "-", "0"),
		"boot with dashes elsewhere":    "42:7:4f2cf1a12-f7b-4a59-8c1e-0d3a5b7c9e11",
		"boot not hexadecimal":          "42:7:" + strings.Replace(thisBoot, "4", "g", 1),
		"boot of 36 bytes, not runes":   "42:7:é" + thisBoot[2:],
		"four parts":                    "42:7:" + thisBoot + ":x",
		"pid prefix":                    "pid:42",
		"process prefix":                "process:42",
		"container without a reference": "container:",
		"container with a space":        "container: boss",
		"container in upper case":       "Container:boss",
		"container with a slash":        "container:/boss",
		"container with a colon":        "container:a:b",
		"container with a glob":         "container:agent-*",
		"container starts with a dash":  "container:-f",
		"container starts with a dot":   "container:..",
		"container that is too long":    "container:" + strings.Repeat("a", 256),
		"container beyond ASCII":        "container:böss",
		"container with a newline":      "container:boss\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := watch.ParseClaim(value)
			if err == nil {
				t.Fatalf("ParseClaim(%q) = %+v, want an error", value, c)
			}
			if c != (watch.Claim{}) {
				t.Errorf("an error comes with the claim %+v", c)
			}
			if len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes: a hostile label floods the log", len(err.Error()))
			}
		})
	}
}

// The name is what watcher labels prints, and what other programs write.
func TestProcessLabelIsAClaimOfThatProcess(t *testing.T) {
	p := watch.Process{PID: 4242, Start: 918273, Boot: thisBoot}
	c, err := watch.ParseClaim(p.Label())
	if err != nil {
		t.Fatal(err)
	}
	if c.Process != p {
		t.Errorf("%q names %+v, want %+v", p.Label(), c.Process, p)
	}
}

func FuzzParseClaim(f *testing.F) {
	for _, seed := range []string{"", "1", "1:0", "0", "-1", "4242:7", "4242:7:" + thisBoot, "container:boss", "container:", "a:b:c:d"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		c, err := watch.ParseClaim(value)
		if err != nil {
			if c != (watch.Claim{}) {
				t.Fatalf("ParseClaim(%q) fails and yet names %+v", value, c)
			}
			return
		}
		switch c.Kind {
		case watch.ProcessClaim:
			if c.Process.PID < 1 || c.Process.PID > watch.MaxPID {
				t.Fatalf("ParseClaim(%q) names the process %d", value, c.Process.PID)
			}
		case watch.ContainerClaim:
			if c.Container == "" {
				t.Fatalf("ParseClaim(%q) names a container without a name", value)
			}
		default:
			t.Fatalf("ParseClaim(%q) names nobody", value)
		}
		again, err := watch.ParseClaim(c.String())
		if err != nil || again != c {
			t.Fatalf("%q reads as %+v, written as %q, which reads as %+v (%v)", value, c, c, again, err)
		}
	})
}

func TestW1ZeroValuesAreSafe(t *testing.T) {
	var (
		life  watch.Life
		claim watch.Claim
		ns    watch.NamespaceSeen
		step  watch.Step
		owner watch.Owner
	)
	switch {
	case life != watch.Unknown:
		t.Errorf("the zero Life is %s", life)
	case claim.Kind != watch.NoClaim || claim.String() != "":
		t.Errorf("the zero Claim names %q", claim)
	case ns.Shared:
		t.Error("the zero NamespaceSeen is shared")
	case step != watch.NoStep:
		t.Errorf("the zero Step is %s", step)
	case owner.Life != watch.Unknown || owner.Gone || owner.Replaced:
		t.Errorf("the zero Owner is %+v", owner)
	}
	if p := watch.NewPicture(thisBoot); p.Namespace(watch.Container).Shared {
		t.Error("a namespace that nobody told of is shared")
	}
}

func TestWordsOfTheCore(t *testing.T) {
	for got, want := range map[string]string{
		watch.Unknown.String():        "unknown",
		watch.Alive.String():          "alive",
		watch.Exited.String():         "exited",
		watch.Life(99).String():       "unknown",
		watch.ProcessClaim.String():   "process",
		watch.ContainerClaim.String(): "container",
		watch.NoClaim.String():        "",
		watch.Terminate.String():      "terminate",
		watch.Kill.String():           "kill",
		watch.Remove.String():         "remove",
		watch.NoStep.String():         "none",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
