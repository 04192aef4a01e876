"""BertModel: the encoder of the original BERT in Keras 3, on any backend of Keras.

Layers and variables have the original's names. So a variable's path is its name in an original
checkpoint: `bert/encoder/layer_0/attention/self/query/kernel`.

Shape suffixes of tensors: B batch, S sequence, H hidden, N heads, D head size (H = N·D),
F feed-forward, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from modeling.config import LAYER_NORM_EPSILON, BertConfig, GeluForm
from modeling.dropout import dropout, fold_in

Initializer = Callable[..., np.ndarray]
# The score of padding; its exponential is 0 in float32.
_MASKED_SCORE = -1e9


def truncated_normal(rng: np.random.Generator, stddev: float) -> Initializer:
    """An initializer that draws values again which are more than two standard deviations from 0.

    It draws with NumPy, so that a seed gives the same weights on every backend.
    """

    def initialize(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(np.count_nonzero(outside), np.float32)
        return (values * np.float32(stddev)).astype(dtype or np.float32)

    return initialize


def activation(config: BertConfig) -> Callable[[Any], Any]:
    """The activation function that the config names."""
    if config.hidden_act == "relu":
        return ops.relu
    return partial(ops.gelu, approximate=config.gelu_form == GeluForm.TANH)


def dense(units: int, initializer: Initializer, activation: Any = None, name: str = "dense") -> Any:
    """A dense layer whose kernel comes from an initializer and whose bias starts at 0."""
    return keras.layers.Dense(units, activation, kernel_initializer=initializer, name=name)


def layer_norm() -> keras.layers.LayerNormalization:
    """A layer normalization with the original's name and epsilon."""
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="LayerNorm")


class Embeddings(keras.layers.Layer):
    """Word + position + segment-type embeddings, normalized."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="embeddings")
        self.config = config
        self.initializer = initializer
        self.normalize = layer_norm()
        self.dropout_rate = config.hidden_dropout_prob

    def build(self, input_shape: Any = None) -> None:
        """Creates the three tables."""
        config = self.config
        self.word_embeddings = self._table("word_embeddings", config.vocab_size)
        self.token_type_embeddings = self._table("token_type_embeddings", config.type_vocab_size)
        self.position_embeddings = self._table(
            "position_embeddings", config.max_position_embeddings
        )
        self.normalize.build((None, None, config.hidden_size))

    def call(self, input_ids_BS: Any, segment_ids_BS: Any, keys: Any = None) -> Any:
        """Embeds [B, S] tokens as [B, S, H]."""
        seq_length = ops.shape(input_ids_BS)[1]
        x_BSH = (
            ops.take(self.word_embeddings, input_ids_BS, axis=0)
            + ops.take(self.token_type_embeddings, segment_ids_BS, axis=0)
            + self.position_embeddings[:seq_length]
        )
        return dropout(self.normalize(x_BSH), self.dropout_rate, keys)

    def _table(self, name: str, rows: int) -> keras.Variable:
        # Always in float32, so that the gradients of a row are added up in float32.
        return self.add_weight(
            (rows, self.config.hidden_size), self.initializer, autocast=False, name=name
        )


def attention_with_dropout(
    q_BSND: Any, k_BSND: Any, v_BSND: Any, mask: Any, rate: float, keys: Any
) -> Any:
    """`keras.ops.dot_product_attention` plus what that lacks: dropout of the probabilities."""
    scores_BNSS = ops.cast(ops.einsum("bqnd,bknd->bnqk", q_BSND, k_BSND), "float32")
    scores_BNSS = scores_BNSS / math.sqrt(q_BSND.shape[-1])
    probabilities_BNSS = ops.softmax(ops.where(mask, scores_BNSS, _MASKED_SCORE))
    probabilities_BNSS = ops.cast(dropout(probabilities_BNSS, rate, keys), v_BSND.dtype)
    return ops.einsum("bnqk,bknd->bqnd", probabilities_BNSS, v_BSND)


class SelfAttention(keras.layers.Layer):
    """Scaled dot-product attention of N heads, before its output projection."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="self")
        self.heads = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.query = dense(config.hidden_size, initializer, name="query")
        self.key = dense(config.hidden_size, initializer, name="key")
        self.value = dense(config.hidden_size, initializer, name="value")
        self.dropout_rate = config.attention_probs_dropout_prob

    def build(self, input_shape: Any) -> None:
        """Creates the three projections."""
        for projection in (self.query, self.key, self.value):
            projection.build(input_shape)

    def call(self, x_BSH: Any, mask_B1SS: Any, keys: Any = None) -> Any:
        """Attends from every position to all that `mask_B1SS` lets it see."""
        shape_BSND = (*ops.shape(x_BSH)[:2], *self.heads)
        q_BSND = ops.reshape(self.query(x_BSH), shape_BSND)
        k_BSND = ops.reshape(self.key(x_BSH), shape_BSND)
        v_BSND = ops.reshape(self.value(x_BSH), shape_BSND)
        if keys is not None and self.dropout_rate:
            attend = partial(attention_with_dropout, rate=self.dropout_rate, keys=keys)
        else:
            attend = ops.dot_product_attention
        return ops.reshape(attend(q_BSND, k_BSND, v_BSND, mask=mask_B1SS), ops.shape(x_BSH))


class Output(keras.layers.Layer):
    """Dense, dropout, residual, normalize: the end of both halves of a block."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="output")
        self.hidden_size = config.hidden_size
        self.dense = dense(config.hidden_size, initializer)
        self.dropout_rate = config.hidden_dropout_prob
        self.normalize = layer_norm()

    def build(self, input_shape: Any) -> None:
        """Creates the projection to H and the normalization."""
        self.dense.build(input_shape)
        self.normalize.build((None, None, self.hidden_size))

    def call(self, x: Any, residual_BSH: Any, keys: Any = None) -> Any:
        """Adds the projection of `x` to the residual."""
        return self.normalize(dropout(self.dense(x), self.dropout_rate, keys) + residual_BSH)


class Attention(keras.layers.Layer):
    """The first half of a block: self-attention and its output."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="attention")
        self.self_attention = SelfAttention(config, initializer)
        self.output_layer = Output(config, initializer)

    def build(self, input_shape: Any) -> None:
        """Builds both layers."""
        self.self_attention.build(input_shape)
        self.output_layer.build(input_shape)

    def call(self, x_BSH: Any, mask_B1SS: Any, keys: Any = None) -> Any:
        """Attends and adds the result to `x_BSH`."""
        context_BSH = self.self_attention(x_BSH, mask_B1SS, fold_in(keys, 0))
        return self.output_layer(context_BSH, x_BSH, fold_in(keys, 1))


class Intermediate(keras.layers.Layer):
    """The wide dense layer of a block with its activation."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="intermediate")
        self.dense = dense(config.intermediate_size, initializer, activation(config))

    def build(self, input_shape: Any) -> None:
        """Creates the projection to F."""
        self.dense.build(input_shape)

    def call(self, x_BSH: Any) -> Any:
        """[B, S, H] to [B, S, F]."""
        return self.dense(x_BSH)


class TransformerBlock(keras.layers.Layer):
    """Post-LN block: attention, then the feed-forward layer, each normalized after its residual."""

    def __init__(self, config: BertConfig, initializer: Initializer, name: str):
        super().__init__(name=name)
        self.intermediate_size = config.intermediate_size
        self.attention = Attention(config, initializer)
        self.intermediate = Intermediate(config, initializer)
        self.output_layer = Output(config, initializer)

    def build(self, input_shape: Any) -> None:
        """Builds all three layers."""
        self.attention.build(input_shape)
        self.intermediate.build(input_shape)
        self.output_layer.build((None, None, self.intermediate_size))

    def call(self, x_BSH: Any, mask_B1SS: Any, keys: Any = None) -> Any:
        """[B, S, H] to [B, S, H]."""
        x_BSH = self.attention(x_BSH, mask_B1SS, fold_in(keys, 0))
        return self.output_layer(self.intermediate(x_BSH), x_BSH, fold_in(keys, 1))


class Encoder(keras.layers.Layer):
    """L transformer blocks.

    Args:
      config: their size.
      initializer: initializes their kernels.
      recompute_activations: whether the backward pass computes a block's activations again, so that
        only the activations of one block must be kept.
    """

    def __init__(self, config: BertConfig, initializer: Initializer, recompute_activations: bool):
        super().__init__(name="encoder")
        self.recompute_activations = recompute_activations
        self.blocks: list[Any] = [
            TransformerBlock(config, initializer, name=f"layer_{i}")
            for i in range(config.num_hidden_layers)
        ]

    def build(self, input_shape: Any) -> None:
        """Builds the blocks."""
        for block in self.blocks:
            block.build(input_shape)

    def call(self, x_BSH: Any, mask_B1SS: Any, keys: Any = None) -> Any:
        """[B, S, H] to [B, S, H]."""
        for i, block in enumerate(self.blocks):
            run: Any = partial(block, mask_B1SS=mask_B1SS, keys=fold_in(keys, i))
            x_BSH = keras.remat(run)(x_BSH) if self.recompute_activations else run(x_BSH)
        return x_BSH


class Pooler(keras.layers.Layer):
    """The first token's output through a dense layer with tanh."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="pooler")
        self.dense = dense(config.hidden_size, initializer, "tanh")

    def build(self, input_shape: Any) -> None:
        """Creates the projection."""
        self.dense.build(input_shape)

    def call(self, x_BSH: Any) -> Any:
        """[B, S, H] to [B, H]."""
        return self.dense(x_BSH[:, 0])


class BertModel(keras.layers.Layer):
    """The encoder with its embeddings and its pooler.

    Args:
      config: its size.
      seed: seeds the initial weights.
      recompute_activations: see `Encoder`.
    """

    def __init__(self, config: BertConfig, seed: int, recompute_activations: bool = False):
        super().__init__(name="bert")
        self.config = config
        self.initializer = truncated_normal(np.random.default_rng(seed), config.initializer_range)
        self.embeddings = Embeddings(config, self.initializer)
        self.encoder = Encoder(config, self.initializer, recompute_activations)
        self.pooler = Pooler(config, self.initializer)

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables; their shapes depend on the config alone."""
        hidden_shape = (None, None, self.config.hidden_size)
        self.embeddings.build()
        self.encoder.build(hidden_shape)
        self.pooler.build((None, self.config.hidden_size))

    def call(
        self, input_ids: Any, input_mask: Any, segment_ids: Any, keys: Any = None
    ) -> tuple[Any, Any]:
        """Encodes a batch.

        Args:
          input_ids: [B, S], S at most `max_position_embeddings`.
          input_mask: [B, S], 1 for tokens and 0 for padding, to which nothing attends.
          segment_ids: [B, S], 0 for `[CLS] A [SEP]` and 1 for `B [SEP]`.
          keys: the dropout key of each example, from `modeling.dropout`; None for no dropout.

        Returns:
          The sequence output [B, S, H] and the pooled output [B, H].
        """
        x_BSH = self.embeddings(input_ids, segment_ids, fold_in(keys, 0))
        batch, seq_length = ops.shape(input_mask)
        # Repeated for all queries, because fused kernels do not broadcast.
        mask_B1SS = ops.broadcast_to(
            ops.cast(input_mask, "bool")[:, None, None, :], (batch, 1, seq_length, seq_length)
        )
        sequence_output_BSH = self.encoder(x_BSH, mask_B1SS, fold_in(keys, 1))
        return sequence_output_BSH, self.pooler(sequence_output_BSH)
