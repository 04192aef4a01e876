"""The WordPiece vocabulary, `vocab.txt`: part of the contract with `modeling`."""

import codecs
import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.json_files import read_foreign_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_CHARACTERS_PER_WORD = 200
"""A longer word is `[UNK]`, as in the original."""
TOKENIZER_NAME = "tokenizer.json"
_SCORE = re.compile(r"\t-?\d+(\.\d+)?(e-?\d+)?$")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class AddedToken:
    """A token that Hugging Face's tokenizers find in a text before they split it into words.

    Attributes:
      content: the token.
      special: whether it is left out when ids become text again.
      single_word: whether it is only found where no letter is next to it.
      lstrip, rstrip: whether it includes the white space before or after it.
      normalized: whether it is searched in the normalized text.
    """

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


@dataclass(frozen=True, kw_only=True)
class _NumberedToken(AddedToken):
    id: int


@dataclass(frozen=True)
class _Model:
    type: str = "WordPiece"
    continuing_subword_prefix: str = "##"


@dataclass(frozen=True)
class _WordPiece:
    vocab: dict[str, int]


@dataclass(frozen=True)
class _AnyTokenizer:
    """What is read of a tokenizer.json of any type."""

    model: _Model


@dataclass(frozen=True)
class _WordPieceTokenizer:
    """What is read of a tokenizer.json with the tokens of a BERT."""

    model: _WordPiece
    added_tokens: list[_NumberedToken] = field(default_factory=list)


def tokens_of(content: bytes) -> list[str]:
    """The tokens of a vocab.txt, in the order of their ids: its lines, without surrounding spaces.

    A byte order mark is skipped.

    Raises:
      UnicodeDecodeError: the content is not UTF-8.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def read_tokenizer_json(path: Path) -> tuple[dict[int, str], dict[int, AddedToken]]:
    """The word pieces and the added tokens, by id, of a tokenizer.json of Hugging Face.

    Raises:
      UserError: its model is not WordPiece as BERT's, or it is damaged.
      OSError: it cannot be read.
    """
    model = read_foreign_json(path, _AnyTokenizer).model
    if model.type != "WordPiece":
        raise UserError(f"{path} is of the type {model.type!r}, not WordPiece")
    if model.continuing_subword_prefix != "##":
        raise UserError(
            f"{path} marks pieces inside a word with {model.continuing_subword_prefix!r}, not "
            "with '##' as BERT does"
        )
    tokenizer = read_foreign_json(path, _WordPieceTokenizer)
    names = [each.name for each in fields(AddedToken)]
    added = {
        token.id: AddedToken(**{name: getattr(token, name) for name in names})
        for token in tokenizer.added_tokens
    }
    return {number: token for token, number in tokenizer.model.vocab.items()}, added


def in_order(tokens: dict[int, str], path: Path) -> list[str]:
    """The tokens in the order of their ids.

    Raises:
      UserError: an id between others has no token.
    """
    if sorted(tokens) != list(range(len(tokens))):
        raise UserError(
            f"{path} has no tokens for some ids between others: copy vocab.txt beside it, or give "
            "that"
        )
    return [tokens[i] for i in range(len(tokens))]


class Vocabulary:
    """The WordPiece vocabulary: a file with one token per line; the line number is the id.

    Args:
      vocab_file: the file; or Hugging Face's tokenizer.json, or a directory that holds it or a
        vocab.txt.
      needed: the tokens that it must hold.

    Attributes:
      tokens: the token of each id.
      ids: the id of each token.
      content: the bytes of its vocab.txt.
      sha256: SHA-256 of these, in hexadecimal.
      id_dtype: the smallest unsigned dtype that can hold every id.
      begins_word: bool [V]; False for `##` pieces, which continue the piece before them.

    Raises:
      UserError: the file cannot be read, is not UTF-8, or lacks one of `needed`.
    """

    def __init__(self, vocab_file: str | Path, needed: Collection[str] = SPECIAL_TOKENS):
        path = _file_of(Path(vocab_file))
        try:
            self.content = _content_of(path)
            self.tokens = tokens_of(self.content)
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"the vocabulary {path} is not UTF-8 text: byte {error.start} is invalid"
            ) from error
        # A token listed twice gets the number of its last line, as in the original.
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.id_dtype = np.dtype(np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32)
        self.begins_word = np.array([not token.startswith("##") for token in self.tokens])
        missing = [token for token in needed if token not in self.ids]
        if missing:
            raise UserError(
                f"the vocabulary {path} has no {', '.join(missing)}: "
                f"{_what_else_it_is(self.content, self.tokens)}"
                f"BERT needs {' '.join(needed)}, each on its own line"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def repeated_tokens(self) -> list[str]:
        """Returns the tokens on more than one line; only the last of a token's ids is ever used."""
        return [token for number, token in enumerate(self.tokens) if self.ids[token] != number]

    def ordinary_ids(self) -> np.ndarray:
        """Returns the ids of all tokens except special and `[unused…]` ones, in ascending order."""
        special = {*SPECIAL_TOKENS, ""}
        return np.flatnonzero(
            [token not in special and not token.startswith("[unused") for token in self.tokens]
        )


def _file_of(path: Path) -> Path:
    """The vocabulary in a directory, or the path itself."""
    if not path.is_dir():
        return path
    # A tokenizer.json also knows the tokens that were added to a vocab.txt.
    for name in (TOKENIZER_NAME, "vocab.txt"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"the vocabulary {path} is a directory without vocab.txt and {TOKENIZER_NAME}")


def _content_of(path: Path) -> bytes:
    """The content of a vocab.txt with the tokens of a file."""
    content = path.read_bytes()
    if content.startswith(_UTF16_MARKS):
        raise UserError(f"the vocabulary {path} is UTF-16: save it as UTF-8")
    if content.lstrip().startswith(b"{") and path.suffix == ".json":
        pieces, added = read_tokenizer_json(path)
        tokens = {number: token.content for number, token in added.items()} | pieces
        return "".join(f"{token}\n" for token in in_order(tokens, path)).encode("utf-8")
    return content.removeprefix(codecs.BOM_UTF8)


def _what_else_it_is(content: bytes, tokens: list[str]) -> str:
    """Names a vocabulary of another kind that has no special tokens, for messages."""
    num_scores = sum(_SCORE.search(token) is not None for token in tokens)
    if num_scores > len(tokens) // 2:
        return "it has a score on each line, as vocabularies of SentencePiece have; "
    if any(token.startswith("\u2581") for token in tokens):
        return "it has SentencePiece's word marks (\u2581), not WordPiece's ##; "
    if tokens[0].startswith("#version"):
        return "it is a list of merges of byte-pair encoding; "
    return "it is JSON; " if content.lstrip().startswith((b"{", b"[")) else ""
