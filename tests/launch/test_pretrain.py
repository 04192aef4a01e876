"""`clozemill pretrain`: its flags, what it refuses, and what it writes."""

import dataclasses
import fcntl
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.huggingface import write_huggingface
from modeling.config import BertConfig, weight_shapes
from modeling.training_options import TrainingOptions
from pipeline.manifest import Manifest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.flags"))
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
OPTIONS = {
    "train_batch_size": 4,
    "num_train_steps": 4,
    "num_warmup_steps": 1,
    "save_checkpoints_steps": 2,
    "log_every_steps": 2,
}


def as_flags(values):
    return [f"--{name}={value}" for name, value in values.items()]


needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
SMALL = ("--model=tiny", *as_flags(SIZE | OPTIONS))


def clozemill(*arguments, path=ROOT, **kwargs):
    """Runs a verb in a separate process."""
    # JAX sets this variable when it is imported.
    environment = {n: value for n, value in os.environ.items() if n != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **kwargs,
    )


def unlogged(stderr):
    """The lines that are not log lines, which begin with the time."""
    return [line for line in stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]


def assert_fails(result, *parts, code=1):
    assert result.returncode == code, result.stderr
    lines = unlogged(result.stderr)
    assert len(lines) == {1: 1, 2: 2}[code], result.stderr
    for part in parts:
        assert str(part) in lines[0]


def assert_works(result):
    assert result.returncode == 0, result.stderr
    assert unlogged(result.stderr) == []


def captured(result):
    """The config and the options that training would have used."""
    assert_works(result)
    return json.loads(result.stdout)


def read_weights(run_dir, step):
    with np.load(run_dir / "checkpoints" / f"step-{step:08d}" / "weights.npz") as weights:
        return dict(weights)


def read_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, write_data_set):
    return write_data_set(tmp_path_factory.mktemp("data_16") / "data")


@pytest.fixture
def places(data_dir, tmp_path):
    """The flags for the data set and for a run that does not exist yet."""
    return f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, data_dir):
    """A run by the command line, without matplotlib: its directory and the command's result."""
    directory = tmp_path_factory.mktemp("first")
    (directory / "stub" / "matplotlib").mkdir(parents=True)
    (directory / "stub" / "matplotlib" / "__init__.py").write_text("raise ImportError('stub')")
    result = clozemill(
        "pretrain",
        f"--data_dir={data_dir}",
        f"--output_dir={directory / 'run'}",
        *SMALL,
        "--hidden_dropout_prob=0.2",
        "--gelu_form=gelu_erf",
        "--vocab_size=48",
        "--noadam_bias_correction",
        "--eval_every_steps=4",
        "--eval_batch_size=6",
        path=f"{directory / 'stub'}:{ROOT}",
    )
    return directory / "run", result


# Flags.


def test_every_field_of_config_and_options_has_a_flag():
    result = clozemill("pretrain", "--help")
    assert result.returncode == 0, result.stderr
    names = re.findall(r"^  --(?:\[no\])?(\w+)$", result.stdout, re.MULTILINE)
    assert len(names) == len(set(names))
    others = {
        *("data_dir", "output_dir", "init_checkpoint", "branch_from", "dry_run", "track"),
        *("new_embeddings", "init_positions"),
        *("backend", "model", "bert_config_file"),
        *("coordinator_address", "num_processes", "process_id", "coordinator_timeout"),
        *("job_token_file", "cache_dir", "cache_size"),
    }
    fields = (*dataclasses.fields(BertConfig), *dataclasses.fields(TrainingOptions))
    # The data tell the model which pairs it learns.
    assert set(names) == others | {field.name for field in fields} - {"sentence_pairs"}


def test_defaults_are_those_of_the_options_and_of_the_model_size(pretrain, places):
    config, options = captured(pretrain(*places, "--model=mini", is_captured=True))
    assert options == dataclasses.asdict(TrainingOptions())
    assert config == dataclasses.asdict(BertConfig.preset("mini", 40))


def test_every_flag_of_training_has_its_effect(pretrain, places):
    given = {
        "train_batch_size": 24,
        "batch_size_warmup_steps": 12,
        "gradient_accumulation_steps": 3,
        "learning_rate": 5e-4,
        "num_train_steps": 70,
        "num_warmup_steps": 7,
        "learning_rate_schedule": "warmup_stable_decay",
        "num_decay_steps": 9,
        "optimizer": "lamb",
        "freeze_old_steps": 8,
        "weight_decay_rate": 0.1,
        "adam_bias_correction": False,
        "precision": "bfloat16",
        "recompute_activations": True,
        "save_checkpoints_steps": 11,
        "keep_checkpoints": 2,
        "keep_every_steps": 22,
        "log_every_steps": 13,
        "eval_every_steps": 17,
        "eval_batch_size": 19,
        "max_eval_steps": 23,
        "random_seed": 29,
        "verify_data": False,
    }
    default = dataclasses.asdict(TrainingOptions())
    # Each of these belongs to other data, another schedule or JAX.
    others = {"decay_power": None, "masked_lm_prob": None, "context_parallel": 1}
    assert given.keys() | others.keys() == default.keys()
    assert not any(given[name] == default[name] for name in given)
    result = pretrain(*places, "--model=mini", *as_flags(given), is_captured=True)
    assert captured(result)[1] == given | others


def test_the_power_of_the_decay_has_its_effect(pretrain, places):
    flags = "--model=mini", "--learning_rate_schedule=polynomial", "--decay_power=0.5"
    _, options = captured(pretrain(*places, *flags, is_captured=True))
    changed = {"learning_rate_schedule": "polynomial", "decay_power": 0.5}
    assert options == dataclasses.asdict(TrainingOptions()) | changed


@pytest.mark.parametrize("source", ["model", "bert_config_file"])
def test_every_flag_of_the_config_has_its_effect(pretrain, places, tmp_path, source):
    given = {
        "vocab_size": 64,
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "intermediate_size": 44,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 20,
        "type_vocab_size": 3,
        "initializer_range": 0.05,
        "gelu_form": "gelu_erf",
    }
    default = BertConfig.preset("tiny", 40)
    (tmp_path / "config.json").write_text(default.to_json())
    flag = {"model": "tiny", "bert_config_file": tmp_path / "config.json"}[source]
    default = default.to_dict()
    assert given.keys() == default.keys()
    assert not any(given[name] == default[name] for name in given)
    result = pretrain(*places, f"--{source}={flag}", *as_flags(given), is_captured=True)
    assert captured(result)[0] == given | {"sentence_pairs": "next"}


def test_the_data_decide_which_heads_a_model_has(pretrain, write_data_set, tmp_path):
    data_dir, path = write_data_set(tmp_path / "data"), tmp_path / "bert_config.json"
    manifest = Manifest.read(data_dir)
    places = f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}"
    for pairs, version in (("none", 2), ("order", 1)):
        options = {"sentence_pairs": pairs}
        dataclasses.replace(manifest, options=options, format_version=version).write(data_dir)
        config = dataclasses.replace(BertConfig.preset("tiny", 40), sentence_pairs="none")
        path.write_text(config.to_json())
        result = pretrain(*places, f"--bert_config_file={path}", is_captured=True)
        assert captured(result)[0]["sentence_pairs"] == pairs


@pytest.mark.parametrize("name", ["hidden_size", "hidden_dropout_prob", "gelu_form"])
def test_a_flag_of_the_config_changes_nothing_else(pretrain, places, name):
    value = {"hidden_size": 64, "hidden_dropout_prob": 0.0, "gelu_form": "gelu_erf"}[name]
    result = pretrain(*places, "--model=tiny", f"--{name}={value}", is_captured=True)
    expected = dataclasses.asdict(BertConfig.preset("tiny", 40)) | {name: value}
    assert captured(result)[0] == expected


def test_weights_without_a_config_take_it_and_the_form_of_gelu_from_the_flags(
    pretrain, places, tmp_path
):
    config = dataclasses.replace(BertConfig.preset("tiny", 40), num_hidden_layers=1)
    weights = {name: np.ones(shape, np.float32) for name, shape in weight_shapes(config).items()}
    (tmp_path / "weights").mkdir()
    write_huggingface(tmp_path / "weights", config, weights)
    (tmp_path / "weights" / "config.json").unlink()
    flags = [*places, f"--init_checkpoint={tmp_path / 'weights'}"]
    assert_fails(pretrain(*flags, is_captured=True), "weights/config.json", "--bert_config_file")
    content = dataclasses.asdict(config)
    del content["gelu_form"]  # as in an original config
    (tmp_path / "elsewhere.json").write_text(json.dumps(content))
    flags += [f"--bert_config_file={tmp_path / 'elsewhere.json'}", "--gelu_form=gelu_erf"]
    used, _ = captured(pretrain(*flags, is_captured=True))
    assert used == dataclasses.asdict(config) | {"gelu_form": "gelu_erf"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give --model, --bert_config_file or --init_checkpoint"),
        (["--model=tiny", "--bert_config_file=config.json"], "not both"),
        (["--model=huge"], "--model=huge"),
        (["--model=tiny", "--backend=torch"], "--backend=torch"),
        (["--model=tiny", "--precision=float64"], "--precision=float64"),
        (["--model=tiny", "--track=comet"], "--track=comet"),
        (["--model=tiny", "--optimizer=sgd"], "--optimizer=sgd"),
        (["--model=tiny", "--learning_rate_schedule=wsd"], "--learning_rate_schedule=wsd"),
        (["--model=tiny", "--gelu_form=gelu"], "--gelu_form=gelu"),
        (["--model=tiny", "--hidden_size=wide"], "--hidden_size=wide"),
        (["--model=tiny", "--init_checkpoint="], "--init_checkpoint is empty"),
        (["--model=tiny", "--branch_from="], "--branch_from is empty"),
        (["--model=tiny", "--train_batchsize=4"], "train_batchsize"),
        (["--model=tiny", "extra"], "extra"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_exit_2_and_write_nothing(pretrain, places, tmp_path, flags, expected):
    assert_fails(pretrain(*places, *flags), expected, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--train_batch_size=30", "--gradient_accumulation_steps=4"],
            ["--train_batch_size=30", "--gradient_accumulation_steps=4"],
        ),
        (
            ["--num_warmup_steps=9", "--num_train_steps=8"],
            ["--num_warmup_steps=9", "--num_train_steps=8"],
        ),
        (["--decay_power=0.5"], ["--decay_power=0.5", "polynomial"]),
        (
            ["--learning_rate_schedule=polynomial", "--num_decay_steps=5"],
            ["--num_decay_steps=5", "warmup_stable_decay"],
        ),
        (
            [
                *("--learning_rate_schedule=warmup_stable_decay", "--num_train_steps=20"),
                *("--num_warmup_steps=15", "--num_decay_steps=6"),
            ],
            ["--num_decay_steps=6", "--num_train_steps=20", "--num_warmup_steps=15"],
        ),
        (["--log_every_steps=0"], ["--log_every_steps=0"]),
        (["--max_position_embeddings=15"], ["max_position_embeddings 15", "16"]),
        (["--vocab_size=39"], ["vocab_size 39", "40"]),
        (["--num_attention_heads=3"], ["hidden_size 128", "num_attention_heads 3"]),
        (["--hidden_dropout_prob=1"], ["hidden_dropout_prob"]),
        (["--data_dir=nowhere"], ["nowhere", "manifest.json"]),
        (["--model=", "--bert_config_file=nowhere.json"], ["nowhere.json"]),
        (["--init_checkpoint=nowhere"], ["nowhere", "not a trained BERT"]),
    ],
    ids=" ".join,
)
def test_impossible_training_is_reported_in_one_line_and_writes_nothing(
    pretrain, places, tmp_path, flags, expected
):
    if "--model=" in flags:
        flags = [f"--bert_config_file={tmp_path / 'nowhere.json'}"]
        result = pretrain(*places, *flags)
    else:
        result = pretrain("--model=tiny", *places, *flags)
    assert_fails(result, *expected)
    assert list(tmp_path.iterdir()) == []


def test_missing_backend_is_reported_with_its_pip_line(pretrain, places, tmp_path):
    flags = "--model=tiny", "--backend=jax"
    result = pretrain(*places, *flags, missing=["jax"], is_captured=True)
    assert_fails(result, "--backend=jax", "pip install jax", "clozemill[jax]")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_missing_tracker_is_reported_with_its_pip_line(pretrain, places, tmp_path, tracker):
    flags = "--model=tiny", f"--track={tracker}"
    result = pretrain(*places, *flags, missing=[tracker], is_captured=True)
    assert_fails(result, f"--track={tracker}", f"pip install 'clozemill[{tracker}]'")
    assert list(tmp_path.iterdir()) == []


# What a run writes.


def test_run_logs_its_size_and_where_its_checkpoints_are(first_run):
    run_dir, result = first_run
    assert_works(result)
    assert result.stdout == ""
    parameters = sum(values.size for values in read_weights(run_dir, 4).values())
    assert f"{parameters:,} parameters, on " in result.stderr
    for step in (2, 4):
        assert f"saved {run_dir}/checkpoints/step-{step:08d}" in result.stderr
    assert "step 4/4, 0:00:00 left" in result.stderr
    assert "evaluation at step 4" in result.stderr


def test_the_health_of_the_data_set_is_among_the_first_lines(first_run, data_dir):
    _, result = first_run
    lines = result.stderr.splitlines()
    (health,) = (i for i, line in enumerate(lines) if "0.0% of the tokens are masked" in line)
    assert str(data_dir) in lines[health]
    assert health < next(i for i, line in enumerate(lines) if "parameters, on" in line)


def test_config_is_the_model_size_with_the_flags(first_run):
    run_dir, _ = first_run
    expected = BertConfig.preset("tiny", 40).to_dict() | SIZE
    expected |= {"vocab_size": 48, "hidden_dropout_prob": 0.2, "gelu_form": "gelu_erf"}
    assert json.loads((run_dir / "bert_config.json").read_text()) == expected


def test_flags_are_saved_with_defaults(first_run, data_dir):
    run_dir, _ = first_run
    lines = (run_dir / "flags.txt").read_text().splitlines()
    assert {
        *SMALL,
        f"--data_dir={data_dir}",
        f"--output_dir={run_dir}",
        "--hidden_dropout_prob=0.2",
        "--gelu_form=gelu_erf",
        "--noadam_bias_correction",
        "--backend=tensorflow",
        "--keep_checkpoints=5",
        "--optimizer=adamw",
    } <= set(lines)
    assert not any("initializer_range" in line for line in lines)


def test_missing_matplotlib_is_reported_with_its_pip_line(first_run):
    run_dir, result = first_run
    assert (
        "no loss.png, because matplotlib is missing: pip install 'clozemill[plot]'" in result.stderr
    )
    assert not (run_dir / "loss.png").exists()


def test_saved_flags_repeat_the_run(pretrain, first_run, tmp_path):
    run_dir, _ = first_run
    result = pretrain(f"--flagfile={run_dir / 'flags.txt'}", f"--output_dir={tmp_path / 'again'}")
    assert_works(result)
    first, second = read_weights(run_dir, 4), read_weights(tmp_path / "again", 4)
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, name)
    config = (run_dir / "bert_config.json").read_bytes()
    assert (tmp_path / "again" / "bert_config.json").read_bytes() == config


@needs_jax
@pytest.mark.slow
def test_jax_computes_the_same(first_run, tmp_path):
    run_dir, _ = first_run
    result = clozemill(
        "pretrain",
        f"--flagfile={run_dir / 'flags.txt'}",
        "--backend=jax",
        f"--output_dir={tmp_path / 'jax'}",
    )
    assert_works(result)
    environment = json.loads((tmp_path / "jax" / "environment.json").read_text())
    assert environment["backend"] == "jax"
    assert "--backend=jax" in (tmp_path / "jax" / "flags.txt").read_text().splitlines()
    first, second = read_weights(run_dir, 4), read_weights(tmp_path / "jax", 4)
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, rtol=0, atol=1e-5, err_msg=name)


@needs_jax
@pytest.mark.slow
def test_jax_evaluates_the_same(first_run, data_dir):
    run_dir, _ = first_run
    result = clozemill(
        "evaluate", "--backend=jax", f"--run_dir={run_dir}", f"--data_dir={data_dir}"
    )
    assert_works(result)
    (line,) = (line for line in read_metrics(run_dir) if "eval_masked_lm_loss" in line)
    expected = {name.removeprefix("eval_"): value for name, value in line.items()}
    printed = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert printed["checkpoint"] == f"step-00000004 of {run_dir}"
    assert printed["data_dir"] == str(data_dir)
    assert {name: float(printed[name]) for name in expected} == pytest.approx(expected, rel=1e-4)


def test_run_of_another_model_is_refused_and_the_difference_named(pretrain, first_run):
    run_dir, _ = first_run
    before = (run_dir / "flags.txt").read_bytes()
    result = pretrain(f"--flagfile={run_dir / 'flags.txt'}", "--hidden_size=32")
    assert_fails(result, run_dir, "hidden_size was 16, is 32")
    assert (run_dir / "flags.txt").read_bytes() == before


def test_run_that_is_in_use_by_another_process_is_refused(pretrain, places, tmp_path):
    (tmp_path / "run").mkdir()
    handle = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    result = pretrain(*places, "--model=tiny", is_captured=True)
    os.close(handle)
    assert_fails(result, tmp_path / "run", "another run")
    captured(pretrain(*places, "--model=tiny", is_captured=True))


@pytest.mark.slow
def test_full_disk_is_reported_in_one_line_and_the_run_resumes_when_there_is_room(
    pretrain, first_run, tmp_path
):
    """A limit on file sizes raises the same error as a full disk, except for its number."""
    run_dir = Path(shutil.copytree(first_run[0], tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    before = read_weights(run_dir, 2)
    newest = run_dir / "checkpoints" / "step-00000002"
    sizes = [(newest / name).stat().st_size for name in ("weights.npz", "optimizer.npz")]
    limit = sum(sizes) // 2
    assert sizes[0] < limit < sizes[1]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    flags = f"--flagfile={run_dir / 'flags.txt'}", f"--output_dir={run_dir}"
    result = clozemill("pretrain", *flags, preexec_fn=limited)
    assert_fails(result, "step-00000004", "File too large")
    assert list((run_dir / "checkpoints").iterdir()) == [newest]
    for name, values in read_weights(run_dir, 2).items():
        np.testing.assert_array_equal(values, before[name])

    result = pretrain(*flags)
    assert_works(result)
    assert f"resuming from {newest}" in result.stderr
    expected = read_weights(first_run[0], 4)
    for name, values in read_weights(run_dir, 4).items():
        np.testing.assert_array_equal(values, expected[name])
    if importlib.util.find_spec("matplotlib"):
        assert f"drew {run_dir / 'loss.png'}" in result.stderr
        assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_dry_run_describes_the_run_and_writes_nothing(pretrain, places, first_run, tmp_path):
    flags = (first_run[0] / "flags.txt").read_text().splitlines()
    result = pretrain(*flags, *places, "--dry_run")
    assert_works(result)
    parameters = sum(values.size for values in read_weights(first_run[0], 4).values())
    printed = dict(re.split(r"  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert printed["parameters"] == f"{parameters:,}"
    assert re.fullmatch(r"20 instances in 1 pass(es)?, 5(\.0)? steps per pass", printed["data"])
    assert {"device", "work per sequence", "memory", "whole run", "step 1", "step 2"} <= set(
        printed
    )
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_the_run_would(pretrain, first_run, data_dir):
    run_dir, _ = first_run
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    flags = f"--flagfile={run_dir / 'flags.txt'}", "--dry_run"
    assert_fails(pretrain(*flags, "--hidden_size=32"), "hidden_size was 16, is 32")
    assert_fails(pretrain(*flags, f"--output_dir={data_dir}"), data_dir, "not a run")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_evaluations_need_eval_instances(pretrain, write_data_set, tmp_path):
    data_dir = write_data_set(tmp_path / "data", num_eval=0)
    flags = f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}", *SMALL
    result = pretrain(*flags, "--eval_every_steps=2")
    assert_fails(result, data_dir, "--eval_fraction")
    assert not list(tmp_path.glob("run/checkpoints/*"))


# --init_checkpoint.


def test_second_phase_starts_from_the_weights_of_the_first(
    pretrain, first_run, write_data_set, tmp_path
):
    first_dir, _ = first_run
    data_dir = write_data_set(tmp_path / "data_32", max_seq_length=32)
    result = pretrain(
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path / 'run'}",
        f"--init_checkpoint={first_dir}",
        *as_flags(OPTIONS | {"save_checkpoints_steps": 1, "num_train_steps": 2}),
    )
    assert_works(result)
    weights = read_weights(first_dir, 4)
    message = f"loaded {len(weights)} variables from step-00000004 of {first_dir}"
    assert message in result.stderr
    assert "random values" not in result.stderr
    config = (first_dir / "bert_config.json").read_bytes()
    assert (tmp_path / "run" / "bert_config.json").read_bytes() == config
    # The first update has a learning rate of 0.
    after_one, after_two = (read_weights(tmp_path / "run", step) for step in (1, 2))
    for name, values in weights.items():
        np.testing.assert_array_equal(after_one[name], values)
    assert any(np.any(after_two[name] != values) for name, values in weights.items())
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["max_seq_length"] == 32


def test_resumed_run_does_not_need_its_model_flags_and_initial_checkpoint(
    pretrain, first_run, tmp_path
):
    run_dir = Path(shutil.copytree(first_run[0], tmp_path / "run"))
    flags = (run_dir / "flags.txt").read_text().splitlines()
    flags = [flag for flag in flags if "--model" not in flag]
    result = pretrain(*flags, f"--output_dir={run_dir}", "--init_checkpoint=nowhere")
    assert_works(result)
    assert "--init_checkpoint is ignored" in result.stderr
    assert "nothing to do" in result.stderr


def test_config_flags_override_the_config_of_the_checkpoint(pretrain, first_run, places):
    flags = f"--init_checkpoint={first_run[0]}", "--hidden_dropout_prob=0"
    config, _ = captured(pretrain(*places, *flags, is_captured=True))
    expected = json.loads((first_run[0] / "bert_config.json").read_text())
    assert config == expected | {"hidden_dropout_prob": 0, "sentence_pairs": "next"}


def test_checkpoint_of_another_vocabulary_is_refused(
    pretrain, first_run, data_dir, write_data_set, tmp_path
):
    tokens = (data_dir / "vocab.txt").read_text().split()
    tokens[10], tokens[11] = tokens[11], tokens[10]
    other = write_data_set(tmp_path / "other", tokens=tokens)
    result = pretrain(
        f"--data_dir={other}",
        f"--output_dir={tmp_path / 'run'}",
        f"--init_checkpoint={first_run[0]}",
    )
    assert_fails(result, "'word6' in", other / "vocab.txt", first_run[0] / "vocab.txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model=tiny"], "num_hidden_layers"),
        (["--hidden_size=32"], "word_embeddings"),
        (["--num_hidden_layers=2"], "num_hidden_layers"),
        (["--gelu_form=gelu_tanh"], "gelu_form"),
    ],
    ids=lambda value: value[0],
)
def test_checkpoint_of_another_model_is_refused_and_nothing_is_left(
    pretrain, first_run, places, tmp_path, flags, named
):
    result = pretrain(*places, f"--init_checkpoint={first_run[0]}", *flags)
    assert_fails(result, first_run[0], named)
    assert not (tmp_path / "run").exists()


def test_instances_too_long_for_the_checkpoint_are_refused(
    pretrain, first_run, write_data_set, tmp_path
):
    data_dir = write_data_set(tmp_path / "data_33", max_seq_length=33)
    result = pretrain(
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path / 'run'}",
        f"--init_checkpoint={first_run[0]}",
    )
    assert_fails(result, data_dir, "max_position_embeddings 32", "33")
    assert not (tmp_path / "run").exists()


# --branch_from.


def test_a_branch_of_a_run_ends_and_resumes_as_a_run_of_its_own(pretrain, first_run, tmp_path):
    first_dir, _ = first_run
    before = {path: path.read_bytes() for path in first_dir.rglob("*") if path.is_file()}
    source = first_dir / "checkpoints" / "step-00000002"
    flags = [
        *(
            flag
            for flag in (first_dir / "flags.txt").read_text().splitlines()
            if "model" not in flag
        ),
        f"--output_dir={tmp_path / 'branch'}",
        f"--branch_from={source}",
        *("--num_train_steps=3", "--learning_rate_schedule=warmup_stable_decay"),
    ]
    result = pretrain(*flags)
    assert_works(result)
    assert f"branching from step-00000002 of {first_dir}" in result.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "branch")] == [3, 3]
    assert {path: path.read_bytes() for path in first_dir.rglob("*") if path.is_file()} == before
    result = pretrain(*flags)
    assert_works(result)
    assert "--branch_from is ignored" in result.stderr
    assert "nothing to do: the run has reached step 3" in result.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--branch_from=nowhere"], ["--branch_from=nowhere", "RUN/checkpoints/step-"]),
        (
            ["--branch_from=SOURCE"],
            ["SOURCE is not a checkpoint", "step-00000002", "step-00000004"],
        ),
        (["--branch_from=STEP", "--num_train_steps=2"], ["--num_train_steps=2", "step 2", "STEP"]),
        (["--branch_from=STEP", "--random_seed=7"], ["SOURCE", "--random_seed=12345"]),
        (["--branch_from=STEP", "--optimizer=lamb"], ["SOURCE", "--optimizer=adamw"]),
        (["--branch_from=STEP", "--hidden_size=32"], ["SOURCE", "hidden_size was 16, is 32"]),
        (["--branch_from=STEP", "--data_dir=OTHER"], ["SOURCE", "OTHER", "another --branch_from"]),
        (["--branch_from=STEP", "--output_dir=SOURCE"], ["STEP", "--output_dir=SOURCE", "another"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)], ids=["", "dry"])
def test_an_impossible_branch_is_refused_and_nothing_is_left(
    pretrain, first_run, places, write_data_set, tmp_path, flags, named, dry
):
    run_dir = first_run[0]
    paths = {"STEP": run_dir / "checkpoints" / "step-00000002", "SOURCE": run_dir}
    if any("OTHER" in flag for flag in flags):
        paths["OTHER"] = write_data_set(tmp_path / "other", num_eval=5)

    def with_paths(text):
        for name, path in paths.items():
            text = text.replace(name, str(path))
        return text

    given = f"--flagfile={run_dir / 'flags.txt'}", *places, *map(with_paths, flags), *dry
    assert_fails(pretrain(*given), *map(with_paths, named))
    assert not (tmp_path / "run").exists()


def test_a_branch_has_no_other_origin(pretrain, first_run, places, tmp_path):
    checkpoint = first_run[0] / "checkpoints" / "step-00000002"
    flags = f"--init_checkpoint={first_run[0]}", f"--branch_from={checkpoint}"
    result = pretrain(*places, *flags)
    assert_fails(result, "--init_checkpoint or --branch_from, not both", code=2)
    assert not (tmp_path / "run").exists()


# Recipes.


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if "generate" not in path.name], ids=lambda path: path.stem
)
def test_recipe_can_be_trained(pretrain, data_dir, tmp_path, recipe):
    data_dir = shutil.copytree(data_dir, tmp_path / "data")
    if "--masking=training" in recipe.read_text():
        manifest = Manifest.read(data_dir)
        changed = {"options": {"masking": "training"}, "format_version": 2}
        dataclasses.replace(manifest, **changed).write(data_dir)
    places = f"--data_dir={data_dir}", f"--output_dir={tmp_path / 'run'}"
    given = dict(re.findall(r"^--(\w+)=(\S+)$", recipe.read_text(), re.MULTILINE))
    model = given.get("model", "base")  # a recipe for a trained BERT leaves that to it
    flags = f"--flagfile={recipe}", f"--model={model}"
    config, options = captured(pretrain(*flags, *places, is_captured=True))
    own = {name: float(given.pop(name)) for name in given.keys() & {"attention_probs_dropout_prob"}}
    assert config == dataclasses.asdict(BertConfig.preset(model, 40)) | own
    assert bool(own) == ("packed_row_length" in recipe.read_text())
    for name in given.keys() - {"model"}:
        assert options[name] == type(options[name])(given[name]), name


def test_flags_that_recipes_give_for_their_data_sets_exist():
    result = clozemill("generate", "--help")
    known = set(re.findall(r"^  --(?:\[no\])?(\w+)$", result.stdout, re.MULTILINE))
    for recipe in RECIPES:
        command = recipe.read_text().partition("clozemill generate")[2].partition("\n--")[0]
        named = set(re.findall(r" --(\w+)", command))
        assert named <= known | {"flagfile"}, recipe
        assert named or recipe.stem == "demo_generate"


def test_recipes_that_the_readme_names_exist():
    named = re.findall(r"launch/recipes/(\w+)\.flags", (ROOT / "README.md").read_text("utf-8"))
    assert set(named) <= {path.stem for path in RECIPES}
    assert {"demo", "mini", "base_phase1", "base_phase2"} <= {path.stem for path in RECIPES}
