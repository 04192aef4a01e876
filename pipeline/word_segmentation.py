"""Finds words in text without spaces, such as Chinese, for whole-word masks.

The tokenizer turns each ideograph into a token. A segmenter finds the ideographs that form a word,
which are then masked together.
"""

import importlib
import importlib.metadata
import inspect
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.tokenization import FullTokenizer, drop_control_whitespace, has_ideograph

Segmenter = Callable[[str], Iterable[str]]
"""Returns the words of a text, in order; it may omit the white space between words."""

_SHOWN_CHARACTERS = 20


def load_segmenter(name: str) -> Segmenter:
    """Loads the segmenter `jieba`, or any `module:function`.

    Raises:
      UserError: there is no function of that name, or the package is not installed.
    """
    if name == "jieba":
        try:
            import jieba  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise UserError(
                "--word_segmenter=jieba needs the package jieba: pip install 'clozemill[chinese]'"
            ) from error
        jieba.setLogLevel("WARNING")
        return jieba.cut
    module_name, separator, function_name = name.partition(":")
    if not separator:
        raise UserError(f"--word_segmenter={name} is neither jieba nor of the form module:function")
    try:
        segment = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        advice = "; PYTHONPATH must name its folder, in the environment of all workers"
        is_missing = isinstance(error, ModuleNotFoundError)
        raise UserError(
            f"--word_segmenter={name} cannot be loaded: {error}{advice if is_missing else ''}"
        ) from error
    if not callable(segment):
        raise UserError(f"--word_segmenter={name} is not a function")
    return segment


def describe_segmenter(name: str | None) -> str | None:
    """The segmenter's name and version, because different versions find different words.

    For a function, the SHA-256 of its module's source stands for the version, if it is known.
    """
    if name is None:
        return None
    if name == "jieba":
        return f"jieba {importlib.metadata.version('jieba')}"
    source = inspect.getsourcefile(inspect.unwrap(load_segmenter(name)))
    digest = sha256_of(Path(source)) if source else "unknown"
    return f"{name} of a module with the SHA-256 {digest}"


def pieces_inside_words(
    sentences: list[str], tokenizer: FullTokenizer, segment: Segmenter
) -> list[int]:
    """Finds the pieces that continue the preceding piece's word, numbered across all sentences.

    The segmenter only decides whether an ideograph, or a run of other characters, continues a word.
    Within such a run, spaces and punctuation separate the words.

    Returns:
      The numbers of the pieces, in ascending order.

    Raises:
      UserError: the segmenter fails, or its words do not match a sentence.
    """
    inside = []
    piece = 0
    for sentence in map(drop_control_whitespace, sentences):
        word_starts = _word_starts(sentence, segment) if has_ideograph(sentence) else None
        previous = -1
        for offset, num_pieces in tokenizer.units(sentence):
            if num_pieces and word_starts is not None:
                if bisect_right(word_starts, previous) == bisect_right(word_starts, offset):
                    inside.append(piece)
                previous = offset
            piece += num_pieces
    return inside


def _word_starts(text: str, segment: Segmenter) -> list[int]:
    """Returns the offsets in `text` at which its words begin."""
    starts = []
    end = 0
    try:
        words = list(segment(text))
    except Exception as error:
        raise UserError(
            f"--word_segmenter fails on {text[:_SHOWN_CHARACTERS]!r}: {error!r}"
        ) from error
    for word in words:
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            raise _wrong_words(text, end)
        starts.append(start)
        end = start + len(word)
    if text[end:].strip():
        raise _wrong_words(text, end)
    return starts


def _wrong_words(text: str, end: int) -> UserError:
    return UserError(
        "the words from --word_segmenter do not match the text, starting at "
        f"{text[end : end + _SHOWN_CHARACTERS]!r}"
    )
