"""Short sequences packed into rows, so that training spends next to nothing on padding.

Sequences are packed by best fit, the longest first: each goes into the row with the least space
that is enough. Rows with sequences of the same lengths are one pattern with a count, so the work
grows with the number of patterns, not of sequences. For example, rows of 10 tokens::

    lengths   6 6 4 3 3 2
    rows      6 4 | 6 3 | 3 2

The method is from Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021
(https://arxiv.org/abs/2107.02027).
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.corpus import DocumentBatch
from pipeline.instances import INSTANCES_PER_BATCH, generate_instances
from pipeline.masking import Take, num_to_mask
from pipeline.options import InstanceOptions
from pipeline.records import Instances, RowLimits
from pipeline.rows import count_rows, pack
from pipeline.segment_pairs import SegmentPairs
from pipeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class Rows:
    """N sequences in M rows.

    Attributes:
      order: int64 [N], the numbers of the sequences, row by row.
      sizes: int64 [M], how many sequences each row has, at least 1.
    """

    order: np.ndarray
    sizes: np.ndarray


def generate_rows(
    documents: DocumentBatch,
    pairs: SegmentPairs,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
    take: Take,
) -> Iterator[Instances]:
    """As `instances.generate_instances`, but the instances are rows of several sequences.

    Args:
      documents: as there.
      pairs: as there, but the rows have another order.
      vocabulary: as there.
      options: as there.
      rng: as there.
      statistics: as there, but `instances` counts rows. `sequences` counts their sequences, and
        `attended_pairs` the pairs of tokens of the same sequence.
      take: as there.
    """
    limits, lengths = options.limits_of_rows, pairs.lengths
    predictions = num_to_mask(lengths, options.masked_lm_prob, options.max_predictions_per_seq)
    rows = plan_rows(lengths, predictions, limits, rng)
    pairs = pairs.in_order(rows.order)
    # A batch has whole rows: those whose last sequences are in the same thousand or so.
    ends = np.cumsum(rows.sizes)
    first_rows = np.flatnonzero(np.diff((ends - 1) // INSTANCES_PER_BATCH, prepend=-1))
    firsts = (ends - rows.sizes)[first_rows].tolist()
    batches = generate_instances(
        documents, pairs, vocabulary, options, rng, statistics, firsts, take
    )
    for instances, sizes in zip(batches, np.split(rows.sizes, first_rows)[1:], strict=True):
        count_rows(len(sizes), instances, statistics)
        yield pack(instances, sizes, limits, vocabulary.ids["[PAD]"])


@dataclass
class _Pattern:
    """Rows that hold sequences of the same lengths.

    Attributes:
      rows: how many there are.
      lengths: the lengths of each row's sequences.
      room: what is left of the row's limits.
    """

    rows: int
    lengths: list[int]
    room: RowLimits

    def copies(self, length: int, predictions: int) -> int:
        """How many more sequences of a length fit into each row."""
        room = self.room
        return min(room.tokens // length, room.predictions // predictions, room.sequences)

    def with_more(self, rows: int, length: int, predictions: int, copies: int) -> "_Pattern":
        """Some of the rows, with more sequences of a length in each."""
        room = RowLimits(
            self.room.tokens - copies * length,
            self.room.predictions - copies * predictions,
            self.room.sequences - copies,
        )
        return _Pattern(rows, [*self.lengths, *[length] * copies], room)


def plan_rows(
    lengths: np.ndarray, predictions: np.ndarray, limits: RowLimits, rng: np.random.Generator
) -> Rows:
    """Packs N sequences into rows, which come in random order.

    Args:
      lengths: int64 [N], tokens of each sequence, at most those of a row.
      predictions: int64 [N], the most masked pieces of each, at least 1 and at most those of a row.
        They follow from the length.
      limits: the limits of a row.
      rng: draws the order of the rows.
    """
    predictions_of_length = np.zeros(limits.tokens + 1, np.int64)
    predictions_of_length[lengths] = predictions
    counts = np.bincount(lengths, minlength=limits.tokens + 1)
    patterns = _best_fit(counts.tolist(), predictions_of_length.tolist(), limits)

    by_length = np.argsort(lengths, kind="stable")
    next_of_length = np.cumsum(counts) - counts
    order, sizes = [], []
    for pattern in patterns:
        columns = []
        for length in pattern.lengths:
            first = next_of_length[length]
            next_of_length[length] = first + pattern.rows
            columns.append(by_length[first : first + pattern.rows])
        order.append(np.stack(columns, axis=1).ravel())
        sizes.append(np.full(pattern.rows, len(pattern.lengths)))
    if not order:
        return Rows(np.zeros(0, np.int64), np.zeros(0, np.int64))
    all_sizes = np.concatenate(sizes)
    shuffled = rng.permutation(len(all_sizes))
    rank = np.empty_like(shuffled)
    rank[shuffled] = np.arange(len(shuffled))
    by_rank = np.argsort(np.repeat(rank, all_sizes), kind="stable")
    return Rows(np.concatenate(order)[by_rank], all_sizes[shuffled])


def _best_fit(counts: list[int], predictions: list[int], limits: RowLimits) -> list[_Pattern]:
    """All rows, as patterns.

    Args:
      counts: the number of sequences of each length.
      predictions: the most masked pieces of a sequence of each length.
      limits: the limits of a row.
    """
    patterns: list[_Pattern] = []
    by_space: list[tuple[int, int]] = []  # the space left in a pattern's rows, and its number
    for length in range(len(counts) - 1, 0, -1):
        left, needed = counts[length], predictions[length]
        while left:
            place = bisect_left(by_space, (length, 0))
            # Rows that have space, but no room for another sequence or its masks, are passed by.
            while place < len(by_space) and not patterns[by_space[place][1]].copies(length, needed):
                place += 1
            if place < len(by_space):
                pattern = patterns[by_space[place][1]]
            else:
                pattern = _Pattern(left, [], limits)
            copies = min(pattern.copies(length, needed), left)
            rows = min(pattern.rows, left // copies)
            left -= rows * copies
            pattern.rows -= rows
            if not pattern.rows and place < len(by_space):
                del by_space[place]
            filled = pattern.with_more(rows, length, needed, copies)
            if filled.room.sequences and filled.room.predictions:
                insort(by_space, (filled.room.tokens, len(patterns)))
            patterns.append(filled)
    return [pattern for pattern in patterns if pattern.rows]
