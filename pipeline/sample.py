"""A sample of the corpus, which is read first, to see what the options will make of the text."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.documents import Document, ReadOptions, read_documents
from pipeline.formats.reading import read_raw_documents
from pipeline.inputs import InputFormat, read_at_least
from pipeline.portions import FileRange, Portion, corpus_of_portion
from pipeline.tokenization import split_at_ideographs

_MOST_CHARACTERS = 1 << 20
_MOST_PORTIONS = 16
_BYTES_OF_ROWS = 1 << 16


@dataclass(frozen=True)
class Sample:
    """The first documents of some portions of the corpus.

    Attributes:
      documents: the documents; long ones are cut off.
      text_bytes: the amount of text that they were read from, as in `FileRange.text_bytes`.
    """

    documents: list[Document]
    text_bytes: int

    @cached_property
    def words(self) -> Counter[str]:
        """How often each word occurs: an ideograph, or what is between spaces and ideographs."""
        return Counter(
            word
            for document in self.documents
            for sentence in document.sentences
            for word in split_at_ideographs(sentence)
        )


def take_sample(
    portions: Sequence[Portion], reading_of: Callable[[str | None], ReadOptions]
) -> Sample:
    """Reads about a million characters, from up to 16 portions. The same text gives the same ones.

    Args:
      portions: the portions of the input.
      reading_of: how the documents of a corpus of a mixture are read; without one, of None.

    Raises:
      UserError: see `read_raw_documents`.
    """
    chosen = portions[:: -(-len(portions) // _MOST_PORTIONS)]
    documents: list[Document] = []
    text_bytes = 0
    for portion in chosen:
        characters = _MOST_CHARACTERS // len(chosen)
        options = reading_of(corpus_of_portion(portion))
        for file_range in portion:
            if characters > 0:
                found = _first_documents(file_range, options, characters)
                documents += found.documents
                text_bytes += found.text_bytes
                characters -= sum(map(_characters, found.documents))
    return Sample(documents, text_bytes)


def _first_documents(file_range: FileRange, options: ReadOptions, characters: int) -> Sample:
    """The first documents of a range, which have at most that many characters."""
    documents: list[Document] = []
    raw_documents = read_raw_documents(file_range, options, Counter())
    for document in read_documents(raw_documents, options, Counter()):
        kept = _cut(document, characters)
        documents.append(kept)
        characters -= _characters(kept)
        if characters <= 0:
            return Sample(documents, _text_bytes_up_to(kept, file_range))
    return Sample(documents, file_range.text_bytes)


def _text_bytes_up_to(document: Document, file_range: FileRange) -> int:
    """The amount of text from the beginning of a range to the end of a document in it."""
    if file_range.file.format in (InputFormat.CSV, InputFormat.TSV):
        # There, `text_before` does not count the other columns.
        return round((document.offset + 1) * _bytes_per_row(file_range))
    start = file_range.start * file_range.file.text_bytes_per_byte
    own_bytes = len("\n".join(document.sentences).encode("utf-8", "surrogatepass"))
    return document.text_before - start + own_bytes


def _bytes_per_row(file_range: FileRange) -> float:
    """The mean length of the first rows of CSV, whose line ends are those outside of quotes."""
    head = np.frombuffer(read_at_least(file_range.blocks(), _BYTES_OF_ROWS), np.uint8)
    is_quoted = np.cumsum(head == ord('"')) % 2 == 1
    num_rows = np.count_nonzero((head == ord("\n")) & ~is_quoted)
    return len(head) / max(1, int(num_rows))


def _cut(document: Document, characters: int) -> Document:
    sentences = []
    for sentence in document.sentences:
        if characters > 0:
            sentences.append(sentence[:characters])
            characters -= len(sentence)
    return Document(document.file, document.offset, document.text_before, sentences)


def _characters(document: Document) -> int:
    return sum(map(len, document.sentences))
