"""Kills `generate` at its requests to a store, looks at what is left, and repeats the command.

After the kill, no object may be half. The same command again must give the bytes of a run on a
disk, and leave nothing else behind, not even a lock.
"""

import os
import random
import signal
from collections import Counter
from dataclasses import dataclass

import pytest

from pipeline.errors import UserError
from pipeline.manifest import DataSet
from pipeline.storage import location
from pipeline.verification import verify

pytestmark = pytest.mark.no_backend

KILLED = -9
MOST_REQUESTS = 60
POINTS_OF_FAST_TEST = 4
BUSY = 503
MOMENTS = ("before", "after")


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
      flags: more flags of the command.
      before: those of a command that has made a data set in its place; None: there is none.
    """

    flags: tuple[str, ...] = ()
    before: tuple[str, ...] | None = None


CASES = {
    "generate": Case(("--num_shards=3",)),
    "generate --tokenized_dir": Case(("--tokenized_dir={place}/tokenized",)),
    "generate --drop_duplicates": Case(("--drop_duplicates",)),
    "generate --overwrite": Case(("--overwrite",), ("--random_seed=1", "--num_shards=3")),
}


class Killing:
    """Runs a case on a store, with and without a kill, each time in a bucket of its own."""

    def __init__(self, zygote, generate_flags, store, case, folder):
        self._zygote, self._store, self._case = zygote, store, case
        self._generate = ("generate", *generate_flags)
        self._process_file = folder / "process"
        self._place = str(folder / "disk")
        for flags in self._commands:
            zygote.succeed(*flags)
        self.expected = self._content()
        self._after_before = self._new_bucket()
        assert self._run().code == 0
        self.requests = list(store.requests)

    @property
    def _commands(self):
        """The command that comes before, if any, and the one to kill."""
        all_flags = [flags for flags in (self._case.before, self._case.flags) if flags is not None]
        return [
            [*self._generate, f"--output_dir={self._place}/data"]
            + [flag.format(place=self._place) for flag in flags]
            for flags in all_flags
        ]

    def _content(self):
        """The content of each file, where those that name the place name none."""
        root = location(self._place)
        return {
            str(path.relative_to(root)): path.read_bytes().replace(self._place.encode(), b"PLACE")
            for path in root.rglob("*")
            if path.is_file()
        }

    def _run(self):
        return self._zygote.run_on_store(
            self._store.environment, self._process_file, *self._commands[-1]
        )

    def _new_bucket(self):
        """Takes a new bucket; what is in it before the command, by name."""
        self._store.reset()
        self._place = self._store.make_bucket()
        for flags in self._commands[:-1]:
            outcome = self._zygote.run_on_store(self._store.environment, self._process_file, *flags)
            assert outcome.code == 0, outcome
        before = self._content()
        self._store.reset()
        return before

    def problems_at(self, point, moment):
        """Kills the command at a request and repeats it; what is wrong, by kind of problem.

        Args:
          point: the number of the request, from 0.
          moment: "before" the server does what is asked, or "after" it.
        """
        before = self._new_bucket()

        def kill(number, *_):
            if number != point:
                return None
            os.kill(int(self._process_file.read_text()), signal.SIGKILL)
            return BUSY  # in place of the server, which does nothing

        setattr(self._store, moment, kill)
        killed = self._run()
        self._store.reset()
        if killed.code != KILLED:
            return {"not killed": str(killed)}
        problems = {}
        if half := self._half(before):
            problems["half"] = half
        repeated = self._run()
        if repeated.code:
            return problems | {"refused": repeated.stderr}
        found = self._content()
        if left := sorted(found.keys() - self.expected.keys()):
            problems["left-overs"] = ", ".join(left)
        if wrong := [name for name in self.expected if found.get(name) != self.expected[name]]:
            problems["other bytes"] = ", ".join(wrong)
        return problems

    def _half(self, before):
        """What is neither as before the command nor as after it, in words."""
        root = location(self._place)
        if (root / "data" / "manifest.json").is_file():
            try:
                return "; ".join(verify(DataSet.read(root / "data")))
            except UserError as error:
                return str(error)
        known = (before, self.expected)
        return ", ".join(
            name
            for name, content in self._content().items()
            if not name.startswith("data/clozemill_in_progress/")
            and content not in [each.get(name) for each in known]
        )


@pytest.fixture
def assert_survives(light, generate_flags, server, report, tmp_path):
    """A function that kills a case at some of its requests, reports, and fails with what is wrong.

    Which, it learns from a function of their number.
    """

    def check(name, points_of):
        killing = Killing(light, generate_flags, server, CASES[name], tmp_path)
        points = points_of(len(killing.requests))
        counts, problems = Counter(tried=len(points)), []
        for point, moment in points:
            found = killing.problems_at(point, moment)
            counts.update(list(found) or ["fine"])
            where = f"{name}, {moment} {' '.join(killing.requests[point])}"
            problems += [f"{where}: {kind}: {text}" for kind, text in found.items()]
        report(f"killed at {len(points)} of {2 * len(killing.requests)} points", [(name, counts)])
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)

    return check


def sample_of(most, seed):
    """A function that draws points from all requests."""

    def draw(num_requests):
        points = [(point, moment) for point in range(num_requests) for moment in MOMENTS]
        return sorted(random.Random(seed).sample(points, min(most, len(points))))

    return draw


def test_generate_killed_at_a_few_requests_resumes(assert_survives):
    assert_survives("generate", sample_of(POINTS_OF_FAST_TEST, "fast"))


@pytest.mark.slow
def test_generate_killed_at_any_of_its_first_requests_resumes(assert_survives):
    def first(num_requests):
        assert num_requests >= MOST_REQUESTS
        return [(point, moment) for point in range(MOST_REQUESTS) for moment in MOMENTS]

    assert_survives("generate", first)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_generate_killed_at_any_request_resumes(name, assert_survives):
    assert_survives(name, sample_of(MOST_REQUESTS // 2, name))
