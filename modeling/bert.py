"""BertModel: the encoder of the original BERT in Keras 3, on any backend of Keras.

Layers and variables have the original's names. So a variable's path is its name in an original
checkpoint: `bert/encoder/layer_0/attention/self/query/kernel`.

A row of a batch has S positions, with one sequence or, if it is packed, several: see `BertModel`.

Shape suffixes of tensors: B batch, S positions of a row, K sequences of a row, H hidden, N heads,
D head size (H = N·D), F feed-forward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from modeling.attention import Attend, choose_kernel, jax_gpu
from modeling.config import LAYER_NORM_EPSILON, BertConfig, GeluForm
from modeling.dropout import dropout, fold_in

Initializer = Callable[..., np.ndarray]


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


class _OnMatrix(keras.layers.Layer):
    """Computes a layer on [B·S, …] in place of [B, S, …].

    On a processor, XLA transposes whole tensors for the gradients of kernels over two dimensions.
    """

    def call(self, x: Any) -> Any:
        """[…, H] to […, units]."""
        *shape, size = ops.shape(x)
        y = super().call(ops.reshape(x, (-1, size)))
        return ops.reshape(y, (*shape, y.shape[-1]))


class _Dense(_OnMatrix, keras.layers.Dense):
    pass


class _LayerNormalization(_OnMatrix, keras.layers.LayerNormalization):
    pass


def dense(units: int, initializer: Initializer, activation: Any = None, name: str = "dense") -> Any:
    """A dense layer whose kernel comes from an initializer and whose bias starts at 0."""
    return _Dense(units, activation, kernel_initializer=initializer, name=name)


def layer_norm() -> keras.layers.LayerNormalization:
    """A layer normalization with the original's name and epsilon."""
    return _LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="LayerNorm")


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

    def call(
        self, input_ids_BS: Any, segment_ids_BS: Any, places_BS: Any = None, keys: Any = None
    ) -> Any:
        """Embeds tokens as [B, S, H].

        Args:
          input_ids_BS: the tokens.
          segment_ids_BS: their segments.
          places_BS: their places in their sequences; by default, a row is one sequence.
          keys: see `BertModel`.
        """
        positions = self.position_embeddings[: ops.shape(input_ids_BS)[1]]
        if places_BS is not None:
            positions = ops.take(self.position_embeddings, places_BS, axis=0)
        x_BSH = (
            ops.take(self.word_embeddings, input_ids_BS, axis=0)
            + ops.take(self.token_type_embeddings, segment_ids_BS, axis=0)
            + positions
        )
        return dropout(self.normalize(x_BSH), self.dropout_rate, keys)

    def _table(self, name: str, rows: int) -> keras.Variable:
        # Always in float32, so that the gradients of a row are added up in float32.
        return self.add_weight(
            (rows, self.config.hidden_size), self.initializer, autocast=False, name=name
        )


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

    def call(self, x_BSH: Any, attend: Attend, keys: Any = None) -> Any:
        """Attends from every position to all that it sees."""
        shape_BSND = (*ops.shape(x_BSH)[:2], *self.heads)
        layers, gpu = [self.query, self.key, self.value], jax_gpu()
        # On a processor, one product is no faster than three.
        projected = gpu.project_at_once(layers, x_BSH) if gpu else [each(x_BSH) for each in layers]
        q_BSND, k_BSND, v_BSND = (ops.reshape(each_BSH, shape_BSND) for each_BSH in projected)
        context_BSND = attend(q_BSND, k_BSND, v_BSND, self.dropout_rate, keys)
        return ops.reshape(context_BSND, ops.shape(x_BSH))


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

    def call(self, x_BSH: Any, attend: Attend, keys: Any = None) -> Any:
        """Attends and adds the result to `x_BSH`."""
        context_BSH = self.self_attention(x_BSH, attend=attend, keys=fold_in(keys, 0))
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

    def call(self, x_BSH: Any, attend: Attend, keys: Any = None) -> Any:
        """[B, S, H] to [B, S, H]."""
        x_BSH = self.attention(x_BSH, attend=attend, keys=fold_in(keys, 0))
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

    def call(self, x_BSH: Any, attend: Attend, keys: Any = None) -> Any:
        """[B, S, H] to [B, S, H]."""
        for i, block in enumerate(self.blocks):
            run: Any = partial(block, attend=attend, keys=fold_in(keys, i))
            x_BSH = keras.remat(run)(x_BSH) if self.recompute_activations else run(x_BSH)
        return x_BSH


class Pooler(keras.layers.Layer):
    """The output of a sequence's first token through a dense layer with tanh."""

    def __init__(self, config: BertConfig, initializer: Initializer):
        super().__init__(name="pooler")
        self.dense = dense(config.hidden_size, initializer, "tanh")

    def build(self, input_shape: Any) -> None:
        """Creates the projection."""
        self.dense.build(input_shape)

    def call(self, x_BSH: Any, starts_BK: Any = None) -> Any:
        """[B, S, H] to [B, K, H], or to [B, H] where a row is one sequence."""
        if starts_BK is None:
            return self.dense(x_BSH[:, 0])
        return self.dense(ops.take_along_axis(x_BSH, starts_BK[:, :, None], axis=1))


class BertModel(keras.layers.Layer):
    """The encoder with its embeddings, and its pooler if the config has one.

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
        self.pooler = Pooler(config, self.initializer) if config.has_pooler else None

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables; their shapes depend on the config alone."""
        hidden_shape = (None, None, self.config.hidden_size)
        self.embeddings.build()
        self.encoder.build(hidden_shape)
        if self.pooler:
            self.pooler.build((None, self.config.hidden_size))

    def call(
        self,
        input_ids: Any,
        input_mask: Any,
        segment_ids: Any,
        keys: Any = None,
        max_sequences: int = 1,
    ) -> tuple[Any, Any]:
        """Encodes a batch of rows.

        A row's sequences stand one after the other, and padding follows. They do not see each
        other, and the position embeddings of each begin at 0: each is encoded as if it were alone.

        Args:
          input_ids: [B, S]; no sequence is longer than `max_position_embeddings`.
          input_mask: [B, S], the number of each token's sequence in its row, from 1; 0 for padding.
          segment_ids: [B, S], 0 for `[CLS] A [SEP]` and 1 for `B [SEP]`.
          keys: the dropout key of each row, from `modeling.dropout`; None for no dropout.
          max_sequences: K, the most sequences that a row can have.

        Returns:
          The sequence output [B, S, H], and the pooled outputs: [B, H] with one sequence a row,
          else [B, K, H], of which those of sequences that a row does not have mean nothing. Without
          a pooler, None.
        """
        starts_BK, places_BS = None, None
        if max_sequences > 1:
            starts_BK = sequence_starts(input_mask, max_sequences)
            places_BS = places_in_sequences(input_mask, starts_BK)
        x_BSH = self.embeddings(input_ids, segment_ids, places_BS, fold_in(keys, 0))
        kernel = choose_kernel(self.config, self.compute_dtype, max_sequences, keys is not None)
        attend = kernel.attention(input_mask, max_sequences)
        sequence_output_BSH = self.encoder(x_BSH, attend=attend, keys=fold_in(keys, 1))
        return sequence_output_BSH, self.pooler and self.pooler(sequence_output_BSH, starts_BK)


def sequence_starts(input_mask_BS: Any, max_sequences: int) -> Any:
    """Where the sequences of each row begin, int32 [B, K]; anywhere, for those it does not have."""
    numbers_K = ops.arange(1, max_sequences + 1, dtype="int32")
    is_before_BSK = (input_mask_BS[:, :, None] > 0) & (input_mask_BS[:, :, None] < numbers_K)
    starts_BK = ops.sum(ops.cast(is_before_BSK, "int32"), axis=1)
    return ops.minimum(starts_BK, input_mask_BS.shape[1] - 1)


def places_in_sequences(input_mask_BS: Any, starts_BK: Any) -> Any:
    """Each token's place in its sequence, from 0, int32 [B, S]; 0 for padding."""
    starts_BS = ops.take_along_axis(starts_BK, ops.maximum(input_mask_BS - 1, 0), axis=1)
    places_BS = ops.arange(input_mask_BS.shape[1], dtype="int32") - starts_BS
    return ops.where(input_mask_BS > 0, places_BS, 0)
