"""What JAX computes in its own way on NVIDIA GPUs: attention by fused kernels that take no mask.

A mask [B, 1, S, S] is slow: cuDNN adds it to the scores as a bias, and its backward pass writes a
gradient of that bias, which nobody reads. So the kernels here get numbers [B] or [B, K], from which
they know who sees whom. cuDNN's outputs for padding differ from those of a mask; nothing that is
trained or evaluated depends on them.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn  # JAX has no public name for it
from jax.experimental.pallas.ops.gpu import attention as pallas
from keras import ops

from modeling.attention import Attend, Kernel, not_fused
from modeling.config import BertConfig

_COLUMNS = 64
_BLOCK = pallas.BlockSizes.get_default().block_q


def choose_kernel(config: BertConfig, dtype: str, max_sequences: int) -> Kernel:
    """The kernel of attention without dropout on this machine; see `modeling.attention`."""
    capability = compute_capability()
    assert capability
    head_size = config.hidden_size // config.num_attention_heads
    if dtype == "float32":
        return not_fused("no fused kernel computes in float32")
    if capability < (8, 0):
        return not_fused("the GPU is older than Ampere")
    if head_size % 8 or head_size > 128:
        return not_fused(f"a head has {head_size} dimensions, not a multiple of 8 up to 128")
    if max_sequences == 1:
        return CUDNN
    return CUDNN_PACKED if capability >= (9, 0) else PALLAS


def compute_capability() -> tuple[int, ...] | None:
    """The compute capability of this process's NVIDIA GPUs; None without one."""
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return None
    return tuple(int(number) for number in device.compute_capability.split("."))


def project_at_once(projections: Sequence[Any], x_BSH: Any) -> list[Any]:
    """The outputs of dense layers of the same size, by one product."""
    kernel = jnp.concatenate([ops.convert_to_tensor(each.kernel) for each in projections], axis=1)
    bias = jnp.concatenate([ops.convert_to_tensor(each.bias) for each in projections])
    return jnp.split(jnp.matmul(x_BSH, kernel) + bias, len(projections), axis=-1)


def padded_matmul(x: Any, kernel: Any) -> Any:
    """The product of `x` and a kernel [H, V], computed with a multiple of 64 columns: faster."""
    columns = kernel.shape[1]
    return jnp.matmul(x, jnp.pad(kernel, ((0, 0), (0, -columns % _COLUMNS))))[..., :columns]


def _cudnn_attention(input_mask_BS: Any, _max_sequences: int) -> Attend:
    lengths_B = jnp.sum(input_mask_BS > 0, axis=1, dtype=jnp.int32)

    def attend(q_BSND: Any, k_BSND: Any, v_BSND: Any, _rate: float, _keys: Any) -> Any:
        return jax.nn.dot_product_attention(
            *(q_BSND, k_BSND, v_BSND),
            query_seq_lengths=lengths_B,
            key_value_seq_lengths=lengths_B,
            implementation="cudnn",
        )

    return attend


def segments(input_mask_BS: Any, max_sequences: int) -> tuple[Any, Any]:
    """The segments of each row, as cuDNN knows them: its sequences, and then its padding.

    Padding is a segment too, because cuDNN would leave its outputs and gradients unwritten.

    Returns:
      Their lengths [B, K + 1] and where they begin [B, K + 2], int32; -1 for those that a row does
      not have.
    """
    numbers_BS = jnp.where(input_mask_BS > 0, input_mask_BS, max_sequences + 1)
    numbers_M = jnp.arange(1, max_sequences + 2)
    lengths_BM = jnp.sum(numbers_BS[:, :, None] == numbers_M, axis=1, dtype=jnp.int32)
    starts_BM = jnp.cumsum(lengths_BM, axis=1) - lengths_BM
    is_there_BM = lengths_BM > 0
    starts_BM = jnp.pad(jnp.where(is_there_BM, starts_BM, -1), ((0, 0), (0, 1)), constant_values=-1)
    return jnp.where(is_there_BM, lengths_BM, -1), starts_BM


def _cudnn_packed_attention(input_mask_BS: Any, max_sequences: int) -> Attend:
    lengths_BM, starts_BM = segments(input_mask_BS, max_sequences)

    def attend(q_BSND: Any, k_BSND: Any, v_BSND: Any, _rate: float, _keys: Any) -> Any:
        if q_BSND.size > np.iinfo(np.int32).max:  # else JAX's offsets would overflow in silence
            raise ValueError(
                "cuDNN's offsets have 32 bits, too few for so many rows: raise "
                "--gradient_accumulation_steps"
            )
        return cudnn.dot_product_attention(
            *(q_BSND, k_BSND, v_BSND),
            q_seqlen=lengths_BM,
            kv_seqlen=lengths_BM,
            q_offsets=starts_BM,
            kv_offsets=starts_BM,
            scale=1 / math.sqrt(q_BSND.shape[-1]),
        )

    return attend


def pallas_attention(input_mask_BS: Any, _max_sequences: int, interpret: bool = False) -> Attend:
    """Attention by Pallas's kernel; padding sees padding.

    Args:
      input_mask_BS: the number of each token's sequence in its row; 0 for padding.
      interpret: whether Pallas interprets the kernel, for tests on a processor.
    """
    seq_length = input_mask_BS.shape[1]
    padding = ((0, 0), (0, -seq_length % _BLOCK))
    numbers_BS = jnp.pad(input_mask_BS, padding)

    def attend(q_BSND: Any, k_BSND: Any, v_BSND: Any, _rate: float, _keys: Any) -> Any:
        # Whole blocks, because the kernel knows no others.
        q, k, v = (jnp.pad(x, (*padding, (0, 0), (0, 0))) for x in (q_BSND, k_BSND, v_BSND))
        scale = 1 / math.sqrt(q.shape[-1])
        context = pallas.mha(q, k, v, numbers_BS, sm_scale=scale, interpret=interpret)
        return context[:, :seq_length]

    return attend


CUDNN = Kernel("cuDNN's fused kernel, told lengths", _cudnn_attention, "cuDNN", "fmha")
CUDNN_PACKED = Kernel(
    "cuDNN's fused kernel, told where sequences begin", _cudnn_packed_attention, "cuDNN", "fmha"
)
PALLAS = Kernel(
    "Pallas's fused kernel, told the sequences' numbers", pallas_attention, "Triton", "triton"
)
