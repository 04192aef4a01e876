import json

import numpy as np
import pytest

from modeling.checkpoints import (
    CHECKPOINTS_NAME,
    TrainingState,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from modeling.optimization import AdamW
from modeling.pretraining import BertForPreTraining
from pipeline.errors import UserError


def fresh(config, seed):
    model = BertForPreTraining(config, seed)
    optimizer = AdamW(1e-2)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def arrays(variables):
    return [np.asarray(variable.numpy()) for variable in variables]


@pytest.fixture(scope="module")
def trained(config, randomize):
    """A model and an optimizer after two updates, not to be changed."""
    model, optimizer = fresh(config, seed=1)
    randomize(model)
    rng = np.random.default_rng(0)
    for _ in range(2):
        gradients = [
            rng.standard_normal(variable.shape).astype(np.float32)
            for variable in model.trainable_variables
        ]
        optimizer.apply(gradients, model.trainable_variables)
    model.bert.seeds.state.assign([4_000_000_000, 77])
    return model, optimizer


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A run's only checkpoint."""
    return save_checkpoint(tmp_path, *trained, TrainingState(step=2, instances_seen=8), keep=5)


def test_load_restores_all_that_was_saved(trained, config, tmp_path):
    model, optimizer = trained
    sums = {"masked_lm_nll": 1 / 3, "sequences": 4.0}
    saved = TrainingState(step=2, instances_seen=8, sums=sums)
    path = save_checkpoint(tmp_path, model, optimizer, saved, keep=1)
    other_model, other_optimizer = fresh(config, seed=2)
    state = load_checkpoint(path, other_model, other_optimizer)
    assert (state.step, state.instances_seen, state.sums) == (2, 8, sums)
    assert state.dropout_state == [4_000_000_000, 77]
    assert int(other_optimizer.iterations) == 2
    assert any(moment.any() for moment in arrays(optimizer.second_moments))
    for restored, original in zip(
        arrays([*other_model.variables, *other_optimizer.variables]),
        arrays([*model.variables, *optimizer.variables]),
        strict=True,
    ):
        np.testing.assert_array_equal(restored, original)


def test_load_weights_leaves_the_random_state_alone(trained, config, checkpoint):
    model, _ = fresh(config, seed=2)
    state = model.bert.seeds.state.numpy()
    assert load_weights(checkpoint, model) == 2
    for restored, original in zip(
        arrays(model.trainable_variables), arrays(trained[0].trainable_variables), strict=True
    ):
        np.testing.assert_array_equal(restored, original)
    np.testing.assert_array_equal(model.bert.seeds.state.numpy(), state)


def test_arrays_on_disk_bear_the_names_of_the_original(trained, checkpoint):
    names = set(trained[0].named_weights())
    with np.load(checkpoint / "weights.npz") as weights:
        assert set(weights) == names
    with np.load(checkpoint / "optimizer.npz") as moments:
        assert set(moments) == {f"{n}/{m}" for n in names for m in ("adam_m", "adam_v")}


def test_moments_on_disk_are_those_of_the_variable_they_are_named_after(trained, checkpoint):
    model, optimizer = trained
    with np.load(checkpoint / "optimizer.npz") as moments:
        for variable, name, first, second in zip(
            model.trainable_variables,
            model.named_weights(),
            optimizer.first_moments,
            optimizer.second_moments,
            strict=True,
        ):
            assert moments[f"{name}/adam_m"].shape == tuple(variable.shape)
            np.testing.assert_array_equal(moments[f"{name}/adam_m"], first.numpy())
            np.testing.assert_array_equal(moments[f"{name}/adam_v"], second.numpy())


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_checkpoints_are_kept(trained, tmp_path, keep, kept):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, *trained, TrainingState(step=step), keep)
    paths = list_checkpoints(tmp_path)
    assert [json.loads((path / "state.json").read_text())["step"] for path in paths] == kept
    assert latest_checkpoint(tmp_path) == paths[-1]
    assert sorted((tmp_path / CHECKPOINTS_NAME).iterdir()) == paths


def test_checkpoints_are_ordered_by_step(trained, tmp_path):
    steps = (900, 10_000, 99_999, 1_000_000)
    for step in steps:
        save_checkpoint(tmp_path, *trained, TrainingState(step=step), keep=9)
    paths = list_checkpoints(tmp_path)
    assert tuple(json.loads((path / "state.json").read_text())["step"] for path in paths) == steps


def test_a_checkpoint_that_was_not_finished_is_not_listed(trained, checkpoint, tmp_path):
    unfinished = tmp_path / CHECKPOINTS_NAME / "step-00000003.tmp"
    unfinished.mkdir()
    (unfinished / "weights.npz").write_bytes(b"PK")
    assert list_checkpoints(tmp_path) == [checkpoint]
    assert latest_checkpoint(tmp_path) == checkpoint
    third = save_checkpoint(tmp_path, *trained, TrainingState(step=3), keep=5)
    assert list_checkpoints(tmp_path) == [checkpoint, third]
    assert not unfinished.exists()


def test_failure_while_saving_leaves_no_checkpoint(trained, tmp_path):
    unwritable = TrainingState(step=2, sums={"masked_lm_nll": object()})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, *trained, unwritable, keep=1)
    assert list_checkpoints(tmp_path) == []


def test_saving_a_step_again_replaces_it(trained, config, tmp_path):
    save_checkpoint(tmp_path, *fresh(config, seed=3), TrainingState(step=2), keep=5)
    path = save_checkpoint(tmp_path, *trained, TrainingState(step=2), keep=5)
    assert list_checkpoints(tmp_path) == [path]
    model, _ = fresh(config, seed=4)
    load_weights(path, model)
    for restored, original in zip(
        arrays(model.trainable_variables), arrays(trained[0].trainable_variables), strict=True
    ):
        np.testing.assert_array_equal(restored, original)


def test_run_without_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match="no checkpoint") as raised:
        latest_checkpoint(tmp_path)
    assert str(tmp_path) in str(raised.value)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


def garbled(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
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


def of_another_shape(path):
    with np.load(path) as content:
        values = dict(content)
    name = next(iter(values))
    np.savez(path, **values | {name: values[name][:-1]})


@pytest.mark.parametrize("damage", [cut_short, emptied, removed, lacking_its_last_entry])
@pytest.mark.parametrize("name", ["weights.npz", "optimizer.npz", "state.json"])
def test_damaged_checkpoint_is_named(config, checkpoint, name, damage):
    damage(checkpoint / name)
    with pytest.raises(UserError, match="damaged") as raised:
        load_checkpoint(checkpoint, *fresh(config, seed=2))
    assert str(checkpoint) in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize("damage", [garbled, of_another_shape])
@pytest.mark.parametrize("name", ["weights.npz", "optimizer.npz"])
def test_damaged_arrays_are_named(config, checkpoint, name, damage):
    damage(checkpoint / name)
    with pytest.raises(UserError, match="damaged") as raised:
        load_checkpoint(checkpoint, *fresh(config, seed=2))
    assert str(checkpoint) in str(raised.value)
