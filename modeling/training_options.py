"""How a BERT is trained: all options of `clozemill pretrain` except the model and the data."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from modeling.masking_schedule import MaskingSchedule
from pipeline.errors import UserError

_LARGEST = (1 << 31) - 1  # of the integers that every library takes
_LONGEST_DEFAULT_WARMUP = 10_000


class Precision(StrEnum):
    """The number type of the model's computations; its variables and the moments are float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    """Used with a dynamic loss scale."""


class OptimizerName(StrEnum):
    """The optimizers in `modeling.optimization`."""

    ADAMW = "adamw"
    LAMB = "lamb"


class NewEmbeddings(StrEnum):
    """How the rows of words begin that the BERT from which a run starts does not have."""

    MEAN = "mean"
    """The mean of the rows of the pieces that the BERT has for the word."""
    RANDOM = "random"
    """As those of a new model: random embeddings, and 0 as the output's bias."""


class ScheduleName(StrEnum):
    """The schedules of the learning rate in `modeling.optimization`."""

    LINEAR = "linear"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    POLYNOMIAL = "polynomial"


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Options that the original's run_pretraining.py has keep their names.

    Attributes:
      train_batch_size: B, the number of sequences per update.
      batch_size_warmup_steps: the number of updates until a batch has B sequences; 0 for B from the
        first update on.
      gradient_accumulation_steps: the number of parts in which a batch is computed, in turn.
      learning_rate: the peak learning rate.
      num_train_steps: the total number of updates.
      num_warmup_steps: the number of updates until the learning rate peaks. By default, a tenth of
        `num_train_steps`, rounded down, but at most 10,000.
      learning_rate_schedule: how the learning rate falls after the warm-up.
      num_decay_steps: the number of last updates over which a stable learning rate falls to 0; 0
        for none. By default, a tenth of `num_train_steps`, rounded down. None in other schedules.
      decay_power: the power of a polynomial decay, by default 1. None in other schedules.
      optimizer: the optimizer.
      freeze_old_steps: the number of first updates that change the rows of new words alone.
      weight_decay_rate: the weight decay of all variables but biases and layer normalizations.
      adam_bias_correction: whether Adam's moments are corrected for starting at 0. The original
        does not correct them.
      precision: the number type of the model's computations.
      recompute_activations: whether the backward pass recomputes activations instead of keeping
        them.
      context_parallel: the number of devices that divide the positions of each sequence.
      masked_lm_prob: the share of tokens to mask, or a schedule of it, also given as text; only
        with data whose masks are drawn while training. By default, the share in the eval instances.
      save_checkpoints_steps: the number of updates between checkpoints.
      keep_checkpoints: the number of newest checkpoints that are kept.
      keep_every_steps: the checkpoint of each multiple of this is saved and kept for good; 0 for
        none.
      log_every_steps: the number of updates between lines of metrics.
      eval_every_steps: the number of updates between evaluations; 0 for none.
      eval_batch_size: the number of sequences per batch of an evaluation.
      max_eval_steps: the largest number of batches in an evaluation.
      random_seed: seeds the initial weights, dropout, the order of the data, and masks that are
        drawn while training.
      verify_data: whether the SHA-256 of each shard is compared with the manifest.

    Raises:
      UserError: an option is out of range.
    """

    train_batch_size: int = 32
    batch_size_warmup_steps: int = 0
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    num_train_steps: int = 100_000
    num_warmup_steps: int = cast("int", None)  # `__post_init__` replaces it
    learning_rate_schedule: ScheduleName = ScheduleName.LINEAR
    num_decay_steps: int | None = None
    decay_power: float | None = None
    optimizer: OptimizerName = OptimizerName.ADAMW
    freeze_old_steps: int = 0
    weight_decay_rate: float = 0.01
    adam_bias_correction: bool = True
    precision: Precision = Precision.FLOAT32
    recompute_activations: bool = False
    context_parallel: int = 1
    masked_lm_prob: MaskingSchedule | None = None
    save_checkpoints_steps: int = 1_000
    keep_checkpoints: int = 5
    keep_every_steps: int = 0
    log_every_steps: int = 50
    eval_every_steps: int = 0
    eval_batch_size: int = 32
    max_eval_steps: int = 100
    random_seed: int = 12345
    verify_data: bool = True

    def __post_init__(self) -> None:
        for name in (
            "train_batch_size",
            "gradient_accumulation_steps",
            "context_parallel",
            "num_train_steps",
            "save_checkpoints_steps",
            "keep_checkpoints",
            "log_every_steps",
            "eval_batch_size",
            "max_eval_steps",
        ):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise UserError(
                    f"--{name}={getattr(self, name)} must lie between 1 and {_LARGEST:,}"
                )
        for name in (
            "learning_rate",
            "weight_decay_rate",
            "keep_every_steps",
            "eval_every_steps",
            "random_seed",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name}={getattr(self, name)} must be at least 0 and finite")
        if self.masked_lm_prob is not None:
            schedule = MaskingSchedule(str(self.masked_lm_prob))
            object.__setattr__(self, "masked_lm_prob", schedule)  # the class is frozen
        if self.num_warmup_steps is None:
            warmup = min(self.num_train_steps // 10, _LONGEST_DEFAULT_WARMUP)
            object.__setattr__(self, "num_warmup_steps", warmup)  # the class is frozen
        for name in ("num_warmup_steps", "batch_size_warmup_steps", "freeze_old_steps"):
            if not 0 <= getattr(self, name) <= self.num_train_steps:
                raise UserError(
                    f"--{name}={getattr(self, name)} must lie between 0 and "
                    f"--num_train_steps={self.num_train_steps}"
                )
        self._check_decay()
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"--train_batch_size={self.train_batch_size} must be a multiple of "
                f"--gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )

    @property
    def last_stable_step(self) -> int | None:
        """The step after which a stable learning rate falls; None in other schedules."""
        return None if self.num_decay_steps is None else self.num_train_steps - self.num_decay_steps

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is saved at a step."""
        return (
            step % self.save_checkpoints_steps == 0
            or step == self.num_train_steps
            or self.is_kept(step)
        )

    def is_kept(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good, so that a run can branch from it."""
        is_multiple = self.keep_every_steps > 0 and step % self.keep_every_steps == 0
        return is_multiple or step == self.last_stable_step

    def _check_decay(self) -> None:
        """Checks the options of the schedule's decay, and replaces those that are None."""
        for name, schedule, default in (
            ("num_decay_steps", ScheduleName.WARMUP_STABLE_DECAY, self.num_train_steps // 10),
            ("decay_power", ScheduleName.POLYNOMIAL, 1.0),
        ):
            if self.learning_rate_schedule == schedule:
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
            elif (given := getattr(self, name)) is not None:
                raise UserError(
                    f"--{name}={given} belongs to --learning_rate_schedule={schedule}: give that, "
                    f"or remove --{name}"
                )
        most = self.num_train_steps - self.num_warmup_steps
        if self.num_decay_steps is not None and not 0 <= self.num_decay_steps <= most:
            raise UserError(
                f"--num_decay_steps={self.num_decay_steps} must lie between 0 and {most}, the part "
                f"of --num_train_steps={self.num_train_steps} after "
                f"--num_warmup_steps={self.num_warmup_steps}"
            )
        if self.decay_power is not None and not 0 < self.decay_power < math.inf:
            raise UserError(f"--decay_power={self.decay_power} must be larger than 0 and finite")
