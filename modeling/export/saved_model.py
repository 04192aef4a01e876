"""A BERT as a TensorFlow SavedModel, for TensorFlow Serving, TF Hub and `tf.saved_model.load`.

It has the interface of TF Hub's reusable SavedModels
(https://www.tensorflow.org/hub/reusable_saved_models).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining

_ENCODER_INPUTS = ("input_ids", "input_mask", "segment_ids")


def write_saved_model(
    directory: Path, model: BertForPreTraining, vocabulary: Path, do_lower_case: bool, heads: bool
) -> None:
    """Writes a SavedModel that can be served, called and trained.

    Its signatures take int32 tensors of any batch and length:

    - "encode", the default signature, maps `input_ids`, `input_mask` and `segment_ids` [B, S] to
      `sequence_output` [B, S, H] and, if there is a pooler, `pooled_output` [B, H].
    - "predict", with `heads`, also takes `masked_lm_positions` [B, P] and returns all outputs of
      `BertForPreTraining`.

    The object that `tf.saved_model.load` returns is a function from a dict of the inputs of
    "encode" to a dict of its outputs, with the argument `training`. It has `variables`,
    `trainable_variables`, `vocab_file` and `do_lower_case`.

    Args:
      directory: the directory to write.
      model: a model on the TensorFlow backend.
      vocabulary: its vocab.txt, which becomes an asset.
      do_lower_case: whether its tokenizer lower-cases text.
      heads: whether to include the pretraining heads.
    """
    encoder = _Encoder(model)
    encoder.vocab_file = tf.saved_model.Asset(str(vocabulary))
    encoder.do_lower_case = tf.Variable(do_lower_case, trainable=False)
    inputs = {name: _ids(name) for name in _ENCODER_INPUTS}
    for training in (False, True):
        encoder.__call__.get_concrete_function(inputs, training=training)

    @tf.function(input_signature=list(inputs.values()))
    def encode(input_ids: Any, input_mask: Any, segment_ids: Any) -> dict[str, Any]:
        return _outputs(model.bert(input_ids, input_mask, segment_ids))

    signatures = {"encode": encode, "serving_default": encode}
    if heads:
        encoder.heads = [variable.value for variable in model.cls.weights]

        @tf.function(input_signature=[*inputs.values(), _ids("masked_lm_positions")])
        def predict(
            input_ids: Any, input_mask: Any, segment_ids: Any, masked_lm_positions: Any
        ) -> dict[str, Any]:
            return model(
                {
                    "input_ids": input_ids,
                    "input_mask": input_mask,
                    "segment_ids": segment_ids,
                    "masked_lm_positions": masked_lm_positions,
                }
            )

        signatures["predict"] = predict
    with _quiet():
        tf.saved_model.save(encoder, str(directory), signatures)


class _Encoder(tf.train.Checkpoint):
    """The encoder as a function that TF Hub can train."""

    def __init__(self, model: BertForPreTraining):
        super().__init__()
        self.variables = [variable.value for variable in model.bert.weights]
        self.trainable_variables = list(self.variables)
        self.regularization_losses: list[Any] = []
        self._bert = model.bert.call  # a function, because TensorFlow would save a layer

    @tf.function
    def __call__(self, inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """`sequence_output` [B, S, H], and any `pooled_output` [B, H], of the inputs, [B, S]."""
        keys = None
        if training:
            batch = tf.shape(inputs["input_ids"])[0]
            bits = tf.random.uniform([batch], tf.int32.min, tf.int32.max, tf.int32)
            keys = tf.bitcast(bits, tf.uint32)
        ids, mask, segments = (inputs[name] for name in _ENCODER_INPUTS)
        return _outputs(self._bert(ids, mask, segments, keys))


def _outputs(outputs: tuple[Any, Any]) -> dict[str, Any]:
    named = dict(zip(("sequence_output", "pooled_output"), outputs, strict=True))
    return {name: output for name, output in named.items() if output is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences TensorFlow's messages about its own names and each part that it writes."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _ids(name: str) -> tf.TensorSpec:
    return tf.TensorSpec((None, None), tf.int32, name=name)
