"""Plans of segment pairs to arrays of masked instances, [N, S] and [N, P]."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.corpus import DocumentBatch
from pipeline.masking import choose_masked_pieces, first_piece_of_word, num_to_mask, replace_pieces
from pipeline.options import InstanceOptions, MaskedWordAction, RandomToken
from pipeline.records import Instances
from pipeline.segment_pairs import SegmentPairs
from pipeline.vocabulary import Vocabulary

# A part of what decides the bytes, because the draws for masks are made batch by batch.
INSTANCES_PER_BATCH = 1024


@dataclass(frozen=True)
class Layout:
    """N pairs as `[CLS] A [SEP] B [SEP]` and padding, before any piece is masked; maybe without B.

    Attributes:
      input_ids: `Vocabulary.id_dtype` [N, S].
      input_mask, segment_ids: uint8 [N, S].
      is_word_start: bool [N, S], whether a word begins here.
    """

    input_ids: np.ndarray
    input_mask: np.ndarray
    segment_ids: np.ndarray
    is_word_start: np.ndarray


@dataclass(frozen=True)
class Masks:
    """The masks of N instances, and the ids that a model then reads.

    Attributes:
      input_ids: as of `Layout`, with M pieces replaced.
      positions, ids: int64 [N, P], columns of the masked pieces and their ids before.
      weights: float32 [N, P], 1.0 for a masked piece and 0.0 for an unused slot.
      actions: int64 [M], 0 for `[MASK]`, 1 for kept, 2 for a random piece.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    actions: np.ndarray


def generate_instances(
    documents: DocumentBatch,
    pairs: SegmentPairs,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
    batches: Sequence[int] | None = None,
) -> Iterator[Instances]:
    """One pass over a bucket's documents: masked instances in batches.

    Args:
      documents: the bucket's documents.
      pairs: the segments of the instances, in their order.
      vocabulary: the vocabulary of their ids.
      options: how instances are made.
      rng: the source of all draws.
      statistics: counts are added to it: instances, tokens, masked, masked_by_mask, masked_kept,
        masked_by_random, instances_without_mask.
      batches: the number of the first pair of each batch; by default, batches are of one size.
    """
    batches = range(0, len(pairs), INSTANCES_PER_BATCH) if batches is None else batches
    ordinary_only = options.random_token == RandomToken.WORDS
    replacement_ids = vocabulary.ordinary_ids() if ordinary_only else np.arange(len(vocabulary))
    windows = _windows(documents.ids, documents.word_starts, length=options.max_seq_length)
    for first, end in pairwise([*batches, len(pairs)]):
        rows = slice(first, end)
        layout = lay_out(windows, pairs, rows, vocabulary)
        masks = mask_instances(layout, vocabulary, replacement_ids, options, rng)
        instances = {
            "input_ids": masks.input_ids,
            "input_mask": layout.input_mask,
            "segment_ids": layout.segment_ids,
            "masked_lm_positions": masks.positions,
            "masked_lm_ids": masks.ids,
            "masked_lm_weights": masks.weights,
            "next_sentence_labels": pairs.labels[rows, np.newaxis].astype(np.uint8),
        }
        _count(instances, masks.actions, statistics)
        yield instances


def lay_out(
    windows: list[np.ndarray], pairs: SegmentPairs, rows: slice, vocabulary: Vocabulary
) -> Layout:
    """Puts `[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]`, in place for some of the pairs.

    Args:
      windows: the documents' ids and word starts, from `_windows`, of length S.
      pairs: all pairs of the documents.
      rows: which of them to lay out, N.
      vocabulary: gives the ids of `[CLS]`, `[SEP]` and `[PAD]`.
    """
    ids, word_starts = windows
    max_seq_length = ids.shape[1]
    # Narrow integers, because the speed of what follows is that of memory.
    column = np.arange(max_seq_length, dtype=np.int16)
    first_separator = (pairs.a_length[rows, np.newaxis] + 1).astype(np.int16)
    b_length = pairs.b_length[rows, np.newaxis]
    # Without B, the first separator is also the last one.
    last_separator = (first_separator + b_length + (b_length > 0)).astype(np.int16)
    in_a = (column > 0) & (column < first_separator)
    is_after_a, is_token = column > first_separator, column <= last_separator
    in_b = is_after_a & (column < last_separator)
    is_separator = (column == first_separator) | (column == last_separator)
    # A's first token stands in column 1, B's after the first separator.
    a_window = pairs.a_start[rows] + max_seq_length - 1
    b_window = pairs.b_start[rows] + max_seq_length - pairs.a_length[rows] - 2

    input_ids = ids[a_window] * in_a + ids[b_window] * in_b
    input_ids += is_separator * ids.dtype.type(vocabulary.ids["[SEP]"])
    input_ids += ~is_token * ids.dtype.type(vocabulary.ids["[PAD]"])
    input_ids[:, 0] = vocabulary.ids["[CLS]"]

    is_word_start = word_starts[a_window] & in_a | word_starts[b_window] & in_b
    # The rest of a truncated word is a word of its own, not part of the word before a [SEP].
    is_word_start[:, 1] = True
    is_word_start |= in_b & (column == first_separator + 1)
    input_mask, segment_ids = is_token.astype(np.uint8), (is_after_a & is_token).astype(np.uint8)
    return Layout(input_ids, input_mask, segment_ids, is_word_start)


def mask_instances(
    layout: Layout,
    vocabulary: Vocabulary,
    replacement_ids: np.ndarray,
    options: InstanceOptions,
    rng: np.random.Generator,
) -> Masks:
    """Masks N instances.

    Args:
      layout: the instances.
      vocabulary: gives the ids of `[SEP]` and `[MASK]`.
      replacement_ids: the ids that random replacements are drawn from.
      options: share and number of masked pieces, whole words or pieces.
      rng: the source of all draws.
    """
    input_ids, is_word_start = layout.input_ids.copy(), layout.is_word_start
    num_slots = options.max_predictions_per_seq
    is_special = (input_ids == vocabulary.ids["[SEP]"]) | (layout.input_mask == 0)
    is_special[:, 0] = True
    if not options.do_whole_word_mask:
        is_word_start = ~is_special

    lengths = layout.input_mask.sum(axis=1, dtype=np.int64)
    budget = num_to_mask(lengths, options.masked_lm_prob, num_slots)
    pieces = choose_masked_pieces(is_word_start, is_word_start | is_special, budget, rng)
    flat_ids = input_ids.reshape(-1)
    labels = flat_ids[pieces.position]
    begins_word = is_word_start.reshape(-1)[pieces.position]
    begins_word |= options.masked_word_action == MaskedWordAction.PER_PIECE
    acts_like = first_piece_of_word(pieces.position, begins_word)
    flat_ids[pieces.position], actions = replace_pieces(
        labels, vocabulary.ids["[MASK]"], replacement_ids, rng, acts_like
    )
    is_used = np.arange(num_slots) < pieces.num_of_row[:, np.newaxis]
    positions, ids = np.zeros((2, *is_used.shape), np.int64)
    positions[is_used], ids[is_used] = pieces.column, labels
    return Masks(input_ids, positions, ids, is_used.astype(np.float32), actions)


def _windows(*arrays: np.ndarray, length: int) -> list[np.ndarray]:
    """All windows of a length in arrays [T], in row `length` + n the one that begins at n.

    The arrays are padded with `length` more at both ends, so that every window lies inside.
    """
    return [sliding_window_view(np.pad(flat, length), length) for flat in arrays]


def _count(instances: Instances, actions: np.ndarray, statistics: Counter[str]) -> None:
    by_action = np.bincount(actions, minlength=3).tolist()
    names = ("masked_by_mask", "masked_kept", "masked_by_random")
    statistics.update(dict(zip(names, by_action, strict=True)))
    statistics.update(
        instances=len(instances["input_ids"]),
        tokens=int(instances["input_mask"].sum(dtype=np.int64)),
        masked=len(actions),
        instances_without_mask=int((instances["masked_lm_weights"].max(axis=1) == 0).sum()),
    )
