"""The segments of instances, as `--sentence_pairs` wants them: next sentences, order, or no pairs.

`segment_pairs` plans next sentences, which are the original's. The others use text of one document
alone, and each of its sentences once:

- Sentence order is ALBERT's (Lan et al., 2019, https://arxiv.org/abs/1909.11942): A and B follow
  each other, or are swapped. ALBERT's script pairs a single sentence with one of another document,
  which is no question of order. Here no sentence is left alone, unless it is its whole document.
- Without pairs, whole sentences fill an instance.

For example, a document of sentences s0 to s4 with 4 tokens each, and a target of 13 tokens::

    order   s0 s1 s2   A = s0, B = s1 s2; without s3, so that s4 is not alone
            s3 s4      A = s4, B = s3: swapped
    none    s0 s1 s2   a fourth sentence would not fit
            s3 s4
"""

from bisect import bisect_left, bisect_right
from collections import Counter

import numpy as np

from pipeline.corpus import DocumentBatch
from pipeline.options import InstanceOptions
from pipeline.segment_pairs import (
    SPECIAL_TOKENS_PER_PAIR,
    SegmentPairs,
    plan_segment_pairs,
    target_lengths,
)
from pipeline.sentence_pairs import SentencePairs

SPECIAL_TOKENS_OF_ONE_SEGMENT = 2


def plan_pairs(
    documents: DocumentBatch,
    options: InstanceOptions,
    rng: np.random.Generator,
    statistics: Counter[str],
) -> SegmentPairs:
    """Plans one pass over the documents; the instances are in random order.

    Args:
      documents: the documents of a bucket.
      options: which pairs, and how long.
      rng: the source of all draws.
      statistics: counts are added to it: chunks_without_next, tokens_truncated, and random_next or
        swapped, if there are such pairs.
    """
    plan, counted = {
        SentencePairs.NEXT: (plan_segment_pairs, "random_next"),
        SentencePairs.ORDER: (plan_ordered_segments, "swapped"),
        SentencePairs.NONE: (plan_single_segments, None),
    }[options.sentence_pairs]
    pairs = plan(documents, options.max_seq_length, options.short_seq_prob, rng)
    statistics["chunks_without_next"] += pairs.chunks_without_next
    statistics["tokens_truncated"] += pairs.tokens_truncated
    if counted:
        statistics[counted] += int(pairs.labels.sum())
    return pairs


def plan_ordered_segments(
    documents: DocumentBatch, max_seq_length: int, short_seq_prob: float, rng: np.random.Generator
) -> SegmentPairs:
    """Plans pairs of segments that follow each other, half of them swapped.

    A document of a single sentence has no pair; it counts as a dropped chunk.

    Args:
      documents: the documents.
      max_seq_length: S; a pair has at most S - 3 tokens.
      short_seq_prob: the share of documents whose pairs aim at a length drawn from [2, S - 3].
      rng: the source of all draws.
    """
    max_tokens = max_seq_length - SPECIAL_TOKENS_PER_PAIR
    targets = target_lengths(len(documents.document_ends), max_tokens, short_seq_prob, rng)
    a_share = rng.random(len(documents.sentence_ends)).tolist()
    sentence_ends = documents.sentence_ends.tolist()
    chunks: list[int] = []  # three numbers a chunk: its first sentence, and where A and B end
    dropped = first = 0
    for target, document_end in zip(
        targets.tolist(), documents.document_ends.tolist(), strict=True
    ):
        if document_end - first == 1:
            dropped += 1
            first = document_end
        while first < document_end:
            token = sentence_ends[first - 1] if first else 0
            end = bisect_left(sentence_ends, token + target, first, document_end - 1) + 1
            end = max(end, first + 2)
            if document_end - end == 1:  # the last sentence would be alone
                end += -1 if end - first > 2 else 1
            chunks += (first, first + 1 + int(a_share[first] * (end - first - 1)), end)
            first = end
    starts = np.concatenate([[0], documents.sentence_ends])
    start, middle, end = starts[np.array(chunks, np.int64).reshape(-1, 3).T]
    swapped = rng.random(len(start)) < 0.5
    pairs = SegmentPairs(
        a_start=np.where(swapped, middle, start),
        a_length=np.where(swapped, end - middle, middle - start),
        b_start=np.where(swapped, start, middle),
        b_length=np.where(swapped, middle - start, end - middle),
        labels=swapped,
        chunks_without_next=dropped,
    )
    return pairs.truncated(max_tokens, rng).shuffled(rng)


def plan_single_segments(
    documents: DocumentBatch, max_seq_length: int, short_seq_prob: float, rng: np.random.Generator
) -> SegmentPairs:
    """Plans instances of one segment: as many whole sentences of a document as fit, in a row.

    Args:
      documents: the documents.
      max_seq_length: S; a segment has at most S - 2 tokens. Of a longer sentence, the rest is cut.
      short_seq_prob: the share of documents whose segments aim at a length drawn from [2, S - 2].
      rng: the source of all draws.
    """
    max_tokens = max_seq_length - SPECIAL_TOKENS_OF_ONE_SEGMENT
    targets = target_lengths(len(documents.document_ends), max_tokens, short_seq_prob, rng)
    sentence_ends = documents.sentence_ends.tolist()
    boundaries = [0]  # in tokens
    first = 0
    for target, document_end in zip(
        targets.tolist(), documents.document_ends.tolist(), strict=True
    ):
        while first < document_end:
            fits = bisect_right(sentence_ends, boundaries[-1] + target, first, document_end)
            first = max(fits, first + 1)
            boundaries.append(sentence_ends[first - 1])
    starts, lengths = np.array(boundaries[:-1], np.int64), np.diff(boundaries)
    nothing = np.zeros_like(starts)
    pairs = SegmentPairs(starts, lengths, starts, nothing, nothing.astype(bool))
    return pairs.truncated(max_tokens, rng).shuffled(rng)
