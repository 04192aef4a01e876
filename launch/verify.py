"""Reads a whole data set and compares it with its manifest: checksums, counts, vocabulary.

It exits with 1 and prints a line for every file that differs.
"""

import sys
from pathlib import Path

from absl import flags

from launch.messages import print_error
from pipeline.manifest import DataSet, Manifest
from pipeline.verification import verify

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `clozemill generate`.", required=True
)


def main() -> None:
    """Prints that the data set is intact, or a line for each difference."""
    directory = Path(_DATA_DIR.value)
    data_set = DataSet(directory, Manifest.read(directory))
    if differences := list(verify(data_set)):
        for difference in differences:
            print_error("clozemill verify", difference)
        sys.exit(1)
    num_shards = len(data_set.manifest.shards)
    print(f"{data_set.directory}: {num_shards} shards match the manifest")
