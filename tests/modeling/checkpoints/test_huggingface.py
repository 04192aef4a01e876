import dataclasses
import json
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from modeling.checkpoints.foreign_config import read_config
from modeling.checkpoints.huggingface import (
    from_huggingface,
    huggingface_config,
    huggingface_name,
    read_huggingface,
    to_huggingface,
    write_huggingface,
)
from modeling.config import GeluForm, weight_shapes
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend

BLOCK_NAMES = {
    "attention/self/query/kernel": "attention.self.query.weight",
    "attention/self/query/bias": "attention.self.query.bias",
    "attention/self/key/kernel": "attention.self.key.weight",
    "attention/self/key/bias": "attention.self.key.bias",
    "attention/self/value/kernel": "attention.self.value.weight",
    "attention/self/value/bias": "attention.self.value.bias",
    "attention/output/dense/kernel": "attention.output.dense.weight",
    "attention/output/dense/bias": "attention.output.dense.bias",
    "attention/output/LayerNorm/gamma": "attention.output.LayerNorm.weight",
    "attention/output/LayerNorm/beta": "attention.output.LayerNorm.bias",
    "intermediate/dense/kernel": "intermediate.dense.weight",
    "intermediate/dense/bias": "intermediate.dense.bias",
    "output/dense/kernel": "output.dense.weight",
    "output/dense/bias": "output.dense.bias",
    "output/LayerNorm/gamma": "output.LayerNorm.weight",
    "output/LayerNorm/beta": "output.LayerNorm.bias",
}
NAMES = {
    "bert/embeddings/word_embeddings": "bert.embeddings.word_embeddings.weight",
    "bert/embeddings/token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    "bert/embeddings/position_embeddings": "bert.embeddings.position_embeddings.weight",
    "bert/embeddings/LayerNorm/gamma": "bert.embeddings.LayerNorm.weight",
    "bert/embeddings/LayerNorm/beta": "bert.embeddings.LayerNorm.bias",
    "bert/pooler/dense/kernel": "bert.pooler.dense.weight",
    "bert/pooler/dense/bias": "bert.pooler.dense.bias",
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/predictions/transform/dense/kernel": "cls.predictions.transform.dense.weight",
    "cls/predictions/transform/dense/bias": "cls.predictions.transform.dense.bias",
    "cls/predictions/transform/LayerNorm/gamma": "cls.predictions.transform.LayerNorm.weight",
    "cls/predictions/transform/LayerNorm/beta": "cls.predictions.transform.LayerNorm.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
} | {
    f"bert/encoder/layer_{i}/{original}": f"bert.encoder.layer.{i}.{name}"
    for i in (0, 1, 10)
    for original, name in BLOCK_NAMES.items()
}


@pytest.fixture(scope="module")
def shapes(config):
    return weight_shapes(config)


@pytest.fixture(scope="module")
def written(tmp_path_factory, config, weights):
    """The directory that was written from them."""
    directory = tmp_path_factory.mktemp("written")
    write_huggingface(directory, config, weights)
    return directory


@pytest.mark.parametrize(("original", "name"), NAMES.items())
def test_names_follow_hugging_face(original, name):
    assert huggingface_name(original) == name


@pytest.mark.parametrize(
    ("name", "is_transposed"),
    [
        ("bert/encoder/layer_0/intermediate/dense/kernel", True),
        ("bert/embeddings/word_embeddings", False),
        ("cls/seq_relationship/output_weights", False),
    ],
)
def test_only_kernels_are_transposed(name, is_transposed):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    converted = to_huggingface(name, values)
    np.testing.assert_array_equal(converted, values.T if is_transposed else values)
    assert converted.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(from_huggingface(name, converted), values)


def test_weights_on_disk_are_those_of_the_model(written, weights, config):
    tensors = load_file(written / "model.safetensors")
    assert tensors.keys() == {NAMES[name] for name in weights}
    for name, values in weights.items():
        tensor = tensors[NAMES[name]]
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, values.T if name.endswith("kernel") else values, name)
    feed_forward = tensors["bert.encoder.layer.0.intermediate.dense.weight"]
    assert feed_forward.shape == (config.intermediate_size, config.hidden_size)


def test_weights_on_disk_are_marked_as_those_of_pytorch(written):
    with safe_open(written / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_id_of_the_padding_token_is_in_the_config(tmp_path, config, weights):
    write_huggingface(tmp_path, config, weights, pad_id=3)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == 3


def test_config_on_disk_is_that_of_the_model(written, config):
    content = json.loads((written / "config.json").read_text())
    assert content == {"architectures": ["BertForPreTraining"], **huggingface_config(config)}
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
        "type_vocab_size",
        "initializer_range",
    ):
        assert content[name] == getattr(config, name)
    assert content["model_type"] == "bert"
    assert content["layer_norm_eps"] == 1e-12
    assert read_config(written / "config.json") == config


@pytest.mark.parametrize(
    ("missing", "architecture"),
    [
        ("cls/seq_relationship/", "BertForMaskedLM"),
        ("cls/predictions/", "BertModel"),
        ("cls/predictions/output_bias", "BertModel"),
        ("cls/", "BertModel"),
        (("bert/pooler/", "cls/seq_relationship/"), "BertForMaskedLM"),
        (("bert/pooler/", "cls/"), "BertModel"),
    ],
)
def test_config_names_the_class_whose_weights_are_present(
    tmp_path, config, weights, missing, architecture
):
    present = {name: values for name, values in weights.items() if not name.startswith(missing)}
    write_huggingface(tmp_path, config, present)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    assert load_file(tmp_path / "model.safetensors").keys() == {NAMES[name] for name in present}
    assert read_huggingface(tmp_path, weight_shapes(config))[0].keys() == present.keys()


@pytest.mark.parametrize("gelu_form", GeluForm)
def test_gelu_form_is_read_back(tmp_path, config, weights, gelu_form):
    config = dataclasses.replace(config, gelu_form=gelu_form)
    write_huggingface(tmp_path, config, weights)
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("hidden_act", "gelu_form", "name"),
    [
        ("gelu", GeluForm.TANH, "gelu_new"),
        ("gelu", GeluForm.ERF, "gelu"),
        ("relu", GeluForm.TANH, "relu"),
        ("relu", GeluForm.ERF, "relu"),
    ],
)
def test_activation_has_the_name_of_its_form(config, hidden_act, gelu_form, name):
    config = dataclasses.replace(config, hidden_act=hidden_act, gelu_form=gelu_form)
    assert huggingface_config(config)["hidden_act"] == name


@pytest.fixture(scope="module")
def tensors(written):
    """The tensors in the file, not to be changed."""
    return load_file(written / "model.safetensors")


@pytest.fixture
def read(tmp_path, shapes):
    """A function that writes tensors to a file and reads the variables back."""

    def read_tensors(tensors):
        save_file(tensors, tmp_path / "model.safetensors")
        return read_huggingface(tmp_path, shapes)[0]

    return read_tensors


def assert_same(arrays, weights):
    assert arrays.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(arrays[name], values, name)


def test_written_weights_are_read_back(written, weights, shapes):
    arrays, others = read_huggingface(written, shapes)
    assert_same(arrays, weights)
    assert others == []


def test_names_of_older_versions_are_read(weights, read, tensors):
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in tensors.items()
    }
    assert "bert.encoder.layer.1.output.LayerNorm.gamma" in older
    assert_same(read(older), weights)


def test_an_encoder_saved_alone_is_read(read, tensors):
    arrays = read(
        {
            name.removeprefix("bert."): values
            for name, values in tensors.items()
            if name.startswith("bert.")
        }
    )
    assert set(arrays) == {name for name in NAMES if name.startswith("bert/")} & set(arrays)
    embeddings = tensors["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(arrays["bert/embeddings/word_embeddings"], embeddings)


def test_copies_of_tied_tensors_are_accepted(weights, read, tensors):
    copies = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].copy(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].copy(),
    }
    assert_same(read(tensors | copies), weights)


def test_a_copy_can_replace_the_tensor(weights, read, tensors):
    renamed = dict(tensors)
    renamed["cls.predictions.decoder.bias"] = renamed.pop("cls.predictions.bias")
    assert_same(read(renamed), weights)


def test_a_decoder_that_is_not_tied_is_refused(tmp_path, read, tensors):
    decoder = tensors["bert.embeddings.word_embeddings.weight"] + 1
    with pytest.raises(UserError, match=r"decoder\.weight in .* is not a copy") as raised:
        read(tensors | {"cls.predictions.decoder.weight": decoder})
    assert str(tmp_path / "model.safetensors") in str(raised.value)


def test_other_tensors_are_named_and_not_read(tmp_path, weights, shapes, tensors):
    """Even if they have a dtype that NumPy lacks."""
    others = {
        "bert.embeddings.position_ids": np.arange(16)[np.newaxis],
        "classifier.weight": np.ones((3, 16), ml_dtypes.float8_e4m3fn),
    }
    save_file(tensors | others, tmp_path / "model.safetensors")
    arrays, names = read_huggingface(tmp_path, shapes)
    assert set(names) == others.keys()
    assert_same(arrays, weights)


def test_a_wrong_shape_is_refused_before_anything_is_read(tmp_path, shapes, tensors, monkeypatch):
    save_file(tensors, tmp_path / "model.safetensors")
    kernel = "bert/encoder/layer_0/intermediate/dense/kernel"
    monkeypatch.setattr("modeling.checkpoints.huggingface.from_huggingface", None)
    with pytest.raises(UserError, match=r"\(16, 32\) in .*requires \(16, 31\)") as raised:
        read_huggingface(tmp_path, shapes | {kernel: (16, 31)})
    assert str(tmp_path / "model.safetensors") in str(raised.value)


@pytest.mark.parametrize("dtype", [np.int64, ml_dtypes.float8_e4m3fn, np.complex64])
def test_numbers_that_are_no_weights_are_refused(tmp_path, read, tensors, dtype):
    name = "bert.pooler.dense.bias"
    with pytest.raises(UserError, match=rf"{name} in .* has the dtype \w+, not") as raised:
        read(tensors | {name: tensors[name].astype(dtype)})
    assert str(tmp_path / "model.safetensors") in str(raised.value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read(read, tensors, dtype):
    arrays = read({name: values.astype(dtype) for name, values in tensors.items()})
    for name, values in arrays.items():
        expected = from_huggingface(name, tensors[NAMES[name]].astype(dtype))
        np.testing.assert_array_equal(values, expected, name)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_unreadable_weights_are_named(tmp_path, content, shapes):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read") as raised:
        read_huggingface(tmp_path, shapes)
    assert str(path) in str(raised.value)


def test_missing_package_is_reported(tmp_path, monkeypatch, shapes):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"clozemill\[export\]"):
        read_huggingface(tmp_path, shapes)
