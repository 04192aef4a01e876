import numpy as np

from pipeline.inspection import describe_instance
from pipeline.tokenization import Vocabulary

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "tea", "##pot", "is", "hot", "red"]


def test_masked_pieces_are_shown_with_what_they_hide(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(TOKENS))
    ids = "[CLS] tea [MASK] [SEP] is red [SEP] [PAD] [PAD]".split()
    instance = {
        "input_ids": np.array([TOKENS.index(token) for token in ids]),
        "input_mask": np.array([1, 1, 1, 1, 1, 1, 1, 0, 0]),
        "segment_ids": np.array([0, 0, 0, 0, 1, 1, 1, 0, 0]),
        "masked_lm_positions": np.array([2, 5, 0]),
        "masked_lm_ids": np.array([TOKENS.index("##pot"), TOKENS.index("hot"), 0]),
        "masked_lm_weights": np.array([1.0, 1.0, 0.0], np.float32),
        "next_sentence_labels": np.array([1]),
    }
    assert describe_instance(instance, Vocabulary(vocab_file)) == (
        "7 tokens, 2 masked; B is random\n"
        "  A: [CLS] tea {[MASK] → ##pot} [SEP]\n"
        "  B: is {red → hot} [SEP]"
    )
