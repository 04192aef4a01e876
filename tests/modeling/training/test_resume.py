"""How a run starts and resumes, with steps that compute nothing."""

import dataclasses
import errno
import logging

import numpy as np
import pytest

from modeling.checkpoints.pretrained import read_pretrained
from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    list_checkpoints,
    read_state,
    read_weights,
)
from modeling.config import weight_shapes
from modeling.job.group import ProcessGroup
from modeling.step.learner import new_learner
from modeling.training.resume import restore_or_begin
from pipeline.errors import UserError


def interrupt_at(step, last):
    if step == last:
        raise KeyboardInterrupt


@pytest.mark.no_backend
def test_batches_resume_where_the_run_was_interrupted(
    fake_run, passes, instance_numbers, first_batches
):
    with pytest.raises(KeyboardInterrupt):
        fake_run(data_set=passes, at_step=lambda step: interrupt_at(step, 12))
    _, steps = fake_run(data_set=passes)
    expected = [instance_numbers(batch) for batch in first_batches(passes, 24)[10:]]
    assert [instance_numbers(batch) for batch in steps.batches] == expected


@pytest.mark.no_backend
def test_sums_of_a_resumed_run_cover_the_whole_interval(fake_run, training_lines):
    results_at = {step: {"masked_lm_nll": float(step)} for step in range(1, 25)}
    with pytest.raises(KeyboardInterrupt):
        fake_run(results_at=results_at, at_step=lambda step: interrupt_at(step, 12))
    run_dir, steps = fake_run(results_at=results_at)
    assert len(steps.batches) == 14
    losses = [line["masked_lm_loss"] for line in training_lines(run_dir)]
    assert losses == pytest.approx([4, 11, 18, 23], rel=1e-4)


@pytest.mark.no_backend
def test_full_disk_leaves_the_previous_checkpoint(fake_run, tmp_path, monkeypatch):
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


def test_changed_options_are_logged_and_used(fake_run, caplog, few_steps, training_lines):
    fake_run()
    options = dataclasses.replace(few_steps, num_train_steps=25, learning_rate=1e-3)
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


@pytest.mark.no_backend
def test_flags_are_written_when_training_starts(fake_run, few_steps):
    run_dir, _ = fake_run(flags="--learning_rate=0.02\n")
    assert (run_dir / "flags.txt").read_text() == "--learning_rate=0.02\n"
    with pytest.raises(UserError):
        fake_run(dataclasses.replace(few_steps, random_seed=7), flags="--random_seed=7\n")
    assert (run_dir / "flags.txt").read_text() == "--learning_rate=0.02\n"


def test_new_run_starts_from_the_pretrained_weights(
    fake_run, tmp_path, shallow_config, write_run, caplog, few_steps
):
    write_run(tmp_path / "first", shallow_config, step=3)
    pretrained = read_pretrained(tmp_path / "first")
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, _ = fake_run(origin=pretrained)
    weights = read_weights(list_checkpoints(run_dir)[0], shallow_config)
    for name, values in pretrained.weights.items():
        np.testing.assert_array_equal(weights[name], values)
    source = f"step-00000003 of {tmp_path / 'first'}"
    assert f"loaded {len(weights)} variables from {source}" in caplog.messages
    fake_run(dataclasses.replace(few_steps, num_train_steps=25))
    states = [read_state(checkpoint) for checkpoint in list_checkpoints(run_dir)]
    assert states[-1].step == 25
    assert [state.started_from for state in states] == [source] * len(states)


def test_variables_without_pretrained_values_start_random_and_are_logged(
    fake_run, tmp_path, shallow_config, write_run, caplog
):
    write_run(tmp_path / "first", shallow_config)
    whole = read_pretrained(tmp_path / "first")
    head = "cls/seq_relationship/output_weights"
    weights = {name: values for name, values in whole.weights.items() if name != head}
    pretrained = dataclasses.replace(whole, weights=weights, ignored=["classifier/bias"])
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, _ = fake_run(origin=pretrained)
    assert f"1 start from random values: {head}" in caplog.messages
    assert "not used: classifier/bias" in caplog.messages
    values = read_weights(list_checkpoints(run_dir)[0], shallow_config)[head]
    assert not np.array_equal(values, whole.weights[head])


def test_resumed_run_keeps_its_own_weights(
    fake_run, tmp_path, shallow_config, write_run, few_steps
):
    run_dir, _ = fake_run()
    before = read_weights(list_checkpoints(run_dir)[-1], shallow_config)
    write_run(tmp_path / "first", shallow_config)
    options = dataclasses.replace(few_steps, num_train_steps=25)
    fake_run(options, origin=read_pretrained(tmp_path / "first"))
    after = read_weights(list_checkpoints(run_dir)[-1], shallow_config)
    assert list_checkpoints(run_dir)[-1].name == "step-00000025"
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    assert read_state(list_checkpoints(run_dir)[-1]).started_from is None


@pytest.mark.no_backend
def test_what_a_run_with_other_pairs_does_not_use_or_lacks_is_logged(
    tmp_path, shallow_config, write_run, few_steps, caplog
):
    of_pairs = {
        *("bert/pooler/dense/kernel", "bert/pooler/dense/bias"),
        *("cls/seq_relationship/output_weights", "cls/seq_relationship/output_bias"),
    }
    alone = dataclasses.replace(shallow_config, sentence_pairs="none")
    for name, first, second in (("a", shallow_config, alone), ("b", alone, shallow_config)):
        write_run(tmp_path / name, first)
        pretrained = read_pretrained(tmp_path / name)
        learner = new_learner(second, few_steps)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="absl"):
            restore_or_begin(tmp_path / "new", learner, few_steps, pretrained, ProcessGroup())
        says = "not used: " if first is shallow_config else "4 start from random values: "
        (line,) = (each for each in caplog.messages if each.startswith(says))
        assert set(line.removeprefix(says).split(", ")) == of_pairs
        shared = learner.model.named_weights().keys() & pretrained.weights.keys()
        assert len(shared) == len(weight_shapes(alone))
        for variable in shared:
            value = learner.model.named_weights()[variable].numpy()
            np.testing.assert_array_equal(value, pretrained.weights[variable])
