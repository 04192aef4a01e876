"""Data sets of records that other programs wrote."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.adoption import AdoptOptions, adopt
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inspection import describe_instance, read_sequences
from pipeline.manifest import DataSet, Manifest
from pipeline.verification import verify
from pipeline.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
OURS = {"flags.txt", "manifest.json", "plan.json", "report.html", "vocab.txt"}


@pytest.fixture
def records(make_instances, write_records, tmp_path):
    """A folder with two files to train on, one of them compressed, and one to evaluate on."""
    folder = tmp_path / "records"
    folder.mkdir()
    for seed, name in enumerate(["train-00003-of-00009.tfrecord", "train.gz", "test.tfrecord"]):
        write_records(folder / name, make_instances(30 + seed, seed))
    return folder


@pytest.fixture
def options(records, adopted_vocabulary, tmp_path):
    patterns = ([f"{records}/train*"], [f"{records}/test*"])
    return AdoptOptions(*patterns, adopted_vocabulary, tmp_path / "data")


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("is_beside", [False, True])
def test_records_become_a_data_set(is_beside, options, records, tmp_path):
    before = {path: path.read_bytes() for path in records.iterdir()}
    options = replace(options, output_dir=records if is_beside else tmp_path / "data")
    manifest = adopt(options, "--flag\n")
    data_set = DataSet.read(options.output_dir)
    assert data_set.manifest == manifest
    assert list(verify(data_set)) == []
    assert (manifest.max_seq_length, manifest.max_predictions_per_seq) == (16, 3)
    assert [(shard.split, Path(shard.name).name) for shard in manifest.shards] == [
        ("train", "train-00003-of-00009.tfrecord"),
        ("train", "train.gz"),
        ("eval", "test.tfrecord"),
    ]
    assert [shard.instances for shard in manifest.shards] == [30, 31, 32]
    assert manifest.statistics["train"]["instances"] == 61
    assert manifest.statistics["eval"]["share_masked"] == round(2 / 12, 6)
    assert all(Path(shard.name).is_absolute() != is_beside for shard in manifest.shards)
    assert {path: path.read_bytes() for path in before} == before
    assert names_in(options.output_dir) == OURS | (names_in(records) if is_beside else set())
    assert (options.output_dir / "flags.txt").read_text() == "--flag\n"
    vocabulary = Vocabulary(data_set.vocabulary)
    for shard in manifest.shards:
        ((first,), *_) = read_sequences(data_set, shard)
        assert " 2 masked; B follows A" in describe_instance(first, vocabulary)


@pytest.mark.parametrize("place", ["beside", "on a disk", "elsewhere"])
def test_records_on_a_store_stay_there(place, options, records, bucket, server, tmp_path):
    folder = bucket / "records"
    for path in records.iterdir():
        (folder / path.name).upload(path)
    (bucket / "v" / "vocab.txt").upload(options.vocab_file)
    output = {"beside": folder, "on a disk": tmp_path / "stored", "elsewhere": bucket / "data"}[
        place
    ]
    patterns = ([f"{folder}/train*"], [f"{folder}/test.tfrecord"])
    stored = AdoptOptions(*patterns, bucket / "v", output)
    manifest = adopt(stored, "--flag\n")
    local = adopt(replace(options, output_dir=records if place == "beside" else options.output_dir))
    names = [shard.name for shard in manifest.shards]
    assert names == [shard.name.replace(str(records), str(folder)) for shard in local.shards]
    assert [replace(shard, name="") for shard in manifest.shards] == [
        replace(shard, name="") for shard in local.shards
    ]
    data_set = DataSet.read(output)
    assert list(verify(data_set)) == []
    assert {path.name for path in output.iterdir()} >= OURS
    assert adopt(stored) == manifest
    server.reset()
    next(read_sequences(data_set, manifest.shards[0]))
    assert [method for method, _ in server.requests] == ["HEAD", "GET"]
    (folder / "test.tfrecord").upload(b"")
    with pytest.raises(UserError, match="different input files or older versions of them"):
        adopt(stored)
    assert list(verify(data_set)) == [
        f"{folder}/test.tfrecord has 0 bytes, not {manifest.shards[-1].bytes}"
    ]


def test_a_data_set_beside_its_records_can_be_moved(options, records, tmp_path):
    adopt(replace(options, output_dir=records))
    folder = records.rename(tmp_path / "moved")
    moved = DataSet.read(folder)
    assert list(verify(moved)) == []
    patterns = [f"{folder}/train*"], [f"{folder}/test*"]
    vocab_file = options.vocab_file
    assert adopt(AdoptOptions(*patterns, vocab_file, folder)) == moved.manifest


def test_the_report_tells_only_what_records_show(options):
    adopt(options)
    text = (options.output_dir / "report.html").read_text("utf-8")
    assert "61 training instances of up to" in text
    assert "which other software made" in text
    assert text.count("<article>") == 10
    for absent in ("Documents", "Sentences", "What was left out", "Unicode version", "passes"):
        assert absent not in text


def test_shards_of_generate_give_what_generate_has_counted(data_set, tmp_path):
    folder, manifest = data_set
    for shard in manifest.shards:
        shutil.copy(folder / shard.name, tmp_path / shard.name.replace("-of-", "."))
    patterns = [f"{tmp_path}/train*"], [f"{tmp_path}/eval*"]
    adopted = adopt(AdoptOptions(*patterns, folder / "vocab.txt", tmp_path / "data"))
    assert adopted.features_of("train") == manifest.features_of("train")
    assert [(shard.instances, shard.sha256) for shard in adopted.shards] == [
        (shard.instances, shard.sha256) for shard in manifest.shards
    ]
    for split in ("train", "eval"):
        ours, theirs = adopted.statistics[split], dict(manifest.statistics[split])
        unseen = {"documents", "chunks_without_next", "tokens_truncated"}
        # A random piece that is the same by chance looks like a kept one.
        by_chance = ours["masked_kept"] - theirs["masked_kept"]
        assert 0 <= by_chance <= 0.02 * theirs["masked"]
        unseen |= {
            f"{what}masked_{how}" for what in ("", "share_") for how in ("kept", "by_random")
        }
        assert {name: theirs[name] for name in theirs.keys() - unseen} == {
            name: ours[name] for name in ours.keys() - unseen
        }


def test_the_same_command_again_verifies(options, records, caplog):
    caplog.set_level("INFO", logger="absl")
    manifest = adopt(options)
    stamp = (options.output_dir / "manifest.json").stat().st_mtime_ns
    # The plan that earlier builds have written.
    names = ("train-00003-of-00009.tfrecord", "train.gz", "test.tfrecord")
    files = zip(("train", "train", "eval"), (records / name for name in names), strict=True)
    stats = [(split, str(path), path.stat()) for split, path in files]
    stamps = [(split, path, stat.st_size, stat.st_mtime_ns) for split, path, stat in stats]
    plan = json.loads((options.output_dir / "plan.json").read_text())
    expected = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    assert plan["input_stamps_sha256"] == expected
    assert adopt(options) == manifest
    assert "adopted with the same options before: verifying" in caplog.text
    assert (options.output_dir / "manifest.json").stat().st_mtime_ns == stamp
    path = records / "train.gz"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)
    with pytest.raises(UserError, match=r"1 files of .* are damaged: pass --overwrite"):
        adopt(options)


def test_another_data_set_is_replaced_only_on_request(options, records):
    adopt(options)
    other = replace(options, eval_patterns=[])
    with pytest.raises(UserError, match="already holds a data set, adopted with different input"):
        adopt(other)
    manifest = adopt(replace(other, overwrite=True))
    assert {shard.split for shard in manifest.shards} == {"train"}
    assert Manifest.read(options.output_dir) == manifest
    assert len(names_in(records)) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_data_set_of_generate_is_never_replaced(overwrite, options, data_set):
    folder, _ = data_set
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="holds a data set of `generate`: choose another"):
        adopt(replace(options, output_dir=folder, overwrite=overwrite))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_generate_never_replaces_adopted_records(options, records, corpus):
    adopt(replace(options, output_dir=records))
    before = names_in(records)
    with pytest.raises(UserError, match="holds files that are not a data set"):
        generate(replace(corpus, output_dir=records, overwrite=True), PipelineOptions([]))
    assert names_in(records) == before


@pytest.mark.parametrize("name", sorted(OURS - {"manifest.json"}))
def test_files_of_the_user_are_never_replaced(name, options):
    options.output_dir.mkdir()
    path = options.output_dir / name
    path.write_text("{}")
    with pytest.raises(UserError, match=f"{path} exists and would be replaced"):
        adopt(replace(options, overwrite=True))
    assert path.read_text() == "{}"
    assert names_in(options.output_dir) == {name}


def test_the_vocabulary_may_lie_beside_the_records(options, records):
    shutil.copy(options.vocab_file, records / "vocab.txt")
    adopt(replace(options, vocab_file=records / "vocab.txt", output_dir=records))
    assert list(verify(DataSet.read(records))) == []


@pytest.mark.parametrize("written", range(1, 5))
def test_what_a_killed_run_has_left_is_no_obstacle(written, options):
    adopt(options)
    order = ["plan.json", "vocab.txt", "flags.txt", "report.html", "manifest.json"]
    for name in order[written:]:
        (options.output_dir / name).unlink()
    adopt(options)
    assert list(verify(DataSet.read(options.output_dir))) == []


def test_a_damaged_manifest_is_replaced_only_on_request(options):
    adopt(options)
    path = options.output_dir / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "vocab_size": 7}))
    with pytest.raises(UserError, match=r"is damaged: its digest .* with --overwrite"):
        adopt(options)
    adopt(replace(options, overwrite=True))
    assert DataSet.read(options.output_dir)


def test_nothing_is_left_of_a_failure(options, records):
    (records / "train.b").write_text("text")
    with pytest.raises(UserError, match=r"record 1 of .*train\.b"):
        adopt(options)
    assert not options.output_dir.exists()


@pytest.mark.parametrize(
    ("train", "evaluation", "says"),
    [
        (["records/no*"], [], r"no record file matches .*no\*"),
        ([], ["records/test*"], "set --input_file"),
        (
            ["records/t*"],
            ["records/test.tfrecord"],
            r"test\.tfrecord is among the files of --input",
        ),
    ],
)
def test_wrong_files_are_refused(train, evaluation, says, options, records):
    train, evaluation = (
        [str(records.parent / name) for name in names] for names in (train, evaluation)
    )
    with pytest.raises(UserError, match=says):
        adopt(replace(options, train_patterns=train, eval_patterns=evaluation))
    assert not options.output_dir.exists()


def test_a_folder_means_the_files_below_it(options, records):
    test = (records / "test.tfrecord").rename(records.parent / "test.tfrecord")
    whole = replace(options, train_patterns=[str(records)], eval_patterns=[str(test)])
    manifest = adopt(whole)
    assert [(shard.split, Path(shard.name).name) for shard in manifest.shards] == [
        ("train", "train-00003-of-00009.tfrecord"),
        ("train", "train.gz"),
        ("eval", "test.tfrecord"),
    ]


def test_files_that_cannot_be_named_or_opened_are_refused(options, records):
    (records / "train.link").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read .*train\.link, a link: No such file"):
        adopt(options)
    (records / "train.link").unlink()
    (records / "train.gz").rename(records / os.fsdecode(b"train\xff.gz"))
    with pytest.raises(UserError, match="is not UTF-8: rename the file"):
        adopt(options)


def test_a_file_named_twice_is_adopted_once(options, records):
    twice = [f"{records}/train.gz", f"{records}/../records/train.*"]
    manifest = adopt(replace(options, train_patterns=twice, eval_patterns=[]))
    assert [shard.name for shard in manifest.shards] == [str(records / "train.gz")]


def test_the_files_beside_the_records_are_no_records(options, records):
    options = replace(
        options, train_patterns=[f"{records}/*"], eval_patterns=[], output_dir=records
    )
    shutil.copy(options.vocab_file, records / "vocab.txt")
    manifest = adopt(options)
    assert len(manifest.shards) == 3
    assert adopt(options) == manifest


def test_empty_files_are_adopted_among_others(options, records):
    (records / "train.empty").touch()
    manifest = adopt(options)
    assert [shard.instances for shard in manifest.shards] == [30, 0, 31, 32]
    assert list(verify(DataSet.read(options.output_dir))) == []


@pytest.fixture(scope="module")
def model_garden():
    """The folder of the Model Garden's package that `make bench` installs."""
    folder = Path(sys.prefix) / "peers"
    if not (folder / "official").exists():
        pytest.skip("make bench installs the Model Garden")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--use_v2_feature_names", "--gzip_compress"]])
def test_records_of_the_model_garden(flags, model_garden, tmp_path):
    vocab_file = ROOT / "data_samples" / "english_vocab.txt"
    program = "official.nlp.data.create_pretraining_data"
    subprocess.run(
        [
            *(sys.executable, "-m", program, *flags, "--dupe_factor=1"),
            f"--input_file={ROOT / 'data_samples' / 'english.txt'}",
            f"--vocab_file={vocab_file}",
            f"--output_file={tmp_path / 'a'},{tmp_path / 'b'}",
        ],
        env={"PYTHONPATH": str(model_garden)},
        check=True,
    )
    options = AdoptOptions([f"{tmp_path}/[ab]"], [], vocab_file, tmp_path / "data")
    counts = adopt(options).statistics["train"]
    assert counts["instances"] > 100
    assert 0.13 < counts["share_masked"] < 0.17
    assert 0.7 < counts["share_masked_by_mask"] < 0.9
    assert list(verify(DataSet.read(tmp_path / "data"))) == []
