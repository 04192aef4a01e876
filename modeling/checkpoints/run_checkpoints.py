"""Checkpoints: everything a run needs to resume, in one directory.

`RUN/checkpoints/step-00000600/` holds `weights.npz` (the variables under the original's names),
`optimizer.npz` (the moments, NAME/adam_m and NAME/adam_v) and `state.json`. It is written under a
temporary name and renamed once complete. On a store, `state.json` is sent last, and a checkpoint
without it counts for nothing. Nothing in it depends on the backend or the precision.
The random state is the seed and the step, which determine all random draws.

`state.json` has the SHA-256 of the other files of the checkpoint and of the run, and its own. So no
change to any of them goes unnoticed.
"""

import dataclasses
import errno
import hashlib
import math
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import keras
import numpy as np
from absl import logging
from pydantic import Field, FiniteFloat

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import CONFIG_NAME, BertConfig, weight_shapes
from modeling.step.learner import Learner
from modeling.training_options import NewEmbeddings
from pipeline.errors import UserError, listed
from pipeline.files import (
    has_sha256,
    list_directories,
    local_copy,
    remove_directory,
    remove_leftovers,
    rename_directory,
    send_directory,
    sha256_of,
    whole_directory,
)
from pipeline.json_files import NO_OTHER_KEYS, read_json, write_json
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest, check_vocabulary_file
from pipeline.storage import Location, StoredPath, is_within

CHECKPOINTS_NAME = "checkpoints"
WEIGHTS_NAME = "weights.npz"
_PREFIX = "step-"
_OPTIMIZER, _STATE = "optimizer.npz", "state.json"
_FILES_OF_RUN = (CONFIG_NAME, VOCABULARY_NAME, MANIFEST_NAME)
# What reading a damaged file ends with: zipfile sets no number, or seeks before the file's start.
# With any other number, the system could not read the file, which says nothing about its content.
_ERRORS_OF_DAMAGE = (
    *(None, errno.EINVAL),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)
# The header of an array in an archive is shorter than this many bytes.
_LONGEST_HEADER = 10_000
# Larger than any batch that anyone trains on.
_LARGEST_BATCH = 1 << 20
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class FileStart:
    """The first part of a file that grows.

    Attributes:
      bytes: its length.
      sha256: its SHA-256, in hexadecimal.
    """

    bytes: _Count
    sha256: str

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class Extension:
    """What a run's BERT has, and the BERT that it started from had not.

    Attributes:
      new_rows: the new rows of the word embeddings and the output bias, as ranges of ids: the
        first, and the one after the last. A row of an `[unused…]` token is new if a word took its
        place.
      num_words: the number of words that they are of; the other rows are of none.
      num_replaced: the number of words in place of `[unused…]` tokens.
      new_embeddings: how the rows of the words began; None without any.
      old_positions: the number of positions of the other BERT, if they were repeated.
    """

    new_rows: list[tuple[_Count, _Count]] = dataclasses.field(default_factory=list)
    num_words: _Count = 0
    num_replaced: _Count = 0
    new_embeddings: NewEmbeddings | None = None
    old_positions: _Count | None = None

    __pydantic_config__: ClassVar = NO_OTHER_KEYS

    def is_new(self, vocab_size: int) -> np.ndarray:
        """Whether each row is new, bool [V]."""
        is_new = np.zeros(vocab_size, bool)
        for start, end in self.new_rows:
            is_new[start:end] = True
        return is_new

    def describe(self, config: BertConfig) -> dict[str, str]:
        """The new words and positions of a model of this config, for people."""
        facts = {}
        if self.new_embeddings:
            begin = {
                NewEmbeddings.MEAN: "as the mean of its old pieces",
                NewEmbeddings.RANDOM: "at random",
            }[self.new_embeddings]
            facts["new words"] = (
                f"{self.num_words:,}, of which {self.num_replaced:,} in place of [unused…] tokens; "
                f"each began {begin}"
            )
        if self.old_positions:
            facts["positions"] = (
                f"{config.max_position_embeddings:,}, which began as {self.old_positions:,}, "
                "repeated"
            )
        return facts


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
      branched_from: the checkpoint of another run from which this one went on, in words; None for a
        run that began at step 0.
      extension: what the model has beyond that source; None for nothing.
      is_kept: whether the checkpoint stays when it is no longer among the newest.
      metrics: the lines of `metrics.jsonl` up to this step; None in checkpoints of earlier builds.
      sha256: the SHA-256 (in hexadecimal) of files of the run and the checkpoint, by name; empty in
        checkpoints of earlier builds.
    """

    step: _Count = 0
    instances_seen: _Count = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sums: dict[str, FiniteFloat] = dataclasses.field(default_factory=dict)
    loss_scale: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)] | None = None
    started_from: str | None = None
    branched_from: str | None = None
    extension: Extension | None = None
    is_kept: bool = False
    metrics: FileStart | None = None
    sha256: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


class DamagedCheckpointError(UserError):
    """A checkpoint's content is not what was written."""


def save_checkpoint(run_dir: Path, learner: Learner, state: TrainingState, keep: int) -> Path:
    """Writes a checkpoint, and removes old ones as `remove_old_checkpoints` does.

    Args:
      run_dir: the run.
      learner: the variables.
      state: the state, whose `sha256` has the digests of the run's files.
      keep: the number of newest checkpoints to keep.

    Raises:
      UserError: it cannot be written; earlier checkpoints are unchanged.
    """
    directory = run_dir / CHECKPOINTS_NAME / _name_of(state.step)
    if learner.loss_scale:
        loss_scale = [float(variable) for variable in learner.loss_scale.variables]
        state = dataclasses.replace(state, loss_scale=loss_scale)
    archives = {
        WEIGHTS_NAME: learner.model.named_weights(),
        _OPTIMIZER: _named_moments(learner),
    }
    try:
        with whole_directory(directory, _STATE) as temporary:
            sha256 = dict(state.sha256)
            for name, variables in archives.items():
                with (temporary / name).open("wb") as file:
                    np.savez(file, allow_pickle=False, **_as_arrays(variables))
                sha256[name] = sha256_of(temporary / name)
            write_json(temporary / _STATE, vars(dataclasses.replace(state, sha256=sha256)))
    except OSError as error:
        raise UserError(
            f"cannot save the checkpoint {directory} ({error.strerror or error}): once that is "
            "fixed, the same command resumes from the checkpoint before it"
        ) from error
    remove_old_checkpoints(run_dir, keep)
    return directory


def send_checkpoint(checkpoint: Path, run_dir: StoredPath, keep: int) -> None:
    """Sends a checkpoint to a run on a store; once it counts there, it removes old ones and this.

    Args:
      checkpoint: the checkpoint, on this machine.
      run_dir: the run.
      keep: the number of newest checkpoints to keep.

    Raises:
      OSError: the store does not take it; those that were there are unchanged.
    """
    send_directory(checkpoint, run_dir / CHECKPOINTS_NAME / checkpoint.name, _STATE)
    remove_directory(checkpoint, _STATE)
    remove_old_checkpoints(run_dir, keep)


def remove_old_checkpoints(run_dir: Location, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` and those whose state says that they stay.

    Raises:
      UserError: the system cannot read a checkpoint.
    """
    for old in list_checkpoints(run_dir)[:-keep]:
        with suppress(DamagedCheckpointError):
            if read_state(old).is_kept:
                continue
        if old.is_dir() and not old.is_symlink():
            remove_directory(old, _STATE)
        else:
            old.unlink()


def remove_unfinished_checkpoints(run_dir: Location) -> None:
    """Removes what killed runs have left of checkpoints that they were saving or removing."""
    directory = run_dir / CHECKPOINTS_NAME
    if isinstance(directory, StoredPath):
        for half in set(directory.iterdir()) - set(list_checkpoints(run_dir)):
            if _is_checkpoint(half):
                remove_directory(half, _STATE)
        return
    remove_leftovers(directory)
    for path in directory.glob(f"{_PREFIX}*.tmp"):
        if path.stem.removeprefix(_PREFIX).isdecimal():  # the name that earlier builds gave
            shutil.rmtree(path)


def is_run(directory: Location) -> bool:
    """Whether a directory holds a run, even one that has not saved a checkpoint yet."""
    has_data = (directory / MANIFEST_NAME).exists() or (directory / CHECKPOINTS_NAME).is_dir()
    return has_data and (directory / CONFIG_NAME).exists()


def list_checkpoints(run_dir: Location) -> list[Location]:
    """The run's complete checkpoints, oldest first.

    Raises:
      OSError: they cannot be listed.
    """
    directory = run_dir / CHECKPOINTS_NAME
    try:
        paths = list_directories(directory, _STATE)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(filter(_is_checkpoint, paths), key=_step_of)


def latest_checkpoint(run_dir: Location) -> Location:
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


def checkpoint_of_step(run_dir: Location, step: int) -> Location:
    """The run's checkpoint at a step.

    Raises:
      UserError: there is none.
    """
    checkpoint, found = run_dir / CHECKPOINTS_NAME / _name_of(step), list_checkpoints(run_dir)
    if checkpoint not in found:
        names = [path.name for path in found]
        raise UserError(
            f"{run_dir} holds no checkpoint of step {step}; it holds {listed(names) or 'none'}"
        )
    return checkpoint


def digests_of_run(run_dir: Location) -> dict[str, str]:
    """The SHA-256 of each file that `read_run` checks, by name."""
    return {name: sha256_of(run_dir / name) for name in _FILES_OF_RUN}


def read_run(run_dir: Location) -> tuple[BertConfig, Manifest]:
    """The model's config, and the manifest of the data it was trained on.

    Both files and the vocabulary are checked against the newest checkpoint that can be read.

    Raises:
      UserError: the directory is not a run, or one of the files has been changed.
    """
    for name, sha256 in newest_state(run_dir).sha256.items():
        path = run_dir / name
        if name in _FILES_OF_RUN and not has_sha256(path, sha256):
            how = "was changed after the run began" if path.exists() else "is missing"
            raise UserError(f"{path} {how}: put back the file with the SHA-256 {sha256}")
    if not is_run(run_dir):
        raise UserError(f"{run_dir} is not a run: give the --output_dir of `clozemill pretrain`")
    config, manifest = BertConfig.read(run_dir / CONFIG_NAME), Manifest.read(run_dir)
    check_vocabulary_file(run_dir, manifest)
    return config, manifest


def newest_state(run_dir: Location) -> TrainingState:
    """The state in the newest checkpoint in which it is not damaged; that of step 0 without any."""
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            return read_state(checkpoint)
        except DamagedCheckpointError:  # whoever loads the checkpoint reports this
            continue
    return TrainingState()


def read_weights(checkpoint: Location, config: BertConfig) -> dict[str, np.ndarray]:
    """The variables of a model of this config in a checkpoint.

    Raises:
      UserError: the checkpoint is damaged or cannot be read.
    """
    return _read_arrays(checkpoint, WEIGHTS_NAME, weight_shapes(config))


def read_mean_weights(checkpoints: Sequence[Location], config: BertConfig) -> dict[str, np.ndarray]:
    """The mean of the model's variables over several checkpoints of a run, summed in float64.

    Raises:
      UserError: a checkpoint is damaged or cannot be read.
    """
    if len(checkpoints) == 1:
        return read_weights(checkpoints[0], config)
    sums: dict[str, np.ndarray] = {}
    for checkpoint in checkpoints:
        for name, values in read_weights(checkpoint, config).items():
            sums[name] = sums.get(name, 0) + values.astype(np.float64)
    return {name: (values / len(checkpoints)).astype(np.float32) for name, values in sums.items()}


def load_weights(checkpoint: Location, model: BertForPreTraining) -> int:
    """Sets the model's weights and returns the step at which they were saved.

    Raises:
      UserError: the checkpoint is damaged or cannot be read.
    """
    model.set_named_weights(read_weights(checkpoint, model.config))
    return read_state(checkpoint).step


def read_state(checkpoint: Location) -> TrainingState:
    """The training state saved in a checkpoint.

    Raises:
      UserError: the checkpoint is damaged or cannot be read.
    """
    with _reading(checkpoint, _STATE) as path:
        state = read_json(path, TrainingState)
        if checkpoint.name.startswith(_PREFIX) and checkpoint.name != _name_of(state.step):
            raise ValueError(f"it is of step {state.step}")
        if state.instances_seen > state.step * _LARGEST_BATCH:
            raise ValueError(f"{state.step} steps cannot see {state.instances_seen} instances")
        return state


def load_checkpoint(checkpoint: Location, learner: Learner) -> TrainingState:
    """Sets weights, moments, update count and loss scale, and returns the training state.

    Raises:
      UserError: the checkpoint is damaged or cannot be read.
    """
    load_weights(checkpoint, learner.model)
    variables = _named_moments(learner)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    for name, values in _read_arrays(checkpoint, _OPTIMIZER, shapes).items():
        variables[name].assign(values)
    state = read_state(checkpoint)
    with _reading(checkpoint, _STATE):
        learner.optimizer.iterations.assign(state.step)
        if learner.loss_scale and state.loss_scale:
            for variable, value in zip(learner.loss_scale.variables, state.loss_scale, strict=True):
                variable.assign(value)
    return state


def load_newest_checkpoint(
    run_dir: Location, learner: Learner
) -> tuple[Location, TrainingState] | None:
    """Loads the newest checkpoint that is not damaged; returns None if the run has none.

    Damaged ones are logged and renamed to NAME.damaged-….

    Raises:
      UserError: all checkpoints are damaged, or one cannot be read, which is no damage.
    """
    damaged: list[tuple[Location, DamagedCheckpointError]] = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            state = load_checkpoint(checkpoint, learner)
        except DamagedCheckpointError as error:
            damaged.append((checkpoint, error))
            continue
        for path, damage in damaged:
            logging.error("%s; resuming from the checkpoint before it", damage)
            rename_directory(path, f"{path.name}.damaged-{uuid.uuid4().hex[:8]}", _STATE)
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


def _name_of(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _is_checkpoint(path: Location) -> bool:
    """Whether a path has the name of a checkpoint."""
    return path.name.removeprefix(_PREFIX).isdecimal()


def _step_of(checkpoint: Location) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _read_arrays(
    checkpoint: Location, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The float32 arrays of an archive, which has those of `shapes` and no others."""
    sha256 = read_state(checkpoint).sha256.get(name)
    with _reading(checkpoint, name) as path, local_copy(path) as copy, copy.open("rb") as file:
        if sha256 and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError("its digest is another one")
        with zipfile.ZipFile(file) as archive:
            if sorted(archive.namelist()) != sorted(f"{variable}.npy" for variable in shapes):
                raise ValueError("it does not have the model's variables")
            return {
                variable: _read_array(archive, variable, shape)
                for variable, shape in shapes.items()
            }


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of an archive, whose size is checked before memory is taken for it."""
    entry = archive.getinfo(f"{name}.npy")
    length = entry.file_size - 4 * math.prod(shape)
    if entry.compress_type != zipfile.ZIP_STORED or not 0 < length < _LONGEST_HEADER:
        raise ValueError(f"{name} has another size than in the model")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of an unknown version")
        found, is_transposed, dtype = np.lib.format.read_array_header_1_0(file)
        if (found, dtype) != (shape, np.dtype("<f4")):
            raise ValueError(f"{name} has another shape or type than in the model")
        values = np.frombuffer(file.read(), dtype)
    values = values.reshape(shape[::-1]).T if is_transposed else values.reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite")
    return values


@contextmanager
def _reading(checkpoint: Location, name: str) -> Iterator[Location]:
    """Yields a file's path; turns any failure to read it into an error that names its checkpoint.

    Raises:
      DamagedCheckpointError: the file is missing, is a link that leads out of the run, or has
        another content than was written.
      UserError: the system cannot read the file.
    """
    path, damaged = checkpoint / name, f"the checkpoint {checkpoint} is damaged"
    try:
        if not is_within(path, checkpoint.parent):
            raise DamagedCheckpointError(f"{damaged}: {name} is a link that leads out of the run")
        yield path
    except (MemoryError, DamagedCheckpointError):
        raise
    except OSError as error:
        if error.errno not in _ERRORS_OF_DAMAGE:
            raise UserError(f"cannot read the checkpoint {checkpoint}: {error}") from error
        if not (checkpoint.exists() or checkpoint.is_symlink()):
            raise UserError(
                f"the checkpoint {checkpoint} was removed while it was being read: start again"
            ) from error
        missing = error.errno == errno.ENOENT
        how = f"it has no {name}" if missing else f"cannot read {name} ({error})"
        raise DamagedCheckpointError(f"{damaged}: {how}") from error
    except Exception as error:  # zip, NumPy and Keras each raise their own
        reason = str(error).partition("\n")[0].removeprefix(f"{path} is damaged: ")
        raise DamagedCheckpointError(f"{damaged}: cannot read {name} ({reason})") from error
