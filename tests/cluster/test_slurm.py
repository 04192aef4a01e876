"""`clozemill slurm` on a real Slurm cluster."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.manifest import Manifest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
NODES = ("--nodes=2", "--gpus_per_node=0", "--time=60")
# Replaces pretrain in tests of signals and exit codes. In the first run it waits for a signal to
# end; in the second it ends at once. If the file `fails` exists, process 1 fails; if `lost` exists,
# the remaining process fails.
STUB = """
import os, signal, sys, time
from pathlib import Path

def end(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, end)
restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
print("ready in run", restarts, *sys.argv[1:], flush=True)
if restarts == "1":
    sys.exit()
if Path("fails").exists() and os.environ["SLURM_PROCID"] == "1":
    time.sleep(1)
    sys.exit(1)
while not Path("lost").exists():
    time.sleep(0.1)
sys.exit(1)
"""
PRETRAIN = (
    *("pretrain", "--data_dir=data", "--model=tiny", "--hidden_size=16", "--num_hidden_layers=1"),
    *("--num_attention_heads=2", "--intermediate_size=24", "--train_batch_size=4"),
    *("--num_train_steps=1000", "--num_warmup_steps=1", "--save_checkpoints_steps=200"),
)
READY = "ready in run {} pretrain --data_dir=its data --output_dir=run"


@pytest.fixture
def submit(cluster, tmp_path):
    """A function that submits a job whose processes run the stub; returns its ID and its log."""
    (tmp_path / "stub" / "launch").mkdir(parents=True)
    (tmp_path / "stub" / "launch" / "__main__.py").write_text(STUB)
    directory = tmp_path / 'it\'s a "folder"'
    directory.mkdir()

    def run(fails=False, flags=NODES):
        if fails:
            (directory / "fails").touch()
        command = ["slurm", *flags, "--", "pretrain", "--data_dir=its data", "--output_dir=run"]
        subprocess.run(
            [sys.executable, "-m", "launch", *command],
            cwd=directory,
            env={**cluster.environment, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=True,
        )
        job = subprocess.run(
            ["sbatch", "--parsable", "pretrain.sbatch"],
            cwd=directory,
            env={**cluster.environment, "PYTHONPATH": str(tmp_path / "stub")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        return job, directory / f"clozemill-{job}.log"

    return run


def has_lines(log, *lines, num_processes=2):
    """Whether all processes have printed these lines."""
    if not log.exists():
        return False
    found = log.read_text().splitlines()
    return all(
        f"{process_id}: {line}" in found for line in lines for process_id in range(num_processes)
    )


@pytest.mark.slow
def test_near_the_time_limit_a_job_stops_cleanly_and_is_requeued(cluster, submit):
    job, log = submit()
    cluster.wait_for(lambda: has_lines(log, READY.format(0)), log)
    # Slurm itself sends this signal, but its time limits are whole minutes.
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    assert_stops_cleanly_and_runs_again(cluster, job, log)
    assert "the time limit is near" in log.read_text()


@pytest.mark.slow
def test_a_requeued_job_stops_cleanly(cluster, submit):
    job, log = submit()
    cluster.wait_for(lambda: has_lines(log, READY.format(0)), log)
    cluster.run("scontrol", "requeue", job)
    assert_stops_cleanly_and_runs_again(cluster, job, log)


@pytest.mark.slow
def test_a_preempted_job_stops_cleanly(cluster, submit, tmp_path):
    job, log = submit()
    cluster.wait_for(lambda: has_lines(log, READY.format(0)), log)
    cluster.run(
        *("sbatch", "--partition=high", "--nodes=2", "--exclusive"),
        *(f"--output={tmp_path}/high.log", "--wrap=sleep 1"),
    )
    assert_stops_cleanly_and_runs_again(cluster, job, log)


@pytest.mark.slow
def test_a_task_of_a_sweeps_array_is_requeued_alone(cluster, submit):
    one_node = ("--nodes=1", "--gpus_per_node=0", "--time=60", "--grid=learning_rate=0.1,0.2")
    job, log = submit(flags=one_node)
    logs = [log.with_name(f"clozemill-{job}_{task}.log") for task in range(2)]
    ready = [
        f"{READY} --learning_rate=0.{task + 1} --output_dir=run/learning_rate=0.{task + 1}"
        for task in range(2)
    ]

    def is_ready(task, restarts):
        return has_lines(logs[task], ready[task].format(restarts), num_processes=1)

    for task in range(2):
        cluster.wait_for(lambda task=task: is_ready(task, 0), logs[task])
    # The last task has the number of the whole array.
    assert cluster.fact(f"{job}_1", "JobId") == job
    cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_1")
    cluster.wait_for(lambda: is_ready(1, 1), logs[1])
    assert "got SIGTERM" in logs[1].read_text()
    assert "got SIGTERM" not in logs[0].read_text()
    cluster.run("scancel", job)


def assert_stops_cleanly_and_runs_again(cluster, job, log):
    assert cluster.wait_for_end(job, log) == ("COMPLETED", "0:0")
    assert has_lines(log, "got SIGTERM", READY.format(1))
    assert cluster.fact(job, "Restarts") == "1"


def test_a_process_that_fails_ends_the_job(cluster, submit):
    job, log = submit(fails=True)
    assert cluster.wait_for_end(job, log) == ("FAILED", "1:0")
    assert "0: got SIGTERM" in log.read_text().splitlines()
    assert cluster.fact(job, "Restarts") == "0"


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights_as_an_uninterrupted_one(
    cluster, tmp_path
):
    clozemill(
        cluster,
        tmp_path,
        "generate",
        f"--input_file={SAMPLES / 'english.txt'}",
        f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
        *("--output_dir=data", "--max_seq_length=16", "--max_predictions_per_seq=2"),
        *("--dupe_factor=1", "--num_shards=4"),
    )
    clozemill(cluster, tmp_path, "launch", "--processes=2", "--", *PRETRAIN, "--output_dir=whole")
    printed = clozemill(
        cluster, tmp_path, "slurm", *NODES, "--submit", "--", *PRETRAIN, "--output_dir=run"
    )
    job = re.fullmatch(r"pretrain\.sbatch: job (\d+)\n", printed)[1]
    log = tmp_path / f"clozemill-{job}.log"
    cluster.wait_for(lambda: steps(log, "saved"), log)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    (stopped,) = cluster.wait_for(lambda: steps(log, "stopped"), log)
    # Saved in the job's next run.
    cluster.wait_for(lambda: steps(log, "saved")[-1] > stopped, log)
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait_for_end(job, log) == ("COMPLETED", "0:0")
    assert cluster.fact(job, "Restarts") == "2"
    assert len(steps(log, "stopped")) == 2
    weights, expected = (read_weights(tmp_path / name) for name in ("run", "whole"))
    assert weights.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(weights[name], expected[name])


@pytest.mark.slow
def test_a_job_that_loses_a_node_is_requeued(cluster, submit):
    job, log = submit()
    cluster.wait_for(lambda: has_lines(log, READY.format(0)), log)
    cluster.lose_node("127.0.0.2")
    (log.parent / "lost").touch()
    cluster.wait_for(lambda: cluster.fact(job, "Restarts") == "1", log)
    cluster.start_node("127.0.0.2")
    assert cluster.wait_for_end(job, log) == ("COMPLETED", "0:0")
    assert has_lines(log, READY.format(1))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_generate_on_a_store_by_two_nodes_makes_the_shards_of_one(
    cluster, server, bucket, tmp_path
):
    (tmp_path / "own").mkdir()
    environment = {**cluster.environment, **server.environment, "TMPDIR": f"{tmp_path}/own"}
    cluster = dataclasses.replace(cluster, environment=environment)
    generate = (
        *("generate", f"--input_file={SAMPLES / 'english.txt'}", "--max_seq_length=16"),
        *(f"--vocab_file={SAMPLES / 'english_vocab.txt'}", "--dupe_factor=1", "--num_shards=4"),
    )
    job = ("slurm", *NODES, "--submit", "--", *generate, f"--output_dir={bucket / 'data'}")
    printed = clozemill(cluster, tmp_path, *job)
    job = re.fullmatch(r"generate\.sbatch: job (\d+)\n", printed)[1]
    log = tmp_path / f"clozemill-{job}.log"
    assert cluster.wait_for_end(job, log) == ("COMPLETED", "0:0"), log.read_text()
    clozemill(cluster, tmp_path, *generate, "--output_dir=data")
    shards = Manifest.read(bucket / "data").shards
    assert shards == Manifest.read(tmp_path / "data").shards
    assert not list((tmp_path / "own").iterdir())
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in log.read_text()


def clozemill(cluster, directory, *arguments):
    """Runs a verb and returns its stdout; on failure, pytest shows its stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=directory,
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return result.stdout


def steps(log, verb):
    """The steps at which training saved or stopped, according to its log."""
    text = log.read_text() if log.exists() else ""
    return [int(step) for step in re.findall(rf"{verb} .*\bstep[- ](\d+)", text)]


def read_weights(run_dir):
    with np.load(run_dir / "checkpoints" / "step-00001000" / "weights.npz") as weights:
        return dict(weights)
