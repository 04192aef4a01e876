"""Attention: which kernel computes it, and what tells that kernel who sees whom.

A token sees the tokens of its own sequence. A batch's `input_mask` [B, S] has the number of each
token's sequence in its row, from 1, and 0 for padding.

Shape suffixes of tensors: B batch, S positions of a row, N heads, D head size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from modeling.config import BertConfig
from modeling.dropout import dropout

Attend = Callable[[Any, Any, Any, float, Any], Any]
"""Queries, keys, values [B, S, N, D], dropout's rate and keys to the context [B, S, N, D]."""
MASKED_SCORE = -1e9
"""The score of what is not seen; its exponential is 0 in float32."""


@dataclass(frozen=True)
class Kernel:
    """What computes attention.

    Attributes:
      name: for people.
      attention: makes attention from a batch's `input_mask` and K, the most sequences of a row.
      library: what it is from, as errors name it; "" for XLA itself.
      symbol: what compiled code contains that uses it.
    """

    name: str
    attention: Callable[[Any, int], Attend]
    library: str = ""
    symbol: str = ""


def choose_kernel(config: BertConfig, dtype: str, max_sequences: int, training: bool) -> Kernel:
    """The kernel that computes attention on this machine; if it fails, none takes its place.

    Args:
      config: the model's size.
      dtype: what the model computes in.
      max_sequences: the most sequences that a row can have.
      training: whether there is dropout, if the config has a rate for it.
    """
    if training and config.attention_probs_dropout_prob:
        return not_fused("its probabilities have dropout")
    if gpu := jax_gpu():
        return gpu.choose_kernel(config, dtype, max_sequences)
    return not_fused("this backend has no kernel for this device")


def jax_gpu() -> Any:
    """`modeling.jax_gpu`, where JAX computes on an NVIDIA GPU; None elsewhere."""
    if keras.config.backend() != "jax":
        return None
    from modeling import jax_gpu  # noqa: PLC0415 - an extra

    return jax_gpu if jax_gpu.compute_capability() else None


def not_fused(reason: str) -> Kernel:
    """Attention with a mask, compiled by XLA, and why it is not another kernel."""
    return Kernel(f"not fused, because {reason}; compiled by XLA", masked_attention)


def masked_attention(input_mask_BS: Any, max_sequences: int) -> Attend:
    """Attention with a boolean mask, on every backend and device."""
    mask_B1SS = _visible(input_mask_BS, max_sequences)

    def attend(q_BSND: Any, k_BSND: Any, v_BSND: Any, rate: float, keys: Any) -> Any:
        # JAX's kernel has no products of float16 on a processor.
        if (keys is None or not rate) and q_BSND.dtype != "float16":
            return ops.dot_product_attention(q_BSND, k_BSND, v_BSND, mask=mask_B1SS)
        return attention_with_dropout(q_BSND, k_BSND, v_BSND, mask_B1SS, rate, keys)

    return attend


def _visible(input_mask_BS: Any, max_sequences: int) -> Any:
    """Whom each position sees, bool [B, 1, S, S]; every position sees at least one."""
    if max_sequences == 1:
        batch, seq_length = ops.shape(input_mask_BS)
        # Repeated for all queries, because fused kernels do not broadcast.
        return ops.broadcast_to(
            ops.cast(input_mask_BS, "bool")[:, None, None, :], (batch, 1, seq_length, seq_length)
        )
    return ops.equal(input_mask_BS[:, None, :, None], input_mask_BS[:, None, None, :])


def attention_with_dropout(
    q_BSND: Any, k_BSND: Any, v_BSND: Any, mask: Any, rate: float, keys: Any
) -> Any:
    """`keras.ops.dot_product_attention` plus what that lacks: dropout of the probabilities."""
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q_BSND, k_BSND, v_BSND))
    scores_BNSS = ops.cast(ops.einsum("bnqd,bnkd->bnqk", q, k), "float32")
    scores_BNSS = scores_BNSS / math.sqrt(q_BSND.shape[-1])
    probabilities_BNSS = ops.softmax(ops.where(mask, scores_BNSS, MASKED_SCORE))
    probabilities_BNSS = ops.cast(dropout(probabilities_BNSS, rate, keys), v_BSND.dtype)
    return ops.transpose(ops.einsum("bnqk,bnkd->bnqd", probabilities_BNSS, v), (0, 2, 1, 3))
