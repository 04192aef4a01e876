import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from modeling.losses import pretraining_sums, total_loss
from modeling.optimization import AdamW, clip_by_global_norm
from modeling.pretraining import BertForPreTraining
from modeling.tensorflow_step import eval_step, train_step

CLIP_NORM = 0.5


@pytest.fixture(scope="module")
def batch(make_batch):
    return {name: tf.constant(values) for name, values in make_batch(4).items()}


def compile_steps(config):
    model = BertForPreTraining(config)
    optimizer = AdamW(1e-2)
    optimizer.build(model.trainable_variables)
    return model, optimizer, train_step(model, optimizer, CLIP_NORM), eval_step(model)


@pytest.fixture(scope="module")
def compiled(shallow_config):
    return compile_steps(shallow_config)


@pytest.fixture(scope="module")
def compiled_without_dropout(shallow_config):
    config = dataclasses.replace(
        shallow_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return compile_steps(config)


@pytest.fixture(scope="module")
def start(randomize):
    """A function that sets model and optimizer to the state that every test starts from."""

    def set_to_start(model, optimizer):
        randomize(model)
        model.bert.seeds.state.assign([5, 0])
        for variable in (*optimizer.first_moments, *optimizer.second_moments, optimizer.iterations):
            variable.assign(np.zeros(variable.shape))

    return set_to_start


@pytest.fixture
def steps(compiled, start):
    """Model, optimizer, train step and eval step."""
    start(*compiled[:2])
    return compiled


@pytest.fixture
def steps_without_dropout(compiled_without_dropout, start):
    start(*compiled_without_dropout[:2])
    return compiled_without_dropout


@pytest.fixture
def eager_twin(compiled_without_dropout, randomize):
    """A model that starts as that of `steps_without_dropout`."""
    return randomize(BertForPreTraining(compiled_without_dropout[0].config))


def sums_and_gradients(model, batch):
    with tf.GradientTape() as tape:
        sums = pretraining_sums(model(batch, training=True), batch)
        loss = total_loss(sums)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    return sums, [tf.convert_to_tensor(gradient) for gradient in gradients]


def as_floats(sums):
    return {name: float(value) for name, value in sums.items()}


def weights(model):
    return {name: variable.numpy() for name, variable in model.named_weights().items()}


def test_train_step_gives_the_sums_before_its_update(steps_without_dropout, eager_twin, batch):
    train = steps_without_dropout[2]
    sums, gradients = sums_and_gradients(eager_twin, batch)
    norm = float(tf.linalg.global_norm(gradients))
    assert norm > CLIP_NORM
    expected = {**as_floats(sums), "gradient_norm": norm}
    assert as_floats(train(batch)) == pytest.approx(expected, rel=1e-4)


def test_train_step_applies_the_clipped_gradients(steps_without_dropout, eager_twin, batch):
    model, optimizer, train, _ = steps_without_dropout
    _, gradients = sums_and_gradients(eager_twin, batch)
    clipped, _ = clip_by_global_norm(gradients, CLIP_NORM)
    eager_optimizer = AdamW(1e-2)
    eager_optimizer.apply(clipped, eager_twin.trainable_variables)
    train(batch)
    assert int(optimizer.iterations) == 1
    for moment, expected in zip(
        (*optimizer.first_moments, *optimizer.second_moments),
        (*eager_optimizer.first_moments, *eager_optimizer.second_moments),
        strict=True,
    ):
        np.testing.assert_allclose(moment.numpy(), expected.numpy(), atol=1e-6)
    updated = weights(model)
    # The sign of a gradient that is close to 0, and with it the first update, is left to rounding.
    for (name, values), gradient in zip(weights(eager_twin).items(), clipped, strict=True):
        certain = np.abs(gradient) > 1e-4
        np.testing.assert_allclose(updated[name][certain], values[certain], atol=1e-4, err_msg=name)


def test_every_variable_is_trained(steps, batch):
    model, _, train, _ = steps
    before = weights(model)
    train(batch)
    for name, values in weights(model).items():
        if not name.endswith("key/bias"):  # which has no influence on the attention
            assert np.abs(values - before[name]).max() > 1e-3, name


def test_each_train_step_draws_its_own_dropout(steps, batch):
    model, _, train, _ = steps
    at_start, states, losses = weights(model), [], []
    for _ in range(3):
        model.set_named_weights(at_start)
        losses.append(float(train(batch)["masked_lm_nll"]))
        states.append(tuple(model.bert.seeds.state.numpy().tolist()))
    assert len(set(states)) == 3
    assert len(set(losses)) == 3


def test_train_steps_are_repeatable(steps, batch, start):
    model, optimizer, train, _ = steps

    def run():
        start(model, optimizer)
        for _ in range(3):
            sums = train(batch)
        return as_floats(sums), weights(model)

    (first_sums, first), (second_sums, second) = run(), run()
    assert first_sums == second_sums
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_repeated_steps_learn_the_batch(steps, batch):
    _, _, train, _ = steps
    losses = [float(total_loss(train(batch))) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_eval_step_is_without_dropout_and_changes_nothing(steps, batch):
    model, optimizer, _, evaluate = steps
    before = [variable.numpy() for variable in (*model.variables, *optimizer.variables)]
    expected = as_floats(pretraining_sums(model(batch, training=False), batch))
    assert as_floats(evaluate(batch)) == pytest.approx(expected, rel=1e-5)
    assert as_floats(evaluate(batch)) == as_floats(evaluate(batch))
    after = [variable.numpy() for variable in (*model.variables, *optimizer.variables)]
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)
