"""The training loop, with steps that compute nothing."""

import contextlib
import dataclasses
import itertools
import json
import logging
import shutil
import sys
import time

import numpy as np
import pytest

from modeling import batches
from modeling.checkpoints.run_checkpoints import list_checkpoints, read_state
from modeling.job.group import ProcessGroup
from modeling.losses import SUMS
from modeling.training import loop, run_writer, shard_verifier
from modeling.training_options import Precision
from pipeline.errors import UserError
from pipeline.files import sha256_of


@pytest.mark.no_backend
@pytest.mark.parametrize("log_every_steps", [1, 7, 50])
@pytest.mark.parametrize(
    ("bad_step", "results", "last_checkpoint"),
    [
        (1, {"masked_lm_nll": np.nan}, None),
        (5, {"next_sentence_nll": np.inf}, None),
        (12, {"gradient_norm": np.inf}, "step-00000010"),
        (24, {"gradient_norm": np.nan}, "step-00000020"),
    ],
)
def test_first_bad_step_is_named_with_its_shards_and_the_last_good_checkpoint(
    fake_run,
    tmp_path,
    passes,
    instance_numbers,
    bad_step,
    results,
    last_checkpoint,
    log_every_steps,
    few_steps,
    read_lines,
    first_batches,
):
    manifest = passes.manifest
    options = dataclasses.replace(few_steps, log_every_steps=log_every_steps)
    results_at = {bad_step: results, bad_step + 2: {"masked_lm_nll": np.nan}}
    with pytest.raises(UserError, match=f"at step {bad_step},") as raised:
        fake_run(options, passes, results_at=results_at)
    message = str(raised.value)

    batch = first_batches(passes, bad_step)[-1]
    shards = {manifest.shards[number // 5].name for number in instance_numbers(batch)}
    named = {shard.name for shard in manifest.shards if shard.name in message}
    assert shards <= named
    assert len(named) <= 4

    saved = [path.name for path in list_checkpoints(tmp_path / "run")]
    assert saved[-1:] == [last_checkpoint][: bool(last_checkpoint)]
    assert (last_checkpoint or "does not exist yet") in message
    for line in read_lines(tmp_path / "run"):
        assert line["step"] < bad_step
        assert np.isfinite(list(line.values())).all()


@pytest.mark.no_backend
def test_a_line_has_the_sums_of_all_steps_since_the_last_one(fake_run, training_lines):
    results_at = {step: {"masked_lm_nll": float(step)} for step in range(1, 25)}
    run_dir, _ = fake_run(results_at=results_at)
    losses = [line["masked_lm_loss"] for line in training_lines(run_dir)]
    assert losses == pytest.approx([4, 11, 18, 23], rel=1e-4)


class Slow(float):
    """A number that takes a while to be computed."""

    def __float__(self):
        time.sleep(0.02)
        return 1.0


@pytest.mark.no_backend
@pytest.mark.parametrize("changes", [{"save_checkpoints_steps": 3}, {"eval_every_steps": 3}])
def test_waiting_for_steps_before_a_checkpoint_or_evaluation_counts_as_training(
    fake_run, monkeypatch, changes, few_steps, training_lines
):
    monkeypatch.setattr(loop, "evaluation_sums", lambda _step, _batches: fake_sums())
    results_at = {step: {"masked_lm_nll": Slow()} for step in range(1, 25)}
    run_dir, _ = fake_run(dataclasses.replace(few_steps, **changes), results_at=results_at)
    for line in training_lines(run_dir):
        assert line["sequences_per_second"] <= 4 / 0.02


def fake_sums():
    return dict.fromkeys((*SUMS, "masked_lm_weights", "sequences"), 1.0)


def slowly(function):
    def wait_and_call(*arguments):
        time.sleep(0.5)
        return function(*arguments)

    return wait_and_call


@pytest.mark.no_backend
def test_checkpoints_and_evaluations_do_not_count_as_training(
    fake_run, monkeypatch, few_steps, training_lines
):
    monkeypatch.setattr(loop, "evaluation_sums", slowly(lambda _step, _batches: fake_sums()))
    monkeypatch.setattr(run_writer, "save_checkpoint", slowly(run_writer.save_checkpoint))
    options = dataclasses.replace(
        few_steps,
        num_train_steps=4,
        log_every_steps=2,
        eval_every_steps=3,
        save_checkpoints_steps=3,
    )
    run_dir, _ = fake_run(options)
    assert training_lines(run_dir)[1]["sequences_per_second"] > 2 * 4 / 0.5


@pytest.mark.no_backend
def test_compiling_does_not_count_as_training(fake_run, few_steps, training_lines):
    options = dataclasses.replace(few_steps, num_train_steps=3, log_every_steps=3)
    run_dir, _ = fake_run(options, at_step=lambda step: time.sleep(0.5 * (step == 1)))
    (line,) = training_lines(run_dir)
    assert line["sequences_per_second"] > 3 * 4 / 0.5


@pytest.mark.no_backend
def test_batches_grow_during_their_warm_up_and_keep_the_order_of_the_data(
    fake_run, passes, few_steps, instance_numbers, first_batches, caplog
):
    options = dataclasses.replace(few_steps, num_train_steps=20, batch_size_warmup_steps=12)
    sizes = [*np.repeat([1, 1, 2, 2, 3, 4], 2), *[4] * 8]
    for last in (7, 13, 21):
        with contextlib.suppress(KeyboardInterrupt), caplog.at_level("INFO", logger="absl"):
            run_dir, steps = fake_run(
                options, passes, at_step=lambda step, last=last: end(step, last)
            )
    assert [len(batch["input_ids"]) for batch in steps.batches] == sizes[10:]
    batches = [instance_numbers(batch) for batch in first_batches(passes, 20)]
    numbers = list(itertools.chain(*batches))
    ends = np.cumsum(sizes)
    expected = [numbers[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    assert [instance_numbers(batch) for batch in steps.batches] == expected[10:]
    assert read_state(list_checkpoints(run_dir)[-1]).instances_seen == sum(sizes)
    (described,) = {message for message in caplog.messages if message.startswith("an update:")}
    assert described.endswith("; over the first 12 steps, batches of 1, 2, 3, 4")
    # The last start is of one size alone.
    compiled = [message[-1] for message in caplog.messages if "for batches of" in message]
    assert compiled == ["2", "3", "4"]


def end(step, last):
    if step == last:
        raise KeyboardInterrupt


@pytest.mark.no_backend
def test_compiling_for_another_size_does_not_count_as_training(fake_run, few_steps, training_lines):
    options = dataclasses.replace(
        few_steps, num_train_steps=9, log_every_steps=9, batch_size_warmup_steps=7
    )
    run_dir, _ = fake_run(options, at_step=lambda step: time.sleep(0.5 * (step in (1, 3, 6, 7))))
    (line,) = training_lines(run_dir)
    assert line["sequences_per_second"] > 2 * 4 / 0.5


@pytest.mark.no_backend
def test_the_shards_of_a_small_batch_are_named(
    fake_run, passes, few_steps, instance_numbers, first_batches
):
    options = dataclasses.replace(few_steps, batch_size_warmup_steps=24)
    with pytest.raises(UserError, match="at step 11,") as raised:
        fake_run(options, passes, results_at={11: {"masked_lm_nll": np.nan}})
    # After 8 batches of one instance and 2 of two.
    numbers = list(itertools.chain(*map(instance_numbers, first_batches(passes, 4))))[12:14]
    named = {shard.name for shard in passes.manifest.shards if shard.name in str(raised.value)}
    assert {passes.manifest.shards[number // 5].name for number in numbers} <= named
    assert len(named) <= 4


@pytest.mark.no_backend
def test_waiting_for_batches_is_reported(fake_run, monkeypatch, few_steps, training_lines):
    options = dataclasses.replace(few_steps, num_train_steps=6, log_every_steps=3)
    run_dir, _ = fake_run(options, at_step=lambda _step: time.sleep(0.2))
    assert all(line["input_wait"] < 0.5 for line in training_lines(run_dir))
    shutil.rmtree(run_dir)
    read = loop.readable

    def read_slowly(*arguments):
        for batch in read(*arguments):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(loop, "readable", read_slowly)
    run_dir, _ = fake_run(options, at_step=lambda _step: time.sleep(0.05))
    assert all(line["input_wait"] > 0.5 for line in training_lines(run_dir))


@pytest.mark.no_backend
def test_evaluations_read_the_same_few_batches_each_time(
    fake_run, monkeypatch, instance_numbers, few_steps, evaluation_lines
):
    read = []

    def evaluate(_step, batches):
        read.append([instance_numbers(batch) for batch in batches])
        return fake_sums()

    monkeypatch.setattr(loop, "evaluation_sums", evaluate)
    options = dataclasses.replace(few_steps, eval_every_steps=10, max_eval_steps=2)
    run_dir, _ = fake_run(options)
    assert read == [[[26, 27, 28], [29, 30, 31]]] * 3
    assert [line["step"] for line in evaluation_lines(run_dir)] == [10, 20, 24]


@pytest.mark.no_backend
def test_evaluation_ends_with_the_last_batch(fake_run, monkeypatch, instance_numbers, few_steps):
    read = []

    def evaluate(_step, batches):
        read.extend(instance_numbers(batch) for batch in batches)
        return fake_sums()

    monkeypatch.setattr(loop, "evaluation_sums", evaluate)
    fake_run(dataclasses.replace(few_steps, eval_every_steps=24, max_eval_steps=100))
    assert read == [[26, 27, 28], [29, 30, 31], [32]]


@pytest.mark.no_backend
def test_data_set_without_eval_instances_is_reported_before_training(fake_run, passes, few_steps):
    options = dataclasses.replace(few_steps, eval_every_steps=10)
    with pytest.raises(UserError, match="no eval instance"):
        fake_run(options, passes, at_step=lambda step: pytest.fail(f"step {step}"))


@pytest.mark.no_backend
def test_eval_instances_are_not_needed_without_evaluations(fake_run, passes, evaluation_lines):
    run_dir, _ = fake_run(data_set=passes)
    assert evaluation_lines(run_dir) == []


@pytest.mark.no_backend
def test_data_set_without_training_instances_is_reported(fake_run, tmp_path, write_data_set):
    data_set = write_data_set(tmp_path / "data", [("eval", 0, 3)])
    with pytest.raises(UserError, match="no training instance"):
        fake_run(data_set=data_set)


@pytest.mark.no_backend
@pytest.mark.parametrize("damage", ["missing", "cut off", "flipped byte"])
def test_damaged_shard_is_reported(fake_run, tmp_path, write_data_set, damage):
    data_set = write_data_set(tmp_path / "data", [("train", 0, 9), ("train", 0, 9)])
    shard = data_set.path_of(data_set.manifest.shards[1])
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "cut off":
        shard.write_bytes(content[:-5])
    else:
        content[40] ^= 1
        shard.write_bytes(content)
    with pytest.raises(UserError) as raised:
        fake_run(data_set=data_set)
    expected = "record 1 of " if damage == "flipped byte" else "clozemill verify"
    assert expected in str(raised.value)
    assert str(shard) in str(raised.value)


@pytest.mark.no_backend
@pytest.mark.parametrize("damaged", [0, 10])
def test_nothing_is_saved_after_a_batch_of_a_shard_with_a_wrong_sha256(
    fake_run,
    tmp_path,
    passes,
    swap_records,
    instance_numbers,
    few_steps,
    first_batches,
    monkeypatch,
    damaged,
):
    options = dataclasses.replace(few_steps, num_train_steps=15, save_checkpoints_steps=1)
    first_batches = first_batches(passes, 15)
    shard = passes.manifest.shards[damaged]
    intact = passes.path_of(shard).read_bytes()
    swap_records(passes.path_of(shard))

    def read_slowly(path):
        # Long enough for several steps and checkpoints.
        time.sleep(0.5 * (path == passes.path_of(shard)))
        return sha256_of(path)

    monkeypatch.setattr(shard_verifier, "sha256_of", read_slowly)
    first_step = next(
        step
        for step, batch in enumerate(first_batches, 1)
        if damaged in {number // 5 for number in instance_numbers(batch)}
    )
    for _ in range(2):
        with pytest.raises(UserError, match="SHA-256") as raised:
            fake_run(options, passes)
        assert str(passes.path_of(shard)) in str(raised.value)
        saved = [path.name for path in list_checkpoints(tmp_path / "run")]
        assert all(name < f"step-{first_step:08d}" for name in saved)
    # Resumes when the shard is as it was.
    monkeypatch.setattr(shard_verifier, "sha256_of", sha256_of)
    passes.path_of(shard).write_bytes(intact)
    run_dir, _ = fake_run(options, passes)
    assert list_checkpoints(run_dir)[-1].name == "step-00000015"


@pytest.mark.no_backend
def test_a_later_group_is_verified_when_it_is_reached(
    fake_run, tmp_path, write_data_set, monkeypatch, swap_records, few_steps
):
    monkeypatch.setattr(batches, "_SHARDS_PER_GROUP", 2)
    data_set = write_data_set(tmp_path / "data", [("train", 0, 160)] * 6)
    seed = few_steps.random_seed
    first, second = itertools.islice(batches.shard_groups(data_set.manifest, seed), 2)
    swap_records(data_set.path_of(second.shards[0]))
    run_dir, _ = fake_run(dataclasses.replace(few_steps, num_train_steps=8), data_set)
    options = dataclasses.replace(few_steps, num_train_steps=100, save_checkpoints_steps=20)
    with pytest.raises(UserError, match=second.shards[0].name):
        fake_run(options, data_set)
    assert first.num_instances == 80 * few_steps.train_batch_size
    saved = [path.name for path in list_checkpoints(run_dir)]
    assert "step-00000020" <= saved[-1] <= "step-00000080"


@pytest.mark.no_backend
def test_a_wrong_sha256_is_found_at_the_next_batch(fake_run, passes, swap_records, few_steps):
    for shard in passes.manifest.shards:
        swap_records(passes.path_of(shard))
    options = dataclasses.replace(few_steps, num_train_steps=2000, save_checkpoints_steps=2000)
    steps = []
    with pytest.raises(UserError, match="SHA-256"):
        fake_run(options, passes, at_step=lambda step: steps.append(step) or time.sleep(0.01))
    assert len(steps) < 1000


@pytest.mark.no_backend
def test_data_that_is_not_verified_is_trained_on(fake_run, passes, swap_records, few_steps):
    for shard in passes.manifest.shards:
        swap_records(passes.path_of(shard))
    run_dir, _ = fake_run(dataclasses.replace(few_steps, verify_data=False), passes)
    assert list_checkpoints(run_dir)


@pytest.mark.no_backend
def test_no_result_of_damaged_eval_shards_is_written(
    fake_run, tmp_path, write_data_set, swap_records, monkeypatch, few_steps, evaluation_lines
):
    monkeypatch.setattr(loop, "evaluation_sums", lambda _step, batches: [*batches] and fake_sums())
    data_set = write_data_set(tmp_path / "data", [("train", 0, 9), ("eval", 0, 9)])
    swap_records(data_set.path_of(data_set.manifest.shards[1]))
    options = dataclasses.replace(few_steps, eval_every_steps=7)
    with pytest.raises(UserError, match=r"eval-\S* is damaged"):
        fake_run(options, data_set)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000005"]
    assert not evaluation_lines(tmp_path / "run")


@pytest.mark.no_backend
def test_all_processes_verify_before_the_first_one_saves(fake_run, monkeypatch, few_steps):
    events = []
    monkeypatch.setattr(loop.ShardVerifier, "wait", lambda _verifier: events.append("verified"))
    monkeypatch.setattr(ProcessGroup, "wait_for_all", lambda _group: events.append("all are here"))
    monkeypatch.setattr(run_writer, "save_checkpoint", lambda *_: events.append("saved"))
    fake_run(dataclasses.replace(few_steps, save_checkpoints_steps=24))
    assert events == ["verified", "all are here", "saved", "all are here"]


def fail_with(message):
    raise RuntimeError(message)


def test_lack_of_memory_is_reported_with_remedies(fake_run):
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1234 bytes."
    with pytest.raises(UserError, match="--gradient_accumulation_steps") as raised:
        fake_run(at_step=lambda _step: fail_with(message))
    for flag in ("--precision=bfloat16", "--recompute_activations"):
        assert flag in str(raised.value)


@pytest.mark.no_backend
def test_other_failures_of_a_step_are_not_user_errors(fake_run):
    with pytest.raises(RuntimeError, match="bad instruction"):
        fake_run(at_step=lambda _step: fail_with("bad instruction"))


def test_loss_scale_is_reported_for_float16(fake_run, monkeypatch, few_steps, training_lines):
    monkeypatch.setattr(loop, "check_precision", lambda _precision: None)
    options = dataclasses.replace(few_steps, precision=Precision.FLOAT16)
    run_dir, _ = fake_run(options, results_at={step: {"updates_left_out": 1.0} for step in (9, 10)})
    lines = training_lines(run_dir)
    assert [line["updates_left_out"] for line in lines] == [0, 2, 0, 0]
    assert {line["loss_scale"] for line in lines} == {2.0**15}


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
def test_loss_scale_is_not_reported_for_other_precisions(
    fake_run, precision, few_steps, read_lines
):
    run_dir, _ = fake_run(dataclasses.replace(few_steps, precision=precision))
    assert not any({"loss_scale", "updates_left_out"} & line.keys() for line in read_lines(run_dir))


@pytest.mark.no_backend
def test_utilization_is_reported_if_the_peak_is_known(fake_run, monkeypatch, training_lines):
    monkeypatch.setattr(loop, "device_names", lambda: ["NVIDIA H100 80GB HBM3"])
    run_dir, _ = fake_run()
    for line in training_lines(run_dir):
        expected = line["model_flops_per_second"] / 989e12
        assert line["model_flops_utilization"] == pytest.approx(expected)
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["devices"] == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.no_backend
def test_missing_matplotlib_is_reported_at_the_end(fake_run, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.INFO, logger="absl"):
        run_dir, _ = fake_run(draws=True)
    assert "pip install 'clozemill[plot]'" in caplog.messages[-1]
    assert not (run_dir / "loss.png").exists()
