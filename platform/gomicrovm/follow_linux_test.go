package gomicrovm_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"watcher/platform/gomicrovm/gomicrovmtest"
	"watcher/watch"
)

// TestMicroVMsThatAppear shows that no list is needed to see one: the folder that holds it may not even be there at first.
func TestMicroVMsThatAppear(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	must(t, os.RemoveAll(filepath.Join(home.Dir, ".config")))
	s := newStand(t, home, broodbox(home))
	s.run()
	s.list()
	vm := home.Start("vm", gomicrovmtest.Options{UserNS: true})
	s.await("vm and its runner", func() bool {
		sandbox, lives, _ := s.of("vm")
		return lives == ".bbox-sentinel alive" && sandbox.Init.PID == vm.Runner
	})
	vm.Kill(syscall.SIGKILL)
	s.awaitLives("vm", ".bbox-sentinel exited")
	vm.KillRunner()
	must(t, os.RemoveAll(vm.Folder))
	s.await("that it is gone", func() bool {
		_, _, there := s.of("vm")
		return !there
	})
	// Another of that name is another.
	first, _ := told(s, func(ev watch.SandboxSeen) bool { return true })
	again := home.Start("vm", gomicrovmtest.Options{})
	s.awaitLives("vm", ".bbox-sentinel alive")
	sandbox, _, _ := s.of("vm")
	if sandbox.ID == first.Sandbox.ID {
		t.Error("it has the ID of an earlier one")
	}
	again.Stop()
	s.await("that it was stopped", func() bool {
		sandbox, lives, there := s.of("vm")
		return there && lives == ".bbox-sentinel exited" && sandbox.State == watch.Stopped
	})
}

// TestARunnerWithoutAState is seen by its arguments: the state is saved after it was started, or never.
func TestARunnerWithoutAState(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	s := newStand(t, home, broodbox(home))
	s.list()
	s.run()
	vm := home.Start("vm", gomicrovmtest.Options{NoState: true})
	s.awaitLives("vm", ".bbox-sentinel alive")
	s.vms.Exec(os.Getpid(), time.Now()) // of no interest
	s.vms.Exec(vm.Runner, time.Now())
	s.await("the runner", func() bool {
		sandbox, _, _ := s.of("vm")
		return sandbox.Init.PID == vm.Runner && sandbox.State == watch.Running
	})
	vm.KillRunner()
	s.await("the end of the runner", func() bool {
		sandbox, lives, _ := s.of("vm")
		return sandbox.Init.PID == 0 && lives == ".bbox-sentinel alive"
	})
}

func TestAWitnessOfADeathIsBelieved(t *testing.T) {
	home := gomicrovmtest.NewHome(t)
	s := newStand(t, home, broodbox(home))
	vm := home.Start("vm", gomicrovmtest.Options{})
	s.list()
	s.vms.Witness(vm.BBox, time.Now()) // a thread of it ended
	s.awaitLives("vm", ".bbox-sentinel alive")
	stamp := time.Now()
	vm.Kill(syscall.SIGKILL)
	s.vms.Witness(vm.BBox, stamp)
	s.await("the kernel's stamp", func() bool {
		seen, ok := told(s, func(ev watch.OwnerSeen) bool { return ev.Life == watch.Exited })
		return ok && seen.Exited.Equal(stamp)
	})
}
