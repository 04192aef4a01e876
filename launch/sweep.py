r"""Runs pretrain at each point of a grid of flags, and ends with a sorted table of the results.

The pretrain command comes after --. Its --output_dir is the directory of all runs:

  clozemill sweep --grid='learning_rate=1e-4,3e-4;hidden_dropout_prob=0,0.1' -- \
      pretrain --data_dir=DATA --output_dir=SWEEP --model=mini

Each point is a run in SWEEP, named by its values, with its log beside it. The same command again
resumes: it runs what has not finished. A larger grid adds runs. A run that fails does not end the
sweep. SIGTERM, SIGUSR1 and Ctrl-C let the runs save a checkpoint.

The table is printed and written to SWEEP/sweep.csv, and the curves are drawn in SWEEP/sweep.png.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from absl import flags, logging

from launch import grid
from launch.banners import native_banners_hidden
from launch.gpus import VISIBLE_GPUS, divide_gpus, find_gpus
from launch.grid import Point, read_points
from launch.messages import print_error
from launch.pretrain_command import pretrain_flags
from launch.processes import Program, run_in_turn
from modeling.config import CONFIG_NAME
from modeling.job.termination import exit_code
from modeling.training.tracking import TrackerName, check_tracker
from pipeline.errors import UserError, in_one_line
from pipeline.files import list_directories, locked_directory, scratch_directory
from pipeline.manifest import FLAGS_NAME
from pipeline.storage import Location, StoredPath

TAKES_COMMAND = True
SHARED_FLAGS = (grid,)
_LONGEST_ERROR = 1 << 16
# What a run may be finished with, however it is called and wherever its data are.
_MAY_DIFFER = {"output_dir", "data_dir", "cache_dir", "cache_size", "coordinator_timeout", "track"}

_PARALLEL = flags.DEFINE_integer(
    "parallel",
    1,
    "The number of runs at a time. The GPUs are divided between them.",
    lower_bound=1,
)
_REPORT_ONLY = flags.DEFINE_boolean(
    "report_only", False, "Run nothing: only report on the runs as they are."
)
flags.mark_flag_as_required("grid")


def main(command: list[str]) -> None:
    """Runs the points that have not finished, and reports on all."""
    points = read_points(command)
    if points[0].flags["dry_run"].value:
        raise flags.Error("after --: remove --dry_run, because a sweep is about results")
    directory = points[0].run_dir.parent
    if (directory / CONFIG_NAME).exists():
        raise UserError(f"{directory} is a run: give another --output_dir for the sweep")
    if _REPORT_ONLY.value:
        if not directory.is_dir():
            raise UserError(f"{directory} does not exist: no sweep has begun there")
        _report(points, {})
        return
    for point in points:
        if tracker := point.flags["track"].value:
            check_tracker(TrackerName(tracker))
    with locked_directory(directory), _directory_of_logs(directory) as logs:
        unfinished = [point for point in points if not _is_finished(point)]
        logging.info(
            "%d of %d runs have finished before", len(points) - len(unfinished), len(points)
        )
        errors, stopped_by = _run(unfinished, logs)
        if stopped_by:
            print_error(
                "clozemill sweep", f"stopped by {stopped_by.name}: the same command resumes"
            )
            sys.exit(exit_code(stopped_by.name))
        _report(points, errors)
    if errors:
        raise UserError(
            f"{len(errors)} of {len(points)} runs failed: the same command tries them again"
        )


@contextmanager
def _directory_of_logs(directory: Location) -> Iterator[Path]:
    """Yields where the runs write their logs: beside the runs, or for those on a store, here."""
    if isinstance(directory, Path):
        yield directory
        return
    with scratch_directory() as scratch:
        yield scratch


def _run(points: list[Point], logs: Path) -> tuple[dict[str, str], signal.Signals | None]:
    """Runs the points; returns the errors of those that failed, by name, and what stopped all."""
    gpus = divide_gpus(find_gpus(), _PARALLEL.value, "--parallel")
    errors: dict[str, str] = {}
    begun: dict[str, tuple[float, int]] = {}

    def begin(point: Point, place: int) -> Program:
        log, stored = logs / f"{point.name}.log", _log_of(point)
        if isinstance(stored, StoredPath) and stored.exists():
            stored.download(log)
        begun[point.name] = time.monotonic(), log.stat().st_size if log.exists() else 0
        logging.info("%s begins; its log: %s", point.name, log)
        # Python must not import what lies in the current directory instead of our modules.
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        if gpus[place]:
            environment[VISIBLE_GPUS] = ",".join(gpus[place])
        return Program([sys.executable, "-m", "launch", *point.arguments], environment, log)

    def end(point: Point, returncode: int) -> None:
        started, log_start = begun[point.name]
        log, stored = logs / f"{point.name}.log", _log_of(point)
        if isinstance(stored, StoredPath):
            stored.upload(log)
        how = "finished"
        if returncode:
            errors[point.name] = error = _error(log, returncode, log_start)
            how = f"ended: {error}"
        logging.info(
            "%s %s; %s", point.name, how, timedelta(seconds=round(time.monotonic() - started))
        )

    stopped_by = run_in_turn(points, _PARALLEL.value, begin, end)
    return errors, stopped_by


def _is_finished(point: Point) -> bool:
    """Whether a run has reached its last step.

    Raises:
      UserError: it has, but with other flags.
    """
    # To import what reads checkpoints takes seconds, and its threads make it unsafe to fork.
    try:
        found = list_directories(point.run_dir / "checkpoints", "state.json")
    except (FileNotFoundError, NotADirectoryError):
        return False
    names = [path.name.removeprefix("step-") for path in found]
    steps = [int(name) for name in names if name.isdecimal()]
    if max(steps, default=0) < point.num_train_steps:
        return False
    path = point.run_dir / FLAGS_NAME
    recorded = pretrain_flags()
    try:
        recorded(["pretrain", *path.read_text("utf-8").splitlines()])
    except (OSError, ValueError, flags.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): remove the run") from error
    logging_flags = {flag.name for flag in flags.FLAGS.get_flags_for_module("absl.logging")}
    for name in set(recorded) - logging_flags - _MAY_DIFFER:
        old, new = recorded[name].value, point.flags[name].value
        if old != new:
            raise UserError(
                f"{point.run_dir} has finished with --{name}={old}, not {new}: give the same flag, "
                "or another --output_dir"
            )
    return True


def _error(log: Path, returncode: int, log_start: int) -> str:
    """What a run has failed with: the line that says so in its log, of this start."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(log_start, end - _LONGEST_ERROR))
        lines = file.read().decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    messages = [line for line in lines if line.startswith("clozemill pretrain: ")]
    return in_one_line((messages or lines or [f"exit code {returncode}"])[-1])


def _log_of(point: Point) -> Location:
    """Its log, which is beside the run because a run's directory holds nothing else."""
    return point.run_dir.with_name(f"{point.name}.log")


def _report(points: list[Point], errors: dict[str, str]) -> None:
    with native_banners_hidden():
        from launch.sweep_report import report  # noqa: PLC0415 - takes seconds

    errors = {name: f"{error} (see {name}.log)" for name, error in errors.items()}
    print(report(points, errors))
