"""Sequences put into packed rows, and taken out of them again."""

from collections import Counter

import numpy as np

from pipeline.records import Instances, RowLimits


def sequence_lengths(input_mask: np.ndarray) -> np.ndarray:
    """The lengths of all sequences of rows [M, R], in the order of the rows."""
    most = int(input_mask.max(initial=1))
    if most == 1:
        return input_mask.sum(axis=1, dtype=np.int64)
    numbers = input_mask + np.arange(len(input_mask))[:, np.newaxis] * (most + 1)
    lengths = np.bincount(numbers.ravel(), minlength=len(input_mask) * (most + 1))
    lengths = lengths.reshape(len(input_mask), most + 1)[:, 1:]
    return lengths[lengths > 0]


def count_rows(num_rows: int, instances: Instances, statistics: Counter[str]) -> None:
    """Makes of counts of sequences those of M rows.

    Args:
      num_rows: M.
      instances: their N sequences, each as an instance of its own.
      statistics: N instances become M; N is added to `sequences`, and to `attended_pairs` the pairs
        of tokens of the same sequence.
    """
    lengths = instances["input_mask"].sum(axis=1, dtype=np.int64)
    statistics.update(
        instances=num_rows - len(lengths),
        sequences=len(lengths),
        attended_pairs=int((lengths**2).sum()),
    )


def pack(instances: Instances, sizes: np.ndarray, limits: RowLimits, padding_id: int) -> Instances:
    """Puts N instances of one sequence each into M rows.

    In the rows, `input_mask` is the number of the sequence from 1 on, and 0 for padding;
    `masked_lm_positions` are places in the row. Instances have masks, or `word_starts`.

    Args:
      instances: arrays [N, …] from `generate_instances`, in the order of the rows.
      sizes: int64 [M], how many of them each row has.
      limits: the limits of a row.
      padding_id: the id of `[PAD]`.
    """
    row, number = _rows_and_numbers(sizes)
    is_token = instances["input_mask"] > 0
    starts, to_tokens = _places(is_token, sizes, limits.tokens)
    labels = np.zeros((len(sizes), limits.sequences), np.uint8)
    labels[row, number - 1] = instances["next_sentence_labels"][:, 0]

    def rows_of(values: np.ndarray, to: np.ndarray, length: int, unused: int = 0) -> np.ndarray:
        flat = np.full(len(sizes) * length, unused, values.dtype)
        flat[to] = values
        return flat.reshape(len(sizes), length)

    def of_tokens(values: np.ndarray, unused: int = 0) -> np.ndarray:
        return rows_of(values[is_token], to_tokens, limits.tokens, unused)

    numbers = np.broadcast_to(number.astype(np.int16)[:, np.newaxis], is_token.shape)
    rows = {
        "input_ids": of_tokens(instances["input_ids"], padding_id),
        "input_mask": of_tokens(numbers),
        "segment_ids": of_tokens(instances["segment_ids"]),
        "next_sentence_labels": labels,
    }
    if "word_starts" in instances:
        return rows | {"word_starts": of_tokens(instances["word_starts"])}

    is_masked = instances["masked_lm_weights"] > 0
    _, to_slots = _places(is_masked, sizes, limits.predictions)

    def of_slots(values: np.ndarray) -> np.ndarray:
        return rows_of(values[is_masked], to_slots, limits.predictions)

    return rows | {
        "masked_lm_positions": of_slots(instances["masked_lm_positions"] + starts[:, np.newaxis]),
        "masked_lm_ids": of_slots(instances["masked_lm_ids"]),
        "masked_lm_weights": of_slots(instances["masked_lm_weights"]),
    }


def unpack(rows: Instances, length: int | None = None) -> Instances:
    """The N sequences of M rows, each as an instance of its own with padding.

    Args:
      rows: arrays [M, …].
      length: that of the instances, at least that of the longest sequence, which is the default.

    Raises:
      ValueError: the rows are not sequences one after the other, then padding.
    """
    numbers = rows["input_mask"]
    sizes = numbers.max(axis=1)
    wrong = ValueError("its input_mask are not 1, 2, … for its sequences, then 0 for padding")
    lengths = sequence_lengths(numbers)
    if not sizes.all() or len(lengths) != sizes.sum():
        raise wrong
    row, number = _rows_and_numbers(sizes)
    is_token = np.arange(numbers.shape[1]) < (numbers > 0).sum(axis=1)[:, np.newaxis]
    as_it_should_be = np.zeros_like(numbers)
    as_it_should_be[is_token] = np.repeat(number, lengths)
    if (numbers != as_it_should_be).any():
        raise wrong

    def padded(values: np.ndarray, counts: np.ndarray, length: int | None = None) -> np.ndarray:
        is_used = np.arange(length or max(counts.max(), 1)) < counts[:, np.newaxis]
        array = np.zeros(is_used.shape, values.dtype)
        array[is_used] = values
        return array

    instances = {
        "input_ids": padded(rows["input_ids"][is_token], lengths, length),
        "input_mask": padded(np.ones(is_token.sum(), np.int64), lengths, length),
        "segment_ids": padded(rows["segment_ids"][is_token], lengths, length),
        "next_sentence_labels": rows["next_sentence_labels"][row, number - 1, np.newaxis],
    }
    if "word_starts" in rows:
        return instances | {"word_starts": padded(rows["word_starts"][is_token], lengths, length)}

    is_real = rows["masked_lm_weights"] > 0
    row_of_mask, slot = np.nonzero(is_real)
    position = rows["masked_lm_positions"][row_of_mask, slot]
    if not is_token[row_of_mask, position].all():
        raise ValueError("its masked_lm_positions are beyond its tokens")
    first_of_row = np.cumsum(sizes) - sizes
    sequence = first_of_row[row_of_mask] + numbers[row_of_mask, position] - 1
    by_sequence = np.argsort(sequence, kind="stable")
    masks = np.bincount(sequence, minlength=len(row))

    def of_masks(values: np.ndarray) -> np.ndarray:
        return padded(values[by_sequence], masks)

    return instances | {
        "masked_lm_positions": of_masks(position - _starts(lengths, sizes)[sequence]),
        "masked_lm_ids": of_masks(rows["masked_lm_ids"][is_real]),
        "masked_lm_weights": of_masks(rows["masked_lm_weights"][is_real]),
    }


def _places(is_used: np.ndarray, sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the used values of N instances stand in M rows of a length.

    Args:
      is_used: bool [N, L].
      sizes: int64 [M], how many instances each row has.
      length: of a row.

    Returns:
      int64 [N], where in its row each instance begins; int64 [used values], the place of each value
      in all rows, one after the other.
    """
    counts = is_used.sum(axis=1)
    starts, (row, _) = _starts(counts, sizes), _rows_and_numbers(sizes)
    before = np.cumsum(counts) - counts
    return starts, np.repeat(row * length + starts - before, counts) + np.arange(counts.sum())


def _starts(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Int64 [N], where in its row each instance begins, if it takes so many places, int64 [N]."""
    before = np.cumsum(counts) - counts
    return before - np.repeat(before[np.cumsum(sizes) - sizes], sizes)


def _rows_and_numbers(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two int64 [N]: the row of each instance, from 0, and its number in the row, from 1."""
    row = np.repeat(np.arange(len(sizes)), sizes)
    return row, _starts(np.ones_like(row), sizes) + 1
