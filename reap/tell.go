package reap

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"watcher/watch"
)

// This file is the story that the loop tells: one line per verdict that changed and per reap that ended.

// about returns the attributes that say which sandbox a record is about, and more behind them.
func (l *Loop) about(e *watch.Entry, more ...any) []any {
	attrs := []any{watch.KeyKind, string(e.ID.Kind), watch.KeyID, e.ID.Name, watch.KeyName, e.Name}
	if e.Image != "" {
		attrs = append(attrs, watch.KeyImage, e.Image)
	}
	attrs = append(attrs, watch.KeyRule, e.Terms.Rule)
	if owner := e.Owner().Claim.String(); owner != "" {
		attrs = append(attrs, watch.KeyOwner, owner)
	}
	return append(attrs, more...)
}

func (l *Loop) tellVerdict(j Judged) {
	before, known := l.verdicts[j.ID]
	if known && before.Verdict == j.Verdict && before.Reason == j.Reason {
		return
	}
	l.verdicts[j.ID] = j.Judgement
	e := l.Picture.Entry(j.ID)
	if e == nil {
		return
	}
	attrs := l.about(e, watch.KeyReason, string(j.Reason))
	if j.Detail != "" {
		attrs = append(attrs, slog.String("detail", j.Detail))
	}
	tell := func(level slog.Level, event, message string) {
		if event != "" {
			attrs = append(attrs, watch.KeyEvent, event)
		}
		l.Log.Log(context.Background(), level, message, attrs...)
	}
	switch {
	case before.Reason == Retrying && j.Verdict == Reap:
		// The next attempt at a reap that has been told already.
	case j.Verdict == Reap && l.DryRun:
		tell(slog.LevelInfo, watch.EventWouldReap, "would reap")
	case j.Verdict == Reap && j.Reason != Expired && j.Reason != StaleState && j.Reason != Operator:
		tell(slog.LevelInfo, watch.EventOwnerExited, "owner has exited")
	case j.Reason == OwnerUnknown && l.unshared[j.ID.Kind]:
		// Said once for all of them by namespace.
		tell(slog.LevelDebug, watch.EventHeld, "kept, because its owner cannot be judged")
	case j.Reason == OwnerUnknown:
		tell(slog.LevelWarn, watch.EventHeld, "kept, because its owner cannot be judged")
	case j.Reason == Protected:
		tell(slog.LevelInfo, watch.EventHeld, "kept, because it is another manager's")
	case j.Reason == BadLabel:
		tell(slog.LevelWarn, watch.EventHeld, "kept, because a label is malformed")
	default:
		tell(slog.LevelDebug, "", "judged")
	}
}

func (l *Loop) tellReaped(e *watch.Entry, at time.Time) {
	attrs := l.about(e, watch.KeyEvent, watch.EventReaped, watch.KeyReason, e.Progress.Reason, watch.KeyAttempt, e.Progress.Attempts+1)
	if died := e.Owner().ExitedAt; !died.IsZero() && Reason(e.Progress.Reason) != Expired && Reason(e.Progress.Reason) != Operator {
		if stopped := e.Progress.Stopped; !stopped.IsZero() {
			attrs = append(attrs, watch.KeyStopUS, max(stopped.Sub(died), 0).Microseconds())
		}
		attrs = append(attrs, watch.KeyGoneUS, at.Sub(died).Microseconds())
	}
	l.Log.Info("reaped", attrs...)
}

// tellFailed tells that a removal failed, and whether it was given up by this.
func (l *Loop) tellFailed(e *watch.Entry, err error, before bool) {
	n := e.Progress.Attempts
	attrs := l.about(e, watch.KeyReason, e.Progress.Reason, watch.KeyAttempt, n, watch.KeyError, err)
	switch {
	case n < l.Policy.Attempts:
		l.Log.Warn("could not remove, will try again", append(attrs, watch.KeyEvent, watch.EventReapFailed)...)
	case !before:
		l.Log.Error("could not remove, will only try now and then", append(attrs, watch.KeyEvent, watch.EventGaveUp)...)
	default:
		l.Log.Debug("still could not remove", append(attrs, watch.KeyEvent, watch.EventReapFailed)...)
	}
}

// tellScan tells a full scan. Only the first is news; that a later one failed is told as a lost source.
func (l *Loop) tellScan(ev watch.ScanEnded) {
	level := slog.LevelDebug
	if ev.Failed == 0 && !l.status.Scanned && l.Order == nil {
		level = slog.LevelInfo
	}
	l.Log.Log(context.Background(), level, "scanned", watch.KeyEvent, watch.EventScan, watch.KeySandboxes, l.Picture.Len(), "open", len(l.open), "lists_failed", ev.Failed)
}

// tellAbandoned tells that a reap ends without its end.
func (l *Loop) tellAbandoned(id watch.ID) {
	if e := l.Picture.Entry(id); e != nil {
		l.Log.Warn("left alone after all: its owner runs again",
			l.about(e, watch.KeyEvent, watch.EventHeld, watch.KeyReason, string(OwnerAlive))...)
	}
}

// tellDocket tells that the docket cannot be written, and that it can again. Reaping goes on without: a container keeps
// its labels until it is gone, so after a crash a scan finds it again.
func (l *Loop) tellDocket(err error) {
	switch {
	case err != nil && !l.undurable:
		l.Log.Error("cannot write the docket; reaps go on, but would not be remembered in a crash",
			watch.KeyEvent, watch.EventDocketFailed, watch.KeyError, err)
	case err == nil && l.undurable:
		l.Log.Info("the docket can be written again", watch.KeyEvent, watch.EventDocketFailed)
	}
	l.undurable = err != nil
}

// tellAlarm tells, once per crossing, that there are more sandboxes of a rule than there should be.
func (l *Loop) tellAlarm() {
	rules := l.Picture.Rules()
	for rule := range l.alarmed {
		if _, some := rules[rule]; !some {
			rules[rule] = 0
		}
	}
	for rule, n := range rules {
		most, own := l.Policy.Alarms[rule]
		if !own {
			most = l.Policy.Alarm
		}
		attrs := []any{watch.KeyEvent, watch.EventAlarm, watch.KeyRule, rule, watch.KeySandboxes, n, watch.KeyThreshold, most}
		switch alarm := n > most; {
		case alarm && !l.alarmed[rule]:
			l.alarmed[rule] = true
			l.Log.Warn("more sandboxes than there should be", attrs...)
		case !alarm && l.alarmed[rule]:
			delete(l.alarmed, rule)
			l.Log.Info("no more sandboxes than there should be", attrs...)
		}
	}
	l.status.Alarm = len(l.alarmed) > 0
}

func (l *Loop) tellBrake(n int) {
	l.Log.Warn("so many sandboxes would be reaped by inference at once that they are looked at again first",
		watch.KeyEvent, watch.EventHeld, watch.KeyReason, string(TooYoung), watch.KeySandboxes, n, "burst", l.Policy.Burst)
}

func listOf(kind watch.Kind) string {
	if kind == watch.Processes {
		return "list of processes"
	}
	return "list of " + string(kind) + "s"
}

// listFailed tells a failed list, unless that the kind's system is away explains it already.
func (l *Loop) listFailed(ev watch.ListFailed) {
	if l.Picture.Present(ev.Kind) || ev.Kind == watch.Processes {
		l.sourceLost(listOf(ev.Kind), ev.Err)
		return
	}
	l.Log.Debug("could not list", watch.KeyKind, string(ev.Kind), watch.KeyError, ev.Err)
}

func (l *Loop) sourceLost(source string, err error) {
	if l.lost[source] {
		return
	}
	l.lost[source] = true
	l.Log.Warn("lost events or cannot see; nothing is judged by what is missing", watch.KeyEvent, watch.EventSourceLost, watch.KeySource, source, watch.KeyError, err)
}

func (l *Loop) sourceBack(source string) {
	if !l.lost[source] {
		return
	}
	delete(l.lost, source)
	l.Log.Info("sees again", watch.KeyEvent, watch.EventSourceBack, watch.KeySource, source)
}

// namespace says loudly, once, that no process owner of a kind can be judged.
func (l *Loop) namespace(ev watch.NamespaceSeen) {
	if was := l.unshared[ev.Kind]; was == !ev.Shared {
		return
	}
	told := slices.Contains(slices.Collect(maps.Values(l.unshared)), !ev.Shared) // of another kind of the same system
	l.unshared[ev.Kind] = !ev.Shared
	level := slog.LevelDebug
	if ev.Shared {
		if !told {
			level = slog.LevelInfo
		}
		l.Log.Log(context.Background(), level, "owners can be judged again", watch.KeyKind, string(ev.Kind))
		return
	}
	if !told {
		level = slog.LevelWarn
	}
	l.Log.Log(context.Background(), level, "every sandbox with a process as owner is kept: PIDs do not mean the same here and where the sandboxes run",
		watch.KeyEvent, watch.EventHeld, watch.KeyKind, string(ev.Kind), watch.KeyReason, string(OwnerUnknown), "detail", ev.Detail)
}
