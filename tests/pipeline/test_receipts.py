import pytest

from pipeline.files import sha256_of
from pipeline.receipts import (
    DuplicatesReceipt,
    files_with_receipt,
    read_receipt,
    read_receipt_of_whole,
    write_receipt,
)


@pytest.fixture
def finished(tmp_path):
    """A file with its receipt."""
    path = tmp_path / "duplicates-00000.parquet"
    path.write_bytes(b"content")
    write_receipt(path, DuplicatesReceipt(3, sha256_of(path)))
    return path


def test_a_receipt_is_read_as_it_was_written(finished):
    assert read_receipt(finished, DuplicatesReceipt) == DuplicatesReceipt(3, sha256_of(finished))
    assert read_receipt(finished.with_name("other"), DuplicatesReceipt) is None
    assert files_with_receipt(finished.parent, "*.parquet") == [finished.name]
    assert files_with_receipt(finished.parent, "*.tfrecord") == []


def test_a_damaged_receipt_is_none(finished):
    receipt = finished.with_name(f"{finished.name}.json")
    receipt.write_text(receipt.read_text().replace("3", "4", 1))
    assert read_receipt(finished, DuplicatesReceipt) is None
    assert read_receipt_of_whole(finished, DuplicatesReceipt) is None


def test_a_file_damaged_after_its_receipt_was_written_is_made_again(finished):
    assert read_receipt_of_whole(finished, DuplicatesReceipt)
    finished.write_bytes(b"c0ntent")
    assert read_receipt_of_whole(finished, DuplicatesReceipt) is None


def test_a_file_may_have_moved_away_from_its_receipt(finished):
    moved = finished.rename(finished.with_name("moved"))
    assert read_receipt_of_whole(finished, DuplicatesReceipt, moved)
    assert read_receipt_of_whole(finished, DuplicatesReceipt) is None
