"""Processes that start at once; and one line at the end says what skipped tests need."""

import multiprocessing.forkserver
import re
from collections import Counter

import pytest

MISSING_PACKAGE = re.compile(r"could not import '([\w.]+)'.*", re.DOTALL)


@pytest.fixture(scope="module")
def preload():
    """A function that makes a module's processes forks of one that has imported these modules.

    They are those of `multiprocessing` with its method forkserver.
    """
    yield lambda *modules: multiprocessing.set_forkserver_preload(list(modules))
    # The processes of the next module are forks of another one.
    multiprocessing.forkserver._forkserver._stop()


def pytest_terminal_summary(terminalreporter):
    # A report's `longrepr` is file, line and reason. A module skipped as a whole is one report.
    counts = Counter(
        MISSING_PACKAGE.sub(r"needs \1", report.longrepr[2].removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", [])
    )
    if counts:
        parts = [
            f"{number} {reason if number == 1 else re.sub('^needs', 'need', reason)}"
            for reason, number in counts.most_common()
        ]
        terminalreporter.write_line(f"skipped: {', '.join(parts)}")
