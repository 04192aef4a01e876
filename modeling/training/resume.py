"""The first step: from the run's newest checkpoint, another run's, or pretrained or random weights.

A branch is a new run that goes on from a checkpoint of another run, which stays as it is.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from absl import logging

from modeling.checkpoints.pretrained import Pretrained, initialize
from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    Extension,
    FileStart,
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    newest_state,
    read_run,
    read_state,
)
from modeling.config import BertConfig
from modeling.job.group import ProcessGroup
from modeling.optimization import Freezing
from modeling.step.learner import Learner
from modeling.training.run_directory import check_same_data, check_same_model
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError, listed
from pipeline.manifest import DataSet, Manifest
from pipeline.storage import Location, resolved

_DEFAULTS = dataclasses.asdict(TrainingOptions())
_NO_LINES = FileStart(0, hashlib.sha256().hexdigest())


@dataclass(frozen=True)
class Branch:
    """A checkpoint of another run, from which a new run goes on.

    Attributes:
      checkpoint: its directory.
      run_dir: the run.
      config: the run's model.
      manifest: the manifest of the run's data.
      state: the point that training had reached.
    """

    checkpoint: Location
    run_dir: Location
    config: BertConfig
    manifest: Manifest
    state: TrainingState


def read_branch(checkpoint: Location) -> Branch:
    """Reads all of a checkpoint of a run but its arrays.

    Raises:
      UserError: it is not a checkpoint of a run, or it cannot be read or is damaged.
    """
    real = resolved(checkpoint)
    run_dir = real.parent.parent
    if real not in list_checkpoints(run_dir):
        names = [path.name for path in list_checkpoints(checkpoint)]
        holds = f" (it is a run, which holds {listed(names)})" if names else ""
        raise UserError(
            f"--branch_from={checkpoint} is not a checkpoint of a run{holds}: give "
            f"RUN/{CHECKPOINTS_NAME}/step-…"
        )
    config, manifest = read_run(run_dir)
    return Branch(real, run_dir, config, manifest, read_state(real))


def check_branch(
    branch: Branch, config: BertConfig, data_set: DataSet, options: TrainingOptions
) -> None:
    """Checks that a new run can go on from a checkpoint.

    Raises:
      UserError: the model, the data, the seed or the optimizer is another one, or no step is left.
    """
    check_same_model(branch.run_dir, branch.config, config, "branch_from")
    check_same_data(branch.run_dir, branch.manifest, data_set, "branch_from")
    _check_options(branch.run_dir, branch.state, options, "branch with that, or give")
    step = branch.state.step
    if options.num_train_steps <= step:
        raise UserError(
            f"--num_train_steps={options.num_train_steps} leaves no step after step {step} of "
            f"--branch_from={branch.checkpoint}: give all steps, with those before the branch"
        )


def restore_or_begin(
    run_dir: Location,
    learner: Learner,
    options: TrainingOptions,
    origin: Pretrained | Branch | None,
    group: ProcessGroup,
) -> TrainingState:
    """Sets all variables to their values at the step where training resumes or begins.

    Args:
      run_dir: the run.
      learner: the variables.
      options: how training continues.
      origin: what a new run starts from, instead of random weights.
      group: the processes, which all start alike.

    Raises:
      UserError: the run cannot resume with these options, all its checkpoints are damaged, there
        are no new rows to train alone, or the processes do not all see the checkpoints or do not
        start with the same weights.
    """
    found = load_newest_checkpoint(run_dir, learner) if group.is_first else None
    # All other processes load the checkpoint that process 0 has found intact.
    name = group.gather(found and found[0].name)[0]
    if name and not group.is_first:
        checkpoint = run_dir / CHECKPOINTS_NAME / name
        if not checkpoint.exists():
            raise UserError(
                f"{checkpoint}, from which process 0 resumes, does not exist here: all hosts must "
                "share the run's directory, or give a URL of a store"
            )
        found = checkpoint, load_checkpoint(checkpoint, learner)
    state = TrainingState()
    if found:
        checkpoint, state = found
        logging.info("resuming from %s", checkpoint)
        remedy = "resume with that, or give another --output_dir and"
        _check_options(run_dir, state, options, remedy)
        _log_changes(state.options, options)
    elif isinstance(origin, Branch):
        state = _branch_off(origin, learner, options)
    elif origin:
        _begin_with(origin, learner, options.freeze_old_steps)
        state = TrainingState(started_from=origin.source, extension=origin.extension)
    freeze_old_rows(learner, options, state.extension)
    if group.num_processes > 1:
        group.check_same(
            {
                "the model": learner.model.config.to_json(),
                "the weights to start from": f"SHA-256 {_sha256_of_weights(learner)}",
            }
        )
    return dataclasses.replace(state, options=dataclasses.asdict(options))


def extension_of(run_dir: Location, origin: Pretrained | Branch | None) -> Extension | None:
    """What the model of a run has beyond the BERT that the run started from, or will start from.

    Raises:
      UserError: a checkpoint of the run cannot be read.
    """
    if isinstance(origin, Branch):
        return origin.state.extension
    return origin.extension if origin else newest_state(run_dir).extension


def freeze_old_rows(
    learner: Learner, options: TrainingOptions, extension: Extension | None
) -> None:
    """Lets the first `options.freeze_old_steps` updates change new rows alone.

    Raises:
      UserError: there are such updates, but no new rows.
    """
    if not options.freeze_old_steps:
        return
    if not (extension and extension.new_rows):
        raise UserError(
            f"--freeze_old_steps={options.freeze_old_steps} trains the rows of new words alone, "
            "but there are none: give data whose vocabulary extends that of --init_checkpoint, or "
            "leave it out"
        )
    is_new = extension.is_new(learner.model.config.vocab_size)
    learner.optimizer.freezing = Freezing(options.freeze_old_steps, is_new)
    logging.info(
        "until step %d, only the %s new rows are trained",
        options.freeze_old_steps,
        f"{is_new.sum():,}",
    )


def _branch_off(branch: Branch, learner: Learner, options: TrainingOptions) -> TrainingState:
    state = load_checkpoint(branch.checkpoint, learner)
    source = f"{branch.checkpoint.name} of {branch.run_dir}"
    logging.info("branching from %s", source)
    _log_changes(state.options, options)
    if options.last_stable_step is not None and options.last_stable_step < state.step:
        logging.warning(
            "the learning rate falls from step %d on, before the branch at step %d: give a "
            "--num_decay_steps of at most %d to see all of its decay",
            options.last_stable_step,
            state.step,
            options.num_train_steps - state.step,
        )
    # Its metrics are those of its own steps.
    return dataclasses.replace(state, branched_from=source, metrics=_NO_LINES)


def _begin_with(pretrained: Pretrained, learner: Learner, freeze_old_steps: int) -> None:
    missing = initialize(learner.model, pretrained)
    variables = learner.model.named_weights()
    loaded = len(variables) - len(missing)
    logging.info("loaded %d variables from %s", loaded, pretrained.source)
    if pretrained.extension:
        for name, fact in pretrained.extension.describe(pretrained.config).items():
            logging.info("%s: %s", name, fact)
    if missing:
        logging.info("%d start from random values: %s", len(missing), ", ".join(missing))
        if freeze_old_steps and any(name.startswith("cls/predictions/") for name in missing):
            logging.warning(
                "the masked LM's head stays random until step %d, so new rows learn little before: "
                "leave out --freeze_old_steps, or give a BERT with a head",
                freeze_old_steps,
            )
    unused = [name for name in pretrained.weights if name not in variables]
    if unused := [*unused, *pretrained.ignored]:
        logging.info("not used: %s", ", ".join(unused))


def _sha256_of_weights(learner: Learner) -> str:
    digest = hashlib.sha256()
    for weight in learner.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return digest.hexdigest()


def _check_options(
    run_dir: Location, state: TrainingState, new: TrainingOptions, remedy: str
) -> None:
    """Refuses options with which a run cannot go on."""
    step, frozen = state.step, "freeze_old_steps"
    old = {frozen: _DEFAULTS[frozen], **state.options}  # earlier builds did not know it
    is_allowed = {
        name: old.get(name) == getattr(new, name) for name in ("random_seed", "optimizer")
    }
    # Adam's correction counts the updates that each moment has seen.
    begun_with = old[frozen]
    is_allowed[frozen] = min(begun_with, step) == min(new.freeze_old_steps, step)
    may_end = f", which may end at step {step} or later" if step < begun_with else ""
    for name, is_so in is_allowed.items():
        if not is_so:
            raise UserError(
                f"{run_dir} was begun with --{name}={old.get(name)}"
                f"{may_end if name == frozen else ''}: {remedy} this run as --init_checkpoint, to "
                "start from its weights alone"
            )


def _log_changes(old: Mapping[str, Any], new: TrainingOptions) -> None:
    # An earlier build did as the defaults say where it had no option.
    old = _DEFAULTS | dict(old)
    for name, value in dataclasses.asdict(new).items():
        if old[name] != value:
            logging.warning("changed: --%s was %s, is %s", name, old[name], value)
