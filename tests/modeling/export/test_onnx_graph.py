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
    name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
}
LEFT_OUT = [
    *((), ("cls/seq_relationship/",), ("bert/pooler/",)),
    *(("cls/",), ("cls/", "bert/pooler/")),
]


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
def make(weights):
    """Makes a graph from the weights whose names do not begin with `left_out`."""

    def make_graph(config, *left_out):
        return onnx_model(
            config, {name: weights[name] for name in weights if not name.startswith(left_out)}
        )

    return make_graph


@pytest.fixture(scope="module")
def with_heads(config, make):
    return make(config)


@pytest.fixture(scope="module")
def without_heads(config, make):
    return make(config, "cls/")


@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_graph_is_valid(config, make, hidden_act, left_out):
    config = dataclasses.replace(config, hidden_act=hidden_act)
    onnx.checker.check_model(make(config, *left_out), full_check=True)


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_inputs_and_outputs_have_the_names_of_hugging_face(config, make, left_out):
    graph, h = make(config, *left_out).graph, config.hidden_size
    logits = {"logits": ["batch", "sequence", config.vocab_size]}
    hidden = {"last_hidden_state": ["batch", "sequence", h]}
    assert shapes(graph.input, onnx.TensorProto.INT64) == ENCODER_INPUTS
    assert (
        shapes(graph.output, onnx.TensorProto.FLOAT)
        == {
            (): logits | {"seq_relationship_logits": ["batch", 2]},
            ("cls/seq_relationship/",): logits,
            ("bert/pooler/",): logits,
            ("cls/",): hidden | {"pooler_output": ["batch", h]},
            ("cls/", "bert/pooler/"): hidden,
        }[left_out]
    )


def test_versions_are_those_that_onnxruntime_of_2024_reads(with_heads):
    assert [(opset.domain, opset.version) for opset in with_heads.opset_import] == [("", 20)]
    assert with_heads.ir_version == 9
    assert with_heads.producer_name == "clozemill"


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_weights_are_stored_once_and_unchanged_under_their_names(config, weights, make, left_out):
    initializers = make(config, *left_out).graph.initializer
    names = [tensor.name for tensor in initializers]
    assert len(set(names)) == len(names)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    needs_pooler = ("bert/pooler/", "cls/seq_relationship/") if "bert/pooler/" in left_out else ()
    unused = ("bert/pooler/",) if "cls/seq_relationship/" in left_out else needs_pooler
    expected = {name for name in weights if not name.startswith((*left_out, *unused))}
    for name in expected:
        np.testing.assert_array_equal(stored.pop(name), weights[name], strict=True)
    # The rest are constants of nodes: the tied word embeddings are not copied.
    assert max(values.size for values in stored.values()) <= 4


@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_every_initializer_is_read(config, make, left_out):
    graph = make(config, *left_out).graph
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
    again = onnx_model(config, dict(reversed(weights.items())))
    assert again.SerializeToString() == with_heads.SerializeToString()


def test_a_model_too_large_for_one_file_is_refused(config):
    huge = dataclasses.replace(config, hidden_size=1024, vocab_size=600_000)
    with pytest.raises(UserError, match=r"2\.5 GB.* at most 2 GB"):
        onnx_model(huge, {})
