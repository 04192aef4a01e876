"""Input, options and paths that `clozemill generate` cannot use, or that only look unusable."""

import gzip
import io
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl.testing import flagsaver

import launch.command_line
import launch.generate
from pipeline.manifest import DataSet, Manifest
from pipeline.verification import verify

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "data_samples" / "english.txt"
ENGLISH_VOCAB = ROOT / "data_samples" / "english_vocab.txt"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHORT = ("--max_seq_length=16", "--max_predictions_per_seq=3", "--dupe_factor=1")


@pytest.fixture
def generate(tmp_path, capsys, monkeypatch):
    """A function that runs the verb in this process; returns the exit code and stderr's lines."""
    monkeypatch.setattr(launch.command_line, "_configure", lambda: None)

    def run(input_file, *flags):
        arguments = [
            f"--input_file={input_file}",
            f"--vocab_file={ENGLISH_VOCAB}",
            f"--output_dir={tmp_path / 'data'}",
            *SHORT,
            *flags,
        ]
        capsys.readouterr()
        with flagsaver.flagsaver():
            code = launch.command_line.run(["generate", *arguments])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def assert_fails(generate):
    def run(input_file, *flags, says):
        code, lines = generate(input_file, *flags)
        # In this process, unlike in the command line, Beam logs to a handler of its own.
        lines = [line for line in lines if line.startswith("clozemill")]
        assert code == 1
        assert len(lines) == 1
        for part in says:
            assert str(part) in lines[0]
        assert len(lines[0]) < 1000

    return run


@pytest.fixture
def assert_works(generate, tmp_path):
    def run(input_file, *flags):
        code, lines = generate(input_file, *flags)
        assert (code, lines) == (0, [])
        assert list(verify(DataSet.read(tmp_path / "data"))) == []
        assert not (tmp_path / "data" / "clozemill_in_progress").exists()
        return Manifest.read(tmp_path / "data").statistics

    return run


def command(output_dir, input_file, *flags):
    return [
        *(sys.executable, "-m", "launch", "generate"),
        f"--input_file={input_file}",
        f"--vocab_file={ENGLISH_VOCAB}",
        f"--output_dir={output_dir}",
        *SHORT,
        *flags,
    ]


def start(output_dir, input_file, *flags, **kwargs):
    return subprocess.Popen(
        command(output_dir, input_file, *flags),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def parquet_bytes(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


# Input that looks wrong but is not.


def test_invalid_utf8_and_nul_bytes_are_dropped_if_the_user_wants_it(
    tmp_path, assert_works, assert_fails
):
    plain = ENGLISH.read_bytes()
    dirty = plain.replace(b"e", b"\xffe\xc3").replace(b".\n", b"\xf0\x9f\0.\n\xed\xa0\x80")
    (tmp_path / "dirty.txt").write_bytes(dirty)
    assert_fails(tmp_path / "dirty.txt", says=["is not UTF-8", "--encoding=utf-8 drops"])
    statistics = assert_works(tmp_path / "dirty.txt", "--encoding=utf-8")
    assert statistics["corpus"]["documents_tokenized"] == 60
    assert statistics["corpus"]["share_unknown"] == 0


def test_a_file_of_random_bytes_is_no_text(tmp_path, assert_fails):
    rng = random.Random(1)
    lines = (rng.randbytes(50) + b"\n\n"[: 1 + number % 2] for number in range(400))
    (tmp_path / "random.txt").write_bytes(b"".join(lines))
    assert_fails(tmp_path / "random.txt", says=["random.txt is not text"])


def test_an_empty_file_beside_others_is_harmless(tmp_path, assert_works):
    for name in ("a.txt", "b.txt.gz", "c.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "d.txt").write_bytes(ENGLISH.read_bytes())
    assert assert_works(f"{tmp_path}/?.*")["corpus"]["input_files"] == 4


def test_one_document_has_instances_without_a_random_next(tmp_path, assert_works):
    (tmp_path / "one.txt").write_text("The mill turns.\nThe river runs.\n" * 20)
    statistics = assert_works(tmp_path / "one.txt")
    assert statistics["corpus"]["documents_read"] == 1
    assert statistics["train"]["instances"] > 0
    assert statistics["train"]["random_next"] == 0


def test_documents_of_one_sentence_have_only_random_nexts(tmp_path, assert_works):
    (tmp_path / "short.txt").write_text("The mill turns.\n\n" * 20)
    statistics = assert_works(tmp_path / "short.txt")
    assert statistics["train"]["share_random_next"] == 1


@pytest.mark.parametrize("name", ["nicht\udcff.txt", "with space.txt", "漢字.jsonl", "a'b\".txt"])
def test_a_file_may_have_any_name(name, tmp_path, generate):
    """Otherwise, one line says that it may not."""
    content = ENGLISH.read_text("utf-8")
    (tmp_path / name).write_text(json.dumps({"text": content}) if "json" in name else content)
    code, lines = generate(f"{tmp_path}/*.{name.rpartition('.')[2]}")
    assert (code, len(lines)) in ((0, 0), (1, 1))


def test_a_vocabulary_with_a_repeated_token_is_used_with_a_warning(tmp_path, assert_works, caplog):
    tokens = ENGLISH_VOCAB.read_text("utf-8").split()
    (tmp_path / "vocab.txt").write_text("\n".join([*tokens, tokens[70], tokens[60]]))
    with caplog.at_level("WARNING"):
        assert_works(ENGLISH, f"--vocab_file={tmp_path}/vocab.txt")
    (warning,) = (text for text in caplog.messages if "vocabulary" in text)
    assert f"{tmp_path}/vocab.txt" in warning
    assert f"2 repeated lines (first: {tokens[60]!r})" in warning


# A long line.


def peak_megabytes_and_seconds(process, tmp_path):
    """Waits for the process, which must succeed, and returns its peak memory and run time."""
    began = time.monotonic()
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, stderr
    assert Manifest.read(tmp_path / "data").statistics["corpus"]["tokens"] > 0
    return usage.ru_maxrss / 1024, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "jsonl", "text.gz", "one word"])
def test_a_line_of_50_megabytes_is_a_long_sentence(kind, tmp_path):
    sentence = "the mill turns and the river runs " if kind != "one word" else "abcdefghij"
    line = sentence * (50_000_000 // len(sentence))
    if kind == "jsonl":
        line = json.dumps({"text": line + "\nThe end. It is."})
    elif kind != "one word":
        line += "\nThe end.\nIt is."
    content = f"The mill turns.\nIt runs.\n\n{line}\n" if kind != "jsonl" else f"{line}\n"
    path = tmp_path / ("corpus.jsonl" if kind == "jsonl" else "corpus.txt")
    path.write_text(content)
    if kind == "text.gz":
        path = tmp_path / "corpus.txt.gz"
        path.write_bytes(gzip.compress(content.encode(), 1))
    megabytes, seconds = peak_megabytes_and_seconds(start(tmp_path / "data", path), tmp_path)
    print(f"{kind}: {megabytes:.0f} MB, {seconds:.1f} s")
    assert megabytes < 3000
    assert seconds < 60


# Input that cannot be used: one line says why, and it does not block a corrected command.


def truncated_gzip():
    return gzip.compress(ENGLISH.read_bytes())[:-100]


# File name, content, flags, and what the line says besides the name.
BAD_CORPORA = [
    pytest.param("empty.txt", b"", (), ["no text in"], id="empty"),
    pytest.param(
        "blank.txt", b"\n \n\t\r\n\n", (), ["no training instance", "0 documents"], id="blank"
    ),
    pytest.param("one.txt", b"The mill turns.\n", (), ["no training instance"], id="one sentence"),
    pytest.param("a.txt.gz", truncated_gzip(), (), ["its end is missing"], id="truncated gzip"),
    pytest.param("b.txt.gz", b"\x1f\x8bThe mill\xff", (), ["is not"], id="no gzip"),
    pytest.param("c.txt.zst", b"(\xb5/\xfd\0", (), ["its end is missing"], id="truncated zst"),
    pytest.param(
        "d.jsonl", b'{"text": "A."}\n{"text": \n', (), ["line 2: Expecting"], id="no JSON"
    ),
    pytest.param("e.jsonl", b'{"body": "A."}\n', (), ["line 1: ", "body"], id="no such field"),
    pytest.param(
        "f.json", b'[\n  {"text": "A."}\n]\n', (), ["is a JSON array"], id="a JSON document"
    ),
    pytest.param(
        "g.parquet",
        parquet_bytes(id=[1], body=["A."]),
        (),
        ["no column 'text'", "'id', 'body'"],
        id="no such column",
    ),
    pytest.param("h.parquet", parquet_bytes(text=[1]), (), ["int64, not text"], id="numbers"),
    pytest.param("i.parquet", b"PAR1" * 9, (), ["as Parquet"], id="no Parquet"),
    pytest.param(
        "j.parquet", parquet_bytes(text=["A.", "B."] * 99)[:-9], (), ["as Parquet"], id="cut off"
    ),
    pytest.param("k.parquet", parquet_bytes(text=[]), (), ["is of type null"], id="no rows"),
    pytest.param(
        "l.txt",
        b"The mill turns.\n\n" * 9,
        ("--min_document_characters=999",),
        ["no training instance"],
        id="all too short",
    ),
    pytest.param(
        "m.txt",
        b"The mill turns.\nIt runs.\n",
        ("--eval_fraction=0.9999999",),
        ["--eval_fraction"],
        id="all for evaluation",
    ),
    pytest.param(
        "n.jsonl", b"?\n", ("--on_bad_record=skip",), ["no training instance"], id="all bad"
    ),
    pytest.param(
        "o.txt",
        "我用电脑。\n".encode() * 9,
        ("--word_segmenter=json:dumps",),
        ["not a list of words"],
        id="a segmenter of another kind",
    ),
]


@pytest.mark.parametrize(("name", "content", "flags", "says"), BAD_CORPORA)
def test_an_unusable_corpus_is_named_and_does_not_block_the_next_command(
    name, content, flags, says, tmp_path, assert_fails, assert_works
):
    (tmp_path / name).write_bytes(content)
    # A segmenter's error does not name the file, because the place of the text does not matter.
    where = [] if "--word_segmenter" in str(flags) else [tmp_path / name]
    assert_fails(tmp_path / name, *flags, says=[*where, *says])
    assert not (tmp_path / "data" / "manifest.json").exists()
    if name in ("empty.txt", "blank.txt"):
        assert not (tmp_path / "data").exists()
    assert_works(ENGLISH, "--overwrite")


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("empty.txt", b"", ENGLISH.read_bytes()),
        ("blank.txt", b"\n\n", ENGLISH.read_bytes()),
        ("corpus.txt.gz", truncated_gzip(), gzip.compress(ENGLISH.read_bytes())),
        ("corpus.parquet", parquet_bytes(body=["A."]), parquet_bytes(text=["A. B."] * 9)),
        ("corpus.jsonl", b"?", b'{"text": "A. B."}\n' * 9),
    ],
)
def test_the_same_command_works_with_a_fixed_corpus(
    name, bad, good, tmp_path, generate, assert_works
):
    (tmp_path / name).write_bytes(bad)
    assert generate(tmp_path / name)[0] == 1
    (tmp_path / name).write_bytes(good)
    assert_works(tmp_path / name)


def test_the_advice_on_bad_records_can_be_followed(tmp_path, assert_fails, assert_works):
    texts = ENGLISH.read_text("utf-8").split("\n\n")
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "corpus.jsonl").write_text("\n".join([*lines, "?"]))
    assert_fails(tmp_path / "corpus.jsonl", says=["--on_bad_record=skip"])
    statistics = assert_works(tmp_path / "corpus.jsonl", "--on_bad_record=skip")
    assert statistics["corpus"]["records_skipped"] == 1


# Flags and vocabularies that cannot be used.


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--max_seq_length=long", "max_seq_length"), ("--input_format=word", "input_format")],
)
def test_wrong_values_exit_2(flag, message, tmp_path, generate):
    code, lines = generate(ENGLISH, flag)
    assert code == 2
    assert message in lines[0]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_a_vocabulary_without_a_special_token_is_refused(missing, tmp_path, assert_fails):
    vocab_file = tmp_path / "vocab.txt"
    tokens = [token for token in SPECIAL_TOKENS if token != missing]
    vocab_file.write_text("\n".join([*tokens, "the", "tea"]))
    assert_fails(ENGLISH, f"--vocab_file={vocab_file}", says=[vocab_file, missing])


def test_a_vocabulary_of_special_tokens_only_is_refused(tmp_path, assert_fails):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(SPECIAL_TOKENS))
    assert_fails(ENGLISH, f"--vocab_file={vocab_file}", says=[vocab_file, "only special tokens"])


# Paths that cannot be used.


def test_a_missing_input_file_is_named(tmp_path, assert_fails):
    assert_fails(tmp_path / "missing.txt", says=[tmp_path / "missing.txt"])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("flag", ["output_dir", "tokenized_dir", "vocab_file", "input_file"])
def test_urls_of_another_kind_are_refused(flag, assert_fails):
    flag = f"--{flag}=https://host/x"
    assert_fails(ENGLISH, flag, says=["knows no URL like https://host/x: give a path", "s3://"])


def test_a_bucket_that_is_not_there_is_named(bucket, assert_fails):
    for name in ("output_dir", "tokenized_dir", "vocab_file", "input_file"):
        flag = f"--{name}={bucket}-not/x"
        assert_fails(ENGLISH, flag, says=[f"there is no bucket {bucket}-not"])


@pytest.mark.parametrize("place", ["file", "file/data", "/proc/data"])
@pytest.mark.parametrize("flag", ["output_dir", "tokenized_dir"])
def test_a_path_that_cannot_be_written_is_named(flag, place, tmp_path, assert_fails, assert_works):
    (tmp_path / "file").write_text("mine")
    assert_fails(ENGLISH, f"--{flag}={tmp_path / place}", says=["cannot write", tmp_path / place])
    assert (tmp_path / "file").read_text() == "mine"
    assert_works(ENGLISH)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A data set that was generated without any failure."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "data"
    assert_succeeds(start(output_dir, ENGLISH))
    return output_dir


def assert_succeeds(process):
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


@pytest.mark.parametrize(
    "limit",
    [3_000, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (50_000, 100_000))],
)
def test_a_full_disk_is_reported_in_one_line_and_loses_nothing(limit, undisturbed, tmp_path):
    """A limit on file sizes raises the same error as a full disk, except for its number."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(tmp_path / "data", ENGLISH, preexec_fn=limited)
    _, stderr = process.communicate(timeout=60)
    lines = [line for line in stderr.splitlines() if not line[:2].isdigit()]
    assert process.returncode == 1
    assert len(lines) == 1, stderr
    assert "File too large" in lines[0]
    assert not (tmp_path / "data" / "manifest.json").exists()
    assert_succeeds(start(tmp_path / "data", ENGLISH))
    names = sorted(path.name for path in undisturbed.iterdir())
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == names
    for name in set(names) - {"flags.txt"}:
        assert (tmp_path / "data" / name).read_bytes() == (undisturbed / name).read_bytes()


# Files that are no files.


@pytest.fixture
def special_files(tmp_path):
    """Paths whose reading would never end, each with what it is."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    kinds = {"pipe": "a named pipe", "socket": "a socket"}
    return {tmp_path / name: kind for name, kind in kinds.items()} | {"/dev/zero": "a device"}


@pytest.mark.parametrize("flag", ["vocab_file", "output_dir", "tokenized_dir"])
def test_a_flag_that_names_a_pipe_socket_or_device_is_refused(flag, special_files, assert_fails):
    for path, kind in special_files.items():
        assert_fails(ENGLISH, f"--{flag}={path}", says=[f"--{flag}={path} is {kind}"])


def test_an_input_that_is_a_pipe_socket_or_device_is_refused(special_files, assert_fails):
    for path, kind in special_files.items():
        assert_fails(path, says=[path, kind])


# Options that cannot be used.


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max_seq_length=7"], ["--max_seq_length=7", "8"]),
        (["--max_seq_length=1000000"], ["--max_seq_length=1000000"]),
        (["--max_predictions_per_seq=17"], ["--max_predictions_per_seq=17", "--max_seq_length=16"]),
        (["--max_predictions_per_seq=0"], ["--max_predictions_per_seq=0"]),
        (["--min_document_characters=-1"], ["--min_document_characters=-1"]),
        (["--word_segmenter=jeiba"], ["--word_segmenter=jeiba"]),
        (["--word_segmenter=no_module:cut"], ["no_module"]),
        (["--num_shards=0"], ["--num_shards=0"]),
        (["--eval_fraction=1"], ["--eval_fraction=1"]),
        (["--eval_fraction=nan"], ["--eval_fraction=nan"]),
        (["--masked_lm_prob=nan"], ["--masked_lm_prob=nan"]),
        (["--short_seq_prob=inf"], ["--short_seq_prob=inf"]),
        (["--max_seq_length=99999999999999"], ["--max_seq_length=99999999999999"]),
        (["--num_shards=1000000000"], ["1,000,000,000 shards", "--dupe_factor"]),
        (["--dupe_factor=999999999999999999999"], ["--dupe_factor=999999999999999999999"]),
        (["--random_seed=-1"], ["--random_seed=-1"]),
    ],
    ids=lambda value: value[0],
)
def test_an_option_out_of_range_is_named(flags, says, tmp_path, assert_fails):
    assert_fails(ENGLISH, *flags, says=says)
    assert not (tmp_path / "data").exists()


def test_the_command_line_prints_nothing_but_its_line(tmp_path):
    """In a separate process, where Beam logs all it has about a worker's failure."""
    (tmp_path / "corpus.jsonl").write_text('{"text": "A."}\n{"text": "B."\n')
    process = start(tmp_path / "data", tmp_path / "corpus.jsonl")
    _, stderr = process.communicate(timeout=60)
    lines = [line for line in stderr.splitlines() if not line[:2].isdigit()]
    assert process.returncode == 1
    assert len(lines) == 1, stderr
    assert "corpus.jsonl, line 2: Expecting ',' delimiter" in lines[0]


# Lists of files, encodings, and what is written among the input.


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read --input_file=@"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"@other\n", "./@other"),
        (b"nothing_here\n", "no input file matches nothing_here"),
        (b"a\0b\n", "NUL"),
    ],
)
def test_a_list_of_files_that_names_none_is_an_error(content, says, assert_fails, tmp_path):
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    assert_fails(f"@{tmp_path / 'list'}", says=[says])


def test_a_list_names_files_one_a_line(assert_works, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c 1.txt", "c 2.txt", "\udcff.txt"):
        Path(name).write_text(f"{ENGLISH.read_text('utf-8')}", "utf-8")
    lines = b"\xef\xbb\xbfa,b.txt\r\n\n" + f"{tmp_path}/c *.txt\n".encode() + b"\xff.txt"
    (tmp_path / "list").write_bytes(lines)
    assert assert_works("@list")["corpus"]["input_files"] == 4


def test_text_of_another_encoding_is_read_as_told(assert_works, assert_fails, tmp_path):
    text = "Der Bäcker öffnet früh. Über die Straße.\n" * 20
    (tmp_path / "corpus.txt").write_text(text, "utf-16-le")
    assert_fails(
        tmp_path / "corpus.txt", "--encoding=nonsense", says=["--encoding=nonsense is unknown"]
    )
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": text}), "utf-16-le")
    corpus = assert_works(f"{tmp_path}/*.*", "--encoding=UTF-16LE")["corpus"]
    assert corpus["lines_with_invalid_utf8"] == 0
    assert corpus["documents_tokenized"] == 2
    options = Manifest.read(tmp_path / "data").options
    assert options["encoding"] == "utf-16-le"


def test_the_output_must_not_lie_below_the_input(assert_fails, tmp_path):
    (tmp_path / "a.txt").write_bytes(ENGLISH.read_bytes())
    assert_fails(tmp_path, says=["--output_dir", tmp_path / "data"])
    assert_fails(
        f"{tmp_path}/*/*.parquet",
        f"--tokenized_dir={tmp_path}/tokens",
        says=["--tokenized_dir", "/tokens/split-"],
    )
    assert_fails(f"{ENGLISH_VOCAB},{ENGLISH}", says=["--vocab_file"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--spark_conf=spark.x=1"], "--spark_conf needs --spark_master"),
        (["--spark_master=local", "--runner=FlinkRunner"], "remove --runner=FlinkRunner"),
        (["--spark_master=local", "--direct_num_workers=2"], "remove --direct_num_workers=2"),
    ],
)
def test_flags_of_another_engine_are_refused(flags, says, generate):
    code, lines = generate(ENGLISH, *flags)
    assert code == 2
    assert says in lines[0]
