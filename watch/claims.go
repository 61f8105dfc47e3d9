package watch

import "strconv"

// claimKey is what the owner that c names is filed under, or "" if it names nobody. A container reference is never a
// bare number followed by a slash, so the two sorts do not meet.
func claimKey(c Claim) string {
	switch c.Kind {
	case ProcessClaim:
		return pidKey(c.Process.PID)
	case ContainerClaim:
		return c.Container
	default:
		return ""
	}
}

func pidKey(pid int) string { return "pid/" + strconv.Itoa(pid) }
