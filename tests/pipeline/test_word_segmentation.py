import functools
import hashlib
import subprocess
import sys
import unicodedata
from collections import Counter
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import tokenize_documents
from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.segmenters import describe_packages
from pipeline.tokenization import FullTokenizer
from pipeline.word_segmentation import (
    NAMED_SEGMENTERS,
    WordFinder,
    describe_segmenter,
    load_segmenter,
)

THAI_FILE = Path(__file__).resolve().parents[3] / "shared" / "field_cases" / "thai.txt"
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
    (document,) = tokenize_documents(
        [Document("a", 0, 0, [text])],
        tokenizer,
        Counter(),
        segment and WordFinder(tokenizer, segment),
    )
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


def word_starts(tokenizer, segment, sentences):
    """Which pieces of sentences begin a word."""
    ids, _ = tokenizer.encode_sentences(sentences)
    return WordFinder(tokenizer, segment)(sentences, ids)


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


def test_words_replace_those_of_spaces_and_punctuation(tokenizer):
    assert words_of_pieces(tokenizer, "我a，b很", cutting_at("我", "a", "，", "b很")) == [
        *("我", "a", "，", "b很")
    ]
    assert words_of_pieces(tokenizer, "我a，b很", cutting_at("我a，b很")) == ["我a，b很"]
    assert words_of_pieces(tokenizer, "ab cd", cutting_at("ab cd")) == ["abcd"]


def test_a_word_may_begin_inside_a_run_of_letters(tokenizer):
    assert words_of_pieces(
        tokenizer, "abcd ef", cutting_at("ab", "cde".replace("e", ""), "ef")
    ) == [*("ab", "cd", "ef")]


def test_a_piece_belongs_to_the_word_in_which_it_begins(write_vocabulary):
    tokenizer = FullTokenizer(write_vocabulary("abc", "##d", "##ef", "##g"))
    assert words_of_pieces(tokenizer, "abcdefg", cutting_at("ab", "cd", "e", "f", "g")) == [
        *("abc", "d", "ef", "g")
    ]
    assert words_of_pieces(tokenizer, "abcdefg", cutting_at("abcd", "efg")) == ["abcd", "efg"]


def test_words_of_text_without_ideographs_are_masked_together(write_vocabulary):
    vocabulary = write_vocabulary("ก", *(f"##{letter}" for letter in "นขาวแมา"))
    tokenizer = FullTokenizer(vocabulary, strip_accents=False)
    text = "กนขาวแมว"
    assert words_of_pieces(tokenizer, text) == [text]
    assert words_of_pieces(tokenizer, text, cutting_at("กน", "ขาว", "แมว")) == ["กน", "ขาว", "แมว"]


@pytest.mark.parametrize("character", "\v\f\x1c\x1d\x1e\x1f\x85")
def test_control_white_space_is_dropped_before_words_are_found(character, tokenizer):
    seen = []

    def segment(text):
        seen.append(text)
        return ["我用", "卡拉"]

    text = f"我{character}用{character}卡拉{character}"
    assert words_of_pieces(tokenizer, text, segment) == ["我用", "卡拉"]
    assert seen == ["我用卡拉"]


def test_every_sentence_with_pieces_reaches_the_segmenter(tokenizer):
    seen = []

    def segment(text):
        seen.append(text)
        return [text]

    word_starts(tokenizer, segment, ["Plain text.", "カナ", "我 mixed", "", " \u200b "])
    assert seen == ["Plain text.", "カナ", "我 mixed"]


def test_pieces_are_numbered_across_all_sentences(tokenizer):
    sentences = ["abc", "我用", "\u200b", "de", "很快"]
    # a ##b ##c | 我 用 | | d ##e | 很 快
    starts = word_starts(tokenizer, lambda text: [text], sentences)
    assert np.flatnonzero(starts).tolist() == [0, 3, 5, 7]


def test_a_word_never_extends_into_the_next_sentence(tokenizer):
    assert word_starts(tokenizer, lambda text: [text], ["我", "用", "很"]).all()


def test_words_without_pieces_are_skipped(tokenizer):
    # A control character between spaces gives no piece.
    for words, starts in (
        (["我 \u200b 用"], [True, False]),
        (["我", "\u200b 用"], [True, True]),
        (["我 \u200b", "用"], [True, True]),
        (["我", "\u200b", "用"], [True, True]),
    ):
        assert word_starts(tokenizer, cutting_at(*words), ["我 \u200b 用"]).tolist() == starts


# Properties that hold for all words.


def cut(text, ends):
    """Cuts the text into words at `ends`."""
    bounds = sorted({0, len(text), *(end for end in ends if end < len(text))})
    return [text[start:end] for start, end in pairwise(bounds)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(TEXTS, min_size=1, max_size=4),
    st.lists(st.integers(0, 40), max_size=12),
    st.booleans(),
)
def test_a_segmenter_changes_only_word_starts(tokenizer, sentences, ends, are_stripped):
    def segment(text):
        words = cut(text, ends)
        return [word for word in map(str.strip, words) if word] if are_stripped else words

    document = Document("a", 0, 0, sentences)
    plain_counts, counts = Counter(), Counter()
    (plain,) = tokenize_documents([document], tokenizer, plain_counts)
    (segmented,) = tokenize_documents(
        [document], tokenizer, counts, segment and WordFinder(tokenizer, segment)
    )
    assert counts == plain_counts
    if plain is None:
        assert segmented is None
        return
    assert (segmented.ids, segmented.sentence_lengths) == (plain.ids, plain.sentence_lengths)
    assert (segmented.digest, segmented.offset) == (plain.digest, plain.offset)
    starts = np.frombuffer(segmented.word_starts, bool)
    plain_starts = np.frombuffer(plain.word_starts, bool)
    # Every sentence begins with a word start, with or without a segmenter.
    ends_of_sentences = accumulate(np.frombuffer(plain.sentence_lengths, np.uint32).tolist())
    for first, _ in pairwise([0, *ends_of_sentences]):
        assert plain_starts[first]
        assert starts[first]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("我用很快卡拉ab ，", min_size=1), min_size=1, max_size=6))
def test_a_piece_begins_a_word_if_the_piece_before_it_began_in_another(tokenizer, words):
    """Compares with a slow reference. In these texts, every character but a space is a piece."""
    text = "".join(words)
    words_of_characters = [
        number for number, word in enumerate(words) for character in word if character != " "
    ]
    expected = [
        index == 0 or word != words_of_characters[index - 1]
        for index, word in enumerate(words_of_characters)
    ]
    assert word_starts(tokenizer, cutting_at(*words), [text]).tolist() == expected


# The segmenters with names.

SCRIPTS = {
    "mecab": (
        "東京都に住んでいるＡＢＣの人。",
        ["東京", "都", "に", "住ん", "で", "いる", "ABC", "の", "人", "。"],
    ),
    "sudachi": (
        "東京都に住んでいるＡＢＣの人。",
        ["東京都", "に", "住ん", "で", "いる", "ABC", "の", "人", "。"],
    ),
    "kiwi": ("나는 학교에서 공부했다.", ["나", "는", "학교", "에서", "공부", "했", "다", "."]),
    "thai": ("ประเทศไทยมีภาษาไทย และ GPU", ["ประเทศ", "ไทย", "มี", "ภาษาไทย", "และ", "GPU"]),
    "jieba": ("我来到北京清华大学", ["我", "来到", "北京", "清华大学"]),
}


@pytest.fixture(scope="module")
def any_script(write_vocabulary):
    """A cased tokenizer that keeps accents: most characters of these scripts are pieces."""
    thai = map(chr, range(0xE01, 0xE5C))
    characters = {*"".join(text for text, _ in SCRIPTS.values()), *thai, *LETTERS, *LETTERS.upper()}
    visible = sorted(each for each in characters if each.strip())
    return FullTokenizer(write_vocabulary(*visible, *(f"##{each}" for each in visible)), False)


@pytest.mark.parametrize("name", NAMED_SEGMENTERS)
def test_words_of_each_script_are_masked_whole(name, any_script):
    text, words = SCRIPTS[name]
    found = words_of_pieces(any_script, text, _segmenters(name))
    assert [unicodedata.normalize("NFKC", word) for word in found] == words


def test_without_a_segmenter_a_clause_is_one_word(any_script):
    assert words_of_pieces(any_script, "ประเทศไทยมีภาษาไทย และ") == ["ประเทศไทยมีภาษาไทย", "และ"]
    assert words_of_pieces(any_script, "東京都に住んでいる人") == [
        *("東", "京", "都", "に", "住", "んでいる", "人")
    ]
    assert words_of_pieces(any_script, "나는 학교에서") == ["나는", "학교에서"]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.text(
            st.sampled_from(
                "東京都に住んでカナｶﾞ나는학교했다ประเทศไทยมีก็ ＡＢ1。か\u3099\u1112\u1161"
            )
            | st.characters(),
            max_size=30,
        )
        | TEXTS,
        max_size=4,
    )
)
@pytest.mark.parametrize("name", NAMED_SEGMENTERS)
def test_no_named_segmenter_fails_or_changes_an_id(name, tokenizer, texts):
    document = Document("a", 0, 0, texts)
    (plain,) = tokenize_documents([document], tokenizer, Counter())
    (found,) = tokenize_documents(
        [document], tokenizer, Counter(), WordFinder(tokenizer, _segmenters(name))
    )
    if plain is None:
        assert found is None
        return
    assert (found.ids, found.sentence_lengths) == (plain.ids, plain.sentence_lengths)
    # Each piece is in one word, and each sentence begins one.
    starts = np.frombuffer(found.word_starts, bool)
    assert len(starts) == len(np.frombuffer(plain.word_starts, bool))
    lengths = np.frombuffer(plain.sentence_lengths, np.uint32)
    assert starts[np.cumsum(lengths) - lengths].all()


_segmenters = functools.cache(load_segmenter)


@pytest.mark.skipif(not THAI_FILE.exists(), reason="needs ../shared (a Thai text)")
def test_words_of_a_thai_text_are_shorter_than_its_clauses(any_script):
    sentences = THAI_FILE.read_text("utf-8").split()
    ids, _ = any_script.encode_sentences(sentences)
    num_clauses = int(any_script.vocabulary.begins_word[ids].sum())
    starts = word_starts(any_script, load_segmenter("thai"), sentences)
    assert len(starts) == len(ids)
    assert starts.sum() > 4 * num_clauses


@pytest.mark.parametrize("name", NAMED_SEGMENTERS)
def test_a_named_segmenter_is_described_by_its_packages(name):
    assert describe_segmenter(name) == describe_packages("word_segmenter", name)


@pytest.mark.parametrize(
    "text", ["我", "我用T恤和卡拉OK，GPU很快。" * 20, "今天\u200b天气\ufeff很好 ok"]
)
def test_the_words_of_jieba_match_the_text(text, tokenizer):
    assert words_of_pieces(tokenizer, text, load_segmenter("jieba"))


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_jieba_never_fails(tokenizer, text):
    word_starts(tokenizer, load_segmenter("jieba"), [text + "我"])


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
        word_starts(tokenizer, cutting_at(*words), ["我用 卡拉"])
    assert f"starting at {rest!r}" in str(raised.value)


@pytest.mark.parametrize("words", ["我用", [b"\xe6"], [None], [("我用", "v")]])
def test_words_must_be_a_list_of_texts(words, tokenizer):
    with pytest.raises(UserError, match="--word_segmenter"):
        word_starts(tokenizer, lambda _: words, ["我用 卡拉"])


def test_words_may_omit_what_the_tokenizer_drops(tokenizer):
    assert words_of_pieces(tokenizer, "我\u200b用\u200b", cutting_at("我", "用")) == ["我", "用"]


def test_halves_of_surrogate_pairs_do_not_reach_the_segmenter(tokenizer):
    def segment(text):
        text.encode()
        return list(text)

    assert len(word_starts(tokenizer, segment, ["我\ud800用"])) == 3


def test_the_error_shows_only_the_beginning_of_the_text(tokenizer):
    with pytest.raises(UserError) as raised:
        word_starts(tokenizer, cutting_at("用"), ["我" * 9999])
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


SEGMENTERS = """
import functools
import jieba
import numpy

class Cutter:
    def __call__(self, text):
        return list(text)
    def cut(self, text):
        return list(text)

cutter = Cutter()
of_jieba = functools.partial(jieba.lcut, HMM=False)
compiled = numpy.array([]).item
"""


@pytest.mark.parametrize("name", ["cutter", "cutter.cut", "of_jieba", "compiled"])
def test_a_segmenter_can_be_any_callable(name, tmp_path, monkeypatch):
    (tmp_path / "callables.py").write_text(SEGMENTERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "callables", raising=False)
    assert callable(load_segmenter(f"callables:{name}"))
    if name != "compiled":
        assert load_segmenter(f"callables:{name}")("我用") == ["我", "用"]
    digest = hashlib.sha256(SEGMENTERS.encode()).hexdigest()
    assert describe_segmenter(f"callables:{name}") == (
        f"callables:{name} of a module with the SHA-256 {digest}, "
        f"jieba {version('jieba')}, numpy {version('numpy')}"
    )


def test_a_module_with_the_name_of_a_distribution_is_described_by_its_content(
    tmp_path, monkeypatch
):
    (tmp_path / "jieba.py").write_text("def words(text): return [text]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jieba")
    assert "of a module with the SHA-256" in describe_segmenter("jieba:words")


def test_a_segmenter_of_a_distribution_is_described_by_its_version():
    assert describe_segmenter("jieba:lcut") == f"jieba:lcut of jieba {version('jieba')}"
    # A compiled function has no source.
    described = describe_segmenter("pyarrow.lib:array")
    assert described == f"pyarrow.lib:array of pyarrow {version('pyarrow')}"


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("привет мир", ["привет", " ", "мир"]),
        ("Müller用E\u0301a", ["Müller", "用", "E\u0301a"]),
        ("naïve-café。한국어 カナ", ["naïve", "-", "café", "。", "한국어", " ", "カナ"]),
    ],
)
def test_words_of_letters_beyond_ascii_stay_whole_with_jieba(text, words):
    assert list(load_segmenter("jieba")(text)) == words


def test_the_error_without_jieba_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"pip install 'clozemill\[chinese\]'"):
        load_segmenter("jieba")
