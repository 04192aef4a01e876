"""Files of parts: what one worker hands to each of many others, without a shuffle of an engine.

A file begins with the places of its parts. So it takes two reads to get a part, or neighbouring
ones, however many the file has.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from pipeline.storage import Location, read_range

_PLACE = np.dtype("<u8")
# A store answers many requests in the time of one.
_FILES_AT_ONCE = 16


def split_rows(rows: np.ndarray, part_of_row: np.ndarray, num_parts: int) -> Iterator[np.ndarray]:
    """Yields the rows of each part, in the order that they had."""
    order = np.argsort(part_of_row, kind="stable")
    ends = np.cumsum(np.bincount(part_of_row, minlength=num_parts))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield rows[order[start:end]]


def write_parts(file: Path, parts: Iterable[np.ndarray], num_parts: int) -> None:
    """Writes so many arrays, one after another, of which only one needs to be in memory."""
    places = np.full(num_parts + 1, (num_parts + 1) * _PLACE.itemsize, _PLACE)
    with file.open("wb") as output:
        output.write(places.tobytes())
        for number, part in enumerate(parts):
            places[number + 1] = places[number] + part.nbytes
            output.write(part.tobytes())
        output.seek(0)
        output.write(places.tobytes())


def read_parts(
    files: Sequence[Location], parts: range, dtype: np.dtype, most_bytes: int
) -> Iterator[np.ndarray]:
    """Reads neighbouring parts of each file, and lays those of the same number end to end.

    Args:
      files: the files.
      parts: the numbers of the parts, with the step 1.
      dtype: the type of their rows.
      most_bytes: how many bytes to read at once, unless a single part has more.

    Yields:
      The rows of one part, or of several whole ones.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        places = np.array(list(threads.map(_read_places, files, repeat(parts))), _PLACE).reshape(
            len(files), len(parts) + 1
        )
        sizes = np.diff(places).sum(axis=0)
        first = 0
        while first < len(parts):
            end = first + 1
            while end < len(parts) and sizes[first : end + 1].sum() <= most_bytes:
                end += 1
            ranges = places[:, first].tolist(), places[:, end].tolist()
            found = threads.map(_read, files, *ranges, repeat(dtype))
            yield np.concatenate([np.empty(0, dtype), *found])
            first = end


def read_part(files: Sequence[Location], part: int, dtype: np.dtype) -> np.ndarray:
    """Reads one part of each file, and lays these end to end."""
    return next(read_parts(files, range(part, part + 1), dtype, 0))


def _read_places(file: Location, parts: range) -> np.ndarray:
    num_bytes = (len(parts) + 1) * _PLACE.itemsize
    return np.frombuffer(read_range(file, parts.start * _PLACE.itemsize, num_bytes), _PLACE)


def _read(file: Location, start: int, end: int, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(read_range(file, start, end - start) if end > start else b"", dtype)
