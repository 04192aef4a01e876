import numpy as np
import pytest
from keras import ops

from modeling.losses import batch_totals, pretraining_sums, total_loss
from modeling.optimization import AdamW, Lamb, LossScale
from modeling.pretraining import BertForPreTraining
from modeling.update import Update


@pytest.fixture
def make_update(shallow_config, randomize):
    """A function that makes an update of a model of random weights."""

    def make(rule=AdamW, **settings):
        model = randomize(BertForPreTraining(shallow_config))
        optimizer = rule(0.1)
        optimizer.build(model.trainable_variables)
        return Update(model, optimizer, **settings)

    return make


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(4)


def arrays(variables):
    return [variable.numpy() for variable in variables]


def gradients_of(update, size=0.01, seed=1):
    rng = np.random.default_rng(seed)
    return [np.float32(size * rng.standard_normal(w.shape)) for w in update.weights]


def as_tensors(gradients):
    return [ops.convert_to_tensor(gradient) for gradient in gradients]


def apply(update, gradients):
    return {name: float(told) for name, told in update.apply(as_tensors(gradients)).items()}


def global_norm(gradients):
    return np.sqrt(sum(np.square(np.float64(gradient)).sum() for gradient in gradients))


def test_variables_are_weights_moments_count_and_loss_scale(make_update):
    update = make_update(loss_scale=LossScale())
    weights, optimizer = update.model.trainable_variables, update.optimizer
    variables = [id(variable) for variable in update.variables]
    assert variables[: len(weights)] == [id(weight) for weight in weights]
    assert set(variables) >= {
        id(variable)
        for variable in (
            optimizer.iterations,
            *optimizer.first_moments,
            *optimizer.second_moments,
            *update.loss_scale.variables,
        )
    }
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("clip_norm", [0.05, 1e3])
def test_clipped_gradients_go_to_the_optimizer(make_update, clip_norm):
    update, twin = make_update(clip_norm=clip_norm), make_update()
    gradients = gradients_of(update)
    norm = global_norm(gradients)
    assert apply(update, gradients) == pytest.approx({"gradient_norm": norm, "updates": 1.0})
    factor = np.float32(min(1.0, clip_norm / norm))
    twin.optimizer.apply(as_tensors([g * factor for g in gradients]), twin.weights)
    for actual, expected in zip(arrays(update.variables), arrays(twin.variables), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_loss_scale_is_taken_out_of_the_gradients(make_update):
    update, twin = make_update(loss_scale=LossScale()), make_update()
    gradients = gradients_of(update)
    scale = np.float32(update.loss_scale.scale.numpy())
    told = apply(update, [gradient * scale for gradient in gradients])
    assert told == apply(twin, gradients) | {"updates_left_out": 0.0}
    assert int(update.loss_scale.good_updates) == 1
    for actual, expected in zip(arrays(update.variables), arrays(twin.variables), strict=False):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("rule", [AdamW, Lamb])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_update_with_gradients_that_are_not_finite_is_left_out(make_update, rule, value):
    update = make_update(rule, loss_scale=LossScale())
    gradients = gradients_of(update)
    apply(update, gradients)
    changed = [*update.weights, *update.optimizer.first_moments, *update.optimizer.second_moments]
    before, scale = arrays(changed), float(update.loss_scale.scale)
    gradients[3].flat[0] = value
    told = {"gradient_norm": 0.0, "updates": 0.0, "updates_left_out": 1.0}
    assert apply(update, gradients) == told
    for first, second in zip(before, arrays(changed), strict=True):
        np.testing.assert_array_equal(first, second)
    # The learning rate and dropout go on.
    assert int(update.optimizer.iterations) == 2
    assert float(update.loss_scale.scale) == scale / 2
    assert int(update.loss_scale.good_updates) == 0


def test_gradients_that_are_not_finite_at_the_lowest_scale_are_told(make_update):
    update = make_update(loss_scale=LossScale())
    update.loss_scale.scale.assign(1.0)
    gradients = gradients_of(update)
    gradients[3].flat[0] = np.inf
    before = arrays(update.weights)
    assert not np.isfinite(apply(update, gradients)["gradient_norm"])
    assert float(update.loss_scale.scale) == 1.0
    for first, second in zip(before, arrays(update.weights), strict=True):
        np.testing.assert_array_equal(first, second)


def test_without_a_loss_scale_gradients_that_are_not_finite_are_told(make_update):
    update = make_update()
    gradients = gradients_of(update)
    gradients[3].flat[0] = np.nan
    assert np.isnan(apply(update, gradients)["gradient_norm"])


def test_parts_keep_the_order_of_the_batch(make_update, batch):
    parts = make_update(accumulation_steps=2).parts(batch)
    for name, values in batch.items():
        expected = np.stack([values[:2], values[2:]])
        np.testing.assert_array_equal(np.asarray(parts[name]), expected)


def loss_of(update, batch):
    return float(update.loss(update.with_keys(batch), batch_totals(batch))[0])


def test_each_update_and_seed_draws_its_own_dropout(make_update, batch):
    update, other_seed = make_update(), make_update(seed=1)
    losses = [loss_of(update, batch), loss_of(other_seed, batch)]
    assert loss_of(update, batch) == losses[0]
    for _ in range(2):
        update.optimizer.iterations.assign(update.optimizer.iterations + 1)
        losses.append(loss_of(update, batch))
    assert len(set(losses)) == 4
    update.optimizer.iterations.assign(0)
    assert loss_of(update, batch) == losses[0]


def test_loss_is_of_the_sums(make_update, batch):
    update = make_update()
    loss, sums = update.loss(update.with_keys(batch), batch_totals(batch))
    assert float(loss) == pytest.approx(float(total_loss({**sums, **batch_totals(batch)})))
    without_dropout = pretraining_sums(make_update().model(batch), batch)
    assert sums.keys() == without_dropout.keys()
    assert float(sums["masked_lm_nll"]) != float(without_dropout["masked_lm_nll"])


def test_loss_is_multiplied_by_the_loss_scale(make_update, batch):
    update = make_update(loss_scale=LossScale())
    keyed = update.with_keys(batch)
    scaled, sums = update.loss(keyed, batch_totals(batch))
    loss, expected_sums = make_update().loss(keyed, batch_totals(batch))
    assert float(scaled) == pytest.approx(float(loss) * 2**15)
    assert {name: float(x) for name, x in sums.items()} == pytest.approx(
        {name: float(x) for name, x in expected_sums.items()}
    )
