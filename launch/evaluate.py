"""Masked-LM and next-sentence loss and accuracy of a run's newest checkpoint on the eval shards.

Printed, and written to eval_results.json of the run.
"""

from pathlib import Path

from absl import flags

from launch import backend
from modeling.training_options import TrainingOptions
from pipeline.manifest import DataSet

SHARED_FLAGS = (backend,)

_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "The run: the --output_dir of `clozemill pretrain`.", required=True
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set, made with --eval_fraction above 0.", required=True
)
_EVAL_BATCH_SIZE = flags.DEFINE_integer(
    "eval_batch_size",
    TrainingOptions.eval_batch_size,
    "Sequences of a batch; no influence on the results.",
    lower_bound=1,
)


def main() -> None:
    """Evaluates and prints the results."""
    with backend.backend():
        from modeling.training.evaluation import evaluate  # noqa: PLC0415 - after the backend is chosen

    data_set = DataSet.read(Path(_DATA_DIR.value))
    results = evaluate(Path(_RUN_DIR.value), data_set, _EVAL_BATCH_SIZE.value)
    for name, value in results.items():
        print(f"{name:<24} {value:.6g}")
