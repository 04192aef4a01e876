"""Instances as text that a person can check."""

from collections.abc import Mapping

import numpy as np

from pipeline.tokenization import Vocabulary


def describe_instance(instance: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> str:
    """Two paragraphs: what the instance is, and its pieces.

    A masked piece is shown as `{what the model reads → what it has to find}`.

    Args:
      instance: arrays [S], [P] and [1] under the names of `records.instance_features`.
      vocabulary: that of the data set.
    """
    length = int(instance["input_mask"].sum())
    pieces = [vocabulary.tokens[number] for number in instance["input_ids"][:length]]
    num_masked = int(instance["masked_lm_weights"].sum())
    for position, label in zip(
        instance["masked_lm_positions"][:num_masked],
        instance["masked_lm_ids"][:num_masked],
        strict=True,
    ):
        pieces[position] = f"{{{pieces[position]} → {vocabulary.tokens[label]}}}"
    relation = "is random" if instance["next_sentence_labels"][0] else "follows A"
    first_of_b = int(np.argmax(instance["segment_ids"]))
    return (
        f"{length} tokens, {num_masked} masked; B {relation}\n"
        f"  A: {' '.join(pieces[:first_of_b])}\n"
        f"  B: {' '.join(pieces[first_of_b:])}"
    )
