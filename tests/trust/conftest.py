"""A zygote, which runs verbs in children of a process that has imported everything."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LIGHT = (
    "actions",
    "pipeline.generate",
    "pipeline.graph",
    "pipeline.verification",
    "pipeline.vocabulary_training",
    "obstore.store",  # which no process has used when it forks
)
FULL = (
    *LIGHT,
    "modeling.training.loop",
    "modeling.export.export",
    "modeling.export.onnx_graph",
    "tokenizers",
    "safetensors.numpy",
    "matplotlib.figure",
)
SMALL_MODEL = (
    "--model=tiny",
    "--hidden_size=8",
    "--num_hidden_layers=1",
    "--num_attention_heads=2",
    "--intermediate_size=8",
    "--max_position_embeddings=16",
)
KILLED = -9
# Files that hold times, or whose parts have no fixed order: their presence counts, not their bytes.
DATED = ("*/saved_model.pb", "*/fingerprint.pb", "*/variables/variables.*", "*/model.keras")
TIMES_IN_METRICS = (
    "sequences_per_second",
    "tokens_per_second",
    "model_flops_per_second",
    "input_wait",
)


class Outcome(NamedTuple):
    """How a child has ended.

    Attributes:
      code: the exit code of the verb, or -N after the signal N.
      stdout, stderr: what it has written.
      value: what the function has returned, None if it has not.
    """

    code: int
    stdout: str
    stderr: str
    value: object = None


class Zygote:
    """Forks a child for each call; see zygote.py."""

    def __init__(self, modules):
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py"), *modules],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while not self._process.stdout.readline().startswith('"ready"'):
            assert self._process.poll() is None, "the zygote does not start"

    def call(self, function, *arguments, seconds=60):
        """Calls a function of actions.py in a child."""
        request = {
            "function": f"actions:{function}",
            "arguments": arguments,
            "seconds": seconds,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code, stdout, stderr, value = json.loads(self._process.stdout.readline())
        return Outcome(code, stdout, stderr, json.loads(value) if value else None)

    def run(self, *arguments, watched=None, deadly=None, seconds=60):
        """Runs a verb; the value is its changes below the folder `watched`, in words."""
        arguments = [str(argument) for argument in arguments]
        outcome = self.call("run", arguments, watched and str(watched), deadly, seconds=seconds)
        if outcome.code or outcome.value is None:
            return outcome
        code, changes = outcome.value
        return outcome._replace(code=code, value=changes)

    def run_on_store(self, environment, process_file, *arguments, seconds=60):
        """Runs a verb with these variables, which first writes its process ID to a file."""
        arguments = [str(argument) for argument in arguments]
        outcome = self.call(
            "run_on_store", arguments, environment, str(process_file), seconds=seconds
        )
        return (
            outcome
            if outcome.code or outcome.value is None
            else outcome._replace(code=outcome.value[0], value=None)
        )

    def succeed(self, *arguments, **kwargs):
        """Runs a verb that must succeed."""
        outcome = self.run(*arguments, **kwargs)
        assert outcome.code == 0, (arguments, outcome)
        return outcome

    def die_before(self, name, folder, arguments):
        """Runs a verb that kills itself at its first change to what is at a path below a folder."""
        changes = self.succeed(*arguments, watched=folder).value
        shutil.rmtree(folder / Path(name).parts[0])
        deadly = 1 + next(index for index, change in enumerate(changes) if name in change)
        assert self.run(*arguments, watched=folder, deadly=deadly).code == KILLED

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="session")
def light():
    """A zygote for the verbs that need no model."""
    zygote = Zygote(LIGHT)
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def full():
    """A zygote for all verbs, on TensorFlow."""
    zygote = Zygote(FULL)
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def small_text(tmp_path_factory):
    """A folder with a small corpus, corpus.txt, which repeats a document, and its vocab.txt.

    mixture.toml has the corpus in two parts, of which each has the repeated document.
    """
    folder = tmp_path_factory.mktemp("text")
    samples = ROOT / "data_samples"
    documents = (samples / "english.txt").read_text("utf-8").split("\n\n")[:12]
    documents.append(documents[0])
    (folder / "corpus.txt").write_text("\n\n".join(documents), "utf-8")
    tables = []
    for name, weight, members in (("few", 3, documents[:4]), ("many", 1, documents[4:])):
        (folder / f"{name}.txt").write_text("\n\n".join(members), "utf-8")
        tables.append(f"[[corpus]]\nname = '{name}'\nweight = {weight}\n")
        tables.append(f"input_file = '{folder / name}.txt'\n")
    (folder / "mixture.toml").write_text("".join(tables), "utf-8")
    (folder / "vocab.txt").write_bytes((samples / "english_vocab.txt").read_bytes())
    return folder


@pytest.fixture(scope="session")
def generate_flags(small_text):
    """The flags of `generate` for a small data set, without its directory."""
    return (
        f"--input_file={small_text / 'corpus.txt'}",
        f"--vocab_file={small_text / 'vocab.txt'}",
        "--max_seq_length=16",
        "--max_predictions_per_seq=3",
        "--dupe_factor=1",
        "--num_shards=2",
    )


@pytest.fixture(scope="session")
def pretrain_flags():
    """The flags of `pretrain` for a short run of a small model, without its directories."""
    return (
        *SMALL_MODEL,
        "--train_batch_size=4",
        "--eval_batch_size=16",
        "--max_eval_steps=2",
        "--num_warmup_steps=0",
        "--log_every_steps=1",
        "--save_checkpoints_steps=2",
    )


@pytest.fixture(scope="session")
def samples(tmp_path_factory, full, generate_flags, pretrain_flags):
    """A folder with a data set, `data`, and two runs on it, `run` and `other_run`."""
    folder = tmp_path_factory.mktemp("samples")
    data = folder / "data"
    full.succeed("generate", *generate_flags, f"--output_dir={data}", "--eval_fraction=0.3")
    for seed, name in enumerate(("run", "other_run")):
        full.succeed(
            "pretrain",
            *pretrain_flags,
            f"--data_dir={data}",
            f"--output_dir={folder / name}",
            f"--random_seed={seed}",
            "--num_train_steps=4",
            "--eval_every_steps=2",
        )
    return folder


def _report(title, rows):
    """Prints a table: for each kind, how many were tried and what came of them."""
    print(f"\n{title}")
    names = list(dict.fromkeys(name for _, counts in rows for name in counts))
    for kind, counts in rows:
        tried = counts.pop("tried", 0)
        parts = [f"{counts[name]} {name}" for name in names if counts.get(name)]
        print(f"  {kind:<36} {tried:>6} tried: {', '.join(parts)}")


@pytest.fixture(scope="session")
def report():
    """A function that prints a table of counts."""
    return _report


def _content_of(folder: Path) -> dict[str, bytes]:
    """All files and folders below a folder by their relative path, without what is about times."""
    content = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            content[f"{name}/"] = b""
        elif path.name.startswith("events."):
            content[f"{path.parent.relative_to(folder)}/events.*"] = b""
        elif _is_dated(path, name):
            content[name] = b""
        elif path.name == "state.json":
            content[name] = _without_metrics(path.read_bytes())
        elif path.name == "metrics.jsonl":
            content[name] = _without_times(path.read_bytes())
        else:
            content[name] = path.read_bytes()
    return content


def _is_dated(path, name):
    """Whether a file holds times, or the digest of such a file."""
    has_digests = path.name == "export.json" and any(
        fnmatch(f"x/{other.name}", pattern) for other in path.parent.iterdir() for pattern in DATED
    )
    return has_digests or any(fnmatch(name, pattern) for pattern in DATED)


def _without_metrics(state):
    try:
        content = json.loads(state)
        # The metrics hold times.
        return json.dumps({**content, "metrics": None, "content_sha256": None}).encode()
    except (ValueError, TypeError, RecursionError):
        return state  # damaged


def _without_times(metrics: bytes) -> bytes:
    try:
        lines = [json.loads(line) for line in metrics.splitlines() if line.endswith(b"}")]
    except (ValueError, RecursionError):
        return metrics  # damaged
    for line in (line for line in lines if isinstance(line, dict)):
        for name in TIMES_IN_METRICS:
            line.pop(name, None)
    return json.dumps(lines).encode()


@pytest.fixture(scope="session")
def content_of():
    """A function that reads all files below a folder, by their relative path, without times."""
    return _content_of
