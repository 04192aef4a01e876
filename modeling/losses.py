"""Computes losses and accuracies from a batch's outputs, by way of sums that can be added.

The sums and totals of two batches (or replicas, or accumulation steps) add up to those of the joint
batch, so every mean is a mean over the whole. The losses below take sums and totals in one dict.
Given a part's sums and the whole's totals, they return the part's share of the whole's loss.

Shape suffixes of tensors: B batch, P predictions, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

SUMS = ("masked_lm_nll", "masked_lm_correct", "next_sentence_nll", "next_sentence_correct")
"""The names of `pretraining_sums`."""
# Is added to the denominator of the masked-LM mean, as in the original.
_EPSILON = 1e-5


def batch_totals(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch's totals as float32 scalars: the denominators of its means, and its tokens.

    Args:
      batch: a batch with labels and with `masked_lm_weights`, which are 0 for padding.
    """
    ones_B = ops.ones(batch["next_sentence_labels"].shape[:1])
    return {
        "masked_lm_weights": ops.sum(ops.cast(batch["masked_lm_weights"], "float32")),
        "sequences": ops.sum(ones_B),
        "tokens": ops.sum(ops.cast(batch["input_mask"], "float32")),
    }


def pretraining_sums(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Sums of losses (in nats) and of correct predictions over a batch, as float32 scalars.

    Args:
      outputs: the outputs of `BertForPreTraining`.
      batch: a batch as for `batch_totals`.
    """
    masked_lm_weights_BP = ops.cast(batch["masked_lm_weights"], "float32")
    masked_lm_nll_BP, masked_lm_hit_BP = _nll_and_hit(
        outputs["masked_lm_logits"], batch["masked_lm_ids"]
    )
    next_sentence_nll_B, next_sentence_hit_B = _nll_and_hit(
        outputs["next_sentence_logits"], batch["next_sentence_labels"][:, 0]
    )
    sums = (
        ops.sum(masked_lm_weights_BP * masked_lm_nll_BP),
        ops.sum(masked_lm_weights_BP * masked_lm_hit_BP),
        ops.sum(next_sentence_nll_B),
        ops.sum(next_sentence_hit_B),
    )
    return dict(zip(SUMS, sums, strict=True))


def masked_lm_loss(sums: Mapping[str, Any]) -> Any:
    """Σ(w·nll) / (Σw + 1e-5), in nats."""
    return sums["masked_lm_nll"] / (sums["masked_lm_weights"] + _EPSILON)


def next_sentence_loss(sums: Mapping[str, Any]) -> Any:
    """The mean over the sequences, in nats."""
    return sums["next_sentence_nll"] / sums["sequences"]


def total_loss(sums: Mapping[str, Any]) -> Any:
    """The loss that training minimizes: the sum of both losses."""
    return masked_lm_loss(sums) + next_sentence_loss(sums)


def losses_and_accuracies(sums: Mapping[str, float]) -> dict[str, float]:
    """The four figures that describe a model's quality; two where there was nothing to predict."""
    figures = {
        "masked_lm_loss": masked_lm_loss(sums),
        "next_sentence_loss": next_sentence_loss(sums),
        "masked_lm_accuracy": sums["masked_lm_correct"] / (sums["masked_lm_weights"] + _EPSILON),
        "next_sentence_accuracy": sums["next_sentence_correct"] / sums["sequences"],
    }
    if not sums["masked_lm_weights"]:
        # A loss of 0 would look like perfect training.
        del figures["masked_lm_loss"], figures["masked_lm_accuracy"]
    return figures


def _nll_and_hit(logits: Any, labels: Any) -> tuple[Any, Any]:
    """The labels' negative log-likelihoods, and 1.0 where the label has the largest logit."""
    logits = ops.cast(logits, "float32")
    label_logits = ops.squeeze(ops.take_along_axis(logits, labels[..., None], axis=-1), -1)
    nll = ops.logsumexp(logits, axis=-1) - label_logits
    hit = ops.cast(ops.equal(ops.argmax(logits, axis=-1), ops.cast(labels, "int32")), "float32")
    return nll, hit
