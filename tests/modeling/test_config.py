import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import BertConfig, GeluForm, weight_shapes
from pipeline.errors import UserError
from pipeline.sentence_pairs import SentencePairs

BERT_VOCAB_SIZE = 30522


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads", "feed_forward"),
    [
        ("tiny", 2, 128, 2, 512),
        ("mini", 4, 256, 4, 1024),
        ("small", 4, 512, 8, 2048),
        ("medium", 8, 512, 8, 2048),
        ("base", 12, 768, 12, 3072),
        ("large", 24, 1024, 16, 4096),
    ],
)
def test_preset_has_the_published_size(name, layers, hidden, heads, feed_forward):
    config = BertConfig.preset(name, BERT_VOCAB_SIZE)
    assert config == BertConfig(
        vocab_size=BERT_VOCAB_SIZE,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        max_position_embeddings=512,
        type_vocab_size=2,
        initializer_range=0.02,
        gelu_form=GeluForm.TANH,
    )


def count_parameters(config, prefix=""):
    shapes = weight_shapes(config)
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


# The exact numbers for encoder and pooler, and the millions with the pretraining heads. The latter
# are as published, except for large, for which the paper says 340.
@pytest.mark.parametrize(
    ("name", "encoder", "published_millions"),
    [
        ("tiny", 4_385_920, "4.4"),
        ("mini", 11_170_560, "11.3"),
        ("small", 28_763_648, "29.1"),
        ("medium", 41_373_184, "41.7"),
        ("base", 109_482_240, "110.1"),
        ("large", 335_141_888, "336.2"),
    ],
)
def test_preset_has_the_published_number_of_parameters(name, encoder, published_millions):
    config = BertConfig.preset(name, BERT_VOCAB_SIZE)
    assert count_parameters(config, "bert/") == encoder
    assert f"{count_parameters(config) / 1e6:.1f}" == published_millions


def test_built_model_has_the_weights_that_its_config_implies(config):
    config = dataclasses.replace(config, num_hidden_layers=3, type_vocab_size=4)
    variables = BertForPreTraining(config).named_weights()
    assert {name: tuple(v.shape) for name, v in variables.items()} == weight_shapes(config)


def test_unknown_preset_is_refused():
    with pytest.raises((KeyError, UserError), match="huge"):
        BertConfig.preset("huge", BERT_VOCAB_SIZE)


@pytest.mark.parametrize(
    ("name", "seq_length", "num_predictions", "gigaflops"),
    [
        ("base", 128, 20, 69.9),
        ("base", 512, 76, 300.9),
        ("large", 128, 20, 240.6),
        ("large", 512, 76, 1019.8),
    ],
)
def test_flops_per_instance(name, seq_length, num_predictions, gigaflops):
    config = BertConfig.preset(name, BERT_VOCAB_SIZE)
    flops = config.flops_per_instance(seq_length, num_predictions)
    assert round(flops / 1e9, 1) == gigaflops


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", "50"),
        ("hidden_size", -16),
        ("hidden_size", 32_768 + 2),
        ("vocab_size", 10_000_001),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 513),
        ("num_attention_heads", 10**400),
        ("max_position_embeddings", 1 << 21),
        ("type_vocab_size", 1_025),
        ("intermediate_size", 131_073),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 2.0),
        ("intermediate_size", 0),
        ("max_position_embeddings", 0),
        ("type_vocab_size", 0),
        ("hidden_act", "swish"),
        ("gelu_form", "gelu"),
        ("hidden_dropout_prob", 1.0),
        ("hidden_dropout_prob", -0.1),
        ("hidden_dropout_prob", float("nan")),
        ("hidden_dropout_prob", False),
        ("hidden_dropout_prob", 10**400),
        ("attention_probs_dropout_prob", float("inf")),
        ("attention_probs_dropout_prob", 1.5),
        ("attention_probs_dropout_prob", -0.1),
        ("initializer_range", -0.02),
    ],
)
def test_impossible_value_is_refused_by_its_name(config, field, value):
    with pytest.raises(UserError, match=f"^{field} .*must be") as raised:
        dataclasses.replace(config, **{field: value})
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 17), ("num_attention_heads", 3)])
def test_heads_must_divide_the_hidden_size(config, field, value):
    with pytest.raises(UserError, match=r"hidden_size \d+ is not a multiple"):
        dataclasses.replace(config, **{field: value})


def test_sizes_far_beyond_the_largest_berts_are_possible():
    BertConfig(1_000_000, hidden_size=25_600, num_hidden_layers=480, num_attention_heads=400)


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_no_dropout_is_possible(config, field):
    assert getattr(dataclasses.replace(config, **{field: 0.0}), field) == 0.0


def test_json_round_trip(config, tmp_path):
    config = dataclasses.replace(
        config, gelu_form=GeluForm.ERF, hidden_dropout_prob=0.25, type_vocab_size=3
    )
    path = tmp_path / "bert_config.json"
    path.write_text(config.to_json(), "utf-8")
    assert BertConfig.read(path) == config


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[50]", "object"),
        (b"{}", "vocab_size"),
        (b'{"vocab_size": 50, "hiden_size": 16}', "hiden_size"),
        (b'{"vocab_size": 0}', "vocab_size"),
        (b'{"vocab_size": 50, "hidden_size": 100}', "hidden_size"),
        (b'{"vocab_size": 50, "hidden_size": "16"}', "hidden_size"),
        (b'{"vocab_size": 50, "hidden_dropout_prob": "0.1"}', "hidden_dropout_prob"),
        (b'{"vocab_size": 50, "initializer_range": "0.02"}', "initializer_range"),
        (b'{"vocab_size": 50, "hidden_act": ["gelu"]}', "hidden_act"),
        (b'{"vocab_size": 50, "two\\nlines": 1}', r"two\\nlines"),
        (b'{"vocab_size": 1e999}', "vocab_size"),
        (b'{"vocab_size": ' + 5000 * b"9" + b"}", "JSON"),
        (b'{"vocab_size": ' + 100_000 * b"[" + 100_000 * b"]" + b"}", "JSON"),
    ],
)
def test_unusable_file_is_named_with_what_is_wrong(tmp_path, content, reported):
    path = tmp_path / "my_config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reported) as raised:
        BertConfig.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [None, Path.mkdir, os.mkfifo])
def test_missing_file_or_something_else_is_named(tmp_path, make):
    path = tmp_path / "my_config.json"
    if make:
        make(path)
    with pytest.raises(UserError) as raised:
        BertConfig.read(path)
    assert str(path) in str(raised.value)


def test_sentence_pairs_are_written_where_they_are_not_the_originals(tmp_path):
    config, path = BertConfig.preset("tiny", 40), tmp_path / "bert_config.json"
    assert "sentence_pairs" not in config.to_json()
    assert config.has_pooler
    for pairs in ("order", "none"):
        other = dataclasses.replace(config, sentence_pairs=SentencePairs(pairs))
        path.write_text(other.to_json())
        assert json.loads(other.to_json()) == config.to_dict() | {"sentence_pairs": pairs}
        assert BertConfig.read(path) == other
    assert not other.has_pooler
    head = 6 * 2 * (config.hidden_size**2 + 2 * config.hidden_size)
    flops = [each.flops_per_instance(16, 3, num_sequences=2) for each in (config, other)]
    assert flops[0] - flops[1] == head
    with pytest.raises(UserError, match="sentence_pairs is 'some' but must be next or order or no"):
        dataclasses.replace(config, sentence_pairs="some")
