"""Writes checkpoints of the Model Garden with its own code, and what its models compute.

It is run as a process of its own, because the Model Garden needs Keras 2.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from official.modeling.tf_utils import get_activation
from official.nlp.modeling import layers, models, networks

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
}


def main(directory):
    """Writes NAME/ckpt-1, NAME/bert_config.json and NAME/expected.npz for each kind."""
    rng = np.random.default_rng(0)
    batch = {
        "input_word_ids": rng.integers(5, 97, (3, 20)),
        "input_mask": np.arange(20) < [[20], [15], [9]],
        "input_type_ids": np.arange(20) >= [[8], [6], [4]],
        "masked_lm_positions": rng.integers(1, 9, (3, 4)),
    }
    inputs = {name: tf.constant(values, tf.int32) for name, values in batch.items()}
    for name in ("first", "second", "items", "oldest"):
        encoder = encoder_of(networks.BertEncoder if name == "first" else networks.BertEncoderV2)
        if name == "oldest":
            encoder = encoder_of(networks.BertEncoder)
            model = models.BertPretrainer(encoder, 2, 4, activation=get_activation("gelu"))
        else:
            head = layers.ClassificationHead(32, 2, name="next_sentence")
            model = models.BertPretrainerV2(
                encoder, mlm_activation=get_activation("gelu"), classification_heads=[head]
            )
        model(list(inputs.values()) if name == "oldest" else inputs)
        for variable in model.trainable_variables:
            mean = 1 if "gamma" in variable.name else 0
            variable.assign(mean + 0.2 * rng.standard_normal(variable.shape))
        if name == "oldest":
            outputs = model(list(inputs.values()))
            logits = outputs["masked_lm"], outputs["classification"]
        else:
            outputs = model(inputs)
            logits = outputs["mlm_logits"], outputs["next_sentence"]
        objects = model.checkpoint_items if name == "items" else {"model": model}
        tf.train.Checkpoint(**objects).save(directory / name / "ckpt")
        (directory / name / "bert_config.json").write_text(json.dumps(CONFIG))
        expected = dict(zip(("masked_lm_logits", "next_sentence_logits"), logits, strict=True))
        np.savez(directory / name / "expected.npz", **batch, **expected)


def encoder_of(kind):
    return kind(
        vocab_size=97,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        inner_dim=64,
        inner_activation=get_activation("gelu"),
        max_sequence_length=48,
        type_vocab_size=2,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
