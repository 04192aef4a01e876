"""Texts to a WordPiece vocabulary, trained with the `tokenizers` library, the same on every run.

The library's trainer merges the most frequent pair of neighbouring pieces, again and again (BPE with
`##`; huggingface/tokenizers, models/wordpiece/trainer.rs and models/bpe/trainer.rs). Of pairs that
are equally frequent it takes the one with the smallest ids. But it numbers the `##` characters, and
cuts the alphabet among equally rare characters, in the order of a randomly seeded hash map. So here
the alphabet is counted first, and all its characters get their ids before the trainer sees a word.
From then on nothing is left to chance: every occurrence of a piece is merged from the same two parts
in the same step, so a pair enters the trainer's queue once, and no two entries have equal rank.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from pipeline.documents import ReadOptions, Sentences, read_documents
from pipeline.errors import UserError
from pipeline.inputs import InputFile
from pipeline.portions import Portion, plan_portions
from pipeline.tokenization import MAX_CHARACTERS_PER_WORD

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MIN_FREQUENCY = 2
"""How often a pair of pieces must occur to become a piece."""

_UNUSED_BEFORE_UNK = 99
# Of the characters of the text. What is missing makes [UNK] of whole words, each a single piece.
_SUFFICIENT_COVERAGE = 0.9998
_USUAL_ALPHABET = 1000
# Small pieces from all over the corpus make a better sample than few large ones.
_SAMPLED_BYTES = 1 << 20
_MOST_PORTIONS = 4096
# The tokenizer makes [UNK] of longer words, and the trainer's time grows with their length squared.
# Ideographs, which are words of their own, may stand in longer runs.
_OVERLONG_WORD = re.compile(rf"[^\W\u3400-\u9fff]{{{MAX_CHARACTERS_PER_WORD + 1},}}")


def train_vocabulary(
    read_texts: Callable[[], Iterable[str]],
    vocab_size: int,
    do_lower_case: bool,
    strip_accents: bool | None,
    num_unused: int,
    limit_alphabet: int | None = None,
) -> list[str]:
    """The tokens of a WordPiece vocabulary for the texts, in the order of their ids.

    They are the special and unused tokens as `reserved_tokens` orders them, the characters of the
    alphabet, then those that can stand inside a word once more with `##`, both in the order of their
    code points, then the learnt pieces, those learnt first in front. The same texts, in any order,
    and arguments give the same tokens in every process and with any number of threads.

    Args:
      read_texts: gives the texts, lines or sentences; it is called twice and must give the same.
      vocab_size: at most so many tokens; fewer when no other pair occurs `MIN_FREQUENCY` times.
      do_lower_case: as of `pipeline.tokenization.BasicTokenizer`.
      strip_accents: as of `pipeline.tokenization.BasicTokenizer`.
      num_unused: how many `[unused…]` tokens are kept free for later use.
      limit_alphabet: how many different characters are kept, the most frequent ones, at equal counts
        those with the smaller code points. A word with any other character is [UNK]. None: as many
        as 99.98 % of the text consists of, and 1,000 if there are so many.

    Raises:
      UserError: tokenizers is not installed, there is no text, a number is out of range, or
        `vocab_size` does not hold what comes before the learnt pieces.
    """
    tokenizer = _untrained_tokenizer(do_lower_case, strip_accents)
    reserved = reserved_tokens(num_unused)
    alphabet = _alphabet(read_texts, tokenizer, limit_alphabet)
    inside = [f"##{character}" for character in alphabet if _joins_words(character, tokenizer)]
    fixed = [*reserved, *alphabet, *inside]
    if len(fixed) > vocab_size:
        raise UserError(
            f"--vocab_size={vocab_size} is too small: {len(reserved)} special and unused tokens, "
            f"{len(alphabet)} characters and {len(inside)} of them with ## are {len(fixed)}; give a "
            "larger one, or a smaller --limit_alphabet or --num_unused"
        )
    _train(tokenizer, _readable(read_texts()), vocab_size, alphabet, fixed)
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
    """The lines of the corpus, or of portions of it in random order until there are enough.

    Args:
      files: the corpus.
      options: how documents are read.
      max_bytes: how much text is enough.
      random_seed: decides which portions; the same seed and files give the same lines.

    Raises:
      UserError: a file cannot be read, or `max_bytes` is not positive.
    """
    if max_bytes < 1:
        raise UserError(f"--max_bytes={max_bytes} must be at least 1")
    total_bytes = sum(file.text_bytes for file in files)
    if total_bytes <= max_bytes:
        portions, bytes_of_each = plan_portions(files), total_bytes
        order: Iterable[int] = range(len(portions))
    else:
        portions = plan_portions(files, max(_SAMPLED_BYTES, total_bytes // _MOST_PORTIONS))
        bytes_of_each = max(_SAMPLED_BYTES, max_bytes // len(portions))
        # A generator's `permutation` may change between versions of NumPy; its raw bits do not.
        order = np.argsort(np.random.PCG64(random_seed).random_raw(len(portions)), kind="stable")
    bytes_left = max_bytes
    for number in order:
        for line in _read_beginning(portions[number], options, min(bytes_of_each, bytes_left)):
            bytes_left -= len(line.encode("utf-8", "ignore"))
            yield line
        if bytes_left <= 0:
            return


def _read_beginning(portion: Portion, options: ReadOptions, num_bytes: int) -> Iterator[str]:
    """The lines of whole documents, until there are that many bytes."""
    lines_only = replace(options, sentences=Sentences.LINES)
    for file_range in portion:
        for document in read_documents(file_range, lines_only, Counter()):
            yield from document.sentences
            num_bytes -= sum(len(line.encode("utf-8", "ignore")) for line in document.sentences)
            if num_bytes <= 0:
                return


def reserved_tokens(num_unused: int) -> list[str]:
    """The tokens in front of the alphabet, where the original's bert-base-uncased has them.

    [PAD] is 0, and up to 99 unused tokens stand before [UNK] [CLS] [SEP] [MASK], which are thus 100 to
    103 when there are 99 or more; the other unused tokens follow.

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


def _untrained_tokenizer(do_lower_case: bool, strip_accents: bool | None) -> "Tokenizer":
    """BERT's normalizer and pre-tokenizer around an empty model."""
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
    for text in _readable(read_texts()):
        counts.update(tokenizer.normalizer.normalize_str(text))
    del counts[" "]  # what the normalizer makes of all white space
    if not counts:
        raise UserError("there is no text to train a vocabulary on")
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    covered = np.cumsum([counts[character] for character in ranked]) / counts.total()
    num_sufficient = int(np.searchsorted(covered, _SUFFICIENT_COVERAGE)) + 1
    num_kept = min(limit_alphabet or max(num_sufficient, _USUAL_ALPHABET), len(ranked))
    logging.info(
        "the alphabet has %s of the text's %s different characters, %.4f%% of the text",
        f"{num_kept:,}",
        f"{len(ranked):,}",
        100 * covered[num_kept - 1],
    )
    if covered[num_kept - 1] < _SUFFICIENT_COVERAGE:
        logging.warning(
            "every word with another character will be [UNK]; --limit_alphabet=%d keeps %.2f%%",
            num_sufficient,
            100 * _SUFFICIENT_COVERAGE,
        )
    return sorted(ranked[:num_kept])


def _joins_words(character: str, tokenizer: "Tokenizer") -> bool:
    """Whether a character can continue a word, as punctuation and ideographs cannot."""
    text = tokenizer.normalizer.normalize_str(f"x{character}x")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _train(
    tokenizer: "Tokenizer",
    texts: Iterable[str],
    vocab_size: int,
    alphabet: list[str],
    fixed: list[str],
) -> None:
    """Trains the model of `tokenizer`, in which the tokens `fixed` get the first ids, in order."""
    from tokenizers import trainers  # noqa: PLC0415 - an extra

    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
        # No other way fixes the ids of the ## characters.
        special_tokens=fixed,
        # Or the trainer would add the characters that are not in `alphabet`.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train_from_iterator(texts, trainer)


def _readable(texts: Iterable[str]) -> Iterator[str]:
    """The texts, without what the library cannot read or the tokenizer will not."""
    for text in texts:
        # Half a surrogate pair, which JSON can hold, has no UTF-8.
        encodable = text.encode("utf-8", "ignore").decode("utf-8")
        yield _OVERLONG_WORD.sub(" ", encodable)
