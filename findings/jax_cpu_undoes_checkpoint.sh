#!/bin/sh
# JAX 0.10.2 on a processor: `jax.checkpoint` has no effect, although by default it keeps XLA from
# merging what is computed twice. A loop of one trip does not help, because XLA inlines it. In a loop
# of two trips, `jax.checkpoint` works. So `memory_analysis()` on a processor tells what checkpoints
# will save on a GPU only where these are in loops.
#
# Seen, of eight blocks of attention: MiB of temporary memory, and how often exponentials are computed:
# "plain: 160, 8", "checkpoint: 144, 8", "one trip: 144, 8", "two trips: 24, 16".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2
cat > "$folder/main.py" <<'PYTHON'
import functools

import jax
import jax.numpy as jnp

SIZE, WIDTH, BLOCKS = 2048, 64, 8


def attend(queries, keys):
    return jax.nn.softmax(queries @ keys.T) @ keys


def loss(block, hidden, keys):
    for own in keys:
        hidden = block(hidden, own)
    return hidden.sum()


def loop_of(trips):
    def block(hidden, keys):
        step = jax.checkpoint(attend)
        parts = keys.reshape(trips, -1, WIDTH)
        return jax.lax.scan(lambda carry, part: (step(carry, part), None), hidden, parts)[0]

    return block


hidden = jax.ShapeDtypeStruct((SIZE, WIDTH), jnp.float32)
for name, block in {
    "plain": attend,
    "checkpoint": jax.checkpoint(attend),
    "one trip": loop_of(1),
    "two trips": loop_of(2),
}.items():
    gradient = jax.jit(jax.grad(functools.partial(loss, block)))
    compiled = gradient.lower(hidden, [hidden] * BLOCKS).compile()
    mebibytes = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(f"{name}: {mebibytes:.0f}, {compiled.as_text().count(' exponential(')}")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/main.py" | tee "$folder/seen"
printf 'plain 8\ncheckpoint 8\none trip 8\ntwo trips 16\n' > "$folder/expected"
sed 's/: [0-9]*,//' "$folder/seen" | cmp - "$folder/expected" ||
	{ echo "the behaviour has changed"; exit 1; }
