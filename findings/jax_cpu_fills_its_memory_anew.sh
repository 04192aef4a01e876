#!/bin/sh
# JAX 0.10.2 on a processor with glibc: a compiled function frees all its temporary memory at its
# end, glibc returns it to the system, and the next call takes a page fault for every page of it. In
# a training step of BERT-mini, that was a third of the time. With three settings of glibc's malloc,
# there are next to no faults.
#
# Seen: temporary memory of 28,672 pages; about as many faults a call, and 0 with the settings.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2
cat > "$folder/faults.py" <<'EOF'
import resource

import jax
import jax.numpy as jnp


@jax.jit
def step(weights):
    def loss(weights):
        hidden = weights
        for _ in range(6):
            hidden = jnp.tanh(hidden @ weights)
        return hidden.sum()

    return jax.grad(loss)(weights)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


weights = 0.5 * jnp.eye(2048)
pages = step.lower(weights).compile().memory_analysis().temp_size_in_bytes // resource.getpagesize()
counts = []
for _ in range(9):
    before = faults()
    step(weights).block_until_ready()
    counts.append(faults() - before)
print(pages, sorted(counts[1:])[4])
EOF
# shellcheck disable=SC2046 # two words
set -- $("$folder/venv/bin/python" "$folder/faults.py")
echo "temporary memory of $1 pages; faults a call: $2"
test "$2" -ge "$1"
set -- $(MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 \
	"$folder/venv/bin/python" "$folder/faults.py")
echo "with settings of malloc, faults a call: $2"
test "$2" -lt $(($1 / 4))
