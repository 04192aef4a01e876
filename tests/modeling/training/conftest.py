"""Fixtures that run the loop with steps that compute nothing, and that read a run's metrics."""

import contextlib
import itertools
import json

import pytest

from modeling import batches
from modeling.batches import readable, training_batches
from modeling.job.termination import noticing_termination
from modeling.losses import SUMS
from modeling.step.backend import Replicas
from modeling.training import loop
from modeling.training.loop import train
from modeling.training.metrics import METRICS_NAME
from modeling.training_options import TrainingOptions

FEW_STEPS = TrainingOptions(
    train_batch_size=4,
    learning_rate=2e-2,
    num_train_steps=24,
    num_warmup_steps=0,
    save_checkpoints_steps=5,
    keep_checkpoints=3,
    log_every_steps=7,
    eval_every_steps=0,
    eval_batch_size=3,
    max_eval_steps=2,
)


@pytest.fixture(scope="session")
def few_steps():
    """Options of a short run."""
    return FEW_STEPS


def _lines(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_NAME).read_text().splitlines()]


@pytest.fixture(scope="session")
def read_lines():
    """A function that reads all lines of a run's metrics, and fails if one was cut short."""
    return _lines


@pytest.fixture(scope="session")
def training_lines():
    """A function that reads a run's lines about training."""
    return lambda run_dir: [line for line in _lines(run_dir) if "learning_rate" in line]


@pytest.fixture(scope="session")
def evaluation_lines():
    """A function that reads a run's lines about evaluations."""
    return lambda run_dir: [line for line in _lines(run_dir) if "eval_masked_lm_loss" in line]


@pytest.fixture(scope="session")
def first_batches():
    """A function that reads the first batches of a run with `FEW_STEPS`."""

    def read(data_set, count):
        batches = training_batches(data_set, FEW_STEPS.train_batch_size, FEW_STEPS.random_seed)
        with contextlib.closing(readable(batches, data_set)) as batches:
            return list(itertools.islice(batches, count))

    return read


class FakeStep:
    """Returns the same results at each step, except for those given for a step by its number.

    Args:
      learner: counts the updates.
      results_at: other results, by step.
      at_step: is called with the number of each step.
    """

    attention_kernel = "none"

    def __init__(self, learner, results_at=None, at_step=None):
        self.learner = learner
        self._iterations = learner.optimizer.iterations
        self._results_at = results_at or {}
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
            **self._results_at.get(step, {}),
        }


@pytest.fixture
def fake_run(tmp_path, data_set, shallow_config, monkeypatch):
    """A function that trains with fake steps and returns the run and the last start's steps.

    It draws no picture unless it is told to, because that takes longest.
    """
    opened, steps = [], []
    draw_losses = loop.draw_losses

    def run(
        options=FEW_STEPS,
        data_set=data_set,
        origin=None,
        flags="",
        draws=False,
        track=None,
        run_dir=tmp_path / "run",
        **kwargs,
    ):
        def make_step(learner, _replicas):
            steps.append(FakeStep(learner, **kwargs))
            return steps[-1]

        monkeypatch.setattr(loop, "TrainStep", make_step)
        monkeypatch.setattr(loop, "draw_losses", draw_losses if draws else lambda *_: None)
        replicas = Replicas()
        arguments = (run_dir, shallow_config, options, origin, flags, replicas)
        with noticing_termination() as termination:
            termination.ask(replicas.group)
            train(data_set, *arguments, track)
        return run_dir, steps[-1]

    def open_batches(*arguments):
        opened.append(readable(*arguments))
        return opened[-1]

    monkeypatch.setattr(loop, "readable", open_batches)
    yield run
    # Otherwise the garbage collector might close them all at once, which takes long.
    for iterator in opened:
        iterator.close()


@pytest.fixture
def passes(tmp_path, write_data_set, monkeypatch):
    """A data set of two passes, each of three groups of shards."""
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    shards = [("train", pass_index, 5) for pass_index in (0, 1) for _ in range(6)]
    return write_data_set(tmp_path / "data", shards)
