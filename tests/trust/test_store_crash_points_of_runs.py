"""Kills `pretrain` and `export` at their requests to a store, and repeats the command.

After the kill, no checkpoint and no export that counts may be half. The same command again finds
nothing on its own machine; it must give the bytes of a command on a disk, and leave nothing else.
"""

import hashlib
import json
import os
import random
import shutil
import signal
from collections import Counter

import pytest

from pipeline.storage import location

pytestmark = pytest.mark.no_backend

KILLED = -9
MOST_POINTS = 120
BUSY = 503
MOMENTS = ("before", "after")
OPENED_BY = "model.safetensors"


@pytest.fixture
def commands(pretrain_flags, samples):
    """Commands by name: what comes before them, and themselves; {place} is where they write."""
    pretrain = ("pretrain", *pretrain_flags, f"--data_dir={samples / 'data'}")
    pretrain += ("--output_dir={place}/out", "--keep_checkpoints=2", "--keep_every_steps=4")
    six, ten = (*pretrain, "--num_train_steps=6"), (*pretrain, "--num_train_steps=10")
    first, second = (
        ("export", f"--run_dir={samples / run}", "--output_dir={place}/out", "--overwrite")
        for run in ("run", "other_run")
    )
    return {
        "pretrain": [six],
        "pretrain, resuming": [six, ten],
        "export": [first[:-1]],
        "export --overwrite": [first, second],
    }


class Killing:
    """Runs commands on a store, with and without a kill, each time in a bucket of its own."""

    def __init__(self, zygote, content_of, store, commands, folder):
        self._zygote, self._content_of, self._store = zygote, content_of, store
        self._commands, self._folder = commands, folder
        self._place = str(folder / "disk")
        for command in self._filled_in():
            zygote.succeed(*command)
        self._expected = self._without_place(content_of(folder / "disk"))
        self._begin()
        assert self._run(self._filled_in()[-1]).code == 0
        self.requests = list(store.requests)
        assert self._content() == self._expected

    def problems_at(self, point, moment):
        """Kills the command at a request and repeats it; what is wrong, by kind of problem."""
        self._begin()

        def kill(number, *_):
            if number != point:
                return None
            os.kill(int((self._folder / "process").read_text()), signal.SIGKILL)
            return BUSY  # in place of the server, which does nothing

        setattr(self._store, moment, kill)
        killed = self._run(self._filled_in()[-1])
        self._store.reset()
        if killed.code != KILLED:
            return {"not killed": str(killed)}
        problems = {}
        if half := self._half():
            problems["half"] = half
        repeated = self._run(self._filled_in()[-1])
        if repeated.code:
            return problems | {"refused": repeated.stderr}
        if (found := self._content()) != self._expected:
            names = found.keys() | self._expected.keys()
            wrong = [name for name in names if found.get(name) != self._expected.get(name)]
            problems["other bytes"] = ", ".join(sorted(wrong))
        return problems

    def _begin(self):
        """Takes a new bucket, with what comes before the command."""
        self._store.reset()
        self._place = self._store.make_bucket()
        for command in self._filled_in()[:-1]:
            assert self._run(command).code == 0
        self._store.reset()

    def _filled_in(self):
        return [
            [word.replace("{place}", self._place) for word in command] for command in self._commands
        ]

    def _run(self, command):
        process_file = self._folder / "process"
        return self._zygote.run_on_store(self._store.environment, process_file, *command)

    def _half(self):
        """Checkpoints that count but lack something, and an export that opens but does."""
        out, half = location(self._place) / "out", []
        for state in (out / "checkpoints").rglob("state.json"):
            for name in ("weights.npz", "optimizer.npz"):
                content = (state.parent / name).read_bytes()
                if json.loads(state.read_bytes())["sha256"][name] != _sha256(content):
                    half.append(f"{state.parent.name}/{name}")
        if (out / OPENED_BY).is_file():
            for name, sha256 in json.loads((out / "export.json").read_bytes())["files"].items():
                if _sha256((out / name).read_bytes()) != sha256:
                    half.append(name)
        return ", ".join(half)

    def _content(self):
        """All objects by name, without what is about times and places."""
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        root = location(self._place)
        for path in root.rglob("*"):
            file = copy / path.relative_to(root)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(path.read_bytes())
        return self._without_place(self._content_of(copy))

    def _without_place(self, content):
        return {
            name: each.replace(self._place.encode(), b"PLACE") for name, each in content.items()
        }


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def assert_survives(full, content_of, commands, server, report, tmp_path):
    """A function that kills a command at some of its requests, and fails with what is wrong."""

    def check(name, most):
        killing = Killing(full, content_of, server, commands[name], tmp_path)
        points = [(point, moment) for point in range(len(killing.requests)) for moment in MOMENTS]
        chosen = sorted(random.Random(name).sample(points, min(most, len(points))))
        counts, problems = Counter(tried=len(chosen)), []
        for point, moment in chosen:
            found = killing.problems_at(point, moment)
            counts.update(list(found) or ["fine"])
            where = f"{name}, {moment} {point} {' '.join(killing.requests[point])}"
            problems += [f"{where}: {kind}: {text}" for kind, text in found.items()]
        report(f"killed at {len(chosen)} of {len(points)} points", [(name, counts)])
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)

    return check


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "pretrain, resuming", "export", "export --overwrite"])
def test_a_command_killed_at_any_request_can_be_repeated(name, assert_survives):
    assert_survives(name, MOST_POINTS)
