"""The ONNX graph in onnxruntime gives the outputs of the Keras model."""

import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import BertConfig, GeluForm

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from modeling.export.onnx_graph import onnx_model  # noqa: E402 - needs onnx

pytestmark = pytest.mark.no_backend

V, S = 60, 32
# Names in the graph, and ours.
INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "input_mask",
    "token_type_ids": "segment_ids",
}
ENCODER_OUTPUTS = {"last_hidden_state": "sequence_output", "pooler_output": "pooled_output"}
HEAD_OUTPUTS = {"logits": "masked_lm_logits", "seq_relationship_logits": "next_sentence_logits"}


def make_model(max_position_embeddings=S, **config):
    """A model with weights and biases of notable size."""
    model = BertForPreTraining(
        BertConfig(
            vocab_size=V,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=max_position_embeddings,
            **config,
        )
    )
    rng = np.random.default_rng(0)
    model.set_named_weights(
        {
            name: (name.endswith("gamma") + 0.3 * rng.standard_normal(variable.shape)).astype(
                np.float32
            )
            for name, variable in model.named_weights().items()
        }
    )
    return model


def export(model, heads=True):
    weights = {name: variable.numpy() for name, variable in model.named_weights().items()}
    return onnx_model(
        model.config,
        {name: weights[name] for name in weights if heads or name.startswith("bert/")},
    )


def start(onnx_model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an exception says enough
    return onnxruntime.InferenceSession(
        onnx_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session, batch):
    names = [output.name for output in session.get_outputs()]
    inputs = {node.name: batch[INPUTS[node.name]] for node in session.get_inputs()}
    return dict(zip(names, session.run(names, inputs), strict=True))


def expected(model, batch):
    """The outputs of our model, which must vary enough for a meaningful comparison."""
    outputs = {name: np.asarray(output) for name, output in model(batch).items()}
    assert outputs.keys() == {*ENCODER_OUTPUTS.values(), *HEAD_OUTPUTS.values()}
    assert all(output.std() > 0.3 for output in outputs.values())
    return outputs


def assert_same(theirs, ours, names):
    assert list(theirs) == list(names)
    for name, our_name in names.items():
        assert theirs[name].shape == ours[our_name].shape
        np.testing.assert_allclose(theirs[name], ours[our_name], rtol=0, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def batch():
    """Rows with more and more tokens before the padding, whose ids are also random."""
    rng = np.random.default_rng(1)
    num_tokens = np.array([[1], [5], [9], [13], [20], [27], [S]])
    position = np.arange(S)
    mask = (position < num_tokens).astype(np.int64)
    return {
        "input_ids": rng.integers(0, V, (7, S)),
        "input_mask": mask,
        "segment_ids": mask * (position >= 5),
        "masked_lm_positions": np.tile(position, (7, 1)),
    }


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def outputs(model, batch):
    return expected(model, batch)


@pytest.fixture(scope="module")
def session(model):
    return start(export(model))


@pytest.mark.parametrize(("rows", "length"), [(7, S), (1, 1), (2, 6), (4, 13)])
def test_outputs_are_the_same_for_any_batch_size_and_length(session, batch, outputs, rows, length):
    """Only padding is cut off, and no output depends on it."""
    part = {name: values[:rows, :length] for name, values in batch.items()}
    assert batch["input_mask"][:rows, length:].sum() == 0
    ours = {name: values[:rows] for name, values in outputs.items()}
    ours["masked_lm_logits"] = ours["masked_lm_logits"][:, :length]
    assert_same(run(session, part), ours, HEAD_OUTPUTS)


@pytest.mark.parametrize(
    ("hidden_act", "gelu_form"), [("gelu", GeluForm.ERF), ("relu", GeluForm.TANH)]
)
def test_outputs_are_the_same_with_the_other_activations(batch, hidden_act, gelu_form):
    model = make_model(hidden_act=hidden_act, gelu_form=gelu_form)
    theirs = run(start(export(model)), batch)
    assert_same(theirs, expected(model, batch), HEAD_OUTPUTS)


def test_outputs_are_the_same_without_heads(model, batch, outputs):
    session = start(export(model, heads=False))
    assert [node.name for node in session.get_inputs()] == list(INPUTS)
    assert_same(run(session, batch), outputs, ENCODER_OUTPUTS)


@pytest.mark.parametrize("longest", [S, 1])
def test_a_sequence_that_is_too_long_fails(longest):
    """It also fails if a single row of position embeddings could be broadcast."""
    session = start(export(make_model(max_position_embeddings=longest), heads=False))
    run(session, dict.fromkeys(INPUTS.values(), np.ones((2, longest), np.int64)))
    with pytest.raises(
        Exception, match=f"a sequence is longer than the {longest} tokens that this BERT reads"
    ):
        run(session, dict.fromkeys(INPUTS.values(), np.ones((2, longest + 1), np.int64)))


def test_without_a_pooler_the_other_output_is_the_same(model, batch, outputs):
    weights = {
        name: variable.numpy()
        for name, variable in model.named_weights().items()
        if not name.startswith(("cls/", "bert/pooler/"))
    }
    theirs = run(start(onnx_model(model.config, weights)), batch)
    assert_same(theirs, outputs, {"last_hidden_state": "sequence_output"})


def test_optimizer_of_onnxruntime_recognizes_attention(batch, tmp_path):
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    # Not the tanh form: the optimizer treats it as this one, as FusionBiasGelu reads no attribute.
    model = make_model(gelu_form=GeluForm.ERF)
    onnx.save(export(model), tmp_path / "model.onnx")
    fused = optimizer.optimize_model(
        str(tmp_path / "model.onnx"),
        num_heads=model.config.num_attention_heads,
        hidden_size=model.config.hidden_size,
        opt_level=0,
    ).model
    operators = [node.op_type for node in fused.graph.node]
    assert operators.count("Attention") == model.config.num_hidden_layers
    assert "Softmax" not in operators
    theirs = run(start(fused), batch)
    assert_same(theirs, expected(model, batch), HEAD_OUTPUTS)
