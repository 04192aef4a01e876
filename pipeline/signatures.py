"""What a file is that is not text, by its first bytes."""

import codecs
import re

_UNPACK = "unpack it and give its files"
_CONVERT = "convert it to Parquet or JSON Lines"
_EXTRACT = "give the text that a converter extracts from it"
_NOT_CORPUS = "leave it out of --input_file"
# Some of these could begin a text, so they count only if the file's beginning is not text.
_BINARY = {
    rb"PK\x03\x04[\s\S]{26}mimetypeapplication/epub": ("an EPUB book", _EXTRACT),
    rb"PK\x03\x04[\s\S]{26}mimetypeapplication/vnd\.oasis": ("an OpenDocument file", _EXTRACT),
    rb"PK\x03\x04[\s\S]{26}\[Content_Types\]\.xml": (
        "a file of Word, Excel or PowerPoint",
        _EXTRACT,
    ),
    rb"PK(?:\x03\x04|\x05\x06|\x07\x08)": ("a zip archive", _UNPACK),
    rb"[\s\S]{257}ustar": ("a tar archive", _UNPACK),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    rb"Rar!\x1a\x07": ("a rar archive", _UNPACK),
    rb"!<arch>\n": ("an ar archive", _UNPACK),
    rb"\x1f[\x9d\xa0]": ("compressed with compress", "compress it with gzip instead"),
    rb"LZIP\x01": ("compressed with lzip", "compress it with xz instead"),
    rb"\x89LZO\0": ("compressed with lzop", "compress it with lz4 instead"),
    rb"\x02\x21\x4c\x18": ("lz4 of the old format", "compress it again with a newer lz4"),
    rb"\xff\x06\0\0sNaPpY": ("compressed with snappy", "compress it with lz4 instead"),
    rb"ARROW1\0\0": ("an Arrow (Feather) file", _CONVERT),
    rb"\xff{4}[\s\S]{2}\0\0\x10\0\0\0": ("an Arrow stream", _CONVERT),
    rb"FEA1": ("a Feather file", _CONVERT),
    rb"ORC[^\t\r -~]": ("an ORC file", _CONVERT),
    rb"Obj\x01": ("an Avro file", _CONVERT),
    rb"SEQ[\x04-\x06]": ("a Hadoop sequence file", _CONVERT),
    rb"PAR1": ("a Parquet file", "give --input_format=parquet"),
    rb"PARE": ("an encrypted Parquet file", "decrypt it"),
    rb"SQLite format 3\0": ("an SQLite database", _CONVERT),
    rb"[\s\S]{8}DUCK": ("a DuckDB database", _CONVERT),
    rb"\x89HDF\r\n\x1a\n": ("an HDF5 file", _CONVERT),
    rb"\x93NUMPY": ("a NumPy array", _CONVERT),
    rb"\x80[\x02-\x05]": ("a Python pickle", _CONVERT),
    rb"%PDF-\d": ("a PDF", _EXTRACT),
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("a file of an old Word, Excel or PowerPoint", _EXTRACT),
    rb"AT&TFORM": ("a DjVu document", _EXTRACT),
    rb"\x89PNG\r\n": ("a PNG image", _NOT_CORPUS),
    rb"\xff\xd8\xff": ("a JPEG image", _NOT_CORPUS),
    rb"GIF8[79]a": ("a GIF image", _NOT_CORPUS),
    rb"(?:II\*\0|MM\0\*)": ("a TIFF image", _NOT_CORPUS),
    rb"RIFF[\s\S]{4}(?:WEBP|WAVE|AVI )": ("an image, sound or film", _NOT_CORPUS),
    rb"\x7fELF|MZ[^\s -~]": ("a program", _NOT_CORPUS),
    rb"GGUF|[\s\S]{4}\0{4}\{\"": ("the weights of a model", _NOT_CORPUS),
    rb"[\s\S]{4}\0{4}[\s\S]{4}\n": ("a TFRecord file", "give the text that it was made from"),
}
# These may be meant as text, so they count only if the user did not say what the files are.
_MARKUP = {
    rb"<mediawiki": ("a dump of MediaWiki", "extract its text with WikiExtractor"),
    rb"<\?xml[^>]*>\s*<mediawiki": ("a dump of MediaWiki", "extract its text with WikiExtractor"),
    rb"<\?xml\s": ("XML", _EXTRACT),
    rb"(?i:<!doctype\s+html|<html[\s>])": ("HTML", _EXTRACT),
    rb"\{\\rtf\d": ("RTF", _EXTRACT),
    rb"%PDF-\d\.\d": ("a PDF", _EXTRACT),
    rb"%!PS": ("PostScript", _EXTRACT),
    rb"WARC/\d\.\d": ("a WARC archive", _EXTRACT),
    rb"-- (?:MySQL|MariaDB|PostgreSQL)(?: database)? dump": ("a dump of a database", _CONVERT),
    rb"version https://git-lfs\.github\.com/spec/": (
        "only the pointer to a file of Git LFS",
        "get the file itself with `git lfs pull`",
    ),
}


def _compiled(signatures: dict[bytes, tuple[str, str]]) -> dict[re.Pattern[bytes], str]:
    return {
        re.compile(signature): f"is {what}: {advice}"
        for signature, (what, advice) in signatures.items()
    }


_BINARY_SIGNATURES, _MARKUP_SIGNATURES = _compiled(_BINARY), _compiled(_MARKUP)
_MARK_AND_SPACE = re.compile(rb"(?:\xef\xbb\xbf)?\s*")


def foreign_content(head: bytes) -> str | None:
    """What a file of another kind is, and what to do with it; None for text.

    Args:
      head: the file's first bytes, decompressed.
    """
    if _is_text(head):
        return None
    return next((what for start, what in _BINARY_SIGNATURES.items() if start.match(head)), None)


def markup(head: bytes) -> str | None:
    """What text is that is written for a program, and what to do with it; None for other text.

    Args:
      head: the file's first bytes, decompressed.
    """
    start = _MARK_AND_SPACE.match(head)
    content = head[start.end() if start else 0 :][:1000]
    return next((what for sign, what in _MARKUP_SIGNATURES.items() if sign.match(content)), None)


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut off
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
