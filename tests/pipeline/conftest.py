"""Shared fixtures: the samples, small vocabularies, and documents as text and as arrays."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus import DocumentBatch, TokenizedDocument
from pipeline.documents import Document, ReadOptions, read_documents
from pipeline.portions import Portion

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
        return [
            document
            for portion in portions
            for file_range in portion
            for document in read_documents(file_range, ReadOptions(**reading), counts)
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
