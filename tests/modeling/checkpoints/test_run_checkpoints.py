import errno
import json
import logging

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
    read_state,
    save_checkpoint,
)
from modeling.optimization import AdamW, LossScale
from modeling.step.learner import Learner
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


def test_mean_of_weights_is_exact_and_float32(tmp_path):
    # Adding 1 to the second value changes nothing in float32.
    for number, values in enumerate(([3.0, 2.0**24], [5.0, 1.0], [-2.0, 1.0])):
        (tmp_path / str(number)).mkdir()
        arrays = {"kernel": np.array([values], np.float32), "bias": np.float32([number])}
        np.savez(tmp_path / str(number) / "weights.npz", **arrays)
    mean = read_mean_weights([tmp_path / str(number) for number in range(3)])
    np.testing.assert_array_equal(mean["kernel"], np.float32([[2, 5592406]]), strict=True)
    np.testing.assert_array_equal(mean["bias"], np.float32([1]), strict=True)


def test_mean_of_one_checkpoint_is_that_checkpoint(trained, checkpoint):
    mean = read_mean_weights([checkpoint])
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


def test_an_unfinished_checkpoint_is_not_listed(trained, checkpoint, tmp_path):
    for step in (3, 4):
        unfinished = tmp_path / CHECKPOINTS_NAME / f"step-0000000{step}.tmp"
        unfinished.mkdir()
        (unfinished / "weights.npz").write_bytes(b"PK")
    assert list_checkpoints(tmp_path) == [checkpoint]
    assert latest_checkpoint(tmp_path) == checkpoint
    third = save_checkpoint(tmp_path, trained, TrainingState(step=3), keep=5)
    assert list_checkpoints(tmp_path) == [checkpoint, third]
    assert len(list((tmp_path / CHECKPOINTS_NAME).iterdir())) == 2


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


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


def garbled(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes([0xFF] * 64)
    path.write_bytes(content)


def with_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    in_the_first_array = content.index(b"\x93NUMPY") + 200
    content[in_the_first_array] ^= 1
    path.write_bytes(content)


def lacking_its_last_entry(path):
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        del content["step"]
        path.write_text(json.dumps(content))
        return
    with np.load(path) as content:
        kept = dict(list(content.items())[:-1])
    np.savez(path, **kept)


def with_another_shape(path):
    with np.load(path) as content:
        values = dict(content)
    name = next(iter(values))
    np.savez(path, **values | {name: values[name][:-1]})


DAMAGES = [
    *(
        (name, damage)
        for name in ("weights.npz", "optimizer.npz", "state.json")
        for damage in (cut_short, emptied, removed, lacking_its_last_entry)
    ),
    *(
        (name, damage)
        for name in ("weights.npz", "optimizer.npz")
        for damage in (garbled, with_a_flipped_bit, with_another_shape)
    ),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_checkpoint_is_renamed_and_the_one_before_it_is_loaded(
    trained, shallow_config, checkpoint, tmp_path, caplog, name, damage
):
    newest = save_checkpoint(tmp_path, fresh(shallow_config, seed=3), TrainingState(step=3), keep=5)
    damage(newest / name)
    files = {path.name for path in newest.iterdir()}
    learner = fresh(shallow_config, seed=2)
    with caplog.at_level(logging.ERROR, logger="absl"):
        taken, state = load_newest_checkpoint(tmp_path, learner)
    assert (taken, state) == (checkpoint, TrainingState(step=2, instances_seen=8))
    assert_same(learner.variables, trained.variables)
    (message,) = caplog.messages
    assert str(newest) in message
    assert name in message
    assert list_checkpoints(tmp_path) == [checkpoint]
    (aside,) = (tmp_path / CHECKPOINTS_NAME).glob("step-00000003.damaged-*")
    assert {path.name for path in aside.iterdir()} == files


def test_unreadable_checkpoint_does_not_count_as_damaged(
    trained, shallow_config, checkpoint, tmp_path
):
    newest = save_checkpoint(tmp_path, trained, TrainingState(step=3), keep=5)
    (newest / "weights.npz").unlink()
    (newest / "weights.npz").mkdir()
    with pytest.raises(UserError, match="cannot read") as raised:
        load_newest_checkpoint(tmp_path, fresh(shallow_config, seed=2))
    assert str(newest) in str(raised.value)
    assert list_checkpoints(tmp_path) == [checkpoint, newest]


def test_several_damaged_checkpoints_are_skipped(trained, shallow_config, checkpoint, tmp_path):
    for step in (3, 4):
        newer = save_checkpoint(tmp_path, trained, TrainingState(step=step), keep=5)
        emptied(newer / "optimizer.npz")
    assert load_newest_checkpoint(tmp_path, fresh(shallow_config, seed=2))[0] == checkpoint
    assert list_checkpoints(tmp_path) == [checkpoint]
    assert len(list((tmp_path / CHECKPOINTS_NAME).iterdir())) == 3


def test_step_with_a_damaged_checkpoint_is_saved_again(
    trained, shallow_config, checkpoint, tmp_path
):
    for _ in range(2):
        newest = save_checkpoint(tmp_path, trained, TrainingState(step=3), keep=5)
        emptied(newest / "weights.npz")
        assert load_newest_checkpoint(tmp_path, fresh(shallow_config, seed=2))[0] == checkpoint
    assert len(list((tmp_path / CHECKPOINTS_NAME).glob("step-00000003.damaged-*"))) == 2


@pytest.mark.parametrize(
    ("name", "damage"),
    [("weights.npz", cut_short), ("optimizer.npz", removed), ("state.json", emptied)],
)
def test_run_whose_checkpoints_are_all_damaged_is_refused(
    trained, shallow_config, checkpoint, tmp_path, name, damage
):
    newest = save_checkpoint(tmp_path, trained, TrainingState(step=3), keep=5)
    for path in (checkpoint, newest):
        damage(path / name)
    with pytest.raises(UserError) as raised:
        load_newest_checkpoint(tmp_path, fresh(shallow_config, seed=2))
    assert str(newest) in str(raised.value)
    assert name in str(raised.value)
    assert list_checkpoints(tmp_path) == [checkpoint, newest]
