"""Checkpoints: everything a run needs to resume, in one directory.

`RUN/checkpoints/step-00000600/` holds `weights.npz` (the variables under the original's names),
`optimizer.npz` (the moments, NAME/adam_m and NAME/adam_v) and `state.json`. It is written under a
temporary name and renamed once complete. Nothing in it depends on the backend or the precision.
The random state is the seed and the step, which determine all random draws.
"""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import CONFIG_NAME
from modeling.step.learner import Learner
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST_NAME

CHECKPOINTS_NAME = "checkpoints"
WEIGHTS_NAME = "weights.npz"
_PREFIX = "step-"
_OPTIMIZER, _STATE = "optimizer.npz", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """The point that training has reached.

    Attributes:
      step: the number of updates made.
      instances_seen: the number of instances read, which is the position in the data.
      options: the training options, by name.
      sums: the sums collected so far for the next line of metrics.
      loss_scale: float16's loss scale, and the number of good updates since it last doubled.
      started_from: the source of the weights at step 0, in words; None if they were random.
    """

    step: int = 0
    instances_seen: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    loss_scale: list[float] | None = None
    started_from: str | None = None


class DamagedCheckpointError(UserError):
    """A checkpoint's content is not what was written."""


def save_checkpoint(run_dir: Path, learner: Learner, state: TrainingState, keep: int) -> Path:
    """Writes a checkpoint and removes all but the newest `keep`.

    Raises:
      UserError: it cannot be written; earlier checkpoints are unchanged.
    """
    directory = run_dir / CHECKPOINTS_NAME / f"{_PREFIX}{state.step:08d}"
    temporary = directory.with_name(directory.name + ".tmp")
    if learner.loss_scale:
        loss_scale = [float(variable) for variable in learner.loss_scale.variables]
        state = dataclasses.replace(state, loss_scale=loss_scale)
    try:
        # Also removes the leftovers of runs that were killed while saving.
        for unfinished in directory.parent.glob(f"{_PREFIX}*.tmp"):
            shutil.rmtree(unfinished)
        temporary.mkdir(parents=True)
        _write_arrays(temporary / WEIGHTS_NAME, _as_arrays(learner.model.named_weights()))
        _write_arrays(temporary / _OPTIMIZER, _as_arrays(_named_moments(learner)))
        with (temporary / _STATE).open("w", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(state), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot save the checkpoint {directory} ({error.strerror or error}): once that is "
            "fixed, the same command resumes from the checkpoint before it"
        ) from error
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return directory


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run, even one that has not saved a checkpoint yet."""
    has_data = (directory / MANIFEST_NAME).exists() or (directory / CHECKPOINTS_NAME).is_dir()
    return has_data and (directory / CONFIG_NAME).exists()


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first.

    Raises:
      OSError: they cannot be listed.
    """
    directory = run_dir / CHECKPOINTS_NAME
    found = directory.iterdir() if directory.exists() else ()
    steps = {path: path.name.removeprefix(_PREFIX) for path in found}
    complete = [path for path, step in steps.items() if step.isdecimal()]
    return sorted(complete, key=lambda path: int(steps[path]))


def latest_checkpoint(run_dir: Path) -> Path:
    """The run's newest checkpoint.

    Raises:
      UserError: there is none.
    """
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints:
        raise UserError(
            f"{run_dir} holds no checkpoint: give the --output_dir of `clozemill pretrain`, or let "
            "it run until it saves one"
        )
    return checkpoints[-1]


def read_weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """The model's variables in a checkpoint.

    Raises:
      UserError: the checkpoint is damaged.
    """
    with _damage_named(checkpoint / WEIGHTS_NAME) as path:
        return _read_arrays(path)


def read_mean_weights(checkpoints: Sequence[Path]) -> dict[str, np.ndarray]:
    """The mean of the model's variables over several checkpoints of a run, summed in float64.

    Raises:
      UserError: a checkpoint is damaged.
    """
    if len(checkpoints) == 1:
        return read_weights(checkpoints[0])
    sums: dict[str, np.ndarray] = {}
    for checkpoint in checkpoints:
        for name, values in read_weights(checkpoint).items():
            sums[name] = sums.get(name, 0) + values.astype(np.float64)
    return {name: (values / len(checkpoints)).astype(np.float32) for name, values in sums.items()}


def load_weights(checkpoint: Path, model: BertForPreTraining) -> int:
    """Sets the model's weights and returns the step at which they were saved.

    Raises:
      UserError: the checkpoint is damaged.
    """
    weights = read_weights(checkpoint)
    with _damage_named(checkpoint / WEIGHTS_NAME):
        model.set_named_weights(weights)
    return read_state(checkpoint).step


def read_state(checkpoint: Path) -> TrainingState:
    """The training state saved in a checkpoint.

    Raises:
      UserError: the checkpoint is damaged.
    """
    with _damage_named(checkpoint / _STATE) as path:
        content = json.loads(path.read_text("utf-8"))
        return TrainingState(**{field.name: content[field.name] for field in fields(TrainingState)})


def load_checkpoint(checkpoint: Path, learner: Learner) -> TrainingState:
    """Sets weights, moments, update count and loss scale, and returns the training state.

    Raises:
      UserError: the checkpoint is damaged.
    """
    load_weights(checkpoint, learner.model)
    with _damage_named(checkpoint / _OPTIMIZER) as path:
        moments = _read_arrays(path)
        for name, variable in _named_moments(learner).items():
            variable.assign(moments[name])
    state = read_state(checkpoint)
    learner.optimizer.iterations.assign(state.step)
    if learner.loss_scale and state.loss_scale:
        for variable, value in zip(learner.loss_scale.variables, state.loss_scale, strict=True):
            variable.assign(value)
    return state


def load_newest_checkpoint(run_dir: Path, learner: Learner) -> tuple[Path, TrainingState] | None:
    """Loads the newest checkpoint that is not damaged; returns None if the run has none.

    Damaged ones are logged and renamed to NAME.damaged-….

    Raises:
      UserError: all checkpoints are damaged.
    """
    damaged: list[tuple[Path, DamagedCheckpointError]] = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            state = load_checkpoint(checkpoint, learner)
        except DamagedCheckpointError as error:
            damaged.append((checkpoint, error))
            continue
        for path, damage in damaged:
            logging.error("%s; resuming from the checkpoint before it", damage)
            path.rename(path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}"))
        return checkpoint, state
    if damaged:
        raise damaged[0][1]
    return None


def _named_moments(learner: Learner) -> dict[str, keras.Variable]:
    moments = {}
    for name, first, second in zip(
        learner.model.named_weights(),
        learner.optimizer.first_moments,
        learner.optimizer.second_moments,
        strict=True,
    ):
        moments[f"{name}/adam_m"] = first
        moments[f"{name}/adam_v"] = second
    return moments


def _as_arrays(variables: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@contextmanager
def _damage_named(path: Path) -> Iterator[Path]:
    """Turns any failure to read a file into an error that names its checkpoint."""
    try:
        yield path
    except MemoryError:
        raise
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise UserError(f"cannot read the checkpoint {path.parent}: {error}") from error
        if not path.parent.exists():
            raise UserError(
                f"the checkpoint {path.parent} was removed while it was being read: start again"
            ) from error
        raise DamagedCheckpointError(
            f"the checkpoint {path.parent} is damaged: it has no {path.name}"
        ) from error
    except Exception as error:  # zip, zlib, JSON, NumPy and Keras each raise their own
        reason = str(error).partition("\n")[0]
        raise DamagedCheckpointError(
            f"the checkpoint {path.parent} is damaged: cannot read {path.name} ({reason})"
        ) from error
