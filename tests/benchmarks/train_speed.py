"""Compares the speed of BERT-mini's training with Hugging Face on PyTorch and with keras_hub.

Each trains on the same random batches in a separate process, and they take turns. A step includes
dropout, clipping and AdamW, in float32. Hugging Face's model computes logits for every position;
keras_hub has no next-sentence loss. Compilation and the first steps are not timed.

The bound is what a step would reach if it were made of products alone, each as fast as XLA's of the
feed-forward layer. Nothing but another precision can be faster.
"""

import argparse
import statistics
from functools import partial

from harness import Server, serve
from train_step import BERT_VOCABULARY, huggingface_inputs, synthetic_batch

BATCH_SIZE, SEQ_LENGTH, NUM_PREDICTIONS = 32, 128, 20
LEARNING_RATE, CLIP_NORM = 1e-4, 1.0
LAYERS, HEADS, HIDDEN, INNER = 4, 4, 256, 1024
STEPS_OF_A_ROUND = 4
SEQUENCES_OF_A_ROUND = STEPS_OF_A_ROUND * BATCH_SIZE


def clozemill(precision="float32"):
    """Returns a round of `clozemill pretrain`'s steps, on the backend in KERAS_BACKEND."""
    from modeling.step.backend import TrainStep
    from modeling.step.learner import new_learner
    from modeling.training_options import Precision, TrainingOptions

    options = TrainingOptions(precision=Precision(precision))
    step = TrainStep(new_learner(bert_mini(), options))
    batches = make_batches()

    def train():
        for batch in batches:
            metrics = step(batch)
        float(metrics["sequences"])

    return train


def huggingface():
    """Returns a round of `transformers.BertForPreTraining` with PyTorch's AdamW, in eager mode."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=BERT_VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
    )
    model = BertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)

    batches = [huggingface_inputs(batch) for batch in make_batches()]

    def train():
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()

    return train


def keras_hub():
    """Returns a round of `keras_hub.models.BertMaskedLM`, trained with `fit`."""
    import keras
    import keras_hub
    import numpy as np
    import tensorflow as tf

    backbone = keras_hub.models.BertBackbone(
        BERT_VOCABULARY, LAYERS, HEADS, HIDDEN, INNER, dropout=0.1
    )
    model = keras_hub.models.BertMaskedLM(backbone, preprocessor=None)
    model.compile(
        keras.optimizers.AdamW(LEARNING_RATE, global_clipnorm=CLIP_NORM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = make_batches()
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    inputs = {
        "token_ids": whole["input_ids"],
        "padding_mask": whole["input_mask"],
        "segment_ids": whole["segment_ids"],
        "mask_positions": whole["masked_lm_positions"],
    }
    labels, weights = whole["masked_lm_ids"], whole["masked_lm_weights"]
    data = tf.data.Dataset.from_tensor_slices((inputs, labels, weights)).batch(BATCH_SIZE).cache()
    return lambda: model.fit(data, verbose=0)


def products():
    """Returns a round of XLA's products [4096, 256]·[256, 1024], with the FLOPs of the steps."""
    import tensorflow as tf

    tokens = BATCH_SIZE * SEQ_LENGTH
    inputs, kernel = tf.random.normal((tokens, HIDDEN)), tf.random.normal((HIDDEN, INNER))
    multiply = tf.function(tf.matmul, jit_compile=True)
    flops = bert_mini().flops_per_instance(SEQ_LENGTH, NUM_PREDICTIONS) * SEQUENCES_OF_A_ROUND
    count = round(flops / (2 * tokens * HIDDEN * INNER))

    def multiply_all():
        for _ in range(count):
            product = multiply(inputs, kernel)
        product.numpy()

    return multiply_all


def bert_mini():
    from modeling.config import BertConfig

    return BertConfig.preset("mini", BERT_VOCABULARY)


BOUND = "bound"
PEER_FUNCTIONS = {
    BOUND: (products, {}),
    "huggingface": (huggingface, {}),
    "keras_hub": (keras_hub, {"KERAS_BACKEND": "tensorflow"}),
    "clozemill": (clozemill, {"KERAS_BACKEND": "tensorflow"}),
    "clozemill on jax": (clozemill, {"KERAS_BACKEND": "jax"}),
    "clozemill, bfloat16": (partial(clozemill, "bfloat16"), {"KERAS_BACKEND": "tensorflow"}),
    "on jax, bfloat16": (partial(clozemill, "bfloat16"), {"KERAS_BACKEND": "jax"}),
}


def make_batches():
    return [
        synthetic_batch(BATCH_SIZE, SEQ_LENGTH, NUM_PREDICTIONS, BERT_VOCABULARY, seed)
        for seed in range(STEPS_OF_A_ROUND)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="number of rounds of 4 steps")
    parser.add_argument("--peer", choices=PEER_FUNCTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        serve(PEER_FUNCTIONS[arguments.peer][0]())
        return
    servers = {
        name: Server(__file__, f"--peer={name}", **environment)
        for name, (_, environment) in PEER_FUNCTIONS.items()
    }
    seconds = {name: [] for name in servers}
    for _ in range(arguments.rounds):
        for name, server in servers.items():
            seconds[name].append(server.answer())
    for server in servers.values():
        server.end()

    sequences = SEQUENCES_OF_A_ROUND
    medians = {name: sequences / statistics.median(values) for name, values in seconds.items()}
    print(f"BERT-mini, S {SEQ_LENGTH}, batch {BATCH_SIZE}, V {BERT_VOCABULARY:,}, float32")
    for name, speed in medians.items():
        low, high = sequences / max(seconds[name]), sequences / min(seconds[name])
        ratio = speed / medians["huggingface"]
        print(
            f"  {name:<19} {speed:6.1f} sequences/s ({low:.1f} to {high:.1f})"
            f"  {ratio:4.1f}x huggingface, {speed / medians[BOUND]:4.0%} of the bound"
        )


if __name__ == "__main__":
    main()
