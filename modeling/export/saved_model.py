"""A BERT as a TensorFlow SavedModel, for TensorFlow Serving and `tf.saved_model.load`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining


def write_saved_model(directory: Path, model: BertForPreTraining, heads: bool) -> None:
    """Writes a SavedModel whose signatures take int32 tensors of any batch and length.

    - "encode", the default signature, maps `input_ids`, `input_mask` and `segment_ids` [B, S] to
      `sequence_output` [B, S, H] and `pooled_output` [B, H].
    - "predict", with `heads`, also takes `masked_lm_positions` [B, P] and returns all outputs of
      `BertForPreTraining`.

    Args:
      directory: the directory to write.
      model: a model on the TensorFlow backend.
      heads: whether to include the pretraining heads.
    """
    archive = keras.export.ExportArchive()

    def encode(input_ids: Any, input_mask: Any, segment_ids: Any) -> dict[str, Any]:
        sequence_output, pooled_output = model.bert(input_ids, input_mask, segment_ids)
        return {"sequence_output": sequence_output, "pooled_output": pooled_output}

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

    inputs = [_ids(name) for name in ("input_ids", "input_mask", "segment_ids")]
    archive.add_endpoint("encode", encode, input_signature=inputs)
    if heads:
        inputs.append(_ids("masked_lm_positions"))
        archive.add_endpoint("predict", predict, input_signature=inputs)
    with _quiet():
        archive.write_out(str(directory), verbose=False)


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
