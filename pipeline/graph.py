"""The stages as a Beam graph, with a barrier between them: each is a plain map of its items.

Beam's shuffle carries only what the stages give each other, file names and bucket numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.transforms.window import GlobalWindows

from pipeline.buckets import Bucket
from pipeline.corpus import RowGroup
from pipeline.duplicate_stages import stages_of_duplicates
from pipeline.failures import as_user_error, step_errors_marked
from pipeline.mixture_stages import MeasureDocuments, PlanMixing
from pipeline.portable_runner import no_deadline_of_jobs, show_life, workers_watched
from pipeline.runner import broken_connections_hidden, choose_runner
from pipeline.shards import ShardPlan
from pipeline.stages import (
    BucketKey,
    BuildShard,
    Stage,
    TokenizePortion,
    Work,
    key_of,
)
from pipeline.storage import Location
from pipeline.worker_processes import WorkerProcesses

# At the end of a bundle, Beam waits for its sampler of times, which sleeps up to 0.2 seconds.
_MILLISECONDS_OF_SAMPLER = 5


def run_on_beam(
    work: Work, beam_options: PipelineOptions | None, processes: WorkerProcesses | None
) -> None:
    """Does all work on one of Beam's runners.

    Args:
      work: what to do.
      beam_options: how Beam runs it, after `choose_runner`; None: on its embedded runner.
      processes: those that do the work on the embedded runner; without any, this process does it.

    Raises:
      UserError: a worker cannot read the text or has died, or the runner fails.
      OSError: a worker cannot write a file.
    """
    if beam_options is None:
        beam_options = PipelineOptions([])
        choose_runner(beam_options)
    StateSampler.__init__.__defaults__ = (_MILLISECONDS_OF_SAMPLER,)
    runner = beam_options.view_as(StandardOptions).runner or ""  # Beam forgets it on the way
    job = None
    try:
        with broken_connections_hidden(), no_deadline_of_jobs():
            root = beam.Pipeline(options=beam_options)
            _add_stages(root, work, processes)
            job = root.run()
            with workers_watched(job, runner, beam_options, work.directories.sign_of_life):
                job.wait_until_finish()
    except KeyboardInterrupt:
        if job:
            job.cancel()  # on a cluster it would continue, and meet the next run in its directory
        raise
    except Exception as error:
        raise as_user_error(error, runner) from error


def _add_stages(root: beam.Pipeline, work: Work, processes: WorkerProcesses | None) -> None:
    def map_of(stage: Stage) -> beam.DoFn:
        if processes:
            return _HandOut(stage, processes)
        return _Process(stage, work.directories.sign_of_life)

    row_groups = (
        root
        | "Portions" >> beam.Create(list(enumerate(work.portions)))
        | "SpreadPortions" >> beam.Reshuffle()
        | "Tokenize" >> beam.ParDo(map_of(TokenizePortion(work)))
    )
    awaited: list[Any] = []
    if stages := stages_of_duplicates(work):
        # Of millions of row groups, only their number is handed on.
        num_row_groups = row_groups | "CountRowGroups" >> beam.combiners.Count.Globally()
        awaited = [beam.pvalue.AsSingleton(num_row_groups)]
    for stage, items in stages:
        name = type(stage).__name__
        found = (
            root
            | f"ItemsOf{name}" >> beam.Create(items)  # which spreads them
            | name >> beam.ParDo(map_of(stage), *awaited)
        )
        awaited = [beam.pvalue.AsList(found)]
    if work.options.mixture:
        awaited += _add_mixing(root, work, row_groups, awaited, map_of)
    plans = root | "Plans" >> beam.Create(
        [(key_of(plan.bucket), plan) for plan in work.shard_plans]
    )
    _ = (
        {"plans": plans, "row_groups": row_groups}
        | "GroupByBucket" >> beam.CoGroupByKey()
        | "Shards" >> beam.FlatMap(_pair_plans_with_row_groups)
        | "SpreadShards" >> beam.Reshuffle()
        | "Build" >> beam.ParDo(map_of(BuildShard(work)), *awaited)
    )


def _add_mixing(
    root: beam.Pipeline,
    work: Work,
    row_groups: beam.PCollection,
    duplicates: list[Any],
    map_of: Callable[[Stage], beam.DoFn],
) -> list[Any]:
    """Adds the stages of a mixture, and returns the side inputs of what waits for them."""
    buckets = root | "TrainBuckets" >> beam.Create(
        [(key_of(bucket), bucket) for bucket in work.buckets.buckets() if bucket.split == "train"]
    )
    measured = (
        {"plans": buckets, "row_groups": row_groups}
        | "GroupByTrainBucket" >> beam.CoGroupByKey()
        | "TrainBucketsOnly" >> beam.FlatMap(_pair_plans_with_row_groups)
        | "SpreadTrainBuckets" >> beam.Reshuffle()
        | "MeasureDocuments" >> beam.ParDo(map_of(MeasureDocuments(work)), *duplicates)
    )
    planned = (
        root
        | "Mixture" >> beam.Create([0])
        | "PlanMixing" >> beam.ParDo(map_of(PlanMixing(work)), beam.pvalue.AsList(measured))
    )
    return [beam.pvalue.AsList(planned)]


class _Process(beam.DoFn):
    """A stage's work on each item, by a worker that shows that it lives."""

    def __init__(self, stage: Stage, sign_of_life: Location):
        self._stage = stage
        self._sign_of_life = sign_of_life

    def setup(self) -> None:
        show_life(self._sign_of_life)
        with step_errors_marked():
            self._stage.load()

    def process(self, item: Any, *_awaited: Any) -> Iterator[Any]:
        """Does the work; as side inputs, it has what must be done before."""
        with step_errors_marked():
            yield from self._stage.process(item)


class _HandOut(beam.DoFn):
    """A stage's work on each item, done by worker processes: on all items of a bundle at once."""

    def __init__(self, stage: Stage, processes: WorkerProcesses):
        self._stage = stage
        self._processes = processes

    def start_bundle(self) -> None:
        self._started: list[Future[list[Any]]] = []

    def process(self, item: Any, *_awaited: Any) -> None:
        """Starts the work; as side inputs, it has what must be done before."""
        self._started.append(self._processes.start(self._stage, item))

    def finish_bundle(self) -> Iterator[Any]:
        """Waits for the work."""
        yield from map(GlobalWindows.windowed_value, self._processes.results(self._started))


def _pair_plans_with_row_groups(
    grouped: tuple[BucketKey, dict[str, Iterable[Any]]],
) -> Iterator[tuple[ShardPlan | Bucket, list[RowGroup]]]:
    """The plans of a bucket, such as its shards, each with all row groups of the bucket."""
    _, members = grouped
    row_groups = list(members["row_groups"])
    for plan in members["plans"]:
        yield plan, row_groups
