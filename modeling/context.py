"""Context parallelism under JAX: N devices divide the positions of each sequence among them.

Device i has the positions from i·S/N on, of every activation. All N have the same weights and the
same batch, whose integers are small beside activations. Their sums and gradients add up to those of
one device.

Only attention needs more than the own positions. Keys and values go round a ring of the devices, as
in Liu et al., 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context". At each
turn, a device attends from its queries to the keys that have come. The running maximum and sum of
Milakov and Gimelshein, 2018, "Online normalizer calculation for softmax", make the softmax that of
all keys. The backward pass computes the probabilities again, from the logarithms of those sums, as
in Dao et al., 2022, "FlashAttention". So no device ever has more than the scores of one turn.

Shape suffixes of tensors: B batch, S positions of a row, T positions of a device, K sequences of a
row, P predictions, H hidden, N heads, D head size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modeling.attention import MASKED_SCORE, Attend, Kernel
from modeling.bert import places_in_sequences, sequence_starts
from modeling.bert_for_pretraining import BertForPreTraining
from modeling.dropout import FIRST_POSITION, drop, fold_in
from modeling.losses import pretraining_sums

CONTEXT = "context"
"""The axis of the mesh along which devices divide positions."""


@dataclass(frozen=True)
class Context:
    """Devices that divide the positions of each sequence, as one of them sees them.

    Its methods are called inside a `shard_map` whose mesh has the axis `CONTEXT`.

    Attributes:
      size: N, the number of devices.
    """

    size: int

    @property
    def kernel(self) -> Kernel:
        """What computes attention."""
        return Kernel(f"by a ring of {self.size} devices; compiled by XLA", self.attention)

    def sums(
        self, model: BertForPreTraining, batch: Mapping[str, Any], keys: Any = None
    ) -> dict[str, Any]:
        """The share that this device has in the `losses.pretraining_sums` of a batch.

        It computes what `BertForPreTraining` does from its own positions on. Then it predicts an
        equal share of the masked tokens, wherever they are, and the next-sentence labels of the
        sequences whose first token it has.

        Args:
          model: the model.
          batch: a whole batch, the same on all devices.
          keys: see `BertForPreTraining`.
        """
        bert, heads = model.bert, model.cls
        input_mask_BS, labels_BK = batch["input_mask"], batch["next_sentence_labels"]
        most = labels_BK.shape[-1]
        starts_BK = sequence_starts(input_mask_BS, most)
        places_BS = jnp.arange(input_mask_BS.shape[1], dtype=jnp.int32)[None]
        if most > 1:
            places_BS = places_in_sequences(input_mask_BS, starts_BK)
        tokens = (batch["input_ids"], batch["segment_ids"], places_BS)
        first = lax.axis_index(CONTEXT) * (input_mask_BS.shape[1] // self.size)
        outside = FIRST_POSITION.set(first)
        try:
            x_BTH = bert.embeddings(*map(self._own, tokens), fold_in(keys, 0))
            attend = self.attention(input_mask_BS, most)
            x_BTH = bert.encoder(x_BTH, attend=attend, keys=fold_in(keys, 1))
        finally:
            FIRST_POSITION.reset(outside)
        x_BPH = self._share_at(x_BTH, batch["masked_lm_positions"])
        all_BP = jnp.broadcast_to(jnp.arange(x_BPH.shape[1]), x_BPH.shape[:2])
        words = bert.embeddings.word_embeddings
        outputs = {"masked_lm_logits": heads.predictions(x_BPH, all_BP, words)}
        labels = {
            name: self._own(self._filled_up(batch[name]))
            for name in ("masked_lm_ids", "masked_lm_weights")
        }
        if bert.pooler and heads.seq_relationship:
            places_BK = starts_BK - first
            is_own_BK = (places_BK >= 0) & (places_BK < x_BTH.shape[1])
            places_BK = jnp.clip(places_BK, 0, x_BTH.shape[1] - 1)
            outputs["next_sentence_logits"] = heads.seq_relationship(bert.pooler(x_BTH, places_BK))
            # Each sequence counts as a row of its own, which is empty on other devices.
            is_there_BK = jnp.arange(1, most + 1) <= input_mask_BS.max(axis=1, keepdims=True)
            labels["next_sentence_labels"] = labels_BK.reshape(-1, 1)
            labels["input_mask"] = jnp.int32(is_own_BK & is_there_BK).reshape(-1, 1)
        return pretraining_sums(outputs, labels)

    def attention(self, input_mask_BS: Any, max_sequences: int) -> Attend:
        """Attention from this device's queries to the keys of all; each row has a token."""

        def attend(q_BTND: Any, k_BTND: Any, v_BTND: Any, rate: float, keys: Any) -> Any:
            ring = _Ring(self, max_sequences, 0.0 if keys is None else rate)
            q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTND, k_BTND, v_BTND))
            return jnp.swapaxes(_ring_attention(ring, q, k, v, input_mask_BS, keys), 1, 2)

        return attend

    def _own(self, x: Any) -> Any:
        """The part of [B, S] that this device has, or of [B, P] if N divides P."""
        length = x.shape[1] // self.size
        return lax.dynamic_slice_in_dim(x, lax.axis_index(CONTEXT) * length, length, axis=1)

    def _share_at(self, x_BTH: Any, positions_BP: Any) -> Any:
        """What all devices have at some positions: this one's share, [B, ⌈P / N⌉, H].

        The shares are equal, wherever the positions are. The last ones may end with zeros.

        Args:
          x_BTH: this device's part of [B, S, H].
          positions_BP: numbers from 0 to S - 1.
        """
        length = x_BTH.shape[1]
        places_BP = self._filled_up(positions_BP) - lax.axis_index(CONTEXT) * length
        is_own_BP = (places_BP >= 0) & (places_BP < length)
        places_BP = jnp.clip(places_BP, 0, length - 1)
        x_BPH = jnp.take_along_axis(x_BTH, places_BP[:, :, None], axis=1)
        x_BPH = jnp.where(is_own_BP[:, :, None], x_BPH, 0)
        return lax.psum_scatter(x_BPH, CONTEXT, scatter_dimension=1, tiled=True)

    def _filled_up(self, x_BP: Any) -> Any:
        """[B, P] with zeros at the end, so that N divides P."""
        return jnp.pad(x_BP, ((0, 0), (0, -x_BP.shape[1] % self.size)))


_Turn = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class _Ring:
    """What the turns of a ring have in common. Turn 0 is that of a device's own keys.

    Attributes:
      context: the devices.
      max_sequences: the most sequences that a row can have.
      rate: the dropout rate of the probabilities.
    """

    context: Context
    max_sequences: int
    rate: float

    def go_round(self, compute: _Turn, state: Any, k_BNTD: Any, v_BNTD: Any) -> Any:
        """Calls `compute` with the number of each turn, a state, and the turn's keys and values.

        Returns:
          The state that the last turn returns.
        """

        def turn(number: Any, carried: Any) -> Any:
            state, kv = carried
            following = self.sent_on(kv)  # does not wait for this turn
            return compute(number, state, *kv), following

        # The last turn sends them home, for nothing. But a turn outside of the loop would be the
        # same code in the forward and the backward pass, so XLA would keep its scores for both.
        return lax.fori_loop(0, self.context.size, turn, (state, (k_BNTD, v_BNTD)))[0]

    def sent_on(self, values: Any) -> Any:
        """The values of the device before this one."""
        size = self.context.size
        return lax.ppermute(values, CONTEXT, [(i, (i + 1) % size) for i in range(size)])

    def scores(self, turn: Any, q_BNTD: Any, k_BNTD: Any, input_mask_BS: Any) -> Any:
        """The scores of a turn, float32 [B, N, T, T], as `attention.attention_with_dropout` has."""
        length = q_BNTD.shape[2]
        own, come = (
            lax.dynamic_slice_in_dim(input_mask_BS, device * length, length, axis=1)
            for device in self._devices(turn)
        )
        scores = _product("bnqd,bnkd->bnqk", q_BNTD, k_BNTD) / math.sqrt(q_BNTD.shape[-1])
        # As `attention.masked_attention` has it.
        seen = come[:, None, None, :] > 0
        if self.max_sequences > 1:
            seen = own[:, None, :, None] == come[:, None, None, :]
        return jnp.where(seen, scores, MASKED_SCORE)

    def dropped(self, turn: Any, probabilities_BNTT: Any, keys: Any) -> Any:
        """Dropout of a turn's probabilities, which is their part of that of [B, N, S, S]."""
        if not self.rate:
            return probabilities_BNTT
        shape = probabilities_BNTT.shape[1:]
        seq_length = self.context.size * shape[1]
        head, query, key = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
        own, come = (jnp.uint32(device * shape[1]) for device in self._devices(turn))
        elements = (head * seq_length + query + own) * seq_length + key + come
        return drop(probabilities_BNTT, self.rate, keys, elements)

    def _devices(self, turn: Any) -> tuple[Any, Any]:
        """The numbers of this device, and of the one whose keys it has in a turn."""
        own = lax.axis_index(CONTEXT)
        return own, (own - turn) % self.context.size


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_attention(
    ring: _Ring, q_BNTD: Any, k_BNTD: Any, v_BNTD: Any, input_mask_BS: Any, keys: Any
) -> Any:
    """The context [B, N, T, D] of a device's queries, given its keys and values."""
    return _forward(ring, q_BNTD, k_BNTD, v_BNTD, input_mask_BS, keys)[0]


def _forward(
    ring: _Ring, q_BNTD: Any, k_BNTD: Any, v_BNTD: Any, input_mask_BS: Any, keys: Any
) -> tuple[Any, Any]:
    """The context, and what the backward pass needs."""

    def turn(number: Any, so_far: Any, k_BNTD: Any, v_BNTD: Any) -> Any:
        highest, total, context = so_far
        scores = ring.scores(number, q_BNTD, k_BNTD, input_mask_BS)
        old, highest = highest, jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        weights, scale = jnp.exp(scores - highest), jnp.exp(old - highest)
        dropped = ring.dropped(number, weights, keys).astype(v_BNTD.dtype)
        context = scale * context + _product("bnqk,bnkd->bnqd", dropped, v_BNTD)
        return highest, scale * total + weights.sum(axis=-1, keepdims=True), context

    per_query = jnp.zeros((*q_BNTD.shape[:-1], 1), jnp.float32)
    start = per_query - jnp.inf, per_query, jnp.zeros(q_BNTD.shape, jnp.float32)
    highest, total, context = ring.go_round(turn, start, k_BNTD, v_BNTD)
    context = (context / total).astype(q_BNTD.dtype)
    kept = q_BNTD, k_BNTD, v_BNTD, input_mask_BS, keys, context, highest + jnp.log(total)
    return context, kept


def _backward(ring: _Ring, kept: Any, d_context: Any) -> tuple[Any, ...]:
    """The gradients of queries, keys and values; those of keys and values travel with them."""
    q_BNTD, k_BNTD, v_BNTD, input_mask_BS, keys, context, log_total = kept
    # Of each query, the mean gradient of its probabilities, weighted by them.
    mean = jnp.sum(jnp.float32(d_context) * jnp.float32(context), axis=-1, keepdims=True)

    def turn(number: Any, so_far: Any, k_BNTD: Any, v_BNTD: Any) -> Any:
        dq, dk, dv = so_far
        scores = ring.scores(number, q_BNTD, k_BNTD, input_mask_BS)
        probabilities = jnp.exp(scores - log_total)
        dropped = ring.dropped(number, probabilities, keys)
        d_dropped = _product("bnqd,bnkd->bnqk", d_context, v_BNTD)
        d_scores = (dropped * d_dropped - probabilities * mean) / math.sqrt(q_BNTD.shape[-1])
        d_scores, dropped = d_scores.astype(q_BNTD.dtype), dropped.astype(v_BNTD.dtype)
        dq += _product("bnqk,bnkd->bnqd", d_scores, k_BNTD)
        dk += _product("bnqk,bnqd->bnkd", d_scores, q_BNTD)
        dv += _product("bnqk,bnqd->bnkd", dropped, d_context)
        return dq, *ring.sent_on((dk, dv))

    start = [jnp.zeros(x.shape, jnp.float32) for x in (q_BNTD, k_BNTD, v_BNTD)]
    gradients = ring.go_round(turn, tuple(start), k_BNTD, v_BNTD)
    return *(x.astype(q_BNTD.dtype) for x in gradients), None, None


def _product(subscripts: str, x: Any, y: Any) -> Any:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


_ring_attention.defvjp(_forward, _backward)
