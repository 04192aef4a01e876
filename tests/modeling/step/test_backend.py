import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.losses import batch_totals, pretraining_sums, total_loss
from modeling.optimization import AdamW, LossScale
from modeling.step.backend import TrainStep, check_divisible, device_names, eval_step, peak_memory
from modeling.step.learner import Learner
from modeling.training_options import Precision, TrainingOptions
from pipeline.errors import UserError
from pipeline.sentence_pairs import SentencePairs

ROOT = Path(__file__).parents[3]
SEED, CLIP_NORM, NUM_STEPS = 7, 0.5, 3


@pytest.fixture(scope="module")
def batch(make_batch):
    """Eight instances, in pairs with very different numbers of masked positions."""
    batch = make_batch(8)
    for pair, weights in enumerate([(1, 1, 1), (1, 0, 0), (0, 0, 0), (1, 1, 0)]):
        batch["masked_lm_weights"][2 * pair : 2 * pair + 2] = weights
    return batch


class Steps:
    """A model with its compiled train step, and the state that every test starts from."""

    def __init__(self, config, randomize, precision=Precision.FLOAT32, recomputes=False, parts=1):
        self.model = BertForPreTraining(config, 0, precision, recomputes)
        self.optimizer = AdamW(1e-2)
        self.optimizer.build(self.model.trainable_variables)
        self.loss_scale = LossScale() if precision == Precision.FLOAT16 else None
        self.learner = Learner(
            self.model, self.optimizer, SEED, parts, self.loss_scale, clip_norm=CLIP_NORM
        )
        self._step = TrainStep(self.learner)
        randomize(self.model)
        self._start = self.state()

    def started(self, learning_rate=1e-2):
        for variable, value in zip(self.learner.variables, self._start, strict=True):
            variable.assign(value)
        self.optimizer.learning_rate = learning_rate
        return self

    def state(self):
        return [variable.numpy() for variable in self.learner.variables]

    def weights(self):
        return {name: weight.numpy() for name, weight in self.model.named_weights().items()}

    def moments(self):
        variables = (*self.optimizer.first_moments, *self.optimizer.second_moments)
        return [moment.numpy() for moment in variables]

    def clipped_gradients(self):
        """The clipped gradients of the first step."""
        return [moment.numpy() / (1 - 0.9) for moment in self.optimizer.first_moments]

    def train(self, batch):
        return as_floats(self._step(batch))


def as_floats(results):
    return {name: float(value) for name, value in results.items()}


def sums_without_dropout(model, batch):
    return as_floats({**batch_totals(batch), **pretraining_sums(model(batch), batch)})


def global_norm(arrays):
    return np.sqrt(sum(np.square(np.float64(array)).sum() for array in arrays))


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_near(weights, expected, atol):
    for name, values in weights.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def no_dropout(shallow_config):
    return dataclasses.replace(
        shallow_config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


@pytest.fixture(scope="module")
def compiled(shallow_config, randomize):
    return Steps(shallow_config, randomize)


@pytest.fixture
def steps(compiled):
    return compiled.started()


@pytest.fixture(scope="module")
def compiled_without_dropout(no_dropout, randomize):
    return Steps(no_dropout, randomize)


@pytest.fixture
def steps_without_dropout(compiled_without_dropout):
    return compiled_without_dropout.started()


@pytest.fixture(scope="module")
def compiled_float16(shallow_config, randomize):
    return Steps(shallow_config, randomize, Precision.FLOAT16)


@pytest.fixture
def float16_steps(compiled_float16):
    return compiled_float16.started()


@pytest.fixture(scope="module")
def compiled_bfloat16(shallow_config, randomize):
    return Steps(shallow_config, randomize, Precision.BFLOAT16)


@pytest.fixture
def bfloat16_steps(compiled_bfloat16):
    return compiled_bfloat16.started()


def test_train_step_returns_the_sums_before_its_update(steps_without_dropout, batch):
    expected = sums_without_dropout(steps_without_dropout.model, batch)
    results = steps_without_dropout.train(batch)
    assert results.pop("gradient_norm") > CLIP_NORM
    assert results.pop("updates") == 1.0
    assert results == pytest.approx(expected, rel=1e-5)


def test_train_step_takes_the_gradients_of_the_loss(steps_without_dropout, batch):
    """They equal the loss's slopes, measured along another direction for each variable."""
    steps, rng, distance = steps_without_dropout, np.random.default_rng(2), 0.01
    results = steps.train(batch)
    scale = results["gradient_norm"] / CLIP_NORM
    gradients = [scale * gradient for gradient in steps.clipped_gradients()]
    assert global_norm(gradients) == pytest.approx(results["gradient_norm"], rel=1e-4)
    steps.started()
    evaluate = eval_step(steps.model)
    for weight, gradient in zip(steps.learner.weights, gradients, strict=True):
        start, direction = weight.numpy(), rng.standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        direction += gradient / np.linalg.norm(gradient)
        losses = []
        for sign in (1, -1):
            weight.assign(start + sign * distance * direction)
            losses.append(total_loss(as_floats(evaluate(batch))))
        weight.assign(start)
        slope = (losses[0] - losses[1]) / (2 * distance)
        expected = (gradient * direction).sum()
        assert slope == pytest.approx(expected, rel=0.01, abs=2e-4), weight.path


def test_train_step_applies_the_clipped_gradients(steps_without_dropout, randomize, batch):
    steps = steps_without_dropout
    steps.train(batch)
    gradients = steps.clipped_gradients()
    assert global_norm(gradients) == pytest.approx(CLIP_NORM, rel=1e-4)
    assert int(steps.optimizer.iterations) == 1
    twin, optimizer = randomize(BertForPreTraining(steps.model.config)), AdamW(1e-2)
    tensors = [keras.ops.convert_to_tensor(gradient) for gradient in gradients]
    optimizer.apply(tensors, twin.trainable_variables)
    expected = {name: weight.numpy() for name, weight in twin.named_weights().items()}
    assert_near(steps.weights(), expected, atol=1e-6)
    for moment, value in zip(steps.optimizer.second_moments, optimizer.second_moments, strict=True):
        np.testing.assert_allclose(moment.numpy(), value.numpy(), rtol=1e-4, atol=1e-12)


def test_every_variable_is_trained(steps, batch):
    before = steps.weights()
    steps.train(batch)
    for name, values in steps.weights().items():
        if not name.endswith("key/bias"):  # attention does not depend on it
            assert np.abs(values - before[name]).max() > 1e-3, name


def test_each_train_step_draws_its_own_dropout(steps, batch):
    at_start, losses = steps.weights(), []
    for _ in range(3):
        steps.model.set_named_weights(at_start)
        losses.append(steps.train(batch)["masked_lm_nll"])
    assert len(set(losses)) == 3
    steps.model.set_named_weights(at_start)
    steps.optimizer.iterations.assign(1)
    assert steps.train(batch)["masked_lm_nll"] == losses[1]


@pytest.mark.parametrize("fixture", ["steps", "bfloat16_steps"])
def test_train_steps_are_repeatable(fixture, batch, request):
    steps = request.getfixturevalue(fixture)
    first = [steps.train(batch) for _ in range(3)], steps.state()
    steps.started()
    second = [steps.train(batch) for _ in range(3)], steps.state()
    assert first[0] == second[0]
    assert_same(first[1], second[1])


@pytest.mark.parametrize("fixture", ["steps", "bfloat16_steps", "float16_steps"])
def test_repeated_steps_learn_the_batch(fixture, batch, request):
    steps = request.getfixturevalue(fixture)
    losses = [total_loss(steps.train(batch)) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert {variable.dtype for variable in steps.learner.weights} == {"float32"}


@pytest.mark.parametrize(
    ("fixture", "tolerance"), [("bfloat16_steps", 0.05), ("float16_steps", 0.005)]
)
def test_gradients_in_lower_precision_are_close_to_float32(
    steps, batch, request, fixture, tolerance
):
    steps.train(batch)
    in_precision = request.getfixturevalue(fixture)
    in_precision.train(batch)
    for name, gradient, expected in zip(
        steps.weights(), in_precision.clipped_gradients(), steps.clipped_gradients(), strict=True
    ):
        assert global_norm([gradient - expected]) < tolerance * CLIP_NORM, name


def test_gradient_norm_in_lower_precision_is_close_to_float32(
    steps, bfloat16_steps, float16_steps, batch
):
    norm = steps.train(batch)["gradient_norm"]
    assert bfloat16_steps.train(batch)["gradient_norm"] == pytest.approx(norm, rel=0.03)
    assert float16_steps.train(batch)["gradient_norm"] == pytest.approx(norm, rel=0.003)


def test_update_that_overflows_float16_is_skipped(float16_steps, batch):
    steps = float16_steps
    steps.train(batch)
    weights, moments = steps.weights(), steps.moments()
    steps.loss_scale.scale.assign(2.0**60)
    results = steps.train(batch)
    assert (results["gradient_norm"], results["updates"]) == (0.0, 0.0)
    assert np.isfinite(list(results.values())).all()
    assert_same(weights.values(), steps.weights().values())
    assert_same(moments, steps.moments())
    assert int(steps.optimizer.iterations) == 2
    assert float(steps.loss_scale.scale) == 2.0**24
    assert int(steps.loss_scale.good_updates) == 0
    steps.loss_scale.scale.assign(2.0**15)
    assert steps.train(batch)["updates"] == 1.0
    assert int(steps.loss_scale.good_updates) == 1


# Four parts also add up more than once.
@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_batch_in_parts_gives_the_update_of_the_whole(
    steps_without_dropout, no_dropout, randomize, batch, parts
):
    whole, in_parts = steps_without_dropout.started(1e-4), Steps(no_dropout, randomize, parts=parts)
    in_parts.started(1e-4)
    assert in_parts.train(batch) == pytest.approx(whole.train(batch), rel=1e-5)
    for moment, expected in zip(in_parts.moments(), whole.moments(), strict=True):
        np.testing.assert_allclose(moment, expected, rtol=1e-3, atol=1e-8)
    assert_near(in_parts.weights(), whole.weights(), atol=1e-6)


def test_recomputed_activations_give_the_same_update(steps, shallow_config, randomize, batch):
    recomputing = Steps(shallow_config, randomize, recomputes=True).started(1e-4)
    steps.started(1e-4)
    for _ in range(NUM_STEPS):
        assert recomputing.train(batch) == pytest.approx(steps.train(batch), rel=1e-5)
    for moment, expected in zip(recomputing.moments(), steps.moments(), strict=True):
        np.testing.assert_allclose(moment, expected, rtol=1e-3, atol=1e-8)
    assert_near(recomputing.weights(), steps.weights(), atol=1e-6)


TRAIN_IN_A_NEW_PROCESS = """
import sys
from pathlib import Path
import keras
import numpy as np
from modeling.config import BertConfig
from modeling.optimization import AdamW
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.step.backend import Replicas, TrainStep
from modeling.step.learner import Learner

directory, seed, num_steps, clip_norm, num_devices, parts = sys.argv[1:]
if keras.config.backend() == "tensorflow" and num_devices == "2":
    import tensorflow as tf

    (processor,) = tf.config.list_physical_devices("CPU")
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(processor, devices)
replicas = Replicas()
assert replicas.count == replicas.local_count == int(num_devices)
model = BertForPreTraining(BertConfig.read(Path(directory, "config.json")))
model.set_named_weights(np.load(Path(directory, "start.npz")))
optimizer = AdamW(1e-4)
optimizer.build(model.trainable_variables)
learner = Learner(model, optimizer, int(seed), int(parts), clip_norm=float(clip_norm))
step = TrainStep(learner, replicas)
batch = dict(np.load(Path(directory, "batch.npz")))
for _ in range(int(num_steps)):
    step(batch)
weights = {name: weight.numpy() for name, weight in model.named_weights().items()}
np.savez(Path(directory, f"{keras.config.backend()}.npz"), **weights)
"""


def assert_trains_alike(steps, config, batch, directory, backend, num_devices=1, parts=1):
    """Checks that a new process trains like the steps here."""
    (directory / "config.json").write_text(config.to_json())
    np.savez(directory / "batch.npz", **batch)
    start = steps.started(1e-4).weights()
    np.savez(directory / "start.npz", **start)
    arguments = map(str, (directory, SEED, NUM_STEPS, CLIP_NORM, num_devices, parts))
    xla_flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    subprocess.run(
        [sys.executable, "-c", TRAIN_IN_A_NEW_PROCESS, *arguments],
        env=os.environ | {"KERAS_BACKEND": backend, "XLA_FLAGS": xla_flags},
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    for _ in range(NUM_STEPS):
        steps.train(batch)
    with np.load(directory / f"{backend}.npz") as weights:
        for name, values in steps.weights().items():
            np.testing.assert_allclose(weights[name], values, rtol=0, atol=1e-6, err_msg=name)
            if not name.endswith("key/bias"):
                assert np.abs(values - start[name]).max() > 1e-4, name


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow" or importlib.util.find_spec("jax") is None,
    reason="needs the TensorFlow backend and jax",
)
def test_jax_trains_like_tensorflow(steps, shallow_config, batch, tmp_path):
    assert_trains_alike(steps, shallow_config, batch, tmp_path, "jax")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_two_devices_train_like_one(steps, shallow_config, batch, tmp_path, parts):
    """They use the same dropout, and means over the whole batch."""
    backend = keras.config.backend()
    assert_trains_alike(steps, shallow_config, batch, tmp_path, backend, num_devices=2, parts=parts)


@pytest.mark.parametrize(
    ("batch_size", "parts", "num_replicas", "message"),
    [
        (7, 1, 2, "--train_batch_size=7 cannot be divided among 2 devices: give a multiple of 2"),
        (8, 8, 2, "among 2 devices, 8 times each: give a multiple of 16"),
    ],
)
def test_batch_that_cannot_be_divided_is_refused(batch_size, parts, num_replicas, message):
    options = TrainingOptions(train_batch_size=batch_size, gradient_accumulation_steps=parts)
    check_divisible(options, 1)
    with pytest.raises(UserError, match=message):
        check_divisible(options, num_replicas)


def test_eval_step_uses_no_dropout_and_changes_nothing(steps, batch):
    before, evaluate = steps.state(), eval_step(steps.model)
    expected = sums_without_dropout(steps.model, batch)
    assert as_floats(evaluate(batch)) == pytest.approx(expected, rel=1e-5)
    assert as_floats(evaluate(batch)) == as_floats(evaluate(batch))
    assert_same(before, steps.state())


def test_eval_step_follows_the_weights(steps, batch):
    evaluate = eval_step(steps.model)
    before = total_loss(as_floats(evaluate(batch)))
    for _ in range(20):
        steps.train(batch)
    assert total_loss(as_floats(evaluate(batch))) < 0.9 * before


def test_peak_memory_is_known_only_for_gpus():
    assert (peak_memory() is None) == (not device_names())


def test_without_pairs_the_masked_words_alone_are_learnt(no_dropout, randomize, batch):
    alone = dataclasses.replace(no_dropout, sentence_pairs=SentencePairs.NONE)
    steps = Steps(alone, randomize, parts=2).started()
    expected, before = sums_without_dropout(steps.model, batch), steps.weights()
    results = steps.train(batch)
    assert {name: results[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert not [name for name in results if "next_sentence" in name]
    after = steps.weights()
    assert all(not np.array_equal(after[name], values) for name, values in before.items())


# The last test of the shared step, which it compiles for other sizes.
def test_batches_may_change_their_size(steps_without_dropout, batch):
    steps = steps_without_dropout
    for size in (8, 2, 2):
        part = {name: values[:size] for name, values in batch.items()}
        expected = sums_without_dropout(steps.model, part)
        results = steps.train(part)
        assert {name: results[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert int(steps.optimizer.iterations) == 3


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="is about TensorFlow")
def test_tensorflow_does_not_warn_of_the_sizes_of_a_warm_up(caplog, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    doubled = tf.function(lambda x: 2 * x)
    for size in range(10):
        doubled(tf.zeros(size))
    assert not caplog.messages
