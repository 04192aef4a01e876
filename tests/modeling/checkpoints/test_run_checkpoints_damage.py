"""Checkpoints that are not what was written, or that the system cannot read."""

import errno
import io
import json
import logging
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    DamagedCheckpointError,
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
)
from modeling.optimization import AdamW
from modeling.step.learner import Learner
from pipeline.errors import UserError

# NumPy reads the files; test_run_checkpoints.py loads what they hold on both backends.
pytestmark = pytest.mark.no_backend

FILES = ("weights.npz", "optimizer.npz", "state.json")
OPTIONS = {"random_seed": 7, "optimizer": "lamb", "learning_rate": 1e-4}
VARIABLE = "cls/seq_relationship/output_bias"


def fresh(config, seed):
    model = BertForPreTraining(config, seed)
    optimizer = AdamW(1e-2)
    optimizer.build(model.trainable_variables)
    return Learner(model, optimizer)


@pytest.fixture(scope="module")
def learners(shallow_config):
    """Two learners whose checkpoints are the older and the newer one, not to be changed."""
    return fresh(shallow_config, seed=1), fresh(shallow_config, seed=2)


@pytest.fixture(scope="module")
def learner(shallow_config):
    """The learner that checkpoints are loaded into."""
    return fresh(shallow_config, seed=3)


@pytest.fixture(params=["with digests", "of earlier builds"])
def run_dir(request, learners, tmp_path):
    """A run of two checkpoints."""
    for step, each in enumerate(learners, 2):
        state = TrainingState(step=step, options=OPTIONS, sums={"tokens": 1 / 3})
        checkpoint = save_checkpoint(tmp_path, each, state, keep=5)
        if request.param == "of earlier builds":
            without_digests(checkpoint)
    return tmp_path


@pytest.fixture
def has_digests(request):
    return request.node.callspec.params["run_dir"] == "with digests"


def without_digests(checkpoint):
    path = checkpoint / "state.json"
    content = json.loads(path.read_text())
    new = ("content_sha256", "sha256", "metrics")
    old = {name: value for name, value in content.items() if name not in new}
    path.write_text(json.dumps(old, indent=2) + "\n")


def assert_loaded(learner, expected):
    for value, other in zip(learner.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (value, other)))


def assert_passed_over(run_dir, learner, learners, caplog, name):
    """Checks that the newest checkpoint is renamed and the one before it is loaded."""
    older, newest = list_checkpoints(run_dir)
    files = {path.name for path in newest.iterdir()}
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="absl"):
        taken, state = load_newest_checkpoint(run_dir, learner)
    assert (taken, state.step) == (older, 2)
    learners[0].optimizer.iterations.assign(2)
    assert_loaded(learner, learners[0])
    (message,) = caplog.messages
    assert message.startswith(f"the checkpoint {newest} is damaged: ")
    assert name in message
    assert "\n" not in message
    assert list_checkpoints(run_dir) == [older]
    (aside,) = newest.parent.glob("step-00000003.damaged-*")
    assert {path.name for path in aside.iterdir()} == files


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


def replaced_by_a_directory(path):
    path.unlink()
    path.mkdir()


def lacking_its_last_entry(path):
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        del content["step"]
        path.write_text(json.dumps(content))
        return
    with np.load(path) as content:
        kept = dict(list(content.items())[:-1])
    np.savez(path, **kept)


def with_one_array_changed(change):
    def damage(path):
        with np.load(path) as content:
            values = dict(content)
        name = next(iter(values))
        np.savez(path, **values | {name: change(values[name])})

    return damage


def with_content(text):
    return lambda path: path.write_text(text, "latin1")


ARRAYS = {
    "cut_short": cut_short,
    "lacking_its_last_entry": lacking_its_last_entry,
    "another_shape": with_one_array_changed(lambda values: values[:-1]),
    "transposed": with_one_array_changed(lambda values: values.T),
    "another_type": with_one_array_changed(lambda values: values.astype(np.float64)),
    "integers": with_one_array_changed(lambda values: values.astype(np.int32)),
    "objects": with_one_array_changed(lambda values: values.astype(object)),
    "not_finite": with_one_array_changed(lambda values: values + np.float32(np.inf)),
    "not_a_number": with_one_array_changed(lambda values: values * np.float32(np.nan)),
}
STATES = {
    "cut_short": cut_short,
    "lacking_its_step": lacking_its_last_entry,
    **{
        name: with_content(text)
        for name, text in {
            "no_json": "{",
            "no_text": "\xff",
            "no_object": "[3]",
            "too_deep": "[" * 100_000,
            "another_step": '{"step": 4}',
            "no_number": '{"step": "3"}',
            "another_key": '{"step": 3, "steps": 3}',
            "not_a_number": '{"step": 3, "sums": {"tokens": NaN}}',
            "too_large": '{"step": 3, "instances_seen": 1e400}',
            "too_many_instances": '{"step": 3, "instances_seen": 4611686018427387904}',
            "a_short_loss_scale": '{"step": 3, "loss_scale": [1]}',
        }.items()
    },
}
DAMAGES = {
    **{
        f"{name}-{d.__name__}": (name, d)
        for name in FILES
        for d in (emptied, removed, replaced_by_a_directory)
    },
    **{f"{name}-{how}": (name, damage) for name in FILES[:2] for how, damage in ARRAYS.items()},
    **{f"state.json-{how}": ("state.json", damage) for how, damage in STATES.items()},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_renamed_and_the_one_before_it_is_loaded(
    run_dir, learner, learners, caplog, damage
):
    name, change = DAMAGES[damage]
    change(list_checkpoints(run_dir)[-1] / name)
    assert_passed_over(run_dir, learner, learners, caplog, name)


@pytest.mark.parametrize("name", FILES)
def test_file_that_was_cut_anywhere_is_damaged(run_dir, learner, name):
    checkpoint = list_checkpoints(run_dir)[-1]
    content = (checkpoint / name).read_bytes()
    last = len(content) - (name == "state.json")  # which may lack its last line end
    for length in {*range(0, last, last // 25), *range(last - 25, last)}:
        (checkpoint / name).write_bytes(content[:length])
        with pytest.raises(DamagedCheckpointError):
            load_checkpoint(checkpoint, learner)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_damage_or_do_not_matter(run_dir, learner, learners, has_digests, name):
    """They matter without digests too, but in a state.json; where arrays end, zip has its lists."""
    checkpoint = list_checkpoints(run_dir)[-1]
    content = (checkpoint / name).read_bytes()
    size = 8 * len(content)
    noticed = 0
    flips = [*range(0, size, size // 40), *range(max(size - 8 * 176, 0), size, 11)]
    for i in flips:
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        (checkpoint / name).write_bytes(flipped)
        try:
            load_checkpoint(checkpoint, learner)
        except DamagedCheckpointError:
            noticed += 1
        else:
            assert not has_digests
            if name != "state.json":
                learners[1].optimizer.iterations.assign(3)
                assert_loaded(learner, learners[1])
    assert noticed > len(flips) / 10
    assert noticed == len(flips) or not has_digests


def test_any_flipped_bit_in_the_state_is_damage(learners, tmp_path):
    checkpoint = save_checkpoint(tmp_path, learners[0], TrainingState(step=2), keep=5)
    path = checkpoint / "state.json"
    content = path.read_bytes()
    for i in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError):
            read_state(checkpoint)


def test_checkpoints_of_earlier_builds_are_read_with_one_warning_each(learners, tmp_path, caplog):
    path = save_checkpoint(tmp_path, learners[0], TrainingState(step=2, options=OPTIONS), keep=5)
    without_digests(path)
    with caplog.at_level(logging.WARNING, logger="absl"):
        learner = fresh(learners[0].model.config, seed=3)
        for _ in range(2):
            assert load_checkpoint(path, learner) == TrainingState(step=2, options=OPTIONS)
    (message,) = caplog.messages
    assert str(path) in message


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", FILES)
def test_error_of_the_system_is_no_damage(run_dir, learner, monkeypatch, name, number):
    opened = Path.open

    def fail(path, *arguments, **options):
        if path.name == name:
            raise OSError(number, "the system's words", str(path))
        return opened(path, *arguments, **options)

    checkpoints = list_checkpoints(run_dir)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=r"cannot read .*the system's words") as raised:
        load_newest_checkpoint(run_dir, learner)
    assert not isinstance(raised.value, DamagedCheckpointError)
    assert str(checkpoints[-1]) in str(raised.value)
    assert list_checkpoints(run_dir) == checkpoints


def test_error_of_the_system_after_the_file_was_opened_is_no_damage(run_dir, learner, monkeypatch):
    def fail(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_newest_checkpoint(run_dir, learner)
    assert len(list_checkpoints(run_dir)) == 2


def test_checkpoints_that_cannot_be_listed_are_not_none(run_dir, learner, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_newest_checkpoint(run_dir, learner)


@pytest.mark.parametrize("name", FILES)
def test_link_to_a_file_outside_the_run_is_passed_over(
    run_dir, learner, learners, caplog, tmp_path_factory, name
):
    path = list_checkpoints(run_dir)[-1] / name
    outside = tmp_path_factory.mktemp("outside") / name
    path.rename(outside)
    path.symlink_to(outside)
    assert_passed_over(run_dir, learner, learners, caplog, f"{name} is a link that leads out")


def test_link_to_a_checkpoint_outside_the_run_is_passed_over(
    run_dir, learner, learners, caplog, tmp_path_factory
):
    newest = list_checkpoints(run_dir)[-1]
    outside = tmp_path_factory.mktemp("outside") / newest.name
    newest.rename(outside)
    newest.symlink_to(outside)
    with pytest.raises(DamagedCheckpointError, match="is a link that leads out of the run"):
        load_weights(newest, learner.model)
    assert_passed_over(run_dir, learner, learners, caplog, "is a link that leads out of the run")
    assert len(list(outside.iterdir())) == 3


def test_old_link_is_removed_without_what_it_leads_to(learners, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    first = save_checkpoint(tmp_path / "run", learners[0], TrainingState(step=2), keep=5)
    (first.parent / "step-00000001").symlink_to(outside)
    last = save_checkpoint(tmp_path / "run", learners[0], TrainingState(step=3), keep=1)
    assert list(last.parent.iterdir()) == [last]
    assert outside.is_dir()


@pytest.mark.parametrize("what", ["run", CHECKPOINTS_NAME])
def test_run_that_is_reached_by_a_link_is_read(learners, learner, tmp_path, what):
    run_dir = tmp_path / "run"
    save_checkpoint(run_dir, learners[0], TrainingState(step=2), keep=5)
    linked = run_dir if what == "run" else run_dir / what
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    assert load_newest_checkpoint(run_dir, learner)[1].step == 2


def header_only(shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


@pytest.mark.parametrize(
    ("content", "compression"),
    [
        (header_only((1 << 40,)) + bytes(8), zipfile.ZIP_STORED),
        (header_only((2,)) + bytes(100 << 20), zipfile.ZIP_STORED),
        (header_only((2,)) + bytes(100 << 20), zipfile.ZIP_DEFLATED),
        (header_only((2,)) + bytes(8), zipfile.ZIP_DEFLATED),
    ],
    ids=["a huge shape", "much content", "much compressed content", "compressed content"],
)
def test_size_of_an_array_is_checked_before_memory_is_taken(
    learners, learner, tmp_path, content, compression
):
    checkpoint = save_checkpoint(tmp_path, learners[0], TrainingState(step=2), keep=5)
    without_digests(checkpoint)
    path = checkpoint / "weights.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, original in members.items():
            archive.writestr(name, content if name == f"{VARIABLE}.npy" else original)
    tracemalloc.start()
    with pytest.raises(DamagedCheckpointError, match=r"weights\.npz"):
        load_weights(checkpoint, learner.model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


def test_arrays_in_the_order_of_fortran_are_read(learners, learner, tmp_path):
    checkpoint = save_checkpoint(tmp_path, learners[0], TrainingState(step=2), keep=5)
    without_digests(checkpoint)
    with np.load(checkpoint / "weights.npz") as content:
        values = {name: np.asfortranarray(each) for name, each in content.items()}
    np.savez(checkpoint / "weights.npz", **values)
    load_weights(checkpoint, learner.model)
    for name, variable in learner.model.named_weights().items():
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), values[name])


def test_several_damaged_checkpoints_are_skipped(run_dir, learners, learner):
    for step in (4, 5):
        newer = save_checkpoint(run_dir, learners[1], TrainingState(step=step), keep=5)
        emptied(newer / "optimizer.npz")
    assert load_newest_checkpoint(run_dir, learner)[1].step == 3
    assert len(list_checkpoints(run_dir)) == 2
    assert len(list((run_dir / CHECKPOINTS_NAME).iterdir())) == 4


def test_step_with_a_damaged_checkpoint_is_saved_again(run_dir, learners, learner):
    for _ in range(2):
        newest = save_checkpoint(run_dir, learners[1], TrainingState(step=3), keep=5)
        emptied(newest / "weights.npz")
        assert load_newest_checkpoint(run_dir, learner)[1].step == 2
    assert len(list((run_dir / CHECKPOINTS_NAME).glob("step-00000003.damaged-*"))) == 2


@pytest.mark.parametrize(
    ("name", "damage"),
    [("weights.npz", cut_short), ("optimizer.npz", removed), ("state.json", emptied)],
)
def test_run_whose_checkpoints_are_all_damaged_is_refused(run_dir, learner, name, damage):
    checkpoints = list_checkpoints(run_dir)
    for checkpoint in checkpoints:
        damage(checkpoint / name)
    with pytest.raises(UserError) as raised:
        load_newest_checkpoint(run_dir, learner)
    assert str(checkpoints[-1]) in str(raised.value)
    assert name in str(raised.value)
    assert list_checkpoints(run_dir) == checkpoints
