import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import TABLES_OF_WORDS
from modeling.losses import batch_totals, pretraining_sums, total_loss
from modeling.optimization import AdamW, Freezing, Lamb, LossScale
from modeling.step.learner import Learner, learning_rate_schedule, new_learner
from modeling.training_options import OptimizerName, Precision, ScheduleName, TrainingOptions


@pytest.fixture
def make_learner(shallow_config, randomize):
    """A function that makes a learner with a model of random weights."""

    def make(rule=AdamW, **settings):
        model = randomize(BertForPreTraining(shallow_config))
        optimizer = rule(0.1)
        optimizer.build(model.trainable_variables)
        return Learner(model, optimizer, **settings)

    return make


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(4)


def arrays(variables):
    return [variable.numpy() for variable in variables]


def gradients_of(learner, size=0.01, seed=1):
    rng = np.random.default_rng(seed)
    return [np.float32(size * rng.standard_normal(w.shape)) for w in learner.weights]


def as_tensors(gradients):
    return [ops.convert_to_tensor(gradient) for gradient in gradients]


def apply(learner, gradients):
    return {name: float(value) for name, value in learner.apply(as_tensors(gradients)).items()}


def global_norm(gradients):
    return np.sqrt(sum(np.square(np.float64(gradient)).sum() for gradient in gradients))


def test_variables_are_weights_moments_count_and_loss_scale(make_learner):
    learner = make_learner(loss_scale=LossScale())
    weights, optimizer = learner.model.trainable_variables, learner.optimizer
    variables = [id(variable) for variable in learner.variables]
    assert variables[: len(weights)] == [id(weight) for weight in weights]
    assert set(variables) >= {
        id(variable)
        for variable in (
            optimizer.iterations,
            *optimizer.first_moments,
            *optimizer.second_moments,
            *learner.loss_scale.variables,
        )
    }
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize("clip_norm", [0.05, 1e3])
def test_the_optimizer_gets_clipped_gradients(make_learner, clip_norm):
    learner, twin = make_learner(clip_norm=clip_norm), make_learner()
    gradients = gradients_of(learner)
    norm = global_norm(gradients)
    assert apply(learner, gradients) == pytest.approx({"gradient_norm": norm, "updates": 1.0})
    factor = np.float32(min(1.0, clip_norm / norm))
    twin.optimizer.apply(as_tensors([g * factor for g in gradients]), twin.weights)
    for actual, expected in zip(arrays(learner.variables), arrays(twin.variables), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [None, 2.0**15])
def test_only_what_is_trained_counts_for_the_norm(make_learner, scale):
    learner = make_learner(clip_norm=0.05, loss_scale=LossScale() if scale else None)
    is_new = np.arange(learner.model.config.vocab_size) % 3 == 0
    learner.optimizer.freezing = Freezing(1, is_new)
    names, before = list(learner.model.named_weights()), arrays(learner.weights)
    gradients = gradients_of(learner)
    trained = [gradients[names.index(name)][is_new] for name in TABLES_OF_WORDS]
    gradients[names.index("bert/pooler/dense/bias")][:] = np.inf  # not used
    results = apply(learner, [gradient * np.float32(scale or 1) for gradient in gradients])
    assert results["gradient_norm"] == pytest.approx(global_norm(trained))
    for name, old, new in zip(names, before, arrays(learner.weights), strict=True):
        rows = is_new if name in TABLES_OF_WORDS else np.zeros(len(old), bool)
        np.testing.assert_array_equal(new[~rows], old[~rows])
        assert (np.abs(new - old)[rows] > 0).all()
    gradients = gradients_of(learner)
    results = apply(learner, [gradient * np.float32(scale or 1) for gradient in gradients])
    assert results["gradient_norm"] == pytest.approx(global_norm(gradients))


def test_gradients_are_divided_by_the_loss_scale(make_learner):
    learner, twin = make_learner(loss_scale=LossScale()), make_learner()
    gradients = gradients_of(learner)
    scale = np.float32(learner.loss_scale.scale.numpy())
    results = apply(learner, [gradient * scale for gradient in gradients])
    assert results == apply(twin, gradients) | {"updates_left_out": 0.0}
    assert int(learner.loss_scale.good_updates) == 1
    for actual, expected in zip(arrays(learner.variables), arrays(twin.variables), strict=False):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("rule", [AdamW, Lamb])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_update_with_gradients_that_are_not_finite_is_skipped(make_learner, rule, value):
    learner = make_learner(rule, loss_scale=LossScale())
    gradients = gradients_of(learner)
    apply(learner, gradients)
    changed = [
        *learner.weights,
        *learner.optimizer.first_moments,
        *learner.optimizer.second_moments,
    ]
    before, scale = arrays(changed), float(learner.loss_scale.scale)
    gradients[3].flat[0] = value
    results = {"gradient_norm": 0.0, "updates": 0.0, "updates_left_out": 1.0}
    assert apply(learner, gradients) == results
    for first, second in zip(before, arrays(changed), strict=True):
        np.testing.assert_array_equal(first, second)
    # The learning rate and dropout advance.
    assert int(learner.optimizer.iterations) == 2
    assert float(learner.loss_scale.scale) == scale / 2
    assert int(learner.loss_scale.good_updates) == 0


def test_gradients_that_are_not_finite_at_the_lowest_scale_are_reported(make_learner):
    learner = make_learner(loss_scale=LossScale())
    learner.loss_scale.scale.assign(1.0)
    gradients = gradients_of(learner)
    gradients[3].flat[0] = np.inf
    before = arrays(learner.weights)
    assert not np.isfinite(apply(learner, gradients)["gradient_norm"])
    assert float(learner.loss_scale.scale) == 1.0
    for first, second in zip(before, arrays(learner.weights), strict=True):
        np.testing.assert_array_equal(first, second)


def test_gradients_that_are_not_finite_without_a_loss_scale_are_reported(make_learner):
    learner = make_learner()
    gradients = gradients_of(learner)
    gradients[3].flat[0] = np.nan
    assert np.isnan(apply(learner, gradients)["gradient_norm"])


def test_parts_keep_the_order_of_the_batch(make_learner, batch):
    parts = make_learner(accumulation_steps=2).parts(batch)
    for name, values in batch.items():
        expected = np.stack([values[:2], values[2:]])
        np.testing.assert_array_equal(np.asarray(parts[name]), expected)


def loss_of(learner, batch):
    return float(learner.loss(learner.with_keys(batch), batch_totals(batch))[0])


def test_each_update_and_seed_draws_its_own_dropout(make_learner, batch):
    learner, other_seed = make_learner(), make_learner(seed=1)
    losses = [loss_of(learner, batch), loss_of(other_seed, batch)]
    assert loss_of(learner, batch) == losses[0]
    for _ in range(2):
        learner.optimizer.iterations.assign(learner.optimizer.iterations + 1)
        losses.append(loss_of(learner, batch))
    assert len(set(losses)) == 4
    learner.optimizer.iterations.assign(0)
    assert loss_of(learner, batch) == losses[0]


def test_loss_is_computed_from_the_sums(make_learner, batch):
    learner = make_learner()
    loss, sums = learner.loss(learner.with_keys(batch), batch_totals(batch))
    assert float(loss) == pytest.approx(float(total_loss({**sums, **batch_totals(batch)})))
    without_dropout = pretraining_sums(make_learner().model(batch), batch)
    assert sums.keys() == without_dropout.keys()
    assert float(sums["masked_lm_nll"]) != float(without_dropout["masked_lm_nll"])


def test_loss_is_multiplied_by_the_loss_scale(make_learner, batch):
    learner = make_learner(loss_scale=LossScale())
    keyed = learner.with_keys(batch)
    scaled, sums = learner.loss(keyed, batch_totals(batch))
    loss, expected_sums = make_learner().loss(keyed, batch_totals(batch))
    assert float(scaled) == pytest.approx(float(loss) * 2**15)
    assert {name: float(x) for name, x in sums.items()} == pytest.approx(
        {name: float(x) for name, x in expected_sums.items()}
    )


def test_options_configure_the_learner(shallow_config):
    default = new_learner(shallow_config, TrainingOptions())
    assert type(default.optimizer) is AdamW
    assert default.optimizer.bias_correction
    assert default.optimizer.weight_decay_rate == 0.01
    assert (default.seed, default.accumulation_steps, default.loss_scale) == (12345, 1, None)
    other = new_learner(
        shallow_config,
        TrainingOptions(
            optimizer=OptimizerName.LAMB,
            adam_bias_correction=False,
            weight_decay_rate=0.1,
            random_seed=7,
            gradient_accumulation_steps=2,
            precision=Precision.FLOAT16,
        ),
    )
    assert type(other.optimizer) is Lamb
    assert not other.optimizer.bias_correction
    assert other.optimizer.weight_decay_rate == 0.1
    assert (other.seed, other.accumulation_steps) == (7, 2)
    assert float(other.loss_scale.scale) == 2.0**15
    first, second = (
        ops.convert_to_numpy(learner.model.named_weights()["bert/pooler/dense/kernel"])
        for learner in (default, other)
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 0.006),
        ({"learning_rate_schedule": ScheduleName.WARMUP_STABLE_DECAY, "num_decay_steps": 8}, 0.005),
        ({"learning_rate_schedule": ScheduleName.WARMUP_STABLE_DECAY}, 0.01),
        ({"learning_rate_schedule": ScheduleName.POLYNOMIAL, "decay_power": 2}, 0.01 * 0.5**2),
        ({"learning_rate_schedule": ScheduleName.POLYNOMIAL}, 0.005),
    ],
)
def test_options_choose_the_schedule(options, rate):
    schedule = learning_rate_schedule(
        TrainingOptions(learning_rate=0.01, num_train_steps=10, **options)
    )
    assert float(schedule(4)) == pytest.approx(rate)
