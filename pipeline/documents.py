"""Bytes of a split to documents."""

import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.inputs import FileRange, InputFormat
from pipeline.sentences import split_sentences

_DOC_LINE = re.compile(rb"<doc .*?(?: title=\"(?P<title>.*)\")?>\s*$")


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
    title = ""
    sentences: list[str] | None = None  # None between documents
    for line in io.BytesIO(data):
        if sentences is None:
            if match := _DOC_LINE.match(line):
                document_offset, sentences = offset, []
                title = html.unescape((match["title"] or b"").decode("utf-8", "ignore"))
        elif line.startswith(b"</doc>"):
            yield document_offset, sentences
            sentences = None
        else:
            paragraph = line.decode("utf-8", "ignore").strip()
            # The first line repeats the title, which is no sentence.
            if sentences or paragraph != title:
                sentences.extend(split_sentences(paragraph))
        offset += len(line)
    if sentences is not None:
        yield document_offset, sentences
