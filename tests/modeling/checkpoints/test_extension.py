"""A BERT gets rows for new words, and more positions."""

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling.checkpoints.extension import extended, find_new_words
from modeling.checkpoints.pretrained import Pretrained, check_config
from modeling.checkpoints.run_checkpoints import Extension
from modeling.checkpoints.tokenizer_settings import TokenizerSettings
from modeling.config import BertConfig, weight_shapes
from modeling.training_options import NewEmbeddings
from pipeline.errors import UserError
from pipeline.manifest import DataSet, Manifest
from pipeline.tokenization import FullTokenizer

pytestmark = pytest.mark.no_backend

WORDS, BIAS = "bert/embeddings/word_embeddings", "cls/predictions/output_bias"
POSITIONS = "bert/embeddings/position_embeddings"
SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]"
OLD = f"{SPECIAL} [unused0] [unused1] heart card ##io ##o ##logy ##lo ##gy c".split()


@pytest.fixture
def make_data(tmp_path):
    """A function that makes a data set of a vocabulary, without instances."""

    def make(tokens, max_seq_length=8):
        (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
        manifest = Manifest(max_seq_length, 1, True, len(tokens), "", {}, {}, [])
        return DataSet(tmp_path, manifest)

    return make


def bert(tokens, rows=None, positions=8, **settings):
    """A BERT of random weights with a vocabulary."""
    config = BertConfig(
        vocab_size=rows or len(tokens),
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=positions,
    )
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in weight_shapes(config).items()
    }
    path = settings.pop("directory", None)
    tokenizer = TokenizerSettings(path, list(tokens), True, None, **settings)
    return Pretrained("an old BERT", path, config, weights, [], tokenizer)


def with_config(pretrained, **fields):
    return dataclasses.replace(pretrained.config, **fields)


def grow(old, data, *how, **fields):
    """The BERT with what the data ask for."""
    new_words = find_new_words(old, data)
    sizes = {"vocab_size": max(old.config.vocab_size, data.manifest.vocab_size), **fields}
    config = with_config(old, **sizes)
    new = extended(old, data, new_words, config, *how)
    check_config(new, config)
    return new


def replaced(tokens, **places):
    return [places.get(token.strip("[]"), token) for token in tokens]


def test_new_rows_are_the_means_of_the_pieces_that_they_replace(make_data):
    old = bert(OLD)
    pieces = {
        "cardiology": ["card", "##io", "##logy"],
        # What continues a word has no piece that begins one: `c` and `card` are not used.
        "##ologylo": ["##o", "##logy", "##lo"],
        "hearts": ["[UNK]"],
    }
    first, *behind = pieces
    new = grow(old, make_data([*replaced(OLD, unused1=first), *behind]))
    for number, word in zip([6, 15, 16], pieces, strict=True):
        ids = [OLD.index(piece) for piece in pieces[word]]
        for name in (WORDS, BIAS):
            expected = old.weights[name][ids].mean(axis=0)
            np.testing.assert_allclose(new.weights[name][number], expected, rtol=1e-6)
    kept = [i for i in range(len(OLD)) if i != 6]
    for name, values in old.weights.items():
        rows = kept if name in (WORDS, BIAS) else slice(None)
        np.testing.assert_array_equal(new.weights[name][rows], values[rows], name)
    assert new.config == with_config(old, vocab_size=17)
    assert new.tokenizer.tokens[6] == "cardiology"
    assert new.extension == Extension([(6, 7), (15, 17)], 3, 1, NewEmbeddings.MEAN)
    assert old.weights[WORDS].shape == (15, 4)


@given(
    old_words=st.sets(st.text("abc", min_size=1, max_size=3), max_size=8),
    old_pieces=st.sets(st.text("abc", min_size=1, max_size=3), max_size=8),
    new=st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=6, unique=True),
)
def test_new_words_begin_as_the_tokenizer_splits_them(tmp_path_factory, old_words, old_pieces, new):
    directory = tmp_path_factory.mktemp("vocabulary")
    tokens = [*SPECIAL.split(), *sorted(old_words), *(f"##{each}" for each in sorted(old_pieces))]
    (directory / "old.txt").write_text("\n".join(tokens) + "\n")
    new = [word for word in new if word not in old_words]
    (directory / "vocab.txt").write_text("\n".join([*tokens, *new]) + "\n")
    data = DataSet(directory, Manifest(8, 1, True, len(tokens) + len(new), "", {}, {}, []))
    old = bert(tokens, directory=directory / "old.txt")
    grown = grow(old, data)
    tokenizer = FullTokenizer(directory / "old.txt")
    for number, word in enumerate(new, len(tokens)):
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
        expected = old.weights[WORDS][ids].mean(axis=0)
        np.testing.assert_allclose(grown.weights[WORDS][number], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(grown.weights[WORDS][: len(tokens)], old.weights[WORDS])


def test_words_without_pieces_are_named(make_data, caplog):
    words = [f"x{i}" for i in range(10)]
    grow(bert(OLD), make_data([*OLD, *words, "cardio"]))
    (message,) = caplog.messages
    assert message.startswith("10 of the new words are [UNK] in ")
    assert message.endswith("so they begin as it: x0, x1, x2, x3, x4, x5, x6, x7 and 2 more")


def test_random_rows_are_those_of_a_new_model_and_follow_from_the_seed(make_data):
    old, data = bert(OLD), make_data([*OLD, *(f"x{i}" for i in range(500))])
    first, again, other = (
        grow(old, data, NewEmbeddings.RANDOM, False, seed).weights for seed in (1, 1, 2)
    )
    new = first[WORDS][len(OLD) :]
    assert np.abs(new).max() <= 2 * old.config.initializer_range
    assert new.std() == pytest.approx(0.88 * old.config.initializer_range, rel=0.05)
    np.testing.assert_array_equal(first[BIAS][len(OLD) :], 0)
    np.testing.assert_array_equal(first[WORDS], again[WORDS])
    assert (new != other[WORDS][len(OLD) :]).all()
    for name in (WORDS, BIAS):
        np.testing.assert_array_equal(first[name][: len(OLD)], old.weights[name])


def test_rows_behind_the_old_words_are_used_first(make_data):
    """Checkpoints may have more rows than words, and so may the model."""
    old = bert(OLD, rows=24)
    new = grow(old, make_data([*OLD, "cardio", "hearto"]))
    assert new.config == old.config
    assert new.extension.new_rows == [(15, 17)]
    np.testing.assert_array_equal(new.weights[WORDS][17:], old.weights[WORDS][17:])
    wider = grow(old, make_data([*OLD, "cardio"]), vocab_size=32)
    assert wider.extension.new_rows == [(15, 16), (24, 32)]
    assert wider.extension.num_words == 1
    np.testing.assert_array_equal(wider.weights[WORDS][16:24], old.weights[WORDS][16:])
    np.testing.assert_array_equal(wider.weights[BIAS][24:], 0)
    assert len(np.unique(wider.weights[WORDS][24:])) == 32


def test_a_bert_without_masked_lm_head_is_extended(make_data):
    old = bert(OLD)
    encoder = {n: v for n, v in old.weights.items() if n.startswith("bert/")}
    new = grow(dataclasses.replace(old, weights=encoder), make_data([*OLD, "cardio"]))
    assert new.weights.keys() == encoder.keys()


def test_added_tokens_are_old_words_but_no_pieces(make_data):
    """A Hugging Face tokenizer finds them before it splits words."""
    old = bert([*OLD, "cardio"], num_word_pieces=len(OLD))
    new = grow(old, make_data([*OLD, "cardio", "cardiology"]))
    ids = [OLD.index(piece) for piece in ("card", "##io", "##logy")]
    expected = old.weights[WORDS][ids].mean(axis=0)
    np.testing.assert_allclose(new.weights[WORDS][16], expected, rtol=1e-6)
    assert new.tokenizer.num_word_pieces is None


def test_the_same_vocabulary_changes_nothing(make_data):
    old = bert(OLD)
    assert find_new_words(old, make_data(OLD)) == []
    assert extended(old, make_data(OLD), [], old.config) is old


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (OLD[:-1], "id 14 is missing in .*, but 'c' in .*generate the data with --vocab_file="),
        (["x", *OLD[1:]], "id 0 is 'x' in .*, but '\\[PAD\\]' in .*different tokens"),
        ([*OLD[:7], "x", *OLD[8:], "new"], "id 7 is 'x' in .*, but 'heart' in"),
        ([*OLD, "heart"], "id 15 is 'heart' in .*, but that is id 7 in .*must not be an old one"),
        (replaced(OLD, unused0="card"), "id 5 is 'card' in .*, but that is id 8 in"),
        ([*replaced(OLD, unused1="new"), "x", "new"], "ids 6 and 16 are both 'new' in .*one id"),
    ],
)
def test_any_other_difference_is_an_error(make_data, tokens, problem):
    with pytest.raises(UserError, match=problem):
        find_new_words(bert(OLD), make_data(tokens))


def test_a_bert_without_vocabulary_has_no_new_words(make_data, tmp_path, caplog):
    old = dataclasses.replace(bert(OLD), tokenizer=None, directory=tmp_path / "bert")
    with pytest.raises(UserError) as raised:
        find_new_words(old, make_data([*OLD, "cardio"]))
    for part in ("has no vocabulary", "15", "16", f"to {tmp_path / 'bert' / 'vocab.txt'}"):
        assert part in str(raised.value)
    assert find_new_words(old, make_data(OLD)) == []
    assert "an old BERT has no vocabulary" in caplog.text


def test_new_words_need_an_old_vocabulary_with_unk(make_data):
    tokens = ["[PAD]", "word"]
    with pytest.raises(UserError, match=r"has no \[UNK\]"):
        grow(bert(tokens), make_data([*tokens, "new"]))


@pytest.mark.parametrize("positions", [9, 16, 20])
def test_positions_are_repeated(make_data, positions):
    old = bert(OLD)
    data = make_data(OLD, max_seq_length=positions)
    new = grow(old, data, NewEmbeddings.MEAN, True, max_position_embeddings=positions)
    table = new.weights[POSITIONS]
    np.testing.assert_array_equal(table[:8], old.weights[POSITIONS])
    for p in range(positions):
        np.testing.assert_array_equal(table[p], old.weights[POSITIONS][p % 8])
    assert new.config == with_config(old, max_position_embeddings=positions)
    assert new.extension == Extension(old_positions=8)


@pytest.mark.parametrize(
    ("longest", "positions", "who"), [(9, 8, "the instances of"), (8, 9, "the model has 9")]
)
def test_more_positions_are_an_error_that_names_the_flag(make_data, longest, positions, who):
    old = bert(OLD)
    config = with_config(old, max_position_embeddings=positions)
    with pytest.raises(UserError, match="--init_positions=repeat") as raised:
        extended(old, make_data(OLD, longest), [], config)
    assert who in str(raised.value)
    assert "an old BERT has max_position_embeddings 8" in str(raised.value)


def test_enough_positions_are_not_repeated(make_data, caplog):
    old, data = bert(OLD), make_data(OLD)
    with caplog.at_level(logging.INFO, logger="absl"):
        assert extended(old, data, [], old.config, repeats_positions=True) is old
    assert caplog.messages == ["no positions are repeated: an old BERT has 8"]


def test_what_was_added_is_described(make_data):
    old = bert(OLD)
    data = make_data([*replaced(OLD, unused0="cardio"), "hearto"])
    new = grow(old, data, NewEmbeddings.RANDOM, True, max_position_embeddings=16)
    assert new.extension.describe(new.config) == {
        "new words": "2, of which 1 in place of [unused…] tokens; each began at random",
        "positions": "16, which began as 8, repeated",
    }
    np.testing.assert_array_equal(np.flatnonzero(new.extension.is_new(16)), [5, 15])
