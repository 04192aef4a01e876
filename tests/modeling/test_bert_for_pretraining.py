import dataclasses
from functools import cache

import keras
import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import GeluForm, weight_shapes
from modeling.dropout import dropout_key, example_keys
from modeling.losses import pretraining_sums
from modeling.training_options import Precision
from pipeline.sentence_pairs import SentencePairs

# On a CPU, JAX computes float16 attention only with dropout.
SIZE = 4
KEYS = example_keys(dropout_key(5), np.arange(SIZE))


def values(model):
    return {name: variable.numpy() for name, variable in model.named_weights().items()}


def outputs(model, batch, keys=None):
    return {name: np.asarray(output) for name, output in model(batch, keys).items()}


def dtypes(tensors):
    return {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}


@pytest.fixture(scope="module")
def model(config, randomize):
    """A model of random weights, not to be changed."""
    return randomize(BertForPreTraining(config))


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(4)


def test_variables_have_the_names_and_shapes_of_the_original(model, original_shapes):
    shapes = {name: tuple(variable.shape) for name, variable in model.named_weights().items()}
    assert shapes == original_shapes


def test_named_weights_are_all_trainable_variables(model):
    assert len(model.named_weights()) == len(model.trainable_variables)


def test_second_model_of_the_process_has_the_same_names(model, config):
    assert list(BertForPreTraining(config).named_weights()) == list(model.named_weights())


def test_seed_determines_the_initial_weights_of_the_heads(config):
    name = "cls/predictions/transform/dense/kernel"
    first, same, other = (values(BertForPreTraining(config, seed))[name] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.isin(first, other).any()


def test_masked_lm_logits_come_from_the_masked_positions_by_the_word_embeddings(model, batch):
    weights, result = values(model), outputs(model, batch)
    hidden = np.stack(
        [
            sequence[positions]
            for sequence, positions in zip(
                result["sequence_output"], batch["masked_lm_positions"], strict=True
            )
        ]
    ).astype(np.float64)
    transform = "cls/predictions/transform"
    x = hidden @ weights[f"{transform}/dense/kernel"] + weights[f"{transform}/dense/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * weights[f"{transform}/LayerNorm/gamma"] + weights[f"{transform}/LayerNorm/beta"]
    expected = x @ weights["bert/embeddings/word_embeddings"].T
    expected += weights["cls/predictions/output_bias"]
    np.testing.assert_allclose(result["masked_lm_logits"], expected, atol=1e-4)


def test_next_sentence_logits_come_from_the_pooled_output(model, batch):
    weights, result = values(model), outputs(model, batch)
    expected = result["pooled_output"] @ weights["cls/seq_relationship/output_weights"].T
    expected += weights["cls/seq_relationship/output_bias"]
    np.testing.assert_allclose(result["next_sentence_logits"], expected, atol=1e-5)


def test_predictions_follow_the_order_of_the_positions(model, batch):
    flipped = batch | {"masked_lm_positions": batch["masked_lm_positions"][:, ::-1]}
    np.testing.assert_allclose(
        outputs(model, flipped)["masked_lm_logits"],
        outputs(model, batch)["masked_lm_logits"][:, ::-1],
        atol=1e-5,
    )


def test_labels_do_not_affect_the_outputs(model, batch):
    inputs = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    unlabelled = {name: batch[name] for name in inputs}
    for name, output in outputs(model, unlabelled).items():
        np.testing.assert_array_equal(output, outputs(model, batch)[name])


def test_weights_set_by_name_give_the_same_outputs(model, config, batch):
    other = BertForPreTraining(config, seed=9)
    other.set_named_weights(values(model))
    for name, output in outputs(other, batch).items():
        np.testing.assert_allclose(output, outputs(model, batch)[name], atol=1e-6)


def test_weight_without_a_value_is_an_error(model, config):
    incomplete = values(model)
    del incomplete["bert/pooler/dense/bias"]
    with pytest.raises(KeyError, match="bert/pooler/dense/bias"):
        BertForPreTraining(config).set_named_weights(incomplete)


def test_dropout_needs_a_key(model, batch):
    without, first, same, other = (
        outputs(model, batch, keys)
        for keys in (None, KEYS, KEYS, example_keys(dropout_key(6), np.arange(SIZE)))
    )
    for name, output in first.items():
        np.testing.assert_array_equal(output, same[name])
        assert np.abs(output - without[name]).max() > 0.01
        assert np.abs(output - other[name]).max() > 0.01


@pytest.fixture(scope="module", params=Precision)
def in_precision(request, config, randomize):
    """A precision, and a model that computes in it."""
    return request.param, randomize(BertForPreTraining(config, precision=request.param))


def test_variables_are_float32_in_any_precision(in_precision):
    assert dtypes(in_precision[1].variables) == {"float32"}


def test_the_seed_gives_the_same_weights_in_any_precision(in_precision, config):
    expected = values(BertForPreTraining(config, seed=3))
    for name, weights in values(BertForPreTraining(config, 3, in_precision[0])).items():
        np.testing.assert_array_equal(weights, expected[name])


def test_outputs_have_the_precision_and_are_close_to_float32(in_precision, model, batch):
    precision, narrow = in_precision
    assert dtypes(narrow(batch, KEYS).values()) == {precision}
    # About twenty times the distance between neighbouring numbers above 1.
    tolerance = {Precision.FLOAT32: 0, Precision.BFLOAT16: 0.15, Precision.FLOAT16: 0.02}[precision]
    expected = outputs(model, batch, KEYS)
    for name, output in outputs(narrow, batch, KEYS).items():
        difference = np.abs(output.astype(np.float32) - expected[name]).max()
        assert difference <= tolerance * expected[name].std()
        assert difference > 0 or precision == Precision.FLOAT32


def test_losses_are_float32_in_any_precision(in_precision, batch):
    sums = pretraining_sums(in_precision[1](batch, KEYS), batch)
    assert dtypes(sums.values()) == {"float32"}
    for name, value in sums.items():
        assert np.isfinite(float(value)), name


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_policy_of_keras_is_unchanged(config, batch, policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = BertForPreTraining(config, precision=Precision.FLOAT16)
        assert keras.config.dtype_policy().name == policy
    finally:
        keras.config.set_dtype_policy(previous)
    assert dtypes(model(batch, KEYS).values()) == {"float16"}


def test_a_keras_file_holds_config_and_weights(tmp_path, config, randomize):
    """The loaded model computes in float32, whatever precision the saved one had."""
    config = dataclasses.replace(config, gelu_form=GeluForm.ERF, hidden_dropout_prob=0.3)
    saved = randomize(BertForPreTraining(config, precision=Precision.BFLOAT16))
    saved.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is BertForPreTraining
    assert loaded.config == config
    assert loaded.compute_dtype == "float32"
    for name, expected in values(saved).items():
        np.testing.assert_array_equal(values(loaded)[name], expected, name)


ROW_LENGTH, MOST = 48, 3
PACKINGS = [[[0, 1, 2], [3], [5, 4]], [[5], [2, 4], [3, 0, 1]], [[4, 0], [1, 5], [2, 3]]]


def packed(instances, rows):
    """The instances in rows, each a list of their numbers, and where each of them is."""
    token_names = "input_ids", "input_mask", "segment_ids"
    batch = {name: np.zeros((len(rows), ROW_LENGTH), np.int32) for name in token_names}
    batch["masked_lm_positions"] = np.zeros((len(rows), 3 * MOST), np.int32)
    batch["next_sentence_labels"] = np.zeros((len(rows), MOST), np.int32)
    places = {}
    for row, numbers in enumerate(rows):
        start = 0
        for sequence, number in enumerate(numbers):
            size = int(instances["input_mask"][number].sum())
            tokens, predictions = slice(start, start + size), slice(3 * sequence, 3 * sequence + 3)
            for name in token_names:
                batch[name][row, tokens] = instances[name][number, :size]
            batch["input_mask"][row, tokens] = sequence + 1
            batch["masked_lm_positions"][row, predictions] = (
                start + instances["masked_lm_positions"][number]
            )
            places[number] = {
                "sequence_output": (row, tokens),
                "pooled_output": (row, sequence),
                "masked_lm_logits": (row, predictions),
                "next_sentence_logits": (row, sequence),
            }
            start += size
    return batch, places


def places_alone(instances):
    """Where each instance is in a batch that is not packed."""
    sizes = instances["input_mask"].sum(axis=1)
    return {
        number: {
            "sequence_output": (number, slice(size)),
            "pooled_output": (number,),
            "masked_lm_logits": (number,),
            "next_sentence_logits": (number,),
        }
        for number, size in enumerate(sizes)
    }


def with_gradients(model):
    """A compiled function of a batch, factors of outputs, and keys: outputs, and gradients.

    The gradients are those of the sum of the outputs times their factors.
    """

    def loss(batch, factors, keys):
        results = model(batch, keys)
        return sum(ops.sum(results[name] * factors[name]) for name in factors), results

    variables = model.trainable_variables
    if keras.config.backend() == "jax":
        import jax

        @jax.jit
        def run(values, *inputs):
            def stateless(values):
                with keras.StatelessScope(zip(variables, values, strict=True)):
                    return loss(*inputs)

            return jax.value_and_grad(stateless, has_aux=True)(values)

        def step(*inputs):
            (_, results), gradients = run([variable.value for variable in variables], *inputs)
            return results, gradients
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def step(*inputs):
            with tf.GradientTape() as tape:
                value, results = loss(*inputs)
            gradients = tape.gradient(value, [variable.value for variable in variables])
            return results, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def to_numpy(*inputs):
        results, gradients = step(*keras.tree.map_structure(ops.convert_to_tensor, inputs))
        gradients = dict(zip(model.named_weights(), map(np.asarray, gradients), strict=True))
        return {name: np.asarray(value) for name, value in results.items()}, gradients

    return to_numpy


@pytest.fixture(scope="module")
def make_step(config, randomize):
    """A function that makes `with_gradients` of a model with random weights, once for each kind."""

    @cache
    def make(dropout_rate=0.0, recomputes=False):
        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout_rate)
        shallow = dataclasses.replace(config, **rates, num_hidden_layers=1 + recomputes)
        return with_gradients(
            randomize(BertForPreTraining(shallow, recompute_activations=recomputes))
        )

    return make


def factors_at(places, outputs_shapes, numbers):
    """Factors for the heads' outputs of some instances: random ones, the same wherever they are."""
    factors = {name: np.zeros(shape, np.float32) for name, shape in outputs_shapes.items()}
    for number in numbers:
        rng = np.random.default_rng(number)
        for name, values in factors.items():
            where = places[number][name]
            values[where] = rng.standard_normal(values[where].shape)
    return factors


def shapes_of_heads(config, batch):
    most = batch["next_sentence_labels"].shape[-1]
    return {
        "masked_lm_logits": (*batch["masked_lm_positions"].shape, config.vocab_size),
        "next_sentence_logits": (len(batch["input_ids"]), *([most] if most > 1 else []), 2),
    }


def test_sequences_of_a_row_compute_what_they_do_alone(config, make_batch, make_step):
    step, instances = make_step(), make_batch(6)
    alone, keys = places_alone(instances), ops.zeros(6, "uint32")
    factors = factors_at(alone, shapes_of_heads(config, instances), alone)
    expected, expected_gradients = step(instances, factors, keys)
    for rows in PACKINGS:
        batch, places = packed(instances, rows)
        factors = factors_at(places, shapes_of_heads(config, batch), places)
        results, gradients = step(batch, factors, keys[: len(rows)])
        for number, where in places.items():
            for name, place in where.items():
                np.testing.assert_allclose(
                    results[name][place], expected[name][alone[number][name]], atol=1e-5
                )
        for name, values in gradients.items():
            scale = np.abs(expected_gradients[name]).max() + 1
            np.testing.assert_allclose(
                values, expected_gradients[name], rtol=0, atol=1e-5 * scale, err_msg=name
            )
        assert all(np.isfinite(values).all() for values in results.values())


@pytest.mark.parametrize(
    "kind", [{}, {"dropout_rate": 0.3}, {"recomputes": True}], ids=["plain", "dropout", "recompute"]
)
def test_a_changed_sequence_changes_no_bit_of_the_others(config, make_batch, make_step, kind):
    step, rng = make_step(**kind), np.random.default_rng(3)
    instances, keys = make_batch(6), ops.convert_to_tensor(np.arange(3, dtype=np.uint32))
    for rows in PACKINGS:
        batch, places = packed(instances, rows)
        changed = int(rng.choice([number for row in rows if len(row) > 1 for number in row]))
        others = [number for number in places if number != changed]
        factors = factors_at(places, shapes_of_heads(config, batch), others)
        expected, expected_gradients = step(batch, factors, keys)
        row, tokens = places[changed]["sequence_output"]
        batch["input_ids"][row, tokens] = 1 + batch["input_ids"][row, tokens] % 7
        batch["segment_ids"][row, tokens] = 1 - batch["segment_ids"][row, tokens]
        results, gradients = step(batch, factors, keys)
        for number, where in places.items():
            for name, place in where.items():
                is_same = np.array_equal(results[name][place], expected[name][place])
                assert is_same == (number != changed), (number, name)
        for name, values in gradients.items():
            np.testing.assert_array_equal(values, expected_gradients[name], name)
            assert np.abs(values).max() > 0 or name.endswith("key/bias")


def test_a_model_without_pairs_predicts_masked_words_alone(model, config, batch, original_shapes):
    alone = BertForPreTraining(dataclasses.replace(config, sentence_pairs=SentencePairs.NONE))
    of_pairs = {name for name in original_shapes if name.startswith(("bert/pooler/", "cls/seq_"))}
    assert len(of_pairs) == 4
    assert alone.named_weights().keys() == original_shapes.keys() - of_pairs
    assert weight_shapes(alone.config).keys() == alone.named_weights().keys()
    alone.set_named_weights(values(model))
    expected = outputs(model, batch)
    found = outputs(alone, batch)
    assert found.keys() == {"sequence_output", "masked_lm_logits"}
    for name, output in found.items():
        np.testing.assert_allclose(output, expected[name], atol=1e-6, err_msg=name)
    sums = {name: float(value) for name, value in pretraining_sums(found, batch).items()}
    of_both = {name: float(value) for name, value in pretraining_sums(expected, batch).items()}
    assert sums == pytest.approx({name: of_both[name] for name in of_both if "masked" in name})
    assert BertForPreTraining.from_config(alone.get_config()).config == alone.config
    assert "sentence_pairs" not in model.get_config()["bert_config"]
