"""Dropout whose masks depend only on a key, by integer hashing.

A key is one uint32, and each example of a batch has its own. The same key always gives the same
mask, on every backend and device. So the only random state is the seed and the number of the
update. A batch computed in parts and a recomputed activation get the same masks, and a run can
resume on another backend with the masks it would have had on its own. Hashing is also cheap: it
takes a few integer operations, which XLA fuses into the code that uses the mask. On a CPU, the
generators of TensorFlow and JAX take about forty times as long.

The hash is Chris Wellons's lowbias32 (https://nullprogram.com/blog/2018/07/31/).
"""

import math
from contextvars import ContextVar
from typing import Any

import numpy as np
from keras import ops

FIRST_POSITION: ContextVar[Any] = ContextVar("first_position", default=0)
"""The number of the first position, where a device computes a part of the positions."""


def dropout_key(seed: int) -> Any:
    """The first key of a seed; `fold_in` derives all others from it."""
    return _uint32(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def example_keys(key: Any, rows: Any) -> Any:
    """One key per example of a batch, uint32 [B], from the examples' numbers `rows`, int32 [B]."""
    return _hash(ops.cast(rows, "uint32") + key)


def fold_in(key: Any, number: Any) -> Any:
    """Derives another key (or keys) for a number, an int or an integer scalar; None stays None."""
    if key is None:
        return None
    number = _uint32(number) if isinstance(number, int) else ops.cast(number, "uint32")
    return _hash(ops.bitwise_xor(_hash(key), number))


def dropout(x: Any, rate: float, keys: Any) -> Any:
    """Sets a share `rate` of the elements to 0 and scales the others up; without keys, returns `x`.

    Args:
      x: the input, [B, …]. If it is [B, T, …], a part of more positions, set `FIRST_POSITION`.
      rate: the dropout rate, at least 0 and below 1.
      keys: the examples' keys, uint32 [B], or None.
    """
    if keys is None or not rate:
        return x
    _, *shape = ops.shape(x)
    first = ops.cast(FIRST_POSITION.get() * math.prod(shape[1:]), "uint32")
    return drop(x, rate, keys, ops.reshape(_numbers(math.prod(shape)) + first, shape))


def drop(x: Any, rate: float, keys: Any, elements: Any) -> Any:
    """Dropout of any part of each example, with the mask that it has in the whole.

    Args:
      x: the parts, [B, …].
      rate: the dropout rate, above 0 and below 1.
      keys: the examples' keys, uint32 [B].
      elements: the numbers that an example's elements have in the whole, uint32, of the shape of
        `x` without B.
    """
    keys = ops.reshape(keys, (-1, *[1] * len(elements.shape)))
    # Hashed twice, because one hash would give all examples windows of the same sequence.
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
    # Through int32, because XLA has no uint32 range.
    return ops.cast(ops.arange(count, dtype="int32"), "uint32")


def _uint32(number: int) -> Any:
    return ops.convert_to_tensor(np.uint32(number), "uint32")
