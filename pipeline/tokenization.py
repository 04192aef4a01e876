"""BERT's tokenizer: clean, split, lower-case, strip accents, then greedy WordPiece.

It gives the same tokens as the original release (google-research/bert, tokenization.py).
`FullTokenizer.encode_sentences` gives the same ids as `tokenize`, but faster. It splits many
sentences at once, so that Python code looks at each distinct word only once. It remembers these.

The names that other code takes from the original's module are here, too, with the same meaning.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Location
from pipeline.vocabulary import MAX_CHARACTERS_PER_WORD, Vocabulary

MAX_MEMO_ENTRIES = 1 << 18
_LONGEST_MEMO_KEY = 64
_HEAD = 2
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
# Punctuation that is split off before words are looked up, because fewer words then differ.
_ASCII_PUNCTUATION = [character.encode() for character in string.punctuation]
_OTHER_PUNCTUATION = "–—‘’“”…"
# The only letter whose lower case depends on its neighbours.
_SIGMA = "\u03a3"
# `str.split` treats these control characters as white space; the original deletes them.
_CONTROL_WHITESPACE = "\v\f\x1c\x1d\x1e\x1f\x85"
_DROP_CONTROL_WHITESPACE = dict.fromkeys(map(ord, _CONTROL_WHITESPACE))


Word = TypeVar("Word", str, bytes)
Meaning = TypeVar("Meaning")


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

    def tokenize(self, text: str) -> list[str]:
        """Returns the basic tokens of `text`, in order."""
        clean = clean_text(text)
        spaced = _IDEOGRAPH.sub(r" \g<0> ", clean) if has_ideograph(clean) else clean
        tokens: list[str] = []
        for word in spaced.split():
            cased = word.lower() if self.do_lower_case else word
            plain = without_accents(cased) if self.strip_accents else cased
            tokens.extend(_split_at_punctuation(plain))
        return tokens


class _Pieces(Generic[Meaning]):
    """Finds the pieces of a word, greedily, and gives what each of them means.

    Args:
      meanings: what each token of a vocabulary means.
    """

    def __init__(self, meanings: Mapping[str, Meaning]):
        inside = {piece[2:]: each for piece, each in meanings.items() if piece.startswith("##")}
        self._begin = meanings, _longest_by_head(meanings)
        self._inside = inside, _longest_by_head(inside)

    def of_word(self, word: str) -> list[Meaning] | None:
        """The meanings of the word's pieces; None if no pieces can form it."""
        found: list[Meaning] = []
        start, (meanings, longest) = 0, self._begin
        while start < len(word):
            end = min(len(word), start + longest.get(word[start : start + _HEAD], 1))
            while (meaning := meanings.get(word[start:end])) is None:
                end -= 1
                if end <= start:
                    return None
            found.append(meaning)
            start, (meanings, longest) = end, self._inside
        return found


def _longest_by_head(pieces: Iterable[str]) -> dict[str, int]:
    """The length of the longest piece that begins with the same two characters."""
    longest: dict[str, int] = {}
    for piece in sorted(pieces, key=len):
        longest[piece[:_HEAD]] = len(piece)
    return longest


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

    @functools.cached_property
    def _pieces(self) -> _Pieces[str]:
        return _Pieces({piece: piece for piece in self.vocab})

    def tokenize(self, text: str) -> list[str]:
        """Returns the pieces of all words in `text`: basic tokens with white space between them."""
        return [piece for word in text.split() for piece in self.pieces_of_word(word)]

    def pieces_of_word(self, word: str) -> list[str]:
        """Returns the pieces of one word."""
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces = self._pieces.of_word(word)
        return [self.unk_token] if pieces is None else pieces


class FullTokenizer:
    """Turns text into WordPiece tokens or ids.

    Args:
      vocab_file: path of the vocabulary, a file with one token per line. Of the special tokens, it
        needs only [UNK].
      do_lower_case, strip_accents: options of `BasicTokenizer`.
    """

    def __init__(
        self,
        vocab_file: str | Location,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
    ):
        self.vocabulary = Vocabulary(vocab_file, needed=["[UNK]"])
        self.basic_tokenizer = BasicTokenizer(do_lower_case, strip_accents)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocabulary.ids)
        ids = np.arange(len(self.vocabulary), dtype=self.vocabulary.id_dtype)
        as_bytes = ids.view(f"V{ids.itemsize}").tolist()
        # A token that is listed twice gets its last id, as in the original.
        id_of_piece = dict(zip(self.vocabulary.tokens, as_bytes, strict=True))
        self._ids_of_pieces = _Pieces(id_of_piece)
        self._unknown = id_of_piece["[UNK]"]
        self._ids_of_word = Memo(self._encode_word)

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
        return self.encode_sentences([text])[0]

    def encode_sentences(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes sentences, faster than one by one.

        Returns:
          `Vocabulary.id_dtype` [T], the ids of all sentences; int64 [M], how many each has.
        """
        if sum(map(len, sentences)) <= _LONGEST_PART:
            return self._encode_sentences(sentences)
        middle = len(sentences) // 2
        halves = [sentences[:middle], sentences[middle:]]
        encoded = (
            map(self.encode_sentences, halves)
            if middle
            else (self._encode_sentences([part]) for part in _parts(sentences[0]))
        )
        ids, lengths = map(np.concatenate, zip(*encoded, strict=True))
        return ids, lengths if middle else lengths.sum(keepdims=True)

    def _encode_sentences(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        words = self._words_of(sentences)
        all_words = words.flatten().cast(pa.binary()).dictionary_encode()
        distinct = map(self._ids_of_word.__getitem__, all_words.dictionary.to_pylist())
        encoded = pa.array(list(distinct), pa.binary()).take(all_words.indices)
        _, ends, content = encoded.buffers()
        id_dtype = self.vocabulary.id_dtype
        ends_of_words = np.frombuffer(ends, np.int32)[: len(encoded) + 1] // id_dtype.itemsize
        ids = np.frombuffer(content or b"", id_dtype, ends_of_words[-1])
        return ids, np.diff(ends_of_words[words.offsets]).astype(np.int64)

    def _words_of(self, sentences: list[str]) -> pa.ListArray:
        """The words of each sentence, M lists of strings: lower-cased in ASCII, if that is asked.

        Ideographs and most punctuation are words, too.
        """
        text = "\n".join(sentences)
        if text.count("\n") >= len(sentences):
            text = "\n".join(sentence.replace("\n", " ") for sentence in sentences)
        if any(character in text for character in _CONTROL_WHITESPACE):
            text = drop_control_whitespace(text)
        if not text.isascii():
            text = "\n".join(
                [each if each.isascii() else self._spaced(each) for each in text.split("\n")]
            )
        # JSON can hold half of a surrogate pair, which has no UTF-8 encoding.
        content = text.encode("utf-8", "surrogatepass")
        if self.basic_tokenizer.do_lower_case:
            content = content.lower()  # only ASCII
        for character in _ASCII_PUNCTUATION:
            content = content.replace(character, b" " + character + b" ")
        return split_lines(content, len(sentences))

    def _spaced(self, sentence: str) -> str:
        """The sentence with spaces around ideographs and frequent punctuation."""
        if _SIGMA in sentence and self.basic_tokenizer.do_lower_case:
            sentence = clean_text(sentence).lower()  # before it has other neighbours
        for character in _OTHER_PUNCTUATION:
            sentence = sentence.replace(character, f" {character} ")
        return " ".join(split_at_ideographs(sentence)) if has_ideograph(sentence) else sentence

    def _encode_word(self, word: bytes) -> bytes:
        text = word.decode("utf-8", "surrogatepass")
        if word.isalnum():  # in ASCII
            return self._encode_basic_token(text)
        return b"".join(map(self._encode_basic_token, self.basic_tokenizer.tokenize(text)))

    def _encode_basic_token(self, token: str) -> bytes:
        if len(token) > MAX_CHARACTERS_PER_WORD:
            return self._unknown
        ids = self._ids_of_pieces.of_word(token)
        return self._unknown if ids is None else b"".join(ids)


class Memo(dict[Word, bytes], Generic[Word]):
    """Caches the results of `encode` in bounded memory.

    A full memo forgets all, because words that are frequent soon come again.
    """

    def __init__(self, encode: Callable[[Word], bytes]):
        super().__init__()
        self._encode: Callable[[Word], bytes] = encode

    def __missing__(self, key: Word) -> bytes:
        if len(self) >= MAX_MEMO_ENTRIES:
            self.clear()
        value = self._encode(key)
        # Longer keys rarely recur and would take much memory.
        if len(key) <= _LONGEST_MEMO_KEY:
            self[key] = value
        return value


def load_vocab(vocab_file: str | Location) -> dict[str, int]:
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


def split_lines(content: bytes, num_lines: int) -> pa.ListArray:
    """The words of each line of a text in UTF-8, separated by ASCII white space."""
    line_ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")) + 1
    starts = np.concatenate([[0], line_ends, [len(content)]]).astype(np.int32)
    lines = pa.Array.from_buffers(
        pa.string(), num_lines, [None, pa.py_buffer(starts), pa.py_buffer(content)]
    )
    return pc.ascii_split_whitespace(lines)


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
    if text.isprintable() and "\ufffd" not in text:
        return text
    return "".join(
        " " if _is_whitespace(character) else character
        for character in text
        if character not in "\0\ufffd" and not _is_control(character)
    )


def without_accents(text: str) -> str:
    """Decomposes text (NFD) and drops nonspacing marks (Mn), without composing it again."""
    decomposed = unicodedata.normalize("NFD", text)
    if decomposed.isalnum():
        return decomposed
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


@functools.cache
def _is_punctuation(character: str) -> bool:
    # ASCII symbols such as $ and ^ count as punctuation, although Unicode classes them differently.
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum()
    return (ascii_symbol and character != " ") or unicodedata.category(character).startswith("P")
