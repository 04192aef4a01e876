"""`clozemill vocab` as a user types it; every test starts a separate process."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tokenization import FullTokenizer

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "data_samples/english.txt"
ENGLISH_VOCAB = ROOT / "data_samples/english_vocab.txt"
GOLDEN_VOCAB = ROOT / "tests/golden/vocab"


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


# Vocabularies that extend another.


@pytest.fixture
def old_vocab(tmp_path):
    """The sample's vocabulary with two unused rows, and without its last tokens."""
    tokens = ENGLISH_VOCAB.read_text("utf-8").splitlines()[:500]
    tokens[3:3] = ["[unused0]", "[unused1]"]
    path = tmp_path / "old" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    return path


def lines_of(path):
    return path.read_text("utf-8").splitlines()


def pieces_and_words(path, **options):
    """The number of tokens of the sample, that of its punctuation marks, and that of its words."""
    tokenizer = FullTokenizer(path, **options)
    text = ENGLISH.read_text("utf-8")
    words = tokenizer.basic_tokenizer.tokenize(text)
    marks = sum(not word.isalnum() for word in words)
    return len(tokenizer.encode(text)), marks, len(words) - marks


def test_an_extended_vocabulary_says_what_it_is_worth_and_is_only_verified_again(
    old_vocab, tmp_path
):
    output_file = tmp_path / "new.txt"
    extend = [f"--extend={old_vocab.parent}", "--num_new_tokens=300"]
    result = vocab(output_file, *extend)
    assert result.returncode == 0, result.stderr
    old, new = lines_of(old_vocab), lines_of(output_file)
    assert len(new) == len(old) + 298
    assert [i for i, token in enumerate(old) if new[i] != token] == [3, 4]
    before, marks, words = pieces_and_words(old_vocab)
    after, _, _ = pieces_and_words(output_file)
    assert after < 0.85 * before
    a, b = (before - marks) / words, (after - marks) / words
    assert result.stdout == (
        f"{output_file}: 800 tokens, 300 of them new, 2 of these in the place of [unused…]\n"
        f"  pieces a word         {a:.3f} before, {b:.3f} after ({b / a - 1:+.1%})\n"
        f"  tokens of the text    {before:,} before, {after:,} after ({after / before - 1:+.1%})\n"
        "  words that are [UNK]  0.000% before, 0.000% after\n"
    )
    assert "does not say whether text is lower-cased: it is lower-cased" in result.stderr

    again = vocab(output_file, *extend)
    assert (again.returncode, again.stdout) == (0, result.stdout)
    assert "was made from the same input with the same options before" in again.stderr
    made = output_file.read_bytes()
    output_file.unlink()  # as if it had been killed after the receipt
    assert vocab(output_file, *extend).stdout == result.stdout
    assert output_file.read_bytes() == made

    message = vocab(output_file, extend[0], "--num_new_tokens=299").stderr
    assert "already exists, made with num_new_tokens 300, not 299: give another" in message
    message = vocab(output_file, "--vocab_size=500").stderr
    assert "made with num_new_tokens 300, not None; num_unused None, not 99" in message
    old_vocab.write_text(old_vocab.read_text("utf-8") + "else\n")
    assert "made with a different vocabulary: give another" in vocab(output_file, *extend).stderr
    assert vocab(output_file, *extend, "--overwrite").returncode == 0
    output_file.write_text("[PAD]\n")
    assert "was changed after it was made" in vocab(output_file, *extend).stderr


@pytest.mark.parametrize(
    ("files", "is_lower_case", "is_guessed"),
    [
        ({}, True, True),
        ({"vocab.txt": "cased"}, False, True),
        ({"tokenizer_config.json": {"do_lower_case": False}}, False, False),
        ({"vocab.txt": "cased", "tokenizer_config.json": {"do_lower_case": True}}, True, False),
    ],
)
def test_text_is_normalized_as_for_the_bert(old_vocab, tmp_path, files, is_lower_case, is_guessed):
    if "vocab.txt" in files:
        shutil.copy(GOLDEN_VOCAB / "bert-base-cased.txt", old_vocab)
    if "tokenizer_config.json" in files:
        path = old_vocab.with_name("tokenizer_config.json")
        path.write_text(json.dumps(files["tokenizer_config.json"]))
    contrary = "--nodo_lower_case" if is_lower_case else "--do_lower_case"
    for name, extended in (("a.txt", old_vocab), ("b.txt", old_vocab.parent)):
        result = vocab(tmp_path / name, f"--extend={extended}", "--num_new_tokens=90")
        assert result.returncode == 0, result.stderr
        assert ("to judge by its tokens" in result.stderr) == is_guessed
        new = set(lines_of(tmp_path / name)) - set(lines_of(old_vocab))
        assert all(token == token.lower() for token in new) == is_lower_case
        tokens, _, _ = pieces_and_words(tmp_path / name, do_lower_case=is_lower_case)
        assert f" {tokens:,} after" in result.stdout
    result = vocab(tmp_path / "c.txt", f"--extend={old_vocab}", "--num_new_tokens=9", contrary)
    if is_guessed:
        assert result.returncode == 0, result.stderr
        assert "lower-cased, as the flags say" in result.stderr
    else:
        assert result.returncode == 1
        assert f"leave out {contrary}: by what {old_vocab.parent} says" in result.stderr


@pytest.mark.parametrize("of_bert", [True, False])
def test_words_that_a_pre_tokenizer_finds_are_not_extended(old_vocab, tmp_path, of_bert):
    if of_bert:  # as tohoku's BERT has it
        config = {
            "tokenizer_class": "BertJapaneseTokenizer",
            "word_tokenizer_type": "mecab",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        }
        old_vocab.with_name("tokenizer_config.json").write_text(json.dumps(config))
    flags = [] if of_bert else ["--pre_tokenizer=mecab"]
    extend = f"--extend={old_vocab.parent}", "--num_new_tokens=5"
    result = vocab(tmp_path / "new.txt", *extend, *flags)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "cannot add words to a BERT whose words mecab finds" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_vocabulary_on_a_store_is_extended(bucket, old_vocab, tmp_path):
    (bucket / "text.txt").upload(ENGLISH)
    (bucket / "bert" / "vocab.txt").upload(old_vocab)
    flags = "--num_new_tokens=20"
    assert vocab(tmp_path / "new.txt", flags, f"--extend={old_vocab}").returncode == 0
    for name, extended in (("a.txt", "bert"), ("b.txt", "bert/vocab.txt")):
        result = vocab(
            bucket / name, flags, f"--extend={bucket}/{extended}", input_file=f"{bucket}/text.*"
        )
        assert result.returncode == 0, result.stderr
        assert (bucket / name).read_bytes() == (tmp_path / "new.txt").read_bytes()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--extend=OLD"], 2, "--extend needs --num_new_tokens"),
        (["--num_new_tokens=5"], 2, "--num_new_tokens needs --extend"),
        (["--extend=OLD", "--num_new_tokens=0"], 2, "num_new_tokens"),
        (["--extend=OLD", "--num_new_tokens=5", "--vocab_size=9"], 2, "leave out --vocab_size"),
        (["--extend=OLD/none", "--num_new_tokens=5"], 1, "cannot read the vocabulary"),
        (["--extend=OLD/..", "--num_new_tokens=5"], 1, "is a directory without vocab.txt"),
        (["--extend=OLD", "--num_new_tokens=5", "--output_file=OLD/vocab.txt"], 1, "another name"),
        (["--extend=OLD", "--num_new_tokens=5", "--min_document_characters=9999999"], 1, "no text"),
    ],
)
def test_what_cannot_be_extended_is_one_line_and_nothing_is_left(
    flags, code, message, old_vocab, tmp_path
):
    flags = [flag.replace("OLD", str(old_vocab.parent)) for flag in flags]
    result = vocab(tmp_path / "new.txt", *flags)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
