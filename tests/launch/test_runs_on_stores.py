"""Verbs whose directories are on a store, one after another, as a user gives them."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import send_directory

pytestmark = [pytest.mark.slow, pytest.mark.no_backend]
ROOT = Path(__file__).parents[2]
SMALL = (
    *("--model=tiny", "--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2"),
    *("--intermediate_size=24", "--max_position_embeddings=32", "--train_batch_size=4"),
    *("--num_train_steps=4", "--num_warmup_steps=1", "--save_checkpoints_steps=2"),
    *("--log_every_steps=2", "--eval_every_steps=4"),
)


@pytest.fixture
def bucket(bucket, monkeypatch, tmp_path):
    for name in ("HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return bucket


def clozemill(*arguments, code=0):
    """Runs a verb, and returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


def test_each_verb_reads_and_writes_a_store(bucket, tmp_path, write_data_set):
    send_directory(write_data_set(tmp_path / "data"), bucket / "data", "manifest.json")
    data = f"--data_dir={bucket / 'data'}"
    pretrain = ("pretrain", data, *SMALL)
    run_dir = bucket / "runs" / "first"
    tracked = {"tracking.json", "mlflow.db"} if importlib.util.find_spec("mlflow") else set()
    track = ("--track=mlflow",) if tracked else ()
    assert f"saved {run_dir}/checkpoints/step-00000004" in clozemill(
        *pretrain, f"--output_dir={run_dir}", *track
    )
    assert tracked <= {path.name for path in run_dir.iterdir()}
    assert "nothing to do" in clozemill(*pretrain, f"--output_dir={run_dir}")
    assert str(run_dir) in clozemill("evaluate", f"--run_dir={run_dir}", data)
    assert (run_dir / "eval_results.json").is_file()

    started = f"--output_dir={bucket / 'runs' / 'second'}", f"--init_checkpoint={run_dir}"
    assert f"from step-00000004 of {run_dir}" in clozemill("pretrain", data, *SMALL[6:], *started)
    checkpoint = run_dir / "checkpoints" / "step-00000002"
    branch = f"--output_dir={bucket / 'runs' / 'branch'}", f"--branch_from={checkpoint}"
    assert f"branching from step-00000002 of {run_dir}" in clozemill(*pretrain, *branch)
    inside = f"--output_dir={run_dir}", f"--branch_from={checkpoint}"
    assert "give the new run another --output_dir" in clozemill(*pretrain, *inside, code=1)

    config = f"--bert_config_file={run_dir / 'bert_config.json'}"
    dry = "pretrain", data, *SMALL[6:], config, f"--output_dir={bucket / 'dry'}", "--dry_run"
    assert "parameters" in clozemill(*dry)
    assert not (bucket / "dry").exists()

    out = "--format=original", f"--output_dir={bucket / 'out'}"
    assert f"{bucket}/out: step-00000004 of {run_dir}" in clozemill(
        "export", f"--run_dir={run_dir}", *out
    )
    assert "already holds" in clozemill("export", f"--run_dir={run_dir}", *out)
    converted = "export", f"--checkpoint={bucket / 'out'}", f"--output_dir={tmp_path / 'back'}"
    clozemill(*converted)
    assert (tmp_path / "back" / "model.safetensors").is_file()

    sweep = ("sweep", "--grid=learning_rate=1e-3,1e-4", "--", *pretrain)
    sweep += (f"--output_dir={bucket / 'sweep'}",)
    clozemill(*sweep)
    names = {path.name for path in (bucket / "sweep").iterdir()}
    runs = {"learning_rate=0.001", "learning_rate=0.0001"}
    assert runs | {f"{name}.log" for name in runs} | {"sweep.csv"} <= names
    rows = csv.DictReader((bucket / "sweep" / "sweep.csv").read_text().splitlines())
    assert [row["status"] for row in rows] == ["finished"] * 2
    assert "2 of 2 runs have finished before" in clozemill(*sweep)
    assert not list((tmp_path / "TMPDIR").iterdir())
