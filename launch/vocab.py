"""Builds a WordPiece vocabulary from raw text, one token per line, for `clozemill generate`.

As in the original BERT, [PAD] is 0, and [UNK], [CLS], [SEP] and [MASK] come after the first 99
[unused] tokens. The same text, flags and seed always give the same vocabulary. A receipt beside it,
OUTPUT_FILE.json, says what it was made from: the same command again only verifies the file.

With --extend, it adds the words and pieces of the text to the vocabulary of a trained BERT instead.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Any

from absl import flags, logging

from launch import input_flags
from launch.stopping import at_once
from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    looks_lower_cased,
    read_tokenizer_settings,
)
from pipeline.errors import UserError
from pipeline.files import can_hold_files, has_sha256, remove_leftovers, write_whole
from pipeline.foreign_vocabularies import TOKENIZER_NAME, vocabulary_of
from pipeline.inputs import describe_formats, match_files, stamps_sha256
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest
from pipeline.patterns import check_not_input
from pipeline.pre_tokenization import describe_pre_tokenizer
from pipeline.pre_tokenizers import PreTokenizer, accents_with
from pipeline.receipts import (
    ExtensionReceipt,
    Plan,
    VocabularyReceipt,
    differences,
    path_of_receipt,
    read_receipt,
    write_receipt,
)
from pipeline.storage import Location, location, resolved
from pipeline.vocabulary import tokens_of
from pipeline.vocabulary_extension import extend_vocabulary
from pipeline.vocabulary_training import read_sample, train_vocabulary

SHARED_FLAGS = (input_flags,)
flags.mark_flag_as_required("input_file")
_OUTPUT_FILE = flags.DEFINE_string(
    "output_file", None, "The file to write; also a URL (s3://, gs://, az://).", required=True
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace --output_file if it exists.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    30522,
    "The maximum number of tokens, special and unused ones included.",
    upper_bound=1 << 20,
)
_NUM_UNUSED = flags.DEFINE_integer(
    "num_unused",
    99,
    "The number of tokens [unused0], [unused1], … that are reserved for later use.",
    upper_bound=1 << 20,
)
_LIMIT_ALPHABET = flags.DEFINE_integer(
    "limit_alphabet",
    None,
    "The number of distinct characters to keep; words with others become [UNK]. By default, as "
    "many as make up 99.98 % of the text, but at least 1,000 if the text has that many.",
)
_MAX_BYTES = flags.DEFINE_integer(
    "max_bytes",
    1_000_000_000,
    "The approximate maximum size of the training text in bytes. A larger corpus is sampled in "
    "portions from all over it, but a compressed file is read from its beginning.",
)
_RANDOM_SEED = flags.DEFINE_integer(
    "random_seed",
    12345,
    "Seeds the choice of the sampled portions.",
    lower_bound=0,
    upper_bound=(1 << 63) - 1,
)
_EXTEND = flags.DEFINE_string(
    "extend",
    None,
    "Do not build a vocabulary, but add --num_new_tokens to this one, whose ids all stay: a "
    "trained BERT (a directory of the original or of Hugging Face, or a run), or a vocab.txt or "
    "tokenizer.json. New tokens take the places of [unused…] ones first. Text is normalized as the "
    "BERT's was, if its directory says how; otherwise as --do_lower_case and --strip_accents say "
    "or, without them, as its tokens suggest.",
)
_NUM_NEW_TOKENS = flags.DEFINE_integer(
    "num_new_tokens",
    None,
    "With --extend: the maximum number of words and ## pieces to add. They are chosen one by one: "
    "each is the one that saves most pieces of the text.",
    lower_bound=1,
    upper_bound=1 << 20,
)


def main() -> None:
    """Builds or extends the vocabulary, and prints its size and what an extension is worth."""
    output_file = location(_OUTPUT_FILE.value)
    if output_file.is_dir():
        raise UserError(f"--output_file={output_file} is a folder: give the name of a file")
    if not can_hold_files(output_file.absolute().parent):
        raise UserError(f"the folder of --output_file={output_file} does not exist")
    patterns, reading = input_flags.input_patterns(), input_flags.read_options()
    check_not_input(patterns, "output_file", [output_file, path_of_receipt(output_file)])
    files = match_files(patterns, input_flags.input_format(), reading.encoding)
    extended = _vocabulary_to_extend(output_file)
    pre_tokenizer = input_flags.pre_tokenizer()
    options = (
        _options_of_extension(extended, pre_tokenizer)
        if extended
        else _options_of_training(pre_tokenizer)
    )
    plan = {
        **({"vocab_sha256": _sha256_of(extended.tokens)} if extended else {}),
        "input_stamps_sha256": stamps_sha256(files),
        "unicode_version": unicodedata.unidata_version,
        **dataclasses.asdict(reading),
        **options,
        **describe_pre_tokenizer(pre_tokenizer),
        "max_bytes": _MAX_BYTES.value,
        "random_seed": _RANDOM_SEED.value,
    }
    remove_leftovers(output_file.parent, output_file.name)
    if not _OVERWRITE.value and (receipt := _receipt_of_finished(output_file, plan)):
        logging.info(
            "%s was made from the same input with the same options before, and is as it was made",
            output_file,
        )
        print(_describe(output_file, len(tokens_of(output_file.read_bytes())), receipt))
        return
    logging.info(
        "input: %s, %.1f MB", describe_formats(files), sum(file.size for file in files) / 1e6
    )

    def read_texts() -> Iterable[str]:
        return read_sample(files, reading, _MAX_BYTES.value, _RANDOM_SEED.value)

    with at_once():
        if extended:
            tokens, figures = extend_vocabulary(extended.tokens, read_texts(), **options)
            receipt = ExtensionReceipt(plan, _sha256_of(tokens), figures)
        else:
            tokens = train_vocabulary(read_texts, **options, pre_tokenizer=pre_tokenizer)
            receipt = VocabularyReceipt(plan, _sha256_of(tokens))
    # The receipt comes first: if the process is killed after it, the same command begins again.
    write_receipt(output_file, receipt)
    write_whole(output_file, _content_of(tokens))
    print(_describe(output_file, len(tokens), receipt))


def _options_of_training(pre_tokenizer: PreTokenizer | None) -> dict[str, Any]:
    """The arguments of `train_vocabulary`.

    Raises:
      flags.Error: a flag is given that only extends a vocabulary.
    """
    if _NUM_NEW_TOKENS.present:
        raise flags.Error("--num_new_tokens needs --extend, which names the vocabulary to add to")
    return {
        "do_lower_case": input_flags.do_lower_case(),
        "strip_accents": accents_with(pre_tokenizer, input_flags.strip_accents()),
        "vocab_size": _VOCAB_SIZE.value,
        "num_unused": _NUM_UNUSED.value,
        "limit_alphabet": _LIMIT_ALPHABET.value,
    }


def _options_of_extension(
    extended: TokenizerSettings, pre_tokenizer: PreTokenizer | None
) -> dict[str, Any]:
    """The arguments of `extend_vocabulary`.

    Args:
      extended: the vocabulary to extend, and how text is normalized for it.
      pre_tokenizer: what the flags ask for.

    Raises:
      flags.Error: the number of new tokens is missing, or a flag is given that does not extend.
      UserError: the flags ask for another normalization than the BERT states, or a pre-tokenizer
        finds its words.
    """
    if finds_words := pre_tokenizer or extended.pre_tokenizer:
        raise UserError(
            f"--extend cannot add words to a BERT whose words {finds_words} finds: it counts those "
            "that spaces and punctuation separate"
        )
    for flag in (_VOCAB_SIZE, _NUM_UNUSED, _LIMIT_ALPHABET):
        if flag.present:
            raise flags.Error(f"leave out --{flag.name}: with --extend, it has no meaning")
    if not _NUM_NEW_TOKENS.present:
        raise flags.Error("--extend needs --num_new_tokens, the number of tokens to add")
    lower_is_given, strip_is_given = input_flags.is_normalization_given()
    asked = dataclasses.replace(
        extended,
        do_lower_case=(input_flags.do_lower_case() if lower_is_given else extended.do_lower_case),
        strip_accents=input_flags.strip_accents() if strip_is_given else extended.strip_accents,
    )
    for name, stated, wanted in (
        ("do_lower_case", extended.do_lower_case, asked.do_lower_case),
        ("strip_accents", extended.strips_accents, asked.strips_accents),
    ):
        if stated != wanted and not extended.are_guessed:
            raise UserError(
                f"leave out --{'' if wanted else 'no'}{name}: by what {extended.vocabulary.parent} "
                "says, its text was normalized in the other way"
            )
    if extended.are_guessed:
        logging.info(
            "%s does not say whether text is lower-cased: it is %s, %s",
            extended.vocabulary,
            "lower-cased" if asked.do_lower_case else "not lower-cased",
            "to judge by its tokens" if asked == extended else "as the flags say",
        )
    return {
        "do_lower_case": asked.do_lower_case,
        "strip_accents": asked.strip_accents,
        "num_new_tokens": _NUM_NEW_TOKENS.value,
    }


def _vocabulary_to_extend(output_file: Location) -> TokenizerSettings | None:
    """The tokens of --extend, and how text is normalized for them; None without the flag.

    Raises:
      UserError: they cannot be read, or `output_file` is their file.
    """
    if not _EXTEND.value:
        return None
    path = location(_EXTEND.value)
    vocabulary = vocabulary_of(path)
    # Files beside a vocabulary of this name say how text is normalized.
    if not path.is_dir() and path.name in (VOCABULARY_NAME, TOKENIZER_NAME):
        path = path.absolute().parent
    if path.is_dir():
        manifest = Manifest.read(path) if (path / MANIFEST_NAME).exists() else None
        settings = read_tokenizer_settings(path, manifest)
    else:
        settings = TokenizerSettings(
            vocabulary=path,
            tokens=vocabulary.tokens,
            do_lower_case=looks_lower_cased(vocabulary.tokens),
            strip_accents=None,
            are_guessed=True,
        )
    assert settings is not None, "vocabulary_of has found one"
    if resolved(output_file) == resolved(settings.vocabulary):
        raise UserError(
            f"--output_file={output_file} is the vocabulary to extend, which the BERT needs: give "
            "another name"
        )
    return settings


def _receipt_of_finished(output_file: Location, plan: Plan) -> VocabularyReceipt | None:
    """The receipt of the vocabulary, if it was made by the same plan, and not changed since.

    Raises:
      UserError: another file has its name or that of its receipt, or it was changed.
    """
    receipt = read_receipt(output_file, ExtensionReceipt) or read_receipt(
        output_file, VocabularyReceipt
    )
    advice = "give another --output_file, or --overwrite"
    for path in (path_of_receipt(output_file), output_file):
        if path.exists() and receipt is None:
            raise UserError(f"{path} already exists: {advice}")
    if receipt is None or not output_file.exists():
        return None
    if others := differences(receipt.plan, plan):
        raise UserError(f"{output_file} already exists, made with {'; '.join(others)}: {advice}")
    if not has_sha256(output_file, receipt.sha256):
        raise UserError(f"{output_file} was changed after it was made: --overwrite makes it again")
    return receipt


def _content_of(tokens: list[str]) -> str:
    return "".join(f"{token}\n" for token in tokens)


def _sha256_of(tokens: list[str]) -> str:
    """The SHA-256 of the file that holds these tokens, in hexadecimal."""
    return hashlib.sha256(_content_of(tokens).encode()).hexdigest()


def _describe(output_file: Location, num_tokens: int, receipt: VocabularyReceipt) -> str:
    if not isinstance(receipt, ExtensionReceipt):
        return f"{output_file}: {num_tokens:,} tokens"
    figures = receipt.figures
    words, marks = figures["words"], figures["marks"]
    before, after = figures["tokens_before"], figures["tokens_after"]
    of_words = [(tokens - marks) / max(words, 1) for tokens in (before, after)]
    unknown = [figures[name] / (words + marks) for name in ("unknown_before", "unknown_after")]
    return (
        f"{output_file}: {num_tokens:,} tokens, {figures['new_tokens']:,} of them new, "
        f"{figures['in_place_of_unused']:,} of these in the place of [unused…]\n"
        f"  pieces a word         {of_words[0]:.3f} before, {of_words[1]:.3f} after"
        f"{_change(*of_words)}\n"
        f"  tokens of the text    {before:,} before, {after:,} after{_change(before, after)}\n"
        f"  words that are [UNK]  {unknown[0]:.3%} before, {unknown[1]:.3%} after"
    )


def _change(before: float, after: float) -> str:
    return f" ({after / before - 1:+.1%})" if before else ""
