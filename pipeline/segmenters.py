"""The packages that find the words of Chinese, Japanese, Korean and Thai text; each is an extra.

Each function loads a package, which takes up to a second, and returns a function of a text.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

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
    """MeCab, which gives the words of a text with a space between them, and drops white space.

    Args:
      dictionary: the module that holds its dictionary, `unidic_lite` or `ipadic`.
    """
    directory = import_module(dictionary).DICDIR
    settings = f'-d "{directory}" -r "{Path(directory, "mecabrc")}" -O wakati'
    return import_module("fugashi").GenericTagger(settings).parse


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


def load_kiwi() -> Callable[[str], list[str]]:
    """Kiwi, which gives the words of a text: its morphemes, joined where they share a syllable.

    For example, 갔다 is 가 (go), 었 (past) and 다 (end); the first two become the word 갔.
    """
    kiwi = import_module("kiwipiepy").Kiwi(num_workers=1)

    def words(text: str) -> list[str]:
        starts, end = [0], 1  # where the last morpheme ends, but a word of no character is none
        for morpheme in kiwi.tokenize(text):
            if morpheme.start >= end:
                starts.append(morpheme.start)
            end = max(end, morpheme.start + morpheme.len)
        return [text[start:end] for start, end in pairwise([*starts, len(text)])]

    return words


def load_thai() -> Callable[[str], list[str]]:
    """PyThaiNLP's dictionary and its algorithm newmm, which nlpO3 has in Rust; gives words."""
    nlpo3 = import_module("nlpo3")
    # To import PyThaiNLP would make a folder in the user's home.
    if not (found := find_spec("pythainlp")) or not found.submodule_search_locations:
        raise ImportError("pythainlp")
    dictionary = Path(found.submodule_search_locations[0], "corpus", "words_th.txt")
    nlpo3.load_dict(str(dictionary), str(dictionary))
    return lambda text: nlpo3.segment(text, str(dictionary))


def _parts(text: str, longest: int) -> Iterable[str]:
    """Cuts a long text, behind the end of a sentence if there is one."""
    while len(text) > longest:
        end = max(text.rfind(mark, 0, longest) for mark in _ENDS_OF_SENTENCES) + 1 or longest
        yield text[:end]
        text = text[end:]
    yield text
