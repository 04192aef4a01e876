from contextlib import ExitStack

import keras
import numpy as np
import pytest
from keras import ops

from modeling.optimization import (
    AdamW,
    Freezing,
    Lamb,
    LinearWarmupAndDecay,
    LossScale,
    PolynomialWarmupAndDecay,
    WarmupStableDecay,
    clip_by_global_norm,
    is_decayed,
)


def variable(name, values):
    *scopes, name = name.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.array(values, np.float32), name=name)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (1, 0.001),
        (5, 0.005),
        (9, 0.009),
        (10, 0.009),
        (11, 0.0089),
        (50, 0.005),
        (99, 0.0001),
        (100, 0.0),
        (150, 0.0),
    ],
)
def test_rate_warms_up_then_decays_from_step_0(step, rate):
    schedule = LinearWarmupAndDecay(0.01, num_train_steps=100, num_warmup_steps=10)
    assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.01), (50, 0.005), (100, 0.0)])
def test_rate_without_warm_up_begins_at_the_peak(step, rate):
    schedule = LinearWarmupAndDecay(0.01, num_train_steps=100, num_warmup_steps=0)
    assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_warm_up_may_last_to_the_end():
    schedule = LinearWarmupAndDecay(0.01, num_train_steps=10, num_warmup_steps=10)
    rates = [float(schedule(step)) for step in range(11)]
    assert rates == pytest.approx([0.001 * step for step in range(10)] + [0.0], abs=1e-8)


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def test_linear_rates_are_the_original_ones_to_the_bit():
    # The original's own expressions, in float32.
    peak, steps = np.float32(1e-4), np.arange(0, 103, dtype=np.float32)
    decayed = peak * (1 - np.minimum(steps / np.float32(100), np.float32(1)))
    original = np.where(steps < 10, peak * steps / np.float32(10), decayed)
    schedule = LinearWarmupAndDecay(1e-4, num_train_steps=100, num_warmup_steps=10)
    np.testing.assert_array_equal(rates(schedule, range(103)).astype(np.float32), original)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (5, 0.005),
        (9, 0.009),
        (10, 0.01),
        (59, 0.01),
        (60, 0.01),
        (61, 0.01 * (1 - np.sqrt(1 / 40))),
        (70, 0.005),
        (99, 0.01 * (1 - np.sqrt(39 / 40))),
        (100, 0.0),
        (150, 0.0),
    ],
)
def test_stable_rate_falls_over_the_last_steps(step, rate):
    schedule = WarmupStableDecay(0.01, num_train_steps=100, num_warmup_steps=10, num_decay_steps=40)
    assert float(schedule(step)) == pytest.approx(rate, abs=1e-8)


def test_runs_of_different_lengths_share_their_stable_part():
    short, long, endless = (
        rates(WarmupStableDecay(0.01, num_steps, 10, num_decay_steps), range(51))
        for num_steps, num_decay_steps in ((60, 10), (120, 70), (70, 0))
    )
    assert set(short[10:]) == {np.float32(0.01)}
    np.testing.assert_array_equal(short, long)
    np.testing.assert_array_equal(short, endless)


@pytest.mark.parametrize("num_decay_steps", [0, 10])
def test_stable_rate_without_warm_up_begins_at_the_peak(num_decay_steps):
    schedule = WarmupStableDecay(0.01, 10, 0, num_decay_steps)
    assert float(schedule(0)) == np.float32(0.01)
    assert float(schedule(10)) == np.float32(0.0 if num_decay_steps else 0.01)


# NVIDIA's PolyWarmUpScheduler is given shares of all steps, and the number of an update from 1.
@pytest.mark.parametrize(
    ("peak", "num_steps", "warmup_proportion", "num_warmup_steps"),
    [(6e-3, 7038, 0.2843, 2000), (4e-3, 1563, 0.128, 200)],
)
def test_polynomial_rates_are_those_of_nvidia(peak, num_steps, warmup_proportion, num_warmup_steps):
    def of_nvidia(number):
        progress = number / num_steps
        if progress < warmup_proportion:
            return peak * progress / warmup_proportion
        return peak * (1 - progress) ** 0.5

    around = range(num_warmup_steps - 3, num_warmup_steps + 3)
    steps = [0, 1, 17, *around, num_steps // 2, num_steps - 2, num_steps - 1]
    schedule = PolynomialWarmupAndDecay(peak, num_steps, num_warmup_steps, 0.5)
    expected = [of_nvidia(step + 1) for step in steps]
    # Their warm-up ends between two steps.
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=5e-4)
    assert expected[-1] == 0.0 < expected[0]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_rate_stays_0_after_the_end(power):
    schedule = PolynomialWarmupAndDecay(0.01, 10, 0, power)
    np.testing.assert_array_equal(rates(schedule, (9, 10, 15)), 0.0)
    assert float(schedule(4)) == pytest.approx(0.01 * 0.5**power)


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("bert/embeddings/word_embeddings", True),
        ("bert/embeddings/position_embeddings", True),
        ("bert/embeddings/LayerNorm/gamma", False),
        ("bert/embeddings/LayerNorm/beta", False),
        ("bert/encoder/layer_0/attention/self/query/kernel", True),
        ("bert/encoder/layer_0/attention/self/query/bias", False),
        ("bert/encoder/layer_0/output/layer_norm/gamma", False),
        ("cls/predictions/output_bias", False),
        ("cls/seq_relationship/output_weights", True),
        ("cls/seq_relationship/output_bias", False),
    ],
)
def test_biases_and_normalizations_are_not_decayed(name, decayed):
    assert is_decayed(name) == decayed
    weight = variable(name, [2.0, -4.0])
    AdamW(0.1, weight_decay_rate=0.5).apply([ops.zeros(2)], [weight])
    expected = np.array([2.0, -4.0]) * (1 - 0.1 * 0.5 if decayed else 1)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("bias_correction", "size"), [(True, 1.0), (False, 0.1 / np.sqrt(0.001))])
def test_size_of_the_first_update(bias_correction, size):
    weight = variable("dense/bias", [0.0, 0.0, 0.0])
    optimizer = AdamW(0.01, bias_correction=bias_correction, epsilon=1e-12)
    optimizer.apply([ops.convert_to_tensor([3.0, -0.5, 0.0])], [weight])
    np.testing.assert_allclose(weight.numpy(), [-0.01 * size, 0.01 * size, 0], rtol=1e-4)


def test_epsilon_is_outside_the_square_root():
    weight = variable("dense/bias", [0.0])
    AdamW(1.0, epsilon=0.5).apply([ops.convert_to_tensor([0.25])], [weight])
    np.testing.assert_allclose(weight.numpy(), [-0.25 / (0.25 + 0.5)], rtol=1e-4)


def test_first_update_after_a_warm_up_from_0_changes_nothing():
    weight = variable("dense/kernel", [[1.0]])
    optimizer = AdamW(LinearWarmupAndDecay(0.1, num_train_steps=10, num_warmup_steps=5))
    optimizer.apply([ops.ones((1, 1))], [weight])
    np.testing.assert_array_equal(weight.numpy(), [[1.0]])
    optimizer.apply([ops.ones((1, 1))], [weight])
    assert weight.numpy()[0, 0] < 1.0


def test_gradients_above_the_norm_are_scaled_down_together():
    gradients = [ops.convert_to_tensor([3.0, 0.0]), ops.convert_to_tensor([[4.0]])]
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose(clipped[0], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[0.8]], rtol=1e-6)


@pytest.mark.parametrize("values", [[0.3, -0.4], [0.6, 0.8], [0.0, 0.0]])
def test_gradients_within_the_norm_are_unchanged(values):
    clipped, norm = clip_by_global_norm([ops.convert_to_tensor([v]) for v in values], 1.0)
    assert float(norm) == pytest.approx(np.hypot(*values))
    np.testing.assert_allclose(np.concatenate(clipped), np.float32(values), rtol=1e-6)


def update_of(rule, name, start, gradient, **settings):
    """The change that an optimizer makes to a variable in one update with learning rate 1."""
    weight = variable(name, start)
    rule(1.0, **settings).apply([ops.convert_to_tensor(gradient)], [weight])
    return np.float32(start) - weight.numpy()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_lamb_update_is_as_large_as_its_variable(size):
    start = size * np.float32([[1.0, -2.0], [3.0, 4.0]])
    update = update_of(Lamb, "dense/kernel", start, [[0.1, 0.3], [-0.2, 0.0]])
    assert np.linalg.norm(update) == pytest.approx(np.linalg.norm(start), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "start", "gradient"),
    [
        ("dense/bias", [3.0, 4.0], [0.1, -0.3]),
        ("LayerNorm/gamma", [1.0, 1.0], [0.1, -0.3]),
        ("dense/kernel", [0.0, 0.0], [0.1, -0.3]),
    ],
    ids=["bias", "normalization", "variable of norm 0"],
)
def test_lamb_update_that_is_not_scaled_is_that_of_adamw(name, start, gradient):
    update = update_of(Lamb, name, start, gradient)
    np.testing.assert_array_equal(update, update_of(AdamW, name, start, gradient))
    assert np.abs(update).min() > 0.9


def test_lamb_update_of_norm_0_changes_nothing():
    update = update_of(Lamb, "dense/kernel", [3.0, 4.0], [0.0, 0.0], weight_decay_rate=0.0)
    np.testing.assert_array_equal(update, [0.0, 0.0])


# Freezing.

NUM_FROZEN = 3
IS_NEW = np.array([False, True, False, True, True])
VARIABLES = {
    "bert/embeddings/word_embeddings": (5, 2),
    "cls/predictions/output_bias": (5,),
    "bert/embeddings/position_embeddings": (5, 2),
    "cls/seq_relationship/output_bias": (2,),
}


class Trained:
    """Variables and their optimizer: all entries, or some rows of those that have rows of words."""

    def __init__(self, rule, rows=slice(None), freezing=None, bias_correction=True):
        rng = np.random.default_rng(0)
        starts = {name: rng.standard_normal(shape) for name, shape in VARIABLES.items()}
        self.weights = [variable(n, v[rows] if len(v) == 5 else v) for n, v in starts.items()]
        self.optimizer = rule(0.1, weight_decay_rate=0.5, bias_correction=bias_correction)
        self.optimizer.build(self.weights)
        self.optimizer.freezing = freezing
        self._rows = rows

    def update(self, *steps):
        for step in steps:
            rng = np.random.default_rng(step)
            gradients = [rng.standard_normal(s).astype(np.float32) for s in VARIABLES.values()]
            gradients = [g[self._rows] if len(g) == 5 else g for g in gradients]
            self.optimizer.apply([ops.convert_to_tensor(g) for g in gradients], self.weights)
        return self

    def values(self):
        optimizer = self.optimizer
        variables = (*self.weights, *optimizer.first_moments, *optimizer.second_moments)
        return [each.numpy() for each in variables]


def freezing_optimizer(rule, **settings):
    return Trained(rule, freezing=Freezing(NUM_FROZEN, IS_NEW), **settings)


@pytest.mark.parametrize("rule", [AdamW, Lamb])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_new_rows_are_trained_as_if_there_were_no_others(rule, bias_correction):
    frozen = freezing_optimizer(rule, bias_correction=bias_correction)
    start = frozen.values()
    frozen.update(*range(NUM_FROZEN))
    alone = Trained(rule, IS_NEW, bias_correction=bias_correction).update(*range(NUM_FROZEN))
    for i, (before, after, expected) in enumerate(
        zip(start, frozen.values(), alone.values(), strict=True)
    ):
        if i % 4 > 1:  # no table of words
            np.testing.assert_array_equal(after, before)
            continue
        np.testing.assert_array_equal(after[~IS_NEW], before[~IS_NEW])
        np.testing.assert_allclose(after[IS_NEW], expected, rtol=1e-5, atol=1e-7)
        assert np.abs(after - before)[IS_NEW].max() > 0


def test_old_rows_are_trained_afterwards_as_if_that_were_the_start():
    steps = range(NUM_FROZEN, NUM_FROZEN + 2)
    frozen = freezing_optimizer(AdamW).update(*range(NUM_FROZEN), *steps)
    fresh, always = Trained(AdamW).update(*steps), Trained(AdamW).update(*range(NUM_FROZEN), *steps)
    for i, (after, expected, of_new) in enumerate(
        zip(frozen.values(), fresh.values(), always.values(), strict=True)
    ):
        old = ~IS_NEW if i % 4 < 2 else slice(None)
        np.testing.assert_allclose(after[old], expected[old], rtol=1e-5, atol=1e-7)
        if i % 4 < 2:
            np.testing.assert_allclose(after[IS_NEW], of_new[IS_NEW], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [AdamW, Lamb])
def test_a_copy_of_an_optimizer_freezes_the_same(rule):
    optimizer = freezing_optimizer(rule).optimizer
    assert optimizer.copy().freezing is optimizer.freezing


def scale_after(start, good_updates, outcomes):
    """The loss scale and its count of good updates after gradients that were finite or not."""
    scale = LossScale()
    for state, value in zip(scale.variables, (start, good_updates), strict=True):
        state.assign(value)
    for is_finite in outcomes:
        scale.update(ops.convert_to_tensor(is_finite))
    return tuple(float(state) for state in scale.variables)


def test_loss_scale_starts_at_two_to_the_15():
    assert [float(state) for state in LossScale().variables] == [2**15, 0]


@pytest.mark.parametrize(
    ("good_updates", "outcomes", "expected"),
    [
        (0, [True], (1024, 1)),
        (1997, [True, True], (1024, 1999)),
        (1998, [True, True], (2048, 0)),
        (1999, [True, True, True], (2048, 2)),
        (1999, [False], (512, 0)),
        (1998, [False, True, True], (512, 2)),
        (0, [False, False, False], (128, 0)),
    ],
)
def test_loss_scale_is_doubled_after_2000_good_updates_and_halved_at_once(
    good_updates, outcomes, expected
):
    assert scale_after(1024, good_updates, outcomes) == expected
