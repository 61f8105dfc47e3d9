package watch_test

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/watch"
)

func TestParseTermsReadsTheLabelsOfTheContract(t *testing.T) {
	for name, test := range map[string]struct {
		labels map[string]string
		want   watch.Terms
	}{
		"owner":              {map[string]string{"watcher.owner": "42"}, watch.Terms{Rule: watch.RuleLabels, Owners: []watch.Claim{process(42, 0, "")}}},
		"ttl":                {map[string]string{"watcher.ttl": "90m"}, watch.Terms{Rule: watch.RuleLabels, TTL: 90 * time.Minute}},
		"ttl of a century":   {map[string]string{"watcher.ttl": "876000h"}, watch.Terms{Rule: watch.RuleLabels, TTL: 876000 * time.Hour}},
		"stop-timeout":       {map[string]string{"watcher.stop-timeout": "5s"}, watch.Terms{Rule: watch.RuleLabels, StopTimeout: 5 * time.Second}},
		"stop-timeout of 0s": {map[string]string{"watcher.stop-timeout": "0s"}, watch.Terms{Rule: watch.RuleLabels}},
		"stop-timeout of 0":  {map[string]string{"watcher.stop-timeout": "0"}, watch.Terms{Rule: watch.RuleLabels}},
		"keep":               {map[string]string{"watcher.keep": "true"}, watch.Terms{Rule: watch.RuleLabels, Keep: true}},
		"group alone":        {map[string]string{"watcher.group": "g"}, watch.Terms{Rule: watch.RuleLabels, Group: "g"}},
		"all, among others'": {
			map[string]string{
				"watcher.owner": "container:boss", "watcher.ttl": "1h", "watcher.stop-timeout": "1s",
				"watcher.keep": "true", "watcher.group": "g", "com.example.x": "-1",
			},
			watch.Terms{Rule: watch.RuleLabels, Owners: []watch.Claim{container("boss")}, TTL: time.Hour, StopTimeout: time.Second, Keep: true, Group: "g"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, watched := watch.ParseTerms(test.labels)
			if !watched {
				t.Fatal("such a sandbox does not exist for watcher")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseTermsLeavesStrangersAlone(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"no labels":     nil,
		"others'":       {"com.docker.compose.project": "x"},
		"upper case":    {"WATCHER.OWNER": "1", "Watcher.ttl": "1s"},
		"no dot":        {"watcher": "1", "watcher-owner": "1", "watchers.owner": "1"},
		"inside":        {"x.watcher.owner": "1"},
		"leading space": {" watcher.owner": "1"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, watched := watch.ParseTerms(labels); watched || !reflect.DeepEqual(got, watch.Terms{}) {
				t.Errorf("got %+v, %v", got, watched)
			}
		})
	}
}

func TestParseTermsFindsTheFaultAndKeepsItShort(t *testing.T) {
	for name, test := range map[string]struct{ label, value string }{
		"owner -1":                   {"watcher.owner", "-1"},
		"owner 0":                    {"watcher.owner", "0"},
		"owner empty":                {"watcher.owner", ""},
		"owner huge":                 {"watcher.owner", strings.Repeat("9", 10_000)},
		"owner shell text":           {"watcher.owner", "$$"},
		"ttl without a unit":         {"watcher.ttl", "90"},
		"ttl empty":                  {"watcher.ttl", ""},
		"ttl zero":                   {"watcher.ttl", "0s"},
		"ttl negative":               {"watcher.ttl", "-1h"},
		"ttl rounds to zero":         {"watcher.ttl", "0.1ns"},
		"ttl of 10,000 zeros":        {"watcher.ttl", strings.Repeat("0", 10_000) + "s"},
		"ttl in days":                {"watcher.ttl", "1d"},
		"ttl spaces":                 {"watcher.ttl", " 1h"},
		"ttl never":                  {"watcher.ttl", "never"},
		"ttl beyond a century":       {"watcher.ttl", "876001h"},
		"ttl beyond 64 bits":         {"watcher.ttl", "9999999999h"},
		"ttl infinite":               {"watcher.ttl", "infh"},
		"stop-timeout negative":      {"watcher.stop-timeout", "-5s"},
		"stop-timeout number":        {"watcher.stop-timeout", "5"},
		"stop-timeout empty":         {"watcher.stop-timeout", ""},
		"keep false":                 {"watcher.keep", "false"},
		"keep empty":                 {"watcher.keep", ""},
		"keep 1":                     {"watcher.keep", "1"},
		"keep in upper case":         {"watcher.keep", "True"},
		"keep with a space":          {"watcher.keep", "true "},
		"group empty":                {"watcher.group", ""},
		"unknown label":              {"watcher.owners", "42"},
		"misspelt keep":              {"watcher.kep", "true"},
		"label in upper case":        {"watcher.Owner", "42"},
		"nothing behind the prefix":  {"watcher.", "42"},
		"unknown label, huge":        {"watcher." + strings.Repeat("x", 10_000), "42"},
		"unknown label, escape":      {"watcher.\x1b[2J", "42"},
		"unknown label, line breaks": {"watcher.\n", "42"},
		"known label, escape":        {"watcher.keep", "\x1b[2J"},
	} {
		t.Run(name, func(t *testing.T) {
			// An owner and a time to live that are in order do not outweigh a fault.
			labels := map[string]string{"watcher.owner": "42", "watcher.ttl": "1h"}
			labels[test.label] = test.value
			got, watched := watch.ParseTerms(labels)
			switch {
			case !watched:
				t.Fatal("a malformed label makes a sandbox invisible")
			case got.Fault == "":
				t.Fatalf("no fault in %q = %q: %+v", test.label, test.value, got)
			case len(got.Fault) > 400:
				t.Errorf("the fault has %d bytes", len(got.Fault))
			case strings.ContainsFunc(got.Fault, func(r rune) bool { return r < ' ' || r == 0x7f }):
				t.Errorf("the fault carries control characters to a terminal: %q", got.Fault)
			case got.Keep:
				t.Error("a fault reads as a pin")
			}
		})
	}
}

func TestParseTermsTellsTheSameFaultEachTime(t *testing.T) {
	labels := map[string]string{"watcher.owner": "-1", "watcher.ttl": "x", "watcher.keep": "no", "watcher.zzz": ""}
	first, _ := watch.ParseTerms(labels)
	for range 50 { // the order of a map changes from walk to walk
		if again, _ := watch.ParseTerms(labels); again.Fault != first.Fault {
			t.Fatalf("%q, then %q", first.Fault, again.Fault)
		}
	}
}

// A time to live within the bounds ends after it began, whenever that was.
func TestNoTimeToLiveOverflows(t *testing.T) {
	terms, _ := watch.ParseTerms(map[string]string{"watcher.ttl": "876000h"})
	for _, created := range []time.Time{time.Unix(0, 0), time.Unix(math.MaxInt32, 0), at(0)} {
		if end := created.Add(terms.TTL); !end.After(created) {
			t.Errorf("created %s, ends %s", created, end)
		}
	}
}

func FuzzParseTerms(f *testing.F) {
	f.Add("watcher.owner", "42", "watcher.ttl", "1h")
	f.Add("watcher.keep", "true", "watcher.stop-timeout", "-5s")
	f.Add("watcher.", "", "x", "y")
	f.Add("0", "0", "watcher.stop-timeout", "0")
	f.Add("watcher.group", "g", "watcher.owner", "container:boss")
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		labels := map[string]string{key1: value1, key2: value2}
		got, watched := watch.ParseTerms(labels)
		ours := strings.HasPrefix(key1, watch.LabelPrefix) || strings.HasPrefix(key2, watch.LabelPrefix)
		if watched != ours {
			t.Fatalf("watched = %v for %q and %q", watched, key1, key2)
		}
		if again, _ := watch.ParseTerms(labels); !reflect.DeepEqual(again, got) {
			t.Fatalf("%+v, then %+v", got, again)
		}
		if got.TTL < 0 || got.StopTimeout < 0 || !at(0).Add(got.TTL).Before(at(0).AddDate(101, 0, 0)) {
			t.Fatalf("durations out of bounds: %+v", got)
		}
		if got.Fault != "" || !watched {
			return
		}
		// Terms without a fault say the same when they are written down and read again. A timeout of 0s is what is not said as
		// well, and may be all that is.
		written := map[string]string{watch.LabelStopTimeout: got.StopTimeout.String()}
		if len(got.Owners) > 0 {
			written[watch.LabelOwner] = got.Owners[0].String()
		}
		if got.Group != "" {
			written[watch.LabelGroup] = got.Group
		}
		if got.TTL != 0 {
			written[watch.LabelTTL] = got.TTL.String()
		}
		if got.Keep {
			written[watch.LabelKeep] = "true"
		}
		if again, _ := watch.ParseTerms(written); !reflect.DeepEqual(again, got) {
			t.Fatalf("%v reads as %+v, written as %v, which reads as %+v", labels, got, written, again)
		}
	})
}

func TestStateRunsUnlessItIsKnownNotTo(t *testing.T) {
	for state, want := range map[watch.State]bool{
		watch.Created: false, watch.Stopped: false, watch.Dead: false, watch.Removing: false,
		watch.Running: true, watch.Paused: true, watch.Restarting: true,
		"stopping": true, "": true,
	} {
		if got := state.Runs(); got != want {
			t.Errorf("%q.Runs() = %v, want %v", state, got, want)
		}
	}
}

func TestIDsAreOrderedByKindAndThenName(t *testing.T) {
	want := []watch.ID{{Kind: "a", Name: "y"}, {Kind: "b", Name: "x"}, {Kind: "b", Name: "y"}}
	got := []watch.ID{want[2], want[0], want[1]}
	slices.SortFunc(got, watch.ID.Compare)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
