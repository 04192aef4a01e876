"""Masks that are drawn while training, for data of `generate --masking=training`.

The rules are those of stored masks, `pipeline.instances.mask_instances`. Each draw is a hash of the
seed, the epoch, the number of the instance and the position. So a run that resumes, any number of
processes, and each backend meet the same masks, and the masks of a sequence depend on nothing else
in its batch.
"""

import queue
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from itertools import accumulate

import numpy as np
from pydantic import TypeAdapter, ValidationError

from modeling.masking_schedule import MaskingSchedule
from modeling.training_options import TrainingOptions
from pipeline.draws import first_key, fold_in, hash_draws
from pipeline.errors import UserError
from pipeline.instances import mask_instances
from pipeline.manifest import DataSet, Manifest, Shard
from pipeline.masking import num_to_mask
from pipeline.ngrams import take_of
from pipeline.options import InstanceOptions
from pipeline.records import Instances, RowLimits, unpack_word_starts
from pipeline.rows import pack, sequence_lengths, unpack
from pipeline.vocabulary import Vocabulary

# Batches that are ready before the trainer asks for them.
_BATCHES_AHEAD = 2


def schedule_of(manifest: Manifest, options: TrainingOptions) -> MaskingSchedule | None:
    """The share of tokens to mask, by default that of the eval instances; None if all are stored.

    Raises:
      UserError: the manifest does not tell the default.
    """
    if not manifest.masks_while_training:
        return None
    return options.masked_lm_prob or MaskingSchedule(str(manifest.options.get("masked_lm_prob")))


def training_limits(manifest: Manifest, options: TrainingOptions) -> RowLimits:
    """The most that a record of the trainer's batches holds.

    Raises:
      UserError: see `_instance_options`.
    """
    if not (schedule := schedule_of(manifest, options)):
        return manifest.row_limits
    return _instance_options(manifest, schedule.largest).limits_of_rows


def check_masking(data_set: DataSet, options: TrainingOptions) -> None:
    """Checks that options of masks are given only where the trainer draws them.

    Raises:
      UserError: the data have stored masks.
    """
    if options.masked_lm_prob and not data_set.manifest.masks_while_training:
        raise UserError(
            f"--masked_lm_prob={options.masked_lm_prob} has no effect, because the masks of "
            f"{data_set.directory} are stored: generate it with --masking=training"
        )


class TrainingMasks:
    """Draws the masks of train instances.

    Args:
      data_set: data whose masks are drawn while training.
      seed: the trainer's.
      largest: the largest share of tokens to mask, which decides how many slots a batch has.

    Raises:
      UserError: see `_instance_options`; or the vocabulary cannot be read.
    """

    def __init__(self, data_set: DataSet, seed: int, largest: float):
        self._manifest = data_set.manifest
        self._key = first_key(seed)
        self._options = _instance_options(self._manifest, largest)
        self._take = take_of(self._options)
        self._vocabulary = Vocabulary(data_set.vocabulary)
        self._are_packed = self._options.packed_row_length is not None

    def draw(self, records: Instances, epochs: np.ndarray, rate: float) -> Instances:
        """Masks N records, which are sequences or rows of these.

        Args:
          records: the arrays of `records.unmasked_features`.
          epochs: int [N], how often the data were read before.
          rate: the share of a sequence's tokens to mask, at most the largest.

        Returns:
          The arrays of `records.instance_features`.

        Raises:
          ValueError: the records are no instances.
        """
        instances = unpack_word_starts(records)
        key = fold_in(self._key, epochs)
        for numbers in instances.pop("instance_number").T:
            key = fold_in(key, numbers)
        if self._are_packed:
            sizes = instances["input_mask"].max(axis=1).astype(np.int64)
            instances = unpack(instances, self._options.max_seq_length)
            key = np.repeat(key, sizes)
        else:
            sizes = np.ones(len(key), np.int64)
            instances["input_ids"] = instances["input_ids"].copy()  # they are masked in place
        row = np.repeat(np.arange(len(sizes)), sizes)
        number_in_row = np.arange(len(row)) - (np.cumsum(sizes) - sizes)[row]
        at_rate = replace(self._options, masked_lm_prob=rate, max_predictions_per_seq=None)  # type: ignore[arg-type]
        lengths = sequence_lengths(instances["input_mask"])
        budget = num_to_mask(lengths, rate, at_rate.max_predictions_per_seq)
        if self._are_packed:
            budget = _within_rows(budget, sizes, at_rate.limits_of_rows.predictions)
        draws = hash_draws(fold_in(key, number_in_row), instances["input_ids"].shape[1])
        mask_instances(instances, budget, self._vocabulary, self._options, draws, self._take)
        if self._are_packed:
            limits, padding_id = self._options.limits_of_rows, self._vocabulary.ids["[PAD]"]
            instances = pack(instances, sizes, limits, padding_id)
        return {
            name: values if values.dtype == np.float32 else values.astype(np.int32, copy=False)
            for name, values in instances.items()
        }


def masked_batches(
    batches: Iterator[Instances],
    data_set: DataSet,
    options: TrainingOptions,
    first_step: int = 0,
    first_instance: int = 0,
    process_id: int = 0,
    num_processes: int = 1,
) -> Generator[Instances]:
    """The batches of a process, with masks.

    Args:
      batches: from `batches.readable` of `training_batches`, with the same arguments as here.
      data_set: data whose masks are drawn while training.
      options: the seed, the number of steps and the share of tokens to mask.
      first_step: the number of updates made before.
      first_instance: the number of instances read before.
      process_id: the number of this process, from 0.
      num_processes: processes that share the instances.

    Raises:
      UserError: the data set cannot be read; see `TrainingMasks`.
    """
    schedule = schedule_of(data_set.manifest, options)
    assert schedule
    masks = TrainingMasks(data_set, options.random_seed, schedule.largest)
    position = first_instance
    for step, batch in enumerate(batches, first_step + 1):
        count = len(batch["input_ids"])
        positions = position + process_id + num_processes * np.arange(count)
        rate = schedule.at(step, options.num_train_steps)
        try:
            yield masks.draw(batch, epochs_of(data_set.manifest, positions), rate)
        except ValueError as error:
            raise UserError(
                f"cannot read the data set {data_set.directory}: a record is damaged ({error}); "
                "generate it again"
            ) from error
        position += num_processes * count


def in_background(batches: Iterator[Instances]) -> Generator[Instances]:
    """The same batches, made by a thread of its own before they are asked for.

    Close it, so that the thread ends.
    """
    ready: queue.Queue[Instances | Exception | None] = queue.Queue(_BATCHES_AHEAD)
    ended = threading.Event()

    def make() -> None:
        try:
            for batch in batches:
                ready.put(batch)
                if ended.is_set():
                    return
            ready.put(None)
        except Exception as error:  # raised where the batches are used
            ready.put(error)

    thread = threading.Thread(target=make, name="masks", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        ended.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                ready.get(timeout=0.01)  # so that the thread does not wait for room


def epochs_of(manifest: Manifest, positions: np.ndarray) -> np.ndarray:
    """How many passes training has read before it meets the instances at some positions.

    Args:
      manifest: the data set's.
      positions: int64 [N], numbers in the whole order of `batches.training_batches`.

    Returns:
      int64 [N], from 0 on.
    """
    sizes = list(pass_sizes(manifest).values())
    cycles, rest = np.divmod(positions, sum(sizes))
    return cycles * len(sizes) + np.searchsorted(list(accumulate(sizes)), rest, side="right")


def shards_of_epoch(manifest: Manifest, epoch: int) -> list[Shard]:
    """The train shards that training reads in an epoch, from 0, in the order of the manifest."""
    passes = list(pass_sizes(manifest))
    numbers = passes[epoch % len(passes) :][:1] if passes else []
    shards = manifest.shards_of("train")
    return [shard for shard in shards if shard.pass_index in numbers and shard.instances]


def pass_sizes(manifest: Manifest) -> Mapping[int, int]:
    """The train instances of each pass that has any, by its number, in the order of reading."""
    sizes: Counter[int] = Counter()
    for shard in manifest.shards_of("train"):
        sizes[shard.pass_index] += shard.instances
    return {number: sizes[number] for number in sorted(sizes) if sizes[number]}


def _instance_options(manifest: Manifest, rate: float) -> InstanceOptions:
    """The options that the data were made with, but for another share of tokens to mask.

    Raises:
      UserError: the manifest does not have them.
    """
    names = {each.name for each in fields(InstanceOptions)} - {"max_predictions_per_seq"}
    given = {name: value for name, value in manifest.options.items() if name in names}
    given |= {"max_seq_length": manifest.max_seq_length, "masked_lm_prob": rate}
    try:
        return TypeAdapter(InstanceOptions).validate_python(given)
    except UserError as error:
        raise UserError(f"the data set's manifest has an unusable option: {error}") from error
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        raise UserError(
            f"the data set's manifest has an unusable option {'.'.join(map(str, where))}: generate "
            "the data set again, with --overwrite"
        ) from error


def _within_rows(budget: np.ndarray, sizes: np.ndarray, most: int) -> np.ndarray:
    """The budgets of sequences, decreased evenly in rows that would exceed their limit.

    Sequences round their shares, so many short ones may ask for more. Each keeps at least 1.

    Args:
      budget: int64 [N], at least 1.
      sizes: int64 [M], how many sequences each row has, at most `most`.
      most: the limit of a row.
    """
    row = np.repeat(np.arange(len(sizes)), sizes)
    firsts = np.cumsum(sizes) - sizes
    more = budget - 1
    wanted = np.add.reduceat(more, firsts)
    given = np.minimum(wanted, most - sizes)[row]
    before = np.cumsum(more) - more
    before -= before[firsts][row]
    wanted = np.maximum(wanted, 1)[row]
    return 1 + (before + more) * given // wanted - before * given // wanted
