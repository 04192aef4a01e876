"""Computes losses and accuracies from a batch's outputs, by way of sums that can be added.

The sums and totals of two batches (or replicas, or accumulation steps) add up to those of the joint
batch, so every mean is a mean over the whole. The losses below take sums and totals in one dict.
Given a part's sums and the whole's totals, they return the part's share of the whole's loss.

Shape suffixes of tensors: B batch, R positions of a row, K sequences of a row, P predictions,
V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

from pipeline.sentence_pairs import SentencePairs

SUMS = ("masked_lm_nll", "masked_lm_correct", "next_sentence_nll", "next_sentence_correct")
"""The names of `pretraining_sums`; a model without next-sentence head has only the first two."""
NAMES_OF_PAIRS = {
    SentencePairs.NEXT: "next sentence",
    SentencePairs.ORDER: "sentence order",
}
"""What people call the task of the next-sentence head; without pairs, there is none."""
# Is added to the denominator of the masked-LM mean, as in the original.
_EPSILON = 1e-5


def batch_totals(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch's totals as float32 scalars: the denominators of its means, and its tokens.

    Args:
      batch: a batch with labels and with `masked_lm_weights`, which are 0 for padding.
    """
    return {
        "masked_lm_weights": ops.sum(ops.cast(batch["masked_lm_weights"], "float32")),
        "sequences": ops.sum(_sequence_weights(batch)),
        "tokens": ops.sum(ops.cast(batch["input_mask"] > 0, "float32")),
    }


def pretraining_sums(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """Sums of losses (in nats) and of correct predictions over a batch, as float32 scalars.

    Args:
      outputs: the outputs of `BertForPreTraining`.
      batch: a batch as for `batch_totals`.
    """
    weights_BP = ops.cast(batch["masked_lm_weights"], "float32")
    logits_BPV, ids_BP = outputs["masked_lm_logits"], batch["masked_lm_ids"]
    sums = _sums("masked_lm", logits_BPV, ids_BP, weights_BP)
    if "next_sentence_logits" in outputs:
        labels_BK = batch["next_sentence_labels"]
        logits_BK2 = ops.reshape(outputs["next_sentence_logits"], (*labels_BK.shape, 2))
        sums |= _sums("next_sentence", logits_BK2, labels_BK, _sequence_weights(batch))
    return sums


def masked_lm_loss(sums: Mapping[str, Any]) -> Any:
    """Σ(w·nll) / (Σw + 1e-5), in nats."""
    return sums["masked_lm_nll"] / (sums["masked_lm_weights"] + _EPSILON)


def next_sentence_loss(sums: Mapping[str, Any]) -> Any:
    """The mean over the sequences, in nats."""
    return sums["next_sentence_nll"] / sums["sequences"]


def total_loss(sums: Mapping[str, Any]) -> Any:
    """The loss that training minimizes: the sum of the losses of the model's heads."""
    loss = masked_lm_loss(sums)
    return loss + next_sentence_loss(sums) if "next_sentence_nll" in sums else loss


def losses_and_accuracies(sums: Mapping[str, float]) -> dict[str, float]:
    """Loss and accuracy of each head, which describe a model's quality.

    Those of a head that had nothing to predict are left out: a loss of 0 would look like perfect
    training.
    """
    losses, accuracies = {}, {}
    if sums["masked_lm_weights"]:
        losses["masked_lm_loss"] = masked_lm_loss(sums)
        accuracies["masked_lm_accuracy"] = sums["masked_lm_correct"] / (
            sums["masked_lm_weights"] + _EPSILON
        )
    if "next_sentence_nll" in sums:
        losses["next_sentence_loss"] = next_sentence_loss(sums)
        accuracies["next_sentence_accuracy"] = sums["next_sentence_correct"] / sums["sequences"]
    return losses | accuracies


def _sums(head: str, logits: Any, labels: Any, weights: Any) -> dict[str, Any]:
    """The two sums of a head, with weights of the labels' shape."""
    nll, hit = _nll_and_hit(logits, labels)
    return {f"{head}_nll": ops.sum(weights * nll), f"{head}_correct": ops.sum(weights * hit)}


def _sequence_weights(batch: Mapping[str, Any]) -> Any:
    """[B, K], 1.0 for the sequences that a row has, and 0.0 for the other labels."""
    labels_BK, input_mask_BR = batch["next_sentence_labels"], batch["input_mask"]
    number_K = ops.arange(1, labels_BK.shape[1] + 1, dtype=input_mask_BR.dtype)
    return ops.cast(number_K <= ops.max(input_mask_BR, axis=1, keepdims=True), "float32")


def _nll_and_hit(logits: Any, labels: Any) -> tuple[Any, Any]:
    """The labels' negative log-likelihoods, and 1.0 where the label has the largest logit.

    Of equal logits, the first counts as the largest. Each logit is compared with its label's,
    because XLA's gather, scatter and argmax take much longer on a processor.
    """
    logits = ops.cast(logits, "float32")
    labels, classes = ops.cast(labels, "int32")[..., None], ops.arange(logits.shape[-1])
    label_logits = ops.sum(ops.where(classes == labels, logits, 0.0), axis=-1, keepdims=True)
    nll = ops.logsumexp(logits, axis=-1) - label_logits[..., 0]
    is_lower = ops.where(classes < labels, logits < label_logits, logits <= label_logits)
    return nll, ops.cast(ops.all(is_lower, axis=-1), "float32")
