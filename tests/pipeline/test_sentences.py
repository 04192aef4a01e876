import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sentences import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        pytest.param(["It rained.", "We left."], id="full stop"),
        pytest.param(["Why?", "Because!", "I see…", "Good."], id="other stops"),
        pytest.param(["What?!", "Really...", "Yes."], id="several stops"),
        pytest.param(["Apples, pears etc...", "Then nuts."], id="dots after an abbreviation"),
        pytest.param(["He wrote no. (see above) and left."], id="lower case after a bracket"),
        pytest.param(["Really... yes, but no. no."], id="lower case continues"),
        pytest.param(["It cost 3.50 euros.", "Then 4.25."], id="decimals"),
        pytest.param(["Version 2.0.", "Then 2.1."], id="a number at the end"),
        pytest.param(["J. R. R. Tolkien wrote it.", "He was English."], id="initials"),
        pytest.param(["She met him and I.", "They talked."], id="the word I"),
        pytest.param(["Dr. Smith met Mrs. Jones.", "They talked."], id="titles"),
        pytest.param(["Use fruit, e.g. Apples or pears.", "Eat it."], id="e.g."),
        pytest.param(["The U.S. Senate met.", "It voted."], id="U.S."),
        pytest.param(["See No. 5 and Fig. 12.", "Then go."], id="before a number"),
        pytest.param(["He said no.", "Then he left."], id="no before a word"),
        pytest.param(['He said "Stop."', "Then he left."], id="closing quote"),
        pytest.param(["“Stop!”", "“Why?”", "(It rained.)", "We left."], id="closers and openers"),
        pytest.param(['He asked "why?" and left.', "(See above.)"], id="a quote inside"),
        pytest.param(["Zürich liegt am See.", "Über allen Gipfeln."], id="beyond ASCII"),
        pytest.param(["No stop at the end"], id="no stop"),
    ],
)
def test_english_paragraphs(sentences):
    assert split_sentences(" ".join(sentences)) == sentences
    assert split_sentences("  " + "  ".join(sentences) + "\n") == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        pytest.param(["今天下雨。", "我们回家！", "好吗？"], id="stops"),
        pytest.param(["真的吗？！", "是的。"], id="two stops"),
        pytest.param(["他说：“走吧。”", "然后离开了。"], id="closing quote"),
        pytest.param(["「行こう。」", "『はい。』", "（終わり。）"], id="corner brackets"),
        pytest.param(["圆周率约为3.14，不是3.15。", "对。"], id="decimals"),
        pytest.param(["我用Python 3.11。", "It works.", "很好。"], id="mixed"),
        pytest.param(["等等……好。"], id="an ellipsis is no stop"),
        pytest.param(["ﾊﾝｶｸ｡", "ﾃｽﾄ｡"], id="half-width"),
        pytest.param(["没有句号"], id="no stop"),
    ],
)
def test_chinese_and_japanese_paragraphs(sentences):
    is_mixed = any(sentence.isascii() for sentence in sentences)
    assert split_sentences((" " if is_mixed else "").join(sentences)) == sentences


@pytest.mark.parametrize("paragraph", ["", " \t\n", "\u3000"])
def test_white_space_has_no_sentences(paragraph):
    assert split_sentences(paragraph) == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aBI1.!?…。！？\"'“”’»)]」』([ \t\n\u3000鮮Ü,")))
def test_only_white_space_is_lost_and_no_sentence_is_empty(paragraph):
    sentences = split_sentences(paragraph)
    assert "".join("".join(sentences).split()) == "".join(paragraph.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@pytest.mark.parametrize("run", ["?", ".", "…", "。", "!?", "...” "])
def test_long_runs_of_stops_take_little_time(run):
    paragraph = "Really" + run * 300_000 + " Yes."
    start = time.process_time()
    sentences = split_sentences(paragraph)
    assert time.process_time() - start < 20
    assert "".join(sentences).replace(" ", "") == paragraph.replace(" ", "")
