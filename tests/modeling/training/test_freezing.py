"""Runs that train the rows of new words alone, until a step; they end and resume around it."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.extension import extended, find_new_words
from modeling.checkpoints.pretrained import Pretrained, read_pretrained
from modeling.checkpoints.run_checkpoints import Extension, read_state
from modeling.checkpoints.tokenizer_settings import TokenizerSettings, read_tokens
from modeling.config import TABLES_OF_WORDS, weight_shapes
from modeling.step.backend import TrainStep, check_precision
from modeling.training import loop
from modeling.training.dry_run import dry_run
from modeling.training.loop import train
from modeling.training.resume import read_branch
from modeling.training_options import NewEmbeddings, OptimizerName, Precision, TrainingOptions
from pipeline.errors import UserError

NUM_OLD, NUM_FROZEN = 45, 3
OPTIONS = TrainingOptions(
    train_batch_size=4,
    learning_rate=2e-2,
    num_train_steps=5,
    num_warmup_steps=0,
    freeze_old_steps=NUM_FROZEN,
    save_checkpoints_steps=1,
    keep_checkpoints=9,
)
OTHER_OPTIONS = [
    {"optimizer": OptimizerName.LAMB, "gradient_accumulation_steps": 2},
    {"precision": Precision.FLOAT16},
    {"precision": Precision.BFLOAT16},
]


@pytest.fixture(scope="module")
def origin(data_set, shallow_config):
    """A BERT with new words in the data: one in place of a token, five behind the others."""
    tokens = read_tokens(data_set.vocabulary)[:NUM_OLD]
    tokens[7] = "[unused1]"
    config = dataclasses.replace(shallow_config, vocab_size=NUM_OLD)
    rng = np.random.default_rng(0)
    weights = {
        name: (name.endswith("gamma") + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in weight_shapes(config).items()
    }
    old = TokenizerSettings(Path("old.txt"), tokens, True, None)
    old_bert = Pretrained("an old BERT", data_set.directory, config, weights, [], old)
    new_words = find_new_words(old_bert, data_set)
    return extended(old_bert, data_set, new_words, shallow_config, NewEmbeddings.RANDOM)


@pytest.fixture
def train_until(monkeypatch, data_set, shallow_config):
    """A function that trains, but does not come to the end of a step."""

    def run(run_dir, origin, options, last=None):
        class Step(TrainStep):
            def __call__(self, batch):
                if int(self._learner.optimizer.iterations) + 1 == last:
                    raise KeyboardInterrupt
                return super().__call__(batch)

        monkeypatch.setattr(loop, "TrainStep", Step)
        monkeypatch.setattr(loop, "draw_losses", lambda *_: None)
        train(data_set, run_dir, shallow_config, options, origin)

    return run


def arrays_of(run_dir, step):
    """All arrays of a checkpoint: the weights and the moments."""
    arrays = {}
    for name in ("weights.npz", "optimizer.npz"):
        with np.load(run_dir / "checkpoints" / f"step-{step:08d}" / name) as archive:
            arrays |= archive
    return arrays


def assert_same_arrays(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], name)


def assert_frozen(run_dir, origin):
    """Checks that new rows alone were trained until `NUM_FROZEN`, and everything afterwards."""
    is_new = origin.extension.is_new(origin.config.vocab_size)
    assert np.flatnonzero(is_new).tolist() == [7, *range(NUM_OLD, 50)]
    last = dict(origin.weights)
    for step in range(1, OPTIONS.num_train_steps + 1):
        arrays, before = arrays_of(run_dir, step), last
        last = {name: arrays[name] for name in origin.weights}
        for name, values in last.items():
            rows = is_new if name in TABLES_OF_WORDS else np.zeros(len(values), bool)
            old = values[~rows], arrays[f"{name}/adam_m"][~rows], arrays[f"{name}/adam_v"][~rows]
            if step <= NUM_FROZEN:
                np.testing.assert_array_equal(old[0], before[name][~rows], name)
                assert not old[1].any(), name
                assert not old[2].any(), name
            elif not name.endswith("key/bias"):  # attention does not depend on it
                assert np.abs(old[0] - before[name][~rows]).max() > 0, name
            if rows.any():
                assert (values[rows] != before[name][rows]).any(), name


def test_a_resumed_run_freezes_the_same_rows(fake_run, origin):
    def interrupt(step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_run(OPTIONS, origin=origin, at_step=interrupt)
    for options in (OPTIONS, dataclasses.replace(OPTIONS, num_train_steps=6)):
        run_dir, steps = fake_run(options)
        freezing = steps.learner.optimizer.freezing
        assert freezing.steps == NUM_FROZEN
        assert np.flatnonzero(freezing.is_new).tolist() == [7, *range(NUM_OLD, 50)]
    with pytest.raises(UserError, match="begun with --freeze_old_steps=3: resume with that"):
        fake_run(dataclasses.replace(options, freeze_old_steps=0))
    assert read_state(run_dir / "checkpoints" / "step-00000006").extension == origin.extension


@pytest.mark.slow
def test_a_run_resumes_while_old_rows_are_frozen(train_until, origin, tmp_path):
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    train_until(straight, origin, OPTIONS)
    assert_frozen(straight, origin)
    with pytest.raises(KeyboardInterrupt):
        train_until(interrupted, origin, OPTIONS, NUM_FROZEN)
    # The BERT that it started from is no longer needed.
    train_until(interrupted, None, OPTIONS)
    for step in range(1, OPTIONS.num_train_steps + 1):
        assert_same_arrays(arrays_of(interrupted, step), arrays_of(straight, step))
    state = read_state(interrupted / "checkpoints" / "step-00000005")
    expected = Extension([(7, 8), (NUM_OLD, 50)], 6, 1, NewEmbeddings.RANDOM)
    assert state.extension == origin.extension == expected
    assert state.started_from == "an old BERT"
    # Whatever starts from the run has no new words itself.
    assert read_pretrained(straight).extension is None


@pytest.mark.slow
@pytest.mark.parametrize("others", OTHER_OPTIONS, ids=str)
def test_a_run_resumes_around_the_last_frozen_step(train_until, origin, tmp_path, others):
    options = dataclasses.replace(OPTIONS, **others)
    try:
        check_precision(options.precision)
    except UserError as error:  # float16 needs a GPU on JAX
        pytest.skip(str(error))
    straight, interrupted = tmp_path / "straight", tmp_path / "interrupted"
    train_until(straight, origin, options)
    assert_frozen(straight, origin)
    for last in (NUM_FROZEN, NUM_FROZEN + 1):
        with pytest.raises(KeyboardInterrupt):
            train_until(interrupted, origin, options, last)
    train_until(interrupted, None, options)
    for step in range(1, OPTIONS.num_train_steps + 1):
        assert_same_arrays(arrays_of(interrupted, step), arrays_of(straight, step))


@pytest.mark.slow
def test_a_branch_freezes_the_old_rows_as_the_run_does(train_until, origin, tmp_path):
    options = dataclasses.replace(OPTIONS, keep_every_steps=1)
    train_until(tmp_path / "straight", origin, options)
    branch = read_branch(tmp_path / "straight" / "checkpoints" / "step-00000002")
    train_until(tmp_path / "branch", branch, options)
    for step in range(3, OPTIONS.num_train_steps + 1):
        first, second = (arrays_of(tmp_path / name, step) for name in ("straight", "branch"))
        assert_same_arrays(first, second)


@pytest.mark.parametrize("lacks_head", [True, False])
def test_a_frozen_head_of_random_weights_is_warned_of(fake_run, origin, caplog, lacks_head):
    lost = "cls/predictions/" if lacks_head else "bert/pooler/"
    weights = {name: table for name, table in origin.weights.items() if not name.startswith(lost)}
    fake_run(OPTIONS, origin=dataclasses.replace(origin, weights=weights))
    warning = "the masked LM's head stays random until step 3, so new rows learn little before"
    assert (warning in caplog.text) == lacks_head


def test_frozen_rows_need_new_rows(train_until, origin, tmp_path, data_set, shallow_config):
    without = dataclasses.replace(origin, extension=None)
    for start in (None, without, dataclasses.replace(origin, extension=Extension(old_positions=8))):
        with pytest.raises(UserError, match=r"--freeze_old_steps=3 .* there are none"):
            train_until(tmp_path / "run", start, OPTIONS)
        with pytest.raises(UserError, match="there are none"):
            list(dry_run(data_set, tmp_path / "run", shallow_config, OPTIONS, None, start))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_is_new(origin, tmp_path, data_set, shallow_config):
    lines = dry_run(data_set, tmp_path / "run", shallow_config, OPTIONS, None, origin)
    facts = dict(re.split("  +", next(lines), maxsplit=1) for _ in range(4))
    assert facts["new words"] == (
        "6, of which 1 in place of [unused…] tokens; each began at random"
    )
    assert facts["frozen"] == "all but the new rows, until step 3"
