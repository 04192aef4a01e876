"""The run's metrics as TensorBoard shows them: `tensorboard --logdir=RUN`.

An event file is a TFRecord file of `Event` messages. It is written as one, without TensorFlow
operations, so it needs neither the package tensorboard nor a device, whichever backend Keras uses.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline.records import frame_record

SUMMARIES_NAME = "tensorboard"
EVAL_PREFIX = "eval_"
"""The prefix of the names of an evaluation's figures in a line of metrics."""

_FILE_PREFIX = "events.out.tfevents."
_FILE_VERSION = "brain.Event:2"


class SummaryWriter:
    """Writes lines of metrics to an event file, under the tags `train/…` and `eval/…`.

    The file has the content of `metrics.jsonl`: it is rewritten when a run resumes, and each line
    is on disk once `write` returns.

    Args:
      run_dir: the run, whose folder `tensorboard` holds the event file. The file of an earlier
        start is removed.
      kept_lines: the lines of metrics up to the step from which training resumes.
    """

    def __init__(self, run_dir: Path, kept_lines: Iterable[Mapping[str, float]]):
        directory = run_dir / SUMMARIES_NAME
        directory.mkdir(exist_ok=True)
        for path in directory.glob(f"{_FILE_PREFIX}*"):
            path.unlink()
        # A running TensorBoard looks for a file name that sorts after the one it has read.
        self._path = directory / f"{_FILE_PREFIX}{time.time_ns()}"
        self._append([*_opening_events(), *map(_event, kept_lines)])

    def write(self, line: Mapping[str, float]) -> None:
        """Adds the figures of a line at its `step`; names `eval_…` become tags `eval/…`."""
        self._append([_event(line)])

    def _append(self, events: Iterable[Any]) -> None:
        with self._path.open("ab") as file:
            file.writelines(frame_record(event.SerializeToString()) for event in events)


def _opening_events() -> list[Any]:
    """The events that a reader expects first."""
    v1, now = tf.compat.v1, time.time()
    return [
        v1.Event(wall_time=now, file_version=_FILE_VERSION),
        # Makes a running TensorBoard discard what it has read from the removed file.
        v1.Event(wall_time=now, session_log=v1.SessionLog(status=v1.SessionLog.START)),
    ]


def _event(line: Mapping[str, float]) -> Any:
    values = [
        {"tag": _tag(name), "simple_value": value} for name, value in line.items() if name != "step"
    ]
    return tf.compat.v1.Event(
        wall_time=time.time(), step=line["step"], summary=tf.compat.v1.Summary(value=values)
    )


def _tag(name: str) -> str:
    is_evaluation = name.startswith(EVAL_PREFIX)
    return f"eval/{name.removeprefix(EVAL_PREFIX)}" if is_evaluation else f"train/{name}"
