"""Reads a whole data set and compares it with its manifest: checksums, counts, vocabulary.

It prints a line for every file that differs or does not belong there, and then exits with 1.
"""

from absl import flags

from pipeline.errors import UserError, in_one_line
from pipeline.manifest import DataSet, Manifest
from pipeline.storage import location
from pipeline.verification import verify

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The data set: the --output_dir of `generate` or `adopt`, a directory or a URL (s3://, gs://, "
    "az://).",
    required=True,
)


def main() -> None:
    """Prints that the data set is intact, or which files differ, which is an error."""
    directory = location(_DATA_DIR.value)
    data_set = DataSet(directory, Manifest.read(directory))
    num_differences = 0
    for difference in verify(data_set):
        print(in_one_line(difference), flush=True)
        num_differences += 1
    if num_differences:
        raise UserError(
            f"{num_differences} differences between {directory} and its manifest: generate or "
            "adopt it again, with --overwrite"
        )
    num_shards = len(data_set.manifest.shards)
    print(f"{data_set.directory}: {num_shards} shards match the manifest")
