"""`clozemill sweep`: its grid, its runs in turn, and its table."""

import csv
import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 60
# Replaces pretrain: it "trains" in no time, to a loss that follows from the learning rate.
STUB = """
import json, os, signal, sys, time
from pathlib import Path

def end(number, frame):
    print("stopped by", signal.Signals(number).name, flush=True)
    (run / "stopped").touch()
    sys.exit(130 if number == signal.SIGINT else 143)

words = dict(word[2:].partition("=")[::2] for word in sys.argv[2:])
run, rate, last = Path(words["output_dir"]), float(words["learning_rate"]), 20
print("begins", *sys.argv[1:], flush=True)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, end)
if rate == 0.5:
    print("a line of progress")
    print("clozemill pretrain: the loss is not finite", file=sys.stderr)
    print("a banner of a library", file=sys.stderr)
    sys.exit(1)
if rate == 0.6:
    os.kill(os.getpid(), signal.SIGKILL)
run.mkdir(exist_ok=True)
(run / "started").write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
if Path("waits").exists() and not (run / "stopped").exists():
    time.sleep(60)
if Path("pairs").exists():
    deadline = time.monotonic() + 30
    while len([*run.parent.glob("*/started")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
lines = [{"step": step, "masked_lm_loss": 9 - rate * step, "next_sentence_loss": 0.7,
          "masked_lm_accuracy": 0.1, "learning_rate": rate} for step in range(1, last + 1)]
if words.get("eval_every_steps"):
    lines.append({"step": last, "eval_masked_lm_loss": 5 + rate, "eval_next_sentence_loss": 0.5})
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(run / "flags.txt").write_text("".join(f"{word}\\n" for word in sys.argv[2:]))
(run / "checkpoints" / f"step-{last:08d}").mkdir(parents=True)
"""
PRETRAIN = ("--", "pretrain", "--data_dir=data", "--output_dir=S", "--num_train_steps=20")


@pytest.fixture
def environment(tmp_path):
    """The environment in which a sweep runs the stub, without any GPU."""
    stub = tmp_path / "stub" / "launch"
    stub.mkdir(parents=True)
    (stub / "__main__.py").write_text(STUB)
    return {"PYTHONPATH": f"{stub.parent}", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def run_sweep(run_in_fork, preload):
    preload("launch.command_line", "launch.sweep", "launch.sweep_report")
    return functools.partial(run_in_fork, "sweep")


@pytest.fixture
def sweep(run_sweep, tmp_path, environment):
    """A function that runs a sweep of the stub, in tmp_path; it draws only if it is told to."""

    def run(grid, *arguments, pretrain=PRETRAIN, draws=False, **variables):
        return run_sweep(
            *(tmp_path, f"--grid={grid}", *arguments, *pretrain),
            environment=environment | variables,
            missing=[] if draws else ["matplotlib"],
        )

    return run


def read_table(directory):
    with (directory / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def begun(result):
    """The names of the runs that have begun, in turn."""
    return re.findall(r"^\d\d:\d\d:\d\d (\S+) begins; its log:", result.stderr, re.MULTILINE)


# The grid.


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (
            " learning_rate = 1e-1, 2e-1 ; --hidden_dropout_prob=0",
            [f"hidden_dropout_prob=0,learning_rate={rate}" for rate in (0.1, 0.2)],
        ),
        (
            "hidden_dropout_prob=0,0.1;learning_rate=0.20,1e-5",
            [f"hidden_dropout_prob={p},learning_rate={x}" for p in (0, 0.1) for x in (0.2, 1e-5)],
        ),
        ("verify_data=false;precision=bfloat16;", ["precision=bfloat16,verify_data=False"]),
        ("init_checkpoint=v1.0", ["init_checkpoint=v1.0"]),  # no number
    ],
)
def test_each_point_is_a_run_named_by_its_values(sweep, tmp_path, grid, names):
    flags = [] if "learning_rate" in grid else ["--learning_rate=0.1"]
    result = sweep(grid, pretrain=(*PRETRAIN, *flags))
    assert result.returncode == 0, result.stderr
    assert begun(result) == names
    assert {path.name for path in (tmp_path / "S").iterdir() if path.is_dir()} == set(names)


def test_values_that_are_no_file_names_or_have_commas_get_a_digest(sweep, tmp_path):
    grid = 'learning_rate=0.1;init_checkpoint="a,b",a/b,a b'
    result = sweep(grid)
    assert result.returncode == 0, result.stderr
    logs = sorted(path.read_text() for path in (tmp_path / "S").glob("*.log"))
    given = [re.search(r"--init_checkpoint=(.*) --output_dir", log)[1] for log in logs]
    assert sorted(given) == ["a b", "a,b", "a/b"]
    for name in begun(result):
        assert re.fullmatch(r"init_checkpoint=a[_,]b,learning_rate=0\.1(-[0-9a-f]{8})?", name)
    assert len(set(begun(result))) == 3


@pytest.mark.parametrize(
    ("grid", "flags", "message"),
    [
        ("learning_rat=1", (), "pretrain has no flag 'learning_rat'"),
        ("learning_rate=fast,1", (), "--learning_rate=fast"),
        ("learning_rate=1,,2", (), "an empty value of --learning_rate"),
        ("learning_rate", (), "an empty value of --learning_rate"),
        ("optimizer=sgd", (), "sgd"),
        ("learning_rate=1e-1,0.1", (), "a value of --learning_rate twice"),
        ("masked_lm_prob=0.2,0.20", (), "a value of --masked_lm_prob twice"),
        ("learning_rate=1;learning_rate=2", (), "--learning_rate twice"),
        ('init_checkpoint="a,b', (), "--init_checkpoint cannot be read"),
        ("", (), "--grid is empty"),
        (";", (), "--grid is empty"),
        ("output_dir=a,b", (), "--grid cannot vary --output_dir"),
        ("dry_run=true", (), "--grid cannot vary --dry_run"),
        ("process_id=1", (), "remove --process_id"),
        ("learning_rate=1", ("--learning_rate=2",), "is in --grid and after --"),
        ("verify_data=true", ("--noverify_data",), "is in --grid and after --"),
        ("learning_rate=1", ("--dry_run",), "remove --dry_run"),
        ("learning_rate=1", ("--modle=tiny",), "modle"),
    ],
)
def test_a_wrong_grid_exits_2_and_runs_nothing(sweep, tmp_path, grid, flags, message):
    result = sweep(grid, pretrain=(*PRETRAIN, *flags))
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.splitlines()[0]
    assert len(result.stderr.splitlines()) == 2
    assert not (tmp_path / "S").exists()


def test_flags_that_do_not_go_together_name_the_point_and_run_nothing(sweep, tmp_path):
    result = sweep(
        "train_batch_size=32,30", pretrain=(*PRETRAIN, "--gradient_accumulation_steps=4")
    )
    assert result.returncode == 1
    assert result.stderr.startswith("clozemill sweep: train_batch_size=30: --train_batch_size=30")
    result = sweep("context_parallel=1,2", pretrain=(*PRETRAIN, "--backend=tensorflow"))
    assert result.returncode == 1
    assert "context_parallel=2: --context_parallel=2 needs --backend=jax" in result.stderr
    assert not (tmp_path / "S").exists()


def test_the_grid_goes_before_what_a_flag_file_says(sweep, tmp_path):
    (tmp_path / "recipe.flags").write_text("--learning_rate=0.3\n--train_batch_size=8\n")
    result = sweep("learning_rate=0.1,0.2", pretrain=(*PRETRAIN, "--flagfile=recipe.flags"))
    assert result.returncode == 0, result.stderr
    rates = {row["learning_rate"]: row["masked_lm_loss"] for row in read_table(tmp_path / "S")}
    assert rates == {"0.1": "7.05", "0.2": "5.1"}


# The runs and their table.


def test_the_table_is_sorted_and_a_failed_run_does_not_end_the_sweep(sweep, tmp_path):
    result = sweep("learning_rate=0.1,0.5,0.2,0.6", draws=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "clozemill sweep: 2 of 4 runs failed: the same command tries them again"
    )
    title, header, *rows = result.stdout.splitlines()
    assert title == "S: 4 runs, by the total loss of training over the last tenth of the steps"
    assert header.split()[:5] == ["learning_rate", "status", "step", "total_loss", "masked_lm_loss"]
    assert [row.split()[:4] for row in rows[:2]] == [
        ["0.2", "finished", "20", "5.8"],
        ["0.1", "finished", "20", "7.75"],
    ]
    assert [row.split() for row in rows[2:4]] == [["0.5", "failed", "0"], ["0.6", "failed", "0"]]
    assert rows[4:] == [
        "learning_rate=0.5 failed: clozemill pretrain: the loss is not finite "
        "(see learning_rate=0.5.log)",
        "learning_rate=0.6 failed: killed by SIGKILL (see learning_rate=0.6.log)",
    ]
    table = read_table(tmp_path / "S")
    assert [row["run"] for row in table] == [f"learning_rate=0.{n}" for n in (2, 1, 5, 6)]
    assert [row["next_sentence_loss"] for row in table] == ["0.7", "0.7", "", ""]
    assert "not finite" in table[2]["error"]
    assert (tmp_path / "S" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_evaluations_go_before_training_losses(sweep, tmp_path):
    result = sweep("learning_rate=0.2,0.1", pretrain=(*PRETRAIN, "--eval_every_steps=5"))
    assert "no sweep.png, because matplotlib is missing" in result.stderr
    title, header, *rows = result.stdout.splitlines()
    assert title == "S: 2 runs, by the total loss of their last evaluation"
    assert header.split()[3:] == ["total_loss", "masked_lm_loss", "next_sentence_loss"]
    assert [row.split()[3] for row in rows] == ["5.6", "5.7"]
    first, _ = read_table(tmp_path / "S")
    assert (first["eval_masked_lm_loss"], first["masked_lm_loss"]) == ("5.1", "7.05")


def test_the_same_command_runs_what_has_not_finished_and_a_larger_grid_adds_runs(sweep):
    assert len(begun(sweep("learning_rate=0.1,0.5"))) == 2
    again = sweep("learning_rate=0.1,0.5")
    assert begun(again) == ["learning_rate=0.5"]
    larger = sweep("learning_rate=0.5,0.3,0.1")
    assert begun(larger) == ["learning_rate=0.5", "learning_rate=0.3"]
    assert "S: 3 runs" in larger.stdout
    more_steps = (*PRETRAIN[:-1], "--num_train_steps=30")
    assert begun(sweep("learning_rate=0.3", pretrain=more_steps)) == ["learning_rate=0.3"]


def test_a_run_that_finished_with_other_flags_is_an_error(sweep):
    sweep("learning_rate=0.1")
    result = sweep("learning_rate=0.1", pretrain=(*PRETRAIN, "--train_batch_size=8"))
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "clozemill sweep: S/learning_rate=0.1 has finished with --train_batch_size=32, not 8: "
        "give the same flag, or another --output_dir"
    ]


def test_report_only_runs_nothing(sweep, tmp_path):
    sweep("learning_rate=0.1")
    result = sweep("learning_rate=0.1,0.2", "--report_only")
    assert result.returncode == 0, result.stderr
    assert not begun(result)
    assert [row["status"] for row in read_table(tmp_path / "S")] == ["finished", "not begun"]


def test_there_is_nothing_to_report_before_a_sweep(sweep):
    result = sweep("learning_rate=0.1", "--report_only")
    assert result.returncode == 1
    assert result.stderr == "clozemill sweep: S does not exist: no sweep has begun there\n"


def test_a_tracker_that_is_missing_is_an_error_before_anything_runs(sweep, tmp_path):
    result = sweep("learning_rate=0.1", pretrain=(*PRETRAIN, "--track=mlflow"))
    assert result.returncode == 1
    assert "pip install 'clozemill[mlflow]'" in result.stderr
    assert not (tmp_path / "S").exists()


def test_a_sweep_needs_a_command(sweep):
    result = sweep("learning_rate=0.1", pretrain=())
    assert result.returncode == 2
    assert "no command given: write -- and then pretrain" in result.stderr


def test_a_run_is_no_directory_for_a_sweep(sweep, tmp_path):
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "bert_config.json").write_text("{}")
    result = sweep("learning_rate=0.1")
    assert result.returncode == 1
    assert result.stderr.startswith("clozemill sweep: S is a run")


def test_parallel_runs_have_their_own_gpus(sweep, tmp_path):
    (tmp_path / "pairs").touch()
    result = sweep("learning_rate=0.1,0.2", "--parallel=2", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert result.returncode == 0, result.stderr
    gpus = [(run / "started").read_text().split()[1] for run in (tmp_path / "S").glob("*=0.?")]
    assert sorted(gpus) == ["0,1", "2,3"]
    result = sweep("learning_rate=0.1", "--parallel=5", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert "--parallel=5 exceeds the number of GPUs (4)" in result.stderr


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_ends_as_one_that_is_not(tmp_path, write_data_set):
    data_dir = write_data_set(tmp_path / "data")

    def start(name):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "launch", "sweep"),
                *("--grid=learning_rate=1e-2,1e-3", "--", "pretrain"),
                *(f"--data_dir={data_dir}", f"--output_dir={tmp_path / name}", "--model=tiny"),
                *("--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2"),
                *("--intermediate_size=24", "--num_train_steps=600", "--log_every_steps=100"),
                *("--save_checkpoints_steps=50", "--train_batch_size=4"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )

    assert start("whole").wait(600) == 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start("S")
        run = tmp_path / "S" / "learning_rate=0.01"
        saved = len([*run.glob("checkpoints/step-*")])
        while len([*run.glob("checkpoints/step-*")]) <= saved:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(60) in (-signal.SIGKILL, 143)
    assert start("S").wait(600) == 0
    for row, other in zip(read_table(tmp_path / "S"), read_table(tmp_path / "whole"), strict=True):
        assert row == other
        name = f"{row['run']}/checkpoints/step-00000600/weights.npz"
        weights = (tmp_path / "S" / name).read_bytes()
        assert weights == (tmp_path / "whole" / name).read_bytes()


# Stopping.


class Sweep:
    """A sweep of two points, of which the first waits."""

    def __init__(self, directory, environment, *arguments):
        (directory / "waits").touch()
        flags = ["sweep", "--grid=learning_rate=0.1,0.2", *arguments, *PRETRAIN]
        # The stub is for the runs alone: this process imports what is in ROOT.
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'clozemill'; "
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{code} from launch.__main__ import main; main()", *flags],
            cwd=directory,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started = directory / "S" / "learning_rate=0.1" / "started"
        self.wait_until(lambda: self._started.exists() and self._started.read_text())
        self.child = int(self._started.read_text().split()[0])

    def wait_until(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def is_child_running(self):
        try:
            state = Path(f"/proc/{self.child}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_stops_the_runs_well_and_the_same_command_resumes(
    sweep, tmp_path, environment, number, code
):
    stopped = Sweep(tmp_path, environment)
    stopped.process.send_signal(number)
    _, stderr = stopped.process.communicate(timeout=SECONDS)
    assert stopped.process.returncode == code
    assert not stopped.is_child_running()
    assert stderr.splitlines()[-1] == (
        f"clozemill sweep: stopped by {number.name}: the same command resumes"
    )
    assert not (tmp_path / "S" / "learning_rate=0.2").exists()
    log = tmp_path / "S" / "learning_rate=0.1.log"
    assert f"stopped by {number.name}" in log.read_text()
    (tmp_path / "waits").unlink()
    result = sweep("learning_rate=0.1,0.2")
    assert result.returncode == 0, result.stderr
    assert log.read_text().count("begins") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_no_run_outlives_a_sweep_that_is_killed(sweep, tmp_path, environment):
    killed = Sweep(tmp_path, environment)
    busy = sweep("learning_rate=0.1")
    assert "in use by another run" in busy.stderr
    killed.process.kill()
    killed.process.communicate(timeout=SECONDS)
    killed.wait_until(lambda: not killed.is_child_running())
    (tmp_path / "waits").unlink()
    assert sweep("learning_rate=0.1,0.2").returncode == 0
