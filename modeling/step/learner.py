"""One weight update, except for the backend-specific parts.

A step asks its `Learner` for the loss of a batch, takes the gradients of that loss in the way of
its backend, and gives them to `Learner.apply`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np
from keras import ops

from modeling.attention import Kernel, choose_kernel
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import BertConfig
from modeling.dropout import dropout_key, example_keys, fold_in
from modeling.losses import SUMS, pretraining_sums, total_loss
from modeling.optimization import (
    AdamW,
    Lamb,
    LinearWarmupAndDecay,
    LossScale,
    PolynomialWarmupAndDecay,
    WarmupStableDecay,
    clip_by_global_norm,
)
from modeling.training_options import OptimizerName, Precision, ScheduleName, TrainingOptions

if TYPE_CHECKING:
    from modeling.context import Context

Batch = Mapping[str, Any]
"""Arrays of B examples, by the names of `pipeline.records`."""

CLIP_NORM = 1.0
_KEYS = "dropout_keys"
_ROWS = "rows"


class Learner:
    """The parts of a weight update, and all variables that it changes.

    Args:
      model: the model to train.
      optimizer: an optimizer that was built with the model's trainable variables.
      seed: seeds dropout.
      accumulation_steps: the number of parts in which a batch is computed, one after the other.
      loss_scale: the loss scale of float16.
      clip_norm: the largest global norm of the gradients.
    """

    def __init__(
        self,
        model: BertForPreTraining,
        optimizer: AdamW,
        seed: int = 0,
        accumulation_steps: int = 1,
        loss_scale: LossScale | None = None,
        clip_norm: float = CLIP_NORM,
    ):
        self.model = model
        self.optimizer = optimizer
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.loss_scale = loss_scale
        self.clip_norm = clip_norm

    @property
    def weights(self) -> list[keras.Variable]:
        """The variables for which gradients are computed."""
        return self.model.trainable_variables

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables that an update changes; the weights come first."""
        scale = self.loss_scale.variables if self.loss_scale else []
        return [*self.weights, *self.optimizer.variables, *scale]

    @property
    def names_of_sums(self) -> tuple[str, ...]:
        """The names of the sums that `loss` returns."""
        return SUMS if self.model.config.has_pooler else SUMS[:2]

    def copy(self) -> "Learner":
        """Another learner whose variables have the values that these have now."""
        model, optimizer = self.model.copy(), self.optimizer.copy()
        optimizer.build(model.trainable_variables)
        scale = LossScale() if self.loss_scale else None
        other = Learner(model, optimizer, self.seed, self.accumulation_steps, scale, self.clip_norm)
        for variable, value in zip(other.variables, self.variables, strict=True):
            variable.assign(value)
        return other

    def attention_kernel(self, batch: Batch, context: "Context | None" = None) -> Kernel:
        """What computes attention when a batch is trained on, see `loss`."""
        if context:
            return context.kernel
        max_sequences = batch["next_sentence_labels"].shape[-1]
        return choose_kernel(self.model.config, self.model.compute_dtype, max_sequences, True)

    def parts(self, batch: Batch) -> dict[str, Any]:
        """The batch in parts: arrays [accumulation steps, sequences of a part, …]."""
        return {
            name: ops.reshape(values, (self.accumulation_steps, -1, *values.shape[1:]))
            for name, values in batch.items()
        }

    def with_keys(self, batch: Batch) -> dict[str, Any]:
        """The batch with keys for this update's dropout, `dropout_keys` [B].

        Args:
          batch: a whole batch, or a device's part of it from `with_rows`.
        """
        key = fold_in(dropout_key(self.seed), self.optimizer.iterations)
        rows = batch.get(_ROWS, ops.arange(batch["input_ids"].shape[0], dtype="int32"))
        return {**batch, _KEYS: example_keys(key, rows)}

    def loss(
        self, part: Batch, totals: Mapping[str, Any], context: "Context | None" = None
    ) -> tuple[Any, dict[str, Any]]:
        """The loss whose gradients are needed, and the `pretraining_sums` of a part.

        Args:
          part: a part of a batch with keys.
          totals: `batch_totals` of the whole batch, so that the gradients of its parts add up to
            the gradients of the whole.
          context: the devices among which the positions are divided, if they are. Each returns its
            share of the loss and of the sums.
        """
        if context:
            sums = context.sums(self.model, part, part[_KEYS])
        else:
            sums = pretraining_sums(self.model(part, part[_KEYS]), part)
        loss = total_loss({**sums, **totals})
        return (loss * self.loss_scale.scale if self.loss_scale else loss), sums

    def apply(self, gradients: list[Any]) -> dict[str, Any]:
        """Updates all variables, given the gradients of the whole batch.

        Returns:
          `gradient_norm`, the global norm before clipping, and `updates`, which is 1.0. The norm
          counts what the optimizer's `freezing` trains. Under a
          loss scale both are 0.0, and `updates_left_out` is 1.0, where the gradients are not
          finite: the weights then stay as they are. A norm that is not finite even at the lowest
          scale is returned as it is.
        """
        weights = zip(gradients, self.weights, strict=True)
        gradients = [self.optimizer.trained(gradient, weight) for gradient, weight in weights]
        if not self.loss_scale:
            clipped, norm = clip_by_global_norm(gradients, self.clip_norm)
            self.optimizer.apply(clipped, self.weights)
            return {"gradient_norm": norm, "updates": ops.ones(())}

        gradients = [gradient / self.loss_scale.scale for gradient in gradients]
        clipped, norm = clip_by_global_norm(gradients, self.clip_norm)
        is_finite = ops.isfinite(norm)
        # The count of updates still rises, because the learning rate and dropout follow it.
        kept = [*self.weights, *self.optimizer.first_moments, *self.optimizer.second_moments]
        # Copies, because TensorFlow would read a variable only later.
        before = [ops.copy(variable) for variable in kept]
        self.optimizer.apply(clipped, self.weights)
        for variable, value in zip(kept, before, strict=True):
            variable.assign(ops.where(is_finite, ops.convert_to_tensor(variable), value))
        is_returned = ops.logical_or(is_finite, self.loss_scale.is_lowest())
        self.loss_scale.update(is_finite)
        updates = ops.cast(is_finite, "float32")
        return {
            "gradient_norm": ops.where(is_returned, norm, 0.0),
            "updates": updates,
            "updates_left_out": 1.0 - updates,
        }


def with_rows(batch: Batch, process_id: int, num_processes: int) -> Batch:
    """One process's part of a batch, with `rows` [B]: its examples' numbers in the whole batch.

    Each of N processes has every N-th example, as `batches.training_batches` gives them.
    """
    end = num_processes * len(batch["input_ids"])
    return {**batch, _ROWS: np.arange(process_id, end, num_processes, dtype=np.int32)}


def new_learner(config: BertConfig, options: TrainingOptions) -> Learner:
    """A model with its initial weights, and the optimizer that trains it."""
    model = BertForPreTraining(
        config, options.random_seed, options.precision, options.recompute_activations
    )
    rule = Lamb if options.optimizer == OptimizerName.LAMB else AdamW
    optimizer = rule(
        learning_rate_schedule(options),
        options.weight_decay_rate,
        bias_correction=options.adam_bias_correction,
    )
    optimizer.build(model.trainable_variables)
    return Learner(
        model,
        optimizer,
        options.random_seed,
        options.gradient_accumulation_steps,
        LossScale() if options.precision == Precision.FLOAT16 else None,
    )


def learning_rate_schedule(options: TrainingOptions) -> LinearWarmupAndDecay:
    """The learning rate of each update."""
    course = options.learning_rate, options.num_train_steps, options.num_warmup_steps
    match options.learning_rate_schedule:
        case ScheduleName.WARMUP_STABLE_DECAY:
            return WarmupStableDecay(*course, cast("int", options.num_decay_steps))
        case ScheduleName.POLYNOMIAL:
            return PolynomialWarmupAndDecay(*course, cast("float", options.decay_power))
    return LinearWarmupAndDecay(*course)
