"""Exports open in libraries whose pins clash with ours, each in an environment of its own.

`make test-slow` makes the environments: .venv/optimum and .venv/tensorflow_hub.
"""

import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.pretrained import read_pretrained
from modeling.checkpoints.tokenizer_settings import TokenizerSettings, read_tokens, write_tokenizer
from modeling.export.export import export
from modeling.export.formats import Format
from pipeline.tokenization import FullTokenizer

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"

pytestmark = pytest.mark.slow

# Prints the ids of the lines in a file, without [CLS] and [SEP].
TOKENIZE = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
lines = json.load(open(sys.argv[2]))
print(json.dumps([tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]))
"""
# Prints the names of the tokenizer's tensors, and writes the outputs for a batch.
OPTIMUM = """
import json, sys
import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForMaskedLM
from transformers import AutoTokenizer, pipeline
encoder, heads, batch, outputs = sys.argv[1:]
inputs = dict(np.load(batch))
hidden = ORTModelForFeatureExtraction.from_pretrained(encoder)(**inputs).last_hidden_state
model = ORTModelForMaskedLM.from_pretrained(heads)
np.savez(outputs, last_hidden_state=hidden, logits=model(**inputs).logits)
tokenizer = AutoTokenizer.from_pretrained(heads)
found = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the [MASK] stone")
print(json.dumps([tokenizer.model_input_names, len(found)]))
"""
# Fine-tunes a SavedModel to tell the first token and prints the losses.
TENSORFLOW_HUB = """
import json, os, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras as keras
tf.random.set_seed(0)
names = ("input_ids", "input_mask", "segment_ids")
inputs = {name: keras.Input((None,), dtype=tf.int32, name=name) for name in names}
layer = hub.KerasLayer(sys.argv[1], trainable=True)
model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)["pooled_output"]))
model.compile(keras.optimizers.Adam(2e-3), "mse")
batch = {name: np.ones((64, 8), np.int32) for name in names}
batch["input_ids"][:, 1] = np.arange(64) % 2
before = [weight.numpy() for weight in layer.trainable_weights]
history = model.fit(batch, batch["input_ids"][:, 1].astype(np.float32), epochs=20, verbose=0)
pairs = zip(before, layer.trainable_weights)
changed = sum(bool(np.any(old != new.numpy())) for old, new in pairs)
print(json.dumps([changed, history.history["loss"]]))
"""


def run_in(environment, script, *arguments):
    """What a script prints in an environment without Clozemill."""
    python = ROOT / ".venv" / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs .venv/{environment} (make test-slow)")
    result = subprocess.run(
        [python, "-I", "-c", script, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def exported_as(exported, tmp_path):
    """Exports the model in another format."""

    def convert(export_format, heads=False):
        directory = tmp_path / f"{export_format} {heads}"
        export(read_pretrained(exported.directory), directory, export_format, heads)
        return directory

    return convert


@pytest.mark.no_backend
def test_optimum_computes_the_same(exported, exported_as, tmp_path):
    rng = np.random.default_rng(1)
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
    ids = rng.integers(0, exported.config.vocab_size, mask.shape)
    types = mask * (np.arange(8) > 3)
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=mask, token_type_ids=types)
    encoder, heads = exported_as(Format.ONNX), exported_as(Format.ONNX, heads=True)
    outputs = tmp_path / "out.npz"
    names, num_found = run_in("optimum", OPTIMUM, encoder, heads, tmp_path / "in.npz", outputs)
    assert names == ["input_ids", "token_type_ids", "attention_mask"]
    assert num_found == 5
    model = BertForPreTraining(exported.config)
    model.set_named_weights(exported.weights)
    expected = model(
        {
            "input_ids": ids,
            "input_mask": mask,
            "segment_ids": types,
            "masked_lm_positions": np.tile(np.arange(8), (2, 1)),
        }
    )
    with np.load(outputs) as theirs:
        for name, ours in (
            ("last_hidden_state", "sequence_output"),
            ("logits", "masked_lm_logits"),
        ):
            values = np.asarray(expected[ours])[mask == 1]
            np.testing.assert_allclose(theirs[name][mask == 1], values, atol=1e-4, err_msg=name)


@pytest.mark.no_backend
def test_tensorflow_hub_fine_tunes_a_saved_model(exported, exported_as):
    num_weights = sum(name.startswith("bert/") for name in exported.weights)
    changed, losses = run_in("tensorflow_hub", TENSORFLOW_HUB, exported_as(Format.SAVED_MODEL))
    # Position embeddings beyond the batch's length share their variable with the others.
    assert changed == num_weights
    assert losses[-1] < 0.2 * losses[0]


def lines_of_corpora():
    """10,000 lines of English and Chinese, Thai, and words of up to 201 letters."""
    lines = []
    for corpus in ("enwiki", "zhwiki"):
        files = sorted((SHARED / "corpora" / corpus).iterdir())
        found = [line for path in files for line in path.read_text("utf-8").splitlines() if line]
        lines += random.Random(1).sample(found, 5000)
    lines += (SHARED / "field_cases" / "thai.txt").read_text("utf-8").splitlines()
    return lines + [f"{'a' * length} b" for length in (100, 101, 150, 200, 201)]


@pytest.mark.no_backend
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared (real corpora)")
@pytest.mark.parametrize(
    ("vocabulary", "do_lower_case"),
    [("bert-base-uncased", True), ("bert-base-chinese", True), ("bert-base-cased", False)],
)
def test_tokenizers_give_the_ids_of_training(vocabulary, do_lower_case, tmp_path):
    import transformers

    path, lines = SHARED / "vocab" / f"{vocabulary}.txt", lines_of_corpora()
    write_tokenizer(tmp_path, TokenizerSettings(path, read_tokens(path), do_lower_case, None), 512)
    ours = FullTokenizer(path, do_lower_case)
    expected = [ours.encode(line).tolist() for line in lines]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines] == expected
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    assert run_in("optimum", TOKENIZE, tmp_path, tmp_path / "lines.json") == expected
