// Package watch is what watcher sees: sandboxes, the claims they make about their owners, the facts that arrive about
// both, and the picture folded from these facts.
//
// The package is pure: no file, socket, clock, goroutine or lock. Time comes in with each fact. A [Picture] belongs to
// one goroutine.
//
// Invariants:
//
//	W1  The zero value of every judgement-bearing type is the safe one: a [Life] is Unknown, a namespace is not shared,
//	    a claim names nobody.
//	W2  A claim is bound to one incarnation of a process or container, never to a PID or a name. Once bound it is not
//	    bound again. Once a process has exited, or a container is gone, it stays so, whatever arrives later; a container
//	    that only exited may run again. A claim whose owner an adapter looks for ([ClaimKind.Sought]) is bound to nobody:
//	    each look replaces what an earlier one found.
//	W3  A claim that names only a PID is bound to a process only if that was born before the sandbox was created. The
//	    kernel's clock tells, where the sandbox's init is known, and the wall clock elsewhere (see [Picture.Apply]).
//	W4  Facts may arrive doubled, late or out of order. A stale fact never undoes a fresh one: a list does not forget
//	    what was seen after it was asked for, nor bring back what went since.
//	W5  A discovery that failed changes nothing: an unreadable set is not an empty set.
//	W6  Only a complete list or an explicit "gone" makes the picture forget a sandbox.
//	W7  A drop lasts until the sandbox is gone, or an operator orders that it go.
//	W8  A kind's system is away until a SourceBack of its kind says otherwise, and again from a SourceLost on.
package watch
