"""Kills `pretrain` and `export` at their requests to a store, and repeats the command.

After the kill, no checkpoint and no export that counts may be half. The same command again finds
nothing on its own machine; it must give the bytes of a command on a disk, and leave nothing else.
"""

import hashlib
import json

import pytest

from pipeline.files import local_copy
from tests.trust.store_kills import Killing

pytestmark = pytest.mark.no_backend

MOST_POINTS = 120
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


class KillingRun(Killing):
    def __init__(self, content_of, *arguments):
        self._content_of = content_of
        super().__init__(*arguments)

    def content(self):
        """All files by name, without what is about times and places."""
        with local_copy(self.place) as copy:
            return self.without_place(self._content_of(copy))

    def half(self, before):
        """Checkpoints that count but lack something, and an export that opens but does."""
        out, half = self.place / "out", []
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


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "pretrain, resuming", "export", "export --overwrite"])
def test_a_command_killed_at_any_request_can_be_repeated(
    name, commands, full, content_of, server, report, tmp_path
):
    killing = KillingRun(content_of, full, server, commands[name], tmp_path)
    killing.check(name, killing.sample(MOST_POINTS, name), report)
