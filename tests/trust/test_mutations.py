"""Damages every kind of file that a verb reads, and runs the verb.

It must not end with a traceback or hang. Either one line names the file, an error or a warning, or
the result is that of the undamaged file. Only files that somebody else wrote may be valid with
another content.
"""

import bz2
import csv
import gzip
import json
import lzma
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

pytestmark = pytest.mark.no_backend

# Of each kind of file; 40 kinds make 2,000 in all.
MUTATIONS_PER_FILE = 50
MUTATIONS_OF_FAST_TEST = 4
SECONDS = 20
TIMED_OUT = -14
# Deeper than Python's and pyarrow's parsers can follow.
DEPTH = 100_000


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      path: of a file, below the working folder.
      verbs: the names of the commands that read it, as in `commands`.
      is_ours: whether only Clozemill writes it, so that any other content is damage.
    """

    path: str
    verbs: str
    is_ours: bool = True


CHECKPOINT = "run/checkpoints/step-00000004"
IN_PROGRESS = "unfinished/clozemill_in_progress"
CORPORA = ("text", "jsonl", "parquet", "csv", "wiki", "gz", "bz2", "xz", "zst", "lz4")
LIGHT_KINDS = [
    Kind("data/manifest.json", "verify inspect"),
    Kind("data/vocab.txt", "verify inspect"),
    Kind("data/train-00000-of-00002.tfrecord", "verify inspect"),
    Kind(f"{IN_PROGRESS}/receipts/plan.json", "resume"),
    Kind(f"{IN_PROGRESS}/receipts/train-00000-of-00002.tfrecord.json", "resume"),
    Kind("corpus.jsonl", "jsonl", is_ours=False),
]
KINDS = [
    Kind("data/manifest.json", "verify inspect pretrain evaluate"),
    Kind("data/vocab.txt", "verify inspect pretrain evaluate"),
    Kind("data/train-00000-of-00002.tfrecord", "verify inspect pretrain"),
    Kind("data/eval-00000-of-00001.tfrecord", "verify evaluate"),
    *LIGHT_KINDS[3:5],
    Kind(f"{IN_PROGRESS}/tokenized/split-00000.parquet", "resume"),
    Kind(f"{IN_PROGRESS}/tokenized/split-00000.parquet.json", "resume"),
    Kind("unfinished/train-00000-of-00002.tfrecord", "resume"),
    Kind("tokenized/plan.json", "retokenize"),
    Kind("tokenized/split-00000.parquet", "retokenize"),
    Kind("tokenized/split-00000.parquet.json", "retokenize"),
    Kind(f"{CHECKPOINT}/state.json", "continue evaluate export"),
    Kind(f"{CHECKPOINT}/weights.npz", "continue evaluate export"),
    Kind(f"{CHECKPOINT}/optimizer.npz", "continue"),
    Kind("run/bert_config.json", "continue evaluate export"),
    Kind("run/vocab.txt", "continue evaluate export"),
    Kind("run/manifest.json", "continue evaluate export"),
    Kind("run/metrics.jsonl", "continue export"),
    Kind("run/eval_results.json", "evaluate export"),
    Kind("data/flags.txt", "flagfile", is_ours=False),
    Kind("vocab.txt", "text", is_ours=False),
    Kind("run/copy_of_bert_config.json", "config", is_ours=False),
    Kind("huggingface/config.json", "original", is_ours=False),
    Kind("huggingface/model.safetensors", "original again", is_ours=False),
    Kind("huggingface/export.json", "original again"),
    Kind("new_vocab.txt", "vocab"),
    Kind("new_vocab.txt.json", "vocab"),
    Kind("huggingface/tokenizer.json", "original", is_ours=False),
    Kind("huggingface/tokenizer_config.json", "original", is_ours=False),
    Kind("original/bert_model.ckpt.index", "huggingface", is_ours=False),
    Kind("original/bert_model.ckpt.data-00000-of-00001", "huggingface", is_ours=False),
    Kind("original/checkpoint", "huggingface", is_ours=False),
    Kind("original/bert_config.json", "huggingface", is_ours=False),
    *(Kind(f"corpus.{suffix}", suffix, is_ours=False) for suffix in CORPORA),
    Kind("records.tfrecord", "adopt", is_ours=False),
    Kind("tokenizer.json", "tokenizer", is_ours=False),
]


def mutate(
    content: bytes, suffix: str, others: list[bytes], rng: random.Random
) -> tuple[str, bytes]:
    """Damages a file's content in a way that `rng` chooses; returns its name and the result."""
    place = rng.randrange(len(content) + 1)
    end = min(len(content), place + rng.randint(1, 200))
    block = content[place:end]

    def with_block(replacement: bytes) -> bytes:
        return content[:place] + replacement + content[end:]

    def flipped() -> bytes:
        damaged = bytearray(content or b"\0")
        damaged[place % len(damaged)] ^= 1 << rng.randrange(8)
        return bytes(damaged)

    def swapped() -> bytes:
        other = rng.randrange(len(content) + 1)
        first, second = sorted((place, other))
        length = (second - first) // 2
        return (
            content[:first]
            + content[second : second + length]
            + content[first + length : second]
            + content[first : first + length]
            + content[second + length :]
        )

    ways = {
        "a bit flipped": flipped,
        "a byte inserted": lambda: content[:place] + rng.randbytes(1) + content[place:],
        "a byte deleted": lambda: content[:place] + content[place + 1 :],
        "truncated": lambda: content[:place],
        "a block twice": lambda: with_block(block * 2),
        "a block deleted": lambda: with_block(b""),
        "blocks swapped": swapped,
        "another file's content": lambda: rng.choice(others),
        "empty": lambda: b"",
        "not UTF-8": lambda: with_block(b"\xff\xfe" + block),
        "NUL bytes": lambda: with_block(bytes(len(block) or 1)),
        "random bytes": lambda: with_block(rng.randbytes(len(block) or 1)),
    }
    if suffix in (".json", ".jsonl"):
        lines = content.splitlines(keepends=True) if suffix == ".jsonl" else [content]
        chosen = rng.randrange(len(lines))

        def with_value(value: str) -> bytes:
            changed = _with_value(lines[chosen], value, rng)
            return b"".join([*lines[:chosen], changed, *lines[chosen + 1 :]])

        ways |= {
            "deeply nested": lambda: with_value("[" * DEPTH + "]" * DEPTH),
            "a huge number": lambda: with_value(rng.choice(["1e999", "-1" + "0" * 30, "9" * 5000])),
            "NaN": lambda: with_value("NaN"),
            "a wrong type": lambda: with_value(
                rng.choice(["null", "true", "[]", "{}", '""', '"x"', "0", "-1", "1.5", "[[1]]"])
            ),
            "the whole of a wrong type": lambda: rng.choice([b"null", b"[]", b"1", b'"x"', b"{}"]),
            "a lone surrogate": lambda: with_value(r'"\ud800"'),
        }
    elif suffix in (".txt", ".text"):
        ways["a huge number"] = lambda: with_block(b"9" * 5000)
        ways["a long line"] = lambda: with_block(b"x" * 100_000)
    way = rng.choice(sorted(ways))
    return way, ways[way]()


def _with_value(content: bytes, value: str, rng: random.Random) -> bytes:
    """Replaces a value in a JSON text, chosen at random, by another one, written as JSON."""
    mark = "A MARK THAT NO FILE HOLDS"
    root = json.loads(content)
    places = []

    def collect(node) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(root)
    node, key = rng.choice(places)
    node[key] = mark
    indent = 2 if content.count(b"\n") > 1 else None
    text = json.dumps(root, indent=indent) + "\n"
    return text.replace(f'"{mark}"', value).encode()


class Files:
    """A folder with one file of each kind, and the commands that read them."""

    def __init__(self, zygote, content_of, folder: Path, text: Path, generate, pretrain):
        self._zygote, self._content_of = zygote, content_of
        self._work, self._pristine = folder / "work", folder / "pristine"
        self._work.mkdir(parents=True)
        self._expected: dict[str, tuple] = {}
        work, is_full = self._work, bool(pretrain)
        shutil.copy(text / "vocab.txt", work)
        _write_corpora(work, (text / "corpus.txt").read_text("utf-8"))
        words = [flag for flag in generate if not flag.startswith(("--input", "--vocab"))]
        generate = ["generate", *words, f"--vocab_file={work / 'vocab.txt'}"]
        read_text = [*generate, f"--input_file={text / 'corpus.txt'}"]
        new, run, data = (f"--output_dir={work / 'new'}", f"{work / 'run'}", f"{work / 'data'}")
        train = ["pretrain", *pretrain, f"--data_dir={data}"]
        evaluate = ["evaluate", f"--run_dir={run}", f"--data_dir={data}"]
        self.commands = {
            "verify": ["verify", f"--data_dir={data}"],
            "inspect": ["inspect", f"--data_dir={data}", "--num_examples=999"],
            "resume": [*read_text, f"--output_dir={work / 'unfinished'}"],
            "retokenize": [
                *[*read_text, new, "--random_seed=7"],
                f"--tokenized_dir={work / 'tokenized'}",
            ],
            "pretrain": [*train, new, "--num_train_steps=2"],
            "continue": [*train, f"--output_dir={run}", "--num_train_steps=6"],
            "config": [
                *[flag for flag in train if not flag.startswith("--model")],
                *[f"--bert_config_file={work / 'run/copy_of_bert_config.json'}", new],
                "--num_train_steps=2",
            ],
            "evaluate": evaluate,
            "export": ["export", f"--run_dir={run}", new],
            "again": ["export", f"--run_dir={run}", f"--output_dir={work / 'huggingface'}"],
            "vocab": [
                *["vocab", f"--input_file={text / 'corpus.txt'}", "--vocab_size=300"],
                f"--output_file={work / 'new_vocab.txt'}",
            ],
            "original": [
                *["export", f"--checkpoint={work / 'huggingface'}", new, "--format=original"],
            ],
            "huggingface": ["export", f"--checkpoint={work / 'original'}", new],
            "adopt": [
                *["adopt", f"--input_file={work / 'records.tfrecord'}", new],
                f"--vocab_file={work / 'vocab.txt'}",
            ],
            "tokenizer": [
                *["generate", *words, f"--vocab_file={work / 'tokenizer.json'}", new],
                f"--input_file={text / 'corpus.txt'}",
            ],
            "flagfile": ["generate", f"--flagfile={work / 'data/flags.txt'}", new],
        } | {
            suffix: [*generate, f"--input_file={work / f'corpus.{suffix}'}", new]
            for suffix in CORPORA
        }
        zygote.succeed(*self.commands["vocab"])
        zygote.succeed(*read_text, f"--output_dir={data}", "--eval_fraction=0.3")
        shutil.copy(work / "data/train-00000-of-00002.tfrecord", work / "records.tfrecord")
        tokens = (work / "vocab.txt").read_text("utf-8").split("\n")[:-1]
        model = {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(tokens)}}
        (work / "tokenizer.json").write_text(json.dumps({"model": model}), "utf-8")
        zygote.succeed(
            *[*read_text, f"--output_dir={work / 'kept'}"],
            f"--tokenized_dir={work / 'tokenized'}",
        )
        zygote.die_before("unfinished/manifest.json", work, self.commands["resume"])
        if is_full:
            zygote.die_before("run/checkpoints/step-00000006", work, self.commands["continue"])
            zygote.succeed(*evaluate)
            shutil.copy(work / "run/bert_config.json", work / "run/copy_of_bert_config.json")
            for name in ("huggingface", "original"):
                out = f"--output_dir={work / name}"
                zygote.succeed("export", f"--run_dir={run}", out, f"--format={name}")
            (work / "original/checkpoint").write_text('model_checkpoint_path: "bert_model.ckpt"\n')
        shutil.copytree(work, self._pristine)

    def outcome_of(self, kind: Kind, number: int) -> tuple[str, str]:
        """Damages a file, runs a verb that reads it, and says what came of it, and the details."""
        rng = random.Random(f"{kind.path} {number}")
        verbs = kind.verbs.split()
        verb = verbs[number % len(verbs)]
        content = (self._pristine / kind.path).read_bytes()
        others = [
            path.read_bytes()
            for path in sorted(self._pristine.rglob("*"))
            if path.is_file() and path.read_bytes() != content
        ]
        way, damaged = mutate(content, Path(kind.path).suffix, others, rng)
        while damaged == content:
            way, damaged = mutate(content, Path(kind.path).suffix, others, rng)
        if verb not in self._expected:
            result = self._result_of(verb)
            assert result[0].code == 0, result
            self._expected[verb] = result[1:]
        outcome, stdout, files = self._result_of(verb, kind.path, damaged)
        path = self._work / kind.path
        details = f"{kind.path}, mutation {number}, {way}, {verb}"
        lines = [line for line in outcome.stderr.splitlines() if not line[:2].isdigit()]
        if outcome.code == TIMED_OUT:
            return "hang", f"{details}: more than {SECONDS} seconds"
        if outcome.code not in (0, 1, 2) or "Traceback" in outcome.stderr:
            return "traceback", f"{details}: {outcome.code}, {' '.join(lines[-1:])[:300]}"
        if outcome.code:
            # A wrong flag takes a second line; `verify` has a line for each file.
            most = outcome.code if verb != "verify" else len(lines)
            folders = [parent for parent in path.parents if parent.is_relative_to(self._work)]
            names = [path.name, *map(str, folders[:-1])]
            # A line of a flag file counts as a flag of the command line, which errors name.
            is_named = verb == "flagfile" or any(name in lines[0] for name in names)
            is_clear = len(lines) == most > 0 and is_named
            return "one line" if is_clear else "unclear", f"{details}: {' / '.join(lines)[:500]}"
        expected_stdout, expected_files = self._expected[verb]
        if path.exists() and path.read_bytes() == damaged:
            files[kind.path] = expected_files[kind.path]  # the verb did not change the file
        differing = [
            name
            for name in sorted(files.keys() | expected_files.keys())
            if files.get(name) != expected_files.get(name) and ".damaged" not in name
        ]
        if stdout == expected_stdout and not differing:
            return "the same result", details
        # Metrics are for people: a damaged line of them never stops a verb, which says so instead.
        if any(path.name in line for line in outcome.stderr.splitlines() if line[:2].isdigit()):
            return "a warning", details
        return "another result", f"{details}: {', '.join(differing) or 'the output'}"

    def _result_of(self, verb: str, path: str | None = None, content: bytes = b""):
        """How a verb ends, what it prints, and all files after it."""
        shutil.rmtree(self._work)
        shutil.copytree(self._pristine, self._work)
        if path:
            (self._work / path).write_bytes(content)
        outcome = self._zygote.run(*self.commands[verb], seconds=SECONDS)
        return outcome, outcome.stdout, self._content_of(self._work)


def _write_corpora(folder: Path, text: str) -> None:
    documents = text.strip().split("\n\n")
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    pages = [f'<doc id="1" title="T">\nT\n\n{document}\n</doc>\n' for document in documents]
    contents = {
        "text": text.encode(),
        "jsonl": lines.encode(),
        "wiki": "".join(pages).encode(),
        "gz": gzip.compress(text.encode(), mtime=0),
        "bz2": bz2.compress(text.encode()),
        "xz": lzma.compress(text.encode()),
        "zst": zstandard.ZstdCompressor().compress(text.encode()),
        "lz4": pa.Codec("lz4").compress(text.encode(), asbytes=True),
    }
    for suffix, content in contents.items():
        (folder / f"corpus.{suffix}").write_bytes(content)
    pq.write_table(pa.table({"text": documents}), folder / "corpus.parquet", row_group_size=4)
    with (folder / "corpus.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(documents)])


def assert_damage_is_named(files: Files, kind: Kind, number: int, report) -> None:
    """Damages a file many times and reports; fails with what must not be."""
    wrong = {"traceback", "hang", "unclear"} | ({"another result"} if kind.is_ours else set())
    counts, problems = Counter(tried=number), []
    for index in range(number):
        outcome, details = files.outcome_of(kind, index)
        counts[outcome] += 1
        if outcome in wrong:
            problems.append(f"{outcome}: {details}")
    report("mutations", [(kind.path, counts)])
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture(scope="module")
def light_files(light, content_of, tmp_path_factory, small_text, generate_flags):
    folder = tmp_path_factory.mktemp("light")
    return Files(light, content_of, folder, small_text, generate_flags, ())


@pytest.fixture(scope="module")
def files(full, content_of, tmp_path_factory, small_text, generate_flags, pretrain_flags):
    folder = tmp_path_factory.mktemp("full")
    return Files(full, content_of, folder, small_text, generate_flags, pretrain_flags)


@pytest.mark.parametrize("kind", LIGHT_KINDS, ids=lambda kind: kind.path)
def test_a_few_kinds_of_damage_are_named(kind, light_files, report):
    assert_damage_is_named(light_files, kind, MUTATIONS_OF_FAST_TEST, report)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.path)
def test_all_damage_is_named(kind, files, report):
    assert_damage_is_named(files, kind, MUTATIONS_PER_FILE, report)
