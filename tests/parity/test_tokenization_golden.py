"""The original FullTokenizer's own output, line for line."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.tokenization import FullTokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN = SHARED / "golden" / "tokenization.jsonl.gz"

pytestmark = [
    pytest.mark.no_backend,
    pytest.mark.skipif(not GOLDEN.exists(), reason="the golden data is not beside us"),
]


@pytest.fixture(scope="module")
def golden_lines():
    lines = defaultdict(list)
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        for line in map(json.loads, file):
            lines[line["vocab"]].append(line)
    return lines


@pytest.mark.parametrize(
    "vocabulary",
    [
        "bert-base-uncased",
        "bert-base-cased",
        "bert-base-chinese",
        "bert-base-multilingual-cased",
    ],
)
def test_tokens_and_ids_are_the_originals(vocabulary, golden_lines):
    lines = golden_lines[vocabulary]
    assert lines
    tokenizers = {
        do_lower_case: FullTokenizer(SHARED / "vocab" / f"{vocabulary}.txt", do_lower_case)
        for do_lower_case in {line["do_lower_case"] for line in lines}
    }
    for line in lines:
        tokenizer = tokenizers[line["do_lower_case"]]
        assert tokenizer.tokenize(line["text"]) == line["tokens"]
        assert tokenizer.encode(line["text"]).tolist() == line["ids"]
