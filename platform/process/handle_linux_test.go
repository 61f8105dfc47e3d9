package process_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
	"watcher/watch"
)

func needPidfds(t *testing.T) {
	t.Helper()
	if withoutPidfds() {
		t.Skip("handles need pidfds")
	}
}

func open(t *testing.T, pid int) *process.Handle {
	t.Helper()
	h, err := newHost(t).Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestOpen(t *testing.T) {
	needPidfds(t)
	before := time.Now()
	o := processtest.StartOwner(t)
	after := time.Now()
	h := open(t, o.PID())
	if got := h.Process().Label(); got != o.Label() {
		t.Errorf("process %s, want %s", got, o.Label())
	}
	if born := h.Born(); born.Before(before.Add(-time.Second)) || born.After(after.Add(time.Second)) {
		t.Errorf("born %v, want between %v and %v", born, before, after)
	}
	if exited, err := h.Exited(); exited || err != nil {
		t.Errorf("Exited = %t, %v", exited, err)
	}
	for _, pid := range []int{1, os.Getpid()} {
		h := open(t, pid)
		exited, err := h.Exited()
		if p := h.Process(); p.PID != pid || p.Boot != newHost(t).Boot() || exited || err != nil {
			t.Errorf("process %d: %v, exited %t, %v", pid, p, exited, err)
		}
	}
}

// TestOpenRefuses also shows that only nobody and the dead read as gone (P3).
func TestOpenRefuses(t *testing.T) {
	needPidfds(t)
	host := newHost(t)
	reaped, zombie := processtest.StartOwner(t), processtest.StartOwner(t)
	reaped.Kill()
	reaped.Wait()
	zombie.Zombie()
	before := descriptors(t)
	for _, tt := range []struct {
		name string
		pid  int
		gone bool
	}{
		{"nobody", reaped.PID(), true},
		{"a zombie", zombie.PID(), true},
		{"a PID that none can have", watch.MaxPID + 1, true},
		{"a thread", aThread(t), false},
		{"zero", 0, false},
		{"a process group", -os.Getpid(), false},
	} {
		_, err := host.Open(tt.pid)
		if err == nil || errors.Is(err, process.ErrGone) != tt.gone || errors.Is(err, process.ErrNoPidfd) {
			t.Errorf("%s: Open = %v, want ErrGone: %t", tt.name, err, tt.gone)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}

	restore := exhaust(t)
	_, err := host.Open(os.Getpid())
	restore()
	if !errors.Is(err, unix.EMFILE) || errors.Is(err, process.ErrGone) {
		t.Errorf("without descriptors: Open = %v, want %v", err, unix.EMFILE)
	}
}

func TestOpenWithoutPidfds(t *testing.T) {
	if !withoutPidfds() {
		t.Skip("part of TestOwnersWithoutPidfds")
	}
	if _, err := newHost(t).Open(os.Getpid()); !errors.Is(err, process.ErrNoPidfd) || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Open = %v, want %v", err, process.ErrNoPidfd)
	}
}

func TestWait(t *testing.T) {
	needPidfds(t)
	for _, tt := range []struct {
		name string
		end  func(*processtest.Owner, *process.Handle)
		want error
	}{
		{"death", func(o *processtest.Owner, _ *process.Handle) { o.Kill() }, nil},
		{"death that stays a zombie", func(o *processtest.Owner, _ *process.Handle) { o.Zombie() }, nil},
		{"close", func(_ *processtest.Owner, h *process.Handle) { _ = h.Close() }, os.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := processtest.StartOwner(t)
			h := open(t, o.PID())
			ended := make(chan error, 2)
			for range cap(ended) {
				go func() { ended <- h.Wait() }()
			}
			o.LeaderGone()
			select {
			case err := <-ended:
				t.Errorf("Wait = %v of a living process", err)
			default:
			}
			tt.end(o, h)
			for range cap(ended) {
				if err := receive(t, ended); !errors.Is(err, tt.want) {
					t.Errorf("Wait = %v, want %v", err, tt.want)
				}
			}
			if err := h.Wait(); !errors.Is(err, tt.want) {
				t.Errorf("Wait = %v afterwards, want %v", err, tt.want)
			}
			if exited, err := h.Exited(); tt.want == nil && (!exited || err != nil) || tt.want != nil && (exited || err == nil) {
				t.Errorf("Exited = %t, %v afterwards", exited, err)
			}
		})
	}
}

func TestSignal(t *testing.T) {
	needPidfds(t)
	o := processtest.StartOwner(t)
	h := open(t, o.PID())
	if err := h.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ws := o.Wait().Sys().(syscall.WaitStatus); ws.Signal() != unix.SIGTERM {
		t.Errorf("wait status %#x, want SIGTERM", ws)
	}
	if err := h.Signal(unix.SIGTERM); !errors.Is(err, process.ErrGone) {
		t.Errorf("Signal to a reaped process = %v, want %v", err, process.ErrGone)
	}
	if os.Geteuid() == 0 { // choosing a PID needs it
		second := processtest.ReusePID(t, o.PID())
		if err := h.Signal(unix.SIGKILL); !errors.Is(err, process.ErrGone) {
			t.Errorf("Signal = %v with the PID reused, want %v", err, process.ErrGone)
		}
		select {
		case <-second.Dead():
			t.Error("the signal reached the later process with the PID (P1)")
		default:
		}
	}

	zombie := processtest.StartOwner(t)
	h = open(t, zombie.PID())
	zombie.Zombie()
	if err := h.Signal(unix.SIGTERM); err != nil {
		t.Errorf("Signal to a zombie = %v", err)
	}
	_ = h.Close()
	if err := h.Signal(unix.SIGTERM); err == nil || errors.Is(err, process.ErrGone) {
		t.Errorf("Signal through a closed handle = %v", err)
	}
}

func TestReadFile(t *testing.T) {
	needPidfds(t)
	o := processtest.StartOwner(t)
	h := open(t, o.PID())
	if b, err := h.ReadFile("cmdline"); err != nil || !strings.HasPrefix(string(b), "processtest-owner") {
		t.Errorf("ReadFile = %q, %v", b, err)
	}
	if _, err := h.ReadFile("no such file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile = %v, want %v", err, fs.ErrNotExist)
	}
	zombie := processtest.StartOwner(t)
	ofZombie := open(t, zombie.PID())
	zombie.Zombie()
	if b, err := ofZombie.ReadFile("stat"); !errors.Is(err, process.ErrGone) {
		t.Errorf("of a zombie: ReadFile = %q, %v; want %v (P2)", b, err, process.ErrGone)
	}
	o.Kill()
	o.Wait()
	if os.Geteuid() == 0 {
		processtest.ReusePID(t, o.PID())
	}
	if b, err := h.ReadFile("cmdline"); !errors.Is(err, process.ErrGone) {
		t.Errorf("of another with its PID: ReadFile = %q, %v; want %v (P2)", b, err, process.ErrGone)
	}
}
