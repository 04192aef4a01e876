"""Trains a WordPiece vocabulary with the `tokenizers` library; every run gives the same result.

The library's trainer repeatedly merges the most frequent pair of neighbouring pieces (BPE with
`##`; huggingface/tokenizers, models/wordpiece/trainer.rs and models/bpe/trainer.rs). Among equally
frequent pairs it takes the one with the smallest ids. However, a randomly seeded hash map decides
the ids of the `##` characters, and which of several equally rare characters stay in the alphabet.
Therefore this module counts the alphabet first and gives all its characters ids before the trainer
reads a word. The rest is deterministic: every occurrence of a piece is merged from the same two
parts in the same step, so a pair enters the trainer's queue once and no two entries rank equally.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from pipeline.documents import Documents, ReadOptions, Sentences, read_documents
from pipeline.errors import UserError
from pipeline.formats.reading import read_raw_documents
from pipeline.inputs import InputFile
from pipeline.portions import Portion, plan_portions
from pipeline.pre_tokenization import load_pre_tokenizer
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.vocabulary import MAX_CHARACTERS_PER_WORD

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MIN_FREQUENCY = 2
"""The minimum number of occurrences that makes a pair of pieces a new piece."""

_UNUSED_BEFORE_UNK = 99
# Share of the text's characters. Any other character turns a whole word into a single [UNK].
_SUFFICIENT_COVERAGE = 0.9998
_USUAL_ALPHABET = 1000
# Many small portions from all over the corpus make a better sample than a few large ones.
_SAMPLED_BYTES = 1 << 20
_MOST_PORTIONS = 4096
# The tokenizer turns longer words into [UNK], and the trainer's time grows with the square of their
# length. Longer runs of ideographs are fine, because each ideograph is a word.
_OVERLONG_WORD = re.compile(rf"[^\W\u3400-\u9fff]{{{MAX_CHARACTERS_PER_WORD + 1},}}")
_USUAL_SHARE_OF_OVERLONG_WORDS = 0.05


def train_vocabulary(
    read_texts: Callable[[], Iterable[str]],
    vocab_size: int,
    do_lower_case: bool,
    strip_accents: bool | None,
    num_unused: int,
    limit_alphabet: int | None = None,
    pre_tokenizer: PreTokenizer | None = None,
) -> list[str]:
    """Trains a WordPiece vocabulary and returns its tokens in the order of their ids.

    The special and unused tokens come first, ordered by `reserved_tokens`. The characters of the
    alphabet follow, then the `##` forms of those that can continue a word, both ordered by code
    point. The learned pieces come last, in the order in which they were learned. The same texts, in
    any order, and the same arguments give the same tokens, in every process and with any number of
    threads.

    Args:
      read_texts: returns the texts (lines or sentences); called twice, with equal results.
      vocab_size: maximum number of tokens; fewer if no other pair occurs `MIN_FREQUENCY` times.
      do_lower_case: option of `pipeline.tokenization.BasicTokenizer`.
      strip_accents: option of `pipeline.tokenization.BasicTokenizer`.
      num_unused: number of `[unused…]` tokens to reserve for later use.
      limit_alphabet: number of different characters to keep. The most frequent ones are kept, and
        the smaller code points among equally frequent ones. A word with any other character is
        [UNK]. None keeps enough to cover 99.98% of the text, and at least 1,000 if the text has
        that many.
      pre_tokenizer: what finds the words of the text; None: those of BERT's own rules.

    Raises:
      UserError: tokenizers or a pre-tokenizer's package is not installed, there is no text, a
        number is out of range, or `vocab_size` is too small for the tokens before the learned
        pieces.
    """
    tokenizer = _untrained_tokenizer(do_lower_case, strip_accents, pre_tokenizer)
    reserved = reserved_tokens(num_unused)
    words = _PreTokenizedTexts(read_texts, pre_tokenizer, do_lower_case) if pre_tokenizer else None
    read_texts = words or read_texts
    alphabet = _alphabet(read_texts, tokenizer, limit_alphabet)
    inside = [
        f"##{character}"
        for character in alphabet
        if (character in words.inside if words else _joins_words(character, tokenizer))
    ]
    fixed = [*reserved, *alphabet, *inside]
    if len(fixed) > vocab_size:
        raise UserError(
            f"--vocab_size={vocab_size} is too small: {len(reserved)} special and unused tokens, "
            f"{len(alphabet)} characters and {len(inside)} of them with ## make {len(fixed)}; "
            "increase it, or reduce --limit_alphabet or --num_unused"
        )
    _train(tokenizer, map(_readable, read_texts()), vocab_size, alphabet, fixed)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    if len(ids) < vocab_size:
        logging.info(
            "the vocabulary has %s tokens, not %s: no other pair of pieces occurs %d times",
            f"{len(ids):,}",
            f"{vocab_size:,}",
            MIN_FREQUENCY,
        )
    return sorted(ids, key=ids.__getitem__)


def read_sample(
    files: list[InputFile], options: ReadOptions, max_bytes: int, random_seed: int
) -> Iterator[str]:
    """Yields the lines of the corpus, or of random portions if the corpus exceeds `max_bytes`.

    Args:
      files: the files of the corpus.
      options: options for reading documents.
      max_bytes: amount of text after which to stop, in bytes.
      random_seed: seed for the choice of portions; the same seed and files give the same lines.

    Raises:
      UserError: a file cannot be read, or `max_bytes` is not positive.
    """
    if max_bytes < 1:
        raise UserError(f"--max_bytes={max_bytes} must be at least 1")
    total_bytes = sum(file.text_bytes for file in files)
    lines_are_documents = options.documents == Documents.LINES
    if total_bytes <= max_bytes:
        portions = plan_portions(files, None, lines_are_documents)
        bytes_of_each = total_bytes
        order: Iterable[int] = range(len(portions))
    else:
        portion_bytes = max(_SAMPLED_BYTES, total_bytes // _MOST_PORTIONS)
        portions = plan_portions(files, portion_bytes, lines_are_documents)
        bytes_of_each = max(_SAMPLED_BYTES, max_bytes // len(portions))
        # NumPy may change a generator's `permutation` between versions, but not its raw bits.
        order = np.argsort(np.random.PCG64(random_seed).random_raw(len(portions)), kind="stable")
    bytes_left = max_bytes
    for number in order:
        for line in _read_beginning(portions[number], options, min(bytes_of_each, bytes_left)):
            bytes_left -= len(line.encode("utf-8", "ignore"))
            yield line
        if bytes_left <= 0:
            return


def _read_beginning(portion: Portion, options: ReadOptions, num_bytes: int) -> Iterator[str]:
    """Yields the lines of whole documents until they reach `num_bytes`."""
    lines_only = replace(options, sentences=Sentences.LINES)
    for file_range in portion:
        raw_documents = read_raw_documents(file_range, lines_only, Counter())
        for document in read_documents(raw_documents, lines_only, Counter()):
            yield from document.sentences
            num_bytes -= sum(len(line.encode("utf-8", "ignore")) for line in document.sentences)
            if num_bytes <= 0:
                return


def reserved_tokens(num_unused: int) -> list[str]:
    """Returns the tokens before the alphabet, in the positions of the original bert-base-uncased.

    [PAD] has id 0. Up to 99 unused tokens come before [UNK] [CLS] [SEP] [MASK], which therefore get
    the ids 100 to 103 if there are 99 or more. The other unused tokens follow.

    Raises:
      UserError: `num_unused` is negative.
    """
    if num_unused < 0:
        raise UserError(f"--num_unused={num_unused} must not be negative")
    unused = [f"[unused{number}]" for number in range(num_unused)]
    return [
        "[PAD]",
        *unused[:_UNUSED_BEFORE_UNK],
        *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *unused[_UNUSED_BEFORE_UNK:],
    ]


class _PreTokenizedTexts:
    """The words of texts, with a space between them, as a pre-tokenizer finds them.

    Attributes:
      inside: the characters that continue a word, in the texts that were read so far.
    """

    def __init__(
        self,
        read_texts: Callable[[], Iterable[str]],
        pre_tokenizer: PreTokenizer,
        do_lower_case: bool,
    ):
        self.inside: set[str] = set()
        self._read_texts = read_texts
        self._pre_tokenize = load_pre_tokenizer(pre_tokenizer, do_lower_case)

    def __call__(self) -> Iterator[str]:
        for text in self._read_texts():
            words = self._pre_tokenize(text).split()
            self.inside.update(*(word[1:] for word in words))
            yield " ".join(words)


def _untrained_tokenizer(
    do_lower_case: bool, strip_accents: bool | None, pre_tokenizer: PreTokenizer | None
) -> "Tokenizer":
    """An empty model with BERT's normalizer and pre-tokenizer, or for the words of another one."""
    try:
        from tokenizers import (  # noqa: PLC0415 - an extra
            Tokenizer,
            models,
            normalizers,
            pre_tokenizers,
        )
    except ImportError as error:
        raise UserError(
            "training a vocabulary needs the package tokenizers: pip install 'clozemill[vocab]'"
        ) from error
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if pre_tokenizer:
        tokenizer.normalizer = normalizers.Sequence([])
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=strip_accents,
        lowercase=do_lower_case,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _alphabet(
    read_texts: Callable[[], Iterable[str]], tokenizer: "Tokenizer", limit_alphabet: int | None
) -> list[str]:
    """The most frequent characters of the normalized texts, in the order of their code points."""
    if limit_alphabet is not None and limit_alphabet < 1:
        raise UserError(f"--limit_alphabet={limit_alphabet} must be at least 1")
    counts: Counter[str] = Counter()
    num_characters = num_overlong = 0
    for text in read_texts():
        num_characters += len(text)
        num_overlong += sum(map(len, _OVERLONG_WORD.findall(text)))
        counts.update(tokenizer.normalizer.normalize_str(_readable(text)))
    del counts[" "]  # the normalizer turns all white space into spaces
    _check_overlong_words(num_overlong / max(num_characters, 1))
    if not counts:
        raise UserError("there is no text to train a vocabulary on")
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    covered = np.cumsum([counts[character] for character in ranked]) / counts.total()
    num_sufficient = int(np.searchsorted(covered, _SUFFICIENT_COVERAGE)) + 1
    num_kept = min(limit_alphabet or max(num_sufficient, _USUAL_ALPHABET), len(ranked))
    logging.info(
        "the alphabet has %s of the text's %s different characters and covers %.4f%% of the text",
        f"{num_kept:,}",
        f"{len(ranked):,}",
        100 * covered[num_kept - 1],
    )
    if covered[num_kept - 1] < _SUFFICIENT_COVERAGE:
        logging.warning(
            "every word with any other character will be [UNK]; --limit_alphabet=%d covers %.2f%% "
            "of the text",
            num_sufficient,
            100 * _SUFFICIENT_COVERAGE,
        )
    return sorted(ranked[:num_kept])


def _check_overlong_words(share: float) -> None:
    """Checks the share of the text that is in words which the tokenizer makes `[UNK]`."""
    if share <= _USUAL_SHARE_OF_OVERLONG_WORDS:
        return
    problem = (
        f"{share:.0%} of the text is in words of over {MAX_CHARACTERS_PER_WORD} characters, which "
        "become [UNK]: put spaces into it, for example between k-mers, or between the words that "
        "a segmenter finds"
    )
    if share > 0.5:
        raise UserError(problem)
    logging.warning("%s", problem)


def _joins_words(character: str, tokenizer: "Tokenizer") -> bool:
    """Whether a character can continue a word; punctuation and ideographs cannot."""
    text = tokenizer.normalizer.normalize_str(f"x{character}x")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _train(
    tokenizer: "Tokenizer",
    texts: Iterable[str],
    vocab_size: int,
    alphabet: list[str],
    fixed: list[str],
) -> None:
    """Trains the model of `tokenizer`; the tokens in `fixed` get the first ids, in order."""
    from tokenizers import trainers  # noqa: PLC0415 - an extra

    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
        # There is no other way to fix the ids of the ## characters.
        special_tokens=fixed,
        # Otherwise the trainer would add the characters that are not in `alphabet`.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train_from_iterator(texts, trainer)


def _readable(text: str) -> str:
    """Drops what the library cannot read, and words that the tokenizer would not keep."""
    # JSON can hold half of a surrogate pair, which has no UTF-8 encoding.
    encodable = text.encode("utf-8", "ignore").decode("utf-8")
    return _OVERLONG_WORD.sub(" ", encodable)
