import dataclasses
import hashlib
import json
import platform
import shutil
from importlib import metadata

import keras
import pytest

from modeling.checkpoints.run_checkpoints import read_run
from modeling.config import BertConfig
from modeling.training.run_directory import (
    check_run,
    check_same_vocabulary,
    prepare_run,
    write_environment,
)
from pipeline.errors import UserError
from pipeline.manifest import DataSet, Manifest


@pytest.fixture
def run_dir(tmp_path, config, data_set):
    run_dir = tmp_path / "runs" / "first"
    prepare_run(run_dir, config, data_set)
    return run_dir


@pytest.fixture
def other_vocabulary(tmp_path, data_set):
    """A data set with another vocabulary."""
    data_dir = tmp_path / "other_data"
    data_dir.mkdir()
    # Its lines end as on Windows.
    vocabulary = data_set.vocabulary.read_bytes().upper().replace(b"\n", b"\r\n")
    (data_dir / "vocab.txt").write_bytes(vocabulary)
    sha256 = hashlib.sha256(vocabulary).hexdigest()
    manifest = dataclasses.replace(data_set.manifest, vocab_sha256=sha256)
    manifest.write(data_dir)
    return DataSet(data_dir, manifest)


@pytest.fixture
def saved_run(run_dir):
    """A run with a checkpoint."""
    (run_dir / "checkpoints" / "step-00000005").mkdir(parents=True)
    return run_dir


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_run_holds_config_manifest_and_vocabulary(run_dir, config, data_set):
    manifest = data_set.manifest
    assert BertConfig.read(run_dir / "bert_config.json") == config
    assert Manifest.read(run_dir) == manifest
    assert (run_dir / "vocab.txt").read_bytes() == data_set.vocabulary.read_bytes()
    assert read_run(run_dir) == (config, manifest)


def test_same_run_is_prepared_again(run_dir, config, data_set):
    before = contents(run_dir)
    prepare_run(run_dir, config, data_set)
    assert contents(run_dir) == before


def test_vocab_size_may_exceed_that_of_the_data(tmp_path, config, data_set):
    config = dataclasses.replace(config, vocab_size=64)
    prepare_run(tmp_path / "run", config, data_set)
    assert read_run(tmp_path / "run")[0].vocab_size == 64


@pytest.mark.parametrize(
    ("field", "value", "reported"),
    [
        ("vocab_size", 49, ["vocab_size", "49", "50", "vocab.txt"]),
        ("max_position_embeddings", 15, ["max_position_embeddings", "15", "16"]),
        ("type_vocab_size", 1, ["type_vocab_size is 1", "segment ids 0 and 1"]),
    ],
)
def test_model_that_is_too_small_for_the_data_is_refused(
    tmp_path, config, data_set, field, value, reported
):
    run_dir = tmp_path / "run"
    with pytest.raises(UserError) as raised:
        check_run(run_dir, dataclasses.replace(config, **{field: value}), data_set)
    for part in (*reported, str(data_set.directory)):
        assert part in str(raised.value)
    assert not run_dir.exists()


def test_run_of_another_model_is_refused_with_the_differences(saved_run, config, data_set):
    before = contents(saved_run)
    other = dataclasses.replace(config, hidden_size=32, hidden_dropout_prob=0.2)
    with pytest.raises(UserError) as raised:
        check_run(saved_run, other, data_set)
    message = str(raised.value)
    assert str(saved_run) in message
    assert "hidden_size was 16, is 32" in message
    assert "hidden_dropout_prob was 0.1, is 0.2" in message
    assert "num_hidden_layers" not in message
    assert contents(saved_run) == before


def test_run_with_another_vocabulary_is_refused(saved_run, config, other_vocabulary):
    before = contents(saved_run)
    with pytest.raises(UserError, match="vocabular") as raised:
        check_run(saved_run, config, other_vocabulary)
    assert str(saved_run) in str(raised.value)
    assert str(other_vocabulary.directory) in str(raised.value)
    assert contents(saved_run) == before


def test_check_of_the_vocabulary_refuses_another_one(run_dir, data_set, other_vocabulary):
    check_same_vocabulary(run_dir, data_set.manifest, data_set)
    with pytest.raises(UserError, match="different vocabularies") as raised:
        check_same_vocabulary(run_dir, data_set.manifest, other_vocabulary)
    assert str(run_dir) in str(raised.value)
    assert str(other_vocabulary.directory) in str(raised.value)


def test_check_of_a_new_run_writes_nothing(tmp_path, config, data_set):
    check_run(tmp_path / "runs" / "new", config, data_set)
    (tmp_path / "empty").mkdir()
    check_run(tmp_path / "empty", config, data_set)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_check_of_a_run_writes_nothing(run_dir, config, data_set):
    (run_dir / "vocab.txt").unlink()
    before = contents(run_dir)
    check_run(run_dir, config, data_set)
    assert contents(run_dir) == before


def test_directory_that_is_not_a_run_is_refused(tmp_path, config, data_set):
    with pytest.raises(UserError, match="not a run"):
        check_run(data_set.directory, config, data_set)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_run(tmp_path / "file", config, data_set)


def test_an_original_checkpoint_is_not_a_run(tmp_path, config, data_set):
    (tmp_path / "bert_config.json").write_text(config.to_json())
    (tmp_path / "bert_model.ckpt.index").write_text("")
    with pytest.raises(UserError, match="not a run"):
        check_run(tmp_path, config, data_set)


def test_run_that_cannot_be_written_is_named(tmp_path, config, data_set):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as raised:
        prepare_run(tmp_path / "file" / "run", config, data_set)
    assert str(tmp_path / "file" / "run") in str(raised.value)


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run") as raised:
        read_run(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_run_with_an_unreadable_manifest_is_named(run_dir):
    (run_dir / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="format version") as raised:
        read_run(run_dir)
    assert str(run_dir) in str(raised.value)


def test_run_on_another_data_set_is_refused(saved_run, tmp_path, config, write_data_set):
    other = tmp_path / "other"
    other_data = write_data_set(other, [("train", 0, 5)])
    before = contents(saved_run)
    with pytest.raises(UserError, match="on a data set that differs") as raised:
        check_run(saved_run, config, other_data)
    assert str(other) in str(raised.value)
    assert contents(saved_run) == before


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"options": {"dupe_factor": 3, "random_seed": 1}}, ["dupe_factor was 10, is 3"]),
        (
            {"options": {"dupe_factor": 10, "word_segmenter": "jieba"}},
            ["random_seed was 1, is None", "word_segmenter was None, is 'jieba'"],
        ),
        ({"max_predictions_per_seq": 2}, ["max_predictions_per_seq was 3, is 2"]),
        ({"strip_accents": False}, ["strip_accents was None, is False"]),
        ({"shards": []}, ["the same options from different text"]),
    ],
)
def test_options_that_differ_between_data_sets_are_reported(
    saved_run, tmp_path, config, data_set, changes, reported
):
    options = {"dupe_factor": 10, "random_seed": 1}
    first = dataclasses.replace(data_set.manifest, options=options)
    first.write(saved_run)
    with pytest.raises(UserError) as raised:
        check_run(saved_run, config, DataSet(tmp_path, dataclasses.replace(first, **changes)))
    assert f"({'; '.join(reported)})" in str(raised.value).replace("made with ", "")


def test_environment_records_hardware_and_packages(run_dir, monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "jax":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    write_environment(run_dir, ["NVIDIA H100"] * 2, ["host1", "host2"], 4)
    content = json.loads((run_dir / "environment.json").read_text())
    assert content["backend"] == keras.config.backend()
    assert content["devices"] == ["NVIDIA H100", "NVIDIA H100"]
    assert content["python"] == platform.python_version()
    assert content["processor_cores"] >= 1
    versions = {name: installed(name) for name in ("keras", "tensorflow", "numpy", "clozemill")}
    assert content["packages"].items() >= versions.items()
    assert content["packages"]["jax"] is None
    manifest = (run_dir / "manifest.json").read_bytes()
    assert content["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()


def test_directory_with_other_content_is_refused(tmp_path, config, data_set):
    other = tmp_path / "other_data"
    shutil.copytree(data_set.directory, other)
    before = contents(other)
    with pytest.raises(UserError, match="not a run"):
        check_run(other, config, data_set)
    assert contents(other) == before


def test_run_without_a_checkpoint_starts_over(run_dir, config, other_vocabulary):
    other_model = dataclasses.replace(config, hidden_size=32)
    prepare_run(run_dir, other_model, other_vocabulary)
    assert read_run(run_dir) == (other_model, other_vocabulary.manifest)
    assert (run_dir / "vocab.txt").read_bytes() == other_vocabulary.vocabulary.read_bytes()


def test_run_killed_before_its_first_file_was_complete_can_start_over(tmp_path, config, data_set):
    (tmp_path / "bert_config.json.0123.tmp").write_text("{")
    check_run(tmp_path, config, data_set)
    prepare_run(tmp_path, config, data_set)
    assert read_run(tmp_path) == (config, data_set.manifest)


def test_run_killed_while_it_was_being_created_is_completed(run_dir, config, data_set):
    complete = contents(run_dir)
    for name in ("manifest.json", "vocab.txt"):
        (run_dir / name).unlink()
        check_run(run_dir, config, data_set)
        prepare_run(run_dir, config, data_set)
        assert contents(run_dir) == complete


def test_a_model_with_other_heads_than_the_data_are_for_is_refused(tmp_path, config, data_set):
    alone = dataclasses.replace(config, sentence_pairs="none")
    with pytest.raises(UserError, match=r"heads for sentence_pairs none, but .*=next"):
        check_run(tmp_path / "run", alone, data_set)
