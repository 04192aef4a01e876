"""The step of the backend that Keras uses, and what it can compute on this machine.

Both backends implement `modeling.step.interface`.
"""

import keras

from modeling.training_options import Precision, TrainingOptions
from pipeline.errors import UserError

if keras.config.backend() == "jax":
    from modeling.step.jax_step import Replicas, TrainStep, device_names, eval_step, peak_memory
else:
    from modeling.step.tensorflow_step import (  # type: ignore[assignment] # the same interface
        Replicas,
        TrainStep,
        device_names,
        eval_step,
        peak_memory,
    )

__all__ = [
    "Replicas",
    "TrainStep",
    "check_divisible",
    "check_positions_divisible",
    "check_precision",
    "device_names",
    "eval_step",
    "peak_memory",
]


def check_precision(precision: Precision) -> None:
    """Checks that the backend computes in a precision on this machine.

    Raises:
      UserError: it does not.
    """
    if precision == Precision.FLOAT16 and keras.config.backend() == "jax" and not device_names():
        raise UserError("JAX computes in float16 only on GPUs: give --precision=bfloat16")


def check_positions_divisible(context_parallel: int, num_positions: int) -> None:
    """Checks that every device of a replica gets the same number of positions.

    Raises:
      UserError: the positions cannot be divided in this way.
    """
    if num_positions % context_parallel:
        raise UserError(
            f"--context_parallel={context_parallel} does not divide the {num_positions} positions "
            "of the data's sequences or rows: give a divisor of them"
        )


def check_divisible(options: TrainingOptions, num_replicas: int) -> None:
    """Checks that every replica gets the same number of sequences in each part of a batch.

    Raises:
      UserError: the batch cannot be divided in this way.
    """
    parts = num_replicas * options.gradient_accumulation_steps
    if options.train_batch_size % parts:
        accumulated = f", {options.gradient_accumulation_steps} times each"
        groups = f"groups of {options.context_parallel} devices"
        raise UserError(
            f"--train_batch_size={options.train_batch_size} cannot be divided among "
            f"{num_replicas} {groups if options.context_parallel > 1 else 'devices'}"
            + (accumulated if options.gradient_accumulation_steps > 1 else "")
            + f": give a multiple of {parts}"
        )
