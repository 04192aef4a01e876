"""Dropout whose masks follow from a key alone, by integer hashing.

A key is one uint32, and each example of a batch has its own. The same key gives the same mask on every
backend and device and whenever it is computed: there is no random state besides the seed and the number
of the update, a batch that is computed in parts and an activation that is computed again meet the same
masks, and a run goes on under another backend as it would have gone on under its own. It is also cheap: a few integer operations, which XLA fuses into what uses the mask,
where the generators of TensorFlow and JAX take some forty times as long on a processor.

The hash is Chris Wellons's lowbias32 (https://nullprogram.com/blog/2018/07/31/).
"""

import math
from typing import Any

import numpy as np
from keras import ops


def dropout_key(seed: int) -> Any:
    """The first key of a seed, from which `fold_in` makes all others."""
    return _uint32(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def example_keys(key: Any, rows: Any) -> Any:
    """A key for each example of a batch, [B], by its number there, int32 [B]."""
    return _hash(ops.cast(rows, "uint32") + key)


def fold_in(key: Any, number: Any) -> Any:
    """Another key, or other keys, for each number, an int or an integer scalar; None stays None."""
    if key is None:
        return None
    number = _uint32(number) if isinstance(number, int) else ops.cast(number, "uint32")
    return _hash(ops.bitwise_xor(_hash(key), number))


def dropout(x: Any, rate: float, keys: Any) -> Any:
    """Sets a share `rate` of the elements to 0 and scales the others up; without keys, `x` itself.

    Args:
      x: [B, …], of known shape.
      rate: at least 0 and below 1.
      keys: of the examples, uint32 [B], or None.
    """
    if keys is None or not rate:
        return x
    batch, *shape = x.shape
    keys = ops.reshape(keys, (batch, *[1] * len(shape)))
    elements = ops.reshape(_numbers(math.prod(shape)), (1, *shape))
    # Hashed twice: once alone would give all examples windows of one sequence.
    bits = _hash(ops.bitwise_xor(_hash(elements + keys), keys))
    is_kept = bits >= _uint32(int(rate * 2**32))
    return ops.where(is_kept, x / (1 - rate), ops.zeros_like(x))


def _hash(x: Any) -> Any:
    """Mixes the bits of uint32 numbers."""
    x = _xor_shifted(x, 16) * _uint32(0x7FEB352D)
    x = _xor_shifted(x, 15) * _uint32(0x846CA68B)
    return _xor_shifted(x, 16)


def _xor_shifted(x: Any, bits: int) -> Any:
    return ops.bitwise_xor(x, ops.right_shift(x, _uint32(bits)))


def _numbers(count: int) -> Any:
    # By way of int32, for XLA has no range of uint32.
    return ops.cast(ops.arange(count, dtype="int32"), "uint32")


def _uint32(number: int) -> Any:
    return ops.convert_to_tensor(np.uint32(number), "uint32")
