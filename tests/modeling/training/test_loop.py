import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from modeling import batches
from modeling.batches import readable, training_batches
from modeling.checkpoints.pretrained import read_pretrained
from modeling.checkpoints.run_checkpoints import CHECKPOINTS_NAME, list_checkpoints, read_state
from modeling.job.termination import noticing_termination
from modeling.losses import SUMS
from modeling.optimization import AdamW, Lamb
from modeling.step.backend import Replicas
from modeling.step.learner import new_learner
from modeling.training import loop
from modeling.training.loop import train
from modeling.training.metrics import METRICS_NAME
from modeling.training_options import OptimizerName, Precision, TrainingOptions
from pipeline.errors import UserError
from pipeline.records import read_frames, record_of

REPOSITORY = Path(__file__).resolve().parents[3]
BACKEND = keras.config.backend()
OTHER_BACKEND = {"tensorflow": "jax", "jax": "tensorflow"}[BACKEND]
SPEED_FIELDS = {
    "sequences_per_second",
    "tokens_per_second",
    "model_flops_per_second",
    "model_flops_utilization",
    "input_wait",
}
OPTIONS = TrainingOptions(
    train_batch_size=4,
    learning_rate=2e-2,
    num_train_steps=300,
    num_warmup_steps=20,
    save_checkpoints_steps=20,
    keep_checkpoints=3,
    log_every_steps=35,
    eval_every_steps=110,
    eval_batch_size=3,
    max_eval_steps=2,
)
FEW_STEPS = dataclasses.replace(
    OPTIONS,
    num_train_steps=24,
    num_warmup_steps=0,
    save_checkpoints_steps=5,
    log_every_steps=7,
    eval_every_steps=0,
)


def read_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_NAME).read_text().splitlines()]


def training_lines(run_dir):
    return [line for line in read_metrics(run_dir) if "learning_rate" in line]


def evaluation_lines(run_dir):
    return [line for line in read_metrics(run_dir) if "eval_masked_lm_loss" in line]


def without_speed(lines):
    return [
        {name: value for name, value in line.items() if name not in SPEED_FIELDS} for line in lines
    ]


def names_of_checkpoints(run_dir):
    return [path.name for path in list_checkpoints(run_dir)]


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


def read_weights(checkpoint):
    with np.load(checkpoint / "weights.npz") as weights:
        return dict(weights)


# Processes that are really killed. They run beside the tests of this process.

KILLED_WHILE_SAVING = """
import os, signal, numpy
savez, files = numpy.savez, []
def savez_or_die(file, **arrays):
    files.append(file.name)
    if len(files) == 4:
        file.write(b"PK" + bytes(1000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(file, **arrays)
numpy.savez = savez_or_die
"""
# At once, for the steps are fast.
ENDED_BEHIND_A_LINE_OF_METRICS = """
import os, signal
from absl import logging
info = logging.info
def info_and_end(message, *values):
    info(message, *values)
    if values and str(values[0]).startswith("step {step}/"):
        os.kill(os.getpid(), signal.{signal})
logging.info = info_and_end
"""


class Start(NamedTuple):
    """How a process that trained has ended."""

    returncode: int
    log: str
    checkpoints: list[str]
    """All that lay in the folder of the checkpoints then."""


class Pretrain:
    """Starts `clozemill pretrain` in processes of their own, all with the same flags."""

    def __init__(self, directory, data_dir, config):
        self._directory = directory
        self._data_dir = data_dir
        self._processes = []
        self._is_closed = False
        (directory / "config.json").write_text(config.to_json())

    def start(self, run_dir, prelude="", backend=BACKEND):
        command = [
            *(sys.executable, "-c"),
            prelude + "\nimport sys, launch.__main__ as main; sys.exit(main.run(sys.argv[1:]))",
            "pretrain",
            f"--backend={backend}",
            f"--data_dir={self._data_dir}",
            f"--output_dir={run_dir}",
            f"--bert_config_file={self._directory / 'config.json'}",
            *(f"--{name}={value}" for name, value in dataclasses.asdict(OPTIONS).items()),
        ]
        log = self._directory / f"{len(self._processes)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
        process.log = log
        process.run_dir = run_dir
        self._processes.append(process)
        if self._is_closed:
            process.kill()
        return process

    def wait(self, process):
        process.wait(timeout=200)
        checkpoints = sorted(path.name for path in (process.run_dir / CHECKPOINTS_NAME).iterdir())
        return Start(process.returncode, process.log.read_text(), checkpoints)

    def close(self):
        self._is_closed = True
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory, data_set, shallow_config):
    pretrain = Pretrain(tmp_path_factory.mktemp("processes"), data_set.directory, shallow_config)
    yield pretrain
    pretrain.close()


@pytest.fixture(scope="module")
def background():
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def future_interruptions(background, pretrain, tmp_path_factory):
    """A run that is ended again and again, to come."""

    def interrupt(run_dir):
        starts = [pretrain.wait(pretrain.start(run_dir, KILLED_WHILE_SAVING))]
        for step, name in ((70, "SIGKILL"), (105, "SIGTERM")):
            prelude = ENDED_BEHIND_A_LINE_OF_METRICS.format(step=step, signal=name)
            starts.append(pretrain.wait(pretrain.start(run_dir, prelude)))
        return run_dir, [*starts, pretrain.wait(pretrain.start(run_dir))]

    return background.submit(interrupt, tmp_path_factory.mktemp("runs") / "interrupted")


@pytest.fixture(scope="module")
def interruptions(future_interruptions):
    """A run that was ended again and again, and how each start of it has ended."""
    return future_interruptions.result()


@pytest.fixture(scope="module")
def future_run_on_the_other_backend(background, pretrain, straight_run, tmp_path_factory):
    """The straight run from its checkpoint before the last one on, to come."""
    run_dir = tmp_path_factory.mktemp("runs") / OTHER_BACKEND
    shutil.copytree(straight_run, run_dir)
    shutil.rmtree(list_checkpoints(run_dir)[-1])

    def go_on():
        return run_dir, pretrain.wait(pretrain.start(run_dir, backend=OTHER_BACKEND))

    if importlib.util.find_spec(OTHER_BACKEND) is None:
        return None
    return background.submit(go_on)


# Runs within this process.


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory, data_set, shallow_config):
    """A run without an interruption, through many epochs of few instances."""
    run_dir = tmp_path_factory.mktemp("straight")
    train(data_set, run_dir, shallow_config, OPTIONS)
    return run_dir


@pytest.fixture
def copy_of_run(straight_run, tmp_path):
    """A copy of the straight run that may be changed."""
    return shutil.copytree(straight_run, tmp_path / "copy")


# It begins with the processes, which take long.
@pytest.mark.usefixtures("future_interruptions", "future_run_on_the_other_backend")
def test_the_newest_checkpoints_are_kept(straight_run):
    assert names_of_checkpoints(straight_run) == ["step-00000260", "step-00000280", "step-00000300"]


def test_metrics_are_written_at_their_steps_and_at_the_end(straight_run):
    lines = training_lines(straight_run)
    assert [line["step"] for line in lines] == [35, 70, 105, 140, 175, 210, 245, 280, 300]
    for line in lines:
        assert set(line) == SPEED_FIELDS - {"model_flops_utilization"} | {
            "step",
            "masked_lm_loss",
            "next_sentence_loss",
            "masked_lm_accuracy",
            "next_sentence_accuracy",
            "learning_rate",
            "gradient_norm",
        }
        assert line["sequences_per_second"] > 0
        assert 8 <= line["tokens_per_second"] / line["sequences_per_second"] <= 16
        assert 0 <= line["input_wait"] <= 1


def test_metrics_tell_the_rate_of_the_last_update(straight_run):
    rates = [line["learning_rate"] for line in training_lines(straight_run)]
    expected = [2e-2 * (1 - (step - 1) / 300) for step in (*range(35, 300, 35), 300)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_few_instances_are_learnt_by_heart(straight_run):
    first, *_, last = training_lines(straight_run)
    assert first["masked_lm_loss"] < 1.2 * np.log(50)
    assert last["masked_lm_loss"] < 0.5 * first["masked_lm_loss"]
    assert last["masked_lm_accuracy"] > first["masked_lm_accuracy"]
    assert last["next_sentence_loss"] < first["next_sentence_loss"]


def test_evaluations_are_written_at_their_steps_and_at_the_end(straight_run):
    lines = evaluation_lines(straight_run)
    assert [line["step"] for line in lines] == [110, 220, 300]
    assert all(0 <= line["eval_next_sentence_accuracy"] <= 1 for line in lines)
    # What has been learnt by heart is of no use for other instances.
    assert lines[-1]["eval_masked_lm_loss"] > training_lines(straight_run)[-1]["masked_lm_loss"]


def test_environment_of_the_run_is_written(straight_run):
    environment = json.loads((straight_run / "environment.json").read_text())
    assert environment["backend"] == BACKEND
    manifest = (straight_run / "manifest.json").read_bytes()
    assert environment["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()


def test_losses_are_drawn_at_the_end(straight_run):
    pytest.importorskip("matplotlib")
    assert (straight_run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_is_given_all_lines(straight_run):
    (path,) = (straight_run / "tensorboard").iterdir()
    with path.open("rb") as file:
        events = [tf.compat.v1.Event.FromString(record_of(frame)) for frame in read_frames(file)]
    steps = [event.step for event in events if event.summary.value]
    assert steps == [line["step"] for line in read_metrics(straight_run)]


def test_finished_run_is_left_alone(straight_run, data_set, shallow_config):
    def files():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in straight_run.rglob("*")
            if path.is_file()
        }

    before = files()
    train(data_set, straight_run, shallow_config, OPTIONS)
    assert files() == before


def test_missing_picture_of_a_finished_run_is_drawn(copy_of_run, data_set, shallow_config):
    pytest.importorskip("matplotlib")
    picture = (copy_of_run / "loss.png").read_bytes()
    (copy_of_run / "loss.png").unlink()
    train(data_set, copy_of_run, shallow_config, OPTIONS)
    assert (copy_of_run / "loss.png").read_bytes() == picture


def test_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    straight_run, copy_of_run, data_set, shallow_config, caplog
):
    third, second, first = list_checkpoints(copy_of_run)
    weights = (first / "weights.npz").read_bytes()
    (first / "weights.npz").write_bytes(weights[: len(weights) // 2])
    moments = bytearray((second / "optimizer.npz").read_bytes())
    moments[moments.index(b"\x93NUMPY") + 200] ^= 1
    (second / "optimizer.npz").write_bytes(moments)
    with (copy_of_run / METRICS_NAME).open("a") as file:
        file.write('{"step": 310, "masked_lm')
    with caplog.at_level(logging.INFO, logger="absl"):
        train(data_set, copy_of_run, shallow_config, OPTIONS)
    assert_same_run(copy_of_run, straight_run)
    for damaged in (first, second):
        assert any(f"{damaged} is damaged" in message for message in caplog.messages)
        assert len(list(damaged.parent.glob(f"{damaged.name}.damaged-*"))) == 1
    assert any(f"resuming from {third}" in message for message in caplog.messages)


def test_run_without_a_whole_checkpoint_is_refused(copy_of_run, data_set, shallow_config):
    checkpoints = list_checkpoints(copy_of_run)
    for checkpoint in checkpoints:
        (checkpoint / "state.json").write_text("")
    with pytest.raises(UserError, match=r"damaged.*state\.json") as raised:
        train(data_set, copy_of_run, shallow_config, OPTIONS)
    assert str(checkpoints[-1]) in str(raised.value)
    assert list_checkpoints(copy_of_run) == checkpoints


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"random_seed": 7}, "--random_seed=12345"), ({"optimizer": "lamb"}, "--optimizer=adamw")],
)
def test_what_the_run_was_begun_with_has_to_stay(
    straight_run, data_set, shallow_config, changes, told
):
    options = dataclasses.replace(OPTIONS, num_train_steps=400, **changes)
    with pytest.raises(UserError, match=told) as raised:
        train(data_set, straight_run, shallow_config, options)
    assert str(straight_run) in str(raised.value)


def test_training_that_goes_astray_stops_and_keeps_what_was_good(
    tmp_path, data_set, shallow_config
):
    # The first update has the rate 0, the second one ruins the weights.
    options = dataclasses.replace(
        FEW_STEPS, learning_rate=1e30, num_warmup_steps=2, save_checkpoints_steps=2
    )
    with pytest.raises(UserError, match=r"at step 3, .* is step-00000002: lower --learning_rate"):
        train(data_set, tmp_path, shallow_config, options)
    (checkpoint,) = list_checkpoints(tmp_path)
    assert all(np.isfinite(values).all() for values in read_weights(checkpoint).values())


# The loop alone, with steps that compute nothing.


class FakeStep:
    """Tells the same at each step, and what was asked for at the step of that number."""

    attention_kernel = "none"

    def __init__(self, learner, told_at=None, at_step=None):
        self._iterations = learner.optimizer.iterations
        self._told_at = told_at or {}
        self._at_step = at_step or (lambda _step: None)
        self.batches = []

    def is_idle(self):
        return True

    def __call__(self, batch):
        self.batches.append(batch)
        self._iterations.assign(int(self._iterations) + 1)
        step = int(self._iterations)
        self._at_step(step)
        names = (*SUMS, "masked_lm_weights", "tokens", "gradient_norm", "updates")
        return {
            **dict.fromkeys(names, 1.0),
            "updates_left_out": 0.0,
            "sequences": len(batch["input_ids"]),
            **self._told_at.get(step, {}),
        }


@pytest.fixture
def fake_run(tmp_path, data_set, shallow_config, monkeypatch):
    """A function that trains with steps which compute nothing; gives the run and the steps."""
    opened, steps = [], []

    def run(options=FEW_STEPS, data_set=data_set, pretrained=None, flags="", **kwargs):
        def make_step(learner, _replicas):
            steps.append(FakeStep(learner, **kwargs))
            return steps[-1]

        monkeypatch.setattr(loop, "TrainStep", make_step)
        replicas = Replicas()
        arguments = (tmp_path / "run", shallow_config, options, pretrained, flags, replicas)
        with noticing_termination(replicas.group):
            train(data_set, *arguments)
        return tmp_path / "run", steps[-1]

    def open_batches(*arguments):
        opened.append(readable(*arguments))
        return opened[-1]

    monkeypatch.setattr(loop, "readable", open_batches)
    yield run
    # All at once, which the garbage collector might do, they would take long.
    for iterator in opened:
        iterator.close()


@pytest.fixture
def passes(tmp_path, write_data_set, monkeypatch):
    """A data set of two passes, each of three groups of shards."""
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    shards = [("train", pass_index, 5) for pass_index in (0, 1) for _ in range(6)]
    return write_data_set(tmp_path / "data", shards)


@pytest.mark.no_backend
@pytest.mark.parametrize("log_every_steps", [1, 7, 50])
@pytest.mark.parametrize(
    ("bad_step", "told", "last_checkpoint"),
    [
        (1, {"masked_lm_nll": np.nan}, None),
        (5, {"next_sentence_nll": np.inf}, None),
        (12, {"gradient_norm": np.inf}, "step-00000010"),
        (24, {"gradient_norm": np.nan}, "step-00000020"),
    ],
)
def test_first_bad_step_is_named_with_its_shards_and_the_last_good_checkpoint(
    fake_run, tmp_path, passes, instance_numbers, bad_step, told, last_checkpoint, log_every_steps
):
    manifest = passes.manifest
    options = dataclasses.replace(FEW_STEPS, log_every_steps=log_every_steps)
    told_at = {bad_step: told, bad_step + 2: {"masked_lm_nll": np.nan}}
    with pytest.raises(UserError, match=f"at step {bad_step},") as raised:
        fake_run(options, passes, told_at=told_at)
    message = str(raised.value)

    batch = read_batches(passes, bad_step)[-1]
    shards = {manifest.shards[number // 5].name for number in instance_numbers(batch)}
    named = {shard.name for shard in manifest.shards if shard.name in message}
    assert shards <= named
    assert len(named) <= 4

    assert names_of_checkpoints(tmp_path / "run")[-1:] == [last_checkpoint][: bool(last_checkpoint)]
    assert (last_checkpoint or "does not exist yet") in message
    for line in read_metrics(tmp_path / "run"):
        assert line["step"] < bad_step
        assert np.isfinite(list(line.values())).all()


def test_sums_of_all_steps_since_the_last_line_are_in_the_next_one(fake_run):
    told_at = {step: {"masked_lm_nll": float(step)} for step in range(1, 25)}
    run_dir, _ = fake_run(told_at=told_at)
    losses = [line["masked_lm_loss"] for line in training_lines(run_dir)]
    assert losses == pytest.approx([4, 11, 18, 23], rel=1e-4)


def test_sums_are_those_of_the_whole_interval_where_the_run_goes_on(fake_run):
    told_at = {step: {"masked_lm_nll": float(step)} for step in range(1, 25)}
    with pytest.raises(KeyboardInterrupt):
        fake_run(told_at=told_at, at_step=lambda step: interrupt_at(step, 12))
    run_dir, steps = fake_run(told_at=told_at)
    assert len(steps.batches) == 14
    losses = [line["masked_lm_loss"] for line in training_lines(run_dir)]
    assert losses == pytest.approx([4, 11, 18, 23], rel=1e-4)


def read_batches(data_set, count):
    """The first batches of a run with `FEW_STEPS`."""
    batches = training_batches(data_set, FEW_STEPS.train_batch_size, FEW_STEPS.random_seed)
    with contextlib.closing(readable(batches, data_set)) as batches:
        return list(itertools.islice(batches, count))


def interrupt_at(step, last):
    if step == last:
        raise KeyboardInterrupt


def test_batches_go_on_where_the_run_was_interrupted(fake_run, passes, instance_numbers):
    with pytest.raises(KeyboardInterrupt):
        fake_run(data_set=passes, at_step=lambda step: interrupt_at(step, 12))
    _, steps = fake_run(data_set=passes)
    expected = [instance_numbers(batch) for batch in read_batches(passes, 24)[10:]]
    assert [instance_numbers(batch) for batch in steps.batches] == expected


class Slow(float):
    """A number that is known some time after the step has been given."""

    def __float__(self):
        time.sleep(0.02)
        return 1.0


@pytest.mark.no_backend
@pytest.mark.parametrize("changes", [{"save_checkpoints_steps": 3}, {"eval_every_steps": 3}])
def test_steps_that_a_checkpoint_or_an_evaluation_waits_for_count_as_training(
    fake_run, monkeypatch, changes
):
    monkeypatch.setattr(loop, "evaluation_sums", lambda _step, _batches: fake_sums())
    told_at = {step: {"masked_lm_nll": Slow()} for step in range(1, 25)}
    run_dir, _ = fake_run(dataclasses.replace(FEW_STEPS, **changes), told_at=told_at)
    for line in training_lines(run_dir):
        assert line["sequences_per_second"] <= 4 / 0.02


def fake_sums():
    return dict.fromkeys((*SUMS, "masked_lm_weights", "sequences"), 1.0)


def slowly(function):
    def wait_and_call(*arguments):
        time.sleep(0.5)
        return function(*arguments)

    return wait_and_call


def test_checkpoints_and_evaluations_do_not_count_as_training(fake_run, monkeypatch):
    monkeypatch.setattr(loop, "evaluation_sums", slowly(lambda _step, _batches: fake_sums()))
    monkeypatch.setattr(loop, "save_checkpoint", slowly(loop.save_checkpoint))
    options = dataclasses.replace(
        FEW_STEPS,
        num_train_steps=4,
        log_every_steps=2,
        eval_every_steps=3,
        save_checkpoints_steps=3,
    )
    run_dir, _ = fake_run(options)
    assert training_lines(run_dir)[1]["sequences_per_second"] > 2 * 4 / 0.5


def test_compiling_does_not_count_as_training(fake_run):
    options = dataclasses.replace(FEW_STEPS, num_train_steps=3, log_every_steps=3)
    run_dir, _ = fake_run(options, at_step=lambda step: time.sleep(0.5 * (step == 1)))
    (line,) = training_lines(run_dir)
    assert line["sequences_per_second"] > 3 * 4 / 0.5


@pytest.mark.no_backend
def test_waiting_for_batches_is_told(fake_run, monkeypatch):
    options = dataclasses.replace(FEW_STEPS, num_train_steps=6, log_every_steps=3)
    run_dir, _ = fake_run(options, at_step=lambda _step: time.sleep(0.2))
    assert all(line["input_wait"] < 0.5 for line in training_lines(run_dir))
    shutil.rmtree(run_dir)
    read = loop.readable

    def read_slowly(*arguments):
        for batch in read(*arguments):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(loop, "readable", read_slowly)
    run_dir, _ = fake_run(options, at_step=lambda _step: time.sleep(0.05))
    assert all(line["input_wait"] > 0.5 for line in training_lines(run_dir))


@pytest.mark.no_backend
def test_evaluations_read_the_same_few_batches_each_time(fake_run, monkeypatch, instance_numbers):
    read = []

    def evaluate(_step, batches):
        read.append([instance_numbers(batch) for batch in batches])
        return fake_sums()

    monkeypatch.setattr(loop, "evaluation_sums", evaluate)
    options = dataclasses.replace(FEW_STEPS, eval_every_steps=10, max_eval_steps=2)
    run_dir, _ = fake_run(options)
    assert read == [[[26, 27, 28], [29, 30, 31]]] * 3
    assert [line["step"] for line in evaluation_lines(run_dir)] == [10, 20, 24]


@pytest.mark.no_backend
def test_evaluation_reads_no_more_than_there_is(fake_run, monkeypatch, instance_numbers):
    read = []

    def evaluate(_step, batches):
        read.extend(instance_numbers(batch) for batch in batches)
        return fake_sums()

    monkeypatch.setattr(loop, "evaluation_sums", evaluate)
    fake_run(dataclasses.replace(FEW_STEPS, eval_every_steps=24, max_eval_steps=100))
    assert read == [[26, 27, 28], [29, 30, 31], [32]]


def test_data_set_without_eval_instances_is_told_before_training(fake_run, passes):
    options = dataclasses.replace(FEW_STEPS, eval_every_steps=10)
    with pytest.raises(UserError, match="no eval instance"):
        fake_run(options, passes, at_step=lambda step: pytest.fail(f"step {step}"))


@pytest.mark.no_backend
def test_data_set_without_eval_instances_is_enough_without_evaluations(fake_run, passes):
    run_dir, _ = fake_run(data_set=passes)
    assert evaluation_lines(run_dir) == []


def test_data_set_without_training_instances_is_told(fake_run, tmp_path, write_data_set):
    data_set = write_data_set(tmp_path / "data", [("eval", 0, 3)])
    with pytest.raises(UserError, match="no training instance"):
        fake_run(data_set=data_set)


@pytest.mark.no_backend
@pytest.mark.parametrize("damage", ["missing", "cut off", "flipped byte"])
def test_damaged_shard_is_told_of(fake_run, tmp_path, write_data_set, damage):
    data_set = write_data_set(tmp_path / "data", [("train", 0, 9), ("train", 0, 9)])
    shard = data_set.path_of(data_set.manifest.shards[1])
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "cut off":
        shard.write_bytes(content[:-5])
    else:
        content[40] ^= 1
        shard.write_bytes(content)
    with pytest.raises(UserError) as raised:
        fake_run(data_set=data_set)
    told = "record 1 of " if damage == "flipped byte" else "clozemill verify"
    assert told in str(raised.value)
    assert str(shard) in str(raised.value)


@pytest.mark.no_backend
def test_full_disk_leaves_the_checkpoint_before(fake_run, tmp_path, monkeypatch):
    savez, files = np.savez, []

    def savez_until_full(file, **arrays):
        files.append(file)
        if len(files) == 4:
            file.write(b"PK")
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", savez_until_full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        fake_run()
    assert "step-00000010" in str(raised.value)
    left = [path.name for path in (tmp_path / "run" / CHECKPOINTS_NAME).iterdir()]
    assert left == ["step-00000005"]
    _, steps = fake_run()
    assert len(steps.batches) == 24 - 5


def send_at(step, last, number):
    if step == last:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("last", [1, 10, 13])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_run_that_is_asked_to_end_saves_the_step_that_was_reached(
    fake_run, tmp_path, caplog, number, code, last
):
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as raised, caplog.at_level(logging.INFO, logger="absl"):
        fake_run(at_step=lambda step: send_at(step, last, number))
    assert raised.value.code == code
    assert signal.getsignal(number) is handler
    assert names_of_checkpoints(tmp_path / "run")[-1] == f"step-{last:08d}"
    assert f"stopped by {number.name} at step {last}: the same command" in caplog.messages[-1]
    saved = [message for message in caplog.messages if f"step-{last:08d}" in message]
    assert len(saved) == 1, "saved twice"
    _, steps = fake_run()
    assert len(steps.batches) == 24 - last


def test_sigterm_at_the_last_step_comes_too_late(fake_run):
    run_dir, _ = fake_run(at_step=lambda step: send_at(step, 24, signal.SIGTERM))
    assert names_of_checkpoints(run_dir)[-1] == "step-00000024"


def test_changed_options_are_told_and_followed(fake_run, caplog):
    fake_run()
    options = dataclasses.replace(FEW_STEPS, num_train_steps=25, learning_rate=1e-3)
    with caplog.at_level(logging.WARNING, logger="absl"):
        run_dir, _ = fake_run(options)
    assert sorted(caplog.messages) == [
        "changed: --learning_rate was 0.02, is 0.001",
        "changed: --num_train_steps was 24, is 25",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        fake_run(dataclasses.replace(options, num_train_steps=26))
    assert caplog.messages == ["changed: --num_train_steps was 25, is 26"]
    assert training_lines(run_dir)[-1]["learning_rate"] == pytest.approx(1e-3 / 26)


def test_flags_are_written_where_training_begins(fake_run):
    run_dir, _ = fake_run(flags="--learning_rate=0.02\n")
    assert (run_dir / "flags.txt").read_text() == "--learning_rate=0.02\n"
    with pytest.raises(UserError):
        fake_run(dataclasses.replace(FEW_STEPS, random_seed=7), flags="--random_seed=7\n")
    assert (run_dir / "flags.txt").read_text() == "--learning_rate=0.02\n"


def fail_with(message):
    raise RuntimeError(message)


def test_too_little_memory_is_told_with_what_helps(fake_run):
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1234 bytes."
    with pytest.raises(UserError, match="--gradient_accumulation_steps") as raised:
        fake_run(at_step=lambda _step: fail_with(message))
    for flag in ("--precision=bfloat16", "--recompute_activations"):
        assert flag in str(raised.value)


def test_other_failures_of_a_step_are_none_of_the_users(fake_run):
    with pytest.raises(RuntimeError, match="bad instruction"):
        fake_run(at_step=lambda _step: fail_with("bad instruction"))


def test_loss_scale_is_told_for_float16(fake_run, monkeypatch):
    monkeypatch.setattr(loop, "check_precision", lambda _precision: None)
    options = dataclasses.replace(FEW_STEPS, precision=Precision.FLOAT16)
    run_dir, _ = fake_run(options, told_at={step: {"updates_left_out": 1.0} for step in (9, 10)})
    lines = training_lines(run_dir)
    assert [line["updates_left_out"] for line in lines] == [0, 2, 0, 0]
    assert {line["loss_scale"] for line in lines} == {2.0**15}


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
def test_loss_scale_is_not_told_otherwise(fake_run, precision):
    run_dir, _ = fake_run(dataclasses.replace(FEW_STEPS, precision=precision))
    assert not any(
        {"loss_scale", "updates_left_out"} & line.keys() for line in read_metrics(run_dir)
    )


def test_utilization_is_told_where_the_peak_is_known(fake_run, monkeypatch):
    monkeypatch.setattr(loop, "device_names", lambda: ["NVIDIA H100 80GB HBM3"])
    run_dir, _ = fake_run()
    for line in training_lines(run_dir):
        expected = line["model_flops_per_second"] / 989e12
        assert line["model_flops_utilization"] == pytest.approx(expected)
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["devices"] == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.no_backend
def test_missing_matplotlib_is_told_at_the_end(fake_run, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, _ = fake_run()
    assert "pip install 'clozemill[plot]'" in caplog.messages[-1]
    assert not (run_dir / "loss.png").exists()


def test_new_run_starts_from_the_pretrained_weights(
    fake_run, tmp_path, shallow_config, write_run, caplog
):
    write_run(tmp_path / "first", shallow_config, step=3)
    pretrained = read_pretrained(tmp_path / "first")
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, _ = fake_run(pretrained=pretrained)
    weights = read_weights(list_checkpoints(run_dir)[0])
    for name, values in pretrained.weights.items():
        np.testing.assert_array_equal(weights[name], values)
    source = f"step-00000003 of {tmp_path / 'first'}"
    assert f"loaded {len(weights)} variables from {source}" in caplog.messages
    fake_run(dataclasses.replace(FEW_STEPS, num_train_steps=25))
    states = [read_state(checkpoint) for checkpoint in list_checkpoints(run_dir)]
    assert states[-1].step == 25
    assert [state.started_from for state in states] == [source] * len(states)


def test_what_is_not_pretrained_starts_anew_and_is_told(
    fake_run, tmp_path, shallow_config, write_run, caplog
):
    write_run(tmp_path / "first", shallow_config)
    whole = read_pretrained(tmp_path / "first")
    head = "cls/seq_relationship/output_weights"
    weights = {name: values for name, values in whole.weights.items() if name != head}
    pretrained = dataclasses.replace(whole, weights=weights, ignored=["classifier/bias"])
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, _ = fake_run(pretrained=pretrained)
    assert f"1 start from random values: {head}" in caplog.messages
    assert "not used: classifier/bias" in caplog.messages
    values = read_weights(list_checkpoints(run_dir)[0])[head]
    assert not np.array_equal(values, whole.weights[head])


def test_run_that_goes_on_keeps_its_own_weights(fake_run, tmp_path, shallow_config, write_run):
    run_dir, _ = fake_run()
    before = read_weights(list_checkpoints(run_dir)[-1])
    write_run(tmp_path / "first", shallow_config)
    options = dataclasses.replace(FEW_STEPS, num_train_steps=25)
    fake_run(options, pretrained=read_pretrained(tmp_path / "first"))
    after = read_weights(list_checkpoints(run_dir)[-1])
    assert list_checkpoints(run_dir)[-1].name == "step-00000025"
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    assert read_state(list_checkpoints(run_dir)[-1]).started_from is None


# Options.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, 0)
            for name in (
                "train_batch_size",
                "gradient_accumulation_steps",
                "num_train_steps",
                "save_checkpoints_steps",
                "keep_checkpoints",
                "log_every_steps",
                "eval_batch_size",
                "max_eval_steps",
            )
        ),
        ("num_warmup_steps", -1),
        ("num_warmup_steps", 301),
        ("random_seed", -1),
        ("learning_rate", -1e-4),
        ("weight_decay_rate", -0.1),
        ("eval_every_steps", -1),
        ("gradient_accumulation_steps", 3),
    ],
)
def test_impossible_option_is_refused_by_its_flag(name, value):
    with pytest.raises(UserError, match=f"--{name}={value}"):
        dataclasses.replace(OPTIONS, **{name: value})


@pytest.mark.parametrize("num_warmup_steps", [0, 300])
def test_warm_up_may_be_none_or_all(num_warmup_steps):
    options = dataclasses.replace(OPTIONS, num_warmup_steps=num_warmup_steps)
    assert options.num_warmup_steps == num_warmup_steps


def test_options_reach_what_updates(shallow_config):
    default = new_learner(shallow_config, OPTIONS)
    assert type(default.optimizer) is AdamW
    assert default.optimizer.bias_correction
    assert default.optimizer.weight_decay_rate == 0.01
    assert (default.seed, default.accumulation_steps, default.loss_scale) == (12345, 1, None)
    other = new_learner(
        shallow_config,
        dataclasses.replace(
            OPTIONS,
            optimizer=OptimizerName.LAMB,
            adam_bias_correction=False,
            weight_decay_rate=0.1,
            random_seed=7,
            gradient_accumulation_steps=2,
            precision=Precision.FLOAT16,
        ),
    )
    assert type(other.optimizer) is Lamb
    assert not other.optimizer.bias_correction
    assert other.optimizer.weight_decay_rate == 0.1
    assert (other.seed, other.accumulation_steps) == (7, 2)
    assert float(other.loss_scale.scale) == 2.0**15
    first, second = (
        keras.ops.convert_to_numpy(learner.model.named_weights()["bert/pooler/dense/kernel"])
        for learner in (default, other)
    )
    assert not np.array_equal(first, second)


# What the processes have come to in the meantime.


def test_process_killed_while_it_saved_leaves_the_checkpoint_before(interruptions):
    _, (killed, *_) = interruptions
    assert killed.returncode == -signal.SIGKILL, killed.log
    assert killed.checkpoints == ["step-00000020", "step-00000040.tmp"]


def test_process_killed_behind_a_line_of_metrics_has_gone_on_from_a_whole_checkpoint(interruptions):
    _, (_, killed, *_) = interruptions
    assert killed.returncode == -signal.SIGKILL, killed.log
    assert re.search("resuming from .*/step-00000020\n", killed.log)
    assert killed.checkpoints == ["step-00000020", "step-00000040", "step-00000060"]


def test_terminated_process_saves_and_tells_how_to_go_on(interruptions):
    _, (_, _, terminated, last) = interruptions
    assert terminated.returncode == 143, terminated.log
    told = re.search(
        r"stopped by SIGTERM at step (\d+): the same command resumes from there\n$", terminated.log
    )
    assert int(told[1]) == 105
    assert terminated.checkpoints[-1] == "step-00000105"
    assert re.search("resuming from .*/step-00000105\n", last.log)


def test_interrupted_run_ends_as_if_it_had_not_been(interruptions, straight_run):
    run_dir, (*_, last) = interruptions
    assert last.returncode == 0, last.log
    assert last.checkpoints == names_of_checkpoints(straight_run)
    assert_same_run(run_dir, straight_run)


def test_run_goes_on_under_the_other_backend(future_run_on_the_other_backend, straight_run):
    if future_run_on_the_other_backend is None:
        pytest.skip(f"needs {OTHER_BACKEND}")
    run_dir, ended = future_run_on_the_other_backend.result()
    assert ended.returncode == 0, ended.log
    assert re.search("resuming from .*/step-00000280\n", ended.log)
    first, second = (read_weights(list_checkpoints(each)[-1]) for each in (run_dir, straight_run))
    assert any(np.any(first[name] != second[name]) for name in second)
    for name, values in second.items():
        np.testing.assert_allclose(first[name], values, rtol=0, atol=1e-5, err_msg=name)
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["backend"] == OTHER_BACKEND
