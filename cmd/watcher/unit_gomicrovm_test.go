//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"watcher/platform/gomicrovm/gomicrovmtest"
)

// The unit as it is does for microVMs of brood-box: the folder of another user, and a runner of theirs in a user namespace.
func TestUnitRemovesMicroVMsOfBroodbox(t *testing.T) {
	temporaryIn(t, "/home")
	home := gomicrovmtest.NewHomeOf(t, 65534)
	m := startManager(t)
	config := filepath.Join(m.dir, "watcher.toml")
	writeFile(t, config, fmt.Sprintf("[[rule]]\nname = \"vm\"\nkind = \"gomicrovm\"\ndirs = [%q]\nowner = { sentinel = true }\nstop-runner = true\n", home.VMs()))
	m.install(t, daemonUnit, "ExecStart=", "ExecStart="+m.binary+" --config "+config)
	m.systemctl(t, "start", daemonUnit)
	vm := home.Start("vm", gomicrovmtest.Options{UserNS: true, Stubborn: true})
	p := m.waitShow(t, "watching", func(p map[string]string) bool {
		return strings.HasPrefix(p["StatusText"], "watching 1 sandbox(es), 0 being reaped")
	})
	m.checkStatus(t, p["MainPID"], unitCapabilities...)
	vm.Kill(unix.SIGKILL)
	m.waitEntry(t, "MESSAGE_ID="+messageReaped, "WATCHER_NAME=vm")
	if _, err := os.Lstat(vm.Folder); err == nil || !gomicrovmtest.Dead(vm.Runner) {
		t.Errorf("it is reaped; its runner is dead: %t; its folder: %v, want none", gomicrovmtest.Dead(vm.Runner), err)
	}
}
