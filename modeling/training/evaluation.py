"""Masked-LM and next-sentence loss and accuracy on the eval shards."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modeling.batches import evaluation_batches, readable
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.run_checkpoints import (
    TrainingState,
    latest_checkpoint,
    load_weights,
    read_run,
)
from modeling.losses import losses_and_accuracies
from modeling.step.backend import eval_step
from modeling.training.metrics import read_metrics_of
from modeling.training.run_directory import check_length, check_same_vocabulary
from modeling.training.shard_verifier import ShardVerifier
from modeling.training.tensorboard import EVAL_PREFIX
from pipeline.errors import UserError
from pipeline.files import remove_leftovers
from pipeline.json_files import NO_OTHER_KEYS, DamagedFileError, read_json, write_json
from pipeline.manifest import DataSet

RESULTS_NAME = "eval_results.json"


@dataclass(frozen=True)
class _Results:
    """The content of `eval_results.json`; without masks, it has nothing about masked words."""

    step: int
    next_sentence_loss: float
    next_sentence_accuracy: float
    masked_lm_loss: float | None = None
    masked_lm_accuracy: float | None = None

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


def evaluate(run_dir: Path, data_set: DataSet, batch_size: int) -> dict[str, float]:
    """Evaluates the run's newest checkpoint on all eval instances.

    Returns:
      `step` and the four losses and accuracies, which are also written to the run's
      `eval_results.json`. Those of masked words are left out if no word is masked.

    Raises:
      UserError: the run or the data set is unusable or damaged.
    """
    config, trained_on = read_run(run_dir)
    check_same_vocabulary(run_dir, trained_on, data_set)
    check_length(config, data_set)
    verifier = ShardVerifier(data_set)
    batches = evaluation_batches(data_set, batch_size, verifier.open)
    model = BertForPreTraining(config)
    step = load_weights(latest_checkpoint(run_dir), model)
    sums = evaluation_sums(eval_step(model), readable(batches, data_set))
    verifier.wait()
    results = {"step": step, **losses_and_accuracies(sums)}
    remove_leftovers(run_dir, RESULTS_NAME)
    write_json(run_dir / RESULTS_NAME, results)
    return results


def read_results(run_dir: Path, state: TrainingState) -> dict[str, float] | None:
    """Losses and accuracies of a run's checkpoint, from `evaluate` or else from training.

    Args:
      run_dir: the run.
      state: the checkpoint's state.

    Returns:
      The figures by name; None if the checkpoint was not evaluated, or if it is not certain that
      the figures are those of training, which is logged.

    Raises:
      UserError: the results of `evaluate` are damaged.
    """
    path = run_dir / RESULTS_NAME
    if path.exists():
        try:
            results = read_json(path, _Results)
        except DamagedFileError as error:
            raise UserError(f"{error}; run `clozemill evaluate` again") from error
        if results.step == state.step:
            return {name: value for name, value in vars(results).items() if value is not None}
    for line in read_metrics_of(run_dir, state):
        if line["step"] == state.step and f"{EVAL_PREFIX}next_sentence_loss" in line:
            return {name.removeprefix(EVAL_PREFIX): value for name, value in line.items()}
    return None


def evaluation_sums(
    step: Callable[[Any], Mapping[str, Any]], batches: Iterable[Any]
) -> dict[str, float]:
    """The totals and sums of batches, added up.

    Args:
      step: the `eval_step` of a model.
      batches: the batches to evaluate on.
    """
    return add_up({name: float(value) for name, value in step(batch).items()} for batch in batches)


def add_up(sums_of_parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Adds up the sums of parts, by name."""
    added: dict[str, float] = defaultdict(float)
    for sums in sums_of_parts:
        for name, value in sums.items():
            added[name] += value
    return added
