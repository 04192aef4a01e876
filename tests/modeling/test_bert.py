import dataclasses
import math

import keras
import numpy as np
import pytest
from keras import ops

from modeling import attention, bert
from modeling.bert import BertModel, activation, truncated_normal
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import GeluForm
from modeling.dropout import dropout, dropout_key, example_keys, fold_in

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KEY = dropout_key(5)


def built(config, seed=0):
    model = BertModel(config, seed)
    model.build()
    return model


def encode(model, batch, key=None):
    keys = None if key is None else example_keys(key, np.arange(len(batch["input_ids"])))
    outputs = model(batch["input_ids"], batch["input_mask"], batch["segment_ids"], keys)
    return tuple(np.asarray(output) for output in outputs)


def weights(model):
    return [variable.numpy() for variable in model.trainable_variables]


@pytest.fixture(scope="module")
def model(config, randomize):
    """An encoder with random biases and gammas, not to be changed."""
    return randomize(BertForPreTraining(config)).bert


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(4)


def test_same_seed_gives_the_same_weights(config):
    for first, second in zip(weights(built(config, 7)), weights(built(config, 7)), strict=True):
        np.testing.assert_array_equal(first, second)


def test_other_seed_gives_other_kernels_and_embeddings(config):
    drawn = 0
    for first, second in zip(weights(built(config, 7)), weights(built(config, 8)), strict=True):
        if first.ndim == 2:
            assert not np.isin(first, second).any()
            drawn += 1
    assert drawn == 3 + 6 * config.num_hidden_layers + 1


def test_no_two_kernels_are_equal(config):
    kernels = [values.ravel() for values in weights(built(config)) if values.ndim == 2]
    firsts = [kernel[0] for kernel in kernels]
    assert len(set(firsts)) == len(firsts)


@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
def test_initial_weights_are_truncated_normal_biases_0_and_gammas_1(config, initializer_range):
    config = dataclasses.replace(
        config, hidden_size=64, intermediate_size=256, initializer_range=initializer_range
    )
    model = BertForPreTraining(config)
    drawn = []
    for name, variable in model.named_weights().items():
        values = variable.numpy()
        if name.endswith("gamma"):
            np.testing.assert_array_equal(values, 1)
        elif name.endswith(("bias", "beta")):
            np.testing.assert_array_equal(values, 0)
        else:
            assert np.abs(values).max() <= 2 * initializer_range
            assert values.std() == pytest.approx(0.88 * initializer_range, rel=0.12), name
            drawn.append(values.ravel())
    drawn = np.concatenate(drawn)
    # A normal distribution cut off at two standard deviations has 0.8796 of its standard deviation.
    assert drawn.std() == pytest.approx(0.8796 * initializer_range, rel=0.005)
    assert abs(drawn.mean()) < 0.01 * initializer_range


def test_truncated_normal_keeps_the_shape_of_the_normal():
    values = truncated_normal(np.random.default_rng(0), stddev=1.0)((400, 500), "float32")
    assert values.dtype == np.float32
    within_one = 0.6827 / 0.9545
    assert np.mean(np.abs(values) < 1) == pytest.approx(within_one, abs=0.005)


def test_outputs_have_the_shapes_of_the_config(model, config, batch):
    sequence_output, pooled_output = encode(model, batch)
    assert sequence_output.shape == (*batch["input_ids"].shape, config.hidden_size)
    assert pooled_output.shape == (len(batch["input_ids"]), config.hidden_size)


def test_pooled_output_is_the_first_token_through_a_dense_layer_with_tanh(model, batch):
    sequence_output, pooled_output = encode(model, batch)
    dense = model.pooler.dense
    expected = np.tanh(sequence_output[:, 0] @ dense.kernel.numpy() + dense.bias.numpy())
    np.testing.assert_allclose(pooled_output, expected, atol=1e-6)


@pytest.mark.parametrize("key", [None, KEY], ids=["evaluation", "training"])
def test_content_of_padding_does_not_matter(model, batch, key):
    padding = batch["input_mask"] == 0
    assert padding.any()
    other = {
        "input_ids": np.where(padding, 17, batch["input_ids"]),
        "input_mask": batch["input_mask"],
        "segment_ids": np.where(padding, 1, batch["segment_ids"]),
    }
    for output, expected in zip(encode(model, other, key), encode(model, batch, key), strict=True):
        rows = ~padding if output.ndim == 3 else slice(None)
        np.testing.assert_allclose(output[rows], expected[rows], atol=1e-6)


def test_length_of_padding_does_not_matter(model, make_batch):
    batch = make_batch(4, first_number=40)
    longest = int(batch["input_mask"].sum(axis=1).max())
    batch["input_mask"][:, longest - 3 :] = 0
    short = {name: batch[name][:, : longest - 3] for name in batch if batch[name].shape[1] == 16}
    real = short["input_mask"] == 1
    sequence_output, pooled_output = encode(model, short)
    padded_output, padded_pooled_output = encode(model, batch)
    np.testing.assert_allclose(
        sequence_output[real], padded_output[:, : longest - 3][real], atol=1e-6
    )
    np.testing.assert_allclose(pooled_output, padded_pooled_output, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="needs the TensorFlow backend")
def test_a_graph_of_unknown_batch_and_length_computes_the_same(model, make_batch):
    import tensorflow as tf

    names = "input_ids", "input_mask", "segment_ids"
    graph = tf.function(model, [tf.TensorSpec((None, None), tf.int32)] * 3)
    for size, length in ((1, 16), (5, 9)):
        batch = {name: make_batch(size)[name][:, :length] for name in names}
        outputs = graph(*batch.values())
        for output, expected in zip(outputs, encode(model, batch), strict=True):
            np.testing.assert_allclose(output, expected, atol=1e-6)
    assert graph.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("feature", ["input_ids", "segment_ids"])
def test_every_token_attends_to_every_real_token(model, batch, feature):
    changed = {name: values.copy() for name, values in batch.items()}
    changed[feature][:, 4] = (changed[feature][:, 4] + 1) % 2
    difference = np.abs(encode(model, changed)[0] - encode(model, batch)[0]).max(axis=-1)
    assert (difference > 1e-5).all()


def test_position_of_a_token_matters(model, batch):
    swapped = batch | {"input_ids": batch["input_ids"].copy()}
    swapped["input_ids"][:, [1, 3]] = batch["input_ids"][:, [3, 1]]
    assert np.abs(encode(model, swapped)[1] - encode(model, batch)[1]).max() > 1e-4


def test_instances_of_a_batch_do_not_influence_each_other(model, batch):
    alone = {name: values[1:2] for name, values in batch.items()}
    np.testing.assert_allclose(encode(model, alone)[0], encode(model, batch)[0][1:2], atol=1e-6)


def test_the_key_determines_dropout(model, batch):
    without = encode(model, batch)[0]
    np.testing.assert_array_equal(encode(model, batch)[0], without)
    first, same, other = (encode(model, batch, dropout_key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - without).max() > 0.01
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("field", NO_DROPOUT)
def test_each_kind_of_dropout_has_its_own_rate(config, batch, randomize, field):
    for rates, differs in ((NO_DROPOUT, False), (NO_DROPOUT | {field: 0.5}, True)):
        model = randomize(BertForPreTraining(dataclasses.replace(config, **rates))).bert
        difference = encode(model, batch, KEY)[0] - encode(model, batch)[0]
        assert (np.abs(difference).max() > 1e-3) == differs


def test_each_dropout_of_the_original_is_in_its_place(config, batch, randomize):
    model = randomize(BertForPreTraining(config)).bert
    without = encode(model, batch)[0]
    places = {"embeddings": model.embeddings}
    for block in model.encoder.blocks:
        places |= {
            f"{block.name}/attention/self": block.attention.self_attention,
            f"{block.name}/attention/output": block.attention.output_layer,
            f"{block.name}/output": block.output_layer,
        }
    for layer in places.values():
        layer.dropout_rate = 0.0
    np.testing.assert_allclose(encode(model, batch, KEY)[0], without, atol=1e-6)
    for place, layer in places.items():
        layer.dropout_rate = 0.5
        difference = encode(model, batch, KEY)[0] - without
        assert np.abs(difference).max() > 1e-3, place
        layer.dropout_rate = 0.0


def test_each_dropout_has_its_own_key(config, batch, monkeypatch):
    first_keys = []

    def spy(x, rate, keys):
        first_keys.append(int(keys[0]))
        return dropout(x, rate, keys)

    for module in (attention, bert):
        monkeypatch.setattr(module, "dropout", spy)
    model, num_steps = built(config), 10
    for step in range(num_steps):
        encode(model, batch, fold_in(KEY, step))
    num_places = 1 + 3 * config.num_hidden_layers
    assert len(first_keys) == len(set(first_keys)) == num_steps * num_places


@pytest.mark.parametrize("recomputes", [False, True])
def test_blocks_are_recomputed_on_request(config, batch, randomize, monkeypatch, recomputes):
    wrapped, remat = [], keras.remat

    def spy(run):
        wrapped.append(run)
        return remat(run)

    monkeypatch.setattr(keras, "remat", spy)
    expected = encode(randomize(BertForPreTraining(config)).bert, batch, KEY)
    model = randomize(BertForPreTraining(config, recompute_activations=recomputes)).bert
    for output, expected_output in zip(encode(model, batch, KEY), expected, strict=True):
        np.testing.assert_allclose(output, expected_output, atol=1e-6)
    assert len(wrapped) == recomputes * config.num_hidden_layers


@pytest.mark.parametrize(
    ("hidden_act", "gelu_form", "expected"),
    [
        (
            "gelu",
            GeluForm.TANH,
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("gelu", GeluForm.ERF, lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("relu", GeluForm.TANH, lambda x: max(x, 0.0)),
    ],
)
def test_activation_follows_its_formula(config, hidden_act, gelu_form, expected):
    config = dataclasses.replace(config, hidden_act=hidden_act, gelu_form=gelu_form)
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    values = np.asarray(activation(config)(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(values, [expected(float(v)) for v in x], atol=2e-6)


@pytest.mark.parametrize(
    ("rate", "key", "is_fused"), [(0.1, None, True), (0.0, KEY, True), (0.1, KEY, False)]
)
def test_attention_without_dropout_uses_the_kernel_of_keras(
    config, batch, monkeypatch, rate, key, is_fused
):
    masks, attend = [], ops.dot_product_attention

    def spy(*q_k_v, mask):
        masks.append(np.asarray(mask))
        return attend(*q_k_v, mask=mask)

    monkeypatch.setattr(ops, "dot_product_attention", spy)
    encode(built(dataclasses.replace(config, attention_probs_dropout_prob=rate)), batch, key)
    assert len(masks) == is_fused * config.num_hidden_layers
    for mask in masks:
        # The mask has a row for each query, as fused kernels require.
        expected = np.repeat(batch["input_mask"][:, None, None, :] == 1, 16, axis=2)
        np.testing.assert_array_equal(mask, expected)
