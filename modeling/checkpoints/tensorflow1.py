"""Reading and writing checkpoints of the original BERT, in the format of TensorFlow 1."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline.errors import UserError

_INDEX_SUFFIX = ".index"
_FILE_SUFFIX = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")


def find_original(path: Path) -> Path | None:
    """The prefix of the checkpoint at a path, such as DIR/bert_model.ckpt; None if there is none.

    Args:
      path: the prefix, one of the checkpoint's files, or its directory. In a directory, the
        checkpoint is the one that the file `checkpoint` names as the latest, or else the only one.

    Raises:
      UserError: the directory holds several checkpoints and does not say which is the latest.
    """
    if path.is_dir():
        return _find_in_directory(path)
    prefix = Path(_FILE_SUFFIX.sub("", str(path)))
    return prefix if _index(prefix).exists() else None


def read_original(prefix: Path) -> dict[str, np.ndarray]:
    """A checkpoint's variables under their names, without the optimizer's moments and counters.

    Raises:
      UserError: the checkpoint is damaged or incomplete.
    """
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        return {
            name: reader.get_tensor(name)
            for name, shape in shapes.items()
            # Counters are scalars; the moments of NAME are called NAME/adam_m and NAME/adam_v.
            if shape and name.rpartition("/")[0] not in shapes
        }
    except Exception as error:  # OpError, IndexError, RuntimeError: TensorFlow raises many
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the original checkpoint {prefix} is damaged ({reason}): download its .index and "
            ".data files again"
        ) from error


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


def _find_in_directory(directory: Path) -> Path | None:
    try:
        state = tf.train.get_checkpoint_state(str(directory))
    except UnicodeDecodeError as error:
        raise UserError(f"{directory / 'checkpoint'} is damaged ({error}): remove it") from error
    if state:
        # Only the name is used, because the directory may have been moved since.
        latest = directory / Path(state.model_checkpoint_path).name
        if _index(latest).exists():
            return latest
    found = sorted(directory.glob(f"*{_INDEX_SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(index.stem for index in found)
        raise UserError(
            f"{directory} holds several checkpoints ({names}): give one as {directory}/NAME"
        )
    return found[0].with_suffix("") if found else None


def _index(prefix: Path) -> Path:
    return Path(f"{prefix}{_INDEX_SUFFIX}")
