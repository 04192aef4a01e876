"""The way of a document from text to loss stays short enough to read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_backend

ROOT = Path(__file__).parents[1]
MOST_LINES = 1400


@pytest.fixture(scope="module")
def printed():
    """The lines that the script prints: a figure and what it counts."""
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "nine_hops.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split(maxsplit=1) for line in result.stdout.splitlines()]


def test_the_nine_hops_are_short_to_read(printed):
    *modules, (total, _) = printed
    assert sum(int(lines) for lines, _ in modules) == int(total)
    assert int(total) <= MOST_LINES


def test_the_script_follows_the_files_of_the_readme(printed):
    readme = (ROOT / "README.md").read_text("utf-8")
    (hops,) = re.findall(r"^## Follow one document$(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    rows = [line for line in hops.splitlines() if line.startswith("| ")]
    files = set(re.findall(r"\]\((.*?)\)", "".join(rows)))
    assert len(files) >= 7
    read = {text.partition(":")[0].replace(".", "/") + ".py" for _, text in printed[:-1]}
    assert files <= read
