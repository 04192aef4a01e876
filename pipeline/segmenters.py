"""The packages that find the words of Chinese, Japanese, Korean and Thai text; each is an extra.

Each function loads a package, which takes up to a second, and returns a function of a text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import is_normalized, normalize

from pipeline.errors import UserError
from pipeline.pre_tokenizers import PreTokenizer

T = TypeVar("T")

PACKAGES: dict[str, tuple[str, ...]] = {
    **{name: name.packages for name in PreTokenizer},
    "jieba": ("jieba",),
    "kiwi": ("kiwipiepy", "kiwipiepy_model"),
    "thai": ("nlpo3", "pythainlp"),
}
"""The packages behind each name: those of the code, and those of the dictionary or model."""

_EXTRAS = {"jieba": "chinese", "mecab_ipadic": "mecab"}  # the others have their own names
_ENDS_OF_SENTENCES = "。．！？!?\n "
# MeCab and Kiwi take quadratic time for a run of characters that are no words of theirs, such as
# data in a text: for 100,000 characters, 12 seconds. So such a run is cut. For MeCab, hiragana and
# ideographs end it, too.
_LONGEST_RUN = 1000
_LONG_RUN_OF_MECAB = re.compile(rf"[^\s\u3041-\u3096\u4e00-\u9fff]{{{_LONGEST_RUN}}}")
_LONG_RUN_OF_KIWI = re.compile(rf"\S{{{_LONGEST_RUN}}}")
# A syllable of Korean that is decomposed (NFD), or any other character.
_SYLLABLE_OR_CHARACTER = re.compile("[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?|.", re.DOTALL)


def load_package(flag: str, name: str, load: Callable[[], T]) -> T:
    """Calls a function that imports the packages behind a name.

    Raises:
      UserError: one of them is not installed.
    """
    try:
        return load()
    except ImportError as error:
        raise UserError(
            f"--{flag}={name} needs {' and '.join(PACKAGES[name])}: "
            f"pip install 'clozemill[{_EXTRAS.get(name, name)}]'"
        ) from error


def describe_packages(flag: str, name: str) -> str:
    """The packages behind a name with their versions, because others find other words.

    Raises:
      UserError: one of them is not installed.
    """

    def describe() -> str:
        return ", ".join(f"{package} {version(package)}" for package in PACKAGES[name])

    return load_package(flag, name, describe)


def load_mecab(dictionary: str = "unidic_lite") -> Callable[[str], str]:
    """MeCab, which gives the words of a text with spaces between them, and drops white space.

    The text has no NUL, at which MeCab ends.

    Args:
      dictionary: the module that holds its dictionary, `unidic_lite` or `ipadic`.
    """
    directory = import_module(dictionary).DICDIR
    settings = f'-d "{directory}" -r "{Path(directory, "mecabrc")}" -O wakati'
    parse = import_module("fugashi").GenericTagger(settings).parse

    return lambda text: " ".join(map(parse, _parts_of_runs(text, _LONG_RUN_OF_MECAB)))


def load_sudachi(mode: str, longest: int) -> Callable[[str], Iterator[Any]]:
    """Sudachi, which gives the morphemes of a text, as one list for each part of it.

    Args:
      mode: its units, from the shortest, "A", to the longest, "C".
      longest: the characters of the longest part. Sudachi fails on more than 49,149 bytes, and on
        text that it normalizes to more than 65,535.
    """
    import_module("sudachidict_core")
    # All fields of its dictionary are loaded: without some, it would not join digits to numbers.
    sudachi = import_module("sudachipy").Dictionary(dict="core").tokenizer(mode)
    return lambda text: map(sudachi.tokenize, _parts(text, longest))


@cache  # it takes seconds and 500 MB
def load_kiwi() -> Callable[[str], list[str]]:
    """Kiwi, which gives the words of a text: its morphemes, joined where they share a syllable.

    For example, 갔다 is 가 (go), 었 (past) and 다 (end); the first two become the word 갔.
    """
    kiwi = import_module("kiwipiepy").Kiwi(num_workers=1)

    def words(text: str) -> Iterator[str]:
        # Kiwi knows only composed syllables.
        units = text if is_normalized("NFC", text) else _SYLLABLE_OR_CHARACTER.findall(text)
        composed = "".join(normalize("NFC", each) if len(each) > 1 else each for each in units)
        starts, end = [0], 1  # where the last morpheme ends, but a word of no character is none
        for morpheme in kiwi.tokenize(composed):
            if morpheme.start >= end:
                starts.append(morpheme.start)
            end = max(end, morpheme.start + morpheme.len)
        return ("".join(units[start:end]) for start, end in pairwise([*starts, len(units)]))

    return lambda text: [
        word for part in _parts_of_runs(text, _LONG_RUN_OF_KIWI) for word in words(part)
    ]


def load_thai() -> Callable[[str], list[str]]:
    """PyThaiNLP's dictionary and its algorithm newmm, which nlpO3 has in Rust; gives words."""
    nlpo3 = import_module("nlpo3")
    # To import PyThaiNLP would make a folder in the user's home.
    if not (found := find_spec("pythainlp")) or not found.submodule_search_locations:
        raise ImportError("pythainlp")
    dictionary = Path(found.submodule_search_locations[0], "corpus", "words_th.txt")
    nlpo3.load_dict(str(dictionary), str(dictionary))
    return lambda text: nlpo3.segment(text, str(dictionary))


def _parts_of_runs(text: str, long_run: re.Pattern[str]) -> list[str]:
    """Cuts a text behind each long run."""
    if len(text) < _LONGEST_RUN:
        return [text]
    ends = [match.end() for match in long_run.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)])]


def _parts(text: str, longest: int) -> Iterable[str]:
    """Cuts a long text, behind the end of a sentence if there is one."""
    while len(text) > longest:
        end = max(text.rfind(mark, 0, longest) for mark in _ENDS_OF_SENTENCES) + 1 or longest
        yield text[:end]
        text = text[end:]
    yield text
