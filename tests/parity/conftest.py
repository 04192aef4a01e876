import os

# Before `transformers` is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.pretrained import Pretrained
from modeling.checkpoints.tokenizer_settings import read_tokenizer_settings
from modeling.config import BertConfig, weight_shapes
from modeling.export.export import Format, export

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a good bad one two three four mill stone river turn turns "
    "##s ##ing the some text . , !"
).split()


@dataclass(frozen=True)
class Exported:
    """An export for Hugging Face and what is in it."""

    directory: Path
    config: BertConfig
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def export_random(tmp_path_factory):
    """A function that exports random weights for Hugging Face: those whose names have a prefix."""

    def write(prefixes=("",), **config):
        vocabulary_dir = tmp_path_factory.mktemp("vocabulary")
        (vocabulary_dir / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
            **config,
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
    """A whole model, not to be changed."""
    return export_random()
