import os
import subprocess
import sys
import time
import unicodedata
from importlib.metadata import version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.segmenters import (
    PACKAGES,
    describe_packages,
    load_kiwi,
    load_mecab,
    load_package,
    load_sudachi,
    load_thai,
)

KOREAN = "아버지가 방에 들어가셨다. 예뻐서 샀다. 서울에 갔어요."
THAI = "ประเทศไทยมีภาษาไทยเป็นภาษาราชการ และกรุงเทพมหานครเป็นเมืองหลวง"


@pytest.fixture(scope="module")
def kiwi():
    return load_kiwi()


@pytest.fixture(scope="module")
def thai():
    return load_thai()


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        ("unidic_lite", "国家 公務 員 は 東京 都 に 住ん で いる 。"),
        ("ipadic", "国家 公務員 は 東京 都 に 住ん で いる 。"),
    ],
)
def test_mecab_finds_the_words_of_each_dictionary(dictionary, words):
    assert load_mecab(dictionary)("国家公務員は東京都に 住んでいる。") == words


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("A", "国家 公務 員 は 東京 都 に 住ん で いる 。"),
        ("C", "国家公務員 は 東京都 に 住ん で いる 。"),
    ],
)
def test_sudachi_finds_words_of_each_length(mode, words):
    (morphemes,) = load_sudachi(mode, 100)("国家公務員は東京都に住んでいる。")
    assert str(morphemes) == words


def test_sudachi_joins_digits():
    (morphemes,) = load_sudachi("A", 100)("西暦2025年")
    assert "2025" in str(morphemes).split()


@pytest.mark.parametrize("text", ["とても長い文。" * 9000, "あ" * 60_000])
def test_sudachi_takes_a_text_that_is_too_long_in_parts(text):
    """It refuses 49,150 bytes."""
    parts = [
        [word.surface() for word in morphemes] for morphemes in load_sudachi("A", 12_000)(text)
    ]
    assert "".join(word for part in parts for word in part) == text
    assert len(parts) > 1
    if "。" in text:
        assert {part[-1] for part in parts} == {"。"}


def test_kiwi_finds_the_same_words_in_decomposed_syllables(kiwi):
    decomposed = unicodedata.normalize("NFD", f"é{KOREAN}")
    words = kiwi(decomposed)
    assert "".join(words) == decomposed
    assert [unicodedata.normalize("NFC", word) for word in words[2:]] == kiwi(KOREAN)


@pytest.mark.parametrize("character", ["ア", "한"])
def test_a_long_run_takes_mecab_no_quadratic_time(character):
    """Uncut, this one takes half a minute."""
    text = f"東京 {character * 100_000} 京都"
    start = time.process_time()
    assert load_mecab()(text).replace(" ", "") == text.replace(" ", "")
    assert time.process_time() - start < 5


def test_a_long_run_takes_kiwi_no_quadratic_time(kiwi):
    """Uncut, this one takes twelve seconds."""
    text = f"서울 {'a' * 100_000} 학교에서"
    start = time.process_time()
    assert "".join(kiwi(text)) == text
    assert time.process_time() - start < 5


def test_kiwi_joins_the_morphemes_that_share_a_syllable(kiwi):
    """예뻐서 is 예쁘 and 어서, 갔 is 가 and 었."""
    assert [word.strip() for word in kiwi(KOREAN)] == [
        *("아버지", "가", "방", "에", "들어가", "셨", "다", ".", "예뻐서"),
        *("샀", "다", ".", "서울", "에", "갔", "어요", "."),
    ]


def test_thai_is_cut_as_by_pythainlp(thai, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHAINLP_DATA", str(tmp_path))
    from pythainlp.tokenize import word_tokenize

    for text in (THAI, THAI * 3, "ราคา 1,200.50 บาท", "ก็ดี นะ"):
        assert thai(text) == word_tokenize(text, engine="newmm")
    assert thai(THAI)[:4] == ["ประเทศ", "ไทย", "มี", "ภาษาไทย"]


def test_thai_writes_nothing_to_the_home_of_the_user(tmp_path):
    code = "from pipeline.segmenters import load_thai; print(*load_thai()('แมวกินปลา'))"
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert (result.stdout, result.stderr) == ("แมว กิน ปลา\n", "")
    assert not list(tmp_path.iterdir())


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("한글 갔예뻐서ᄒ\u1161\u11abㅋ a1.\u200b\0😀"), max_size=30))
def test_the_words_of_kiwi_are_the_text(kiwi, text):
    assert "".join(kiwi(text)) == text


def test_a_package_that_is_missing_is_named_with_its_extra():
    def load():
        import no_such_package  # noqa: F401

    for name, extra in (("mecab", "mecab"), ("mecab_ipadic", "mecab"), ("jieba", "chinese")):
        packages = " and ".join(PACKAGES[name])
        with pytest.raises(UserError) as raised:
            load_package("some_flag", name, load)
        expected = f"--some_flag={name} needs {packages}: pip install 'clozemill[{extra}]'"
        assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("module", "load", "name"),
    [
        ("fugashi", load_mecab, "mecab"),
        ("unidic_lite", load_mecab, "mecab"),
        ("sudachidict_core", lambda: load_sudachi("A", 100), "sudachi"),
        ("kiwipiepy", load_kiwi.__wrapped__, "kiwi"),
        ("nlpo3", load_thai, "thai"),
    ],
)
def test_every_package_is_missed(module, load, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install"):
        load_package("word_segmenter", name, load)


def test_thai_misses_its_dictionary(monkeypatch):
    monkeypatch.setattr("pipeline.segmenters.find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs nlpo3 and pythainlp"):
        load_package("word_segmenter", "thai", load_thai)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_described_with_their_versions(name):
    expected = ", ".join(f"{package} {version(package)}" for package in PACKAGES[name])
    assert describe_packages("word_segmenter", name) == expected
