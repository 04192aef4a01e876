import json
from dataclasses import replace

import pytest

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.inputs import InputFormat
from pipeline.json_files import DIGEST_KEY, write_json
from pipeline.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    NEWER_FORMAT_VERSION,
    DataSet,
    Manifest,
    Shard,
)

SHARD = Shard("train-00000-of-00001.tfrecord", "train", 0, 3, 5, 60, 700, "ab" * 32)
MANIFEST = Manifest(
    max_seq_length=128,
    max_predictions_per_seq=20,
    do_lower_case=True,
    vocab_size=30522,
    vocab_sha256="cd" * 32,
    options={"input_format": InputFormat.TEXT, "eval_fraction": 0.1},
    statistics={"corpus": {"documents_read": 3}},
    shards=[
        SHARD,
        replace(SHARD, name="second", pass_index=1),
        replace(SHARD, name="third", split="eval"),
    ],
)


@pytest.fixture
def damaged(tmp_path):
    """Writes a manifest after a change to its content."""

    def write(change):
        MANIFEST.write(tmp_path)
        path = tmp_path / MANIFEST_NAME
        content = json.loads(path.read_text())
        del content[DIGEST_KEY]
        change(content)
        write_json(path, content)
        return tmp_path

    return write


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_of_an_earlier_build_has_no_health_lines(damaged):
    folder = damaged(lambda content: content.pop("health"))
    assert Manifest.read(folder) == MANIFEST
    assert MANIFEST.health == []


def test_a_manifest_is_plain_json(tmp_path):
    MANIFEST.write(tmp_path)
    content = json.loads((tmp_path / MANIFEST_NAME).read_text("utf-8"))
    assert content["format_version"] == FORMAT_VERSION
    assert content["options"]["input_format"] == "text"
    assert content["shards"][0]["sha256"] == "ab" * 32


def test_shards_are_told_by_split_in_their_order():
    assert [shard.name for shard in MANIFEST.shards_of("train")] == [SHARD.name, "second"]
    assert [shard.name for shard in MANIFEST.shards_of("eval")] == ["third"]


def test_a_folder_without_manifest_is_no_data_set(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="is not a data set") as raised:
            Manifest.read(folder)
        assert str(folder) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3"])
def test_a_file_that_is_no_manifest_is_named(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("shards"),
        lambda content: content.pop("max_seq_length"),
        lambda content: content.update(more=1),
        lambda content: content.update(shards=None),
        lambda content: content["shards"][0].pop("sha256"),
        lambda content: content["statistics"].update(train=[]),
        lambda content: content.update(options=None),
    ],
    ids=[
        *("no shards", "no length", "unknown key", "shards are no list", "half a shard"),
        *("statistics are a list", "no options"),
    ],
)
def test_a_manifest_with_other_keys_is_damaged(change, damaged):
    folder = damaged(change)
    with pytest.raises(UserError, match="is damaged"):
        Manifest.read(folder)


@pytest.mark.parametrize("version", [0, NEWER_FORMAT_VERSION + 1, None])
def test_another_format_version_is_refused(version, damaged):
    folder = damaged(lambda content: content.update(format_version=version))
    with pytest.raises(UserError, match="format version"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content["shards"].append(content["shards"][0]), "2 times"),
        (lambda content: content["shards"][1].update(name="../elsewhere"), "no shard's name"),
        (lambda content: content["shards"][1].update(split="test"), "no shard's name"),
        (lambda content: content["shards"][1].update(pass_index=2), "passes of its train shards"),
        (lambda content: content["shards"][1].update(instances=-1), "below 0"),
        (lambda content: content["shards"][1].update(sha256="AB" * 32), "64 hexadecimal digits"),
        (lambda content: content.update(max_seq_length=0), "below 1"),
        (lambda content: content["options"].update(max_seq_length=64), "two values of max_seq"),
        (lambda content: content["statistics"].update(train={"tokens": 119}), "have 120 tokens"),
        (
            lambda content: content["shards"][1].update(name="train-00000-of-00002.tfrecord"),
            "but not train-00001-of-00002.tfrecord",
        ),
        (
            lambda content: content["options"].update(pre_tokenizer="mecab"),
            "not those of its format version 1",
        ),
        (
            lambda content: (
                content.update(format_version=2),
                content["options"].update(pre_tokenizer="jumanpp"),
            ),
            "its pre_tokenizer is 'jumanpp'",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_damaged(change, says, damaged):
    folder = damaged(change)
    with pytest.raises(UserError, match=says):
        Manifest.read(folder)


def test_a_data_set_has_the_vocabulary_that_made_it(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n")
    manifest = replace(MANIFEST, vocab_sha256=sha256_of(path), vocab_size=1)
    manifest.write(tmp_path)
    DataSet.read(tmp_path)
    replace(manifest, vocab_size=2).write(tmp_path)
    with pytest.raises(UserError, match=r"has 1 lines, but manifest\.json says 2"):
        DataSet.read(tmp_path)
    manifest.write(tmp_path)
    path.write_text("[pad]\n")
    with pytest.raises(UserError, match="is not the vocabulary that made the data"):
        DataSet.read(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"vocab\.txt is missing"):
        DataSet.read(tmp_path)
