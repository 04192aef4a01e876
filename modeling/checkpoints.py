"""Checkpoints: all that is needed to go on, in one directory.

`RUN/checkpoints/step-00000600/` holds `weights.npz` (the variables under the original's names),
`optimizer.npz` (the moments, NAME/adam_m and NAME/adam_v) and `state.json`. It is written beside and
renamed when whole. Nothing in it depends on the backend.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import keras
import numpy as np

from modeling.optimization import AdamW
from modeling.pretraining import BertForPreTraining
from pipeline.errors import UserError

CHECKPOINTS_NAME = "checkpoints"
_PREFIX = "step-"
_WEIGHTS, _OPTIMIZER, _STATE = "weights.npz", "optimizer.npz", "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Where training stands.

    Attributes:
      step: updates made.
      instances_seen: instances read, which is the data's position.
      random_seed: that training was begun with.
      dropout_state: of the model's seed generator.
      sums: what has been summed up for the next line of metrics.
    """

    step: int = 0
    instances_seen: int = 0
    random_seed: int = 0
    dropout_state: list[int] = dataclasses.field(default_factory=list)
    sums: dict[str, float] = dataclasses.field(default_factory=dict)


def save_checkpoint(
    run_dir: Path, model: BertForPreTraining, optimizer: AdamW, state: TrainingState, keep: int
) -> Path:
    """Writes a checkpoint and removes all but the newest `keep`."""
    directory = run_dir / CHECKPOINTS_NAME / f"{_PREFIX}{state.step:08d}"
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_arrays(temporary / _WEIGHTS, _as_arrays(model.named_weights()))
    _write_arrays(temporary / _OPTIMIZER, _as_arrays(_named_moments(model, optimizer)))
    state = dataclasses.replace(
        state, dropout_state=np.asarray(model.bert.seeds.state.numpy()).tolist()
    )
    (temporary / _STATE).write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n", "utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return directory


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The run's whole checkpoints, oldest first."""
    found = (run_dir / CHECKPOINTS_NAME).glob(f"{_PREFIX}*")
    steps = {path: path.name.removeprefix(_PREFIX) for path in found}
    whole = [path for path, step in steps.items() if step.isdecimal()]
    return sorted(whole, key=lambda path: int(steps[path]))


def latest_checkpoint(run_dir: Path) -> Path:
    """The run's newest checkpoint.

    Raises:
      UserError: there is none.
    """
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints:
        raise UserError(
            f"{run_dir} holds no checkpoint: give the --output_dir of `clozemill pretrain`, or let it "
            "run to its first checkpoint"
        )
    return checkpoints[-1]


def load_weights(checkpoint: Path, model: BertForPreTraining) -> int:
    """Sets the model's weights and returns the step they were saved at."""
    with _damage_named(checkpoint / _WEIGHTS) as path:
        model.set_named_weights(_read_arrays(path))
    return _read_state(checkpoint).step


def load_checkpoint(checkpoint: Path, model: BertForPreTraining, optimizer: AdamW) -> TrainingState:
    """Sets weights, moments, update count and random state, and returns where training stood."""
    load_weights(checkpoint, model)
    with _damage_named(checkpoint / _OPTIMIZER) as path:
        moments = _read_arrays(path)
        for name, variable in _named_moments(model, optimizer).items():
            variable.assign(moments[name])
    state = _read_state(checkpoint)
    optimizer.iterations.assign(state.step)
    model.bert.seeds.state.assign(state.dropout_state)
    return state


def _named_moments(model: BertForPreTraining, optimizer: AdamW) -> dict[str, keras.Variable]:
    moments = {}
    for name, first, second in zip(
        model.named_weights(), optimizer.first_moments, optimizer.second_moments, strict=True
    ):
        moments[f"{name}/adam_m"] = first
        moments[f"{name}/adam_v"] = second
    return moments


def _as_arrays(variables: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable.numpy()) for name, variable in variables.items()}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def _read_state(checkpoint: Path) -> TrainingState:
    with _damage_named(checkpoint / _STATE) as path:
        content = json.loads(path.read_text("utf-8"))
        return TrainingState(**{field.name: content[field.name] for field in fields(TrainingState)})


@contextmanager
def _damage_named(path: Path) -> Iterator[Path]:
    """Whatever fails while a file is read means that its checkpoint is damaged."""
    try:
        yield path
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path.parent}: {error}") from error
    except Exception as error:  # zip, zlib, JSON, NumPy, Keras: each has its own
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the checkpoint {path.parent} is damaged: cannot read {path.name} ({reason}); remove "
            "that directory to go on from the one before it"
        ) from error
