package main

import (
	"fmt"

	"github.com/pelletier/go-toml/v2"
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
				return toml.NewEncoder(cmd.OutOrStdout()).Encode(c)
			}
			name := c.file
			if name == "" {
				name = "no configuration file, the defaults"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", name)
			return err
		},
	}
	cmd.Flags().BoolVar(&show, "print", false, "print the effective configuration")
	return cmd
}
