"""Devices that divide the positions of sequences train as one device that has them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling.attention import masked_attention
from modeling.step.backend import Replicas, check_divisible, check_positions_divisible
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
NUM_DEVICES, BATCH_SIZE, NUM_STEPS, VOCAB_SIZE = 4, 8, 20, 61
# P is no multiple of the devices.
HIDDEN_SIZE, NUM_LAYERS, NUM_PREDICTIONS = 16, 1, 13
needs_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="needs the JAX backend")

# Trains on all devices, in each way that it is asked for, and writes down what comes of it.
TRAIN = """
import json, re, sys
import keras
import numpy as np
from modeling.config import BertConfig
from modeling.step.backend import Replicas, TrainStep, eval_step
from modeling.step.learner import new_learner
from modeling.training_options import OptimizerName, Precision, TrainingOptions

directory, config, cases = sys.argv[1], *map(json.loads, sys.argv[2:])
config = BertConfig(**config)

def floats(results):
    return {name: float(value) for name, value in results.items()}

for name, (batch, num_steps, options) in cases.items():
    for option, kind in (("precision", Precision), ("optimizer", OptimizerName)):
        if option in options:
            options[option] = kind(options[option])
    options = TrainingOptions(train_batch_size=8, num_train_steps=100, **options)
    with np.load(f"{directory}/{batch}.npz") as arrays:
        batch = dict(arrays)
    replicas = Replicas(None, options.context_parallel)
    learner = new_learner(config, options)
    step = TrainStep(learner, replicas)
    results = [floats(step(batch))]
    moments = [each.numpy() for each in learner.optimizer.first_moments]
    results += [floats(step(batch)) for _ in range(num_steps - 1)]
    # Each is in a loop, and so runs once a turn.
    hlo = step._compiled.as_text()
    sent = re.findall(r" = \\w(\\d+)\\[([\\d,]+)\\]\\S* collective-permute\\(", hlo)
    figures = {
        "results": results,
        "evaluation": floats(eval_step(learner.model, replicas)(batch)),
        "attention": step.attention_kernel,
        "sent": [int(bits) // 8 * eval(shape.replace(",", "*")) for bits, shape in sent],
    }
    json.dump(figures, open(f"{directory}/{name}.json", "w"))
    np.savez(f"{directory}/{name}.npz", *moments)
"""


def sequences(seq_length):
    """A batch of sequences of different lengths, with predictions anywhere in them."""
    rng = np.random.default_rng(0)
    lengths = np.array([seq_length, seq_length // 3, seq_length - 1, 9] * 2)[:, np.newaxis]
    is_token = (np.arange(seq_length) < lengths).astype(np.int32)
    shape = BATCH_SIZE, NUM_PREDICTIONS
    positions = np.sort(rng.integers(0, lengths, shape), axis=1)
    return {
        "input_ids": rng.integers(1, VOCAB_SIZE, is_token.shape) * is_token,
        "input_mask": is_token,
        "segment_ids": is_token * (np.arange(seq_length) > 6),
        "masked_lm_positions": positions,
        "masked_lm_ids": rng.integers(1, VOCAB_SIZE, shape),
        "masked_lm_weights": (positions % 5 > 0).astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, (BATCH_SIZE, 1)),
    }


def rows(seq_length):
    """A batch of rows of up to three sequences, which begin on different devices."""
    batch = sequences(seq_length)
    tokens = np.count_nonzero(batch["input_mask"], axis=1)[:, np.newaxis]
    ends = np.array([[3, 40], [20, 128], [64, 96], [128, 128]] * 2) * seq_length // 128
    numbers = 1 + (np.arange(seq_length) >= ends[:, :1]) + (np.arange(seq_length) >= ends[:, 1:])
    batch["input_mask"] = np.where(np.arange(seq_length) < tokens, numbers, 0)
    batch["next_sentence_labels"] = np.arange(3 * BATCH_SIZE).reshape(BATCH_SIZE, 3) % 2
    return batch


class Training:
    """What came of the cases of a training: the figures, and the gradients of the first step."""

    def __init__(self, directory):
        self._directory = directory

    def figures(self, case):
        return json.loads((self._directory / f"{case}.json").read_text())

    def gradients(self, case):
        with np.load(self._directory / f"{case}.npz") as moments:
            return [moments[name] / (1 - 0.9) for name in moments.files]


def environment(num_devices):
    """That of a process with so many devices."""
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function that trains on four devices of one process; all cases share that process."""

    def run(batches, cases, **config):
        directory = tmp_path_factory.mktemp("context")
        for name, batch in batches.items():
            as_int32 = {
                k: v if v.dtype == np.float32 else v.astype(np.int32) for k, v in batch.items()
            }
            np.savez(directory / name, **as_int32)
        longest = max(batch["input_ids"].shape[1] for batch in batches.values())
        config = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": longest,
            "initializer_range": 0.3,
            **config,
        }
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(directory), json.dumps(config), json.dumps(cases)],
            env=environment(NUM_DEVICES),
            cwd=ROOT,
            check=True,
            timeout=900,
        )
        return Training(directory)

    return run


def for_each_size(cases, sizes=(1, 2, 4)):
    """The cases, for different numbers of devices that divide a sequence."""
    return {
        f"{name}-{size}": (
            batch,
            steps,
            {"learning_rate": 1e-3, **options, "context_parallel": size},
        )
        for name, (batch, steps, options) in cases.items()
        for size in sizes
    }


def assert_same(training, name, tolerance=1e-5, sizes=(2, 4)):
    """Checks that a case trains and evaluates as with one device a sequence."""
    expected = training.figures(f"{name}-1")
    norm = max(expected["results"][0]["gradient_norm"], 1)
    for size in sizes:
        figures = training.figures(f"{name}-{size}")
        assert figures["attention"] == f"by a ring of {size} devices; compiled by XLA"
        for one, other in zip(figures["results"], expected["results"], strict=True):
            assert one == pytest.approx(other, rel=tolerance), (name, size)
        assert figures["evaluation"] == pytest.approx(expected["evaluation"], rel=tolerance)
        gradients = training.gradients(f"{name}-{size}")
        for gradient, other in zip(gradients, training.gradients(f"{name}-1"), strict=True):
            np.testing.assert_allclose(gradient, other, rtol=0, atol=tolerance * norm)


@pytest.fixture(scope="module")
def trained_on_rows(train):
    return train({"rows": rows(128)}, for_each_size({"rows": ("rows", NUM_STEPS, {})}, (1, 4)))


@needs_jax
def test_four_devices_that_divide_rows_train_as_one(trained_on_rows):
    """With dropout: each device draws its part of the masks of the whole."""
    assert_same(trained_on_rows, "rows", sizes=[4])
    results = trained_on_rows.figures("rows-4")["results"]
    assert results[-1]["masked_lm_nll"] < results[0]["masked_lm_nll"]


@needs_jax
def test_only_keys_values_and_their_gradients_go_round(trained_on_rows):
    assert trained_on_rows.figures("rows-1")["sent"] == []
    part = 4 * BATCH_SIZE * (128 // 4) * HIDDEN_SIZE
    # At each turn. Forward: keys and values; backward: these, and their gradients.
    sent = trained_on_rows.figures("rows-4")["sent"]
    assert sent == 6 * [part]
    assert 4 * sum(sent) == BATCH_SIZE * 128 * HIDDEN_SIZE * (4 * 4 + 8)  # as the README says


@needs_jax
@settings(max_examples=4, deadline=None)
@given(
    size=st.integers(2, 5),
    part=st.integers(1, 5),
    most=st.integers(1, 3),
    rate=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 99),
)
@example(size=4, part=3, most=1, rate=0.4, seed=0)  # devices with nothing but padding
@example(size=3, part=1, most=3, rate=0.0, seed=1)  # sequences that begin on each device
def test_a_ring_attends_to_any_rows_as_one_device(size, part, most, rate, seed):
    """Its output and its gradients; the devices of the ring are examples of a `vmap`."""
    import jax

    from modeling.context import CONTEXT, Context

    rng = np.random.default_rng(seed)
    rows, heads, head_size, length = 2, 2, 3, size * part
    ends = np.sort(rng.integers(1, length + 1, (rows, most)))
    ends[0] = 1  # a token, and padding on all other devices
    place = np.arange(length)
    numbers = 1 + np.sum(place >= ends[:, :-1, np.newaxis], axis=1)
    numbers = np.where(place < ends[:, -1:], numbers, 0)
    tensors = 3 * rng.standard_normal((4, rows, length, heads, head_size), np.float32)
    keys = rng.integers(0, 1 << 32, rows, np.uint32)

    def with_gradients(attention):
        attend = attention(numbers.astype(np.int32), most)

        def run(q, k, v, d_context):
            context, gradients = jax.vjp(lambda *x: attend(*x, rate, keys), q, k, v)
            return context, *gradients(d_context)

        return run

    expected = jax.jit(with_gradients(masked_attention))(*tensors)
    ring = jax.vmap(with_gradients(Context(size).attention), axis_name=CONTEXT)
    parts = tensors.reshape(4, rows, size, part, heads, head_size).swapaxes(1, 2)
    for whole, divided in zip(expected, jax.jit(ring)(*parts), strict=True):
        joined = np.moveaxis(np.asarray(divided), 0, 1).reshape(whole.shape)
        np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-5 * np.abs(whole).max() + 1e-6)


# Each is compared with one device a sequence in the same way.
WAYS = {
    "sequences": ("sequences", 128, NUM_STEPS, {}),
    "rows": ("rows", 128, NUM_STEPS, {}),
    "long sequences": ("sequences", 2048, NUM_STEPS, {}),
    "long rows": ("rows", 2048, NUM_STEPS, {}),
    "lamb": ("rows", 128, 5, {"optimizer": "lamb"}),
    "accumulated": ("sequences", 128, 5, {"gradient_accumulation_steps": 2}),
    "recomputed": ("rows", 128, 5, {"recompute_activations": True}),
    "bfloat16": ("rows", 128, 5, {"precision": "bfloat16"}),
}


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_devices_that_divide_sequences_train_as_one(way, train):
    make = {"sequences": sequences, "rows": rows}
    kind, seq_length, num_steps, options = WAYS[way]
    cases = for_each_size({way: (kind, num_steps, options)})
    trained = train({kind: make[kind](seq_length)}, cases)
    assert_same(trained, way, tolerance=0.02 if way == "bfloat16" else 1e-5)


@needs_jax
@pytest.mark.slow
def test_without_pairs_devices_train_as_one(train):
    cases = for_each_size({"alone": ("rows", NUM_STEPS, {})})
    assert_same(train({"rows": rows(128)}, cases, sentence_pairs="none"), "alone")


# Compiles the step of BERT-base at 8,192 positions, which is never run, for each size of contexts.
MEASURE = """
import json, sys
from dataclasses import replace
import jax
import numpy as np
from modeling.config import BertConfig
from modeling.step.jax_step import Replicas, TrainStep
from modeling.step.learner import new_learner
from modeling.training_options import TrainingOptions

recompute, length, predictions = sys.argv[1] == "True", 8192, 1229
Replicas.share = lambda *_: None  # the weights stay on one device
config = replace(BertConfig.preset("base", 30522), max_position_embeddings=length)
learner, memory = new_learner(config, TrainingOptions()), {}
for size in (1, 2, 4, 8):
    replicas, rows = Replicas(None, size), 8 // size
    step = TrainStep(learner, replicas)
    weights = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in learner.variables]
    of_tokens = ("input_ids", "input_mask", "segment_ids")
    batch = {name: np.ones((rows, length), np.int32) for name in of_tokens}
    of_predictions = ("masked_lm_positions", "masked_lm_ids")
    batch |= {name: np.ones((rows, predictions), np.int32) for name in of_predictions}
    batch["masked_lm_weights"] = np.ones((rows, predictions), np.float32)
    batch["next_sentence_labels"] = np.ones((rows, 1), np.int32)
    learner.model.bert.encoder.recompute_activations = recompute
    compiled = replicas.compiled(step._step, weights, replicas.divide(batch))
    memory[size] = compiled.memory_analysis().temp_size_in_bytes
print(json.dumps(memory))
"""


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_memory_falls_with_the_number_of_devices(recompute):
    """A sequence for each context: what a device needs besides the variables."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(recompute)],
        env=environment(num_devices=8),
        cwd=ROOT,
        check=True,
        timeout=900,
        stdout=subprocess.PIPE,
    )
    memory = json.loads(result.stdout)
    for size in (2, 4, 8):
        assert memory[str(size)] < 1.2 / size * memory["1"]
    assert memory["8"] < 0.05 * memory["1"]


@needs_jax
def test_devices_that_cannot_be_divided_are_refused():
    with pytest.raises(UserError, match=r"=3 does not divide the number of devices, 1: .*_count=3"):
        Replicas(None, 3)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="needs TensorFlow")
def test_tensorflow_is_refused():
    with pytest.raises(UserError, match="--context_parallel=2 needs --backend=jax"):
        Replicas(None, 2)


def test_positions_that_cannot_be_divided_are_refused():
    check_positions_divisible(4, 128)
    with pytest.raises(UserError, match="=3 does not divide the 128 positions"):
        check_positions_divisible(3, 128)


def test_batches_that_cannot_be_divided_are_refused():
    options = TrainingOptions(train_batch_size=6, context_parallel=2)
    check_divisible(options, 3)
    with pytest.raises(UserError, match="among 4 groups of 2 devices: give a multiple of 4"):
        check_divisible(options, 4)
