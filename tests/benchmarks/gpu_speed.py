"""Measures everything about training on this GPU, in less than eight minutes.

First it checks that no kernel of attention lets a sequence see another. Then it measures steps of
BERT-base at 128 and BERT-large at 512 tokens, padded and packed, in bfloat16 without dropout of
attention, and beside them Hugging Face's BERT with `torch.compile`, bfloat16 and SDPA. It needs JAX
with its CUDA libraries, Keras (and namex, optree), and for Hugging Face PyTorch and transformers.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from train_step import (
    BERT_VOCABULARY,
    PRESETS,
    huggingface_inputs,
    synthetic_batch,
    synthetic_rows,
)

SECONDS = 8 * 60
TRAIN_STEP = Path(__file__).with_name("train_step.py")
# Model, S or R, rows of a batch, whether packed.
CASES = [
    ("base", 128, 1024, False),
    ("base", 512, 256, True),
    ("large", 512, 128, False),
    ("large", 512, 128, True),
]
TINY_CASES = [("tiny", 32, 4, False), ("tiny", 64, 4, True)]


def check_attention(tiny):
    """Ends the process with an error if a kernel leaks, or computes something else than a mask."""
    import jax
    import numpy as np

    from modeling import jax_gpu
    from modeling.attention import masked_attention

    length, head_size, dtype = (48, 16, "float32") if tiny else (512, 64, "bfloat16")
    capability = jax_gpu.compute_capability()
    if not (capability or tiny):
        sys.exit("no NVIDIA GPU was found; --tiny tries this script without one")
    rows = synthetic_rows(12, length, 2, BERT_VOCABULARY)["input_mask"]
    padded = np.tile(np.arange(length) < length * 3 // 4, (12, 1)).astype(np.int32)
    paths = {"a mask": (masked_attention, rows)}
    if tiny:

        def interpreted(*arguments):
            return jax_gpu.pallas_attention(*arguments, interpret=True)

        paths["Pallas's interpreter"] = interpreted, rows
    else:
        paths[jax_gpu.PALLAS.name] = jax_gpu.PALLAS.attention, rows
        paths[jax_gpu.CUDNN.name] = jax_gpu.CUDNN.attention, padded
        if capability >= (9, 0):
            paths[jax_gpu.CUDNN_PACKED.name] = jax_gpu.CUDNN_PACKED.attention, rows
    rng = np.random.default_rng(0)
    q_k_v, others = rng.standard_normal((2, 3, 12, length, 2, head_size))
    for name, (attention, numbers) in paths.items():
        changed = numbers == (2 if numbers.max() > 1 else 0)
        stays = ((numbers > 0) & ~changed)[:, :, None, None]
        factors = stays * rng.standard_normal(q_k_v[0].shape)
        mixed = np.where(changed[:, :, None, None], 10 * others, q_k_v)

        def computed(attention, q_k_v, numbers=numbers, factors=factors):
            def run(*q_k_v):
                attend = attention(numbers, int(numbers.max()))
                context = attend(*q_k_v, 0.0, None).astype("float32")
                return (context * factors.astype(np.float32)).sum(), context

            def both(*q_k_v):
                gradients, context = jax.grad(run, (0, 1, 2), has_aux=True)(*q_k_v)
                return context, *gradients

            arrays = [jax.numpy.asarray(x, dtype) for x in q_k_v]
            return [np.asarray(x, np.float32) for x in jax.jit(both)(*arrays)]

        before, after = computed(attention, q_k_v), computed(attention, mixed)
        expected = computed(masked_attention, q_k_v)
        furthest = max(
            np.abs((one - other) * stays).max() for one, other in zip(before, expected, strict=True)
        )
        leaks = [
            not np.array_equal(one * stays, other * stays)
            for one, other in zip(before, after, strict=True)
        ]
        leaks.append(bool(before[2][changed].any()))
        print(f"attention by {name}: furthest from a mask {furthest:.4f}", end="; ")
        print("NOT ONE BIT LEAKS" if not any(leaks) else f"LEAKS {leaks}")
        if any(leaks) or not furthest < (1e-4 if tiny else 0.1):
            sys.exit(f"attention by {name} is WRONG")


def huggingface(model, seq_length, batch_size, steps):
    """Prints the speed of Hugging Face's BERT: what a user of PyTorch gets without our help."""
    import torch
    import transformers
    from transformers import BertConfig, BertForPreTraining

    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}: B {batch_size}")
    layers, hidden = PRESETS[model]
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    bert = BertForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(bert.parameters(), lr=1e-4, fused=device == "cuda")
    batch = synthetic_batch(batch_size, seq_length, round(0.15 * seq_length) + 1, BERT_VOCABULARY)
    inputs = {name: values.to(device) for name, values in huggingface_inputs(batch).items()}
    compiled = torch.compile(bert) if device == "cuda" else bert

    def train():
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        optimizer.step()
        return loss

    for _ in range(3):
        loss = train()
    loss.item()
    started = time.perf_counter()
    for _ in range(steps):
        loss = train()
    loss.item()
    speed = steps * batch_size / (time.perf_counter() - started)
    print(f"sequences/s {speed:,.1f}\ntokens/s    {speed * seq_length:,.1f}")


def commands(tiny):
    """Yields what to run, one process each: a title, a command, and its environment."""
    this, tiny_flag = [sys.executable, __file__], ["--tiny"] if tiny else []
    # Without it, the sums of cuDNN's backward pass differ from run to run.
    deterministic = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    yield "attention", [*this, "--check", *tiny_flag], deterministic
    for model, length, rows, is_packed in TINY_CASES if tiny else CASES:
        command = [sys.executable, TRAIN_STEP, "--backend=jax", f"--model={model}"]
        command += [f"--max_seq_length={length}", f"--train_batch_size={rows}"]
        command += ["--precision=bfloat16", "--attention_probs_dropout_prob=0"]
        command += ["--steps=2" if tiny else "--steps=10", *(["--packed"] if is_packed else [])]
        title = f"Clozemill, {model}, {'rows of ' if is_packed else ''}{length} tokens"
        yield title, command, {}
        if not is_packed:
            sizes = [model, str(length), str(rows if tiny else rows // 4)]
            title = f"Hugging Face, {model}, {length} tokens"
            yield title, [*this, "--huggingface", *sizes, *tiny_flag], {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--huggingface", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"
    if arguments.check:
        check_attention(arguments.tiny)
        return
    if arguments.huggingface:
        model, *sizes = arguments.huggingface
        huggingface(model, *map(int, sizes), steps=2 if arguments.tiny else 20)
        return
    started = time.monotonic()
    print(f"JAX {importlib.metadata.version('jax')}")
    failed = []
    for title, command, environment in commands(arguments.tiny):
        print(f"\n{title}", flush=True)
        if "--huggingface" in command and not importlib.util.find_spec("transformers"):
            print("NOT MEASURED, because transformers is missing: pip install transformers torch")
            failed.append(title)
            continue
        left = SECONDS - (time.monotonic() - started)
        try:
            subprocess.run(command, env=os.environ | environment, check=True, timeout=max(left, 1))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"FAILED: {str(error)[-200:]}", flush=True)
            failed.append(title)
            if title == "attention":
                break
    print(f"\n{time.monotonic() - started:.0f} s")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
