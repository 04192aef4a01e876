"""What is told of a run while it goes: `metrics.jsonl` and a line on the terminal or in the log."""

import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from absl import logging

from modeling.losses import losses_and_accuracies
from pipeline.files import write_whole

METRICS_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes a line of metrics now and then, each about the steps since the line before.

    Args:
      run_dir: where `metrics.jsonl` is.
      first_step: where training goes on; later lines, of a run that was killed, are removed.
      num_train_steps: where it ends.
      flops_per_sequence: of the model, forward and backward.
    """

    def __init__(
        self, run_dir: Path, first_step: int, num_train_steps: int, flops_per_sequence: int
    ):
        self._path = run_dir / METRICS_NAME
        self._num_train_steps = num_train_steps
        self._flops_per_sequence = flops_per_sequence
        self._on_terminal = sys.stderr.isatty()
        self._drop_lines_after(first_step)
        self.start_timing(first_step)

    def start_timing(self, step: int) -> None:
        """Leaves out of the speed what has happened up to now, such as compiling."""
        self._timed_from = step
        self._started = time.perf_counter()

    def write(
        self, step: int, sums: Mapping[str, float], learning_rate: float, sequences_per_step: int
    ) -> None:
        """Appends a line about the sums since the last one, and shows it."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        steps_per_second = (step - self._timed_from) / seconds
        sequences_per_second = steps_per_second * sequences_per_step
        metrics = {
            "step": step,
            **losses_and_accuracies(sums),
            "learning_rate": learning_rate,
            "gradient_norm": sums["gradient_norm"] * sequences_per_step / sums["sequences"],
            "sequences_per_second": sequences_per_second,
            "tokens_per_second": sequences_per_second * sums["tokens"] / sums["sequences"],
            "model_flops_per_second": sequences_per_second * self._flops_per_sequence,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        seconds_left = (
            (self._num_train_steps - step) / steps_per_second if steps_per_second else 0.0
        )
        self._show(metrics, seconds_left)
        self.start_timing(step)

    def log(self, message: str) -> None:
        """Logs a message on a line of its own."""
        if self._on_terminal:
            sys.stderr.write("\n")
        logging.info("%s", message)

    def _show(self, metrics: Mapping[str, Any], seconds_left: float) -> None:
        line = (
            f"step {metrics['step']}/{self._num_train_steps}"
            f" | masked LM loss {metrics['masked_lm_loss']:.3f}"
            f" accuracy {metrics['masked_lm_accuracy']:.1%}"
            f" | next sentence loss {metrics['next_sentence_loss']:.3f}"
            f" accuracy {metrics['next_sentence_accuracy']:.1%}"
            f" | {metrics['sequences_per_second']:.1f} sequences/s"
            f" | {timedelta(seconds=round(seconds_left))} left"
        )
        if self._on_terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            logging.info("%s", line)

    def _drop_lines_after(self, step: int) -> None:
        if not self._path.exists():
            return
        # A line cut short when the process was killed is of a step after the checkpoint, too.
        whole = [line for line in self._path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line + "\n" for line in whole if json.loads(line)["step"] <= step]
        write_whole(self._path, "".join(kept))
