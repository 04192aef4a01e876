"""The results of a sweep: a table as text and as CSV, and a picture of the losses."""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from absl import logging

from launch.grid import Point
from modeling.checkpoints.run_checkpoints import list_checkpoints
from modeling.training.loss_plot import draw_runs
from modeling.training.metrics import read_metrics
from modeling.training.tensorboard import EVAL_PREFIX
from pipeline.errors import in_one_line
from pipeline.files import remove_leftovers, whole_file

TABLE_NAME, PICTURE_NAME = "sweep.csv", "sweep.png"
# A run's training losses are means over this last part of its steps.
_LAST_PART = 0.1
_FIGURES = ("_loss", "_accuracy")


@dataclass(frozen=True)
class _Result:
    """What has come of a point.

    Attributes:
      point: the point.
      status: `finished`, `failed`, `unfinished` or `not begun`.
      step: the step of the newest line of metrics.
      training: the mean losses and accuracies over the last part of the steps, by name.
      evaluation: those of the last evaluation.
      error: what it has failed with.
    """

    point: Point
    status: str
    step: int
    training: dict[str, float]
    evaluation: dict[str, float]
    error: str

    def loss(self, is_evaluated: bool) -> float:
        """The total loss of the last evaluation, or of training; infinite if there is none."""
        figures = self.evaluation if is_evaluated else self.training
        losses = [value for name, value in figures.items() if name.endswith("_loss")]
        return sum(losses) if losses else math.inf


def report(points: list[Point], errors: Mapping[str, str]) -> str:
    """Writes `sweep.csv` and `sweep.png` beside the runs, and returns the table as text.

    Finished runs come first, then those with the smallest loss.

    Args:
      points: the points, in any state.
      errors: the errors of those that failed just now, by name.
    """
    directory = points[0].run_dir.parent
    results = [_result(point, errors.get(point.name, "")) for point in points]
    is_evaluated = any(result.evaluation for result in results)
    results.sort(
        key=lambda result: (
            result.status != "finished",
            result.loss(is_evaluated),
            result.point.name,
        )
    )
    rows = [_row(result, is_evaluated) for result in results]
    remove_leftovers(directory, TABLE_NAME)
    with whole_file(directory / TABLE_NAME) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, _columns(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    runs = {result.point.name: result.point.run_dir for result in results if result.step}
    if not draw_runs(runs, directory / PICTURE_NAME):
        logging.info("no sweep.png, because matplotlib is missing: pip install 'clozemill[plot]'")
    what = "their last evaluation" if is_evaluated else "training over the last tenth of the steps"
    return "\n".join(
        [
            f"{in_one_line(str(directory))}: {len(results)} runs, by the total loss of {what}",
            *_lines(rows, {"run", "error", *_hidden(rows, is_evaluated)}),
            *(f"{row['run']} failed: {row['error']}" for row in rows if row["error"]),
        ]
    )


def _result(point: Point, error: str) -> _Result:
    lines = list(read_metrics(point.run_dir))
    step = int(max((line["step"] for line in lines), default=0))
    evaluations = [line for line in lines if any(name.startswith(EVAL_PREFIX) for name in line)]
    training = [
        line for line in lines if "learning_rate" in line and line["step"] > step * (1 - _LAST_PART)
    ]
    saved = list_checkpoints(point.run_dir)
    is_finished = saved and int(saved[-1].name.rpartition("-")[2]) >= point.num_train_steps
    status = "finished" if is_finished else "unfinished" if point.run_dir.exists() else "not begun"
    return _Result(
        point=point,
        status="failed" if error else status,
        step=step,
        training=_means(training),
        evaluation=_means(evaluations[-1:]),
        error=error,
    )


def _means(lines: list[dict[str, float]]) -> dict[str, float]:
    """The means of the losses and accuracies that lines of metrics have, by name."""
    names = dict.fromkeys(name for line in lines for name in line if name.endswith(_FIGURES))
    return {name: fmean(line[name] for line in lines if name in line) for name in names}


def _row(result: _Result, is_evaluated: bool) -> dict[str, str]:
    """A row of the table, by column; what a run does not have is left out."""
    figures = {"total_loss": result.loss(is_evaluated), **result.evaluation, **result.training}
    return {
        "run": result.point.name,
        **result.point.values,
        "status": result.status,
        "step": str(result.step),
        **{name: f"{value:.6g}" for name, value in figures.items() if value < math.inf},
        "error": result.error,
    }


def _columns(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """All columns in the order in which they first come, with the error last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name == "error")


def _hidden(rows: Iterable[Mapping[str, str]], is_evaluated: bool) -> list[str]:
    """The figures that the text leaves out: those of training, if there are evaluations."""
    return [
        name
        for name in _columns(rows)
        if is_evaluated and name.endswith(_FIGURES) and not name.startswith((EVAL_PREFIX, "total"))
    ]


def _lines(rows: list[dict[str, str]], hidden: set[str]) -> list[str]:
    """The rows as aligned text, below a line with the names of the columns."""
    names = [name for name in _columns(rows) if name not in hidden]
    titles = [name.removeprefix(EVAL_PREFIX) for name in names]
    table = [titles, *([in_one_line(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
