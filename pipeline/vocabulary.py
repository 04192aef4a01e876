"""The WordPiece vocabulary, `vocab.txt`: part of the contract with `modeling`."""

import codecs
import hashlib
from collections.abc import Collection
from functools import cached_property

import numpy as np

from pipeline.errors import UserError
from pipeline.storage import Location, location

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_CHARACTERS_PER_WORD = 200
"""A longer word is `[UNK]`, as in the original."""


def tokens_of(content: bytes) -> list[str]:
    """The tokens of a vocab.txt, in the order of their ids: its lines, without surrounding spaces.

    A byte order mark is skipped.

    Raises:
      UnicodeDecodeError: the content is not UTF-8.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


class Vocabulary:
    """The WordPiece vocabulary: a file with one token per line; the line number is the id.

    Args:
      vocab_file: the vocab.txt.
      needed: the tokens that it must hold.
      content: what to take for the content of the file; None: read it.

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

    def __init__(
        self,
        vocab_file: str | Location,
        needed: Collection[str] = SPECIAL_TOKENS,
        content: bytes | None = None,
    ):
        try:
            self.content = location(str(vocab_file)).read_bytes() if content is None else content
            self.tokens = tokens_of(self.content)
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {vocab_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"the vocabulary {vocab_file} is not UTF-8 text: byte {error.start} is invalid"
            ) from error
        # A token listed twice gets the number of its last line, as in the original.
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.id_dtype = np.dtype(np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32)
        self.begins_word = np.array([not token.startswith("##") for token in self.tokens])
        if missing := [token for token in needed if token not in self.ids]:
            raise UserError(
                f"the vocabulary {vocab_file} has no {', '.join(missing)}: "
                f"BERT needs {' '.join(needed)}, each on its own line"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def repeated_tokens(self) -> list[str]:
        """Returns the tokens on more than one line; only the last of a token's ids is ever used."""
        return [token for number, token in enumerate(self.tokens) if self.ids[token] != number]

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids of all tokens except special and `[unused…]` ones, in ascending order."""
        special = {*SPECIAL_TOKENS, ""}
        return np.flatnonzero(
            [token not in special and not token.startswith("[unused") for token in self.tokens]
        )
