"""The stages of a mixture, between those of `stages`: measure its documents, plan its passes."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.buckets import Bucket
from pipeline.corpus import RowGroup
from pipeline.duplicates import read_dropped
from pipeline.files import sha256_of
from pipeline.json_files import json_text
from pipeline.mixing import measure_documents, plan_mixing, write_measured
from pipeline.receipts import FileReceipt, read_receipt_of_whole
from pipeline.stages import Stage, Work
from pipeline.storage import Location


class MeasureDocuments(Stage):
    """A train bucket and its row groups to a Parquet file with the sizes of its documents."""

    def __init__(self, work: Work):
        super().__init__()
        assert work.options.mixture
        self._names = work.options.mixture.names
        self._seed = work.options.instances.random_seed
        self._directories = work.directories

    def process(self, item: tuple[Bucket, list[RowGroup]]) -> Iterator[Location]:
        """Measures the bucket's documents, without duplicates, and yields the file."""
        bucket, row_groups = item
        path = self._directories.measured_file(bucket)
        if read_receipt_of_whole(path, FileReceipt) is None:
            self._make(path, partial(self._write, bucket, row_groups))
        yield path

    def _write(self, bucket: Bucket, row_groups: list[RowGroup], file: Path) -> FileReceipt:
        dropped = self._directories.dropped_files(group.path for group in row_groups)
        duplicates = read_dropped(dropped, bucket)
        write_measured(file, measure_documents(row_groups, self._names, self._seed, duplicates))
        return FileReceipt(sha256_of(file))


class PlanMixing(Stage):
    """Any item to the file that says what each pass reads of each corpus."""

    def __init__(self, work: Work):
        super().__init__()
        assert work.options.mixture
        self._mixture = work.options.mixture
        self._num_passes = work.options.instances.dupe_factor
        self._path = work.directories.mixing_plan
        self._measured = [
            work.directories.measured_file(bucket)
            for bucket in work.buckets.buckets()
            if bucket.split == "train"
        ]

    def process(self, item: object) -> Iterator[Location]:
        """Plans the passes, and yields the file.

        Raises:
          UserError: a corpus has no training document.
        """
        if read_receipt_of_whole(self._path, FileReceipt) is None:
            self._make(self._path, self._write)
        yield self._path

    def _write(self, file: Path) -> FileReceipt:
        plan = plan_mixing(self._mixture, self._measured, self._num_passes)
        file.write_text(json_text(asdict(plan)), "utf-8")
        return FileReceipt(sha256_of(file))
