// Package docker knows the containers of a Docker-compatible engine: it lists them, tells what happens to them, stops
// them and removes them. It is the only package that knows the engine's API.
//
// Invariants:
//
//	D1  A container is named by its full ID in every call.
//	D2  A list is whole or an error. An inspect that fails says nothing about its container; only "not found" says that
//	    it is gone.
//	D3  Events only say which container to look at again. The look decides.
//	D4  A signal goes to a process only after the kernel's own word, its cgroup, has shown that it belongs to the
//	    container; and through a pidfd opened before that word was asked for.
//	D5  PIDs in labels count only if the engine runs on this kernel and in our PID namespace.
//	D6  Every call has a deadline, except the stream of events, which has none by nature.
//	D7  What a rule asks for and could not be found out is not taken as "no": the container stays as it was watched
//	    before, or only its own labels count. No rule behind decides instead.
//	D8  What a container has at a path is looked for below what the host mounted there, and never through a symbolic
//	    link that the container may have made.
package docker
