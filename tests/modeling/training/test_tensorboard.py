import os
import subprocess
import sys

import pytest
import tensorflow as tf

from modeling.training.tensorboard import SUMMARIES_NAME, SummaryWriter
from pipeline.records import read_frames, record_of

pytestmark = pytest.mark.no_backend

TRAIN_TAGS = ("train/masked_lm_loss", "train/learning_rate")


def train_line(step):
    return {"step": step, "masked_lm_loss": 8.0 / step, "learning_rate": step / 1024}


def eval_line(step):
    return {"step": step, "eval_masked_lm_loss": 9.0 / step}


def event_files(run_dir):
    return list((run_dir / SUMMARIES_NAME).iterdir())


def read_events(run_dir):
    (path,) = event_files(run_dir)
    with path.open("rb") as file:
        return [tf.compat.v1.Event.FromString(record_of(frame)) for frame in read_frames(file)]


def read_scalars(run_dir):
    """Lists of (step, value), by tag."""
    scalars = {}
    for event in read_events(run_dir):
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars


def expected_scalars(train_steps, eval_steps=()):
    scalars = {
        "train/masked_lm_loss": [(step, pytest.approx(8.0 / step)) for step in train_steps],
        "train/learning_rate": [(step, step / 1024) for step in train_steps],
        "eval/masked_lm_loss": [(step, pytest.approx(9.0 / step)) for step in eval_steps],
    }
    return {tag: points for tag, points in scalars.items() if points}


def test_line_gives_a_scalar_for_each_figure(tmp_path):
    writer = SummaryWriter(tmp_path, [])
    for step in (1, 2, 4):
        writer.write(train_line(step))
    assert read_scalars(tmp_path) == expected_scalars([1, 2, 4])


def test_evaluations_have_their_own_tags(tmp_path):
    writer = SummaryWriter(tmp_path, [])
    for line in (train_line(2), eval_line(2), train_line(4), eval_line(4)):
        writer.write(line)
    assert read_scalars(tmp_path) == expected_scalars([2, 4], [2, 4])


def test_resumed_run_has_each_step_once(tmp_path):
    writer = SummaryWriter(tmp_path, [])
    for step in (2, 4, 6, 8):
        writer.write(train_line(step))
    writer.write(eval_line(8))
    writer = SummaryWriter(tmp_path, [train_line(2), train_line(4), eval_line(4)])
    assert read_scalars(tmp_path) == expected_scalars([2, 4], [4])
    writer.write(train_line(6))
    assert read_scalars(tmp_path) == expected_scalars([2, 4, 6], [4])


def test_new_file_comes_after_the_removed_one(tmp_path):
    names = []
    for _ in range(3):
        SummaryWriter(tmp_path, [])
        (path,) = event_files(tmp_path)
        names.append(path.name)
    assert names == sorted(set(names))


def test_other_files_stay(tmp_path):
    (tmp_path / SUMMARIES_NAME).mkdir()
    (tmp_path / SUMMARIES_NAME / "notes.txt").touch()
    SummaryWriter(tmp_path, [])
    assert {path.name for path in event_files(tmp_path)} > {"notes.txt"}


def test_file_without_lines_is_an_event_file(tmp_path):
    SummaryWriter(tmp_path, [])
    version, start = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == tf.compat.v1.SessionLog.START
    assert read_scalars(tmp_path) == {}


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_killed_process_needs_no_package_or_device_and_loses_nothing(tmp_path, backend):
    pytest.importorskip(backend)
    code = f"""
import os, sys, pathlib
sys.modules["tensorboard"] = None
import keras, tensorflow as tf
assert keras.backend.backend() == {backend!r}
from modeling.training.tensorboard import SummaryWriter
SummaryWriter(pathlib.Path({str(tmp_path)!r}), [{train_line(1)}]).write({train_line(2)})
from tensorflow.python.eager import context
assert not context.context()._initialized, "TensorFlow has taken its devices"
os._exit(9)
"""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    killed = subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert killed.returncode == 9
    assert read_scalars(tmp_path) == expected_scalars([1, 2])


def test_tensorflow_reads_the_file(tmp_path):
    SummaryWriter(tmp_path, [train_line(1), train_line(2)])
    (path,) = event_files(tmp_path)
    events = list(tf.compat.v1.train.summary_iterator(str(path)))
    assert [event.step for event in events if event.summary.value] == [1, 2]


def test_tensorboard_reads_the_file(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = SummaryWriter(tmp_path, [train_line(2), eval_line(2)])
    writer.write(train_line(4))
    accumulator = accumulators.EventAccumulator(str(tmp_path / SUMMARIES_NAME)).Reload()
    read = {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    assert read == expected_scalars([2, 4], [2])


def test_running_tensorboard_follows_a_resumed_run(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_accumulator"
    )
    SummaryWriter(tmp_path, [train_line(step) for step in (2, 4, 6, 8)])
    accumulator = accumulators.EventAccumulator(str(tmp_path / SUMMARIES_NAME)).Reload()
    writer = SummaryWriter(tmp_path, [train_line(2), train_line(4)])
    writer.write(train_line(6))
    accumulator.Reload()
    for tag in TRAIN_TAGS:
        assert [point.step for point in accumulator.Tensors(tag)] == [2, 4, 6]
