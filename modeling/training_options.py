"""How a BERT is trained: all that `clozemill pretrain` can be told but for the model and the data."""

import math
from dataclasses import dataclass
from enum import StrEnum

from pipeline.errors import UserError


class Precision(StrEnum):
    """What the model computes in; its variables and the optimizer's moments are float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    """With a dynamic loss scale."""


class OptimizerName(StrEnum):
    """The rules for updates that `modeling.optimization` has."""

    ADAMW = "adamw"
    LAMB = "lamb"


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, under the names of the original's run_pretraining.py where it has them.

    Attributes:
      train_batch_size: B, sequences of an update.
      gradient_accumulation_steps: in how many parts, one after the other, a batch is computed.
      learning_rate: the peak.
      num_train_steps: updates in all.
      num_warmup_steps: updates until the peak.
      optimizer: the rule for updates.
      weight_decay_rate: of all variables but biases and layer normalizations.
      adam_bias_correction: whether Adam's moments are corrected for starting at 0; the original does
        not.
      precision: what the model computes in.
      recompute_activations: whether the backward pass computes activations again instead of keeping them.
      save_checkpoints_steps: updates between checkpoints.
      keep_checkpoints: how many of the newest checkpoints are kept.
      log_every_steps: updates between lines of metrics.
      eval_every_steps: updates between evaluations; 0 for none.
      eval_batch_size: sequences of a batch of evaluation.
      max_eval_steps: batches of an evaluation.
      random_seed: of the initial weights, of dropout and of the order of the data.

    Raises:
      UserError: an option is out of range.
    """

    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    num_train_steps: int = 100_000
    num_warmup_steps: int = 10_000
    optimizer: OptimizerName = OptimizerName.ADAMW
    weight_decay_rate: float = 0.01
    adam_bias_correction: bool = True
    precision: Precision = Precision.FLOAT32
    recompute_activations: bool = False
    save_checkpoints_steps: int = 1_000
    keep_checkpoints: int = 5
    log_every_steps: int = 50
    eval_every_steps: int = 0
    eval_batch_size: int = 32
    max_eval_steps: int = 100
    random_seed: int = 12345

    def __post_init__(self) -> None:
        for name in (
            "train_batch_size",
            "gradient_accumulation_steps",
            "num_train_steps",
            "save_checkpoints_steps",
            "keep_checkpoints",
            "log_every_steps",
            "eval_batch_size",
            "max_eval_steps",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "weight_decay_rate", "eval_every_steps", "random_seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name}={getattr(self, name)} must be at least 0 and finite")
        if not 0 <= self.num_warmup_steps <= self.num_train_steps:
            raise UserError(
                f"--num_warmup_steps={self.num_warmup_steps} must lie between 0 and "
                f"--num_train_steps={self.num_train_steps}; by default it is "
                f"{TrainingOptions.num_warmup_steps}"
            )
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"--train_batch_size={self.train_batch_size} must be a multiple of "
                f"--gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )
