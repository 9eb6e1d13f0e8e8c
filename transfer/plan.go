package transfer

import (
	"context"
	"fmt"
	"time"

	"tidemark/view"
)

// Planned is the outcome of a report of Plan.
const Planned = "planned"

// Plan tells what Run would read from each source, and in which mode, as far as can be
// told before it runs: it takes no view, cuts no epoch and begins nothing with a sink.
// How much would be written depends on the content.
func Plan(ctx context.Context, pairs []*Pair, v view.Provider) ([]Report, error) {
	began := time.Now()
	var reports []Report
	for i, p := range pairs {
		j := newJob(p, i, v.Kind())
		if err := j.estimate(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", j.Name, err)
		}
		rep := j.report
		rep.Outcome, rep.Took = Planned, time.Since(began)
		rep.TookMS = milliseconds(rep.Took)
		reports = append(reports, rep)
	}
	return reports, nil
}

// estimate decides as begin does, by what has changed until now.
func (j *job) estimate(ctx context.Context) error {
	j.have = j.Sink.Have()
	changes, err := j.since(ctx, j.have.Mark)
	if err != nil {
		return err
	}
	j.plan(changes)
	for _, e := range j.todo.Align(j.have.Block, j.size).Extents() {
		data, err := j.Source.Data(e)
		if err != nil {
			return err
		}
		j.report.Read += data.Bytes()
	}
	j.report.Changed, j.report.Mark = j.report.Read, string(j.have.Mark)
	return nil
}
