"""Vocabularies of other software are read, or named as what they are."""

import hashlib
import json

import pytest

from pipeline.errors import UserError
from pipeline.foreign_vocabularies import vocabulary_of
from pipeline.vocabulary import SPECIAL_TOKENS, Vocabulary


def test_a_vocab_txt_is_a_vocabulary(write_vocabulary):
    path = write_vocabulary("dog", "##s")
    vocabulary, same = vocabulary_of(path), Vocabulary(path)
    assert (vocabulary.tokens, vocabulary.sha256) == (same.tokens, same.sha256)
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ndog\n")
    with pytest.raises(UserError, match=r"has no \[MASK\]: BERT needs"):
        vocabulary_of(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        vocabulary_of(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[PAD]\n[UNK]\n".encode("utf-16"), "is UTF-16 or no text: save it as UTF-8"),
        (b"<unk>\t0\n<s>\t0\na\t-3.25\nb\t-1e-05\n", "has a score on each line, .* SentencePiece"),
        ("<unk>\n\u2581the\n\u2581a\n".encode(), "SentencePiece's word marks"),
        (b"the 120\nof 99\n", "a count on each line"),
        (b"t h\nth e\n", "merges of byte-pair encoding"),
        ("[PAD]\n[UNK]\n".encode("utf-16-le"), "is UTF-16 or no text"),
        (b"#version: 0.2\na b\n", "merges of byte-pair encoding"),
        (b'{"<s>": 0, "a": 1}', "it is JSON, but not a tokenizer.json"),
    ],
)
def test_a_vocabulary_of_another_kind_is_named(tmp_path, content, problem):
    path = tmp_path / "some.vocab"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as raised:
        vocabulary_of(path)
    assert str(path) in str(raised.value)


def test_a_byte_order_mark_is_skipped(tmp_path, write_vocabulary):
    plain = write_vocabulary("dog")
    (path := tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    vocabulary = vocabulary_of(path)
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
    vocabulary = vocabulary_of(path.parent if is_directory else path)
    assert vocabulary.tokens == [*SPECIAL_TOKENS, "Word", "[NEW]"]
    assert vocabulary.content.decode() == "\n".join(vocabulary.tokens) + "\n"
    assert vocabulary.sha256 == hashlib.sha256(vocabulary.content).hexdigest()


def test_a_directory_may_hold_a_vocab_txt(write_vocabulary, tmp_path):
    path = write_vocabulary("dog")
    assert vocabulary_of(path.parent).tokens == Vocabulary(path).tokens
    with pytest.raises(UserError, match=r"is a directory without vocab\.txt and tokenizer\.json"):
        vocabulary_of(tmp_path)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, "of the type 'BPE', not WordPiece"),
        ({"type": "Unigram", "vocab": [["a", 0.5]]}, "of the type 'Unigram', not WordPiece"),
        (TOKENIZER["model"] | {"continuing_subword_prefix": "@@"}, "inside a word with '@@'"),
        ({"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 2}}, "no tokens for some ids"),
        ({"type": "WordPiece", "vocab": [1]}, "is damaged"),
        ({"type": "WordPiece", "vocab": {"a\nb": 0}}, r"the token 'a\\nb', which no line"),
        ({"type": "WordPiece", "vocab": {" a": 0}}, "the token ' a', which no line"),
    ],
)
def test_another_tokenizer_json_is_named_as_what_it_is(model, problem, write_tokenizer):
    path = write_tokenizer({"model": model})
    with pytest.raises(UserError, match=problem) as raised:
        vocabulary_of(path)
    assert str(path) in str(raised.value)


def test_an_id_belongs_to_one_token(write_tokenizer):
    added = {"added_tokens": [{"id": 3, "content": "word"}]}
    with pytest.raises(UserError, match=r"two tokens with the id 3: '\[SEP\]' and 'word'"):
        vocabulary_of(write_tokenizer(TOKENIZER | added))
