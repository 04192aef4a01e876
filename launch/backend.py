"""The flag of all verbs that compute with a model: on which backend."""

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
    "What computes. Checkpoints do not depend on it. jax: pip install 'clozemill[jax]', for an NVIDIA "
    "GPU also 'jax[cuda12]'.",
)


@contextmanager
def backend() -> Iterator[None]:
    """Around imports of modules that compute, and their start: Keras reads its backend when it is imported.

    Raises:
      UserError: the backend is not installed.
    """
    if importlib.util.find_spec(_BACKEND.value) is None:
        raise UserError(
            f"--backend={_BACKEND.value} needs a package that is missing: pip install {_BACKEND.value}, "
            "or 'clozemill[jax]' for the version that is tested"
        )
    os.environ["KERAS_BACKEND"] = _BACKEND.value
    # JAX tells of each kind of device that it does not find, TensorFlow of each exchange that it compiles.
    for name in ("jax", "tensorflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with native_banners_hidden():
        yield
