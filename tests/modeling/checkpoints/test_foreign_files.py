import os
import shutil
from pathlib import Path

import pytest

from modeling.checkpoints.foreign_files import (
    Description,
    check_regular,
    checked_sha256s,
    read_description,
)
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.json_files import write_json

pytestmark = pytest.mark.no_backend

SHA256_OF_A = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@pytest.fixture
def directory(tmp_path):
    """A directory with one file."""
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "file").write_text("a")
    return directory


@pytest.fixture
def export(directory):
    """The same directory, whose export.json describes the file."""
    description = Description({}, 1, "onnx", False, {"file": sha256_of(directory / "file")})
    write_json(directory / "export.json", vars(description))
    return directory


def test_files_that_exist_are_checked(directory):
    assert checked_sha256s(directory, ["file", "other"]) == {"file": SHA256_OF_A}
    assert read_description(directory) is None


def test_files_of_an_export_are_what_it_describes(export):
    assert checked_sha256s(export, ["file", "other"]) == {"file": SHA256_OF_A}
    assert read_description(export).format == "onnx"


def test_a_file_that_the_export_does_not_describe_is_accepted(export):
    shutil.copy(export / "file", export / "other")
    assert checked_sha256s(export, ["other"]) == {"other": SHA256_OF_A}


def test_a_changed_file_is_named_with_what_to_do(export):
    (export / "file").write_text("b")
    assert checked_sha256s(export, []) == {}
    with pytest.raises(UserError, match=f"{export}/file is not .* remove {export}/export.json"):
        checked_sha256s(export, ["file"])
    (export / "export.json").unlink()
    assert checked_sha256s(export, ["file"])["file"] != SHA256_OF_A


def test_a_file_that_is_gone_is_named(export):
    (export / "file").unlink()
    with pytest.raises(UserError, match=f"{export}/file is missing.*remove {export}/export.json"):
        checked_sha256s(export, ["file"])


def test_a_damaged_description_is_named(export):
    path = export / "export.json"
    path.write_bytes(path.read_bytes().replace(b"onnx", b"onny"))
    with pytest.raises(UserError, match=f"{path} is damaged.*remove it") as raised:
        checked_sha256s(export, ["file"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("target", ["../secret", "{outside}", "missing", "link", ".."])
def test_a_link_out_of_the_directory_is_refused(directory, target):
    outside = directory.parent / "secret"
    outside.write_text("secret")
    (directory / "link").symlink_to(target.format(outside=outside))
    with pytest.raises(UserError, match=f"{directory}/link is ") as raised:
        checked_sha256s(directory, ["link"])
    assert (" a link out " in str(raised.value)) == (target not in ("missing", "link"))


def test_a_link_within_the_directory_is_followed(directory, tmp_path):
    (directory / "link").symlink_to("file")
    (tmp_path / "itself").symlink_to(directory)
    for given in (directory, tmp_path / "itself"):
        assert checked_sha256s(given, ["link"]) == {"link": SHA256_OF_A}


def test_links_of_the_cache_of_hugging_face_are_followed(tmp_path):
    repository = tmp_path / "models--name"
    snapshot = repository / "snapshots" / "hash"
    for folder in (snapshot, repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "blobs" / "hash").write_text("a")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "file").symlink_to("../../blobs/hash")
    assert checked_sha256s(snapshot, ["file"]) == {"file": SHA256_OF_A}
    (snapshot / "other").symlink_to("../../../secret")
    with pytest.raises(UserError, match="is a link out of its directory"):
        check_regular(snapshot / "other")
    shutil.rmtree(repository / "blobs")
    (repository / "hash").write_text("a")
    (snapshot / "no_cache").symlink_to("../../hash")
    with pytest.raises(UserError, match="is a link out of its directory"):
        check_regular(snapshot / "no_cache")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_than_a_file_is_refused(directory, make):
    make(directory / "other")
    with pytest.raises(UserError, match=f"{directory}/other is not a regular file"):
        checked_sha256s(directory, ["other"])
