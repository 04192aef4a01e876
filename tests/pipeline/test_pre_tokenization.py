import json
import os
import string
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.stages
from pipeline.buckets import BucketPlan
from pipeline.corpus import tokenize_documents
from pipeline.directories import Directories
from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.manifest import Manifest
from pipeline.pre_tokenization import (
    PreTokenizedTokenizer,
    describe_pre_tokenizer,
    load_pre_tokenizer,
    make_tokenizer,
)
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.stages import TokenizePortion, Work
from pipeline.tokenization import FullTokenizer
from pipeline.vocabulary_training import train_vocabulary

TRICKY = (
    "漢字かなカナｶﾞＡａΣσ1Ⅷ㍿。「」[]#"
    "\0\t\n\r\x1c\x85\xa0\u2028\u3000\u200b\ufffd\ud800\u0301\u3099e 😀"
)


@pytest.fixture(scope="module")
def vocab_file(write_vocabulary, japanese_sentences):
    """Each character, and some words of MeCab."""
    characters = sorted({*"".join(japanese_sentences), *string.ascii_lowercase, *"へガ店"})
    readable = [each for each in characters if each.strip()]
    return write_vocabulary(*readable, *(f"##{each}" for each in readable), "図書", "東京")


@pytest.fixture(scope="module", params=PreTokenizer)
def tokenizer(request, vocab_file):
    return PreTokenizedTokenizer(vocab_file, request.param)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from(TRICKY) | st.characters(), max_size=30), max_size=5))
def test_many_sentences_at_once_have_the_ids_of_each(tokenizer, sentences):
    ids, lengths = tokenizer.encode_sentences(sentences)
    pieces = [tokenizer.tokenize(sentence) for sentence in sentences]
    assert lengths.tolist() == list(map(len, pieces))
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == [p for each in pieces for p in each]


def test_wordpiece_cuts_within_the_words(vocab_file):
    text = "図書館員は東京の売店へ"
    assert PreTokenizedTokenizer(vocab_file, PreTokenizer.MECAB).tokenize(text) == [
        *("図書", "館", "員", "は", "東京", "の", "売", "##店", "へ")
    ]
    # BERT's own rules make a word of each ideograph.
    assert FullTokenizer(vocab_file, do_lower_case=False).tokenize(text) == list(
        "図書館員は東京の売店へ"
    )


def test_text_is_normalized_and_lower_cased_only_if_asked(vocab_file):
    text = "ＡＢの㍿、ｶﾞ　é"
    for lower, letters in ((False, ["[UNK]"]), (True, ["a", "##b"])):
        tokenizer = PreTokenizedTokenizer(vocab_file, PreTokenizer.MECAB, lower)
        pieces = tokenizer.tokenize(text)
        assert pieces[: len(letters)] == letters
        joined = "".join(piece.removeprefix("##") for piece in pieces[len(letters) :])
        assert joined == "の株式会社、ガé"


def test_words_of_more_than_a_hundred_characters_are_unknown(vocab_file):
    """MeCab itself cuts them, but Sudachi does not."""
    tokenizer = PreTokenizedTokenizer(vocab_file, PreTokenizer.SUDACHI)
    assert tokenizer.tokenize("x" * 100) == ["x", *["##x"] * 99]
    assert tokenizer.tokenize("x" * 101) == ["[UNK]"]
    assert tokenizer.encode("x" * 101).tolist() == [1]


def test_nul_does_not_end_a_text(tokenizer):
    assert tokenizer.tokenize("東京の\0駅") == tokenizer.tokenize("東京の駅")


def test_a_long_text_loses_nothing(tokenizer):
    text = "図書館員は東京へ。" * 6000
    ids = tokenizer.encode(text)
    assert len(ids) == 6000 * len(tokenizer.encode("図書館員は東京へ。"))


def test_words_to_mask_are_those_of_the_pre_tokenizer(vocab_file):
    tokenizer = PreTokenizedTokenizer(vocab_file, PreTokenizer.MECAB)
    (document,) = tokenize_documents([Document("a", 0, 0, ["図書館員は売店へ"])], tokenizer, {})
    starts = np.frombuffer(document.word_starts, bool)
    # 図書 館 員 は 売 ##店 へ
    assert starts.tolist() == [True] * 5 + [False, True]


@pytest.mark.parametrize("name", PreTokenizer)
def test_a_missing_package_is_one_line_that_names_the_extra(name, monkeypatch):
    for package in name.packages:
        load_pre_tokenizer.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package.replace("-", "_"), None)
            with pytest.raises(UserError, match=rf"--pre_tokenizer={name} needs {package}|and"):
                load_pre_tokenizer(name, False)


def test_what_is_recorded_names_the_packages():
    assert describe_pre_tokenizer(None) == {}
    assert describe_pre_tokenizer(PreTokenizer.MECAB_IPADIC) == {
        "pre_tokenizer": "mecab_ipadic",
        "pre_tokenizer_packages": f"fugashi {version('fugashi')}, ipadic {version('ipadic')}",
    }


def test_without_a_pre_tokenizer_the_tokenizer_is_the_originals(vocab_file):
    tokenizer = make_tokenizer(vocab_file, True, None, None)
    assert type(tokenizer) is FullTokenizer
    assert tokenizer.basic_tokenizer.strip_accents


# Vocabularies of words.


@pytest.mark.parametrize("name", PreTokenizer)
def test_a_vocabulary_is_trained_on_the_words(name, japanese_sentences, write_vocabulary):
    texts = japanese_sentences[::20]
    tokens = train_vocabulary(lambda: texts, 1200, False, False, 0, pre_tokenizer=name)
    assert tokens == train_vocabulary(
        lambda: reversed(texts), 1200, False, False, 0, pre_tokenizer=name
    )
    words = {word for text in texts for word in load_pre_tokenizer(name, False)(text).split()}
    inside = {
        word[i:j] for word in words for i in range(1, len(word)) for j in range(len(word) + 1)
    }
    begin = {word[:end] for word in words for end in range(1, len(word) + 1)}
    # A piece never goes beyond a word. All single characters may begin one.
    assert {token[2:] for token in tokens if token.startswith("##")} <= inside
    assert {token for token in tokens[5:] if len(token) > 1 and token[:2] != "##"} <= begin
    tokenizer = PreTokenizedTokenizer(write_vocabulary(*tokens[5:]), name)
    known = "お客様のご要望は雨が降っているのに食べられなかったらしい。"
    assert "[UNK]" not in tokenizer.tokenize(known)
    assert len(tokenizer.tokenize(known)) < len(known)


# Data sets.


@pytest.fixture
def japanese(options, tmp_path, vocab_file, japanese_sentences):
    blocks = ["\n".join(japanese_sentences[i : i + 700 : 70]) for i in range(30)]
    (tmp_path / "japanese.txt").write_text("\n\n".join(blocks), "utf-8")
    return replace(
        options,
        input_patterns=[f"{tmp_path}/japanese.txt"],
        vocab_file=vocab_file,
        do_lower_case=False,
        pre_tokenizer=PreTokenizer.MECAB,
        num_shards=1,
    )


def test_a_data_set_records_what_found_its_words(japanese):
    manifest = generate(japanese, PipelineOptions([]))
    assert manifest.format_version == 2
    assert manifest.pre_tokenizer == PreTokenizer.MECAB
    assert manifest.strip_accents is False
    assert describe_pre_tokenizer(PreTokenizer.MECAB).items() <= manifest.options.items()
    assert Manifest.read(japanese.output_dir) == manifest
    plan = json.loads((japanese.output_dir / "plan.json").read_text("utf-8"))
    assert describe_pre_tokenizer(PreTokenizer.MECAB).items() <= plan.items()
    # The same command again has nothing to do; another pre-tokenizer is another data set.
    assert generate(japanese, PipelineOptions([])) == manifest
    for other in (PreTokenizer.SUDACHI, None):
        with pytest.raises(UserError, match="pre_tokenizer"):
            generate(replace(japanese, pre_tokenizer=other), PipelineOptions([]))


def test_worker_processes_make_the_same_bytes(japanese, two_processes, tmp_path):
    here = generate(japanese, PipelineOptions([]))
    elsewhere = replace(japanese, output_dir=tmp_path / "elsewhere")
    assert generate(elsewhere, processes=two_processes) == here


def test_accents_cannot_be_stripped(japanese):
    with pytest.raises(UserError, match="leave out --strip_accents"):
        replace(japanese, strip_accents=True)
    assert replace(japanese, strip_accents=None, do_lower_case=True).strip_accents is False


def test_a_segmenter_of_other_words_is_refused(japanese):
    with pytest.raises(UserError, match="leave out --word_segmenter=sudachi"):
        replace(japanese, word_segmenter="sudachi")


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--pre_tokenizer", {"pre_tokenizer": PreTokenizer.MECAB}),
        ("--word_segmenter", {"pre_tokenizer": None, "word_segmenter": "mecab"}),
    ],
)
def test_a_worker_with_another_dictionary_is_refused(flag, values, japanese, monkeypatch):
    wanted = replace(japanese, vocab_file=japanese.vocab_file, **values)
    directories = Directories(wanted.output_dir, None)
    stage = TokenizePortion(Work(wanted, [], BucketPlan.for_corpus(9, 0.0, 1), [], directories))
    here = f"fugashi {version('fugashi')}, unidic-lite {version('unidic-lite')}"
    there = {"fugashi": "1.0", "unidic-lite": "1.0.7"}
    monkeypatch.setattr("pipeline.segmenters.version", there.__getitem__)
    pipeline.stages.versions.cache_clear()
    with pytest.raises(UserError) as raised:
        stage.load()
    message = str(raised.value)
    assert (
        f"has another {flag} (fugashi 1.0, unidic-lite 1.0.7) than the driver ({here})" in message
    )


def test_the_command_without_the_package_ends_in_one_line(japanese, tmp_path):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "fugashi.py").write_text("raise ImportError('none')\n")
    path = os.pathsep.join([str(tmp_path / "shadow"), *sys.path])
    command = [sys.executable, "-m", "launch", "generate", "--pre_tokenizer=mecab"]
    command += [f"--input_file={japanese.input_patterns[0]}", f"--vocab_file={japanese.vocab_file}"]
    result = subprocess.run(
        [*command, f"--output_dir={japanese.output_dir}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert result.returncode == 1
    line = "--pre_tokenizer=mecab needs fugashi and unidic-lite: pip install 'clozemill[mecab]'"
    assert result.stderr.strip().splitlines()[-1].endswith(line)
    assert "Traceback" not in result.stderr
    assert not japanese.output_dir.exists()
