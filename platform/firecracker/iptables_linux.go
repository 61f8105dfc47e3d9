package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"watcher/watch"
)

// A filter is one of the ways in which this host keeps rules for packets: a family of addresses and a back end. There are
// programs to save all rules of it, and to restore some.
type filter struct {
	family  string // what its programs begin with
	backEnd string // "-legacy", "-nft", or "" where that is not part of the name
	folder  string // where the programs are
}

func (f filter) save() string    { return filepath.Join(f.folder, f.family+f.backEnd+"-save") }
func (f filter) restore() string { return filepath.Join(f.folder, f.family+f.backEnd+"-restore") }

// sbin are the folders with the programs of an administrator. They need not be in PATH.
var sbin = []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"}

// rulesPatience is for another program that has the lock of the rules, and for the rules of a host with thousands.
const rulesPatience = 30 * time.Second

// removeRules removes every rule for packets in our network namespace that bears exactly this comment, of IPv4 and IPv6, in
// all tables of all back ends. That there is none is success. That a program for it is missing is an error: it is not known
// then that there is no rule, and who made rules had such a program.
//
// A comment that is the name of a network namespace is one of its pool's. The lock of the pool is held meanwhile: a runner
// that takes the pool over removes such rules first and then makes its own, with the same comments. If one has taken it over
// already then nothing is left to remove.
func removeRules(ctx context.Context, comment string) error {
	if err := theNetHost.removeRules(ctx, comment); err != nil {
		return fmt.Errorf("remove the rules with comment %q: %w", comment, err)
	}
	return nil
}

func (h netHost) removeRules(ctx context.Context, comment string) error {
	if err := checkComment(comment); err != nil {
		return err
	}
	if err := h.atHome(); err != nil {
		return err
	}
	if n, err := parseNetns(comment); err == nil {
		release, err := claimPool(filepath.Join(h.locks, n.lock()))
		if errors.Is(err, watch.ErrInUse) {
			return nil
		}
		if err != nil {
			return err
		}
		defer release()
	}
	sweepsMu.Lock()
	sweep, first := nextSweep, nextSweep == nil
	if first {
		sweep = &ruleSweep{ended: make(chan struct{})}
		nextSweep = sweep
	}
	sweep.comments = append(sweep.comments, comment)
	sweepsMu.Unlock()
	if first {
		sweep.run(ctx)
	}
	// Not even an end of ctx ends this: until then the pool must stay ours.
	<-sweep.ended
	if len(sweep.comments) == 1 || sweep.err == nil {
		return sweep.err
	}
	// It may be the rules of another that cannot be removed.
	oneSweep.Lock()
	defer oneSweep.Unlock()
	return sweepRules(ctx, comment)
}

// A ruleSweep removes rules of several comments at once: to change a table costs far more than to change it a little more,
// and what an owner leaves when it dies is often the rules of many microVMs. Whoever comes while another sweep is under way
// joins the next one.
type ruleSweep struct {
	comments []string // not changed once the sweep is no more the next
	ended    chan struct{}
	err      error // when it has ended
}

var (
	oneSweep  sync.Mutex // has who sweeps
	sweepsMu  sync.Mutex
	nextSweep *ruleSweep
)

// run is called by who was the first to want the sweep. The others do not depend on how long that one waits.
func (s *ruleSweep) run(ctx context.Context) {
	oneSweep.Lock()
	defer oneSweep.Unlock()
	defer close(s.ended)
	sweepsMu.Lock()
	nextSweep = nil
	sweepsMu.Unlock()
	if len(s.comments) > 1 {
		ctx = context.WithoutCancel(ctx)
	}
	s.err = sweepRules(ctx, s.comments...)
}

// sweepRules removes the rules of comments from every filter. What cannot be done to one is done to the others all the same.
func sweepRules(ctx context.Context, comments ...string) error {
	ctx, cancel := context.WithTimeout(ctx, rulesPatience)
	defer cancel()
	filters, err := filtersIn(sbin)
	errs := []error{err}
	for _, f := range filters {
		errs = append(errs, f.remove(ctx, comments...))
	}
	return errors.Join(errs...)
}

// checkComment says why no rule can bear a comment. The limit is that of the kernel (XT_MAX_COMMENT_LEN, with its NUL).
func checkComment(comment string) error {
	switch {
	case comment == "", len(comment) > 255:
		return errors.New("want 1 to 255 bytes")
	case strings.ContainsFunc(comment, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("it has control characters")
	}
	return nil
}

// filtersIn finds the filters of this host by their programs. The error says which are missing.
func filtersIn(folders []string) (found []filter, err error) {
	var missing []error
	for _, family := range []string{"iptables", "ip6tables"} {
		if family == "ip6tables" && !hasIPv6() {
			continue
		}
		var of []filter
		// The plain name is one of the others by another, where they are there.
		for _, backEnd := range []string{"-legacy", "-nft", ""} {
			if backEnd == "" && len(of) > 0 {
				continue
			}
			i := slices.IndexFunc(folders, func(folder string) bool {
				f := filter{family, backEnd, folder}
				return isProgram(f.save()) && isProgram(f.restore())
			})
			if i >= 0 {
				of = append(of, filter{family, backEnd, folders[i]})
			}
		}
		if len(of) == 0 {
			missing = append(missing, fmt.Errorf("%s-save and %s-restore: %w", family, family, exec.ErrNotFound))
		}
		found = append(found, of...)
	}
	return found, errors.Join(missing...)
}

func isProgram(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// hasIPv6 reports whether this kernel has IPv6. Without it no rules for it can be.
func hasIPv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return !errors.Is(err, fs.ErrNotExist)
}

// withoutBackEnd is how the programs of the nft back end say that this kernel has none, so that no rules can be in it. Those of
// the other find no table then, and say nothing.
var withoutBackEnd = regexp.MustCompile(`Failed to initialize nft: (Protocol|Operation) not supported`)

// remove removes the rules of one filter. All of a table go at once or none. If one of them has been removed by another since
// they were read then none goes, and what is left is read again.
func (f filter) remove(ctx context.Context, comments ...string) error {
	const tries = 5
	var restoreErr error
	for range tries {
		saved, err := run(ctx, f.save(), nil)
		switch {
		case err != nil && withoutBackEnd.MatchString(err.Error()):
			return nil
		case err != nil:
			return errors.Join(err, restoreErr)
		}
		changes, err := deletions(saved, comments...)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", f.save(), err)
		case len(changes) == 0:
			return nil
		}
		// -w waits for another program that changes rules; the nft back end has no such lock.
		_, restoreErr = run(ctx, f.restore(), changes, "-w", "--noflush")
	}
	if restoreErr == nil {
		restoreErr = errors.New("they come back as fast as they are removed")
	}
	return restoreErr
}

// run runs a program and returns its output.
func run(ctx context.Context, program string, input []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + strings.Join(sbin, ":")}
	cmd.Stdin = bytes.NewReader(input)
	cmd.WaitDelay = time.Second
	var output, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
		const enough = 300
		said := strings.Join(strings.Fields(complaint.String()), " ")
		return nil, fmt.Errorf("%s: %w: %.*q", program, err, enough, said)
	}
	return output.Bytes(), nil
}

var errRules = errors.New("these are not saved rules")

// deletions turns saved rules into what removes those that bear one of some comments, table by table; nothing if none does. It is made
// of the rules as they were saved, so that they are read back as what they were written as.
func deletions(saved []byte, comments ...string) ([]byte, error) {
	var changes bytes.Buffer
	table, some := "", false
	for len(saved) > 0 {
		line, words, rest, err := nextLine(saved)
		if err != nil {
			return nil, err
		}
		saved = rest
		switch {
		case len(words) == 0, line[0] == '#', line[0] == ':': // : is a chain and its policy
		case line[0] == '*' && table == "":
			table, some = string(line[1:]), false
		case table == "":
			return nil, fmt.Errorf("%w: %q is in no table", errRules, line)
		case string(line) == "COMMIT":
			if some {
				changes.WriteString("COMMIT\n")
			}
			table = ""
		case words[0] != "-A":
			return nil, fmt.Errorf("%w: %q", errRules, line)
		case bears(words, comments):
			if !some {
				some = true
				changes.WriteString("*" + table + "\n")
			}
			changes.WriteString("-D" + string(line[len("-A"):]) + "\n")
		}
	}
	if table != "" {
		return nil, fmt.Errorf("%w: table %s is not complete", errRules, table)
	}
	return changes.Bytes(), nil
}

// bears reports whether a rule has one of some comments.
func bears(words, comments []string) bool {
	match := []string{"-m", "comment", "--comment"}
	for i := range words {
		if end := i + len(match); end < len(words) && slices.Equal(words[i:end], match) && slices.Contains(comments, words[end]) {
			return true
		}
	}
	return false
}

// nextLine takes a line of saved rules, and its words. A word may be in quotes, in which a backslash takes the meaning from
// what follows it; and what is in quotes may have line ends in it, as a comment has that somebody gave them.
func nextLine(saved []byte) (line []byte, words []string, rest []byte, err error) {
	var word []byte
	begun, quoted := false, false
	end := func() {
		if begun {
			words = append(words, string(word))
		}
		word, begun = nil, false
	}
	comment := len(saved) > 0 && saved[0] == '#' // of the program that saved them, with whatever in it
	for i := 0; i < len(saved); i++ {
		c := saved[i]
		switch {
		case c == '\n' && !quoted:
			end()
			return saved[:i], words, saved[i+1:], nil
		case comment:
			word, begun = append(word, c), true
		case quoted && c == '\\' && i+1 < len(saved):
			i++
			word = append(word, saved[i])
		case c == '"':
			quoted, begun = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			end()
		default:
			word, begun = append(word, c), true
		}
	}
	if quoted {
		return nil, nil, nil, fmt.Errorf("%w: a quote has no end", errRules)
	}
	end()
	return saved, words, nil, nil
}
