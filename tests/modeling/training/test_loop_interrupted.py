"""Runs with real steps: one without an interruption, and others that are killed and resume."""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    list_checkpoints,
    read_state,
    read_weights,
)
from modeling.training.loop import train
from modeling.training.metrics import METRICS_NAME
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError
from pipeline.records import read_frames, record_of

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
    masked_lm_prob="0.4:0.2",
)


def without_speed(lines):
    return [
        {name: value for name, value in line.items() if name not in SPEED_FIELDS} for line in lines
    ]


def names_of_checkpoints(run_dir):
    return [path.name for path in list_checkpoints(run_dir)]


@pytest.fixture
def assert_same_run(read_lines):
    """A function that checks that two runs have the same checkpoints and metrics but for speed."""

    def check(run_dir, other_dir):
        for first, second in zip(
            list_checkpoints(run_dir), list_checkpoints(other_dir), strict=True
        ):
            assert_same_checkpoint(first, second)
        assert without_speed(read_lines(run_dir)) == without_speed(read_lines(other_dir))

    return check


def assert_same_checkpoint(first, second):
    assert first.name == second.name
    states = [dataclasses.replace(read_state(each), metrics=None) for each in (first, second)]
    assert states[0] == states[1]
    assert states[0].sha256 == states[1].sha256
    for name in ("weights.npz", "optimizer.npz"):
        with np.load(first / name) as values, np.load(second / name) as others:
            assert set(values) == set(others)
            for variable in values:
                np.testing.assert_array_equal(values[variable], others[variable], variable)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory, write_unmasked):
    """Few instances, in packed rows, whose masks are drawn while training."""
    shards = [("train", 0, 4), ("train", 0, 3), ("train", 1, 4), ("train", 1, 3), ("eval", 0, 3)]
    return write_unmasked(tmp_path_factory.mktemp("data"), shards, packed_row_length=32)


# Processes that are really killed. They run while this process runs its own tests.

RUN = """
import os, sys
output = os.open(log, os.O_WRONLY | os.O_CREAT)
for number in (1, 2):
    os.dup2(output, number)
exec(prelude)
import launch.__main__
sys.argv = ["clozemill", *arguments]
launch.__main__.main()
"""

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
# The process ends at once, because steps are fast.
ENDED_AFTER_A_LINE_OF_METRICS = """
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
    """One start of a run: how its process ended."""

    returncode: int
    log: str
    checkpoints: list[str]
    """The content of the folder of checkpoints when it ended."""


class Pretrain:
    """Starts `clozemill pretrain` in new processes, all with the same flags."""

    def __init__(self, directory, data_dir, config):
        self._directory = directory
        self._data_dir = data_dir
        self._processes = []
        self._is_closed = False
        (directory / "config.json").write_text(config.to_json())

    def start(self, run_dir, prelude="", backend=BACKEND):
        values = dataclasses.asdict(OPTIONS).items()
        arguments = [
            "pretrain",
            f"--backend={backend}",
            f"--data_dir={self._data_dir}",
            f"--output_dir={run_dir}",
            f"--bert_config_file={self._directory / 'config.json'}",
            *(f"--{name}={value}" for name, value in values if value is not None),
        ]
        log = self._directory / f"{len(self._processes)}.log"
        method = "forkserver" if backend == BACKEND else "spawn"
        variables = {"log": log, "prelude": prelude, "arguments": arguments}
        process = multiprocessing.get_context(method).Process(target=exec, args=(RUN, variables))
        process.start()
        process.log = log
        process.run_dir = run_dir
        self._processes.append(process)
        if self._is_closed:
            process.kill()
        return process

    def wait(self, process):
        process.join(timeout=200)
        checkpoints = sorted(path.name for path in (process.run_dir / CHECKPOINTS_NAME).iterdir())
        return Start(process.exitcode, process.log.read_text(), checkpoints)

    def close(self):
        self._is_closed = True
        for process in self._processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory, data_set, shallow_config, preload):
    preload("launch.pretrain", "modeling.training.loop")
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
    """The future of a run that is ended again and again."""

    def interrupt(run_dir):
        starts = [pretrain.wait(pretrain.start(run_dir, KILLED_WHILE_SAVING))]
        for step, name in ((70, "SIGKILL"), (105, "SIGTERM")):
            prelude = ENDED_AFTER_A_LINE_OF_METRICS.format(step=step, signal=name)
            starts.append(pretrain.wait(pretrain.start(run_dir, prelude)))
        return run_dir, [*starts, pretrain.wait(pretrain.start(run_dir))]

    return background.submit(interrupt, tmp_path_factory.mktemp("runs") / "interrupted")


@pytest.fixture(scope="module")
def interruptions(future_interruptions):
    """A run that was ended again and again, and all its starts."""
    return future_interruptions.result()


@pytest.fixture(scope="module")
def future_run_on_the_other_backend(background, pretrain, straight_run, tmp_path_factory):
    """The future of the straight run, resumed from its last checkpoint but one."""
    run_dir = tmp_path_factory.mktemp("runs") / OTHER_BACKEND
    shutil.copytree(straight_run, run_dir)
    shutil.rmtree(list_checkpoints(run_dir)[-1])

    def resume():
        return run_dir, pretrain.wait(pretrain.start(run_dir, backend=OTHER_BACKEND))

    if importlib.util.find_spec(OTHER_BACKEND) is None:
        return None
    return background.submit(resume)


# Runs in this process.


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory, data_set, shallow_config):
    """A run without an interruption: many epochs of few instances."""
    run_dir = tmp_path_factory.mktemp("straight")
    train(data_set, run_dir, shallow_config, OPTIONS)
    return run_dir


@pytest.fixture
def copy_of_run(straight_run, tmp_path):
    """A copy of the straight run that may be changed."""
    return shutil.copytree(straight_run, tmp_path / "copy")


# The first test starts the background processes, because they take long.
@pytest.mark.usefixtures("future_interruptions", "future_run_on_the_other_backend")
def test_the_newest_checkpoints_are_kept(straight_run):
    assert names_of_checkpoints(straight_run) == ["step-00000260", "step-00000280", "step-00000300"]


def test_metrics_are_written_at_their_steps_and_at_the_end(straight_run, training_lines):
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
            "masked_lm_prob",
            "gradient_norm",
        }
        assert line["sequences_per_second"] > 0
        assert 8 <= line["tokens_per_second"] / line["sequences_per_second"] <= 16
        assert 0 <= line["input_wait"] <= 1


def test_metrics_report_the_rate_of_the_last_update(straight_run, training_lines):
    rates = [line["learning_rate"] for line in training_lines(straight_run)]
    expected = [2e-2 * (1 - (step - 1) / 300) for step in (*range(35, 300, 35), 300)]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_few_instances_are_learned(straight_run, training_lines):
    first, *_, last = training_lines(straight_run)
    assert first["masked_lm_loss"] < 1.2 * np.log(50)
    assert last["masked_lm_loss"] < 0.9 * first["masked_lm_loss"]
    assert last["masked_lm_accuracy"] > first["masked_lm_accuracy"]
    assert last["next_sentence_loss"] < 0.7 * first["next_sentence_loss"]


def test_metrics_report_the_share_of_masks_that_are_drawn(straight_run, training_lines):
    lines = training_lines(straight_run)
    shares = [0.4 - 0.2 * (line["step"] - 1) / 299 for line in lines]
    assert [line["masked_lm_prob"] for line in lines] == pytest.approx(shares)


def test_evaluations_are_written_at_their_steps_and_at_the_end(
    straight_run, training_lines, evaluation_lines
):
    lines = evaluation_lines(straight_run)
    assert [line["step"] for line in lines] == [110, 220, 300]
    assert all(0 <= line["eval_next_sentence_accuracy"] <= 1 for line in lines)
    # What was learnt by heart does not help with other instances.
    assert lines[-1]["eval_masked_lm_loss"] > training_lines(straight_run)[-1]["masked_lm_loss"]


def test_environment_of_the_run_is_written(straight_run):
    environment = json.loads((straight_run / "environment.json").read_text())
    assert environment["backend"] == BACKEND
    manifest = (straight_run / "manifest.json").read_bytes()
    assert environment["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()


def test_losses_are_drawn_at_the_end(straight_run):
    pytest.importorskip("matplotlib")
    assert (straight_run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_gets_all_lines(straight_run, read_lines):
    (path,) = (straight_run / "tensorboard").iterdir()
    with path.open("rb") as file:
        events = [tf.compat.v1.Event.FromString(record_of(frame)) for frame in read_frames(file)]
    steps = [event.step for event in events if event.summary.value]
    assert steps == [line["step"] for line in read_lines(straight_run)]


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


def test_what_a_run_killed_after_its_last_step_has_left_is_done(
    copy_of_run, data_set, shallow_config
):
    pytest.importorskip("matplotlib")
    picture = (copy_of_run / "loss.png").read_bytes()
    (copy_of_run / "loss.png").write_bytes(b"of an earlier step")
    os.utime(copy_of_run / "loss.png", (1, 1))
    *_, newest = list_checkpoints(copy_of_run)
    train(data_set, copy_of_run, shallow_config, dataclasses.replace(OPTIONS, keep_checkpoints=1))
    assert (copy_of_run / "loss.png").read_bytes() == picture
    assert list_checkpoints(copy_of_run) == [newest]


def test_run_resumes_from_the_newest_undamaged_checkpoint(
    assert_same_run, straight_run, copy_of_run, data_set, shallow_config, caplog
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


def test_run_whose_checkpoints_are_all_damaged_is_refused(copy_of_run, data_set, shallow_config):
    checkpoints = list_checkpoints(copy_of_run)
    for checkpoint in checkpoints:
        (checkpoint / "state.json").write_text("")
    with pytest.raises(UserError, match=r"damaged.*state\.json") as raised:
        train(data_set, copy_of_run, shallow_config, OPTIONS)
    assert str(checkpoints[-1]) in str(raised.value)
    assert list_checkpoints(copy_of_run) == checkpoints


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"random_seed": 7}, "--random_seed=12345"), ({"optimizer": "lamb"}, "--optimizer=adamw")],
)
def test_run_does_not_resume_with_another_seed_or_optimizer(
    straight_run, data_set, shallow_config, changes, named
):
    options = dataclasses.replace(OPTIONS, num_train_steps=400, **changes)
    with pytest.raises(UserError, match=named) as raised:
        train(data_set, straight_run, shallow_config, options)
    assert str(straight_run) in str(raised.value)


def test_a_run_that_resumes_with_other_shares_of_masks_says_so(
    copy_of_run, data_set, shallow_config, training_lines, caplog
):
    shutil.rmtree(list_checkpoints(copy_of_run)[-1])
    options = dataclasses.replace(OPTIONS, masked_lm_prob="0.3")
    with caplog.at_level(logging.INFO, logger="absl"):
        train(data_set, copy_of_run, shallow_config, options)
    assert "changed: --masked_lm_prob was 0.4:0.2, is 0.3" in caplog.messages
    assert training_lines(copy_of_run)[-1]["masked_lm_prob"] == 0.3


def test_diverged_training_stops_and_keeps_the_good_checkpoint(
    tmp_path, data_set, shallow_config, few_steps
):
    # The first update has the rate 0; the second one ruins the weights.
    options = dataclasses.replace(
        few_steps, learning_rate=1e30, num_warmup_steps=2, save_checkpoints_steps=2
    )
    with pytest.raises(UserError, match=r"at step 3, .* is step-00000002: lower --learning_rate"):
        train(data_set, tmp_path, shallow_config, options)
    (checkpoint,) = list_checkpoints(tmp_path)
    assert all(
        np.isfinite(values).all() for values in read_weights(checkpoint, shallow_config).values()
    )


# Runs whose steps compute nothing.


def send_at(step, last, number):
    if step == last:
        os.kill(os.getpid(), number)


@pytest.mark.no_backend
@pytest.mark.parametrize("last", [1, 10, 13])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_run_that_is_asked_to_stop_saves_its_last_step(
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


@pytest.mark.no_backend
def test_sigterm_at_the_last_step_comes_too_late(fake_run):
    run_dir, _ = fake_run(at_step=lambda step: send_at(step, 24, signal.SIGTERM))
    assert names_of_checkpoints(run_dir)[-1] == "step-00000024"


# The results of the background processes.


def test_process_killed_while_saving_leaves_the_previous_checkpoint(interruptions):
    _, (killed, *_) = interruptions
    assert killed.returncode == -signal.SIGKILL, killed.log
    complete, unfinished = killed.checkpoints
    assert complete == "step-00000020"
    assert re.fullmatch(r"step-00000040\.[0-9a-f]{32}\.tmp", unfinished)


def test_process_killed_after_a_line_of_metrics_had_resumed_from_a_complete_checkpoint(
    interruptions,
):
    _, (_, killed, *_) = interruptions
    assert killed.returncode == -signal.SIGKILL, killed.log
    assert re.search("resuming from .*/step-00000020\n", killed.log)
    assert killed.checkpoints == ["step-00000020", "step-00000040", "step-00000060"]


def test_terminated_process_saves_and_says_how_to_resume(interruptions):
    _, (_, _, terminated, last) = interruptions
    assert terminated.returncode == 143, terminated.log
    stopped = re.search(
        r"stopped by SIGTERM at step (\d+): the same command resumes from there\n$", terminated.log
    )
    assert int(stopped[1]) == 105
    assert terminated.checkpoints[-1] == "step-00000105"
    assert re.search("resuming from .*/step-00000105\n", last.log)


def test_interrupted_run_ends_like_an_uninterrupted_one(
    assert_same_run, interruptions, straight_run
):
    run_dir, (*_, last) = interruptions
    assert last.returncode == 0, last.log
    assert last.checkpoints == names_of_checkpoints(straight_run)
    assert_same_run(run_dir, straight_run)


def test_run_resumes_on_the_other_backend(
    future_run_on_the_other_backend, straight_run, shallow_config
):
    if future_run_on_the_other_backend is None:
        pytest.skip(f"needs {OTHER_BACKEND}")
    run_dir, ended = future_run_on_the_other_backend.result()
    assert ended.returncode == 0, ended.log
    assert re.search("resuming from .*/step-00000280\n", ended.log)
    first, second = (
        read_weights(list_checkpoints(each)[-1], shallow_config) for each in (run_dir, straight_run)
    )
    assert any(np.any(first[name] != second[name]) for name in second)
    for name, values in second.items():
        np.testing.assert_allclose(first[name], values, rtol=0, atol=5e-5, err_msg=name)
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["backend"] == OTHER_BACKEND
