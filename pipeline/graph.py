"""The stages as a Beam graph, with a barrier between them: each is a plain map of its items.

Beam's shuffle carries only what the stages give each other, file names and bucket numbers.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline.corpus import RowGroup
from pipeline.embedded_runner import EmbeddedRunner
from pipeline.failures import as_user_error, step_errors_marked
from pipeline.portable_runner import first_worker_awaited, no_deadline_of_jobs
from pipeline.runner import EMBEDDED_RUNNER, dead_worker_ends_process, environment_of_workers
from pipeline.shards import ShardPlan
from pipeline.stages import (
    BucketKey,
    BuildShard,
    FindDuplicates,
    Stage,
    TokenizePortion,
    Work,
    key_of,
)
from pipeline.worker_processes import WorkerProcess


def run_on_beam(work: Work, beam_options: PipelineOptions, processes: list[WorkerProcess]) -> None:
    """Does all work on one of Beam's runners.

    Args:
      work: what to do.
      beam_options: how Beam runs it.
      processes: what `worker_processes` has forked for it; without any, Beam starts its own.

    Raises:
      UserError: a worker cannot read the text, or the runner fails.
      OSError: a worker cannot write a file.
    """
    runner = beam_options.view_as(StandardOptions).runner or EMBEDDED_RUNNER  # Beam forgets it
    embedded = EmbeddedRunner(processes) if runner == EMBEDDED_RUNNER else None
    job = None
    try:
        with (
            dead_worker_ends_process(),
            environment_of_workers(beam_options),
            no_deadline_of_jobs(),
        ):
            root = beam.Pipeline(embedded, beam_options)
            _add_stages(root, work)
            job = root.run()
            with first_worker_awaited(job, runner, beam_options, work.directories.sign_of_worker):
                job.wait_until_finish()
    except KeyboardInterrupt:
        if job:
            job.cancel()  # on a cluster it would continue, and meet the next run in its directory
        raise
    except Exception as error:
        raise as_user_error(error, runner) from error


def _add_stages(root: beam.Pipeline, work: Work) -> None:
    row_groups = (
        root
        | "Portions" >> beam.Create(list(enumerate(work.portions)))
        | "SpreadPortions" >> beam.Reshuffle()
        | "Tokenize" >> beam.ParDo(_Process(TokenizePortion(work)))
    )
    duplicates = []
    if work.num_partitions:
        num_row_groups = row_groups | "CountRowGroups" >> beam.combiners.Count.Globally()
        found = (
            root
            | "Partitions" >> beam.Create(range(work.num_partitions))
            | "SpreadPartitions" >> beam.Reshuffle()
            | "FindDuplicates"
            >> beam.ParDo(_Process(FindDuplicates(work)), beam.pvalue.AsSingleton(num_row_groups))
        )
        duplicates = [beam.pvalue.AsList(found)]
    plans = root | "Plans" >> beam.Create(
        [(key_of(plan.bucket), plan) for plan in work.shard_plans]
    )
    _ = (
        {"plans": plans, "row_groups": row_groups}
        | "GroupByBucket" >> beam.CoGroupByKey()
        | "Shards" >> beam.FlatMap(_pair_plans_with_row_groups)
        | "SpreadShards" >> beam.Reshuffle()
        | "Build" >> beam.ParDo(_Process(BuildShard(work)), *duplicates)
    )


class _Process(beam.DoFn):
    """A stage's work on each item."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def setup(self) -> None:
        with step_errors_marked():
            self._stage.load()

    def process(self, item: Any, *_awaited: Any) -> Iterator[Any]:
        """Does the work; as side inputs, it has what must be done before."""
        with step_errors_marked():
            yield from self._stage.process(item)


def _pair_plans_with_row_groups(
    grouped: tuple[BucketKey, dict[str, Iterable[Any]]],
) -> Iterator[tuple[ShardPlan, list[RowGroup]]]:
    """The plans of a bucket's shards, each with all row groups of the bucket."""
    _, members = grouped
    row_groups = list(members["row_groups"])
    for plan in members["plans"]:
        yield plan, row_groups
