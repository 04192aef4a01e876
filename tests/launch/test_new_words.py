"""`clozemill pretrain --init_checkpoint` with data that have new words, or longer sequences."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.pretrained import read_pretrained
from modeling.checkpoints.tensorflow1 import write_original
from modeling.config import BertConfig, weight_shapes
from modeling.export.export import export
from modeling.export.formats import Format
from pipeline.files import send_directory

ROOT = Path(__file__).parents[2]
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
# Instances have the ids 5 to 39.
OLD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
OLD += [*(f"word{i}" for i in range(31)), "##0", "##1"]
TOKENS = [*OLD[:6], "word100", *OLD[7:], "word281", "new"]
PIECES = {6: ["word10", "##0"], 40: ["word28", "##1"], 41: ["[UNK]"]}
CONFIG = BertConfig(
    vocab_size=len(OLD),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=16,
)
OPTIONS = (
    *("--train_batch_size=4", "--num_warmup_steps=1", "--save_checkpoints_steps=1"),
    *("--log_every_steps=1", "--learning_rate=1e-2"),
)
TABLES = ("bert/embeddings/word_embeddings", "cls/predictions/output_bias")
POSITIONS = "bert/embeddings/position_embeddings"


def weights_of(run_dir, step):
    return arrays_of(run_dir, step, "weights.npz")


def arrays_of(run_dir, step, name):
    with np.load(run_dir / "checkpoints" / f"step-{step:08d}" / name) as arrays:
        return dict(arrays)


def run(*arguments):
    """Runs Python in a separate process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_works(result):
    assert result.returncode == 0, result.stderr
    return result


def assert_fails(result, *parts, code=1):
    assert result.returncode == code, result.stderr
    lines = [s for s in result.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", s)]
    assert len(lines) == code
    for part in parts:
        assert str(part) in lines[0]


@pytest.fixture(scope="module")
def old_weights():
    rng = np.random.default_rng(0)
    return {
        name: (name.endswith("gamma") + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in weight_shapes(CONFIG).items()
    }


@pytest.fixture(scope="module")
def old_dir(tmp_path_factory, old_weights):
    """An original checkpoint with the old vocabulary."""
    directory = tmp_path_factory.mktemp("old")
    write_original(directory / "bert_model.ckpt", old_weights, None)
    (directory / "bert_config.json").write_text(CONFIG.to_json())
    (directory / "vocab.txt").write_text("\n".join(OLD) + "\n")
    return directory


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, write_data_set):
    """Data with new words, whose sequences are longer."""
    return write_data_set(tmp_path_factory.mktemp("new") / "data", 40, tokens=TOKENS)


@pytest.fixture(scope="module")
def new_flags(old_dir, data_dir):
    return (
        *(f"--data_dir={data_dir}", f"--init_checkpoint={old_dir}", "--init_positions=repeat"),
        *(*OPTIONS, "--num_train_steps=3", "--freeze_old_steps=2"),
    )


@pytest.fixture(scope="module")
def new_run(tmp_path_factory, pretrain, new_flags):
    """A run from the old one, and what its command has come to."""
    run_dir = tmp_path_factory.mktemp("new_run") / "run"
    return run_dir, assert_works(pretrain(*new_flags, f"--output_dir={run_dir}"))


def test_a_run_begins_with_the_old_weights_and_rows_for_new_words(new_run, old_weights):
    run_dir, result = new_run
    old, new = old_weights, weights_of(run_dir, 1)  # the first rate is 0
    kept = [i for i in range(40) if i not in PIECES]
    for name in TABLES:
        np.testing.assert_array_equal(new[name][kept], old[name][kept])
        for number, pieces in PIECES.items():
            mean = old[name][[OLD.index(piece) for piece in pieces]].mean(axis=0)
            np.testing.assert_allclose(new[name][number], mean, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(new[POSITIONS], old[POSITIONS][np.arange(40) % 16])
    for name in old.keys() - {*TABLES, POSITIONS}:
        np.testing.assert_array_equal(new[name], old[name], name)
    for line in (
        "1 of the new words are [UNK] in ",
        "new words: 3, of which 1 in place of [unused…] tokens; each began as the mean of its old",
        "positions: 40, which began as 16, repeated",
        "until step 2, only the 3 new rows are trained",
    ):
        assert line in result.stderr


def test_a_run_records_its_new_words(new_run):
    run_dir, _ = new_run
    config = json.loads((run_dir / "bert_config.json").read_text())
    assert (config["vocab_size"], config["max_position_embeddings"]) == (42, 40)
    flags = (run_dir / "flags.txt").read_text().splitlines()
    given = {"--new_embeddings=mean", "--init_positions=repeat", "--freeze_old_steps=2"}
    assert given <= set(flags)
    state = json.loads((run_dir / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert state["extension"] == {
        "new_rows": [[6, 7], [40, 42]],
        "num_words": 3,
        "num_replaced": 1,
        "new_embeddings": "mean",
        "old_positions": 16,
    }


def test_new_rows_alone_are_trained_at_first(new_run):
    first, second, third = (weights_of(new_run[0], step) for step in (1, 2, 3))
    for name, values in first.items():
        changed = np.flatnonzero((values != second[name]).reshape(len(values), -1).any(axis=1))
        assert changed.tolist() == (list(PIECES) if name in TABLES else []), name
        if not name.endswith("key/bias"):
            assert (second[name] != third[name]).any(), name


@pytest.mark.slow
def test_the_run_resumes_without_the_old_bert(pretrain, new_run, new_flags, tmp_path):
    run_dir = Path(shutil.copytree(new_run[0], tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints" / "step-00000002")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000003")
    result = pretrain(*new_flags, "--init_checkpoint=gone", f"--output_dir={run_dir}")
    assert "resuming from" in assert_works(result).stderr
    for name in ("weights.npz", "optimizer.npz"):
        for step in (2, 3):
            expected = arrays_of(new_run[0], step, name)
            for variable, values in arrays_of(run_dir, step, name).items():
                np.testing.assert_array_equal(values, expected[variable], variable)


@pytest.mark.slow
def test_a_dry_run_says_what_is_new(pretrain, new_flags, old_dir, tmp_path):
    # The old config may be given: its tables grow.
    flags = *new_flags, f"--bert_config_file={old_dir / 'bert_config.json'}"
    result = assert_works(pretrain(*flags, f"--output_dir={tmp_path / 'run'}", "--dry_run"))
    lines = dict(re.split("  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert lines["new words"].startswith("3, of which 1 in place of [unused…] tokens; each began")
    assert lines["positions"] == "40, which began as 16, repeated"
    assert lines["frozen"] == "all but the new rows, until step 2"
    assert not (tmp_path / "run").exists()


def test_model_flags_of_the_old_size_resume_what_has_grown(pretrain, new_run, new_flags, old_dir):
    flags = *new_flags, f"--bert_config_file={old_dir / 'bert_config.json'}"
    result = pretrain(*flags, f"--output_dir={new_run[0]}", is_captured=True)
    config, _ = json.loads(assert_works(result).stdout)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (42, 40)


def test_a_branch_keeps_what_has_grown(pretrain, new_run, data_dir, old_dir, tmp_path):
    source = new_run[0] / "checkpoints" / "step-00000001"
    flags = (
        *(f"--data_dir={data_dir}", f"--branch_from={source}", f"--output_dir={tmp_path / 'run'}"),
        *(*OPTIONS, "--num_train_steps=3", "--freeze_old_steps=2"),
    )
    flags = *flags, f"--bert_config_file={old_dir / 'bert_config.json'}"
    config, _ = json.loads(assert_works(pretrain(*flags, is_captured=True)).stdout)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (42, 40)


@pytest.mark.parametrize(
    ("flags", "parts", "code"),
    [
        (["--init_positions="], ["--init_positions"], 2),
        (["--vocab_size=41"], ["vocab_size 41 is smaller than the 42 entries of"], 1),
        (["--max_position_embeddings=20"], ["at most max_position_embeddings 20"], 1),
        (["--new_embeddings=zero"], ["--new_embeddings=zero"], 2),
        (["--freeze_old_steps=4"], ["--freeze_old_steps=4", "--num_train_steps=3"], 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused(pretrain, new_flags, tmp_path, flags, parts, code):
    result = pretrain(*new_flags, *flags, f"--output_dir={tmp_path / 'run'}", is_captured=True)
    assert_fails(result, *parts, code=code)
    assert not (tmp_path / "run").exists()


def test_flags_for_a_trained_bert_need_one(pretrain, data_dir, tmp_path):
    places = f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}", "--model=tiny"
    result = pretrain(*places, "--init_positions=repeat")
    assert_fails(result, "--init_positions needs --init_checkpoint", code=2)
    assert_fails(
        pretrain(*places, "--freeze_old_steps=2"), "--freeze_old_steps=2", "there are none"
    )
    assert not (tmp_path / "run").exists()


def test_longer_sequences_name_the_flag(pretrain, old_dir, data_dir, tmp_path):
    places = f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}"
    result = pretrain(*places, f"--init_checkpoint={old_dir}")
    parts = "40 positions", "max_position_embeddings 16", "--init_positions=repeat"
    assert_fails(result, data_dir, old_dir, *parts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "huggingface", "store"])
def test_every_kind_of_bert_gets_new_words(
    kind, old_dir, new_run, new_flags, write_data_set, tmp_path, request
):
    path = tmp_path / f"old_{kind}"
    if kind == "store":
        path = request.getfixturevalue("bucket") / "old"
        send_directory(old_dir, path, "vocab.txt")
    elif kind == "huggingface":
        export(read_pretrained(old_dir), path, Format.HUGGINGFACE)
    else:
        data = f"--data_dir={write_data_set(tmp_path / 'data', tokens=OLD)}"
        flags = data, f"--init_checkpoint={old_dir}", *OPTIONS, "--num_train_steps=1"
        assert_works(run("-m", "launch", "pretrain", *flags, f"--output_dir={path}"))
    flags = *new_flags, f"--init_checkpoint={path}", "--num_train_steps=2"
    assert_works(run("-m", "launch", "pretrain", *flags, f"--output_dir={tmp_path / 'run'}"))
    expected = weights_of(new_run[0], 1)
    for name, values in weights_of(tmp_path / "run", 1).items():
        np.testing.assert_array_equal(values, expected[name], name)


def test_a_bert_without_vocabulary_is_refused(pretrain, old_dir, new_flags, tmp_path):
    path = Path(shutil.copytree(old_dir, tmp_path / "old"))
    (path / "vocab.txt").unlink()
    flags = f"--init_checkpoint={path}", f"--output_dir={tmp_path / 'run'}"
    result = pretrain(*new_flags, *flags)
    assert_fails(result, path, f"copy the vocab.txt that it was trained with to {path}/vocab.txt")


KILLED = """
import os, signal, sys
from absl import logging
info = logging.info
def info_and_die(message, *values):
    info(message, *values)
    if values and str(values[0]).startswith("step {step}/"):
        os.kill(os.getpid(), signal.SIGKILL)
logging.info = info_and_die
import launch.__main__
sys.argv = ["clozemill", *sys.argv[1:]]
launch.__main__.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=needs_jax)])
def test_a_killed_run_resumes_to_the_bit(backend, new_flags, tmp_path):
    flags = (
        *(*new_flags, f"--backend={backend}", "--num_train_steps=5", "--freeze_old_steps=3"),
        *("--gradient_accumulation_steps=2", "--keep_checkpoints=9"),
    )

    straight, killed = (f"--output_dir={tmp_path / name}" for name in ("straight", "killed"))
    assert_works(run("-m", "launch", "pretrain", *flags, straight))
    for step in (2, 3, 4):
        result = run("-c", KILLED.format(step=step), "pretrain", *flags, killed)
        assert result.returncode == -signal.SIGKILL, result.stderr
    result = assert_works(run("-m", "launch", "pretrain", *flags, killed))
    assert "resuming from" in result.stderr
    for step in range(1, 6):
        for name in ("weights.npz", "optimizer.npz"):
            found = arrays_of(tmp_path / "killed", step, name)
            for variable, values in arrays_of(tmp_path / "straight", step, name).items():
                np.testing.assert_array_equal(found[variable], values, variable)
