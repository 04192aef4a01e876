"""Instances as text that a person can check, and what of them the model has to find."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from pipeline.records import decode_example, read_frames, record_of
from pipeline.tokenization import Vocabulary


class Replacement(StrEnum):
    """What the model reads in the place of a masked piece, as far as a record shows it."""

    MASK = "mask"
    """`[MASK]`."""
    KEPT = "kept"
    """The piece itself."""
    RANDOM = "random"
    """Another piece."""


@dataclass(frozen=True)
class Piece:
    """A piece of an instance.

    Attributes:
      text: what the model reads.
      original: what stood in the text; of a masked piece, what the model has to find.
      replacement: how a masked piece was replaced; None: it is not masked.
      segment: "A" or "B".
    """

    text: str
    original: str
    replacement: Replacement | None
    segment: str


def read_instances(shard: Path) -> Iterator[dict[str, np.ndarray]]:
    """The instances of a shard, under the names of `records.instance_features`; not fast."""
    with shard.open("rb") as file:
        for frame in read_frames(file):
            yield decode_example(record_of(frame))


def pieces_of(instance: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> list[Piece]:
    """The pieces of an instance, in order and without padding.

    Args:
      instance: arrays [S], [P] and [1] under the names of `records.instance_features`.
      vocabulary: that of the data set.
    """
    is_real = instance["masked_lm_weights"] > 0
    labels = dict(
        zip(
            instance["masked_lm_positions"][is_real].tolist(),
            instance["masked_lm_ids"][is_real].tolist(),
            strict=True,
        )
    )
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


def is_random_next(instance: Mapping[str, np.ndarray]) -> bool:
    """Whether B is random; otherwise it follows A."""
    return bool(instance["next_sentence_labels"][0])


def describe_instance(instance: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> str:
    """Two paragraphs: what the instance is, and its pieces.

    A masked piece is shown as `{what the model reads → what it has to find}`.

    Args:
      instance: as of `pieces_of`.
      vocabulary: that of the data set.
    """
    pieces = pieces_of(instance, vocabulary)
    num_masked = sum(piece.replacement is not None for piece in pieces)
    relation = "is random" if is_random_next(instance) else "follows A"
    a, b = (
        " ".join(_describe_piece(piece) for piece in pieces if piece.segment == segment)
        for segment in ("A", "B")
    )
    return f"{len(pieces)} tokens, {num_masked} masked; B {relation}\n  A: {a}\n  B: {b}"


def _describe_piece(piece: Piece) -> str:
    return piece.text if piece.replacement is None else f"{{{piece.text} → {piece.original}}}"


def _replacement(number: int, label: int, vocabulary: Vocabulary) -> Replacement:
    if number == label:
        return Replacement.KEPT
    return Replacement.MASK if number == vocabulary.ids["[MASK]"] else Replacement.RANDOM
