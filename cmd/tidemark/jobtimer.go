package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tidemark/agent/timer"
)

func newJobEnable(g *globals) *cobra.Command {
	var system timer.System
	cmd := command{
		use: "enable NAME...", short: "Have jobs run by their schedule",
		long: `Writes /etc/systemd/system/tidemark-job@NAME.timer and starts it, now and at every boot: the job runs when its schedule says, as tidemark-job@NAME.service. A run that was missed while the machine was down is made up for when it is up; its jitter delays each run by a random time. What a run says is in the journal (journalctl -u tidemark-job@NAME).

Run it again after a change of the job's schedule, jitter or max-age; all else is read from the file by each run. The service reads ` + defaultConfig + `; for another file, "systemctl edit tidemark-job@.service" and set Environment=TIDEMARK_CONFIG=…

A timer that was changed by hand is refused. tidemark-late.timer, which looks for late jobs every hour, is started with a job that has a max-age.`,
		example: "tidemark job enable srv db\n# in the folder of a system that is being made\ntidemark job enable --root /mnt --config /mnt/etc/tidemark/tidemark.toml srv",
		exits:   []exitCode{exitRefused},
		args:    cobra.MinimumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := g.enableJob(cmd, system, name); err != nil {
					return err
				}
			}
			return nil
		},
	}.build()
	addSystem(cmd, &system)
	return cmd
}

func addSystem(cmd *cobra.Command, to *timer.System) {
	cmd.Flags().StringVar(&to.Root, "root", "", "`folder` of a system that is not running, in which nothing is started or stopped")
	cmd.Flags().BoolVar(&to.Force, "force", false, "replace or remove a timer that was changed by hand")
}

func (g *globals) enableJob(cmd *cobra.Command, system timer.System, name string) error {
	_, j, err := g.findJob(name)
	if err != nil {
		return err
	}
	if j.Schedule == "" {
		return hinted{fmt.Errorf("%s:%d: job %s has no schedule", g.config, j.Line, name), `add one, as schedule = "daily"`}
	}
	times, err := timer.Calendar(cmd.Context(), j.Schedule, 1)
	if errors.Is(err, timer.ErrSchedule) {
		return fmt.Errorf("%s:%d: job %s: schedule: %w", g.config, j.ScheduleLine, name, err)
	}
	if err != nil {
		return err
	}
	if err := system.Enable(cmd.Context(), timerOf(j)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "job %s: enabled, next run %s\n", name, times[0])
	return err
}

func newJobDisable() *cobra.Command {
	var system timer.System
	cmd := command{
		use: "disable NAME...", short: "Have jobs no longer run by their schedule",
		long:    `Stops the timers of jobs and removes them. A run that is under way goes on; copies, and what is known of the jobs, stay. The jobs need not be in the file any more.`,
		example: "tidemark job disable srv",
		exits:   []exitCode{exitRefused},
		args:    cobra.MinimumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				was, err := system.Disable(cmd.Context(), name)
				if err != nil {
					return err
				}
				text := "disabled"
				if !was {
					text = "it was not enabled"
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "job %s: %s\n", name, text); err != nil {
					return err
				}
			}
			return nil
		},
	}.build()
	addSystem(cmd, &system)
	return cmd
}
