"""A trained BERT with new words and more positions, for a run to start from.

New words stand in place of `[unused…]` tokens or behind all old ones, so that no other id changes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from modeling.bert import truncated_normal
from modeling.checkpoints.pretrained import (
    Pretrained,
    check_config,
    check_vocabulary,
    different_token,
    differing_ids,
)
from modeling.checkpoints.run_checkpoints import Extension
from modeling.checkpoints.tokenizer_settings import TokenizerSettings, read_tokens
from modeling.config import TABLE_OF_POSITIONS, TABLES_OF_WORDS, BertConfig
from modeling.training_options import NewEmbeddings
from pipeline.errors import UserError, listed
from pipeline.manifest import VOCABULARY_NAME, DataSet
from pipeline.tokenization import WordpieceTokenizer

_UNUSED, _UNKNOWN, _INSIDE = "[unused", "[UNK]", "##"


def find_new_words(pretrained: Pretrained, data_set: DataSet) -> list[int]:
    """The ids of those tokens of a data set that a BERT does not have, in ascending order.

    Logs a warning if the BERT has no vocabulary, but enough rows.

    Raises:
      UserError: the vocabularies differ in another way than by new words, the BERT has no
        vocabulary and too few rows, or a vocabulary cannot be read.
    """
    vocabulary, old = data_set.vocabulary, pretrained.tokenizer
    if old is None:
        rows, tokens = pretrained.config.vocab_size, data_set.manifest.vocab_size
        if tokens > rows:
            raise UserError(
                f"{pretrained.source} has no vocabulary, and rows for {rows:,} tokens, not for the "
                f"{tokens:,} of {vocabulary}: copy the vocab.txt that it was trained with to "
                f"{pretrained.directory / VOCABULARY_NAME}, which tells the new words from the old"
            )
        check_vocabulary(pretrained, vocabulary)
        return []
    old_ids = {token: number for number, token in enumerate(old.tokens)}
    found: dict[str, int] = {}
    for number, token, trained in differing_ids(old, vocabulary):
        is_free = trained is None or trained.startswith(_UNUSED)
        if token is None or not is_free:
            raise different_token(old, vocabulary, number, token, trained)
        if token in old_ids:
            raise UserError(
                f"id {number} is {token!r} in {vocabulary}, but that is id {old_ids[token]} in "
                f"{old.vocabulary}: a new word must not be an old one, or ids of old text change"
            )
        if token in found:
            raise UserError(
                f"ids {found[token]} and {number} are both {token!r} in {vocabulary}: a new word "
                "has one id"
            )
        found[token] = number
    return list(found.values())


def extended(
    pretrained: Pretrained,
    data_set: DataSet,
    new_words: list[int],
    config: BertConfig,
    new_embeddings: NewEmbeddings = NewEmbeddings.MEAN,
    repeats_positions: bool = False,
    seed: int = 0,
) -> Pretrained:
    """The BERT with rows for the new words of a data set, and with the positions of a config.

    Args:
      pretrained: the BERT.
      data_set: the data of the run that starts from it.
      new_words: what `find_new_words` has found.
      config: the run's model.
      new_embeddings: how the rows of new words begin.
      repeats_positions: whether the positions of the BERT are repeated if the model has more: row p
        begins as row p modulo the old number.
      seed: seeds random rows.

    Raises:
      UserError: more positions are needed, but not repeated, or the BERT's vocabulary has no
        [UNK].
    """
    if new_words and pretrained.tokenizer:
        pretrained = _with_new_words(
            pretrained, pretrained.tokenizer, data_set, new_words, config, new_embeddings, seed
        )
    positions, longest = config.max_position_embeddings, data_set.manifest.max_seq_length
    found = pretrained.config.max_position_embeddings
    if repeats_positions and positions > found:
        pretrained = _with_positions(pretrained, positions)
    elif repeats_positions:
        logging.info("no positions are repeated: %s has %d", pretrained.source, found)
    elif max(positions, longest) > found:
        # A model that differs elsewhere, too, is another one.
        check_config(pretrained, dataclasses.replace(config, max_position_embeddings=found))
        instances = f"the instances of {data_set.directory} have"
        raise UserError(
            f"{'the model has' if positions > found else instances} {max(positions, longest)} "
            f"positions, but {pretrained.source} has max_position_embeddings {found}: "
            "--init_positions=repeat repeats those"
        )
    return pretrained


def _with_new_words(
    pretrained: Pretrained,
    old: TokenizerSettings,
    data_set: DataSet,
    new_words: list[int],
    config: BertConfig,
    new_embeddings: NewEmbeddings,
    seed: int,
) -> Pretrained:
    tokens, old_config = read_tokens(data_set.vocabulary), pretrained.config
    vocab_size = max(config.vocab_size, old_config.vocab_size, len(tokens))
    # Behind the words are rows of no word, if the config asks for more rows.
    new_rows = [*new_words, *range(max(len(tokens), old_config.vocab_size), vocab_size)]
    pieces = _old_pieces([tokens[number] for number in new_words], old)
    draw = truncated_normal(np.random.default_rng(seed), old_config.initializer_range)
    weights = dict(pretrained.weights)
    for name in TABLES_OF_WORDS:
        if name not in weights:
            continue
        table = weights[name]
        more = (vocab_size - len(table), *table.shape[1:])
        grown = np.concatenate([table, np.zeros(more, np.float32)])
        # A new model's bias is 0.
        grown[new_rows] = draw((len(new_rows), *table.shape[1:])) if table.ndim > 1 else 0
        if new_embeddings == NewEmbeddings.MEAN:
            grown[new_words] = _means(table, pieces)
        weights[name] = grown
    extension = Extension(
        new_rows=_ranges(new_rows),
        num_words=len(new_words),
        num_replaced=sum(number < len(old.tokens) for number in new_words),
        new_embeddings=new_embeddings,
    )
    return dataclasses.replace(
        pretrained,
        config=dataclasses.replace(old_config, vocab_size=vocab_size),
        weights=weights,
        tokenizer=dataclasses.replace(
            old,
            vocabulary=data_set.vocabulary,
            tokens=tokens,
            added_tokens={},
            num_word_pieces=None,
        ),
        extension=extension,
    )


def _with_positions(pretrained: Pretrained, positions: int) -> Pretrained:
    table = pretrained.weights[TABLE_OF_POSITIONS]
    repeated = table[np.arange(positions) % len(table)]
    extension = pretrained.extension or Extension()
    return dataclasses.replace(
        pretrained,
        config=dataclasses.replace(pretrained.config, max_position_embeddings=positions),
        weights=pretrained.weights | {TABLE_OF_POSITIONS: repeated},
        extension=dataclasses.replace(extension, old_positions=len(table)),
    )


def _old_pieces(words: Sequence[str], old: TokenizerSettings) -> list[list[int]]:
    """The ids of the pieces that a BERT has for each word; of [UNK] alone, if it has none.

    A word that begins with `##` continues another one. Its pieces do so, too: `##ology` may become
    `##olo ##gy`.

    Raises:
      UserError: the vocabulary has no [UNK].
    """
    if _UNKNOWN not in old.tokens:
        raise UserError(f"{old.vocabulary} has no {_UNKNOWN}: it is not the vocabulary of a BERT")
    unknown = old.tokens.index(_UNKNOWN)
    whole = {token: number for number, token in enumerate(old.tokens[: old.num_word_pieces])}
    inside = {token: number for token, number in whole.items() if token.startswith(_INSIDE)}
    # The first piece of what continues a word is looked up without its mark.
    inside |= {token.removeprefix(_INSIDE): number for token, number in inside.items()}
    whole_words, continuing = WordpieceTokenizer(whole), WordpieceTokenizer(inside)
    pieces = []
    for word in words:
        continues = word.startswith(_INSIDE)
        ids, tokenizer = (inside, continuing) if continues else (whole, whole_words)
        names = tokenizer.pieces_of_word(word.removeprefix(_INSIDE))
        pieces.append([ids.get(name, unknown) for name in names])
    if lost := [word for word, ids in zip(words, pieces, strict=True) if ids == [unknown]]:
        logging.warning(
            "%s of the new words are %s in %s, so they begin as it: %s",
            f"{len(lost):,}",
            _UNKNOWN,
            old.vocabulary,
            listed(lost),
        )
    return pieces


def _means(table: np.ndarray, pieces: list[list[int]]) -> np.ndarray:
    """The mean of each word's rows of a table, summed in float64."""
    lengths = np.array([len(each) for each in pieces])
    starts = np.cumsum(lengths) - lengths
    sums = np.add.reduceat(table[np.concatenate(pieces)].astype(np.float64), starts, axis=0)
    return (sums.T / lengths).T.astype(np.float32)


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges: the first, and the one after the last."""
    cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(np.array(numbers), cuts)]
