"""Documents to plans of `[CLS] A [SEP] B [SEP]`: where A and B begin and how long they are.

The rules are the original's (create_pretraining_data.py), without two of its faults. Text of A's
own document is never a random B, even if there is no other document. A chunk that then has no B is
dropped and counted. Only the walk over a document's sentences is sequential; everything else is
drawn for all pairs at once.

For example, a document of sentences s0 to s4 with 4 tokens each, and a target of 10 tokens::

    chunk s0 s1 s2   A ends after s0, B follows:  A = s0, B = s1 s2; the next chunk begins at s3
    chunk s3 s4      A ends after s3, B random:   A = s3, B from elsewhere; s4 is still unused
    chunk s4         a single sentence is all A:  A = s4, B from elsewhere
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np

from pipeline.corpus import DocumentBatch

SPECIAL_TOKENS_PER_PAIR = 3
_BITS_PER_DRAW = 64


@dataclass(frozen=True)
class SegmentPairs:
    """N pairs of segments, as spans of a `DocumentBatch`'s tokens.

    Attributes:
      a_start, a_length, b_start, b_length: int64 [N], in tokens; lengths are at least 1, but 0 of B
        where instances have no B.
      labels: bool [N], what is to be told of B, see `SentencePairs`; False where B follows
        A, and where there is no B.
      chunks_without_next: the number of chunks that were dropped, because they had no next sentence
        and B was not to be, or could not be, from another document.
      tokens_truncated: the number of tokens that did not fit.
    """

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    labels: np.ndarray
    chunks_without_next: int = 0
    tokens_truncated: int = 0

    def __len__(self) -> int:
        return len(self.a_start)

    @property
    def lengths(self) -> np.ndarray:
        """Int64 [N], the tokens of each instance, with `[CLS]` and each `[SEP]`."""
        return self.a_length + self.b_length + SPECIAL_TOKENS_PER_PAIR - (self.b_length == 0)

    def in_order(self, order: np.ndarray) -> "SegmentPairs":
        """The same pairs in the order of their numbers, int64 [N]."""
        spans = ("a_start", "a_length", "b_start", "b_length", "labels")
        return replace(self, **{name: getattr(self, name)[order] for name in spans})

    def truncated(self, max_tokens: int, rng: np.random.Generator) -> "SegmentPairs":
        """The same pairs with at most so many tokens each; those that are removed are counted."""
        a_removed, b_removed = _tokens_to_remove(self.a_length, self.b_length, max_tokens)
        return replace(
            self,
            a_start=self.a_start + _count_heads(a_removed, rng),
            a_length=self.a_length - a_removed,
            b_start=self.b_start + _count_heads(b_removed, rng),
            b_length=self.b_length - b_removed,
            tokens_truncated=int(a_removed.sum() + b_removed.sum()),
        )

    def shuffled(self, rng: np.random.Generator) -> "SegmentPairs":
        """The same pairs in random order."""
        return self.in_order(np.argsort(rng.random(len(self)), kind="stable"))


@dataclass(frozen=True)
class _Chunks:
    """Runs of sentences that fill an instance: int64 [N]. B begins where A ends, or elsewhere."""

    document: np.ndarray
    first_sentence: np.ndarray
    a_end_sentence: np.ndarray
    end_sentence: np.ndarray
    target_length: np.ndarray
    is_random_next: np.ndarray
    dropped: int


def plan_segment_pairs(
    documents: DocumentBatch, max_seq_length: int, short_seq_prob: float, rng: np.random.Generator
) -> SegmentPairs:
    """Plans one pass over the documents; the pairs are in random order.

    Args:
      documents: the documents to pair with each other.
      max_seq_length: S; a pair has at most S - 3 tokens.
      short_seq_prob: the share of documents whose pairs aim at a length drawn from [2, S - 3].
      rng: the source of all draws.
    """
    max_tokens = max_seq_length - SPECIAL_TOKENS_PER_PAIR
    chunks = _plan_chunks(documents, max_tokens, short_seq_prob, rng)
    sentence_starts = np.concatenate([[0], documents.sentence_ends])

    a_start = sentence_starts[chunks.first_sentence]
    a_length = sentence_starts[chunks.a_end_sentence] - a_start
    b_start = sentence_starts[chunks.a_end_sentence]
    b_length = sentence_starts[chunks.end_sentence] - b_start
    labels = chunks.is_random_next
    random = np.flatnonzero(labels)
    b_start[random], b_length[random] = _draw_random_segments(
        documents, chunks.document[random], chunks.target_length[random] - a_length[random], rng
    )
    pairs = SegmentPairs(a_start, a_length, b_start, b_length, labels, chunks.dropped)
    return pairs.truncated(max_tokens, rng).shuffled(rng)


def target_lengths(
    num_documents: int, max_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> np.ndarray:
    """The tokens that the segments of each document aim at, int64 [documents]."""
    is_short = rng.random(num_documents) < short_seq_prob
    return np.where(is_short, rng.integers(2, max_tokens + 1, num_documents), max_tokens)


def _plan_chunks(
    documents: DocumentBatch, max_tokens: int, short_seq_prob: float, rng: np.random.Generator
) -> _Chunks:
    num_sentences, num_documents = len(documents.sentence_ends), len(documents.document_ends)
    targets = target_lengths(num_documents, max_tokens, short_seq_prob, rng)
    # A draw for each sentence that could begin a chunk.
    wants_random = (rng.random(num_sentences) < 0.5).tolist()
    a_share = rng.random(num_sentences).tolist()
    sentence_ends = documents.sentence_ends.tolist()
    other_documents_exist = documents.others.exist if documents.others else num_documents > 1

    chunks: list[int] = []  # four numbers a chunk: first sentence, end of A, end, B is random
    dropped = first = token = 0
    for target, document_end in zip(
        targets.tolist(), documents.document_ends.tolist(), strict=True
    ):
        while first < document_end:
            end = bisect_left(sentence_ends, token + target, first, document_end - 1) + 1
            a_end, is_random = end, other_documents_exist
            if end > first + 1:
                a_end = first + 1 + int(a_share[first] * (end - first - 1))
                is_random = other_documents_exist and wants_random[first]
            if is_random or a_end < end:
                chunks += (first, a_end, end, is_random)
            else:
                dropped += 1
            # With a random B, the sentences after A are still unused.
            first = a_end if is_random else end
            token = sentence_ends[first - 1]
    starts, a_ends, ends, random = np.array(chunks, np.int64).reshape(-1, 4).T
    document = np.searchsorted(documents.document_ends, starts, side="right")
    return _Chunks(document, starts, a_ends, ends, targets[document], random.astype(bool), dropped)


def _draw_random_segments(
    documents: DocumentBatch,
    own_document: np.ndarray,
    target_length: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of whole sentences from other documents, about `target_length` tokens."""
    num_documents = len(documents.document_ends)
    if documents.others:
        document = documents.others.draw(own_document, rng)
    else:
        document = rng.integers(0, max(1, num_documents - 1), len(own_document))
        document += document >= own_document
    first_sentences = np.concatenate([[0], documents.document_ends])
    sentence_starts = np.concatenate([[0], documents.sentence_ends])
    document_end = documents.document_ends[document]
    sentence = rng.integers(first_sentences[document], document_end)
    start = sentence_starts[sentence]
    # Up to the sentence that reaches the target, and at least one sentence.
    reaches = np.searchsorted(documents.sentence_ends, start + np.maximum(target_length, 1))
    end = sentence_starts[np.minimum(reaches + 1, document_end)]
    return start, end - start


def _tokens_to_remove(
    a_length: np.ndarray, b_length: np.ndarray, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens to remove from A and from B: one at a time from the longer (from B in a tie)."""
    excess = np.maximum(a_length + b_length - max_tokens, 0)
    a_first = np.clip(a_length - b_length, 0, excess)
    b_first = np.clip(b_length - a_length, 0, excess)
    shared = excess - a_first - b_first
    return a_first + shared // 2, b_first + (shared + 1) // 2


def _count_heads(flips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The number of heads among `flips` fair coins: the tokens to remove from the front.

    It counts random bits, because NumPy may change its binomial draws between versions.
    """
    heads = np.zeros_like(flips)
    remaining = flips.copy()
    while (rows := np.flatnonzero(remaining)).size:
        used = np.minimum(remaining[rows], _BITS_PER_DRAW).astype(np.uint64)
        bits = rng.integers(0, 1 << 64, len(rows), dtype=np.uint64)
        heads[rows] += np.bitwise_count(bits >> (np.uint64(_BITS_PER_DRAW) - used))
        remaining[rows] -= used.astype(np.int64)
    return heads
