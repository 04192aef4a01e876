"""The directories in which a data set is made.

Unfinished files are kept in a separate folder inside the output directory. A complete file moves to
its final name and gets a receipt (see `pipeline.receipts`), so that no later run makes it again.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.json_files import DamagedFileError, read_json, write_json
from pipeline.manifest import FLAGS_NAME, MANIFEST_NAME, REPORT_NAME, VOCABULARY_NAME, Manifest
from pipeline.receipts import files_with_receipt

IN_PROGRESS_NAME = "clozemill_in_progress"
_PLAN_NAME = "plan.json"
_OTHER_FILES = {
    "input_stamps_sha256": "different input files or older versions of them",
    "vocab_sha256": "a different vocabulary",
}

Plan = Mapping[str, Any]
"""Everything that determines the content of a stage's files, as JSON values."""


class Directories:
    """The output directory, its folder for unfinished files, and the tokenized corpus.

    Args:
      output_dir: the data set's directory.
      tokenized_dir: directory that holds, or will hold, the tokenized corpus; None keeps the corpus
        only until the data set is finished.
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
        """The file for a portion's tokenized documents."""
        return self.tokenized / f"split-{portion_number:05d}.parquet"

    def duplicates_file(self, partition: int) -> Path:
        """The file for the ids of the duplicates in a partition of the tokenized documents."""
        return self.tokenized / f"duplicates-{partition:05d}.parquet"

    def prepare(
        self, vocab_file: Path, tokenization_plan: Plan, shard_plan: Plan, overwrite: bool
    ) -> None:
        """Prepares the directories for a new run, or for resuming an unfinished one.

        An unfinished run can be resumed if its plans are the same.

        Raises:
          UserError: a directory is not writable or holds files that must not be replaced.
        """
        vocabulary = vocab_file.read_bytes()  # read first: discarding the data set may delete it
        try:
            self._make_room(tokenization_plan, shard_plan, overwrite)
            for directory, plan in (
                (self.receipts, shard_plan),
                (self.tokenized, tokenization_plan),
            ):
                directory.mkdir(parents=True, exist_ok=True)
                write_json(directory / _PLAN_NAME, plan)
            self.unfinished_shards.mkdir(exist_ok=True)
            # The workers read this copy, because all of them can reach the output directory.
            self.vocabulary.write_bytes(vocabulary)
        except OSError as error:
            raise _cannot_write(error, self.output) from error

    def _make_room(self, tokenization_plan: Plan, shard_plan: Plan, overwrite: bool) -> None:
        is_finished = _is_data_set(self.output)
        is_ours = is_finished or self.in_progress.exists()
        if self.output.is_dir() and any(self.output.iterdir()) and not is_ours:
            raise UserError(
                f"{self.output} holds files that are not a data set: "
                "set --output_dir to an empty directory"
            )
        if not self.tokenized.is_relative_to(self.in_progress):
            self._check_tokenized(tokenization_plan)
        is_partly_discarded = is_ours and not is_finished and not self._plan.exists()
        if overwrite or is_partly_discarded:
            self.discard()
        elif is_finished:
            # A run that was killed at its very end leaves this folder.
            shutil.rmtree(self.in_progress, ignore_errors=True)
            raise UserError(
                f"{self.output} already holds a data set: choose another --output_dir, or pass "
                "--overwrite to replace it"
            )
        differences = _differences(self.receipts, shard_plan)
        if differences and files_with_receipt(self.receipts, "*.tfrecord"):
            raise UserError(
                f"{self.output} holds an unfinished data set made with {'; '.join(differences)}: "
                "pass --overwrite to start over"
            )
        if differences:
            self.discard()  # no shard is finished yet, so no work is lost that cannot be redone

    def _check_tokenized(self, plan: Plan) -> None:
        """Checks that a tokenized corpus kept in its own directory, if any, has the same plan."""
        differences = _differences(self.tokenized, plan)
        if differences:
            raise UserError(
                f"{self.tokenized} holds a tokenized corpus made with {'; '.join(differences)}: "
                "choose another --tokenized_dir, or remove this one"
            )
        has_plan = (self.tokenized / _PLAN_NAME).exists()
        if self.tokenized.is_dir() and any(self.tokenized.iterdir()) and not has_plan:
            raise UserError(
                f"{self.tokenized} holds files that are not a tokenized corpus: "
                "set --tokenized_dir to an empty directory"
            )

    def finish(self, manifest: Manifest) -> None:
        """Turns the output directory into a data set: adds the vocabulary, then the manifest."""
        self.vocabulary.replace(self.output / VOCABULARY_NAME)
        manifest.write(self.output)
        shutil.rmtree(self.in_progress)

    def discard(self) -> None:
        """Removes the data set, finished or not, but no tokenized corpus in its own directory."""
        if _is_data_set(self.output) or self.in_progress.exists():
            # If killed halfway, this leaves an unfinished data set without a plan. The next run
            # recognizes that state.
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
        f"cannot write to {error.filename or directory}: {error.strerror}; choose another directory"
    )


def _is_data_set(directory: Path) -> bool:
    try:
        Manifest.read(directory)
    except UserError:
        return False
    return True


def _differences(directory: Path, wanted: Plan) -> list[str]:
    """How the plan in a directory differs from `wanted`; empty if the directory has no plan."""
    try:
        found = read_json(directory / _PLAN_NAME, dict[str, Any])
    except FileNotFoundError:
        return []
    except DamagedFileError as error:
        raise UserError(f"{error}; remove the folder {directory}") from error
    wanted = json.loads(json.dumps(wanted))  # plain values, as in the file
    return [
        _OTHER_FILES.get(name, f"{name} {found.get(name)!r}, not {wanted.get(name)!r}")
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
