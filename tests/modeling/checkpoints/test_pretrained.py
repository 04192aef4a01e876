import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from safetensors.numpy import load_file, save_file

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.pretrained import (
    check_config,
    check_normalization,
    check_vocabulary,
    initialize,
    lacks_config,
    read_average,
    read_pretrained,
)
from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    read_tokenizer_settings,
    read_tokens,
)
from modeling.config import GeluForm
from modeling.export.export import export
from modeling.export.formats import Format
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.manifest import Manifest
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.sentence_pairs import SentencePairs

WORD_EMBEDDINGS = "bert/embeddings/word_embeddings"
POSITION_EMBEDDINGS = "bert/embeddings/position_embeddings"
IN_THE_ENCODER = "bert/encoder/layer_1/output/dense/kernel"
POOLER = {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, config, write_run):
    """A run directory and its model, neither to be changed."""
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, write_run(run_dir, config)


@pytest.fixture(scope="module")
def model(run):
    """The model of the run, not to be changed."""
    return run[1]


@pytest.fixture
def own_run(tmp_path, run):
    """A copy of the run that may be changed."""
    return shutil.copytree(run[0], tmp_path / "own_run")


@pytest.fixture(scope="module")
def weights(model):
    return {name: np.array(variable.numpy()) for name, variable in model.named_weights().items()}


@pytest.fixture(scope="module")
def write_original(run):
    """A function that writes a checkpoint like the original's training does."""

    def write(directory, weights, name="bert_model.ckpt"):
        directory.mkdir(parents=True, exist_ok=True)
        for copied in ("bert_config.json", "vocab.txt"):
            shutil.copyfile(run[0] / copied, directory / copied)
        tensors = {"global_step": np.int64(1000)}
        for variable, values in weights.items():
            tensors[variable] = values
            tensors[f"{variable}/adam_m"] = tensors[f"{variable}/adam_v"] = 2 * values
        tf.raw_ops.SaveV2(
            prefix=str(directory / name),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        return directory / name

    return write


@pytest.fixture(scope="module")
def original(tmp_path_factory, write_original, weights):
    """The prefix of the run's weights as an original checkpoint, not to be changed."""
    return write_original(tmp_path_factory.mktemp("original"), weights)


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory, run):
    """The run's weights as a Hugging Face directory, not to be changed."""
    directory = tmp_path_factory.mktemp("huggingface")
    export(read_pretrained(run[0]), directory, Format.HUGGINGFACE)
    return directory


@pytest.fixture
def own_huggingface(tmp_path, huggingface):
    """A copy of the Hugging Face directory that may be changed, as it has no export.json."""
    copy = shutil.copytree(huggingface, tmp_path / "own_huggingface")
    (copy / "export.json").unlink()
    return copy


@pytest.fixture(params=["run", "original", "huggingface"])
def path(request, run, original, huggingface):
    """A directory of each kind, not to be changed."""
    return {"run": run[0], "original": original.parent, "huggingface": huggingface}[request.param]


@pytest.fixture(scope="module")
def pretrained(run):
    return read_pretrained(run[0])


def without(pretrained, *prefixes):
    kept = {n: v for n, v in pretrained.weights.items() if not n.startswith(prefixes)}
    return dataclasses.replace(pretrained, weights=kept)


def with_vocabulary(pretrained, vocabulary):
    settings = TokenizerSettings(vocabulary, read_tokens(vocabulary), True, None)
    return dataclasses.replace(pretrained, tokenizer=settings)


def assert_all_is_read(pretrained, config, weights):
    assert pretrained.config == config
    assert pretrained.weights.keys() == weights.keys()
    for name, values in weights.items():
        assert pretrained.weights[name].dtype == np.float32
        np.testing.assert_array_equal(pretrained.weights[name], values, name)


@pytest.mark.parametrize("place", ["", "checkpoints/step-00000003"])
def test_a_run_and_its_checkpoint_are_read(run, config, weights, place):
    pretrained = read_pretrained(run[0] / place)
    assert_all_is_read(pretrained, config, weights)
    assert pretrained.source == f"step-00000003 of {run[0]}"
    assert pretrained.ignored == []
    assert pretrained.tokenizer.vocabulary == run[0] / "vocab.txt"
    assert pretrained.directory == run[0]
    assert pretrained.run.state.step == 3
    assert pretrained.run.state.options["train_batch_size"] == 32
    assert pretrained.run.averaged == 1


def test_a_checkpoint_is_read_from_within(run, config, weights, monkeypatch):
    monkeypatch.chdir(run[0] / "checkpoints" / "step-00000003")
    assert_all_is_read(read_pretrained(Path()), config, weights)


def test_the_newest_checkpoint_of_a_run_is_read(own_run, weights):
    older, newer = own_run / "checkpoints/step-00000003", own_run / "checkpoints/step-00000010"
    shutil.copytree(older, newer)
    np.savez(newer / "weights.npz", **{name: values + 1 for name, values in weights.items()})
    (newer / "state.json").write_text('{"step": 10}')
    for path, added in ((own_run, 1), (older, 0)):
        read = read_pretrained(path).weights[WORD_EMBEDDINGS]
        np.testing.assert_array_equal(read, weights[WORD_EMBEDDINGS] + added)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, shallow_config, write_run):
    """A run of three checkpoints, not to be changed."""
    run_dir = tmp_path_factory.mktemp("long_run")
    write_run(run_dir, shallow_config, step=20, earlier_steps=(8, 9))
    return run_dir


def test_the_newest_checkpoints_of_a_run_are_averaged(long_run):
    pretrained = read_average(long_run, 2)
    older, newer = (
        read_pretrained(long_run / "checkpoints" / name).weights
        for name in ("step-00000009", "step-00000020")
    )
    assert pretrained.weights.keys() == newer.keys()
    for name, values in pretrained.weights.items():
        mean = (older[name].astype(np.float64) + newer[name]) / 2
        np.testing.assert_array_equal(values, mean.astype(np.float32), name, strict=True)
    assert pretrained.source == f"the mean of step-00000009 to step-00000020 of {long_run}"
    assert pretrained.run.averaged == 2
    assert pretrained.run.state.step == 20


def test_more_checkpoints_than_there_are_cannot_be_averaged(long_run):
    assert read_average(long_run, 3).run.averaged == 3
    with pytest.raises(UserError, match="holds 3 checkpoints, not 4") as raised:
        read_average(long_run, 4)
    assert str(long_run) in str(raised.value)


def test_only_runs_can_be_averaged(original, huggingface, long_run):
    for path in (original.parent, huggingface, long_run / "checkpoints" / "step-00000020"):
        with pytest.raises(UserError, match="is not a run") as raised:
            read_average(path, 2)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_an_original_checkpoint_is_read(original, config, weights, suffix):
    pretrained = read_pretrained(original.with_name(original.name + suffix))
    assert_all_is_read(pretrained, config, weights)
    assert pretrained.source == f"the original checkpoint {original}"
    assert pretrained.ignored == []
    assert pretrained.tokenizer.vocabulary == original.parent / "vocab.txt"
    assert pretrained.run is None


def test_the_directory_of_an_original_checkpoint_is_read(original, config, weights):
    pretrained = read_pretrained(original.parent)
    assert_all_is_read(pretrained, config, weights)
    assert pretrained.source == f"the original checkpoint {original}"


@pytest.mark.parametrize(
    ("lacking", "pairs"),
    [
        (("bert/pooler/", "cls/seq_relationship/"), "none"),
        (("bert/pooler/", "cls/"), "none"),
        (("cls/seq_relationship/",), "next"),
        (("bert/pooler/",), "next"),
        (("bert/pooler/dense/bias", "cls/seq_relationship/"), "next"),
    ],
)
def test_weights_with_nothing_of_pairs_are_of_a_bert_without_them(
    tmp_path, write_original, config, weights, lacking, pairs
):
    kept = {name: values for name, values in weights.items() if not name.startswith(lacking)}
    read = read_pretrained(write_original(tmp_path / "original", kept))
    assert read.config == dataclasses.replace(config, sentence_pairs=SentencePairs(pairs))
    assert read.weights.keys() == kept.keys()
    export(read, tmp_path / "huggingface", Format.HUGGINGFACE)
    again = read_pretrained(tmp_path / "huggingface")
    assert (again.config, again.weights.keys()) == (read.config, kept.keys())


def test_a_hugging_face_directory_is_read(huggingface, config, weights):
    pretrained = read_pretrained(huggingface)
    assert_all_is_read(pretrained, config, weights)
    assert pretrained.source == f"the Hugging Face directory {huggingface}"
    assert pretrained.ignored == []
    assert pretrained.tokenizer.vocabulary == huggingface / "vocab.txt"
    assert pretrained.run is None


def test_half_precision_is_widened(own_huggingface, weights):
    file = own_huggingface / "model.safetensors"
    save_file({name: v.astype(np.float16) for name, v in load_file(file).items()}, file)
    pretrained = read_pretrained(own_huggingface)
    for name, values in pretrained.weights.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, weights[name].astype(np.float16), name)


def test_ignored_tensors_are_named(tmp_path, own_huggingface, write_original, weights):
    file = own_huggingface / "model.safetensors"
    others = {
        "classifier.weight": np.ones((2, 16), np.float32),
        # Older versions store it, though it is not a weight.
        "bert.embeddings.position_ids": np.arange(16)[np.newaxis],
    }
    save_file(load_file(file) | others, file)
    assert read_pretrained(own_huggingface).ignored == ["classifier.weight"]
    prefix = write_original(tmp_path / "fine", weights | {"output_weights": np.ones((2, 16))})
    assert read_pretrained(prefix).ignored == ["output_weights"]


def test_more_layers_than_the_config_says_are_an_error(own_huggingface):
    config = json.loads((own_huggingface / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (own_huggingface / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has a variable bert/?.*layer[_.]1.*config does not"):
        read_pretrained(own_huggingface)


def test_variables_of_adapters_in_the_encoder_are_an_error(own_huggingface):
    file = own_huggingface / "model.safetensors"
    name = "bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
    save_file(load_file(file) | {name: np.ones((2, 16), np.float32)}, file)
    with pytest.raises(UserError, match=f"has a variable {name}"):
        read_pretrained(own_huggingface)


@pytest.fixture
def in_shards(own_huggingface):
    """The Hugging Face directory, its weights in two files."""
    file = own_huggingface / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    weight_map = {
        name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(tensors)
    }
    for shard in set(weight_map.values()):
        held = {name: values for name, values in tensors.items() if weight_map[name] == shard}
        save_file(held, own_huggingface / shard)
    write_index(own_huggingface, weight_map)
    return own_huggingface, weight_map


def write_index(directory, weight_map):
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))


def test_weights_in_several_files_are_read(in_shards, config, weights):
    directory, weight_map = in_shards
    pretrained = read_pretrained(directory)
    assert_all_is_read(pretrained, config, weights)
    assert {*weight_map.values(), "model.safetensors.index.json"} <= pretrained.sha256s.keys()


def test_a_missing_file_of_several_is_named(in_shards):
    shard = in_shards[0] / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard} is missing"):
        read_pretrained(in_shards[0])


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "\0.safetensors"]
)
def test_an_index_that_leads_elsewhere_is_refused(in_shards, shard):
    directory, weight_map = in_shards
    write_index(directory, weight_map | {"bert.pooler.dense.bias": shard})
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json is damaged: '.*' is not"):
        read_pretrained(directory)


def test_files_that_differ_from_their_index_are_refused(in_shards):
    directory, weight_map = in_shards
    name = "bert.pooler.dense.bias"
    first, second = (directory / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    other = next(path for path in (first, second) if path.name != weight_map[name])
    save_file(load_file(other) | {name: np.ones(16, np.float32)}, other)  # in both files
    with pytest.raises(UserError, match=rf"{other} does not hold what .* says \({name}\)"):
        read_pretrained(directory)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_a_damaged_index_is_named(in_shards, content):
    path = in_shards[0] / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        read_pretrained(in_shards[0])


def test_a_missing_vocabulary_is_none(tmp_path, path):
    copy = shutil.copytree(path, tmp_path / "copy")
    for name in ("vocab.txt", "tokenizer.json", "export.json"):
        (copy / name).unlink(missing_ok=True)
    if (copy / "checkpoints").exists():
        with pytest.raises(UserError, match=r"vocab\.txt is missing"):
            read_pretrained(copy)
    else:
        assert read_pretrained(copy).tokenizer is None


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"],
)
def test_a_changed_file_of_an_export_is_named(tmp_path, huggingface, name):
    copy = shutil.copytree(huggingface, tmp_path / "copy")
    (copy / "README.md").write_text("My own words.")  # nobody reads it
    read_pretrained(copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{copy / name} is not what was exported"):
        read_pretrained(copy)


def test_a_changed_file_of_an_exported_original_is_named(tmp_path, pretrained):
    export(pretrained, tmp_path, Format.ORIGINAL)
    assert read_pretrained(tmp_path).sha256s.keys() == {
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "vocab.txt",
    }
    data = tmp_path / "bert_model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=f"{data} is not what was exported"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["huggingface", "original"])
def test_links_out_of_a_directory_are_not_followed(tmp_path, huggingface, original, kind):
    source = {"huggingface": huggingface, "original": original.parent}[kind]
    for number, file in enumerate(sorted(source.iterdir())):
        if file.name in ("README.md", "export.json"):
            continue
        copy = shutil.copytree(source, tmp_path / str(number))
        (copy / file.name).unlink()
        (copy / file.name).symlink_to(file)
        with pytest.raises(UserError, match=f"{copy / file.name} is a link out of its directory"):
            read_pretrained(copy)


def test_a_snapshot_of_the_cache_of_hugging_face_is_read(
    tmp_path, own_huggingface, weights, config
):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    own_huggingface.rename(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert_all_is_read(read_pretrained(snapshot), config, weights)


def test_the_files_that_were_read_are_recorded(run, huggingface):
    assert read_pretrained(run[0]).sha256s.keys() == {
        "bert_config.json",
        "checkpoints/step-00000003/state.json",
        "checkpoints/step-00000003/weights.npz",
        "manifest.json",
        "vocab.txt",
    }
    files = {path.name for path in huggingface.iterdir()}
    sha256s = read_pretrained(huggingface).sha256s
    assert sha256s.keys() == files - {"README.md", "export.json"}
    assert sha256s["vocab.txt"] == sha256_of(run[0] / "vocab.txt")


def test_paths_without_a_bert_are_refused(tmp_path):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("file.txt", "empty", "nowhere", "nowhere/bert_model.ckpt"):
        with pytest.raises(UserError, match=r"not a trained BERT.*model\.safetensors") as raised:
            read_pretrained(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"]
)
def test_other_files_of_weights_are_refused_with_a_way_out(own_huggingface, name):
    (own_huggingface / "model.safetensors").rename(own_huggingface / name)
    with pytest.raises(UserError, match=rf"as {name},.*save_pretrained") as raised:
        read_pretrained(own_huggingface)
    assert f"`BertForPreTraining.from_pretrained('{own_huggingface}')" in str(raised.value)


@pytest.mark.parametrize(
    ("architectures", "advised"),
    [
        (["BertForMaskedLM"], "BertForMaskedLM"),  # BertForPreTraining would add random weights
        (None, "BertForPreTraining"),
        (["x'; import os"], "BertForPreTraining"),
    ],
)
def test_the_way_out_of_pickles_keeps_all_weights_and_adds_none(
    own_huggingface, architectures, advised
):
    (own_huggingface / "model.safetensors").rename(own_huggingface / "pytorch_model.bin")
    config = json.loads((own_huggingface / "config.json").read_text())
    (own_huggingface / "config.json").write_text(
        json.dumps(config | {"architectures": architectures})
    )
    with pytest.raises(UserError, match=f"`{advised}\\.from_pretrained"):
        read_pretrained(own_huggingface)


def test_a_config_elsewhere_is_given(tmp_path, original, own_huggingface, config, weights):
    copy = shutil.copytree(original.parent, tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere.json"
    (copy / "bert_config.json").rename(elsewhere)
    assert lacks_config(copy)
    for directory in (copy, own_huggingface):
        pretrained = read_pretrained(directory, elsewhere)
        assert_all_is_read(pretrained, config, weights)
        assert pretrained.sha256s[str(elsewhere)] == sha256_of(elsewhere)


def test_a_config_of_hugging_face_beside_an_original_checkpoint_is_read(
    tmp_path, original, huggingface, config, weights
):
    copy = shutil.copytree(original.parent, tmp_path / "copy")
    (copy / "bert_config.json").unlink()
    shutil.copyfile(huggingface / "config.json", copy / "config.json")
    assert not lacks_config(copy)
    pretrained = read_pretrained(copy / original.name)
    assert_all_is_read(pretrained, config, weights)
    assert pretrained.sha256s["config.json"] == sha256_of(copy / "config.json")


def test_a_run_has_its_own_config(run):
    assert not lacks_config(run[0])
    assert not lacks_config(run[0] / "checkpoints/step-00000003")
    with pytest.raises(UserError, match="leave out --bert_config_file=other"):
        read_pretrained(run[0], Path("other"))


@pytest.fixture
def unsaid(tmp_path, original):
    """An original checkpoint whose config does not say which form gelu has."""
    copy = shutil.copytree(original.parent, tmp_path / "unsaid")
    content = json.loads((copy / "bert_config.json").read_text())
    content.pop("gelu_form")
    (copy / "bert_config.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize("gelu_form", GeluForm)
def test_what_an_original_checkpoint_does_not_say_is_settled(unsaid, gelu_form, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        assert read_pretrained(unsaid, gelu_form=gelu_form).config.gelu_form == gelu_form
        assert not caplog.messages
        assert read_pretrained(unsaid).config.gelu_form == GeluForm.TANH
    assert ["--gelu_form=gelu_erf" in message for message in caplog.messages] == [True]


def test_another_form_of_gelu_than_the_config_says_is_refused(path):
    assert read_pretrained(path, gelu_form=GeluForm.TANH).config.gelu_form == GeluForm.TANH
    with pytest.raises(UserError, match=r"leave out --gelu_form=gelu_erf: .* says gelu_tanh"):
        read_pretrained(path, gelu_form=GeluForm.ERF)


def test_pickled_weights_beside_others_are_ignored(own_huggingface, config, weights):
    (own_huggingface / "pytorch_model.bin").write_bytes(b"pickle")
    assert_all_is_read(read_pretrained(own_huggingface), config, weights)


def test_a_run_without_checkpoints_is_refused(own_run):
    shutil.rmtree(own_run / "checkpoints" / "step-00000003")
    with pytest.raises(UserError, match="no checkpoint") as raised:
        read_pretrained(own_run)
    assert str(own_run) in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_a_damaged_checkpoint_of_a_run_is_reported(own_run, content):
    file = own_run / "checkpoints" / "step-00000003" / "weights.npz"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*weights\.npz") as raised:
        read_pretrained(own_run)
    assert str(file.parent) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_config_is_named(tmp_path, original, own_huggingface, own_run):
    copy = shutil.copytree(original.parent, tmp_path / "copy")
    for directory, name in ((copy, "bert_config.json"), (own_huggingface, "config.json")):
        (directory / name).unlink()
        with pytest.raises(UserError) as raised:
            read_pretrained(directory)
        assert str(directory / name) in str(raised.value)
    (own_run / "bert_config.json").unlink()
    with pytest.raises(UserError) as raised:
        read_pretrained(own_run / "checkpoints" / "step-00000003")
    assert str(own_run / "bert_config.json") in str(raised.value)


def test_a_missing_package_is_reported(huggingface, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"clozemill\[export\]"):
        read_pretrained(huggingface)


def test_weights_that_do_not_fit_their_config_are_refused(own_run, config):
    state = own_run / "checkpoints" / "step-00000003" / "state.json"
    with_digests = state.read_text()
    for changed, reported in (
        (dataclasses.replace(config, num_hidden_layers=3), "does not have the model's variables"),
        (dataclasses.replace(config, vocab_size=51), WORD_EMBEDDINGS),
    ):
        (own_run / "bert_config.json").write_text(changed.to_json())
        with pytest.raises(UserError, match=r"bert_config\.json was changed"):
            read_pretrained(own_run)
        # An earlier build has saved no digests.
        state.write_text('{"step": 3}')
        with pytest.raises(UserError, match=reported) as raised:
            read_pretrained(own_run)
        assert str(own_run) in str(raised.value)
        state.write_text(with_digests)


def test_a_directory_with_another_architecture_is_refused(own_huggingface):
    file = own_huggingface / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "roberta"}))
    with pytest.raises(UserError, match="'roberta' but must be 'bert'") as raised:
        read_pretrained(own_huggingface)
    assert str(file) in str(raised.value)


def test_weights_with_other_names_are_refused(tmp_path, write_original, weights):
    prefix = write_original(tmp_path, {f"model/{name}": v for name, v in weights.items()})
    with pytest.raises(UserError, match=f"no variable {WORD_EMBEDDINGS}") as raised:
        read_pretrained(prefix)
    assert str(prefix) in str(raised.value)


def test_a_model_computes_the_same(path, model, make_batch):
    new = BertForPreTraining(model.config, seed=5)
    assert initialize(new, read_pretrained(path)) == []
    batch = make_batch(3)
    expected, outputs = model(batch), new(batch)
    for name, output in outputs.items():
        np.testing.assert_array_equal(
            ops.convert_to_numpy(output), ops.convert_to_numpy(expected[name]), name
        )


def test_pooler_and_heads_may_be_missing(pretrained, weights):
    model = BertForPreTraining(pretrained.config, seed=5)
    before = {name: np.array(variable.numpy()) for name, variable in model.named_weights().items()}
    missing = initialize(model, without(pretrained, "bert/pooler", "cls/"))
    assert missing == [n for n in weights if n in POOLER or n.startswith("cls/")]
    for name, variable in model.named_weights().items():
        expected = before[name] if name in missing else weights[name]
        np.testing.assert_array_equal(variable.numpy(), expected, name)


@pytest.mark.parametrize(
    "name", [WORD_EMBEDDINGS, POSITION_EMBEDDINGS, "bert/embeddings/LayerNorm/beta", IN_THE_ENCODER]
)
def test_embeddings_and_encoder_must_be_complete(pretrained, name):
    model = BertForPreTraining(pretrained.config, seed=5)
    before = np.array(model.named_weights()[WORD_EMBEDDINGS].numpy())
    with pytest.raises(UserError, match=f"no variable {name}:") as raised:
        initialize(model, without(pretrained, name))
    assert pretrained.source in str(raised.value)
    np.testing.assert_array_equal(model.named_weights()[WORD_EMBEDDINGS].numpy(), before)


@pytest.mark.parametrize(
    ("change", "name", "reported"),
    [
        ({"vocab_size": 60}, WORD_EMBEDDINGS, r"\(50, 16\) .*\(60, 16\).*vocabulary"),
        (
            {"max_position_embeddings": 8},
            POSITION_EMBEDDINGS,
            r"\(16, 16\) .*\(8, 16\).*max_position_embeddings",
        ),
        ({"hidden_size": 32}, WORD_EMBEDDINGS, r"\(50, 16\) .*\(50, 32\)$"),
        (
            {"type_vocab_size": 3},
            "bert/embeddings/token_type_embeddings",
            r"\(2, 16\) .*\(3, 16\)$",
        ),
        (
            {"intermediate_size": 64},
            "bert/encoder/layer_0/intermediate/dense/kernel",
            r"\(16, 32\) .*\(16, 64\)$",
        ),
    ],
)
def test_both_shapes_are_reported_if_they_differ(pretrained, change, name, reported):
    config = dataclasses.replace(pretrained.config, **change)
    with pytest.raises(UserError, match=reported) as raised:
        check_config(pretrained, config)
    assert str(raised.value).startswith(f"{name} ")
    assert pretrained.source in str(raised.value)
    with pytest.raises(UserError, match=reported):
        initialize(BertForPreTraining(config), pretrained)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers is 2 .* but 1 "),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2 .* but 3 "),
        ({"num_attention_heads": 4}, "num_attention_heads is 2 .* but 4 "),
        ({"hidden_act": "relu"}, "hidden_act is gelu .* but relu "),
        ({"gelu_form": GeluForm.ERF}, "gelu_form is gelu_tanh .* but gelu_erf "),
    ],
)
def test_a_model_with_other_formulas_is_refused(pretrained, change, reported):
    model = BertForPreTraining(dataclasses.replace(pretrained.config, **change))
    with pytest.raises(UserError, match=reported) as raised:
        initialize(model, pretrained)
    assert pretrained.source in str(raised.value)


def test_settings_that_matter_only_in_training_may_differ(pretrained):
    config = dataclasses.replace(
        pretrained.config,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.3,
        initializer_range=0.01,
    )
    assert initialize(BertForPreTraining(config), pretrained) == []


def test_the_form_of_gelu_does_not_matter_for_relu(pretrained):
    relu = dataclasses.replace(pretrained.config, hidden_act="relu")
    erf = dataclasses.replace(relu, gelu_form=GeluForm.ERF)
    check_config(dataclasses.replace(pretrained, config=relu), erf)


@pytest.mark.parametrize(
    "content",
    ["[PAD]\n[UNK]\nword\n", "[PAD]\n[UNK]\nword", "[PAD]\r\n[UNK]\r\nword\r\n"],
)
def test_line_ends_of_a_vocabulary_do_not_matter(tmp_path, pretrained, content):
    (tmp_path / "a.txt").write_text("[PAD]\n[UNK]\nword\n", newline="")
    (tmp_path / "b.txt").write_text(content, newline="")
    for one, other in (("a.txt", "b.txt"), ("b.txt", "a.txt")):
        check_vocabulary(with_vocabulary(pretrained, tmp_path / one), tmp_path / other)


@pytest.mark.parametrize(
    ("ours", "theirs", "reported"),
    [
        ("a\nb\nc\n", "a\nx\ny\n", "id 1 is 'b' in .*, but 'x' in "),
        ("a\nb\nc\n", "a\nb\n", "id 2 is 'c' in .*, but missing in "),
        ("a\n", "a\nb\n", "id 1 is missing in .*, but 'b' in "),
        ("a\nB\n", "a\nb\n", "id 1 is 'B' in .*, but 'b' in "),
    ],
)
def test_different_tokens_are_reported(tmp_path, pretrained, ours, theirs, reported):
    vocabulary, trained = tmp_path / "ours.txt", tmp_path / "theirs.txt"
    vocabulary.write_text(ours)
    trained.write_text(theirs)
    with pytest.raises(UserError, match=f"^{reported}.*ids stand for different tokens") as raised:
        check_vocabulary(with_vocabulary(pretrained, trained), vocabulary)
    assert str(vocabulary) in str(raised.value)
    assert str(trained) in str(raised.value)


def test_tokens_of_a_tokenizer_json_are_compared_by_their_ids(tmp_path, pretrained):
    vocabulary, trained = tmp_path / "vocab.txt", tmp_path / "tokenizer.json"
    trained.write_text('{"model": {"type": "WordPiece", "vocab": {"b": 1, "a": 0}}}')
    pretrained = with_vocabulary(pretrained, trained)
    vocabulary.write_text("a\nb\n")
    check_vocabulary(pretrained, vocabulary)
    vocabulary.write_text("b\na\n")
    with pytest.raises(UserError, match=r"id 0 is 'b' in .*, but 'a' in .*tokenizer\.json"):
        check_vocabulary(pretrained, vocabulary)


@pytest.mark.parametrize(
    ("of_bert", "of_data", "problem"),
    [
        ({}, {}, None),
        ({"do_lower_case": False}, {}, "is lower-cased, .* is not: .*--nodo_lower_case"),
        ({}, {"do_lower_case": False}, "is not lower-cased, .* is: .*--do_lower_case"),
        ({"strip_accents": False}, {}, "is stripped of accents, .* is not: .*--nostrip_accents"),
        ({"strip_accents": True}, {"strip_accents": None}, None),
    ],
)
@pytest.mark.parametrize("are_guessed", [False, True])
def test_another_normalization_is_an_error_if_it_is_stated(
    of_bert, of_data, problem, are_guessed, pretrained, caplog
):
    settings = {"do_lower_case": True, "strip_accents": None, **of_bert, "are_guessed": are_guessed}
    tokenizer = TokenizerSettings(Path("vocab.txt"), ["[PAD]"], **settings)
    pretrained = dataclasses.replace(pretrained, tokenizer=tokenizer)
    manifest = Manifest(
        **{
            "max_seq_length": 8,
            "max_predictions_per_seq": 1,
            "do_lower_case": True,
            "vocab_size": 1,
            "vocab_sha256": "",
            "options": {},
            "statistics": {},
            "shards": [],
            **of_data,
        }
    )
    if problem and not are_guessed:
        with pytest.raises(UserError, match=problem) as raised:
            check_normalization(pretrained, manifest)
        assert pretrained.source in str(raised.value)
        return
    check_normalization(pretrained, manifest)
    assert ("to judge by its vocabulary" in caplog.text) == bool(problem)


@pytest.mark.parametrize(
    ("of_bert", "of_data", "problem"),
    [
        (None, None, None),
        ("mecab", "mecab", None),
        ("mecab", None, "found without --pre_tokenizer, but .* with mecab: .*=mecab"),
        (None, "sudachi", "found with --pre_tokenizer=sudachi, but .* without one: .* without it"),
        ("mecab", "mecab_ipadic", "with --pre_tokenizer=mecab_ipadic, but .* with mecab"),
    ],
)
def test_another_pre_tokenizer_is_an_error(of_bert, of_data, problem, pretrained, caplog):
    settings = TokenizerSettings(
        Path("vocab.txt"),
        ["[PAD]"],
        do_lower_case=False,
        strip_accents=False,
        tokenize_chinese_chars=not of_bert,
        pre_tokenizer=of_bert and PreTokenizer(of_bert),
    )
    options = {"pre_tokenizer": of_data} if of_data else {}
    manifest = Manifest(8, 1, False, 1, "", options, {}, [], strip_accents=False)
    stated = dataclasses.replace(pretrained, tokenizer=settings)
    guessed = dataclasses.replace(
        stated, tokenizer=dataclasses.replace(settings, are_guessed=True, pre_tokenizer=None)
    )
    if problem:
        with pytest.raises(UserError, match=problem):
            check_normalization(stated, manifest)
    else:
        check_normalization(stated, manifest)
    assert not caplog.records
    # Of a checkpoint that does not say it, nobody knows.
    check_normalization(guessed, manifest)
    assert ("does not say how" in caplog.text) == bool(of_data)


def test_ideographs_that_are_not_split_give_a_warning(pretrained, caplog):
    settings = dataclasses.replace(pretrained.tokenizer, tokenize_chinese_chars=False)
    check_normalization(
        dataclasses.replace(pretrained, tokenizer=settings),
        Manifest(8, 1, settings.do_lower_case, 1, "", {}, {}, []),
    )
    assert "is split at ideographs, but" in caplog.text


def test_added_tokens_make_their_directory_the_vocabulary(tmp_path, pretrained):
    (ours := tmp_path / "ours").mkdir()
    for folder in (ours, tmp_path):
        (folder / "vocab.txt").write_text("[PAD]\n")
    tokenizer = {"model": {"vocab": {"[PAD]": 0}}, "added_tokens": [{"id": 1, "content": "new"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    pretrained = dataclasses.replace(pretrained, tokenizer=read_tokenizer_settings(tmp_path))
    with pytest.raises(UserError, match=rf"with --vocab_file={tmp_path}$"):
        check_vocabulary(pretrained, ours / "vocab.txt")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}'])
def test_tokenizer_json_without_a_vocabulary_is_refused(own_huggingface, content):
    (own_huggingface / "vocab.txt").unlink()
    (own_huggingface / "tokenizer.json").write_text(content)
    with pytest.raises(UserError) as raised:
        read_pretrained(own_huggingface)
    assert str(own_huggingface / "tokenizer.json") in str(raised.value)


@pytest.mark.parametrize("content", [None, b"[PAD]\n\xff\n"])
def test_unreadable_vocabulary_is_reported(tmp_path, pretrained, content):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match="cannot read the vocabulary") as raised:
        check_vocabulary(pretrained, tmp_path / "vocab.txt")
    assert str(tmp_path / "vocab.txt") in str(raised.value)


def test_a_bert_without_a_vocabulary_gives_a_warning(tmp_path, pretrained, caplog):
    check_vocabulary(dataclasses.replace(pretrained, tokenizer=None), tmp_path / "vocab.txt")
    assert pretrained.source in caplog.text
    assert str(tmp_path / "vocab.txt") in caplog.text
