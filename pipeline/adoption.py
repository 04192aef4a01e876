"""Records that another program wrote, as a data set: all are read, checked, counted, described.

The program is the original's `create_pretraining_data.py`, or the Model Garden's. The records stay
where they are, as they are; the data set's directory names them.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.directories import IN_PROGRESS_NAME
from pipeline.errors import UserError, listed
from pipeline.files import has_sha256, locked_directory, version_of, whole_file, write_whole
from pipeline.foreign_records import RecordReader
from pipeline.foreign_vocabularies import vocabulary_of
from pipeline.health import health_of_records
from pipeline.json_files import DamagedFileError, read_json, write_json
from pipeline.manifest import (
    FEATURE_NAMES_OPTION,
    FLAGS_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    REPORT_NAME,
    VOCABULARY_NAME,
    DataSet,
    Manifest,
    format_version_of,
    row_options,
)
from pipeline.paths import kind_of_special_file
from pipeline.patterns import find_files
from pipeline.progress import report_reading
from pipeline.receipts import Plan, differences
from pipeline.report import write_report
from pipeline.statistics import BuildResults, summarize
from pipeline.storage import Location, Stamp, location, open_input
from pipeline.trees import absolute
from pipeline.verification import verify_finished
from pipeline.vocabulary import Vocabulary

_OWN_NAMES = {MANIFEST_NAME, PLAN_NAME, VOCABULARY_NAME, FLAGS_NAME, REPORT_NAME}
_STAMPS = "input_stamps_sha256"
_OVERWRITE = "choose another --output_dir, or pass --overwrite to adopt the records again"


@dataclass(frozen=True)
class AdoptOptions:
    """What to adopt, and where to describe it.

    Attributes:
      train_patterns, eval_patterns: paths, URLs or globs of the TFRecord files of each split.
      vocab_file: the WordPiece vocabulary that the records were made with.
      output_dir: the data set's directory, which may be that of the records.
      do_lower_case: whether their text was lower-cased.
      strip_accents: whether accents were dropped; None: only when lower-casing.
      overwrite: whether an adopted data set already in `output_dir` is replaced.
    """

    train_patterns: list[str]
    eval_patterns: list[str]
    vocab_file: Location
    output_dir: Location
    do_lower_case: bool = True
    strip_accents: bool | None = None
    overwrite: bool = False


class _RecordFile(NamedTuple):
    """A file of records.

    Attributes:
      split: "train" or "eval".
      path: where it is.
      name: its name in the manifest: that in the data set's directory, or a whole path or URL.
      stamp: its version.
    """

    split: str
    path: Location
    name: str
    stamp: Stamp


def adopt(options: AdoptOptions, flags: str = "") -> Manifest:
    """Makes `options.output_dir` a data set of the records, and returns its manifest.

    If it was made of the same files with the same options before, they are verified.

    Args:
      options: the records, their vocabulary, the directory.
      flags: the content of the data set's flags.txt.

    Raises:
      UserError: a file, a record, the vocabulary or the directory is unusable.
    """
    vocabulary = vocabulary_of(options.vocab_file)
    output = absolute(options.output_dir)
    files = _files_of(options, output)
    plan = {
        _STAMPS: _stamps_sha256(files),
        "vocab_sha256": vocabulary.sha256,
        "do_lower_case": options.do_lower_case,
        "strip_accents": options.strip_accents,
    }
    with locked_directory(output):
        if finished := _find_finished(output, plan, options.overwrite):
            verify_finished(
                DataSet(output, finished),
                "adopted with the same options",
                "damaged: pass --overwrite to adopt the records again",
            )
            return finished
        _check_room(output, vocabulary)
        reader = RecordReader([file.path for file in files], vocabulary)
        with report_reading(sum(file.stamp.size for file in files)) as report:
            results = [reader.read(file.path, file.name, file.split, report) for file in files]
        reader.check_vocabulary(options.do_lower_case, options.strip_accents)
        limits = reader.row_limits
        statistics = summarize(
            BuildResults(reader.corpus(), results), reader.max_seq_length, limits.tokens
        )
        if "train" not in statistics:
            raise UserError(f"there is no record in {listed(options.train_patterns)}")
        manifest = Manifest(
            max_seq_length=reader.max_seq_length,
            max_predictions_per_seq=reader.max_predictions_per_seq,
            do_lower_case=options.do_lower_case,
            strip_accents=options.strip_accents,
            vocab_size=len(vocabulary),
            vocab_sha256=vocabulary.sha256,
            options={FEATURE_NAMES_OPTION: reader.feature_names, **row_options(limits)},
            format_version=format_version_of(limits),
            statistics=statistics,
            shards=[each.shard for each in results],
            health=health_of_records(statistics),
        )
        # The plan comes first: it tells that the other files are ours.
        (output / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(output / PLAN_NAME, plan)
        with whole_file(output / VOCABULARY_NAME) as temporary:
            temporary.write_bytes(vocabulary.content)
        write_whole(output / FLAGS_NAME, flags)
        write_report(output, manifest, vocabulary)
        manifest.write(output)
    return manifest


def _files_of(options: AdoptOptions, output: Location) -> list[_RecordFile]:
    """The files, train before eval, each split in the order of names."""
    files: dict[str, _RecordFile] = {}
    for split, patterns in (("train", options.train_patterns), ("eval", options.eval_patterns)):
        found = {path: stamp for each in patterns for path, stamp in _matches(each, output).items()}
        for path, stamp in sorted(found.items()):
            where = location(path)
            name = where.name if where.parent == output else path
            if files.setdefault(path, _RecordFile(split, where, name, stamp)).split != split:
                raise UserError(f"{path} is among the files of --input_file and of --eval_file")
    if "train" not in {file.split for file in files.values()}:
        raise UserError("no record file: set --input_file")
    return list(files.values())


def _matches(pattern: str, output: Location) -> dict[str, Stamp]:
    """The files that match a pattern, without our own beside them, and their stamps.

    Raises:
      UserError: there is none, or one that cannot be adopted.
    """
    own = {str(output / name) for name in _OWN_NAMES}
    found = {path: stamp for path, stamp in find_files(pattern).items() if path not in own}
    for path, stamp in found.items():
        if kind := kind_of_special_file(path):
            raise UserError(f"{path} is {kind}: give a file")
        try:
            open_input(path, stamp).close()
            path.encode()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeEncodeError as error:
            raise UserError(f"the name of {path} is not UTF-8: rename the file") from error
    if not found:
        raise UserError(
            f"no record file matches {pattern}: give a glob in quotes, or names separated by commas"
        )
    return found


def _stamps_sha256(files: list[_RecordFile]) -> str:
    """The SHA-256 of the files' names, sizes and versions, which tells if they are the same."""
    stamps = [
        (file.split, file.name, file.stamp.size, file.stamp.tag or version_of(file.path))
        for file in files
    ]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def _find_finished(output: Location, plan: Plan, overwrite: bool) -> Manifest | None:
    """The manifest of the data set in the directory, if it was adopted by the same plan.

    Raises:
      UserError: the directory holds another data set that must not be replaced.
    """
    if (output / IN_PROGRESS_NAME).exists():
        raise UserError(
            f"{output} holds an unfinished data set of `generate`: choose another --output_dir"
        )
    if not (output / MANIFEST_NAME).exists():
        return None
    try:
        manifest = Manifest.read(output)
        others = differences(read_json(output / PLAN_NAME, dict[str, Any]), plan)
    except (DamagedFileError, FileNotFoundError):
        if overwrite:
            return None
        raise
    if not manifest.is_adopted:
        raise UserError(f"{output} holds a data set of `generate`: choose another --output_dir")
    if others and not overwrite:
        raise UserError(
            f"{output} already holds a data set, adopted with {'; '.join(others)}: {_OVERWRITE}"
        )
    return None if overwrite else manifest


def _check_room(output: Location, vocabulary: Vocabulary) -> None:
    """Checks that no file of the user's has a name that the data set needs.

    Raises:
      UserError: there is one.
    """
    with suppress(DamagedFileError, FileNotFoundError):
        if (output / MANIFEST_NAME).exists() or _STAMPS in read_json(
            output / PLAN_NAME, dict[str, Any]
        ):
            return  # an earlier run wrote the files, or some of them
    for path in (output / name for name in sorted(_OWN_NAMES)):
        if path.exists() and not has_sha256(path, vocabulary.sha256):
            raise UserError(
                f"{path} exists and would be replaced: choose another --output_dir, or rename it"
            )
