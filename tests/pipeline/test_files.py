import errno
import shutil
import threading

import pytest

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import (
    locked_directory,
    remove_leftovers,
    scratch_directory,
    temporary_name,
    whole_directory,
    whole_file,
    write_whole,
)
from pipeline.storage import StoredPath


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


def test_a_file_appears_once_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text(str(1 // 0))
    assert path.read_text() == "content"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_once_it_is_complete_and_replaces_another(tmp_path):
    path = tmp_path / "new" / "directory"
    for names in ({"a", "b"}, {"b", "c"}):
        before = path.exists() and list(path.iterdir())
        with whole_directory(path, "last") as temporary:
            for name in names:
                write_whole(temporary / name, name)
            assert (path.exists() and list(path.iterdir())) == before
        assert {file.name for file in path.iterdir()} == names
    with pytest.raises(ZeroDivisionError), whole_directory(path, "last") as temporary:
        (temporary / "d").write_text(str(1 // 0))
    assert {file.name for file in path.iterdir()} == {"b", "c"}
    assert list(path.parent.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed_but_no_file_in_use(tmp_path):
    left = temporary_name(tmp_path / "shard")
    left.write_text("half")
    left_directory = temporary_name(tmp_path / "step-1")
    (left_directory / "inner").mkdir(parents=True)
    (tmp_path / "notes.tmp").write_text("a user's file")
    with (
        whole_file(tmp_path / "file") as temporary,
        whole_directory(tmp_path / "dir", "last") as directory,
    ):
        remove_leftovers(tmp_path)
        assert temporary.exists()
        assert directory.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp", "file", "dir"}


def test_a_scratch_directory_is_where_tmpdir_says_and_goes_even_if_its_process_is_killed(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left = temporary_name(tmp_path / "clozemill")
    (left / "inner").mkdir(parents=True)
    with scratch_directory() as scratch, scratch_directory() as other:
        assert set(tmp_path.iterdir()) == {scratch, other}
        assert scratch.stat().st_mode & 0o777 == 0o700
        files._remove_left_scratch.cache_clear()  # as another process does
        with scratch_directory():
            assert scratch.exists()
            assert other.exists()
    with pytest.raises(ZeroDivisionError), scratch_directory():
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_killed_workers_have_left_of_files_for_a_store_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scratch_directory() as scratch:  # has looked for the left ones of this process's time
        temporary_name(tmp_path / "clozemill").mkdir()
        other = temporary_name(tmp_path / "notes")
        other.mkdir()
        remove_leftovers(StoredPath("s3://bucket", "data"))
        assert set(tmp_path.iterdir()) == {scratch, other}
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    remove_leftovers(StoredPath("s3://bucket", "data"))


def test_many_processes_have_scratch_directories_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    kept = []

    def work():
        for _ in range(50):
            files._remove_left_scratch.cache_clear()
            with scratch_directory() as scratch:
                (scratch / "a").write_text("a")
                kept.append(scratch.exists())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == [True] * 200
    assert not list(tmp_path.iterdir())


def test_a_scratch_directory_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"TMPDIR=.*/none is no directory"), scratch_directory():
        pass
    monkeypatch.setenv("TMPDIR", "/proc")  # where root may write and nobody can
    with pytest.raises(UserError, match="TMPDIR=/proc is no directory"), scratch_directory():
        pass
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(UserError, match="is full: set TMPDIR"), scratch_directory():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="something else"), scratch_directory():
        raise OSError(errno.EIO, "something else")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_one_name_are_told_from_others(tmp_path):
    names = ("vocab[1].txt", "vocab[1].txt.json", "vocab1.txt")
    paths = [temporary_name(tmp_path / name) for name in names]
    for path in paths:
        path.touch()
    remove_leftovers(tmp_path, "vocab[1].txt")
    assert list(tmp_path.iterdir()) == paths[2:]
