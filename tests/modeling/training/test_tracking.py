"""What the trackers get, with the real packages offline and with stubs that fail or hang."""

import importlib.util
import json
import logging
import time
from itertools import groupby
from pathlib import Path

import pytest

from modeling.training import tracking
from modeling.training.tracking import TRACKING_NAME, TrackerName, check_tracker
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend
ROOT = Path(__file__).parents[3]
KEY = "0123456789abcdef0123456789abcdef01234567"
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
# Ends a Python process that looks up a name, or that connects to anything but this machine.
GUARD = """
import os, sys
def audit(event, arguments):
    is_name = event in ("socket.getaddrinfo", "socket.gethostbyname")
    is_remote = event == "socket.connect" and isinstance(arguments[1], tuple) and not (
        str(arguments[1][0]).startswith("127.") or arguments[1][0] in ("localhost", "::1"))
    if is_remote or (is_name and arguments[0] not in (None, "localhost", "127.0.0.1", "::1")):
        with open({path!r}, "a") as file:
            print(event, arguments, file=file)
        os._exit(1)
sys.addaudithook(audit)
"""


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    """Nobody is logged in, and what the guard has seen is empty at the end."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    guard, seen = tmp_path / "guard", tmp_path / "seen"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD.format(path=str(seen)))
    monkeypatch.setenv("PYTHONPATH", f"{guard}:{ROOT}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    assert not seen.exists(), seen.read_text()


def steps_of_metrics(run_dir):
    """The figures of metrics.jsonl by step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        step: {name: x for line in of_step for name, x in line.items() if name != "step"}
        for step, of_step in groupby(lines, key=lambda line: line["step"])
    }


def steps_of_wandb(records):
    """The figures by step, and fails if a step comes twice."""
    steps = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            figures = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            assert figures["_step"] not in steps
            steps[figures["_step"]] = {n: x for n, x in figures.items() if not n.startswith("_")}
    return steps


def stop_at(last):
    def at_step(step):
        if step == last:
            raise KeyboardInterrupt

    return at_step


@needs_wandb
def test_a_resumed_run_has_each_step_once_in_wandb_and_no_secret(
    fake_run, monkeypatch, records_of_wandb
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = "--learning_rate=0.5\n--noverify_data\n"
    with pytest.raises(KeyboardInterrupt):
        fake_run(track=TrackerName.WANDB, flags=flags, at_step=stop_at(18))
    run_dir, _ = fake_run(track=TrackerName.WANDB, flags=flags)
    records = list(records_of_wandb(run_dir))
    found, expected = steps_of_wandb(records), steps_of_metrics(run_dir)
    assert list(found) == [7, 14, 21, 24]
    assert found == expected
    (start,) = (r.run for r in records if r.WhichOneof("record_type") == "run")
    assert start.run_id == json.loads((run_dir / TRACKING_NAME).read_text())["run_id"]
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["learning_rate"] == "0.5"
    assert config["verify_data"] is False
    assert config["hidden_size"] == 16
    assert config["data/train_instances"] == 26
    for path in run_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A function that puts a module in the place of wandb."""

    def write(code):
        (tmp_path / "stub").mkdir()
        (tmp_path / "stub" / "wandb.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'stub'}:{ROOT}")

    return write


def test_a_tracker_that_fails_is_one_warning_without_passwords(fake_run, stub, caplog):
    stub("def init(**_): raise OSError('no https://user:sec@ret@host/\\n!')\nSettings = dict")
    run_dir, _ = fake_run(track=TrackerName.WANDB)
    assert len(steps_of_metrics(run_dir)) == 4
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        r"wandb: OSError: no https://host/\n!; training goes on",
        "wandb lacks the last steps: give the same command again to send them",
    ]


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(99)", "import os; os._exit(1)", "import signal; 1 / 0"]
)
def test_a_tracker_that_hangs_or_dies_neither_holds_up_nor_ends_training(
    fake_run, stub, caplog, monkeypatch, code
):
    stub(code)
    monkeypatch.setattr(tracking, "_SECONDS_AT_END", 0.5)
    started = time.monotonic()
    run_dir, _ = fake_run(track=TrackerName.WANDB)
    assert time.monotonic() - started < 10
    assert len(steps_of_metrics(run_dir)) == 4
    assert "lacks the last steps" in caplog.messages[-1]


def test_the_same_command_sends_what_a_finished_run_lacks(fake_run, stub, tmp_path):
    """Here to a stub that knows the last step it got, as a server does."""
    log = tmp_path / "log"
    stub(f"""
import pathlib
log = pathlib.Path({str(log)!r})
Settings = dict
class Run:
    url = "https://host/run"
    settings = type("Settings", (), dict(mode="online", sync_dir="."))
    def __init__(self):
        self.step = int(log.read_text().split()[-1]) + 1 if log.read_text() else 0
    def log(self, figures, step):
        with log.open("a") as file:
            print(step, file=file)
    def finish(self):
        pass
init = lambda **_: Run()
""")
    fake_run(track=TrackerName.WANDB)  # without the log, it is down
    log.touch()
    for _ in range(2):
        fake_run(track=TrackerName.WANDB)
        assert log.read_text().split() == ["7", "14", "21", "24"]


# Logins and packages.


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": KEY}, "", None),
        ({}, f"machine api.wandb.ai login user password {KEY}", None),
        ({}, f"machine example.org login user password {KEY}", "offline"),
        ({"WANDB_BASE_URL": "https://example.org"}, f"machine example.org password {KEY}", None),
        ({"WANDB_BASE_URL": "https://other.org"}, f"machine example.org password {KEY}", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "disabled"),
        ({}, "no netrc \xff", "offline"),
    ],
)
def test_wandb_is_online_only_for_whom_is_logged_in(monkeypatch, tmp_path, variables, netrc, mode):
    (tmp_path / "netrc").write_text(netrc, "latin-1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracking._environment(TrackerName.WANDB).get("WANDB_MODE") == mode


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--track=wandb .* pip install 'clozemill\[wandb\]'"):
        check_tracker(TrackerName.WANDB)
