import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from modeling.checkpoints.tensorflow1 import find_original, read_original, write_original
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend

DATA = "bert_model.ckpt.data-00000-of-00001"


def write(prefix, tensors):
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    return prefix


@pytest.fixture
def prefix(tmp_path):
    """A checkpoint of two variables."""
    tensors = {"bert/a": np.arange(3, dtype=np.float32), "bert/b/kernel": np.ones((2, 3))}
    return write(tmp_path / "bert_model.ckpt", tensors)


@pytest.mark.parametrize("name", ["bert_model.ckpt", "bert_model.ckpt.index", DATA, ""])
def test_a_checkpoint_is_found_by_prefix_file_and_directory(tmp_path, prefix, name):
    assert find_original(tmp_path / name) == prefix


def test_a_checkpoint_is_found_by_its_graph_file(tmp_path, prefix):
    assert find_original(tmp_path / "bert_model.ckpt.meta") == prefix


@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("name", ["other.ckpt", "bert_model", "nowhere/bert_model.ckpt", ".index"])
def test_path_without_a_checkpoint_gives_none(tmp_path, name):
    assert find_original(tmp_path / name) is None


def test_directory_without_a_checkpoint_gives_none(tmp_path):
    assert find_original(tmp_path) is None


@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("name", ["", "..", "/", "no\\0name"])
def test_a_latest_checkpoint_without_a_name_is_not_looked_for(tmp_path, name):
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    (tmp_path.parent / f"{tmp_path.name}.index").touch()
    assert find_original(tmp_path) == tmp_path / "bert_model.ckpt"


@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_place_of_the_file_of_the_latest_checkpoint_is_named(tmp_path, make):
    make(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="checkpoint is not a regular file"):
        find_original(tmp_path)


@pytest.mark.parametrize("moved_from", ["", "gs://bucket/run/", "/somewhere/else/"])
def test_the_latest_of_several_checkpoints_is_found(tmp_path, moved_from):
    for step in (100, 200):
        write(tmp_path / f"model.ckpt-{step}", {"bert/a": np.ones(2)})
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{moved_from}model.ckpt-200"\n')
    assert find_original(tmp_path) == tmp_path / "model.ckpt-200"


def test_the_only_checkpoint_is_found_if_the_latest_is_gone(tmp_path, prefix):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-200"\n')
    assert find_original(tmp_path) == prefix


@pytest.mark.usefixtures("prefix")
def test_several_checkpoints_are_refused_by_name(tmp_path):
    write(tmp_path / "model.ckpt-7", {"bert/a": np.ones(2)})
    with pytest.raises(UserError, match=r"bert_model\.ckpt, model\.ckpt-7") as raised:
        find_original(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"model_checkpoint_path: 7", b"\x00"])
def test_damaged_file_of_the_latest_checkpoint_is_reported(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(UserError, match="damaged") as raised:
        find_original(tmp_path)
    assert str(tmp_path / "checkpoint") in str(raised.value)


def test_variables_are_read_without_the_optimizer(tmp_path):
    variables = {
        "bert/pooler/dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bert/pooler/dense/bias": np.array([1, 2, 3], np.float32),
        "output_weights": np.zeros((2, 3), np.float32),
    }
    optimizer = {"global_step": np.int64(900), "beta1_power": np.float32(0.5)}
    for name, values in variables.items():
        for slot in ("adam_m", "adam_v", "Momentum"):
            optimizer[f"{name}/{slot}"] = values
    shapes = {name: values.shape for name, values in variables.items() if "bert" in name}
    prefix = write(tmp_path / "model.ckpt-900", variables | optimizer)
    arrays, others = read_original(prefix, shapes, 2)
    assert arrays.keys() == shapes.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, variables[name], strict=True)
    assert others == ["output_weights"]


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        (np.ones((3, 2), np.float32), r"has the shape \(3, 2\) .* requires \(2, 3\)"),
        (np.ones((2, 3), np.int32), "has the dtype int32"),
        (np.full((2, 3), "text"), "has the dtype string"),
    ],
)
def test_a_variable_of_another_shape_or_dtype_is_refused(tmp_path, values, wrong):
    prefix = write(tmp_path / "bert_model.ckpt", {"bert/a": values})
    with pytest.raises(UserError, match=f"bert/a .*{wrong}") as raised:
        read_original(prefix, {"bert/a": (2, 3)}, 2)
    assert str(prefix) in str(raised.value)


def test_a_checkpoint_of_a_tensorflow_1_saver_is_read(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("bert/embeddings"):
            tf.compat.v1.get_variable("word_embeddings", initializer=[[1.0, 2.0], [3.0, 4.0]])
        tf.compat.v1.train.get_or_create_global_step()
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=0)
    shapes = {"bert/embeddings/word_embeddings": (2, 2)}
    arrays, others = read_original(find_original(tmp_path), shapes, 2)
    assert others == []
    np.testing.assert_array_equal(arrays["bert/embeddings/word_embeddings"], [[1, 2], [3, 4]])


@pytest.mark.parametrize("name", [DATA, "bert_model.ckpt.index"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "overwritten"])
def test_damage_is_reported(tmp_path, prefix, name, damage):
    file = tmp_path / name
    if damage == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:10] if damage == "cut off" else b"x" * len(content))
    with pytest.raises(UserError, match="damaged") as raised:
        read_original(prefix, {"bert/a": (3,), "bert/b/kernel": (2, 3)}, 2)
    assert str(prefix) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def weights(original_shapes):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in original_shapes.items()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory, weights):
    """The prefix of a written checkpoint, not to be changed."""
    prefix = tmp_path_factory.mktemp("written") / "bert_model.ckpt"
    write_original(prefix, weights, step=1_000_000)
    return prefix


def test_a_checkpoint_is_written_under_the_names_of_the_original(written, original_shapes):
    shapes = {name: tuple(shape) for name, shape in tf.train.list_variables(str(written))}
    assert shapes == original_shapes | {"global_step": ()}
    dtypes = tf.train.load_checkpoint(str(written)).get_variable_to_dtype_map()
    assert dtypes.pop("global_step") == tf.int64
    assert set(dtypes.values()) == {tf.float32}
    assert tf.train.load_variable(str(written), "global_step") == 1_000_000
    assert {path.name for path in written.parent.iterdir()} == {DATA, "bert_model.ckpt.index"}


def test_an_unknown_step_is_not_written(tmp_path, weights, original_shapes):
    write_original(tmp_path / "bert_model.ckpt", weights, step=None)
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / "bert_model.ckpt"))}
    assert names == original_shapes.keys()


def test_written_weights_are_read_back_unchanged(written, weights, original_shapes):
    arrays, others = read_original(written, original_shapes, 2)
    assert arrays.keys() == weights.keys()
    assert others == []
    for name, values in weights.items():
        np.testing.assert_array_equal(arrays[name], values, name, strict=True)


def test_scripts_of_the_original_find_all_their_variables(written, weights):
    """They load a checkpoint like this, beginning with `get_assignment_map_from_checkpoint`."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, values in weights.items():
            tf1.get_variable(name, values.shape, initializer=tf1.zeros_initializer())
        variables = {re.sub(r":\d+$", "", each.name): each for each in tf1.trainable_variables()}
        stored = [name for name, _ in tf.train.list_variables(str(written))]
        assignment_map = {name: name for name in stored if name in variables}
        assert assignment_map.keys() == weights.keys()
        tf1.train.init_from_checkpoint(str(written), assignment_map)
        session.run(tf1.global_variables_initializer())
        for name, values in session.run(variables).items():
            np.testing.assert_array_equal(values, weights[name], name)


def test_a_tensorflow_1_saver_restores_a_written_checkpoint(written, weights):
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        variable = tf1.get_variable("cls/seq_relationship/output_weights", (2, 16))
        step = tf1.train.get_or_create_global_step()
        tf1.train.Saver().restore(session, str(written))
        np.testing.assert_array_equal(session.run(variable), weights[variable.op.name])
        assert session.run(step) == 1_000_000
