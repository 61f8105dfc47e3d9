package process_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/process"
	"watcher/platform/process/processtest"
)

// speaking starts a process that waits for the end of its standard input, which is that of the test, and returns its lines.
func speaking(t *testing.T, cmd *exec.Cmd) *bufio.Scanner {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	t.Cleanup(func() { _ = in.Close() })
	return bufio.NewScanner(out)
}

// group starts a shell that leads a group of its own, with a script that says who is in it, and returns them held, and it.
func group(t *testing.T, script string, members int) (all []*process.Sight, leader *os.Process) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	lines := speaking(t, cmd)
	for range members {
		pid := 0
		if !lines.Scan() {
			t.Fatal("the group has ended")
		}
		if _, err := fmt.Sscan(lines.Text(), &pid); err != nil {
			t.Fatal(err)
		}
		s := sight(t, pid)
		t.Cleanup(func() { _ = s.Signal(unix.SIGKILL) })
		all = append(all, s)
	}
	return all, cmd.Process
}

const (
	// Each reads what never comes, so that none outlives the tests.
	leaderAndTwo = "exec 3<&0; echo $$; sh -c 'echo $$; read line' <&3 & sh -c 'echo $$; read line' <&3 & wait"
	// The first leaves at once.
	leaderless = "exec 3<&0; sh -c 'echo $$; read line' <&3 & sh -c 'echo $$; read line' <&3 & exit"
)

func none(*process.Sight) bool { return false }
func each(*process.Sight) bool { return true }

func ended(t *testing.T, s *process.Sight) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
}

func lives(t *testing.T, s *process.Sight) {
	t.Helper()
	if exited, err := s.Exited(); err != nil || exited {
		t.Errorf("%q of group %d is dead (%v)", s.Argv, s.Group, err)
	}
}

func TestSignalGroup(t *testing.T) {
	needPidfds(t)
	for name, member := range map[string]int{"through its leader": 0, "through a member": 1} {
		t.Run(name, func(t *testing.T) {
			bystander := processtest.StartOwner(t)
			all, _ := group(t, leaderAndTwo, 3)
			if err := all[member].SignalGroup(unix.SIGKILL, each); err != nil {
				t.Fatal(err)
			}
			for _, s := range all {
				ended(t, s)
			}
			lives(t, sight(t, bystander.PID()))
			if err := all[member].SignalGroup(unix.SIGKILL, each); !errors.Is(err, process.ErrGone) {
				t.Errorf("to a dead process: %v", err)
			}
		})
	}
}

// TestSignalGroupOfStrangers: who was started in the group of others takes none of them along.
func TestSignalGroupOfStrangers(t *testing.T) {
	needPidfds(t)
	all, _ := group(t, leaderAndTwo, 3)
	if err := all[1].SignalGroup(unix.SIGKILL, none); err != nil {
		t.Fatal(err)
	}
	ended(t, all[1])
	lives(t, all[0])
	lives(t, all[2])
	// A group that is its own is its own with all who are in it.
	if err := all[0].SignalGroup(unix.SIGKILL, none); err != nil {
		t.Fatal(err)
	}
	ended(t, all[0])
	ended(t, all[2])
}

// TestSignalGroupWithoutItsLeader: a number is left of the leader, and nobody who could be held by it.
func TestSignalGroupWithoutItsLeader(t *testing.T) {
	needPidfds(t)
	all, leader := group(t, leaderless, 2)
	if _, err := leader.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := all[0].SignalGroup(unix.SIGKILL, func(s *process.Sight) bool { return strings.HasSuffix(s.Exe, "sh") }); err != nil {
		t.Fatal(err)
	}
	ended(t, all[0])
	ended(t, all[1])
}
