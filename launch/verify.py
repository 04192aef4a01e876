"""Reads a whole data set and compares it with its manifest: checksums, counts, vocabulary.

It exits with 1 and prints a line for every file that differs.
"""

from pathlib import Path

from absl import flags

from pipeline.errors import UserError
from pipeline.manifest import DataSet, Manifest
from pipeline.verification import verify

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `clozemill generate`.", required=True
)


def main() -> None:
    """Prints that the data set is intact, or raises an error that lists the differences."""
    directory = Path(_DATA_DIR.value)
    data_set = DataSet(directory, Manifest.read(directory))
    if differences := list(verify(data_set)):
        raise UserError("\n".join(differences))
    num_shards = len(data_set.manifest.shards)
    print(f"{data_set.directory}: {num_shards} shards match the manifest")
