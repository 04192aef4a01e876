"""Bytes of a split to documents."""

import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.inputs import FileRange, InputFormat
from pipeline.sentences import split_sentences

_DOC_LINE = re.compile(rb"(?:\xef\xbb\xbf)?<doc .*?(?: title=\"(?P<title>.*)\")?>\s*$")


@dataclass(frozen=True)
class Document:
    """A text whose sentences follow one another.

    Attributes:
      file: the name of its file (`InputFile.name`).
      offset: the byte at which it begins in that file, decompressed. File and offset are the
        document's id: they depend neither on the order of arrival nor on where splits are cut.
      sentences: its sentences, in order; none for a document without text.
    """

    file: str
    offset: int
    sentences: list[str]


def read_documents(file_range: FileRange, input_format: InputFormat) -> Iterator[Document]:
    """The documents of a range of a file, in order. Invalid UTF-8 is dropped, as in the original."""
    read = {InputFormat.TEXT: _read_text, InputFormat.WIKIEXTRACTOR: _read_wikiextractor}[
        input_format
    ]
    for offset, sentences in read(file_range.read()):
        yield Document(file_range.file.name, file_range.start + offset, sentences)


def _read_text(data: bytes) -> Iterator[tuple[int, list[str]]]:
    offset = document_offset = 0
    sentences: list[str] = []
    for line in io.BytesIO(data):
        sentence = line.decode("utf-8", "ignore").strip()
        if sentence:
            if not sentences:
                document_offset = offset
            sentences.append(sentence)
        elif sentences:
            yield document_offset, sentences
            sentences = []
        offset += len(line)
    if sentences:
        yield document_offset, sentences


def _read_wikiextractor(data: bytes) -> Iterator[tuple[int, list[str]]]:
    offset = document_offset = 0
    sentences: list[str] | None = None  # None between documents
    title: str | None = None  # None behind the line that repeats it
    for line in io.BytesIO(data):
        doc_line = _DOC_LINE.match(line)
        if sentences is not None and (doc_line or line.startswith(b"</doc>")):
            yield document_offset, sentences
            sentences = None
        if doc_line:
            document_offset, sentences = offset, []
            title = html.unescape((doc_line["title"] or b"").decode("utf-8", "ignore"))
        elif sentences is not None:
            paragraph = line.decode("utf-8", "ignore").strip()
            if paragraph and paragraph != title:
                sentences.extend(split_sentences(paragraph))
            if paragraph:
                title = None
        offset += len(line)
    if sentences is not None:
        yield document_offset, sentences
