"""Plans of segment pairs to arrays of masked instances, [N, S] and [N, P]."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.corpus import DocumentBatch
from pipeline.masking import choose_masked_pieces, first_piece_of_word, num_to_mask, replace_pieces
from pipeline.options import InstanceOptions, MaskedWordAction, RandomToken
from pipeline.segment_pairs import SegmentPairs, plan_segment_pairs
from pipeline.tokenization import Vocabulary

Instances = dict[str, np.ndarray]
"""A batch of instances under the seven names of `records.instance_features`."""

# Part of what decides the bytes: the draws for masks are made batch by batch.
_INSTANCES_PER_BATCH = 1024


def generate_instances(
    documents: DocumentBatch,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
) -> Iterator[Instances]:
    """One pass over a bucket's documents: shuffled, masked instances in batches.

    Args:
      documents: the bucket.
      vocabulary: that of the documents' ids.
      options: how instances are made.
      rng: the source of all draws.
      statistics: counts are added to it: instances, tokens, random_next, chunks_without_next,
        tokens_truncated, masked, masked_by_mask, masked_kept, masked_by_random, instances_without_mask.
    """
    pairs = plan_segment_pairs(documents, options.max_seq_length, options.short_seq_prob, rng)
    statistics["chunks_without_next"] += pairs.chunks_without_next
    statistics["tokens_truncated"] += pairs.tokens_truncated
    ordinary_only = options.random_token == RandomToken.WORDS
    replacement_ids = vocabulary.ordinary_ids() if ordinary_only else np.arange(len(vocabulary))
    padded = _pad(documents, options.max_seq_length)
    for first in range(0, len(pairs), _INSTANCES_PER_BATCH):
        rows = slice(first, first + _INSTANCES_PER_BATCH)
        instances, is_word_start = lay_out(padded, pairs, rows, vocabulary, options.max_seq_length)
        mask_instances(
            instances, is_word_start, vocabulary, replacement_ids, options, rng, statistics
        )
        yield instances


def lay_out(
    padded: tuple[np.ndarray, np.ndarray],
    pairs: SegmentPairs,
    rows: slice,
    vocabulary: Vocabulary,
    seq_length: int,
) -> tuple[Instances, np.ndarray]:
    """Puts `[CLS] A [SEP] B [SEP]` and padding in place for some of the pairs.

    Args:
      padded: the documents' ids and word starts, as `_pad` gives them.
      pairs: all pairs of the documents.
      rows: which of them to lay out, N.
      vocabulary: knows `[CLS]` and `[SEP]`.
      seq_length: S.

    Returns:
      `input_ids`, `input_mask`, `segment_ids`, each [N, S], and `next_sentence_labels` [N, 1]; and
      bool [N, S], where a word begins.
    """
    ids, word_starts = (_windows(flat, seq_length) for flat in padded)
    # Columns as narrow integers: what follows is bound by the memory it touches.
    column = np.arange(seq_length, dtype=np.int16)
    first_separator = (pairs.a_length[rows, np.newaxis] + 1).astype(np.int16)
    last_separator = (first_separator + pairs.b_length[rows, np.newaxis] + 1).astype(np.int16)
    in_a = (column > 0) & (column < first_separator)
    in_b = (column > first_separator) & (column < last_separator)
    is_separator = (column == first_separator) | (column == last_separator)
    # A's first token is at column 1, B's behind the first separator.
    a_window = pairs.a_start[rows] + seq_length - 1
    b_window = pairs.b_start[rows] + seq_length - pairs.a_length[rows] - 2

    input_ids = ids[a_window] * in_a + ids[b_window] * in_b
    input_ids += is_separator * ids.dtype.type(vocabulary.ids["[SEP]"])
    input_ids[:, 0] = vocabulary.ids["[CLS]"]

    is_word_start = word_starts[a_window] & in_a | word_starts[b_window] & in_b
    # What truncation left of a word is a word of its own, never part of the one before a [SEP].
    is_word_start[:, 1] = True
    is_word_start |= column == first_separator + 1

    instances = {
        "input_ids": input_ids,
        "input_mask": (column <= last_separator).astype(np.uint8),
        "segment_ids": (in_b | (column == last_separator)).astype(np.uint8),
        "next_sentence_labels": pairs.is_random_next[rows, np.newaxis].astype(np.uint8),
    }
    return instances, is_word_start


def mask_instances(
    instances: Instances,
    is_word_start: np.ndarray,
    vocabulary: Vocabulary,
    replacement_ids: np.ndarray,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
) -> None:
    """Masks `input_ids` in place and adds the three `masked_lm_…` arrays, each [N, P]."""
    input_ids, input_mask = instances["input_ids"], instances["input_mask"]
    num_rows, num_slots = len(input_ids), options.max_predictions_per_seq
    lengths = input_mask.sum(axis=1, dtype=np.int64)
    separator = vocabulary.ids["[SEP]"]
    is_special = (input_ids == separator) | (input_mask == 0)
    is_special[:, 0] = True
    if not options.do_whole_word_mask:
        is_word_start = ~is_special

    pieces = choose_masked_pieces(
        is_word_start,
        is_word_start | is_special,
        num_to_mask(lengths, options.masked_lm_prob, num_slots),
        rng,
    )
    flat_ids = input_ids.reshape(-1)
    labels = flat_ids[pieces.position]
    acts_like = None
    if options.masked_word_action == MaskedWordAction.PER_WORD:
        acts_like = first_piece_of_word(is_word_start.reshape(-1)[pieces.position])
    flat_ids[pieces.position], action = replace_pieces(
        labels, vocabulary.ids["[MASK]"], replacement_ids, rng, acts_like
    )
    is_used = np.arange(num_slots) < pieces.num_of_row[:, np.newaxis]
    for name, dtype, values in (
        ("masked_lm_positions", np.int64, pieces.column),
        ("masked_lm_ids", np.int64, labels),
        ("masked_lm_weights", np.float32, 1.0),
    ):
        instances[name] = np.zeros((num_rows, num_slots), dtype)
        instances[name][is_used] = values

    statistics["instances"] += num_rows
    statistics["tokens"] += int(lengths.sum())
    statistics["random_next"] += int(instances["next_sentence_labels"].sum())
    statistics["masked"] += len(labels)
    by_mask, kept, by_random = np.bincount(action, minlength=3).tolist()
    statistics["masked_by_mask"] += by_mask
    statistics["masked_kept"] += kept
    statistics["masked_by_random"] += by_random
    statistics["instances_without_mask"] += int(np.count_nonzero(pieces.num_of_row == 0))


def _pad(documents: DocumentBatch, seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and word starts with S more at both ends, so that every window lies inside."""
    return np.pad(documents.ids, seq_length), np.pad(documents.word_starts, seq_length)


def _windows(flat: np.ndarray, seq_length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(flat, seq_length)
