"""AdamW and LAMB, gradient clipping, the loss scale, and the schedules of the learning rate."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from modeling.config import TABLES_OF_WORDS

# Variables whose names contain one of these are not decayed.
_NOT_DECAYED = ("LayerNorm", "layer_norm", "bias")


class LinearWarmupAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 over the warm-up, then linear to 0 at the end, as in the original.

    The decay counts from step 0, so the rate drops slightly when the warm-up ends.

    Args:
      learning_rate: the peak rate.
      num_train_steps: the step at which the rate reaches 0.
      num_warmup_steps: the number of warm-up steps; 0 for none.
    """

    def __init__(self, learning_rate: float, num_train_steps: int, num_warmup_steps: int):
        self.learning_rate = learning_rate
        self.num_train_steps = num_train_steps
        self.num_warmup_steps = num_warmup_steps

    def __call__(self, step: Any) -> Any:
        """The rate of the update after `step` updates. With a warm-up, the first rate is 0."""
        step = ops.cast(step, "float32")
        decayed = self.learning_rate * self._share_of_peak(step)
        if not self.num_warmup_steps:
            return decayed
        warming = self.learning_rate * step / self.num_warmup_steps
        return ops.where(step < self.num_warmup_steps, warming, decayed)

    def _share_of_peak(self, step: Any) -> Any:
        """The share of the peak rate that is left after the warm-up."""
        return 1.0 - ops.minimum(step / self.num_train_steps, 1.0)


class WarmupStableDecay(LinearWarmupAndDecay):
    """Linear from 0 over the warm-up, constant, then to 0 over the last steps.

    The decay is 1 minus the square root of its steps' share (Hägele et al., 2024, "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations"). Until it begins, the rate does not
    depend on the number of steps, so that runs of different lengths share their stable part.

    Args:
      learning_rate: the peak rate.
      num_train_steps: the step at which the rate reaches 0.
      num_warmup_steps: the number of warm-up steps; 0 for none.
      num_decay_steps: the number of steps of the decay; 0 for none.
    """

    def __init__(
        self,
        learning_rate: float,
        num_train_steps: int,
        num_warmup_steps: int,
        num_decay_steps: int,
    ):
        super().__init__(learning_rate, num_train_steps, num_warmup_steps)
        self.num_decay_steps = num_decay_steps

    def _share_of_peak(self, step: Any) -> Any:
        since = step - (self.num_train_steps - self.num_decay_steps)
        return 1.0 - ops.sqrt(ops.clip(since / max(self.num_decay_steps, 1), 0.0, 1.0))


class PolynomialWarmupAndDecay(LinearWarmupAndDecay):
    """Linear over the warm-up, then a power of what is left, as NVIDIA trains BERT with LAMB.

    It is the PolyWarmUpScheduler of NVIDIA's DeepLearningExamples, which counts the first update as
    step 1: the last one has the rate 0.

    Args:
      learning_rate: the peak rate.
      num_train_steps: the update at which the rate reaches 0.
      num_warmup_steps: the number of warm-up steps; 0 for none.
      decay_power: the power; NVIDIA's is 0.5.
    """

    def __init__(
        self, learning_rate: float, num_train_steps: int, num_warmup_steps: int, decay_power: float
    ):
        super().__init__(learning_rate, num_train_steps, num_warmup_steps)
        self.decay_power = decay_power

    def __call__(self, step: Any) -> Any:
        """The rate of the update after `step` updates."""
        number = ops.cast(step, "float32") + 1.0
        left = 1.0 - ops.minimum(number / self.num_train_steps, 1.0)
        decayed = self.learning_rate * left**self.decay_power
        if not self.num_warmup_steps:
            return decayed
        warming = self.learning_rate * number / self.num_warmup_steps
        return ops.where(number <= self.num_warmup_steps, warming, decayed)


class Freezing:
    """Which entries the first updates leave as they are: all but the rows of new words.

    An entry that is left as it is keeps its moments, too, and is not decayed. All of it follows
    from the number of updates made so far, so a run resumes in the middle.

    Args:
      steps: the number of these updates.
      is_new: bool [V], whether a row of the word embeddings, and an entry of the masked LM's output
        bias, is of a new word.
    """

    def __init__(self, steps: int, is_new: np.ndarray):
        self.steps = steps
        self.is_new = is_new

    def is_trained(self, rank: int | None, iterations: Any) -> Any:
        """Whether the update after `iterations` others changes an entry, bool for a variable.

        Args:
          rank: the dimensions of a variable with a row for each word; None for any other variable.
          iterations: the number of updates so far.
        """
        is_over = ops.convert_to_tensor(iterations) >= self.steps
        return ops.logical_or(is_over, self._is_new(rank))

    def updates(self, rank: int | None, iterations: Any) -> Any:
        """How many updates have changed an entry after the next one, at least 1; int."""
        updates = ops.convert_to_tensor(iterations) + 1
        return ops.where(self._is_new(rank), updates, ops.maximum(updates - self.steps, 1))

    def _is_new(self, rank: int | None) -> np.ndarray:
        return np.array(False) if rank is None else self.is_new.reshape(-1, *[1] * (rank - 1))


class AdamW(keras.optimizers.Optimizer):
    """Adam with decoupled weight decay: the original's AdamWeightDecayOptimizer (optimization.py).

    Epsilon is outside the square root. The decay is added to the update before the update is
    multiplied by the learning rate. Biases and layer normalizations are not decayed.

    Args:
      learning_rate: a rate or a schedule.
      weight_decay_rate: the weight decay of all other variables.
      beta_1, beta_2: the decay rates of the first and second moments.
      epsilon: is added to the root of the second moment.
      bias_correction: whether the moments are corrected for starting at 0. The original does not
        correct them. With the correction (Loshchilov and Hutter, 2019), the first updates have the
        size that the learning rate implies, which is more stable with a short warm-up.

    Attributes:
      freezing: what the first updates leave as it is; None: nothing.
    """

    def __init__(
        self,
        learning_rate: Any,
        weight_decay_rate: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        bias_correction: bool = True,
    ):
        super().__init__(learning_rate, name="adamw")
        self._rate_or_schedule = learning_rate
        self.weight_decay_rate = weight_decay_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.bias_correction = bias_correction
        self.freezing: Freezing | None = None

    def copy(self) -> Self:
        """A new optimizer with the same settings and no variables."""
        other = type(self)(
            self._rate_or_schedule,
            self.weight_decay_rate,
            self.beta_1,
            self.beta_2,
            self.epsilon,
            self.bias_correction,
        )
        other.freezing = self.freezing
        return other

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the moments, in the order of `variables`."""
        if self.built:
            return
        super().build(variables)
        self.first_moments, self.second_moments = self.add_optimizer_variables(
            variables, ["adam_m", "adam_v"]
        )
        self._is_decayed = [is_decayed(variable.path) for variable in variables]
        self._ranks_of_tables = [
            len(variable.shape) if variable.path.endswith(TABLES_OF_WORDS) else None
            for variable in variables
        ]

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable and its moments."""
        index = self._get_variable_index(variable)
        moment_1, moment_2 = self.first_moments[index], self.second_moments[index]
        new_1 = self.beta_1 * moment_1 + (1 - self.beta_1) * gradient
        new_2 = self.beta_2 * moment_2 + (1 - self.beta_2) * ops.square(gradient)
        self.assign(moment_1, self.trained(new_1, variable, moment_1))
        self.assign(moment_2, self.trained(new_2, variable, moment_2))
        m, v = ops.convert_to_tensor(moment_1), ops.convert_to_tensor(moment_2)
        if self.bias_correction:
            updates = ops.cast(self._updates(variable), "float32")
            m = m / (1 - ops.power(self.beta_1, updates))
            v = v / (1 - ops.power(self.beta_2, updates))
        update = m / (ops.sqrt(v) + self.epsilon)
        if self._is_decayed[index]:
            decayed = self.trained(update + self.weight_decay_rate * variable, variable)
            update = self.scaled(decayed, self.trained(variable, variable))
        self.assign_sub(variable, learning_rate * self.trained(update, variable))

    def trained(self, values: Any, variable: keras.Variable, otherwise: Any = 0.0) -> Any:
        """Values for a variable's entries, but others where the next update leaves an entry as is.

        Args:
          values: an array of the variable's shape.
          variable: the variable.
          otherwise: the other values.
        """
        if not self.freezing:
            return values
        rank = self._ranks_of_tables[self._get_variable_index(variable)]
        is_trained = self.freezing.is_trained(rank, self.iterations)
        return ops.where(is_trained, *map(ops.convert_to_tensor, (values, otherwise)))

    def _updates(self, variable: keras.Variable) -> Any:
        """The number of updates that the variable has seen after this one."""
        if self.freezing:
            rank = self._ranks_of_tables[self._get_variable_index(variable)]
            return self.freezing.updates(rank, self.iterations)
        return self.iterations + 1

    def scaled(self, update: Any, variable: Any) -> Any:
        """A decayed variable's update, before it is multiplied by the learning rate.

        Both are 0 where the update leaves an entry as it is.
        """
        return update


class Lamb(AdamW):
    """AdamW with a separate learning rate for each variable, for batches of many thousands.

    A variable's update is scaled to the variable's norm (You et al., 2019, "Large Batch
    Optimization for Deep Learning: Training BERT in 76 minutes"). As in the authors' code,
    variables that are not decayed (biases and layer normalizations) are not scaled either.
    """

    def scaled(self, update: Any, variable: Any) -> Any:
        """Scales an update to the norm of its variable, unless either norm is 0."""
        variable_norm, update_norm = _norm(variable), _norm(update)
        ratio = variable_norm / ops.where(update_norm > 0, update_norm, 1.0)
        is_scaled = ops.logical_and(variable_norm > 0, update_norm > 0)
        return ops.where(is_scaled, ratio, 1.0) * update


class LossScale:
    """The factor that keeps float16 gradients from underflowing to 0, between 1 and 2^24.

    It doubles after 2000 good updates in a row and halves after each update whose gradients are not
    finite. Such an update is skipped (Micikevicius et al., 2018, "Mixed Precision Training").
    """

    _START, _LOWEST, _HIGHEST = 2.0**15, 1.0, 2.0**24
    _UPDATES_TO_DOUBLE = 2000

    def __init__(self) -> None:
        self.scale = keras.Variable(self._START, trainable=False, name="loss_scale")
        self.good_updates = keras.Variable(
            0, trainable=False, dtype="int32", name="loss_scale_good_updates"
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The state that checkpoints save."""
        return [self.scale, self.good_updates]

    def is_lowest(self) -> Any:
        """Whether the scale cannot be halved any further."""
        return ops.convert_to_tensor(self.scale) <= self._LOWEST

    def update(self, is_finite: Any) -> None:
        """Adapts the scale to whether the last gradients were finite."""
        good_updates = ops.where(is_finite, self.good_updates + 1, 0)
        doubles = good_updates >= self._UPDATES_TO_DOUBLE
        scale = self.scale * ops.where(is_finite, ops.where(doubles, 2.0, 1.0), 0.5)
        self.scale.assign(ops.clip(scale, self._LOWEST, self._HIGHEST))
        self.good_updates.assign(ops.where(doubles, 0, good_updates))


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to a variable of this name."""
    return not any(part in name for part in _NOT_DECAYED)


def clip_by_global_norm(gradients: Sequence[Any], max_norm: float) -> tuple[list[Any], Any]:
    """Scales all gradients down together if their global norm exceeds `max_norm`.

    Returns:
      The gradients, and their global norm before clipping.
    """
    norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
    scale = max_norm / ops.maximum(norm, max_norm)
    return [gradient * scale for gradient in gradients], norm


def _norm(x: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(x)))
