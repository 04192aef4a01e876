import os

# Must be set before `transformers` is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.pretrained import Pretrained
from modeling.checkpoints.tokenizer_settings import read_tokenizer_settings
from modeling.config import BertConfig, weight_shapes
from modeling.export.export import export
from modeling.export.formats import Format

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a good bad one two three four mill stone river turn turns "
    "##s ##ing the some text . , !"
).split()

ROOT = Path(__file__).parents[2]
GOLDEN_DIR = ROOT / "tests" / "golden"
# Of the tokenizations, the clone holds a selection. All are tested if they are beside it.
GOLDEN_TOKENIZATIONS = [
    directory for directory in (GOLDEN_DIR, ROOT.parent / "shared" / "golden") if directory.is_dir()
]
# The published vocabularies, and whether their text is lower-cased.
PUBLISHED = {
    "bert-base-uncased": True,
    "bert-base-cased": False,
    "bert-base-chinese": True,
    "bert-base-multilingual-cased": False,
}


@dataclass(frozen=True)
class GoldenTokenizations:
    """The original's tokenizations: lines of a text, its pieces and their ids."""

    vocab_file: Path
    do_lower_case: bool
    lines: list[tuple[str, list[str], list[int]]]


@pytest.fixture(scope="session")
def golden_dir():
    """The folder of golden data; see its README."""
    return GOLDEN_DIR


@pytest.fixture(
    scope="session", params=GOLDEN_TOKENIZATIONS, ids=lambda directory: directory.parent.name
)
def tokenizations_dir(request):
    """A folder of golden tokenizations."""
    return request.param


@pytest.fixture(scope="session", params=PUBLISHED)
def golden_tokenizations(request, tokenizations_dir):
    """The golden tokenizations with a published vocabulary, which is reduced in the clone."""
    golden_dir, name, do_lower_case = tokenizations_dir, request.param, PUBLISHED[request.param]
    whole = golden_dir / "tokenization.jsonl.gz"
    if whole.exists():
        with gzip.open(whole, "rt", encoding="utf-8") as file:
            whole_lines = [line for line in map(json.loads, file) if line["vocab"] == name]
        assert {line["do_lower_case"] for line in whole_lines} == {do_lower_case}
        vocab_file = golden_dir.parent / "vocab" / f"{name}.txt"
        lines = [(line["text"], line["tokens"], line["ids"]) for line in whole_lines]
    else:
        vocab_file = golden_dir / "vocab" / f"{name}.txt"
        tokens = vocab_file.read_text("utf-8").split("\n")
        lines = []
        with (golden_dir / "tokenization" / f"{name}.jsonl").open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                pieces = line["pieces"].split()
                lines.append((line["text"], pieces, [tokens.index(piece) for piece in pieces]))
    return GoldenTokenizations(vocab_file, do_lower_case, lines)


@dataclass(frozen=True)
class Exported:
    """An export for Hugging Face, and its content."""

    directory: Path
    config: BertConfig
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def export_random(tmp_path_factory):
    """A function that exports random weights whose names have a prefix, for Hugging Face."""

    def write(prefixes=("",), **config):
        vocabulary_dir = tmp_path_factory.mktemp("vocabulary")
        (vocabulary_dir / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            **{"max_position_embeddings": 32, **config},
        )
        rng = np.random.default_rng(0)
        weights = {
            name: (name.endswith("gamma") + 0.3 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in weight_shapes(config).items()
            if name.startswith(tuple(prefixes))
        }
        tokenizer = read_tokenizer_settings(vocabulary_dir)
        directory = tmp_path_factory.mktemp("exported")
        pretrained = Pretrained(
            "random weights", vocabulary_dir, config, weights, ignored=[], tokenizer=tokenizer
        )
        export(pretrained, directory, Format.HUGGINGFACE)
        return Exported(directory, config, weights)

    return write


@pytest.fixture(scope="session")
def exported(export_random):
    """An export of a complete model, not to be changed."""
    return export_random()
