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
from pipeline.runner import (
    EMBEDDED_RUNNER,
    dead_worker_ends_process,
    environment_of_workers,
)
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
    runner = beam_options.view_as(StandardOptions).runner  # Beam forgets it on the way
    root = None
    try:
        with (
            dead_worker_ends_process(),
            environment_of_workers(beam_options),
            beam.Pipeline(
                EmbeddedRunner(processes) if runner == EMBEDDED_RUNNER else None, beam_options
            ) as root,
        ):
            _add_stages(root, work)
    except KeyboardInterrupt:
        if job := getattr(root, "result", None):
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
