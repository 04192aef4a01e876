"""Vocabularies of other software: Hugging Face's tokenizer.json, and what is no WordPiece."""

import codecs
import re
from dataclasses import dataclass, field, fields
from itertools import zip_longest

from pipeline.errors import UserError
from pipeline.json_files import read_foreign_json
from pipeline.storage import Location
from pipeline.vocabulary import SPECIAL_TOKENS, Vocabulary, tokens_of

TOKENIZER_NAME = "tokenizer.json"
_OTHER_KINDS = {
    re.compile(r"\t-?\d+(\.\d+)?(e-?\d+)?$"): (
        "it has a score on each line, as vocabularies of SentencePiece have"
    ),
    re.compile("^\u2581"): "it has SentencePiece's word marks (\u2581)",
    re.compile(r"\S \d+$"): "it has a count on each line, as dictionaries of fairseq have",
    re.compile(r"\S \S"): "it is a list of merges of byte-pair encoding",
}
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


def read_tokenizer_json(path: Location) -> tuple[dict[int, str], dict[int, AddedToken]]:
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


def in_order(tokens: dict[int, str], path: Location) -> list[str]:
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


def vocabulary_of(path: Location) -> Vocabulary:
    """The vocabulary in a vocab.txt, in a tokenizer.json, or in a directory that holds one of them.

    Raises:
      UserError: it cannot be read, is of another kind, or lacks one of the special tokens.
    """
    if path.is_dir():
        # A tokenizer.json also knows the tokens that were added to a vocab.txt.
        names = [name for name in (TOKENIZER_NAME, "vocab.txt") if (path / name).is_file()]
        if not names:
            raise UserError(
                f"the vocabulary {path} is a directory without vocab.txt and {TOKENIZER_NAME}"
            )
        path = path / names[0]
    try:
        content = _content_of(path)
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}") from error
    vocabulary = Vocabulary(path, needed=(), content=content)
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary.ids]
    if missing:
        what = _what_else_it_is(content, vocabulary.tokens)
        needs = f"BERT needs {' '.join(SPECIAL_TOKENS)}, each on its own line"
        raise UserError(
            f"the vocabulary {path} has no {', '.join(missing)}: "
            f"{f'{what}, not WordPiece' if what else needs}"
        )
    return vocabulary


def _content_of(path: Location) -> bytes:
    """The content of a vocab.txt with the tokens of a file."""
    content = path.read_bytes()
    if content.startswith(_UTF16_MARKS) or b"\0" in content[:100]:
        raise UserError(f"the vocabulary {path} is UTF-16 or no text: save it as UTF-8")
    if content.lstrip().startswith(b"{") and b'"model"' in content:
        tokens = _tokens_of_json(path)
        content = "".join(f"{token}\n" for token in tokens).encode("utf-8")
        for token, written in zip_longest(tokens, tokens_of(content)):
            if token != written:
                raise UserError(
                    f"{path} has the token {token!r}, which no line of a vocab.txt can hold"
                )
    return content.removeprefix(codecs.BOM_UTF8)


def _tokens_of_json(path: Location) -> list[str]:
    pieces, added = read_tokenizer_json(path)
    for number, token in added.items():
        if pieces.get(number, token.content) != token.content:
            raise UserError(
                f"{path} has two tokens with the id {number}: {pieces[number]!r} and "
                f"{token.content!r}"
            )
    return in_order({number: token.content for number, token in added.items()} | pieces, path)


def _what_else_it_is(content: bytes, tokens: list[str]) -> str:
    """Names a vocabulary of another kind, for messages; empty if it looks like none of them."""
    if content.lstrip().startswith((b"{", b'["', b"[[", b"[{")):
        return "it is JSON, but not a tokenizer.json"
    if tokens[0].startswith("#version"):
        return "it is a list of merges of byte-pair encoding"
    for line, what in _OTHER_KINDS.items():
        if 2 * sum(line.search(token) is not None for token in tokens) > len(tokens):
            return what
    return ""
