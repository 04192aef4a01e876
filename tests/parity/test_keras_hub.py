"""`keras_hub` opens a Hugging Face export, with the same outputs and the same token ids."""

import shutil

import keras
import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.tokenizer_settings import TokenizerSettings, write_tokenizer
from pipeline.tokenization import FullTokenizer

# Exports do not depend on the backend, so one is enough.
if keras.config.backend() != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

keras_hub = pytest.importorskip("keras_hub")

S = 20
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the The mill turn ##s Turn ##ing mu ##ller stone cafe 水 車 "
    "runs , . ! ? ' ( ) don t $ 1 ##2 ##3"
).split()
# Without accents and no-break spaces, because keras_hub keeps accents and does not split there.
SENTENCES = [
    "The mill turns.",
    "Turning the stone, the muller runs!",
    "A (cafe) don't\tcost  $123?",
    "水車turns unknownword\nthe stone",
]


def test_keras_hub_computes_the_same_outputs(exported):
    rng = np.random.default_rng(1)
    mask = (np.arange(S) < np.array([[S], [13], [7]])).astype(np.int32)
    ids = (rng.integers(5, exported.config.vocab_size, mask.shape) * mask).astype(np.int32)
    segments = mask * (np.arange(S) > 4)
    model = BertForPreTraining(exported.config)
    model.set_named_weights(exported.weights)
    sequence_output, pooled_output = map(ops.convert_to_numpy, model.bert(ids, mask, segments))

    backbone = keras_hub.models.BertBackbone.from_preset(str(exported.directory))
    inputs = {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}
    theirs = backbone.predict_on_batch(inputs)
    is_token = mask.astype(bool)
    np.testing.assert_allclose(
        theirs["sequence_output"][is_token], sequence_output[is_token], atol=1e-5
    )
    np.testing.assert_allclose(theirs["pooled_output"], pooled_output, atol=1e-5)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_keras_hub_gives_the_same_token_ids(tmp_path, exported, do_lower_case):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    directory = shutil.copytree(exported.directory, tmp_path / "exported")
    settings = TokenizerSettings(vocabulary, VOCABULARY, do_lower_case, None)
    write_tokenizer(directory, settings, exported.config.max_position_embeddings)

    theirs = keras_hub.models.BertTokenizer.from_preset(str(directory))
    ours = FullTokenizer(vocabulary, do_lower_case)
    for sentence in SENTENCES:
        expected = ours.convert_tokens_to_ids(ours.tokenize(sentence))
        assert np.asarray(theirs(sentence)).tolist() == expected, sentence
