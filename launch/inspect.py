"""Shows instances of a data set as text.

A masked piece is shown as {what the model reads → what it has to find}.
"""

from pathlib import Path

from absl import flags

from modeling.input import batches_in_order, readable
from pipeline.inspection import describe_instance
from pipeline.manifest import VOCABULARY_NAME, Manifest
from pipeline.tokenization import Vocabulary

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `clozemill generate`.", required=True
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 5, "How many instances of the first shard to show.", lower_bound=1
)


def main() -> None:
    """Prints the first instances of the first shard that has any."""
    data_dir = Path(_DATA_DIR.value)
    manifest = Manifest.read(data_dir)
    vocabulary = Vocabulary(data_dir / VOCABULARY_NAME)
    shard = next(shard for shard in manifest.shards if shard.instances)
    batches = batches_in_order(data_dir, [shard], manifest, batch_size=1)
    for number, batch in enumerate(readable(batches.take(_NUM_EXAMPLES.value))):
        instance = {name: values.numpy()[0] for name, values in batch.items()}
        print(f"{shard.name}, instance {number}: {describe_instance(instance, vocabulary)}\n")
