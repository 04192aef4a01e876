import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints import list_checkpoints
from modeling.metrics import METRICS_NAME
from modeling.run import prepare_run
from modeling.training import TrainingOptions, train
from pipeline.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SPEED_FIELDS = {"sequences_per_second", "tokens_per_second", "model_flops_per_second"}
OPTIONS = TrainingOptions(
    train_batch_size=4,
    learning_rate=2e-2,
    num_train_steps=300,
    num_warmup_steps=20,
    save_checkpoints_steps=100,
    keep_checkpoints=2,
    log_every_steps=35,
)


def read_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_NAME).read_text().splitlines()]


def without_speed(lines):
    return [
        {name: value for name, value in line.items() if name not in SPEED_FIELDS} for line in lines
    ]


def assert_same_run(run_dir, other_dir):
    for first, second in zip(list_checkpoints(run_dir), list_checkpoints(other_dir), strict=True):
        assert_same_checkpoint(first, second)
    assert without_speed(read_metrics(run_dir)) == without_speed(read_metrics(other_dir))


def assert_same_checkpoint(first, second):
    assert first.name == second.name
    assert (first / "state.json").read_text() == (second / "state.json").read_text()
    for name in ("weights.npz", "optimizer.npz"):
        with np.load(first / name) as values, np.load(second / name) as others:
            assert set(values) == set(others)
            for variable in values:
                np.testing.assert_array_equal(values[variable], others[variable], variable)


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory, data_set, shallow_config):
    """A run without an interruption, through many epochs of few instances."""
    run_dir = tmp_path_factory.mktemp("straight")
    data_dir, manifest = data_set
    prepare_run(run_dir, shallow_config, data_dir, manifest)
    train(data_dir, manifest, run_dir, shallow_config, OPTIONS)
    return run_dir


def test_the_newest_checkpoints_are_kept(straight_run):
    names = [path.name for path in list_checkpoints(straight_run)]
    assert names == ["step-00000200", "step-00000300"]


def test_metrics_are_written_at_their_steps_and_at_the_end(straight_run):
    lines = read_metrics(straight_run)
    assert [line["step"] for line in lines] == [35, 70, 105, 140, 175, 210, 245, 280, 300]
    for line in lines:
        assert set(line) >= SPEED_FIELDS | {
            "masked_lm_loss",
            "next_sentence_loss",
            "masked_lm_accuracy",
            "next_sentence_accuracy",
            "learning_rate",
        }
        assert line["sequences_per_second"] > 0
        assert 8 <= line["tokens_per_second"] / line["sequences_per_second"] <= 16


def test_metrics_tell_the_rate_of_the_last_update(straight_run):
    rates = [line["learning_rate"] for line in read_metrics(straight_run)]
    expected = [2e-2 * (1 - (step - 1) / 300) for step in (*range(35, 300, 35), 300)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_few_instances_are_learnt_by_heart(straight_run):
    first, *_, last = read_metrics(straight_run)
    assert first["masked_lm_loss"] < 1.2 * np.log(50)
    assert last["masked_lm_loss"] < 0.5 * first["masked_lm_loss"]
    assert last["masked_lm_accuracy"] > first["masked_lm_accuracy"]
    assert last["next_sentence_loss"] < first["next_sentence_loss"]


def test_interrupted_run_goes_on_as_if_it_had_not_been(
    straight_run, tmp_path, data_set, shallow_config
):
    run_dir = tmp_path / "interrupted"
    shutil.copytree(straight_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000300")
    with (run_dir / METRICS_NAME).open("a") as file:
        file.write('{"step": 310, "masked_lm')
    data_dir, manifest = data_set
    train(data_dir, manifest, run_dir, shallow_config, OPTIONS)
    assert_same_run(run_dir, straight_run)


def test_finished_run_is_left_alone(straight_run, data_set, shallow_config):
    def files():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in straight_run.rglob("*")
            if path.is_file()
        }

    before = files()
    data_dir, manifest = data_set
    train(data_dir, manifest, straight_run, shallow_config, OPTIONS)
    assert files() == before


def test_damaged_newest_checkpoint_is_named(straight_run, tmp_path, data_set, shallow_config):
    run_dir = tmp_path / "damaged"
    shutil.copytree(straight_run, run_dir)
    newest = list_checkpoints(run_dir)[-1]
    (newest / "weights.npz").write_bytes(b"")
    data_dir, manifest = data_set
    with pytest.raises(UserError, match="damaged") as raised:
        train(data_dir, manifest, run_dir, shallow_config, OPTIONS)
    assert str(newest) in str(raised.value)


def test_data_set_without_training_instances_is_told(tmp_path, write_data_set, shallow_config):
    data_dir, run_dir = tmp_path / "data", tmp_path / "run"
    manifest = write_data_set(data_dir, [("eval", 0, 3)])
    prepare_run(run_dir, shallow_config, data_dir, manifest)
    with pytest.raises(UserError, match="no training instance"):
        train(data_dir, manifest, run_dir, shallow_config, OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_batch_size", 0),
        ("num_train_steps", 0),
        ("num_warmup_steps", -1),
        ("num_warmup_steps", 301),
        ("save_checkpoints_steps", 0),
        ("keep_checkpoints", 0),
        ("log_every_steps", 0),
        ("random_seed", -1),
        ("learning_rate", -1e-4),
    ],
)
def test_impossible_option_is_refused_by_its_flag(name, value):
    with pytest.raises(UserError, match=f"--{name}="):
        dataclasses.replace(OPTIONS, **{name: value})


@pytest.mark.parametrize("num_warmup_steps", [0, 300])
def test_warm_up_may_be_none_or_all(num_warmup_steps):
    options = dataclasses.replace(OPTIONS, num_warmup_steps=num_warmup_steps)
    assert options.num_warmup_steps == num_warmup_steps


@pytest.fixture
def pretrain(tmp_path, data_set, shallow_config):
    """A function that starts `clozemill pretrain` in a process of its own."""
    config_file = tmp_path / "config.json"
    config_file.write_text(shallow_config.to_json())
    processes = []

    def start(run_dir):
        command = [
            *(sys.executable, "-m", "launch", "pretrain"),
            f"--data_dir={data_set[0]}",
            f"--output_dir={run_dir}",
            f"--bert_config_file={config_file}",
            *(f"--{name}={value}" for name, value in dataclasses.asdict(OPTIONS).items()),
        ]
        processes.append(
            subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_process_is_taken_up_by_the_same_command(pretrain, straight_run, tmp_path):
    run_dir = tmp_path / "killed"
    process = pretrain(run_dir)
    wait_for(run_dir / "checkpoints" / "step-00000100", process)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "checkpoints" / "step-00000300").exists()

    process = pretrain(run_dir)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "going on from" in errors
    assert_same_run(run_dir, straight_run)


def test_another_seed_is_refused_since_it_decides_the_order(straight_run, data_set, shallow_config):
    data_dir, manifest = data_set
    options = dataclasses.replace(OPTIONS, random_seed=7, num_train_steps=400)
    with pytest.raises(UserError, match="--random_seed=12345"):
        train(data_dir, manifest, straight_run, shallow_config, options)


def test_training_that_goes_astray_stops_and_keeps_what_was_good(
    tmp_path, data_set, shallow_config
):
    data_dir, manifest = data_set
    prepare_run(tmp_path, shallow_config, data_dir, manifest)
    options = dataclasses.replace(
        OPTIONS, learning_rate=1e30, num_warmup_steps=2, save_checkpoints_steps=1, log_every_steps=5
    )
    with pytest.raises(UserError, match=r"no longer a finite number at step \d+.*step-0000000\d"):
        train(data_dir, manifest, tmp_path, shallow_config, options)
    with np.load(list_checkpoints(tmp_path)[-1] / "weights.npz") as weights:
        assert np.isfinite(weights["bert/pooler/dense/bias"]).all()
    for line in read_metrics(tmp_path) if (tmp_path / METRICS_NAME).exists() else []:
        assert np.isfinite(list(line.values())).all()


@pytest.mark.parametrize("damage", ["missing", "cut off", "flipped byte"])
def test_damaged_shard_is_told_of(tmp_path, write_data_set, shallow_config, damage):
    data_dir, run_dir = tmp_path / "data", tmp_path / "run"
    manifest = write_data_set(data_dir, [("train", 0, 9)])
    prepare_run(run_dir, shallow_config, data_dir, manifest)
    shard = data_dir / manifest.shards[0].name
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "cut off":
        shard.write_bytes(content[:-5])
    else:
        shard.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(UserError, match="clozemill verify"):
        train(data_dir, manifest, run_dir, shallow_config, OPTIONS)


def test_original_adam_differs_from_the_corrected_one(tmp_path, data_set, shallow_config):
    data_dir, manifest = data_set
    weights = []
    for correction in (True, False):
        run_dir = tmp_path / str(correction)
        prepare_run(run_dir, shallow_config, data_dir, manifest)
        options = dataclasses.replace(
            OPTIONS, num_train_steps=2, num_warmup_steps=0, adam_bias_correction=correction
        )
        train(data_dir, manifest, run_dir, shallow_config, options)
        with np.load(list_checkpoints(run_dir)[-1] / "weights.npz") as arrays:
            weights.append(arrays["bert/pooler/dense/kernel"])
    assert not np.allclose(*weights)
