"""What children of the zygote do: run a verb, open what a verb has written, read a file."""

import hashlib
import importlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

import crash
import launch.__main__


def run(arguments, watched=None, deadly=None):
    """Runs a verb; training and evaluating compute next to nothing.

    Args:
      arguments: the verb and its flags.
      watched: a folder whose changes are counted.
      deadly: the number of the change at which the process kills itself.

    Returns:
      The exit code, and the changes in words.
    """
    if "modeling.training.loop" in sys.modules:
        _do_not_compute()
    changes = crash.watch(Path(watched), deadly) if watched else []
    return launch.__main__.run(arguments), changes


def _do_not_compute():
    """Replaces steps by ones that need no compiler; what they give depends on every batch so far.

    So a resumed run has the same bytes only if it has the same weights, moments and batches.
    """
    from modeling.losses import SUMS
    from modeling.training import evaluation, loop

    def fingerprint(batch):
        checksum = 0
        for name in sorted(batch):
            checksum = zlib.crc32(np.asarray(batch[name]).tobytes(), checksum)
        return checksum / (1 << 32)

    def sums(batch, number):
        totals = {
            "masked_lm_weights": float(np.sum(np.asarray(batch["masked_lm_weights"]))),
            "tokens": float(np.sum(np.asarray(batch["input_mask"]))),
            "sequences": float(len(np.asarray(batch["input_ids"]))),
        }
        return dict.fromkeys(SUMS, number) | totals

    class Step:
        attention_kernel = "none"

        def __init__(self, learner, _replicas):
            self._optimizer = optimizer = learner.optimizer
            self._variables = [
                *learner.weights,
                *optimizer.first_moments,
                *optimizer.second_moments,
            ]

        def is_idle(self):
            return True

        def __call__(self, batch):
            number = fingerprint(batch)
            for variable in self._variables:
                variable.assign(variable.value * 0.5 + number)
            self._optimizer.iterations.assign(int(self._optimizer.iterations) + 1)
            updates = {"gradient_norm": number, "updates": 1.0, "updates_left_out": 0.0}
            return sums(batch, number) | updates

    def eval_step(model):
        weight = next(iter(model.named_weights().values()))
        return lambda batch: sums(batch, fingerprint(batch) + float(np.sum(np.asarray(weight))))

    loop.TrainStep, loop.eval_step, evaluation.eval_step = Step, eval_step, eval_step


def damage_of_run(run_dir):
    """What is wrong with the checkpoints of a run, in words."""
    from modeling.checkpoints.run_checkpoints import list_checkpoints, read_state, read_weights

    damage = []
    for checkpoint in list_checkpoints(Path(run_dir)):
        try:
            read_state(checkpoint)
            read_weights(checkpoint)
            with np.load(checkpoint / "optimizer.npz") as arrays:
                dict(arrays)
        except Exception as error:
            damage.append(f"{checkpoint.name}: {error}")
    return damage


def digest_of_export(directory, export_format):
    """The SHA-256 of the weights of an export, read as its users read it."""
    directory = Path(directory)
    match export_format:
        case "huggingface" | "original":
            from modeling.checkpoints.pretrained import read_pretrained

            arrays = read_pretrained(directory).weights
        case "onnx":
            import onnx

            model = onnx.load(directory / "model.onnx")
            onnx.checker.check_model(model)
            arrays = {weight.name: weight.raw_data for weight in model.graph.initializer}
        case "saved_model":
            import tensorflow as tf

            loaded = tf.saved_model.load(directory)
            encode = loaded.signatures["encode"]
            ids = tf.ones((1, 4), tf.int32)
            arrays = encode(input_ids=ids, input_mask=ids, segment_ids=ids)
        case "keras":
            import keras

            import modeling.bert_for_pretraining

            assert modeling.bert_for_pretraining
            model = keras.saving.load_model(directory / "model.keras")
            arrays = {name: np.asarray(value) for name, value in model.named_weights().items()}
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(name.encode() + (value if isinstance(value, bytes) else _bytes_of(value)))
    return digest.hexdigest()


def _bytes_of(array):
    return np.asarray(array).tobytes()
