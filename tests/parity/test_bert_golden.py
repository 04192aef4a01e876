"""The model against an independent implementation in float64, see the golden data's README."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from modeling.config import BertConfig
from modeling.losses import masked_lm_loss, next_sentence_loss, pretraining_sums, total_loss
from modeling.pretraining import BertForPreTraining

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden data are not here")


def read_arrays(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["tiny_bert_gelu_tanh", "tiny_bert_gelu_erf"])
def golden(request):
    """Model, batch and expected values."""
    directory = GOLDEN / request.param
    model = BertForPreTraining(BertConfig.read(directory / "bert_config.json"), seed=1)
    model.set_named_weights(read_arrays(directory / "weights.npz"))
    batch = {k: tf.constant(v) for k, v in read_arrays(directory / "batch.npz").items()}
    return model, batch, read_arrays(directory / "expected.npz"), directory


def test_variables_are_those_of_the_golden_weights(golden):
    model, _, _, directory = golden
    shapes = {name: values.shape for name, values in read_arrays(directory / "weights.npz").items()}
    assert {name: tuple(v.shape) for name, v in model.named_weights().items()} == shapes


@pytest.mark.parametrize(
    "name", ["sequence_output", "pooled_output", "masked_lm_logits", "next_sentence_logits"]
)
def test_output(golden, name):
    model, batch, expected, _ = golden
    outputs = model(batch, training=False)
    np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=1e-5)


def test_losses(golden):
    model, batch, expected, _ = golden
    sums = pretraining_sums(model(batch, training=False), batch)
    losses = [float(masked_lm_loss(sums)), float(next_sentence_loss(sums))]
    assert losses == pytest.approx(
        [float(expected["masked_lm_loss"]), float(expected["next_sentence_loss"])], abs=1e-5
    )


def test_global_norm_of_the_gradients(golden):
    model, batch, expected, _ = golden
    with tf.GradientTape() as tape:
        loss = total_loss(pretraining_sums(model(batch, training=False), batch))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    norm = float(tf.linalg.global_norm([tf.convert_to_tensor(g) for g in gradients]))
    assert norm == pytest.approx(float(expected["gradient_global_norm"]), rel=1e-5)
