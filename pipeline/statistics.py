"""Turns the workers' counts into the statistics of the manifest."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.json_files import NO_OTHER_KEYS
from pipeline.manifest import CORPORA, EVAL_SHARDS, Shard
from pipeline.records import Instances
from pipeline.rows import sequence_lengths
from pipeline.vocabulary import Vocabulary

if TYPE_CHECKING:  # it loads Arrow, which `adopt` does without
    from pipeline.mixing import MixingPlan

DROP_REASONS = {
    "records_skipped": "records that could not be read or had no text",
    "lines_outside_documents": "lines outside <doc …> and </doc>",
    "lines_with_invalid_utf8": "lines with invalid UTF-8, which was dropped",
    "documents_too_short": "documents shorter than --min_document_characters",
    "documents_without_tokens": "documents without tokens",
    "documents_duplicate": "documents with the same text as an earlier one",
    "sentences_without_tokens": "sentences without tokens",
}
"""The counts of everything that was dropped from the corpus, with their meaning."""

NEAR_DUPLICATES = {
    "documents_near_duplicate": "other documents with nearly the same text as an earlier one"
}
"""The same of near duplicates, which are counted only where they are looked for."""

_MASKED_TOKENS_OF_A_SHARD = 100
_MASKED_TOKENS_OF_A_DATA_SET = 30
_LENGTH_RANGES = 16
_MOST_PASSES_OF_A_LINE = 4


class InstanceHistograms:
    """Counts each length and each masked token among the instances of a shard.

    Args:
      max_seq_length: maximum length of an instance, S.
      vocabulary: the vocabulary of the instances.
    """

    def __init__(self, max_seq_length: int, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._lengths = np.zeros(max_seq_length + 1, np.int64)
        self._masked = np.zeros(len(vocabulary), np.int64)

    def add(self, instances: Instances) -> None:
        """Counts a batch of instances."""
        lengths = sequence_lengths(instances["input_mask"])
        self._lengths += np.bincount(lengths, minlength=len(self._lengths))
        if "masked_lm_ids" in instances:
            labels = instances["masked_lm_ids"][instances["masked_lm_weights"] > 0]
            self._masked += np.bincount(labels, minlength=len(self._masked))

    def lengths(self) -> Counter[int]:
        """Returns the number of instances of each length that occurs."""
        return Counter({int(n): int(self._lengths[n]) for n in np.flatnonzero(self._lengths)})

    def masked_tokens(self) -> Counter[str]:
        """Returns the counts of the hundred tokens that are masked most often."""
        order = np.argsort(-self._masked, kind="stable")[:_MASKED_TOKENS_OF_A_SHARD]
        return Counter(
            {self._vocabulary.tokens[n]: int(self._masked[n]) for n in order if self._masked[n]}
        )


@dataclass(frozen=True)
class ShardResults:
    """A shard and the counts taken while it was built, which are its receipt.

    Attributes:
      shard: the shard.
      counts: the counts from `shards.make_instances`.
      lengths: number of instances of each length.
      masked_tokens: number of times each of the most often masked tokens is masked.
    """

    shard: Shard
    counts: Counter[str]
    lengths: Counter[int]
    masked_tokens: Counter[str]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS

    @property
    def sha256(self) -> str:
        """The shard's SHA-256, in hexadecimal."""
        return self.shard.sha256


@dataclass(frozen=True)
class BuildResults:
    """The counts from all workers.

    Attributes:
      corpus: documents_duplicate, documents_near_duplicate if they were looked for, and the counts
        from `documents.read_documents` and `corpus.tokenize_documents`, summed over all portions.
      shards: the results of every shard.
      corpora: the same counts of each corpus of a mixture, by name.
      mixing: what the passes read of each corpus; None: there is no mixture.
    """

    corpus: Counter[str]
    shards: list[ShardResults]
    corpora: dict[str, Counter[str]] = field(default_factory=dict)
    mixing: "MixingPlan | None" = None


def sum_counters(counters: Iterable[Mapping[Any, int]]) -> Counter[Any]:
    """Adds counters; unlike `sum`, it keeps entries that are 0."""
    total: Counter[Any] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def check_documents_agree(results: BuildResults) -> None:
    """Checks that the separate counts of documents read, tokenized and built agree.

    Raises:
      RuntimeError: the counts differ, so the runner has lost or repeated records.
    """
    corpus = results.corpus
    dropped = corpus["documents_too_short"] + corpus["documents_without_tokens"]
    if corpus["documents_read"] != corpus["documents_tokenized"] + dropped:
        raise RuntimeError(
            f"read {corpus['documents_read']} documents but tokenized "
            f"{corpus['documents_tokenized']} and dropped {dropped}"
        )
    duplicates = corpus["documents_duplicate"] + corpus["documents_near_duplicate"]
    expected = corpus["documents_tokenized"] - duplicates
    built: Counter[tuple[str, int]] = Counter()
    for result in results.shards:
        built[result.shard.split, result.shard.pass_index] += result.shard.documents
    mixing = results.mixing
    measured = mixing.documents + built["eval", 0] if mixing else expected
    if measured != expected:
        raise RuntimeError(
            f"tokenized {expected} documents but measured {measured}: the runner has lost or "
            "repeated records"
        )
    for (split, pass_index), documents in built.items():
        wanted = mixing.documents_read(pass_index) if mixing else expected - built["eval", 0]
        if split == "train" and documents != wanted:
            raise RuntimeError(
                f"tokenized {expected} documents but built {documents} in pass {pass_index} and "
                f"{built['eval', 0]} for evaluation: the runner has lost or repeated records"
            )


def num_sequences(counts: Mapping[str, int]) -> int:
    """The sequences of a split; only packed rows count them apart from the instances."""
    return counts.get("sequences", counts["instances"])


def describe_instances(counts: Mapping[str, int]) -> str:
    """How many instances a split has, for people."""
    if "sequences" not in counts:
        return f"{counts['instances']:,} instances"
    return f"{counts['sequences']:,} sequences in {counts['instances']:,} rows"


def describe_pairs(counts: Mapping[str, float]) -> str:
    """The share of the pairs whose B does not follow A, for people; nothing without pairs."""
    for name, what in (("random_next", "random next"), ("swapped", "swapped")):
        if f"share_{name}" in counts:
            return f"{counts[f'share_{name}']:.1%} {what}, "
    return ""


def describe_corpora(statistics: Mapping[str, Any]) -> list[str]:
    """A line for each corpus of a mixture, for people; none without a mixture."""
    corpora = statistics.get(CORPORA, {})
    width = max(map(len, corpora), default=0)
    return [
        f"{name:<{width}} {facts['documents']:,} documents, {facts['tokens']:,} tokens "
        f"({facts['share_unknown']:.2%} [UNK]); "
        f"{_in_short(facts['shares_reached'], '{:.1%}')} of the training tokens, asked "
        f"{_in_short(facts['shares_asked'], '{:.1%}')}; "
        f"read {_in_short(facts['repeats'], '{:.3g}')} times a pass"
        for name, facts in corpora.items()
    ]


def per_pass(values: Sequence[float], form: str) -> str:
    """A value for each pass, for people: once if they look the same, else with arrows between."""
    texts = [form.format(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " → ".join(texts)


def _in_short(values: Sequence[float], form: str) -> str:
    """The same for a line of the terminal: of many passes, the lowest and the highest value."""
    low_and_high = form.format(min(values)), form.format(max(values))
    is_long = len(values) > _MOST_PASSES_OF_A_LINE and len(set(low_and_high)) > 1
    return " to ".join(low_and_high) if is_long else per_pass(values, form)


def summarize(
    results: BuildResults,
    max_seq_length: int,
    packed_row_length: int | None = None,
    masks_while_training: bool = False,
) -> dict[str, Any]:
    """Returns the manifest's statistics: counts, and shares that show if a data set is sound.

    Args:
      results: the counts from all workers.
      max_seq_length: S, the largest number of tokens of a sequence.
      packed_row_length: R, the length of a record if rows are packed; by default S.
      masks_while_training: whether the train instances have no masks, of which all shares are left
        out.
    """
    corpus = sum_counters([dict.fromkeys(DROP_REASONS, 0), results.corpus])
    summary: dict[str, Any] = {
        "corpus": {
            **dict(sorted(corpus.items())),
            "share_unknown": _share(corpus["unknown_tokens"], corpus["tokens"]),
        }
    }
    for split in ("train", "eval"):
        members = [result for result in results.shards if result.shard.split == split]
        counts = sum_counters(result.counts for result in members)
        counts["documents"] = sum(
            result.shard.documents for result in members if not result.shard.pass_index
        )
        if counts["instances"]:
            positions = counts["instances"] * (packed_row_length or max_seq_length)
            sequences = num_sequences(counts)
            per_row = {"sequences_per_row": round(sequences / counts["instances"], 3)}
            masked_tokens = sum_counters(result.masked_tokens for result in members)
            summary[split] = {
                **dict(sorted(counts.items())),
                **(per_row if "sequences" in counts else {}),
                **{
                    f"share_{name}": _share(counts[name], sequences)
                    for name in ("random_next", "swapped")
                    if name in counts
                },
                "share_padding": _share(positions - counts["tokens"], positions),
                "share_masked": _share(counts["masked"], counts["tokens"]),
                "share_masked_by_mask": _share(counts["masked_by_mask"], counts["masked"]),
                "share_masked_kept": _share(counts["masked_kept"], counts["masked"]),
                "share_masked_by_random": _share(counts["masked_by_random"], counts["masked"]),
                "instances_by_length": _in_ranges(
                    sum_counters(result.lengths for result in members), max_seq_length
                ),
                # Only tokens that are frequent in some shard can be frequent in the data set.
                "most_masked_tokens": dict(
                    sorted(masked_tokens.items(), key=lambda item: (-item[1], item[0]))[
                        :_MASKED_TOKENS_OF_A_DATA_SET
                    ]
                ),
            }
            if masks_while_training and split == "train":
                facts = summary[split]
                summary[split] = {name: facts[name] for name in facts if "masked" not in name}
    return summary


def summarize_corpora(
    results: BuildResults, eval_shards: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Returns the manifest's statistics of each corpus of a mixture, by name.

    Lists have a number for each pass. `train_documents` and `train_tokens` count each document
    once; `documents_read` and `tokens_read`, as often as a pass reads it.

    Args:
      results: the counts from all workers.
      eval_shards: the names of the eval shards of each corpus.
    """
    assert results.mixing
    shards = {result.shard.name: result.shard for result in results.shards}
    summary = {}
    for name, rotation in results.mixing.rotations.items():
        counts, held_out = results.corpora[name], [shards[each] for each in eval_shards[name]]
        summary[name] = {
            "documents": counts["documents_tokenized"],
            "tokens": counts["tokens"],
            "unknown_tokens": counts["unknown_tokens"],
            "share_unknown": _share(counts["unknown_tokens"], counts["tokens"]),
            **{
                each: counts[each]
                for each in ("documents_duplicate", *NEAR_DUPLICATES)
                if each in counts
            },
            "train_documents": rotation.documents,
            "train_tokens": rotation.tokens,
            "documents_read": rotation.documents_read,
            "tokens_read": rotation.tokens_read,
            "repeats": [round(read / rotation.tokens, 6) for read in rotation.tokens_read],
            "shares_asked": [round(share, 6) for share in rotation.shares],
            "shares_reached": [round(share, 6) for share in results.mixing.shares_reached(name)],
            "eval_documents": sum(shard.documents for shard in held_out),
            "eval_instances": sum(shard.instances for shard in held_out),
            EVAL_SHARDS: [shard.name for shard in held_out],
        }
    return summary


def _in_ranges(lengths: Counter[int], max_seq_length: int) -> dict[str, int]:
    """Counts instances by length in about 16 ranges of equal width up to S, named `first-last`."""
    width = -(-max_seq_length // _LENGTH_RANGES)
    ranges = {
        f"{first}-{min(first + width - 1, max_seq_length)}": range(first, first + width)
        for first in range(1, max_seq_length + 1, width)
    }
    return {name: sum(lengths[length] for length in members) for name, members in ranges.items()}


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
