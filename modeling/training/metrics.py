"""Reports a run's progress: `metrics.jsonl`, TensorBoard's summaries and a status line."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from absl import logging
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console
from rich.live import Live
from rich.text import Text

from modeling.checkpoints.run_checkpoints import FileStart, TrainingState
from modeling.losses import NAMES_OF_PAIRS, losses_and_accuracies
from modeling.training.tensorboard import EVAL_PREFIX, SummaryWriter
from modeling.training.tracking import Tracking
from modeling.training.workload import BatchSizes
from pipeline.files import whole_file
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location

METRICS_NAME = "metrics.jsonl"
# The share of time spent waiting above which it is shown.
_NOTABLE_WAIT = 0.05
# The figures of a line, which all fit into float32.
_FIGURES = TypeAdapter(dict[str, Annotated[float, Field(gt=-3e38, lt=3e38)]])


def read_metrics(run_dir: Location) -> Iterator[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, without a line that was cut short.

    Logs a warning if others cannot be read, and leaves them out.
    """
    path = run_dir / METRICS_NAME
    if path.exists():
        with path.open("rb") as file:
            yield from (line for _, line in _readable_lines(file, path))


def read_metrics_of(run_dir: Location, state: TrainingState) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` up to a checkpoint, if they are those that were written.

    Otherwise it logs that they are left out, and returns none.

    Args:
      run_dir: the run.
      state: the checkpoint's state.
    """
    path = run_dir / METRICS_NAME
    content = path.read_bytes() if path.exists() else b""
    start = _unchanged_start(content, state.metrics)
    if start is None and content:
        logging.warning(
            "%s was changed, or an earlier build saved the checkpoint: the results in it are left "
            "out; `clozemill evaluate` measures them again",
            path,
        )
    return [figures for _, figures in _readable_lines(io.BytesIO(start or b""), path)]


def _unchanged_start(content: bytes, written: FileStart | None) -> bytes | None:
    """The start of a file if it is what was written; None if it is not, or nobody knows."""
    start = content[: written.bytes] if written else b""
    if written and hashlib.sha256(start).hexdigest() == written.sha256:
        return start
    return None


def _readable_lines(
    lines: Iterable[bytes], path: Location
) -> Iterator[tuple[bytes, dict[str, float]]]:
    """The lines of metrics, each as it is and as its figures by name."""
    left_out = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue  # the last one, which was cut short
        if figures := _figures(line):
            yield line, figures
        else:
            left_out.append(number)
    if left_out:
        logging.warning(
            "%s: %d lines are left out, because they are not lines of metrics (the first: line %d)",
            path,
            len(left_out),
            left_out[0],
        )


def _figures(line: bytes) -> dict[str, float] | None:
    """The figures in a line of metrics, by name; None if it is not such a line."""
    try:
        figures = _FIGURES.validate_json(line, strict=True)
    except ValidationError:
        return None
    step = figures.get("step", -1.0)
    return figures | {"step": int(step)} if step >= 0 and step.is_integer() else None


class MetricsWriter:
    """Writes lines of metrics, each about the steps since the line before it.

    Lines are also shown: on a terminal as one line that is updated, elsewhere in the log.

    Args:
      run_dir: the run, which holds `metrics.jsonl`; None to write and show nothing.
      start: the state from which training resumes. Later lines, left by a killed run, are removed.
      num_train_steps: the last step.
      batch_size: the number of instances per step: sequences, or rows of packed ones.
      flops_per_instance: the model's FLOPs per instance, forward and backward.
      peak_flops: the peak of all devices together, in FLOP/s; None if unknown.
      sentence_pairs: what the data's instances hold.
      tracking: what sends the lines to a tracker, if anything does.
      directory: where to write them, if not in the run.

    Attributes:
      all_reduce_seconds: the seconds per step that the devices' all-reduce takes; 0 until it is
        known, and for one device.
    """

    def __init__(
        self,
        run_dir: Location | None,
        start: TrainingState,
        num_train_steps: int,
        batch_sizes: BatchSizes,
        flops_per_instance: float,
        peak_flops: float | None = None,
        sentence_pairs: SentencePairs = SentencePairs.NEXT,
        tracking: Tracking | None = None,
        directory: Path | None = None,
    ):
        self._run_dir = run_dir
        self._tracking = tracking
        self._num_train_steps = num_train_steps
        self._batch_sizes = batch_sizes
        self._flops_per_instance = flops_per_instance
        self._peak_flops = peak_flops
        self._tasks = {"masked_lm": "masked LM"}
        if name := NAMES_OF_PAIRS.get(sentence_pairs):
            self._tasks["next_sentence"] = name
        self.all_reduce_seconds = 0.0
        self._live: Live | None = None
        if run_dir:
            kept = _lines_up_to(start, run_dir / METRICS_NAME)
            directory = directory or Path(str(run_dir))
            self._path = directory / METRICS_NAME
            with whole_file(self._path) as temporary:
                temporary.write_bytes(kept)
            self._size, self._digest = len(kept), hashlib.sha256(kept)
            self._summaries = SummaryWriter(directory, read_metrics(directory))
            console = Console(stderr=True)
            if console.is_terminal:
                self._live = Live(console=console, auto_refresh=False)
        self.start_timing(start.step)

    def __enter__(self) -> "MetricsWriter":
        if self._tracking:
            self._tracking.send(self._size)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def start_timing(self, step: int) -> None:
        """Excludes the time up to now, such as compiling, from the speed."""
        self._timed_from = step
        self._started = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting_for_input(self, is_idle: Callable[[], bool]) -> Iterator[None]:
        """Around fetching a batch: counts as waiting if the device is idle at the end."""
        started = time.perf_counter()
        yield
        if is_idle():
            self._waited += time.perf_counter() - started

    @contextmanager
    def not_timed(self) -> Iterator[None]:
        """Around anything but training, such as an evaluation: excludes its time from the speed."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def write(
        self,
        step: int,
        sums: Mapping[str, float],
        learning_rate: float,
        loss_scale: float | None = None,
        masked_lm_prob: float | None = None,
    ) -> None:
        """Appends a line about the steps since the last line, and shows it.

        Args:
          step: the last of these steps.
          sums: the sums of the steps' results.
          learning_rate: the learning rate of the last step.
          loss_scale: float16's loss scale.
          masked_lm_prob: the share of tokens to mask in the last step, if masks are drawn while
            training.
        """
        line = {
            "step": step,
            **losses_and_accuracies(sums),
            "learning_rate": learning_rate,
            "gradient_norm": sums["gradient_norm"] / max(sums["updates"], 1),
        }
        if masked_lm_prob:
            line["masked_lm_prob"] = masked_lm_prob
        if loss_scale:
            line["loss_scale"] = loss_scale
            line["updates_left_out"] = sums["updates_left_out"]
        if step > self._timed_from:
            line |= self._speeds(step, sums)
        self._append(line)
        if self._run_dir:
            self._show(line)
        self.start_timing(step)

    def write_evaluation(self, step: int, sums: Mapping[str, float]) -> None:
        """Appends a line about an evaluation, and logs it."""
        results = losses_and_accuracies(sums)
        self._append({"step": step, **{EVAL_PREFIX + name: x for name, x in results.items()}})
        self.log(f"evaluation at step {step}: {self._describe(results)}")

    def flushed(self) -> FileStart:
        """The lines of `metrics.jsonl` so far, which are on disk after this."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return FileStart(self._size, self._digest.hexdigest())

    def saved(self, lines: FileStart) -> None:
        """Tells the tracker that a checkpoint covers these lines."""
        if self._tracking:
            self._tracking.send(lines.bytes)

    def log(self, message: str) -> None:
        """Logs a message on its own line."""
        if self._live:
            self._live.console.print(message, highlight=False, soft_wrap=True)
        elif self._run_dir:
            logging.info("%s", message)

    def _append(self, line: Mapping[str, float]) -> None:
        if not self._run_dir:
            return
        written = (json.dumps(line) + "\n").encode()
        with self._path.open("ab") as file:
            file.write(written)
        self._size += len(written)
        self._digest.update(written)
        self._summaries.write(line)

    def _speeds(self, step: int, sums: Mapping[str, float]) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        instances_per_second = self._batch_sizes.total(self._timed_from, step) / seconds
        flops_per_second = instances_per_second * self._flops_per_instance
        # The sums may be of some steps more, which are not timed.
        updates = round(sums["updates"] + sums.get("updates_left_out", 0))
        instances = self._batch_sizes.total(step - updates, step)
        speeds = {
            "sequences_per_second": instances_per_second * sums["sequences"] / instances,
            "tokens_per_second": instances_per_second * sums["tokens"] / instances,
            "model_flops_per_second": flops_per_second,
            "input_wait": self._waited / seconds,
        }
        if self.all_reduce_seconds:
            speeds["step_seconds"] = seconds / (step - self._timed_from)
            speeds["all_reduce_seconds"] = self.all_reduce_seconds
        if self._peak_flops:
            speeds["model_flops_utilization"] = flops_per_second / self._peak_flops
        return speeds

    def _show(self, line: Mapping[str, float]) -> None:
        parts = [
            f"step {line['step']}/{self._num_train_steps}",
            self._describe(line),
            f"lr {line['learning_rate']:.2e}",
            f"gradient {line['gradient_norm']:.2f}",
        ]
        if speed := line.get("sequences_per_second"):
            instances_left = self._batch_sizes.total(int(line["step"]), self._num_train_steps)
            flops_left = instances_left * self._flops_per_instance
            seconds_left = flops_left / line["model_flops_per_second"]
            utilization = line.get("model_flops_utilization")
            parts[0] += f", {timedelta(seconds=round(seconds_left))} left"
            parts.append(
                f"{speed:,.1f} seq/s, {line['tokens_per_second']:,.0f} tokens/s,"
                f" {line['model_flops_per_second'] / 1e12:.3g} TFLOP/s"
                + (f", {utilization:.1%} MFU" if utilization else "")
            )
            if "step_seconds" in line:
                parts.append(_describe_step(line))
            elif line["input_wait"] > _NOTABLE_WAIT:
                parts.append(f"{line['input_wait']:.0%} waiting for input")
        shown = " | ".join(parts)
        if self._live:
            self._live.update(Text(shown), refresh=True)
        else:
            logging.info("%s", shown)

    def _describe(self, results: Mapping[str, float]) -> str:
        """The losses, each followed by its accuracy; a dash where there was nothing to predict."""
        parts = []
        for task, name in self._tasks.items():
            if (loss := results.get(f"{task}_loss")) is None:
                parts.append(f"{name} –")
            else:
                parts.append(f"{name} {loss:.3f} ({results[f'{task}_accuracy']:.1%})")
        return " | ".join(parts)


def _lines_up_to(state: TrainingState, path: Location) -> bytes:
    """The lines of metrics up to a checkpoint: those that were written, or else the readable."""
    content = path.read_bytes() if path.exists() else b""
    if (start := _unchanged_start(content, state.metrics)) is not None:
        return start
    if state.metrics:
        logging.warning(
            "%s was changed: its readable lines up to step %d, where the run resumes, are kept",
            path,
            state.step,
        )
    lines = _readable_lines(io.BytesIO(content), path)
    return b"".join(line for line, figures in lines if figures["step"] <= state.step)


def _describe_step(line: Mapping[str, float]) -> str:
    """The parts of a step's time, in milliseconds."""
    step, all_reduce = line["step_seconds"], line["all_reduce_seconds"]
    waiting = line["input_wait"] * step
    compute = max(step - all_reduce - waiting, 0.0)
    return (
        f"{step * 1e3:,.0f} ms per step: {compute * 1e3:,.0f} compute, "
        f"{all_reduce * 1e3:,.0f} all-reduce, {waiting * 1e3:,.0f} input"
    )
