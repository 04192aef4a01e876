"""The description of a finished data set: `manifest.json`, which is written last.

A directory without it is not a data set. The trainer reads lengths, vocabulary and shards from it,
so that users need not repeat them.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.errors import UserError
from pipeline.files import has_sha256
from pipeline.json_files import NO_OTHER_KEYS, DamagedFileError, read_json, write_json
from pipeline.pre_tokenizers import PreTokenizer
from pipeline.records import ALIASES, Feature, RowLimits, instance_features, unmasked_features
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location, location

MANIFEST_NAME = "manifest.json"
VOCABULARY_NAME = "vocab.txt"
FLAGS_NAME = "flags.txt"
PLAN_NAME = "plan.json"
REPORT_NAME = "report.html"
FORMAT_VERSION = 1
# That of records which older releases would not read, or would train on as if they were pairs or
# of the original's tokens.
NEWER_FORMAT_VERSION = 2

# Among the options of records that another program wrote: one of `records.ALIASES`.
FEATURE_NAMES_OPTION = "feature_names"

# Among the options, where the trainer draws the masks of the train instances.
_MASKING_OPTION, _TRAINING = "masking", "training"

# Among the options of instances that are not the original's pairs: one of `SentencePairs`.
SENTENCE_PAIRS_OPTION = "sentence_pairs"

# Among the options of Japanese text whose words were found first: one of `PreTokenizer`.
PRE_TOKENIZER_OPTION = "pre_tokenizer"

# Among the options of packed rows: their length, and the most that they hold, as in `RowLimits`.
_ROW_OPTIONS = ("packed_row_length", "max_predictions_per_row", "max_sequences_per_row")

# Among the options of a mixture of corpora: what decides their shares, and how each is read.
MIXTURE_OPTION = "mixture"
# Among the statistics of a mixture: the facts of each corpus, of which one is its eval shards.
CORPORA = "corpora"
EVAL_SHARDS = "eval_shards"

_AGAIN = "generate or adopt the data set again, with --overwrite"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# How `generate` names a shard: its number among all shards of its split, and how many those are.
_GENERATED_NAME = re.compile(r"(?P<split>train|eval)-(?P<number>\d+)-of-(?P<total>\d+)\.tfrecord")


def format_version_of(
    limits: RowLimits,
    masking: str = "stored",
    sentence_pairs: SentencePairs = SentencePairs.NEXT,
    pre_tokenizer: PreTokenizer | None = None,
    is_mixture: bool = False,
) -> int:
    """The version of the manifest of records with these limits, masks, pairs and words."""
    is_newer = limits.sequences > 1 or masking == _TRAINING or sentence_pairs == SentencePairs.NONE
    is_newer |= pre_tokenizer is not None or is_mixture
    return NEWER_FORMAT_VERSION if is_newer else FORMAT_VERSION


def row_options(limits: RowLimits) -> dict[str, int]:
    """The options of a manifest that tell the limits of packed rows; none for single sequences."""
    if limits.sequences == 1:
        return {}
    return dict(zip(_ROW_OPTIONS, vars(limits).values(), strict=True))


@dataclass(frozen=True)
class Shard:
    """One TFRecord file.

    Attributes:
      name: the file's name; its absolute path or its URL if it is not beside the manifest.
      split: "train" or "eval".
      pass_index: the number of its pass over the corpus, from 0.
      documents, instances, tokens: the numbers of these in the file. An instance is a record: a
        sequence, or a row of packed ones. Padding does not count.
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

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


@dataclass(frozen=True)
class Manifest:
    """The description of a data set.

    Attributes:
      max_seq_length: S, the largest number of tokens of a sequence.
      max_predictions_per_seq: P, the largest number of predictions of a sequence.
      do_lower_case: whether the text was lower-cased.
      vocab_size: the number of lines of the vocabulary.
      vocab_sha256: the vocabulary file's SHA-256, in hexadecimal.
      options: the other options that the data set was made with.
      statistics: counts and shares of the corpus and of the instances of each split.
      shards: all files, train before eval, pass by pass.
      strip_accents: whether accents were stripped; None: only when lower-casing.
      format_version: the version of the manifest's format.
      health: a line for each share that is out of bounds, see `pipeline.health`; an earlier build
        wrote none.
    """

    max_seq_length: int
    max_predictions_per_seq: int
    do_lower_case: bool
    vocab_size: int
    vocab_sha256: str
    options: dict[str, Any]
    statistics: dict[str, dict[str, Any]]
    shards: list[Shard]
    strip_accents: bool | None = None
    format_version: int = FORMAT_VERSION
    health: list[str] = field(default_factory=list)

    __pydantic_config__: ClassVar = NO_OTHER_KEYS

    @classmethod
    def read(cls, data_dir: Location) -> "Manifest":
        """The manifest of the data set in `data_dir`.

        Raises:
          UserError: there is no data set, or its manifest is damaged or of another version.
        """
        path = data_dir / MANIFEST_NAME
        try:
            version = read_json(path, dict[str, Any]).get("format_version")
            if version not in (FORMAT_VERSION, NEWER_FORMAT_VERSION):
                raise UserError(
                    f"{path} is not of format version {FORMAT_VERSION} or {NEWER_FORMAT_VERSION}, "
                    f"which this release reads; {_AGAIN}"
                )
            manifest = read_json(path, cls)
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}; {_AGAIN}") from error
        except FileNotFoundError as error:
            raise UserError(
                f"{data_dir} is not a data set: it has no {MANIFEST_NAME}, which `clozemill "
                "generate` and `adopt` write last; give its --output_dir, or run it to the end"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if fault := next(manifest.contradictions(), None):
            raise DamagedFileError(f"{path} contradicts itself: {fault}; {_AGAIN}")
        return manifest

    def write(self, data_dir: Location) -> None:
        """Writes `manifest.json`."""
        write_json(data_dir / MANIFEST_NAME, vars(self))

    def features_of(self, split: str) -> dict[str, Feature]:
        """The features of the records of the "train" or "eval" split."""
        segments = 1 if self.sentence_pairs == SentencePairs.NONE else 2
        if split == "train" and self.masks_while_training:
            return unmasked_features(self.row_limits, self.vocab_size, segments)
        names = self.options.get(FEATURE_NAMES_OPTION, "original")
        return instance_features(self.row_limits, self.vocab_size, names, segments)

    @property
    def row_limits(self) -> RowLimits:
        """The most that a record holds: a row of packed sequences, or one sequence."""
        if _ROW_OPTIONS[0] not in self.options:
            return RowLimits(self.max_seq_length, self.max_predictions_per_seq)
        return RowLimits(*(self.options[name] for name in _ROW_OPTIONS))

    @property
    def masks_while_training(self) -> bool:
        """Whether the trainer draws the masks of the train instances, which have none."""
        return self.options.get(_MASKING_OPTION) == _TRAINING

    @property
    def sentence_pairs(self) -> SentencePairs:
        """What an instance holds: two segments, or one."""
        return SentencePairs(self.options.get(SENTENCE_PAIRS_OPTION, SentencePairs.NEXT))

    @property
    def corpora(self) -> dict[str, list[Shard]]:
        """The eval shards of each corpus of a mixture, by name; empty if there is no mixture."""
        shards = {shard.name: shard for shard in self.shards_of("eval")}
        facts = self.statistics.get(CORPORA, {})
        return {name: [shards[each] for each in facts[name][EVAL_SHARDS]] for name in facts}

    @property
    def pre_tokenizer(self) -> PreTokenizer | None:
        """What found the words of the text before WordPiece did."""
        name = self.options.get(PRE_TOKENIZER_OPTION)
        return None if name is None else PreTokenizer(name)

    @property
    def is_adopted(self) -> bool:
        """Whether another program wrote the records."""
        return FEATURE_NAMES_OPTION in self.options

    def contradictions(self) -> Iterator[str]:
        """What cannot be true of any data set, each in a few words; nothing if all is well."""
        if min(self.max_seq_length, self.max_predictions_per_seq, self.vocab_size) < 1:
            yield "a length or the size of the vocabulary is below 1"
        yield from self._contradictions_of_records()
        for name, count in Counter(shard.name for shard in self.shards).items():
            if count > 1:
                yield f"it lists {name} {count} times"
        for shard in self.shards:
            yield from _contradictions_of(shard)
        if not all(map(_SHA256.fullmatch, (self.vocab_sha256, *(s.sha256 for s in self.shards)))):
            yield "a SHA-256 is not 64 hexadecimal digits"
        for split in ("train", "eval"):
            passes = {shard.pass_index for shard in self.shards_of(split)}
            if passes != set(range(len(passes))):
                yield f"the passes of its {split} shards are not numbered from 0 on"
            counts = self.statistics.get(split, {})
            for name in ("instances", "tokens"):
                total = sum(getattr(shard, name) for shard in self.shards_of(split))
                if counts.get(name, total) != total:
                    yield f"its {split} shards have {total} {name}, its statistics say otherwise"
        if self.options.get(FEATURE_NAMES_OPTION, "original") not in list(ALIASES):
            yield "its features have unknown names"
        for name, value in vars(self).items():
            if self.options.get(name, value) != value:
                yield f"it tells of two values of {name}"
        yield from self._contradictions_of_mixture()
        # Others may number their files in the same way, and adopt some of them.
        names = {shard.name for shard in self.shards if not self.is_adopted}
        yield from _missing_shards(names)

    def _contradictions_of_records(self) -> Iterator[str]:
        if self.options.get(SENTENCE_PAIRS_OPTION, SentencePairs.NEXT) not in list(SentencePairs):
            yield f"its instances have unknown {SENTENCE_PAIRS_OPTION}"
        pre_tokenizer = self.options.get(PRE_TOKENIZER_OPTION)
        if pre_tokenizer not in (None, *PreTokenizer):
            yield f"its {PRE_TOKENIZER_OPTION} is {pre_tokenizer!r}"
        masking = self.options.get(_MASKING_OPTION, _TRAINING)
        if masking != _TRAINING:
            yield f"its {_MASKING_OPTION} is {masking!r}"
        has_rows = not self.options.keys().isdisjoint(_ROW_OPTIONS)
        is_single = self.options.get(SENTENCE_PAIRS_OPTION) == SentencePairs.NONE
        is_mixture = MIXTURE_OPTION in self.options
        is_newer = has_rows or is_single or self.masks_while_training or is_mixture
        is_newer |= pre_tokenizer is not None
        if is_newer != (self.format_version == NEWER_FORMAT_VERSION):
            yield f"its records are not those of its format version {self.format_version}"
        if not has_rows:
            return
        limits: list[Any] = [self.options.get(name) for name in _ROW_OPTIONS]
        if not all(type(limit) is int and limit > 0 for limit in limits) or limits[2] == 1:
            yield "it does not tell how long its rows are, and what they hold"
        elif max([self.max_seq_length, *limits]) > limits[0]:
            yield "its rows are shorter than a sequence, or than what they hold"
        for split in ("train", "eval"):
            if instances := sum(shard.instances for shard in self.shards_of(split)):
                counts = self.statistics.get(split, {})
                sequences, pairs = counts.get("sequences"), counts.get("attended_pairs")
                if not (type(sequences) is type(pairs) is int and instances <= sequences <= pairs):
                    yield f"its {split} statistics do not count the sequences of rows"

    def _contradictions_of_mixture(self) -> Iterator[str]:
        facts = self.statistics.get(CORPORA, {})
        if (MIXTURE_OPTION in self.options) != bool(facts):
            yield "it tells of a mixture, but not of its corpora, or the other way round"
        lists = [
            each.get(EVAL_SHARDS) if isinstance(each, dict) else None for each in facts.values()
        ]
        if not all(isinstance(each, list) for each in lists):
            yield "it does not list the eval shards of each corpus"
        elif facts:
            listed = sorted(str(name) for names in lists for name in names or [])
            if listed != sorted(shard.name for shard in self.shards_of("eval")):
                yield "the eval shards of its corpora are not its eval shards"

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of the "train" or "eval" split, pass by pass."""
        return [shard for shard in self.shards if shard.split == split]


def _contradictions_of(shard: Shard) -> Iterator[str]:
    counts = (shard.documents, shard.instances, shard.tokens, shard.bytes)
    if min(shard.pass_index, *counts) < 0:
        yield f"a count of {shard.name} is below 0"
    is_name = False
    with suppress(UserError):  # of a URL that nobody knows
        path = location(shard.name)
        is_name = path.name == shard.name or path.is_absolute()
    if shard.split not in ("train", "eval") or not is_name:
        yield f"{shard.name!r} of the split {shard.split!r} is no shard's name"


def _missing_shards(names: set[str]) -> Iterator[str]:
    """Shards that the names of others tell of; names that `generate` did not give tell nothing."""
    for match in filter(None, map(_GENERATED_NAME.fullmatch, names)):
        width, total = len(match["total"]), int(match["total"])
        following = (int(match["number"]) + 1) % total if total else 0
        name = f"{match['split']}-{following:0{width}d}-of-{match['total']}.tfrecord"
        if name not in names:
            yield f"it lists {match[0]}, but not {name}"


def check_vocabulary_file(directory: Location, manifest: Manifest) -> None:
    """Checks that the `vocab.txt` beside a manifest is the vocabulary that made the data.

    Raises:
      UserError: it is missing or has another content.
    """
    path = directory / VOCABULARY_NAME
    if not has_sha256(path, manifest.vocab_sha256):
        how = "is not the vocabulary that made the data" if path.exists() else "is missing"
        raise UserError(
            f"{path} {how}: copy the file with the SHA-256 {manifest.vocab_sha256} there"
        )


@dataclass(frozen=True)
class DataSet:
    """A data set on disk.

    Attributes:
      directory: where its files are.
      manifest: its description.
    """

    directory: Location
    manifest: Manifest

    @classmethod
    def read(cls, directory: Location) -> "DataSet":
        """The data set in a directory.

        Raises:
          UserError: see `Manifest.read` and `check_vocabulary`.
        """
        data_set = cls(directory, Manifest.read(directory))
        data_set.check_vocabulary()
        return data_set

    def check_vocabulary(self) -> None:
        """Checks that its vocabulary is the one that made it.

        Raises:
          UserError: it is missing or another one, or has not as many lines as the manifest says.
        """
        check_vocabulary_file(self.directory, self.manifest)
        num_lines = self.vocabulary.read_bytes().removesuffix(b"\n").count(b"\n") + 1
        if num_lines != self.manifest.vocab_size:
            raise DamagedFileError(
                f"{self.vocabulary} has {num_lines} lines, but {MANIFEST_NAME} says "
                f"{self.manifest.vocab_size}; {_AGAIN}"
            )

    @property
    def vocabulary(self) -> Location:
        """The vocabulary that gives its ids their meaning."""
        return self.directory / VOCABULARY_NAME

    def path_of(self, shard: Shard) -> Location:
        """The file of a shard."""
        path = location(shard.name)
        return path if path.is_absolute() else self.directory / shard.name

    def is_in_place(self, shard: Shard) -> bool:
        """Whether a shard is read where it is, rather than in a cache."""
        return True

    def open(self, shards: list[Shard], following: list[Shard]) -> None:
        """Is called before shards are read, with those that come after them."""

    @property
    def fault(self) -> UserError | None:
        """Why shards could not be opened, if they could not."""
        return None
