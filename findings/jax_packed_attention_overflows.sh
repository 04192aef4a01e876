#!/bin/sh
# JAX 0.10.2 tells cuDNN where packed sequences begin by offsets that it counts in elements of the
# whole batch (rows x tokens x heads x head size) in int32. From 2^31 elements on they wrap around
# without an error, so that attention reads elsewhere: 4,096 rows of 512 tokens of BERT-large, which
# fit into the memory of one GPU if activations are recomputed. (Seen without a GPU, in the numbers
# that the lowering for GPUs computes.)
#
# Seen: "4095 rows: … JAX says 2,146,697,216", "4097 rows: … JAX says -2,147,221,504".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2
"$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
from jax._src.cudnn.fused_attention_stablehlo import _fix_seqlen_offsets


def first_and_last_offset(rows):
    """Of rows with two sequences each, as the lowering for GPUs computes them."""
    q = jax.ShapeDtypeStruct((rows, 512, 16, 64), jnp.bfloat16)
    lengths = jnp.full((rows, 2), 256, jnp.int32)
    starts = jnp.tile(jnp.array([[0, 256, -1]], jnp.int32), (rows, 1))
    offsets = _fix_seqlen_offsets(lengths, lengths, starts, starts, q, q)[2].ravel()
    return int(offsets[0]), int(offsets[2 * rows - 1])


for rows in (4095, 4097):
    expected = (2 * rows - 1) * 256 * 16 * 64
    first, last = first_and_last_offset(rows)
    print(f"{rows} rows: the last sequence begins at element {expected:,}; JAX says {last:,}")
    assert first == 0
    assert (last == expected) == (rows < 4096), "the behaviour has changed"
EOF
