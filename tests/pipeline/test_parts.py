import numpy as np
import pytest

from pipeline.parts import read_part, read_parts, split_rows, write_parts

ROW = np.dtype([("key", "<u8"), ("flag", "u1")])


def test_parts_of_several_files_are_laid_end_to_end(tmp_path):
    files = [tmp_path / name for name in "ab"]
    for first, file in enumerate(files):
        parts = [np.array([(first, part)] * part, ROW) for part in range(4)]
        write_parts(file, iter(parts), 4)
    for part in range(4):
        expected = [(first, part) for first in range(2) for _ in range(part)]
        assert read_part(files, part, ROW).tolist() == expected
    assert read_part([], 0, ROW).dtype == ROW


@pytest.mark.parametrize(
    ("most_bytes", "expected"),
    [(0, [1, 1, 1, 1]), (6 * 2 * ROW.itemsize, [3, 1]), (1 << 20, [4])],
)
def test_neighbouring_parts_are_read_at_once_if_they_are_small(most_bytes, expected, tmp_path):
    files = [tmp_path / name for name in "ab"]
    for file in files:
        write_parts(file, [np.array([(part, 0)] * part, ROW) for part in range(6)], 6)
    batches = list(read_parts(files, range(1, 5), ROW, most_bytes))
    assert [len(set(batch["key"].tolist())) for batch in batches] == expected
    assert np.concatenate(batches)["key"].tolist().count(4) == 8


def test_parts_may_be_of_different_types_and_all_empty(tmp_path):
    write_parts(tmp_path / "a", [np.array([7], "<u8"), np.array([1, 2], "<u4")], 2)
    assert read_part([tmp_path / "a"], 0, np.dtype("<u8")).tolist() == [7]
    assert read_part([tmp_path / "a"], 1, np.dtype("<u4")).tolist() == [1, 2]
    write_parts(tmp_path / "b", [], 3)
    assert [len(read_part([tmp_path / "b"], part, ROW)) for part in range(3)] == [0, 0, 0]


def test_rows_are_split_in_the_order_that_they_had():
    rows = np.arange(6)
    parts = split_rows(rows, np.array([2, 0, 2, 0, 3, 2]), 4)
    assert [part.tolist() for part in parts] == [[1, 3], [], [0, 2, 5], [4]]


@pytest.mark.no_backend
def test_a_part_takes_two_reads_of_a_store(bucket, server, tmp_path):
    write_parts(tmp_path / "a", [np.arange(part, dtype="<u8") for part in range(100)], 100)
    (bucket / "a").upload(tmp_path / "a")
    server.reset()
    assert read_part([bucket / "a"], 40, np.dtype("<u8")).tolist() == list(range(40))
    assert len(server.requests) == 2
    server.reset()
    assert len(list(read_parts([bucket / "a"], range(10, 40), np.dtype("<u8"), 1 << 20))) == 1
    assert len(server.requests) == 2
