package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"watcher/platform/statedir"
	"watcher/reap"
	"watcher/watch"
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
					r.Left = seen.left(cmd.Context(), r)
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

// countFor is how long list counts what is left of one sandbox that is being removed.
const countFor = time.Second

// left is how much of a sandbox that is being removed is still on disk.
func (p *pass) left(ctx context.Context, r row) (bytes int64) {
	e := p.picture.Entry(watch.ID{Kind: r.Kind, Name: r.ID})
	if e == nil || e.Progress.Begun.IsZero() {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, countFor)
	defer cancel()
	for _, leaf := range e.Leaves {
		if !filepath.IsAbs(leaf.Name) {
			continue // it is no file
		}
		// What could not be counted is only not shown.
		n, _ := statedir.Usage(ctx, leaf.Name)
		bytes += n
	}
	return bytes
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
