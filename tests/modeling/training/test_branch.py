"""Runs that go on from a checkpoint of another run, and checkpoints that are kept for them."""

import dataclasses
import hashlib
import logging

import numpy as np
import pytest

from modeling.checkpoints.pretrained import read_average
from modeling.checkpoints.run_checkpoints import list_checkpoints, read_state
from modeling.training.loop import train
from modeling.training.resume import check_branch, read_branch
from modeling.training_options import OptimizerName, ScheduleName
from pipeline.errors import UserError


@pytest.fixture(scope="session")
def stable(few_steps):
    """Options of a run whose learning rate stays at its peak until step 24."""
    return dataclasses.replace(
        few_steps,
        num_train_steps=40,
        num_warmup_steps=2,
        learning_rate_schedule=ScheduleName.WARMUP_STABLE_DECAY,
        num_decay_steps=16,
        keep_checkpoints=2,
        keep_every_steps=10,
    )


@pytest.fixture
def source(fake_run, tmp_path, passes, stable):
    """A run with steps that compute nothing, which was stopped at step 20."""
    with pytest.raises(KeyboardInterrupt):
        fake_run(stable, passes, at_step=lambda step: interrupt_at(step, 21))
    return (tmp_path / "run").rename(tmp_path / "source")


@pytest.fixture
def branch(source):
    return read_branch(source / "checkpoints" / "step-00000010")


def interrupt_at(step, last):
    if step == last:
        raise KeyboardInterrupt


def steps_of(run_dir):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(run_dir)]


def digests(run_dir):
    return {
        path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in run_dir.rglob("*")
        if path.is_file()
    }


def arrays_of(run_dir, step):
    """All arrays of a checkpoint: the weights and the moments."""
    arrays = {}
    for name in ("weights.npz", "optimizer.npz"):
        with np.load(run_dir / "checkpoints" / f"step-{step:08d}" / name) as archive:
            arrays |= archive
    return arrays


def assert_same_arrays(run_dir, expected_dir, step):
    actual, expected = arrays_of(run_dir, step), arrays_of(expected_dir, step)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values, name)


# Real steps.


def branch_off(run_dir, source, data_set, config, options):
    """Goes on from step 10 of a run in a run of its own."""
    branch = read_branch(source / "checkpoints" / "step-00000010")
    check_branch(branch, config, data_set, options)
    before = digests(source)
    train(data_set, run_dir, config, options, branch)
    assert digests(source) == before


def test_a_branch_goes_on_as_the_run_itself(
    data_set, shallow_config, stable, tmp_path, training_lines
):
    options = dataclasses.replace(stable, num_train_steps=15, num_decay_steps=4)
    straight, branched = tmp_path / "straight", tmp_path / "branch"
    train(data_set, straight, shallow_config, options)
    branch_off(branched, straight, data_set, shallow_config, options)
    assert_same_arrays(branched, straight, 15)
    figures = "step", "masked_lm_loss", "gradient_norm", "learning_rate"
    expected, actual = (
        [[line[name] for name in figures] for line in training_lines(run_dir)]
        for run_dir in (straight, branched)
    )
    assert actual == [line for line in expected if line[0] > 10]
    assert actual[-1][-1] < 0.02 / 2


@pytest.mark.slow
def test_branches_of_three_lengths_are_straight_runs(data_set, shallow_config, stable, tmp_path):
    # Batches have one instance until step 15, and then two.
    stable = dataclasses.replace(stable, train_batch_size=2, batch_size_warmup_steps=18)
    endless = dataclasses.replace(stable, num_train_steps=20, num_decay_steps=0)
    train(data_set, tmp_path / "source", shallow_config, endless)
    for num_train_steps, num_decay_steps in ((18, 2), (20, 9), (30, 18)):
        options = dataclasses.replace(
            stable, num_train_steps=num_train_steps, num_decay_steps=num_decay_steps
        )
        straight, branched = (tmp_path / f"{name} {num_train_steps}" for name in ("to", "branch"))
        train(data_set, straight, shallow_config, options)
        assert_same_arrays(straight, tmp_path / "source", 10)
        branch_off(branched, tmp_path / "source", data_set, shallow_config, options)
        assert_same_arrays(branched, straight, num_train_steps)


# Steps that compute nothing.


@pytest.mark.no_backend
def test_a_branch_goes_on_in_the_data_and_says_where_it_comes_from(
    fake_run, source, branch, passes, stable, instance_numbers, first_batches, read_lines, caplog
):
    before = digests(source)
    options = dataclasses.replace(stable, num_train_steps=24, num_decay_steps=8)
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, steps = fake_run(options, passes, branch)
    assert f"branching from step-00000010 of {source}" in caplog.messages
    assert "changed: --num_train_steps was 40, is 24" in caplog.messages
    expected = [instance_numbers(batch) for batch in first_batches(passes, 24)[10:]]
    assert [instance_numbers(batch) for batch in steps.batches] == expected
    assert [line["step"] for line in read_lines(run_dir)] == [14, 21, 24]
    states = [read_state(checkpoint) for checkpoint in list_checkpoints(run_dir)]
    assert {state.branched_from for state in states} == {f"step-00000010 of {source}"}
    assert states[-1].instances_seen == 24 * 4
    assert digests(source) == before


@pytest.mark.no_backend
def test_an_interrupted_branch_resumes_as_a_run_of_its_own(
    fake_run, branch, passes, stable, instance_numbers, first_batches, read_lines
):
    for last in (13, 18):  # before and after the first checkpoint of its own
        with pytest.raises(KeyboardInterrupt):
            fake_run(
                stable, passes, branch, at_step=lambda step, last=last: interrupt_at(step, last)
            )
    run_dir, steps = fake_run(stable, passes, branch)
    expected = [instance_numbers(batch) for batch in first_batches(passes, 40)[15:]]
    assert [instance_numbers(batch) for batch in steps.batches] == expected
    assert [line["step"] for line in read_lines(run_dir)] == [14, 21, 28, 35, 40]
    assert read_state(list_checkpoints(run_dir)[-1]).branched_from


@pytest.mark.no_backend
def test_metrics_of_a_branch_begin_with_it(fake_run, tmp_path, branch, passes, stable, read_lines):
    # A run that was killed before its first checkpoint has left lines of other steps here.
    options = dataclasses.replace(stable, log_every_steps=3)
    with pytest.raises(KeyboardInterrupt):
        fake_run(options, passes, at_step=lambda step: interrupt_at(step, 4))
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [3]
    run_dir, _ = fake_run(options, passes, branch)
    assert next(iter(read_lines(run_dir)))["step"] == 12


@pytest.mark.no_backend
def test_a_branch_in_the_middle_of_its_decay_is_warned_of(fake_run, source, passes, stable, caplog):
    branch = read_branch(source / "checkpoints" / "step-00000020")
    with caplog.at_level(logging.WARNING, logger="absl"):
        fake_run(dataclasses.replace(stable, num_train_steps=30), passes, branch)
    assert caplog.messages[-1] == (
        "the learning rate falls from step 14 on, before the branch at step 20: give a "
        "--num_decay_steps of at most 10 to see all of its decay"
    )


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"random_seed": 7}, ["--random_seed=12345", "branch with that", "--init_checkpoint"]),
        ({"optimizer": OptimizerName.LAMB}, ["--optimizer=adamw", "branch with that"]),
        ({"num_train_steps": 18}, []),
        ({"num_train_steps": 10, "num_decay_steps": 2}, ["--num_train_steps=10", "step 10"]),
    ],
)
def test_a_branch_with_other_draws_or_without_a_step_is_refused(
    branch, passes, shallow_config, stable, changes, named
):
    options = dataclasses.replace(stable, **changes)
    if not named:
        check_branch(branch, shallow_config, passes, options)
        return
    with pytest.raises(UserError) as raised:
        check_branch(branch, shallow_config, passes, options)
    assert all(part in str(raised.value) for part in named)
    assert str(branch.run_dir) in str(raised.value)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("begun_with", "others", "advice"),
    [
        (15, {10: True, 15: True, 20: True, 0: False, 9: False}, "may end at step 10 or later"),
        (4, {4: True, 0: False, 5: False, 15: False}, "=4: branch with that, or give"),
        (0, {0: True, 15: False}, "=0: branch with that, or give"),
    ],
)
def test_steps_that_were_made_have_frozen_what_they_did(
    branch, passes, shallow_config, stable, begun_with, others, advice
):
    options = branch.state.options | {"freeze_old_steps": begun_with}
    branch = dataclasses.replace(branch, state=dataclasses.replace(branch.state, options=options))
    for steps, is_allowed in others.items():
        wanted = dataclasses.replace(stable, freeze_old_steps=steps)
        if is_allowed:
            check_branch(branch, shallow_config, passes, wanted)
            continue
        with pytest.raises(UserError, match=f"--freeze_old_steps={begun_with}") as raised:
            check_branch(branch, shallow_config, passes, wanted)
        assert advice in str(raised.value)


@pytest.mark.no_backend
def test_a_branch_of_another_model_or_data_set_is_refused(
    branch, data_set, passes, shallow_config, stable
):
    wide = dataclasses.replace(shallow_config, hidden_size=32)
    for config, data, named in (
        (wide, passes, "hidden_size was 16, is 32"),
        (shallow_config, data_set, str(data_set.directory)),
    ):
        with pytest.raises(UserError, match="give another --branch_from") as raised:
            check_branch(branch, config, data, stable)
        assert named in str(raised.value)


@pytest.mark.no_backend
@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/step-00000011", "nowhere/at/all"])
def test_what_is_no_checkpoint_cannot_be_branched_from(source, name):
    with pytest.raises(UserError, match="is not a checkpoint of a run") as raised:
        read_branch(source / name)
    assert ("step-00000020" in str(raised.value)) == (name == "")


@pytest.mark.no_backend
def test_a_damaged_checkpoint_is_not_branched_from_and_stays(
    fake_run, source, branch, passes, stable
):
    path = branch.checkpoint / "optimizer.npz"
    path.write_bytes(path.read_bytes()[:-9])
    before = digests(source)
    with pytest.raises(UserError, match=f"{branch.checkpoint} is damaged"):
        fake_run(stable, passes, branch)
    assert digests(source) == before


@pytest.mark.no_backend
def test_checkpoints_for_branches_are_kept_beside_the_newest(fake_run, passes, stable):
    options = dataclasses.replace(stable, save_checkpoints_steps=4, keep_every_steps=10)
    run_dir, _ = fake_run(options, passes)
    # 24 is the last stable step.
    assert steps_of(run_dir) == [10, 20, 24, 30, 36, 40]
    mean = read_average(run_dir, 2)
    assert mean.source == f"the mean of step-00000036 to step-00000040 of {run_dir}"
    with pytest.raises(UserError, match="2 checkpoints beside those that it keeps for good, not 3"):
        read_average(run_dir, 3)
    # For good: a later start without the flag does not remove them.
    fake_run(dataclasses.replace(options, keep_every_steps=0, keep_checkpoints=1), passes)
    assert steps_of(run_dir) == [10, 20, 24, 30, 40]
    # Whatever else is old or damaged goes as before.
    (run_dir / "checkpoints" / "step-00000020" / "state.json").write_text("")
    longer = dataclasses.replace(options, num_train_steps=41, num_decay_steps=17)
    fake_run(dataclasses.replace(longer, keep_checkpoints=1), passes)
    assert steps_of(run_dir) == [10, 24, 30, 40, 41]


@pytest.mark.no_backend
def test_checkpoints_for_branches_outlive_an_interrupted_run(fake_run, tmp_path, passes, stable):
    for last in (13, 29, 34):
        with pytest.raises(KeyboardInterrupt):
            fake_run(stable, passes, at_step=lambda step, last=last: interrupt_at(step, last))
    assert steps_of(tmp_path / "run") == [10, 20, 24, 25, 30]
    run_dir, _ = fake_run(stable, passes)
    assert steps_of(run_dir) == [10, 20, 24, 30, 35, 40]
