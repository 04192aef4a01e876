"""`clozemill vocab` as a user types it; every test starts a separate process."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tokenization import FullTokenizer

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "data_samples/english.txt"


def vocab(output_file, *flags, input_file=ENGLISH):
    command = ["vocab", f"--input_file={input_file}", f"--output_file={output_file}", *flags]
    return subprocess.run(
        [sys.executable, "-m", "launch", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_vocabulary_is_the_same_each_time_and_covers_its_text(tmp_path):
    for name in ("a.txt", "b.txt"):
        result = vocab(tmp_path / name, "--vocab_size=2000", "--num_unused=10")
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{tmp_path / name}: 2,000 tokens\n"
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    tokens = (tmp_path / "a.txt").read_text("utf-8").splitlines()
    assert tokens[:3] == ["[PAD]", "[unused0]", "[unused1]"]
    assert tokens[11:15] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = FullTokenizer(tmp_path / "a.txt")
    assert 11 not in tokenizer.encode(ENGLISH.read_text("utf-8"))


def test_input_and_output_may_be_on_a_store(bucket, tmp_path):
    (bucket / "text.txt").upload(ENGLISH)
    assert vocab(tmp_path / "vocab.txt", "--vocab_size=500").returncode == 0
    output_file = bucket / "made" / "vocab.txt"
    command = functools.partial(vocab, output_file, input_file=f"{bucket}/*.txt")
    result = command("--vocab_size=500")
    assert result.stdout == f"{output_file}: 500 tokens\n", result.stderr
    assert output_file.read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    assert "was made from the same input" in command("--vocab_size=500").stderr
    assert "made with vocab_size 500, not 400" in command("--vocab_size=400").stderr
    assert command("--vocab_size=400", "--overwrite").stdout == f"{output_file}: 400 tokens\n"
    result = vocab(bucket / "made", input_file=f"{bucket}/*.txt")
    assert f"--output_file={bucket}/made is a folder" in result.stderr
    result = vocab(bucket / "text.txt", "--overwrite", input_file=f"{bucket}/*.txt")
    assert "also matches" in result.stderr
    result = vocab("s3://there-is-no-such-bucket/vocab.txt")
    assert result.stderr.count("\n") == 1
    assert "there is no bucket s3://there-is-no-such-bucket" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("put", [0, 1])
def test_killed_at_what_it_writes_to_a_store_it_ends_with_the_same_bytes(
    put, moment, bucket, server, tmp_path
):
    assert vocab(tmp_path / "vocab.txt", "--vocab_size=500").returncode == 0
    output_file = bucket / "vocab.txt"
    command = [sys.executable, "-m", "launch", "vocab", f"--input_file={ENGLISH}"]
    process = subprocess.Popen(
        [*command, f"--output_file={output_file}", "--vocab_size=500"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    seen = []

    def kill(_, method, path):
        if method == "PUT":
            seen.append(path)
            if len(seen) == put + 1:
                process.kill()
                process.wait()

    setattr(server, moment, kill)
    assert process.wait(100) == -signal.SIGKILL
    server.reset()
    assert vocab(output_file, "--vocab_size=500").returncode == 0
    assert output_file.read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    assert {path.name for path in bucket.iterdir()} == {"vocab.txt", "vocab.txt.json"}


def test_an_existing_file_is_replaced_only_on_request(tmp_path):
    output_file = tmp_path / "vocab.txt"
    output_file.write_text("precious")
    result = vocab(output_file, "--vocab_size=500")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert str(output_file) in result.stderr
    assert output_file.read_text() == "precious"
    assert vocab(output_file, "--vocab_size=500", "--overwrite").returncode == 0
    made = output_file.read_text()
    assert made.startswith("[PAD]\n")

    again = vocab(output_file, "--vocab_size=500")
    assert again.returncode == 0
    assert again.stdout == f"{output_file}: 500 tokens\n"
    assert "was made from the same input with the same options before" in again.stderr
    other = vocab(output_file, "--vocab_size=501").stderr
    assert f"{output_file} already exists, made with vocab_size 500, not 501" in other
    output_file.write_text(made.replace("[PAD]", "[pad]"))
    assert "was changed after it was made" in vocab(output_file, "--vocab_size=500").stderr


def test_a_file_with_the_name_of_the_receipt_is_not_replaced(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    result = vocab(tmp_path / "tokenizer", "--vocab_size=500")
    assert result.returncode == 1
    assert f"{tmp_path / 'tokenizer.json'} already exists" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--vocab_size=20", "--vocab_size=20 is too small"),
        ("--max_bytes=0", "--max_bytes=0"),
        ("--output_file=nowhere/vocab.txt", "nowhere/vocab.txt"),
        ("--input_file=nowhere/*.txt", "nowhere/*.txt"),
        ("--encoding=nonsense", "--encoding=nonsense is unknown"),
    ],
)
def test_an_invalid_flag_is_reported_in_one_line_and_nothing_is_left(tmp_path, flag, message):
    result = vocab(tmp_path / "vocab.txt", flag)
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
