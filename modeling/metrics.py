"""What is told of a run while it goes: `metrics.jsonl`, TensorBoard's summaries, and a line to look at."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from absl import logging
from rich.console import Console
from rich.live import Live
from rich.text import Text

from modeling.losses import losses_and_accuracies
from modeling.summaries import SummaryWriter
from pipeline.files import whole_file

METRICS_NAME = "metrics.jsonl"
_EVAL_PREFIX = "eval_"


def read_metrics(run_dir: Path) -> Iterator[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`; one that was cut short is left out."""
    path = run_dir / METRICS_NAME
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("}\n"))


class MetricsWriter:
    """Writes a line of metrics now and then, each about the steps since the line before.

    Lines are also shown: on a terminal as one line that changes, elsewhere in the log.

    Args:
      run_dir: where `metrics.jsonl` is.
      first_step: where training goes on; later lines, of a run that was killed, are removed.
      num_train_steps: where it ends.
      batch_size: sequences of a step.
      flops_per_sequence: of the model, forward and backward.
      peak_flops: of the device, where it is known, in FLOP/s.
    """

    def __init__(
        self,
        run_dir: Path,
        first_step: int,
        num_train_steps: int,
        batch_size: int,
        flops_per_sequence: int,
        peak_flops: float | None = None,
    ):
        self._path = run_dir / METRICS_NAME
        self._num_train_steps = num_train_steps
        self._batch_size = batch_size
        self._flops_per_sequence = flops_per_sequence
        self._peak_flops = peak_flops
        kept = [line for line in read_metrics(run_dir) if line["step"] <= first_step]
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(map(_as_json, kept)), "utf-8")
        self._summaries = SummaryWriter(run_dir, kept)
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.start_timing(first_step)

    def __enter__(self) -> "MetricsWriter":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def start_timing(self, step: int) -> None:
        """Leaves out of the speed what has happened up to now, such as compiling."""
        self._timed_from = step
        self._started = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Around what gets the next batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def not_timed(self) -> Iterator[None]:
        """Around what is no training, such as an evaluation."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def write(
        self,
        step: int,
        sums: Mapping[str, float],
        learning_rate: float,
        loss_scale: float | None = None,
    ) -> None:
        """Appends a line about the steps since the last one, and shows it.

        Args:
          step: the last one.
          sums: what the steps told, added up.
          learning_rate: of the last step.
          loss_scale: of float16.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        steps_per_second = (step - self._timed_from) / seconds
        sequences_per_second = steps_per_second * self._batch_size
        flops_per_second = sequences_per_second * self._flops_per_sequence
        line = {
            "step": step,
            **losses_and_accuracies(sums),
            "learning_rate": learning_rate,
            "gradient_norm": sums["gradient_norm"] / max(sums["updates"], 1),
            "sequences_per_second": sequences_per_second,
            "tokens_per_second": sequences_per_second * sums["tokens"] / sums["sequences"],
            "model_flops_per_second": flops_per_second,
            "input_wait": self._waited / seconds,
        }
        if self._peak_flops:
            line["model_flops_utilization"] = flops_per_second / self._peak_flops
        if loss_scale:
            line["loss_scale"] = loss_scale
            line["updates_left_out"] = sums["sequences"] / self._batch_size - sums["updates"]
        self._append(line)
        steps_left = self._num_train_steps - step
        self._show(line, steps_left / steps_per_second if steps_per_second else 0.0)
        self.start_timing(step)

    def write_evaluation(self, step: int, sums: Mapping[str, float]) -> None:
        """Appends a line about an evaluation, and logs it."""
        results = losses_and_accuracies(sums)
        self._append({"step": step, **{_EVAL_PREFIX + name: x for name, x in results.items()}})
        self.log(f"evaluation at step {step}: {_describe(results)}")

    def log(self, message: str) -> None:
        """Logs a message, on a line of its own."""
        if self._live:
            self._live.console.print(message, highlight=False, soft_wrap=True)
        else:
            logging.info("%s", message)

    def _append(self, line: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_as_json(line))
        self._summaries.write(line)

    def _show(self, line: Mapping[str, float], seconds_left: float) -> None:
        utilization = line.get("model_flops_utilization")
        told = (
            f"step {line['step']}/{self._num_train_steps},"
            f" {timedelta(seconds=round(seconds_left))} left | {_describe(line)}"
            f" | lr {line['learning_rate']:.2e} | gradient {line['gradient_norm']:.2f}"
            f" | {line['sequences_per_second']:,.1f} seq/s,"
            f" {line['tokens_per_second']:,.0f} tokens/s,"
            f" {line['model_flops_per_second'] / 1e12:.3g} TFLOP/s"
            + (f", {utilization:.1%} MFU" if utilization else "")
            + (f" | {line['input_wait']:.0%} input wait" if line["input_wait"] > 0.05 else "")
        )
        if self._live:
            self._live.update(Text(told, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            logging.info("%s", told)


def _describe(results: Mapping[str, float]) -> str:
    """Losses, and accuracies behind them."""
    return (
        f"masked LM {results['masked_lm_loss']:.3f} ({results['masked_lm_accuracy']:.1%})"
        f" | next sentence {results['next_sentence_loss']:.3f}"
        f" ({results['next_sentence_accuracy']:.1%})"
    )


def _as_json(line: Mapping[str, float]) -> str:
    return json.dumps(line) + "\n"
