"""What children of the zygote do: run a verb, open what a verb has written, read a file."""

import hashlib
import os
import sys
import zlib
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import crash
import numpy as np

import launch.__main__
import pipeline.worker_processes
from pipeline.errors import UserError
from pipeline.manifest import DataSet
from pipeline.receipts import PortionReceipt, read_receipt
from pipeline.statistics import ShardResults


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
    # All changes are to be this process's own.
    pipeline.worker_processes.worker_processes = lambda _: nullcontext()
    changes = crash.watch(Path(watched), deadly) if watched else []
    sys.argv = ["clozemill", *arguments]
    try:
        launch.__main__.main()
    except SystemExit as error:
        return error.code or 0, changes


def run_on_store(arguments, environment, process_file):
    """Runs a verb that uses a store, after it has told which process does it."""
    os.environ.update(environment)
    Path(process_file).write_text(str(os.getpid()))
    return run(arguments)


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

    def eval_step(model, _replicas=None):
        weight = next(iter(model.named_weights().values()))
        return lambda batch: sums(batch, fingerprint(batch) + float(np.sum(np.asarray(weight))))

    loop.TrainStep, loop.eval_step, evaluation.eval_step = Step, eval_step, eval_step


def damage_of_run(run_dir):
    """What is wrong with the checkpoints of a run, in words."""
    from modeling.checkpoints.run_checkpoints import list_checkpoints

    damage = []
    for checkpoint in list_checkpoints(Path(run_dir)):
        try:
            _reader("checkpoint", checkpoint / "state.json")()
        except UserError as error:
            damage.append(str(error))
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


def flip_bits(path, reader, most=None):
    """Flips bits of a file, one at a time, and reads it each time.

    Args:
      path: the file.
      reader: the name of a function of `_readers`.
      most: about how many bits are flipped; None: all.

    Returns:
      The number of flips; and a list of what came of each that was not refused in one line: what,
      and where.
    """
    path = Path(path)
    content = path.read_bytes()
    read = _reader(reader, path)
    read()
    # An odd stride comes to all places of a byte.
    stride = 1 if most is None else max(8 * len(content) // most, 1) | 1
    bits, wrong = range(0, 8 * len(content), stride), []
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        where = f"bit {bit}, in {content[max(bit // 8 - 12, 0) : bit // 8 + 12]!r}"
        try:
            read()
        except UserError as error:
            text = str(error)
            if "\n" in text or not (path.name in text or str(path.parent) in text):
                wrong.append(("unclear", f"{where}: {text}"))
        except Exception as error:
            wrong.append(("traceback", f"{where}: {error!r}"))
        else:
            wrong.append(("accepted", where))
    path.write_bytes(content)
    return len(bits), wrong


def _reader(name, path):
    """A function that reads a file as the program does."""
    if name == "data_set":
        return lambda: DataSet.read(path.parent)
    if name == "receipt":
        kind = PortionReceipt if ".parquet" in path.name else ShardResults
        return partial(_read_receipt, path.with_suffix(""), kind)
    from modeling.checkpoints import run_checkpoints
    from modeling.config import BertConfig
    from modeling.step.learner import new_learner
    from modeling.training_options import TrainingOptions

    if name == "state":
        return lambda: run_checkpoints.read_state(path.parent)
    config = BertConfig.read(path.parents[2] / "bert_config.json")
    if name == "weights":
        return lambda: run_checkpoints.read_weights(path.parent, config)
    learner = new_learner(config, TrainingOptions(num_warmup_steps=0, num_train_steps=4))
    return lambda: run_checkpoints.load_checkpoint(path.parent, learner)


def _read_receipt(path, kind):
    # A damaged receipt is none.
    if read_receipt(path, kind) is None:
        raise UserError(f"{path.name}.json is no receipt")
