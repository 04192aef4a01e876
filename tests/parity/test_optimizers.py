"""AdamW, LAMB and the schedules against Keras, PyTorch, Optax, transformers, and the paper."""

from contextlib import ExitStack

import keras
import numpy as np
import pytest
from keras import ops

from modeling.optimization import (
    AdamW,
    Lamb,
    LinearWarmupAndDecay,
    PolynomialWarmupAndDecay,
    WarmupStableDecay,
)

NUM_STEPS = 8
SCHEDULE = LinearWarmupAndDecay(0.02, num_train_steps=NUM_STEPS + 2, num_warmup_steps=3)
RATES = [float(SCHEDULE(step)) for step in range(NUM_STEPS)]


@pytest.fixture(scope="module")
def start_and_gradients():
    """Values of two kernels of different sizes and a bias, and their gradients at each step."""
    rng = np.random.default_rng(3)
    start = {
        "a/kernel": rng.standard_normal((5, 4)),
        "b/kernel": 0.02 * rng.standard_normal((4, 3)),
        "b/bias": rng.standard_normal(3),
    }
    start = {name: values.astype(np.float32) for name, values in start.items()}
    gradients = [
        {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in start.items()}
        for _ in range(NUM_STEPS)
    ]
    return start, gradients


def named_variable(path, values):
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(values, name=name)


def run(optimizer, start, gradients):
    variables = {name: named_variable(name, values) for name, values in start.items()}
    for step in gradients:
        optimizer.apply([ops.convert_to_tensor(step[name]) for name in start], variables.values())
    return {name: variable.numpy() for name, variable in variables.items()}


def assert_near(actual, expected, atol):
    for name, values in actual.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=atol, err_msg=name)


def test_adamw_is_that_of_keras_except_for_the_place_of_epsilon(start_and_gradients):
    # Keras adds epsilon before correcting the second moment, so epsilon must be negligible.
    # It subtracts the decay before the update, which does not depend on the variable.
    theirs = keras.optimizers.AdamW(SCHEDULE, weight_decay=0.1, epsilon=1e-12)
    theirs.exclude_from_weight_decay(var_names=["bias"])
    expected = run(theirs, *start_and_gradients)
    actual = run(AdamW(SCHEDULE, weight_decay_rate=0.1, epsilon=1e-12), *start_and_gradients)
    assert np.abs(actual["a/kernel"] - start_and_gradients[0]["a/kernel"]).max() > 0.02
    assert_near(actual, expected, atol=1e-6)


def test_adamw_is_that_of_pytorch(start_and_gradients):
    torch = pytest.importorskip("torch")
    start, gradients = start_and_gradients
    parameters = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters["a/kernel"], parameters["b/kernel"]], "weight_decay": 0.1},
            {"params": [parameters["b/bias"]], "weight_decay": 0.0},
        ],
        eps=0.1,
    )
    for rate, step in zip(RATES, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(step[name])
        optimizer.step()
    expected = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
    # In float32, 1 - 0.999^t is at first accurate to five digits.
    actual = run(AdamW(SCHEDULE, weight_decay_rate=0.1, epsilon=0.1), start, gradients)
    assert_near(actual, expected, atol=5e-6)


@pytest.mark.parametrize("rule", [AdamW, Lamb])
def test_optimizers_are_those_of_optax(start_and_gradients, rule):
    optax = pytest.importorskip("optax")
    start, gradients = start_and_gradients
    theirs = (optax.lamb if rule is Lamb else optax.adamw)(
        lambda step: np.float32(RATES)[step],
        eps=1e-6,
        weight_decay=0.1,
        mask={name: name != "b/bias" for name in start},
    )
    parameters, state = start, theirs.init(start)
    for step in gradients:
        updates, state = theirs.update(step, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    actual = run(rule(SCHEDULE, weight_decay_rate=0.1), start, gradients)
    if rule is Lamb:
        # Optax also scales variables that are not decayed.
        actual.pop("b/bias")
    assert_near(actual, parameters, atol=5e-6)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_lamb_is_the_algorithm_of_the_paper(start_and_gradients, bias_correction):
    start, gradients = start_and_gradients
    settings = {"weight_decay_rate": 0.1, "bias_correction": bias_correction}
    actual = run(Lamb(SCHEDULE, **settings), start, gradients)
    expected = {
        name: lamb_by_hand(start[name], [step[name] for step in gradients], bias_correction)
        for name in ("a/kernel", "b/kernel")
    }
    # Variables that are neither decayed nor scaled are updated as by AdamW.
    expected["b/bias"] = run(AdamW(SCHEDULE, **settings), start, gradients)["b/bias"]
    assert np.abs(actual["a/kernel"] - start["a/kernel"]).max() > 0.02
    assert_near(actual, expected, atol=5e-6)


def lamb_by_hand(x, gradients, bias_correction):
    """Algorithm 2 of https://arxiv.org/abs/1904.00962 in float64 for one layer, with φ(x) = x."""
    x, m, v = np.float64(x), 0.0, 0.0
    for t, (rate, g) in enumerate(zip(RATES, np.float64(gradients), strict=True), start=1):
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        m_hat = m / (1 - 0.9**t) if bias_correction else m
        v_hat = v / (1 - 0.999**t) if bias_correction else v
        r = m_hat / (np.sqrt(v_hat) + 1e-6)
        direction = r + 0.1 * x
        x = x - rate * np.linalg.norm(x) / np.linalg.norm(direction) * direction
    return x


def rates_of_pytorch(make_schedule, num_steps):
    """The rates of updates with a schedule of PyTorch or transformers, at a peak of 0.01."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule, rates = make_schedule(optimizer), []
    for _ in range(num_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def test_warmup_stable_decay_is_that_of_transformers():
    theirs = pytest.importorskip("transformers.optimization").get_wsd_schedule
    expected = rates_of_pytorch(
        lambda optimizer: theirs(optimizer, 5, 12, num_training_steps=40, decay_type="1-sqrt"), 42
    )
    schedule = WarmupStableDecay(0.01, num_train_steps=40, num_warmup_steps=5, num_decay_steps=12)
    assert [float(schedule(step)) for step in range(42)] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_polynomial_decay_is_that_of_pytorch_one_update_later(power):
    """PyTorch and transformers count the first update as step 0."""
    scheduler = pytest.importorskip("torch").optim.lr_scheduler.PolynomialLR
    expected = rates_of_pytorch(lambda optimizer: scheduler(optimizer, 30, power), 32)
    schedule = PolynomialWarmupAndDecay(0.01, 30, num_warmup_steps=0, decay_power=power)
    actual = [float(schedule(step)) for step in range(31)]
    assert actual == pytest.approx(expected[1:], abs=1e-8)
