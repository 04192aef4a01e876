"""The process that sends a run's metrics to a tracker.

It reads requests from stdin, one a line: first what the run is, as JSON; then, at each checkpoint,
the number of bytes of metrics.jsonl that the checkpoint covers. So the tracker never gets a step
that a resumed run would replace. It answers in lines of JSON: `sent`, the bytes that the tracker
has; `note`, a line for the user; `error`, why it has got nothing new; and `finished`. After an
error, the next request sends what is missing.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import in_one_line
from pipeline.files import remove_leftovers, temporary_name

_PROJECT = "clozemill"
_PR_SET_PDEATHSIG = 1
# The most that MLflow takes at once.
_MOST_PARAMETERS, _MOST_METRICS, _LONGEST_PARAMETER = 100, 1000, 6000
_TAG = "clozemill.run_id"
_LONGEST_ERROR = 1000


class _Tracker(Protocol):
    """A run of a tracker, which is created or found when this is.

    Attributes:
      last_step: the last step that it has already; -1 if none.
      note: a line for the user, if any.
    """

    last_step: int
    note: str

    def log(self, steps: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Adds steps, which come after all that it has, and sets `last_step`."""

    def finish(self) -> None:
        """Waits until the tracker has all."""


class _Wandb:
    """A run of Weights & Biases.

    Offline, it is a directory of the run, which each start writes anew: nothing in one can be
    replaced, and the server takes those of the same id for one run.
    """

    def __init__(self, run_dir: Path, run_id: str, config: dict[str, Any]):
        import wandb  # noqa: PLC0415 - an extra

        for old in (run_dir / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=run_dir,
            id=run_id,
            name=run_dir.absolute().name,
            resume="allow",
            config=config,
            allow_val_change=True,
            # Only the figures of metrics.jsonl, and nothing of this machine or of the environment.
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.last_step = self._run.step - 1
        is_offline = self._run.settings.mode in ("offline", "dryrun")
        directory = Path(self._run.settings.sync_dir)
        self.note = f"`wandb sync {directory}` sends the run" if is_offline else self._run.url or ""

    def log(self, steps: Iterable[tuple[int, dict[str, float]]]) -> None:
        for step, figures in steps:
            self._run.log(figures, step=step)
            self.last_step = step

    def finish(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow, on the server of MLFLOW_TRACKING_URI or in the run's own mlflow.db."""

    def __init__(self, run_dir: Path, run_id: str, config: dict[str, Any]):
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        uri, self.note = os.environ.get("MLFLOW_TRACKING_URI"), ""
        if not uri:
            store = (run_dir / "mlflow.db").absolute()
            remove_leftovers(store.parent, store.name)
            if not store.exists():
                # A process that is killed meanwhile leaves no half-made tables behind.
                new = temporary_name(store)
                MlflowClient(f"sqlite:///{new}").search_experiments()
                new.rename(store)
            uri = f"sqlite:///{store}"
            self.note = f"`mlflow ui --backend-store-uri {uri}` shows the run"
        self._client, self._metric = MlflowClient(uri), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(name)
        )
        # By a tag that is known beforehand, a run is found even if its creator was killed then.
        found = self._client.search_runs([experiment_id], f"tags.`{_TAG}` = '{run_id}'")
        self._run_id = (
            found[0].info.run_id
            if found
            else self._client.create_run(
                experiment_id, tags={_TAG: run_id}, run_name=run_dir.absolute().name
            ).info.run_id
        )
        run = self._client.get_run(self._run_id)
        self.last_step = int(run.data.metrics.get("step", -1))
        # MLflow never changes a parameter, so those of the first start count.
        parameters = [
            Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in config.items()
            if name not in run.data.params
        ]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(
                self._run_id, params=parameters[first : first + _MOST_PARAMETERS]
            )
        self._client.update_run(self._run_id, status="RUNNING")

    def log(self, steps: Iterable[tuple[int, dict[str, float]]]) -> None:
        batch: list[Any] = []
        now = int(time.time() * 1000)
        for step, figures in steps:
            # The number of the step is a figure, too, so that the last one can be asked for. A
            # batch holds whole steps, because the tracker gets all of it or nothing.
            metrics = [self._metric(name, value, now, step) for name, value in figures.items()]
            metrics.append(self._metric("step", step, now, step))
            if len(batch) + len(metrics) > _MOST_METRICS:
                self._send(batch)
                batch = []
            batch += metrics
        if batch:
            self._send(batch)

    def finish(self) -> None:
        self._client.set_terminated(self._run_id)

    def _send(self, batch: list[Any]) -> None:
        self._client.log_batch(self._run_id, metrics=batch)
        self.last_step = batch[-1].step


_TRACKERS: dict[str, Callable[[Path, str, dict[str, Any]], _Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def main() -> None:
    """Serves the requests until stdin ends, then waits until the tracker has all."""
    _live_and_die_with_the_parent()
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - libraries print what they like
        os.dup2(nowhere.fileno(), 1)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    start = json.loads(sys.stdin.readline())
    tracker: _Tracker | None = None
    for request in sys.stdin:
        num_bytes = int(request)
        try:
            if tracker is None:
                make = _TRACKERS[start["tracker"]]
                tracker = make(Path(start["run_dir"]), start["run_id"], start["config"])
                answer(note=tracker.note)
            steps = _read_steps(Path(start["run_dir"]) / "metrics.jsonl", num_bytes)
            last = tracker.last_step
            tracker.log((step, figures) for step, figures in steps if step > last)
            answer(sent=num_bytes)
        except Exception as error:  # whatever a library raises, training goes on
            answer(error=_described(error))
    if tracker:
        tracker.finish()
    answer(finished=True)


def _read_steps(path: Path, num_bytes: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The figures of each step in the first bytes of metrics.jsonl, those of evaluations too."""
    with path.open("rb") as file:
        lines = [json.loads(line) for line in file.read(num_bytes).splitlines()]
    for step, of_step in groupby(lines, key=lambda line: line["step"]):
        yield step, {name: x for line in of_step for name, x in line.items() if name != "step"}


def _described(error: Exception) -> str:
    """An error in one line, without the passwords in addresses."""
    text = re.sub(r"//[^/\s]*@", "//", f"{type(error).__name__}: {error}")
    return in_one_line(text[:_LONGEST_ERROR])


def _live_and_die_with_the_parent() -> None:
    """Ends this process if the training process is killed, but not by a signal meant for that."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    main()
