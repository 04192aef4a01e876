"""`pretrain --track`: a run that is killed and resumes, with the real packages, offline."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# The packages of MLflow have an environment of their own, which has Clozemill, too.
MLFLOW = ROOT / ".venv" / "mlflow" / "bin" / "python"
PRETRAIN = (
    *("pretrain", "--model=tiny", "--hidden_size=16", "--num_hidden_layers=1"),
    *("--num_attention_heads=2", "--intermediate_size=24", "--train_batch_size=4"),
    *("--num_train_steps=400", "--num_warmup_steps=1", "--log_every_steps=7"),
    *("--save_checkpoints_steps=20", "--eval_every_steps=50", "--max_eval_steps=1"),
)
# Prints the history of each metric of the only run in mlflow.db, and the run's status.
READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
(experiment,) = (e for e in client.search_experiments() if e.name == "clozemill")
(run,) = client.search_runs([experiment.experiment_id])
histories = {
    name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
    for name in run.data.metrics
}
print(json.dumps([histories, run.info.status, run.data.params]))
"""


def history_of_wandb(records):
    """As what `READ_MLFLOW` prints; that the run has a history is its status."""
    histories, parameters = {}, {}
    for record in records:
        for item in record.run.config.update:
            parameters[item.key] = str(json.loads(item.value_json))
        figures = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in figures.items():
            histories.setdefault(name, []).append([figures["_step"], value])
    return histories, "FINISHED", parameters


def python_with(package):
    if importlib.util.find_spec(package):
        return sys.executable
    if package == "mlflow" and MLFLOW.exists():
        return str(MLFLOW)
    return pytest.skip(f"needs {package}")


def environment(directory):
    """Without any login."""
    names = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(directory), "CUDA_VISIBLE_DEVICES": ""}


def remaining(run_dir):
    """The processes that work for a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and str(run_dir) in process.environ().get(
                "RUN_OF_TEST", ""
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_run_that_is_killed_and_resumed_is_one_run_with_each_step_once(
    tracker, tmp_path, write_data_set, records_of_wandb
):
    python, run_dir = python_with(tracker), tmp_path / "run"
    data_dir = write_data_set(tmp_path / "data")
    variables = environment(tmp_path) | {"RUN_OF_TEST": str(run_dir)}

    def start():
        return subprocess.Popen(
            [
                *(python, "-m", "launch", *PRETRAIN, f"--track={tracker}"),
                *(f"--data_dir={data_dir}", f"--output_dir={run_dir}"),
            ],
            env=variables,
            stderr=subprocess.PIPE,
            text=True,
        )

    for number, checkpoints in ((signal.SIGKILL, 3), (signal.SIGTERM, 8)):
        process = start()
        last = run_dir / "checkpoints" / f"step-{20 * checkpoints:08d}"
        while not last.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while left := remaining(run_dir):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    process = start()
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "lacks the last steps" not in stderr
    assert "training goes on" not in stderr

    if tracker == "wandb":
        histories, status, parameters = history_of_wandb(records_of_wandb(run_dir))
    else:
        read = [python, "-c", READ_MLFLOW, str(run_dir)]
        printed = subprocess.run(read, env=variables, capture_output=True, text=True, check=True)
        histories, status, parameters = json.loads(printed.stdout)
    expected = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        for name, value in figures.items():
            expected.setdefault(name, []).append([figures["step"], value])
    del expected["step"]
    assert {name: histories[name] for name in expected} == expected
    assert status == "FINISHED"
    assert parameters["num_train_steps"] == "400"
    assert parameters["hidden_size"] == "16"
