import hashlib
import json

import pytest

from pipeline.errors import UserError
from pipeline.vocabulary import SPECIAL_TOKENS, Vocabulary


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
    assert vocabulary.ordinary_ids().tolist() == [6, 8, 10, 11]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nmask\n", r"\[MASK\]"),
        (b"", r"\[PAD\]"),
        (b"[PAD]\n\xff\n", "not UTF-8"),
        ("[PAD]\n[UNK]\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"<unk>\t0\n<s>\t0\na\t-3.25\nb\t-1e-05\n", "has a score on each line, .* SentencePiece"),
        ("<unk>\n\u2581the\n".encode(), "SentencePiece's word marks"),
        (b"#version: 0.2\na b\n", "merges of byte-pair encoding"),
        (b'{"<s>": 0, "a": 1}', "it is JSON"),
    ],
    ids=[
        *("missing", "without [MASK]", "empty", "not UTF-8"),
        *("UTF-16", "scores", "word marks", "merges", "JSON"),
    ],
)
def test_the_error_names_an_unusable_vocabulary(tmp_path, content, problem):
    path = tmp_path / "some_vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as raised:
        Vocabulary(path)
    assert str(path) in str(raised.value)


def test_a_byte_order_mark_is_skipped(tmp_path, write_vocabulary):
    plain = write_vocabulary("dog")
    (path := tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    vocabulary = Vocabulary(path)
    assert vocabulary.tokens == Vocabulary(plain).tokens
    assert vocabulary.content == plain.read_bytes()
    assert vocabulary.sha256 == Vocabulary(plain).sha256


TOKENIZER = {
    "model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(SPECIAL_TOKENS)}},
    "added_tokens": [
        {"id": 0, "content": "[PAD]", "special": True},
        {"id": 6, "content": "[NEW]"},
        {"id": 5, "content": "Word"},
    ],
}


@pytest.fixture
def write_tokenizer(tmp_path):
    """Writes a tokenizer.json and returns its path."""

    def write(content):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("is_directory", [True, False])
def test_a_tokenizer_json_is_a_vocabulary(is_directory, write_tokenizer):
    path = write_tokenizer(TOKENIZER)
    vocabulary = Vocabulary(path.parent if is_directory else path)
    assert vocabulary.tokens == [*SPECIAL_TOKENS, "Word", "[NEW]"]
    assert vocabulary.content.decode() == "\n".join(vocabulary.tokens) + "\n"
    assert vocabulary.sha256 == hashlib.sha256(vocabulary.content).hexdigest()


def test_a_directory_may_hold_a_vocab_txt(write_vocabulary, tmp_path):
    path = write_vocabulary("dog")
    assert Vocabulary(path.parent).tokens == Vocabulary(path).tokens
    with pytest.raises(UserError, match=r"is a directory without vocab\.txt and tokenizer\.json"):
        Vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, "of the type 'BPE', not WordPiece"),
        ({"type": "Unigram", "vocab": [["a", 0.5]]}, "of the type 'Unigram', not WordPiece"),
        (TOKENIZER["model"] | {"continuing_subword_prefix": "@@"}, "inside a word with '@@'"),
        ({"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 2}}, "no tokens for some ids"),
        ({"type": "WordPiece", "vocab": [1]}, "is damaged"),
    ],
)
def test_another_tokenizer_json_is_named_as_what_it_is(model, problem, write_tokenizer):
    path = write_tokenizer({"model": model})
    with pytest.raises(UserError, match=problem) as raised:
        Vocabulary(path)
    assert str(path) in str(raised.value)
