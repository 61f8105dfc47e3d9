package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"watcher/platform/docker"
	"watcher/platform/process"
	"watcher/watch"
)

func newLabelsCommand(o *options) *cobra.Command {
	var pid int
	var value bool
	cmd := &cobra.Command{
		Use:   "labels",
		Short: "Print the label that names a process as the owner of a container",
		Long: "Print the label that names a process as the owner of a container, for\n\n" +
			"    docker run $(watcher labels) IMAGE\n\n" +
			"The process is the one that called watcher, unless --pid names another. In $(…) that is the shell itself only if\n" +
			"watcher stands there alone: a pipe or a second command makes the shell fork another, which dies at once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("pid") {
				if pid = os.Getppid(); pid == 0 {
					return errors.New("the process that called watcher is in another PID namespace; its PID here is unknown")
				}
			}
			if pid < 1 || pid > watch.MaxPID {
				return usageError{fmt.Errorf("--pid %d: want a number from 1 to %d", pid, watch.MaxPID)}
			}
			host, err := process.NewHost(procRoot)
			if err != nil {
				return err
			}
			if initial, err := host.InitialNamespace(); err != nil || !initial {
				// A PID from here could be a stranger's where the containers run.
				c, loadErr := o.load()
				if loadErr != nil {
					return loadErr
				}
				shareErr := docker.New(c.Docker.Host, host, nil).SharesProcesses(cmd.Context())
				if shareErr != nil {
					return fmt.Errorf("this is a PID namespace of its own, and it is not known whether the engine is in it: %w", errors.Join(err, shareErr))
				}
			}
			handle, err := host.Open(pid)
			if err != nil {
				return fmt.Errorf("process %d: %w", pid, err)
			}
			defer handle.Close()
			format := "--label " + watch.LabelOwner + "=%s\n"
			if value {
				format = "%s\n"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), format, handle.Process().Label())
			return err
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "the owner's `PID` (default the caller's)")
	cmd.Flags().BoolVar(&value, "value", false, "print the value of the label only, for compose files and SDKs")
	return cmd
}
