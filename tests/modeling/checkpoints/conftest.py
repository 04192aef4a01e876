"""Weights that the tests of several kinds of checkpoints write."""

import numpy as np
import pytest

from modeling.config import weight_shapes


@pytest.fixture(scope="module")
def weights(config):
    """Random weights of a whole model, not to be changed."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in weight_shapes(config).items()
    }
