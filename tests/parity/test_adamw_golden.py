"""AdamW with clipping and schedule against the trajectory of the original."""

from contextlib import ExitStack

import keras
import numpy as np

from modeling.optimization import AdamW, LinearWarmupAndDecay, clip_by_global_norm


def named_variable(path, values):
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(values, name=name)


def test_every_step_equals_that_of_the_original(golden_dir):
    with np.load(golden_dir / "adamw_trajectory.npz") as arrays:
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
