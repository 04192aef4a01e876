"""How instances are made: the options of `generate` that shape every record."""

from dataclasses import dataclass
from enum import StrEnum

from pipeline.errors import UserError

SHORTEST_SEQ_LENGTH = 8


class RandomToken(StrEnum):
    """What the 10 % of masked pieces that become another token are drawn from."""

    WORDS = "words"
    """Any token but the special and the `[unused…]` ones."""
    ANY = "any"
    """The whole vocabulary, as in the original."""


@dataclass(frozen=True)
class InstanceOptions:
    """Options with the names and defaults of the original's create_pretraining_data.py.

    Attributes:
      max_seq_length: S, tokens of an instance with `[CLS]` and both `[SEP]`.
      max_predictions_per_seq: P, the most masked pieces of an instance.
      masked_lm_prob: share of an instance's tokens that are masked, at most P.
      short_seq_prob: share of documents whose instances aim at a random shorter length.
      dupe_factor: passes over the corpus, each with other pairs and masks.
      do_whole_word_mask: whether all pieces of a word are masked together.
      random_token: what random replacements are drawn from.
      random_seed: seeds every draw, together with the bucket and the pass.

    Raises:
      UserError: an option is out of range.
    """

    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    dupe_factor: int = 10
    do_whole_word_mask: bool = True
    random_token: RandomToken = RandomToken.WORDS
    random_seed: int = 12345

    def __post_init__(self) -> None:
        if self.max_seq_length < SHORTEST_SEQ_LENGTH:
            raise UserError(
                f"--max_seq_length={self.max_seq_length} is too short: "
                f"give at least {SHORTEST_SEQ_LENGTH}"
            )
        if not 1 <= self.max_predictions_per_seq <= self.max_seq_length:
            raise UserError(
                f"--max_predictions_per_seq={self.max_predictions_per_seq} must lie between 1 and "
                f"--max_seq_length={self.max_seq_length}"
            )
        if not 0 < self.masked_lm_prob < 1:
            raise UserError(f"--masked_lm_prob={self.masked_lm_prob} must lie between 0 and 1")
        if not 0 <= self.short_seq_prob <= 1:
            raise UserError(f"--short_seq_prob={self.short_seq_prob} must lie between 0 and 1")
        if self.dupe_factor < 1:
            raise UserError(f"--dupe_factor={self.dupe_factor} must be at least 1")
        if self.random_seed < 0:
            raise UserError(f"--random_seed={self.random_seed} must not be negative")
