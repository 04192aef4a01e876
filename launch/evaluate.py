"""Computes a trained BERT's masked-LM and next-sentence loss and accuracy on the eval shards.

It prints the results, and those of each corpus of a mixture. Those of a run are also written to the
run's eval_results.json.
"""

from collections.abc import Mapping
from typing import Any

from absl import flags

from launch import backend, cache_flags, checkpoint_flags
from modeling.shard_cache import in_cache
from modeling.training_options import TrainingOptions
from pipeline.manifest import DataSet
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import location

SHARED_FLAGS = (backend, checkpoint_flags, cache_flags)

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The data set, generated with --eval_fraction greater than 0, or adopted with --eval_file; or "
    "its URL on a store.",
    required=True,
)
_EVAL_BATCH_SIZE = flags.DEFINE_integer(
    "eval_batch_size",
    TrainingOptions.eval_batch_size,
    "The number of sequences, or packed rows, per batch; it does not change the results.",
    lower_bound=1,
    upper_bound=(1 << 31) - 1,
)


def main() -> None:
    """Evaluates and prints the results."""
    with backend.backend():
        from modeling.training.evaluation import evaluate  # noqa: PLC0415 - after the backend is chosen

    data_set = DataSet.read(location(_DATA_DIR.value))
    data_set = in_cache(data_set, cache_flags.shard_cache())
    pretrained = checkpoint_flags.read_given()
    results = evaluate(pretrained, data_set, _EVAL_BATCH_SIZE.value)
    is_order = pretrained.config.sentence_pairs == SentencePairs.ORDER
    print(describe({"checkpoint": str(pretrained.source), **results}, is_order))


def describe(results: Mapping[str, Any], is_order: bool) -> str:
    """The results as lines; those of the corpora of a mixture follow as a table.

    Args:
      results: as `modeling.training.evaluation.evaluate` returns them.
      is_order: whether those of pairs are of the order of sentences.
    """

    def name_of(key: str) -> str:
        return key.replace("next_sentence", "sentence_order") if is_order else key

    corpora = results.get("corpora", {})
    lines = [
        f"{name_of(key):<24} {value if isinstance(value, str) else format(value, '.6g')}"
        for key, value in results.items()
        if key != "corpora"
    ]
    # A corpus may have no masked word in its eval instances, so its figures may be fewer.
    keys = list(dict.fromkeys(key for figures in corpora.values() for key in figures))
    if corpora:
        lines += ["", f"{'corpus':<24} {'  '.join(map(name_of, keys))}"]
    for corpus, figures in corpora.items():
        cells = (
            f"{format(figures[key], '.6g') if key in figures else '-':<{len(name_of(key))}}"
            for key in keys
        )
        lines.append(f"{corpus:<24} {'  '.join(cells)}".rstrip())
    return "\n".join(lines)
