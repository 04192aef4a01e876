"""The optimizer against the original's trajectory, and against Keras' and PyTorch's AdamW."""

from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import pytest

from modeling.optimization import AdamW, LinearWarmupAndDecay, clip_by_global_norm

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "adamw_trajectory.npz"
NUM_STEPS = 8


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


@pytest.fixture(scope="module")
def start_and_gradients():
    rng = np.random.default_rng(3)
    start = rng.standard_normal((5, 4)).astype(np.float32)
    return start, rng.standard_normal((NUM_STEPS, 5, 4)).astype(np.float32)


def run(optimizer, start, gradients):
    variable = named_variable("dense/kernel", start)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return variable.numpy()


def test_with_bias_correction_it_is_keras_adamw_but_for_the_place_of_epsilon(start_and_gradients):
    # Keras adds epsilon before the second moment is corrected, so it must be too small to matter.
    # It subtracts the decay before the update, which does not look at the variable.
    settings = {"learning_rate": 0.02, "epsilon": 1e-12}
    expected = run(keras.optimizers.AdamW(weight_decay=0.1, **settings), *start_and_gradients)
    actual = run(AdamW(weight_decay_rate=0.1, **settings), *start_and_gradients)
    assert np.abs(actual - start_and_gradients[0]).max() > 0.02
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_with_bias_correction_it_is_pytorch_adamw(start_and_gradients):
    torch = pytest.importorskip("torch")
    start, gradients = start_and_gradients
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([parameter], lr=0.02, weight_decay=0.1, eps=0.1)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    actual = run(AdamW(0.02, weight_decay_rate=0.1, epsilon=0.1), start, gradients)
    # In float32, 1 - 0.999^t is good to five digits at first.
    np.testing.assert_allclose(actual, parameter.detach().numpy(), rtol=0, atol=5e-6)
