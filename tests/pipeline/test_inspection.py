import numpy as np
import pytest

from pipeline.inspection import Piece, Replacement, describe_instance, pieces_of, relation_of_b
from pipeline.vocabulary import Vocabulary

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea", "##pot", "is", "hot", "red"]


@pytest.fixture
def vocabulary(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(TOKENS))
    return Vocabulary(vocab_file)


@pytest.fixture
def instance():
    """Masks `##pot` with `[MASK]`, keeps `is`, and replaces `hot` with a random piece."""
    ids = "[CLS] tea [MASK] [SEP] is red [SEP] [PAD] [PAD]".split()
    labels = ["##pot", "is", "hot", "[PAD]"]
    return {
        "input_ids": np.array([TOKENS.index(token) for token in ids]),
        "input_mask": np.array([1, 1, 1, 1, 1, 1, 1, 0, 0]),
        "segment_ids": np.array([0, 0, 0, 0, 1, 1, 1, 0, 0]),
        "masked_lm_positions": np.array([2, 4, 5, 0]),
        "masked_lm_ids": np.array([TOKENS.index(token) for token in labels]),
        "masked_lm_weights": np.array([1.0, 1.0, 1.0, 0.0], np.float32),
        "next_sentence_labels": np.array([1]),
    }


def test_masked_pieces_are_shown_with_their_originals(instance, vocabulary):
    assert describe_instance(instance, vocabulary) == (
        "7 tokens, 3 masked; B is random\n"
        "  A: [CLS] tea {[MASK] → ##pot} [SEP]\n"
        "  B: {is → is} {red → hot} [SEP]"
    )


def test_pieces_record_how_they_were_replaced(instance, vocabulary):
    assert pieces_of(instance, vocabulary) == [
        Piece("[CLS]", "[CLS]", None, "A"),
        Piece("tea", "tea", None, "A"),
        Piece("[MASK]", "##pot", Replacement.MASK, "A"),
        Piece("[SEP]", "[SEP]", None, "A"),
        Piece("is", "is", Replacement.KEPT, "B"),
        Piece("red", "hot", Replacement.RANDOM, "B"),
        Piece("[SEP]", "[SEP]", None, "B"),
    ]


def test_the_description_says_whether_b_follows_a(instance, vocabulary):
    assert relation_of_b(instance) == "is random"
    instance["next_sentence_labels"][0] = 0
    assert relation_of_b(instance) == "follows A"
    assert "B follows A" in describe_instance(instance, vocabulary)


def test_an_instance_without_masks_says_so(instance, vocabulary):
    for name in [name for name in instance if name.startswith("masked_lm")]:
        del instance[name]
    assert describe_instance(instance, vocabulary) == (
        "7 tokens, masked while training; B is random\n"
        "  A: [CLS] tea [MASK] [SEP]\n"
        "  B: is red [SEP]"
    )
