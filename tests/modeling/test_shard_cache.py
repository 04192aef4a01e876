"""Shards that come from a store to a cache, which processes share."""

import dataclasses
import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from modeling import batches, shard_cache
from modeling.batches import (
    evaluation_batches,
    evaluation_shards,
    most_bytes_at_once,
    parts_of_groups,
    readable,
    shard_groups,
    training_batches,
)
from modeling.shard_cache import ShardCache, in_cache
from pipeline.errors import UserError
from pipeline.files import hold, temporary_name
from pipeline.manifest import DataSet
from pipeline.storage import StoredPath

pytestmark = pytest.mark.no_backend

# Two passes of 17 and 15 instances. With two shards per group, they have two and three groups.
SIZES = [(5, 4, 6, 2), (3, 0, 4, 1, 5, 2)]
SHARDS = [("train", number, size) for number, sizes in enumerate(SIZES) for size in sizes]
SHARDS += [("eval", 0, 4), ("eval", 0, 3), ("eval", 0, 5)]


@pytest.fixture(scope="module")
def local(tmp_path_factory, write_data_set):
    """A data set on the disk."""
    return write_data_set(tmp_path_factory.mktemp("local"), SHARDS)


@pytest.fixture(scope="module")
def long(tmp_path_factory, write_data_set):
    """Two passes of three groups, each of which is far longer than what TensorFlow reads ahead."""
    shards = [("train", pass_index, 160) for pass_index in (0, 1) for _ in range(6)]
    return write_data_set(tmp_path_factory.mktemp("long"), shards)


@pytest.fixture
def send(send_data_set, monkeypatch):
    """`send_data_set`, after which groups have two shards."""
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    monkeypatch.setattr(batches, "_SHUFFLE_BUFFER_RECORDS", 4)
    return send_data_set


@pytest.fixture
def remote(send, local):
    """`local` on a store."""
    return send(local)


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cached(remote, cache_dir):
    """A function that gives the data set with a cache, as a process of its own would have it."""
    return lambda size=None: in_cache(remote, ShardCache(cache_dir, size))


def sizes_of_files(cache_dir):
    """The sizes of the files of a cache, by name."""
    sizes = {}
    for path in (cache_dir / "clozemill-shards").glob("*"):
        try:
            sizes[path.name] = path.stat().st_size
        except FileNotFoundError:  # it has just got its last name, or was removed
            continue
    return sizes


def fetched(store):
    """The names of the shards that were asked for, in order."""
    return [Path(path).name for _, path in store.requests if path.endswith("tfrecord")]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def size_of_group(data_set):
    return most_bytes_at_once(data_set.manifest, 1, 10**9, [0], 1)


def read(data_set, count, *place, batch_size=2):
    """The first batches from a place in the order."""
    batches = training_batches(data_set, batch_size, 1, *place)
    with closing(readable(batches, data_set)) as found:
        yield from itertools.islice(found, count)


def check_same(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for name, values in our.items():
            assert values.dtype == their[name].dtype
            assert np.array_equal(values, their[name])


@pytest.mark.parametrize("groups", [1, 1.5, 2, 100])
def test_batches_are_those_from_a_disk_and_the_cache_keeps_its_size(
    store, local, cached, cache_dir, groups
):
    size = int(size_of_group(local) * groups)
    totals = []
    store.before = lambda *_: totals.append(sum(sizes_of_files(cache_dir).values()))
    store.after = store.before
    data_set = cached(size)
    check_same(read(local, 60), read(data_set, 60))
    assert 0 < max(totals) <= size
    if groups == 100:
        # Nine shards hold anything, and each has come once.
        assert sorted(fetched(store)) == sorted({*fetched(store)})
        assert len(fetched(store)) == 9


@pytest.mark.parametrize("place", [(0, 1), (1, 2), (2, 3)])
def test_a_run_resumes_at_any_instance(local, cached, place):
    for first_instance in (0, 6, 17, 45):
        arguments = (4, first_instance, *place)
        size = place[1] * 2
        check_same(
            read(local, *arguments, batch_size=size), read(cached(), *arguments, batch_size=size)
        )


@pytest.mark.parametrize("place", [(0, 0, 1), (700, 0, 1), (0, 0, 2), (700, 1, 2), (0, 2, 3)])
def test_a_process_fetches_what_it_reads_and_what_comes_next(store, send, long, tmp_path, place):
    data_set = in_cache(send(long), ShardCache(tmp_path))
    parts = list(itertools.islice(parts_of_groups(long.manifest, 1, *place), 2))
    shards = [shard.name for part in parts for shard in part.shards]
    check_same(read(long, 1, *place, batch_size=6), read(data_set, 1, *place, batch_size=6))
    wait_until(lambda: len(fetched(store)) >= len(shards))
    assert sorted(fetched(store)) == sorted(shards)
    # With two processes, each has a lane of its own, which is a shard here.
    assert len(shards) == (2 if place[2] == 2 else 4)
    # The first group comes first. Each shard takes one request.
    first = [shard.name for shard in parts[0].shards]
    assert {*fetched(store)[: len(first)]} == {*first}
    assert len([path for _, path in store.requests if "tfrecord" in path]) == len(shards)


def test_a_run_that_starts_again_fetches_only_what_is_missing(store, send, long, tmp_path):
    data_set = send(long)
    list(read(in_cache(data_set, ShardCache(tmp_path)), 1))
    wait_until(lambda: len(fetched(store)) == len(sizes_of_files(tmp_path)) == 4)
    wait_until(lambda: not list(tmp_path.rglob("*.tmp")))  # the last one gets its name
    store.requests.clear()
    check_same(read(long, 1, 330), read(in_cache(data_set, ShardCache(tmp_path)), 1, 330))
    third = next(shard_groups(long.manifest, 1, 640))
    wait_until(lambda: len(fetched(store)) >= 2)
    assert sorted(fetched(store)) == sorted(shard.name for shard in third.shards)


def test_eval_shards_come_one_after_the_other_and_stay_in_a_run(store, local, cached, cache_dir):
    shards = evaluation_shards(local.manifest, 6)
    assert [shard.instances for shard in shards] == [4, 3]
    data_set = cached()
    needed = size_of_group(local) + sum(shard.bytes for shard in shards)
    data_set.cache.require(needed, needed, shards)
    train = read(data_set, 40)
    for _ in range(3):
        list(itertools.islice(train, 10))
        ours, theirs = (
            readable(evaluation_batches(each, 2, max_batches=3), each) for each in (local, data_set)
        )
        check_same(ours, theirs)
        assert sum(sizes_of_files(cache_dir).values()) <= needed
    of_eval = [name for name in fetched(store) if name.startswith("eval")]
    assert of_eval == [shard.name for shard in shards]


def test_a_cache_that_is_too_small_is_an_error_that_names_the_size(local, cached):
    needed = size_of_group(local)
    data_set = cached(needed - 1)
    with pytest.raises(UserError, match="--cache_size") as raised:
        data_set.cache.require(needed, 2 * needed)
    assert f"give --cache_size={-(-needed // 1000)}kB or more" in str(raised.value)
    # So it is if nobody has asked before, and a later group is larger than the first one.
    sizes = [
        sum(shard.bytes for shard in group.shards)
        for group in itertools.islice(shard_groups(local.manifest, 1), 5)
    ]
    data_set = cached(max(sizes) - 1)
    with pytest.raises(UserError, match=f"give --cache_size={-(-max(sizes) // 1000)}kB or more"):
        list(read(data_set, 40))


def test_hosts_need_room_for_the_lanes_of_their_own_processes(long, monkeypatch):
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    whole = most_bytes_at_once(long.manifest, 1, 10**9, [0], 1)
    shard = max(shard.bytes for shard in long.manifest.shards)
    assert most_bytes_at_once(long.manifest, 1, 10**9, [0, 1], 2) == whole
    assert most_bytes_at_once(long.manifest, 1, 10**9, [1], 2) == shard
    # Each of four processes shares its lane with another one.
    assert most_bytes_at_once(long.manifest, 1, 10**9, [0, 2], 4) == shard
    assert most_bytes_at_once(long.manifest, 1, 10**9, [0, 1], 4) == whole


def flipped(content):
    return content[:-30] + bytes([content[-30] ^ 1]) + content[-29:]


def first_shard(data_set):
    return next(shard_groups(data_set.manifest, 1)).shards[0]


@pytest.mark.parametrize("times", [1, 3])
def test_a_shard_that_arrives_damaged_is_fetched_again(store, local, remote, cached, times, caplog):
    shard = first_shard(local)
    intact = local.path_of(shard).read_bytes()
    remote.path_of(shard).upload(flipped(intact))
    asked = []

    def repair(_number, method, path):
        asked.append(method == "GET" and path.endswith(shard.name))
        if sum(asked) == times + 1 and asked[-1]:
            asked.clear()
            remote.path_of(shard).upload(intact)

    store.before = repair
    check_same(read(local, 5), read(cached(), 5))
    warnings = [each.message for each in caplog.records if "arrived damaged" in each.message]
    assert warnings == [f"{remote.path_of(shard)} has arrived damaged: it is fetched again"] * times


@pytest.mark.parametrize("damage", ["flipped byte", "cut off", "empty", "missing"])
def test_a_shard_that_stays_damaged_is_one_line(store, local, remote, cached, cache_dir, damage):
    shard = first_shard(local)
    url, content = remote.path_of(shard), local.path_of(shard).read_bytes()
    if damage == "missing":
        url.unlink()
    else:
        url.upload(
            {"flipped byte": flipped(content), "cut off": content[:-9], "empty": b""}[damage]
        )
    store.reset()
    with pytest.raises(UserError) as raised:
        list(read(cached(), 5))
    message = str(raised.value)
    assert str(url) in message
    assert ("is missing" if damage == "missing" else "SHA-256") in message
    assert "generate the data set again" in message
    assert "\n" not in message
    assert fetched(store).count(shard.name) == (1 if damage == "missing" else 4)
    # What was half there has gone; what is whole stays.
    names = sizes_of_files(cache_dir)
    assert all(name.endswith(".tfrecord") for name in names)
    assert not any(name.startswith(shard.sha256) for name in names)


def test_records_that_cannot_be_read_are_named_with_their_url(send, long, tmp_path):
    shard = first_shard(long)
    content = flipped(long.path_of(shard).read_bytes())
    remote = send(long)
    remote.path_of(shard).upload(content)
    shards = [
        dataclasses.replace(each, sha256=sha256(content).hexdigest()) if each == shard else each
        for each in long.manifest.shards
    ]
    manifest = dataclasses.replace(long.manifest, shards=shards)
    data_set = in_cache(DataSet(remote.directory, manifest), ShardCache(tmp_path))
    with pytest.raises(UserError, match="generate it again") as raised:
        list(read(data_set, 400))
    assert f"record 160 of {remote.path_of(shard)} is damaged" in str(raised.value)


def test_a_full_disk_is_one_line(cached, cache_dir, monkeypatch):
    def fail(_url, file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(StoredPath, "download", fail)
    with pytest.raises(UserError, match="no space is left for the cache") as raised:
        list(read(cached(), 5))
    assert str(cache_dir) in str(raised.value)
    assert "--cache_size" in str(raised.value)
    assert not sizes_of_files(cache_dir)


def test_a_cache_that_cannot_be_written_is_one_line(cached, cache_dir):
    cache_dir.write_bytes(b"a file of the user's own")
    with pytest.raises(UserError, match="cannot use the cache") as raised:
        list(read(cached(), 5))
    assert str(cache_dir) in str(raised.value)


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-9], lambda _: b""])
def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(store, local, cached, damage):
    shard = first_shard(local)
    list(read(cached(), 5))
    file = cached().path_of(shard)
    file.write_bytes(damage(file.read_bytes()))
    store.requests.clear()
    check_same(read(local, 5), read(cached(), 5))
    assert fetched(store).count(shard.name) == 1


def test_a_damaged_file_stays_once_another_process_has_fetched_it_again(local, cached):
    list(read(cached(), 5))
    data_set = cached()
    file = data_set.path_of(first_shard(local))
    content = file.read_bytes()
    file.write_bytes(flipped(content))
    held = {file: hold(file)}
    again = temporary_name(file)
    again.write_bytes(content)
    again.replace(file)
    data_set.cache.verify(held)
    assert not held
    assert file.read_bytes() == content


def test_nothing_of_the_users_own_is_removed(local, cached, cache_dir):
    folder = cache_dir / "clozemill-shards"
    folder.mkdir(parents=True)
    own = [cache_dir / "notes.txt", folder / "notes.txt", cache_dir / f"{'0' * 64}-9.tfrecord"]
    own += [temporary_name(cache_dir / "half"), folder / "train-00000-of-00001.tfrecord"]
    for path in own:
        path.write_bytes(b"own")
    check_same(read(local, 40), read(cached(size_of_group(local)), 40))
    assert all(path.read_bytes() == b"own" for path in own)


def test_files_that_others_read_stay_until_they_have_read_them(send, local, long, tmp_path):
    theirs = in_cache(send(long), ShardCache(tmp_path, 10**6))
    group = next(shard_groups(long.manifest, 1)).shards
    theirs.open(group, [])
    held = sum(shard.bytes for shard in group)
    size = held + size_of_group(local)
    ours = in_cache(send(local), ShardCache(tmp_path, size))
    check_same(read(local, 60), read(ours, 60))
    assert all(theirs.path_of(shard).exists() for shard in group)
    assert sum(sizes_of_files(tmp_path).values()) <= size
    # When they are given up, they go first.
    theirs.open(next(shard_groups(long.manifest, 1, 640)).shards[:1], [])


def test_others_that_use_all_room_are_an_error_after_a_while(
    send, local, long, tmp_path, monkeypatch
):
    monkeypatch.setattr(shard_cache, "_SECONDS_WITHOUT_ROOM", 0.2)
    theirs = in_cache(send(long), ShardCache(tmp_path))
    group = next(shard_groups(long.manifest, 1)).shards
    theirs.open(group, [])
    size = sum(shard.bytes for shard in group)
    ours = in_cache(send(local), ShardCache(tmp_path, size))
    with pytest.raises(UserError, match="other processes"):
        list(read(ours, 5))


def test_the_time_in_which_others_fetch_is_no_time_without_room(local, cached, monkeypatch):
    monkeypatch.setattr(shard_cache, "_SECONDS_WITHOUT_ROOM", 0.2)
    data_set, find, times = cached(), ShardCache.find, itertools.count()

    def find_late(*arguments, **options):
        if (number := next(times)) == 0:
            time.sleep(0.3)
            return {}, []
        return None if number == 1 else find(*arguments, **options)

    monkeypatch.setattr(ShardCache, "find", find_late)
    check_same(read(local, 5), read(data_set, 5))


def test_without_a_size_nobody_waits_for_another_run_or_takes_what_it_needs(
    send, local, long, tmp_path
):
    theirs, same = (in_cache(send(each), ShardCache(tmp_path)) for each in (long, local))
    for data_set in (theirs, same):
        data_set.cache.require(size := size_of_group(data_set), 2 * size)
    group, following = itertools.islice(shard_groups(long.manifest, 1), 2)
    theirs.open(group.shards, following.shards)
    same.open(next(shard_groups(local.manifest, 1, 17)).shards, [])
    wait_until(lambda: all(map(exists_in(theirs), following.shards)))
    ours = in_cache(DataSet(same.directory, local.manifest), ShardCache(tmp_path))
    size = size_of_group(local)
    ours.cache.require(size, size)
    check_same(read(local, 60), read(ours, 60))
    assert all(map(exists_in(theirs), group.shards + following.shards))


def test_without_a_size_old_shards_of_other_data_sets_go_first(send, local, long, tmp_path):
    ours, theirs = (in_cache(send(each), ShardCache(tmp_path)) for each in (local, long))
    shards = next(shard_groups(long.manifest, 1)).shards
    theirs.open(shards, [])
    theirs.open(shards[:1], [])
    for shard in shards:
        os.utime(theirs.path_of(shard), (0, 0))
    size = size_of_group(local)
    ours.cache.require(size, 2 * size)
    list(read(ours, 5))
    # The first one is still in use.
    assert list(map(exists_in(theirs), shards)) == [True, False]


def exists_in(data_set):
    return lambda shard: data_set.path_of(shard).exists()


FETCHES_A_GROUP = """
import sys
from pathlib import Path
from modeling.shard_cache import ShardCache, in_cache
from pipeline.manifest import DataSet
from pipeline.storage import location
data_set = in_cache(DataSet.read(location(sys.argv[1])), ShardCache(Path(sys.argv[2])))
shards = [shard for shard in data_set.manifest.shards if shard.name in sys.argv[3:]]
print("ready", flush=True)
sys.stdin.readline()
data_set.open(shards, [])
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def start_process(cache_dir):
    """A function that starts a process that opens shards when it gets a line, and holds them."""
    started = []

    def start(data_set, shards):
        arguments = [str(data_set.directory), str(cache_dir), *(shard.name for shard in shards)]
        process = subprocess.Popen(
            [sys.executable, "-c", FETCHES_A_GROUP, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_fetching_of_a_killed_process_is_taken_over(
    store, remote, cached, cache_dir, start_process
):
    shards = evaluation_shards(remote.manifest)
    process = start_process(remote, shards)
    store.requests.clear()
    killed = threading.Event()

    def kill(_number, _method, path):
        if path.endswith(shards[1].name) and not killed.is_set():
            wait_until(lambda: list((cache_dir / "clozemill-shards").glob("*.tmp")))
            process.kill()
            process.wait()
            killed.set()

    store.before = kill
    process.stdin.write("\n")
    assert killed.wait(20)
    assert list(cache_dir.rglob("*.tmp"))
    started = time.monotonic()
    data_set = cached(sum(shard.bytes for shard in shards))
    data_set.open(shards, [])
    assert time.monotonic() - started < 5
    assert sorted(sizes_of_files(cache_dir)) == sorted(data_set.path_of(s).name for s in shards)


def test_the_fetching_of_a_suspended_process_is_an_error_after_a_while(
    store, remote, cached, start_process, monkeypatch
):
    monkeypatch.setattr(shard_cache, "_SECONDS_OF_SILENCE", 0.5)
    shards = evaluation_shards(remote.manifest)
    process = start_process(remote, shards)
    suspended = threading.Event()

    def suspend(_number, _method, path):
        if path.endswith(".tfrecord") and not suspended.is_set():
            process.send_signal(signal.SIGSTOP)
            suspended.set()

    store.before = suspend
    process.stdin.write("\n")
    assert suspended.wait(20)
    with pytest.raises(UserError, match="end it if it is suspended"):
        cached().open(shards, [])


def test_one_process_fetches_and_the_others_wait(store, remote, cached, start_process):
    shards = evaluation_shards(remote.manifest)
    processes = [start_process(remote, shards) for _ in range(2)]
    store.requests.clear()
    store.before = lambda *_: time.sleep(0.2)
    for process in processes:
        process.stdin.write("\n")
    cached().open(shards, [])
    assert [process.stdout.readline() for process in processes] == ["open\n"] * 2
    assert sorted(fetched(store)) == sorted(shard.name for shard in shards)
