"""Writes `report.html`: one page that shows whether a data set is sound."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jinja2 import Environment

from pipeline.files import describe_size, write_whole
from pipeline.inspection import Piece, pieces_of, read_sequences, relation_of_b
from pipeline.manifest import CORPORA, MIXTURE_OPTION, REPORT_NAME, DataSet, Manifest, Shard
from pipeline.sentence_pairs import SentencePairs
from pipeline.statistics import DROP_REASONS, NEAR_DUPLICATES, num_sequences, per_pass
from pipeline.storage import Location
from pipeline.templates import template_environment
from pipeline.vocabulary import Vocabulary

_TEMPLATE_NAME = "report.html.jinja"
_NUM_EXAMPLES = 10
_SPLIT_NAMES = {"train": "Training", "eval": "Evaluation"}
# Why there is no pair. Without pairs, there is no such reason.
_REASONS_WITHOUT_PAIR = {
    SentencePairs.NEXT: "chunks with no next sentence and no other document to draw B from",
    SentencePairs.ORDER: "documents of a single sentence, which has no order",
}
_REASONS_OF_SPLITS = {
    "tokens_truncated": "tokens cut from pairs that were too long",
    "instances_without_mask": "pairs without a masked piece (these are kept)",
}
_OF_MASKS = ("masked", "instances_without_mask")


@dataclass(frozen=True)
class _Split:
    """The train or the eval split of a data set."""

    name: str
    shards: list[Shard]
    statistics: dict[str, Any]

    @property
    def counts(self) -> Counter[str]:
        """The statistics, with 0 for anything not counted, as in a split without instances."""
        return Counter(self.statistics)

    def count(self, name: str) -> str:
        """A count for people; a dash for one of masks that are not drawn yet."""
        is_unknown = name in _OF_MASKS and self.statistics and "masked" not in self.statistics
        return "–" if is_unknown else _format_number(self.counts[name])

    @property
    def num_sequences(self) -> int:
        return num_sequences(self.counts)

    @property
    def num_passes(self) -> int:
        return len({shard.pass_index for shard in self.shards})

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class _Example:
    """A sequence to show.

    Attributes:
      shard, number: name of its shard, and its index within that shard.
      sequence: the number of its sequence in a packed row, from 1; None if it has no other.
      num_tokens, num_masked: number of tokens, and of those that are masked.
      relation: what B does, see `inspection.relation_of_b`.
      segments: the words of A and of B, if any; each word is a list of one or more pieces.
    """

    shard: str
    number: int
    sequence: int | None
    num_tokens: int
    num_masked: int
    relation: str
    segments: dict[str, list[list[Piece]]]


def write_report(output_dir: Location, manifest: Manifest, vocabulary: Vocabulary) -> None:
    """Writes `report.html` beside the shards.

    Args:
      output_dir: directory of the shards.
      manifest: the data set's manifest, which need not be on disk yet.
      vocabulary: the data set's vocabulary.
    """
    splits = [
        _Split(name, manifest.shards_of(split), manifest.statistics.get(split, {}))
        for split, name in _SPLIT_NAMES.items()
        if manifest.shards_of(split)
    ]
    page = _template_environment().get_template(_TEMPLATE_NAME)
    write_whole(
        output_dir / REPORT_NAME,
        page.render(
            manifest=manifest,
            corpus=manifest.statistics["corpus"],
            corpora=manifest.statistics.get(CORPORA, {}),
            splits=splits,
            drop_reasons=_drop_reasons(manifest.statistics["corpus"]),
            reasons_of_splits=_reasons_of_splits(manifest.sentence_pairs),
            options=_all_options(manifest),
            examples=list(islice(_examples(output_dir, manifest, vocabulary), _NUM_EXAMPLES)),
        ),
    )


def _template_environment() -> Environment:
    environment = template_environment("pipeline", autoescape=True)
    environment.filters.update(
        number=_format_number,
        percent=_format_percent,
        size=describe_size,
        range=_format_range,
        per_pass=per_pass,
    )
    environment.tests["special"] = _is_special
    return environment


def _drop_reasons(corpus: dict[str, Any]) -> dict[str, str]:
    return DROP_REASONS | {
        name: NEAR_DUPLICATES[name] for name in NEAR_DUPLICATES if name in corpus
    }


def _reasons_of_splits(sentence_pairs: SentencePairs) -> dict[str, str]:
    if sentence_pairs == SentencePairs.NONE:
        return {
            name: reason.replace("pairs", "sequences")
            for name, reason in _REASONS_OF_SPLITS.items()
        }
    return {"chunks_without_next": _REASONS_WITHOUT_PAIR[sentence_pairs], **_REASONS_OF_SPLITS}


def _all_options(manifest: Manifest) -> dict[str, Any]:
    """The options by name, each once; the lengths and the tokenizer's options come first."""
    names = ("max_seq_length", "max_predictions_per_seq", "do_lower_case", "strip_accents")
    options = {name: getattr(manifest, name) for name in names} | manifest.options
    options.pop("unicode_version", None)  # not an option; shown with the vocabulary
    for name, reading in options.pop(CORPORA, {}).items():
        options[f"{CORPORA}: {name}"] = _listed(reading)
    if shares := options.pop(MIXTURE_OPTION, None):
        ((kind, values),) = shares.items()
        options[f"{MIXTURE_OPTION}: {kind}"] = (
            _listed(values) if isinstance(values, dict) else per_pass(values, "{}")
        )
    return options


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _examples(
    output_dir: Location, manifest: Manifest, vocabulary: Vocabulary
) -> Iterator[_Example]:
    """Yields the train instances in the order of the shards, each of which is shuffled."""
    for shard in manifest.shards_of("train"):
        for number, sequences in enumerate(read_sequences(DataSet(output_dir, manifest), shard)):
            for place, sequence in enumerate(sequences, 1):
                pieces = pieces_of(sequence, vocabulary)
                relation = relation_of_b(sequence, manifest.sentence_pairs)
                yield _Example(
                    shard=shard.name,
                    number=number,
                    sequence=place if manifest.row_limits.sequences > 1 else None,
                    num_tokens=len(pieces),
                    num_masked=sum(piece.replacement is not None for piece in pieces),
                    relation=relation,
                    segments={
                        segment: _words([piece for piece in pieces if piece.segment == segment])
                        for segment in ("AB" if relation else "A")
                    },
                )


def _words(pieces: list[Piece]) -> list[list[Piece]]:
    """Groups pieces into words; truncation may have cut off the start of a segment's first word."""
    words: list[list[Piece]] = []
    for piece in pieces:
        joins = piece.original.startswith("##") and words and not _is_special(words[-1][-1])
        if joins:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _is_special(piece: Piece) -> bool:
    """Whether a piece is one of those that the layout adds around the segments."""
    return piece.replacement is None and piece.original in ("[CLS]", "[SEP]")


def _format_number(count: int) -> str:
    return f"{count:,}"


def _format_percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _format_range(lengths: str) -> str:
    """A range `first-last` with an en dash, or a single number if both ends are equal."""
    first, last = lengths.split("-")
    return first if first == last else f"{first}–{last}"
