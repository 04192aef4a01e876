"""The --backend flag, which all verbs that compute with a model share."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

from launch.banners import native_banners_hidden
from pipeline.errors import UserError

_BACKEND = flags.DEFINE_enum(
    "backend",
    "tensorflow",
    ["tensorflow", "jax"],
    "The library that does the computation. Checkpoints do not depend on it. jax needs "
    "pip install 'clozemill[jax]'; to use an NVIDIA GPU, also install 'jax[cuda12]'.",
)


@contextmanager
def backend() -> Iterator[None]:
    """Selects the backend within a block that imports and starts the modules that compute.

    They must be imported inside, because Keras reads its backend when it is imported.

    Raises:
      UserError: the backend is not installed.
    """
    if importlib.util.find_spec(_BACKEND.value) is None:
        raise UserError(
            f"--backend={_BACKEND.value} needs a package that is not installed: pip install "
            f"{_BACKEND.value}, or 'clozemill[jax]' for the tested version"
        )
    os.environ["KERAS_BACKEND"] = _BACKEND.value
    # JAX logs every kind of device that it does not find; TensorFlow, every collective it compiles.
    for name in ("jax", "tensorflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with native_banners_hidden():
        yield
