import dataclasses

import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import weight_shapes
from pipeline.errors import UserError

onnx = pytest.importorskip("onnx")

from modeling.export.onnx_graph import onnx_model  # noqa: E402 - needs onnx

pytestmark = pytest.mark.no_backend

ENCODER_INPUTS = {
    name: ["batch", "sequence"] for name in ("input_ids", "input_mask", "segment_ids")
}


def shapes(values, elem_type):
    """The shapes by name; dynamic dimensions are given by their names."""
    assert all(value.type.tensor_type.elem_type == elem_type for value in values)
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


@pytest.fixture(scope="module")
def weights(config, randomize):
    model = randomize(BertForPreTraining(config))
    return {name: variable.numpy() for name, variable in model.named_weights().items()}


@pytest.fixture(scope="module")
def with_heads(config, weights):
    return onnx_model(config, weights, heads=True)


@pytest.fixture(scope="module")
def without_heads(config, weights):
    return onnx_model(config, weights, heads=False)


@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
@pytest.mark.parametrize("heads", [True, False])
def test_graph_is_valid(config, weights, hidden_act, heads):
    config = dataclasses.replace(config, hidden_act=hidden_act)
    onnx.checker.check_model(onnx_model(config, weights, heads), full_check=True)


def test_encoder_has_the_names_of_our_model(config, without_heads):
    graph, h = without_heads.graph, config.hidden_size
    assert shapes(graph.input, onnx.TensorProto.INT64) == ENCODER_INPUTS
    assert shapes(graph.output, onnx.TensorProto.FLOAT) == {
        "sequence_output": ["batch", "sequence", h],
        "pooled_output": ["batch", h],
    }


def test_heads_add_an_input_and_two_outputs(config, with_heads):
    graph, h = with_heads.graph, config.hidden_size
    assert shapes(graph.input, onnx.TensorProto.INT64) == ENCODER_INPUTS | {
        "masked_lm_positions": ["batch", "predictions"]
    }
    assert shapes(graph.output, onnx.TensorProto.FLOAT) == {
        "sequence_output": ["batch", "sequence", h],
        "pooled_output": ["batch", h],
        "masked_lm_logits": ["batch", "predictions", config.vocab_size],
        "next_sentence_logits": ["batch", 2],
    }


def test_versions_are_those_that_onnxruntime_of_2024_reads(with_heads):
    assert [(opset.domain, opset.version) for opset in with_heads.opset_import] == [("", 20)]
    assert with_heads.ir_version == 9
    assert with_heads.producer_name == "clozemill"


@pytest.mark.parametrize("heads", [True, False])
def test_weights_are_stored_once_and_unchanged_under_their_names(config, weights, heads):
    initializers = onnx_model(config, weights, heads).graph.initializer
    names = [tensor.name for tensor in initializers]
    assert len(set(names)) == len(names)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    expected = {name for name in weight_shapes(config) if heads or name.startswith("bert/")}
    for name in expected:
        np.testing.assert_array_equal(stored.pop(name), weights[name], strict=True)
    # The rest are constants of nodes: the tied word embeddings are not copied.
    assert max(values.size for values in stored.values()) <= 4


@pytest.mark.parametrize("heads", [True, False])
def test_every_initializer_is_read(config, weights, heads):
    graph = onnx_model(config, weights, heads).graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read


def test_weights_are_read_in_their_layers(config, with_heads):
    """A node that reads a variable is in the variable's layer, except for the tied decoder."""
    readers = {
        (name, node.name.rpartition("/")[0])
        for node in with_heads.graph.node
        for name in node.input
        if name in weight_shapes(config)
    }
    tied = ("bert/embeddings/word_embeddings", "cls/predictions")
    assert tied in readers
    for name, scope in readers - {tied}:
        assert scope in (name, name.rpartition("/")[0])


def test_same_weights_give_the_same_bytes_in_any_order(config, weights, with_heads):
    again = onnx_model(config, dict(reversed(weights.items())), heads=True)
    assert again.SerializeToString() == with_heads.SerializeToString()


def test_a_model_too_large_for_one_file_is_refused(config):
    huge = dataclasses.replace(config, hidden_size=1024, vocab_size=600_000)
    with pytest.raises(UserError, match=r"2\.5 GB.* at most 2 GB"):
        onnx_model(huge, {}, heads=False)
