package docker

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// describe is a request in words: what was given in front of it, to compose, and to run.
func describe(r request) string {
	var b strings.Builder
	b.WriteString(r.program)
	for _, part := range []settings{r.global, r.project, r.run} {
		b.WriteString(" [")
		for i, given := range part {
			if i > 0 {
				b.WriteByte(' ')
			}
			fmt.Fprintf(&b, "%s=%s", given.name, given.value)
		}
		b.WriteByte(']')
	}
	fmt.Fprintf(&b, " %s %q", r.what, r.args)
	return b.String()
}

func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		name string
		exe  string
		argv string // words between blanks; '' is an empty one
		want []string
	}{
		{"plain", "/usr/bin/docker", "docker run img", []string{`docker [] [] [] img []`}},
		{"of an MCP server", "/usr/bin/docker", "docker run --rm -i -e TOKEN registry.example/x/y:1 stdio --read-only", []string{
			`docker [] [] [rm=true interactive=true env=TOKEN] registry.example/x/y:1 ["stdio" "--read-only"]`,
		}},
		{"management command", "/usr/bin/docker", "docker container run img", []string{`docker [] [] [] img []`}},
		{"global flags", "/usr/bin/docker", "docker -H unix:///s -D --log-level=debug -c x --tls run img", []string{
			`docker [host=unix:///s debug=true log-level=debug context=x tls=true] [] [] img []`,
		}},
		{"replaced", "/usr/bin/docker (deleted)", "x run img", []string{`docker [] [] [] img []`}},
		{"by argv[0] alone", "", "/opt/docker run img", []string{`docker [] [] [] img []`}},
		{"podman called docker", "/usr/bin/podman", "docker run img", []string{`podman [] [] [] img []`}},
		{"podman", "/usr/bin/podman", "podman --root /r --url unix:/x -r container run --replace --tz local img sh", []string{
			`podman [root=/r url=unix:/x remote=true] [] [replace=true tz=local] img ["sh"]`,
		}},

		{"letters in a row", "docker", "docker run -it img", []string{`docker [] [] [interactive=true tty=true] img []`}},
		{"letters with a value", "docker", "docker run -itv/a:/b img", []string{`docker [] [] [interactive=true tty=true volume=/a:/b] img []`}},
		{"letters with the next word", "docker", "docker run -itv /a:/b img", []string{`docker [] [] [interactive=true tty=true volume=/a:/b] img []`}},
		{"a letter with =", "docker", "docker run -e=A=1 -i=false img", []string{`docker [] [] [env=A=1 interactive=false] img []`}},
		{"a value that looks like a flag", "docker", "docker run --name -d -e --rm img", []string{`docker [] [] [name=-d env=--rm] img []`}},
		{"an empty value", "docker", "docker run --entrypoint '' img", []string{`docker [] [] [entrypoint=] img []`}},
		{"the end of the flags", "docker", "docker run -i -- img -d", []string{`docker [] [] [interactive=true] img ["-d"]`}},
		{"flags behind the image are its own", "docker", "docker run img -d --detach", []string{`docker [] [] [] img ["-d" "--detach"]`}},
		{"-h has a value", "docker", "docker run -h box img", []string{`docker [] [] [hostname=box] img []`}},
		{"attached to its output", "docker", "docker run -a STDIN -a stderr img", []string{`docker [] [] [attach=STDIN attach=stderr] img []`}},
		{"attached to a list", "podman", "podman run -a stdin,stdout img", []string{`podman [] [] [attach=stdin,stdout] img []`}},
		{"not detached after all", "docker", "docker run -d --detach=false img", []string{`docker [] [] [detach=true detach=false] img []`}},

		{"detached", "docker", "docker run -d img", nil},
		{"detached by a word", "docker", "docker run --detach img", nil},
		{"detached by a value", "docker", "docker run --detach=1 img", nil},
		{"detached in a row", "docker", "docker run -dit img", nil},
		{"detached at the end of a row", "docker", "docker run -itd img", nil},
		{"detached by a letter's value", "docker", "docker run -d=true img", nil},
		{"feeds it alone", "docker", "docker run -i -a stdin img", nil},
		{"help", "docker", "docker run --help img", nil},
		{"create", "docker", "docker create img", nil},
		{"start", "docker", "docker start -a run", nil},
		{"exec", "docker", "docker exec -it run sh", nil},
		{"compose, from outside of the plugin", "docker", "docker compose run web", nil},
		{"container of nothing", "docker", "docker container", nil},
		{"no image", "docker", "docker run -i", nil},
		{"an empty image", "docker", "docker run ''", nil},
		{"nothing", "docker", "docker", nil},
		{"a value that is missing", "docker", "docker run --name", nil},
		{"a switch that cannot be read", "docker", "docker run --rm=perhaps img", nil},
		{"a letter that cannot be read", "docker", "docker run -i=perhaps img", nil},
		{"three dashes", "docker", "docker run ---rm img", nil},
		{"another program", "/usr/bin/dockerd", "dockerd run img", nil},
		{"a script", "/bin/sh", "/bin/sh /usr/bin/docker run img", nil},
		{"nerdctl", "/usr/bin/nerdctl", "nerdctl run img", nil},
		{"sudo", "/usr/bin/sudo", "sudo docker run img", nil},

		{"an unknown flag", "docker", "docker run --new img a", []string{
			`docker [] [] [new=true] img ["a"]`, `docker [] [] [new=img] a []`,
		}},
		{"an unknown flag with its value", "docker", "docker run --new=x img a", []string{`docker [] [] [new=x] img ["a"]`}},
		{"an unknown flag that may hide another", "docker", "docker run --new -d img", []string{`docker [] [] [new=-d] img []`}},
		{"an unknown letter", "docker", "docker run -iZ img a", []string{
			`docker [] [] [interactive=true Z=true] img ["a"]`, `docker [] [] [interactive=true Z=img] a []`,
		}},
		{"an unknown letter in front", "docker", "docker run -Zi img", []string{
			`docker [] [] [Z=true interactive=true] img []`, `docker [] [] [Z=i] img []`,
		}},
		{"an unknown global flag", "docker", "docker --new run run img", []string{
			`docker [new=true] [] [] run ["img"]`, `docker [new=run] [] [] img []`,
		}},

		{"compose", "/usr/libexec/docker/cli-plugins/docker-compose", "/x/docker-compose -H unix:///s compose -p proj -f a.yml run --rm -T web sh -d", []string{
			`docker-compose [host=unix:///s] [project-name=proj file=a.yml] [rm=true no-TTY=true] web ["sh" "-d"]`,
		}},
		{"compose by itself", "docker-compose", "docker-compose --profile x run web", []string{`docker-compose [] [profile=x] [] web []`}},
		{"compose, detached", "docker-compose", "docker-compose compose run -d web", nil},
		{"compose up", "docker-compose", "docker-compose compose up run", nil},
		{"compose: -v is no switch here", "docker-compose", "docker-compose compose run -v /a:/b -P web", []string{
			`docker-compose [] [] [volume=/a:/b service-ports=true] web []`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			argv := strings.Fields(tt.argv)
			for i, word := range argv {
				argv[i] = strings.Trim(word, "'")
			}
			found, all := requests(tt.exe, argv)
			var got []string
			for _, r := range found {
				got = append(got, describe(r))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || !all {
				t.Errorf("%q, all: %t; want -, got +\n%s", argv, all, diff)
			}
		})
	}
}

// TestTooManyReadings: what has too many readings, or takes too long to read, is not taken for read.
func TestTooManyReadings(t *testing.T) {
	unknown := slices.Repeat([]string{"--new"}, 100)
	for name, args := range map[string][]string{
		"readings":               append(slices.Clone(unknown), "img"),
		"ways that lead nowhere": append(slices.Clone(unknown), "--name"),
		"words":                  append(slices.Repeat([]string{"-i"}, 2*maxSteps), "img"),
		"letters":                {"-" + strings.Repeat("i", 2*maxSteps), "img"},
	} {
		found, all := requests("docker", append([]string{"docker", "run"}, args...))
		if all || len(found) > maxReadings {
			t.Errorf("%s: %d readings, all: %t", name, len(found), all)
		}
	}
	if found, all := requests("docker", append([]string{"docker", "run", "img"}, unknown...)); !all || len(found) != 1 {
		t.Errorf("behind the image: %d readings, all: %t", len(found), all)
	}
}

// flagLine is one in the help of docker or podman: a letter, a name, and the type of its value.
var flagLine = regexp.MustCompile(`(?m)^ +(?:-([a-zA-Z]), )?--([a-z0-9-]+)(?: +(\S+))?(  |$)`)

// TestFlagsAreTheirs holds the tables against the programs of this host.
func TestFlagsAreTheirs(t *testing.T) {
	for _, tt := range []struct {
		flags flagSet
		help  []string
	}{
		{dockerFlags, []string{"docker", "--help"}},
		{runFlags, []string{"docker", "run", "--help"}},
		{podmanFlags, []string{"podman", "--help"}},
		{runFlags, []string{"podman", "run", "--help"}},
	} {
		t.Run(strings.Join(tt.help, " "), func(t *testing.T) {
			if _, err := exec.LookPath(tt.help[0]); err != nil {
				t.Fatalf("%v (apt-get install docker.io podman)", err)
			}
			out, err := exec.Command(tt.help[0], tt.help[1:]...).Output()
			if err != nil {
				t.Fatal(err)
			}
			_, options, ok := strings.Cut(string(out), "Options:\n")
			if !ok {
				t.Fatalf("no options in %s", out)
			}
			lines := flagLine.FindAllStringSubmatch(options, -1)
			if len(lines) < 10 {
				t.Fatalf("%d flags in %s", len(lines), options)
			}
			unknown := 0
			for _, line := range lines {
				letter, name, value := line[1], line[2], line[3]
				takes, known := tt.flags.takes[name]
				// A type follows after one blank, and what the flag is for after several.
				typed := value != "" && strings.Contains(line[0], "--"+name+" "+value)
				switch {
				case !known: // a later version's: what it means for the rest of the line is left open
					t.Logf("--%s is not known", name)
					if unknown++; unknown > 5 {
						t.Errorf("%d flags are not known", unknown)
					}
				case takes != typed:
					t.Errorf("--%s takes a value: %t, want %t (%q)", name, takes, typed, line[0])
				case letter != "" && tt.flags.short[letter[0]] != name:
					t.Errorf("-%s is --%s, want --%s", letter, tt.flags.short[letter[0]], name)
				}
			}
		})
	}
}

// theirs are the flags of a set as pflag has them, which docker and podman read their command lines with.
func theirs(fs flagSet, found *settings) *pflag.FlagSet {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SetInterspersed(false)
	flags.Usage = func() {}
	letters := map[string]string{}
	for letter, name := range fs.short {
		letters[name] = string(letter)
	}
	for name, takes := range fs.takes {
		f := flags.VarPF(&value{name, takes, found}, name, letters[name], "")
		if !takes {
			f.NoOptDefVal = "true"
		}
	}
	return flags
}

// A value notes what its flag is given.
type value struct {
	name  string
	takes bool
	found *settings
}

func (v *value) Set(s string) error {
	if !v.takes && !isBool(s) {
		return fmt.Errorf("not a bool: %q", s)
	}
	*v.found = append(*v.found, setting{v.name, s})
	return nil
}
func (v *value) String() string { return "" }
func (v *value) Type() string   { return "value" }

// FuzzClientArgs holds our reading of a command line against pflag's: where pflag knows all flags, ours is the only one
// and the same, or there is none if it refuses the line.
func FuzzClientArgs(f *testing.F) {
	for _, line := range []string{
		"run --rm -i img sh -c ls", "run -itd img", "run -h box --name -d img", "run -e=A=1 -i=false -v/a:/b img", "run -- img",
		"run --detach=true img", "run -i= img", "run -e= img", "run --rm=x img", "run ---x img", "run --=x img", "run -a stdin -i img",
		"-H unix:///s --tls run -P img", "container run img", "compose -p x run -T web", "run --new x img", "run -Zi img", "run --name", "run -", "-",
	} {
		f.Add(strings.ReplaceAll(line, " ", "\x00"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		for i, fs := range []flagSet{dockerFlags, podmanFlags, runFlags, composeFlags, composeRunFlags} {
			r := reader{whole: true}
			readings := r.read(fs, args)
			if len(readings) > maxReadings || r.steps > 3*maxSteps {
				t.Fatalf("%d readings after %d steps", len(readings), r.steps)
			}
			if !r.whole {
				continue
			}
			var found settings
			flags := theirs(fs, &found)
			err := flags.Parse(args)
			switch {
			case strings.Contains(line, "-test.") || strings.Contains(line, "test."):
				continue // pflag leaves flags of Go's tests alone
			case err != nil && (strings.Contains(err.Error(), "unknown") || err == pflag.ErrHelp):
				continue
			case err != nil && len(readings) > 0:
				t.Fatalf("flags %d: %q is read as %v, and refused: %v", i, args, readings, err)
			case err == nil && (len(readings) != 1 || !slices.Equal(readings[0].settings, found) || !slices.Equal(readings[0].rest, flags.Args())):
				t.Fatalf("flags %d: %q is read as %v, want %v %q", i, args, readings, found, flags.Args())
			}
		}
		for _, program := range []string{dockerProgram, composeProgram, podmanProgram} {
			found, _ := requests(program, append([]string{program}, args...))
			for _, r := range found {
				if r.what == "" || r.program != program || !slices.Contains(args, "run") || !slices.Contains(args, r.what) {
					t.Fatalf("%s: %q is read as %s", program, args, describe(r))
				}
			}
		}
	})
}
