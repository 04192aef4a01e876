import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.piece_offsets import PieceOffsets
from pipeline.tokenization import FullTokenizer

# Control characters, white space of all kinds, letters that become several or none, punctuation
# that is hidden in others (U+037E, U+1FEF), ideographs, and half of a surrogate pair.
TRICKY = (
    "\0\t\n\r\v\f\x1c\x85\xa0\xad\u200b\u2028\u3000\ufeff\ufffd \ud800aAéİßΣσ\u0301#[_'。，·€"
    "한が豈一我用\u3400\U00020000\u037e\u1fef\u2000\u1fc1ก็ำ😀"
)
TEXTS = st.lists(st.text(st.sampled_from(TRICKY) | st.characters(), max_size=40), max_size=3)


@pytest.fixture(scope="module", params=[(True, None), (False, None), (True, False), (False, True)])
def tokenizer(request, write_vocabulary):
    letters = "abcdefghijklmnopqrstuvwxyzABCσกは"
    pieces = [*letters, *(f"##{letter}" for letter in letters), "ss", "##ss", *"我用。，#[_';·"]
    return FullTokenizer(write_vocabulary(*pieces), *request.param)


@pytest.fixture(scope="module")
def piece_offsets(tokenizer):
    return PieceOffsets(tokenizer)


def offsets_one_by_one(tokenizer, text):
    """The same, character by character and token by token."""
    basic = tokenizer.basic_tokenizer
    origins = [i for i, each in enumerate(text) for _ in "".join(basic.tokenize(each))]
    offsets, end = [], 0
    for token in basic.tokenize(text):
        start, end = end, end + len(token)
        for piece in tokenizer.wordpiece_tokenizer.tokenize(token):
            offsets.append(origins[start])
            start += len(piece.removeprefix("##"))
    assert end == len(origins)
    return offsets


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_pieces_begin_where_their_characters_are(tokenizer, piece_offsets, sentences):
    text = "\n".join(sentences)
    ids, _ = tokenizer.encode_sentences(sentences)
    found = piece_offsets(text, ids)
    assert found.tolist() == offsets_one_by_one(tokenizer, text)
    assert (np.diff(found) >= 0).all()


def test_offsets_count_characters_of_the_text_as_it_was(write_vocabulary):
    tokenizer = FullTokenizer(write_vocabulary("uber", "##all", "i", "##st", "!", "漢"))
    text = "  U\u0308ber\u200ball  \u0130st!漢 x"
    assert tokenizer.tokenize(text) == ["uber", "##all", "i", "##st", "!", "漢", "[UNK]"]
    found = PieceOffsets(tokenizer)(text, tokenizer.encode(text)).tolist()
    assert found == [2, 8, 13, 14, 16, 17, 19]


@pytest.mark.parametrize("text", ["", " \n", "\u200b"])
def test_text_without_pieces_has_no_offsets(text, tokenizer, piece_offsets):
    assert piece_offsets(text, tokenizer.encode(text)).tolist() == []


def test_an_unknown_word_of_any_length_is_one_piece(write_vocabulary):
    tokenizer = FullTokenizer(write_vocabulary("a"))
    text = f"a{'漢x' * 2} {'é' * 300} a"
    found = PieceOffsets(tokenizer)(text, tokenizer.encode(text))
    assert found.tolist() == [0, 1, 2, 3, 4, 6, 307]
