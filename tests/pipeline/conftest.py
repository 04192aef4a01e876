"""Shared fixtures: samples, small vocabularies, documents, and a small data set."""

import bz2
import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.options.pipeline_options import PipelineOptions

import pipeline.stages
from pipeline.corpus import DocumentBatch, TokenizedDocument
from pipeline.documents import Document, ReadOptions, read_documents
from pipeline.formats.reading import read_raw_documents
from pipeline.generate import generate
from pipeline.inputs import InputFormat
from pipeline.manifest import Manifest
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.portions import Portion
from pipeline.records import ALIASES, encode_examples, frame_record
from pipeline.worker_processes import WorkerProcesses, worker_processes

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="session")
def data_samples() -> Path:
    return Path(__file__).resolve().parents[2] / "data_samples"


@pytest.fixture(scope="session")
def write_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a vocabulary file with the special tokens and the given tokens."""

    def write(*tokens: str) -> Path:
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
        path.write_text("\n".join([*SPECIAL_TOKENS, *tokens]) + "\n", "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., DocumentBatch]:
    """Makes a batch from lists of sentence lengths, with ids that count up from `first_id`."""

    def lay_out(
        documents: list[list[int]], first_id: int = 0, word_seed: int | None = None
    ) -> DocumentBatch:
        lengths = [length for document in documents for length in document]
        sentence_ends = np.cumsum(lengths, dtype=np.int64)
        num_tokens = sum(lengths)
        word_starts = np.ones(num_tokens, bool)
        if word_seed is not None:
            word_starts = np.random.default_rng(word_seed).random(num_tokens) < 0.6
            word_starts[sentence_ends - lengths] = True
        return DocumentBatch(
            ids=np.arange(first_id, first_id + num_tokens, dtype=np.uint16),
            word_starts=word_starts,
            sentence_ends=sentence_ends,
            document_ends=np.cumsum([len(document) for document in documents], dtype=np.int64),
        )

    return lay_out


@pytest.fixture(scope="session")
def documents_of() -> Callable[..., list[Document]]:
    """Reads all documents of portions, with the given `ReadOptions`."""

    def read(
        portions: list[Portion], statistics: Counter[str] | None = None, **reading: object
    ) -> list[Document]:
        counts = Counter() if statistics is None else statistics
        options = ReadOptions(**reading)
        return [
            document
            for portion in portions
            for file_range in portion
            for document in read_documents(
                read_raw_documents(file_range, options, counts), options, counts
            )
        ]

    return read


@pytest.fixture(scope="session")
def tokenized_document() -> Callable[..., TokenizedDocument]:
    """Makes a document with sentences of the given lengths.

    All its token ids equal its offset, and every second token begins a word.
    """

    def make(
        file: str, offset: int, lengths: list[int], digest: bytes | None = None
    ) -> TokenizedDocument:
        num_tokens = sum(lengths)
        return TokenizedDocument(
            file=file,
            offset=offset,
            digest=f"{file} {offset}".encode().ljust(16) if digest is None else digest.ljust(16),
            ids=np.full(num_tokens, offset, np.uint16).tobytes(),
            word_starts=(np.arange(num_tokens) % 2 == 0).tobytes(),
            sentence_lengths=np.array(lengths, np.uint32).tobytes(),
        )

    return make


# For the tests of records that other programs wrote.


ADOPTED_WORDS = ("tea", "pot", "##s", ".", "Tea", "té", *(f"w{number}" for number in range(20)))


@pytest.fixture(scope="session")
def adopted_vocabulary(write_vocabulary: Callable[..., Path]) -> Path:
    return write_vocabulary(*ADOPTED_WORDS)


@pytest.fixture(scope="session")
def make_instances() -> Callable[..., dict[str, np.ndarray]]:
    """Makes N instances of the words w0, w1, …, with 16 tokens, 2 masks of 3, half a padding."""

    def make(count: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        first_word = len(SPECIAL_TOKENS) + ADOPTED_WORDS.index("w0")
        ids = rng.integers(first_word, first_word + 20, (count, 16))
        ids[:, 0], ids[:, [5, 11]], ids[:, 12:] = 2, 3, 0
        positions = np.tile([1, 7, 0], (count, 1))
        labels = np.take_along_axis(ids, positions, axis=1) * [1, 1, 0]
        ids[:, 1] = 4
        column = np.tile(np.arange(16), (count, 1))
        return {
            "input_ids": ids,
            "input_mask": (column < 12).astype(np.int64),
            "segment_ids": ((column > 5) & (column < 12)).astype(np.int64),
            "masked_lm_positions": positions,
            "masked_lm_ids": labels,
            "masked_lm_weights": np.tile(np.array([1, 1, 0], np.float32), (count, 1)),
            "next_sentence_labels": column[:, :1] * 0 + (np.arange(count) % 2)[:, np.newaxis],
        }

    return make


@pytest.fixture(scope="session")
def write_records() -> Callable[..., Path]:
    """Writes instances as another program does, under other names or compressed if wanted."""

    def write(path: Path, instances: dict[str, np.ndarray], names: str = "original") -> Path:
        stored = {ALIASES[names].get(name, name): values for name, values in instances.items()}
        content = b"".join(map(frame_record, encode_examples(stored)))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


# For the tests of `generate`.


@pytest.fixture(scope="session")
def corpus(
    tmp_path_factory: pytest.TempPathFactory, write_vocabulary: Callable[..., Path]
) -> GenerateOptions:
    """Options for a corpus of two files with 40 documents of four sentences.

    Each document consists of one word that no other document has.
    """
    folder = tmp_path_factory.mktemp("corpus")
    documents = [f"w{number} w{number} w{number}\n" * 4 + "\n" for number in range(40)]
    (folder / "a.txt").write_text("".join(documents[:15]))
    (folder / "b.txt").write_text("\u200b\n\n" + "".join(documents[15:]))
    return GenerateOptions(
        input_patterns=[f"{folder}/a.txt", f"{folder}/b.txt"],
        input_format=InputFormat.TEXT,
        vocab_file=write_vocabulary(*(f"w{number}" for number in range(40))),
        output_dir=folder / "data",
        instances=InstanceOptions(
            max_seq_length=16, max_predictions_per_seq=3, short_seq_prob=0.0, dupe_factor=2
        ),
        eval_fraction=0.3,
        num_shards=3,
    )


@pytest.fixture(scope="session")
def data_set(corpus: GenerateOptions) -> tuple[Path, Manifest]:
    """The directory and the manifest of a data set made from `corpus`."""
    return corpus.output_dir, generate(corpus, PipelineOptions([]))


@pytest.fixture
def options(corpus: GenerateOptions, tmp_path: Path) -> GenerateOptions:
    """The options of `corpus`, with a separate output directory for the test."""
    return replace(corpus, output_dir=tmp_path / "data")


@pytest.fixture
def two_processes() -> Iterator[WorkerProcesses | None]:
    with worker_processes(2) as processes:
        yield processes


@pytest.fixture(scope="session")
def records_of() -> Callable[[Path], list[Any]]:
    """Reads the records of a shard as `tf.train.Example` with TensorFlow."""
    import tensorflow as tf  # slow to import, and few tests need it

    def read(path: Path) -> list[Any]:
        records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        return [tf.train.Example.FromString(record) for record in records]

    return read


@pytest.fixture(scope="session")
def documents_of_shard(records_of: Callable[[Path], list[Any]]) -> Callable[[Path], Counter[int]]:
    """Counts the records of a shard by the document of A, which the first token of A shows."""

    def count(path: Path) -> Counter[int]:
        documents: Counter[int] = Counter()
        for example in records_of(path):
            features = {
                name: list(feature.int64_list.value)
                for name, feature in example.features.feature.items()
            }
            labels = zip(features["masked_lm_positions"], features["masked_lm_ids"], strict=True)
            first_token = dict(labels).get(1, features["input_ids"][1])
            documents[first_token - len(SPECIAL_TOKENS)] += 1
        return documents

    return count


@pytest.fixture(scope="session")
def write_as() -> Callable[[Path, Iterable[int]], None]:
    """Writes the numbered documents of `corpus` in the format that the name of the file implies."""

    def write(path: Path, numbers: Iterable[int]) -> None:
        texts = [f"w{number} w{number} w{number}\n" * 4 for number in numbers]
        records = "".join(
            json.dumps({"id": str(number), "title": "T", "text": f"T\n\n{text}"}) + "\n"
            for number, text in enumerate(texts)
        )
        if path.name.endswith(".txt"):
            path.write_text("\n".join(texts))
        elif path.name.endswith(".parquet"):
            pq.write_table(pa.table({"text": texts}), path, row_group_size=3)
        elif path.name.endswith(".zst"):
            path.write_bytes(zstandard.ZstdCompressor().compress(records.encode()))
        elif path.name.endswith(".bz2"):
            pages = (f'<doc id="1" url="u" title="T">\nT\n\n{text}\n</doc>\n' for text in texts)
            path.write_bytes(bz2.compress("".join(pages).encode()))
        elif path.name.endswith(".csv"):
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
        else:
            path.write_text(records)

    return write


@pytest.fixture(scope="session")
def fail_at_call() -> Callable[..., list[Any]]:
    """Makes a step of the workers fail at its `number`th call; returns the list of its calls."""

    def patch(number: int, error: Exception, monkeypatch: pytest.MonkeyPatch, name: str) -> list:
        step = getattr(pipeline.stages, name)
        calls = []

        def fail(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == number:
                raise error
            return step(*arguments)

        monkeypatch.setattr(pipeline.stages, name, fail)
        return calls

    return patch


@pytest.fixture(scope="session")
def lay_out() -> Callable[..., tuple[Any, ...]]:
    """A function that lays out rows of words of some lengths; see there."""

    def lay_out(rows, padding):
        """Word starts, boundaries and budgets of rows; and each row's words as lists of columns."""
        longest = max(sum(a) + sum(b) for a, b, _ in rows)
        seq_length = longest + 3 + padding
        is_word_start = np.zeros((len(rows), seq_length), bool)
        is_special = np.ones((len(rows), seq_length), bool)
        words = []
        for row, (a, b, _) in enumerate(rows):
            words.append([])
            column = 1
            for segment in (a, b):
                for length in segment:
                    columns = list(range(column, column + length))
                    words[-1].append(columns)
                    is_word_start[row, column] = True
                    is_special[row, columns] = False
                    column += length
                column += 1
        budget = np.array([budget for _, _, budget in rows])
        return is_word_start, is_word_start | is_special, budget, words

    return lay_out
