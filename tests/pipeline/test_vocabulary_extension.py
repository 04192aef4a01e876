"""Tokens that extend a vocabulary: those that save most, counted as WordPiece counts."""

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import vocabulary_extension
from pipeline.errors import UserError
from pipeline.tokenization import BasicTokenizer, FullTokenizer, WordpieceTokenizer
from pipeline.vocabulary_extension import (
    LONGEST_NEW_TOKEN,
    MIN_SAVING,
    count_words,
    extend_vocabulary,
    new_tokens,
    tokens_and_unknown,
    with_new_tokens,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcd", *("##" + letter for letter in "abcd")]

words_of = st.dictionaries(st.text("abcd", min_size=1, max_size=9), st.integers(1, 9), max_size=9)
some_tokens = st.lists(
    st.tuples(st.booleans(), st.text("abcd", min_size=1, max_size=4)).map(
        lambda item: "##" * item[0] + item[1]
    ),
    max_size=8,
)


def cost(tokens, words):
    """The number of pieces of words whose characters all have tokens, by WordPiece itself."""
    tokenizer = WordpieceTokenizer({token: number for number, token in enumerate(tokens)})
    return sum(count * len(tokenizer.pieces_of_word(word)) for word, count in words.items())


def every_string(words):
    """All tokens that the words hold."""
    for word in words:
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                yield "##" * (start > 0) + word[start:end]


def best_by_trying_all(tokens, words):
    """The token that saves most, the first of equally good ones; None if it saves too little."""
    before = cost(tokens, words)
    savings = {
        token: before - cost([*tokens, token], words)
        for token in set(every_string(words)).difference(tokens)
    }
    best = min(savings, key=lambda token: (-savings[token], token), default=None)
    return best if best and savings[best] >= MIN_SAVING else None


@settings(max_examples=300, deadline=None)
@given(words=words_of, others=some_tokens)
@example(words={"abcd": 9, "xabc".replace("x", "d"): 1}, others=["##ab", "##bcd"])
@example(words={"aaaaaaaaa": 1, "dbabababa": 2}, others=["##ab", "##aaa"])
def test_each_choice_is_the_best_of_all_strings(words, others):
    tokens = [*SPECIAL, *LETTERS, *others]
    chosen = new_tokens(tokens, words, 6)
    for token in chosen:
        assert token == best_by_trying_all(tokens, words)
        tokens.append(token)
    assert len(chosen) == 6 or best_by_trying_all(tokens, words) is None


def test_what_a_token_lengthens_counts_against_it():
    """`##bcd` joins two pieces of three words, but makes four of the three of `abcdef`."""
    tokens = [*SPECIAL, *"axyz", "##b", "##cd", "##cdef", "##e", "##f"]
    words = {"xbcd": 1, "ybcd": 1, "zbcd": 1}
    assert new_tokens(tokens, words, 1) == ["##bcd"]
    longer = {"abcdef": 2}
    assert cost([*tokens, "##bcd"], longer) == cost(tokens, longer) + 2
    assert new_tokens(tokens, words | longer, 2) == ["abcdef", "##bcd"]


def test_equally_good_tokens_come_in_the_order_of_code_points_whatever_the_order_of_the_words():
    tokens = [*SPECIAL, *LETTERS]
    words = {"dbc": 2, "bad": 2, "cda": 2}
    expected = new_tokens(tokens, words, 3)
    assert expected == ["bad", "cda", "dbc"]
    assert new_tokens(tokens, dict(reversed(words.items())), 3) == expected
    assert new_tokens(tokens[::-1], words, 3) == expected


def test_a_token_must_save_two_pieces_of_the_text():
    tokens = [*SPECIAL, *LETTERS]
    assert new_tokens(tokens, {"ab": 1, "cd": 2, "d": 99}, 9) == ["cd"]
    assert new_tokens(tokens, {}, 9) == []


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ({"☃": 2, "€": 3}, ["€", "☃"]),
        ({"☃": 1}, []),  # it saves one piece, and two are needed
        ({"a☃": 5, "b☃": 4, "c☃": 4, "☃": 3}, ["##☃", "a☃", "b☃", "c☃", "☃"]),
        ({"☃☃☃": 1}, ["☃☃☃"]),
        ({"\ud800ab": 9, "a" * 201: 9}, []),  # no vocabulary can hold it; always [UNK]
    ],
)
def test_a_character_of_no_token_counts_as_two_pieces(words, chosen):
    assert new_tokens([*SPECIAL, *LETTERS], words, 9) == chosen


def test_no_new_token_is_longer_than_the_longest():
    tokens = [*SPECIAL, *LETTERS]
    word = "ab" * LONGEST_NEW_TOKEN
    chosen = new_tokens(tokens, {word: 3}, 99)
    assert max(len(token.removeprefix("##")) for token in chosen) == LONGEST_NEW_TOKEN
    assert cost([*tokens, *chosen], {word: 1}) == 2


@pytest.mark.parametrize(("bound", "most"), [("_MOST_WORDS", 2), ("_MOST_CHARACTERS", 9)])
def test_only_the_most_frequent_words_are_searched(monkeypatch, bound, most):
    words = {"abab": 9, "cdcdc": 8, "dddd": 7}
    assert new_tokens([*SPECIAL, *LETTERS], words, 9) == ["cdcdc", "abab", "dddd"]
    monkeypatch.setattr(vocabulary_extension, bound, most)
    assert new_tokens([*SPECIAL, *LETTERS], words, 9) == ["cdcdc", "abab"]


def test_a_long_search_shows_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr(vocabulary_extension, "_SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level("INFO", logger="absl"):
        new_tokens([*SPECIAL, *LETTERS], {"abab": 9, "cdcdc": 8}, 5)
    assert caplog.messages == ["1 of 5 new tokens are chosen", "2 of 5 new tokens are chosen"]


def test_few_candidates_at_a_time_save_as_much(data_samples, monkeypatch):
    """Those of a large text are found some thousands at a time; here, 1, 2, 4, and so on."""
    texts = (data_samples / "english.txt").read_text("utf-8").splitlines()
    words = count_words(texts, BasicTokenizer())
    characters = sorted(set("".join(words)))
    tokens = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    expected = new_tokens(tokens, words, 500)
    assert len(set(expected).difference(tokens)) == 500
    monkeypatch.setattr(vocabulary_extension, "_FEWEST_CANDIDATES", 1)
    monkeypatch.setattr(vocabulary_extension, "_CANDIDATES_PER_TOKEN", 0)
    found = new_tokens(tokens, words, 500)
    assert found[:250] == expected[:250]
    assert abs(cost([*tokens, *found], words) / cost([*tokens, *expected], words) - 1) < 1e-3


any_texts = st.lists(st.text(st.characters(exclude_categories=[])), max_size=5)
like_real_text = st.lists(
    st.text("aAbcé ж水☃Σς.,-#[]\n\u2028\x00\x1c\x85\u00a0\u0301\ufffd\ud800", max_size=40),
    max_size=5,
)


@settings(deadline=None)
@given(any_texts | like_real_text, st.booleans(), st.sampled_from([None, True, False]))
def test_words_are_those_of_the_basic_tokenizer(texts, do_lower_case, strip_accents):
    tokenizer = BasicTokenizer(do_lower_case, strip_accents)
    expected = Counter(word for text in texts for word in tokenizer.tokenize(text))
    assert count_words(texts, tokenizer) == expected


def test_words_are_counted_in_parts(monkeypatch):
    texts = ["a b a", "(b) c", "水a ab"]
    expected = count_words(texts, BasicTokenizer())
    assert expected == {"a": 3, "b": 2, "(": 1, ")": 1, "c": 1, "水": 1, "ab": 1}
    monkeypatch.setattr(vocabulary_extension, "_MOST_RAW_WORDS", 2)
    assert count_words(texts, BasicTokenizer()) == expected


@settings(max_examples=50, deadline=None)
@given(any_texts | like_real_text, st.booleans())
def test_the_figures_are_what_the_tokenizer_gives(tmp_path_factory, texts, do_lower_case):
    old = [*SPECIAL, "[unused0]", "[unused1]", "[unused2]", *LETTERS, "##é", "水", "ab"]
    if not any(map(BasicTokenizer(do_lower_case).tokenize, texts)):
        with pytest.raises(UserError, match="there is no text to take new tokens from"):
            extend_vocabulary(old, texts, 5, do_lower_case, strip_accents=None)
        return
    new, figures = extend_vocabulary(old, texts, 5, do_lower_case, strip_accents=None)
    folder = tmp_path_factory.mktemp("vocabulary")
    for when, tokens in (("before", old), ("after", new)):
        path = folder / f"{when}.txt"
        path.write_text("".join(f"{token}\n" for token in tokens), "utf-8")
        tokenizer = FullTokenizer(path, do_lower_case)
        ids = [number for text in texts for number in tokenizer.encode(text).tolist()]
        assert figures[f"tokens_{when}"] == len(ids)
        assert figures[f"unknown_{when}"] == ids.count(tokenizer.vocabulary.ids["[UNK]"])
    kept = [token for token in old if not token.startswith("[unused")]
    assert [new.index(token) for token in kept] == [old.index(token) for token in kept]
    assert figures["new_tokens"] == len(set(new).difference(old))
    words = [word for text in texts for word in BasicTokenizer(do_lower_case).tokenize(text)]
    assert figures["words"] + figures["marks"] == len(words)
    assert figures["marks"] == sum(len(word) == 1 and not word.isalnum() for word in words)


def test_new_tokens_take_the_rows_of_unused_ones_first():
    tokens = ["[PAD]", "[unused7]", "[UNK]", "[unused1]", "[unused]", "a"]
    assert with_new_tokens(tokens, []) == tokens
    assert with_new_tokens(tokens, ["x"]) == ["[PAD]", "x", "[UNK]", "[unused1]", "[unused]", "a"]
    assert with_new_tokens(tokens, ["x", "y", "z", "##z"]) == [
        *("[PAD]", "x", "[UNK]", "y", "[unused]", "a"),
        *("z", "##z"),
    ]


def test_tokens_and_unknown_words_are_counted():
    words = {"ab": 2, "ax": 3, "a" * 201: 1}
    assert tokens_and_unknown([*SPECIAL, *LETTERS], words) == (2 * 2 + 3 + 1, 3 + 1)


def test_random_words_of_many_lengths_take_what_trying_all_takes():
    """Longer words and more tokens than the property test has."""
    rng = random.Random(7)
    words = {
        "".join(rng.choices("abcd", [5, 3, 2, 1], k=rng.randint(1, 14))): rng.randint(1, 20)
        for _ in range(30)
    }
    tokens = [*SPECIAL, *LETTERS]
    for token in new_tokens(tokens, words, 12):
        assert token == best_by_trying_all(tokens, words)
        tokens.append(token)
