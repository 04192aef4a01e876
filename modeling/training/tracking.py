"""Sends a run's metrics to Weights & Biases or MLflow, by a process of its own.

Whatever happens to that process or to the network, training neither waits nor fails. The tracker
gets the lines of metrics.jsonl that a checkpoint covers, and no others. So a resumed run never has
to take back a step.
"""

import importlib.util
import json
import netrc
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from absl import logging

from modeling.config import BertConfig
from pipeline.errors import UserError
from pipeline.json_files import read_json, write_json
from pipeline.manifest import Manifest
from pipeline.storage import Location

TRACKING_NAME = "tracking.json"
NAMES_OF_TRACKERS = ("wandb", "mlflow.db")
"""How the names begin of what trackers keep in a run."""
# How long the end of a run waits for the tracker: of one that was stopped, a cluster may not wait.
_SECONDS_AT_END, _SECONDS_WHEN_STOPPED = 30.0, 10.0
_SECONDS_BETWEEN_LOOKS = 0.05
_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


class TrackerName(StrEnum):
    """The trackers that metrics can be sent to."""

    WANDB = "wandb"
    MLFLOW = "mlflow"


def check_tracker(name: TrackerName) -> None:
    """Checks that a tracker's packages are installed.

    Raises:
      UserError: they are not.
    """
    needed = [name.value]
    if name == TrackerName.MLFLOW and not os.environ.get("MLFLOW_TRACKING_URI"):
        needed += ["sqlalchemy", "alembic"]
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise UserError(
            f"--track={name} needs a package that is not installed ({missing[0]}): "
            f"pip install 'clozemill[{name}]'"
        )


def describe_run(flags: str, config: BertConfig, manifest: Manifest) -> dict[str, Any]:
    """What a tracker is told about a run: its flags, its model and its data.

    Args:
      flags: the content of the run's flags.txt.
      config: the model's config.
      manifest: that of the data set.
    """
    described: dict[str, Any] = {}
    for line in flags.splitlines():
        name, equals, value = line.removeprefix("--").partition("=")
        is_off = not equals and name.startswith("no")
        described[name.removeprefix("no") if is_off else name] = value if equals else not is_off
    described |= vars(config)
    for name in ("max_seq_length", "max_predictions_per_seq", "vocab_sha256"):
        described[f"data/{name}"] = getattr(manifest, name)
    for split in ("train", "eval"):
        shards = [shard for shard in manifest.shards if shard.split == split]
        described[f"data/{split}_instances"] = sum(shard.instances for shard in shards)
    return described


@contextmanager
def tracking(
    name: TrackerName | None,
    run_dir: Location,
    config: Mapping[str, Any],
    directory: Path | None = None,
) -> Iterator["Tracking | None"]:
    """Yields what sends the metrics of a run to a tracker within the block; None for no tracker."""
    with Tracking(name, run_dir, config, directory) if name else nullcontext() as tracker:
        yield tracker


class Tracking:
    """Sends a run's metrics to a tracker while the block lasts; only for the main thread.

    The run's `tracking.json` has the id by which a resumed run finds the tracker's run again.

    Args:
      name: the tracker.
      run_dir: the run.
      config: what the tracker shall know about the run, by name.
      directory: where the metrics are written, and where the tracker may keep files, if not in the
        run.
    """

    def __init__(
        self,
        name: TrackerName,
        run_dir: Location,
        config: Mapping[str, Any],
        directory: Path | None = None,
    ):
        self._name = name
        self._places = str(directory or run_dir), str(run_dir)
        path = run_dir / TRACKING_NAME
        if not path.exists():
            write_json(path, {"run_id": uuid.uuid4().hex})
        start = {
            "tracker": name,
            "run_dir": self._places[0],
            "run_id": read_json(path, dict[str, str])["run_id"],
            "config": dict(config),
        }
        self._requested = self._sent = 0
        self._is_finished = self._has_warned = False
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "modeling.training.tracker_sender"],
            env=_environment(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A signal to training, by a terminal or a cluster, is not meant for it.
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._request(json.dumps(start))
        os.set_blocking(self._requests.fileno(), False)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with suppress(OSError):
            self._requests.close()
        deadline = time.monotonic() + (_SECONDS_WHEN_STOPPED if kind else _SECONDS_AT_END)
        while self._process.poll() is None and time.monotonic() < deadline:
            self._read_answers()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._read_answers()
        # What it has started ends with it.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._is_finished or self._sent < self._requested:
            logging.warning(
                "%s lacks the last steps: give the same command again to send them", self._name
            )

    def send(self, num_bytes: int) -> None:
        """Sends the steps in the first bytes of metrics.jsonl, without waiting for the tracker."""
        self._requested = num_bytes
        self._request(str(num_bytes))
        self._read_answers()

    def _request(self, text: str) -> None:
        # If it reads no longer, it has ended, or hangs since thousands of checkpoints.
        with suppress(OSError):
            self._requests.write(text.encode() + b"\n")
            self._requests.flush()

    def _read_answers(self) -> None:
        self._unread += self._answers.read() or b""
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._sent = answer.get("sent", self._sent)
            self._is_finished = answer.get("finished", self._is_finished)
            if note := answer.get("note"):
                logging.info("%s: %s", self._name, note.replace(*self._places))
            if (error := answer.get("error")) and not self._has_warned:
                self._has_warned = True
                logging.warning("%s: %s; training goes on", self._name, error)


def _environment(name: TrackerName) -> dict[str, str]:
    """The environment of the process: nothing goes to the network unless the user is logged in."""
    own = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "WANDB_SILENT": "true",
    }
    if name == TrackerName.WANDB and not _is_logged_in():
        # As variables, because `wandb.init(mode="offline")` first looks up the server's name.
        own |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    return {**own, **os.environ, "PYTHONSAFEPATH": "1"}


def _is_logged_in() -> bool:
    """Whether there is a key for the server of Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    base_url = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(base_url).netloc,) if base_url else _WANDB_HOSTS
    try:
        logins = netrc.netrc(path)
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(host in logins.hosts for host in hosts)
