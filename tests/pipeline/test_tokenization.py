import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.tokenization import (
    BasicTokenizer,
    FullTokenizer,
    WordpieceTokenizer,
    convert_ids_to_tokens,
    convert_to_unicode,
    convert_tokens_to_ids,
    load_vocab,
    printable_text,
)

ASCII_PUNCTUATION = {*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)}
TRICKY_CHARACTERS = (
    "\0\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\xad\u200b\u2028\u2029\u3000\ufeff\ufffd"
    "aAéÉİßǅΣ한か\u3099がﬁ豈一\u3400\U00020000\u0301#[]_'$。！…·€"
)


@pytest.fixture(scope="module")
def toy_vocab_file(write_vocabulary):
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    others = [
        "σ",
        "ς",
        "##σ",
        "##ς",
        "α",
        "##α",
        "’",
        "–",
        "mask",
        "foo",
        "##bar",
        "[",
        "]",
        "'",
        "#",
        ".",
        ",",
        "一",
        "é",
        "##é",
        "か",
        "。",
    ]
    return write_vocabulary(*pieces, *others)


@pytest.fixture(
    scope="module",
    params=[(True, None), (False, None), (True, False), (False, True)],
    ids=["uncased", "cased", "lower-cased", "stripped"],
)
def toy_tokenizer(request, toy_vocab_file):
    do_lower_case, strip_accents = request.param
    return FullTokenizer(toy_vocab_file, do_lower_case, strip_accents)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param(" \t\n\r\u3000 ", [], id="white space only"),
        pytest.param("a\0b c\ufffdd", ["ab", "cd"], id="NUL and U+FFFD are dropped"),
        pytest.param("foo\vbar", ["foobar"], id="vertical tab is deleted"),
        pytest.param(
            "a\fb\x1cc\x1dd\x1ee\x1ff\x85g", ["abcdefg"], id="control white space is deleted"
        ),
        pytest.param("a\vb\u4e00\fc d\x85", ["ab", "一", "c", "d"], id="even beside ideographs"),
        pytest.param(
            "so\xadft ze\u200bro \ufeffmark", ["soft", "zero", "mark"], id="Cf is dropped"
        ),
        pytest.param("a\tb\nc\rd", ["a", "b", "c", "d"], id="tab, LF and CR are spaces"),
        pytest.param("a\xa0b\u2003c\u3000d", ["a", "b", "c", "d"], id="Zs is a space"),
        pytest.param("a\u2028b\u2029c", ["a", "b", "c"], id="line and paragraph separators split"),
        pytest.param("x一y二", ["x", "一", "y", "二"], id="ideographs stand alone"),
        pytest.param("カナ かな 々", ["カナ", "かな", "々"], id="kana do not"),
        pytest.param("[mask]", ["[", "mask", "]"], id="special tokens are split"),
        pytest.param("don't $1.50", ["don", "'", "t", "$", "1", ".", "50"], id="punctuation"),
        pytest.param("a—b¿c。d‿e", ["a", "—", "b", "¿", "c", "。", "d", "‿", "e"], id="P*"),
        pytest.param("5€ ©x ™", ["5€", "©x", "™"], id="symbols outside ASCII stay"),
        pytest.param("--", ["-", "-"], id="each punctuation character is a token"),
    ],
)
def test_basic_tokens_of_text_that_case_and_accents_do_not_affect(text, tokens, toy_tokenizer):
    assert toy_tokenizer.basic_tokenizer.tokenize(text) == tokens
    assert toy_tokenizer.encode(text).tolist() == toy_tokenizer.convert_tokens_to_ids(
        toy_tokenizer.tokenize(text)
    )


def test_ascii_symbols_are_punctuation_and_nothing_else_is(toy_tokenizer):
    split = {
        code
        for code in range(33, 127)
        if len(toy_tokenizer.basic_tokenizer.tokenize(f"x{chr(code)}y")) == 3
    }
    assert split == ASCII_PUNCTUATION


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F),
        (0x2B820, 0x2CEAF),
        (0x2F800, 0x2FA1F),
    ],
)
def test_each_ideograph_range_is_split_from_its_first_to_its_last_character(first, last):
    for ideograph in (chr(first), chr(last)):
        assert BasicTokenizer(do_lower_case=False).tokenize(f"a{ideograph}b") == [
            "a",
            ideograph,
            "b",
        ]


@pytest.mark.parametrize(
    "code",
    [0x33FF, 0x4DC0, 0xA000, 0xF8FF, 0xFB00, 0x1FFFF, 0x2A6E0, 0x2A6FF, 0x2CEB0, 0x2F7FF, 0x2FA20],
)
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_neighbours_of_the_ideograph_ranges_are_not_split(code, do_lower_case):
    assert BasicTokenizer(do_lower_case).tokenize(f"a{chr(code)}b") == [f"a{chr(code)}b"]


@pytest.mark.parametrize(
    ("text", "uncased", "cased"),
    [
        ("Crème BRÛLÉE", ["creme", "brulee"], ["Crème", "BRÛLÉE"]),
        ("e\u0301", ["e"], ["e\u0301"]),
        ("İ", ["i"], ["İ"]),
        ("Straße", ["straße"], ["Straße"]),
        ("한국어", [unicodedata.normalize("NFD", "한국어")], ["한국어"]),
        ("がぎ", ["かき"], ["がぎ"]),
        ("ﬁ Å", ["ﬁ", "a"], ["ﬁ", "Å"]),
        ("की क्", ["की", "क"], ["की", "क्"]),
        ("\uf900", ["\u8c48"], ["\uf900"]),
        ("\u0301\u0308", [], ["\u0301\u0308"]),
    ],
)
def test_lower_casing_decomposes_and_drops_accents(text, uncased, cased):
    assert BasicTokenizer(do_lower_case=True).tokenize(text) == uncased
    assert BasicTokenizer(do_lower_case=False).tokenize(text) == cased


@pytest.mark.parametrize(
    ("text", "lower_cased", "stripped"),
    [
        ("Crème BRÛLÉE", ["crème", "brûlée"], ["Creme", "BRULEE"]),
        ("한국어", ["한국어"], [unicodedata.normalize("NFD", "한국어")]),
        ("がぎ", ["がぎ"], ["かき"]),
    ],
)
def test_accents_can_be_stripped_independently_of_lower_casing(text, lower_cased, stripped):
    assert BasicTokenizer(True, strip_accents=False).tokenize(text) == lower_cased
    assert BasicTokenizer(False, strip_accents=True).tokenize(text) == stripped


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        pytest.param("unaffable", ["un", "##aff", "##able"], id="pieces"),
        pytest.param("abcd", ["abc", "##d"], id="longest first"),
        pytest.param("abcx", ["[UNK]"], id="greedy, without a second try"),
        pytest.param("unaffableq", ["[UNK]"], id="the whole word is unknown"),
        pytest.param("able", ["[UNK]"], id="a ## piece begins no word"),
        pytest.param("abc un", ["abc", "un"], id="two words"),
    ],
)
def test_wordpiece_is_greedy_and_a_word_is_fully_known_or_unknown(word, pieces):
    tokens = ["[UNK]", "un", "##aff", "##able", "ab", "abc", "##d", "##cx"]
    vocab = {token: number for number, token in enumerate(tokens)}
    assert WordpieceTokenizer(vocab).tokenize(word) == pieces


@pytest.mark.parametrize(
    ("word", "is_known"),
    [("a" * 200, True), ("a" * 201, False), ("é" * 200, True), ("é" * 201, False)],
)
def test_a_word_has_at_most_200_characters(word, is_known, toy_tokenizer):
    tokens = toy_tokenizer.tokenize(word)
    assert (tokens != ["[UNK]"]) == is_known
    assert len(tokens) == (200 if is_known else 1)
    assert toy_tokenizer.encode(word).tolist() == toy_tokenizer.convert_tokens_to_ids(tokens)


def test_length_is_measured_after_decomposition_and_splitting_at_punctuation(toy_vocab_file):
    tokenizer = FullTokenizer(toy_vocab_file, do_lower_case=True)
    assert len(tokenizer.tokenize("a" * 150 + "." + "b" * 150)) == 301
    assert len(tokenizer.tokenize("e\u0301" * 200)) == 200


def test_special_tokens_in_text_never_get_their_ids(toy_tokenizer):
    text = "[MASK] [CLS] [SEP] [PAD] ##a"
    special = {toy_tokenizer.vocabulary.ids[token] for token in ("[MASK]", "[CLS]", "[SEP]")}
    assert special.isdisjoint(toy_tokenizer.encode(text).tolist())
    assert toy_tokenizer.tokenize("[mask] ##a") == ["[", "mask", "]", "#", "#", "a"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from(TRICKY_CHARACTERS), max_size=40))
def test_encode_agrees_with_tokenize(toy_tokenizer, text):
    assert toy_tokenizer.encode(text).tolist() == toy_tokenizer.convert_tokens_to_ids(
        toy_tokenizer.tokenize(text)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters() | st.sampled_from(TRICKY_CHARACTERS), max_size=20)))
def test_sentences_do_not_affect_one_another(toy_tokenizer, sentences):
    ids, lengths = toy_tokenizer.encode_sentences(sentences)
    encoded = [toy_tokenizer.encode(sentence).tolist() for sentence in sentences]
    assert ids.tolist() == [number for each in encoded for number in each]
    assert lengths.tolist() == list(map(len, encoded))


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ΑΣσς.,':^`’–\u0301\xad\x01\n A一"), max_size=20))
def test_neighbours_decide_the_lower_case_of_sigma_as_in_the_original(toy_tokenizer, text):
    sentences = [text, "a, b", text]
    ids, lengths = toy_tokenizer.encode_sentences(sentences)
    encoded = [toy_tokenizer.convert_tokens_to_ids(toy_tokenizer.tokenize(s)) for s in sentences]
    assert ids.tolist() == [number for each in encoded for number in each]
    assert lengths.tolist() == list(map(len, encoded))


def test_a_bounded_memo_does_not_change_the_ids(toy_vocab_file, monkeypatch):
    monkeypatch.setattr("pipeline.tokenization.MAX_MEMO_ENTRIES", 4)
    tokenizer = FullTokenizer(toy_vocab_file)
    for number in range(60):
        text = f"word{number % 7} and{number},一{number}"
        expected = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
        assert tokenizer.encode(text).tolist() == expected
        assert len(tokenizer._ids_of_word) <= 4


def test_a_token_listed_twice_gets_its_last_id(write_vocabulary):
    tokenizer = FullTokenizer(write_vocabulary("dog", "cat", "dog"))
    assert len(tokenizer.vocabulary) == 8
    assert tokenizer.encode("dog cat").tolist() == [7, 6]


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_the_id_dtype_fits_the_largest_vocabularies(write_vocabulary, size, dtype):
    tokenizer = FullTokenizer(write_vocabulary(*(f"w{number}" for number in range(5, size))))
    assert tokenizer.vocabulary.id_dtype == dtype
    assert tokenizer.encode(f"w{size - 1} w5").tolist() == [size - 1, 5]


def test_a_folder_is_refused_as_vocabulary(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        FullTokenizer(tmp_path)


def test_unknown_tokens_have_no_id(toy_tokenizer):
    with pytest.raises(KeyError):
        toy_tokenizer.convert_tokens_to_ids(["no such token"])


def test_very_long_words_are_not_remembered(toy_vocab_file):
    tokenizer = FullTokenizer(toy_vocab_file)
    tokenizer.encode("a" * 65 + " " + "b" * 64)
    assert list(tokenizer._ids_of_word) == [b"b" * 64]


# The names of the original's module.


def test_ids_and_tokens_are_converted_by_any_vocabulary():
    vocab = {"[UNK]": 0, "the": 1, "##s": 2}
    inverse = {number: token for token, number in vocab.items()}
    assert convert_tokens_to_ids(vocab, ["the", "##s", "the"]) == [1, 2, 1]
    assert convert_ids_to_tokens(inverse, [2, 0]) == ["##s", "[UNK]"]
    with pytest.raises(KeyError):
        convert_tokens_to_ids(vocab, ["river"])
    with pytest.raises(KeyError):
        convert_ids_to_tokens(inverse, [3])


def test_a_tokenizer_needs_only_the_unknown_token(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[UNK]\nmill\n##s\n")
    tokenizer = FullTokenizer(path, do_lower_case=True)
    assert tokenizer.tokenize("Mills mill, stone") == ["mill", "##s", "mill", "[UNK]", "[UNK]"]
    assert tokenizer.convert_ids_to_tokens([1, 2]) == ["mill", "##s"]
    assert tokenizer.encode("mills").tolist() == [1, 2]
    assert load_vocab(path) == {"[UNK]": 0, "mill": 1, "##s": 2}
    path.write_text("mill\n")
    with pytest.raises(UserError, match=r"has no \[UNK\]"):
        FullTokenizer(path)


def test_texts_are_made_of_bytes():
    assert printable_text("漢 é".encode()) == convert_to_unicode("漢 é") == "漢 é"
    assert convert_to_unicode(b"a\xffb") == "ab"


def test_the_longest_word_may_be_set():
    pieces = WordpieceTokenizer({"a": 0, "##a": 1}, unk_token="?", max_input_chars_per_word=3)
    assert pieces.tokenize("aaa aaaa") == ["a", "##a", "##a", "?"]
