"""Dropout whose masks follow from a key alone, by integer hashing.

A key is one uint32. The same key gives the same mask on every backend and device and whenever it is
computed: there is no random state besides the seed and the number of the update, an activation that is
computed again meets the same mask, and a run goes on under another backend as it would have gone on
under its own. It is also cheap: a few integer operations, which XLA fuses into what uses the mask,
where the generators of TensorFlow and JAX take a hundred times as long on a processor.

The hash is Chris Wellons's lowbias32 (https://nullprogram.com/blog/2018/07/31/).
"""

import math
from typing import Any

import numpy as np
from keras import ops


def dropout_key(seed: int) -> Any:
    """The first key of a seed, from which `fold_in` makes all others."""
    return _uint32(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def fold_in(key: Any, number: Any) -> Any:
    """Another key for each number, which is an int or an integer scalar; None stays None."""
    if key is None:
        return None
    number = _uint32(number) if isinstance(number, int) else ops.cast(number, "uint32")
    return _hash(ops.bitwise_xor(_hash(key), number))


def dropout(x: Any, rate: float, key: Any) -> Any:
    """Sets a share `rate` of the elements to 0 and scales the others up; without a key, `x` itself.

    Args:
      x: [B, …], of known shape.
      rate: at least 0 and below 1.
      key: a uint32 scalar, or None.
    """
    if key is None or not rate:
        return x
    batch, *shape = x.shape
    # Numbered by example, so that no number outgrows 32 bits.
    example_keys = _hash(_numbers(batch) + key)
    example_keys = ops.reshape(example_keys, (batch, *[1] * len(shape)))
    elements = ops.reshape(_numbers(math.prod(shape)), (1, *shape))
    # Hashed twice: once alone would give all examples windows of one sequence.
    bits = _hash(ops.bitwise_xor(_hash(elements + example_keys), example_keys))
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
