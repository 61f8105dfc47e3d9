// Package docker knows the containers of a Docker-compatible engine, and the volumes and networks that belong to them: it
// lists them, tells what happens to them, stops them and removes them. It is the only package that knows the engine's
// API.
//
// Invariants:
//
//	D1  A container or network is named by its full ID in every call. A volume has but a name, which may be another's by
//	    now: when it was made, and its labels, are looked at again right before it is removed.
//	D2  A list is whole or an error. An inspect that fails says nothing about its container; only "not found" says that
//	    it is gone.
//	D3  Events only say which container to look at again. The look decides.
//	D4  A signal goes to a process only after the kernel's own word, its cgroup, has shown that it belongs to the
//	    container; and through a pidfd opened before that word was asked for.
//	D5  PIDs in labels count only if the engine runs on this kernel and in our PID namespace.
//	D6  Every call has a deadline, except the stream of events, which has none by nature.
//	D7  What a rule asks for and could not be found out is not taken as "no": the container stays as the same rules had
//	    it before, or only its own labels count. No rule behind decides instead.
//	D8  What a container has at a path is looked for below what the host mounted there, and never through a symbolic
//	    link that the container may have made.
//	D9  A volume or network that any container refers to, running or not, is not removed.
package docker
