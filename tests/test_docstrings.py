"""Each package's docstring lists its files, a row each, and nothing that is not there."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_backend

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    init.parent.relative_to(ROOT)
    for name in ("pipeline", "modeling", "launch")
    for init in (ROOT / name).rglob("__init__.py")
)
# A row of a list: the name, two spaces or more, what it is.
ROW = re.compile(r"^    (\w+) {2,}(\S.*)$", re.MULTILINE)


def members_of(package):
    """The modules and packages of a package."""
    for path in (ROOT / package).iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            yield path.stem
        elif (path / "__init__.py").exists():
            yield path.name


def listed_in(docstring):
    return [name for name, _ in ROW.findall(docstring.partition("\nThe words of the code::")[0])]


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_a_package_lists_its_files_once_each(package):
    docstring = ast.get_docstring(
        ast.parse((ROOT / package / "__init__.py").read_text("utf-8")), clean=False
    )
    assert sorted(listed_in(docstring)) == sorted(members_of(package))


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_a_row_stands_alone(package):
    """No row continues the one before it or runs into the next line."""
    lines = (ROOT / package / "__init__.py").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("    ")]
    assert rows
    assert all(ROW.match(row) for row in rows)
    assert not [row for row in rows if re.search(r"^    \w+ {2,}(and|but)\b", row)]
