"""Where a data set is made: unfinished parts apart, final names for what is whole."""

import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest

IN_PROGRESS_NAME = "in_progress"


class Directories:
    """The output directory and, until the data set is finished, the folder of its unfinished parts."""

    def __init__(self, output_dir: Path):
        self.output = output_dir.absolute()
        self.in_progress = self.output / IN_PROGRESS_NAME
        self.tokenized = self.in_progress / "tokenized"
        self.shards = self.in_progress / "shards"
        self.vocabulary = self.in_progress / VOCABULARY_NAME
        self.results = self.in_progress / "results.json"

    def prepare(self, vocab_file: Path, overwrite: bool) -> None:
        """Makes room: what an unfinished run left is removed, and a data set if asked.

        Raises:
          UserError: there is a data set and `overwrite` is off, the directory holds something else,
            or it is not writable.
        """
        if (self.output / MANIFEST_NAME).exists() and not overwrite:
            raise UserError(
                f"{self.output} already holds a data set: give another --output_dir, or --overwrite "
                "to replace it"
            )
        is_ours = (self.output / MANIFEST_NAME).exists() or self.in_progress.exists()
        if self.output.is_dir() and any(self.output.iterdir()) and not is_ours:
            raise UserError(
                f"{self.output} holds files that are no data set: give an empty --output_dir"
            )
        try:
            self._remove_data_set()
            self.tokenized.mkdir(parents=True)
            self.shards.mkdir()
            # The workers' copy: the output directory is where all of them can reach.
            shutil.copyfile(vocab_file, self.vocabulary)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.output}: {error.strerror}; give another --output_dir"
            ) from error

    def finish(self, manifest: Manifest) -> None:
        """Makes the directory a data set: the vocabulary in its place, the manifest last."""
        self.vocabulary.replace(self.output / VOCABULARY_NAME)
        manifest.write(self.output)
        shutil.rmtree(self.in_progress)

    def discard(self) -> None:
        """After a failure: leaves nothing that could be taken for a data set."""
        self._remove_data_set()

    def _remove_data_set(self) -> None:
        (self.output / MANIFEST_NAME).unlink(missing_ok=True)
        for split in ("train", "eval"):
            for shard in self.output.glob(f"{split}-*-of-*.tfrecord"):
                shard.unlink()
        (self.output / VOCABULARY_NAME).unlink(missing_ok=True)
        shutil.rmtree(self.in_progress, ignore_errors=True)
