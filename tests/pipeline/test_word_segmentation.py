import subprocess
import sys
from collections import Counter
from itertools import accumulate, pairwise

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import tokenize_document
from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.tokenization import FullTokenizer, drop_control_whitespace
from pipeline.word_segmentation import load_segmenter, pieces_inside_words

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRICKY_CHARACTERS = (
    "\0\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\xad\u200b\u2028\u3000\ufeff\ufffd \ud800"
    "aAéİß한が豈一我用很快\u3400\U00020000\u0301#[_'。，.·€"
)
TEXTS = st.text(st.sampled_from(TRICKY_CHARACTERS) | st.characters(), max_size=40)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request, write_vocabulary):
    """Words of Latin letters get one piece per letter."""
    pieces = [*LETTERS, *LETTERS.upper(), *(f"##{letter}" for letter in LETTERS + LETTERS.upper())]
    vocab_file = write_vocabulary(*pieces, *"我用恤和卡拉很快。，0123456789")
    return FullTokenizer(vocab_file, do_lower_case=request.param)


def words_of_pieces(tokenizer, text, segment=None):
    """The words whose pieces are masked together, each with its pieces joined without `##`."""
    document = tokenize_document(Document("a", 0, 0, [text]), tokenizer, Counter(), segment)
    vocabulary = tokenizer.vocabulary
    ids = np.frombuffer(document.ids, vocabulary.id_dtype)
    words = []
    for number, begins in zip(ids, np.frombuffer(document.word_starts, bool), strict=True):
        piece = vocabulary.tokens[number].removeprefix("##")
        if begins:
            words.append(piece)
        else:
            words[-1] += piece
    return words


def cutting_at(*words):
    """A segmenter that returns these words for any text."""
    return lambda _: iter(words)


# The effect of a segmenter's words.


def test_pieces_of_a_chinese_word_belong_together(tokenizer):
    text = "我用卡拉很快。"
    assert words_of_pieces(tokenizer, text) == list("我用卡拉很快。")
    words = ["我", "用", "卡拉", "很快", "。"]
    assert words_of_pieces(tokenizer, text, cutting_at(*words)) == words


def test_jieba_finds_the_words_of_mixed_text(tokenizer):
    text = "我用T恤和卡拉OK，GPU很快。"
    assert [word.lower() for word in words_of_pieces(tokenizer, text, load_segmenter("jieba"))] == [
        *("我用", "t恤", "和", "卡拉", "ok", "，", "gpu", "很快", "。")
    ]
    # Without a segmenter, word pieces beside ideographs are separate words.
    assert [word.lower() for word in words_of_pieces(tokenizer, text)] == [
        *("我", "用", "t", "恤", "和", "卡", "拉", "ok", "，", "gpu", "很", "快", "。")
    ]


def test_words_may_omit_the_white_space_between_them(tokenizer):
    text = " 我用  卡\u3000拉 很快 "
    for words in (
        ["我用", "卡", "拉", "很快"],
        [" ", "我用", "  ", "卡\u3000", "拉 ", "很快", " "],
    ):
        assert words_of_pieces(tokenizer, text, cutting_at(*words)) == ["我用", "卡", "拉", "很快"]


def test_a_word_may_contain_white_space(tokenizer):
    assert words_of_pieces(tokenizer, "我 用 a b很", cutting_at("我 用", "a b", "很")) == [
        *("我用", "ab", "很")
    ]


def test_words_inside_a_run_of_letters_are_unchanged(tokenizer):
    # Only the beginning of a run decides whether it joins its neighbours; its inner words remain.
    assert words_of_pieces(tokenizer, "我a，b很", cutting_at("我", "a", "，", "b很")) == [
        *("我", "a", "，", "b", "很")
    ]
    assert words_of_pieces(tokenizer, "我a，b很", cutting_at("我a，b很")) == ["我a", "，", "b很"]


@pytest.mark.parametrize("character", "\v\f\x1c\x1d\x1e\x1f\x85")
def test_control_white_space_is_dropped_before_words_are_found(character, tokenizer):
    seen = []

    def segment(text):
        seen.append(text)
        return ["我用", "卡拉"]

    text = f"我{character}用{character}卡拉{character}"
    assert words_of_pieces(tokenizer, text, segment) == ["我用", "卡拉"]
    assert seen == ["我用卡拉"]


def test_sentences_without_ideographs_never_reach_the_segmenter(tokenizer):
    seen = []

    def segment(text):
        seen.append(text)
        return text

    sentences = ["Plain text.", "カナ かな 한국어 é", "我 mixed", "", "。，", "\U00020000"]
    pieces_inside_words(sentences, tokenizer, segment)
    assert seen == ["我 mixed", "\U00020000"]


def test_pieces_are_numbered_across_all_sentences(tokenizer):
    sentences = ["abc", "我用", "\u200b", "de", "很快"]
    # a ##b ##c | 我 用 | | d ##e | 很 快
    assert pieces_inside_words(sentences, tokenizer, lambda text: [text]) == [4, 8]


def test_a_word_never_extends_into_the_next_sentence(tokenizer):
    assert pieces_inside_words(["我", "用", "很"], tokenizer, lambda text: [text]) == []


def test_units_without_pieces_are_skipped(tokenizer):
    # A control character between spaces gives no piece.
    assert pieces_inside_words(["我 \u200b 用"], tokenizer, cutting_at("我 \u200b 用")) == [1]
    assert pieces_inside_words(["我 \u200b 用"], tokenizer, cutting_at("我", "\u200b 用")) == []
    assert pieces_inside_words(["我 \u200b 用"], tokenizer, cutting_at("我 \u200b", "用")) == []


# Units, the basis of word segmentation.


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_units_have_the_pieces_of_the_text(tokenizer, text):
    text = drop_control_whitespace(text)
    units = list(tokenizer.units(text))
    offsets = [offset for offset, _ in units]
    assert offsets == sorted(set(offsets))
    assert all(not text[offset].isspace() for offset in offsets)
    assert sum(num_pieces for _, num_pieces in units) == len(tokenizer.encode(text))
    position = 0
    ids = list(tokenizer.encode(text))
    for (offset, num_pieces), (end, _) in pairwise([*units, (len(text), 0)]):
        assert list(tokenizer.encode(text[offset:end])) == ids[position : position + num_pieces]
        position += num_pieces


def test_units_are_ideographs_and_the_runs_between_them(tokenizer):
    assert list(tokenizer.units(" ab，我用 c\u3000很\u200b ")) == [
        *((1, 3), (4, 1), (5, 1), (7, 1), (9, 1), (10, 0))
    ]


# Properties that hold for all words.


def cut(text, ends):
    """Cuts the text into words at `ends`."""
    bounds = sorted({0, len(text), *(end for end in ends if end < len(text))})
    return [text[start:end] for start, end in pairwise(bounds)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(TEXTS, min_size=1, max_size=4),
    st.lists(st.integers(0, 40), max_size=12),
    st.booleans(),
)
def test_a_segmenter_only_removes_word_starts(tokenizer, sentences, ends, are_stripped):
    def segment(text):
        words = cut(text, ends)
        return [word for word in map(str.strip, words) if word] if are_stripped else words

    document = Document("a", 0, 0, sentences)
    plain_counts, counts = Counter(), Counter()
    plain = tokenize_document(document, tokenizer, plain_counts)
    segmented = tokenize_document(document, tokenizer, counts, segment)
    assert counts == plain_counts
    if plain is None:
        assert segmented is None
        return
    assert (segmented.ids, segmented.sentence_lengths) == (plain.ids, plain.sentence_lengths)
    assert (segmented.digest, segmented.offset) == (plain.digest, plain.offset)
    starts = np.frombuffer(segmented.word_starts, bool)
    plain_starts = np.frombuffer(plain.word_starts, bool)
    assert not (starts & ~plain_starts).any()
    # Every sentence begins with a word start, with or without a segmenter.
    ends_of_sentences = accumulate(np.frombuffer(plain.sentence_lengths, np.uint32).tolist())
    for first, _ in pairwise([0, *ends_of_sentences]):
        assert plain_starts[first]
        assert starts[first]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("我用很快卡拉ab ，", min_size=1), min_size=1, max_size=6))
def test_pieces_are_joined_if_no_word_begins_between_them(tokenizer, words):
    """Compares with a slow reference: a unit joins the preceding unit of the same word."""
    text = "".join(words)
    word_of_character = [number for number, word in enumerate(words) for _ in word]
    has_ideograph = not set("我用很快卡拉").isdisjoint(text)
    expected = []
    piece = 0
    previous = None
    for offset, num_pieces in tokenizer.units(text):
        word = word_of_character[offset]
        # In these texts, every unit has pieces.
        if has_ideograph and word == previous:
            expected.append(piece)
        previous = word
        piece += num_pieces
    assert pieces_inside_words([text], tokenizer, cutting_at(*words)) == expected


@pytest.mark.parametrize(
    "text", ["我", "我用T恤和卡拉OK，GPU很快。" * 20, "今天\u200b天气\ufeff很好 ok"]
)
def test_the_words_of_jieba_match_the_text(text, tokenizer):
    assert words_of_pieces(tokenizer, text, load_segmenter("jieba"))


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_jieba_never_fails(tokenizer, text):
    pieces_inside_words([text + "我"], tokenizer, load_segmenter("jieba"))


# Unusable segmenters.


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        ([], "我用 卡拉"),
        (["我"], "用 卡拉"),
        (["我用", "拉"], " 卡拉"),
        (["我", "用", "卡啦"], " 卡拉"),
        (["用", "我"], "我用 卡拉"),
    ],
)
def test_words_that_do_not_match_the_text_are_an_error(words, rest, tokenizer):
    with pytest.raises(
        UserError, match="words from --word_segmenter do not match the text"
    ) as raised:
        pieces_inside_words(["我用 卡拉"], tokenizer, cutting_at(*words))
    assert f"starting at {rest!r}" in str(raised.value)


def test_the_error_shows_only_the_beginning_of_the_text(tokenizer):
    with pytest.raises(UserError) as raised:
        pieces_inside_words(["我" * 9999], tokenizer, cutting_at("用"))
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "name",
    [
        "jeiba",
        "",
        ":",
        ":cut",
        "json:",
        "json:no_such_function",
        "json:dumps.more",
        "json:__version__",
        "no_such_module:cut",
        "json.no_such_module:cut",
        ".relative:cut",
        "..:cut",
        "a b:cut",
        "json:dumps:loads",
    ],
)
def test_the_error_names_a_segmenter_that_cannot_be_loaded(name):
    with pytest.raises(UserError, match=f"--word_segmenter={name}"):
        load_segmenter(name)


def test_a_segmenter_can_be_any_function_in_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_segmenters.py").write_text("def halves(text): return text[:2], text[2:]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_segmenter("my_segmenters:halves")("我用很") == ("我用", "很")


def test_the_segmenter_jieba_uses_the_package_and_logs_nothing():
    assert list(load_segmenter("jieba")("我来到北京清华大学")) == list(
        jieba.cut("我来到北京清华大学")
    )
    code = "from pipeline.word_segmentation import *; print(*load_segmenter('jieba')('我来到北京'))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "我 来到 北京\n"
    assert result.stderr == ""


def test_the_error_without_jieba_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"pip install 'clozemill\[chinese\]'"):
        load_segmenter("jieba")
