"""BERT's tokenizer: clean, split, lower-case, strip accents, then greedy WordPiece.

The rules are those of the original release (google-research/bert, tokenization.py), token for
token. `FullTokenizer.encode` gives the same ids as `tokenize` through two bounded memos, from
whitespace-separated words and from basic tokens to ids.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_CHARACTERS_PER_WORD = 200
MAX_MEMO_ENTRIES = 1 << 17
_LONGEST_MEMO_KEY = 64
_LONGEST_PART = 1 << 20

# The eight ranges of CJK ideographs; kana and Hangul are not among them.
_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf"
    "\U0002f800-\U0002fa1f"
)
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_IDEOGRAPH_OR_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")
_WORD_BOUNDARY = re.compile(rf"[\s{_IDEOGRAPHS}]")
_ASCII_BASIC_TOKEN = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
# `str.split` takes these control characters for white space; the original deletes them.
_CONTROL_WHITESPACE = "\v\f\x1c\x1d\x1e\x1f\x85"
_DROP_CONTROL_WHITESPACE = dict.fromkeys(map(ord, _CONTROL_WHITESPACE))


class Vocabulary:
    """The WordPiece vocabulary: one token a line, the id is the line's number.

    Attributes:
      tokens: token of each id.
      ids: id of each token.
      sha256: of the file, in hexadecimal.
      id_dtype: the smallest unsigned type that holds every id.
      begins_word: bool [V], False for the `##` pieces, which join the piece before them.

    Raises:
      UserError: the file is missing, is not UTF-8 or lacks one of `SPECIAL_TOKENS`.
    """

    def __init__(self, vocab_file: str | Path):
        try:
            content = Path(vocab_file).read_bytes()
            lines = content.decode("utf-8").removesuffix("\n").split("\n")
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {vocab_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"the vocabulary {vocab_file} is not UTF-8 text: byte {error.start} is invalid"
            ) from error
        self.tokens = [line.strip() for line in lines]
        # A token that stands twice keeps its last line's number, as in the original.
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.id_dtype = np.dtype(np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32)
        self.begins_word = np.array([not token.startswith("##") for token in self.tokens])
        missing = [token for token in SPECIAL_TOKENS if token not in self.ids]
        if missing:
            raise UserError(
                f"the vocabulary {vocab_file} has no {', '.join(missing)}: "
                f"BERT needs {' '.join(SPECIAL_TOKENS)}, each on a line of its own"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def repeated_tokens(self) -> list[str]:
        """The tokens that stand on more than one line; of their ids only the last is ever used."""
        return [token for number, token in enumerate(self.tokens) if self.ids[token] != number]

    def ordinary_ids(self) -> np.ndarray:
        """The ids of all tokens but the special and the `[unused…]` ones, in rising order."""
        return np.array(
            [
                number
                for number, token in enumerate(self.tokens)
                if token not in SPECIAL_TOKENS and not token.startswith("[unused") and token
            ]
        )


class BasicTokenizer:
    """Splits text at white space and punctuation, with each CJK ideograph on its own.

    Args:
      do_lower_case: also lower-case the text, as uncased models do.
      strip_accents: whether to decompose characters (NFD) and drop accents; None, the original's way,
        does so when lower-casing. It destroys Korean and Japanese, which need False.
    """

    def __init__(self, do_lower_case: bool = True, strip_accents: bool | None = None):
        self.do_lower_case = do_lower_case
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents

    def tokenize(self, text: str) -> list[str]:
        """The basic tokens of `text`, in order."""
        spaced = _IDEOGRAPH.sub(r" \g<0> ", clean_text(text))
        tokens: list[str] = []
        for word in spaced.split():
            cased = word.lower() if self.do_lower_case else word
            plain = without_accents(cased) if self.strip_accents else cased
            tokens.extend(_split_at_punctuation(plain))
        return tokens


class WordpieceTokenizer:
    """Greedy longest-match-first WordPiece.

    Args:
      vocab: token to id; pieces inside a word begin with `##`.
      unk_token: stands for a word that cannot be made of pieces or is longer than 200 characters.
    """

    def __init__(self, vocab: Mapping[str, int], unk_token: str = "[UNK]"):
        self.vocab = vocab
        self.unk_token = unk_token
        self._inside_words = {piece[2:] for piece in vocab if piece.startswith("##")}
        self._longest_piece = max(map(len, vocab), default=0)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of every whitespace-separated word of `text`, which is already basic-tokenized."""
        return [piece for word in text.split() for piece in self.pieces_of_word(word)]

    def pieces_of_word(self, word: str) -> list[str]:
        """The pieces of one word."""
        if len(word) > MAX_CHARACTERS_PER_WORD:
            return [self.unk_token]
        pieces: list[str] = []
        start, prefix = 0, ""
        known: Container[str] = self.vocab
        while start < len(word):
            end = min(len(word), start + self._longest_piece)
            while word[start:end] not in known:
                end -= 1
                if end <= start:
                    return [self.unk_token]
            pieces.append(prefix + word[start:end])
            start, prefix, known = end, "##", self._inside_words
        return pieces


class FullTokenizer:
    """Text to WordPiece tokens or ids.

    Args:
      vocab_file: the vocabulary, one token a line.
      do_lower_case, strip_accents: as of `BasicTokenizer`.
    """

    def __init__(
        self,
        vocab_file: str | Path,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
    ):
        self.vocabulary = Vocabulary(vocab_file)
        self.basic_tokenizer = BasicTokenizer(do_lower_case, strip_accents)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocabulary.ids)
        ids = np.arange(len(self.vocabulary), dtype=self.vocabulary.id_dtype)
        self._id_of_piece = {
            piece: ids[number].tobytes() for piece, number in self.vocabulary.ids.items()
        }
        self._ids_of_basic_token = _Memo(self._encode_basic_token)
        self._ids_of_word = _Memo(self._encode_word)

    def tokenize(self, text: str) -> list[str]:
        """The WordPiece tokens of `text`, the plain way: what `encode` must agree with."""
        return [
            piece
            for token in self.basic_tokenizer.tokenize(text)
            for piece in self.wordpiece_tokenizer.tokenize(token)
        ]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids of `tokens`; a token outside the vocabulary is a KeyError."""
        return [self.vocabulary.ids[token] for token in tokens]

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`: `convert_tokens_to_ids(tokenize(text))` as an array, only fast."""
        return np.frombuffer(self.encode_to_bytes([text])[0], self.vocabulary.id_dtype)

    def encode_to_bytes(self, sentences: list[str]) -> list[bytes]:
        """The ids of each sentence as the bytes of an array of `vocabulary.id_dtype`."""
        text = "\n".join(sentences)
        if any(character in text for character in _CONTROL_WHITESPACE):
            sentences = list(map(drop_control_whitespace, sentences))
        split = str.split if text.isascii() else _split_at_ideographs
        ids_of_word = self._ids_of_word.__getitem__
        if len(text) <= _LONGEST_PART:
            return [b"".join(map(ids_of_word, split(sentence))) for sentence in sentences]
        return [
            b"".join([b"".join(map(ids_of_word, split(part))) for part in _parts(sentence)])
            for sentence in sentences
        ]

    def units(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each ideograph, and each run between ideographs and spaces, begins; and its pieces.

        Args:
          text: after `drop_control_whitespace`.

        Yields:
          Pairs of an offset in `text` and a number of pieces, in order.
        """
        item_bytes = self.vocabulary.id_dtype.itemsize
        for unit in _IDEOGRAPH_OR_WORD.finditer(text):
            yield unit.start(), len(self._ids_of_word[unit[0]]) // item_bytes

    def _encode_word(self, word: str) -> bytes:
        if not (word.isascii() and word.isprintable()):
            tokens = self.basic_tokenizer.tokenize(word)
        else:
            if self.basic_tokenizer.do_lower_case:
                word = word.lower()
            if word.isalnum():
                return self._ids_of_basic_token[word]
            tokens = _ASCII_BASIC_TOKEN.findall(word)
        return b"".join(map(self._ids_of_basic_token.__getitem__, tokens))

    def _encode_basic_token(self, token: str) -> bytes:
        return b"".join(
            map(self._id_of_piece.__getitem__, self.wordpiece_tokenizer.tokenize(token))
        )


class _Memo(dict[str, bytes]):
    """Remembers what `encode` gave for a key, in bounded memory.

    When it is full, it keeps what it holds as the old generation and begins a young one: words in
    use come back from the old one, the others are forgotten.
    """

    def __init__(self, encode: Callable[[str], bytes]):
        super().__init__()
        self._encode = encode
        self._old: dict[str, bytes] = {}

    def __missing__(self, key: str) -> bytes:
        if len(self) >= MAX_MEMO_ENTRIES:
            self._old = dict(self)
            self.clear()
        value = self._old.get(key)
        if value is None:
            value = self._encode(key)
        # Longer ones hardly come again, and would take much memory.
        if len(key) <= _LONGEST_MEMO_KEY:
            self[key] = value
        return value


def drop_control_whitespace(text: str) -> str:
    """Drops what `str.split` takes for white space but the original for control characters."""
    return text.translate(_DROP_CONTROL_WHITESPACE)


def _parts(text: str) -> Iterator[str]:
    """A long text in parts that end between words: all its words at once would take gigabytes."""
    start = 0
    while start < len(text):
        boundary = _WORD_BOUNDARY.search(text, start + _LONGEST_PART // 2)
        end = boundary.start() if boundary else len(text)
        yield text[start:end]
        start = end


def _split_at_ideographs(text: str) -> list[str]:
    # Ideographs apart, or the memo would fill with clauses that never come again.
    return _IDEOGRAPH_OR_WORD.findall(text) if has_ideograph(text) else text.split()


def has_ideograph(text: str) -> bool:
    """Whether one of the characters is a CJK ideograph, which is a token of its own."""
    return not text.isascii() and _IDEOGRAPH.search(text) is not None


def clean_text(text: str) -> str:
    """Drops NUL, U+FFFD and control characters; every kind of white space becomes a space."""
    return "".join(
        " " if _is_space(character) else character
        for character in text
        if character not in "\0\ufffd" and not _is_control(character)
    )


def without_accents(text: str) -> str:
    """Canonical decomposition (NFD) without nonspacing marks (Mn); nothing is composed again."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def _split_at_punctuation(word: str) -> list[str]:
    if word.isalnum():
        return [word]
    spaced = "".join(f" {c} " if _is_punctuation(c) else c for c in word)
    # Only spaces were put in; NFD may have left other white space, which splits in the original too.
    return spaced.split()


def _is_space(character: str) -> bool:
    return character in " \t\n\r" or unicodedata.category(character) == "Zs"


def _is_control(character: str) -> bool:
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cf")


def _is_punctuation(character: str) -> bool:
    # ASCII symbols such as $ and ^ count as punctuation though Unicode files them elsewhere.
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum()
    return (ascii_symbol and character != " ") or unicodedata.category(character).startswith("P")
