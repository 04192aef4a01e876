"""Masked-LM and next-sentence loss and accuracy on the eval shards."""

import json
from collections import defaultdict
from pathlib import Path

from modeling.checkpoints import latest_checkpoint, load_weights
from modeling.input import evaluation_batches, readable
from modeling.losses import losses_and_accuracies
from modeling.pretraining import BertForPreTraining
from modeling.run import check_length, check_same_vocabulary, read_run
from modeling.tensorflow_step import eval_step
from pipeline.files import write_whole
from pipeline.manifest import Manifest

RESULTS_NAME = "eval_results.json"


def evaluate(run_dir: Path, data_dir: Path, batch_size: int) -> dict[str, float]:
    """Evaluates the run's newest checkpoint on all eval instances.

    Returns:
      `step` and the four losses and accuracies; also written to `eval_results.json` of the run.

    Raises:
      UserError: the run or the data set is unusable.
    """
    config, trained_on = read_run(run_dir)
    manifest = Manifest.read(data_dir)
    check_same_vocabulary(run_dir, trained_on, data_dir, manifest)
    check_length(config, data_dir, manifest)
    batches = evaluation_batches(data_dir, manifest, batch_size)
    model = BertForPreTraining(config)
    step = load_weights(latest_checkpoint(run_dir), model)
    step_function = eval_step(model)
    sums: dict[str, float] = defaultdict(float)
    for batch in readable(batches):
        for name, value in step_function(batch).items():
            sums[name] += float(value)
    results = {"step": step, **losses_and_accuracies(sums)}
    write_whole(run_dir / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
    return results
