"""The options of `generate`: what to read, where to write, and how instances are made."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil, inf

from pipeline.documents import ReadOptions
from pipeline.errors import UserError
from pipeline.inputs import InputFormat
from pipeline.mixtures import Mixture
from pipeline.pre_tokenizers import PreTokenizer, accents_with
from pipeline.records import RowLimits
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location

SHORTEST_SEQ_LENGTH = 8
LONGEST_SEQ_LENGTH = 1 << 14
_LIMITS: dict[str, tuple[int, float]] = {
    "max_seq_length": (SHORTEST_SEQ_LENGTH, LONGEST_SEQ_LENGTH),
    "short_seq_prob": (0, 1),
    "dupe_factor": (1, inf),
    "max_ngram_size": (1, 10),
    "random_seed": (0, inf),
}
# A row of long sequences has room for one for so many of its positions.
_POSITIONS_PER_SEQUENCE = 16


class RandomToken(StrEnum):
    """The tokens that replace 10 % of the masked pieces at random."""

    WORDS = "words"
    """All tokens except special and `[unused…]` ones."""
    ANY = "any"
    """The whole vocabulary, as in the original."""


class MaskedWordAction(StrEnum):
    """The unit for which 80 % `[MASK]`, 10 % kept, 10 % random is drawn."""

    PER_PIECE = "per_piece"
    """Each piece on its own, as in the original."""
    PER_WORD = "per_word"
    """A whole word or n-gram: all its pieces become `[MASK]`, are kept, or become random pieces."""


class Masking(StrEnum):
    """When the masks of train instances are drawn; eval instances always have stored ones."""

    STORED = "stored"
    """By `generate`, as in the original."""
    TRAINING = "training"
    """By the trainer, anew in each epoch; its rate may change while it trains."""


@dataclass(frozen=True)
class InstanceOptions:
    """Options with the names and defaults of the original's create_pretraining_data.py.

    Attributes:
      max_seq_length: S, the largest number of tokens of an instance, with `[CLS]` and each `[SEP]`.
      max_predictions_per_seq: P, the largest number of masked pieces of an instance. None becomes
        what `masked_lm_prob` asks of S tokens, rounded up; but 76 for 15 % of 512, as published.
      masked_lm_prob: the share of an instance's tokens that are masked, at most P tokens.
      short_seq_prob: the share of documents whose instances aim at a random, shorter length.
      dupe_factor: the number of passes over the corpus; each draws new pairs and masks.
      do_whole_word_mask: whether all pieces of a word are masked together.
      max_ngram_size: the largest number of words that are masked together, as an n-gram.
      masked_word_action: whether all pieces of a masked word are replaced alike.
      random_token: the tokens that random replacements are drawn from.
      random_seed: seeds every draw, together with the bucket and the pass.
      sentence_pairs: what an instance holds: two segments, or one.
      packed_row_length: R, the length of the rows into which several sequences are packed; None,
        or 0, which becomes None: each sequence is a record of its own, padded to S.
      masking: when the masks of train instances are drawn. With `Masking.TRAINING`, the options
        of masks are those of eval instances, and defaults of the trainer.

    Raises:
      UserError: an option is out of range.
    """

    max_seq_length: int = 128
    max_predictions_per_seq: int = None  # type: ignore[assignment] # a number once it is made
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1
    dupe_factor: int = 10
    do_whole_word_mask: bool = True
    max_ngram_size: int = 1
    masked_word_action: MaskedWordAction = MaskedWordAction.PER_PIECE
    random_token: RandomToken = RandomToken.WORDS
    random_seed: int = 12345
    sentence_pairs: SentencePairs = SentencePairs.NEXT
    packed_row_length: int | None = None
    masking: Masking = Masking.STORED

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= (value := getattr(self, name)) <= most:
                rule = f"be at least {least}" if most == inf else f"lie between {least} and {most}"
                raise UserError(f"--{name}={value} must {rule}")
        if not 0 < self.masked_lm_prob < 1:
            raise UserError(f"--masked_lm_prob={self.masked_lm_prob} must lie between 0 and 1")
        if self.max_predictions_per_seq is None:
            # Without the rounding, the error of the product could count as one more piece.
            share = max(1, ceil(round(self.max_seq_length * self.masked_lm_prob, 9)))
            is_published = (self.max_seq_length, self.masked_lm_prob) == (512, 0.15)
            object.__setattr__(self, "max_predictions_per_seq", 76 if is_published else share)
        if not 1 <= self.max_predictions_per_seq <= self.max_seq_length:
            raise UserError(
                f"--max_predictions_per_seq={self.max_predictions_per_seq} must lie between 1 and "
                f"--max_seq_length={self.max_seq_length}"
            )
        if self.max_ngram_size > 1 and not self.do_whole_word_mask:
            raise UserError("--max_ngram_size masks whole words, so it needs --do_whole_word_mask")
        if not self.packed_row_length:
            object.__setattr__(self, "packed_row_length", None)
        elif not self.max_seq_length <= self.packed_row_length <= LONGEST_SEQ_LENGTH:
            raise UserError(
                f"--packed_row_length={self.packed_row_length} must lie between "
                f"--max_seq_length={self.max_seq_length} and {LONGEST_SEQ_LENGTH}, or be 0"
            )

    @property
    def limits_of_rows(self) -> RowLimits:
        """The most that a record holds."""
        if not (length := self.packed_row_length):
            return RowLimits(self.max_seq_length, self.max_predictions_per_seq)
        sequences = max(2, length // min(_POSITIONS_PER_SEQUENCE, self.max_seq_length // 2))
        # Masks are the same share of a row as of one sequence of its length. But sequences round
        # their shares, so rows of the longest may have more; and each sequence has at least one.
        like_one = replace(self, max_seq_length=length).default_predictions
        of_longest = min(
            round(self.max_seq_length * self.masked_lm_prob), self.max_predictions_per_seq
        )
        predictions = max(like_one, length // self.max_seq_length * of_longest, sequences)
        return RowLimits(length, predictions, sequences)

    @property
    def default_predictions(self) -> int:
        """The `max_predictions_per_seq` of these options where it is not given."""
        return replace(self, max_predictions_per_seq=None).max_predictions_per_seq  # type: ignore[arg-type]


@dataclass(frozen=True)
class GenerateOptions:
    """What to read, where to write, and how instances are made.

    Attributes:
      input_patterns: paths or globs of the corpus; none if there is a mixture.
      vocab_file: the WordPiece vocabulary.
      output_dir: the data set's directory.
      input_format: how its documents and sentences are laid out.
      reading: how documents are read.
      tokenized_dir: the directory that keeps the tokenized corpus for other data sets of the same
        text; a corpus that it already holds is reused.
      do_lower_case: whether text is lower-cased, for an uncased vocabulary.
      strip_accents: whether accents are dropped; None: only when lower-casing. With a
        pre-tokenizer, it becomes False.
      pre_tokenizer: what finds the words of Japanese text before WordPiece; None: spaces,
        punctuation and ideographs tell them.
      word_segmenter: the segmenter that finds the words for whole-word masks, see
        `word_segmentation.load_segmenter`; None: each ideograph is a word.
      drop_duplicates: whether only the first of several documents with the same text is used.
      drop_near_duplicates: from 0.5 to 1: of documents that share so much of their text, only the
        first is used, see `minhash`; exact duplicates are dropped, too. None: they are kept.
      instances: how instances are made.
      eval_fraction: the share of the documents that are set aside for evaluation.
      num_shards: the number of train shards of a pass; None sizes them from the corpus.
      overwrite: whether a data set already in `output_dir` is replaced.
      strict: whether a share out of bounds is an error, see `health`; no part of the plan.
      mixture: several corpora, which take the place of `input_patterns`, `input_format` and
        `reading`; None: there is one corpus.

    Raises:
      UserError: an option is out of range, or disagrees with another one.
    """

    input_patterns: list[str]
    vocab_file: Location
    output_dir: Location
    input_format: InputFormat = InputFormat.AUTO
    reading: ReadOptions = field(default_factory=ReadOptions)
    tokenized_dir: Location | None = None
    do_lower_case: bool = True
    strip_accents: bool | None = None
    pre_tokenizer: PreTokenizer | None = None
    word_segmenter: str | None = None
    drop_duplicates: bool = False
    drop_near_duplicates: float | None = None
    instances: InstanceOptions = field(default_factory=InstanceOptions)
    eval_fraction: float = 0.0
    num_shards: int | None = None
    overwrite: bool = False
    strict: bool = False
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise UserError(f"--eval_fraction={self.eval_fraction} must be at least 0 and below 1")
        least, most = 0.5, 1
        if not (self.drop_near_duplicates is None or least <= self.drop_near_duplicates <= most):
            raise UserError(
                f"--drop_near_duplicates={self.drop_near_duplicates} must lie between {least} and "
                f"{most}: the share of their text from which on two documents are near copies"
            )
        if self.num_shards is not None and self.num_shards < 1:
            raise UserError(f"--num_shards={self.num_shards} must be at least 1")
        num_passes = self.instances.dupe_factor
        if self.mixture and len(self.mixture.temperatures) not in (0, 1, num_passes):
            raise UserError(
                f"the mixture has {len(self.mixture.temperatures)} temperatures, but "
                f"--dupe_factor={num_passes} passes: give one for each pass, or one for all"
            )
        accents = accents_with(self.pre_tokenizer, self.strip_accents)
        object.__setattr__(self, "strip_accents", accents)
        if self.pre_tokenizer and self.word_segmenter:
            raise UserError(
                f"leave out --word_segmenter={self.word_segmenter}: the words that are masked are "
                f"those of --pre_tokenizer={self.pre_tokenizer}"
            )

    def reading_of(self, corpus: str | None) -> ReadOptions:
        """How the documents of a corpus of the mixture are read, or without one, all documents."""
        if self.mixture is None:
            return self.reading
        return next(each.reading for each in self.mixture.corpora if each.name == corpus)
