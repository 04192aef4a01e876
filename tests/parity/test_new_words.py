"""A BERT that `transformers` wrote gets new words and positions; exports compute what it did."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from modeling.checkpoints.extension import extended, find_new_words
from modeling.checkpoints.pretrained import read_pretrained
from modeling.export.export import export
from modeling.export.formats import Format
from modeling.training_options import NewEmbeddings
from pipeline.manifest import DataSet, Manifest

# Exports do not depend on the backend, so one is enough.
if keras.config.backend() != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")

OLD = (
    "[PAD] [unused0] [unused1] [unused2] [UNK] [CLS] [SEP] [MASK] a the heart card ##io ##logy "
    "mill turn ##s ##olo ##gy ."
).split()
NEW = [{"[unused1]": "cardiology"}.get(token, token) for token in OLD] + ["##iology", "hearts"]
OLD_TEXTS = ["The mill turns a heart.", "the card turns [MASK]s a unknown mill . heart."]
NEW_TEXT = "cardiology hearts"
POSITIONS = 16


@pytest.fixture(scope="module")
def old_dir(tmp_path_factory):
    """A directory that transformers has saved, with random weights and biases."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("old")
    (directory / "vocab.txt").write_text("\n".join(OLD) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(OLD),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
    )
    model = transformers.BertForPreTraining(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(
    scope="module",
    params=[NewEmbeddings.MEAN, pytest.param(NewEmbeddings.RANDOM, marks=pytest.mark.slow)],
)
def new_bert(request, tmp_path_factory, old_dir):
    """The BERT with new words and twice as many positions."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "vocab.txt").write_text("\n".join(NEW) + "\n")
    manifest = Manifest(2 * POSITIONS, 1, True, len(NEW), "", {}, {}, [])
    data_set, old = DataSet(directory, manifest), read_pretrained(old_dir)
    sizes = {"vocab_size": len(NEW), "max_position_embeddings": 2 * POSITIONS}
    config = type(old.config)(**old.config.to_dict() | sizes)
    return extended(old, data_set, find_new_words(old, data_set), config, request.param, True)


@pytest.fixture(scope="module")
def old_tokenizer(old_dir):
    return transformers.BertTokenizerFast(str(old_dir / "vocab.txt"))


@pytest.fixture(scope="module")
def batch(old_tokenizer):
    encoded = old_tokenizer(OLD_TEXTS, padding=True, return_tensors="np")
    return {name: values.astype(np.int64) for name, values in encoded.items()}


@pytest.fixture(scope="module")
def expected(old_dir, batch):
    """What the old BERT computes: hidden states, logits of words and of pairs."""
    return by_transformers(old_dir, batch)


def by_transformers(directory, batch):
    model = transformers.BertForPreTraining.from_pretrained(directory).eval()
    with torch.no_grad():
        outputs = model(
            **{name: torch.tensor(values) for name, values in batch.items()},
            output_hidden_states=True,
        )
    last = outputs.hidden_states[-1], outputs.prediction_logits, outputs.seq_relationship_logits
    return [each.numpy() for each in last]


def assert_same(batch, hidden, logits, pairs, expected):
    """The new words change no output, whose numbers may be rounded differently."""
    seen = batch["attention_mask"].astype(bool)
    words = [number for number, token in enumerate(OLD) if token != "[unused1]"]
    assert logits.shape[-1] == len(NEW)
    for actual, wanted in (
        (hidden[seen], expected[0][seen]),
        (logits[seen][:, words], expected[1][seen][:, words]),
        (pairs, expected[2]),
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_transformers_computes_the_same_for_old_text(
    new_bert, old_tokenizer, batch, expected, tmp_path
):
    export(new_bert, tmp_path / "new", Format.HUGGINGFACE)
    assert_same(batch, *by_transformers(tmp_path / "new", batch), expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer(OLD_TEXTS)["input_ids"] == old_tokenizer(OLD_TEXTS)["input_ids"]
    assert tokenizer.tokenize(NEW_TEXT) == ["cardiology", "hearts"]
    assert old_tokenizer.tokenize(NEW_TEXT) == ["card", "##io", "##logy", "heart", "##s"]
    ids = np.array([tokenizer(f"{NEW_TEXT} {OLD_TEXTS[0] * 3}")["input_ids"]])
    assert ids.shape[1] > POSITIONS
    outputs = by_transformers(tmp_path / "new", {"input_ids": ids})
    assert outputs[1].shape == (*ids.shape, len(NEW))


def test_the_original_format_holds_the_same(new_bert, tmp_path):
    export(new_bert, tmp_path / "original", Format.ORIGINAL)
    reader = tf.train.load_checkpoint(str(tmp_path / "original" / "bert_model.ckpt"))
    for name, values in new_bert.weights.items():
        np.testing.assert_array_equal(reader.get_tensor(name), values, name)
    assert (tmp_path / "original" / "vocab.txt").read_text().split() == NEW


def test_onnxruntime_computes_the_same_for_old_text(new_bert, batch, expected, tmp_path):
    export(new_bert, tmp_path / "onnx", Format.ONNX, heads=True)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    logits, pairs = session.run(["logits", "seq_relationship_logits"], batch)
    assert_same(batch, expected[0], logits, pairs, expected)


@pytest.mark.slow
def test_tensorflow_computes_the_same_for_old_text(new_bert, batch, expected, tmp_path):
    export(new_bert, tmp_path / "saved_model", Format.SAVED_MODEL)
    encode = tf.saved_model.load(tmp_path / "saved_model").signatures["encode"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    theirs = zip(("input_ids", "input_mask", "segment_ids"), names, strict=True)
    outputs = encode(**{ours: tf.constant(batch[name], tf.int32) for ours, name in theirs})
    seen = batch["attention_mask"].astype(bool)
    hidden = outputs["sequence_output"].numpy()[seen]
    np.testing.assert_allclose(hidden, expected[0][seen], rtol=1e-4, atol=1e-5)


def test_keras_computes_the_same_for_old_text(new_bert, batch, expected, tmp_path):
    export(new_bert, tmp_path / "keras", Format.KERAS)
    model = keras.saving.load_model(tmp_path / "keras" / "model.keras")
    positions = np.tile(np.arange(batch["input_ids"].shape[1]), (len(OLD_TEXTS), 1))
    outputs = model(
        {
            "input_ids": batch["input_ids"].astype(np.int32),
            "input_mask": batch["attention_mask"].astype(np.int32),
            "segment_ids": batch["token_type_ids"].astype(np.int32),
            "masked_lm_positions": positions.astype(np.int32),
        }
    )
    names = ("sequence_output", "masked_lm_logits", "next_sentence_logits")
    assert_same(batch, *(np.asarray(outputs[name]) for name in names), expected)
