"""Two runs in one folder of a store: exactly one works there, and a dead one holds nobody up."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest

from pipeline import store_locks
from pipeline.errors import UserError
from pipeline.files import locked_directory, remove_unfinished_uploads, write_whole
from pipeline.storage import LOCK_NAME, StoredPath
from tests.object_store import CUT

pytestmark = pytest.mark.no_backend


@pytest.fixture
def folder(bucket):
    return bucket / "data"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(store_locks, "_RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(store_locks, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(store_locks, "_STALE_SECONDS", 0.4)


@pytest.fixture
def messages(monkeypatch):
    logged = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            f"absl.logging.{level}", lambda message, *values: logged.append(message % values)
        )
    return logged


def elsewhere(owner):
    """The owner of a lock as another machine's."""
    return {**owner, "host": "far", "machine": "far away"}


def write_lock(folder, owner):
    (folder / LOCK_NAME).upload(json.dumps(owner).encode())


def test_two_runs_cannot_work_in_one_folder_and_the_lock_is_no_content(folder):
    with locked_directory(folder):
        assert (folder / LOCK_NAME).is_file()
        assert not folder.is_dir()
        assert not list(folder.iterdir()) + list(folder.rglob("*"))
        assert not folder.stamps()
        with (
            pytest.raises(UserError, match=r"is in use by a run on .* since .* UTC \(process"),
            locked_directory(folder),
        ):
            pass
    assert not (folder / LOCK_NAME).exists()
    with locked_directory(folder):
        write_whole(folder / "a", "a")
    assert list(folder.iterdir()) == [folder / "a"]


@pytest.mark.usefixtures("quick")
def test_a_living_lock_of_another_machine_keeps_a_run_out(folder, monkeypatch):
    monkeypatch.setattr(store_locks, "_machine", lambda: "")
    with locked_directory(folder):
        tag = (folder / LOCK_NAME).tag()
        with pytest.raises(UserError, match="is in use by a run on"), locked_directory(folder):
            pass
        assert (folder / LOCK_NAME).tag() != tag


@pytest.mark.usefixtures("quick")
def test_a_lock_that_does_not_change_is_taken_over(folder, messages):
    for owner in (elsewhere(store_locks._this_process()), {}):
        write_lock(folder, owner)
        with locked_directory(folder):
            write_whole(folder / "a", "a")
        assert not (folder / LOCK_NAME).exists()
    assert "was in use by a run on far since" in messages[0]
    assert "is dead: taking over" in messages[1]
    assert "was in use by another run" in messages[2]


@pytest.mark.usefixtures("quick")
def test_what_stands_in_a_lock_is_not_believed(folder):
    for content in (b"\xff", b'{"host": "a\\nb", "since": 1, "process": {}}'):
        (folder / LOCK_NAME).upload(content)
        with locked_directory(folder):
            pass


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(folder, messages):
    code = (
        "import sys, time; from pipeline.files import locked_directory\n"
        "from pipeline.storage import location\n"
        "with locked_directory(location(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd=root
    )
    child.stdout.readline()
    child.send_signal(signal.SIGSTOP)  # still it lives
    with pytest.raises(UserError, match=f"process {child.pid}"), locked_directory(folder):
        pass
    child.kill()
    child.wait()
    started = time.monotonic()
    with locked_directory(folder):
        assert time.monotonic() < started + 5
    child.stdout.close()
    assert f"process {child.pid}), which is dead" in messages[-1]


@pytest.mark.usefixtures("quick")
def test_of_many_that_take_over_one_wins(folder):
    write_lock(folder, elsewhere(store_locks._this_process()))
    won, lost, inside = [], [], []

    def start():
        try:
            with locked_directory(folder):
                inside.append(1)
                assert len(inside) == 1
                time.sleep(0.3)
                won.append(1)
                inside.clear()
        except UserError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 5
    assert all("is in use by a run on" in line for line in lost)


@pytest.mark.usefixtures("quick")
def test_a_run_whose_lock_is_taken_changes_nothing_more(folder):
    with locked_directory(folder):
        write_whole(folder / "a", "a")
        write_lock(folder, elsewhere(store_locks._this_process()))
        time.sleep(0.2)
        for change in (
            lambda: write_whole(folder / "b", "b"),
            (folder / "a").unlink,
            folder.remove_below,
        ):
            with pytest.raises(UserError, match=f"has lost {folder} to a run on far since"):
                change()
        write_whole(folder.parent / "elsewhere", "b")
    assert list(folder.rglob("*")) == [folder / "a"]
    assert b"far away" in (folder / LOCK_NAME).read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_command_whose_lock_is_taken_ends(folder, monkeypatch):
    lines, received = [], threading.Event()
    monkeypatch.setattr("absl.logging.error", lambda _, *values: lines.append(values[0]))
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        with locked_directory(folder):
            write_lock(folder, elsewhere(store_locks._this_process()))
            assert received.wait(5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"has lost {folder} to a run on far since" in lines[0]


def test_a_run_that_was_suspended_asks_before_it_changes_anything(folder, server, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(store_locks, "_clock", lambda: now)
    with locked_directory(folder):
        server.requests.clear()
        write_whole(folder / "a", "a")
        assert len(server.requests) == 1
        now += 40
        write_whole(folder / "b", "b")
        assert [path.rpartition("/")[2] for _, path in server.requests[1:]] == [LOCK_NAME, "b"]
        now += 40
        (folder / LOCK_NAME).unlink()
        with pytest.raises(UserError, match="somebody has removed its lock"):
            write_whole(folder / "c", "c")


@pytest.mark.usefixtures("quick")
def test_an_answer_that_is_lost_is_no_loss_of_the_lock(folder, server, monkeypatch):
    monkeypatch.setattr("pipeline.stores._FIRST_PAUSE_SECONDS", 0.01)
    lost = set()

    def lose(number, method, path):
        # The request is done, and then its client hears that the store is busy.
        if method == "PUT" and path.endswith(LOCK_NAME) and number % 2 and number not in lost:
            lost.add(number)
            return CUT if len(lost) % 2 else 503
        return None

    server.after = lose
    with locked_directory(folder):
        time.sleep(0.4)
        write_whole(folder / "a", "a")
    assert lost


def test_a_store_without_conditions_gets_a_warning_and_can_be_used(folder, messages, monkeypatch):
    upload = StoredPath.upload
    monkeypatch.setattr(StoredPath, "upload", lambda self, content, **_: upload(self, content))
    with locked_directory(folder):
        write_whole(folder / "a", "a")
    assert f"cannot lock {folder}" in messages[0]


def test_a_forked_child_leaves_the_lock_alone(folder):
    with locked_directory(folder):
        child = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
        child.start()
        child.join()
        assert (folder / LOCK_NAME).is_file()


@pytest.mark.usefixtures("quick")
def test_unfinished_uploads_of_a_dead_run_are_aborted_or_named(folder, messages, monkeypatch):
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    bucket = folder.root.removeprefix("s3://")

    def keys():
        found = client.list_multipart_uploads(Bucket=bucket)
        return sorted(upload["Key"] for upload in found.get("Uploads", []))

    (folder / "sweep/run" / LOCK_NAME).upload(b"{}")  # another run is at work there
    for key in ("data/a b", "data2/a", "data/sweep/run/checkpoints/a"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    with locked_directory(folder):  # no run has died here
        pass
    assert len(keys()) == 3
    write_lock(folder, {})
    with locked_directory(folder):
        pass
    assert keys() == ["data/sweep/run/checkpoints/a", "data2/a"]
    assert f"aborted an unfinished upload of {folder}/a b" in messages
    remove_unfinished_uploads(StoredPath(folder.root))  # those of a bucket may be anybody's
    assert len(keys()) == 2
    assert f"{folder.root}/ may hold parts of unfinished uploads" in messages[-1]
    monkeypatch.setitem(sys.modules, "boto3", None)
    write_lock(folder, {})
    with locked_directory(folder):
        pass
    assert f"{folder} may hold parts of unfinished uploads" in messages[-1]
    assert "AbortIncompleteMultipartUpload" in messages[-1]
