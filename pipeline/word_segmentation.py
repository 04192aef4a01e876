"""Finds the words of a text with a segmenter, for whole-word masks.

Without one, spaces, punctuation and WordPiece's `##` tell the words, as in the original: each
Chinese character is a word, and a whole clause of Thai. The words of a segmenter replace those,
and decide only what is masked together, never an id.
"""

import functools
import importlib
import importlib.metadata
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.tokenization import FullTokenizer, drop_control_whitespace

Segmenter = Callable[[str], Iterable[str]]
"""Returns the words of a text, in order; it may omit the white space between words."""

_SHOWN_CHARACTERS = 20
_distributions_of_packages = functools.cache(importlib.metadata.packages_distributions)


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


def describe_segmenter(name: str | None) -> str | None:
    """The segmenter's name and version, because different versions find different words.

    The version is that of the distribution that holds its module. For a module of no distribution,
    it is the SHA-256 of its file, with the distributions that it imports and uses.
    """
    if name is None:
        return None
    if name == "jieba":
        return f"jieba {importlib.metadata.version('jieba')}"
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
    """The distributions that hold a module, with their versions."""
    names = _distributions_of_packages().get(module.partition(".")[0], [])
    return [f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))]


def word_starts(sentences: list[str], tokenizer: FullTokenizer, segment: Segmenter) -> np.ndarray:
    """Finds the pieces with which the segmenter's words begin: bool [pieces of all sentences].

    A piece belongs to the word in which it begins. For example, if the words of "abcd" are "ab" and
    "cd", and its pieces "abc" and "##d", "##d" begins a word, which is "cd" without its "c".

    Raises:
      UserError: the segmenter fails, or its words do not match a sentence.
    """
    begins = [np.zeros(0, bool)]
    for sentence in map(drop_control_whitespace, sentences):
        offsets = tokenizer.piece_offsets(sentence)
        if len(offsets):
            word = np.searchsorted(_offsets_of_words(sentence, segment), offsets, side="right")
            begins.append(np.diff(word, prepend=-1) != 0)
    return np.concatenate(begins)


def _offsets_of_words(text: str, segment: Segmenter) -> list[int]:
    """Returns the offsets in `text` at which its words begin."""
    starts = []
    end = 0
    try:
        words = segment(text)
        words = [words] if isinstance(words, str) else list(words)
    except Exception as error:
        raise UserError(
            f"--word_segmenter fails on {text[:_SHOWN_CHARACTERS]!r}: {error!r}"
        ) from error
    for word in words:
        if not isinstance(word, str):
            raise UserError(
                f"--word_segmenter gives {reprlib.repr(word)} for a word of "
                f"{text[:_SHOWN_CHARACTERS]!r}, not a text"
            )
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
