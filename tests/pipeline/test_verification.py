import json
import shutil
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.generate import generate
from pipeline.json_files import DIGEST_KEY, write_json
from pipeline.manifest import DataSet, Manifest
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.verification import verify

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


def test_a_wrong_count_is_found(data_dir, shard):
    def miscount(content):
        content["shards"][1]["instances"] += 1

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
