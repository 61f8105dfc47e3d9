//go:build linux

// Package dockertest runs a private engine for tests and demonstrations: that of
// Debian, and where they are, the newest one and Podman.
//
// What it promises:
//
//	E1  An engine of ours shares nothing with another engine: own folder, socket,
//	    containerd, network namespace and parent cgroup, all with one random name.
//	    Podman has no containerd, and containers get that parent cgroup from Run
//	    and Create alone.
//	E2  Nothing of it outlives Close: no process, mount, cgroup, socket or file.
//	E3  Nor does it outlive the program that started it, however that ended: a
//	    guard, a second process in a session of its own, waits for the end of a
//	    pipe and then does what Close would have done.
//	E4  Only what we started is ever killed. The engine is cloned into a cgroup of
//	    its own, where containerd, the shims (Podman's conmon) and the containers'
//	    processes stay too, and the kernel kills that cgroup: no PID is looked at, hence none can
//	    have been reused.
//
// What an engine does to its containers, measured with dockerd 20.10.24 and
// 2.0.0-beta.24:
//
//	Kill                     shims and containers live on; containerd dies with it.
//	Kill, Restart            the new engine kills the containers it finds.
//	Kill, Restart, live      they run on, and are the engine's again. (LiveRestore)
//	Stop                     SIGTERM to every container, SIGKILL after 10 s.
//	Stop, live               they live on.
//
// Podman (4.3.1) has no daemon that its containers depend on: they always live on.
//
// Some things of the host are used by every engine and stay: the empty folders
// /run/docker/plugins and /run/containerd/s; of Podman, the empty folder
// /run/containers/networks and the cache /var/lib/containers/cache.
package dockertest
