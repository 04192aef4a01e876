"""How much an update has to do: its sequences and tokens, and the FLOPs of its instances."""

import numpy as np

from modeling.config import BertConfig
from modeling.training_options import TrainingOptions
from pipeline.errors import listed
from pipeline.manifest import Manifest
from pipeline.records import RowLimits

# Each may have a size of its own, for which a step is compiled.
_STRETCHES_OF_WARMUP = 6


class BatchSizes:
    """The batch size of each update, which follows from the update's number alone.

    During a warm-up, batches grow from a sixth of B to B, as ModernBERT's (Warner et al., 2024,
    "Smarter, Better, Faster, Longer"), in six stretches of as many steps. Each size is a multiple
    of what accumulation and devices divide.

    Args:
      options: the training options.
      num_replicas: the number of devices that share a batch.

    Attributes:
      whole: B, the batch size after the warm-up.
    """

    def __init__(self, options: TrainingOptions, num_replicas: int = 1):
        self.whole = options.train_batch_size
        self._warmup_steps = options.batch_size_warmup_steps
        multiple = options.gradient_accumulation_steps * num_replicas
        # The last step of each stretch, and its batch size.
        self._stretches = [
            (
                -(-self._warmup_steps * number // _STRETCHES_OF_WARMUP),
                max(self.whole * number // _STRETCHES_OF_WARMUP // multiple, 1) * multiple,
            )
            for number in range(1, _STRETCHES_OF_WARMUP + 1)
        ]

    def of(self, step: int) -> int:
        """The number of instances of an update, whose number counts from 1."""
        return next((size for last, size in self._stretches if step <= last), self.whole)

    def stretches(self, after: int, last: int) -> list[tuple[int, int]]:
        """The sizes of the updates from `after` + 1 to `last`, each with its number of updates."""
        found = []
        for end, size in (*self._stretches, (last, self.whole)):
            if (steps := min(end, last) - after) > 0:
                found.append((size, steps))
                after += steps
        return found

    def total(self, after: int, last: int) -> int:
        """The number of instances of the updates from `after` + 1 to `last`."""
        return sum(size * steps for size, steps in self.stretches(after, last))

    def each(self, after: int, last: int) -> np.ndarray | None:
        """The sizes of the updates from `after` + 1 to `last`; None if all have the whole size."""
        sizes, steps = np.array(self.stretches(after, last), np.int64).T
        return None if set(sizes) == {self.whole} else np.repeat(sizes, steps)

    def describe_warmup(self) -> str:
        """The sizes during a warm-up, for people; empty if there is none."""
        sizes = [f"{size:,}" for size, _ in self.stretches(0, self._warmup_steps)]
        described = listed(list(dict.fromkeys(sizes)))
        return (
            f"over the first {self._warmup_steps:,} steps, batches of {described}" if sizes else ""
        )


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


def describe_update(manifest: Manifest, sizes: BatchSizes) -> str:
    """The sequences and the tokens of an update, for people.

    Args:
      manifest: that of a data set with training instances.
      sizes: the number of instances per update.
    """
    batch_size, warmup = sizes.whole, sizes.describe_warmup()
    row, shards = manifest.row_limits, manifest.shards_of("train")
    updates = sum(shard.instances for shard in shards) / batch_size
    tokens = sum(shard.tokens for shard in shards) / updates
    sequences = f"{batch_size:,} sequences"
    if row.sequences > 1:
        mean = manifest.statistics["train"]["sequences"] / updates
        sequences = f"{batch_size:,} rows with about {mean:,.1f} sequences"
    positions = batch_size * row.tokens
    described = f"{sequences}, about {tokens:,.0f} real tokens in {positions:,} positions"
    return f"{described}; {warmup}" if warmup else described
