"""Shows instances as text that a person can check, including what the model must predict."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.errors import UserError
from pipeline.manifest import DataSet, Shard
from pipeline.records import (
    Instances,
    decode_instances,
    open_records,
    read_frames,
    record_of,
    unpack_word_starts,
)
from pipeline.rows import unpack
from pipeline.sentence_pairs import SentencePairs
from pipeline.vocabulary import Vocabulary

_READ_BYTES = 1 << 18  # at a time: few records are wanted
# What B does, by its label.
_RELATIONS = {
    SentencePairs.NEXT: ("follows A", "is random"),
    SentencePairs.ORDER: ("follows A", "precedes A"),
    SentencePairs.NONE: ("",),
}


class Replacement(StrEnum):
    """What the model reads instead of a masked piece, as far as a record shows it."""

    MASK = "mask"
    """`[MASK]`."""
    KEPT = "kept"
    """The piece itself."""
    RANDOM = "random"
    """A different piece."""


@dataclass(frozen=True)
class Piece:
    """A WordPiece of an instance.

    Attributes:
      text: the piece that the model reads.
      original: the piece in the original text; the model must predict it if the piece is masked.
      replacement: how a masked piece was replaced; None if the piece is not masked.
      segment: "A" or "B"; a single segment is "A".
    """

    text: str
    original: str
    replacement: Replacement | None
    segment: str


def read_sequences(
    data_set: DataSet, shard: Shard, mask: Callable[[Instances], Instances] | None = None
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yields the sequences of each record of a shard, as instances of one sequence; slow.

    Args:
      data_set: the data set.
      shard: the shard.
      mask: draws the masks of records that have none; None leaves them as they are.

    Raises:
      UserError: the file cannot be read, or a record is not an instance of this data set.
    """
    path, whole_records = data_set.path_of(shard), 0
    features = data_set.manifest.features_of(shard.split)
    try:
        with open_records(path, _READ_BYTES) as file:
            for frame in read_frames(file):
                record = decode_instances([record_of(frame)], features)
                sequences = unpack(unpack_word_starts(mask(record) if mask else record))
                yield [
                    {name: values[i] for name, values in sequences.items()}
                    for i in range(len(sequences["input_mask"]))
                ]
                whole_records += 1
    except (OSError, ValueError) as error:
        raise UserError(f"record {whole_records + 1} of {path} is damaged: {error}") from error


def pieces_of(instance: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> list[Piece]:
    """Returns the pieces of an instance, in order and without padding.

    Args:
      instance: one of `read_sequences`.
      vocabulary: the data set's vocabulary.
    """
    labels = {}
    if has_masks(instance):
        is_real = instance["masked_lm_weights"] > 0
        columns = instance["masked_lm_positions"][is_real].tolist()
        labels = dict(zip(columns, instance["masked_lm_ids"][is_real].tolist(), strict=True))
    pieces = []
    for position in range(int(instance["input_mask"].sum())):
        number = int(instance["input_ids"][position])
        label = labels.get(position)
        pieces.append(
            Piece(
                text=vocabulary.tokens[number],
                original=vocabulary.tokens[number if label is None else label],
                replacement=None if label is None else _replacement(number, label, vocabulary),
                segment="B" if instance["segment_ids"][position] else "A",
            )
        )
    return pieces


def has_masks(instance: Mapping[str, np.ndarray]) -> bool:
    """Whether an instance has masks; otherwise the trainer draws them."""
    return "masked_lm_weights" in instance


def relation_of_b(
    instance: Mapping[str, np.ndarray], sentence_pairs: SentencePairs = SentencePairs.NEXT
) -> str:
    """What segment B does: that it "follows A", "is random" or "precedes A"; "" without B."""
    return _RELATIONS[sentence_pairs][instance["next_sentence_labels"][0]]


def describe_instance(
    instance: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    sentence_pairs: SentencePairs = SentencePairs.NEXT,
) -> str:
    """Describes an instance on a line of its own for a summary, and one for each segment.

    A masked piece is shown as `{what the model reads → what it must predict}`.

    Args:
      instance: one of `read_sequences`.
      vocabulary: the data set's vocabulary.
      sentence_pairs: what the data set's instances hold.
    """
    pieces = pieces_of(instance, vocabulary)
    num_masked = sum(piece.replacement is not None for piece in pieces)
    masked = f"{num_masked} masked" if has_masks(instance) else "masked while training"
    summary = f"{len(pieces)} tokens, {masked}"
    a, b = (
        " ".join(_describe_piece(piece) for piece in pieces if piece.segment == segment)
        for segment in ("A", "B")
    )
    if not (relation := relation_of_b(instance, sentence_pairs)):
        return f"{summary}\n  {a}"
    return f"{summary}; B {relation}\n  A: {a}\n  B: {b}"


def _describe_piece(piece: Piece) -> str:
    return piece.text if piece.replacement is None else f"{{{piece.text} → {piece.original}}}"


def _replacement(number: int, label: int, vocabulary: Vocabulary) -> Replacement:
    if number == label:
        return Replacement.KEPT
    return Replacement.MASK if number == vocabulary.ids["[MASK]"] else Replacement.RANDOM
