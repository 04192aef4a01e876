"""One update of the weights and one evaluation of a batch, compiled by TensorFlow with XLA."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from modeling.losses import pretraining_sums, total_loss
from modeling.optimization import AdamW, clip_by_global_norm
from modeling.pretraining import BertForPreTraining

Batch = Mapping[str, Any]
Step = Callable[[Batch], dict[str, Any]]


def describe_devices() -> str:
    """What TensorFlow computes on."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    return f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "the processor; no GPU was found"


def train_step(model: BertForPreTraining, optimizer: AdamW, clip_norm: float) -> Step:
    """A function that updates the model by one batch.

    It returns the batch's `pretraining_sums`, and `gradient_norm`, the global norm before clipping.
    """

    @tf.function(jit_compile=True)
    def step(batch: Batch) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            sums = pretraining_sums(model(batch, training=True), batch)
            loss = total_loss(sums)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        clipped, norm = clip_by_global_norm(
            [tf.convert_to_tensor(gradient) for gradient in gradients], clip_norm
        )
        optimizer.apply(clipped, model.trainable_variables)
        return {**sums, "gradient_norm": norm}

    return step


def eval_step(model: BertForPreTraining) -> Step:
    """A function that returns a batch's `pretraining_sums` without dropout."""

    @tf.function(jit_compile=True)
    def step(batch: Batch) -> dict[str, Any]:
        return pretraining_sums(model(batch, training=False), batch)

    return step
