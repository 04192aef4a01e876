"""Ids of Japanese text against transformers' `BertJapaneseTokenizer`, in memory and as an export.

The 10,080 sentences are clauses of our own, each combined with each; the fast tests read every
11th. They hold what NFKC changes,
white space of all kinds, words that are too long, and characters that no dictionary knows.
"""

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    read_tokenizer_settings,
    read_tokens,
    write_tokenizer,
)
from pipeline.pre_tokenization import PreTokenizedTokenizer
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.vocabulary_training import train_vocabulary

transformers = pytest.importorskip("transformers")
pytest.importorskip("fugashi")
pytest.importorskip("sudachipy")
pytestmark = pytest.mark.no_backend

VOCAB_SIZE = 1000
THEIRS = {
    PreTokenizer.MECAB: {
        "word_tokenizer_type": "mecab",
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
    },
    PreTokenizer.MECAB_IPADIC: {
        "word_tokenizer_type": "mecab",
        "mecab_kwargs": {"mecab_dic": "ipadic"},
    },
    PreTokenizer.SUDACHI: {"word_tokenizer_type": "sudachi"},
}


@pytest.fixture(scope="module", params=PreTokenizer)
def pre_tokenizer(request):
    return request.param


@pytest.fixture(scope="module", params=[False, True], ids=["cased", "uncased"])
def do_lower_case(request):
    return request.param


@pytest.fixture(scope="module")
def vocab_file(pre_tokenizer, do_lower_case, japanese_sentences, tmp_path_factory):
    """A vocabulary of every tenth sentence, so that the others have unknown characters."""
    tokens = train_vocabulary(
        lambda: japanese_sentences[::10],
        VOCAB_SIZE,
        do_lower_case,
        strip_accents=False,
        num_unused=0,
        limit_alphabet=260,
        pre_tokenizer=pre_tokenizer,
    )
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    return path


@pytest.fixture(scope="module")
def ours(vocab_file, pre_tokenizer, do_lower_case):
    return PreTokenizedTokenizer(vocab_file, pre_tokenizer, do_lower_case)


@pytest.fixture(scope="module")
def theirs(vocab_file, pre_tokenizer, do_lower_case):
    return transformers.BertJapaneseTokenizer(
        str(vocab_file), do_lower_case=do_lower_case, **THEIRS[pre_tokenizer]
    )


def ids_of(theirs, text):
    return theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_ids_of_ten_thousand_sentences_are_equal(ours, theirs, step, japanese_sentences):
    sentences = japanese_sentences[::step]  # theirs is slow
    ids, lengths = ours.encode_sentences(sentences)
    expected = [ids_of(theirs, sentence) for sentence in sentences]
    assert lengths.tolist() == list(map(len, expected))
    assert ids.tolist() == [number for each in expected for number in each]
    # Both what the vocabulary has and what it lacks.
    assert 0.001 < (ids == 1).mean() < 0.2
    assert len(set(ids.tolist())) > 200


# Theirs ends at NUL with MeCab, fails on halves of surrogate pairs, and takes the names of special
# tokens in a text for these.
TEXTS = st.text(
    st.sampled_from("漢字かなカナｶﾞﾊﾟA a1Ⅷ㍿ΑΣ。「」\u3000\t\n\r\x1c\x85\u2028\u200b\u0301\u3099e")
    | st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_ids_of_any_text_are_equal(ours, theirs, text):
    assume("[" not in text)
    assert ours.encode(text).tolist() == ids_of(theirs, text)
    assert ours.tokenize(text) == theirs.tokenize(text)


def test_the_export_opens_as_the_same_tokenizer(
    ours, vocab_file, pre_tokenizer, do_lower_case, japanese_sentences, tmp_path
):
    settings = TokenizerSettings(
        vocab_file,
        read_tokens(vocab_file),
        do_lower_case,
        strip_accents=False,
        tokenize_chinese_chars=False,
        pre_tokenizer=pre_tokenizer,
    )
    write_tokenizer(tmp_path, settings, 64)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(opened).__name__ == "BertJapaneseTokenizer"
    assert opened.model_max_length == 64
    some = japanese_sentences[::400]
    assert [ids_of(opened, text) for text in some] == [ours.encode(text).tolist() for text in some]
    first, second = (ours.encode(text).tolist() for text in some[:2])
    cls, sep = opened.cls_token_id, opened.sep_token_id
    pair = opened(*some[:2])
    assert pair["input_ids"] == [cls, *first, sep, *second, sep]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert opened("[MASK]", add_special_tokens=False)["input_ids"] == [opened.mask_token_id]
    # What is read of the export is what was written, and so is what transformers saves of it.
    opened.save_pretrained(tmp_path / "saved")
    for directory in (tmp_path, tmp_path / "saved"):
        read = read_tokenizer_settings(directory)
        assert dataclasses.replace(read, vocabulary=vocab_file, added_tokens={}) == settings
