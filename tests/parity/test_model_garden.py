"""The Model Garden's own checkpoints give the numbers of the Model Garden's own models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.pretrained import initialize, read_pretrained

pytestmark = pytest.mark.slow

# Where `make bench` and `make test-slow` install it.
PEERS = Path(sys.prefix) / "peers"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    if not (PEERS / "official").is_dir():
        pytest.skip(f"the Model Garden is not in {PEERS}")
    directory = tmp_path_factory.mktemp("garden")
    environment = os.environ | {"PYTHONPATH": str(PEERS), "TF_USE_LEGACY_KERAS": "1"}
    script = Path(__file__).with_name("model_garden.py")
    subprocess.run([sys.executable, script, directory], env=environment, check=True)
    return directory


@pytest.mark.parametrize("name", ["first", "second", "items", "oldest"])
def test_logits_are_those_of_the_model_garden(written, name):
    pretrained = read_pretrained(written / name)
    model = BertForPreTraining(pretrained.config)
    missing = initialize(model, pretrained)
    expected = np.load(written / name / "expected.npz")
    outputs = model(
        {
            "input_ids": expected["input_word_ids"].astype(np.int32),
            "input_mask": expected["input_mask"].astype(np.int32),
            "segment_ids": expected["input_type_ids"].astype(np.int32),
            "masked_lm_positions": expected["masked_lm_positions"].astype(np.int32),
        }
    )
    # `checkpoint_items` leave out the logits of next sentences.
    heads = (
        ("masked_lm_logits",) if name == "items" else ("masked_lm_logits", "next_sentence_logits")
    )
    assert missing == (
        ["cls/seq_relationship/output_weights", "cls/seq_relationship/output_bias"]
        if name == "items"
        else []
    )
    for head in heads:
        found = ops.convert_to_numpy(outputs[head]).reshape(expected[head].shape)
        np.testing.assert_allclose(found, expected[head], rtol=0, atol=5e-5)
