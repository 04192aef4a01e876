"""Finds the words of a text with a segmenter, for whole-word masks.

Without one, spaces, punctuation and WordPiece's `##` tell the words, as in the original: each
ideograph is a word, and so is a run of kana, a Korean word with its endings, and a whole clause of
Thai. The words of a segmenter replace those, and decide only what is masked together, never an id.
"""

import functools
import importlib
import importlib.metadata
import inspect
import re
import reprlib
import sys
import unicodedata
from collections.abc import Callable, Iterable
from importlib.metadata import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.piece_offsets import PieceOffsets
from pipeline.segmenters import (
    describe_packages,
    load_kiwi,
    load_mecab,
    load_package,
    load_sudachi,
    load_thai,
)
from pipeline.tokenization import (
    FullTokenizer,
    clean_text,
    drop_control_whitespace,
    has_ideograph,
)

Segmenter = Callable[[str], Iterable[str]]
"""Returns the words of a text, in order; it may omit the white space between words."""

_SHOWN_CHARACTERS = 20
# What Sudachi normalizes: a character may become 33 bytes.
_LONGEST_TEXT = 1900
_SURROGATE = re.compile("[\ud800-\udfff]")
_distributions_of_packages = functools.cache(importlib.metadata.packages_distributions)


def load_segmenter(name: str) -> Segmenter:
    """Loads a segmenter: one of `NAMED_SEGMENTERS`, or any `module:function`.

    Raises:
      UserError: there is no function of that name, or a package is not installed.
    """
    if name in NAMED_SEGMENTERS:
        return load_package("word_segmenter", name, NAMED_SEGMENTERS[name])
    module_name, separator, function_name = name.partition(":")
    if not separator:
        names = ", ".join(NAMED_SEGMENTERS)
        raise UserError(
            f"--word_segmenter={name} is none of {names}, and not of the form module:function"
        )
    try:
        segment = functools.reduce(
            getattr, function_name.split("."), importlib.import_module(module_name)
        )
    except Exception as error:
        advice = "; PYTHONPATH must name its folder, in the environment of all workers"
        is_missing = isinstance(error, ModuleNotFoundError)
        raise UserError(
            f"--word_segmenter={name} cannot be loaded: {error}{advice if is_missing else ''}"
        ) from error
    if not callable(segment):
        raise UserError(f"--word_segmenter={name} is not a function")
    return segment


def _load_jieba() -> Segmenter:
    import jieba  # noqa: PLC0415 - an extra

    jieba.setLogLevel("WARNING")
    return lambda text: _joined(jieba.cut(text))


def _load_mecab() -> Segmenter:
    spaced = load_mecab()
    # MeCab ends at NUL, which is in no word.
    return lambda text: filter(None, spaced(text.replace("\0", " ")).split(" "))


def _load_sudachi() -> Segmenter:
    tokenize = load_sudachi("C", _LONGEST_TEXT)
    return lambda text: (word.surface() for part in tokenize(text) for word in part)


NAMED_SEGMENTERS: dict[str, Callable[[], Segmenter]] = {
    "jieba": _load_jieba,
    "mecab": _load_mecab,
    "sudachi": _load_sudachi,
    "kiwi": load_kiwi,
    "thai": load_thai,
}
"""The functions that load the segmenters of packages, by name."""


def _joined(words: Iterable[str]) -> list[str]:
    """The words of jieba, which cuts words with letters beyond ASCII, such as "Müller".

    Neighbouring letters, digits and marks are joined again, except for ideographs.
    """
    joined: list[str] = []
    for word in words:
        if joined and _is_of_word(joined[-1][-1]) and _is_of_word(word[0]):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _is_of_word(character: str) -> bool:
    is_mark = unicodedata.category(character).startswith("M")
    return (character.isalnum() or is_mark) and not has_ideograph(character)


def describe_segmenter(name: str | None) -> str | None:
    """The segmenter's name and version, because different versions find different words.

    The version is that of the distribution that holds its module. For a module of no distribution,
    it is the SHA-256 of its file, with the distributions that it imports and uses.
    """
    if name is None:
        return None
    if name in NAMED_SEGMENTERS:
        return describe_packages("word_segmenter", name)
    segment: Any = load_segmenter(name)
    while isinstance(segment, functools.partial):
        segment = segment.func
    module = sys.modules[name.partition(":")[0]]
    if distributions := _distributions_of(module.__name__):
        return f"{name} of {', '.join(distributions)}"
    path = getattr(module, "__file__", None)
    digest = sha256_of(Path(path)) if path else "unknown"
    used = {each.__name__ for each in vars(module).values() if isinstance(each, ModuleType)}
    used.add(getattr(inspect.unwrap(segment), "__module__", None) or type(segment).__module__)
    versions = sorted({each for used_module in used for each in _distributions_of(used_module)})
    return ", ".join([f"{name} of a module with the SHA-256 {digest}", *versions])


def _distributions_of(module: str) -> list[str]:
    """The distributions that hold a module, with their versions; none for a file of the user's."""
    names = _distributions_of_packages().get(module.partition(".")[0], [])
    path = getattr(sys.modules.get(module), "__file__", None)
    return [
        f"{name} {importlib.metadata.version(name)}"
        for name in sorted(set(names))
        if path and any(Path(each.locate()) == Path(path) for each in files(name) or [])
    ]


class WordFinder:
    """Finds the pieces with which a segmenter's words begin.

    A piece belongs to the word in which it begins. For example, if the words of "abcd" are "ab" and
    "cd", and its pieces "abc" and "##d", "##d" begins a word, which is "cd" without its "c".

    Args:
      tokenizer: cuts the sentences into pieces.
      segment: cuts them into words.
    """

    def __init__(self, tokenizer: FullTokenizer, segment: Segmenter):
        self._piece_offsets = PieceOffsets(tokenizer)
        self._segment = segment

    def __call__(self, sentences: list[str], ids: np.ndarray) -> np.ndarray:
        """Returns which pieces of all sentences begin a word: bool [pieces].

        Args:
          sentences: the sentences.
          ids: the ids of their pieces, of one sentence after another.

        Raises:
          UserError: the segmenter fails, or its words do not match a sentence.
        """
        texts = list(map(drop_control_whitespace, sentences))
        offsets = self._piece_offsets("\n".join(texts), ids)
        ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
        num_pieces = np.diff(np.searchsorted(offsets, ends), prepend=0)
        lengths: list[int] = []
        for text, has_pieces in zip(texts, (num_pieces > 0).tolist(), strict=True):
            lengths += map(len, _all_words(text, self._segment)) if has_pieces else [len(text)]
            lengths.append(1)  # the line end
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        word = np.searchsorted(starts, offsets, side="right")
        return np.diff(word, prepend=-1) != 0


def _all_words(text: str, segment: Segmenter) -> list[str]:
    """Returns the words of a text, and all that is between them: joined, they are the text."""
    text = _SURROGATE.sub("\ufffd", text)  # UTF-8, which compiled segmenters need, lacks them
    try:
        found = segment(text)
        words = [found] if isinstance(found, str) else list(found)
    except Exception as error:
        raise UserError(
            f"--word_segmenter fails on {text[:_SHOWN_CHARACTERS]!r}: {error!r}"
        ) from error
    if isinstance(found, str) or not all(isinstance(word, str) for word in words):
        raise UserError(f"--word_segmenter gives {reprlib.repr(found)}, not a list of words")
    if "".join(words) == text:
        return words
    all_words: list[str] = []
    end = 0
    for word in words:
        start = text.find(word, end)
        if start < 0 or clean_text(text[end:start]).strip():
            raise _wrong_words(text, end)
        all_words += [text[end:start], word]
        end = start + len(word)
    if clean_text(text[end:]).strip():
        raise _wrong_words(text, end)
    return [*all_words, text[end:]]


def _wrong_words(text: str, end: int) -> UserError:
    return UserError(
        "the words from --word_segmenter do not match the text, starting at "
        f"{text[end : end + _SHOWN_CHARACTERS]!r}"
    )
