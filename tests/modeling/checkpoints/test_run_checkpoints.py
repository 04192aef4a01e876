import contextlib
import errno
import itertools
import json
import os
import shutil

import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    TrainingState,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    load_weights,
    read_mean_weights,
    read_run,
    read_state,
    remove_unfinished_checkpoints,
    save_checkpoint,
)
from modeling.optimization import AdamW, LossScale
from modeling.step.learner import Learner
from modeling.training.run_directory import prepare_run
from pipeline.errors import UserError


def fresh(config, seed, loss_scale=None):
    model = BertForPreTraining(config, seed)
    optimizer = AdamW(1e-2)
    optimizer.build(model.trainable_variables)
    return Learner(model, optimizer, loss_scale=loss_scale)


def arrays(variables):
    return [ops.convert_to_numpy(variable) for variable in variables]


def assert_same(variables, others):
    for value, other in zip(arrays(variables), arrays(others), strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.fixture(scope="module")
def trained(shallow_config, randomize):
    """A learner after two updates, not to be changed."""
    learner = fresh(shallow_config, seed=1)
    randomize(learner.model)
    rng = np.random.default_rng(0)
    for _ in range(2):
        gradients = [
            ops.convert_to_tensor(rng.standard_normal(variable.shape).astype(np.float32))
            for variable in learner.weights
        ]
        learner.optimizer.apply(gradients, learner.weights)
    return learner


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A run's only checkpoint."""
    return save_checkpoint(tmp_path, trained, TrainingState(step=2, instances_seen=8), keep=5)


def test_load_restores_all_that_was_saved(trained, shallow_config, tmp_path):
    saved = TrainingState(
        step=2,
        instances_seen=8,
        options={"random_seed": 7, "optimizer": "lamb"},
        sums={"masked_lm_nll": 1 / 3, "sequences": 4.0},
    )
    path = save_checkpoint(tmp_path, trained, saved, keep=1)
    other = fresh(shallow_config, seed=2)
    assert load_checkpoint(path, other) == saved
    assert int(other.optimizer.iterations) == 2
    assert any(moment.any() for moment in arrays(trained.optimizer.second_moments))
    assert len(other.variables) > 3 * len(other.weights)
    assert_same(other.variables, trained.variables)


def test_loss_scale_is_part_of_the_checkpoint(shallow_config, tmp_path):
    learner = fresh(shallow_config, seed=1, loss_scale=LossScale())
    learner.loss_scale.scale.assign(2.0**11)
    learner.loss_scale.good_updates.assign(1999)
    path = save_checkpoint(tmp_path, learner, TrainingState(step=5), keep=1)
    other = fresh(shallow_config, seed=2, loss_scale=LossScale())
    assert load_checkpoint(path, other).loss_scale == [2.0**11, 1999]
    assert arrays(other.loss_scale.variables) == [2.0**11, 1999]


def test_precision_may_change_when_a_run_resumes(trained, shallow_config, tmp_path):
    with_scale = fresh(shallow_config, seed=2, loss_scale=LossScale())
    path = save_checkpoint(tmp_path, trained, TrainingState(step=2), keep=1)
    load_checkpoint(path, with_scale)
    assert arrays(with_scale.loss_scale.variables) == arrays(LossScale().variables)
    path = save_checkpoint(tmp_path, with_scale, TrainingState(step=2), keep=1)
    without_scale = fresh(shallow_config, seed=3)
    load_checkpoint(path, without_scale)
    assert_same(without_scale.variables, trained.variables)


def test_state_is_read_without_a_model(trained, tmp_path):
    state = TrainingState(step=2, instances_seen=8, options={"random_seed": 7}, sums={"loss": 0.5})
    assert read_state(save_checkpoint(tmp_path, trained, state, keep=5)) == state


def test_mean_of_weights_is_exact_and_float32(shallow_config, tmp_path):
    # Adding 1 to the second value changes nothing in float32.
    name, learner = "cls/seq_relationship/output_bias", fresh(shallow_config, seed=1)
    paths = []
    for step, values in enumerate(([3.0, 2.0**24], [5.0, 1.0], [-2.0, 1.0])):
        learner.model.named_weights()[name].assign(np.float32(values))
        paths.append(save_checkpoint(tmp_path, learner, TrainingState(step=step), keep=3))
    mean = read_mean_weights(paths, shallow_config)
    np.testing.assert_array_equal(mean[name], np.float32([2, 5592406]), strict=True)
    assert {values.dtype for values in mean.values()} == {np.dtype("float32")}


def test_mean_of_one_checkpoint_is_that_checkpoint(trained, shallow_config, checkpoint):
    mean = read_mean_weights([checkpoint], shallow_config)
    for name, variable in trained.model.named_weights().items():
        np.testing.assert_array_equal(mean[name], ops.convert_to_numpy(variable), name)


def test_load_weights_loads_nothing_else(trained, shallow_config, checkpoint):
    model = BertForPreTraining(shallow_config, seed=2)
    assert load_weights(checkpoint, model) == 2
    assert_same(model.trainable_variables, trained.weights)


def test_arrays_on_disk_have_the_names_of_the_original(trained, checkpoint):
    names = set(trained.model.named_weights())
    with np.load(checkpoint / "weights.npz") as weights:
        assert set(weights) == names
        assert {values.dtype for values in weights.values()} == {np.dtype("float32")}
    with np.load(checkpoint / "optimizer.npz") as moments:
        assert set(moments) == {f"{n}/{m}" for n in names for m in ("adam_m", "adam_v")}


def test_moments_on_disk_belong_to_the_variable_in_their_name(trained, checkpoint):
    with np.load(checkpoint / "optimizer.npz") as moments:
        for variable, name, first, second in zip(
            trained.weights,
            trained.model.named_weights(),
            arrays(trained.optimizer.first_moments),
            arrays(trained.optimizer.second_moments),
            strict=True,
        ):
            assert moments[f"{name}/adam_m"].shape == tuple(variable.shape)
            np.testing.assert_array_equal(moments[f"{name}/adam_m"], first)
            np.testing.assert_array_equal(moments[f"{name}/adam_v"], second)


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_checkpoints_are_kept(trained, tmp_path, keep, kept):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, trained, TrainingState(step=step), keep)
    paths = list_checkpoints(tmp_path)
    assert [json.loads((path / "state.json").read_text())["step"] for path in paths] == kept
    assert latest_checkpoint(tmp_path) == paths[-1]
    assert sorted((tmp_path / CHECKPOINTS_NAME).iterdir()) == paths


def test_checkpoints_are_ordered_by_step(trained, tmp_path):
    steps = (900, 10_000, 99_999_999, 100_000_000)
    for step in steps:
        save_checkpoint(tmp_path, trained, TrainingState(step=step), keep=9)
    paths = list_checkpoints(tmp_path)
    assert tuple(json.loads((path / "state.json").read_text())["step"] for path in paths) == steps


def test_what_killed_runs_left_is_not_listed_and_is_removed(checkpoint, tmp_path):
    directory = tmp_path / CHECKPOINTS_NAME
    # Earlier builds gave the first of these names.
    for name in ("step-00000003.tmp", f"step-00000004.{'0' * 32}.tmp"):
        (directory / name).mkdir()
        (directory / name / "weights.npz").write_bytes(b"PK")
    assert list_checkpoints(tmp_path) == [checkpoint]
    assert latest_checkpoint(tmp_path) == checkpoint
    remove_unfinished_checkpoints(tmp_path)
    assert list(directory.iterdir()) == [checkpoint]


class KilledError(BaseException):
    """The end of a process, after which it does nothing more."""


def kill_at(monkeypatch, last):
    """Kills at one of the calls to functions that change files, and at all that follow."""
    calls = itertools.count(1)

    def counted(function):
        def call(*arguments, **options):
            if next(calls) >= last:
                raise KilledError
            return function(*arguments, **options)

        return call

    for module, names in (
        (os, ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")),
        (np, ("savez",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, counted(getattr(module, name)))


def test_run_that_is_killed_while_it_saves_leaves_only_complete_checkpoints(
    trained, shallow_config, tmp_path, monkeypatch
):
    save_checkpoint(tmp_path, trained, TrainingState(step=2), keep=1)
    learner = fresh(shallow_config, seed=2)
    for last in itertools.count(1):
        run_dir = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{last}"))
        with monkeypatch.context() as patched, contextlib.suppress(KilledError):
            kill_at(patched, last)
            save_checkpoint(run_dir, trained, TrainingState(step=3), keep=1)
            break
        left = list_checkpoints(run_dir)
        assert left
        for each in left:
            load_checkpoint(each, learner)
        remove_unfinished_checkpoints(run_dir)
        assert sorted((run_dir / CHECKPOINTS_NAME).iterdir()) == left
    assert last > 15


@pytest.mark.parametrize("failing", ["savez", "fsync", "rename"])
def test_full_disk_leaves_the_previous_checkpoints(
    trained, shallow_config, checkpoint, tmp_path, monkeypatch, failing
):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"savez": "numpy.savez", "fsync": "os.fsync", "rename": "pathlib.Path.rename"}
    with monkeypatch.context() as patched:
        patched.setattr(where[failing], fail)
        with pytest.raises(UserError, match="No space left on device") as raised:
            save_checkpoint(tmp_path, trained, TrainingState(step=3), keep=1)
    assert "step-00000003" in str(raised.value)
    assert list((tmp_path / CHECKPOINTS_NAME).iterdir()) == [checkpoint]
    other = fresh(shallow_config, seed=2)
    assert load_newest_checkpoint(tmp_path, other)[0] == checkpoint
    assert_same(other.variables, trained.variables)


def test_saving_a_step_again_replaces_it(trained, shallow_config, tmp_path):
    save_checkpoint(tmp_path, fresh(shallow_config, seed=3), TrainingState(step=2), keep=5)
    path = save_checkpoint(tmp_path, trained, TrainingState(step=2), keep=5)
    assert list_checkpoints(tmp_path) == [path]
    other = fresh(shallow_config, seed=4)
    load_checkpoint(path, other)
    assert_same(other.variables, trained.variables)


def test_run_without_checkpoints_has_no_latest_one(tmp_path, shallow_config):
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match="no checkpoint") as raised:
        latest_checkpoint(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert load_newest_checkpoint(tmp_path, fresh(shallow_config, seed=2)) is None


def test_files_of_the_run_are_checked(tmp_path, shallow_config, data_set, write_run):
    write_run(tmp_path, shallow_config)
    assert read_run(tmp_path) == (shallow_config, data_set.manifest)
    for name in ("bert_config.json", "vocab.txt", "manifest.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b"1", b"2", 1))
        with pytest.raises(UserError, match="was changed after the run began: put back") as raised:
            read_run(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match="is missing: put back") as other:
            read_run(tmp_path)
        for error in (raised, other):
            assert str(error.value).startswith(str(tmp_path / name))
        (tmp_path / name).write_bytes(content)


def test_newest_state_that_can_be_read_has_the_digests(tmp_path, shallow_config, write_run):
    write_run(tmp_path, shallow_config, step=3, earlier_steps=[2])
    (latest_checkpoint(tmp_path) / "state.json").write_text("{}")
    (tmp_path / "bert_config.json").write_text(shallow_config.to_json().replace("0.1", "0.2"))
    with pytest.raises(UserError, match=r"bert_config\.json was changed"):
        read_run(tmp_path)


def test_vocabulary_of_a_run_of_earlier_builds_is_checked(tmp_path, config, data_set):
    prepare_run(tmp_path, config, data_set)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(UserError, match=r"vocab\.txt is not the vocabulary"):
        read_run(tmp_path)
