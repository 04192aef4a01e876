"""Kills a run and repeats the same command, with real processes on small corpora."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(output_dir, *flags):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch",
            "generate",
            f"--input_file={ROOT / 'data_samples' / 'english.txt'}",
            f"--vocab_file={ROOT / 'data_samples' / 'english_vocab.txt'}",
            f"--output_dir={output_dir}",
            "--dupe_factor=30",
            "--num_shards=2",
            *flags,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def finish(output_dir, *flags):
    process = start(output_dir, *flags)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


def kill_when(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()


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
    process = start(output_dir, "--random_seed=7")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "random_seed 12345, not 7" in stderr
    assert "--overwrite" in stderr
    assert sorted(output_dir.rglob("*")) == before
    finish(output_dir, "--random_seed=7", "--overwrite")
    manifest = json.loads((output_dir / "manifest.json").read_text())
    assert manifest["options"]["random_seed"] == 7


def test_a_tokenized_corpus_can_be_reused_for_another_length_without_its_text(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes((ROOT / "data_samples" / "chinese.txt").read_bytes())
    flags = [
        f"--input_file={corpus}",
        f"--vocab_file={ROOT / 'data_samples' / 'chinese_vocab.txt'}",
        f"--tokenized_dir={tmp_path / 'tokenized'}",
        "--dupe_factor=1",
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
    finish(directory / "data", f"--tokenized_dir={directory / 'tokenized'}")
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
    process = start(tmp_path / "data", f"--tokenized_dir={tokenized_dir}", flag)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert difference in stderr
    assert not (tmp_path / "data").exists()


def test_a_corpus_edited_without_changing_its_size_is_detected(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes((ROOT / "data_samples" / "english.txt").read_bytes())
    flags = [f"--input_file={corpus}", f"--tokenized_dir={tmp_path / 'tokenized'}"]
    finish(tmp_path / "first", *flags)
    corpus.write_bytes(corpus.read_bytes().swapcase())
    os.utime(corpus, (1, 1))
    process = start(tmp_path / "second", *flags)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "different input files" in stderr


def test_a_damaged_tokenized_file_is_made_again(tmp_path):
    tokenized = f"--tokenized_dir={tmp_path / 'tokenized'}"
    finish(tmp_path / "first", tokenized)
    (file,) = (tmp_path / "tokenized").glob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    finish(tmp_path / "second", tokenized)
    assert file.read_bytes() == whole
    assert content(tmp_path / "first") == content(tmp_path / "second")


def test_overwrite_keeps_the_data_set_when_the_tokenized_corpus_is_refused(tmp_path):
    tokenized = f"--tokenized_dir={tmp_path / 'tokenized'}"
    finish(tmp_path / "data", tokenized)
    before = content(tmp_path / "data")
    process = start(tmp_path / "data", tokenized, "--nodo_lower_case", "--overwrite")
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert content(tmp_path / "data") == before


def test_leftovers_of_a_run_killed_at_its_very_end_are_removed(tmp_path):
    finish(tmp_path / "data")
    (tmp_path / "data" / "clozemill_in_progress" / "tokenized").mkdir(parents=True)
    before = content(tmp_path / "data")
    finish(tmp_path / "data")
    assert not (tmp_path / "data" / "clozemill_in_progress").exists()
    assert content(tmp_path / "data") == before


@pytest.mark.slow
def test_the_death_of_a_worker_process_ends_the_run_and_loses_nothing(tmp_path, uninterrupted):
    output_dir = tmp_path / "data"
    process = start(output_dir, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    deadline = time.monotonic() + 60
    while not list(output_dir.glob("train-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(newest_descendant(process.pid), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process died" in stderr
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
