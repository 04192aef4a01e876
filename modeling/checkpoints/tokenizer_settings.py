"""Vocabulary and text normalization of a trained BERT, read and written beside its weights."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import logging
from typing_extensions import TypedDict  # typing's own is not enough for pydantic before 3.12

from pipeline.errors import UserError
from pipeline.foreign_vocabularies import (
    TOKENIZER_NAME,
    AddedToken,
    in_order,
    read_tokenizer_json,
)
from pipeline.json_files import read_foreign_json
from pipeline.manifest import VOCABULARY_NAME, Manifest
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.storage import Location
from pipeline.vocabulary import MAX_CHARACTERS_PER_WORD, SPECIAL_TOKENS, tokens_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
ADDED_TOKENS_NAME = "added_tokens.json"
TOKENIZER_FILES = (VOCABULARY_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, ADDED_TOKENS_NAME)
_KNOWN_CLASSES = (
    "BertTokenizer BertTokenizerFast BertTokenizerLegacy PreTrainedTokenizerFast TokenizersBackend"
).split()
_JAPANESE_CLASS = "BertJapaneseTokenizer"
# The arguments with which that class finds the words. They are all that its tokens depend on.
_JAPANESE_ARGUMENTS: dict[PreTokenizer, tuple[str, dict[str, Any]]] = {
    PreTokenizer.MECAB: ("mecab", {"mecab_dic": "unidic_lite"}),
    PreTokenizer.MECAB_IPADIC: ("mecab", {"mecab_dic": "ipadic"}),
    PreTokenizer.SUDACHI: ("sudachi", {"sudachi_split_mode": "A", "sudachi_dict_type": "core"}),
}
# The defaults among them. MeCab's dictionary is none, because versions of transformers have others.
_JAPANESE_DEFAULTS = {
    **{"normalize_text": True, "mecab_option": None, "trim_whitespace": False},
    **{"sudachi_split_mode": "A", "sudachi_dict_type": "core", "sudachi_projection": None},
    **{"sudachi_config_path": None, "sudachi_resource_dir": None},
}


@dataclass(frozen=True)
class TokenizerSettings:
    """The tokens that a BERT knows, and how a text is normalized before it becomes tokens.

    Attributes:
      vocabulary: the vocab.txt or tokenizer.json that holds the tokens.
      tokens: the tokens, in the order of their ids.
      do_lower_case: whether text is lower-cased.
      strip_accents: whether accents are stripped; None: only when lower-casing.
      tokenize_chinese_chars: whether each ideograph is a word, as in the original.
      added_tokens: the tokens that were added to a Hugging Face vocabulary, by id.
      num_word_pieces: the number of the first tokens that WordPiece finds; None: all.
      are_guessed: whether `do_lower_case` is only guessed from the tokens.
      pre_tokenizer: what finds the words of Japanese text before WordPiece; None: BERT's own rules.
    """

    vocabulary: Location
    tokens: list[str]
    do_lower_case: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool = True
    added_tokens: Mapping[int, AddedToken] = field(default_factory=dict)
    num_word_pieces: int | None = None
    are_guessed: bool = False
    pre_tokenizer: PreTokenizer | None = None

    @property
    def strips_accents(self) -> bool:
        """Whether accents are stripped."""
        return self.do_lower_case if self.strip_accents is None else self.strip_accents


class _Config(TypedDict, total=False):
    """What is read of a tokenizer_config.json; null is not the same as nothing."""

    do_lower_case: bool | None
    strip_accents: bool | None
    tokenize_chinese_chars: bool | None
    tokenizer_class: str | None
    word_tokenizer_type: str | None
    subword_tokenizer_type: str | None
    mecab_kwargs: dict[str, Any] | None
    sudachi_kwargs: dict[str, Any] | None
    added_tokens_decoder: dict[int, AddedToken]


@dataclass(frozen=True)
class _Normalizer:
    lowercase: bool | None = None
    strip_accents: bool | None = None
    handle_chinese_chars: bool | None = None


@dataclass(frozen=True)
class _AnyTokenizer:
    """What is read of a tokenizer.json beside its tokens."""

    normalizer: _Normalizer | None = None


def read_tokenizer_settings(
    directory: Location, manifest: Manifest | None = None
) -> TokenizerSettings | None:
    """Reads the settings of a run, an original checkpoint or a Hugging Face model.

    Original checkpoints do not record lower-casing. It is assumed, unless a token has an upper-case
    letter.

    Args:
      directory: the directory of the files.
      manifest: the manifest of a run's data, which records the settings.

    Returns:
      The settings; None if the directory has neither vocab.txt nor tokenizer.json.

    Raises:
      UserError: a file is damaged.
    """
    paths = (directory / VOCABULARY_NAME, directory / TOKENIZER_NAME)
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    tokens, added_tokens, num_word_pieces = _read_vocabulary(path)
    settings = vars(manifest) if manifest else _huggingface_settings(directory)
    pre_tokenizer = manifest.pre_tokenizer if manifest else settings.get("pre_tokenizer")
    do_lower_case = settings.get("do_lower_case")
    are_guessed = do_lower_case is None
    if do_lower_case is None:
        do_lower_case = looks_lower_cased(tokens[:num_word_pieces])
    return TokenizerSettings(
        vocabulary=path,
        tokens=tokens,
        do_lower_case=do_lower_case,
        strip_accents=settings.get("strip_accents"),
        tokenize_chinese_chars=settings.get("tokenize_chinese_chars", not pre_tokenizer)
        is not False,
        # The special tokens are added by whoever writes a tokenizer.
        added_tokens={
            i: token
            for i, token in added_tokens.items()
            if token.content == tokens[i] and token.content not in SPECIAL_TOKENS
        },
        num_word_pieces=num_word_pieces,
        are_guessed=are_guessed,
        pre_tokenizer=pre_tokenizer,
    )


def looks_lower_cased(tokens: Iterable[str]) -> bool:
    """Whether no token but special ones has an upper-case letter."""
    return not any(token.lower() != token for token in tokens if not _is_special(token))


def read_tokens(path: Location) -> list[str]:
    """The tokens of a vocab.txt or tokenizer.json, in the order of their ids.

    Tokens that were added to a Hugging Face vocabulary are in other files beside it.

    Raises:
      UserError: a file cannot be read, or is not a WordPiece vocabulary.
    """
    return _read_vocabulary(path)[0]


def _read_vocabulary(path: Location) -> tuple[list[str], dict[int, AddedToken], int | None]:
    """The tokens of a vocab.txt or tokenizer.json, with the files beside it.

    Returns:
      All tokens; those that were added to a Hugging Face vocabulary, by id; and the number of those
      that WordPiece finds, if the others come after them.
    """
    added: dict[int, AddedToken] = {}
    if (beside := path.with_name(ADDED_TOKENS_NAME)).exists():
        added |= {i: AddedToken(token) for token, i in _read_json(beside, dict[str, int]).items()}
    if (beside := path.with_name(TOKENIZER_CONFIG_NAME)).exists():
        added |= _read_json(beside, _Config).get("added_tokens_decoder", {})
    pieces: dict[int, str] = {}
    if (beside := path.with_name(TOKENIZER_NAME)).exists():
        pieces, added_there = _read_tokenizer_json(beside)
        added |= added_there
    lines: dict[int, str] = {}
    if path.name != TOKENIZER_NAME:
        try:
            lines = dict(enumerate(tokens_of(path.read_bytes())))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the vocabulary {path}: {error}") from error
    contents = {i: token.content for i, token in added.items()}
    tokens = in_order(contents | pieces | lines, path)
    # A tokenizer.json decides, because an exported vocab.txt holds the added tokens, too.
    found = pieces or lines
    comes_first = max(found, default=0) < len(found) < len(tokens)
    return tokens, added, len(found) if comes_first else None


def write_vocabulary(directory: Path, tokenizer: TokenizerSettings) -> None:
    """Writes `vocab.txt`, as a copy of the BERT's own if it has one."""
    path = directory / VOCABULARY_NAME
    if tokenizer.vocabulary.name == VOCABULARY_NAME:
        path.write_bytes(tokenizer.vocabulary.read_bytes())
        if read_tokens(path) == tokenizer.tokens:
            return
    # No vocab.txt holds the tokens that were added later.
    path.write_text("\n".join(tokenizer.tokens) + "\n", "utf-8")


def write_tokenizer(directory: Path, tokenizer: TokenizerSettings, max_length: int) -> None:
    """Writes the files that `AutoTokenizer` opens.

    They are `vocab.txt`, `tokenizer_config.json` and, unless a pre-tokenizer finds the words,
    `tokenizer.json`.

    Args:
      directory: the directory to write to.
      tokenizer: the settings, whose tokens include the five special ones.
      max_length: the longest sequence that the model reads.

    Raises:
      UserError: a special token is missing.
    """
    for token in SPECIAL_TOKENS:
        if token not in tokenizer.tokens:
            raise UserError(f"{tokenizer.vocabulary} has no {token}, which BERT's tokenizer needs")
    write_vocabulary(directory, tokenizer)
    if tokenizer.pre_tokenizer:
        name, arguments = _JAPANESE_CLASS, _japanese_arguments(tokenizer, tokenizer.pre_tokenizer)
    else:
        content = _backend(tokenizer).to_str(pretty=True)
        (directory / TOKENIZER_NAME).write_text(content, "utf-8")
        # transformers 5 drops all of tokenizer.json but the vocabulary for a BertTokenizer, and so
        # makes [UNK] of words of 101 to 200 characters. This class keeps it.
        name = "PreTrainedTokenizerFast"
        arguments = {
            "do_lower_case": tokenizer.do_lower_case,
            "strip_accents": tokenizer.strip_accents,
            "tokenize_chinese_chars": tokenizer.tokenize_chinese_chars,
        }
    settings = {
        "tokenizer_class": name,
        # Without it, a BertJapaneseTokenizer of transformers 5 leaves out which text is the second.
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **arguments,
        "model_max_length": max_length,
        # "pad_token": "[PAD]" and so on.
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / TOKENIZER_CONFIG_NAME).write_text(text, "utf-8")


def _japanese_arguments(
    tokenizer: TokenizerSettings, pre_tokenizer: PreTokenizer
) -> dict[str, Any]:
    """What a tokenizer_config.json tells the class that finds the words of Japanese text."""
    word_tokenizer, arguments = _JAPANESE_ARGUMENTS[pre_tokenizer]
    added = {str(i): vars(token) for i, token in sorted(tokenizer.added_tokens.items())}
    return {
        "do_lower_case": tokenizer.do_lower_case,
        "word_tokenizer_type": word_tokenizer,
        f"{word_tokenizer}_kwargs": arguments,
        "subword_tokenizer_type": "wordpiece",
        **({"added_tokens_decoder": added} if added else {}),
    }


def _pre_tokenizer_of(config: _Config) -> PreTokenizer | None:
    """What finds the words of a `BertJapaneseTokenizer`, if it is one of ours."""
    name, subwords = config.get("word_tokenizer_type"), config.get("subword_tokenizer_type")
    given = (config.get("mecab_kwargs") if name == "mecab" else config.get("sudachi_kwargs")) or {}
    for pre_tokenizer, (word_tokenizer, arguments) in _JAPANESE_ARGUMENTS.items():
        if (name, subwords or "wordpiece") == (word_tokenizer, "wordpiece") and _without_defaults(
            given
        ) == _without_defaults(arguments):
            return pre_tokenizer
    return None


def _without_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    missing = object()
    return {
        name: value
        for name, value in arguments.items()
        if _JAPANESE_DEFAULTS.get(name, missing) != value
    }


def _backend(tokenizer: TokenizerSettings) -> "Tokenizer":
    """A tokenizer of the package `tokenizers` that follows the original's rules."""
    import tokenizers as hf  # noqa: PLC0415 - an extra

    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    pieces = {token: i for i, token in enumerate(tokenizer.tokens[: tokenizer.num_word_pieces])}
    backend = hf.Tokenizer(
        hf.models.WordPiece(
            pieces, unk_token="[UNK]", max_input_chars_per_word=MAX_CHARACTERS_PER_WORD
        )
    )
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.normalizer = hf.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=tokenizer.tokenize_chinese_chars,
        strip_accents=tokenizer.strip_accents,
        lowercase=tokenizer.do_lower_case,
    )
    for _, added in sorted(tokenizer.added_tokens.items()):
        backend.add_tokens([hf.AddedToken(**vars(added))])
    backend.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = hf.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.decoder = hf.decoders.WordPiece(prefix="##")
    return backend


def _huggingface_settings(directory: Location) -> Mapping[str, Any]:
    """The settings in a Hugging Face directory; none for any other directory."""
    path, config_path = directory / TOKENIZER_NAME, directory / TOKENIZER_CONFIG_NAME
    normalizer = _read_json(path, _AnyTokenizer).normalizer if path.exists() else None
    config = _read_json(config_path, _Config) if config_path.exists() else _Config()
    name = config.get("tokenizer_class") or "BertTokenizer"
    if name == _JAPANESE_CLASS or "word_tokenizer_type" in config:
        if pre_tokenizer := _pre_tokenizer_of(config):
            return {
                "do_lower_case": config.get("do_lower_case") or False,
                "strip_accents": False,
                "pre_tokenizer": pre_tokenizer,
            }
        name, config = _JAPANESE_CLASS, _Config()  # it says nothing of any other tokenizer
    if name not in _KNOWN_CLASSES:
        logging.warning("the tokenizer of %s is a %r: only its vocabulary is used", directory, name)
    of_normalizer = _Config()
    if normalizer:
        of_normalizer = _Config(
            do_lower_case=normalizer.lowercase,
            strip_accents=normalizer.strip_accents,
            tokenize_chinese_chars=normalizer.handle_chinese_chars,
        )
    return of_normalizer | config


def _is_special(token: str) -> bool:
    """Whether it is like [CLS] or [unused5], or like <S>, which uncased vocabularies have too."""
    return token[:1] + token[-1:] in ("[]", "<>")


def _read_tokenizer_json(path: Location) -> tuple[dict[int, str], dict[int, AddedToken]]:
    try:
        return read_tokenizer_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _read_json(path: Location, content_type: type[T]) -> T:
    try:
        return read_foreign_json(path, content_type)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
