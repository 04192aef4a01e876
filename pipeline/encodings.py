"""Text in other encodings than UTF-8, and the check that a file is text in its encoding."""

import codecs
import re
from collections.abc import Iterable, Iterator

from pipeline.errors import UserError

# Above these shares of a file's first megabyte, it is not the text that it is read as.
_MOST_NULS = 0.01
_MOST_INVALID_LINES = 0.01
_MOST_CONTROL_CHARACTERS = 0.01
_CONTROL_CHARACTERS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f"})
# UTF-32 first, because its mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# How ISO-2022 switches to Chinese, Japanese or Korean; all of its bytes are ASCII.
_ISO_2022 = re.compile(rb"\x1b\$[@AB()]")
_CHARACTERS_BEYOND_CHANCE = 10
_SAMPLE_BYTES = 1 << 16
_MARK_INVALID = "clozemill_mark_invalid"


def canonical_encoding(name: str) -> str:
    """The name by which Python knows an encoding of text.

    Raises:
      UserError: there is no such encoding.
    """
    try:
        codec = codecs.lookup(name)
        b"a\0\0\0".decode(name, "ignore")  # LookupError if it is no encoding of text
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError, ValueError) as error:
        raise UserError(f"--encoding={name} is unknown: give one of Python's, as cp1252") from error
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def to_utf8(blocks: Iterable[bytes], encoding: str | None) -> Iterator[bytes]:
    """Yields text of an encoding as UTF-8. What is invalid becomes a byte that is invalid UTF-8.

    Args:
      blocks: the text in its encoding; the blocks may end anywhere.
      encoding: its name; None: UTF-8, and the blocks pass through unchanged.
    """
    if encoding in (None, "utf-8"):
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(encoding)(_MARK_INVALID)
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", _MARK_INVALID)
    yield decoder.decode(b"", final=True).encode("utf-8", _MARK_INVALID)


def _mark_invalid(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\xff", error.end
    raise error


codecs.register_error(_MARK_INVALID, _mark_invalid)


def problem_of_text(head: bytes, is_cut: bool, encoding: str | None) -> str | None:
    """What is wrong with the beginning of a text file, and what to do; None if nothing is.

    Args:
      head: the first bytes, decompressed.
      is_cut: whether the file goes on after them.
      encoding: the encoding that the user gave; None: UTF-8, of which at most 1 % of the lines may
        be invalid. In an encoding that the user gave, any number of lines may be invalid.
    """
    advice = "--encoding=utf-8 drops what is invalid"
    if encoding in (None, "utf-8"):
        for mark, name in _BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                return f"is {name.upper()}: give --encoding={name}"
        if encoding is None and _ISO_2022.search(head):
            return f"is not UTF-8 but {_likely(head)}; {advice}"
    else:
        if _is_utf8_beyond_doubt(head, is_cut):
            return f"is UTF-8, not {encoding}: convert one of the two, so that all files are alike"
        head = b"".join(to_utf8([head], encoding))
    if head.count(b"\0") > _MOST_NULS * len(head):
        likely = likely_encoding(head) if encoding in (None, "utf-8") else None
        if likely and likely.startswith(("utf-16", "utf-32")):
            return f"is not UTF-8 but probably {likely}: give --encoding={likely}"
        return f"is not text{f' in {encoding}' if encoding else ''}: it has many NUL bytes"
    invalid, share = _invalid_lines(head, is_cut)
    if encoding is not None or share <= _MOST_INVALID_LINES:
        return None
    num_control = len(head) - len(head.translate(None, _CONTROL_CHARACTERS))
    if num_control > _MOST_CONTROL_CHARACTERS * len(head):
        return "is not text: it has many control characters and is not UTF-8"
    sample = head if b"\0" in head else b"\n".join(invalid)
    invalid_share = f"{share:.0%} of its first lines are invalid"
    return f"is not UTF-8 ({invalid_share}), but {_likely(sample)}; {advice}"


def likely_encoding(sample: bytes) -> str | None:
    """The encoding that text is most likely in, by Python's name; None if there is no guess."""
    import chardet  # noqa: PLC0415 - only text that is not UTF-8 needs it

    sample = sample[:_SAMPLE_BYTES]
    name = chardet.detect(sample)["encoding"]
    try:
        found = codecs.lookup(name or "").name
        # The most common one of those that give the same text.
        if sample.decode(found, "ignore") == sample.decode("cp1252", "ignore"):
            return "cp1252"
    except LookupError:
        return None
    return found


def _likely(sample: bytes) -> str:
    likely = likely_encoding(sample)
    if likely in (None, "utf-8", "ascii"):
        return "in another encoding: give it, for example --encoding=cp1252"
    return f"probably {likely}: give --encoding={likely}"


def _invalid_lines(head: bytes, is_cut: bool) -> tuple[list[bytes], float]:
    """The lines that are invalid UTF-8, and their share."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=not is_cut)
        return [], 0.0
    except UnicodeDecodeError:
        lines = head.splitlines()
        if is_cut and len(lines) > 1:
            lines.pop()  # a part of a line
        invalid = [line for line in lines if not _is_utf8(line)]
        return invalid, len(invalid) / len(lines)


def _is_utf8_beyond_doubt(head: bytes, is_cut: bool) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=not is_cut)
    except UnicodeDecodeError:
        return False
    # The letters of a few words in another encoding may be valid UTF-8 by chance.
    return sum(not character.isascii() for character in text) >= _CHARACTERS_BEYOND_CHANCE


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
