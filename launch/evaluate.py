"""Computes a run's masked-LM and next-sentence loss and accuracy on the eval shards.

It uses the newest checkpoint, prints the results and writes them to the run's eval_results.json.
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
    "data_dir",
    None,
    "The data set, generated with --eval_fraction greater than 0, or adopted with --eval_file.",
    required=True,
)
_EVAL_BATCH_SIZE = flags.DEFINE_integer(
    "eval_batch_size",
    TrainingOptions.eval_batch_size,
    "The number of sequences per batch; it does not change the results.",
    lower_bound=1,
    upper_bound=(1 << 31) - 1,
)


def main() -> None:
    """Evaluates and prints the results."""
    with backend.backend():
        from modeling.training.evaluation import evaluate  # noqa: PLC0415 - after the backend is chosen

    data_set = DataSet.read(Path(_DATA_DIR.value))
    results = evaluate(Path(_RUN_DIR.value), data_set, _EVAL_BATCH_SIZE.value)
    for name, value in results.items():
        print(f"{name:<24} {value:.6g}")
