"""Other software opens a BERT that was trained without pairs, and nothing in it is random."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.pretrained import read_pretrained
from modeling.export.export import export
from modeling.export.formats import Format
from modeling.losses import batch_totals, masked_lm_loss, pretraining_sums
from pipeline.sentence_pairs import SentencePairs

# Exports do not depend on the backend, so one is enough.
if keras.config.backend() != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

S = 20
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.fixture(scope="module")
def alone(export_random):
    """A Hugging Face export of a BERT without pairs."""
    return export_random(sentence_pairs=SentencePairs.NONE)


@pytest.fixture(scope="module")
def pretrained(alone):
    """What is read of the export."""
    return read_pretrained(alone.directory)


@pytest.fixture(scope="module")
def converted(pretrained, tmp_path_factory):
    """A function that converts the export to another format."""

    def convert(export_format, heads=False):
        directory = tmp_path_factory.mktemp("converted") / export_format
        export(pretrained, directory, export_format, heads)
        return directory

    return convert


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    mask = (np.arange(S) < np.array([[S], [13], [7]])).astype(np.int32)
    return {
        "input_ids": (rng.integers(5, 24, mask.shape) * mask).astype(np.int32),
        "input_mask": mask,
        "segment_ids": np.zeros_like(mask),
        "masked_lm_positions": np.array([[1, 7, 9, 19], [2, 3, 11, 0], [4, 0, 0, 0]], np.int32),
        "masked_lm_ids": rng.integers(5, 24, (3, 4)).astype(np.int32),
        "masked_lm_weights": np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]], np.float32),
        "next_sentence_labels": np.zeros((3, 1), np.int32),
    }


@pytest.fixture(scope="module")
def outputs(alone, batch):
    model = BertForPreTraining(alone.config)
    model.set_named_weights(alone.weights)
    return {name: np.asarray(output) for name, output in model(batch).items()}


def load(class_name, directory):
    loaded, information = getattr(transformers, class_name).from_pretrained(
        directory, output_loading_info=True
    )
    names = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return loaded.eval(), [set(information[name]) for name in names]


def tensors_of(batch):
    names = {
        "input_ids": "input_ids",
        "attention_mask": "input_mask",
        "token_type_ids": "segment_ids",
    }
    return {theirs: torch.tensor(batch[ours]).long() for theirs, ours in names.items()}


def assert_near(found, expected):
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-4)


def test_transformers_compute_the_same_logits_and_loss(alone, outputs, batch):
    written = json.loads((alone.directory / "config.json").read_text())
    assert (written["architectures"], written["type_vocab_size"]) == (["BertForMaskedLM"], 2)
    theirs, (missing, unexpected, mismatched) = load("AutoModelForMaskedLM", alone.directory)
    assert type(theirs).__name__ == "BertForMaskedLM"
    assert not missing | unexpected | mismatched
    labels = np.full((3, S), -100)
    rows, slots = np.nonzero(batch["masked_lm_weights"])
    positions = batch["masked_lm_positions"]
    labels[rows, positions[rows, slots]] = batch["masked_lm_ids"][rows, slots]
    with torch.no_grad():
        computed = theirs(**tensors_of(batch), labels=torch.tensor(labels))
    at_masks = computed.logits.numpy()[np.arange(3)[:, np.newaxis], positions]
    assert_near(outputs["masked_lm_logits"], at_masks)
    sums = {**batch_totals(batch), **pretraining_sums(outputs, batch)}
    assert float(masked_lm_loss(sums)) == pytest.approx(float(computed.loss), abs=1e-5)


def test_transformers_add_the_pooler_of_other_classes_themselves(alone):
    names = load_file(alone.directory / "model.safetensors").keys()
    assert not [name for name in names if "pooler" in name or "seq_relationship" in name]
    _, (missing, _, mismatched) = load("AutoModel", alone.directory)
    assert {name.removeprefix("bert.") for name in missing} == POOLER
    assert not mismatched
    card = " ".join((alone.directory / "README.md").read_text("utf-8").split())
    assert "It has no pooler" in card
    assert "`AutoModel`" in card
    assert "whether one text follows another" not in card


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "BertModel"])
def test_checkpoints_of_transformers_without_pooler_are_read(tmp_path, class_name):
    config = transformers.BertConfig(
        vocab_size=24, hidden_size=24, num_hidden_layers=1, num_attention_heads=3
    )
    arguments = {"add_pooling_layer": False} if class_name == "BertModel" else {}
    getattr(transformers, class_name)(config, **arguments).save_pretrained(tmp_path)
    read = read_pretrained(tmp_path)
    assert read.config.sentence_pairs == SentencePairs.NONE
    assert read.ignored == []
    has_head = any(name.startswith("cls/predictions/") for name in read.weights)
    assert has_head == (class_name == "BertForMaskedLM")


def test_what_is_read_back_is_the_same_bert(alone, pretrained, converted):
    original = converted(Format.ORIGINAL)
    reader = tf.train.load_checkpoint(str(original / "bert_model.ckpt"))
    assert reader.get_variable_to_shape_map().keys() == alone.weights.keys()
    for read in (pretrained, read_pretrained(original)):
        assert read.config == alone.config
        assert read.weights.keys() == alone.weights.keys()
        for name, values in alone.weights.items():
            np.testing.assert_array_equal(read.weights[name], values, name)
        assert read.ignored == []


@pytest.mark.parametrize("heads", [False, True])
def test_onnxruntime_computes_the_same(converted, outputs, batch, heads):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    directory = converted(Format.ONNX, heads)
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"))
    found = session.run(None, {name: x.numpy() for name, x in tensors_of(batch).items()})
    (name,) = (output.name for output in session.get_outputs())
    architecture = json.loads((directory / "config.json").read_text())["architectures"]
    if heads:
        rows = np.arange(3)[:, np.newaxis]
        assert (name, architecture) == ("logits", ["BertForMaskedLM"])
        assert_near(found[0][rows, batch["masked_lm_positions"]], outputs["masked_lm_logits"])
    else:
        assert (name, architecture) == ("last_hidden_state", ["BertModel"])
        is_token = batch["input_mask"] > 0
        assert_near(found[0][is_token], outputs["sequence_output"][is_token])


def test_tensorflow_computes_the_same(converted, outputs, batch):
    loaded = tf.saved_model.load(str(converted(Format.SAVED_MODEL, heads=True)))
    encoder = {name: tf.constant(batch[name]) for name in ("input_ids", "input_mask")}
    encoder["segment_ids"] = tf.constant(batch["segment_ids"])
    found = loaded.signatures["encode"](**encoder)
    assert found.keys() == loaded(encoder).keys() == {"sequence_output"}
    assert_near(found["sequence_output"], outputs["sequence_output"])
    positions = tf.constant(batch["masked_lm_positions"])
    found = loaded.signatures["predict"](**encoder, masked_lm_positions=positions)
    assert found.keys() == {"sequence_output", "masked_lm_logits"}
    assert_near(found["masked_lm_logits"], outputs["masked_lm_logits"])
    names = [variable.name for variable in loaded.variables]
    assert not [name for name in names if "pooler" in name]


def test_keras_computes_the_same(converted, alone, outputs, batch):
    loaded = keras.saving.load_model(converted(Format.KERAS) / "model.keras")
    assert loaded.config == alone.config
    found = loaded(batch)
    assert found.keys() == outputs.keys() == {"sequence_output", "masked_lm_logits"}
    for name, expected in outputs.items():
        assert_near(found[name], expected)


def test_keras_hub_needs_a_pooler(alone):
    """It asks for each of its variables, so README.md sends users to the other formats."""
    keras_hub = pytest.importorskip("keras_hub")
    with pytest.raises(Exception, match="pooler"):
        keras_hub.models.BertBackbone.from_preset(str(alone.directory))


def test_the_order_of_sentences_is_told_by_the_config(export_random):
    exported = export_random(sentence_pairs=SentencePairs.ORDER)
    assert read_pretrained(exported.directory).config == exported.config
    _, differences = load("BertForPreTraining", exported.directory)
    assert differences == [set()] * 3
    card = " ".join((exported.directory / "README.md").read_text("utf-8").split())
    assert "stand in their order (label 0) or are swapped" in card
