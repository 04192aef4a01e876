"""A data set of packed rows, from text to its report; and the same records, adopted."""

import json
from dataclasses import replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.generate import describe
from pipeline.adoption import AdoptOptions, adopt
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.manifest import MANIFEST_NAME, DataSet
from pipeline.options import InstanceOptions
from pipeline.records import RowLimits, decode_instances, open_records, read_frames, record_of
from pipeline.rows import sequence_lengths, unpack
from pipeline.verification import verify

PACKED = {"max_seq_length": 32, "packed_row_length": 48, "dupe_factor": 2}


@pytest.fixture(scope="module")
def packed_options(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "data"
    return replace(corpus, output_dir=folder, instances=InstanceOptions(**PACKED))


@pytest.fixture(scope="module")
def packed(packed_options):
    return DataSet(packed_options.output_dir, generate(packed_options, PipelineOptions([])))


def rows_of(data_set, split):
    records = []
    for shard in data_set.manifest.shards_of(split):
        with open_records(data_set.path_of(shard)) as file:
            records += map(record_of, read_frames(file))
    return decode_instances(records, data_set.manifest.features_of(split))


def test_manifest_and_records_agree(packed):
    manifest = DataSet.read(packed.directory).manifest
    assert manifest == packed.manifest
    assert json.loads((packed.directory / MANIFEST_NAME).read_text())["format_version"] == 2
    assert manifest.row_limits == RowLimits(tokens=48, predictions=8, sequences=3)
    assert (manifest.max_seq_length, manifest.max_predictions_per_seq) == (32, 5)
    for split in ("train", "eval"):
        rows, statistics = rows_of(packed, split), manifest.statistics[split]
        lengths = sequence_lengths(rows["input_mask"])
        assert len(rows["input_ids"]) == statistics["instances"]
        assert len(lengths) == statistics["sequences"]
        assert lengths.sum() == statistics["tokens"]
        assert (lengths**2).sum() == statistics["attended_pairs"]
        assert lengths.max() <= 32
        assert unpack(rows)["next_sentence_labels"].sum() == statistics["random_next"]
        assert rows["masked_lm_weights"].sum() == statistics["masked"]
        positions = rows["input_ids"].size
        assert statistics["share_padding"] == round(1 - lengths.sum() / positions, 6)
        assert statistics["sequences_per_row"] == round(len(lengths) / len(rows["input_ids"]), 3)
    assert list(verify(packed)) == []
    assert " sequences in " in describe(manifest, packed.directory)


def test_rows_have_less_padding_and_all_sequences(packed, packed_options):
    alone = replace(
        packed_options,
        output_dir=packed.directory.with_name("alone"),
        instances=replace(packed_options.instances, packed_row_length=0),
    )
    padded = generate(alone, PipelineOptions([])).statistics["train"]
    statistics = packed.manifest.statistics["train"]
    assert statistics["share_padding"] < padded["share_padding"]
    for name in ("tokens", "random_next", "instances_by_length"):
        assert statistics[name] == padded[name]
    assert statistics["sequences"] == padded["instances"]


def test_other_workers_write_the_same_bytes(packed, packed_options, two_processes, tmp_path):
    again = generate(replace(packed_options, output_dir=tmp_path / "data"), processes=two_processes)
    assert again == packed.manifest


def test_another_row_length_is_another_data_set(packed, packed_options):
    assert generate(packed_options, PipelineOptions([])) == packed.manifest
    other = replace(packed_options.instances, packed_row_length=64)
    with pytest.raises(UserError, match="packed_row_length 48, not 64"):
        generate(replace(packed_options, instances=other), PipelineOptions([]))


def test_the_report_tells_of_rows_and_sequences(packed):
    page = (packed.directory / "report.html").read_text("utf-8")
    assert "Instances: rows of 48 positions" in page
    assert ", instance 0, sequence 2" in page
    assert "<code>max_sequences_per_row</code>" in page


def test_rows_can_be_adopted(packed, tmp_path):
    options = AdoptOptions(
        train_patterns=[str(packed.directory / "train-*")],
        eval_patterns=[str(packed.directory / "eval-*")],
        vocab_file=packed.directory / "vocab.txt",
        output_dir=tmp_path / "adopted",
    )
    adopted = adopt(options)
    assert adopted.row_limits == packed.manifest.row_limits
    assert adopted.format_version == 2
    assert adopted.max_seq_length == 24  # no document is longer
    for split in ("train", "eval"):
        ours, theirs = packed.manifest.statistics[split], adopted.statistics[split]
        # A piece that was drawn at random may be the one that it replaces; then it looks kept.
        same = [name for name in theirs if name not in ("documents", "instances_by_length")]
        same = [name for name in same if "kept" not in name and "by_random" not in name]
        assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
    assert list(verify(DataSet(tmp_path / "adopted", adopted))) == []


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ((512, None, 0.15, 512), RowLimits(512, 76, 32)),
        ((512, 76, 0.15, 1024), RowLimits(1024, 154, 64)),
        ((128, 20, 0.15, 256), RowLimits(256, 39, 16)),
        # A few masks a sequence do not keep a row from being filled with short sequences.
        ((512, 1, 0.15, 512), RowLimits(512, 76, 32)),
        # Sequences round the number of their masks up.
        ((10, None, 0.35, 40), RowLimits(40, 16, 8)),
        # Nor do short sequences: each has at least one mask.
        ((8, None, 0.15, 64), RowLimits(64, 16, 16)),
        ((512, None, 0.9, 512), RowLimits(512, 461, 32)),
    ],
)
def test_what_a_row_holds(options, limits):
    names = ("max_seq_length", "max_predictions_per_seq", "masked_lm_prob", "packed_row_length")
    assert InstanceOptions(**dict(zip(names, options, strict=True))).limits_of_rows == limits


@pytest.mark.parametrize("length", [31, 1 << 20, -1])
def test_rows_shorter_than_a_sequence_are_refused(length):
    with pytest.raises(UserError, match=f"--packed_row_length={length} must lie between"):
        InstanceOptions(max_seq_length=32, packed_row_length=length)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("packed_row_length", 16),
        ("packed_row_length", None),
        ("max_sequences_per_row", "3"),
        ("max_sequences_per_row", 1),
        ("max_predictions_per_row", 49),
    ],
)
def test_a_manifest_that_contradicts_itself_about_rows_is_damaged(packed, name, value):
    options = {**packed.manifest.options, name: value}
    assert list(replace(packed.manifest, options=options).contradictions())
