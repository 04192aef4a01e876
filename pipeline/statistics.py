"""Counts from the workers to the facts in the manifest."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.manifest import Shard


@dataclass(frozen=True)
class BuildResults:
    """What the workers counted.

    Attributes:
      corpus: counts of `corpus.tokenize_document`, over all splits.
      shards: every shard with the counts of `instances.generate_instances`.
    """

    corpus: Counter[str]
    shards: list[tuple[Shard, Counter[str]]]


def sum_counters(counters: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The sum of counters; unlike `sum`, it also keeps what is 0."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def check_documents_agree(results: BuildResults) -> None:
    """Documents read, tokenized and built are counted apart, and none may be lost on the way.

    Raises:
      RuntimeError: the counts differ; the runner has lost or repeated records.
    """
    read, tokenized = results.corpus["documents_read"], results.corpus["documents_tokenized"]
    without_tokens = results.corpus["documents_without_tokens"]
    if read != tokenized + without_tokens:
        raise RuntimeError(f"read {read} documents but tokenized {tokenized} + {without_tokens}")
    built: Counter[tuple[str, int]] = Counter()
    for shard, _ in results.shards:
        built[shard.split, shard.pass_index] += shard.documents
    for (split, pass_index), documents in built.items():
        if split == "train" and documents + built["eval", 0] != tokenized:
            raise RuntimeError(
                f"tokenized {tokenized} documents but built {documents} of pass {pass_index} and "
                f"{built['eval', 0]} for evaluation: the runner has lost or repeated records"
            )


def summarize(results: BuildResults, max_seq_length: int) -> dict[str, Any]:
    """The manifest's statistics: counts, and the shares that tell whether a data set is sound."""
    corpus = results.corpus
    summary: dict[str, Any] = {
        "corpus": {
            **dict(sorted(corpus.items())),
            "share_unknown": _share(corpus["unknown_tokens"], corpus["tokens"]),
        }
    }
    for split in ("train", "eval"):
        members = [built for built in results.shards if built[0].split == split]
        counts = sum_counters(counts for _, counts in members)
        counts["documents"] = sum(shard.documents for shard, _ in members if not shard.pass_index)
        if counts["instances"]:
            positions = counts["instances"] * max_seq_length
            summary[split] = {
                **dict(sorted(counts.items())),
                "share_random_next": _share(counts["random_next"], counts["instances"]),
                "share_padding": _share(positions - counts["tokens"], positions),
                "share_masked": _share(counts["masked"], counts["tokens"]),
                "share_masked_by_mask": _share(counts["masked_by_mask"], counts["masked"]),
                "share_masked_kept": _share(counts["masked_kept"], counts["masked"]),
                "share_masked_by_random": _share(counts["masked_by_random"], counts["masked"]),
            }
    return summary


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
