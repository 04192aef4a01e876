import dataclasses
import json
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modeling.config import BertConfig, GeluForm
from modeling.huggingface import (
    export_huggingface,
    from_huggingface,
    huggingface_config,
    huggingface_name,
    read_huggingface,
    to_huggingface,
)
from pipeline.errors import UserError

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
def run(tmp_path_factory, config, write_run):
    """A run directory and its model, neither to be changed."""
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, write_run(run_dir, config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run):
    output_dir = tmp_path_factory.mktemp("exported") / "new" / "huggingface"
    assert export_huggingface(run[0], output_dir) == run[0] / "checkpoints" / "step-00000003"
    return output_dir


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
def test_kernels_alone_are_transposed(name, is_transposed):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    converted = to_huggingface(name, values)
    np.testing.assert_array_equal(converted, values.T if is_transposed else values)
    assert converted.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(from_huggingface(name, converted), values)


def test_weights_on_disk_are_those_of_the_model(run, exported, config):
    weights = load_file(exported / "model.safetensors")
    expected = {
        NAMES[name]: variable.numpy().T if name.endswith("kernel") else variable.numpy()
        for name, variable in run[1].named_weights().items()
    }
    assert set(weights) == set(expected)
    for name, values in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], values, name)
    feed_forward = weights["bert.encoder.layer.0.intermediate.dense.weight"]
    assert feed_forward.shape == (config.intermediate_size, config.hidden_size)


def test_directory_holds_what_from_pretrained_needs(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert names >= {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}
    assert (exported / "vocab.txt").read_bytes() == (run[0] / "vocab.txt").read_bytes()
    assert [path.name for path in exported.parent.iterdir()] == ["huggingface"]


def test_config_on_disk_is_that_of_the_model(exported, config):
    written = json.loads((exported / "config.json").read_text())
    assert written == huggingface_config(config)
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
        assert written[name] == getattr(config, name)
    assert written["model_type"] == "bert"
    assert written["layer_norm_eps"] == 1e-12
    assert BertConfig.read(exported / "config.json") == config


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


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_tokenizer_config_says_whether_text_is_lower_cased(tmp_path, run, data_set, do_lower_case):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir)
    dataclasses.replace(data_set[1], do_lower_case=do_lower_case).write(run_dir)
    export_huggingface(run_dir, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["do_lower_case"] is do_lower_case
    assert written["model_max_length"] == 16


def test_empty_output_directory_is_used(tmp_path, run):
    export_huggingface(run[0], tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_output_directory_that_is_not_empty_is_refused(tmp_path, run):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty") as raised:
        export_huggingface(run[0], tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_output_directory_that_is_a_file_is_refused(tmp_path, run):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError) as raised:
        export_huggingface(run[0], tmp_path / "out")
    assert str(tmp_path / "out") in str(raised.value)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "broken", ["vocab.txt", "manifest.json", "bert_config.json", "checkpoints/step-00000003"]
)
def test_failed_export_leaves_nothing_behind(tmp_path, run, broken):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir)
    (run_dir / broken).rename(tmp_path / "away")
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    with pytest.raises((UserError, OSError)):
        export_huggingface(run_dir, workplace / "out")
    assert list(workplace.iterdir()) == []


def test_run_without_a_checkpoint_is_told(tmp_path, run):
    run_dir = tmp_path / "run"
    shutil.copytree(run[0], run_dir, ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(UserError, match="no checkpoint"):
        export_huggingface(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tensors(exported):
    """The exported tensors, not to be changed."""
    return load_file(exported / "model.safetensors")


@pytest.fixture
def read(tmp_path):
    """A function that reads tensors back from a file."""

    def read_tensors(tensors):
        save_file(tensors, tmp_path / "model.safetensors")
        return read_huggingface(tmp_path, NAMES)

    return read_tensors


def assert_same(arrays, model):
    variables = model.named_weights()
    assert arrays.keys() == variables.keys()
    for name, variable in variables.items():
        np.testing.assert_array_equal(arrays[name], variable.numpy(), name)


def test_exported_weights_are_read_back(run, exported):
    assert_same(read_huggingface(exported, NAMES), run[1])


def test_names_of_older_versions_are_understood(run, read, tensors):
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in tensors.items()
    }
    assert "bert.encoder.layer.1.output.LayerNorm.gamma" in older
    assert_same(read(older), run[1])


def test_an_encoder_saved_alone_is_understood(read, tensors):
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


def test_copies_of_tied_tensors_are_understood(run, read, tensors):
    copies = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].copy(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].copy(),
    }
    assert_same(read(tensors | copies), run[1])


def test_a_copy_may_stand_for_the_tensor(run, read, tensors):
    renamed = dict(tensors)
    renamed["cls.predictions.decoder.bias"] = renamed.pop("cls.predictions.bias")
    assert_same(read(renamed), run[1])


def test_a_decoder_that_is_not_tied_is_refused(tmp_path, read, tensors):
    decoder = tensors["bert.embeddings.word_embeddings.weight"] + 1
    with pytest.raises(UserError, match=r"decoder\.weight in .* is no copy") as raised:
        read(tensors | {"cls.predictions.decoder.weight": decoder})
    assert str(tmp_path / "model.safetensors") in str(raised.value)


def test_other_tensors_keep_their_names(run, read, tensors):
    others = {
        "bert.embeddings.position_ids": np.arange(16)[np.newaxis],
        "classifier.weight": np.ones((3, 16), np.float32),
    }
    arrays = read(tensors | others)
    for name, values in others.items():
        np.testing.assert_array_equal(arrays.pop(name), values)
    assert_same(arrays, run[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read(read, tensors, dtype):
    arrays = read({name: values.astype(dtype) for name, values in tensors.items()})
    for name, values in arrays.items():
        expected = from_huggingface(name, tensors[NAMES[name]].astype(dtype))
        np.testing.assert_array_equal(values, expected, name)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_unreadable_weights_are_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read") as raised:
        read_huggingface(tmp_path, NAMES)
    assert str(path) in str(raised.value)


def test_missing_package_is_told(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(UserError, match=r"clozemill\[export\]"):
        read_huggingface(tmp_path, NAMES)
    with pytest.raises(UserError, match=r"clozemill\[export\]"):
        export_huggingface(run[0], tmp_path / "out")
