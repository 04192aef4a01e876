"""Reading and writing checkpoints of the original BERT, in the format of TensorFlow 1.

The Model Garden's are read, too: their files are the same, but for the names in them.
"""

import glob
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from modeling.checkpoints import model_garden
from modeling.checkpoints.foreign_files import check_regular
from modeling.config import check_shape
from pipeline.errors import UserError, listed
from pipeline.files import local_copy
from pipeline.storage import Location

_LATEST = re.compile(r"""^model_checkpoint_path: *["'](?P<path>.*)["']""", re.MULTILINE)
_FILE_SUFFIX = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")


def find_original(path: Location) -> Location | None:
    """The prefix of the checkpoint at a path, such as DIR/bert_model.ckpt; None if there is none.

    Args:
      path: the prefix, one of the checkpoint's files, or its directory. In a directory, the
        checkpoint is the one that the file `checkpoint` names as the latest, or else the only one.

    Raises:
      UserError: the directory holds several checkpoints and does not say which is the latest.
    """
    if path.is_dir():
        return _find_in_directory(path)
    prefix = path.parent / _FILE_SUFFIX.sub("", path.name)
    return prefix if _index(prefix).exists() else None


def files_of_original(prefix: Location) -> list[str]:
    """The names of a checkpoint's files."""
    data = prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*")
    return [_index(prefix).name, *sorted(path.name for path in data)]


def read_original(
    prefix: Location, shapes: Mapping[str, tuple[int, ...]], num_attention_heads: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads variables of a checkpoint. Its index is checked first, so a wrong one takes no memory.

    Args:
      prefix: the files' prefix.
      shapes: the shapes of the wanted variables by their names.
      num_attention_heads: N, which the shapes in a checkpoint of the Model Garden tell.

    Returns:
      The wanted variables that were found, as float32; and the names of all others, without the
      optimizer's moments and counters, which are not read.

    Raises:
      UserError: the checkpoint is damaged or incomplete, or a variable has another shape or is not
        of floating-point numbers.
    """
    source = f"the original checkpoint {prefix}"
    with local_copy(prefix.parent, files_of_original(prefix)) as directory:
        return _read(directory / prefix.name, source, shapes, num_attention_heads)


def _read(
    prefix: Path, source: str, shapes: Mapping[str, tuple[int, ...]], num_attention_heads: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What `read_original` returns, of files on this machine."""
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        found, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        keys = {name: name for name in found}
        if is_object_graph := model_garden.OBJECT_GRAPH_NAME in found:
            graph = reader.get_tensor(model_garden.OBJECT_GRAPH_NAME)
            keys = model_garden.keys_of_object_graph(graph, source)
        wanted = {name: keys[name] for name in shapes if name in keys}
        for name, key in wanted.items():
            shape = tuple(found[key])
            if is_object_graph:
                model_garden.check_heads(source, name, shape, num_attention_heads)
                shape = model_garden.original_shape(name, shape)
            check_shape(source, name, shape, shapes)
            if not dtypes[key].is_floating:
                raise UserError(f"{name} in {source} has the dtype {dtypes[key].name}")
        arrays = {name: reader.get_tensor(key).astype(np.float32) for name, key in wanted.items()}
        if is_object_graph:
            arrays = {
                name: model_garden.original_values(name, values) for name, values in arrays.items()
            }
    except UserError:
        raise
    except Exception as error:  # OpError, IndexError, RuntimeError: TensorFlow raises many
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{source} is damaged ({reason}): download its .index and .data files again"
        ) from error
    others = [
        name
        for name, key in keys.items()
        # Counters are scalars; the moments of NAME are called NAME/adam_m and NAME/adam_v.
        if name not in shapes and found[key] and name.rpartition("/")[0] not in found
    ]
    return arrays, others


def write_original(prefix: Path, weights: Mapping[str, np.ndarray], step: int | None) -> None:
    """Writes a checkpoint that `tf.train.load_checkpoint` opens.

    Args:
      prefix: the files' prefix. DIR/bert_model.ckpt gives DIR/bert_model.ckpt.index and
        DIR/bert_model.ckpt.data-….
      weights: the variables under their names.
      step: the training step, stored as `global_step`; None to store none.
    """
    tensors = dict(weights)
    if step is not None:
        tensors["global_step"] = np.array(step, np.int64)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(values) for values in tensors.values()],
    )


def _find_in_directory(directory: Location) -> Location | None:
    found = {path.stem: path.with_name(path.stem) for path in directory.glob("*.index")}
    latest = directory / "checkpoint"
    if found and (latest.exists() or latest.is_symlink()):
        check_regular(latest)
        match = _LATEST.search(latest.read_bytes().decode("utf-8", "replace"))
        if match is None:
            raise UserError(f"{latest} is damaged, it names no checkpoint: remove it")
        # Only the name is used, because the directory may have been moved since.
        if prefix := found.get(Path(match["path"]).name):
            return prefix
    if len(found) > 1:
        raise UserError(
            f"{directory} holds several checkpoints ({listed(sorted(found))}): give one as "
            f"{directory}/NAME"
        )
    return next(iter(found.values()), None)


def _index(prefix: Location) -> Location:
    return prefix.parent / f"{prefix.name}.index"
