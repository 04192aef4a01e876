"""The readers of the input formats: a range of a file to the lines of its documents.

In the order of the flow::

    raw_document   the lines of a document, or the reason why a record has none
    text           lines, with a blank line between documents, or one document a line
    wikiextractor  `<doc …>` and `</doc>` around a document
    json_lines     one JSON object a line
    tables         Parquet, CSV and TSV: one document a row
    reading        the reader for a file's format; records without text
"""
