package watch

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// RuleLabels is the rule by which a sandbox is watched that carries watcher's own labels.
const RuleLabels = "labels"

// A Pattern is a glob over a whole text: * stands for any characters, ? for one, everything else for itself. The zero
// Pattern matches nothing.
type Pattern struct {
	glob string
	expr *regexp.Regexp
}

// NewPattern returns the pattern of a glob. Every text is one.
func NewPattern(glob string) Pattern {
	expr := regexp.QuoteMeta(string([]rune(glob))) // an expression must be UTF-8, a text on Linux need not
	expr = strings.ReplaceAll(expr, `\*`, `.*`)
	expr = strings.ReplaceAll(expr, `\?`, `.`)
	return Pattern{glob, regexp.MustCompile(`(?s)\A` + expr + `\z`)}
}

func (p Pattern) String() string { return p.glob }

// Given reports whether p is a pattern at all.
func (p Pattern) Given() bool { return p.expr != nil }

// Matches reports whether the whole of s matches.
func (p Pattern) Matches(s string) bool { return p.expr != nil && p.expr.MatchString(s) }

// A LabelPattern matches one label: KEY or KEY=VALUE, both globs.
type LabelPattern struct {
	Key   Pattern
	Value Pattern // not given: any
}

// NewLabelPattern reads KEY or KEY=VALUE.
func NewLabelPattern(text string) (LabelPattern, error) {
	key, value, given := strings.Cut(text, "=")
	if key == "" {
		return LabelPattern{}, fmt.Errorf("label %q: want KEY or KEY=VALUE", clip(text))
	}
	p := LabelPattern{Key: NewPattern(key)}
	if given {
		p.Value = NewPattern(value)
	}
	return p, nil
}

func (p LabelPattern) String() string {
	if !p.Value.Given() {
		return p.Key.String()
	}
	return p.Key.String() + "=" + p.Value.String()
}

// in returns a label among labels that p matches.
func (p LabelPattern) in(labels map[string]string) (key string, ok bool) {
	for key, value := range labels {
		if p.Key.Matches(key) && (!p.Value.Given() || p.Value.Matches(value)) {
			return key, true
		}
	}
	return "", false
}

// A Match says which sandboxes a rule is about: those that match all that is given. One that gives nothing matches none.
type Match struct {
	Labels []LabelPattern
	Image  Pattern
	Name   Pattern
}

func (m Match) matches(f Facts) bool {
	if len(m.Labels) == 0 && !m.Image.Given() && !m.Name.Given() {
		return false
	}
	for _, label := range m.Labels {
		if _, ok := label.in(f.Labels); !ok {
			return false
		}
	}
	return (!m.Image.Given() || m.Image.Matches(f.Image)) && (!m.Name.Given() || m.Name.Matches(f.Name))
}

// lacks says in words what of m a sandbox does not match; "" if it matches.
func (m Match) lacks(f Facts) string {
	for _, label := range m.Labels {
		if _, ok := label.in(f.Labels); !ok {
			return fmt.Sprintf("it has no label %s", label)
		}
	}
	switch {
	case m.Image.Given() && !m.Image.Matches(f.Image):
		return fmt.Sprintf("its image is %s, and not %s", clip(f.Image), m.Image)
	case m.Name.Given() && !m.Name.Matches(f.Name):
		return fmt.Sprintf("its name is %s, and not %s", clip(f.Name), m.Name)
	case !m.matches(f):
		return "it is about nothing"
	default:
		return ""
	}
}

// Evidence says who owns the sandboxes of a rule. All that is given must be found dead (R1).
type Evidence struct {
	PIDLabel       string // a label that holds a PID of the host
	ContainerLabel string // a label that names a container
	Process        string // a program, see [NewProgram]: its processes that are older than the sandbox may own it
	Client         bool   // the client that started the container in the foreground
	Socket         string // a socket, as the sandbox sees it: who listens there owns it
	Ancestor       string // a program, see [NewProgram]: an ancestor that runs it owns the microVM
	Locks          string // a folder of files named after base folders: who holds a lock on the one of its base folder owns the microVM
	Records        string // a glob of files in which owners record themselves and their base folder
	Sentinel       bool   // the process that the microVM's sentinel names
	None           bool   // nobody: only age and state count
}

// A Rule says which sandboxes are watched although they say nothing to watcher, and what proves that they outlived
// their owner.
type Rule struct {
	Name         string
	Kind         Kind
	Match        Match
	Owner        Evidence
	States       []State       // it is reaped only in these; none: in all
	MaxAge       time.Duration // 0: age does not count
	ExpiresLabel string        // a label that holds the time at which the sandbox's time is over
	StopTimeout  time.Duration
	Despite      []Pattern // labels of other managers that do not keep this rule away
	Files        []string  // globs of what its owners leave in the file system, watched as sandboxes of kind [File]
	Alarm        int       // more sandboxes of the rule than this are told; 0: as the policy says

	// Of microVMs that are processes. Paths are absolute, and globs where a * is in them.
	Program   string   // what the process runs, a glob of a basename
	BaseDirs  []string // the folders below which they have their workspaces
	JailDirs  []string // the folders below which they are jailed
	SocketDir string   // the folder in which they have folders for their sockets; "": none
	Remove    []string // which of their leaves are removed, by kind; none: all

	// Of microVMs that are folders.
	Dirs       []string // the folders that hold the folders of microVMs, globs
	StopRunner bool     // a runner that outlives the owner is stopped
}

// Terms are what the rule says of a sandbox that no label speaks of, with what may own it.
func (rule *Rule) Terms(owners ...Claim) Terms {
	return Terms{
		Rule: rule.Name, Owners: owners, StopTimeout: rule.StopTimeout,
		States: rule.States, MaxAge: rule.MaxAge, Ownerless: rule.Owner.None,
	}
}

// Named reports whether the rule is about a sandbox of that name. A rule that says nothing of names is.
func (rule *Rule) Named(name string) bool {
	return !rule.Match.Name.Given() || rule.Match.Name.Matches(name)
}

// Rules are the rules of a host, in the order in which they are tried. The zero Rules have none. They are safe for
// concurrent use, and must not be changed.
type Rules struct {
	Host    string    // our name, which a label may name with a PID
	Protect []Pattern // keys of labels by which other managers mark what is theirs
	List    []Rule
}

// Facts are what a rule may look at.
type Facts struct {
	Kind   Kind
	Name   string
	Image  string
	Labels map[string]string
	Client bool // a client is known that started it in the foreground
}

// WantsClient reports whether it matters to the terms of a sandbox if a client that started it is known.
func (r *Rules) WantsClient(f Facts) bool {
	f.Client = false
	without := r.rule(f)
	f.Client = true
	return r.rule(f) != without
}

// Terms says on what terms a sandbox is watched. The second result is false if it is not: it does not exist for watcher.
//
// The labels of watcher itself stand above all rules: one that names an owner leaves no room for a rule, the others
// replace or add to what the rule that matches says.
func (r *Rules) Terms(f Facts) (Terms, bool) {
	t, labelled := ParseTerms(f.Labels)
	rule := r.rule(f)
	switch {
	case len(t.Owners) > 0:
		return t, true
	case t.Group != "" && f.Kind != Container:
		t.Owners = []Claim{{Kind: GroupClaim, Group: t.Group}}
		return t, true
	case rule == nil:
		return t, labelled
	}
	if key, protected := r.protected(rule, f.Labels); protected {
		if !labelled {
			t = Terms{Rule: rule.Name, Protected: key}
		}
		return t, true
	}
	rule.apply(&t, f.Labels, r.Host)
	return t, true
}

// Unwatched says in words, a line for each rule about its kind, why no rule is about a sandbox. The second result is false if
// one is, or its labels speak to watcher.
func (r *Rules) Unwatched(f Facts) (why []string, unwatched bool) {
	if _, watched := r.Terms(f); watched {
		return nil, false
	}
	if r == nil {
		return nil, true
	}
	for _, rule := range r.List {
		if rule.Kind != f.Kind {
			continue
		}
		lacks := rule.Match.lacks(f)
		if lacks == "" {
			lacks = "no client is known that started it in the foreground" // all else matches
		}
		why = append(why, fmt.Sprintf("rule %s: %s", rule.Name, lacks))
	}
	return why, true
}

func (r *Rules) rule(f Facts) *Rule {
	if r == nil {
		return nil
	}
	for i := range r.List {
		rule := &r.List[i]
		// A rule about clients is about nothing else: a container without one is left to the rules behind it.
		if rule.Kind == f.Kind && rule.Match.matches(f) && (f.Client || !rule.Owner.Client) {
			return rule
		}
	}
	return nil
}

// protected returns the label by which another manager marks a sandbox as its own.
func (r *Rules) protected(rule *Rule, labels map[string]string) (key string, ok bool) {
	var keys []string
	for key := range labels {
		isProtected := slices.ContainsFunc(r.Protect, func(p Pattern) bool { return p.Matches(key) })
		isServed := slices.ContainsFunc(rule.Despite, func(p Pattern) bool { return p.Matches(key) })
		if isProtected && !isServed {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return "", false
	}
	return slices.Min(keys), true
}

// apply adds to t what the rule says of a sandbox with these labels.
func (rule *Rule) apply(t *Terms, labels map[string]string, host string) {
	t.Rule, t.States, t.MaxAge = rule.Name, rule.States, rule.MaxAge
	if _, asked := labels[LabelStopTimeout]; !asked {
		t.StopTimeout = rule.StopTimeout
	}
	fault := func(err error) {
		if t.Fault == "" {
			t.Fault = err.Error()
		}
	}
	t.Owners = nil
	e := rule.Owner
	if e.PIDLabel != "" {
		claim, err := ParsePIDLabel(labels[e.PIDLabel], host)
		if _, given := labels[e.PIDLabel]; !given {
			err = errors.New("the rule asks this label who owns it, and there is none")
		}
		if err != nil {
			fault(fmt.Errorf("%s: %w", e.PIDLabel, err))
		}
		t.Owners = append(t.Owners, claim)
	}
	if e.ContainerLabel != "" {
		claim, err := ParseClaim(containerPrefix + strings.TrimPrefix(labels[e.ContainerLabel], "/"))
		if err != nil {
			fault(fmt.Errorf("%s: %w", e.ContainerLabel, err))
		}
		t.Owners = append(t.Owners, claim)
	}
	if e.Process != "" {
		t.Owners = append(t.Owners, Claim{Kind: ProgramClaim, Program: e.Process})
	}
	if e.Client {
		t.Owners = append(t.Owners, Claim{Kind: ClientClaim})
	}
	if e.Socket != "" {
		t.Owners = append(t.Owners, Claim{Kind: SocketClaim, Socket: e.Socket})
	}
	t.Ownerless = e.None && rule.ExpiresLabel == "" // else it has a time of its own
	if rule.ExpiresLabel != "" {
		if value, ok := labels[rule.ExpiresLabel]; ok {
			at, err := time.Parse(time.RFC3339, value)
			if err != nil {
				fault(fmt.Errorf("%s: %q: want a time such as 2026-01-02T03:04:05Z", rule.ExpiresLabel, clip(value)))
			}
			t.Expires = at
		}
	}
}

// ParsePIDLabel reads the value of a label that holds the PID of an owner on this host, whose name is host: what
// [ParseClaim] takes for a process, or a JSON object with pid and, if it has any, hostname or host. A PID of another host
// is an error.
func ParsePIDLabel(value, host string) (Claim, error) {
	if !strings.HasPrefix(value, "{") {
		if strings.HasPrefix(value, containerPrefix) {
			return Claim{}, fmt.Errorf("owner %q: want a PID", clip(value))
		}
		return ParseClaim(value)
	}
	// A start time in it is wall-clock time, which may be stepped. That the PID was born before the sandbox says as much.
	var label struct {
		PID      int    `json:"pid"`
		Hostname string `json:"hostname"`
		Host     string `json:"host"`
	}
	if err := json.Unmarshal([]byte(value), &label); err != nil || label.PID < 1 || label.PID > MaxPID {
		return Claim{}, fmt.Errorf("owner %q: want a JSON object with a pid from 1 to %d", clip(value), MaxPID)
	}
	for _, name := range []string{label.Hostname, label.Host} {
		if name != "" && name != host {
			return Claim{}, fmt.Errorf("owner %q: a process of host %q, and this is %q", clip(value), clip(name), host)
		}
	}
	return Claim{Kind: ProcessClaim, Process: Process{PID: label.PID}}, nil
}

// Programs are the programs that any rule names, each once.
func (r *Rules) Programs() []string {
	if r == nil {
		return nil
	}
	var all []string
	for _, rule := range r.List {
		// Ancestors too: of a workspace whose microVM has ended, any of them may be the owner.
		for _, p := range []string{rule.Owner.Process, rule.Owner.Ancestor} {
			if p != "" && !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// Clients reports whether any rule asks for the client of a container.
func (r *Rules) Clients() bool {
	return r != nil && slices.ContainsFunc(r.List, func(rule Rule) bool { return rule.Owner.Client })
}

// A Program recognises the processes of a program.
type Program struct {
	name string
	file Pattern
	args []Pattern
}

// NewProgram reads what a rule says of a program: the basename or the full path of its executable or of its argv[0], and
// behind it arguments that its argv must have one after the other, for what an interpreter runs. All words are globs:
// kojuto, /opt/bin/agentd, node */server.js, python* -m agent.
func NewProgram(text string) (Program, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Program{}, fmt.Errorf("process %q: want the name or path of a program", text)
	}
	p := Program{name: text, file: NewPattern(words[0])}
	for _, word := range words[1:] {
		p.args = append(p.args, NewPattern(word))
	}
	return p, nil
}

func (p Program) String() string { return p.name }

// Matches reports whether a process with that executable, as /proc/PID/exe has it, and that argv is one of the program's.
func (p Program) Matches(exe string, argv []string) bool {
	files := []string{strings.TrimSuffix(exe, deletedSuffix)}
	if len(argv) > 0 {
		// A process may put anything into its argv[0]: that can only keep a sandbox. A login shell has a dash there.
		files = append(files, argv[0], strings.TrimPrefix(argv[0], "-"))
	}
	// The kernel hands a script to its interpreter by a path (execve(2)), which is the first argument that is no option.
	if len(argv) > 1 && len(p.args) == 0 {
		if i := slices.IndexFunc(argv[1:], func(arg string) bool { return !strings.HasPrefix(arg, "-") }); i >= 0 && strings.Contains(argv[1+i], "/") {
			files = append(files, argv[1+i])
		}
	}
	named := slices.ContainsFunc(files, func(file string) bool {
		return file != "" && (p.file.Matches(file) || p.file.Matches(path.Base(file)))
	})
	return named && p.hasArgs(argv)
}

// deletedSuffix is what the kernel puts behind the path of an executable that was removed or replaced (proc_pid_exe(5)).
const deletedSuffix = " (deleted)"

// hasArgs reports whether argv has all of p's arguments in a row, behind argv[0].
func (p Program) hasArgs(argv []string) bool {
	if len(p.args) == 0 {
		return true
	}
	for i := 1; i+len(p.args) <= len(argv); i++ {
		all := true
		for j, arg := range p.args {
			all = all && arg.Matches(argv[i+j])
		}
		if all {
			return true
		}
	}
	return false
}
