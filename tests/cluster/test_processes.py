"""`clozemill pretrain` with several processes trains as with one, and they end together."""

import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.run_checkpoints import list_checkpoints
from modeling.training.metrics import read_metrics
from pipeline.files import send_directory
from pipeline.json_files import DIGEST_KEY, write_json
from pipeline.records import read_frames
from pipeline.storage import location

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
NUM_STEPS = 80
NUM_STEPS_OF_LOSSES = 200
NUM_LOSSES = 10
SECONDS = 120
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
BACKENDS = ["tensorflow", pytest.param("jax", marks=[needs_jax, pytest.mark.slow])]
PRETRAIN = (
    *("pretrain", "--model=tiny", "--hidden_size=16", "--num_hidden_layers=1"),
    *("--num_attention_heads=2", "--intermediate_size=24", "--train_batch_size=8"),
    *("--learning_rate=1e-2", "--num_warmup_steps=2", "--log_every_steps=1"),
    *("--save_checkpoints_steps=1000", "--eval_every_steps=10", "--eval_batch_size=4"),
)
FIGURES = (
    *("masked_lm_loss", "next_sentence_loss", "masked_lm_accuracy", "next_sentence_accuracy"),
    "gradient_norm",
)
HOST = socket.gethostname()


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def places_of_two(*flags):
    """The flags by which two processes find each other."""
    address = free_address()
    return [
        (f"--coordinator_address={address}", "--num_processes=2", f"--process_id={i}", *flags)
        for i in range(2)
    ]


def start(directory, *arguments, num_devices=1, environment=None, program=("-m", "launch")):
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            # A model this small takes longer to compile than to run.
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            f"--xla_force_host_platform_device_count={num_devices}",
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(*processes, seconds=SECONDS):
    """Waits for the processes to end and returns their exit codes and stderr."""
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def run(directory, *arguments):
    """Runs a command, which must succeed, and returns its stderr."""
    (code,), (stderr,) = end_of(start(directory, *arguments))
    assert code == 0, stderr
    return stderr


def generate(data_dir, *flags):
    """Makes a data set of one pass in four shards, with enough instances for a whole training."""
    run(
        data_dir.parent,
        "generate",
        f"--input_file={SAMPLES / 'english.txt'}",
        f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
        f"--output_dir={data_dir}",
        *("--max_seq_length=16", "--max_predictions_per_seq=2"),
        *("--dupe_factor=1", "--num_shards=4", "--eval_fraction=0.1"),
        *flags,
    )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "data"
    generate(directory)
    return directory


def command(backend, data_dir, run_dir, *flags):
    return (
        *PRETRAIN,
        f"--backend={backend}",
        f"--data_dir={data_dir}",
        f"--output_dir={run_dir}",
        f"--num_train_steps={NUM_STEPS}",
        *flags,
    )


def two(*pretrain):
    return ("launch", "--processes=2", "--", *pretrain)


def wait_for(condition, process):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_step(run_dir, step, process):
    """Waits until a run has logged metrics of a step."""
    wait_for(lambda: any(line["step"] >= step for line in read_metrics(run_dir)), process)


def read_weights(run_dir, step=NUM_STEPS):
    with np.load(run_dir / "checkpoints" / f"step-{step:08d}" / "weights.npz") as weights:
        return dict(weights)


@pytest.fixture(scope="session")
def straight(data_dir, tmp_path_factory):
    """A function that returns the run directory of a single process on a backend, with dropout."""
    directory = tmp_path_factory.mktemp("straight")

    def train(backend):
        if not (directory / backend).exists():
            run(directory, *command(backend, data_dir, backend))
        return directory / backend

    return train


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_train_as_one_does(backend, data_dir, straight, tmp_path):
    stderr = run(tmp_path, *two(*command(backend, data_dir, "run")))
    assert_logged_once_and_in_full(stderr)
    assert_same_run(tmp_path / "run", straight(backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_resumed_by_two_and_then_by_one_is_that_of_one(backend, data_dir, straight, tmp_path):
    """The batches keep their order, although the run stops and resumes at arbitrary steps."""
    changing = command(backend, data_dir, "changing")
    # To save at every step takes time, so that the signal comes before the last step.
    slowly = (*changing, "--save_checkpoints_steps=1")
    stops = []
    for processes, step in (((), 3), (("two",), 9)):
        process = start(tmp_path, *(two(*slowly) if processes else slowly))
        wait_for_step(tmp_path / "changing", step, process)
        process.send_signal(signal.SIGTERM)
        (code,), (stderr,) = end_of(process)
        assert code == 143, stderr
        stops += [int(stop) for stop in re.findall(r"stopped by SIGTERM.* at step (\d+)", stderr)]
    assert len(stops) == 2
    assert 3 <= stops[0] < stops[1] < NUM_STEPS
    stderr = run(tmp_path, *changing)
    assert f"resuming from changing/checkpoints/step-{stops[1]:08d}" in stderr
    assert_same_run(tmp_path / "changing", straight(backend))


@pytest.mark.slow
@needs_jax
def test_processes_and_devices_that_divide_sequences_train_as_one(data_dir, straight, tmp_path):
    """A run changes how many devices divide a sequence, and whether they are of one process."""
    changing = command("jax", data_dir, "changing")
    # To save at every step takes time, so that the signal comes before the last step.
    slowly = (*changing, "--save_checkpoints_steps=1")
    stops = [0]
    for launched, num_devices, size in ((two, 1, 2), (tuple, 4, 4), (two, 2, 4)):
        words = (*slowly, f"--context_parallel={size}")
        pretrain = two(*words) if launched is two else words
        process = start(tmp_path, *pretrain, num_devices=num_devices)
        wait_for_step(tmp_path / "changing", stops[-1] + 3, process)
        process.send_signal(signal.SIGTERM)
        (code,), (stderr,) = end_of(process)
        assert code == 143, stderr
        stops += [int(stop) for stop in re.findall(r"stopped by SIGTERM.* at step (\d+)", stderr)]
        assert f"attention: by a ring of {size} devices" in stderr
    assert len(stops) == 4
    process = start(tmp_path, *two(*changing, "--context_parallel=2"), num_devices=2)
    (code,), (stderr,) = end_of(process)
    assert code == 0, stderr
    assert f"resuming from changing/checkpoints/step-{stops[-1]:08d}" in stderr
    assert "changed: --context_parallel was 4, is 2" in stderr
    assert "4 devices, batch 8: 4 for every 2 of them" in stderr
    assert_same_run(tmp_path / "changing", straight("jax"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_of_two_processes_grow_as_those_of_one(backend, data_dir, tmp_path):
    # A lower rate, because small batches make rounding errors grow.
    flags = "--train_batch_size=12", "--batch_size_warmup_steps=60", "--learning_rate=1e-3"
    run(tmp_path, *command(backend, data_dir, "straight", *flags))
    stderr = run(tmp_path, *two(*command(backend, data_dir, "run", *flags)))
    sizes = re.findall(r"compiling the step for batches of (\d+)", stderr)
    assert sizes == ["4", "6", "8", "10", "12"]
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=needs_jax)])
def test_a_run_on_packed_rows_that_two_processes_resume_is_that_of_one(backend, tmp_path):
    generate(tmp_path / "rows", "--packed_row_length=40")
    run(tmp_path, *command(backend, "rows", "straight"))
    changing = command(backend, "rows", "changing")
    process = start(tmp_path, *changing, "--save_checkpoints_steps=1")
    wait_for_step(tmp_path / "changing", 3, process)
    process.send_signal(signal.SIGTERM)
    (code,), (stderr,) = end_of(process)
    assert code == 143, stderr
    assert "resuming from changing/checkpoints/" in run(tmp_path, *two(*changing))
    assert_same_run(tmp_path / "changing", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_branch_from_a_run_of_the_other_backend(backend, data_dir, tmp_path):
    other = {"tensorflow": "jax", "jax": "tensorflow"}[backend]
    pytest.importorskip("jax")
    # A lower rate, because it stays longer at its peak.
    schedule = "--learning_rate_schedule=warmup_stable_decay", "--num_decay_steps=20"
    flags = *schedule, "--learning_rate=1e-3"
    source = command(other, data_dir, "source", *flags, "--keep_every_steps=30")
    run(tmp_path, *source, f"--num_train_steps={2 * NUM_STEPS}")
    branch = command(backend, data_dir, "branch", *flags, "--num_warmup_steps=2")
    stderr = run(tmp_path, *two(*branch, "--branch_from=source/checkpoints/step-00000030"))
    assert f"branching from step-00000030 of {tmp_path / 'source'}" in stderr
    run(tmp_path, *command(backend, data_dir, "straight", *flags))
    lines = [line for line in read_metrics(tmp_path / "straight") if line["step"] > 30]
    assert_near(list(read_metrics(tmp_path / "branch")), lines)
    assert_near_weights(tmp_path / "branch", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_train_new_rows_alone_as_one_does(backend, data_dir, tmp_path):
    tokens = (SAMPLES / "english_vocab.txt").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "old.txt").write_text("".join(tokens[:-90]), "utf-8")
    generate(tmp_path / "old_data", f"--vocab_file={tmp_path / 'old.txt'}")
    run(tmp_path, *command(backend, "old_data", "old", "--num_train_steps=2"))
    flags = "--init_checkpoint=old", "--freeze_old_steps=30", "--gradient_accumulation_steps=2"
    run(tmp_path, *command(backend, data_dir, "straight", *flags, "--keep_every_steps=30"))
    before, frozen = read_weights(tmp_path / "old", 2), read_weights(tmp_path / "straight", 30)
    for name, values in before.items():
        np.testing.assert_array_equal(frozen[name][: len(values)], values, name)
    changing = command(backend, data_dir, "changing", *flags)
    process = start(tmp_path, *two(*changing, "--save_checkpoints_steps=1"))
    wait_for_step(tmp_path / "changing", 3, process)
    process.send_signal(signal.SIGTERM)
    (code,), (stderr,) = end_of(process)
    assert code == 143, stderr
    assert "resuming from changing/checkpoints/" in run(tmp_path, *two(*changing))
    assert_same_run(tmp_path / "changing", tmp_path / "straight")


def assert_same_run(run_dir, expected_dir):
    assert_near(list(read_metrics(run_dir)), list(read_metrics(expected_dir)))
    assert_near_weights(run_dir, expected_dir)


def assert_near(actual, expected):
    """Checks that lines of metrics differ by rounding alone."""
    assert [line["step"] for line in actual] == [line["step"] for line in expected]
    for line, other in zip(actual, expected, strict=True):
        for name in FIGURES:
            for prefix in ("", "eval_"):
                if prefix + name in other:
                    assert line[prefix + name] == pytest.approx(other[prefix + name], abs=1e-5)


def assert_near_weights(run_dir, expected_dir):
    weights = read_weights(run_dir)
    for name, values in read_weights(expected_dir).items():
        np.testing.assert_allclose(weights[name], values, atol=1e-5, err_msg=name)


def assert_logged_once_and_in_full(stderr):
    """Checks that only process 0 logs the devices, the batch and the parts of a step's time."""
    assert f"2 processes on {HOST}, found in its flags; 2 devices, batch 8: 4 a device" in stderr
    assert re.search(r"\d+ ms per step: \d+ compute, \d+ all-reduce, \d+ input", stderr)
    steps = re.findall(r"step (\d+)/", stderr)
    assert len(set(steps)) == len(steps)
    assert not [line for line in stderr.splitlines() if line.startswith("[1]")], stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_process_ends_the_job_which_can_be_resumed(backend, data_dir, tmp_path):
    forever = command(
        backend,
        data_dir,
        "run",
        *("--num_train_steps=100000", "--save_checkpoints_steps=5", "--keep_checkpoints=1000"),
    )
    processes = [start(tmp_path, *forever, *place) for place in places_of_two()]
    wait_for_step(tmp_path / "run", 7, processes[0])
    killed = time.monotonic()
    processes[1].kill()
    codes, errors = end_of(*processes)
    assert codes == [1, -signal.SIGKILL]
    assert time.monotonic() - killed < 60
    assert f"process 1 on {HOST} was lost" in errors[0].splitlines()[-1]
    saved = [path.name for path in list_checkpoints(tmp_path / "run")]
    process = start(tmp_path, *two(*forever))
    # By its first checkpoint, the resumed run has removed the metrics of steps after the old one.
    wait_for(lambda: len(list_checkpoints(tmp_path / "run")) > len(saved), process)
    process.send_signal(signal.SIGUSR1)
    (code,), (stderr,) = end_of(process)
    assert code == 143, stderr
    assert f"resuming from run/checkpoints/{saved[-1]}" in stderr


# Writes down the masks of each row that training draws: its epoch and number, and a digest.
RECORDING_MASKS = """
from hashlib import sha256
from launch.__main__ import main
from modeling.training_masks import TrainingMasks

draw = TrainingMasks.draw

def draw_and_record(self, records, epochs, rate):
    batch = draw(self, records, epochs, rate)
    rows = [b"".join(map(bytes, row)) for row in zip(*map(batch.get, sorted(batch)), strict=True)]
    numbers = zip(epochs, *records["instance_number"].T, rows, strict=True)
    with open("masks.txt", "a") as file:
        file.write("".join(
            f"{epoch} {shard} {number} {sha256(row).hexdigest()}\\n"
            for epoch, shard, number, row in numbers
        ))
    return batch

TrainingMasks.draw = draw_and_record
main()
"""


def read_masks(directory):
    """The digests of masks by epoch and number of their rows, in the order of training."""
    masks = {}
    for line in (directory / "masks.txt").read_text().splitlines():
        row, _, digest = line.rpartition(" ")
        # A row that is read again, after a kill, has the same masks.
        assert masks.setdefault(row, digest) == digest
    return masks


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_drawn_while_training_are_those_of_one_process(backend, tmp_path):
    """Of two processes, one is killed; one goes on and is killed, too; and two finish the run."""
    flags = "--packed_row_length=40", "--sentence_pairs=none", "--masking=training"
    generate(tmp_path / "rows", *flags)
    pretrain = command(backend, tmp_path / "rows", "run", "--masked_lm_prob=0.4:0.1")
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    straight.mkdir()
    changing.mkdir()

    def begin(directory, *flags):
        return start(directory, *pretrain, *flags, program=("-c", RECORDING_MASKS))

    def last_step():
        names = [path.name for path in list_checkpoints(changing / "run")]
        return int(names[-1].removeprefix("step-")) if names else 0

    def train_and_kill(*places):
        first_step = last_step()
        processes = [begin(changing, *place, "--save_checkpoints_steps=1") for place in places]
        wait_for(lambda: last_step() >= first_step + 5, processes[0])
        processes[-1].kill()
        return end_of(*processes)

    assert end_of(begin(straight))[0] == [0]
    codes, errors = train_and_kill(*places_of_two())
    assert codes == [1, -signal.SIGKILL], errors
    first_stop = last_step()
    codes, errors = train_and_kill(())
    assert codes == [-signal.SIGKILL], errors
    assert f"resuming from run/checkpoints/step-{first_stop:08d}" in errors[0]
    assert first_stop < (second_stop := last_step()) < NUM_STEPS
    codes, errors = end_of(*(begin(changing, *place) for place in places_of_two()))
    assert codes == [0, 0], errors
    assert f"resuming from run/checkpoints/step-{second_stop:08d}" in errors[0]

    assert_same_run(changing / "run", straight / "run")
    masks, expected = read_masks(changing), read_masks(straight)
    trained = list(expected)[: 8 * NUM_STEPS]  # more were drawn ahead
    assert {row.partition(" ")[0] for row in trained} >= {"0", "1"}
    assert {row: masks.get(row) for row in trained} == {row: expected[row] for row in trained}


LOSS = re.compile(
    r"(process \d on \S+: )?process \d( on \S+)? was lost \(.*\): the job ends; .*"
    r"|(clozemill pretrain: )?(waited|process 1 on \S+: the coordinator at) .* did not .*"
)


def lose(rank, number, seconds, directory, pretrain):
    """Starts a job and loses a process of it after some seconds; returns what is wrong with it."""
    processes = [
        start(directory, *pretrain, *place) for place in places_of_two("--coordinator_timeout=15")
    ]
    survivor = processes[1 - rank]
    time.sleep(seconds)
    processes[rank].send_signal(number)
    lost = time.monotonic()
    try:
        _, stderr = survivor.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        return "it did not end"
    finally:
        took = time.monotonic() - lost
        for process in processes:
            process.kill()
            process.communicate()
    ours = [line for line in stderr.splitlines() if LOSS.fullmatch(line)]
    is_done = (directory / "run" / "checkpoints" / f"step-{NUM_STEPS_OF_LOSSES:08d}").exists()
    print(f"{rank} {number.name} {seconds:.1f} s: {took:.1f} s", survivor.returncode, is_done, ours)
    if not is_done and (survivor.returncode == 0 or len(ours) != 1):
        return f"exit code {survivor.returncode}: {stderr}"
    if took > 60 or "Traceback" in stderr:
        return f"{took:.0f} s: {stderr}"
    resumed = [start(directory, *pretrain, *place) for place in places_of_two()]
    codes, errors = end_of(*resumed, seconds=3 * SECONDS)
    return None if codes == [0, 0] else f"it did not resume: {codes} {errors}"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=needs_jax)])
def test_a_process_may_be_lost_at_any_moment(backend, data_dir, tmp_path):
    """The job ends with one line that says which, and resumes."""
    pretrain = (
        *command(backend, data_dir, "run", f"--num_train_steps={NUM_STEPS_OF_LOSSES}"),
        *("--save_checkpoints_steps=50", "--log_every_steps=50", "--eval_every_steps=100"),
    )
    started = time.monotonic()
    run(tmp_path, *two(*pretrain))
    most_seconds = time.monotonic() - started
    draw = random.Random(backend)
    kinds = list(itertools.product((0, 1), (signal.SIGKILL, signal.SIGSTOP)))
    losses = []
    for loss in range(NUM_LOSSES):
        directory = tmp_path / str(loss)
        directory.mkdir()
        losses.append((*kinds[loss % len(kinds)], draw.uniform(0, most_seconds), directory))
    with ThreadPoolExecutor(2) as threads:
        problems = list(threads.map(lambda loss: lose(*loss, pretrain), losses))
    assert problems == [None] * NUM_LOSSES


class Hosts:
    """Two hosts, of which each has a disk of its own, and nothing in common but a store."""

    def __init__(self, directory, environment):
        self._directory, self._environment = directory, environment
        self._numbers = itertools.count()

    def start(self, *pretrain):
        """Starts a job on two new hosts."""
        processes = []
        for place in places_of_two():
            host = self._directory / f"host-{next(self._numbers)}"
            for name in ("home", "tmp"):
                (host / name).mkdir(parents=True)
            own = {"HOME": str(host / "home"), "TMPDIR": str(host / "tmp")}
            environment = self._environment | own
            processes.append(start(host, *pretrain, *place, environment=environment))
        return processes

    def vanish(self):
        """Removes the hosts' disks; returns what was on them."""
        names = [str(path) for path in self._directory.rglob("*") if path.is_file()]
        shutil.rmtree(self._directory)
        return names


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=needs_jax)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_whose_hosts_vanish_goes_on_on_new_ones_to_the_bit(
    number, backend, data_dir, server, tmp_path
):
    """They find the data, the checkpoints and the metrics on the store, and nowhere else."""
    few = f"--num_train_steps={NUM_STEPS // 2}"
    run(tmp_path, *two(*command(backend, data_dir, "straight", few)))
    bucket = location(server.make_bucket())
    send_directory(data_dir, bucket / "data", "manifest.json")
    run_dir = bucket / "run"
    # To save at every step takes time, so that the signal comes before the last step.
    pretrain = command(backend, bucket / "data", run_dir, few, "--save_checkpoints_steps=1")
    hosts = Hosts(tmp_path / "hosts", server.environment)
    for _ in range(2):
        before = newest_step(run_dir)
        processes = hosts.start(*pretrain)
        wait_for(lambda before=before: newest_step(run_dir) > before + 2, processes[0])
        for process in processes if number == signal.SIGKILL else processes[1:]:
            process.send_signal(number)
        codes, errors = end_of(*processes)
        assert codes == [-number if number == signal.SIGKILL else 143] * 2, errors
        assert hosts.vanish()
        assert newest_step(run_dir) < NUM_STEPS // 2
    last = newest_step(run_dir)
    processes = hosts.start(*pretrain)
    codes, errors = end_of(*processes)
    assert codes == [0, 0], errors
    assert f"resuming from {run_dir}/checkpoints/step-{last:08d}" in errors[0]
    assert not [name for name in hosts.vanish() if "/tmp/" in name.rpartition("host-")[2]]
    (newest,) = list_checkpoints(run_dir)[-1:]
    for name in ("weights.npz", "optimizer.npz"):
        expected = tmp_path / "straight" / "checkpoints" / newest.name / name
        assert (newest / name).read_bytes() == expected.read_bytes()
    steps = [line["step"] for line in read_metrics(run_dir) if "learning_rate" in line]
    assert steps == list(range(1, NUM_STEPS // 2 + 1))


def newest_step(run_dir):
    return max((int(path.name[-8:]) for path in list_checkpoints(run_dir)), default=0)


@pytest.mark.slow
def test_batch_that_does_not_divide_is_refused(data_dir, tmp_path):
    pretrain = command("tensorflow", data_dir, "run", "--train_batch_size=7")
    (code,), (stderr,) = end_of(start(tmp_path, *two(*pretrain)))
    assert code == 1
    assert "--train_batch_size=7 cannot be divided among 2 devices" in stderr
    assert not (tmp_path / "run").exists()


def end_of_two(directory, pretrain, changed):
    """Returns the exit codes and stderr of two processes, the second one with a changed flag."""
    first, second = places_of_two()
    return end_of(
        start(directory, *pretrain, *first), start(directory, *pretrain, *second, changed)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", "differ in --learning_rate: it is 0.001 in process 1"),
        (
            '"max_seq_length": 16',
            '"max_seq_length": 12',
            "differ in max_seq_length of the data set: it is 12 in process 1",
        ),
        (
            '"random_seed": 12345',
            '"random_seed": 1',
            "differ in random_seed of the data set: it is 1 in process 1",
        ),
    ],
    ids=["flag", "length", "seed"],
)
def test_processes_with_different_settings_are_refused(old, new, message, data_dir, tmp_path):
    changed = "--learning_rate=1e-3"
    if old:
        manifest = json.loads((data_dir / "manifest.json").read_text())
        del manifest[DIGEST_KEY]
        text = json.dumps(manifest, indent=2)
        assert old in text
        copy = shutil.copytree(data_dir, tmp_path / "data")
        write_json(copy / "manifest.json", json.loads(text.replace(old, new)))
        changed = f"--data_dir={tmp_path / 'data'}"
    codes, errors = end_of_two(tmp_path, command("tensorflow", data_dir, "run"), changed)
    assert codes == [1, 1]
    assert message in errors[0].splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_host_without_the_data_is_named(data_dir, tmp_path):
    pretrain = command("tensorflow", data_dir, "run")
    codes, errors = end_of_two(tmp_path, pretrain, "--data_dir=/nowhere")
    assert codes == [1, 1]
    assert f"process 1 on {HOST} failed: /nowhere is not a data set" in errors[0]
    assert f"clozemill pretrain: process 1 on {HOST}: /nowhere is not a data set" in errors[1]


@pytest.mark.slow
def test_no_process_saves_what_another_one_learnt_from_a_damaged_shard(data_dir, tmp_path):
    """Process 1 reads a copy of the data whose records are intact but in another order."""
    damaged = tmp_path / "damaged"
    shutil.copytree(data_dir, damaged)
    for shard in damaged.glob("train-*"):
        with shard.open("rb") as file:
            first, second, *others = read_frames(file)
        shard.write_bytes(b"".join([second, first, *others]))
    pretrain = command("tensorflow", data_dir, "run", "--save_checkpoints_steps=1")
    codes, errors = end_of_two(tmp_path, pretrain, f"--data_dir={damaged}")
    assert codes == [1, 1]
    assert re.search(rf"process 1 on {HOST} failed: .*/damaged/train-.* SHA-256", errors[0])
    assert errors[1].count("SHA-256") == 1
    assert not list_checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_processes_with_different_weights_at_the_same_path_are_refused(data_dir, tmp_path):
    """This happens if a folder is not really shared."""
    run(tmp_path, *command("tensorflow", data_dir, "one", "--num_train_steps=2"))
    run(tmp_path, *command("tensorflow", data_dir, "two", "--num_train_steps=4"))
    pretrain = command("tensorflow", data_dir, "run", "--init_checkpoint=init")
    processes = []
    for place, name in zip(places_of_two(), ("one", "two"), strict=True):
        directory = tmp_path / f"host of {name}"
        directory.mkdir()
        (directory / "init").symlink_to(tmp_path / name)
        processes.append(start(directory, *pretrain, *place))
    codes, errors = end_of(*processes)
    assert codes == [1, 1]
    assert "the processes differ in the weights to start from" in errors[0].splitlines()[-1]


@needs_jax
@pytest.mark.slow
def test_processes_with_different_numbers_of_devices_are_refused(data_dir, tmp_path):
    pretrain = command("jax", data_dir, "run", "--train_batch_size=12")
    first, second = places_of_two()
    codes, errors = end_of(
        start(tmp_path, *pretrain, *first), start(tmp_path, *pretrain, *second, num_devices=3)
    )
    assert codes == [1, 1]
    message = f"differ in the number of devices: it is 3 in process 1 on {HOST}, 1 in process 0"
    assert message in errors[0].splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_process_that_waits_for_the_others_ends_on_a_signal(number, data_dir, tmp_path):
    process = start(tmp_path, *command("tensorflow", data_dir, "run"), *places_of_two()[0])
    assert "waiting at" in process.stderr.readline()
    process.send_signal(number)
    codes, _ = end_of(process)
    assert codes == [143]


@pytest.mark.slow
def test_job_that_gets_a_signal_while_it_starts_ends_as_one(data_dir, tmp_path):
    process = start(tmp_path, *two(*command("tensorflow", data_dir, "run")))
    while "are connected" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    (code,), (stderr,) = end_of(process)
    assert code == 143
    assert re.search(r"stopped by SIGTERM to process \d on .* at step 0", stderr)


@pytest.mark.slow
def test_flags_of_a_job_repeat_it(data_dir, tmp_path):
    flags_file = tmp_path / "run" / "flags.txt"
    run(tmp_path, *two(*command("tensorflow", data_dir, "run", "--num_train_steps=2")))
    assert "--coordinator_address" not in flags_file.read_text()
    stderr = run(tmp_path, *two("pretrain", f"--flagfile={flags_file}"))
    assert "nothing to do: the run has reached step 2" in stderr


def test_a_process_that_is_missing_is_named(data_dir, tmp_path):
    pretrain = command("tensorflow", data_dir, "run")
    first, second = places_of_two("--coordinator_timeout=2")
    (code,), (stderr,) = end_of(start(tmp_path, *pretrain, *first))
    assert code == 1
    expected = f"waited 2 s, but process 1 of 2 (connected: process 0 on {HOST}) did not connect"
    assert expected in stderr
    (code,), (stderr,) = end_of(start(tmp_path, *pretrain, *second))
    assert code == 1
    assert f"process 1 on {HOST}: the coordinator at 127.0.0.1:" in stderr
    assert "did not answer within 2 s" in stderr
