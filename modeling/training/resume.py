"""The first step: from the run's newest checkpoint, pretrained weights, or random weights."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from modeling.checkpoints.pretrained import Pretrained, initialize
from modeling.checkpoints.run_checkpoints import (
    CHECKPOINTS_NAME,
    TrainingState,
    load_checkpoint,
    load_newest_checkpoint,
)
from modeling.job.group import ProcessGroup
from modeling.step.learner import Learner
from modeling.training_options import TrainingOptions
from pipeline.errors import UserError


def restore_or_begin(
    run_dir: Path,
    learner: Learner,
    options: TrainingOptions,
    pretrained: Pretrained | None,
    group: ProcessGroup,
) -> TrainingState:
    """Sets all variables to their values at the step where training resumes or begins.

    Args:
      run_dir: the run.
      learner: the variables.
      options: how training continues.
      pretrained: the weights that a new run starts from, instead of random ones.
      group: the processes, which all start alike.

    Raises:
      UserError: the run cannot resume with these options, all its checkpoints are damaged, or the
        processes do not all see them or do not start with the same weights.
    """
    found = load_newest_checkpoint(run_dir, learner) if group.is_first else None
    # All other processes load the checkpoint that process 0 has found intact.
    name = group.gather(found and found[0].name)[0]
    if name and not group.is_first:
        checkpoint = run_dir / CHECKPOINTS_NAME / name
        if not checkpoint.exists():
            raise UserError(
                f"{checkpoint}, from which process 0 resumes, does not exist here: all hosts must "
                "share the run's directory"
            )
        found = checkpoint, load_checkpoint(checkpoint, learner)
    state = TrainingState()
    if found:
        checkpoint, state = found
        logging.info("resuming from %s", checkpoint)
        _check_options(run_dir, state.options, dataclasses.asdict(options))
    elif pretrained:
        _begin_with(pretrained, learner)
        state = TrainingState(started_from=pretrained.source)
    if group.num_processes > 1:
        group.check_same(
            {
                "the model": learner.model.config.to_json(),
                "the weights to start from": f"SHA-256 {_sha256_of_weights(learner)}",
            }
        )
    return dataclasses.replace(state, options=dataclasses.asdict(options))


def _begin_with(pretrained: Pretrained, learner: Learner) -> None:
    missing = initialize(learner.model, pretrained)
    variables = learner.model.named_weights()
    loaded = len(variables) - len(missing)
    logging.info("loaded %d variables from %s", loaded, pretrained.source)
    if missing:
        logging.info("%d start from random values: %s", len(missing), ", ".join(missing))
    unused = [name for name in pretrained.weights if name not in variables]
    if unused := [*unused, *pretrained.ignored]:
        logging.info("not used: %s", ", ".join(unused))


def _sha256_of_weights(learner: Learner) -> str:
    digest = hashlib.sha256()
    for weight in learner.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return digest.hexdigest()


def _check_options(run_dir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses options that a run cannot resume with, and logs all others that have changed."""
    for name in ("random_seed", "optimizer"):
        if (begun_with := old.get(name)) != new[name]:
            raise UserError(
                f"{run_dir} was begun with --{name}={begun_with}: resume with that, or give "
                "another --output_dir (and this run as --init_checkpoint, to start from its "
                "weights)"
            )
    for name, value in new.items():
        if old.get(name) != value:
            logging.warning("changed: --%s was %s, is %s", name, old.get(name), value)
