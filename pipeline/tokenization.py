"""BERT's tokenizer: clean, split, lower-case, strip accents, then greedy WordPiece.

It gives the same tokens as the original release (google-research/bert, tokenization.py).
`FullTokenizer.encode` gives the same ids as `tokenize`, but faster. It uses two bounded memos: one
maps whitespace-separated words to ids, the other maps basic tokens to ids.

The names that other code takes from the original's module are here, too, with the same meaning.
"""

import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.vocabulary import MAX_CHARACTERS_PER_WORD, Vocabulary

MAX_MEMO_ENTRIES = 1 << 17
_LONGEST_MEMO_KEY = 64
_LONGEST_PART = 1 << 20

# The eight ranges of CJK ideographs; they exclude kana and Hangul.
_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf"
    "\U0002f800-\U0002fa1f"
)
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_IDEOGRAPH_OR_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")
_WORD_BOUNDARY = re.compile(rf"[\s{_IDEOGRAPHS}]")
_ASCII_BASIC_TOKEN = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
# `str.split` treats these control characters as white space; the original deletes them.
_CONTROL_WHITESPACE = "\v\f\x1c\x1d\x1e\x1f\x85"
_DROP_CONTROL_WHITESPACE = dict.fromkeys(map(ord, _CONTROL_WHITESPACE))


class BasicTokenizer:
    """Splits text at white space and punctuation; each CJK ideograph is a token.

    Args:
      do_lower_case: whether to lower-case the text, as uncased models do.
      strip_accents: whether to decompose characters (NFD) and drop accents. None does so only when
        lower-casing, like the original. Korean and Japanese need False, because this damages them.
    """

    def __init__(self, do_lower_case: bool = True, strip_accents: bool | None = None):
        self.do_lower_case = do_lower_case
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self._num_characters: dict[str, int] = {}

    def tokenize(self, text: str) -> list[str]:
        """Returns the basic tokens of `text`, in order."""
        spaced = _IDEOGRAPH.sub(r" \g<0> ", clean_text(text))
        tokens: list[str] = []
        for word in spaced.split():
            cased = word.lower() if self.do_lower_case else word
            plain = without_accents(cased) if self.strip_accents else cased
            tokens.extend(_split_at_punctuation(plain))
        return tokens

    def origins(self, text: str) -> list[int]:
        """Returns where each character of the tokens of `text` comes from, as an offset in it.

        A character becomes none, one or several, whatever stands beside it. For example, the
        uncased "Tschüß" (with U+0308) gives 0 1 2 3 4 6.
        """
        for character in set(text) - self._num_characters.keys():
            self._num_characters[character] = len("".join(self.tokenize(character)))
        return [i for i, each in enumerate(text) for _ in range(self._num_characters[each])]


class WordpieceTokenizer:
    """Greedy longest-match-first WordPiece.

    Args:
      vocab: maps each token to its id; pieces inside a word begin with `##`.
      unk_token: replaces a word that no pieces can form or that is too long.
      max_input_chars_per_word: the number of characters of the longest word.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        unk_token: str = "[UNK]",
        max_input_chars_per_word: int = MAX_CHARACTERS_PER_WORD,
    ):
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_input_chars_per_word = max_input_chars_per_word
        self._inside_words = {piece[2:] for piece in vocab if piece.startswith("##")}
        self._longest_piece = max(map(len, vocab), default=0)

    def tokenize(self, text: str) -> list[str]:
        """Returns the pieces of all words in `text`: basic tokens with white space between them."""
        return [piece for word in text.split() for piece in self.pieces_of_word(word)]

    def pieces_of_word(self, word: str) -> list[str]:
        """Returns the pieces of one word."""
        if len(word) > self.max_input_chars_per_word:
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
    """Turns text into WordPiece tokens or ids.

    Args:
      vocab_file: path of the vocabulary, a file with one token per line. Of the special tokens, it
        needs only [UNK].
      do_lower_case, strip_accents: options of `BasicTokenizer`.
    """

    def __init__(
        self,
        vocab_file: str | Path,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
    ):
        self.vocabulary = Vocabulary(vocab_file, needed=["[UNK]"])
        self.basic_tokenizer = BasicTokenizer(do_lower_case, strip_accents)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocabulary.ids)
        ids = np.arange(len(self.vocabulary), dtype=self.vocabulary.id_dtype)
        self._id_of_piece = {
            piece: ids[number].tobytes() for piece, number in self.vocabulary.ids.items()
        }
        self._ids_of_basic_token = _Memo(self._encode_basic_token)
        self._ids_of_word = _Memo(self._encode_word)
        self._offsets_of_word = _Memo(self._find_pieces)

    def tokenize(self, text: str) -> list[str]:
        """Returns the WordPiece tokens of `text`, the simple way; `encode` must agree with it."""
        return [
            piece
            for token in self.basic_tokenizer.tokenize(text)
            for piece in self.wordpiece_tokenizer.tokenize(token)
        ]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Returns the ids of `tokens`; raises KeyError for a token outside the vocabulary."""
        return convert_tokens_to_ids(self.vocabulary.ids, tokens)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the tokens of `ids`; raises IndexError for an id outside the vocabulary."""
        return [self.vocabulary.tokens[number] for number in ids]

    def encode(self, text: str) -> np.ndarray:
        """Returns `convert_tokens_to_ids(tokenize(text))` as an array, but faster."""
        return np.frombuffer(self.encode_to_bytes([text])[0], self.vocabulary.id_dtype)

    def encode_to_bytes(self, sentences: list[str]) -> list[bytes]:
        """Returns the ids of each sentence, as the bytes of a `vocabulary.id_dtype` array."""
        text = "\n".join(sentences)
        if any(character in text for character in _CONTROL_WHITESPACE):
            sentences = list(map(drop_control_whitespace, sentences))
        split = str.split if text.isascii() else split_at_ideographs
        ids_of_word = self._ids_of_word.__getitem__
        if len(text) <= _LONGEST_PART:
            return [b"".join(map(ids_of_word, split(sentence))) for sentence in sentences]
        return [
            b"".join([b"".join(map(ids_of_word, split(part))) for part in _parts(sentence)])
            for sentence in sentences
        ]

    def piece_offsets(self, text: str) -> np.ndarray:
        """Returns where each piece of `text` begins: int64 [pieces], offsets in it, ascending.

        Args:
          text: text that `drop_control_whitespace` returned.
        """
        starts, offsets = [], []
        for word in _IDEOGRAPH_OR_WORD.finditer(text):
            starts.append(word.start())
            offsets.append(self._offsets_of_word[word[0]])
        num_pieces = np.array(list(map(len, offsets)), np.int64) // np.dtype(np.int64).itemsize
        return np.frombuffer(b"".join(offsets), np.int64) + np.repeat(starts, num_pieces)

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

    def _find_pieces(self, word: str) -> bytes:
        """The offset in `word` of each of its pieces, as the bytes of an int64 array."""
        origins = self.basic_tokenizer.origins(word)
        offsets, end = [], 0
        for token in self.basic_tokenizer.tokenize(word):
            start, end = end, end + len(token)
            for piece in self.wordpiece_tokenizer.tokenize(token):
                offsets.append(origins[start])
                start += len(piece.removeprefix("##"))
        return np.array(offsets, np.int64).tobytes()


class _Memo(dict[str, bytes]):
    """Caches the results of `encode` in bounded memory.

    A full memo keeps its entries as the old generation and starts a new one. Words still in use
    move from the old generation to the new one; the others are forgotten.
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
        # Longer keys rarely recur and would take much memory.
        if len(key) <= _LONGEST_MEMO_KEY:
            self[key] = value
        return value


def load_vocab(vocab_file: str | Path) -> dict[str, int]:
    """Returns the id of each token of a vocabulary."""
    return Vocabulary(vocab_file, needed=()).ids


def convert_tokens_to_ids(vocab: Mapping[str, int], tokens: Iterable[str]) -> list[int]:
    """Returns the ids of `tokens`; raises KeyError for a token outside the vocabulary."""
    return [vocab[token] for token in tokens]


def convert_ids_to_tokens(inv_vocab: Mapping[int, str], ids: Iterable[int]) -> list[str]:
    """Returns the tokens of `ids`; raises KeyError for an id outside the vocabulary."""
    return [inv_vocab[number] for number in ids]


def convert_to_unicode(text: str | bytes) -> str:
    """Returns a text as `str`; drops invalid UTF-8."""
    return text.decode("utf-8", "ignore") if isinstance(text, bytes) else text


def printable_text(text: str | bytes) -> str:
    """Returns a text as `str`, which Python 3 prints."""
    return convert_to_unicode(text)


def whitespace_tokenize(text: str) -> list[str]:
    """Returns the parts of a text between white space."""
    return text.split()


def drop_control_whitespace(text: str) -> str:
    """Drops characters that `str.split` treats as white space but the original as control ones."""
    return text.translate(_DROP_CONTROL_WHITESPACE)


def _parts(text: str) -> Iterator[str]:
    """Cuts a long text between words, because all its words at once would take gigabytes."""
    start = 0
    while start < len(text):
        boundary = _WORD_BOUNDARY.search(text, start + _LONGEST_PART // 2)
        end = boundary.start() if boundary else len(text)
        yield text[start:end]
        start = end


def split_at_ideographs(text: str) -> list[str]:
    """Splits at white space, and makes each ideograph a word, because clauses hardly recur."""
    return _IDEOGRAPH_OR_WORD.findall(text) if has_ideograph(text) else text.split()


def has_ideograph(text: str) -> bool:
    """Whether the text contains a CJK ideograph; each of these is a separate token."""
    return not text.isascii() and _IDEOGRAPH.search(text) is not None


def clean_text(text: str) -> str:
    """Drops NUL, U+FFFD and control characters, and turns all white space into spaces."""
    return "".join(
        " " if _is_whitespace(character) else character
        for character in text
        if character not in "\0\ufffd" and not _is_control(character)
    )


def without_accents(text: str) -> str:
    """Decomposes text (NFD) and drops nonspacing marks (Mn), without composing it again."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def _split_at_punctuation(word: str) -> list[str]:
    if word.isalnum():
        return [word]
    spaced = "".join(f" {c} " if _is_punctuation(c) else c for c in word)
    # NFD may have introduced other white space; the original splits there too.
    return spaced.split()


def _is_whitespace(character: str) -> bool:
    return character in " \t\n\r" or unicodedata.category(character) == "Zs"


def _is_control(character: str) -> bool:
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cf")


def _is_punctuation(character: str) -> bool:
    # ASCII symbols such as $ and ^ count as punctuation, although Unicode classes them differently.
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum()
    return (ascii_symbol and character != " ") or unicodedata.category(character).startswith("P")
