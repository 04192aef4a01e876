"""Training on a data set that is on a store, with steps that compute nothing."""

import dataclasses
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest

from modeling import batches
from modeling.checkpoints.run_checkpoints import list_checkpoints
from modeling.losses import SUMS
from modeling.shard_cache import ShardCache, in_cache
from modeling.training import dry_run
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend


@pytest.fixture
def local(tmp_path, write_data_set, monkeypatch):
    """A data set of two passes, each of three groups of two shards, and of two eval shards."""
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    shards = [("train", pass_index, 160) for pass_index in (0, 1) for _ in range(6)]
    return write_data_set(tmp_path / "data", [*shards, ("eval", 0, 4), ("eval", 0, 4)])


@pytest.fixture
def cached(local, send_data_set, tmp_path):
    """A function that gives it with a cache, as a process of its own would have it."""
    remote = send_data_set(local)
    return lambda size=None: in_cache(remote, ShardCache(tmp_path / "cache", size))


@pytest.fixture
def options(few_steps):
    """Options with which training reads three groups and evaluates."""
    return dataclasses.replace(
        few_steps, num_train_steps=200, save_checkpoints_steps=50, eval_every_steps=60
    )


def sizes_of_files(tmp_path):
    return [path.stat().st_size for path in (tmp_path / "cache").rglob("*.tfrecord")]


def names_of(requests):
    return [path.rpartition("/")[2] for _, path in requests if path.endswith("tfrecord")]


def check_same(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        assert all(np.array_equal(values, their[name]) for name, values in our.items())


def test_steps_and_evaluations_get_the_batches_of_a_disk(
    fake_run, cached, options, first_batches, local, store, tmp_path, evaluation_lines
):
    run_dir, step = fake_run(options, cached())
    check_same(step.batches, first_batches(local, 200))
    assert len(evaluation_lines(run_dir)) == 4
    # Of four groups that came, three were read; the cache keeps two, beside the eval shards.
    names = names_of(store.requests)
    assert len(names) == len({*names}) <= 4 * 2 + 2
    largest = max(shard.bytes for shard in local.manifest.shards)
    assert sum(sizes_of_files(tmp_path)) <= (4 + 2) * largest


def test_a_run_resumes_within_a_group_and_fetches_no_other(
    fake_run, cached, options, first_batches, local, store
):
    def kill(step):
        if step == 117:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake_run(options, cached(), at_step=kill)
    store.requests.clear()
    run_dir, step = fake_run(options, cached())
    assert list_checkpoints(run_dir)[-1].name == "step-00000200"
    check_same(step.batches, first_batches(local, 200)[100:])
    # It resumes at instance 400 of groups of 320. The second and the third one have come before.
    groups = itertools.islice(batches.shard_groups(local.manifest, options.random_seed), 4)
    fourth = {shard.name for shard in list(groups)[3].shards}
    assert {*names_of(store.requests)} <= fourth


def test_a_new_host_fetches_the_group_in_which_it_resumes_and_the_next(
    fake_run, cached, options, local, store, tmp_path
):
    options = dataclasses.replace(options, num_train_steps=100)
    fake_run(options, cached())
    (tmp_path / "cache").rename(tmp_path / "of another host")
    store.requests.clear()
    fake_run(dataclasses.replace(options, num_train_steps=105, eval_every_steps=0), cached())
    groups = itertools.islice(batches.shard_groups(local.manifest, options.random_seed), 3)
    _, second, third = ({shard.name for shard in group.shards} for group in groups)
    assert second <= {*names_of(store.requests)} <= second | third


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_first_shards_come_ends_training_at_once(
    fake_run, cached, options, store, signal_number
):
    data_set, may_answer, times = cached(), threading.Event(), []

    def answer_late(_number, _method, path):
        if path.endswith("tfrecord"):
            if not times:
                times.append(time.monotonic())
                os.kill(os.getpid(), signal_number)
            may_answer.wait(20)

    store.before = answer_late
    try:
        with pytest.raises(SystemExit) as raised:
            fake_run(options, data_set, at_step=lambda step: pytest.fail(f"step {step}"))
        assert time.monotonic() - times[0] < 2
    finally:
        may_answer.set()
    assert raised.value.code == 128 + signal_number


def test_what_cannot_be_fetched_ends_training_with_one_line(fake_run, cached, options):
    data_set = cached()
    shards = next(batches.shard_groups(data_set.manifest, options.random_seed)).shards
    data_set.source_of(shards[0]).unlink()
    with pytest.raises(UserError, match="is missing") as raised:
        fake_run(options, data_set, at_step=lambda step: pytest.fail(f"step {step}"))
    assert str(data_set.source_of(shards[0])) in str(raised.value)


def test_a_cache_that_is_too_small_is_found_before_anything_is_fetched(
    fake_run, cached, options, local, store
):
    shards = local.manifest.shards
    group = 2 * shards[0].bytes
    with_eval = group + sum(shard.bytes for shard in shards[-2:])
    for changes, needed in (({}, with_eval), ({"eval_every_steps": 0}, group)):
        with pytest.raises(UserError, match=f"give --cache_size={-(-needed // 1000)}kB or more"):
            fake_run(dataclasses.replace(options, **changes), cached(needed - 1))
    assert not store.requests
    fake_run(dataclasses.replace(options, eval_every_steps=0), cached(group))


@pytest.mark.parametrize("groups", [1, 2])
def test_waiting_for_the_store_counts_as_waiting_for_input(
    fake_run, cached, options, local, store, training_lines, groups
):
    def answer_slowly(_number, _method, path):
        time.sleep(0.5 * path.endswith("tfrecord"))

    options = dataclasses.replace(
        options, eval_every_steps=0, log_every_steps=100, num_train_steps=100
    )
    store.before = answer_slowly
    run_dir, _ = fake_run(
        options,
        cached(groups * 2 * local.manifest.shards[0].bytes),
        at_step=lambda _step: time.sleep(0.02),
    )
    # The second group, which is read from step 81 on, comes ahead if there is room for two.
    (line,) = training_lines(run_dir)
    waited = line["input_wait"] * 99 * 4 / line["sequences_per_second"]
    assert waited > 0.3 if groups == 1 else waited < 0.3


def test_a_dry_run_fetches_no_more_than_it_reads(
    cached, options, store, shallow_config, tmp_path, monkeypatch
):
    results = dict.fromkeys((*SUMS, "masked_lm_weights", "sequences"), 1.0)
    monkeypatch.setattr(dry_run, "TrainStep", lambda *_: lambda _batch: results)
    report = list(dry_run.dry_run(cached(), tmp_path / "run", shallow_config, options))
    assert report[-1].startswith("step 2")
    # Two batches of four are of one shard.
    assert len(names_of(store.requests)) == 1
