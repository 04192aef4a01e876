import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pipeline.manifest import VOCABULARY_NAME, Manifest, Shard
from pipeline.records import encode_examples, frame_record

ROOT = Path(__file__).parents[2]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(35))]
FIRST_ORDINARY_ID, NUM_PREDICTIONS = 5, 2


class Result(NamedTuple):
    """What a verb has come to."""

    returncode: int
    stdout: str
    stderr: str


# A verb's commands run one after the other in a process that has imported all it needs.
SERVER = """
import dataclasses, importlib, json, os, resource, sys, tempfile
os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
from absl.testing import flagsaver
import launch.command_line, modeling.training.loop
importlib.import_module(f"launch.{sys.argv[1]}")

def run(arguments, missing, is_captured, max_bytes):
    before = {name: sys.modules.get(name) for name in missing}
    sys.modules.update(dict.fromkeys(missing))
    train = modeling.training.loop.train
    if is_captured:
        modeling.training.loop.train = capture
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes or soft, hard))
    try:
        with flagsaver.flagsaver():
            return launch.command_line.run(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        modeling.training.loop.train = train
        for name, module in before.items():
            del sys.modules[name]
            if module:
                sys.modules[name] = module

def capture(data_set, run_dir, config, options, origin, flags, replicas, track):
    modeling.training.loop.check_can_train(data_set, run_dir, config, options, replicas)
    modeling.training.loop.prepare_run(run_dir, config, data_set)
    (run_dir / "flags.txt").write_text(flags)
    print(json.dumps([dataclasses.asdict(config), dataclasses.asdict(options)]), flush=True)

replies = os.fdopen(os.dup(1), "w")
for request in sys.stdin:
    outputs = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    for number, output in enumerate(outputs, 1):
        os.dup2(output.fileno(), number)
    code = run(**json.loads(request))
    sys.stdout.flush()
    sys.stderr.flush()
    for output in outputs:
        output.seek(0)
    print(json.dumps([code, *(output.read() for output in outputs)]), file=replies, flush=True)
"""


@contextmanager
def serving(verb):
    """Gives a function that runs the verb, many times in one process.

    `missing` are modules that cannot be imported then, `max_bytes` is how long a file can become.
    With `is_captured`, nothing is trained: stdout is the config and the options with which training
    would begin, as JSON.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, verb],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run(*flags, missing=(), is_captured=False, max_bytes=None):
        request = {
            "arguments": [verb, *map(str, flags)],
            "missing": list(missing),
            "is_captured": is_captured,
            "max_bytes": max_bytes,
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return Result(*json.loads(process.stdout.readline()))

    yield run
    process.stdin.close()
    process.wait(timeout=60)


# What a fork does, with its outputs in files.
FORK = """
import os, sys
for number, output in enumerate(outputs, 1):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
os.chdir(directory)
os.environ |= environment
sys.modules.update(dict.fromkeys(missing))
import launch.__main__
sys.argv = ["clozemill", *arguments]
launch.__main__.main()
"""


@pytest.fixture(scope="session")
def run_in_fork():
    """A function that runs a verb in a folder, in a process that `preload` makes a fork."""

    def run(verb, directory, *arguments, path=os.environ["PATH"], environment=None, missing=()):
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, name) for name in ("stdout", "stderr")]
            variables = {
                "outputs": outputs,
                "directory": directory,
                "missing": missing,
                "environment": {"PATH": str(path), **(environment or {})},
                "arguments": [verb, *arguments],
            }
            context = multiprocessing.get_context("forkserver")
            process = context.Process(target=exec, args=(FORK, variables))
            process.start()
            process.join(timeout=60)
            return Result(process.exitcode, *(output.read_text("utf-8") for output in outputs))

    return run


@pytest.fixture(scope="session")
def pretrain():
    """A function that runs `clozemill pretrain`, as `serving` says."""
    with serving("pretrain") as run:
        yield run


@pytest.fixture(scope="session")
def export():
    """A function that runs `clozemill export`, as `serving` says."""
    with serving("export") as run:
        yield run


@pytest.fixture(scope="session")
def write_data_set():
    """A function that writes a small data set of random instances."""

    def write(data_dir, max_seq_length=16, tokens=TOKENS, num_eval=6):
        data_dir.mkdir(parents=True)
        vocabulary = "".join(f"{token}\n" for token in tokens)
        (data_dir / VOCABULARY_NAME).write_text(vocabulary, "utf-8")
        shards = []
        for split, count in (("train", 20), ("eval", num_eval)):
            path = data_dir / f"{split}-00000-of-00001.tfrecord"
            records = encode_examples(_instances(count, max_seq_length)) if count else []
            path.write_bytes(b"".join(map(frame_record, records)))
            shards.append(
                Shard(
                    name=path.name,
                    split=split,
                    pass_index=0,
                    documents=count,
                    instances=count,
                    tokens=0,
                    bytes=path.stat().st_size,
                    sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                )
            )
        Manifest(
            max_seq_length=max_seq_length,
            max_predictions_per_seq=NUM_PREDICTIONS,
            do_lower_case=True,
            vocab_size=len(tokens),
            vocab_sha256=hashlib.sha256(vocabulary.encode()).hexdigest(),
            options={},
            statistics={},
            shards=shards,
            health=["0.0% of the tokens are masked"],
        ).write(data_dir)
        return data_dir

    return write


def _instances(count, max_seq_length):
    rng = np.random.default_rng(0)
    shape, predictions = (count, max_seq_length), (count, NUM_PREDICTIONS)
    return {
        "input_ids": rng.integers(FIRST_ORDINARY_ID, len(TOKENS), shape),
        "input_mask": np.ones(shape, np.int64),
        "segment_ids": np.zeros(shape, np.int64),
        "masked_lm_positions": np.tile(np.array([3, 7]), (count, 1)),
        "masked_lm_ids": rng.integers(FIRST_ORDINARY_ID, len(TOKENS), predictions),
        "masked_lm_weights": np.ones(predictions, np.float32),
        "next_sentence_labels": rng.integers(0, 2, (count, 1)),
    }
