"""Directories of exports, above all when the writing of one is killed at any of its changes."""

import errno
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pytest

from modeling.checkpoints.foreign_files import Description, read_description
from modeling.export.output_directory import (
    check_directory,
    holds,
    remove_leftovers_of,
    sha256s_of,
    write_directory,
)
from pipeline.errors import UserError
from pipeline.json_files import write_json

pytestmark = pytest.mark.no_backend

UNFINISHED = "unfinished_export"
NAMES = [
    "bert_config.json",
    "export.json",
    "saved_model.pb",
    "variables",
    "variables/variables.index",
    "vocab.txt",
]
KINDS = ("replaced", "a mount point", "a bind mount")
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def describe(content):
    return Description({"weights": content}, 1, "saved_model", False, {})


def write(content, directory):
    """Writes the files of an export, all with this content, and its description."""
    (directory / "variables").mkdir()
    for name in ("saved_model.pb", "variables/variables.index", "vocab.txt", "bert_config.json"):
        (directory / name).write_text(content)
    files = sha256s_of(directory)
    write_json(directory / "export.json", vars(describe(content)) | {"files": files})


def run(output_dir, content, overwrite=False):
    """What `export` does with a directory."""
    check_directory(output_dir, overwrite)
    remove_leftovers_of(output_dir)
    if not overwrite and holds(output_dir, describe(content)):
        return False
    write_directory(output_dir, partial(write, content))
    return True


def names_in(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def opened(output_dir):
    """The content of an export that opens, which must be whole; None if none does."""
    path = output_dir / "saved_model.pb"
    if not path.exists():
        return None
    content = path.read_text()
    found = [name for name in names_in(output_dir) if not name.startswith(UNFINISHED)]
    assert found == NAMES
    assert holds(output_dir, describe(content))
    return content


def behave_as(kind, monkeypatch):
    """Makes an output directory behave as one of its kinds."""
    rename = Path.rename

    def refusing(path, target):
        if path.name == "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    if kind == "a mount point":
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    elif kind == "a bind mount":
        monkeypatch.setattr(Path, "rename", refusing)


def kill_at(number, action):
    """Runs in a child that ends before its change of this number; whether it came so far."""
    child = os.fork()
    if not child:
        counted = 0

        def audit(event, arguments):
            nonlocal counted
            if event in CHANGES and (event != "open" or arguments[2] & os.O_CREAT):
                counted += 1
                if counted == number:
                    os._exit(9)

        sys.addaudithook(audit)
        with suppress(BaseException):
            action()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def kill_everywhere(folder, kind, before):
    """Kills the writing of `out` at each change, and repeats it; what was there in between."""
    pristine, work = folder / "pristine", folder / "work"
    pristine.mkdir()
    if before != "nothing":
        (pristine / "out").mkdir()
    if before == "old":
        write("old", pristine / "out")
    action = partial(run, work / "out", "new", overwrite=before == "old")
    found = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        behave_as(kind, monkeypatch)
        monkeypatch.setattr(os, "fsync", lambda _: None)  # takes long, and a kill loses no data
        while True:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(pristine, work)
            if not kill_at(len(found) + 1, action):
                return found
            found.append(opened(work / "out"))
            action()
            assert opened(work / "out") == "new"
            assert names_in(work) == ["out", *(f"out/{name}" for name in NAMES)]


@pytest.fixture(scope="module")
def small_process():
    """Runs functions in a process without TensorFlow, which forks at once."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        monkeypatch.syspath_prepend(Path(__file__).parents[3])  # where it finds this module
        yield lambda *call: pool.submit(*call).result()


@pytest.mark.parametrize(
    ("before", "kind"), [("nothing", "replaced"), *product(("empty", "old"), KINDS)]
)
def test_a_directory_is_whole_wherever_its_writer_is_killed(tmp_path, small_process, before, kind):
    found = small_process(kill_everywhere, tmp_path, kind, before)
    assert len(found) > 10
    # The order is: all of the old one, nothing that opens, all of the new one.
    first = "old" if before == "old" else None
    assert found == sorted(found, key=[first, None, "new"].index)
    assert found[0] == first


def test_an_existing_directory_keeps_its_mode(tmp_path):
    (tmp_path / "out").mkdir(mode=0o750)
    run(tmp_path / "out", "new")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_the_working_directory_stays_the_same(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    number = Path().stat().st_ino
    run(tmp_path / "out", "old")
    run(tmp_path / "out", "new", overwrite=True)
    assert Path().stat().st_ino == (tmp_path / "out").stat().st_ino == number
    assert opened(Path()) == "new"


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, kind):
    def write_half(directory):
        (directory / "saved_model.pb").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    behave_as(kind, monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    write("old", out)
    with pytest.raises(OSError, match="No space left"):
        write_directory(out, write_half)
    assert names_in(tmp_path) == ["out", *(f"out/{name}" for name in NAMES)]
    assert opened(out) == "old"


def test_leftovers_of_the_same_name_are_removed(tmp_path):
    leftovers = [tmp_path / f"{name}.{32 * '0'}.tmp" for name in ("o[u]t", "out")]
    for path in leftovers:
        path.mkdir()
    run(tmp_path / "o[u]t", "new")
    assert [path.exists() for path in leftovers] == [False, True]


@pytest.mark.parametrize("name", ["thesis.tex", f"{UNFINISHED}/thesis.tex", f"{UNFINISHED}"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{name}, which is not part of an export"):
            check_directory(tmp_path, overwrite)


def test_an_unfinished_export_is_described_by_nothing(tmp_path):
    (tmp_path / UNFINISHED).mkdir()
    write("new", tmp_path / UNFINISHED)
    shutil.move(tmp_path / UNFINISHED / "export.json", tmp_path)
    assert read_description(tmp_path)
    assert not holds(tmp_path, describe("new"))
    assert run(tmp_path, "new")
    assert opened(tmp_path) == "new"
