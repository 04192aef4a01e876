"""Runs on a store: what is sent when, what does not wait, and what a failure leaves there."""

import dataclasses
import hashlib
import json
import logging
import os
import signal
import threading
import time

import pytest

from modeling.checkpoints.run_checkpoints import CHECKPOINTS_NAME, list_checkpoints, read_state
from modeling.training import run_writer
from modeling.training.metrics import METRICS_NAME
from pipeline.errors import UserError
from pipeline.storage import LOCK_NAME, location

pytestmark = pytest.mark.no_backend
STATE, WEIGHTS, OPTIMIZER = "state.json", "weights.npz", "optimizer.npz"


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    server.reset()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    yield server
    server.reset()
    assert not list((tmp_path / "scratch").glob("clozemill*"))


def new_run_dir(store):
    """A place for a run in a bucket of its own."""
    run_dir = location(store.make_bucket()) / "runs" / "run"
    store.requests.clear()
    return run_dir


@pytest.fixture
def run_dir(store):
    return new_run_dir(store)


@pytest.fixture
def options(few_steps):
    """Saves after 4, 8, 12 and 14 steps, of which the last two stay."""
    return dataclasses.replace(
        few_steps, num_train_steps=14, save_checkpoints_steps=4, keep_checkpoints=2
    )


def names_in(run_dir):
    return [str(path.relative_to(run_dir)) for path in run_dir.rglob("*")]


def sent_to(run_dir, store):
    """The names in the run of the objects that were sent, in order."""
    prefix = f"/{run_dir.root.partition('://')[2]}/{run_dir.key}/"
    return [path.removeprefix(prefix) for method, path in store.requests if method == "PUT"]


def test_a_run_on_a_store_has_the_files_of_one_on_a_disk(fake_run, run_dir, options):
    fake_run(options, run_dir=run_dir, flags="--some\n")
    on_disk, _ = fake_run(options, flags="--some\n")
    expected = {str(path.relative_to(on_disk)) for path in on_disk.rglob("*") if path.is_file()}
    found = set(names_in(run_dir))
    assert {name for name in found if "events" not in name} == {
        name for name in expected if "events" not in name
    }
    assert len(found) == len(expected)
    for checkpoint, other in zip(list_checkpoints(run_dir), list_checkpoints(on_disk), strict=True):
        assert (checkpoint / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
        states = [read_state(each) for each in (checkpoint, other)]
        assert states[0].sha256 == states[1].sha256
        assert states[0].metrics.bytes <= len((run_dir / METRICS_NAME).read_bytes())


def test_what_counts_comes_last_and_goes_first(fake_run, store, run_dir, options):
    seen = []

    def after(_number, method, _path):
        if method == "GET":
            return
        names = [name.split("/")[1:] for name in names_in(run_dir) if CHECKPOINTS_NAME in name]
        found = {step: {name for each, name in names if each == step} for step, _ in names}
        whole = [int(step[-2:]) for step, files in found.items() if STATE in files]
        assert all(len(found[f"step-{step:08d}"]) == 3 for step in whole)
        for step in whole:
            metrics = (run_dir / METRICS_NAME).read_bytes()
            written = read_state(run_dir / CHECKPOINTS_NAME / f"step-{step:08d}").metrics
            assert hashlib.sha256(metrics[: written.bytes]).hexdigest() == written.sha256
        if whole not in seen[-1:]:
            seen.append(whole)

    store.after = after
    fake_run(options, run_dir=run_dir)
    assert seen == [[], [4], [4, 8], [4, 8, 12], [8, 12], [8, 12, 14], [12, 14]]
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000012", "step-00000014"]


def test_steps_go_on_while_a_checkpoint_is_sent_and_wait_for_it_before_the_next(
    fake_run, store, run_dir, options
):
    is_slow, waited = threading.Event(), []
    first = run_dir / CHECKPOINTS_NAME / "step-00000004" / STATE

    def before(_number, method, path):
        if method == "PUT" and path.endswith(WEIGHTS):
            waited.append(is_slow.wait(20))

    def at_step(step):
        if step == 8:
            assert not waited
            threading.Timer(0.5, is_slow.set).start()
        assert step < 9 or first.exists()

    store.before = before
    fake_run(options, run_dir=run_dir, at_step=at_step)
    assert waited == [True] * 4


def test_a_run_resumes_with_nothing_but_the_store(fake_run, store, run_dir, options, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    fake_run(dataclasses.replace(options, num_train_steps=10), run_dir=run_dir)
    store.requests.clear()
    _, step = fake_run(options, run_dir=run_dir)
    assert len(step.batches) == 4
    read = [path.rpartition("/run/")[2] for method, path in store.requests if method == "GET"]
    assert f"{CHECKPOINTS_NAME}/step-00000010/{WEIGHTS}" in read
    assert not [name for name in read if "step-00000008" in name and not name.endswith(STATE)]
    lines = [json.loads(line) for line in (run_dir / METRICS_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines if "learning_rate" in line] == [7, 10, 14]
    assert len([name for name in names_in(run_dir) if "events" in name]) == 1
    assert f"resuming from {run_dir}/checkpoints/step-00000010" in caplog.text
    assert f"saved {run_dir}/checkpoints/step-00000014" in caplog.text
    fake_run(options, run_dir=run_dir)
    assert "nothing to do: the run has reached step 14" in caplog.text


def test_a_store_that_takes_no_more_ends_the_run_with_one_line_and_loses_nothing(
    fake_run, store, run_dir, options
):
    def before(_number, method, path):
        return 403 if method == "PUT" and "step-00000008" in path else None

    store.before = before
    with pytest.raises(
        UserError, match=f"cannot write the run {run_dir} .*the same command"
    ) as raised:
        fake_run(options, run_dir=run_dir)
    assert "\n" not in str(raised.value)
    assert "Errno" not in str(raised.value)
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000004"]
    store.reset()
    _, step = fake_run(options, run_dir=run_dir)
    assert len(step.batches) == 10
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000012", "step-00000014"]


def test_a_run_that_is_cut_off_at_a_request_resumes(fake_run, store, options):
    def names(run_dir):
        return {name for name in names_in(run_dir) if "events" not in name}

    uncut = new_run_dir(store)
    fake_run(options, run_dir=uncut)
    num_requests = len(store.requests)
    for point in (0.5, 0.8):
        run_dir = new_run_dir(store)
        first = int(point * num_requests)
        store.before = lambda number, *_, first=first: 403 if number >= first else None
        with pytest.raises((UserError, OSError)):
            fake_run(options, run_dir=run_dir)
        store.reset()
        fake_run(options, run_dir=run_dir)
        assert names(run_dir) == names(uncut)


def test_an_error_in_training_still_sends_what_is_there(fake_run, run_dir, options):
    def at_step(step):
        if step == 10:
            raise RuntimeError("bad instruction")

    with pytest.raises(RuntimeError, match="bad instruction"):
        fake_run(options, run_dir=run_dir, at_step=at_step)
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000004", "step-00000008"]
    assert (run_dir / METRICS_NAME).exists()


def test_a_signal_saves_a_checkpoint_which_arrives_before_the_process_ends(
    fake_run, store, run_dir, options
):
    def before(_number, method, path):
        if method == "PUT" and path.endswith(WEIGHTS):
            time.sleep(0.3)

    store.before = before
    with pytest.raises(SystemExit) as raised:
        fake_run(
            options,
            run_dir=run_dir,
            at_step=lambda step: step == 6 and os.kill(os.getpid(), signal.SIGTERM),
        )
    assert raised.value.code == 143
    assert [path.name for path in list_checkpoints(run_dir)] == ["step-00000004", "step-00000006"]


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before_it(
    fake_run, run_dir, options, caplog
):
    fake_run(options, run_dir=run_dir)
    weights = list_checkpoints(run_dir)[-1] / WEIGHTS
    weights.upload(weights.read_bytes()[:-9])
    _, step = fake_run(options, run_dir=run_dir)
    assert len(step.batches) == 2
    assert "is damaged" in caplog.text
    folders = {path.name.partition(".")[0] for path in (run_dir / CHECKPOINTS_NAME).iterdir()}
    assert folders == {"step-00000012", "step-00000014"}
    (aside,) = (run_dir / CHECKPOINTS_NAME).glob("*.damaged-*")
    assert {path.name for path in aside.iterdir()} == {STATE, WEIGHTS, OPTIMIZER}


def test_what_a_killed_run_had_sent_of_a_checkpoint_is_removed(fake_run, run_dir, options):
    fake_run(options, run_dir=run_dir)
    half = run_dir / CHECKPOINTS_NAME / "step-00000016" / WEIGHTS
    half.upload(b"a part")
    assert [path.name for path in list_checkpoints(run_dir)][-1] == "step-00000014"
    fake_run(options, run_dir=run_dir)
    assert not half.exists()


def test_kept_checkpoints_stay(fake_run, run_dir, options):
    fake_run(dataclasses.replace(options, keep_every_steps=6), run_dir=run_dir)
    names = [path.name for path in list_checkpoints(run_dir)]
    assert names == ["step-00000006", "step-00000012", "step-00000014"]


def test_metrics_come_between_checkpoints(fake_run, store, run_dir, options, monkeypatch):
    monkeypatch.setattr(run_writer, "_SECONDS_BETWEEN_METRICS", 0.0)
    options = dataclasses.replace(options, save_checkpoints_steps=14, log_every_steps=1)
    fake_run(options, run_dir=run_dir)
    sent = sent_to(run_dir, store)
    checkpoint = next(place for place, name in enumerate(sent) if CHECKPOINTS_NAME in name)
    assert sent[:checkpoint].count(METRICS_NAME) > 1


def test_the_end_does_not_wait_for_ever(fake_run, store, run_dir, options, monkeypatch):
    monkeypatch.setattr(run_writer, "_SECONDS_AT_END", 0.2)
    goes_on = threading.Event()
    store.before = lambda _number, method, path: (
        goes_on.wait(20) and None if method == "PUT" and path.endswith(WEIGHTS) else None
    )
    with pytest.raises(RuntimeError, match="bad instruction"):
        fake_run(options, run_dir=run_dir, at_step=lambda step: step == 6 and fail())
    goes_on.set()


def fail():
    raise RuntimeError("bad instruction")


def test_the_requests_of_a_checkpoint_are_those_that_the_readme_counts(
    fake_run, store, run_dir, options
):
    def wait_for_step_12(step):
        """So that what is logged at step 14 comes with the checkpoint of step 14."""
        deadline = time.monotonic() + 20
        while step == 13 and time.monotonic() < deadline:
            if any(path.endswith(f"step-00000012/{STATE}") for _, path in store.requests):
                return
            time.sleep(0.01)

    fake_run(options, run_dir=run_dir, at_step=wait_for_step_12)
    # The lock is renewed now and then, however many checkpoints there are.
    requests = [each for each in store.requests if not each[1].endswith(LOCK_NAME)]
    *_, before, last = (
        number
        for number, (method, path) in enumerate(requests)
        if method == "PUT" and path.endswith(STATE)
    )
    assert last - before == 13
