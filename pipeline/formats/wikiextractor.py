"""The output of WikiExtractor (github.com/attardi/wikiextractor) to the lines of its documents.

WikiExtractor 3 escapes `<`, `>` and `&` in texts, and leaves titles as they are in the dump's XML,
in both of its formats. For example, the article "AT&T" becomes::

    <doc id="1" url="…" title="AT&amp;T">
    AT&amp;T

    AT&amp;T Inc. is a company.
    </doc>
"""

import codecs
import html
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from pipeline.formats.raw_document import RawDocument, text_and_count
from pipeline.portions import DOC_LINE, FileRange, check_length_of_document


def read_wikiextractor(file_range: FileRange, statistics: Counter[str]) -> Iterator[RawDocument]:
    """Yields the lines between `<doc …>` and `</doc>`.

    It adds to `statistics`: lines_read, lines_outside_documents, lines_with_invalid_utf8.
    """
    offset = document_offset = file_range.start
    title = ""
    lines: list[str] | None = None  # None between documents
    # A last document may lack its </doc>.
    for encoded in chain(file_range.lines(), [b"</doc>"]):
        doc_line = DOC_LINE.match(encoded.removeprefix(codecs.BOM_UTF8))
        is_end = encoded.startswith(b"</doc>")
        if lines is not None and (doc_line or is_end):
            lines = list(map(unescape, without_title(lines, title)))
            yield RawDocument(file_range.file, document_offset, document_offset, lines)
            lines = None
        if doc_line:
            document_offset, lines = offset, []
            title = (doc_line["title"] or b"").decode("utf-8", "ignore")
        elif not is_end and (line := text_and_count(encoded, statistics)):
            if lines is None:
                statistics["lines_outside_documents"] += 1
            else:
                lines.append(line)
                check_length_of_document(offset - document_offset, file_range.file)
        offset += len(encoded)


def without_title(lines: list[str], title: str) -> list[str]:
    """The lines, without a first line that only repeats the title, escaped or not."""
    is_repeated = lines and html.unescape(lines[0]) == html.unescape(title).strip()
    return lines[1:] if is_repeated else lines


def unescape(text: str) -> str:
    """Undoes what WikiExtractor does last: `&amp;lt;` was `&lt;` in the article."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
