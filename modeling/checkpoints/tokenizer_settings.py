"""How a trained BERT's text becomes ids: read beside its weights, written for `transformers`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from pipeline.errors import UserError
from pipeline.manifest import VOCABULARY_NAME, Manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
# As in the original; a longer word is [UNK].
_MAX_CHARACTERS_PER_WORD = 200
_KNOWN_CLASSES = (
    "BertTokenizer BertTokenizerFast BertTokenizerLegacy PreTrainedTokenizerFast TokenizersBackend"
).split()
_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class TokenizerSettings:
    """The tokens that a BERT knows, and what is done to a text before it is cut into them.

    Attributes:
      vocabulary: the vocab.txt or tokenizer.json that holds the tokens.
      tokens: in the order of their ids.
      do_lower_case: whether text is lower-cased.
      strip_accents: whether accents are stripped; None: when lower-casing.
      tokenize_chinese_chars: whether each ideograph is a word, as in the original.
    """

    vocabulary: Path
    tokens: list[str]
    do_lower_case: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool = True


def read_tokenizer_settings(
    directory: Path, manifest: Manifest | None = None
) -> TokenizerSettings | None:
    """Of the directory of a run, an original checkpoint or a Hugging Face model.

    Where nothing says whether text is lower-cased, as with the original's checkpoints, the tokens tell:
    it is, unless one of them has an upper-case letter.

    Args:
      directory: where the files are.
      manifest: of a run's data, which knows.

    Returns:
      None: the directory has neither vocab.txt nor tokenizer.json.

    Raises:
      UserError: a file cannot be understood.
    """
    paths = (directory / VOCABULARY_NAME, directory / TOKENIZER_NAME)
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    tokens = read_tokens(path)
    settings = vars(manifest) if manifest else _huggingface_settings(directory)
    do_lower_case = settings.get("do_lower_case")
    if not isinstance(do_lower_case, bool):
        do_lower_case = not any(
            token.lower() != token for token in tokens if not _is_special(token)
        )
    return TokenizerSettings(
        vocabulary=path,
        tokens=tokens,
        do_lower_case=do_lower_case,
        strip_accents=settings.get("strip_accents"),
        tokenize_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
    )


def read_tokens(path: Path) -> list[str]:
    """The tokens of a vocab.txt or tokenizer.json, in the order of their ids.

    Tokens that were added to a Hugging Face vocabulary are told in the tokenizer.json; they come last.

    Raises:
      UserError: the file cannot be read, or is no WordPiece vocabulary.
    """
    if path.name == TOKENIZER_NAME:
        return _tokens_of_huggingface(path, [])
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the vocabulary {path}: {error}") from error
    tokens = [line.strip() for line in text.removesuffix("\n").split("\n")]
    beside = path.with_name(TOKENIZER_NAME)
    return _tokens_of_huggingface(beside, tokens) if beside.exists() else tokens


def _tokens_of_huggingface(path: Path, first: list[str]) -> list[str]:
    """The tokens of a tokenizer.json, of which the first are known."""
    content = _read_json(path)
    try:
        if content["model"].get("type", "WordPiece") != "WordPiece":
            raise UserError(f"{path} is of the type {content['model']['type']}, not WordPiece")
        tokens = {i: token for token, i in content["model"]["vocab"].items()}
        tokens |= {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has no WordPiece vocabulary: {error!r}") from error
    tokens |= dict(enumerate(first))
    if sorted(tokens) != list(range(len(tokens))):
        raise UserError(
            f"{path} leaves out ids between those of its tokens: copy the {VOCABULARY_NAME} beside it"
        )
    return [tokens[i] for i in range(len(tokens))]


def write_vocabulary(directory: Path, tokenizer: TokenizerSettings) -> None:
    """Writes `vocab.txt`, byte by byte that of the data where there is one."""
    path = directory / VOCABULARY_NAME
    if tokenizer.vocabulary.name == VOCABULARY_NAME:
        shutil.copyfile(tokenizer.vocabulary, path)
        if read_tokens(path) == tokenizer.tokens:
            return
    # Tokens that were added later stand in no vocab.txt yet.
    path.write_text("\n".join(tokenizer.tokens) + "\n", "utf-8")


def write_tokenizer(directory: Path, tokenizer: TokenizerSettings, max_length: int) -> None:
    """Writes what `AutoTokenizer` opens: `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`.

    Args:
      directory: where they go.
      tokenizer: must have the five special tokens.
      max_length: the longest sequence that the model reads.

    Raises:
      UserError: a special token is missing.
    """
    write_vocabulary(directory, tokenizer)
    content = _backend(tokenizer).to_str(pretty=True)
    (directory / TOKENIZER_NAME).write_text(content, "utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.do_lower_case,
        "strip_accents": tokenizer.strip_accents,
        "tokenize_chinese_chars": tokenizer.tokenize_chinese_chars,
        "model_max_length": max_length,
        **_SPECIAL_TOKENS,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / TOKENIZER_CONFIG_NAME).write_text(text, "utf-8")


def _backend(tokenizer: TokenizerSettings) -> "Tokenizer":
    """The tokenizer of the package `tokenizers` that follows the original's rules."""
    import tokenizers as hf  # noqa: PLC0415 - an extra

    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    for token in _SPECIAL_TOKENS.values():
        if token not in ids:
            raise UserError(f"{tokenizer.vocabulary} has no {token}, which BERT's tokenizer needs")
    backend = hf.Tokenizer(
        hf.models.WordPiece(
            ids, unk_token="[UNK]", max_input_chars_per_word=_MAX_CHARACTERS_PER_WORD
        )
    )
    backend.add_special_tokens(list(_SPECIAL_TOKENS.values()))
    backend.normalizer = hf.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=tokenizer.tokenize_chinese_chars,
        strip_accents=tokenizer.strip_accents,
        lowercase=tokenizer.do_lower_case,
    )
    backend.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = hf.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.decoder = hf.decoders.WordPiece(prefix="##")
    return backend


def _huggingface_settings(directory: Path) -> dict[str, Any]:
    """What a Hugging Face directory says of its tokenizer; nothing of any other directory."""
    normalizer = _read_json(directory / TOKENIZER_NAME).get("normalizer") or {}
    of_normalizer = {
        "do_lower_case": normalizer.get("lowercase"),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars"),
    }
    settings = of_normalizer | _read_json(directory / TOKENIZER_CONFIG_NAME)
    name = settings.get("tokenizer_class", "BertTokenizer")
    if name not in _KNOWN_CLASSES:
        logging.warning(
            "the tokenizer of %s is a %s, of which only the vocabulary is known here",
            directory,
            name,
        )
    return settings


def _is_special(token: str) -> bool:
    """Whether it is [CLS], [unused5] or the like, or <S>, which stands in lower-cased vocabularies."""
    return token[:1] + token[-1:] in ("[]", "<>")


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file; nothing where there is no such file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return content if isinstance(content, dict) else {}
