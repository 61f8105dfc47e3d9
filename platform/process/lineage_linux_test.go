package process_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
)

// shells starts shells below us, each below the one before, and returns their PIDs.
func shells(t *testing.T, depth int) (pids []int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "down")
	// What follows the shell below keeps this one from becoming it.
	script := "echo $$\nif [ $1 -gt 1 ]; then sh $0 $(($1-1)); true; else read line; fi\n"
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", file, strconv.Itoa(depth))
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	lines := speaking(t, cmd)
	for range depth {
		if !lines.Scan() {
			t.Fatal("a shell has ended")
		}
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func anybody(process.Ancestor) bool { return false }

func upTo(pid int) func(process.Ancestor) bool {
	return func(a process.Ancestor) bool { return a.Process.PID == pid }
}

func TestAncestors(t *testing.T) {
	needPidfds(t)
	pids := shells(t, 4)
	chain, err := sight(t, pids[3]).Ancestors(upTo(os.Getpid()))
	if err != nil || len(chain) != 4 {
		t.Fatalf("%+v (%v)", chain, err)
	}
	for i, want := range []int{pids[2], pids[1], pids[0], os.Getpid()} {
		if chain[i].Process.PID != want || chain[i].Exe == "" || len(chain[i].Argv) == 0 {
			t.Errorf("ancestor %d is %+v, want process %d", i, chain[i], want)
		}
	}
	self, err := os.Executable()
	if err != nil || chain[3].Exe != self || chain[3].Process != sight(t, os.Getpid()).Process() {
		t.Errorf("we are %+v (%v)", chain[3], err)
	}

	// Of an orphan the chain is complete, and whoever made it is not in it.
	orphan, parent := sight(t, pids[3]), sight(t, pids[2])
	end(t, parent)
	if chain, err = orphan.Ancestors(anybody); err != nil || chain[len(chain)-1].Process.PID != 1 {
		t.Errorf("%+v (%v), want a chain to the end", chain, err)
	}
	for _, a := range chain {
		if a.Process == parent.Process() {
			t.Errorf("the dead parent is in %+v", chain)
		}
	}
	end(t, orphan)
	if chain, err := orphan.Ancestors(anybody); !errors.Is(err, process.ErrGone) {
		t.Errorf("of a dead process: %+v, %v", chain, err)
	}
}

// end kills a process and waits until it is dead: by then its children have another parent.
func end(t *testing.T, s *process.Sight) {
	t.Helper()
	if err := s.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestAncestorsTooDeep: sixteen are looked at, and who is not found among them may be the next.
func TestAncestorsTooDeep(t *testing.T) {
	needPidfds(t)
	pids := shells(t, process.Generations+1)
	lowest := sight(t, pids[process.Generations])
	chain, err := lowest.Ancestors(upTo(pids[0]))
	if err != nil || len(chain) != process.Generations {
		t.Errorf("%d ancestors (%v), want %d up to the one we look for", len(chain), err, process.Generations)
	}
	chain, err = lowest.Ancestors(upTo(os.Getpid()))
	if !errors.Is(err, process.ErrTooDeep) || len(chain) != process.Generations {
		t.Errorf("%d ancestors (%v), want ErrTooDeep", len(chain), err)
	}
}

// TestAncestorsBelowASubreaper: it gets the orphans below it, and is above them.
func TestAncestorsBelowASubreaper(t *testing.T) {
	needPidfds(t)
	c := startRole(t, "subreaper", 0)
	var parent, orphan int
	if _, err := fmt.Sscan(c.say, &parent, &orphan); err != nil {
		t.Fatal(err)
	}
	end(t, sight(t, parent))
	chain, err := sight(t, orphan).Ancestors(upTo(os.Getpid()))
	if err != nil || len(chain) != 2 || chain[0].Process.PID != c.pid {
		t.Errorf("%+v (%v), want the subreaper %d and us", chain, err, c.pid)
	}
}

// TestAncestorsOfAHeadlessOne: a parent whose leader has exited is a parent still.
func TestAncestorsOfAHeadlessOne(t *testing.T) {
	needPidfds(t)
	c := startRole(t, "headless parent", 0)
	child, err := strconv.Atoi(c.say)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := sight(t, child).Ancestors(upTo(c.pid))
	if err != nil || len(chain) != 1 || chain[0].Process.PID != c.pid || chain[0].Exe == "" {
		t.Errorf("%+v (%v), want %d", chain, err, c.pid)
	}
}

// TestAncestorsOutside: where the chain leads out of our PID namespace it is not complete.
func TestAncestorsOutside(t *testing.T) {
	needPidfds(t)
	needRoot(t)
	host := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "echo; read line")
	host.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	in, err := host.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, host)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	inside, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", host.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	guest := exec.Command("nsenter", "--target", strings.TrimSpace(string(inside)), "--pid", "--mount", self)
	guest.Env = append(os.Environ(), roleVariable+"=climb")
	guest.Stderr = os.Stderr
	say, err := guest.Output()
	if got := strings.TrimSpace(string(say)); err != nil || got != "unreadable true, chain 0" {
		t.Errorf("%q (%v)", got, err)
	}
}

// TestAncestorsDenied: who cannot be read may be the one we look for.
func TestAncestorsDenied(t *testing.T) {
	needPidfds(t)
	needRoot(t)
	c := startRole(t, "stranger climbs", 0)
	if c.say != "unreadable true, chain 0" {
		t.Error(c.say)
	}
}
