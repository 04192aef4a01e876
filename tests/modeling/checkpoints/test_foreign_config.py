"""Reading configs of Hugging Face, and the original's where both are accepted."""

import dataclasses
import json
import logging

import pytest

from modeling.checkpoints.foreign_config import read_config
from modeling.config import BertConfig, GeluForm
from pipeline.errors import UserError

BERT_VOCAB_SIZE = 30522
BASE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": BERT_VOCAB_SIZE,
}
LATER_ORIGINAL = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}
# The further names that versions 2, 4 and 5 of transformers write.
HUGGING_FACE_2 = {
    "architectures": ["BertForSequenceClassification"],
    "do_sample": False,
    "eos_token_ids": 0,
    "finetuning_task": "sst-2",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "layer_norm_eps": 1e-12,
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "num_labels": 2,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "pad_token_id": 0,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "use_bfloat16": False,
}
HUGGING_FACE_4 = {
    "_name_or_path": "bert-base-uncased",
    "architectures": ["BertForMaskedLM"],
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.41.0",
    "use_cache": True,
}
HUGGING_FACE_5 = {
    "add_cross_attention": False,
    "architectures": ["BertForPreTraining"],
    "bos_token_id": None,
    "classifier_dropout": None,
    "dtype": "float32",
    "eos_token_id": None,
    "is_decoder": False,
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "transformers_version": "5.0.0",
    "use_cache": True,
}


@pytest.fixture
def read(tmp_path):
    """A function that reads a config from the content of its file."""

    def read_content(content):
        path = tmp_path / "some_config.json"
        path.write_text(json.dumps(content), "utf-8")
        return read_config(path)

    return read_content


@pytest.mark.parametrize("extra", [{}, LATER_ORIGINAL])
def test_an_original_bert_config_is_read(read, extra):
    assert read(BASE | extra) == BertConfig.preset("base", BERT_VOCAB_SIZE)


@pytest.mark.parametrize(
    "extra",
    [
        HUGGING_FACE_2,
        HUGGING_FACE_4,
        HUGGING_FACE_4 | LATER_ORIGINAL,
        HUGGING_FACE_5,
        {"model_type": "bert"},
        {"architectures": ["BertModel"]},
    ],
)
def test_a_hugging_face_config_is_read(read, extra):
    base = BertConfig.preset("base", BERT_VOCAB_SIZE)
    assert read(BASE | extra) == dataclasses.replace(base, gelu_form=GeluForm.ERF)


@pytest.mark.parametrize(
    ("name", "hidden_act", "gelu_form"),
    [
        ("gelu", "gelu", GeluForm.ERF),
        ("gelu_new", "gelu", GeluForm.TANH),
        ("gelu_pytorch_tanh", "gelu", GeluForm.TANH),
        ("gelu_accurate", "gelu", GeluForm.TANH),
        ("gelu_fast", "gelu", GeluForm.TANH),
        ("gelu_python", "gelu", GeluForm.ERF),
        ("gelu_python_tanh", "gelu", GeluForm.TANH),
        ("relu", "relu", GeluForm.TANH),
    ],
)
def test_activations_of_hugging_face_have_the_same_formula_here(read, name, hidden_act, gelu_form):
    config = read(BASE | HUGGING_FACE_5 | {"hidden_act": name})
    assert (config.hidden_act, config.gelu_form) == (hidden_act, gelu_form)
    if name != "gelu":  # the only name with another meaning in the original's
        assert read(BASE | {"hidden_act": name}) == config


def test_values_that_hugging_face_leaves_out_are_its_defaults(read):
    config = BertConfig(vocab_size=50, gelu_form=GeluForm.ERF)
    assert read({"model_type": "bert", "vocab_size": 50}) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "roberta"),
        ("hidden_act", "silu"),
        ("hidden_act", ["gelu"]),
        ("layer_norm_eps", 1e-5),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("pruned_heads", {"0": [1]}),
        ("embedding_size", 128),
        ("hidden_size", 100),
    ],
)
def test_hugging_face_config_of_another_model_is_refused(read, tmp_path, name, value):
    with pytest.raises(UserError, match=name) as raised:
        read(BASE | HUGGING_FACE_5 | {name: value})
    assert str(tmp_path / "some_config.json") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["layer_norm_eps", "layer_norm_epsilon", "output_attentions", "torchscript"]
)
def test_a_name_of_hugging_face_tells_a_config_without_model_type(read, name):
    """As pytorch-transformers 1 and transformers 2 wrote it."""
    value = 1e-12 if "eps" in name else False
    assert read(BASE | {name: value}).gelu_form == GeluForm.ERF
    assert read(BASE).gelu_form == GeluForm.TANH


@pytest.mark.parametrize("extra", [{}, LATER_ORIGINAL, HUGGING_FACE_4])
def test_unknown_names_are_a_warning(read, tmp_path, caplog, extra):
    with caplog.at_level(logging.WARNING, logger="absl"):
        known = read(BASE | extra)
        assert not caplog.messages
        assert read(BASE | extra | {"mlm_probability": 0.15, "two\nlines": 1}) == known
    (message,) = caplog.messages
    assert message.endswith(r"mlm_probability, two\nlines")
    assert str(tmp_path / "some_config.json") in message


@pytest.mark.parametrize("extra", [{}, HUGGING_FACE_4])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "alibi"),
        ("add_cross_attention", True),
        ("layer_norm_epsilon", 1e-5),
        ("embedding_size", 128),
        ("num_key_value_heads", 4),
        ("norm_first", True),
        ("rope_theta", 10_000.0),
        ("alibi_starting_size", 512),
        ("feed_forward_type", "geglu"),
        ("auto_map", {"AutoModel": "code.Bert"}),
        ("quantization_config", {"bits": 8}),
    ],
)
def test_names_that_change_the_computation_are_an_error(read, tmp_path, extra, name, value):
    with pytest.raises(UserError, match=f"{name} is .* but must be") as raised:
        read(BASE | extra | {name: value})
    assert str(tmp_path / "some_config.json") in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_size", 768),
        ("embedding_size", None),
        ("num_key_value_heads", 12),
        ("norm_first", False),
        ("rope_scaling", None),
        ("auto_map", {}),
    ],
)
def test_names_of_variants_that_change_nothing_are_read(read, name, value):
    assert read(BASE | {name: value}) == BertConfig.preset("base", BERT_VOCAB_SIZE)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_python"])
def test_a_form_of_our_own_does_not_contradict_the_activation(read, name):
    form, other = (GeluForm.TANH, GeluForm.ERF)[:: 1 if name == "gelu_new" else -1]
    assert read(BASE | {"hidden_act": name, "gelu_form": form}).gelu_form == form
    with pytest.raises(UserError, match=f"gelu_form is '{other}', but hidden_act {name} is {form}"):
        read(BASE | {"hidden_act": name, "gelu_form": other})
