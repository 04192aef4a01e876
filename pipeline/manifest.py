"""The description of a finished data set: `manifest.json`, which is written last.

A directory without it is not a data set. The trainer reads lengths, vocabulary and shards from it,
so that users need not repeat them.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import write_json

MANIFEST_NAME = "manifest.json"
VOCABULARY_NAME = "vocab.txt"
FLAGS_NAME = "flags.txt"
REPORT_NAME = "report.html"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One TFRecord file.

    Attributes:
      name: the file's name.
      split: "train" or "eval".
      pass_index: the number of its pass over the corpus, from 0.
      documents, instances, tokens: the numbers of these in the file; padding does not count.
      bytes: the file's size.
      sha256: the file's SHA-256, in hexadecimal.
    """

    name: str
    split: str
    pass_index: int
    documents: int
    instances: int
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a data set.

    Attributes:
      max_seq_length: S, the largest number of tokens of an instance.
      max_predictions_per_seq: P, the largest number of predictions of an instance.
      do_lower_case: whether the text was lower-cased.
      vocab_size: the number of lines of the vocabulary.
      vocab_sha256: the vocabulary file's SHA-256, in hexadecimal.
      options: the other options that the data set was made with.
      statistics: counts and shares of the corpus and of the instances of each split.
      shards: all files, train before eval, pass by pass.
      strip_accents: whether accents were stripped; None: only when lower-casing.
      format_version: the version of the manifest's format.
    """

    max_seq_length: int
    max_predictions_per_seq: int
    do_lower_case: bool
    vocab_size: int
    vocab_sha256: str
    options: dict[str, Any]
    statistics: dict[str, Any]
    shards: list[Shard]
    strip_accents: bool | None = None
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, data_dir: Path) -> "Manifest":
        """The manifest of the data set in `data_dir`.

        Raises:
          UserError: there is no data set, or its manifest is damaged or of another version.
        """
        path = data_dir / MANIFEST_NAME
        try:
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UserError(
                f"{data_dir} is not a data set: it has no readable {MANIFEST_NAME}, which "
                "`clozemill generate` writes last; give its --output_dir, or run it to the end"
            ) from error
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}; generate the data set again") from error
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{path} is not of format version {FORMAT_VERSION}, the one this release reads; "
                "generate the data set again"
            )
        try:
            shards = [Shard(**shard) for shard in content.pop("shards")]
            return cls(shards=shards, **content)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; generate the data set again") from error

    def write(self, data_dir: Path) -> None:
        """Writes `manifest.json`."""
        write_json(data_dir / MANIFEST_NAME, dataclasses.asdict(self))

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of the "train" or "eval" split, pass by pass."""
        return [shard for shard in self.shards if shard.split == split]


@dataclass(frozen=True)
class DataSet:
    """A data set on disk.

    Attributes:
      directory: where its files are.
      manifest: its description.
    """

    directory: Path
    manifest: Manifest

    @classmethod
    def read(cls, directory: Path) -> "DataSet":
        """The data set in a directory.

        Raises:
          UserError: see `Manifest.read`.
        """
        return cls(directory, Manifest.read(directory))

    @property
    def vocabulary(self) -> Path:
        """The vocabulary that gives its ids their meaning."""
        return self.directory / VOCABULARY_NAME

    def path_of(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.directory / shard.name
