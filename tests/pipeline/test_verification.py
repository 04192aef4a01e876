import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.files import sha256_of
from pipeline.generate import generate
from pipeline.json_files import DIGEST_KEY, write_json
from pipeline.manifest import DataSet, Manifest
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.records import (
    decode_example,
    encode_examples,
    frame_record,
    read_frames,
    record_of,
)
from pipeline.verification import verify

NUM_SHARDS = 4  # two for each of two passes
SAMPLES = Path(__file__).parents[2] / "data_samples"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("verification") / "data"
    options = GenerateOptions(
        [str(SAMPLES / "chinese.txt")],
        SAMPLES / "chinese_vocab.txt",
        output_dir,
        instances=InstanceOptions(max_seq_length=32, max_predictions_per_seq=5, dupe_factor=2),
        num_shards=2,
    )
    generate(options, PipelineOptions([]))
    return output_dir


@pytest.fixture
def data_dir(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture
def shard(data_dir):
    return sorted(data_dir.glob("*.tfrecord"))[1]


def differences(data_dir):
    return list(verify(DataSet(data_dir, Manifest.read(data_dir))))


def change_manifest(data_dir, change):
    path = data_dir / "manifest.json"
    content = json.loads(path.read_text())
    del content[DIGEST_KEY]
    change(content)
    write_json(path, content)


def test_a_fresh_data_set_has_no_differences(data_dir):
    assert differences(data_dir) == []


@pytest.mark.parametrize("position", [0, 9, 100, -1])
def test_a_flipped_bit_is_found_and_its_record_named(data_dir, shard, position):
    content = bytearray(shard.read_bytes())
    content[position] ^= 1
    shard.write_bytes(content)
    (difference,) = differences(data_dir)
    assert difference.startswith(f"{shard} is damaged: record ")


def test_a_truncated_shard_is_found(data_dir, shard):
    shard.write_bytes(shard.read_bytes()[:-20])
    (difference,) = differences(data_dir)
    assert difference.startswith(f"{shard} has ")
    assert "bytes" in difference


def test_a_missing_shard_is_found(data_dir, shard):
    shard.unlink()
    assert differences(data_dir) == [f"{shard} is missing"]


def test_an_extra_shard_is_found(data_dir, shard):
    extra = shutil.copy(shard, data_dir / "train-00009-of-00010.tfrecord")
    assert differences(data_dir) == [f"{extra} is not in the manifest"]


def test_a_damaged_plan_is_found(data_dir):
    plan = data_dir / "plan.json"
    plan.write_text(plan.read_text().replace("true", "false", 1))
    (difference,) = differences(data_dir)
    assert difference.startswith(f"{plan} is damaged")
    plan.unlink()
    assert differences(data_dir) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_seq_length", 31, "are 32 values, not 31"),
        ("max_predictions_per_seq", 6, "are 5 values, not 6"),
        ("vocab_size", 20, "input_ids are from"),
    ],
)
def test_records_of_another_size_than_the_manifest_says_are_found(data_dir, name, value, says):
    def change(content):
        content[name] = value
        content["options"].pop(name, None)

    change_manifest(data_dir, change)
    found = differences(data_dir)
    assert {says in difference for difference in found[:NUM_SHARDS]} == {True}
    assert len(found) == NUM_SHARDS + (name == "vocab_size")


def test_a_record_with_a_wrong_value_is_found(data_dir, shard):
    with shard.open("rb") as file:
        first, *others = read_frames(file)
    instance = {
        feature: values[np.newaxis] for feature, values in decode_example(record_of(first)).items()
    }
    instance["segment_ids"][0, 3] = 2
    (record,) = encode_examples(instance)
    shard.write_bytes(b"".join([frame_record(record), *others]))

    def change(content):
        (described,) = (each for each in content["shards"] if each["name"] == shard.name)
        described.update(bytes=shard.stat().st_size, sha256=sha256_of(shard))

    change_manifest(data_dir, change)
    (difference,) = differences(data_dir)
    assert difference.startswith(f"{shard} is damaged: record 1: its segment_ids are from 0 to 2")


def test_a_wrong_count_is_found(data_dir, shard):
    def miscount(content):
        content["shards"][1]["instances"] += 1
        content["statistics"]["train"]["instances"] += 1

    change_manifest(data_dir, miscount)
    (difference,) = differences(data_dir)
    assert difference.startswith(f"{shard} has ")
    assert "records" in difference


def test_swapped_records_are_found(data_dir, shard):
    other = sorted(data_dir.glob("*.tfrecord"))[0]

    def pretend(content):
        first, second = content["shards"][:2]
        for name in ("bytes", "instances"):
            second[name] = first[name]
        del content["statistics"]["train"]

    change_manifest(data_dir, pretend)
    shutil.copy(other, shard)
    assert differences(data_dir) == [f"{shard} does not have the SHA-256 in the manifest"]


def test_a_different_vocabulary_is_found(data_dir):
    vocabulary = data_dir / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text("utf-8") + "more\n", "utf-8")
    (difference,) = differences(data_dir)
    assert difference.startswith(f"{vocabulary} is not the vocabulary")


def test_all_differences_are_reported(data_dir):
    for path in data_dir.glob("*.tfrecord"):
        path.unlink()
    (data_dir / "vocab.txt").unlink()
    assert len(differences(data_dir)) == 5
