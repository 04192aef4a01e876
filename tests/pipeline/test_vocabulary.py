import hashlib

import pytest

from pipeline.errors import UserError
from pipeline.vocabulary import Vocabulary


def test_lines_whose_token_is_repeated_later_are_reported(write_vocabulary):
    assert Vocabulary(write_vocabulary("dog", "cat")).repeated_tokens() == []
    vocabulary = Vocabulary(write_vocabulary("dog", "cat", "dog", "[UNK]", "dog"))
    assert vocabulary.repeated_tokens() == ["[UNK]", "dog", "dog"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", " \n"])
@pytest.mark.parametrize("final", [True, False], ids=["final line end", "no final line end"])
def test_vocabulary_lines_are_stripped_and_numbered_from_0(tmp_path, line_end, final):
    path = tmp_path / "vocab.txt"
    tokens = ["[PAD]", "x", "[UNK]", "", "[CLS]", "[SEP]", "[MASK]", "##y"]
    content = (line_end.join(tokens) + (line_end if final else "")).encode()
    path.write_bytes(content)
    vocabulary = Vocabulary(path)
    assert vocabulary.tokens == tokens
    assert vocabulary.ids == {token: number for number, token in enumerate(tokens)}
    assert vocabulary.begins_word.tolist() == [True] * 7 + [False]
    assert vocabulary.sha256 == hashlib.sha256(content).hexdigest()


def test_only_line_feeds_end_a_vocabulary_line(write_vocabulary):
    vocabulary = Vocabulary(write_vocabulary("a\u2028b", "c\x85d"))
    assert vocabulary.tokens[5:] == ["a\u2028b", "c\x85d"]


def test_ordinary_ids_exclude_special_unused_and_empty_tokens(write_vocabulary):
    vocabulary = Vocabulary(write_vocabulary("[unused0]", "a", "", "##b", "[unused99]", "[", "c"))
    assert vocabulary.ordinary_ids.tolist() == [6, 8, 10, 11]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nmask\n", r"\[MASK\]"),
        (b"", r"\[PAD\]"),
        (b"[PAD]\n\xff\n", "not UTF-8"),
    ],
    ids=["missing", "without [MASK]", "empty", "not UTF-8"],
)
def test_the_error_names_an_unusable_vocabulary(tmp_path, content, problem):
    path = tmp_path / "some_vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as raised:
        Vocabulary(path)
    assert str(path) in str(raised.value)
