"""Attention, and which tokens see each other.

A token sees the tokens of its own sequence. A batch's `input_mask` [B, S] has the number of each
token's sequence in its row, from 1, and 0 for padding.

Shape suffixes of tensors: B batch, S positions of a row, N heads, D head size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from keras import ops

from modeling.dropout import dropout

Attend = Callable[[Any, Any, Any, float, Any], Any]
"""Queries, keys, values [B, S, N, D], dropout's rate and keys to the context [B, S, N, D]."""
# The score of what is not seen; its exponential is 0 in float32.
_MASKED_SCORE = -1e9


def attention(input_mask_BS: Any, max_sequences: int) -> Attend:
    """Attention among the tokens of a batch.

    Args:
      input_mask_BS: the number of each token's sequence in its row.
      max_sequences: the most sequences that a row can have.
    """
    return partial(_attend_by_xla, mask_B1SS=_visible(input_mask_BS, max_sequences))


def _visible(input_mask_BS: Any, max_sequences: int) -> Any:
    """Whom each position sees, bool [B, 1, S, S]; every position sees at least one."""
    if max_sequences == 1:
        batch, seq_length = ops.shape(input_mask_BS)
        # Repeated for all queries, because fused kernels do not broadcast.
        return ops.broadcast_to(
            ops.cast(input_mask_BS, "bool")[:, None, None, :], (batch, 1, seq_length, seq_length)
        )
    return ops.equal(input_mask_BS[:, None, :, None], input_mask_BS[:, None, None, :])


def _attend_by_xla(
    q_BSND: Any, k_BSND: Any, v_BSND: Any, rate: float, keys: Any, mask_B1SS: Any
) -> Any:
    if keys is None or not rate:
        return ops.dot_product_attention(q_BSND, k_BSND, v_BSND, mask=mask_B1SS)
    return attention_with_dropout(q_BSND, k_BSND, v_BSND, mask_B1SS, rate, keys)


def attention_with_dropout(
    q_BSND: Any, k_BSND: Any, v_BSND: Any, mask: Any, rate: float, keys: Any
) -> Any:
    """`keras.ops.dot_product_attention` plus what that lacks: dropout of the probabilities."""
    scores_BNSS = ops.cast(ops.einsum("bqnd,bknd->bnqk", q_BSND, k_BSND), "float32")
    scores_BNSS = scores_BNSS / math.sqrt(q_BSND.shape[-1])
    probabilities_BNSS = ops.softmax(ops.where(mask, scores_BNSS, _MASKED_SCORE))
    probabilities_BNSS = ops.cast(dropout(probabilities_BNSS, rate, keys), v_BSND.dtype)
    return ops.einsum("bnqk,bknd->bqnd", probabilities_BNSS, v_BSND)
