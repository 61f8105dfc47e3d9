package docker

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/container"

	"watcher/watch"
)

// This file decides which clients may have started which containers in the foreground. It is pure.
//
// A client starts one container, and which one it is shows nowhere but in the file of its option --cidfile. For the rest
// there is what it was asked for, when it was born, and that no two containers have the same client. From all containers
// that were shown and the clients that lived when each was first shown, a book draws what follows from that. To each
// container belong those clients which it has in any way of giving every container one of its own. If there is no such
// way, some container among them has a client that we do not see, or none, and of all of them nothing is known: an
// engine's API starts containers that look like a client's.

// clockSlack is how far the engine's clock and ours may be apart, or have been stepped, since a container was created.
const clockSlack = 2 * time.Second

// A caller is a process that is, or may be, a client.
type caller struct {
	process  watch.Process
	born     time.Time
	requests []request
	speakers []watch.Process // ancestors that hold the other end of its standard input
	named    string          // the container that its ID file names; "" if that is not known
	file     string          // the same, as whoever walks has it
	reading  atomic.Bool     // its ID file is being read

	// vague says that a container cannot rest on this caller alone: it has started another one, or may have started one
	// that is not known. That it may have started this one keeps all the same.
	vague bool

	of   *started // in the assignment that the book keeps; nil: free
	mark mark
}

// A started is a container that was started in the foreground.
type started struct {
	id    string
	stdin bool    // its standard input is open, so that whoever speaks to its client speaks to it
	by    []call  // who may have started it
	has   *caller // in the assignment; nil: it is in doubt
	doubt string  // why nothing is known of its client; "": something is. It is for good.
	gone  bool    // it exists no more, and still has its client for itself
	asked bool    // somebody asked
	told  answer  // and was told this
}

// A call says that a caller may have started a container.
type call struct {
	caller *caller
	firm   bool // the container may rest on it alone
}

// An answer is what is known of a container's clients.
type answer struct {
	clients []watch.Client
	why     string // if there are none
}

func (a answer) equal(b answer) bool {
	return a.why == b.why && slices.EqualFunc(a.clients, b.clients, func(a, b watch.Client) bool {
		return a.Process == b.Process && slices.Equal(a.Speakers, b.Speakers)
	})
}

// Why nothing is known of the client of a container.
const (
	whyDetached  = "it was not started in the foreground"
	whyTerminal  = "a client at a terminal can leave it by the detach keys, and nothing tells"
	whyRestarts  = "its engine restarts it, whatever became of its client"
	whyNobody    = "no client that lived when it was first seen can have started it"
	whyVague     = "the clients that may have started it may have started others"
	whyTooMany   = "more containers than clients may be of the same clients, so one of them has another or none"
	whyOtherFile = "the ID files of the clients that may have started it name others"
	whyLeft      = "its client has detached from it"
)

// A book holds the containers that have been shown, and who may have started them.
type book struct {
	containers map[string]*started
	changed    bool // the answers may be others than were told
	round      int  // of marking callers
}

func newBook() *book { return &book{containers: map[string]*started{}} }

// enter takes in a container that is shown for the first time, with all that may have started it.
func (b *book) enter(id string, stdin bool, callers []*caller) *started {
	c := &started{id: id, stdin: stdin}
	b.containers[id] = c
	b.changed = true
	if len(callers) == 0 {
		c.doubt = whyNobody
		return c
	}
	for _, k := range callers {
		c.by = append(c.by, call{k, !k.vague})
	}
	b.consult(c)
	b.assign(c)
	return c
}

// name takes in which container the ID file of a caller names.
func (b *book) name(k *caller, id string) {
	k.named = id
	for _, c := range b.containers {
		if c.doubt == "" && slices.ContainsFunc(c.by, func(call call) bool { return call.caller == k }) {
			b.consult(c)
		}
	}
	for _, c := range b.containers {
		if c.doubt == "" && c.has == nil {
			b.assign(c)
		}
	}
}

// consult drops from a container the callers that the ID files exclude: those whose file names another, and if a file
// names this one, those whose file does not.
func (b *book) consult(c *started) {
	named := slices.ContainsFunc(c.by, func(call call) bool { return call.caller.named == c.id })
	c.by = slices.DeleteFunc(c.by, func(call call) bool {
		k := call.caller
		excluded := k.named != c.id && (named || k.named != "")
		if excluded && c.has == k {
			c.has, k.of = nil, nil
		}
		b.changed = b.changed || excluded
		return excluded
	})
	for i, call := range c.by {
		c.by[i].firm = call.firm || call.caller.named == c.id
	}
	if len(c.by) == 0 {
		c.doubt = whyOtherFile
	}
}

// assign gives a container a caller of its own, or finds that there are too few.
func (b *book) assign(c *started) {
	tried := map[*caller]bool{}
	if c.doubt != "" || c.has != nil || b.give(c, tried) {
		return
	}
	// Those that were tried are all that these containers could have, and they are fewer.
	short := []*started{c}
	for k := range tried {
		short = append(short, k.of)
	}
	for _, c := range short {
		c.doubt = whyTooMany
		if len(tried) == 0 {
			c.doubt = whyVague
		}
		b.release(c)
	}
	b.changed = true
}

// give finds a caller for a container, and moves other containers to others if it must.
func (b *book) give(c *started, tried map[*caller]bool) bool {
	for _, call := range c.by {
		k := call.caller
		if !call.firm || tried[k] {
			continue
		}
		tried[k] = true
		if k.of == nil || b.give(k.of, tried) {
			k.of, c.has = c, k
			return true
		}
	}
	return false
}

// release takes a container's callers away from the rest: another container may keep them among those that may have
// started it, but does not rest on them.
func (b *book) release(c *started) {
	if c.has != nil {
		c.has.of, c.has = nil, nil
	}
	for _, call := range c.by {
		call.caller.vague = true
	}
	for _, other := range b.containers {
		for i, call := range other.by {
			other.by[i].firm = call.firm && !call.caller.vague
		}
	}
}

// forget takes in that a container is gone. For as long as one of those lives that may have started it, that one is kept
// from others, so that nobody rests on a client which is about to end: see sweep.
func (b *book) forget(id string) {
	c := b.containers[id]
	switch {
	case c == nil || c.gone:
	case c.doubt != "":
		delete(b.containers, id)
	default:
		b.draw()
		c.by = slices.DeleteFunc(c.by, func(call call) bool { return call.caller != c.has && !(call.firm && c.may(call.caller)) })
		c.gone = true
		b.changed = true
	}
}

// sweep drops the containers that are gone and of whose clients none lives.
func (b *book) sweep(lives func(*caller) bool) {
	for id, c := range b.containers {
		if c.gone && (c.doubt != "" || !slices.ContainsFunc(c.by, func(call call) bool { return lives(call.caller) })) {
			b.release(c)
			delete(b.containers, id)
			b.changed = true
		}
	}
}

// leave takes in that somebody detached from a container and left it to itself.
func (b *book) leave(id string) {
	if c := b.containers[id]; c != nil && c.doubt == "" && !c.gone {
		b.release(c)
		c.doubt = whyLeft
		b.changed = true
	}
}

// A mark is what draw notes at a caller. Callers stand in a graph: from each that has a container there is an arc to all
// that its container could have instead. Two are in one group if there are ways between them in both directions.
type mark struct {
	round   int
	index   int  // in the order in which they were found
	low     int  // the lowest index that it reaches among those whose group is open
	group   int  // 0: open
	loosely bool // a free caller can be reached
}

// draw finds out for each caller what [started.may] goes by. It must be called after every change.
func (b *book) draw() {
	b.round++
	d := drawing{round: b.round}
	for _, c := range b.containers {
		for _, call := range c.by {
			if c.doubt == "" && call.caller.mark.round != b.round {
				d.visit(call.caller)
			}
		}
	}
}

// A drawing finds the groups of callers, by Tarjan's algorithm.
type drawing struct {
	round, found, groups int
	open                 []*caller
}

func (d *drawing) visit(k *caller) {
	d.found++
	k.mark = mark{round: d.round, index: d.found, low: d.found, loosely: k.of == nil}
	d.open = append(d.open, k)
	if k.of != nil {
		for _, call := range k.of.by {
			next := call.caller
			if next.mark.round != d.round {
				d.visit(next)
			}
			k.mark.loosely = k.mark.loosely || next.mark.loosely
			if next.mark.group == 0 {
				k.mark.low = min(k.mark.low, next.mark.low)
			}
		}
	}
	if k.mark.low != k.mark.index {
		return
	}
	d.groups++
	i := slices.Index(d.open, k)
	loosely := slices.ContainsFunc(d.open[i:], func(k *caller) bool { return k.mark.loosely })
	for _, member := range d.open[i:] {
		member.mark.group, member.mark.loosely = d.groups, loosely
	}
	d.open = d.open[:i]
}

// may reports whether c can have k in some way of giving every container a caller of its own: if k's container can have
// a free one instead, or one that is handed on from container to container until it is the one that c gives back.
func (c *started) may(k *caller) bool {
	return k == c.has || k.mark.loosely || k.mark.group == c.has.mark.group
}

// answer is what is known of c's clients. It must have been drawn.
func (c *started) answer() answer {
	if c.doubt != "" {
		return answer{why: c.doubt}
	}
	var a answer
	for _, call := range c.by {
		k := call.caller
		switch {
		case !c.may(k):
		case !c.stdin || len(k.speakers) == 0:
			a.clients = append(a.clients, watch.Client{Process: k.process})
		default:
			// Each of them could still speak to it. The container is an orphan when all are dead, or the client is: so
			// they are not the speakers of one candidate, where one death would do, but of one each.
			for _, speaker := range k.speakers {
				a.clients = append(a.clients, watch.Client{Process: k.process, Speakers: []watch.Process{speaker}})
			}
		}
	}
	slices.SortStableFunc(a.clients, func(a, b watch.Client) int {
		return cmp.Or(cmp.Compare(a.Process.Start, b.Process.Start), cmp.Compare(a.Process.PID, b.Process.PID))
	})
	return a
}

// older reports whether a caller can have been there before a container was created, whose first process started then, in
// clock ticks after boot; 0: that is not known.
func (k *caller) older(created time.Time, first uint64) bool {
	return !k.born.After(created.Add(clockSlack)) && (first == 0 || k.process.Start <= first)
}

// foreground returns why no client stays with a container, or "" if one may.
func foreground(c container.InspectResponse) (why string) {
	switch policy := c.HostConfig.RestartPolicy; {
	case !policy.IsNone():
		return whyRestarts
	case c.Config.Tty:
		return whyTerminal
	case !ofPodman(c) && !c.Config.AttachStdout && !c.Config.AttachStderr:
		return whyDetached
	default:
		return ""
	}
}

// ofPodman reports whether a container is one of Podman's. To Docker's API it tells neither which runtime a container has
// nor to what a client was attached.
func ofPodman(c container.InspectResponse) bool { return c.HostConfig.Runtime == "oci" }

// Labels of Compose.
const (
	composeOneOff  = "com.docker.compose.oneoff"
	composeProject = "com.docker.compose.project"
	composeService = "com.docker.compose.service"
)

// fits reports whether a container can be what was asked for.
func (r request) fits(c container.InspectResponse) bool {
	name, named := r.run.last("name")
	common := r.run.on("rm") == c.HostConfig.AutoRemove &&
		(!named || name == strings.TrimPrefix(c.Name, "/")) &&
		(len(r.args) == 0 || slices.Equal(r.args, c.Config.Cmd)) &&
		r.restarts() == !c.HostConfig.RestartPolicy.IsNone() &&
		r.hasLabels(c.Config.Labels)
	if r.program == composeProgram {
		return common && r.fitsService(c)
	}
	return common && r.run.on("interactive") == c.Config.OpenStdin && r.run.on("tty") == c.Config.Tty &&
		c.Config.Labels[composeOneOff] == "" &&
		r.hasVariables(c.Config.Env) && r.fitsEngine(c)
}

// restarts reports whether the engine was asked to restart the container.
func (r request) restarts() bool {
	policy := r.run.text("restart")
	return policy != "" && policy != "no"
}

func (r request) fitsService(c container.InspectResponse) bool {
	project, named := r.project.last("project-name")
	return c.Config.Labels[composeOneOff] == "True" && c.Config.Labels[composeService] == r.what &&
		(!named || c.Config.Labels[composeProject] == project) &&
		(!r.run.on("no-TTY") || !c.Config.Tty)
}

// fitsEngine compares what Docker keeps as it was given and Podman does not.
func (r request) fitsEngine(c container.InspectResponse) bool {
	switch {
	case ofPodman(c):
		return r.fitsImage(c)
	case r.program == podmanProgram:
		return false
	default:
		return r.what == c.Config.Image && r.run.text("cidfile") == c.HostConfig.ContainerIDFile
	}
}

// fitsImage compares the names of images as Podman has them: with a registry and a tag, if none was given.
func (r request) fitsImage(c container.InspectResponse) bool {
	given, image := r.what, c.Config.Image
	if r.run.on("rootfs") {
		return image == ""
	}
	digest := strings.TrimPrefix(c.Image, "sha256:")
	if given == image || strings.HasPrefix(digest, strings.TrimPrefix(given, "sha256:")) {
		return true
	}
	if transport, _, ok := strings.Cut(given, ":"); ok && slices.Contains(transports, transport) {
		return true // what the image is called does not show
	}
	given, image = tagged(given), tagged(image)
	if host, _, ok := strings.Cut(given, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		return withoutLibrary(given) == withoutLibrary(image)
	}
	// Which registry it is found at, and there in which folder, is configured.
	return strings.HasSuffix(image, "/"+given)
}

// transports are where Podman takes images from that are no registries (containers-transports(5)).
var transports = []string{"containers-storage", "dir", "docker", "docker-archive", "docker-daemon", "oci", "oci-archive", "ostree", "sif"}

func tagged(image string) string {
	if name := image[strings.LastIndexByte(image, '/')+1:]; strings.ContainsAny(name, ":@") {
		return image
	}
	return image + ":latest"
}

func withoutLibrary(image string) string {
	return strings.Replace(image, "docker.io/library/", "docker.io/", 1)
}

func (r request) hasLabels(labels map[string]string) bool {
	given := map[string]string{}
	for _, label := range append(r.run.all("label"), r.run.all("labels")...) {
		key, value, _ := strings.Cut(label, "=")
		given[key] = value
	}
	for key, value := range given {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// hasVariables looks for the variables that were given with a value.
func (r request) hasVariables(env []string) bool {
	given := map[string]string{}
	for _, variable := range r.run.all("env") {
		if key, _, ok := strings.Cut(variable, "="); ok {
			given[key] = variable
		} else {
			delete(given, key)
		}
	}
	for _, variable := range given {
		if !slices.Contains(env, variable) {
			return false
		}
	}
	return true
}
