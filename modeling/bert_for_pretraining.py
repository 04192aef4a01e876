"""BertForPreTraining: BertModel with the masked-LM head and, on pairs, the next-sentence head.

Shape suffixes of tensors: B batch, S positions of a row, K sequences of a row, P predictions,
H hidden, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from modeling.attention import jax_gpu
from modeling.bert import BertModel, Initializer, activation, dense, layer_norm
from modeling.config import BertConfig
from modeling.training_options import Precision

_ROOT = "bert_for_pretraining"


class Transform(keras.layers.Layer):
    """Dense, activation, normalize: what the masked-LM head does before the logits."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="transform")
        self.dense = dense(config.hidden_size, initializer, activation(config))
        self.normalize = layer_norm()

    def build(self, input_shape: Any) -> None:
        """Creates both layers."""
        self.dense.build(input_shape)
        self.normalize.build(input_shape)

    def call(self, x_BPH: Any) -> Any:
        """[B, P, H] to [B, P, H]."""
        return self.normalize(self.dense(x_BPH))


class MaskedLanguageModelHead(keras.layers.Layer):
    """Logits over the vocabulary at the masked positions, by the tied word embeddings."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="predictions")
        self.config = config
        self.transform = Transform(config, initializer)

    def build(self, input_shape: Any) -> None:
        """Creates the transform and the output bias."""
        self.transform.build(input_shape)
        self.output_bias = self.add_weight((self.config.vocab_size,), "zeros", name="output_bias")

    def call(self, sequence_output_BSH: Any, positions_BP: Any, word_embeddings_VH: Any) -> Any:
        """Logits [B, P, V], computed only at the masked positions, which are few."""
        x_BPH = ops.take_along_axis(sequence_output_BSH, positions_BP[:, :, None], axis=1)
        x_BPH = self.transform(x_BPH)
        word_embeddings_VH = ops.cast(word_embeddings_VH, x_BPH.dtype)
        x_TH = ops.reshape(x_BPH, (-1, self.config.hidden_size))
        matmul = gpu.padded_matmul if (gpu := jax_gpu()) else ops.matmul
        logits_TV = matmul(x_TH, ops.transpose(word_embeddings_VH)) + self.output_bias
        return ops.reshape(logits_TV, (*ops.shape(positions_BP), self.config.vocab_size))


class NextSentenceHead(keras.layers.Layer):
    """Logits of "B follows A" and of what else B may do, see `SentencePairs`."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="seq_relationship")
        self.hidden_size = config.hidden_size
        self.initializer = initializer

    def build(self, input_shape: Any = None) -> None:
        """Creates weights in the original's layout, [2, H]."""
        self.output_weights = self.add_weight(
            (2, self.hidden_size), self.initializer, name="output_weights"
        )
        self.output_bias = self.add_weight((2,), "zeros", name="output_bias")

    def call(self, pooled_output: Any) -> Any:
        """[…, H] to […, 2]."""
        return ops.matmul(pooled_output, ops.transpose(self.output_weights)) + self.output_bias


class PretrainingHeads(keras.layers.Layer):
    """The heads, under the original's name."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="cls")
        self.hidden_size = config.hidden_size
        self.predictions = MaskedLanguageModelHead(config, initializer)
        self.seq_relationship = NextSentenceHead(config, initializer) if config.has_pooler else None

    def build(self, input_shape: Any = None) -> None:
        """Builds the heads."""
        self.predictions.build((None, None, self.hidden_size))
        if self.seq_relationship:
            self.seq_relationship.build()


@keras.saving.register_keras_serializable("clozemill")
class BertForPreTraining(keras.Model):
    """BERT with its pretraining heads; built on construction.

    Args:
      config: its size, and whether it has a pooler and a next-sentence head.
      seed: seeds the initial weights.
      precision: the precision of the computation; variables, softmax, layer normalization and
        losses are always float32.
      recompute_activations: whether the backward pass computes the blocks' activations again
        instead of keeping them. This saves memory and costs about a third more work.
    """

    def __init__(
        self,
        config: BertConfig,
        seed: int = 0,
        precision: Precision = Precision.FLOAT32,
        recompute_activations: bool = False,
    ):
        with _dtype_policy(precision):
            super().__init__(name=_ROOT)
            self.config = config
            self.precision = precision
            self.recompute_activations = recompute_activations
            self.bert = BertModel(config, seed, recompute_activations)
            self.cls = PretrainingHeads(config, self.bert.initializer)
            self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables; their shapes depend on the config alone."""
        self.bert.build()
        self.cls.build()

    def call(self, batch: Mapping[str, Any], keys: Any = None) -> dict[str, Any]:
        """Runs a batch.

        Args:
          batch: `input_ids`, `input_mask`, `segment_ids` [B, S] and `masked_lm_positions` [B, P].
            The shape of `next_sentence_labels` [B, K] tells how many sequences a row can have;
            without labels, it is one.
          keys: the dropout key of each row, from `modeling.dropout`; None for no dropout.

        Returns:
          `sequence_output` [B, S, H], `pooled_output` [B, H], `masked_lm_logits` [B, P, V] and
          `next_sentence_logits` [B, 2]. If K is more than 1, `pooled_output` is [B, K, H] and
          `next_sentence_logits` is [B, K, 2]. Without a pooler, there are neither of the two.
        """
        labels = batch.get("next_sentence_labels")
        most = 1 if labels is None else labels.shape[-1]
        tokens = (batch[name] for name in ("input_ids", "input_mask", "segment_ids"))
        sequence_output, pooled_output = self.bert(*tokens, keys, max_sequences=most)
        words = self.bert.embeddings.word_embeddings
        logits = self.cls.predictions(sequence_output, batch["masked_lm_positions"], words)
        outputs = {"sequence_output": sequence_output, "masked_lm_logits": logits}
        if self.cls.seq_relationship:
            outputs["pooled_output"] = pooled_output
            outputs["next_sentence_logits"] = self.cls.seq_relationship(pooled_output)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """The arguments from which `from_config` makes the model again, without its weights."""
        return {"bert_config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BertForPreTraining":
        """The model that `get_config` describes."""
        return cls(BertConfig(**config["bert_config"]))

    def copy(self) -> "BertForPreTraining":
        """Another model of the same kind, with its own weights."""
        return BertForPreTraining(self.config, 0, self.precision, self.recompute_activations)

    def named_weights(self) -> dict[str, keras.Variable]:
        """The trainable variables under the names of the original's checkpoints."""
        return {weight_name(variable): variable for variable in self.trainable_variables}

    def set_named_weights(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets every variable from an array of its shape; a missing name is a KeyError."""
        for name, variable in self.named_weights().items():
            variable.assign(values[name])


def weight_name(variable: keras.Variable) -> str:
    """A variable's name in the original's checkpoints."""
    return variable.path.removeprefix(f"{_ROOT}/")


@contextmanager
def _dtype_policy(precision: Precision) -> Iterator[None]:
    """Within, new layers compute in this precision and keep float32 variables."""
    previous = keras.config.dtype_policy()
    name = "float32" if precision == Precision.FLOAT32 else f"mixed_{precision}"
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
