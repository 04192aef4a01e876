"""Where a data set is made: unfinished files apart, final names for what is whole.

Unfinished files lie in a folder of their own inside the output directory. A file moves to its final
name when it is whole, and gets a receipt (see `pipeline.receipts`), so that it is not made again.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.manifest import FLAGS_NAME, MANIFEST_NAME, REPORT_NAME, VOCABULARY_NAME, Manifest
from pipeline.receipts import files_with_receipt

IN_PROGRESS_NAME = "clozemill_in_progress"
_PLAN_NAME = "plan.json"
_OTHER_FILES = {
    "input_stamps_sha256": "other input files, or before they were changed",
    "vocab_sha256": "another vocabulary",
}

Plan = Mapping[str, Any]
"""All that decides what is in the files of a stage, as JSON values."""


class Directories:
    """The output directory, the folder of its unfinished parts, and the tokenized corpus.

    Args:
      output_dir: the data set's directory.
      tokenized_dir: where the tokenized corpus is, or is to be kept; None keeps it only until the
        data set is finished.
    """

    def __init__(self, output_dir: Path, tokenized_dir: Path | None = None):
        self.output = output_dir.absolute()
        self.in_progress = self.output / IN_PROGRESS_NAME
        self.tokenized = (tokenized_dir or self.in_progress / "tokenized").absolute()
        self.receipts = self.in_progress / "receipts"
        self.unfinished_shards = self.in_progress / "shards"
        self.vocabulary = self.in_progress / VOCABULARY_NAME
        self._plan = self.receipts / _PLAN_NAME

    def tokenized_file(self, portion_number: int) -> Path:
        """The tokenized documents of a portion."""
        return self.tokenized / f"split-{portion_number:05d}.parquet"

    def duplicates_file(self, partition: int) -> Path:
        """The ids of the duplicates in a partition of the tokenized documents."""
        return self.tokenized / f"duplicates-{partition:05d}.parquet"

    def prepare(
        self, vocab_file: Path, tokenization_plan: Plan, shard_plan: Plan, overwrite: bool
    ) -> None:
        """Makes room, or finds out that an unfinished run of the same plans can go on.

        Raises:
          UserError: a directory holds something that is not to be replaced, or is not writable.
        """
        vocabulary = vocab_file.read_bytes()  # before it may be discarded with the data set
        try:
            self._make_room(tokenization_plan, shard_plan, overwrite)
            for directory, plan in (
                (self.receipts, shard_plan),
                (self.tokenized, tokenization_plan),
            ):
                directory.mkdir(parents=True, exist_ok=True)
                write_json(directory / _PLAN_NAME, plan)
            self.unfinished_shards.mkdir(exist_ok=True)
            # The workers' copy: the output directory is where all of them can reach.
            self.vocabulary.write_bytes(vocabulary)
        except OSError as error:
            raise _cannot_write(error, self.output) from error

    def _make_room(self, tokenization_plan: Plan, shard_plan: Plan, overwrite: bool) -> None:
        is_finished = _is_data_set(self.output)
        is_ours = is_finished or self.in_progress.exists()
        if self.output.is_dir() and any(self.output.iterdir()) and not is_ours:
            raise UserError(
                f"{self.output} holds files that are no data set: give an empty --output_dir"
            )
        if not self.tokenized.is_relative_to(self.in_progress):
            self._check_tokenized(tokenization_plan)
        is_partly_discarded = is_ours and not is_finished and not self._plan.exists()
        if overwrite or is_partly_discarded:
            self.discard()
        elif is_finished:
            shutil.rmtree(self.in_progress, ignore_errors=True)  # killed before it was removed
            raise UserError(
                f"{self.output} already holds a data set: give another --output_dir, or --overwrite "
                "to replace it"
            )
        differences = _differences(self.receipts, shard_plan)
        if differences and files_with_receipt(self.receipts, "*.tfrecord"):
            raise UserError(
                f"{self.output} holds an unfinished data set made with {'; '.join(differences)}: "
                "give --overwrite to start anew"
            )
        if differences:
            self.discard()  # nothing was made yet but what the same text would give again

    def _check_tokenized(self, plan: Plan) -> None:
        """Sees that the tokenized corpus kept apart, if there is one, is of the same plan."""
        differences = _differences(self.tokenized, plan)
        if differences:
            raise UserError(
                f"{self.tokenized} holds a tokenized corpus made with {'; '.join(differences)}: "
                "give another directory, or remove it"
            )
        has_plan = (self.tokenized / _PLAN_NAME).exists()
        if self.tokenized.is_dir() and any(self.tokenized.iterdir()) and not has_plan:
            raise UserError(
                f"{self.tokenized} holds files that are no tokenized corpus: give an empty "
                "--tokenized_dir"
            )

    def finish(self, manifest: Manifest) -> None:
        """Makes the directory a data set: the vocabulary in its place, the manifest last."""
        self.vocabulary.replace(self.output / VOCABULARY_NAME)
        manifest.write(self.output)
        shutil.rmtree(self.in_progress)

    def discard(self) -> None:
        """Removes the data set, finished or not, and nothing else; not a tokenized corpus apart."""
        if _is_data_set(self.output) or self.in_progress.exists():
            # Killed on the way, this must leave what is known for an unfinished data set of no plan.
            self.in_progress.mkdir(exist_ok=True)
            self._plan.unlink(missing_ok=True)
            for name in (MANIFEST_NAME, VOCABULARY_NAME, FLAGS_NAME, REPORT_NAME):
                (self.output / name).unlink(missing_ok=True)
            for split in ("train", "eval"):
                for shard in self.output.glob(f"{split}-*-of-*.tfrecord"):
                    shard.unlink()
            shutil.rmtree(self.in_progress, ignore_errors=True)


def _cannot_write(error: OSError, directory: Path) -> UserError:
    return UserError(
        f"cannot write to {error.filename or directory}: {error.strerror}; give another directory"
    )


def _is_data_set(directory: Path) -> bool:
    try:
        Manifest.read(directory)
    except UserError:
        return False
    return True


def _differences(directory: Path, wanted: Plan) -> list[str]:
    """In what the plan of the files in a directory differs from another; nothing without a plan."""
    found = read_json(directory / _PLAN_NAME)
    if found is None:
        return []
    wanted = json.loads(json.dumps(wanted))  # plain values, as in the file
    return [
        _OTHER_FILES.get(name, f"{name} {found.get(name)!r}, not {wanted.get(name)!r}")
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
