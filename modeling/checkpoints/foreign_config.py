"""The model config of a trained BERT, which anybody may have written.

It is Hugging Face's config.json or the original's bert_config.json. The names in it tell which,
because the former has had a `model_type` only since version 3 of `transformers`. It matters,
because "gelu" has another meaning in each.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import logging

from modeling.config import LAYER_NORM_EPSILON, BertConfig, GeluForm, read_config_content
from pipeline.errors import UserError, in_one_line, listed
from pipeline.storage import Location

# Names in configs of both kinds that say nothing of the computation; those of poolers are in the
# original's multilingual and Chinese models, though its code never reads them.
_IGNORED = frozenset(
    "directionality language name pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type".split()
)
# Names of Hugging Face that do not affect this BERT: heads for other tasks, outputs, storage and,
# in older versions, text generation.
_HUGGING_FACE_IGNORED = frozenset(
    "_attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures "
    "attn_implementation bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty "
    "do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id eos_token_ids "
    "experts_implementation exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id gradient_checkpointing id2label label2id length_penalty "
    "max_length min_length name_or_path no_repeat_ngram_size num_beam_groups "
    "num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past "
    "output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty "
    "return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype "
    "torchscript transformers_version typical_p use_bfloat16 use_cache xla_device".split()
)
# Names of Hugging Face, and the value that each must have if the model is to be this BERT.
_HUGGING_FACE_NEEDED: dict[str, Any] = {
    "model_type": "bert",
    "layer_norm_eps": LAYER_NORM_EPSILON,
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
}
# Names in configs of BERT's variants, and the value that changes nothing; None if each changes it.
_VARIANTS_NEEDED: dict[str, Any] = {
    "activation_function": None,
    "alibi_starting_size": None,
    "auto_map": None,  # names code that comes with the model
    "feed_forward_type": "original",
    "layer_norm_type": "layer_norm",
    "max_relative_positions": None,
    "norm_first": False,
    "normalization_type": "layer_norm",
    "num_feedforward_networks": 1,
    "num_hidden_groups": None,
    "pre_norm": False,
    "prenorm": False,
    "quantization_config": None,
    "relative_attention": False,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": None,
    "rotary_emb_fraction": 0,
    "rotary_value": False,
    "use_bottleneck": False,
    "use_pre_layernorm": False,
    "use_relative_position": False,
    "use_relative_positions": False,
    "use_rotary_position_embeddings": False,
}
# Names of variants that change nothing if they repeat another field.
_REPEATED = {
    "embedding_size": "hidden_size",
    "embedding_width": "hidden_size",
    "num_key_value_heads": "num_attention_heads",
}
# From `hidden_act` to our `hidden_act` and `gelu_form`. "gelu" depends on whose config it is.
_ACTIVATIONS = {
    "gelu_accurate": ("gelu", GeluForm.TANH),
    "gelu_fast": ("gelu", GeluForm.TANH),
    "gelu_new": ("gelu", GeluForm.TANH),
    "gelu_python": ("gelu", GeluForm.ERF),
    "gelu_python_tanh": ("gelu", GeluForm.TANH),
    "gelu_pytorch_tanh": ("gelu", GeluForm.TANH),
    "relu": ("relu", GeluForm.TANH),
}


def read_config(path: Location) -> BertConfig:
    """The config in a Hugging Face config.json or an original bert_config.json.

    "gelu" means the exact form in the former, the tanh form in the latter. Unknown names are left
    out, with a warning.

    Raises:
      UserError: the file cannot be read, or describes a BERT that `BertForPreTraining` does not
        compute.
    """
    return read_stated_config(path)[0]


def read_stated_config(path: Location) -> tuple[BertConfig, bool]:
    """As `read_config`, and whether the file says which form "gelu" has.

    Raises:
      UserError: as `read_config`.
    """
    content = read_config_content(path)
    fields = {field.name for field in dataclasses.fields(BertConfig)}
    known = {*fields, *_IGNORED, *_HUGGING_FACE_IGNORED, *_HUGGING_FACE_NEEDED}
    if unknown := sorted(content.keys() - known - _VARIANTS_NEEDED.keys() - _REPEATED.keys()):
        logging.warning(
            "the model config %s has names that Clozemill does not know and leaves out: %s",
            path,
            listed([in_one_line(name)[:99] for name in unknown]),
        )
    try:
        _check_computation(content)
        hidden_act, stated_form = _activation(content)
        given = {name: value for name, value in content.items() if name in fields}
        config = BertConfig(
            **given | {"hidden_act": hidden_act, "gelu_form": stated_form or GeluForm.TANH}
        )
    except UserError as error:
        raise UserError(f"in the model config {path}: {error}") from error
    return config, stated_form is not None


def _check_computation(content: Mapping[str, Any]) -> None:
    """Checks that the config is not of a model that computes something else.

    Raises:
      UserError: it is.
    """
    needed = {name: value for name, value in _HUGGING_FACE_NEEDED.items() if name in content}
    # In variants, what is null, false, 0 or empty is not used.
    needed |= {name: value for name, value in _VARIANTS_NEEDED.items() if content.get(name)}
    for name, other in _REPEATED.items():
        if content.get(name):
            needed[name] = content.get(other, getattr(BertConfig, other))
    for name, value in needed.items():
        if content[name] != value:
            wanted = "absent" if value is None else repr(value)
            raise UserError(
                f"{name} is {content[name]!r:.99} but must be {wanted}, because this BERT supports "
                "nothing else"
            )


def _activation(content: Mapping[str, Any]) -> tuple[str, GeluForm | None]:
    """Our `hidden_act` and `gelu_form`; None if the config does not say the latter.

    Raises:
      UserError: the activation is unknown, or the config says two forms.
    """
    name = content.get("hidden_act", "gelu")
    if name != "gelu" and name not in tuple(_ACTIVATIONS):
        raise UserError(
            f"hidden_act is {name!r:.99} but must be one of gelu, {', '.join(_ACTIVATIONS)}"
        )
    form_of_our_own = content.get("gelu_form")
    if name == "gelu":
        is_hugging_face = content.keys() & (_HUGGING_FACE_IGNORED | _HUGGING_FACE_NEEDED.keys())
        return name, form_of_our_own or (GeluForm.ERF if is_hugging_face else None)
    hidden_act, form = _ACTIVATIONS[name]
    if hidden_act == "gelu" and form_of_our_own not in (None, form):
        raise UserError(f"gelu_form is {form_of_our_own!r:.99}, but hidden_act {name} is {form}")
    return hidden_act, form_of_our_own or form
