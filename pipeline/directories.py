"""The directories in which a data set is made.

Unfinished files are kept in a separate folder inside the output directory; on a store, they do not
appear. A complete file moves to its final name and gets a receipt (see `pipeline.receipts`), so
that no later run makes it again. A run may be killed between any two of the steps below: the next
one finds a state that it knows.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.buckets import Bucket
from pipeline.errors import UserError
from pipeline.files import (
    make_directory,
    remove_directory,
    remove_leftovers,
    remove_unfinished_uploads,
    whole_file,
    write_whole,
)
from pipeline.json_files import DamagedFileError, read_json, write_json
from pipeline.manifest import (
    FLAGS_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    REPORT_NAME,
    VOCABULARY_NAME,
    Manifest,
)
from pipeline.receipts import Plan, differences, files_with_receipt
from pipeline.storage import Location

IN_PROGRESS_NAME = "clozemill_in_progress"
# The plan in the folder for unfinished files, without which these count for nothing.
_PLAN = f"receipts/{PLAN_NAME}"
# In that folder while a data set is being removed, so that its rest is known for one.
_DISCARDED_NAME = "discarded"
_OVERWRITE = "pass --overwrite to make the data set again"


class Directories:
    """The output directory, its folder for unfinished files, and the tokenized corpus.

    Args:
      output_dir: the data set's directory.
      tokenized_dir: directory that holds, or will hold, the tokenized corpus; None keeps the corpus
        only until the data set is finished.
      duplicates_name: the name, in the tokenized corpus, of the folder for its duplicates, which
        tells what counts as one; None if none are looked for.

    Attributes:
      finds_duplicates: whether duplicates are looked for.
    """

    def __init__(
        self,
        output_dir: Location,
        tokenized_dir: Location | None = None,
        duplicates_name: str | None = None,
    ):
        self.output = output_dir.absolute()
        self.in_progress = self.output / IN_PROGRESS_NAME
        self._keeps_tokenized = tokenized_dir is not None
        self.tokenized = (tokenized_dir or self.in_progress / "tokenized").absolute()
        self.finds_duplicates = duplicates_name is not None
        self.duplicates = self.tokenized / (duplicates_name or "duplicates")
        self.receipts = self.in_progress / "receipts"
        self.mixing_plan = self.receipts / "mixing.json"
        self.unfinished_shards = self.in_progress / "shards"
        self.vocabulary = self.in_progress / VOCABULARY_NAME
        self.sign_of_life = self.in_progress / "sign_of_life"
        self._plan = self.in_progress / _PLAN

    def tokenized_file(self, portion_number: int) -> Location:
        """The file for a portion's tokenized documents."""
        return self.tokenized / f"split-{portion_number:05d}.parquet"

    def dropped_file(self, tokenized_file: Location) -> Location:
        """The list of those of a portion's tokenized documents that are dropped as duplicates."""
        return self.duplicates / tokenized_file.name

    def dropped_files(self, tokenized_files: Iterable[Location]) -> list[Location]:
        """These lists of some portions, each once; none if no duplicates are looked for."""
        if not self.finds_duplicates:
            return []
        return [self.dropped_file(path) for path in dict.fromkeys(tokenized_files)]

    def measured_file(self, bucket: Bucket) -> Location:
        """The file for the sizes of a bucket's documents, if they belong to a mixture."""
        return self.receipts / f"documents-{bucket.name}.parquet"

    def examples_of_output(self) -> list[Location]:
        """Paths as of every kind of file in the output directory."""
        names = (MANIFEST_NAME, VOCABULARY_NAME, FLAGS_NAME, PLAN_NAME, REPORT_NAME)
        shards = [f"{split}-00000-of-00001.tfrecord" for split in ("train", "eval")]
        return [self.output / name for name in (*names, *shards)]

    def examples_of_tokenized(self) -> list[Location]:
        """Paths as of every kind of file of the tokenized corpus."""
        return [self.tokenized_file(0), self.tokenized / PLAN_NAME]

    def find_finished(self, shard_plan: Plan) -> Manifest | None:
        """The manifest of the data set, if it is finished and was made by the same plan.

        Raises:
          UserError: the directory holds another data set, or a damaged one.
        """
        if not (self.output / MANIFEST_NAME).exists() or not self._is_ours():
            return None
        manifest = Manifest.read(self.output)
        others = ["an earlier build of Clozemill"]
        if (self.output / PLAN_NAME).exists():
            others = _differences(self.output / PLAN_NAME, shard_plan, _OVERWRITE)
        if self.in_progress.exists():  # of a run that was killed at its very end
            remove_directory(self.in_progress, _PLAN)
        if others:
            raise UserError(
                f"{self.output} already holds a data set, made with {'; '.join(others)}: "
                "choose another --output_dir, or pass --overwrite to replace it"
            )
        return manifest

    def prepare(
        self, vocabulary: bytes, tokenization_plan: Plan, shard_plan: Plan, overwrite: bool
    ) -> None:
        """Prepares the directories for a new run, or for resuming an unfinished one.

        An unfinished run can be resumed if its plans are the same.

        Args:
          vocabulary: the content of the data set's vocab.txt.
          tokenization_plan: what determines the tokenized corpus.
          shard_plan: what determines the shards.
          overwrite: whether to replace what is there.

        Raises:
          UserError: a directory is not writable or holds files that must not be replaced.
        """
        try:
            self.remove_leftovers()
            if self.in_progress.exists():
                remove_unfinished_uploads(self.output)  # of workers that were killed
            self._make_room(tokenization_plan, shard_plan, overwrite)
            for directory, plan in (
                (self.receipts, shard_plan),
                (self.tokenized, tokenization_plan),
            ):
                make_directory(directory)
                write_json(directory / PLAN_NAME, plan)
            if self.finds_duplicates:
                make_directory(self.duplicates)
            make_directory(self.unfinished_shards)
            self.sign_of_life.unlink(missing_ok=True)
            # The workers read this copy, because all of them can reach the output directory.
            with whole_file(self.vocabulary) as temporary:
                temporary.write_bytes(vocabulary)
        except OSError as error:
            raise _cannot_write(error, self.output) from error

    def remove_leftovers(self) -> None:
        """Removes the temporary files that killed workers have left."""
        folders = (self.receipts, self.unfinished_shards, self.tokenized, self.duplicates)
        for directory in folders:
            remove_leftovers(directory)

    def _make_room(self, tokenization_plan: Plan, shard_plan: Plan, overwrite: bool) -> None:
        is_ours = self._is_ours()
        if self.output.is_dir() and any(self.output.iterdir()) and not is_ours:
            raise UserError(
                f"{self.output} holds files that are not a data set: "
                "set --output_dir to an empty directory"
            )
        if self._keeps_tokenized:
            self._check_tokenized(tokenization_plan)
        is_partly_discarded = is_ours and not self._plan.exists()
        if overwrite or is_partly_discarded:
            self.discard()
        others = _differences(self._plan, shard_plan, _OVERWRITE)
        if others and files_with_receipt(self.receipts, "*.tfrecord"):
            raise UserError(
                f"{self.output} holds an unfinished data set made with {'; '.join(others)}: "
                "pass --overwrite to start over"
            )
        if others:
            self.discard()  # no shard is finished yet, so no work is lost that cannot be redone

    def _check_tokenized(self, plan: Plan) -> None:
        """Checks that a tokenized corpus kept in its own directory, if any, has the same plan."""
        advice = "choose another --tokenized_dir, or remove this one"
        others = _differences(self.tokenized / PLAN_NAME, plan, advice)
        if others:
            raise UserError(
                f"{self.tokenized} holds a tokenized corpus made with {'; '.join(others)}: {advice}"
            )
        has_plan = (self.tokenized / PLAN_NAME).exists()
        if self.tokenized.is_dir() and any(self.tokenized.iterdir()) and not has_plan:
            raise UserError(
                f"{self.tokenized} holds files that are not a tokenized corpus: "
                "set --tokenized_dir to an empty directory"
            )

    def finish(self, manifest: Manifest) -> None:
        """Turns the output directory into a data set: adds vocabulary and plan, then the manifest.

        From the manifest on it is finished: a run that is killed later leaves a folder to remove.
        """
        for source, name in ((self.vocabulary, VOCABULARY_NAME), (self._plan, PLAN_NAME)):
            with whole_file(self.output / name) as temporary:
                temporary.write_bytes(source.read_bytes())
        manifest.write(self.output)
        remove_directory(self.in_progress, _PLAN)

    def discard(self) -> None:
        """Removes the data set, finished or not, but no tokenized corpus in its own directory."""
        if self._is_ours():
            # If killed halfway, this leaves an unfinished data set without a plan. The next run
            # recognizes that state.
            make_directory(self.in_progress)
            write_whole(self.in_progress / _DISCARDED_NAME, "")
            self._plan.unlink(missing_ok=True)
            for name in (MANIFEST_NAME, VOCABULARY_NAME, FLAGS_NAME, PLAN_NAME, REPORT_NAME):
                (self.output / name).unlink(missing_ok=True)
            for shard in self._shards():
                shard.unlink(missing_ok=True)
            remove_directory(self.in_progress, _PLAN)

    def _is_ours(self) -> bool:
        """Whether the output directory holds a data set, finished or not, perhaps a damaged one.

        The records of an adopted one belong to others.
        """
        if self.in_progress.exists() or not (self.output / MANIFEST_NAME).exists():
            return self.in_progress.exists()
        try:
            return not Manifest.read(self.output).is_adopted
        except UserError:
            return any(self._shards())

    def _shards(self) -> Iterator[Location]:
        for split in ("train", "eval"):
            yield from self.output.glob(f"{split}-*-of-*.tfrecord")


def _cannot_write(error: OSError, directory: Location) -> UserError:
    return UserError(
        f"cannot write to {error.filename or directory}: {error.strerror}; choose another directory"
    )


def _differences(path: Location, wanted: Plan, advice: str) -> list[str]:
    """How the plan in a file differs from `wanted`; empty if there is no such file.

    Raises:
      UserError: the file is damaged; the message gives the advice.
    """
    try:
        return differences(read_json(path, dict[str, Any]), wanted)
    except FileNotFoundError:
        return []
    except DamagedFileError as error:
        raise UserError(f"{error}; {advice}") from error
