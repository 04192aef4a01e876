import errno

import pytest

from pipeline.errors import UserError
from pipeline.files import locked_directory


def test_two_runs_cannot_work_in_one_directory(tmp_path):
    path = tmp_path / "data"
    with (
        locked_directory(path),
        pytest.raises(UserError, match="is in use by another run"),
        locked_directory(path),
    ):
        pass
    assert not path.exists()
    with locked_directory(path):
        assert (tmp_path / "data").is_dir()


def test_a_file_system_without_locks_gets_a_warning_and_can_be_used(tmp_path, monkeypatch):
    def without_locks(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")  # NFS raises this for a folder

    warnings = []
    monkeypatch.setattr("pipeline.files.fcntl.flock", without_locks)
    monkeypatch.setattr(
        "pipeline.files.logging.warning",
        lambda message, *arguments: warnings.append(message % arguments),
    )
    with locked_directory(tmp_path / "data"):
        assert (tmp_path / "data").is_dir()
    (warning,) = warnings
    assert f"cannot lock {tmp_path / 'data'} (Bad file descriptor)" in warning
