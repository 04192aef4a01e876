import hashlib
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace

import pytest

from pipeline.directories import Directories
from pipeline.errors import UserError
from pipeline.files import locked_directory, whole_file, write_whole
from pipeline.manifest import FLAGS_NAME, DataSet, Manifest, Shard
from pipeline.receipts import DuplicatesReceipt, read_receipt_of_whole, write_receipt
from pipeline.statistics import ShardResults
from pipeline.verification import verify


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "some_vocab.txt"
    path.write_text("[PAD]\n")
    return path


def test_prepared_directories_hold_the_vocabulary_and_can_be_discarded(tmp_path, vocab_file):
    directories = Directories(tmp_path / "new" / "data")
    directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
    assert directories.tokenized.is_dir()
    assert directories.receipts.is_dir()
    assert directories.unfinished_shards.is_dir()
    assert directories.vocabulary.read_bytes() == vocab_file.read_bytes()
    (directories.output / "train-00000-of-00001.tfrecord").write_text("unfinished")
    directories.discard()
    assert list(directories.output.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, vocab_file, overwrite):
    (tmp_path / "other" / "sub").mkdir(parents=True)
    for name in ("vocab.txt", "notes.txt", "train-1-of-2.tfrecord"):
        (tmp_path / "other" / name).write_text(name)
    with pytest.raises(UserError, match="are not a data set"):
        Directories(tmp_path / "other").prepare(vocab_file.read_bytes(), {}, {}, overwrite)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        *("notes.txt", "sub", "train-1-of-2.tfrecord", "vocab.txt")
    ]


def test_discarding_keeps_files_that_do_not_belong_to_a_data_set(tmp_path, vocab_file):
    directories = Directories(tmp_path / "data")
    directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
    (directories.output / "notes.txt").write_text("mine")
    directories.discard()
    assert [path.name for path in directories.output.iterdir()] == ["notes.txt"]


def test_an_existing_empty_folder_is_used(tmp_path, vocab_file):
    (tmp_path / "data").mkdir()
    directories = Directories(tmp_path / "data")
    directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
    assert directories.vocabulary.exists()


@pytest.mark.parametrize("output", ["some_vocab.txt", "some_vocab.txt/data"])
def test_a_file_is_refused_as_output_directory(tmp_path, vocab_file, output):
    with pytest.raises(UserError, match="cannot write to"):
        Directories(tmp_path / output).prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
    assert vocab_file.read_text() == "[PAD]\n"


def test_a_foreign_folder_is_never_mistaken_for_a_data_set(tmp_path, vocab_file):
    for name in ("in_progress/novel.txt", "manifest.json", "report.html"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="are not a data set"):
            Directories(tmp_path / "data").prepare(vocab_file.read_bytes(), {}, {}, overwrite)
    assert len(list((tmp_path / "data").rglob("*"))) == 4


def test_foreign_files_are_refused_as_tokenized_corpus(tmp_path, vocab_file):
    (tmp_path / "tokenized").mkdir()
    (tmp_path / "tokenized" / "split-00000.parquet").write_text("precious")
    directories = Directories(tmp_path / "data", tmp_path / "tokenized")
    with pytest.raises(UserError, match="--tokenized_dir"):
        directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=True)
    assert (tmp_path / "tokenized" / "split-00000.parquet").read_text() == "precious"


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("data/clozemill_in_progress/receipts/plan.json", "pass --overwrite"),
        ("tokenized/plan.json", "choose another --tokenized_dir"),
    ],
)
def test_a_damaged_plan_is_one_line_with_advice(tmp_path, vocab_file, file, advice):
    directories = Directories(tmp_path / "data", tmp_path / "tokenized")
    directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
    (tmp_path / file).write_text("{")
    with pytest.raises(UserError, match=advice) as raised:
        directories.prepare(vocab_file.read_bytes(), {}, {}, overwrite=False)
    assert str(raised.value).startswith(f"{tmp_path / file} is damaged")


class Killed(BaseException):
    """What happens to a process that is killed: it does nothing more, not even clean up."""


class Killer:
    """Ends a block at one of its changes to the file system, as SIGKILL would."""

    def __init__(self):
        self._changes, self._deadly, self._is_watching = 0, None, False
        sys.addaudithook(self._on_event)  # which stays as long as the process

    def run(self, function, deadly=None):
        """Calls a function, which dies before its change number `deadly`; returns the number."""
        self._changes, self._deadly, self._is_watching = 0, deadly, True
        try:
            function()
        except Killed:
            assert deadly
        finally:
            self._is_watching = False
        return self._changes

    def _on_event(self, event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile")
        if self._is_watching and (writes or event in changes):
            self._changes += 1
            if self._deadly and self._changes >= self._deadly:
                raise Killed


@pytest.fixture(scope="session")
def killer():
    return Killer()


PLAN = {"input_stamps_sha256": "ab", "do_lower_case": True}


def make_data_set(output_dir, tokenized_dir, vocab_file, seed, overwrite=False):
    """Makes a data set of empty shards, one more than `seed`, as `generate` does without Beam."""
    directories, plan = Directories(output_dir, tokenized_dir), {**PLAN, "random_seed": seed}
    empty = Shard("", "train", 0, 0, 0, 0, 0, hashlib.sha256(b"").hexdigest())
    names = [f"train-0000{number}-of-0000{seed + 1}.tfrecord" for number in range(seed + 1)]
    shards = [replace(empty, name=name) for name in names]
    with locked_directory(directories.output):
        if not overwrite and directories.find_finished(plan):
            return
        directories.prepare(vocab_file.read_bytes(), PLAN, plan, overwrite)
        tokenized = directories.tokenized_file(0)
        if not read_receipt_of_whole(tokenized, DuplicatesReceipt):
            write_whole(tokenized, "tokens")
            sha256 = hashlib.sha256(b"tokens").hexdigest()
            write_receipt(tokenized, DuplicatesReceipt(0, sha256))
        for shard in shards:
            path, receipt = directories.output / shard.name, directories.receipts / shard.name
            if not read_receipt_of_whole(receipt, ShardResults, path):
                with whole_file(path, directories.unfinished_shards):
                    pass
                write_receipt(receipt, ShardResults(shard, Counter(), Counter(), Counter()))
        write_whole(directories.output / FLAGS_NAME, f"--random_seed={seed}")
        manifest = Manifest(
            max_seq_length=8,
            max_predictions_per_seq=2,
            do_lower_case=True,
            vocab_size=1,
            vocab_sha256=hashlib.sha256(vocab_file.read_bytes()).hexdigest(),
            options={"random_seed": seed},
            statistics={},
            shards=shards,
        )
        directories.finish(manifest)


@pytest.mark.parametrize("keeps_tokenized", [False, True])
@pytest.mark.parametrize("before", ["nothing", "finished", "unfinished"])
def test_a_run_killed_at_any_change_can_be_repeated(
    tmp_path, vocab_file, killer, monkeypatch, before, keeps_tokenized
):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the system does not die, and this is slow
    work, pristine = tmp_path / "work", tmp_path / "pristine"
    tokenized = work / "tokenized" if keeps_tokenized else None
    work.mkdir()

    def make(seed=0, overwrite=before != "nothing"):
        make_data_set(work / "data", tokenized, vocab_file, seed, overwrite)

    def content():
        return {path: path.is_file() and path.read_bytes() for path in work.rglob("*")}

    if before != "nothing":
        all_changes = killer.run(lambda: make(1, overwrite=False))
    if before == "unfinished":
        shutil.rmtree(work)
        work.mkdir()
        killer.run(lambda: make(1, overwrite=False), deadly=all_changes // 2)
        assert not (work / "data" / "manifest.json").exists()
    shutil.copytree(work, pristine)
    num_changes = killer.run(make)
    whole = content()
    assert num_changes > 20
    for deadly in range(1, num_changes + 1):
        shutil.rmtree(work)
        shutil.copytree(pristine, work)
        killer.run(make, deadly)
        if (work / "data" / "manifest.json").exists():
            assert list(verify(DataSet.read(work / "data"))) == []
        try:
            make(overwrite=False)
        except UserError:  # as long as it is the old data set
            make()
        assert content() == whole, f"killed before change {deadly} of {num_changes}"
