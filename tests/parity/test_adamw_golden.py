"""AdamW with clipping and schedule against the trajectory of the original."""

from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import pytest

from modeling.optimization import AdamW, LinearWarmupAndDecay, clip_by_global_norm

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "adamw_trajectory.npz"


def named_variable(path, values):
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(values, name=name)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden data are not here")
def test_every_step_of_the_original():
    with np.load(GOLDEN) as arrays:
        golden = dict(arrays)
    names = [name.removeprefix("init:") for name in golden if name.startswith("init:")]
    variables = [named_variable(name, golden[f"init:{name}"]) for name in names]
    num_steps = int(golden["num_train_steps"])
    schedule = LinearWarmupAndDecay(
        float(golden["learning_rate"]), num_steps, int(golden["num_warmup_steps"])
    )
    optimizer = AdamW(schedule, bias_correction=False)
    has_been_clipped = set()
    for step in range(num_steps):
        gradients = [keras.ops.convert_to_tensor(golden[f"grad:{name}"][step]) for name in names]
        clipped, norm = clip_by_global_norm(gradients, 1.0)
        has_been_clipped.add(float(norm) > 1.0)
        optimizer.apply(clipped, variables)
        for name, variable in zip(names, variables, strict=True):
            np.testing.assert_allclose(
                variable.numpy(),
                golden[f"param:{name}"][step],
                rtol=1e-6,
                atol=1e-6,
                err_msg=f"{name} after step {step}",
            )
    assert True in has_been_clipped
