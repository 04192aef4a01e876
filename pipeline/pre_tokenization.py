"""Japanese text to WordPiece by way of its words, as transformers' `BertJapaneseTokenizer` does it.

The text is normalized (NFKC). MeCab or Sudachi finds its words, and WordPiece cuts only within
these. Ideographs are no words of their own, and accents are kept. The models of tohoku-nlp were
trained on such tokens.
"""

import unicodedata
from collections.abc import Callable
from functools import cache

import pyarrow as pa

from pipeline.manifest import PRE_TOKENIZER_OPTION
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.segmenters import describe_packages, load_mecab, load_package, load_sudachi
from pipeline.storage import Location
from pipeline.tokenization import FullTokenizer, WordpieceTokenizer, split_lines

MAX_CHARACTERS_PER_WORD = 100
"""A longer word is `[UNK]`, as in transformers; without a pre-tokenizer, the limit is another."""

_LONGEST_TEXT = 12_000  # of Sudachi: at most 4 bytes a character


@cache
def load_pre_tokenizer(name: PreTokenizer, do_lower_case: bool) -> Callable[[str], str]:
    """Returns a function from a text to its words with white space between them.

    Args:
      name: what finds the words.
      do_lower_case: whether the words are lower-cased after they were found.

    Raises:
      UserError: a package is not installed.
    """
    find_words = load_package("pre_tokenizer", name, _LOADERS[name])

    def pre_tokenize(text: str) -> str:
        # MeCab would end at NUL. JSON can hold half of a surrogate pair, which UTF-8 cannot encode.
        content = text.replace("\0", "").encode("utf-8", "surrogatepass")
        words = find_words(unicodedata.normalize("NFKC", content.decode("utf-8", "replace")))
        return words.lower() if do_lower_case else words

    return pre_tokenize


def describe_pre_tokenizer(name: PreTokenizer | None) -> dict[str, str]:
    """The options that plans and manifests record: the name, and the packages with their versions.

    Without a pre-tokenizer, there are none.
    """
    if name is None:
        return {}
    packages = describe_packages("pre_tokenizer", name)
    return {PRE_TOKENIZER_OPTION: str(name), "pre_tokenizer_packages": packages}


def _load_sudachi() -> Callable[[str], str]:
    tokenize = load_sudachi("A", _LONGEST_TEXT)
    # A list of morphemes as text is these, with spaces between them.
    return lambda text: " ".join(map(str, tokenize(text)))


_LOADERS: dict[PreTokenizer, Callable[[], Callable[[str], str]]] = {
    PreTokenizer.MECAB: lambda: load_mecab("unidic_lite"),
    PreTokenizer.MECAB_IPADIC: lambda: load_mecab("ipadic"),
    PreTokenizer.SUDACHI: _load_sudachi,
}


def make_tokenizer(
    vocab_file: str | Location,
    do_lower_case: bool,
    strip_accents: bool | None,
    pre_tokenizer: PreTokenizer | None,
) -> FullTokenizer:
    """Makes the tokenizer that the options of `generate` describe.

    Raises:
      UserError: the vocabulary is unusable, or a package is not installed.
    """
    if pre_tokenizer:
        return PreTokenizedTokenizer(vocab_file, pre_tokenizer, do_lower_case)
    return FullTokenizer(vocab_file, do_lower_case, strip_accents)


class PreTokenizedTokenizer(FullTokenizer):
    """Turns Japanese text into WordPiece tokens or ids, within the words of a pre-tokenizer.

    Args:
      vocab_file: as that of `FullTokenizer`.
      pre_tokenizer: what finds the words.
      do_lower_case: whether they are lower-cased.

    Raises:
      UserError: the vocabulary is unusable, or a package is not installed.
    """

    def __init__(
        self, vocab_file: str | Location, pre_tokenizer: PreTokenizer, do_lower_case: bool = False
    ):
        super().__init__(vocab_file, do_lower_case, strip_accents=False)
        self._pre_tokenize = load_pre_tokenizer(pre_tokenizer, do_lower_case)
        self.wordpiece_tokenizer = WordpieceTokenizer(
            self.vocabulary.ids, max_input_chars_per_word=MAX_CHARACTERS_PER_WORD
        )

    def tokenize(self, text: str) -> list[str]:
        """Returns the WordPiece tokens of `text`, the simple way; `encode` must agree with it."""
        return self.wordpiece_tokenizer.tokenize(self._pre_tokenize(text))

    def _words_of(self, sentences: list[str]) -> pa.ListArray:
        """The words of each sentence, M lists of strings."""
        lines = [self._pre_tokenize(sentence).replace("\n", " ") for sentence in sentences]
        return split_lines("\n".join(lines).encode(), len(lines))

    def _encode_word(self, word: bytes) -> bytes:
        # There is more white space than that in ASCII.
        return b"".join(
            self._unknown
            if len(token) > MAX_CHARACTERS_PER_WORD
            else self._encode_basic_token(token)
            for token in word.decode().split()
        )
