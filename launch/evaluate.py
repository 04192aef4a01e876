"""Computes a trained BERT's masked-LM and next-sentence loss and accuracy on the eval shards.

It prints the results. Those of a run are also written to the run's eval_results.json.
"""

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
    print(f"{'checkpoint':<24} {pretrained.source}")
    is_order = pretrained.config.sentence_pairs == SentencePairs.ORDER

    def name_of(key: str) -> str:
        return key.replace("next_sentence", "sentence_order") if is_order else key

    corpora = results.pop("corpora", {})
    for key, value in results.items():
        print(f"{name_of(key):<24} {value if isinstance(value, str) else format(value, '.6g')}")
    # A corpus may have no masked word in its eval instances, so its figures may be fewer.
    keys = list(dict.fromkeys(key for figures in corpora.values() for key in figures))
    if corpora:
        print(f"\n{'corpus':<24} {'  '.join(map(name_of, keys))}")
    for corpus, figures in corpora.items():
        cells = [
            f"{format(figures[key], '.6g') if key in figures else '-':<{len(name_of(key))}}"
            for key in keys
        ]
        print(f"{corpus:<24} {'  '.join(cells)}".rstrip())
