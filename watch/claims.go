package watch

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file is the index of the picture: which sandboxes an event is about.

const pidPrefix = "pid/"

// claimKey is what the owner that c names is filed under, or "" if that is not known before it is bound.
func claimKey(c Claim) string {
	switch c.Kind {
	case ProcessClaim:
		return pidKey(c.Process.PID)
	case ContainerClaim:
		return "container/" + c.Container
	case ProgramClaim:
		return "program/" + c.Program
	case GroupClaim:
		return groupKey(c.Group)
	default:
		return ""
	}
}

func groupKey(name string) string { return "group/" + name }

func pidKey(pid int) string { return pidPrefix + strconv.Itoa(pid) }

// file makes e's owners those of s, and keeps what is known of those that stay.
func (p *Picture) file(e *Entry, s Sandbox, asked time.Time) {
	if e.isFiled && slices.Equal(e.Terms.Owners, s.Terms.Owners) && e.Terms.Group == s.Terms.Group && e.Terms.Rule == s.Terms.Rule {
		return
	}
	before := e.Owners
	p.unfile(e)
	e.isFiled = true
	e.ID, e.Terms.Group, e.Terms.Rule = s.ID, s.Terms.Group, s.Terms.Rule
	p.rules[s.Terms.Rule]++
	if s.ID.Kind == Container && s.Terms.Group != "" {
		g := p.group(s.Terms.Group)
		g.containers[s.ID] = struct{}{}
		if s.Created.After(g.reaped) {
			g.reaped, g.reason = time.Time{}, "" // the group lives on
		}
		p.learnGroup(s.Terms.Group)
	}
	e.Owners = nil
	for _, claim := range s.Terms.Owners {
		o := Owner{Claim: claim, Asked: asked}
		if i := slices.IndexFunc(before, func(o Owner) bool { return o.Claim == claim }); i >= 0 {
			o = before[i]
		}
		e.Owners = append(e.Owners, o)
	}
	for i := range e.Owners {
		o := &e.Owners[i]
		p.fileUnder(e, claimKey(o.Claim))
		for _, process := range o.processes() {
			p.fileUnder(e, pidKey(process.PID))
		}
		if o.Claim.Kind.Sought() && o.Process.PID != 0 {
			p.fileUnder(e, pidKey(o.Process.PID))
		}
		switch o.Claim.Kind {
		case ProgramClaim:
			p.count = true
			o.learnProgram(s, e.First, p.program(o.Claim.Program))
		case GroupClaim:
			o.learnGroup(s, e.First, p.group(o.Claim.Group))
		}
	}
}

// fileUnder files e under one more key.
func (p *Picture) fileUnder(e *Entry, key string) {
	if key == "" || slices.Contains(e.filed, key) {
		return
	}
	e.filed = append(e.filed, key)
	if p.claimants[key] == nil {
		p.claimants[key] = map[ID]struct{}{}
	}
	p.claimants[key][e.ID] = struct{}{}
	if pid, ok := pidOf(key); ok {
		p.hold = append(p.hold, pid)
	}
}

// unfile takes e out of the index.
func (p *Picture) unfile(e *Entry) {
	if !e.isFiled {
		return
	}
	e.isFiled = false
	if p.rules[e.Terms.Rule]--; p.rules[e.Terms.Rule] == 0 {
		delete(p.rules, e.Terms.Rule)
	}
	for _, key := range e.filed {
		delete(p.claimants[key], e.ID)
		if len(p.claimants[key]) > 0 {
			continue
		}
		delete(p.claimants, key)
		if pid, ok := pidOf(key); ok {
			p.release = append(p.release, pid)
		}
	}
	e.filed = nil
	if name := e.Terms.Group; e.ID.Kind == Container && name != "" {
		delete(p.group(name).containers, e.ID)
		p.learnGroup(name)
	}
}

func pidOf(key string) (pid int, ok bool) {
	number, ok := strings.CutPrefix(key, pidPrefix)
	if !ok {
		return 0, false
	}
	pid, err := strconv.Atoi(number)
	return pid, err == nil
}

// learn has every owner of the sandboxes that are filed under a key take something in.
func (p *Picture) learn(key string, take func(*Entry, *Owner)) {
	for id := range p.claimants[key] {
		e := p.sandboxes[id]
		for i := range e.Owners {
			take(e, &e.Owners[i])
		}
		p.agenda.touch(id)
	}
}

func (p *Picture) program(name string) *program {
	if p.programs[name] == nil {
		p.programs[name] = &program{members: map[Process]Member{}, seen: map[Process]time.Time{}}
	}
	return p.programs[name]
}

func (p *Picture) learnProgram(name string) {
	p.learn(claimKey(Claim{Kind: ProgramClaim, Program: name}), func(e *Entry, o *Owner) {
		if o.Claim.Kind == ProgramClaim && o.Claim.Program == name {
			o.learnProgram(e.Sandbox, e.First, p.program(name))
		}
	})
}

func (p *Picture) group(name string) *group {
	if p.groups[name] == nil {
		p.groups[name] = &group{containers: map[ID]struct{}{}}
	}
	return p.groups[name]
}

func (p *Picture) learnGroup(name string) {
	p.learn(groupKey(name), func(e *Entry, o *Owner) {
		if o.Claim.Kind == GroupClaim && o.Claim.Group == name {
			o.learnGroup(e.Sandbox, e.First, p.group(name))
		}
	})
}

// endOfGroup notes that a container is gone. If it was reaped, that condemns what belongs to its group, as soon as no other
// container of the group is left.
func (p *Picture) endOfGroup(e *Entry, at time.Time) {
	if e.ID.Kind == Container && e.Terms.Group != "" && !e.Progress.Begun.IsZero() {
		g := p.group(e.Terms.Group)
		g.reaped, g.reason = at, e.Progress.Reason
	}
}

func (p *Picture) applyClientsSeen(ev ClientsSeen) {
	e := p.sandboxes[ev.ID]
	if e == nil {
		return
	}
	for i := range e.Owners {
		o := &e.Owners[i]
		if o.Claim.Kind != ClientClaim || len(o.Clients) > 0 && ev.At.Before(o.Asked) {
			continue
		}
		o.Asked, o.Detail = ev.At, ev.Detail
		if !sameClients(o.Clients, ev.Clients) {
			o.Clients = ev.Clients
			lives := map[Process]ending{}
			for _, process := range o.processes() {
				lives[process] = o.lives[process]
			}
			o.lives = lives
		}
		for _, process := range o.processes() {
			p.fileUnder(e, pidKey(process.PID))
		}
		o.weighClients()
		p.agenda.touch(ev.ID)
	}
}

func (p *Picture) applyOwnerSeen(ev OwnerSeen) {
	e := p.sandboxes[ev.ID]
	if e == nil {
		return
	}
	for i := range e.Owners {
		o := &e.Owners[i]
		if !o.Claim.Kind.Sought() || o.Claim != ev.Claim || ev.Asked.Before(o.Asked) {
			continue
		}
		o.learnSought(ev)
		if ev.Owner.PID != 0 {
			p.fileUnder(e, pidKey(ev.Owner.PID))
		}
		p.agenda.touch(ev.ID)
	}
}
