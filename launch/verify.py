"""Reads a whole data set and compares it with its manifest: checksums, counts, vocabulary.

Exits with 1 and a line for every file that differs.
"""

from pathlib import Path

from absl import flags

from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.verification import verify

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data set: the --output_dir of `clozemill generate`.", required=True
)


def main() -> None:
    """Verifies and says that all is well, or what is not."""
    data_dir = Path(_DATA_DIR.value)
    if differences := list(verify(data_dir)):
        raise UserError("\n".join(differences))
    shards = Manifest.read(data_dir).shards
    print(f"{data_dir}: {len(shards)} shards as in the manifest")
