package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newCheckCommand(o *options) *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			if show {
				_, err := io.WriteString(cmd.OutOrStdout(), c.print())
				return err
			}
			name := c.file
			if name == "" {
				name = "no configuration file, the defaults"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok, %s\n", name, counted(len(c.effective()), "rule"))
			return err
		},
	}
	cmd.Flags().BoolVar(&show, "print", false, "print the effective configuration")
	return cmd
}

// counted is a number of things: no rules, 1 rule, 2 rules.
func counted(n int, thing string) string {
	switch n {
	case 0:
		return "no " + thing + "s"
	case 1:
		return "1 " + thing
	default:
		return fmt.Sprintf("%d %ss", n, thing)
	}
}
