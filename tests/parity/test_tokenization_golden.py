"""The tokenizer against the original FullTokenizer's output, text by text."""

import pytest

from pipeline.tokenization import FullTokenizer

pytestmark = pytest.mark.no_backend


def test_tokens_and_ids_are_the_originals(golden_tokenizations):
    golden = golden_tokenizations
    tokenizer = FullTokenizer(golden.vocab_file, golden.do_lower_case)
    assert golden.lines
    for text, tokens, ids in golden.lines:
        assert tokenizer.tokenize(text) == tokens
        assert tokenizer.encode(text).tolist() == ids
