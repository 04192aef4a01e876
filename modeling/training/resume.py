"""Where training begins, or goes on: at the run's newest checkpoint, at pretrained weights, or at random ones."""

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
    """Sets all variables as they are where training goes on, or begins.

    Args:
      run_dir: the run.
      learner: with the variables.
      options: how training goes on.
      pretrained: the weights that a new run starts from, in place of random ones.
      group: the processes, which all start alike.

    Raises:
      UserError: the run cannot go on with these options, all its checkpoints are damaged, or not all
        processes see them or start with the same weights.
    """
    found = load_newest_checkpoint(run_dir, learner) if group.is_first else None
    # What process 0 has found good, all others load.
    name = group.gather(found and found[0].name)[0]
    if name and not group.is_first:
        checkpoint = run_dir / CHECKPOINTS_NAME / name
        if not checkpoint.exists():
            raise UserError(
                f"{checkpoint}, from which process 0 goes on, does not exist here: all hosts have to share "
                "the run's directory"
            )
        found = checkpoint, load_checkpoint(checkpoint, learner)
    state = TrainingState()
    if found:
        checkpoint, state = found
        logging.info("going on from %s", checkpoint)
        _check_options(run_dir, state.options, dataclasses.asdict(options))
    elif pretrained:
        _start_from(pretrained, learner)
        state = TrainingState(started_from=pretrained.source)
    if group.num_processes > 1:
        group.check_same(
            {
                "the model": learner.model.config.to_json(),
                "the weights to start from": f"SHA-256 {_sha256_of_weights(learner)}",
            }
        )
    return dataclasses.replace(state, options=dataclasses.asdict(options))


def _start_from(pretrained: Pretrained, learner: Learner) -> None:
    left = initialize(learner.model, pretrained)
    loaded = len(learner.model.named_weights()) - len(left)
    logging.info("%d variables start as those of %s", loaded, pretrained.source)
    if left:
        logging.info("%d are not there and start anew: %s", len(left), ", ".join(left))
    if pretrained.ignored:
        logging.info("of no use here: %s", ", ".join(pretrained.ignored))


def _sha256_of_weights(learner: Learner) -> str:
    digest = hashlib.sha256()
    for weight in learner.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return digest.hexdigest()


def _check_options(run_dir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses what a run cannot go on with, and tells of all else that has changed."""
    for name in ("random_seed", "optimizer"):
        if old[name] != new[name]:
            raise UserError(
                f"{run_dir} was begun with --{name}={old[name]}: go on with that, or give another "
                "--output_dir, with this run as --init_checkpoint if it is to start from its weights"
            )
    for name, value in new.items():
        if old.get(name) != value:
            logging.warning("changed: --%s was %s, is %s", name, old.get(name), value)
