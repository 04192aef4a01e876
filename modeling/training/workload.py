"""How much an update has to do: its sequences and tokens, and the FLOPs of its instances."""

from modeling.config import BertConfig
from pipeline.manifest import Manifest
from pipeline.records import RowLimits


def flops_per_instance(config: BertConfig, manifest: Manifest, row: RowLimits) -> float:
    """The FLOPs of a record's forward and backward pass, see `BertConfig.flops_per_instance`.

    A row of packed sequences counts with the means of the train split.

    Args:
      config: the model's size.
      manifest: that of the data.
      row: the most that a record of a batch holds.
    """
    if row.sequences == 1:
        return config.flops_per_instance(row.tokens, row.predictions)
    train = manifest.statistics["train"]
    return config.flops_per_instance(
        row.tokens,
        row.predictions,
        train["sequences"] / train["instances"],
        train["attended_pairs"] / train["instances"],
    )


def describe_update(manifest: Manifest, batch_size: int) -> str:
    """The sequences and the tokens of an update, for people.

    Args:
      manifest: that of a data set with training instances.
      batch_size: B, the number of instances per update.
    """
    row, shards = manifest.row_limits, manifest.shards_of("train")
    updates = sum(shard.instances for shard in shards) / batch_size
    tokens = sum(shard.tokens for shard in shards) / updates
    sequences = f"{batch_size:,} sequences"
    if row.sequences > 1:
        mean = manifest.statistics["train"]["sequences"] / updates
        sequences = f"{batch_size:,} rows with about {mean:,.1f} sequences"
    positions = batch_size * row.tokens
    return f"{sequences}, about {tokens:,.0f} real tokens in {positions:,} positions"
