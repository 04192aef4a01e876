"""Masked-LM and next-sentence loss and accuracy on the eval shards."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from absl import logging

from modeling.batches import (
    batches_in_order,
    evaluation_batches,
    evaluation_shards,
    readable,
)
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.pretrained import (
    Pretrained,
    check_normalization,
    check_vocabulary,
    initialize,
)
from modeling.checkpoints.run_checkpoints import TrainingState
from modeling.losses import losses_and_accuracies
from modeling.shard_cache import CachedDataSet
from modeling.step.backend import eval_step
from modeling.training.metrics import read_metrics_of
from modeling.training.run_directory import check_same_vocabulary, check_tables
from modeling.training.shard_verifier import ShardVerifier
from modeling.training.tensorboard import EVAL_PREFIX
from pipeline.errors import UserError
from pipeline.files import remove_leftovers
from pipeline.json_files import (
    NO_OTHER_KEYS,
    DamagedFileError,
    json_text,
    read_json,
    write_json,
)
from pipeline.manifest import DataSet, Manifest
from pipeline.storage import Location

RESULTS_NAME = "eval_results.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a run's checkpoint achieves on a data set.

    Attributes:
      step: the checkpoint's step.
      masked_lm_loss, next_sentence_loss: in nats.
      masked_lm_accuracy, next_sentence_accuracy: shares of right answers. What concerns masked
        words is None if no word is masked; what concerns pairs, if the BERT has no head for those
        of the data.
      data_dir: where the data set was; None if an earlier build evaluated.
      manifest_sha256: the SHA-256 of its manifest.json (in hexadecimal); None as `data_dir`.
      corpora: the losses and accuracies of each corpus of a mixture, by name; None without one.
    """

    step: int
    masked_lm_loss: float | None = None
    next_sentence_loss: float | None = None
    masked_lm_accuracy: float | None = None
    next_sentence_accuracy: float | None = None
    data_dir: str | None = None
    manifest_sha256: str | None = None
    corpora: dict[str, dict[str, float]] | None = None

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class _Results:
    """The content of `eval_results.json`: one evaluation of each step on each data set."""

    evaluations: list[Evaluation]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


def evaluate(pretrained: Pretrained, data_set: DataSet, batch_size: int) -> dict[str, Any]:
    """Evaluates a trained BERT on all eval instances of a data set.

    Results of a run's checkpoint are also written to the run's `eval_results.json`. There, they
    replace those of the same step on the same data set.

    Returns:
      The losses and accuracies by name, without those of next sentences if the BERT has no head for
      pairs of the data's kind, and without those of masked words if no word is masked; `corpora`,
      the same of each corpus of a mixture that has eval instances; and the other fields of an
      `Evaluation`, without `step` if it is not a run's.

    Raises:
      UserError: the BERT or the data set is unusable or damaged, or they do not fit.
    """
    config, run, run_dir = pretrained.config, pretrained.run, pretrained.directory
    if run:
        check_same_vocabulary(run_dir, run.manifest, data_set)
    else:
        check_vocabulary(pretrained, data_set.vocabulary)
    check_normalization(pretrained, data_set.manifest)
    check_tables(config, data_set)
    if run:
        _read_evaluations(run_dir)  # so that damage to them is found before the work is done
    if isinstance(data_set, CachedDataSet):
        largest = max((each.bytes for each in evaluation_shards(data_set.manifest)), default=0)
        data_set.cache.require(largest, 2 * largest)
        # Here, because a signal does not reach TensorFlow while it waits.
        data_set.open(evaluation_shards(data_set.manifest)[:1], [])
    verifier = ShardVerifier(data_set)
    corpora = {
        name: filled
        for name, shards in data_set.manifest.corpora.items()
        if (filled := [shard for shard in shards if shard.instances])
    }
    batches = [
        batches_in_order(data_set, shards, batch_size, verifier.open) for shards in corpora.values()
    ] or [evaluation_batches(data_set, batch_size, verifier.open)]
    model = BertForPreTraining(config)
    missing = initialize(model, pretrained)
    if untrained := [name for name in missing if name.startswith("cls/predictions/")]:
        raise UserError(f"{pretrained.source} has no head that predicts words: no {untrained[0]}")
    step_of_model = eval_step(model)
    sums = [evaluation_sums(step_of_model, readable(each, data_set)) for each in batches]
    verifier.wait()
    data_dir, sha256 = str(data_set.directory), _sha256_of(data_set.manifest)
    pairs, pairs_of_data = config.sentence_pairs, data_set.manifest.sentence_pairs
    if missing:
        logging.warning("no results of next sentences: there is no %s", ", ".join(missing))
    elif pairs != pairs_of_data:
        logging.info(
            "no results of pairs: %s was trained with --sentence_pairs=%s, %s was made with %s",
            pretrained.source,
            pairs,
            data_set.directory,
            pairs_of_data,
        )

    def figures_of(sums: Mapping[str, float]) -> dict[str, float]:
        figures = losses_and_accuracies(sums)
        if missing or pairs != pairs_of_data:
            return {name: figures[name] for name in figures if "next_sentence" not in name}
        return figures

    facts: dict[str, Any] = figures_of(add_up(sums))
    facts |= {"data_dir": data_dir, "manifest_sha256": sha256}
    if corpora:
        facts["corpora"] = dict(zip(corpora, map(figures_of, sums), strict=True))
    if not run:
        return facts
    step = run.state.step
    evaluation = Evaluation(step=step, **facts)
    earlier = _read_evaluations(run_dir)  # again, because others may have been written meanwhile
    kept = [each for each in earlier if (each.step, each.manifest_sha256) != (step, sha256)]
    remove_leftovers(run_dir, RESULTS_NAME)
    written = list(map(_as_json, [*kept, evaluation]))
    write_json(run_dir / RESULTS_NAME, {"evaluations": written})
    return {name: value for name, value in vars(evaluation).items() if value is not None}


def read_results(
    run_dir: Location, state: TrainingState, trained_on: Manifest
) -> tuple[dict[str, Any], bool] | None:
    """Losses and accuracies of a run's checkpoint, from `evaluate` or from training.

    Args:
      run_dir: the run.
      state: the checkpoint's state.
      trained_on: the manifest of the run's data.

    Returns:
      The figures by name (with `data_dir` and `manifest_sha256`, if `evaluate` computed them), and
      whether they are on the eval shards of the run's own data. If there are none of those, the
      newest on other data. None if the checkpoint was not evaluated, or if it is not certain that
      the figures are those of training, which is logged.

    Raises:
      UserError: the results of `evaluate` are damaged.
    """
    found = [each for each in _read_evaluations(run_dir) if each.step == state.step]
    for each in found:
        if each.manifest_sha256 == _sha256_of(trained_on):
            return _as_json(each), True
    for line in read_metrics_of(run_dir, state):
        if line["step"] == state.step and any(name.startswith(EVAL_PREFIX) for name in line):
            return {name.removeprefix(EVAL_PREFIX): value for name, value in line.items()}, True
    return (_as_json(found[-1]), False) if found else None


def _read_evaluations(run_dir: Location) -> list[Evaluation]:
    """The evaluations of a run, the newest last.

    Raises:
      UserError: the file with them is damaged.
    """
    path = run_dir / RESULTS_NAME
    if not path.exists():
        return []
    try:
        if "evaluations" in read_json(path, dict[str, Any]):
            return read_json(path, _Results).evaluations
        alone = read_json(path, Evaluation)  # as an earlier build wrote it, which knew only pairs
        if alone.next_sentence_loss is None:
            raise DamagedFileError(f"{path} has no figures")
        return [alone]
    except DamagedFileError as error:
        raise UserError(f"{error}; remove it, and run `clozemill evaluate` again") from error


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The fields of an evaluation; `corpora` only of a mixture."""
    return {
        name: value
        for name, value in vars(evaluation).items()
        if name != "corpora" or value is not None
    }


def _sha256_of(manifest: Manifest) -> str:
    """The SHA-256 of the manifest.json that `manifest` is written to."""
    return hashlib.sha256(json_text(vars(manifest)).encode()).hexdigest()


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
