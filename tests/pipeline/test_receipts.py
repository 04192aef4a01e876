import pytest

from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.receipts import (
    files_with_receipt,
    read_receipt,
    read_receipt_of_whole,
    write_receipt,
)


def test_a_receipt_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "split-00000.parquet"
    assert read_receipt(path) is None
    write_receipt(path, {"documents": 3})
    assert read_receipt(path) == {"documents": 3}
    assert files_with_receipt(tmp_path, "*.parquet") == [path.name]
    assert files_with_receipt(tmp_path, "*.tfrecord") == []


def test_the_error_for_a_damaged_receipt_says_what_to_remove(tmp_path):
    (tmp_path / "split-00000.parquet.json").write_text('{"documents": ')
    with pytest.raises(UserError, match=f"is damaged .* remove the folder {tmp_path}"):
        read_receipt(tmp_path / "split-00000.parquet")


def test_a_file_damaged_after_its_receipt_was_written_is_made_again(tmp_path):
    path = tmp_path / "split-00000.parquet"
    path.write_bytes(b"content")
    write_receipt(path, {"sha256": sha256_of(path)})
    assert read_receipt_of_whole(path)
    path.write_bytes(b"c0ntent")
    assert read_receipt_of_whole(path) is None
