"""`clozemill launch`: processes that start, stop and fail together."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.gpus import divide_gpus, find_gpus
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SECONDS_TO_WAIT = 30
# Runs each argument as a separate program.
RUN_TOGETHER = """
import os, sys
from launch.processes import Program, run_together
programs = [Program([sys.executable, "-uc", code], dict(os.environ)) for code in sys.argv[2:]]
ending = run_together(programs, grace_seconds=float(sys.argv[1]))
print("ending:", ending.process_id, ending.returncode, ending.is_failure)
sys.exit(ending.exit_code)
"""
# A process that reports when it is ready, and exits as pretrain does.
WAITS_FOR_SIGNAL = """
import signal, sys, time
def end(number, frame):
    print("got", signal.Signals(number).name)
    sys.exit(130 if number == signal.SIGINT else 143)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, end)
print("ready")
time.sleep(60)
"""
IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready")
time.sleep(60)
"""


@contextmanager
def running_together(*programs, grace_seconds=SECONDS_TO_WAIT):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_TOGETHER, str(grace_seconds), *programs],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def run_together(*programs, grace_seconds=SECONDS_TO_WAIT):
    """Returns the exit code and the lines of stdout and of stderr."""
    with running_together(*programs, grace_seconds=grace_seconds) as process:
        stdout, stderr = process.communicate(timeout=SECONDS_TO_WAIT)
    return process.returncode, stdout.splitlines(), stderr.splitlines()


def clozemill_launch(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "launch", "launch", *map(str, arguments)],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# The processes.


def test_lines_are_whole_and_prefixed_with_their_process_number():
    writes = """
import sys, time
for i in range(20):
    for part in ("line", " ", "%d" % i, "\\n"):
        sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.001)
sys.stderr.write("a word to stderr\\n")
sys.stdout.write("no line end")
"""
    code, stdout, stderr = run_together(writes, writes, writes)
    assert code == 0
    assert stdout.pop() == "ending: None 0 False"
    for process_id in range(3):
        lines = [line for line in stdout if line.startswith(f"[{process_id}] ")]
        expected = [*(f"line {i}" for i in range(20)), "no line end"]
        assert lines == [f"[{process_id}] {line}" for line in expected]
    assert sorted(stderr) == [f"[{process_id}] a word to stderr" for process_id in range(3)]


def test_a_failing_process_ends_the_others_and_its_exit_code_is_returned():
    code, stdout, _ = run_together(WAITS_FOR_SIGNAL, "import time; time.sleep(1); exit(3)")
    assert code == 3
    assert stdout[-2:] == ["[0] got SIGTERM", "ending: 1 3 True"]


def test_a_process_that_does_not_end_is_killed():
    start = time.monotonic()
    code, stdout, _ = run_together(IGNORES_SIGTERM, "exit(3)", grace_seconds=1)
    assert code == 3
    assert stdout[-1] == "ending: 1 3 True"
    assert time.monotonic() - start < 10


def test_a_killed_process_is_a_failure():
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code, stdout, _ = run_together(WAITS_FOR_SIGNAL, killed, grace_seconds=1)
    assert code == 128 + signal.SIGKILL
    assert stdout[-1] == "ending: 1 -9 True"


@pytest.mark.parametrize(
    ("name", "expected"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)]
)
def test_signals_are_passed_on_and_the_processes_exit_code_is_returned(name, expected):
    with running_together(WAITS_FOR_SIGNAL, WAITS_FOR_SIGNAL) as process:
        assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
        process.send_signal(signal.Signals[name])
        lines = process.communicate(timeout=SECONDS_TO_WAIT)[0].splitlines()
    assert process.returncode == expected
    assert sorted(lines[:2]) == [f"[0] got {name}", f"[1] got {name}"]
    assert lines[2].endswith(f" {expected} False")


def test_a_process_that_stopped_on_request_lets_the_others_finish():
    """They save a checkpoint together, which may take longer than any grace time."""
    code, stdout, _ = run_together(
        "import time; time.sleep(1.5); print('saved'); exit(143)", "exit(143)", grace_seconds=0.1
    )
    assert code == 143
    assert stdout == ["[0] saved", "ending: 1 143 False"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_no_process_outlives_a_launcher_that_is_killed():
    prints_pid = "import os, time; print(os.getpid()); time.sleep(60)"
    with running_together(prints_pid, prints_pid) as process:
        pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        process.kill()
        process.wait()
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while any(is_running(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# GPUs.


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", []), ("-1", []), ("0,1,3", ["0", "1", "3"]), ("GPU-8f, MIG-2", ["GPU-8f", "MIG-2"])],
)
def test_gpus_that_the_environment_names(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == expected


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf 'GPU 0: H100\\n  MIG 1g.10gb Device 0\\nGPU 1: H100\\n'", ["0", "1"]),
        ("echo 'couldn’t communicate with the NVIDIA driver'; exit 9", []),
        (None, []),
    ],
)
def test_gpus_that_nvidia_smi_lists(monkeypatch, tmp_path, script, expected):
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == expected


def test_gpus_are_divided_evenly():
    assert divide_gpus([], 2) == [[], []]
    assert divide_gpus(list("0123"), 2) == [["0", "1"], ["2", "3"]]
    assert divide_gpus(list("01234"), 2) == [["0", "1"], ["2", "3"]]
    with pytest.raises(UserError, match=r"--processes=3 exceeds .* \(2\)"):
        divide_gpus(["0", "1"], 3)


# The command after `--`.


@pytest.fixture(scope="module")
def launch(run_in_fork, preload):
    preload("launch.command_line", "launch.launch", "modeling.training_options")
    return functools.partial(run_in_fork, "launch", ROOT)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "no command given"),
        (["--"], "no command given"),
        (["--", "generate"], "not 'generate'"),
        (["--", "pretrain", "--output_dir=run"], "--data_dir"),
        (["--", "pretrain", "--modle=base"], "Unknown command line flag 'modle'"),
        (["--", "pretrain", "--learning_rate=fast"], "--learning_rate=fast"),
        (["--", "pretrain", "--flagfile=nowhere.flags"], "nowhere.flags"),
        (
            ["--", "pretrain", "--data_dir=a", "--output_dir=b", "word"],
            "unexpected argument 'word'",
        ),
        (["pretrain"], "unexpected argument 'pretrain'"),
        (["--", "pretrain", "--data_dir=a", "--output_dir=b", "--process_id=0"], "--process_id"),
        # The launcher's own flags are not pretrain's.
        (["--", "pretrain", "--processes=2"], "Unknown command line flag 'processes'"),
    ],
)
def test_a_command_that_pretrain_would_refuse_exits_2_at_once(launch, command, message):
    result = launch("--processes=2", *command)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[0]
    assert len(result.stderr.splitlines()) == 2


def test_zero_processes_exit_2(launch):
    result = launch("--processes=0", "--", "pretrain")
    assert result.returncode == 2
    assert "--processes=0" in result.stderr


def test_fewer_gpus_than_processes(tmp_path):
    result = clozemill_launch(
        "--processes=2",
        *("--", "pretrain", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}"),
        CUDA_VISIBLE_DEVICES="3",
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"clozemill launch: --processes=2 .*CUDA_VISIBLE_DEVICES.*\n", result.stderr
    )


def test_help_says_where_the_command_goes():
    result = clozemill_launch("--help")
    assert result.returncode == 0
    assert "--processes=2 -- pretrain" in result.stdout
