"""The model against an independent implementation in float64; see the golden data's README."""

import dataclasses

import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import BertConfig
from modeling.losses import batch_totals, masked_lm_loss, next_sentence_loss, pretraining_sums
from modeling.optimization import AdamW
from modeling.step.backend import TrainStep
from modeling.step.learner import Learner


def read_arrays(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["tiny_bert_gelu_tanh", "tiny_bert_gelu_erf"])
def golden(request, golden_dir):
    """The model, the batch, the expected values and their directory."""
    directory = golden_dir / request.param
    config = dataclasses.replace(
        BertConfig.read(directory / "bert_config.json"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config, seed=1)
    model.set_named_weights(read_arrays(directory / "weights.npz"))
    batch = read_arrays(directory / "batch.npz")
    return model, batch, read_arrays(directory / "expected.npz"), directory


def test_variables_are_those_of_the_golden_weights(golden):
    model, _, _, directory = golden
    shapes = {name: values.shape for name, values in read_arrays(directory / "weights.npz").items()}
    assert {name: tuple(v.shape) for name, v in model.named_weights().items()} == shapes


@pytest.mark.parametrize(
    "name", ["sequence_output", "pooled_output", "masked_lm_logits", "next_sentence_logits"]
)
def test_outputs_equal_the_golden_ones(golden, name):
    model, batch, expected, _ = golden
    np.testing.assert_allclose(model(batch)[name], expected[name], rtol=0, atol=1e-5)


def assert_losses(sums, expected):
    losses = [float(masked_lm_loss(sums)), float(next_sentence_loss(sums))]
    assert losses == pytest.approx(
        [float(expected["masked_lm_loss"]), float(expected["next_sentence_loss"])], abs=1e-5
    )


def test_losses_equal_the_golden_ones(golden):
    model, batch, expected, _ = golden
    assert_losses({**batch_totals(batch), **pretraining_sums(model(batch), batch)}, expected)


def test_losses_and_global_norm_of_the_gradients_in_training(golden):
    model, batch, expected, _ = golden
    optimizer = AdamW(0.0)
    optimizer.build(model.trainable_variables)
    results = TrainStep(Learner(model, optimizer))(batch)
    assert_losses(results, expected)
    norm = float(expected["gradient_global_norm"])
    assert float(results["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
