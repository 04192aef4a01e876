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
        masked, masked_by_mask, masked_kept, masked_by_random, instances_without_mask.
    """
    pairs = plan_segment_pairs(documents, options.max_seq_length, options.short_seq_prob, rng)
    statistics["chunks_without_next"] += pairs.chunks_without_next
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
    ids, word_starts = padded
    a_length, b_length = (column[rows, np.newaxis] for column in (pairs.a_length, pairs.b_length))
    # A's first token is at column 1, B's behind A and two special tokens.
    a_window = pairs.a_start[rows] + seq_length - 1
    b_window = pairs.b_start[rows] + seq_length - pairs.a_length[rows] - 2
    column = np.arange(seq_length)
    in_a = (column >= 1) & (column <= a_length)
    is_first_separator = column == a_length + 1
    in_b = (column > a_length + 1) & (column <= a_length + b_length + 1)
    is_last_separator = column == a_length + b_length + 2

    input_ids = np.where(in_a, _windows(ids, seq_length)[a_window], 0)
    np.copyto(input_ids, _windows(ids, seq_length)[b_window], where=in_b)
    input_ids[is_first_separator | is_last_separator] = vocabulary.ids["[SEP]"]
    input_ids[:, 0] = vocabulary.ids["[CLS]"]

    is_word_start = _windows(word_starts, seq_length)[a_window] & in_a
    is_word_start |= _windows(word_starts, seq_length)[b_window] & in_b
    # What truncation left of a word is a word of its own, never part of the one before a [SEP].
    is_word_start |= (column == 1) | (column == a_length + 2)

    instances = {
        "input_ids": input_ids,
        "input_mask": (column <= a_length + b_length + 2).astype(np.uint8),
        "segment_ids": (in_b | is_last_separator).astype(np.uint8),
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
    labels = input_ids[pieces.row, pieces.column]
    acts_like = None
    if options.masked_word_action == MaskedWordAction.PER_WORD:
        acts_like = first_piece_of_word(is_word_start[pieces.row, pieces.column])
    replaced, action = replace_pieces(
        labels, vocabulary.ids["[MASK]"], replacement_ids, rng, acts_like
    )
    input_ids[pieces.row, pieces.column] = replaced
    for name, dtype, values in (
        ("masked_lm_positions", np.int64, pieces.column),
        ("masked_lm_ids", np.int64, labels),
        ("masked_lm_weights", np.float32, 1.0),
    ):
        instances[name] = np.zeros((num_rows, num_slots), dtype)
        instances[name][pieces.row, pieces.slot] = values

    statistics["instances"] += num_rows
    statistics["tokens"] += int(lengths.sum())
    statistics["random_next"] += int(instances["next_sentence_labels"].sum())
    statistics["masked"] += len(labels)
    by_mask, kept, by_random = np.bincount(action, minlength=3).tolist()
    statistics["masked_by_mask"] += by_mask
    statistics["masked_kept"] += kept
    statistics["masked_by_random"] += by_random
    statistics["instances_without_mask"] += num_rows - len(np.unique(pieces.row))


def _pad(documents: DocumentBatch, seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and word starts with S more at both ends, so that every window lies inside."""
    return np.pad(documents.ids, seq_length), np.pad(documents.word_starts, seq_length)


def _windows(flat: np.ndarray, seq_length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(flat, seq_length)
