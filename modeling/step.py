"""The compiled steps of the backend in use, and its devices."""

import keras

from modeling.training_options import Precision
from pipeline.errors import UserError

if keras.config.backend() == "jax":
    from modeling.jax_step import TrainStep, device_names, eval_step, peak_memory
else:
    from modeling.tensorflow_step import (  # type: ignore[assignment] # of the same form
        TrainStep,
        device_names,
        eval_step,
        peak_memory,
    )

__all__ = ["TrainStep", "check_precision", "device_names", "eval_step", "peak_memory"]


def check_precision(precision: Precision) -> None:
    """Sees that the backend computes in a precision on this machine.

    Raises:
      UserError: it does not.
    """
    if precision == Precision.FLOAT16 and keras.config.backend() == "jax" and not device_names():
        raise UserError("JAX computes in float16 on GPUs only: give --precision=bfloat16")
