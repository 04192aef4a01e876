"""Plans of segment pairs to arrays of masked instances, [N, S] and [N, P]."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, starmap

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.corpus import DocumentBatch
from pipeline.draws import Draws, generator_draws
from pipeline.masking import Take, choose_masked_pieces, num_to_mask, replace_pieces, take_words
from pipeline.options import InstanceOptions, MaskedWordAction, Masking, RandomToken
from pipeline.records import Instances
from pipeline.segment_pairs import SegmentPairs
from pipeline.vocabulary import Vocabulary

# A part of what decides the bytes, because the draws for masks are made batch by batch.
INSTANCES_PER_BATCH = 1024


def generate_instances(
    documents: DocumentBatch,
    pairs: SegmentPairs,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
    batches: Sequence[int] | None = None,
    take: Take = take_words,
) -> Iterator[Instances]:
    """One pass over a bucket's documents: masked instances in batches.

    With `Masking.TRAINING` they have no masks, but `word_starts`, bool [N, S].

    Args:
      documents: the bucket's documents.
      pairs: the segments of the instances, in their order.
      vocabulary: the vocabulary of their ids.
      options: how instances are made.
      rng: the source of all draws.
      statistics: counts are added to it: instances, tokens, masked, masked_by_mask, masked_kept,
        masked_by_random, instances_without_mask.
      batches: the number of the first pair of each batch; by default, batches are of one size.
      take: takes single words, or n-grams, to mask.
    """
    batches = range(0, len(pairs), INSTANCES_PER_BATCH) if batches is None else batches
    windows = _windows(documents.ids, documents.word_starts, length=options.max_seq_length)
    for rows in starmap(slice, pairwise([*batches, len(pairs)])):
        instances = lay_out(windows, pairs, rows, vocabulary)
        instances["next_sentence_labels"] = pairs.labels[rows, np.newaxis].astype(np.uint8)
        lengths = instances["input_mask"].sum(axis=1, dtype=np.int64)
        statistics.update(instances=len(lengths), tokens=int(lengths.sum()))
        if options.masking == Masking.STORED:
            budget = num_to_mask(lengths, options.masked_lm_prob, options.max_predictions_per_seq)
            draws = generator_draws(rng)
            actions = mask_instances(instances, budget, vocabulary, options, draws, take)
            _count_masks(instances["masked_lm_weights"], actions, statistics)
        yield instances


def lay_out(
    windows: list[np.ndarray], pairs: SegmentPairs, rows: slice, vocabulary: Vocabulary
) -> Instances:
    """Puts `[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]`, in place for some of the pairs.

    Args:
      windows: the documents' ids and word starts, from `_windows`, of length S.
      pairs: all pairs of the documents.
      rows: which of them to lay out, N.
      vocabulary: gives the ids of `[CLS]`, `[SEP]` and `[PAD]`.

    Returns:
      Arrays [N, S]: `input_ids` before any piece is masked, of `Vocabulary.id_dtype`; `input_mask`
      and `segment_ids`, uint8; and `word_starts`, bool, whether a word begins here.
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
    return {
        "input_ids": input_ids,
        "input_mask": is_token.astype(np.uint8),
        "segment_ids": (is_after_a & is_token).astype(np.uint8),
        "word_starts": is_word_start,
    }


def mask_instances(
    instances: Instances,
    budget: np.ndarray,
    vocabulary: Vocabulary,
    options: InstanceOptions,
    draws: Draws,
    take: Take = take_words,
) -> np.ndarray:
    """Masks N instances in place: replaces pieces, and puts the masks where `word_starts` were.

    Args:
      instances: the arrays of `lay_out`, and others.
      budget: int64 [N], the largest number of pieces to mask, at most P.
      vocabulary: gives the ids of `[SEP]` and `[MASK]`, and of random pieces.
      options: P, and how pieces are chosen and replaced.
      draws: the source of all random numbers.
      take: takes single words, or n-grams.

    Returns:
      What became of the M masked pieces, int64 [M]: 0 for `[MASK]`, 1 for kept, 2 for random.
    """
    input_ids, is_word_start = instances["input_ids"], instances.pop("word_starts")
    is_special = (input_ids == vocabulary.ids["[SEP]"]) | (instances["input_mask"] == 0)
    is_special[:, 0] = True
    if not options.do_whole_word_mask:
        is_word_start = ~is_special

    pieces = choose_masked_pieces(is_word_start, is_word_start | is_special, budget, draws, take)
    flat_ids = input_ids.reshape(-1)
    labels = flat_ids[pieces.position]
    is_first = pieces.begins | (options.masked_word_action == MaskedWordAction.PER_PIECE)
    acts_like = np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))
    ordinary_only = options.random_token == RandomToken.WORDS
    replacement_ids = vocabulary.ordinary_ids if ordinary_only else np.arange(len(vocabulary))
    flat_ids[pieces.position], actions = replace_pieces(
        labels, vocabulary.ids["[MASK]"], replacement_ids, draws, pieces.position, acts_like
    )
    is_used = np.arange(options.max_predictions_per_seq) < pieces.num_of_row[:, np.newaxis]
    positions, ids = np.zeros((2, *is_used.shape), np.int64)
    positions[is_used], ids[is_used] = pieces.column, labels
    instances |= {
        "masked_lm_positions": positions,
        "masked_lm_ids": ids,
        "masked_lm_weights": is_used.astype(np.float32),
    }
    return actions


def _windows(*arrays: np.ndarray, length: int) -> list[np.ndarray]:
    """All windows of a length in arrays [T], in row `length` + n the one that begins at n.

    The arrays are padded with `length` more at both ends, so that every window lies inside.
    """
    return [sliding_window_view(np.pad(flat, length), length) for flat in arrays]


def _count_masks(weights: np.ndarray, actions: np.ndarray, statistics: Counter[str]) -> None:
    names = ("masked_by_mask", "masked_kept", "masked_by_random")
    statistics.update(dict(zip(names, np.bincount(actions, minlength=3).tolist(), strict=True)))
    statistics["masked"] += len(actions)
    statistics["instances_without_mask"] += int((weights.max(axis=1) == 0).sum())
