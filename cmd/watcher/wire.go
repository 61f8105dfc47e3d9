package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/oklog/run"

	"watcher/platform/docker"
	"watcher/platform/firecracker"
	"watcher/platform/gomicrovm"
	"watcher/platform/process"
	"watcher/platform/statedir"
	"watcher/reap"
	"watcher/watch"
)

const (
	// procRoot is where the proc file system of our own PID namespace is.
	procRoot = "/proc"
	// removeTimeout is how long one removal may take. A quiet engine needs 0.1 s; one that removes hundreds at a time
	// was seen to need 20 s for the last.
	removeTimeout = time.Minute
)

// removalsAtOnce is how many removals run in parallel: more than about two a core only make each slower.
func removalsAtOnce() int { return 2 * runtime.GOMAXPROCS(0) }

// boundary is nil but in tests, which have the program killed at one of them.
var boundary func(reap.Boundary)

// parts are what watches and what acts, not running yet. A new kind of sandbox is a line in platforms.
type parts struct {
	host        *process.Host
	inbox       *reap.Inbox
	owners      *process.Owners
	census      *process.Census
	engine      *docker.Engine
	interval    time.Duration // between scans, as it was at the start
	engineHost  string        // as it is configured; "": not
	files       *statedir.Leftovers
	firecracker *firecracker.MicroVMs
	gomicrovm   *gomicrovm.VMs
	scanner     *reap.Scanner
	policies    chan reap.Policy
	execs       atomic.Bool   // rules name programs, or microVMs that are processes, so that it matters what a process begins to run
	relisten    chan struct{} // told when execs has changed
	anyEngine   atomic.Bool   // containers are watched if there is an engine, and nothing is amiss if there is none
}

// A system lists the sandboxes of a kind and acts on them.
type system struct {
	reap.Lister
	reap.Platform
}

// A lister is a system that needs no more than an ID to act on a sandbox.
type lister interface {
	reap.Lister
	Stop(id watch.ID, step watch.Step) error
	Remove(ctx context.Context, id watch.ID) error
}

func byID(s lister) system { return system{s, reap.ByID{System: s}} }

func assemble(c *config) (*parts, error) {
	host, err := process.NewHost(procRoot)
	if err != nil {
		return nil, err
	}
	p := &parts{
		host: host, inbox: reap.NewInbox(), files: statedir.NewLeftovers(),
		engineHost: c.Docker.Host, interval: c.Scan.Interval,
		policies: make(chan reap.Policy), relisten: make(chan struct{}, 1),
	}
	p.owners = process.NewOwners(host, p.inbox.Post)
	p.census = process.NewCensus(host, p.inbox.Post)
	p.engine = docker.New(c.Docker.Host, host, p.inbox.Post)
	p.firecracker = firecracker.New(host, p.inbox.Post)
	p.gomicrovm = gomicrovm.New(host, p.inbox.Post)
	var listers []reap.Lister
	for _, s := range p.systems() {
		listers = append(listers, s)
	}
	// Behind the sandboxes: whoever owns one existed before it, so this look finds him.
	p.scanner = reap.NewScanner(p.inbox, c.Scan.Interval, append(listers, p.census)...)
	return p, p.follow(c.rules())
}

// leftovers are acted on as they were listed: where they are may have been recorded under rules that are no more.
type leftovers struct{ *statedir.Leftovers }

func (l leftovers) Stop(s watch.Sandbox, step watch.Step) error { return l.Leftovers.Stop(s.ID, step) }

func (l leftovers) Remove(ctx context.Context, s watch.Sandbox, _ reap.Tell) error {
	return l.RemoveKnown(ctx, s)
}

// systems are the kinds of sandboxes, in the order in which they are listed.
func (p *parts) systems() []system {
	return []system{
		p.ofEngine(p.engine), p.ofEngine(p.engine.Volumes()), p.ofEngine(p.engine.Networks()),
		{p.files, leftovers{p.files}},
		{p.firecracker, p.firecracker},
		{p.gomicrovm, p.gomicrovm},
	}
}

// follow makes rules the ones in force.
func (p *parts) follow(rules *watch.Rules) error {
	var programs []watch.Program
	for _, name := range rules.Programs() {
		program, err := watch.NewProgram(name)
		if err != nil {
			return err
		}
		programs = append(programs, program)
	}
	p.census.Follow(programs)
	execs := len(programs) > 0 || slices.ContainsFunc(rules.List, func(rule watch.Rule) bool {
		return rule.Kind == watch.Firecracker || rule.Kind == watch.GoMicroVM
	})
	if p.execs.Swap(execs) != execs {
		select {
		case p.relisten <- struct{}{}:
		default:
		}
	}
	p.anyEngine.Store(!wantsEngine(rules.List, p.engineHost))
	p.files.SetRules(rules)
	p.engine.SetRules(rules)
	p.firecracker.SetRules(rules)
	p.gomicrovm.SetRules(rules)
	return nil
}

// clientsDir is the folder in the state directory that keeps which clients were found for containers.
const clientsDir = "clients"

// remember has the engine remember clients through restarts; without write it only reads what a daemon has noted.
func (p *parts) remember(stateDir string, write bool, log *slog.Logger) {
	tell := func(err error) {
		log.Warn("a client found for a container is not remembered through a restart", watch.KeyError, err)
	}
	if err := p.engine.Remember(statedir.NewNotes(filepath.Join(stateDir, clientsDir)), write, tell); err != nil {
		tell(err)
	}
}

func (p *parts) close() {
	p.engine.Close()
	p.firecracker.Close()
	p.gomicrovm.Close()
	p.census.Close()
	p.owners.Close()
}

// processes are the owners, and what a loop wants of them.
type processes struct {
	*process.Owners
	census *process.Census
}

// Check looks at every held process again.
func (p processes) Check() {
	p.Owners.Check()
	p.census.Check()
}

// loop is what every loop of ours has in common.
func (p *parts) loop(c *config, log *slog.Logger, docket *reap.Docket) reap.Config {
	platforms := map[watch.Kind]reap.Platform{}
	for _, s := range p.systems() {
		platforms[s.Kind()] = s
	}
	picture := watch.NewPicture(p.host.Boot())
	// Files and processes have no system that could be away, and are of this host.
	for _, kind := range []watch.Kind{watch.File, watch.Firecracker, watch.GoMicroVM} {
		picture.Apply(watch.SourceBack{Source: "this host", Kind: kind, At: time.Now()})
	}
	picture.Apply(p.host.Namespace(watch.File))
	return reap.Config{
		Policy: c.policy(), Picture: picture, Inbox: p.inbox, Owners: processes{p.owners, p.census},
		Platforms: platforms,
		Log:       log, Workers: removalsAtOnce(), Timeout: removeTimeout,
		Rescan: p.scanner.Poke, Count: p.census.Count, Policies: p.policies, Docket: docket, Boundary: boundary,
	}
}

// runGroup runs a loop and the others until one of them returns or ctx ends. The loop is the first actor: it is
// interrupted before the others, and they go on until it has finished what it began.
func runGroup(ctx context.Context, loop *reap.Loop, others ...func(context.Context) error) error {
	var g run.Group
	ended := make(chan struct{})
	{ // The loop, which ends at a signal.
		ctx, stop := context.WithCancel(ctx)
		g.Add(func() error {
			defer close(ended)
			return loop.Run(ctx)
		}, func(error) { stop() })
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for _, actor := range others {
		g.Add(func() error { return actor(work) }, func(error) {
			<-ended
			stop()
		})
	}
	return g.Run()
}
