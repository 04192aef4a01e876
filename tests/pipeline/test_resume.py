"""Kills a run and repeats the same command, with real processes on small corpora."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_PASS = "--dupe_factor=1"
ENGLISH = f"--input_file={ROOT / 'data_samples' / 'english.txt'}"
RUN = """
import os, sys
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for number in (1, 2):
    os.dup2(output, number)
import launch.__main__
sys.argv = ["clozemill", *arguments]
launch.__main__.main()
"""


@pytest.fixture(scope="module", autouse=True)
def _imported_once(preload):
    preload("launch.generate")


def start(output_dir, *flags):
    variables = {
        "log": log_of(output_dir),
        "arguments": [
            "generate",
            *([] if any("--mixture=" in flag for flag in flags) else [ENGLISH]),
            f"--vocab_file={ROOT / 'data_samples' / 'english_vocab.txt'}",
            f"--output_dir={output_dir}",
            # Long enough to be killed in the middle.
            "--dupe_factor=30",
            "--num_shards=2",
            *flags,
        ],
    }
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=exec, args=(RUN, variables))
    process.start()
    return process


def log_of(output_dir):
    return output_dir.with_suffix(".log")


def finish(output_dir, *flags):
    process = start(output_dir, *flags)
    process.join(timeout=120)
    assert process.exitcode == 0, log_of(output_dir).read_text()


def fail(output_dir, *flags):
    """Runs a command that must fail, and returns what it says."""
    process = start(output_dir, *flags)
    process.join(timeout=120)
    assert process.exitcode == 1
    return log_of(output_dir).read_text()


def kill_when(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()


def content(output_dir):
    return {
        path.name: path.read_bytes()
        for path in output_dir.iterdir()
        if path.is_file() and path.name != "flags.txt"
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "data"
    finish(output_dir)
    return content(output_dir)


@pytest.mark.parametrize(
    "pattern_and_count",
    [
        ("clozemill_in_progress", 1),
        ("clozemill_in_progress/tokenized/*.parquet", 1),
        ("train-*", 1),
        ("train-*", 25),
    ],
)
def test_a_killed_run_resumes_and_gives_the_same_bytes(tmp_path, uninterrupted, pattern_and_count):
    pattern, count = pattern_and_count
    output_dir = tmp_path / "data"
    kill_when(start(output_dir), lambda: len(list(output_dir.glob(pattern))) >= count)
    assert not (output_dir / "manifest.json").exists()
    finish(output_dir)
    assert content(output_dir) == uninterrupted


MIXTURE = f"""
[[corpus]]
name = "english"
input_file = "{ROOT}/data_samples/english.txt"
weight = 1

[[corpus]]
name = "chinese"
input_file = "{ROOT}/data_samples/chinese.txt"
weight = 2
"""


@pytest.mark.slow
def test_a_killed_run_of_a_mixture_resumes_and_gives_the_same_bytes(tmp_path):
    (tmp_path / "mixture.toml").write_text(MIXTURE)
    flags = [f"--mixture={tmp_path / 'mixture.toml'}", "--dupe_factor=8", "--eval_fraction=0.2"]
    for name, pattern, count in (
        ("measured", "clozemill_in_progress/receipts/documents-*.parquet", 1),
        ("built", "train-*", 3),
    ):
        output_dir = tmp_path / name
        process = start(output_dir, *flags)
        kill_when(process, lambda: len(list(output_dir.glob(pattern))) >= count)  # noqa: B023
        assert not (output_dir / "manifest.json").exists()
        finish(output_dir, *flags)
    assert content(tmp_path / "measured") == content(tmp_path / "built")


def test_finished_shards_are_reused_unless_they_are_damaged(tmp_path, uninterrupted):
    output_dir = tmp_path / "data"
    kill_when(start(output_dir), lambda: len(list(output_dir.glob("train-*"))) >= 10)
    receipts = list((output_dir / "clozemill_in_progress" / "receipts").glob("*.tfrecord.json"))
    shards = [output_dir / receipt.name.removesuffix(".json") for receipt in sorted(receipts)]
    damaged, *whole = shards
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    times = [shard.stat().st_mtime_ns for shard in whole]
    finish(output_dir)
    assert content(output_dir) == uninterrupted
    assert [shard.stat().st_mtime_ns for shard in whole] == times


def test_an_unfinished_data_set_with_other_options_is_refused_and_kept(tmp_path):
    output_dir = tmp_path / "data"
    kill_when(start(output_dir), lambda: len(list(output_dir.glob("train-*"))) > 1)
    before = [path for path in sorted(output_dir.rglob("*")) if path.suffix != ".tmp"]
    said = fail(output_dir, "--random_seed=7")
    assert "random_seed 12345, not 7" in said
    assert "--overwrite" in said
    assert sorted(output_dir.rglob("*")) == before
    finish(output_dir, "--random_seed=7", "--overwrite", ONE_PASS)
    manifest = json.loads((output_dir / "manifest.json").read_text())
    assert manifest["options"]["random_seed"] == 7


def test_a_tokenized_corpus_can_be_reused_for_another_length_without_its_text(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes((ROOT / "data_samples" / "chinese.txt").read_bytes())
    flags = [
        f"--input_file={corpus}",
        f"--vocab_file={ROOT / 'data_samples' / 'chinese_vocab.txt'}",
        f"--tokenized_dir={tmp_path / 'tokenized'}",
        ONE_PASS,
    ]
    finish(tmp_path / "128", *flags)
    stamp = corpus.stat()
    corpus.write_bytes(b"x" * stamp.st_size)
    os.utime(corpus, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    finish(tmp_path / "64", *flags, "--max_seq_length=64")
    first, second = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("128", "64")
    )
    assert first["statistics"]["corpus"] == second["statistics"]["corpus"]
    assert second["max_seq_length"] == 64


@pytest.fixture(scope="module")
def tokenized_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenized")
    finish(directory / "data", f"--tokenized_dir={directory / 'tokenized'}", ONE_PASS)
    return directory / "tokenized"


@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--nodo_lower_case", "do_lower_case True, not False"),
        ("--eval_fraction=0.5", "eval_fraction 0.0, not 0.5"),
        (f"--input_file={ROOT / 'data_samples' / 'chinese.txt'}", "input_bytes"),
        (f"--vocab_file={ROOT / 'data_samples' / 'chinese_vocab.txt'}", "a different vocabulary"),
    ],
)
def test_a_tokenized_corpus_made_with_other_options_is_refused(
    tmp_path, tokenized_dir, flag, difference
):
    assert difference in fail(tmp_path / "data", f"--tokenized_dir={tokenized_dir}", flag)
    assert not (tmp_path / "data").exists()


def test_a_corpus_edited_without_changing_its_size_is_detected(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes((ROOT / "data_samples" / "english.txt").read_bytes())
    flags = [f"--input_file={corpus}", f"--tokenized_dir={tmp_path / 'tokenized'}", ONE_PASS]
    finish(tmp_path / "first", *flags)
    corpus.write_bytes(corpus.read_bytes().swapcase())
    os.utime(corpus, (1, 1))
    assert "different input files" in fail(tmp_path / "second", *flags)


def test_a_damaged_tokenized_file_is_made_again(tmp_path):
    tokenized = f"--tokenized_dir={tmp_path / 'tokenized'}"
    finish(tmp_path / "first", tokenized, ONE_PASS)
    (file,) = (tmp_path / "tokenized").glob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    finish(tmp_path / "second", tokenized, ONE_PASS)
    assert file.read_bytes() == whole
    assert content(tmp_path / "first") == content(tmp_path / "second")


def test_overwrite_keeps_the_data_set_when_the_tokenized_corpus_is_refused(tmp_path):
    tokenized = f"--tokenized_dir={tmp_path / 'tokenized'}"
    finish(tmp_path / "data", tokenized, ONE_PASS)
    before = content(tmp_path / "data")
    fail(tmp_path / "data", tokenized, ONE_PASS, "--nodo_lower_case", "--overwrite")
    assert content(tmp_path / "data") == before


def test_leftovers_of_a_run_killed_at_its_very_end_are_removed(tmp_path):
    finish(tmp_path / "data", ONE_PASS)
    (tmp_path / "data" / "clozemill_in_progress" / "tokenized").mkdir(parents=True)
    before = content(tmp_path / "data")
    finish(tmp_path / "data", ONE_PASS)
    assert not (tmp_path / "data" / "clozemill_in_progress").exists()
    assert content(tmp_path / "data") == before


@pytest.mark.slow
def test_the_death_of_a_worker_process_ends_the_run_and_loses_nothing(tmp_path, uninterrupted):
    output_dir = tmp_path / "data"
    process = start(output_dir, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    deadline = time.monotonic() + 60
    while not list(output_dir.glob("train-*")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(newest_descendant(process.pid), signal.SIGKILL)
    process.join(timeout=60)
    assert process.exitcode == 1
    assert "a worker process died" in log_of(output_dir).read_text()
    finish(output_dir)
    assert content(output_dir) == uninterrupted


def newest_descendant(pid):
    """The Python process under the shell with which Beam starts a worker."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return newest_descendant(max(children)) if children else pid
