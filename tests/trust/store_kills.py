"""Kills a command at its requests to a store, looks at what is left, and repeats it."""

import os
import random
import signal
from collections import Counter

import pytest

from pipeline.storage import location

KILLED = -9
BUSY = 503
MOMENTS = ("before", "after")


class Killing:
    """A command on a store, with and without a kill, each time in a bucket of its own.

    The same command, repeated after a kill, must give the bytes of one on a disk, and leave nothing
    else.

    Args:
      zygote: what runs commands.
      store: the server.
      commands: those that come before, and the command, last; {place} is where they write.
      folder: an empty folder.

    Attributes:
      place: where the commands write now.
      expected: the content of each file afterwards, by name.
      requests: the command's requests, without a kill.
    """

    def __init__(self, zygote, store, commands, folder):
        self._zygote, self._store = zygote, store
        self._commands, self._process_file = commands, folder / "process"
        self.place = folder / "disk"
        for command in self._filled_in():
            zygote.succeed(*command)
        self.expected = self.content()
        self._begin()
        assert self._run().code == 0
        self.requests = list(store.requests)
        assert self.content() == self.expected

    def content(self):
        """The content of each file, where those that name the place name none."""
        return self.without_place(
            {
                str(path.relative_to(self.place)): path.read_bytes()
                for path in self.place.rglob("*")
                if path.is_file()
            }
        )

    def without_place(self, content):
        """The content of files that name the place, as if they named none."""
        place = str(self.place).encode()
        return {name: each.replace(place, b"PLACE") for name, each in content.items()}

    def half(self, before):
        """What is only half there after a kill, in words.

        Args:
          before: the content of each file before the command.
        """
        raise NotImplementedError

    def check(self, name, points, report):
        """Kills the command at some points, reports, and fails with what is wrong.

        Args:
          name: the command's.
          points: the number of a request, from 0, and "before" the server does what is asked, or
            "after" it.
          report: is told the counts.
        """
        counts, problems = Counter(tried=len(points)), []
        for point, moment in points:
            found = self._problems_at(point, moment)
            counts.update(list(found) or ["fine"])
            where = f"{name}, {moment} {point} {' '.join(self.requests[point])}"
            problems += [f"{where}: {kind}: {text}" for kind, text in found.items()]
        report(f"killed at {len(points)} of {2 * len(self.requests)} points", [(name, counts)])
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)

    def sample(self, most, seed):
        """Points of all requests, drawn by a seed."""
        points = [(point, moment) for point in range(len(self.requests)) for moment in MOMENTS]
        return sorted(random.Random(seed).sample(points, min(most, len(points))))

    def _problems_at(self, point, moment):
        """Kills the command at a request and repeats it; what is wrong, by kind of problem."""
        before = self._begin()

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
        if half := self.half(before):
            problems["half"] = half
        repeated = self._run()
        if repeated.code:
            return problems | {"refused": repeated.stderr}
        found = self.content()
        if left := sorted(found.keys() - self.expected.keys()):
            problems["left-overs"] = ", ".join(left)
        if wrong := [name for name in self.expected if found.get(name) != self.expected[name]]:
            problems["other bytes"] = ", ".join(wrong)
        return problems

    def _begin(self):
        """Takes a new bucket; what is in it before the command, by name."""
        self._store.reset()
        self.place = location(self._store.make_bucket())
        for number in range(len(self._commands) - 1):
            outcome = self._run(number)
            assert outcome.code == 0, outcome
        before = self.content()
        self._store.reset()
        return before

    def _filled_in(self):
        place = str(self.place)
        return [[word.replace("{place}", place) for word in command] for command in self._commands]

    def _run(self, number=-1):
        command = self._filled_in()[number]
        return self._zygote.run_on_store(self._store.environment, self._process_file, *command)
