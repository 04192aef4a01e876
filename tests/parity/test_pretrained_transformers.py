"""Models that `transformers` saved are read and compute the same."""

import json
import math
import os

import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.foreign_config import read_config
from modeling.checkpoints.pretrained import initialize, read_pretrained
from modeling.config import BertConfig, weight_shapes
from pipeline.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, S, P = 60, 20, 4


def make(class_name, **config):
    """A model of transformers with weights and biases of notable size."""
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(
        transformers.BertConfig(
            vocab_size=V,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
            **config,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("LayerNorm.weight" in name), 0.3)
    return model.eval()


def read(model, directory):
    """Saves a model with `save_pretrained`; returns it as read, and the missing variables."""
    model.save_pretrained(directory)
    pretrained = read_pretrained(directory)
    assert not pretrained.ignored
    ours = BertForPreTraining(pretrained.config, seed=3)
    return ours, initialize(ours, pretrained)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    position = np.arange(S)
    mask = (position < np.array([[S], [13], [7]])).astype(np.int32)
    return {
        "input_ids": (rng.integers(5, V, (3, S)) * mask).astype(np.int32),
        "input_mask": mask,
        "segment_ids": (mask * (position >= 5)).astype(np.int32),
        "masked_lm_positions": np.array([[1, 7, 9, 19], [2, 3, 11, 0], [4, 0, 0, 0]], np.int32),
    }


def compute_theirs(model, batch):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(batch["input_ids"]).long(),
            attention_mask=torch.tensor(batch["input_mask"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]).long(),
        )


def at_masked_positions(logits, batch):
    return logits.numpy()[np.arange(3)[:, np.newaxis], batch["masked_lm_positions"]]


def assert_close(ours, theirs):
    ours = ops.convert_to_numpy(ours)
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_a_pretraining_model_computes_the_same(tmp_path, batch, hidden_act):
    model = make("BertForPreTraining", hidden_act=hidden_act)
    ours, missing = read(model, tmp_path)
    assert missing == []
    outputs, theirs = ours(batch), compute_theirs(model, batch)
    masked_lm_logits = at_masked_positions(theirs.prediction_logits, batch)
    assert_close(outputs["masked_lm_logits"], masked_lm_logits)
    assert_close(outputs["next_sentence_logits"], theirs.seq_relationship_logits.numpy())


def test_an_encoder_computes_the_same(tmp_path, batch):
    model = make("BertModel")
    ours, missing = read(model, tmp_path)
    assert missing == [name for name in ours.named_weights() if name.startswith("cls/")]
    outputs, theirs = ours(batch), compute_theirs(model, batch)
    assert_close(outputs["sequence_output"], theirs.last_hidden_state.numpy())
    assert_close(outputs["pooled_output"], theirs.pooler_output.numpy())


def test_a_masked_language_model_computes_the_same(tmp_path, batch):
    model = make("BertForMaskedLM")
    ours, missing = read(model, tmp_path)
    assert missing == []
    outputs, theirs = ours(batch), compute_theirs(model, batch)
    assert_close(outputs["masked_lm_logits"], at_masked_positions(theirs.logits, batch))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(tmp_path, batch, dtype):
    model = make("BertForPreTraining").to(getattr(torch, dtype))
    ours, _ = read(model, tmp_path)
    theirs = compute_theirs(model.float(), batch)
    masked_lm_logits = at_masked_positions(theirs.prediction_logits, batch)
    assert_close(ours(batch)["masked_lm_logits"], masked_lm_logits)


def test_a_fine_tuned_model_gives_its_encoder(tmp_path, batch):
    model = make("BertForSequenceClassification", num_labels=3)
    model.save_pretrained(tmp_path)
    pretrained = read_pretrained(tmp_path)
    assert pretrained.ignored == ["classifier.bias", "classifier.weight"]
    ours = BertForPreTraining(pretrained.config)
    initialize(ours, pretrained)
    theirs = compute_theirs(model.bert, batch)
    assert_close(ours(batch)["pooled_output"], theirs.pooler_output.numpy())


def test_every_setting_of_transformers_is_known(tmp_path):
    config = transformers.BertConfig(vocab_size=V, hidden_act="gelu_new")
    content = {name: value for name, value in config.to_dict().items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path / "config.json") == BertConfig.preset("base", V)


def test_a_decoder_is_refused(tmp_path):
    make("BertLMHeadModel", is_decoder=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is_decoder"):
        read_pretrained(tmp_path)


def test_a_relative_of_bert_is_refused(tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=V,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=8,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type is 'roberta'"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("class_name", "prefix"), [("BertModel", "bert/"), ("BertForPreTraining", "")]
)
def test_the_smallest_preset_has_the_same_number_of_parameters(class_name, prefix):
    ours = BertConfig.preset("tiny", vocab_size=30522)
    theirs = getattr(transformers, class_name)(
        transformers.BertConfig(
            vocab_size=30522,
            hidden_size=ours.hidden_size,
            num_hidden_layers=ours.num_hidden_layers,
            num_attention_heads=ours.num_attention_heads,
            intermediate_size=ours.intermediate_size,
        )
    )
    shapes = weight_shapes(ours)
    count = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))
    assert theirs.num_parameters() == count
