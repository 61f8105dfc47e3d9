package connector

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
)

// filter is a socket filter that passes replies, core dumps, if asked execs, and exits: those of leaders and of our own
// threads, or of all. Ours must pass because one of them is the canary; the threads of everybody else are what a storm is
// made of.
func filter(self int, threads, execs bool) []bpf.Instruction {
	always := uint32(eventCoredump)
	if execs {
		always |= eventExec
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offWhat, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: eventReply, SkipTrue: 1},
		pass,
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: loaded(always), SkipTrue: 1},
		pass,
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: loaded(eventExit), SkipTrue: 1},
		drop,
	}
	if threads {
		return append(program, pass)
	}
	return append(program,
		bpf.LoadAbsolute{Off: offTGID, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: loaded(uint32(self)), SkipTrue: 1},
		pass,
		bpf.TAX{},
		bpf.LoadAbsolute{Off: offPID, Size: 4},
		bpf.JumpIfX{Cond: bpf.JumpNotEqual, SkipTrue: 1},
		pass,
		drop,
	)
}

var (
	pass = bpf.RetConstant{Val: 1 << 16} // how many bytes to keep: more than there are
	drop = bpf.RetConstant{Val: 0}
)

// loaded is what a filter sees of a number in the host's byte order: its loads are big-endian.
func loaded(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}
