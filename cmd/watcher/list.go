package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"watcher/reap"
)

func newListCommand(o *options) *cobra.Command {
	var orphans bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show every sandbox that is watched, with its verdict",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			seen, err := o.survey(cmd.Context())
			if err != nil {
				return err
			}
			var rows []row
			for _, r := range seen.rows() {
				if !orphans || r.Verdict == reap.Reap.String() {
					rows = append(rows, r)
				}
			}
			return o.write(cmd.OutOrStdout(), rows, false)
		},
	}
	cmd.Flags().BoolVar(&orphans, "orphans", false, "only those that are to be reaped")
	addOutput(cmd, o)
	return cmd
}

func (o *options) write(w io.Writer, rows []row, withResult bool) error {
	slices.SortFunc(rows, byKindAndName)
	if o.output == asJSON {
		return writeJSON(w, append([]row{}, rows...)) // an empty array and not null
	}
	return writeTable(w, rows, time.Now(), withResult)
}

// survey looks at everything once and touches nothing.
func (o *options) survey(ctx context.Context) (*pass, error) {
	c, err := o.load()
	if err != nil {
		return nil, err
	}
	p, err := o.runPass(ctx, c, quiet(), true)
	if err != nil {
		return nil, err
	}
	if p.failed != nil {
		return nil, fmt.Errorf("look at the sandboxes: %w", p.failed)
	}
	return p, nil
}
