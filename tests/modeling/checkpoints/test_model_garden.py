"""Checkpoints of the Model Garden, made with TensorFlow alone; tests/parity has real ones."""

import json

import numpy as np
import pytest
import tensorflow as tf

from modeling.checkpoints.pretrained import read_pretrained
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend

H, N, V = 16, 2, 50
NAMES = {
    "word_embeddings/embeddings": "bert/embeddings/word_embeddings",
    "position_embedding/embeddings": "bert/embeddings/position_embeddings",
    "type_embeddings/embeddings": "bert/embeddings/token_type_embeddings",
    "embeddings/layer_norm/gamma": "bert/embeddings/LayerNorm/gamma",
    "embeddings/layer_norm/beta": "bert/embeddings/LayerNorm/beta",
    "cls/predictions/transform/dense/kernel": "cls/predictions/transform/dense/kernel",
    "cls/predictions/transform/dense/bias": "cls/predictions/transform/dense/bias",
    "cls/predictions/transform/LayerNorm/gamma": "cls/predictions/transform/LayerNorm/gamma",
    "cls/predictions/transform/LayerNorm/beta": "cls/predictions/transform/LayerNorm/beta",
    "cls/predictions/output_bias/bias": "cls/predictions/output_bias",
}
LAYER_NAMES = {
    **{
        f"self_attention/{name}/{part}": f"attention/self/{name}/{part}"
        for name in ("query", "key", "value")
        for part in ("kernel", "bias")
    },
    "self_attention/attention_output/kernel": "attention/output/dense/kernel",
    "self_attention/attention_output/bias": "attention/output/dense/bias",
    "self_attention_layer_norm/gamma": "attention/output/LayerNorm/gamma",
    "self_attention_layer_norm/beta": "attention/output/LayerNorm/beta",
    "intermediate/kernel": "intermediate/dense/kernel",
    "intermediate/bias": "intermediate/dense/bias",
    "output/kernel": "output/dense/kernel",
    "output/bias": "output/dense/bias",
    "output_layer_norm/gamma": "output/LayerNorm/gamma",
    "output_layer_norm/beta": "output/LayerNorm/beta",
}
NAMES |= {
    f"transformer/layer_{i}/{name}": f"bert/encoder/layer_{i}/{original}"
    for i in range(2)
    for name, original in LAYER_NAMES.items()
}
# Of BertPretrainer, and of BertPretrainerV2, whose encoder has a pooler that is not trained.
ENCODERS_POOLER = {
    "pooler_transform/kernel": "bert/pooler/dense/kernel",
    "pooler_transform/bias": "bert/pooler/dense/bias",
}
HEAD_1 = ENCODERS_POOLER | {
    "predictions/transform/logits/kernel": "cls/seq_relationship/output_weights",
    "predictions/transform/logits/bias": "cls/seq_relationship/output_bias",
}
HEAD_2 = {
    "bert/next_sentence/pooler_dense/kernel": "bert/pooler/dense/kernel",
    "bert/next_sentence/pooler_dense/bias": "bert/pooler/dense/bias",
    "bert/next_sentence/logits/kernel": "cls/seq_relationship/output_weights",
    "bert/next_sentence/logits/bias": "cls/seq_relationship/output_bias",
}


@pytest.fixture
def write(tmp_path, config, weights):
    """A function that writes the variables of some full names, and further ones."""

    def in_the_garden(name):
        values = weights[name]
        if "/self/" in name:
            return values.reshape(*values.shape[:-1], N, H // N)
        if name.endswith("attention/output/dense/kernel"):
            return values.reshape(N, H // N, H)
        return values.T if name.endswith("output_weights") else values

    def write_checkpoint(names, others=None):
        values = {full_name: in_the_garden(name) for full_name, name in names.items()}
        values |= others or {}
        model = tf.Module()
        # The attributes, and so the keys, have nothing to do with the names, as in layer-4.
        for i, (full_name, value) in enumerate(sorted(values.items())):
            setattr(model, f"layer_with_weights_{i}", tf.Variable(value, name=full_name))
        optimizer = tf.Module()
        optimizer.m = tf.Variable(np.ones((V, H)), name="Adam/m/word_embeddings/embeddings")
        step = tf.Variable(3, dtype=tf.int64, name="global_step")
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, global_step=step)
        (tmp_path / "bert_config.json").write_text(config.to_json())
        return checkpoint.save(str(tmp_path / "ckpt"))

    return write_checkpoint


def assert_read(pretrained, names, weights):
    assert pretrained.weights.keys() == set(names.values())
    for name, values in pretrained.weights.items():
        np.testing.assert_array_equal(values, weights[name], name, strict=True)


@pytest.mark.parametrize("prefix", ["", "bert_encoder_v2/", "outer/bert/"])
def test_variables_are_found_by_their_full_names(tmp_path, write, weights, prefix):
    names = {prefix + full_name: name for full_name, name in (NAMES | ENCODERS_POOLER).items()}
    write(names)
    pretrained = read_pretrained(tmp_path)
    assert_read(pretrained, names, weights)
    assert pretrained.ignored == []


def test_both_heads_are_read(tmp_path, write, weights):
    write(NAMES | HEAD_1)
    pretrained = read_pretrained(tmp_path)
    assert pretrained.weights.keys() == weights.keys()
    assert_read(pretrained, NAMES | HEAD_1, weights)


def test_the_pooler_of_the_next_sentence_head_is_the_trained_one(tmp_path, write, weights):
    others = {"pooler_transform/kernel": np.ones((H, H), np.float32)}
    write(NAMES | HEAD_2, others)
    pretrained = read_pretrained(tmp_path)
    assert_read(pretrained, NAMES | HEAD_2, weights)
    assert len(pretrained.ignored) == 1


def test_other_heads_are_left_out(tmp_path, write, weights):
    write(NAMES, {"classifier/logits/kernel": np.ones((H, 3), np.float32)})
    pretrained = read_pretrained(tmp_path)
    assert_read(pretrained, NAMES, weights)
    assert len(pretrained.ignored) == 1


def test_another_number_of_heads_is_refused(tmp_path, write, config):
    write(NAMES)
    content = json.loads(config.to_json()) | {"num_attention_heads": 4}
    (tmp_path / "bert_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has 2 attention heads, but .* num_attention_heads 4"):
        read_pretrained(tmp_path)


def test_two_encoders_are_refused(tmp_path, write):
    write(NAMES, {"other/word_embeddings/embeddings": np.ones((V, H), np.float32)})
    with pytest.raises(UserError, match="holds bert/embeddings/word_embeddings twice"):
        read_pretrained(tmp_path)


def test_checkpoints_of_other_models_are_named_as_what_they_are(tmp_path, write):
    write({}, {"dense/kernel": np.ones((2, 3), np.float32)})
    with pytest.raises(UserError, match="object checkpoint of TensorFlow 2, but of no BERT"):
        read_pretrained(tmp_path)
