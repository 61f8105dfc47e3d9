package reap_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"watcher/reap"
	"watcher/watch"
)

var update = flag.Bool("update", false, "rewrite what the scripts in testdata expect")

// TestScripts tells whole stories of the pure core, one a file. A line is a command, a comment behind #, or, behind >,
// a line of what the command above says. What the world does:
//
//	owner 100 lives|dies|vanishes|blurs   dies is told; vanishes is not, and a look finds nobody; blurs: looks fail
//	owner 100 reborn                      another process has the PID now, born now, and that is not told either
//	owner 100 was-another                 the death of the one before that is told after all
//	container boss runs|stops|goes|blurs  another container; told
//	agent 200 lives|begins|dies|vanishes  a process of the program agentd, born an hour ago or now; vanishes is not told
//	agent 200 blurs                       what it runs cannot be read any more, which a count finds
//	count, count failed                   a complete look for the processes of agentd; one that could not be complete
//	sandbox a key=value…                  it is seen; labels without their prefix, or state=, init=no, created=-1m,
//	                                      program=yes for a rule by which agentd owns it
//	init a dies                           the first process of a sandbox does
//	gone a                                the sandbox is gone
//	list a b, list failed                 a full list, of just these; a list that could not be had
//	engine away|back                      whether it can be reached; at first it can
//	record a 3                            the docket has a case of it, with so many removals that failed
//	drop a                                an operator gives it up
//	pids foreign|ours                     whether PIDs mean the same there and here; at first they do
//	wait 5s                               time passes
//	removed a, unremovable a why          how a removal that was begun ends
//
// And what we do: decide looks at the owners that have become interesting, carries out the plan and prints its steps, the
// verdicts that changed, and when to decide again; preview only prints the steps. Stops succeed at once. What happens
// between two decisions is one batch of events to the loop.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got; -update rewrites)\n%s", diff)
			}
		})
	}
}

// play runs a script and returns it with what its commands say.
func play(t *testing.T, script string) string {
	t.Helper()
	w := &world{
		policy: reap.DefaultPolicy(), picture: watch.NewPicture(thisBoot), now: at(0),
		processes: map[int]watch.ProcessSeen{}, before: map[int]watch.ProcessSeen{}, agents: map[int]watch.Member{}, sandboxes: map[string]watch.Sandbox{}, said: map[watch.ID]string{},
	}
	w.apply(ours)
	w.apply(here)
	var out strings.Builder
	lines := bufio.NewScanner(strings.NewReader(script))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if strings.HasPrefix(line, ">") {
			continue
		}
		fmt.Fprintln(&out, line)
		command, _, _ := strings.Cut(line, "#")
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		if err := w.do(words[0], words[1:]); err != nil {
			t.Fatalf("line %d: %s: %v", n, line, err)
		}
		for _, line := range w.output {
			fmt.Fprintln(&out, "> "+line)
		}
		w.output = nil
	}
	return out.String()
}

// A world is a host without anything behind it, and the reaper's view of it.
type world struct {
	policy    reap.Policy
	picture   *watch.Picture
	now       time.Time
	processes map[int]watch.ProcessSeen // what a look at a PID finds
	before    map[int]watch.ProcessSeen // who had the PID before
	agents    map[int]watch.Member
	sandboxes map[string]watch.Sandbox
	said      map[watch.ID]string
	output    []string
}

func (w *world) say(format string, args ...any) {
	w.output = append(w.output, fmt.Sprintf(format, args...))
}

func (w *world) apply(ev watch.Event) {
	for _, e := range w.picture.Apply(ev) {
		w.say("%s is forgotten", e.ID.Name)
		delete(w.said, e.ID)
	}
}

// look looks at the owners that have become interesting, and at the time.
func (w *world) look() {
	w.picture.Apply(watch.TimePassed{At: w.now})
	hold, _ := w.picture.TakeClaims()
	slices.Sort(hold)
	for _, pid := range slices.Compact(hold) {
		found, ok := w.processes[pid]
		if !ok {
			found = watch.ProcessSeen{PID: pid, Life: watch.Exited}
		}
		found.At = w.now
		w.picture.Apply(found)
	}
}

func (w *world) do(command string, args []string) error {
	need := map[string]int{"wait": 1, "owner": 2, "agent": 2, "container": 2, "sandbox": 1, "init": 2, "gone": 1, "pids": 1, "engine": 1, "record": 2, "drop": 1, "removed": 1, "unremovable": 2}
	if len(args) < need[command] {
		return errors.New("too few words")
	}
	// Things do not happen at the same moment.
	w.now = w.now.Add(time.Millisecond)
	switch command {
	case "wait":
		d, err := time.ParseDuration(args[0])
		w.now = w.now.Add(d)
		return err
	case "owner":
		return w.owner(args[0], args[1])
	case "agent":
		return w.agent(args[0], args[1])
	case "count":
		if slices.Equal(args, []string{"failed"}) {
			w.apply(watch.ListFailed{Kind: watch.Processes, At: w.now, Err: errors.New("too many open files")})
			break
		}
		w.apply(watch.ProgramListed{Program: "agentd", Asked: w.now, Members: slices.Collect(maps.Values(w.agents))})
	case "container":
		return w.container(args[0], args[1])
	case "sandbox":
		return w.sandbox(args[0], args[1:])
	case "init":
		s := w.sandboxes[args[0]]
		w.apply(watch.InitExited{ID: s.ID, Process: s.Init, At: w.now})
		s.Init = watch.Process{}
		w.sandboxes[args[0]] = s
	case "gone":
		w.apply(watch.SandboxGone{ID: id(args[0]), At: w.now})
	case "list":
		if slices.Equal(args, []string{"failed"}) {
			w.apply(watch.ListFailed{Kind: watch.Container, At: w.now, Err: errors.New("i/o timeout")})
			break
		}
		list := watch.Listed{Kind: watch.Container, Asked: w.now}
		for _, name := range args {
			list.Sandboxes = append(list.Sandboxes, w.sandboxes[name])
		}
		w.apply(list)
	case "pids":
		w.apply(watch.NamespaceSeen{Kind: watch.Container, Shared: args[0] == "ours", Detail: "the engine is on another machine"})
	case "engine":
		if args[0] == "away" {
			w.apply(away)
		} else {
			w.apply(watch.SourceBack{Source: "docker", Kind: watch.Container, At: w.now})
		}
	case "record":
		attempts, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		w.apply(watch.CaseResumed{Sandbox: watch.Sandbox{ID: id(args[0]), Name: args[0]}, Reason: "owner-exited", Begun: w.now, Attempts: attempts})
	case "drop":
		w.apply(watch.CaseDropped{ID: id(args[0])})
	case "removed":
		w.apply(watch.StepEnded{ID: id(args[0]), Step: watch.Remove, At: w.now})
		w.apply(watch.SandboxGone{ID: id(args[0]), At: w.now})
	case "unremovable":
		w.apply(watch.StepEnded{ID: id(args[0]), Step: watch.Remove, At: w.now, Err: errors.New(strings.Join(args[1:], " "))})
	case "preview":
		w.look()
		for _, step := range w.policy.Decide(w.picture, w.now).Steps {
			w.say("would %s %s (%s)", step.Do, step.ID.Name, step.Reason)
		}
	case "decide":
		w.decide()
	default:
		return errors.New("no such command")
	}
	return nil
}

func (w *world) owner(number, what string) error {
	pid, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	was := w.processes[pid]
	was.At = w.now
	switch what {
	case "lives", "reborn":
		w.before[pid] = was
		born := w.now
		if what == "lives" {
			born = born.Add(-time.Hour)
		}
		start := uint64(1_000_000 + born.Sub(at(0))/(10*time.Millisecond))
		w.processes[pid] = watch.ProcessSeen{PID: pid, Process: watch.Process{PID: pid, Start: start, Boot: thisBoot}, Born: born, Life: watch.Alive}
	case "dies":
		was.Life = watch.Exited
		delete(w.processes, pid)
		w.apply(was)
	case "vanishes":
		delete(w.processes, pid)
	case "was-another":
		before := w.before[pid]
		before.Life, before.At = watch.Exited, w.now
		w.apply(before)
	case "blurs":
		w.processes[pid] = watch.ProcessSeen{PID: pid, Life: watch.Unknown, Detail: "too many open files"}
	default:
		return errors.New("what does the owner do?")
	}
	return nil
}

func (w *world) agent(number, what string) error {
	pid, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	m := w.agents[pid]
	switch what {
	case "lives", "begins":
		born := w.now
		if what == "lives" {
			born = born.Add(-time.Hour)
		}
		start := uint64(1_000_000 + born.Sub(at(0))/(10*time.Millisecond))
		m = watch.Member{Process: watch.Process{PID: pid, Start: start, Boot: thisBoot}, Born: born, Life: watch.Alive}
		w.agents[pid] = m
	case "dies":
		delete(w.agents, pid)
		m.Life, m.At = watch.Exited, w.now
	case "vanishes":
		delete(w.agents, pid)
		return nil
	case "blurs":
		m.Life = watch.Unknown
		w.agents[pid] = m
		return nil
	default:
		return errors.New("what does the process do?")
	}
	w.apply(watch.ProgramSeen{Program: "agentd", Member: m, At: w.now})
	return nil
}

func (w *world) container(name, what string) error {
	seen := watch.ContainerSeen{Ref: name, Named: true, Container: "id-of-" + name, Created: at(-time.Hour), Asked: w.now}
	switch what {
	case "runs":
		seen.Life = watch.Alive
	case "stops":
		seen.Life = watch.Exited
	case "goes":
		seen.Named, seen.Life, seen.Gone = false, watch.Exited, true
		w.apply(seen)
		seen = watch.ContainerSeen{Ref: name, Named: true, Life: watch.Exited, Asked: w.now}
	case "blurs":
		seen.Detail = "i/o timeout"
	default:
		return errors.New("what does the container do?")
	}
	w.apply(seen)
	return nil
}

func (w *world) sandbox(name string, args []string) error {
	s, known := w.sandboxes[name]
	if !known {
		s = watch.Sandbox{ID: id(name), Name: name, State: watch.Running, Created: w.now}
		s.Init = watch.Process{PID: 9000 + len(w.sandboxes), Start: uint64(1_000_000 + w.now.Sub(at(0))/(10*time.Millisecond)), Boot: thisBoot}
	}
	said, byProgram := labels{}, false
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "state":
			s.State = watch.State(value)
			if !s.State.Runs() {
				s.Init = watch.Process{}
			}
		case "init":
			s.Init = watch.Process{}
		case "created":
			ago, err := time.ParseDuration(value)
			if err != nil {
				return err
			}
			s.Created = w.now.Add(ago)
		case "program":
			byProgram = true
		default:
			said[watch.LabelPrefix+key] = value
		}
	}
	if !known {
		s.Terms, _ = watch.ParseTerms(said)
		if byProgram {
			s.Terms.Rule, s.Terms.Owners = "agents", []watch.Claim{aProgram}
		}
	}
	w.sandboxes[name] = s
	w.apply(watch.SandboxSeen{Sandbox: s, Asked: w.now})
	return nil
}

// decide goes on until nothing is due, as the loop does: the end of a stop is a fact of its own.
func (w *world) decide() {
	w.look()
	if w.picture.TakeCount() {
		w.say("count")
	}
	for len(w.picture.Due()) > 0 {
		plan := w.policy.Decide(w.picture, w.now)
		for _, step := range plan.Steps {
			w.say("%s %s (%s)", step.Do, step.ID.Name, step.Reason)
			w.apply(watch.StepBegun{ID: step.ID, Step: step.Do, Reason: string(step.Reason), At: w.now})
		}
		for _, j := range plan.Judged {
			if said := j.Verdict.String() + " " + string(j.Reason); w.said[j.ID] != said {
				w.said[j.ID] = said
				w.say("%s: %s", j.ID.Name, said)
			}
			w.picture.Settle(j.ID, j.Next)
		}
		for _, id := range plan.Abandoned {
			w.say("abandon %s", id.Name)
			w.apply(watch.CaseAbandoned{ID: id})
		}
		if plan.SecondLook {
			w.say("look at all again")
		}
		for _, step := range plan.Steps {
			if step.Do != watch.Remove {
				w.apply(watch.StepEnded{ID: step.ID, Step: step.Do, At: w.now})
			}
		}
	}
	if next := w.picture.Next(); !next.IsZero() {
		w.say("again in %s", next.Sub(w.now).Round(time.Millisecond))
	}
}
