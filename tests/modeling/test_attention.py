import dataclasses
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from modeling.attention import attention_with_dropout, choose_kernel, masked_attention
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.dropout import dropout, dropout_key, example_keys
from modeling.losses import batch_totals
from modeling.optimization import AdamW
from modeling.step.backend import TrainStep
from modeling.step.learner import Learner
from modeling.training_options import Precision
from pipeline.errors import UserError

KEY = dropout_key(5)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Rows of three sequences, of one, and of two; the last two end with padding.
NUMBERS = np.array(
    [[1] * 20 + [2] * 17 + [3] * 11, [1] * 30 + [0] * 18, [1] * 5 + [2] * 40 + [0] * 3], np.int32
)
LENGTHS = np.array([[1] * 48, [1] * 30 + [0] * 18, [1] * 2 + [0] * 46], np.int32)
needs_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="needs the JAX backend")


def queries_keys_values_and_mask(seq_length=24):
    """Inputs for 3 examples and 2 heads. The second half of the last example is padding."""
    rng = np.random.default_rng(4)
    q, k, v = rng.standard_normal((3, 3, seq_length, 2, 8)).astype(np.float32)
    mask = np.ones((3, 1, seq_length, seq_length), bool)
    mask[2, ..., seq_length // 2 :] = False
    return q, k, v, mask


def attention_by_hand(q, k, v, mask, kept_and_scaled):
    q, k, v = (np.moveaxis(np.float64(x), 2, 1) for x in (q, k, v))
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * mask
    weights /= weights.sum(-1, keepdims=True)
    return np.moveaxis(weights * kept_and_scaled @ v, 1, 2)


@pytest.mark.parametrize("keys", [None, example_keys(KEY, np.arange(3))], ids=["no keys", "keys"])
def test_both_forms_of_attention_follow_the_formula(keys):
    inputs = queries_keys_values_and_mask()
    expected = attention_by_hand(*inputs, 1.0)
    *q_k_v, mask = (ops.convert_to_tensor(x) for x in inputs)
    np.testing.assert_allclose(ops.dot_product_attention(*q_k_v, mask=mask), expected, atol=1e-6)
    with_rate_0 = attention_with_dropout(*q_k_v, mask, 0.0, keys)
    np.testing.assert_allclose(with_rate_0, expected, atol=1e-6)


def test_attention_without_dropout_computes_in_float16():
    inputs = queries_keys_values_and_mask()
    expected = attention_by_hand(*inputs, 1.0)
    mask = inputs[-1]
    q_k_v = (ops.convert_to_tensor(x, "float16") for x in inputs[:3])
    # Seen by each query alike, as a batch's `input_mask` tells it.
    attend = masked_attention(ops.convert_to_tensor(mask[:, 0, 0], "int32"), 1)
    np.testing.assert_allclose(attend(*q_k_v, 0.0, None), expected, atol=2e-3)


def test_attention_dropout_applies_to_the_probabilities():
    inputs = queries_keys_values_and_mask()
    kept_and_scaled = np.asarray(
        dropout(ops.ones((3, 2, 24, 24)), 0.25, example_keys(KEY, np.arange(3)))
    )
    expected = attention_by_hand(*inputs, kept_and_scaled)
    actual = attention_with_dropout(
        *map(ops.convert_to_tensor, inputs), 0.25, example_keys(KEY, np.arange(3))
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.fixture
def gpu(monkeypatch):
    """`modeling.jax_gpu`, and a function that pretends that there is a GPU, with cuDNN or without.

    With it, JAX writes the code for a GPU, but cannot compile it.
    """
    jax_gpu = pytest.importorskip("modeling.jax_gpu")

    def pretend(capability, cudnn_version=91400):
        monkeypatch.setattr(jax_gpu, "compute_capability", lambda: capability)
        if cudnn_version:
            monkeypatch.setattr(jax_gpu.cudnn, "check_cudnn_version", lambda: cudnn_version)
        monkeypatch.setattr(
            jax_gpu.cudnn,
            "check_compute_capability",
            lambda least: capability >= tuple(map(int, least.split("."))),
        )
        monkeypatch.setattr(jax_gpu.cudnn, "is_cuda_compute_capability_equal", lambda _: False)
        return jax_gpu

    return pretend


def queries_keys_and_values(seed=0, head_size=16):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, *NUMBERS.shape, 2, head_size)).astype(np.float32)


def context_and_gradients(attention, numbers, q_k_v, factors):
    """The context, and gradients of its sum after multiplication by factors."""
    import jax

    def run(q, k, v):
        context = attention(numbers, int(numbers.max()))(q, k, v, 0.0, None)
        return (context * factors).sum(), context

    def both(*q_k_v):
        gradients, context = jax.grad(run, (0, 1, 2), has_aux=True)(*q_k_v)
        return context, *gradients

    return [np.asarray(value) for value in jax.jit(both)(*q_k_v)]


def cudnn_by_hand(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale):
    """What cuDNN computes from the segments of each row; NaN where it writes nothing."""
    import jax.numpy as jnp

    assert q_seqlen is kv_seqlen
    assert q_offsets is kv_offsets
    position = jnp.arange(q.shape[1])
    starts, ends = q_offsets[:, :-1, None], q_offsets[:, :-1, None] + q_seqlen[:, :, None]
    is_in = (q_offsets[:, :-1, None] >= 0) & (starts <= position) & (position < ends)
    sees = (is_in[:, :, :, None] & is_in[:, :, None, :]).any(axis=1)
    scores = jnp.where(sees[:, None], scale * jnp.einsum("bqnd,bknd->bnqk", q, k), -jnp.inf)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return jnp.einsum("bnqk,bknd->bqnd", weights / weights.sum(-1, keepdims=True), v)


@pytest.fixture
def kernels(gpu, monkeypatch):
    """Attention by the mask and by each kernel, as a processor can compute it, with its rows.

    Pallas interprets its kernel. In the place of cuDNN, XLA computes what cuDNN is told.
    """
    import jax

    jax_gpu, by_jax = gpu((9, 0)), jax.nn.dot_product_attention

    def without_cudnn(*q_k_v, implementation, **told):
        assert implementation == "xla" or set(told) == {
            "query_seq_lengths",
            "key_value_seq_lengths",
        }
        return by_jax(*q_k_v, implementation="xla", **told)

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    monkeypatch.setattr(jax_gpu.cudnn, "dot_product_attention", cudnn_by_hand)
    return [
        (masked_attention, NUMBERS),
        (partial(jax_gpu.pallas_attention, interpret=True), NUMBERS),
        (jax_gpu.CUDNN_PACKED.attention, NUMBERS),
        (jax_gpu.CUDNN.attention, LENGTHS),
    ]


@needs_jax
def test_the_kernels_of_gpus_compute_what_a_mask_gives(kernels):
    q_k_v = queries_keys_and_values()
    for attention, numbers in kernels[1:]:
        is_token = (numbers > 0)[:, :, None, None]
        factors = np.float32(is_token * np.random.default_rng(9).standard_normal(q_k_v[0].shape))
        actual = context_and_gradients(attention, numbers, q_k_v, factors)
        expected = context_and_gradients(masked_attention, numbers, q_k_v, factors)
        for values, expected_values in zip(actual, expected, strict=True):
            assert np.isfinite(values).all()
            np.testing.assert_allclose(values * is_token, expected_values * is_token, atol=1e-5)


@needs_jax
def test_no_kernel_lets_a_bit_of_one_sequence_into_another(kernels):
    q_k_v, others = queries_keys_and_values(), queries_keys_and_values(seed=1)
    for attention, numbers in kernels:
        changed = numbers == 2 if numbers.max() > 1 else numbers == 0
        stays = ((numbers > 0) & ~changed)[:, :, None, None]
        factors = np.float32(stays * np.random.default_rng(9).standard_normal(q_k_v[0].shape))
        before = context_and_gradients(attention, numbers, q_k_v, factors)
        mixed = np.where(changed[:, :, None, None], 100 * others, q_k_v)
        after = context_and_gradients(attention, numbers, mixed, factors)
        for values, new_values in zip(before, after, strict=True):
            np.testing.assert_array_equal(values * stays, new_values * stays)
        np.testing.assert_array_equal(before[2][changed], 0)


@needs_jax
def test_cudnn_gets_the_segments_of_each_row_and_padding_as_one(gpu):
    lengths, starts = gpu((9, 0)).segments(NUMBERS, 4)
    assert lengths.tolist() == [[20, 17, 11, -1, -1], [30, -1, -1, -1, 18], [5, 40, -1, -1, 3]]
    assert starts.tolist() == [
        [0, 20, 37, -1, -1, -1],
        [0, -1, -1, -1, 30, -1],
        [0, 5, -1, -1, 45, -1],
    ]


@needs_jax
@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "most", "says"),
    [
        ((9, 0), "bfloat16", 64, 1, "cuDNN's fused kernel, told lengths"),
        ((8, 0), "float16", 128, 1, "cuDNN's fused kernel, told lengths"),
        ((9, 0), "bfloat16", 32, 5, "cuDNN's fused kernel, told where sequences begin"),
        ((8, 9), "bfloat16", 64, 5, "Pallas's fused kernel, told the sequences' numbers"),
        ((9, 0), "float32", 64, 5, "not fused, because no fused kernel computes in float32"),
        ((7, 5), "float16", 64, 1, "not fused, because the GPU is older than Ampere"),
        ((9, 0), "bfloat16", 20, 1, "not fused, because a head has 20 dimensions"),
        (None, "bfloat16", 64, 1, "not fused, because this backend has no kernel for this device"),
    ],
)
def test_the_kernel_follows_from_gpu_precision_and_rows(
    config, gpu, capability, dtype, head_size, most, says
):
    gpu(capability)
    config = dataclasses.replace(
        config, hidden_size=2 * head_size, num_attention_heads=2, attention_probs_dropout_prob=0.0
    )
    assert choose_kernel(config, dtype, most, training=True).name.startswith(says)


def test_dropout_of_attention_is_not_fused_but_evaluations_are_without_it(config):
    in_training = choose_kernel(config, "float32", 1, training=True)
    assert in_training.name == (
        "not fused, because its probabilities have dropout; compiled by XLA"
    )
    assert "dropout" not in choose_kernel(config, "float32", 1, training=False).name


@pytest.fixture
def make_step(shallow_config, randomize):
    """A function that makes the step of a model with heads of 48 dimensions, without dropout."""

    def make(precision=Precision.BFLOAT16):
        config = dataclasses.replace(shallow_config, **NO_DROPOUT, hidden_size=96)
        model = randomize(BertForPreTraining(config, precision=precision))
        optimizer = AdamW(1e-3)
        optimizer.build(model.trainable_variables)
        return TrainStep(Learner(model, optimizer))

    return make


def code_for_gpu(step, batch):
    """The code that JAX hands to the compiler of a GPU: a loss and its gradients."""
    import jax

    learner = step._learner

    def run(values, batch):
        with keras.StatelessScope(zip(learner.variables, values, strict=True)):
            batch = learner.with_keys(batch)
        return step._sums_and_gradients(values, batch, batch_totals(batch))

    values = [variable.value for variable in learner.variables]
    return jax.jit(run).trace(values, batch).lower(lowering_platforms=("cuda",)).as_text()


@needs_jax
@pytest.mark.parametrize(
    ("capability", "most", "calls"),
    [
        ((9, 0), 1, ["__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("]),
        ((9, 0), 3, ["__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("]),
        ((8, 0), 3, ['"mha_forward"', '"mha_backward"']),
    ],
)
def test_a_step_on_a_gpu_holds_the_kernel_and_no_mask(
    gpu, make_step, make_batch, capability, most, calls
):
    gpu(capability)
    step, batch = make_step(), make_batch(2)
    batch["next_sentence_labels"] = np.zeros((2, most), np.int32)
    code, kernel = code_for_gpu(step, batch), step._learner.attention_kernel(batch)
    assert kernel.symbol in code
    for call in calls:
        assert call in code
    seq_length = batch["input_ids"].shape[1]
    assert f"x{seq_length}x{seq_length}x" not in code
    # One kernel for queries, keys and values; 50 word embeddings and 14 unused rows.
    assert "tensor<96x288xbf16>" in code
    assert "tensor<96x64xbf16>" in code


@needs_jax
def test_a_model_on_a_gpu_has_the_same_outputs_and_variables(gpu, make_step, make_batch):
    model, batch = make_step(Precision.FLOAT32)._learner.model, make_batch(2)
    expected = {name: np.asarray(output) for name, output in model(batch).items()}
    gpu((9, 0))
    on_gpu = make_step(Precision.FLOAT32)._learner.model
    for name, output in on_gpu(batch).items():
        assert output.shape == expected[name].shape
        np.testing.assert_allclose(output, expected[name], atol=1e-5)
    shapes = [variable.shape for variable in on_gpu.trainable_variables]
    assert shapes == [variable.shape for variable in model.trainable_variables]


@needs_jax
def test_a_kernel_that_cannot_run_is_an_error_of_one_line(gpu, make_step, make_batch):
    gpu((9, 0), cudnn_version=None)
    with pytest.raises(UserError, match=r"^cuDNN cannot .*: cuDNN is not detected\. .*float32"):
        make_step()(make_batch(2))


@needs_jax
def test_rows_for_which_offsets_have_too_few_bits_are_an_error(gpu):
    import jax

    attention = gpu((9, 0)).CUDNN_PACKED.attention

    def run(q, numbers):
        return attention(numbers, 4)(q, q, q, 0.0, None)

    for rows, fits in ((4095, True), (4096, False)):
        q = jax.ShapeDtypeStruct((rows, 512, 16, 64), "bfloat16")
        numbers = jax.ShapeDtypeStruct((rows, 512), "int32")
        if fits:
            assert jax.eval_shape(run, q, numbers).shape == q.shape
        else:
            with pytest.raises(ValueError, match="cuDNN's offsets have 32 bits"):
                jax.eval_shape(run, q, numbers)
